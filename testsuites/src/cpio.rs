//! Initial RAM disks: the "newc" cpio format (Linux, Documentation/driver-api/early-userspace/buffer-format).

use flate2::{Compression, write::GzEncoder};
use std::io::Write;

/// An archive under construction.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> &mut Self {
        self.inode += 1;
        let name_size = name.len() as u32 + 1;
        let fields = [self.inode, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(data);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub fn directory(&mut self, name: &str) -> &mut Self {
        self.entry(name, DIRECTORY, &[])
    }
    pub fn program(&mut self, name: &str, data: &[u8]) -> &mut Self {
        self.entry(name, PROGRAM, data)
    }
    pub fn link(&mut self, name: &str, target: &str) -> &mut Self {
        self.entry(name, LINK, target.as_bytes())
    }

    /// The archive, gzipped.
    pub fn finish(mut self) -> std::io::Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[]);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&self.bytes)?;
        gzip.finish()
    }
}
