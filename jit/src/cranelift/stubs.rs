//! Fixed pieces of code that Cranelift makes.
//!
//! Calls in cold blocks must not make the allocator keep values of the hot path out of registers, so they go to
//! stubs with `CallConv::PreserveAll`, which keep every register and return nothing in one.

use super::memory::tlb_entry;
use super::settings_for;
use crate::runtime;
use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, Signature, UserFuncName, Value, types};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use std::mem::offset_of;
use trimaran_cpu::tlb::Entry;
use trimaran_cpu::translate::offset;

/// Makes a function; `write` gets its parameters.
fn make(
    isa: &dyn TargetIsa,
    signature: Signature,
    write: impl FnOnce(&mut FunctionBuilder, &[Value]),
) -> Option<Vec<u8>> {
    let mut context = Context::new();
    context.func.signature = signature;
    context.func.name = UserFuncName::user(0, 0);
    let mut functions = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut context.func, &mut functions);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let params = b.block_params(entry).to_vec();
    write(&mut b, &params);
    b.seal_all_blocks();
    b.finalize(isa.frontend_config());
    let code = context.compile(isa, &mut ControlPlane::default()).ok()?;
    code.buffer.relocs().is_empty().then(|| code.buffer.data().to_vec())
}

fn signature(conv: CallConv, params: usize, returns: usize) -> Signature {
    let mut s = Signature::new(conv);
    s.params = vec![AbiParam::new(types::I64); params];
    s.returns = vec![AbiParam::new(types::I64); returns];
    s
}

fn host() -> Option<std::sync::Arc<dyn TargetIsa>> {
    settings_for(&cranelift_native::builder().ok()?, "none").ok()
}

/// `(vcpu, address, what)`, `what` as `runtime::refill` has it: looks into the TLB, refills it if need be, and
/// puts the host address into `SCRATCH[1]`, or 0.
pub fn refill_preserving() -> Option<Vec<u8>> {
    refill_for(&*host()?, runtime::refill as *const () as usize)
}

/// The same for any host; `refill` is the address to call.
pub fn refill_for(isa: &dyn TargetIsa, refill: usize) -> Option<Vec<u8>> {
    make(isa, signature(CallConv::PreserveAll, 3, 0), |b, params| {
        let (vcpu, address, what) = (params[0], params[1], params[2]);
        let mut callee = signature(isa.default_call_conv(), 2, 0);
        callee.params.push(AbiParam::new(types::I32).uext());
        callee.returns.push(AbiParam::new(types::I32).uext());
        let callee = b.import_signature(callee);
        let (miss, hit, done) = (b.create_block(), b.create_block(), b.create_block());
        let host = b.append_block_param(done, types::I64);
        let load = |b: &mut FunctionBuilder, base, at: usize| {
            b.ins().load(types::I64, MemFlagsData::trusted(), base, at as i32)
        };

        let table = load(b, vcpu, offset::TLB);
        let entry = tlb_entry(b, table, address);
        let (read, write) =
            (load(b, entry, offset_of!(Entry, read)), load(b, entry, offset_of!(Entry, write)));
        let is_write = b.ins().band_imm_u(what, 0x100);
        let tag = b.ins().select(is_write, write, read);
        let size = b.ins().band_imm_u(what, 0xFF);
        let page = b.ins().iconst(types::I64, 4096);
        let most = b.ins().isub(page, size);
        let distance = b.ins().bxor(tag, address);
        let misses = b.ins().icmp(IntCC::UnsignedGreaterThan, distance, most);
        b.ins().brif(misses, miss, &[], hit, &[]);

        b.switch_to_block(miss);
        let what = b.ins().ireduce(types::I32, what);
        let refill = b.ins().iconst(types::I64, refill as i64);
        let call = b.ins().call_indirect(callee, refill, &[vcpu, address, what]);
        let filled = b.inst_results(call)[0];
        let none = b.ins().iconst(types::I64, 0);
        b.ins().brif(filled, hit, &[], done, &[none.into()]);

        b.switch_to_block(hit);
        let addend = load(b, entry, offset_of!(Entry, addend));
        let found = b.ins().iadd(addend, address);
        b.ins().jump(done, &[found.into()]);

        b.switch_to_block(done);
        b.ins().store(MemFlagsData::trusted(), host, vcpu, offset::SCRATCH as i32 + 8);
        b.ins().return_(&[]);
    })
}

/// `(vcpu)`: `runtime::settle_flags`.
pub fn settle_preserving() -> Option<Vec<u8>> {
    settle_for(&*host()?, runtime::settle_flags as *const () as usize)
}

/// The same for any host; `settle` is the address to call.
pub fn settle_for(isa: &dyn TargetIsa, settle: usize) -> Option<Vec<u8>> {
    make(isa, signature(CallConv::PreserveAll, 1, 0), |b, params| {
        let callee = b.import_signature(signature(isa.default_call_conv(), 1, 0));
        let address = b.ins().iconst(types::I64, settle as i64);
        b.ins().call_indirect(callee, address, &[params[0]]);
        b.ins().return_(&[]);
    })
}

/// `extern "C" fn(vcpu, budget, code) -> word`, where the host has no assembled one. `CallConv::Tail` keeps the
/// registers that the host's convention keeps.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub fn trampoline() -> Option<Vec<u8>> {
    let isa = host()?;
    make(&*isa, signature(isa.default_call_conv(), 3, 1), |b, params| {
        let callee = b.import_signature(super::writer::entry_signature());
        let none = b.ins().iconst(types::I64, 0);
        let call = b.ins().call_indirect(callee, params[2], &[params[0], params[1], none]);
        let word = b.inst_results(call)[0];
        b.ins().return_(&[word]);
    })
}

/// A slot that leads nowhere: the engine gets the budget and the slot.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub fn unlinked() -> Option<Vec<u8>> {
    let isa = host()?;
    make(&*isa, super::writer::entry_signature(), |b, params| {
        b.ins().store(MemFlagsData::trusted(), params[1], params[0], offset::BUDGET as i32);
        b.ins().return_(&[params[2]]);
    })
}
