//! Each instruction, behind its guard.

use super::forms::{Action, Changes, Form};
use super::{NOWHERE, X87};
use crate::emitter::encode::{Alu, Mem, RAX, RCX, Reg, field, fpu};
use crate::emitter::registers::Emitter;
use crate::emitter::value::Val;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::ops::{Cond, Ops};
use trimaran_cpu::state::gpr;
use trimaran_cpu::translate::{offset, x87_used};
use trimaran_cpu::x87_status::{C0, C1, C2, C3, EXCEPTIONS, SF};

/// What the host's status word has of the guest's besides C1.
const HOSTS: u16 = EXCEPTIONS | C0 | C2 | C3;
const TOP: u16 = 7 << 11;
/// Of the control word: what can be written, and what reads 1 (`X87::set_control`).
const CONTROL: i32 = 0x1F3F;
const CONTROL_ONE: i32 = 0x40;

impl X87 {
    /// What an instruction did to the stack.
    fn follow(&mut self, form: &Form, i: &Insn) {
        let operand = usize::from(form.operand(i));
        match form.changes {
            Changes::Nothing => {}
            Changes::Top => self.homes[0] = NOWHERE,
            Changes::Second => self.homes[1] = NOWHERE,
            Changes::Operand => self.homes[usize::from(i.r0 & 7)] = NOWHERE,
            Changes::Exchange => self.homes.swap(0, operand),
        }
        if form.push {
            self.push();
        }
        (0..form.pops).for_each(|_| self.pop());
    }
}

