//! The status flags: what instructions declare, and the one formula for each flag.
//!
//! Undefined results follow one rule each, the same in every engine: AF after logic and shifts is 0; OF of
//! a shift by more than one is the rule of a shift by one, applied to the last step's result; MUL and IMUL set SF, ZF
//! and PF by the low half, AF to 0; BSF and BSR set all but ZF as a logic operation on the result would.

use crate::insn::W;
use crate::ops::{Bin, Ops};

/// What an instruction says about the flags. `a`, `b`: operands, `r`: result, all at width `w`.
#[derive(Clone, Copy, Debug)]
pub enum Flags<V, B> {
    Add {
        w: W,
        a: V,
        b: V,
        r: V,
    },
    Adc {
        w: W,
        a: V,
        b: V,
        r: V,
    },
    Sub {
        w: W,
        a: V,
        b: V,
        r: V,
    },
    Sbb {
        w: W,
        a: V,
        b: V,
        r: V,
    },
    /// CF = OF = AF = 0.
    Logic {
        w: W,
        r: V,
    },
    /// CF is given, OF = AF = 0.
    Bits {
        w: W,
        r: V,
        cf: B,
    },
    /// CF stays.
    Inc {
        w: W,
        r: V,
    },
    /// CF stays.
    Dec {
        w: W,
        r: V,
    },
    Neg {
        w: W,
        a: V,
        r: V,
    },
    /// CF is given; OF = CF xor sign of `r`. Nothing changes where `none`.
    Shl {
        w: W,
        r: V,
        cf: B,
        none: B,
    },
    /// CF is given; OF = the two top bits of `r` differ. Nothing changes where `none`.
    Shr {
        w: W,
        r: V,
        cf: B,
        none: B,
    },
    /// Rotates: only CF and OF. OF = CF xor sign of `r`.
    Rol {
        w: W,
        r: V,
        none: B,
    },
    /// OF = the two top bits of `r` differ, CF the top one.
    Ror {
        w: W,
        r: V,
        none: B,
    },
    /// CF = OF = `overflow`.
    Mul {
        w: W,
        r: V,
        overflow: B,
    },
    /// BT and kin: only CF.
    Carry {
        cf: B,
    },
    /// ADOX: only OF.
    Overflow {
        of: B,
    },
    /// BSF, BSR: ZF says that the source was zero.
    Scan {
        w: W,
        r: V,
        zero: B,
    },
    /// POPCNT: ZF by the result, all others 0.
    Count {
        w: W,
        r: V,
    },
    /// LZCNT, TZCNT: ZF by the result, CF is given, OF stays, the others are 0.
    Zeros {
        w: W,
        r: V,
        cf: B,
    },
}

/// The flags as values: None stays as it is. `result` gives ZF, SF and PF.
pub struct Image<V, B> {
    pub cf: Option<B>,
    pub of: Option<B>,
    pub af: Option<B>,
    pub result: Option<(W, V)>,
    /// Overrides ZF.
    pub zf: Option<B>,
    /// SF and PF are 0, whatever `result` says.
    pub zero_sf_pf: bool,
    /// Where true, nothing changes.
    pub none: Option<B>,
}

