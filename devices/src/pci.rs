//! A PCI function's configuration header, type 0 (PCI Local Bus Specification 2.1, "Configuration Space").

use serde::{Deserialize, Serialize};
use serde_big_array::BigArray;

/// Offsets in the header.
pub mod reg {
    pub const VENDOR_ID: usize = 0x00;
    pub const DEVICE_ID: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION: usize = 0x08;
    pub const CLASS: usize = 0x09;
    pub const HEADER_TYPE: usize = 0x0E;
    pub const BAR0: usize = 0x10;
    pub const SUBSYSTEM_VENDOR: usize = 0x2C;
    pub const SUBSYSTEM: usize = 0x2E;
    pub const ROM: usize = 0x30;
    pub const INTERRUPT_LINE: usize = 0x3C;
    pub const INTERRUPT_PIN: usize = 0x3D;
}

/// COMMAND register bits.
pub mod command {
    pub const IO: u16 = 1;
    pub const MEMORY: u16 = 2;
    pub const BUS_MASTER: u16 = 4;
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarKind {
    Io,
    Memory { prefetchable: bool },
}

/// One base address register (32-bit). `size` is a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    pub kind: BarKind,
    pub size: u32,
    /// The chip's register window (or the board's, for video RAM) that it maps.
    pub window: u8,
}

/// A region that is decoded now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub bar: u8,
    pub kind: BarKind,
    pub base: u64,
    pub size: u64,
    pub window: u8,
}

/// Number of BARs, and the index under which the expansion ROM's BAR stands.
pub const BARS: usize = 6;
pub const ROM_BAR: u8 = 6;

/// The 256 bytes of configuration space with their write masks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PciConfig {
    #[serde(with = "BigArray")]
    bytes: [u8; 256],
    #[serde(with = "BigArray")]
    writable: [u8; 256],
    #[serde(with = "BigArray")]
    initial: [u8; 256],
    bars: [Option<Bar>; BARS + 1],
}

impl PciConfig {
    /// `class` is base class, sub-class, programming interface, as 0xBBSSPP.
    pub fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        let mut config =
            PciConfig { bytes: [0; 256], writable: [0; 256], initial: [0; 256], bars: [None; BARS + 1] };
        config.init(reg::VENDOR_ID, &vendor.to_le_bytes());
        config.init(reg::DEVICE_ID, &device.to_le_bytes());
        config.init(reg::REVISION, &[revision]);
        config.init(reg::CLASS, &class.to_le_bytes()[..3]);
        let bits = command::IO | command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
        config.allow(reg::COMMAND, &bits.to_le_bytes());
        config.allow(reg::INTERRUPT_LINE, &[0xFF]);
        config.allow(0x0C, &[0xFF, 0xFF]);
        config
    }

    /// Sets reset values.
    pub fn init(&mut self, offset: usize, values: &[u8]) -> &mut Self {
        for (i, &value) in values.iter().enumerate() {
            self.bytes[(offset + i) & 0xFF] = value;
            self.initial[(offset + i) & 0xFF] = value;
        }
        self
    }

    /// Sets which bits the guest may write.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) -> &mut Self {
        for (i, &bits) in mask.iter().enumerate() {
            self.writable[(offset + i) & 0xFF] = bits;
        }
        self
    }

    /// INTA# to INTD# as 1 to 4.
    pub fn interrupt_pin(&mut self, pin: u8) -> &mut Self {
        self.init(reg::INTERRUPT_PIN, &[pin])
    }

    /// Adds base address register `index` (0 to 5, or [`ROM_BAR`]).
    pub fn bar(&mut self, index: u8, bar: Bar) -> &mut Self {
        let index = usize::from(index).min(BARS);
        let offset = Self::bar_offset(index);
        let low = match bar.kind {
            BarKind::Io => 1,
            BarKind::Memory { prefetchable: true } => 8,
            BarKind::Memory { prefetchable: false } => 0,
        };
        let mut mask = !(bar.size.max(4) - 1);
        if index == BARS {
            mask |= 1; // the ROM's own enable bit
            self.init(offset, &0u32.to_le_bytes());
        } else {
            self.init(offset, &(low as u32).to_le_bytes());
        }
        self.allow(offset, &mask.to_le_bytes());
        self.bars[index] = Some(bar);
        self
    }

    fn bar_offset(index: usize) -> usize {
        if index == BARS { reg::ROM } else { reg::BAR0 + index * 4 }
    }

    /// Reads 1, 2 or 4 bytes; bytes past the end read as 0xFF.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        (0..u64::from(size.min(8))).rev().fold(0, |value, i| {
            let byte = usize::try_from(offset + i).ok().and_then(|o| self.bytes.get(o)).copied();
            value << 8 | u64::from(byte.unwrap_or(0xFF))
        })
    }

    /// Writes through the masks. Returns true where decoding may have changed (COMMAND or a BAR was hit).
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> bool {
        let mut remap = false;
        for i in 0..usize::from(size.min(8)) {
            let Some(at) = usize::try_from(offset).ok().map(|o| o + i).filter(|&at| at < 256) else { break };
            let mask = self.writable[at];
            let byte = (value >> (i * 8)) as u8;
            let new = self.bytes[at] & !mask | byte & mask;
            let decodes = matches!(at, 0x04..=0x05 | 0x10..=0x27 | 0x30..=0x33);
            remap |= decodes && new != self.bytes[at];
            self.bytes[at] = new;
        }
        remap
    }

    /// Sets bytes whatever the masks say: status bits, strapped values.
    pub fn set(&mut self, offset: usize, values: &[u8]) {
        for (i, &value) in values.iter().enumerate() {
            self.bytes[(offset + i) & 0xFF] = value;
        }
    }

    pub fn byte(&self, offset: usize) -> u8 {
        self.bytes[offset & 0xFF]
    }

    pub fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.byte(offset), self.byte(offset + 1)])
    }

    pub fn dword(&self, offset: usize) -> u32 {
        u32::from(self.word(offset)) | u32::from(self.word(offset + 2)) << 16
    }

    pub fn command(&self) -> u16 {
        self.word(reg::COMMAND)
    }

    /// Back to the reset values.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// Regions that COMMAND and the BARs decode now. Unprogrammed BARs (address 0) decode nothing.
    pub fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        let command = self.command();
        self.bars.iter().enumerate().filter_map(move |(index, bar)| {
            let bar = (*bar)?;
            let raw = self.dword(Self::bar_offset(index));
            let (enable, mask) = match bar.kind {
                BarKind::Io => (command::IO, 0xFFFC),
                BarKind::Memory { .. } => (command::MEMORY, 0xFFFF_FFF0),
            };
            let rom_off = index == BARS && raw & 1 == 0;
            let base = u64::from(raw & mask & !(bar.size.max(4) - 1));
            let on = command & enable != 0 && !rom_off && base != 0;
            let size = u64::from(bar.size);
            on.then_some(Region { bar: index as u8, kind: bar.kind, base, size, window: bar.window })
        })
    }

    /// Takes the guest-writable bytes from a saved state; masks and BAR layout must be those of this chip.
    pub fn restore(&mut self, saved: &PciConfig) -> Result<(), &'static str> {
        if saved.writable != self.writable || saved.bars != self.bars || saved.initial != self.initial {
            return Err("PCI configuration layout differs");
        }
        self.bytes = saved.bytes;
        Ok(())
    }
}
