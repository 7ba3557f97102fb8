//! DIV and IDIV in translated code; faults of theirs are met by the random programs.

use super::bench::*;
use iced_x86::code_asm::*;
use trimaran_testsuites::differential::kernel::at;

const ROUNDS: i32 = 200;

/// Both widths, both signs, divisors in registers (those of the dividend too) and in memory; flags stay.
#[test]
fn quotients_and_remainders() {
    let mut m = everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        a.mov(rbx, at::DATA)?;
        a.mov(r8, 0x0123_4567_89AB_CDEFu64)?;
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut head)?;
        a.mov(qword_ptr(rbx), rcx)?;
        a.mov(rax, r8)?;
        a.mov(edx, ecx)?;
        a.shr(edx, 1)?;
        a.div(rcx)?;
        a.add(r8, rdx)?;
        a.xor(r8, rax)?;
        a.cqo()?;
        a.idiv(qword_ptr(rbx))?;
        a.add(r8, rdx)?;
        a.mov(eax, r8d)?;
        a.neg(eax)?;
        a.cdq()?;
        a.cmp(eax, 7)?;
        a.idiv(dword_ptr(rbx))?;
        a.setg(r9b)?;
        a.add(r8, rdx)?;
        a.xor(edx, edx)?;
        a.or(eax, 1)?;
        a.div(eax)?;
        a.lea(r8, qword_ptr(r8 + rax * 2 + 3))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    assert_ne!(register(&mut m, 8), 0);
}

/// By -1, and of a dividend wider than its lower half: the interpreter's.
#[test]
fn signed_division_that_is_left_to_the_interpreter() {
    everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.mov(r9, -1i64)?;
        a.mov(r10d, 1000)?;
        a.set_label(&mut head)?;
        a.mov(eax, ecx)?;
        a.cqo()?;
        a.idiv(r9)?;
        a.add(r8, rax)?;
        a.mov(edx, 3)?;
        a.mov(eax, ecx)?;
        a.idiv(r10d)?;
        a.add(r8, rax)?;
        a.add(r8, rdx)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
}
