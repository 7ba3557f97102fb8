//! Floating point of SSE, where MXCSR's controls are those of reset: to nearest, nothing flushed, all masked.
//!
//! CLIF gives the one result that IEEE 754 names and no status flags. So an operation is done here only if it can raise
//! none but the inexact one, and that one has been raised before or is not raised now: operands and result are
//! normal or zero, and no zero came of underflow or a division. All else, NaNs among it, is a helper: which of two NaNs
//! survives is x86's rule, not CLIF's. "Normal" leaves out the least of them, which may be the rounding of something
//! smaller.
//!
//! On an x86-64 host these operations leave their flags in the host's MXCSR, where the emitter's code may have the guest's
//! (`abi.rs`). They are the ones that the guest's instruction raises, so no harm is done.

use super::values::Val;
use super::vector_table::{Float, Vector, cast, constant, pick, predicate};
use super::vectors::{VECTORS, vector_of};
use super::writer::Writer;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Type, Value, types};
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::translate::offset;
use types::{F32, F32X4, F64, F64X2};

/// MXCSR.PE.
const PE: i64 = 1 << 5;

/// Constants of a format.
struct Format {
    sign: u64,
    /// Above the least normal number.
    least: u64,
    infinity: u64,
    /// Integers up to this are exact.
    exact: i64,
}

fn format(ty: Type) -> Format {
    match ty.lane_bits() {
        32 => Format { sign: 1 << 31, least: 0x0080_0001, infinity: 0x7F80_0000, exact: 1 << 24 },
        _ => {
            let least = 0x0010_0000_0000_0001;
            Format { sign: 1 << 63, least, infinity: 0x7FF0_0000_0000_0000, exact: 1 << 53 }
        }
    }
}

/// The register's type that a scalar is a lane of; itself for vectors.
fn vector(ty: Type) -> Type {
    match ty {
        F32 => F32X4,
        F64 => F64X2,
        _ => ty,
    }
}

/// What is known of magnitudes, as truth values or masks of lanes.
#[derive(Clone, Copy)]
struct Class {
    zero: Value,
    normal: Value,
}

impl Writer<'_, '_> {
    // ---- parts

    /// Lanes of a register, or the lowest.
    fn floats(&mut self, ty: Type, v: Value) -> Value {
        if ty.is_vector() { cast(&mut self.b, ty, v) } else { self.lowest(vector(ty), v) }
    }
    fn float_source(&mut self, i: &Insn, v: &Vector, ty: Type) -> Value {
        let source = self.source(i, v);
        self.floats(ty, source)
    }
    /// A register with its lanes, or the lowest, replaced.
    fn set_floats(&mut self, i: &Insn, r: Value) {
        let ty = self.b.func.dfg.value_type(r);
        let r = if ty.is_vector() {
            r
        } else {
            let old = self.vector(i.r0);
            let lanes = cast(&mut self.b, vector(ty), old);
            self.b.ins().insertlane(lanes, r, 0)
        };
        self.set_vector(i.r0, r);
    }

