//! Values: a CLIF value of its width's type, or something known that has no code yet.
//!
//! With `opt_level=none` Cranelift folds nothing, so constants are folded here.

use super::writer::Writer;
use cranelift_codegen::ir::condcodes::{CondCode, IntCC};
use cranelift_codegen::ir::{InstBuilder, InstructionData, Type, Value, types};
use trimaran_cpu::insn::W;
use trimaran_cpu::ops::{Bin, Shift, Un};
use trimaran_cpu::state::gpr;
use trimaran_cpu::translate::offset;

/// A value of some width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Val {
    /// Zero-extended.
    Const(u64),
    Value(Value),
    /// RIP at the region's entry plus a distance: 64 bits.
    Rip(i64),
}

/// A truth value; as a CLIF value 0 or 1 of type I8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bit {
    Const(bool),
    Value(Value),
}

pub fn type_of(w: W) -> Type {
    match w {
        W::B => types::I8,
        W::W => types::I16,
        W::D => types::I32,
        W::Q => types::I64,
    }
}

fn fold(op: Bin, w: W, a: u64, b: u64) -> u64 {
    let signed = |v| i128::from(w.sext(v) as i64);
    w.mask()
        & match op {
            Bin::Add => a.wrapping_add(b),
            Bin::Sub => a.wrapping_sub(b),
            Bin::And => a & b,
            Bin::Or => a | b,
            Bin::Xor => a ^ b,
            Bin::Mul => a.wrapping_mul(b),
            Bin::MulHighUnsigned => ((u128::from(a) * u128::from(b)) >> w.bits()) as u64,
            Bin::MulHighSigned => ((signed(a) * signed(b)) >> w.bits()) as u64,
        }
}

impl Writer<'_, '_> {
    pub fn constant(&mut self, ty: Type, value: u64) -> Value {
        let masked = if ty.bits() < 64 { value & ((1 << ty.bits()) - 1) } else { value };
        self.b.ins().iconst(ty, masked as i64)
    }
    /// A value as CLIF has it.
    pub fn value(&mut self, w: W, v: Val) -> Value {
        match v {
            Val::Value(v) => v,
            Val::Const(c) => self.constant(type_of(w), c),
            Val::Rip(delta) => {
                let rip = self.load_vcpu(types::I64, offset::gpr(gpr::RIP));
                if delta == 0 { rip } else { self.b.ins().iadd_imm_s(rip, delta) }
            }
        }
    }
    pub fn bit_clif(&mut self, b: Bit) -> Value {
        match b {
            Bit::Value(v) => v,
            Bit::Const(c) => self.constant(types::I8, u64::from(c)),
        }
    }

