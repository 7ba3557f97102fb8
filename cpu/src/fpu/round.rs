//! The last step of every soft operation: a wide exact result to 80 bits, with flags.

use super::unit::status::*;
use super::unit::{PC, RC};
use crate::state::F80;

/// A finite value: `significand` / 2^127 * 2^(`exponent` - 16383). Bit 127 is set, or all bits are clear; the
/// lowest bit stands for everything below it.
#[derive(Clone, Copy, Debug)]
pub struct Exact {
    pub negative: bool,
    pub exponent: i32,
    pub significand: u128,
}

impl Exact {
    /// Shifts the significand to its place.
    pub fn normalized(negative: bool, exponent: i32, significand: u128) -> Exact {
        let shift = significand.leading_zeros() & 127;
        Exact { negative, exponent: exponent - shift as i32, significand: significand << shift }
    }
    /// Of any finite register that is supported.
    pub fn of(a: F80) -> Exact {
        let exponent = i32::from(a.exponent().max(1));
        Self::normalized(a.negative(), exponent, u128::from(a.significand) << 64)
    }
}

/// A float format: bits of significand, and the least and greatest biased exponents on the scale of F80.
#[derive(Clone, Copy)]
pub struct Target {
    pub bits: u32,
    pub least: i32,
    pub greatest: i32,
}

/// What 80-bit registers hold under precision control.
pub fn register(control: u16) -> Target {
    let bits = match control & PC {
        0x000 => 24,
        0x200 => 53,
        _ => 64,
    };
    Target { bits, least: 1, greatest: 0x7FFE }
}

/// Shifts right; lost bits live on in the lowest.
pub fn shift_sticky(value: u128, by: u32) -> u128 {
    match by {
        0 => value,
        1..=127 => value >> by | u128::from(value << (128 - by) != 0),
        _ => u128::from(value != 0),
    }
}

/// Whether the rest below the last place rounds the magnitude up. `half`: 2 times the rest against one unit.
pub fn rounds_up(control: u16, negative: bool, odd: bool, rest: u128, half: u128) -> bool {
    match (control & RC) >> 10 {
        0 => rest > half || rest == half && odd,
        1 => negative && rest != 0,
        2 => !negative && rest != 0,
        _ => false,
    }
}

/// Rounds to `bits` places. The result has bit 127, with the exponent's increment; flags: PE and C1.
fn to_places(x: Exact, bits: u32, control: u16) -> (u128, i32, u16) {
    let unit = 1 << (128 - bits);
    let rest = x.significand & (unit - 1);
    let kept = x.significand - rest;
    if rest == 0 {
        return (kept, 0, 0);
    }
    if !rounds_up(control, x.negative, kept & unit != 0, rest, unit / 2) {
        return (kept, 0, PE);
    }
    match kept.checked_add(unit) {
        Some(sum) => (sum, 0, PE | C1),
        None => (1 << 127, 1, PE | C1),
    }
}

/// Rounds to a format. The significand has its integer bit at 127 (clear: denormal or zero), the exponent is
/// on the scale of F80: `least` for denormals. None: overflow to infinity. Flags: OE, UE, PE, C1; with an
/// unmasked OE or UE the exponent is off by 24576 as registers get it.
pub fn round_to(x: Exact, target: Target, control: u16) -> (Option<(u128, i32)>, u16) {
    if x.significand == 0 {
        return (Some((0, target.least)), 0);
    }
    let (significand, carry, flags) = to_places(x, target.bits, control);
    let exponent = x.exponent + carry;
    if exponent < target.least {
        if control & UE == 0 {
            return (Some((significand, exponent + 24576)), flags | UE);
        }
        return denormal(x, target, control);
    }
    if exponent <= target.greatest {
        return (Some((significand, exponent)), flags);
    }
    if control & OE == 0 {
        return (Some((significand, exponent - 24576)), flags | OE);
    }
    let infinite = rounds_up(control, x.negative, true, 1, 1);
    let greatest = !0 << (128 - target.bits);
    let result = (!infinite).then_some((greatest, target.greatest));
    (result, OE | PE | if infinite { C1 } else { 0 })
}

/// The masked response to underflow. The bits above the format's precision are shifted in as zeros.
fn denormal(x: Exact, target: Target, control: u16) -> (Option<(u128, i32)>, u16) {
    let by = (target.least - x.exponent).max(0).unsigned_abs();
    let shifted = Exact { significand: shift_sticky(x.significand, by), ..x };
    let (significand, carry, flags) = to_places(shifted, target.bits, control);
    debug_assert!(carry == 0);
    (Some((significand, target.least)), if flags == 0 { 0 } else { flags | UE })
}

/// Rounds to a register.
pub fn to_f80(x: Exact, target: Target, control: u16) -> (F80, u16) {
    const INFINITY: F80 = F80 { significand: 1 << 63, sign_exponent: 0x7FFF };
    let (result, flags) = round_to(x, target, control);
    let (value, flags) = match result {
        None => (INFINITY, flags),
        // FSCALE can lead so far outside that even the adjusted exponent does not help.
        Some((_, e)) if e > 0x7FFE => (INFINITY, flags | PE | C1),
        Some((_, e)) if e < 1 => (F80::default(), flags & !C1 | PE),
        Some((s, e)) => {
            let significand = (s >> 64) as u64;
            let exponent = if significand >> 63 == 0 { 0 } else { e as u16 };
            (F80 { significand, sign_exponent: exponent }, flags)
        }
    };
    (value.with_sign(x.negative), flags)
}
