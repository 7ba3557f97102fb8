//! Blocks and the ways between them and out: budget, branches, slots, indirect jumps, helpers.

use super::encode::{Alu, Label, RAX, RCX, RDX, RSI, Sh, at, cc, field};
use super::flag_state::FlagState;
use super::miss;
use super::ops::Leave;
use super::registers::{Emitter, Facts, State};
use super::snapshot::Keep;
use super::value::Val;
use super::x87::helper_moves_top;
use crate::abi::{self, JUMP_ENTRIES, JumpEntry};
use crate::region::{End, Target};
use crate::slots::Slot;
use trimaran_cpu::insn::{Insn, W, prefix};
use trimaran_cpu::kernels::{Kernel, perform};
use trimaran_cpu::state::gpr;
use trimaran_cpu::translate::offset;

const RIP: usize = offset::gpr(gpr::RIP);

/// A side chain of a tree whose code is still to come, from the state at its branch.
pub struct Pending {
    block: usize,
    state: State,
    pins: u16,
    host_flags: Option<u16>,
    clobbered: bool,
    /// Expressions that were computed before; RIP's values among them hold on both ways.
    computed: usize,
    /// What the branch has charged for blocks that are not run.
    refund: i32,
}

/// Whether an instruction goes to the interpreter's handler. `native`: it runs as itself on the host.
pub fn is_helper(i: &Insn, frugal: bool, native: bool) -> bool {
    use Kernel::{Call, CallIndirect, Helper, Lea, Leave, Nop, Pop, Push, Ret};
    let stack = matches!(i.kernel, Push | Pop | Call | CallIndirect | Ret | Leave);
    let memory = i.memory() && !matches!(i.kernel, Lea | Nop);
    i.kernel == Helper && !native
        || frugal && i.form >= trimaran_cpu::interp::form::LOCKED_REG
        || memory && i.has(prefix::CHECKED)
        || stack && i.prefix & (prefix::CHECKED_STACK | prefix::STACK16) != 0
}

