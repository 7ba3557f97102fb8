//! Packed logical and shift instructions.

use super::lanes::{Lane, map};
use super::operands::{binary_64, binary_128, both, xmm};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use crate::simd::is_mmx;
use iced_x86::{Instruction, Mnemonic as M, OpKind};

/// The table of this file.
pub fn handler(x: &Instruction) -> Option<Handler> {
    Some(match x.mnemonic() {
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
        M::Pslldq => {
            super::operands::handler!(|v, i| by_immediate(v, i, |a, n| if n > 15 { 0 } else { a << (n * 8) }))
        }
        M::Psrldq => {
            super::operands::handler!(|v, i| by_immediate(v, i, |a, n| if n > 15 { 0 } else { a >> (n * 8) }))
        }
        _ => return None,
    })
}

/// The four forms of a shift `|a, count|`: MMX or XMM, count in a vector's low quadword or in the immediate.
macro_rules! shift {
    ($x:expr, $f:expr) => {{
        use super::operands::handler;
        match (is_mmx($x), $x.op1_kind() == OpKind::Immediate8) {
            (false, false) => xmm!(|a, b| $f(a, b as u64)),
            (false, true) => handler!(|v, i| by_immediate(v, i, $f)),
            (true, false) => super::operands::mmx!(|a, b| $f(a, b as u64)),
            (true, true) => handler!(|v, i| by_immediate_64(v, i, $f)),
        }
    }};
}
use shift;

fn by_immediate(v: &mut Vcpu, i: &Insn, f: impl Fn(u128, u64) -> u128) -> Result<(), Exit> {
    binary_128::<16>(v, i, |a, _| f(a, i.imm & 0xFF))
}

fn by_immediate_64(v: &mut Vcpu, i: &Insn, f: impl Fn(u128, u64) -> u128) -> Result<(), Exit> {
    binary_64::<8>(v, i, |a, _| f(a, i.imm & 0xFF))
}

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
