//! Transcendental functions of the soft arithmetic: in 128-bit precision by series, then rounded, so the result
//! is the correctly rounded one but for the rarest cases (silicon promises less than 1 unit of the last place).
//!
//! Trigonometric arguments are reduced with a pi of 66 bits, as SDM Vol. 1, "Approximation of Pi", describes.
//! All results but the exact special cases report PE.

use super::round::{Exact, register, to_f80};
use super::soft::INFINITY;
use super::unit::status::*;
use super::unit::{INDEFINITE, ONE, PC};
use super::wide::{self, LN_2, PI};
use crate::state::F80;

const INVALID: (F80, u16) = (INDEFINITE, IE);

/// Rounds a result that is not exact.
fn rounded(x: Exact, control: u16) -> (F80, u16) {
    to_f80(x.inexact(), register(control | PC), control)
}

fn zero(negative: bool) -> (F80, u16) {
    (F80::default().with_sign(negative), 0)
}

fn infinity(negative: bool) -> (F80, u16) {
    (INFINITY.with_sign(negative), 0)
}

/// A magnitude below 2^63 as quadrant and rest of -pi/4 to pi/4.
fn reduce(a: F80) -> (u64, Exact) {
    let exponent = i32::from(a.exponent()) - 0x3FFF;
    if exponent < -1 {
        return (0, Exact::of(a).magnitude());
    }
    /// pi / 2 in units of 2^-65.
    const HALF_PI: u128 = 0x3_243F_6A88_85A3_08D3;
    let (mut rest, mut quadrant) = (u128::from(a.significand), 0u64);
    for _ in 0..exponent + 2 {
        rest <<= 1;
        quadrant <<= 1;
        if rest >= HALF_PI {
            rest -= HALF_PI;
            quadrant |= 1;
        }
    }
    let over = 2 * rest > HALF_PI;
    if over {
        rest = HALF_PI - rest;
        quadrant += 1;
    }
    (quadrant, Exact::normalized(over, 0x3FFF + 62, rest))
}

/// Sine (or cosine, a quadrant ahead) of a reduced argument.
fn sine(quadrant: u64, rest: Exact) -> Exact {
    let value = if quadrant & 1 == 0 { rest.sin() } else { rest.cos() };
    if quadrant & 2 == 0 { value } else { value.minus() }
}

/// What trigonometric instructions do with arguments that they cannot reduce: IE, or C2 and no change.
fn out_of_range(a: F80) -> Option<(F80, u16)> {
    if a.is_infinite() {
        return Some(INVALID);
    }
    (a.exponent() >= 0x3FFF + 63).then_some((a, C2))
}

pub fn sin(a: F80, control: u16) -> (F80, u16) {
    if let Some(result) = out_of_range(a) {
        return result;
    }
    if a.is_zero() {
        return (a, 0);
    }
    let (quadrant, rest) = reduce(a);
    let value = sine(quadrant, rest);
    rounded(if a.negative() { value.minus() } else { value }, control)
}

pub fn cos(a: F80, control: u16) -> (F80, u16) {
    if let Some(result) = out_of_range(a) {
        return result;
    }
    if a.is_zero() {
        return (ONE, 0);
    }
    let (quadrant, rest) = reduce(a);
    rounded(sine(quadrant + 1, rest), control)
}

pub fn sin_cos(a: F80, control: u16) -> (F80, F80, u16) {
    let (s, flags) = sin(a, control);
    let (c, more) = cos(a, control);
    // One C1 for two results: that of the last.
    (s, c, flags & !C1 | more)
}

pub fn tan(a: F80, control: u16) -> (F80, u16) {
    if let Some(result) = out_of_range(a) {
        return result;
    }
    if a.is_zero() {
        return (a, 0);
    }
    let (quadrant, rest) = reduce(a);
    let value = sine(quadrant, rest).over(sine(quadrant + 1, rest));
    rounded(if a.negative() { value.minus() } else { value }, control)
}

