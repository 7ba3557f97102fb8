//! ELF executables as far as a boot loader reads them: segments and notes (System V ABI, "Object Files").

use super::bytes::Image;
use super::{BootError, GuestMemory, MemoryLayout, check_range};
use crate::layout::ONE_MIB;

const MAGIC: &[u8] = b"\x7FELF";
const ELFCLASS32: u8 = 1;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// More program headers than any kernel has: bounds the work for a damaged file.
const MAX_SEGMENTS: u64 = 128;

/// One program header.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProgramHeader {
    p_type: u32,
    p_offset: u64,
    p_vaddr: u64,
    p_paddr: u64,
    p_filesz: u64,
    p_memsz: u64,
    p_align: u64,
}

/// An ELF file's entry point and segments.
#[derive(Debug)]
pub(super) struct Elf<'a> {
    image: Image<'a>,
    e_entry: u64,
    headers: Vec<ProgramHeader>,
}

pub(super) fn is_elf(image: Image) -> bool {
    image.0.starts_with(MAGIC)
}

impl<'a> Elf<'a> {
    pub fn parse(image: Image<'a>) -> Result<Self, BootError> {
        let what = "ELF header";
        let bad = |field, value: u64, why| BootError::BadField { field, value, why };
        let wide = match image.u8(4, what)? {
            ELFCLASS32 => false,
            ELFCLASS64 => true,
            class => return Err(bad("EI_CLASS", class.into(), "is neither ELFCLASS32 nor ELFCLASS64")),
        };
        let data = image.u8(5, what)?;
        if data != ELFDATA2LSB {
            return Err(bad("EI_DATA", data.into(), "is not little-endian; build the kernel for x86"));
        }
        let e_type = image.u16(16, what)?;
        if !matches!(e_type, ET_EXEC | ET_DYN) {
            return Err(bad("e_type", e_type.into(), "is not an executable; link it first"));
        }
        let e_machine = image.u16(18, what)?;
        if !matches!(e_machine, EM_386 | EM_X86_64) {
            return Err(bad(
                "e_machine",
                e_machine.into(),
                "is not x86; build the kernel for i386 or x86-64",
            ));
        }
        let address = |at32: u64, at64: u64| match wide {
            false => image.u32(at32, what).map(u64::from),
            true => image.u64(at64, what),
        };
        let e_entry = address(24, 24)?;
        let e_phoff = address(28, 32)?;
        let e_phentsize = u64::from(image.u16(if wide { 54 } else { 42 }, what)?);
        let e_phnum = u64::from(image.u16(if wide { 56 } else { 44 }, what)?);
        let least = if wide { 56 } else { 32 };
        if e_phnum > MAX_SEGMENTS {
            return Err(bad("e_phnum", e_phnum, "is more than the 128 that are read; the file is damaged"));
        }
        if e_phnum > 0 && e_phentsize < least {
            return Err(bad("e_phentsize", e_phentsize, "is smaller than a program header"));
        }
        let table = Image(image.slice(e_phoff, e_phentsize * e_phnum, "program header table")?);
        let headers = (0..e_phnum)
            .map(|i| ProgramHeader::parse(table, i * e_phentsize, wide))
            .collect::<Result<_, _>>()?;
        Ok(Self { image, e_entry, headers })
    }