impl Emitter<'_> {
    /// Instructions that are charged and have not run, the running one among them.
    pub fn rest(&self) -> i64 {
        i64::from(self.charges[self.block]) - self.number as i64
    }

    /// What was charged for the blocks after the running one.
    fn charged_ahead(&self) -> i32 {
        self.charges[self.block] - self.job.region.blocks[self.block].insns.len() as i32
    }

    /// Gives that back.
    fn refund(&mut self) {
        let n = self.charged_ahead();
        if n != 0 {
            self.asm.lea(W::Q, RSI, at(RSI, n));
        }
    }

    /// Emits code into the cold part, from the state as it is; the state is as before afterwards.
    fn aside(&mut self, f: impl FnOnce(&mut Self)) {
        let nested = self.in_cold;
        let over = self.labels.make();
        if nested {
            self.asm.jmp(over);
        }
        let computed = self.exprs.computed.len();
        let state = self.state.clone();
        let (busy, pins, known, host_flags) = (self.busy, self.pins, self.flags_known, self.host_flags);
        if nested {
            f(self);
            self.asm.bind(over);
        } else {
            self.cold.clobbered = self.asm.clobbered;
            std::mem::swap(&mut self.asm, &mut self.cold);
            self.in_cold = true;
            f(self);
            self.in_cold = false;
            std::mem::swap(&mut self.asm, &mut self.cold);
            self.cold.bind(over);
        }
        (self.busy, self.pins, self.flags_known, self.host_flags) = (busy, pins, known, host_flags);
        self.state = state;
        for k in self.exprs.computed.drain(computed..) {
            self.exprs.nodes[usize::from(k)].host = None;
        }
    }

    fn write_all(&mut self) {
        self.write_flags();
        self.write_registers();
    }

    /// Moves RIP in memory.
    fn move_rip(&mut self, delta: i64) {
        if delta == 0 {
            return;
        }
        let w = if self.code64 { W::Q } else { W::D };
        match i32::try_from(delta) {
            Ok(delta) => self.asm.alu_mem_imm(Alu::Add, w, field(RIP), delta),
            Err(_) => {
                self.asm.mov_imm(RAX, delta as u64);
                self.asm.alu_load(Alu::Add, w, RAX, field(RIP));
                self.asm.store(w, field(RIP), RAX);
            }
        }
    }

    // ---- ways out

    fn exit(&mut self, slot: usize, delta: i64, far: bool) {
        self.write_all();
        self.refund();
        self.move_rip(delta);
        if far {
            self.asm.load(W::Q, RAX, field(RIP));
            if self.job.region.key.user() {
                self.asm.alu_load(Alu::Xor, W::Q, RAX, field(offset::SALT));
            }
        }
        self.asm.slot_jump(slot, far);
        self.asm.mov_imm(RDX, (self.job.slots + slot * Slot::SIZE) as u64);
        self.asm.jmp(self.common.unlinked);
    }

    /// Leaves with RIP at `delta`.
    fn stop(&mut self, delta: i64, how: Label) {
        self.write_all();
        self.move_rip(delta);
        self.asm.jmp(how);
    }

    /// Leaves where something wants attention, with RIP at the entry.
    fn attention(&mut self) {
        let wanted = self.labels.make();
        self.asm.load(W::Q, RAX, field(offset::ATTENTION));
        self.asm.load(W::D, RAX, at(RAX, 0));
        self.asm.test_mem(RAX, field(offset::ATTENTION_MASK));
        self.asm.jcc(cc::NE, wanted);
        self.aside(|e| {
            e.asm.bind(wanted);
            e.stop(0, e.common.stop);
        });
    }

    fn count(&mut self, entry: bool) {
        let Some(counter) = self.job.counter else { return };
        let hot = self.labels.make();
        self.asm.mov_imm(RAX, counter as u64);
        self.asm.alu_mem_imm(Alu::Sub, W::D, at(RAX, 0), 1);
        self.asm.jcc(cc::E, hot);
        self.aside(|e| {
            e.asm.bind(hot);
            if entry {
                e.asm.store(W::Q, field(offset::BUDGET), RSI);
                e.asm.mov_imm(RAX, abi::HOT);
                e.asm.ret();
            } else {
                e.stop(0, e.common.lookup);
            }
        });
    }

    /// Takes `n` instructions off the budget, of which `paid` have been.
    fn charge(&mut self, n: i32, paid: i32, delta: i64) {
        if n <= paid {
            if n != paid {
                self.asm.lea(W::Q, RSI, at(RSI, paid - n));
            }
            return;
        }
        let short = self.labels.make();
        self.asm.alu_imm(Alu::Sub, W::Q, RSI, n - paid);
        self.asm.jcc(cc::S, short);
        self.aside(|e| {
            e.asm.bind(short);
            e.asm.alu_imm(Alu::Add, W::Q, RSI, n);
            e.stop(delta, e.common.stop);
        });
    }

    /// Puts off a side chain: its code begins from the state as it is.
    fn put_off(&mut self, block: usize) {
        let pending = Pending {
            block,
            state: self.state.clone(),
            pins: self.pins,
            host_flags: self.host_flags,
            clobbered: self.asm.clobbered,
            computed: self.exprs.computed.len(),
            refund: self.charged_ahead(),
        };
        self.pending.push(pending);
    }

    /// Goes on at a target; `next`: the block whose code follows.
    fn go(&mut self, target: Target, next: usize, starts: &[Label]) {
        match target {
            Target::Exit { slot, delta, far } => self.exit(slot, delta, far),
            Target::Block(n) if n == next && n < starts.len() => {}
            Target::Block(0) => {
                self.refund();
                self.attention();
                self.count(false);
                if let Some(head) = self.head.take() {
                    self.back_to(&head, starts[0]);
                    self.head = Some(head);
                } else {
                    self.write_all();
                    self.asm.jmp(starts[0]);
                }
            }
            Target::Block(n) if self.job.region.tree => {
                self.put_off(n);
                self.asm.jmp(starts[n]);
            }
            Target::Block(n) => {
                self.write_all();
                self.refund();
                self.asm.jmp(starts[n]);
            }
        }
    }

    fn branch(&mut self, bit: super::value::Bit, taken: Target, not_taken: Target, starts: &[Label]) {
        let next = self.block + 1;
        let mut code = self.test_bit(bit);
        // What follows, or stays in the region, needs no jump out of line.
        let follows = |t| matches!(t, Target::Block(n) if n == next);
        let inside = |t| matches!(t, Target::Block(_));
        let (mut aside, mut onward) = (taken, not_taken);
        if follows(taken) || inside(taken) && !inside(not_taken) {
            (aside, onward) = (not_taken, taken);
            code ^= 1;
        }
        if aside == Target::Block(0) && inside(onward) && !follows(onward) {
            (aside, onward) = (onward, aside);
            code ^= 1;
        }
        if let Target::Block(n) = aside
            && n != 0
            && self.job.region.tree
        {
            self.asm.jcc(code, starts[n]);
            self.put_off(n);
            self.go(onward, next, starts);
            return;
        }
        let away = self.labels.make();
        self.asm.jcc(code, away);
        self.aside(|e| {
            e.asm.bind(away);
            e.go(aside, usize::MAX, starts);
        });
        self.go(onward, next, starts);
    }

    /// Goes on wherever a value says.
    fn jump_to(&mut self, target: Val, w: W) {
        let h = self.force_clean(target, w);
        self.write_all();
        self.asm.store(W::Q, field(RIP), h);
        let miss = self.common.missing;
        // `abi::jump_index`.
        self.asm.load(W::Q, RCX, field(offset::SALT));
        self.asm.alu(Alu::Xor, W::Q, RCX, h);
        self.asm.mov(W::Q, RAX, RCX);
        self.asm.shift_imm(Sh::Shr, W::Q, RAX, 12);
        self.asm.alu(Alu::Xor, W::D, RAX, RCX);
        self.asm.alu_imm(Alu::And, W::D, RAX, JUMP_ENTRIES as i32 - 1);
        self.asm.shift_imm(Sh::Shl, W::D, RAX, size_of::<JumpEntry>().trailing_zeros() as u8);
        self.asm.alu_load(Alu::Add, W::Q, RAX, field(offset::JUMP_TABLE));
        self.asm.alu_load(Alu::Cmp, W::Q, RCX, at(RAX, std::mem::offset_of!(JumpEntry, tag) as i32));
        self.asm.jcc(cc::NE, miss);
        self.asm.jmp_mem(at(RAX, std::mem::offset_of!(JumpEntry, code) as i32));
    }

    // ---- helpers

    fn helper_arguments(&mut self, i: &Insn) {
        self.write_all();
        self.asm.mov(W::Q, RDX, RSI);
        self.asm.mov_imm(RSI, std::ptr::from_ref(i) as u64);
        self.asm.mov_imm(RCX, self.rest() as u64);
        self.asm.mov_imm(8, self.delta as u64);
    }

    /// Runs `count` instructions from the running one on by their handlers.
    fn helpers(&mut self, i: &Insn, count: usize) {
        self.helper_arguments(i);
        self.asm.mov_imm(9, count as u64);
        self.asm.call(self.common.helper);
        self.asm.jcc(cc::S, self.common.done);
        self.state.drop_registers();
        self.state.flags = FlagState::SETTLED;
        self.flags_known = false;
        let handled = &self.job.region.blocks[self.block].insns[self.number..self.number + count];
        let top = handled.iter().fold(self.state.x87.top(), |top, i| helper_moves_top(i, top));
        self.state.x87.moved(top);
    }

    /// The last instruction of a block by the interpreter, and out.
    fn run_last(&mut self, i: &Insn) {
        self.helper_arguments(i);
        self.asm.mov_imm(RAX, self.job.runtime.run_last as u64);
        // One word more keeps the stack aligned.
        self.asm.push(RAX);
        self.asm.call_reg(RAX);
        self.asm.pop(RAX);
        self.asm.jmp(self.common.done);
    }

    /// An instruction that runs as itself on the host. False: it is another.
    fn native(&mut self, i: &Insn) -> bool {
        match self.facts() {
            Facts { shape: Some(shape), .. } => self.vector(i, shape),
            Facts { x87: Some(form), .. } => self.x87(i, form),
            Facts { division: true, .. } => self.division(i),
            _ => return false,
        }
        true
    }

    /// After an instruction where decoding stopped: the region has no way on, but needs no dispatcher either.
    fn go_behind(&mut self, i: &Insn) {
        self.busy = 0;
        self.pins |= self.state.flags.pins(&self.exprs);
        let w = if self.code64 { W::Q } else { W::D };
        let next = self.next_rip_value(i, w);
        self.jump_to(next, w);
    }

    // ---- blocks

    /// All of the region.
    pub fn region(&mut self) {
        let region = self.job.region;
        let starts: Vec<Label> = region.blocks.iter().map(|_| self.labels.make()).collect();
        self.attention();
        self.count(true);
        if region.tree {
            self.chain(0, 0, &starts);
            // The last put off comes first: what it knows of expressions is a part of what is known now.
            while let Some(pending) = self.pending.pop() {
                let paid = self.take_up(&pending);
                self.chain(pending.block, paid, &starts);
            }
        } else {
            let mut n = 0;
            while n < region.blocks.len() {
                n = self.chain(n, 0, &starts);
            }
        }
    }

    /// Makes the state that of a side chain's beginning; returns what has been charged for it.
    fn take_up(&mut self, pending: &Pending) -> i32 {
        for k in self.exprs.computed.drain(pending.computed..) {
            self.exprs.nodes[usize::from(k)].host = None;
        }
        self.state = pending.state.clone();
        (self.pins, self.busy, self.written) = (pending.pins, 0, 0);
        (self.flags_known, self.host_flags) = (false, pending.host_flags);
        self.asm.clobbered = pending.clobbered;
        pending.refund
    }

    /// A run of blocks of which each falls into the next; returns the number of the block behind them.
    fn chain(&mut self, first: usize, paid: i32, starts: &[Label]) -> usize {
        let region = self.job.region;
        let mut n = first;
        loop {
            let block = &region.blocks[n];
            (self.block, self.number, self.delta) = (n, 0, block.delta);
            if self.segments[n] {
                if n == 0 || !region.tree {
                    self.state = State::new(FlagState::UNKNOWN, region.top);
                    self.flags_known = false;
                }
                if n == 0 {
                    self.asm.bind(self.before_head);
                    self.head = self.prepare_head();
                }
                self.asm.bind(starts[n]);
            }
            self.instruction_ends();
            if self.segments[n] {
                self.charge(self.charges[n], paid, block.delta);
            }
            let flows = self.instructions(starts);
            n += 1;
            if self.failed.is_some() {
                return region.blocks.len();
            }
            if !flows || n == region.blocks.len() {
                return n;
            }
            if self.segments[n] {
                self.write_all();
                return n;
            }
        }
    }

    /// The running block's instructions; returns whether code flows into the next block.
    fn instructions(&mut self, starts: &[Label]) -> bool {
        let block = &self.job.region.blocks[self.block];
        let Some(last) = block.insns.len().checked_sub(1) else {
            self.fail("an empty block");
            return false;
        };
        let mut handled = 0;
        for (number, i) in block.insns.iter().enumerate() {
            self.number = number;
            self.leave = Leave::No;
            let helper = self.facts().helper;
            let control = matches!(
                i.kernel,
                Kernel::Jmp
                    | Kernel::Jcc
                    | Kernel::Call
                    | Kernel::Loop
                    | Kernel::Jrcxz
                    | Kernel::Ret
                    | Kernel::JmpIndirect
                    | Kernel::CallIndirect
            );
            if number == last && (block.end == End::Dispatcher || helper && control) {
                if self.native(i) {
                    self.go_behind(i);
                } else {
                    self.run_last(i);
                }
                return false;
            }
            if number < handled {
                // With the one before.
            } else if helper {
                // The last one may be the dispatcher's.
                let ahead = &self.facts[self.first_of_block[self.block]..][number + 1..last.max(number + 1)];
                handled = number + 1 + ahead.iter().take_while(|f| f.helper).count();
                self.helpers(i, handled - number);
            } else if !self.native(i) {
                let Ok(_) = perform(i.kernel, self, i);
            }
            self.follow(i);
            if number == last {
                break;
            }
            self.delta += i64::from(i.len);
            self.instruction_ends();
            if self.failed.is_some() {
                return false;
            }
        }
        // The state between this block and the next: the branch's own needs are still held.
        self.pins |= self.state.flags.pins(&self.exprs);
        let next = self.block + 1;
        match (block.end, self.leave) {
            (End::Goto(target), Leave::No | Leave::Jump) => {
                self.go(target, next, starts);
                target == Target::Block(next)
            }
            (End::Branch { taken, not_taken }, Leave::Branch(bit)) => {
                self.branch(bit, taken, not_taken, starts);
                taken == Target::Block(next) || not_taken == Target::Block(next)
            }
            (End::Indirect, Leave::To(target)) => {
                self.jump_to(target, self.insn().width());
                false
            }
            _ => {
                self.fail("a block that ends otherwise than its last instruction");
                false
            }
        }
    }

    /// What stands once at the end, as far as it is wanted; `keep` has its final address.
    pub fn common_code(&mut self, keep: &Keep) {
        let (c, r) = (self.common, self.job.runtime);
        let kept = match (self.uses_vectors, self.ymm) {
            (false, _) => 0,
            (true, false) => miss::WITH_XMM,
            (true, true) => miss::WITH_YMM,
        };
        if self.binds(c.miss) {
            let a = &mut self.cold;
            a.store(W::Q, field(miss::NUMBER), RAX);
            a.mov_imm(RAX, std::ptr::from_ref(keep) as u64);
            a.store(W::Q, field(miss::KEEP), RAX);
            a.jmp_far((r.miss + kept) as u64);
        }
        if self.binds(c.settle) {
            self.cold.jmp_far((r.settle_keeping + kept) as u64);
        }
        if self.binds(c.arm) {
            self.cold.jmp_far((r.arm_keeping + kept) as u64);
        }
        // RDI stays; RSI becomes the budget, the sign flag that of the result.
        if self.binds(c.helper) {
            let a = &mut self.cold;
            a.push(super::encode::RDI);
            a.push(super::encode::RDI);
            a.mov_imm(RAX, r.run_helpers as u64);
            a.call_reg(RAX);
            a.pop(super::encode::RDI);
            a.pop(super::encode::RDI);
            a.mov(W::Q, RSI, RAX);
            a.test(W::Q, RAX, RAX);
            a.ret();
        }
        if self.binds(c.done) {
            self.cold.mov_imm(RAX, abi::DONE);
            self.cold.ret();
        }
        if self.binds(c.missing) {
            self.cold.mov_imm(RDX, abi::LOOKUP);
            self.cold.jmp(c.unlinked);
        }
        if self.binds(c.unlinked) {
            self.cold.jmp_far(r.unlinked as u64);
        }
        for (label, word) in [(c.stop, abi::STOP), (c.lookup, abi::LOOKUP)] {
            if self.binds(label) {
                self.cold.store(W::Q, field(offset::BUDGET), RSI);
                self.cold.mov_imm(RAX, word);
                self.cold.ret();
            }
        }
    }

    /// Binds a label of the common code if something goes there.
    fn binds(&mut self, label: Label) -> bool {
        let used = self.asm.uses(label) || self.cold.uses(label);
        if used {
            self.cold.bind(label);
        }
        used
    }
}
