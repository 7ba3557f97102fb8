//! Near control transfer (SDM Vol. 1, "Control Transfer Instructions"). Far ones have files of their own under
//! `helpers/`.

use super::bit_byte::condition_of;
use crate::insn::Insn;
use crate::ops::{Bin, Ops};
use crate::state::gpr;

/// JMP rel.
pub fn jmp<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    e.jump(i)
}

/// JMP r/m.
pub fn jmp_indirect<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let target = e.src(i)?;
    e.jump_to(i, target)
}

/// Jcc rel.
pub fn jcc<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let c = e.cond(condition_of(i));
    e.branch(i, c)
}

/// CALL rel.
pub fn call<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let target = e.branch_target(i);
    e.check_target(i, target)?;
    let back = e.next_rip(i);
    e.push(i, back)?;
    e.jump(i)
}

/// CALL r/m.
pub fn call_indirect<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let target = e.src(i)?;
    e.check_target(i, target)?;
    let back = e.next_rip(i);
    e.push(i, back)?;
    e.jump_to(i, target)
}

/// RET near, with or without bytes to release.
pub fn ret<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let stack = i.stack_width();
    let sp = e.reg(stack, gpr::RSP as u8);
    let target = e.stack_load(i, sp)?;
    e.check_target(i, target)?;
    let released = e.imm(stack, u64::from(e.w(i).bytes()) + (i.imm & 0xFFFF));
    let sp = e.bin(Bin::Add, stack, sp, released);
    e.set_reg(stack, gpr::RSP as u8, sp);
    e.jump_to(i, target)
}

/// JRCXZ and its kin: the count register at the address width.
pub fn jrcxz<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = crate::insn::W::from_bytes(i.asize);
    let n = e.reg(w, gpr::RCX as u8);
    let zero = e.is_zero(w, n);
    e.branch(i, zero)
}

/// LOOP: rCX - 1, jump while not zero.
pub fn r#loop<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = crate::insn::W::from_bytes(i.asize);
    let (n, one) = (e.reg(w, gpr::RCX as u8), e.imm(w, 1));
    let left = e.bin(Bin::Sub, w, n, one);
    let target = e.branch_target(i);
    e.check_target(i, target)?;
    e.set_reg(w, gpr::RCX as u8, left);
    let done = e.is_zero(w, left);
    let more = e.bit_not(done);
    e.branch(i, more)
}
