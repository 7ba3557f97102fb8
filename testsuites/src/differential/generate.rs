//! Random programs: a seed gives the same one for ever.

use super::assembler::{Assembler, Label};
use super::forms::{jcc, register};
use super::kernel::{ABSENT, CALL, CALLS, END, Mode, READ_ONLY, World, at};
use super::operands::{BASE, Operands};
use super::values;
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use trimaran_cpu::state::{CpuState, RFlags, gpr};

/// A program with its world.
pub struct Program {
    pub world: World,
    images: Vec<(u64, Vec<u8>)>,
    gpr: [u64; 16],
    xmm: [u128; 16],
    rflags: u64,
    start: u64,
}

impl Program {
    /// What RAM holds at the start.
    pub fn images(&self) -> &[(u64, Vec<u8>)] {
        &self.images
    }

    /// Sets the registers.
    pub fn enter(&self, s: &mut CpuState) {
        s.gpr[..16].copy_from_slice(&self.gpr);
        self.world.enter(s);
        s.gpr[gpr::RIP] = self.start;
        s.rflags = RFlags::from_bits_retain(self.rflags | 2);
        s.x87.valid = 0;
        s.x87.control = 0x37F;
        for (n, v) in self.xmm.iter().enumerate() {
            (s.zmm[n][0], s.zmm[n][1]) = (*v as u64, (v >> 64) as u64);
        }
    }
}

fn world(rng: &mut SmallRng) -> World {
    let mode = [Mode::Long, Mode::Long, Mode::Paged, Mode::Flat][rng.random_range(0..4)];
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
        fs,
        gs,
        touched: rng.random(),
    }
}

/// Makes the program of a seed. `only`: prefix of iced's names of the forms that may be drawn, in lower case.
pub fn program(seed: u64, only: Option<&str>) -> Program {
    let mut rng = SmallRng::seed_from_u64(seed);
    let world = world(&mut rng);
    let mut builder = Builder::new(&mut rng, &world, only);
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
    let xmm = std::array::from_fn(|n| if n < 8 || word == 8 { values::vector(&mut rng) } else { 0 });
    Program { world, images, gpr, xmm, rflags, start }
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
    let mut a = Assembler::new(world.bits(), at::CALLS + u64::from(n) * 64);
    if world.mode == Mode::Flat {
        a.put(Ok(Instruction::with(Code::Iretd)));
        return a.bytes;
    }
    let long = world.mode == Mode::Long;
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
    let rax = register(0, world.word() as usize);
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

struct Builder<'a> {
    pub rng: &'a mut SmallRng,
    pub a: Assembler,
    pub o: Operands<'a>,
    functions: Vec<(Label, u32)>,
    /// Instructions that may be patched.
    points: Vec<Label>,
    /// Entries of branch tables.
    tables: Vec<Label>,
    cells: u64,
    start: Label,
}

impl<'a> Builder<'a> {
    fn new(rng: &'a mut SmallRng, world: &'a World, only: Option<&str>) -> Self {
        let mut a = Assembler::new(world.bits(), at::CODE);
        let start = a.label();
        let o = Operands::new(world, only.map(str::to_lowercase));
        let (functions, points, tables) = Default::default();
        Builder { rng, a, o, functions, points, tables, cells: 0, start }
    }

    fn long(&self) -> bool {
        self.o.world.bits() == 64
    }
    fn pick(&self, long: Code, narrow: Code) -> Code {
        if self.long() { long } else { narrow }
    }
    fn branch(&mut self, long: Code, narrow: Code, to: Label) {
        let code = self.pick(long, narrow);
        self.a.branch(code, to);
    }
    fn jump(&mut self, to: Label) {
        self.branch(Code::Jmp_rel32_64, Code::Jmp_rel32_32, to);
    }
    fn absolute(&self, address: u64) -> MemoryOperand {
        let size = if self.long() { 8 } else { 4 };
        MemoryOperand::new(Register::None, Register::None, 1, address as i64, size, false, Register::None)
    }
    fn room(&self) -> bool {
        self.a.here() < at::TWINS - 0x1200
    }

