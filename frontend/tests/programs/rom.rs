//! A test ROM of 64 or 128 KiB that replaces the BIOS: it needs nothing but a processor and low memory. It computes in
//! real, protected and virtual-8086 mode, writes POST codes to port 190h, text to port 3BCh, and halts.

use crate::elf::{Image, assemble};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// POST codes of a run without a mistake.
pub const POST_CODES: &str = "01\n02\n03\n04\n05\n06\nff\n";
pub const POST: u16 = 0x190;
pub const TEXT_PORT: u16 = 0x3BC;

/// Offsets in segment F000h.
const PROTECTED: u32 = 0x1000;
const HANDLER: u32 = 0x1800;
const V86: u32 = 0x2000;
const LEAVE: u32 = 0x3000;
const REAL_AGAIN: u32 = 0x3800;
const GDT_IMAGE: u32 = 0x4000;
const GDT_POINTER: u32 = 0x4100;
const IDT_POINTER: u32 = 0x4110;
const IDT: u32 = 0x4200;
const RESET: u32 = 0xFFF0;

/// In RAM.
const GDT: u32 = 0x600;
const TSS: u32 = 0x5000;
const STACK: u32 = 0x8000;
const RESULT: u32 = 0x9000;

/// Selectors: code of 32 bits, flat data, code and data as real mode wants them, TSS.
const CODE32: u16 = 0x08;
const FLAT: u16 = 0x10;
const CODE16: u16 = 0x18;
const DATA16: u16 = 0x20;
const TASK: u16 = 0x28;
const GP: u32 = 13;
const VM: u32 = 1 << 17;

type Step = Result<(), IcedError>;

fn post(a: &mut CodeAssembler, code: u32) -> Step {
    a.mov(edx, u32::from(POST))?;
    a.mov(al, code)?;
    a.out(dx, al)
}

/// Halts, with the last POST code standing, unless the flags say "equal".
fn halt_unless_equal(a: &mut CodeAssembler) -> Step {
    let mut equal = a.create_label();
    a.je(equal)?;
    a.cli()?;
    a.hlt()?;
    a.set_label(&mut equal)?;
    a.nop()
}

/// JMP FAR with an offset of 16 or 32 bits, in code of that size.
fn jump_far(a: &mut CodeAssembler, bits: u32, selector: u16, offset: u32) -> Step {
    let mut bytes = vec![0xEA];
    bytes.extend(&offset.to_le_bytes()[..bits as usize / 8]);
    bytes.extend(selector.to_le_bytes());
    a.db(&bytes)
}

/// A product, its remainder, and digits in BCD.
fn real_mode(a: &mut CodeAssembler) -> Step {
    a.cli()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, STACK)?;
    post(a, 1)?;
    a.mov(eax, 0x1234_5678)?;
    a.mov(ebx, 0x9ABC_DEF1u32)?;
    a.mul(ebx)?;
    a.add(eax, 0x55)?;
    a.adc(edx, 0)?;
    a.div(ebx)?;
    a.cmp(eax, 0x1234_5678)?;
    halt_unless_equal(a)?;
    a.cmp(edx, 0x55)?;
    halt_unless_equal(a)?;
    a.mov(ax, 0x0709)?;
    a.add(al, 8)?;
    a.aaa()?;
    a.cmp(ax, 0x0807)?;
    halt_unless_equal(a)?;
    post(a, 2)?;
    a.mov(dx, u32::from(TEXT_PORT))?;
    for letter in b"real\n" {
        a.mov(al, u32::from(*letter))?;
        a.out(dx, al)?;
    }
    a.mov(ax, cs)?;
    a.mov(ds, ax)?;
    a.mov(si, GDT_IMAGE)?;
    a.mov(di, GDT)?;
    a.mov(cx, 0x40)?;
    a.rep().movsb()?;
    a.lgdt(fword_ptr(GDT_POINTER))?;
    a.lidt(fword_ptr(IDT_POINTER))?;
    a.mov(eax, cr0)?;
    a.inc(eax)?;
    a.mov(cr0, eax)?;
    jump_far(a, 16, CODE32, PROTECTED)
}

