//! The floating-point unit in software: operands and MXCSR to result and new flags. Every host compiles it; hosts
//! with an SSE unit of their own use it for little more than a test.
#![cfg_attr(target_arch = "x86_64", allow(dead_code))]

use super::checks::mxcsr;
use super::lanes::{get, pair, put};
use super::soft_float::{DOUBLE, Env, Format, HALF, SINGLE};
use crate::state::RFlags;
use std::cmp::Ordering;

/// `op` of the lowest lanes of both operands; the other lanes of `a` stay.
fn lanes(
    f: Format,
    count: u32,
    (a, b): (u128, u128),
    mxcsr: u32,
    op: impl Fn(&mut Env, Format, u64, u64) -> u64,
) -> (u128, u32) {
    let mut env = Env::new(mxcsr);
    let lane = |n| (get(a, n, f.bits), get(b, n, f.bits));
    let r = (0..count).fold(a, |r, n| put(r, n, f.bits, op(&mut env, f, lane(n).0, lane(n).1)));
    (r, env.flags)
}

macro_rules! arithmetic {
    ($($ps:ident $ss:ident $pd:ident $sd:ident = $f:expr;)*) => {$(
        pub fn $ps(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
            lanes(SINGLE, 4, (a, b), mxcsr, $f)
        }
        pub fn $ss(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
            lanes(SINGLE, 1, (a, b), mxcsr, $f)
        }
        pub fn $pd(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
            lanes(DOUBLE, 2, (a, b), mxcsr, $f)
        }
        pub fn $sd(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
            lanes(DOUBLE, 1, (a, b), mxcsr, $f)
        }
    )*};
}

arithmetic! {
    addps addss addpd addsd = Env::add;
    subps subss subpd subsd = Env::sub;
    mulps mulss mulpd mulsd = Env::mul;
    divps divss divpd divsd = Env::div;
    sqrtps sqrtss sqrtpd sqrtsd = |e, f, _, b| e.sqrt(f, b);
    minps minss minpd minsd = |e, f, a, b| e.min_max(f, a, b, Ordering::Less);
    maxps maxss maxpd maxsd = |e, f, a, b| e.min_max(f, a, b, Ordering::Greater);
}

macro_rules! predicates {
    ($($name:ident $f:ident $count:literal;)*) => {$(
        pub fn $name(predicate: u8, a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
            lanes($f, $count, (a, b), mxcsr, |e, f, a, b| {
                let holds = holds(predicate, e.compare(f, a, b, signals(predicate)));
                if holds { u64::MAX >> (64 - f.bits) } else { 0 }
            })
        }
    )*};
}
predicates! {
    cmpps SINGLE 4;
    cmpss SINGLE 1;
    cmppd DOUBLE 2;
    cmpsd DOUBLE 1;
}

/// EQ, LT, LE, UNORD, and their opposites; from 8 on the first three hold for unordered operands too, and the fourth
/// never does.
fn holds(predicate: u8, order: Option<Ordering>) -> bool {
    let unordered = predicate & 8 != 0 && order.is_none();
    let plain = match predicate & 3 {
        0 => order == Some(Ordering::Equal) || unordered,
        1 => order == Some(Ordering::Less) || unordered,
        2 => matches!(order, Some(Ordering::Less | Ordering::Equal)) || unordered,
        _ => predicate & 8 == 0 && order.is_none(),
    };
    plain != (predicate & 4 != 0)
}

/// Whether a quiet NaN is invalid: for LT, LE and their opposites; from 16 on for the others.
fn signals(predicate: u8) -> bool {
    matches!(predicate & 3, 1 | 2) != (predicate & 16 != 0)
}

macro_rules! ordered {
    ($($name:ident $f:ident $signaling:literal;)*) => {$(
        pub fn $name(a: u128, b: u128, mxcsr: u32) -> (RFlags, u32) {
            let mut env = Env::new(mxcsr);
            let order = env.compare($f, get(a, 0, $f.bits), get(b, 0, $f.bits), $signaling);
            let flags = match order {
                Some(Ordering::Greater) => RFlags::empty(),
                Some(Ordering::Less) => RFlags::CF,
                Some(Ordering::Equal) => RFlags::ZF,
                None => RFlags::ZF | RFlags::PF | RFlags::CF,
            };
            (flags, env.flags)
        }
    )*};
}
ordered! {
    comiss SINGLE true;
    comisd DOUBLE true;
    ucomiss SINGLE false;
    ucomisd DOUBLE false;
}

