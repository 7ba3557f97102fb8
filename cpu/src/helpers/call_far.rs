//! Far JMP and CALL: segments, call gates, task gates, TSSs (SDM Vol. 2, "CALL", "JMP").

use super::segment::{Descriptor, error_of, kind};
use super::stack::{Stack, stack_mask};
use super::tasking::Reason;
use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::Insn;
use crate::state::{Segment, attr, gpr, seg};

/// Far pointer operand: selector and offset.
fn target(v: &mut Vcpu, i: &Insn) -> Result<(u16, u64), Exit> {
    if !i.memory() {
        return Ok(((i.imm >> 32) as u16, i.imm & 0xFFFF_FFFF));
    }
    let size = far_width(i);
    let address = v.operand_address(i, u32::from(size) + 2, false)?;
    let offset = v.load_sized(i.seg, address, size)?;
    let selector = v.load::<2>(i.seg, address.wrapping_add(u64::from(size)))?;
    Ok((selector as u16, offset))
}

/// Operand size of a far transfer.
fn far_width(i: &Insn) -> u8 {
    use iced_x86::Code::*;
    match i.code {
        Jmp_m1616 | Call_m1616 | Jmp_ptr1616 | Call_ptr1616 => 2,
        Jmp_m1664 | Call_m1664 => 8,
        _ => 4,
    }
}

/// JMP far.
pub fn jmp_far(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (selector, offset) = target(v, i)?;
    if v.state.real_or_v86() {
        return jump_real(v, selector, offset);
    }
    let d = code_or_gate(v, selector)?;
    if d.is_segment() {
        let segment = checked_code(v, &d, selector)?;
        check_offset(v, &segment, offset)?;
        v.mark_accessed(&d)?;
        set_code(v, segment, v.state.cpl, offset);
        return Err(Exit::Leave);
    }
    match d.typ() {
        kind::CALL16 | kind::CALL32 => {
            let (segment, offset, d) = through_gate(v, &d, selector)?;
            if !d.conforming() && d.dpl() != v.state.cpl {
                return Err(v.raise_code(vector::GP, error_of(segment.selector)));
            }
            check_offset(v, &segment, offset)?;
            v.mark_accessed(&d)?;
            set_code(v, segment, v.state.cpl, offset);
            Err(Exit::Leave)
        }
        _ => task(v, &d, selector, Reason::Jump),
    }
}

/// CALL far.
pub fn call_far(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (selector, offset) = target(v, i)?;
    let size = far_width(i);
    let back = v.return_address();
    let cs = u64::from(v.state.seg[seg::CS].selector);
    if v.state.real_or_v86() {
        let mut stack = Stack::current(v);
        stack.push(v, size, cs)?;
        stack.push(v, size, back)?;
        let (old_cs, old_rip) = (v.state.seg[seg::CS], v.state.gpr[gpr::RIP]);
        let left = jump_real(v, selector, offset);
        if left == Err(Exit::Fault) {
            v.state.seg[seg::CS] = old_cs;
            v.state.gpr[gpr::RIP] = old_rip;
        } else {
            stack.commit(v);
        }
        return left;
    }
    let d = code_or_gate(v, selector)?;
    if d.is_segment() {
        let segment = checked_code(v, &d, selector)?;
        let mut stack = Stack::current(v);
        stack.push(v, size, cs)?;
        stack.push(v, size, back)?;
        check_offset(v, &segment, offset)?;
        v.mark_accessed(&d)?;
        stack.commit(v);
        set_code(v, segment, v.state.cpl, offset);
        return Err(Exit::Leave);
    }
    match d.typ() {
        kind::CALL16 | kind::CALL32 => call_gate(v, &d, selector, back),
        _ => task(v, &d, selector, Reason::Call),
    }
}

fn jump_real(v: &mut Vcpu, selector: u16, offset: u64) -> Result<(), Exit> {
    let mut cs = v.state.seg[seg::CS];
    if offset > u64::from(if v.state.v86() { 0xFFFF } else { cs.limit }) {
        return Err(v.protection());
    }
    cs.selector = selector;
    cs.base = u64::from(selector) << 4;
    v.set_segment(seg::CS, cs);
    v.state.gpr[gpr::RIP] = offset;
    Err(Exit::Leave)
}

