//! The MC146818 real-time clock with 128 bytes of CMOS memory (Motorola MC146818 datasheet).

use serde::{Deserialize, Serialize};
use serde_big_array::BigArray;

use crate::chip::{Chip, Cx, Nanos, StateError, decode, encode, open_bus};
use crate::ports::{read_each, ticks_at, time_of_tick, write_each};

/// Window of the index and data ports: 0x70 and 0x71.
pub const PORTS: u8 = 0;

/// Output pin: IRQ (asserted is true), to IRQ8.
pub const IRQ: u8 = 0;

/// Register numbers.
pub mod reg {
    pub const SECONDS: u8 = 0x00;
    pub const SECONDS_ALARM: u8 = 0x01;
    pub const MINUTES: u8 = 0x02;
    pub const MINUTES_ALARM: u8 = 0x03;
    pub const HOURS: u8 = 0x04;
    pub const HOURS_ALARM: u8 = 0x05;
    pub const DAY_OF_WEEK: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0A;
    pub const B: u8 = 0x0B;
    pub const C: u8 = 0x0C;
    pub const D: u8 = 0x0D;
    /// Not of the MC146818: where PC firmware keeps the century.
    pub const CENTURY: u8 = 0x32;
}

/// Register A.
const UIP: u8 = 0x80;
/// Register B.
const SET: u8 = 0x80;
const PIE: u8 = 0x40;
const AIE: u8 = 0x20;
const UIE: u8 = 0x10;
const SQWE: u8 = 0x08;
const DM: u8 = 0x04;
const HOUR_24: u8 = 0x02;
/// Register C.
const IRQF: u8 = 0x80;
const PF: u8 = 0x40;
const AF: u8 = 0x20;
const UF: u8 = 0x10;
/// Register D: valid RAM and time.
const VRT: u8 = 0x80;

const VERSION: u16 = 1;
const SECOND: Nanos = 1_000_000_000;
/// UIP rises this long before the update ends: 244 us of warning and 1984 us of update.
const UPDATE: Nanos = 2_228_000;
const CRYSTAL: u64 = 32_768;
const DAY: i64 = 86_400;
/// 1 January 10000, the end of the calendar.
const END_OF_TIME: i64 = 253_402_300_800;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    index: u8,
    nmi_masked: bool,
    #[serde(with = "BigArray")]
    cmos: [u8; 128],
    /// When the next update ends.
    next_update: Nanos,
    /// Crystal ticks up to which PF is known.
    seen: u64,
    irq: bool,
}

/// The clock and its CMOS memory.
pub struct Rtc {
    state: State,
}

/// Days since 1 January 1970 of a date in the Gregorian calendar; `month` 1 to 12.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    // Years from March, so that the leap day is the last of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let from_march = (month + 9) % 12;
    let in_year = (153 * from_march + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + in_year - 719_468
}

/// Year, month and day of a day since 1 January 1970.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = (from_march + 2) % 12 + 1;
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

impl Rtc {
    /// A clock that shows `epoch_seconds_at_time_zero` (seconds since 1970) at virtual time 0.
    pub fn new(epoch_seconds_at_time_zero: i64) -> Self {
        let state =
            State { index: 0, nmi_masked: false, cmos: [0; 128], next_update: SECOND, seen: 0, irq: false };
        let mut rtc = Rtc { state };
        rtc.put(reg::A, 0x26);
        rtc.put(reg::B, HOUR_24);
        rtc.put(reg::D, VRT);
        rtc.set_calendar(epoch_seconds_at_time_zero.clamp(0, END_OF_TIME - 1));
        rtc
    }

