//! The engine of one vCPU. Guest code runs in KVM; the boundary between two runs is ours.
//!
//! The state is KVM's (`loaded`), ours (`fetched`), or both. Everything rare goes the same way: fetch the state, let
//! the interpreter take its step, load the state again.

use super::apic::Apic;
use super::clock::Tsc;
use super::debugging::StopPoints;
use super::exits::Exit;
use super::hardware::Hardware;
use super::registers::{self, Begun};
use super::vm::Vm;
use crate::report::{Kind, Report, Trial};
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::{Duration, Instant};
use trimaran_cpu::engine::{Engine, Stop};
use trimaran_cpu::ram::PAGE;
use trimaran_cpu::shared::attention::{CODE, DEADLINE, DROP_WRITES, INIT, INTR, NMI, REMAP, SIPI, SMI, STOP};
use trimaran_cpu::state::{Activity, CpuState, RFlags, Shadow, cr0};
use trimaran_cpu::{Counters, Vcpu};

/// Events of the attention word that the interpreter delivers.
const RARE: u32 = INIT | SIPI | SMI | NMI;
/// Budgets up to this many instructions are kept to the instruction, by the interpreter. KVM does not count.
const EXACT: u64 = 4096;
/// Of these, so many are single steps, which KVM makes where it can.
const STEPS: u64 = 16;
/// Instructions that the interpreter runs when KVM could not run one: the next ones may be like it. Twice as many each
/// time that KVM gets nowhere, up to [`MANY`].
const FEW: u64 = 64;
/// KVM gets nowhere if it cannot run an instruction after so short a time.
const NOWHERE: Duration = Duration::from_millis(10);
/// Instructions that it runs while an interrupt waits, where KVM cannot tell when it can be injected.
const SOME: u64 = 2_000;
/// Instructions that it runs at a time in modes that KVM does not have.
const MANY: u64 = 1_000_000;

/// See the head of this file.
pub struct KvmVcpu {
    pub(super) vm: Arc<Vm>,
    pub(super) hardware: Hardware,
    /// The state, and the interpreter.
    pub(super) vcpu: Vcpu,
    pub(super) report: Arc<Report>,
    /// KVM has the state.
    pub(super) loaded: bool,
    /// `vcpu.state` is the state.
    pub(super) fetched: bool,
    /// KVM has run since the interpreter did: what that had decoded, and its flags, are old.
    overtaken: bool,
    /// The last exit left something for the next run to finish.
    pub(super) unfinished: bool,
    /// An interrupt can be injected now.
    pub(super) ready: bool,
    /// None: the chip plays the local APIC all the time.
    pub(super) apic: Option<Apic>,
    tsc: Tsc,
    pub(super) stop_points: StopPoints,
    failure: Option<String>,
    /// Instructions that KVM could not run.
    not_emulated: u64,
    /// Single steps that KVM made.
    pub(super) steps: u64,
    /// How many the interpreter ran after the last of them, and when it was done.
    turn: (u64, Instant),
}

impl KvmVcpu {
    pub fn new(vm: Arc<Vm>, hardware: Hardware, vcpu: Vcpu, report: Arc<Report>) -> Self {
        let tsc = Tsc::new(vcpu.model.tsc_khz, report.works(Trial::TimeStamp));
        KvmVcpu {
            apic: Apic::new(&vm),
            vm,
            hardware,
            vcpu,
            report,
            loaded: false,
            fetched: true,
            overtaken: false,
            unfinished: false,
            ready: false,
            tsc,
            stop_points: StopPoints::None,
            steps: 0,
            failure: None,
            not_emulated: 0,
            turn: (FEW, Instant::now()),
        }
    }

