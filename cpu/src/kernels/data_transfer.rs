//! Data transfer (SDM Vol. 1, "Data Transfer Instructions"): general registers and memory. Segment and control
//! registers are helpers. None changes a flag.

use super::bit_byte::condition_of;
use crate::insn::{Insn, W};
use crate::ops::{Bin, Ops, Shift, Un};
use crate::state::gpr;

/// MOV between general registers, memory and immediates.
pub fn mov<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let v = e.src(i)?;
    e.put(i, v)
}

/// XCHG.
pub fn xchg<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (a, slot) = e.rmw(i)?;
    let b = e.reg(w, i.r1);
    e.commit(i, slot, b);
    e.set_reg(w, i.r1, a);
    Ok(())
}

/// MOVZX from a byte (`imm2` = 1) or word (2).
pub fn movzx<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let (w, from) = (e.w(i), W::from_bytes(i.imm2));
    let a = e.src_as(i, from)?;
    let r = if from == w { a } else { e.zext(from, w, a) };
    e.set_reg(w, i.r0, r);
    Ok(())
}

/// MOVSX, MOVSXD from a byte (`imm2` = 1), word (2) or doubleword (4).
pub fn movsx<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let (w, from) = (e.w(i), W::from_bytes(i.imm2));
    let a = e.src_as(i, from)?;
    let r = if from == w { a } else { e.sext(from, w, a) };
    e.set_reg(w, i.r0, r);
    Ok(())
}

/// LEA.
pub fn lea<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.effective_address(i);
    e.set_reg(w, i.r0, a);
    Ok(())
}

/// CMOVcc: the source is read (and may fault) in any case; a 32-bit destination's upper half is cleared in any
/// case.
pub fn cmovcc<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src(i)?;
    let a = e.reg(w, i.r0);
    let c = e.cond(condition_of(i));
    let r = e.select(w, c, b, a);
    e.set_reg(w, i.r0, r);
    Ok(())
}

/// BSWAP. Undefined: 16-bit operands, which give 0.
pub fn bswap<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.reg(w, i.r0);
    let r = if w == W::W { e.imm(w, 0) } else { e.un(Un::SwapBytes, w, a) };
    e.set_reg(w, i.r0, r);
    Ok(())
}

/// MOVBE.
pub fn movbe<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.src(i)?;
    let r = e.un(Un::SwapBytes, w, a);
    e.put(i, r)
}

/// PUSH of a register, memory or immediate.
pub fn push<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let v = e.src(i)?;
    e.push(i, v)
}

/// POP into a register. (Into memory it is a helper: the address may use the new stack pointer.)
pub fn pop<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let v = e.pop(i)?;
    e.set_reg(w, i.r0, v);
    Ok(())
}

/// LEAVE.
pub fn leave<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let (w, stack) = (e.w(i), i.stack_width());
    let frame = e.reg(stack, gpr::RBP as u8);
    let value = e.stack_load(i, frame)?;
    let size = e.imm(stack, u64::from(w.bytes()));
    let sp = e.bin(Bin::Add, stack, frame, size);
    e.set_reg(stack, gpr::RSP as u8, sp);
    e.set_reg(w, gpr::RBP as u8, value);
    Ok(())
}

/// CBW, CWDE, CDQE: the accumulator from half its width.
pub fn convert<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let half = W::from_bytes(w.bytes() / 2);
    let a = e.reg(half, gpr::RAX as u8);
    let r = e.sext(half, w, a);
    e.set_reg(w, gpr::RAX as u8, r);
    Ok(())
}

/// CWD, CDQ, CQO: rDX = the accumulator's sign.
pub fn convert_wide<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.reg(w, gpr::RAX as u8);
    let n = e.imm(w, u64::from(w.bits() - 1));
    let r = e.shift(Shift::RightArithmetic, w, a, n);
    e.set_reg(w, gpr::RDX as u8, r);
    Ok(())
}

/// NOP, prefetches, hints.
pub fn nop<E: Ops>(_: &mut E, _: &Insn) -> Result<(), E::Exit> {
    Ok(())
}
