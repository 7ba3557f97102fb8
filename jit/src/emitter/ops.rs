//! The emitter's instance of [`Ops`]: each call makes a value, or host code where something happens.

use super::encode::{Label, Reg, at};
use super::registers::Emitter;
use super::value::{Bit, BitOp, Op, Val, fold_bin};
use trimaran_cpu::flags::Flags;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::interp::form;
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::ops::{Bin, Cond, Ops, Shift, Un};
use trimaran_cpu::state::gpr;

/// What an instruction does with control.
#[derive(Clone, Copy, Debug)]
pub enum Leave {
    No,
    Jump,
    Branch(Bit),
    To(Val),
}

/// A place opened by `rmw`.
#[derive(Clone, Copy)]
pub enum Slot {
    Register,
    /// Register with the host address.
    Memory(Reg),
    /// The same under LOCK: the old value, and where it is read again if somebody else was faster.
    Locked(Reg, Reg, Label),
}

/// Kernels never leave early: what faults does so at run time.
#[derive(Debug)]
pub enum Never {}

fn invert(b: Bit) -> Bit {
    match b {
        Bit::Const(c) => Bit::Const(!c),
        Bit::Node(k, inverted) => Bit::Node(k, !inverted),
    }
}

impl Emitter<'_> {
    /// RIP of what follows the instruction, less RIP at the entry.
    pub fn next_delta(&self, i: &Insn) -> i64 {
        self.delta + i64::from(i.len)
    }
    fn node(&mut self, op: Op, w: W, a: Val, b: Val) -> Val {
        if self.exprs.full() {
            self.fail("too many expressions");
            return a;
        }
        let (a, b) = (self.exprs.resolve(a), self.exprs.resolve(b));
        self.exprs.node(op, w, a, b)
    }
    fn truth(&mut self, op: BitOp) -> Bit {
        if self.exprs.full() {
            self.fail("too many expressions");
            return Bit::Const(false);
        }
        self.exprs.bit(op)
    }
    pub fn next_rip_value(&mut self, i: &Insn, w: W) -> Val {
        let delta = self.next_delta(i);
        self.rip_plus(w, delta)
    }
    fn rip_plus(&mut self, w: W, delta: i64) -> Val {
        self.node(Op::Rip(delta), w, Val::Const(0), Val::Const(0))
    }
}

