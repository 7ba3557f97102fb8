//! Vector instructions: operands, checks, commit. What they compute is `vector_table.rs`'s.
//!
//! A guest vector register is a variable of 16 bytes, beside the general ones. What CpuState has above is left alone, as
//! legacy SSE does. Floating point is `vector_floats.rs`.

use super::observe::Observer;
use super::values::{Val, type_of};
use super::vector_table::{Operation, Vector, cast, constant};
use super::writer::Writer;
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_codegen::isa::TargetIsa;
use trimaran_cpu::flags::Flags;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::ops::Ops;
use trimaran_cpu::state::gpr;
use trimaran_cpu::translate::offset;
use types::{I8X16, I64X2};

/// Where the vector registers begin among a region's variables.
pub const VECTORS: usize = 16;

/// Whether a host's back end has the vector operations that are used here. RISC-V wants its V extension, and nobody has
/// looked at that.
pub fn has_vectors(isa: &dyn TargetIsa) -> bool {
    let enabled = |name: &str| isa.isa_flags().iter().any(|f| f.name == name && f.as_bool() == Some(true));
    match isa.name() {
        "x64" => enabled("has_ssse3") && enabled("has_sse41") && enabled("has_sse42"),
        name => matches!(name, "aarch64" | "s390x"),
    }
}

fn bit(register: u8) -> u32 {
    1 << (VECTORS + usize::from(register & 15))
}

/// What an instruction touches.
pub fn observe(i: &Insn, v: &Vector) -> Observer {
    use Operation::*;
    let mut o = Observer { memory: i.memory(), ..Observer::default() };
    o.may_leave = i.memory() || v.operation.is_guarded();
    if i.memory() {
        for r in [i.base, i.index].into_iter().filter(|&r| usize::from(r) < gpr::RIP) {
            o.reads |= 1 << r;
        }
    }
    let general = |r: u8| 1 << (r & 15);
    if i.memory() && i.mem_op == 0 {
        o.reads |= bit(i.r1);
        return o;
    }
    match v.operation {
        FromGeneral(_) | Insert(_) | FromInteger(..) if !i.memory() => o.reads |= general(i.r1),
        _ if !i.memory() => o.reads |= bit(i.r1),
        _ => {}
    }
    match v.operation {
        ToGeneral(_) | Signs(_) | Extract(_) | Truncate(..) => o.writes |= general(i.r0),
        Test | Compare(_) => {
            o.reads |= bit(i.r0);
            o.flags_written = super::flags::ALL;
        }
        _ => {
            o.reads |= bit(i.r0);
            o.writes |= bit(i.r0);
        }
    }
    o
}

