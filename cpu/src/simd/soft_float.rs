//! Single and double precision in integer arithmetic, exactly as MXCSR asks: rounding, denormals, flags, NaNs.
//!
//! A finite number is taken apart into sign, exponent and a significand whose top bit is set. Operations
//! compute a significand of 128 bits, the lowest of which is sticky, and [`Env::round`] does the rest.

use super::checks::mxcsr::*;
use std::cmp::Ordering;

/// A format of SDM Vol. 1, "Floating-Point Data Types".
#[derive(Clone, Copy)]
pub struct Format {
    pub bits: u32,
    /// Bits of the significand behind the point.
    fraction: u32,
}

pub const HALF: Format = Format { bits: 16, fraction: 10 };
pub const SINGLE: Format = Format { bits: 32, fraction: 23 };
pub const DOUBLE: Format = Format { bits: 64, fraction: 52 };

impl Format {
    const fn bias(self) -> i32 {
        (1 << (self.bits - self.fraction - 2)) - 1
    }
    const fn sign(self) -> u64 {
        1 << (self.bits - 1)
    }
    const fn infinity(self) -> u64 {
        self.sign() - self.hidden()
    }
    /// The integer bit, which is not stored; also the exponent's lowest bit.
    const fn hidden(self) -> u64 {
        1 << self.fraction
    }
    const fn quiet(self) -> u64 {
        self.hidden() >> 1
    }
    const fn default_nan(self) -> u64 {
        self.sign() | self.infinity() | self.quiet()
    }
    const fn is_nan(self, x: u64) -> bool {
        x & (self.sign() - 1) > self.infinity()
    }
    const fn is_signaling(self, x: u64) -> bool {
        self.is_nan(x) && x & self.quiet() == 0
    }
    const fn signed(self, sign: bool, magnitude: u64) -> u64 {
        if sign { magnitude | self.sign() } else { magnitude }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Zero,
    /// significand / 2^63 * 2^exponent, top bit set.
    Finite(i32, u64),
    Infinite,
}
use Kind::*;

#[derive(Clone, Copy)]
struct Number {
    sign: bool,
    kind: Kind,
}

/// MXCSR, and the flags that were raised.
pub struct Env {
    pub mxcsr: u32,
    pub flags: u32,
}

/// Drops the low bits of a significand, rounding.
fn round_off(rounding: u32, sign: bool, significand: u128, drop: u32) -> (u128, bool) {
    let (kept, rest, half) = match drop {
        0 => return (significand, false),
        1..=127 => (significand >> drop, significand & ((1 << drop) - 1), 1 << (drop - 1)),
        128 => (0, significand, 1 << 127),
        _ => (0, u128::from(significand != 0), 2),
    };
    let up = match rounding {
        0 => rest > half || rest == half && kept & 1 != 0,
        1 => sign && rest != 0,
        2 => !sign && rest != 0,
        _ => false,
    };
    (kept + u128::from(up), rest != 0)
}

/// Shifts right; what falls out stays as the lowest bit.
fn shift_sticky(x: u128, n: u32) -> u128 {
    if n > 127 { u128::from(x != 0) } else { x >> n | u128::from(x & ((1 << n) - 1) != 0) }
}

impl Env {
    pub fn new(mxcsr: u32) -> Self {
        Env { mxcsr, flags: 0 }
    }
    fn rounding(&self) -> u32 {
        self.mxcsr >> RC_SHIFT & 3
    }

    /// A number that is not a NaN, with what DAZ makes of it. No flags.
    fn unpack(&self, f: Format, x: u64) -> Number {
        let sign = x & f.sign() != 0;
        let magnitude = x & (f.sign() - 1);
        let (exponent, fraction) = ((magnitude >> f.fraction) as i32, magnitude & (f.hidden() - 1));
        let kind = match (exponent, fraction) {
            (0, 0) => Zero,
            (0, _) if self.mxcsr & DAZ != 0 => Zero,
            (0, _) => {
                let shift = fraction.leading_zeros();
                Finite(1 - f.bias() + 63 - f.fraction as i32 - shift as i32, fraction << shift)
            }
            _ if magnitude >= f.infinity() => Infinite,
            _ => Finite(exponent - f.bias(), (fraction | f.hidden()) << (63 - f.fraction)),
        };
        Number { sign, kind }
    }

