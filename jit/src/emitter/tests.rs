//! The emitter against the interpreter: random code on two small machines, whole states compared.

use super::{compile, miss, shapes, vector_tests};
use crate::abi::{self, JUMP_ENTRIES, Job, JumpEntry};
use crate::buffer::CodeBuffer;
use crate::region::{Limits, Region};
use crate::runtime::collect_float_flags;
use crate::slots::Slot;
use crate::stubs;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use trimaran_cpu::bare::Bare;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::model::Model;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::CodeFence;
use trimaran_cpu::state::{Activity, RFlags, Segment, attr, gpr, seg};
use trimaran_cpu::translate::{PendingFlags, offset};
use trimaran_cpu::{Vcpu, VcpuConfig};

const RAM: u64 = 0x20000;
pub(super) const CODE: u64 = 0x10000;
pub(super) const DATA: u64 = 0x14000;
const DATA_END: u64 = 0x1C000;
/// Not present; the page after it may not be written.
const HOLE: u64 = 0x18000;
const CONST: u64 = 0x19000;

const LANDED: u64 = 77;

pub(super) struct Machine {
    pub vcpu: Vcpu,
    pub ram: Arc<Ram>,
}

impl Machine {
    /// In 64-bit mode with paging, or in flat 32-bit mode without.
    pub fn new(long: bool) -> Self {
        Self::on(Arc::new(Ram::anonymous(RAM)), long)
    }

    fn on(ram: Arc<Ram>, long: bool) -> Self {
        let model = Arc::new(Model::parse("max").unwrap());
        let config = VcpuConfig {
            id: 0,
            model,
            ram: ram.clone(),
            bus: Arc::new(Bare::new(RAM)),
            fence: CodeFence::new(1),
        };
        let mut vcpu = Vcpu::new(config);
        for (table, next) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x4003)] {
            ram.write(table, &next.to_le_bytes());
        }
        for page in 0..512u64 {
            let bits = match page << 12 {
                HOLE | 0..0x8000 => 0,
                CONST => 1,
                _ => 3,
            };
            ram.write(0x4000 + page * 8, &(page << 12 | bits).to_le_bytes());
        }
        let s = &mut vcpu.state;
        let code = attr::P | attr::S | attr::RW | attr::A | attr::CODE;
        let size = if long { attr::L } else { attr::DB };
        s.seg[seg::CS] = Segment { selector: 8, attributes: code | size, limit: !0, base: 0 };
        let data = attr::P | attr::S | attr::RW | attr::A | attr::DB;
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            s.seg[n] = Segment { selector: 16, attributes: data, limit: !0, base: 0 };
        }
        s.cr0 |= 1;
        if long {
            (s.cr3, s.cr4, s.msr.efer) = (0x1000, 0x20, 0x500);
            s.cr0 |= 1 << 31 | 1 << 16;
            s.seg[seg::FS].base = DATA;
        }
        s.cr4 |= 0x4_0600;
        s.xcr0 = 7;
        s.idtr.limit = 0;
        s.activity = Activity::Running;
        Machine { vcpu, ram }
    }

    fn data(&self) -> Vec<u8> {
        // Not the page tables: a refill sets accessed bits for an access that the interpreter then does.
        let mut bytes = vec![0; (RAM - 0x5000) as usize];
        self.ram.read(0x5000, &mut bytes);
        bytes
    }
}

const ONE: &[u8] = &[
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x08, 0x09, 0x0A, 0x0B, 0x0D, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15,
    0x18, 0x19, 0x1A, 0x1B, 0x1D, 0x20, 0x21, 0x22, 0x23, 0x25, 0x28, 0x29, 0x2A, 0x2B, 0x2D, 0x30, 0x31,
    0x32, 0x33, 0x38, 0x39, 0x3A, 0x3B, 0x3C, 0x3D, 0x50, 0x53, 0x55, 0x58, 0x5B, 0x5E, 0x63, 0x68, 0x69,
    0x6A, 0x6B, 0x80, 0x80, 0x81, 0x81, 0x83, 0x83, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8B,
    0x8B, 0x8D, 0x8D, 0x90, 0x91, 0x98, 0x99, 0x9C, 0x9E, 0x9F, 0xA8, 0xA9, 0xA0, 0xA1, 0xB0, 0xB4, 0xB8,
    0xBE, 0xC0, 0xC0, 0xC1, 0xC1, 0xC6, 0xC7, 0xC9, 0xD0, 0xD1, 0xD1, 0xD2, 0xD2, 0xD3, 0xD3, 0xF5, 0xF6,
    0xF6, 0xF7, 0xF7, 0xF8, 0xF9, 0xFE, 0xFE, 0xFF, 0xFF, 0xFF,
];
const TWO: &[u8] = &[
    0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4A, 0x4B, 0x4C, 0x4D, 0x4E, 0x4F, 0x90,
    0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA3, 0xAB,
    0xB3, 0xBB, 0xBA, 0xBA, 0xBA, 0xA4, 0xA5, 0xAF, 0xAF, 0xAF, 0xB0, 0xB1, 0xB6, 0xB7, 0xBE, 0xBF, 0xC0,
    0xC1, 0xC8, 0xCB, 0xCE, 0xBC, 0xBD, 0xB8,
];

