//! A set of linear pages that may say yes too often, never no.

/// Bits; a power of two.
const BITS: usize = 4096;

/// See the head of this file. Pages of 4 KiB, and stretches of 4 MiB for larger ones.
#[derive(Clone)]
pub struct Filter {
    bits: [u64; BITS / 64],
    /// A page of a gibibyte: everywhere.
    giant: bool,
    empty: bool,
}

impl Default for Filter {
    fn default() -> Self {
        Filter { bits: [0; BITS / 64], giant: false, empty: true }
    }
}

fn place(address: u64, large: bool) -> usize {
    let shift = if large { 22 } else { 12 };
    let key = (address >> shift << 1 | u64::from(large)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (key >> (64 - BITS.trailing_zeros())) as usize
}

impl Filter {
    /// Puts in a page of this size (its binary logarithm).
    pub fn insert(&mut self, address: u64, shift: u8) {
        let at = place(address, shift > 12);
        self.bits[at / 64] |= 1 << (at % 64);
        self.giant |= shift > 22;
        self.empty = false;
    }
    /// Whether the page of an address may be in it.
    pub fn may_hold(&self, address: u64) -> bool {
        let has = |large| {
            let at = place(address, large);
            self.bits[at / 64] >> (at % 64) & 1 != 0
        };
        self.giant || !self.empty && (has(false) || has(true))
    }
    pub fn giant(&self) -> bool {
        self.giant
    }
    pub fn clear(&mut self) {
        if !self.empty {
            *self = Filter::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_by_all_its_addresses_until_cleared() {
        let mut filter = Filter::default();
        assert!(!filter.may_hold(0));
        filter.insert(0x1234_5000, 12);
        assert!(filter.may_hold(0x1234_5FFF) && !filter.may_hold(0x1234_6000));
        filter.insert(0xFFFF_8000_0020_0000, 21);
        assert!(filter.may_hold(0xFFFF_8000_003F_FFFF) && filter.may_hold(0xFFFF_8000_0000_0000));
        assert!(!filter.may_hold(0xFFFF_8000_0040_0000) && !filter.giant());
        filter.clear();
        assert!(!filter.may_hold(0x1234_5000));
        filter.insert(0, 30);
        assert!(filter.may_hold(0x3FFF_FFFF) && filter.giant());
    }
}
