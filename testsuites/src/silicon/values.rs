//! Random operands: mostly at the boundaries of what a width can hold.

use super::case::Floating;
use rand::Rng;
use rand::rngs::SmallRng;

/// A general register.
pub fn integer(rng: &mut SmallRng) -> u64 {
    const EDGES: [u64; 22] = [
        0,
        1,
        2,
        3,
        7,
        8,
        15,
        16,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xFFFF_FFFF,
        0x1_0000_0000,
        0x7FFF_FFFF_FFFF_FFFF,
        0x8000_0000_0000_0000,
        !0,
        !1,
    ];
    match rng.random_range(0..5) {
        0 => rng.random(),
        1 => EDGES[rng.random_range(0..EDGES.len())],
        2 => rng.random_range(0..66),
        3 => (rng.random::<i64>() >> rng.random_range(0..64)) as u64,
        _ => rng.random::<u64>() & 0xFFFF_FFFF_0000_0000 | u64::from(rng.random::<i16>() as u32),
    }
}

fn single(rng: &mut SmallRng) -> u32 {
    const EDGES: [u32; 20] = [
        0,
        0x8000_0000,
        0x3F80_0000,
        0xBF80_0000,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0000,
        0xFFC0_0000,
        0x7F80_0001,
        0xFFA0_1234,
        1,
        0x8000_0001,
        0x007F_FFFF,
        0x0080_0000,
        0x7F7F_FFFF,
        0xFF7F_FFFF,
        0x4F00_0000,
        0xCF00_0000,
        0x4B00_0001,
        0x3F00_0000,
    ];
    match rng.random_range(0..3) {
        0 => rng.random(),
        1 => EDGES[rng.random_range(0..EDGES.len())],
        _ => (rng.random_range(-5000.0..5000.0f32)).to_bits(),
    }
}

fn double(rng: &mut SmallRng) -> u64 {
    const EDGES: [u64; 16] = [
        0,
        1 << 63,
        0x3FF0 << 48,
        0xBFF0 << 48,
        0x7FF0 << 48,
        0xFFF0 << 48,
        0x7FF8 << 48,
        0xFFF8 << 48,
        0x7FF0_0000_0000_0001,
        1,
        0x000F_FFFF_FFFF_FFFF,
        0x0010 << 48,
        0x7FEF_FFFF_FFFF_FFFF,
        0x43E0 << 48,
        0xC3E0 << 48,
        0x41DF_FFFF_FFC0_0000,
    ];
    match rng.random_range(0..3) {
        0 => rng.random(),
        1 => EDGES[rng.random_range(0..EDGES.len())],
        _ => (rng.random_range(-5000.0..5000.0f64)).to_bits(),
    }
}

/// 16 bytes for a vector register or memory.
pub fn vector(rng: &mut SmallRng) -> u128 {
    match rng.random_range(0..5) {
        0 => (0..4).fold(0, |v, n| v | u128::from(single(rng)) << (n * 32)),
        1 => u128::from(double(rng)) | u128::from(double(rng)) << 64,
        2 => u128::from(integer(rng)) | u128::from(integer(rng)) << 64,
        3 => extended(rng),
        _ => rng.random(),
    }
}

/// An x87 register: bits 0 to 79.
fn extended(rng: &mut SmallRng) -> u128 {
    const EXPONENTS: [u16; 12] =
        [0, 1, 0x3FFE, 0x3FFF, 0x4000, 0x401E, 0x403E, 0x403F, 0x7FFE, 0x7FFF, 0x3FFF - 63, 0x3C00];
    const SIGNIFICANDS: [u64; 8] = [0, 1, 1 << 63, 1 << 63 | 1, 3 << 62, !0, !0 >> 1, 0xA000_0000_0000_0000];
    let sign = u16::from(rng.random::<bool>()) << 15;
    let exponent = match rng.random_range(0..3) {
        0 => EXPONENTS[rng.random_range(0..EXPONENTS.len())],
        1 => rng.random_range(0x3FF0..0x4010),
        _ => rng.random::<u16>() & 0x7FFF,
    };
    let mut significand = match rng.random_range(0..2) {
        0 => SIGNIFICANDS[rng.random_range(0..SIGNIFICANDS.len())],
        _ => rng.random::<u64>() | 1 << 63,
    };
    // The encodings that no processor makes any more, sometimes.
    if exponent != 0 && rng.random_ratio(15, 16) {
        significand |= 1 << 63;
    }
    u128::from(sign | exponent) << 64 | u128::from(significand)
}

/// x87 and SSE state.
pub fn floating(rng: &mut SmallRng) -> Floating {
    let mut control = 0x37F;
    let mut mxcsr = 0x1F80;
    if rng.random_ratio(1, 2) {
        control = 0x7F | [0, 0x200, 0x300][rng.random_range(0..3)] | rng.random_range(0..4u16) << 10;
        mxcsr = 0x1F80 | rng.random_range(0..4) << 13 | u32::from(rng.random_ratio(1, 4)) * 0x8040;
    }
    if rng.random_ratio(1, 10) {
        control &= !(1 << rng.random_range(0..6));
        mxcsr &= !(0x80 << rng.random_range(0..6));
    }
    mxcsr |= rng.random::<u32>() & 0x3F;
    let mut status = rng.random::<u16>() & 0x7F7F;
    if rng.random_ratio(1, 2) {
        status &= !0x7F;
    }
    if status & !control & 0x3F != 0 {
        if rng.random_ratio(1, 4) { status |= 0x8080 } else { status &= !0x3F }
    }
    let tags = match rng.random_range(0..4) {
        0 => 0xFF,
        1 => rng.random(),
        _ => (0xFF00u16 >> rng.random_range(0..9)) as u8 | rng.random::<u8>(),
    };
    Floating {
        control,
        status,
        tags,
        st: std::array::from_fn(|_| extended(rng)),
        mxcsr,
        xmm: std::array::from_fn(|_| vector(rng)),
        ymm_high: if std::is_x86_feature_detected!("avx") {
            std::array::from_fn(|_| vector(rng))
        } else {
            [0; 16]
        },
    }
}
