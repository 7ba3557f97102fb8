//! From a region to a CLIF function.
//!
//! Guest registers are variables of the frontend, loaded at the entry and after helpers, written back on the ways
//! out. *Cold* blocks hold those ways out. The ends of all of them are three *tails*, so that a way out is
//! little more than the write-back. Invariants:
//!
//! - At a way out in the middle of an instruction the variables are as before it, because kernels commit last.
//! - `dirty` covers every register whose variable may differ from memory.
//! - A block's instructions are charged on the edge that leads to it: if the budget does not allow them, that
//!   edge's cold block still has the flags as values.

use super::flags::{FlagState, Node};
use super::memory::KnownPage;
use super::plan::{BlockPlan, Plan, transfers};
use super::values::{Bit, Val};
use super::vectors::VECTORS;
use crate::abi::{self, Job, Untranslatable};
use crate::region::{End, Target};
use crate::slots::Slot;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, Block, Endianness, InstBuilder, MemFlagsData, SigRef, Signature, SourceLoc, Type,
};
use cranelift_codegen::ir::{Value, types};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::{FunctionBuilder, Variable};
use rustc_hash::FxHashMap;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::kernels::perform;
use trimaran_cpu::state::gpr;
use trimaran_cpu::translate::offset;

/// Signatures of what the code calls.
pub struct Signatures {
    tail: SigRef,
    pub run_helper: SigRef,
    pub run_last: SigRef,
    pub preserving1: SigRef,
    pub preserving3: SigRef,
}

/// Where the last instruction of a block goes.
#[derive(Clone, Copy)]
pub enum Transfer {
    Jump,
    Branch(Bit),
    To(W, Val),
}

/// The common ends of ways out.
pub struct Tails {
    /// (budget, distance of RIP, word): STOP and LOOKUP.
    leave: Block,
    /// (budget, distance of RIP, instruction).
    interpret: Block,
    pub done: Block,
}

/// See the head of this file.
pub struct Writer<'a, 'f> {
    pub b: FunctionBuilder<'f>,
    pub job: &'a Job<'a>,
    pub sigs: Signatures,
    pub vcpu: Value,
    pub big_endian: bool,
    /// The host orders memory less strictly than x86: plain accesses must be acquire and release.
    pub weak_order: bool,
    plan: &'a Plan,
    pub budget: Variable,
    /// General registers, then vector registers.
    pub regs: [Option<Variable>; 32],
    /// Values that registers are known to hold at some width.
    pub shadow: [Option<(W, Val)>; 16],
    /// Bits as `regs`.
    pub dirty: u32,
    pub state: FlagState,
    pub nodes: Vec<Node>,
    /// No declaration is pending in memory.
    pub settled: bool,
    /// Flags that may be seen after the running instruction.
    pub live: u8,
    heads: Vec<Block>,
    /// Flags at the end of a block, for the one that continues it.
    ends: Vec<(FlagState, bool)>,
    pub tails: Tails,
    /// The running instruction: its distance and the next one's from the entry, and how many are charged and not done.
    pub insn: &'a Insn,
    pub delta: i64,
    pub next: i64,
    pub rest: i64,
    pub transfer: Option<Transfer>,
    /// Pages looked up in this block.
    pub pages: Vec<KnownPage>,
    /// Values that are another value and a constant.
    pub origins: FxHashMap<Value, (Value, i64)>,
}

fn signature(conv: CallConv, params: usize, returns: usize) -> Signature {
    let mut s = Signature::new(conv);
    s.params = vec![AbiParam::new(types::I64); params];
    s.returns = vec![AbiParam::new(types::I64); returns];
    s
}

/// x86 and z/Architecture keep loads in order, and stores.
fn weak_order(isa: &dyn TargetIsa) -> bool {
    !matches!(isa.name(), "x64" | "s390x")
}

/// The signature of translated code.
pub fn entry_signature() -> Signature {
    signature(CallConv::Tail, 3, 1)
}

