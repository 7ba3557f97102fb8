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
use crate::helpers::bit_manipulation;
use crate::model::Features;
use crate::simd::handler;
use crate::state::{RFlags, gpr};
use iced_x86::code_asm::*;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, Mnemonic as M, OpCodeOperandKind,
    OpKind, Register,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What an instruction may read and write.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Context {
    ymm: [[u128; 2]; 3],
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
        if std::is_x86_feature_detected!("avx") {
            a.vmovups(ymm0, ymmword_ptr(r8))?;
            a.vmovups(ymm1, ymmword_ptr(r8 + 32))?;
            a.vmovups(ymm2, ymmword_ptr(r8 + 64))?;
        } else {
            a.movups(xmm0, xmmword_ptr(r8))?;
            a.movups(xmm1, xmmword_ptr(r8 + 32))?;
            a.movups(xmm2, xmmword_ptr(r8 + 64))?;
        }
        a.movq(mm0, qword_ptr(r8 + 96))?;
        a.movq(mm1, qword_ptr(r8 + 104))?;
        a.mov(rax, qword_ptr(r8 + 112))?;
        a.mov(rcx, qword_ptr(r8 + 120))?;
        a.mov(rdx, qword_ptr(r8 + 128))?;
        a.push(qword_ptr(r8 + 136))?;
        a.ldmxcsr(dword_ptr(r8 + 144))?;
        a.popfq()?;
        a.db(bytes)?;
        a.pushfq()?;
        a.pop(qword_ptr(r8 + 136))?;
        a.stmxcsr(dword_ptr(r8 + 144))?;
        if std::is_x86_feature_detected!("avx") {
            a.vmovups(ymmword_ptr(r8), ymm0)?;
            a.vmovups(ymmword_ptr(r8 + 32), ymm1)?;
            a.vmovups(ymmword_ptr(r8 + 64), ymm2)?;
            a.vzeroupper()?;
        } else {
            a.movups(xmmword_ptr(r8), xmm0)?;
            a.movups(xmmword_ptr(r8 + 32), xmm1)?;
            a.movups(xmmword_ptr(r8 + 64), xmm2)?;
        }
        a.movq(qword_ptr(r8 + 96), mm0)?;
        a.movq(qword_ptr(r8 + 104), mm1)?;
        a.mov(qword_ptr(r8 + 112), rax)?;
        a.mov(qword_ptr(r8 + 120), rcx)?;
        a.mov(qword_ptr(r8 + 128), rdx)?;
        a.emms()?;
        a.ldmxcsr(dword_ptr(r8 + 148))?;
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
        if !features.allows(&probe) || state_saving(probe.mnemonic()) || !crate::features::host_has(&probe) {
            continue;
        }
        let mut found = |x: &Instruction| {
            let mut encoder = Encoder::new(64);
            if encoder.encode(x, 0).is_ok() {
                let bytes = encoder.take_buffer();
                let y = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
                let v = vcpu();
                let mut i = decode::lower(&y, BlockKey::of(&v.state), &features);
                let known = handler(&y, &mut i).or_else(|| bit_manipulation::handler(&y, &mut i));
                if (known.is_some() || bit_manipulation::kernel(&y, &mut i).is_some()) && y.code() == x.code()
                {
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
        if code.op_code().encoding() == EncodingKind::VEX {
            for _ in 0..if code.op_code().op_kinds().contains(&OpCodeOperandKind::imm8) { 40 } else { 12 } {
                if let Some(x) = vex_form(code, rng) {
                    found(&x);
                }
            }
            continue;
        }
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

/// A VEX instruction with random operands of the kinds that it takes. None: nothing to compare.
fn vex_form(code: Code, rng: &mut SmallRng) -> Option<Instruction> {
    use OpCodeOperandKind as K;
    use Register::{EAX, ECX, EDX, RAX, RCX, RDX, XMM0, XMM2, YMM0, YMM2};
    let mut x = Instruction::default();
    x.set_code(code);
    let gather = code.op_code().op_kinds().iter().any(|k| format!("{k:?}").starts_with("mem_vsib"));
    let memory = rng.random::<bool>();
    for (n, kind) in code.op_code().op_kinds().iter().enumerate() {
        let n = n as u32;
        // A gather's registers must differ, and the third is its index.
        let k = if gather { n / 2 } else { rng.random_range(0..3) };
        let name = format!("{kind:?}");
        let place = match kind {
            K::imm8 => {
                x.set_op_kind(n, OpKind::Immediate8);
                x.set_immediate8(rng.random());
                continue;
            }
            K::seg_rDI => {
                x.set_op_kind(n, OpKind::MemorySegRDI);
                continue;
            }
            K::mem => None,
            _ if name.starts_with("mem_vsib") => {
                x.set_memory_index(if name.contains('y') { YMM2 } else { XMM2 });
                x.set_memory_index_scale([1, 2, 4][rng.random_range(0..3)]);
                None
            }
            _ if name.ends_with("or_mem") && memory => None,
            _ if name.starts_with("xmm") => Some(XMM0 as u32 + k),
            _ if name.starts_with("ymm") => Some(YMM0 as u32 + k),
            _ if name.starts_with("r32") => Some([EAX, ECX, EDX][k as usize] as u32),
            _ if name.starts_with("r64") => Some([RAX, RCX, RDX][k as usize] as u32),
            _ => return None,
        };
        match place.map(|r| Register::try_from(r as usize)) {
            Some(register) => {
                x.set_op_kind(n, OpKind::Register);
                x.set_op_register(n, register.ok()?);
            }
            None => {
                x.set_op_kind(n, OpKind::Memory);
                x.set_memory_base(RSI_OR_RDI[rng.random_range(0..2)]);
            }
        }
    }
    Some(x)
}
const RSI_OR_RDI: [Register; 2] = [Register::RSI, Register::RDI];

fn state_saving(m: M) -> bool {
    matches!(m, M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr | M::Emms)
        || format!("{m:?}").contains("save")
        || format!("{m:?}").contains("rstor")
}

/// The same on a vCPU.
fn emulate(v: &mut Vcpu, x: &Instruction, c: &Context, buffer: &Buffer) -> (Context, Buffer) {
    for n in 0..3 {
        v.set_ymm(n as u8, c.ymm[n]);
    }
    for n in 0..2 {
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
        ymm: [v.ymm(0), v.ymm(1), v.ymm(2)],
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

/// A vector register.
fn vector(rng: &mut SmallRng) -> [u128; 2] {
    [operand(rng), operand(rng)]
}

/// Small indices for a gather.
fn indices(rng: &mut SmallRng, x: &Instruction) -> [u128; 2] {
    let quads = matches!(x.mnemonic(), M::Vpgatherqd | M::Vpgatherqq | M::Vgatherqps | M::Vgatherqpd);
    let mask = if quads { 7 | 7 << 64 } else { 7 | 7 << 32 | 7 << 64 | 7 << 96 };
    [rng.random::<u128>() & mask, rng.random::<u128>() & mask]
}

#[test]
fn agrees_with_silicon() {
    let mut rng = SmallRng::seed_from_u64(1);
    let (native, mut v) = (Native::new(), vcpu());
    let forms = forms(&mut rng);
    let mut failures: Vec<(M, usize, String)> = Vec::new();
    let vex_rounds = std::env::var("TRIMARAN_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    for (x, bytes) in &forms {
        native.build(bytes).expect("assembles");
        let vex = x.encoding() == EncodingKind::VEX;
        let rounds = if x.op_count() == 3 { 60 } else { 1500 };
        let rounds = if vex { vex_rounds } else { rounds };
        let gathers = x.memory_index().is_vector_register();
        for _ in 0..rounds {
            let length = |rng: &mut SmallRng| match rng.random_range(0..3) {
                0 => rng.random(),
                _ => rng.random_range(-20i64..20) as u64,
            };
            let before = Context {
                ymm: std::array::from_fn(|n| {
                    if n == 2 && gathers { indices(&mut rng, x) } else { vector(&mut rng) }
                }),
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
