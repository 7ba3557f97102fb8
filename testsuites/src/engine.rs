//! Which engine a test runs: `TRIMARAN_ENGINE` says it.

use std::sync::Arc;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_jit::{Jit, JitOptions, Tier};

/// The engine of a name: `interp`, `jit`, or `jit-emit`, `jit-cranelift`, `jit-all` for one tier.
pub fn named(name: &str) -> Result<Arc<dyn EngineFactory>, String> {
    let jit = |tier| Ok(Arc::new(Jit { options: JitOptions { tier, ..JitOptions::default() } }) as Arc<_>);
    match name {
        "interp" => Ok(Arc::new(Interpreter)),
        "jit" => Ok(Arc::new(Jit::default())),
        "jit-emit" => jit(Tier::Emit),
        "jit-cranelift" => jit(Tier::Cranelift),
        "jit-all" => jit(Tier::All),
        _ => Err(format!(
            "TRIMARAN_ENGINE={name}: no such engine; interp, jit, jit-emit, jit-cranelift, jit-all"
        )),
    }
}

/// The engine that `TRIMARAN_ENGINE` names; the interpreter without it.
pub fn from_environment() -> Result<Arc<dyn EngineFactory>, String> {
    named(&std::env::var("TRIMARAN_ENGINE").unwrap_or_else(|_| "interp".into()))
}
