//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM Vol. 3, "Performing Fast Calls to System Procedures").

use super::call_far::set_code;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::Insn;
use crate::run::DR6_BS;
use crate::state::{RFlags, Segment, attr, efer, gpr, seg};

/// A flat code segment.
fn code(selector: u16, dpl: u16, long: bool) -> Segment {
    let size = if long { attr::L } else { attr::DB };
    let attributes = attr::P | attr::S | attr::CODE | attr::RW | attr::A | attr::G | size | dpl << 5;
    Segment { selector, attributes, limit: !0, base: 0 }
}

/// A flat stack segment.
fn stack(selector: u16, dpl: u16) -> Segment {
    let attributes = attr::P | attr::S | attr::RW | attr::A | attr::G | attr::DB | dpl << 5;
    Segment { selector, attributes, limit: !0, base: 0 }
}

/// Where SYSCALL and SYSRET exist: Intel has them in 64-bit mode only, AMD in all of protected mode.
fn require_syscall(v: &mut Vcpu) -> Result<(), Exit> {
    let mode = v.state.code64() || v.model.amd() && v.state.protected();
    v.require(mode && v.state.msr.efer & efer::SCE != 0)
}

/// SYSCALL. APM Vol. 3, "SYSCALL", for other modes than 64-bit.
pub fn syscall(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    require_syscall(v)?;
    if !v.state.long_mode() {
        return syscall_legacy(v);
    }
    let flags = v.rflags();
    let m = &v.state.msr;
    let (star, mask) = (m.star, m.sfmask);
    let target = if v.state.code64() { m.lstar } else { m.cstar };
    v.state.gpr[gpr::RCX] = v.return_address();
    v.state.gpr[11] = (flags - RFlags::RF).bits();
    let selector = (star >> 32) as u16 & 0xFFFC;
    set_code(v, code(selector, 0, true), 0, target);
    v.set_segment(seg::SS, stack(selector.wrapping_add(8), 0));
    let new = RFlags::from_bits_retain(flags.bits() & !mask) - RFlags::RF;
    v.set_rflags(new);
    if flags.contains(RFlags::TF) && !new.contains(RFlags::TF) {
        // No single-step trap follows, as none follows INT.
        v.counters.interrupts += 1;
    }
    Err(Exit::Leave)
}

/// SYSCALL outside long mode: the target is in STAR, VM and IF are cleared.
fn syscall_legacy(v: &mut Vcpu) -> Result<(), Exit> {
    let star = v.state.msr.star;
    v.state.gpr[gpr::RCX] = v.return_address();
    let selector = (star >> 32) as u16 & 0xFFFC;
    set_code(v, code(selector, 0, false), 0, star & 0xFFFF_FFFF);
    v.set_segment(seg::SS, stack(selector.wrapping_add(8), 0));
    let flags = v.rflags() - RFlags::VM - RFlags::IF - RFlags::RF;
    v.set_rflags(flags);
    Err(Exit::Leave)
}

/// SYSRET to 64-bit (REX.W) or compatibility mode. A TF that it restores traps at once, unlike IRET's.
pub fn sysret(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    require_syscall(v)?;
    v.require_cpl0()?;
    let long = i.code == iced_x86::Code::Sysretq;
    let target = v.state.gpr[gpr::RCX];
    if long && !v.state.canonical(target) {
        return Err(v.protection());
    }
    let base = (v.state.msr.star >> 48) as u16;
    let selector = if long { base.wrapping_add(16) } else { base } | 3;
    // R11 exists in long mode only.
    let flags = if v.state.long_mode() {
        RFlags::from_bits_retain(v.state.gpr[11] & 0x3C_7FD7)
    } else {
        v.rflags() | RFlags::IF
    };
    set_code(v, code(selector, 3, long), 3, if long { target } else { target & 0xFFFF_FFFF });
    v.set_segment(seg::SS, stack(base.wrapping_add(8) | 3, 3));
    v.set_rflags(flags);
    if flags.contains(RFlags::TF) {
        v.state.pending_debug |= DR6_BS;
    }
    Err(Exit::Leave)
}

/// SYSENTER.
pub fn sysenter(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let selector = v.state.msr.sysenter_cs as u16 & 0xFFFC;
    if !v.state.protected() || selector == 0 {
        return Err(v.protection());
    }
    let long = v.state.long_mode();
    let (rip, rsp) = (v.state.msr.sysenter_eip, v.state.msr.sysenter_esp);
    let flags = v.rflags() - RFlags::VM - RFlags::IF - RFlags::RF;
    v.set_rflags(flags);
    set_code(v, code(selector, 0, long), 0, if long { rip } else { rip & 0xFFFF_FFFF });
    v.set_segment(seg::SS, stack(selector.wrapping_add(8), 0));
    v.state.gpr[gpr::RSP] = if long { rsp } else { rsp & 0xFFFF_FFFF };
    Err(Exit::Leave)
}

/// SYSEXIT to 64-bit (REX.W) or 32-bit code.
pub fn sysexit(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let base = v.state.msr.sysenter_cs as u16 & 0xFFFC;
    if !v.state.protected() || base == 0 || v.state.cpl != 0 {
        return Err(v.protection());
    }
    let long = i.code == iced_x86::Code::Sysexitq;
    let (rip, rsp) = (v.state.gpr[gpr::RDX], v.state.gpr[gpr::RCX]);
    if long && (!v.state.canonical(rip) || !v.state.canonical(rsp)) {
        return Err(v.protection());
    }
    let step = if long { 32 } else { 16 };
    let mask = if long { !0 } else { 0xFFFF_FFFF };
    set_code(v, code(base.wrapping_add(step) | 3, 3, long), 3, rip & mask);
    v.set_segment(seg::SS, stack(base.wrapping_add(step + 8) | 3, 3));
    v.state.gpr[gpr::RSP] = rsp & mask;
    Err(Exit::Leave)
}
