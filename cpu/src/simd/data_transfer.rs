//! Data transfer: moves between registers, memory and the general registers; non-temporal and masked stores.

use super::lanes::{get, low, pair, put};
use super::operands::{Forms, forms, handler, mmx, shared, xmm};
use crate::Vcpu;
use crate::decode::NO_MEMORY;
use crate::fault::Exit;
use crate::insn::{Insn, W, prefix};
use crate::simd::is_mmx;
use crate::state::gpr;
use iced_x86::{Code, Instruction, Mnemonic as M};

/// The table of this file.
pub fn handler(m: M, x: &Instruction, i: &mut Insn) -> Option<Forms> {
    Some(match m {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => {
            match i.mem_op {
                NO_MEMORY => forms!(copy, vex_copy),
                0 => forms!(store::<16>, vex_store::<true>),
                _ => forms!(load::<16>, vex_load::<true>),
            }
        }
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => match i.mem_op {
            NO_MEMORY => forms!(copy, vex_copy),
            0 => forms!(store_unaligned, vex_store::<false>),
            _ => forms!(load_unaligned, vex_load::<false>),
        },
        M::Movss => match i.mem_op {
            NO_MEMORY => xmm!(|a, b| put(a, 0, 32, b as u64)),
            0 => shared!(store::<4>),
            _ => shared!(load::<4>),
        },
        M::Movsd => match i.mem_op {
            NO_MEMORY => xmm!(|a: u128, b| pair(b as u64, (a >> 64) as u64)),
            0 => shared!(store::<8>),
            _ => shared!(load::<8>),
        },
        M::Movq | M::Movd => return movd(x, i),
        M::Movlps | M::Movlpd if i.mem_op == 0 => shared!(store::<8>),
        M::Movlps | M::Movlpd => xmm!(8, |a: u128, b| pair(b as u64, (a >> 64) as u64)),
        M::Movhps | M::Movhpd if i.mem_op == 0 => shared!(store_high),
        M::Movhps | M::Movhpd | M::Movlhps => xmm!(8, |a, b| pair(a as u64, b as u64)),
        M::Movhlps => xmm!(|a: u128, b: u128| pair((b >> 64) as u64, (a >> 64) as u64)),
        M::Movddup => xmm!(8, |_, b| pair(b as u64, b as u64)),
        M::Movsldup => xmm!(|_, b| duplicate(b, 0)),
        M::Movshdup => xmm!(|_, b| duplicate(b, 1)),
        M::Movdq2q => handler!(movdq2q).into(),
        M::Movq2dq => handler!(movq2dq).into(),
        M::Movnti => handler!(movnti).into(),
        M::Movntq => handler!(store_mmx::<8>).into(),
        M::Maskmovq => handler!(maskmovq).into(),
        M::Maskmovdqu => shared!(maskmovdqu),
        M::Pmovmskb if is_mmx(x) => handler!(pmovmskb_mmx).into(),
        M::Pmovmskb => shared!(move_mask::<8>),
        M::Movmskps => shared!(move_mask::<32>),
        M::Movmskpd => shared!(move_mask::<64>),
        M::Emms => handler!(emms).into(),
        _ => return None,
    })
}

