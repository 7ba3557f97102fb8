//! Multiboot kernels (Multiboot Specification 0.6.96): ELF files, and flat files with an address header.

use super::bytes::Image;
use super::elf::{Elf, clear, is_elf};
use super::{
    BootError, BootRegisters, DirectBoot, GuestMemory, InfoArea, MemoryLayout, Protected32, check_range,
};
use crate::layout::{BOOT_AREA_SIZE, BOOT_AREAS, BOOT_LOW, EBDA, ONE_MIB};

/// The header begins in the first 8 KiB, on a 4-byte boundary.
const SEARCH: u64 = 8192;
const HEADER_MAGIC: u32 = 0x1BAD_B002;
const LOADER_MAGIC: u32 = 0x2BAD_B002;
/// Header flags.
const VIDEO_MODE: u32 = 1 << 2;
const ADDRESS_FIELDS: u32 = 1 << 16;
/// Bits 0 to 15 are requirements; those above bit 2 have no meaning yet.
const UNKNOWN_REQUIREMENTS: u32 = 0xFFF8;
/// Information flags: memory, command line, modules, memory map, boot loader name, framebuffer.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9 | 1 << 12;
const INFO_SIZE: usize = 116;
/// `framebuffer_type` of EGA text.
const FRAMEBUFFER_TEXT: u8 = 2;
const TEXT_MEMORY: u64 = 0xB_8000;
const LOADER_NAME: &str = "Trimaran";

/// The header, with where it stands in the file.
pub(super) struct Header {
    at: u64,
    flags: u32,
}

impl Header {
    pub fn find(image: Image) -> Option<Self> {
        let last = image.len().min(SEARCH).checked_sub(12)?;
        (0..=last).step_by(4).find_map(|at| {
            let word = |i: u64| image.u32(at + i * 4, "multiboot header").ok();
            let (magic, flags, checksum) = (word(0)?, word(1)?, word(2)?);
            let sum = magic.wrapping_add(flags).wrapping_add(checksum);
            (magic == HEADER_MAGIC && sum == 0).then_some(Self { at, flags })
        })
    }

    /// Loads by the address fields (`header_addr` and on); returns entry, beginning and end.
    fn load_flat(
        &self,
        image: Image,
        memory: &dyn GuestMemory,
        layout: &MemoryLayout,
    ) -> Result<(u32, u64, u64), BootError> {
        let field = |i: u64| image.u32(self.at + 12 + i * 4, "multiboot address fields");
        let (header_addr, load_addr, load_end_addr) = (field(0)?, field(1)?, field(2)?);
        let (bss_end_addr, entry_addr) = (field(3)?, field(4)?);
        let bad = |name, value: u32, why| BootError::BadField { field: name, value: value.into(), why };

        let before = header_addr.checked_sub(load_addr).map(u64::from);
        let start = before.and_then(|before| self.at.checked_sub(before));
        let start =
            start.ok_or(bad("load_addr", load_addr, "does not match header_addr and the header's place"))?;
        let load_addr = u64::from(load_addr);
        let size = match load_end_addr {
            0 => image.len() - start,
            end => u64::from(end).checked_sub(load_addr).ok_or(bad(
                "load_end_addr",
                end,
                "is below load_addr",
            ))?,
        };
        let bytes = image.slice(start, size, "text and data segments")?;
        let loaded_end = load_addr + size;
        let end = match bss_end_addr {
            0 => loaded_end,
            end if u64::from(end) < loaded_end => {
                return Err(bad("bss_end_addr", end, "is below load_end_addr"));
            }
            end => u64::from(end),
        };
        check_range(layout, load_addr, end - load_addr, BOOT_LOW)?;
        if !(load_addr..end).contains(&u64::from(entry_addr)) {
            return Err(bad("entry_addr", entry_addr, "lies outside of what is loaded"));
        }
        memory.write(load_addr, bytes)?;
        clear(memory, loaded_end, end - loaded_end)?;
        Ok((entry_addr, load_addr, end))
    }
}