/// Bytes of a random instruction that falls through.
fn instruction(rng: &mut SmallRng, long: bool) -> Vec<u8> {
    loop {
        let mut b = Vec::new();
        if rng.random_ratio(1, 8) {
            b.push(0x66);
        }
        if rng.random_ratio(1, 30) {
            b.push(0x67);
        }
        if rng.random_ratio(1, 20) {
            b.push(0x64);
        }
        if rng.random_ratio(1, 25) {
            b.push(0xF0);
        }
        let two = rng.random_ratio(1, 3);
        let opcode =
            if two { TWO[rng.random_range(0..TWO.len())] } else { ONE[rng.random_range(0..ONE.len())] };
        if two && opcode == 0xB8 {
            b.push(0xF3);
        }
        if long && rng.random_ratio(3, 5) {
            b.push(0x40 | rng.random_range(0..16u8));
        }
        if two {
            b.push(0x0F);
        }
        b.push(opcode);
        let mut modrm = rng.random::<u8>();
        if rng.random_ratio(1, 3) {
            modrm |= 0xC0;
        }
        b.push(modrm);
        let mut tail: [u8; 12] = rng.random();
        if rng.random_ratio(2, 3) {
            // Small immediates and displacements; or an address.
            let at = usize::from(rng.random_ratio(1, 2));
            let v: u32 = match rng.random_range(0..3) {
                0 => rng.random_range(0..0x40),
                1 => rng.random_range(DATA..DATA_END) as u32,
                _ => (-rng.random_range(0..0x40i32)) as u32,
            };
            tail[at..at + 4].copy_from_slice(&v.to_le_bytes());
        }
        b.extend_from_slice(&tail);
        b.truncate(15);
        let mut d = Decoder::with_ip(
            if long { 64 } else { 32 },
            &b,
            CODE,
            DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD,
        );
        let x: Instruction = d.decode();
        if x.is_invalid()
            || x.flow_control() != FlowControl::Next
            || x.mnemonic() == iced_x86::Mnemonic::Enter
        {
            continue;
        }
        b.truncate(x.len());
        return b;
    }
}

/// A random program: a loop, a branch, a call, a return or a fall at its end.
pub(super) fn program(rng: &mut SmallRng, long: bool, vectors: bool) -> Vec<u8> {
    let mut code = Vec::new();
    let n = match rng.random_range(0..20) {
        // More than a block may have.
        0 if vectors => rng.random_range(60..90),
        0..=9 => rng.random_range(1..5),
        _ => rng.random_range(1..30),
    };
    for _ in 0..n {
        let vector = vectors && rng.random_ratio(2, 3);
        let next = if vector { vector_tests::instruction(rng, long) } else { instruction(rng, long) };
        if rng.random_ratio(1, 12) {
            // A branch over it, or over nothing.
            let over = if rng.random_ratio(3, 4) { next.len() as u8 } else { 0 };
            code.extend_from_slice(&[0x70 | rng.random_range(0..16u8), over]);
        }
        code.extend_from_slice(&next);
    }
    let back = |code: &Vec<u8>| (-(code.len() as i64) - 2) as i8;
    match rng.random_range(0..9) {
        0..=2 if code.len() < 120 => {
            let opcode =
                *[0x75, 0x72, 0x7F, 0x76, 0xE2, 0xEB, 0xE3, 0x7A].get(rng.random_range(0..8)).unwrap();
            let rel = back(&code);
            code.extend_from_slice(&[opcode, rel as u8]);
        }
        3 => code.extend_from_slice(&[0x0F, 0x80 | rng.random_range(0..16u8), 0x12, 0x34, 0, 0]),
        4 => code.extend_from_slice(&[0xE8, 0x10, 0, 0, 0]),
        5 => code.push(0xC3),
        6 => code.extend_from_slice(&[0xFF, 0xD0 | rng.random_range(0..8u8)]),
        7 => code.extend_from_slice(&[0xE9, 0x00, 0x20, 0, 0]),
        _ => {}
    }
    code.extend_from_slice(&[0x90, 0xF4]);
    code
}

