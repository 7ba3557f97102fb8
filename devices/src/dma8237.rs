//! The two 8237A DMA controllers and their page registers (Intel 8237A datasheet; 82371SB datasheet, "DMA
//! Registers").

use serde::{Deserialize, Serialize};

use crate::chip::{Chip, Cx, StateError, decode, encode, open_bus};
use crate::ports::{read_each, write_each};

/// Window of the controller of channels 0 to 3: ports 0x00 to 0x0F.
pub const DMA1: u8 = 0;
/// Window of the page registers: ports 0x80 to 0x8F.
pub const PAGES: u8 = 1;
/// Window of the controller of channels 4 to 7: ports 0xC0 to 0xDF, a register at every second one.
pub const DMA2: u8 = 2;

const VERSION: u16 = 1;

/// Mode register: direction of the transfer as the 8237 names it.
const VERIFY: u8 = 0;
const WRITE: u8 = 1;
const READ: u8 = 2;
const CASCADE: u8 = 0xC0;
const DECREMENT: u8 = 0x20;
const AUTO_INIT: u8 = 0x10;
/// Command register: controller disable.
const DISABLE: u8 = 0x04;

/// Channel of each page register; the others are scratch.
const PAGE_OF_CHANNEL: [usize; 8] = [0x7, 0x3, 0x1, 0x2, 0xF, 0xB, 0x9, 0xA];

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Channel {
    base_address: u16,
    base_count: u16,
    address: u16,
    count: u16,
    mode: u8,
}

/// One 8237A.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Controller {
    channels: [Channel; 4],
    command: u8,
    /// Bits 3-0: terminal count reached. Cleared by reading.
    terminal: u8,
    /// DREQ pins.
    dreq: u8,
    /// Software requests.
    request: u8,
    mask: u8,
    /// The next byte of an address or count is the high one.
    flip_flop: bool,
}

impl Controller {
    fn new() -> Self {
        Controller {
            channels: [Channel::default(); 4],
            command: 0,
            terminal: 0,
            dreq: 0,
            request: 0,
            mask: 0x0F,
            flip_flop: false,
        }
    }

    /// Master clear: everything but addresses, counts and modes.
    fn clear(&mut self) {
        *self = Controller { channels: self.channels, dreq: self.dreq, ..Controller::new() };
    }

