//! A vector as lanes.

/// An integer that a vector may hold several of.
pub trait Lane: Copy {
    type Array: Copy + AsRef<[Self]> + AsMut<[Self]>;
    const BITS: u32;
    const COUNT: usize;
    fn split(x: u128) -> Self::Array;
    fn join(lanes: Self::Array) -> u128;
}

macro_rules! lane {
    ($($t:ident)*) => {$(
        impl Lane for $t {
            type Array = [$t; 16 / size_of::<$t>()];
            const BITS: u32 = $t::BITS;
            const COUNT: usize = 16 / size_of::<$t>();
            #[inline(always)]
            fn split(x: u128) -> Self::Array {
                let mut lanes = [0; 16 / size_of::<$t>()];
                for (n, lane) in lanes.iter_mut().enumerate() {
                    *lane = (x >> (n as u32 * $t::BITS)) as $t;
                }
                lanes
            }
            #[inline(always)]
            fn join(lanes: Self::Array) -> u128 {
                let mut r = 0;
                for (n, &lane) in lanes.iter().enumerate() {
                    r |= (lane as u128 & (!0 >> (128 - $t::BITS))) << (n as u32 * $t::BITS);
                }
                r
            }
        }
    )*};
}
lane!(u8 i8 u16 i16 u32 i32 u64 i64);

/// `f` of each lane.
#[inline(always)]
pub fn map<T: Lane>(a: u128, f: impl Fn(T) -> T) -> u128 {
    let mut r = T::split(a);
    for lane in r.as_mut() {
        *lane = f(*lane);
    }
    T::join(r)
}

/// `f` of each pair of lanes.
#[inline(always)]
pub fn each<T: Lane>(a: u128, b: u128, f: impl Fn(T, T) -> T) -> u128 {
    let (mut r, b) = (T::split(a), T::split(b));
    for (lane, &other) in r.as_mut().iter_mut().zip(b.as_ref()) {
        *lane = f(*lane, other);
    }
    T::join(r)
}

/// A mask of all ones in the lanes where `f` holds.
#[inline(always)]
pub fn mask<T: Lane + Mask>(a: u128, b: u128, f: impl Fn(T, T) -> bool) -> u128 {
    each::<T>(a, b, |a, b| T::mask(f(a, b)))
}

/// All ones or zero.
pub trait Mask {
    fn mask(set: bool) -> Self;
}
macro_rules! mask {
    ($($t:ident)*) => {$(
        impl Mask for $t {
            #[inline(always)]
            fn mask(set: bool) -> Self {
                (0 as $t).wrapping_sub(set as $t)
            }
        }
    )*};
}
mask!(u8 i8 u16 i16 u32 i32 u64 i64);

/// Lane `n` of `bits` bits, zero-extended.
#[inline(always)]
pub fn get(x: u128, n: u32, bits: u32) -> u64 {
    (x >> (n * bits)) as u64 & (!0 >> (64 - bits))
}

/// `x` with lane `n` of `bits` bits replaced.
#[inline(always)]
pub fn put(x: u128, n: u32, bits: u32, value: u64) -> u128 {
    let ones = u128::from(!0u64 >> (64 - bits)) << (n * bits);
    x & !ones | u128::from(value) << (n * bits) & ones
}

/// The top bit of each lane of `BITS` bits.
const fn tops<const BITS: u32>() -> u128 {
    (u128::MAX / (!0 >> (128 - BITS))) << (BITS - 1)
}

/// Sums of all lanes at once: the top bits are added apart, so that no carry leaves a lane. (Compilers make this
/// of scalar registers; a loop over lanes costs them four times as much.)
#[inline(always)]
pub fn add<const BITS: u32>(a: u128, b: u128) -> u128 {
    let tops = tops::<BITS>();
    (a & !tops).wrapping_add(b & !tops) ^ (a ^ b) & tops
}

/// Differences, likewise.
#[inline(always)]
pub fn sub<const BITS: u32>(a: u128, b: u128) -> u128 {
    let tops = tops::<BITS>();
    (a | tops).wrapping_sub(b & !tops) ^ !(a ^ b) & tops
}

/// Masks of equal lanes, likewise.
#[inline(always)]
pub fn equal<const BITS: u32>(a: u128, b: u128) -> u128 {
    let (tops, x) = (tops::<BITS>(), a ^ b);
    let equal = !((x & !tops).wrapping_add(!tops) | x) & tops;
    equal | (equal - (equal >> (BITS - 1)))
}

/// The low 64 bits.
#[inline(always)]
pub fn low(x: u128) -> u128 {
    x & u128::from(u64::MAX)
}

/// Two quadwords.
#[inline(always)]
pub fn pair(low: u64, high: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}
