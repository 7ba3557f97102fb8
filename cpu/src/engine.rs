//! What a machine sees of an engine: something that runs one vCPU.

use crate::model::Model;
use crate::state::CpuState;
use crate::vcpu::{Counters, Vcpu, VcpuConfig};

/// Why [`Engine::run`] returned. All state has been written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The budget is used up, to the instruction.
    Budget,
    /// Somebody raised STOP or DEADLINE.
    Asked,
    /// HLT, MWAIT or waiting for a start-up IPI: call again when the attention word is not 0.
    Halted,
    /// Triple fault: only a reset helps.
    Shutdown,
    /// The engine cannot go on: [`Engine::failure`] says why.
    Failed,
    /// The next instruction stands at an address that [`Engine::stop_at`] named.
    Point,
}

/// An engine for one vCPU. Lives on that vCPU's thread.
pub trait Engine: Send {
    /// Runs up to `budget` instructions.
    fn run(&mut self, budget: u64) -> Stop;
    /// The architectural state, complete between calls of `run`.
    fn state(&mut self) -> &mut CpuState;
    /// Call after `state` was changed from outside.
    fn state_changed(&mut self);
    /// The guest's view of memory for a debugger: where a linear address leads.
    fn probe(&mut self, linear: u64) -> Option<u64>;
    fn counters(&self) -> Counters;
    fn name(&self) -> &'static str;
    /// Why `run` returned [`Stop::Failed`], for people.
    fn failure(&self) -> Option<String> {
        None
    }
    /// Text for the monitor's `info tlb`.
    fn describe_tlb(&self) -> String;
    /// Text for `--stats` about translated code; empty where there is none.
    fn describe_translator(&self) -> String {
        String::new()
    }
    /// Has `run` return [`Stop::Point`] before the instructions at these linear addresses. Addresses are added before
    /// the first `run` only; they can be taken away at any time. An error says why this engine cannot do it.
    fn stop_at(&mut self, addresses: &[u64]) -> Result<(), String> {
        if addresses.is_empty() { Ok(()) } else { Err("it cannot stop at addresses".into()) }
    }
}

/// An engine that has another one run, and adds something to its runs.
pub trait Around: Send {
    fn inner(&self) -> &dyn Engine;
    fn inner_mut(&mut self) -> &mut dyn Engine;
    /// [`Engine::run`].
    fn run_around(&mut self, budget: u64) -> Stop;
    /// [`Engine::state_changed`].
    fn changed_around(&mut self) {
        self.inner_mut().state_changed();
    }
    /// [`Engine::name`].
    fn name_around(&self) -> &'static str {
        self.inner().name()
    }
}

impl<T: Around> Engine for T {
    fn run(&mut self, budget: u64) -> Stop {
        self.run_around(budget)
    }
    fn state(&mut self) -> &mut CpuState {
        self.inner_mut().state()
    }
    fn state_changed(&mut self) {
        self.changed_around();
    }
    fn probe(&mut self, linear: u64) -> Option<u64> {
        self.inner_mut().probe(linear)
    }
    fn counters(&self) -> Counters {
        self.inner().counters()
    }
    fn name(&self) -> &'static str {
        self.name_around()
    }
    fn failure(&self) -> Option<String> {
        self.inner().failure()
    }
    fn describe_tlb(&self) -> String {
        self.inner().describe_tlb()
    }
    fn describe_translator(&self) -> String {
        self.inner().describe_translator()
    }
    fn stop_at(&mut self, addresses: &[u64]) -> Result<(), String> {
        self.inner_mut().stop_at(addresses)
    }
}

/// What an engine is asked to run: a new machine, or one that another engine has run so far.
pub struct Takeover<'a> {
    pub model: &'a Model,
    /// The machine's time is its count of instructions: the engine must stop at exact counts.
    pub deterministic: bool,
    /// The states of all vCPUs. A new machine's are those after RESET#, before any direct boot.
    pub states: &'a [&'a CpuState],
    /// What the time-stamp counter of each shows now; time stands.
    pub time_stamps: &'a [u64],
    /// It is asked to stop at a count of instructions.
    pub counts: bool,
    /// It is asked to stop at addresses.
    pub points: bool,
}

/// Makes the engines of a machine.
pub trait EngineFactory: Send + Sync {
    fn name(&self) -> &'static str;
    fn create(&self, config: VcpuConfig) -> Box<dyn Engine>;
    /// Whether its engines can run this machine from here on. An error is the reason, for people.
    fn accepts(&self, _machine: &Takeover) -> Result<(), String> {
        Ok(())
    }
}

/// The interpreter.
pub struct Interpreter;

impl EngineFactory for Interpreter {
    fn name(&self) -> &'static str {
        "interp"
    }
    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        Box::new(Vcpu::new(config))
    }
}

impl Engine for Vcpu {
    fn run(&mut self, budget: u64) -> Stop {
        Vcpu::run(self, budget)
    }
    fn state(&mut self) -> &mut CpuState {
        self.state_whole()
    }
    fn state_changed(&mut self) {
        self.state_loaded();
    }
    fn probe(&mut self, linear: u64) -> Option<u64> {
        Vcpu::probe(self, linear)
    }
    fn counters(&self) -> Counters {
        self.counters
    }
    fn name(&self) -> &'static str {
        "interp"
    }
    fn stop_at(&mut self, addresses: &[u64]) -> Result<(), String> {
        self.stop_points = addresses.into();
        Ok(())
    }
    fn describe_tlb(&self) -> String {
        use crate::tlb::Class;
        let mut out = String::new();
        for (class, name) in [(Class::Supervisor, "supervisor"), (Class::User, "user")] {
            for (e, note) in self.tlb.valid(class) {
                let global = if note.global { " global" } else { "" };
                let linear = e.read.max(e.execute);
                out += &format!("{linear:016x} -> RAM page {:#x} {name}{global}\n", note.ram_page);
            }
        }
        out
    }
}
