//! 82077AA, the floppy disk controller (Intel 82077AA datasheet), with two drives.
//!
//! The chip never calls the 8237. While it wants DMA cycles, its request is up ([`Effect::DmaRequest`], channel
//! 2). The board then asks [`Floppy::dma_request`] for direction and byte count, moves bytes
//! ([`Floppy::dma_out`] or [`Floppy::dma_in`]) and reports with [`Floppy::dma_done`].

mod commands;
mod media;
#[cfg(test)]
mod tests;

use crate::block::Medium;
use crate::chip::{Chip, Cx, Effect, Nanos, StateError, decode, encode, open_bus};
use media::Drive;
use serde::{Deserialize, Serialize};

/// Windows: 6 ports at 0x3F0 (SRA, SRB, DOR, TDR, MSR/DSR, FIFO) and 1 port at 0x3F7 (DIR/CCR).
pub const PORTS: u8 = 0;
pub const DIR_CCR: u8 = 1;
/// Output pin: INT (IRQ 6).
pub const IRQ: u8 = 0;
/// The 8237 channel.
pub const DMA_CHANNEL: u8 = 2;

/// DOR bits: RESET# (0 resets), DMAGATE#.
const NOT_RESET: u8 = 0x04;
const DMAGATE: u8 = 0x08;
/// MSR bits.
const RQM: u8 = 0x80;
const DIO: u8 = 0x40;
const NON_DMA: u8 = 0x20;
const CB: u8 = 0x10;

/// Virtual delays.
const RESET_DELAY: Nanos = 20_000;
const COMMAND_DELAY: Nanos = 50_000;
const SECTOR_DELAY: Nanos = 50_000;
const STEP_DELAY: Nanos = 20_000;
/// Largest buffer: a format's 255 sector headers of four bytes, or a sector.
const BUFFER: usize = 1024;
const VERSION: u16 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Takes command bytes.
    Command,
    /// Busy.
    Execution,
    /// A buffer goes to the host.
    ToHost,
    /// A buffer is filled by the host.
    FromHost,
    Result,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Action {
    ResetDone,
    SeekDone {
        drive: u8,
        cylinder: u8,
    },
    /// Read or ask for the sector that stands in C, H, R.
    Sector,
    ReadId,
}

/// Direction of the DMA cycles that the chip asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaDirection {
    ToMemory,
    FromMemory,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    dor: u8,
    dsr: u8,
    tdr: u8,
    ccr: u8,
    phase: Phase,
    pending: Option<(Nanos, Action)>,
    /// INT before DMAGATE#, and the levels that the board knows.
    int: bool,
    line: bool,
    dma_request: bool,
    command: Vec<u8>,
    result: Vec<u8>,
    buffer: Vec<u8>,
    position: u16,
    /// C, H, R of the running transfer.
    cylinder: u8,
    head: u8,
    sector: u8,
    /// Physical cylinder of the four possible drives.
    track: [u8; 4],
    disk_changed: [bool; 2],
    /// SENSE INTERRUPT's answers: after a reset one a drive, after seeks ST0.
    reset_sense: u8,
    seek_sense: [Option<u8>; 4],
    /// SPECIFY, CONFIGURE, PERPENDICULAR MODE, LOCK.
    specify: [u8; 2],
    configure: u8,
    precompensation: u8,
    perpendicular: u8,
    locked: bool,
}

impl State {
    fn new() -> Self {
        State {
            dor: 0,
            dsr: 2,
            tdr: 0,
            ccr: 2,
            phase: Phase::Command,
            pending: None,
            int: false,
            line: false,
            dma_request: false,
            command: Vec::new(),
            result: Vec::new(),
            buffer: Vec::new(),
            position: 0,
            cylinder: 0,
            head: 0,
            sector: 0,
            track: [0; 4],
            disk_changed: [true; 2],
            reset_sense: 0,
            seek_sense: [None; 4],
            specify: [0; 2],
            configure: 0x20,
            precompensation: 0,
            perpendicular: 0,
            locked: false,
        }
    }

    fn check(&self) -> bool {
        self.command.len() <= 9
            && self.result.len() <= 10
            && self.buffer.len() <= BUFFER
            && usize::from(self.position) <= self.buffer.len()
            && (self.phase != Phase::Command || self.command.len() < 9)
            && (matches!(self.phase, Phase::Command | Phase::Result)
                || !self.command.is_empty()
                || self.pending.is_some())
            && self.reset_sense <= 4
    }
}

pub struct Floppy {
    drives: [Drive; 2],
    state: State,
}

