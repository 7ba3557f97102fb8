//! Pack, unpack, shuffle, blend, insert, extract, widen; integer and floating-point forms.

use super::lanes::{Lane, get, pair, put};
use super::operands::{Forms, handler, mmx, shape, shared, sized, xmm};
use super::packed_integer::halves;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Insn, W};
use crate::simd::is_mmx;
use iced_x86::{Instruction, Mnemonic as M};

/// The table of this file.
pub fn handler(m: M, x: &Instruction) -> Option<Forms> {
    Some(match m {
        M::Packsswb => {
            sized!(x, |a, b, size| halves(a, b, size, |x| narrow::<i16>(x, |w| w.clamp(-128, 127))))
        }
        M::Packuswb => sized!(x, |a, b, size| halves(a, b, size, |x| narrow::<i16>(x, |w| w.clamp(0, 255)))),
        M::Packssdw => {
            sized!(x, |a, b, size| halves(a, b, size, |x| narrow::<i32>(x, |d| d.clamp(-0x8000, 0x7FFF))))
        }
        M::Packusdw => xmm!(|a, b| halves(a, b, 16, |x| narrow::<i32>(x, |d| d.clamp(0, 0xFFFF)))),

        // The low forms of MMX read only 32 bits of memory.
        M::Punpcklbw if is_mmx(x) => mmx!(4, interleave::<u8>),
        M::Punpcklwd if is_mmx(x) => mmx!(4, interleave::<u16>),
        M::Punpckldq if is_mmx(x) => mmx!(4, interleave::<u32>),
        M::Punpcklbw => xmm!(interleave::<u8>),
        M::Punpcklwd => xmm!(interleave::<u16>),
        M::Punpckldq | M::Unpcklps => xmm!(interleave::<u32>),
        M::Punpcklqdq | M::Unpcklpd => xmm!(interleave::<u64>),
        M::Punpckhbw => sized!(x, |a, b, size| interleave::<u8>(a >> (size * 4), b >> (size * 4))),
        M::Punpckhwd => sized!(x, |a, b, size| interleave::<u16>(a >> (size * 4), b >> (size * 4))),
        M::Punpckhdq => sized!(x, |a, b, size| interleave::<u32>(a >> (size * 4), b >> (size * 4))),
        M::Unpckhps => xmm!(|a, b| interleave::<u32>(a >> 64, b >> 64)),
        M::Punpckhqdq | M::Unpckhpd => xmm!(|a, b| interleave::<u64>(a >> 64, b >> 64)),

        M::Pshufb => sized!(x, shuffle_bytes),
        M::Pshufd => xmm!(imm 16, |_, b, imm| select::<32>(b, b, imm)),
        M::Pshuflw => xmm!(imm 16, |_, b: u128, imm| pair(select::<16>(b, b, imm) as u64, (b >> 64) as u64)),
        M::Pshufhw => xmm!(imm 16, |_, b: u128, imm| {
            pair(b as u64, select::<16>(b >> 64, b >> 64, imm) as u64)
        }),
        M::Pshufw => mmx!(imm 8, |_, b, imm| select::<16>(b, b, imm)),
        M::Shufps => xmm!(imm 16, select::<32>),
        M::Shufpd => xmm!(imm 16, lanes 2, |a, b, imm: u8| {
            pair(get(a, u32::from(imm & 1), 64), get(b, u32::from(imm >> 1 & 1), 64))
        }),
        M::Palignr if is_mmx(x) => mmx!(imm 8, |a, b, imm| align(a, b, imm, 8)),
        M::Palignr => xmm!(imm 16, |a, b, imm| align(a, b, imm, 16)),

        M::Pblendw => xmm!(imm 16, |a, b, imm| blend(a, b, 16, |n| imm >> n & 1 != 0)),
        M::Blendps => xmm!(imm 16, lanes 4, |a, b, imm| blend(a, b, 32, |n| imm >> n & 1 != 0)),
        M::Blendpd => xmm!(imm 16, lanes 2, |a, b, imm| blend(a, b, 64, |n| imm >> n & 1 != 0)),
        M::Pblendvb => handler!(|v, i| blend_by_xmm0(v, i, 8)).into(),
        M::Blendvps => handler!(|v, i| blend_by_xmm0(v, i, 32)).into(),
        M::Blendvpd => handler!(|v, i| blend_by_xmm0(v, i, 64)).into(),

        M::Pmovzxbw => xmm!(8, shape::WIDER_2, |_, b| widen(b, 8, 16, false)),
        M::Pmovzxbd => xmm!(4, shape::WIDER_4, |_, b| widen(b, 8, 32, false)),
        M::Pmovzxbq => xmm!(2, shape::WIDER_8, |_, b| widen(b, 8, 64, false)),
        M::Pmovzxwd => xmm!(8, shape::WIDER_2, |_, b| widen(b, 16, 32, false)),
        M::Pmovzxwq => xmm!(4, shape::WIDER_4, |_, b| widen(b, 16, 64, false)),
        M::Pmovzxdq => xmm!(8, shape::WIDER_2, |_, b| widen(b, 32, 64, false)),
        M::Pmovsxbw => xmm!(8, shape::WIDER_2, |_, b| widen(b, 8, 16, true)),
        M::Pmovsxbd => xmm!(4, shape::WIDER_4, |_, b| widen(b, 8, 32, true)),
        M::Pmovsxbq => xmm!(2, shape::WIDER_8, |_, b| widen(b, 8, 64, true)),
        M::Pmovsxwd => xmm!(8, shape::WIDER_2, |_, b| widen(b, 16, 32, true)),
        M::Pmovsxwq => xmm!(4, shape::WIDER_4, |_, b| widen(b, 16, 64, true)),
        M::Pmovsxdq => xmm!(8, shape::WIDER_2, |_, b| widen(b, 32, 64, true)),

        M::Pinsrb => shared!(insert::<1>),
        M::Pinsrw if is_mmx(x) => handler!(pinsrw_mmx).into(),
        M::Pinsrw => shared!(insert::<2>),
        M::Pinsrd => shared!(insert::<4>),
        M::Pinsrq => shared!(insert::<8>),
        M::Pextrb => shared!(extract::<1>),
        M::Pextrw if is_mmx(x) => handler!(pextrw_mmx).into(),
        M::Pextrw => shared!(extract::<2>),
        M::Pextrd | M::Extractps => shared!(extract::<4>),
        M::Pextrq => shared!(extract::<8>),
        M::Insertps => shared!(insertps),
        _ => return None,
    })
}

