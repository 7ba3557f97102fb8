//! The PC around the processor: its address map, what firmware finds there, and boot without firmware.

pub mod boot;
pub mod layout;
pub mod tables;
