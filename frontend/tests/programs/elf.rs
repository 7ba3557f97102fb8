//! Kernels as test suites build them: ELF32 files with a multiboot header in their only segment.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

/// Where the segment is loaded, and how far it reaches.
pub const BASE: u32 = 0x40_0000;
const MEMORY_SIZE: u32 = 0x1_0000;
/// Code begins behind the multiboot header.
pub const ENTRY: u32 = BASE + 16;
const SEGMENT_AT: usize = 0x80;

/// Assembles for 16 or 32 bits at an address.
pub fn assemble(bits: u32, at: u32, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    f(&mut a).unwrap();
    a.assemble(u64::from(at)).unwrap()
}

/// Fills a file in which offset 0 stands at address `base`.
pub struct Image {
    pub base: u32,
    pub bytes: Vec<u8>,
}

impl Image {
    pub fn put(&mut self, at: u32, bytes: &[u8]) {
        let at = (at - self.base) as usize;
        if self.bytes.len() < at + bytes.len() {
            self.bytes.resize(at + bytes.len(), 0);
        }
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A segment that begins with the header of a multiboot kernel (Multiboot Specification, "The layout of Multiboot
/// header"), no flags set.
pub fn segment() -> Image {
    const MAGIC: u32 = 0x1BAD_B002;
    let mut image = Image { base: BASE, bytes: Vec::new() };
    image.put(BASE, &[MAGIC, 0, MAGIC.wrapping_neg()].map(u32::to_le_bytes).concat());
    image
}

/// The file: an ELF header, one program header, the segment. (System V ABI, "Object Files".)
pub fn elf32(segment: &Image) -> Vec<u8> {
    let half = |out: &mut Vec<u8>, values: &[u16]| out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let word = |out: &mut Vec<u8>, values: &[u32]| out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let mut file = b"\x7FELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, EM_386; version, entry, program headers at 52, no section headers, flags; sizes and counts.
    half(&mut file, &[2, 3]);
    word(&mut file, &[1, ENTRY, 52, 0, 0]);
    half(&mut file, &[52, 32, 1, 40, 0, 0]);
    // PT_LOAD: offset, addresses, sizes, readable, writable and executable, alignment.
    let size = segment.bytes.len() as u32;
    word(&mut file, &[1, SEGMENT_AT as u32, BASE, BASE, size, MEMORY_SIZE, 7, 16]);
    file.resize(SEGMENT_AT, 0);
    file.extend(&segment.bytes);
    file
}
