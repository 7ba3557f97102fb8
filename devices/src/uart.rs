//! The 16550A UART (National Semiconductor PC16550D datasheet).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::chip::{Chip, Cx, Effect, Nanos, StateError, decode, encode, open_bus};
use crate::ports::{read_each, write_each};

/// Window of the eight registers.
pub const REGISTERS: u8 = 0;

/// Output pin: the interrupt, gated by OUT2 as on a PC.
pub const IRQ: u8 = 0;

/// Register offsets.
mod reg {
    /// RBR, THR, or DLL.
    pub const DATA: u64 = 0;
    /// IER, or DLM.
    pub const IER: u64 = 1;
    /// IIR when read, FCR when written.
    pub const IIR: u64 = 2;
    pub const LCR: u64 = 3;
    pub const MCR: u64 = 4;
    pub const LSR: u64 = 5;
    pub const MSR: u64 = 6;
    pub const SCR: u64 = 7;
}

mod ier {
    pub const RECEIVED: u8 = 1;
    pub const THRE: u8 = 2;
    pub const LINE_STATUS: u8 = 4;
    pub const MODEM_STATUS: u8 = 8;
}

mod iir {
    pub const NONE: u8 = 0x01;
    pub const MODEM_STATUS: u8 = 0x00;
    pub const THRE: u8 = 0x02;
    pub const RECEIVED: u8 = 0x04;
    pub const LINE_STATUS: u8 = 0x06;
    pub const TIMEOUT: u8 = 0x0C;
    pub const FIFOS: u8 = 0xC0;
}

mod lsr {
    pub const DR: u8 = 0x01;
    pub const OE: u8 = 0x02;
    pub const BI: u8 = 0x10;
    pub const THRE: u8 = 0x20;
    pub const TEMT: u8 = 0x40;
    pub const FIFO_ERROR: u8 = 0x80;
    pub const ERRORS: u8 = 0x1E;
}

mod mcr {
    pub const OUT2: u8 = 0x08;
    pub const LOOP: u8 = 0x10;
}

/// Lines of the other end, as in bits 7 to 4 of the modem status register.
pub mod modem {
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RI: u8 = 0x40;
    pub const DCD: u8 = 0x80;
}

const VERSION: u16 = 1;
const FIFO: usize = 16;
const DLAB: u8 = 0x80;
const FCR_ENABLE: u8 = 1;
/// Time to send one byte. The baud rate is not modelled: a boot log must not wait for it.
const TRANSMIT: Nanos = 1_000;
/// Longest character time assumed for the receiver's timeout: 10 bits at 115,200 baud.
const CHARACTER: Nanos = 87_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    /// Received bytes with their LSR error bits.
    received: VecDeque<(u8, u8)>,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// OE and the error bits of the byte at the top of the FIFO.
    errors: u8,
    /// Bits 7-4: levels of the other end; bits 3-0: what changed.
    msr: u8,
    scr: u8,
    divisor: u16,
    /// When the transmitter is empty; in the past while it idles.
    idle_at: Nanos,
    transmitting: bool,
    thre_pending: bool,
    /// When the receiver's timeout interrupt comes.
    timeout_at: Option<Nanos>,
    timeout: bool,
    irq: bool,
}

impl State {
    fn new() -> Self {
        State {
            received: VecDeque::new(),
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            errors: 0,
            msr: modem::CTS | modem::DSR | modem::DCD,
            scr: 0,
            divisor: 12,
            idle_at: 0,
            transmitting: false,
            thre_pending: false,
            timeout_at: None,
            timeout: false,
            irq: false,
        }
    }
}

/// A serial port. Transmitted bytes leave as [`Effect::Output`].
pub struct Uart {
    state: State,
    /// What the other end drives, while not in loopback.
    lines: u8,
}

impl Uart {
    pub fn new() -> Self {
        Uart { state: State::new(), lines: modem::CTS | modem::DSR | modem::DCD }
    }

    /// Bytes that [`Uart::receive`] can take without an overrun.
    pub fn room(&self) -> usize {
        if self.state.mcr & mcr::LOOP != 0 {
            0
        } else {
            self.depth().saturating_sub(self.state.received.len())
        }
    }

