//! x87 instructions: the guest's own, on the host's x87 unit.
//!
//! Goal: a run of x87 code costs what it costs the host, plus the look-ups of its memory operands. Terms:
//!
//! - The unit is *armed* (`Translated::x87_used`) while the host's control word is the guest's, all exceptions are masked,
//!   and the host's status word has the guest's exceptions and condition codes. Then an instruction does to the
//!   host's words what it must do to the guest's, and nothing needs to be done about them until somebody looks
//!   (`host.rs`: arming, and collecting whenever code is left or a helper runs).
//! - TOP is a constant in the code: what it was when the region was made, followed from there.
//! - *Cached* registers are ST(0) to ST(n) of the guest in ST(0) to ST(n) of the host; so an instruction is itself,
//!   operands included. The host's stack holds nothing else, and is empty wherever code is left, linked, or
//!   entered.
//! - A *guard* (`guard.rs`) stands before the first x87 instruction of a run: armed, TOP as supposed, tags as the
//!   instructions ahead want them; then it loads the registers that they read. So no instruction can overflow or
//!   underflow the stack. Where a guard fails, the interpreter runs the instruction; a region whose guards fail often is
//!   made again for the stack as it is then, and with helpers at last.
//! - *Writing back* (`write_back.rs`): registers, TOP, tags, FIP, where code leaves. A fault has all that in its snapshot.
//!
//! C1 is the odd one: loads and stores of registers clear it, so before them it must go to the status word in memory.
//! `x87_used` says where it is.
//!
//! Invariants: what is known of a tag is what the guard found and the instructions did to it since; a cached register's
//! *home* is the physical register whose memory has the same bits, or none; between two instructions the host's stack
//! has as many registers as are cached.

mod forms;
mod guard;
pub mod host;
mod instructions;
mod write_back;

pub use forms::{Action, Form, helper_moves_top, native};
pub use write_back::Kept;

/// No physical register.
const NOWHERE: u8 = 0xFF;

/// What is known of the unit between two instructions.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct X87 {
    /// TOP as the code supposes it; a guard makes it certain.
    top: u8,
    /// A guard has passed since a helper last ran.
    guarded: bool,
    /// Physical registers whose tags are known, and those of them that are not empty.
    known: u8,
    valid: u8,
    /// TOP and these tags in memory.
    memory_top: u8,
    memory_valid: u8,
    /// Of each cached register, from ST(0).
    homes: [u8; 8],
    cached: u8,
    /// `x87_used` has its bit C1.
    has_c1: bool,
    /// Distance of the instruction that FIP is to name; None: memory is right.
    last: Option<i64>,
    /// FCS in memory is right.
    code_selector: bool,
    /// The segment register that FDS in memory is a copy of.
    data_selector: Option<u8>,
}

impl X87 {
    pub fn new(top: u8) -> Self {
        X87 {
            top,
            guarded: false,
            known: 0,
            valid: 0,
            memory_top: top,
            memory_valid: 0,
            homes: [NOWHERE; 8],
            cached: 0,
            has_c1: false,
            last: None,
            code_selector: false,
            data_selector: None,
        }
    }
    /// After a helper.
    pub fn forget(&mut self) {
        *self = X87::new(self.top);
    }
    /// After a helper that left TOP elsewhere.
    pub fn moved(&mut self, top: u8) {
        *self = X87::new(top);
    }
    pub fn top(&self) -> u8 {
        self.top
    }

    /// Physical number of ST(`n`).
    fn physical(&self, n: u8) -> u8 {
        (self.top + n) & 7
    }
    /// Whether ST(`n`) is known to be empty.
    fn is_empty(&self, n: u8) -> bool {
        let bit = 1 << self.physical(n);
        self.known & bit != 0 && self.valid & bit == 0
    }
    fn tag(&mut self, n: u8, valid: bool) {
        let bit = 1 << self.physical(n);
        self.known |= bit;
        self.valid = if valid { self.valid | bit } else { self.valid & !bit };
    }
    fn push(&mut self) {
        self.homes.rotate_right(1);
        self.homes[0] = NOWHERE;
        self.cached += 1;
        self.top = self.physical(7);
        self.tag(0, true);
    }
    fn pop(&mut self) {
        self.tag(0, false);
        self.top = self.physical(1);
        self.homes.rotate_left(1);
        self.cached -= 1;
    }
    /// ST(`n`) is about to be stored in its register's memory; false: that has the same bits already.
    fn moves_home(&mut self, n: u8) -> bool {
        let p = self.physical(n);
        if self.homes[usize::from(n)] == p {
            return false;
        }
        // An exchanged one may come back to where its bits were.
        self.homes.iter_mut().filter(|h| **h == p).for_each(|h| *h = NOWHERE);
        self.homes[usize::from(n)] = p;
        true
    }
    /// Whether a loop's head with state `head` may follow.
    fn continues(&self, head: &X87) -> bool {
        let tags = |x: &X87| (x.valid & head.known, x.memory_valid & head.known);
        let stale = (self.valid ^ self.memory_valid) & !head.known;
        !head.guarded
            || self.guarded
                && (self.top, self.memory_top, self.cached) == (head.top, head.memory_top, head.cached)
                && head.known & !self.known == 0
                && tags(self) == tags(head)
                && stale == 0
    }
    /// Whether memory's copy of the state is wrong but for the registers.
    fn stale(&self) -> bool {
        self.top != self.memory_top || self.valid != self.memory_valid || self.last.is_some()
    }
}