/// Lanes in the order that a horizontal operation pairs them.
fn neighbours(
    f: Format,
    a: u128,
    b: u128,
    mxcsr: u32,
    op: fn(&mut Env, Format, u64, u64) -> u64,
) -> (u128, u32) {
    let mut env = Env::new(mxcsr);
    let half = 64 / f.bits;
    let mut r = 0;
    for n in 0..half * 2 {
        let (from, k) = if n < half { (a, n) } else { (b, n - half) };
        let value = op(&mut env, f, get(from, k * 2, f.bits), get(from, k * 2 + 1, f.bits));
        r = put(r, n, f.bits, value);
    }
    (r, env.flags)
}
pub fn haddps(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    neighbours(SINGLE, a, b, mxcsr, Env::add)
}
pub fn haddpd(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    neighbours(DOUBLE, a, b, mxcsr, Env::add)
}
pub fn hsubps(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    neighbours(SINGLE, a, b, mxcsr, Env::sub)
}
pub fn hsubpd(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    neighbours(DOUBLE, a, b, mxcsr, Env::sub)
}

/// Subtracts in the even lanes, adds in the odd ones.
fn alternate(f: Format, a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    let mut env = Env::new(mxcsr);
    let mut r = 0;
    for n in 0..128 / f.bits {
        let (x, y) = (get(a, n, f.bits), get(b, n, f.bits));
        r = put(r, n, f.bits, if n % 2 == 0 { env.sub(f, x, y) } else { env.add(f, x, y) });
    }
    (r, env.flags)
}
pub fn addsubps(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    alternate(SINGLE, a, b, mxcsr)
}
pub fn addsubpd(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    alternate(DOUBLE, a, b, mxcsr)
}

/// ROUNDPS and kin. The immediate: rounding control (1:0), or MXCSR's (2); no precision exception (3).
pub fn round(f: Format, count: u32, imm: u8, a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    let control = if imm & 4 != 0 { mxcsr >> mxcsr::RC_SHIFT } else { u32::from(imm) } & 3;
    let (r, flags) = lanes(f, count, (a, b), mxcsr, |e, f, _, x| e.round_to_integer(f, x, control));
    (r, if imm & 8 != 0 { flags & !mxcsr::PE } else { flags })
}

/// a * b + c with one rounding in each lane; what is negated where.
fn fused(
    f: Format,
    (a, b, c): (u128, u128, u128),
    mxcsr: u32,
    negate_product: bool,
    negate_addend: impl Fn(u32) -> bool,
) -> (u128, u32) {
    let mut env = Env::new(mxcsr);
    let r = (0..128 / f.bits).fold(0, |r, n| {
        let [a, b, c] = [a, b, c].map(|x| get(x, n, f.bits));
        put(r, n, f.bits, env.fused(f, a, b, c, (negate_product, negate_addend(n))))
    });
    (r, env.flags)
}

macro_rules! fused {
    ($($ps:ident $pd:ident = $product:literal, $addend:expr;)*) => {$(
        pub fn $ps(a: u128, b: u128, c: u128, mxcsr: u32) -> (u128, u32) {
            fused(SINGLE, (a, b, c), mxcsr, $product, $addend)
        }
        pub fn $pd(a: u128, b: u128, c: u128, mxcsr: u32) -> (u128, u32) {
            fused(DOUBLE, (a, b, c), mxcsr, $product, $addend)
        }
    )*};
}
fused! {
    fmaddps fmaddpd = false, |_| false;
    fmsubps fmsubpd = false, |_| true;
    fnmaddps fnmaddpd = true, |_| false;
    fnmsubps fnmsubpd = true, |_| true;
    fmaddsubps fmaddsubpd = false, |n| n % 2 == 0;
    fmsubaddps fmsubaddpd = false, |n| n % 2 != 0;
}

/// VCVTPH2PS: half precision has no denormals as far as MXCSR goes, neither to hide nor to report.
pub fn cvtph2ps(_: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    let (r, flags) = converted((16, 32, 4), b, mxcsr & !mxcsr::DAZ, |e, x| e.convert(HALF, SINGLE, x));
    (r, flags & !mxcsr::DE)
}

/// VCVTPS2PH. The immediate: rounding control (1:0), or MXCSR's (2). FTZ does not count.
pub fn cvtps2ph(imm: u8, b: u128, mxcsr: u32) -> (u128, u32) {
    let rounding = if imm & 4 != 0 { mxcsr & mxcsr::RC } else { u32::from(imm & 3) << mxcsr::RC_SHIFT };
    let mxcsr = mxcsr & !(mxcsr::RC | mxcsr::FTZ) | rounding;
    converted((32, 16, 4), b, mxcsr, |e, x| e.convert(SINGLE, HALF, x))
}