/// MOVD and MOVQ: between a vector register's low part and a general register, memory or another one.
fn movd(x: &Instruction, i: &Insn) -> Option<Forms> {
    let memory = i.memory();
    Some(match x.code() {
        Code::Movd_mm_rm32 if memory => mmx!(4, |_, b| b),
        Code::Movq_mm_rm64 | Code::Movq_mm_mmm64 if memory => mmx!(8, |_, b| b),
        Code::Movq_mm_mmm64 => mmx!(8, |_, b| b),
        Code::Movd_mm_rm32 => handler!(|v, i| mmx_from_general(v, i, W::D)).into(),
        Code::Movq_mm_rm64 => handler!(|v, i| mmx_from_general(v, i, W::Q)).into(),
        Code::Movd_rm32_mm if memory => handler!(store_mmx::<4>).into(),
        Code::Movq_rm64_mm | Code::Movq_mmm64_mm if memory => handler!(store_mmx::<8>).into(),
        Code::Movq_mmm64_mm => mmx!(8, |_, b| b),
        Code::Movd_rm32_mm => handler!(|v, i| general_from_mmx(v, i, W::D)).into(),
        Code::Movq_rm64_mm => handler!(|v, i| general_from_mmx(v, i, W::Q)).into(),
        Code::Movd_xmm_rm32 | Code::VEX_Vmovd_xmm_rm32 if memory => shared!(load::<4>),
        Code::Movq_xmm_rm64
        | Code::VEX_Vmovq_xmm_rm64
        | Code::Movq_xmm_xmmm64
        | Code::VEX_Vmovq_xmm_xmmm64
            if memory =>
        {
            shared!(load::<8>)
        }
        Code::Movd_xmm_rm32 | Code::VEX_Vmovd_xmm_rm32 => shared!(|v, i| xmm_from_general(v, i, W::D)),
        Code::Movq_xmm_rm64 | Code::VEX_Vmovq_xmm_rm64 => shared!(|v, i| xmm_from_general(v, i, W::Q)),
        Code::Movd_rm32_xmm | Code::VEX_Vmovd_rm32_xmm if memory => shared!(store::<4>),
        Code::Movq_rm64_xmm
        | Code::VEX_Vmovq_rm64_xmm
        | Code::Movq_xmmm64_xmm
        | Code::VEX_Vmovq_xmmm64_xmm
            if memory =>
        {
            shared!(store::<8>)
        }
        Code::Movd_rm32_xmm | Code::VEX_Vmovd_rm32_xmm => shared!(|v, i| general_from_xmm(v, i, W::D)),
        Code::Movq_rm64_xmm | Code::VEX_Vmovq_rm64_xmm => shared!(|v, i| general_from_xmm(v, i, W::Q)),
        Code::Movq_xmm_xmmm64
        | Code::VEX_Vmovq_xmm_xmmm64
        | Code::Movq_xmmm64_xmm
        | Code::VEX_Vmovq_xmmm64_xmm => xmm!(|_, b| low(b)),
        _ => return None,
    })
}

/// MOVAPS and kin between registers.
fn copy(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    let value = v.xmm(i.r1);
    v.set_xmm(i.r0, value);
    Ok(())
}

/// MOVAPS (16 bytes, aligned), MOVSD, MOVQ (8), MOVSS, MOVD (4) from memory, zero-extended.
fn load<const N: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let value = v.load_operand::<N>(i)?;
    v.set_destination(i, value);
    Ok(())
}

/// The same to memory.
fn store<const N: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let value = v.xmm(i.r1);
    v.store_operand::<N>(i, value)
}

/// VMOVAPS and kin between registers.
fn vex_copy(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let value = v.ymm(i.r1);
    v.set_vex(i, value);
    Ok(())
}

/// The linear address of a VEX move's operand: some must be aligned to their size (#GP(0)).
fn vex_address<const ALIGNED: bool>(v: &mut Vcpu, i: &Insn, write: bool) -> Result<u64, Exit> {
    let address = v.operand_address(i, u32::from(i.w), write)?;
    if ALIGNED && address & u64::from(i.w - 1) != 0 {
        return Err(v.protection());
    }
    Ok(address)
}

/// VMOVAPS, VMOVUPS and kin from memory.
fn vex_load<const ALIGNED: bool>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    vex_address::<ALIGNED>(v, i, false)?;
    let value = v.vex_memory(i)?;
    v.set_ymm(i.r0, value);
    Ok(())
}

/// The same to memory.
fn vex_store<const ALIGNED: bool>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let address = vex_address::<ALIGNED>(v, i, true)?;
    let [low, high] = v.ymm(i.r1);
    if i.w == 32 {
        v.check_store(i.seg, address, 32)?;
        v.store_128(i.seg, address, low)?;
        return v.store_128(i.seg, address.wrapping_add(16), high);
    }
    v.store_128(i.seg, address, low)
}

/// MOVUPS, MOVUPD, MOVDQU, LDDQU from memory.
fn load_unaligned(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    let address = v.operand_address(i, 16, false)?;
    let value = v.load_128(i.seg, address)?;
    v.set_xmm(i.r0, value);
    Ok(())
}

/// MOVUPS, MOVUPD, MOVDQU to memory.
fn store_unaligned(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    let address = v.operand_address(i, 16, true)?;
    let value = v.xmm(i.r1);
    v.store_128(i.seg, address, value)
}

/// MOVHPS, MOVHPD to memory.
fn store_high(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let value = v.xmm(i.r1) >> 64;
    v.store_operand::<8>(i, value)
}

/// MOVSLDUP, MOVSHDUP: doubleword 0 or 1 of each quadword, twice.
fn duplicate(b: u128, which: u32) -> u128 {
    super::lanes::map(b, |q: u64| {
        let d = q >> (which * 32) & 0xFFFF_FFFF;
        d << 32 | d
    })
}

fn xmm_from_general(v: &mut Vcpu, i: &Insn, w: W) -> Result<(), Exit> {
    v.check_vector(i)?;
    let value = v.get_reg(w, i.r1);
    v.set_destination(i, u128::from(value));
    Ok(())
}

