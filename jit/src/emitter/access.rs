//! Memory operands: linear addresses, the look-up in the TLB, and what stands behind a failed one.
//!
//! The address stands in RCX, the entry's in RAX; both are free again once the access is done. A miss jumps
//! to a stub in the cold part which names the snapshot and comes back to the look-up.
//!
//! Accesses off one base register share a look-up where the code ahead says that it pays: see `windows.rs`.

use super::encode::{Alu, Label, Mem, NONE, RAX, RCX, Reg, Sh, at, cc, field};
use super::registers::Emitter;
use super::value::Val;
use super::windows::{Plan, Reach};
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::state::{gpr, seg};
use trimaran_cpu::tlb::{ENTRIES, Entry};
use trimaran_cpu::translate::offset;

/// Set in the size of an access whose address must be a multiple of that size.
pub const ALIGNED: u8 = 0x80;

const TAG_READ: i32 = std::mem::offset_of!(Entry, read) as i32;
const TAG_WRITE: i32 = std::mem::offset_of!(Entry, write) as i32;
pub const ADDEND: i32 = std::mem::offset_of!(Entry, addend) as i32;
/// An entry has 1 << 5 bytes.
const ENTRY_SHIFT: u32 = size_of::<Entry>().trailing_zeros();

/// Free registers that keeping the TLB's address in one must leave.
const SPARE: u32 = 3;