    /// A byte arrives from outside. In loopback it is lost.
    pub fn receive(&mut self, cx: &mut Cx, byte: u8) {
        self.sync(cx.now);
        if self.state.mcr & mcr::LOOP == 0 {
            self.accept(cx.now, byte, 0);
        }
        self.drive(cx);
    }

    /// A break condition arrives.
    pub fn receive_break(&mut self, cx: &mut Cx) {
        self.sync(cx.now);
        if self.state.mcr & mcr::LOOP == 0 {
            self.accept(cx.now, 0, lsr::BI);
        }
        self.drive(cx);
    }

    /// The other end drives its modem lines: [`modem`].
    pub fn set_modem(&mut self, cx: &mut Cx, lines: u8) {
        self.sync(cx.now);
        self.lines = lines & 0xF0;
        self.modem_lines();
        self.drive(cx);
    }

    fn fifos(&self) -> bool {
        self.state.fcr & FCR_ENABLE != 0
    }

    fn depth(&self) -> usize {
        if self.fifos() { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        if !self.fifos() {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.state.fcr >> 6 & 3)]
    }

    /// One character at the programmed rate, in bounds.
    fn character(&self) -> Nanos {
        (u64::from(self.state.divisor.max(1)) * 87_000).min(CHARACTER)
    }

    fn accept(&mut self, now: Nanos, byte: u8, errors: u8) {
        if self.state.received.len() >= self.depth() {
            self.state.errors |= lsr::OE;
            if !self.fifos() {
                self.state.received.clear();
                self.state.received.push_back((byte, errors));
            }
            return;
        }
        if self.state.received.is_empty() {
            self.state.errors |= errors;
        }
        self.state.received.push_back((byte, errors));
        self.restart_timeout(now);
    }

    fn restart_timeout(&mut self, now: Nanos) {
        self.state.timeout = false;
        let wanted = self.fifos() && !self.state.received.is_empty();
        self.state.timeout_at = wanted.then(|| now.saturating_add(4 * self.character()));
    }

    /// Levels in the MSR follow the other end, or the MCR in loopback; changes are noted.
    fn modem_lines(&mut self) {
        let mcr = self.state.mcr;
        let levels = if mcr & mcr::LOOP != 0 {
            // RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
            (mcr & 2) << 3 | (mcr & 1) << 5 | (mcr & 4) << 4 | (mcr & 8) << 4
        } else {
            self.lines
        };
        let old = self.state.msr;
        let changed = (old ^ levels) & 0xF0;
        // RI counts when it goes away only.
        let changed = changed & !modem::RI | changed & old & modem::RI;
        self.state.msr = levels | old & 0x0F | changed >> 4;
    }

    /// Lets the transmitter and the receiver's timeout come to `now`.
    fn sync(&mut self, now: Nanos) {
        if self.state.transmitting && now >= self.state.idle_at {
            self.state.transmitting = false;
            self.state.thre_pending = true;
        }
        if self.state.timeout_at.is_some_and(|at| at <= now) {
            self.state.timeout_at = None;
            self.state.timeout = true;
        }
    }