fn pending(rng: &mut SmallRng) -> PendingFlags {
    let w = 1u8 << rng.random_range(0..4);
    let mask = !0u64 >> (64 - u32::from(w) * 8);
    let mut value = || number(rng) & mask;
    let (a, b, r) = (value(), value(), value());
    PendingFlags { kind: rng.random_range(0..14), w, bit: rng.random_range(0..2), a, b, r }
}

fn number(rng: &mut SmallRng) -> u64 {
    match rng.random_range(0..8) {
        0..=3 => rng.random_range(DATA + 0x80..DATA_END - 0x80),
        4 => rng.random_range(0..0x20),
        5 => *[
            0,
            1,
            0x7F,
            0x80,
            0xFF,
            0x7FFF,
            0x8000,
            0xFFFF,
            0x7FFF_FFFF,
            0x8000_0000,
            0xFFFF_FFFF,
            1 << 63,
            !0,
        ]
        .get(rng.random_range(0..13))
        .unwrap(),
        6 => u64::from(rng.random::<u32>()),
        _ => rng.random(),
    }
}

pub(super) struct Bench {
    pub buffer: CodeBuffer,
    landing: usize,
    _fixed: CodeBuffer,
    pub runtime: abi::Runtime,
    table: Vec<JumpEntry>,
    covered: std::collections::BTreeMap<String, u64>,
    pub left: [u64; 7],
    ran: u64,
}

impl Bench {
    pub fn new() -> Self {
        // The stubs have a buffer of their own, which never starts again.
        let (buffer, mut fixed) = (CodeBuffer::new(1 << 20).unwrap(), CodeBuffer::new(1 << 16).unwrap());
        let runtime = stubs::install(&mut fixed).unwrap();
        // Where indirect jumps that are found go: it leaves like a slot.
        let mut a = super::encode::Asm::default();
        a.store(W::Q, super::encode::field(offset::BUDGET), super::encode::RSI);
        a.mov_imm(super::encode::RAX, LANDED);
        a.ret();
        let landing = fixed.put(&a.bytes);
        let landing = fixed.address(landing);
        let table = vec![JumpEntry { tag: 1 << 63, code: 0 }; JUMP_ENTRIES];
        Bench {
            buffer,
            landing,
            _fixed: fixed,
            runtime,
            table,
            covered: Default::default(),
            left: [0; 7],
            ran: 0,
        }
    }