/// Writes the whole function.
pub fn write(
    mut b: FunctionBuilder,
    isa: &dyn TargetIsa,
    job: &Job,
    plan: &Plan,
) -> Result<(), Untranslatable> {
    let conv = isa.default_call_conv();
    let sigs = Signatures {
        tail: b.import_signature(entry_signature()),
        run_helper: b.import_signature(signature(conv, 5, 1)),
        run_last: b.import_signature(signature(conv, 5, 0)),
        preserving1: b.import_signature(signature(CallConv::PreserveAll, 1, 0)),
        preserving3: b.import_signature(signature(CallConv::PreserveAll, 3, 0)),
    };
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let (vcpu, start) = (b.block_params(entry)[0], b.block_params(entry)[1]);
    let budget = b.declare_var(types::I64);
    b.def_var(budget, start);
    let mut cold = |params: usize| {
        let block = b.create_block();
        b.set_cold_block(block);
        for _ in 0..params {
            b.append_block_param(block, types::I64);
        }
        block
    };
    let tails = Tails { leave: cold(3), interpret: cold(3), done: cold(0) };
    let heads = job.region.blocks.iter().map(|_| b.create_block()).collect();
    let first = job.region.blocks.first().and_then(|b| b.insns.first());
    let mut w = Writer {
        b,
        job,
        sigs,
        vcpu,
        big_endian: isa.endianness() == Endianness::Big,
        weak_order: weak_order(isa),
        plan,
        budget,
        regs: [None; 32],
        shadow: [None; 16],
        dirty: 0,
        state: FlagState::IN_MEMORY,
        nodes: vec![Node::Memory],
        settled: false,
        live: 0,
        heads,
        ends: vec![(FlagState::IN_MEMORY, false); plan.blocks.len()],
        tails,
        insn: first.ok_or_else(|| Untranslatable("a block without instructions".into()))?,
        delta: 0,
        next: 0,
        rest: 0,
        transfer: None,
        pages: Vec::new(),
        origins: FxHashMap::default(),
    };
    w.entry();
    for n in 0..plan.blocks.len() {
        if plan.blocks[n].reachable {
            w.block(n)?;
        }
    }
    w.tails();
    w.b.seal_all_blocks();
    w.b.finalize(isa.frontend_config());
    Ok(())
}

impl Writer<'_, '_> {
    // ---- the vCPU's fields

    pub fn load_vcpu(&mut self, ty: Type, at: usize) -> Value {
        self.b.ins().load(ty, MemFlagsData::trusted(), self.vcpu, at as i32)
    }
    pub fn store_vcpu(&mut self, w: W, value: Val, at: usize) {
        let v = self.value(w, value);
        self.b.ins().store(MemFlagsData::trusted(), v, self.vcpu, at as i32);
    }

    // ---- registers

    pub fn register(&mut self, w: W, register: u8) -> Val {
        let n = usize::from(register & 15);
        let whole = |s: &mut Self| {
            let var = s.regs[n];
            Val::Value(match var {
                Some(var) => s.b.use_var(var),
                // The plan knows all registers of native instructions.
                None => s.load_vcpu(types::I64, offset::gpr(n)),
            })
        };
        let high = register >> 4 != 0;
        match self.shadow[n] {
            Some((from, v)) if from == w && !high => return v,
            Some((from, v)) if from > w && !high => return self.truncated(from, w, v),
            Some((W::Q, v @ Val::Const(_))) => {
                let byte = self.shifted(trimaran_cpu::ops::Shift::Right, W::Q, v, Val::Const(8));
                return self.truncated(W::Q, w, byte);
            }
            _ => {}
        }
        let v = whole(self);
        if high {
            let shifted = self.shifted(trimaran_cpu::ops::Shift::Right, W::Q, v, Val::Const(8));
            return self.truncated(W::Q, W::B, shifted);
        }
        let narrow = self.truncated(W::Q, w, v);
        if self.shadow[n].is_none() {
            self.shadow[n] = Some((w, narrow));
        }
        narrow
    }

