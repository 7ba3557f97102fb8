//! Loops: what the head of a region holds in registers when it is reached from its own end.
//!
//! The registers that the region's code names most are loaded before the head is bound; a way back brings them to
//! the same host registers again, so an iteration loads and stores none of them. It is a guess that costs
//! little: whatever the guess was, the way back makes it true.

use super::encode::{Label, RAX, Reg, field};
use super::registers::{Emitter, Facts, Place, State};
use super::shapes::Shape;
use super::windows::Window;
use super::x87;
use crate::region::{End, Target};
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::interp::form;
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::state::gpr;
use trimaran_cpu::translate::offset;

/// More leave too few for what an iteration computes.
const MOST: usize = 7;

/// Guest registers that an instruction names, as bits: all, and those it writes.
pub fn named(i: &Insn, shape: Option<&Shape>, x87: Option<&x87::Form>) -> (u32, u32) {
    use Kernel::*;
    let register = |n: u8| 1u32 << (n & 15);
    let address = |n: u8| if n < 16 { 1u32 << n } else { 0 };
    let stack = 1u32 << gpr::RSP;
    let mut all = if i.memory() { address(i.base) | address(i.index) } else { 0 };
    let mut written = 0;
    let to_register = i.form < form::MEM_REG;
    if let Some(shape) = shape {
        let bit = |g: Option<u8>| g.map_or(0, |g| 1 << g);
        let (read, written) = shape.generals(i);
        return (all | bit(read) | bit(written), bit(written));
    }
    if let Some(form) = x87 {
        let ax = form.action == x87::Action::StoreStatus && !i.memory();
        return (all | u32::from(ax), u32::from(ax));
    }
    if super::division::native(i) {
        let pair = 1 << gpr::RAX | 1 << gpr::RDX;
        return (all | pair | if i.memory() { 0 } else { register(i.r0) }, pair);
    }
    match i.kernel {
        Jmp | Jcc | Nop | Helper => return (all, 0),
        Call => return (all | stack, stack),
        Push | CallIndirect => {
            let source = if i.form == form::REG_REG { register(i.r1) } else { 0 };
            return (all | stack | source, stack);
        }
        Pop => (all, written) = (all | stack | register(i.r0), stack | register(i.r0)),
        Ret | Leave => return (all | stack, stack),
        Loop | Jrcxz => return (all | 1 << gpr::RCX, 1 << gpr::RCX),
        Mul | ImulWide | ConvertWide => {
            let pair = 1 << gpr::RAX | 1 << gpr::RDX;
            (all, written) = (all | pair, pair);
        }
        Convert => return (all | 1, 1),
        Mulx => {
            written = register(i.r0) | register(i.r2);
            all |= written | 1 << gpr::RDX;
        }
        Andn | Bzhi | Sarx | Shlx | Shrx => {
            written = register(i.r0);
            all |= written | register(i.r2);
        }
        Cmp | Test | Bt if to_register => all |= register(i.r0),
        Cmp | Test | Bt | JmpIndirect => {}
        _ if to_register => {
            all |= register(i.r0);
            written = register(i.r0);
        }
        _ => {}
    }
    if matches!(i.form, form::REG_REG | form::MEM_REG) {
        all |= register(i.r1);
    }
    (all, written)
}

