//! What is known of a region before code is made: which instructions are native, which registers are used and may
//! differ from memory, which flags a block wants from the block before.

use super::flags::ALL;
use super::observe::{Observer, native};
use super::vector_table::{self, Vector};
use super::vectors;
use crate::region::{End, Region, Target};
use trimaran_cpu::blocks::BlockKey;
use trimaran_cpu::kernels::Kernel;

/// An instruction as [`Plan`] sees it.
#[derive(Clone, Copy)]
pub struct Facts {
    pub native: bool,
    /// It is a vector instruction, and native.
    pub vector: Option<&'static Vector>,
    pub seen: Observer,
    /// Flags that somebody may see between this instruction and the next one that writes them.
    pub live: u8,
}

pub struct BlockPlan {
    pub facts: Vec<Facts>,
    pub reachable: bool,
    /// The only way into this block is from that one, which is translated before it.
    pub only_from: Option<usize>,
    /// Registers that may differ from memory at the start.
    pub dirty: u32,
    /// Flags that must be in memory at the start.
    pub needed: u8,
}

/// See the head of this file.
pub struct Plan {
    pub blocks: Vec<BlockPlan>,
    /// Registers that native instructions touch.
    pub used: u32,
}

/// Whether a kernel sets RIP.
pub fn transfers(kernel: Kernel) -> bool {
    use Kernel::*;
    matches!(kernel, Jcc | Loop | Jrcxz | Jmp | Call | Ret | JmpIndirect | CallIndirect)
}

impl Plan {
    /// `vectors`: the host has those that are used.
    pub fn new(region: &Region, vectors: bool) -> Plan {
        let key = vectors.then_some(region.key);
        let mut blocks: Vec<BlockPlan> =
            region.blocks.iter().map(|b| BlockPlan::new(&b.insns, key)).collect();
        let successors: Vec<Vec<usize>> = (0..blocks.len()).map(|n| successors(region, n)).collect();
        let mut queue = vec![0];
        while let Some(n) = queue.pop() {
            if !std::mem::replace(&mut blocks[n].reachable, true) {
                queue.extend(&successors[n]);
            }
        }
        for k in 1..blocks.len() {
            let mut ways = (0..blocks.len())
                .filter(|&n| blocks[n].reachable)
                .flat_map(|n| successors[n].iter().filter(|&&s| s == k).map(move |_| n));
            let (first, second) = (ways.next(), ways.next());
            blocks[k].only_from = first.filter(|&n| second.is_none() && n < k);
        }
        // Registers that are written on some way become dirty; a helper cleans all.
        let mut changed = true;
        while changed {
            changed = false;
            for n in 0..blocks.len() {
                let out = blocks[n].dirty_after();
                for &s in &successors[n] {
                    let dirty = blocks[s].dirty | out;
                    changed |= dirty != blocks[s].dirty;
                    blocks[s].dirty = dirty;
                }
            }
        }
        let native = blocks.iter().flat_map(|b| &b.facts).filter(|f| f.native);
        let used = native.fold(0, |used, f| used | f.seen.reads | f.seen.writes);
        Plan { blocks, used }
    }
}

impl BlockPlan {
    fn new(insns: &[trimaran_cpu::insn::Insn], key: Option<BlockKey>) -> BlockPlan {
        let facts = |i| {
            let vector = key.and_then(|key| vector_table::native(i, key));
            let seen = match vector {
                Some(vector) => vectors::observe(i, vector),
                None if native(i) => Observer::of(i),
                None => Observer::default(),
            };
            Facts { native: vector.is_some() || native(i), vector, seen, live: ALL }
        };
        let mut facts: Vec<Facts> = insns.iter().map(facts).collect();
        // At the end of a block the budget may run out, and then all can be seen.
        let mut live = ALL;
        for f in facts.iter_mut().rev() {
            f.live = live;
            live = live & !f.seen.flags_written | f.seen.flags_read;
            if !f.native || f.seen.may_leave {
                live = ALL;
            }
        }
        let dirty = 0;
        BlockPlan { facts, reachable: false, only_from: None, dirty, needed: live }
    }

    fn dirty_after(&self) -> u32 {
        self.facts.iter().fold(self.dirty, |d, f| if f.native { d | f.seen.writes } else { 0 })
    }
}

/// The blocks that a block leads to.
fn successors(region: &Region, n: usize) -> Vec<usize> {
    let block = &region.blocks[n];
    let targets = match block.end {
        End::Goto(t) => vec![t],
        End::Branch { taken, not_taken } => vec![taken, not_taken],
        End::Indirect | End::Dispatcher => Vec::new(),
    };
    let leaves = block.insns.last().is_none_or(|i| transfers(i.kernel) && !native(i));
    let block = |t| if let Target::Block(n) = t { Some(n) } else { None };
    if leaves { Vec::new() } else { targets.into_iter().filter_map(block).collect() }
}
