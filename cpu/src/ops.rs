//! The trait that instructions are written over.
//!
//! A *kernel* is one instruction's meaning as straight-line data flow: `fn adc<E: Ops>(e, i)`. The interpreter
//! instantiates it with numbers, a translator with the values of its code generator, the checking back end
//! (tests) with numbers that know their width. Rules (the checking back end asserts 1 to 5):
//!
//! 1. Read, check, compute, commit, flags, jump: no memory access after the first commit.
//! 2. `if` and `match` only on fields of [`Insn`] and on widths. `Val` and `Bit` are only `Copy`, so code that
//!    branches on guest data does not compile.
//! 3. A value has one width; only `trunc`, `zext` and `sext` change it.
//! 4. Flags are declared ([`Flags`]), never computed in a kernel; the formulas stand in `flags.rs`.
//! 5. `cond` directly before its consumer.
//! 6. Anything else is a *helper*: plain Rust over `Vcpu`.

use crate::flags::{self, Flags};
use crate::insn::{Insn, W};

/// Two-operand arithmetic; both operands and the result have the same width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bin {
    Add,
    Sub,
    And,
    Or,
    Xor,
    Mul,
    /// High half of the unsigned product.
    MulHighUnsigned,
    /// High half of the signed product.
    MulHighSigned,
}

/// Shifts; the count is taken as it is and must be below the width, except where said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// A count of the width or more gives 0.
    Left,
    /// A count of the width or more gives 0.
    Right,
    /// A count of the width or more gives copies of the sign.
    RightArithmetic,
    /// Modulo the width.
    RotateLeft,
    /// Modulo the width.
    RotateRight,
}

/// One-operand arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Un {
    Not,
    Neg,
    SwapBytes,
    CountOnes,
    /// Of zero: the width.
    TrailingZeros,
    /// Of zero: the width.
    LeadingZeros,
    /// Index of the highest set bit; of zero: anything.
    HighestSet,
}

/// The 16 conditions of Jcc, SETcc, CMOVcc in encoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cond {
    O,
    No,
    B,
    Ae,
    E,
    Ne,
    Be,
    A,
    S,
    Ns,
    P,
    Np,
    L,
    Ge,
    Le,
    G,
}

/// See the head of this file.
pub trait Ops {
    /// A value of 8 to 64 bits.
    type Val: Copy;
    /// A truth value.
    type Bit: Copy;
    /// A place opened by [`Ops::rmw`].
    type Slot: Copy;
    /// What leaves a kernel early.
    type Exit;

    // ---- operands
    /// Operand width.
    fn w(&self, i: &Insn) -> W;
    /// A constant.
    fn imm(&mut self, w: W, value: u64) -> Self::Val;
    /// Offset of the memory operand, as LEA gives it, at the operand width.
    fn effective_address(&mut self, i: &Insn) -> Self::Val;
    /// Operand 1 (register, memory or immediate) at the operand width.
    fn src(&mut self, i: &Insn) -> Result<Self::Val, Self::Exit>;
    /// Operand 1 (register or memory) at a width of its own: MOVZX and its kin.
    fn src_as(&mut self, i: &Insn, w: W) -> Result<Self::Val, Self::Exit>;
    /// Operand 0 (register or memory), to be read only.
    fn dst(&mut self, i: &Insn) -> Result<Self::Val, Self::Exit>;
    /// Operand 0, to be written: checked for that.
    fn rmw(&mut self, i: &Insn) -> Result<(Self::Val, Self::Slot), Self::Exit>;
    /// Writes what `rmw` opened. Cannot fault.
    fn commit(&mut self, i: &Insn, slot: Self::Slot, value: Self::Val);
    /// Writes operand 0 without reading it.
    fn put(&mut self, i: &Insn, value: Self::Val) -> Result<(), Self::Exit>;
    /// A general register at width `w` (byte registers: with 16 added, the high ones).
    fn reg(&mut self, w: W, register: u8) -> Self::Val;
    fn set_reg(&mut self, w: W, register: u8, value: Self::Val);
    fn push(&mut self, i: &Insn, value: Self::Val) -> Result<(), Self::Exit>;
    fn pop(&mut self, i: &Insn) -> Result<Self::Val, Self::Exit>;

