//! The 8254 programmable interval timer, and port 61h, which gates its counter 2 and the speaker (Intel 8254
//! datasheet; 82371SB datasheet, "NMI Status and Control Register").

use serde::{Deserialize, Serialize};

use crate::chip::{Chip, Cx, Nanos, StateError, decode, encode, open_bus};
use crate::ports::{read_each, ticks_at, time_of_tick, write_each};

/// Window of the counters and the control word: ports 0x40 to 0x43.
pub const COUNTERS: u8 = 0;
/// Window of port 0x61.
pub const PORT_61: u8 = 1;

/// Output pin: OUT of counter 0, to IRQ0.
pub const OUT0: u8 = 0;

/// CLK of all three counters.
pub const HERTZ: u64 = 1_193_182;

const VERSION: u16 = 1;
/// Port 61h bit 4 toggles with every memory refresh.
const REFRESH: Nanos = 15_085;
/// Most changes of OUT0 that one call reports; what was missed beyond them is one tick.
const CHANGES_PER_CALL: u32 = 8;
/// Bound of restored tick numbers, so that sums stay in range.
const MAX_TICK: u64 = 1 << 62;

/// One counter. Nothing counts in it: counts and OUT follow from the tick at which it was loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Counter {
    /// M2-M0, 0 to 5.
    mode: u8,
    bcd: bool,
    /// RW1-RW0: 1 least, 2 most significant byte only, 3 both.
    access: u8,
    gate: bool,
    /// Count register: 1 to 65536 (10000 in BCD).
    reload: u32,
    /// Tick at which `reload` entered the counting element; none before a count (or trigger) came.
    start: Option<u64>,
    /// Ticks counted when GATE fell.
    paused: Option<u64>,
    /// OUT until `start`.
    before: bool,
    /// Modes 2 and 3: a new count, and the tick at which the present cycle ends.
    pending: Option<(u32, u64)>,
    /// Low byte of a 16-bit write that is half done.
    low: Option<u8>,
    /// The next unlatched read gives the high byte.
    read_high: bool,
    latch: Option<u16>,
    /// The latch's low byte was read.
    latch_high: bool,
    status: Option<u8>,
}