    fn build(&mut self) {
        self.a.raw(&[0xF4]);
        // Somewhere on the first page, so that page boundaries fall everywhere.
        let skip = self.rng.random_range(0..0xF00);
        self.pad(skip);
        for _ in 0..self.rng.random_range(1..6) {
            self.function();
            if self.rng.random_ratio(1, 3) {
                let skip = self.rng.random_range(0..0x800);
                self.pad(skip);
            }
        }
        self.a.bind(self.start);
        for _ in 0..self.rng.random_range(4..30) {
            if !self.room() {
                break;
            }
            let next = self.a.label();
            // Whatever goes wrong, the program goes on there.
            let word = self.pick(Code::Mov_rm64_imm32, Code::Mov_rm32_imm32);
            let cell = self.absolute(at::CHECKPOINT);
            self.a.with_immediate(Instruction::with2(word, cell, 0), next, 0);
            let base = self.o.base();
            self.o.load(&mut self.a, base, BASE);
            if self.rng.random_ratio(1, 6) {
                let cell = self.absolute(at::MXCSR);
                self.a.put(Ok(Instruction::with(Code::Fninit)));
                self.a.put(Instruction::with1(Code::Ldmxcsr_m32, cell));
            }
            self.fragment(3);
            self.a.bind(next);
            self.o.forget();
        }
        self.a.put(Instruction::with1(Code::Int_imm8, u32::from(END)));
        self.a.raw(&[0xEB, 0xFC]);
    }

    fn pad(&mut self, bytes: u64) {
        for _ in 0..bytes.min((at::TWINS - 0x2000).saturating_sub(self.a.here())) {
            self.a.raw(&[0xCC]);
        }
    }

    fn function(&mut self) {
        let start = self.a.bound();
        let argument_bytes = if self.rng.random_ratio(1, 4) { self.o.word() as u32 } else { 0 };
        self.o.forget();
        self.fragment(1);
        self.ret(argument_bytes);
        self.functions.push((start, argument_bytes));
    }

    fn ret(&mut self, bytes: u32) {
        self.a.put(if bytes == 0 {
            Ok(Instruction::with(self.pick(Code::Retnq, Code::Retnd)))
        } else {
            Instruction::with1(self.pick(Code::Retnq_imm16, Code::Retnd_imm16), bytes)
        });
    }

    /// A piece of program that control enters at its start and leaves at its end.
    fn fragment(&mut self, depth: u32) {
        if !self.room() {
            return;
        }
        self.straight();
        match self.rng.random_range(0..22) {
            0..5 if depth > 0 => self.counted(depth),
            5 | 6 if depth > 0 => self.diamond(depth),
            7 | 8 => self.call(),
            9 => self.switch(),
            10 | 11 => self.stack(depth),
            12 => self.string(),
            13 | 14 => self.patch(),
            15 => {
                let n = CALL + self.rng.random_range(0..CALLS);
                self.a.put(Instruction::with1(Code::Int_imm8, u32::from(n)));
            }
            16 => self.twin(),
            17 => self.odd(),
            _ => self.skip(depth),
        }
        if self.rng.random_ratio(1, 3) {
            self.straight();
        }
    }

    fn straight(&mut self) {
        for _ in 0..self.rng.random_range(1..12) {
            self.o.random(self.rng, &mut self.a);
            if self.rng.random_ratio(1, 30) {
                self.point();
            }
        }
    }

    /// Jcc over a few instructions.
    fn skip(&mut self, depth: u32) {
        let end = self.a.label();
        let cc = jcc(self.rng.random_range(0..16), self.a.bits);
        self.a.branch(cc, end);
        if self.rng.random() {
            self.straight();
        } else if depth > 0 {
            self.fragment(depth - 1);
        }
        self.a.bind(end);
        self.o.forget();
    }

    fn diamond(&mut self, depth: u32) {
        let (other, end) = (self.a.label(), self.a.label());
        let cc = jcc(self.rng.random_range(0..16), self.a.bits);
        self.a.branch(cc, other);
        self.fragment(depth - 1);
        self.jump(end);
        self.a.bind(other);
        self.o.forget();
        self.fragment(depth - 1);
        self.a.bind(end);
        self.o.forget();
    }

