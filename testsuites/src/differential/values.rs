//! Random contents of registers and memory: mostly at the boundaries of what a width can hold.

use rand::Rng;
use rand::rngs::SmallRng;

pub fn integer(rng: &mut SmallRng) -> u64 {
    let edge = 1u64.checked_shl(rng.random_range(0..65)).unwrap_or(0);
    match rng.random_range(0..5) {
        0 => rng.random(),
        1 => edge.wrapping_sub(rng.random_range(0..2)),
        2 => rng.random_range(0..66),
        3 => (rng.random::<i64>() >> rng.random_range(0..64)) as u64,
        _ => rng.random::<u64>() & 0xFFFF_FFFF_0000_0000 | u64::from(rng.random::<i16>() as u32),
    }
}

fn single(rng: &mut SmallRng) -> u32 {
    const EDGES: [u32; 8] =
        [0, 0x8000_0000, 0x3F80_0000, 0x7F80_0000, 0x7FC0_0000, 0xFFA0_1234, 1, 0x7F7F_FFFF];
    match rng.random_range(0..4) {
        0 => rng.random(),
        1 => EDGES[rng.random_range(0..EDGES.len())],
        _ => (rng.random_range(-5000.0..5000.0f32)).to_bits(),
    }
}

/// 16 bytes.
pub fn vector(rng: &mut SmallRng) -> u128 {
    match rng.random_range(0..4) {
        0 => (0..4).fold(0, |v, n| v | u128::from(single(rng)) << (n * 32)),
        1 => {
            let double = |rng: &mut SmallRng| u128::from(rng.random_range(-1e6..1e6f64).to_bits());
            double(rng) | double(rng) << 64
        }
        2 => u128::from(integer(rng)) | u128::from(integer(rng)) << 64,
        _ => rng.random(),
    }
}