    fn run_guest(&mut self, budget: u64) -> Result<Stop, String> {
        if budget <= STEPS {
            return self.steps(budget);
        }
        if budget <= EXACT {
            return Ok(self.interpret(budget)?.unwrap_or(Stop::Budget));
        }
        loop {
            if let Some(stop) = self.boundary()? {
                return Ok(stop);
            }
            if !self.loaded {
                if self.unfit() {
                    match self.interpret(MANY)? {
                        Some(stop) => return Ok(stop),
                        None => continue,
                    }
                }
                self.load()?;
            }
            self.set_time()?;
            if !self.lend_apic()? {
                match self.interpret(SOME)? {
                    Some(stop) => return Ok(stop),
                    None => continue,
                }
            }
            let stop = match self.enter()? {
                Exit::Served => None,
                Exit::Reload => {
                    self.take_back()?;
                    None
                }
                Exit::Halted => {
                    self.vcpu.state.activity = Activity::Halted;
                    None
                }
                Exit::StopPoint => Some(Stop::Point),
                Exit::NotEmulated => self.step_over()?,
                // The interpreter delivers it as soon as it can be.
                Exit::NoWindow => self.interpret(SOME)?,
                Exit::Shutdown => self.shut_down()?,
                Exit::Failed(reason) => return Err(format!("{reason} {}", self.place())),
            };
            if let Some(stop) = stop {
                return Ok(stop);
            }
        }
    }

    /// Has the TSC follow the machine's clock.
    pub(super) fn set_time(&mut self) -> Result<(), String> {
        let (bus, id, offset) = (&self.vcpu.bus, self.vcpu.id, self.vcpu.state.msr.tsc_offset);
        let new = self.tsc.follow(&self.hardware, &self.vm, || bus.clock(id), offset)?;
        if new != offset {
            self.vcpu.state.msr.tsc_offset = new;
            bus.tsc_offset_changed(id, new);
        }
        Ok(())
    }

    /// Nobody has run the guest yet, and its TSC will be the host's.
    fn has_no_time(&self) -> bool {
        let s = &self.vcpu.state;
        let begun = s.retired != 0 || s.msr.tsc_offset != 0 && !self.tsc.is_applied();
        !begun && !self.report.works(Trial::TimeStamp)
    }

    /// Looks at the attention word.
    pub(super) fn boundary(&mut self) -> Result<Option<Stop>, String> {
        let shared = self.vcpu.shared.clone();
        let pending = shared.pending();
        if pending & DROP_WRITES != 0 {
            // The interpreter's TLB is empty whenever it starts.
            self.vcpu.fence.answer(self.vcpu.id);
        }
        shared.clear(pending & CODE);
        if pending & REMAP != 0 {
            shared.clear(REMAP);
            self.vm.map_memory().map_err(|e| e.to_string())?;
            self.vcpu.remap();
            if !self.vcpu.fence.a20.load(Acquire) {
                self.take_back()?;
            }
        }
        if pending & RARE != 0 {
            return self.interpret(1);
        }
        if pending & (STOP | DEADLINE) != 0 {
            shared.clear(STOP | DEADLINE);
            return Ok(Some(Stop::Asked));
        }
        Ok(match self.vcpu.state.activity {
            Activity::Running => None,
            Activity::Halted | Activity::MonitorWait if pending & INTR != 0 && self.interrupts_enabled() => {
                self.vcpu.state.activity = Activity::Running;
                None
            }
            Activity::Shutdown => Some(Stop::Shutdown),
            _ => Some(Stop::Halted),
        })
    }

    fn interrupts_enabled(&self) -> bool {
        if self.fetched {
            self.vcpu.state.rflags.contains(RFlags::IF)
        } else {
            self.hardware.interrupts_enabled()
        }
    }

    /// Whether the state, which is ours, is for the interpreter: KVM has no place for some of it, or cannot run it.
    pub(super) fn unfit(&self) -> bool {
        let s = &self.vcpu.state;
        let paged = s.cr0 & cr0::PG != 0;
        let mode = match (s.long_mode(), s.protected()) {
            _ if s.v86() && !self.report.works(Trial::Virtual8086) => return true,
            (true, _) => Trial::LongMode,
            (false, true) if paged => Trial::Paging32,
            (false, true) => Trial::ProtectedMode,
            (false, false) => Trial::RealMode,
        };
        let stops = self.stop_points == StopPoints::Interpreter;
        let a20_masked = !self.vcpu.fence.a20.load(Acquire);
        stops || a20_masked || s.smm || s.smi_pending || s.pending_debug != 0 || !self.report.works(mode)
    }

    /// The interpreter runs up to `budget` instructions. None: it has.
    pub(super) fn interpret(&mut self, budget: u64) -> Result<Option<Stop>, String> {
        self.take_back()?;
        if std::mem::take(&mut self.overtaken) || self.vcpu.fence.vcpus.len() > 1 {
            self.heed_writes()?;
        }
        Ok(match self.vcpu.run(budget) {
            Stop::Budget => None,
            stop => Some(stop),
        })
    }

