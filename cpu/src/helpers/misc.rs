//! What fits no other group.

use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::Insn;
use iced_x86::{Decoder, DecoderError, DecoderOptions};
use std::sync::atomic::{Ordering, fence as host_fence};

/// Bytes that are no instruction of this model: #UD.
pub fn undefined(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    Err(v.undefined())
}

/// A vector instruction with a VEX prefix where AVX is not enabled: #UD, or #NM if only CR0.TS is in the way.
pub fn avx_unavailable(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let enabled = v.state.avx_enabled();
    Err(v.raise(if enabled { vector::NM } else { vector::UD }))
}

/// More than 15 bytes: #GP(0).
pub fn too_long(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    Err(v.protection())
}

/// Whether 15 bytes that the decoder refuses are whole, and so #UD. It does not tell them from the beginning of a
/// longer instruction, but it tells 14 bytes from that: so they are decoded without a prefix that adds nothing.
pub fn whole(bytes: &[u8], bitness: u32) -> bool {
    let is_prefix = |&&byte: &&u8| {
        let segment_or_size = matches!(byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3);
        segment_or_size || bitness == 64 && byte & 0xF0 == 0x40
    };
    let prefixes = &bytes[..bytes.iter().take_while(is_prefix).count()];
    let adds_nothing = |n: usize| {
        matches!(prefixes[n], 0x26 | 0x2E | 0x36 | 0x3E | 0x64 | 0x65 | 0xF0)
            || prefixes[n + 1..].contains(&prefixes[n])
    };
    let Some(n) = (0..prefixes.len()).find(|&n| adds_nothing(n)) else { return false };
    let mut shorter = [&bytes[..n], &bytes[n + 1..]].concat();
    let refused = |bytes: &[u8]| {
        let mut decoder = Decoder::new(bitness, bytes, DecoderOptions::NONE);
        let invalid = decoder.decode().is_invalid();
        (invalid, decoder.last_error() == DecoderError::NoMoreBytes)
    };
    if refused(&shorter) != (true, true) {
        return true;
    }
    // The decoder gives an undefined opcode a ModRM byte, which silicon does not ask for.
    let end = shorter.len();
    shorter.push(0);
    (0..=0xFF).all(|modrm| {
        shorter[end] = modrm;
        refused(&shorter).0
    })
}

/// An instruction of the model that we lack: #UD, a counter and a log line.
pub fn unimplemented(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.counters.unimplemented += 1;
    tracing::warn!(target: "cpu", code = ?i.code, rip = v.insn_rip(i.len), "instruction is not implemented: #UD");
    Err(v.undefined())
}

/// MFENCE, LFENCE, SFENCE.
pub fn fence(_: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    host_fence(Ordering::SeqCst);
    Ok(())
}

/// BOUND: #BR if operand 0 is outside the pair of signed bounds in memory.
pub fn bound(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let w = if i.code == iced_x86::Code::Bound_r16_m1616 { 2u8 } else { 4 };
    let width = crate::insn::W::from_bytes(w);
    let address = v.operand_address(i, u32::from(w) * 2, false)?;
    let low = v.load_sized(i.seg, address, w)?;
    let high = v.load_sized(i.seg, address.wrapping_add(u64::from(w)), w)?;
    let value = width.sext(v.get_reg(width, i.r0)) as i64;
    if value < width.sext(low) as i64 || value > width.sext(high) as i64 {
        return Err(v.raise(vector::BR));
    }
    Ok(())
}

/// XLAT: AL = DS:[rBX + AL].
pub fn xlat(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let al = v.state.gpr[0] & 0xFF;
    let offset = v.state.gpr[3].wrapping_add(al) & i.address_mask();
    let address = v.linear(i, i.seg, offset, 1, false)?;
    let value = v.load::<1>(i.seg, address)?;
    v.put_reg(crate::insn::W::B, 0, value);
    Ok(())
}

/// SALC: AL = CF ? FFh : 0.
pub fn salc(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let value = if v.lazy.cf { 0xFF } else { 0 };
    v.put_reg(crate::insn::W::B, 0, value);
    Ok(())
}

/// CMPXCHG8B: compares EDX:EAX with 8 bytes and exchanges with ECX:EBX. Flags: ZF.
pub fn cmpxchg8b(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let address = v.operand_address(i, 8, true)?;
    let g = v.state.gpr;
    let expected = g[2] << 32 | g[0] & 0xFFFF_FFFF;
    let new = g[1] << 32 | g[3] & 0xFFFF_FFFF;
    let equal = loop {
        let (old, place) = v.load_for_write::<8>(i.seg, address)?;
        let equal = old == expected;
        if v.put_locked::<8>(place, old, if equal { new } else { old }) {
            if !equal {
                v.state.gpr[0] = old & 0xFFFF_FFFF;
                v.state.gpr[2] = old >> 32;
            }
            break equal;
        }
    };
    set_zero_flag(v, equal);
    Ok(())
}

/// CMPXCHG16B: as CMPXCHG8B with RDX:RAX and RCX:RBX; the operand must be aligned (#GP). Flags: ZF.
pub fn cmpxchg16b(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let address = v.operand_address(i, 16, true)?;
    if address & 15 != 0 {
        return Err(v.protection());
    }
    let g = v.state.gpr;
    let expected = u128::from(g[2]) << 64 | u128::from(g[0]);
    let new = u128::from(g[1]) << 64 | u128::from(g[3]);
    let old = match v.host_for_write_16(i.seg, address)? {
        Some(host) => crate::memory::compare_exchange_16(host, expected, new),
        None => {
            // Device memory: two plain accesses.
            let old = v.load_128(i.seg, address)?;
            if old == expected {
                v.store_128(i.seg, address, new)?;
            }
            old
        }
    };
    if old != expected {
        v.state.gpr[0] = old as u64;
        v.state.gpr[2] = (old >> 64) as u64;
    }
    set_zero_flag(v, old == expected);
    Ok(())
}

/// Sets ZF alone.
pub fn set_zero_flag(v: &mut Vcpu, on: bool) {
    use crate::state::RFlags;
    v.set_status(RFlags::ZF, if on { RFlags::ZF } else { RFlags::empty() });
}
