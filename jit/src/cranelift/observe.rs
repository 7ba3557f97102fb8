//! What an instruction touches, found by running its kernel over an [`Ops`] that only watches.
//!
//! Values are constants or nothing, so that a shift by a known count is seen to set the flags for sure.

use super::flags::{AF, ALL, CF, OF, RESULT};
use std::convert::Infallible;
use trimaran_cpu::flags::Flags;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::interp::form;
use trimaran_cpu::kernels::{Kernel, perform};
use trimaran_cpu::ops::{Bin, Cond, Ops, Shift, Un};
use trimaran_cpu::state::{gpr, seg};

/// See the head of this file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observer {
    /// Bit sets of general registers.
    pub reads: u32,
    pub writes: u32,
    /// Masks of flags: read, and surely written.
    pub flags_read: u8,
    pub flags_written: u8,
    /// An access or a check may leave the region at this instruction.
    pub may_leave: bool,
    /// Touches memory.
    pub memory: bool,
}

impl Observer {
    pub fn of(i: &Insn) -> Observer {
        let mut o = Observer::default();
        match perform(i.kernel, &mut o, i) {
            Ok(_) => o,
            Err(never) => match never {},
        }
    }
    fn address(&mut self, i: &Insn) {
        for r in [i.base, i.index] {
            if usize::from(r) < 16 {
                self.reads |= 1 << r;
            }
        }
    }
    fn access(&mut self) {
        self.may_leave = true;
        self.memory = true;
    }
    fn operand(&mut self, i: &Insn) {
        self.address(i);
        self.access();
    }
    fn stack(&mut self) {
        self.reads |= 1 << gpr::RSP;
        self.access();
    }
}

/// Whether this back end translates an instruction; the others are run as helpers.
pub fn native(i: &Insn) -> bool {
    use trimaran_cpu::insn::prefix;
    let stack = matches!(
        i.kernel,
        Kernel::Push | Kernel::Pop | Kernel::Call | Kernel::CallIndirect | Kernel::Ret | Kernel::Leave
    );
    let accesses = i.memory() && !matches!(i.kernel, Kernel::Lea | Kernel::Nop);
    let checked = accesses && i.has(prefix::CHECKED)
        || stack && i.has(prefix::STACK16 | prefix::CHECKED_STACK)
        // What is left are flat segments, and in 64-bit mode FS and GS.
        || accesses && usize::from(i.seg) < seg::FS;
    i.kernel != Kernel::Helper && !checked
}

type Known = Option<u64>;
type Never = Infallible;

impl Ops for Observer {
    type Val = Known;
    type Bit = Option<bool>;
    type Slot = ();
    type Exit = Never;