impl Counter {
    fn new(gate: bool) -> Self {
        Counter {
            mode: 0,
            bcd: false,
            access: 3,
            gate,
            reload: 0x10000,
            start: None,
            paused: None,
            before: true,
            pending: None,
            low: None,
            read_high: false,
            latch: None,
            latch_high: false,
            status: None,
        }
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x10000 }
    }

    fn period(&self) -> u64 {
        u64::from(self.reload.max(1))
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Takes the pending count once its cycle has come.
    fn advance(&mut self, tick: u64) {
        if let Some((reload, at)) = self.pending
            && tick >= at
        {
            self.reload = reload;
            self.start = Some(at);
            self.pending = None;
        }
    }

    /// Ticks counted at `tick`; none before the count is loaded.
    fn elapsed(&self, tick: u64) -> Option<u64> {
        let start = self.start?;
        self.paused.or_else(|| tick.checked_sub(start))
    }

    fn out(&self, tick: u64) -> bool {
        let Some(elapsed) = self.elapsed(tick) else { return self.before };
        let n = self.period();
        match self.mode {
            0 | 1 => elapsed >= n,
            2 => self.paused.is_some() || n == 1 || elapsed % n != n - 1,
            3 => self.paused.is_some() || elapsed % n < n.div_ceil(2),
            _ => elapsed != n,
        }
    }

    /// The first tick after `tick` at which OUT may differ.
    fn next_change(&self, tick: u64) -> Option<u64> {
        let start = self.start?;
        if tick < start {
            return Some(start);
        }
        if self.paused.is_some() {
            return None;
        }
        let (elapsed, n) = (tick - start, self.period());
        let edges = match self.mode {
            0 | 1 => [n, n],
            2 | 3 if n == 1 => return None,
            2 => [n - 1, n],
            3 => [n.div_ceil(2), n],
            _ => [n, n + 1],
        };
        let cycle = if self.periodic() { elapsed / n * n } else { 0 };
        let edge = edges.into_iter().map(|edge| cycle + edge).find(|&edge| edge > elapsed)?;
        Some(start.saturating_add(edge))
    }

    /// What the counting element holds.
    fn count(&self, tick: u64) -> u16 {
        let (n, modulus) = (self.period(), self.modulus());
        let elapsed = self.elapsed(tick).unwrap_or(0);
        let count = match self.mode {
            2 => n - elapsed % n,
            3 => {
                let phase = elapsed % n;
                let half = n.div_ceil(2);
                (n & !1).saturating_sub(2 * if phase < half { phase } else { phase - half })
            }
            _ => (n % modulus + modulus - elapsed % modulus) % modulus,
        };
        let count = (count % modulus) as u16;
        if !self.bcd {
            return count;
        }
        (0..4).fold(0, |bcd, digit| bcd | (count / 10u16.pow(digit) % 10) << (digit * 4))
    }

    fn status_byte(&self, tick: u64) -> u8 {
        let null = self.pending.is_some() || self.start.is_none_or(|start| tick < start);
        u8::from(self.out(tick)) << 7
            | u8::from(null) << 6
            | self.access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    fn control(&mut self, value: u8) {
        *self = Counter::new(self.gate);
        self.access = value >> 4 & 3;
        self.mode = match value >> 1 & 7 {
            6 => 2,
            7 => 3,
            mode => mode,
        };
        self.bcd = value & 1 != 0;
        self.before = self.mode != 0;
        self.reload = self.modulus() as u32;
    }

    fn latch_count(&mut self, tick: u64) {
        if self.latch.is_none() {
            self.latch = Some(self.count(tick));
            self.latch_high = self.access == 2;
        }
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let latched = self.latch;
        let [low, high] = latched.unwrap_or_else(|| self.count(tick)).to_le_bytes();
        match self.access {
            1 => {
                self.latch = None;
                low
            }
            2 => {
                self.latch = None;
                high
            }
            _ if latched.is_some() => {
                if self.latch_high {
                    self.latch = None;
                    high
                } else {
                    self.latch_high = true;
                    low
                }
            }
            _ => {
                self.read_high = !self.read_high;
                if self.read_high { low } else { high }
            }
        }
    }

    fn write(&mut self, tick: u64, value: u8) {
        let raw = match (self.access, self.low) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, Some(low)) => u16::from_le_bytes([low, value]),
            (_, None) => {
                self.low = Some(value);
                if self.mode == 0 {
                    (self.start, self.paused, self.before) = (None, None, false);
                }
                return;
            }
        };
        self.low = None;
        self.load(tick, raw);
    }

    fn load(&mut self, tick: u64, raw: u16) {
        let mut count = u32::from(raw);
        if self.bcd {
            count =
                (0..4).rev().fold(0, |sum, digit| sum * 10 + (u32::from(raw) >> (digit * 4) & 15)) % 10_000;
        }
        if count == 0 {
            count = self.modulus() as u32;
        }
        match self.mode {
            // Only a trigger starts these; the running cycle keeps the old count.
            1 | 5 if self.start.is_none() => self.reload = count,
            1 | 5 => {
                let n = self.period();
                let end = self.start.map_or(tick, |start| start.saturating_add(n));
                if tick > end {
                    self.start = None;
                    self.before = true;
                    self.reload = count;
                } else {
                    self.pending = Some((count, u64::MAX));
                }
            }
            2 | 3 if self.start.is_some_and(|start| tick >= start) && self.paused.is_none() => {
                let (start, n) = (self.start.unwrap_or(tick), self.period());
                let end = start.saturating_add(((tick - start) / n + 1).saturating_mul(n));
                self.pending = Some((count, end));
            }
            _ => {
                self.before = self.mode != 0;
                self.reload = count;
                self.pending = None;
                self.start = Some(tick + 1);
                self.paused = if self.gate { None } else { Some(0) };
            }
        }
    }

    fn set_gate(&mut self, tick: u64, gate: bool) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        let Some(start) = self.start else {
            if gate && matches!(self.mode, 1 | 5) {
                self.before = true;
                self.start = Some(tick + 1);
            }
            return;
        };
        match (self.mode, gate) {
            (0 | 4, true) => {
                if let Some(elapsed) = self.paused.take() {
                    self.start = Some((tick + 1).saturating_sub(elapsed));
                }
            }
            (1 | 5, false) => {}
            (1 | 5, true) => {
                self.before = self.out(tick);
                if let Some((reload, _)) = self.pending.take() {
                    self.reload = reload;
                }
                self.start = Some(tick + 1);
            }
            (_, true) => {
                if let Some((reload, _)) = self.pending.take() {
                    self.reload = reload;
                }
                (self.start, self.paused, self.before) = (Some(tick + 1), None, true);
            }
            (_, false) => {
                if let Some((reload, _)) = self.pending.take() {
                    self.reload = reload;
                }
                self.paused = Some(tick.saturating_sub(start));
            }
        }
    }

    fn valid(&self) -> bool {
        let ticks = [self.start, self.paused].into_iter().flatten();
        self.mode <= 5
            && (1..=3).contains(&self.access)
            && (1..=self.modulus()).contains(&u64::from(self.reload))
            && ticks.into_iter().all(|tick| tick <= MAX_TICK)
            && self.pending.is_none_or(|(reload, _)| (1..=self.modulus()).contains(&u64::from(reload)))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    counters: [Counter; 3],
    /// Bits 3 to 0 of port 61h.
    port_61: u8,
    /// The tick up to which OUT0 has been reported, and its level.
    seen: u64,
    out0: bool,
}