    /// Loads from an offset in the stack segment ([`Insn::stack_width`] wide).
    fn stack_load(&mut self, i: &Insn, offset: Self::Val) -> Result<Self::Val, Self::Exit>;

    // ---- arithmetic
    fn bin(&mut self, op: Bin, w: W, a: Self::Val, b: Self::Val) -> Self::Val;
    fn un(&mut self, op: Un, w: W, a: Self::Val) -> Self::Val;
    fn shift(&mut self, op: Shift, w: W, a: Self::Val, count: Self::Val) -> Self::Val;
    /// a + b + carry.
    fn add_carry(&mut self, w: W, a: Self::Val, b: Self::Val, carry: Self::Bit) -> Self::Val;
    /// a - b - borrow.
    fn sub_borrow(&mut self, w: W, a: Self::Val, b: Self::Val, borrow: Self::Bit) -> Self::Val;
    fn trunc(&mut self, from: W, to: W, a: Self::Val) -> Self::Val;
    fn zext(&mut self, from: W, to: W, a: Self::Val) -> Self::Val;
    fn sext(&mut self, from: W, to: W, a: Self::Val) -> Self::Val;

    // ---- truth values
    fn is_zero(&mut self, w: W, a: Self::Val) -> Self::Bit;
    /// a < b, unsigned.
    fn below(&mut self, w: W, a: Self::Val, b: Self::Val) -> Self::Bit;
    /// Bit `n` of a value.
    fn bit(&mut self, w: W, a: Self::Val, n: u32) -> Self::Bit;
    fn bit_constant(&mut self, value: bool) -> Self::Bit;
    fn bit_xor(&mut self, a: Self::Bit, b: Self::Bit) -> Self::Bit;
    fn bit_and(&mut self, a: Self::Bit, b: Self::Bit) -> Self::Bit;
    fn bit_not(&mut self, a: Self::Bit) -> Self::Bit;
    /// The carry out of `r` = a + b + carry.
    fn carry_out(&mut self, w: W, a: Self::Val, b: Self::Val, r: Self::Val) -> Self::Bit
    where
        Self: Sized,
    {
        flags::carry_out(self, w, a, b, r)
    }
    /// 0 or 1 at width `w`.
    fn bit_value(&mut self, w: W, a: Self::Bit) -> Self::Val;
    fn select(&mut self, w: W, c: Self::Bit, yes: Self::Val, no: Self::Val) -> Self::Val;

    // ---- flags and control
    fn flags(&mut self, flags: Flags<Self::Val, Self::Bit>);
    fn cond(&mut self, cond: Cond) -> Self::Bit;
    /// CF.
    fn carry(&mut self) -> Self::Bit;
    /// Goes on at the near branch target of the instruction. Last in a kernel.
    fn jump(&mut self, i: &Insn) -> Result<(), Self::Exit>;
    /// Goes on at a computed offset in CS. Last in a kernel.
    fn jump_to(&mut self, i: &Insn, target: Self::Val) -> Result<(), Self::Exit>;
    /// Goes on at the target if `taken`. Last in a kernel.
    fn branch(&mut self, i: &Insn, taken: Self::Bit) -> Result<(), Self::Exit>;
    /// RIP of the next instruction at the operand width.
    fn next_rip(&mut self, i: &Insn) -> Self::Val;
    /// Checks that a computed target lies in CS (limit, canonical form): before anything is committed.
    fn check_target(&mut self, i: &Insn, target: Self::Val) -> Result<(), Self::Exit>;
    /// The near branch target of the instruction, at the operand width.
    fn branch_target(&mut self, i: &Insn) -> Self::Val;
}
