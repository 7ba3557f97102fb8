//! Conformance runners, oracles and differential testers for the processor.

pub mod flat;
pub mod moo;
pub mod sst286;
