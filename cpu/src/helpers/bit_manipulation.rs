//! BMI1, BMI2, LZCNT, TZCNT, ADX (SDM Vol. 1, "Bit Manipulation Instructions"). Those with a VEX prefix have operand 0 as
//! destination; VEX.vvvv is operand 1 or 2, the other may be memory. What is plain data flow among them is a kernel
//! (`kernels/bit_manipulation.rs`).

use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn, W};
use crate::kernels::Kernel;
use crate::state::RFlags;
use iced_x86::{EncodingKind, Instruction, Mnemonic as M, OpKind};

/// The kernel of an instruction of these groups, for those that are one.
pub fn kernel(x: &Instruction, i: &mut Insn) -> Option<Kernel> {
    let kernel = match x.mnemonic() {
        M::Andn => Kernel::Andn,
        M::Mulx => Kernel::Mulx,
        M::Rorx => Kernel::Rorx,
        M::Sarx => Kernel::Sarx,
        M::Shlx => Kernel::Shlx,
        M::Shrx => Kernel::Shrx,
        _ => return None,
    };
    operands(x, i);
    Some(kernel)
}

/// The handler of one of the others.
pub fn handler(x: &Instruction, i: &mut Insn) -> Option<Handler> {
    use M::*;
    let run: Handler = match x.mnemonic() {
        Bextr => bextr,
        Blsi => blsi,
        Blsmsk => blsmsk,
        Blsr => blsr,
        Bzhi => bzhi,
        Pdep => pdep,
        Pext => pext,
        Lzcnt => lzcnt,
        Tzcnt => tzcnt,
        Adcx => |v, i| add_with(v, i, RFlags::CF),
        Adox => |v, i| add_with(v, i, RFlags::OF),
        _ => return None,
    };
    operands(x, i);
    Some(run)
}

/// The first source of VEX forms (MULX: the second destination) goes to `r2`, the one that may be memory to `r1`, as
/// operand 1.
fn operands(x: &Instruction, i: &mut Insn) {
    if x.encoding() == EncodingKind::VEX && x.op_count() == 3 && x.op2_kind() != OpKind::Immediate8 {
        let register =
            |n: u32| if x.op_kind(n) == OpKind::Register { x.op_register(n).number() as u8 } else { 0 };
        // Operand 1 is VEX.vvvv, but for shifts, BEXTR and BZHI it is operand 2.
        let last = matches!(x.mnemonic(), M::Bextr | M::Bzhi | M::Sarx | M::Shlx | M::Shrx);
        (i.r2, i.r1) = if last { (register(2), register(1)) } else { (register(1), register(2)) };
    }
    if i.memory() {
        i.mem_op = 1;
    }
    i.w = x.op0_register().size() as u8;
}

/// The source that may be memory.
fn source(v: &mut Vcpu, i: &Insn) -> Result<u64, Exit> {
    if i.memory() {
        let address = v.operand_address(i, u32::from(i.w), false)?;
        return v.load_sized(i.seg, address, i.w);
    }
    Ok(v.get_reg(i.width(), i.r1))
}

/// CF as given, ZF and SF by the result, OF = 0. Undefined: AF is 0, PF by the result, as with AMD.
fn set_flags(v: &mut Vcpu, w: W, r: u64, cf: bool) {
    v.set_status(RFlags::STATUS, logic_flags(w, r, cf));
}

fn logic_flags(w: W, r: u64, cf: bool) -> RFlags {
    let mut flags = RFlags::empty();
    flags.set(RFlags::CF, cf);
    flags.set(RFlags::PF, (r as u8).count_ones().is_multiple_of(2));
    flags.set(RFlags::ZF, r & w.mask() == 0);
    flags.set(RFlags::SF, r & w.sign() != 0);
    flags
}

/// BEXTR: as many bits as bits 15:8 of the control say, from the bit on that 7:0 name. Flags: ZF;
/// CF = OF = 0. Undefined: PF by the result, AF = 1, SF = 0, as with AMD.
fn bextr(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (w, control) = (i.width(), v.get_reg(i.width(), i.r2));
    let (start, length) = ((control & 0xFF) as u32, (control >> 8 & 0xFF) as u32);
    let shifted = source(v, i)?.checked_shr(start).unwrap_or(0);
    let r = if length < 64 { shifted & ((1 << length) - 1) } else { shifted };
    v.put_reg(w, i.r0, r);
    v.set_status(RFlags::STATUS, logic_flags(w, r, false) - RFlags::SF | RFlags::AF);
    Ok(())
}