/// The TSS by hand, and IRETD to virtual-8086 mode.
fn protected_mode(a: &mut CodeAssembler) -> Step {
    a.mov(eax, u32::from(FLAT))?;
    for segment in [ds, es, ss] {
        a.mov(segment, eax)?;
    }
    a.mov(esp, STACK)?;
    post(a, 3)?;
    a.mov(dword_ptr(TSS + 4), STACK)?;
    a.mov(dword_ptr(TSS + 8), u32::from(FLAT))?;
    a.mov(dword_ptr(TSS + 0x64), 0x68 << 16)?;
    a.mov(eax, u32::from(TASK))?;
    a.ltr(ax)?;
    a.mov(dword_ptr(RESULT), 0)?;
    // GS, FS, DS, ES, SS, ESP, EFLAGS, CS, EIP.
    for value in [0, 0, 0, 0, 0, 0x7000, VM | 2, 0xF000, V86] {
        a.push(value as i32)?;
    }
    a.iretd()
}

/// A sum over a string; then HLT, which only the monitor may execute.
fn virtual_8086(a: &mut CodeAssembler) -> Step {
    post(a, 4)?;
    a.xor(bx, bx)?;
    a.mov(cx, 16)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.add(bx, cx)?;
    a.loop_(again)?;
    a.mov(word_ptr(RESULT), bx)?;
    a.hlt()
}

/// #GP(0) out of virtual-8086 mode: error code, EIP, CS, EFLAGS, and a sum of 136.
fn handler(a: &mut CodeAssembler) -> Step {
    a.mov(eax, u32::from(FLAT))?;
    a.mov(ds, eax)?;
    post(a, 5)?;
    a.cmp(dword_ptr(esp), 0)?;
    halt_unless_equal(a)?;
    a.cmp(dword_ptr(esp + 8), 0xF000)?;
    halt_unless_equal(a)?;
    a.test(dword_ptr(esp + 12), VM)?;
    a.setne(al)?;
    a.cmp(al, 1)?;
    halt_unless_equal(a)?;
    a.cmp(dword_ptr(RESULT), 136)?;
    halt_unless_equal(a)?;
    jump_far(a, 32, CODE16, LEAVE)
}

fn leave_protected_mode(a: &mut CodeAssembler) -> Step {
    a.mov(ax, u32::from(DATA16))?;
    for segment in [ds, es, ss] {
        a.mov(segment, ax)?;
    }
    a.mov(eax, cr0)?;
    a.and(al, 0xFEu32 as i32)?;
    a.mov(cr0, eax)?;
    jump_far(a, 16, 0xF000, REAL_AGAIN)
}

fn real_mode_again(a: &mut CodeAssembler) -> Step {
    a.xor(ax, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, STACK)?;
    post(a, 6)?;
    a.mov(al, 0xFFu32)?;
    a.out(dx, al)?;
    a.cli()?;
    a.hlt()
}

/// The image, with its code in the last 64 KiB.
pub fn build(size: usize) -> Vec<u8> {
    let mut image = Image { base: 0, bytes: vec![0xFF; 0x1_0000] };
    for (bits, at, code) in [
        (16, 0, real_mode as fn(&mut CodeAssembler) -> Step),
        (32, PROTECTED, protected_mode),
        (32, HANDLER, handler),
        (16, V86, virtual_8086),
        (16, LEAVE, leave_protected_mode),
        (16, REAL_AGAIN, real_mode_again),
    ] {
        image.put(at, &assemble(bits, at, code));
    }
    image.put(RESET, &[0xEA, 0, 0, 0x00, 0xF0]);
    let gdt = [
        0,
        0x0040_9B0F_0000_FFFFu64,
        0x00CF_9300_0000_FFFF,
        0x0000_9B0F_0000_FFFF,
        0x0000_9300_0000_FFFF,
        // An I/O permission bitmap of zeros up to port 3FFh follows the TSS.
        0x0000_8900_0000_00E8 | u64::from(TSS) << 16,
    ];
    image.put(GDT_IMAGE, &gdt.map(u64::to_le_bytes).concat());
    let pointer = |limit: u16, base: u32| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    image.put(GDT_POINTER, &pointer(0x3F, GDT));
    image.put(IDT_POINTER, &pointer(0x7F, 0xF_0000 + IDT));
    let gate = [HANDLER | u32::from(CODE32) << 16, 0x8E00];
    image.put(IDT + GP * 8, &gate.map(u32::to_le_bytes).concat());
    let mut rom = vec![0xFF; size - image.bytes.len()];
    rom.extend(image.bytes);
    rom
}
