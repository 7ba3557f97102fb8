//! MMX and SSE to SSE4.2, AES, PCLMULQDQ, and the save areas. One file per group of SDM Vol. 1's summary; a
//! group's `handler` is its table.
//!
//! An operation is a function from values to a value. [`operands`] wraps it: checks, source, operation, commit.
//! Integer operations know nothing of MMX: those that stay within lanes run on the low half of a 128-bit
//! value, the few others are told the operand's size. Floating point runs on the host's SSE unit
//! (`host_sse.rs`) or in software (`soft_sse.rs`): the same functions with the same results.

mod checks;
mod comparison;
mod conversion;
mod crypto;
mod data_transfer;
mod floating_point;
#[cfg(target_arch = "x86_64")]
mod host_sse;
mod lanes;
mod logical_shift;
mod operands;
mod packed_integer;
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
use iced_x86::{Instruction, OpKind};

/// The handler of an instruction of this unit.
pub fn handler(x: &Instruction, i: &mut Insn) -> Option<Handler> {
    if x.is_string_instruction() {
        return None;
    }
    data_transfer::handler(x, i)
        .or_else(|| logical_shift::handler(x))
        .or_else(|| packed_integer::handler(x))
        .or_else(|| shuffle::handler(x))
        .or_else(|| floating_point::handler(x))
        .or_else(|| comparison::handler(x))
        .or_else(|| conversion::handler(x))
        .or_else(|| state_save::handler(x))
        .or_else(|| crypto::handler(x, i))
        .or_else(|| string_compare::handler(x))
}

/// Whether this is the MMX form of an instruction that has both.
fn is_mmx(x: &Instruction) -> bool {
    let mm = |n: u32| x.op_kind(n) == OpKind::Register && x.op_register(n).is_mm();
    (0..x.op_count().min(3)).any(mm)
}
