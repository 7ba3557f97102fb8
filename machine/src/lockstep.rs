//! Two deterministic machines that must do the same, each on an engine of its own. They are compared every so many
//! instructions; on a difference both go back to where they were last the same and halve the way, down to the first
//! instruction that differs.
//!
//! At each *mark* both machines get new engines, so that a replay from there meets the translations, or whatever an
//! engine keeps, in the same order as the first run.

use crate::config::MachineError;
use crate::control::Outcome;
use crate::machine::Machine;
use crate::media::Changes;
use crate::memory::PAGE;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trimaran_cpu::engine::EngineFactory;
use trimaran_cpu::state::CpuState;

/// Instructions between two marks, at least.
const MARK: u64 = 20_000_000;
/// A mark may take this share of the time, as a divisor.
const SHARE: u32 = 4;
/// Most virtual time between two comparisons while no processor runs, in nanoseconds.
const IDLE: u64 = 1_000_000_000;
/// Most bytes of an instruction.
const INSTRUCTION: usize = 15;

/// How far a comparison goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Instructions between two comparisons; at least 1.
    pub every: u64,
    /// Instructions of all processors after which it ends.
    pub instructions: u64,
    /// Host time after which it ends.
    pub time: Duration,
}

/// What a comparison found.
#[derive(Debug)]
pub enum Verdict {
    /// No difference up to here.
    Same {
        instructions: u64,
        outcome: Option<Outcome>,
    },
    Different(Box<Difference>),
    /// There was a difference at this time, but not when it was looked at again.
    Lost {
        time: u64,
    },
}

/// The first step that is not the same.
#[derive(Debug)]
pub struct Difference {
    /// Virtual time up to which the machines are the same, in nanoseconds.
    pub time: u64,
    /// The processor that took the step.
    pub cpu: usize,
    /// Its state before, and on each machine after.
    pub before: CpuState,
    pub after: [CpuState; 2],
    /// The bytes at its instruction; none where they cannot be read.
    pub code: Vec<u8>,
    /// The first byte of memory that differs: its place in RAM and both values.
    pub memory: Option<(u64, [u8; 2])>,
    /// Chips whose states differ.
    pub chips: Vec<String>,
    pub outcomes: [Option<Outcome>; 2],
}

/// See the head of this file.
pub struct Lockstep {
    machines: [Machine; 2],
    engines: [Arc<dyn EngineFactory>; 2],
    /// What the machines write to their media.
    media: Vec<Changes>,
    /// Where both were the same, and the state there.
    mark: (u64, Vec<u8>),
    /// Where the machines have stopped since.
    stops: Vec<u64>,
}

impl Lockstep {
    /// Takes two deterministic machines of the same configuration that have not run yet, and the changes of all media
    /// that they can write to.
    pub fn new(
        machines: [Machine; 2],
        engines: [Arc<dyn EngineFactory>; 2],
        media: Vec<Changes>,
    ) -> Result<Self, MachineError> {
        let mut lockstep = Lockstep { machines, engines, media, mark: (0, Vec::new()), stops: Vec::new() };
        lockstep.set_mark()?;
        Ok(lockstep)
    }

    /// Runs both machines until they differ, end or come to a limit. `progress` hears the count of instructions at
    /// each mark.
    pub fn run(&mut self, limits: &Limits, mut progress: impl FnMut(u64)) -> Result<Verdict, MachineError> {
        let mut step = limits.every.max(1);
        let mut before = 0;
        let begun = Instant::now();
        let (mut marked, mut cost) = (Instant::now(), Duration::ZERO);
        loop {
            let time = self.machines[0].now().saturating_add(step);
            self.go(time);
            self.stops.push(time);
            let instructions = self.machines[0].stats().instructions;
            step = if instructions == before { (step * 2).min(IDLE) } else { limits.every.max(1) };
            before = instructions;
            let outcome = self.machines[0].outcome();
            let over =
                outcome.is_some() || instructions >= limits.instructions || begun.elapsed() >= limits.time;
            let due = time - self.mark.0 >= MARK && marked.elapsed() >= cost * SHARE;
            let same = self.processors_same() && (!(over || due) || self.same());
            if !same {
                return self.find(time);
            }
            if over {
                return Ok(Verdict::Same { instructions, outcome });
            }
            if due {
                let start = Instant::now();
                self.set_mark()?;
                (marked, cost) = (Instant::now(), start.elapsed());
                progress(instructions);
            }
        }
    }

    /// Both run up to a time.
    fn go(&self, time: u64) {
        let [a, b] = &self.machines;
        std::thread::scope(|scope| {
            scope.spawn(|| a.run_until(time));
            b.run_until(time);
        });
    }

