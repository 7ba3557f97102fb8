//! 82371SB PIIX3, function 0: the PCI-to-ISA bridge (Intel 82371FB/82371SB datasheet): routing of the PCI
//! interrupts and the reset control register. The ELCR belongs to the interrupt controllers.

use crate::chip::{Chip, Cx, Effect, PCI_CONFIG, StateError, decode, encode, open_bus};
use crate::pci::{PciConfig, reg};
use serde::{Deserialize, Serialize};

/// Window of RC, the reset control register (I/O port 0xCF9, one byte).
pub const RESET_CONTROL: u8 = 0;
/// Input pins: PIRQA# to PIRQD#, level true is asserted. Output pins: ISA IRQ 0 to 15.
pub const PIRQA: u8 = 0;
/// PIRQRCA to PIRQRCD: bit 7 disables routing, bits 3:0 name the IRQ.
pub const PIRQRCA: usize = 0x60;
/// IRQs that PIRQRC may name: 3 to 7, 9 to 12, 14, 15.
const ROUTABLE: u16 = 0xDEF8;
/// RC: SRST chooses a hard reset, RCPU starts it.
const SRST: u8 = 0x02;
const RCPU: u8 = 0x04;
const VERSION: u16 = 1;

#[derive(Clone, Serialize, Deserialize)]
struct State {
    config: PciConfig,
    /// Levels of PIRQA# to PIRQD#.
    pirq: u8,
    /// Levels of the ISA IRQs that this chip drives.
    irq: u16,
    rc: u8,
}

pub struct Piix3 {
    state: State,
}

