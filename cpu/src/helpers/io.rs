//! Port I/O and its permission checks (SDM Vol. 1, "I/O Permission Bit Map").

use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Insn, W};
use crate::state::gpr;

/// Fails with #GP(0) where the privilege level and the TSS's bit map forbid the port.
pub fn check_permission(v: &mut Vcpu, port: u16, size: u8) -> Result<(), Exit> {
    let s = &v.state;
    if !s.protected() || s.cpl <= s.iopl() && !s.v86() {
        return Ok(());
    }
    let tr = s.tr;
    // Only a 32-bit (or 64-bit) TSS has a map.
    if tr.typ() & 8 == 0 || tr.limit < 103 {
        return Err(v.protection());
    }
    let map = v.load_system(tr.base.wrapping_add(102), 2)?;
    let at = map + u64::from(port / 8);
    if at + 1 > u64::from(tr.limit) {
        return Err(v.protection());
    }
    let bits = v.load_system(tr.base.wrapping_add(at), 2)?;
    let mask = ((1u64 << size) - 1) << (port % 8);
    if bits & mask != 0 {
        return Err(v.protection());
    }
    Ok(())
}

/// One read cycle.
pub fn read(v: &mut Vcpu, port: u16, size: u8) -> u32 {
    v.before_device_access();
    v.counters.port_io += 1;
    let value = v.bus.port_read(v.id, port, size);
    v.after_device_access();
    value
}

/// One write cycle.
pub fn write(v: &mut Vcpu, port: u16, size: u8, value: u32) {
    v.before_device_access();
    v.counters.port_io += 1;
    v.bus.port_write(v.id, port, size, value);
    v.after_device_access();
}

/// The port of IN and OUT: DX or an immediate byte.
fn port(v: &Vcpu, i: &Insn) -> u16 {
    use iced_x86::Code::*;
    match i.code {
        In_AL_imm8 | In_AX_imm8 | In_EAX_imm8 | Out_imm8_AL | Out_imm8_AX | Out_imm8_EAX => {
            i.imm as u16 & 0xFF
        }
        _ => v.state.gpr[gpr::RDX] as u16,
    }
}

fn size(i: &Insn) -> u8 {
    use iced_x86::Code::*;
    match i.code {
        In_AL_imm8 | In_AL_DX | Out_imm8_AL | Out_DX_AL => 1,
        In_AX_imm8 | In_AX_DX | Out_imm8_AX | Out_DX_AX => 2,
        _ => 4,
    }
}

/// IN.
pub fn r#in(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (port, size) = (port(v, i), size(i));
    check_permission(v, port, size)?;
    let value = read(v, port, size);
    v.put_reg(W::from_bytes(size), gpr::RAX as u8, u64::from(value));
    Ok(())
}

/// OUT.
pub fn out(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (port, size) = (port(v, i), size(i));
    check_permission(v, port, size)?;
    let value = v.get_reg(W::from_bytes(size), gpr::RAX as u8);
    write(v, port, size, value as u32);
    Ok(())
}