impl Floppy {
    pub fn new() -> Self {
        Floppy { drives: [Drive::default(), Drive::default()], state: State::new() }
    }

    /// Puts a diskette into drive 0 or 1, or takes it out. The disk change line tells the guest.
    pub fn insert(&mut self, drive: u8, medium: Option<Box<dyn Medium>>) {
        if let Some(slot) = self.drives.get_mut(usize::from(drive)) {
            slot.medium = medium;
            self.state.disk_changed[usize::from(drive & 1)] = true;
        }
    }

    /// The DMA cycles that the chip wants now: direction and bytes.
    pub fn dma_request(&self) -> Option<(DmaDirection, usize)> {
        let direction = match self.state.phase {
            Phase::ToHost => DmaDirection::ToMemory,
            Phase::FromHost => DmaDirection::FromMemory,
            _ => return None,
        };
        let left = self.state.buffer.len().saturating_sub(usize::from(self.state.position));
        self.state.dma_request.then_some((direction, left))
    }

    /// Bytes on their way to memory; [`Floppy::dma_done`] takes them away.
    pub fn dma_out(&self) -> &[u8] {
        let from = usize::from(self.state.position);
        if self.state.phase == Phase::ToHost { self.state.buffer.get(from..).unwrap_or(&[]) } else { &[] }
    }

    /// Bytes from memory, before the [`Floppy::dma_done`] that counts them.
    pub fn dma_in(&mut self, data: &[u8]) {
        let from = usize::from(self.state.position);
        if self.state.phase == Phase::FromHost {
            let room = self.state.buffer.get_mut(from..).unwrap_or(&mut []);
            for (to, &byte) in room.iter_mut().zip(data) {
                *to = byte;
            }
        }
    }

    /// The 8237 moved `bytes`; `terminal_count` is its TC output.
    pub fn dma_done(&mut self, cx: &mut Cx, bytes: usize, terminal_count: bool) {
        if self.state.dma_request {
            self.moved(cx, bytes, terminal_count);
            self.update_lines(cx);
        }
    }

    fn dma_mode(&self) -> bool {
        self.state.specify[1] & 1 == 0
    }

    /// Applies INT and DRQ, gated by DOR, where they changed.
    fn update_lines(&mut self, cx: &mut Cx) {
        let gate = self.state.dor & DMAGATE != 0;
        let line = self.state.int && gate;
        if line != self.state.line {
            self.state.line = line;
            cx.line(IRQ, line);
        }
        let transfer = matches!(self.state.phase, Phase::ToHost | Phase::FromHost);
        let request = transfer && self.dma_mode() && gate;
        if request != self.state.dma_request {
            self.state.dma_request = request;
            cx.push(Effect::DmaRequest { channel: DMA_CHANNEL, level: request });
        }
    }

    /// Both resets, DOR's and DSR's.
    fn reset_core(&mut self) {
        let s = &mut self.state;
        (s.phase, s.pending, s.int) = (Phase::Command, None, false);
        s.command.clear();
        s.result.clear();
        s.buffer.clear();
        s.position = 0;
        (s.reset_sense, s.seek_sense) = (0, [None; 4]);
        if !s.locked {
            (s.configure, s.precompensation) = (0x20, 0);
        }
        s.perpendicular &= 0x3C;
    }

    fn write_dor(&mut self, cx: &mut Cx, value: u8) {
        let old = std::mem::replace(&mut self.state.dor, value);
        if value & NOT_RESET == 0 {
            self.reset_core();
        } else if old & NOT_RESET == 0 {
            self.state.pending = Some((cx.now.saturating_add(RESET_DELAY), Action::ResetDone));
        }
    }

    fn main_status(&self) -> u8 {
        let s = &self.state;
        if s.dor & NOT_RESET == 0 || matches!(s.pending, Some((_, Action::ResetDone))) {
            return 0;
        }
        let seeking = match s.pending {
            Some((_, Action::SeekDone { drive, .. })) => 1 << (drive & 3),
            _ => 0,
        };
        let pio = if self.dma_mode() { 0 } else { NON_DMA };
        let rqm = if pio != 0 { RQM } else { 0 };
        seeking
            | match s.phase {
                Phase::Command if seeking != 0 => 0,
                Phase::Command => RQM | if s.command.is_empty() { 0 } else { CB },
                Phase::Execution => CB,
                Phase::ToHost => CB | DIO | pio | rqm,
                Phase::FromHost => CB | pio | rqm,
                Phase::Result => CB | DIO | RQM,
            }
    }

