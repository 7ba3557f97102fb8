//! A drive: its task file, its buffer, and the data phases that ATA and ATAPI commands share.

use super::bus_master::{BusMaster, Transfer};
use crate::block::Medium;
use crate::chip::{Cx, Nanos, open_bus};
use serde::{Deserialize, Serialize};

/// Status register bits.
pub mod status {
    pub const ERR: u8 = 0x01;
    pub const DRQ: u8 = 0x08;
    pub const DSC: u8 = 0x10;
    pub const DF: u8 = 0x20;
    pub const DRDY: u8 = 0x40;
    pub const BSY: u8 = 0x80;
}

/// Error register bits.
pub mod error {
    pub const ABRT: u8 = 0x04;
    pub const IDNF: u8 = 0x10;
    pub const UNC: u8 = 0x40;
}

pub const SECTOR: usize = 512;
/// Bytes in the buffer at most: one step of a DMA transfer.
pub const BUFFER: usize = 0x1_0000;
/// Virtual delays.
pub const COMMAND_DELAY: Nanos = 20_000;
pub const NEXT_BLOCK_DELAY: Nanos = 5_000;
pub const DMA_DELAY: Nanos = 50_000;
pub const RESET_DELAY: Nanos = 100_000;

/// What can be attached.
pub enum Drive {
    Disk(Box<dyn Medium>),
    CdRom(Option<Box<dyn Medium>>),
}

/// What happens when the delay is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Reset or diagnostic done: the signature stands in the registers. With or without an interrupt.
    Signature { interrupt: bool },
    /// A command without data is done.
    Finish,
    /// The next DRQ block of a PIO read.
    ReadBlock,
    /// The host filled a DRQ block of a PIO write.
    WriteBlock,
    /// One step of a DMA transfer.
    Dma,
    /// The command packet is complete.
    Packet,
    /// The next byte-count-limited piece of a packet's data.
    PacketData,
}

/// What the data port does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Idle,
    DataIn,
    DataOut,
    Packet,
    /// A DMA command waits for the bus master, or runs.
    Dma,
}

/// Sense data: key, additional code, qualifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sense {
    pub key: u8,
    pub asc: u8,
    pub ascq: u8,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct DriveState {
    /// Task file; the high byte is the previous content (48-bit commands).
    pub features: u16,
    pub count: u16,
    pub lba_low: u16,
    pub lba_mid: u16,
    pub lba_high: u16,
    pub device: u8,
    pub error: u8,
    pub status: u8,
    pub intrq: bool,
    pub phase: Phase,
    pub pending: Option<(Nanos, Action)>,
    /// The data port moves `buffer[position..end]`.
    pub buffer: Vec<u8>,
    pub position: u32,
    pub end: u32,
    /// The running transfer: its next sector and how many are left to read or write.
    pub lba: u64,
    pub left: u32,
    pub writing: bool,
    /// Sectors a DRQ block of the running PIO command.
    pub block: u8,
    /// SET MULTIPLE MODE's count, 0 where off.
    pub multiple: u8,
    /// INITIALIZE DEVICE PARAMETERS' geometry.
    pub heads: u8,
    pub sectors: u8,
    /// SET FEATURES' transfer mode (as its sector count) and write cache.
    pub transfer_mode: u8,
    pub write_cache: bool,
    /// ATAPI: PACKET's DMA bit, sense, unit attention, tray.
    pub packet_dma: bool,
    /// The data port carries a packet command's data.
    pub packet_data: bool,
    /// The host's byte count limit for each piece of it.
    pub limit: u16,
    pub sense: Sense,
    pub unit_attention: Option<Sense>,
    pub media_event: u8,
    pub tray_open: bool,
    pub locked: bool,
}

impl DriveState {
    fn new() -> Self {
        DriveState {
            features: 0,
            count: 0,
            lba_low: 0,
            lba_mid: 0,
            lba_high: 0,
            device: 0,
            error: 0,
            status: 0,
            intrq: false,
            phase: Phase::Idle,
            pending: None,
            buffer: Vec::new(),
            position: 0,
            end: 0,
            lba: 0,
            left: 0,
            writing: false,
            block: 1,
            multiple: 0,
            heads: 16,
            sectors: 63,
            transfer_mode: 0x22,
            write_cache: true,
            packet_dma: false,
            packet_data: false,
            limit: 0xFFFE,
            sense: Sense::default(),
            unit_attention: None,
            media_event: 0,
            tray_open: false,
            locked: false,
        }
    }
}

pub struct Device {
    /// Position on the controller, 0 to 3, for the serial number.
    pub number: u8,
    pub drive: Drive,
    pub state: DriveState,
}

impl Device {
    pub fn new(number: u8, drive: Drive) -> Self {
        let mut device = Device { number, drive, state: DriveState::new() };
        device.signature();
        device
    }

