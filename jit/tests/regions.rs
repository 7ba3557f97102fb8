//! Snapshots of translated regions: guest instructions, and how many host instructions each back end makes of them.
//! A change of a back end shows here, for better or worse. `cargo x bless` writes them anew.
//!
//! The counts of the emitter are of x86-64 hosts, and so is this test.
#![cfg(target_arch = "x86_64")]

use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, Formatter, IcedError, IntelFormatter};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use trimaran_cpu::bare::Bare;
use trimaran_cpu::model::Model;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::CodeFence;
use trimaran_cpu::state::{attr, cr0, cr4, efer, gpr, seg};
use trimaran_cpu::{Vcpu, VcpuConfig};
use trimaran_jit::abi::{Job, Runtime};
use trimaran_jit::cranelift::Cranelift;
use trimaran_jit::emitter;
use trimaran_jit::region::{Limits, Region};
use trimaran_jit::slots::Slot;

const CODE: u64 = 0x1000;
const RAM: u64 = 0x10000;

/// A processor in 64-bit mode without paging.
fn vcpu() -> Vcpu {
    let mut v = Vcpu::new(VcpuConfig {
        id: 0,
        model: Arc::new(Model::default()),
        ram: Arc::new(Ram::anonymous(RAM)),
        bus: Arc::new(Bare::new(RAM)),
        fence: CodeFence::new(1),
    });
    let s = &mut v.state;
    s.cr0 = cr0::PE | cr0::ET | cr0::NE;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
    s.msr.efer = efer::LME | efer::LMA;
    s.seg[seg::CS].attributes |= attr::L;
    s.gpr[gpr::RIP] = CODE;
    v.state_loaded();
    v.mode_may_have_changed();
    v
}

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A loop that runs while RCX counts down.
macro_rules! looped {
    ($a:ident: $($body:tt)*) => {
        |$a: &mut CodeAssembler| {
            let mut head = $a.create_label();
            $a.set_label(&mut head)?;
            $($body)*
            $a.dec(rcx)?;
            $a.jne(head)?;
            $a.hlt()
        }
    };
}

