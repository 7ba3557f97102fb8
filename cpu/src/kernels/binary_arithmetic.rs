//! Binary arithmetic (SDM Vol. 1, "Binary Arithmetic Instructions"). DIV and IDIV are helpers.

use crate::flags::Flags;
use crate::insn::{Insn, W};
use crate::ops::{Bin, Ops, Shift};
use crate::state::gpr;

/// ADD: operand 0 becomes the sum. Flags: all six.
pub fn add<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src(i)?;
    let (a, slot) = e.rmw(i)?;
    let r = e.bin(Bin::Add, w, a, b);
    e.commit(i, slot, r);
    e.flags(Flags::Add { w, a, b, r });
    Ok(())
}

/// ADC: add with carry. Flags: all six.
pub fn adc<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src(i)?;
    let (a, slot) = e.rmw(i)?;
    let c = e.carry();
    let r = e.add_carry(w, a, b, c);
    e.commit(i, slot, r);
    e.flags(Flags::Adc { w, a, b, r });
    Ok(())
}

/// SUB: operand 0 becomes the difference. Flags: all six.
pub fn sub<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src(i)?;
    let (a, slot) = e.rmw(i)?;
    let r = e.bin(Bin::Sub, w, a, b);
    e.commit(i, slot, r);
    e.flags(Flags::Sub { w, a, b, r });
    Ok(())
}

/// SBB: subtract with borrow. Flags: all six.
pub fn sbb<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src(i)?;
    let (a, slot) = e.rmw(i)?;
    let c = e.carry();
    let r = e.sub_borrow(w, a, b, c);
    e.commit(i, slot, r);
    e.flags(Flags::Sbb { w, a, b, r });
    Ok(())
}

/// CMP: SUB without the result. Flags: all six.
pub fn cmp<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.src(i)?;
    let a = e.dst(i)?;
    let r = e.bin(Bin::Sub, w, a, b);
    e.flags(Flags::Sub { w, a, b, r });
    Ok(())
}

/// INC. Flags: all but CF.
pub fn inc<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (a, slot) = e.rmw(i)?;
    let one = e.imm(w, 1);
    let r = e.bin(Bin::Add, w, a, one);
    e.commit(i, slot, r);
    e.flags(Flags::Inc { w, r });
    Ok(())
}

/// DEC. Flags: all but CF.
pub fn dec<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (a, slot) = e.rmw(i)?;
    let one = e.imm(w, 1);
    let r = e.bin(Bin::Sub, w, a, one);
    e.commit(i, slot, r);
    e.flags(Flags::Dec { w, r });
    Ok(())
}

/// NEG. Flags: as 0 - operand.
pub fn neg<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (a, slot) = e.rmw(i)?;
    let r = e.un(crate::ops::Un::Neg, w, a);
    e.commit(i, slot, r);
    e.flags(Flags::Neg { w, a, r });
    Ok(())
}

/// XADD: exchange and add. Flags: all six.
pub fn xadd<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (a, slot) = e.rmw(i)?;
    let b = e.reg(w, i.r1);
    let r = e.bin(Bin::Add, w, a, b);
    if i.memory() {
        e.commit(i, slot, r);
        e.set_reg(w, i.r1, a);
    } else {
        // With twice the same register the sum stays.
        e.set_reg(w, i.r1, a);
        e.commit(i, slot, r);
    }
    e.flags(Flags::Add { w, a, b, r });
    Ok(())
}

