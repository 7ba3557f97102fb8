//! Memory accesses by element: moves under a mask, and gathers (SDM Vol. 2, "VMASKMOV", "VPMASKMOV", "VGATHERDPS" and
//! kin). What the mask leaves out is not accessed and cannot fault.

use super::lanes::{get, put};
use super::operands::handler;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use crate::state::gpr;
use iced_x86::{Instruction, Mnemonic as M};

/// The table of this file. Gathers find the index register in `imm2`; one that names a register twice is #UD.
pub fn handler(x: &Instruction, i: &mut Insn) -> Option<Handler> {
    let store = i.mem_op == 0;
    Some(match x.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd if store => handler!(masked_store::<32>),
        M::Vmaskmovpd | M::Vpmaskmovq if store => handler!(masked_store::<64>),
        M::Vmaskmovps | M::Vpmaskmovd => handler!(masked_load::<32>),
        M::Vmaskmovpd | M::Vpmaskmovq => handler!(masked_load::<64>),
        M::Vpgatherdd | M::Vgatherdps => return gather_handler(x, i, handler!(gather::<32, 32>)),
        M::Vpgatherdq | M::Vgatherdpd => return gather_handler(x, i, handler!(gather::<32, 64>)),
        M::Vpgatherqd | M::Vgatherqps => return gather_handler(x, i, handler!(gather::<64, 32>)),
        M::Vpgatherqq | M::Vgatherqpd => return gather_handler(x, i, handler!(gather::<64, 64>)),
        _ => return None,
    })
}

fn gather_handler(x: &Instruction, i: &mut Insn, run: Handler) -> Option<Handler> {
    let index = x.memory_index();
    i.imm2 = index.number() as u8;
    i.index = gpr::ZERO as u8;
    // Operand 2, the mask.
    i.r2 = x.op_register(2).number() as u8;
    let long = x.op_register(0).is_ymm() || index.is_ymm();
    i.w = if long { 32 } else { 16 };
    let distinct = i.r0 != i.r2 && i.r0 != i.imm2 && i.r2 != i.imm2;
    Some(if distinct { run } else { crate::helpers::misc::undefined })
}

/// Element `n` of two lanes.
fn element(x: [u128; 2], n: u32, bits: u32) -> u64 {
    let per_lane = 128 / bits;
    get(x[(n / per_lane) as usize & 1], n % per_lane, bits)
}

fn set_element(x: &mut [u128; 2], n: u32, bits: u32, value: u64) {
    let per_lane = 128 / bits;
    let lane = &mut x[(n / per_lane) as usize & 1];
    *lane = put(*lane, n % per_lane, bits, value);
}

/// The elements whose mask is negative.
fn chosen(mask: [u128; 2], count: u32, bits: u32) -> impl Iterator<Item = u32> {
    (0..count).filter(move |&n| element(mask, n, bits) >> (bits - 1) != 0)
}

/// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ from memory: the others become zero.
fn masked_load<const BITS: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (mask, size) = (v.ymm(i.r2), BITS / 8);
    let mut r = [0; 2];
    for n in chosen(mask, u32::from(i.w) / size, BITS) {
        let address = element_address(v, i, u64::from(n * size), size, false)?;
        set_element(&mut r, n, BITS, v.load_sized(i.seg, address, size as u8)?);
    }
    v.set_ymm(i.r0, r);
    Ok(())
}

/// The same to memory: all elements are checked before the first is written.
fn masked_store<const BITS: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (mask, data, size) = (v.ymm(i.r2), v.ymm(i.r1), BITS / 8);
    let count = u32::from(i.w) / size;
    for n in chosen(mask, count, BITS) {
        let address = element_address(v, i, u64::from(n * size), size, true)?;
        v.check_store(i.seg, address, u64::from(size))?;
    }
    for n in chosen(mask, count, BITS) {
        let address = element_address(v, i, u64::from(n * size), size, true)?;
        v.store_sized(i.seg, address, size as u8, element(data, n, BITS))?;
    }
    Ok(())
}

/// Linear address of an element that lies `distance` bytes from the memory operand's beginning.
fn element_address(v: &mut Vcpu, i: &Insn, distance: u64, size: u32, write: bool) -> Result<u64, Exit> {
    let offset = v.effective_address(i).wrapping_add(distance) & i.address_mask();
    v.linear(i, i.seg, offset, size, write)
}

/// VPGATHER, VGATHER: elements at base + index * scale, from the lowest on. Each that is there clears its mask, so
/// that after a fault the instruction goes on where it stopped.
fn gather<const INDEX: u32, const DATA: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let indices = v.ymm(i.imm2);
    let (mut r, mut mask) = (v.ymm(i.r0), v.ymm(i.r2));
    let count = u32::from(i.w) * 8 / INDEX.max(DATA);
    // All of a mask element counts by its sign.
    for n in 0..count {
        let sign = element(mask, n, DATA) >> (DATA - 1) != 0;
        set_element(&mut mask, n, DATA, if sign { !0 } else { 0 });
    }
    let unused = 64 - INDEX;
    for n in chosen(mask, count, DATA) {
        let index = ((element(indices, n, INDEX) << unused) as i64 >> unused) as u64;
        let loaded = element_address(v, i, index << i.scale, DATA / 8, false)
            .and_then(|address| v.load_sized(i.seg, address, (DATA / 8) as u8));
        match loaded {
            Ok(value) => set_element(&mut r, n, DATA, value),
            Err(exit) => {
                keep(v, i, count * DATA, r, mask);
                return Err(exit);
            }
        }
        set_element(&mut mask, n, DATA, 0);
    }
    keep(v, i, count * DATA, r, [0; 2]);
    Ok(())
}

/// Writes destination and mask; what is above `bits` becomes zero.
fn keep(v: &mut Vcpu, i: &Insn, bits: u32, r: [u128; 2], mask: [u128; 2]) {
    let cut = |[low, high]: [u128; 2]| match bits {
        64 => [low & u128::from(u64::MAX), 0],
        128 => [low, 0],
        _ => [low, high],
    };
    v.set_ymm(i.r0, cut(r));
    v.set_ymm(i.r2, cut(mask));
}