#[rustfmt::skip]
const PROGRAMS: &[(&str, Program)] = &[
    ("add", |a| { a.add(rax, rbx)?; a.ret() }),
    ("add_memory", |a| { a.add(rax, qword_ptr(rbx + 8))?; a.ret() }),
    ("add_to_memory", |a| { a.add(qword_ptr(rbx + 8), rax)?; a.ret() }),
    ("adc_chain", |a| { a.add(rax, rbx)?; a.adc(rcx, rdx)?; a.adc(rsi, rdi)?; a.ret() }),
    ("sub_and_branch", |a| { let mut l = a.create_label(); a.sub(rax, rbx)?; a.jb(l)?; a.inc(rax)?; a.set_label(&mut l)?; a.ret() }),
    ("compare_and_set", |a| { a.cmp(rax, rbx)?; a.setl(cl)?; a.movzx(ecx, cl)?; a.ret() }),
    ("compare_and_move", |a| { a.cmp(eax, ebx)?; a.cmova(eax, ebx)?; a.ret() }),
    ("test_and_branch", |a| { let mut l = a.create_label(); a.test(rax, rax)?; a.je(l)?; a.mov(rbx, rax)?; a.set_label(&mut l)?; a.ret() }),
    ("inc_keeps_carry", |a| { a.cmp(rax, rbx)?; a.inc(rcx)?; a.adc(rdx, 0)?; a.ret() }),
    ("negate", |a| { a.neg(rax)?; a.sbb(rbx, rbx)?; a.ret() }),
    ("bytes", |a| { a.mov(al, bl)?; a.add(ah, cl)?; a.xor(dl, dh)?; a.ret() }),
    ("words", |a| { a.mov(ax, bx)?; a.add(cx, 7)?; a.ret() }),
    ("extensions", |a| { a.movzx(eax, bl)?; a.movsx(rcx, bx)?; a.movsxd(rdx, ebx)?; a.cdqe()?; a.ret() }),
    ("lea", |a| { a.lea(rax, qword_ptr(rbx + rcx * 4 + 16))?; a.lea(edx, dword_ptr(rsi - 1))?; a.ret() }),
    ("constants", |a| { a.mov(rax, 0x1234_5678_9ABC_DEF0u64)?; a.mov(ebx, 5)?; a.xor(ecx, ecx)?; a.ret() }),
    ("shift_by_constant", |a| { a.shl(rax, 3)?; a.shr(rbx, 5)?; a.sar(ecx, 1)?; a.ret() }),
    ("shift_by_register", |a| { a.shl(rax, cl)?; a.sar(rbx, cl)?; a.ret() }),
    ("rotate", |a| { a.rol(eax, 7)?; a.ror(rbx, 3)?; a.ret() }),
    ("multiply", |a| { a.imul_2(rax, rbx)?; a.imul_3(ecx, edx, 10)?; a.mul(rsi)?; a.ret() }),
    ("divide", |a| { a.xor(edx, edx)?; a.div(rcx)?; a.ret() }),
    ("bits", |a| { a.bt(rax, 5)?; a.setb(cl)?; a.bsf(rdx, rbx)?; a.popcnt(rsi, rdi)?; a.bswap(rax)?; a.ret() }),
    ("push_and_pop", |a| { a.push(rbx)?; a.push(rbp)?; a.pop(rbp)?; a.pop(rbx)?; a.ret() }),
    ("call_and_return", |a| { let mut l = a.create_label(); a.call(l)?; a.hlt()?; a.set_label(&mut l)?; a.mov(rax, rbx)?; a.ret() }),
    ("frame", |a| { a.push(rbp)?; a.mov(rbp, rsp)?; a.mov(rax, qword_ptr(rbp + 16))?; a.leave()?; a.ret() }),
    ("indirect_jump", |a| { a.jmp(rax) }),
    ("jump_through_table", |a| { a.jmp(qword_ptr(rbx + rax * 8)) }),
    ("rip_relative", |a| { a.mov(rax, qword_ptr(0x1800u64))?; a.lea(rbx, qword_ptr(0x1900u64))?; a.ret() }),
    ("gs_based", |a| { a.mov(rax, qword_ptr(0x28).gs())?; a.ret() }),
    ("structure", |a| { a.mov(eax, dword_ptr(rbx))?; a.add(eax, dword_ptr(rbx + 4))?; a.add(eax, dword_ptr(rbx + 8))?; a.mov(dword_ptr(rbx + 12), eax)?; a.ret() }),
    ("locked_add", |a| { a.lock().add(dword_ptr(rbx), eax)?; a.ret() }),
    ("exchange", |a| { a.xchg(qword_ptr(rbx), rax)?; a.ret() }),
    ("compare_exchange", |a| { a.lock().cmpxchg(qword_ptr(rbx), rcx)?; a.sete(al)?; a.ret() }),
    ("string", |a| { a.rep().movsq()?; a.ret() }),
    ("helper_between", |a| { a.mov(rax, rbx)?; a.cpuid()?; a.mov(rcx, rax)?; a.ret() }),
    ("loop_sum", looped!(a: a.add(rax, rcx)?;)),
    ("loop_load", looped!(a: a.add(rax, qword_ptr(rbx + rcx * 8))?;)),
    ("loop_store", looped!(a: a.mov(dword_ptr(rdi), eax)?; a.add(rdi, 4)?;)),
    ("loop_copy", looped!(a: a.mov(dl, byte_ptr(rsi))?; a.mov(byte_ptr(rdi), dl)?; a.inc(rsi)?; a.inc(rdi)?;)),
    ("vector_move", |a| { a.movups(xmm0, xmmword_ptr(rsi))?; a.movups(xmmword_ptr(rdi), xmm0)?; a.ret() }),
    ("vector_integer", |a| { a.paddd(xmm0, xmm1)?; a.pxor(xmm2, xmm0)?; a.pshufd(xmm3, xmm2, 0x1B)?; a.ret() }),
    ("float_scalar", |a| { a.movsd_2(xmm0, qword_ptr(rbx))?; a.mulsd(xmm0, xmm1)?; a.addsd(xmm2, xmm0)?; a.ret() }),
    ("loop_dot", looped!(a: a.movsd_2(xmm0, qword_ptr(rsi + rcx * 8))?; a.mulsd(xmm0, qword_ptr(rdi + rcx * 8))?; a.addsd(xmm1, xmm0)?;)),
    ("x87_expression", |a| { a.fld(qword_ptr(rbx))?; a.fmul(qword_ptr(rbx + 8))?; a.fadd(dword_ptr(rbx + 16))?; a.fstp(qword_ptr(rbx + 24))?; a.ret() }),
    ("x87_long_double", |a| { a.fld(tbyte_ptr(rbx))?; a.fld(tbyte_ptr(rbx + 16))?; a.faddp(st1, st0)?; a.fstp(tbyte_ptr(rbx))?; a.ret() }),
    ("x87_live_over_branch", |a| { let mut l = a.create_label(); a.fcomi(st0, st1)?; a.ja(l)?; a.fxch(st0, st1)?; a.set_label(&mut l)?; a.fstp(st1)?; a.ret() }),
    ("x87_round_down", |a| { a.fnstcw(word_ptr(rsp))?; a.fldcw(word_ptr(rsp + 2))?; a.fistp(dword_ptr(rbx))?; a.fldcw(word_ptr(rsp))?; a.ret() }),
    ("loop_x87_sum", looped!(a: a.fadd(qword_ptr(rsi + rcx * 8))?;)),
];

