//! Soft arithmetic against the host's x87: values, flags and condition codes, bit for bit; transcendental
//! functions within an ulp or two.

use crate::fpu::unit::status::*;
use crate::fpu::{Binary, Double, Format, HOST, SOFT, Unary};
use crate::state::F80;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const EXPONENTS: [u16; 30] = [
    0, 1, 2, 40, 63, 64, 65, 0x3BCD, 0x3C00, 0x3C01, 0x3F80, 0x3F81, 0x3FBE, 0x3FFD, 0x3FFE, 0x3FFF, 0x4000,
    0x400D, 0x400E, 0x401D, 0x401E, 0x403D, 0x403E, 0x403F, 0x407E, 0x43FE, 0x7FBE, 0x7FFD, 0x7FFE, 0x7FFF,
];
const SIGNIFICANDS: [u64; 20] = [
    0,
    1,
    2,
    3,
    0x3FFF_FFFF_FFFF_FFFF,
    0x4000_0000_0000_0000,
    0x7FFF_FFFF_FFFF_FFFF,
    0x8000_0000_0000_0000,
    0x8000_0000_0000_0001,
    0x8000_0080_0000_0000,
    0x8000_0080_0000_0001,
    0x8000_0000_0000_0400,
    0x8000_0000_0000_0401,
    0xA000_0000_0000_0001,
    0xC000_0000_0000_0000,
    0xC000_0000_0000_0001,
    0xFFFF_FF80_0000_0000,
    0xFFFF_FFFF_FFFF_FC00,
    0xFFFF_FFFF_FFFF_F800,
    0xFFFF_FFFF_FFFF_FFFF,
];

fn operand(r: &mut SmallRng) -> F80 {
    let exponent = match r.random_range(0..4) {
        0 => r.random(),
        1 => 0x3FFF + r.random_range(0..80) - 40,
        _ => EXPONENTS[r.random_range(0..EXPONENTS.len())],
    };
    let significand = match r.random_range(0..4) {
        0 => r.random(),
        1 => r.random::<u64>() | 1 << 63,
        2 => 1 << 63 | r.random::<u64>() << r.random_range(0..64),
        _ => SIGNIFICANDS[r.random_range(0..SIGNIFICANDS.len())],
    };
    F80 { significand, sign_exponent: exponent }.with_sign(r.random())
}

/// Rounding and precision at random; exceptions masked, or at random.
fn control(r: &mut SmallRng) -> u16 {
    let masks = if r.random() { 0x3F } else { r.random::<u16>() & 0x3F };
    masks | [0, 0x200, 0x300][r.random_range(0..3)] | r.random::<u16>() & 0xC00 | 0x40
}

/// Without what an unmasked exception leaves undefined.
fn visible((value, flags): (F80, u16), control: u16) -> (F80, u16) {
    if flags & !control & EARLY != 0 { (F80::default(), flags & EXCEPTIONS) } else { (value, flags) }
}

