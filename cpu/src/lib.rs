//! The guest processor: state, decoding, semantics, MMU, interpreter. Uses nothing else of Trimaran; the machine
//! around it is behind [`bus::Bus`].

pub mod bare;
pub mod blocks;
pub mod bus;
#[cfg(any(test, feature = "checking"))]
pub mod checking;
mod decode;
pub mod engine;
pub mod fault;
pub mod features;
pub mod flags;
mod fpu;
mod helpers;
mod hosted;
pub mod insn;
pub mod interp;
pub mod kernels;
pub mod memory;
pub mod mmu;
pub mod model;
pub mod ops;
pub mod ram;
mod run;
pub mod shared;
mod simd;
pub mod state;
pub mod tlb;
pub mod trace;
pub mod translate;
mod vcpu;

pub use fpu::{INITIAL_CONTROL, status as x87_status, use_soft, uses_soft};
pub use vcpu::{Counters, Vcpu, VcpuConfig};