/// The one operand of BLSI, BLSMSK, BLSR, whose destination is VEX.vvvv.
fn lowest_set(v: &mut Vcpu, i: &Insn, f: fn(u64) -> u64, carry: fn(u64) -> bool) -> Result<(), Exit> {
    let (w, a) = (i.width(), source(v, i)?);
    let r = f(a) & w.mask();
    v.put_reg(w, i.r0, r);
    set_flags(v, w, r, carry(a));
    Ok(())
}

/// BLSI: the lowest set bit alone. CF = there is one.
fn blsi(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    lowest_set(v, i, |a| a & a.wrapping_neg(), |a| a != 0)
}

/// BLSMSK: all bits up to the lowest set one. CF = there is none.
fn blsmsk(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    lowest_set(v, i, |a| a ^ a.wrapping_sub(1), |a| a == 0)
}

/// BLSR: without the lowest set bit. CF = there was none.
fn blsr(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    lowest_set(v, i, |a| a & a.wrapping_sub(1), |a| a == 0)
}

/// BZHI: clears the bits from an index on. CF = the index is beyond the operand.
fn bzhi(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let w = i.width();
    let n = (v.get_reg(w, i.r2) & 0xFF) as u32;
    let a = source(v, i)?;
    let r = if n < w.bits() { a & ((1 << n) - 1) } else { a };
    v.put_reg(w, i.r0, r);
    set_flags(v, w, r, n >= w.bits());
    Ok(())
}

/// The positions of set bits, from the lowest on.
fn set_bits(mut mask: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let n = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (n < 64).then_some(n)
    })
}

/// PDEP: the first source's low bits to the places that the mask names. Flags: none.
fn pdep(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (w, a) = (i.width(), v.get_reg(i.width(), i.r2));
    let mask = source(v, i)?;
    let r = set_bits(mask).enumerate().fold(0, |r, (from, to)| r | (a >> from & 1) << to);
    v.put_reg(w, i.r0, r);
    Ok(())
}

/// PEXT: the bits that the mask names, to the low end. Flags: none.
fn pext(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (w, a) = (i.width(), v.get_reg(i.width(), i.r2));
    let mask = source(v, i)?;
    let r = set_bits(mask).enumerate().fold(0, |r, (to, from)| r | (a >> from & 1) << to);
    v.put_reg(w, i.r0, r);
    Ok(())
}

/// Counts zeros. CF = the source is 0, ZF = the count is. Undefined: OF stays, the others are 0,
/// as with AMD.
fn count_zeros(v: &mut Vcpu, i: &Insn, f: fn(W, u64) -> u32) -> Result<(), Exit> {
    let (w, a) = (i.width(), source(v, i)?);
    let r = f(w, a);
    v.put_reg(w, i.r0, u64::from(r));
    let mut flags = RFlags::empty();
    flags.set(RFlags::CF, r == w.bits());
    flags.set(RFlags::ZF, r == 0);
    v.set_status(RFlags::STATUS - RFlags::OF, flags);
    Ok(())
}

/// LZCNT.
fn lzcnt(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    count_zeros(v, i, |w, a| a.leading_zeros() - (64 - w.bits()))
}

/// TZCNT.
fn tzcnt(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    count_zeros(v, i, |w, a| a.trailing_zeros().min(w.bits()))
}

/// ADCX, ADOX: addition with one flag as carry in and out. Flags: that one.
fn add_with(v: &mut Vcpu, i: &Insn, flag: RFlags) -> Result<(), Exit> {
    let (w, b) = (i.width(), source(v, i)?);
    let carry = v.rflags().contains(flag);
    let sum = u128::from(v.get_reg(w, i.r0)) + u128::from(b) + u128::from(carry);
    v.put_reg(w, i.r0, sum as u64);
    let out = if sum >> w.bits() != 0 { flag } else { RFlags::empty() };
    v.set_status(flag, out);
    Ok(())
}
