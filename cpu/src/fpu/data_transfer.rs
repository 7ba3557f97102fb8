//! Data transfer and constants (SDM Vol. 1, "Data Transfer Instructions", "Load Constant Instructions").

use super::comparison::fcmov;
use super::unit::status::*;
use super::unit::{INDEFINITE, ONE, RC};
use super::{Format, bcd, convert, engine};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use crate::state::{F80, RFlags};
use iced_x86::{Instruction, MemorySize, Mnemonic as M};

/// The table of this file.
pub fn handler(x: &Instruction) -> Option<Handler> {
    let extended = x.memory_size() == MemorySize::Float80;
    let register = x.memory_size() == MemorySize::Unknown;
    const BELOW_EQUAL: RFlags = RFlags::CF.union(RFlags::ZF);
    Some(match x.mnemonic() {
        M::Fld if register => fld_register,
        M::Fld if extended => fld_extended,
        M::Fld | M::Fild => fld,
        M::Fst if register => |v, i| fst_register(v, i, 0),
        M::Fstpnce => fstpnce,
        M::Fstp if register => |v, i| fst_register(v, i, 1),
        M::Fstp if extended => fstp_extended,
        M::Fst | M::Fist => |v, i| fst(v, i, 0, false),
        M::Fstp | M::Fistp => |v, i| fst(v, i, 1, false),
        M::Fisttp => |v, i| fst(v, i, 1, true),
        M::Fbld => bcd::fbld,
        M::Fbstp => bcd::fbstp,
        M::Fxch => fxch,
        M::Fcmovb => |v, i| fcmov(v, i, RFlags::CF, true),
        M::Fcmove => |v, i| fcmov(v, i, RFlags::ZF, true),
        M::Fcmovbe => |v, i| fcmov(v, i, BELOW_EQUAL, true),
        M::Fcmovu => |v, i| fcmov(v, i, RFlags::PF, true),
        M::Fcmovnb => |v, i| fcmov(v, i, RFlags::CF, false),
        M::Fcmovne => |v, i| fcmov(v, i, RFlags::ZF, false),
        M::Fcmovnbe => |v, i| fcmov(v, i, BELOW_EQUAL, false),
        M::Fcmovnu => |v, i| fcmov(v, i, RFlags::PF, false),
        M::Fld1 => |v, i| constant(v, i, ONE, false, false),
        M::Fldz => |v, i| constant(v, i, F80::default(), false, false),
        M::Fldl2t => |v, i| constant(v, i, LOG2_10, false, true),
        M::Fldl2e => |v, i| constant(v, i, LOG2_E, true, false),
        M::Fldpi => |v, i| constant(v, i, PI, true, false),
        M::Fldlg2 => |v, i| constant(v, i, LOG10_2, true, false),
        M::Fldln2 => |v, i| constant(v, i, LN_2, true, false),
        _ => return None,
    })
}

/// The constants, rounded to nearest.
const LOG2_10: F80 = F80 { significand: 0xD49A_784B_CD1B_8AFE, sign_exponent: 0x4000 };
const LOG2_E: F80 = F80 { significand: 0xB8AA_3B29_5C17_F0BC, sign_exponent: 0x3FFF };
const PI: F80 = F80 { significand: 0xC90F_DAA2_2168_C235, sign_exponent: 0x4000 };
const LOG10_2: F80 = F80 { significand: 0x9A20_9A84_FBCF_F799, sign_exponent: 0x3FFD };
const LN_2: F80 = F80 { significand: 0xB172_17F7_D1CF_79AC, sign_exponent: 0x3FFE };

/// FLD1, FLDZ, FLDPI, FLDL2T, FLDL2E, FLDLG2, FLDLN2: push a constant, rounded as RC says. `down`: towards
/// zero it is one less; `up`: towards infinity one more. Flags: C1 = 0.
fn constant(v: &mut Vcpu, i: &Insn, value: F80, down: bool, up: bool) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    let adjust = match (x.control & RC) >> 10 {
        1 | 3 if down => -1,
        2 if up => 1,
        _ => 0,
    };
    if x.room(i) {
        x.report(i, 0, C1);
        x.push(F80 { significand: value.significand.wrapping_add_signed(adjust), ..value });
    }
    Ok(())
}

