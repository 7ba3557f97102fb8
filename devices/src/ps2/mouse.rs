//! A PS/2 mouse with wheel and five buttons (IBM Personal System/2 Technical Reference, "Mouse"; Microsoft
//! IntelliMouse and IntelliMouse Explorer protocols).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const ERROR: u8 = 0xFC;
const SELF_TEST_PASSED: u8 = 0xAA;

/// Most bytes that wait for the host; movement beyond them is summed up.
const QUEUE: usize = 32;
const PACKETS: usize = 16;
/// Most counts that are remembered while the queue is full.
const COUNTS: i32 = 4095;

/// Button bits of [`Mouse::buttons`].
pub mod button {
    pub const LEFT: u8 = 1;
    pub const RIGHT: u8 = 2;
    pub const MIDDLE: u8 = 4;
    pub const FOURTH: u8 = 8;
    pub const FIFTH: u8 = 16;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    Stream,
    Remote,
    Wrap { remote: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Parameter {
    SampleRate,
    Resolution,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mouse {
    queue: VecDeque<u8>,
    last_sent: u8,
    mode: Mode,
    reporting: bool,
    scaling_2_to_1: bool,
    /// 1 << resolution counts per millimetre.
    resolution: u8,
    sample_rate: u8,
    /// The last three sample rates: the knock that turns on wheel and buttons.
    knock: [u8; 3],
    /// Device ID: 0 plain, 3 wheel, 4 wheel and five buttons.
    id: u8,
    parameter: Option<Parameter>,
    buttons: u8,
    reported: u8,
    dx: i32,
    dy: i32,
    wheel: i32,
}

impl Mouse {
    pub fn new() -> Self {
        Mouse {
            queue: VecDeque::new(),
            last_sent: 0,
            mode: Mode::Stream,
            reporting: false,
            scaling_2_to_1: false,
            resolution: 2,
            sample_rate: 100,
            knock: [0; 3],
            id: 0,
            parameter: None,
            buttons: 0,
            reported: 0,
            dx: 0,
            dy: 0,
            wheel: 0,
        }
    }

    /// Power-on, with the same fingers on the buttons.
    pub fn reset(&mut self) {
        *self = Mouse { buttons: self.buttons, ..Mouse::new() };
    }

    pub fn id(&self) -> u8 {
        self.id
    }

    pub fn reporting(&self) -> bool {
        self.reporting
    }

    pub fn waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next byte on the wire.
    pub fn send(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last_sent = byte;
        self.stream();
        Some(byte)
    }

    /// Moves right and down by `dx` and `dy`; `wheel` is positive towards the user.
    pub fn moved(&mut self, dx: i32, dy: i32, wheel: i32) {
        self.dx = self.dx.saturating_add(dx).clamp(-COUNTS, COUNTS);
        self.dy = self.dy.saturating_sub(dy).clamp(-COUNTS, COUNTS);
        self.wheel = self.wheel.saturating_add(wheel).clamp(-COUNTS, COUNTS);
        self.stream();
    }

    /// Buttons that are down now.
    pub fn buttons(&mut self, buttons: u8) {
        self.buttons = buttons & 0x1F;
        self.stream();
    }

    fn respond(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.queue.len() < QUEUE {
                self.queue.push_back(byte);
            }
        }
    }

    /// Reports what has changed, in stream mode. What does not fit into the queue waits and adds up.
    fn stream(&mut self) {
        if !self.reporting || self.mode != Mode::Stream {
            return;
        }
        // Each packet takes up to 255 counts, and the queue is short.
        while self.queue.len() < PACKETS {
            let wheel = self.wheel != 0 && self.id != 0;
            if self.dx == 0 && self.dy == 0 && !wheel && self.buttons == self.reported {
                break;
            }
            self.packet(self.scaling_2_to_1);
        }
    }

    /// 2:1 scaling of the reports in stream mode.
    fn scaled(count: i32) -> i32 {
        match count.abs() {
            0 | 1 => count,
            2 => count.signum(),
            3 => count,
            4 => count.signum() * 6,
            5 => count.signum() * 9,
            _ => count.saturating_mul(2).clamp(-255, 255),
        }
    }

    fn packet(&mut self, scale: bool) {
        let take = |count: &mut i32, limit: i32| {
            let part = (*count).clamp(-limit, limit);
            *count -= part;
            part
        };
        let (mut dx, mut dy) = (take(&mut self.dx, 255), take(&mut self.dy, 255));
        if scale {
            (dx, dy) = (Mouse::scaled(dx), Mouse::scaled(dy));
        }
        let wheel = take(&mut self.wheel, 7);
        self.reported = self.buttons;
        let signs = u8::from(dx < 0) << 4 | u8::from(dy < 0) << 5;
        self.respond(&[0x08 | signs | self.buttons & 7, dx as u8, dy as u8]);
        match self.id {
            3 => self.respond(&[wheel as u8]),
            4 => self.respond(&[wheel as u8 & 0x0F | (self.buttons & 0x18) << 1]),
            _ => {}
        }
    }

    /// A byte from the host.
    pub fn write(&mut self, byte: u8) {
        if let Mode::Wrap { remote } = self.mode
            && byte != 0xFF
        {
            if byte == 0xEC {
                self.mode = if remote { Mode::Remote } else { Mode::Stream };
                return self.respond(&[ACK]);
            }
            return self.respond(&[byte]);
        }
        match self.parameter.take() {
            Some(Parameter::SampleRate) if byte <= 200 => self.set_sample_rate(byte),
            Some(Parameter::Resolution) if byte <= 3 => {
                self.resolution = byte;
                self.respond(&[ACK]);
            }
            Some(_) if byte < 0xE6 => self.respond(&[ERROR]),
            _ => self.command(byte),
        }
    }

    fn set_sample_rate(&mut self, rate: u8) {
        self.sample_rate = rate;
        self.knock = [self.knock[1], self.knock[2], rate];
        match self.knock {
            [200, 100, 80] if self.id == 0 => self.id = 3,
            [200, 200, 80] if self.id != 0 => self.id = 4,
            _ => {}
        }
        self.respond(&[ACK]);
    }

    fn command(&mut self, command: u8) {
        // A command ends what the mouse was sending.
        self.queue.clear();
        match command {
            0xE6 | 0xE7 => self.scaling_2_to_1 = command == 0xE7,
            0xE8 => self.parameter = Some(Parameter::Resolution),
            0xE9 => return self.status(),
            0xEA => self.mode = Mode::Stream,
            0xEB => {
                self.respond(&[ACK]);
                return self.packet(false);
            }
            0xEE => self.mode = Mode::Wrap { remote: self.mode == Mode::Remote },
            0xF0 => self.mode = Mode::Remote,
            0xF2 => return self.respond(&[ACK, self.id]),
            0xF3 => self.parameter = Some(Parameter::SampleRate),
            0xF4 | 0xF5 => self.reporting = command == 0xF4,
            0xF6 => *self = Mouse { buttons: self.buttons, id: self.id, ..Mouse::new() },
            0xFE => return self.respond(&[self.last_sent]),
            0xFF => {
                self.reset();
                return self.respond(&[ACK, SELF_TEST_PASSED, 0]);
            }
            _ => return self.respond(&[RESEND]),
        }
        (self.dx, self.dy, self.wheel) = (0, 0, 0);
        self.reported = self.buttons;
        self.respond(&[ACK]);
    }

    /// Answer to a status request; its bits 2 to 0 are the left, middle and right button.
    fn status(&mut self) {
        let buttons = (self.buttons & button::LEFT) << 2
            | (self.buttons & button::MIDDLE) >> 1
            | (self.buttons & button::RIGHT) >> 1;
        let modes = u8::from(self.mode == Mode::Remote) << 6
            | u8::from(self.reporting) << 5
            | u8::from(self.scaling_2_to_1) << 4;
        self.respond(&[ACK, modes | buttons, self.resolution, self.sample_rate]);
    }

    pub fn valid(&self) -> bool {
        let bounded = |count: i32| (-COUNTS..=COUNTS).contains(&count);
        self.queue.len() <= QUEUE
            && self.resolution <= 3
            && matches!(self.id, 0 | 3 | 4)
            && self.buttons <= 0x1F
            && [self.dx, self.dy, self.wheel].into_iter().all(bounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mouse: &mut Mouse) -> Vec<u8> {
        std::iter::from_fn(|| mouse.send()).collect()
    }

    fn send(mouse: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|&byte| mouse.write(byte));
        drain(mouse)
    }

    #[test]
    fn packets() {
        let mut mouse = Mouse::new();
        mouse.moved(5, 5, 0);
        assert!(!mouse.waiting(), "reporting is off after reset");
        send(&mut mouse, &[0xF4]);
        mouse.moved(5, 3, 0);
        assert_eq!(drain(&mut mouse), [0x28, 5, 0xFD]);
        mouse.buttons(button::LEFT);
        assert_eq!(drain(&mut mouse), [0x09, 0, 0]);
    }

    #[test]
    fn knocks() {
        let mut mouse = Mouse::new();
        for (rates, id) in [([200, 100, 80], 3), ([200, 200, 80], 4)] {
            for rate in rates {
                send(&mut mouse, &[0xF3, rate]);
            }
            assert_eq!(send(&mut mouse, &[0xF2]), [ACK, id]);
        }
        send(&mut mouse, &[0xF4]);
        mouse.buttons(button::FOURTH);
        mouse.moved(0, 0, -1);
        assert_eq!(drain(&mut mouse), [0x08, 0, 0, 0x10, 0x08, 0, 0, 0x1F]);
    }

    #[test]
    fn movement_adds_up_while_the_queue_is_full() {
        let mut mouse = Mouse::new();
        send(&mut mouse, &[0xF4]);
        for _ in 0..100 {
            mouse.moved(1, 0, 0);
        }
        let sent: u32 = drain(&mut mouse).chunks(3).map(|packet| u32::from(packet[1])).sum();
        assert_eq!(sent, 100);
        mouse.moved(i32::MIN, i32::MAX, i32::MIN);
        assert!(mouse.valid() && mouse.queue.len() <= QUEUE);
    }

    #[test]
    fn status_wrap_and_remote() {
        let mut mouse = Mouse::new();
        mouse.buttons(button::LEFT | button::MIDDLE);
        assert_eq!(send(&mut mouse, &[0xE9]), [ACK, 0x06, 2, 100]);
        assert_eq!(send(&mut mouse, &[0xEE]), [ACK]);
        assert_eq!(send(&mut mouse, &[0xF2, 0xEC]), [0xF2, ACK]);
        assert_eq!(send(&mut mouse, &[0xF0]), [ACK]);
        mouse.moved(1, 0, 0);
        assert_eq!(send(&mut mouse, &[0xEB]), [ACK, 0x0D, 1, 0]);
    }
}
