//! The test device of QEMU's PC (`pc-testdev`), by which test kernels check port accesses and raise interrupt lines.
//! Its 64 KiB of memory are RAM of the board.

use crate::chip::{Chip, Cx, StateError, decode, encode, open_bus};
use serde::{Deserialize, Serialize};

/// Window: four ports that read as what was written, in any size.
pub const ECHO: u8 = 0;
/// Window: a write of a page's address has the host unmap the page and map it again; guests must not notice.
pub const FLUSH: u8 = 1;
/// Window: one port an interrupt line; bit 0 to 7 any: high, none: low.
pub const LINES: u8 = 2;
/// Output pins (level): interrupt lines 0 to 23, as the IOAPIC of a PC numbers its inputs.
pub const LINE_COUNT: u8 = 24;

const VERSION: u16 = 1;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    echo: [u8; 4],
    /// A bit for each line that is high.
    lines: u32,
}

/// See the head of this file.
#[derive(Default)]
pub struct TestDevice {
    state: State,
}

impl TestDevice {
    pub fn new() -> Self {
        TestDevice::default()
    }
}

/// The bytes of [`ECHO`] that an access covers.
fn covered(offset: u64, size: u8) -> std::ops::Range<usize> {
    let first = offset.min(4) as usize;
    first..(first + usize::from(size)).min(4)
}

impl Chip for TestDevice {
    fn name(&self) -> &'static str {
        "testdev"
    }

    fn reset(&mut self, cx: &mut Cx) {
        let lines = std::mem::take(&mut self.state).lines;
        (0..LINE_COUNT).filter(|n| lines >> n & 1 != 0).for_each(|n| cx.line(n, false));
    }

    fn read(&mut self, _cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        if window != ECHO || offset >= 4 {
            return open_bus(size);
        }
        let bytes = self.state.echo[covered(offset, size)].iter().rev();
        bytes.fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        match window {
            ECHO => {
                let range = covered(offset, size);
                let len = range.len();
                self.state.echo[range].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            LINES if offset < u64::from(LINE_COUNT) => {
                let level = value as u8 != 0;
                self.state.lines = self.state.lines & !(1 << offset) | u32::from(level) << offset;
                cx.line(offset as u8, level);
            }
            _ => {}
        }
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        if state.lines >> LINE_COUNT != 0 {
            return Err(StateError::Damaged { chip: self.name(), reason: "more than 24 lines".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        format!("echo={:02x?} lines={:06x}\n", self.state.echo, self.state.lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;
    use crate::chip::Effect;

    #[test]
    fn the_echo_ports_hold_what_was_written() {
        let mut b = Bench::new(TestDevice::new());
        b.write(ECHO, 0, 4, 0x4433_2211);
        assert_eq!([b.read(ECHO, 0, 4), b.read(ECHO, 1, 2), b.read(ECHO, 3, 1)], [0x4433_2211, 0x3322, 0x44]);
        b.write(ECHO, 1, 1, 0xAA);
        assert_eq!(b.read(ECHO, 0, 4), 0x4433_AA11);
        b.write(FLUSH, 0, 4, 0x1000);
        assert_eq!(b.read(ECHO, 0, 4), 0x4433_AA11);
    }

    #[test]
    fn lines_follow_their_ports() {
        let mut b = Bench::new(TestDevice::new());
        b.write(LINES, 14, 1, 1);
        b.write(LINES, 14, 1, 0);
        b.write(LINES, 23, 1, 0x80);
        b.write(LINES, 24, 1, 1);
        let line = |pin, level| Effect::Line { pin, level };
        assert_eq!(b.effects, [line(14, true), line(14, false), line(23, true)]);
        b.effects.clear();
        b.reset();
        assert_eq!(b.effects, [line(23, false)]);
    }
}
