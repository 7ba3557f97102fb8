//! MMX, SSE to SSE4.2, AVX, AVX2, FMA, AES, SHA, PCLMULQDQ, and the save areas. One file per group of SDM Vol. 1's summary; a
//! group's `handler` is its table.
//!
//! An operation is a function from values to a value. [`operands`] wraps it: checks, source, operation, commit.
//! Integer operations know nothing of MMX: those that stay within lanes run on the low half of a 128-bit
//! value, the few others are told the operand's size. Floating point runs on the host's SSE unit
//! (`host_sse.rs`) or in software (`soft_sse.rs`): the same functions with the same results.

mod avx;
mod checks;
mod comparison;
mod conversion;
mod crypto;
mod data_transfer;
mod floating_point;
mod fma;
mod gather;
#[cfg(target_arch = "x86_64")]
mod host_sse;
mod lanes;
mod logical_shift;
mod operands;
mod packed_integer;
mod sha;
mod shuffle;
mod soft_float;
mod soft_sse;
mod state_save;
mod string_compare;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod tests;

/// The floating-point unit of this host.
#[cfg(target_arch = "x86_64")]
use host_sse as unit;
#[cfg(not(target_arch = "x86_64"))]
use soft_sse as unit;

use crate::insn::{Handler, Insn};
pub use avx::legacy_mnemonic;
use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind};
pub use state_save::{area_size as xsave_area_size, extended_component, in_use};

/// The handler of an instruction of this unit.
pub fn handler(x: &Instruction, i: &mut Insn) -> Option<Handler> {
    if x.is_string_instruction() {
        return None;
    }
    if x.encoding() == EncodingKind::VEX {
        operands::vex_operands(x, i);
        return avx::handler(x, i)
            .or_else(|| fma::handler(x, i))
            .or_else(|| forms(legacy_mnemonic(x.mnemonic()), x, i)?.vex);
    }
    Some(forms(x.mnemonic(), x, i)?.legacy)
}

/// The handlers of an SSE mnemonic; `x` has that or its VEX form.
fn forms(m: Mnemonic, x: &Instruction, i: &mut Insn) -> Option<operands::Forms> {
    data_transfer::handler(m, x, i)
        .or_else(|| logical_shift::handler(m, x))
        .or_else(|| packed_integer::handler(m, x))
        .or_else(|| shuffle::handler(m, x))
        .or_else(|| floating_point::handler(m))
        .or_else(|| comparison::handler(m))
        .or_else(|| conversion::handler(m, x))
        .or_else(|| state_save::handler(m))
        .or_else(|| crypto::handler(m, x, i))
        .or_else(|| string_compare::handler(m))
        .or_else(|| sha::handler(m))
}

/// Whether this is the MMX form of an instruction that has both.
fn is_mmx(x: &Instruction) -> bool {
    let mm = |n: u32| x.op_kind(n) == OpKind::Register && x.op_register(n).is_mm();
    (0..x.op_count().min(3)).any(mm)
}