    pub fn set_register(&mut self, w: W, register: u8, value: Val) {
        use trimaran_cpu::ops::{Bin, Shift};
        let n = usize::from(register & 15);
        let (whole, shadow) = match w {
            W::Q | W::D => (self.extended(w, W::Q, value, false), Some((w, value))),
            W::B | W::W => {
                let shift = u64::from(register >> 4) * 8;
                let old = self.register(W::Q, register & 15);
                let kept = self.binary(Bin::And, W::Q, old, Val::Const(!(w.mask() << shift)));
                let wide = self.extended(w, W::Q, value, false);
                let placed = self.shifted(Shift::Left, W::Q, wide, Val::Const(shift));
                (self.binary(Bin::Or, W::Q, kept, placed), (shift == 0).then_some((w, value)))
            }
        };
        let v = self.value(W::Q, whole);
        if let Some(var) = self.regs[n] {
            self.b.def_var(var, v);
        }
        self.shadow[n] = match whole {
            Val::Const(_) => Some((W::Q, whole)),
            // Now that it is loaded.
            Val::Rip(_) => Some((W::Q, Val::Value(v))),
            _ => shadow,
        };
        self.dirty |= 1 << n;
    }

    pub fn write_registers(&mut self) {
        for n in 0..self.regs.len() {
            if self.dirty >> n & 1 != 0
                && let Some(var) = self.regs[n]
            {
                let v = self.b.use_var(var);
                match n.checked_sub(VECTORS) {
                    Some(n) => self.store_vector(n, v),
                    None => self.store_vcpu(W::Q, Val::Value(v), offset::gpr(n)),
                }
            }
        }
    }

    /// A general or vector register, by its number in `regs`.
    pub fn load_register(&mut self, n: usize) {
        if let Some(var) = self.regs[n] {
            let v = match n.checked_sub(VECTORS) {
                Some(n) => self.load_vector(n),
                None => self.load_vcpu(types::I64, offset::gpr(n)),
            };
            self.b.def_var(var, v);
        }
    }

    pub fn load_registers(&mut self) {
        for n in 0..self.regs.len() {
            self.load_register(n);
        }
        self.shadow = [None; 16];
        self.pages.clear();
        self.dirty = 0;
    }

    // ---- cold blocks

    /// Goes to a cold block if `bad` is not 0. `f` writes it, up to its terminator; it may jump to the block it gets,
    /// where the code goes on.
    pub fn guard(&mut self, bad: Value, f: impl FnOnce(&mut Self, Block)) {
        let (cold, go_on) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(cold);
        self.b.ins().brif(bad, cold, &[], go_on, &[]);
        self.b.seal_block(cold);
        self.b.switch_to_block(cold);
        let (state, settled, dirty, shadow) = (self.state, self.settled, self.dirty, self.shadow);
        f(self, go_on);
        (self.state, self.settled, self.dirty, self.shadow) = (state, settled, dirty, shadow);
        self.b.seal_block(go_on);
        self.b.switch_to_block(go_on);
    }

    /// Leaves for the interpreter, which runs this instruction from its start. Ends a cold block.
    pub fn leave_to_interpreter(&mut self) {
        self.write_registers();
        self.write_flags();
        let budget = self.b.use_var(self.budget);
        let budget = self.b.ins().iadd_imm_s(budget, self.rest);
        let delta = self.constant(types::I64, self.delta as u64);
        let insn = self.constant(types::I64, std::ptr::from_ref(self.insn) as u64);
        self.b.ins().jump(self.tails.interpret, &[budget.into(), delta.into(), insn.into()]);
    }

    /// Leaves at a distance from the entry, with a budget. Ends a cold block.
    fn leave(&mut self, budget: Value, delta: i64, word: u64) {
        self.write_registers();
        self.write_flags();
        let (delta, word) = (self.constant(types::I64, delta as u64), self.constant(types::I64, word));
        self.b.ins().jump(self.tails.leave, &[budget.into(), delta.into(), word.into()]);
    }

