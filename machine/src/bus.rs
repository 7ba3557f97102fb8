//! The board as the processors see it.

use crate::board::Board;
use crate::chips::{ChipId, locked};
use crate::control::Request;
use crate::memory_map::Target;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use trimaran_cpu::bus::{ApicRegisters, ApicSink, Bus, GeneralProtection, MemoryRange, Page};
use trimaran_devices::chip::{PCI_CONFIG, open_bus};
use trimaran_devices::lapic::{
    self, IA32_APIC_BASE, IA32_TSC_DEADLINE, Lapic, X2APIC_FIRST, X2APIC_LAST, tsc_ticks,
};
use trimaran_devices::pci_config::{CONFIG_ADDRESS, CONFIG_DATA};
use trimaran_devices::pic::Pic;

/// Port of the coprocessor's error latch.
const FERR_CLEAR: u16 = 0xF0;

impl Board {
    fn in_smm(&self, cpu: usize) -> bool {
        self.smm.get(cpu).is_some_and(|smm| smm.load(Relaxed))
    }

    pub(crate) fn chip_read(&self, id: ChipId, window: u8, offset: u64, size: u8) -> u64 {
        let slot = self.chips.get(id);
        let value = self.call_any(slot, |chip, cx| chip.read(cx, window, offset, size));
        self.pump(id);
        value.unwrap_or(open_bus(size)) & open_bus(size)
    }

    pub(crate) fn chip_write(&self, id: ChipId, window: u8, offset: u64, size: u8, value: u64) {
        let slot = self.chips.get(id);
        self.call_any(slot, |chip, cx| chip.write(cx, window, offset, size, value));
        match id {
            ChipId::Hpet => self.hpet_called(),
            // A request may have waited for its channel to be programmed.
            ChipId::Dma => {
                self.floppy_dma();
                self.settle();
            }
            _ => self.pump(id),
        }
    }

    /// A processor accesses a port: a trigger may wait for that.
    fn port_trigger(&self, port: u16, size: u8) {
        if self.triggers.port(port, size) {
            self.ask(Request::Switch);
        }
    }

    /// One access to CONFIG_DATA + `offset` within a dword. None: no such function.
    fn config_target(&self, offset: u8) -> Option<(ChipId, u64)> {
        let target = locked(&self.config_address).target(offset)?;
        if target.bus != 0 {
            return None;
        }
        let id = self.chips.pci_function(target.device, target.function)?;
        Some((id, u64::from(target.register)))
    }

    fn read_port(&self, port: u16, size: u8) -> u32 {
        if port == CONFIG_ADDRESS
            && let Some(value) = locked(&self.config_address).read(size)
        {
            return value;
        }
        if in_config_data(port, size) {
            let target = self.config_target((port - CONFIG_DATA) as u8);
            return target.map_or(open_bus(size) as u32, |(id, register)| {
                self.chip_read(id, PCI_CONFIG, register, size) as u32
            });
        }
        let last = port.wrapping_add(u16::from(size) - 1);
        match self.ports.find(port) {
            Some(range) if last <= range.last && last >= port => {
                self.chip_read(range.id, range.window, u64::from(port - range.first), size) as u32
            }
            found if size == 1 => found.map_or(0xFF, |range| {
                self.chip_read(range.id, range.window, u64::from(port - range.first), 1) as u32
            }),
            _ => (0..size)
                .fold(0, |value, i| value | self.read_port(port.wrapping_add(u16::from(i)), 1) << (i * 8)),
        }
    }

    pub(crate) fn write_port(&self, port: u16, size: u8, value: u32) {
        if port == CONFIG_ADDRESS && locked(&self.config_address).write(size, value) {
            return;
        }
        if in_config_data(port, size) {
            if let Some((id, register)) = self.config_target((port - CONFIG_DATA) as u8) {
                self.chip_write(id, PCI_CONFIG, register, size, u64::from(value));
            }
            return;
        }
        let last = port.wrapping_add(u16::from(size) - 1);
        match self.ports.find(port) {
            Some(range) if size == 1 || last <= range.last && last >= port => {
                let offset = u64::from(port - range.first);
                self.chip_write(range.id, range.window, offset, size, u64::from(value));
            }
            None if size == 1 => {
                if port == FERR_CLEAR {
                    self.ferr(false);
                }
            }
            _ => (0..size).for_each(|i| {
                self.write_port(port.wrapping_add(u16::from(i)), 1, value >> (i * 8) & 0xFF);
            }),
        }
    }
}

/// Whether an access lies wholly in CONFIG_DATA.
fn in_config_data(port: u16, size: u8) -> bool {
    (CONFIG_DATA..CONFIG_DATA + 4).contains(&port) && port - CONFIG_DATA + u16::from(size) <= 4
}

fn is_apic_msr(index: u32) -> bool {
    matches!(index, IA32_APIC_BASE | IA32_TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST)
}

impl Bus for Board {
    fn page(&self, address: u64, smm: bool) -> Page {
        self.memory.page(address, smm)
    }