    /// The bits of floats.
    fn bits(&mut self, v: Value) -> Value {
        match self.b.func.dfg.value_type(v) {
            ty if ty.is_vector() => cast(&mut self.b, ty.as_truthy(), v),
            ty => self.b.ins().bitcast(ty.as_int(), MemFlagsData::new(), v),
        }
    }
    /// A constant of the type of `like`.
    fn like(&mut self, like: Value, value: u64) -> Value {
        let ty = self.b.func.dfg.value_type(like);
        if !ty.is_vector() {
            return self.constant(ty, value);
        }
        let lane = &value.to_le_bytes()[..ty.lane_bits() as usize / 8];
        constant(&mut self.b, ty, &lane.repeat(ty.lane_count() as usize))
    }
    fn zeroes(&mut self, bits: Value) -> Value {
        let zero = self.like(bits, 0);
        self.b.ins().icmp(IntCC::Equal, bits, zero)
    }
    /// From `low` up to below `high`, both positive, as the bits are.
    fn between(&mut self, bits: Value, low: u64, high: u64) -> Value {
        if self.b.func.dfg.value_type(bits).is_vector() {
            let (low, high) = (self.like(bits, low - 1), self.like(bits, high));
            let above = self.b.ins().icmp(IntCC::SignedGreaterThan, bits, low);
            let below = self.b.ins().icmp(IntCC::SignedGreaterThan, high, bits);
            return self.b.ins().band(above, below);
        }
        let (start, len) = (self.like(bits, low), self.like(bits, high - low));
        let distance = self.b.ins().isub(bits, start);
        self.b.ins().icmp(IntCC::UnsignedLessThan, distance, len)
    }
    fn magnitude(&mut self, v: Value) -> Value {
        let sign = format(self.b.func.dfg.value_type(v)).sign;
        let bits = self.bits(v);
        let mask = self.like(bits, sign - 1);
        self.b.ins().band(bits, mask)
    }
    fn class(&mut self, v: Value) -> Class {
        let Format { least, infinity, .. } = format(self.b.func.dfg.value_type(v));
        let bits = self.magnitude(v);
        Class { zero: self.zeroes(bits), normal: self.between(bits, least, infinity) }
    }
    /// Normal or zero.
    fn plain(&mut self, v: Value) -> Value {
        let c = self.class(v);
        self.b.ins().bor(c.zero, c.normal)
    }
    /// Neither NaN nor denormal.
    fn ordered(&mut self, v: Value) -> Value {
        let Format { least, infinity, .. } = format(self.b.func.dfg.value_type(v));
        let bits = self.magnitude(v);
        let (zero, normal) = (self.zeroes(bits), self.between(bits, least, infinity + 1));
        self.b.ins().bor(zero, normal)
    }
    fn both(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().band(a, b)
    }

    /// Whether the inexact flag is set: not 0.
    fn inexact(&mut self) -> Value {
        let mxcsr = self.load_vcpu(types::I32, offset::MXCSR);
        self.b.ins().band_imm_u(mxcsr, PE)
    }
    /// The truth of a truth value, or of all lanes.
    fn all(&mut self, good: Value) -> Value {
        if self.b.func.dfg.value_type(good).is_vector() { self.b.ins().vall_true(good) } else { good }
    }
    fn not(&mut self, good: Value) -> Value {
        let good = self.all(good);
        self.b.ins().bxor_imm_u(good, 1)
    }
    /// Not good, or inexact for the first time.
    fn bad(&mut self, good: Value) -> Value {
        let good = self.all(good);
        let inexact = self.inexact();
        let zero = self.constant(types::I32, 0);
        let good = self.b.ins().select(good, inexact, zero);
        self.b.ins().icmp_imm_u(IntCC::Equal, good, 0)
    }

    // ---- instructions

    /// Arithmetic, minimum, maximum, comparison to a mask.
    pub fn float(&mut self, i: &Insn, v: &Vector, ty: Type, op: Float) {
        let b = self.float_source(i, v, ty);
        let old = self.vector(i.r0);
        let a = self.floats(ty, old);
        if matches!(op, Float::Min | Float::Max | Float::Compare) {
            return self.float_choice(i, op, a, b);
        }
        let r = match op {
            Float::Add => self.b.ins().fadd(a, b),
            Float::Sub => self.b.ins().fsub(a, b),
            Float::Mul => self.b.ins().fmul(a, b),
            Float::Div => self.b.ins().fdiv(a, b),
            _ => self.b.ins().sqrt(b),
        };
        let good = self.raises_inexact_at_most(op, a, b, r);
        let bad = self.bad(good);
        self.unless(bad, VECTORS + usize::from(i.r0 & 15), |w| w.set_floats(i, r));
    }

