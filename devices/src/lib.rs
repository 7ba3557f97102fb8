//! The chips of a PC, pure: register accesses, pins and virtual time go in, effects come out.

pub mod block;
pub mod chip;
pub mod pci;