fn code_or_gate(v: &mut Vcpu, selector: u16) -> Result<Descriptor, Exit> {
    if selector & 0xFFFC == 0 {
        return Err(v.protection());
    }
    v.descriptor(selector, vector::GP)
}

/// Checks a code segment for a direct transfer at the same privilege; the result has RPL = CPL.
fn checked_code(v: &mut Vcpu, d: &Descriptor, selector: u16) -> Result<Segment, Exit> {
    let error = error_of(selector);
    let (cpl, rpl) = (v.state.cpl, (selector & 3) as u8);
    let allowed = if d.conforming() { d.dpl() <= cpl } else { rpl <= cpl && d.dpl() == cpl };
    let bits_ok = !(v.state.long_mode() && d.has(attr::L | attr::DB));
    if !d.is_code() || !allowed || !bits_ok {
        return Err(v.raise_code(vector::GP, error));
    }
    if !d.has(attr::P) {
        return Err(v.raise_code(vector::NP, error));
    }
    let mut segment = d.segment(selector & !3 | u16::from(cpl));
    segment.attributes |= attr::A;
    Ok(segment)
}

/// An offset must lie in the new code segment.
pub fn check_offset(v: &mut Vcpu, segment: &Segment, offset: u64) -> Result<(), Exit> {
    let long = v.state.long_mode() && segment.has(attr::L);
    let ok = if long { v.state.canonical(offset) } else { offset <= u64::from(segment.limit) };
    if ok { Ok(()) } else { Err(v.protection()) }
}

/// Makes CS, CPL and RIP architectural.
pub fn set_code(v: &mut Vcpu, mut segment: Segment, cpl: u8, rip: u64) {
    segment.selector = segment.selector & !3 | u16::from(cpl);
    v.set_segment(seg::CS, segment);
    if v.state.cpl != cpl {
        v.state.cpl = cpl;
        v.update_class();
    }
    v.state.gpr[gpr::RIP] = rip;
}

/// Follows a call gate to its code segment: privilege and type checks of gate and segment.
fn through_gate(v: &mut Vcpu, gate: &Descriptor, selector: u16) -> Result<(Segment, u64, Descriptor), Exit> {
    let error = error_of(selector);
    let (cpl, rpl) = (v.state.cpl, (selector & 3) as u8);
    let long = v.state.long_mode();
    if gate.dpl() < cpl || gate.dpl() < rpl || long && gate.typ() != kind::CALL32 {
        return Err(v.raise_code(vector::GP, error));
    }
    if !gate.has(attr::P) {
        return Err(v.raise_code(vector::NP, error));
    }
    let mut offset = gate.gate_offset();
    if gate.typ() == kind::CALL16 {
        offset &= 0xFFFF;
    }
    if long {
        // A 16-byte gate; the type in its upper half must be 0.
        let high = v.load_system(gate.address.wrapping_add(8), 8)?;
        if high >> 40 & 0x1F != 0 {
            return Err(v.raise_code(vector::GP, error));
        }
        offset |= high << 32;
    }
    let code = gate.gate_selector();
    if code & 0xFFFC == 0 {
        return Err(v.protection());
    }
    let d = v.descriptor(code, vector::GP)?;
    let bits_ok = !long || d.has(attr::L) && !d.has(attr::DB);
    if !d.is_code() || d.dpl() > cpl || !bits_ok {
        return Err(v.raise_code(vector::GP, error_of(code)));
    }
    if !d.has(attr::P) {
        return Err(v.raise_code(vector::NP, error_of(code)));
    }
    let mut segment = d.segment(code);
    segment.attributes |= attr::A;
    Ok((segment, offset, d))
}

