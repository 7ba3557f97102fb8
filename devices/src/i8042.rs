//! The 8042 keyboard controller with its keyboard and mouse, and port 92h (IBM Personal System/2 Technical
//! Reference, "Keyboard and Auxiliary Device Controller"; 82371SB datasheet, "Port 92").

use serde::{Deserialize, Serialize};

use crate::chip::{Chip, Cx, Effect, Nanos, StateError, decode, encode};
use crate::ports::{read_each, write_each};
pub use crate::ps2::key::Key;
use crate::ps2::key::translate;
use crate::ps2::keyboard::Keyboard;
use crate::ps2::mouse::Mouse;

/// Window of port 0x60: data.
pub const DATA: u8 = 0;
/// Window of port 0x64: status and command.
pub const COMMAND: u8 = 1;
/// Window of port 0x92.
pub const PORT_92: u8 = 2;

/// Output pin: to IRQ1.
pub const IRQ1: u8 = 0;
/// Output pin: to IRQ12.
pub const IRQ12: u8 = 1;

/// Status register.
mod status {
    pub const OBF: u8 = 0x01;
    pub const SYS: u8 = 0x04;
    pub const COMMAND: u8 = 0x08;
    pub const UNLOCKED: u8 = 0x10;
    pub const AUX_OBF: u8 = 0x20;
}

/// Command byte.
mod command_byte {
    pub const KIE: u8 = 0x01;
    pub const AIE: u8 = 0x02;
    pub const SYS: u8 = 0x04;
    pub const DISABLE_KEYBOARD: u8 = 0x10;
    pub const DISABLE_AUX: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
}

/// Output port.
mod output_port {
    /// RESET# of the processor, active low.
    pub const RESET: u8 = 0x01;
    pub const A20: u8 = 0x02;
}

const VERSION: u16 = 1;
/// Time that a byte takes from a device into the output buffer.
const SERIAL_DELAY: Nanos = 100_000;
/// Time that the controller takes to answer by itself.
const OWN_DELAY: Nanos = 10_000;

/// Where a byte in the output buffer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Controller,
    Keyboard,
    Aux,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    /// Controller RAM; byte 0 is the command byte.
    ram: [u8; 32],
    /// Output buffer: byte and source, while OBF is set.
    output: Option<(u8, Source)>,
    last_output: u8,
    /// The controller's own answer, not yet in the output buffer.
    answer: Option<(u8, Source)>,
    /// When the next byte reaches the output buffer.
    load_at: Option<Nanos>,
    /// A command whose data byte comes next.
    pending: Option<u8>,
    last_was_command: bool,
    /// F0 was seen by the translation.
    released: bool,
    a20: bool,
    /// Bit 0 of port 92h.
    fast_init: bool,
    irq1: bool,
    irq12: bool,
    keyboard: Keyboard,
    mouse: Mouse,
}

impl State {
    fn new() -> Self {
        let mut ram = [0; 32];
        ram[0] = command_byte::DISABLE_AUX | command_byte::DISABLE_KEYBOARD | command_byte::TRANSLATE;
        State {
            ram,
            output: None,
            last_output: 0,
            answer: None,
            load_at: None,
            pending: None,
            last_was_command: false,
            released: false,
            a20: true,
            fast_init: false,
            irq1: false,
            irq12: false,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
        }
    }
}

/// Keyboard controller, keyboard and mouse.
pub struct I8042 {
    state: State,
}

impl I8042 {
    pub fn new() -> Self {
        I8042 { state: State::new() }
    }

    /// A key goes down; it repeats by itself until [`I8042::release`].
    pub fn press(&mut self, cx: &mut Cx, key: Key) {
        self.state.keyboard.press(cx.now, key);
        self.schedule(cx);
    }

    pub fn release(&mut self, cx: &mut Cx, key: Key) {
        self.state.keyboard.release(key);
        self.schedule(cx);
    }

    /// Scan code bytes that the keyboard can still take (a stroke needs up to 8): whoever types text waits
    /// for room.
    pub fn keyboard_room(&self) -> usize {
        self.state.keyboard.room()
    }

