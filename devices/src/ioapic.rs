//! The 82093AA I/O APIC with the EOI register of its successors (Intel 82093AA datasheet; Intel ICH
//! datasheets, "EOI Register").

use serde::{Deserialize, Serialize};

use crate::chip::{ApicMessage, Chip, Cx, Delivery, Effect, Shorthand, StateError, decode, encode, open_bus};

/// Window of the memory-mapped registers.
pub const REGISTERS: u8 = 0;

/// Input pins.
pub const PINS: usize = 24;

/// Offsets in the window.
mod mmio {
    pub const IOREGSEL: u64 = 0x00;
    pub const IOWIN: u64 = 0x10;
    pub const EOI: u64 = 0x40;
}

/// Registers behind IOREGSEL.
mod reg {
    pub const IOAPICID: u8 = 0x00;
    pub const IOAPICVER: u8 = 0x01;
    pub const IOAPICARB: u8 = 0x02;
    pub const IOREDTBL: u8 = 0x10;
    pub const IOREDTBL_LAST: u8 = 0x3F;
}

/// Version 0x20 (with EOI register), entries 0 to 23.
const IOAPICVER: u32 = 0x0017_0020;

/// Redirection table entry bits.
const LOGICAL: u64 = 1 << 11;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bits that software writes: all but delivery status and remote IRR.
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

const VERSION: u16 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    select: u8,
    id: u8,
    table: [u64; PINS],
    /// Levels of the pins.
    lines: u32,
}

/// An I/O APIC. Input pins 0 to 23; a level of true is "asserted" whatever the polarity bit of the entry
/// says: board lines carry meaning, not voltage, and the bit is only stored.
pub struct Ioapic {
    state: State,
}

impl Ioapic {
    pub fn new(id: u8) -> Self {
        Ioapic { state: State { select: 0, id: id & 0xF, table: [MASKED; PINS], lines: 0 } }
    }

    /// A local APIC finished a level-triggered interrupt: lines that are still asserted ask again.
    pub fn end_of_interrupt(&mut self, cx: &mut Cx, vector: u8) {
        for pin in 0..PINS {
            let entry = &mut self.state.table[pin];
            if *entry & LEVEL != 0 && *entry as u8 == vector && *entry & REMOTE_IRR != 0 {
                *entry &= !REMOTE_IRR;
                self.service_level(cx, pin);
            }
        }
    }

    /// The message of an entry; none for reserved delivery modes.
    fn message(entry: u64) -> Option<ApicMessage> {
        let delivery = match entry >> 8 & 7 {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            7 => Delivery::ExtInt,
            _ => return None,
        };
        Some(ApicMessage {
            destination: (entry >> 56) as u32,
            logical: entry & LOGICAL != 0,
            delivery,
            vector: entry as u8,
            level_triggered: entry & LEVEL != 0,
            assert: true,
            shorthand: Shorthand::None,
        })
    }

