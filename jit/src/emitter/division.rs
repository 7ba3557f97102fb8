//! DIV and IDIV of 32 and 64 bits: the host's, where they cannot fault.
//!
//! A quotient that does not fit, and a divisor of 0, are the interpreter's: the region is left before the instruction. So
//! is a signed dividend wider than its lower half, and a divisor of -1, which compilers' code hardly ever has. The guest's
//! flags stay as they are.

use super::encode::{Alu, RAX, RCX, RDX, Sh, at, cc};
use super::registers::Emitter;
use super::value::Val;
use iced_x86::Mnemonic;
use trimaran_cpu::insn::{Insn, W, prefix};
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::state::gpr;

/// Whether an instruction is one of these.
pub fn native(i: &Insn) -> bool {
    i.kernel == Kernel::Helper
        && i.w >= 4
        && matches!(i.code.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
        && !(i.memory() && i.has(prefix::CHECKED) || i.has(prefix::LOCK))
}

impl Emitter<'_> {
    pub fn division(&mut self, i: &Insn) {
        let w = i.width();
        let signed = i.code.mnemonic() == Mnemonic::Idiv;
        let divisor = if i.memory() { self.load_operand(i, w) } else { self.read_guest(w, i.r0) };
        let [divisor, high, low] =
            [divisor, self.read_guest(w, gpr::RDX as u8), self.read_guest(w, gpr::RAX as u8)]
                .map(|v| self.force(v, w).0);
        // The host wants RDX; unless it is free, its value waits where the quotient will be.
        let (mut quotient, mut remainder) = (self.alloc(), self.alloc());
        if quotient == RDX {
            std::mem::swap(&mut quotient, &mut remainder);
        }
        let k = self.snapshot(0, false);
        let fault = self.labels.make();
        if signed {
            self.asm.mov(w, RAX, low);
            self.asm.shift_imm(Sh::Sar, w, RAX, w.bits() as u8 - 1);
            self.asm.alu(Alu::Cmp, w, RAX, high);
            self.asm.jcc(cc::NE, fault);
            self.asm.lea(w, RAX, at(divisor, 1));
            self.asm.alu_imm(Alu::Cmp, w, RAX, 1);
            self.asm.jcc(cc::BE, fault);
        } else {
            self.asm.alu(Alu::Cmp, w, high, divisor);
            self.asm.jcc(cc::AE, fault);
        }
        self.cold.bind(fault);
        self.cold.mov_imm(RAX, k.into());
        self.cold.call(self.common.miss);

        self.asm.mov(w, RCX, divisor);
        self.asm.mov(w, RAX, low);
        if remainder != RDX {
            self.asm.mov(W::Q, quotient, RDX);
        }
        if high != RDX {
            self.asm.mov(w, RDX, high);
        }
        self.asm.div(signed, w, RCX);
        if remainder != RDX {
            self.asm.mov(w, remainder, RDX);
            self.asm.mov(W::Q, RDX, quotient);
        }
        self.asm.mov(w, quotient, RAX);
        self.write_guest(w, gpr::RAX as u8, Val::Host(quotient, w.bytes()));
        self.write_guest(w, gpr::RDX as u8, Val::Host(remainder, w.bytes()));
    }
}