/// The formulas.
#[inline(always)]
pub fn image<E: Ops>(e: &mut E, flags: Flags<E::Val, E::Bit>) -> Image<E::Val, E::Bit> {
    let mut out =
        Image { cf: None, of: None, af: None, result: None, zf: None, zero_sf_pf: false, none: None };
    match flags {
        Flags::Add { w, a, b, r } => {
            out.cf = Some(e.below(w, r, a));
            out.of = Some(add_overflow(e, w, a, b, r));
            out.af = Some(carry_into_bit_4(e, w, a, b, r));
            out.result = Some((w, r));
        }
        Flags::Adc { w, a, b, r } => {
            out.cf = Some(carry_out(e, w, a, b, r));
            out.of = Some(add_overflow(e, w, a, b, r));
            out.af = Some(carry_into_bit_4(e, w, a, b, r));
            out.result = Some((w, r));
        }
        Flags::Sub { w, a, b, r } => {
            out.cf = Some(e.below(w, a, b));
            out.of = Some(sub_overflow(e, w, a, b, r));
            out.af = Some(carry_into_bit_4(e, w, a, b, r));
            out.result = Some((w, r));
        }
        Flags::Sbb { w, a, b, r } => {
            // The borrow out of the top: majority of not a, b and r.
            let out_of_top = {
                let not_a = e.un(crate::ops::Un::Not, w, a);
                let (x, b_or_r) = (e.bin(Bin::And, w, b, r), e.bin(Bin::Or, w, b, r));
                let y = e.bin(Bin::And, w, not_a, b_or_r);
                e.bin(Bin::Or, w, x, y)
            };
            out.cf = Some(e.bit(w, out_of_top, w.bits() - 1));
            out.of = Some(sub_overflow(e, w, a, b, r));
            out.af = Some(carry_into_bit_4(e, w, a, b, r));
            out.result = Some((w, r));
        }
        Flags::Logic { w, r } => {
            let no = e.bit_constant(false);
            (out.cf, out.of, out.af) = (Some(no), Some(no), Some(no));
            out.result = Some((w, r));
        }
        Flags::Bits { w, r, cf } => {
            let no = e.bit_constant(false);
            (out.cf, out.of, out.af) = (Some(cf), Some(no), Some(no));
            out.result = Some((w, r));
        }
        Flags::Inc { w, r } => {
            let lowest = e.imm(w, w.sign());
            let x = e.bin(Bin::Xor, w, r, lowest);
            out.of = Some(e.is_zero(w, x));
            let low = e.imm(w, 15);
            let y = e.bin(Bin::And, w, r, low);
            out.af = Some(e.is_zero(w, y));
            out.result = Some((w, r));
        }
        Flags::Dec { w, r } => {
            let highest = e.imm(w, w.sign() - 1);
            let x = e.bin(Bin::Xor, w, r, highest);
            out.of = Some(e.is_zero(w, x));
            let low = e.imm(w, 15);
            let y = e.bin(Bin::And, w, r, low);
            let z = e.bin(Bin::Xor, w, y, low);
            out.af = Some(e.is_zero(w, z));
            out.result = Some((w, r));
        }
        Flags::Neg { w, a, r } => {
            let zero = e.is_zero(w, a);
            out.cf = Some(e.bit_not(zero));
            let lowest = e.imm(w, w.sign());
            let x = e.bin(Bin::Xor, w, r, lowest);
            out.of = Some(e.is_zero(w, x));
            let low = e.imm(w, 15);
            let y = e.bin(Bin::And, w, a, low);
            let none = e.is_zero(w, y);
            out.af = Some(e.bit_not(none));
            out.result = Some((w, r));
        }
        Flags::Shl { w, r, cf, none } => {
            let sign = e.bit(w, r, w.bits() - 1);
            out.cf = Some(cf);
            out.of = Some(e.bit_xor(cf, sign));
            out.af = Some(e.bit_constant(false));
            out.result = Some((w, r));
            out.none = Some(none);
        }
        Flags::Shr { w, r, cf, none } => {
            let (top, next) = (e.bit(w, r, w.bits() - 1), e.bit(w, r, w.bits() - 2));
            out.cf = Some(cf);
            out.of = Some(e.bit_xor(top, next));
            out.af = Some(e.bit_constant(false));
            out.result = Some((w, r));
            out.none = Some(none);
        }
        Flags::Rol { w, r, none } => {
            let (low, sign) = (e.bit(w, r, 0), e.bit(w, r, w.bits() - 1));
            out.cf = Some(low);
            out.of = Some(e.bit_xor(low, sign));
            out.none = Some(none);
        }
        Flags::Ror { w, r, none } => {
            let (top, next) = (e.bit(w, r, w.bits() - 1), e.bit(w, r, w.bits() - 2));
            out.cf = Some(top);
            out.of = Some(e.bit_xor(top, next));
            out.none = Some(none);
        }
        Flags::Mul { w, r, overflow } => {
            (out.cf, out.of) = (Some(overflow), Some(overflow));
            out.af = Some(e.bit_constant(false));
            out.result = Some((w, r));
        }
        Flags::Carry { cf } => out.cf = Some(cf),
        Flags::Overflow { of } => out.of = Some(of),
        Flags::Scan { w, r, zero } => {
            let no = e.bit_constant(false);
            (out.cf, out.of, out.af) = (Some(no), Some(no), Some(no));
            out.result = Some((w, r));
            out.zf = Some(zero);
        }
        Flags::Zeros { w, r, cf } => {
            (out.cf, out.af) = (Some(cf), Some(e.bit_constant(false)));
            out.result = Some((w, r));
            out.zero_sf_pf = true;
        }
        Flags::Count { w, r } => {
            let no = e.bit_constant(false);
            (out.cf, out.of, out.af) = (Some(no), Some(no), Some(no));
            out.result = Some((w, r));
            out.zero_sf_pf = true;
        }
    }
    out
}

