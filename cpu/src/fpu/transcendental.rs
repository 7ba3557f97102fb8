//! Transcendental instructions (SDM Vol. 1, "Trigonometric Instructions", "Logarithmic, Exponential, and
//! Scale").

use super::arithmetic::{double, unary};
use super::unit::status::{C1, C2};
use super::unit::{INDEFINITE, PC};
use super::{Binary, Double, Unary, engine};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use iced_x86::{Instruction, Mnemonic as M};

/// The table of this file.
pub fn handler(x: &Instruction) -> Option<Handler> {
    Some(match x.mnemonic() {
        M::Fsin => |v, i| unary(v, i, Unary::Sin, C1 | C2),
        M::Fcos => |v, i| unary(v, i, Unary::Cos, C1 | C2),
        M::Fsincos => |v, i| double(v, i, Double::SinCos, C1 | C2),
        M::Fptan => |v, i| double(v, i, Double::Tan, C1 | C2),
        M::F2xm1 => |v, i| unary(v, i, Unary::Exp, C1),
        M::Fpatan => |v, i| popping(v, i, Binary::Atan),
        M::Fyl2x => |v, i| popping(v, i, Binary::Log),
        M::Fyl2xp1 => |v, i| popping(v, i, Binary::Log1p),
        _ => return None,
    })
}

/// FPATAN, FYL2X, FYL2XP1: from ST(0) and ST(1) to ST(1), then pop. Flags: C1.
fn popping(v: &mut Vcpu, i: &Insn, op: Binary) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    if x.empty(0) || x.empty(1) {
        if x.underflow(i) {
            x.set_st(1, INDEFINITE);
            x.pop();
        }
        return Ok(());
    }
    let (value, flags) = (engine().binary)(op, x.st(0), x.st(1), x.control | PC);
    if x.report(i, flags, C1) {
        x.set_st(1, value);
        x.pop();
    }
    Ok(())
}
