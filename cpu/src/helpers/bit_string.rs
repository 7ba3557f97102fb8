//! BT, BTS, BTR, BTC with a register offset into memory: a bit string that reaches 2 GB (or 2^63 bits) either
//! way.

use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Insn, W, prefix};
use iced_x86::Mnemonic;

/// See the head of this file. Flags: CF.
pub fn bit_in_memory(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let w = i.width();
    let index = w.sext(v.get_reg(w, i.r1)) as i64;
    let unit = i64::from(w.bits());
    let step = index.div_euclid(unit).wrapping_mul(i64::from(w.bytes()));
    let bit = 1u64 << index.rem_euclid(unit);
    let mnemonic = i.code.mnemonic();
    let offset = v.effective_address(i).wrapping_add(step as u64) & i.address_mask();
    let write = mnemonic != Mnemonic::Bt;
    let address = v.linear(i, i.seg, offset, u32::from(i.w), write)?;
    let set = match w {
        W::W => change::<2>(v, i, address, bit, mnemonic)?,
        W::D => change::<4>(v, i, address, bit, mnemonic)?,
        _ => change::<8>(v, i, address, bit, mnemonic)?,
    };
    v.lazy.cf = set;
    Ok(())
}

fn change<const S: u8>(v: &mut Vcpu, i: &Insn, at: u64, bit: u64, m: Mnemonic) -> Result<bool, Exit> {
    if m == Mnemonic::Bt {
        return Ok(v.load::<S>(i.seg, at)? & bit != 0);
    }
    loop {
        let (old, place) = v.load_for_write::<S>(i.seg, at)?;
        let new = match m {
            Mnemonic::Bts => old | bit,
            Mnemonic::Btr => old & !bit,
            _ => old ^ bit,
        };
        if !i.has(prefix::LOCK) {
            v.put::<S>(place, new);
            return Ok(old & bit != 0);
        }
        if v.put_locked::<S>(place, old, new) {
            return Ok(old & bit != 0);
        }
    }
}
