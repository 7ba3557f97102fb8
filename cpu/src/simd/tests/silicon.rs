//! Against silicon: every instruction of this unit, in every operand form that the encoder accepts, runs on the host
//! and on a vCPU with the same operands; registers, memory, flags and MXCSR must agree.
//!
//! Native code needs a page that is executable, and calls into it: the only reason for `unsafe` here. All
//! exceptions are masked on the host side, so nothing can trap; the code touches the context and the buffer
//! that it is given, and restores MXCSR and the x87 tags before it returns.
#![allow(unsafe_code)]

use super::{BUFFER, operand, random_mxcsr, vcpu};
use crate::Vcpu;
use crate::blocks::BlockKey;
use crate::decode;
use crate::model::Features;
use crate::simd::handler;
use crate::state::{RFlags, gpr};
use iced_x86::code_asm::*;
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic as M, OpKind, Register};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What an instruction may read and write.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Context {
    xmm: [u128; 2],
    mm: [u64; 2],
    rax: u64,
    rcx: u64,
    rdx: u64,
    flags: u64,
    mxcsr: u32,
    rust_mxcsr: u32,
}

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Buffer([u8; 64]);

/// A page of code.
struct Native(*mut u8);

unsafe extern "C" {
    fn mmap(address: *mut u8, len: usize, protection: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
}

impl Native {
    fn new() -> Self {
        // SAFETY: a fresh private anonymous mapping (protection 7, flags 0x22 as Linux has them).
        let page = unsafe { mmap(std::ptr::null_mut(), 4096, 7, 0x22, -1, 0) };
        assert!(page as isize != -1, "no executable page");
        Native(page)
    }

    /// Puts an instruction between code that loads and stores the context.
    fn build(&self, bytes: &[u8]) -> Result<(), IcedError> {
        let mut a = CodeAssembler::new(64)?;
        a.mov(r8, rdi)?;
        a.mov(rdi, rsi)?;
        a.movups(xmm0, xmmword_ptr(r8))?;
        a.movups(xmm1, xmmword_ptr(r8 + 16))?;
        a.movq(mm0, qword_ptr(r8 + 32))?;
        a.movq(mm1, qword_ptr(r8 + 40))?;
        a.mov(rax, qword_ptr(r8 + 48))?;
        a.mov(rcx, qword_ptr(r8 + 56))?;
        a.mov(rdx, qword_ptr(r8 + 64))?;
        a.push(qword_ptr(r8 + 72))?;
        a.ldmxcsr(dword_ptr(r8 + 80))?;
        a.popfq()?;
        a.db(bytes)?;
        a.pushfq()?;
        a.pop(qword_ptr(r8 + 72))?;
        a.stmxcsr(dword_ptr(r8 + 80))?;
        a.movups(xmmword_ptr(r8), xmm0)?;
        a.movups(xmmword_ptr(r8 + 16), xmm1)?;
        a.movq(qword_ptr(r8 + 32), mm0)?;
        a.movq(qword_ptr(r8 + 40), mm1)?;
        a.mov(qword_ptr(r8 + 48), rax)?;
        a.mov(qword_ptr(r8 + 56), rcx)?;
        a.mov(qword_ptr(r8 + 64), rdx)?;
        a.emms()?;
        a.ldmxcsr(dword_ptr(r8 + 84))?;
        a.ret()?;
        let code = a.assemble(0)?;
        assert!(code.len() <= 4096);
        // SAFETY: the page is ours, writable, and nobody executes it now.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.0, code.len()) };
        Ok(())
    }

    fn run(&self, context: &mut Context, buffer: &mut Buffer) {
        // SAFETY: `build` put a function of this signature there; see the head of this file.
        unsafe {
            let f: extern "C" fn(*mut Context, *mut Buffer) = std::mem::transmute(self.0);
            f(context, buffer);
        }
    }
}

/// Every form of every instruction that `simd::handler` knows and the encoder accepts, as bytes.
fn forms(rng: &mut SmallRng) -> Vec<(Instruction, Vec<u8>)> {
    use Register::{CL, CX, EAX, ECX, MM0, MM1, RAX, RCX, RSI, XMM0, XMM1};
    let first = [Some(XMM0), Some(MM0), Some(EAX), Some(RAX), None];
    let second = [Some(XMM1), Some(MM1), Some(ECX), Some(RCX), Some(CL), Some(CX), None];
    let mut out = Vec::new();
    let features = Features::all();
    for code in Code::values() {
        let mut probe = Instruction::default();
        probe.set_code(code);
        if !features.allows(&probe) || state_saving(probe.mnemonic()) {
            continue;
        }
        let mut found = |x: &Instruction| {
            let mut encoder = Encoder::new(64);
            if encoder.encode(x, 0).is_ok() {
                let bytes = encoder.take_buffer();
                let y = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
                let v = vcpu();
                let mut i = decode::lower(&y, BlockKey::of(&v.state), &features);
                if handler(&y, &mut i).is_some() && y.mnemonic() == x.mnemonic() {
                    out.push((y, bytes));
                }
            }
        };
        let place = |x: &mut Instruction, n: u32, r: Option<Register>| match r {
            Some(r) => {
                x.set_op_kind(n, OpKind::Register);
                x.set_op_register(n, r);
            }
            None if matches!(x.mnemonic(), M::Maskmovdqu | M::Maskmovq) => {
                x.set_op_kind(n, OpKind::MemorySegRDI);
            }
            None => {
                x.set_op_kind(n, OpKind::Memory);
                x.set_memory_base(RSI);
            }
        };
        for a in first {
            let mut x = probe;
            if x.op_count() < 2 {
                continue;
            }
            place(&mut x, 0, a);
            if x.op_count() == 2 {
                for _ in 0..6 {
                    let mut x = x;
                    x.set_op_kind(1, OpKind::Immediate8);
                    x.set_immediate8(rng.random::<u8>() >> rng.random_range(0..6));
                    found(&x);
                }
            }
            for b in second {
                let mut x = x;
                place(&mut x, 1, b);
                if x.op_count() == 2 {
                    found(&x);
                    continue;
                }
                place(&mut x, 2, Some(XMM0));
                found(&x);
                place(&mut x, 2, Some(XMM1));
                found(&x);
                place(&mut x, 2, Some(MM0));
                found(&x);
                for _ in 0..40 {
                    x.set_op_kind(2, OpKind::Immediate8);
                    x.set_immediate8(rng.random::<u8>());
                    found(&x);
                }
            }
        }
    }
    out
}

fn state_saving(m: M) -> bool {
    matches!(m, M::Ldmxcsr | M::Stmxcsr | M::Emms)
        || format!("{m:?}").contains("save")
        || format!("{m:?}").contains("rstor")
}

/// The same on a vCPU.
fn emulate(v: &mut Vcpu, x: &Instruction, c: &Context, buffer: &Buffer) -> (Context, Buffer) {
    for n in 0..2 {
        v.set_xmm(n as u8, c.xmm[n]);
        v.set_mm(n as u8, c.mm[n]);
    }
    let g = &mut v.state.gpr;
    (g[gpr::RAX], g[gpr::RCX], g[gpr::RDX], g[gpr::RSI], g[gpr::RDI]) = (c.rax, c.rcx, c.rdx, BUFFER, BUFFER);
    v.state.mxcsr = c.mxcsr;
    v.set_rflags(RFlags::from_bits_retain(c.flags));
    v.ram.write(BUFFER, &buffer.0);
    let i = decode::lower(x, BlockKey::of(&v.state), &v.model.clone().features);
    let result = (i.run)(v, &i);
    assert!(result.is_ok(), "{x:?}: {result:?} {:?}", v.fault);
    let mut after = *buffer;
    v.ram.read(BUFFER, &mut after.0);
    let g = &v.state.gpr;
    let context = Context {
        xmm: [v.xmm(0), v.xmm(1)],
        mm: [v.mm(0), v.mm(1)],
        rax: g[gpr::RAX],
        rcx: g[gpr::RCX],
        rdx: g[gpr::RDX],
        flags: v.rflags().bits() & RFlags::STATUS.bits(),
        mxcsr: v.state.mxcsr,
        rust_mxcsr: c.rust_mxcsr,
    };
    (context, after)
}

#[test]
fn agrees_with_silicon() {
    let mut rng = SmallRng::seed_from_u64(1);
    let (native, mut v) = (Native::new(), vcpu());
    let forms = forms(&mut rng);
    let mut failures: Vec<(M, usize, String)> = Vec::new();
    for (x, bytes) in &forms {
        native.build(bytes).expect("assembles");
        let rounds = if x.op_count() == 3 { 60 } else { 1500 };
        for _ in 0..rounds {
            let length = |rng: &mut SmallRng| match rng.random_range(0..3) {
                0 => rng.random(),
                _ => rng.random_range(-20i64..20) as u64,
            };
            let before = Context {
                xmm: [operand(&mut rng), operand(&mut rng)],
                mm: [operand(&mut rng) as u64, operand(&mut rng) as u64],
                rax: length(&mut rng),
                rcx: rng.random(),
                rdx: length(&mut rng),
                flags: rng.random::<u64>() & RFlags::STATUS.bits(),
                mxcsr: random_mxcsr(&mut rng),
                rust_mxcsr: 0x1F80,
            };
            let mut memory = Buffer([0; 64]);
            for n in 0..4 {
                memory.0[n * 16..][..16].copy_from_slice(&operand(&mut rng).to_le_bytes());
            }
            let (got, got_memory) = emulate(&mut v, x, &before, &memory);
            let (mut want, mut want_memory) = (before, memory);
            native.run(&mut want, &mut want_memory);
            want.flags &= RFlags::STATUS.bits();
            if got != want || got_memory != want_memory {
                match failures.iter_mut().find(|f| f.0 == x.mnemonic()) {
                    Some(f) => f.1 += 1,
                    None => failures.push((
                        x.mnemonic(),
                        1,
                        format!(
                            "{:?} {bytes:02x?}\nbefore {before:x?}\nwant   {want:x?}\ngot    {got:x?}",
                            x.code()
                        ),
                    )),
                }
            }
        }
    }
    let mut names: Vec<_> = forms.iter().map(|(x, _)| format!("{:?}", x.mnemonic())).collect();
    names.sort();
    names.dedup();
    println!("{} forms, {} mnemonics: {}", forms.len(), names.len(), names.join(" "));
    let report: Vec<_> = failures.iter().map(|f| format!("{:?} x{}: {}", f.0, f.1, f.2)).collect();
    assert!(report.is_empty(), "{} instructions differ\n{}", report.len(), report.join("\n"));
}
