//! The x87 unit (SDM Vol. 1, "Programming with the x87 FPU").
//!
//! `unit` holds the register stack and the exception machinery, one file each the instruction groups; what
//! remains is arithmetic on 80-bit values, which comes in two forms behind [`Arithmetic`]: the host's own x87
//! (`host`, bit for bit what silicon does) and our own integer code (`soft`).
//!
//! Choice: the last opcode (FOP) is that of the last instruction with an unmasked exception, as processors since the
//! Pentium 4 have it unless IA32_MISC_ENABLE asks for fopcode compatibility.

mod arithmetic;
mod bcd;
mod comparison;
mod control;
mod convert;
mod data_transfer;
mod environment;
#[cfg(target_arch = "x86_64")]
mod host;
mod round;
mod soft;
mod soft_transcendental;
#[cfg(test)]
mod tests;
mod transcendental;
mod unit;
mod wide;

pub use unit::{INITIAL_CONTROL, status};

use crate::insn::{Handler, Insn};
use crate::state::F80;
use iced_x86::{Instruction, MemorySize, Mnemonic as M};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Operations with two operands: ST(0) and ST(1), or ST(0) and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// a * 2^trunc(b)
    Scale,
    /// a - b * trunc(a / b)
    Rem,
    /// a - b * nearest(a / b)
    Rem1,
    /// atan(b / a), in the right quadrant
    Atan,
    /// b * log2(a)
    Log,
    /// b * log2(a + 1)
    Log1p,
}

/// Operations with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Unary {
    Sqrt,
    RoundInt,
    Sin,
    Cos,
    /// 2^a - 1
    Exp,
}

/// Operations with two results: one replaces ST(0), the other is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Double {
    /// sine, cosine
    SinCos,
    /// tangent, 1
    Tan,
    /// exponent, significand
    Extract,
}

/// Formats in memory other than F80.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Format {
    F32,
    F64,
    I16,
    I32,
    I64,
}

impl Format {
    fn bytes(self) -> u8 {
        match self {
            Format::I16 => 2,
            Format::F32 | Format::I32 => 4,
            Format::F64 | Format::I64 => 8,
        }
    }
    fn of(i: &Insn) -> Format {
        match i.imm2 {
            0 => Format::F32,
            1 => Format::F64,
            2 => Format::I16,
            3 => Format::I32,
            _ => Format::I64,
        }
    }
}

/// The arithmetic under a control word. Results come with the status bits that they set: exceptions and
/// condition codes. With an unmasked IE, DE or ZE the value means nothing.
pub struct Arithmetic {
    pub binary: fn(Binary, F80, F80, u16) -> (F80, u16),
    /// Add, Sub, Mul and Div. Here and below exceptions that the guest's status word has already (last argument) may be
    /// reported again.
    pub basic: fn(Binary, F80, F80, u16, u16) -> (F80, u16),
    pub unary: fn(Unary, F80, u16) -> (F80, u16),
    pub double: fn(Double, F80, u16) -> (F80, F80, u16),
    /// C0, C2, C3 of an ordered or (third argument) unordered comparison.
    pub compare: fn(F80, F80, bool, u16) -> u16,
    pub store: fn(Format, F80, u16, u16) -> (u64, u16),
}

/// Our own.
pub static SOFT: Arithmetic = Arithmetic {
    binary: soft::binary,
    basic: |op, a, b, control, _| soft::binary(op, a, b, control),
    unary: soft::unary,
    double: soft::double,
    compare: |a, b, quiet, _| soft::compare(a, b, quiet),
    store: |format, a, control, _| soft::store(format, a, control),
};

/// The host's.
#[cfg(target_arch = "x86_64")]
pub static HOST: Arithmetic = Arithmetic {
    binary: host::binary,
    basic: host::basic,
    unary: host::unary,
    double: host::double,
    compare: host::compare,
    store: host::store,
};
#[cfg(not(target_arch = "x86_64"))]
use SOFT as HOST;

static USE_SOFT: AtomicBool = AtomicBool::new(false);

/// Chooses our own arithmetic for the whole process, where the host would have its own.
pub fn use_soft(on: bool) {
    USE_SOFT.store(on, Relaxed);
}

/// Whether that was chosen, or the host has none.
pub fn uses_soft() -> bool {
    !cfg!(target_arch = "x86_64") || USE_SOFT.load(Relaxed)
}

fn engine() -> &'static Arithmetic {
    if USE_SOFT.load(Relaxed) { &SOFT } else { &HOST }
}

/// FOP of an instruction of this unit: the low three bits of the escape opcode, and ModRM.
pub fn opcode(bytes: &[u8]) -> Option<u16> {
    let is_prefix = |byte: &&u8| matches!(**byte, 0x26 | 0x2E | 0x36 | 0x3E | 0x40..=0x4F | 0x64..=0x67 | 0xF0 | 0xF2 | 0xF3);
    let at = bytes.iter().take_while(is_prefix).count();
    match bytes[at..] {
        [escape @ 0xD8..=0xDF, modrm, ..] => Some(u16::from(escape & 7) << 8 | u16::from(modrm)),
        _ => None,
    }
}

/// The handler of an instruction of this unit. Fields of `i` that x87 instructions do not use get: `imm2` the
/// format in memory, `r2` the segment register of the operand; and `imm` gets FOP where the bytes are at hand.
pub fn handler(x: &Instruction, i: &mut Insn) -> Option<Handler> {
    let run = control::handler(x)
        .or_else(|| data_transfer::handler(x))
        .or_else(|| arithmetic::handler(x))
        .or_else(|| comparison::handler(x))
        .or_else(|| transcendental::handler(x))?;
    i.imm2 = match x.memory_size() {
        MemorySize::Float32 => Format::F32,
        MemorySize::Float64 => Format::F64,
        MemorySize::Int16 => Format::I16,
        MemorySize::Int32 => Format::I32,
        _ => Format::I64,
    } as u8;
    if i.memory() {
        use iced_x86::Register as R;
        i.r2 = match x.memory_segment() {
            R::ES => 0,
            R::CS => 1,
            R::SS => 2,
            R::FS => 4,
            R::GS => 5,
            _ => 3,
        };
    }
    // Two names of one comparison have no operands: ST(0) with ST(1).
    if matches!(x.mnemonic(), M::Fcompp | M::Fucompp) {
        i.r1 = 1;
    }
    Some(run)
}
