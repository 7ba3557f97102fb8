//! The instructions of such programs.

use super::super::assembler::{Assembler, Label};
use super::super::forms::{Forms, group, like, register, writes};
use super::super::kernel::{CALL, END};
use super::super::operands::{encodes, immediate};
use super::place::Place;
use iced_x86::{Code, Instruction, InstructionInfoFactory, MemoryOperand, OpKind, Register};
use rand::Rng;
use rand::rngs::SmallRng;
use trimaran_cpu::state::seg;

const SEGMENTS: [Register; 6] =
    [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
/// 16-bit addressing: base, index.
const NARROW: [(Option<usize>, Option<usize>); 9] = [
    (Some(3), Some(6)),
    (Some(3), Some(7)),
    (Some(5), Some(6)),
    (Some(5), Some(7)),
    (Some(6), None),
    (Some(7), None),
    (Some(5), None),
    (Some(3), None),
    (None, None),
];
/// Loops count in BP, or R14.
const COUNTER: usize = 5;
const LONG_COUNTER: usize = 14;

/// Puts a program together.
pub struct Builder<'a> {
    rng: &'a mut SmallRng,
    place: &'a Place,
    a: Assembler,
    forms: &'static Forms,
    factory: InstructionInfoFactory,
    /// Functions: where, and the operand size of their RET; far ones apart.
    near: Vec<(Label, u32)>,
    far: Vec<(Label, u32)>,
}

impl<'a> Builder<'a> {
    pub fn new(rng: &'a mut SmallRng, place: &'a Place) -> Self {
        let a = Assembler::new(place.bits, place.start);
        let forms = Forms::of(place.bits);
        let (near, far) = Default::default();
        Builder { rng, place, a, forms, factory: InstructionInfoFactory::new(), near, far }
    }

    /// The code, and where its pieces start.
    pub fn build(mut self) -> (Vec<u8>, Vec<u64>) {
        for _ in 0..self.rng.random_range(1..4) {
            self.function();
        }
        let mut pieces = Vec::new();
        for _ in 0..self.rng.random_range(3..10) {
            pieces.push(self.a.here());
            self.piece();
        }
        pieces.push(self.a.here());
        self.a.put(Instruction::with1(Code::Int_imm8, u32::from(END)));
        self.a.raw(&[0xEB, 0xFC]);
        self.a.finish();
        assert!(self.a.bytes.len() < 0x4000, "a program of {} bytes", self.a.bytes.len());
        (self.a.bytes, pieces)
    }

    fn long(&self) -> bool {
        self.place.bits == 64
    }
    fn counter(&self) -> usize {
        if self.long() { LONG_COUNTER } else { COUNTER }
    }
    /// An operand size of stacks and branches.
    fn size(&mut self) -> u32 {
        match self.place.bits {
            64 => 64,
            bits if self.rng.random_ratio(1, 5) => 48 - bits,
            bits => bits,
        }
    }
    /// One of the three codes of an instruction that iced lists by operand size.
    fn sized(first: Code, size: u32) -> Code {
        Code::try_from(first as usize + size as usize / 32).expect("three sizes")
    }
    /// Bytes of an instruction with the operand size, if that takes a prefix.
    fn raw(&mut self, size: u32, bytes: &[u8]) {
        let prefix: &[u8] = if size == self.place.bits { &[] } else { &[0x66] };
        self.a.raw(&[prefix, bytes].concat());
    }
    /// A general register that may be overwritten.
    fn scratch(&mut self) -> usize {
        loop {
            let n = self.rng.random_range(0..if self.long() { 16 } else { 8 });
            if n != 4 && n != self.counter() {
                return n;
            }
        }
    }

    fn load(&mut self, n: usize, size: u32, value: u64) {
        let r = register(n, size as usize / 8);
        self.a.put(match size {
            16 => Instruction::with2(Code::Mov_r16_imm16, r, u32::from(value as u16)),
            32 => Instruction::with2(Code::Mov_r32_imm32, r, value as u32),
            _ => Instruction::with2(Code::Mov_r64_imm64, r, value),
        });
    }
    fn load_label(&mut self, n: usize, size: u32, label: Label) {
        let r = register(n, size as usize / 8);
        let x = match size {
            16 => Instruction::with2(Code::Mov_r16_imm16, r, 0u32),
            32 => Instruction::with2(Code::Mov_r32_imm32, r, 0u32),
            _ => Instruction::with2(Code::Mov_r64_imm64, r, 0u64),
        };
        self.a.with_immediate(x, label, 0);
    }

