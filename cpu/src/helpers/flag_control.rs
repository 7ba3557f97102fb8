//! Flag control (SDM Vol. 1, "Flag Control (EFLAG) Instructions").

use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Insn, W};
use crate::state::{RFlags, Shadow, cr4, gpr};

/// STC.
pub fn stc(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.lazy.cf = true;
    Ok(())
}
/// CLC.
pub fn clc(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.lazy.cf = false;
    Ok(())
}
/// CMC.
pub fn cmc(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.lazy.cf = !v.lazy.cf;
    Ok(())
}
/// CLD.
pub fn cld(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.state.rflags.remove(RFlags::DF);
    Ok(())
}
/// STD.
pub fn std(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.state.rflags.insert(RFlags::DF);
    Ok(())
}
/// LAHF: AH = SF, ZF, AF, PF, CF and a 1.
pub fn lahf(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let bits = v.rflags().bits() & 0xD5 | 2;
    v.put_reg(W::B, 16, bits);
    Ok(())
}
/// SAHF.
pub fn sahf(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let ah = RFlags::from_bits_retain(v.get_reg(W::B, 16));
    v.set_status(RFlags::STATUS - RFlags::OF, ah);
    Ok(())
}

/// Whether CLI and STI work on IF (true) or VIF (false); #GP where neither is allowed.
fn real_interrupt_flag(v: &mut Vcpu) -> Result<bool, Exit> {
    let s = &v.state;
    if !s.protected() || s.cpl <= s.iopl() && !s.v86() || s.v86() && s.iopl() == 3 {
        return Ok(true);
    }
    let virtual_flag = if s.v86() { s.cr4 & cr4::VME != 0 } else { s.cr4 & cr4::PVI != 0 && s.cpl == 3 };
    if virtual_flag { Ok(false) } else { Err(v.protection()) }
}

/// CLI.
pub fn cli(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let flag = if real_interrupt_flag(v)? { RFlags::IF } else { RFlags::VIF };
    v.state.rflags.remove(flag);
    Ok(())
}

/// STI: interrupts are let in after the next instruction. Where none waits and the next instruction follows in the block
/// (`imm`), nothing looks for one before it, and the block goes on.
pub fn sti(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    if real_interrupt_flag(v)? {
        v.open_shadow = !0;
        if v.state.rflags.contains(RFlags::IF) {
            return Ok(());
        }
        v.state.rflags.insert(RFlags::IF);
        v.translated.attention_mask = !0;
        if i.imm != 0 && !v.watchful && v.shared.pending() == 0 {
            v.open_shadow = v.state.gpr[gpr::RIP];
            return Ok(());
        }
        v.state.shadow = Shadow::Sti;
        return Err(Exit::Leave);
    }
    if v.state.rflags.contains(RFlags::VIP) {
        return Err(v.protection());
    }
    v.state.rflags.insert(RFlags::VIF);
    Ok(())
}

/// CLAC / STAC.
pub fn clac(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    set_ac(v, false)
}
pub fn stac(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    set_ac(v, true)
}
fn set_ac(v: &mut Vcpu, on: bool) -> Result<(), Exit> {
    if v.state.cpl != 0 {
        return Err(v.undefined());
    }
    v.state.rflags.set(RFlags::AC, on);
    v.update_class();
    Ok(())
}