    fn raises_inexact_at_most(&mut self, op: Float, a: Value, b: Value, r: Value) -> Value {
        if op == Float::Sqrt {
            // Not negative, or a zero of either sign.
            let Format { least, infinity, .. } = format(self.b.func.dfg.value_type(b));
            let (bits, magnitude) = (self.bits(b), self.magnitude(b));
            let (normal, zero) = (self.between(bits, least, infinity), self.zeroes(magnitude));
            return self.b.ins().bor(normal, zero);
        }
        let (a, b, r) = (self.class(a), self.class(b), self.class(r));
        let plain_a = self.b.ins().bor(a.zero, a.normal);
        let plain_b = self.b.ins().bor(b.zero, b.normal);
        let (operands, result) = match op {
            Float::Add | Float::Sub => (self.both(plain_a, plain_b), self.b.ins().bor(r.zero, r.normal)),
            Float::Mul => {
                let zero = self.b.ins().bor(a.zero, b.zero);
                (self.both(plain_a, plain_b), self.b.ins().bor(r.normal, zero))
            }
            _ => (self.both(plain_a, b.normal), self.b.ins().bor(r.normal, a.zero)),
        };
        self.both(operands, result)
    }

    /// What raises nothing for numbers that are neither NaN nor denormal.
    fn float_choice(&mut self, i: &Insn, op: Float, a: Value, b: Value) {
        let (ordered_a, ordered_b) = (self.ordered(a), self.ordered(b));
        let good = self.both(ordered_a, ordered_b);
        let bad = self.not(good);
        let condition = match op {
            Float::Min => Ok(FloatCC::LessThan),
            Float::Max => Ok(FloatCC::GreaterThan),
            _ => predicate(i.imm as u8),
        };
        let mask = match condition {
            Ok(cc) => {
                let truth = self.b.ins().fcmp(cc, a, b);
                self.mask_of(a, truth)
            }
            Err(truth) => {
                let bits = self.bits(a);
                self.like(bits, if truth { !0 } else { 0 })
            }
        };
        let r = if op == Float::Compare {
            mask
        } else {
            let (a, b) = (self.bits(a), self.bits(b));
            self.b.ins().bitselect(mask, a, b)
        };
        let ty = self.b.func.dfg.value_type(a);
        let r = if ty.is_vector() { r } else { self.b.ins().bitcast(ty, MemFlagsData::new(), r) };
        self.unless(bad, VECTORS + usize::from(i.r0 & 15), |w| w.set_floats(i, r));
    }

    /// A truth value as all ones or none; masks of lanes are that.
    fn mask_of(&mut self, like: Value, truth: Value) -> Value {
        let ty = self.b.func.dfg.value_type(like);
        if ty.is_vector() {
            return truth;
        }
        let wide = self.b.ins().uextend(ty.as_int(), truth);
        self.b.ins().ineg(wide)
    }

    /// COMISS, COMISD, UCOMISS, UCOMISD.
    pub fn compare_floats(&mut self, i: &Insn, v: &Vector, ty: Type) {
        let b = self.float_source(i, v, ty);
        let a = self.vector(i.r0);
        let a = self.floats(ty, a);
        let (ordered_a, ordered_b) = (self.ordered(a), self.ordered(b));
        let good = self.both(ordered_a, ordered_b);
        let bad = self.not(good);
        self.guard(bad, |w, _| w.leave_to_interpreter());
        let different = self.b.ins().fcmp(FloatCC::NotEqual, a, b);
        let below = self.b.ins().fcmp(FloatCC::LessThan, a, b);
        self.order(different, below);
    }

