//! Random instructions with operands that lead somewhere: mostly into the data area, often over its page boundaries,
//! sometimes into pages that are absent, read-only, devices, code, or nowhere.

use super::assembler::Assembler;
use super::forms::{Forms, group, like, register, writes};
use super::kernel::{ABSENT, READ_ONLY, SUPERVISOR, World, at};
use iced_x86::{Code, Instruction, InstructionInfoFactory, MemoryOperand, OpAccess, OpKind, Register};
use rand::Rng;
use rand::rngs::SmallRng;

/// Puts random instructions. The data base is always in R15 or EBP, and R14 or EBX counts the innermost loop.
pub struct Operands<'a> {
    pub world: &'a World,
    forms: &'static Forms,
    /// Prefix of the names of the forms that may be drawn.
    only: Option<String>,
    /// What is known to be in a register.
    known: [Option<u64>; 16],
    factory: InstructionInfoFactory,
}

/// The middle of the data area, which the base register holds.
pub const BASE: u64 = at::DATA + 0x2000;

impl<'a> Operands<'a> {
    pub fn new(world: &'a World, only: Option<String>) -> Self {
        let factory = InstructionInfoFactory::new();
        Operands { world, forms: Forms::of(world.bits()), only, known: [None; 16], factory }
    }

    pub fn base(&self) -> usize {
        if self.world.bits() == 64 { 15 } else { 5 }
    }
    pub fn counter(&self) -> usize {
        if self.world.bits() == 64 { 14 } else { 3 }
    }
    fn reserved(&self) -> u32 {
        1 << 4 | 1 << self.base() | 1 << self.counter()
    }
    pub fn word(&self) -> usize {
        self.world.word() as usize
    }
    /// A register of the machine's word.
    pub fn wide(&self, number: usize) -> Register {
        register(number, self.word())
    }

    /// A register that may be overwritten.
    pub fn scratch(&self, rng: &mut SmallRng) -> usize {
        loop {
            let n = rng.random_range(0..if self.world.bits() == 64 { 16 } else { 8 });
            if self.reserved() >> n & 1 == 0 {
                return n;
            }
        }
    }

    /// Control may come from elsewhere: nothing is known of registers.
    pub fn forget(&mut self) {
        self.known = [None; 16];
    }

    /// Loads a constant.
    pub fn load(&mut self, a: &mut Assembler, number: usize, value: u64) {
        let r = self.wide(number);
        a.put(if self.world.bits() == 64 {
            if u32::try_from(value).is_ok() {
                Instruction::with2(Code::Mov_r32_imm32, register(number, 4), value as u32)
            } else {
                Instruction::with2(Code::Mov_r64_imm64, r, value)
            }
        } else {
            Instruction::with2(Code::Mov_r32_imm32, r, value as u32)
        });
        self.known[number] = Some(value);
    }

    /// An address for an access of `size` bytes.
    pub fn target(&self, rng: &mut SmallRng, size: u64, write: bool) -> u64 {
        let wide = size.next_power_of_two().clamp(1, 16);
        let align = if rng.random_ratio(2, 3) { wide } else { 1 };
        let plain = at::DATA + rng.random_range(0..0x3F00);
        let address = match rng.random_range(0..100) {
            0..72 => plain,
            72..80 => at::DATA + 0x1000 * rng.random_range(1..4) - rng.random_range(0..=size),
            80..83 => READ_ONLY + rng.random_range(0..0x1000),
            83..87 => ABSENT + rng.random_range(0..0x1000) - size,
            87..89 => SUPERVISOR + rng.random_range(0..0x800),
            89..91 => at::MMIO + rng.random_range(0..0x1000),
            // Only reads: random code need not end.
            91..94 if !write => at::CODE + rng.random_range(0..0x7F00),
            94 if self.world.bits() == 64 => return 0x8000_0000_0000 - rng.random_range(0..=size),
            _ => at::DATA + rng.random_range(0..0x400),
        };
        address & !(align - 1)
    }

    /// A memory operand for `address`; may put instructions that prepare registers.
    pub fn memory(&mut self, rng: &mut SmallRng, a: &mut Assembler, address: u64) -> MemoryOperand {
        let long = self.world.bits() == 64;
        let (base, none) = (self.wide(self.base()), Register::None);
        let near = |d: i64| i32::try_from(d).is_ok();
        let m = |base, index, scale, displacement: i64, segment| {
            let size = if displacement == 0 && base != Register::None { 0 } else { if long { 8 } else { 4 } };
            MemoryOperand::new(base, index, scale, displacement, size, false, segment)
        };
        let from_base = address.wrapping_sub(BASE) as i64;
        if !near(from_base) || rng.random_ratio(1, 8) {
            let p = self.scratch(rng);
            self.load(a, p, address);
            return m(self.wide(p), none, 1, 0, none);
        }
        // A pointer that is there already, as compilers use them.
        let pointer = (0..16).find(|&n| {
            self.known[n].is_some_and(|v| (v as i64).wrapping_sub(address as i64).unsigned_abs() < 0x8000)
        });
        match rng.random_range(0..14) {
            0 if long => m(Register::RIP, none, 1, address as i64, none),
            0 | 1 => m(none, none, 1, address as i64, none),
            2..5 => {
                let index = self.scratch(rng);
                let k = rng.random_range(0..64);
                let scale = 1 << rng.random_range(0..4);
                self.load(a, index, k);
                m(base, self.wide(index), scale, from_base - (k * u64::from(scale)) as i64, none)
            }
            5 => {
                let index = self.scratch(rng);
                let k = rng.random_range(0..0x400);
                self.load(a, index, k);
                m(none, self.wide(index), 8, address as i64 - (k * 8) as i64, none)
            }
            6 if long => {
                // 32-bit addresses ignore what is above.
                let p = self.scratch(rng);
                let delta = rng.random_range(-0x200..0x200i64);
                let garbage = rng.random::<u64>() << 32;
                self.load(a, p, address.wrapping_add(delta as u64) & 0xFFFF_FFFF | garbage);
                MemoryOperand::new(register(p, 4), none, 1, -delta, 4, false, none)
            }
            7 | 8 => {
                let (segment, from) =
                    if rng.random() { (Register::FS, self.world.fs) } else { (Register::GS, self.world.gs) };
                let mask = if long { !0 } else { 0xFFFF_FFFF };
                let rest = address.wrapping_sub(from) & mask;
                if near(rest as i64) && rng.random() {
                    m(none, none, 1, rest as i64, segment)
                } else {
                    let p = self.scratch(rng);
                    self.load(a, p, rest);
                    m(self.wide(p), none, 1, 0, segment)
                }
            }
            9..12 if pointer.is_some() => {
                let p = pointer.unwrap_or(0);
                let v = self.known[p].unwrap_or(0);
                m(self.wide(p), none, 1, address.wrapping_sub(v) as i64, none)
            }
            12 => {
                let p = self.scratch(rng);
                let delta = rng.random_range(-0x80..0x80i64);
                self.load(a, p, address.wrapping_add(delta as u64));
                m(self.wide(p), none, 1, -delta, none)
            }
            _ => m(base, none, 1, from_base, none),
        }
    }