/// The carry out of the top of r = a + b + carry: majority of a, b and not r.
#[inline(always)]
pub fn carry_out<E: Ops>(e: &mut E, w: W, a: E::Val, b: E::Val, r: E::Val) -> E::Bit {
    let (both, either) = (e.bin(Bin::And, w, a, b), e.bin(Bin::Or, w, a, b));
    let not_r = e.un(crate::ops::Un::Not, w, r);
    let carried = e.bin(Bin::And, w, either, not_r);
    let top = e.bin(Bin::Or, w, both, carried);
    e.bit(w, top, w.bits() - 1)
}

/// Both operands have a sign that the result has not.
#[inline(always)]
fn add_overflow<E: Ops>(e: &mut E, w: W, a: E::Val, b: E::Val, r: E::Val) -> E::Bit {
    let (x, y) = (e.bin(Bin::Xor, w, a, r), e.bin(Bin::Xor, w, b, r));
    let z = e.bin(Bin::And, w, x, y);
    e.bit(w, z, w.bits() - 1)
}

#[inline(always)]
fn sub_overflow<E: Ops>(e: &mut E, w: W, a: E::Val, b: E::Val, r: E::Val) -> E::Bit {
    let (x, y) = (e.bin(Bin::Xor, w, a, b), e.bin(Bin::Xor, w, a, r));
    let z = e.bin(Bin::And, w, x, y);
    e.bit(w, z, w.bits() - 1)
}

#[inline(always)]
fn carry_into_bit_4<E: Ops>(e: &mut E, w: W, a: E::Val, b: E::Val, r: E::Val) -> E::Bit {
    let x = e.bin(Bin::Xor, w, a, b);
    let y = e.bin(Bin::Xor, w, x, r);
    e.bit(w, y, 4)
}

/// The status flags as the interpreter keeps them: carry, overflow and adjust as bits, the others as the value
/// they follow from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LazyFlags {
    pub cf: bool,
    pub of: bool,
    pub af: bool,
    /// ZF = (zero == 0).
    pub zero: u64,
    /// SF = bit 63, PF = parity of bits 0 to 7.
    pub sign_parity: u64,
}

impl LazyFlags {
    /// From the bits of RFLAGS.
    pub fn from_bits(bits: u64) -> Self {
        let parity = if bits & 4 != 0 { 0 } else { 1 };
        LazyFlags {
            cf: bits & 1 != 0,
            of: bits & 1 << 11 != 0,
            af: bits & 1 << 4 != 0,
            zero: u64::from(bits & 1 << 6 == 0),
            sign_parity: (bits >> 7 & 1) << 63 | parity,
        }
    }
    pub fn zf(&self) -> bool {
        self.zero == 0
    }
    pub fn sf(&self) -> bool {
        (self.sign_parity as i64) < 0
    }
    pub fn pf(&self) -> bool {
        (self.sign_parity as u8).count_ones().is_multiple_of(2)
    }
    /// The six status flags at their places in RFLAGS.
    pub fn bits(&self) -> u64 {
        u64::from(self.cf)
            | u64::from(self.pf()) << 2
            | u64::from(self.af) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of) << 11
    }
}