/// Each lane clamped and cut to half its width.
#[inline(always)]
fn narrow<T: Lane + Into<i64>>(x: u128, clamp: impl Fn(T) -> T) -> u64 {
    let half = T::BITS / 2;
    let cut = |lane: T| clamp(lane).into() as u64 & (!0 >> (64 - half));
    T::split(x).as_ref().iter().rev().fold(0, |r, &lane| r << half | cut(lane))
}

/// Lanes of the low halves by turns, those of `a` first.
#[inline(always)]
fn interleave<T: Lane>(a: u128, b: u128) -> u128 {
    let (a, b) = (T::split(a), T::split(b));
    let mut r = a;
    for n in 0..T::COUNT / 2 {
        r.as_mut()[n * 2] = a.as_ref()[n];
        r.as_mut()[n * 2 + 1] = b.as_ref()[n];
    }
    T::join(r)
}

/// PSHUFB: bytes of `a` by the indices in `b`; bit 7 makes zero.
fn shuffle_bytes(a: u128, b: u128, size: u32) -> u128 {
    let (bytes, last) = (a.to_le_bytes(), size as u8 - 1);
    super::lanes::map(b, |n: u8| if n & 0x80 != 0 { 0 } else { bytes[usize::from(n & last & 15)] })
}

/// Four lanes by two bits of the immediate each: two from `a`, two from `b`.
#[inline(always)]
fn select<const BITS: u32>(a: u128, b: u128, imm: u8) -> u128 {
    let lane = |n: u32| {
        let from = if n < 2 { a } else { b };
        u128::from(get(from, u32::from(imm >> (n * 2) & 3), BITS)) << (n * BITS)
    };
    lane(0) | lane(1) | lane(2) | lane(3)
}