    /// A loop: the counter is in memory, or in the register that nothing else writes.
    fn counted(&mut self, depth: u32) {
        let times = if depth >= 3 { self.rng.random_range(2..60) } else { self.rng.random_range(2..12u32) };
        let inner = depth == 1 || self.rng.random_ratio(1, 3);
        let counter = self.o.counter();
        let cell = self.absolute(at::COUNTERS + self.cells * 8);
        if inner {
            self.o.load(&mut self.a, counter, u64::from(times));
        } else {
            self.cells = (self.cells + 1) % 0xC0;
            self.a.put(Instruction::with2(Code::Mov_rm32_imm32, cell, times));
        }
        let head = self.a.bound();
        self.o.forget();
        for _ in 0..self.rng.random_range(1..4) {
            // Nothing inside may use the counter's register.
            if inner { self.body() } else { self.fragment(depth - 1) }
        }
        if inner {
            let r = self.o.wide(counter);
            if self.rng.random() {
                let code = self.pick(Code::Dec_rm64, Code::Dec_rm32);
                self.a.put(Instruction::with1(code, r));
            } else {
                let code = self.pick(Code::Sub_rm64_imm8, Code::Sub_rm32_imm8);
                self.a.put(Instruction::with2(code, r, 1));
            }
        } else {
            self.a.put(Instruction::with2(Code::Sub_rm32_imm8, cell, 1));
        }
        self.a.branch(jcc([5, 15][usize::from(self.rng.random::<bool>())], self.a.bits), head);
        self.o.forget();
    }

    /// What may stand in an innermost loop.
    fn body(&mut self) {
        self.straight();
        match self.rng.random_range(0..8) {
            0..3 => {
                let end = self.a.label();
                let cc = jcc(self.rng.random_range(0..16), self.a.bits);
                self.a.branch(cc, end);
                self.straight();
                self.a.bind(end);
                self.o.forget();
            }
            3 => self.stack(0),
            4 => self.string(),
            5 => self.patch(),
            6 => self.switch(),
            _ => {}
        }
    }

    fn call(&mut self) {
        if self.functions.is_empty() {
            return;
        }
        let (to, bytes) = self.functions[self.rng.random_range(0..self.functions.len())];
        if bytes != 0 {
            let r = self.o.wide(0);
            let code = self.pick(Code::Push_r64, Code::Push_r32);
            self.a.put(Instruction::with1(code, r));
        }
        let word = self.o.word() as u32;
        let alias = if self.rng.random() && self.o.world.mode != Mode::Flat { self.o.world.alias } else { 0 };
        match self.rng.random_range(0..4) {
            0 => {
                let n = self.o.scratch(self.rng);
                let r = self.o.wide(n);
                let code = self.pick(Code::Mov_r64_imm64, Code::Mov_r32_imm32);
                let load = if word == 8 {
                    Instruction::with2(code, r, 0u64)
                } else {
                    Instruction::with2(code, r, 0u32)
                };
                self.a.with_immediate(load, to, alias);
                let code = self.pick(Code::Call_rm64, Code::Call_rm32);
                self.a.put(Instruction::with1(code, r));
            }
            1 if self.tables.len() < 200 => {
                // Through a table of functions with the same arguments.
                let same: Vec<Label> = self.functions.iter().filter(|f| f.1 == bytes).map(|f| f.0).collect();
                let code = self.pick(Code::Call_rm64, Code::Call_rm32);
                self.through_table(code, |n| same[n % same.len()]);
            }
            _ => self.branch(Code::Call_rel32_64, Code::Call_rel32_32, to),
        }
        self.o.forget();
    }

    /// A branch to one of four labels by a register that now has a value from 0 to 3.
    fn through_table(&mut self, code: Code, label: impl Fn(usize) -> Label) {
        let index = self.o.scratch(self.rng);
        let and = self.pick(Code::And_rm64_imm8, Code::And_rm32_imm8);
        let r = self.o.wide(index);
        self.a.put(Instruction::with2(and, r, 3));
        let table = at::TABLES + self.tables.len() as u64 * u64::from(self.o.word() as u32);
        self.tables.extend((0..4).map(label));
        let word = self.o.word() as u32;
        let m = MemoryOperand::new(Register::None, r, word, table as i64, word, false, Register::None);
        self.a.put(Instruction::with1(code, m));
    }

    fn switch(&mut self) {
        if self.tables.len() > 200 {
            return;
        }
        let labels: Vec<Label> = (0..4).map(|_| self.a.label()).collect();
        let end = self.a.label();
        let code = self.pick(Code::Jmp_rm64, Code::Jmp_rm32);
        self.through_table(code, |n| labels[n]);
        for label in labels {
            self.a.bind(label);
            self.o.forget();
            self.o.random(self.rng, &mut self.a);
            if self.rng.random_ratio(3, 4) {
                self.jump(end);
            }
        }
        self.a.bind(end);
        self.o.forget();
    }

