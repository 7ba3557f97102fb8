//! Who may run: pausing and waking the vCPU threads, requests of the guest to the machine, and how it ended.

use crate::chips::locked;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use trimaran_cpu::shared::{CodeFence, attention};

/// What a guest asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Reset,
    PowerOff,
    Exit(i32),
    /// A processor met a triple fault.
    TripleFault,
    /// A processor's engine cannot go on.
    EngineFailed,
    /// All processors have halted with interrupts disabled.
    AllHalted,
    /// Triggers have fired: see [`crate::triggers`].
    Switch,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    PoweredOff,
    /// isa-debug-exit, with the status for the host.
    DebugExit(i32),
    TripleFault,
    /// The engine could not go on: [`crate::Machine::engine_failure`] says why.
    EngineFailed,
    /// All processors have halted with interrupts disabled, in a machine that ends then.
    Halted,
    /// The guest asked for a reset, of a machine that ends instead.
    Reset,
    /// The host asked for the end.
    Quit,
}

#[derive(Default)]
struct State {
    /// How many callers want the vCPUs to stand.
    pauses: u32,
    /// One of the pauses is [`Control::hold`]'s.
    held: bool,
    /// vCPU threads that stand.
    parked: usize,
    threads: usize,
    requests: Vec<Request>,
    outcome: Option<Outcome>,
    quit: bool,
}

/// A place where a vCPU's thread sleeps while the vCPU is halted.
#[derive(Default)]
struct Bed {
    asleep: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

/// See the head of this file.
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    fence: Arc<CodeFence>,
    beds: Box<[Bed]>,
    /// The vCPU that runs in a deterministic machine.
    current: AtomicUsize,
    deterministic: bool,
    /// Something wants the threads to stand: cheap to look at.
    hold: AtomicBool,
}

impl Control {
    pub fn new(fence: Arc<CodeFence>, deterministic: bool) -> Self {
        let beds = if deterministic { 1 } else { fence.vcpus.len() };
        Control {
            state: Mutex::default(),
            changed: Condvar::new(),
            beds: (0..beds).map(|_| Bed::default()).collect(),
            fence,
            current: AtomicUsize::new(0),
            deterministic,
            hold: AtomicBool::new(false),
        }
    }

    pub fn deterministic_vcpu(&self) -> Option<usize> {
        self.deterministic.then(|| self.current.load(Acquire))
    }

    pub fn set_current(&self, vcpu: usize) {
        self.current.store(vcpu.min(self.fence.vcpus.len() - 1), Release);
    }

    /// Wakes the thread of a vCPU if it sleeps.
    pub fn wake(&self, vcpu: usize) {
        let bed = &self.beds[vcpu.min(self.beds.len() - 1)];
        if bed.asleep.load(SeqCst) {
            let _guard = locked(&bed.lock);
            bed.wake.notify_all();
        }
    }

    /// Puts the thread of a vCPU to sleep unless `awake` says that it must go on, at most for `time`.
    pub fn sleep(&self, vcpu: usize, time: Option<Duration>, awake: impl Fn() -> bool) {
        let bed = &self.beds[vcpu.min(self.beds.len() - 1)];
        let mut guard = locked(&bed.lock);
        bed.asleep.store(true, SeqCst);
        while !awake() && !self.hold.load(SeqCst) {
            match time {
                None => guard = bed.wake.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    let waited = bed.wake.wait_timeout(guard, time);
                    let (_guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
                    guard = _guard;
                    if timeout.timed_out() {
                        break;
                    }
                }
            }
        }
        bed.asleep.store(false, SeqCst);
        drop(guard);
    }

    /// Has all vCPUs leave what they do.
    fn stop_vcpus(&self) {
        self.hold.store(true, SeqCst);
        for (n, vcpu) in self.fence.vcpus.iter().enumerate() {
            vcpu.raise(attention::STOP);
            self.wake(n);
        }
    }

    fn update_hold(&self, state: &State) {
        let hold = state.pauses > 0 || state.quit || state.outcome.is_some() || !state.requests.is_empty();
        self.hold.store(hold, SeqCst);
        self.changed.notify_all();
    }

    /// A guest's request: no vCPU goes on before it is served.
    pub fn request(&self, request: Request) {
        let mut state = locked(&self.state);
        state.requests.push(request);
        self.update_hold(&state);
        drop(state);
        self.stop_vcpus();
    }

