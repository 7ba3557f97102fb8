//! A parallel port in compatibility mode with a printer on it (IBM PC/AT Technical Reference, "Parallel
//! Printer Adapter"; IEEE 1284, "Compatibility Mode").

use serde::{Deserialize, Serialize};

use crate::chip::{Chip, Cx, Effect, Nanos, StateError, decode, encode, open_bus};
use crate::ports::{read_each, write_each};

/// Window of the data, status and control registers.
pub const REGISTERS: u8 = 0;

/// Output pin: to IRQ7. Follows nACK while IRQ EN is set, so that its end of pulse is an edge.
pub const IRQ: u8 = 0;

/// Control register.
const STROBE: u8 = 0x01;
const IRQ_EN: u8 = 0x10;
const DIRECTION: u8 = 0x20;
/// Status register; BUSY reads inverted.
const NOT_BUSY: u8 = 0x80;
const NOT_ACK: u8 = 0x40;
const SELECT: u8 = 0x10;
const NOT_ERROR: u8 = 0x08;

const VERSION: u16 = 1;
/// BUSY lasts this long after a strobe, and its last part has nACK low.
const BUSY: Nanos = 10_000;
const ACK: Nanos = 5_000;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    data: u8,
    control: u8,
    /// The printer takes a byte until then.
    busy_until: Option<Nanos>,
    irq: bool,
}

/// A printer port. Printed bytes leave as [`Effect::Output`].
pub struct Parallel {
    state: State,
}

impl Parallel {
    pub fn new() -> Self {
        Parallel { state: State::default() }
    }

    /// BUSY and nACK at `now`.
    fn handshake(&self, now: Nanos) -> (bool, bool) {
        match self.state.busy_until {
            Some(end) if now < end => (true, now.saturating_add(ACK) < end),
            _ => (false, true),
        }
    }

    fn update(&mut self, cx: &mut Cx) {
        let (busy, ack) = self.handshake(cx.now);
        if !busy {
            self.state.busy_until = None;
        }
        let irq = ack && self.state.control & IRQ_EN != 0;
        if irq != self.state.irq {
            self.state.irq = irq;
            cx.line(IRQ, irq);
        }
    }

    fn write_control(&mut self, cx: &mut Cx, value: u8) {
        let strobed = value & !self.state.control & STROBE != 0;
        self.state.control = value & 0x3F;
        if strobed && self.state.busy_until.is_none() && value & DIRECTION == 0 {
            cx.push(Effect::Output { byte: self.state.data });
            self.state.busy_until = Some(cx.now.saturating_add(BUSY));
        }
    }
}

impl Chip for Parallel {
    fn name(&self) -> &'static str {
        "parallel"
    }

    fn reset(&mut self, cx: &mut Cx) {
        self.state = State::default();
        cx.line(IRQ, false);
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        if window != REGISTERS {
            return open_bus(size);
        }
        self.update(cx);
        let (busy, ack) = self.handshake(cx.now);
        let status = SELECT | NOT_ERROR | 7 | if busy { 0 } else { NOT_BUSY } | if ack { NOT_ACK } else { 0 };
        read_each(offset, size, |o| match o {
            0 if self.state.control & DIRECTION != 0 => 0xFF,
            0 => self.state.data,
            1 => status,
            2 => self.state.control | 0xC0,
            _ => 0xFF,
        })
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        if window != REGISTERS {
            return;
        }
        self.update(cx);
        write_each(offset, size, value, |o, byte| match o {
            0 => self.state.data = byte,
            2 => self.write_control(cx, byte),
            _ => {}
        });
        self.update(cx);
    }

    fn next_event(&self) -> Option<Nanos> {
        let end = self.state.busy_until?;
        // While the pin is high the start of nACK comes next, then its end.
        Some(if self.state.irq { end.saturating_sub(ACK) } else { end })
    }

    fn event(&mut self, cx: &mut Cx) {
        if self.state.irq && self.state.busy_until.is_some_and(|end| end <= cx.now) {
            // Both ends of a pulse that is over already.
            self.state.irq = false;
            cx.line(IRQ, false);
        }
        self.update(cx);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        if state.control > 0x3F {
            return Err(StateError::Damaged { chip: self.name(), reason: "register out of range".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        format!("data={:02x} control={:02x}\n", self.state.data, self.state.control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    #[test]
    fn prints_with_handshake() {
        let mut bench = Bench::new(Parallel::new());
        assert_eq!(bench.read(REGISTERS, 1, 1), 0xDF);
        bench.write(REGISTERS, 2, 1, 0x1C);
        bench.write(REGISTERS, 0, 1, u64::from(b'A'));
        bench.write(REGISTERS, 2, 1, 0x1D);
        bench.write(REGISTERS, 2, 1, 0x1C);
        assert_eq!(bench.output(), b"A");
        assert_eq!(bench.read(REGISTERS, 1, 1) & 0xC0, 0x40);
        bench.run_until(7_000);
        assert_eq!(bench.read(REGISTERS, 1, 1) & 0xC0, 0);
        assert!(!bench.level(IRQ));
        bench.run_until(10_000);
        assert!(bench.level(IRQ));
        assert_eq!(bench.read(REGISTERS, 1, 1) & 0xC0, 0xC0);
    }
}
