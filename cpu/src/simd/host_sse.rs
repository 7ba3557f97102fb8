//! The floating-point unit of an x86-64 host: operands and MXCSR to result and new flags.
//!
//! Each function is one `asm!` block: load MXCSR with the guest's controls, all exceptions masked and no flag
//! set; execute the instruction itself; store MXCSR for the flags; load Rust's own MXCSR again. Nothing that the
//! compiler places can come in between, so no Rust code ever runs under the guest's controls, the operands
//! keep their order (which decides between two NaNs), and no host exception can occur.
//!
//! Masking hides two things. An unmasked underflow is reported for every tiny result, a masked one only for
//! tiny and inexact ones: [`guarded`] asks again, with flush-to-zero on, which reports all of them. And a masked
//! overflow or underflow has the precision flag of what is returned, an unmasked one of what an exponent without
//! bounds would give: the software unit knows.
#![allow(unsafe_code)]

use super::checks::mxcsr::{DAZ, FLAGS, FTZ, MASK_SHIFT, MASKS, OE, RC, UE, UM};
use super::soft_sse;
use crate::state::RFlags;
use core::arch::asm;
use core::arch::x86_64::__m128i;
use core::mem::transmute;

/// What the Rust ABI expects in MXCSR.
static RUST_MXCSR: u32 = 0x1F80;

/// Runs an operation under the guest's controls: `f` takes MXCSR and returns it with the new flags.
#[inline(always)]
fn guarded<T>(mxcsr: u32, f: impl Fn(u32) -> (T, u32)) -> (T, u32) {
    let controls = mxcsr & (FTZ | RC | DAZ) | MASKS;
    if mxcsr & UM != 0 {
        let (r, status) = f(controls);
        return (r, status & FLAGS);
    }
    let (r, status) = f(controls & !FTZ);
    (r, status & FLAGS | f(controls | FTZ).1 & UE)
}

#[inline(always)]
fn vector(x: u128) -> __m128i {
    // SAFETY: both are 16 bytes without invalid values.
    unsafe { transmute(x) }
}

#[inline(always)]
fn bits(x: __m128i) -> u128 {
    // SAFETY: as above.
    unsafe { transmute(x) }
}

/// One instruction between the loads of MXCSR; `status` holds the guest's and receives the new one.
macro_rules! under {
    ($status:ident, $insn:expr, $($operands:tt)*) => {
        // SAFETY: touches the operands, `status` and MXCSR, which Rust's value is put back into. All exceptions
        // are masked. The instructions are of SSE2 and SSE3, which every host since 2005 has, or
        // were asked for.
        unsafe {
            asm!(
                "ldmxcsr [{status}]",
                $insn,
                "stmxcsr [{status}]",
                "ldmxcsr [{rust}]",
                status = in(reg) &raw mut $status,
                rust = in(reg) &raw const RUST_MXCSR,
                $($operands)*
                options(nostack)
            )
        }
    };
}

macro_rules! binary {
    ($($name:ident)*) => {$(
        #[inline(always)]
        pub fn $name(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
            let (r, flags) = guarded(mxcsr, |mut status| {
                let mut x = vector(a);
                under!(
                    status,
                    concat!(stringify!($name), " {x}, {y}"),
                    x = inout(xmm_reg) x,
                    y = in(xmm_reg) vector(b),
                );
                (bits(x), status)
            });
            if flags & (OE | UE) & !(mxcsr >> MASK_SHIFT) != 0 {
                return soft_sse::$name(a, b, mxcsr);
            }
            (r, flags)
        }
    )*};
}
binary! {
    addps addss addpd addsd
    subps subss subpd subsd
    mulps mulss mulpd mulsd
    divps divss divpd divsd
    sqrtps sqrtss sqrtpd sqrtsd
    minps minss minpd minsd
    maxps maxss maxpd maxsd
    haddps haddpd hsubps hsubpd addsubps addsubpd
    rcpps rcpss rsqrtps rsqrtss
    cvtps2pd cvtpd2ps cvtss2sd cvtsd2ss
    cvtdq2ps cvtdq2pd cvtps2dq cvttps2dq cvtpd2dq cvttpd2dq
}

