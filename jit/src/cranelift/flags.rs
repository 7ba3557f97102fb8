//! Lazy flags: which declaration each flag follows from, and how it becomes bits when somebody looks.
//!
//! A [`FlagState`] names for each of four fields (CF, OF, AF, and RESULT: ZF, SF, PF) a [`Node`] that gives it:
//! memory, a declaration, or a choice between a declaration and the state before it (a shift by a variable
//! count). Nothing is computed before it is wanted: conditions are one comparison where one declaration gives all
//! they need, and on the way out one declaration is written as it is, for `Vcpu::settle_flags`.
//!
//! Memory itself may be *settled* (the `LAZY_*` fields are whole) or not (a declaration is pending there). Settling
//! is a call in a cold block.

use super::values::{Bit, Val};
use super::writer::Writer;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use trimaran_cpu::flags::{Flags, image};
use trimaran_cpu::insn::W;
use trimaran_cpu::ops::{Bin, Cond, Ops, Un};
use trimaran_cpu::translate::{offset, pending};

pub const CF: u8 = 1;
pub const OF: u8 = 2;
pub const AF: u8 = 4;
pub const RESULT: u8 = 8;
pub const ALL: u8 = 15;

/// The fields that a condition looks at.
pub fn needed(cond: Cond) -> u8 {
    use Cond::*;
    match cond {
        O | No => OF,
        B | Ae => CF,
        Be | A => CF | RESULT,
        E | Ne | S | Ns | P | Np => RESULT,
        L | Ge | Le | G => OF | RESULT,
    }
}

pub type Declared = Flags<Val, Bit>;

/// Where fields come from.
#[derive(Clone, Copy)]
pub enum Node {
    Memory,
    Declared(Declared),
    Choice { none: Bit, new: Declared, old: FlagState, depth: u8, memory: bool },
}

/// Indices of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlagState {
    cf: usize,
    of: usize,
    af: usize,
    result: usize,
}

/// The node that is always there.
const MEMORY: usize = 0;

impl FlagState {
    pub const IN_MEMORY: FlagState = FlagState { cf: MEMORY, of: MEMORY, af: MEMORY, result: MEMORY };

    fn nodes(&self) -> [usize; 4] {
        [self.cf, self.of, self.af, self.result]
    }
    /// The one node behind the fields of a mask.
    fn single(&self, mask: u8) -> Option<usize> {
        let fields = self.nodes().into_iter().enumerate().filter(|(n, _)| mask >> n & 1 != 0).map(|f| f.1);
        let mut fields = fields.peekable();
        let first = *fields.peek()?;
        fields.all(|f| f == first).then_some(first)
    }
    fn set(&mut self, mask: u8, node: usize) {
        let fields = [&mut self.cf, &mut self.of, &mut self.af, &mut self.result];
        for (n, field) in fields.into_iter().enumerate() {
            if mask >> n & 1 != 0 {
                *field = node;
            }
        }
    }
}

/// Choices deeper than this are computed at once.
const DEEPEST: u8 = 2;

impl Writer<'_, '_> {
    /// Notes what an instruction declares.
    pub fn declare(&mut self, flags: Declared) {
        let (mask, none) = match flags {
            Flags::Inc { .. } | Flags::Dec { .. } => (OF | AF | RESULT, None),
            Flags::Carry { .. } => (CF, None),
            Flags::Overflow { .. } => (OF, None),
            Flags::Zeros { .. } => (CF | AF | RESULT, None),
            Flags::Shl { none, .. } | Flags::Shr { none, .. } => (ALL, Some(none)),
            Flags::Rol { none, .. } | Flags::Ror { none, .. } => (CF | OF, Some(none)),
            _ => (ALL, None),
        };
        let node = match none {
            Some(Bit::Const(true)) => return,
            // Where nobody looks before the next declaration, anything will do.
            Some(none @ Bit::Value(_)) if self.live & mask != 0 => {
                let deepest = |w: &Self| {
                    let depth = |n: usize| match w.nodes[n] {
                        Node::Choice { depth, .. } => depth,
                        _ => 0,
                    };
                    w.state.nodes().into_iter().map(depth).max().unwrap_or(0)
                };
                if deepest(self) >= DEEPEST {
                    self.write_flags();
                }
                let (old, memory) = (self.state, self.uses_memory(self.state, mask));
                Node::Choice { none, new: flags, old, depth: deepest(self) + 1, memory }
            }
            _ => Node::Declared(flags),
        };
        self.nodes.push(node);
        self.state.set(mask, self.nodes.len() - 1);
    }

    fn uses_memory(&self, state: FlagState, mask: u8) -> bool {
        let of_mask = state.nodes().into_iter().enumerate().filter(|(n, _)| mask >> n & 1 != 0);
        of_mask.into_iter().any(|(_, n)| match self.nodes[n] {
            Node::Memory => true,
            Node::Declared(_) => false,
            Node::Choice { memory, .. } => memory,
        })
    }

