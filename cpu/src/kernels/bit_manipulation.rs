//! BMI1, BMI2, LZCNT, TZCNT, ADX as far as they are plain data flow (SDM Vol. 1, "Bit Manipulation Instructions"). The
//! others are helpers (`helpers/bit_manipulation.rs`), which also says where the operands are.

use crate::flags::Flags;
use crate::insn::{Insn, W};
use crate::ops::{Bin, Cond, Ops, Shift, Un};
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

/// BLSI: the lowest set bit alone. CF = there is one. Undefined: AF and PF as after logic.
pub fn blsi<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    lowest_set(e, i, |e, w, a| {
        let (negated, none) = (e.un(Un::Neg, w, a), e.is_zero(w, a));
        (e.bin(Bin::And, w, a, negated), e.bit_not(none))
    })
}

/// BLSMSK: all bits up to the lowest set one. CF = there is none. Undefined: AF and PF as after logic.
pub fn blsmsk<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    lowest_set(e, i, |e, w, a| {
        let less = less_one(e, w, a);
        (e.bin(Bin::Xor, w, a, less), e.is_zero(w, a))
    })
}

/// BLSR: without the lowest set bit. CF = there was none. Undefined: AF and PF as after logic.
pub fn blsr<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    lowest_set(e, i, |e, w, a| {
        let less = less_one(e, w, a);
        (e.bin(Bin::And, w, a, less), e.is_zero(w, a))
    })
}

fn less_one<E: Ops>(e: &mut E, w: W, a: E::Val) -> E::Val {
    let one = e.imm(w, 1);
    e.bin(Bin::Sub, w, a, one)
}

/// BLSI and kin: `f` gives the result and CF.
#[inline(always)]
fn lowest_set<E: Ops>(
    e: &mut E,
    i: &Insn,
    f: impl Fn(&mut E, W, E::Val) -> (E::Val, E::Bit),
) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.src_as(i, w)?;
    let (r, cf) = f(e, w, a);
    e.set_reg(w, i.r0, r);
    e.flags(Flags::Bits { w, r, cf });
    Ok(())
}

/// BZHI: clears the bits from an index on. CF = the index is beyond the operand. Undefined: AF and PF as after logic.
pub fn bzhi<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.src_as(i, w)?;
    let n = e.reg(W::B, i.r2);
    let bits = e.imm(W::B, w.bits().into());
    let inside = e.below(W::B, n, bits);
    let wide = e.zext(W::B, w, n);
    let mask = e.imm(w, u64::from(w.bits() - 1));
    let (one, count) = (e.imm(w, 1), e.bin(Bin::And, w, wide, mask));
    let bit = e.shift(Shift::Left, w, one, count);
    let low = less_one(e, w, bit);
    let cut = e.bin(Bin::And, w, a, low);
    let r = e.select(w, inside, cut, a);
    let cf = e.bit_not(inside);
    e.set_reg(w, i.r0, r);
    e.flags(Flags::Bits { w, r, cf });
    Ok(())
}

/// LZCNT: the zeros above the highest set bit.
pub fn lzcnt<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    count_zeros(e, i, Un::LeadingZeros)
}

/// TZCNT: the zeros below the lowest set bit.
pub fn tzcnt<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    count_zeros(e, i, Un::TrailingZeros)
}

/// CF = the source is 0, ZF = the count is. Undefined: OF stays, the others are 0, as with AMD.
#[inline(always)]
fn count_zeros<E: Ops>(e: &mut E, i: &Insn, op: Un) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.src_as(i, w)?;
    let r = e.un(op, w, a);
    let cf = e.is_zero(w, a);
    e.set_reg(w, i.r0, r);
    e.flags(Flags::Zeros { w, r, cf });
    Ok(())
}

/// ADCX: addition with CF. Flags: CF.
pub fn adcx<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let cf = add_with(e, i, Cond::B)?;
    e.flags(Flags::Carry { cf });
    Ok(())
}

/// ADOX: addition with OF in place of CF. Flags: OF.
pub fn adox<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let of = add_with(e, i, Cond::O)?;
    e.flags(Flags::Overflow { of });
    Ok(())
}

/// Adds with the flag that a condition names; returns what it becomes.
#[inline(always)]
fn add_with<E: Ops>(e: &mut E, i: &Insn, flag: Cond) -> Result<E::Bit, E::Exit> {
    let w = e.w(i);
    let b = e.src_as(i, w)?;
    let a = e.reg(w, i.r0);
    let carry = e.cond(flag);
    let r = e.add_carry(w, a, b, carry);
    let out = e.carry_out(w, a, b, r);
    e.set_reg(w, i.r0, r);
    Ok(out)
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