/// PALIGNR: `a` above `b`, shifted right by bytes.
fn align(a: u128, b: u128, bytes: u8, size: u32) -> u128 {
    let (n, bits) = (u32::from(bytes) * 8, size * 8);
    let part = |x: u128, left: u32| x.checked_shl(left).unwrap_or(0);
    match n {
        0 => b,
        _ if n < bits => b >> n | part(a, bits - n),
        _ => a.checked_shr(n - bits).unwrap_or(0),
    }
}

/// Lanes of `b` where `pick` says so.
#[inline(always)]
pub fn blend(a: u128, b: u128, bits: u32, pick: impl Fn(u32) -> bool) -> u128 {
    (0..128 / bits).fold(a, |r, n| if pick(n) { put(r, n, bits, get(b, n, bits)) } else { r })
}

/// PBLENDVB, BLENDVPS, BLENDVPD: lanes of the source where XMM0's lane is negative.
fn blend_by_xmm0(v: &mut Vcpu, i: &Insn, bits: u32) -> Result<(), Exit> {
    let mask = v.xmm(0);
    super::operands::binary_128::<16>(v, i, |a, b| {
        blend(a, b, bits, |n| mask >> (n * bits + bits - 1) & 1 != 0)
    })
}

/// PMOVZX, PMOVSX: the low lanes of `from` bits, extended to `to` bits.
#[inline(always)]
fn widen(b: u128, from: u32, to: u32, signed: bool) -> u128 {
    (0..128 / to).fold(0, |r, n| {
        let lane = get(b, n, from);
        let unused = 64 - from;
        let lane = if signed { ((lane << unused) as i64 >> unused) as u64 } else { lane };
        put(r, n, to, lane)
    })
}

/// A general register or `N` bytes of memory.
fn general_source<const N: u32>(v: &mut Vcpu, i: &Insn) -> Result<u64, Exit> {
    if i.memory() { Ok(v.load_operand::<N>(i)? as u64) } else { Ok(v.get_reg(W::Q, i.r1)) }
}

/// PINSRB, PINSRW, PINSRD, PINSRQ: replaces one lane; the immediate counts modulo the lanes.
fn insert<const N: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let value = general_source::<N>(v, i)?;
    let r = put(v.first_source(i), i.imm as u32 % (16 / N), N * 8, value);
    v.set_destination(i, r);
    Ok(())
}

/// PINSRW, MMX form.
fn pinsrw_mmx(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_mmx()?;
    let value = general_source::<2>(v, i)?;
    let r = put(u128::from(v.mm(i.r0)), i.imm as u32 & 3, 16, value);
    v.set_mm(i.r0, r as u64);
    Ok(())
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ, EXTRACTPS: one lane, zero-extended into a register.
fn extract<const N: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let value = get(v.xmm(i.r1), i.imm as u32 % (16 / N), N * 8);
    if i.memory() {
        return v.store_operand::<N>(i, u128::from(value));
    }
    v.put_reg(W::Q, i.r0, value);
    Ok(())
}

/// PEXTRW, MMX form.
fn pextrw_mmx(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_mmx()?;
    let value = get(u128::from(v.mm(i.r1)), i.imm as u32 & 3, 16);
    v.enter_mmx();
    v.put_reg(W::Q, i.r0, value);
    Ok(())
}

/// INSERTPS: one doubleword of the source (bits 7:6; memory has just one) to a place (5:4), then zeroes (3:0).
fn insertps(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let imm = i.imm as u32;
    let source = v.xmm_source::<4>(i)?;
    let lane = if i.memory() { 0 } else { imm >> 6 & 3 };
    let moved = put(v.first_source(i), imm >> 4 & 3, 32, get(source, lane, 32));
    let r = blend(moved, 0, 32, |n| imm >> n & 1 != 0);
    v.set_destination(i, r);
    Ok(())
}
