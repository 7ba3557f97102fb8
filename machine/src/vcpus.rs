//! The threads that run the vCPUs: one each, or one for all in a deterministic machine.

use crate::board::Board;
use crate::chips::{NEVER, locked};
use crate::control::Request;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use trimaran_cpu::bus::Bus;
use trimaran_cpu::engine::{Engine, EngineFactory, Stop};
use trimaran_cpu::model::Model;
use trimaran_cpu::shared::attention::{INIT, INTR, NMI, SIPI, SMI, STOP};
use trimaran_cpu::state::{Activity, CpuState, RFlags};
use trimaran_cpu::{Counters, VcpuConfig};

/// Instructions that a vCPU runs before its thread looks around.
const SLICE: u64 = 100_000_000;
/// Instructions of a turn in a deterministic machine, at least. Turns differ in length, lest a loop that holds a lock
/// most of the time always be interrupted while it does.
const QUANTUM: u64 = 10_000;
/// MWAIT ends after this time at the latest, as it may for any reason: nobody watches its line for stores.
const MWAIT_TIME: Duration = Duration::from_millis(1);
const WAKES: u32 = NMI | SMI | INIT | SIPI | STOP;

/// Whose turn it is in a deterministic machine, and how many instructions of it are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub vcpu: usize,
    pub left: u64,
    /// Turns so far.
    pub count: u64,
    /// When all vCPUs leave MWAIT; [`NEVER`] if none has gone there since the last time.
    pub mwait_end: u64,
}

impl Turn {
    fn next(self, vcpu: usize) -> Self {
        let count = self.count.wrapping_add(1);
        let spread = count.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54;
        Turn { vcpu, left: QUANTUM + spread, count, ..self }
    }
}

/// The engines, and what the threads share.
pub struct Vcpus {
    engines: Box<[Mutex<Box<dyn Engine>>]>,
    /// Where the engines are from.
    factory: Mutex<Arc<dyn EngineFactory>>,
    /// What the engines before these have counted.
    before: Mutex<Vec<Counters>>,
    pub turn: Mutex<Turn>,
    /// A deterministic machine stands when its clock reaches this.
    pub stop_at: AtomicU64,
    /// Which vCPUs have halted for good, as [`for_good`] says.
    halted: Box<[AtomicBool]>,
    /// The machine ends when all have.
    exit_on_halt: bool,
}

/// All engines of a machine whose vCPUs stand.
pub type Engines<'a> = Vec<MutexGuard<'a, Box<dyn Engine>>>;

impl Vcpus {
    pub fn new(
        board: &Arc<Board>,
        factory: &Arc<dyn EngineFactory>,
        model: &Arc<Model>,
        exit_on_halt: bool,
    ) -> Self {
        let count = board.chips.lapics.len();
        let engine = |id| Mutex::new(factory.create(config(board, model, id)));
        Vcpus {
            engines: (0..count).map(engine).collect(),
            factory: Mutex::new(factory.clone()),
            before: Mutex::new(vec![Counters::default(); count]),
            turn: Mutex::default(),
            stop_at: AtomicU64::new(NEVER),
            halted: (0..count).map(|_| AtomicBool::new(false)).collect(),
            exit_on_halt,
        }
    }

