//! The x87 unit of an x86-64 host: operands and control word to result and status.
//!
//! Each operation is one `asm!` block, so the compiler can place nothing inside it:
//!
//! 1. FNCLEX: exceptions that other code of this thread left must not meet the guest's masks.
//! 2. FLDCW with the guest's rounding, precision and masks. Unmasked exceptions are wanted: they change results
//!    (no result at all, or one with an adjusted exponent), and the host knows best how.
//! 3. Load the operands with FLD m80, which raises nothing and keeps every bit pattern; the operation; FNSTSW.
//! 4. If an exception is now pending (ES), FNCLEX. No waiting instruction stands between the operation and this,
//!    so the host never sees #MF. A context switch in between saves and restores the pending state as any other.
//! 5. FLDCW with the value of the ABI, then take the results (FSTP m80 raises nothing but a masked stack fault),
//!    and leave the register stack empty, as the ABI wants it. Where the number of registers depends on an
//!    exception, FNINIT empties it.
//!
//! Comparisons and integer stores run with all exceptions masked: their flags do not depend on the masks, and
//! the caller decides what an unmasked one means.
#![allow(unsafe_code)]

use super::unit::INITIAL_CONTROL;
use super::unit::status::{CONDITIONS, EXCEPTIONS};
use super::{Binary, Double, Format, Unary};
use crate::state::F80;
use core::arch::asm;

/// What the ABI expects in the control word.
static ABI_CONTROL: u16 = INITIAL_CONTROL;

/// One operation between steps 1 and 5: `$load`, `$op`, `$take` are lists of instructions.
macro_rules! under {
    ($control:expr, [$($load:literal),*], $op:literal, [$($take:literal),*], $($operand:tt)*) => {{
        let control: u16 = $control;
        let status: u16;
        // SAFETY: reads and writes the operands, which are whole F80 or u64 objects, at least as long as what
        // the instructions access, and the x87 state, which is back to what the ABI wants at the end. No host
        // exception can occur: see the head of this file.
        unsafe {
            asm!(
                "fnclex",
                "fldcw word ptr [{control}]",
                $($load,)*
                $op,
                "fnstsw ax",
                "test al, al",
                "jns 2f",
                "fnclex",
                "2:",
                "fldcw word ptr [{abi}]",
                $($take,)*
                control = in(reg) &raw const control,
                abi = in(reg) &raw const ABI_CONTROL,
                $($operand)*
                out("ax") status,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack)
            );
        }
        status & (EXCEPTIONS | CONDITIONS)
    }};
}

/// See [`super::Arithmetic`].
pub fn binary(op: Binary, a: F80, b: F80, control: u16) -> (F80, u16) {
    let mut value = F80::default();
    macro_rules! keep {
        ($op:literal) => {
            under!(control, ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]"], $op,
                ["fstp tbyte ptr [{r}]", "fstp st(0)"],
                a = in(reg) &raw const a, b = in(reg) &raw const b, r = in(reg) &raw mut value,)
        };
    }
    macro_rules! pop {
        ($op:literal) => {
            under!(control, ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]"], $op,
                ["fstp tbyte ptr [{r}]", "fninit"],
                a = in(reg) &raw const a, b = in(reg) &raw const b, r = in(reg) &raw mut value,)
        };
    }
    let flags = match op {
        Binary::Add => keep!("fadd st, st(1)"),
        Binary::Sub => keep!("fsub st, st(1)"),
        Binary::Mul => keep!("fmul st, st(1)"),
        Binary::Div => keep!("fdiv st, st(1)"),
        Binary::Scale => keep!("fscale"),
        Binary::Rem => keep!("fprem"),
        Binary::Rem1 => keep!("fprem1"),
        Binary::Atan => pop!("fpatan"),
        Binary::Log => pop!("fyl2x"),
        Binary::Log1p => pop!("fyl2xp1"),
    };
    (value, flags)
}

/// One operation under the control word of the ABI without setting anything up: the status before it, and after it.
macro_rules! quick {
    ([$($load:literal),*], $op:literal, [$($take:literal),*], $($operand:tt)*) => {{
        let (before, after): (u16, u16);
        // SAFETY: reads and writes whole F80 or u64 objects, at least as long as what the instructions access, and leaves
        // the register stack as it was; all exceptions are masked.
        unsafe {
            asm!(
                "fnstsw ax", "mov {before:e}, eax",
                $($load,)* $op, "fnstsw ax", $($take,)*
                before = out(reg) before, out("ax") after,
                $($operand)*
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack)
            );
        }
        (before, after)
    }};
}

