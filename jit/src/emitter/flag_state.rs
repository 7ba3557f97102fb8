//! The guest's status flags while a region runs: declared, and computed only when somebody asks.
//!
//! The state is the last declaration with its operands (pinned in host registers), and perhaps truth values that
//! override its CF and OF: INC keeps the CF of what came before, BT changes nothing but CF, rotates change
//! both. A condition is asked of the host's flags while they are still those of the declared result; else the host
//! repeats the operation (CMP for SUB, ADD …) where its flags are the ones of `flags.rs`, and else the
//! formulas there are computed.

use super::encode::{Alu, RAX, RCX, Reg, Sh, cc, field};
use super::registers::Emitter;
use super::value::{Bit, BitOp, Exprs, Op, Val};
use trimaran_cpu::flags::{self, Flags, Image};
use trimaran_cpu::insn::W;
use trimaran_cpu::ops::Bin;
use trimaran_cpu::translate::{offset, pending};

#[derive(Clone, Copy, Debug)]
pub struct Declared {
    /// One of [`pending`].
    pub kind: u8,
    pub w: W,
    pub a: Val,
    pub b: Val,
    pub r: Val,
    pub bit: Bit,
}

#[derive(Clone, Copy, Debug)]
pub enum Main {
    /// As memory says, `lazy` under `pending`.
    Unknown,
    /// `lazy` is whole.
    Settled,
    Declared(Declared),
    /// The host register that LAHF's result was moved to; AF and OF are 0.
    Captured(Reg),
}

/// [`Emitter::host_flags`] where they are those of [`Main::Captured`].
const CAPTURED: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
pub struct FlagState {
    pub main: Main,
    /// None: as `main` says; for INC and DEC `lazy.cf`.
    pub cf: Option<Bit>,
    pub of: Option<Bit>,
}

impl FlagState {
    pub const UNKNOWN: FlagState = FlagState { main: Main::Unknown, cf: None, of: None };
    pub const SETTLED: FlagState = FlagState { main: Main::Settled, cf: None, of: None };

    /// The host registers that it needs.
    pub fn pins(&self, e: &Exprs) -> u16 {
        let mut pins = match self.main {
            Main::Declared(d) => e.uses(d.a) | e.uses(d.b) | e.uses(d.r) | e.bit_uses(d.bit),
            Main::Captured(h) => 1 << h,
            _ => 0,
        };
        for bit in [self.cf, self.of].into_iter().flatten() {
            pins |= e.bit_uses(bit);
        }
        pins
    }
}

/// The declaration as `flags.rs` has it.
fn declaration(d: &Declared) -> Flags<Val, Bit> {
    let Declared { kind, w, a, b, r, bit } = *d;
    let none = Bit::Const(false);
    match kind {
        pending::ADD => Flags::Add { w, a, b, r },
        pending::ADC => Flags::Adc { w, a, b, r },
        pending::SUB => Flags::Sub { w, a, b, r },
        pending::SBB => Flags::Sbb { w, a, b, r },
        pending::LOGIC => Flags::Logic { w, r },
        pending::INC => Flags::Inc { w, r },
        pending::DEC => Flags::Dec { w, r },
        pending::NEG => Flags::Neg { w, a, r },
        pending::SHL => Flags::Shl { w, r, cf: bit, none },
        pending::SHR => Flags::Shr { w, r, cf: bit, none },
        pending::MUL => Flags::Mul { w, r, overflow: bit },
        pending::SCAN => Flags::Scan { w, r, zero: bit },
        _ => Flags::Count { w, r },
    }
}

