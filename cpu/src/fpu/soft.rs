//! Our own arithmetic on 80-bit values: what hosts without an x87 use, and what `host` is checked against.
//! Every result is exact until `round`. Transcendental functions are in `soft_transcendental`.

use super::round::{Exact, Target, register, round_to, rounds_up, shift_sticky, to_f80};
use super::unit::status::*;
use super::unit::{INDEFINITE, ONE, PC};
use super::{Binary, Double, Format, Unary, convert, soft_transcendental as functions};
use crate::state::F80;

pub const INFINITY: F80 = F80 { significand: 1 << 63, sign_exponent: 0x7FFF };

/// What an operation delivers for operands that it cannot calculate with: unsupported formats and NaNs
/// (SDM Vol. 1, "Operating on SNaNs and QNaNs"); else DE if there is a denormal.
pub fn special(a: F80, b: F80) -> Result<u16, (F80, u16)> {
    if a.is_unsupported() || b.is_unsupported() {
        return Err((INDEFINITE, IE));
    }
    if !a.is_nan() && !b.is_nan() {
        return Ok(if a.is_denormal() || b.is_denormal() { DE } else { 0 });
    }
    let flags = if a.is_signaling() || b.is_signaling() { IE } else { 0 };
    let chosen = if !b.is_nan() {
        a
    } else if !a.is_nan() {
        b
    } else if a.is_signaling() != b.is_signaling() {
        // The quiet one.
        if a.is_signaling() { b } else { a }
    } else if a.significand != b.significand {
        if a.significand > b.significand { a } else { b }
    } else {
        // The positive one.
        if a.negative() { b } else { a }
    };
    Err((F80 { significand: chosen.significand | 1 << 62, ..chosen }, flags))
}

/// Leaves only what is reported when an unmasked exception prevents the result.
pub fn early((value, flags): (F80, u16), control: u16) -> (F80, u16) {
    if flags & !control & EARLY != 0 { (value, flags & (EARLY | CONDITIONS) & !C1) } else { (value, flags) }
}

/// See [`super::Arithmetic`].
pub fn binary(op: Binary, a: F80, b: F80, control: u16) -> (F80, u16) {
    let denormal = match special(a, b) {
        Ok(flags) => flags,
        Err(result) => return early(result, control),
    };
    if denormal & !control != 0 && op != Binary::Div {
        let invalid = binary(op, a, b, control | DE).1 & IE;
        return (INDEFINITE, if invalid != 0 { invalid } else { DE });
    }
    let target = register(control);
    let (value, flags) = match op {
        Binary::Add => add(a, b, target, control),
        Binary::Sub => add(a, b.with_sign(!b.negative()), target, control),
        Binary::Mul => multiply(a, b, target, control),
        Binary::Div => divide(a, b, target, control),
        Binary::Scale => scale(a, b, control),
        Binary::Rem => remainder(a, b, false, control),
        Binary::Rem1 => remainder(a, b, true, control),
        Binary::Atan => functions::atan(a, b, control),
        Binary::Log => functions::log(a, b, control),
        Binary::Log1p => functions::log1p(a, b, control),
    };
    let denormal = if flags & (IE | ZE) != 0 { 0 } else { denormal };
    early((value, flags | denormal), control)
}

const INVALID: (F80, u16) = (INDEFINITE, IE);

fn add(a: F80, b: F80, target: Target, control: u16) -> (F80, u16) {
    if a.is_infinite() || b.is_infinite() {
        let opposite = a.is_infinite() && b.is_infinite() && a.negative() != b.negative();
        return if opposite { INVALID } else { (if a.is_infinite() { a } else { b }, 0) };
    }
    let (x, y) = (Exact::of(a), Exact::of(b));
    let (x, y) =
        if y.significand == 0 || x.significand != 0 && x.exponent >= y.exponent { (x, y) } else { (y, x) };
    // One bit of room for the carry.
    let high = x.significand >> 1;
    let low = shift_sticky(y.significand >> 1, (x.exponent - y.exponent).max(0).unsigned_abs());
    let (negative, sum) = if x.negative == y.negative {
        (x.negative, high + low)
    } else if high >= low {
        (x.negative, high - low)
    } else {
        (y.negative, low - high)
    };
    if sum == 0 {
        let negative = if a.negative() == b.negative() { a.negative() } else { control >> 10 & 3 == 1 };
        return (F80::default().with_sign(negative), 0);
    }
    to_f80(Exact::normalized(negative, x.exponent + 1, sum), target, control)
}

