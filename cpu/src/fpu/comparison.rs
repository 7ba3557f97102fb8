//! Comparison and classification (SDM Vol. 1, "Comparison and Classification Instructions").

use super::unit::INDEFINITE;
use super::unit::status::*;
use super::{Format, convert, engine};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use crate::state::{F80, RFlags};
use iced_x86::{Instruction, Mnemonic as M};

/// The table of this file.
pub fn handler(x: &Instruction) -> Option<Handler> {
    Some(match x.mnemonic() {
        M::Fcom | M::Ficom => |v, i| compare(v, i, false, 0),
        M::Fcomp | M::Ficomp => |v, i| compare(v, i, false, 1),
        M::Fcompp => |v, i| compare(v, i, false, 2),
        M::Fucom => |v, i| compare(v, i, true, 0),
        M::Fucomp => |v, i| compare(v, i, true, 1),
        M::Fucompp => |v, i| compare(v, i, true, 2),
        M::Fcomi => |v, i| compare_to_flags(v, i, false, 0),
        M::Fcomip => |v, i| compare_to_flags(v, i, false, 1),
        M::Fucomi => |v, i| compare_to_flags(v, i, true, 0),
        M::Fucomip => |v, i| compare_to_flags(v, i, true, 1),
        M::Ftst => ftst,
        M::Fxam => fxam,
        _ => return None,
    })
}

/// What a comparison with a missing or unordered operand delivers.
const UNORDERED: u16 = C0 | C2 | C3;

/// FCOM, FUCOM, FICOM and their popping forms: compare ST(0). Flags: C3 equal, C0 less, all three unordered,
/// C1 = 0.
fn compare(v: &mut Vcpu, i: &Insn, quiet: bool, pops: u8) -> Result<(), Exit> {
    v.x87_enter()?;
    let (b, denormal) = if i.memory() {
        let format = Format::of(i);
        let bits = v.x87_load(i, format.bytes())?;
        convert::widen(format, bits)
    } else {
        (v.state.x87.st(i.r1), false)
    };
    v.x87_note(i);
    let x = &v.state.x87;
    let empty = x.empty(0) || !i.memory() && x.empty(i.r1);
    finish(v, i, empty, b, denormal, quiet, pops);
    Ok(())
}

/// FTST: compares ST(0) with 0. Flags: as FCOM.
fn ftst(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let empty = v.state.x87.empty(0);
    finish(v, i, empty, F80::default(), false, false, 0);
    Ok(())
}

fn finish(v: &mut Vcpu, i: &Insn, empty: bool, b: F80, denormal: bool, quiet: bool, pops: u8) {
    let x = &mut v.state.x87;
    let flags = if empty {
        IE | SF | UNORDERED
    } else {
        let flags = (engine().compare)(x.st(0), b, quiet, if denormal { 0 } else { x.status & EXCEPTIONS });
        flags | if denormal && flags & UNORDERED != UNORDERED { DE } else { 0 }
    };
    if x.report(i, flags & !C1, CONDITIONS) {
        x.pop_times(pops);
    }
}

/// FCOMI, FUCOMI and their popping forms. Flags: ZF, PF, CF as C3, C2, C0 of FCOM; OF, SF, AF = 0; C1 = 0.
fn compare_to_flags(v: &mut Vcpu, i: &Insn, quiet: bool, pops: u8) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    let flags = if x.empty(0) || x.empty(i.r1) {
        IE | SF | UNORDERED
    } else {
        (engine().compare)(x.st(0), x.st(i.r1), quiet, x.status & EXCEPTIONS)
    };
    if x.report(i, flags & !CONDITIONS, C1) {
        x.pop_times(pops);
        let mut result = RFlags::empty();
        result.set(RFlags::ZF, flags & C3 != 0);
        result.set(RFlags::PF, flags & C2 != 0);
        result.set(RFlags::CF, flags & C0 != 0);
        v.set_status(RFlags::STATUS, result);
    }
    Ok(())
}

/// FXAM: classifies ST(0). Flags: C3 C2 C0 = class, C1 = sign, of an empty register too.
fn fxam(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    let a = x.st(0);
    let class = if x.empty(0) {
        C3 | C0
    } else if a.is_unsupported() {
        0
    } else if a.is_nan() {
        C0
    } else if a.is_infinite() {
        C2 | C0
    } else if a.is_zero() {
        C3
    } else if a.is_denormal() {
        C3 | C2
    } else {
        C2
    };
    x.report(i, class | if a.negative() { C1 } else { 0 }, CONDITIONS);
    Ok(())
}

/// FCMOVcc: ST(0) = ST(i) if the condition holds.
pub fn fcmov(v: &mut Vcpu, i: &Insn, mask: RFlags, wanted: bool) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let holds = v.rflags().intersects(mask) == wanted;
    let x = &mut v.state.x87;
    if x.empty(0) || x.empty(i.r1) {
        if x.underflow(i) {
            x.set_st(0, INDEFINITE);
        }
    } else if holds {
        x.report(i, 0, C1);
        x.set_st(0, x.st(i.r1));
    }
    Ok(())
}
