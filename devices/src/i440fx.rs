//! 82441FX PMC, the host bridge (Intel 440FX PCIset datasheet): memory attributes and SMRAM control.

use crate::chip::{Chip, Cx, Effect, PCI_CONFIG, StateError, decode, encode, open_bus};
use crate::pci::{PciConfig, reg};

/// Configuration registers.
pub const PAM0: usize = 0x59;
pub const SMRAM: usize = 0x72;
/// SMRAM register bits.
const D_OPEN: u8 = 0x40;
const D_CLS: u8 = 0x20;
const D_LCK: u8 = 0x10;
const G_SMRAME: u8 = 0x08;
const VERSION: u16 = 1;

/// What an area between 0xC0000 and 0xFFFFF answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pam {
    /// Reads come from RAM (else from PCI: the ROM).
    pub read_ram: bool,
    /// Writes go to RAM (else to PCI: dropped by the ROM).
    pub write_ram: bool,
}

/// The state of the SMRAM window 0xA0000 to 0xBFFFF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smram {
    /// D_OPEN: RAM is visible outside SMM, too.
    pub open: bool,
    /// D_CLS: data accesses in SMM go to the VGA.
    pub closed: bool,
    /// G_SMRAME: accesses in SMM see RAM.
    pub enabled: bool,
}

pub struct I440Fx {
    config: PciConfig,
}

impl I440Fx {
    pub fn new() -> Self {
        let mut config = PciConfig::new(0x8086, 0x1237, 0x06_0000, 2);
        config.init(reg::COMMAND, &[0x06, 0x00]).allow(reg::COMMAND, &[0x00, 0x01]);
        config.init(reg::STATUS, &[0x80, 0x02]).allow(0x0C, &[0x00, 0xF8]);
        config.init(reg::SUBSYSTEM_VENDOR, &[0xF4, 0x1A, 0x00, 0x11]);
        // PMCCFG, DETURBO, DBC, AXC, DRAMC, DRAMT: kept, without effect.
        config.allow(0x50, &[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF]);
        config.init(0x51, &[0x01]).init(0x58, &[0x10]);
        config.allow(PAM0, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        // DRAM row boundaries.
        config.init(0x60, &[1; 8]).allow(0x60, &[0xFF; 8]);
        config.init(SMRAM, &[0x02]).allow(SMRAM, &[D_OPEN | D_CLS | D_LCK | G_SMRAME]);
        I440Fx { config }
    }

    /// The attributes of the area that holds `address`; PCI (no RAM) outside 0xC0000 to 0xFFFFF.
    pub fn pam(&self, address: u64) -> Pam {
        let nibble = match address {
            0xC_0000..=0xE_FFFF => {
                // PAM1 to PAM6: two areas of 16 KB each, the lower in the low nibble.
                let area = (address as usize - 0xC_0000) >> 14;
                self.config.byte(PAM0 + 1 + area / 2) >> (area % 2 * 4)
            }
            0xF_0000..=0xF_FFFF => self.config.byte(PAM0) >> 4,
            _ => 0,
        };
        Pam { read_ram: nibble & 1 != 0, write_ram: nibble & 2 != 0 }
    }

    /// The 13 areas as (base, size).
    pub fn pam_areas() -> impl Iterator<Item = (u64, u64)> {
        (0..12).map(|i| (0xC_0000 + i * 0x4000, 0x4000)).chain([(0xF_0000, 0x1_0000)])
    }

    pub fn smram(&self) -> Smram {
        let value = self.config.byte(SMRAM);
        Smram { open: value & D_OPEN != 0, closed: value & D_CLS != 0, enabled: value & G_SMRAME != 0 }
    }
}

impl Default for I440Fx {
    fn default() -> Self {
        Self::new()
    }
}

impl Chip for I440Fx {
    fn name(&self) -> &'static str {
        "i440fx"
    }

    fn reset(&mut self, cx: &mut Cx) {
        self.config.reset();
        cx.push(Effect::Remap);
    }

    fn read(&mut self, _cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        if window == PCI_CONFIG { self.config.read(offset, size) } else { open_bus(size) }
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        if window != PCI_CONFIG {
            return;
        }
        let map = |config: &PciConfig| -> [u8; 8] {
            std::array::from_fn(|i| config.byte(if i == 7 { SMRAM } else { PAM0 + i }))
        };
        let before = map(&self.config);
        self.config.write(offset, size, value);
        let mut smram = self.config.byte(SMRAM);
        if before[7] & D_LCK != 0 {
            // Locked until reset: only D_CLS still moves.
            smram = before[7] & !D_CLS | smram & D_CLS;
        }
        if smram & D_LCK != 0 {
            smram &= !D_OPEN;
        }
        self.config.set(SMRAM, &[smram]);
        if map(&self.config) != before {
            cx.push(Effect::Remap);
        }
    }

    fn pci(&self) -> Option<&PciConfig> {
        Some(&self.config)
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.config)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: PciConfig = decode("i440fx", VERSION, bytes)?;
        self.config
            .restore(&saved)
            .map_err(|reason| StateError::Damaged { chip: "i440fx", reason: reason.into() })
    }

    fn info(&self) -> String {
        let mut text = format!("{:?}\n", self.smram());
        for (base, size) in Self::pam_areas() {
            let pam = self.pam(base);
            let side = |ram| if ram { "RAM" } else { "PCI" };
            text += &format!(
                "{base:05X}-{:05X}: read {}, write {}\n",
                base + size - 1,
                side(pam.read_ram),
                side(pam.write_ram)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn pam_and_lock() {
        let mut bench = Bench::new(0);
        let mut chip = I440Fx::new();
        chip.write(&mut bench.cx(), PCI_CONFIG, 0x59, 1, 0x10);
        assert_eq!(bench.take(), [Effect::Remap]);
        assert_eq!(chip.pam(0xF_1234), Pam { read_ram: true, write_ram: false });
        chip.write(&mut bench.cx(), PCI_CONFIG, 0x5A, 2, 0x2130);
        assert_eq!(chip.pam(0xC_4000), Pam { read_ram: true, write_ram: true });
        assert_eq!(chip.pam(0xC_8000), Pam { read_ram: true, write_ram: false });
        assert_eq!(chip.pam(0xC_C000), Pam { read_ram: false, write_ram: true });
        chip.write(&mut bench.cx(), PCI_CONFIG, 0x72, 1, 0x4A);
        assert_eq!(chip.smram(), Smram { open: true, closed: false, enabled: true });
        chip.write(&mut bench.cx(), PCI_CONFIG, 0x72, 1, 0x1A);
        chip.write(&mut bench.cx(), PCI_CONFIG, 0x72, 1, 0x62);
        assert_eq!(chip.smram(), Smram { open: false, closed: true, enabled: true });
    }
}
