//! Which path a region follows, and which others: a tree of blocks.
//!
//! The *chain* from the entry goes where the code went most often while it was interpreted. Where that leads back to the
//! entry, the region is a loop, and side chains that also lead back are taken in, likeliest first: so an iteration
//! keeps the guest's registers in the host's whichever way it goes. A block that several paths reach is
//! translated for each of them: what is known about registers and flags differs. A chain that does not come back ends where
//! another region begins: code that runs seldom is better small (gcc's cc1: 0.94 million instructions translated instead of 1.5).

use crate::region::{Block, Limits, Region, Target, end_of, ways_out};
use crate::translations::ASKED;
use trimaran_cpu::Vcpu;
use trimaran_cpu::blocks::NONE;
use trimaran_cpu::insn::Insn;

/// A side chain less likely than this is left out.
const LEAST: f64 = 0.06;

/// A block in the making.
struct Node {
    delta: i64,
    insns: Box<[Insn]>,
    ways: Vec<i64>,
    /// The node of each way, once there is one.
    next: Vec<Option<usize>>,
    /// The node before it on its path.
    parent: Option<usize>,
    /// How likely an iteration comes here, and from here each way.
    likely: f64,
    odds: Vec<f64>,
    /// It begins a region already.
    known: bool,
}

struct Tree<'a> {
    region: &'a mut Region,
    vcpu: &'a mut Vcpu,
    rip: u64,
    limits: Limits,
    nodes: Vec<Node>,
    insns: usize,
}

/// How a chain ended.
#[derive(PartialEq)]
enum Chain {
    /// Back at the entry.
    Loop,
    Leaves,
}

/// Fills a region from its first block on.
pub fn grow(region: &mut Region, vcpu: &mut Vcpu, first: u32, rip: u64, limits: Limits) {
    let mut tree = Tree { region, vcpu, rip, limits, nodes: Vec::new(), insns: 0 };
    tree.add(first, 0, None, 1.0);
    // An instruction that crosses pages is a region of its own.
    if tree.region.page2 == NONE {
        if tree.chain(0) == Chain::Loop {
            tree.side_chains();
        } else {
            tree.cut();
        }
    }
    tree.finish();
}

