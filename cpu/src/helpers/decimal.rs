//! Decimal arithmetic (SDM Vol. 1, "Decimal Arithmetic Instructions").

use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::{Insn, W};

const AX: u8 = 0;

fn al(v: &Vcpu) -> u8 {
    v.state.gpr[0] as u8
}

/// SF, ZF, PF by a byte.
fn result_flags(v: &mut Vcpu, r: u8) {
    v.lazy.zero = u64::from(r);
    v.lazy.sign_parity = W::B.sext(u64::from(r));
}

/// DAA. Undefined: OF = 0.
pub fn daa(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let (old, cf) = (al(v), v.lazy.cf);
    let mut r = old;
    let adjust = old & 15 > 9 || v.lazy.af;
    if adjust {
        r = r.wrapping_add(6);
    }
    let carry = old > 0x99 || cf;
    if carry {
        r = r.wrapping_add(0x60);
    }
    finish(v, r, adjust, carry)
}

/// DAS. Undefined: OF = 0.
pub fn das(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let (old, cf) = (al(v), v.lazy.cf);
    let mut r = old;
    let adjust = old & 15 > 9 || v.lazy.af;
    let mut carry = false;
    if adjust {
        carry = cf || r < 6;
        r = r.wrapping_sub(6);
    }
    if old > 0x99 || cf {
        r = r.wrapping_sub(0x60);
        carry = true;
    }
    finish(v, r, adjust, carry)
}

fn finish(v: &mut Vcpu, r: u8, af: bool, cf: bool) -> Result<(), Exit> {
    v.put_reg(W::B, AX, u64::from(r));
    (v.lazy.af, v.lazy.cf, v.lazy.of) = (af, cf, false);
    result_flags(v, r);
    Ok(())
}

/// AAA. Undefined: OF = 0, SF, ZF, PF by AL.
pub fn aaa(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let adjust = al(v) & 15 > 9 || v.lazy.af;
    let ax = v.get_reg(W::W, AX).wrapping_add(if adjust { 0x106 } else { 0 });
    ascii(v, ax, adjust)
}

/// AAS. Undefined: OF = 0, SF, ZF, PF by AL.
pub fn aas(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let adjust = al(v) & 15 > 9 || v.lazy.af;
    let ax = v.get_reg(W::W, AX).wrapping_sub(if adjust { 0x106 } else { 0 });
    ascii(v, ax, adjust)
}

fn ascii(v: &mut Vcpu, ax: u64, adjust: bool) -> Result<(), Exit> {
    let ax = ax & 0xFF0F;
    v.put_reg(W::W, AX, ax);
    (v.lazy.af, v.lazy.cf, v.lazy.of) = (adjust, adjust, false);
    result_flags(v, ax as u8);
    Ok(())
}

/// AAM: AH = AL / imm, AL = AL % imm. #DE if the immediate is 0. Undefined: CF = OF = AF = 0.
pub fn aam(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let base = i.imm as u8;
    let a = al(v);
    let (Some(q), Some(r)) = (a.checked_div(base), a.checked_rem(base)) else {
        return Err(v.raise(vector::DE));
    };
    v.put_reg(W::W, AX, u64::from(q) << 8 | u64::from(r));
    (v.lazy.af, v.lazy.cf, v.lazy.of) = (false, false, false);
    result_flags(v, r);
    Ok(())
}

/// AAD: AL = AH * imm + AL, AH = 0. Undefined: CF = OF = AF = 0.
pub fn aad(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let ax = v.get_reg(W::W, AX);
    let r = ((ax >> 8) as u8).wrapping_mul(i.imm as u8).wrapping_add(ax as u8);
    v.put_reg(W::W, AX, u64::from(r));
    (v.lazy.af, v.lazy.cf, v.lazy.of) = (false, false, false);
    result_flags(v, r);
    Ok(())
}
