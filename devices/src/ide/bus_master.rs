//! Bus-master registers of one channel and the walk over its PRD table (PIIX3 datasheet, "Bus Master IDE";
//! SFF-8038i).

use crate::chip::{Dma, open_bus};
use serde::{Deserialize, Serialize};

/// BMIC bits.
pub const SSBM: u8 = 0x01;
const RWCON: u8 = 0x08;
/// BMIS bits: active, error, interrupt, drive 0 and 1 DMA capable.
const BMIDEA: u8 = 0x01;
const ERROR: u8 = 0x02;
const INTERRUPT: u8 = 0x04;
const CAPABLE: u8 = 0x60;

#[derive(Clone, Default, Serialize, Deserialize)]
pub struct BusMaster {
    pub bmic: u8,
    pub bmis: u8,
    pub bmidtp: u32,
    /// Address of the next physical region descriptor.
    next: u32,
    /// The region at work: address, bytes left, and whether its EOT bit is set.
    base: u32,
    left: u32,
    end_of_table: bool,
}

/// Direction of a bus-master transfer.
pub enum Transfer<'a> {
    ToMemory(&'a [u8]),
    FromMemory(&'a mut [u8]),
}

impl BusMaster {
    pub fn active(&self) -> bool {
        self.bmis & BMIDEA != 0
    }

    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let pointer = self.bmidtp.to_le_bytes();
        let bytes = [self.bmic, 0xFF, self.bmis, 0xFF, pointer[0], pointer[1], pointer[2], pointer[3]];
        let size = size.min(8);
        (0..u64::from(size)).rev().fold(0, |value, i| {
            let byte = bytes.get((offset + i) as usize).copied().unwrap_or(0xFF);
            value << 8 | u64::from(byte)
        }) & open_bus(size)
    }

    /// True where the write started the engine.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> bool {
        let mut started = false;
        for i in 0..u64::from(size.min(8)) {
            let byte = (value >> (i * 8)) as u8;
            match offset + i {
                0 => {
                    started |= byte & !self.bmic & SSBM != 0;
                    if byte & SSBM == 0 {
                        self.bmis &= !BMIDEA;
                    }
                    self.bmic = byte & (SSBM | RWCON);
                }
                2 => {
                    self.bmis = self.bmis & !CAPABLE | byte & CAPABLE;
                    self.bmis &= !(byte & (ERROR | INTERRUPT));
                }
                at @ 4..=7 => {
                    let shift = (at - 4) * 8;
                    self.bmidtp = self.bmidtp & !(0xFF << shift) | u32::from(byte) << shift;
                    self.bmidtp &= !3;
                }
                _ => {}
            }
        }
        if started {
            self.bmis |= BMIDEA;
            (self.next, self.left, self.end_of_table) = (self.bmidtp, 0, false);
        }
        started
    }

    /// A rising edge of the drive's INTRQ.
    pub fn interrupt(&mut self) {
        self.bmis |= INTERRUPT;
    }

    /// Stops with the error bit.
    pub fn fail(&mut self) {
        self.bmis = self.bmis & !BMIDEA | ERROR;
    }

    /// Moves bytes between `data` and the regions of the table; returns how many moved. Fewer than asked
    /// for means that the table ended or is wrong; the engine is inactive then. A region of two bytes is the
    /// smallest, so the walk is bounded by half the length of `data`.
    pub fn transfer(&mut self, ram: &dyn Dma, mut data: Transfer) -> usize {
        let len = match &data {
            Transfer::ToMemory(data) => data.len(),
            Transfer::FromMemory(data) => data.len(),
        };
        let mut done = 0;
        while done < len && self.active() {
            if self.left == 0 && !self.fetch(ram) {
                break;
            }
            let n = (len - done).min(self.left as usize);
            match &mut data {
                Transfer::ToMemory(data) => ram.write(u64::from(self.base), &data[done..done + n]),
                Transfer::FromMemory(data) => ram.read(u64::from(self.base), &mut data[done..done + n]),
            }
            done += n;
            self.base = self.base.wrapping_add(n as u32);
            self.left -= n as u32;
            if self.left == 0 && self.end_of_table {
                self.bmis &= !BMIDEA;
            }
        }
        done
    }

    /// Reads the next descriptor: base address, byte count (0 is 64 KB), EOT in bit 31.
    fn fetch(&mut self, ram: &dyn Dma) -> bool {
        let mut descriptor = [0; 8];
        ram.read(u64::from(self.next), &mut descriptor);
        self.next = self.next.wrapping_add(8);
        let [b0, b1, b2, b3, c0, c1, _, flags] = descriptor;
        self.base = u32::from_le_bytes([b0, b1, b2, b3]);
        let count = u32::from(u16::from_le_bytes([c0, c1]));
        self.left = if count == 0 { 0x1_0000 } else { count };
        self.end_of_table = flags & 0x80 != 0;
        if (self.base | self.left) & 1 != 0 {
            self.left = 0;
            self.fail();
            return false;
        }
        true
    }

    pub fn check(&self) -> Result<(), &'static str> {
        let ok = self.bmic & !(SSBM | RWCON) == 0
            && self.bmis & !(CAPABLE | BMIDEA | ERROR | INTERRUPT) == 0
            && self.bmidtp & 3 == 0
            && self.left <= 0x1_0000;
        if ok { Ok(()) } else { Err("bus master out of range") }
    }

    pub fn info(&self) -> String {
        format!("BMIC {:02X} BMIS {:02X} BMIDTP {:08X}", self.bmic, self.bmis, self.bmidtp)
    }
}
