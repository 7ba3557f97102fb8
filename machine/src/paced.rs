//! Engines that run from one device access to the next, so that one which cannot count instructions, as KVM, can be
//! compared with one that can.
//!
//! The machine is a deterministic one, but its time is that of accesses: a run has one of the *leader*'s, and takes a
//! microsecond; while it lasts, time stands. The leader tells how many accesses it has made and its state then (KVM
//! makes all those of a REP INS at once). The *follower* goes as far and compares.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::chips::locked;
use trimaran_cpu::VcpuConfig;
use trimaran_cpu::bus::{Bus, GeneralProtection, MemoryRange, Page};
use trimaran_cpu::engine::{Around, Engine, EngineFactory, Stop, Takeover};
use trimaran_cpu::shared::{CodeFence, attention};
use trimaran_cpu::state::{CpuState, RFlags, gpr, seg};

/// Virtual time of a run in nanoseconds, at most.
const RUN: u64 = 1_000;
/// How long the leader rests when the follower is behind, and the follower before it looks whether it shall give up.
const REST: Duration = Duration::from_micros(50);
const WAIT: Duration = Duration::from_millis(100);

/// Where a run ended.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Device accesses since power-on.
    pub accesses: u64,
    pub stop: Stop,
    pub state: CpuState,
}

/// What of a state can be compared. KVM does not count, and some have a TSC of their own; the last x87 instruction's
/// place is not told by AMD's processors; Linux's emulator leaves RF set behind REP.
pub fn comparable(state: &CpuState) -> CpuState {
    let mut state = state.clone();
    (state.retired, state.msr.tsc_offset) = (0, 0);
    state.rflags.remove(RFlags::RF);
    let x87 = &mut state.x87;
    (x87.opcode, x87.instruction_selector, x87.data_selector) = (0, 0, 0);
    (x87.instruction_pointer, x87.data_pointer) = (0, 0);
    state
}

impl Mark {
    fn same(&self, other: &Mark) -> bool {
        (self.accesses, self.stop) == (other.accesses, other.stop)
            && comparable(&self.state) == comparable(&other.state)
    }
}

/// The first run whose ends are not the same.
#[derive(Debug)]
pub struct Parting {
    /// Where both were last.
    pub before: CpuState,
    /// The leader's end and the follower's.
    pub marks: [Mark; 2],
}

/// What both engines and their driver share.
#[derive(Default)]
pub struct Pace {
    /// The leader ends where it is.
    pub over: AtomicBool,
    /// No engine goes on, wherever it is.
    pub stuck: AtomicBool,
    /// Runs that ended the same way.
    pub runs: AtomicU64,
    pub accesses: AtomicU64,
    pub parting: Mutex<Option<Parting>>,
    fences: Mutex<Vec<Arc<CodeFence>>>,
}

impl Pace {
    /// Ends a run that does not end by itself.
    pub fn give_up(&self) {
        self.stuck.store(true, SeqCst);
        let fences = locked(&self.fences);
        fences.iter().flat_map(|fence| fence.vcpus.iter()).for_each(|vcpu| vcpu.raise(attention::STOP));
    }
}

enum Role {
    Leader(SyncSender<Mark>),
    Follower(Receiver<Mark>),
    /// Its machine stands.
    Ended,
}

/// Makes one engine that keeps pace with another.
pub struct Paced {
    engine: Arc<dyn EngineFactory>,
    pace: Arc<Pace>,
    role: Mutex<Role>,
}

impl Paced {
    /// A leader and its follower.
    pub fn pair(
        leader: Arc<dyn EngineFactory>,
        follower: Arc<dyn EngineFactory>,
    ) -> ([Arc<Paced>; 2], Arc<Pace>) {
        let (to, from) = sync_channel(1);
        let pace = Arc::new(Pace::default());
        let paced = |engine, role| Arc::new(Paced { engine, pace: pace.clone(), role: Mutex::new(role) });
        ([paced(leader, Role::Leader(to)), paced(follower, Role::Follower(from))], pace.clone())
    }
}

