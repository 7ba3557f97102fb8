//! What unit tests of bus masters and storage chips share: RAM, a clock, and the effects so far.

use crate::chip::{Chip, Cx, Dma, Effect, Nanos, SharedBytes};
use std::sync::Mutex;

/// Guest RAM in a vector.
pub struct Ram(pub Mutex<Vec<u8>>);

impl Dma for Ram {
    fn read(&self, address: u64, buf: &mut [u8]) {
        let ram = self.0.lock().unwrap();
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = usize::try_from(address).ok().and_then(|a| a.checked_add(i));
            *byte = at.and_then(|at| ram.get(at)).copied().unwrap_or(0xFF);
        }
    }
    fn write(&self, address: u64, buf: &[u8]) {
        let mut ram = self.0.lock().unwrap();
        for (i, &byte) in buf.iter().enumerate() {
            let at = usize::try_from(address).ok().and_then(|a| a.checked_add(i));
            if let Some(to) = at.and_then(|at| ram.get_mut(at)) {
                *to = byte;
            }
        }
    }
}

impl SharedBytes for Ram {
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
    fn read(&self, offset: usize, buf: &mut [u8]) {
        let ram = self.0.lock().unwrap();
        match offset.checked_add(buf.len()).and_then(|end| ram.get(offset..end)) {
            Some(from) => buf.copy_from_slice(from),
            None => buf.fill(0),
        }
    }
    fn write(&self, offset: usize, buf: &[u8]) {
        let mut ram = self.0.lock().unwrap();
        if let Some(to) = offset.checked_add(buf.len()).and_then(|end| ram.get_mut(offset..end)) {
            to.copy_from_slice(buf);
        }
    }
}

/// A chip's surroundings.
pub struct Bench {
    pub now: Nanos,
    pub ram: Ram,
    pub effects: Vec<Effect>,
}

impl Bench {
    pub fn new(ram: usize) -> Self {
        Bench { now: 0, ram: Ram(Mutex::new(vec![0; ram])), effects: Vec::new() }
    }
    pub fn cx(&mut self) -> Cx<'_> {
        Cx { now: self.now, ram: &self.ram, effects: &mut self.effects }
    }
    /// The effects since the last call.
    pub fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }
    /// Runs the chip's events until none is pending (or 10,000 have run).
    pub fn settle(&mut self, chip: &mut dyn Chip) {
        for _ in 0..10_000 {
            let Some(next) = chip.next_event() else { return };
            self.now = self.now.max(next);
            chip.event(&mut self.cx());
        }
    }
}
