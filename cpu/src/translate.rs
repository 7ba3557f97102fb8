//! What a translator needs of a [`Vcpu`]: the fields that its code touches, and the services that it calls.
//!
//! Translated code works on a `Vcpu` through fixed offsets ([`offset`]). Between two pieces of it, and whenever
//! Rust looks, the registers are in `state.gpr`; the status flags are `lazy` with [`PendingFlags`] applied to it,
//! which [`Vcpu::settle_flags`] does. RIP in memory is the first instruction of the running region; whoever leaves
//! a region, or calls out of it, moves it first. So a region does not know where it is mapped.
//!
//! Budget. Code that is entered with a budget charges each basic block before it runs. What is charged but did not
//! run is given back on leaving; [`Vcpu::sync_retired`] turns the difference into retired instructions.

use crate::Vcpu;
use crate::blocks::{Block, BlockKey, NONE};
use crate::fault::Exit;
use crate::flags::Flags;
use crate::insn::{Insn, W};
use crate::interp::Interp;
use crate::mmu::Access;
use crate::ops::Ops;
use crate::ram::PAGE;
use crate::shared::attention as att;
pub use crate::simd::legacy_mnemonic;
use crate::state::{Activity, RFlags, gpr};
use crate::tlb::hits;

/// What [`PendingFlags::kind`] means: the variant of [`Flags`] that was declared last.
pub mod pending {
    /// Nothing: `lazy` is whole.
    pub const NONE: u8 = 0;
    pub const ADD: u8 = 1;
    pub const ADC: u8 = 2;
    pub const SUB: u8 = 3;
    pub const SBB: u8 = 4;
    pub const LOGIC: u8 = 5;
    /// CF is `lazy`'s.
    pub const INC: u8 = 6;
    /// CF is `lazy`'s.
    pub const DEC: u8 = 7;
    pub const NEG: u8 = 8;
    /// A count that is not 0. `bit`: CF.
    pub const SHL: u8 = 9;
    /// A count that is not 0. `bit`: CF.
    pub const SHR: u8 = 10;
    /// `bit`: CF and OF.
    pub const MUL: u8 = 11;
    /// `bit`: ZF.
    pub const SCAN: u8 = 12;
    pub const COUNT: u8 = 13;

    /// Whether the result is computed from the operands when flags are settled: it need not be stored.
    pub const fn result_follows(kind: u8) -> bool {
        matches!(kind, ADD | SUB | NEG)
    }
}

/// A declaration of flags whose bits were not worth computing yet. What values have above `w` means nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PendingFlags {
    /// See [`pending`].
    pub kind: u8,
    /// Width in bytes.
    pub w: u8,
    pub bit: u8,
    pub a: u64,
    pub b: u64,
    pub r: u64,
}

/// Bits of [`Translated::x87_used`].
pub mod x87_used {
    /// The host's control word is the guest's, and all exceptions are masked; the host's status word has the guest's
    /// exceptions and C0, C2, C3, whatever the guest's in memory says.
    pub const ARMED: u8 = 1;
    /// And its C1.
    pub const C1: u8 = 2;
}

/// The fields of a [`Vcpu`] that only translated code and its engine use. Their places matter: see [`offset`].
#[repr(C, align(256))]
#[derive(Clone, Debug, Default)]
pub struct Translated {
    /// As many as there are general registers at the start of a [`Vcpu`].
    apart: [u64; gpr::COUNT],
    /// Address of the TLB entries for data accesses ([`crate::tlb::Tlb::table`]).
    pub tlb: usize,
    /// Address of the attention word.
    pub attention: usize,
    /// The bits of it that end a region.
    pub attention_mask: u32,
    /// Not 0: this run of translated code has used the host's SSE unit for the guest's arithmetic, so the host's MXCSR
    /// holds sticky flags of the guest.
    pub float_used: u8,
    /// What the host's x87 unit holds of the guest's: see [`x87_used`].
    pub x87_used: u8,
    /// Address of the engine's table of indirect branch targets.
    pub jump_table: usize,
    /// Address of what the engine finds translations by; 0: nothing.
    pub places: usize,
    /// Translations found there.
    pub found: u64,
    /// The budget at which `state.retired` was right.
    pub synced: i64,
    /// Up to here are the places of [`Vcpu::lazy`] and [`Vcpu::budget`].
    apart_too: [u64; 2],
    /// What the tags in the jump table are combined with by exclusive or.
    pub salt: u64,
    pub pending: PendingFlags,
    /// Scratch for stubs.
    pub scratch: [u64; 4],
    /// Helpers that translated code called, by `iced_x86::Code`.
    pub helper_calls: Vec<u64>,
}