/// The 8254 and port 61h.
pub struct Pit {
    state: State,
}

impl Pit {
    pub fn new() -> Self {
        let counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        Pit { state: State { counters, port_61: 0, seen: 0, out0: true } }
    }

    /// The tone that the speaker plays now.
    pub fn speaker_frequency(&self) -> Option<f64> {
        let counter = &self.state.counters[2];
        let on = self.state.port_61 & 3 == 3 && counter.periodic() && counter.start.is_some();
        (on && counter.reload > 1).then(|| HERTZ as f64 / f64::from(counter.reload))
    }

    /// Reports what OUT0 did until now. Ticks that were missed by more than two periods become one.
    fn sync(&mut self, cx: &mut Cx) -> u64 {
        let tick = ticks_at(cx.now, HERTZ);
        let counter = &mut self.state.counters[0];
        if counter.periodic() {
            let behind = counter.period().saturating_mul(2);
            if tick.saturating_sub(self.state.seen) > behind {
                self.state.seen = tick - behind;
                counter.advance(self.state.seen);
            }
        }
        for _ in 0..CHANGES_PER_CALL {
            let Some(change) = counter.next_change(self.state.seen).filter(|&change| change <= tick) else {
                break;
            };
            self.state.seen = change;
            counter.advance(change);
            let out = counter.out(change);
            if out != self.state.out0 {
                self.state.out0 = out;
                cx.line(OUT0, out);
            }
        }
        self.state.seen = self.state.seen.max(tick);
        for counter in &mut self.state.counters {
            counter.advance(tick);
        }
        self.drive(cx, tick);
        tick
    }

    fn drive(&mut self, cx: &mut Cx, tick: u64) {
        let out = self.state.counters[0].out(tick);
        if out != self.state.out0 {
            self.state.out0 = out;
            cx.line(OUT0, out);
        }
    }