    fn tails(&mut self) {
        let Tails { leave, interpret, done } = self.tails;
        self.b.set_srcloc(SourceLoc::default());
        for (block, interpreted) in [(leave, false), (interpret, true)] {
            self.b.switch_to_block(block);
            let params: Vec<Value> = self.b.block_params(block).to_vec();
            let rip = self.load_vcpu(types::I64, offset::gpr(gpr::RIP));
            let rip = self.b.ins().iadd(rip, params[1]);
            self.store_rip(rip);
            self.store_vcpu(W::Q, Val::Value(params[0]), offset::BUDGET);
            let word = if interpreted {
                self.store_vcpu(W::Q, Val::Value(params[2]), offset::SCRATCH);
                self.constant(types::I64, abi::INTERPRET)
            } else {
                params[2]
            };
            self.b.ins().return_(&[word]);
        }
        self.b.switch_to_block(done);
        let word = self.constant(types::I64, abi::DONE);
        self.b.ins().return_(&[word]);
    }

    /// Outside 64-bit mode RIP has 32 bits.
    fn cut_rip(&mut self, rip: Value) -> Value {
        if self.job.region.key.code64() { rip } else { self.b.ins().band_imm_u(rip, 0xFFFF_FFFF) }
    }
    fn store_rip(&mut self, rip: Value) {
        let rip = self.cut_rip(rip);
        self.store_vcpu(W::Q, Val::Value(rip), offset::gpr(gpr::RIP));
    }
    /// RIP at a distance from the entry.
    fn rip_at(&mut self, delta: i64) -> Value {
        let rip = self.value(W::Q, Val::Rip(delta));
        self.cut_rip(rip)
    }

    // ---- the course of the function

    fn entry(&mut self) {
        self.check_counter(abi::HOT, 0);
        // The variables are loaded after the checks, which need none.
        let bad = self.charge(0, true);
        let start = self.b.use_var(self.budget);
        self.guard(bad.1, |w, _| w.leave(start, 0, abi::STOP));
        self.b.def_var(self.budget, bad.0);
        for n in 0..self.regs.len() {
            if self.plan.used >> n & 1 != 0 {
                let ty = if n < VECTORS { types::I64 } else { types::I8X16 };
                self.regs[n] = Some(self.b.declare_var(ty));
            }
        }
        self.load_registers();
        let head = self.heads[0];
        self.b.ins().jump(head, &[]);
    }

    /// Takes the counter down; leaves where it reaches 0.
    fn check_counter(&mut self, word: u64, delta: i64) {
        let Some(counter) = self.job.counter else { return };
        let at = self.constant(types::I64, counter as u64);
        let n = self.b.ins().load(types::I32, MemFlagsData::trusted(), at, 0);
        let n = self.b.ins().iadd_imm_s(n, -1);
        self.b.ins().store(MemFlagsData::trusted(), n, at, 0);
        let out = self.b.ins().icmp_imm_s(IntCC::Equal, n, 0);
        self.guard(out, |w, _| {
            let budget = w.b.use_var(w.budget);
            w.leave(budget, delta, word);
        });
    }

    /// The budget after a block is charged, and whether to stop before it; `look`: at the attention word too.
    fn charge(&mut self, block: usize, look: bool) -> (Value, Value) {
        let budget = self.b.use_var(self.budget);
        let count = self.job.region.blocks[block].insns.len() as i64;
        let left = self.b.ins().iadd_imm_s(budget, -count);
        if !look {
            return (left, self.b.ins().icmp_imm_s(IntCC::SignedLessThan, left, 0));
        }
        let word = self.load_vcpu(types::I64, offset::ATTENTION);
        let word = self.b.ins().load(types::I32, MemFlagsData::trusted(), word, 0);
        let mask = self.load_vcpu(types::I32, offset::ATTENTION_MASK);
        let wanted = self.b.ins().band(word, mask);
        let wanted = self.b.ins().uextend(types::I64, wanted);
        let negative = self.b.ins().ushr_imm_u(left, 63);
        (left, self.b.ins().bor(wanted, negative))
    }