    /// Bit 0 Scroll Lock, 1 Num Lock, 2 Caps Lock.
    pub fn leds(&self) -> u8 {
        self.state.keyboard.leds()
    }

    /// Moves the mouse right and down; `wheel` is positive towards the user.
    pub fn mouse_move(&mut self, cx: &mut Cx, dx: i32, dy: i32, wheel: i32) {
        self.state.mouse.moved(dx, dy, wheel);
        self.schedule(cx);
    }

    /// Mouse buttons that are down now: [`crate::ps2::mouse::button`].
    pub fn mouse_buttons(&mut self, cx: &mut Cx, buttons: u8) {
        self.state.mouse.buttons(buttons);
        self.schedule(cx);
    }

    /// Whether the guest listens to the mouse.
    pub fn mouse_active(&self) -> bool {
        self.state.mouse.reporting()
    }

    /// Level of A20, as last sent with [`Effect::A20`].
    pub fn a20(&self) -> bool {
        self.state.a20
    }

    fn command_byte(&self) -> u8 {
        self.state.ram[0]
    }

    fn answer(&mut self, byte: u8, source: Source) {
        self.state.answer = Some((byte, source));
        if self.state.output.is_none() {
            self.state.load_at = None;
        }
    }

    /// The device whose byte comes next.
    fn ready(&self) -> Option<Source> {
        let on = |disable: u8| self.command_byte() & disable == 0;
        if self.state.answer.is_some() {
            Some(Source::Controller)
        } else if self.state.keyboard.waiting() && on(command_byte::DISABLE_KEYBOARD) {
            Some(Source::Keyboard)
        } else if self.state.mouse.waiting() && on(command_byte::DISABLE_AUX) {
            Some(Source::Aux)
        } else {
            None
        }
    }

    /// Sets the time of the next byte and drives the interrupt pins.
    fn schedule(&mut self, cx: &mut Cx) {
        let ready = if self.state.output.is_none() { self.ready() } else { None };
        self.state.load_at = ready.map(|source| {
            let delay = if source == Source::Controller { OWN_DELAY } else { SERIAL_DELAY };
            self.state.load_at.unwrap_or(cx.now.saturating_add(delay))
        });
        let source = self.state.output.map(|(_, source)| source);
        let on = |enable: u8| self.command_byte() & enable != 0;
        let irq1 = source.is_some_and(|source| source != Source::Aux) && on(command_byte::KIE);
        let irq12 = source == Some(Source::Aux) && on(command_byte::AIE);
        if irq1 != self.state.irq1 {
            self.state.irq1 = irq1;
            cx.line(IRQ1, irq1);
        }
        if irq12 != self.state.irq12 {
            self.state.irq12 = irq12;
            cx.line(IRQ12, irq12);
        }
    }

    /// Moves the next byte into the output buffer.
    fn load(&mut self) {
        self.state.output = match self.ready() {
            Some(Source::Controller) => self.state.answer.take(),
            Some(Source::Keyboard) => self.keyboard_byte().map(|byte| (byte, Source::Keyboard)),
            Some(Source::Aux) => self.state.mouse.send().map(|byte| (byte, Source::Aux)),
            None => None,
        };
    }

    /// The keyboard's next byte, through the translation of set 2 to set 1.
    fn keyboard_byte(&mut self) -> Option<u8> {
        let mut byte = self.state.keyboard.send()?;
        if self.command_byte() & command_byte::TRANSLATE == 0 {
            return Some(byte);
        }
        if byte == 0xF0 {
            self.state.released = true;
            byte = self.state.keyboard.send()?;
        }
        let released = std::mem::take(&mut self.state.released);
        Some(translate(byte) | if released { 0x80 } else { 0 })
    }

    fn set_a20(&mut self, cx: &mut Cx, enabled: bool) {
        if enabled != self.state.a20 {
            self.state.a20 = enabled;
            cx.push(Effect::A20 { enabled });
        }
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.state.output.take() {
            self.state.last_output = byte;
        }
        self.state.last_output
    }

    fn read_status(&self) -> u8 {
        let mut value = status::UNLOCKED | self.command_byte() & status::SYS;
        if let Some((_, source)) = self.state.output {
            value |= status::OBF | if source == Source::Aux { status::AUX_OBF } else { 0 };
        }
        value | if self.state.last_was_command { status::COMMAND } else { 0 }
    }

