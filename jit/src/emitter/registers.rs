//! Which guest register is where, and the allocation of host registers.
//!
//! Terms. A host register is *cached* while guest registers are renamed to it, *pinned* while the pending flags need
//! it, *busy* while the running instruction uses it. Nothing but giving it up ends a host register's value: so a
//! guest register is written by renaming. RAX and RCX are never any of these: they are scratch between two steps.

use super::encode::{Asm, Label, Labels, RDX, Reg, field};
use super::flag_state::FlagState;
use super::shapes::{self, Shape};
use super::snapshot::{FlagsSnapshot, Snapshot};
use super::value::{Exprs, Val, immediate};
use super::vectors::Vectors;
use super::windows::Window;
use super::x87::{self, X87};
use crate::abi::{Job, Untranslatable};
use trimaran_cpu::blocks::BlockKey;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::state::gpr;
use trimaran_cpu::translate::offset;

/// RDX, RBX, RBP, R8 to R15.
const ALLOCATABLE: u16 = 0xFF00 | 1 << RDX | 1 << 3 | 1 << 5;
/// Why a region may have to be translated again, frugally.
pub const NO_REGISTER: &str = "no host register left";
/// Guest registers cached: 16 and RIP (which is never dirty).
pub const GUESTS: usize = 17;

/// Where a guest register's 64 bits are.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Place {
    Memory,
    /// And all bits above this many bytes are zero.
    Host(Reg, u8),
    Const(u64),
}

/// What is known between two instructions.
#[derive(Clone)]
pub struct State {
    pub guest: [Place; GUESTS],
    /// Guest registers whose memory is stale.
    pub dirty: u32,
    /// For each host register the guest registers renamed to it.
    holds: [u32; 16],
    pub cached: u16,
    pub flags: FlagState,
    pub windows: [Option<Window>; 3],
    pub window_registers: u16,
    /// The register with the address of the TLB's entries.
    pub tlb: Option<Reg>,
    pub vectors: Vectors,
    pub x87: X87,
}

impl State {
    /// `top`: of the x87 stack, as it is supposed to be.
    pub fn new(flags: FlagState, top: u8) -> Self {
        State {
            guest: [Place::Memory; GUESTS],
            dirty: 0,
            holds: [0; 16],
            cached: 0,
            flags,
            windows: [None; 3],
            window_registers: 0,
            tlb: None,
            vectors: Vectors::default(),
            x87: X87::new(top),
        }
    }
    fn forget(&mut self, g: usize) {
        if let Place::Host(h, _) = self.guest[g] {
            self.holds[usize::from(h)] &= !(1 << g);
            if self.holds[usize::from(h)] == 0 {
                self.cached &= !(1 << h);
            }
        }
        self.guest[g] = Place::Memory;
    }
    pub fn place(&mut self, g: usize, place: Place, dirty: bool) {
        self.forget(g);
        if let Place::Host(h, _) = place {
            self.holds[usize::from(h)] |= 1 << g;
            self.cached |= 1 << h;
        }
        self.guest[g] = place;
        self.dirty = self.dirty & !(1 << g) | u32::from(dirty) << g;
    }
    /// Drops the cache of all registers.
    pub fn drop_registers(&mut self) {
        (self.guest, self.holds) = ([Place::Memory; GUESTS], [0; 16]);
        (self.dirty, self.cached) = (0, 0);
        (self.windows, self.window_registers, self.tlb) = ([None; 3], 0, None);
        self.vectors = Vectors::default();
        self.x87.forget();
    }
}

/// What is known of an instruction before code is made of it.
#[derive(Clone, Copy)]
pub struct Facts {
    /// Guest registers that it names, and those that it writes, as bits.
    pub named: u32,
    pub written: u32,
    /// Whether it goes to the interpreter's handler.
    pub helper: bool,
    /// How it runs as itself on the host: a vector instruction, an x87 instruction.
    pub shape: Option<&'static Shape>,
    pub x87: Option<&'static x87::Form>,
    /// DIV, IDIV.
    pub division: bool,
}

impl Facts {
    fn of(i: &Insn, frugal: bool, key: BlockKey, x87: bool) -> Self {
        let shape = shapes::native(i, key);
        let x87 = if x87 { x87::native(i, key) } else { None };
        let division = super::division::native(i);
        let (named, written) = super::loops::named(i, shape, x87);
        let native = shape.is_some() || x87.is_some() || division;
        let helper = super::control::is_helper(i, frugal, native);
        Facts { named, written, helper, shape, x87, division }
    }
}