    /// The interrupt of highest priority.
    fn identification(&self) -> u8 {
        let s = &self.state;
        if s.ier & ier::LINE_STATUS != 0 && s.errors != 0 {
            iir::LINE_STATUS
        } else if s.ier & ier::RECEIVED != 0 && s.received.len() >= self.trigger() {
            iir::RECEIVED
        } else if s.ier & ier::RECEIVED != 0 && s.timeout && !s.received.is_empty() {
            iir::TIMEOUT
        } else if s.ier & ier::THRE != 0 && s.thre_pending {
            iir::THRE
        } else if s.ier & ier::MODEM_STATUS != 0 && s.msr & 0x0F != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn drive(&mut self, cx: &mut Cx) {
        let irq = self.identification() != iir::NONE && self.state.mcr & mcr::OUT2 != 0;
        if irq != self.state.irq {
            self.state.irq = irq;
            cx.line(IRQ, irq);
        }
    }

    fn transmit(&mut self, cx: &mut Cx, byte: u8) {
        if self.state.mcr & mcr::LOOP != 0 {
            self.accept(cx.now, byte, 0);
        } else {
            cx.push(Effect::Output { byte });
        }
        // Never further ahead than a full FIFO, whatever the guest writes.
        let limit = cx.now.saturating_add(TRANSMIT * FIFO as u64);
        self.state.idle_at = self.state.idle_at.max(cx.now).saturating_add(TRANSMIT).min(limit);
        self.state.transmitting = true;
        self.state.thre_pending = false;
    }

    fn read_data(&mut self, now: Nanos) -> u8 {
        let Some((byte, _)) = self.state.received.pop_front() else { return 0 };
        if let Some(&(_, errors)) = self.state.received.front() {
            self.state.errors |= errors;
        }
        self.restart_timeout(now);
        byte
    }

    fn read_lsr(&mut self) -> u8 {
        let s = &mut self.state;
        let mut value = std::mem::take(&mut s.errors);
        if !s.received.is_empty() {
            value |= lsr::DR;
        }
        if s.fcr & FCR_ENABLE != 0 && s.received.iter().any(|&(_, errors)| errors != 0) {
            value |= lsr::FIFO_ERROR;
        }
        value | if s.transmitting { 0 } else { lsr::THRE | lsr::TEMT }
    }

    fn read_iir(&mut self) -> u8 {
        let identification = self.identification();
        if identification == iir::THRE {
            self.state.thre_pending = false;
        }
        identification | if self.fifos() { iir::FIFOS } else { 0 }
    }

    fn read_register(&mut self, now: Nanos, register: u64) -> u8 {
        let dlab = self.state.lcr & DLAB != 0;
        match register {
            reg::DATA if dlab => self.state.divisor as u8,
            reg::IER if dlab => (self.state.divisor >> 8) as u8,
            reg::DATA => self.read_data(now),
            reg::IER => self.state.ier,
            reg::IIR => self.read_iir(),
            reg::LCR => self.state.lcr,
            reg::MCR => self.state.mcr,
            reg::LSR => self.read_lsr(),
            reg::MSR => {
                let value = self.state.msr;
                self.state.msr &= 0xF0;
                value
            }
            reg::SCR => self.state.scr,
            _ => 0xFF,
        }
    }

    fn write_register(&mut self, cx: &mut Cx, register: u64, value: u8) {
        let dlab = self.state.lcr & DLAB != 0;
        match register {
            reg::DATA if dlab => self.state.divisor = self.state.divisor & 0xFF00 | u16::from(value),
            reg::IER if dlab => self.state.divisor = self.state.divisor & 0x00FF | u16::from(value) << 8,
            reg::DATA => self.transmit(cx, value),
            reg::IER => {
                // Enabling the interrupt while THR is empty raises it.
                if value & !self.state.ier & ier::THRE != 0 && !self.state.transmitting {
                    self.state.thre_pending = true;
                }
                self.state.ier = value & 0x0F;
            }
            reg::IIR => self.write_fcr(value),
            reg::LCR => self.state.lcr = value,
            reg::MCR => {
                self.state.mcr = value & 0x1F;
                self.modem_lines();
            }
            reg::SCR => self.state.scr = value,
            _ => {}
        }
    }

    fn write_fcr(&mut self, value: u8) {
        let toggled = (self.state.fcr ^ value) & FCR_ENABLE != 0;
        // Without the enable bit the others are not programmed.
        self.state.fcr = if value & FCR_ENABLE != 0 { value & 0xC9 } else { 0 };
        if toggled || value & FCR_ENABLE != 0 && value & 2 != 0 {
            self.state.received.clear();
            self.state.errors = 0;
            self.state.timeout = false;
            self.state.timeout_at = None;
        }
        if toggled || value & FCR_ENABLE != 0 && value & 4 != 0 {
            self.state.transmitting = false;
            self.state.thre_pending = true;
        }
    }
}

impl Chip for Uart {
    fn name(&self) -> &'static str {
        "serial"
    }

    fn reset(&mut self, cx: &mut Cx) {
        self.state =
            State { scr: self.state.scr, divisor: self.state.divisor, msr: self.lines, ..State::new() };
        cx.line(IRQ, false);
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        if window != REGISTERS {
            return open_bus(size);
        }
        self.sync(cx.now);
        let value = read_each(offset, size, |o| self.read_register(cx.now, o));
        self.drive(cx);
        value
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        if window == REGISTERS {
            self.sync(cx.now);
            write_each(offset, size, value, |o, byte| self.write_register(cx, o, byte));
            self.drive(cx);
        }
    }

