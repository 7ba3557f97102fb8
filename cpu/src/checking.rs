//! The checking instance of [`Ops`]: the interpreter's numbers that also know their width and where they come from.
//! It asserts rules 1 to 5 of `ops.rs`, so that a kernel which an interpreter forgives cannot mislead a translator.
//! Values and effects are the interpreter's own: this back end wraps one.

use crate::Vcpu;
use crate::fault::Exit;
use crate::flags::Flags;
use crate::insn::{Insn, W};
use crate::interp::{Interp, Slot};
use crate::ops::{Bin, Cond, Ops, Shift, Un};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Each instruction's values carry its number: none may outlive it.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A value of `w` bits, made by instruction `owner`.
#[derive(Clone, Copy, Debug)]
pub struct Val {
    v: u64,
    w: W,
    owner: u32,
}

/// A truth value; `read`: the step at which it was read from the flags.
#[derive(Clone, Copy, Debug)]
pub struct Bit {
    v: bool,
    read: Option<u32>,
    owner: u32,
}

/// See the head of this file.
pub struct Checking<'a, const SIZE: u8, const FORM: u8> {
    inner: Interp<'a, SIZE, FORM>,
    owner: u32,
    step: u32,
    committed: bool,
    flags_declared: bool,
    jumped: bool,
}

impl<'a, const SIZE: u8, const FORM: u8> Checking<'a, SIZE, FORM> {
    pub fn new(v: &'a mut Vcpu) -> Self {
        Checking {
            inner: Interp::new(v),
            owner: NUMBER.fetch_add(1, Relaxed),
            step: 0,
            committed: false,
            flags_declared: false,
            jumped: false,
        }
    }
    pub fn lost(&self) -> bool {
        self.inner.lost()
    }
    fn tick(&mut self) {
        assert!(!self.jumped, "rule 1: something follows a jump");
        self.step += 1;
    }
    /// Makes a value; it must fit.
    fn val(&self, w: W, v: u64) -> Val {
        assert_eq!(v & !w.mask(), 0, "a value of {w:?} has bits beyond it");
        Val { v, w, owner: self.owner }
    }
    fn made(&self, v: bool) -> Bit {
        Bit { v, read: None, owner: self.owner }
    }
    /// Uses a value at a width.
    fn at(&self, w: W, a: Val) -> u64 {
        assert_eq!(a.w, w, "rule 3: a value of another width");
        assert_eq!(a.owner, self.owner, "rule 5: a value of another instruction");
        a.v
    }
    fn truth(&self, b: Bit) -> bool {
        assert_eq!(b.owner, self.owner, "rule 5: a truth value of another instruction");
        if let Some(read) = b.read {
            assert_eq!(read + 1, self.step, "rule 5: a condition away from its consumer");
        }
        b.v
    }
    /// Something that may fault.
    fn may_fault(&mut self) {
        self.tick();
        assert!(!self.committed, "rule 1: an access after the first commit");
    }
    fn commits(&mut self) {
        self.tick();
        assert!(!self.flags_declared, "rule 1: a commit after the flags");
        self.committed = true;
    }
    fn jumps(&mut self) {
        self.tick();
        self.jumped = true;
    }
    /// A jump after a commit must have been checked before.
    fn landed(&self, r: Result<(), Exit>) -> Result<(), Exit> {
        assert!(r.is_ok() || !self.committed, "rule 1: a jump that faults after a commit");
        r
    }
}

