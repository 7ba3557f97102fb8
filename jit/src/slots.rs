//! The ways out of regions.
//!
//! Emitted code leaves by a jump whose distance is written when it is linked, and 0 until then: it falls into the few
//! instructions behind it, that load the slot's address and go to the stub of unlinked slots. What code compares
//! RIP with before such a jump to another page is an immediate operand, at [`TAG_BEFORE`]. A jump that stands in the code
//! is known to the host's front end before it is executed; one through memory is not, and costs a line of data besides.
//! Cranelift's code jumps through [`Slot::code`].
//!
//! Code is written where it is not executed (`buffer.rs`), so the host must be told ([`crate::abi::Runtime::serialize`]) before
//! it may run what was written *over* another link: until then it might still see the old one. A first link needs nothing,
//! for the distance 0 leads to the stub, which looks again.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far before the jump's distance the tag stands in code: `mov rcx, TAG; cmp rax, rcx; jne; jmp`.
pub const TAG_BEFORE: usize = 8 + 3 + 2 + 1;
/// The tag that matches nothing.
pub const NO_TAG: u64 = !0;

/// A slot by its number in the region, and where the distance of its jump stands in the region's code.
pub type SlotJump = (usize, usize);

/// A way out of a region that may lead straight into another one.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Slot {
    /// Host address to jump to; never null.
    pub code: AtomicU64,
    /// The linear addresses that `code` stands for, in user code combined with the salt of the space. A jump to
    /// another page compares RIP with them, because the region may run at several linear addresses, and user code in
    /// several address spaces: two of them that take turns find their link both.
    pub tags: [AtomicU64; 2],
    /// The region it belongs to, and its number there: for the engine only.
    pub owner: u32,
    pub number: u16,
    /// Whether the tags are looked at.
    pub far: bool,
    /// Where the distance of its jump is written, and where it is counted from; 0: it has no jump of its own.
    distance: AtomicU64,
    after: AtomicU64,
}

impl Slot {
    pub const CODE: usize = 0;
    pub const TAGS: usize = 8;
    pub const FAR: usize = std::mem::offset_of!(Slot, far);
    pub const SIZE: usize = size_of::<Slot>();

    pub fn new(stub: u64, owner: u32, number: u16, far: bool) -> Self {
        let tags = [AtomicU64::new(NO_TAG), AtomicU64::new(NO_TAG)];
        Slot { code: AtomicU64::new(stub), tags, owner, number, far, ..Slot::default() }
    }

    /// The slot has a jump: its distance is written at `write`, and seen before `execute`.
    ///
    /// # Safety
    /// `write` is the address of the last four bytes of an exit as the head of this file describes it, and stays so as long as
    /// anybody links the slot, which only the thread does that runs the code.
    pub unsafe fn place(&self, write: usize, execute: usize) {
        self.distance.store(write as u64, Ordering::Relaxed);
        self.after.store(execute as u64, Ordering::Relaxed);
    }

    pub fn link(&self, tag: u64, code: u64) {
        self.put([tag, NO_TAG], code, code);
    }
    /// As [`Slot::link`]; if it leads to this code already, then for the last tag too.
    pub fn link_too(&self, tag: u64, code: u64) {
        let last = if self.leads_to(code) { self.tags[0].load(Ordering::Relaxed) } else { NO_TAG };
        self.put([tag, last], code, code);
    }
    pub fn unlink(&self, stub: u64) {
        self.put([NO_TAG; 2], stub, self.after.load(Ordering::Relaxed));
    }
    /// `stub` of the last [`Slot::unlink`].
    pub fn leads_nowhere(&self) -> bool {
        self.tags[0].load(Ordering::Relaxed) == NO_TAG
    }
    pub fn leads_to(&self, code: u64) -> bool {
        self.code.load(Ordering::Relaxed) == code
    }

    fn put(&self, tags: [u64; 2], code: u64, jump: u64) {
        self.tags[0].store(tags[0], Ordering::Relaxed);
        self.tags[1].store(tags[1], Ordering::Relaxed);
        self.code.store(code, Ordering::Release);
        let (at, after) = (self.distance.load(Ordering::Relaxed), self.after.load(Ordering::Relaxed));
        if at == 0 {
            return;
        }
        // All code lies in one buffer of less than 2 GiB.
        let distance = jump.wrapping_sub(after) as i32;
        let at = at as *mut u8;
        // SAFETY: by `place`.
        unsafe {
            ptr::write_unaligned(at.cast(), distance);
            if self.far {
                ptr::write_unaligned(at.sub(TAG_BEFORE).cast(), tags[0]);
            }
        }
    }
}
