//! What once found something; it runs first, always.

use super::at;

/// Seeds. 1013892999, 1052243014: VDPPS, a denormal of one lane's sum beside an unmasked overflow of the other's product.
/// 1051446839: FUCOMI with an unmasked #IA that FNINIT clears.
pub const SEEDS: [u64; 3] = [1013892999, 1052243014, 1051446839];

/// Why it is here, and the instructions, which run with random values.
pub struct Kept {
    pub why: &'static str,
    pub code: Vec<Vec<u8>>,
}

pub fn kept() -> [Kept; 1] {
    // MOV [EXIT], EAX.
    let wild = [&[0x89, 0x04, 0x25][..], &(at::EXIT as u32).to_le_bytes()].concat();
    [Kept {
        why: "a store to the page through which cases begin and end broke all cases after it",
        code: vec![wild],
    }]
}
