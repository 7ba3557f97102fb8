//! Packed arithmetic, comparison and the odd sums.

use super::lanes::{Lane, add, each, equal, get, map, mask, pair, sub};
use super::operands::{Forms, both, forms, sized, xmm};
use super::string_compare::set_flags;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::Insn;
use crate::state::RFlags;
use iced_x86::{Instruction, Mnemonic as M};

/// The table of this file.
pub fn handler(m: M, x: &Instruction) -> Option<Forms> {
    Some(match m {
        M::Paddb => both!(x, add::<8>),
        M::Paddw => both!(x, add::<16>),
        M::Paddd => both!(x, add::<32>),
        M::Paddq => both!(x, add::<64>),
        M::Paddsb => both!(x, |a, b| each(a, b, i8::saturating_add)),
        M::Paddsw => both!(x, |a, b| each(a, b, i16::saturating_add)),
        M::Paddusb => both!(x, |a, b| each(a, b, u8::saturating_add)),
        M::Paddusw => both!(x, |a, b| each(a, b, u16::saturating_add)),
        M::Psubb => both!(x, sub::<8>),
        M::Psubw => both!(x, sub::<16>),
        M::Psubd => both!(x, sub::<32>),
        M::Psubq => both!(x, sub::<64>),
        M::Psubsb => both!(x, |a, b| each(a, b, i8::saturating_sub)),
        M::Psubsw => both!(x, |a, b| each(a, b, i16::saturating_sub)),
        M::Psubusb => both!(x, |a, b| each(a, b, u8::saturating_sub)),
        M::Psubusw => both!(x, |a, b| each(a, b, u16::saturating_sub)),
        M::Pavgb => {
            both!(x, |a, b| each(a, b, |a: u8, b: u8| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8))
        }
        M::Pavgw => {
            both!(x, |a, b| each(a, b, |a: u16, b: u16| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16))
        }
        M::Pmullw => both!(x, |a, b| each(a, b, u16::wrapping_mul)),
        M::Pmulhw => {
            both!(x, |a, b| each(a, b, |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16))
        }
        M::Pmulhuw => {
            both!(x, |a, b| each(a, b, |a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16))
        }
        M::Pmulhrsw => both!(x, |a, b| each(a, b, rounded_high)),
        M::Pmuludq => both!(x, |a, b| each(a, b, |a: u64, b: u64| (a & 0xFFFF_FFFF) * (b & 0xFFFF_FFFF))),
        M::Pmuldq => xmm!(|a, b| each(a, b, |a: i64, b: i64| i64::from(a as i32) * i64::from(b as i32))),
        M::Pmulld => xmm!(|a, b| each(a, b, u32::wrapping_mul)),
        M::Pmaddwd => both!(x, |a, b| each(a, b, multiply_add)),
        M::Pmaddubsw => both!(x, |a, b| each(a, b, multiply_add_bytes)),
        M::Psadbw => both!(x, |a, b| each(a, b, sum_of_differences)),
        M::Mpsadbw => xmm!(imm 16, lanes 3, mpsadbw),
        M::Phminposuw => xmm!(|_, b| minimum_position(b)),

        M::Pcmpeqb => both!(x, equal::<8>),
        M::Pcmpeqw => both!(x, equal::<16>),
        M::Pcmpeqd => both!(x, equal::<32>),
        M::Pcmpeqq => xmm!(equal::<64>),
        M::Pcmpgtb => both!(x, |a, b| mask(a, b, |a: i8, b| a > b)),
        M::Pcmpgtw => both!(x, |a, b| mask(a, b, |a: i16, b| a > b)),
        M::Pcmpgtd => both!(x, |a, b| mask(a, b, |a: i32, b| a > b)),
        M::Pcmpgtq => xmm!(|a, b| mask(a, b, |a: i64, b| a > b)),

        M::Pminub => both!(x, |a, b| each(a, b, u8::min)),
        M::Pmaxub => both!(x, |a, b| each(a, b, u8::max)),
        M::Pminsw => both!(x, |a, b| each(a, b, i16::min)),
        M::Pmaxsw => both!(x, |a, b| each(a, b, i16::max)),
        M::Pminsb => xmm!(|a, b| each(a, b, i8::min)),
        M::Pmaxsb => xmm!(|a, b| each(a, b, i8::max)),
        M::Pminuw => xmm!(|a, b| each(a, b, u16::min)),
        M::Pmaxuw => xmm!(|a, b| each(a, b, u16::max)),
        M::Pminud => xmm!(|a, b| each(a, b, u32::min)),
        M::Pmaxud => xmm!(|a, b| each(a, b, u32::max)),
        M::Pminsd => xmm!(|a, b| each(a, b, i32::min)),
        M::Pmaxsd => xmm!(|a, b| each(a, b, i32::max)),
        M::Pabsb => both!(x, |_, b| map(b, i8::wrapping_abs)),
        M::Pabsw => both!(x, |_, b| map(b, i16::wrapping_abs)),
        M::Pabsd => both!(x, |_, b| map(b, i32::wrapping_abs)),
        M::Psignb => both!(x, |a, b| each(a, b, |a: i8, b: i8| a.wrapping_mul(b.signum()))),
        M::Psignw => both!(x, |a, b| each(a, b, |a: i16, b: i16| a.wrapping_mul(b.signum()))),
        M::Psignd => both!(x, |a, b| each(a, b, |a: i32, b: i32| a.wrapping_mul(b.signum()))),

        M::Phaddw => sized!(x, |a, b, size| halves(a, b, size, |x| neighbours(x, i16::wrapping_add))),
        M::Phaddd => sized!(x, |a, b, size| halves(a, b, size, |x| neighbours(x, i32::wrapping_add))),
        M::Phaddsw => sized!(x, |a, b, size| halves(a, b, size, |x| neighbours(x, i16::saturating_add))),
        M::Phsubw => sized!(x, |a, b, size| halves(a, b, size, |x| neighbours(x, i16::wrapping_sub))),
        M::Phsubd => sized!(x, |a, b, size| halves(a, b, size, |x| neighbours(x, i32::wrapping_sub))),
        M::Phsubsw => sized!(x, |a, b, size| halves(a, b, size, |x| neighbours(x, i16::saturating_sub))),

        M::Ptest => forms!(ptest, vptest),
        _ => return None,
    })
}