    /// Puts one random instruction.
    pub fn random(&mut self, rng: &mut SmallRng, a: &mut Assembler) {
        let groups = if self.world.avx { group::COUNT } else { group::BMI };
        for _ in 0..400 {
            let group = match rng.random_range(0..20) {
                _ if self.only.is_some() => rng.random_range(0..groups),
                0..4 if self.world.avx => group::AVX,
                4 | 5 if self.world.avx => group::BMI,
                0..14 => group::COMMON,
                14..16 => group::GENERAL,
                16..19 => group::SSE,
                _ => group::X87,
            };
            let forms = &self.forms.groups[group];
            if forms.is_empty() {
                continue;
            }
            let x = forms[rng.random_range(0..forms.len())];
            if let Some(only) = &self.only
                && !format!("{:?}", x.code()).to_lowercase().starts_with(only.as_str())
            {
                continue;
            }
            if self.put(rng, a, x) {
                return;
            }
        }
        a.put(Ok(Instruction::with(Code::Nopd)));
    }

    /// Puts an instruction of a form; false: these operands have no encoding.
    fn put(&mut self, rng: &mut SmallRng, a: &mut Assembler, mut x: Instruction) -> bool {
        for n in 0..x.op_count() {
            match x.op_kind(n) {
                OpKind::Register => {
                    let old = x.op_register(n);
                    let before = x;
                    x.set_op_register(n, like(rng, old, self.world.bits()));
                    // Registers that are part of the opcode stay.
                    if !encodes(a, &x) {
                        x = before;
                    }
                }
                OpKind::Memory => {}
                kind => {
                    let value = immediate(rng, kind);
                    x.set_immediate_i64(n, value);
                }
            }
        }
        let reserved = self.reserved();
        if writes(self.factory.info(&x), reserved) {
            return false;
        }
        let memory = (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory);
        if memory && rng.random_ratio(199, 200) {
            let info = self.factory.info(&x);
            let write =
                info.used_memory().iter().any(|m| !matches!(m.access(), OpAccess::Read | OpAccess::CondRead));
            let size = x.memory_size().size().max(1) as u64;
            // A bit offset in a register reaches far.
            let bits = matches!(
                x.mnemonic(),
                iced_x86::Mnemonic::Bt
                    | iced_x86::Mnemonic::Bts
                    | iced_x86::Mnemonic::Btr
                    | iced_x86::Mnemonic::Btc
            );
            if bits && x.op1_kind() == OpKind::Register && !x.op1_register().is_gpr8() {
                let n = x.op1_register().number();
                if self.reserved() >> n & 1 != 0 {
                    return false;
                }
                self.load(a, n, rng.random_range(0..0x2000));
            }
            let address = self.target(rng, size, write);
            let m = self.memory(rng, a, address);
            x.set_memory_base(m.base);
            x.set_memory_index(m.index);
            x.set_memory_index_scale(m.scale.max(1));
            x.set_memory_displacement64(m.displacement as u64);
            x.set_memory_displ_size(m.displ_size);
            x.set_segment_prefix(m.segment_prefix);
        }
        for used in self.factory.info(&x).used_registers() {
            let full = used.register().full_register();
            if full.is_gpr() && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
                self.known[full.number()] = None;
            }
        }
        a.try_put(&x)
    }
}

pub fn encodes(a: &mut Assembler, x: &Instruction) -> bool {
    let mut y = *x;
    if y.memory_base() == Register::RIP {
        y.set_memory_base(Register::RAX);
        y.set_memory_displacement64(0);
        y.set_memory_displ_size(0);
    }
    a.encodes(&y)
}

pub fn immediate(rng: &mut SmallRng, kind: OpKind) -> i64 {
    let value = match rng.random_range(0..4) {
        0 => rng.random_range(-2..=2),
        1 => rng.random_range(0..70),
        2 => i64::from(rng.random::<i8>()),
        _ => rng.random(),
    };
    match kind {
        OpKind::Immediate8 | OpKind::Immediate8_2nd => i64::from(value as u8),
        OpKind::Immediate16 => i64::from(value as u16),
        OpKind::Immediate32 => i64::from(value as u32),
        OpKind::Immediate64 => value,
        OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 => i64::from(value as i8),
        _ => i64::from(value as i32),
    }
}
