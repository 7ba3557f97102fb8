//! Conditions: the guest's flags as flags of the host.

use super::encode::{Alu, RAX, cc, field};
use super::flag_state::Main;
use super::registers::Emitter;
use super::value::{Bit, Val};
use trimaran_cpu::insn::W;
use trimaran_cpu::ops::Cond;
use trimaran_cpu::translate::{offset, pending};

/// One flag.
#[derive(Clone, Copy, PartialEq)]
enum One {
    Carry,
    Zero,
    Sign,
    Parity,
    Overflow,
}

impl Emitter<'_> {
    /// Sets host flags for a guest condition; returns the host's.
    pub fn test_condition(&mut self, cond: Cond) -> u8 {
        self.settle();
        self.busy |= self.pins;
        let f = self.state.flags;
        let code = cond as u8;
        let carry = matches!(cond, Cond::B | Cond::Ae | Cond::Be | Cond::A);
        let overflow = matches!(cond, Cond::O | Cond::No | Cond::L | Cond::Ge | Cond::Le | Cond::G);
        let overridden = carry && f.cf.is_some() || overflow && f.of.is_some();
        if let (Main::Captured(h), false) = (f.main, overridden) {
            self.restore_flags(h);
            return code;
        }
        let Main::Declared(d) = f.main else { return self.compose(code) };
        let inc = matches!(d.kind, pending::INC | pending::DEC);
        if overridden || carry && inc {
            return self.compose(code);
        }
        if let Val::Node(k) = d.r
            && self.flags_of() == Some(k)
        {
            let exact = matches!(
                d.kind,
                pending::ADD | pending::ADC | pending::SUB | pending::SBB | pending::LOGIC | pending::NEG
            );
            let shifted = matches!(d.kind, pending::SHL | pending::SHR);
            if exact || inc || shifted && !carry && !overflow {
                return code;
            }
        }
        match d.kind {
            pending::SUB => self.compare(d.w, d.a, d.b),
            pending::LOGIC => self.test_value(d.w, d.r),
            pending::SCAN | pending::COUNT => return self.compose(code),
            _ if !carry && !overflow => self.test_value(d.w, d.r),
            pending::ADD => {
                let b = self.rhs(d.b, d.w);
                self.rax_becomes(d.a, d.w);
                self.alu(Alu::Add, d.w, RAX, b);
            }
            pending::NEG => {
                self.rax_becomes(d.a, d.w);
                self.asm.neg(d.w, RAX);
            }
            pending::INC | pending::DEC => {
                self.rax_becomes(d.r, d.w);
                let (back, again) =
                    if d.kind == pending::INC { (Alu::Sub, Alu::Add) } else { (Alu::Add, Alu::Sub) };
                self.asm.alu_imm(back, d.w, RAX, 1);
                self.asm.alu_imm(again, d.w, RAX, 1);
            }
            _ => return self.compose(code),
        }
        code
    }

    /// A value in RAX; bits above its width are anything.
    pub fn rax_becomes(&mut self, v: Val, w: W) {
        match self.exprs.resolve(v) {
            Val::Const(c) => self.asm.mov_imm(RAX, c),
            v => {
                let (h, _) = self.force(v, w);
                self.asm.mov(if w == W::Q { W::Q } else { W::D }, RAX, h);
            }
        }
    }

    /// A condition from single flags.
    fn compose(&mut self, code: u8) -> u8 {
        let inverted = code & 1;
        let single = match code & !1 {
            0 => Some(One::Overflow),
            2 => Some(One::Carry),
            4 => Some(One::Zero),
            8 => Some(One::Sign),
            10 => Some(One::Parity),
            _ => None,
        };
        if let Some(one) = single {
            return self.test_one(one) ^ inverted;
        }
        // Be: C or Z; L: S xor O; Le: that or Z.
        let d = match code & !1 {
            6 => self.one_register(One::Carry),
            _ => {
                let (s, o) = (self.one_register(One::Sign), self.one_register(One::Overflow));
                self.asm.alu(Alu::Xor, W::B, s, o);
                s
            }
        };
        if code & !1 != 12 {
            let z = self.one_register(One::Zero);
            self.asm.alu(Alu::Or, W::B, d, z);
        } else {
            self.asm.test(W::B, d, d);
        }
        cc::NE ^ inverted
    }

    fn one_register(&mut self, one: One) -> u8 {
        let h = self.alloc();
        let code = self.passing(|e| e.test_one(one));
        self.asm.setcc(code, h);
        h
    }

    fn test_one(&mut self, one: One) -> u8 {
        self.settle();
        self.busy |= self.pins;
        let f = self.state.flags;
        let override_ = match one {
            One::Carry => f.cf,
            One::Overflow => f.of,
            _ => None,
        };
        if let Some(bit) = override_ {
            return self.test_bit(bit);
        }
        if let Main::Captured(h) = f.main {
            self.restore_flags(h);
            return match one {
                One::Carry => cc::B,
                One::Zero => cc::E,
                One::Sign => cc::S,
                One::Parity => cc::P,
                One::Overflow => cc::O,
            };
        }
        let Main::Declared(d) = f.main else { return self.test_lazy(one) };
        if one == One::Carry {
            return match self.carry_bit() {
                Some(bit) => self.test_bit(bit),
                None => self.test_lazy(One::Carry),
            };
        }
        match (one, d.kind) {
            (One::Overflow, pending::SUB) => {
                self.compare(d.w, d.a, d.b);
                return cc::O;
            }
            (One::Overflow, _) => {
                let of = self.overflow_bit(&d);
                return self.test_bit(of);
            }
            (One::Zero, pending::SCAN) => return self.test_bit(d.bit),
            (One::Sign | One::Parity, pending::COUNT) => return self.test_bit(Bit::Const(false)),
            _ => self.test_value(d.w, d.r),
        }
        match one {
            One::Zero => cc::E,
            One::Sign => cc::S,
            _ => cc::P,
        }
    }

    fn test_lazy(&mut self, one: One) -> u8 {
        let (w, at, code) = match one {
            One::Carry => (W::B, offset::LAZY_CF, cc::NE),
            One::Overflow => (W::B, offset::LAZY_OF, cc::NE),
            One::Zero => (W::Q, offset::LAZY_ZERO, cc::E),
            One::Sign => (W::Q, offset::LAZY_SIGN_PARITY, cc::S),
            One::Parity => (W::B, offset::LAZY_SIGN_PARITY, cc::P),
        };
        self.asm.alu_mem_imm(Alu::Cmp, w, field(at), 0);
        code
    }
}
