//! What is known where an access may miss the TLB: enough to rebuild the guest's state before the instruction from
//! the host's registers. Translated code pays nothing for it.

use super::access::ALIGNED;
use super::flag_state::Main;
use super::registers::{Emitter, Place};
use super::value::{Bit, BitOp, Exprs, Op, Val};
use super::windows::Plan;
use super::x87::Kept;
use trimaran_cpu::Vcpu;
use trimaran_cpu::flags::LazyFlags;
use trimaran_cpu::insn::W;
use trimaran_cpu::interp::Interp;
use trimaran_cpu::ops::{Bin, Ops, Shift, Un};
use trimaran_cpu::state::gpr;
use trimaran_cpu::translate::PendingFlags;

/// [`Snapshot::dirty`]: memory is right.
const CLEAN: u8 = 0xFF;
/// The same: among the constants.
const CONSTANT: u8 = 0xFE;

/// One access.
pub struct Snapshot {
    /// Which host register holds each guest register that memory does not.
    dirty: [u8; 16],
    constants: Box<[(u8, u64)]>,
    /// Vector registers that memory does not know.
    vectors: u16,
    /// Number in [`Keep::flags`].
    flags: u32,
    /// Of the access, or of the window; size 0: not an access, but a check that failed.
    pub size: u16,
    pub write: bool,
    /// Its operand must be aligned.
    pub aligned: bool,
    /// A window, looked up for writing.
    pub window: Option<bool>,
    /// A guard of the x87 unit.
    pub guard: bool,
    x87: Option<Box<Kept>>,
    /// A loop's window: no access yet, so nothing may be looked up in page tables.
    pub kept: bool,
    /// RIP of the instruction less RIP at the entry.
    delta: i64,
    /// Instructions charged that have not run, this one among them.
    pub rest: i64,
    insn: usize,
}

/// The flags at one or more accesses.
pub struct FlagsSnapshot {
    /// Kind and width; None: as memory has them.
    declared: Option<(u8, W, [SnapVal; 3], SnapBit)>,
    /// The host register with flags that were captured.
    captured: Option<u8>,
    cf: Option<SnapBit>,
    of: Option<SnapBit>,
}

/// A value as an expression over the host's registers.
enum SnapVal {
    Const(u64),
    Host(u8),
    Bin(Bin, W, Box<[SnapVal; 2]>),
    Shift(Shift, W, Box<[SnapVal; 2]>),
    Un(Un, W, Box<SnapVal>),
    /// From a width, with or without its sign.
    Extend(W, W, bool, Box<SnapVal>),
}

enum SnapBit {
    Const(bool),
    Zero(W, SnapVal, bool),
    Below(W, Box<[SnapVal; 2]>, bool),
    Of(W, SnapVal, u32, bool),
    Xor(Box<[SnapBit; 2]>, bool),
    And(Box<[SnapBit; 2]>, bool),
    MulOver(W, Box<[SnapVal; 2]>, bool),
    /// As the operations of [`BitOp`]; last whether it is inverted.
    CarryOut(W, Box<[SnapVal; 3]>, bool, bool),
    Overflow(W, Box<[SnapVal; 3]>, bool, bool),
}

/// What a region's code points to.
pub struct Keep {
    pub snapshots: Box<[Snapshot]>,
    flags: Box<[FlagsSnapshot]>,
    code64: bool,
    ymm: bool,
    /// [`crate::abi::Job::owner`].
    pub owner: u32,
}

impl Keep {
    pub fn new(
        snapshots: Vec<Snapshot>,
        flags: Vec<FlagsSnapshot>,
        (code64, ymm): (bool, bool),
        owner: u32,
    ) -> Self {
        Keep { snapshots: snapshots.into(), flags: flags.into(), code64, ymm, owner }
    }

    /// Rebuilds the state before the instruction of snapshot `k`; the vCPU is ready to interpret it.
    pub fn rebuild(&self, v: &mut Vcpu, k: usize, registers: &[u64; 16], vectors: Option<&[[u64; 4]; 16]>) {
        let s = &self.snapshots[k];
        let budget = registers[6] as i64;
        for (g, &place) in s.dirty.iter().enumerate() {
            if place < 16 {
                v.state.gpr[g] = registers[usize::from(place)];
            }
        }
        for &(g, value) in &s.constants {
            v.state.gpr[usize::from(g)] = value;
        }
        for (n, value) in vectors.into_iter().flatten().enumerate() {
            if s.vectors >> n & 1 != 0 {
                let words = if self.ymm { 4 } else { 2 };
                v.state.zmm[n][..words].copy_from_slice(&value[..words]);
            }
        }
        self.flags[s.flags as usize].rebuild(v, registers);
        if let Some(x87) = &s.x87 {
            x87.rebuild(v, self.code64);
        }
        let rip = v.state.gpr[gpr::RIP].wrapping_add(s.delta as u64);
        v.state.gpr[gpr::RIP] = if self.code64 { rip } else { rip & 0xFFFF_FFFF };
        v.budget = budget + s.rest;
        v.translated.scratch[0] = s.insn as u64;
    }
}

