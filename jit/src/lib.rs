//! The translator engine: guest code becomes host code.
//!
//! A block that the interpreter has run often enough becomes the head of a *region* (`region.rs`): basic blocks of
//! one page. A back end makes host code of it: the single-pass emitter (x86-64 hosts), or Cranelift (any host).
//! `engine.rs` finds, enters, links and drops regions; `runtime.rs` is what their code calls. What code and engine
//! agree on stands in `abi.rs`.

pub mod abi;
mod background;
mod buffer;
pub mod cranelift;
#[cfg(target_arch = "x86_64")]
pub mod emitter;
mod engine;
mod links;
mod listing;
mod perf_map;
mod places;
pub mod region;
pub mod runtime;
pub mod slots;
mod stats;
mod stubs;
mod translations;
mod tree;

pub use engine::{Jit, JitOptions, Tier};

/// Most bytes of [`JitOptions::code_cache`]; more is cut to it.
pub const MOST_CODE: usize = 1 << 30;
