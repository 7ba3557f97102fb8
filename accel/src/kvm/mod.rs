//! The engine's factory: one KVM virtual machine for a Trimaran machine, one KVM vCPU for each of its processors.

mod apic;
mod clock;
mod debugging;
mod engine;
mod exits;
mod features;
mod floating;
mod hardware;
mod host;
mod probe;
mod registers;
mod tiny;
mod vm;

use crate::{Irqchip, Kind, Report, Trial, Unavailable};
use engine::KvmVcpu;
use hardware::Hardware;
use host::{Host, refused};
use std::sync::{Arc, Mutex, Weak};
use trimaran_cpu::engine::{Engine, EngineFactory, Stop, Takeover};
use trimaran_cpu::model::Model;
use trimaran_cpu::state::CpuState;
use trimaran_cpu::{Counters, Vcpu, VcpuConfig};
use vm::{Vm, locked};

/// The host's KVM as an engine.
pub struct Kvm {
    host: Arc<Host>,
    report: Arc<Report>,
    irqchip: Irqchip,
    /// The machine that engines were last made for.
    current: Mutex<Weak<Vm>>,
}

impl Kvm {
    /// Opens /dev/kvm and tries what it can do; takes a fraction of a second.
    pub fn open() -> Result<Kvm, Unavailable> {
        let host = Arc::new(Host::open()?);
        let report = Arc::new(probe::probe(&host)?);
        Ok(Kvm { host, report, irqchip: Irqchip::User, current: Mutex::default() })
    }

    pub fn report(&self) -> &Report {
        &self.report
    }

    /// With its speeds in the report, whatever it lacks.
    pub fn measured(self) -> Result<Kvm, Unavailable> {
        let report = Arc::new(probe::measure(&self.host, &self.report)?);
        Ok(Kvm { report, ..self })
    }

    /// With local APICs as asked for; [`Irqchip::User`] otherwise.
    pub fn with_irqchip(self, irqchip: Irqchip) -> Result<Kvm, Unavailable> {
        let missing = self.report.missing.iter().find(|missing| missing.trial == Trial::SplitIrqchip);
        match missing.filter(|_| irqchip == Irqchip::Split) {
            Some(missing) => {
                let operation = "a local APIC in the kernel";
                Err(Unavailable::Refused { operation, error: missing.reason.clone() })
            }
            None => Ok(Kvm { irqchip, ..self }),
        }
    }

    /// Whether the kernel plays the local APIC of a machine with so many processors.
    fn splits(&self, processors: usize) -> bool {
        self.irqchip == Irqchip::Split && processors == 1
    }

    /// `model` as far as guests can have it under this KVM: for machines that start under it.
    pub fn reduce(&self, model: &Model) -> Model {
        features::reduce(model, &self.host)
    }

    fn vcpu(&self, config: VcpuConfig) -> Result<KvmVcpu, Unavailable> {
        let vm = self.vm(&config)?;
        let fd = vm.fd.create_vcpu(config.id as u64).map_err(refused("a virtual processor"))?;
        let vcpu = Vcpu::new(config);
        let cpuid = features::table(&vcpu)
            .map_err(|e| Unavailable::Refused { operation: "a table of CPUID", error: format!("{e:?}") })?;
        fd.set_cpuid2(&cpuid).map_err(refused("this processor model's CPUID"))?;
        if self.host.tsc_scaling {
            fd.set_tsc_khz(vcpu.model.tsc_khz).map_err(refused("the TSC's frequency"))?;
        }
        Ok(KvmVcpu::new(vm, Hardware::new(fd), vcpu, self.report.clone()))
    }

    /// The virtual machine of a processor's machine. KVM makes each vCPU once, so one that comes again, after the
    /// machine had another engine, means a new one.
    fn vm(&self, config: &VcpuConfig) -> Result<Arc<Vm>, Unavailable> {
        let mut current = locked(&self.current);
        if let Some(vm) = current.upgrade()
            && Arc::ptr_eq(&vm.ram, &config.ram)
        {
            let mut made = locked(&vm.made);
            if !made.contains(&config.id) {
                made.push(config.id);
                drop(made);
                return Ok(vm);
            }
        }
        let log = self.report.kind() == Kind::Software && self.report.works(Trial::DirtyLog);
        let vm = Vm::new(
            self.host.clone(),
            config.ram.clone(),
            config.bus.clone(),
            log,
            self.splits(config.fence.vcpus.len()),
        )?;
        locked(&vm.made).push(config.id);
        *current = Arc::downgrade(&vm);
        Ok(vm)
    }
}

impl EngineFactory for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        let state = CpuState::reset(config.model.signature, config.id == 0);
        match self.vcpu(config) {
            Ok(engine) => Box::new(engine),
            Err(reason) => Box::new(Stillborn { state, reason }),
        }
    }

    fn accepts(&self, machine: &Takeover) -> Result<(), String> {
        if machine.deterministic || machine.counts {
            return Err("KVM does not count instructions".into());
        }
        if self.irqchip == Irqchip::Split && machine.states.len() > 1 {
            return Err("the local APICs of several processors cannot be in the kernel: an interrupt that one sends to \
                        another could be lost"
                .into());
        }
        let missing = features::missing(machine.model, &self.host);
        if !missing.is_empty() {
            return Err(format!(
                "the guest has seen what the host's KVM lacks: {}; start it with --engine kvm",
                missing.join(", ")
            ));
        }
        let new = machine.states.iter().all(|state| state.retired == 0);
        if !new && !self.report.works(Trial::TimeStamp) {
            let now = || self.host.time_stamp().map_err(|e| e.to_string());
            machine.time_stamps.iter().try_for_each(|&guest| clock::meet(guest, self.host.tsc_khz, now))?;
        }
        machine.states.iter().try_for_each(|state| registers::representable(state))
    }
}

/// The engine of a vCPU that KVM would not make.
struct Stillborn {
    state: CpuState,
    reason: Unavailable,
}

impl Engine for Stillborn {
    fn run(&mut self, _: u64) -> Stop {
        Stop::Failed
    }
    fn state(&mut self) -> &mut CpuState {
        &mut self.state
    }
    fn state_changed(&mut self) {}
    fn probe(&mut self, _: u64) -> Option<u64> {
        None
    }
    fn counters(&self) -> Counters {
        Counters::default()
    }
    fn name(&self) -> &'static str {
        "kvm"
    }
    fn failure(&self) -> Option<String> {
        Some(self.reason.to_string())
    }
    fn describe_tlb(&self) -> String {
        String::new()
    }
}
