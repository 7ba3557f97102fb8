//! Cranelift's code against the interpreter: random programs with branches and loops on two small machines, run in
//! steps of random budgets, whole states compared at each stop.

use super::random_code::{BASES, INDEX, program, vector_program};
use super::{Cranelift, Effort};
use crate::abi::{Job, Runtime};
use crate::region::{Limits, Region};
use crate::slots::Slot;
use crate::{Jit, JitOptions, Tier};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use trimaran_cpu::bare::Bare;
use trimaran_cpu::engine::{Engine, EngineFactory, Interpreter, Stop};
use trimaran_cpu::model::Model;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::CodeFence;
use trimaran_cpu::state::{Activity, Segment, attr, cr0, cr4, efer, gpr, seg};
use trimaran_cpu::{Vcpu, VcpuConfig};

pub(super) const RAM: u64 = 0x20000;
pub(super) const CODE: u64 = 0x10000;
pub(super) const DATA: u64 = 0x14000;
/// Not present; the page after it may only be read, and the one after that is no RAM.
pub(super) const HOLE: u64 = 0x18000;
pub(super) const DEVICE: u64 = 0x1A000;
const STACK: u64 = 0x1E000;

struct Machine {
    engine: Box<dyn Engine>,
    ram: Arc<Ram>,
}

impl Machine {
    /// 64-bit mode with paging, or flat 32-bit mode without; registers and data by `seed`. Any exception ends in a
    /// shutdown.
    fn new(factory: &dyn EngineFactory, long: bool, code: &[u8], seed: u64) -> Machine {
        let ram = Arc::new(Ram::anonymous(RAM));
        let mut engine = factory.create(config(&ram));
        set_up(engine.as_mut(), &ram, long, code, seed);
        Machine { engine, ram }
    }
    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; (RAM - 0x5000) as usize];
        self.ram.read(0x5000, &mut bytes);
        bytes
    }
}

pub(super) fn config(ram: &Arc<Ram>) -> VcpuConfig {
    let (model, fence) = (Arc::new(Model::default()), CodeFence::new(1));
    VcpuConfig {
        id: 0,
        model,
        ram: ram.clone(),
        bus: Arc::new(Bare { absent: Some(DEVICE), ..Bare::new(RAM) }),
        fence,
    }
}

pub(super) fn set_up(engine: &mut dyn Engine, ram: &Ram, long: bool, code: &[u8], seed: u64) {
    for (table, next) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x4003)] {
        ram.write(table, &next.to_le_bytes());
    }
    for page in 0..512u64 {
        let bits = match page << 12 {
            HOLE => 0,
            p if p == HOLE + 0x1000 => 1,
            _ => 3,
        };
        ram.write(0x4000 + page * 8, &(page << 12 | bits).to_le_bytes());
    }
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut data = vec![0; (HOLE - DATA) as usize];
    rng.fill(&mut data[..]);
    for quad in data.chunks_exact_mut(8).step_by(3) {
        quad.copy_from_slice(&float(&mut rng).to_le_bytes());
    }
    ram.write(DATA, &data);
    ram.write(CODE, code);
    let s = engine.state();
    let bits = attr::P | attr::S | attr::RW | attr::A;
    let size = if long { attr::L } else { attr::DB };
    s.seg[seg::CS] = Segment { selector: 8, attributes: bits | attr::CODE | size, limit: !0, base: 0 };
    for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        s.seg[n] = Segment { selector: 16, attributes: bits | attr::DB, limit: !0, base: 0 };
    }
    s.cr0 |= cr0::PE;
    if long {
        (s.cr3, s.cr4, s.msr.efer) = (0x1000, cr4::PAE, efer::LME | efer::LMA);
        s.cr0 |= cr0::PG | cr0::WP;
        s.seg[seg::FS].base = 0x40;
    }
    s.idtr.limit = 0;
    s.activity = Activity::Running;
    let mask = if long { !0 } else { 0xFFFF_FFFF };
    for n in 0..if long { 16 } else { 8 } {
        s.gpr[n] = if rng.random_ratio(1, 4) { rng.random_range(0..9) } else { rng.random::<u64>() & mask };
    }
    for n in BASES {
        s.gpr[n] = DATA + rng.random_range(0x40..0x200) * 16;
    }
    s.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
    for register in &mut s.zmm[..16] {
        register[0] = float(&mut rng);
        register[1] = float(&mut rng);
    }
    if rng.random() {
        s.mxcsr |= 1 << 5;
    }
    s.gpr[INDEX] = rng.random_range(0..64);
    s.gpr[gpr::RSP] = STACK;
    s.gpr[gpr::RIP] = CODE;
    engine.state_changed();
}

