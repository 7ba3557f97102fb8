//! 82371SB PIIX3, function 1: the IDE controller (Intel 82371FB/82371SB datasheet; ATA/ATAPI-6): two
//! channels of two drives each, with bus-master DMA.

mod ata;
mod atapi;
mod bus_master;
mod drive;
mod registers;
#[cfg(test)]
mod tests;

use crate::block::Medium;
use crate::chip::{Chip, Cx, Nanos, PCI_CONFIG, StateError, decode, encode, open_bus};
use crate::pci::{Bar, BarKind, PciConfig, command, reg};
pub use drive::Drive;
use drive::DriveState;
use registers::{Channel, ChannelState};
use serde::{Deserialize, Serialize};

/// Windows: the command blocks (8 ports at 0x1F0 and 0x170), the control blocks (1 port at 0x3F6 and 0x376)
/// and the bus-master registers (16 ports at BAR4).
pub const COMMAND_BLOCK_0: u8 = 0;
pub const CONTROL_BLOCK_0: u8 = 1;
pub const COMMAND_BLOCK_1: u8 = 2;
pub const CONTROL_BLOCK_1: u8 = 3;
pub const BUS_MASTER: u8 = 4;
/// Output pins: the interrupts of the two channels (IRQ 14 and 15).
pub const IRQ_0: u8 = 0;
pub const IRQ_1: u8 = 1;

const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    pci: PciConfig,
    channels: [ChannelState; 2],
    drives: [[Option<DriveState>; 2]; 2],
}

pub struct Ide {
    pci: PciConfig,
    channels: [Channel; 2],
}

impl Ide {
    pub fn new() -> Self {
        let mut pci = PciConfig::new(0x8086, 0x7010, 0x01_0180, 0);
        pci.init(reg::STATUS, &[0x80, 0x02]).allow(0x0C, &[0, 0xF0]).allow(reg::INTERRUPT_LINE, &[0]);
        pci.init(reg::SUBSYSTEM_VENDOR, &[0xF4, 0x1A, 0x00, 0x11]);
        pci.bar(4, Bar { kind: BarKind::Io, size: 16, window: BUS_MASTER });
        // IDETIM of both channels, SIDETIM: kept, without effect.
        pci.allow(0x40, &[0xFF, 0xF3, 0xFF, 0xF3, 0xFF]);
        Ide { pci, channels: [Channel::new(0), Channel::new(1)] }
    }

    /// Connects a drive; anything that was there is taken away.
    pub fn attach(&mut self, channel: u8, drive: u8, new: Drive) {
        if let Some(slot) = self.slot(channel, drive) {
            *slot = Some(drive::Device::new(channel * 2 + drive, new));
        }
    }

    /// Puts another medium into a CD-ROM drive (or none); false where there is no such drive.
    pub fn change_medium(&mut self, channel: u8, drive: u8, medium: Option<Box<dyn Medium>>) -> bool {
        match self.slot(channel, drive) {
            Some(Some(device)) => device.change_medium(medium),
            _ => false,
        }
    }

    fn slot(&mut self, channel: u8, drive: u8) -> Option<&mut Option<drive::Device>> {
        self.channels.get_mut(usize::from(channel))?.drives.get_mut(usize::from(drive))
    }
}

impl Default for Ide {
    fn default() -> Self {
        Self::new()
    }
}

impl Chip for Ide {
    fn name(&self) -> &'static str {
        "ide"
    }

    fn reset(&mut self, cx: &mut Cx) {
        self.pci.reset();
        for channel in &mut self.channels {
            channel.reset(cx);
        }
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        match window {
            COMMAND_BLOCK_0 | COMMAND_BLOCK_1 => {
                self.channels[usize::from(window / 2)].read_command_block(cx, offset, size)
            }
            CONTROL_BLOCK_0 | CONTROL_BLOCK_1 if offset == 0 => {
                let status = self.channels[usize::from(window / 2)].alternate_status();
                open_bus(size) & !0xFF | u64::from(status)
            }
            BUS_MASTER => match offset {
                0..=15 => self.channels[(offset / 8) as usize].state.bus_master.read(offset % 8, size),
                _ => open_bus(size),
            },
            PCI_CONFIG => self.pci.read(offset, size),
            _ => open_bus(size),
        }
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        match window {
            COMMAND_BLOCK_0 | COMMAND_BLOCK_1 => {
                self.channels[usize::from(window / 2)].write_command_block(cx, offset, size, value);
            }
            CONTROL_BLOCK_0 | CONTROL_BLOCK_1 if offset == 0 => {
                self.channels[usize::from(window / 2)].write_device_control(cx, value as u8);
            }
            BUS_MASTER => {
                if let 0..=15 = offset {
                    self.channels[(offset / 8) as usize].write_bus_master(cx, offset % 8, size, value);
                }
            }
            PCI_CONFIG => {
                let remap = self.pci.write(offset, size, value);
                if remap {
                    cx.push(crate::chip::Effect::Remap);
                }
            }
            _ => {}
        }
    }

    fn next_event(&self) -> Option<Nanos> {
        self.channels.iter().filter_map(Channel::next_event).min()
    }

    fn event(&mut self, cx: &mut Cx) {
        let master = self.pci.command() & command::BUS_MASTER != 0;
        for channel in &mut self.channels {
            channel.event(cx, master);
        }
    }

    fn pci(&self) -> Option<&PciConfig> {
        Some(&self.pci)
    }

    fn save(&self) -> Vec<u8> {
        let drives = |c: &Channel| [0, 1].map(|d: usize| c.drives[d].as_ref().map(|d| d.state.clone()));
        let state = State {
            pci: self.pci.clone(),
            channels: [self.channels[0].state.clone(), self.channels[1].state.clone()],
            drives: [drives(&self.channels[0]), drives(&self.channels[1])],
        };
        encode(VERSION, &state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: State = decode("ide", VERSION, bytes)?;
        let damaged = |reason: &str| StateError::Damaged { chip: "ide", reason: reason.into() };
        for (channel, drives) in self.channels.iter().zip(&saved.drives) {
            for (device, state) in channel.drives.iter().zip(drives) {
                match (device, state) {
                    (None, None) => {}
                    (Some(device), Some(state)) => device.check(state).map_err(damaged)?,
                    _ => return Err(damaged("drives differ")),
                }
            }
        }
        for state in &saved.channels {
            state.check().map_err(damaged)?;
        }
        self.pci.restore(&saved.pci).map_err(damaged)?;
        let channels = saved.channels.into_iter().zip(saved.drives);
        for (channel, (state, drives)) in self.channels.iter_mut().zip(channels) {
            channel.state = state;
            for (device, state) in channel.drives.iter_mut().zip(drives) {
                if let (Some(device), Some(state)) = (device, state) {
                    device.state = state;
                }
            }
        }
        Ok(())
    }

    fn info(&self) -> String {
        let mut text = String::new();
        for (c, channel) in self.channels.iter().enumerate() {
            text += &format!("channel {c}: {}\n", channel.state.bus_master.info());
            for (d, device) in channel.drives.iter().enumerate() {
                if let Some(device) = device {
                    text += &format!("  drive {d}: {}\n", device.info());
                }
            }
        }
        text
    }
}