fn multiply(a: F80, b: F80, target: Target, control: u16) -> (F80, u16) {
    let negative = a.negative() != b.negative();
    if a.is_infinite() || b.is_infinite() {
        return if a.is_zero() || b.is_zero() { INVALID } else { (INFINITY.with_sign(negative), 0) };
    }
    if a.is_zero() || b.is_zero() {
        return (F80::default().with_sign(negative), 0);
    }
    let (x, y) = (Exact::of(a), Exact::of(b));
    let product = (x.significand >> 64) * (y.significand >> 64);
    to_f80(Exact::normalized(negative, x.exponent + y.exponent - 0x3FFF + 1, product), target, control)
}

fn divide(a: F80, b: F80, target: Target, control: u16) -> (F80, u16) {
    let negative = a.negative() != b.negative();
    match (a.is_infinite(), b.is_infinite()) {
        (true, true) => return INVALID,
        (true, false) => return (INFINITY.with_sign(negative), 0),
        (false, true) => return (F80::default().with_sign(negative), 0),
        _ => {}
    }
    match (a.is_zero(), b.is_zero()) {
        (true, true) => return INVALID,
        (true, false) => return (F80::default().with_sign(negative), 0),
        (false, true) => return (INFINITY.with_sign(negative), ZE),
        _ => {}
    }
    let (x, y) = (Exact::of(a), Exact::of(b));
    let divisor = y.significand >> 64;
    let numerator = x.significand >> 1;
    let (high, rest) = (numerator / divisor, numerator % divisor);
    let (low, rest) = ((rest << 64) / divisor, (rest << 64) % divisor);
    let quotient = high << 64 | low | u128::from(rest != 0);
    to_f80(Exact::normalized(negative, x.exponent - y.exponent + 0x3FFF, quotient), target, control)
}

fn scale(a: F80, b: F80, control: u16) -> (F80, u16) {
    if b.is_infinite() {
        return match (a.is_zero(), a.is_infinite(), b.negative()) {
            (true, _, false) | (_, true, true) => INVALID,
            (_, _, true) => (F80::default().with_sign(a.negative()), 0),
            _ => (INFINITY.with_sign(a.negative()), 0),
        };
    }
    if a.is_infinite() || a.is_zero() {
        return (a, 0);
    }
    let magnitude = match i32::from(b.exponent()) - 0x3FFF {
        ..0 => 0,
        e @ 0..=16 => (b.significand >> (63 - e)) as i32,
        _ => 0x1_FFFF,
    };
    let mut x = Exact::of(a);
    x.exponent += if b.negative() { -magnitude } else { magnitude };
    to_f80(x, register(control | PC), control)
}

/// FPREM and FPREM1: one step. Conditions: C2 incomplete, else C0, C3, C1 the quotient's low bits.
fn remainder(a: F80, b: F80, nearest: bool, control: u16) -> (F80, u16) {
    if a.is_infinite() || b.is_zero() {
        return INVALID;
    }
    if a.is_zero() || b.is_infinite() {
        // A denormal goes through rounding all the same.
        return to_f80(Exact::of(a), register(control | PC), control);
    }
    let (x, y) = (Exact::of(a), Exact::of(b));
    let (mut rest, divisor) = (x.significand >> 64, y.significand >> 64);
    let distance = x.exponent - y.exponent;
    let mut negative = x.negative;
    let mut flags = 0;
    let mut exponent = y.exponent;
    let mut quotient = 0u64;
    if distance < -1 || distance < 0 && !nearest {
        exponent = x.exponent;
    } else {
        // As many quotient bits as one step delivers.
        let steps = if distance < 64 { distance } else { distance & 31 | 32 };
        if distance >= 64 {
            flags |= C2;
            exponent += distance - steps;
        }
        let mut bits = steps;
        if distance < 0 {
            // Half the divisor at most: count in units of half the last place.
            exponent -= 1;
            if rest > divisor {
                quotient = 1;
                rest = 2 * divisor - rest;
                negative = !negative;
            }
            bits = -1;
        }
        while bits >= 0 {
            quotient <<= 1;
            if rest >= divisor {
                rest -= divisor;
                quotient |= 1;
            }
            if bits > 0 {
                rest <<= 1;
            }
            bits -= 1;
        }
        let up = 2 * rest > divisor || 2 * rest == divisor && quotient & 1 != 0;
        if nearest && flags == 0 && distance >= 0 && up {
            rest = divisor - rest;
            negative = !negative;
            quotient += 1;
        }
    }
    if flags == 0 {
        let bit = |n: u32, flag: u16| if quotient >> n & 1 != 0 { flag } else { 0 };
        flags = bit(2, C0) | bit(1, C3) | bit(0, C1);
    }
    if rest == 0 {
        return (F80::default().with_sign(a.negative()), flags);
    }
    let (value, inexact) =
        to_f80(Exact::normalized(negative, exponent, rest << 64), register(control | PC), control);
    (value, flags | inexact)
}

