//! Guest RAM: one anonymous mapping of the host that holds main memory, video memory and the firmware's ROM, one
//! after another. The only module that knows of vm-memory.
#![allow(unsafe_code)]

use crate::boot::{BootError, GuestMemory};
use crate::layout::{HIGH_RAM, MemoryLayout, TEST_MEMORY_SIZE};
use std::sync::Arc;
use trimaran_cpu::ram::Ram;
use trimaran_devices::chip::SharedBytes;
use vm_memory::MmapRegion;

/// Bytes of video memory.
pub const VIDEO_MEMORY: u64 = trimaran_devices::vga::VRAM_SIZE as u64;
/// ROM images are rounded up to this.
const ROM_UNIT: u64 = 0x1_0000;
/// Bytes that are copied at a time.
pub const PAGE: u64 = trimaran_cpu::ram::PAGE;

/// Where the blocks begin in the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Main memory is at 0; what lies above the PCI hole follows what lies below it.
    pub layout: MemoryLayout,
    pub video: u64,
    pub rom: u64,
    pub rom_len: u64,
    /// The test device's memory; empty without one.
    pub test_len: u64,
}

impl Blocks {
    pub fn new(ram_bytes: u64, firmware: usize, test_device: bool) -> Self {
        let rom_len = (firmware as u64).next_multiple_of(ROM_UNIT);
        Blocks {
            layout: MemoryLayout { ram_bytes },
            video: ram_bytes,
            rom: ram_bytes.saturating_add(VIDEO_MEMORY),
            rom_len,
            test_len: if test_device { TEST_MEMORY_SIZE } else { 0 },
        }
    }

    /// Where the test device's memory begins.
    pub fn test(&self) -> u64 {
        self.rom.saturating_add(self.rom_len)
    }

    pub fn total(&self) -> u64 {
        self.test().saturating_add(self.test_len)
    }

    /// Offset of a physical address of main memory with `len` bytes behind it.
    pub fn main(&self, address: u64, len: u64) -> Option<u64> {
        let low = self.layout.low_end();
        let end = address.checked_add(len)?;
        if end <= low {
            Some(address)
        } else if address >= HIGH_RAM && end - HIGH_RAM <= self.layout.high_bytes() {
            Some(address - HIGH_RAM + low)
        } else {
            None
        }
    }
}

/// Maps zeroed memory for all blocks.
pub fn map(blocks: &Blocks) -> Result<Arc<Ram>, String> {
    let len = usize::try_from(blocks.total()).map_err(|_| "more than the host can address".to_string())?;
    let region = MmapRegion::<()>::new(len).map_err(|e| e.to_string())?;
    let base = region.as_ptr();
    // SAFETY: the region is private to the `Ram`, page-aligned, readable, writable and `len` bytes long; it is
    // unmapped when the owner is dropped; no references into it exist.
    Ok(Arc::new(unsafe { Ram::new(base, len as u64, Box::new(region)) }))
}

/// Video memory as the VGA sees it.
pub struct VideoMemory {
    pub ram: Arc<Ram>,
    pub offset: u64,
}

impl SharedBytes for VideoMemory {
    fn len(&self) -> usize {
        VIDEO_MEMORY as usize
    }
    fn read(&self, offset: usize, buf: &mut [u8]) {
        if offset.saturating_add(buf.len()) > self.len() || !self.ram.read(self.offset + offset as u64, buf) {
            buf.fill(0);
        }
    }
    fn write(&self, offset: usize, buf: &[u8]) {
        if offset.saturating_add(buf.len()) <= self.len() {
            self.ram.write(self.offset + offset as u64, buf);
        }
    }
}

/// Main memory for the boot loaders.
pub struct MainMemory<'a> {
    pub ram: &'a Ram,
    pub blocks: Blocks,
}

impl MainMemory<'_> {
    fn offset(&self, gpa: u64, len: usize) -> Result<u64, BootError> {
        self.blocks.main(gpa, len as u64).ok_or(BootError::NoRam { gpa, length: len as u64 })
    }
}

impl GuestMemory for MainMemory<'_> {
    fn size(&self) -> u64 {
        self.blocks.layout.ram_bytes
    }
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
        self.ram.write(self.offset(gpa, bytes.len())?, bytes);
        Ok(())
    }
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), BootError> {
        self.ram.read(self.offset(gpa, buf.len())?, buf);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_memory_has_a_hole() {
        let blocks = Blocks::new(5 << 30, 0x4_1000, false);
        assert_eq!(blocks.main(0xBFFF_FFFF, 1), Some(0xBFFF_FFFF));
        assert_eq!(blocks.main(0xBFFF_FFFF, 2), None);
        assert_eq!(blocks.main(1 << 32, 1), Some(0xC000_0000));
        assert_eq!(blocks.main((6 << 30) - 1, 1), Some((5 << 30) - 1));
        assert_eq!(blocks.main((6 << 30) - 1, 2), None);
        assert_eq!(blocks.main(u64::MAX, 2), None);
        assert_eq!(blocks.rom_len, 0x5_0000);
    }
}
