//! Where RDRAND and RDSEED get their numbers.

use rand::{RngCore, SeedableRng, rngs::StdRng};

/// The host's randomness, or a sequence that is the same in every run.
pub enum Random {
    Host(Box<StdRng>),
    Seeded(u64),
}

impl Random {
    pub fn new(deterministic: bool) -> Self {
        if deterministic { Random::Seeded(0) } else { Random::Host(Box::new(StdRng::from_os_rng())) }
    }

    pub fn next(&mut self) -> u64 {
        match self {
            Random::Host(generator) => generator.next_u64(),
            // SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
            Random::Seeded(state) => {
                *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let z = (*state ^ *state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
                z ^ z >> 31
            }
        }
    }

    /// What a saved machine must hold.
    pub fn seed(&self) -> u64 {
        if let Random::Seeded(state) = self { *state } else { 0 }
    }

    pub fn set_seed(&mut self, seed: u64) {
        if let Random::Seeded(state) = self {
            *state = seed;
        }
    }
}