    /// Raises DE for a denormal that DAZ does not hide.
    fn note_denormal(&mut self, f: Format, x: u64) {
        let magnitude = x & (f.sign() - 1);
        if magnitude != 0 && magnitude < f.hidden() && self.mxcsr & DAZ == 0 {
            self.flags |= DE;
        }
    }

    fn invalid(&mut self, f: Format) -> u64 {
        self.flags |= IE;
        f.default_nan()
    }

    /// The NaN that two operands make, if one is a NaN: the first that is, quieted.
    fn nan(&mut self, f: Format, a: u64, b: u64) -> Option<u64> {
        if !f.is_nan(a) && !f.is_nan(b) {
            return None;
        }
        if f.is_signaling(a) || f.is_signaling(b) {
            self.flags |= IE;
        }
        Some(f.quiet() | if f.is_nan(a) { a } else { b })
    }

    /// Both operands of an arithmetic operation, or the NaN that it returns.
    fn operands(&mut self, f: Format, a: u64, b: u64) -> Result<(Number, Number), u64> {
        if let Some(nan) = self.nan(f, a, b) {
            return Err(nan);
        }
        self.note_denormal(f, a);
        self.note_denormal(f, b);
        Ok((self.unpack(f, a), self.unpack(f, b)))
    }

    /// Rounds significand / 2^127 * 2^exponent (top bit set) into the format.
    fn round(&mut self, f: Format, sign: bool, exponent: i32, significand: u128) -> u64 {
        let (precision, least) = (f.fraction + 1, 1 - f.bias());
        let (full, full_inexact) = round_off(self.rounding(), sign, significand, 128 - precision);
        let carried = full >> precision != 0;
        let underflow_masked = self.mxcsr & UM != 0;
        if exponent < least {
            // Tiny is decided after rounding, as if there were no least exponent.
            let tiny = !(exponent == least - 1 && carried);
            if tiny && underflow_masked && self.mxcsr & FTZ != 0 {
                self.flags |= UE | PE;
                return f.signed(sign, 0);
            }
            let drop = 128 - precision + (least - exponent).min(200) as u32;
            let (kept, inexact) = round_off(self.rounding(), sign, significand, drop);
            if tiny && (inexact || !underflow_masked) {
                self.flags |= UE;
            }
            // Unmasked exceptions come with the precision of the result for their handler, whose exponent has no
            // bounds.
            if if tiny && !underflow_masked { full_inexact } else { inexact } {
                self.flags |= PE;
            }
            return f.signed(sign, kept as u64);
        }
        if exponent + i32::from(carried) > f.bias() {
            self.flags |= if self.mxcsr & OM != 0 || full_inexact { OE | PE } else { OE };
            let away = match self.rounding() {
                0 => true,
                1 => sign,
                2 => !sign,
                _ => false,
            };
            return f.signed(sign, f.infinity() - u64::from(!away));
        }
        if full_inexact {
            self.flags |= PE;
        }
        // A carry out of the significand steps the exponent.
        f.signed(sign, (((exponent + f.bias() - 1) as u64) << f.fraction) + full as u64)
    }

    /// Rounds any significand but zero; the top bit need not be set.
    fn normalize(&mut self, f: Format, sign: bool, exponent: i32, significand: u128) -> u64 {
        let shift = significand.leading_zeros();
        self.round(f, sign, exponent - shift as i32, significand << shift)
    }