    pub fn binary(&mut self, op: Bin, w: W, a: Val, b: Val) -> Val {
        match (op, a, b) {
            (_, Val::Const(x), Val::Const(y)) => return Val::Const(fold(op, w, x, y)),
            (Bin::Add, Val::Rip(d), Val::Const(c)) => return Val::Rip(d.wrapping_add(c as i64)),
            (Bin::Add | Bin::Sub | Bin::Or | Bin::Xor, x, Val::Const(0)) => return x,
            (Bin::Add | Bin::Or | Bin::Xor, Val::Const(0), x) => return x,
            (Bin::And | Bin::Mul, _, Val::Const(0)) | (Bin::And, Val::Const(0), _) => return Val::Const(0),
            (Bin::And, x, Val::Const(c)) if c == w.mask() => return x,
            (Bin::And | Bin::Or, x, y) if x == y => return x,
            (Bin::Sub | Bin::Xor, x, y) if x == y => return Val::Const(0),
            _ => {}
        }
        let (x, y) = (self.value(w, a), self.value(w, b));
        if let (Bin::Add | Bin::Sub, Val::Value(_), Val::Const(c)) = (op, a, b)
            && w >= W::D
        {
            // Addresses off one register: see `memory.rs`.
            let (r, c) = match op {
                Bin::Add => (self.b.ins().iadd(x, y), c),
                _ => (self.b.ins().isub(x, y), c.wrapping_neg()),
            };
            self.origins.insert(r, (x, w.sext(c & w.mask()) as i64));
            return Val::Value(r);
        }
        Val::Value(match op {
            Bin::Add => self.b.ins().iadd(x, y),
            Bin::Sub => self.b.ins().isub(x, y),
            Bin::And => self.b.ins().band(x, y),
            Bin::Or => self.b.ins().bor(x, y),
            Bin::Xor => self.b.ins().bxor(x, y),
            Bin::Mul => self.b.ins().imul(x, y),
            Bin::MulHighUnsigned if w == W::Q => self.b.ins().umulhi(x, y),
            Bin::MulHighSigned if w == W::Q => self.b.ins().smulhi(x, y),
            Bin::MulHighUnsigned | Bin::MulHighSigned => {
                // The whole product fits into 64 bits.
                let extend = |s: &mut Self, v| match op {
                    Bin::MulHighSigned => s.b.ins().sextend(types::I64, v),
                    _ => s.b.ins().uextend(types::I64, v),
                };
                let (x, y) = (extend(self, x), extend(self, y));
                let product = self.b.ins().imul(x, y);
                let high = self.b.ins().ushr_imm_u(product, i64::from(w.bits()));
                self.b.ins().ireduce(type_of(w), high)
            }
        })
    }

    pub fn unary(&mut self, op: Un, w: W, a: Val) -> Val {
        let x = self.value(w, a);
        Val::Value(match op {
            Un::Not => self.b.ins().bnot(x),
            Un::Neg => self.b.ins().ineg(x),
            Un::SwapBytes if w == W::B => x,
            Un::SwapBytes => self.b.ins().bswap(x),
            Un::CountOnes => self.b.ins().popcnt(x),
            Un::TrailingZeros => self.b.ins().ctz(x),
            Un::LeadingZeros => self.b.ins().clz(x),
            Un::HighestSet => {
                // Of zero it is 0, as in the interpreter.
                let one = self.b.ins().bor_imm_u(x, 1);
                let zeros = self.b.ins().clz(one);
                let top = self.constant(type_of(w), u64::from(w.bits() - 1));
                self.b.ins().isub(top, zeros)
            }
        })
    }