/// Fused multiply-add; on hosts without it, in software.
macro_rules! fused {
    ($($name:ident $insn:literal;)*) => {$(
        pub fn $name(a: u128, b: u128, c: u128, mxcsr: u32) -> (u128, u32) {
            if !std::is_x86_feature_detected!("fma") {
                return soft_sse::$name(a, b, c, mxcsr);
            }
            let (r, flags) = guarded(mxcsr, |mut status| {
                let mut x = vector(b);
                under!(
                    status,
                    concat!($insn, " {x}, {y}, {z}"),
                    x = inout(xmm_reg) x,
                    y = in(xmm_reg) vector(a),
                    z = in(xmm_reg) vector(c),
                );
                (bits(x), status)
            });
            if flags & (OE | UE) & !(mxcsr >> MASK_SHIFT) != 0 {
                return soft_sse::$name(a, b, c, mxcsr);
            }
            (r, flags)
        }
    )*};
}
fused! {
    fmaddps "vfmadd213ps";
    fmaddpd "vfmadd213pd";
    fmsubps "vfmsub213ps";
    fmsubpd "vfmsub213pd";
    fnmaddps "vfnmadd213ps";
    fnmaddpd "vfnmadd213pd";
    fnmsubps "vfnmsub213ps";
    fnmsubpd "vfnmsub213pd";
    fmaddsubps "vfmaddsub213ps";
    fmaddsubpd "vfmaddsub213pd";
    fmsubaddps "vfmsubadd213ps";
    fmsubaddpd "vfmsubadd213pd";
}

macro_rules! predicates {
    ($($name:ident)*) => {$(
        #[inline(always)]
        pub fn $name(predicate: u8, a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
            guarded(mxcsr, |mut status| {
                let mut x = vector(a);
                macro_rules! with {
                    ($p:literal) => {
                        under!(
                            status,
                            concat!(stringify!($name), " {x}, {y}, ", $p),
                            x = inout(xmm_reg) x,
                            y = in(xmm_reg) vector(b),
                        )
                    };
                }
                match predicate & 7 {
                    0 => with!(0),
                    1 => with!(1),
                    2 => with!(2),
                    3 => with!(3),
                    4 => with!(4),
                    5 => with!(5),
                    6 => with!(6),
                    _ => with!(7),
                }
                (bits(x), status)
            })
        }
    )*};
}
predicates!(cmpps cmpss cmppd cmpsd);

macro_rules! ordered {
    ($($name:ident)*) => {$(
        #[inline(always)]
        pub fn $name(a: u128, b: u128, mxcsr: u32) -> (RFlags, u32) {
            guarded(mxcsr, |mut status| {
                let (zero, parity, carry): (u8, u8, u8);
                under!(
                    status,
                    concat!(stringify!($name), " {x}, {y}\nsetz {z}\nsetp {p}\nsetc {c}"),
                    x = in(xmm_reg) vector(a),
                    y = in(xmm_reg) vector(b),
                    z = out(reg_byte) zero,
                    p = out(reg_byte) parity,
                    c = out(reg_byte) carry,
                );
                let mut flags = RFlags::empty();
                flags.set(RFlags::ZF, zero != 0);
                flags.set(RFlags::PF, parity != 0);
                flags.set(RFlags::CF, carry != 0);
                (flags, status)
            })
        }
    )*};
}
ordered!(comiss comisd ucomiss ucomisd);

macro_rules! from_general {
    ($($name:ident $insn:literal;)*) => {$(
        #[inline(always)]
        pub fn $name(a: u128, b: u64, mxcsr: u32) -> (u128, u32) {
            guarded(mxcsr, |mut status| {
                let mut x = vector(a);
                under!(status, $insn, x = inout(xmm_reg) x, y = in(reg) b,);
                (bits(x), status)
            })
        }
    )*};
}
from_general! {
    cvtsi2ss_d "cvtsi2ss {x}, {y:e}";
    cvtsi2ss_q "cvtsi2ss {x}, {y:r}";
    cvtsi2sd_d "cvtsi2sd {x}, {y:e}";
    cvtsi2sd_q "cvtsi2sd {x}, {y:r}";
}

macro_rules! to_general {
    ($($name:ident $insn:literal;)*) => {$(
        #[inline(always)]
        pub fn $name(b: u128, mxcsr: u32) -> (u64, u32) {
            guarded(mxcsr, |mut status| {
                let r: u64;
                under!(status, $insn, r = out(reg) r, y = in(xmm_reg) vector(b),);
                (r, status)
            })
        }
    )*};
}
to_general! {
    cvtss2si_d "cvtss2si {r:e}, {y}";
    cvtss2si_q "cvtss2si {r:r}, {y}";
    cvtsd2si_d "cvtsd2si {r:e}, {y}";
    cvtsd2si_q "cvtsd2si {r:r}, {y}";
    cvttss2si_d "cvttss2si {r:e}, {y}";
    cvttss2si_q "cvttss2si {r:r}, {y}";
    cvttsd2si_d "cvttsd2si {r:e}, {y}";
    cvttsd2si_q "cvttsd2si {r:r}, {y}";
}
