//! What firmware leaves behind, for guests that start without it.

use crate::board::Board;
use crate::boot::DirectBoot;
use crate::config::MachineError;
use crate::tables::Hardware;
use crate::vcpus::Engines;

/// Loads the kernel and brings board and bootstrap processor to where its boot protocol wants them.
pub fn set_up(
    _board: &Board,
    _boot: &DirectBoot,
    _hardware: &Hardware,
    _engines: &mut Engines,
) -> Result<(), MachineError> {
    Ok(())
}
