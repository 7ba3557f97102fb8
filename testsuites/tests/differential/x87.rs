//! The x87 unit in translated code: what stays on the host's stack, and what others see of it.

use super::bench::*;
use iced_x86::code_asm::*;
use trimaran_cpu::state::gpr;
use trimaran_testsuites::differential::kernel::at;

const ROUNDS: i32 = 200;

/// A sum stays in ST(0) over a loop's branches, and a second value below it.
#[test]
fn a_sum_over_branches() {
    let mut m = everywhere(100_000, &|_| {}, &|a| {
        let (mut head, mut over) = (a.create_label(), a.create_label());
        a.mov(rbx, at::DATA)?;
        a.mov(dword_ptr(rbx), 3)?;
        a.fninit()?;
        a.fldz()?;
        a.fldz()?;
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut head)?;
        a.fiadd(dword_ptr(rbx))?;
        a.test(ecx, 3)?;
        a.jne(over)?;
        a.fxch(st0, st1)?;
        a.fadd_2(st0, st1)?;
        a.fxch(st0, st1)?;
        a.set_label(&mut over)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.fistp(dword_ptr(rbx + 8))?;
        a.mov(eax, dword_ptr(rbx + 8))?;
        a.fistp(qword_ptr(rbx + 16))?;
        a.hlt()
    });
    assert_eq!(register(&mut m, gpr::RAX), 3 * ROUNDS as u64);
}

/// What was popped is still in the register: FXSAVE and FNSAVE show it.
#[test]
fn popped_registers_keep_their_contents() {
    everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        a.mov(rbx, at::DATA)?;
        a.mov(ecx, ROUNDS)?;
        a.fninit()?;
        a.set_label(&mut head)?;
        a.mov(dword_ptr(rbx), ecx)?;
        a.fild(dword_ptr(rbx))?;
        a.fld1()?;
        a.fld(st1)?;
        a.faddp(st1, st0)?;
        a.fdivp(st1, st0)?;
        a.fstp(tbyte_ptr(rbx + 16))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.fxsave(ptr(rbx + 0x100))?;
        a.fnsave(ptr(rbx + 0x400))?;
        a.hlt()
    });
}

/// A region is entered with another TOP each time: its guard fails, and it must be made again with helpers.
#[test]
fn a_stack_that_turns() {
    let mut m = everywhere(100_000, &|_| {}, &|a| {
        let (mut head, mut add) = (a.create_label(), a.create_label());
        a.mov(rbx, at::DATA)?;
        a.mov(ecx, ROUNDS)?;
        a.fninit()?;
        a.fld1()?;
        a.fld1()?;
        a.set_label(&mut head)?;
        a.call(add)?;
        // All registers one place on: what was ST(0) is pushed again.
        a.fstp(tbyte_ptr(rbx))?;
        a.fstp(tbyte_ptr(rbx + 16))?;
        a.fincstp()?;
        a.fld(tbyte_ptr(rbx + 16))?;
        a.fld(tbyte_ptr(rbx))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.fistp(qword_ptr(rbx + 32))?;
        a.mov(rax, qword_ptr(rbx + 32))?;
        a.hlt()?;
        a.set_label(&mut add)?;
        a.fadd_2(st0, st1)?;
        a.ret()
    });
    assert_eq!(register(&mut m, gpr::RAX), ROUNDS as u64 + 1);
}

/// Rounding towards zero for a conversion, as compilers had it before FISTTP; and a precision that rounds.
#[test]
fn control_words_change() {
    let mut m = everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        a.mov(rbx, at::DATA)?;
        a.mov(ecx, ROUNDS)?;
        a.mov(dword_ptr(rbx + 8), 7)?;
        a.fninit()?;
        a.set_label(&mut head)?;
        a.fnstcw(word_ptr(rbx))?;
        a.mov(ax, word_ptr(rbx))?;
        a.or(ah, 0xC)?;
        a.mov(word_ptr(rbx + 2), ax)?;
        a.and(ah, 0xFC)?;
        a.mov(word_ptr(rbx + 4), ax)?;
        a.fild(dword_ptr(rbx + 8))?;
        a.fidiv(word_ptr(rbx + 24))?;
        a.fldcw(word_ptr(rbx + 4))?;
        a.mov(dword_ptr(rbx + 24), ecx)?;
        a.fidivr(dword_ptr(rbx + 24))?;
        a.fldcw(word_ptr(rbx + 2))?;
        a.fistp(dword_ptr(rbx + 12))?;
        a.fnstsw(ax)?;
        a.add(esi, eax)?;
        a.fldcw(word_ptr(rbx))?;
        a.add(edi, dword_ptr(rbx + 12))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    assert_ne!(register(&mut m, gpr::RDI), 0);
}
