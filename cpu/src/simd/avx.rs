//! What exists with a VEX prefix only: broadcasts, permutations, moves under a mask, lanes of 128 bits, variable shifts,
//! half precision (SDM Vol. 1, "Programming with AVX, FMA, and AVX2"). The rest is SSE on lanes (`operands.rs`).

use super::gather;
use super::lanes::{Lane, each, get, put};
use super::operands::{handler, shape, vex, vex_float, vex_lanes};
use super::packed_integer::vtest;
use super::shuffle::blend;
use super::soft_sse;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use iced_x86::{Instruction, Mnemonic as M, OpKind};
use std::sync::LazyLock;

/// The SSE instruction that a VEX instruction's lanes are: the one whose name lacks the V. Itself if there is none.
pub fn legacy_mnemonic(m: M) -> M {
    static LEGACY: LazyLock<Vec<M>> = LazyLock::new(|| {
        let names: Vec<(String, M)> = M::values().map(|m| (format!("{m:?}").to_lowercase(), m)).collect();
        let of = |name: &str| names.iter().find(|n| n.0 == name).map(|n| n.1);
        names.iter().map(|(name, m)| name.strip_prefix('v').and_then(of).unwrap_or(*m)).collect()
    });
    LEGACY.get(m as usize).copied().unwrap_or(m)
}

/// The table of this file.
pub fn handler(x: &Instruction, i: &mut Insn) -> Option<Handler> {
    let by_immediate = x.op_kind(x.op_count().saturating_sub(1)) == OpKind::Immediate8;
    Some(match x.mnemonic() {
        M::Vzeroupper => handler!(vzeroupper),
        M::Vzeroall => handler!(vzeroall),

        M::Vpbroadcastb => handler!(broadcast::<8>),
        M::Vpbroadcastw => handler!(broadcast::<16>),
        M::Vpbroadcastd | M::Vbroadcastss => handler!(broadcast::<32>),
        M::Vpbroadcastq | M::Vbroadcastsd => handler!(broadcast::<64>),
        M::Vbroadcastf128 | M::Vbroadcasti128 => {
            handler!(|v, i| vex::<{ shape::SAME }>(v, i, |_, _, b| b))
        }
        M::Vextractf128 | M::Vextracti128 => handler!(extract_lane),
        M::Vinsertf128 | M::Vinserti128 => handler!(insert_lane),
        M::Vperm2f128 | M::Vperm2i128 => handler!(permute_lanes),

        M::Vpermilps if by_immediate => handler!(|v, i: &Insn| {
            vex::<{ shape::EVEN }>(v, i, |_, _, b| pick(b, 32, |k| i.imm as u32 >> (k * 2) & 3))
        }),
        M::Vpermilpd if by_immediate => handler!(|v, i: &Insn| {
            vex::<{ shape::EVEN }>(v, i, |n, _, b| pick(b, 64, |k| i.imm as u32 >> (n * 2 + k) & 1))
        }),
        M::Vpermilps => handler!(|v, i| {
            vex::<{ shape::EVEN }>(v, i, |_, a, b| pick(a, 32, |k| get(b, k, 32) as u32 & 3))
        }),
        M::Vpermilpd => handler!(|v, i| {
            vex::<{ shape::EVEN }>(v, i, |_, a, b| pick(a, 64, |k| get(b, k, 64) as u32 >> 1 & 1))
        }),
        M::Vpermd | M::Vpermps => handler!(permute_doubles),
        M::Vpermq | M::Vpermpd => handler!(permute_quads),

        M::Vpblendd => handler!(|v, i: &Insn| {
            vex::<{ shape::EVEN }>(v, i, |n, a, b| blend(a, b, 32, |k| i.imm >> (n * 4 + k) & 1 != 0))
        }),
        M::Vpblendvb => handler!(blend_variable::<8>),
        M::Vblendvps => handler!(blend_variable::<32>),
        M::Vblendvpd => handler!(blend_variable::<64>),

        M::Vtestps => handler!(|v, i| vtest(v, i, 0x8000_0000_8000_0000_8000_0000_8000_0000)),
        M::Vtestpd => handler!(|v, i| vtest(v, i, 0x8000_0000_0000_0000_8000_0000_0000_0000)),

        M::Vpsllvd => handler!(|v, i| shift::<u32>(v, i, |x, n| x.checked_shl(n).unwrap_or(0))),
        M::Vpsllvq => handler!(|v, i| shift::<u64>(v, i, left)),
        M::Vpsrlvd => handler!(|v, i| shift::<u32>(v, i, |x, n| x.checked_shr(n).unwrap_or(0))),
        M::Vpsrlvq => handler!(|v, i| shift::<u64>(v, i, right)),
        M::Vpsravd => handler!(|v, i| shift::<i32>(v, i, |x, n: i32| x >> (n as u32).min(31))),

        M::Vcvtph2ps => handler!(|v, i| vex_float::<{ shape::WIDER_2 }>(v, i, soft_sse::cvtph2ps)),
        M::Vcvtps2ph => handler!(vcvtps2ph),
        _ => return gather::handler(x, i),
    })
}

