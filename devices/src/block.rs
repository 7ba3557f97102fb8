//! Storage behind disk, CD-ROM and floppy controllers.

use std::io;

/// A medium: a flat array of bytes. Positions come from the guest, so every implementation checks bounds and
/// answers with an error.
pub trait Medium: Send {
    /// Size in bytes.
    fn len(&self) -> u64;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    fn read_only(&self) -> bool;
    fn read_at(&mut self, position: u64, buf: &mut [u8]) -> io::Result<()>;
    fn write_at(&mut self, position: u64, buf: &[u8]) -> io::Result<()>;
    fn flush(&mut self) -> io::Result<()>;
    /// What `info block` shows: a path, say.
    fn label(&self) -> String;
}

/// A medium in memory, for tests and RAM disks.
pub struct MemoryMedium {
    pub bytes: Vec<u8>,
    pub read_only: bool,
}

impl MemoryMedium {
    pub fn new(bytes: Vec<u8>) -> Self {
        MemoryMedium { bytes, read_only: false }
    }

    fn range(&self, position: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(position).map_err(|_| io::ErrorKind::InvalidInput)?;
        let end = start.checked_add(len).filter(|&end| end <= self.bytes.len());
        end.map(|end| start..end).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Medium for MemoryMedium {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read_at(&mut self, position: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(&self.bytes[self.range(position, buf.len())?]);
        Ok(())
    }
    fn write_at(&mut self, position: u64, buf: &[u8]) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let range = self.range(position, buf.len())?;
        self.bytes[range].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn label(&self) -> String {
        format!("memory ({} bytes)", self.bytes.len())
    }
}
