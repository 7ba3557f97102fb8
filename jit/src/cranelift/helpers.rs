//! Instructions that are the interpreter's: calls of helpers, always or only where something does not fit.

use super::flags::FlagState;
use super::writer::Writer;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

impl Writer<'_, '_> {
    fn helper_arguments(&mut self) -> [Value; 5] {
        self.write_registers();
        self.write_flags();
        let insn = self.constant(types::I64, std::ptr::from_ref(self.insn) as u64);
        let budget = self.b.use_var(self.budget);
        let rest = self.constant(types::I64, self.rest as u64);
        let delta = self.constant(types::I64, self.delta as u64);
        [self.vcpu, insn, budget, rest, delta]
    }

    /// Calls the helper; returns the new budget.
    fn call_helper(&mut self) -> Value {
        let arguments = self.helper_arguments();
        let callee = self.constant(types::I64, self.job.runtime.run_helper as u64);
        let call = self.b.ins().call_indirect(self.sigs.run_helper, callee, &arguments);
        let left = self.b.inst_results(call)[0];
        let bad = self.b.ins().icmp_imm_s(IntCC::SignedLessThan, left, 0);
        let go_on = self.b.create_block();
        self.b.ins().brif(bad, self.tails.done, &[], go_on, &[]);
        self.b.seal_block(go_on);
        self.b.switch_to_block(go_on);
        left
    }

    /// Does the instruction by `good`, or as a helper where `bad` is not 0. It writes one register, by its number in
    /// `regs`, and nothing else but memory that no register or flag is kept of.
    pub fn unless(&mut self, bad: Value, register: usize, good: impl FnOnce(&mut Self)) {
        let (cold, join) = (self.b.create_block(), self.b.create_block());
        let fine = self.b.create_block();
        self.b.set_cold_block(cold);
        self.b.ins().brif(bad, cold, &[], fine, &[]);
        self.b.seal_block(cold);
        self.b.seal_block(fine);
        self.b.switch_to_block(cold);
        let before = (self.state, self.settled, self.dirty, self.shadow);
        // The budget stays: one instruction was charged, and one is done.
        self.call_helper();
        self.b.set_cold_block(self.b.current_block().unwrap_or(cold));
        self.load_register(register);
        self.b.ins().jump(join, &[]);
        (self.state, self.settled, self.dirty, self.shadow) = before;
        self.b.switch_to_block(fine);
        good(self);
        self.b.ins().jump(join, &[]);
        self.b.seal_block(join);
        self.b.switch_to_block(join);
        if let Some(shadow) = self.shadow.get_mut(register) {
            *shadow = None;
        }
    }

    pub fn run_helper(&mut self) {
        let left = self.call_helper();
        self.b.def_var(self.budget, left);
        self.load_registers();
        // It settled what was pending.
        (self.state, self.settled) = (FlagState::IN_MEMORY, true);
    }

    pub fn run_last(&mut self) {
        let arguments = self.helper_arguments();
        let callee = self.constant(types::I64, self.job.runtime.run_last as u64);
        self.b.ins().call_indirect(self.sigs.run_last, callee, &arguments);
        self.b.ins().jump(self.tails.done, &[]);
    }
}
