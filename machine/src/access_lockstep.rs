//! Lock-step with an engine that does not count instructions: two machines compared at device accesses, each in the
//! wake of the other (`paced.rs`).

use crate::config::{MachineConfig, MachineError};
use crate::control::Outcome;
use crate::machine::Machine;
pub use crate::paced::{Mark, comparable};
use crate::paced::{Pace, Paced, Parting};
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};
use trimaran_cpu::engine::EngineFactory;
use trimaran_cpu::state::CpuState;

/// No guest needs longer from one access to the next, in host time.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the driver looks, and reports.
const LOOK: Duration = Duration::from_millis(10);
const REPORT: Duration = Duration::from_secs(5);

/// What a comparison found.
#[derive(Debug)]
pub enum Verdict {
    /// No difference up to here, memory at the end included.
    Same {
        accesses: u64,
        outcome: Option<Outcome>,
    },
    Different(Box<Difference>),
    /// The guest makes no access any more: it waits for time to pass, or for another processor, which it does not do
    /// meanwhile.
    Stuck {
        accesses: u64,
    },
    /// An engine could not go on.
    Failed(String),
}

/// Where the machines part: somewhere between two accesses.
#[derive(Debug)]
pub struct Difference {
    /// Accesses up to which they are the same.
    pub accesses: u64,
    /// The state there, and the bytes at its instruction.
    pub before: CpuState,
    pub code: Vec<u8>,
    /// Where each came; None if only memory differs at the end.
    pub after: Option<[Mark; 2]>,
    /// The first byte of memory that differs at the end: its place in RAM and both values.
    pub memory: Option<(u64, [u8; 2])>,
}

/// Two machines of one processor; the first leads.
pub struct AccessLockstep {
    machines: [Machine; 2],
    pace: Arc<Pace>,
}

impl AccessLockstep {
    /// Takes two equal deterministic configurations, of machines with one processor, and the engines.
    pub fn new(
        configs: [MachineConfig; 2],
        engines: [Arc<dyn EngineFactory>; 2],
    ) -> Result<Self, MachineError> {
        let [leader, follower] = engines;
        let (paced, pace) = Paced::pair(leader, follower);
        let [one, two] = configs;
        let machine = |config: MachineConfig, engine: &Arc<Paced>| {
            if config.cpus != 1 {
                let reason = "at device accesses only machines of one processor can be compared".into();
                return Err(MachineError::Engine { engine: engine.name(), reason });
            }
            let engine: Arc<dyn EngineFactory> = engine.clone();
            Machine::new(config, &engine)
        };
        Ok(AccessLockstep { machines: [machine(one, &paced[0])?, machine(two, &paced[1])?], pace })
    }

    /// Runs until the machines part or end, at most for `time`. `progress` hears the count of accesses now and then.
    pub fn run(&mut self, time: Duration, mut progress: impl FnMut(u64)) -> Result<Verdict, MachineError> {
        self.machines.iter_mut().for_each(Machine::start);
        let begun = Instant::now();
        let (mut seen, mut moved, mut told) = (0, begun, begun);
        while self.machines.iter().any(|machine| machine.outcome().is_none()) {
            std::thread::sleep(LOOK);
            let (runs, accesses) = (self.pace.runs.load(SeqCst), self.pace.accesses.load(SeqCst));
            if runs != seen {
                (seen, moved) = (runs, Instant::now());
            }
            if moved.elapsed() > PATIENCE {
                self.pace.give_up();
                std::thread::sleep(LOOK * 20);
                return Ok(Verdict::Stuck { accesses });
            }
            if begun.elapsed() >= time {
                self.pace.over.store(true, SeqCst);
            }
            if told.elapsed() >= REPORT {
                told = Instant::now();
                progress(accesses);
            }
        }
        Ok(self.verdict())
    }

    fn verdict(&self) -> Verdict {
        let [a, b] = &self.machines;
        let accesses = self.pace.accesses.load(SeqCst);
        if let Some(Parting { before, marks }) = crate::chips::locked(&self.pace.parting).take() {
            let code = b.code_at(0, before.code_address());
            return Verdict::Different(Box::new(Difference {
                accesses,
                before,
                code,
                after: Some(marks),
                memory: None,
            }));
        }
        if let Some(reason) = self.machines.iter().find_map(Machine::engine_failure) {
            return Verdict::Failed(reason);
        }
        if let Some(memory) = a.first_difference(b) {
            let before = b.processors().swap_remove(0);
            let code = Vec::new();
            return Verdict::Different(Box::new(Difference {
                accesses,
                before,
                code,
                after: None,
                memory: Some(memory),
            }));
        }
        let ended = |outcome: &Outcome| *outcome != Outcome::EngineFailed;
        Verdict::Same { accesses, outcome: b.outcome().filter(ended) }
    }
}