    pub fn add(&mut self, f: Format, a: u64, b: u64) -> u64 {
        self.sum(f, a, b, false)
    }
    pub fn sub(&mut self, f: Format, a: u64, b: u64) -> u64 {
        self.sum(f, a, b, true)
    }

    fn sum(&mut self, f: Format, a: u64, b: u64, negate: bool) -> u64 {
        let (x, mut y) = match self.operands(f, a, b) {
            Ok(pair) => pair,
            Err(nan) => return nan,
        };
        y.sign ^= negate;
        let (x_bits, y_bits) = (a, if negate { b ^ f.sign() } else { b });
        match (x.kind, y.kind) {
            (Infinite, Infinite) if x.sign != y.sign => self.invalid(f),
            (Infinite, _) => x_bits,
            (_, Infinite) => y_bits,
            (Zero, Zero) => self.zero_sum(f, x.sign, y.sign),
            (Zero, Finite(e, s)) => self.round(f, y.sign, e, u128::from(s) << 64),
            (Finite(e, s), Zero) => self.round(f, x.sign, e, u128::from(s) << 64),
            (Finite(e_x, s_x), Finite(e_y, s_y)) => {
                let e = e_x.max(e_y);
                let at = |exponent: i32, s: u64| shift_sticky(u128::from(s) << 63, (e - exponent) as u32);
                let (m_x, m_y) = (at(e_x, s_x), at(e_y, s_y));
                if x.sign == y.sign {
                    return self.normalize(f, x.sign, e + 1, m_x + m_y);
                }
                match m_x.cmp(&m_y) {
                    Ordering::Equal => self.zero_sum(f, x.sign, y.sign),
                    Ordering::Greater => self.normalize(f, x.sign, e + 1, m_x - m_y),
                    Ordering::Less => self.normalize(f, y.sign, e + 1, m_y - m_x),
                }
            }
        }
    }

    /// A sum that is exactly zero: negative when rounding down, unless both are positive.
    fn zero_sum(&self, f: Format, x: bool, y: bool) -> u64 {
        f.signed(if x == y { x } else { self.rounding() == 1 }, 0)
    }

    pub fn mul(&mut self, f: Format, a: u64, b: u64) -> u64 {
        let (x, y) = match self.operands(f, a, b) {
            Ok(pair) => pair,
            Err(nan) => return nan,
        };
        let sign = x.sign != y.sign;
        match (x.kind, y.kind) {
            (Zero, Infinite) | (Infinite, Zero) => self.invalid(f),
            (Infinite, _) | (_, Infinite) => f.signed(sign, f.infinity()),
            (Zero, _) | (_, Zero) => f.signed(sign, 0),
            (Finite(e_x, s_x), Finite(e_y, s_y)) => {
                self.normalize(f, sign, e_x + e_y + 1, u128::from(s_x) * u128::from(s_y))
            }
        }
    }

