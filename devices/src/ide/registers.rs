//! One channel's command block and control block (ATA/ATAPI-6, "I/O register descriptions").

use super::bus_master::{BusMaster, SSBM};
use super::drive::{Device, DriveState, RESET_DELAY, status};
use crate::chip::{Cx, Nanos, open_bus};
use serde::{Deserialize, Serialize};

/// Command block registers.
mod port {
    pub const DATA: u64 = 0;
    pub const ERROR_FEATURES: u64 = 1;
    pub const SECTOR_COUNT: u64 = 2;
    pub const LBA_LOW: u64 = 3;
    pub const LBA_MID: u64 = 4;
    pub const LBA_HIGH: u64 = 5;
    pub const DEVICE: u64 = 6;
    pub const STATUS_COMMAND: u64 = 7;
}

/// Device Control bits: no interrupts, software reset, high order byte.
const NIEN: u8 = 0x02;
const SRST: u8 = 0x04;
const HOB: u8 = 0x80;
/// The commands that reach a drive that is not selected, or busy.
const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;
const DEVICE_RESET: u8 = 0x08;

#[derive(Clone, Serialize, Deserialize)]
pub struct ChannelState {
    /// DEV bit of the Device register.
    pub selected: u8,
    /// Device Control register.
    pub control: u8,
    /// Level of the interrupt pin.
    pub line: bool,
    pub bus_master: BusMaster,
}

impl ChannelState {
    pub fn check(&self) -> Result<(), &'static str> {
        if self.selected > 1 {
            return Err("drive number out of range");
        }
        self.bus_master.check()
    }
}

pub struct Channel {
    pin: u8,
    pub state: ChannelState,
    pub drives: [Option<Device>; 2],
}

impl Channel {
    pub fn new(pin: u8) -> Self {
        let state = ChannelState { selected: 0, control: 0, line: false, bus_master: BusMaster::default() };
        Channel { pin, state, drives: [None, None] }
    }

    pub fn reset(&mut self, cx: &mut Cx) {
        let line = self.state.line;
        self.state = Channel::new(self.pin).state;
        self.state.line = line;
        for device in self.drives.iter_mut().flatten() {
            device.reset(true);
        }
        self.update_line(cx);
    }

    fn device(&mut self) -> Option<&mut Device> {
        self.drives[usize::from(self.state.selected & 1)].as_mut()
    }

    /// INTRQ of the selected drive, unless nIEN floats it. The bus master latches its rising edge.
    fn update_line(&mut self, cx: &mut Cx) {
        let intrq = self.device().is_some_and(|device| device.state.intrq);
        let level = intrq && self.state.control & NIEN == 0;
        if level != self.state.line {
            self.state.line = level;
            if level {
                self.state.bus_master.interrupt();
            }
            cx.line(self.pin, level);
        }
    }

    pub fn read_command_block(&mut self, cx: &mut Cx, offset: u64, size: u8) -> u64 {
        if offset == port::DATA {
            let Some(device) = self.device() else { return open_bus(size) };
            return device.read_data(cx.now, size);
        }
        let hob = self.state.control & HOB != 0;
        let Some(device) = self.device() else {
            // No drive answers: the bus is pulled to "not busy".
            return if offset <= 7 { open_bus(size) & !0xFF } else { open_bus(size) };
        };
        let state = &mut device.state;
        let pick = |register: u16| if hob { (register >> 8) as u8 } else { register as u8 };
        let byte = match offset {
            port::ERROR_FEATURES => state.error,
            port::SECTOR_COUNT => pick(state.count),
            port::LBA_LOW => pick(state.lba_low),
            port::LBA_MID => pick(state.lba_mid),
            port::LBA_HIGH => pick(state.lba_high),
            port::DEVICE => state.device | 0xA0 | self.state.selected << 4,
            port::STATUS_COMMAND => {
                let status = state.status;
                state.intrq = false;
                self.update_line(cx);
                status
            }
            _ => 0xFF,
        };
        open_bus(size) & !0xFF | u64::from(byte)
    }

    pub fn alternate_status(&mut self) -> u8 {
        self.device().map_or(0, |device| device.state.status)
    }

    pub fn write_command_block(&mut self, cx: &mut Cx, offset: u64, size: u8, value: u64) {
        let byte = value as u8;
        match offset {
            port::DATA => {
                if let Some(device) = self.device() {
                    device.write_data(cx.now, size, value);
                }
            }
            port::STATUS_COMMAND => self.command(cx, byte),
            port::ERROR_FEATURES..=port::DEVICE => {
                self.state.control &= !HOB;
                if offset == port::DEVICE {
                    self.state.selected = byte >> 4 & 1;
                }
                // Both drives take the write; a busy one ignores it.
                for device in self.drives.iter_mut().flatten() {
                    let state: &mut DriveState = &mut device.state;
                    if state.status & (status::BSY | status::DRQ) != 0 {
                        continue;
                    }
                    let register = match offset {
                        port::ERROR_FEATURES => &mut state.features,
                        port::SECTOR_COUNT => &mut state.count,
                        port::LBA_LOW => &mut state.lba_low,
                        port::LBA_MID => &mut state.lba_mid,
                        port::LBA_HIGH => &mut state.lba_high,
                        _ => {
                            state.device = byte & !0x10;
                            continue;
                        }
                    };
                    *register = *register << 8 | u16::from(byte);
                }
                self.update_line(cx);
            }
            _ => {}
        }
    }

    fn command(&mut self, cx: &mut Cx, command: u8) {
        self.state.control &= !HOB;
        if command == EXECUTE_DEVICE_DIAGNOSTIC {
            self.state.selected = 0;
            for device in self.drives.iter_mut().flatten() {
                device.diagnose(cx.now);
            }
            return self.update_line(cx);
        }
        let active = self.state.bus_master.active();
        if let Some(device) = self.device() {
            let busy = device.state.status & (status::BSY | status::DRQ) != 0;
            if !busy || command == DEVICE_RESET {
                device.state.intrq = false;
                device.command(cx.now, command);
                if active {
                    device.start_dma(cx.now);
                }
            }
        }
        self.update_line(cx);
    }

    pub fn write_device_control(&mut self, cx: &mut Cx, value: u8) {
        let rising = value & !self.state.control & SRST != 0;
        let falling = !value & self.state.control & SRST != 0;
        self.state.control = value;
        for device in self.drives.iter_mut().flatten() {
            if rising {
                device.reset(false);
                device.state.status = status::BSY;
            } else if falling {
                device.finish_reset_at(cx.now.saturating_add(RESET_DELAY));
            }
        }
        if rising {
            self.state.selected = 0;
        }
        self.update_line(cx);
    }

    pub fn write_bus_master(&mut self, cx: &mut Cx, offset: u64, size: u8, value: u64) {
        let started = self.state.bus_master.write(offset, size, value);
        let stopped = self.state.bus_master.bmic & SSBM == 0;
        if let Some(device) = self.device() {
            if started {
                device.start_dma(cx.now);
            } else if stopped {
                device.pause_dma();
            }
        }
    }

    pub fn next_event(&self) -> Option<Nanos> {
        self.drives.iter().flatten().filter_map(Device::next_event).min()
    }

    /// `master` is the PCI command register's bus master enable.
    pub fn event(&mut self, cx: &mut Cx, master: bool) {
        for device in self.drives.iter_mut().flatten() {
            if device.next_event().is_some_and(|at| at <= cx.now) {
                device.event(cx, &mut self.state.bus_master, master);
            }
        }
        self.update_line(cx);
    }
}