impl Translated {
    #[inline]
    pub fn count_helper(&mut self, insn: &Insn) {
        let n = insn.code as usize;
        match self.helper_calls.get_mut(n) {
            Some(count) => *count += 1,
            None => self.first_helper(n),
        }
    }
    #[cold]
    fn first_helper(&mut self, n: usize) {
        self.helper_calls.resize(n + 1, 0);
        self.helper_calls[n] = 1;
    }
}

/// Byte offsets into a [`Vcpu`].
///
/// What translated code reads in every region has no neighbour 1,024 bytes away that it writes. Zen 4 takes a load for
/// that of the value just stored if base register and low bits of the displacement are those of the store, and goes back
/// when the addresses turn out to be others: with the attention word's address at 0x1C70 and R14 at 0x70, `xz -d` took
/// 4.9 s instead of 2.7.
pub mod offset {
    use super::{PendingFlags, Translated};
    use crate::Vcpu;
    use crate::flags::LazyFlags;
    use crate::state::gpr::COUNT;
    use crate::state::{CpuState, F80, Segment, X87};
    use std::mem::offset_of;

    const STATE: usize = offset_of!(Vcpu, state);
    const LAZY: usize = offset_of!(Vcpu, lazy);
    const TRANSLATED: usize = offset_of!(Vcpu, translated);
    const PENDING: usize = TRANSLATED + offset_of!(Translated, pending);

    /// A general register, RIP, or zero.
    pub const fn gpr(register: usize) -> usize {
        STATE + offset_of!(CpuState, gpr) + register * 8
    }
    /// A vector register: 16 bytes of 64.
    pub const fn xmm(register: usize) -> usize {
        STATE + offset_of!(CpuState, zmm) + register * 64
    }
    pub const fn segment_base(segment: usize) -> usize {
        STATE + offset_of!(CpuState, seg) + segment * size_of::<Segment>() + offset_of!(Segment, base)
    }
    pub const fn segment_selector(segment: usize) -> usize {
        STATE + offset_of!(CpuState, seg) + segment * size_of::<Segment>() + offset_of!(Segment, selector)
    }
    const X87: usize = STATE + offset_of!(CpuState, x87);
    /// An x87 register by its physical number.
    pub const fn x87_register(n: usize) -> usize {
        X87 + offset_of!(X87, registers) + n * size_of::<F80>()
    }
    /// Words.
    pub const X87_CONTROL: usize = X87 + offset_of!(X87, control);
    pub const X87_STATUS: usize = X87 + offset_of!(X87, status);
    pub const X87_INSTRUCTION_SELECTOR: usize = X87 + offset_of!(X87, instruction_selector);
    pub const X87_DATA_SELECTOR: usize = X87 + offset_of!(X87, data_selector);
    /// A byte.
    pub const X87_VALID: usize = X87 + offset_of!(X87, valid);
    /// Quadwords.
    pub const X87_INSTRUCTION_POINTER: usize = X87 + offset_of!(X87, instruction_pointer);
    pub const X87_DATA_POINTER: usize = X87 + offset_of!(X87, data_pointer);
    pub const MXCSR: usize = STATE + offset_of!(CpuState, mxcsr);
    pub const BUDGET: usize = offset_of!(Vcpu, budget);
    /// Bytes that are 0 or 1.
    pub const LAZY_CF: usize = LAZY + offset_of!(LazyFlags, cf);
    pub const LAZY_OF: usize = LAZY + offset_of!(LazyFlags, of);
    pub const LAZY_AF: usize = LAZY + offset_of!(LazyFlags, af);
    /// Quadwords.
    pub const LAZY_ZERO: usize = LAZY + offset_of!(LazyFlags, zero);
    pub const LAZY_SIGN_PARITY: usize = LAZY + offset_of!(LazyFlags, sign_parity);
    /// Bytes; kind and width are neighbours, to be written as one word.
    pub const PENDING_KIND: usize = PENDING + offset_of!(PendingFlags, kind);
    pub const PENDING_W: usize = PENDING + offset_of!(PendingFlags, w);
    pub const PENDING_BIT: usize = PENDING + offset_of!(PendingFlags, bit);
    pub const PENDING_A: usize = PENDING + offset_of!(PendingFlags, a);
    pub const PENDING_B: usize = PENDING + offset_of!(PendingFlags, b);
    pub const PENDING_R: usize = PENDING + offset_of!(PendingFlags, r);
    pub const TLB: usize = TRANSLATED + offset_of!(Translated, tlb);
    pub const ATTENTION: usize = TRANSLATED + offset_of!(Translated, attention);
    pub const ATTENTION_MASK: usize = TRANSLATED + offset_of!(Translated, attention_mask);
    pub const JUMP_TABLE: usize = TRANSLATED + offset_of!(Translated, jump_table);
    pub const SALT: usize = TRANSLATED + offset_of!(Translated, salt);
    pub const FLOAT_USED: usize = TRANSLATED + offset_of!(Translated, float_used);
    pub const X87_USED: usize = TRANSLATED + offset_of!(Translated, x87_used);
    pub const SCRATCH: usize = TRANSLATED + offset_of!(Translated, scratch);

