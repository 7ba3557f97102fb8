//! Packed logical and shift instructions.

use super::lanes::{Lane, map};
use super::operands::{Forms, binary_64, binary_128, both, shape, vex, xmm};
use crate::insn::Insn;
use crate::simd::is_mmx;
use iced_x86::{Instruction, Mnemonic as M, OpKind};

/// The table of this file.
pub fn handler(m: M, x: &Instruction) -> Option<Forms> {
    Some(match m {
        M::Pand => both!(x, |a, b| a & b),
        M::Pandn => both!(x, |a: u128, b| !a & b),
        M::Por => both!(x, |a, b| a | b),
        M::Pxor => both!(x, |a, b| a ^ b),
        M::Andps | M::Andpd => xmm!(|a, b| a & b),
        M::Andnps | M::Andnpd => xmm!(|a: u128, b| !a & b),
        M::Orps | M::Orpd => xmm!(|a, b| a | b),
        M::Xorps | M::Xorpd => xmm!(|a, b| a ^ b),
        M::Psllw => shift!(x, left::<u16>),
        M::Pslld => shift!(x, left::<u32>),
        M::Psllq => shift!(x, left::<u64>),
        M::Psrlw => shift!(x, right::<u16>),
        M::Psrld => shift!(x, right::<u32>),
        M::Psrlq => shift!(x, right::<u64>),
        M::Psraw => shift!(x, right_arithmetic::<i16>),
        M::Psrad => shift!(x, right_arithmetic::<i32>),
        M::Pslldq => immediate!(|a, n| if n > 15 { 0 } else { a << (n * 8) }),
        M::Psrldq => immediate!(|a, n| if n > 15 { 0 } else { a >> (n * 8) }),
        _ => return None,
    })
}

/// The forms of a shift `|a, count|` with its count in the immediate.
macro_rules! immediate {
    ($f:expr) => {
        super::operands::forms!(
            |v, i: &Insn| binary_128::<16>(v, i, |a, _| $f(a, i.imm & 0xFF)),
            |v, i: &Insn| vex::<{ shape::EVEN }>(v, i, |_, a, _| $f(a, i.imm & 0xFF))
        )
    };
}
use immediate;

/// The forms of a shift: MMX or XMM, count in a vector's low quadword or in the immediate.
macro_rules! shift {
    ($x:expr, $f:expr) => {
        match (is_mmx($x), $x.op_kind($x.op_count() - 1) == OpKind::Immediate8) {
            (false, false) => xmm!(16, shape::SAME, |a, b| $f(a, b as u64)),
            (false, true) => immediate!($f),
            (true, false) => super::operands::mmx!(|a, b| $f(a, b as u64)),
            (true, true) => {
                super::operands::handler!(|v, i: &Insn| { binary_64::<8>(v, i, |a, _| $f(a, i.imm & 0xFF)) })
                    .into()
            }
        }
    };
}
use shift;

/// PSLL: zero when the count reaches the lane's width.
#[inline(always)]
fn left<T: Lane + std::ops::Shl<u32, Output = T>>(a: u128, count: u64) -> u128 {
    if count >= u64::from(T::BITS) { 0 } else { map::<T>(a, |x| x << count as u32) }
}

/// PSRL.
#[inline(always)]
fn right<T: Lane + std::ops::Shr<u32, Output = T>>(a: u128, count: u64) -> u128 {
    if count >= u64::from(T::BITS) { 0 } else { map::<T>(a, |x| x >> count as u32) }
}

/// PSRA: copies of the sign when the count reaches the lane's width.
#[inline(always)]
fn right_arithmetic<T: Lane + std::ops::Shr<u32, Output = T>>(a: u128, count: u64) -> u128 {
    map::<T>(a, |x| x >> count.min(u64::from(T::BITS) - 1) as u32)
}
