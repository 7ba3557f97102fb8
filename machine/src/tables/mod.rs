//! What guests read about the machine: ACPI, SMBIOS and MultiProcessor tables.
//!
//! Each comes in two forms. Firmware gets files through fw_cfg ([`firmware_files`]) and places them itself. After a
//! direct boot they lie in RAM at fixed addresses ([`place`]); the F segment must be writable RAM meanwhile.

mod acpi;
mod aml;
mod dsdt;
mod loader;
mod mp;
mod smbios;

use serde::{Deserialize, Serialize};

use crate::layout::{self, MemoryLayout, RSDP_AT};

/// The most processors that 8-bit APIC ids can name.
pub const MAX_CPUS: u8 = 254;

/// What the tables say about the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Processors, 1 to [`MAX_CPUS`]; their APIC ids count from 0.
    pub cpus: u8,
    pub memory: MemoryLayout,
    pub floppy: bool,
    pub com2: bool,
    pub parallel_port: bool,
    pub hpet: bool,
    /// CPUID.1:EAX and EDX, for the MP and SMBIOS tables.
    pub cpu_signature: u32,
    pub cpu_features: u32,
    /// System UUID; zeros say that there is none.
    pub uuid: [u8; 16],
}

impl Hardware {
    fn cpu_ids(&self) -> std::ops::Range<u8> {
        0..self.cpus.clamp(1, MAX_CPUS)
    }
}

/// A file offered through fw_cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareFile {
    pub name: &'static str,
    pub data: Vec<u8>,
}

/// Tables with the addresses at which they must lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTables {
    pub rsdp_at: u64,
    pub blobs: Vec<(u64, Vec<u8>)>,
}

/// Why tables cannot be placed.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the {what} tables need {need:#x} bytes, {limit:#x} are reserved; use fewer processors")]
    TooBig { what: &'static str, need: u64, limit: u64 },
}

/// All tables for a direct boot, ACPI's from `MemoryLayout::acpi_base()` on.
pub fn place(hardware: &Hardware) -> Result<PlacedTables, TableError> {
    let fits = |what, need: usize, limit: u64| match need as u64 {
        need if need > limit => Err(TableError::TooBig { what, need, limit }),
        _ => Ok(()),
    };
    let base = hardware.memory.acpi_base();
    let (rsdp, tables) = acpi::build(hardware).at(base);
    fits("ACPI", tables.len(), layout::ACPI_TABLES_SIZE)?;
    let smbios = smbios::build(hardware);
    fits("SMBIOS", smbios.structures.len(), 0xF_FF00 - layout::SMBIOS_TABLES_AT)?;
    let mp_table = mp::table(hardware);
    fits("MP", mp_table.len(), RSDP_AT - layout::MP_TABLE_AT)?;
    Ok(PlacedTables {
        rsdp_at: RSDP_AT,
        blobs: vec![
            (base, tables),
            (RSDP_AT, rsdp),
            (layout::SMBIOS_ANCHOR_AT, smbios.anchor(layout::SMBIOS_TABLES_AT as u32)),
            (layout::SMBIOS_TABLES_AT, smbios.structures),
            (layout::MP_POINTER_AT, mp::floating_pointer(layout::MP_TABLE_AT as u32)),
            (layout::MP_TABLE_AT, mp_table),
        ],
    })
}

/// The files from which SeaBIOS and OVMF install ACPI and SMBIOS tables.
pub fn firmware_files(hardware: &Hardware) -> Vec<FirmwareFile> {
    let acpi = acpi::build(hardware);
    let smbios = smbios::build(hardware);
    vec![
        FirmwareFile { name: loader::LOADER_FILE, data: acpi.commands() },
        FirmwareFile { name: loader::RSDP_FILE, data: acpi.rsdp },
        FirmwareFile { name: loader::TABLES_FILE, data: acpi.tables },
        FirmwareFile { name: "etc/smbios/smbios-anchor", data: smbios.anchor(0) },
        FirmwareFile { name: "etc/smbios/smbios-tables", data: smbios.structures },
    ]
}