    /// See the head of this module; 256 bytes, to be sure.
    const _: () = {
        let (lazy_end, pending_end) = (LAZY + size_of::<LazyFlags>(), PENDING + size_of::<PendingFlags>());
        let hot = [
            (gpr(0), gpr(COUNT)),
            (TLB, JUMP_TABLE + 8),
            (LAZY, lazy_end),
            (BUDGET, BUDGET + 8),
            (SALT, pending_end),
        ];
        let mut taken = [false; 256];
        let mut n = 0;
        while n < hot.len() {
            let (mut at, end) = hot[n];
            while at < end {
                assert!(!taken[at % 256], "two fields of a Vcpu are in each other's way");
                taken[at % 256] = true;
                at += 1;
            }
            n += 1;
        }
    };
}

/// Which linear addresses may have changed their meaning since somebody last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MappingChange {
    #[default]
    None,
    /// Something in these stretches of [`MappingChange::GRAIN`] bytes.
    Pages(Vec<u64>),
    /// All pages that are not global.
    NotGlobal,
    All,
}

impl MappingChange {
    /// INVLPG drops a page, and how large that was nobody knows any more: 4 MiB with 32-bit paging.
    pub const GRAIN: u64 = 4 << 20;
    /// More pages than this count as all of them.
    const MOST_PAGES: usize = 16;

    pub(crate) fn page(&mut self, page: u64) {
        match self {
            MappingChange::None => *self = MappingChange::Pages(vec![page]),
            MappingChange::Pages(pages) if pages.contains(&page) => {}
            MappingChange::Pages(pages) if pages.len() < Self::MOST_PAGES => pages.push(page),
            _ => *self = MappingChange::All,
        }
    }
    pub(crate) fn not_global(&mut self) {
        *self = match self {
            MappingChange::None | MappingChange::NotGlobal => MappingChange::NotGlobal,
            _ => MappingChange::All,
        };
    }
}

/// Runs translated code where the interpreter's loop would run a block.
pub trait Translator {
    /// Whether there is one at all.
    const ACTIVE: bool = true;
    /// The loop looked at the attention word, or a block asked for it: translations may be stale.
    fn boundary(&mut self, vcpu: &mut Vcpu);
    /// Runs from block `index`, whose first instruction is next. False: nothing ran, the interpreter shall.
    fn run(&mut self, vcpu: &mut Vcpu, index: u32) -> bool;
}

