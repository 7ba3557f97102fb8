//! The fast back end for x86-64 hosts: one pass over a region's instructions.

use crate::abi::{Code, Job, Untranslatable};

/// Translates a region.
pub fn compile(_job: &Job) -> Result<Code, Untranslatable> {
    Err(Untranslatable("not written yet".into()))
}
