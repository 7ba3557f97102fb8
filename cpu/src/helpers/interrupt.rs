//! Delivery of interrupts and exceptions (SDM Vol. 3, "Interrupt and Exception Handling"; Vol. 2, "INT n").

use super::call_far::{check_offset, inner_stack, set_code};
use super::segment::{Descriptor, error_of, kind};
use super::stack::Stack;
use super::tasking::Reason;
use crate::Vcpu;
use crate::fault::{Exit, Fault, vector};
use crate::insn::Insn;
use crate::state::{Activity, RFlags, Segment, attr, cr4, gpr, seg};

/// Where an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// External interrupt or NMI.
    External,
    /// An exception, with or without an error code.
    Exception(Option<u16>),
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
}

/// INT n.
pub fn int(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let vector = i.imm as u8;
    if v.state.v86() {
        if let Some(done) = redirect_v86(v, vector)? {
            return done;
        }
        if v.state.iopl() < 3 {
            return Err(v.protection());
        }
    }
    software(v, vector)
}

/// INT3.
pub fn int3(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    software(v, vector::BP)
}

/// INTO: INT 4 if OF.
pub fn into(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    if v.lazy.of { software(v, vector::OF) } else { Ok(()) }
}

/// INT1 (ICEBP): #DB without the privilege check of the gate. Data breakpoints that MOV SS held back come with it; DR6
/// tells of no single step.
pub fn int1(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.enter_handler(vector::DB, Source::Exception(None), v.rflags())?;
    let held = std::mem::take(&mut v.state.pending_debug) & 0xF;
    if held != 0 {
        v.state.dr[6] = v.state.dr[6] & !0xF | held;
    }
    v.counters.interrupts += 1;
    Err(Exit::Leave)
}

fn software(v: &mut Vcpu, vector: u8) -> Result<(), Exit> {
    let flags = v.rflags();
    v.enter_handler(vector, Source::Software, flags)?;
    v.counters.interrupts += 1;
    Err(Exit::Leave)
}

/// VME: INT n in virtual-8086 mode goes to the task's own handler if the redirection bit map says so.
fn redirect_v86(v: &mut Vcpu, vector: u8) -> Result<Option<Result<(), Exit>>, Exit> {
    if v.state.cr4 & cr4::VME == 0 {
        return Ok(None);
    }
    let tr = v.state.tr;
    let map = v.load_system(tr.base.wrapping_add(102), 2)?;
    let at = map.wrapping_sub(32).wrapping_add(u64::from(vector / 8));
    if at > u64::from(tr.limit) {
        return Err(v.protection());
    }
    if v.load_system(tr.base.wrapping_add(at), 1)? >> (vector % 8) & 1 != 0 {
        return Ok(None);
    }
    let mut image = v.rflags();
    if v.state.iopl() < 3 {
        image |= RFlags::IOPL;
        image.set(RFlags::IF, image.contains(RFlags::VIF));
    }
    let entry = v.load_sized(seg::FLAT as u8, u64::from(vector) * 4, 4)?;
    let mut stack = Stack::current(v);
    let (cs, ip) = (v.state.seg[seg::CS].selector, v.state.gpr[gpr::RIP]);
    stack.push(v, 2, image.bits())?;
    stack.push(v, 2, u64::from(cs))?;
    stack.push(v, 2, ip)?;
    stack.commit(v);
    let mut code = v.state.seg[seg::CS];
    code.selector = (entry >> 16) as u16;
    code.base = entry >> 16 << 4;
    v.set_segment(seg::CS, code);
    v.state.gpr[gpr::RIP] = entry & 0xFFFF;
    let clear = if v.state.iopl() < 3 { RFlags::VIF } else { RFlags::IF };
    let flags = v.rflags() - clear - RFlags::TF;
    v.set_rflags(flags);
    Ok(Some(Err(Exit::Leave)))
}