/// The interpreter alone.
pub struct NoTranslator;

impl Translator for NoTranslator {
    const ACTIVE: bool = false;
    fn boundary(&mut self, _: &mut Vcpu) {}
    fn run(&mut self, _: &mut Vcpu, _: u32) -> bool {
        false
    }
}

impl Vcpu {
    /// Sets what translated code reads; before it is entered.
    pub fn prepare_translated(&mut self) {
        let masked = if self.state.rflags.contains(RFlags::IF) { 0 } else { att::INTR };
        let t = &mut self.translated;
        t.tlb = self.tlb.table(self.class) as usize;
        t.attention = self.shared.attention.as_ptr() as usize;
        t.attention_mask = !masked;
        t.synced = self.budget;
    }

    /// Books the instructions retired since the last time, given what is left of the budget.
    pub fn sync_retired(&mut self, budget: i64) {
        let n = self.translated.synced - budget;
        self.state.retired = self.state.retired.wrapping_add(n as u64);
        self.translated.synced = budget;
        self.budget = budget;
    }

    /// Computes the flags that were left pending.
    pub fn settle_flags(&mut self) {
        let PendingFlags { kind, w, bit, a, b, r } = std::mem::take(&mut self.translated.pending);
        let (w, bit) = (W::from_bytes(w), bit != 0);
        let r = match kind {
            pending::ADD => a.wrapping_add(b),
            pending::SUB => a.wrapping_sub(b),
            pending::NEG => a.wrapping_neg(),
            _ => r,
        };
        let [a, b, r] = [a, b, r].map(|v| v & w.mask());
        let flags = match kind {
            pending::ADD => Flags::Add { w, a, b, r },
            pending::ADC => Flags::Adc { w, a, b, r },
            pending::SUB => Flags::Sub { w, a, b, r },
            pending::SBB => Flags::Sbb { w, a, b, r },
            pending::LOGIC => Flags::Logic { w, r },
            pending::INC => Flags::Inc { w, r },
            pending::DEC => Flags::Dec { w, r },
            pending::NEG => Flags::Neg { w, a, r },
            pending::SHL => Flags::Shl { w, r, cf: bit, none: false },
            pending::SHR => Flags::Shr { w, r, cf: bit, none: false },
            pending::MUL => Flags::Mul { w, r, overflow: bit },
            pending::SCAN => Flags::Scan { w, r, zero: bit },
            pending::COUNT => Flags::Count { w, r },
            _ => return,
        };
        Interp::<8, 0>::new(self).flags(flags);
    }

    /// Fills the TLB for an access of translated code. False: the access must be done by the interpreter (it
    /// faults, crosses a page, meets a device, even for its page tables, or code).
    pub fn refill(&mut self, address: u64, size: u16, write: bool) -> bool {
        if !self.state.canonical(address) && self.state.long_mode() || self.class != self.plain_class {
            return false;
        }
        if self.tlb.recall(self.class, address, size.into(), write) {
            return true;
        }
        let access = if write { Access::Write } else { Access::Read };
        let class = self.class;
        if self.in_ram_only(|v| v.translate(address, access, class)).is_err() {
            return false;
        }
        let entry = self.tlb.entry(self.class, address);
        let size = u64::from(size);
        !self.stop_block && hits(entry.read, address, size) && (!write || hits(entry.write, address, size))
    }

    /// Whether the TLB knows an address now, for reading and for writing.
    pub fn refilled(&self, address: u64) -> (bool, bool) {
        let entry = self.tlb.entry(self.class, address);
        (hits(entry.read, address, 1), hits(entry.write, address, 1))
    }