/// `count` lanes of `b` converted from `from` bits to `to` bits; the rest is zero.
fn converted(
    (from, to, count): (u32, u32, u32),
    b: u128,
    mxcsr: u32,
    op: impl Fn(&mut Env, u64) -> u64,
) -> (u128, u32) {
    let mut env = Env::new(mxcsr);
    let r = (0..count).fold(0, |r, n| put(r, n, to, op(&mut env, get(b, n, from))));
    (r, env.flags)
}

macro_rules! conversions {
    ($($name:ident $shape:expr, $f:expr;)*) => {$(
        pub fn $name(_: u128, b: u128, mxcsr: u32) -> (u128, u32) {
            converted($shape, b, mxcsr, $f)
        }
    )*};
}
conversions! {
    cvtps2pd (32, 64, 2), |e, x| e.convert(SINGLE, DOUBLE, x);
    cvtpd2ps (64, 32, 2), |e, x| e.convert(DOUBLE, SINGLE, x);
    cvtdq2ps (32, 32, 4), |e, x| e.integer(SINGLE, i64::from(x as i32));
    cvtdq2pd (32, 64, 2), |e, x| e.integer(DOUBLE, i64::from(x as i32));
    cvtps2dq (32, 32, 4), |e, x| e.round_to(SINGLE, x, 32, false);
    cvttps2dq (32, 32, 4), |e, x| e.round_to(SINGLE, x, 32, true);
    cvtpd2dq (64, 32, 2), |e, x| e.round_to(DOUBLE, x, 32, false);
    cvttpd2dq (64, 32, 2), |e, x| e.round_to(DOUBLE, x, 32, true);
}

pub fn cvtss2sd(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    let mut env = Env::new(mxcsr);
    (pair(env.convert(SINGLE, DOUBLE, get(b, 0, 32)), (a >> 64) as u64), env.flags)
}
pub fn cvtsd2ss(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
    let mut env = Env::new(mxcsr);
    (put(a, 0, 32, env.convert(DOUBLE, SINGLE, b as u64)), env.flags)
}

macro_rules! from_general {
    ($($name:ident $f:ident $t:ident;)*) => {$(
        pub fn $name(a: u128, b: u64, mxcsr: u32) -> (u128, u32) {
            let mut env = Env::new(mxcsr);
            (put(a, 0, $f.bits, env.integer($f, i64::from(b as $t))), env.flags)
        }
    )*};
}
from_general! {
    cvtsi2ss_d SINGLE i32;
    cvtsi2ss_q SINGLE i64;
    cvtsi2sd_d DOUBLE i32;
    cvtsi2sd_q DOUBLE i64;
}

macro_rules! to_general {
    ($($name:ident $f:ident $bits:literal $truncate:literal;)*) => {$(
        pub fn $name(b: u128, mxcsr: u32) -> (u64, u32) {
            let mut env = Env::new(mxcsr);
            (env.round_to($f, get(b, 0, $f.bits), $bits, $truncate), env.flags)
        }
    )*};
}
to_general! {
    cvtss2si_d SINGLE 32 false;
    cvtss2si_q SINGLE 64 false;
    cvtsd2si_d DOUBLE 32 false;
    cvtsd2si_q DOUBLE 64 false;
    cvttss2si_d SINGLE 32 true;
    cvttss2si_q SINGLE 64 true;
    cvttsd2si_d DOUBLE 32 true;
    cvttsd2si_q DOUBLE 64 true;
}

/// RCPSS and RSQRTSS are approximate by definition: here correctly rounded in the default environment, and cut
/// to 12 bits of fraction. Denormals count as zero, and no flag is raised.
fn approximate(x: u64, root: bool) -> u64 {
    let mut env = Env::new(mxcsr::MASKS | mxcsr::DAZ | mxcsr::FTZ);
    let x = if root { env.sqrt(SINGLE, x) } else { x };
    let r = env.div(SINGLE, u64::from(1f32.to_bits()), x);
    if r & 0x7F80_0000 == 0x7F80_0000 { r } else { r & !0x7FF }
}
macro_rules! approximations {
    ($($name:ident $count:literal $root:literal;)*) => {$(
        pub fn $name(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
            (lanes(SINGLE, $count, (a, b), mxcsr, |_, _, _, x| approximate(x, $root)).0, 0)
        }
    )*};
}
approximations! {
    rcpps 4 false;
    rcpss 1 false;
    rsqrtps 4 true;
    rsqrtss 1 true;
}
