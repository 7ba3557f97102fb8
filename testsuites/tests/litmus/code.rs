//! One processor writes code that another runs.

use super::guest::*;
use iced_x86::code_asm::*;
use trimaran_testsuites::flat::Machine;
use trimaran_testsuites::workbench;

const TIMES: u32 = 1000;
/// MOV EAX, imm32 with the immediate aligned; RET.
const FUNCTION: u64 = 0x18_0003;
const PATTERN: u32 = 0x0101_0101;
const FLAG: i32 = FLAGS as i32;
const STALE: i32 = FLAGS as i32 + 64;
const OLDER: i32 = FLAGS as i32 + 128;
const CALLS: i32 = FLAGS as i32 + 192;

/// Writes ever larger numbers into the function, and says so.
fn writer(a: &mut CodeAssembler) -> Result {
    let (mut head, mut rest) = (a.create_label(), a.create_label());
    a.mov(ecx, 1)?;
    a.set_label(&mut head)?;
    // No two bytes of following numbers are the same: half of one and half of another would show.
    a.imul_3(eax, ecx, PATTERN as i32)?;
    a.mov(dword_ptr(FUNCTION as i32 + 1), eax)?;
    a.mov(dword_ptr(FLAG), ecx)?;
    a.mov(edx, ecx)?;
    a.and(edx, 63)?;
    a.inc(edx)?;
    a.set_label(&mut rest)?;
    a.pause()?;
    a.dec(edx)?;
    a.jne(rest)?;
    a.inc(ecx)?;
    a.cmp(ecx, TIMES)?;
    a.jbe(head)?;
    a.hlt()
}

/// Calls the function; `serialise`: as the manual's protocol has it, with CPUID between the flag and the call.
fn caller(a: &mut CodeAssembler, serialise: bool) -> Result {
    let (mut head, mut good, mut same) = (a.create_label(), a.create_label(), a.create_label());
    a.xor(r9d, r9d)?;
    a.set_label(&mut head)?;
    a.mov(r8d, dword_ptr(FLAG))?;
    if serialise {
        a.xor(eax, eax)?;
        a.cpuid()?;
    }
    a.call(FUNCTION)?;
    a.inc(dword_ptr(CALLS))?;
    // The number out of the pattern.
    a.imul_3(eax, eax, inverse(PATTERN) as i32)?;
    a.cmp(eax, r9d)?;
    a.jae(same)?;
    a.inc(dword_ptr(OLDER))?;
    a.set_label(&mut same)?;
    a.mov(r9d, eax)?;
    if serialise {
        a.cmp(eax, r8d)?;
        a.jae(good)?;
        a.inc(dword_ptr(STALE))?;
    }
    a.set_label(&mut good)?;
    a.cmp(r8d, TIMES)?;
    a.jne(head)?;
    a.hlt()
}

/// The number that gives 1 modulo 2^32 when multiplied with this odd one (Newton's method).
fn inverse(odd: u32) -> u32 {
    (0..5).fold(odd, |x, _| x.wrapping_mul(2u32.wrapping_sub(odd.wrapping_mul(x))))
}

fn prepare(m: &Machine) {
    workbench::write(m, FUNCTION, &|a| a.mov(eax, 0).and_then(|()| a.ret()));
}

/// After the flag and a serialising instruction only the new code runs.
#[test]
fn cross_modifying_code() {
    everywhere("cross-modifying code", &[&writer, &|a| caller(a, true)], &prepare, &mut |engine, m| {
        assert_eq!(word(m, STALE as u64), 0, "{engine}: calls of code older than the flag");
        assert_eq!(word(m, OLDER as u64), 0, "{engine}: calls of code older than before");
        assert!(word(m, CALLS as u64) > 0, "{engine}");
    });
}

/// Without, old code may still run; but an aligned immediate changes as one, and never back.
#[test]
fn an_immediate_changes_as_one() {
    everywhere("an immediate", &[&writer, &|a| caller(a, false)], &prepare, &mut |engine, m| {
        assert_eq!(word(m, OLDER as u64), 0, "{engine}: torn or older immediates");
        assert!(word(m, CALLS as u64) > 0, "{engine}");
    });
}