    /// Makes the `LAZY_*` fields whole if a mask's fields are taken from them.
    fn settle_for(&mut self, mask: u8) {
        if self.settled || !self.uses_memory(self.state, mask) {
            return;
        }
        let kind = self.load_vcpu(types::I8, offset::PENDING_KIND);
        self.guard(kind, |w, go_on| {
            w.call_settle();
            w.b.ins().jump(go_on, &[]);
        });
        self.settled = true;
    }

    /// The truth of a condition.
    pub fn condition(&mut self, cond: Cond) -> Bit {
        use Cond::*;
        let mask = needed(cond);
        if let Some(node) = self.state.single(mask)
            && let Node::Declared(flags) = self.nodes[node]
            && let Some(bit) = self.compare_declared(cond, flags)
        {
            return bit;
        }
        self.settle_for(mask);
        let s = self.state;
        match cond {
            O => self.overflow(s),
            B => self.carry_of(s),
            E => self.zero_flag(s),
            S => self.sign_flag(s),
            P => self.parity_flag(s),
            Be => {
                let (c, z) = (self.carry_of(s), self.zero_flag(s));
                self.bit_or(c, z)
            }
            L => {
                let (sign, overflow) = (self.sign_flag(s), self.overflow(s));
                self.bit_xor(sign, overflow)
            }
            Le => {
                let less = self.condition(L);
                let zero = self.zero_flag(s);
                self.bit_or(less, zero)
            }
            No => self.not_condition(O),
            Ae => self.not_condition(B),
            Ne => self.not_condition(E),
            Ns => self.not_condition(S),
            Np => self.not_condition(P),
            A => self.not_condition(Be),
            Ge => self.not_condition(L),
            G => self.not_condition(Le),
        }
    }

    fn not_condition(&mut self, cond: Cond) -> Bit {
        let bit = self.condition(cond);
        self.bit_not(bit)
    }

    /// A condition as one comparison, if the declaration allows it.
    fn compare_declared(&mut self, cond: Cond, flags: Declared) -> Option<Bit> {
        use Cond::*;
        let zero = Val::Const(0);
        let (w, a, b, cc) = match flags {
            Flags::Sub { w, a, b, r } => {
                let cc = match cond {
                    B => IntCC::UnsignedLessThan,
                    Ae => IntCC::UnsignedGreaterThanOrEqual,
                    E => IntCC::Equal,
                    Ne => IntCC::NotEqual,
                    Be => IntCC::UnsignedLessThanOrEqual,
                    A => IntCC::UnsignedGreaterThan,
                    L => IntCC::SignedLessThan,
                    Ge => IntCC::SignedGreaterThanOrEqual,
                    Le => IntCC::SignedLessThanOrEqual,
                    G => IntCC::SignedGreaterThan,
                    S => return Some(self.compare(IntCC::SignedLessThan, w, r, zero)),
                    Ns => return Some(self.compare(IntCC::SignedGreaterThanOrEqual, w, r, zero)),
                    _ => return None,
                };
                (w, a, b, cc)
            }
            Flags::Logic { w, r } => match cond {
                O | B => return Some(Bit::Const(false)),
                No | Ae => return Some(Bit::Const(true)),
                E | Be => (w, r, zero, IntCC::Equal),
                Ne | A => (w, r, zero, IntCC::NotEqual),
                L | S => (w, r, zero, IntCC::SignedLessThan),
                Ge | Ns => (w, r, zero, IntCC::SignedGreaterThanOrEqual),
                Le => (w, r, zero, IntCC::SignedLessThanOrEqual),
                G => (w, r, zero, IntCC::SignedGreaterThan),
                _ => return None,
            },
            Flags::Add { w, a, r, .. } if cond == B => (w, r, a, IntCC::UnsignedLessThan),
            Flags::Add { w, a, r, .. } if cond == Ae => (w, r, a, IntCC::UnsignedGreaterThanOrEqual),
            _ => return None,
        };
        Some(self.compare(cc, w, a, b))
    }

    pub fn carry_flag(&mut self) -> Bit {
        self.condition(Cond::B)
    }

    // The fields of a state; what of it is memory must be settled.

