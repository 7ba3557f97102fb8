//! Bit manipulation instructions with a VEX prefix that are plain data flow (SDM Vol. 1, "BMI1 and BMI2"). The others
//! are helpers (`helpers/bit_manipulation.rs`), which also says where the operands are.

use crate::flags::Flags;
use crate::insn::Insn;
use crate::ops::{Bin, Ops, Shift, Un};
use crate::state::gpr;

/// ANDN: first source inverted, and second. Undefined: AF and PF as after logic.
pub fn andn<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src_as(i, w)?;
    let a = e.reg(w, i.r2);
    let not = e.un(Un::Not, w, a);
    let r = e.bin(Bin::And, w, not, b);
    e.set_reg(w, i.r0, r);
    e.flags(Flags::Logic { w, r });
    Ok(())
}

/// MULX: rDX times the source, low half to the second destination, then the high half to the first. Flags: none.
pub fn mulx<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src_as(i, w)?;
    let a = e.reg(w, gpr::RDX as u8);
    let low = e.bin(Bin::Mul, w, a, b);
    let high = e.bin(Bin::MulHighUnsigned, w, a, b);
    e.set_reg(w, i.r2, low);
    e.set_reg(w, i.r0, high);
    Ok(())
}

/// RORX. Flags: none.
pub fn rorx<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.src_as(i, w)?;
    let n = e.imm(w, i.imm & u64::from(w.bits() - 1));
    let r = e.shift(Shift::RotateRight, w, a, n);
    e.set_reg(w, i.r0, r);
    Ok(())
}

/// SARX, SHLX, SHRX: the count modulo the width. Flags: none.
#[inline(always)]
fn shift<E: Ops>(e: &mut E, i: &Insn, op: Shift) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.src_as(i, w)?;
    let n = e.reg(w, i.r2);
    let mask = e.imm(w, u64::from(w.bits() - 1));
    let n = e.bin(Bin::And, w, n, mask);
    let r = e.shift(op, w, a, n);
    e.set_reg(w, i.r0, r);
    Ok(())
}

/// SARX.
pub fn sarx<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    shift(e, i, Shift::RightArithmetic)
}

/// SHLX.
pub fn shlx<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    shift(e, i, Shift::Left)
}

/// SHRX.
pub fn shrx<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    shift(e, i, Shift::Right)
}