    /// Runs the code at RIP of `a` as one region, and as many instructions in `b`.
    pub fn compare(
        &mut self,
        a: &mut Machine,
        b: &mut Machine,
        budget: i64,
        trace: bool,
        counter: Option<u32>,
    ) -> bool {
        let v = &mut a.vcpu;
        v.budget = budget;
        v.stop_block = false;
        v.mode_may_have_changed();
        v.prepare_translated();
        v.translated.jump_table = self.table.as_ptr() as usize;
        v.translated.salt = 0x1234 << 48 | budget as u64;
        // Computed targets are likely to be what a register holds.
        for target in &v.state.gpr[..16] {
            let tag = target ^ v.translated.salt;
            self.table[abi::jump_index(tag)] = JumpEntry { tag, code: self.landing as u64 };
        }
        let rip = v.state.gpr[gpr::RIP];
        let Some(first) = v.block_at(rip) else { return false };
        v.stop_block = false;
        v.shared.clear(!0);
        let limits = Limits { blocks: 8, tree: trace, decode: true, ..Limits::TREE };
        let Some(region) = Region::form(v, first, rip, limits) else { return false };
        let slots: Vec<Slot> = region.new_slots(self.runtime.unlinked as u64, 0);
        let mut counted = counter.unwrap_or(0);
        let job = Job {
            counter: counter.map(|_| &raw mut counted as usize),
            ..Job::new(&region, slots.as_ptr() as usize, &self.runtime)
        };
        let code = compile(&job).unwrap_or_else(|e| panic!("{e}: {region:?}"));
        self.buffer.reserve(code.bytes.len()).unwrap();
        let at = self.buffer.put(&code.bytes);
        let at = self.buffer.address(at);
        for i in region.blocks.iter().flat_map(|b| &b.insns) {
            let name = match shapes::native(i, region.key) {
                Some(_) => format!("{:?}", i.code.mnemonic()),
                None => format!("{:?}", i.kernel),
            };
            *self.covered.entry(name).or_default() += 1;
        }
        let retired = v.state.retired;
        let word = miss::enter(&self.runtime, v, budget, at);
        let kind = match word {
            abi::LOOKUP..=abi::HOT => word as usize,
            LANDED => 6,
            _ => 5,
        };
        self.left[kind] += 1;
        collect_float_flags(v);
        if word != abi::DONE {
            v.sync_retired(v.budget);
        }
        v.settle_flags();
        v.stop_block = false;
        let ran = v.state.retired - retired;
        self.ran += ran;
        let faulted = v.state.activity == Activity::Shutdown;
        // Delivering a fault costs budget.
        assert!(v.budget == budget - ran as i64 || faulted, "budget {} after {ran} of {budget}", v.budget);
        if word == abi::INTERPRET {
            let insns: Vec<*const Insn> =
                region.blocks.iter().flat_map(|b| &b.insns).map(|i| &raw const *i).collect();
            assert!(insns.contains(&(v.translated.scratch[0] as *const Insn)));
        }
        b.vcpu.run(ran + u64::from(faulted));
        let (x, y) = (a.vcpu.state_whole().clone(), b.vcpu.state_whole().clone());
        if x != y || a.data() != b.data() {
            let names = |m: &[u64]| m.iter().map(|v| format!("{v:x}")).collect::<Vec<_>>().join(" ");
            eprintln!("emitter:     {} flags {:?} retired {}", names(&x.gpr), x.rflags, x.retired);
            eprintln!("interpreter: {} flags {:?} retired {}", names(&y.gpr), y.rflags, y.retired);
            for n in (0..16).filter(|&n| x.zmm[n] != y.zmm[n]) {
                eprintln!("YMM{n}: {:x?}, interpreter {:x?}", &x.zmm[n][..4], &y.zmm[n][..4]);
            }
            eprintln!("MXCSR {:x} {:x}", x.mxcsr, y.mxcsr);
            eprintln!("left by {word:x} after {ran}, cr2 {:x} {:x}", x.cr2, y.cr2);
            let data = a.data().iter().zip(&b.data()).position(|(a, b)| a != b);
            eprintln!("memory differs at {data:x?}");
            if std::env::var("TRIMARAN_EMITTER_SHOW").is_ok() {
                show(&code.bytes, 64, 0);
            }
            return true;
        }
        false
    }
}

pub(super) fn show(bytes: &[u8], bits: u32, ip: u64) {
    let mut d = Decoder::with_ip(bits, bytes, ip, 0);
    let mut f = iced_x86::IntelFormatter::new();
    use iced_x86::Formatter;
    while d.can_decode() {
        let x = d.decode();
        let mut s = String::new();
        f.format(&x, &mut s);
        eprintln!("{:6x} {s}", x.ip());
    }
}