fn call_gate(v: &mut Vcpu, gate: &Descriptor, selector: u16, back: u64) -> Result<(), Exit> {
    let (segment, offset, d) = through_gate(v, gate, selector)?;
    let long = v.state.long_mode();
    let size = if long {
        8
    } else if gate.typ() == kind::CALL32 {
        4
    } else {
        2
    };
    let cpl = v.state.cpl;
    let old_cs = u64::from(v.state.seg[seg::CS].selector);
    check_offset(v, &segment, offset)?;
    if d.conforming() || d.dpl() == cpl {
        let mut stack = Stack::current(v);
        stack.long = long;
        stack.mask = if long { !0 } else { stack.mask };
        stack.push(v, size, old_cs)?;
        stack.push(v, size, back)?;
        v.mark_accessed(&d)?;
        stack.commit(v);
        set_code(v, segment, cpl, offset);
        return Err(Exit::Leave);
    }
    let new_cpl = d.dpl();
    let old_ss = u64::from(v.state.seg[seg::SS].selector);
    let old = Stack::current(v);
    let mut stack = inner_stack(v, new_cpl, None)?;
    let old_sp = v.state.gpr[gpr::RSP];
    stack.push(v, size, old_ss)?;
    stack.push(v, size, old_sp)?;
    if !long {
        // Parameters are copied from the outer stack, the first pushed first.
        let count = gate.raw >> 32 & 31;
        for n in (0..count).rev() {
            let mut at = old;
            at.sp = old.sp.wrapping_add(n * u64::from(size)) & old.mask;
            let value = at.pop(v, size)?;
            stack.push(v, size, value)?;
        }
    }
    stack.push(v, size, old_cs)?;
    stack.push(v, size, back)?;
    v.mark_accessed(&d)?;
    set_code(v, segment, new_cpl, offset);
    v.set_segment(seg::SS, stack.segment);
    v.state.gpr[gpr::RSP] = if long { stack.sp } else { v.state.gpr[gpr::RSP] & !stack.mask | stack.sp };
    Err(Exit::Leave)
}

/// The stack that the TSS gives for privilege level `cpl` (long mode: or an interrupt stack table entry).
pub fn inner_stack(v: &mut Vcpu, cpl: u8, ist: Option<u8>) -> Result<Stack, Exit> {
    let tr = v.state.tr;
    let error = error_of(tr.selector);
    if v.state.long_mode() {
        let offset = match ist {
            Some(n) => 28 + u64::from(n) * 8,
            None => 4 + u64::from(cpl) * 8,
        };
        if offset + 7 > u64::from(tr.limit) {
            return Err(v.raise_code(vector::TS, error));
        }
        let sp = v.load_system(tr.base.wrapping_add(offset), 8)?;
        if !v.state.canonical(sp) {
            return Err(v.raise_code(vector::SS, 0));
        }
        let mut segment = Segment::null(u16::from(cpl));
        segment.attributes |= u16::from(cpl) << 5;
        return Ok(Stack { segment, mask: !0, sp, long: true, error: 0, user: false });
    }
    let wide = tr.typ() & 8 != 0;
    let (offset, size) = if wide { (4 + u64::from(cpl) * 8, 4) } else { (2 + u64::from(cpl) * 4, 2) };
    if offset + u64::from(size) + 1 > u64::from(tr.limit) {
        return Err(v.raise_code(vector::TS, error));
    }
    let sp = v.load_system(tr.base.wrapping_add(offset), size)?;
    let selector = v.load_system(tr.base.wrapping_add(offset + u64::from(size)), 2)? as u16;
    let segment = checked_inner_ss(v, selector, cpl)?;
    let mask = stack_mask(false, &segment);
    Ok(Stack { segment, mask, sp: sp & mask, long: false, error: error_of(selector), user: false })
}

/// SS from a TSS: its faults are #TS.
pub fn checked_inner_ss(v: &mut Vcpu, selector: u16, cpl: u8) -> Result<Segment, Exit> {
    if error_of(selector) == 0 {
        return Err(v.raise_code(vector::TS, 0));
    }
    v.stack_segment(selector, cpl, vector::TS)
}

fn task(v: &mut Vcpu, d: &Descriptor, selector: u16, reason: Reason) -> Result<(), Exit> {
    let error = error_of(selector);
    let (cpl, rpl) = (v.state.cpl, (selector & 3) as u8);
    let known = matches!(d.typ(), kind::TASK_GATE | kind::TSS16 | kind::TSS32);
    if v.state.long_mode() || !known || d.dpl() < cpl || d.dpl() < rpl {
        return Err(v.raise_code(vector::GP, error));
    }
    let tss = if d.typ() == kind::TASK_GATE {
        if !d.has(attr::P) {
            return Err(v.raise_code(vector::NP, error));
        }
        d.gate_selector()
    } else {
        selector
    };
    v.switch_task_by_instruction(tss, reason)?;
    Err(Exit::Leave)
}
