//! Control of the unit (SDM Vol. 1, "x87 FPU Control Instructions").

use super::environment;
use super::unit::status::*;
use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::{Handler, Insn};
use crate::state::{cr0, gpr};
use iced_x86::{Instruction, Mnemonic as M};

/// The form with WAIT before it.
macro_rules! waiting {
    ($f:path) => {
        |v, i| {
            v.x87_enter()?;
            $f(v, i)
        }
    };
}

/// The table of this file.
pub fn handler(x: &Instruction) -> Option<Handler> {
    Some(match x.mnemonic() {
        M::Wait => fwait,
        M::Fninit => fninit,
        M::Finit => waiting!(fninit),
        M::Fnclex => fnclex,
        M::Fclex => waiting!(fnclex),
        M::Fldcw => fldcw,
        M::Fnstcw => fnstcw,
        M::Fstcw => waiting!(fnstcw),
        M::Fnstsw => fnstsw,
        M::Fstsw => waiting!(fnstsw),
        M::Fldenv => environment::fldenv,
        M::Fnstenv => environment::fnstenv,
        M::Fstenv => waiting!(environment::fnstenv),
        M::Frstor => environment::frstor,
        M::Fnsave => environment::fnsave,
        M::Fsave => waiting!(environment::fnsave),
        M::Ffree => |v, i| tags(v, i, false),
        M::Ffreep => |v, i| tags(v, i, true),
        M::Fincstp => |v, i| rotate(v, i, 1),
        M::Fdecstp => |v, i| rotate(v, i, 7),
        M::Fnop => fnop,
        M::Fneni | M::Feni | M::Fndisi | M::Fdisi | M::Fnsetpm | M::Fsetpm | M::Frstpm => ignored,
        _ => return None,
    })
}

/// WAIT/FWAIT: takes waiting exceptions. #NM if CR0.MP and CR0.TS.
fn fwait(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    if v.state.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(v.raise(vector::NM));
    }
    v.x87_pending()
}

/// FNINIT: the state after initialization; registers keep their contents, tagged empty.
fn fninit(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.x87_available()?;
    v.state.x87.initialize();
    Ok(())
}

/// FNCLEX: clears exceptions, SF, ES and B.
fn fnclex(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.x87_available()?;
    v.state.x87.status &= !(EXCEPTIONS | SF | ES | B);
    Ok(())
}

/// FLDCW: loads the control word. Exceptions that it unmasks wait for the next instruction.
fn fldcw(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    let control = v.x87_load(i, 2)? as u16;
    v.state.x87.set_control(control);
    Ok(())
}

/// FNSTCW: stores the control word.
fn fnstcw(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_available()?;
    let control = v.state.x87.control;
    v.x87_store(i, 2, u64::from(control))
}

/// FNSTSW: stores the status word in memory or AX.
fn fnstsw(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_available()?;
    let status = u64::from(v.state.x87.status);
    if i.memory() {
        return v.x87_store(i, 2, status);
    }
    let rax = &mut v.state.gpr[gpr::RAX];
    *rax = *rax & !0xFFFF | status;
    Ok(())
}

/// FFREE, FFREEP: tags ST(i) empty; FFREEP (not in the manual) then pops.
fn tags(v: &mut Vcpu, i: &Insn, pop: bool) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    v.state.x87.free(i.r0);
    if pop {
        v.state.x87.pop();
    }
    Ok(())
}

/// FINCSTP, FDECSTP: TOP moves, tags and contents stay. Flags: C1 = 0.
fn rotate(v: &mut Vcpu, i: &Insn, by: u8) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    x.report(i, 0, C1);
    x.set_top(x.top() + by);
    Ok(())
}

/// FNOP.
fn fnop(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    Ok(())
}

/// FENI, FDISI (8087), FSETPM, FRSTPM (80287): nothing since the 387.
fn ignored(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.x87_available()
}
