//! The kernels' operations as CLIF: what [`Ops`] asks for, from the parts of [`Writer`].

use super::values::{Bit, Val};
use super::writer::{Transfer, Writer};
use crate::abi::Untranslatable;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Block, InstBuilder, Value};
use trimaran_cpu::flags::Flags;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::interp::form;
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::ops::{Bin, Cond, Ops, Shift, Un};
use trimaran_cpu::state::gpr;

/// A place opened for writing.
#[derive(Clone, Copy)]
pub enum Place {
    Register,
    /// At a host address.
    Memory(Value),
    /// The same under LOCK: what was there, and where to try again if it is something else by then.
    Locked {
        host: Value,
        old: Value,
        again: Block,
    },
}

type Result<T> = std::result::Result<T, Untranslatable>;

impl Ops for Writer<'_, '_> {
    type Val = Val;
    type Bit = Bit;
    type Slot = Place;
    type Exit = Untranslatable;

    fn w(&self, i: &Insn) -> W {
        i.width()
    }
    fn imm(&mut self, w: W, value: u64) -> Val {
        Val::Const(value & w.mask())
    }
    fn effective_address(&mut self, i: &Insn) -> Val {
        let offset = self.offset_of_operand(i);
        self.truncated(W::Q, i.width(), offset)
    }
    fn src(&mut self, i: &Insn) -> Result<Val> {
        if matches!(i.form, form::REG_IMM | form::MEM_IMM | form::LOCKED_IMM) {
            return Ok(Val::Const(i.imm & i.width().mask()));
        }
        self.src_as(i, i.width())
    }
    fn src_as(&mut self, i: &Insn, w: W) -> Result<Val> {
        Ok(if i.form == form::REG_MEM { self.load_operand(i, w) } else { self.register(w, i.r1) })
    }
    fn dst(&mut self, i: &Insn) -> Result<Val> {
        let w = i.width();
        Ok(if i.form >= form::MEM_REG { self.load_operand(i, w) } else { self.register(w, i.r0) })
    }
    fn rmw(&mut self, i: &Insn) -> Result<(Val, Place)> {
        let w = i.width();
        if i.form < form::MEM_REG {
            return Ok((self.register(w, i.r0), Place::Register));
        }
        let address = self.operand_address(i);
        let host = self.host(w.bytes(), address, true);
        if i.form < form::LOCKED_REG {
            return Ok((Val::Value(self.load_host(w, host)), Place::Memory(host)));
        }
        self.require_aligned(w, host);
        let again = self.b.create_block();
        self.b.ins().jump(again, &[]);
        self.b.switch_to_block(again);
        let old = self.load_host(w, host);
        Ok((Val::Value(old), Place::Locked { host, old, again }))
    }
    fn commit(&mut self, i: &Insn, slot: Place, value: Val) {
        match slot {
            Place::Register => self.set_register(i.width(), i.r0, value),
            Place::Memory(host) => {
                let v = self.value(i.width(), value);
                self.store_host(i.width(), v, host);
            }
            Place::Locked { host, old, again } => {
                // Nothing is committed yet, so that the whole instruction can be done again.
                let v = self.value(i.width(), value);
                let seen = self.exchange_host(host, old, v);
                let lost = self.b.ins().icmp(IntCC::NotEqual, seen, old);
                let go_on = self.b.create_block();
                self.b.ins().brif(lost, again, &[], go_on, &[]);
                self.b.seal_block(again);
                self.b.seal_block(go_on);
                self.b.switch_to_block(go_on);
            }
        }
    }
    fn put(&mut self, i: &Insn, value: Val) -> Result<()> {
        let w = i.width();
        if i.form < form::MEM_REG {
            self.set_register(w, i.r0, value);
            return Ok(());
        }
        let address = self.operand_address(i);
        let host = self.host(w.bytes(), address, true);
        let v = self.value(w, value);
        self.store_host(w, v, host);
        Ok(())
    }
    fn reg(&mut self, w: W, register: u8) -> Val {
        self.register(w, register)
    }
    fn set_reg(&mut self, w: W, register: u8, value: Val) {
        self.set_register(w, register, value);
    }
    fn push(&mut self, i: &Insn, value: Val) -> Result<()> {
        self.push_value(i, value);
        Ok(())
    }
    fn pop(&mut self, i: &Insn) -> Result<Val> {
        let stack = i.stack_width();
        let sp = self.register(stack, gpr::RSP as u8);
        let value = self.load_stack(i, sp);
        let sp = self.binary(Bin::Add, stack, sp, Val::Const(u64::from(i.width().bytes())));
        self.set_register(stack, gpr::RSP as u8, sp);
        Ok(value)
    }
    fn stack_load(&mut self, i: &Insn, offset: Val) -> Result<Val> {
        Ok(self.load_stack(i, offset))
    }

