//! The virtual clock, in nanoseconds since power-on: host time less the time stopped, or, in deterministic
//! machines, one nanosecond an instruction.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use std::time::Instant;
use trimaran_cpu::shared::{CodeFence, VcpuShared};
use trimaran_devices::chip::Nanos;

const RUNNING: u64 = u64::MAX;

/// See the head of this file. A new clock stands at 0 and is stopped.
pub enum Clock {
    Host {
        origin: Instant,
        /// What to take from the host time since `origin`, modulo 2^64.
        shift: AtomicU64,
        /// The time at which the clock stands; [`RUNNING`] while it runs.
        stopped: AtomicU64,
    },
    Instructions {
        fence: Arc<CodeFence>,
        /// Time at the start of the running slice.
        base: AtomicU64,
        /// The vCPU that runs, and its count of instructions at the start.
        vcpu: AtomicUsize,
        start: AtomicU64,
    },
}

impl Clock {
    pub fn new(deterministic: bool, fence: &Arc<CodeFence>) -> Self {
        if deterministic {
            let (base, vcpu, start) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicU64::new(0));
            Clock::Instructions { fence: fence.clone(), base, vcpu, start }
        } else {
            Clock::Host { origin: Instant::now(), shift: AtomicU64::new(0), stopped: AtomicU64::new(0) }
        }
    }

    fn shared<'a>(fence: &'a CodeFence, vcpu: &AtomicUsize) -> Option<&'a Arc<VcpuShared>> {
        fence.vcpus.get(vcpu.load(Acquire))
    }

    pub fn now(&self) -> Nanos {
        match self {
            Clock::Host { origin, shift, stopped } => match stopped.load(Acquire) {
                RUNNING => host_nanos(origin).wrapping_sub(shift.load(Acquire)),
                time => time,
            },
            Clock::Instructions { fence, base, vcpu, start } => {
                let retired = Self::shared(fence, vcpu).map_or(0, |shared| shared.retired.load(Acquire));
                base.load(Acquire).saturating_add(retired.saturating_sub(start.load(Acquire)))
            }
        }
    }

    /// Lets the clock run; no effect where instructions are counted.
    pub fn resume(&self) {
        if let Clock::Host { origin, shift, stopped } = self {
            let time = stopped.load(Acquire);
            if time != RUNNING {
                shift.store(host_nanos(origin).wrapping_sub(time), Release);
                stopped.store(RUNNING, Release);
            }
        }
    }

    pub fn stop(&self) {
        if let Clock::Host { stopped, .. } = self
            && stopped.load(Acquire) == RUNNING
        {
            stopped.store(self.now(), Release);
        }
    }

    pub fn stopped(&self) -> bool {
        matches!(self, Clock::Host { stopped, .. } if stopped.load(Acquire) != RUNNING)
    }

    /// Sets a stopped clock; deterministic machines jump over idle time so, too.
    pub fn set(&self, time: Nanos) {
        match self {
            Clock::Host { stopped, .. } => stopped.store(time.min(RUNNING - 1), Release),
            Clock::Instructions { fence, base, vcpu, start } => {
                let retired = Self::shared(fence, vcpu).map_or(0, |shared| shared.retired.load(Acquire));
                start.store(retired, Release);
                base.store(time, Release);
            }
        }
    }

    /// A deterministic machine lets vCPU `index` run, which has retired `retired` instructions so far.
    pub fn begin_slice(&self, index: usize, retired: u64) {
        let now = self.now();
        if let Clock::Instructions { fence, base, vcpu, start } = self {
            vcpu.store(index, Release);
            if let Some(shared) = fence.vcpus.get(index) {
                shared.retired.store(retired, Release);
            }
            start.store(retired, Release);
            base.store(now, Release);
        }
    }
}

fn host_nanos(origin: &Instant) -> u64 {
    u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_nanoseconds() {
        let fence = CodeFence::new(2);
        let clock = Clock::new(true, &fence);
        clock.begin_slice(0, 0);
        fence.vcpus[0].retired.store(10, Release);
        clock.begin_slice(1, 500);
        assert_eq!(clock.now(), 10);
        fence.vcpus[1].retired.store(507, Release);
        assert_eq!(clock.now(), 17);
        clock.set(100);
        assert_eq!(clock.now(), 100);
    }

    #[test]
    fn a_stopped_clock_stands() {
        let clock = Clock::new(false, &CodeFence::new(1));
        assert_eq!(clock.now(), 0);
        clock.set(1_000_000_000);
        clock.resume();
        assert!(clock.now() >= 1_000_000_000 && clock.now() < 60_000_000_000);
        clock.stop();
        let time = clock.now();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(clock.now(), time);
    }
}