fn left(x: u64, n: u64) -> u64 {
    if n > 63 { 0 } else { x << n }
}

fn right(x: u64, n: u64) -> u64 {
    if n > 63 { 0 } else { x >> n }
}

/// VPSLLV, VPSRLV, VPSRAV: each lane by a count of its own.
fn shift<T: Lane>(v: &mut Vcpu, i: &Insn, f: impl Fn(T, T) -> T) -> Result<(), Exit> {
    vex::<{ shape::EVEN }>(v, i, |_, a, b| each(a, b, &f))
}

/// The registers that the mode can name.
fn registers(v: &mut Vcpu) -> &mut [[u64; 8]] {
    let count = if v.state.code64() { 16 } else { 8 };
    &mut v.state.zmm[..count]
}

/// VZEROUPPER: clears what is above 128 bits.
fn vzeroupper(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    registers(v).iter_mut().for_each(|r| r[2..].fill(0));
    Ok(())
}

/// VZEROALL.
fn vzeroall(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    registers(v).fill([0; 8]);
    Ok(())
}

/// A lane of elements of `bits` bits, each the element of `x` that `from` names.
#[inline(always)]
fn pick(x: u128, bits: u32, from: impl Fn(u32) -> u32) -> u128 {
    (0..128 / bits).fold(0, |r, k| put(r, k, bits, get(x, from(k), bits)))
}

/// VBROADCAST, VPBROADCAST: the lowest element everywhere.
fn broadcast<const BITS: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    vex::<{ shape::SAME }>(v, i, |_, _, b| pick(b, BITS, |_| 0))
}

/// VEXTRACTF128, VEXTRACTI128.
fn extract_lane(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let value = v.ymm(i.r1)[i.imm as usize & 1];
    if i.memory() {
        let address = v.operand_address(i, 16, true)?;
        return v.store_128(i.seg, address, value);
    }
    v.set_ymm(i.r0, [value, 0]);
    Ok(())
}

/// VINSERTF128, VINSERTI128.
fn insert_lane(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let b = v.vex_source(i)?[0];
    let mut r = v.ymm(i.r2);
    r[i.imm as usize & 1] = b;
    v.set_ymm(i.r0, r);
    Ok(())
}

/// VPERM2F128, VPERM2I128: each lane any of four, or zero.
fn permute_lanes(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let b = v.vex_source(i)?;
    let a = v.ymm(i.r2);
    let lane = |field: u64| match field & 0xB {
        0 => a[0],
        1 => a[1],
        2 => b[0],
        3 => b[1],
        _ => 0,
    };
    v.set_ymm(i.r0, [lane(i.imm), lane(i.imm >> 4)]);
    Ok(())
}

/// VPERMD, VPERMPS: doublewords of the second source by the indices in the first.
fn permute_doubles(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let b = v.vex_source(i)?;
    let r = v.ymm(i.r2).map(|indices| {
        (0..4).fold(0, |r, k| {
            let from = get(indices, k, 32) as u32 & 7;
            put(r, k, 32, get(b[from as usize / 4], from % 4, 32))
        })
    });
    v.set_ymm(i.r0, r);
    Ok(())
}

/// VPERMQ, VPERMPD: quadwords by two bits of the immediate each.
fn permute_quads(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let b = v.vex_source(i)?;
    let quad = |k: u32| {
        let from = i.imm as u32 >> (k * 2) & 3;
        get(b[from as usize / 2], from % 2, 64)
    };
    v.set_ymm(i.r0, [super::lanes::pair(quad(0), quad(1)), super::lanes::pair(quad(2), quad(3))]);
    Ok(())
}

/// VPBLENDVB, VBLENDVPS, VBLENDVPD: elements of the second source where the mask register's are negative.
fn blend_variable<const BITS: u32>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let masks = v.ymm(i.imm as u8);
    vex::<{ shape::EVEN }>(v, i, |n, a, b| {
        blend(a, b, BITS, |k| masks[n as usize] >> (k * BITS + BITS - 1) & 1 != 0)
    })
}

/// VCVTPS2PH: the destination is a register or memory of half the source's size.
fn vcvtps2ph(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (mxcsr, mut flags) = (v.state.mxcsr, 0);
    // The source is operand 1, a register.
    let source = Insn { prefix: i.prefix & !crate::insn::prefix::MEMORY, ..*i };
    let [r, _] = vex_lanes::<{ shape::NARROWER }>(v, &source, |_, _, b| {
        let (r, new) = soft_sse::cvtps2ph(i.imm as u8, b, mxcsr);
        flags |= new;
        r
    })?;
    if !i.memory() {
        v.float_flags(flags)?;
        v.set_ymm(i.r0, [r, 0]);
        return Ok(());
    }
    let address = v.operand_address(i, u32::from(i.w / 2), true)?;
    v.check_store(i.seg, address, u64::from(i.w / 2))?;
    v.float_flags(flags)?;
    if i.w == 32 { v.store_128(i.seg, address, r) } else { v.store::<8>(i.seg, address, r as u64) }
}
