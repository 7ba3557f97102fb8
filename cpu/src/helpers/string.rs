//! String instructions and REP (SDM Vol. 1, "String Instructions").
//!
//! Each iteration is restartable: registers are written once its accesses are done. Under REP a helper runs many
//! iterations in one go, as far as the budget and the attention word allow; each counts as one retired
//! instruction.

use super::io;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Insn, W, prefix};
use crate::state::{RFlags, gpr, seg};

/// Which iterations go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// While the count is not 0.
    Count,
    /// CMPS and SCAS: also while ZF is as the prefix says.
    Equal,
}

/// Runs `step` once, or under REP as often as allowed.
fn repeat(
    v: &mut Vcpu,
    i: &Insn,
    kind: Repeat,
    step: impl Fn(&mut Vcpu, &Insn) -> Result<(), Exit>,
) -> Result<(), Exit> {
    if !i.has(prefix::REP | prefix::REPNE) {
        return step(v, i);
    }
    let w = W::from_bytes(i.asize);
    let mut left = v.get_reg(w, gpr::RCX as u8);
    if left == 0 {
        return Ok(());
    }
    let allowed = v.iterations_allowed();
    let mut done = 0;
    loop {
        match step(v, i) {
            Ok(()) => {}
            Err(Exit::Fault) => {
                // The iterations before this one are done.
                v.extra += done;
                return Err(Exit::Fault);
            }
            Err(exit) => return Err(exit),
        }
        left = left.wrapping_sub(1) & w.mask();
        v.put_reg(w, gpr::RCX as u8, left);
        done += 1;
        let wanted = i.has(prefix::REP);
        if left == 0 || kind == Repeat::Equal && v.lazy.zf() != wanted {
            v.extra += done - 1;
            return Ok(());
        }
        if done >= allowed || v.stop_block || v.shared.pending() != 0 {
            v.extra += done - 1;
            return Err(Exit::Again);
        }
    }
}

/// Address of the source: rSI in DS or the overriding segment.
#[inline(always)]
fn source(v: &mut Vcpu, i: &Insn, segment: u8) -> Result<u64, Exit> {
    let offset = v.state.gpr[gpr::RSI] & i.address_mask();
    v.linear(i, segment, offset, u32::from(i.w), false)
}

/// Address of the destination: rDI in ES, whatever the prefixes.
#[inline(always)]
fn destination(v: &mut Vcpu, i: &Insn, write: bool) -> Result<u64, Exit> {
    let offset = v.state.gpr[gpr::RDI] & i.address_mask();
    if i.has(prefix::CODE64) {
        return Ok(offset);
    }
    v.checked_linear(seg::ES as u8, offset, u32::from(i.w), write)
}

/// Moves an index register on by one element.
#[inline(always)]
fn advance(v: &mut Vcpu, i: &Insn, register: usize) {
    let w = W::from_bytes(i.asize);
    let step = u64::from(i.w);
    let old = v.get_reg(w, register as u8);
    let down = v.state.rflags.contains(RFlags::DF);
    v.put_reg(w, register as u8, if down { old.wrapping_sub(step) } else { old.wrapping_add(step) });
}

/// MOVS.
pub fn movs(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    repeat(v, i, Repeat::Count, |v, i| {
        let from = source(v, i, i.seg)?;
        let value = v.load_sized(i.seg, from, i.w)?;
        let to = destination(v, i, true)?;
        v.store_sized(seg::FLAT as u8, to, i.w, value)?;
        advance(v, i, gpr::RSI);
        advance(v, i, gpr::RDI);
        Ok(())
    })
}

/// STOS.
pub fn stos(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    repeat(v, i, Repeat::Count, |v, i| {
        let to = destination(v, i, true)?;
        let value = v.state.gpr[gpr::RAX];
        v.store_sized(seg::FLAT as u8, to, i.w, value)?;
        advance(v, i, gpr::RDI);
        Ok(())
    })
}

/// LODS.
pub fn lods(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    repeat(v, i, Repeat::Count, |v, i| {
        let from = source(v, i, i.seg)?;
        let value = v.load_sized(i.seg, from, i.w)?;
        v.put_reg(i.width(), gpr::RAX as u8, value);
        advance(v, i, gpr::RSI);
        Ok(())
    })
}

/// The flags of a - b.
fn compare(v: &mut Vcpu, i: &Insn, a: u64, b: u64) {
    use crate::flags::Flags;
    use crate::interp::Interp;
    use crate::ops::Ops;
    let w = i.width();
    let (a, b) = (a & w.mask(), b & w.mask());
    let r = a.wrapping_sub(b) & w.mask();
    Interp::<8, 0>::new(v).flags(Flags::Sub { w, a, b, r });
}

/// CMPS: flags of source - destination.
pub fn cmps(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    repeat(v, i, Repeat::Equal, |v, i| {
        let from = source(v, i, i.seg)?;
        let a = v.load_sized(i.seg, from, i.w)?;
        let to = destination(v, i, false)?;
        let b = v.load_sized(seg::FLAT as u8, to, i.w)?;
        compare(v, i, a, b);
        advance(v, i, gpr::RSI);
        advance(v, i, gpr::RDI);
        Ok(())
    })
}

/// SCAS: flags of the accumulator - destination.
pub fn scas(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    repeat(v, i, Repeat::Equal, |v, i| {
        let to = destination(v, i, false)?;
        let b = v.load_sized(seg::FLAT as u8, to, i.w)?;
        let a = v.state.gpr[gpr::RAX];
        compare(v, i, a, b);
        advance(v, i, gpr::RDI);
        Ok(())
    })
}

/// INS: the destination is checked before the port is read.
pub fn ins(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let port = v.state.gpr[gpr::RDX] as u16;
    io::check_permission(v, port, i.w)?;
    repeat(v, i, Repeat::Count, |v, i| {
        let to = destination(v, i, true)?;
        let flat = seg::FLAT as u8;
        let place = match i.w {
            1 => v.load_for_write::<1>(flat, to)?.1,
            2 => v.load_for_write::<2>(flat, to)?.1,
            _ => v.load_for_write::<4>(flat, to)?.1,
        };
        let value = u64::from(io::read(v, port, i.w));
        match i.w {
            1 => v.put::<1>(place, value),
            2 => v.put::<2>(place, value),
            _ => v.put::<4>(place, value),
        }
        advance(v, i, gpr::RDI);
        Ok(())
    })
}

/// OUTS.
pub fn outs(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let port = v.state.gpr[gpr::RDX] as u16;
    io::check_permission(v, port, i.w)?;
    repeat(v, i, Repeat::Count, |v, i| {
        let from = source(v, i, i.seg)?;
        let value = v.load_sized(i.seg, from, i.w)?;
        io::write(v, port, i.w, value as u32);
        advance(v, i, gpr::RSI);
        Ok(())
    })
}