    /// CVTSI2SS, CVTSI2SD.
    pub fn float_from_integer(&mut self, i: &Insn, v: &Vector, ty: Type, w: W) {
        let n = self.general_source(i, v, w);
        let r = self.b.ins().fcvt_from_sint(ty, n);
        let exact = format(ty).exact;
        if (ty, w) == (F64, W::D) {
            return self.set_floats(i, r);
        }
        let least = self.like(n, exact as u64);
        let distance = self.b.ins().iadd(n, least);
        let large = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, distance, 2 * exact);
        let first = self.first_inexact();
        let bad = self.b.ins().band(large, first);
        self.unless(bad, VECTORS + usize::from(i.r0 & 15), |w| w.set_floats(i, r));
    }

    fn first_inexact(&mut self) -> Value {
        let inexact = self.inexact();
        self.b.ins().icmp_imm_u(IntCC::Equal, inexact, 0)
    }

    /// CVTTSS2SI, CVTTSD2SI.
    pub fn truncate_float(&mut self, i: &Insn, v: &Vector, ty: Type, w: W) {
        let b = self.float_source(i, v, ty);
        let Format { least, .. } = format(ty);
        let end = match ty {
            F32 => u64::from((2f32.powi(w.bits() as i32 - 1)).to_bits()),
            _ => 2f64.powi(w.bits() as i32 - 1).to_bits(),
        };
        let bits = self.magnitude(b);
        let (zero, normal) = (self.zeroes(bits), self.between(bits, least, end));
        let inside = self.b.ins().bor(zero, normal);
        // What is not the guest's own conversion shall raise nothing.
        let bits = self.like(bits, 0);
        let zero = self.b.ins().bitcast(ty, MemFlagsData::new(), bits);
        let b = self.b.ins().select(inside, b, zero);
        let r = self.b.ins().fcvt_to_sint_sat(super::values::type_of(w), b);
        let back = self.b.ins().fcvt_from_sint(ty, r);
        let changed = self.b.ins().fcmp(FloatCC::NotEqual, back, b);
        let first = self.first_inexact();
        let (outside, raises) = (self.not(inside), self.b.ins().band(changed, first));
        let bad = self.b.ins().bor(outside, raises);
        self.unless(bad, usize::from(i.r0 & 15), |s| s.set_register(w, i.r0, Val::Value(r)));
    }

    /// CVTSS2SD, CVTSD2SS.
    pub fn change_precision(&mut self, i: &Insn, v: &Vector, ty: Type) {
        let from = if ty == F64 { F32 } else { F64 };
        let b = self.float_source(i, v, from);
        let (r, bad) = if ty == F64 {
            let plain = self.plain(b);
            (self.b.ins().fpromote(F64, b), self.not(plain))
        } else {
            let r = self.b.ins().fdemote(F32, b);
            let (source, result) = (self.class(b), self.class(r));
            let normal = self.both(source.normal, result.normal);
            let good = self.b.ins().bor(normal, source.zero);
            (r, self.bad(good))
        };
        self.unless(bad, VECTORS + usize::from(i.r0 & 15), |w| w.set_floats(i, r));
    }

    /// CVTDQ2PS, CVTDQ2PD.
    pub fn floats_from_integers(&mut self, i: &Insn, v: &Vector, ty: Type) {
        let source = self.source(i, v);
        let lanes = cast(&mut self.b, vector_of(W::D), source);
        if ty == F64X2 {
            let wide = self.b.ins().swiden_low(lanes);
            let r = self.b.ins().fcvt_from_sint(ty, wide);
            return self.set_floats(i, r);
        }
        let r = self.b.ins().fcvt_from_sint(ty, lanes);
        let first = self.first_inexact();
        self.unless(first, VECTORS + usize::from(i.r0 & 15), |w| w.set_floats(i, r));
    }

    /// CVTPS2PD.
    pub fn promote_lanes(&mut self, i: &Insn, v: &Vector) {
        let source = self.source(i, v);
        let low = pick(&mut self.b, source, source, &[0, 0]);
        let floats = cast(&mut self.b, F32X4, low);
        let plain = self.plain(floats);
        let bad = self.not(plain);
        let r = self.b.ins().fvpromote_low(floats);
        self.unless(bad, VECTORS + usize::from(i.r0 & 15), |w| w.set_floats(i, r));
    }
}
