//! Random programs: a seed gives the same one for ever.

use super::assembler::Assembler;
use super::builder::Builder;
use super::compare::PageTables;
use super::forms::register;
use super::kernel::{ABSENT, CALLS, Mode, READ_ONLY, World, at};
use super::values;
use crate::flat::Machine;
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use trimaran_cpu::state::{CpuState, RFlags, cr0, gpr};

/// A program with its world.
pub struct Program {
    pub world: World,
    images: Vec<(u64, Vec<u8>)>,
    gpr: [u64; 16],
    /// Low and high halves of YMM registers.
    ymm: [[u128; 2]; 16],
    rflags: u64,
    start: u64,
    /// DR0 and DR7: a breakpoint.
    breakpoint: Option<(u64, u64)>,
    task_switched: bool,
}

impl super::Program for Program {
    fn images(&self) -> &[(u64, Vec<u8>)] {
        &self.images
    }
    fn ram_bytes(&self) -> u64 {
        at::RAM
    }
    fn bits(&self) -> u32 {
        self.world.bits()
    }
    fn describe(&self) -> String {
        format!("{:?} mode, CPL {}", self.world.mode, self.world.cpl)
    }
    fn page_tables(&self) -> PageTables {
        self.world.page_tables()
    }

    fn exceptions(&self, m: &mut Machine) -> BTreeMap<u8, u64> {
        let (stride, vector) = if self.world.kernel_bits() == 64 { (184, 120) } else { (64, 32) };
        let mut all = BTreeMap::new();
        for at in (at::LOG + vector..at::LOG_END).step_by(stride) {
            let mut bytes = [0; 2];
            m.ram.read(at, &mut bytes);
            *all.entry(bytes[0]).or_default() += 1;
        }
        all
    }

    fn enter(&self, s: &mut CpuState) {
        s.gpr[..16].copy_from_slice(&self.gpr);
        self.world.enter(s);
        s.gpr[gpr::RIP] = self.start;
        s.rflags = RFlags::from_bits_retain(self.rflags | 2);
        if let Some((address, control)) = self.breakpoint {
            (s.dr[0], s.dr[7]) = (address, control);
        }
        if self.task_switched {
            s.cr0 |= cr0::TS;
        }
        s.x87.valid = 0;
        s.x87.control = 0x37F;
        for (zmm, ymm) in s.zmm.iter_mut().zip(&self.ymm) {
            let words = ymm.iter().flat_map(|&v| [v as u64, (v >> 64) as u64]);
            zmm.iter_mut().zip(words).for_each(|(z, v)| *z = v);
        }
    }
}

/// Three of four seeds from here on have AVX; below programs stay what they were when their seeds were kept.
pub const FIRST_WIDE: u64 = 1_000;

fn world(rng: &mut SmallRng, seed: u64) -> World {
    let modes = [Mode::Long, Mode::Long, Mode::Long, Mode::Compatibility, Mode::Paged, Mode::Flat];
    let mode = modes[rng.random_range(0..modes.len())];
    let cpl = [0, 3][rng.random_range(0..2)];
    let alias = match mode {
        Mode::Long if cpl == 0 && rng.random() => 0xFFFF_8000_0040_0000,
        Mode::Long if rng.random() => 0x7FFF_0040_0000,
        _ => 0x40_0000,
    };
    let mut base = |plain: bool| match rng.random_range(0..3) {
        0 if plain => 0,
        1 if mode == Mode::Long => rng.random::<u64>() & 0x7FFF_FFFF_FFFF,
        _ => rng.random_range(0..0x3000),
    };
    let (fs, gs) = (base(true), base(false));
    World {
        mode,
        cpl,
        alias,
        write_protect: rng.random(),
        global: rng.random(),
        avx: seed >= FIRST_WIDE && !seed.is_multiple_of(4),
        fs,
        gs,
        touched: rng.random(),
    }
}