    fn function(&mut self) {
        let over = self.a.label();
        self.a.branch(Self::sized(Code::Jmp_rel16, self.place.bits), over);
        let (start, size) = (self.a.bound(), self.size());
        self.straight(6);
        let far = !self.long() && self.rng.random_ratio(1, 3);
        self.raw(size, &[if far { 0xCB } else { 0xC3 }]);
        if far {
            self.far.push((start, size));
        } else {
            self.near.push((start, size));
        }
        self.a.bind(over);
    }

    /// From here on a program may be entered: nothing is known but segments and stack.
    fn piece(&mut self) {
        if !self.long() {
            for _ in 0..self.rng.random_range(0..3) {
                self.load_segment();
            }
            if self.rng.random_ratio(1, 6) {
                self.set_stack();
            }
        }
        let counter = self.counter();
        let times = self.rng.random_range(4..60);
        self.load(counter, 32, times);
        let head = self.a.bound();
        for _ in 0..self.rng.random_range(1..5) {
            self.part();
        }
        let r = register(counter, 4);
        self.a.put(Instruction::with2(Code::Sub_rm32_imm8, r, 1));
        self.a.branch(Self::sized(Code::Jne_rel16, self.place.bits), head);
    }

    fn part(&mut self) {
        self.straight(8);
        match self.rng.random_range(0..20) {
            0..4 => self.skip(),
            4..7 => self.call(),
            7..10 => self.stack(),
            10..12 => self.string(),
            12 => self.count(),
            13 => self.indirect(),
            14 if !self.long() => self.load_segment(),
            15 if !self.long() => self.jump_far(),
            16 => self.odd(),
            _ => self.straight(4),
        }
    }

    fn straight(&mut self, most: usize) {
        for _ in 0..self.rng.random_range(1..=most) {
            self.random();
        }
    }

    fn jcc(&mut self, short: bool, size: u32) -> Code {
        let first = if short { Code::Jo_rel8_16 } else { Code::Jo_rel16 };
        let condition = self.rng.random_range(0..16);
        Code::try_from(first as usize + condition * 3 + size as usize / 32).expect("a condition")
    }

    fn skip(&mut self) {
        let (end, size, short) = (self.a.label(), self.size(), self.rng.random());
        let code = self.jcc(short, size);
        self.a.branch(code, end);
        // A short branch does not reach far.
        self.straight(if short { 3 } else { 8 });
        self.a.bind(end);
    }

    fn call(&mut self) {
        let far = !self.far.is_empty() && self.rng.random_ratio(1, 2);
        let list = if far { &self.far } else { &self.near };
        if list.is_empty() {
            return;
        }
        let (to, size) = list[self.rng.random_range(0..list.len())];
        if far {
            let code = if size == 16 { Code::Call_ptr1616 } else { Code::Call_ptr1632 };
            let x = Instruction::with_far_branch(code, self.place.code.selector, 0x1234);
            self.a.with_immediate(x, to, 0);
        } else if self.rng.random_ratio(1, 3) {
            let n = self.scratch();
            self.load_label(n, size, to);
            let r = register(n, size as usize / 8);
            self.a.put(Instruction::with1(Self::sized(Code::Call_rm16, size), r));
        } else {
            self.a.branch(Self::sized(Code::Call_rel16, size), to);
        }
    }

    fn jump_far(&mut self) {
        let (end, size) = (self.a.label(), self.size());
        let code = if size == 16 { Code::Jmp_ptr1616 } else { Code::Jmp_ptr1632 };
        let x = Instruction::with_far_branch(code, self.place.code.selector, 0x1234);
        self.a.with_immediate(x, end, 0);
        self.straight(2);
        self.a.bind(end);
    }

    /// JMP by a register, over a few instructions; seldom to anywhere.
    fn indirect(&mut self) {
        let (end, size, n) = (self.a.label(), self.size(), self.scratch());
        if self.rng.random_ratio(1, 8) {
            let offset = self.place.start.wrapping_sub(self.rng.random_range(0..0x40));
            self.load(n, size, offset);
        } else {
            self.load_label(n, size, end);
        }
        self.a.put(Instruction::with1(Self::sized(Code::Jmp_rm16, size), register(n, size as usize / 8)));
        self.straight(2);
        self.a.bind(end);
    }

