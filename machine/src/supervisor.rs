//! The I/O thread: it calls chips whose time has come and serves what guests ask of the machine as a whole.

use crate::board::Board;
use crate::boot::DirectBoot;
use crate::chips::{NEVER, locked};
use crate::config::MachineError;
use crate::control::{Outcome, Request};
use crate::direct;
use crate::switch::OnSwitch;
use crate::tables::Hardware;
use crate::vcpus::{Engines, Vcpus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trimaran_cpu::model::Model;
use trimaran_cpu::state::CpuState;

/// What the I/O thread and the callers of a machine share.
pub struct Core {
    pub board: Arc<Board>,
    pub vcpus: Arc<Vcpus>,
    pub model: Arc<Model>,
    pub hardware: Hardware,
    pub direct: Option<DirectBoot>,
    pub no_reboot: bool,
    pub on_switch: Option<OnSwitch>,
    /// Held by whoever calls chips from outside of the guest.
    pub gate: Mutex<()>,
}

impl Core {
    /// Stops all vCPUs at an instruction boundary and the clock with them, and calls `f`.
    pub fn quiesce<R>(&self, f: impl FnOnce(&mut Engines) -> R) -> R {
        let _gate = locked(&self.gate);
        self.pause();
        let result = f(&mut self.vcpus.engines());
        self.resume();
        result
    }

    /// Stops vCPUs and clock, until as many calls of [`Core::resume`].
    pub fn pause(&self) {
        self.board.control.pause();
        self.board.clock.stop();
    }

    pub fn resume(&self) {
        if self.board.control.pauses() == 1 {
            self.board.clock.resume();
        }
        self.board.control.resume();
        self.board.timers.wake();
    }

    /// Calls chips from outside: between two instructions in a deterministic machine.
    pub fn outside<R>(&self, f: impl FnOnce(&Board) -> R) -> R {
        if self.board.control.deterministic_vcpu().is_some() {
            return self.quiesce(|_| f(&self.board));
        }
        let _gate = locked(&self.gate);
        f(&self.board)
    }

    /// As after power-on, with memory kept.
    pub fn reset(&self, engines: &mut Engines) -> Result<(), MachineError> {
        self.board.reset();
        for (n, engine) in engines.iter_mut().enumerate() {
            let state = engine.state();
            *state = CpuState { retired: state.retired, ..CpuState::reset(self.model.signature, n == 0) };
            engine.state_changed();
        }
        for slot in &self.board.chips.lapics {
            self.board.call(slot, |lapic, cx| lapic.set_tsc_offset(cx, 0));
        }
        match &self.direct {
            Some(boot) => direct::set_up(&self.board, boot, &self.hardware, engines),
            None => Ok(()),
        }
    }

    /// Runs until the machine is dropped.
    pub fn supervise(&self) {
        let board = &self.board;
        let deterministic = board.control.deterministic_vcpu().is_some();
        while !board.control.quitting() {
            let requests = board.control.requests();
            if board.control.outcome().is_none() && !requests.is_empty() {
                self.serve(&requests);
                continue;
            }
            if deterministic || board.clock.stopped() {
                board.timers.sleep(None);
                continue;
            }
            board.timers.set_alarm(NEVER);
            let earliest = board.chips.earliest();
            let now = board.clock.now();
            if earliest <= now {
                let _gate = locked(&self.gate);
                if !board.clock.stopped() {
                    board.run_events();
                }
                continue;
            }
            board.timers.set_alarm(earliest);
            let time = (earliest != NEVER).then(|| Duration::from_nanos(earliest - now));
            board.timers.sleep(time);
        }
    }

    fn serve(&self, requests: &[Request]) {
        let ends = |request: &Request| match request {
            Request::PowerOff => Some(Outcome::PoweredOff),
            Request::Exit(status) => Some(Outcome::DebugExit(*status)),
            Request::EngineFailed => Some(Outcome::EngineFailed),
            Request::AllHalted => Some(Outcome::Halted),
            Request::TripleFault if self.no_reboot => Some(Outcome::TripleFault),
            Request::Reset if self.no_reboot => Some(Outcome::Reset),
            _ => None,
        };
        tracing::debug!(?requests, "the guest asks");
        if let Some(outcome) = requests.iter().find_map(ends) {
            // The pause is never taken back: the machine stands as it ended.
            self.pause();
            self.board.control.served(requests.len(), Some(outcome));
            return;
        }
        let begun = Instant::now();
        let switches = self.quiesce(|engines| {
            let resets = requests.iter().any(|&request| request != Request::Switch);
            if resets && let Err(e) = self.reset(engines) {
                tracing::error!("reset: {e}");
                self.board.control.served(0, Some(Outcome::Reset));
            }
            let switches = self.serve_triggers(engines);
            self.board.control.served(requests.len(), None);
            switches
        });
        let stood = begun.elapsed();
        switches.into_iter().for_each(|served| served.tell(stood, self.on_switch.as_ref()));
    }
}