/// The translator of one region.
pub struct Emitter<'a> {
    pub job: &'a Job<'a>,
    pub code64: bool,
    pub asm: Asm,
    /// What runs rarely goes to the end.
    pub cold: Asm,
    pub labels: Labels,
    pub state: State,
    pub exprs: Exprs,
    /// Registers that the running instruction uses.
    pub busy: u16,
    /// Registers that the pending flags need.
    pub pins: u16,
    /// The node that host flags are of, if nothing changed them since.
    pub host_flags: Option<u16>,
    /// The shift by a variable count that the host's carry is of, as long as flags are not clobbered.
    pub carry_of: Option<u16>,
    pub snapshots: Vec<Snapshot>,
    pub flags_snapshots: Vec<FlagsSnapshot>,
    /// Whether the last of `flags_snapshots` is right.
    pub flags_known: bool,
    /// The registers that it needs.
    pub flags_pins: u16,
    /// Position of the running instruction: its block, its number there, its distance from the entry.
    pub block: usize,
    pub number: usize,
    pub delta: i64,
    /// [`crate::region::Region::charges`].
    pub charges: Vec<i32>,
    /// [`crate::region::Region::segment_starts`].
    pub segments: Vec<bool>,
    /// What is known of each instruction, and where a block begins in that.
    pub facts: Vec<Facts>,
    pub first_of_block: Vec<usize>,
    pub pending: Vec<super::control::Pending>,
    /// Guest registers that the running instruction has written.
    pub written: u32,
    /// What the running instruction does with control at its end.
    pub leave: super::ops::Leave,
    /// Whether `asm` is the part that runs rarely, and `cold` the other.
    pub in_cold: bool,
    /// Flags are written after each instruction: for code that needs more registers than there are.
    pub frugal: bool,
    /// What is emitted may run again, under LOCK.
    pub repeated: bool,
    /// The state at the region's head, if it is a loop's.
    pub head: Option<State>,
    /// Where what the head holds is loaded.
    pub before_head: Label,
    /// There is a vector instruction, so that XMM registers count.
    pub uses_vectors: bool,
    /// Vector registers are cached whole, as YMM registers.
    pub ymm: bool,
    pub failed: Option<&'static str>,
    pub common: Common,
}

/// Pieces of code that stand once in a region.
#[derive(Clone, Copy)]
pub struct Common {
    pub miss: Label,
    pub settle: Label,
    pub arm: Label,
    pub helper: Label,
    pub done: Label,
    /// RDX: the slot.
    pub unlinked: Label,
    /// The jump table has no entry for RIP.
    pub missing: Label,
    pub stop: Label,
    pub lookup: Label,
}

impl<'a> Emitter<'a> {
    pub fn new(job: &'a Job<'a>, frugal: bool) -> Self {
        let mut labels = Labels::default();
        let common = Common {
            miss: labels.make(),
            settle: labels.make(),
            arm: labels.make(),
            helper: labels.make(),
            done: labels.make(),
            unlinked: labels.make(),
            missing: labels.make(),
            stop: labels.make(),
            lookup: labels.make(),
        };
        let insns = job.region.insns();
        let (mut facts, mut first_of_block) = (Vec::with_capacity(insns), Vec::new());
        for block in &job.region.blocks {
            first_of_block.push(facts.len());
            facts.extend(block.insns.iter().map(|i| Facts::of(i, frugal, job.region.key, job.x87)));
        }
        Emitter {
            job,
            code64: job.region.key.code64(),
            asm: Asm::for_insns(insns),
            cold: Asm::for_insns(insns),
            state: State::new(FlagState::UNKNOWN, job.region.top),
            exprs: Exprs::for_insns(insns),
            busy: 0,
            pins: 0,
            host_flags: None,
            carry_of: None,
            snapshots: Vec::with_capacity(insns),
            flags_snapshots: Vec::with_capacity(insns),
            flags_known: false,
            flags_pins: 0,
            block: 0,
            number: 0,
            delta: 0,
            charges: job.region.charges(),
            segments: job.region.segment_starts(),
            facts,
            first_of_block,
            pending: Vec::new(),
            written: 0,
            leave: super::ops::Leave::No,
            in_cold: false,
            frugal,
            repeated: false,
            head: None,
            before_head: labels.make(),
            uses_vectors: false,
            ymm: job.region.key.avx() && std::is_x86_feature_detected!("avx"),
            failed: None,
            common,
            labels,
        }
    }