/// What is accessed.
#[derive(Clone, Copy)]
enum Operand<'i> {
    Memory(&'i Insn),
    /// At a stack pointer's value.
    Stack(&'i Insn, Val),
}

impl Emitter<'_> {
    /// The memory operand's offset plus `more` as a host operand; constants are folded into the displacement. May use
    /// RAX.
    fn offset_operand(&mut self, i: &Insn, more: i32) -> Mem {
        let mut disp = i.disp.wrapping_add(more as i64 as u64);
        let mut part = |e: &mut Self, register: u8, scale: u8| {
            if usize::from(register) == gpr::ZERO {
                return NONE;
            }
            if usize::from(register) == gpr::RIP {
                disp = disp.wrapping_add((e.delta + i64::from(i.len)) as u64);
            }
            match e.guest(usize::from(register)) {
                Val::Const(v) => {
                    disp = disp.wrapping_add(v << scale);
                    NONE
                }
                v => e.force(v, W::Q).0,
            }
        };
        let base = part(self, i.base, 0);
        let index = part(self, i.index, i.scale);
        if i.asize < 8 {
            // The address is cut to 32 bits.
            disp = disp as u32 as i32 as u64;
        }
        let disp = match i32::try_from(disp as i64) {
            Ok(disp) => disp,
            Err(_) => {
                self.asm.mov_imm(RAX, disp);
                if base == NONE {
                    return Mem { base: RAX, index, scale: i.scale, disp: 0 };
                }
                self.asm.lea(W::Q, RAX, Mem { base: RAX, index: base, scale: 0, disp: 0 });
                return Mem { base: RAX, index, scale: i.scale, disp: 0 };
            }
        };
        Mem { base, index, scale: if index == NONE { 0 } else { i.scale }, disp }
    }

    /// The memory operand's offset plus `more` in `d`, cut to the address size.
    fn offset_into(&mut self, i: &Insn, more: i32, d: Reg) {
        let m = self.offset_operand(i, more);
        let w = if i.asize == 8 { W::Q } else { W::D };
        if m.base == NONE && m.index == NONE {
            self.asm.mov_imm(d, if w == W::Q { m.disp as i64 as u64 } else { u64::from(m.disp as u32) });
        } else if m.index == NONE && m.disp == 0 {
            self.asm.mov(w, d, m.base);
        } else {
            self.asm.lea(w, d, m);
        }
        if i.asize == 2 {
            self.asm.movzx(W::W, d, d);
        }
    }

    /// As LEA gives it.
    pub fn offset_value(&mut self, i: &Insn) -> Val {
        let d = self.alloc();
        self.offset_into(i, 0, d);
        Val::Host(d, i.asize)
    }

    /// The linear address of an operand plus `more` in RCX.
    fn linear_address(&mut self, what: Operand, more: i32) {
        // Base and index are not needed any more then.
        let busy = self.busy;
        match what {
            Operand::Stack(i, offset) => match self.exprs.resolve(offset) {
                Val::Const(c) => {
                    let c = c.wrapping_add(more as i64 as u64) & i.stack_width().mask();
                    self.asm.mov_imm(RCX, c);
                }
                v => {
                    let (h, _) = self.force(v, i.stack_width());
                    if more == 0 {
                        self.asm.mov(i.stack_width(), RCX, h);
                    } else {
                        self.asm.lea(i.stack_width(), RCX, at(h, more));
                    }
                }
            },
            Operand::Memory(i) => {
                self.offset_into(i, more, RCX);
                if usize::from(i.seg) < seg::FLAT {
                    self.asm.alu_load(Alu::Add, W::Q, RCX, field(offset::segment_base(i.seg.into())));
                    if !self.code64 {
                        self.fail("a segment that is not flat");
                    }
                }
            }
        }
        self.busy = busy;
    }

    /// The register with the TLB's address, or None; there should be one where a table is looked into several times.
    pub fn tlb_register(&mut self) -> Option<Reg> {
        if self.state.tlb.is_none() && !self.frugal && self.free_registers() >= SPARE {
            let busy = self.busy;
            let h = self.alloc();
            self.busy = busy;
            self.asm.load(W::Q, h, field(offset::TLB));
            self.state.tlb = Some(h);
        }
        self.state.tlb
    }

    /// Where the field `at` of the TLB entry is that RCX selects; RAX is part of it.
    fn find_entry(&mut self) -> impl Fn(i32) -> Mem + use<> {
        let table = self.tlb_register();
        let a = &mut self.asm;
        a.mov(W::D, RAX, RCX);
        a.shift_imm(Sh::Shr, W::D, RAX, 8);
        a.alu(Alu::Xor, W::D, RAX, RCX);
        a.shift_imm(Sh::Shr, W::D, RAX, (12 - ENTRY_SHIFT) as u8);
        a.alu_imm(Alu::And, W::D, RAX, ((ENTRIES - 1) << ENTRY_SHIFT) as i32);
        let (base, index) = match table {
            Some(h) => (h, RAX),
            None => {
                a.alu_load(Alu::Add, W::Q, RAX, field(offset::TLB));
                (RAX, NONE)
            }
        };
        move |disp| Mem { base, index, scale: 0, disp }
    }

    /// Looks RCX up; jumps to `miss` if `spare`, the tag then, does not allow an access of `size` bytes.
    pub fn look_up(
        &mut self,
        size: i32,
        write: bool,
        spare: Reg,
        miss: Label,
    ) -> impl Fn(i32) -> Mem + use<> {
        let entry = self.find_entry();
        self.asm.load(W::Q, spare, entry(if write { TAG_WRITE } else { TAG_READ }));
        self.asm.alu(Alu::Xor, W::Q, spare, RCX);
        self.asm.alu_imm(Alu::Cmp, W::Q, spare, 4096 - size);
        self.asm.jcc(cc::A, miss);
        entry
    }

    /// Looks an operand up for an access; its place, to be used before anything else is allocated. `spare` is a register to
    /// spoil.
    fn locate(&mut self, what: Operand, reach: Option<Reach>, size: u8, write: bool, spare: Reg) -> Mem {
        let aligned = size & ALIGNED != 0;
        if let Some(m) = reach.and_then(|r| self.covered(r)) {
            if aligned {
                self.asm.lea(W::Q, RCX, m);
                self.check_alignment(size);
            }
            return m;
        }
        let plan = reach.and_then(|r| self.plan(r));
        // For two accesses and more a register may be given up.
        if let Some(plan) = plan.filter(|p| p.count >= 2 || self.free_registers() >= SPARE) {
            if aligned {
                // Before the look-up: #GP leaves the page as it is, not accessed nor dirty.
                self.linear_address(what, 0);
                self.check_alignment(size);
            }
            return self.open(what, &plan, write);
        }
        let bytes = size & !ALIGNED;
        self.linear_address(what, 0);
        let k = self.snapshot(size, write);
        let (again, miss) = (self.labels.make(), self.labels.make());
        if aligned {
            // The miss finds that this is why.
            self.asm.test_imm(W::B, RCX, (bytes - 1).into());
            self.asm.jcc(cc::NE, miss);
        }
        // What comes back expects the register.
        self.tlb_register();
        self.asm.bind(again);
        let entry = self.look_up(bytes.into(), write, spare, miss);
        self.miss_stub(miss, again, k);
        self.asm.alu_load(Alu::Add, W::Q, RCX, entry(ADDEND));
        at(RCX, 0)
    }

    /// Opens a window for an operand.
    fn open(&mut self, what: Operand, plan: &Plan, write: bool) -> Mem {
        let host = self.alloc();
        self.linear_address(what, plan.back());
        let k = self.window_snapshot(plan, write);
        let (again, miss) = (self.labels.make(), self.labels.make());
        self.tlb_register();
        self.asm.bind(again);
        let entry = self.look_up(plan.span(), plan.write(), host, miss);
        self.miss_stub(miss, again, k);
        self.asm.load(W::Q, host, entry(ADDEND));
        self.asm.alu(Alu::Add, W::Q, host, RCX);
        self.open_window(plan, host)
    }

    fn miss_stub(&mut self, miss: Label, again: Label, k: u32) {
        self.cold.bind(miss);
        self.cold.mov_imm(RAX, k.into());
        self.cold.call(self.common.miss);
        self.cold.jmp(again);
    }

    pub fn load_operand(&mut self, i: &Insn, w: W) -> Val {
        let d = self.alloc();
        let reach = self.reach(i, self.delta, w.bytes(), false);
        let m = self.locate(Operand::Memory(i), reach, w.bytes(), false, d);
        self.asm.load(w, d, m);
        Val::Host(d, w.bytes())
    }

    /// The memory operand of a vector instruction, to be used before anything else is allocated.
    pub fn vector_operand(&mut self, i: &Insn, size: u8, write: bool, aligned: bool) -> Mem {
        let spare = self.alloc();
        let reach = self.reach(i, self.delta, size, write);
        self.locate(Operand::Memory(i), reach, size | if aligned { ALIGNED } else { 0 }, write, spare)
    }

    /// The operand, and the register with its host address, checked for write.
    pub fn open_operand(&mut self, i: &Insn, w: W) -> (Val, Reg) {
        let (d, host) = (self.alloc(), self.alloc());
        let reach = self.reach(i, self.delta, w.bytes(), true);
        let m = self.locate(Operand::Memory(i), reach, w.bytes(), true, host);
        self.asm.lea(W::Q, host, m);
        self.asm.load(w, d, at(host, 0));
        (Val::Host(d, w.bytes()), host)
    }

    /// As `open_operand` under LOCK: from the label on code may run again, until nobody wrote in between.
    pub fn open_locked(&mut self, i: &Insn, w: W) -> (Reg, Reg, Label) {
        let (old, host) = (self.alloc(), self.alloc());
        let m = self.locate(Operand::Memory(i), None, w.bytes(), true, host);
        self.asm.lea(W::Q, host, m);
        // What runs again must not give up registers.
        self.make_room();
        self.repeated = true;
        let again = self.labels.make();
        self.asm.bind(again);
        self.asm.load(w, old, at(host, 0));
        (old, host, again)
    }

    pub fn commit_locked(&mut self, w: W, old: Reg, host: Reg, again: Label, v: Val) {
        let (new, _) = self.force(v, w);
        self.asm.mov(W::Q, RAX, old);
        self.asm.lock_cmpxchg(w, at(host, 0), new);
        self.asm.jcc(cc::NE, again);
        self.repeated = false;
    }

    /// A value ready to be stored: nothing is computed after the address is known.
    fn ready(&mut self, w: W, v: Val) -> Val {
        match self.exprs.resolve(v) {
            Val::Const(c) if super::value::immediate(w, c).is_some() => Val::Const(c),
            v => {
                let (h, zx) = self.force(v, w);
                Val::Host(h, zx)
            }
        }
    }

    pub fn store_at(&mut self, w: W, m: Mem, v: Val) {
        match self.ready(w, v) {
            Val::Const(c) => self.asm.store_imm(w, m, super::value::immediate(w, c).unwrap_or(0)),
            v => {
                let (h, _) = self.force(v, w);
                self.asm.store(w, m, h);
            }
        }
    }

    pub fn store_operand(&mut self, i: &Insn, w: W, v: Val) {
        let v = self.ready(w, v);
        let spare = self.alloc();
        let reach = self.reach(i, self.delta, w.bytes(), true);
        let m = self.locate(Operand::Memory(i), reach, w.bytes(), true, spare);
        self.store_at(w, m, v);
    }

    /// A value plus a constant, without flags.
    pub fn add_constant(&mut self, w: W, v: Val, n: i32) -> Val {
        match self.exprs.resolve(v) {
            Val::Const(c) => Val::Const(c.wrapping_add(n as i64 as u64) & w.mask()),
            v => {
                let (h, _) = self.force(v, w);
                let d = self.alloc();
                self.asm.lea(w, d, at(h, n));
                Val::Host(d, w.bytes())
            }
        }
    }

    /// Loads from the stack at `offset`, which is that of guest register `register`.
    pub fn load_stack(&mut self, i: &Insn, w: W, register: usize, offset: Val) -> Val {
        let d = self.alloc();
        let reach = self.stack_reach(i, register, 0, false);
        let m = self.locate(Operand::Stack(i, offset), reach, w.bytes(), false, d);
        self.asm.load(w, d, m);
        Val::Host(d, w.bytes())
    }

    /// Stores to the stack, where its pointer will lead.
    pub fn store_stack(&mut self, i: &Insn, w: W, offset: Val, v: Val) {
        let v = self.ready(w, v);
        let spare = self.alloc();
        let reach = self.stack_reach(i, gpr::RSP, -i64::from(w.bytes()), true);
        let m = self.locate(Operand::Stack(i, offset), reach, w.bytes(), true, spare);
        self.store_at(w, m, v);
    }

    /// Leaves to the interpreter where a computed target is not canonical.
    pub fn check_canonical(&mut self, target: Val) {
        let (h, _) = self.force(target, W::Q);
        let k = self.snapshot(0, false);
        let fault = self.labels.make();
        self.asm.mov(W::Q, RAX, h);
        self.asm.shift_imm(Sh::Sar, W::Q, RAX, 47);
        self.asm.alu_imm(Alu::Add, W::D, RAX, 1);
        self.asm.alu_imm(Alu::Cmp, W::D, RAX, 1);
        self.asm.jcc(cc::A, fault);
        self.cold.bind(fault);
        self.cold.mov_imm(RAX, k.into());
        self.cold.call(self.common.miss);
    }
}