    pub fn is_atapi(&self) -> bool {
        matches!(self.drive, Drive::CdRom(_))
    }

    /// Hardware reset, or software reset, which keeps the settings.
    pub fn reset(&mut self, hard: bool) {
        let old = std::mem::replace(&mut self.state, DriveState::new());
        self.state.unit_attention = old.unit_attention;
        self.state.media_event = old.media_event;
        self.state.tray_open = old.tray_open;
        if !hard {
            self.state.locked = old.locked;
            self.state.transfer_mode = old.transfer_mode;
            self.state.write_cache = old.write_cache;
            self.state.multiple = old.multiple;
            self.state.heads = old.heads;
            self.state.sectors = old.sectors;
        }
        self.signature();
    }

    pub fn finish_reset_at(&mut self, at: Nanos) {
        self.state.status = status::BSY;
        self.state.pending = Some((at, Action::Signature { interrupt: false }));
    }

    /// EXECUTE DEVICE DIAGNOSTIC.
    pub fn diagnose(&mut self, now: Nanos) {
        self.stop();
        self.state.status = status::BSY;
        let action = Action::Signature { interrupt: true };
        self.state.pending = Some((now.saturating_add(COMMAND_DELAY), action));
    }

    /// The registers after a reset: "device 0 passed", and what kind of device this is.
    pub fn signature(&mut self) {
        let (mid, high, ready) =
            if self.is_atapi() { (0x14, 0xEB, 0) } else { (0, 0, status::DRDY | status::DSC) };
        let state = &mut self.state;
        (state.count, state.lba_low, state.lba_mid, state.lba_high) = (1, 1, mid, high);
        (state.device, state.error, state.status) = (0, 1, ready);
    }

    /// Ends whatever data phase there was.
    pub fn stop(&mut self) {
        let state = &mut self.state;
        state.phase = Phase::Idle;
        state.pending = None;
        state.buffer.clear();
        (state.position, state.end, state.left) = (0, 0, 0);
        state.packet_data = false;
    }

    pub fn command(&mut self, now: Nanos, command: u8) {
        self.stop();
        self.state.error = 0;
        self.state.status = status::BSY | status::DRDY;
        if self.is_atapi() { self.atapi_command(now, command) } else { self.ata_command(now, command) }
    }

    /// Busy until `action` comes, `delay` from now.
    pub fn later(&mut self, now: Nanos, delay: Nanos, action: Action) {
        self.state.status = self.state.status & !status::DRQ | status::BSY;
        self.state.pending = Some((now.saturating_add(delay), action));
    }

    /// A command ends well.
    pub fn complete(&mut self) {
        self.stop();
        self.state.status = status::DRDY | status::DSC;
        self.state.intrq = true;
    }

    /// A command ends with an error.
    pub fn fail(&mut self, error: u8) {
        self.stop();
        self.state.error = error;
        self.state.status = status::DRDY | status::DSC | status::ERR;
        self.state.intrq = true;
    }

    /// Opens the data port over `buffer[position..end]`.
    pub fn request(&mut self, phase: Phase, end: usize, interrupt: bool) {
        self.state.phase = phase;
        self.state.end = end.min(self.state.buffer.len()) as u32;
        self.state.status = status::DRDY | status::DSC | status::DRQ;
        self.state.intrq |= interrupt;
    }

    /// A DMA command: starts as soon as the bus master does.
    pub fn request_dma(&mut self) {
        self.state.phase = Phase::Dma;
        self.state.status = status::BSY | status::DRDY;
    }

    pub fn start_dma(&mut self, now: Nanos) {
        if self.state.phase == Phase::Dma && self.state.pending.is_none() {
            self.state.pending = Some((now.saturating_add(DMA_DELAY), Action::Dma));
        }
    }

    pub fn pause_dma(&mut self) {
        if self.state.phase == Phase::Dma {
            self.state.pending = None;
        }
    }

    /// The data port, read.
    pub fn read_data(&mut self, now: Nanos, size: u8) -> u64 {
        let state = &mut self.state;
        if state.phase != Phase::DataIn {
            return open_bus(size);
        }
        let (from, n) = (state.position as usize, usize::from(size.clamp(1, 8)));
        let to = (from + n).min(state.end as usize);
        let mut bytes = [0; 8];
        if let Some(data) = state.buffer.get(from..to) {
            bytes[..data.len()].copy_from_slice(data);
        }
        state.position = to as u32;
        if to >= state.end as usize {
            self.block_read(now);
        }
        u64::from_le_bytes(bytes)
    }

