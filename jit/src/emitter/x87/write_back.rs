//! From the host's stack to the guest's state in memory: where code leaves, and, by a snapshot, where it faults.

use super::{X87, host};
use crate::emitter::encode::{Alu, Mem, RAX, RCX, Sh, at, field, fpu};
use crate::emitter::registers::{Emitter, Place};
use trimaran_cpu::Vcpu;
use trimaran_cpu::insn::W;
use trimaran_cpu::state::{gpr, seg};
use trimaran_cpu::translate::{offset, x87_used};
use trimaran_cpu::x87_status::C1;

const TOP: u16 = 7 << 11;
const STATUS: usize = offset::X87_STATUS;

impl Emitter<'_> {
    /// Brings the memory of the unit's state up to date and empties the host's stack. Spoils RAX, RCX, flags.
    pub fn write_x87(&mut self) {
        self.write_x87_pointer();
        let x = self.state.x87;
        if x.cached != 0 {
            self.write_status_with_c1();
            for n in 0..x.cached {
                let p = x.physical(n);
                if x.homes[usize::from(n)] == p {
                    self.asm.x87(fpu::DROP);
                } else {
                    self.asm.store_extended(field(offset::x87_register(p.into())));
                }
            }
        } else if x.top != x.memory_top {
            self.asm.load(W::W, RAX, field(STATUS));
            self.asm.alu_imm(Alu::And, W::D, RAX, !i32::from(TOP));
            self.asm.alu_imm(Alu::Or, W::D, RAX, i32::from(x.top) << 11);
            self.asm.store(W::W, field(STATUS), RAX);
        }
        self.write_tags();
        let x = &mut self.state.x87;
        x.has_c1 &= x.cached == 0;
        (x.memory_top, x.memory_valid, x.cached) = (x.top, x.valid, 0);
    }

    /// FIP and FCS.
    pub fn write_x87_pointer(&mut self) {
        let Some(delta) = self.state.x87.last.take() else { return };
        let w = if self.code64 { W::Q } else { W::D };
        let rip = match self.state.guest[gpr::RIP] {
            Place::Host(h, _) => h,
            _ => {
                self.asm.load(W::Q, RAX, field(offset::gpr(gpr::RIP)));
                RAX
            }
        };
        // A region lies on one page, or is one instruction.
        self.asm.lea(w, RAX, at(rip, delta as i32));
        self.asm.store(W::Q, field(offset::X87_INSTRUCTION_POINTER), RAX);
        if !std::mem::replace(&mut self.state.x87.code_selector, true) {
            self.asm.load(W::W, RAX, field(offset::segment_selector(seg::CS)));
            self.asm.store(W::W, field(offset::X87_INSTRUCTION_SELECTOR), RAX);
        }
    }

    /// TOP, and C1 if the host has it, which stores of registers would clear.
    fn write_status_with_c1(&mut self) {
        let x = self.state.x87;
        self.asm.x87(fpu::FNSTSW_AX);
        if x.has_c1 {
            self.asm.alu_imm(Alu::And, W::D, RAX, C1.into());
            self.asm.load(W::W, RCX, field(STATUS));
            self.asm.alu_imm(Alu::And, W::D, RCX, !i32::from(C1 | TOP));
        } else {
            self.c1_mask();
            self.asm.alu(Alu::And, W::D, RAX, RCX);
            self.asm.not(W::D, RCX);
            self.asm.alu_load(Alu::And, W::W, RCX, field(STATUS));
            self.asm.alu_imm(Alu::And, W::D, RCX, (!TOP).into());
        }
        let top = i32::from(x.top) << 11;
        self.asm.lea(W::D, RAX, Mem { base: RAX, index: RCX, scale: 0, disp: top });
        self.asm.store(W::W, field(STATUS), RAX);
        self.asm.store_imm(W::B, field(offset::X87_USED), x87_used::ARMED.into());
    }

    /// Puts C1 into RCX if the host has the guest's, else 0.
    pub fn c1_mask(&mut self) {
        const FROM: u32 = x87_used::C1.trailing_zeros();
        self.asm.load(W::B, RCX, field(offset::X87_USED));
        self.asm.alu_imm(Alu::And, W::D, RCX, x87_used::C1.into());
        self.asm.shift_imm(Sh::Shl, W::D, RCX, (C1.trailing_zeros() - FROM) as u8);
    }

    fn write_tags(&mut self) {
        let x = &self.state.x87;
        let (set, clear) = (x.valid & !x.memory_valid, x.memory_valid & !x.valid);
        let valid = field(offset::X87_VALID);
        if set != 0 {
            self.asm.alu_mem_imm(Alu::Or, W::B, valid, set.into());
        }
        if clear != 0 {
            self.asm.alu_mem_imm(Alu::And, W::B, valid, (!clear).into());
        }
    }
}

/// What a snapshot keeps of the unit.
#[derive(Clone, Copy)]
pub struct Kept(X87);

impl Kept {
    /// None: memory is right.
    pub fn of(x: &X87) -> Option<Box<Kept>> {
        (x.cached != 0 || x.stale()).then(|| Box::new(Kept(*x)))
    }

    /// Does what [`Emitter::write_x87`] would have done; RIP is still the region's entry.
    pub fn rebuild(&self, v: &mut Vcpu, code64: bool) {
        let x = &self.0;
        if x.cached != 0 {
            host::take_c1(v);
            for n in 0..x.cached {
                let p = x.physical(n);
                let value = host::pop();
                if x.homes[usize::from(n)] != p {
                    v.state.x87.registers[usize::from(p)] = value;
                }
            }
        }
        if let Some(delta) = x.last {
            let rip = v.state.gpr[gpr::RIP].wrapping_add(delta as u64);
            v.state.x87.instruction_pointer = if code64 { rip } else { rip & 0xFFFF_FFFF };
            v.state.x87.instruction_selector = v.state.seg[seg::CS].selector;
        }
        v.state.x87.set_top(x.top);
        v.state.x87.valid = v.state.x87.valid & !x.known | x.valid;
    }
}
