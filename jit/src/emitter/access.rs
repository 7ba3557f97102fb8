//! Memory operands: linear addresses, the look-up in the TLB, and what stands behind a failed one.
//!
//! The address stands in RCX, the entry's in RAX; both are free again once the host address is known. A miss jumps
//! to a stub in the cold part which names the snapshot and comes back to the look-up.

use super::encode::{Alu, Mem, NONE, RAX, RCX, Reg, Sh, at, cc, field};
use super::registers::Emitter;
use super::value::Val;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::state::{gpr, seg};
use trimaran_cpu::tlb::{ENTRIES, Entry};
use trimaran_cpu::translate::offset;

const TAG_READ: i32 = std::mem::offset_of!(Entry, read) as i32;
const TAG_WRITE: i32 = std::mem::offset_of!(Entry, write) as i32;
const ADDEND: i32 = std::mem::offset_of!(Entry, addend) as i32;
/// An entry has 1 << 5 bytes.
const ENTRY_SHIFT: u32 = size_of::<Entry>().trailing_zeros();

impl Emitter<'_> {
    /// The memory operand's offset as a host operand; constants are folded into the displacement. May use RAX.
    fn offset_operand(&mut self, i: &Insn) -> Mem {
        let mut disp = i.disp;
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

    /// The memory operand's offset in `d`, cut to the address size.
    fn offset_into(&mut self, i: &Insn, d: Reg) {
        let m = self.offset_operand(i);
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
        self.offset_into(i, d);
        Val::Host(d, i.asize)
    }

    /// The linear address of the memory operand in RCX.
    fn operand_address(&mut self, i: &Insn) {
        // Base and index are not needed any more then.
        let busy = self.busy;
        self.offset_into(i, RCX);
        self.busy = busy;
        if usize::from(i.seg) < seg::FLAT {
            self.asm.alu_load(Alu::Add, W::Q, RCX, field(offset::segment_base(i.seg.into())));
            if !self.code64 {
                self.fail("a segment that is not flat");
            }
        }
    }

    /// Looks RCX up for an access; `tag` is a register to spoil. Afterwards RAX is the entry's address.
    fn look_up(&mut self, size: u8, write: bool, tag: Reg) {
        let k = self.snapshot(size, write);
        let (again, miss) = (self.labels.make(), self.labels.make());
        self.asm.bind(again);
        self.asm.mov(W::D, RAX, RCX);
        self.asm.shift_imm(Sh::Shr, W::D, RAX, 10);
        self.asm.alu(Alu::Xor, W::D, RAX, RCX);
        self.asm.shift_imm(Sh::Shr, W::D, RAX, (12 - ENTRY_SHIFT) as u8);
        self.asm.alu_imm(Alu::And, W::D, RAX, ((ENTRIES - 1) << ENTRY_SHIFT) as i32);
        self.asm.alu_load(Alu::Add, W::Q, RAX, field(offset::TLB));
        self.asm.load(W::Q, tag, at(RAX, if write { TAG_WRITE } else { TAG_READ }));
        self.asm.alu(Alu::Xor, W::Q, tag, RCX);
        self.asm.alu_imm(Alu::Cmp, W::Q, tag, 4096 - i32::from(size));
        self.asm.jcc(cc::A, miss);
        self.cold.bind(miss);
        self.cold.mov_imm(RAX, k.into());
        self.cold.call(self.common.miss);
        self.cold.jmp(again);
    }

    fn load_rcx(&mut self, w: W) -> Val {
        let d = self.alloc();
        self.look_up(w.bytes(), false, d);
        self.asm.alu_load(Alu::Add, W::Q, RCX, at(RAX, ADDEND));
        self.asm.load(w, d, at(RCX, 0));
        Val::Host(d, w.bytes())
    }

    pub fn load_operand(&mut self, i: &Insn, w: W) -> Val {
        self.operand_address(i);
        self.load_rcx(w)
    }

    /// The operand, and the register with its host address, checked for write.
    pub fn open_operand(&mut self, i: &Insn, w: W) -> (Val, Reg) {
        let (d, host) = (self.alloc(), self.alloc());
        self.operand_address(i);
        self.look_up(w.bytes(), true, host);
        self.asm.load(W::Q, host, at(RAX, ADDEND));
        self.asm.alu(Alu::Add, W::Q, host, RCX);
        self.asm.load(w, d, at(host, 0));
        (Val::Host(d, w.bytes()), host)
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

    fn store_rcx(&mut self, w: W, v: Val) {
        let tag = self.alloc();
        self.look_up(w.bytes(), true, tag);
        self.asm.alu_load(Alu::Add, W::Q, RCX, at(RAX, ADDEND));
        self.store_at(w, at(RCX, 0), v);
    }

    pub fn store_operand(&mut self, i: &Insn, w: W, v: Val) {
        let v = self.ready(w, v);
        self.operand_address(i);
        self.store_rcx(w, v);
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

    /// A stack address (32 or 64 bits) in RCX.
    fn stack_address(&mut self, i: &Insn, offset: Val) {
        match self.exprs.resolve(offset) {
            Val::Const(c) => self.asm.mov_imm(RCX, c),
            v => {
                let (h, _) = self.force(v, i.stack_width());
                self.asm.mov(i.stack_width(), RCX, h);
            }
        }
    }

    pub fn load_stack(&mut self, i: &Insn, w: W, offset: Val) -> Val {
        self.stack_address(i, offset);
        self.load_rcx(w)
    }

    pub fn store_stack(&mut self, i: &Insn, w: W, offset: Val, v: Val) {
        let v = self.ready(w, v);
        self.stack_address(i, offset);
        self.store_rcx(w, v);
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
