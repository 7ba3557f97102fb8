//! PVH: ELF kernels with a 32-bit entry point in a Xen note (Xen, "x86/HVM direct boot ABI", `start_info.h`).

use super::bytes::Image;
use super::elf::Elf;
use super::{BootError, BootRegisters, DirectBoot, GuestMemory, InfoArea, MemoryLayout, Protected32};
use crate::layout::{BOOT_END, BOOT_INFO};

const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const XEN_HVM_START_MAGIC: u32 = 0x336E_C578;
const VERSION: u32 = 1;

/// The entry address, where the file has the note.
pub(super) fn entry_note(elf: &Elf) -> Result<Option<u32>, BootError> {
    let Some(desc) = elf.note(b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY)? else { return Ok(None) };
    let value = match desc.len() {
        4 => u64::from(Image(desc).u32(0, "PVH note")?),
        8 => Image(desc).u64(0, "PVH note")?,
        length => {
            let why = "is neither 4 nor 8 bytes long; the file is damaged";
            return Err(BootError::BadField { field: "PVH entry note", value: length as u64, why });
        }
    };
    let why = "is not below 4 GiB";
    u32::try_from(value).map(Some).map_err(|_| BootError::BadField { field: "PVH entry point", value, why })
}

pub(super) fn load(
    boot: &DirectBoot,
    image: Image,
    memory: &dyn GuestMemory,
    layout: &MemoryLayout,
    rsdp: u64,
) -> Result<BootRegisters, BootError> {
    let elf = Elf::parse(image)?;
    let no_note = || BootError::NotAKernel { saw: "an ELF file without a PVH entry note".into() };
    let entry = entry_note(&elf)?.ok_or_else(no_note)?;
    let kernel_end = elf.load(memory, layout, BOOT_END)?;
    let mut info = InfoArea::new(memory);
    let cmdline_paddr = info.put_string(&boot.append)?;

    // Modules from the top of low RAM down, out of the way of the kernel's early allocations.
    let modules = boot.all_modules();
    let mut top = layout.acpi_base();
    let mut modlist = Vec::new();
    for (data, cmdline) in &modules {
        let size = data.len() as u64;
        let paddr = match top.checked_sub(size).map(|at| at & !0xFFF) {
            Some(at) if at >= kernel_end => at,
            _ => {
                return Err(BootError::ModuleTooBig {
                    what: "a module",
                    size,
                    floor: kernel_end,
                    limit: top,
                });
            }
        };
        memory.write(paddr, data)?;
        top = paddr;
        modlist.extend([paddr, size, info.put_string(cmdline)?, 0].map(u64::to_le_bytes).concat());
    }
    let modlist_paddr = if modules.is_empty() { 0 } else { info.put(&modlist)? };

    let map = layout.e820();
    let mut memmap = Vec::new();
    for range in &map {
        memmap.extend([range.base, range.length, range.kind as u64].map(u64::to_le_bytes).concat());
    }
    let memmap_paddr = info.put(&memmap)?;

    let mut start_info = Vec::new();
    start_info.extend([XEN_HVM_START_MAGIC, VERSION, 0, modules.len() as u32].map(u32::to_le_bytes).concat());
    start_info.extend([modlist_paddr, cmdline_paddr, rsdp, memmap_paddr].map(u64::to_le_bytes).concat());
    start_info.extend([map.len() as u32, 0].map(u32::to_le_bytes).concat());
    memory.write(BOOT_INFO, &start_info)?;
    let registers = Protected32::at(memory, entry)?;
    Ok(BootRegisters::Protected32(Protected32 { ebx: BOOT_INFO as u32, ..registers }))
}
