//! To be written.

use crate::insn::{Handler, Insn};
use iced_x86::Instruction;

/// The handler of an instruction of this unit.
pub fn handler(_x: &Instruction, _i: &mut Insn) -> Option<Handler> {
    None
}