/// Two singles or a double: ordinary ones, and the odd.
fn float(rng: &mut SmallRng) -> u64 {
    let single = |rng: &mut SmallRng| match rng.random_range(0..12) {
        0 => [0, 1 << 31, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0001, 0x7F80_0001, 1, 0x80_0000]
            [rng.random_range(0..8)],
        1 => rng.random(),
        _ => (rng.random_range(-1000..1000) as f32 / 8.0).to_bits(),
    };
    match rng.random_range(0..12) {
        0 => [0, 1 << 63, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48 | 1, 0x7FF0 << 48 | 1, 1, 1 << 52]
            [rng.random_range(0..8)],
        1 => rng.random(),
        2..=6 => (rng.random_range(-100_000..100_000) as f64 / 128.0).to_bits(),
        _ => u64::from(single(rng)) << 32 | u64::from(single(rng)),
    }
}

/// Every other compiler of the tests optimises.
pub fn next_effort() -> Effort {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if COUNT.fetch_add(1, Relaxed).is_multiple_of(2) { Effort::Quick } else { Effort::Speed }
}

fn cranelift() -> Jit {
    let options = JitOptions {
        tier: Tier::Cranelift,
        code_cache: 1 << 20,
        warm: 1,
        foreground: true,
        ..JitOptions::default()
    };
    Jit { options }
}

/// Runs a program on both engines; the number of instructions that ran.
fn compare(code: &[u8], long: bool, seed: u64) -> u64 {
    let mut one = Machine::new(&Interpreter, long, code, seed);
    let mut other = Machine::new(&cranelift(), long, code, seed);
    let mut rng = SmallRng::seed_from_u64(seed);
    for step in 0..12 {
        let budget = rng.random_range(1..if step % 3 == 0 { 8 } else { 300 });
        let stops = (one.engine.run(budget), other.engine.run(budget));
        let (a, b) = (one.engine.state().clone(), other.engine.state().clone());
        if stops.0 != stops.1 || a != b {
            for n in 0..gpr::COUNT {
                if a.gpr[n] != b.gpr[n] {
                    eprintln!("register {n}: {:x}, translated {:x}", a.gpr[n], b.gpr[n]);
                }
            }
            eprintln!("flags {:x} {:x}, cr2 {:x} {:x}", a.rflags, b.rflags, a.cr2, b.cr2);
            for n in 0..16 {
                if a.zmm[n] != b.zmm[n] {
                    eprintln!("vector {n}: {:x?}, translated {:x?}", &a.zmm[n][..4], &b.zmm[n][..4]);
                }
            }
            eprintln!("MXCSR {:x} {:x}", a.mxcsr, b.mxcsr);
            eprintln!("retired {} {}, stops {stops:?}", a.retired, b.retired);
            list(code, long);
            panic!("seed {seed}, long {long}, step {step}: states differ");
        }
        assert!(one.memory() == other.memory(), "seed {seed}, long {long}, step {step}: memory differs");
        if stops.0 != Stop::Budget {
            break;
        }
    }
    if std::env::var_os("TRIMARAN_REPORT").is_some() {
        eprintln!("{seed}: {}", other.engine.describe_translator());
    }
    one.engine.state().retired
}

fn list(code: &[u8], long: bool) {
    let bits = if long { 64 } else { 32 };
    let mut decoder = iced_x86::Decoder::with_ip(bits, code, CODE, 0);
    let mut formatter = iced_x86::IntelFormatter::new();
    while decoder.can_decode() {
        let insn = decoder.decode();
        let mut text = String::new();
        iced_x86::Formatter::format(&mut formatter, &insn, &mut text);
        eprintln!("{:x} {text}", insn.ip());
    }
}

fn rounds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let first = number("TRIMARAN_SEED").unwrap_or(0);
    first..first + number("TRIMARAN_ROUNDS").unwrap_or(default)
}

#[test]
fn random_programs_in_64_bit_mode() {
    let ran: u64 = rounds(120).map(|seed| compare(&program(seed, true), true, seed)).sum();
    assert!(ran > 1000, "only {ran} instructions ran");
}

#[test]
fn random_programs_in_32_bit_mode() {
    let ran: u64 = rounds(120).map(|seed| compare(&program(seed, false), false, seed)).sum();
    assert!(ran > 1000, "only {ran} instructions ran");
}

#[test]
fn random_programs_with_vectors() {
    for long in [true, false] {
        let ran: u64 = rounds(120).map(|seed| compare(&vector_program(seed, long), long, seed)).sum();
        assert!(ran > 1000, "only {ran} instructions ran");
    }
}

/// Compiles the regions of random programs; (instructions, bytes of code, microseconds).
fn compile_some(compiler: &mut Cranelift, seeds: std::ops::Range<u64>) -> (usize, usize, u128) {
    let runtime = Runtime {
        trampoline: 1,
        unlinked: 1,
        run_helper: 1,
        run_last: 1,
        refill_preserving: 1,
        settle_preserving: 1,
        ..Runtime::default()
    };
    let (mut insns, mut bytes, mut time) = (0, 0, 0);
    let codes = seeds.flat_map(|seed| [program, vector_program].map(|make| (seed, make(seed, true))));
    for (seed, code) in codes {
        let ram = Arc::new(Ram::anonymous(RAM));
        let mut vcpu = Vcpu::new(config(&ram));
        set_up(&mut vcpu, &ram, true, &code, seed);
        vcpu.run(0);
        let first = vcpu.block_at(CODE).expect("a block");
        let limits = Limits { decode: true, ..Limits::LOOPS };
        let region = Region::form(&mut vcpu, first, CODE, limits).expect("a region");
        let slots: Vec<Slot> = region.new_slots(1, 0);
        let job = Job::new(&region, slots.as_ptr() as usize, &runtime);
        let started = std::time::Instant::now();
        let code = compiler.compile(&job).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        time += started.elapsed().as_micros();
        insns += region.insns();
        bytes += code.bytes.len();
    }
    (insns, bytes, time)
}

