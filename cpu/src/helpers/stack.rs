//! Stack instructions that are more than one push or pop, and the conditional loops.

use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::{Insn, W, prefix};
use crate::state::{RFlags, Segment, attr, cr4, gpr, seg};

/// A stack under construction or in use: pushes and pops work on a copy of the stack pointer, so that nothing is
/// committed before all checks are done.
#[derive(Clone, Copy)]
pub struct Stack {
    pub segment: Segment,
    pub mask: u64,
    pub sp: u64,
    /// 64-bit mode: no segment checks.
    pub long: bool,
    /// Error code of its #SS.
    pub error: u16,
    /// Accesses are those of CPL 3.
    pub user: bool,
}

impl Stack {
    /// The stack in use.
    pub fn current(v: &Vcpu) -> Self {
        let long = v.state.code64();
        let segment = v.state.seg[seg::SS];
        let mask = stack_mask(long, &segment);
        let user = v.state.cpl == 3;
        Stack { segment, mask, sp: v.state.gpr[gpr::RSP] & mask, long, error: 0, user }
    }

    fn address(&self, v: &mut Vcpu, sp: u64, size: u8, write: bool) -> Result<u64, Exit> {
        if self.long {
            return Ok(sp);
        }
        let address = v.segment_linear(&self.segment, sp, u32::from(size), write);
        address.ok_or_else(|| v.raise_code(vector::SS, self.error))
    }

    pub fn push(&mut self, v: &mut Vcpu, size: u8, value: u64) -> Result<(), Exit> {
        let sp = self.sp.wrapping_sub(u64::from(size)) & self.mask;
        let address = self.address(v, sp, size, true)?;
        let store = |v: &mut Vcpu| v.store_sized(seg::FLAT_STACK as u8, address, size, value);
        if self.user {
            store(v)?;
        } else {
            v.as_supervisor(store)?;
        }
        self.sp = sp;
        Ok(())
    }

    pub fn pop(&mut self, v: &mut Vcpu, size: u8) -> Result<u64, Exit> {
        let address = self.address(v, self.sp, size, false)?;
        let value = v.load_sized(seg::FLAT_STACK as u8, address, size)?;
        self.sp = self.sp.wrapping_add(u64::from(size)) & self.mask;
        Ok(value)
    }

    /// Makes the stack pointer architectural.
    pub fn commit(&self, v: &mut Vcpu) {
        v.set_stack_pointer(self.mask, self.sp);
    }
}

/// Mask of the stack pointer.
pub fn stack_mask(long: bool, ss: &Segment) -> u64 {
    if long {
        !0
    } else if ss.attributes & attr::DB != 0 {
        0xFFFF_FFFF
    } else {
        0xFFFF
    }
}

impl Vcpu {
    /// Linear address of a stack access, checked where SS is not flat.
    #[inline(always)]
    pub fn stack_address(&mut self, i: &Insn, sp: u64, size: u32, write: bool) -> Result<u64, Exit> {
        if i.prefix & prefix::CHECKED_STACK != 0 {
            return self.checked_linear(seg::SS as u8, sp, size, write);
        }
        Ok(sp)
    }
}

/// POP to memory: the address is computed with the stack pointer after the pop.
pub fn pop_memory(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let mut stack = Stack::current(v);
    let value = stack.pop(v, i.w)?;
    let old = v.state.gpr[gpr::RSP];
    stack.commit(v);
    let result = v
        .operand_address(i, u32::from(i.w), true)
        .and_then(|address| v.store_sized(i.seg, address, i.w, value));
    if result.is_err() {
        v.state.gpr[gpr::RSP] = old;
    }
    result
}

/// PUSH of a segment register.
pub fn push_segment(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let selector = u64::from(v.state.seg[usize::from(i.r0) & 7].selector);
    let mut stack = Stack::current(v);
    stack.push(v, i.w, selector)?;
    stack.commit(v);
    Ok(())
}

/// PUSHA / PUSHAD.
pub fn pusha(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let mut stack = Stack::current(v);
    let g = v.state.gpr;
    for &value in &g[..8] {
        stack.push(v, i.w, value)?;
    }
    stack.commit(v);
    Ok(())
}

/// POPA / POPAD: the stack pointer's image is skipped.
pub fn popa(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let mut stack = Stack::current(v);
    let mut values = [0; 8];
    for n in (0..8).rev() {
        values[n] = stack.pop(v, i.w)?;
    }
    for (n, value) in values.into_iter().enumerate().filter(|x| x.0 != gpr::RSP) {
        v.put_reg(W::from_bytes(i.w), n as u8, value);
    }
    stack.commit(v);
    Ok(())
}

