//! Disk images: raw files, locked while a machine has them.

use crate::chips::locked;
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use trimaran_devices::block::Medium;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    #[error("cannot open {}: {error}", path.display())]
    Open { path: PathBuf, error: io::Error },
    #[error("{} is in use by another program; close that one, or open the image read-only in both", path.display())]
    Locked { path: PathBuf },
    #[error("{} is empty: not a disk image", path.display())]
    Empty { path: PathBuf },
}

/// A raw image in a file.
#[derive(Debug)]
pub struct RawImage {
    file: File,
    path: PathBuf,
    len: u64,
    read_only: bool,
}

impl RawImage {
    /// Opens an image and locks it: shared if read-only, otherwise for this machine alone.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, MediaError> {
        let failed = |error| MediaError::Open { path: path.into(), error };
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(failed)?;
        let lock = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match lock {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(MediaError::Locked { path: path.into() }),
            // File systems without locks do without.
            Err(TryLockError::Error(error)) => tracing::debug!("{}: no lock: {error}", path.display()),
        }
        let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if len == 0 {
            return Err(MediaError::Empty { path: path.into() });
        }
        Ok(RawImage { file, path: path.into(), len, read_only })
    }

    fn seek(&mut self, position: u64, len: usize) -> io::Result<()> {
        if position.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.seek(SeekFrom::Start(position)).map(|_| ())
    }
}

impl Medium for RawImage {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read_at(&mut self, position: u64, buf: &mut [u8]) -> io::Result<()> {
        self.seek(position, buf.len())?;
        self.file.read_exact(buf)
    }
    fn write_at(&mut self, position: u64, buf: &[u8]) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.seek(position, buf.len())?;
        self.file.write_all(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn label(&self) -> String {
        let mode = if self.read_only { " (read-only)" } else { "" };
        format!("{}{mode}", self.path.display())
    }
}

/// A medium whose file is only read: what is written stays in memory.
pub struct Scratch {
    medium: Box<dyn Medium>,
    changes: Changes,
}

/// What was written to a [`Scratch`]; it can be taken back.
#[derive(Clone, Default)]
pub struct Changes(Arc<Mutex<Layers>>);

type Block = [u8; BLOCK as usize];

#[derive(Default)]
struct Layers {
    /// Blocks by number.
    kept: HashMap<u64, Block>,
    new: HashMap<u64, Block>,
}

/// Bytes that are kept together.
const BLOCK: u64 = 512;

impl Changes {
    /// What is written up to now is not taken back any more.
    pub fn keep(&self) {
        let mut layers = locked(&self.0);
        let new = std::mem::take(&mut layers.new);
        layers.kept.extend(new);
    }

    /// The medium is as at the last [`Changes::keep`].
    pub fn take_back(&self) {
        locked(&self.0).new.clear();
    }
}

impl Scratch {
    pub fn new(medium: Box<dyn Medium>) -> Self {
        Scratch { medium, changes: Changes::default() }
    }

    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// The parts of a range in blocks: number of the block, where in it the part begins, where in the range, length.
    fn parts(position: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = position + done as u64;
            let part = ((BLOCK - at % BLOCK) as usize).min(len - done);
            let result = (at / BLOCK, (at % BLOCK) as usize, done, part);
            done += part;
            (part > 0).then_some(result)
        })
    }
}

impl Medium for Scratch {
    fn len(&self) -> u64 {
        self.medium.len()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&mut self, position: u64, buf: &mut [u8]) -> io::Result<()> {
        self.medium.read_at(position, buf)?;
        let layers = locked(&self.changes.0);
        for (block, from, to, len) in Self::parts(position, buf.len()) {
            if let Some(bytes) = layers.new.get(&block).or_else(|| layers.kept.get(&block)) {
                buf[to..to + len].copy_from_slice(&bytes[from..from + len]);
            }
        }
        Ok(())
    }
    fn write_at(&mut self, position: u64, buf: &[u8]) -> io::Result<()> {
        if position.checked_add(buf.len() as u64).is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (block, to, from, len) in Self::parts(position, buf.len()) {
            let mut bytes = [0; BLOCK as usize];
            let start = block * BLOCK;
            let there = (self.len() - start).min(BLOCK) as usize;
            self.read_at(start, &mut bytes[..there])?;
            bytes[to..to + len].copy_from_slice(&buf[from..from + len]);
            locked(&self.changes.0).new.insert(block, bytes);
        }
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn label(&self) -> String {
        format!("{}, writes stay in memory", self.medium.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_devices::block::MemoryMedium;

    #[test]
    fn writes_are_taken_back() {
        let mut scratch = Scratch::new(Box::new(MemoryMedium::new(vec![7; 1300])));
        let changes = scratch.changes();
        let read = |scratch: &mut Scratch, at: u64| {
            let mut bytes = [0; 4];
            scratch.read_at(at, &mut bytes).map(|()| bytes)
        };
        scratch.write_at(510, &[1, 2, 3, 4]).unwrap();
        changes.keep();
        scratch.write_at(511, &[9; 700]).unwrap();
        assert_eq!(read(&mut scratch, 510).unwrap(), [1, 9, 9, 9]);
        assert_eq!(read(&mut scratch, 1209).unwrap(), [9, 9, 7, 7]);
        changes.take_back();
        assert_eq!(read(&mut scratch, 509).unwrap(), [7, 1, 2, 3]);
        scratch.write_at(1296, &[5; 4]).unwrap();
        assert_eq!(read(&mut scratch, 1296).unwrap(), [5; 4]);
        assert!(scratch.write_at(1297, &[5; 4]).is_err() && read(&mut scratch, u64::MAX).is_err());
    }

    #[test]
    fn images_are_locked_and_bounded() {
        let path = std::env::temp_dir().join(format!("trimaran-raw-{}", std::process::id()));
        std::fs::write(&path, [7; 1024]).unwrap();
        let mut image = RawImage::open(&path, false).unwrap();
        assert!(matches!(RawImage::open(&path, true), Err(MediaError::Locked { .. })));
        image.write_at(1000, &[1, 2]).unwrap();
        let mut buf = [0; 3];
        image.read_at(999, &mut buf).unwrap();
        assert_eq!(buf, [7, 1, 2]);
        assert!(image.read_at(1023, &mut buf).is_err() && image.write_at(u64::MAX, &buf).is_err());
        drop(image);
        assert!(RawImage::open(&path, true).unwrap().write_at(0, &buf).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