    /// Only what can interrupt needs an event.
    fn next_event(&self) -> Option<Nanos> {
        let s = &self.state;
        let transmitter = (s.transmitting && s.ier & ier::THRE != 0).then_some(s.idle_at);
        let timeout = s.timeout_at.filter(|_| s.ier & ier::RECEIVED != 0);
        transmitter.into_iter().chain(timeout).min()
    }

    fn event(&mut self, cx: &mut Cx) {
        self.sync(cx.now);
        self.drive(cx);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        let fifo = state.received.len() <= FIFO
            && state.received.iter().all(|&(_, errors)| errors & !lsr::ERRORS == 0);
        if !fifo || state.ier > 0x0F || state.mcr > 0x1F || state.errors & !lsr::ERRORS != 0 {
            return Err(StateError::Damaged { chip: self.name(), reason: "register out of range".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        let s = &self.state;
        format!(
            "ier={:02x} fcr={:02x} lcr={:02x} mcr={:02x} msr={:02x} divisor={} received={}\n",
            s.ier,
            s.fcr,
            s.lcr,
            s.mcr,
            s.msr,
            s.divisor,
            s.received.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn ready() -> Bench<Uart> {
        let mut bench = Bench::new(Uart::new());
        bench.write(REGISTERS, reg::MCR, 1, 0x0B);
        bench.write(REGISTERS, reg::IIR, 1, 0x81);
        bench
    }

    #[test]
    fn transmit_and_thre_interrupt() {
        let mut bench = ready();
        bench.write(REGISTERS, reg::IER, 1, 2);
        assert!(bench.level(IRQ));
        assert_eq!(bench.read(REGISTERS, reg::IIR, 1), 0xC2);
        assert!(!bench.level(IRQ));
        for byte in *b"hello" {
            bench.write(REGISTERS, reg::DATA, 1, u64::from(byte));
        }
        assert_eq!(bench.output(), b"hello");
        assert_eq!(bench.read(REGISTERS, reg::LSR, 1) & 0x60, 0);
        bench.run_until(5_000);
        assert!(bench.level(IRQ));
        assert_eq!(bench.read(REGISTERS, reg::LSR, 1), 0x60);
    }

    #[test]
    fn receive_trigger_timeout_and_overrun() {
        let mut bench = ready();
        bench.write(REGISTERS, reg::IER, 1, 5);
        bench.with(|chip, cx| chip.receive(cx, b'x'));
        assert!(!bench.level(IRQ));
        bench.run_until(1_000_000);
        assert_eq!(bench.read(REGISTERS, reg::IIR, 1), 0xCC);
        assert_eq!(bench.read(REGISTERS, reg::DATA, 1), u64::from(b'x'));
        assert!(!bench.level(IRQ));
        for byte in 0..17 {
            bench.with(|chip, cx| chip.receive(cx, byte));
        }
        assert_eq!(bench.chip.room(), 0);
        assert_eq!(bench.read(REGISTERS, reg::IIR, 1), 0xC6);
        assert_eq!(bench.read(REGISTERS, reg::LSR, 1) & 3, 3);
        assert_eq!(bench.read(REGISTERS, reg::IIR, 1), 0xC4);
    }

    #[test]
    fn loopback_and_modem_status() {
        let mut bench = ready();
        bench.write(REGISTERS, reg::MCR, 1, 0x1A);
        assert_eq!(bench.read(REGISTERS, reg::MSR, 1) & 0xF0, 0x90);
        bench.write(REGISTERS, reg::DATA, 1, 0x55);
        assert_eq!(bench.output(), b"");
        assert_eq!(bench.read(REGISTERS, reg::DATA, 1), 0x55);
        bench.write(REGISTERS, reg::LCR, 1, 0x80);
        bench.write(REGISTERS, reg::DATA, 1, 0x34);
        assert_eq!(bench.read(REGISTERS, reg::DATA, 1), 0x34);
    }
}
