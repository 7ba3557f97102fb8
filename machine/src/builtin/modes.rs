//! From real mode to long mode. Each mode prints a line by itself: there is no firmware to ask.

use super::Asm;
use super::data::Data;
use super::places::*;
use crate::layout::COM1;
use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction};

/// What each mode leaves in [`var::MARKS`]; the checksum begins with them.
pub const MARKS: [u32; 3] = [0x4C41_4552, 0x544F_5250, 0x474E_4F4C];

const CODE32: u16 = 0x08;
const DATA32: u16 = 0x10;
const CODE64: u16 = 0x18;
/// Null, flat 32-bit code, flat data, 64-bit code.
const GDT: [u64; 4] = [0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_9B00_0000_FFFF];

/// White on blue.
const ATTRIBUTE: u32 = 0x1F;

/// Sends al to COM1; dx and ah are lost. The same text serves every mode.
pub fn send(a: &mut CodeAssembler) -> Asm {
    let mut wait = a.create_label();
    a.mov(ah, al)?;
    a.mov(dx, u32::from(COM1) + 5)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(wait)?;
    a.mov(dx, u32::from(COM1))?;
    a.mov(al, ah)?;
    a.out(dx, al)
}

/// Prints the string at DS:SI to ES:DI, and on COM1, with a line's end there. The same text serves every mode.
pub fn print(a: &mut CodeAssembler, on_screen: bool) -> Asm {
    let (mut next, mut end) = (a.create_label(), a.create_label());
    a.set_label(&mut next)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.jz(end)?;
    if on_screen {
        a.stosb()?;
        a.mov(bl, al)?;
        a.mov(al, ATTRIBUTE)?;
        a.stosb()?;
        a.mov(al, bl)?;
    }
    send(a)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    for byte in *b"\r\n" {
        a.mov(al, u32::from(byte))?;
        send(a)?;
    }
    Ok(())
}

fn far_jump(a: &mut CodeAssembler, code: Code, selector: u16, target: u64) -> Asm {
    a.add_instruction(Instruction::with_far_branch(code, selector, target as u32)?)
}

/// 16-bit code at 0000:8000.
pub fn real(data: &mut Data) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let gdt = data.dwords(&GDT.map(|d| [d as u32, (d >> 32) as u32]).concat());
    let gdtr: Vec<u8> =
        (GDT.len() as u16 * 8 - 1).to_le_bytes().into_iter().chain(gdt.to_le_bytes()).collect();
    let gdtr = data.put(8, &gdtr);

    a.cli()?;
    a.cld()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, STACK_TOP)?;
    // COM1: no interrupts, 115200 baud, 8 bits, FIFOs on, DTR and RTS.
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        a.mov(dx, u32::from(COM1) + register)?;
        a.mov(al, value)?;
        a.out(dx, al)?;
    }
    // The text screen: no cursor (bit 5 of CRTC register 0Ah), blue.
    a.mov(dx, 0x3D4)?;
    a.mov(ax, 0x200A)?;
    a.out(dx, ax)?;
    a.mov(ax, TEXT_MEMORY >> 4)?;
    a.mov(es, ax)?;
    a.xor(di, di)?;
    a.mov(ax, ATTRIBUTE << 8 | u32::from(b' '))?;
    a.mov(cx, 80 * 25)?;
    a.rep().stosw()?;
    for (row, text) in [
        (1, "  Trimaran's built-in guest"),
        (3, "  real mode: 16-bit code at 0000:8000, started without firmware"),
    ] {
        a.mov(si, data.text(text))?;
        a.mov(di, row * 160)?;
        print(&mut a, true)?;
    }
    a.mov(dword_ptr(u64::from(VARIABLES) + var::MARKS as u64), MARKS[0])?;
    // A20 by port 92h, as fast boards have it.
    a.in_(al, 0x92)?;
    a.or(al, 2)?;
    a.and(al, 0xFE)?;
    a.out(0x92, al)?;
    a.lgdt(ptr(u64::from(gdtr)))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    far_jump(&mut a, Code::Jmp_ptr1632, CODE32, PROTECTED_CODE)?;
    a.assemble(REAL_CODE)
}

/// 32-bit code: flat segments, then page tables and long mode.
pub fn protected(data: &mut Data) -> Result<Vec<u8>, IcedError> {
    const PRESENT_WRITE: u32 = 3;
    const LARGE_PAGE: u32 = 0x80;
    let mut a = CodeAssembler::new(32)?;
    a.mov(eax, u32::from(DATA32))?;
    for segment in [ds, es, ss, fs, gs] {
        a.mov(segment, eax)?;
    }
    a.mov(esp, STACK_TOP)?;
    a.mov(esi, data.text("  protected mode: 32-bit code, flat segments from a GDT of its own"))?;
    a.mov(edi, TEXT_MEMORY + 4 * 160)?;
    print(&mut a, true)?;
    a.mov(dword_ptr(VARIABLES + var::MARKS as u32 + 4), MARKS[1])?;

    // PML4, PDPT and four page directories: 4 GiB, each address its own.
    a.mov(edi, PAGE_TABLES)?;
    a.xor(eax, eax)?;
    a.mov(ecx, 6 * 1024)?;
    a.rep().stosd()?;
    let (pdpt, directories) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    a.mov(dword_ptr(PAGE_TABLES), pdpt | PRESENT_WRITE)?;
    for n in 0..4 {
        a.mov(dword_ptr(pdpt + n * 8), (directories + n * 0x1000) | PRESENT_WRITE)?;
    }
    a.mov(edi, directories)?;
    a.mov(eax, LARGE_PAGE | PRESENT_WRITE)?;
    a.mov(ecx, 4 * 512)?;
    let mut entry = a.create_label();
    a.set_label(&mut entry)?;
    a.mov(dword_ptr(edi), eax)?;
    a.add(edi, 8)?;
    a.add(eax, 2 << 20)?;
    a.dec(ecx)?;
    a.jnz(entry)?;

    // CR4: PAE, OSFXSR, OSXMMEXCPT.
    a.mov(eax, 0x620)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PAGE_TABLES)?;
    a.mov(cr3, eax)?;
    // EFER.LME.
    a.mov(ecx, 0xC000_0080u32)?;
    a.rdmsr()?;
    a.or(eax, 0x100)?;
    a.wrmsr()?;
    // CR0: PG, NE, ET, MP, PE.
    a.mov(eax, 0x8000_0033u32)?;
    a.mov(cr0, eax)?;
    far_jump(&mut a, Code::Jmp_ptr1632, CODE64, LONG_CODE)?;
    a.assemble(PROTECTED_CODE)
}