    /// Descriptor of the note with this owner and type.
    pub fn note(&self, owner: &[u8], n_type: u32) -> Result<Option<&'a [u8]>, BootError> {
        for header in self.headers.iter().filter(|header| header.p_type == PT_NOTE) {
            let notes = Image(self.image.slice(header.p_offset, header.p_filesz, "note segment")?);
            let align = if header.p_align == 8 { 8 } else { 4 };
            let mut at = 0;
            // A note that is cut off ends the search: other tools put padding there.
            while let (Ok(namesz), Ok(descsz), Ok(found)) =
                (notes.u32(at, "note"), notes.u32(at + 4, "note"), notes.u32(at + 8, "note"))
            {
                let desc_at = (at + 12 + u64::from(namesz)).next_multiple_of(align);
                let Ok(name) = notes.slice(at + 12, namesz.into(), "note name") else { break };
                let Ok(desc) = notes.slice(desc_at, descsz.into(), "note descriptor") else { break };
                if found == n_type && name == owner {
                    return Ok(Some(desc));
                }
                at = (desc_at + u64::from(descsz)).next_multiple_of(align);
            }
        }
        Ok(None)
    }

    /// Writes the segments to their physical addresses, from `low` on, clears what the file does not fill, and returns
    /// the end of the highest.
    pub fn load(&self, memory: &dyn GuestMemory, layout: &MemoryLayout, low: u64) -> Result<u64, BootError> {
        let loads = || self.headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz != 0);
        // Segments do not overlap, so together they must fit too; that also bounds the work.
        let total = loads().fold(0_u64, |total, header| total.saturating_add(header.p_memsz));
        check_range(layout, ONE_MIB, total, low)?;
        let mut end = None;
        for header in loads() {
            if header.p_filesz > header.p_memsz {
                let why = "is more than p_memsz; the file is damaged";
                return Err(BootError::BadField { field: "p_filesz", value: header.p_filesz, why });
            }
            let bytes = self.image.slice(header.p_offset, header.p_filesz, "segment")?;
            end = end.max(Some(check_range(layout, header.p_paddr, header.p_memsz, low)?));
            memory.write(header.p_paddr, bytes)?;
            clear(memory, header.p_paddr + header.p_filesz, header.p_memsz - header.p_filesz)?;
        }
        end.ok_or(BootError::NotAKernel { saw: "an ELF file without a segment to load".into() })
    }

    /// Whether a segment lies in this range of physical addresses.
    pub fn occupies(&self, start: u64, size: u64) -> bool {
        let loads = self.headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz != 0);
        loads
            .map(|h| (h.p_paddr, h.p_paddr.saturating_add(h.p_memsz)))
            .any(|(first, end)| first < start + size && start < end)
    }

    /// The entry point as a physical address: `e_entry` is a virtual one where the segments say so.
    pub fn entry(&self) -> Result<u32, BootError> {
        let inside = |header: &&ProgramHeader| {
            header.p_type == PT_LOAD
                && self.e_entry.checked_sub(header.p_vaddr).is_some_and(|offset| offset < header.p_memsz)
        };
        let entry = self.headers.iter().find(inside).map(|header| {
            // check_range() has seen p_paddr + p_memsz.
            (self.e_entry - header.p_vaddr).saturating_add(header.p_paddr)
        });
        let why = "lies in no segment that is loaded below 4 GiB; the file is damaged";
        entry.and_then(|entry| u32::try_from(entry).ok()).ok_or(BootError::BadField {
            field: "e_entry",
            value: self.e_entry,
            why,
        })
    }
}

impl ProgramHeader {
    fn parse(table: Image, at: u64, wide: bool) -> Result<Self, BootError> {
        let what = "program header";
        let word = |at32: u64, at64: u64| match wide {
            false => table.u32(at + at32, what).map(u64::from),
            true => table.u64(at + at64, what),
        };
        Ok(Self {
            p_type: table.u32(at, what)?,
            p_offset: word(4, 8)?,
            p_vaddr: word(8, 16)?,
            p_paddr: word(12, 24)?,
            p_filesz: word(16, 32)?,
            p_memsz: word(20, 40)?,
            p_align: word(28, 48)?,
        })
    }
}

/// Zeroes guest memory, which may be large, in pieces.
pub(super) fn clear(memory: &dyn GuestMemory, mut gpa: u64, mut length: u64) -> Result<(), BootError> {
    const ZEROS: [u8; 0x1000] = [0; 0x1000];
    while length > 0 {
        let piece = length.min(ZEROS.len() as u64);
        memory.write(gpa, &ZEROS[..piece as usize])?;
        gpa += piece;
        length -= piece;
    }
    Ok(())
}
