//! Seeds that once found something; they are run first, always.

/// 1, 2, 5: the interpreter's budget behind REP. 50: a region made hot in another's place. 534, 756, 852: code in device
/// memory was fetched twice. 304686: VPMASKMOVQ with an empty mask made a page dirty.
/// 310101377: a store that is not aligned made a page dirty before its #GP.
/// 500469267: page tables in a device were read before the count of instructions was settled.
/// 701566747: a TLB entry came back that a later walk of the page tables had replaced by one with fewer rights.
pub const SEEDS: &[u64] = &[1, 2, 5, 50, 534, 756, 852, 304686, 310101377, 500469267, 701566747];

/// The same for x87 programs. 200028258: an exchanged register came back to memory that a popped one had been left in.
pub const X87: &[u64] = &[200028258];

/// The same for random bytes. 1580: an indirect jump to an address that is not canonical.
pub const BYTES: &[u64] = &[1580];

/// The same for programs at the edges. 1298, 1018: an instruction that ends at 4 GiB, in the interpreter and as a helper.
pub const EDGES: &[u64] = &[1298, 1018];