impl Piix3 {
    pub fn new() -> Self {
        let mut config = PciConfig::new(0x8086, 0x7000, 0x06_0100, 0);
        config.init(reg::COMMAND, &[0x07, 0x00]).allow(reg::COMMAND, &[0x00, 0x01]);
        config.init(reg::STATUS, &[0x00, 0x02]).allow(0x0C, &[0, 0]);
        config.init(reg::HEADER_TYPE, &[0x80]).allow(reg::INTERRUPT_LINE, &[0]);
        config.init(reg::SUBSYSTEM_VENDOR, &[0xF4, 0x1A, 0x00, 0x11]);
        // IORT, XBCS: kept, without effect.
        config.init(0x4C, &[0x4D, 0x00, 0x03, 0x00]).allow(0x4C, &[0x7F, 0, 0xFF, 0x01]);
        config.init(PIRQRCA, &[0x80; 4]).allow(PIRQRCA, &[0x8F; 4]);
        // TOM, MSTAT, MBIRQ0, MBDMA, PCSC, APICBASE, DLC.
        config.init(0x69, &[0x02]).allow(0x69, &[0xFE, 0xFF, 0xFF]);
        config.init(0x70, &[0x80]).allow(0x70, &[0xEF]);
        config.init(0x76, &[0x0C, 0x0C, 0x02, 0x00]).allow(0x76, &[0x8F, 0x8F, 0xFF, 0xFF]);
        config.allow(0x80, &[0x7F, 0, 0x0F]);
        // SMICNTL, SMIEN, SEE, FTMR, SMIREQ, CTLTMR, CTHTMR.
        config.init(0xA0, &[0x08]).allow(0xA0, &[0x1F, 0, 0xFF, 0x01, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        config.init(0xA8, &[0x0F]).allow(0xAA, &[0xFF, 0x01, 0xFF, 0, 0xFF]);
        Piix3 { state: State { config, pirq: 0, irq: 0, rc: 0 } }
    }

    /// The ISA IRQ that PIRQ `pirq` (0 to 3) is routed to.
    pub fn route(&self, pirq: u8) -> Option<u8> {
        let value = self.state.config.byte(PIRQRCA + usize::from(pirq & 3));
        let irq = value & 0x0F;
        (value & 0x80 == 0 && ROUTABLE >> irq & 1 != 0).then_some(irq)
    }

    fn update(&mut self, cx: &mut Cx) {
        let levels = (0..4)
            .filter(|&pirq| self.state.pirq >> pirq & 1 != 0)
            .filter_map(|pirq| self.route(pirq))
            .fold(0u16, |levels, irq| levels | 1 << irq);
        let changed = levels ^ self.state.irq;
        self.state.irq = levels;
        for irq in (0..16).filter(|irq| changed >> irq & 1 != 0) {
            cx.line(irq, levels >> irq & 1 != 0);
        }
    }
}

impl Default for Piix3 {
    fn default() -> Self {
        Self::new()
    }
}

impl Chip for Piix3 {
    fn name(&self) -> &'static str {
        "piix3"
    }

    fn reset(&mut self, cx: &mut Cx) {
        self.state.config.reset();
        self.state.rc = 0;
        self.update(cx);
    }

    fn read(&mut self, _cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        match (window, offset) {
            (PCI_CONFIG, _) => self.state.config.read(offset, size),
            (RESET_CONTROL, 0) => open_bus(size) & !0xFF | u64::from(self.state.rc),
            _ => open_bus(size),
        }
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        match (window, offset) {
            (PCI_CONFIG, _) => {
                self.state.config.write(offset, size, value);
                self.update(cx);
            }
            (RESET_CONTROL, 0) => {
                // RCPU acts at once and reads as 0.
                self.state.rc = value as u8 & SRST;
                if value as u8 & RCPU != 0 {
                    let hard = value as u8 & SRST != 0;
                    cx.push(if hard { Effect::Reset } else { Effect::InitCpu });
                }
            }
            _ => {}
        }
    }

    fn input(&mut self, cx: &mut Cx, pin: u8, level: bool) {
        if let 0..=3 = pin {
            self.state.pirq = self.state.pirq & !(1 << pin) | u8::from(level) << pin;
            self.update(cx);
        }
    }

    fn pci(&self) -> Option<&PciConfig> {
        Some(&self.state.config)
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: State = decode("piix3", VERSION, bytes)?;
        let damaged = |reason: &str| StateError::Damaged { chip: "piix3", reason: reason.into() };
        if saved.pirq > 0x0F || saved.rc & !SRST != 0 || saved.irq & !ROUTABLE != 0 {
            return Err(damaged("pin or register out of range"));
        }
        self.state.config.restore(&saved.config).map_err(damaged)?;
        (self.state.pirq, self.state.irq, self.state.rc) = (saved.pirq, saved.irq, saved.rc);
        Ok(())
    }

    fn info(&self) -> String {
        (0..4u8)
            .map(|pirq| {
                let level = self.state.pirq >> pirq & 1;
                let letter = char::from(b'A' + pirq);
                match self.route(pirq) {
                    Some(irq) => format!("PIRQ{letter}: IRQ {irq}, level {level}\n"),
                    None => format!("PIRQ{letter}: not routed, level {level}\n"),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn shared_irq_is_an_or() {
        let mut bench = Bench::new(0);
        let mut chip = Piix3::new();
        chip.write(&mut bench.cx(), PCI_CONFIG, 0x60, 4, 0x0B0A_0A80);
        chip.input(&mut bench.cx(), 1, true);
        chip.input(&mut bench.cx(), 2, true);
        chip.input(&mut bench.cx(), 1, false);
        assert_eq!(bench.take(), [Effect::Line { pin: 10, level: true }]);
        chip.write(&mut bench.cx(), PCI_CONFIG, 0x62, 1, 0x0B);
        let moved = [Effect::Line { pin: 10, level: false }, Effect::Line { pin: 11, level: true }];
        assert_eq!(bench.take(), moved);
    }

    #[test]
    fn reset_control() {
        let mut bench = Bench::new(0);
        let mut chip = Piix3::new();
        chip.write(&mut bench.cx(), RESET_CONTROL, 0, 1, 2);
        chip.write(&mut bench.cx(), RESET_CONTROL, 0, 1, 6);
        chip.write(&mut bench.cx(), RESET_CONTROL, 0, 1, 4);
        assert_eq!(bench.take(), [Effect::Reset, Effect::InitCpu]);
    }
}
