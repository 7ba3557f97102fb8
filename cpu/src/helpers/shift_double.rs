//! SHLD, SHRD, RCL, RCR (SDM Vol. 2): shifts through two operands or through CF.

use super::mul_div::operand0;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Insn, W, prefix};
use crate::state::RFlags;

/// Writes operand 0, whose memory form was checked for write.
fn put0(v: &mut Vcpu, i: &Insn, value: u64) -> Result<(), Exit> {
    if i.memory() {
        let address = v.operand_address(i, u32::from(i.w), true)?;
        v.store_sized(i.seg, address, i.w, value)
    } else {
        v.put_reg(i.width(), i.r0, value);
        Ok(())
    }
}

/// Sets CF, OF and the flags of a result; AF = 0.
fn set_shift_flags(v: &mut Vcpu, w: W, r: u64, cf: bool, of: bool) {
    v.lazy.cf = cf;
    v.lazy.of = of;
    v.lazy.af = false;
    v.lazy.zero = r;
    v.lazy.sign_parity = w.sext(r);
}

/// The count: an immediate or CL, masked to 5 bits (6 with 64-bit operands).
fn count(v: &Vcpu, i: &Insn, immediate: bool) -> u32 {
    let raw = if immediate { i.imm } else { v.state.gpr[1] };
    (raw & if i.w == 8 { 63 } else { 31 }) as u32
}

fn immediate_count(i: &Insn) -> bool {
    use iced_x86::Code::*;
    matches!(
        i.code,
        Shld_rm16_r16_imm8
            | Shld_rm32_r32_imm8
            | Shld_rm64_r64_imm8
            | Shrd_rm16_r16_imm8
            | Shrd_rm32_r32_imm8
            | Shrd_rm64_r64_imm8
    )
}

/// SHLD: shifts operand 0 left, bits of operand 1 come in. CF = the last bit out, OF = the sign changed. Undefined:
/// with 16-bit operands and counts over 16 the bits of operand 0 come in again (as on silicon: the three-word
/// string a:b:a).
pub fn shld(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let w = i.width();
    let bits = w.bits();
    let a = operand0_for_write(v, i)?;
    let b = v.get_reg(w, i.r1);
    let n = count(v, i, immediate_count(i));
    if n == 0 {
        return put0(v, i, a);
    }
    // a, b and a again, the first at the top of 3 * bits.
    let string = (u128::from(a) << (2 * bits.min(32))) | u128::from(b) << bits.min(32) | u128::from(a);
    let (r, cf) = if w == W::Q {
        let wide = u128::from(a) << 64 | u128::from(b);
        (((wide << n) >> 64) as u64, a >> (64 - n) & 1 != 0)
    } else {
        ((string >> (2 * bits - n)) as u64 & w.mask(), string >> (3 * bits - n) & 1 != 0)
    };
    put0(v, i, r)?;
    set_shift_flags(v, w, r, cf, (r ^ a) & w.sign() != 0);
    Ok(())
}

/// SHRD: shifts operand 0 right, bits of operand 1 come in. Flags and undefined results as SHLD.
pub fn shrd(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let w = i.width();
    let bits = w.bits();
    let a = operand0_for_write(v, i)?;
    let b = v.get_reg(w, i.r1);
    let n = count(v, i, immediate_count(i));
    if n == 0 {
        return put0(v, i, a);
    }
    let (r, cf) = if w == W::Q {
        let wide = u128::from(b) << 64 | u128::from(a);
        ((wide >> n) as u64, a >> (n - 1) & 1 != 0)
    } else {
        let string = (u128::from(a) << (2 * bits)) | u128::from(b) << bits | u128::from(a);
        ((string >> n) as u64 & w.mask(), string >> (n - 1) & 1 != 0)
    };
    put0(v, i, r)?;
    let next = if bits > 1 { r << 1 } else { r };
    set_shift_flags(v, w, r, cf, (r ^ next) & w.sign() != 0);
    Ok(())
}

fn operand0_for_write(v: &mut Vcpu, i: &Insn) -> Result<u64, Exit> {
    if i.memory() {
        let address = v.operand_address(i, u32::from(i.w), true)?;
        return Ok(match i.w {
            1 => v.load_for_write::<1>(i.seg, address)?.0,
            2 => v.load_for_write::<2>(i.seg, address)?.0,
            4 => v.load_for_write::<4>(i.seg, address)?.0,
            _ => v.load_for_write::<8>(i.seg, address)?.0,
        });
    }
    debug_assert!(!i.has(prefix::LOCK));
    operand0(v, i)
}

/// RCL: rotates operand 0 left through CF. OF = CF xor sign of the result.
pub fn rcl(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    rotate_through_carry(v, i, true)
}

/// RCR: rotates operand 0 right through CF. OF = the two top bits of the result differ.
pub fn rcr(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    rotate_through_carry(v, i, false)
}

fn rotate_through_carry(v: &mut Vcpu, i: &Insn, left: bool) -> Result<(), Exit> {
    let w = i.width();
    let bits = w.bits();
    let a = operand0_for_write(v, i)?;
    let in_cl = i.r1 == crate::kernels::shift_rotate::COUNT_IN_CL;
    let masked = count(v, i, !in_cl);
    let n = masked % (bits + 1);
    let ring = u128::from(v.lazy.cf) << bits | u128::from(a);
    let ring_mask = (1u128 << (bits + 1)) - 1;
    let n_left = if left { n } else { (bits + 1 - n) % (bits + 1) };
    let r = (ring << n_left | ring >> (bits + 1 - n_left)) & ring_mask;
    let (result, cf) = (r as u64 & w.mask(), r >> bits & 1 != 0);
    put0(v, i, result)?;
    if masked != 0 {
        let of = if left { cf != (result & w.sign() != 0) } else { (result ^ result << 1) & w.sign() != 0 };
        let on = |flag: RFlags, set: bool| if set { flag } else { RFlags::empty() };
        v.set_status(RFlags::CF | RFlags::OF, on(RFlags::CF, cf) | on(RFlags::OF, of));
    }
    Ok(())
}
