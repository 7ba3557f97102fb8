//! The interpreter's instance of [`Ops`]: values are numbers, zero-extended from their width.
//!
//! Operand width and form are const parameters of this back end, so a kernel's text compiles to one small
//! function for each form, with nothing left to decide at run time.

use crate::Vcpu;
use crate::fault::Exit;
use crate::flags::{self, Flags};
use crate::insn::{Insn, W, prefix};
use crate::memory::Place;
use crate::ops::{Bin, Cond, Ops, Shift, Un};
use crate::state::{gpr, seg};

/// Operand forms: where operand 0 and operand 1 are.
pub mod form {
    pub const REG_REG: u8 = 0;
    pub const REG_IMM: u8 = 1;
    pub const REG_MEM: u8 = 2;
    pub const MEM_REG: u8 = 3;
    pub const MEM_IMM: u8 = 4;
    pub const LOCKED_REG: u8 = 5;
    pub const LOCKED_IMM: u8 = 6;
}

/// Width `SIZE` in bytes and operand form `FORM` (see [`form`]).
pub struct Interp<'a, const SIZE: u8, const FORM: u8> {
    v: &'a mut Vcpu,
    lost: bool,
}

/// A place opened for writing.
#[derive(Clone, Copy)]
pub enum Slot {
    Register,
    Memory(Place, u64),
}

impl<'a, const SIZE: u8, const FORM: u8> Interp<'a, SIZE, FORM> {
    #[inline(always)]
    pub fn new(v: &'a mut Vcpu) -> Self {
        Interp { v, lost: false }
    }
    /// A locked write found that somebody else wrote in between: the instruction must run again.
    #[inline(always)]
    pub fn lost(&self) -> bool {
        self.lost
    }
    const MEM0: bool = FORM >= form::MEM_REG;
    const MEM1: bool = FORM == form::REG_MEM;
    const IMM1: bool = matches!(FORM, form::REG_IMM | form::MEM_IMM | form::LOCKED_IMM);
    const LOCKED: bool = FORM >= form::LOCKED_REG;
    const W: W = W::from_bytes(SIZE);

    #[inline(always)]
    fn load_operand(&mut self, i: &Insn) -> Result<u64, Exit> {
        let address = self.v.operand_address(i, u32::from(SIZE), false)?;
        self.v.load::<SIZE>(i.seg, address)
    }

    #[inline(always)]
    fn stack_mask(&self, i: &Insn) -> u64 {
        if i.prefix & prefix::CODE64 != 0 {
            !0
        } else if i.prefix & prefix::STACK16 != 0 {
            0xFFFF
        } else {
            0xFFFF_FFFF
        }
    }
}

