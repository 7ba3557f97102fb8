//! Conformance runners, oracles and differential testers for the processor.

pub mod apic_guest;
pub mod conform;
pub mod cpio;
pub mod differential;
pub mod engine;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod faults;
pub mod flat;
pub mod fuzz;
pub mod guest;
pub mod modes_guest;
pub mod moo;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod silicon;
pub mod system;
pub mod vectors;
pub mod workbench;