    fn read_output_port(&self) -> u8 {
        let full = |aux: bool| self.state.output.is_some_and(|(_, source)| (source == Source::Aux) == aux);
        output_port::RESET
            | if self.state.a20 { output_port::A20 } else { 0 }
            | u8::from(full(false)) << 4
            | u8::from(full(true)) << 5
            | 0xC0
    }

    fn command(&mut self, cx: &mut Cx, command: u8) {
        self.state.last_was_command = true;
        self.state.pending = None;
        match command {
            0x20..=0x3F => self.answer(self.state.ram[usize::from(command & 0x1F)], Source::Controller),
            0x60..=0x7F | 0xD1..=0xD4 => self.state.pending = Some(command),
            // Test password: none is installed.
            0xA4 => self.answer(0xF1, Source::Controller),
            0xA7 => self.state.ram[0] |= command_byte::DISABLE_AUX,
            0xA8 => self.state.ram[0] &= !command_byte::DISABLE_AUX,
            0xA9 | 0xAB => self.answer(0, Source::Controller),
            0xAA => {
                self.state.output = None;
                self.state.ram[0] |= command_byte::SYS;
                self.answer(0x55, Source::Controller);
            }
            0xAD => self.state.ram[0] |= command_byte::DISABLE_KEYBOARD,
            0xAE => self.state.ram[0] &= !command_byte::DISABLE_KEYBOARD,
            // Input port: keyboard unlocked, colour display, no jumper.
            0xC0 => self.answer(0xBF, Source::Controller),
            0xD0 => self.answer(self.read_output_port(), Source::Controller),
            0xDD => self.set_a20(cx, false),
            0xDF => self.set_a20(cx, true),
            // Test inputs: both clocks high.
            0xE0 => self.answer(0x03, Source::Controller),
            // Pulse output port bits 3 to 0 low; bit 0 is the processor's reset.
            0xF0..=0xFF if command & 1 == 0 => cx.push(Effect::InitCpu),
            _ => {}
        }
    }

    fn write_data(&mut self, cx: &mut Cx, byte: u8) {
        self.state.last_was_command = false;
        match self.state.pending.take() {
            Some(command @ 0x60..=0x7F) => self.state.ram[usize::from(command & 0x1F)] = byte,
            Some(0xD1) => {
                self.set_a20(cx, byte & output_port::A20 != 0);
                if byte & output_port::RESET == 0 {
                    cx.push(Effect::InitCpu);
                }
            }
            Some(0xD2) => self.answer(byte, Source::Keyboard),
            Some(0xD3) => self.answer(byte, Source::Aux),
            Some(0xD4) => {
                self.state.ram[0] &= !command_byte::DISABLE_AUX;
                self.state.mouse.write(byte);
            }
            _ => {
                self.state.ram[0] &= !command_byte::DISABLE_KEYBOARD;
                self.state.keyboard.write(byte);
            }
        }
    }

    /// Port 92h: bit 0 resets the processor when it rises, bit 1 is A20.
    fn write_port_92(&mut self, cx: &mut Cx, byte: u8) {
        self.set_a20(cx, byte & 2 != 0);
        let init = byte & 1 != 0;
        if init && !self.state.fast_init {
            cx.push(Effect::InitCpu);
        }
        self.state.fast_init = init;
    }
}