/// PUSHF. In virtual-8086 mode it wants IOPL 3, or VME with 16-bit operands.
pub fn pushf(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let flags = v.rflags();
    let mut image = flags - RFlags::RF - RFlags::VM;
    if flags.contains(RFlags::VM) && v.state.iopl() < 3 {
        if i.w != 2 || v.state.cr4 & cr4::VME == 0 {
            return Err(v.protection());
        }
        image |= RFlags::IOPL;
        image.set(RFlags::IF, flags.contains(RFlags::VIF));
    }
    let mut stack = Stack::current(v);
    stack.push(v, i.w, image.bits())?;
    stack.commit(v);
    Ok(())
}

/// POPF: what may change depends on CPL, IOPL and VME (SDM Vol. 2, "POPF").
pub fn popf(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let old = v.rflags();
    let mut stack = Stack::current(v);
    let mut virtual_if = false;
    if old.contains(RFlags::VM) && v.state.iopl() < 3 {
        if i.w != 2 || v.state.cr4 & cr4::VME == 0 {
            return Err(v.protection());
        }
        virtual_if = true;
    }
    let raw = stack.pop(v, i.w)?;
    let new = RFlags::from_bits_retain(raw);
    let mut mask = RFlags::STATUS | RFlags::TF | RFlags::DF | RFlags::NT;
    if i.w != 2 {
        mask |= RFlags::AC | RFlags::ID;
    }
    if virtual_if {
        let pending = old.contains(RFlags::VIP) && new.contains(RFlags::IF);
        if pending || new.contains(RFlags::TF) {
            return Err(v.protection());
        }
        let mut flags = old & !mask | new & mask;
        flags.set(RFlags::VIF, new.contains(RFlags::IF));
        stack.commit(v);
        v.set_rflags(flags);
        return Err(Exit::Leave);
    }
    if v.state.cpl == 0 {
        mask |= RFlags::IOPL;
    }
    if v.state.cpl <= v.state.iopl() {
        mask |= RFlags::IF;
    }
    stack.commit(v);
    let mut flags = old & !mask | new & mask;
    flags.remove(RFlags::RF);
    v.set_rflags(flags);
    // Blocks need not end where nothing that they depend on has changed.
    let harmless = RFlags::STATUS | RFlags::DF | RFlags::NT | RFlags::ID | RFlags::RF;
    let mut changed = old.symmetric_difference(flags) - harmless;
    if !flags.contains(RFlags::IF) {
        changed.remove(RFlags::IF);
    }
    if changed.is_empty() && !flags.contains(RFlags::TF) { Ok(()) } else { Err(Exit::Leave) }
}

/// ENTER: `imm` bytes, nesting level `imm2`.
pub fn enter(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let level = i.imm2 & 31;
    let mut stack = Stack::current(v);
    let bp = v.state.gpr[gpr::RBP];
    stack.push(v, i.w, bp)?;
    let frame = stack.sp;
    if level > 0 {
        let mut outer = stack;
        outer.sp = bp & stack.mask;
        for _ in 1..level {
            outer.sp = outer.sp.wrapping_sub(u64::from(i.w)) & stack.mask;
            let mut at = outer;
            let value = at.pop(v, i.w)?;
            stack.push(v, i.w, value)?;
        }
        let frame_image = v.state.gpr[gpr::RSP] & !stack.mask | frame;
        stack.push(v, i.w, frame_image)?;
    }
    stack.sp = stack.sp.wrapping_sub(i.imm & 0xFFFF) & stack.mask;
    // The new frame must be writable (SDM: a page fault here leaves everything as it was).
    let address = stack.address(v, stack.sp, i.w, true)?;
    v.load_for_write::<1>(seg::FLAT_STACK as u8, address)?;
    stack.commit(v);
    v.put_reg(W::from_bytes(i.w), gpr::RBP as u8, frame);
    Ok(())
}

/// LOOPE / LOOPNE.
pub fn loop_conditional(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let w = W::from_bytes(i.asize);
    let left = v.get_reg(w, gpr::RCX as u8).wrapping_sub(1) & w.mask();
    let equal = i.code.mnemonic() == iced_x86::Mnemonic::Loope;
    if left != 0 && v.lazy.zf() == equal {
        v.jump_relative(i)?;
    }
    v.put_reg(w, gpr::RCX as u8, left);
    Ok(())
}
