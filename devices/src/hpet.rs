//! The high precision event timers (IA-PC HPET Specification 1.0a): three comparators, 100 MHz.

use serde::{Deserialize, Serialize};

use crate::chip::{
    ApicMessage, Chip, Cx, Delivery, Effect, Nanos, Shorthand, StateError, decode, encode, open_bus,
};

/// Window of the registers: 1 KiB.
pub const REGISTERS: u8 = 0;

/// Output pins 0 to 23 are IOAPIC pins. In legacy replacement, timer 0 drives this one instead (IRQ0 of the
/// 8259A and IOAPIC pin 2) …
pub const LEGACY0: u8 = 32;
/// … and timer 1 this one (IRQ8). The board disconnects the 8254 and the RTC while
/// [`Hpet::legacy_route`] holds.
pub const LEGACY1: u8 = 33;

/// Main counter period in femtoseconds.
pub const PERIOD_FS: u64 = 10_000_000;
const NANOS_PER_TICK: u64 = PERIOD_FS / 1_000_000;

/// IOAPIC pins that each timer can drive: 20 to 23 and 2.
pub const ROUTES: u32 = 0x00F0_0004;

const TIMERS: usize = 3;
const VERSION: u16 = 1;

/// Register offsets.
mod reg {
    pub const CAPABILITIES: u64 = 0x000;
    pub const CONFIGURATION: u64 = 0x010;
    pub const INTERRUPT_STATUS: u64 = 0x020;
    pub const MAIN_COUNTER: u64 = 0x0F0;
    pub const TIMERS: u64 = 0x100;
}

/// Revision 1, three timers, 64-bit counter, legacy replacement, vendor 8086h.
const CAPABILITIES: u64 = PERIOD_FS << 32 | 0x8086_0000 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;

/// General configuration.
const ENABLE_CNF: u64 = 1;
const LEG_RT_CNF: u64 = 2;

/// Timer configuration.
const INT_TYPE_LEVEL: u64 = 1 << 1;
const INT_ENB: u64 = 1 << 2;
const TYPE_PERIODIC: u64 = 1 << 3;
const VAL_SET: u64 = 1 << 6;
const MODE_32: u64 = 1 << 8;
const FSB_EN: u64 = 1 << 14;
const WRITABLE: u64 = 0x7F4E;
/// Periodic, 64-bit, FSB capable; the routes in the high half.
const TIMER_CAPABILITIES: u64 = (ROUTES as u64) << 32 | 1 << 15 | 1 << 5 | 1 << 4;

/// Least time between two interrupts of a periodic timer: faster ones would be lost in each other anyway.
const LEAST_PERIOD: Nanos = 1_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Timer {
    configuration: u64,
    comparator: u64,
    period: u64,
    fsb: u64,
    fire_at: Option<Nanos>,
    /// The pin that it drives high now.
    driven: Option<u8>,
}

impl Timer {
    fn is(&self, bits: u64) -> bool {
        self.configuration & bits != 0
    }

    fn mask(&self) -> u64 {
        if self.is(MODE_32) { 0xFFFF_FFFF } else { u64::MAX }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    configuration: u64,
    interrupt_status: u64,
    /// Main counter at `started`.
    counter: u64,
    started: Nanos,
    timers: [Timer; TIMERS],
}

/// The event timer block.
pub struct Hpet {
    state: State,
}

impl Hpet {
    pub fn new() -> Self {
        let mut state = State::default();
        for timer in &mut state.timers {
            timer.comparator = u64::MAX;
        }
        Hpet { state }
    }

    /// Timers 0 and 1 replace the 8254's and the RTC's interrupts.
    pub fn legacy_route(&self) -> bool {
        self.state.configuration & LEG_RT_CNF != 0
    }

    fn enabled(&self) -> bool {
        self.state.configuration & ENABLE_CNF != 0
    }

    fn counter(&self, now: Nanos) -> u64 {
        let run = if self.enabled() { now.saturating_sub(self.state.started) / NANOS_PER_TICK } else { 0 };
        self.state.counter.wrapping_add(run)
    }

