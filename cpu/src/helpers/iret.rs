//! IRET (SDM Vol. 2, "IRET").

use super::call_far::{check_offset, set_code};
use super::ret_far::{checked_return_code, checked_return_ss};
use super::segment::v86_segment;
use super::stack::{Stack, stack_mask};
use super::tasking::Reason;
use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::Insn;
use crate::state::{RFlags, Segment, attr, cr4, gpr, seg};

/// IRET, IRETD, IRETQ.
pub fn iret(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let result = if !v.state.protected() {
        iret_real(v, i)
    } else if v.state.v86() {
        iret_v86(v, i)
    } else {
        iret_protected(v, i)
    };
    if result != Err(Exit::Fault) {
        v.state.nmi_blocked = false;
    }
    result
}

fn pop3(v: &mut Vcpu, i: &Insn, stack: &mut Stack) -> Result<(u64, u16, RFlags), Exit> {
    let rip = stack.pop(v, i.w)?;
    let cs = stack.pop(v, i.w)? as u16;
    let flags = RFlags::from_bits_retain(stack.pop(v, i.w)?);
    Ok((rip, cs, flags))
}

fn real_code(v: &mut Vcpu, selector: u16, rip: u64) {
    let mut cs = v.state.seg[seg::CS];
    cs.selector = selector;
    cs.base = u64::from(selector) << 4;
    v.set_segment(seg::CS, cs);
    v.state.gpr[gpr::RIP] = rip;
}

/// Flags that an IRET of width `w` may change at all.
fn width_mask(w: u8) -> RFlags {
    let low = RFlags::STATUS | RFlags::TF | RFlags::IF | RFlags::DF | RFlags::IOPL | RFlags::NT;
    if w == 2 { low } else { low | RFlags::RF | RFlags::AC | RFlags::ID }
}

fn iret_real(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let mut stack = Stack::current(v);
    let (rip, cs, new) = pop3(v, i, &mut stack)?;
    if rip > u64::from(v.state.seg[seg::CS].limit) {
        return Err(v.protection());
    }
    stack.commit(v);
    real_code(v, cs, rip);
    let mask = width_mask(i.w);
    let flags = v.rflags() & !mask | new & mask;
    v.set_rflags(flags);
    Err(Exit::Leave)
}

fn iret_v86(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let iopl3 = v.state.iopl() == 3;
    if !iopl3 && (i.w != 2 || v.state.cr4 & cr4::VME == 0) {
        return Err(v.protection());
    }
    let mut stack = Stack::current(v);
    let (rip, cs, new) = pop3(v, i, &mut stack)?;
    if rip > 0xFFFF {
        return Err(v.protection());
    }
    let old = v.rflags();
    let mut mask = width_mask(i.w) - RFlags::IOPL;
    let mut flags;
    if iopl3 {
        flags = old & !mask | new & mask;
    } else {
        if new.contains(RFlags::IF) && old.contains(RFlags::VIP) || new.contains(RFlags::TF) {
            return Err(v.protection());
        }
        mask -= RFlags::IF;
        flags = old & !mask | new & mask;
        flags.set(RFlags::VIF, new.contains(RFlags::IF));
    }
    stack.commit(v);
    real_code(v, cs, rip);
    v.set_rflags(flags);
    Err(Exit::Leave)
}

fn iret_protected(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let old = v.rflags();
    let long = v.state.long_mode();
    if old.contains(RFlags::NT) {
        if long {
            return Err(v.protection());
        }
        let base = v.state.tr.base;
        let link = v.load_system(base, 2)? as u16;
        v.switch_task_by_instruction(link, Reason::Iret)?;
        return Err(Exit::Leave);
    }
    let mut stack = Stack::current(v);
    let (rip, selector, new) = pop3(v, i, &mut stack)?;
    if new.contains(RFlags::VM) && v.state.cpl == 0 && i.w == 4 && !long {
        return return_to_v86(v, &mut stack, rip, selector, new);
    }
    let segment = checked_return_code(v, selector)?;
    check_offset(v, &segment, rip)?;
    let rpl = (selector & 3) as u8;
    let cpl = v.state.cpl;
    let outer = rpl != cpl;
    let mut mask = width_mask(i.w);
    if cpl != 0 {
        mask -= RFlags::IOPL;
    } else if i.w != 2 {
        mask |= RFlags::VIF | RFlags::VIP;
    }
    if cpl > v.state.iopl() {
        mask -= RFlags::IF;
    }
    let flags = old & !mask | new & mask;
    if outer || v.state.code64() {
        let sp = stack.pop(v, i.w)?;
        let ss_selector = stack.pop(v, i.w)? as u16;
        let ss = checked_return_ss(v, ss_selector, rpl, &segment)?;
        set_code(v, segment, rpl, rip);
        v.set_segment(seg::SS, ss);
        let code64 = v.state.code64();
        v.set_stack_pointer(stack_mask(code64, &ss), sp);
        if outer {
            v.drop_privileged_segments();
        }
    } else {
        stack.commit(v);
        set_code(v, segment, rpl, rip);
    }
    v.set_rflags(flags);
    Err(Exit::Leave)
}

fn return_to_v86(v: &mut Vcpu, stack: &mut Stack, rip: u64, cs: u16, flags: RFlags) -> Result<(), Exit> {
    let sp = stack.pop(v, 4)?;
    let mut selectors = [0u16; 5];
    for selector in &mut selectors {
        *selector = stack.pop(v, 4)? as u16;
    }
    if rip > 0xFFFF {
        return Err(v.raise_code(vector::GP, 0));
    }
    let keep = RFlags::from_bits_retain(0x3F_7FD5);
    v.set_rflags(flags & keep);
    v.state.cpl = 3;
    for (n, selector) in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS].into_iter().zip(selectors) {
        v.set_segment(n, v86_segment(selector));
    }
    let code = Segment { attributes: attr::P | 3 << 5 | attr::S | attr::RW | attr::A, ..v86_segment(cs) };
    v.set_segment(seg::CS, code);
    v.state.gpr[gpr::RSP] = sp & 0xFFFF_FFFF;
    v.state.gpr[gpr::RIP] = rip & 0xFFFF;
    v.update_class();
    Err(Exit::Leave)
}