    fn processors_same(&self) -> bool {
        let [a, b] = &self.machines;
        a.outcome() == b.outcome() && a.processors() == b.processors()
    }

    fn same(&self) -> bool {
        let [a, b] = &self.machines;
        self.processors_same() && a.state_hash() == b.state_hash()
    }

    fn renew_engines(&self) -> Result<(), MachineError> {
        for (machine, engine) in self.machines.iter().zip(&self.engines) {
            machine.switch_engine(engine)?;
        }
        Ok(())
    }

    fn set_mark(&mut self) -> Result<(), MachineError> {
        self.renew_engines()?;
        self.media.iter().for_each(Changes::keep);
        self.mark = (self.machines[0].now(), self.machines[0].save_state()?);
        self.stops.clear();
        Ok(())
    }

    /// Both run again from the mark to a time, with the stops of the first run.
    fn replay(&self, time: u64) -> Result<(), MachineError> {
        for machine in &self.machines {
            machine.restore_state(&self.mark.1)?;
        }
        self.media.iter().for_each(Changes::take_back);
        self.renew_engines()?;
        let stops = self.stops.iter().copied().take_while(|&stop| stop < time);
        stops.chain([time]).for_each(|stop| self.go(stop));
        Ok(())
    }

    /// The machines differ at `end`: finds where that began.
    fn find(&self, end: u64) -> Result<Verdict, MachineError> {
        self.replay(end)?;
        if self.same() {
            return Ok(Verdict::Lost { time: end });
        }
        let (mut same, mut different) = (self.mark.0, end);
        while different - same > 1 {
            let middle = same + (different - same) / 2;
            self.replay(middle)?;
            if self.same() {
                same = middle;
            } else {
                different = middle;
            }
        }
        self.replay(same)?;
        let before = self.machines[0].processors();
        let codes =
            before.iter().enumerate().map(|(n, state)| self.machines[0].code_at(n, state.code_address()));
        let mut codes: Vec<Vec<u8>> = codes.collect();
        self.go(different);
        let [a, b] = &self.machines;
        let after = [a.processors(), b.processors()];
        let moved = |n: &usize| after.iter().any(|after| after[*n] != before[*n]);
        let differs = |n: &usize| after[0][*n] != after[1][*n];
        let all = 0..before.len();
        let cpu = all.clone().find(differs).or_else(|| all.clone().find(moved)).unwrap_or(0);
        let before = before[cpu].clone();
        let after = after.map(|mut states| states.swap_remove(cpu));
        Ok(Verdict::Different(Box::new(Difference {
            time: same,
            cpu,
            before,
            after,
            code: codes.swap_remove(cpu),
            memory: a.first_difference(b),
            chips: a.chips_that_differ(b),
            outcomes: [a.outcome(), b.outcome()],
        })))
    }
}

impl Machine {
    /// The states of all processors.
    pub fn processors(&self) -> Vec<CpuState> {
        self.core.quiesce(|engines| engines.iter_mut().map(|engine| engine.state().clone()).collect())
    }

    /// The bytes at an instruction, as many as can be read.
    pub(crate) fn code_at(&self, cpu: usize, address: u64) -> Vec<u8> {
        let mut bytes = [0; INSTRUCTION];
        let read = |n: &usize| self.read_virtual(cpu, address, &mut bytes[..*n]).is_some();
        let there = (1..=INSTRUCTION).rev().find(read).unwrap_or(0);
        bytes[..there].to_vec()
    }

    /// The first place in RAM where two machines differ, and what is there.
    pub(crate) fn first_difference(&self, other: &Machine) -> Option<(u64, [u8; 2])> {
        let [ours, theirs] = [self, other].map(|machine| machine.core.board.memory.ram());
        let (mut one, mut two) = ([0; PAGE as usize], [0; PAGE as usize]);
        for page in (0..ours.len()).step_by(one.len()) {
            ours.read(page, &mut one);
            theirs.read(page, &mut two);
            if let Some(n) = (0..one.len()).find(|&n| one[n] != two[n]) {
                return Some((page + n as u64, [one[n], two[n]]));
            }
        }
        None
    }

    fn chips_that_differ(&self, other: &Machine) -> Vec<String> {
        let states = |machine: &Machine| {
            let all = machine.core.board.chips.all();
            let states = all.map(|slot| {
                let mut state = Vec::new();
                slot.with(&mut |chip| state = chip.save());
                (slot.id().to_string(), state)
            });
            states.collect::<BTreeMap<_, _>>()
        };
        let theirs = states(other);
        let differs = |(name, state)| (theirs.get(&name) != Some(&state)).then_some(name);
        states(self).into_iter().filter_map(differs).collect()
    }
}