impl Emitter<'_> {
    /// The blocks that lead from the head to itself without a helper.
    fn cycle(&self) -> Vec<bool> {
        let blocks = &self.job.region.blocks;
        let plain = |n: usize| {
            let first = self.first_of_block[n];
            self.facts[first..first + blocks[n].insns.len()].iter().all(|f| !f.helper)
        };
        let next = |n: usize| {
            let (a, b) = match blocks[n].end {
                End::Goto(t) => (Some(t), None),
                End::Branch { taken, not_taken } => (Some(taken), Some(not_taken)),
                End::Indirect | End::Dispatcher => (None, None),
            };
            [a, b].into_iter().flatten().filter_map(|t| match t {
                Target::Block(n) => Some(n),
                Target::Exit { .. } => None,
            })
        };
        let mut reached = vec![false; blocks.len()];
        let mut queue = vec![0];
        while let Some(n) = queue.pop() {
            if !reached[n] && plain(n) {
                reached[n] = true;
                queue.extend(next(n));
            }
        }
        let mut returns = vec![false; blocks.len()];
        let mut more = true;
        while std::mem::take(&mut more) {
            for n in (0..blocks.len()).rev() {
                if reached[n] && !returns[n] && next(n).any(|t| t == 0 && reached[0] || returns[t]) {
                    (returns[n], more) = (true, true);
                }
            }
        }
        returns
    }

    /// Loads what the head shall hold; None: nothing, because helpers would make it useless.
    pub fn prepare_head(&mut self) -> Option<State> {
        let region = self.job.region;
        let (mut uses, mut written) = ([0u32; 16], 0);
        let (mut vectors, mut vectors_written) = (0, 0);
        let (mut float, mut memory, mut fpu) = (false, false, false);
        if self.frugal {
            return None;
        }
        let cycle = self.cycle();
        if !cycle[0] {
            return None;
        }
        let mut facts = Vec::new();
        for (n, block) in region.blocks.iter().enumerate().filter(|&(n, _)| cycle[n]) {
            let first = self.first_of_block[n];
            facts.extend(block.insns.iter().zip(self.facts[first..].iter().copied()));
        }
        for (i, Facts { named: all, written: writes, shape, x87, .. }) in facts {
            fpu |= x87.is_some();
            if let Some(shape) = shape {
                let (read, writes) = shape.vectors(i, self.ymm);
                (vectors, vectors_written) = (vectors | read | writes, vectors_written | writes);
                float |= shape.float;
            }
            written |= writes;
            memory |= i.memory() || writes >> gpr::RSP & 1 != 0;
            (0..16).filter(|n| all >> n & 1 != 0).for_each(|n| uses[n] += 1);
        }
        for _ in 0..MOST {
            let most = (0..16).max_by_key(|&n| uses[n]).filter(|&n| uses[n] != 0);
            let Some(g) = most else { break };
            uses[g] = 0;
            self.guest(g);
            let place = self.state.guest[g];
            // What is written in the loop counts as dirty from the start.
            self.state.place(g, place, written >> g & 1 != 0);
        }
        self.load_vectors(vectors);
        self.state.vectors.dirty |= vectors_written;
        if float {
            self.use_float();
        }
        self.busy = 0;
        if memory {
            self.open_kept(&cycle, written);
            self.tlb_register();
        }
        if fpu {
            self.keep_x87();
        }
        Some(self.state.clone())
    }

    /// Back to the head, with everything where `prepare_head` had it.
    pub fn back_to(&mut self, head: &State, label: Label) {
        let turned = !self.x87_back_to(&head.x87);
        let still = |w: &Window| self.state.windows.iter().flatten().any(|v| v.host == w.host && v.kept());
        if turned || !head.windows.iter().flatten().all(still) {
            // A helper has run, or the x87 stack turns: from the beginning.
            self.write_flags();
            self.write_registers();
            return self.asm.jmp(self.before_head);
        }
        self.write_flags();
        for g in 0..16 {
            if head.dirty >> g & 1 == 0 {
                self.write_back(g);
            }
        }
        self.write_vectors(!head.vectors.dirty);
        self.load_vectors(head.vectors.cached);
        if head.vectors.float_used {
            // A helper may have run.
            self.use_float();
        }
        let mut moves: Vec<(Reg, Reg)> = Vec::new();
        let mut rest: Vec<(Reg, usize)> = Vec::new();
        for g in 0..16 {
            let Place::Host(to, _) = head.guest[g] else { continue };
            match self.state.guest[g] {
                Place::Host(from, _) if from != to => moves.push((to, from)),
                Place::Host(..) => {}
                _ => rest.push((to, g)),
            }
        }
        // A register that a value stays in is no move, and nothing moves into it: places of the head are distinct.
        while !moves.is_empty() {
            let free = moves.iter().position(|&(to, _)| moves.iter().all(|&(_, from)| from != to));
            let Some(n) = free else {
                // All that is left are rings: open one.
                let (to, _) = moves[0];
                self.asm.mov(W::Q, RAX, to);
                for (_, from) in moves.iter_mut().filter(|m| m.1 == to) {
                    *from = RAX;
                }
                continue;
            };
            let (to, from) = moves.swap_remove(n);
            self.asm.mov(W::Q, to, from);
        }
        for (to, g) in rest {
            match self.state.guest[g] {
                Place::Const(v) => self.asm.mov_imm(to, v),
                _ => self.asm.load(W::Q, to, field(offset::gpr(g))),
            }
        }
        if let Some(h) = head.tlb.filter(|_| self.state.tlb != head.tlb) {
            self.asm.load(W::Q, h, field(offset::TLB));
        }
        self.asm.jmp(label);
    }
}