impl Emitter<'_> {
    fn set_flags(&mut self, state: FlagState) {
        self.state.flags = state;
        self.flags_known = false;
    }

    fn declare(&mut self, d: Declared) {
        self.plain_result(d.w, d.r);
        self.set_flags(FlagState { main: Main::Declared(d), cf: None, of: None });
    }

    /// Declares what the instruction just emitted left in the host's flags; AF is 0, and OF without `of`.
    pub fn capture_flags(&mut self, image: Reg, of: Option<Bit>) {
        self.asm.lahf();
        self.asm.mov(W::D, image, RAX);
        self.set_flags(FlagState { main: Main::Captured(image), cf: None, of });
        self.flags_are(CAPTURED);
    }

    /// Makes the host's flags what was captured in `image`.
    pub fn restore_flags(&mut self, image: Reg) {
        if self.flags_of() != Some(CAPTURED) {
            // For OF.
            self.asm.test(W::D, image, image);
            self.asm.mov(W::D, RAX, image);
            self.asm.sahf();
            self.flags_are(CAPTURED);
        }
    }

    /// What a kernel declares.
    pub fn declare_flags(&mut self, f: Flags<Val, Bit>) {
        let zero = Val::Const(0);
        let no = Bit::Const(false);
        let d = |kind, w, a, b, r, bit| Declared { kind, w, a, b, r, bit };
        match f {
            Flags::Add { w, a, b, r } => self.declare(d(pending::ADD, w, a, b, r, no)),
            Flags::Adc { w, a, b, r } => self.declare(d(pending::ADC, w, a, b, r, no)),
            Flags::Sub { w, a, b, r } => self.declare(d(pending::SUB, w, a, b, r, no)),
            Flags::Sbb { w, a, b, r } => self.declare(d(pending::SBB, w, a, b, r, no)),
            Flags::Logic { w, r } => self.declare(d(pending::LOGIC, w, zero, zero, r, no)),
            Flags::Neg { w, a, r } => self.declare(d(pending::NEG, w, a, zero, r, no)),
            Flags::Count { w, r } => self.declare(d(pending::COUNT, w, zero, zero, r, no)),
            Flags::Bits { w, r, cf } => {
                let cf = self.lasting(cf);
                self.declare(d(pending::LOGIC, w, zero, zero, r, no));
                self.state.flags.cf = Some(cf);
            }
            Flags::Zeros { w, r, cf } => {
                if self.flags_are_dead() {
                    return;
                }
                let (cf, of) = (self.lasting(cf), self.overflow_now());
                self.declare(d(pending::COUNT, w, zero, zero, r, no));
                (self.state.flags.cf, self.state.flags.of) = (Some(cf), Some(of));
            }
            Flags::Scan { w, r, zero: bit } => {
                let bit = self.lasting(bit);
                self.force(r, w);
                self.declare(d(pending::SCAN, w, zero, zero, r, bit));
            }
            Flags::Inc { w, r } | Flags::Dec { w, r } => {
                let kind = if matches!(f, Flags::Inc { .. }) { pending::INC } else { pending::DEC };
                if self.flags_are_dead() {
                    return;
                }
                let cf = match self.state.flags {
                    FlagState { main: Main::Unknown, cf: None, .. } => {
                        self.settle_carry();
                        None
                    }
                    _ => self.carry_bit(),
                };
                let main = Main::Declared(d(kind, w, zero, zero, r, no));
                self.set_flags(FlagState { main, cf, of: None });
            }
            Flags::Mul { w, r, overflow } => {
                let bit = self.product_overflow(w, r, overflow);
                self.declare(d(pending::MUL, w, zero, zero, r, bit));
            }
            Flags::Carry { cf } => {
                let cf = self.lasting(cf);
                self.settle();
                let of = self.state.flags.of;
                self.set_flags(FlagState { main: self.state.flags.main, cf: Some(cf), of });
            }
            Flags::Overflow { of } => {
                let of = self.lasting(of);
                self.settle();
                let FlagState { main, cf, .. } = self.state.flags;
                self.set_flags(FlagState { main, cf, of: Some(of) });
            }
            Flags::Shl { w, r, cf, none } | Flags::Shr { w, r, cf, none } => {
                let kind = if matches!(f, Flags::Shl { .. }) { pending::SHL } else { pending::SHR };
                match none {
                    Bit::Const(true) => {}
                    Bit::Const(false) => {
                        let cf = self.lasting(cf);
                        self.declare(d(kind, w, zero, zero, r, cf));
                    }
                    _ if self.flags_are_dead() => {}
                    _ => self.perhaps_shift(kind, w, r, cf, none),
                }
            }
            Flags::Rol { none, .. } | Flags::Ror { none, .. } => {
                if none == Bit::Const(true) || none != Bit::Const(false) && self.flags_are_dead() {
                    return;
                }
                let image = flags::image(self, f);
                let (Some(cf), Some(of)) = (image.cf, image.of) else { return };
                if none == Bit::Const(false) {
                    self.settle();
                    let main = self.state.flags.main;
                    self.set_flags(FlagState { main, cf: Some(cf), of: Some(of) });
                } else {
                    self.perhaps_rotate(cf, of, none);
                }
            }
        }
    }

    /// A truth value that may outlive the instruction: not one that asks the flags.
    fn lasting(&mut self, bit: Bit) -> Bit {
        let Bit::Node(k, _) = bit else { return bit };
        let simple = |v: Val| match self.exprs.resolve(v) {
            Val::Node(n) => matches!(self.exprs.nodes[usize::from(n)].op, Op::Bin(_) | Op::Shift(_)),
            _ => true,
        };
        match self.exprs.bits[usize::from(k)] {
            BitOp::Zero(_, a) | BitOp::Of(_, a, _) if simple(a) => return bit,
            BitOp::Below(_, a, b) if simple(a) && simple(b) => return bit,
            BitOp::MulOver(..) => return bit,
            _ => {}
        }
        let h = self.bit_register(bit);
        self.exprs.bit(BitOp::Of(W::B, Val::Host(h, 8), 0))
    }

    /// The host's IMUL says what a kernel computes from the product's halves.
    fn product_overflow(&mut self, w: W, r: Val, overflow: Bit) -> Bit {
        use trimaran_cpu::kernels::Kernel;
        let signed = matches!(self.insn().kernel, Kernel::Imul | Kernel::ImulImmediate | Kernel::ImulWide);
        if let (true, Val::Node(k)) = (signed, r) {
            let n = self.exprs.nodes[usize::from(k)];
            if matches!(n.op, Op::Bin(Bin::Mul)) {
                // The operands may be expressions of this instruction.
                for v in [n.a, n.b] {
                    if !matches!(v, Val::Const(_)) {
                        self.force(v, w);
                    }
                }
                let (a, b) = (self.exprs.resolve(n.a), self.exprs.resolve(n.b));
                return self.exprs.bit(BitOp::MulOver(w, a, b));
            }
        }
        self.lasting(overflow)
    }

    /// A shift by a variable count: flags change unless it is 0.
    fn perhaps_shift(&mut self, kind: u8, w: W, r: Val, cf: Bit, none: Bit) {
        let (result, _) = self.force(r, w);
        let cf = match r {
            // The host's carry is the last bit out wherever the count is not 0.
            Val::Node(k) if w >= W::D && self.carry_of == Some(k) && !self.asm.clobbered => {
                let h = self.alloc();
                if self.asm.clobbered {
                    self.bit_register(cf)
                } else {
                    self.asm.setcc(cc::B, h);
                    h
                }
            }
            _ => self.bit_register(cf),
        };
        self.write_flags();
        let code = self.test_bit(none);
        let skip = self.labels.make();
        self.asm.jcc(code, skip);
        self.asm.store(W::B, field(offset::PENDING_BIT), cf);
        self.asm.store_imm(W::W, field(offset::PENDING_KIND), i32::from(kind) | i32::from(w.bytes()) << 8);
        self.asm.store(W::Q, field(offset::PENDING_R), result);
        self.asm.bind(skip);
        self.set_flags(FlagState::UNKNOWN);
    }

    fn perhaps_rotate(&mut self, cf: Bit, of: Bit, none: Bit) {
        self.settle();
        self.materialize();
        let (cf, of) = (self.bit_register(cf), self.bit_register(of));
        let code = self.test_bit(none);
        let skip = self.labels.make();
        self.asm.jcc(code, skip);
        self.asm.store(W::B, field(offset::LAZY_CF), cf);
        self.asm.store(W::B, field(offset::LAZY_OF), of);
        self.asm.bind(skip);
        self.set_flags(FlagState::SETTLED);
    }

    /// Whether what the running instruction declares is overwritten in this block before anybody can see it.
    fn flags_are_dead(&self) -> bool {
        use trimaran_cpu::kernels::Kernel::*;
        for i in &self.job.region.blocks[self.block].insns[self.number + 1..] {
            if i.memory() && !matches!(i.kernel, Lea | Nop) {
                return false;
            }
            match i.kernel {
                Add | Sub | Cmp | And | Or | Xor | Test | Neg | Imul | ImulImmediate | ImulWide | Mul
                | Bsf | Bsr | Popcnt | Xadd | Cmpxchg | Andn | Blsi | Blsmsk | Blsr | Bzhi => return true,
                Mov | Lea | Not | Movzx | Movsx | Bswap | Convert | ConvertWide | Nop | Xchg | Mulx
                | Rorx | Sarx | Shlx | Shrx => {}
                // They may leave the flags, and do not read them.
                Shl | Shr | Sar | Rol | Ror => {}
                _ => return false,
            }
        }
        false
    }

    /// Makes sure that `lazy.cf` is right, of flags that are as memory says. INC and DEC leave it alone, so that a loop
    /// that counts by them settles nothing.
    fn settle_carry(&mut self) {
        const RIGHT: u64 = 1 << pending::NONE | 1 << pending::INC | 1 << pending::DEC;
        let (call, back) = (self.labels.make(), self.labels.make());
        self.asm.mov_imm(RAX, RIGHT);
        self.asm.load(W::B, RCX, field(offset::PENDING_KIND));
        self.asm.bit_test_by(RAX, RCX);
        self.asm.jcc(cc::AE, call);
        self.asm.bind(back);
        let over = self.labels.make();
        if self.in_cold {
            self.asm.jmp(over);
        }
        let a = if self.in_cold { &mut self.asm } else { &mut self.cold };
        a.bind(call);
        a.call(self.common.settle);
        a.jmp(back);
        self.asm.bind(over);
    }

    /// Makes sure that memory's flags, where they count, are not pending.
    pub fn settle(&mut self) {
        if !matches!(self.state.flags.main, Main::Unknown) {
            return;
        }
        let (call, back) = (self.labels.make(), self.labels.make());
        self.asm.alu_mem_imm(Alu::Cmp, W::B, field(offset::PENDING_KIND), 0);
        if self.in_cold {
            self.asm.jcc(cc::E, back);
            self.asm.call(self.common.settle);
            self.asm.bind(back);
        } else {
            self.asm.jcc(cc::NE, call);
            self.asm.bind(back);
            self.cold.bind(call);
            self.cold.call(self.common.settle);
            self.cold.jmp(back);
        }
        let f = self.state.flags;
        self.set_flags(FlagState { main: Main::Settled, ..f });
    }

    /// CF as a truth value; None: `lazy.cf`.
    pub fn carry_bit(&mut self) -> Option<Bit> {
        self.settle();
        let f = self.state.flags;
        if f.cf.is_some() {
            return f.cf;
        }
        let d = match f.main {
            Main::Declared(d) => d,
            Main::Captured(h) => return Some(self.exprs.bit(BitOp::Of(W::Q, Val::Host(h, 8), 8))),
            _ => return None,
        };
        Some(match d.kind {
            pending::INC | pending::DEC => return None,
            pending::ADD => self.exprs.bit(BitOp::Below(d.w, d.r, d.a)),
            pending::ADC => self.exprs.bit(BitOp::CarryOut(d.w, [d.a, d.b, d.r], false)),
            pending::SBB => self.exprs.bit(BitOp::CarryOut(d.w, [d.a, d.b, d.r], true)),
            pending::SUB => self.exprs.bit(BitOp::Below(d.w, d.a, d.b)),
            pending::SHL | pending::SHR | pending::MUL => d.bit,
            pending::LOGIC | pending::SCAN | pending::COUNT => Bit::Const(false),
            _ => flags::image(self, declaration(&d)).cf.unwrap_or(Bit::Const(false)),
        })
    }

    /// OF of a declaration.
    pub fn overflow_bit(&mut self, d: &Declared) -> Bit {
        let difference = matches!(d.kind, pending::SUB | pending::SBB);
        if difference || matches!(d.kind, pending::ADD | pending::ADC) {
            return self.exprs.bit(BitOp::Overflow(d.w, [d.a, d.b, d.r], difference));
        }
        flags::image(self, declaration(d)).of.unwrap_or(Bit::Const(false))
    }

    /// OF as it is now, for an instruction that keeps it.
    fn overflow_now(&mut self) -> Bit {
        self.settle();
        match self.state.flags {
            FlagState { of: Some(of), .. } => of,
            FlagState { main: Main::Declared(d), .. } => {
                let of = self.overflow_bit(&d);
                self.lasting(of)
            }
            FlagState { main: Main::Captured(_), .. } => Bit::Const(false),
            _ => {
                let h = self.alloc();
                self.asm.load(W::B, h, field(offset::LAZY_OF));
                self.exprs.bit(BitOp::Of(W::B, Val::Host(h, 8), 0))
            }
        }
    }

    // ---- to memory

    /// Stores a value zero-extended from `w` as a quadword; may use RAX.
    fn store_clean(&mut self, w: W, at: usize, v: Val) {
        self.store_value(w, at, v, true);
    }

    /// Stores a value of width `w`; `clean`: zero-extended.
    fn store_value(&mut self, w: W, at: usize, v: Val, clean: bool) {
        let v = self.exprs.resolve(v);
        match v {
            Val::Const(c) => self.store_const(W::Q, field(at), c),
            Val::Host(h, zx) if zx <= w.bytes() || !clean => self.asm.store(W::Q, field(at), h),
            Val::Host(h, _) => {
                self.asm.movzx(w, RAX, h);
                self.asm.store(W::Q, field(at), RAX);
            }
            Val::Node(k) => {
                // CMP and TEST: one operation, not worth a register.
                let n = self.exprs.nodes[usize::from(k)];
                let op = match n.op {
                    Op::Bin(Bin::Sub) => Some(Alu::Sub),
                    Op::Bin(Bin::And) => Some(Alu::And),
                    _ => None,
                };
                let (a, b) = (self.exprs.resolve(n.a), self.exprs.resolve(n.b));
                match (op, a, b) {
                    (Some(op), Val::Host(..) | Val::Const(_), Val::Host(b, _)) => {
                        self.rax_becomes(a, w);
                        self.asm.alu(op, w, RAX, b);
                    }
                    (Some(op), Val::Host(..), Val::Const(c)) if super::value::immediate(w, c).is_some() => {
                        self.rax_becomes(a, w);
                        self.asm.alu_imm(op, w, RAX, super::value::immediate(w, c).unwrap_or(0));
                    }
                    _ => {
                        let (h, _) = self.force(v, w);
                        self.asm.mov(W::Q, RAX, h);
                    }
                }
                if clean {
                    self.asm.movzx(w, RAX, RAX);
                }
                self.asm.store(W::Q, field(at), RAX);
            }
        }
    }

    fn store_bit(&mut self, at: usize, bit: Bit) {
        match bit {
            Bit::Const(c) => self.asm.store_imm(W::B, field(at), i32::from(c)),
            bit => {
                let code = self.passing(|e| e.test_bit(bit));
                self.asm.setcc_mem(code, field(at));
            }
        }
    }

    /// Brings memory's flags up to date: as pending ones if one declaration says all.
    pub fn write_flags(&mut self) {
        self.busy |= self.pins;
        let f = self.state.flags;
        let d = match f.main {
            Main::Unknown => return,
            Main::Settled => {
                if let Some(cf) = f.cf {
                    self.store_bit(offset::LAZY_CF, cf);
                }
                if let Some(of) = f.of {
                    self.store_bit(offset::LAZY_OF, of);
                }
                return self.set_flags(FlagState::SETTLED);
            }
            Main::Captured(h) => {
                self.write_captured(h);
                if let Some(cf) = f.cf {
                    self.store_bit(offset::LAZY_CF, cf);
                }
                if let Some(of) = f.of {
                    self.store_bit(offset::LAZY_OF, of);
                }
                return self.set_flags(FlagState::SETTLED);
            }
            Main::Declared(d) => d,
        };
        let inc = matches!(d.kind, pending::INC | pending::DEC);
        if f.of.is_some() || f.cf.is_some() && !inc {
            return self.materialize();
        }
        if let Some(cf) = f.cf {
            self.store_bit(offset::LAZY_CF, cf);
        }
        let word = i32::from(d.kind) | i32::from(d.w.bytes()) << 8;
        let mut width = W::D;
        match d.kind {
            pending::ADD | pending::ADC | pending::SUB | pending::SBB => {
                self.store_value(d.w, offset::PENDING_A, d.a, false);
                self.store_value(d.w, offset::PENDING_B, d.b, false);
            }
            pending::NEG => self.store_value(d.w, offset::PENDING_A, d.a, false),
            pending::SHL | pending::SHR | pending::MUL | pending::SCAN => {
                self.store_bit(offset::PENDING_BIT, d.bit);
                width = W::W;
            }
            _ => {}
        }
        // Over the bit too, and padding, where there is none: decoders take longer over a word.
        self.asm.store_imm(width, field(offset::PENDING_KIND), word);
        if !pending::result_follows(d.kind) {
            self.store_value(d.w, offset::PENDING_R, d.r, false);
        }
        self.set_flags(FlagState::UNKNOWN);
    }

    /// `lazy` from flags that were captured.
    fn write_captured(&mut self, h: Reg) {
        self.restore_flags(h);
        self.asm.setcc_mem(cc::B, field(offset::LAZY_CF));
        self.asm.setcc(cc::NE, RAX);
        self.asm.movzx(W::B, RAX, RAX);
        self.asm.store(W::Q, field(offset::LAZY_ZERO), RAX);
        for at in [offset::LAZY_OF, offset::LAZY_AF, offset::PENDING_KIND] {
            self.asm.store_imm(W::B, field(at), 0);
        }
        // SF at bit 63; bit 0 makes the parity odd.
        self.asm.mov(W::D, RAX, h);
        self.asm.shift_imm(Sh::Shr, W::D, RAX, 10);
        self.asm.not(W::D, RAX);
        self.asm.alu_imm(Alu::And, W::D, RAX, 1);
        self.asm.store(W::Q, field(offset::LAZY_SIGN_PARITY), RAX);
        self.asm.mov(W::D, RAX, h);
        self.asm.shift_imm(Sh::Shr, W::D, RAX, 8);
        self.asm.alu_imm(Alu::And, W::D, RAX, 0x80);
        self.asm.store(
            W::B,
            super::encode::Mem { disp: offset::LAZY_SIGN_PARITY as i32 + 7, ..field(0) },
            RAX,
        );
    }

    /// Computes all flags into `lazy`.
    fn materialize(&mut self) {
        let f = self.state.flags;
        if let Main::Declared(d) = f.main {
            self.busy |= self.pins;
            let Image { af, result, zf, zero_sf_pf, .. } = flags::image(self, declaration(&d));
            if let Some(bit) = self.carry_bit() {
                self.store_bit(offset::LAZY_CF, bit);
            }
            let of = match f.of {
                Some(of) => of,
                None => self.overflow_bit(&d),
            };
            self.store_bit(offset::LAZY_OF, of);
            if let Some(bit) = af {
                self.store_bit(offset::LAZY_AF, bit);
            }
            if let Some((w, r)) = result {
                match zf {
                    Some(zf) => {
                        let code = self.test_bit(zf);
                        self.asm.setcc(code ^ 1, RAX);
                        self.asm.movzx(W::B, RAX, RAX);
                        self.asm.store(W::Q, field(offset::LAZY_ZERO), RAX);
                    }
                    None => self.store_clean(w, offset::LAZY_ZERO, r),
                }
                if zero_sf_pf {
                    self.asm.store_imm(W::Q, field(offset::LAZY_SIGN_PARITY), 1);
                } else if let Val::Const(c) = self.exprs.resolve(r) {
                    self.store_const(W::Q, field(offset::LAZY_SIGN_PARITY), w.sext(c));
                } else {
                    let (h, _) = self.force(r, w);
                    self.asm.movsx(w, W::Q, RAX, h);
                    self.asm.store(W::Q, field(offset::LAZY_SIGN_PARITY), RAX);
                }
            }
            self.asm.store_imm(W::B, field(offset::PENDING_KIND), pending::NONE.into());
            self.set_flags(FlagState::SETTLED);
        } else {
            self.write_flags();
        }
    }

    /// Makes expressions of a declared value that must not outlive the instruction plain.
    pub fn plain_result(&mut self, w: W, r: Val) {
        if let Val::Node(k) = self.exprs.resolve(r) {
            let n = self.exprs.nodes[usize::from(k)];
            let leaf = |v| !matches!(self.exprs.resolve(v), Val::Node(_));
            let simple = matches!(n.op, Op::Bin(Bin::Sub | Bin::And));
            if !(simple && leaf(n.a) && leaf(n.b)) {
                self.force(r, w);
            }
        }
    }
}