    /// a * b + c with one rounding; product and addend negated as `negate` says. A NaN beside infinity times zero is no
    /// invalid operation (IEEE 754 leaves that open; AMD's choice).
    pub fn fused(&mut self, f: Format, a: u64, b: u64, c: u64, negate: (bool, bool)) -> u64 {
        let nans = [a, b, c].map(|x| f.is_nan(x));
        let (x, y, mut z) = (self.unpack(f, a), self.unpack(f, b), self.unpack(f, c));
        if nans != [false; 3] {
            if [a, b, c].iter().any(|&x| f.is_signaling(x)) {
                self.flags |= IE;
            }
            return f.quiet()
                | if nans[0] {
                    a
                } else if nans[1] {
                    b
                } else {
                    c
                };
        }
        if let (Zero, Infinite) | (Infinite, Zero) = (x.kind, y.kind) {
            return self.invalid(f);
        }
        let sign = (x.sign != y.sign) != negate.0;
        z.sign ^= negate.1;
        let product_infinite = x.kind == Infinite || y.kind == Infinite;
        if product_infinite && z.kind == Infinite && sign != z.sign {
            return self.invalid(f);
        }
        for operand in [a, b, c] {
            self.note_denormal(f, operand);
        }
        if product_infinite || z.kind == Infinite {
            return f.signed(if product_infinite { sign } else { z.sign }, f.infinity());
        }
        match (x.kind, y.kind, z.kind) {
            (Finite(e_x, s_x), Finite(e_y, s_y), kind) => {
                // Both with a bit above, so that a sum does not overflow. The product's low bits are zero.
                let (e, m) = (e_x + e_y + 1, (u128::from(s_x) * u128::from(s_y)) >> 1);
                let Finite(e_z, s_z) = kind else { return self.normalize(f, sign, e + 1, m) };
                let (m_z, top) = (u128::from(s_z) << 63, e.max(e_z));
                let m = shift_sticky(m, (top - e) as u32);
                let m_z = shift_sticky(m_z, (top - e_z) as u32);
                if sign == z.sign {
                    return self.normalize(f, sign, top + 1, m + m_z);
                }
                match m.cmp(&m_z) {
                    Ordering::Equal => self.zero_sum(f, sign, z.sign),
                    Ordering::Greater => self.normalize(f, sign, top + 1, m - m_z),
                    Ordering::Less => self.normalize(f, z.sign, top + 1, m_z - m),
                }
            }
            (_, _, Finite(e, s)) => self.round(f, z.sign, e, u128::from(s) << 64),
            _ => self.zero_sum(f, sign, z.sign),
        }
    }

    pub fn div(&mut self, f: Format, a: u64, b: u64) -> u64 {
        let flags = self.flags;
        let (x, y) = match self.operands(f, a, b) {
            Ok(pair) => pair,
            Err(nan) => return nan,
        };
        let sign = x.sign != y.sign;
        match (x.kind, y.kind) {
            (Zero, Zero) | (Infinite, Infinite) => self.invalid(f),
            (Infinite, _) => f.signed(sign, f.infinity()),
            (_, Infinite) | (Zero, _) => f.signed(sign, 0),
            (_, Zero) => {
                // Hides that the dividend is a denormal.
                self.flags = flags | ZE;
                f.signed(sign, f.infinity())
            }
            (Finite(e_x, s_x), Finite(e_y, s_y)) => {
                let (dividend, divisor) = (u128::from(s_x) << 64, u128::from(s_y));
                // 64 or 65 bits of quotient, then a sticky one.
                let quotient = (dividend / divisor) << 1 | u128::from(dividend % divisor != 0);
                self.normalize(f, sign, e_x - e_y + 62, quotient)
            }
        }
    }

    pub fn sqrt(&mut self, f: Format, a: u64) -> u64 {
        if let Some(nan) = self.nan(f, a, a) {
            return nan;
        }
        let x = self.unpack(f, a);
        match x.kind {
            Zero => f.signed(x.sign, 0),
            _ if x.sign => self.invalid(f),
            Infinite => a,
            Finite(e, s) => {
                self.note_denormal(f, a);
                // An even exponent, and the radicand as 2.126 bits.
                let square = u128::from(s) << (63 + (e & 1));
                let root = square.isqrt();
                let sticky = u128::from(root * root != square);
                self.normalize(f, false, (e >> 1) + 63, root << 1 | sticky)
            }
        }
    }

    /// `a` if it is less (or greater), else `b`: also for zeroes and NaNs, which are invalid.
    pub fn min_max(&mut self, f: Format, a: u64, b: u64, wanted: Ordering) -> u64 {
        if f.is_nan(a) || f.is_nan(b) {
            self.flags |= IE;
            return self.flushed(f, b);
        }
        self.note_denormal(f, a);
        self.note_denormal(f, b);
        let r = if self.order(f, a, b) == wanted { a } else { b };
        self.flushed(f, r)
    }

