//! Which engine a test runs: `TRIMARAN_ENGINE` says it.

use std::cell::Cell;
use std::sync::{Arc, OnceLock};
use trimaran_accel::Kvm;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_cpu::model::Model;
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

/// The host's KVM; the reason if it has none.
pub fn kvm() -> Result<Arc<Kvm>, String> {
    static KVM: OnceLock<Result<Arc<Kvm>, String>> = OnceLock::new();
    KVM.get_or_init(|| Kvm::open().map(Arc::new).map_err(|reason| reason.to_string())).clone()
}

/// `model` as far as the engine of a name can be it.
pub fn model(name: &str, model: Model) -> Model {
    match kvm() {
        Ok(kvm) if name == "kvm" => kvm.reduce(&model),
        _ => model,
    }
}

/// The engine of a name: `interp`, `jit`, `kvm`, or `jit-emit`, `jit-cranelift`, `jit-all` for one tier.
pub fn named(name: &str) -> Result<Arc<dyn EngineFactory>, String> {
    if name == "kvm" {
        return Ok(kvm()?);
    }
    if name == "interp" {
        return Ok(Arc::new(Interpreter));
    }
    match options(name) {
        Some(options) => Ok(Arc::new(Jit { options })),
        None => Err(format!(
            "TRIMARAN_ENGINE={name}: no such engine; interp, jit, jit-emit, jit-cranelift, jit-all, kvm"
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

thread_local! {
    static STANDS_IN: Cell<bool> = const { Cell::new(false) };
}

/// Calls `f` with the interpreter in place of the engine that `TRIMARAN_ENGINE` names, as the processor that that engine
/// can be: whether a program of [`crate::system`] is one for it at all.
pub fn stand_in<R>(f: impl FnOnce() -> R) -> R {
    struct Ends;
    impl Drop for Ends {
        fn drop(&mut self) {
            STANDS_IN.set(false);
        }
    }
    STANDS_IN.set(true);
    let _ends = Ends;
    f()
}

/// The engine that programs of [`crate::system`] run on.
pub fn of_programs() -> String {
    if STANDS_IN.get() { "interp".into() } else { name_from_environment() }
}