pub(super) fn load(
    boot: &DirectBoot,
    image: Image,
    memory: &dyn GuestMemory,
    layout: &MemoryLayout,
) -> Result<BootRegisters, BootError> {
    let header = Header::find(image)
        .ok_or_else(|| BootError::NotAKernel { saw: "no multiboot header in the first 8 KiB".into() })?;
    if header.flags & UNKNOWN_REQUIREMENTS != 0 {
        let why = "asks for features that Multiboot 1 does not define";
        return Err(BootError::BadField { field: "multiboot flags", value: header.flags.into(), why });
    }
    if header.flags & VIDEO_MODE != 0 {
        tracing::info!("the multiboot kernel asks for a video mode; it gets 80x25 text");
    }
    let free = |occupied: &dyn Fn(u64) -> bool| {
        let none = BootError::InfoTooBig { need: BOOT_AREA_SIZE, limit: 0 };
        BOOT_AREAS.into_iter().find(|&area| !occupied(area)).ok_or(none)
    };
    let (entry, kernel_end, area) = if header.flags & ADDRESS_FIELDS != 0 {
        let (entry, start, end) = header.load_flat(image, memory, layout)?;
        (entry, end, free(&|area| start < area + BOOT_AREA_SIZE && area < end)?)
    } else if is_elf(image) {
        let elf = Elf::parse(image)?;
        let end = elf.load(memory, layout, BOOT_LOW)?;
        (elf.entry()?, end, free(&|area| elf.occupies(area, BOOT_AREA_SIZE))?)
    } else {
        let saw = "a multiboot header without address fields in a file that is not ELF".into();
        return Err(BootError::NotAKernel { saw });
    };
    let info = write_info(boot, InfoArea::at(memory, area), layout, kernel_end)?;
    memory.write(area, &info)?;
    let registers = Protected32::at(memory, entry)?;
    Ok(BootRegisters::Protected32(Protected32 { eax: LOADER_MAGIC, ebx: area as u32, ..registers }))
}

/// Places the modules above the kernel, each on a page boundary, and returns the multiboot information.
fn write_info(
    boot: &DirectBoot,
    mut area: InfoArea,
    layout: &MemoryLayout,
    kernel_end: u64,
) -> Result<[u8; INFO_SIZE], BootError> {
    let memory = area.memory;
    let cmdline = match boot.kernel_name.as_str() {
        "" => area.put_string(&boot.append)?,
        name => area.put_string(&format!("{name} {}", boot.append))?,
    } as u32;
    let loader_name = area.put_string(LOADER_NAME)? as u32;

    let modules = boot.all_modules();
    let mut mods = Vec::new();
    let mut floor = kernel_end.max(ONE_MIB);
    for (data, string) in &modules {
        let (at, limit) = (floor.next_multiple_of(0x1000), layout.acpi_base());
        let size = data.len() as u64;
        floor = match at.checked_add(size) {
            Some(end) if end <= limit => end,
            _ => return Err(BootError::ModuleTooBig { what: "a module", size, floor, limit }),
        };
        memory.write(at, data)?;
        let string = area.put_string(string)? as u32;
        mods.extend([at as u32, floor as u32, string, 0].map(u32::to_le_bytes).concat());
    }
    let mods_addr = area.put(&mods)? as u32;

    let mut mmap = Vec::new();
    for range in layout.e820() {
        // `size` does not count itself.
        mmap.extend(20_u32.to_le_bytes());
        mmap.extend([range.base, range.length].map(u64::to_le_bytes).concat());
        mmap.extend((range.kind as u32).to_le_bytes());
    }
    let mmap_addr = area.put(&mmap)? as u32;

    let mut info = [0; INFO_SIZE];
    let mut put = |offset: usize, value: u32| info[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    put(0, INFO_FLAGS);
    put(4, (EBDA / 1024) as u32);
    put(8, (layout.acpi_base().saturating_sub(ONE_MIB) / 1024) as u32);
    put(16, cmdline);
    put(20, modules.len() as u32);
    put(24, mods_addr);
    put(44, mmap.len() as u32);
    put(48, mmap_addr);
    put(64, loader_name);
    put(88, TEXT_MEMORY as u32);
    put(96, 80 * 2);
    put(100, 80);
    put(104, 25);
    info[108] = 16;
    info[109] = FRAMEBUFFER_TEXT;
    Ok(info)
}
