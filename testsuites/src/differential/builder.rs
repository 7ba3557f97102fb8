//! The pieces that random programs are put together from.

use super::assembler::{Assembler, Label};
use super::forms::{jcc, register};
use super::kernel::{CALL, CALLS, END, Mode, World, at};
use super::operands::{BASE, Operands};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use rand::Rng;
use rand::rngs::SmallRng;

/// A program in the making.
pub struct Builder<'a> {
    pub rng: &'a mut SmallRng,
    pub a: Assembler,
    pub o: Operands<'a>,
    functions: Vec<(Label, u32)>,
    /// Instructions that may be patched.
    points: Vec<Label>,
    /// Entries of branch tables.
    pub tables: Vec<Label>,
    cells: u64,
    pub start: Label,
    /// Straight code has runs of x87 instructions.
    pub with_x87: bool,
}

impl<'a> Builder<'a> {
    pub fn new(rng: &'a mut SmallRng, world: &'a World, only: Option<&str>) -> Self {
        let mut a = Assembler::new(world.bits(), at::CODE);
        let start = a.label();
        let o = Operands::new(world, only.map(str::to_lowercase));
        let (functions, points, tables) = Default::default();
        Builder { rng, a, o, functions, points, tables, cells: 0, start, with_x87: false }
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

    pub fn build(&mut self) {
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

    pub fn ret(&mut self, bytes: u32) {
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
            18 => self.count_is_zero(),
            _ => self.skip(depth),
        }
        if self.rng.random_ratio(1, 3) {
            self.straight();
        }
    }

    fn straight(&mut self) {
        if self.with_x87 && self.rng.random() {
            return self.x87();
        }
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
            if inner {
                self.body();
            } else {
                self.fragment(depth - 1);
            }
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
        } else if self.rng.random_ratio(1, 3) {
            self.loop_back(cell, head);
            self.o.forget();
            return;
        } else {
            self.a.put(Instruction::with2(Code::Sub_rm32_imm8, cell, 1));
        }
        self.a.branch(jcc([5, 15][usize::from(self.rng.random::<bool>())], self.a.bits), head);
        self.o.forget();
    }

    /// LOOP, LOOPE or LOOPNE back to `head` with the count in `cell`: they reach only 127 bytes.
    fn loop_back(&mut self, cell: MemoryOperand, head: Label) {
        let (again, end) = (self.a.label(), self.a.label());
        self.a.put(Instruction::with2(Code::Mov_r32_rm32, Register::ECX, cell));
        self.a.put(Instruction::with2(Code::Sub_rm32_imm8, cell, 1));
        let n = self.rng.random_range(0..4);
        let code = if self.long() {
            [
                Code::Loop_rel8_64_RCX,
                Code::Loop_rel8_64_ECX,
                Code::Loope_rel8_64_RCX,
                Code::Loopne_rel8_64_RCX,
            ][n]
        } else {
            [Code::Loop_rel8_32_ECX, Code::Loop_rel8_32_CX, Code::Loope_rel8_32_ECX, Code::Loopne_rel8_32_ECX]
                [n]
        };
        self.a.branch(code, again);
        self.jump(end);
        self.a.bind(again);
        self.jump(head);
        self.a.bind(end);
    }

    /// JRCXZ over one instruction.
    fn count_is_zero(&mut self) {
        let end = self.a.label();
        let narrow = self.rng.random();
        let code = match (self.long(), narrow) {
            (true, false) => Code::Jrcxz_rel8_64,
            (true, true) => Code::Jecxz_rel8_64,
            (false, false) => Code::Jecxz_rel8_32,
            (false, true) => Code::Jcxz_rel8_32,
        };
        if self.rng.random() {
            let value = self.rng.random::<u32>() & 0x1_0000;
            self.o.load(&mut self.a, 1, u64::from(value));
        }
        self.a.branch(code, end);
        self.o.random(self.rng, &mut self.a);
        self.a.bind(end);
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
                // Status flags, DF, AC, at CPL 0 IF, seldom TF; never NT and IOPL.
                let step = if self.rng.random_ratio(1, 16) { 0x100 } else { 0 };
                let value = self.rng.random::<i32>() & 0x4_0ED5 | step;
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
            self.fragment(depth - 1);
        } else {
            self.straight();
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
    pub fn point(&mut self) -> Label {
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
        match self.rng.random_range(0..12) {
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
            // OUT 80h, AL and IN EAX, 80h.
            7 => self.a.raw(&[0xE6, 0x80]),
            8 => self.a.raw(&[0xE5, 0x80]),
            9 | 10 => {
                // Rounding, DAZ, FTZ, and sometimes an exception that is not masked.
                let mut value = 0x1F80 | self.rng.random::<u32>() & 0xE040;
                if self.rng.random_ratio(1, 3) {
                    value &= !(0x80 << self.rng.random_range(0..6));
                }
                let cell = self.absolute(at::OTHER_MXCSR);
                self.a.put(Instruction::with2(Code::Mov_rm32_imm32, cell, value));
                self.a.put(Instruction::with1(Code::Ldmxcsr_m32, cell));
            }
            6 => {
                // A division that mostly overflows.
                let code = self.pick(Code::Div_rm64, Code::Div_rm32);
                self.a.put(Instruction::with1(code, r));
            }
            // Without paging nowhere is device memory, from which the engine may fetch once more than the interpreter:
            // `code_in_device_memory` among the directed tests.
            _ if self.o.world.mode == Mode::Flat => self.a.raw(&[0x0F, 0x0B]),
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
