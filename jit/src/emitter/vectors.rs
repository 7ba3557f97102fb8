//! Vector instructions: the guest's own, on the host's XMM registers; YMM registers where the guest has enabled AVX and
//! the host has it, so that legacy instructions keep what is above as the manual has it.
//!
//! Guest register n is cached in host register n and nowhere else. In place, because an instruction that can fault
//! does so at its look-up, before the host's instruction writes anything. A host register holds nothing else, so
//! there is no allocation; operands in memory stay there.

use super::encode::{Alu, Rm, cc, field};
use super::registers::Emitter;
use super::shapes::{Effect, Field, Shape};
use super::value::{BitOp, Val};
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::state::gpr;
use trimaran_cpu::translate::offset;

/// What is known of the vector unit between two instructions.
#[derive(Clone, Copy, Default)]
pub struct Vectors {
    /// Guest registers in host registers.
    pub cached: u16,
    /// Those whose memory is stale.
    pub dirty: u16,
    /// `FLOAT_USED` has been set since a helper last ran.
    pub float_used: bool,
}

/// The registers of a set.
fn each(mut set: u16) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let n = set.trailing_zeros() as u8;
        set &= set.wrapping_sub(1);
        (n < 16).then_some(n)
    })
}

impl Emitter<'_> {
    /// Brings vector registers into the host's.
    pub fn load_vectors(&mut self, set: u16) {
        for n in each(set & !self.state.vectors.cached) {
            self.asm.load_vector(self.ymm, n, field(offset::xmm(n.into())));
        }
        self.state.vectors.cached |= set;
    }

    /// Brings the memory of vector registers up to date. No flags.
    pub fn write_vectors(&mut self, set: u16) {
        for n in each(set & self.state.vectors.dirty) {
            self.asm.store_vector(self.ymm, field(offset::xmm(n.into())), n);
        }
        self.state.vectors.dirty &= !set;
    }

    /// Tells the engine that the host's MXCSR will hold flags of the guest's.
    pub fn use_float(&mut self) {
        if !self.state.vectors.float_used {
            self.asm.store_imm(W::B, field(offset::FLOAT_USED), 1);
            self.state.vectors.float_used = true;
        }
    }

    fn checksum(&mut self, i: &Insn, w: W) {
        let old = self.guest(usize::from(i.r0 & 15));
        let (old, _) = self.force(old, W::Q);
        let d = self.alloc();
        let rm = if i.memory() {
            Rm::Mem(self.vector_operand(i, w.bytes(), false, false))
        } else {
            let v = self.read_guest(w, i.r1);
            Rm::Reg(self.force(v, w).0)
        };
        self.asm.mov(W::D, d, old);
        self.asm.crc32(w, d, rm);
        self.write_guest(W::D, i.r0, Val::Host(d, 4));
    }

    /// STMXCSR: the guest's register, and the flags that are still in the host's.
    fn store_mxcsr(&mut self, i: &Insn) {
        let d = self.alloc();
        self.asm.stmxcsr(field(offset::SCRATCH));
        self.asm.load(W::D, d, field(offset::SCRATCH));
        self.asm.alu_imm(Alu::And, W::D, d, 0x3F);
        self.asm.alu_load(Alu::Or, W::D, d, field(offset::MXCSR));
        self.store_operand(i, W::D, Val::Host(d, 4));
    }

    /// VZEROUPPER, or VZEROALL.
    fn clear_vectors(&mut self, all: bool) {
        let set: u16 = if self.code64 { !0 } else { 0xFF };
        self.asm.clear_vectors(all);
        let v = &mut self.state.vectors;
        if all {
            (v.cached, v.dirty) = (set, set);
            return;
        }
        v.dirty |= v.cached;
        // What is not in a host register is cleared in memory.
        let absent = set & !v.cached;
        if absent != 0 {
            let zero = absent.trailing_zeros() as u8;
            self.asm.clear_vector(zero);
            for n in each(absent) {
                self.asm.store_vector(false, field(offset::xmm(n.into()) + 16), zero);
            }
        }
    }

    /// Emits a vector instruction.
    pub fn vector(&mut self, i: &Insn, s: &Shape) {
        if s.effect == Effect::Status {
            return self.store_mxcsr(i);
        }
        self.uses_vectors = true;
        if s.effect == Effect::Store {
            let v = self.read_guest(i.width(), i.r1);
            return self.store_operand(i, i.width(), v);
        }
        if s.effect == Effect::Checksum {
            return self.checksum(i, W::from_bytes(s.size));
        }
        if let Effect::ClearUpper | Effect::ClearAll = s.effect {
            return self.clear_vectors(s.effect == Effect::ClearAll);
        }
        if s.float {
            self.use_float();
        }
        let (read, written) = s.vectors(i, self.ymm);
        self.load_vectors(read);
        // All registers are taken before the look-up: its address must not be disturbed, and flags neither afterwards.
        let (source, destination) = s.generals(i);
        let from = source.map(|g| {
            let v = self.guest(g.into());
            self.force(v, W::Q).0
        });
        let to = destination.map(|_| self.alloc());
        let image = (s.effect != Effect::None).then(|| self.alloc());
        let overflow = matches!(s.effect, Effect::Index | Effect::Mask).then(|| self.alloc());
        let general = |n: u8| if n == 0 { to } else { from }.unwrap_or(super::encode::RAX);
        let register = |n: u8| [i.r0, i.r1, i.r2][usize::from(n.min(2))] & 15;
        let reg = match s.reg {
            Field::Vector(n) => register(n),
            Field::General(n) => general(n),
            Field::Extension(n) => n,
            Field::Memory => 0,
        };
        let rm = match s.rm {
            _ if i.memory() => Rm::Mem(self.vector_operand(i, s.size, i.mem_op == 0, s.aligned)),
            Field::General(n) => Rm::Reg(general(n)),
            Field::Vector(n) => Rm::Reg(register(n)),
            _ => Rm::Reg(0),
        };
        let vvvv = if let Some(Field::Vector(n)) = s.vvvv { register(n) } else { 0 };
        self.asm.vector(s, reg, vvvv, rm);
        if s.immediate {
            self.asm.bytes.push(if s.mask { (i.imm as u8) << 4 } else { i.imm as u8 });
        }
        self.state.vectors.cached |= written;
        self.state.vectors.dirty |= written;
        if let Some(image) = image {
            if let Some(h) = overflow {
                self.asm.setcc(cc::O, h);
            }
            if let (Effect::Index, Some(to)) = (s.effect, to) {
                self.asm.mov(W::D, to, super::encode::RCX);
            }
            let of = overflow.map(|h| self.exprs.bit(BitOp::Of(W::B, Val::Host(h, 8), 0)));
            self.capture_flags(image, of);
        }
        match (destination, to) {
            (Some(_), Some(h)) if s.effect == Effect::Index => {
                self.write_guest(W::D, gpr::RCX as u8, Val::Host(h, 4));
            }
            (Some(g), Some(h)) if s.wide => self.write_guest(W::Q, g, Val::Host(h, 8)),
            (Some(g), Some(h)) => self.write_guest(W::D, g, Val::Host(h, 4)),
            _ => {}
        }
    }
}