/// Makes the program of a seed. `only`: prefix of iced's names of the forms that may be drawn, in lower case.
/// `x87`: half of the instructions are runs of the x87 unit's.
pub fn program(seed: u64, only: Option<&str>, x87: bool) -> Program {
    let mut rng = SmallRng::seed_from_u64(seed);
    let world = world(&mut rng, seed);
    let mut builder = Builder::new(&mut rng, &world, only);
    builder.with_x87 = x87;
    builder.build();
    let Builder { mut a, tables, .. } = builder;
    let start = a.address(builder.start);
    a.finish();
    let mut code = std::mem::take(&mut a.bytes);
    let mut lengths = std::mem::take(&mut a.lengths);
    assert!(code.len() as u64 <= at::TWINS - at::CODE, "seed {seed}: the program is too long");
    let word = world.word() as usize;
    let mut images = Vec::new();
    let table: Vec<u8> = tables.iter().flat_map(|&l| a.address(l).to_le_bytes()[..word].to_vec()).collect();
    code.resize((at::TWINS - at::CODE) as usize, 0xCC);
    lengths.resize(code.len(), 0);
    let (twins, twin_lengths) = twins(&mut rng, &world, only);
    code.extend(twins);
    lengths.extend(twin_lengths);
    let mut data: Vec<u8> = Vec::new();
    while data.len() < (at::STACK - at::DATA) as usize {
        data.extend(values::vector(&mut rng).to_le_bytes());
    }
    let calls: Vec<_> = (0..CALLS).map(|n| kernel_call(&mut rng, &world, n)).collect();
    images.extend(world.images(&calls));
    images.push((at::CODE, code));
    images.push((at::LENGTHS, lengths));
    images.push((at::TABLES, table));
    images.push((at::DATA, data));
    let word_mask = if world.bits() == 64 { !0 } else { 0xFFFF_FFFF };
    let gpr =
        std::array::from_fn(|n| if n < 8 || word == 8 { values::integer(&mut rng) & word_mask } else { 0 });
    let interrupts = if rng.random() { 0x200 } else { 0 };
    let rflags = rng.random::<u64>() & 0x8D5 | interrupts;
    let mut ymm = [[0; 2]; 16];
    vectors(&mut rng, &world, ymm.iter_mut().map(|v| &mut v[0]));
    // On data of 8 bytes, or on an instruction somewhere.
    let breakpoint = match rng.random_range(0..16) {
        0 => Some((at::DATA + rng.random_range(0..0x200) * 8, 0x402 | 0xB << 16)),
        1 => Some((at::CODE + rng.random_range(0..0x2000), 0x402)),
        _ => None,
    };
    let task_switched = rng.random_ratio(1, 20);
    if world.avx {
        vectors(&mut rng, &world, ymm.iter_mut().map(|v| &mut v[1]));
    }
    Program { world, images, gpr, ymm, rflags, start, breakpoint, task_switched }
}

/// Fills the vector registers that the mode has.
fn vectors<'a>(rng: &mut SmallRng, world: &World, all: impl Iterator<Item = &'a mut u128>) {
    let count = if world.bits() == 64 { 16 } else { 8 };
    all.take(count).for_each(|v| *v = values::vector(rng));
}

/// Random bytes as code, of one of several mixtures. The kernel steps over what faults, byte by byte.
pub fn bytes(seed: u64) -> Program {
    const PREFIXES: &[u8] = &[0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x64, 0x65, 0x40, 0x48, 0x4F];
    // Escapes, and opcodes with ModRM that are of many instructions.
    const OPCODES: &[u8] =
        &[0x0F, 0x0F, 0x0F, 0x01, 0x03, 0x31, 0x3B, 0x63, 0x81, 0x83, 0x87, 0x8B, 0xC1, 0xD3, 0xF7, 0xFF];
    let mut rng = SmallRng::seed_from_u64(seed ^ 0xB17E5);
    let world = world(&mut rng, seed);
    let mixture = rng.random_range(0..4);
    let mut code = vec![0; (at::CODE_END - at::CODE) as usize];
    for byte in &mut code {
        *byte = match rng.random_range(0..16) {
            0 if mixture > 0 => PREFIXES[rng.random_range(0..PREFIXES.len())],
            1..4 if mixture > 1 => OPCODES[rng.random_range(0..OPCODES.len())],
            4..6 if mixture > 2 => rng.random_range(0..8) * 8 | 0xC0,
            _ => rng.random(),
        };
        // HLT would end it.
        if *byte == 0xF4 {
            *byte = 0x90;
        }
    }
    let start = at::CODE + rng.random_range(0..0x4000);
    let mut data = vec![0; (at::STACK - at::DATA) as usize];
    rng.fill(&mut data[..]);
    let mut images = world.images(&[]);
    images.push((at::LENGTHS, vec![1; code.len()]));
    images.push((at::CODE, code));
    images.push((at::DATA, data));
    images.push((at::CHECKPOINT, start.to_le_bytes().to_vec()));
    let mut register = |n: usize| match rng.random_range(0..3) {
        _ if n >= 8 && world.bits() == 32 => 0,
        0 => rng.random_range(at::DATA..at::DATA_END),
        1 => values::integer(&mut rng) & if world.bits() == 64 { !0 } else { 0xFFFF_FFFF },
        _ => rng.random_range(at::CODE..at::CODE_END),
    };
    let gpr = std::array::from_fn(&mut register);
    let mut ymm = [[0; 2]; 16];
    vectors(&mut rng, &world, ymm.iter_mut().map(|v| &mut v[0]));
    let rflags = rng.random::<u64>() & 0xAD5;
    Program { world, images, gpr, ymm, rflags, start, breakpoint: None, task_switched: false }
}

