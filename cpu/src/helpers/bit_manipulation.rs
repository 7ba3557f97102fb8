//! BMI1, BMI2, LZCNT, TZCNT, ADX (SDM Vol. 1, "Bit Manipulation Instructions"). Those with a VEX prefix have operand 0 as
//! destination; VEX.vvvv is operand 1 or 2, the other may be memory. What is plain data flow among them is a kernel
//! (`kernels/bit_manipulation.rs`).

use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use crate::kernels::Kernel;
use crate::state::RFlags;
use iced_x86::{EncodingKind, Instruction, Mnemonic as M, OpKind};

/// The kernel of an instruction of these groups, for those that are one.
pub fn kernel(x: &Instruction, i: &mut Insn) -> Option<Kernel> {
    let kernel = match x.mnemonic() {
        M::Adcx => Kernel::Adcx,
        M::Adox => Kernel::Adox,
        M::Andn => Kernel::Andn,
        M::Blsi => Kernel::Blsi,
        M::Blsmsk => Kernel::Blsmsk,
        M::Blsr => Kernel::Blsr,
        M::Bzhi => Kernel::Bzhi,
        M::Lzcnt => Kernel::Lzcnt,
        M::Mulx => Kernel::Mulx,
        M::Rorx => Kernel::Rorx,
        M::Sarx => Kernel::Sarx,
        M::Shlx => Kernel::Shlx,
        M::Shrx => Kernel::Shrx,
        M::Tzcnt => Kernel::Tzcnt,
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
        Pdep => pdep,
        Pext => pext,
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

/// BEXTR: as many bits as bits 15:8 of the control say, from the bit on that 7:0 name. Flags: ZF;
/// CF = OF = 0. Undefined: PF by the result, AF = 1, SF = 0, as with AMD.
fn bextr(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let (w, control) = (i.width(), v.get_reg(i.width(), i.r2));
    let (start, length) = ((control & 0xFF) as u32, (control >> 8 & 0xFF) as u32);
    let shifted = source(v, i)?.checked_shr(start).unwrap_or(0);
    let r = if length < 64 { shifted & ((1 << length) - 1) } else { shifted };
    v.put_reg(w, i.r0, r);
    let mut flags = RFlags::AF;
    flags.set(RFlags::PF, (r as u8).count_ones().is_multiple_of(2));
    flags.set(RFlags::ZF, r & w.mask() == 0);
    v.set_status(RFlags::STATUS, flags);
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
