//! Kernels that stress one thing, as flat multiboot files: Trimaran and QEMU both start them by `-kernel`.
//!
//! Each prints `@@ NAME begin` on the first serial port, does its work, prints `@@ NAME end status=0` and writes to port
//! 0xF4, at which both emulators end.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

type Result<T = ()> = std::result::Result<T, IcedError>;

/// Where a kernel is loaded, and entered behind its header.
const LOAD: u32 = 0x10_0000;
const HEADER: u32 = 32;
/// Behind the kernel's own pages.
const STACK: u32 = 0x20_0000;
const DIRECTORIES: [u32; 2] = [0x21_0000, 0x21_1000];
const PAGE_TABLE: u32 = 0x21_2000;
const DATA: u32 = 0x22_0000;
/// On a page of its own.
const FUNCTION: u32 = 0x23_0000;

/// A name, and what is measured between the two lines.
pub struct Kernel {
    pub name: &'static str,
    /// Rounds: about a second of TCG's.
    pub rounds: u32,
    before: fn(&mut CodeAssembler) -> Result,
    round: fn(&mut CodeAssembler) -> Result,
}

pub const KERNELS: &[Kernel] = &[
    Kernel { name: "own-loop", rounds: 200_000, before: nothing, round: own_loop },
    Kernel { name: "new-function", rounds: 100_000, before: nothing, round: new_function },
    Kernel { name: "data-beside-code", rounds: 200_000, before: nothing, round: data_beside_code },
    Kernel { name: "cr3", rounds: 200_000, before: paging, round: switch },
];

fn nothing(_: &mut CodeAssembler) -> Result {
    Ok(())
}

/// Writes an immediate of the very loop that runs.
fn own_loop(a: &mut CodeAssembler) -> Result {
    let mut here = a.create_label();
    // A way to one's own address; what follows has one, three and one bytes up to the immediate.
    a.call(here)?;
    a.set_label(&mut here)?;
    a.pop(edi)?;
    a.mov(dword_ptr(edi + 5), ecx)?;
    a.mov(edx, 0)?;
    a.add(esi, edx)
}

/// Writes a function of eight additions, and calls it ten times: a translator at work.
fn new_function(a: &mut CodeAssembler) -> Result {
    let mut again = a.create_label();
    a.mov(edi, FUNCTION)?;
    for n in 0..8 {
        // ADD EAX, imm32
        a.mov(byte_ptr(edi + n * 5), 0x05)?;
        a.mov(dword_ptr(edi + n * 5 + 1), ecx)?;
    }
    a.mov(byte_ptr(edi + 40), 0xC3)?;
    a.mov(ebp, 10)?;
    a.set_label(&mut again)?;
    a.call(edi)?;
    a.dec(ebp)?;
    a.jne(again)
}

/// Counts in the middle of the loop: bytes of no instruction, next to some.
fn data_beside_code(a: &mut CodeAssembler) -> Result {
    let (mut here, mut over) = (a.create_label(), a.create_label());
    a.call(here)?;
    a.set_label(&mut here)?;
    a.pop(edi)?;
    // One byte, two, and the data.
    a.jmp(over)?;
    a.dd(&[0])?;
    a.set_label(&mut over)?;
    a.inc(dword_ptr(edi + 3))
}

/// Two directories of the same first 4 MiB in pages of 4 KiB.
fn paging(a: &mut CodeAssembler) -> Result {
    let mut fill = a.create_label();
    a.mov(edi, PAGE_TABLE)?;
    a.mov(eax, 3)?;
    a.set_label(&mut fill)?;
    a.mov(dword_ptr(edi), eax)?;
    a.add(edi, 4)?;
    a.add(eax, 0x1000)?;
    a.cmp(eax, 0x40_0003)?;
    a.jne(fill)?;
    for directory in DIRECTORIES {
        a.mov(dword_ptr(directory), PAGE_TABLE as i32 | 3)?;
    }
    a.mov(eax, DIRECTORIES[0])?;
    a.mov(cr3, eax)?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8000_0000u32 as i32)?;
    a.mov(cr0, eax)
}

/// Another address space; eight pages are touched in it, and a function called.
fn switch(a: &mut CodeAssembler) -> Result {
    let (mut function, mut over) = (a.create_label(), a.create_label());
    a.mov(eax, ecx)?;
    a.and(eax, 1)?;
    a.shl(eax, 12)?;
    a.add(eax, DIRECTORIES[0] as i32)?;
    a.mov(cr3, eax)?;
    for page in 0..8 {
        a.inc(dword_ptr(DATA + page * 0x1000))?;
    }
    a.call(function)?;
    a.jmp(over)?;
    a.set_label(&mut function)?;
    a.add(esi, eax)?;
    a.ret()?;
    a.set_label(&mut over)?;
    a.nop()
}

impl Kernel {
    /// The file.
    pub fn image(&self) -> Vec<u8> {
        let code = self.code().expect("the kernel assembles");
        let end = LOAD + HEADER + code.len() as u32;
        // Multiboot 0.6.96: flags bit 16, the addresses are in the header.
        let (magic, flags) = (0x1BAD_B002u32, 1u32 << 16);
        let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
        let header = [magic, flags, checksum, LOAD, LOAD, end, end, LOAD + HEADER];
        let mut image: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
        image.extend(code);
        image
    }

    fn code(&self) -> Result<Vec<u8>> {
        let mut a = CodeAssembler::new(32)?;
        let mut head = a.create_label();
        a.mov(esp, STACK)?;
        (self.before)(&mut a)?;
        print(&mut a, &format!("@@ {} begin\n", self.name))?;
        a.mov(ecx, self.rounds)?;
        a.set_label(&mut head)?;
        a.nop()?;
        (self.round)(&mut a)?;
        a.dec(ecx)?;
        a.jne(head)?;
        print(&mut a, &format!("@@ {} end status=0\n", self.name))?;
        a.xor(eax, eax)?;
        a.out(0xF4, al)?;
        a.hlt()?;
        a.assemble(u64::from(LOAD + HEADER))
    }
}

/// Writes text to COM1, as fast as it takes it.
fn print(a: &mut CodeAssembler, text: &str) -> Result {
    for byte in text.bytes() {
        let mut wait = a.create_label();
        a.mov(edx, 0x3FD)?;
        a.set_label(&mut wait)?;
        a.in_(al, dx)?;
        // Transmitter holding register empty.
        a.test(al, 0x20)?;
        a.je(wait)?;
        a.mov(edx, 0x3F8)?;
        a.mov(al, u32::from(byte))?;
        a.out(dx, al)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header is where it must be, and sums to zero.
    #[test]
    fn kernels_are_multiboot() {
        for kernel in KERNELS {
            let image = kernel.image();
            let word = |n: usize| u32::from_le_bytes(image[n * 4..n * 4 + 4].try_into().expect("four bytes"));
            assert_eq!(word(0), 0x1BAD_B002, "{}", kernel.name);
            assert_eq!(word(0).wrapping_add(word(1)).wrapping_add(word(2)), 0, "{}", kernel.name);
            assert_eq!(word(5) - word(4), image.len() as u32, "{}", kernel.name);
        }
    }
}