    /// Sends an asserted, unmasked level interrupt that no processor serves yet.
    fn service_level(&mut self, cx: &mut Cx, pin: usize) {
        let entry = self.state.table[pin];
        let asserted = self.state.lines & 1 << pin != 0;
        if !asserted || entry & LEVEL == 0 || entry & (MASKED | REMOTE_IRR) != 0 {
            return;
        }
        if let Some(message) = Self::message(entry) {
            if matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority) {
                self.state.table[pin] |= REMOTE_IRR;
            }
            cx.push(Effect::Apic(message));
        }
    }

    fn read_register(&self) -> u32 {
        match self.state.select {
            reg::IOAPICID | reg::IOAPICARB => u32::from(self.state.id) << 24,
            reg::IOAPICVER => IOAPICVER,
            select @ reg::IOREDTBL..=reg::IOREDTBL_LAST => {
                let index = usize::from(select - reg::IOREDTBL);
                self.state.table.get(index / 2).map_or(0, |entry| (entry >> (index % 2 * 32)) as u32)
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, cx: &mut Cx, value: u32) {
        match self.state.select {
            reg::IOAPICID => self.state.id = (value >> 24) as u8 & 0xF,
            select @ reg::IOREDTBL..=reg::IOREDTBL_LAST => {
                let index = usize::from(select - reg::IOREDTBL);
                let (pin, shift) = (index / 2, index % 2 * 32);
                let Some(entry) = self.state.table.get_mut(pin) else { return };
                let mask = WRITABLE & 0xFFFF_FFFF << shift;
                *entry = *entry & !mask | u64::from(value) << shift & mask;
                if *entry & LEVEL == 0 {
                    // An edge entry has no interrupt in service: guests clear a stuck remote IRR like this.
                    *entry &= !REMOTE_IRR;
                }
                self.service_level(cx, pin);
            }
            _ => {}
        }
    }
}

impl Chip for Ioapic {
    fn name(&self) -> &'static str {
        "ioapic"
    }

    fn reset(&mut self, _cx: &mut Cx) {
        self.state = State { lines: self.state.lines, ..Ioapic::new(self.state.id).state };
    }

    fn read(&mut self, _cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        if window != REGISTERS {
            return open_bus(size);
        }
        let value = match offset & !3 {
            mmio::IOREGSEL => u32::from(self.state.select),
            mmio::IOWIN => self.read_register(),
            _ => return open_bus(size),
        };
        u64::from(value) >> (offset % 4 * 8) & open_bus(size)
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        match offset {
            _ if window != REGISTERS => {}
            mmio::IOREGSEL => self.state.select = value as u8,
            mmio::IOWIN if size >= 4 => self.write_register(cx, value as u32),
            mmio::EOI => self.end_of_interrupt(cx, value as u8),
            _ => {}
        }
    }

    /// Edges on a masked pin are lost, as the datasheet says.
    fn input(&mut self, cx: &mut Cx, pin: u8, level: bool) {
        let index = usize::from(pin);
        let Some(&entry) = self.state.table.get(index) else { return };
        let bit = 1u32 << index;
        let rising = level && self.state.lines & bit == 0;
        self.state.lines = if level { self.state.lines | bit } else { self.state.lines & !bit };
        if entry & LEVEL != 0 {
            self.service_level(cx, index);
        } else if rising && entry & MASKED == 0 {
            cx.effects.extend(Self::message(entry).map(Effect::Apic));
        }
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        let entries = state.table.iter().all(|entry| entry & !(WRITABLE | REMOTE_IRR) == 0);
        if !entries || state.id > 0xF || state.lines >> PINS != 0 {
            return Err(StateError::Damaged { chip: self.name(), reason: "register out of range".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        let line = |(pin, entry): (usize, &u64)| {
            let asserted = self.state.lines >> pin & 1;
            format!("pin {pin}: {entry:016x} asserted={asserted}\n")
        };
        self.state.table.iter().enumerate().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn program(bench: &mut Bench<Ioapic>, pin: u64, entry: u64) {
        for half in 0..2 {
            bench.write(REGISTERS, 0, 4, 0x10 + pin * 2 + half);
            bench.write(REGISTERS, 0x10, 4, entry >> (half * 32) & 0xFFFF_FFFF);
        }
    }

    fn vectors(bench: &mut Bench<Ioapic>) -> Vec<u8> {
        let sent = bench.effects.drain(..).filter_map(|effect| match effect {
            Effect::Apic(message) => Some(message.vector),
            _ => None,
        });
        sent.collect()
    }

    #[test]
    fn edges_are_sent_once_and_lost_while_masked() {
        let mut bench = Bench::new(Ioapic::new(0));
        bench.input(4, true);
        bench.input(4, false);
        program(&mut bench, 4, 0x0100_0000_0000_0034);
        assert_eq!(vectors(&mut bench), []);
        bench.input(4, true);
        bench.input(4, true);
        assert_eq!(vectors(&mut bench), [0x34]);
    }

    #[test]
    fn levels_wait_for_the_end_of_interrupt() {
        let mut bench = Bench::new(Ioapic::new(0));
        program(&mut bench, 11, 0xA041);
        bench.input(11, true);
        bench.input(11, true);
        assert_eq!(vectors(&mut bench), [0x41]);
        bench.write(REGISTERS, 0, 4, 0x26);
        assert_eq!(bench.read(REGISTERS, 0x10, 4), 0xE041);
        bench.write(REGISTERS, 0x40, 4, 0x41);
        assert_eq!(vectors(&mut bench), [0x41]);
        bench.input(11, false);
        bench.with(|chip, cx| chip.end_of_interrupt(cx, 0x41));
        assert_eq!(vectors(&mut bench), []);
    }

    #[test]
    fn identification() {
        let mut bench = Bench::new(Ioapic::new(3));
        assert_eq!(bench.read(REGISTERS, 0x10, 4), 3 << 24);
        bench.write(REGISTERS, 0, 4, 1);
        assert_eq!(bench.read(REGISTERS, 0x10, 4), 0x0017_0020);
    }
}
