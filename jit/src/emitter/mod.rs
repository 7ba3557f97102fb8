//! The fast back end for x86-64 hosts: one pass over a region's instructions.
//!
//! Goal: a fifth of a microsecond for a guest instruction, and code as good as one pass allows. Each instruction's
//! kernel runs over [`registers::Emitter`] as its `Ops` (`ops.rs`). Terms:
//!
//! - A *value* (`value.rs`) is a constant, a host register, or an expression over those that is computed
//!   when somebody needs it (`compute.rs`). A register that holds a value is never modified.
//! - The *cache* (`registers.rs`) says which host register a guest register was renamed to, and whether memory
//!   knows. It is empty where a block can be reached otherwise than by falling into it, but for a loop's head
//!   (`loops.rs`).
//! - *Windows* (`windows.rs`) are stretches of memory that were looked up for several accesses.
//! - *Flags* (`flag_state.rs`) are the last declaration; conditions (`conditions.rs`) repeat the operation on the host.
//! - *Vector instructions* are the host's own (`shapes.rs`, `vectors.rs`), and so are most x87 instructions (`x87/`) and
//!   divisions (`division.rs`).
//! - A *snapshot* (`snapshot.rs`) rebuilds the guest's state before an instruction whose access missed the TLB
//!   (`access.rs`, `miss.rs`). It needs no code where nothing misses.
//!
//! Invariants: RDI is the vCPU and RSI the budget everywhere; RAX and RCX hold nothing between two steps; RSP moves
//! only around calls; between two instructions only cached and pinned registers hold anything. Code of side exits is
//! emitted at once, into a second piece (`cold`) that is appended at the end, from the state at the branch.

mod access;
mod compute;
mod conditions;
mod control;
mod division;
mod encode;
mod flag_state;
mod loops;
#[cfg(test)]
mod measure;
pub(crate) mod miss;
mod ops;
mod registers;
mod shapes;
mod snapshot;
#[cfg(test)]
mod tests;
mod value;
#[cfg(test)]
mod vector_tests;
mod vectors;
mod windows;
pub(crate) mod x87;

use crate::abi::{Code, Job, Untranslatable};
use registers::{Emitter, NO_REGISTER};
use snapshot::Keep;

/// Translates a region.
pub fn compile(job: &Job) -> Result<Code, Untranslatable> {
    let mut e = Emitter::new(job, false);
    e.region();
    if e.failed == Some(NO_REGISTER) {
        e = Emitter::new(job, true);
        e.region();
    }
    e.check()?;
    let snapshots = std::mem::take(&mut e.snapshots);
    let flags = std::mem::take(&mut e.flags_snapshots);
    let keep = Box::new(Keep::new(snapshots, flags, (e.code64, e.ymm), job.owner));
    e.common_code(&keep);
    let Emitter { asm, cold, labels, .. } = e;
    let (bytes, jumps) =
        asm.finish(&cold, &labels).ok_or_else(|| Untranslatable("a jump to nowhere".into()))?;
    Ok(Code { bytes, keep, jumps, explanation: None })
}