    fn read_fifo(&mut self, cx: &mut Cx) -> u8 {
        match self.state.phase {
            Phase::Result => {
                self.state.int = false;
                let byte = if self.state.result.is_empty() { 0 } else { self.state.result.remove(0) };
                if self.state.result.is_empty() {
                    self.state.phase = Phase::Command;
                }
                byte
            }
            Phase::ToHost if !self.dma_mode() => {
                self.state.int = false;
                let byte = self.state.buffer.get(usize::from(self.state.position)).copied();
                self.moved(cx, 1, false);
                byte.unwrap_or(0)
            }
            _ => 0,
        }
    }

    fn write_fifo(&mut self, cx: &mut Cx, value: u8) {
        if self.main_status() & RQM == 0 {
            return;
        }
        match self.state.phase {
            Phase::Command => self.command_byte(cx, value),
            Phase::FromHost if !self.dma_mode() => {
                self.state.int = false;
                let at = usize::from(self.state.position);
                if let Some(to) = self.state.buffer.get_mut(at) {
                    *to = value;
                }
                self.moved(cx, 1, false);
            }
            _ => {}
        }
    }

    /// DIR: bit 7 is the selected drive's disk change line, while its motor runs.
    fn digital_input(&self) -> u8 {
        let drive = usize::from(self.state.dor & 3);
        let motor = self.state.dor >> (4 + drive) & 1 != 0;
        let changed = match (self.drives.get(drive), self.state.disk_changed.get(drive)) {
            (Some(slot), Some(&changed)) => changed || slot.medium.is_none(),
            _ => true,
        };
        if motor && changed { 0x80 } else { 0 }
    }
}

impl Default for Floppy {
    fn default() -> Self {
        Self::new()
    }
}

impl Chip for Floppy {
    fn name(&self) -> &'static str {
        "floppy"
    }

    fn reset(&mut self, cx: &mut Cx) {
        let old = std::mem::replace(&mut self.state, State::new());
        (self.state.line, self.state.dma_request) = (old.line, old.dma_request);
        self.update_lines(cx);
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        let byte = match (window, offset) {
            (PORTS, 0) => u8::from(self.state.line) << 7 | 0x40,
            (PORTS, 1) => 0xC0 | self.state.dor >> 4 & 3,
            (PORTS, 2) => self.state.dor,
            (PORTS, 3) => self.state.tdr,
            (PORTS, 4) => self.main_status(),
            (PORTS, 5) => self.read_fifo(cx),
            (DIR_CCR, 0) => self.digital_input(),
            _ => 0xFF,
        };
        self.update_lines(cx);
        open_bus(size) & !0xFF | u64::from(byte)
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, _size: u8, value: u64) {
        let value = value as u8;
        match (window, offset) {
            (PORTS, 2) => self.write_dor(cx, value),
            (PORTS, 3) => self.state.tdr = value & 3,
            (PORTS, 4) => {
                self.state.dsr = value & 0x7F;
                self.state.ccr = value & 3;
                if value & 0x80 != 0 && self.state.dor & NOT_RESET != 0 {
                    self.reset_core();
                    self.state.pending = Some((cx.now.saturating_add(RESET_DELAY), Action::ResetDone));
                }
            }
            (PORTS, 5) => self.write_fifo(cx, value),
            (DIR_CCR, 0) => {
                self.state.ccr = value & 3;
                self.state.dsr = self.state.dsr & !3 | value & 3;
            }
            _ => {}
        }
        self.update_lines(cx);
    }

    fn next_event(&self) -> Option<Nanos> {
        self.state.pending.map(|(at, _)| at)
    }

    fn event(&mut self, cx: &mut Cx) {
        if let Some((_, action)) = self.state.pending.take() {
            self.act(action);
            self.update_lines(cx);
        }
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: State = decode("floppy", VERSION, bytes)?;
        if !saved.check() {
            return Err(StateError::Damaged { chip: "floppy", reason: "value out of range".into() });
        }
        self.state = saved;
        Ok(())
    }

    fn info(&self) -> String {
        let s = &self.state;
        let mut text =
            format!("DOR {:02X} MSR {:02X} CCR {} {:?}\n", s.dor, self.main_status(), s.ccr, s.phase);
        for (i, drive) in self.drives.iter().enumerate() {
            let medium = drive.medium.as_ref().map_or("empty".into(), |medium| medium.label());
            text += &format!("drive {i}: track {}, {medium}\n", s.track[i]);
        }
        text
    }
}
