//! Conversion between the floating-point formats and integers, in vectors, general and MMX registers.

use super::lanes::{low, pair};
use super::operands::{Forms, Operation, float, handler, shape, shared};
use super::unit;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Insn, W};
use iced_x86::{Instruction, Mnemonic as M};

/// The table of this file.
pub fn handler(m: M, x: &Instruction) -> Option<Forms> {
    let wide_destination = x.op0_register().is_gpr64();
    let wide_source = x.op_register(x.op_count().saturating_sub(1)).is_gpr64() || x.memory_size().size() == 8;
    Some(match m {
        M::Cvtps2pd => float!(8, shape::WIDER_2, unit::cvtps2pd),
        M::Cvtpd2ps => float!(16, shape::NARROWER, unit::cvtpd2ps),
        M::Cvtss2sd => float!(4, unit::cvtss2sd),
        M::Cvtsd2ss => float!(8, unit::cvtsd2ss),
        M::Cvtdq2ps => float!(16, unit::cvtdq2ps),
        M::Cvtdq2pd => float!(8, shape::WIDER_2, unit::cvtdq2pd),
        M::Cvtps2dq => float!(16, unit::cvtps2dq),
        M::Cvttps2dq => float!(16, unit::cvttps2dq),
        M::Cvtpd2dq => float!(16, shape::NARROWER, unit::cvtpd2dq),
        M::Cvttpd2dq => float!(16, shape::NARROWER, unit::cvttpd2dq),

        M::Cvtpi2ps => handler!(cvtpi2ps).into(),
        M::Cvtpi2pd => handler!(cvtpi2pd).into(),
        M::Cvtps2pi => handler!(|v, i| to_mmx::<8>(v, i, unit::cvtps2dq)).into(),
        M::Cvttps2pi => handler!(|v, i| to_mmx::<8>(v, i, unit::cvttps2dq)).into(),
        M::Cvtpd2pi => handler!(|v, i| to_mmx::<16>(v, i, unit::cvtpd2dq)).into(),
        M::Cvttpd2pi => handler!(|v, i| to_mmx::<16>(v, i, unit::cvttpd2dq)).into(),

        M::Cvtsi2ss if wide_source => shared!(|v, i| from_general::<8>(v, i, unit::cvtsi2ss_q)),
        M::Cvtsi2ss => shared!(|v, i| from_general::<4>(v, i, unit::cvtsi2ss_d)),
        M::Cvtsi2sd if wide_source => shared!(|v, i| from_general::<8>(v, i, unit::cvtsi2sd_q)),
        M::Cvtsi2sd => shared!(|v, i| from_general::<4>(v, i, unit::cvtsi2sd_d)),
        M::Cvtss2si if wide_destination => shared!(|v, i| to_general::<4>(v, i, unit::cvtss2si_q)),
        M::Cvtss2si => shared!(|v, i| to_general::<4>(v, i, unit::cvtss2si_d)),
        M::Cvtsd2si if wide_destination => shared!(|v, i| to_general::<8>(v, i, unit::cvtsd2si_q)),
        M::Cvtsd2si => shared!(|v, i| to_general::<8>(v, i, unit::cvtsd2si_d)),
        M::Cvttss2si if wide_destination => shared!(|v, i| to_general::<4>(v, i, unit::cvttss2si_q)),
        M::Cvttss2si => shared!(|v, i| to_general::<4>(v, i, unit::cvttss2si_d)),
        M::Cvttsd2si if wide_destination => shared!(|v, i| to_general::<8>(v, i, unit::cvttsd2si_q)),
        M::Cvttsd2si => shared!(|v, i| to_general::<8>(v, i, unit::cvttsd2si_d)),
        _ => return None,
    })
}

/// CVTSI2SS, CVTSI2SD.
#[inline(always)]
fn from_general<const N: u32>(
    v: &mut Vcpu,
    i: &Insn,
    f: impl Fn(u128, u64, u32) -> (u128, u32),
) -> Result<(), Exit> {
    v.check_vector(i)?;
    let b = if i.memory() { v.load_operand::<N>(i)? as u64 } else { v.get_reg(W::Q, i.r1) };
    let (r, flags) = f(v.first_source(i), b, v.state.mxcsr);
    v.float_flags(flags)?;
    v.set_destination(i, r);
    Ok(())
}

/// CVTSS2SI, CVTSD2SI and the truncating ones: a doubleword result clears the upper half.
#[inline(always)]
fn to_general<const N: u32>(v: &mut Vcpu, i: &Insn, f: impl Fn(u128, u32) -> (u64, u32)) -> Result<(), Exit> {
    v.check_vector(i)?;
    let b = v.xmm_source::<N>(i)?;
    let (r, flags) = f(b, v.state.mxcsr);
    v.float_flags(flags)?;
    v.put_reg(W::Q, i.r0, r);
    Ok(())
}

/// CVTPI2PS: two doublewords into the low half.
fn cvtpi2ps(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    v.check_mmx()?;
    let b = v.mm_source::<8>(i)?;
    let (r, flags) = unit::cvtdq2ps(0, b, v.state.mxcsr);
    v.float_flags(flags)?;
    v.enter_mmx();
    let high = (v.xmm(i.r0) >> 64) as u64;
    v.set_xmm(i.r0, pair(r as u64, high));
    Ok(())
}

/// CVTPI2PD: exact. With a memory operand it has nothing to do with MMX.
fn cvtpi2pd(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    if !i.memory() {
        v.check_mmx()?;
    }
    let b = v.mm_source::<8>(i)?;
    if !i.memory() {
        v.enter_mmx();
    }
    let (r, _) = unit::cvtdq2pd(0, b, v.state.mxcsr);
    v.set_xmm(i.r0, r);
    Ok(())
}

/// CVTPS2PI, CVTPD2PI and the truncating ones: two doublewords.
fn to_mmx<const N: u32>(v: &mut Vcpu, i: &Insn, f: Operation) -> Result<(), Exit> {
    v.check_sse()?;
    v.check_mmx()?;
    let b = v.xmm_source::<N>(i)?;
    let (r, flags) = f(0, if N == 8 { low(b) } else { b }, v.state.mxcsr);
    v.float_flags(flags)?;
    v.set_mm(i.r0, r as u64);
    Ok(())
}
