//! Memory operands: effective address, linear address, and the TLB look-up of `cpu/src/tlb.rs` inline.

use super::values::{Val, type_of};
use super::writer::Writer;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Value, types};
use std::mem::offset_of;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::ops::{Bin, Shift};
use trimaran_cpu::state::{gpr, seg};
use trimaran_cpu::tlb::{ENTRIES, Entry};
use trimaran_cpu::translate::offset;

/// Guest RAM: little-endian, of any alignment, and behind a TLB check.
fn guest_memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap().with_endianness(Endianness::Little)
}

impl Writer<'_, '_> {
    /// The offset of the memory operand, 64 bits wide.
    pub fn offset_of_operand(&mut self, i: &Insn) -> Val {
        let none = gpr::ZERO as u8;
        let w = if i.asize == 4 { W::D } else { W::Q };
        let mut sum = Val::Const(i.disp & w.mask());
        if i.index != none {
            let index = self.register(w, i.index);
            let scaled = self.shifted(Shift::Left, w, index, Val::Const(u64::from(i.scale)));
            sum = self.binary(Bin::Add, w, scaled, sum);
        }
        if usize::from(i.base) == gpr::RIP {
            let rip = self.truncated(W::Q, w, Val::Rip(self.next));
            sum = self.binary(Bin::Add, w, rip, sum);
        } else if i.base != none {
            let base = self.register(w, i.base);
            sum = if i.index == none {
                self.binary(Bin::Add, w, base, sum)
            } else {
                self.binary(Bin::Add, w, sum, base)
            };
        }
        match i.asize {
            2 => self.binary(Bin::And, W::Q, sum, Val::Const(0xFFFF)),
            4 => self.extended(W::D, W::Q, sum, false),
            _ => sum,
        }
    }

    /// The linear address of the memory operand.
    pub fn operand_address(&mut self, i: &Insn) -> Value {
        let mut address = self.offset_of_operand(i);
        if matches!(usize::from(i.seg), seg::FS | seg::GS) {
            let base = self.load_vcpu(types::I64, offset::segment_base(usize::from(i.seg)));
            address = self.binary(Bin::Add, W::Q, address, Val::Value(base));
        }
        self.value(W::Q, address)
    }

    /// The host address of a linear one, or away.
    pub fn host(&mut self, w: W, address: Value, write: bool) -> Value {
        const { assert!(size_of::<Entry>() == 32) };
        let table = self.load_vcpu(types::I64, offset::TLB);
        // `tlb::slot`, times 32.
        let page = self.b.ins().ushr_imm_u(address, 7);
        let high = self.b.ins().ushr_imm_u(address, 17);
        let hash = self.b.ins().bxor(page, high);
        let bytes = self.b.ins().band_imm_u(hash, (ENTRIES as i64 - 1) << 5);
        let entry = self.b.ins().iadd(table, bytes);
        let tag_at = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) };
        // What may be written may be read: one tag is enough for both.
        let tag = self.b.ins().load(types::I64, MemFlagsData::trusted(), entry, tag_at as i32);
        let distance = self.b.ins().bxor(tag, address);
        let most = 4096 - i64::from(w.bytes());
        let miss = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, distance, most);
        self.guard(miss, |s, go_on| {
            let what = u64::from(w.bytes()) | if write { 0x100 } else { 0 };
            let what = s.constant(types::I64, what);
            let callee = s.constant(types::I64, s.job.runtime.refill_preserving as u64);
            let (sig, vcpu) = (s.sigs.preserving3, s.vcpu);
            s.b.ins().call_indirect(sig, callee, &[vcpu, address, what]);
            let filled = s.load_vcpu(types::I64, offset::SCRATCH + 8);
            let out = s.b.create_block();
            s.b.set_cold_block(out);
            s.b.ins().brif(filled, go_on, &[], out, &[]);
            s.b.seal_block(out);
            s.b.switch_to_block(out);
            s.leave_to_interpreter();
        });
        let addend_at = offset_of!(Entry, addend) as i32;
        let addend = self.b.ins().load(types::I64, MemFlagsData::trusted(), entry, addend_at);
        self.b.ins().iadd(addend, address)
    }

    pub fn load_operand(&mut self, i: &Insn, w: W) -> Val {
        let address = self.operand_address(i);
        let host = self.host(w, address, false);
        Val::Value(self.load_host(w, host))
    }

    /// Stack pointer arithmetic happens at this width; 16 bits are helpers.
    fn stack_address(&mut self, w: W, sp: Val) -> Value {
        let wide = self.extended(w, W::Q, sp, false);
        self.value(W::Q, wide)
    }

    pub fn push_value(&mut self, i: &Insn, value: Val) {
        let (w, stack) = (i.width(), i.stack_width());
        let sp = self.register(stack, gpr::RSP as u8);
        let sp = self.binary(Bin::Sub, stack, sp, Val::Const(u64::from(w.bytes())));
        let address = self.stack_address(stack, sp);
        let host = self.host(w, address, true);
        let value = self.value(w, value);
        self.store_host(w, value, host);
        self.set_register(stack, gpr::RSP as u8, sp);
    }

    pub fn load_stack(&mut self, i: &Insn, offset: Val) -> Val {
        let w = i.width();
        let address = self.stack_address(i.stack_width(), offset);
        let host = self.host(w, address, false);
        Val::Value(self.load_host(w, host))
    }

    // ---- host memory

    fn misaligned(&mut self, w: W, host: Value) -> Value {
        self.b.ins().band_imm_u(host, i64::from(w.bytes()) - 1)
    }

    /// An access under LOCK that is not aligned is the interpreter's.
    pub fn require_aligned(&mut self, w: W, host: Value) {
        if w != W::B {
            let bad = self.misaligned(w, host);
            self.guard(bad, |s, _| s.leave_to_interpreter());
        }
    }

    pub fn load_host(&mut self, w: W, host: Value) -> Value {
        let ty = type_of(w);
        if !self.weak_order {
            return self.b.ins().load(ty, guest_memory(), host, 0);
        }
        // Atomic accesses are sequentially consistent, which is more than enough; they must be aligned.
        let done = self.b.create_block();
        let value = self.b.append_block_param(done, ty);
        if w != W::B {
            let bad = self.misaligned(w, host);
            self.guard(bad, |s, _| {
                let v = s.b.ins().load(ty, guest_memory(), host, 0);
                s.b.ins().jump(done, &[v.into()]);
            });
        }
        let v = self.b.ins().atomic_load(ty, guest_memory(), host);
        self.b.ins().jump(done, &[v.into()]);
        self.b.seal_block(done);
        self.b.switch_to_block(done);
        value
    }

    pub fn store_host(&mut self, w: W, value: Value, host: Value) {
        if !self.weak_order {
            self.b.ins().store(guest_memory(), value, host, 0);
            return;
        }
        let done = self.b.create_block();
        if w != W::B {
            let bad = self.misaligned(w, host);
            self.guard(bad, |s, _| {
                s.b.ins().store(guest_memory(), value, host, 0);
                s.b.ins().jump(done, &[]);
            });
        }
        self.b.ins().atomic_store(guest_memory(), value, host);
        self.b.ins().jump(done, &[]);
        self.b.seal_block(done);
        self.b.switch_to_block(done);
    }

    /// Compare and exchange; returns what was there. The address is aligned.
    pub fn exchange_host(&mut self, host: Value, old: Value, new: Value) -> Value {
        self.b.ins().atomic_cas(guest_memory(), host, old, new)
    }
}