    /// Pushes and pops in pairs.
    fn stack(&mut self, depth: u32) {
        let (r, to) = (self.o.scratch(self.rng), self.o.scratch(self.rng));
        let (r, to) = (self.o.wide(r), self.o.wide(to));
        match self.rng.random_range(0..6) {
            0 => {
                let value = self.rng.random_range(-100..100i32);
                let code = self.pick(Code::Pushq_imm8, Code::Pushd_imm8);
                self.a.put(Instruction::with1(code, value));
            }
            1 => {
                let address = self.o.target(self.rng, 8, false);
                let m = self.o.memory(self.rng, &mut self.a, address);
                let code = self.pick(Code::Push_rm64, Code::Push_rm32);
                self.a.put(Instruction::with1(code, m));
            }
            2 => self.a.put(Ok(Instruction::with(self.pick(Code::Pushfq, Code::Pushfd)))),
            3 => {
                // Status flags, DF, at CPL 0 IF; never TF, NT, IOPL.
                let value = self.rng.random::<i32>() & 0x4_0ED5;
                let code = self.pick(Code::Pushq_imm32, Code::Pushd_imm32);
                self.a.put(Instruction::with1(code, value));
                self.a.put(Ok(Instruction::with(self.pick(Code::Popfq, Code::Popfd))));
                return;
            }
            4 => {
                let bytes = self.rng.random_range(0..64u32);
                let code = self.pick(Code::Enterq_imm16_imm8, Code::Enterd_imm16_imm8);
                self.a.put(Instruction::with2(code, bytes, 0u32));
                self.a.put(Ok(Instruction::with(self.pick(Code::Leaveq, Code::Leaved))));
                return;
            }
            _ => {
                let code = self.pick(Code::Push_r64, Code::Push_r32);
                self.a.put(Instruction::with1(code, r));
            }
        }
        if depth > 0 {
            self.fragment(depth - 1)
        } else {
            self.straight()
        }
        if self.rng.random_ratio(1, 4) {
            let address = self.o.target(self.rng, 8, true);
            let m = self.o.memory(self.rng, &mut self.a, address);
            let code = self.pick(Code::Pop_rm64, Code::Pop_rm32);
            self.a.put(Instruction::with1(code, m));
        } else {
            let code = self.pick(Code::Pop_r64, Code::Pop_r32);
            self.a.put(Instruction::with1(code, to));
        }
        self.o.forget();
    }

    fn string(&mut self) {
        let count = self.rng.random_range(0..40);
        let (from, to) = (self.o.target(self.rng, 64, false), self.o.target(self.rng, 64, true));
        for (n, value) in [(6, from), (7, to), (1, count)] {
            self.o.load(&mut self.a, n, value);
        }
        self.a.put(Ok(Instruction::with(if self.rng.random_ratio(1, 4) { Code::Std } else { Code::Cld })));
        let prefix: &[u8] = [&[0xF3][..], &[0xF3], &[0xF2], &[]][self.rng.random_range(0..4)];
        let size: &[u8] = match self.rng.random_range(0..4) {
            0 => &[0x66],
            1 if self.long() => &[0x48],
            _ => &[],
        };
        let opcode =
            [0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF][self.rng.random_range(0..10)];
        // A REX prefix comes last.
        let bytes = if size == [0x66] { [size, prefix, &[opcode]] } else { [prefix, size, &[opcode]] };
        self.a.raw(&bytes.concat());
        if self.rng.random() {
            self.a.put(Ok(Instruction::with(Code::Cld)));
        }
        self.o.forget();
    }

    /// An instruction that may be patched: an operation of a register and 32 bits. Returns where it starts.
    fn point(&mut self) -> Label {
        let label = self.a.bound();
        let r = loop {
            let n = self.o.scratch(self.rng);
            if n < 8 {
                break n as u8;
            }
        };
        let mut bytes = vec![0x81, 0xC0 | self.rng.random_range(0..8) << 3 | r];
        bytes.extend(self.rng.random::<u32>().to_le_bytes());
        self.a.raw(&bytes);
        self.o.forget();
        self.points.push(label);
        label
    }

