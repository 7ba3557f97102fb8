//! Floating-point comparison: into masks, and into the status flags.

use super::floating_point::float_imm;
use super::operands::handler;
use super::string_compare::set_flags;
use super::unit;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use crate::state::RFlags;
use iced_x86::{Instruction, Mnemonic as M};

/// The table of this file.
pub fn handler(x: &Instruction) -> Option<Handler> {
    Some(match x.mnemonic() {
        M::Cmpps => float_imm!(16, unit::cmpps),
        M::Cmpss => float_imm!(4, unit::cmpss),
        M::Cmppd => float_imm!(16, unit::cmppd),
        M::Cmpsd => float_imm!(8, unit::cmpsd),
        M::Comiss => handler!(|v, i| compare::<4>(v, i, unit::comiss)),
        M::Comisd => handler!(|v, i| compare::<8>(v, i, unit::comisd)),
        M::Ucomiss => handler!(|v, i| compare::<4>(v, i, unit::ucomiss)),
        M::Ucomisd => handler!(|v, i| compare::<8>(v, i, unit::ucomisd)),
        _ => return None,
    })
}

/// COMISS and kin. Flags: ZF, PF, CF as the order is; OF = SF = AF = 0.
#[inline(always)]
fn compare<const N: u32>(
    v: &mut Vcpu,
    i: &Insn,
    f: impl Fn(u128, u128, u32) -> (RFlags, u32),
) -> Result<(), Exit> {
    v.check_sse()?;
    let b = v.xmm_source::<N>(i)?;
    let (order, flags) = f(v.xmm(i.r0), b, v.state.mxcsr);
    v.float_flags(flags)?;
    set_flags(v, order);
    Ok(())
}