    /// The host took the whole block.
    fn block_read(&mut self, now: Nanos) {
        let more = self.state.left > 0 || (self.state.position as usize) < self.state.buffer.len();
        self.state.phase = Phase::Idle;
        if self.is_atapi() && self.state.packet_data {
            self.later(now, NEXT_BLOCK_DELAY, Action::PacketData);
        } else if more {
            self.later(now, NEXT_BLOCK_DELAY, Action::ReadBlock);
        } else {
            self.stop();
            self.state.status = status::DRDY | status::DSC;
        }
    }

    /// The data port, written.
    pub fn write_data(&mut self, now: Nanos, size: u8, value: u64) {
        let state = &mut self.state;
        if !matches!(state.phase, Phase::DataOut | Phase::Packet) {
            return;
        }
        let (from, n) = (state.position as usize, usize::from(size.clamp(1, 8)));
        let to = (from + n).min(state.end as usize);
        if let Some(data) = state.buffer.get_mut(from..to) {
            let bytes = value.to_le_bytes();
            let n = data.len().min(8);
            data[..n].copy_from_slice(&bytes[..n]);
        }
        state.position = to as u32;
        if to >= state.end as usize {
            let packet = state.phase == Phase::Packet;
            state.phase = Phase::Idle;
            if packet {
                self.later(now, COMMAND_DELAY, Action::Packet);
            } else {
                self.later(now, NEXT_BLOCK_DELAY, Action::WriteBlock);
            }
        }
    }

    pub fn next_event(&self) -> Option<Nanos> {
        self.state.pending.map(|(at, _)| at)
    }

    pub fn event(&mut self, cx: &mut Cx, bus_master: &mut BusMaster, master: bool) {
        let Some((_, action)) = self.state.pending.take() else { return };
        match action {
            Action::Signature { interrupt } => {
                self.stop();
                self.signature();
                self.state.intrq = interrupt;
            }
            Action::Finish => self.complete(),
            Action::ReadBlock => self.read_block(),
            Action::WriteBlock => self.write_block(),
            Action::Dma => self.dma_step(cx, bus_master, master),
            Action::Packet => self.packet(cx.now, bus_master.active()),
            Action::PacketData => self.packet_data(),
        }
    }

    /// Moves up to one buffer between the drive and memory.
    fn dma_step(&mut self, cx: &mut Cx, bus_master: &mut BusMaster, master: bool) {
        if !bus_master.active() {
            return;
        }
        if !master {
            return bus_master.fail();
        }
        if self.state.position as usize >= self.state.buffer.len() {
            if self.state.left == 0 {
                return self.complete_transfer();
            }
            let ready = if self.state.writing { self.prepare_write() } else { self.refill() };
            if let Err(error) = ready {
                return self.fail_transfer(error);
            }
        }
        let from = (self.state.position as usize).min(self.state.buffer.len());
        let data = &mut self.state.buffer[from..];
        let wanted = data.len();
        let transfer = if self.state.writing { Transfer::FromMemory(data) } else { Transfer::ToMemory(data) };
        let moved = bus_master.transfer(cx.ram, transfer);
        self.state.position = (from + moved) as u32;
        if moved < wanted {
            // The table was too short: the drive waits for another start of the engine.
            return;
        }
        if self.state.writing
            && let Err(error) = self.drain()
        {
            return self.fail_transfer(error);
        }
        if self.state.left == 0 {
            self.complete_transfer();
        } else if bus_master.active() {
            self.state.pending = Some((cx.now.saturating_add(NEXT_BLOCK_DELAY), Action::Dma));
        }
    }

    fn complete_transfer(&mut self) {
        if self.is_atapi() { self.packet_end() } else { self.complete() }
    }

    fn fail_transfer(&mut self, error: u8) {
        if self.is_atapi() { self.medium_error() } else { self.fail(error) }
    }

    /// Whether a saved state can be this drive's.
    pub fn check(&self, state: &DriveState) -> Result<(), &'static str> {
        let ok = state.buffer.len() <= BUFFER
            && state.end as usize <= state.buffer.len()
            && state.position as usize <= state.buffer.len()
            && state.lba < 1 << 49
            && state.left <= 1 << 24
            && (1..=16).contains(&state.block)
            && state.multiple <= 16
            && (1..=16).contains(&state.heads)
            && state.sectors >= 1
            && (self.is_atapi() || !state.packet_data);
        if ok { Ok(()) } else { Err("drive state out of range") }
    }

    pub fn info(&self) -> String {
        let medium = match &self.drive {
            Drive::Disk(medium) => format!("disk, {}", medium.label()),
            Drive::CdRom(Some(medium)) => format!("CD-ROM, {}", medium.label()),
            Drive::CdRom(None) => "CD-ROM, empty".into(),
        };
        let state = &self.state;
        format!("{medium}; status {:02X} error {:02X} {:?}", state.status, state.error, state.phase)
    }
}