    fn block(&mut self, n: usize) -> Result<(), Untranslatable> {
        // Not through `self`: the instructions live as long as the job.
        let (region, BlockPlan { facts, only_from, dirty, .. }) = (self.job.region, &self.plan.blocks[n]);
        let block = &region.blocks[n];
        if block.insns.is_empty() {
            return Err(Untranslatable("a block without instructions".into()));
        }
        self.b.switch_to_block(self.heads[n]);
        if only_from.is_some() {
            self.b.seal_block(self.heads[n]);
        }
        (self.state, self.settled) = only_from.map_or((FlagState::IN_MEMORY, false), |from| self.ends[from]);
        self.shadow = [None; 16];
        self.pages.clear();
        self.dirty = *dirty;
        self.next = block.delta;
        self.transfer = None;
        for (k, (insn, facts)) in block.insns.iter().zip(facts).enumerate() {
            self.insn = insn;
            self.delta = self.next;
            self.next += i64::from(insn.len);
            self.rest = (block.insns.len() - k) as i64;
            self.live = facts.live;
            if self.job.knobs.explain {
                self.b.set_srcloc(super::explain::location(self.delta));
            }
            let last = k + 1 == block.insns.len();
            let leaves = last && (block.end == End::Dispatcher || transfers(insn.kernel) && !facts.native);
            if leaves {
                self.run_last();
                return Ok(());
            }
            if !facts.native {
                self.run_helper();
            } else if let Some(vector) = facts.vector {
                self.vector_instruction(insn, vector);
            } else if !perform(insn.kernel, self, insn)? {
                return Err(Untranslatable("a helper taken for a kernel".into()));
            }
        }
        self.ends[n] = (self.state, self.settled);
        self.end(n, block.end)
    }

    fn end(&mut self, n: usize, end: End) -> Result<(), Untranslatable> {
        match (end, self.transfer) {
            (End::Goto(t), None | Some(Transfer::Jump)) => self.edge(n, t),
            (End::Branch { taken, not_taken }, Some(Transfer::Branch(bit))) => {
                let c = self.bit_clif(bit);
                let (yes, no) = (self.b.create_block(), self.b.create_block());
                self.b.ins().brif(c, yes, &[], no, &[]);
                let kept = (self.state, self.settled, self.dirty, self.shadow);
                for (block, target) in [(yes, taken), (no, not_taken)] {
                    self.b.seal_block(block);
                    self.b.switch_to_block(block);
                    (self.state, self.settled, self.dirty, self.shadow) = kept;
                    self.edge(n, target);
                }
            }
            (End::Indirect, Some(Transfer::To(w, target))) => self.indirect(w, target),
            _ => return Err(Untranslatable(format!("a block ends with {end:?}"))),
        }
        Ok(())
    }