impl Tree<'_> {
    fn add(&mut self, index: u32, delta: i64, parent: Option<usize>, likely: f64) {
        let Some(block) = self.vcpu.block(index) else { return };
        let insns: Box<[Insn]> = block.insns[..self.limits.allowed(&block.insns)].into();
        let liked = block.last_target().map(|address| address.wrapping_sub(self.rip) as i64);
        let after = delta + insns.iter().map(|i| i64::from(i.len)).sum::<i64>();
        let ways = ways_out(&insns, after, self.region.key);
        self.insns += insns.len();
        let next = vec![None; ways.len()];
        let (heat, known) = (block.heat, block.translation < ASKED);
        let odds = self.odds(&ways, heat, liked);
        self.nodes.push(Node { delta, insns, ways, next, parent, likely, odds, known });
    }

    /// The decoded block at an offset, if it can be part of the region.
    fn block(&mut self, delta: i64) -> Option<u32> {
        if !self.region.on_page(delta) {
            return None;
        }
        let index = if self.limits.decode {
            self.vcpu.block_at(self.rip.wrapping_add(delta as u64))?
        } else {
            let offset = self.region.offset.wrapping_add(delta as u64);
            self.vcpu.decoded_at(self.region.page, offset)?
        };
        let block = self.vcpu.block(index)?;
        let fits = block.page2 == NONE && block.generation == self.region.generation;
        (fits && self.limits.allowed(&block.insns) != 0).then_some(index)
    }

    /// How likely a block that ran `heat` times, and went to `liked` last, goes each of its ways.
    fn odds(&mut self, ways: &[i64], heat: u32, liked: Option<i64>) -> Vec<f64> {
        let &[a, b] = ways else { return vec![1.0; ways.len()] };
        let [x, y] = [a, b].map(|way| {
            let index = self.block(way);
            index.and_then(|index| self.vcpu.block(index)).map_or(0.0, |b| f64::from(b.heat))
        });
        // The entry is reached from everywhere: its heat says nothing about one way there.
        let share = |other: f64| (other / f64::from(heat.max(1))).min(1.0);
        let first = match (a == 0, b == 0) {
            (true, false) => 1.0 - share(y),
            (false, true) => share(x),
            _ if x + y == 0.0 => 0.5,
            _ => x / (x + y),
        };
        let close = (first - 0.5).abs() < 0.1;
        let first = match liked {
            Some(t) if close && t == a => 0.6,
            Some(t) if close && t == b => 0.4,
            _ => first,
        };
        vec![first, 1.0 - first]
    }

    /// Ends a chain before the first block that has a translation of its own.
    fn cut(&mut self) {
        let Some(known) = (1..self.nodes.len()).find(|&n| self.nodes[n].known) else { return };
        self.nodes.truncate(known);
        for next in &mut self.nodes[known - 1].next {
            *next = None;
        }
    }

    fn passes(&self, n: usize, delta: i64) -> bool {
        std::iter::successors(Some(n), |&n| self.nodes[n].parent).any(|n| self.nodes[n].delta == delta)
    }

    /// Goes on from node `n` where it mostly goes.
    fn chain(&mut self, mut n: usize) -> Chain {
        loop {
            let odds = &self.nodes[n].odds;
            let best = (0..odds.len()).max_by(|&a, &b| odds[a].total_cmp(&odds[b]));
            let Some(way) = best else { return Chain::Leaves };
            let delta = self.nodes[n].ways[way];
            if delta == 0 {
                return Chain::Loop;
            }
            let full = self.nodes.len() >= self.limits.blocks || self.insns >= self.limits.insns;
            if full || self.passes(n, delta) {
                return Chain::Leaves;
            }
            let Some(index) = self.block(delta) else { return Chain::Leaves };
            let likely = self.nodes[n].likely * self.nodes[n].odds[way];
            self.nodes[n].next[way] = Some(self.nodes.len());
            self.add(index, delta, Some(n), likely);
            n = self.nodes.len() - 1;
        }
    }

    /// Takes in other ways back to the entry.
    fn side_chains(&mut self) {
        let mut open = Vec::new();
        let mut seen = 0;
        loop {
            // The ways that no node goes yet, of nodes that are new.
            for n in seen..self.nodes.len() {
                let node = &self.nodes[n];
                let ways = (0..node.ways.len()).filter(|&w| node.next[w].is_none() && node.ways[w] != 0);
                open.extend(ways.map(|w| (n, w, node.likely * node.odds[w])).filter(|o| o.2 >= LEAST));
            }
            seen = self.nodes.len();
            let best = (0..open.len()).max_by(|&a, &b| open[a].2.total_cmp(&open[b].2));
            let Some(best) = best else { return };
            let (n, way, likely) = open.swap_remove(best);
            let delta = self.nodes[n].ways[way];
            if self.passes(n, delta) {
                continue;
            }
            let Some(index) = self.block(delta) else { continue };
            let insns = self.insns;
            self.add(index, delta, Some(n), likely);
            if seen == self.nodes.len() || self.chain(seen) == Chain::Leaves {
                // It does not come back: an exit serves as well.
                self.nodes.truncate(seen);
                self.insns = insns;
            } else {
                self.nodes[n].next[way] = Some(seen);
            }
        }
    }

    /// Nodes stand chain by chain already: they become blocks in their order.
    fn finish(self) {
        let mut slots = 0;
        for node in self.nodes {
            let mut way = 0;
            let far_from = |region: &Region, delta| !region.on_page(delta) || region.page2 != NONE;
            let end = end_of(&node.ways, &node.insns, |delta| {
                let next = node.next[way];
                way += 1;
                match next {
                    Some(n) => Target::Block(n),
                    None if delta == 0 => Target::Block(0),
                    None => {
                        slots += 1;
                        Target::Exit { slot: slots - 1, delta, far: far_from(self.region, delta) }
                    }
                }
            });
            self.region.blocks.push(Block { delta: node.delta, insns: node.insns, end });
        }
        self.region.slots = slots;
    }
}
