//! PCI configuration mechanism #1: CONFIG_ADDRESS and the decoding of CONFIG_DATA (PCI Local Bus
//! Specification 2.1, "Configuration Mechanism #1"). Pure; the board owns the bus.

use serde::{Deserialize, Serialize};

/// The I/O ports of the mechanism.
pub const CONFIG_ADDRESS: u16 = 0xCF8;
pub const CONFIG_DATA: u16 = 0xCFC;

/// CONFIG_ADDRESS: bit 31 enables, bits 23:16 bus, 15:11 device, 10:8 function, 7:2 register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigAddress(u32);

/// Where an access to CONFIG_DATA goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigTarget {
    pub bus: u8,
    pub device: u8,
    pub function: u8,
    /// Byte offset in the function's configuration space.
    pub register: u8,
}

impl ConfigAddress {
    /// A read of port 0xCF8. Only a dword access is CONFIG_ADDRESS; others are ordinary I/O (PIIX3's 0xCF9).
    pub fn read(&self, size: u8) -> Option<u32> {
        (size == 4).then_some(self.0)
    }

    /// A write to port 0xCF8; true where it was CONFIG_ADDRESS's.
    pub fn write(&mut self, size: u8, value: u32) -> bool {
        if size == 4 {
            self.0 = value & 0x80FF_FFFC;
        }
        size == 4
    }

    /// Decodes an access to CONFIG_DATA + `offset` (0 to 3); none while bit 31 is clear.
    pub fn target(&self, offset: u8) -> Option<ConfigTarget> {
        (self.0 >> 31 != 0).then_some(ConfigTarget {
            bus: (self.0 >> 16) as u8,
            device: (self.0 >> 11) as u8 & 0x1F,
            function: (self.0 >> 8) as u8 & 7,
            register: self.0 as u8 & 0xFC | offset & 3,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_only_enabled_dwords() {
        let mut address = ConfigAddress::default();
        assert!(!address.write(1, 0x80));
        assert_eq!(address.target(0), None);
        assert!(address.write(4, 0x8001_0A62));
        let target = ConfigTarget { bus: 1, device: 1, function: 2, register: 0x61 };
        assert_eq!(address.target(1), Some(target));
        assert_eq!(address.read(4), Some(0x8001_0A60));
        assert_eq!(address.read(2), None);
    }
}
