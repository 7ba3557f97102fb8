//! The PC around the processor: its chips and their wiring, the address maps, firmware, boot without firmware, the
//! threads that run it, and saved states.

pub mod access_lockstep;
mod board;
pub mod boot;
pub mod builtin;
mod bus;
mod chips;
mod clock;
mod config;
mod consoles;
mod control;
mod direct;
pub mod firmware;
pub mod layout;
mod lent_apic;
pub mod lockstep;
mod machine;
pub mod media;
mod memory;
mod memory_map;
pub mod monitor;
mod paced;
pub mod port_log;
mod ports;
mod random;
mod snapshot;
mod supervisor;
mod switch;
pub mod tables;
mod timers;
mod triggers;
mod vcpus;
mod wiring;

pub use config::{IdeDrive, MachineConfig, MachineError};
pub use consoles::{Console, Sink};
pub use control::Outcome;
pub use machine::{Machine, Stats};
pub use switch::{OnSwitch, SwitchReport};
pub use triggers::{SwitchAt, Trigger};
pub use trimaran_devices as devices;
