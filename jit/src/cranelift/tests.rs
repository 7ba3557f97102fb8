//! Cranelift's code against the interpreter: random programs with branches and loops on two small machines, run in
//! steps of random budgets, whole states compared at each stop.

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
const HOLE: u64 = 0x18000;
const DEVICE: u64 = 0x1A000;
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
        s.gpr[n] = DATA + rng.random_range(0x400..0x2000);
    }
    s.gpr[INDEX] = rng.random_range(0..64);
    s.gpr[gpr::RSP] = STACK;
    s.gpr[gpr::RIP] = CODE;
    engine.state_changed();
}

/// Every other compiler of the tests optimises.
pub fn next_effort() -> Effort {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if COUNT.fetch_add(1, Relaxed).is_multiple_of(2) { Effort::Quick } else { Effort::Speed }
}

/// Registers that hold addresses, and the one that holds a small number.
const BASES: [usize; 3] = [gpr::RBP, gpr::RSI, gpr::RDI];
const INDEX: usize = gpr::RBX;

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

/// Bytes of instructions.
struct Maker<'r> {
    rng: &'r mut SmallRng,
    long: bool,
    out: Vec<u8>,
}

impl Maker<'_> {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }
    /// A register that may change.
    fn changing(&mut self) -> u8 {
        let low: [u8; 3] = [0, 1, 2];
        if self.long && self.rng.random() { self.rng.random_range(8..16) } else { self.pick(&low) }
    }
    fn any(&mut self) -> u8 {
        self.rng.random_range(0..if self.long { 16 } else { 8 })
    }
    /// Prefixes, opcode, ModRM. `rm_changes`: the r/m operand is written.
    fn modrm(&mut self, opcode: &[u8], reg: u8, rm_changes: bool, memory: bool, immediate: usize) {
        let mut prefixes = Vec::new();
        if self.rng.random_ratio(1, 5) {
            prefixes.push(0x66);
        }
        // F3 stands before REX.
        let opcode = if opcode[0] == 0xF3 {
            prefixes.push(0xF3);
            &opcode[1..]
        } else {
            opcode
        };
        let memory = memory && self.rng.random_ratio(1, 2);
        let mut rex = if self.long && self.rng.random_ratio(2, 5) { 0x48 } else { 0 };
        let mut tail = Vec::new();
        let rm = if memory {
            // On an instruction that must not have it, it is #UD.
            if rm_changes && self.rng.random_ratio(1, 20) {
                prefixes.insert(0, 0xF0);
            }
            let base = self.pick(&BASES) as u8;
            if self.long && self.rng.random_ratio(1, 12) {
                prefixes.insert(0, 0x64);
            }
            if self.rng.random_ratio(1, 12) {
                prefixes.insert(0, 0x67);
                if !self.long {
                    // 16-bit addresses lead to the tables below the data: only from [DI].
                    prefixes.remove(0);
                }
            }
            let far = match self.rng.random_range(0..150) {
                0 => HOLE as i32 - DATA as i32,
                1 => DEVICE as i32 - DATA as i32,
                2 => 0xFFC,
                _ => self.rng.random_range(-0x200..0x200),
            };
            let sib = self.rng.random_ratio(1, 3);
            let relative = self.long && !sib && self.rng.random_ratio(1, 8);
            if relative {
                tail.extend((DATA as i32 - CODE as i32 + 0x200).to_le_bytes());
                (reg & 7) << 3 | 5
            } else {
                if sib {
                    tail.push(self.rng.random_range(0..4) << 6 | (INDEX as u8) << 3 | base);
                }
                tail.extend(far.to_le_bytes());
                0x80 | (reg & 7) << 3 | if sib { 4 } else { base }
            }
        } else {
            let rm = if rm_changes { self.changing() } else { self.any() };
            rex |= if rm > 7 { 0x41 } else { 0 };
            0xC0 | (reg & 7) << 3 | rm & 7
        };
        rex |= if reg > 7 { 0x44 } else { 0 };
        self.out.extend(&prefixes);
        if rex != 0 {
            self.out.push(rex);
        }
        self.out.extend(opcode);
        self.out.push(rm);
        self.out.extend(tail);
        let wide = if rex & 8 == 0 && prefixes.contains(&0x66) { 2 } else { 4 };
        let size = if immediate == 4 { wide } else { immediate };
        for _ in 0..size {
            let v = self.rng.random();
            self.out.push(v);
        }
    }

    fn instruction(&mut self) {
        let (reg, changing, kind) = (self.any(), self.changing(), self.rng.random_range(0..34));
        match kind {
            0..=5 => {
                // The eight of 00 to 3B; byte forms may write high registers 4 to 7 of 0 to 3.
                let op = self.rng.random_range(0..8) * 8;
                let direction = self.pick(&[1u8, 3, 1, 3, 2]);
                match direction {
                    1 => self.modrm(&[op | 1], reg, true, true, 0),
                    3 => self.modrm(&[op | 3], changing, false, true, 0),
                    _ => self.modrm(&[op | 2], changing & !4, false, true, 0),
                }
            }
            6 => {
                let op = self.rng.random_range(0..8);
                self.modrm(&[0x81], op, true, true, 4);
            }
            7..=8 => {
                let op = self.rng.random_range(0..8);
                self.modrm(&[0x83], op, true, true, 1);
            }
            9 => {
                let op = self.rng.random_range(0..8);
                self.modrm(&[0x80], op, true, true, 1);
            }
            10 => self.modrm(&[0x85], reg, false, true, 0),
            11..=12 => self.modrm(&[0x8B], changing, false, true, 0),
            13..=14 => self.modrm(&[0x89], reg, true, true, 0),
            15 => self.modrm(&[0x88], reg & !4, true, true, 0),
            16 => {
                // LEA has a memory operand only.
                let out = self.out.len();
                self.modrm(&[0x8B], changing, false, true, 0);
                if let Some(at) = (out..self.out.len()).find(|&k| self.out[k] == 0x8B)
                    && self.out[at + 1] < 0xC0
                {
                    self.out[at] = 0x8D;
                }
            }
            17 => self.modrm(&[0xC7], 0, true, true, 4),
            18..=19 => {
                let op = self.pick(&[0, 1, 2, 3, 4, 5, 7]);
                let (code, imm) =
                    self.pick(&[(0xC1, 1), (0xD1, 0), (0xD3, 0), (0xC0, 1), (0xD2, 0), (0xD3, 0)]);
                self.modrm(&[code], op, true, true, imm);
            }
            20 => {
                let op = self.pick(&[0, 2, 3, 4, 5]);
                let code = self.pick(&[0xF7, 0xF7, 0xF6]);
                let imm = if op == 0 { if code == 0xF7 { 4 } else { 1 } } else { 0 };
                self.modrm(&[code], op, true, true, imm);
            }
            21..=22 => {
                let code = self.pick(&[0xFF, 0xFF, 0xFE]);
                let op = self.rng.random_range(0..2);
                self.modrm(&[code], op, true, true, 0);
            }
            23 => self.modrm(&[0x0F, 0xAF], changing, false, true, 0),
            24 => {
                let (code, imm) = self.pick(&[(0x69, 4), (0x6B, 1)]);
                self.modrm(&[code], changing, false, true, imm);
            }
            25 => {
                let code = self.pick(&[0xB6, 0xB7, 0xBE, 0xBF]);
                self.modrm(&[0x0F, code], changing, false, true, 0);
            }
            26 => {
                let code = 0x90 | self.rng.random_range(0..16);
                self.modrm(&[0x0F, code], 0, true, true, 0);
            }
            27 => {
                let code = 0x40 | self.rng.random_range(0..16);
                self.modrm(&[0x0F, code], changing, false, true, 0);
            }
            28 => {
                let code = self.pick(&[0xA3, 0xAB, 0xB3, 0xBB]);
                self.modrm(&[0x0F, code], reg, true, false, 0);
            }
            29 => {
                let op = self.rng.random_range(4..8);
                self.modrm(&[0x0F, 0xBA], op, true, true, 1);
            }
            30 => {
                let code: &[u8] = self.pick(&[&[0x0F, 0xBC][..], &[0x0F, 0xBD], &[0xF3, 0x0F, 0xB8]]);
                self.modrm(code, changing, false, true, 0);
            }
            31 => {
                let code = self.pick(&[0xC1, 0xB1, 0xB0, 0xC0]);
                let reg = if code == 0xC1 { changing } else { changing & !4 };
                self.modrm(&[0x0F, code], reg, true, true, 0);
            }
            32 => {
                let one: &[u8] = match self.rng.random_range(0..9) {
                    0 => &[0x98],
                    1 => &[0x99],
                    2 => &[0x66, 0x98],
                    3 => &[0x50, 0x51, 0x5A],
                    4 => &[0x0F, 0xC8],
                    5 => &[0xF5],
                    6 => &[0x9C, 0x58],
                    7 => &[0x9E],
                    _ => &[0xF9],
                };
                self.out.extend(one);
            }
            _ => {
                let code = self.pick(&[0xF0, 0xF1]);
                let out = self.out.len();
                let reg = if code == 0xF0 { changing } else { reg };
                self.modrm(&[0x0F, 0x38, code], reg, false, true, 0);
                // Only with memory.
                let at = (out..self.out.len()).find(|&k| self.out[k..].starts_with(&[0x0F, 0x38]));
                if at.is_some_and(|k| self.out[k + 3] >= 0xC0) {
                    self.out.truncate(out);
                }
            }
        }
    }

    /// Blocks with branches anywhere among them; the code fits a page.
    fn program(&mut self) {
        let blocks = self.rng.random_range(2..9);
        let mut starts = Vec::new();
        let mut branches = Vec::new();
        for _ in 0..blocks {
            starts.push(self.out.len());
            for _ in 0..self.rng.random_range(1..9) {
                self.instruction();
            }
            let cc = self.rng.random_range(0..16);
            let end: &[u8] = match self.rng.random_range(0..10) {
                0 => &[0xE9],
                // CALL, and what takes its way back off the stack.
                1 => &[0xE8],
                2 => &[],
                // LOOP over a jump.
                3 => &[0xE2, 0x02, 0xEB, 0x05, 0xE9],
                _ => &[0x0F, 0x80 | cc],
            };
            self.out.extend(end);
            if !end.is_empty() {
                branches.push(self.out.len());
                self.out.extend([0; 4]);
            }
            if self.rng.random_ratio(1, 12) {
                // PUSH of an address, RET to it: the start of the code.
                self.out.push(0x68);
                self.out.extend((CODE as u32).to_le_bytes());
                self.out.push(0xC3);
            }
        }
        self.out.push(0xF4);
        for at in branches {
            let target = self.pick(&starts);
            self.out[at..at + 4].copy_from_slice(&(target as i32 - at as i32 - 4).to_le_bytes());
        }
    }
}

pub(super) fn program(seed: u64, long: bool) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut maker = Maker { rng: &mut rng, long, out: Vec::new() };
    maker.program();
    maker.out
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
    for seed in seeds {
        let ram = Arc::new(Ram::anonymous(RAM));
        let mut vcpu = Vcpu::new(config(&ram));
        set_up(&mut vcpu, &ram, true, &program(seed, true), seed);
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

/// How fast a hash loop and accesses to a structure run: in release, `--ignored --nocapture`.
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
    for (name, body) in [("hash", hash), ("structure", structure)] {
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