/// See [`super::Arithmetic`].
pub fn unary(op: Unary, a: F80, control: u16) -> (F80, u16) {
    let denormal = match special(a, F80::default()) {
        Ok(flags) => flags,
        Err(result) => return early(result, control),
    };
    if denormal & !control != 0 && !(op == Unary::Sqrt && a.negative()) {
        return (INDEFINITE, DE);
    }
    let (value, flags) = match op {
        Unary::Sqrt => sqrt(a, control),
        Unary::RoundInt => round_to_integer(a, control),
        Unary::Sin => functions::sin(a, control),
        Unary::Cos => functions::cos(a, control),
        Unary::Exp => functions::exp(a, control),
    };
    let denormal = if flags & IE != 0 { 0 } else { denormal };
    early((value, flags | denormal), control)
}

fn sqrt(a: F80, control: u16) -> (F80, u16) {
    if a.is_zero() || a.is_infinite() && !a.negative() {
        return (a, 0);
    }
    if a.negative() {
        return INVALID;
    }
    let x = Exact::of(a);
    let unbiased = x.exponent - 0x3FFF;
    // An even exponent, and an operand of 126 or 127 bits below 2^128.
    let operand = if unbiased & 1 == 0 { x.significand >> 1 } else { x.significand };
    let root = operand.isqrt();
    let rest = operand - root * root;
    let significand = root << 64 | u128::from(rest > root) << 63 | u128::from(rest != 0);
    let exponent = unbiased.div_euclid(2) + 0x3FFF;
    to_f80(Exact::normalized(false, exponent, significand), register(control), control)
}

/// The magnitude as an integer, and PE and C1. None: 2^64 or more.
fn integer_part(a: F80, control: u16) -> Option<(u64, u16)> {
    let exponent = i32::from(a.exponent()) - 0x3FFF;
    if exponent > 63 {
        return None;
    }
    // 64 bits of integer over 64 of fraction.
    let fixed = shift_sticky(u128::from(a.significand) << 64, (63 - exponent).unsigned_abs());
    let (whole, rest) = ((fixed >> 64) as u64, fixed & u128::from(u64::MAX));
    let up = rounds_up(control, a.negative(), whole & 1 != 0, rest, 1 << 63);
    let flags = if rest == 0 { 0 } else { PE | if up { C1 } else { 0 } };
    Some((whole.checked_add(u64::from(up))?, flags))
}

fn round_to_integer(a: F80, control: u16) -> (F80, u16) {
    if a.is_infinite() || a.exponent() >= 0x3FFF + 63 {
        return (a, 0);
    }
    match integer_part(a, control) {
        Some((whole, flags)) => (convert::unsigned(whole).with_sign(a.negative()), flags),
        None => (a, 0),
    }
}

/// See [`super::Arithmetic`].
pub fn double(op: Double, a: F80, control: u16) -> (F80, F80, u16) {
    let denormal = match special(a, F80::default()) {
        Ok(flags) => flags,
        Err((value, flags)) => return (value, value, flags),
    };
    if denormal & !control != 0 {
        return (a, a, DE);
    }
    let (first, second, flags) = match op {
        Double::Extract => extract(a),
        Double::SinCos => functions::sin_cos(a, control),
        Double::Tan => {
            let (value, flags) = functions::tan(a, control);
            (value, if flags & IE != 0 { value } else { ONE }, flags)
        }
    };
    let denormal = if flags & IE != 0 { 0 } else { denormal };
    (first, second, flags | denormal)
}

