//! Bochs VBE display interface ("DISPI"): an index and a data port that set linear modes.

use serde::{Deserialize, Serialize};

/// Register indices.
pub mod index {
    pub const ID: u16 = 0;
    pub const XRES: u16 = 1;
    pub const YRES: u16 = 2;
    pub const BPP: u16 = 3;
    pub const ENABLE: u16 = 4;
    pub const BANK: u16 = 5;
    pub const VIRT_WIDTH: u16 = 6;
    pub const VIRT_HEIGHT: u16 = 7;
    pub const X_OFFSET: u16 = 8;
    pub const Y_OFFSET: u16 = 9;
    pub const VIDEO_MEMORY_64K: u16 = 10;
}

/// ENABLE bits.
pub const ENABLED: u16 = 0x01;
const GETCAPS: u16 = 0x02;
const DAC_8BIT: u16 = 0x20;
pub const LFB_ENABLED: u16 = 0x40;
const NOCLEARMEM: u16 = 0x80;

const ID5: u16 = 0xB0C5;
const MAX_XRES: u16 = 2560;
const MAX_YRES: u16 = 1600;
const MAX_BPP: u16 = 32;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dispi {
    pub index: u16,
    pub id: u16,
    pub xres: u16,
    pub yres: u16,
    pub bpp: u16,
    pub enable: u16,
    pub bank: u16,
    pub virt_width: u16,
    pub x_offset: u16,
    pub y_offset: u16,
}

/// What a write asks of the chip.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    /// A mode was set: these first bytes of video memory are to be cleared.
    Clear(usize),
}

impl Dispi {
    pub fn new() -> Self {
        Dispi {
            index: 0,
            id: ID5,
            xres: 640,
            yres: 480,
            bpp: 8,
            enable: 0,
            bank: 0,
            virt_width: 640,
            x_offset: 0,
            y_offset: 0,
        }
    }

    pub fn enabled(&self) -> bool {
        self.enable & ENABLED != 0
    }

    pub fn dac_8bit(&self) -> bool {
        self.enable & DAC_8BIT != 0
    }

    /// Bytes from one line to the next; of one plane, for 4 bits a pixel.
    pub fn stride(&self) -> usize {
        usize::from(self.virt_width) * self.unit() / 8
    }

    /// Bits that one pixel moves the address by: a plane's one bit for 4 bits a pixel.
    fn unit(&self) -> usize {
        match self.bpp {
            4 => 1,
            15 => 16,
            bpp => usize::from(bpp),
        }
    }

    /// Byte address of the first visible pixel (plane byte for 4 bits a pixel).
    pub fn start(&self) -> usize {
        usize::from(self.y_offset) * self.stride() + usize::from(self.x_offset) * self.unit() / 8
    }

    /// Lines that fit into `memory` bytes.
    fn virt_height(&self, memory: usize) -> u16 {
        let memory = if self.bpp == 4 { memory / 4 } else { memory };
        memory.checked_div(self.stride()).unwrap_or(0).min(0xFFFF) as u16
    }

    pub fn read(&self, register: u16, memory: usize) -> u16 {
        let caps = self.enable & GETCAPS != 0;
        match register {
            index::ID => self.id,
            index::XRES if caps => MAX_XRES,
            index::YRES if caps => MAX_YRES,
            index::BPP if caps => MAX_BPP,
            index::XRES => self.xres,
            index::YRES => self.yres,
            index::BPP => self.bpp,
            index::ENABLE => self.enable,
            index::BANK => self.bank,
            index::VIRT_WIDTH => self.virt_width,
            index::VIRT_HEIGHT => self.virt_height(memory),
            index::X_OFFSET => self.x_offset,
            index::Y_OFFSET => self.y_offset,
            index::VIDEO_MEMORY_64K => (memory >> 16).min(0xFFFF) as u16,
            _ => 0,
        }
    }

    pub fn write(&mut self, register: u16, value: u16, memory: usize) -> Outcome {
        match register {
            index::ID if (0xB0C0..=ID5).contains(&value) => self.id = value,
            index::XRES if (1..=MAX_XRES).contains(&value) => {
                self.xres = value;
                if self.enabled() {
                    self.virt_width = self.virt_width.max(value);
                }
            }
            index::YRES if (1..=MAX_YRES).contains(&value) => self.yres = value,
            index::BPP => {
                // 0 stands for 8 bits.
                let bpp = if value == 0 { 8 } else { value };
                if matches!(bpp, 4 | 8 | 15 | 16 | 24 | 32) {
                    self.bpp = bpp;
                }
            }
            index::ENABLE => return self.set_enable(value, memory),
            index::BANK if usize::from(value) < memory >> 16 => self.bank = value,
            index::VIRT_WIDTH if value >= self.xres => {
                let old = std::mem::replace(&mut self.virt_width, value);
                if self.virt_height(memory) < self.yres {
                    self.virt_width = old;
                }
            }
            index::X_OFFSET => self.x_offset = value,
            index::Y_OFFSET => self.y_offset = value,
            _ => {}
        }
        Outcome::Nothing
    }

    fn set_enable(&mut self, value: u16, memory: usize) -> Outcome {
        let turned_on = value & ENABLED != 0 && !self.enabled();
        let mut value = value & (ENABLED | GETCAPS | DAC_8BIT | LFB_ENABLED | NOCLEARMEM);
        let mut outcome = Outcome::Nothing;
        if turned_on {
            let old = std::mem::replace(&mut self.virt_width, self.xres);
            if self.virt_height(memory) < self.yres {
                // The mode does not fit.
                self.virt_width = old;
                value &= !ENABLED;
            } else {
                (self.x_offset, self.y_offset) = (0, 0);
                if value & NOCLEARMEM == 0 {
                    let planes = if self.bpp == 4 { 4 } else { 1 };
                    let bytes = self.stride() * usize::from(self.yres) * planes;
                    outcome = Outcome::Clear(bytes.min(memory));
                }
            }
        }
        if value & ENABLED == 0 {
            self.bank = 0;
        }
        self.enable = value;
        outcome
    }

    pub fn check(&self) -> Result<(), &'static str> {
        let ok = (1..=MAX_XRES).contains(&self.xres)
            && (1..=MAX_YRES).contains(&self.yres)
            && matches!(self.bpp, 4 | 8 | 15 | 16 | 24 | 32)
            && (0xB0C0..=ID5).contains(&self.id);
        if ok { Ok(()) } else { Err("DISPI mode out of range") }
    }
}