pub(super) fn random_code(long: bool, vectors: bool, seed: u64, runs: u64) {
    let (mut a, mut b) = (Machine::new(long), Machine::new(long));
    let mut bench = Bench::new();
    let mut rng = SmallRng::seed_from_u64(seed);
    let initial = a.vcpu.state.clone();
    let mut noise: Vec<u8> = (0..(DATA_END - DATA)).map(|_| rng.random()).collect();
    if vectors {
        // Values that MXCSR may take.
        for quad in noise.chunks_exact_mut(16) {
            let odd = if rng.random_ratio(1, 8) { 0x2000 } else { 0 };
            let value: u32 = 0x1F80 | odd | rng.random_range(0..0x40);
            quad[..4].copy_from_slice(&value.to_le_bytes());
        }
    }
    a.ram.write(DATA, &noise);
    b.ram.write(DATA, &noise);
    for run in 0..runs {
        let code = program(&mut rng, long, vectors);
        let rip = CODE + rng.random_range(0..0x200);
        let mut s = initial.clone();
        for r in &mut s.gpr[..16] {
            *r = number(&mut rng);
        }
        s.gpr[gpr::RSP] = rng.random_range(DATA + 0x100..DATA_END - 0x100);
        s.gpr[gpr::RIP] = rip;
        s.rflags = RFlags::from_bits_retain(rng.random::<u64>() & 0x8D5 | 2);
        if vectors {
            s.zmm.iter_mut().take(16).for_each(|r| {
                r[..2].copy_from_slice(&vector_tests::value(&mut rng));
                r[2..4].copy_from_slice(&vector_tests::value(&mut rng));
            });
            if rng.random_ratio(2, 3) {
                s.gpr[..16].iter_mut().for_each(|r| *r &= !15);
            }
            s.mxcsr |= rng.random_range(0..0x40);
            if rng.random_ratio(1, 30) {
                s.mxcsr ^= 1 << rng.random_range(6..16);
            }
        }
        let pending = pending(&mut rng);
        for m in [&mut a, &mut b] {
            m.ram.write(CODE, &[0xF4; 0x1000]);
            m.ram.write(rip, &code);
            m.vcpu.state = s.clone();
            m.vcpu.state_loaded();
            m.vcpu.translated.pending = pending;
        }
        b.vcpu.settle_flags();
        b.vcpu.state_whole();
        let budget = if rng.random_ratio(1, 10) { rng.random_range(1..20) } else { 200 };
        let counter = rng.random_ratio(1, 20).then(|| rng.random_range(1..4));
        if bench.compare(&mut a, &mut b, budget, rng.random(), counter) {
            eprintln!("start: {:x?} {:?} {pending:x?} {:x?}", s.gpr, s.rflags, s.zmm.map(|r| [r[0], r[1]]));
            show(&code, if long { 64 } else { 32 }, rip);
            panic!("seed {seed}, run {run}: they differ");
        }
    }
    eprintln!("{} instructions ran", bench.ran);
    assert!(bench.ran > runs && bench.left.iter().all(|&n| n > runs / 1000), "too little was tested");
    eprintln!(
        "{:?}\nleft by {:?} (lookup, stop, interpret, done, hot, slot, jump table)",
        bench.covered, bench.left
    );
}

/// How many runs: more by TRIMARAN_EMITTER_RUNS.
pub(super) fn runs() -> u64 {
    std::env::var("TRIMARAN_EMITTER_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

pub(super) fn seed() -> u64 {
    std::env::var("TRIMARAN_EMITTER_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

#[test]
fn random_code_in_64_bit_mode() {
    random_code(true, false, seed(), runs());
}

#[test]
fn random_code_in_32_bit_mode() {
    random_code(false, false, seed() + 1000, runs());
}

/// Two processors count in one place under LOCK; none of their steps is lost.
#[test]
fn locked_instructions_are_atomic() {
    const ROUNDS: u64 = 200_000;
    // lock inc qword [rdi]; mov eax, 1; lock xadd [rdi + 8], rax; lock add dword [rdi + 16], 1; dec ecx; jnz
    let code: &[u8] = &[
        0xF0, 0x48, 0xFF, 0x07, 0xB8, 1, 0, 0, 0, 0xF0, 0x48, 0x0F, 0xC1, 0x47, 0x08, 0xF0, 0x83, 0x47, 0x10,
        0x01, 0xFF, 0xC9, 0x75, 0xE8, 0xF4,
    ];
    let ram = Arc::new(Ram::anonymous(RAM));
    std::thread::scope(|threads| {
        for n in 0..2u64 {
            let ram = ram.clone();
            threads.spawn(move || {
                let mut m = Machine::on(ram, true);
                let rip = CODE + n * 0x1000;
                m.ram.write(rip, code);
                let mut bench = Bench::new();
                let v = &mut m.vcpu;
                (v.state.gpr[gpr::RIP], v.state.gpr[gpr::RDI]) = (rip, DATA);
                v.state.gpr[gpr::RCX] = ROUNDS;
                v.state_loaded();
                v.mode_may_have_changed();
                v.prepare_translated();
                let first = v.block_at(rip).unwrap();
                v.shared.clear(!0);
                v.stop_block = false;
                let limits = Limits { blocks: 1, insns: 20, decode: true, ..Limits::TREE };
                let region = Region::form(v, first, rip, limits).unwrap();
                let slots: Vec<Slot> = region.new_slots(bench.runtime.unlinked as u64, 0);
                let job = Job::new(&region, slots.as_ptr() as usize, &bench.runtime);
                let made = compile(&job).unwrap();
                let at = bench.buffer.put(&made.bytes);
                miss::enter(&bench.runtime, v, 10 * ROUNDS as i64, bench.buffer.address(at));
                assert_eq!(v.state.gpr[gpr::RCX], 0);
            });
        }
    });
    for at in [DATA, DATA + 8, DATA + 16] {
        let mut count = [0; 4];
        ram.read(at, &mut count);
        assert_eq!(u64::from(u32::from_le_bytes(count)), 2 * ROUNDS);
    }
}