    /// The requests so far; they stay until [`Control::served`] is called.
    pub fn requests(&self) -> Vec<Request> {
        locked(&self.state).requests.clone()
    }

    /// The first `count` requests are served. What came since is not.
    pub fn served(&self, count: usize, outcome: Option<Outcome>) {
        let mut state = locked(&self.state);
        let count = count.min(state.requests.len());
        state.requests.drain(..count);
        state.outcome = state.outcome.or(outcome);
        self.update_hold(&state);
    }

    /// Stops all vCPUs at an instruction boundary and waits until they stand.
    pub fn pause(&self) {
        let mut state = locked(&self.state);
        state.pauses += 1;
        self.update_hold(&state);
        drop(state);
        self.stop_vcpus();
        let mut state = locked(&self.state);
        while state.parked < state.threads {
            state = self.wait(state);
        }
    }

    /// As [`Control::pause`], asked by the thread that shall stand itself.
    pub fn hold(&self) {
        let mut state = locked(&self.state);
        state.pauses += 1;
        state.held = true;
        self.update_hold(&state);
    }

    /// Waits until a vCPU has called [`Control::hold`] and all stand, or the machine has ended.
    pub fn wait_held(&self) {
        let mut state = locked(&self.state);
        while state.outcome.is_none() && !(state.held && state.parked == state.threads) {
            state = self.wait(state);
        }
        state.held = false;
    }

    /// The vCPUs stand, or were asked to, for this many callers.
    pub fn pauses(&self) -> u32 {
        locked(&self.state).pauses
    }

    pub fn resume(&self) {
        let mut state = locked(&self.state);
        state.pauses = state.pauses.saturating_sub(1);
        self.update_hold(&state);
    }

    /// A vCPU's thread begins or ends.
    pub fn thread_began(&self) {
        locked(&self.state).threads += 1;
    }

    pub fn thread_ended(&self) {
        let mut state = locked(&self.state);
        state.threads = state.threads.saturating_sub(1);
        self.changed.notify_all();
    }

    /// A vCPU's thread stands here while anybody wants it to. False: the thread shall end.
    pub fn stand(&self) -> bool {
        if !self.hold.load(SeqCst) {
            return true;
        }
        let mut state = locked(&self.state);
        state.parked += 1;
        self.changed.notify_all();
        while !state.quit && self.hold.load(SeqCst) {
            state = self.wait(state);
        }
        state.parked -= 1;
        !state.quit
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub fn quit(&self) {
        let mut state = locked(&self.state);
        state.quit = true;
        state.outcome = state.outcome.or(Some(Outcome::Quit));
        self.update_hold(&state);
        drop(state);
        self.stop_vcpus();
    }

    pub fn quitting(&self) -> bool {
        locked(&self.state).quit
    }

    pub fn outcome(&self) -> Option<Outcome> {
        locked(&self.state).outcome
    }

    /// A machine that ended may go on, from a restored state.
    pub fn forget_outcome(&self) {
        let mut state = locked(&self.state);
        state.outcome = None;
        state.requests.clear();
        self.update_hold(&state);
    }

    /// Waits for the end, at most for `time`.
    pub fn wait_outcome(&self, time: Option<Duration>) -> Option<Outcome> {
        let mut state = locked(&self.state);
        while state.outcome.is_none() {
            match time {
                None => state = self.wait(state),
                Some(time) => {
                    let begun = std::time::Instant::now();
                    let unfinished = |state: &mut State| state.outcome.is_none();
                    let waited = self.changed.wait_timeout_while(state, time, unfinished);
                    tracing::trace!(elapsed = ?begun.elapsed(), "waited for the outcome");
                    return waited.unwrap_or_else(PoisonError::into_inner).0.outcome;
                }
            }
        }
        state.outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_comes_while_others_are_served_is_not_lost() {
        let control = Control::new(CodeFence::new(1), false);
        control.request(Request::Switch);
        let served = control.requests();
        control.request(Request::PowerOff);
        control.served(served.len(), None);
        assert_eq!(control.requests(), [Request::PowerOff]);
        assert!(control.hold.load(SeqCst), "no vCPU goes on before it is served");
        control.served(1, Some(Outcome::PoweredOff));
        assert_eq!((control.requests().len(), control.outcome()), (0, Some(Outcome::PoweredOff)));
    }
}
