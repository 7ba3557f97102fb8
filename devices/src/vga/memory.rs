//! The graphics controller's way to video memory (IBM VGA technical reference, "Graphics controller"): four
//! planes of 64 KB, the latches, the write and read modes.
//!
//! Byte `a` of plane `p` stands at `a * 4 + p` of video memory. So chain-4 is linear, and the doubleword and
//! word address modes of the CRT controller need no arithmetic.

use super::dispi::Dispi;
use super::registers::{ERAM, Registers};
use crate::chip::SharedBytes;

/// Bytes in a plane.
const PLANE: usize = 0x1_0000;

/// Where one byte access goes: an address in the planes, the planes a write may reach, the plane that read
/// mode 0 reads.
struct Target {
    address: usize,
    write_planes: u8,
    read_plane: u8,
}

/// Masks of four planes as bytes of a dword: plane 0 in the lowest.
fn spread(planes: u8) -> u32 {
    (0..4).filter(|p| planes >> p & 1 != 0).fold(0, |mask, p| mask | 0xFF << (p * 8))
}

impl Registers {
    /// Memory Map Select: the offset in the window at 0xA0000 as an offset in the mapped part.
    fn map(&self, offset: u64) -> Option<usize> {
        let (base, size) = match self.graphics[6] >> 2 & 3 {
            0 => (0, 0x2_0000),
            1 => (0, 0x1_0000),
            2 => (0x1_0000, 0x8000),
            _ => (0x1_8000, 0x8000),
        };
        let at = offset.checked_sub(base).filter(|&at| at < size)?;
        (self.misc & ERAM != 0).then_some(at as usize)
    }

    fn target(&self, at: usize, bank: usize) -> Target {
        let map_mask = self.sequencer[2];
        let read_plane = self.graphics[4] & 3;
        let plane = at as u8;
        if self.sequencer[4] & 8 != 0 {
            // Chain 4.
            let plane = plane & 3;
            Target { address: at >> 2, write_planes: map_mask & 1 << plane, read_plane: plane }
        } else if self.sequencer[4] & 4 == 0 {
            // Odd/even: even addresses reach planes 0 and 2, odd ones 1 and 3.
            let odd = plane & 1;
            Target {
                address: (at & (PLANE - 1)) >> 1 | (at >> 16 & 1) << 15,
                write_planes: map_mask & 0x05 << odd,
                read_plane: read_plane & 2 | odd,
            }
        } else {
            let address = bank * PLANE + (at & (PLANE - 1));
            Target { address, write_planes: map_mask, read_plane }
        }
    }

    fn read_byte(&mut self, vram: &dyn SharedBytes, at: usize, bank: usize) -> u8 {
        let target = self.target(at, bank);
        vram.read(target.address * 4, &mut self.latch);
        if self.graphics[5] & 8 == 0 {
            return self.latch[usize::from(target.read_plane & 3)];
        }
        // Read mode 1: which pixels have the compared colour, in the planes of interest.
        let (compare, care) = (spread(self.graphics[2]), spread(self.graphics[7]));
        let [a, b, c, d] = ((u32::from_le_bytes(self.latch) ^ compare) & care).to_le_bytes();
        !(a | b | c | d)
    }

    fn write_byte(&mut self, vram: &dyn SharedBytes, at: usize, bank: usize, value: u8) {
        let target = self.target(at, bank);
        if target.write_planes == 0 {
            return;
        }
        let latch = u32::from_le_bytes(self.latch);
        let everywhere = |byte: u8| u32::from(byte) * 0x0101_0101;
        let rotated = value.rotate_right(u32::from(self.graphics[3] & 7));
        let mut bit_mask = everywhere(self.graphics[8]);
        let set_reset = spread(self.graphics[0]);
        let data = match self.graphics[5] & 3 {
            0 => {
                let enable = spread(self.graphics[1]);
                self.combine(everywhere(rotated) & !enable | set_reset & enable, latch)
            }
            1 => {
                bit_mask = u32::MAX;
                latch
            }
            2 => self.combine(spread(value & 0x0F), latch),
            _ => {
                bit_mask &= everywhere(rotated);
                set_reset
            }
        };
        let new = data & bit_mask | latch & !bit_mask;
        let position = target.address * 4;
        if target.write_planes == 0x0F {
            vram.write(position, &new.to_le_bytes());
        } else {
            for (plane, byte) in new.to_le_bytes().iter().enumerate() {
                if target.write_planes >> plane & 1 != 0 {
                    vram.write(position + plane, &[*byte]);
                }
            }
        }
    }

    /// Data Rotate's function select.
    fn combine(&self, data: u32, latch: u32) -> u32 {
        match self.graphics[3] >> 3 & 3 {
            0 => data,
            1 => data & latch,
            2 => data | latch,
            _ => data ^ latch,
        }
    }

    /// Whether chain-4 writes go to memory unchanged.
    fn plain_chain4(&self) -> bool {
        let g = &self.graphics;
        let plain = g[1] == 0 && g[3] == 0 && g[5] & 3 == 0 && g[8] == 0xFF;
        self.sequencer[4] & 8 != 0 && self.sequencer[2] == 0x0F && plain
    }

    /// A read of the window at 0xA0000.
    pub fn read_memory(&mut self, vram: &dyn SharedBytes, dispi: &Dispi, offset: u64, size: u8) -> u64 {
        let mut bytes = [0xFF; 8];
        let size = usize::from(size.min(8));
        if dispi.enabled() && dispi.bpp != 4 {
            if let Some(at) = linear(dispi, offset) {
                vram.read(at, &mut bytes[..size]);
            }
        } else {
            let bank = usize::from(if dispi.enabled() { dispi.bank } else { 0 });
            for (i, byte) in bytes[..size].iter_mut().enumerate() {
                if let Some(at) = self.map(offset.wrapping_add(i as u64)) {
                    *byte = self.read_byte(vram, at, bank);
                }
            }
        }
        u64::from_le_bytes(bytes) & crate::chip::open_bus(size as u8)
    }

    pub fn write_memory(&mut self, vram: &dyn SharedBytes, dispi: &Dispi, offset: u64, size: u8, value: u64) {
        let bytes = value.to_le_bytes();
        let bytes = &bytes[..usize::from(size.min(8))];
        if dispi.enabled() && dispi.bpp != 4 {
            if let Some(at) = linear(dispi, offset) {
                vram.write(at, bytes);
            }
            return;
        }
        let last = offset.wrapping_add(bytes.len() as u64).wrapping_sub(1);
        if self.plain_chain4()
            && let (Some(at), Some(_)) = (self.map(offset), self.map(last))
        {
            return vram.write(at, bytes);
        }
        let bank = usize::from(if dispi.enabled() { dispi.bank } else { 0 });
        for (i, &byte) in bytes.iter().enumerate() {
            if let Some(at) = self.map(offset.wrapping_add(i as u64)) {
                self.write_byte(vram, at, bank, byte);
            }
        }
    }
}

/// The 64 KB bank of a linear mode.
fn linear(dispi: &Dispi, offset: u64) -> Option<usize> {
    (offset < 0x1_0000).then(|| usize::from(dispi.bank) << 16 | offset as usize)
}
