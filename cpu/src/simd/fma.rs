//! Fused multiply-add (SDM Vol. 2, "VFMADD132PD/VFMADD213PD/VFMADD231PD" and kin): one rounding.
//!
//! The name says which operand plays which part, which products and addends are negated, and what the elements are.

use super::lanes::put;
use super::operands::{handler, shape, vex_lanes};
use super::unit;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use iced_x86::Instruction;

/// A fused operation on the elements of 128 bits: both factors, the addend and MXCSR to result and new flags.
pub type Fused = fn(u128, u128, u128, u32) -> (u128, u32);

/// The table of this file: `imm` becomes the operation's number ([`operation`]).
pub fn handler(x: &Instruction, i: &mut Insn) -> Option<Handler> {
    let name = format!("{:?}", x.mnemonic()).to_lowercase();
    let rest = name.strip_prefix("vf")?;
    let digits = rest.find(|c: char| c.is_ascii_digit())?;
    let (operation, rest) = rest.split_at(digits);
    let (order, kind) = rest.split_at_checked(3)?;
    let at = ["madd", "msub", "nmadd", "nmsub", "maddsub", "msubadd"].iter().position(|&o| o == operation)?;
    let double = kind.ends_with('d');
    i.imm = (at * 2 + usize::from(double)) as u64;
    Some(match (order, kind) {
        ("132", "ps" | "pd") => handler!(|v, i| packed(v, i, |d, a, b| (d, b, a))),
        ("213", "ps" | "pd") => handler!(|v, i| packed(v, i, |d, a, b| (a, d, b))),
        ("231", "ps" | "pd") => handler!(|v, i| packed(v, i, |d, a, b| (a, b, d))),
        ("132", "ss" | "sd") => handler!(|v, i| scalar(v, i, |d, a, b| (d, b, a))),
        ("213", "ss" | "sd") => handler!(|v, i| scalar(v, i, |d, a, b| (a, d, b))),
        ("231", "ss" | "sd") => handler!(|v, i| scalar(v, i, |d, a, b| (a, b, d))),
        _ => return None,
    })
}

/// By `imm`: madd, msub, nmadd, nmsub, maddsub, msubadd, each in single and double precision.
fn operation(i: &Insn) -> Fused {
    [
        unit::fmaddps,
        unit::fmaddpd,
        unit::fmsubps,
        unit::fmsubpd,
        unit::fnmaddps,
        unit::fnmaddpd,
        unit::fnmsubps,
        unit::fnmsubpd,
        unit::fmaddsubps,
        unit::fmaddsubpd,
        unit::fmsubaddps,
        unit::fmsubaddpd,
    ][i.imm as usize % 12]
}

/// Destination, first and second source to factor, factor, addend.
type Order = fn(u128, u128, u128) -> (u128, u128, u128);

fn packed(v: &mut Vcpu, i: &Insn, order: Order) -> Result<(), Exit> {
    let (f, d, mxcsr, mut flags) = (operation(i), v.ymm(i.r0), v.state.mxcsr, 0);
    let r = vex_lanes::<{ shape::EVEN }>(v, i, |n, a, b| {
        let (a, b, c) = order(d[n as usize], a, b);
        let (r, new) = f(a, b, c, mxcsr);
        flags |= new;
        r
    })?;
    v.float_flags(flags)?;
    v.set_ymm(i.r0, r);
    Ok(())
}

/// The lowest element alone; the rest of the destination's 128 bits stays.
fn scalar(v: &mut Vcpu, i: &Insn, order: Order) -> Result<(), Exit> {
    let bits = if i.imm & 1 == 0 { 32 } else { 64 };
    let b = v.vex_source(i)?[0];
    let lowest = |x: u128| x & (!0 >> (128 - bits));
    let d = v.xmm(i.r0);
    let (a, b, c) = order(lowest(d), lowest(v.xmm(i.r2)), lowest(b));
    let (r, flags) = operation(i)(a, b, c, v.state.mxcsr);
    v.float_flags(flags)?;
    v.set_ymm(i.r0, [put(d, 0, bits, lowest(r) as u64), 0]);
    Ok(())
}
