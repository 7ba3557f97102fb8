//! A PS/2 keyboard: scan code sets 1 to 3, commands, typematic repeat (IBM Personal System/2 Technical
//! Reference, "101- and 102-Key Keyboard").

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::key::{Key, translate};
use crate::chip::Nanos;

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const ECHO: u8 = 0xEE;
const SELF_TEST_PASSED: u8 = 0xAA;
/// Identification bytes of an MF2 keyboard.
const ID: [u8; 2] = [0xAB, 0x83];

/// Most scan code bytes that wait for the host, and most bytes with the answers to commands.
const SCAN_CODES: usize = 64;
const QUEUE: usize = SCAN_CODES + 16;
/// Typematic rate and delay after reset: 10.9 per second after 500 ms.
const TYPEMATIC: u8 = 0x2B;

/// A command whose parameter comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Parameter {
    Leds,
    ScanCodeSet,
    Typematic,
    /// FB to FD: a list of set 3 codes, ended by the next command.
    KeyTypes,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Keyboard {
    queue: VecDeque<u8>,
    last_sent: u8,
    scanning: bool,
    /// Scan code set 1, 2 or 3.
    set: u8,
    /// Bit 0 Scroll Lock, 1 Num Lock, 2 Caps Lock.
    leds: u8,
    typematic: u8,
    parameter: Option<Parameter>,
    /// Keys that are down, by [`Key::bit`].
    down: u128,
    repeat: Option<(Key, Nanos)>,
}

impl Keyboard {
    pub fn new() -> Self {
        Keyboard {
            queue: VecDeque::new(),
            last_sent: 0,
            scanning: true,
            set: 2,
            leds: 0,
            typematic: TYPEMATIC,
            parameter: None,
            down: 0,
            repeat: None,
        }
    }

    /// Power-on, with the same fingers on the keys.
    pub fn reset(&mut self) {
        *self = Keyboard { down: self.down, ..Keyboard::new() };
    }

    pub fn leds(&self) -> u8 {
        self.leds
    }

    pub fn set(&self) -> u8 {
        self.set
    }

    pub fn waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Scan code bytes for which there is room.
    pub fn room(&self) -> usize {
        SCAN_CODES.saturating_sub(self.queue.len())
    }

    /// The next byte on the wire.
    pub fn send(&mut self) -> Option<u8> {
        let byte = self.queue.pop_front()?;
        self.last_sent = byte;
        Some(byte)
    }

