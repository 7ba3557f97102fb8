//! What makes a running machine change its engine by itself. Each trigger fires once.

use crate::chips::locked;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex};
use trimaran_cpu::engine::EngineFactory;

/// Something that happens in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A processor comes to the instruction at this linear address.
    Rip(u64),
    /// A processor accesses this I/O port.
    Port(u16),
    /// The first processor has retired so many instructions since power-on.
    Insns(u64),
    /// This text has appeared on COM1.
    Serial(String),
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Rip(address) => write!(f, "rip={address:#x}"),
            Trigger::Port(port) => write!(f, "port={port:#x}"),
            Trigger::Insns(count) => write!(f, "insns={count}"),
            Trigger::Serial(text) => write!(f, "serial={text}"),
        }
    }
}

/// A trigger and the engine that runs the machine from then on.
#[derive(Clone)]
pub struct SwitchAt {
    pub trigger: Trigger,
    pub engine: Arc<dyn EngineFactory>,
}

/// No trigger waits for a count of instructions.
const NEVER: u64 = u64::MAX;

/// All triggers of a machine. What the guest does often is compared with flags first.
pub struct Triggers {
    armed: Mutex<Vec<SwitchAt>>,
    fired: Mutex<Vec<SwitchAt>>,
    ports: AtomicBool,
    serial: AtomicBool,
    count: AtomicU64,
    /// The end of what came over COM1.
    tail: Mutex<Vec<u8>>,
}

impl Triggers {
    pub fn new(triggers: Vec<SwitchAt>) -> Self {
        let triggers = Triggers {
            armed: Mutex::new(triggers),
            fired: Mutex::default(),
            ports: AtomicBool::new(false),
            serial: AtomicBool::new(false),
            count: AtomicU64::new(NEVER),
            tail: Mutex::default(),
        };
        triggers.note_armed(&locked(&triggers.armed));
        triggers
    }

    fn note_armed(&self, armed: &[SwitchAt]) {
        let any = |kind: fn(&Trigger) -> bool| armed.iter().any(|at| kind(&at.trigger));
        self.ports.store(any(|t| matches!(t, Trigger::Port(_))), Release);
        self.serial.store(any(|t| matches!(t, Trigger::Serial(_))), Release);
        let counts = armed.iter().filter_map(|at| match at.trigger {
            Trigger::Insns(count) => Some(count),
            _ => None,
        });
        self.count.store(counts.min().unwrap_or(NEVER), Release);
    }

    /// Has all triggers that are met fire. True: there are any.
    fn fire(&self, met: impl Fn(&Trigger) -> bool) -> bool {
        let mut armed = locked(&self.armed);
        let (fired, rest): (Vec<_>, Vec<_>) = armed.drain(..).partition(|at| met(&at.trigger));
        *armed = rest;
        self.note_armed(&armed);
        let any = !fired.is_empty();
        locked(&self.fired).extend(fired);
        any
    }

    /// A processor accesses `size` bytes from `port` on.
    pub fn port(&self, port: u16, size: u8) -> bool {
        let covers = |wanted: u16| wanted.wrapping_sub(port) < u16::from(size);
        self.ports.load(Relaxed) && self.fire(|t| matches!(t, Trigger::Port(wanted) if covers(*wanted)))
    }

    /// A byte leaves COM1.
    pub fn serial(&self, byte: u8) -> bool {
        if !self.serial.load(Relaxed) {
            return false;
        }
        let mut tail = locked(&self.tail);
        tail.push(byte);
        let fired = self.fire(|t| matches!(t, Trigger::Serial(text) if tail.ends_with(text.as_bytes())));
        let length = |at: &SwitchAt| match &at.trigger {
            Trigger::Serial(text) => text.len(),
            _ => 0,
        };
        let longest = locked(&self.armed).iter().map(length).max().unwrap_or(0);
        let surplus = tail.len().saturating_sub(longest);
        tail.drain(..surplus);
        fired
    }

    /// The first processor has retired `retired` instructions.
    pub fn count(&self, retired: u64) -> bool {
        retired >= self.next_count() && self.fire(|t| matches!(t, Trigger::Insns(at) if *at <= retired))
    }

    /// The count at which the first processor must stop.
    pub fn next_count(&self) -> u64 {
        self.count.load(Acquire)
    }

    /// A processor has stopped before the instruction at `address`.
    pub fn point(&self, address: u64) -> bool {
        self.fire(|t| *t == Trigger::Rip(address))
    }

    /// Where processors must stop.
    pub fn points(&self) -> Vec<u64> {
        let armed = locked(&self.armed);
        let points = armed.iter().filter_map(|at| match at.trigger {
            Trigger::Rip(address) => Some(address),
            _ => None,
        });
        points.collect()
    }

    /// Those that have fired since the last call, in the order in which they did.
    pub fn take_fired(&self) -> Vec<SwitchAt> {
        std::mem::take(&mut *locked(&self.fired))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_cpu::engine::Interpreter;

    fn triggers(list: &[Trigger]) -> Triggers {
        let at = |trigger: &Trigger| SwitchAt { trigger: trigger.clone(), engine: Arc::new(Interpreter) };
        Triggers::new(list.iter().map(at).collect())
    }

    #[test]
    fn each_fires_once() {
        let t = triggers(&[
            Trigger::Port(0x81),
            Trigger::Insns(500),
            Trigger::Rip(0x8000),
            Trigger::Insns(100),
            Trigger::Serial("ok!".into()),
        ]);
        assert!(!t.port(0x82, 1) && t.port(0x80, 4) && !t.port(0x81, 1));
        assert_eq!((t.next_count(), t.points()), (100, vec![0x8000]));
        assert!(!t.count(99) && t.count(100) && t.next_count() == 500 && !t.count(100));
        assert!(!t.point(0x8001) && t.point(0x8000) && t.points().is_empty());
        assert!(t.count(9999) && t.next_count() == NEVER);
        let sent: Vec<bool> = b"ook! ok!".iter().map(|&byte| t.serial(byte)).collect();
        assert_eq!(sent, [false, false, false, true, false, false, false, false]);
        assert_eq!(t.take_fired().len(), 5);
        assert!(t.take_fired().is_empty());
    }
}