    /// The engines; waits for those that run, so the vCPUs must have been paused.
    pub fn engines(&self) -> Engines<'_> {
        self.engines.iter().map(locked).collect()
    }

    pub fn factory(&self) -> Arc<dyn EngineFactory> {
        locked(&self.factory).clone()
    }

    /// Other engines take the place of these: their counts are kept.
    pub fn note_change(&self, engines: &Engines, factory: &Arc<dyn EngineFactory>) {
        let mut before = locked(&self.before);
        before.iter_mut().zip(engines).for_each(|(sum, engine)| *sum += engine.counters());
        *locked(&self.factory) = factory.clone();
    }

    /// What all engines have counted, one a vCPU.
    pub fn counters(&self, engines: &Engines) -> Vec<Counters> {
        let mut sums = locked(&self.before).clone();
        sums.iter_mut().zip(engines).for_each(|(sum, engine)| *sum += engine.counters());
        sums
    }

    /// Starts the threads; they stand until the machine lets them go.
    pub fn spawn(self: &Arc<Self>, board: &Arc<Board>) -> io::Result<Vec<JoinHandle<()>>> {
        let deterministic = board.control.deterministic_vcpu().is_some();
        let threads = if deterministic { 1 } else { self.engines.len() };
        let mut handles = Vec::new();
        for n in 0..threads {
            let (board, vcpus) = (board.clone(), self.clone());
            board.control.thread_began();
            let thread = Builder::new().name(format!("vcpu {n}"));
            handles.push(thread.spawn(move || {
                if deterministic {
                    vcpus.run_all(&board);
                } else {
                    vcpus.run_one(&board, n);
                }
                board.control.thread_ended();
            })?);
        }
        Ok(handles)
    }

    fn run_one(&self, board: &Board, n: usize) {
        while board.control.stand() {
            let mut engine = locked(&self.engines[n]);
            let Some(budget) = allowed(board, n, engine.state().retired) else { continue };
            match engine.run(budget.min(SLICE)) {
                Stop::Budget | Stop::Asked => {}
                Stop::Halted => {
                    let state = engine.state();
                    let wakes = wakes(state.activity, state.rflags);
                    let waits = state.activity == Activity::MonitorWait;
                    let for_good = for_good(state);
                    drop(engine);
                    self.note_halt(board, n, for_good);
                    let shared = &board.fence.vcpus[n];
                    let time = waits.then_some(MWAIT_TIME);
                    board.control.sleep(n, time, || shared.pending() & wakes != 0);
                    self.halted[n].store(false, SeqCst);
                    leave_mwait(&mut **locked(&self.engines[n]));
                }
                stop => note_stop(board, stop, engine.state()),
            }
        }
    }

    /// The scheduler of a deterministic machine.
    fn run_all(&self, board: &Board) {
        while board.control.stand() {
            let now = board.clock.now();
            let stop_at = self.stop_at.load(Acquire);
            if now >= stop_at {
                self.stop_at.store(NEVER, Release);
                board.control.hold();
                continue;
            }
            let event = board.chips.earliest();
            if event <= now {
                board.run_events();
                continue;
            }
            let mwait_end = locked(&self.turn).mwait_end;
            if mwait_end <= now {
                self.engines().iter_mut().for_each(|engine| leave_mwait(&mut ***engine));
                locked(&self.turn).mwait_end = NEVER;
                continue;
            }
            let until = event.min(stop_at).min(mwait_end);
            let turn = self.next_turn(board);
            if turn.is_none() && self.exit_on_halt {
                for n in 0..self.engines.len() {
                    let for_good = for_good(locked(&self.engines[n]).state());
                    self.note_halt(board, n, for_good);
                }
            }
            match turn {
                Some(turn) => self.run_turn(board, turn, until),
                None if until == NEVER => {
                    // Only the host can go on from here.
                    let awake = || (0..self.engines.len()).any(|n| self.runnable(board, n));
                    board.control.sleep(0, None, || awake() || board.chips.earliest() != NEVER);
                }
                None => board.clock.set(until),
            }
        }
    }

    /// A vCPU does not run; the machine may end with it.
    fn note_halt(&self, board: &Board, n: usize, for_good: bool) {
        self.halted[n].store(for_good, SeqCst);
        if self.exit_on_halt && self.halted.iter().all(|halted| halted.load(SeqCst)) {
            board.ask(Request::AllHalted);
        }
    }

    fn runnable(&self, board: &Board, n: usize) -> bool {
        let mut engine = locked(&self.engines[n]);
        let state = engine.state();
        match state.activity {
            Activity::Running => true,
            activity => board.fence.vcpus[n].pending() & wakes(activity, state.rflags) & !STOP != 0,
        }
    }

    /// Goes on with the turn, or gives it to the next vCPU that can run.
    fn next_turn(&self, board: &Board) -> Option<Turn> {
        let mut turn = locked(&self.turn);
        if turn.left == 0 || !self.runnable(board, turn.vcpu) {
            let count = self.engines.len();
            let next = (1..=count).map(|i| (turn.vcpu + i) % count);
            let vcpu = next.into_iter().find(|&n| self.runnable(board, n))?;
            *turn = turn.next(vcpu);
        }
        Some(*turn)
    }

    fn run_turn(&self, board: &Board, turn: Turn, until: u64) {
        let mut engine = locked(&self.engines[turn.vcpu]);
        // One that can run although it is in MWAIT has been woken.
        leave_mwait(&mut **engine);
        let now = board.clock.now();
        let before = engine.state().retired;
        board.clock.begin_slice(turn.vcpu, before);
        board.control.set_current(turn.vcpu);
        let Some(allowed) = allowed(board, turn.vcpu, before) else { return };
        let budget = turn.left.min(until - now).min(allowed);
        board.timers.set_alarm(until);
        let stop = engine.run(budget);
        board.timers.set_alarm(0);
        let mut used = engine.state().retired.saturating_sub(before);
        if stop == Stop::Budget && used == 0 {
            // Exceptions whose handlers fault at once: time passes without instructions.
            used = budget;
            board.clock.set(now.saturating_add(budget));
        }
        let waits = engine.state().activity == Activity::MonitorWait;
        note_stop(board, stop, engine.state());
        drop(engine);
        let mut shared_turn = locked(&self.turn);
        if waits && shared_turn.mwait_end == NEVER {
            shared_turn.mwait_end = board.clock.now().saturating_add(MWAIT_TIME.as_nanos() as u64);
        }
        shared_turn.left = if stop == Stop::Halted { 0 } else { turn.left.saturating_sub(used) };
    }
}

