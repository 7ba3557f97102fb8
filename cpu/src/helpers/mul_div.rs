//! DIV and IDIV (SDM Vol. 2). Undefined: all flags, which stay as they are.

use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::{Insn, W};
use crate::state::gpr;

/// Operand 0 at the operand width.
pub fn operand0(v: &mut Vcpu, i: &Insn) -> Result<u64, Exit> {
    if i.memory() {
        let address = v.operand_address(i, u32::from(i.w), false)?;
        v.load_sized(i.seg, address, i.w)
    } else {
        Ok(v.get_reg(i.width(), i.r0))
    }
}

/// The dividend: rDX:rAX, or AX.
fn dividend(v: &Vcpu, w: W) -> u128 {
    let a = v.get_reg(w, gpr::RAX as u8);
    let d = if w == W::B { v.get_reg(w, 16) } else { v.get_reg(w, gpr::RDX as u8) };
    u128::from(d) << w.bits() | u128::from(a)
}

fn put(v: &mut Vcpu, w: W, quotient: u64, remainder: u64) {
    v.put_reg(w, gpr::RAX as u8, quotient);
    v.put_reg(w, if w == W::B { 16 } else { gpr::RDX as u8 }, remainder);
}

/// DIV: unsigned division. #DE if the divisor is 0 or the quotient does not fit.
pub fn div(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let w = i.width();
    let divisor = u128::from(operand0(v, i)?);
    let n = dividend(v, w);
    let (q, r) = match (n.checked_div(divisor), n.checked_rem(divisor)) {
        (Some(q), Some(r)) if q <= u128::from(w.mask()) => (q as u64, r as u64),
        _ => return Err(v.raise(vector::DE)),
    };
    put(v, w, q, r);
    Ok(())
}

/// IDIV: signed division, truncated. #DE if the divisor is 0 or the quotient does not fit.
pub fn idiv(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let w = i.width();
    let divisor = i128::from(w.sext(operand0(v, i)?) as i64);
    let unused = 128 - 2 * w.bits();
    let n = (dividend(v, w) << unused) as i128 >> unused;
    let (low, high) = (-(1i128 << (w.bits() - 1)), (1i128 << (w.bits() - 1)) - 1);
    let (q, r) = match (n.checked_div(divisor), n.checked_rem(divisor)) {
        (Some(q), Some(r)) if (low..=high).contains(&q) => (q as u64, r as u64),
        _ => return Err(v.raise(vector::DE)),
    };
    put(v, w, q, r);
    Ok(())
}
