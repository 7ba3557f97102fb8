//! Every address, port and interrupt of the board.

use serde::{Deserialize, Serialize};

/// Where RAM below 4 GiB ends at most, and the PCI hole begins.
pub const RAM_HOLE: u64 = 0xC000_0000;
/// Where RAM goes on that did not fit below the hole.
pub const HIGH_RAM: u64 = 0x1_0000_0000;
/// Conventional memory ends at the extended BIOS data area.
pub const EBDA: u64 = 0x9_FC00;
pub const VIDEO_RAM: u64 = 0xA_0000;
pub const F_SEGMENT: u64 = 0xF_0000;
pub const ONE_MIB: u64 = 0x10_0000;

/// Memory window of the PCI bus, first and last byte.
pub const PCI_WINDOW: (u32, u32) = (0xE000_0000, 0xFEBF_FFFF);
pub const IOAPIC: u32 = 0xFEC0_0000;
pub const HPET: u32 = 0xFED0_0000;
pub const LAPIC: u32 = 0xFEE0_0000;
/// Each of the three decodes this much in the memory map.
pub const CHIP_WINDOW: u32 = 0x1000;
pub const IOAPIC_ID: u8 = 0;
pub const IOAPIC_VERSION: u8 = 0x11;
pub const LAPIC_VERSION: u8 = 0x14;

/// PIIX4 power management: PMBASE, as SeaBIOS programs it too.
pub const PM_BASE: u16 = 0x600;
pub const PM1A_EVT: u16 = PM_BASE;
pub const PM1A_CNT: u16 = PM_BASE + 4;
pub const PM_TMR: u16 = PM_BASE + 8;
pub const PM_LENGTH: u8 = 0x40;
/// PIIX4 SMBus: SMBBASE.
pub const SMBUS_BASE: u16 = 0x700;
pub const GPE0: u16 = 0xAFE0;
pub const GPE0_LENGTH: u8 = 4;
/// APM control port; a write raises SMI.
pub const SMI_CMD: u16 = 0xB2;
pub const ACPI_ENABLE: u8 = 0xF1;
pub const ACPI_DISABLE: u8 = 0xF0;
/// PIIX3 reset control register, and the value that resets everything.
pub const RESET_CONTROL: u16 = 0xCF9;
pub const RESET_VALUE: u8 = 0x06;
/// CMOS byte that holds the century.
pub const RTC_CENTURY: u8 = 0x32;

pub const FW_CFG_SELECTOR: u16 = 0x510;
pub const FW_CFG_DATA: u16 = 0x511;
pub const FW_CFG_DMA: u16 = 0x514;

/// The test device, as QEMU's PC has it: echo ports, page flush, echo ports again, interrupt lines, and memory.
pub const TEST_ECHO: u16 = 0xE0;
pub const TEST_FLUSH: u16 = 0xE4;
pub const TEST_ECHO_BYTES: u16 = 0xE8;
pub const TEST_LINES: u16 = 0x2000;
pub const TEST_MEMORY: u64 = 0xFF00_0000;
pub const TEST_MEMORY_SIZE: u64 = 0x1_0000;

pub const PCI_CONFIG_ADDRESS: u16 = 0xCF8;
pub const PIC_ELCR: u16 = 0x4D0;
pub const KEYBOARD_DATA: u16 = 0x60;
pub const KEYBOARD_COMMAND: u16 = 0x64;
pub const SPEAKER: u16 = 0x61;
pub const RTC: u16 = 0x70;
pub const COM1: u16 = 0x3F8;
pub const COM2: u16 = 0x2F8;
pub const LPT1: u16 = 0x378;
/// The floppy controller's digital output register; the data rate register stands at +5.
pub const FLOPPY: u16 = 0x3F2;
pub const FLOPPY_RATE: u16 = 0x3F7;

/// Interrupt requests as the 8259As number them.
pub mod irq {
    pub const TIMER: u8 = 0;
    pub const KEYBOARD: u8 = 1;
    pub const CASCADE: u8 = 2;
    pub const COM2: u8 = 3;
    pub const COM1: u8 = 4;
    pub const FLOPPY: u8 = 6;
    pub const LPT1: u8 = 7;
    pub const RTC: u8 = 8;
    pub const SCI: u8 = 9;
    pub const MOUSE: u8 = 12;
    /// IOAPIC input of the timer (IRQ 0): the cascade's place.
    pub const TIMER_GSI: u8 = 2;
    /// Those that PCI functions and the SCI may use: level, active high.
    pub const LEVEL: [u8; 4] = [5, 9, 10, 11];
}
/// DMA channel of the floppy controller.
pub const FLOPPY_DMA: u8 = 2;

/// PCI slot of the PIIX3 (function 0: ISA bridge).
pub const ISA_BRIDGE_SLOT: u8 = 1;
/// PIRQRC\[A:D\] in the ISA bridge's configuration space.
pub const PIRQRC: u8 = 0x60;
/// IRQ of PIRQA# to PIRQD# as firmware routes them.
pub const PIRQ_IRQS: [u8; 4] = [10, 10, 11, 11];