    /// Sets a byte of CMOS memory, as firmware's setup would.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        self.put(index, value);
    }

    /// A byte of CMOS memory as it stands.
    pub fn cmos(&self, index: u8) -> u8 {
        self.state.cmos[usize::from(index & 0x7F)]
    }

    /// Bit 7 of port 70h: NMI does not reach the processor.
    pub fn nmi_masked(&self) -> bool {
        self.state.nmi_masked
    }

    fn put(&mut self, index: u8, value: u8) {
        self.state.cmos[usize::from(index & 0x7F)] = value;
    }

    /// In the data mode of register B.
    fn encoded(&self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.cmos(reg::B) & DM != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decoded(&self, raw: u8) -> i64 {
        i64::from(if self.cmos(reg::B) & DM != 0 { raw } else { (raw >> 4) * 10 + (raw & 15) })
    }

    fn encoded_hour(&self, hour: i64) -> u8 {
        if self.cmos(reg::B) & HOUR_24 != 0 {
            return self.encoded(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encoded(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decoded_hour(&self, raw: u8) -> i64 {
        if self.cmos(reg::B) & HOUR_24 != 0 {
            return self.decoded(raw);
        }
        self.decoded(raw & 0x7F) % 12 + if raw & 0x80 != 0 { 12 } else { 0 }
    }

    /// Seconds since 1970 that the registers show; nonsense in them is brought into range.
    fn calendar(&self) -> i64 {
        let field = |index| self.decoded(self.cmos(index));
        let year = field(reg::CENTURY).min(99) * 100 + field(reg::YEAR).min(99);
        let days = days_of(year, field(reg::MONTH).clamp(1, 12), field(reg::DAY).clamp(1, 31));
        let hours = self.decoded_hour(self.cmos(reg::HOURS)).min(23);
        days * DAY + hours * 3600 + field(reg::MINUTES).min(59) * 60 + field(reg::SECONDS).min(59)
    }

    fn set_calendar(&mut self, seconds: i64) {
        let (days, in_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, day) = date_of(days);
        self.put(reg::SECONDS, self.encoded(in_day % 60));
        self.put(reg::MINUTES, self.encoded(in_day / 60 % 60));
        self.put(reg::HOURS, self.encoded_hour(in_day / 3600));
        self.put(reg::DAY_OF_WEEK, self.encoded((days + 4).rem_euclid(7) + 1));
        self.put(reg::DAY, self.encoded(day));
        self.put(reg::MONTH, self.encoded(month));
        self.put(reg::YEAR, self.encoded(year));
        self.put(reg::CENTURY, self.encoded(year / 100));
    }

    /// The divider chain counts: DV2-DV0 name the 32.768 kHz crystal.
    fn running(&self) -> bool {
        self.cmos(reg::A) & 0x70 == 0x20
    }

    /// Crystal ticks between periodic interrupts.
    fn periodic(&self) -> Option<u64> {
        let rate = self.cmos(reg::A) & 15;
        match rate {
            _ if !self.running() => None,
            0 => None,
            1 | 2 => Some(1 << (rate + 6)),
            _ => Some(1 << (rate - 1)),
        }
    }

    /// Whether the alarm matched in one of the `seconds` seconds after `from`.
    fn alarm_within(&self, from: i64, seconds: u64) -> bool {
        let matches = |alarm: u8, value: u8| alarm >= 0xC0 || alarm == value;
        let last = from + i64::try_from(seconds).unwrap_or(DAY).min(DAY);
        let mut at = from + 1;
        // Every turn passes a whole hour, a minute or a second: 24 + 60 + 60 turns at most.
        while at <= last {
            let in_day = at.rem_euclid(DAY);
            if !matches(self.cmos(reg::HOURS_ALARM), self.encoded_hour(in_day / 3600)) {
                at += 3600 - in_day % 3600;
            } else if !matches(self.cmos(reg::MINUTES_ALARM), self.encoded(in_day / 60 % 60)) {
                at += 60 - in_day % 60;
            } else if !matches(self.cmos(reg::SECONDS_ALARM), self.encoded(in_day % 60)) {
                at += 1;
            } else {
                return true;
            }
        }
        false
    }

    /// Brings time registers and flags up to `cx.now`, and the pin with them.
    fn sync(&mut self, cx: &mut Cx) {
        let mut flags = self.cmos(reg::C);
        let tick = ticks_at(cx.now, CRYSTAL);
        if let Some(period) = self.periodic()
            && tick / period > self.state.seen / period
        {
            flags |= PF;
        }
        self.state.seen = tick;
        if self.running() && cx.now >= self.state.next_update {
            let updates = (cx.now - self.state.next_update) / SECOND + 1;
            self.state.next_update = self.state.next_update.saturating_add(updates.saturating_mul(SECOND));
            if self.cmos(reg::B) & SET == 0 {
                let from = self.calendar();
                flags |= UF | if self.alarm_within(from, updates) { AF } else { 0 };
                self.set_calendar(from + i64::try_from(updates).unwrap_or(0));
            }
        }
        self.put(reg::C, flags);
        self.drive(cx);
    }

    fn drive(&mut self, cx: &mut Cx) {
        let flags = self.cmos(reg::C) & !IRQF;
        let irq = flags & self.cmos(reg::B) & (PIE | AIE | UIE) != 0;
        self.put(reg::C, flags | if irq { IRQF } else { 0 });
        if irq != self.state.irq {
            self.state.irq = irq;
            cx.line(IRQ, irq);
        }
    }

    fn read_data(&mut self, cx: &mut Cx) -> u8 {
        let value = self.cmos(self.state.index);
        match self.state.index {
            reg::A => {
                let open = self.running() && self.cmos(reg::B) & SET == 0;
                let updating = open && cx.now.saturating_add(UPDATE) >= self.state.next_update;
                value | if updating { UIP } else { 0 }
            }
            reg::C => {
                self.put(reg::C, 0);
                self.drive(cx);
                value
            }
            _ => value,
        }
    }

    fn write_data(&mut self, cx: &mut Cx, value: u8) {
        match self.state.index {
            reg::A => {
                let was_running = self.running();
                self.put(reg::A, value & !UIP);
                if self.running() && !was_running {
                    // The first update comes half a second after the divider leaves reset.
                    self.state.next_update = cx.now.saturating_add(SECOND / 2);
                }
            }
            reg::B => {
                // SET clears UIE.
                let value = if value & SET != 0 { value & !UIE } else { value };
                self.put(reg::B, value);
            }
            reg::C | reg::D => {}
            index => self.put(index, value),
        }
        self.drive(cx);
    }
}

impl Chip for Rtc {
    fn name(&self) -> &'static str {
        "rtc"
    }

    /// RESET# clears interrupt enables and flags; time and memory stay.
    fn reset(&mut self, cx: &mut Cx) {
        self.sync(cx);
        self.put(reg::B, self.cmos(reg::B) & !(PIE | AIE | UIE | SQWE));
        self.put(reg::C, 0);
        self.state.index = 0;
        self.state.nmi_masked = false;
        self.drive(cx);
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        if window != PORTS {
            return open_bus(size);
        }
        self.sync(cx);
        read_each(offset, size, |o| if o == 1 { self.read_data(cx) } else { 0xFF })
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        if window != PORTS {
            return;
        }
        self.sync(cx);
        write_each(offset, size, value, |o, byte| match o {
            0 => {
                self.state.index = byte & 0x7F;
                self.state.nmi_masked = byte & 0x80 != 0;
            }
            1 => self.write_data(cx, byte),
            _ => {}
        });
    }

    /// Only what can interrupt needs an event; the rest is worked out when it is read.
    fn next_event(&self) -> Option<Nanos> {
        let (enabled, flags) = (self.cmos(reg::B), self.cmos(reg::C));
        let waiting = |enable: u8| enabled & enable != 0 && flags & enable == 0;
        let periodic = self.periodic().filter(|_| waiting(PIE));
        let periodic = periodic.map(|period| time_of_tick((self.state.seen / period + 1) * period, CRYSTAL));
        let update = self.running() && enabled & SET == 0 && (waiting(UIE) || waiting(AIE));
        let update = update.then_some(self.state.next_update);
        periodic.into_iter().chain(update).min()
    }

    fn event(&mut self, cx: &mut Cx) {
        self.sync(cx);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        let d = state.cmos[usize::from(reg::D)];
        if state.index > 0x7F || state.seen > ticks_at(Nanos::MAX, CRYSTAL) || d != VRT {
            return Err(StateError::Damaged { chip: self.name(), reason: "register out of range".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        let seconds = self.calendar();
        let (year, month, day) = date_of(seconds.div_euclid(DAY));
        let in_day = seconds.rem_euclid(DAY);
        format!(
            "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}\nA={:02x} B={:02x} C={:02x}\n",
            in_day / 3600,
            in_day / 60 % 60,
            in_day % 60,
            self.cmos(reg::A),
            self.cmos(reg::B),
            self.cmos(reg::C)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn get(bench: &mut Bench<Rtc>, index: u8) -> u8 {
        bench.write(PORTS, 0, 1, u64::from(index));
        bench.read(PORTS, 1, 1) as u8
    }

    fn set(bench: &mut Bench<Rtc>, index: u8, value: u8) {
        bench.write(PORTS, 0, 1, u64::from(index));
        bench.write(PORTS, 1, 1, u64::from(value));
    }

    #[test]
    fn calendar_is_gregorian() {
        for (days, date) in [(0, (1970, 1, 1)), (11_016, (2000, 2, 29)), (19_782, (2024, 2, 29))] {
            assert_eq!(date_of(days), date);
            assert_eq!(days_of(date.0, date.1, date.2), days);
        }
    }

    #[test]
    fn time_passes() {
        // 2023-12-31 23:59:59, a Sunday.
        let mut bench = Bench::new(Rtc::new(1_704_067_199));
        assert_eq!(get(&mut bench, reg::SECONDS), 0x59);
        assert_eq!(get(&mut bench, reg::DAY_OF_WEEK), 1);
        bench.now = SECOND;
        assert_eq!(get(&mut bench, reg::YEAR), 0x24);
        assert_eq!(get(&mut bench, reg::CENTURY), 0x20);
        set(&mut bench, reg::B, DM);
        bench.now += SECOND * 13 * 3600;
        assert_eq!(get(&mut bench, reg::HOURS) & 0x80, 0x80, "PM in 12-hour mode");
    }

    #[test]
    fn periodic_alarm_and_update() {
        let mut bench = Bench::new(Rtc::new(0));
        set(&mut bench, reg::B, HOUR_24 | PIE);
        assert_eq!(bench.chip.next_event(), Some(time_of_tick(32, CRYSTAL)));
        bench.run_until(1_000_000);
        assert!(bench.level(IRQ));
        assert_eq!(get(&mut bench, reg::C), IRQF | PF);
        assert!(!bench.level(IRQ));
        set(&mut bench, reg::SECONDS_ALARM, 0x05);
        set(&mut bench, reg::B, HOUR_24 | AIE);
        bench.run_until(4_500_000_000);
        assert!(!bench.level(IRQ));
        bench.run_until(5_500_000_000);
        assert!(bench.level(IRQ));
        assert_ne!(get(&mut bench, reg::C) & (AF | UF), 0);
        bench.now = 6_999_000_000;
        assert_eq!(get(&mut bench, reg::A) & UIP, UIP);
        bench.now = 7_000_000_000;
        assert_eq!(get(&mut bench, reg::A) & UIP, 0);
    }

    #[test]
    fn set_stops_updates() {
        let mut bench = Bench::new(Rtc::new(0));
        set(&mut bench, reg::B, HOUR_24 | SET);
        set(&mut bench, reg::MINUTES, 0x30);
        bench.now = 3 * SECOND;
        assert_eq!(get(&mut bench, reg::SECONDS), 0);
        set(&mut bench, reg::B, HOUR_24);
        bench.now = 4 * SECOND;
        assert_eq!(get(&mut bench, reg::SECONDS), 1);
        assert_eq!(get(&mut bench, reg::MINUTES), 0x30);
    }
}