    fn carry_of(&mut self, s: FlagState) -> Bit {
        match self.nodes[s.cf] {
            Node::Memory => Bit::Value(self.load_vcpu(types::I8, offset::LAZY_CF)),
            Node::Declared(f) => {
                if let Some(bit) = self.compare_declared(Cond::B, f) {
                    return bit;
                }
                image(self, f).cf.unwrap_or(Bit::Const(false))
            }
            Node::Choice { none, new, old, .. } => {
                let new = image(self, new).cf.unwrap_or(Bit::Const(false));
                let old = self.carry_of(old);
                self.bit_select(none, old, new)
            }
        }
    }
    fn overflow(&mut self, s: FlagState) -> Bit {
        match self.nodes[s.of] {
            Node::Memory => Bit::Value(self.load_vcpu(types::I8, offset::LAZY_OF)),
            Node::Declared(f) => image(self, f).of.unwrap_or(Bit::Const(false)),
            Node::Choice { none, new, old, .. } => {
                let new = image(self, new).of.unwrap_or(Bit::Const(false));
                let old = self.overflow(old);
                self.bit_select(none, old, new)
            }
        }
    }
    fn adjust(&mut self, s: FlagState) -> Bit {
        match self.nodes[s.af] {
            Node::Memory => Bit::Value(self.load_vcpu(types::I8, offset::LAZY_AF)),
            Node::Declared(f) => image(self, f).af.unwrap_or(Bit::Const(false)),
            Node::Choice { none, new, old, .. } => {
                let new = image(self, new).af.unwrap_or(Bit::Const(false));
                let old = self.adjust(old);
                self.bit_select(none, old, new)
            }
        }
    }
    fn zero_flag(&mut self, s: FlagState) -> Bit {
        if let Node::Declared(f) = self.nodes[s.result] {
            if let Some(bit) = self.compare_declared(Cond::E, f) {
                return bit;
            }
            let image = image(self, f);
            return match (image.zf, image.result) {
                (Some(zero), _) => zero,
                (None, Some((w, r))) => self.is_zero(w, r),
                _ => Bit::Const(false),
            };
        }
        let zero = self.zero_value(s);
        self.is_zero(W::Q, zero)
    }
    fn sign_flag(&mut self, s: FlagState) -> Bit {
        let v = self.sign_parity_value(s);
        self.compare(IntCC::SignedLessThan, W::Q, v, Val::Const(0))
    }
    fn parity_flag(&mut self, s: FlagState) -> Bit {
        let v = self.sign_parity_value(s);
        let low = self.trunc(W::Q, W::B, v);
        let n = self.un(Un::CountOnes, W::B, low);
        let odd = self.bin(Bin::And, W::B, n, Val::Const(1));
        self.is_zero(W::B, odd)
    }
    /// What `LAZY_ZERO` holds.
    fn zero_value(&mut self, s: FlagState) -> Val {
        match self.nodes[s.result] {
            Node::Memory => Val::Value(self.load_vcpu(types::I64, offset::LAZY_ZERO)),
            Node::Declared(f) => self.zero_declared(f),
            Node::Choice { none, new, old, .. } => {
                let new = self.zero_declared(new);
                let old = self.zero_value(old);
                self.select(W::Q, none, old, new)
            }
        }
    }
    fn zero_declared(&mut self, flags: Declared) -> Val {
        let image = image(self, flags);
        match (image.zf, image.result) {
            (Some(zero), _) => {
                let not = self.bit_not(zero);
                self.bit_value(W::Q, not)
            }
            (None, Some((w, r))) => self.zext(w, W::Q, r),
            _ => Val::Const(1),
        }
    }
    /// What `LAZY_SIGN_PARITY` holds.
    fn sign_parity_value(&mut self, s: FlagState) -> Val {
        match self.nodes[s.result] {
            Node::Memory => Val::Value(self.load_vcpu(types::I64, offset::LAZY_SIGN_PARITY)),
            Node::Declared(f) => self.sign_parity_declared(f),
            Node::Choice { none, new, old, .. } => {
                let new = self.sign_parity_declared(new);
                let old = self.sign_parity_value(old);
                self.select(W::Q, none, old, new)
            }
        }
    }
    fn sign_parity_declared(&mut self, flags: Declared) -> Val {
        let image = image(self, flags);
        match image.result {
            Some((w, r)) if !image.zero_sf_pf => self.sext(w, W::Q, r),
            // As the interpreter: one bit set is an odd parity.
            _ => Val::Const(1),
        }
    }