    /// The control word: a counter's mode, a counter latch command or a read-back command.
    fn control(&mut self, tick: u64, value: u8) {
        let select = usize::from(value >> 6);
        if let Some(counter) = self.state.counters.get_mut(select) {
            match value >> 4 & 3 {
                0 => counter.latch_count(tick),
                _ => counter.control(value),
            }
            return;
        }
        for (index, counter) in self.state.counters.iter_mut().enumerate() {
            if value & 2 << index == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                counter.latch_count(tick);
            }
            if value & 0x10 == 0 && counter.status.is_none() {
                counter.status = Some(counter.status_byte(tick));
            }
        }
    }

    fn read_port_61(&self, now: Nanos, tick: u64) -> u8 {
        let refresh = ((now / REFRESH) & 1) as u8;
        let out2 = u8::from(self.state.counters[2].out(tick));
        self.state.port_61 | refresh << 4 | out2 << 5
    }
}

impl Chip for Pit {
    fn name(&self) -> &'static str {
        "pit"
    }

    /// The 8254 has no reset pin, but a board that starts must find it idle.
    fn reset(&mut self, cx: &mut Cx) {
        let seen = ticks_at(cx.now, HERTZ);
        self.state = State { seen, ..Pit::new().state };
        cx.line(OUT0, true);
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        let tick = self.sync(cx);
        match window {
            COUNTERS => read_each(offset, size, |o| {
                let counter = usize::try_from(o).ok().and_then(|o| self.state.counters.get_mut(o));
                counter.map_or(0xFF, |counter| counter.read(tick))
            }),
            PORT_61 => {
                read_each(offset, size, |o| if o == 0 { self.read_port_61(cx.now, tick) } else { 0xFF })
            }
            _ => open_bus(size),
        }
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        let tick = self.sync(cx);
        match window {
            COUNTERS => write_each(offset, size, value, |o, byte| match o {
                0..3 => self.state.counters[o as usize % 3].write(tick, byte),
                3 => self.control(tick, byte),
                _ => {}
            }),
            PORT_61 if offset == 0 => {
                self.state.port_61 = value as u8 & 0x0F;
                self.state.counters[2].set_gate(tick, value & 1 != 0);
            }
            _ => {}
        }
        self.drive(cx, tick);
    }

    /// Mode 2's pulse lasts one tick, but a host's thread takes far longer from its beginning to its end, and the 8259A would
    /// withdraw a request meanwhile. Nobody is called for the beginning: the end tells of both.
    fn next_event(&self) -> Option<Nanos> {
        let counter = &self.state.counters[0];
        let change = counter.next_change(self.state.seen)?;
        let pulse = u64::from(counter.mode == 2 && !counter.out(change));
        Some(time_of_tick(change + pulse, HERTZ))
    }

    fn event(&mut self, cx: &mut Cx) {
        self.sync(cx);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        if !state.counters.iter().all(Counter::valid) || state.port_61 > 0x0F || state.seen > MAX_TICK {
            return Err(StateError::Damaged { chip: self.name(), reason: "register out of range".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        let line = |(i, c): (usize, &Counter)| {
            format!("counter {i}: mode={} bcd={} gate={} reload={}\n", c.mode, c.bcd, c.gate, c.reload)
        };
        self.state.counters.iter().enumerate().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;
    use crate::chip::Effect;

    fn program(bench: &mut Bench<Pit>, counter: u64, control: u64, count: u64) {
        bench.write(COUNTERS, 3, 1, control | counter << 6);
        bench.write(COUNTERS, counter, 1, count & 0xFF);
        bench.write(COUNTERS, counter, 1, count >> 8);
    }

    fn count(bench: &mut Bench<Pit>, counter: u64) -> u64 {
        bench.write(COUNTERS, 3, 1, counter << 6);
        bench.read(COUNTERS, counter, 1) | bench.read(COUNTERS, counter, 1) << 8
    }

    fn rises(bench: &Bench<Pit>) -> usize {
        bench.effects.iter().filter(|e| **e == Effect::Line { pin: OUT0, level: true }).count()
    }

    #[test]
    fn rate_generator_keeps_its_rate() {
        let mut bench = Bench::new(Pit::new());
        program(&mut bench, 0, 0x34, 11932);
        bench.run_until(1_000_000_000);
        assert_eq!(rises(&bench), 99);
        bench.run_until(10_000_000_000);
        assert_eq!(rises(&bench), (10 * HERTZ - 1) as usize / 11932);
    }

    /// Low when a call ends: a request that the processor has not taken yet is withdrawn for as long as the host likes.
    #[test]
    fn a_pulse_is_over_at_once() {
        let mut bench = Bench::new(Pit::new());
        program(&mut bench, 0, 0x34, 119);
        for tick in 1..1200 {
            bench.run_until(time_of_tick(tick, HERTZ));
            assert_ne!(bench.effects.last(), Some(&Effect::Line { pin: OUT0, level: false }), "tick {tick}");
        }
        assert_eq!(rises(&bench), 1198 / 119);
    }

    #[test]
    fn late_events_are_coalesced() {
        let mut bench = Bench::new(Pit::new());
        program(&mut bench, 0, 0x34, 2);
        bench.effects.clear();
        bench.now = 3_600_000_000_000;
        bench.with(Chip::event);
        assert!(rises(&bench) >= 1 && bench.effects.len() <= 16, "{:?}", bench.effects);
        assert!(bench.chip.next_event().is_some_and(|at| at > bench.now));
    }

    #[test]
    fn one_shot_and_read_back() {
        let mut bench = Bench::new(Pit::new());
        program(&mut bench, 0, 0x30, 1000);
        assert!(!bench.level(OUT0));
        bench.run_until(time_of_tick(501, HERTZ));
        assert_eq!(count(&mut bench, 0), 500);
        bench.run_until(time_of_tick(1000, HERTZ));
        assert!(!bench.level(OUT0));
        bench.run_until(time_of_tick(1001, HERTZ));
        assert!(bench.level(OUT0));
        bench.write(COUNTERS, 3, 1, 0xE2);
        assert_eq!(bench.read(COUNTERS, 0, 1), 0xB0);
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut bench = Bench::new(Pit::new());
        program(&mut bench, 0, 0x31, 0x1000);
        bench.run_until(time_of_tick(2, HERTZ));
        assert_eq!(count(&mut bench, 0), 0x0999);
    }

    #[test]
    fn gate_of_counter_2_and_speaker() {
        let mut bench = Bench::new(Pit::new());
        program(&mut bench, 2, 0x30, 100);
        bench.run_until(1_000_000);
        assert_eq!(bench.read(PORT_61, 0, 1) & 0x20, 0, "the gate is low");
        bench.write(PORT_61, 0, 1, 1);
        let from = bench.now;
        bench.run_until(from + time_of_tick(50, HERTZ));
        assert_eq!(bench.read(PORT_61, 0, 1) & 0x20, 0);
        bench.run_until(from + time_of_tick(103, HERTZ));
        assert_eq!(bench.read(PORT_61, 0, 1) & 0x20, 0x20);
        program(&mut bench, 2, 0x36, 1193);
        assert_eq!(bench.chip.speaker_frequency(), None);
        bench.write(PORT_61, 0, 1, 3);
        assert_eq!(bench.chip.speaker_frequency().map(f64::round), Some(1000.0));
    }

    #[test]
    fn square_wave_and_new_count_at_the_end_of_the_cycle() {
        let mut bench = Bench::new(Pit::new());
        program(&mut bench, 0, 0x36, 100);
        bench.run_until(time_of_tick(60, HERTZ));
        assert!(!bench.level(OUT0));
        bench.write(COUNTERS, 0, 1, 200);
        bench.write(COUNTERS, 0, 1, 0);
        bench.run_until(time_of_tick(150, HERTZ));
        assert!(bench.level(OUT0));
        bench.run_until(time_of_tick(202, HERTZ));
        assert!(!bench.level(OUT0));
    }
}