    fn respond(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.queue.len() < QUEUE {
                self.queue.push_back(byte);
            }
        }
    }

    /// Whole codes or nothing: a full buffer takes one overrun code.
    fn scan_code(&mut self, bytes: &[u8]) {
        if !self.scanning {
            return;
        }
        let overrun = if self.set == 1 { 0xFF } else { 0x00 };
        if self.queue.len() + bytes.len() <= SCAN_CODES {
            self.respond(bytes);
        } else if self.queue.back() != Some(&overrun) {
            self.respond(&[overrun]);
        }
    }

    fn held(&self, keys: &[Key]) -> bool {
        keys.iter().any(|key| self.down & key.bit() != 0)
    }

    /// A key goes down. One that is down already is left to the typematic repeat.
    pub fn press(&mut self, now: Nanos, key: Key) {
        if self.down & key.bit() != 0 {
            return;
        }
        self.down |= key.bit();
        self.make(key);
        self.repeat = (key != Key::Pause).then(|| (key, now.saturating_add(self.delay())));
    }

    pub fn release(&mut self, key: Key) {
        if self.down & key.bit() == 0 {
            return;
        }
        self.down &= !key.bit();
        if self.repeat.is_some_and(|(repeated, _)| repeated == key) {
            self.repeat = None;
        }
        self.break_(key);
    }

    fn make(&mut self, key: Key) {
        let codes = key.codes();
        if self.set == 3 {
            return self.scan_code(&[codes.set3]);
        }
        let control = self.held(&[Key::ControlLeft, Key::ControlRight]);
        let shift = self.held(&[Key::ShiftLeft, Key::ShiftRight]);
        match key {
            Key::Pause if control => self.set_2(&[0xE0, 0x7E, 0xE0, 0xF0, 0x7E]),
            Key::Pause => self.set_2(&[0xE1, 0x14, 0x77, 0xE1, 0xF0, 0x14, 0xF0, 0x77]),
            Key::PrintScreen if self.held(&[Key::AltLeft, Key::AltRight]) => self.set_2(&[0x84]),
            Key::PrintScreen if !control && !shift => self.set_2(&[0xE0, 0x12, 0xE0, 0x7C]),
            _ if codes.extended => self.set_2(&[0xE0, codes.set2]),
            _ => self.set_2(&[codes.set2]),
        }
    }

    fn break_(&mut self, key: Key) {
        let codes = key.codes();
        if self.set == 3 {
            return self.scan_code(&[0xF0, codes.set3]);
        }
        let modified = self.held(&[Key::ControlLeft, Key::ControlRight, Key::ShiftLeft, Key::ShiftRight]);
        match key {
            Key::Pause => {}
            Key::PrintScreen if self.held(&[Key::AltLeft, Key::AltRight]) => self.set_2(&[0xF0, 0x84]),
            Key::PrintScreen if !modified => self.set_2(&[0xE0, 0xF0, 0x7C, 0xE0, 0xF0, 0x12]),
            _ if codes.extended => self.set_2(&[0xE0, 0xF0, codes.set2]),
            _ => self.set_2(&[0xF0, codes.set2]),
        }
    }

    /// Sends codes of set 2, as set 1 where that is chosen.
    fn set_2(&mut self, codes: &[u8]) {
        if self.set != 1 {
            return self.scan_code(codes);
        }
        let mut set_1 = Vec::with_capacity(codes.len());
        let mut released = 0;
        for &code in codes {
            if code == 0xF0 {
                released = 0x80;
            } else {
                set_1.push(translate(code) | released);
                released = 0;
            }
        }
        self.scan_code(&set_1);
    }

    /// Time from the press to the first repeat.
    fn delay(&self) -> Nanos {
        (u64::from(self.typematic >> 5 & 3) + 1) * 250_000_000
    }

    /// Time between repeats: (8 + bits 2-0) * 2 ^ (bits 4-3) * 1/240 s.
    fn interval(&self) -> Nanos {
        let (mantissa, exponent) = (u64::from(self.typematic & 7), self.typematic >> 3 & 3);
        ((8 + mantissa) << exponent) * 4_166_667
    }

    pub fn next_event(&self) -> Option<Nanos> {
        self.repeat.map(|(_, at)| at)
    }

    /// One repeat, however late it is.
    pub fn event(&mut self, now: Nanos) {
        if let Some((key, at)) = self.repeat
            && at <= now
        {
            self.make(key);
            self.repeat = Some((key, now.saturating_add(self.interval())));
        }
    }

    /// A byte from the host.
    pub fn write(&mut self, byte: u8) {
        match self.parameter.take() {
            Some(parameter) if byte < 0x80 || parameter == Parameter::ScanCodeSet && byte < 0xED => {
                self.set_parameter(parameter, byte);
            }
            _ => self.command(byte),
        }
    }

    fn set_parameter(&mut self, parameter: Parameter, byte: u8) {
        match parameter {
            Parameter::Leds => self.leds = byte & 7,
            Parameter::Typematic => self.typematic = byte & 0x7F,
            Parameter::KeyTypes => self.parameter = Some(Parameter::KeyTypes),
            Parameter::ScanCodeSet => match byte {
                0 => return self.respond(&[ACK, self.set]),
                1..=3 => self.set = byte,
                _ => return self.respond(&[RESEND]),
            },
        }
        self.respond(&[ACK]);
    }

    fn command(&mut self, command: u8) {
        match command {
            0xED => self.parameter = Some(Parameter::Leds),
            0xEE => return self.respond(&[ECHO]),
            0xF0 => self.parameter = Some(Parameter::ScanCodeSet),
            0xF2 => return self.respond(&[ACK, ID[0], ID[1]]),
            0xF3 => self.parameter = Some(Parameter::Typematic),
            0xF4 => {
                self.queue.clear();
                self.scanning = true;
            }
            0xF5 | 0xF6 => {
                self.queue.clear();
                self.repeat = None;
                self.typematic = TYPEMATIC;
                self.set = 2;
                self.scanning = command == 0xF6;
            }
            // Set all keys typematic, make/break or make only: every key stays typematic and make/break.
            0xF7..=0xFA => {}
            0xFB..=0xFD => self.parameter = Some(Parameter::KeyTypes),
            0xFE => return self.respond(&[self.last_sent]),
            0xFF => {
                self.reset();
                return self.respond(&[ACK, SELF_TEST_PASSED]);
            }
            _ => return self.respond(&[RESEND]),
        }
        self.respond(&[ACK]);
    }

    pub fn valid(&self) -> bool {
        let keys = 1u128.checked_shl(Key::ALL.len() as u32).map_or(u128::MAX, |bit| bit - 1);
        self.queue.len() <= QUEUE
            && (1..=3).contains(&self.set)
            && self.leds <= 7
            && self.typematic <= 0x7F
            && self.down & !keys == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(keyboard: &mut Keyboard) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.send()).collect()
    }

    #[test]
    fn scan_codes_of_each_set() {
        let mut keyboard = Keyboard::new();
        for (set, codes) in [
            (1, vec![0x1E, 0x9E, 0xE0, 0x53, 0xE0, 0xD3]),
            (2, vec![0x1C, 0xF0, 0x1C, 0xE0, 0x71, 0xE0, 0xF0, 0x71]),
            (3, vec![0x1C, 0xF0, 0x1C, 0x64, 0xF0, 0x64]),
        ] {
            keyboard.write(0xF0);
            keyboard.write(set);
            assert_eq!(drain(&mut keyboard), [ACK, ACK]);
            for key in [Key::A, Key::Delete] {
                keyboard.press(0, key);
                keyboard.release(key);
            }
            assert_eq!(drain(&mut keyboard), codes);
        }
    }

    #[test]
    fn pause_and_print_screen() {
        let mut keyboard = Keyboard::new();
        keyboard.press(0, Key::Pause);
        keyboard.release(Key::Pause);
        assert_eq!(drain(&mut keyboard), [0xE1, 0x14, 0x77, 0xE1, 0xF0, 0x14, 0xF0, 0x77]);
        keyboard.press(0, Key::PrintScreen);
        assert_eq!(drain(&mut keyboard), [0xE0, 0x12, 0xE0, 0x7C]);
    }

    #[test]
    fn commands() {
        let mut keyboard = Keyboard::new();
        for byte in [0xFF, 0xEE, 0xF2, 0xED, 0x07, 0xFE] {
            keyboard.write(byte);
        }
        assert_eq!(keyboard.leds(), 7);
        assert_eq!(drain(&mut keyboard), [ACK, 0xAA, ECHO, ACK, 0xAB, 0x83, ACK, ACK, 0]);
        keyboard.write(0xF5);
        keyboard.press(0, Key::B);
        assert_eq!(drain(&mut keyboard), [ACK]);
    }

    #[test]
    fn typematic_repeat_is_bounded() {
        let mut keyboard = Keyboard::new();
        keyboard.press(0, Key::A);
        assert_eq!(keyboard.next_event(), Some(500_000_000));
        keyboard.event(3_600_000_000_000);
        assert_eq!(drain(&mut keyboard), [0x1C, 0x1C]);
        for _ in 0..1000 {
            keyboard.event(u64::MAX);
        }
        assert!(keyboard.queue.len() <= QUEUE);
        keyboard.release(Key::A);
        assert_eq!(keyboard.next_event(), None);
    }
}
