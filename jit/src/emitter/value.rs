//! Values and truth values of the code in the making: symbolic, computed when somebody needs them.
//!
//! A host register that holds a value is never modified while the value is known, so an expression over such
//! registers may be computed at any later time, or never: that is how the results of CMP and the carry of a
//! shift cost nothing.

use super::encode::Reg;
use trimaran_cpu::insn::W;
use trimaran_cpu::ops::{Bin, Cond, Shift, Un};

/// A value of some width `w`; bits above `w` mean nothing but what `zx` says.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Val {
    /// Zero-extended.
    Const(u64),
    /// In a host register; all bits above this many bytes are zero.
    Host(Reg, u8),
    /// Number in [`Exprs::nodes`].
    Node(u16),
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Bit {
    Const(bool),
    /// Number in [`Exprs::bits`], and whether it is inverted.
    Node(u16, bool),
}

#[derive(Clone, Copy, Debug)]
pub enum Op {
    Bin(Bin),
    Un(Un),
    /// The count is `b`.
    Shift(Shift),
    AddCarry(Bit),
    SubBorrow(Bit),
    Zext(W),
    Sext(W),
    BitValue(Bit),
    /// `a` where the bit is set, else `b`.
    Select(Bit),
    /// RIP at the region's entry plus a distance.
    Rip(i64),
}

#[derive(Clone, Copy, Debug)]
pub struct Node {
    pub op: Op,
    pub w: W,
    pub a: Val,
    pub b: Val,
    /// Where it is, once computed.
    pub host: Option<(Reg, u8)>,
}

#[derive(Clone, Copy, Debug)]
pub enum BitOp {
    /// Of the guest's flags, as they are before the running instruction.
    Cond(Cond),
    Zero(W, Val),
    Below(W, Val, Val),
    Of(W, Val, u32),
    Xor(Bit, Bit),
    And(Bit, Bit),
    /// The signed product does not fit.
    MulOver(W, Val, Val),
    /// Of a, b and the result: the carry out of a sum, the borrow of a difference.
    CarryOut(W, [Val; 3], bool),
    /// The signed overflow of a sum or a difference.
    Overflow(W, [Val; 3], bool),
}

/// The expressions of a region.
#[derive(Default)]
pub struct Exprs {
    pub nodes: Vec<Node>,
    pub bits: Vec<BitOp>,
    /// Nodes computed, in order: so that cold code can take back what it did.
    pub computed: Vec<u16>,
}

impl Exprs {
    pub fn for_insns(n: usize) -> Self {
        Exprs {
            nodes: Vec::with_capacity(n * 3),
            bits: Vec::with_capacity(n * 2),
            computed: Vec::with_capacity(n * 2),
        }
    }
    pub fn node(&mut self, op: Op, w: W, a: Val, b: Val) -> Val {
        self.nodes.push(Node { op, w, a, b, host: None });
        Val::Node((self.nodes.len() - 1) as u16)
    }
    pub fn bit(&mut self, op: BitOp) -> Bit {
        self.bits.push(op);
        Bit::Node((self.bits.len() - 1) as u16, false)
    }
    /// Whether numbers are running out.
    pub fn full(&self) -> bool {
        self.nodes.len() > 60_000 || self.bits.len() > 60_000
    }
    /// The value itself, or where it has been computed.
    pub fn resolve(&self, v: Val) -> Val {
        match v {
            Val::Node(k) => match self.nodes[usize::from(k)].host {
                Some((r, zx)) => Val::Host(r, zx),
                None => v,
            },
            _ => v,
        }
    }
    /// The host registers that a value needs.
    pub fn uses(&self, v: Val) -> u16 {
        match self.resolve(v) {
            Val::Const(_) => 0,
            Val::Host(r, _) => 1 << r,
            Val::Node(k) => {
                let n = &self.nodes[usize::from(k)];
                let more = match n.op {
                    Op::AddCarry(b) | Op::SubBorrow(b) | Op::BitValue(b) | Op::Select(b) => self.bit_uses(b),
                    _ => 0,
                };
                more | self.uses(n.a) | self.uses(n.b)
            }
        }
    }
    pub fn bit_uses(&self, b: Bit) -> u16 {
        let Bit::Node(k, _) = b else { return 0 };
        match self.bits[usize::from(k)] {
            BitOp::Cond(_) => 0,
            BitOp::Zero(_, a) | BitOp::Of(_, a, _) => self.uses(a),
            BitOp::Below(_, a, b) | BitOp::MulOver(_, a, b) => self.uses(a) | self.uses(b),
            BitOp::Xor(a, b) | BitOp::And(a, b) => self.bit_uses(a) | self.bit_uses(b),
            BitOp::CarryOut(_, v, _) | BitOp::Overflow(_, v, _) => v.iter().fold(0, |u, &v| u | self.uses(v)),
        }
    }
}

/// A binary operation on constants. None: leave it to the host.
pub fn fold_bin(op: Bin, w: W, a: u64, b: u64) -> Option<u64> {
    let r = match op {
        Bin::Add => a.wrapping_add(b),
        Bin::Sub => a.wrapping_sub(b),
        Bin::And => a & b,
        Bin::Or => a | b,
        Bin::Xor => a ^ b,
        Bin::Mul => a.wrapping_mul(b),
        Bin::MulHighUnsigned | Bin::MulHighSigned => return None,
    };
    Some(r & w.mask())
}

/// Whether a constant of width `w` can be an immediate, and which.
pub fn immediate(w: W, v: u64) -> Option<i32> {
    i32::try_from(w.sext(v) as i64).ok()
}
