//! Far RET (SDM Vol. 2, "RET").

use super::call_far::{check_offset, set_code};
use super::segment::error_of;
use super::stack::{Stack, stack_mask};
use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::Insn;
use crate::state::{Segment, attr, gpr, seg};

/// RETF, with or without bytes to release.
pub fn ret_far(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let release = i.imm & 0xFFFF;
    let mut stack = Stack::current(v);
    let rip = stack.pop(v, i.w)?;
    let selector = stack.pop(v, i.w)? as u16;
    if v.state.real_or_v86() {
        let mut cs = v.state.seg[seg::CS];
        if rip > u64::from(cs.limit) {
            return Err(v.protection());
        }
        cs.selector = selector;
        cs.base = u64::from(selector) << 4;
        stack.sp = stack.sp.wrapping_add(release) & stack.mask;
        stack.commit(v);
        v.set_segment(seg::CS, cs);
        v.state.gpr[gpr::RIP] = rip;
        return Err(Exit::Leave);
    }
    let segment = checked_return_code(v, selector)?;
    check_offset(v, &segment, rip)?;
    stack.sp = stack.sp.wrapping_add(release) & stack.mask;
    let rpl = (selector & 3) as u8;
    if rpl == v.state.cpl {
        stack.commit(v);
        set_code(v, segment, rpl, rip);
        return Err(Exit::Leave);
    }
    let sp = stack.pop(v, i.w)?;
    let ss_selector = stack.pop(v, i.w)? as u16;
    let ss = checked_return_ss(v, ss_selector, rpl, &segment)?;
    set_code(v, segment, rpl, rip);
    v.set_segment(seg::SS, ss);
    let mask = stack_mask(v.state.code64(), &ss);
    v.set_stack_pointer(mask, sp.wrapping_add(release));
    v.drop_privileged_segments();
    Err(Exit::Leave)
}

/// The code segment that RETF or IRET goes back to.
pub fn checked_return_code(v: &mut Vcpu, selector: u16) -> Result<Segment, Exit> {
    let error = error_of(selector);
    if error == 0 {
        return Err(v.protection());
    }
    let d = v.descriptor(selector, vector::GP)?;
    let rpl = (selector & 3) as u8;
    let allowed = if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
    let bits_ok = !(v.state.long_mode() && d.has(attr::L | attr::DB));
    if !d.is_code() || rpl < v.state.cpl || !allowed || !bits_ok {
        return Err(v.raise_code(vector::GP, error));
    }
    if !d.has(attr::P) {
        return Err(v.raise_code(vector::NP, error));
    }
    v.mark_accessed(&d)?;
    let mut segment = d.segment(selector);
    segment.attributes |= attr::A;
    Ok(segment)
}

/// SS for a return to privilege level `rpl` in code segment `cs`.
pub fn checked_return_ss(v: &mut Vcpu, selector: u16, rpl: u8, cs: &Segment) -> Result<Segment, Exit> {
    if error_of(selector) == 0 {
        // 64-bit code at CPL 0 to 2 runs with a null SS.
        let long = v.state.long_mode() && cs.has(attr::L);
        if long && rpl != 3 && (selector & 3) as u8 == rpl {
            let mut null = Segment::null(selector);
            null.attributes |= u16::from(rpl) << 5;
            return Ok(null);
        }
        return Err(v.protection());
    }
    v.stack_segment(selector, rpl, vector::GP)
}
