//! The VGA with the Bochs VBE extensions, as PCI function 1234:1111 (IBM VGA technical reference; Bochs VBE
//! display interface).

mod dispi;
pub mod font;
mod linear;
mod memory;
mod modes;
mod registers;
mod render;
mod screen;
#[cfg(test)]
mod tests;

use crate::chip::{Chip, Cx, Effect, PCI_CONFIG, SharedBytes, StateError, decode, encode, open_bus};
use crate::pci::{Bar, BarKind, PciConfig, ROM_BAR, reg};
use dispi::{Dispi, Outcome};
use registers::Registers;
pub use render::{Frame, TextScreen};
pub use screen::Screen;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Windows: the 48 ports from 0x3B0; the legacy memory at 0xA0000 to 0xBFFFF; the DISPI ports (0x1CE to
/// 0x1D0); BAR2's registers.
pub const PORTS: u8 = 0;
pub const LEGACY_MEMORY: u8 = 1;
pub const DISPI_PORTS: u8 = 2;
pub const MMIO: u8 = 3;
/// BAR0, the linear framebuffer: the board maps video RAM here; accesses that reach the chip work, too.
pub const VRAM: u8 = 4;
/// The expansion ROM's BAR.
pub const ROM: u8 = 5;

/// What BAR0 decodes; video RAM may be smaller.
pub const VRAM_SIZE: u32 = 0x100_0000;
pub const ROM_SIZE: u32 = 0x1_0000;

/// BAR2: VGA ports from 0x3C0, DISPI registers, the framebuffer's byte order.
const MMIO_PORTS: u64 = 0x400;
const MMIO_DISPI: u64 = 0x500;
const MMIO_QEXT: u64 = 0x600;
const QEXT_LITTLE_ENDIAN: u32 = 0x1E1E_1E1E;

const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    pci: PciConfig,
    registers: Registers,
    dispi: Dispi,
}

pub struct Vga {
    vram: Arc<dyn SharedBytes>,
    rom: Vec<u8>,
    pci: PciConfig,
    registers: Registers,
    dispi: Dispi,
}

impl Vga {
    pub fn new(vram: Arc<dyn SharedBytes>) -> Self {
        let mut pci = PciConfig::new(0x1234, 0x1111, 0x03_0000, 2);
        pci.init(reg::SUBSYSTEM_VENDOR, &[0xF4, 0x1A, 0x00, 0x11]).allow(0x0C, &[0, 0]);
        pci.allow(reg::COMMAND, &[0x03, 0]);
        pci.bar(0, Bar { kind: BarKind::Memory { prefetchable: true }, size: VRAM_SIZE, window: VRAM });
        pci.bar(2, Bar { kind: BarKind::Memory { prefetchable: false }, size: 0x1000, window: MMIO });
        pci.bar(ROM_BAR, Bar { kind: BarKind::Memory { prefetchable: false }, size: ROM_SIZE, window: ROM });
        Vga { vram, rom: Vec::new(), pci, registers: Registers::new(), dispi: Dispi::new() }
    }

    /// Gives the expansion ROM's image (a VGA BIOS); what lies past 64 KB is not seen.
    pub fn set_rom(&mut self, image: Vec<u8>) {
        self.rom = image;
    }

    /// The framebuffer that the guest set by DISPI: width, height, bits a pixel, bytes a line, and the
    /// offset of the first visible byte in video RAM. For `screen_info` and the monitor.
    pub fn linear_mode(&self) -> Option<(u16, u16, u16, usize, usize)> {
        let d = &self.dispi;
        d.enabled().then(|| (d.xres, d.yres, d.bpp, d.stride(), d.start()))
    }

    fn write_dispi(&mut self, register: u16, value: u16) {
        if let Outcome::Clear(bytes) = self.dispi.write(register, value, self.vram.len()) {
            let zeros = [0; 4096];
            for at in (0..bytes).step_by(zeros.len()) {
                let end = (bytes - at).min(zeros.len());
                self.vram.write(at, &zeros[..end]);
            }
        }
    }

    fn read_ports(&mut self, now: u64, offset: u64, size: u8) -> u64 {
        (0..u64::from(size.min(8))).fold(0, |value, i| {
            let port = offset.saturating_add(i);
            let byte = if port < 0x30 { self.registers.read(now, port) } else { 0xFF };
            value | u64::from(byte) << (i * 8)
        })
    }

    fn write_ports(&mut self, offset: u64, size: u8, value: u64) {
        let dac_8bit = self.dispi.dac_8bit();
        for i in 0..u64::from(size.min(8)) {
            let port = offset.saturating_add(i);
            if port < 0x30 {
                self.registers.write(port, (value >> (i * 8)) as u8, dac_8bit);
            }
        }
    }

