//! Computing values into host registers, and truth values into host conditions.
//!
//! RAX and RCX are scratch inside each function here and hold nothing across calls.

use super::encode::{Alu, RAX, RCX, RDX, Reg, Sh, at, cc};
use super::registers::Emitter;
use super::value::{Bit, BitOp, Op, Val, immediate};
use trimaran_cpu::insn::W;
use trimaran_cpu::ops::{Bin, Shift, Un};
use trimaran_cpu::state::gpr;

/// A second operand.
#[derive(Clone, Copy)]
pub enum Rhs {
    Reg(Reg),
    Imm(i32),
}

/// Width of a move that keeps all that counts of a value of width `w`.
fn whole(w: W) -> W {
    if w == W::Q { W::Q } else { W::D }
}

impl Emitter<'_> {
    /// A value in a host register, and how many bytes of that may be other than zero.
    pub fn force(&mut self, v: Val, w: W) -> (Reg, u8) {
        match self.exprs.resolve(v) {
            Val::Host(h, zx) => {
                self.busy |= 1 << h;
                (h, zx)
            }
            Val::Const(v) => {
                let h = self.alloc();
                self.asm.mov_imm(h, v & w.mask());
                (h, w.bytes())
            }
            Val::Node(k) => {
                let place = self.compute(k);
                self.exprs.nodes[usize::from(k)].host = Some(place);
                self.exprs.computed.push(k);
                place
            }
        }
    }

    /// As `force`, with all bits above `w` zero.
    pub fn force_clean(&mut self, v: Val, w: W) -> Reg {
        let (h, zx) = self.force(v, w);
        if zx <= w.bytes() {
            return h;
        }
        let clean = self.alloc();
        self.asm.movzx(w, clean, h);
        clean
    }

    pub fn rhs(&mut self, v: Val, w: W) -> Rhs {
        match self.exprs.resolve(v) {
            Val::Const(c) if immediate(w, c).is_some() => Rhs::Imm(immediate(w, c).unwrap_or(0)),
            v => Rhs::Reg(self.force(v, w).0),
        }
    }

    pub fn alu(&mut self, op: Alu, w: W, d: Reg, s: Rhs) {
        match s {
            Rhs::Reg(s) => self.asm.alu(op, w, d, s),
            Rhs::Imm(v) => self.asm.alu_imm(op, w, d, v),
        }
    }

    /// A copy of a value in a register of its own, to be changed by the one instruction that follows.
    fn copy(&mut self, v: Val, w: W) -> (Reg, u8) {
        match self.exprs.resolve(v) {
            Val::Const(c) => {
                let h = self.alloc();
                self.asm.mov_imm(h, c & w.mask());
                (h, w.bytes())
            }
            v => {
                let (s, zx) = self.force(v, w);
                let h = self.alloc();
                self.asm.mov(whole(w), h, s);
                (h, if w == W::Q { zx } else { zx.min(4) })
            }
        }
    }

    /// Says that host flags are those of node `k` now.
    pub fn flags_are(&mut self, k: u16) {
        (self.host_flags, self.carry_of) = (Some(k), None);
        self.asm.clobbered = false;
    }
    /// The node that host flags are of.
    pub fn flags_of(&self) -> Option<u16> {
        self.host_flags.filter(|_| !self.asm.clobbered)
    }

    /// A shift's count without the mask that kernels apply, where the host's shift of width `w` applies the same.
    fn unmasked(&self, count: Val, w: W) -> Val {
        let node = |v| match self.exprs.resolve(v) {
            Val::Node(k) => Some(self.exprs.nodes[usize::from(k)]),
            _ => None,
        };
        if w < W::D {
            return count;
        }
        let Some(wide) = node(count).filter(|n| matches!(n.op, Op::Zext(W::B))) else { return count };
        match node(wide.a) {
            Some(n) if matches!(n.op, Op::Bin(Bin::And)) && n.b == Val::Const(u64::from(w.bits()) - 1) => n.a,
            _ => count,
        }
    }

    fn compute(&mut self, k: u16) -> (Reg, u8) {
        let n = self.exprs.nodes[usize::from(k)];
        let w = n.w;
        // A result of 32 bits clears what is above; of 8 and 16 bits it leaves that alone.
        let after = |zx: u8| match w {
            W::Q => 8,
            W::D => 4,
            _ => zx.max(w.bytes()),
        };
        match n.op {
            Op::Bin(Bin::MulHighSigned) => self.multiply_high(true, w, n.a, n.b),
            Op::Bin(Bin::MulHighUnsigned) => self.multiply_high(false, w, n.a, n.b),
            Op::Bin(Bin::Mul) if w != W::B && self.factor(n.b, w).is_some() => {
                let (a, zx) = self.force(n.a, w);
                let d = self.alloc();
                self.asm.imul_imm(w, d, a, self.factor(n.b, w).unwrap_or(0));
                self.flags_are(k);
                // 16 bits leave what was in `d`.
                (d, if w == W::W { 8 } else { after(zx) })
            }
            Op::Bin(Bin::Mul) => {
                let (b, _) = self.force(n.b, w);
                let (d, zx) = self.copy(n.a, w);
                self.asm.imul(if w == W::B { W::D } else { w }, d, b);
                if w != W::B {
                    self.flags_are(k);
                }
                (d, if w == W::B { 4 } else { after(zx) })
            }
            Op::Bin(op) => {
                let (mut a, mut b) = (self.exprs.resolve(n.a), self.exprs.resolve(n.b));
                if matches!(a, Val::Const(_)) && op != Bin::Sub {
                    (a, b) = (b, a);
                }
                let b = self.rhs(b, w);
                let (d, zx) = self.copy(a, w);
                let alu = match op {
                    Bin::Add => Alu::Add,
                    Bin::Sub => Alu::Sub,
                    Bin::And => Alu::And,
                    Bin::Or => Alu::Or,
                    _ => Alu::Xor,
                };
                self.alu(alu, w, d, b);
                self.flags_are(k);
                (d, after(zx))
            }
            Op::Un(op) => self.unary(op, k, w, n.a),
            Op::Shift(op) => {
                let sh = match op {
                    Shift::Left => Sh::Shl,
                    Shift::Right => Sh::Shr,
                    Shift::RightArithmetic => Sh::Sar,
                    Shift::RotateLeft => Sh::Rol,
                    Shift::RotateRight => Sh::Ror,
                };
                match self.exprs.resolve(n.b) {
                    Val::Const(count) => {
                        let (d, zx) = self.copy(n.a, w);
                        let count = self.constant_count(op, w, count);
                        self.asm.shift_imm(sh, w, d, count);
                        if count != 0 {
                            self.flags_are(k);
                        }
                        (d, after(zx))
                    }
                    count => {
                        // The host masks it too.
                        let count = self.unmasked(count, w);
                        let (count, _) = self.force(count, W::B);
                        let (d, zx) = self.copy(n.a, w);
                        self.asm.mov(W::D, RCX, count);
                        self.asm.shift_cl(sh, w, d);
                        // Unless the count was 0; so nobody else may take these for flags of the result.
                        (self.host_flags, self.asm.clobbered) = (None, false);
                        self.carry_of = Some(k);
                        (d, after(zx))
                    }
                }
            }
            Op::AddCarry(c) | Op::SubBorrow(c) => {
                let b = self.rhs(n.b, w);
                let (d, zx) = self.copy(n.a, w);
                self.carry_flag(c);
                let op = if matches!(n.op, Op::AddCarry(_)) { Alu::Adc } else { Alu::Sbb };
                self.alu(op, w, d, b);
                self.flags_are(k);
                (d, after(zx))
            }
            Op::Zext(from) => {
                let (s, zx) = self.force(n.a, from);
                if zx <= from.bytes() {
                    return (s, zx);
                }
                let d = self.alloc();
                self.asm.movzx(from, d, s);
                (d, from.bytes())
            }
            Op::Sext(from) => {
                let (s, _) = self.force(n.a, from);
                let d = self.alloc();
                self.asm.movsx(from, whole(w), d, s);
                (d, if w == W::Q { 8 } else { 4 })
            }
            Op::BitValue(bit) => {
                let d = self.alloc();
                let cc = self.test_bit(bit);
                self.asm.setcc(cc, d);
                self.asm.movzx(W::B, d, d);
                (d, 1)
            }
            Op::Select(bit) => {
                let (yes, yes_zx) = self.force(n.a, w);
                let (d, zx) = self.copy(n.b, w);
                let cc = self.test_bit(bit);
                self.asm.cmov(cc, whole(w), d, yes);
                (d, if w == W::Q { zx.max(yes_zx) } else { zx.max(yes_zx).min(4) })
            }
            Op::Rip(delta) => {
                let rip = self.guest(gpr::RIP);
                let (rip, _) = self.force(rip, W::Q);
                let d = self.alloc();
                self.asm.lea(whole(w), d, at(rip, delta as i32));
                (d, if w == W::Q { 8 } else { 4 })
            }
        }
    }

    /// A constant factor that can be an immediate.
    fn factor(&self, v: Val, w: W) -> Option<i32> {
        match self.exprs.resolve(v) {
            Val::Const(c) => immediate(w, c),
            _ => None,
        }
    }

    /// A count that the host takes as `ops.rs` says; counts that it would reduce otherwise give what is said there.
    fn constant_count(&mut self, op: Shift, w: W, count: u64) -> u8 {
        let bits = u64::from(w.bits());
        match op {
            Shift::RotateLeft | Shift::RotateRight => (count % bits) as u8,
            _ if count < bits => count as u8,
            // 8 and 16 bits: the host takes up to 31.
            _ if bits < 32 => count.min(31) as u8,
            _ => {
                // No kernel does this with an instruction that runs.
                if count != w.mask() {
                    self.fail("a shift by the width or more");
                }
                0
            }
        }
    }

    fn unary(&mut self, op: Un, k: u16, w: W, a: Val) -> (Reg, u8) {
        match op {
            Un::Not => {
                let (d, zx) = self.copy(a, w);
                self.asm.not(w, d);
                (d, if w == W::Q { 8 } else { zx.max(w.bytes()) })
            }
            Un::Neg => {
                let (d, zx) = self.copy(a, w);
                self.asm.neg(w, d);
                self.flags_are(k);
                (d, if w == W::Q { 8 } else { zx.max(w.bytes()) })
            }
            Un::SwapBytes => {
                let (d, zx) = self.copy(a, w);
                match w {
                    W::B => {}
                    W::W => self.asm.shift_imm(Sh::Rol, W::W, d, 8),
                    _ => self.asm.bswap(w, d),
                }
                (d, if w == W::Q { 8 } else { zx.max(w.bytes()) })
            }
            Un::CountOnes => {
                if !std::is_x86_feature_detected!("popcnt") {
                    self.fail("this host has no POPCNT");
                }
                let s = self.force_clean(a, w);
                let d = self.alloc();
                self.asm.popcnt(whole(w), d, s);
                (d, 1)
            }
            Un::TrailingZeros | Un::LeadingZeros | Un::HighestSet => {
                // Of zero the host leaves the destination as it is: what the interpreter's function gives.
                let s = self.force_clean(a, w);
                let (d, top) = (self.alloc(), w.bits() - 1);
                match op {
                    Un::TrailingZeros => {
                        self.asm.mov_imm(d, w.bits().into());
                        self.asm.bsf(whole(w), d, s);
                    }
                    Un::LeadingZeros => {
                        self.asm.mov_imm(d, u64::from(top ^ w.bits()));
                        self.asm.bsr(whole(w), d, s);
                        self.asm.alu_imm(Alu::Xor, W::D, d, top as i32);
                    }
                    _ => {
                        self.asm.mov_imm(d, 0);
                        self.asm.bsr(whole(w), d, s);
                    }
                }
                (d, 1)
            }
        }
    }

    fn multiply_high(&mut self, signed: bool, w: W, a: Val, b: Val) -> (Reg, u8) {
        let ((a, _), (b, _)) = (self.force(a, w), self.force(b, w));
        let d = self.alloc();
        if w == W::Q {
            self.asm.mov(W::Q, RAX, a);
            if d != RDX {
                self.asm.mov(W::Q, RCX, RDX);
            }
            self.asm.mul(signed, b);
            if d != RDX {
                self.asm.mov(W::Q, d, RDX);
                self.asm.mov(W::Q, RDX, RCX);
            }
            return (d, 8);
        }
        // The whole product of narrower operands fits a register.
        let shift = w.bits() as u8;
        if signed {
            self.asm.movsx(w, W::Q, d, a);
            self.asm.movsx(w, W::Q, RAX, b);
        } else {
            self.asm.movzx(w, d, a);
            self.asm.movzx(w, RAX, b);
        }
        self.asm.imul(W::Q, d, RAX);
        self.asm.shift_imm(Sh::Shr, W::Q, d, shift);
        (d, if w == W::D { 4 } else { 8 })
    }

    /// Makes the host's CF a truth value.
    fn carry_flag(&mut self, bit: Bit) {
        match self.test_bit(bit) {
            cc::B => {}
            cc::AE => self.asm.cmc(),
            other => {
                self.asm.setcc(other, RAX);
                self.asm.alu_imm(Alu::Add, W::B, RAX, -1);
            }
        }
    }

    /// Compares; the host's flags are as of CMP.
    pub fn compare(&mut self, w: W, a: Val, b: Val) {
        let b = self.rhs(b, w);
        let (a, _) = self.force(a, w);
        self.alu(Alu::Cmp, w, a, b);
    }

    /// Sets ZF, SF, PF by a value, CF = OF = 0.
    pub fn test_value(&mut self, w: W, v: Val) {
        if let Val::Node(k) = self.exprs.resolve(v) {
            let n = self.exprs.nodes[usize::from(k)];
            if let (Op::Bin(Bin::And), true) = (n.op, n.w == w) {
                let (mut a, mut b) = (self.exprs.resolve(n.a), self.exprs.resolve(n.b));
                if matches!(a, Val::Const(_)) {
                    (a, b) = (b, a);
                }
                let b = self.rhs(b, w);
                let (a, _) = self.force(a, w);
                match b {
                    Rhs::Reg(b) => self.asm.test(w, a, b),
                    Rhs::Imm(v) => self.asm.test_imm(w, a, v),
                }
                return;
            }
        }
        let (h, _) = self.force(v, w);
        self.asm.test(w, h, h);
    }

    /// Sets the host's flags so that the condition returned says what the bit is.
    pub fn test_bit(&mut self, bit: Bit) -> u8 {
        let Bit::Node(k, inverted) = bit else {
            self.asm.alu(Alu::Cmp, W::D, RAX, RAX);
            return if bit == Bit::Const(true) { cc::E } else { cc::NE };
        };
        let code = match self.exprs.bits[usize::from(k)] {
            BitOp::Cond(c) => self.test_condition(c),
            BitOp::Zero(w, a) => {
                self.test_value(w, a);
                cc::E
            }
            BitOp::Below(w, a, b) => {
                self.compare(w, a, b);
                cc::B
            }
            BitOp::Of(w, a, n) => {
                let (h, _) = self.force(a, w);
                if n == w.bits() - 1 {
                    self.asm.test(w, h, h);
                    cc::S
                } else {
                    self.asm.bit_test(h, n as u8);
                    cc::B
                }
            }
            BitOp::CarryOut(_, [_, _, Val::Node(k)], _) if self.flags_of() == Some(k) => cc::B,
            BitOp::CarryOut(w, [a, b, r], borrow) => {
                let [a, b, r] = [a, b, r].map(|v| self.force(v, w).0);
                let x = whole(w);
                let (first, second, other) = if borrow { (b, r, a) } else { (a, b, r) };
                // Two of three: the third is inverted.
                self.asm.mov(x, RAX, first);
                self.asm.alu(Alu::Or, x, RAX, second);
                self.asm.mov(x, RCX, other);
                self.asm.not(x, RCX);
                self.asm.alu(Alu::And, x, RAX, RCX);
                self.asm.mov(x, RCX, first);
                self.asm.alu(Alu::And, x, RCX, second);
                self.asm.alu(Alu::Or, w, RAX, RCX);
                cc::S
            }
            BitOp::Overflow(w, [a, b, r], difference) => {
                let [a, b, r] = [a, b, r].map(|v| self.force(v, w).0);
                let x = whole(w);
                self.asm.mov(x, RAX, a);
                self.asm.alu(Alu::Xor, x, RAX, r);
                self.asm.mov(x, RCX, b);
                self.asm.alu(Alu::Xor, x, RCX, if difference { a } else { r });
                self.asm.alu(Alu::And, w, RAX, RCX);
                cc::S
            }
            BitOp::Xor(a, b) | BitOp::And(a, b) => {
                let (d, y) = (self.bit_register(a), self.bit_register(b));
                let xor = matches!(self.exprs.bits[usize::from(k)], BitOp::Xor(..));
                self.asm.alu(if xor { Alu::Xor } else { Alu::And }, W::B, d, y);
                cc::NE
            }
            BitOp::MulOver(w, a, b) if w != W::B && self.factor(b, w).is_some() => {
                let (a, _) = self.force(a, w);
                self.asm.imul_imm(w, RAX, a, self.factor(b, w).unwrap_or(0));
                cc::O
            }
            BitOp::MulOver(w, a, b) => {
                let ((a, _), (b, _)) = (self.force(a, w), self.force(b, w));
                if w == W::B {
                    self.asm.movsx(W::B, W::D, RAX, a);
                    self.asm.movsx(W::B, W::D, RCX, b);
                    self.asm.imul(W::D, RAX, RCX);
                    self.asm.movsx(W::B, W::D, RCX, RAX);
                    self.asm.alu(Alu::Cmp, W::D, RAX, RCX);
                    cc::NE
                } else {
                    self.asm.mov(whole(w), RAX, a);
                    self.asm.imul(w, RAX, b);
                    cc::O
                }
            }
        };
        code ^ u8::from(inverted)
    }

    /// A truth value in a register of its own: 0 or 1 in the low byte, anything above.
    pub fn bit_register(&mut self, bit: Bit) -> Reg {
        let d = self.alloc();
        let code = self.passing(|e| e.test_bit(bit));
        self.asm.setcc(code, d);
        d
    }

    /// Runs something whose result is not in registers: those that it took are free again.
    pub fn passing<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let (busy, computed) = (self.busy, self.exprs.computed.len());
        let result = f(self);
        self.busy = busy;
        for k in self.exprs.computed.drain(computed..) {
            self.exprs.nodes[usize::from(k)].host = None;
        }
        result
    }
}