impl Chip for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn reset(&mut self, cx: &mut Cx) {
        let mut old = std::mem::replace(&mut self.state, State::new());
        old.keyboard.reset();
        old.mouse.reset();
        self.state.keyboard = old.keyboard;
        self.state.mouse = old.mouse;
        cx.line(IRQ1, false);
        cx.line(IRQ12, false);
        cx.push(Effect::A20 { enabled: true });
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        let value = read_each(offset, size, |o| match (window, o) {
            (DATA, 0) => self.read_data(),
            (COMMAND, 0) => self.read_status(),
            (PORT_92, 0) => u8::from(self.state.fast_init) | u8::from(self.state.a20) << 1,
            _ => 0xFF,
        });
        self.schedule(cx);
        value
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        write_each(offset, size, value, |o, byte| match (window, o) {
            (DATA, 0) => self.write_data(cx, byte),
            (COMMAND, 0) => self.command(cx, byte),
            (PORT_92, 0) => self.write_port_92(cx, byte),
            _ => {}
        });
        self.schedule(cx);
    }

    fn next_event(&self) -> Option<Nanos> {
        self.state.load_at.into_iter().chain(self.state.keyboard.next_event()).min()
    }

    fn event(&mut self, cx: &mut Cx) {
        self.state.keyboard.event(cx.now);
        if self.state.load_at.is_some_and(|at| at <= cx.now) {
            self.state.load_at = None;
            self.load();
        }
        self.schedule(cx);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        if !state.keyboard.valid() || !state.mouse.valid() {
            return Err(StateError::Damaged { chip: self.name(), reason: "device out of range".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        format!(
            "command byte={:02x} status={:02x} a20={}\nkeyboard: set={} leds={}\nmouse: id={} reporting={}\n",
            self.command_byte(),
            self.read_status(),
            self.state.a20,
            self.state.keyboard.set(),
            self.leds(),
            self.state.mouse.id(),
            self.state.mouse.reporting()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn poll(bench: &mut Bench<I8042>) -> Option<u8> {
        bench.run_until(bench.now + 200_000);
        (bench.read(COMMAND, 0, 1) as u8 & status::OBF != 0).then(|| bench.read(DATA, 0, 1) as u8)
    }

    fn ready() -> Bench<I8042> {
        let mut bench = Bench::new(I8042::new());
        bench.write(COMMAND, 0, 1, 0x60);
        bench.write(DATA, 0, 1, 0x47);
        bench
    }

    #[test]
    fn self_test_and_command_byte() {
        let mut bench = Bench::new(I8042::new());
        bench.write(COMMAND, 0, 1, 0xAA);
        assert_eq!(bench.read(COMMAND, 0, 1) & 1, 0, "not at once");
        assert_eq!(poll(&mut bench), Some(0x55));
        assert_eq!(poll(&mut bench), None);
        bench.write(COMMAND, 0, 1, 0x60);
        bench.write(DATA, 0, 1, 0x45);
        bench.write(COMMAND, 0, 1, 0x20);
        assert_eq!(poll(&mut bench), Some(0x45));
    }

    #[test]
    fn keys_are_translated_and_interrupt() {
        let mut bench = ready();
        bench.with(|chip, cx| chip.press(cx, Key::Delete));
        bench.with(|chip, cx| chip.release(cx, Key::Delete));
        let mut seen = Vec::new();
        while let Some(byte) = {
            bench.run_until(bench.now + 200_000);
            bench.level(IRQ1).then(|| bench.read(DATA, 0, 1) as u8)
        } {
            assert!(!bench.level(IRQ1));
            seen.push(byte);
        }
        assert_eq!(seen, [0xE0, 0x53, 0xE0, 0xD3]);
    }

    #[test]
    fn mouse_uses_irq12() {
        let mut bench = ready();
        bench.write(COMMAND, 0, 1, 0xD4);
        bench.write(DATA, 0, 1, 0xFF);
        bench.run_until(1_000_000);
        assert!(bench.level(IRQ12) && !bench.level(IRQ1));
        assert_eq!(bench.read(COMMAND, 0, 1) & 0x21, 0x21);
        assert_eq!([poll(&mut bench), poll(&mut bench), poll(&mut bench)], [Some(0xFA), Some(0xAA), Some(0)]);
    }

    #[test]
    fn a20_and_reset() {
        let mut bench = ready();
        bench.write(COMMAND, 0, 1, 0xD1);
        bench.write(DATA, 0, 1, 0xDD);
        bench.write(PORT_92, 0, 1, 0x02);
        bench.write(COMMAND, 0, 1, 0xFE);
        let expected = [Effect::A20 { enabled: false }, Effect::A20 { enabled: true }, Effect::InitCpu];
        assert_eq!(bench.effects, expected);
        assert_eq!(bench.read(PORT_92, 0, 1), 2);
    }
}