/// Addresses like real ones, so that code has its real length.
fn runtime() -> Runtime {
    const STUB: usize = 0x7F00_0000_1000;
    Runtime {
        trampoline: STUB,
        unlinked: STUB,
        serialize: STUB,
        run_helper: STUB,
        run_helpers: STUB,
        run_last: STUB,
        refill: STUB,
        settle_flags: STUB,
        refill_preserving: STUB,
        settle_preserving: STUB,
        miss: STUB,
        settle_keeping: STUB,
        arm_keeping: STUB,
    }
}

fn instructions(code: &[u8]) -> usize {
    Decoder::new(64, code, DecoderOptions::NONE).into_iter().count()
}

/// What is kept of a program.
fn snapshot(name: &str, program: Program) -> String {
    let mut a = CodeAssembler::new(64).expect("an assembler");
    program(&mut a).and_then(|()| a.assemble(CODE)).map_or_else(
        |error| panic!("{name}: {error}"),
        |bytes| {
            let mut text = String::new();
            let mut formatter = IntelFormatter::new();
            for x in Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).into_iter() {
                let mut line = String::new();
                formatter.format(&x, &mut line);
                let _ = writeln!(text, "{:x}  {line}", x.ip());
            }
            text + &counts(&bytes)
        },
    )
}

fn counts(bytes: &[u8]) -> String {
    let mut v = vcpu();
    v.ram.write(CODE, bytes);
    let mut out = String::new();
    for (back_end, trace) in [("emitter", true), ("cranelift", false)] {
        let first = v.block_at(CODE).expect("code in RAM");
        let limits = Limits { tree: trace, decode: true, ..Limits::LOOPS };
        let region = Region::form(&mut v, first, CODE, limits).expect("a region");
        let slots: Vec<Slot> = region.new_slots(0, 0);
        let runtime = runtime();
        let job = Job::new(&region, slots.as_ptr() as usize, &runtime);
        let code = if trace { emitter::compile(&job) } else { Cranelift::new().compile(&job) };
        let host = code
            .map_or_else(|why| why.to_string(), |c| format!("{} host instructions", instructions(&c.bytes)));
        let _ = writeln!(
            out,
            "{back_end}: {} blocks, {} instructions, {host}",
            region.blocks.len(),
            region.insns()
        );
    }
    out
}

#[test]
fn regions_are_as_they_were() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/regions");
    let bless = std::env::var_os("TRIMARAN_BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, program) in PROGRAMS {
        let path = folder.join(format!("{name}.txt"));
        let now = snapshot(name, *program);
        if bless {
            std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, &now)).expect("a file");
        } else if std::fs::read_to_string(&path).unwrap_or_default() != now {
            wrong.push(format!("{}: now\n{now}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}\n`cargo x bless` takes them as they are", wrong.join("\n"));
}