    /// Sets when the timer's comparator matches next. `fired`: it has just matched, so an equal counter is a
    /// whole turn away.
    fn arm(&mut self, index: usize, now: Nanos, fired: bool) {
        let counter = self.counter(now);
        let running = self.enabled();
        // The counter ticks on this grid.
        let phase = now.saturating_sub(self.state.started) % NANOS_PER_TICK;
        let timer = &mut self.state.timers[index];
        let distance = timer.comparator.wrapping_sub(counter) & timer.mask();
        let distance = match distance {
            0 if fired && timer.is(MODE_32) => Some(1 << 32),
            0 if fired => None,
            distance => Some(distance),
        };
        let wait = distance.and_then(|ticks| ticks.checked_mul(NANOS_PER_TICK));
        let at = wait.and_then(|wait| (now - phase.min(now)).checked_add(wait));
        let at = at.map(|at| if fired { at.max(now.saturating_add(LEAST_PERIOD)) } else { at.max(now) });
        timer.fire_at = at.filter(|_| running);
    }

    fn arm_all(&mut self, now: Nanos) {
        for index in 0..TIMERS {
            self.arm(index, now, false);
        }
    }

    /// Lets comparators that matched until now interrupt; matches missed on the way are one.
    fn sync(&mut self, cx: &mut Cx) {
        let counter = self.counter(cx.now);
        for index in 0..TIMERS {
            let timer = &mut self.state.timers[index];
            let Some(at) = timer.fire_at.filter(|&at| at <= cx.now) else { continue };
            if timer.is(TYPE_PERIODIC) && timer.period != 0 {
                let mask = timer.mask();
                // The comparator tells ticks passed since the match; the clock tells wraps of 32 bits.
                let passed = (cx.now - at) / NANOS_PER_TICK;
                let more = counter.wrapping_sub(timer.comparator).wrapping_sub(passed) & mask;
                let turns = (passed.wrapping_add(more) / timer.period).saturating_add(1);
                timer.comparator = timer.comparator.wrapping_add(turns.wrapping_mul(timer.period)) & mask;
            }
            self.arm(index, cx.now, true);
            self.interrupt(cx, index);
        }
    }

    fn pin(&self, index: usize) -> u8 {
        match index {
            0 if self.legacy_route() => LEGACY0,
            1 if self.legacy_route() => LEGACY1,
            _ => (self.state.timers[index].configuration >> 9 & 0x1F) as u8,
        }
    }

    fn routed(&self, index: usize) -> Option<u8> {
        let pin = self.pin(index);
        (pin >= LEGACY0 || ROUTES & 1 << pin != 0).then_some(pin)
    }

    fn interrupt(&mut self, cx: &mut Cx, index: usize) {
        let pin = self.routed(index);
        let timer = &mut self.state.timers[index];
        if timer.is(INT_TYPE_LEVEL) {
            self.state.interrupt_status |= 1 << index;
        }
        if !timer.is(INT_ENB) {
            return;
        }
        if timer.is(FSB_EN) {
            cx.push(Effect::Apic(fsb_message(timer.fsb)));
            return;
        }
        if timer.is(INT_TYPE_LEVEL) {
            return self.drive(cx, index);
        }
        // An edge; the line stays high until the next one, so that an 8259A can latch it.
        if let Some(pin) = pin {
            cx.line(pin, false);
            cx.line(pin, true);
            timer.driven = Some(pin);
        }
    }

    /// Brings the timer's line to what its configuration and status ask for.
    fn drive(&mut self, cx: &mut Cx, index: usize) {
        let pin = self.routed(index);
        let level_active = self.state.interrupt_status & 1 << index != 0;
        let enabled = self.enabled();
        let timer = &mut self.state.timers[index];
        let on = enabled && timer.is(INT_ENB) && !timer.is(FSB_EN);
        let wanted = match timer.is(INT_TYPE_LEVEL) {
            true => pin.filter(|_| on && level_active),
            false => pin.filter(|_| on && timer.driven == pin),
        };
        if timer.driven != wanted {
            if let Some(old) = timer.driven {
                cx.line(old, false);
            }
            if let Some(new) = wanted {
                cx.line(new, true);
            }
            timer.driven = wanted;
        }
    }

    fn drive_all(&mut self, cx: &mut Cx) {
        for index in 0..TIMERS {
            self.drive(cx, index);
        }
    }