impl Vcpu {
    #[inline(always)]
    pub fn get_reg(&self, w: W, register: u8) -> u64 {
        let n = usize::from(register & 15);
        match w {
            W::B => self.state.gpr[n] >> ((register >> 4) * 8) & 0xFF,
            W::W => self.state.gpr[n] & 0xFFFF,
            W::D => self.state.gpr[n] & 0xFFFF_FFFF,
            W::Q => self.state.gpr[n],
        }
    }
    #[inline(always)]
    pub fn put_reg(&mut self, w: W, register: u8, value: u64) {
        let r = &mut self.state.gpr[usize::from(register & 15)];
        *r = match w {
            W::B => {
                let shift = (register >> 4) * 8;
                *r & !(0xFF << shift) | (value & 0xFF) << shift
            }
            W::W => *r & !0xFFFF | value & 0xFFFF,
            W::D => value & 0xFFFF_FFFF,
            W::Q => value,
        };
    }
    /// RSP, ESP or SP changes under its mask; the bits above stay (64-bit: none above).
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, mask: u64, value: u64) {
        let sp = &mut self.state.gpr[gpr::RSP];
        *sp = if mask == 0xFFFF { *sp & !0xFFFF | value & 0xFFFF } else { value & mask };
    }
    #[inline(always)]
    pub fn condition(&self, cond: Cond) -> bool {
        let f = &self.lazy;
        match cond {
            Cond::O => f.of,
            Cond::No => !f.of,
            Cond::B => f.cf,
            Cond::Ae => !f.cf,
            Cond::E => f.zf(),
            Cond::Ne => !f.zf(),
            Cond::Be => f.cf || f.zf(),
            Cond::A => !f.cf && !f.zf(),
            Cond::S => f.sf(),
            Cond::Ns => !f.sf(),
            Cond::P => f.pf(),
            Cond::Np => !f.pf(),
            Cond::L => f.sf() != f.of,
            Cond::Ge => f.sf() == f.of,
            Cond::Le => f.zf() || f.sf() != f.of,
            Cond::G => !f.zf() && f.sf() == f.of,
        }
    }
    /// Near branch by a distance; the new RIP is cut to the operand size and checked.
    #[inline(always)]
    pub fn jump_relative(&mut self, i: &Insn) -> Result<(), Exit> {
        let target = self.state.gpr[gpr::RIP].wrapping_add(i.imm);
        self.jump_near(i, target)
    }
    #[inline(always)]
    pub fn jump_near(&mut self, i: &Insn, target: u64) -> Result<(), Exit> {
        let target = self.check_near_target(i, target)?;
        self.state.gpr[gpr::RIP] = target;
        Ok(())
    }
    /// Cuts a near target to the operand size and checks it against CS.
    #[inline(always)]
    pub fn check_near_target(&mut self, i: &Insn, target: u64) -> Result<u64, Exit> {
        if i.prefix & prefix::CODE64 != 0 {
            return if self.state.canonical(target) { Ok(target) } else { Err(self.protection()) };
        }
        let target = target & if i.w == 2 { 0xFFFF } else { 0xFFFF_FFFF };
        if target > u64::from(self.state.seg[seg::CS].limit) {
            return Err(self.protection());
        }
        Ok(target)
    }
}