    /// Pushes and pops that mostly balance.
    fn stack(&mut self) {
        let size = self.size();
        let (n, to) = (self.scratch() as u8 & 7, self.scratch() as u8 & 7);
        let to = if to == 4 || usize::from(to) == COUNTER { 0 } else { to };
        match self.rng.random_range(0..8) {
            0 => self.raw(size, &[0x9C]),
            1 if !self.long() => {
                self.raw(size, &[0x60]);
                self.straight(2);
                return self.raw(size, &[0x61]);
            }
            2 => {
                let (bytes, level) = (self.rng.random_range(0..32), self.rng.random_range(0..3));
                self.raw(size, &[0xC8, bytes, 0, level]);
                return self.raw(size, &[0xC9]);
            }
            3 => {
                let value = self.rng.random();
                self.raw(size, &[0x6A, value]);
            }
            4 => {
                if !self.with_memory(Self::sized(Code::Push_rm16, size)) {
                    self.raw(size, &[0x50 | n]);
                }
            }
            5 => {
                // FS or GS.
                let which = self.rng.random_range(0..2) * 8;
                self.raw(size, &[0x0F, 0xA0 | which]);
                if self.rng.random() && !self.long() {
                    return self.raw(size, &[0x0F, 0xA1 | which]);
                }
            }
            _ => self.raw(size, &[0x50 | n]),
        }
        self.straight(2);
        match self.rng.random_range(0..4) {
            0 if self.with_memory(Self::sized(Code::Pop_rm16, size)) => {}
            // Another size: the stack pointer moves.
            1 if self.rng.random_ratio(1, 8) => self.a.raw(&[0x66, 0x58 | to]),
            _ => self.raw(size, &[0x58 | to]),
        }
    }

    /// The stack pointer near an end.
    fn set_stack(&mut self) {
        let values = [0, 1, 2, 3, 6, 0xFFFE, 0xFFFF, 0x1_0000, 0x2000];
        let value = values[self.rng.random_range(0..values.len())];
        let size = if self.rng.random() { 16 } else { 32 };
        self.load(4, size, self.place.windows[0].data + value);
    }

    fn string(&mut self) {
        let address = if self.rng.random_ratio(1, 5) { 1 } else { 0 };
        let size = match (self.place.bits, address) {
            (16, 0) | (32, 1) => 16,
            (64, 0) => 64,
            _ => 32,
        };
        for (n, segment) in [(6, seg::DS), (7, seg::ES)] {
            let window = self.place.initial[segment];
            let offset = self.place.offset(self.rng, window);
            self.load(n, size, offset);
        }
        let count = self.rng.random_range(0..20);
        self.load(1, size, count);
        self.a.raw(&[if self.rng.random_ratio(1, 3) { 0xFD } else { 0xFC }]);
        let mut bytes = Vec::new();
        if address == 1 {
            bytes.push(0x67);
        }
        if self.rng.random_ratio(1, 3) {
            bytes.push(0x66);
        }
        if self.rng.random_ratio(1, 5) {
            bytes.push([0x26, 0x2E, 0x36, 0x64, 0x65][self.rng.random_range(0..5)]);
        }
        bytes.extend([&[0xF3][..], &[0xF2], &[]][self.rng.random_range(0..3)]);
        bytes
            .push([0xA4, 0xA5, 0xA6, 0xA7, 0xAA, 0xAB, 0xAC, 0xAD, 0xAE, 0xAF][self.rng.random_range(0..10)]);
        self.a.raw(&bytes);
    }

    /// LOOP or JCXZ over an instruction or two, with either size of the counter.
    fn count(&mut self) {
        let value = [0, 1, 2, 0x1_0000, 0x1_0001][self.rng.random_range(0..5)];
        self.load(1, 32, value);
        if self.rng.random() {
            self.a.raw(&[0x67]);
        }
        let at = self.a.bytes.len();
        self.a.raw(&[0xE0 | self.rng.random_range(0..4), 0]);
        self.straight(2);
        let distance = self.a.bytes.len() - at - 2;
        self.a.bytes[at + 1] = distance as u8;
    }

