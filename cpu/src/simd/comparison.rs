//! Floating-point comparison: into masks, and into the status flags.

use super::floating_point::float_imm;
use super::operands::{Forms, shared};
use super::string_compare::set_flags;
use super::{soft_sse, unit};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::Insn;
use crate::state::RFlags;
use iced_x86::Mnemonic as M;

/// The table of this file.
pub fn handler(m: M) -> Option<Forms> {
    Some(match m {
        M::Cmpps => predicate!(16, cmpps),
        M::Cmpss => predicate!(4, cmpss),
        M::Cmppd => predicate!(16, cmppd),
        M::Cmpsd => predicate!(8, cmpsd),
        M::Comiss => shared!(|v, i| compare::<4>(v, i, unit::comiss)),
        M::Comisd => shared!(|v, i| compare::<8>(v, i, unit::comisd)),
        M::Ucomiss => shared!(|v, i| compare::<4>(v, i, unit::ucomiss)),
        M::Ucomisd => shared!(|v, i| compare::<8>(v, i, unit::ucomisd)),
        _ => return None,
    })
}

/// CMPPS and kin: 8 predicates; 32 with a VEX prefix, of which the SSE unit knows the first 8.
macro_rules! predicate {
    ($n:literal, $name:ident) => {
        Forms {
            legacy: float_imm!($n, |p: u8, a, b, c| unit::$name(p & 7, a, b, c)).legacy,
            vex: float_imm!($n, |p: u8, a, b, c| match p & 31 {
                p if p < 8 => unit::$name(p, a, b, c),
                p => soft_sse::$name(p, a, b, c),
            })
            .vex,
        }
    };
}
use predicate;

/// COMISS and kin. Flags: ZF, PF, CF as the order is; OF = SF = AF = 0.
#[inline(always)]
fn compare<const N: u32>(
    v: &mut Vcpu,
    i: &Insn,
    f: impl Fn(u128, u128, u32) -> (RFlags, u32),
) -> Result<(), Exit> {
    v.check_vector(i)?;
    let b = v.xmm_source::<N>(i)?;
    let (order, flags) = f(v.xmm(i.r0), b, v.state.mxcsr);
    v.float_flags(flags)?;
    set_flags(v, order);
    Ok(())
}
