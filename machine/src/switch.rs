//! Changing the engine of a machine: all vCPUs stand at an instruction boundary, their states move into new engines,
//! the guest goes on.
//!
//! What an engine keeps beside [`CpuState`] are caches, and the new one starts without any. Lines that others have
//! raised are in the attention words, the APICs are chips, and the clock stands meanwhile: the guest sees nothing.

use crate::config::MachineError;
use crate::machine::Machine;
use crate::supervisor::Core;
use crate::triggers::Trigger;
use crate::vcpus::{Engines, config};
use std::sync::Arc;
use std::time::{Duration, Instant};
use trimaran_cpu::bus::Bus;
use trimaran_cpu::engine::{Engine, EngineFactory, Takeover};
use trimaran_cpu::shared::attention;
use trimaran_cpu::state::CpuState;

/// What [`Machine::switch_engine`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchReport {
    pub from: &'static str,
    pub to: &'static str,
    /// How long the guest stood, in host time.
    pub stood: Duration,
}

/// Hears of switches that triggers made, or that the engine refused.
pub type OnSwitch = Box<dyn Fn(&Trigger, &Result<SwitchReport, MachineError>) + Send + Sync>;

/// Engines before or after a switch. Making and dropping them takes time, which the guest need not wait for.
pub(crate) type Spare = Vec<Box<dyn Engine>>;

impl Machine {
    /// Lets engines of another factory, or new ones of the same, run the guest from here on. On an error the machine
    /// goes on with the engines that it has.
    pub fn switch_engine(&self, factory: &Arc<dyn EngineFactory>) -> Result<SwitchReport, MachineError> {
        let from = self.engine_name();
        let new = self.core.spare(factory);
        let begun = Instant::now();
        let _old: Spare = self.core.quiesce(|engines| self.core.exchange(engines, factory, new))?;
        Ok(SwitchReport { from, to: factory.name(), stood: begun.elapsed() })
    }

    /// Where the engines are from that run the guest now.
    pub fn engine(&self) -> Arc<dyn EngineFactory> {
        self.core.vcpus.factory()
    }

    pub fn engine_name(&self) -> &'static str {
        self.core.vcpus.factory().name()
    }
}

impl Core {
    /// Whether a factory's engines can run the machine as it is now.
    pub(crate) fn accepted(
        &self,
        engines: &mut Engines,
        factory: &dyn EngineFactory,
    ) -> Result<(), MachineError> {
        let states: Vec<&CpuState> = engines.iter_mut().map(|engine| &*engine.state()).collect();
        let time_stamp =
            |(n, state): (usize, &&CpuState)| self.board.clock(n).wrapping_add(state.msr.tsc_offset);
        let time_stamps: Vec<u64> = states.iter().enumerate().map(time_stamp).collect();
        let takeover = Takeover {
            model: &self.model,
            deterministic: self.board.control.deterministic_vcpu().is_some(),
            states: &states,
            time_stamps: &time_stamps,
            counts: self.board.triggers.next_count() != u64::MAX,
            points: !self.board.triggers.points().is_empty(),
        };
        let refused = |reason| MachineError::Engine { engine: factory.name(), reason };
        factory.accepts(&takeover).map_err(refused)
    }

    /// The engines that a new machine has: whether they will do.
    pub(crate) fn begin(&self, engines: &mut Engines) -> Result<(), MachineError> {
        let factory = self.vcpus.factory();
        self.accepted(engines, &*factory)?;
        let points = self.board.triggers.points();
        let refused = |reason| MachineError::Engine { engine: factory.name(), reason };
        engines.iter_mut().try_for_each(|engine| engine.stop_at(&points).map_err(refused))
    }

    /// New engines for all vCPUs.
    pub(crate) fn spare(&self, factory: &Arc<dyn EngineFactory>) -> Spare {
        let count = self.board.fence.vcpus.len();
        (0..count).map(|n| factory.create(config(&self.board, &self.model, n))).collect()
    }

    /// Replaces the engines of vCPUs that stand by `new` ones of a factory.
    pub(crate) fn exchange(
        &self,
        engines: &mut Engines,
        factory: &Arc<dyn EngineFactory>,
        mut new: Spare,
    ) -> Result<Spare, MachineError> {
        self.accepted(engines, &**factory)?;
        let points = self.board.triggers.points();
        for (engine, old) in new.iter_mut().zip(engines.iter_mut()) {
            engine.state().clone_from(old.state());
            engine.state_changed();
            let refused = |reason| MachineError::Engine { engine: factory.name(), reason };
            engine.stop_at(&points).map_err(refused)?;
        }
        self.vcpus.note_change(engines, factory);
        self.board.memory.ram().forget_code();
        let slots = engines.iter_mut().map(|slot| &mut **slot);
        let old = slots.zip(new).map(|(slot, engine)| std::mem::replace(slot, engine)).collect();
        // The new ones have A20 and the memory map to learn.
        self.board.fence.vcpus.iter().for_each(|vcpu| vcpu.raise(attention::REMAP));
        Ok(old)
    }

    /// Serves the triggers that have fired.
    pub(crate) fn serve_triggers(&self, engines: &mut Engines) -> Vec<Served> {
        let fired = self.board.triggers.take_fired();
        let served = fired.into_iter().map(|at| {
            let from = self.vcpus.factory().name();
            let result = self.exchange(engines, &at.engine, self.spare(&at.engine));
            Served { trigger: at.trigger, names: (from, at.engine.name()), result }
        });
        let served = served.collect();
        let points = self.board.triggers.points();
        // Fewer points than before: no engine refuses that.
        engines.iter_mut().for_each(|engine| _ = engine.stop_at(&points));
        served
    }
}

/// A trigger that fired, and what came of it.
pub(crate) struct Served {
    trigger: Trigger,
    names: (&'static str, &'static str),
    result: Result<Spare, MachineError>,
}

impl Served {
    /// Tells the frontend; the guest has gone on after `stood`.
    pub(crate) fn tell(self, stood: Duration, hears: Option<&OnSwitch>) {
        let (from, to) = self.names;
        let result = self.result.map(|_old| SwitchReport { from, to, stood });
        match hears {
            Some(hears) => hears(&self.trigger, &result),
            None => tracing::debug!(trigger = %self.trigger, ?result, "the engine changes"),
        }
    }
}