/// `cargo test -p trimaran-jit --features all-arch`.
#[test]
#[cfg(feature = "all-arch")]
fn other_hosts() {
    for arch in ["x86_64", "aarch64", "riscv64", "s390x"] {
        for effort in [Effort::Quick, Effort::Speed] {
            let mut compiler = Cranelift::for_arch(arch, effort);
            let isa = compiler.isa.clone().expect("a back end");
            assert!(super::stubs::refill_for(&*isa, 1).is_some(), "{arch}: the stub");
            let (insns, bytes, _) = compile_some(&mut compiler, 0..30);
            eprintln!("{arch} {effort:?}: {} bytes an instruction", bytes / insns.max(1));
        }
    }
}

/// How long compiling takes: in release, `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn compile_time() {
    for effort in [Effort::Quick, Effort::Speed] {
        let (insns, bytes, time) = compile_some(&mut Cranelift::with_effort(effort), 0..200);
        let each = time as f64 / insns as f64;
        eprintln!("{effort:?}: {insns} instructions, {each:.1} us and {} bytes each", bytes / insns.max(1));
    }
}

/// How fast loops run, one of accesses to a structure and three of SSE among them: in release, `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn loop_speed() {
    use iced_x86::code_asm::*;
    type Body = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let hash: Body = |a| {
        a.imul_3(rax, rax, 31)?;
        a.movzx(edx, byte_ptr(rsi + rbx))?;
        a.add(rax, rdx)?;
        a.inc(ebx)?;
        a.and(ebx, 255)
    };
    let structure: Body = |a| {
        a.mov(rax, qword_ptr(rbp))?;
        a.add(rax, qword_ptr(rbp + 8))?;
        a.mov(qword_ptr(rbp + 16), rax)?;
        a.inc(dword_ptr(rbp + 24))?;
        a.xor(rax, qword_ptr(rbp + 32))?;
        a.mov(qword_ptr(rbp), rax)
    };
    let integers: Body = |a| {
        a.movdqu(xmm1, xmmword_ptr(rsi + 3))?;
        a.paddd(xmm0, xmm1)?;
        a.pshufd(xmm1, xmm0, 0x1B)?;
        a.pxor(xmm0, xmm1)?;
        a.movdqa(xmmword_ptr(rdi), xmm0)
    };
    let floats: Body = |a| {
        a.movsd_2(xmm1, qword_ptr(rsi))?;
        a.mulsd(xmm1, xmm2)?;
        a.addsd(xmm1, xmm3)?;
        a.movapd(xmm4, xmm1)?;
        a.movsd_2(qword_ptr(rdi), xmm1)
    };
    let packed: Body = |a| {
        a.movaps(xmm1, xmmword_ptr(rsi))?;
        a.mulps(xmm1, xmm2)?;
        a.addps(xmm1, xmm3)?;
        a.movaps(xmmword_ptr(rdi), xmm1)
    };
    let bodies = [
        ("hash", hash),
        ("structure", structure),
        ("SSE integers", integers),
        ("doubles", floats),
        ("packed singles", packed),
    ];
    for (name, body) in bodies {
        let mut a = CodeAssembler::new(64).expect("64-bit code");
        let mut top = a.create_label();
        let mut write = || {
            a.set_label(&mut top)?;
            body(&mut a)?;
            a.dec(rcx)?;
            a.jne(top)?;
            a.hlt()?;
            a.assemble(CODE)
        };
        let code = write().expect("the loop assembles");
        for _ in 0..2 {
            let mut machine = Machine::new(&cranelift(), true, &code, 1);
            let s = machine.engine.state();
            s.mxcsr |= 1 << 5;
            let one = u64::from(1.5f32.to_bits());
            s.zmm[2][..2].fill(one << 32 | one);
            s.zmm[3] = s.zmm[2];
            (s.gpr[gpr::RSI], s.gpr[gpr::RDI]) = (DATA, DATA + 0x100);
            machine.ram.write(DATA, &[one << 32 | one; 2].map(u64::to_le_bytes).concat());
            machine.engine.state_changed();
            machine.engine.run(2000);
            let (n, started) = (50_000_000, std::time::Instant::now());
            machine.engine.run(n);
            let each = started.elapsed().as_secs_f64() * 1e9 / n as f64;
            eprintln!("{name}: {each:.2} ns an instruction");
        }
    }
}

/// What hosts other than x86-64 begin with is made on this one too.
#[test]
fn fixed_pieces() {
    assert!(super::stubs::trampoline().is_some());
    assert!(super::stubs::unlinked().is_some());
    assert!(super::stubs::settle_preserving().is_some());
}
