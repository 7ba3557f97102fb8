//! Arithmetic on [`Exact`] with 128 bits of significand, for transcendental functions: truncated, with an error
//! of some units of the 127th place.

use super::round::{Exact, shift_sticky};

pub const ONE: Exact = Exact { negative: false, exponent: 0x3FFF, significand: 1 << 127 };
pub const PI: Exact =
    Exact { negative: false, exponent: 0x4000, significand: 0xC90F_DAA2_2168_C234_C4C6_628B_80DC_1CD1 };
pub const LN_2: Exact =
    Exact { negative: false, exponent: 0x3FFE, significand: 0xB172_17F7_D1CF_79AB_C9E3_B398_03F2_F6AF };

impl Exact {
    pub fn whole(n: i32) -> Exact {
        Exact::normalized(n < 0, 0x3FFF + 127, u128::from(n.unsigned_abs()))
    }
    pub fn is_zero(self) -> bool {
        self.significand == 0
    }
    pub fn minus(self) -> Exact {
        Exact { negative: !self.negative, ..self }
    }
    pub fn magnitude(self) -> Exact {
        Exact { negative: false, ..self }
    }
    /// Times 2^`by`.
    pub fn scaled(self, by: i32) -> Exact {
        Exact { exponent: self.exponent + by, ..self }
    }
    /// The same value, marked as not quite exact.
    pub fn inexact(self) -> Exact {
        Exact { significand: self.significand | 1, ..self }
    }
    /// Whether this is too small to change `sum`.
    fn negligible(self, sum: Exact) -> bool {
        self.is_zero() || self.exponent + 130 < sum.exponent
    }

    pub fn plus(self, other: Exact) -> Exact {
        let swap = self.is_zero() || !other.is_zero() && other.exponent > self.exponent;
        let (x, y) = if swap { (other, self) } else { (self, other) };
        let high = x.significand >> 1;
        let low = shift_sticky(y.significand >> 1, (x.exponent - y.exponent).max(0).unsigned_abs());
        let (negative, sum) = if x.negative == y.negative {
            (x.negative, high + low)
        } else if high >= low {
            (x.negative, high - low)
        } else {
            (y.negative, low - high)
        };
        Exact::normalized(negative, x.exponent + 1, sum)
    }

    pub fn times(self, other: Exact) -> Exact {
        const LOW: u128 = u64::MAX as u128;
        let (ah, al) = (self.significand >> 64, self.significand & LOW);
        let (bh, bl) = (other.significand >> 64, other.significand & LOW);
        let middle = ((al * bl) >> 64) + ((ah * bl) & LOW) + ((al * bh) & LOW);
        let high = ah * bh + ((ah * bl) >> 64) + ((al * bh) >> 64) + (middle >> 64);
        Exact::normalized(self.negative != other.negative, self.exponent + other.exponent - 0x3FFF + 1, high)
    }

    /// The divisor is not zero.
    pub fn over(self, divisor: Exact) -> Exact {
        let (mut rest, mut quotient, mut carry) = (self.significand, 0u128, false);
        for _ in 0..128 {
            quotient <<= 1;
            if carry || rest >= divisor.significand {
                rest = rest.wrapping_sub(divisor.significand);
                quotient |= 1;
            }
            carry = rest >> 127 != 0;
            rest <<= 1;
        }
        let negative = self.negative != divisor.negative;
        Exact::normalized(negative, self.exponent - divisor.exponent + 0x3FFF, quotient)
    }

    /// `first` + ... where each term is the one before times what `ratio` says for its number (from 1).
    fn series(first: Exact, ratio: impl Fn(i32) -> Exact) -> Exact {
        let (mut sum, mut term) = (first, first);
        for n in 1..400 {
            term = term.times(ratio(n));
            if term.is_zero() {
                break;
            }
            sum = sum.plus(term);
            if term.negligible(sum) {
                break;
            }
        }
        sum
    }

    /// For magnitudes up to pi / 4.
    pub fn sin(self) -> Exact {
        let square = self.times(self).minus();
        Self::series(self, |n| square.over(Self::whole(2 * n * (2 * n + 1))))
    }

    /// For magnitudes up to pi / 4.
    pub fn cos(self) -> Exact {
        let square = self.times(self).minus();
        Self::series(ONE, |n| square.over(Self::whole(2 * n * (2 * n - 1))))
    }

    /// For magnitudes up to 1: Euler's series in x^2 / (1 + x^2).
    pub fn atan(self) -> Exact {
        let square = self.times(self);
        let divisor = ONE.plus(square);
        let ratio = square.over(divisor);
        Self::series(self.over(divisor), |n| ratio.times(Self::whole(2 * n).over(Self::whole(2 * n + 1))))
    }

    /// e^x - 1 for magnitudes up to 1.
    pub fn exp_minus_1(self) -> Exact {
        Self::series(self, |n| self.over(Self::whole(n + 1)))
    }

    /// ln((1 + z) / (1 - z)) for small magnitudes.
    pub fn log_ratio(self) -> Exact {
        let square = self.times(self);
        let term = |n: i32| square.times(Self::whole(2 * n - 1).over(Self::whole(2 * n + 1)));
        Self::series(self, term).scaled(1)
    }
}
