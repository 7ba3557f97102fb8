//! The chips of a PC, pure: register accesses, pins and virtual time go in, effects come out.

#[cfg(test)]
mod bench;
pub mod block;
pub mod chip;
pub mod debug_port;
pub mod dma8237;
pub mod floppy;
pub mod fw_cfg;
pub mod hpet;
pub mod i440fx;
pub mod i8042;
pub mod ide;
pub mod ioapic;
pub mod lapic;
pub mod parallel;
pub mod pci;
pub mod pci_config;
pub mod pic;
pub mod piix3;
pub mod piix4_pm;
pub mod pit;
mod ports;
pub mod ps2;
pub mod rtc;
pub mod testdev;
#[cfg(test)]
mod testing;
pub mod uart;
pub mod vga;
