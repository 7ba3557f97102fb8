//! What is translated as one piece: basic blocks of one page, and the ways between them.
//!
//! A region is found from decoded blocks of the interpreter, so their bytes are marked as code already. Offsets are
//! relative to RIP at its entry: a region runs wherever its page is mapped.

use crate::slots::Slot;
use crate::tree;
use iced_x86::Mnemonic;
use std::collections::VecDeque;
use trimaran_cpu::Vcpu;
use trimaran_cpu::blocks::{BlockKey, NONE};
use trimaran_cpu::insn::Insn;
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::ram::PAGE;

/// Where control goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The block of this number in the region.
    Block(usize),
    /// Out of the region, through a slot.
    Exit {
        slot: usize,
        /// RIP of the target less RIP at the region's entry.
        delta: i64,
        /// Not on the region's page: the slot must be compared with RIP.
        far: bool,
    },
}

/// How a block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Falls through, or its last instruction is an unconditional direct jump or call.
    Goto(Target),
    /// The last instruction branches.
    Branch { taken: Target, not_taken: Target },
    /// The last instruction computes RIP (a kernel that calls `jump_to`).
    Indirect,
    /// The last instruction is run as a helper whatever its kernel, and the engine looks around afterwards
    /// ([`crate::runtime::run_last`], [`crate::abi::DONE`]).
    Dispatcher,
}

/// A basic block.
#[derive(Debug)]
pub struct Block {
    /// RIP of its first instruction less RIP at the region's entry.
    pub delta: i64,
    pub insns: Box<[Insn]>,
    pub end: End,
}

/// See the head of this file. Block 0 is the entry.
#[derive(Debug)]
pub struct Region {
    pub key: BlockKey,
    /// RAM page, and its generation when the bytes were decoded.
    pub page: u32,
    pub generation: u32,
    /// The page that the only instruction crosses into, or [`NONE`].
    pub page2: u32,
    pub generation2: u32,
    /// Offset of the entry in its page.
    pub offset: u64,
    pub blocks: Vec<Block>,
    /// TOP of the x87 stack when the region was made.
    pub top: u8,
    /// How many slots its exits want.
    pub slots: usize,
    /// Every block but the first has one way in. Chains of blocks stand one after the other; the first of a chain is where
    /// an earlier one may branch to.
    pub tree: bool,
}

/// How large regions may grow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub blocks: usize,
    pub insns: usize,
    /// Grow a tree (`tree.rs`).
    pub tree: bool,
    /// Blocks that never ran are decoded and taken in too: for tests.
    pub decode: bool,
    /// Blocks end before all other instructions.
    pub only: Option<&'static [Mnemonic]>,
}

impl Limits {
    /// For the emitter.
    pub const TREE: Limits = Limits { blocks: 32, insns: 200, tree: true, decode: false, only: None };
    /// For Cranelift.
    pub const LOOPS: Limits = Limits { blocks: 32, insns: 150, tree: false, decode: false, only: None };

    /// How many of a block's instructions may be translated.
    pub(crate) fn allowed(&self, insns: &[Insn]) -> usize {
        let allowed = |i: &Insn| self.only.is_none_or(|only| only.contains(&i.code.mnemonic()));
        insns.iter().take_while(|i| allowed(i)).count()
    }
}

impl Region {
    pub fn insns(&self) -> usize {
        self.blocks.iter().map(|b| b.insns.len()).sum()
    }

    /// For each block whether it is entered otherwise than by falling into it from the block before alone: state that the
    /// code before knew means nothing there. Such blocks begin *segments*.
    pub fn segment_starts(&self) -> Vec<bool> {
        let mut starts = vec![false; self.blocks.len()];
        let mut flows = false;
        for (n, block) in self.blocks.iter().enumerate() {
            starts[n] |= !flows;
            flows = false;
            let mut way = |t| match t {
                Target::Block(m) if m == n + 1 => flows = true,
                Target::Block(m) => starts[m] = true,
                Target::Exit { .. } => {}
            };
            match block.end {
                End::Goto(t) => way(t),
                End::Branch { taken, not_taken } => {
                    way(taken);
                    way(not_taken);
                    if taken == not_taken {
                        starts.iter_mut().skip(n + 1).take(1).for_each(|s| *s = true);
                    }
                }
                End::Indirect | End::Dispatcher => {}
            }
        }
        starts
    }

    /// Where the blocks go directly.
    fn targets(&self) -> impl Iterator<Item = Target> {
        let targets = |b: &Block| match b.end {
            End::Goto(t) => [Some(t), None],
            End::Branch { taken, not_taken } => [Some(taken), Some(not_taken)],
            End::Indirect | End::Dispatcher => [None, None],
        };
        self.blocks.iter().flat_map(targets).flatten()
    }

    /// How far from its entry a direct branch leads at most, in bytes.
    pub fn reach(&self) -> u64 {
        let far = |t: Target| match t {
            Target::Exit { delta, .. } => delta.unsigned_abs(),
            Target::Block(_) => 0,
        };
        self.targets().map(far).max().unwrap_or(0)
    }

    /// The region's slots, leading nowhere: to `stub`.
    pub fn new_slots(&self, stub: u64, owner: u32) -> Vec<Slot> {
        let mut far = vec![false; self.slots];
        for target in self.targets() {
            if let Target::Exit { slot, far: true, .. } = target {
                far[slot] = true;
            }
        }
        far.into_iter().enumerate().map(|(n, far)| Slot::new(stub, owner, n as u16, far)).collect()
    }

