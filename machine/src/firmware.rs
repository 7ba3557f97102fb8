//! Firmware, and what it reads about the machine: fw_cfg items and CMOS memory.

use crate::layout::{AddressRange, HIGH_RAM, MemoryLayout, RangeType};
use crate::tables::{Hardware, firmware_files};
use std::path::{Path, PathBuf};
use trimaran_devices::fw_cfg::{FwCfg, item};
use trimaran_devices::rtc::Rtc;

/// Where distributions put SeaBIOS and its VGA BIOS.
const FOLDERS: [&str; 4] =
    ["/usr/share/seabios", "/usr/share/qemu", "/usr/local/share/seabios", "/opt/homebrew/share/qemu"];
const BIOS: &str = "bios-256k.bin";
const VGA_BIOS: &str = "vgabios-stdvga.bin";
/// The largest ROM: it must stay clear of the local APIC's page.
pub const MAX_ROM: usize = 8 << 20;

/// What firmware can boot from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootDevice {
    Floppy,
    Disk,
    CdRom,
}

/// Finds SeaBIOS's image and its VGA BIOS where they are installed.
pub fn find_seabios() -> Option<(PathBuf, PathBuf)> {
    let files = |folder: &&str| (Path::new(folder).join(BIOS), Path::new(folder).join(VGA_BIOS));
    FOLDERS.iter().map(files).find(|(bios, vga)| bios.is_file() && vga.is_file())
}

/// Fills fw_cfg.
pub fn fill_fw_cfg(fw_cfg: &mut FwCfg, hardware: &Hardware, boot_menu: bool) {
    let cpus = u16::from(hardware.cpus).to_le_bytes().to_vec();
    fw_cfg.add(item::RAM_SIZE, hardware.memory.ram_bytes.to_le_bytes().to_vec());
    fw_cfg.add(item::NB_CPUS, cpus.clone());
    fw_cfg.add(item::MAX_CPUS, cpus);
    fw_cfg.add(item::BOOT_MENU, u16::from(boot_menu).to_le_bytes().to_vec());
    let mut files: Vec<(&str, Vec<u8>)> = vec![("etc/e820", e820(&hardware.memory))];
    files.extend(firmware_files(hardware).into_iter().map(|file| (file.name, file.data)));
    for (name, data) in files {
        if let Err(e) = fw_cfg.add_file(name, data) {
            tracing::error!("fw_cfg: {e}");
        }
    }
}

/// The RAM ranges, as firmware wants them: address, length, type.
fn e820(memory: &MemoryLayout) -> Vec<u8> {
    let range = |base, length| AddressRange { base, length, kind: RangeType::Memory };
    [range(0, memory.low_end()), range(HIGH_RAM, memory.high_bytes())]
        .into_iter()
        .filter(|range| range.length > 0)
        .flat_map(|range| {
            let mut bytes = range.base.to_le_bytes().to_vec();
            bytes.extend(range.length.to_le_bytes());
            bytes.extend((range.kind as u32).to_le_bytes());
            bytes
        })
        .collect()
}

/// What stands in CMOS memory besides the time.
pub struct Setup<'a> {
    pub memory: MemoryLayout,
    pub cpus: u8,
    /// Bytes of the diskette in drives 0 and 1; the type of an empty drive is 1.44 MB.
    pub floppies: [Option<u64>; 2],
    /// Disks are at these places of the IDE channels.
    pub disks: [bool; 4],
    pub boot_order: &'a [BootDevice],
}

/// Fills CMOS memory as a setup program would.
pub fn fill_cmos(rtc: &mut Rtc, setup: &Setup) {
    let mut word = |index: u8, value: u64| {
        rtc.set_cmos(index, value as u8);
        rtc.set_cmos(index + 1, (value >> 8) as u8);
    };
    let low = setup.memory.low_end();
    let kilobytes = |bytes: u64, unit: u64| (bytes / unit).min(0xFFFF);
    let extended = low.saturating_sub(1 << 20);
    word(0x15, 640);
    word(0x17, kilobytes(extended, 1 << 10));
    word(0x30, kilobytes(extended, 1 << 10));
    word(0x34, kilobytes(low.saturating_sub(16 << 20), 1 << 16));
    let high = setup.memory.high_bytes() >> 16;
    word(0x5B, high & 0xFFFF);
    rtc.set_cmos(0x5D, (high >> 16) as u8);
    rtc.set_cmos(0x5F, setup.cpus.saturating_sub(1));

    let floppy_type = |bytes: Option<u64>| match bytes {
        None => 0,
        Some(0..=368_640) => 1,
        Some(368_641..=737_280) => 3,
        Some(737_281..=1_228_800) => 2,
        Some(1_228_801..=1_720_320) => 4,
        Some(_) => 5,
    };
    rtc.set_cmos(0x10, floppy_type(setup.floppies[0]) << 4 | floppy_type(setup.floppies[1]));
    let disk = |n: usize| if setup.disks[n] { 0xF } else { 0 };
    rtc.set_cmos(0x12, disk(0) << 4 | disk(1));
    let floppies = setup.floppies.iter().flatten().count() as u8;
    // FPU, PS/2 mouse, and the number of floppy drives.
    let drives = if floppies > 0 { 1 | (floppies - 1) << 6 } else { 0 };
    rtc.set_cmos(0x14, 0x06 | drives);

    let code = |index: usize| match setup.boot_order.get(index) {
        None => 0,
        Some(BootDevice::Floppy) => 1,
        Some(BootDevice::Disk) => 2,
        Some(BootDevice::CdRom) => 3,
    };
    // Bit 0: boot sectors of floppies need no signature.
    rtc.set_cmos(0x38, code(2) << 4 | 1);
    rtc.set_cmos(0x3D, code(1) << 4 | code(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cmos_memory_sizes() {
        let mut rtc = Rtc::new(0);
        let setup = Setup {
            memory: MemoryLayout { ram_bytes: 5 << 30 },
            cpus: 4,
            floppies: [Some(1_474_560), None],
            disks: [true, false, false, false],
            boot_order: &[BootDevice::CdRom, BootDevice::Disk],
        };
        fill_cmos(&mut rtc, &setup);
        let word = |at| u32::from(rtc.cmos(at)) | u32::from(rtc.cmos(at + 1)) << 8;
        assert_eq!(word(0x34), (3 << 30) / 0x1_0000 - 256);
        assert_eq!(word(0x5B) | u32::from(rtc.cmos(0x5D)) << 16, (2 << 30) / 0x1_0000);
        assert_eq!([rtc.cmos(0x5F), rtc.cmos(0x10), rtc.cmos(0x3D)], [3, 0x40, 0x23]);
    }
}
