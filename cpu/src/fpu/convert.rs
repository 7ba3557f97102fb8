//! From memory formats to registers: always exact, so one piece of code for every host.

use super::Format;
use super::unit::status::{DE, IE};
use crate::state::F80;

/// A value in extended precision and whether it was a denormal. NaNs stay as they are, signaling ones too.
pub fn widen(format: Format, bits: u64) -> (F80, bool) {
    match format {
        Format::F32 => float(bits << 32, 8, bits >> 31 & 1 != 0),
        Format::F64 => float(bits, 11, bits >> 63 != 0),
        Format::I16 => (integer(i64::from(bits as i16)), false),
        Format::I32 => (integer(i64::from(bits as i32)), false),
        Format::I64 => (integer(bits as i64), false),
    }
}

/// FLD: [`widen`], with the exceptions of a load.
pub fn load(format: Format, bits: u64) -> (F80, u16) {
    let (value, denormal) = widen(format, bits);
    if value.is_signaling() {
        return (F80 { significand: value.significand | 1 << 62, ..value }, IE);
    }
    (value, if denormal { DE } else { 0 })
}

/// A float whose sign is bit 63, with `width` bits of exponent.
fn float(bits: u64, width: u32, negative: bool) -> (F80, bool) {
    let exponent = (bits << 1 >> (64 - width)) as u16;
    let fraction = bits << (1 + width);
    let special = (1 << width) - 1;
    let bias = 0x3FFF - (special >> 1);
    let (significand, exponent, denormal) = match (exponent, fraction) {
        (0, 0) => (0, 0, false),
        (0, f) => (f << f.leading_zeros(), bias - f.leading_zeros() as u16, true),
        (e, f) => (1 << 63 | f >> 1, if e == special { 0x7FFF } else { e + bias }, false),
    };
    (F80 { significand, sign_exponent: exponent }.with_sign(negative), denormal)
}

pub fn integer(value: i64) -> F80 {
    unsigned(value.unsigned_abs()).with_sign(value < 0)
}

pub fn unsigned(value: u64) -> F80 {
    if value == 0 {
        return F80::default();
    }
    let shift = value.leading_zeros();
    F80 { significand: value << shift, sign_exponent: 0x3FFF + 63 - shift as u16 }
}