impl<const SIZE: u8, const FORM: u8> Ops for Checking<'_, SIZE, FORM> {
    type Val = Val;
    type Bit = Bit;
    type Slot = Slot;
    type Exit = Exit;

    fn w(&self, i: &Insn) -> W {
        self.inner.w(i)
    }
    fn imm(&mut self, w: W, value: u64) -> Val {
        self.tick();
        let v = self.inner.imm(w, value);
        self.val(w, v)
    }
    fn effective_address(&mut self, i: &Insn) -> Val {
        self.tick();
        let v = self.inner.effective_address(i);
        self.val(self.w(i), v)
    }
    fn src(&mut self, i: &Insn) -> Result<Val, Exit> {
        self.may_fault();
        let v = self.inner.src(i)?;
        Ok(self.val(self.w(i), v))
    }
    fn src_as(&mut self, i: &Insn, w: W) -> Result<Val, Exit> {
        self.may_fault();
        let v = self.inner.src_as(i, w)?;
        Ok(self.val(w, v))
    }
    fn dst(&mut self, i: &Insn) -> Result<Val, Exit> {
        self.may_fault();
        let v = self.inner.dst(i)?;
        Ok(self.val(self.w(i), v))
    }
    fn rmw(&mut self, i: &Insn) -> Result<(Val, Slot), Exit> {
        self.may_fault();
        let (v, slot) = self.inner.rmw(i)?;
        Ok((self.val(self.w(i), v), slot))
    }
    fn commit(&mut self, i: &Insn, slot: Slot, value: Val) {
        self.commits();
        let v = self.at(self.w(i), value);
        self.inner.commit(i, slot, v);
    }
    fn put(&mut self, i: &Insn, value: Val) -> Result<(), Exit> {
        self.may_fault();
        let v = self.at(self.w(i), value);
        self.inner.put(i, v)?;
        self.committed = true;
        Ok(())
    }
    fn reg(&mut self, w: W, register: u8) -> Val {
        self.tick();
        let v = self.inner.reg(w, register);
        self.val(w, v)
    }
    fn set_reg(&mut self, w: W, register: u8, value: Val) {
        self.commits();
        let v = self.at(w, value);
        self.inner.set_reg(w, register, v);
    }
    fn push(&mut self, i: &Insn, value: Val) -> Result<(), Exit> {
        self.may_fault();
        let v = self.at(self.w(i), value);
        self.inner.push(i, v)?;
        self.committed = true;
        Ok(())
    }
    fn pop(&mut self, i: &Insn) -> Result<Val, Exit> {
        self.may_fault();
        let v = self.inner.pop(i)?;
        self.committed = true;
        Ok(self.val(self.w(i), v))
    }

    fn stack_load(&mut self, i: &Insn, offset: Val) -> Result<Val, Exit> {
        self.may_fault();
        let offset = self.at(i.stack_width(), offset);
        let v = self.inner.stack_load(i, offset)?;
        Ok(self.val(self.w(i), v))
    }

    fn bin(&mut self, op: Bin, w: W, a: Val, b: Val) -> Val {
        self.tick();
        let v = self.inner.bin(op, w, self.at(w, a), self.at(w, b));
        self.val(w, v)
    }
    fn un(&mut self, op: Un, w: W, a: Val) -> Val {
        self.tick();
        let v = self.inner.un(op, w, self.at(w, a));
        self.val(w, v)
    }
    fn shift(&mut self, op: Shift, w: W, a: Val, count: Val) -> Val {
        self.tick();
        let v = self.inner.shift(op, w, self.at(w, a), self.at(w, count));
        self.val(w, v)
    }
    fn add_carry(&mut self, w: W, a: Val, b: Val, carry: Bit) -> Val {
        self.tick();
        let v = self.inner.add_carry(w, self.at(w, a), self.at(w, b), self.truth(carry));
        self.val(w, v)
    }
    fn sub_borrow(&mut self, w: W, a: Val, b: Val, borrow: Bit) -> Val {
        self.tick();
        let v = self.inner.sub_borrow(w, self.at(w, a), self.at(w, b), self.truth(borrow));
        self.val(w, v)
    }
    fn trunc(&mut self, from: W, to: W, a: Val) -> Val {
        self.tick();
        assert!(to < from, "rule 3: trunc from {from:?} to {to:?}");
        let v = self.inner.trunc(from, to, self.at(from, a));
        self.val(to, v)
    }
    fn zext(&mut self, from: W, to: W, a: Val) -> Val {
        self.tick();
        assert!(from < to, "rule 3: zext from {from:?} to {to:?}");
        let v = self.inner.zext(from, to, self.at(from, a));
        self.val(to, v)
    }
    fn sext(&mut self, from: W, to: W, a: Val) -> Val {
        self.tick();
        assert!(from < to, "rule 3: sext from {from:?} to {to:?}");
        let v = self.inner.sext(from, to, self.at(from, a));
        self.val(to, v)
    }

    fn is_zero(&mut self, w: W, a: Val) -> Bit {
        self.tick();
        self.made(self.at(w, a) == 0)
    }
    fn below(&mut self, w: W, a: Val, b: Val) -> Bit {
        self.tick();
        self.made(self.at(w, a) < self.at(w, b))
    }
    fn bit(&mut self, w: W, a: Val, n: u32) -> Bit {
        self.tick();
        assert!(n < w.bits(), "bit {n} of {w:?}");
        self.made(self.at(w, a) >> n & 1 != 0)
    }
    fn bit_constant(&mut self, value: bool) -> Bit {
        self.tick();
        self.made(value)
    }
    fn bit_xor(&mut self, a: Bit, b: Bit) -> Bit {
        self.tick();
        self.made(self.truth(a) != self.truth(b))
    }
    fn bit_and(&mut self, a: Bit, b: Bit) -> Bit {
        self.tick();
        self.made(self.truth(a) & self.truth(b))
    }
    fn bit_not(&mut self, a: Bit) -> Bit {
        self.tick();
        self.made(!self.truth(a))
    }
    fn bit_value(&mut self, w: W, a: Bit) -> Val {
        self.tick();
        self.val(w, u64::from(self.truth(a)))
    }
    fn select(&mut self, w: W, c: Bit, yes: Val, no: Val) -> Val {
        self.tick();
        let (yes, no) = (self.at(w, yes), self.at(w, no));
        self.val(w, if self.truth(c) { yes } else { no })
    }

    fn flags(&mut self, flags: Flags<Val, Bit>) {
        self.tick();
        assert!(!self.flags_declared, "rule 4: flags declared twice");
        self.flags_declared = true;
        let plain = self.plain(flags);
        self.inner.flags(plain);
        // The formulas keep the rules too; they read nothing but what was declared.
        let _ = crate::flags::image(self, flags);
    }
    fn cond(&mut self, cond: Cond) -> Bit {
        self.tick();
        assert!(!self.flags_declared, "a condition of the instruction's own flags");
        Bit { v: self.inner.cond(cond), read: Some(self.step), owner: self.owner }
    }
    fn carry(&mut self) -> Bit {
        self.tick();
        assert!(!self.flags_declared, "a carry of the instruction's own flags");
        Bit { v: self.inner.carry(), read: Some(self.step), owner: self.owner }
    }
    fn jump(&mut self, i: &Insn) -> Result<(), Exit> {
        self.jumps();
        let r = self.inner.jump(i);
        self.landed(r)
    }
    fn jump_to(&mut self, i: &Insn, target: Val) -> Result<(), Exit> {
        self.jumps();
        let target = self.at(self.w(i), target);
        let r = self.inner.jump_to(i, target);
        self.landed(r)
    }
    fn branch(&mut self, i: &Insn, taken: Bit) -> Result<(), Exit> {
        self.jumps();
        let taken = self.truth(taken);
        let r = self.inner.branch(i, taken);
        self.landed(r)
    }
    fn next_rip(&mut self, i: &Insn) -> Val {
        self.tick();
        let v = self.inner.next_rip(i);
        self.val(self.w(i), v)
    }
    fn check_target(&mut self, i: &Insn, target: Val) -> Result<(), Exit> {
        self.may_fault();
        let target = self.at(self.w(i), target);
        self.inner.check_target(i, target)
    }
    fn branch_target(&mut self, i: &Insn) -> Val {
        self.tick();
        let v = self.inner.branch_target(i);
        self.val(self.w(i), v)
    }
}

