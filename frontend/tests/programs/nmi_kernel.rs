//! Two processors send the first one NMIs at the same time, again and again: each round has two, however they meet (SDM
//! Vol. 3, "Handling Multiple NMIs": one is handled, one is latched).

use crate::elf::assemble;
use crate::program::{APIC, GDT, HANDLERS, IDT_POINTER, Program, STACK, Step, VARIABLES, kernel};
use iced_x86::code_asm::*;

const ROUNDS: u32 = 200;

const NMI_HANDLER: u32 = HANDLERS;
const FLUSH_HANDLER: u32 = HANDLERS + 0x40;
const SECOND_PROCESSOR: u32 = HANDLERS + 0x80;
const TRAMPOLINE: u32 = HANDLERS + 0x200;
const START_PAGE: u32 = 0x8;
/// In the trampoline: limit and base of the GDT.
const POINTER: u32 = 0x40;
const NMI: u32 = 2;
const FLUSH: u32 = 0x44;

/// NMIs of this round; the flush that the second processor sends behind its NMI has come.
const RECEIVED: u32 = VARIABLES;
const FLUSHED: u32 = VARIABLES + 4;
/// How often each processor has come to the two places where they wait for each other.
const BEGUN: [u32; 2] = [VARIABLES + 8, VARIABLES + 12];
const ENDED: [u32; 2] = [VARIABLES + 16, VARIABLES + 20];

/// Counts itself, waits for the other.
fn meet(a: &mut CodeAssembler, place: [u32; 2], me: usize) -> Step {
    let mut again = a.create_label();
    a.inc(dword_ptr(place[me]))?;
    a.set_label(&mut again)?;
    a.pause()?;
    a.mov(eax, dword_ptr(place[me]))?;
    a.cmp(dword_ptr(place[1 - me]), eax)?;
    a.jne(again)
}

fn start_second(p: &mut Program) -> Step {
    p.set_gate(NMI, NMI_HANDLER)?;
    p.set_gate(FLUSH, FLUSH_HANDLER)?;
    p.a.mov(esi, TRAMPOLINE)?;
    p.a.mov(edi, START_PAGE << 12)?;
    p.a.mov(ecx, 0x80 / 4)?;
    p.a.rep().movsd()?;
    p.a.mov(dword_ptr(APIC + 0xF0), 0x1FF)?;
    p.a.mov(dword_ptr(APIC + 0x300), 0xC_4500)?;
    p.a.mov(dword_ptr(APIC + 0x300), 0xC_4600 | START_PAGE)?;
    p.a.mov(dword_ptr(APIC + 0x310), 0)
}

fn rounds(p: &mut Program) -> Step {
    let (mut round, mut wait) = (p.a.create_label(), p.a.create_label());
    p.a.sti()?;
    p.a.mov(ebx, ROUNDS)?;
    p.a.set_label(&mut round)?;
    p.a.mov(dword_ptr(FLUSHED), 0)?;
    p.a.mov(dword_ptr(RECEIVED), 0)?;
    meet(p.a, BEGUN, 0)?;
    p.a.mov(dword_ptr(APIC + 0x300), 0x4400)?;
    p.a.set_label(&mut wait)?;
    p.a.pause()?;
    p.a.cmp(dword_ptr(FLUSHED), 0)?;
    p.a.je(wait)?;
    p.expect(RECEIVED, 2)?;
    meet(p.a, ENDED, 0)?;
    p.a.dec(ebx)?;
    p.a.jne(round)
}

/// The ELF file.
pub fn build() -> Vec<u8> {
    let mut trampoline = assemble(16, 0, |a| {
        a.cli()?;
        a.mov(ax, cs)?;
        a.mov(ds, ax)?;
        // LGDT with 32 bits of base.
        a.db(&[0x66, 0x0F, 0x01, 0x16, POINTER as u8, 0])?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.db(&[0x66, 0xEA])?;
        a.dd(&[SECOND_PROCESSOR])?;
        a.dw(&[8])
    });
    trampoline.resize(POINTER as usize, 0x90);
    trampoline.extend(23u16.to_le_bytes());
    trampoline.extend(GDT.to_le_bytes());
    let second = assemble(32, SECOND_PROCESSOR, |a| {
        a.mov(eax, 0x10)?;
        [ds, es, ss].into_iter().try_for_each(|segment| a.mov(segment, eax))?;
        a.mov(esp, STACK + 0x1000)?;
        a.lidt(fword_ptr(IDT_POINTER))?;
        a.mov(dword_ptr(APIC + 0xF0), 0x1FF)?;
        a.mov(dword_ptr(APIC + 0x310), 0)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        meet(a, BEGUN, 1)?;
        a.mov(dword_ptr(APIC + 0x300), 0x4400)?;
        a.mov(dword_ptr(APIC + 0x300), 0x4000 | FLUSH)?;
        meet(a, ENDED, 1)?;
        a.jmp(again)
    });
    let nmi = assemble(32, NMI_HANDLER, |a| {
        a.inc(dword_ptr(RECEIVED))?;
        a.iretd()
    });
    let flush = assemble(32, FLUSH_HANDLER, |a| {
        a.mov(dword_ptr(FLUSHED), 1)?;
        a.mov(dword_ptr(APIC + 0xB0), 0)?;
        a.iretd()
    });
    let body = |p: &mut Program| {
        start_second(p)?;
        rounds(p)?;
        p.print("done\n")
    };
    let others =
        [(NMI_HANDLER, nmi), (FLUSH_HANDLER, flush), (SECOND_PROCESSOR, second), (TRAMPOLINE, trampoline)];
    kernel(&["done\n"], body, &others)
}
