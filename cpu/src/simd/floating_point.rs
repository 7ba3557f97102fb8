//! Floating-point arithmetic: packed, scalar, horizontal; rounding and dot products.

use super::lanes::{get, pair, put};
use super::operands::{Forms, binary_float, float, forms, shape, vex_lanes};
use super::soft_float::{DOUBLE, SINGLE};
use super::soft_sse::round;
use super::{operands, unit};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::Insn;
use iced_x86::Mnemonic as M;

/// The table of this file.
pub fn handler(m: M) -> Option<Forms> {
    Some(match m {
        M::Addps => float!(16, unit::addps),
        M::Addss => float!(4, unit::addss),
        M::Addpd => float!(16, unit::addpd),
        M::Addsd => float!(8, unit::addsd),
        M::Subps => float!(16, unit::subps),
        M::Subss => float!(4, unit::subss),
        M::Subpd => float!(16, unit::subpd),
        M::Subsd => float!(8, unit::subsd),
        M::Mulps => float!(16, unit::mulps),
        M::Mulss => float!(4, unit::mulss),
        M::Mulpd => float!(16, unit::mulpd),
        M::Mulsd => float!(8, unit::mulsd),
        M::Divps => float!(16, unit::divps),
        M::Divss => float!(4, unit::divss),
        M::Divpd => float!(16, unit::divpd),
        M::Divsd => float!(8, unit::divsd),
        M::Sqrtps => float!(16, unit::sqrtps),
        M::Sqrtss => float!(4, unit::sqrtss),
        M::Sqrtpd => float!(16, unit::sqrtpd),
        M::Sqrtsd => float!(8, unit::sqrtsd),
        M::Minps => float!(16, unit::minps),
        M::Minss => float!(4, unit::minss),
        M::Minpd => float!(16, unit::minpd),
        M::Minsd => float!(8, unit::minsd),
        M::Maxps => float!(16, unit::maxps),
        M::Maxss => float!(4, unit::maxss),
        M::Maxpd => float!(16, unit::maxpd),
        M::Maxsd => float!(8, unit::maxsd),
        M::Rcpps => float!(16, unit::rcpps),
        M::Rcpss => float!(4, unit::rcpss),
        M::Rsqrtps => float!(16, unit::rsqrtps),
        M::Rsqrtss => float!(4, unit::rsqrtss),
        M::Haddps => float!(16, unit::haddps),
        M::Haddpd => float!(16, unit::haddpd),
        M::Hsubps => float!(16, unit::hsubps),
        M::Hsubpd => float!(16, unit::hsubpd),
        M::Addsubps => float!(16, unit::addsubps),
        M::Addsubpd => float!(16, unit::addsubpd),
        M::Roundps => float_imm!(16, |imm, a, b, c| round(SINGLE, 4, imm, a, b, c)),
        M::Roundss => float_imm!(4, |imm, a, b, c| round(SINGLE, 1, imm, a, b, c)),
        M::Roundpd => float_imm!(16, |imm, a, b, c| round(DOUBLE, 2, imm, a, b, c)),
        M::Roundsd => float_imm!(8, |imm, a, b, c| round(DOUBLE, 1, imm, a, b, c)),
        M::Dpps => forms!(|v, i| dot_product(v, i, dpps), |v, i| vex_dot_product(v, i, dpps)),
        M::Dppd => forms!(|v, i| dot_product(v, i, dppd), |v, i| vex_dot_product(v, i, dppd)),
        _ => return None,
    })
}

/// An operation `|imm8, a, b, mxcsr|`.
macro_rules! float_imm {
    ($n:literal, $f:expr) => {
        $crate::simd::operands::forms!(
            |v, i: &$crate::insn::Insn| {
                $crate::simd::operands::binary_float::<$n>(v, i, |a, b, c| $f(i.imm as u8, a, b, c))
            },
            |v, i: &$crate::insn::Insn| {
                $crate::simd::operands::vex_float::<{ $crate::simd::operands::shape::EVEN }>(
                    v,
                    i,
                    |a, b, c| $f(i.imm as u8, a, b, c),
                )
            }
        )
    };
}
pub(super) use float_imm;

/// What a step of a dot product raised, in both lanes.
type Raised = [u32; 3];

/// DPPS, DPPD: each step is an operation with exceptions of its own.
fn dot_product(v: &mut Vcpu, i: &Insn, f: Dot) -> Result<(), Exit> {
    binary_float::<16>(v, i, |a, b, mxcsr| {
        let mut raised = Raised::default();
        let r = steps(i, a, b, mxcsr, f, &mut raised);
        (r, in_order(raised, mxcsr))
    })
}

/// Both lanes take each step together.
fn vex_dot_product(v: &mut Vcpu, i: &Insn, f: Dot) -> Result<(), Exit> {
    let (mxcsr, mut raised) = (v.state.mxcsr, Raised::default());
    let r = vex_lanes::<{ shape::EVEN }>(v, i, |_, a, b| steps(i, a, b, mxcsr, f, &mut raised))?;
    v.float_flags(in_order(raised, mxcsr))?;
    v.set_ymm(i.r0, r);
    Ok(())
}

/// The result of one lane.
fn steps(i: &Insn, a: u128, b: u128, mxcsr: u32, f: Dot, raised: &mut Raised) -> u128 {
    let mut raised = raised.iter_mut();
    f(i.imm as u8, a, b, &mut |op, a, b| {
        let (r, new) = op(a, b, mxcsr);
        if let Some(flags) = raised.next() {
            *flags |= new;
        }
        r
    })
}

/// The flags of all steps that are taken: none after an unmasked exception.
fn in_order(raised: Raised, mxcsr: u32) -> u32 {
    let unmasked = !(mxcsr >> super::checks::mxcsr::MASK_SHIFT);
    raised.iter().fold(0, |flags, new| if flags & unmasked == 0 { flags | new } else { flags })
}

type Dot = fn(u8, u128, u128, Step<'_>) -> u128;
type Step<'a> = &'a mut dyn FnMut(operands::Operation, u128, u128) -> u128;

fn dpps(imm: u8, a: u128, b: u128, step: Step<'_>) -> u128 {
    // Products that are not wanted are not computed: 0 * 0.
    let chosen = |x| (0..4).fold(x, |x, n| if imm >> (4 + n) & 1 != 0 { x } else { put(x, n, 32, 0) });
    let products = step(unit::mulps, chosen(a), chosen(b));
    let lane = |n| u128::from(get(products, n, 32));
    let sums = step(unit::addps, lane(0) | lane(2) << 32, lane(1) | lane(3) << 32);
    let sum = step(unit::addss, sums, u128::from(get(sums, 1, 32))) as u64;
    (0..4).fold(0, |r, n| if imm >> n & 1 != 0 { put(r, n, 32, sum) } else { r })
}

fn dppd(imm: u8, a: u128, b: u128, step: Step<'_>) -> u128 {
    let chosen = |x| (0..2).fold(x, |x, n| if imm >> (4 + n) & 1 != 0 { x } else { put(x, n, 64, 0) });
    let products = step(unit::mulpd, chosen(a), chosen(b));
    let sum = step(unit::addsd, products, products >> 64) as u64;
    pair(if imm & 1 != 0 { sum } else { 0 }, if imm & 2 != 0 { sum } else { 0 })
}