    pub fn shifted(&mut self, op: Shift, w: W, a: Val, count: Val) -> Val {
        let bits = u64::from(w.bits());
        if let Val::Const(n) = count {
            let over = n >= bits;
            let n = match op {
                Shift::Left | Shift::Right if over => return Val::Const(0),
                Shift::RightArithmetic => n.min(bits - 1),
                _ => n % bits,
            };
            if n == 0 {
                return a;
            }
            let (x, n) = (self.value(w, a), self.constant(type_of(w), n));
            return Val::Value(self.shift_clif(op, x, n));
        }
        let (x, n) = (self.value(w, a), self.value(w, count));
        if matches!(op, Shift::RotateLeft | Shift::RotateRight) {
            return Val::Value(self.shift_clif(op, x, n));
        }
        // CLIF takes counts modulo the width.
        let over = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThanOrEqual, n, bits as i64);
        Val::Value(if op == Shift::RightArithmetic {
            let most = self.constant(type_of(w), bits - 1);
            let n = self.b.ins().select(over, most, n);
            self.shift_clif(op, x, n)
        } else {
            let r = self.shift_clif(op, x, n);
            let zero = self.constant(type_of(w), 0);
            self.b.ins().select(over, zero, r)
        })
    }
    fn shift_clif(&mut self, op: Shift, x: Value, n: Value) -> Value {
        match op {
            Shift::Left => self.b.ins().ishl(x, n),
            Shift::Right => self.b.ins().ushr(x, n),
            Shift::RightArithmetic => self.b.ins().sshr(x, n),
            Shift::RotateLeft => self.b.ins().rotl(x, n),
            Shift::RotateRight => self.b.ins().rotr(x, n),
        }
    }

    pub fn truncated(&mut self, from: W, to: W, a: Val) -> Val {
        match a {
            Val::Const(c) => Val::Const(c & to.mask()),
            _ if from == to => a,
            _ => {
                let v = self.value(from, a);
                Val::Value(self.b.ins().ireduce(type_of(to), v))
            }
        }
    }
    pub fn extended(&mut self, from: W, to: W, a: Val, signed: bool) -> Val {
        match a {
            Val::Const(c) if signed => Val::Const(from.sext(c) & to.mask()),
            Val::Const(_) => a,
            _ if from == to => a,
            _ => {
                let (v, ty) = (self.value(from, a), type_of(to));
                let r = if signed { self.b.ins().sextend(ty, v) } else { self.b.ins().uextend(ty, v) };
                if (from, to, signed) == (W::D, W::Q, false) {
                    self.origins.insert(r, (v, 0));
                }
                Val::Value(r)
            }
        }
    }

    pub fn compare(&mut self, cc: IntCC, w: W, a: Val, b: Val) -> Bit {
        if let (Val::Const(x), Val::Const(y)) = (a, b) {
            let (sx, sy) = (w.sext(x) as i64, w.sext(y) as i64);
            return Bit::Const(match cc {
                IntCC::Equal => x == y,
                IntCC::NotEqual => x != y,
                IntCC::UnsignedLessThan => x < y,
                IntCC::UnsignedGreaterThanOrEqual => x >= y,
                IntCC::UnsignedLessThanOrEqual => x <= y,
                IntCC::UnsignedGreaterThan => x > y,
                IntCC::SignedLessThan => sx < sy,
                IntCC::SignedGreaterThanOrEqual => sx >= sy,
                IntCC::SignedLessThanOrEqual => sx <= sy,
                IntCC::SignedGreaterThan => sx > sy,
            });
        }
        let (x, y) = (self.value(w, a), self.value(w, b));
        Bit::Value(self.b.ins().icmp(cc, x, y))
    }

    /// Bit `n` of a value.
    pub fn bit_of(&mut self, w: W, a: Val, n: u32) -> Bit {
        if let Val::Const(c) = a {
            return Bit::Const(c >> n & 1 != 0);
        }
        if n == w.bits() - 1 {
            return self.compare(IntCC::SignedLessThan, w, a, Val::Const(0));
        }
        let x = self.binary(Bin::And, w, a, Val::Const(1 << n));
        self.compare(IntCC::NotEqual, w, x, Val::Const(0))
    }

    pub fn inverted(&mut self, b: Bit) -> Bit {
        let v = match b {
            Bit::Const(c) => return Bit::Const(!c),
            Bit::Value(v) => v,
        };
        // The opposite comparison, so that a branch on it stays one.
        let made_by = self.b.func.dfg.value_def(v).inst();
        if let Some(inst) = made_by
            && let InstructionData::IntCompare { args, cond, .. } = self.b.func.dfg.insts[inst]
        {
            return Bit::Value(self.b.ins().icmp(cond.complement(), args[0], args[1]));
        }
        Bit::Value(self.b.ins().bxor_imm_u(v, 1))
    }
    pub fn bit_or(&mut self, a: Bit, b: Bit) -> Bit {
        match (a, b) {
            (Bit::Const(true), _) | (_, Bit::Const(true)) => Bit::Const(true),
            (Bit::Const(false), x) | (x, Bit::Const(false)) => x,
            (Bit::Value(x), Bit::Value(y)) => Bit::Value(self.b.ins().bor(x, y)),
        }
    }
    pub fn bit_select(&mut self, c: Bit, yes: Bit, no: Bit) -> Bit {
        match c {
            Bit::Const(true) => yes,
            Bit::Const(false) => no,
            Bit::Value(c) => {
                let (yes, no) = (self.bit_clif(yes), self.bit_clif(no));
                Bit::Value(self.b.ins().select(c, yes, no))
            }
        }
    }
}
