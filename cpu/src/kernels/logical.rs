//! Logical instructions (SDM Vol. 1, "Logical Instructions").

use crate::flags::Flags;
use crate::insn::Insn;
use crate::ops::{Bin, Ops, Un};

fn logic<E: Ops>(e: &mut E, i: &Insn, op: Bin) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src(i)?;
    let (a, slot) = e.rmw(i)?;
    let r = e.bin(op, w, a, b);
    e.commit(i, slot, r);
    e.flags(Flags::Logic { w, r });
    Ok(())
}

/// AND. Flags: CF = OF = 0, SF, ZF, PF. Undefined: AF = 0.
#[inline(always)]
pub fn and<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    logic(e, i, Bin::And)
}

/// OR. Flags: as AND.
#[inline(always)]
pub fn or<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    logic(e, i, Bin::Or)
}

/// XOR. Flags: as AND.
#[inline(always)]
pub fn xor<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    logic(e, i, Bin::Xor)
}

/// TEST: AND without the result.
pub fn test<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src(i)?;
    let a = e.dst(i)?;
    let r = e.bin(Bin::And, w, a, b);
    e.flags(Flags::Logic { w, r });
    Ok(())
}

/// NOT. Flags: none.
pub fn not<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (a, slot) = e.rmw(i)?;
    let r = e.un(Un::Not, w, a);
    e.commit(i, slot, r);
    Ok(())
}