pub(crate) fn config(board: &Arc<Board>, model: &Arc<Model>, id: usize) -> VcpuConfig {
    let bus: Arc<dyn Bus> = board.clone();
    let (ram, fence) = (board.memory.ram().clone(), board.fence.clone());
    VcpuConfig { id, model: model.clone(), ram, bus, fence }
}

/// How many instructions a vCPU may run before a trigger fires; None: one has fired.
fn allowed(board: &Board, vcpu: usize, retired: u64) -> Option<u64> {
    if vcpu != 0 {
        return Some(u64::MAX);
    }
    if board.triggers.count(retired) {
        board.ask(Request::Switch);
        return None;
    }
    Some(board.triggers.next_count().saturating_sub(retired))
}

/// Asks the machine for what the end of a run calls for.
pub(crate) fn note_stop(board: &Board, stop: Stop, state: &CpuState) {
    match stop {
        Stop::Budget | Stop::Asked | Stop::Halted => {}
        Stop::Shutdown => board.ask(Request::TripleFault),
        Stop::Failed => board.ask(Request::EngineFailed),
        Stop::Point => {
            // A trigger waits for it there.
            board.triggers.point(state.code_address());
            board.ask(Request::Switch);
        }
    }
}

/// What wakes a vCPU that does not run.
fn wakes(activity: Activity, flags: RFlags) -> u32 {
    match activity {
        Activity::WaitForSipi => INIT | SIPI | STOP,
        // A masked interrupt too, as ECX bit 0 asks; without that bit it may.
        Activity::MonitorWait => WAKES | INTR,
        _ if flags.contains(RFlags::IF) => WAKES | INTR,
        _ => WAKES,
    }
}

/// Whether nothing but NMI, SMI, INIT or a reset gets a halted vCPU on.
fn for_good(state: &CpuState) -> bool {
    match state.activity {
        Activity::Halted => !state.rflags.contains(RFlags::IF),
        activity => activity == Activity::WaitForSipi,
    }
}

/// Ends MWAIT if the vCPU is in it.
fn leave_mwait(engine: &mut dyn Engine) {
    if engine.state().activity == Activity::MonitorWait {
        engine.state().activity = Activity::Running;
        engine.state_changed();
    }
}