    fn read_register(&self, now: Nanos, offset: u64) -> u64 {
        match offset {
            reg::CAPABILITIES => CAPABILITIES,
            reg::CONFIGURATION => self.state.configuration,
            reg::INTERRUPT_STATUS => self.state.interrupt_status,
            reg::MAIN_COUNTER => self.counter(now),
            reg::TIMERS.. => {
                let index = usize::try_from((offset - reg::TIMERS) / 0x20).unwrap_or(TIMERS);
                let Some(timer) = self.state.timers.get(index) else { return 0 };
                match offset % 0x20 {
                    0x00 => timer.configuration | TIMER_CAPABILITIES,
                    0x08 => timer.comparator & timer.mask(),
                    0x10 => timer.fsb,
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Writes the bytes of a register that `mask` covers.
    fn write_register(&mut self, cx: &mut Cx, offset: u64, value: u64, mask: u64) {
        let merge = |old: u64| old & !mask | value & mask;
        match offset {
            reg::CONFIGURATION => {
                let new = merge(self.state.configuration) & (ENABLE_CNF | LEG_RT_CNF);
                self.state.counter = self.counter(cx.now);
                self.state.started = cx.now;
                self.state.configuration = new;
                self.arm_all(cx.now);
            }
            reg::INTERRUPT_STATUS => self.state.interrupt_status &= !(value & mask),
            // Only a halted counter may be written.
            reg::MAIN_COUNTER if !self.enabled() => {
                self.state.counter = merge(self.state.counter);
                self.state.started = cx.now;
            }
            reg::TIMERS.. => {
                let index = usize::try_from((offset - reg::TIMERS) / 0x20).unwrap_or(TIMERS);
                if index < TIMERS {
                    self.write_timer(cx.now, index, offset % 0x20, value, mask);
                }
            }
            _ => {}
        }
        self.sync(cx);
        self.drive_all(cx);
    }

    fn write_timer(&mut self, now: Nanos, index: usize, register: u64, value: u64, mask: u64) {
        let timer = &mut self.state.timers[index];
        let merge = |old: u64| old & !mask | value & mask;
        match register {
            0x00 => {
                timer.configuration = merge(timer.configuration) & WRITABLE;
                if timer.is(MODE_32) {
                    timer.comparator &= 0xFFFF_FFFF;
                    timer.period &= 0xFFFF_FFFF;
                }
            }
            0x08 => {
                // A periodic timer's comparator is set only after VAL_SET; its period always.
                if !timer.is(TYPE_PERIODIC) || timer.is(VAL_SET) {
                    timer.comparator = merge(timer.comparator) & timer.mask();
                }
                if timer.is(TYPE_PERIODIC) {
                    timer.period = merge(timer.period) & timer.mask();
                }
                if mask & 0xFFFF_FFFF != 0 {
                    timer.configuration &= !VAL_SET;
                }
            }
            0x10 => timer.fsb = merge(timer.fsb),
            _ => return,
        }
        self.arm(index, now, false);
    }
}

/// A message-signalled interrupt: the address in the high half, the data in the low (SDM Vol. 3, "Message
/// Signalled Interrupts").
fn fsb_message(fsb: u64) -> ApicMessage {
    let (address, data) = ((fsb >> 32) as u32, fsb as u32);
    let delivery = match data >> 8 & 7 {
        1 => Delivery::LowestPriority,
        2 => Delivery::Smi,
        4 => Delivery::Nmi,
        5 => Delivery::Init,
        7 => Delivery::ExtInt,
        _ => Delivery::Fixed,
    };
    ApicMessage {
        destination: address >> 12 & 0xFF,
        logical: address & 4 != 0,
        delivery,
        vector: data as u8,
        level_triggered: false,
        assert: true,
        shorthand: Shorthand::None,
    }
}

impl Chip for Hpet {
    fn name(&self) -> &'static str {
        "hpet"
    }

    fn reset(&mut self, cx: &mut Cx) {
        for index in 0..TIMERS {
            if let Some(pin) = self.state.timers[index].driven {
                cx.line(pin, false);
            }
        }
        self.state = Hpet::new().state;
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        if window != REGISTERS || offset >= 0x400 {
            return open_bus(size);
        }
        self.sync(cx);
        self.read_register(cx.now, offset & !7) >> (offset % 8 * 8) & open_bus(size)
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        // Other sizes and alignments are undefined.
        if window != REGISTERS
            || offset >= 0x400
            || !matches!(size, 4 | 8)
            || !offset.is_multiple_of(u64::from(size))
        {
            return;
        }
        self.sync(cx);
        let shift = offset % 8 * 8;
        self.write_register(cx, offset & !7, value << shift, open_bus(size) << shift);
    }

    fn next_event(&self) -> Option<Nanos> {
        let waiting = self.state.timers.iter().filter(|timer| timer.is(INT_ENB | INT_TYPE_LEVEL));
        waiting.filter_map(|timer| timer.fire_at).min()
    }

    fn event(&mut self, cx: &mut Cx) {
        self.sync(cx);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        let pin = |pin: u8| pin == LEGACY0 || pin == LEGACY1 || pin < 32 && ROUTES & 1 << pin != 0;
        let timers = state.timers.iter().all(|timer| {
            let values = (timer.comparator | timer.period) & !timer.mask() == 0;
            timer.configuration & !WRITABLE == 0 && values && timer.driven.is_none_or(pin)
        });
        if !timers || state.configuration > 3 || state.interrupt_status > 7 {
            return Err(StateError::Damaged { chip: self.name(), reason: "register out of range".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        let s = &self.state;
        let mut text = format!("configuration={:x} status={:x}\n", s.configuration, s.interrupt_status);
        for (index, timer) in s.timers.iter().enumerate() {
            text += &format!(
                "timer {index}: configuration={:x} comparator={:x} period={:x} fire_at={:?}\n",
                timer.configuration, timer.comparator, timer.period, timer.fire_at
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn rises(bench: &Bench<Hpet>, pin: u8) -> usize {
        bench.effects.iter().filter(|e| **e == Effect::Line { pin, level: true }).count()
    }

    #[test]
    fn counter_counts_while_enabled() {
        let mut bench = Bench::new(Hpet::new());
        assert_eq!(bench.read(REGISTERS, 4, 4), PERIOD_FS);
        bench.now = 1000;
        assert_eq!(bench.read(REGISTERS, 0xF0, 8), 0);
        bench.write(REGISTERS, 0x10, 4, 1);
        bench.now = 2000;
        assert_eq!(bench.read(REGISTERS, 0xF0, 8), 100);
        bench.write(REGISTERS, 0x10, 4, 0);
        bench.now = 9000;
        assert_eq!(bench.read(REGISTERS, 0xF0, 8), 100);
    }

    #[test]
    fn legacy_periodic_as_linux_sets_it_up() {
        let mut bench = Bench::new(Hpet::new());
        bench.write(REGISTERS, 0x10, 4, 3);
        bench.write(REGISTERS, 0x100, 4, INT_ENB | TYPE_PERIODIC | VAL_SET | MODE_32);
        bench.write(REGISTERS, 0x108, 4, 100_000);
        bench.write(REGISTERS, 0x108, 4, 100_000);
        bench.run_until(10_000_000);
        assert_eq!(rises(&bench, LEGACY0), 10);
        bench.effects.clear();
        bench.now = 3_600_000_000_000;
        bench.with(Chip::event);
        assert_eq!(rises(&bench, LEGACY0), 1);
        assert_eq!(bench.chip.next_event(), Some(3_600_001_000_000));
    }

    #[test]
    fn level_one_shot() {
        let mut bench = Bench::new(Hpet::new());
        bench.write(REGISTERS, 0x120, 8, INT_ENB | INT_TYPE_LEVEL | 20 << 9);
        bench.write(REGISTERS, 0x128, 8, 500);
        bench.write(REGISTERS, 0x10, 8, 1);
        bench.run_until(5_000);
        assert!(bench.level(20));
        assert_eq!(bench.read(REGISTERS, 0x20, 4), 2);
        bench.write(REGISTERS, 0x20, 4, 2);
        assert!(!bench.level(20));
        assert_eq!(bench.chip.next_event(), None);
    }

    #[test]
    fn fsb_delivery() {
        let mut bench = Bench::new(Hpet::new());
        bench.write(REGISTERS, 0x150, 8, 0xFEE0_2000_0000_0055);
        bench.write(REGISTERS, 0x140, 4, INT_ENB | FSB_EN);
        bench.write(REGISTERS, 0x148, 8, 10);
        bench.write(REGISTERS, 0x10, 4, 1);
        bench.run_until(1_000);
        let message = bench.effects.iter().find_map(|effect| match effect {
            Effect::Apic(message) => Some((message.destination, message.vector)),
            _ => None,
        });
        assert_eq!(message, Some((2, 0x55)));
    }
}