/// The two pages of functions of the same shape.
fn twins(rng: &mut SmallRng, world: &World, only: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let mut b = Builder::new(rng, world, only);
    b.a.base = at::TWINS;
    let mut immediates = Vec::new();
    for n in 0..4usize {
        while b.a.bytes.len() < n * 0x400 {
            b.a.raw(&[0x90]);
        }
        for _ in 0..b.rng.random_range(2..8) {
            b.o.random(b.rng, &mut b.a);
            let label = b.point();
            immediates.push(label);
        }
        b.ret(0);
    }
    let at: Vec<usize> = immediates.iter().map(|&l| (b.a.address(l) - at::TWINS) as usize + 2).collect();
    b.a.finish();
    let (mut code, mut lengths) = (b.a.bytes, b.a.lengths);
    assert!(code.len() <= 0x1000);
    code.resize(0x1000, 0xCC);
    lengths.resize(0x1000, 0);
    let mut second = code.clone();
    for at in at {
        second[at] ^= rng.random::<u8>() | 1;
    }
    code.extend(second);
    let again = lengths.clone();
    lengths.extend(again);
    (code, lengths)
}

/// A routine of the kernel that changes the mapping.
fn kernel_call(rng: &mut SmallRng, world: &World, n: u8) -> Vec<u8> {
    let mut a = Assembler::new(world.kernel_bits(), at::CALLS + u64::from(n) * 64);
    if world.mode == Mode::Flat {
        a.put(Ok(Instruction::with(Code::Iretd)));
        return a.bytes;
    }
    let long = world.kernel_bits() == 64;
    let cell = |at: u64| {
        MemoryOperand::new(
            Register::None,
            Register::None,
            1,
            at as i64,
            if long { 8 } else { 4 },
            false,
            Register::None,
        )
    };
    let alias = n < 2 || rng.random();
    let page =
        if n < 2 { at::TWINS } else { [at::DATA, at::DATA + 0x1000, READ_ONLY, ABSENT][usize::from(n) % 4] };
    let entry = world.entry(page, alias);
    if n < 2 {
        // The other twin.
        a.put(Instruction::with2(Code::Xor_rm32_imm32, cell(entry), 0x1000));
    } else {
        // Present, writable: one of them changes.
        let bit: u32 = rng.random_range(0..2);
        a.put(Instruction::with2(Code::Btc_rm32_imm8, cell(entry), bit));
    }
    let (push, pop) = if long { (Code::Push_r64, Code::Pop_r64) } else { (Code::Push_r32, Code::Pop_r32) };
    let rax = register(0, world.kernel_bits() as usize / 8);
    a.put(Instruction::with1(push, rax));
    if rng.random() {
        let (from, to) =
            if long { (Code::Mov_r64_cr, Code::Mov_cr_r64) } else { (Code::Mov_r32_cr, Code::Mov_cr_r32) };
        a.put(Instruction::with2(from, rax, Register::CR3));
        a.put(Instruction::with2(to, Register::CR3, rax));
    } else {
        let linear = page + if alias { world.alias } else { 0 };
        a.put(if long {
            Instruction::with2(Code::Mov_r64_imm64, rax, linear)
        } else {
            Instruction::with2(Code::Mov_r32_imm32, rax, linear as u32)
        });
        a.put(Instruction::with1(Code::Invlpg_m, MemoryOperand::with_base(rax)));
    }
    a.put(Instruction::with1(pop, rax));
    a.put(Ok(Instruction::with(if long { Code::Iretq } else { Code::Iretd })));
    a.bytes
}
