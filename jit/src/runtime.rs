//! What translated code calls. These functions get the vCPU that the engine entered the code with.
#![allow(unsafe_code)]

use trimaran_cpu::Vcpu;
use trimaran_cpu::insn::Insn;
use trimaran_cpu::state::gpr;

/// What a region took for granted, and was not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A window's page (see `emitter/windows.rs`) was not writable.
    Write,
    /// A window crossed a page.
    Crossing,
    /// The state of the x87 unit (see `emitter/x87/`).
    X87,
}

/// What code leaves in `SCRATCH[3]` then.
pub fn trouble(owner: u32, trouble: Trouble) -> u64 {
    u64::from(owner) << 2 | trouble as u64 | 1 << 63
}

/// The region and its trouble.
pub fn troubled(word: u64) -> Option<(u32, Trouble)> {
    let trouble = match word & 3 {
        0 => Trouble::Write,
        1 => Trouble::Crossing,
        _ => Trouble::X87,
    };
    (word >> 63 != 0).then_some(((word >> 2) as u32, trouble))
}

/// Moves RIP by a distance; outside 64-bit mode it has 32 bits.
fn move_rip(v: &mut Vcpu, delta: i64) {
    let rip = v.state.gpr[gpr::RIP].wrapping_add(delta as u64);
    v.state.gpr[gpr::RIP] = if v.key().code64() { rip } else { rip & 0xFFFF_FFFF };
}

/// Makes what the host's floating-point units hold of the guest architectural: the sticky flags in MXCSR, which are cleared
/// there, and the x87 unit's words. Rust code that runs afterwards may use the units.
#[cfg(target_arch = "x86_64")]
pub fn collect_float_flags(v: &mut Vcpu) {
    crate::emitter::x87::host::collect(v);
    if std::mem::take(&mut v.translated.float_used) == 0 {
        return;
    }
    let (mut status, clean) = (0u32, 0x1F80u32);
    // SAFETY: MXCSR is stored, and set to what Rust expects.
    unsafe {
        std::arch::asm!(
            "stmxcsr [{}]", "ldmxcsr [{}]",
            in(reg) &raw mut status, in(reg) &raw const clean, options(nostack)
        );
    }
    v.state.mxcsr |= status & 0x3F;
}

/// Other hosts' units are not used for the guest.
#[cfg(not(target_arch = "x86_64"))]
pub fn collect_float_flags(_: &mut Vcpu) {}

/// Books what ran, moves RIP to the instruction, runs its handler. `rest`: instructions that were charged and have not
/// run, this one among them.
fn handle(v: &mut Vcpu, insn: &Insn, budget: i64, rest: i64, delta: i64) -> bool {
    collect_float_flags(v);
    v.settle_flags();
    v.sync_retired(budget + rest);
    move_rip(v, delta);
    v.translated.count_helper(insn);
    v.run_handler(insn)
}

/// Runs `count` instructions, one behind the other, in the middle of a region. `delta`: RIP of the first less RIP at the region's
/// entry. Returns the budget to go on with, or -1: the code must return [`crate::abi::DONE`].
///
/// # Safety
/// As [`run_helper`]; the instructions are of one block.
pub unsafe extern "C" fn run_helpers(
    v: *mut Vcpu,
    insns: *const Insn,
    budget: i64,
    rest: i64,
    delta: i64,
    count: usize,
) -> i64 {
    // SAFETY: by the caller; the engine holds no other reference while code runs.
    let (v, insns) = unsafe { (&mut *v, std::slice::from_raw_parts(insns, count)) };
    let base = v.state.gpr[gpr::RIP];
    collect_float_flags(v);
    v.settle_flags();
    v.sync_retired(budget + rest);
    move_rip(v, delta);
    let mut rest = rest;
    for insn in insns {
        v.translated.count_helper(insn);
        if !v.run_handler(insn) {
            return -1;
        }
        rest -= 1;
        if v.budget < rest {
            // A REP took more than its one.
            return -1;
        }
    }
    v.state.gpr[gpr::RIP] = base;
    v.budget - rest
}

/// Runs an instruction in the middle of a region. `delta`: its RIP less RIP at the region's entry. Returns the
/// budget to go on with, or -1: the code must return [`crate::abi::DONE`].
///
/// # Safety
/// Only translated code may call it, with the vCPU it was entered with and an instruction of its region.
pub unsafe extern "C" fn run_helper(
    v: *mut Vcpu,
    insn: *const Insn,
    budget: i64,
    rest: i64,
    delta: i64,
) -> i64 {
    // SAFETY: by the caller.
    unsafe { run_helpers(v, insn, budget, rest, delta, 1) }
}

/// Runs the last instruction of a block that ends with the dispatcher. The code must return [`crate::abi::DONE`].
///
/// # Safety
/// As [`run_helper`].
pub unsafe extern "C" fn run_last(v: *mut Vcpu, insn: *const Insn, budget: i64, rest: i64, delta: i64) {
    // SAFETY: as in `run_helper`.
    let (v, insn) = unsafe { (&mut *v, &*insn) };
    handle(v, insn, budget, rest, delta);
}

/// Fills the TLB. `what`: size in bytes (1 to 64), with bit 8 set for a write. 1: try again.
///
/// # Safety
/// Only translated code may call it, with the vCPU it was entered with.
pub unsafe extern "C" fn refill(v: *mut Vcpu, address: u64, what: u32) -> u32 {
    // SAFETY: as in `run_helper`.
    let v = unsafe { &mut *v };
    u32::from(v.refill(address, (what & 0xFF) as u16, what & 0x100 != 0))
}

/// Makes `lazy` whole: code that wants flags from before its region calls it.
///
/// # Safety
/// As [`refill`].
pub unsafe extern "C" fn settle_flags(v: *mut Vcpu) {
    // SAFETY: as in `run_helper`.
    let v = unsafe { &mut *v };
    v.settle_flags();
}
