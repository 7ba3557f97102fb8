//! Bit and byte instructions (SDM Vol. 1, "Bit and Byte Instructions"). BT and its kin with a register offset
//! into memory are helpers.

use crate::flags::Flags;
use crate::insn::{Insn, W};
use crate::ops::{Bin, Cond, Ops, Shift, Un};

/// The bit offset modulo the width.
#[inline(always)]
fn offset<E: Ops>(e: &mut E, i: &Insn) -> Result<E::Val, E::Exit> {
    let w = e.w(i);
    let n = e.src(i)?;
    let mask = e.imm(w, u64::from(w.bits() - 1));
    Ok(e.bin(Bin::And, w, n, mask))
}

/// BT: CF = the bit.
pub fn bt<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let n = offset(e, i)?;
    let a = e.dst(i)?;
    let x = e.shift(Shift::Right, w, a, n);
    let cf = e.bit(w, x, 0);
    e.flags(Flags::Carry { cf });
    Ok(())
}

#[inline(always)]
fn change<E: Ops>(
    e: &mut E,
    i: &Insn,
    f: impl Fn(&mut E, W, E::Val, E::Val) -> E::Val,
) -> Result<(), E::Exit> {
    let w = e.w(i);
    let n = offset(e, i)?;
    let (a, slot) = e.rmw(i)?;
    let x = e.shift(Shift::Right, w, a, n);
    let cf = e.bit(w, x, 0);
    let one = e.imm(w, 1);
    let bit = e.shift(Shift::Left, w, one, n);
    let r = f(e, w, a, bit);
    e.commit(i, slot, r);
    e.flags(Flags::Carry { cf });
    Ok(())
}

/// BTS: CF = the bit, which becomes 1.
#[inline(always)]
pub fn bts<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    change(e, i, |e, w, a, bit| e.bin(Bin::Or, w, a, bit))
}

/// BTR: CF = the bit, which becomes 0.
#[inline(always)]
pub fn btr<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    change(e, i, |e, w, a, bit| {
        let not = e.un(Un::Not, w, bit);
        e.bin(Bin::And, w, a, not)
    })
}

/// BTC: CF = the bit, which is inverted.
#[inline(always)]
pub fn btc<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    change(e, i, |e, w, a, bit| e.bin(Bin::Xor, w, a, bit))
}

/// BSF. ZF = the source is 0; then operand 0 stays (as AMD documents and Intel does).
#[inline(always)]
pub fn bsf<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    scan(e, i, Un::TrailingZeros)
}

/// BSR. ZF = the source is 0; then operand 0 stays.
#[inline(always)]
pub fn bsr<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    scan(e, i, Un::HighestSet)
}

#[inline(always)]
fn scan<E: Ops>(e: &mut E, i: &Insn, op: Un) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.src(i)?;
    let zero = e.is_zero(w, a);
    let found = e.un(op, w, a);
    if w == W::D {
        // A 32-bit destination keeps all 64 bits where nothing is found.
        let old = e.reg(W::Q, i.r0);
        let wide = e.zext(W::D, W::Q, found);
        let r = e.select(W::Q, zero, old, wide);
        e.set_reg(W::Q, i.r0, r);
    } else {
        let old = e.reg(w, i.r0);
        let r = e.select(w, zero, old, found);
        e.set_reg(w, i.r0, r);
    }
    e.flags(Flags::Scan { w, r: found, zero });
    Ok(())
}

/// POPCNT. ZF = the source is 0; all other flags 0.
pub fn popcnt<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.src(i)?;
    let r = e.un(Un::CountOnes, w, a);
    e.set_reg(w, i.r0, r);
    e.flags(Flags::Count { w, r });
    Ok(())
}

/// The condition of SETcc, CMOVcc, Jcc: the decoder puts its number into `imm2`.
#[inline(always)]
pub fn condition_of(i: &Insn) -> Cond {
    use Cond::*;
    [O, No, B, Ae, E, Ne, Be, A, S, Ns, P, Np, L, Ge, Le, G][usize::from(i.imm2 & 15)]
}

/// SETcc: operand 0 (a byte) = the condition.
pub fn setcc<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let c = e.cond(condition_of(i));
    let r = e.bit_value(W::B, c);
    e.put(i, r)
}