/// The result of an operation that turns 128 bits into 64: of each operand, or of two MMX operands as one value.
#[inline(always)]
pub fn halves(a: u128, b: u128, size: u32, f: impl Fn(u128) -> u64) -> u128 {
    if size == 8 { u128::from(f(pair(a as u64, b as u64))) } else { pair(f(a), f(b)) }
}

/// `f` of the lanes 2n and 2n + 1.
#[inline(always)]
fn neighbours<T: Lane>(x: u128, f: impl Fn(T, T) -> T) -> u64 {
    let mut lanes = T::split(x);
    let lanes_mut = lanes.as_mut();
    for n in 0..T::COUNT / 2 {
        lanes_mut[n] = f(lanes_mut[n * 2], lanes_mut[n * 2 + 1]);
    }
    T::join(lanes) as u64
}

/// PMULHRSW: the product's bits 30..15, rounded.
fn rounded_high(a: i16, b: i16) -> i16 {
    ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16
}

/// PMADDWD: both products of a doubleword's words, added.
fn multiply_add(a: i32, b: i32) -> i32 {
    let low = i32::from(a as i16) * i32::from(b as i16);
    low.wrapping_add((a >> 16).wrapping_mul(b >> 16))
}

/// PMADDUBSW: unsigned bytes of `a` times signed bytes of `b`, added with saturation.
fn multiply_add_bytes(a: u16, b: u16) -> u16 {
    let low = i32::from(a as u8) * i32::from(b as i8);
    let high = i32::from(a >> 8) * i32::from((b >> 8) as i8);
    (low + high).clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as u16
}

/// PSADBW: absolute differences of eight bytes, added.
fn sum_of_differences(a: u64, b: u64) -> u64 {
    a.to_le_bytes().iter().zip(b.to_le_bytes()).map(|(a, b)| u64::from(a.abs_diff(b))).sum()
}

/// MPSADBW: eight sums over four bytes each; the immediate picks where in `a` and in `b`.
fn mpsadbw(a: u128, b: u128, imm: u8) -> u128 {
    let (from_a, from_b) = (u32::from(imm >> 2 & 1) * 4, u32::from(imm & 3) * 4);
    let sum =
        |n: u32| -> u64 { (0..4).map(|k| get(a, from_a + n + k, 8).abs_diff(get(b, from_b + k, 8))).sum() };
    (0..8).fold(0, |r, n| r | u128::from(sum(n)) << (n * 16))
}

/// PHMINPOSUW: the least word, and its index above it.
fn minimum_position(b: u128) -> u128 {
    let least = (0..8).map(|n| (get(b, n, 16), n)).min().unwrap_or_default();
    u128::from(least.0) | u128::from(least.1) << 16
}

/// PTEST.
fn ptest(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    let b = v.xmm_source::<16>(i)?;
    let a = v.xmm(i.r0);
    set_flags(v, test_flags(a & b, !a & b));
    Ok(())
}

/// VPTEST.
fn vptest(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    vtest(v, i, !0)
}

/// VPTEST, VTESTPS, VTESTPD: looks at the bits of `mask` in each lane.
pub fn vtest(v: &mut Vcpu, i: &Insn, mask: u128) -> Result<(), Exit> {
    let b = v.vex_source(i)?;
    let a = v.ymm(i.r0);
    let high = if i.w == 32 { mask } else { 0 };
    let common = a[0] & b[0] & mask | a[1] & b[1] & high;
    let rest = !a[0] & b[0] & mask | !a[1] & b[1] & high;
    set_flags(v, test_flags(common, rest));
    Ok(())
}

/// ZF: no common bit; CF: no bit of the source outside the destination; others 0.
fn test_flags(common: u128, rest: u128) -> RFlags {
    let mut flags = RFlags::empty();
    flags.set(RFlags::ZF, common == 0);
    flags.set(RFlags::CF, rest == 0);
    flags
}
