//! SMBIOS 2.8 (DMTF DSP0134): what inventory tools and installers read.

use super::{Hardware, checksum};
use crate::layout::{HIGH_RAM, RAM_HOLE};

const MAKER: &str = "Trimaran";
const PRODUCT: &str = "Trimaran PC (i440FX + PIIX3)";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A value that is not known, in most enumerations, and "other".
const OTHER: u8 = 1;
const UNKNOWN: u8 = 2;
/// A handle that points nowhere: no error information.
const NO_ERROR_HANDLE: u16 = 0xFFFE;
const CHASSIS_HANDLE: u16 = 0x300;
const PROCESSOR_HANDLE: u16 = 0x400;
const MEMORY_ARRAY_HANDLE: u16 = 0x1000;
const KIB: u64 = 1024;
const MIB: u64 = KIB * KIB;

/// All structures, one after another.
#[derive(Debug, Default)]
pub(super) struct Smbios {
    pub structures: Vec<u8>,
    count: u16,
    largest: u16,
}

impl Smbios {
    /// Adds a structure; string numbers in `fields` count `strings` from 1.
    fn add(&mut self, kind: u8, handle: u16, fields: &[&[u8]], strings: &[&str]) {
        let fields = fields.concat();
        let before = self.structures.len();
        self.structures.extend([kind, (4 + fields.len()) as u8]);
        self.structures.extend(handle.to_le_bytes());
        self.structures.extend(fields);
        for string in strings {
            self.structures.extend(string.as_bytes());
            self.structures.push(0);
        }
        self.structures.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        self.count += 1;
        self.largest = self.largest.max((self.structures.len() - before) as u16);
    }

    /// The 32-bit entry point, for structures at `at`; firmware puts its own address there.
    pub fn anchor(&self, at: u32) -> Vec<u8> {
        const BCD_REVISION: u8 = 0x28;
        let mut anchor =
            [b"_SM_".as_slice(), &[0, 0x1F, 2, 8], &self.largest.to_le_bytes(), &[0; 6]].concat();
        anchor.extend(b"_DMI_\0");
        anchor.extend((self.structures.len() as u16).to_le_bytes());
        anchor.extend(at.to_le_bytes());
        anchor.extend(self.count.to_le_bytes());
        anchor.push(BCD_REVISION);
        anchor[21] = checksum(&anchor[16..]);
        anchor[4] = checksum(&anchor);
        anchor
    }
}

pub(super) fn build(hardware: &Hardware) -> Smbios {
    let mut smbios = Smbios::default();
    bios(&mut smbios);
    // Type 1, System Information: maker, product, version, serial number, UUID, wake-up type, SKU, family.
    const POWER_SWITCH: u8 = 6;
    smbios.add(1, 0x100, &[&[1, 2, 3, 0], &hardware.uuid, &[POWER_SWITCH, 0, 0]], &[MAKER, PRODUCT, VERSION]);
    chassis(&mut smbios);
    for id in hardware.cpu_ids() {
        processor(&mut smbios, hardware, id);
    }
    memory(&mut smbios, hardware);
    // Type 32, System Boot Information: no errors detected.
    smbios.add(32, 0x2000, &[&[0; 6], &[0]], &[]);
    // Type 127, End-of-Table.
    smbios.add(127, 0x7F00, &[], &[]);
    smbios
}

/// Type 0, BIOS Information.
fn bios(smbios: &mut Smbios) {
    const START_SEGMENT: u16 = 0xF000;
    const CHARACTERISTICS_NOT_SUPPORTED: u64 = 1 << 3;
    /// Extension bytes: ACPI; virtual machine.
    const EXTENSION: [u8; 2] = [1, 1 << 4];
    let fields: &[&[u8]] = &[
        &[1, 2],
        &START_SEGMENT.to_le_bytes(),
        &[3, 0],
        &CHARACTERISTICS_NOT_SUPPORTED.to_le_bytes(),
        &EXTENSION,
        &[0, 1, 0xFF, 0xFF],
    ];
    smbios.add(0, 0, fields, &[MAKER, VERSION, "01/01/2026"]);
}

