//! The least that a processor runs in: RAM, and nothing else on its bus. For tests and measurements of instructions.

use crate::bus::{Bus, GeneralProtection, Page};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// RAM from address 0 on.
#[derive(Debug, Default)]
pub struct Bare {
    /// Bytes of RAM.
    pub ram: u64,
    /// A page within it that is none.
    pub absent: Option<u64>,
    /// How often FERR# was raised.
    pub x87_errors: AtomicU32,
}

impl Bare {
    pub fn new(ram: u64) -> Self {
        Bare { ram, ..Bare::default() }
    }
}

impl Bus for Bare {
    fn page(&self, address: u64, _: bool) -> Page {
        let page = address & !0xFFF;
        if page < self.ram && self.absent != Some(page) {
            Page::Ram { offset: page, writable: true }
        } else {
            Page::Mmio
        }
    }
    /// The address, so that a test sees what was read.
    fn mmio_read(&self, _: usize, address: u64, size: u8) -> u64 {
        address & (!0 >> (64 - u32::from(size) * 8))
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn port_read(&self, _: usize, _: u16, _: u8) -> u32 {
        0
    }
    fn port_write(&self, _: usize, _: u16, _: u8, _: u32) {}
    fn acknowledge_interrupt(&self, _: usize) -> Option<u8> {
        None
    }
    fn clock(&self, _: usize) -> u64 {
        0
    }
    fn read_apic_msr(&self, _: usize, _: u32) -> Option<Result<u64, GeneralProtection>> {
        None
    }
    fn write_apic_msr(&self, _: usize, _: u32, _: u64) -> Option<Result<(), GeneralProtection>> {
        None
    }
    fn task_priority(&self, _: usize) -> u8 {
        0
    }
    fn set_task_priority(&self, _: usize, _: u8) {}
    fn random(&self) -> u64 {
        4
    }
    fn x87_error(&self, _: usize) {
        self.x87_errors.fetch_add(1, SeqCst);
    }
}