    fn load_segment(&mut self) {
        let window = self.rng.random_range(0..self.place.windows.len());
        let selector = self.place.windows[window].segment.selector;
        let which = [seg::ES, seg::DS, seg::FS, seg::GS, seg::SS][self.rng.random_range(0..5)];
        // A stack that is not the first may lie anywhere: seldom.
        let selector = if which == seg::SS && self.rng.random_ratio(7, 8) {
            self.place.windows[0].segment.selector
        } else {
            selector
        };
        if self.rng.random_ratio(1, 3) && matches!(which, seg::ES | seg::DS) {
            self.a.put(Instruction::with1(
                if self.place.bits == 16 { Code::Push_imm16 } else { Code::Pushd_imm32 },
                u32::from(selector),
            ));
            self.a.raw(&[if which == seg::ES { 0x07 } else { 0x1F }]);
        } else {
            self.load(0, 16, selector.into());
            self.a.raw(&[0x8E, 0xC0 | (which as u8) << 3]);
        }
    }

    /// Exceptions, traps, flags, and what not every level may do.
    fn odd(&mut self) {
        let size = self.size();
        match self.rng.random_range(0..10) {
            0 => self.a.raw(&[0x0F, 0x0B]),
            1 => self.a.raw(&[0xCC]),
            2 => self.a.raw(&[0xCD, CALL + self.rng.random_range(0..8)]),
            3 => self.a.raw(&[if self.rng.random() { 0xFA } else { 0xFB }]),
            4 if !self.long() => self.a.raw(&[0xCE]),
            5 if !self.long() => {
                // IRET to what follows it, on the same level.
                let end = self.a.label();
                self.raw(size, &[0x9C]);
                self.raw(size, &[0x0E]);
                let n = self.scratch();
                self.load_label(n, size, end);
                self.raw(size, &[0x50 | n as u8]);
                self.raw(size, &[0xCF]);
                self.a.bind(end);
            }
            6 | 7 => {
                // Status flags, DF, IF, seldom TF.
                let value = self.rng.random::<u16>() & 0xED5;
                let value = if self.rng.random_ratio(1, 8) { value } else { value & !0x100 };
                let mut bytes = vec![0x68];
                bytes.extend(&u32::from(value).to_le_bytes()[..if size == 16 { 2 } else { 4 }]);
                self.raw(size, &bytes);
                self.raw(size, &[0x9D]);
            }
            8 => self.a.raw(&[0xE4, 0x80]),
            _ => {
                // A LOCK that is not allowed.
                self.a.raw(&[0xF0, 0x90]);
            }
        }
    }

    /// Puts a random instruction.
    fn random(&mut self) {
        for _ in 0..200 {
            let group = match self.rng.random_range(0..20) {
                0 if self.place.avx => group::AVX,
                1 if self.place.avx => group::BMI,
                0..13 => group::COMMON,
                13..16 => group::GENERAL,
                16..19 => group::SSE,
                _ => group::X87,
            };
            let forms = &self.forms.groups[group];
            let x = forms[self.rng.random_range(0..forms.len())];
            if self.put(x) {
                return;
            }
        }
        self.a.raw(&[0x90]);
    }

    /// Puts an instruction of a form; false: these operands have no encoding.
    fn put(&mut self, mut x: Instruction) -> bool {
        for n in 0..x.op_count() {
            match x.op_kind(n) {
                OpKind::Register => {
                    let before = x;
                    x.set_op_register(n, like(self.rng, x.op_register(n), self.place.bits));
                    if !encodes(&mut self.a, &x) {
                        x = before;
                    }
                }
                OpKind::Memory => {}
                kind => x.set_immediate_i64(n, immediate(self.rng, kind)),
            }
        }
        let reserved = 1 << 4 | 1 << self.counter();
        if writes(self.factory.info(&x), reserved) {
            return false;
        }
        if (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory) {
            let m = self.memory();
            x.set_memory_base(m.base);
            x.set_memory_index(m.index);
            x.set_memory_index_scale(m.scale.max(1));
            x.set_memory_displacement64(m.displacement as u64);
            x.set_memory_displ_size(m.displ_size);
            x.set_segment_prefix(m.segment_prefix);
        }
        self.a.try_put(&x)
    }

    /// Puts an instruction with an operand in memory; false: it lies too far for a relative address.
    fn with_memory(&mut self, code: Code) -> bool {
        let m = self.memory();
        Instruction::with1(code, m).is_ok_and(|x| self.a.try_put(&x))
    }