impl FlagsSnapshot {
    fn rebuild(&self, v: &mut Vcpu, registers: &[u64; 16]) {
        let mut e = Interp::<8, 0>::new(v);
        let (cf, of) = (self.cf.as_ref(), self.of.as_ref());
        let cf = cf.map(|b| b.eval(&mut e, registers));
        let of = of.map(|b| b.eval(&mut e, registers));
        let pending = self.declared.as_ref().map(|(kind, w, [a, b, r], bit)| PendingFlags {
            kind: *kind,
            w: w.bytes(),
            bit: bit.eval(&mut e, registers).into(),
            a: a.eval(*w, &mut e, registers),
            b: b.eval(*w, &mut e, registers),
            r: r.eval(*w, &mut e, registers),
        });
        if let Some(pending) = pending {
            v.translated.pending = pending;
        }
        if let Some(h) = self.captured {
            v.translated.pending = PendingFlags::default();
            v.lazy = LazyFlags::from_bits(registers[usize::from(h)] >> 8 & 0xC5);
        }
        if cf.is_none() && of.is_none() {
            return;
        }
        v.settle_flags();
        v.lazy.cf = cf.unwrap_or(v.lazy.cf);
        v.lazy.of = of.unwrap_or(v.lazy.of);
    }
}

impl SnapVal {
    /// The value, zero-extended from `w`.
    fn eval(&self, w: W, e: &mut Interp<8, 0>, registers: &[u64; 16]) -> u64 {
        w.mask()
            & match self {
                SnapVal::Const(c) => *c,
                SnapVal::Host(h) => registers[usize::from(*h)],
                SnapVal::Bin(op, w, x) => {
                    let (a, b) = (x[0].eval(*w, e, registers), x[1].eval(*w, e, registers));
                    e.bin(*op, *w, a, b)
                }
                SnapVal::Shift(op, w, x) => {
                    let (a, b) = (x[0].eval(*w, e, registers), x[1].eval(*w, e, registers));
                    e.shift(*op, *w, a, b)
                }
                SnapVal::Un(op, w, x) => {
                    let a = x.eval(*w, e, registers);
                    e.un(*op, *w, a)
                }
                SnapVal::Extend(from, to, signed, x) => {
                    let a = x.eval(*from, e, registers);
                    if *signed { e.sext(*from, *to, a) } else { a }
                }
            }
    }
}

impl SnapBit {
    fn eval(&self, e: &mut Interp<8, 0>, registers: &[u64; 16]) -> bool {
        match self {
            SnapBit::Const(c) => *c,
            SnapBit::Zero(w, a, inverted) => (a.eval(*w, e, registers) == 0) != *inverted,
            SnapBit::Below(w, x, inverted) => {
                (x[0].eval(*w, e, registers) < x[1].eval(*w, e, registers)) != *inverted
            }
            SnapBit::Of(w, a, n, inverted) => (a.eval(*w, e, registers) >> n & 1 != 0) != *inverted,
            SnapBit::Xor(x, inverted) => (x[0].eval(e, registers) != x[1].eval(e, registers)) != *inverted,
            SnapBit::And(x, inverted) => (x[0].eval(e, registers) & x[1].eval(e, registers)) != *inverted,
            SnapBit::MulOver(w, x, inverted) => {
                let signed = |v: u64| i128::from(w.sext(v) as i64);
                let product = signed(x[0].eval(*w, e, registers)) * signed(x[1].eval(*w, e, registers));
                (product != signed(product as u64 & w.mask())) != *inverted
            }
            SnapBit::CarryOut(w, x, borrow, inverted) => {
                let [a, b, r] = [0, 1, 2].map(|n| x[n].eval(*w, e, registers));
                let out = if *borrow { !a & (b | r) | b & r } else { a & b | (a | b) & !r };
                (out & w.sign() != 0) != *inverted
            }
            SnapBit::Overflow(w, x, difference, inverted) => {
                let [a, b, r] = [0, 1, 2].map(|n| x[n].eval(*w, e, registers));
                let out = if *difference { (a ^ b) & (a ^ r) } else { (a ^ r) & (b ^ r) };
                (out & w.sign() != 0) != *inverted
            }
        }
    }
}

