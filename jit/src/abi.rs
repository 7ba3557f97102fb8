//! What translated code and the engine agree on.
//!
//! **Entry.** A piece of code is a function `(vcpu, budget, slot) -> word` that may end by jumping to another piece.
//! Cranelift's convention is `CallConv::Tail`; on x86-64 hosts that is: RDI = vCPU, RSI = budget (instructions
//! left, before this region's first block is charged), RDX = the slot it was reached through (to be ignored), a
//! return address at RSP (RSP + 8 is a multiple of 16). Emitted code may use every register; the engine enters
//! through a trampoline that saves what Rust's convention wants kept.
//!
//! **Invariants at entry**: `gpr[RIP]` is the linear address of the region's first instruction (CS is flat);
//! registers are in memory; flags are `lazy` under `pending`. The attention word was not looked at: code does so at its
//! entry and at every back edge, with `ATTENTION_MASK`.
//!
//! **Leaving.** Code stores what is left of the budget (with what was charged but did not run given back) to
//! `BUDGET`, moves RIP, writes registers and flags back, and either jumps on through a [`crate::slots::Slot`] with the budget in
//! its register and the slot's address in the third argument, or returns a word: [`LOOKUP`], [`STOP`], [`INTERPRET`],
//! [`DONE`], [`HOT`], or the address of a slot that led nowhere (the stub of unlinked slots
//! does that; on x86-64 hosts it looks for the code first: `places.rs`).
//!
//! **Budget.** Before a basic block runs its count of instructions is taken off the budget; if that makes it negative, it
//! is given back, and the code leaves with [`STOP`], RIP at that block.
//!
//! **Accesses that miss the TLB.** A stub that disturbs no register calls [`crate::runtime::refill`]; if that
//! succeeds the access is tried again, else the code leaves with [`INTERPRET`]: state as before the instruction, RIP at
//! it, the instruction's address in `SCRATCH[0]`.
//!
//! **Floating point** (x86-64 hosts). Code whose key has `default_mxcsr` may use the host's SSE unit for the guest's
//! arithmetic, as long as it sets `FLOAT_USED` to 1 before, in each entry and after each helper: the engine
//! then collects the sticky flags. At entry, and after a helper, the host's MXCSR is 0x1F80 but for flags of the guest's.
//!
//! **x87** (x86-64 hosts). `Translated::x87_used` says what the host's unit holds of the guest's (`emitter/x87/`). Whoever leaves
//! code or runs a helper has the engine take it back; from region to region it stays. The register stack is empty there.
//!
//! **Helpers.** With registers and flags written back (RIP not), code calls [`crate::runtime::run_helper`] and drops what
//! it knew of registers and flags. The result is the new budget, or a negative number: then the code returns
//! [`DONE`] and touches nothing more. The last instruction of a block that ends with the dispatcher, and control transfers
//! that a back end leaves to the interpreter, go through [`crate::runtime::run_last`]: always [`DONE`] afterwards.

/// RIP leads somewhere that this code has no slot for.
pub const LOOKUP: u64 = 0;
/// The budget is too small for the next block, or something wants attention.
pub const STOP: u64 = 1;
/// `SCRATCH[0]` is the address of an [`trimaran_cpu::insn::Insn`] that the interpreter must run.
pub const INTERPRET: u64 = 2;
/// A helper has left; all is booked.
pub const DONE: u64 = 3;
/// The region's counter ran out: it is worth a better translation. Nothing of it has run or was charged.
pub const HOT: u64 = 4;

/// An entry of the table that indirect branches look into (at `JUMP_TABLE`, with `SALT`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct JumpEntry {
    /// Linear address ^ salt. User code's salt is that of its space ([`user_salt`]).
    pub tag: u64,
    pub code: u64,
}

/// Entries of a jump table: a power of two.
pub const JUMP_ENTRIES: usize = 1 << 16;

/// Where a tag is looked for. Code does the same.
pub fn jump_index(tag: u64) -> usize {
    (tag ^ tag >> 12) as usize & (JUMP_ENTRIES - 1)
}

