//! Bounds-checked little-endian reads from a kernel image.

use super::BootError;

/// A kernel file, not trusted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image<'a>(pub &'a [u8]);

impl<'a> Image<'a> {
    pub fn len(self) -> u64 {
        self.0.len() as u64
    }

    /// `length` bytes at `offset`; `what` names them in the error.
    pub fn slice(self, offset: u64, length: u64, what: &'static str) -> Result<&'a [u8], BootError> {
        let end = offset.checked_add(length);
        let range = end.and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
        let need = end.unwrap_or(u64::MAX);
        range.and_then(|r| self.0.get(r)).ok_or(BootError::Truncated { what, need, length: self.len() })
    }

    fn array<const N: usize>(self, offset: u64, what: &'static str) -> Result<[u8; N], BootError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.slice(offset, N as u64, what)?);
        Ok(bytes)
    }

    pub fn u8(self, offset: u64, what: &'static str) -> Result<u8, BootError> {
        self.array::<1>(offset, what).map(|[byte]| byte)
    }

    pub fn u16(self, offset: u64, what: &'static str) -> Result<u16, BootError> {
        self.array(offset, what).map(u16::from_le_bytes)
    }

    pub fn u32(self, offset: u64, what: &'static str) -> Result<u32, BootError> {
        self.array(offset, what).map(u32::from_le_bytes)
    }

    pub fn u64(self, offset: u64, what: &'static str) -> Result<u64, BootError> {
        self.array(offset, what).map(u64::from_le_bytes)
    }
}
