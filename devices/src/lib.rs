//! The chips of a PC, pure: register accesses, pins and virtual time go in, effects come out.

pub mod block;
pub mod chip;
pub mod pci;
pub mod i440fx;
pub mod pci_config;
pub mod piix3;
#[cfg(test)]
mod testing;
pub mod ide;
#[cfg(test)]
mod bench;
pub mod debug_port;
pub mod i8042;
pub mod pic;
pub mod pit;
mod ports;
pub mod ps2;
pub mod rtc;
pub mod dma8237;
pub mod parallel;
pub mod uart;
pub mod vga;
pub mod lapic;
pub mod floppy;
pub mod fw_cfg;
pub mod hpet;
pub mod ioapic;
pub mod piix4_pm;