/// What addresses of user code are combined with ([`trimaran_cpu::tlb::Tlb::space`]). The upper bits keep tags apart: what is
/// translated is canonical for 48 bits, and numbers have 15. The lower bits keep spaces from taking each other's
/// places in a jump table.
pub fn user_salt(space: u16) -> u64 {
    let spread = u64::from(space).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    u64::from(space) << 48 | spread & (JUMP_ENTRIES as u64 - 1)
}

/// Addresses that code calls or jumps to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runtime {
    /// `extern "C" fn(vcpu, budget, code) -> word`: the way in.
    pub trampoline: usize,
    /// What unlinked slots lead to, and indirect branches that the jump table has no entry for.
    pub unlinked: usize,
    /// `extern "C" fn()`: whatever code was written before, the host executes as it is now; 0 where writing it suffices.
    pub serialize: usize,
    /// [`crate::runtime::run_helper`].
    pub run_helper: usize,
    /// [`crate::runtime::run_helpers`].
    pub run_helpers: usize,
    /// [`crate::runtime::run_last`].
    pub run_last: usize,
    /// [`crate::runtime::refill`].
    pub refill: usize,
    /// [`crate::runtime::settle_flags`].
    pub settle_flags: usize,
    /// These two keep every register (`CallConv::PreserveAll`), the first returns through `SCRATCH[1]`
    /// (`cranelift/stubs.rs`); 0 where Cranelift knows no such host.
    pub refill_preserving: usize,
    pub settle_preserving: usize,
    /// The emitter's thunks (`emitter/miss.rs`); 0 where there is no emitter.
    pub miss: usize,
    pub settle_keeping: usize,
    pub arm_keeping: usize,
}

/// Which accesses of a region may share a look-up in the TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Sharing {
    None,
    /// Loads with loads, stores with what follows.
    Careful,
    /// A load also looks the page up for stores ahead.
    #[default]
    Full,
}

/// What a back end is asked to translate.
pub struct Job<'a> {
    pub region: &'a crate::region::Region,
    /// Address of the first of the region's [`crate::slots::Slot`]s.
    pub slots: usize,
    pub runtime: &'a Runtime,
    /// The engine's number for the region.
    pub owner: u32,
    pub sharing: Sharing,
    /// x87 instructions may run on the host's unit.
    pub x87: bool,
    /// Address of a 32-bit counter to take down at each entry and back edge; at 0 leave with [`HOT`] (at a back
    /// edge: [`LOOKUP`]). None: do not count.
    pub counter: Option<usize>,
    pub knobs: Knobs,
}

/// What people ask of a back end who look for a mistake of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Knobs {
    /// Every access looks into the TLB by itself.
    pub no_shared_checks: bool,
    /// Cranelift's intermediate code is to come with the code.
    pub explain: bool,
}

impl<'a> Job<'a> {
    /// A region on its own, that counts nothing.
    pub fn new(region: &'a crate::region::Region, slots: usize, runtime: &'a Runtime) -> Self {
        Job {
            region,
            slots,
            runtime,
            owner: 0,
            sharing: Sharing::default(),
            x87: !trimaran_cpu::uses_soft(),
            counter: None,
            knobs: Knobs::default(),
        }
    }
}

/// Host code, runnable at any address; its first byte is the entry.
pub struct Code {
    pub bytes: Vec<u8>,
    /// What the code points to.
    pub keep: Box<dyn std::any::Any + Send>,
    /// The slots that have jumps in the code, and where the distances stand in `bytes`.
    pub jumps: Vec<crate::slots::SlotJump>,
    /// Where it came from, if that was asked for and the back end knows.
    pub explanation: Option<Explanation>,
}

/// How a back end got from guest code to host code. Guest instructions go by their distance from the entry.
#[derive(Default)]
pub struct Explanation {
    /// Lines of intermediate code, and the instruction that each belongs to.
    pub intermediate: Vec<(Option<i64>, String)>,
    /// From an offset in the code on: the instruction.
    pub origins: Vec<(usize, Option<i64>)>,
}

/// A region that a back end cannot translate.
#[derive(Debug, thiserror::Error)]
#[error("the region cannot be translated: {0}")]
pub struct Untranslatable(pub String);
