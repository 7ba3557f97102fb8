//! Tests of the unit: our arithmetic against the host's, and instructions through a small machine.

#[cfg(target_arch = "x86_64")]
mod against_host;
mod instructions;