impl Ops for Emitter<'_> {
    type Val = Val;
    type Bit = Bit;
    type Slot = Slot;
    type Exit = Never;

    fn w(&self, i: &Insn) -> W {
        i.width()
    }
    fn imm(&mut self, w: W, value: u64) -> Val {
        Val::Const(value & w.mask())
    }
    fn effective_address(&mut self, i: &Insn) -> Val {
        self.offset_value(i)
    }
    fn src(&mut self, i: &Insn) -> Result<Val, Never> {
        let w = i.width();
        Ok(match i.form {
            form::REG_IMM | form::MEM_IMM | form::LOCKED_IMM => Val::Const(i.imm & w.mask()),
            form::REG_MEM => self.load_operand(i, w),
            _ => self.read_guest(w, i.r1),
        })
    }
    fn src_as(&mut self, i: &Insn, w: W) -> Result<Val, Never> {
        Ok(if i.form == form::REG_MEM { self.load_operand(i, w) } else { self.read_guest(w, i.r1) })
    }
    fn dst(&mut self, i: &Insn) -> Result<Val, Never> {
        let w = i.width();
        Ok(if i.form >= form::MEM_REG { self.load_operand(i, w) } else { self.read_guest(w, i.r0) })
    }
    fn rmw(&mut self, i: &Insn) -> Result<(Val, Slot), Never> {
        let w = i.width();
        if i.form < form::MEM_REG {
            return Ok((self.read_guest(w, i.r0), Slot::Register));
        }
        if i.form >= form::LOCKED_REG {
            let (old, host, again) = self.open_locked(i, w);
            return Ok((Val::Host(old, w.bytes()), Slot::Locked(old, host, again)));
        }
        let (value, host) = self.open_operand(i, w);
        Ok((value, Slot::Memory(host)))
    }
    fn commit(&mut self, i: &Insn, slot: Slot, value: Val) {
        match slot {
            Slot::Register => self.write_guest(i.width(), i.r0, value),
            Slot::Memory(host) => self.store_at(i.width(), at(host, 0), value),
            Slot::Locked(old, host, again) => self.commit_locked(i.width(), old, host, again, value),
        }
    }
    fn put(&mut self, i: &Insn, value: Val) -> Result<(), Never> {
        if i.form < form::MEM_REG {
            self.write_guest(i.width(), i.r0, value);
        } else {
            self.store_operand(i, i.width(), value);
        }
        Ok(())
    }
    fn reg(&mut self, w: W, register: u8) -> Val {
        self.read_guest(w, register)
    }
    fn set_reg(&mut self, w: W, register: u8, value: Val) {
        self.write_guest(w, register, value);
    }
    fn push(&mut self, i: &Insn, value: Val) -> Result<(), Never> {
        let (w, stack) = (i.width(), i.stack_width());
        let sp = self.read_guest(stack, gpr::RSP as u8);
        let new = self.add_constant(stack, sp, -i32::from(w.bytes()));
        self.store_stack(i, w, new, value);
        self.write_guest(stack, gpr::RSP as u8, new);
        Ok(())
    }
    fn pop(&mut self, i: &Insn) -> Result<Val, Never> {
        let (w, stack) = (i.width(), i.stack_width());
        let sp = self.read_guest(stack, gpr::RSP as u8);
        let value = self.load_stack(i, w, gpr::RSP, sp);
        let new = self.add_constant(stack, sp, w.bytes().into());
        self.write_guest(stack, gpr::RSP as u8, new);
        Ok(value)
    }
    fn stack_load(&mut self, i: &Insn, offset: Val) -> Result<Val, Never> {
        let register = if i.kernel == Kernel::Leave { gpr::RBP } else { gpr::RSP };
        Ok(self.load_stack(i, i.width(), register, offset))
    }

    fn bin(&mut self, op: Bin, w: W, a: Val, b: Val) -> Val {
        let (a, b) = (self.exprs.resolve(a), self.exprs.resolve(b));
        match (a, b) {
            (Val::Const(x), Val::Const(y)) => {
                if let Some(r) = fold_bin(op, w, x, y) {
                    return Val::Const(r);
                }
            }
            (Val::Host(x, _), Val::Host(y, _)) if x == y && matches!(op, Bin::Xor | Bin::Sub) => {
                return Val::Const(0);
            }
            _ => {}
        }
        self.node(Op::Bin(op), w, a, b)
    }
    fn un(&mut self, op: Un, w: W, a: Val) -> Val {
        match (op, a) {
            (Un::Not, Val::Const(c)) => Val::Const(!c & w.mask()),
            (Un::Neg, Val::Const(c)) => Val::Const(c.wrapping_neg() & w.mask()),
            _ => self.node(Op::Un(op), w, a, Val::Const(0)),
        }
    }
    fn shift(&mut self, op: Shift, w: W, a: Val, count: Val) -> Val {
        // A count of 0 changes nothing; other constants are rare enough.
        if count == Val::Const(0) { a } else { self.node(Op::Shift(op), w, a, count) }
    }
    fn add_carry(&mut self, w: W, a: Val, b: Val, carry: Bit) -> Val {
        self.node(Op::AddCarry(carry), w, a, b)
    }
    fn sub_borrow(&mut self, w: W, a: Val, b: Val, borrow: Bit) -> Val {
        self.node(Op::SubBorrow(borrow), w, a, b)
    }
    fn trunc(&mut self, _from: W, to: W, a: Val) -> Val {
        match a {
            Val::Const(c) => Val::Const(c & to.mask()),
            a => a,
        }
    }
    fn zext(&mut self, from: W, to: W, a: Val) -> Val {
        match self.exprs.resolve(a) {
            Val::Const(c) => Val::Const(c & from.mask()),
            Val::Host(h, zx) if zx <= from.bytes() => Val::Host(h, zx),
            a => self.node(Op::Zext(from), to, a, Val::Const(0)),
        }
    }
    fn sext(&mut self, from: W, to: W, a: Val) -> Val {
        match a {
            Val::Const(c) => Val::Const(from.sext(c) & to.mask()),
            a => self.node(Op::Sext(from), to, a, Val::Const(0)),
        }
    }

    fn is_zero(&mut self, w: W, a: Val) -> Bit {
        match a {
            Val::Const(c) => Bit::Const(c == 0),
            a => self.truth(BitOp::Zero(w, a)),
        }
    }
    fn below(&mut self, w: W, a: Val, b: Val) -> Bit {
        match (a, b) {
            (Val::Const(a), Val::Const(b)) => Bit::Const(a < b),
            _ => self.truth(BitOp::Below(w, a, b)),
        }
    }
    fn bit(&mut self, w: W, a: Val, n: u32) -> Bit {
        match a {
            Val::Const(c) => Bit::Const(c >> n & 1 != 0),
            a => self.truth(BitOp::Of(w, a, n)),
        }
    }
    fn bit_constant(&mut self, value: bool) -> Bit {
        Bit::Const(value)
    }
    fn bit_xor(&mut self, a: Bit, b: Bit) -> Bit {
        match (a, b) {
            (Bit::Const(c), x) | (x, Bit::Const(c)) => {
                if c {
                    invert(x)
                } else {
                    x
                }
            }
            _ => self.truth(BitOp::Xor(a, b)),
        }
    }
    fn bit_and(&mut self, a: Bit, b: Bit) -> Bit {
        match (a, b) {
            (Bit::Const(c), x) | (x, Bit::Const(c)) => {
                if c {
                    x
                } else {
                    Bit::Const(false)
                }
            }
            _ => self.truth(BitOp::And(a, b)),
        }
    }
    fn bit_not(&mut self, a: Bit) -> Bit {
        invert(a)
    }
    fn carry_out(&mut self, w: W, a: Val, b: Val, r: Val) -> Bit {
        self.truth(BitOp::CarryOut(w, [a, b, r], false))
    }
    fn bit_value(&mut self, w: W, a: Bit) -> Val {
        match a {
            Bit::Const(c) => Val::Const(c.into()),
            a => self.node(Op::BitValue(a), w, Val::Const(0), Val::Const(0)),
        }
    }
    fn select(&mut self, w: W, c: Bit, yes: Val, no: Val) -> Val {
        match c {
            Bit::Const(true) => yes,
            Bit::Const(false) => no,
            c => self.node(Op::Select(c), w, yes, no),
        }
    }

    fn flags(&mut self, flags: Flags<Val, Bit>) {
        self.declare_flags(flags);
    }
    fn cond(&mut self, cond: Cond) -> Bit {
        self.truth(BitOp::Cond(cond))
    }
    fn carry(&mut self) -> Bit {
        self.cond(Cond::B)
    }
    fn jump(&mut self, _i: &Insn) -> Result<(), Never> {
        self.leave = Leave::Jump;
        Ok(())
    }
    fn jump_to(&mut self, i: &Insn, target: Val) -> Result<(), Never> {
        // The others have checked it before they committed.
        if i.kernel == Kernel::JmpIndirect {
            self.check_target(i, target)?;
        }
        self.leave = Leave::To(target);
        Ok(())
    }
    fn branch(&mut self, _i: &Insn, taken: Bit) -> Result<(), Never> {
        self.leave = Leave::Branch(taken);
        Ok(())
    }
    fn next_rip(&mut self, i: &Insn) -> Val {
        self.next_rip_value(i, i.width())
    }
    fn check_target(&mut self, _i: &Insn, target: Val) -> Result<(), Never> {
        // CS is flat: outside 64-bit mode every target is inside it. A direct target is checked by whoever
        // fetches from it.
        let direct = match target {
            Val::Node(k) => matches!(self.exprs.nodes[usize::from(k)].op, Op::Rip(_)),
            _ => false,
        };
        if self.code64 && !direct {
            self.check_canonical(target);
        }
        Ok(())
    }
    fn branch_target(&mut self, i: &Insn) -> Val {
        let delta = self.next_delta(i).wrapping_add(i.imm as i64);
        self.rip_plus(i.width(), delta)
    }
}
