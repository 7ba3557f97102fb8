//! Decoding and translating, by guest instruction.

use super::per_unit;
use criterion::Criterion;
use iced_x86::code_asm::*;
use std::time::Instant;
use trimaran_cpu::Vcpu;
use trimaran_cpu::engine::Engine;
use trimaran_jit::abi::{Code, Job, Runtime, Untranslatable};
use trimaran_jit::cranelift::Cranelift;
use trimaran_jit::region::{Limits, Region};
use trimaran_jit::slots::Slot;
use trimaran_testsuites::differential::kernel::at;
use trimaran_testsuites::flat::Flat;
use trimaran_testsuites::workbench;

/// A function as compilers write it: frame, structure, loop, branches, call.
fn function(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let (mut head, mut odd, mut next, mut out) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.push(rbx)?;
    a.sub(rsp, 24)?;
    a.mov(rbx, qword_ptr(rdi + 8))?;
    a.mov(ecx, dword_ptr(rdi + 16))?;
    a.xor(eax, eax)?;
    a.test(ecx, ecx)?;
    a.je(out)?;
    a.set_label(&mut head)?;
    a.movzx(edx, byte_ptr(rbx + rcx))?;
    a.imul_3(eax, eax, 31)?;
    a.test(dl, 1)?;
    a.jne(odd)?;
    a.add(eax, edx)?;
    a.jmp(next)?;
    a.set_label(&mut odd)?;
    a.lea(eax, dword_ptr(rax + rdx * 4 + 7))?;
    a.xor(dword_ptr(rdi + 20), eax)?;
    a.set_label(&mut next)?;
    a.dec(ecx)?;
    a.jne(head)?;
    a.set_label(&mut out)?;
    a.mov(qword_ptr(rbp - 24), rax)?;
    a.cmp(eax, dword_ptr(rdi + 24))?;
    a.setb(al)?;
    a.movzx(eax, al)?;
    a.add(rsp, 24)?;
    a.pop(rbx)?;
    a.pop(rbp)?;
    a.ret()
}

fn processor() -> Flat {
    let mut flat = Flat::new(1 << 18);
    for (address, bytes) in workbench::WORLD.images(&[]) {
        assert!(flat.ram.write(address, &bytes));
    }
    workbench::enter(&mut flat.vcpu, at::CODE, at::CODE);
    flat.vcpu.run(0);
    let mut a = CodeAssembler::new(64).expect("an assembler");
    let bytes = function(&mut a).and_then(|()| a.assemble(at::CODE)).expect("it assembles");
    assert!(flat.ram.write(at::CODE, &bytes));
    flat
}

fn region(v: &mut Vcpu, trace: bool) -> Region {
    let first = v.block_at(at::CODE).expect("a block");
    Region::form(v, first, at::CODE, Limits { tree: trace, decode: true, ..Limits::LOOPS }).expect("a region")
}

pub fn compile(c: &mut Criterion) {
    decode(c);
    let mut cranelift = Cranelift::new();
    #[cfg(target_arch = "x86_64")]
    translate(c, "emitter", true, trimaran_jit::emitter::compile);
    translate(c, "Cranelift", false, |job| cranelift.compile(job));
}

/// A block that another processor changes each time, so that it is decoded anew.
fn decode(c: &mut Criterion) {
    let mut flat = processor();
    let mut a = CodeAssembler::new(64).expect("an assembler");
    const INSNS: u64 = 40;
    for n in 0..INSNS / 4 {
        let n = n as i32;
        let some = |a: &mut CodeAssembler| {
            a.mov(rax, qword_ptr(rdi + n * 8))?;
            a.add(eax, n)?;
            a.lea(rcx, qword_ptr(rax + rdx * 4))?;
            a.cmp(rcx, rsi)
        };
        some(&mut a).expect("an instruction");
    }
    a.mov(edx, 0x1111_1111).and_then(|()| a.ret()).expect("an instruction");
    let bytes = a.assemble(at::CODE).expect("it assembles");
    assert!(flat.ram.write(at::CODE, &bytes));
    let last = at::CODE + bytes.len() as u64 - 2;
    let mut turn = 0u8;
    c.benchmark_group("decode, instruction").bench_function("interpreter", |b| {
        b.iter_custom(|wanted| {
            let blocks = wanted.div_ceil(INSNS + 2);
            let start = Instant::now();
            for _ in 0..blocks {
                turn = turn.wrapping_add(1);
                flat.ram.write(last, &[turn]);
                assert!(flat.vcpu.block_at(at::CODE).is_some());
            }
            per_unit(start.elapsed(), wanted, blocks * (INSNS + 2))
        });
    });
    let counters = flat.vcpu.counters();
    assert!(counters.insns_decoded >= counters.blocks_decoded * INSNS, "{counters:?}");
}

fn translate(
    c: &mut Criterion,
    name: &str,
    trace: bool,
    mut compile: impl FnMut(&Job) -> Result<Code, Untranslatable>,
) {
    const STUB: usize = 0x7F00_0000_1000;
    let runtime = Runtime {
        run_helper: STUB,
        run_helpers: STUB,
        run_last: STUB,
        unlinked: STUB,
        refill_preserving: STUB,
        settle_preserving: STUB,
        miss: STUB,
        settle_keeping: STUB,
        arm_keeping: STUB,
        serialize: STUB,
        ..Runtime::default()
    };
    let mut flat = processor();
    let region = region(&mut flat.vcpu, trace);
    let slots: Vec<Slot> = region.new_slots(0, 0);
    let job = Job::new(&region, slots.as_ptr() as usize, &runtime);
    let insns = region.insns() as u64;
    c.benchmark_group("translate, instruction").bench_function(name, |b| {
        b.iter_custom(|wanted| {
            let regions = wanted.div_ceil(insns);
            let start = Instant::now();
            for _ in 0..regions {
                compile(&job).expect("code");
            }
            per_unit(start.elapsed(), wanted, regions * insns)
        });
    });
}