    fn bin(&mut self, op: Bin, w: W, a: Val, b: Val) -> Val {
        self.binary(op, w, a, b)
    }
    fn un(&mut self, op: Un, w: W, a: Val) -> Val {
        self.unary(op, w, a)
    }
    fn shift(&mut self, op: Shift, w: W, a: Val, count: Val) -> Val {
        self.shifted(op, w, a, count)
    }
    fn add_carry(&mut self, w: W, a: Val, b: Val, carry: Bit) -> Val {
        let (sum, c) = (self.binary(Bin::Add, w, a, b), self.bit_value(w, carry));
        self.binary(Bin::Add, w, sum, c)
    }
    fn sub_borrow(&mut self, w: W, a: Val, b: Val, borrow: Bit) -> Val {
        let (difference, c) = (self.binary(Bin::Sub, w, a, b), self.bit_value(w, borrow));
        self.binary(Bin::Sub, w, difference, c)
    }
    fn trunc(&mut self, from: W, to: W, a: Val) -> Val {
        self.truncated(from, to, a)
    }
    fn zext(&mut self, from: W, to: W, a: Val) -> Val {
        self.extended(from, to, a, false)
    }
    fn sext(&mut self, from: W, to: W, a: Val) -> Val {
        self.extended(from, to, a, true)
    }

    fn is_zero(&mut self, w: W, a: Val) -> Bit {
        self.compare(IntCC::Equal, w, a, Val::Const(0))
    }
    fn below(&mut self, w: W, a: Val, b: Val) -> Bit {
        self.compare(IntCC::UnsignedLessThan, w, a, b)
    }
    fn bit(&mut self, w: W, a: Val, n: u32) -> Bit {
        self.bit_of(w, a, n)
    }
    fn bit_constant(&mut self, value: bool) -> Bit {
        Bit::Const(value)
    }
    fn bit_xor(&mut self, a: Bit, b: Bit) -> Bit {
        match (a, b) {
            (Bit::Const(false), x) | (x, Bit::Const(false)) => x,
            (Bit::Const(true), x) | (x, Bit::Const(true)) => self.inverted(x),
            (Bit::Value(x), Bit::Value(y)) => Bit::Value(self.b.ins().bxor(x, y)),
        }
    }
    fn bit_and(&mut self, a: Bit, b: Bit) -> Bit {
        match (a, b) {
            (Bit::Const(false), _) | (_, Bit::Const(false)) => Bit::Const(false),
            (Bit::Const(true), x) | (x, Bit::Const(true)) => x,
            (Bit::Value(x), Bit::Value(y)) => Bit::Value(self.b.ins().band(x, y)),
        }
    }
    fn bit_not(&mut self, a: Bit) -> Bit {
        self.inverted(a)
    }
    fn bit_value(&mut self, w: W, a: Bit) -> Val {
        match a {
            Bit::Const(c) => Val::Const(u64::from(c)),
            Bit::Value(v) => self.extended(W::B, w, Val::Value(v), false),
        }
    }
    fn select(&mut self, w: W, c: Bit, yes: Val, no: Val) -> Val {
        match c {
            Bit::Const(true) => yes,
            Bit::Const(false) => no,
            Bit::Value(c) => {
                let (yes, no) = (self.value(w, yes), self.value(w, no));
                Val::Value(self.b.ins().select(c, yes, no))
            }
        }
    }

    fn flags(&mut self, flags: Flags<Val, Bit>) {
        self.declare(flags);
    }
    fn cond(&mut self, cond: Cond) -> Bit {
        self.condition(cond)
    }
    fn carry(&mut self) -> Bit {
        self.carry_flag()
    }
    fn jump(&mut self, _: &Insn) -> Result<()> {
        self.transfer = Some(Transfer::Jump);
        Ok(())
    }
    fn jump_to(&mut self, i: &Insn, target: Val) -> Result<()> {
        // The others have checked it before they committed.
        if i.kernel == Kernel::JmpIndirect {
            self.check_target(i, target)?;
        }
        self.transfer = Some(Transfer::To(i.width(), target));
        Ok(())
    }
    fn branch(&mut self, _: &Insn, taken: Bit) -> Result<()> {
        self.transfer = Some(Transfer::Branch(taken));
        Ok(())
    }
    fn next_rip(&mut self, i: &Insn) -> Val {
        self.truncated(W::Q, i.width(), Val::Rip(self.next))
    }
    fn check_target(&mut self, i: &Insn, target: Val) -> Result<()> {
        // A target on the region's page is as canonical as the page.
        let near = |delta: i64| (0..4096).contains(&(self.job.region.offset as i64 + delta));
        let w = i.width();
        // Narrower ones are positive. Outside 64-bit mode CS has no end.
        if w == W::Q && !matches!(target, Val::Rip(delta) if near(delta)) {
            let target = self.value(W::Q, target);
            self.check_canonical(target);
        }
        Ok(())
    }
    fn branch_target(&mut self, i: &Insn) -> Val {
        self.truncated(W::Q, i.width(), Val::Rip(self.next.wrapping_add(i.imm as i64)))
    }
}