    fn read_mmio(&mut self, now: u64, offset: u64, size: u8) -> u64 {
        match offset {
            MMIO_PORTS..=0x41F => self.read_ports(now, offset - MMIO_PORTS + 0x10, size),
            MMIO_DISPI..=0x515 if offset.is_multiple_of(2) => {
                let register = ((offset - MMIO_DISPI) / 2) as u16;
                open_bus(size) & (!0xFFFF | u64::from(self.dispi.read(register, self.vram.len())))
            }
            MMIO_QEXT => 8 & open_bus(size),
            0x604 => u64::from(QEXT_LITTLE_ENDIAN) & open_bus(size),
            _ => open_bus(size),
        }
    }

    fn write_mmio(&mut self, offset: u64, size: u8, value: u64) {
        match offset {
            MMIO_PORTS..=0x41F => self.write_ports(offset - MMIO_PORTS + 0x10, size, value),
            MMIO_DISPI..=0x515 if offset.is_multiple_of(2) => {
                self.write_dispi(((offset - MMIO_DISPI) / 2) as u16, value as u16);
            }
            _ => {}
        }
    }
}

impl Chip for Vga {
    fn name(&self) -> &'static str {
        "vga"
    }

    fn reset(&mut self, cx: &mut Cx) {
        self.pci.reset();
        self.registers = Registers::new();
        self.dispi = Dispi::new();
        cx.push(Effect::Remap);
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        match window {
            PORTS => self.read_ports(cx.now, offset, size),
            LEGACY_MEMORY => self.registers.read_memory(&*self.vram, &self.dispi, offset, size),
            DISPI_PORTS => {
                let value = match offset {
                    0 => self.dispi.index,
                    1 | 2 => self.dispi.read(self.dispi.index, self.vram.len()),
                    _ => 0xFFFF,
                };
                open_bus(size) & (!0xFFFF | u64::from(value))
            }
            MMIO => self.read_mmio(cx.now, offset, size),
            VRAM => {
                let mut bytes = [0; 8];
                if let Ok(at) = usize::try_from(offset) {
                    self.vram.read(at, &mut bytes[..usize::from(size.min(8))]);
                }
                u64::from_le_bytes(bytes)
            }
            ROM => (0..u64::from(size.min(8))).fold(0, |value, i| {
                let at = usize::try_from(offset.saturating_add(i)).ok();
                let byte = at.and_then(|at| self.rom.get(at)).copied().unwrap_or(0xFF);
                value | u64::from(byte) << (i * 8)
            }),
            PCI_CONFIG => self.pci.read(offset, size),
            _ => open_bus(size),
        }
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        match window {
            PORTS => self.write_ports(offset, size, value),
            LEGACY_MEMORY => {
                self.registers.write_memory(&*self.vram, &self.dispi, offset, size, value);
            }
            DISPI_PORTS => match offset {
                0 => self.dispi.index = value as u16,
                1 | 2 => self.write_dispi(self.dispi.index, value as u16),
                _ => {}
            },
            MMIO => self.write_mmio(offset, size, value),
            VRAM => {
                if let Ok(at) = usize::try_from(offset) {
                    self.vram.write(at, &value.to_le_bytes()[..usize::from(size.min(8))]);
                }
            }
            PCI_CONFIG => {
                let remap = self.pci.write(offset, size, value);
                if remap {
                    cx.push(Effect::Remap);
                }
            }
            _ => {}
        }
    }

    fn pci(&self) -> Option<&PciConfig> {
        Some(&self.pci)
    }

    fn save(&self) -> Vec<u8> {
        let (pci, registers, dispi) = (self.pci.clone(), self.registers.clone(), self.dispi.clone());
        encode(VERSION, &State { pci, registers, dispi })
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: State = decode("vga", VERSION, bytes)?;
        let damaged = |reason: &str| StateError::Damaged { chip: "vga", reason: reason.into() };
        saved.registers.check().map_err(damaged)?;
        saved.dispi.check().map_err(damaged)?;
        self.pci.restore(&saved.pci).map_err(damaged)?;
        (self.registers, self.dispi) = (saved.registers, saved.dispi);
        Ok(())
    }

    fn info(&self) -> String {
        let (r, d) = (&self.registers, &self.dispi);
        let mode = if d.enabled() {
            format!("VBE {}x{}x{}", d.xres, d.yres, d.bpp)
        } else if r.graphics_mode() {
            format!("graphics, {} characters, {} lines", r.characters(), r.lines())
        } else {
            format!("text, {} columns, {} lines", r.characters(), r.lines())
        };
        format!(
            "{mode}\nmisc {:02X} sequencer {:02X?}\ncrtc {:02X?}\ngraphics {:02X?}\nattribute {:02X?}\n{d:?}\n",
            r.misc, r.sequencer, r.crtc, r.graphics, r.attribute
        )
    }
}