fn general_from_xmm(v: &mut Vcpu, i: &Insn, w: W) -> Result<(), Exit> {
    v.check_vector(i)?;
    let value = v.xmm(i.r1) as u64;
    v.put_reg(w, i.r0, value);
    Ok(())
}

fn mmx_from_general(v: &mut Vcpu, i: &Insn, w: W) -> Result<(), Exit> {
    v.check_mmx()?;
    let value = v.get_reg(w, i.r1);
    v.set_mm(i.r0, value);
    Ok(())
}

fn general_from_mmx(v: &mut Vcpu, i: &Insn, w: W) -> Result<(), Exit> {
    v.check_mmx()?;
    v.enter_mmx();
    let value = v.mm(i.r1);
    v.put_reg(w, i.r0, value);
    Ok(())
}

/// MOVD, MOVQ, MOVNTQ from MMX to memory.
fn store_mmx<const N: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_mmx()?;
    let value = v.mm(i.r1);
    v.store_operand::<N>(i, u128::from(value))?;
    v.enter_mmx();
    Ok(())
}

/// MOVDQ2Q: the low quadword to an MMX register.
fn movdq2q(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    v.check_mmx()?;
    let value = v.xmm(i.r1) as u64;
    v.set_mm(i.r0, value);
    Ok(())
}

/// MOVQ2DQ: an MMX register, zero-extended.
fn movq2dq(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    v.check_mmx()?;
    v.enter_mmx();
    let value = v.mm(i.r1);
    v.set_xmm(i.r0, u128::from(value));
    Ok(())
}

/// MOVNTI: stores a general register; touches nothing of the vector unit.
fn movnti(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let address = v.operand_address(i, u32::from(i.w), true)?;
    let value = v.get_reg(i.width(), i.r1);
    v.store_sized(i.seg, address, i.w, value)
}

/// PMOVMSKB, MOVMSKPS, MOVMSKPD: the lanes' signs.
#[inline(always)]
fn move_mask<const BITS: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let [low, high] = v.ymm(i.r1);
    let above = if i.w == 32 && i.has(prefix::VEX) { signs(high, BITS) } else { 0 };
    let signs = signs(low, BITS) | above << (128 / BITS);
    v.put_reg(W::Q, i.r0, signs);
    Ok(())
}

/// PMOVMSKB, MMX form.
fn pmovmskb_mmx(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_mmx()?;
    v.enter_mmx();
    let signs = signs(u128::from(v.mm(i.r1)), 8);
    v.put_reg(W::Q, i.r0, signs);
    Ok(())
}

#[inline(always)]
fn signs(x: u128, bits: u32) -> u64 {
    if bits == 8 {
        // The multiplication gathers the top bits of eight bytes in the top byte.
        let of_eight = |q: u64| ((q >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080)) >> 56;
        return of_eight(x as u64) | of_eight((x >> 64) as u64) << 8;
    }
    (0..128 / bits).fold(0, |r, n| r | get(x, n, bits) >> (bits - 1) << n)
}

/// MASKMOVDQU: stores the bytes whose mask byte is negative at DS:rDI.
fn maskmovdqu(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let (data, mask) = (v.xmm(i.r1), signs(v.xmm(i.r2), 8));
    store_masked(v, i, data, mask, 16)
}

/// MASKMOVQ: the same for an MMX register.
fn maskmovq(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_mmx()?;
    let (data, mask) = (v.mm(i.r1), signs(u128::from(v.mm(i.r2)), 8));
    store_masked(v, i, u128::from(data), mask, 8)?;
    v.enter_mmx();
    Ok(())
}

/// Undefined: faults where no byte of a page is stored; here none.
fn store_masked(v: &mut Vcpu, i: &Insn, data: u128, mask: u64, size: u32) -> Result<(), Exit> {
    if mask == 0 {
        return Ok(());
    }
    let offset = v.state.gpr[gpr::RDI] & i.address_mask();
    let start = v.linear(i, i.seg, offset, size, true)?;
    let (first, last) = (mask.trailing_zeros(), 63 - mask.leading_zeros());
    v.load_for_write::<1>(i.seg, start.wrapping_add(u64::from(first)))?;
    v.load_for_write::<1>(i.seg, start.wrapping_add(u64::from(last)))?;
    for n in (first..=last).filter(|n| mask >> n & 1 != 0) {
        v.store::<1>(i.seg, start.wrapping_add(u64::from(n)), get(data, n, 8))?;
    }
    Ok(())
}

/// EMMS: all x87 registers are empty.
fn emms(v: &mut Vcpu, _i: &Insn) -> Result<(), Exit> {
    v.check_mmx()?;
    v.enter_mmx();
    v.state.x87.valid = 0;
    Ok(())
}