/// CMPXCHG: compare with the accumulator and exchange. Flags: as CMP accumulator, operand 0.
pub fn cmpxchg<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let (old, slot) = e.rmw(i)?;
    let a = e.reg(w, gpr::RAX as u8);
    let new = e.reg(w, i.r1);
    let r = e.bin(Bin::Sub, w, a, old);
    let equal = e.is_zero(w, r);
    // Memory is written in either case, as the manual says.
    let value = e.select(w, equal, new, old);
    if w == W::D {
        // Where it differs, a 32-bit operand 0 in a register keeps its upper half, and EAX's is cleared;
        // where it is equal, RAX stays.
        let rax = e.reg(W::Q, gpr::RAX as u8);
        let loaded = e.zext(W::D, W::Q, old);
        let kept = e.select(W::Q, equal, rax, loaded);
        if i.memory() {
            e.commit(i, slot, value);
        } else {
            let whole = e.reg(W::Q, i.r0);
            let wide = e.zext(W::D, W::Q, new);
            let dst = e.select(W::Q, equal, wide, whole);
            e.set_reg(W::Q, i.r0, dst);
        }
        let same_register = !i.memory() && usize::from(i.r0) == gpr::RAX;
        if !same_register {
            e.set_reg(W::Q, gpr::RAX as u8, kept);
        }
    } else {
        e.commit(i, slot, value);
        let same_register = !i.memory() && usize::from(i.r0) == gpr::RAX;
        if !same_register {
            let rax = e.select(w, equal, a, old);
            e.set_reg(w, gpr::RAX as u8, rax);
        }
    }
    e.flags(Flags::Sub { w, a, b: old, r });
    Ok(())
}

/// IMUL with two or three operands: operand 0 = operand 1 * (operand 0 or immediate). CF = OF = the product
/// does not fit. Undefined: SF, ZF, PF, AF (see `flags.rs`).
pub fn imul<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.reg(w, i.r0);
    let b = e.src(i)?;
    imul_into(e, i, a, b)
}

/// IMUL r, r/m, imm.
pub fn imul_immediate<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let a = e.src_as(i, w)?;
    let b = e.imm(w, i.imm);
    imul_into(e, i, a, b)
}

fn imul_into<E: Ops>(e: &mut E, i: &Insn, a: E::Val, b: E::Val) -> Result<(), E::Exit> {
    let w = e.w(i);
    let r = e.bin(Bin::Mul, w, a, b);
    let high = e.bin(Bin::MulHighSigned, w, a, b);
    e.set_reg(w, i.r0, r);
    let overflow = signed_overflow(e, w, r, high);
    e.flags(Flags::Mul { w, r, overflow });
    Ok(())
}

/// Whether the high half is not the low half's sign.
fn signed_overflow<E: Ops>(e: &mut E, w: W, low: E::Val, high: E::Val) -> E::Bit {
    let n = e.imm(w, u64::from(w.bits() - 1));
    let sign = e.shift(Shift::RightArithmetic, w, low, n);
    let x = e.bin(Bin::Xor, w, sign, high);
    let fits = e.is_zero(w, x);
    e.bit_not(fits)
}

/// MUL: rDX:rAX (or AX) = rAX * operand, unsigned. CF = OF = the high half is not 0.
pub fn mul<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.dst(i)?;
    let a = e.reg(w, gpr::RAX as u8);
    let low = e.bin(Bin::Mul, w, a, b);
    let high = e.bin(Bin::MulHighUnsigned, w, a, b);
    put_product(e, w, low, high);
    let zero = e.is_zero(w, high);
    let overflow = e.bit_not(zero);
    e.flags(Flags::Mul { w, r: low, overflow });
    Ok(())
}

/// IMUL with one operand: rDX:rAX (or AX) = rAX * operand, signed.
pub fn imul_wide<E: Ops>(e: &mut E, i: &Insn) -> Result<(), E::Exit> {
    let w = e.w(i);
    let b = e.dst(i)?;
    let a = e.reg(w, gpr::RAX as u8);
    let low = e.bin(Bin::Mul, w, a, b);
    let high = e.bin(Bin::MulHighSigned, w, a, b);
    put_product(e, w, low, high);
    let overflow = signed_overflow(e, w, low, high);
    e.flags(Flags::Mul { w, r: low, overflow });
    Ok(())
}

fn put_product<E: Ops>(e: &mut E, w: W, low: E::Val, high: E::Val) {
    e.set_reg(w, gpr::RAX as u8, low);
    // The byte form's high half is AH.
    let register = if w == W::B { 16 } else { gpr::RDX as u8 };
    e.set_reg(w, register, high);
}
