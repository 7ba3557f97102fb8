//! Seeds that once found something; they are run first, always.

/// See the head of this file.
pub const SEEDS: &[u64] = &[];