/// Type 3, System Enclosure.
fn chassis(smbios: &mut Smbios) {
    const SAFE: u8 = 3;
    let fields: &[&[u8]] = &[
        &[1, OTHER, 0, 0, 0],
        // Boot-up, power supply and thermal state; security status.
        &[SAFE, SAFE, SAFE, UNKNOWN],
        &[0; 4],
        // Height, power cords, contained elements and their size, SKU.
        &[0, 0, 0, 0, 0],
    ];
    smbios.add(3, CHASSIS_HANDLE, fields, &[MAKER]);
}

/// Type 4, Processor Information.
fn processor(smbios: &mut Smbios, hardware: &Hardware, id: u8) {
    const CENTRAL_PROCESSOR: u8 = 3;
    const POPULATED_ENABLED: u8 = 0x41;
    const NO_CACHE: [u8; 2] = [0xFF; 2];
    let [signature, features] = [hardware.cpu_signature, hardware.cpu_features].map(u32::to_le_bytes);
    let unknown = u16::from(UNKNOWN).to_le_bytes();
    let fields: &[&[u8]] = &[
        &[1, CENTRAL_PROCESSOR, OTHER, 2],
        &signature,
        &features,
        // Version, voltage, external clock, speeds: unknown.
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &[POPULATED_ENABLED, OTHER],
        &[NO_CACHE, NO_CACHE, NO_CACHE].concat(),
        // Serial number, asset tag, part number; cores, enabled cores, threads.
        &[0, 0, 0, 1, 1, 1],
        // Characteristics, family 2.
        &unknown,
        &u16::from(OTHER).to_le_bytes(),
    ];
    smbios.add(4, PROCESSOR_HANDLE + u16::from(id), fields, &[&format!("CPU {id}"), MAKER]);
}

/// Types 16, 17 and 19: one array with one device, mapped below the PCI hole and from 4 GiB on.
fn memory(smbios: &mut Smbios, hardware: &Hardware) {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    /// Says that the extended field holds the size.
    const EXTENDED: u32 = 0x8000_0000;
    let ram = hardware.memory.ram_bytes;
    let capacity = u32::try_from(ram / KIB).ok().filter(|&kib| kib < EXTENDED);
    smbios.add(
        16,
        MEMORY_ARRAY_HANDLE,
        &[
            &[SYSTEM_BOARD, SYSTEM_MEMORY, NO_CORRECTION],
            &capacity.unwrap_or(EXTENDED).to_le_bytes(),
            &NO_ERROR_HANDLE.to_le_bytes(),
            &1_u16.to_le_bytes(),
            &if capacity.is_some() { 0 } else { ram }.to_le_bytes(),
        ],
        &[],
    );

    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    let mib = (ram / MIB) as u32;
    let short = u16::try_from(mib).ok().filter(|&size| size < 0x7FFF);
    smbios.add(
        17,
        0x1100,
        &[
            &MEMORY_ARRAY_HANDLE.to_le_bytes(),
            &NO_ERROR_HANDLE.to_le_bytes(),
            // Widths: unknown.
            &[0xFF; 4],
            &short.unwrap_or(0x7FFF).to_le_bytes(),
            &[DIMM, 0, 1, 0, RAM],
            // Type detail "other"; speed; maker, serial number, asset tag, part number; attributes.
            &[1 << 1, 0, 0, 0, 2, 0, 0, 0, 0],
            &if short.is_some() { 0 } else { mib }.to_le_bytes(),
            // Configured speed; minimum, maximum, configured voltage.
            &[0; 8],
        ],
        &["DIMM 0", MAKER],
    );

    let ranges = [(0, hardware.memory.low_end().min(RAM_HOLE)), (HIGH_RAM, hardware.memory.high_bytes())];
    for (handle, (base, length)) in (0x1300..).zip(ranges).filter(|(_, (_, length))| *length != 0) {
        // Extended addresses stand for kilobyte addresses that are all ones; these suffice to 4 TiB.
        let kib = |address: u64| u32::try_from(address / KIB).unwrap_or(u32::MAX).to_le_bytes();
        let fields: &[&[u8]] =
            &[&kib(base), &kib(base + length - 1), &MEMORY_ARRAY_HANDLE.to_le_bytes(), &[1], &[0; 16]];
        smbios.add(19, handle, fields, &[]);
    }
}
