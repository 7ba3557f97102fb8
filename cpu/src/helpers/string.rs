//! String instructions and REP (SDM Vol. 1, "String Instructions").
//!
//! Each iteration is restartable: registers are written once its accesses are done. Under REP a helper runs many
//! iterations in one go, as far as the budget and the attention word allow; each counts as one retired
//! instruction.

use super::io;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Insn, W, prefix};
use crate::run::BLOCK_INSNS;
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
    repeat_bulk(v, i, kind, |_, _, _| 0, step)
}

/// As [`repeat`]. `bulk` may do up to so many iterations at once; it returns how many it did, index registers moved.
#[inline(always)]
fn repeat_bulk(
    v: &mut Vcpu,
    i: &Insn,
    kind: Repeat,
    bulk: impl Fn(&mut Vcpu, &Insn, u64) -> u64,
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
    let (budget, allowed) = (v.budget_left(), v.iterations_allowed());
    let mut done = 0;
    loop {
        let at_once = match bulk(v, i, left.min(allowed - done)) {
            0 => match step(v, i) {
                Ok(()) => 1,
                Err(Exit::Fault) => {
                    // The iterations before this one are done.
                    v.extra += done;
                    return Err(Exit::Fault);
                }
                Err(exit) => return Err(exit),
            },
            n => n,
        };
        left = left.wrapping_sub(at_once) & w.mask();
        v.put_reg(w, gpr::RCX as u8, left);
        done += at_once;
        let wanted = i.has(prefix::REP);
        if left == 0 || kind == Repeat::Equal && v.lazy.zf() != wanted {
            // The rest of the block may not fit into the budget any more.
            v.stop_block |= done > 1 && budget - (done as i64) < BLOCK_INSNS as i64;
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

/// Whether many iterations may be done at once: upwards, in 64-bit mode or flat segments, with full addresses.
fn plain(v: &Vcpu, i: &Insn) -> bool {
    !v.state.rflags.contains(RFlags::DF) && i.has(prefix::CODE64) && i.asize == 8
}

/// MOVS.
pub fn movs(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let many = |v: &mut Vcpu, i: &Insn, most: u64| {
        if !plain(v, i) {
            return 0;
        }
        let from = v.state.gpr[gpr::RSI].wrapping_add(v.state.seg[usize::from(i.seg) & 7].base);
        let to = v.state.gpr[gpr::RDI];
        let n = v.copy_elements(from, to, i.w, most);
        v.state.gpr[gpr::RSI] = v.state.gpr[gpr::RSI].wrapping_add(n * u64::from(i.w));
        v.state.gpr[gpr::RDI] = to.wrapping_add(n * u64::from(i.w));
        n
    };
    repeat_bulk(v, i, Repeat::Count, many, |v, i| {
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
    let many = |v: &mut Vcpu, i: &Insn, most: u64| {
        if !plain(v, i) {
            return 0;
        }
        let to = v.state.gpr[gpr::RDI];
        let n = v.fill_elements(to, i.w, v.state.gpr[gpr::RAX], most);
        v.state.gpr[gpr::RDI] = to.wrapping_add(n * u64::from(i.w));
        n
    };
    repeat_bulk(v, i, Repeat::Count, many, |v, i| {
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use crate::Vcpu;
    use crate::blocks::BlockKey;
    use crate::decode::lower;
    use crate::simd::tests::{BUFFER, vcpu};
    use crate::state::gpr;
    use iced_x86::{Decoder, DecoderOptions};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    const LEN: usize = 0x3000;

    fn run(v: &mut Vcpu, code: &[u8]) {
        let x = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
        let i = lower(&x, BlockKey::of(&v.state), &v.model.clone().features);
        v.budget = 1 << 20;
        while v.state.gpr[gpr::RCX] != 0 {
            assert_ne!((i.run)(v, &i), Err(crate::fault::Exit::Fault));
        }
    }

    /// REP MOVS and STOS of all sizes, overlapping at all distances, against one element after the other.
    #[test]
    fn bulk_is_as_element_by_element() {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut v = vcpu();
        for round in 0..4000 {
            let size = 1usize << rng.random_range(0..4);
            let prefix: &[u8] = match size {
                1 => &[0xF3],
                2 => &[0x66, 0xF3],
                4 => &[0xF3],
                _ => &[0xF3, 0x48],
            };
            let (stos, count) = (round % 4 == 0, rng.random_range(0..300usize));
            let opcode = if stos { 0xAA } else { 0xA4 } | u8::from(size > 1);
            let code = [prefix, &[opcode]].concat();
            let from = rng.random_range(0x100..0x1800usize);
            let to = if rng.random() {
                from.wrapping_add_signed(rng.random_range(-40i32..40) as isize)
            } else {
                rng.random_range(0..0x1800)
            };
            let mut ram = vec![0u8; LEN];
            rng.fill(&mut ram[..]);
            v.ram.write(BUFFER, &ram);
            let value: u64 = rng.random();
            (v.state.gpr[gpr::RSI], v.state.gpr[gpr::RDI]) = (BUFFER + from as u64, BUFFER + to as u64);
            (v.state.gpr[gpr::RAX], v.state.gpr[gpr::RCX]) = (value, count as u64);
            run(&mut v, &code);
            for n in (0..count).map(|n| n * size) {
                let element = if stos {
                    value.to_le_bytes()[..size].to_vec()
                } else {
                    ram[from + n..from + n + size].to_vec()
                };
                ram[to + n..to + n + size].copy_from_slice(&element);
            }
            let mut now = vec![0u8; LEN];
            v.ram.read(BUFFER, &mut now);
            assert!(ram == now, "{code:x?} from {from:#x} to {to:#x}, {count} times");
            assert_eq!(v.state.gpr[gpr::RDI], BUFFER + (to + count * size) as u64);
        }
    }
}