/// See [`super::Arithmetic`]. With the control word of the ABI, as most guests have it, nothing needs to be set up, and the
/// host's exception flags may stay: FNCLEX takes a hundred cycles. What they were before is only wrong where the
/// guest does not have it yet; the operation is done again then.
pub fn basic(op: Binary, a: F80, b: F80, control: u16, known: u16) -> (F80, u16) {
    let mut value = F80::default();
    macro_rules! keep {
        ($op:literal) => {
            quick!(["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]"], $op, ["fstp tbyte ptr [{r}]", "fstp st(0)"],
                a = in(reg) &raw const a, b = in(reg) &raw const b, r = in(reg) &raw mut value,)
        };
    }
    if control == ABI_CONTROL {
        let (before, after) = match op {
            Binary::Add => keep!("fadd st, st(1)"),
            Binary::Sub => keep!("fsub st, st(1)"),
            Binary::Mul => keep!("fmul st, st(1)"),
            Binary::Div => keep!("fdiv st, st(1)"),
            _ => (EXCEPTIONS, 0),
        };
        if before & EXCEPTIONS & !known == 0 {
            return (value, after & (EXCEPTIONS | CONDITIONS));
        }
    }
    binary(op, a, b, control)
}

/// See [`super::Arithmetic`].
pub fn unary(op: Unary, a: F80, control: u16) -> (F80, u16) {
    let mut value = F80::default();
    macro_rules! one {
        ($op:literal) => {
            under!(control, ["fld tbyte ptr [{a}]"], $op, ["fstp tbyte ptr [{r}]"],
                a = in(reg) &raw const a, r = in(reg) &raw mut value,)
        };
    }
    let flags = match op {
        Unary::Sqrt => one!("fsqrt"),
        Unary::RoundInt => one!("frndint"),
        Unary::Sin => one!("fsin"),
        Unary::Cos => one!("fcos"),
        Unary::Exp => one!("f2xm1"),
    };
    (value, flags)
}

/// See [`super::Arithmetic`].
pub fn double(op: Double, a: F80, control: u16) -> (F80, F80, u16) {
    let (mut first, mut second) = (F80::default(), F80::default());
    macro_rules! two {
        ($op:literal) => {
            under!(control, ["fld tbyte ptr [{a}]"], $op,
                ["fstp tbyte ptr [{s}]", "fstp tbyte ptr [{r}]", "fninit"],
                a = in(reg) &raw const a, r = in(reg) &raw mut first, s = in(reg) &raw mut second,)
        };
    }
    let flags = match op {
        Double::SinCos => two!("fsincos"),
        Double::Tan => two!("fptan"),
        Double::Extract => two!("fxtract"),
    };
    (first, second, flags)
}

/// See [`super::Arithmetic`].
pub fn compare(a: F80, b: F80, unordered: bool, known: u16) -> u16 {
    macro_rules! keep {
        ($op:literal) => {
            quick!(["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]"], $op, ["fstp st(0)", "fstp st(0)"],
                a = in(reg) &raw const a, b = in(reg) &raw const b,)
        };
    }
    let (before, after) = if unordered { keep!("fucom st(1)") } else { keep!("fcom st(1)") };
    if before & EXCEPTIONS & !known == 0 {
        return after & (EXCEPTIONS | CONDITIONS);
    }
    macro_rules! compare {
        ($op:literal) => {
            under!(INITIAL_CONTROL, ["fld tbyte ptr [{b}]", "fld tbyte ptr [{a}]"], $op,
                ["fstp st(0)", "fstp st(0)"],
                a = in(reg) &raw const a, b = in(reg) &raw const b,)
        };
    }
    if unordered { compare!("fucom st(1)") } else { compare!("fcom st(1)") }
}

/// See [`super::Arithmetic`].
pub fn store(format: Format, a: F80, control: u16, known: u16) -> (u64, u16) {
    let mut value = 0u64;
    macro_rules! keep {
        ($op:literal, [$($take:literal)?]) => {
            quick!(["fld tbyte ptr [{a}]"], $op, [$($take)?], a = in(reg) &raw const a, r = in(reg) &raw mut value,)
        };
    }
    if control == ABI_CONTROL {
        let (before, after) = match format {
            Format::F32 => keep!("fst dword ptr [{r}]", ["fstp st(0)"]),
            Format::F64 => keep!("fst qword ptr [{r}]", ["fstp st(0)"]),
            Format::I16 => keep!("fistp word ptr [{r}]", []),
            Format::I32 => keep!("fistp dword ptr [{r}]", []),
            Format::I64 => keep!("fistp qword ptr [{r}]", []),
        };
        if before & EXCEPTIONS & !known == 0 {
            return (value, after & (EXCEPTIONS | CONDITIONS));
        }
    }
    macro_rules! store {
        ($control:expr, $op:literal, [$($take:literal)?]) => {
            under!($control, ["fld tbyte ptr [{a}]"], $op, [$($take)?],
                a = in(reg) &raw const a, r = in(reg) &raw mut value,)
        };
    }
    let masked = control | EXCEPTIONS;
    let flags = match format {
        Format::F32 => store!(control, "fst dword ptr [{r}]", ["fstp st(0)"]),
        Format::F64 => store!(control, "fst qword ptr [{r}]", ["fstp st(0)"]),
        Format::I16 => store!(masked, "fistp word ptr [{r}]", []),
        Format::I32 => store!(masked, "fistp dword ptr [{r}]", []),
        Format::I64 => store!(masked, "fistp qword ptr [{r}]", []),
    };
    (value, flags)
}
