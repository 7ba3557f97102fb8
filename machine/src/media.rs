//! Disk images: raw files, locked while a machine has them.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
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

#[cfg(test)]
mod tests {
    use super::*;

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