    fn w(&self, i: &Insn) -> W {
        i.width()
    }
    fn imm(&mut self, w: W, value: u64) -> Known {
        Some(value & w.mask())
    }
    fn effective_address(&mut self, i: &Insn) -> Known {
        self.address(i);
        None
    }
    fn src(&mut self, i: &Insn) -> Result<Known, Never> {
        if matches!(i.form, form::REG_IMM | form::MEM_IMM | form::LOCKED_IMM) {
            return Ok(Some(i.imm & i.width().mask()));
        }
        self.src_as(i, i.width())
    }
    fn src_as(&mut self, i: &Insn, w: W) -> Result<Known, Never> {
        if i.form == form::REG_MEM {
            self.operand(i);
            return Ok(None);
        }
        Ok(self.reg(w, i.r1))
    }
    fn dst(&mut self, i: &Insn) -> Result<Known, Never> {
        if i.form >= form::MEM_REG {
            self.operand(i);
            return Ok(None);
        }
        Ok(self.reg(i.width(), i.r0))
    }
    fn rmw(&mut self, i: &Insn) -> Result<(Known, ()), Never> {
        self.dst(i).map(|v| (v, ()))
    }
    fn commit(&mut self, i: &Insn, (): (), value: Known) {
        if i.form < form::MEM_REG {
            self.set_reg(i.width(), i.r0, value);
        }
    }
    fn put(&mut self, i: &Insn, value: Known) -> Result<(), Never> {
        if i.form >= form::MEM_REG {
            self.operand(i);
        } else {
            self.set_reg(i.width(), i.r0, value);
        }
        Ok(())
    }
    fn reg(&mut self, _: W, register: u8) -> Known {
        self.reads |= 1 << (register & 15);
        None
    }
    fn set_reg(&mut self, w: W, register: u8, _: Known) {
        self.writes |= 1 << (register & 15);
        if w < W::D {
            self.reads |= 1 << (register & 15);
        }
    }
    fn push(&mut self, _: &Insn, _: Known) -> Result<(), Never> {
        self.stack();
        self.writes |= 1 << gpr::RSP;
        Ok(())
    }
    fn pop(&mut self, i: &Insn) -> Result<Known, Never> {
        self.push(i, None).map(|()| None)
    }
    fn stack_load(&mut self, _: &Insn, _: Known) -> Result<Known, Never> {
        self.access();
        Ok(None)
    }
    fn bin(&mut self, op: Bin, _: W, a: Known, b: Known) -> Known {
        if op == Bin::And { Some(a? & b?) } else { None }
    }
    fn un(&mut self, _: Un, _: W, _: Known) -> Known {
        None
    }
    fn shift(&mut self, _: Shift, _: W, _: Known, _: Known) -> Known {
        None
    }
    fn add_carry(&mut self, _: W, _: Known, _: Known, _: Option<bool>) -> Known {
        None
    }
    fn sub_borrow(&mut self, _: W, _: Known, _: Known, _: Option<bool>) -> Known {
        None
    }
    fn trunc(&mut self, _: W, _: W, _: Known) -> Known {
        None
    }
    fn zext(&mut self, _: W, _: W, _: Known) -> Known {
        None
    }
    fn sext(&mut self, _: W, _: W, _: Known) -> Known {
        None
    }
    fn is_zero(&mut self, _: W, a: Known) -> Option<bool> {
        a.map(|v| v == 0)
    }
    fn below(&mut self, _: W, _: Known, _: Known) -> Option<bool> {
        None
    }
    fn bit(&mut self, _: W, _: Known, _: u32) -> Option<bool> {
        None
    }
    fn bit_constant(&mut self, _: bool) -> Option<bool> {
        None
    }
    fn bit_xor(&mut self, _: Option<bool>, _: Option<bool>) -> Option<bool> {
        None
    }
    fn bit_and(&mut self, _: Option<bool>, _: Option<bool>) -> Option<bool> {
        None
    }
    fn bit_not(&mut self, _: Option<bool>) -> Option<bool> {
        None
    }
    fn bit_value(&mut self, _: W, _: Option<bool>) -> Known {
        None
    }
    fn select(&mut self, _: W, _: Option<bool>, _: Known, _: Known) -> Known {
        None
    }
    fn flags(&mut self, flags: Flags<Known, Option<bool>>) {
        self.flags_written |= match flags {
            Flags::Inc { .. } | Flags::Dec { .. } => OF | AF | RESULT,
            Flags::Carry { .. } => CF,
            Flags::Overflow { .. } => OF,
            Flags::Zeros { .. } => CF | AF | RESULT,
            Flags::Shl { none, .. } | Flags::Shr { none, .. } if none != Some(false) => 0,
            Flags::Rol { none, .. } | Flags::Ror { none, .. } if none != Some(false) => 0,
            Flags::Rol { .. } | Flags::Ror { .. } => CF | OF,
            _ => ALL,
        };
    }
    fn cond(&mut self, cond: Cond) -> Option<bool> {
        self.flags_read |= super::flags::needed(cond);
        None
    }
    fn carry(&mut self) -> Option<bool> {
        self.flags_read |= CF;
        None
    }
    fn jump(&mut self, _: &Insn) -> Result<(), Never> {
        Ok(())
    }
    fn jump_to(&mut self, _: &Insn, _: Known) -> Result<(), Never> {
        self.may_leave = true;
        Ok(())
    }
    fn branch(&mut self, _: &Insn, _: Option<bool>) -> Result<(), Never> {
        Ok(())
    }
    fn next_rip(&mut self, _: &Insn) -> Known {
        None
    }
    fn check_target(&mut self, _: &Insn, _: Known) -> Result<(), Never> {
        self.may_leave = true;
        Ok(())
    }
    fn branch_target(&mut self, _: &Insn) -> Known {
        None
    }
}