    /// Runs one instruction by the interpreter's handler. RIP is that instruction's; flags and count of retired
    /// instructions are settled. True: it retired, RIP is the next one's, and nothing asks to leave.
    pub fn run_handler(&mut self, insn: &Insn) -> bool {
        self.block = NONE;
        self.extra = 0;
        self.state.gpr[gpr::RIP] = self.state.gpr[gpr::RIP].wrapping_add(u64::from(insn.len));
        let result = (insn.run)(self, insn);
        let mut done = 1;
        if let Err(exit) = result {
            self.stop_block = true;
            if exit != Exit::Leave {
                self.state.gpr[gpr::RIP] = self.state.gpr[gpr::RIP].wrapping_sub(u64::from(insn.len));
                done = u64::from(exit == Exit::Again);
            }
        }
        self.wrap_rip();
        done += std::mem::take(&mut self.extra);
        self.state.retired = self.state.retired.wrapping_add(done);
        self.budget -= done as i64;
        self.translated.synced = self.budget;
        // STAC, CLAC.
        self.translated.tlb = self.tlb.table(self.class) as usize;
        if result == Err(Exit::Fault) {
            self.deliver_fault();
        }
        !self.stop_block
    }

    /// The block at RIP. None: the fetch faults, or a stop point is near; the interpreter's loop will see that too.
    pub fn next_block(&mut self) -> Option<u32> {
        let rip = self.state.gpr[gpr::RIP];
        let address = self.code_address(rip);
        if self.near_stop_point(address) {
            return None;
        }
        match self.linked(NONE, address) {
            NONE => {
                self.code_in_ram(address)?;
                let next = self.find_block(rip).ok()?;
                self.link(NONE, address, next);
                Some(next)
            }
            next => Some(next),
        }
    }
    /// Whether the interpreter's loop has something to look at before the next instruction.
    pub fn wants_boundary(&self) -> bool {
        self.stop_block
            || self.shared.pending() & self.translated.attention_mask != 0
            || self.state.activity != Activity::Running
    }
    /// How often all blocks were dropped: an index means something until that happens again.
    pub fn blocks_cleared(&self) -> u32 {
        self.blocks.clears
    }
    /// A decoded block.
    pub fn block(&self, index: u32) -> Option<&Block> {
        self.blocks.blocks.get(index as usize)
    }
    pub fn block_mut(&mut self, index: u32) -> Option<&mut Block> {
        self.blocks.blocks.get_mut(index as usize)
    }
    /// None: some byte of an instruction here may come from a device. The interpreter's loop fetches from those, and just
    /// once.
    fn code_in_ram(&mut self, address: u64) -> Option<()> {
        self.in_ram_only(|v| {
            v.fetch_page(address).ok()??;
            if address % PAGE > PAGE - 15 {
                v.fetch_page((address & !(PAGE - 1)).wrapping_add(PAGE)).ok()??;
            }
            Some(())
        })
    }
    /// The block at `rip`, if it can be had without a fault and its bytes are RAM.
    pub fn block_at(&mut self, rip: u64) -> Option<u32> {
        self.code_in_ram(self.code_address(rip))?;
        let index = self.find_block(rip).ok()?;
        (self.block(index)?.page != NONE).then_some(index)
    }
    /// The block at an offset in a RAM page, if it has been decoded.
    pub fn decoded_at(&self, page: u32, offset: u64) -> Option<u32> {
        self.blocks.at(u64::from(page) * PAGE + offset, self.key)
    }
    /// The key of the current mode.
    pub fn key(&self) -> BlockKey {
        self.key
    }
    /// The RAM page that a linear code address is mapped to. None: the fetch faults, it is not RAM, or somebody wants to stop
    /// on it.
    pub fn code_page(&mut self, address: u64) -> Option<u32> {
        if self.near_stop_point(address) {
            return None;
        }
        self.in_ram_only(|v| v.fetch_page(address)).ok()?
    }
    /// Whether the page of a linear code address is mapped as global.
    pub fn code_is_global(&self, address: u64) -> bool {
        let class = self.code_class();
        hits(self.tlb.entry(class, address).execute, address, 1) && self.tlb.note(class, address).global
    }
}
