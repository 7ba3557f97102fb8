//! When the chips' next events are due.
//!
//! Every slot keeps its own deadline; this is the alarm over all of them. Whoever waits for the earliest deadline
//! (the I/O thread, or the scheduler of a deterministic machine) sets the alarm; a chip call that leads to an
//! earlier one wakes it.

use crate::chips::{NEVER, locked};
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use trimaran_devices::chip::Nanos;

/// See the head of this file.
pub struct Timers {
    deterministic: bool,
    alarm: AtomicU64,
    /// Set when the I/O thread shall look again.
    look: Mutex<bool>,
    changed: Condvar,
}

impl Timers {
    pub fn new(deterministic: bool) -> Self {
        // Until somebody waits, every deadline is news.
        let alarm = AtomicU64::new(if deterministic { 0 } else { NEVER });
        Timers { deterministic, alarm, look: Mutex::new(false), changed: Condvar::new() }
    }

    /// The time up to which the waiting thread sleeps, or a deterministic slice runs.
    pub fn set_alarm(&self, time: Nanos) {
        self.alarm.store(time, SeqCst);
    }

    /// A chip has set this deadline. True: the running vCPU of a deterministic machine must stop for it.
    pub fn noted(&self, deadline: Nanos) -> bool {
        if deadline >= self.alarm.load(SeqCst) {
            return false;
        }
        if !self.deterministic {
            self.wake();
        }
        self.deterministic
    }

    /// Has the I/O thread look again.
    pub fn wake(&self) {
        *locked(&self.look) = true;
        self.changed.notify_all();
    }

    /// Sleeps until [`Timers::wake`], or at most `time`.
    pub fn sleep(&self, time: Option<Duration>) {
        let mut look = locked(&self.look);
        while !*look {
            match time {
                None => look = self.changed.wait(look).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    let waited = self.changed.wait_timeout(look, time);
                    let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    look = guard;
                    if timeout.timed_out() {
                        break;
                    }
                }
            }
        }
        *look = false;
    }
}
