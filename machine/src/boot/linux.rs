//! Linux bzImage (kernel documentation, "The Linux/x86 Boot Protocol", 2.02 to 2.15).
//!
//! The real-mode part of the image is not run: the loader fills in `boot_params` (the zero page) itself and enters
//! the protected-mode part, in 64-bit mode where the kernel offers that entry, else in 32-bit mode.

use super::bytes::Image;
use super::{
    BootError, BootRegisters, DirectBoot, GuestMemory, Long64, MemoryLayout, Protected32, c_string,
    check_range,
};
use crate::layout::{BOOT_END, BOOT_INFO, BOOT_STRINGS};

/// Offsets in the setup header, the same in the file and in `boot_params`.
mod hdr {
    pub const SETUP_SECTS: u64 = 0x1F1;
    pub const SYSSIZE: u64 = 0x1F4;
    pub const BOOT_FLAG: u64 = 0x1FE;
    pub const JUMP: u64 = 0x200;
    pub const HEADER: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: u64 = 0x211;
    pub const CODE32_START: u64 = 0x214;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21C;
    pub const HEAP_END_PTR: usize = 0x224;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: u64 = 0x22C;
    pub const RELOCATABLE_KERNEL: u64 = 0x234;
    pub const XLOADFLAGS: u64 = 0x236;
    pub const CMDLINE_SIZE: u64 = 0x238;
    pub const PREF_ADDRESS: u64 = 0x258;
    pub const INIT_SIZE: u64 = 0x260;
}

/// Offsets in `boot_params` and its `screen_info`.
mod params {
    pub const ORIG_VIDEO_MODE: usize = 0x06;
    pub const ORIG_VIDEO_COLS: usize = 0x07;
    pub const ORIG_VIDEO_EGA_BX: usize = 0x0A;
    pub const ORIG_VIDEO_LINES: usize = 0x0E;
    pub const ORIG_VIDEO_IS_VGA: usize = 0x0F;
    pub const ORIG_VIDEO_POINTS: usize = 0x10;
    pub const ACPI_RSDP_ADDR: usize = 0x70;
    pub const ALT_MEM_K: usize = 0x1E0;
    pub const E820_ENTRIES: usize = 0x1E8;
    pub const E820_TABLE: usize = 0x2D0;
    pub const SIZE: usize = 0x1000;
}

const BOOT_FLAG: u16 = 0xAA55;
const HDRS: &[u8] = b"HdrS";
/// `loadflags`.
const LOADED_HIGH: u8 = 0x01;
const CAN_USE_HEAP: u8 = 0x80;
/// `xloadflags`: there is a 64-bit entry at 200h.
const XLF_KERNEL_64: u16 = 0x01;
const ENTRY_64: u64 = 0x200;
/// `type_of_loader` of a loader without a number.
const LOADER_UNDEFINED: u8 = 0xFF;
/// Where a bzImage goes that cannot be relocated.
const LOAD_HIGH: u64 = 0x10_0000;
/// Limits of protocols that do not state theirs.
const OLD_CMDLINE_SIZE: u64 = 255;
const OLD_INITRD_ADDR_MAX: u64 = 0x37FF_FFFF;

/// Whether the image has a setup header.
pub(super) fn is_linux(image: Image) -> bool {
    image.u16(hdr::BOOT_FLAG, "boot_flag").is_ok_and(|flag| flag == BOOT_FLAG)
        && image.slice(hdr::HEADER, 4, "header").is_ok_and(|magic| magic == HDRS)
}

/// What the setup header says, with the defaults of older protocols filled in.
struct Header<'a> {
    /// The header's bytes from offset 1F1h on.
    raw: &'a [u8],
    loadflags: u8,
    /// The protected-mode part of the file.
    kernel: &'a [u8],
    load_address: u64,
    entry: u64,
    /// Bytes that the kernel needs from its load address on until it reads the memory map.
    init_size: u64,
    initrd_addr_max: u64,
    cmdline_size: u64,
    kernel_64: bool,
}

