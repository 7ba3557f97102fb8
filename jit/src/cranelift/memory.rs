//! Memory operands: effective address, linear address, and the TLB look-up of `cpu/src/tlb.rs` inline.

use super::values::{Val, type_of};
use super::writer::Writer;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Block, BlockArg, Endianness, InstBuilder, MemFlagsData, Value, types};
use cranelift_frontend::FunctionBuilder;
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

/// A page that was looked up in this block. Accesses off the same root are probably on it too: then they need no
/// look-up, or, inside what was accessed, not even a comparison.
#[derive(Clone, Copy)]
pub struct KnownPage {
    root: Value,
    write: bool,
    page: Value,
    addend: Value,
    /// The access: distance from the root, and size.
    distance: i64,
    size: i64,
}

/// The address of the TLB entry for a linear address: `tlb::slot`, times 32.
pub fn tlb_entry(b: &mut FunctionBuilder, table: Value, address: Value) -> Value {
    const { assert!(size_of::<Entry>() == 32) };
    let page = b.ins().ushr_imm_u(address, 7);
    let high = b.ins().ushr_imm_u(address, 15);
    let hash = b.ins().bxor(page, high);
    let bytes = b.ins().band_imm_u(hash, (ENTRIES as i64 - 1) << 5);
    b.ins().iadd(table, bytes)
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

    /// The host address of `bytes` bytes at a linear one, or away.
    pub fn host(&mut self, bytes: u8, address: Value, write: bool) -> Value {
        let (root, distance) = self.origin(address);
        let size = i64::from(bytes);
        let shared = self.pages.iter().find(|p| p.root == root && (p.write || !write));
        let known = shared.filter(|_| !self.job.knobs.no_shared_checks).copied();
        let Some(known) = known else {
            let addend = self.look_up(bytes, address, write);
            let page = self.b.ins().band_imm_s(address, !0xFFF);
            self.pages.push(KnownPage { root, write, page, addend, distance, size });
            return self.b.ins().iadd(addend, address);
        };
        let host = self.b.ins().iadd(known.addend, address);
        let inside = distance.wrapping_sub(known.distance);
        if (0..=known.size - size).contains(&inside) {
            return host;
        }
        // Most likely on the same page.
        let offset = self.b.ins().bxor(known.page, address);
        let miss = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, offset, 4096 - size);
        let (cold, join) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(cold);
        let joined = self.b.append_block_param(join, types::I64);
        self.b.ins().brif(miss, cold, &[], join, &[host.into()]);
        self.b.seal_block(cold);
        self.b.switch_to_block(cold);
        let other = self.translate_in_stub(bytes, address, write);
        self.or_leave(other, join, &[other.into()]);
        self.b.seal_block(join);
        self.b.switch_to_block(join);
        joined
    }

    /// The whole look-up; returns the addend.
    fn look_up(&mut self, bytes: u8, address: Value, write: bool) -> Value {
        let table = self.load_vcpu(types::I64, offset::TLB);
        let entry = tlb_entry(&mut self.b, table, address);
        let tag_at = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) };
        // What may be written may be read: one tag is enough for both.
        let tag = self.b.ins().load(types::I64, MemFlagsData::trusted(), entry, tag_at as i32);
        let distance = self.b.ins().bxor(tag, address);
        let most = 4096 - i64::from(bytes);
        let miss = self.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThan, distance, most);
        self.guard(miss, |s, go_on| {
            let host = s.translate_in_stub(bytes, address, write);
            s.or_leave(host, go_on, &[]);
        });
        let addend_at = offset_of!(Entry, addend) as i32;
        self.b.ins().load(types::I64, MemFlagsData::trusted(), entry, addend_at)
    }

    /// Calls the stub that looks into the TLB and refills it: the host address, or 0.
    fn translate_in_stub(&mut self, bytes: u8, address: Value, write: bool) -> Value {
        let what = u64::from(bytes) | if write { 0x100 } else { 0 };
        let what = self.constant(types::I64, what);
        let callee = self.constant(types::I64, self.job.runtime.refill_preserving as u64);
        let (sig, vcpu) = (self.sigs.preserving3, self.vcpu);
        self.b.ins().call_indirect(sig, callee, &[vcpu, address, what]);
        self.load_vcpu(types::I64, offset::SCRATCH + 8)
    }

    /// Ends a cold block: on with the access if it can be had, else out.
    fn or_leave(&mut self, good: Value, go_on: Block, arguments: &[BlockArg]) {
        let out = self.b.create_block();
        self.b.set_cold_block(out);
        self.b.ins().brif(good, go_on, arguments, out, &[]);
        self.b.seal_block(out);
        self.b.switch_to_block(out);
        let before = (self.state, self.settled);
        self.leave_to_interpreter();
        (self.state, self.settled) = before;
    }

    /// An address as a root and a constant.
    fn origin(&self, address: Value) -> (Value, i64) {
        let (mut root, mut distance) = (address, 0i64);
        while let Some(&(from, by)) = self.origins.get(&root) {
            (root, distance) = (from, distance.wrapping_add(by));
        }
        (root, distance)
    }

    pub fn load_operand(&mut self, i: &Insn, w: W) -> Val {
        let address = self.operand_address(i);
        let host = self.host(w.bytes(), address, false);
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
        let host = self.host(w.bytes(), address, true);
        let value = self.value(w, value);
        self.store_host(w, value, host);
        self.set_register(stack, gpr::RSP as u8, sp);
    }

    pub fn load_stack(&mut self, i: &Insn, offset: Val) -> Val {
        let w = i.width();
        let address = self.stack_address(i.stack_width(), offset);
        let host = self.host(w.bytes(), address, false);
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
        // Atomic accesses are sequentially consistent, which is more than enough; they must be aligned. Others are
        // fenced.
        let done = self.b.create_block();
        let value = self.b.append_block_param(done, ty);
        if w != W::B {
            let bad = self.misaligned(w, host);
            self.guard(bad, |s, _| {
                let v = s.b.ins().load(ty, guest_memory(), host, 0);
                s.b.ins().fence();
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
                s.b.ins().fence();
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