/// FLD m32, m64; FILD: push. Flags: C1.
fn fld(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    let format = Format::of(i);
    let bits = v.x87_load(i, format.bytes())?;
    v.x87_note(i);
    let (value, flags) = convert::load(format, bits);
    let x = &mut v.state.x87;
    if x.room(i) {
        x.report(i, flags, C1);
        // An unmasked #D comes with the push, an unmasked #IA without.
        if flags & !x.control & IE == 0 {
            x.push(value);
        }
    }
    Ok(())
}

/// FLD m80: pushes the bits as they are. Flags: C1.
fn fld_extended(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    let address = v.operand_address(i, 10, false)?;
    let bits = v.load_80(i.seg, address)?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    if x.room(i) {
        x.report(i, 0, C1);
        x.push(F80 { significand: bits as u64, sign_exponent: (bits >> 64) as u16 });
    }
    Ok(())
}

/// FLD ST(i): pushes a copy. Flags: C1.
fn fld_register(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    let value = x.st(i.r0);
    // An empty source goes before a full stack.
    if x.empty(i.r0) {
        if x.underflow(i) {
            x.push(INDEFINITE);
        }
    } else if x.room(i) {
        x.report(i, 0, C1);
        x.push(value);
    }
    Ok(())
}

/// FST, FSTP to ST(i). Flags: C1 = 0.
fn fst_register(v: &mut Vcpu, i: &Insn, pops: u8) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    let value = if x.empty(0) { INDEFINITE } else { x.st(0) };
    let go = if x.empty(0) { x.underflow(i) } else { x.report(i, 0, C1) };
    if go {
        x.set_st(i.r0, value);
        x.pop_times(pops);
    }
    Ok(())
}

/// FSTPNCE, the undocumented D9 /3: FSTP ST(i) that looks at no tag. Flags: C1 = 0.
fn fstpnce(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    x.report(i, 0, C1);
    // An empty register is popped and not copied.
    if !x.empty(0) {
        let value = x.st(0);
        x.set_st(i.r0, value);
    }
    x.pop();
    Ok(())
}

/// FST, FSTP m32, m64; FIST, FISTP, FISTTP (`chop`: truncates whatever RC says). Flags: C1.
fn fst(v: &mut Vcpu, i: &Insn, pops: u8, chop: bool) -> Result<(), Exit> {
    v.x87_enter()?;
    let format = Format::of(i);
    let x = &v.state.x87;
    let empty = x.empty(0);
    let control = if chop { x.control | RC } else { x.control };
    let (bits, flags) = if empty {
        ((engine().store)(format, INDEFINITE, 0x37F, 0).0, IE | SF)
    } else {
        (engine().store)(format, x.st(0), control, x.status & EXCEPTIONS)
    };
    let stored = flags & !x.control & (EARLY | OE | UE) == 0;
    if stored {
        v.x87_store(i, format.bytes(), bits)?;
    } else {
        // Nothing is written, but the place must be writable.
        let address = v.operand_address(i, u32::from(format.bytes()), true)?;
        v.check_store(i.seg, address, u64::from(format.bytes()))?;
    }
    v.x87_note(i);
    let x = &mut v.state.x87;
    x.report(i, if chop { flags & !C1 } else { flags }, C1);
    if stored {
        x.pop_times(pops);
    }
    Ok(())
}

/// FSTP m80: stores the bits as they are and pops. Flags: C1 = 0.
fn fstp_extended(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    let x = &v.state.x87;
    let (value, flags) = if x.empty(0) { (INDEFINITE, IE | SF) } else { (x.st(0), 0) };
    let stored = flags & !x.control & IE == 0;
    let address = v.operand_address(i, 10, true)?;
    if stored {
        let bits = u128::from(value.sign_exponent) << 64 | u128::from(value.significand);
        v.store_80(i.seg, address, bits)?;
    } else {
        v.check_store(i.seg, address, 10)?;
    }
    v.x87_note(i);
    let x = &mut v.state.x87;
    if x.report(i, flags, C1) {
        x.pop();
    }
    Ok(())
}

/// FXCH: exchanges ST(0) and ST(i). Flags: C1 = 0.
fn fxch(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    v.x87_note(i);
    let x = &mut v.state.x87;
    let n = i.r1;
    let go = if x.empty(0) || x.empty(n) { x.underflow(i) } else { x.report(i, 0, C1) };
    if go {
        let a = if x.empty(0) { INDEFINITE } else { x.st(0) };
        let b = if x.empty(n) { INDEFINITE } else { x.st(n) };
        x.set_st(0, b);
        x.set_st(n, a);
    }
    Ok(())
}