    /// Memory was written without regard to code marks, and the TLB's tables were, too.
    fn heed_writes(&mut self) -> Result<(), String> {
        match self.vm.log_dirty {
            true => {
                let ram = self.vm.ram.clone();
                let dirty = |page| _ = ram.wrote(page * PAGE, PAGE);
                self.vm.take_dirty(dirty).map_err(|e| format!("KVM does not tell written pages: {e}"))?;
                self.vcpu.state_loaded();
            }
            false => self.vcpu.forget_code(),
        }
        Ok(())
    }

    /// The state is ours, and KVM's copy is void.
    pub(super) fn take_back(&mut self) -> Result<(), String> {
        self.fetch()?;
        self.loaded = false;
        Ok(())
    }

    pub(super) fn load(&mut self) -> Result<(), String> {
        let (bus, id) = (&self.vcpu.bus, self.vcpu.id);
        let apic_base = bus.read_apic_msr(id, 0x1B).and_then(Result::ok).unwrap_or(0);
        let state = &self.vcpu.state;
        if state.cr0 & cr0::PG != 0 {
            self.vm.forget_translations().map_err(|e| e.to_string())?;
        }
        registers::load(&self.hardware, state, apic_base, bus.task_priority(id))?;
        self.ready = state.rflags.contains(RFlags::IF) && state.shadow == Shadow::None;
        self.loaded = true;
        self.unfinished = false;
        Ok(())
    }

    pub(super) fn fetch(&mut self) -> Result<(), String> {
        self.give_back_apic()?;
        if self.fetched {
            return Ok(());
        }
        self.finish_access()?;
        let rest = registers::fetch(&self.hardware, &mut self.vcpu.state)?;
        self.fetched = true;
        if self.vm.split {
            self.vcpu.state.activity = self.hardware.activity()?;
        }
        if rest.pdptes {
            self.vcpu.load_pdptes();
        }
        if let Some(begun) = rest.begun {
            self.loaded = false;
            match begun {
                Begun::Interrupt(vector) => self.vcpu.finish_interrupt(vector),
                Begun::Exception(vector, error) => self.vcpu.finish_exception(vector, error),
            }
        }
        Ok(())
    }

    /// Has KVM finish the instruction whose access was served last.
    pub(super) fn finish_access(&mut self) -> Result<(), String> {
        while self.unfinished {
            self.unfinished = false;
            self.hardware.set_immediate_exit(true);
            let exit = self.serve_run();
            self.hardware.set_immediate_exit(false);
            if let Exit::Failed(reason) = exit? {
                return Err(reason);
            }
        }
        Ok(())
    }

    /// Injects an interrupt if one is requested and can be, and runs guest code.
    pub(super) fn enter(&mut self) -> Result<Exit, String> {
        let shared = self.vcpu.shared.clone();
        if shared.pending() & INTR != 0
            && self.ready
            && let Some(vector) = self.vcpu.bus.acknowledge_interrupt(self.vcpu.id)
        {
            self.hardware.interrupt(vector).map_err(|e| format!("KVM refuses interrupt {vector:#x}: {e}"))?;
            self.vcpu.counters.interrupts += 1;
            (self.ready, self.fetched) = (false, false);
        }
        let requested = shared.pending() & INTR;
        if requested != 0 && !self.ready && !self.report.works(Trial::InterruptWindow) {
            return Ok(Exit::NoWindow);
        }
        self.hardware.request_interrupt_window(requested != 0);
        let priority = match self.apic_is_lent() {
            true => None,
            false => Some(self.vcpu.bus.task_priority(self.vcpu.id)),
        };
        priority.into_iter().for_each(|class| self.hardware.set_task_priority(class));
        shared.set_away(true);
        // What is raised from here on is a kick.
        if shared.pending() & !requested != 0 {
            shared.set_away(false);
            return Ok(Exit::Served);
        }
        (self.fetched, self.unfinished, self.overtaken) = (false, false, true);
        let exit = self.serve_run();
        shared.set_away(false);
        self.hardware.set_immediate_exit(false);
        self.ready = self.hardware.ready_for_interrupt();
        let now = self.hardware.task_priority();
        if priority.is_some_and(|before| now != before) {
            self.vcpu.bus.set_task_priority(self.vcpu.id, now);
        }
        exit
    }