    pub fn insn(&self) -> &'a Insn {
        &self.job.region.blocks[self.block].insns[self.number]
    }
    pub fn facts(&self) -> Facts {
        self.facts[self.first_of_block[self.block] + self.number]
    }
    pub fn fail(&mut self, why: &'static str) {
        self.failed.get_or_insert(why);
    }
    pub fn check(&self) -> Result<(), Untranslatable> {
        match self.failed {
            Some(why) => Err(Untranslatable(why.into())),
            None => Ok(()),
        }
    }

    fn free(&self) -> u16 {
        let tlb = self.state.tlb.map_or(0, |h| 1 << h);
        ALLOCATABLE & !(self.state.cached | self.busy | self.pins | self.state.window_registers | tlb)
    }
    pub fn free_registers(&self) -> u32 {
        self.free().count_ones()
    }

    /// A host register for a new value of the running instruction.
    pub fn alloc(&mut self) -> Reg {
        let mut free = self.free();
        if free == 0 && self.state.tlb.take().is_some() {
            free = self.free();
        }
        if free != 0 {
            let h = free.trailing_zeros() as Reg;
            self.busy |= 1 << h;
            return h;
        }
        let candidates = self.state.cached & !(self.busy | self.pins);
        if candidates != 0 {
            let h = self.used_last(candidates);
            self.evict(h);
            self.busy |= 1 << h;
            return h;
        }
        for n in 0..self.state.windows.len() {
            if self.state.windows[n].is_some_and(|w| self.busy >> w.host & 1 == 0 && !w.kept()) {
                self.close_window(n);
                return self.alloc();
            }
        }
        if self.pins != 0 {
            if self.repeated {
                self.fail(NO_REGISTER);
            }
            let before = std::mem::replace(&mut self.pins, 0);
            let only_pins = before & !self.busy;
            if only_pins != 0 && self.failed.is_none() {
                // The values stay where they are while they are written.
                self.busy |= before;
                self.write_flags();
                self.busy &= !only_pins;
                return self.alloc();
            }
        }
        self.fail(NO_REGISTER);
        RDX
    }

    /// Of some cached registers the one that the code ahead names last.
    fn used_last(&self, mut candidates: u16) -> Reg {
        let first = self.first_of_block[self.block] + self.number;
        let end = self.segments.iter().skip(self.block + 1).position(|&s| s);
        let end = end.map_or(self.facts.len(), |n| self.first_of_block[self.block + 1 + n]);
        for &Facts { named, .. } in &self.facts[first..end] {
            let mut left = candidates;
            while left != 0 {
                let h = left.trailing_zeros();
                left &= left - 1;
                if candidates & (candidates - 1) == 0 {
                    return candidates.trailing_zeros() as Reg;
                }
                if self.state.holds[h as usize] & named != 0 {
                    candidates &= !(1 << h);
                }
            }
        }
        // What memory knows costs nothing.
        let mut left = candidates;
        while left != 0 {
            let h = left.trailing_zeros();
            left &= left - 1;
            if self.state.holds[h as usize] & self.state.dirty == 0 {
                return h as Reg;
            }
        }
        candidates.trailing_zeros() as Reg
    }

    /// Frees registers for all that a locked instruction computes.
    pub fn make_room(&mut self) {
        self.state.tlb = None;
        for n in 0..self.state.windows.len() {
            if self.state.windows[n].is_some_and(|w| !w.kept()) {
                self.close_window(n);
            }
        }
        while self.free_registers() < 6 {
            let candidates = self.state.cached & !(self.busy | self.pins);
            if candidates == 0 {
                return;
            }
            self.evict(candidates.trailing_zeros() as Reg);
        }
    }

    /// Gives up a cached host register.
    fn evict(&mut self, h: Reg) {
        if self.repeated {
            self.fail(NO_REGISTER);
        }
        let mut held = self.state.holds[usize::from(h)];
        while held != 0 {
            let g = held.trailing_zeros() as usize;
            held &= held - 1;
            self.write_back(g);
            self.state.forget(g);
        }
    }

    /// Brings a guest register's memory up to date; its place stays. No flags.
    pub fn write_back(&mut self, g: usize) {
        if self.state.dirty >> g & 1 == 0 {
            return;
        }
        self.state.dirty &= !(1 << g);
        let m = field(offset::gpr(g));
        match self.state.guest[g] {
            Place::Memory => {}
            Place::Host(h, _) => self.asm.store(W::Q, m, h),
            Place::Const(v) => self.store_const(W::Q, m, v),
        }
    }

    /// Stores a constant of width `w`; may use RAX.
    pub fn store_const(&mut self, w: W, m: super::encode::Mem, v: u64) {
        match immediate(w, v) {
            Some(v) => self.asm.store_imm(w, m, v),
            None => {
                self.asm.mov_imm(super::encode::RAX, v);
                self.asm.store(w, m, super::encode::RAX);
            }
        }
    }

    /// Brings all guest registers' memory up to date. Flags are spoiled.
    pub fn write_registers(&mut self) {
        let mut dirty = self.state.dirty;
        while dirty != 0 {
            self.write_back(dirty.trailing_zeros() as usize);
            dirty &= dirty - 1;
        }
        self.write_vectors(!0);
        self.write_x87();
    }

    /// The 64 bits of a guest register (or RIP at the entry) as a value.
    pub fn guest(&mut self, g: usize) -> Val {
        match self.state.guest[g] {
            Place::Host(h, zx) => {
                self.busy |= 1 << h;
                Val::Host(h, zx)
            }
            Place::Const(v) => Val::Const(v),
            Place::Memory => {
                let h = self.alloc();
                self.asm.load(W::Q, h, field(offset::gpr(g)));
                // Outside 64-bit mode RIP has 32 bits; what a register has above them is not known.
                let zx = if g == gpr::RIP && !self.code64 { 4 } else { 8 };
                self.state.place(g, Place::Host(h, zx), false);
                Val::Host(h, zx)
            }
        }
    }

    /// A guest register as an operand of width `w`.
    pub fn read_guest(&mut self, w: W, register: u8) -> Val {
        let whole = self.guest(usize::from(register & 15));
        if register & 16 == 0 {
            return match whole {
                Val::Const(v) => Val::Const(v & w.mask()),
                v => v,
            };
        }
        match whole {
            Val::Const(v) => Val::Const(v >> 8 & 0xFF),
            v => {
                let (s, _) = self.force(v, W::Q);
                let h = self.alloc();
                self.asm.mov(W::D, h, s);
                self.asm.shift_imm(super::encode::Sh::Shr, W::D, h, 8);
                Val::Host(h, 4)
            }
        }
    }

    /// Writes a guest register at width `w`.
    pub fn write_guest(&mut self, w: W, register: u8, value: Val) {
        let g = usize::from(register & 15);
        self.written |= 1 << g;
        let value = self.exprs.resolve(value);
        if w >= W::D {
            let place = match value {
                Val::Const(v) => Place::Const(v & w.mask()),
                _ => {
                    let (mut h, mut zx) = self.force(value, w);
                    if w == W::D && zx > 4 {
                        let from = h;
                        h = self.alloc();
                        self.asm.mov(W::D, h, from);
                        zx = 4;
                    }
                    Place::Host(h, zx)
                }
            };
            self.state.place(g, place, true);
            return;
        }
        let high = register & 16 != 0;
        if let (Place::Const(old), Val::Const(new)) = (self.state.guest[g], value) {
            let shift = if high { 8 } else { 0 };
            let mask = w.mask() << shift;
            self.state.place(g, Place::Const(old & !mask | (new << shift) & mask), true);
            return;
        }
        let (new, _) = self.force(value, w);
        let h = self.alloc();
        let busy = self.busy;
        let old = self.guest(g);
        let (old, old_zx) = self.force(old, W::Q);
        self.busy = busy;
        let whole = if old_zx <= 4 { W::D } else { W::Q };
        self.asm.mov(whole, h, old);
        if high {
            self.asm.shift_imm(super::encode::Sh::Ror, whole, h, 8);
            self.asm.mov(W::B, h, new);
            self.asm.shift_imm(super::encode::Sh::Rol, whole, h, 8);
        } else {
            self.asm.mov(w, h, new);
        }
        let zx = old_zx.max(if high { 2 } else { w.bytes() });
        self.state.place(g, Place::Host(h, zx), true);
    }

    /// Between two instructions: temporaries die, what the flags need stays.
    pub fn instruction_ends(&mut self) {
        self.busy = 0;
        self.carry_of = None;
        let mut pins = self.state.flags.pins(&self.exprs);
        if self.frugal || (pins & !self.state.cached).count_ones() > 4 {
            self.pins = pins;
            self.write_flags();
            (self.busy, pins) = (0, 0);
        }
        // What a snapshot of the flags names stays as long as it is pinned.
        self.flags_known &= pins == self.flags_pins;
        self.pins = pins;
    }
}
