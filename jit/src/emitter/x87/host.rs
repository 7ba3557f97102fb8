//! The host's x87 unit while it is the guest's: arming it, and taking back what it holds.
//!
//! Rust code runs with the control word of the ABI and an empty register stack, but for what translated code calls with
//! its registers full (`refill`, `settle_flags`, a miss): that has no x87 instruction in it. Only `fpu/host.rs` of the
//! cpu crate uses the unit from Rust, for handlers, and before those [`collect`] has run.
#![allow(unsafe_code)]

use core::arch::asm;
use trimaran_cpu::Vcpu;
use trimaran_cpu::state::F80;
use trimaran_cpu::translate::x87_used::{ARMED, C1};
use trimaran_cpu::x87_status::{self as status, B, C0, C2, C3, ES, EXCEPTIONS};

/// What an armed unit's status word has of the guest's, besides C1.
const SAME: u16 = EXCEPTIONS | C0 | C2 | C3;
/// What the ABI wants.
static ABI_CONTROL: u16 = trimaran_cpu::INITIAL_CONTROL;

fn host_status() -> u16 {
    let word: u16;
    // SAFETY: reads the status word.
    unsafe { asm!("fnstsw ax", out("ax") word, options(nomem, nostack)) };
    word
}

fn load_control(word: u16) {
    // SAFETY: all exceptions are masked in the words given, so that none can occur.
    unsafe { asm!("fldcw word ptr [{}]", in(reg) &raw const word, options(nostack)) };
}

/// Sets control and status words; the register stack stays.
fn load_words(control: u16, word: u16) {
    let mut environment = [0u32; 7];
    // SAFETY: the image has 28 bytes; what is loaded is what was stored but for the two words, and all exceptions are masked.
    unsafe {
        asm!("fnstenv [{}]", in(reg) &raw mut environment, options(nostack));
        environment[0] = environment[0] & !0xFFFF | u32::from(control);
        environment[1] =
            environment[1] & !u32::from(SAME | status::C1) | u32::from(word & (SAME | status::C1));
        asm!("fldenv [{}]", in(reg) &raw const environment, options(nostack));
    }
}

/// Takes the top of the host's register stack.
pub fn pop() -> F80 {
    let mut value = F80::default();
    // SAFETY: ten bytes of an F80. Translated code pushed it.
    unsafe { asm!("fstp tbyte ptr [{}]", in(reg) &raw mut value, options(nostack)) };
    value
}

/// Makes C1 memory's.
pub fn take_c1(v: &mut Vcpu) {
    if v.translated.x87_used & C1 != 0 {
        v.state.x87.status = v.state.x87.status & !status::C1 | host_status() & status::C1;
        v.translated.x87_used &= !C1;
    }
}

/// Makes the unit the guest's. If exceptions are unmasked or wait, `x87_used` stays 0. Of an armed unit it takes C1.
///
/// # Safety
/// Only translated code may call it, with the vCPU it was entered with.
pub unsafe extern "C" fn arm(v: *mut Vcpu) {
    // SAFETY: by the caller; the engine holds no other reference while code runs.
    let v = unsafe { &mut *v };
    if v.translated.x87_used != 0 {
        return take_c1(v);
    }
    let (control, word) = (v.state.x87.control, v.state.x87.status);
    if !control & EXCEPTIONS != 0 || word & (ES | B) != 0 {
        return;
    }
    if (host_status() ^ word) & SAME != 0 {
        load_words(control, word);
    } else if control != ABI_CONTROL {
        load_control(control);
    }
    v.translated.x87_used = ARMED;
}

/// Takes what the host's words have of the guest, and gives the unit back to Rust. The register stack is empty.
pub fn collect(v: &mut Vcpu) {
    if v.translated.x87_used == 0 {
        return;
    }
    take_c1(v);
    v.translated.x87_used = 0;
    let x = &mut v.state.x87;
    x.status = x.status & !SAME | host_status() & SAME;
    if x.control != ABI_CONTROL {
        load_control(ABI_CONTROL);
    }
}