impl<'a> Header<'a> {
    fn parse(image: Image<'a>) -> Result<Self, BootError> {
        let what = "setup header";
        let version = image.u16(hdr::VERSION, what)?;
        if version < 0x0202 {
            return Err(BootError::TooOld { version });
        }
        let loadflags = image.u8(hdr::LOADFLAGS, what)?;
        if loadflags & LOADED_HIGH == 0 {
            return Err(BootError::ZImage);
        }
        let since = |first: u16, offset: u64, width: u64, default: u64| match (version >= first, width) {
            (false, _) => Ok(default),
            (true, 1) => image.u8(offset, what).map(u64::from),
            (true, 2) => image.u16(offset, what).map(u64::from),
            (true, 4) => image.u32(offset, what).map(u64::from),
            (true, _) => image.u64(offset, what),
        };

        let setup_sects = match image.u8(hdr::SETUP_SECTS, what)? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let setup_size = (setup_sects + 1) * 512;
        let header_end = (hdr::HEADER + u64::from(image.u8(hdr::JUMP + 1, what)?)).min(setup_size);
        let raw = image.slice(hdr::SETUP_SECTS, header_end.saturating_sub(hdr::SETUP_SECTS), what)?;
        // syssize counts paragraphs; the last one may be cut short. Before 2.04 its upper half means nothing.
        let syssize = if version >= 0x0204 {
            u64::from(image.u32(hdr::SYSSIZE, what)?)
        } else {
            u64::from(image.u16(hdr::SYSSIZE, what)?)
        };
        let least = (syssize * 16).saturating_sub(15).max(1);
        image.slice(setup_size, least, "protected-mode code")?;
        let kernel = image.slice(setup_size, image.len() - setup_size, "protected-mode code")?;

        let relocatable = since(0x0205, hdr::RELOCATABLE_KERNEL, 1, 0)? != 0;
        let pref_address = since(0x020A, hdr::PREF_ADDRESS, 8, LOAD_HIGH)?;
        let code32_start = u64::from(image.u32(hdr::CODE32_START, what)?);
        let load_address = if relocatable { pref_address } else { LOAD_HIGH };
        let kernel_64 = since(0x020C, hdr::XLOADFLAGS, 2, 0)? as u16 & XLF_KERNEL_64 != 0;
        let entry = match (kernel_64, relocatable) {
            (true, _) => load_address.saturating_add(ENTRY_64),
            (false, true) => load_address,
            (false, false) => code32_start,
        };
        let inside = entry.checked_sub(load_address).is_some_and(|offset| offset < kernel.len() as u64);
        if !inside || entry > u64::from(u32::MAX) {
            let why = "does not point into its protected-mode code; the file is damaged";
            return Err(BootError::BadField { field: "entry point", value: entry, why });
        }
        Ok(Self {
            raw,
            loadflags,
            kernel,
            load_address,
            entry,
            init_size: since(0x020A, hdr::INIT_SIZE, 4, 0)?.max(kernel.len() as u64),
            initrd_addr_max: since(0x0203, hdr::INITRD_ADDR_MAX, 4, OLD_INITRD_ADDR_MAX)?,
            cmdline_size: since(0x0206, hdr::CMDLINE_SIZE, 4, OLD_CMDLINE_SIZE)?,
            kernel_64,
        })
    }
}

