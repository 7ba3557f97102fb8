//! Writes down what a guest writes to chosen I/O ports, POST codes for the most part. The chips at these ports get the
//! writes as well.

use crate::board::Board;
use crate::chips::locked;
use crate::consoles::Console;
use std::sync::Mutex;

/// Ports that a machine can log.
pub const MAX_PORTS: usize = 16;

/// How a port's writes are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line a write: the value in hexadecimal, two digits a byte.
    Hex,
    /// The bytes as they are.
    Text,
}

/// What a port has got so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCount {
    pub port: u16,
    pub writes: u64,
    /// The value written last.
    pub last: u32,
}

/// See the head of this file.
pub struct PortLogs {
    /// Held while a line is sent, so that lines of several processors do not mix.
    counts: Mutex<Vec<PortCount>>,
    formats: Vec<Format>,
}

impl PortLogs {
    pub fn new(ports: &[(u16, Format)]) -> Self {
        let counts = ports.iter().map(|&(port, _)| PortCount { port, ..PortCount::default() });
        PortLogs { counts: Mutex::new(counts.collect()), formats: ports.iter().map(|port| port.1).collect() }
    }

    /// In the order of the configuration.
    pub fn counts(&self) -> Vec<PortCount> {
        locked(&self.counts).clone()
    }
}

/// The bytes of an access that lie at `port` and behind it: how many, and their value.
fn part(at: u16, size: u8, value: u32, port: u16) -> Option<(u8, u32)> {
    let skipped = port.checked_sub(at).filter(|&skipped| skipped < u16::from(size))? as u8;
    let len = size - skipped;
    Some((len, value >> (skipped * 8) & (u32::MAX >> (32 - u32::from(len.min(4)) * 8))))
}

impl Board {
    /// A processor writes to a port.
    pub(crate) fn log_port(&self, at: u16, size: u8, value: u32) {
        if self.port_logs.formats.is_empty() {
            return;
        }
        let mut counts = locked(&self.port_logs.counts);
        for ((n, count), format) in (0u8..).zip(counts.iter_mut()).zip(&self.port_logs.formats) {
            let Some((len, value)) = part(at, size, value, count.port) else { continue };
            count.writes += 1;
            count.last = value;
            let len = usize::from(len.min(4));
            let line = match format {
                Format::Hex => format!("{value:0digits$x}\n", digits = len * 2).into_bytes(),
                Format::Text => value.to_le_bytes()[..len].to_vec(),
            };
            line.into_iter().for_each(|byte| self.consoles.output(Console::Port(n), byte));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn wide_writes_reach_the_ports_that_they_cover() {
        assert_eq!(part(0x80, 1, 0x12, 0x80), Some((1, 0x12)));
        assert_eq!(part(0x80, 4, 0x1234_5678, 0x80), Some((4, 0x1234_5678)));
        assert_eq!(part(0x7F, 2, 0x1234, 0x80), Some((1, 0x12)));
        assert_eq!(part(0x7E, 2, 0x1234, 0x80), None);
        assert_eq!(part(0x81, 1, 0x12, 0x80), None);
        assert_eq!(part(0xFFFF, 4, 0x1234_5678, 0xFFFF), Some((4, 0x1234_5678)));
    }
}