    /// Brings the flags to memory; from here on they are there.
    pub fn write_flags(&mut self) {
        let s = self.state;
        if s == FlagState::IN_MEMORY {
            return;
        }
        self.state = FlagState::IN_MEMORY;
        if let Some(node) = s.single(ALL)
            && let Node::Declared(flags) = self.nodes[node]
            && self.write_pending(flags)
        {
            self.settled = false;
            return;
        }
        self.state = s;
        if self.write_step(s) {
            return;
        }
        self.settle_for(ALL);
        let bytes = [
            (s.cf != MEMORY).then(|| (self.carry_of(s), offset::LAZY_CF)),
            (s.of != MEMORY).then(|| (self.overflow(s), offset::LAZY_OF)),
            (s.af != MEMORY).then(|| (self.adjust(s), offset::LAZY_AF)),
        ];
        let result = (s.result != MEMORY).then(|| (self.zero_value(s), self.sign_parity_value(s)));
        for (bit, at) in bytes.into_iter().flatten() {
            let byte = self.bit_value(W::B, bit);
            self.store_vcpu(W::B, byte, at);
        }
        if let Some((zero, sign_parity)) = result {
            self.store_vcpu(W::Q, zero, offset::LAZY_ZERO);
            self.store_vcpu(W::Q, sign_parity, offset::LAZY_SIGN_PARITY);
        }
        self.store_vcpu(W::B, Val::Const(u64::from(pending::NONE)), offset::PENDING_KIND);
        self.state = FlagState::IN_MEMORY;
        self.settled = true;
    }

    /// Writes INC or DEC over a CF that is not memory's. (Over memory's it would want settling at every turn of a
    /// loop.)
    fn write_step(&mut self, s: FlagState) -> bool {
        let Some(node) = s.single(OF | AF | RESULT) else { return false };
        let (kind, w, r) = match self.nodes[node] {
            Node::Declared(Flags::Inc { w, r }) => (pending::INC, w, r),
            Node::Declared(Flags::Dec { w, r }) => (pending::DEC, w, r),
            _ => return false,
        };
        if self.uses_memory(s, CF) {
            return false;
        }
        let carry = self.carry_of(s);
        let byte = self.bit_value(W::B, carry);
        self.store_vcpu(W::B, byte, offset::LAZY_CF);
        self.store_kind(kind, w);
        let wide = self.zext(w, W::Q, r);
        self.store_vcpu(W::Q, wide, offset::PENDING_R);
        self.state = FlagState::IN_MEMORY;
        self.settled = false;
        true
    }

    fn store_kind(&mut self, kind: u8, w: W) {
        const { assert!(offset::PENDING_W == offset::PENDING_KIND + 1) };
        let (low, high) = if self.big_endian { (w.bytes(), kind) } else { (kind, w.bytes()) };
        let word = u64::from(high) << 8 | u64::from(low);
        self.store_vcpu(W::W, Val::Const(word), offset::PENDING_KIND);
    }

    /// Writes one declaration that gives all flags. False: it has no such form.
    fn write_pending(&mut self, flags: Declared) -> bool {
        let none = Val::Const(0);
        let (kind, w, a, b, r, bit) = match flags {
            Flags::Add { w, a, b, r } => (pending::ADD, w, Some(a), Some(b), r, None),
            Flags::Adc { w, a, b, r } => (pending::ADC, w, Some(a), Some(b), r, None),
            Flags::Sub { w, a, b, r } => (pending::SUB, w, Some(a), Some(b), r, None),
            Flags::Sbb { w, a, b, r } => (pending::SBB, w, Some(a), Some(b), r, None),
            Flags::Logic { w, r } => (pending::LOGIC, w, None, None, r, None),
            Flags::Neg { w, a, r } => (pending::NEG, w, Some(a), None, r, None),
            Flags::Shl { w, r, cf, .. } => (pending::SHL, w, None, None, r, Some(cf)),
            Flags::Shr { w, r, cf, .. } => (pending::SHR, w, None, None, r, Some(cf)),
            Flags::Mul { w, r, overflow } => (pending::MUL, w, None, None, r, Some(overflow)),
            Flags::Scan { w, r, zero } => (pending::SCAN, w, None, None, r, Some(zero)),
            Flags::Count { w, r } => (pending::COUNT, w, None, None, r, None),
            Flags::Inc { .. } | Flags::Dec { .. } | Flags::Rol { .. } | Flags::Ror { .. } => return false,
            Flags::Carry { .. } | Flags::Overflow { .. } => return false,
            Flags::Bits { .. } | Flags::Zeros { .. } => return false,
        };
        self.store_kind(kind, w);
        if let Some(bit) = bit {
            let byte = self.bit_value(W::B, bit);
            self.store_vcpu(W::B, byte, offset::PENDING_BIT);
        }
        let operands = [(a, offset::PENDING_A), (b, offset::PENDING_B), (Some(r), offset::PENDING_R)];
        for (value, at) in operands {
            if value.is_some() || at == offset::PENDING_R {
                let wide = self.zext(w, W::Q, value.unwrap_or(none));
                self.store_vcpu(W::Q, wide, at);
            }
        }
        true
    }

    /// Calls `settle_flags` without disturbing a register.
    fn call_settle(&mut self) {
        let callee = self.constant(types::I64, self.job.runtime.settle_preserving as u64);
        let (sig, vcpu): (_, Value) = (self.sigs.preserving1, self.vcpu);
        self.b.ins().call_indirect(sig, callee, &[vcpu]);
    }
}
