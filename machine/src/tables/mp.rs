//! MultiProcessor Specification 1.4: floating pointer and configuration table.

use super::{Hardware, checksum};
use crate::layout::{self, irq};

/// Entry types.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// Interrupt types.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Interrupt flags: as the bus has it; level, active high.
const CONFORMS: u16 = 0;
const LEVEL_ACTIVE_HIGH: u16 = 0b1101;
/// Bus ids. PCI must be 0, the number of the root bus.
const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;
const ALL_LAPICS: u8 = 0xFF;
const SPEC_REV: u8 = 4;

/// The structure that guests search for, on a 16-byte boundary.
pub(super) fn floating_pointer(table_at: u32) -> Vec<u8> {
    let mut pointer =
        [b"_MP_".as_slice(), &table_at.to_le_bytes(), &[1, SPEC_REV, 0, 0, 0, 0, 0, 0]].concat();
    pointer[10] = checksum(&pointer);
    pointer
}

fn interrupt(entry: u8, kind: u8, flags: u16, bus: u8, source: u8, to: u8, input: u8) -> Vec<u8> {
    let [low, high] = flags.to_le_bytes();
    vec![entry, kind, low, high, bus, source, to, input]
}

pub(super) fn table(hardware: &Hardware) -> Vec<u8> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for id in hardware.cpu_ids() {
        // CPU flags: enabled, and which one is the bootstrap processor.
        let flags = 1 | u8::from(id == 0) << 1;
        let [signature, features] =
            [hardware.cpu_signature & 0xFFF, hardware.cpu_features].map(u32::to_le_bytes);
        let head = [PROCESSOR, id, layout::LAPIC_VERSION, flags];
        entries.push([&head[..], &signature, &features, &[0; 8]].concat());
    }
    entries.push([&[BUS, PCI_BUS], b"PCI   ".as_slice()].concat());
    entries.push([&[BUS, ISA_BUS], b"ISA   ".as_slice()].concat());
    let io_apic = [IO_APIC, layout::IOAPIC_ID, layout::IOAPIC_VERSION, 1];
    entries.push([&io_apic[..], &layout::IOAPIC.to_le_bytes()].concat());

    for slot in 0..32_u8 {
        for pin in 0..4_u8 {
            let input = layout::PIRQ_IRQS[layout::pirq(slot, pin)];
            let source = slot << 2 | pin;
            entries.push(interrupt(
                IO_INTERRUPT,
                INT,
                LEVEL_ACTIVE_HIGH,
                PCI_BUS,
                source,
                layout::IOAPIC_ID,
                input,
            ));
        }
    }
    // The inputs of PCI interrupts have no ISA source; the cascade has none either.
    for line in (0..16).filter(|line| *line != irq::CASCADE && !layout::PIRQ_IRQS.contains(line)) {
        let input = if line == irq::TIMER { irq::TIMER_GSI } else { line };
        let flags = if irq::LEVEL.contains(&line) { LEVEL_ACTIVE_HIGH } else { CONFORMS };
        entries.push(interrupt(IO_INTERRUPT, INT, flags, ISA_BUS, line, layout::IOAPIC_ID, input));
    }
    entries.push(interrupt(LOCAL_INTERRUPT, EXT_INT, CONFORMS, ISA_BUS, 0, 0, 0));
    entries.push(interrupt(LOCAL_INTERRUPT, NMI, CONFORMS, ISA_BUS, 0, ALL_LAPICS, 1));

    let body = entries.concat();
    let length = (44 + body.len()) as u16;
    let mut table = [
        b"PCMP".as_slice(),
        &length.to_le_bytes(),
        &[SPEC_REV, 0],
        b"TRIMARAN",
        b"PC          ",
        &[0; 6],
        &(entries.len() as u16).to_le_bytes(),
        &layout::LAPIC.to_le_bytes(),
        &[0; 4],
        &body,
    ]
    .concat();
    table[7] = checksum(&table);
    table
}
