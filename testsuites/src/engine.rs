//! Which engine a test runs: `TRIMARAN_ENGINE` says it.

use std::sync::Arc;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_jit::{Jit, JitOptions, Tier};

/// The translator's options behind a name; None: the interpreter, or no engine at all.
pub fn options(name: &str) -> Option<JitOptions> {
    let tier = match name {
        "jit" => return Some(JitOptions::default()),
        "jit-emit" => Tier::Emit,
        "jit-cranelift" => Tier::Cranelift,
        "jit-all" => Tier::All,
        _ => return None,
    };
    Some(JitOptions { tier, ..JitOptions::default() })
}

/// The engine of a name: `interp`, `jit`, or `jit-emit`, `jit-cranelift`, `jit-all` for one tier.
pub fn named(name: &str) -> Result<Arc<dyn EngineFactory>, String> {
    if name == "interp" {
        return Ok(Arc::new(Interpreter));
    }
    match options(name) {
        Some(options) => Ok(Arc::new(Jit { options })),
        None => Err(format!(
            "TRIMARAN_ENGINE={name}: no such engine; interp, jit, jit-emit, jit-cranelift, jit-all"
        )),
    }
}

/// As [`named`], but every block is translated before it runs for the `warm`th time, so that short tests meet
/// translated code at all.
pub fn eager(name: &str, warm: u32) -> Result<Arc<dyn EngineFactory>, String> {
    match options(name) {
        Some(options) => {
            let foreground = options.tier != Tier::All;
            let options = JitOptions { warm, hot: 4, foreground, code_cache: 1 << 20, ..options };
            Ok(Arc::new(Jit { options }))
        }
        None => named(name),
    }
}

/// The name that `TRIMARAN_ENGINE` gives; the interpreter's without it.
pub fn name_from_environment() -> String {
    std::env::var("TRIMARAN_ENGINE").unwrap_or_else(|_| "jit".into())
}

/// The engine that `TRIMARAN_ENGINE` names; the translator without it.
pub fn from_environment() -> Result<Arc<dyn EngineFactory>, String> {
    named(&name_from_environment())
}