    /// A store into code: elsewhere, or a little ahead.
    fn patch(&mut self) {
        let ahead = self.points.is_empty() || self.rng.random_ratio(1, 3);
        let label =
            if ahead { self.a.label() } else { self.points[self.rng.random_range(0..self.points.len())] };
        let high = self.o.world.alias > 0x7FFF_FFFF || self.o.world.mode == Mode::Flat;
        let alias = if !high && self.rng.random() { self.o.world.alias } else { 0 };
        // A displacement that cannot be short before the label is known.
        let m = MemoryOperand::new(
            Register::None,
            Register::None,
            1,
            0x7FFF_0000,
            if self.long() { 8 } else { 4 },
            false,
            Register::None,
        );
        let byte = self.rng.random::<u8>();
        let n = self.o.scratch(self.rng);
        match self.rng.random_range(0..6) {
            0 | 1 => {
                let value = self.rng.random::<i32>();
                self.a.with_address(Instruction::with2(Code::Mov_rm32_imm32, m, value), label, alias + 2);
            }
            2 => {
                let x = Instruction::with2(Code::Mov_rm8_imm8, m, u32::from(byte));
                self.a.with_address(x, label, alias + 2 + u64::from(byte & 3));
            }
            3 => {
                // Another operation on the same register.
                let x = Instruction::with2(Code::Xor_rm8_imm8, m, u32::from(byte & 0x38));
                self.a.with_address(x, label, alias + 1);
            }
            4 => {
                let x = Instruction::with2(Code::Mov_rm32_r32, m, register(n, 4));
                self.a.with_address(x, label, alias + 2);
            }
            _ => {
                let mut x =
                    Instruction::with2(Code::Add_rm32_imm8, m, i32::from(byte as i8)).expect("operands");
                x.set_has_lock_prefix(self.rng.random());
                self.a.with_address(Ok(x), label, alias + 2);
            }
        }
        if ahead {
            for _ in 0..self.rng.random_range(0..4) {
                self.o.random(self.rng, &mut self.a);
            }
            // The instruction stands where the label was promised.
            let r = loop {
                let n = self.o.scratch(self.rng);
                if n < 8 {
                    break n as u8;
                }
            };
            self.a.bind(label);
            let mut bytes = vec![0x81, 0xC0 | self.rng.random_range(0..8) << 3 | r];
            bytes.extend(self.rng.random::<u32>().to_le_bytes());
            self.a.raw(&bytes);
            self.points.push(label);
        }
        self.o.forget();
    }

    /// A call into the page that is one of two.
    fn twin(&mut self) {
        let alias = if self.o.world.mode == Mode::Flat { 0 } else { self.o.world.alias };
        let to = alias + at::TWINS + 0x400 * self.rng.random_range(0..4);
        let n = self.o.scratch(self.rng);
        self.o.load(&mut self.a, n, to);
        let code = self.pick(Code::Call_rm64, Code::Call_rm32);
        self.a.put(Instruction::with1(code, self.o.wide(n)));
        self.o.forget();
    }

    /// Exceptions, traps, and what only CPL 0 may do.
    fn odd(&mut self) {
        let n = self.o.scratch(self.rng);
        let r = self.o.wide(n);
        match self.rng.random_range(0..8) {
            0 => self.a.raw(&[0x0F, 0x0B]),
            1 => self.a.raw(&[0xCC]),
            2 => self.a.raw(&[0xFA]),
            3 => self.a.raw(&[0xFB]),
            4 => {
                let (from, to) = if self.long() {
                    (Code::Mov_r64_cr, Code::Mov_cr_r64)
                } else {
                    (Code::Mov_r32_cr, Code::Mov_cr_r32)
                };
                self.a.put(Instruction::with2(from, r, Register::CR3));
                if self.o.world.cpl == 0 && self.o.world.mode != Mode::Flat {
                    self.a.put(Instruction::with2(to, Register::CR3, r));
                }
            }
            5 => {
                let m = self.absolute(at::DATA + 0x1000);
                self.a.put(Instruction::with1(Code::Invlpg_m, m));
            }
            6 => {
                // A division that mostly overflows.
                let code = self.pick(Code::Div_rm64, Code::Div_rm32);
                self.a.put(Instruction::with1(code, r));
            }
            _ => {
                // A branch to nowhere.
                self.o.load(&mut self.a, n, 0x1234_5678);
                let code = self.pick(Code::Jmp_rm64, Code::Jmp_rm32);
                self.a.put(Instruction::with1(code, r));
            }
        }
        self.o.forget();
    }
}