    /// KVM cannot run the next instruction: the interpreter does.
    fn step_over(&mut self) -> Result<Option<Stop>, String> {
        self.take_back()?;
        self.not_emulated += 1;
        self.vcpu.counters.unimplemented += 1;
        if self.not_emulated == 1 {
            let place = self.place();
            tracing::warn!(target: "kvm", cpu = self.vcpu.id, "KVM cannot run an instruction {place}: the interpreter does");
        }
        let (last, done) = self.turn;
        let turn = if done.elapsed() < NOWHERE { (last * 2).min(MANY) } else { FEW };
        let stop = self.interpret(turn);
        self.turn = (turn, Instant::now());
        stop
    }

    /// KVM says that the guest met a triple fault. Some software KVMs say so of what they do not know.
    fn shut_down(&mut self) -> Result<Option<Stop>, String> {
        self.take_back()?;
        if self.report.kind() == Kind::Software {
            return self.interpret(FEW);
        }
        self.vcpu.state.activity = Activity::Shutdown;
        Ok(Some(Stop::Shutdown))
    }

    /// RIP and the bytes there, for messages.
    fn place(&mut self) -> String {
        if let Err(e) = self.fetch() {
            return format!("(state unknown: {e})");
        }
        let (cs, rip) = (self.vcpu.state.seg[trimaran_cpu::state::seg::CS].selector, self.vcpu.state.rip());
        let linear = self.vcpu.code_address(rip);
        self.vcpu.flush_tlb();
        let byte = |n| self.byte_at(linear.wrapping_add(n)).map(|byte| format!("{byte:02x}"));
        let bytes: Vec<String> = (0..15).map_while(byte).collect();
        let bytes = if bytes.is_empty() { "cannot be read".into() } else { bytes.join(" ") };
        format!("at {cs:04x}:{rip:x}, where the bytes are {bytes}")
    }

    /// The machine ends, and says why.
    fn fail(&mut self, reason: String) -> Stop {
        self.failure = Some(reason);
        // Whatever can still be had of the state is shown by the monitor.
        (self.fetched, self.unfinished) = (true, false);
        Stop::Failed
    }
}

impl Engine for KvmVcpu {
    fn run(&mut self, budget: u64) -> Stop {
        if self.failure.is_some() {
            return Stop::Failed;
        }
        self.vcpu.shared.set_kick(self.hardware.on_this_thread());
        let stop = self.run_guest(budget).and_then(|stop| self.give_back_apic().map(|()| stop));
        stop.unwrap_or_else(|reason| self.fail(reason))
    }

    fn state(&mut self) -> &mut CpuState {
        let fetched = match self.fetch() {
            // Whoever goes on with a machine before KVM has run it can give it back only if it has the host's time.
            Ok(()) if self.has_no_time() => self.set_time(),
            other => other,
        };
        if let Err(reason) = fetched {
            self.fail(reason);
        }
        &mut self.vcpu.state
    }

    fn state_changed(&mut self) {
        self.loaded = false;
        self.tsc.forget();
        self.vcpu.state_loaded();
    }

    fn probe(&mut self, linear: u64) -> Option<u64> {
        self.fetch().ok()?;
        self.vcpu.flush_tlb();
        self.vcpu.probe(linear)
    }

    fn counters(&self) -> Counters {
        self.vcpu.counters
    }

    fn name(&self) -> &'static str {
        "kvm"
    }

    fn failure(&self) -> Option<String> {
        self.failure.clone()
    }

    fn describe_tlb(&self) -> String {
        "the host's processor has the TLB, and does not show it\n".into()
    }

    fn describe_translator(&self) -> String {
        let slots = self.vm.memory_slots();
        let mut text = format!(
            "KVM                 {} instructions it could not run, {} single steps, {slots} memory slots; counts are the interpreter's\n",
            self.not_emulated, self.steps
        );
        if let Some(apic) = &self.apic {
            text += &format!("local APIC          {} times in the kernel\n", apic.times);
        }
        text
    }

    fn stop_at(&mut self, addresses: &[u64]) -> Result<(), String> {
        self.set_stop_points(addresses)
    }
}