    /// The operand as DAZ shows it.
    fn flushed(&self, f: Format, x: u64) -> u64 {
        if !f.is_nan(x) && self.unpack(f, x).kind == Zero { x & f.sign() } else { x }
    }

    /// Order of two numbers; none is a NaN.
    fn order(&self, f: Format, a: u64, b: u64) -> Ordering {
        let key = |x: u64| {
            let magnitude = (self.flushed(f, x) & (f.sign() - 1)) as i64;
            if x & f.sign() != 0 { -magnitude } else { magnitude }
        };
        key(a).cmp(&key(b))
    }

    /// Compares; None: unordered. `signaling`: any NaN is invalid, not just a signaling one.
    pub fn compare(&mut self, f: Format, a: u64, b: u64, signaling: bool) -> Option<Ordering> {
        if self.nan(f, a, b).is_some() {
            if signaling {
                self.flags |= IE;
            }
            return None;
        }
        self.note_denormal(f, a);
        self.note_denormal(f, b);
        Some(self.order(f, a, b))
    }

    /// Converts between the formats.
    pub fn convert(&mut self, from: Format, to: Format, a: u64) -> u64 {
        let sign = a & from.sign() != 0;
        if self.nan(from, a, a).is_some() {
            let payload = a & (from.hidden() - 1);
            let payload = if to.bits > from.bits {
                payload << (to.fraction - from.fraction)
            } else {
                payload >> (from.fraction - to.fraction)
            };
            return to.signed(sign, to.infinity() | to.quiet() | payload);
        }
        self.note_denormal(from, a);
        match self.unpack(from, a).kind {
            Zero => to.signed(sign, 0),
            Infinite => to.signed(sign, to.infinity()),
            Finite(e, s) => self.round(to, sign, e, u128::from(s) << 64),
        }
    }

    pub fn integer(&mut self, f: Format, value: i64) -> u64 {
        if value == 0 {
            return 0;
        }
        self.normalize(f, value < 0, 63, u128::from(value.unsigned_abs()) << 64)
    }

    /// Converts to a signed integer of 32 or 64 bits; what does not fit is invalid and gives the least one.
    pub fn round_to(&mut self, f: Format, a: u64, bits: u32, truncate: bool) -> u64 {
        let indefinite = 1u64 << (bits - 1);
        let rounding = if truncate { 3 } else { self.rounding() };
        let x = self.unpack(f, a);
        let fits = |magnitude: u128| magnitude < u128::from(indefinite) + u128::from(x.sign);
        match x.kind {
            Zero => 0,
            Finite(e, s) if e < 64 && !f.is_nan(a) => {
                let (magnitude, inexact) =
                    round_off(rounding, x.sign, u128::from(s) << 64, (127 - e).min(200) as u32);
                if !fits(magnitude) {
                    self.flags |= IE;
                    return indefinite;
                }
                if inexact {
                    self.flags |= PE;
                }
                let value = if x.sign { (magnitude as u64).wrapping_neg() } else { magnitude as u64 };
                value & (!0 >> (64 - bits))
            }
            _ => {
                self.flags |= IE;
                indefinite
            }
        }
    }

    /// Rounds to an integer in the same format; `rounding` as in MXCSR.RC.
    pub fn round_to_integer(&mut self, f: Format, a: u64, rounding: u32) -> u64 {
        if let Some(nan) = self.nan(f, a, a) {
            return nan;
        }
        let x = self.unpack(f, a);
        match x.kind {
            Zero => f.signed(x.sign, 0),
            Finite(e, s) if e < f.fraction as i32 => {
                let (magnitude, inexact) =
                    round_off(rounding, x.sign, u128::from(s) << 64, (127 - e).min(200) as u32);
                if inexact {
                    self.flags |= PE;
                }
                let flags = self.flags;
                // Exact: the integer has no more bits than the fraction.
                let r = self.integer(f, magnitude as i64);
                self.flags = flags;
                f.signed(x.sign, r)
            }
            _ => a,
        }
    }
}