    /// The way from block `n` to a target.
    fn edge(&mut self, n: usize, target: Target) {
        match target {
            Target::Block(k) => {
                let back = k <= n;
                let delta = self.job.region.blocks[k].delta;
                if back {
                    self.check_counter(abi::LOOKUP, delta);
                }
                let before = self.b.use_var(self.budget);
                let (left, bad) = self.charge(k, back);
                self.guard(bad, |w, _| w.leave(before, delta, abi::STOP));
                self.b.def_var(self.budget, left);
                let next = &self.plan.blocks[k];
                if next.only_from.is_none() && next.needed != 0 {
                    self.write_flags();
                }
                let head = self.heads[k];
                self.b.ins().jump(head, &[]);
            }
            Target::Exit { slot, delta, far } => {
                self.write_registers();
                self.write_flags();
                let rip = self.rip_at(delta);
                let slot = self.constant(types::I64, (self.job.slots + slot * Slot::SIZE) as u64);
                let code = self.b.ins().load(types::I64, MemFlagsData::trusted(), slot, Slot::CODE as i32);
                if far {
                    let flags = MemFlagsData::trusted();
                    let mut wanted = rip;
                    if self.job.region.key.user() {
                        let salt = self.load_vcpu(types::I64, offset::SALT);
                        wanted = self.b.ins().bxor(salt, rip);
                    }
                    let [first, second] = [Slot::TAGS, Slot::TAGS + 8].map(|at| {
                        let tag = self.b.ins().load(types::I64, flags, slot, at as i32);
                        self.b.ins().icmp(IntCC::NotEqual, tag, wanted)
                    });
                    let other = self.b.ins().band(first, second);
                    self.guard(other, |w, _| {
                        // Nothing is linked to an address that is not canonical: looked at only here.
                        if w.insn.kernel != trimaran_cpu::kernels::Kernel::Call && w.transfer.is_some() {
                            w.check_canonical(rip);
                        }
                        w.store_vcpu(W::Q, Val::Value(rip), offset::gpr(gpr::RIP));
                        let stub = w.constant(types::I64, w.job.runtime.unlinked as u64);
                        w.tail_call(stub, slot);
                    });
                }
                self.store_vcpu(W::Q, Val::Value(rip), offset::gpr(gpr::RIP));
                self.tail_call(code, slot);
            }
        }
    }

    fn tail_call(&mut self, code: Value, slot: Value) {
        let budget = self.b.use_var(self.budget);
        self.b.ins().return_call_indirect(self.sigs.tail, code, &[self.vcpu, budget, slot]);
    }

    /// In 64-bit mode an address that is not canonical is the interpreter's.
    pub fn check_canonical(&mut self, address: Value) {
        if self.job.region.key.code64() {
            let up = self.b.ins().ishl_imm_u(address, 16);
            let sign = self.b.ins().sshr_imm_u(up, 16);
            let bad = self.b.ins().icmp(IntCC::NotEqual, sign, address);
            self.guard(bad, |w, _| w.leave_to_interpreter());
        }
    }

    /// Out through the table of indirect branches.
    fn indirect(&mut self, w: W, target: Val) {
        let target = self.extended(w, W::Q, target, false);
        let target = self.value(W::Q, target);
        let target = self.cut_rip(target);
        self.write_registers();
        self.write_flags();
        self.store_vcpu(W::Q, Val::Value(target), offset::gpr(gpr::RIP));
        // As `abi::jump_index`, times the size of an entry.
        let table = self.load_vcpu(types::I64, offset::JUMP_TABLE);
        let salt = self.load_vcpu(types::I64, offset::SALT);
        let wanted = self.b.ins().bxor(salt, target);
        let page = self.b.ins().ushr_imm_u(wanted, 12);
        let hash = self.b.ins().bxor(page, wanted);
        let index = self.b.ins().band_imm_u(hash, abi::JUMP_ENTRIES as i64 - 1);
        let bytes = self.b.ins().imul_imm_u(index, size_of::<abi::JumpEntry>() as i64);
        let entry = self.b.ins().iadd(table, bytes);
        let at = |field: usize| field as i32;
        let tag_at = at(std::mem::offset_of!(abi::JumpEntry, tag));
        let code_at = at(std::mem::offset_of!(abi::JumpEntry, code));
        let tag = self.b.ins().load(types::I64, MemFlagsData::trusted(), entry, tag_at);
        let other = self.b.ins().icmp(IntCC::NotEqual, tag, wanted);
        self.guard(other, |w, _| {
            let stub = w.constant(types::I64, w.job.runtime.unlinked as u64);
            let none = w.constant(types::I64, abi::LOOKUP);
            w.tail_call(stub, none);
        });
        let code = self.b.ins().load(types::I64, MemFlagsData::trusted(), entry, code_at);
        let none = self.constant(types::I64, 0);
        self.tail_call(code, none);
    }
}