    /// For each block how many instructions there are from its first to the end of its segment.
    pub fn charges(&self) -> Vec<i32> {
        let starts = self.segment_starts();
        let mut charges = vec![0; self.blocks.len()];
        let mut after = 0;
        for n in (0..self.blocks.len()).rev() {
            charges[n] = self.blocks[n].insns.len() as i32 + after;
            after = if starts[n] { 0 } else { charges[n] };
        }
        charges
    }

    /// Whether something in it is a helper: the emitter knows more instructions than Cranelift does.
    pub fn has_helpers(&self) -> bool {
        self.blocks.iter().any(|b| {
            let inside = b.insns.len() - usize::from(b.end == End::Dispatcher);
            b.insns[..inside].iter().any(|i| i.kernel == Kernel::Helper)
        })
    }

    /// The region whose first block is `first`, at the current RIP. None: nothing that can be translated.
    pub fn form(vcpu: &mut Vcpu, first: u32, rip: u64, limits: Limits) -> Option<Region> {
        let head = vcpu.block(first)?;
        if limits.allowed(&head.insns) == 0
            || head.page == NONE
            || !vcpu.key().flat_code()
            || vcpu.key().code_size() == 2
        {
            return None;
        }
        let mut region = Region {
            key: vcpu.key(),
            page: head.page,
            generation: head.generation,
            page2: head.page2,
            generation2: head.generation2,
            offset: rip % PAGE,
            blocks: Vec::new(),
            top: vcpu.state.x87.top(),
            slots: 0,
            tree: limits.tree,
        };
        if limits.tree {
            tree::grow(&mut region, vcpu, first, rip, limits);
        } else {
            let starts = region.discover(vcpu, first, rip, limits);
            region.connect(&starts);
        }
        Some(region)
    }

    /// Collects blocks, nearest first; returns their offsets.
    fn discover(&mut self, vcpu: &mut Vcpu, first: u32, rip: u64, limits: Limits) -> Vec<i64> {
        let mut starts: Vec<i64> = Vec::new();
        let mut queue = VecDeque::from([(0i64, Some(first))]);
        let mut insns = 0;
        while let Some((delta, known)) = queue.pop_front() {
            if starts.contains(&delta) || starts.len() >= limits.blocks || insns >= limits.insns {
                continue;
            }
            let here = rip.wrapping_add(delta as u64);
            if known.is_none() && !self.on_page(delta) {
                continue;
            }
            let Some(index) = known.or_else(|| vcpu.block_at(here)) else { continue };
            let Some(block) = vcpu.block(index) else { continue };
            let same = block.page == self.page && block.generation == self.generation;
            let allowed = limits.allowed(&block.insns);
            // An instruction that crosses pages is a region of its own.
            if known.is_none() && (!same || block.page2 != NONE) || allowed == 0 {
                continue;
            }
            let code: Box<[Insn]> = block.insns[..allowed].into();
            let key = self.key;
            let len: i64 = code.iter().map(|i| i64::from(i.len)).sum();
            insns += code.len();
            starts.push(delta);
            let end = delta + len;
            let ways = ways_out(&code, end, key);
            self.blocks.push(Block { delta, insns: code, end: End::Dispatcher });
            if self.page2 != NONE {
                break;
            }
            queue.extend(ways.into_iter().map(|w| (w, None)));
        }
        starts
    }

    pub(crate) fn on_page(&self, delta: i64) -> bool {
        (0..PAGE as i64).contains(&(self.offset as i64 + delta))
    }

    /// Gives every block its end.
    fn connect(&mut self, starts: &[i64]) {
        let mut slots = 0;
        for n in 0..self.blocks.len() {
            let block = &self.blocks[n];
            let after = block.delta + block.insns.iter().map(|i| i64::from(i.len)).sum::<i64>();
            let ways = ways_out(&block.insns, after, self.key);
            let mut target = |delta: i64| match starts.iter().position(|&s| s == delta) {
                Some(block) => Target::Block(block),
                None => {
                    slots += 1;
                    let far = !self.on_page(delta) || self.page2 != NONE;
                    Target::Exit { slot: slots - 1, delta, far }
                }
            };
            let end = end_of(&ways, &block.insns, &mut target);
            self.blocks[n].end = end;
        }
        self.slots = slots;
    }
}

/// How a block with these ways out ends.
pub(crate) fn end_of(ways: &[i64], insns: &[Insn], mut target: impl FnMut(i64) -> Target) -> End {
    let last = insns.last().map_or(Kernel::Helper, |i| i.kernel);
    match (ways, last) {
        (&[taken, not_taken], _) => End::Branch { taken: target(taken), not_taken: target(not_taken) },
        (&[only], _) => End::Goto(target(only)),
        (_, Kernel::Ret | Kernel::JmpIndirect | Kernel::CallIndirect) => End::Indirect,
        _ => End::Dispatcher,
    }
}

/// Offsets where a block may go directly: of a branch first the target, then what follows. `after` is the offset of what
/// follows the last instruction.
pub(crate) fn ways_out(insns: &[Insn], after: i64, key: BlockKey) -> Vec<i64> {
    let Some(last) = insns.last() else { return Vec::new() };
    // A 16-bit operand size cuts the target: leave such branches to the engine.
    let direct = last.w != 2 || key.code64();
    let target = after.wrapping_add(last.imm as i64);
    match last.kernel {
        Kernel::Jcc | Kernel::Loop | Kernel::Jrcxz if direct => vec![target, after],
        Kernel::Jmp | Kernel::Call if direct => vec![target],
        Kernel::Jcc | Kernel::Loop | Kernel::Jrcxz | Kernel::Jmp | Kernel::Call => Vec::new(),
        Kernel::Ret | Kernel::JmpIndirect | Kernel::CallIndirect | Kernel::Helper => Vec::new(),
        _ => vec![after],
    }
}
