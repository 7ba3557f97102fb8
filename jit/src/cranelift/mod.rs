//! The optimising back end: a region becomes one Cranelift function.
//!
//! The kernels' text runs over a third [`trimaran_cpu::ops::Ops`] (`ops.rs`) whose values are CLIF values. `plan.rs`
//! finds what must be known of the region before (with `observe.rs`), `writer.rs` makes blocks, edges and ways out,
//! `flags.rs` keeps the status flags as declarations, `memory.rs` looks into the TLB, `values.rs` folds constants, `vectors.rs`
//! and its neighbours are SSE.

#[cfg(all(test, feature = "arm64"))]
mod aarch64_tests;
mod explain;
mod flags;
mod helpers;
mod memory;
mod observe;
mod ops;
mod plan;
#[cfg(test)]
mod random_code;
pub mod stubs;
#[cfg(test)]
mod tests;
mod values;
mod vector_floats;
mod vector_table;
mod vectors;
mod writer;

use crate::abi::{Code, Explanation, Job, Untranslatable};
use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::UserFuncName;
use cranelift_codegen::isa::{self, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use std::sync::Arc;

/// How much work the compiler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// `opt_level=none`: 0.6 to 0.8 of the time.
    Quick,
    /// `opt_level=speed`: code that is 10 to 30 % faster.
    Speed,
}

/// The compiler with its settings and reusable buffers; one a thread.
pub struct Cranelift {
    /// None: no back end for this host.
    isa: Option<Arc<dyn TargetIsa>>,
    context: Context,
    functions: FunctionBuilderContext,
}

fn failed(what: impl std::fmt::Display) -> Untranslatable {
    Untranslatable(what.to_string())
}

/// A target with our settings.
fn settings_for(target: &isa::Builder, opt_level: &str) -> Result<Arc<dyn TargetIsa>, Untranslatable> {
    let mut flags = settings::builder();
    let verify = if cfg!(debug_assertions) { "true" } else { "false" };
    for (name, value) in [
        ("opt_level", opt_level),
        ("regalloc_algorithm", "backtracking"),
        ("enable_verifier", verify),
        // `return_call` wants them on x86-64.
        ("preserve_frame_pointers", "true"),
        ("enable_probestack", "false"),
        ("unwind_info", "false"),
        // Another processor or a device may write between two loads of a guest address.
        ("enable_alias_analysis", "false"),
    ] {
        flags.set(name, value).map_err(failed)?;
    }
    target.finish(settings::Flags::new(flags)).map_err(failed)
}

impl Cranelift {
    pub fn new() -> Self {
        #[cfg(test)]
        return Self::with_effort(tests::next_effort());
        #[cfg(not(test))]
        Self::with_effort(Effort::Quick)
    }
    pub fn with_effort(effort: Effort) -> Self {
        Self::for_target(cranelift_native::builder().ok(), effort)
    }
    /// For another host, by Cranelift's name of it ("aarch64"): to look at its code.
    pub fn for_arch(name: &str, effort: Effort) -> Self {
        Self::for_target(isa::lookup_by_name(name).ok(), effort)
    }
    fn for_target(target: Option<isa::Builder>, effort: Effort) -> Self {
        let level = if effort == Effort::Quick { "none" } else { "speed" };
        let isa = target.and_then(|b| settings_for(&b, level).ok());
        Cranelift { isa, context: Context::new(), functions: FunctionBuilderContext::new() }
    }

    pub fn compile(&mut self, job: &Job) -> Result<Code, Untranslatable> {
        let isa = self.isa.clone().ok_or_else(|| failed("Cranelift knows no such host"))?;
        if job.runtime.refill_preserving == 0 || job.runtime.settle_preserving == 0 {
            return Err(failed("the stubs are missing"));
        }
        self.context.clear();
        self.context.func.signature = writer::entry_signature();
        self.context.func.name = UserFuncName::user(0, 0);
        let plan = plan::Plan::new(job.region, vectors::has_vectors(&*isa));
        let builder = FunctionBuilder::new(&mut self.context.func, &mut self.functions);
        if let Err(error) = writer::write(builder, &*isa, job, &plan) {
            // What the frontend had begun is not to be taken up again.
            self.functions = FunctionBuilderContext::new();
            return Err(error);
        }
        let intermediate = job.knobs.explain.then(|| explain::lines(&self.context.func));
        let code = match self.context.compile(&*isa, &mut ControlPlane::default()) {
            Ok(code) => code,
            Err(error) => return Err(Untranslatable(format!("{:?}", error.inner))),
        };
        if !code.buffer.relocs().is_empty() {
            return Err(failed("the code has relocations"));
        }
        let explanation = intermediate
            .map(|intermediate| Explanation { intermediate, origins: explain::origins(&code.buffer) });
        // Instructions are the region's, which the engine keeps.
        Ok(Code { bytes: code.buffer.data().to_vec(), keep: Box::new(()), jumps: Vec::new(), explanation })
    }
}
