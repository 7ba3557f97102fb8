//! Shifts and rotates (SDM Vol. 1, "Shift and Rotate Instructions"). RCL and RCR are helpers.
//!
//! The count is operand 1: an immediate, CL, or the constant 1 (decoded as an immediate). It is masked to 5 bits,
//! 6 with 64-bit operands.

use crate::flags::Flags;
use crate::insn::{Insn, W};
use crate::ops::{Bin, Ops, Shift};

/// The masked count at the operand width, and whether it is zero.
#[inline(always)]
fn count<E: Ops>(e: &mut E, i: &Insn) -> Result<(E::Val, E::Bit), E::Exit> {
    let w = e.w(i);
    let raw = if i.r1 == COUNT_IN_CL { e.reg(W::B, 1) } else { e.imm(W::B, i.imm) };
    let mask = e.imm(W::B, if w == W::Q { 63 } else { 31 });
    let n = e.bin(Bin::And, W::B, raw, mask);
    let none = e.is_zero(W::B, n);
    let n = if w == W::B { n } else { e.zext(W::B, w, n) };
    Ok((n, none))
}

/// What the decoder puts into `r1` for a count in CL.
pub const COUNT_IN_CL: u8 = 1;

/// SHL / SAL. CF = the last bit shifted out. Undefined: AF = 0, OF for counts over 1 (`flags.rs`).
pub fn shl<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (n, none) = count(e, i)?;
    let (a, slot) = e.rmw(i)?;
    let r = e.shift(Shift::Left, w, a, n);
    // The last bit out is the top bit after one step less.
    let one = e.imm(w, 1);
    let before = e.bin(Bin::Sub, w, n, one);
    let last = e.shift(Shift::Left, w, a, before);
    let cf = e.bit(w, last, w.bits() - 1);
    e.commit(i, slot, r);
    e.flags(Flags::Shl { w, r, cf, none });
    Ok(())
}

#[inline(always)]
fn right<E: Ops>(e: &mut E, i: &Insn, op: Shift) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (n, none) = count(e, i)?;
    let (a, slot) = e.rmw(i)?;
    let r = e.shift(op, w, a, n);
    let one = e.imm(w, 1);
    let before = e.bin(Bin::Sub, w, n, one);
    let last = e.shift(op, w, a, before);
    let cf = e.bit(w, last, 0);
    e.commit(i, slot, r);
    e.flags(Flags::Shr { w, r, cf, none });
    Ok(())
}

/// SHR. CF = the last bit shifted out.
#[inline(always)]
pub fn shr<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    right(e, i, Shift::Right)
}

/// SAR. CF = the last bit shifted out.
#[inline(always)]
pub fn sar<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    right(e, i, Shift::RightArithmetic)
}

/// ROL. Flags: CF, OF. A masked count of 0 changes none.
pub fn rol<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (n, none) = count(e, i)?;
    let (a, slot) = e.rmw(i)?;
    let r = e.shift(Shift::RotateLeft, w, a, n);
    e.commit(i, slot, r);
    e.flags(Flags::Rol { w, r, none });
    Ok(())
}

/// ROR. Flags: CF, OF. A masked count of 0 changes none.
pub fn ror<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (n, none) = count(e, i)?;
    let (a, slot) = e.rmw(i)?;
    let r = e.shift(Shift::RotateRight, w, a, n);
    e.commit(i, slot, r);
    e.flags(Flags::Ror { w, r, none });
    Ok(())
}
