//! The optimising back end: a region becomes one Cranelift function.

use crate::abi::{Code, Job, Untranslatable};

/// The compiler with its settings and reusable buffers; one a thread.
pub struct Cranelift;

impl Cranelift {
    pub fn new() -> Self {
        Cranelift
    }
    pub fn compile(&mut self, _job: &Job) -> Result<Code, Untranslatable> {
        Err(Untranslatable("not written yet".into()))
    }
}
