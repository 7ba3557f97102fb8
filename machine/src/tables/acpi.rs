//! The ACPI tables (ACPI specification, "System Description Tables"); the FADT is that of ACPI 2.0.

use super::loader::{File, TABLES_ALIGN, TableSet};
use super::{Hardware, dsdt};
use crate::layout::{self, irq};

const OEM_ID: &[u8; 6] = b"TRIMRN";
const OEM_TABLE_ID: &[u8; 8] = b"TRIMARAN";
const CREATOR_ID: &[u8; 4] = b"TRIM";
const HEADER_SIZE: usize = 36;
const CHECKSUM_OFFSET: usize = 9;

/// Fixed feature flags.
mod fadt_flags {
    pub const WBINVD: u32 = 1 << 0;
    pub const PROC_C1: u32 = 1 << 2;
    /// Set: the sleep button is not a fixed feature. The power button, with its bit clear, is one.
    pub const SLP_BUTTON: u32 = 1 << 5;
    pub const RESET_REG_SUP: u32 = 1 << 10;
}

/// IA-PC boot architecture flags: devices on the ISA bus, 8042.
const IAPC_BOOT_ARCH: u16 = 0b11;

/// MPS INTI flags.
const CONFORMS: u16 = 0;
const LEVEL_ACTIVE_HIGH: u16 = 0b1101;
/// Applies to every processor.
const ALL_PROCESSORS: u8 = 0xFF;

/// A System I/O generic address structure.
fn io_address(port: u16, bits: u8) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, bits, 0, 0, low, high, 0, 0, 0, 0, 0, 0]
}

/// A description header before `body`.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let length = ((HEADER_SIZE + body.len()) as u32).to_le_bytes();
    let one = 1_u32.to_le_bytes();
    [signature, &length, &[revision, 0][..], OEM_ID, OEM_TABLE_ID, &one, CREATOR_ID, &one, body].concat()
}

impl TableSet {
    /// Appends a table and has its checksum stored; pointers of it must be registered before.
    fn add(&mut self, bytes: &[u8], pointers: &[(usize, u8, usize)]) -> usize {
        let at = self.tables.len().next_multiple_of(16);
        self.tables.resize(at, 0);
        self.tables.extend(bytes);
        for &(offset, size, target) in pointers {
            self.pointer(File::Tables, at + offset, size, target);
        }
        self.checksum(File::Tables, at + CHECKSUM_OFFSET, at, bytes.len());
        at
    }
}

/// RSDP, RSDT and XSDT with FADT (FACS, DSDT), MADT, HPET and WAET.
pub(super) fn build(hardware: &Hardware) -> TableSet {
    let mut set = TableSet::default();
    // First, so that it is aligned wherever the blob is.
    set.tables.extend(facs());
    let dsdt = set.add(&table(b"DSDT", 1, &dsdt::body(hardware)), &[]);
    let fadt = set.add(&fadt(), &[(36, 4, 0), (40, 4, dsdt), (140, 8, dsdt)]);
    let mut tables = vec![fadt, set.add(&madt(hardware), &[])];
    if hardware.hpet {
        tables.push(set.add(&hpet(), &[]));
    }
    tables.push(set.add(&waet(), &[]));

    let mut root = |signature, size: u8| {
        let width = usize::from(size);
        let entries = tables.iter().enumerate();
        let pointers: Vec<_> = entries.map(|(i, &target)| (HEADER_SIZE + i * width, size, target)).collect();
        set.add(&table(signature, 1, &vec![0; tables.len() * width]), &pointers)
    };
    let (rsdt, xsdt) = (root(b"RSDT", 4), root(b"XSDT", 8));

    set.rsdp =
        [b"RSD PTR ".as_slice(), &[0], OEM_ID, &[2], &[0; 4], &36_u32.to_le_bytes(), &[0; 12]].concat();
    set.pointer(File::Rsdp, 16, 4, rsdt);
    set.pointer(File::Rsdp, 24, 8, xsdt);
    set.checksum(File::Rsdp, 8, 0, 20);
    set.checksum(File::Rsdp, 32, 0, 36);
    set
}