/// Memory of any alignment that is there.
fn unaligned() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl Writer<'_, '_> {
    /// All of a register, from CpuState: two quadwords in the host's byte order.
    pub fn load_vector(&mut self, n: usize) -> Value {
        let quads = self.b.ins().load(I64X2, unaligned(), self.vcpu, offset::xmm(n) as i32);
        cast(&mut self.b, I8X16, quads)
    }
    pub fn store_vector(&mut self, n: usize, v: Value) {
        let quads = cast(&mut self.b, I64X2, v);
        self.b.ins().store(unaligned(), quads, self.vcpu, offset::xmm(n) as i32);
    }

    pub fn vector(&mut self, n: u8) -> Value {
        let n = usize::from(n & 15);
        match self.regs[VECTORS + n] {
            Some(var) => self.b.use_var(var),
            // The plan knows all registers of native instructions.
            None => self.load_vector(n),
        }
    }
    pub fn set_vector(&mut self, n: u8, v: Value) {
        let n = usize::from(n & 15);
        let v = cast(&mut self.b, I8X16, v);
        if let Some(var) = self.regs[VECTORS + n] {
            self.b.def_var(var, v);
        }
        self.dirty |= 1 << (VECTORS + n);
    }

    /// A vector of one value and zeroes.
    pub fn widened(&mut self, ty: Type, v: Value) -> Value {
        let v = self.b.ins().scalar_to_vector(ty, v);
        cast(&mut self.b, I8X16, v)
    }
    /// The lowest lane.
    pub fn lowest(&mut self, vector: Type, v: Value) -> Value {
        let lanes = cast(&mut self.b, vector, v);
        self.b.ins().extractlane(lanes, 0)
    }

    // ---- memory

    /// The host address of the memory operand.
    fn vector_host(&mut self, i: &Insn, v: &Vector, write: bool) -> Value {
        let address = self.operand_address(i);
        if v.aligned {
            // Before the look-up, which would set the page's A and D bits.
            let bad = self.b.ins().band_imm_u(address, 15);
            self.guard(bad, |w, _| w.leave_to_interpreter());
        }
        self.host(v.size, address, write)
    }

    /// Accesses of 16 bytes are not atomic, but in order with the others.
    fn load_16(&mut self, host: Value) -> Value {
        let flags = unaligned().with_endianness(Endianness::Little);
        let v = self.b.ins().load(I8X16, flags, host, 0);
        if self.weak_order {
            self.b.ins().fence();
        }
        v
    }
    fn store_16(&mut self, v: Value, host: Value) {
        if self.weak_order {
            self.b.ins().fence();
        }
        let flags = unaligned().with_endianness(Endianness::Little);
        self.b.ins().store(flags, v, host, 0);
    }

    /// The memory operand as an integer of its size.
    pub fn load_integer(&mut self, i: &Insn, v: &Vector) -> (W, Value) {
        let w = W::from_bytes(v.size);
        let host = self.vector_host(i, v, false);
        (w, self.load_host(w, host))
    }

    /// Operand 1: a vector register, or memory with zeroes above.
    pub fn source(&mut self, i: &Insn, v: &Vector) -> Value {
        if !i.memory() {
            return self.vector(i.r1);
        }
        if v.size == 16 {
            let host = self.vector_host(i, v, false);
            return self.load_16(host);
        }
        let (w, value) = self.load_integer(i, v);
        if w < W::D {
            let zero = constant(&mut self.b, vector_of(w), &[]);
            let v = self.b.ins().insertlane(zero, value, 0);
            return cast(&mut self.b, I8X16, v);
        }
        self.widened(vector_of(w), value)
    }

    /// Operand 1: a general register, or memory.
    pub fn general_source(&mut self, i: &Insn, v: &Vector, w: W) -> Value {
        if i.memory() {
            return self.load_integer(i, v).1;
        }
        let value = self.register(w, i.r1);
        self.value(w, value)
    }

    fn store_operand(&mut self, i: &Insn, v: &Vector, lane: u8) {
        let host = self.vector_host(i, v, true);
        let value = self.vector(i.r1);
        if v.size == 16 {
            return self.store_16(value, host);
        }
        let w = W::from_bytes(v.size);
        let lanes = cast(&mut self.b, vector_of(w), value);
        let part = self.b.ins().extractlane(lanes, lane);
        self.store_host(w, part, host);
    }

    // ---- instructions

    /// Writes a vector instruction.
    pub fn vector_instruction(&mut self, i: &Insn, v: &Vector) {
        use Operation::*;
        if i.memory() && i.mem_op == 0 {
            let lane = match v.operation {
                MoveHigh(_) => 1,
                Extract(ty) => lane(i, ty),
                _ => 0,
            };
            return self.store_operand(i, v, lane);
        }
        match v.operation {
            Move(_) if i.memory() => {
                let value = self.source(i, v);
                self.set_vector(i.r0, value);
            }
            Lanes(ty, f) => self.lanes(i, v, ty, f),
            Move(f) | MoveHigh(f) => self.lanes(i, v, I8X16, f),
            FromGeneral(w) => {
                let value = self.general_source(i, v, w);
                let value = self.widened(vector_of(w), value);
                self.set_vector(i.r0, value);
            }
            ToGeneral(w) => {
                let value = self.vector(i.r1);
                let low = self.lowest(vector_of(w), value);
                self.set_register(w, i.r0, Val::Value(low));
            }
            Signs(ty) => {
                let value = self.vector(i.r1);
                let lanes = cast(&mut self.b, ty, value);
                let signs = self.b.ins().vhigh_bits(types::I32, lanes);
                self.set_register(W::D, i.r0, Val::Value(signs));
            }
            Insert(ty) => {
                let value = self.general_source(i, v, W::from_bytes(ty.lane_bits() as u8 / 8));
                let old = self.vector(i.r0);
                let lanes = cast(&mut self.b, ty, old);
                let new = self.b.ins().insertlane(lanes, value, lane(i, ty));
                self.set_vector(i.r0, new);
            }
            Extract(ty) => {
                let value = self.vector(i.r1);
                let lanes = cast(&mut self.b, ty, value);
                let part = self.b.ins().extractlane(lanes, lane(i, ty));
                let wide =
                    self.extended(W::from_bytes(ty.lane_bits() as u8 / 8), W::Q, Val::Value(part), false);
                self.set_register(W::Q, i.r0, wide);
            }
            Test => {
                let b = self.source(i, v);
                let a = self.vector(i.r0);
                let (common, rest) = (self.b.ins().band(a, b), self.b.ins().band_not(b, a));
                let (common, rest) = (self.b.ins().vany_true(common), self.b.ins().vany_true(rest));
                let carry = self.b.ins().bxor_imm_u(rest, 1);
                self.order(common, carry);
            }
            Float(ty, op) => self.float(i, v, ty, op),
            Compare(ty) => self.compare_floats(i, v, ty),
            FromInteger(ty, w) => self.float_from_integer(i, v, ty, w),
            Truncate(ty, w) => self.truncate_float(i, v, ty, w),
            Precision(ty) => self.change_precision(i, v, ty),
            FromLanes(ty) => self.floats_from_integers(i, v, ty),
            PromoteLanes => self.promote_lanes(i, v),
        }
    }

    fn lanes(&mut self, i: &Insn, v: &Vector, ty: Type, f: super::vector_table::Lanes) {
        let y = self.source(i, v);
        let x = self.vector(i.r0);
        let (x, y) = (cast(&mut self.b, ty, x), cast(&mut self.b, ty, y));
        // INSERTPS has one doubleword to choose from in memory.
        let chosen = if i.memory() && v.size == 4 { 0x3F } else { 0xFF };
        let r = f(&mut self.b, x, y, i.imm as u8 & chosen);
        self.set_vector(i.r0, r);
    }

    /// ZF where `different` is 0, CF; the other flags are 0.
    pub fn order(&mut self, different: Value, carry: Value) {
        self.flags(Flags::Overflow { of: super::values::Bit::Const(false) });
        let (r, cf) = (Val::Value(different), super::values::Bit::Value(carry));
        self.flags(Flags::Zeros { w: W::B, r, cf });
    }
}

/// The lane that the immediate names.
fn lane(i: &Insn, ty: Type) -> u8 {
    i.imm as u8 % ty.lane_count() as u8
}

/// As many integers as a register holds.
pub fn vector_of(w: W) -> Type {
    type_of(w).by(128 / w.bits()).unwrap_or(I8X16)
}
