//! Debug console ports 0xE9 (Bochs) and 0x402 (firmware), and the isa-debug-exit port.

use crate::chip::{Chip, Cx, Effect, StateError, decode, encode, open_bus};

/// Window of either chip: its first port.
pub const PORT: u8 = 0;

const VERSION: u16 = 1;
/// What a read of a debug console gives, by which guests find it.
const PRESENT: u8 = 0xE9;

/// A console of one port: every byte written is one [`Effect::Output`].
pub struct DebugConsole;

impl DebugConsole {
    pub fn new() -> Self {
        DebugConsole
    }
}

impl Chip for DebugConsole {
    fn name(&self) -> &'static str {
        "debugcon"
    }
    fn reset(&mut self, _cx: &mut Cx) {}
    fn read(&mut self, _cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        if window != PORT || offset != 0 {
            return open_bus(size);
        }
        open_bus(size) & !0xFF | u64::from(PRESENT)
    }
    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, _size: u8, value: u64) {
        if window == PORT && offset == 0 {
            cx.push(Effect::Output { byte: value as u8 });
        }
    }
    fn save(&self) -> Vec<u8> {
        encode(VERSION, &())
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        decode(self.name(), VERSION, bytes)
    }
    fn info(&self) -> String {
        "debug console\n".into()
    }
}

/// The program ends with status `(value << 1 | 1) & 0xFF` when the guest writes `value`.
pub struct DebugExit;

impl DebugExit {
    pub fn new() -> Self {
        DebugExit
    }
}

impl Chip for DebugExit {
    fn name(&self) -> &'static str {
        "debugexit"
    }
    fn reset(&mut self, _cx: &mut Cx) {}
    fn read(&mut self, _cx: &mut Cx, _window: u8, _offset: u64, size: u8) -> u64 {
        open_bus(size)
    }
    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, _size: u8, value: u64) {
        if window == PORT && offset == 0 {
            cx.push(Effect::Exit { status: i32::from((value as u8) << 1 | 1) });
        }
    }
    fn save(&self) -> Vec<u8> {
        encode(VERSION, &())
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        decode(self.name(), VERSION, bytes)
    }
    fn info(&self) -> String {
        "isa-debug-exit\n".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    #[test]
    fn console_and_exit() {
        let mut console = Bench::new(DebugConsole::new());
        console.write(PORT, 0, 1, u64::from(b'!'));
        assert_eq!(console.output(), b"!");
        assert_eq!(console.read(PORT, 0, 1), 0xE9);
        let mut exit = Bench::new(DebugExit::new());
        exit.write(PORT, 0, 4, 0x10);
        assert_eq!(exit.effects, [Effect::Exit { status: 0x21 }]);
    }
}