/// atan(b / a) with the signs' quadrant (SDM Vol. 2, "FPATAN").
pub fn atan(a: F80, b: F80, control: u16) -> (F80, u16) {
    let signed = |x: Exact| rounded(Exact { negative: b.negative(), ..x }, control);
    let quarter = PI.scaled(-2);
    match (b.is_infinite(), a.is_infinite(), a.negative()) {
        (true, true, false) => return signed(quarter),
        (true, true, true) => return signed(quarter.times(Exact::whole(3))),
        (true, false, _) => return signed(PI.scaled(-1)),
        (false, true, false) => return zero(b.negative()),
        (false, true, true) => return signed(PI),
        _ => {}
    }
    match (b.is_zero(), a.is_zero(), a.negative()) {
        (true, _, false) => return zero(b.negative()),
        (true, _, true) => return signed(PI),
        (false, true, _) => return signed(PI.scaled(-1)),
        _ => {}
    }
    let (x, y) = (Exact::of(a).magnitude(), Exact::of(b).magnitude());
    let less = (y.exponent, y.significand) < (x.exponent, x.significand);
    let angle = if less { y.over(x).atan() } else { PI.scaled(-1).plus(x.over(y).atan().minus()) };
    signed(if a.negative() { PI.plus(angle.minus()) } else { angle })
}

/// ln of a positive number, and of a power of two the exponent instead.
fn log2(x: Exact) -> Result<Exact, Exact> {
    let mut exponent = x.exponent - 0x3FFF;
    if x.significand == 1 << 127 {
        return Ok(Exact::whole(exponent));
    }
    let mut m = x.scaled(-exponent);
    // Between the square roots of 1/2 and 2.
    if m.significand > 0xB504_F333_F9DE_6484 << 64 {
        m = m.scaled(-1);
        exponent += 1;
    }
    let z = m.plus(wide::ONE.minus()).over(m.plus(wide::ONE));
    Err(z.log_ratio().over(LN_2).plus(Exact::whole(exponent)))
}

/// b * log2(a) (SDM Vol. 2, "FYL2X").
pub fn log(a: F80, b: F80, control: u16) -> (F80, u16) {
    if a.is_zero() {
        return match (b.is_zero(), b.is_infinite()) {
            (true, _) => INVALID,
            (_, true) => infinity(!b.negative()),
            _ => (INFINITY.with_sign(!b.negative()), ZE),
        };
    }
    if a.negative() {
        return INVALID;
    }
    if a.is_infinite() {
        return if b.is_zero() { INVALID } else { infinity(b.negative()) };
    }
    let below_one = a.exponent() < 0x3FFF;
    let one = a == ONE;
    if b.is_infinite() {
        return if one { INVALID } else { infinity(b.negative() != below_one) };
    }
    if one || b.is_zero() {
        return zero(b.negative() != below_one);
    }
    let factor = Exact::of(b);
    match log2(Exact::of(a)) {
        Ok(exponent) => to_f80(exponent.times(factor), register(control | PC), control),
        Err(value) => rounded(value.times(factor), control),
    }
}

/// b * log2(a + 1) (SDM Vol. 2, "FYL2XP1").
/// Undefined: outside its range the function is calculated all the same; below -1 it is IE.
pub fn log1p(a: F80, b: F80, control: u16) -> (F80, u16) {
    let negative = a.negative() != b.negative();
    if a.is_zero() {
        return if b.is_infinite() { INVALID } else { zero(negative) };
    }
    if a.negative() && a.exponent() >= 0x3FFF {
        return INVALID;
    }
    if a.is_infinite() {
        return if b.is_zero() { INVALID } else { infinity(negative) };
    }
    if b.is_infinite() {
        return infinity(negative);
    }
    if b.is_zero() {
        return zero(negative);
    }
    let (x, factor) = (Exact::of(a), Exact::of(b));
    let value = if a.exponent() < 0x3FFE {
        x.over(x.plus(Exact::whole(2))).log_ratio().over(LN_2)
    } else {
        log2(x.plus(wide::ONE)).unwrap_or_else(|value| value)
    };
    rounded(value.times(factor), control)
}

/// 2^a - 1.
/// Undefined: outside -1 to 1 the operand stays.
pub fn exp(a: F80, control: u16) -> (F80, u16) {
    let minus_one = ONE.with_sign(true);
    if a.is_infinite() {
        return (if a.negative() { minus_one } else { a }, 0);
    }
    if a.is_zero() || a.exponent() >= 0x3FFF {
        let half = F80 { sign_exponent: 0xBFFE, ..ONE };
        return (if a == minus_one { half } else { a }, 0);
    }
    rounded(Exact::of(a).times(LN_2).exp_minus_1(), control)
}