/// The PIRQ (0 to 3) to which the board wires pin `pin` (INTA# is 0) of a slot. SeaBIOS knows the same wiring.
pub const fn pirq(slot: u8, pin: u8) -> usize {
    (slot as usize + pin as usize + 3) & 3
}

/// Bytes at the top of low RAM that hold the ACPI tables after a direct boot.
pub const ACPI_TABLES_SIZE: u64 = 0x1_0000;
/// Tables that guests search for in the F segment, after a direct boot.
pub const MP_TABLE_AT: u64 = 0xF_0000;
pub const RSDP_AT: u64 = 0xF_5A00;
pub const SMBIOS_ANCHOR_AT: u64 = 0xF_5A40;
pub const MP_POINTER_AT: u64 = 0xF_5A80;
pub const SMBIOS_TABLES_AT: u64 = 0xF_6000;

/// Low memory during direct boot. Kernels may be loaded from `BOOT_END` on, multiboot kernels from `BOOT_LOW`: what
/// they are told stands in another of the `BOOT_AREAS` if they need the first.
pub const BOOT_GDT: u64 = 0x1000;
/// PML4, PDPT and four page directories.
pub const BOOT_PAGE_TABLES: u64 = 0x2000;
pub const BOOT_STACK_TOP: u64 = 0x1_0000;
/// Zero page, start info or multiboot information.
pub const BOOT_INFO: u64 = 0x1_0000;
pub const BOOT_STRINGS: u64 = 0x1_1000;
pub const BOOT_END: u64 = 0x2_0000;
pub const BOOT_LOW: u64 = 0x2000;
pub const BOOT_AREAS: [u64; 2] = [BOOT_INFO, 0x8_0000];
pub const BOOT_AREA_SIZE: u64 = BOOT_END - BOOT_INFO;

/// Address range types of INT 15h, AX=E820h (ACPI specification, "System Address Map Interfaces").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum RangeType {
    Memory = 1,
    Reserved = 2,
    AcpiReclaim = 3,
}

/// One range of the system address map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRange {
    pub base: u64,
    pub length: u64,
    pub kind: RangeType,
}

/// How the board spreads its RAM over physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLayout {
    pub ram_bytes: u64,
}

impl MemoryLayout {
    /// End of the RAM below the PCI hole.
    pub fn low_end(&self) -> u64 {
        self.ram_bytes.min(RAM_HOLE)
    }

    /// Bytes of RAM from 4 GiB on.
    pub fn high_bytes(&self) -> u64 {
        self.ram_bytes.saturating_sub(RAM_HOLE)
    }

    /// Where the ACPI tables of a direct boot begin; all RAM from 1 MiB to here is free.
    pub fn acpi_base(&self) -> u64 {
        (self.low_end() & !0xFFF).saturating_sub(ACPI_TABLES_SIZE).max(ONE_MIB)
    }

    /// The system address map, ascending. Ranges without a byte are left out.
    pub fn e820(&self) -> Vec<AddressRange> {
        use RangeType::{AcpiReclaim, Memory, Reserved};
        let low_end = self.low_end();
        let chip = |base: u32| (u64::from(base), u64::from(base) + u64::from(CHIP_WINDOW), Reserved);
        [
            (0, EBDA.min(low_end), Memory),
            (EBDA, VIDEO_RAM, Reserved),
            (F_SEGMENT, ONE_MIB, Reserved),
            (ONE_MIB, self.acpi_base(), Memory),
            (self.acpi_base(), low_end & !0xFFF, AcpiReclaim),
            chip(IOAPIC),
            chip(HPET),
            chip(LAPIC),
            (HIGH_RAM, HIGH_RAM.saturating_add(self.high_bytes()), Memory),
        ]
        .into_iter()
        .filter(|&(base, end, _)| base < end)
        .map(|(base, end, kind)| AddressRange { base, length: end - base, kind })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_map_ascends_and_covers_the_ram() {
        for ram_bytes in [0, 1 << 20, 16 << 20, 3 << 30, (3 << 30) + 4096, 8 << 30, u64::MAX] {
            let layout = MemoryLayout { ram_bytes };
            let map = layout.e820();
            assert!(
                map.windows(2).all(|pair| pair[0].base + pair[0].length <= pair[1].base),
                "{ram_bytes:#x}"
            );
        }
        let map = MemoryLayout { ram_bytes: 5 << 30 }.e820();
        let last = AddressRange { base: HIGH_RAM, length: 2 << 30, kind: RangeType::Memory };
        assert_eq!(map.last(), Some(&last));
    }

    #[test]
    fn slot_1_inta_is_pirqa() {
        assert_eq!([pirq(1, 0), pirq(1, 3), pirq(2, 0), pirq(0, 0), pirq(31, 3)], [0, 3, 1, 3, 1]);
    }
}