fn extract(a: F80) -> (F80, F80, u16) {
    if a.is_infinite() {
        return (INFINITY, a, 0);
    }
    if a.is_zero() {
        return (INFINITY.with_sign(true), a, ZE);
    }
    let x = Exact::of(a);
    let significand = F80 { significand: (x.significand >> 64) as u64, sign_exponent: 0x3FFF };
    (convert::integer(i64::from(x.exponent - 0x3FFF)), significand.with_sign(a.negative()), 0)
}

/// See [`super::Arithmetic`].
pub fn compare(a: F80, b: F80, quiet: bool) -> u16 {
    let unordered = C0 | C2 | C3;
    let flags = match special(a, b) {
        Ok(flags) => flags,
        Err((value, flags)) => {
            let unsupported = value == INDEFINITE && flags == IE;
            return unordered | if quiet && !unsupported { flags } else { IE };
        }
    };
    // Order of sign and magnitude; pseudo-denormals are worth what the least exponent gives them.
    let key = |x: F80| {
        let magnitude = i128::from(x.exponent().max(1)) << 64 | i128::from(x.significand);
        let magnitude = if x.is_zero() { 0 } else { magnitude };
        if x.negative() { -magnitude } else { magnitude }
    };
    flags
        | match key(a).cmp(&key(b)) {
            std::cmp::Ordering::Less => C0,
            std::cmp::Ordering::Equal => C3,
            std::cmp::Ordering::Greater => 0,
        }
}

/// See [`super::Arithmetic`].
pub fn store(format: Format, a: F80, control: u16) -> (u64, u16) {
    match format {
        Format::F32 => store_float(a, 8, 24, control),
        Format::F64 => store_float(a, 11, 53, control),
        Format::I16 | Format::I32 | Format::I64 => store_integer(a, u32::from(format.bytes()) * 8, control),
    }
}

/// To a float of `width` bits of exponent and `bits` of significand with the hidden one.
fn store_float(a: F80, width: u32, bits: u32, control: u16) -> (u64, u16) {
    let special_exponent = (1u64 << width) - 1;
    let sign = |negative: bool| u64::from(negative) << (width + bits - 1);
    let (value, mut flags) = match special(a, F80::default()) {
        Ok(_) => (a, 0),
        Err(result) => result,
    };
    let result = if value.exponent() == 0x7FFF {
        Some((u128::from(value.significand) << 64, i32::MAX))
    } else {
        let bias = 0x3FFF - (special_exponent >> 1) as i32;
        let target = Target { bits, least: bias + 1, greatest: bias + special_exponent as i32 - 1 };
        let (result, rounding) = round_to(Exact::of(value), target, control);
        flags |= rounding;
        if rounding & !control & (OE | UE) != 0 {
            return (0, flags & !(PE | C1));
        }
        result.map(|(s, e)| (s, if s >> 127 == 0 { 0 } else { e - bias }))
    };
    let (significand, exponent) = result.unwrap_or((0, i32::MAX));
    let exponent = if exponent == i32::MAX { special_exponent } else { exponent.unsigned_abs().into() };
    let fraction = (significand << 1 >> 1 >> (128 - bits)) as u64 & ((1 << (bits - 1)) - 1);
    (sign(value.negative()) | exponent << (bits - 1) | fraction, flags)
}

fn store_integer(a: F80, bits: u32, control: u16) -> (u64, u16) {
    let limit = 1u64 << (bits - 1);
    let invalid = (limit, IE);
    if a.is_unsupported() || a.exponent() == 0x7FFF {
        return invalid;
    }
    match integer_part(a, control) {
        Some((whole, flags)) if whole < limit || whole == limit && a.negative() => {
            let value = if a.negative() { whole.wrapping_neg() } else { whole };
            (value & (!0 >> (64 - bits)), flags)
        }
        _ => invalid,
    }
}