    /// A memory operand; puts what prepares its registers, most times.
    fn memory(&mut self) -> MemoryOperand {
        let wide = match self.place.bits {
            16 => {
                if self.rng.random_ratio(1, 4) {
                    32
                } else {
                    16
                }
            }
            32 => {
                if self.rng.random_ratio(1, 6) {
                    16
                } else {
                    32
                }
            }
            _ => {
                if self.rng.random_ratio(1, 6) {
                    32
                } else {
                    64
                }
            }
        };
        let prefix = if self.rng.random_ratio(1, 5) { Some(self.rng.random_range(0..6)) } else { None };
        let segment = prefix.map_or(Register::None, |n: usize| SEGMENTS[n]);
        let window = self.place.initial[prefix.filter(|&n| n != seg::CS).unwrap_or(seg::DS)];
        let offset = self.place.offset(self.rng, window);
        let displacement = match self.rng.random_range(0..3) {
            0 => 0,
            1 => i64::from(self.rng.random::<i8>()),
            _ => i64::from(self.rng.random_range(-0x800..0x800i16)),
        };
        if wide == 16 {
            return self.narrow(offset, displacement, segment);
        }
        let size = wide / 8;
        if self.long() && self.rng.random_ratio(1, 4) {
            return self.relative(wide, segment);
        }
        if self.rng.random_ratio(1, 8) {
            let value = if self.long() { i64::from(offset as i32) } else { offset as i64 };
            return MemoryOperand::new(Register::None, Register::None, 1, value, size, false, segment);
        }
        let base = self.scratch();
        let mut rest = offset.wrapping_sub(displacement as u64);
        let (mut index, mut scale) = (Register::None, 1);
        if self.rng.random_ratio(1, 3) {
            let n = self.scratch();
            if n != base {
                let k = self.rng.random_range(0..0x40);
                scale = 1 << self.rng.random_range(0..4);
                self.load(n, wide, k);
                rest = rest.wrapping_sub(k * u64::from(scale));
                index = register(n, wide as usize / 8);
            }
        }
        if self.rng.random_ratio(7, 8) {
            self.load(base, wide, rest);
        }
        let displacement_size = if displacement == 0 { 0 } else { size };
        let base = register(base, wide as usize / 8);
        MemoryOperand::new(base, index, scale, displacement, displacement_size, false, segment)
    }

    fn narrow(&mut self, offset: u64, displacement: i64, segment: Register) -> MemoryOperand {
        let (base, index) = NARROW[self.rng.random_range(0..NARROW.len())];
        let name = |n: Option<usize>| n.map_or(Register::None, |n| register(n, 2));
        if base.is_none() {
            let value = i64::from(offset as u16);
            return MemoryOperand::new(Register::None, Register::None, 1, value, 2, false, segment);
        }
        let mut rest = offset.wrapping_sub(displacement as u64);
        if let Some(n) = index {
            let k = self.rng.random::<u16>().into();
            self.load(n, 16, k);
            rest = rest.wrapping_sub(k);
        }
        if let Some(n) = base.filter(|&n| n != COUNTER)
            && self.rng.random_ratio(7, 8)
        {
            self.load(n, 16, rest);
        }
        let size = if displacement == 0 { 0 } else { 2 };
        MemoryOperand::new(name(base), name(index), 1, displacement, size, false, segment)
    }

    /// Relative to RIP or EIP: to the code, or as far as a displacement reaches.
    fn relative(&mut self, wide: u32, segment: Register) -> MemoryOperand {
        let here = self.a.here();
        let distance = match self.rng.random_range(0..4) {
            0 => i64::from(self.rng.random::<i32>()),
            1 => 0x7FFF_FF00 - i64::from(self.rng.random::<u8>()),
            2 => 0x2_0000i64.wrapping_sub(here as i64),
            _ => i64::from(self.rng.random_range(0..0x400)),
        };
        let target = here.wrapping_add(distance as u64);
        if wide == 64 {
            MemoryOperand::new(Register::RIP, Register::None, 1, target as i64, 8, false, segment)
        } else {
            let target = i64::from(target as u32);
            MemoryOperand::new(Register::EIP, Register::None, 1, target, 4, false, segment)
        }
    }
}