/// Exceptions whose pairing gives a double fault.
fn contributory(vector: u8) -> bool {
    matches!(vector, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
}

impl Vcpu {
    /// Delivers the fault in `self.fault`, at the instruction that raised it.
    pub(crate) fn deliver_fault(&mut self) {
        // Faults (not traps) show RF in the pushed flags.
        let rf = if self.fault.vector == vector::DF { RFlags::empty() } else { RFlags::RF };
        self.deliver_exception(rf);
    }

    /// Delivers the trap in `self.fault` (#DB after an instruction).
    pub(crate) fn deliver_trap(&mut self) {
        self.deliver_exception(RFlags::empty());
    }

    fn deliver_exception(&mut self, rf: RFlags) {
        self.stop_block = true;
        self.counters.exceptions += 1;
        // Not a retired instruction, but a handler that faults at once must not keep `run` for ever.
        self.budget -= 1;
        let mut fault = self.fault;
        self.log_vector(fault.vector);
        loop {
            self.note_fault(&fault);
            let flags = self.rflags() | rf;
            let Err(_) = self.enter_handler(fault.vector, Source::Exception(fault.error), flags) else {
                self.state.activity = Activity::Running;
                return;
            };
            let second = self.fault;
            if fault.vector == vector::DF {
                tracing::info!(target: "cpu", cpu = self.id, rip = self.state.rip(), "triple fault");
                self.state.activity = Activity::Shutdown;
                return;
            }
            let page = fault.vector == vector::PF;
            let double = contributory(second.vector) && (page || contributory(fault.vector))
                || page && second.vector == vector::PF;
            if double {
                self.note_fault(&second);
                fault = Fault { vector: vector::DF, error: Some(0), address: 0, dr6: 0 };
            } else {
                fault = second;
            }
        }
    }

    /// CR2 and DR6 of a fault.
    fn note_fault(&mut self, fault: &Fault) {
        tracing::trace!(target: "cpu", cpu = self.id, ?fault, rip = self.state.rip(), "exception");
        if fault.vector == vector::PF {
            self.state.cr2 = fault.address;
        }
        if fault.vector == vector::DB {
            self.state.dr[6] = self.state.dr[6] & !0xF | fault.dr6;
            // DR7.GD is cleared on entry.
            self.state.dr[7] &= !(1 << 13);
        }
    }

    /// Delivers an external interrupt or NMI at an instruction boundary.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) {
        self.stop_block = true;
        self.counters.interrupts += 1;
        self.log_vector(vector);
        let flags = self.rflags();
        if self.enter_handler(vector, Source::External, flags).is_err() {
            self.deliver_exception(RFlags::empty());
        }
    }

    /// Enters the handler of a vector. On an error nothing has changed but `self.fault`.
    pub(crate) fn enter_handler(&mut self, vector: u8, source: Source, flags: RFlags) -> Result<(), Exit> {
        let result = if !self.state.protected() {
            self.enter_real(vector, flags)
        } else if self.state.long_mode() {
            self.enter_long(vector, source, flags)
        } else {
            self.enter_protected(vector, source, flags)
        };
        if result.is_err() && source != Source::Software {
            // EXT: the event was not a software interrupt.
            let coded = matches!(self.fault.vector, vector::TS | vector::NP | vector::SS | vector::GP);
            if let (true, Some(error)) = (coded, &mut self.fault.error) {
                *error |= 1;
            }
        }
        result
    }

    fn enter_real(&mut self, vector: u8, flags: RFlags) -> Result<(), Exit> {
        let idt = self.state.idtr;
        if u32::from(vector) * 4 + 3 > u32::from(idt.limit) {
            // Error codes are not pushed in real mode.
            return Err(self.raise(vector::GP));
        }
        let entry = self.load_system(idt.base.wrapping_add(u64::from(vector) * 4), 4)?;
        let (cs, ip) = (self.state.seg[seg::CS].selector, self.state.gpr[gpr::RIP]);
        let mut stack = Stack::current(self);
        stack.push(self, 2, flags.bits())?;
        stack.push(self, 2, u64::from(cs))?;
        stack.push(self, 2, ip)?;
        stack.commit(self);
        let mut code = self.state.seg[seg::CS];
        code.selector = (entry >> 16) as u16;
        code.base = entry >> 16 << 4;
        self.set_segment(seg::CS, code);
        self.state.gpr[gpr::RIP] = entry & 0xFFFF;
        let flags = self.rflags() - RFlags::IF - RFlags::TF - RFlags::AC - RFlags::RF;
        self.set_rflags(flags);
        Ok(())
    }

    /// Error code of an IDT entry: vector * 8 + IDT.
    fn gate_fault(&mut self, raise: u8, vector: u8) -> Exit {
        self.raise_code(raise, u16::from(vector) * 8 + 2)
    }

    fn gate(&mut self, vector: u8, source: Source, size: u64) -> Result<Descriptor, Exit> {
        let idt = self.state.idtr;
        let offset = u64::from(vector) * size;
        if offset + size - 1 > u64::from(idt.limit) {
            return Err(self.gate_fault(vector::GP, vector));
        }
        let address = idt.base.wrapping_add(offset);
        let raw = self.load_system(address, 8)?;
        let gate = Descriptor { raw, address };
        let known = !gate.is_segment()
            && if size == 16 {
                matches!(gate.typ(), 14 | 15)
            } else {
                matches!(gate.typ(), kind::TASK_GATE | 6 | 7 | 14 | 15)
            };
        if !known || source == Source::Software && gate.dpl() < self.state.cpl {
            return Err(self.gate_fault(vector::GP, vector));
        }
        if !gate.has(attr::P) {
            return Err(self.gate_fault(vector::NP, vector));
        }
        Ok(gate)
    }

    /// The handler's code segment, checked.
    fn handler_segment(&mut self, gate: &Descriptor, long: bool) -> Result<(Segment, Descriptor), Exit> {
        let selector = gate.gate_selector();
        let error = error_of(selector);
        if error == 0 {
            return Err(self.protection());
        }
        let d = self.descriptor(selector, vector::GP)?;
        let bits_ok = !long || d.has(attr::L) && !d.has(attr::DB);
        if !d.is_code() || d.dpl() > self.state.cpl || !bits_ok {
            return Err(self.raise_code(vector::GP, error));
        }
        if !d.has(attr::P) {
            return Err(self.raise_code(vector::NP, error));
        }
        let mut segment = d.segment(selector);
        segment.attributes |= attr::A;
        Ok((segment, d))
    }

    fn enter_protected(&mut self, vector: u8, source: Source, flags: RFlags) -> Result<(), Exit> {
        let gate = self.gate(vector, source, 8)?;
        let error = if let Source::Exception(error) = source { error } else { None };
        if gate.typ() == kind::TASK_GATE {
            let selector = gate.gate_selector();
            return match source {
                Source::Software => self.switch_task_by_instruction(selector, Reason::Interrupt),
                _ => self.switch_task(selector, Reason::Interrupt, error),
            };
        }
        let wide = gate.typ() & 8 != 0;
        let size = if wide { 4 } else { 2 };
        let offset = gate.gate_offset() & if wide { 0xFFFF_FFFF } else { 0xFFFF };
        let (segment, d) = self.handler_segment(&gate, false)?;
        let v86 = self.state.v86();
        let inner = !d.conforming() && d.dpl() < self.state.cpl;
        if v86 && (!inner || d.dpl() != 0) {
            return Err(self.raise_code(vector::GP, error_of(gate.gate_selector())));
        }
        let new_cpl = if inner { d.dpl() } else { self.state.cpl };
        let s = &self.state;
        let old_sp = s.gpr[gpr::RSP];
        let [es, _, ss, ds, fs, gs] = std::array::from_fn(|n| u64::from(s.seg[n].selector));
        let mut stack = if inner { inner_stack(self, new_cpl, None)? } else { Stack::current(self) };
        if v86 {
            for selector in [gs, fs, ds, es] {
                stack.push(self, size, selector)?;
            }
        }
        if inner {
            stack.push(self, size, ss)?;
            stack.push(self, size, old_sp)?;
        }
        self.push_frame(&mut stack, size, flags, error)?;
        check_offset(self, &segment, offset)?;
        self.mark_accessed(&d)?;
        // Everything is checked.
        let mut new = self.rflags() - RFlags::TF - RFlags::NT - RFlags::VM - RFlags::RF;
        if gate.typ() & 1 == 0 {
            new.remove(RFlags::IF);
        }
        self.set_rflags(new);
        set_code(self, segment, new_cpl, offset);
        if v86 {
            for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
                self.set_segment(n, Segment::null(0));
            }
        }
        if inner {
            self.set_segment(seg::SS, stack.segment);
        }
        stack.commit(self);
        Ok(())
    }

    fn push_frame(
        &mut self,
        stack: &mut Stack,
        size: u8,
        flags: RFlags,
        error: Option<u16>,
    ) -> Result<(), Exit> {
        let (cs, rip) = (u64::from(self.state.seg[seg::CS].selector), self.return_address());
        stack.push(self, size, flags.bits())?;
        stack.push(self, size, cs)?;
        stack.push(self, size, rip)?;
        if let Some(error) = error {
            stack.push(self, size, u64::from(error))?;
        }
        Ok(())
    }

    fn enter_long(&mut self, vector: u8, source: Source, flags: RFlags) -> Result<(), Exit> {
        let gate = self.gate(vector, source, 16)?;
        let high = self.load_system(gate.address.wrapping_add(8), 8)?;
        let offset = gate.gate_offset() | high << 32;
        let (segment, d) = self.handler_segment(&gate, true)?;
        let inner = !d.conforming() && d.dpl() < self.state.cpl;
        let new_cpl = if inner { d.dpl() } else { self.state.cpl };
        let ist = (gate.raw >> 32 & 7) as u8;
        let old_ss = u64::from(self.state.seg[seg::SS].selector);
        let old_sp = self.state.gpr[gpr::RSP];
        let mut stack = match ist {
            0 if !inner => {
                let mut stack = Stack::current(self);
                (stack.long, stack.mask, stack.sp) = (true, !0, old_sp);
                stack
            }
            0 => inner_stack(self, new_cpl, None)?,
            n => inner_stack(self, new_cpl, Some(n))?,
        };
        stack.user = new_cpl == 3;
        stack.sp &= !15;
        let error = if let Source::Exception(error) = source { error } else { None };
        stack.push(self, 8, old_ss)?;
        stack.push(self, 8, old_sp)?;
        self.push_frame(&mut stack, 8, flags, error)?;
        check_offset(self, &segment, offset)?;
        self.mark_accessed(&d)?;
        let mut new = self.rflags() - RFlags::TF - RFlags::NT - RFlags::RF;
        if gate.typ() & 1 == 0 {
            new.remove(RFlags::IF);
        }
        self.set_rflags(new);
        set_code(self, segment, new_cpl, offset);
        if inner {
            self.set_segment(seg::SS, stack.segment);
        }
        self.state.gpr[gpr::RSP] = stack.sp;
        Ok(())
    }

    /// INIT: as reset, but MSRs, caches, x87 and vectors stay (SDM Vol. 3, "Processor State After Reset").
    pub(crate) fn init(&mut self) {
        use crate::state::{CpuState, cr0};
        let fresh = CpuState::reset(self.model.signature, self.id == 0);
        let old = std::mem::replace(&mut self.state, fresh);
        let s = &mut self.state;
        s.x87 = old.x87;
        s.mxcsr = old.mxcsr;
        s.zmm = old.zmm;
        s.k = old.k;
        s.xcr0 = old.xcr0;
        s.pkru = old.pkru;
        s.retired = old.retired;
        let efer = 0;
        s.msr = old.msr;
        s.msr.efer = efer;
        s.cr0 = cr0::ET | old.cr0 & (cr0::CD | cr0::NW);
        self.state_loaded();
        self.stop_block = true;
    }

    /// A start-up IPI: real mode at vector * 4096.
    pub(crate) fn start_up(&mut self, vector: u8) {
        let mut cs = self.state.seg[seg::CS];
        cs.selector = u16::from(vector) << 8;
        cs.base = u64::from(vector) << 12;
        self.set_segment(seg::CS, cs);
        self.state.gpr[gpr::RIP] = 0;
        self.state.activity = Activity::Running;
    }
}
