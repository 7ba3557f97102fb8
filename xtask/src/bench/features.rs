//! Whether two guests see the same processor features.

use std::collections::BTreeSet;

/// Programs and libraries choose their code by these; a table is fair only where they are equal.
const CHOSEN_BY: &str = "sse sse2 pni ssse3 sse4_1 sse4_2 popcnt aes pclmulqdq avx avx2 fma f16c bmi1 bmi2 abm adx movbe \
    rdrand sha_ni erms fsrm xsave cx16 lahf_lm mmx fxsr cmov 3dnow 3dnowext sse4a";

pub struct Difference {
    /// Flags of the first guest only, and of the second only.
    pub first: Vec<String>,
    pub second: Vec<String>,
}

impl Difference {
    pub fn new(first: &str, second: &str) -> Self {
        let a: BTreeSet<&str> = first.split_whitespace().collect();
        let b: BTreeSet<&str> = second.split_whitespace().collect();
        let only = |x: &BTreeSet<&str>, y| x.difference(y).map(|&flag| flag.to_owned()).collect();
        Difference { first: only(&a, &b), second: only(&b, &a) }
    }

    /// Those of the differences that programs choose their code by.
    pub fn unfair(&self) -> Vec<&str> {
        let all = self.first.iter().chain(&self.second).map(String::as_str);
        all.filter(|flag| CHOSEN_BY.split(' ').any(|by| by == *flag)).collect()
    }
}
