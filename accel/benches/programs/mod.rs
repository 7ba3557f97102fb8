//! Programs for engines to be compared with: functions (RDI: their data, RSI: rounds) that return a checksum.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

type Code = Result<Vec<u8>, IcedError>;

/// A name, and what makes the code.
type Program = (&'static str, fn() -> Code);

/// A round takes some microseconds natively.
pub const PROGRAMS: [Program; 5] =
    [("hash", hash), ("sieve", sieve), ("list", list), ("fib", fib), ("dot", dot)];

/// `round` for RSI times; what it leaves in R9 is the result.
fn rounds(
    before: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    round: fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Code {
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    a.xor(r9, r9)?;
    before(&mut a)?;
    a.set_label(&mut again)?;
    round(&mut a)?;
    a.dec(rsi)?;
    a.jnz(again)?;
    a.mov(rax, r9)?;
    a.ret()?;
    a.assemble(0)
}

fn nothing(_: &mut CodeAssembler) -> Result<(), IcedError> {
    Ok(())
}

/// Multiply and rotate: registers only.
fn hash() -> Code {
    rounds(nothing, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 2000)?;
        a.set_label(&mut again)?;
        a.imul_3(rdx, rcx, 0x5BD1_E995)?;
        a.xor(r9, rdx)?;
        a.rol(r9, 13)?;
        a.lea(r9, qword_ptr(r9 + r9 * 4 + 7))?;
        a.dec(ecx)?;
        a.jnz(again)
    })
}

/// Primes below 8192 by bytes.
fn sieve() -> Code {
    rounds(nothing, |a| {
        let [mut clear, mut next, mut strike, mut prime] = [(); 4].map(|()| a.create_label());
        a.mov(ecx, 1024)?;
        a.xor(eax, eax)?;
        a.set_label(&mut clear)?;
        a.mov(qword_ptr(rdi + rcx * 8 - 8), rax)?;
        a.dec(ecx)?;
        a.jnz(clear)?;
        a.mov(ecx, 2)?;
        a.set_label(&mut next)?;
        a.cmp(byte_ptr(rdi + rcx), 0)?;
        a.jne(prime)?;
        a.inc(r9)?;
        a.lea(edx, dword_ptr(rcx + rcx))?;
        a.set_label(&mut strike)?;
        a.cmp(edx, 8192)?;
        a.jae(prime)?;
        a.mov(byte_ptr(rdi + rdx), 1)?;
        a.add(edx, ecx)?;
        a.jmp(strike)?;
        a.set_label(&mut prime)?;
        a.inc(ecx)?;
        a.cmp(ecx, 8192)?;
        a.jb(next)
    })
}

/// A linked list of 4096 nodes in an order that jumps about.
fn list() -> Code {
    rounds(
        |a| {
            let mut again = a.create_label();
            a.xor(ecx, ecx)?;
            a.set_label(&mut again)?;
            a.imul_3(edx, ecx, 1229)?;
            a.imul_3(r8d, ecx, 1229)?;
            a.add(r8d, 1229)?;
            a.and(edx, 4095)?;
            a.and(r8d, 4095)?;
            a.shl(rdx, 4)?;
            a.shl(r8, 4)?;
            a.add(r8, rdi)?;
            a.mov(qword_ptr(rdi + rdx), r8)?;
            a.mov(qword_ptr(rdi + rdx + 8), rcx)?;
            a.inc(ecx)?;
            a.cmp(ecx, 4096)?;
            a.jb(again)
        },
        |a| {
            let mut again = a.create_label();
            a.mov(ecx, 4096)?;
            a.mov(rdx, rdi)?;
            a.set_label(&mut again)?;
            a.add(r9, qword_ptr(rdx + 8))?;
            a.mov(rdx, qword_ptr(rdx))?;
            a.dec(ecx)?;
            a.jnz(again)
        },
    )
}

/// Calls and returns.
fn fib() -> Code {
    rounds(nothing, |a| {
        let [mut function, mut small, mut over] = [(); 3].map(|()| a.create_label());
        a.mov(edx, 16)?;
        a.call(function)?;
        a.add(r9, rax)?;
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.mov(eax, edx)?;
        a.cmp(edx, 2)?;
        a.jb(small)?;
        a.push(rdx)?;
        a.dec(edx)?;
        a.call(function)?;
        a.pop(rdx)?;
        a.push(rax)?;
        a.sub(edx, 2)?;
        a.call(function)?;
        a.pop(rcx)?;
        a.add(rax, rcx)?;
        a.set_label(&mut small)?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.nop()
    })
}

/// A dot product of doubles, two at a time.
fn dot() -> Code {
    rounds(
        |a| {
            let mut again = a.create_label();
            a.xor(ecx, ecx)?;
            a.set_label(&mut again)?;
            a.cvtsi2sd(xmm0, ecx)?;
            a.movsd_2(qword_ptr(rdi + rcx * 8), xmm0)?;
            a.inc(ecx)?;
            a.cmp(ecx, 4096)?;
            a.jb(again)
        },
        |a| {
            let mut again = a.create_label();
            a.xorpd(xmm1, xmm1)?;
            a.xor(ecx, ecx)?;
            a.set_label(&mut again)?;
            a.movapd(xmm0, xmmword_ptr(rdi + rcx * 8))?;
            a.mulpd(xmm0, xmm0)?;
            a.addpd(xmm1, xmm0)?;
            a.add(ecx, 2)?;
            a.cmp(ecx, 4096)?;
            a.jb(again)?;
            a.cvttsd2si(rax, xmm1)?;
            a.add(r9, rax)
        },
    )
}
