//! FBLD, FBSTP: packed decimal, 18 digits and a sign byte.

use super::unit::status::{C1, EARLY, IE, PE};
use super::unit::{INDEFINITE, RC};
use super::{Format, convert, engine};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::Insn;

/// The packed decimal indefinite.
const INDEFINITE_BCD: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xC0, 0xFF, 0xFF];
/// One more than the greatest magnitude.
const LIMIT: u64 = 1_000_000_000_000_000_000;

/// FBLD: pushes a packed decimal. Flags: C1.
/// Undefined: nibbles above 9 count with their value.
pub fn fbld(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    let address = v.operand_address(i, 10, false)?;
    let mut bytes = [0; 10];
    v.load_bytes(i.seg, address, &mut bytes)?;
    v.x87_note(i);
    let digits = bytes[..9].iter().rev();
    let value = digits.fold(0, |n: u64, b| n * 100 + u64::from(b >> 4) * 10 + u64::from(b & 15));
    let x = &mut v.state.x87;
    if x.room(i) {
        x.report(i, 0, C1);
        x.push(convert::unsigned(value).with_sign(bytes[9] & 0x80 != 0));
    }
    Ok(())
}

/// FBSTP: stores ST(0), rounded to an integer, as packed decimal and pops. Flags: C1.
pub fn fbstp(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    let address = v.operand_address(i, 10, true)?;
    let x = &v.state.x87;
    let empty = x.empty(0);
    let value = if empty { INDEFINITE } else { x.st(0) };
    let (integer, mut flags) = (engine().store)(Format::I64, value, x.control & RC | 0x37F & !RC, 0);
    let magnitude = (integer as i64).unsigned_abs();
    let mut bytes = INDEFINITE_BCD;
    if flags & IE == 0 && magnitude < LIMIT {
        let mut rest = magnitude;
        for byte in &mut bytes[..9] {
            *byte = (rest % 10 + rest / 10 % 10 * 16) as u8;
            rest /= 100;
        }
        bytes[9] = if value.negative() { 0x80 } else { 0 };
    } else {
        flags = IE;
    }
    if empty {
        flags = IE | super::unit::status::SF;
    }
    let stored = flags & !x.control & EARLY == 0;
    v.check_store(i.seg, address, 10)?;
    if stored {
        v.store_bytes(i.seg, address, &bytes)?;
    }
    v.x87_note(i);
    let x = &mut v.state.x87;
    if x.report(i, flags & (IE | PE | C1 | super::unit::status::SF), C1) {
        x.pop();
    }
    Ok(())
}