fn facs() -> [u8; TABLES_ALIGN as usize] {
    let mut facs = [0; TABLES_ALIGN as usize];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = TABLES_ALIGN as u8;
    facs
}

fn fadt() -> Vec<u8> {
    let mut fadt = table(b"FACP", 3, &[0; 244 - HEADER_SIZE]);
    let mut put = |offset: usize, bytes: &[u8]| fadt[offset..offset + bytes.len()].copy_from_slice(bytes);
    let port = |port: u16| u32::from(port).to_le_bytes();
    put(46, &u16::from(irq::SCI).to_le_bytes());
    put(48, &port(layout::SMI_CMD));
    put(52, &[layout::ACPI_ENABLE, layout::ACPI_DISABLE]);
    put(56, &port(layout::PM1A_EVT));
    put(64, &port(layout::PM1A_CNT));
    put(76, &port(layout::PM_TMR));
    put(80, &port(layout::GPE0));
    // PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN, PM_TMR_LEN, GPE0_BLK_LEN.
    put(88, &[4, 2, 0, 4, layout::GPE0_LENGTH]);
    // P_LVL2_LAT and P_LVL3_LAT: beyond these, C2 and C3 are not supported.
    put(96, &101_u16.to_le_bytes());
    put(98, &1001_u16.to_le_bytes());
    put(108, &[layout::RTC_CENTURY]);
    put(109, &IAPC_BOOT_ARCH.to_le_bytes());
    let flags = fadt_flags::WBINVD | fadt_flags::PROC_C1 | fadt_flags::SLP_BUTTON | fadt_flags::RESET_REG_SUP;
    put(112, &flags.to_le_bytes());
    put(116, &io_address(layout::RESET_CONTROL, 8));
    put(128, &[layout::RESET_VALUE]);
    put(148, &io_address(layout::PM1A_EVT, 32));
    put(172, &io_address(layout::PM1A_CNT, 16));
    put(208, &io_address(layout::PM_TMR, 32));
    put(220, &io_address(layout::GPE0, layout::GPE0_LENGTH * 8));
    fadt
}

fn madt(hardware: &Hardware) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    let mut body = [layout::LAPIC, PCAT_COMPAT].map(u32::to_le_bytes).concat();
    for id in hardware.cpu_ids() {
        // Processor Local APIC: ACPI processor id, APIC id, enabled.
        body.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    body.extend([1, 12, layout::IOAPIC_ID, 0]);
    body.extend([layout::IOAPIC, 0].map(u32::to_le_bytes).concat());
    // Interrupt Source Override: bus ISA, source, GSI, flags.
    let overrides = irq::LEVEL.map(|line| (line, line, LEVEL_ACTIVE_HIGH));
    for (source, gsi, flags) in [(irq::TIMER, irq::TIMER_GSI, CONFORMS)].into_iter().chain(overrides) {
        body.extend([2, 10, 0, source, gsi, 0, 0, 0]);
        body.extend(flags.to_le_bytes());
    }
    // Local APIC NMI: LINT1 of every processor.
    body.extend([4, 6, ALL_PROCESSORS, 0, 0, 1]);
    table(b"APIC", 1, &body)
}

/// IA-PC HPET specification, "The HPET Description Table".
fn hpet() -> Vec<u8> {
    /// Intel, legacy replacement, 64-bit counter, 3 comparators, revision 1.
    const EVENT_TIMER_BLOCK_ID: u32 = 0x8086_A201;
    const MINIMUM_TICK: u16 = 100;
    let mut body = EVENT_TIMER_BLOCK_ID.to_le_bytes().to_vec();
    body.extend([0, 0, 0, 0]);
    body.extend(u64::from(layout::HPET).to_le_bytes());
    body.push(0);
    body.extend(MINIMUM_TICK.to_le_bytes());
    body.push(0);
    table(b"HPET", 1, &body)
}

/// Windows ACPI Emulated Devices Table: the PM timer reads right the first time.
fn waet() -> Vec<u8> {
    const PM_TIMER_GOOD: u32 = 1 << 1;
    table(b"WAET", 1, &PM_TIMER_GOOD.to_le_bytes())
}