    fn memory_ranges(&self) -> Vec<MemoryRange> {
        self.memory.ram_ranges()
    }

    fn mmio_read(&self, cpu: usize, address: u64, size: u8) -> u64 {
        let ram = |offset| {
            let mut bytes = [0xFF; 8];
            self.memory.ram().read(offset, &mut bytes[..usize::from(size.min(8))]);
            u64::from_le_bytes(bytes) & open_bus(size)
        };
        match self.memory.target(address, self.in_smm(cpu)) {
            Target::Nothing | Target::Split { read: None, .. } => open_bus(size),
            Target::Ram { delta, .. } | Target::Split { read: Some(delta), .. } => {
                ram(address.wrapping_add(delta))
            }
            Target::Chip { id, window, base } => self.chip_read(id, window, address - base, size),
            Target::LocalApic { base } => {
                self.chip_read(ChipId::Lapic(cpu), lapic::XAPIC, address - base, size)
            }
        }
    }

    fn mmio_write(&self, cpu: usize, address: u64, size: u8, value: u64) {
        match self.memory.target(address, self.in_smm(cpu)) {
            Target::Nothing | Target::Ram { writable: false, .. } => {}
            Target::Ram { delta, .. } | Target::Split { write: delta, .. } => {
                let bytes = value.to_le_bytes();
                self.memory.ram().write(address.wrapping_add(delta), &bytes[..usize::from(size.min(8))]);
            }
            Target::Chip { id, window, base } => self.chip_write(id, window, address - base, size, value),
            Target::LocalApic { base } => {
                self.chip_write(ChipId::Lapic(cpu), lapic::XAPIC, address - base, size, value);
            }
        }
    }

    fn port_read(&self, _cpu: usize, port: u16, size: u8) -> u32 {
        self.port_trigger(port, size);
        self.read_port(port, size)
    }

    fn port_write(&self, _cpu: usize, port: u16, size: u8, value: u32) {
        self.port_trigger(port, size);
        self.log_port(port, size, value);
        self.write_port(port, size, value);
    }

    fn acknowledge_interrupt(&self, cpu: usize) -> Option<u8> {
        let slot = self.chips.lapics.get(cpu)?;
        let external = self.call(slot, |lapic, cx| {
            let pending = lapic.extint_pending();
            if pending {
                lapic.extint_acknowledged(cx);
            }
            pending
        });
        if external {
            return Some(self.call(&self.chips.pic, Pic::acknowledge));
        }
        self.call(slot, Lapic::acknowledge)
    }

    fn clock(&self, _cpu: usize) -> u64 {
        tsc_ticks(self.clock.now(), self.tsc_khz)
    }

    fn read_apic_msr(&self, cpu: usize, index: u32) -> Option<Result<u64, GeneralProtection>> {
        let slot = self.chips.lapics.get(cpu).filter(|_| is_apic_msr(index))?;
        Some(self.call(slot, |lapic, cx| lapic.read_msr(cx, index)).map_err(|_| GeneralProtection))
    }

    fn write_apic_msr(&self, cpu: usize, index: u32, value: u64) -> Option<Result<(), GeneralProtection>> {
        let slot = self.chips.lapics.get(cpu).filter(|_| is_apic_msr(index))?;
        let written = self.call(slot, |lapic, cx| lapic.write_msr(cx, index, value));
        if index == IA32_APIC_BASE {
            self.request_remap(slot.id);
        }
        Some(written.map_err(|_| GeneralProtection))
    }

    fn task_priority(&self, cpu: usize) -> u8 {
        self.chips.lapics.get(cpu).map_or(0, |slot| slot.lock().cr8())
    }

    fn set_task_priority(&self, cpu: usize, class: u8) {
        if let Some(slot) = self.chips.lapics.get(cpu) {
            self.call(slot, |lapic, cx| lapic.set_cr8(cx, class));
        }
    }

    fn random(&self) -> u64 {
        locked(&self.random).next()
    }

    fn x87_error(&self, _cpu: usize) {
        self.ferr(true);
    }

    fn cpu_count(&self) -> usize {
        self.chips.lapics.len()
    }

    fn tsc_offset_changed(&self, cpu: usize, offset: u64) {
        if let Some(slot) = self.chips.lapics.get(cpu) {
            self.call(slot, |lapic, cx| lapic.set_tsc_offset(cx, offset));
        }
    }

    fn lend_apic(&self, sink: &Arc<dyn ApicSink>, take: &mut dyn FnMut(&ApicRegisters) -> bool) -> bool {
        self.lend_local_apic(sink, take)
    }

    fn give_back_apic(&self, registers: &mut dyn FnMut() -> Option<ApicRegisters>) -> bool {
        self.take_local_apic_back(registers)
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.call(&self.chips.ioapic, |ioapic, cx| ioapic.end_of_interrupt(cx, vector));
    }

    fn smm_changed(&self, cpu: usize, smm: bool) {
        if let Some(flag) = self.smm.get(cpu) {
            flag.store(smm, Release);
        }
    }
}