    fn read(&mut self, register: u8) -> u8 {
        match register {
            0..8 => {
                let channel = self.channels[usize::from(register >> 1 & 3)];
                let word = if register & 1 == 0 { channel.address } else { channel.count };
                self.flip_flop = !self.flip_flop;
                word.to_le_bytes()[usize::from(!self.flip_flop)]
            }
            0x8 => std::mem::take(&mut self.terminal) | (self.dreq | self.request) << 4,
            0xF => self.mask | 0xF0,
            // Temporary register: holds data of memory-to-memory transfers only, which PCs never wired.
            0xD => 0,
            _ => 0xFF,
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        let bit = 1u8 << (value & 3);
        let set = |bits: u8| if value & 4 != 0 { bits | bit } else { bits & !bit };
        match register {
            0..8 => self.write_word(register, value),
            0x8 => self.command = value,
            0x9 => self.request = set(self.request),
            0xA => self.mask = set(self.mask),
            0xB => self.channels[usize::from(value & 3)].mode = value & !3,
            0xC => self.flip_flop = false,
            0xD => self.clear(),
            0xE => self.mask = 0,
            0xF => self.mask = value & 0x0F,
            _ => {}
        }
    }

    fn write_word(&mut self, register: u8, value: u8) {
        let high = self.flip_flop;
        self.flip_flop = !high;
        let merge = |old: u16| {
            let [low_byte, high_byte] = old.to_le_bytes();
            u16::from_le_bytes(if high { [low_byte, value] } else { [value, high_byte] })
        };
        let channel = &mut self.channels[usize::from(register >> 1 & 3)];
        if register & 1 == 0 {
            channel.base_address = merge(channel.base_address);
            channel.address = channel.base_address;
        } else {
            channel.base_count = merge(channel.base_count);
            channel.count = channel.base_count;
        }
    }

    fn valid(&self) -> bool {
        let bits = self.terminal | self.dreq | self.request | self.mask;
        bits <= 0x0F && self.channels.iter().all(|channel| channel.mode & 3 == 0)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    controllers: [Controller; 2],
    pages: [u8; 16],
}

/// Both controllers. Input pins 0 to 7 are DREQ0 to DREQ7 (they show in the status registers).
pub struct Dma8237 {
    state: State,
}

impl Dma8237 {
    pub fn new() -> Self {
        Dma8237 { state: State { controllers: [Controller::new(), Controller::new()], pages: [0; 16] } }
    }

    /// Whether a request on this channel would be served: enabled and not masked, its cascade included.
    pub fn ready(&self, channel: u8) -> bool {
        let [first, second] = &self.state.controllers;
        let on = |controller: &Controller, index: u8| {
            controller.command & DISABLE == 0 && controller.mask & 1 << index == 0
        };
        match channel {
            0..=3 => on(first, channel) && on(second, 0),
            // Channel 4 is the cascade.
            5..=7 => on(second, channel - 4),
            _ => false,
        }
    }

    /// Moves bytes between a device on `channel` and guest RAM, as far as the channel's count goes. Gives
    /// the number of bytes moved and whether terminal count was reached. Nothing moves where the channel is
    /// masked, cascaded or programmed for the other direction; a verify transfer counts and moves no data.
    /// Channels 5 to 7 move whole words.
    pub fn transfer(
        &mut self,
        cx: &mut Cx,
        channel: u8,
        device_to_memory: bool,
        data: &mut [u8],
    ) -> (usize, bool) {
        if !self.ready(channel) {
            return (0, false);
        }
        let controller = &mut self.state.controllers[usize::from(channel >> 2 & 1)];
        let index = channel & 3;
        let state = &mut controller.channels[usize::from(index)];
        let kind = state.mode >> 2 & 3;
        let wanted = if device_to_memory { WRITE } else { READ };
        if state.mode & CASCADE == CASCADE || kind != VERIFY && kind != wanted {
            return (0, false);
        }
        let page = u32::from(self.state.pages[PAGE_OF_CHANNEL[usize::from(channel & 7)] & 15]);
        let wide = channel >= 4;
        let unit = if wide { 2 } else { 1 };
        let units = (data.len() / unit).min(usize::from(state.count) + 1);
        let mut done = 0;
        while done < units {
            let base = if wide {
                (page & 0xFE) << 16 | u32::from(state.address) << 1
            } else {
                page << 16 | u32::from(state.address)
            };
            // Addresses wrap inside the page; a run ends there.
            let run = if state.mode & DECREMENT != 0 {
                1
            } else {
                (units - done).min(0x10000 - usize::from(state.address))
            };
            if let Some(part) = data.get_mut(done * unit..(done + run) * unit) {
                match kind {
                    WRITE => cx.ram.write(u64::from(base), part),
                    READ => cx.ram.read(u64::from(base), part),
                    _ => {}
                }
            }
            let step = run as u16;
            state.address = if state.mode & DECREMENT != 0 {
                state.address.wrapping_sub(1)
            } else {
                state.address.wrapping_add(step)
            };
            done += run;
        }
        let terminal = units == usize::from(state.count) + 1;
        state.count = state.count.wrapping_sub(units as u16);
        if terminal {
            if state.mode & AUTO_INIT != 0 {
                state.address = state.base_address;
                state.count = state.base_count;
            } else {
                controller.mask |= 1 << index;
            }
            controller.terminal |= 1 << index;
            controller.request &= !(1 << index);
        }
        (units * unit, terminal)
    }
}

impl Chip for Dma8237 {
    fn name(&self) -> &'static str {
        "dma"
    }

    fn reset(&mut self, _cx: &mut Cx) {
        for controller in &mut self.state.controllers {
            controller.clear();
        }
    }

    fn read(&mut self, _cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        let State { controllers: [first, second], pages } = &mut self.state;
        match window {
            DMA1 => read_each(offset, size, |o| if o < 16 { first.read(o as u8) } else { 0xFF }),
            DMA2 => read_each(offset, size, |o| match o {
                0..32 if o & 1 == 0 => second.read((o >> 1) as u8),
                _ => 0xFF,
            }),
            PAGES => read_each(offset, size, |o| {
                usize::try_from(o).ok().and_then(|o| pages.get(o)).copied().unwrap_or(0xFF)
            }),
            _ => open_bus(size),
        }
    }

    fn write(&mut self, _cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        let State { controllers: [first, second], pages } = &mut self.state;
        write_each(offset, size, value, |o, byte| match (window, o) {
            (DMA1, 0..16) => first.write(o as u8, byte),
            (DMA2, 0..32) if o & 1 == 0 => second.write((o >> 1) as u8, byte),
            (PAGES, 0..16) => pages[(o & 15) as usize] = byte,
            _ => {}
        });
    }

    fn input(&mut self, _cx: &mut Cx, pin: u8, level: bool) {
        if pin < 8 {
            let controller = &mut self.state.controllers[usize::from(pin >> 2 & 1)];
            let bit = 1 << (pin & 3);
            controller.dreq = if level { controller.dreq | bit } else { controller.dreq & !bit };
        }
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        if !state.controllers.iter().all(Controller::valid) {
            return Err(StateError::Damaged { chip: self.name(), reason: "register out of range".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        let mut text = String::new();
        for (channel, page) in PAGE_OF_CHANNEL.iter().enumerate() {
            let controller = &self.state.controllers[channel >> 2 & 1];
            let state = controller.channels[channel & 3];
            text += &format!(
                "channel {channel}: page={:02x} address={:04x} count={:04x} mode={:02x} masked={}\n",
                self.state.pages[page & 15],
                state.address,
                state.count,
                state.mode,
                controller.mask & 1 << (channel & 3) != 0
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    /// Channel 2 as a floppy driver programs it.
    fn floppy(mode: u64, address: u64, count: u64) -> Bench<Dma8237> {
        let mut bench = Bench::new(Dma8237::new());
        bench.write(DMA2, 0x1C, 1, 0);
        bench.write(DMA1, 0xC, 1, 0);
        bench.write(DMA1, 0xB, 1, mode | 2);
        for (port, value) in [(4, address), (5, count)] {
            bench.write(DMA1, port, 1, value & 0xFF);
            bench.write(DMA1, port, 1, value >> 8);
        }
        bench.write(PAGES, 1, 1, 1);
        bench.write(DMA1, 0xA, 1, 2);
        bench
    }

    #[test]
    fn device_to_memory_until_terminal_count() {
        let mut bench = floppy(0x44, 0xFFFE, 3);
        let mut data = [1, 2, 3, 4, 5];
        assert_eq!(bench.with(|chip, cx| chip.transfer(cx, 2, true, &mut data)), (4, true));
        let ram = bench.ram.0.lock().unwrap();
        assert_eq!((&ram[0x1FFFE..0x20000], &ram[0x10000..0x10002]), (&[1, 2][..], &[3, 4][..]));
        drop(ram);
        assert_eq!(bench.read(DMA1, 8, 1), 4);
        assert_eq!(bench.with(|chip, cx| chip.transfer(cx, 2, true, &mut data)), (0, false), "masked now");
    }

    #[test]
    fn auto_init_and_direction() {
        let mut bench = floppy(0x58, 0x100, 1);
        bench.ram.0.lock().unwrap()[0x10100] = 0x77;
        let mut data = [0; 2];
        assert_eq!(bench.with(|chip, cx| chip.transfer(cx, 2, true, &mut data)), (0, false));
        for _ in 0..2 {
            assert_eq!(bench.with(|chip, cx| chip.transfer(cx, 2, false, &mut data)), (2, true));
            assert_eq!(data, [0x77, 0]);
        }
    }

    #[test]
    fn wide_channel_moves_words() {
        let mut bench = Bench::new(Dma8237::new());
        for (offset, value) in [(0x16, 0x45), (0x04, 0x00), (0x04, 0x80), (0x06, 1), (0x06, 0), (0x14, 1)] {
            bench.write(DMA2, offset, 1, value);
        }
        bench.write(PAGES, 0xB, 1, 2);
        let mut data = [9; 4];
        assert_eq!(bench.with(|chip, cx| chip.transfer(cx, 5, true, &mut data)), (4, true));
        assert_eq!(bench.ram.0.lock().unwrap()[0x30000..0x30004], [9; 4]);
    }
}