/// Runs a comparison many times and shows the first differences.
fn agree<T: PartialEq + std::fmt::Debug>(count: u32, seed: u64, f: impl Fn(&mut SmallRng) -> (T, T, String)) {
    let mut r = SmallRng::seed_from_u64(seed);
    let mut wrong = Vec::new();
    for _ in 0..count {
        let (soft, host, what) = f(&mut r);
        if soft != host {
            wrong.push(format!("{what}\n  soft {soft:x?}\n  host {host:x?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(8)].join("\n")
    );
}

fn binary(op: Binary, conditions: u16) {
    agree(200_000, op as u64, |r| {
        let (a, mut b, cw) = (operand(r), operand(r), control(r));
        if r.random_range(0..4) == 0 {
            // Close exponents: cancellation, quotients near 1.
            b.sign_exponent = a.sign_exponent ^ r.random_range(0..4) ^ u16::from(r.random::<bool>()) << 15;
        }
        let cw = if matches!(op, Binary::Scale | Binary::Rem | Binary::Rem1) { cw | 0x300 } else { cw };
        let clean = |(v, f): (F80, u16)| {
            let conditions = if v.is_nan() { 0 } else { conditions };
            visible((v, f & (EXCEPTIONS | conditions)), cw)
        };
        let soft = clean((SOFT.binary)(op, a, b, cw));
        let host = clean((HOST.binary)(op, a, b, cw));
        if matches!(op, Binary::Add | Binary::Sub | Binary::Mul | Binary::Div) {
            // Whatever flags operations before have left.
            assert_eq!(clean((HOST.basic)(op, a, b, cw, 0)), host, "{op:?} {a:x?} {b:x?} {cw:x}");
            let known = (a.significand & 0x3F) as u16;
            let (value, flags) = clean((HOST.basic)(op, a, b, cw, known));
            assert_eq!(
                (value, flags | known),
                (host.0, host.1 | known),
                "{op:?} {a:x?} {b:x?} {cw:x} {known:x}"
            );
        }
        (soft, host, format!("{op:?} {a:x?} {b:x?} control {cw:x}"))
    });
}

#[test]
fn add() {
    binary(Binary::Add, C1);
}
#[test]
fn subtract() {
    binary(Binary::Sub, C1);
}
#[test]
fn multiply() {
    binary(Binary::Mul, C1);
}
#[test]
fn divide() {
    binary(Binary::Div, C1);
}
#[test]
fn scale() {
    binary(Binary::Scale, C1);
}
#[test]
fn partial_remainder() {
    binary(Binary::Rem, CONDITIONS);
}
#[test]
fn partial_remainder_nearest() {
    binary(Binary::Rem1, CONDITIONS);
}

fn unary(op: Unary) {
    agree(200_000, op as u64, |r| {
        let (a, cw) = (operand(r), control(r));
        let clean = |(v, f): (F80, u16)| visible((v, f & (EXCEPTIONS | C1)), cw);
        (
            clean((SOFT.unary)(op, a, cw)),
            clean((HOST.unary)(op, a, cw)),
            format!("{op:?} {a:x?} control {cw:x}"),
        )
    });
}

#[test]
fn square_root() {
    unary(Unary::Sqrt);
}
#[test]
fn round_to_integer() {
    unary(Unary::RoundInt);
}

#[test]
fn extract() {
    agree(100_000, 1, |r| {
        let (a, cw) = (operand(r), control(r));
        let clean = |(x, y, f): (F80, F80, u16)| {
            let (x, f) = visible((x, f & (EXCEPTIONS | C1)), cw);
            (x, if f & !cw & EARLY != 0 { x } else { y }, f)
        };
        let (soft, host) = ((SOFT.double)(Double::Extract, a, cw), (HOST.double)(Double::Extract, a, cw));
        (clean(soft), clean(host), format!("extract {a:x?} control {cw:x}"))
    });
}

#[test]
fn compare() {
    agree(200_000, 2, |r| {
        let (a, mut b, quiet) = (operand(r), operand(r), r.random());
        if r.random_range(0..4) == 0 {
            b.sign_exponent = a.sign_exponent;
        }
        let clean = |f: u16| f & !C1;
        let (soft, host) = ((SOFT.compare)(a, b, quiet, 0), (HOST.compare)(a, b, quiet, 0));
        // Whatever flags operations before have left.
        let known = (a.significand & 0x3F) as u16;
        assert_eq!((HOST.compare)(a, b, quiet, known) | known, host | known, "{a:x?} {b:x?} {known:x}");
        (clean(soft), clean(host), format!("compare {a:x?} {b:x?} {quiet}"))
    });
}

#[test]
fn store() {
    agree(200_000, 3, |r| {
        let formats = [Format::F32, Format::F64, Format::I16, Format::I32, Format::I64];
        let (format, a, cw) = (formats[r.random_range(0..5)], operand(r), control(r));
        let clean = |(v, f): (u64, u16)| {
            let lost = f & !cw & (EARLY | OE | UE) != 0;
            if lost { (0, f & EXCEPTIONS) } else { (v, f & (EXCEPTIONS | C1)) }
        };
        let (soft, host) = ((SOFT.store)(format, a, cw, 0), (HOST.store)(format, a, cw, 0));
        // Whatever flags operations before have left, under the control word that most guests have.
        let (known, usual) = ((a.significand & 0x3F) as u16, 0x37F);
        let (plain, again) = ((HOST.store)(format, a, usual, 0), (HOST.store)(format, a, usual, known));
        assert_eq!((plain.0, plain.1 | known), (again.0, again.1 | known), "{format:?} {a:x?} {known:x}");
        (clean(soft), clean(host), format!("store {format:?} {a:x?} control {cw:x}"))
    });
}

/// Distance in units of the last place, for results of one sign.
fn ulps(a: F80, b: F80) -> u128 {
    let key = |x: F80| {
        let magnitude = i128::from(x.exponent()) << 63 | i128::from(x.significand & !(1 << 63));
        if x.negative() { -magnitude } else { magnitude }
    };
    if a.is_nan() && b.is_nan() { 0 } else { key(a).abs_diff(key(b)) }
}

fn near(seed: u64, what: &str, f: impl Fn(F80, F80) -> ((F80, u16), (F80, u16))) {
    let mut r = SmallRng::seed_from_u64(seed);
    let mut wrong = Vec::new();
    for _ in 0..20_000 {
        let mut number = |low, high| F80 {
            significand: r.random::<u64>() | 1 << 63,
            sign_exponent: r.random_range(low..high) | r.random::<u16>() & 0x8000,
        };
        let (a, b) = (number(0x3FBF, 0x3FFE), number(0x3FF0, 0x400F));
        let (soft, host) = f(a, b);
        if ulps(soft.0, host.0) > 1 || (soft.1 ^ host.1) & (EXCEPTIONS | C2) != 0 {
            wrong.push(format!("{a:x?} {b:x?}\n  soft {soft:x?}\n  host {host:x?}"));
        }
    }
    assert!(wrong.is_empty(), "{what}: {} differ:\n{}", wrong.len(), wrong[..wrong.len().min(5)].join("\n"));
}

#[test]
fn transcendental() {
    for op in [Unary::Sin, Unary::Cos, Unary::Exp] {
        near(1, &format!("{op:?}"), |a, _| ((SOFT.unary)(op, a, 0x37F), (HOST.unary)(op, a, 0x37F)));
    }
    for op in [Unary::Sin, Unary::Cos] {
        near(2, &format!("{op:?} with reduction"), |_, b| {
            ((SOFT.unary)(op, b, 0x37F), (HOST.unary)(op, b, 0x37F))
        });
    }
    near(3, "Tan", |a, _| {
        let tan = |unit: &crate::fpu::Arithmetic| {
            let (value, _, flags) = (unit.double)(Double::Tan, a, 0x37F);
            (value, flags)
        };
        (tan(&SOFT), tan(&HOST))
    });
    near(4, "Atan", |a, b| {
        ((SOFT.binary)(Binary::Atan, b, a, 0x37F), (HOST.binary)(Binary::Atan, b, a, 0x37F))
    });
    near(5, "Log", |a, b| {
        let x = b.with_sign(false);
        ((SOFT.binary)(Binary::Log, x, a, 0x37F), (HOST.binary)(Binary::Log, x, a, 0x37F))
    });
    near(6, "Log1p", |a, b| {
        let x = F80 { sign_exponent: a.sign_exponent - 2, ..a };
        ((SOFT.binary)(Binary::Log1p, x, b, 0x37F), (HOST.binary)(Binary::Log1p, x, b, 0x37F))
    });
}

/// Compares over all exponents; `conditions` too. `domain` says which operands the manual defines a result for.
fn near_everywhere(
    what: &str,
    conditions: u16,
    domain: impl Fn(F80, F80) -> bool,
    f: impl Fn(&crate::fpu::Arithmetic, F80, F80) -> (F80, u16),
) {
    let mut r = SmallRng::seed_from_u64(7);
    let mut wrong = Vec::new();
    let (mut cases, mut drawn) = (0, 0);
    while cases < 100_000 && drawn < 4_000_000 {
        drawn += 1;
        let mut number = || F80 {
            significand: r.random::<u64>() | 1 << 63,
            sign_exponent: match r.random_range(0..3) {
                0 => r.random_range(0x3FBF..0x403F),
                _ => r.random_range(1..0x7FFF),
            } | r.random::<u16>() & 0x8000,
        };
        let (a, b) = (number(), number());
        if !domain(a, b) {
            continue;
        }
        cases += 1;
        let (soft, host) = (f(&SOFT, a, b), f(&HOST, a, b));
        // C2: out of range, there is no result.
        let result = soft.1 & conditions == 0;
        if result && ulps(soft.0, host.0) > 1 || (soft.1 ^ host.1) & conditions != 0 {
            wrong.push(format!("{a:x?} {b:x?}\n  soft {soft:x?}\n  host {host:x?}"));
        }
    }
    assert_eq!(cases, 100_000, "{what}: cases");
    assert!(wrong.is_empty(), "{what}: {} differ:\n{}", wrong.len(), wrong[..wrong.len().min(5)].join("\n"));
}

/// The portable functions are within an ulp of the host's, whatever the exponents.
#[test]
fn transcendental_over_all_exponents() {
    let any = |_: F80, _: F80| true;
    for op in [Unary::Sin, Unary::Cos] {
        near_everywhere(&format!("{op:?}"), C2, any, |unit, a, _| (unit.unary)(op, a, 0x37F));
    }
    let below_one = |a: F80, _: F80| a.exponent() < 0x3FFF;
    near_everywhere("Exp", 0, below_one, |unit, a, _| (unit.unary)(Unary::Exp, a, 0x37F));
    near_everywhere("Tan", C2, any, |unit, a, _| {
        let (value, _, flags) = (unit.double)(Double::Tan, a, 0x37F);
        (value, flags)
    });
    near_everywhere("Atan", 0, any, |unit, a, b| (unit.binary)(Binary::Atan, a, b, 0x37F));
    let positive = |a: F80, _: F80| !a.negative();
    near_everywhere("Log", 0, positive, |unit, a, b| (unit.binary)(Binary::Log, a, b, 0x37F));
    // Up to 1 - sqrt(2)/2, which is more than a quarter.
    let small = |a: F80, _: F80| a.exponent() < 0x3FFD;
    near_everywhere("Log1p", 0, small, |unit, a, b| (unit.binary)(Binary::Log1p, a, b, 0x37F));
}

#[test]
fn transcendental_special_cases() {
    // Zero, 1/2, 1, 3, infinity, QNaN, SNaN, denormal, least normal number.
    let specials = [
        (0, 0),
        (1 << 63, 0x3FFE),
        (1 << 63, 0x3FFF),
        (3 << 62, 0x4000),
        (1 << 63, 0x7FFF),
        (3 << 62, 0x7FFF),
        (5 << 61, 0x7FFF),
        (5, 0),
        (1 << 63, 1),
    ];
    let all = specials.into_iter().flat_map(|(significand, sign_exponent)| {
        [false, true].map(|negative| F80 { significand, sign_exponent }.with_sign(negative))
    });
    for a in all.clone() {
        for b in all.clone() {
            for op in [Binary::Atan, Binary::Log, Binary::Log1p] {
                if op == Binary::Log1p && (0x3FFE..0x7FFF).contains(&a.exponent()) {
                    continue;
                }
                same(&format!("{op:?} {a:x?} {b:x?}"), |unit| (unit.binary)(op, a, b, 0x37F));
            }
        }
        for op in [Unary::Sin, Unary::Cos, Unary::Exp] {
            if op == Unary::Exp && (0x4000..0x7FFF).contains(&a.exponent()) {
                continue;
            }
            same(&format!("{op:?} {a:x?}"), |unit| (unit.unary)(op, a, 0x37F));
        }
        for op in [Double::SinCos, Double::Tan] {
            same(&format!("{op:?} {a:x?}"), |unit| {
                let (first, _, flags) = (unit.double)(op, a, 0x37F);
                (first, flags)
            });
            same(&format!("{op:?} {a:x?}, second"), |unit| {
                let (_, second, flags) = (unit.double)(op, a, 0x37F);
                (second, flags)
            });
        }
    }
}

fn same(what: &str, f: impl Fn(&crate::fpu::Arithmetic) -> (F80, u16)) {
    let (soft, mut host) = (f(&SOFT), f(&HOST));
    if soft.1 & EXCEPTIONS & !DE == 0 {
        // AMD's processors report PE for exact logarithms and powers too.
        host.1 &= !(UE | PE);
    }
    let same = ulps(soft.0, host.0) <= 1 && (soft.1 ^ host.1) & EXCEPTIONS == 0;
    assert!(same, "{what}\n  soft {soft:x?}\n  host {host:x?}");
}

/// Widening is exact, so what `store` makes of it is what was loaded.
#[test]
fn load_and_store_again() {
    use crate::fpu::convert::{load, widen};
    let formats =
        [(Format::F32, 32), (Format::F64, 64), (Format::I16, 16), (Format::I32, 32), (Format::I64, 64)];
    agree(200_000, 4, |r| {
        let (format, bits) = formats[r.random_range(0..5)];
        // Often few exponent bits: denormals.
        let value = r.random::<u64>() >> (64 - bits) >> r.random_range(0..bits);
        let (wide, flags) = load(format, value);
        let quiet = if flags & IE != 0 { 1 << if bits == 32 { 22 } else { 51 } } else { 0 };
        let stored = (HOST.store)(format, wide, 0x37F, 0);
        let denormal = widen(format, value).1;
        (
            (value | quiet, 0, denormal),
            (stored.0, stored.1 & EXCEPTIONS, flags & DE != 0),
            format!("{format:?} {value:x}"),
        )
    });
}