impl<const SIZE: u8, const FORM: u8> Ops for Interp<'_, SIZE, FORM> {
    type Val = u64;
    type Bit = bool;
    type Slot = Slot;
    type Exit = Exit;

    #[inline(always)]
    fn w(&self, _i: &Insn) -> W {
        Self::W
    }
    #[inline(always)]
    fn imm(&mut self, w: W, value: u64) -> u64 {
        value & w.mask()
    }
    #[inline(always)]
    fn effective_address(&mut self, i: &Insn) -> u64 {
        self.v.effective_address(i) & Self::W.mask()
    }
    #[inline(always)]
    fn src(&mut self, i: &Insn) -> Result<u64, Exit> {
        if Self::IMM1 {
            Ok(i.imm & Self::W.mask())
        } else if Self::MEM1 {
            self.load_operand(i)
        } else {
            Ok(self.v.get_reg(Self::W, i.r1))
        }
    }
    #[inline(always)]
    fn src_as(&mut self, i: &Insn, w: W) -> Result<u64, Exit> {
        if !Self::MEM1 {
            return Ok(self.v.get_reg(w, i.r1));
        }
        let address = self.v.operand_address(i, u32::from(w.bytes()), false)?;
        match w {
            W::B => self.v.load::<1>(i.seg, address),
            W::W => self.v.load::<2>(i.seg, address),
            W::D => self.v.load::<4>(i.seg, address),
            W::Q => self.v.load::<8>(i.seg, address),
        }
    }
    #[inline(always)]
    fn dst(&mut self, i: &Insn) -> Result<u64, Exit> {
        if Self::MEM0 { self.load_operand(i) } else { Ok(self.v.get_reg(Self::W, i.r0)) }
    }
    #[inline(always)]
    fn rmw(&mut self, i: &Insn) -> Result<(u64, Slot), Exit> {
        if !Self::MEM0 {
            return Ok((self.v.get_reg(Self::W, i.r0), Slot::Register));
        }
        let address = self.v.operand_address(i, u32::from(SIZE), true)?;
        let (value, place) = self.v.load_for_write::<SIZE>(i.seg, address)?;
        Ok((value, Slot::Memory(place, value)))
    }
    #[inline(always)]
    fn commit(&mut self, i: &Insn, slot: Slot, value: u64) {
        match slot {
            Slot::Register => self.v.put_reg(Self::W, i.r0, value),
            Slot::Memory(place, old) if Self::LOCKED => {
                self.lost = !self.v.put_locked::<SIZE>(place, old, value);
            }
            Slot::Memory(place, _) => self.v.put::<SIZE>(place, value),
        }
    }
    #[inline(always)]
    fn put(&mut self, i: &Insn, value: u64) -> Result<(), Exit> {
        if !Self::MEM0 {
            self.v.put_reg(Self::W, i.r0, value);
            return Ok(());
        }
        let address = self.v.operand_address(i, u32::from(SIZE), true)?;
        self.v.store::<SIZE>(i.seg, address, value)
    }
    #[inline(always)]
    fn reg(&mut self, w: W, register: u8) -> u64 {
        self.v.get_reg(w, register)
    }
    #[inline(always)]
    fn set_reg(&mut self, w: W, register: u8, value: u64) {
        self.v.put_reg(w, register, value);
    }
    #[inline(always)]
    fn push(&mut self, i: &Insn, value: u64) -> Result<(), Exit> {
        let mask = self.stack_mask(i);
        let sp = self.v.state.gpr[gpr::RSP].wrapping_sub(u64::from(SIZE)) & mask;
        let address = self.v.stack_address(i, sp, u32::from(SIZE), true)?;
        self.v.store::<SIZE>(seg::FLAT_STACK as u8, address, value)?;
        self.v.set_stack_pointer(mask, sp);
        Ok(())
    }
    #[inline(always)]
    fn pop(&mut self, i: &Insn) -> Result<u64, Exit> {
        let mask = self.stack_mask(i);
        let sp = self.v.state.gpr[gpr::RSP] & mask;
        let address = self.v.stack_address(i, sp, u32::from(SIZE), false)?;
        let value = self.v.load::<SIZE>(seg::FLAT_STACK as u8, address)?;
        self.v.set_stack_pointer(mask, sp.wrapping_add(u64::from(SIZE)));
        Ok(value)
    }

    #[inline(always)]
    fn stack_load(&mut self, i: &Insn, offset: u64) -> Result<u64, Exit> {
        let address = self.v.stack_address(i, offset, u32::from(SIZE), false)?;
        self.v.load::<SIZE>(seg::FLAT_STACK as u8, address)
    }

    #[inline(always)]
    fn bin(&mut self, op: Bin, w: W, a: u64, b: u64) -> u64 {
        let wide = || (w.sext(a) as i64 as i128) * (w.sext(b) as i64 as i128);
        w.mask()
            & match op {
                Bin::Add => a.wrapping_add(b),
                Bin::Sub => a.wrapping_sub(b),
                Bin::And => a & b,
                Bin::Or => a | b,
                Bin::Xor => a ^ b,
                Bin::Mul => a.wrapping_mul(b),
                Bin::MulHighUnsigned => ((u128::from(a) * u128::from(b)) >> w.bits()) as u64,
                Bin::MulHighSigned => (wide() >> w.bits()) as u64,
            }
    }
    #[inline(always)]
    fn un(&mut self, op: Un, w: W, a: u64) -> u64 {
        w.mask()
            & match op {
                Un::Not => !a,
                Un::Neg => a.wrapping_neg(),
                Un::SwapBytes => a.swap_bytes() >> (64 - w.bits()),
                Un::CountOnes => u64::from(a.count_ones()),
                Un::TrailingZeros => u64::from(a.trailing_zeros().min(w.bits())),
                Un::LeadingZeros => u64::from((a << (64 - w.bits())).leading_zeros().min(w.bits())),
                Un::HighestSet => u64::from(63 ^ (a | 1).leading_zeros()),
            }
    }
    #[inline(always)]
    fn shift(&mut self, op: Shift, w: W, a: u64, count: u64) -> u64 {
        let bits = w.bits();
        let over = count >= u64::from(bits);
        let n = count as u32 % bits;
        let rotated = |n: u32| if n == 0 { a } else { a << n | a >> (bits - n) };
        w.mask()
            & match op {
                Shift::Left => {
                    if over {
                        0
                    } else {
                        a << n
                    }
                }
                Shift::Right => {
                    if over {
                        0
                    } else {
                        a >> n
                    }
                }
                Shift::RightArithmetic => ((w.sext(a) as i64) >> if over { 63 } else { n }) as u64,
                Shift::RotateLeft => rotated(n),
                Shift::RotateRight => rotated((bits - n) % bits),
            }
    }
    #[inline(always)]
    fn add_carry(&mut self, w: W, a: u64, b: u64, carry: bool) -> u64 {
        a.wrapping_add(b).wrapping_add(u64::from(carry)) & w.mask()
    }
    #[inline(always)]
    fn sub_borrow(&mut self, w: W, a: u64, b: u64, borrow: bool) -> u64 {
        a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & w.mask()
    }
    #[inline(always)]
    fn trunc(&mut self, _from: W, to: W, a: u64) -> u64 {
        a & to.mask()
    }
    #[inline(always)]
    fn zext(&mut self, _from: W, _to: W, a: u64) -> u64 {
        a
    }
    #[inline(always)]
    fn sext(&mut self, from: W, to: W, a: u64) -> u64 {
        from.sext(a) & to.mask()
    }

    #[inline(always)]
    fn is_zero(&mut self, _w: W, a: u64) -> bool {
        a == 0
    }
    #[inline(always)]
    fn below(&mut self, _w: W, a: u64, b: u64) -> bool {
        a < b
    }
    #[inline(always)]
    fn bit(&mut self, _w: W, a: u64, n: u32) -> bool {
        a >> n & 1 != 0
    }
    #[inline(always)]
    fn bit_constant(&mut self, value: bool) -> bool {
        value
    }
    #[inline(always)]
    fn bit_xor(&mut self, a: bool, b: bool) -> bool {
        a != b
    }
    #[inline(always)]
    fn bit_and(&mut self, a: bool, b: bool) -> bool {
        a & b
    }
    #[inline(always)]
    fn bit_not(&mut self, a: bool) -> bool {
        !a
    }
    #[inline(always)]
    fn bit_value(&mut self, _w: W, a: bool) -> u64 {
        u64::from(a)
    }
    #[inline(always)]
    fn select(&mut self, _w: W, c: bool, yes: u64, no: u64) -> u64 {
        if c { yes } else { no }
    }

    #[inline(always)]
    fn flags(&mut self, flags: Flags<u64, bool>) {
        let image = flags::image(self, flags);
        if image.none == Some(true) {
            return;
        }
        let lazy = &mut self.v.lazy;
        if let Some(cf) = image.cf {
            lazy.cf = cf;
        }
        if let Some(of) = image.of {
            lazy.of = of;
        }
        if let Some(af) = image.af {
            lazy.af = af;
        }
        if let Some((w, r)) = image.result {
            lazy.zero = r;
            // Parity of 3 is even: PF = 0 needs an odd one.
            lazy.sign_parity = if image.zero_sf_pf { 1 } else { w.sext(r) };
        }
        if let Some(zf) = image.zf {
            lazy.zero = u64::from(!zf);
        }
    }
    #[inline(always)]
    fn cond(&mut self, cond: Cond) -> bool {
        self.v.condition(cond)
    }
    #[inline(always)]
    fn carry(&mut self) -> bool {
        self.v.lazy.cf
    }
    #[inline(always)]
    fn jump(&mut self, i: &Insn) -> Result<(), Exit> {
        self.v.jump_relative(i)
    }
    #[inline(always)]
    fn jump_to(&mut self, i: &Insn, target: u64) -> Result<(), Exit> {
        self.v.jump_near(i, target)
    }
    #[inline(always)]
    fn branch(&mut self, i: &Insn, taken: bool) -> Result<(), Exit> {
        if taken { self.v.jump_relative(i) } else { Ok(()) }
    }
    #[inline(always)]
    fn next_rip(&mut self, _i: &Insn) -> u64 {
        self.v.state.gpr[gpr::RIP] & Self::W.mask()
    }
    #[inline(always)]
    fn check_target(&mut self, i: &Insn, target: u64) -> Result<(), Exit> {
        self.v.check_near_target(i, target).map(|_| ())
    }
    #[inline(always)]
    fn branch_target(&mut self, i: &Insn) -> u64 {
        self.v.state.gpr[gpr::RIP].wrapping_add(i.imm) & Self::W.mask()
    }
}