/// The byte that makes the sum of all bytes zero, where its own place holds 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, &byte| sum.wrapping_sub(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn hardware(cpus: u8) -> Hardware {
        Hardware {
            cpus,
            memory: MemoryLayout { ram_bytes: 5 << 30 },
            floppy: true,
            com2: true,
            parallel_port: true,
            hpet: true,
            cpu_signature: 0x0006_0FB1,
            cpu_features: 0x078B_FBFF,
            uuid: [0x11; 16],
        }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
    }

    /// Bytes of the placed tables from `at` to the end of their blob.
    fn peek(placed: &PlacedTables, at: u64) -> &[u8] {
        let blob = placed.blobs.iter().find(|(base, data)| (*base..*base + data.len() as u64).contains(&at));
        let (base, data) = blob.unwrap_or_else(|| panic!("no table at {at:#x}"));
        &data[(at - base) as usize..]
    }

    fn dword(bytes: &[u8], at: usize) -> u64 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
    }

    fn acpi_table(placed: &PlacedTables, at: u64) -> &[u8] {
        let bytes = peek(placed, at);
        let table = &bytes[..dword(bytes, 4) as usize];
        assert_eq!(sum(table), 0, "{:?} at {at:#x}", String::from_utf8_lossy(&table[..4]));
        table
    }

    #[test]
    fn every_acpi_table_is_reached_from_the_rsdp() {
        for cpus in [1, 2, 8, MAX_CPUS] {
            let placed = place(&hardware(cpus)).unwrap();
            let rsdp = peek(&placed, placed.rsdp_at);
            assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp[..36])), (b"RSD PTR ".as_slice(), 0, 0));
            let rsdt = acpi_table(&placed, dword(rsdp, 16));
            let xsdt = acpi_table(&placed, dword(rsdp, 24));
            let entries: Vec<u64> = (36..rsdt.len()).step_by(4).map(|at| dword(rsdt, at)).collect();
            let wide: Vec<u64> = (36..xsdt.len()).step_by(8).map(|at| dword(xsdt, at)).collect();
            assert_eq!(entries, wide);
            let names: Vec<_> = entries.iter().map(|&at| acpi_table(&placed, at)[..4].to_vec()).collect();
            assert_eq!(names.concat(), b"FACPAPICHPETWAET");
            let fadt = acpi_table(&placed, entries[0]);
            assert_eq!(fadt.len(), 244);
            assert_eq!(&peek(&placed, dword(fadt, 36))[..4], b"FACS");
            assert_eq!(dword(fadt, 36) % 64, 0);
            assert_eq!(&acpi_table(&placed, dword(fadt, 40))[..4], b"DSDT");
            assert_eq!(dword(fadt, 140), dword(fadt, 40));
            let madt = acpi_table(&placed, entries[1]);
            assert_eq!(madt.len(), 44 + usize::from(cpus) * 8 + 12 + 5 * 10 + 6);
        }
    }

    #[test]
    fn no_two_placed_tables_overlap() {
        let placed = place(&hardware(MAX_CPUS)).unwrap();
        let mut ranges: Vec<_> =
            placed.blobs.iter().map(|(at, data)| (*at, *at + data.len() as u64)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:x?}");
    }

    #[test]
    fn loader_commands_give_the_same_tables_as_placing_them() {
        let hardware = hardware(3);
        let set = acpi::build(&hardware);
        let (at, base) = (RSDP_AT, hardware.memory.acpi_base());
        let (mut rsdp, mut tables) = (set.rsdp.clone(), set.tables.clone());
        for command in set.commands().chunks(128) {
            let name =
                |from: usize| command[from..from + 56].split(|&byte| byte == 0).next().unwrap().to_vec();
            let offset = |from: usize| dword(command, from) as usize;
            let file = if name(4) == b"etc/acpi/rsdp" { &mut rsdp } else { &mut tables };
            match dword(command, 0) {
                1 => assert!(matches!(name(4).as_slice(), b"etc/acpi/rsdp" | b"etc/acpi/tables")),
                2 => {
                    let source = if name(60) == b"etc/acpi/rsdp" { at } else { base };
                    let (from, size) = (offset(116), usize::from(command[120]));
                    let mut pointer = [0; 8];
                    pointer[..size].copy_from_slice(&file[from..from + size]);
                    let pointer = (u64::from_le_bytes(pointer) + source).to_le_bytes();
                    file[from..from + size].copy_from_slice(&pointer[..size]);
                }
                3 => {
                    let (result, start, length) = (offset(60), offset(64), offset(68));
                    assert_eq!(file[result], 0);
                    file[result] = checksum(&file[start..start + length]);
                }
                other => panic!("command {other}"),
            }
        }
        assert_eq!((rsdp, tables), set.at(base));
    }

    #[test]
    fn smbios_and_mp_checksums_and_lengths() {
        let placed = place(&hardware(2)).unwrap();
        let anchor = peek(&placed, layout::SMBIOS_ANCHOR_AT);
        assert_eq!((&anchor[..4], sum(anchor), sum(&anchor[16..])), (b"_SM_".as_slice(), 0, 0));
        let structures = peek(&placed, dword(anchor, 24));
        assert_eq!(structures.len(), usize::from(u16::from_le_bytes([anchor[22], anchor[23]])));
        let (mut at, mut types) = (0, Vec::new());
        while at < structures.len() {
            types.push(structures[at]);
            let strings = at + usize::from(structures[at + 1]);
            at = strings + structures[strings..].windows(2).position(|pair| pair == [0, 0]).unwrap() + 2;
        }
        assert_eq!(types, [0, 1, 3, 4, 4, 16, 17, 19, 19, 32, 127]);
        assert_eq!(usize::from(u16::from_le_bytes([anchor[28], anchor[29]])), types.len());

        let pointer = peek(&placed, layout::MP_POINTER_AT);
        assert_eq!((&pointer[..4], sum(pointer)), (b"_MP_".as_slice(), 0));
        let table = peek(&placed, dword(pointer, 4));
        assert_eq!((&table[..4], sum(table)), (b"PCMP".as_slice(), 0));
        let (mut at, mut count) = (44, 0);
        while at < table.len() {
            at += if table[at] == 0 { 20 } else { 8 };
            count += 1;
        }
        assert_eq!((at, count), (table.len(), u16::from_le_bytes([table[34], table[35]])));
    }
}