pub(super) fn load(
    boot: &DirectBoot,
    image: Image,
    memory: &dyn GuestMemory,
    layout: &MemoryLayout,
    rsdp: u64,
) -> Result<BootRegisters, BootError> {
    if !boot.modules.is_empty() {
        return Err(BootError::ModulesUnsupported { count: boot.modules.len() });
    }
    let header = Header::parse(image)?;
    let limit = header.cmdline_size.min(BOOT_END - BOOT_STRINGS - 1) as usize;
    if boot.append.len() > limit {
        return Err(BootError::CmdlineTooLong { length: boot.append.len(), limit });
    }
    let cmdline = c_string(&boot.append)?;
    let kernel_end = check_range(layout, header.load_address, header.init_size, BOOT_END)?;
    let initrd = boot.initrd.as_deref().unwrap_or_default();
    let initrd_at = place_initrd(initrd.len() as u64, kernel_end, header.initrd_addr_max, layout)?;

    memory.write(header.load_address, header.kernel)?;
    memory.write(initrd_at, initrd)?;
    memory.write(BOOT_STRINGS, &cmdline)?;
    memory.write(BOOT_INFO, &boot_params(&header, layout, rsdp, initrd_at as u32, initrd.len() as u32))?;
    tracing::debug!(entry = header.entry, kernel_64 = header.kernel_64, initrd_at, "Linux loaded");
    if header.kernel_64 {
        return Ok(BootRegisters::Long64(Long64::at(memory, header.entry, BOOT_INFO)?));
    }
    // EBP, EDI and EBX must be 0, ESI points to boot_params.
    let registers = Protected32::at(memory, header.entry as u32)?;
    Ok(BootRegisters::Protected32(Protected32 { esi: BOOT_INFO as u32, ..registers }))
}

/// As high as the kernel allows, on a page boundary. Address 0 for an empty one.
fn place_initrd(size: u64, floor: u64, addr_max: u64, layout: &MemoryLayout) -> Result<u64, BootError> {
    if size == 0 {
        return Ok(0);
    }
    let limit = layout.acpi_base().min(addr_max + 1);
    match limit.checked_sub(size).map(|at| at & !0xFFF) {
        Some(at) if at >= floor => Ok(at),
        _ => Err(BootError::ModuleTooBig { what: "the initrd", size, floor, limit }),
    }
}

/// The zero page (kernel documentation, "Zero Page").
fn boot_params(
    header: &Header,
    layout: &MemoryLayout,
    rsdp: u64,
    initrd_at: u32,
    initrd_size: u32,
) -> Vec<u8> {
    let mut page = vec![0; params::SIZE];
    let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
    let dword = u32::to_le_bytes;

    put(hdr::SETUP_SECTS as usize, header.raw);
    put(hdr::TYPE_OF_LOADER, &[LOADER_UNDEFINED, header.loadflags | CAN_USE_HEAP]);
    put(hdr::CODE32_START as usize, &dword(header.load_address as u32));
    put(hdr::RAMDISK_IMAGE, &dword(initrd_at));
    put(hdr::RAMDISK_SIZE, &dword(initrd_size));
    put(hdr::HEAP_END_PTR, &0xFE00_u16.to_le_bytes());
    put(hdr::CMD_LINE_PTR, &dword(BOOT_STRINGS as u32));

    put(params::ORIG_VIDEO_MODE, &[3]);
    put(params::ORIG_VIDEO_COLS, &[80]);
    put(params::ORIG_VIDEO_EGA_BX, &[3, 0]);
    put(params::ORIG_VIDEO_LINES, &[25]);
    put(params::ORIG_VIDEO_IS_VGA, &[1]);
    put(params::ORIG_VIDEO_POINTS, &[16, 0]);
    put(params::ACPI_RSDP_ADDR, &rsdp.to_le_bytes());
    let above_1m = layout.acpi_base().saturating_sub(LOAD_HIGH) / 1024;
    put(params::ALT_MEM_K, &dword(above_1m as u32));

    let map = layout.e820();
    put(params::E820_ENTRIES, &[map.len() as u8]);
    for (i, range) in map.iter().enumerate() {
        let at = params::E820_TABLE + i * 20;
        put(at, &range.base.to_le_bytes());
        put(at + 8, &range.length.to_le_bytes());
        put(at + 16, &dword(range.kind as u32));
    }
    page
}
