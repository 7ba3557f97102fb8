//! Fuzz targets: functions of bytes that panic where something is wrong. cargo-fuzz runs them from `fuzz/`, and
//! `tests/fuzz_targets.rs` with random bytes for some seconds each.

mod decoder;
mod devices;
mod engines;
mod images;
mod media;
mod snapshots;
mod vectors;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// See the head of this file.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// Longest input that makes sense.
    pub longest: usize,
    /// Makes random bytes look like what the target reads.
    dress: fn(&mut Vec<u8>, &mut SmallRng),
}

pub const TARGETS: &[Target] = &[
    decoder::TARGET,
    engines::TARGET,
    devices::TARGET,
    images::TARGET,
    media::TARGET,
    snapshots::TARGET,
    vectors::TARGET,
];

impl Target {
    /// The random input of a seed.
    pub fn input(&self, seed: u64) -> Vec<u8> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut data = vec![0; rng.random_range(0..=self.longest)];
        rng.fill_bytes(&mut data);
        (self.dress)(&mut data, &mut rng);
        data
    }
}

/// The next `N` bytes of an input; zeros where it is at its end.
fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
    let n = N.min(data.len());
    let (head, rest) = data.split_at(n);
    let mut out = [0; N];
    out[..n].copy_from_slice(head);
    *data = rest;
    out
}

/// The target of a name, run with an input: for cargo-fuzz.
pub fn run(name: &str, data: &[u8]) {
    if let Some(target) = TARGETS.iter().find(|target| target.name == name) {
        (target.run)(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_taken_bit_by_bit() {
        let mut data = &[1, 2, 3, 4, 5][..];
        assert_eq!(take::<2>(&mut data), [1, 2]);
        assert_eq!((take::<4>(&mut data), take::<1>(&mut data)), ([3, 4, 5, 0], [0]));
        for target in TARGETS {
            assert_eq!(target.input(3), target.input(3), "{}", target.name);
            assert!(target.input(3) != target.input(4), "{}", target.name);
        }
    }
}
