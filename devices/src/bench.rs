//! A bench that holds the chip under test, for chips that are tested by their registers alone.

use crate::chip::{Chip, Cx, Effect, Nanos};
use crate::testing::Ram;
use std::sync::Mutex;

/// A bench with one chip on it.
pub struct Bench<C> {
    pub chip: C,
    pub ram: Ram,
    pub now: Nanos,
    pub effects: Vec<Effect>,
}

impl<C: Chip> Bench<C> {
    pub fn new(chip: C) -> Self {
        Bench { chip, ram: Ram(Mutex::new(vec![0; 0x40000])), now: 0, effects: Vec::new() }
    }
    /// Calls the chip with a context.
    pub fn with<R>(&mut self, call: impl FnOnce(&mut C, &mut Cx) -> R) -> R {
        let mut cx = Cx { now: self.now, ram: &self.ram, effects: &mut self.effects };
        call(&mut self.chip, &mut cx)
    }
    pub fn read(&mut self, window: u8, offset: u64, size: u8) -> u64 {
        self.with(|chip, cx| chip.read(cx, window, offset, size))
    }
    pub fn write(&mut self, window: u8, offset: u64, size: u8, value: u64) {
        self.with(|chip, cx| chip.write(cx, window, offset, size, value));
    }
    pub fn reset(&mut self) {
        self.with(C::reset);
    }
    pub fn input(&mut self, pin: u8, level: bool) {
        self.with(|chip, cx| chip.input(cx, pin, level));
    }
    /// Lets virtual time pass until `until`, with every event at its time.
    pub fn run_until(&mut self, until: Nanos) {
        while let Some(at) = self.chip.next_event().filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.with(C::event);
        }
        self.now = until;
    }
    /// The last level that output `pin` was driven to.
    pub fn level(&self, pin: u8) -> bool {
        let last = self.effects.iter().rev().find_map(|effect| match effect {
            Effect::Line { pin: p, level } if *p == pin => Some(*level),
            _ => None,
        });
        last.unwrap_or(false)
    }
    /// The bytes sent through [`Effect::Output`] so far.
    pub fn output(&self) -> Vec<u8> {
        let bytes = self.effects.iter().filter_map(|effect| match effect {
            Effect::Output { byte } => Some(*byte),
            _ => None,
        });
        bytes.collect()
    }
}
