//! Basic arithmetic (SDM Vol. 1, "Basic Arithmetic Instructions").

use super::unit::status::*;
use super::unit::{INDEFINITE, PC};
use super::{Binary, Double, Format, Unary, convert, engine};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use crate::state::F80;
use iced_x86::{Instruction, Mnemonic as M};

/// The table of this file.
pub fn handler(x: &Instruction) -> Option<Handler> {
    Some(match x.mnemonic() {
        M::Fadd | M::Fiadd => |v, i| arithmetic(v, i, Binary::Add, false, 0),
        M::Fsub | M::Fisub => |v, i| arithmetic(v, i, Binary::Sub, false, 0),
        M::Fsubr | M::Fisubr => |v, i| arithmetic(v, i, Binary::Sub, true, 0),
        M::Fmul | M::Fimul => |v, i| arithmetic(v, i, Binary::Mul, false, 0),
        M::Fdiv | M::Fidiv => |v, i| arithmetic(v, i, Binary::Div, false, 0),
        M::Fdivr | M::Fidivr => |v, i| arithmetic(v, i, Binary::Div, true, 0),
        M::Faddp => |v, i| arithmetic(v, i, Binary::Add, false, 1),
        M::Fsubp => |v, i| arithmetic(v, i, Binary::Sub, false, 1),
        M::Fsubrp => |v, i| arithmetic(v, i, Binary::Sub, true, 1),
        M::Fmulp => |v, i| arithmetic(v, i, Binary::Mul, false, 1),
        M::Fdivp => |v, i| arithmetic(v, i, Binary::Div, false, 1),
        M::Fdivrp => |v, i| arithmetic(v, i, Binary::Div, true, 1),
        M::Fscale => |v, i| binary(v, i, Binary::Scale, C1),
        M::Fprem => |v, i| binary(v, i, Binary::Rem, CONDITIONS),
        M::Fprem1 => |v, i| binary(v, i, Binary::Rem1, CONDITIONS),
        M::Fsqrt => |v, i| unary(v, i, Unary::Sqrt, C1),
        M::Frndint => |v, i| unary(v, i, Unary::RoundInt, C1),
        M::Fxtract => |v, i| double(v, i, Double::Extract, C1),
        M::Fabs => |v, i| sign(v, i, |_| false),
        M::Fchs => |v, i| sign(v, i, |negative| !negative),
        _ => return None,
    })
}

/// FADD, FSUB, FSUBR, FMUL, FDIV, FDIVR, their popping and integer forms: the first operand becomes "first op
/// second", reversed "second op first". Flags: C1.
fn arithmetic(v: &mut Vcpu, i: &Insn, op: Binary, reverse: bool, pops: u8) -> Result<(), Exit> {
    v.x87_enter()?;
    let (source, denormal) = if i.memory() {
        let format = Format::of(i);
        let bits = v.x87_load(i, format.bytes())?;
        convert::widen(format, bits)
    } else {
        (v.state.x87.st(i.r1), false)
    };
    v.x87_note(i);
    let x = &mut v.state.x87;
    // Memory forms have no register operand: r0 is 0.
    let to = if i.memory() { 0 } else { i.r0 };
    if x.empty(to) || !i.memory() && x.empty(i.r1) {
        if x.underflow(i) {
            x.set_st(to, INDEFINITE);
            x.pop_times(pops);
        }
        return Ok(());
    }
    let (a, b) = if reverse { (source, x.st(to)) } else { (x.st(to), source) };
    // DE is only added where IE and ZE are not raised now.
    let known = if denormal { 0 } else { x.status & EXCEPTIONS };
    let (value, flags) = (engine().basic)(op, a, b, x.control, known);
    let flags = if denormal { with_denormal(a, b, flags, x.control) } else { flags };
    if x.report(i, flags, C1) {
        x.set_st(to, value);
        x.pop_times(pops);
    }
    Ok(())
}

/// Adds DE for an operand that was a denormal in memory, and is none in a register. IE and ZE go before it.
fn with_denormal(a: F80, b: F80, flags: u16, control: u16) -> u16 {
    if flags & (IE | ZE) != 0 || a.is_nan() || b.is_nan() {
        flags
    } else if control & DE == 0 {
        flags & EARLY | DE
    } else {
        flags | DE
    }
}

/// Instructions from ST(0) and ST(1) to ST(0): FSCALE, FPREM, FPREM1. Flags: C1, or the quotient's low bits and
/// "incomplete" in C0, C3, C1 and C2.
/// Undefined: with a NaN as result C0 and C3 stay, as on AMD's processors.
fn binary(v: &mut Vcpu, i: &Insn, op: Binary, conditions: u16) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    if x.empty(0) || x.empty(1) {
        if x.underflow(i) {
            x.set_st(0, INDEFINITE);
            x.status &= !(conditions & C2);
        }
        return Ok(());
    }
    let (value, flags) = (engine().binary)(op, x.st(0), x.st(1), x.control | PC);
    // A NaN is no remainder: no quotient, and nothing left to do.
    let (flags, conditions) =
        if value.is_nan() { (flags & !CONDITIONS, conditions & (C1 | C2)) } else { (flags, conditions) };
    if x.report(i, flags, conditions) {
        x.set_st(0, value);
    }
    Ok(())
}

/// Instructions from ST(0) to ST(0). Flags: C1, for trigonometric ones C2 (operand out of range).
pub fn unary(v: &mut Vcpu, i: &Insn, op: Unary, conditions: u16) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    if x.empty(0) {
        if x.underflow(i) {
            x.set_st(0, INDEFINITE);
            x.status &= !(conditions & C2);
        }
        return Ok(());
    }
    let control = if op == Unary::Sqrt { x.control } else { x.control | PC };
    let (value, flags) = (engine().unary)(op, x.st(0), control);
    if x.report(i, flags, conditions) {
        x.set_st(0, value);
    }
    Ok(())
}

/// Instructions that replace ST(0) and push a second result. Flags: C1, for trigonometric ones C2.
pub fn double(v: &mut Vcpu, i: &Insn, op: Double, conditions: u16) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    if x.empty(0) || !x.empty(7) {
        if if x.empty(0) { x.underflow(i) } else { x.overflow(i) } {
            x.set_st(0, INDEFINITE);
            x.push(INDEFINITE);
            x.status &= !(conditions & C2);
        }
        return Ok(());
    }
    let (first, second, flags) = (engine().double)(op, x.st(0), x.control | PC);
    if x.report(i, flags, conditions) && flags & conditions & C2 == 0 {
        x.set_st(0, first);
        x.push(second);
    }
    Ok(())
}

/// FABS, FCHS: change the sign of ST(0), whatever it is. Flags: C1 = 0.
fn sign(v: &mut Vcpu, i: &Insn, f: fn(bool) -> bool) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    if x.empty(0) {
        if x.underflow(i) {
            x.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    x.report(i, 0, C1);
    let a = x.st(0);
    x.set_st(0, a.with_sign(f(a.negative())));
    Ok(())
}