impl Emitter<'_> {
    /// Emits an x87 instruction.
    pub fn x87(&mut self, i: &Insn, form: &Form) {
        if form.action == Action::StoreControl {
            return self.store_control(i);
        }
        self.x87_ready(form, i);
        match form.action {
            Action::Same => self.same(i, form),
            Action::CompareToFlags => {
                let image = self.alloc();
                // The manual clears C1, AMD's processors do not.
                self.asm.x87(fpu::FXCH);
                self.same(i, form);
                self.capture_flags(image, None);
            }
            Action::Move(condition) => self.conditional_move(i, form, condition),
            Action::StoreStatus => self.store_status(i),
            Action::LoadControl => self.load_control(i),
            Action::Rotate(by) => self.rotate(by),
            Action::Free => self.free_register(i.r0 & 7),
            Action::StoreControl | Action::Nothing | Action::Wait => {}
        }
        if form.noted() {
            self.state.x87.last = Some(self.delta);
        }
    }

    /// The host's instruction, with its operand looked up before.
    fn same(&mut self, i: &Insn, form: &Form) {
        let memory = (form.size != 0).then(|| self.x87_operand(i, form));
        self.leave_popped(form.pops);
        if !self.state.x87.has_c1 {
            let both = x87_used::ARMED | x87_used::C1;
            self.asm.store_imm(W::B, field(offset::X87_USED), both.into());
            self.state.x87.has_c1 = true;
        }
        if let Some((m, address)) = memory {
            self.asm.x87_memory(form.escape, form.second, m);
            self.note_operand(i, address);
        } else {
            let number = if form.indexed { form.operand(i) } else { 0 };
            self.asm.x87(u16::from(form.escape) << 8 | u16::from(form.second + number));
        }
        self.state.x87.follow(form, i);
    }

    /// Registers that are popped keep their contents, and FXSAVE shows them: so memory must know. Clears C1.
    fn leave_popped(&mut self, pops: u8) {
        for n in 0..pops {
            let p = self.state.x87.physical(n);
            if !self.state.x87.moves_home(n) {
                continue;
            }
            let m = field(offset::x87_register(p.into()));
            if self.state.x87.cached < 8 {
                self.asm.x87(fpu::FLD + u16::from(n));
                self.asm.store_extended(m);
            } else {
                // No room for a copy.
                self.asm.x87(fpu::FXCH + u16::from(n));
                self.asm.store_extended(m);
                self.asm.load_extended(m);
                self.asm.x87(fpu::FXCH + u16::from(n));
            }
        }
    }

    /// The operand's place, and a register with its offset in the segment.
    fn x87_operand(&mut self, i: &Insn, form: &Form) -> (Mem, Reg) {
        let address = self.offset_value(i);
        let (address, _) = self.force(address, W::Q);
        (self.vector_operand(i, form.size, form.store, false), address)
    }

    /// FDP and FDS.
    fn note_operand(&mut self, i: &Insn, address: Reg) {
        self.asm.store(W::Q, field(offset::X87_DATA_POINTER), address);
        let segment = i.r2 & 7;
        if self.state.x87.data_selector != Some(segment) {
            self.asm.load(W::W, RAX, field(offset::segment_selector(segment.into())));
            self.asm.store(W::W, field(offset::X87_DATA_SELECTOR), RAX);
            self.state.x87.data_selector = Some(segment);
        }
    }

    /// FCMOVcc. C1 changes with the move only.
    fn conditional_move(&mut self, i: &Insn, form: &Form, condition: Cond) {
        let bit = self.cond(condition);
        let code = self.test_bit(bit);
        let skip = self.labels.make();
        self.asm.jcc(code ^ 1, skip);
        if !self.state.x87.has_c1 {
            self.asm.alu_mem_imm(Alu::And, W::W, field(offset::X87_STATUS), !i32::from(C1));
        }
        match form.operand(i) {
            0 => self.asm.x87(fpu::FXCH),
            n => {
                self.asm.x87(fpu::DROP);
                self.asm.x87(fpu::FLD + u16::from(n - 1));
            }
        }
        self.asm.bind(skip);
        self.state.x87.follow(form, i);
    }

    /// FNSTSW: the host's word and memory's, each where it has the guest's bits.
    fn store_status(&mut self, i: &Insn) {
        let d = self.alloc();
        self.asm.x87(fpu::FNSTSW_AX);
        if self.state.x87.has_c1 {
            self.asm.alu_imm(Alu::And, W::D, RAX, (HOSTS | C1).into());
            self.asm.load(W::W, d, field(offset::X87_STATUS));
            self.asm.alu_imm(Alu::And, W::D, d, SF.into());
        } else {
            self.c1_mask();
            self.asm.alu_imm(Alu::Or, W::D, RCX, HOSTS.into());
            self.asm.alu(Alu::And, W::D, RAX, RCX);
            self.asm.not(W::D, RCX);
            self.asm.alu_imm(Alu::And, W::D, RCX, (!TOP).into());
            self.asm.load(W::W, d, field(offset::X87_STATUS));
            self.asm.alu(Alu::And, W::D, d, RCX);
        }
        let top = i32::from(self.state.x87.top) << 11;
        self.asm.lea(W::D, d, Mem { base: RAX, index: d, scale: 0, disp: top });
        if i.memory() {
            self.store_operand(i, W::W, Val::Host(d, 2));
        } else {
            self.write_guest(W::W, gpr::RAX as u8, Val::Host(d, 2));
        }
    }

    fn store_control(&mut self, i: &Insn) {
        let d = self.alloc();
        self.asm.load(W::W, d, field(offset::X87_CONTROL));
        self.store_operand(i, W::W, Val::Host(d, 2));
    }

    /// FLDCW. A word that unmasks something is the interpreter's.
    fn load_control(&mut self, i: &Insn) {
        let v = self.load_operand(i, W::W);
        let (h, _) = self.force(v, W::W);
        let k = self.snapshot(0, false);
        let unmasked = self.labels.make();
        self.asm.mov(W::D, RAX, h);
        self.asm.not(W::D, RAX);
        self.asm.test_imm(W::B, RAX, EXCEPTIONS.into());
        self.asm.jcc(crate::emitter::encode::cc::NE, unmasked);
        self.cold.bind(unmasked);
        self.cold.mov_imm(RAX, k.into());
        self.cold.call(self.common.miss);
        self.asm.mov(W::D, RAX, h);
        self.asm.alu_imm(Alu::And, W::D, RAX, CONTROL);
        self.asm.alu_imm(Alu::Or, W::D, RAX, CONTROL_ONE);
        self.asm.store(W::W, field(offset::X87_CONTROL), RAX);
        self.asm.fldcw(field(offset::X87_CONTROL));
    }

    /// FFREE: the guest's registers in the host's stack would have a hole.
    fn free_register(&mut self, n: u8) {
        self.write_x87();
        let x = &mut self.state.x87;
        x.tag(n, false);
        let bit = 1u8 << x.physical(n);
        x.memory_valid &= !bit;
        self.asm.alu_mem_imm(Alu::And, W::B, field(offset::X87_VALID), (!bit).into());
    }

    /// FINCSTP, FDECSTP: the guest's registers move against the host's. C1 = 0.
    fn rotate(&mut self, by: u8) {
        self.write_x87();
        self.asm.alu_mem_imm(Alu::And, W::W, field(offset::X87_STATUS), !i32::from(C1));
        self.asm.store_imm(W::B, field(offset::X87_USED), x87_used::ARMED.into());
        let x = &mut self.state.x87;
        x.has_c1 = false;
        x.top = (x.top + by) & 7;
    }
}