impl<const SIZE: u8, const FORM: u8> Checking<'_, SIZE, FORM> {
    /// The same declaration for the interpreter, widths checked.
    fn plain(&self, flags: Flags<Val, Bit>) -> Flags<u64, bool> {
        use Flags::*;
        let v = |w, a| self.at(w, a);
        let t = |b| self.truth(b);
        match flags {
            Add { w, a, b, r } => Add { w, a: v(w, a), b: v(w, b), r: v(w, r) },
            Adc { w, a, b, r } => Adc { w, a: v(w, a), b: v(w, b), r: v(w, r) },
            Sub { w, a, b, r } => Sub { w, a: v(w, a), b: v(w, b), r: v(w, r) },
            Sbb { w, a, b, r } => Sbb { w, a: v(w, a), b: v(w, b), r: v(w, r) },
            Logic { w, r } => Logic { w, r: v(w, r) },
            Inc { w, r } => Inc { w, r: v(w, r) },
            Dec { w, r } => Dec { w, r: v(w, r) },
            Neg { w, a, r } => Neg { w, a: v(w, a), r: v(w, r) },
            Shl { w, r, cf, none } => Shl { w, r: v(w, r), cf: t(cf), none: t(none) },
            Shr { w, r, cf, none } => Shr { w, r: v(w, r), cf: t(cf), none: t(none) },
            Rol { w, r, none } => Rol { w, r: v(w, r), none: t(none) },
            Ror { w, r, none } => Ror { w, r: v(w, r), none: t(none) },
            Mul { w, r, overflow } => Mul { w, r: v(w, r), overflow: t(overflow) },
            Carry { cf } => Carry { cf: t(cf) },
            Scan { w, r, zero } => Scan { w, r: v(w, r), zero: t(zero) },
            Bits { w, r, cf } => Bits { w, r: v(w, r), cf: t(cf) },
            Overflow { of } => Overflow { of: t(of) },
            Count { w, r } => Count { w, r: v(w, r) },
            Zeros { w, r, cf } => Zeros { w, r: v(w, r), cf: t(cf) },
        }
    }
}

#[cfg(test)]
mod tests;