impl EngineFactory for Paced {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        locked(&self.pace.fences).push(config.fence.clone());
        let bus = Arc::new(CountingBus {
            bus: config.bus.clone(),
            fence: config.fence.clone(),
            made: AtomicU64::new(0),
            target: AtomicU64::new(0),
            retired: AtomicU64::new(0),
        });
        let role = std::mem::replace(&mut *locked(&self.role), Role::Ended);
        let engine = self.engine.create(VcpuConfig { bus: bus.clone(), ..config });
        let pace = self.pace.clone();
        Box::new(PacedEngine { engine, bus, pace, role, before: None })
    }

    fn accepts(&self, machine: &Takeover) -> Result<(), String> {
        // It is not asked to count.
        self.engine.accepts(&Takeover { deterministic: false, counts: false, ..*machine })
    }
}

/// The leader's next mark. None: there will be no more.
fn hear(from: &Receiver<Mark>, pace: &Pace) -> Option<Mark> {
    while !pace.stuck.load(SeqCst) {
        match from.recv_timeout(WAIT) {
            Ok(mark) => return Some(mark),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

struct PacedEngine {
    engine: Box<dyn Engine>,
    bus: Arc<CountingBus>,
    pace: Arc<Pace>,
    role: Role,
    /// The state at the end of the last run.
    before: Option<CpuState>,
}

impl PacedEngine {
    /// Runs until `target` accesses are made, or to another end. None: it was told to give up.
    fn run_to(&mut self, target: u64) -> Option<Mark> {
        self.bus.target.store(target, SeqCst);
        loop {
            let stop = self.engine.run(u64::MAX);
            if self.pace.stuck.load(SeqCst) {
                return None;
            }
            if stop == Stop::Asked {
                self.finish_rep();
            }
            let accesses = self.bus.made.load(SeqCst);
            // Others ask it to stop, too.
            if accesses >= target || !matches!(stop, Stop::Asked | Stop::Budget) {
                return Some(Mark { accesses, stop, state: self.engine.state().clone() });
            }
        }
    }

    /// Linux's emulator stands before a REP string instruction that has made its last access, with RF set: others
    /// stand behind it.
    fn finish_rep(&mut self) {
        let state = self.engine.state();
        let count = state.gpr[gpr::RCX];
        let done = match (state.code64(), state.seg[seg::CS].big()) {
            (true, _) => count == 0,
            (false, true) => count as u32 == 0,
            (false, false) => count as u16 == 0,
        };
        if !(done && state.rflags.contains(RFlags::RF)) {
            return;
        }
        // No interrupt comes before its end.
        let shared = self.bus.fence.vcpus[0].clone();
        let requested = shared.pending() & attention::INTR;
        shared.clear(requested);
        self.engine.run(1);
        shared.raise(requested);
    }

    /// Hands a mark to the follower as soon as that has room. None: it never will.
    fn tell(&self, mut mark: Mark) -> Option<()> {
        let Role::Leader(to) = &self.role else { return None };
        while !self.pace.stuck.load(SeqCst) {
            match to.try_send(mark) {
                Ok(()) => return Some(()),
                Err(TrySendError::Full(back)) => mark = back,
                Err(TrySendError::Disconnected(_)) => return None,
            }
            std::thread::sleep(REST);
        }
        None
    }

    /// One run. None: there is no more to do.
    fn advance(&mut self) -> Option<Mark> {
        let next = self.bus.made.load(SeqCst) + 1;
        match &self.role {
            Role::Ended => None,
            Role::Leader(_) => {
                if self.pace.over.load(SeqCst) {
                    return None;
                }
                let mark = self.run_to(next)?;
                self.tell(mark.clone())?;
                Some(mark)
            }
            Role::Follower(from) => {
                let leader = hear(from, &self.pace)?;
                let mark = self.run_to(if leader.stop == Stop::Asked { leader.accesses } else { next })?;
                if mark.same(&leader) {
                    self.pace.runs.fetch_add(1, SeqCst);
                    self.pace.accesses.store(mark.accesses, SeqCst);
                    return Some(mark);
                }
                let before = self.before.take().unwrap_or_else(|| CpuState::reset(0, true));
                *locked(&self.pace.parting) = Some(Parting { before, marks: [leader, mark] });
                None
            }
        }
    }
}

impl Around for PacedEngine {
    fn inner(&self) -> &dyn Engine {
        &*self.engine
    }
    fn inner_mut(&mut self) -> &mut dyn Engine {
        &mut *self.engine
    }
    fn run_around(&mut self, budget: u64) -> Stop {
        let before = self.engine.state().retired;
        self.bus.retired.store(before, SeqCst);
        self.before.get_or_insert_with(|| self.engine.state().clone());
        let Some(mark) = self.advance() else {
            // Closes the channel: the other need not wait.
            self.role = Role::Ended;
            return Stop::Failed;
        };
        let stop = mark.stop;
        self.before = Some(mark.state);
        let retired = before + budget.min(RUN);
        self.engine.state().retired = retired;
        self.bus.publish(retired);
        stop
    }
}

/// Counts accesses, and has time stand between them. Of the one processor that such a machine has.
struct CountingBus {
    bus: Arc<dyn Bus>,
    fence: Arc<CodeFence>,
    made: AtomicU64,
    /// The count at which the processor stops.
    target: AtomicU64,
    /// What the clock is to see of the count of instructions.
    retired: AtomicU64,
}

impl CountingBus {
    fn publish(&self, retired: u64) {
        self.retired.store(retired, SeqCst);
        self.fence.vcpus.iter().for_each(|vcpu| vcpu.retired.store(retired, SeqCst));
    }

    /// The machine, at the time that it shall see.
    fn bus(&self) -> &dyn Bus {
        self.publish(self.retired.load(SeqCst));
        &*self.bus
    }

    fn count(&self) {
        if self.made.fetch_add(1, SeqCst) + 1 >= self.target.load(SeqCst) {
            self.fence.vcpus.iter().for_each(|vcpu| vcpu.raise(attention::STOP));
        }
    }
}

impl Bus for CountingBus {
    fn page(&self, address: u64, smm: bool) -> Page {
        self.bus.page(address, smm)
    }
    fn memory_ranges(&self) -> Vec<MemoryRange> {
        self.bus.memory_ranges()
    }
    fn mmio_read(&self, cpu: usize, address: u64, size: u8) -> u64 {
        self.count();
        self.bus().mmio_read(cpu, address, size)
    }
    fn mmio_write(&self, cpu: usize, address: u64, size: u8, value: u64) {
        self.count();
        self.bus().mmio_write(cpu, address, size, value);
    }
    fn port_read(&self, cpu: usize, port: u16, size: u8) -> u32 {
        self.count();
        self.bus().port_read(cpu, port, size)
    }
    fn port_write(&self, cpu: usize, port: u16, size: u8, value: u32) {
        self.count();
        self.bus().port_write(cpu, port, size, value);
    }
    fn acknowledge_interrupt(&self, cpu: usize) -> Option<u8> {
        self.bus().acknowledge_interrupt(cpu)
    }
    fn clock(&self, cpu: usize) -> u64 {
        self.bus().clock(cpu)
    }
    fn read_apic_msr(&self, cpu: usize, index: u32) -> Option<Result<u64, GeneralProtection>> {
        self.bus().read_apic_msr(cpu, index)
    }
    fn write_apic_msr(&self, cpu: usize, index: u32, value: u64) -> Option<Result<(), GeneralProtection>> {
        self.bus().write_apic_msr(cpu, index, value)
    }
    fn task_priority(&self, cpu: usize) -> u8 {
        self.bus().task_priority(cpu)
    }
    fn set_task_priority(&self, cpu: usize, class: u8) {
        self.bus().set_task_priority(cpu, class);
    }
    fn random(&self) -> u64 {
        self.bus.random()
    }
    fn x87_error(&self, cpu: usize) {
        self.bus().x87_error(cpu);
    }
    fn apic_id(&self, cpu: usize) -> u32 {
        self.bus.apic_id(cpu)
    }
    fn cpu_count(&self) -> usize {
        self.bus.cpu_count()
    }
    fn tsc_offset_changed(&self, cpu: usize, offset: u64) {
        self.bus().tsc_offset_changed(cpu, offset);
    }
    fn smm_changed(&self, cpu: usize, smm: bool) {
        self.bus().smm_changed(cpu, smm);
    }
}