/// Expressions as they can be kept. None: one that depends on more than registers.
impl Exprs {
    fn snap(&self, v: Val) -> Option<SnapVal> {
        Some(match self.resolve(v) {
            Val::Const(c) => SnapVal::Const(c),
            Val::Host(h, _) => SnapVal::Host(h),
            Val::Node(k) => {
                let n = &self.nodes[usize::from(k)];
                let two = || Some(Box::new([self.snap(n.a)?, self.snap(n.b)?]));
                let one = || Some(Box::new(self.snap(n.a)?));
                match n.op {
                    Op::Bin(op) => SnapVal::Bin(op, n.w, two()?),
                    Op::Shift(op) => SnapVal::Shift(op, n.w, two()?),
                    Op::Un(op) => SnapVal::Un(op, n.w, one()?),
                    Op::Zext(from) => SnapVal::Extend(from, n.w, false, one()?),
                    Op::Sext(from) => SnapVal::Extend(from, n.w, true, one()?),
                    _ => return None,
                }
            }
        })
    }

    fn snap_bit(&self, bit: Bit) -> Option<SnapBit> {
        let (k, inverted) = match bit {
            Bit::Const(c) => return Some(SnapBit::Const(c)),
            Bit::Node(k, inverted) => (k, inverted),
        };
        let two = |a, b| Some(Box::new([self.snap(a)?, self.snap(b)?]));
        let three = |[a, b, r]: [Val; 3]| Some(Box::new([self.snap(a)?, self.snap(b)?, self.snap(r)?]));
        let bits = |a, b| Some(Box::new([self.snap_bit(a)?, self.snap_bit(b)?]));
        Some(match self.bits[usize::from(k)] {
            BitOp::Cond(_) => return None,
            BitOp::Zero(w, a) => SnapBit::Zero(w, self.snap(a)?, inverted),
            BitOp::Below(w, a, b) => SnapBit::Below(w, two(a, b)?, inverted),
            BitOp::Of(w, a, n) => SnapBit::Of(w, self.snap(a)?, n, inverted),
            BitOp::Xor(a, b) => SnapBit::Xor(bits(a, b)?, inverted),
            BitOp::And(a, b) => SnapBit::And(bits(a, b)?, inverted),
            BitOp::MulOver(w, a, b) => SnapBit::MulOver(w, two(a, b)?, inverted),
            BitOp::CarryOut(w, v, borrow) => SnapBit::CarryOut(w, three(v)?, borrow, inverted),
            BitOp::Overflow(w, v, difference) => SnapBit::Overflow(w, three(v)?, difference, inverted),
        })
    }
}

impl Emitter<'_> {
    fn flags_snapshot(&self) -> Option<FlagsSnapshot> {
        let f = self.state.flags;
        let e = &self.exprs;
        let bit = |b: Option<Bit>| match b {
            Some(b) => e.snap_bit(b).map(Some),
            None => Some(None),
        };
        let declared = match f.main {
            Main::Declared(d) => {
                Some((d.kind, d.w, [e.snap(d.a)?, e.snap(d.b)?, e.snap(d.r)?], e.snap_bit(d.bit)?))
            }
            _ => None,
        };
        let captured = match f.main {
            Main::Captured(h) => Some(h),
            _ => None,
        };
        Some(FlagsSnapshot { declared, captured, cf: bit(f.cf)?, of: bit(f.of)? })
    }

    /// Records the state before the running instruction; returns its number.
    pub fn snapshot(&mut self, size: u8, write: bool) -> u32 {
        if !self.flags_known {
            match self.flags_snapshot() {
                Some(f) => self.flags_snapshots.push(f),
                None => self.fail("flags that cannot be kept"),
            }
            self.flags_known = true;
            self.flags_pins = self.state.flags.pins(&self.exprs);
        }
        let mut dirty = [CLEAN; 16];
        let mut constants = Vec::new();
        let mut left = self.state.dirty;
        while left != 0 {
            let g = left.trailing_zeros() as usize;
            left &= left - 1;
            dirty[g] = match self.state.guest[g] {
                Place::Host(h, _) => h,
                Place::Const(v) => {
                    constants.push((g as u8, v));
                    CONSTANT
                }
                Place::Memory => CLEAN,
            };
        }
        let insn = self.insn();
        self.snapshots.push(Snapshot {
            dirty,
            constants: constants.into(),
            vectors: self.state.vectors.dirty,
            flags: (self.flags_snapshots.len().max(1) - 1) as u32,
            size: (size & !ALIGNED).into(),
            write,
            aligned: size & ALIGNED != 0,
            window: None,
            kept: false,
            guard: false,
            x87: Kept::of(&self.state.x87),
            delta: self.delta,
            rest: self.rest(),
            insn: std::ptr::from_ref(insn) as usize,
        });
        (self.snapshots.len() - 1) as u32
    }

    /// The same for an access that opens a window; `write`: the access is a store.
    pub fn window_snapshot(&mut self, plan: &Plan, write: bool) -> u32 {
        let k = self.snapshot(0, write);
        let snapshot = &mut self.snapshots[k as usize];
        snapshot.size = plan.span() as u16;
        snapshot.window = Some(plan.write());
        k
    }
}
