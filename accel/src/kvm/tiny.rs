//! The tiny machine under KVM.

use super::features;
use super::hardware::Hardware;
use super::host::{Host, refused};
use super::registers;
use super::vm::Vm;
use crate::Unavailable;
use crate::tiny::{BYTES, CODE, Mode, OnlyRam, Tables};
use kvm_ioctls::VcpuExit;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use trimaran_cpu::bus::Bus;
use trimaran_cpu::model::Model;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::{CodeFence, Kick};
use trimaran_cpu::state::CpuState;
use trimaran_cpu::{Vcpu, VcpuConfig};

/// Longest time of a trial.
const LIMIT: Duration = Duration::from_secs(3);

/// IA32_APIC_BASE in both modes.
const XAPIC: u64 = 0xFEE0_0900;
const X2APIC: u64 = 0xFEE0_0D00;

/// See the head of this file.
pub struct Tiny {
    pub hardware: Hardware,
    pub ram: Arc<Ram>,
    pub model: Arc<Model>,
    pub vm: Arc<Vm>,
}

impl Tiny {
    pub fn new(host: &Arc<Host>) -> Result<Tiny, Unavailable> {
        Tiny::with(host, false)
    }

    /// `split`: with a local APIC in the kernel.
    pub fn with(host: &Arc<Host>, split: bool) -> Result<Tiny, Unavailable> {
        let ram = Arc::new(Ram::anonymous(BYTES));
        let fence = CodeFence::new(1);
        let bus: Arc<dyn Bus> = Arc::new(OnlyRam(fence.clone()));
        let vm = Vm::new(host.clone(), ram.clone(), bus.clone(), true, split)?;
        let fd = vm.fd.create_vcpu(0).map_err(refused("a virtual processor"))?;
        let model = Arc::new(features::reduce(&Model::default(), host));
        let vcpu = Vcpu::new(VcpuConfig { id: 0, model: model.clone(), ram: ram.clone(), bus, fence });
        let cpuid = features::table(&vcpu)
            .map_err(|e| Unavailable::Refused { operation: "a table of CPUID", error: format!("{e:?}") })?;
        fd.set_cpuid2(&cpuid).map_err(refused("CPUID"))?;
        Ok(Tiny { hardware: Hardware::new(fd), ram, model, vm })
    }

    /// Writes the tables of a mode, and makes the state that starts at [`CODE`].
    pub fn prepare(&self, mode: Mode, cpl: u8) -> CpuState {
        Tables(&self.ram).prepare(mode, cpl)
    }

    /// Writes code and runs it from a state until an exit that it is asked about; then the registers are in `state`.
    pub fn run(&mut self, code: &[u8], state: &mut CpuState) -> Result<End, String> {
        self.ram.write(CODE, code);
        self.resume(state)
    }

    /// Runs what is there from a state; as [`Tiny::run`].
    pub fn resume(&mut self, state: &mut CpuState) -> Result<End, String> {
        registers::load(&self.hardware, state, if self.vm.split { X2APIC } else { XAPIC }, 0)?;
        let end = self.until_exit();
        registers::fetch(&self.hardware, state)?;
        end
    }

    /// Runs on until an exit.
    pub fn until_exit(&mut self) -> Result<End, String> {
        let kick = self.hardware.on_this_thread();
        let (done, waits) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if waits.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                    kick.kick();
                }
            });
            let end = match self.hardware.run() {
                Ok((VcpuExit::Hlt, _)) => Ok(End::Halt),
                Ok((VcpuExit::IoOut(port, _), _)) => Ok(End::Out(port)),
                Ok((VcpuExit::IrqWindowOpen, _)) => Ok(End::InterruptWindow),
                Ok((VcpuExit::Debug(_), _)) => Ok(End::Debug),
                Ok((VcpuExit::IoapicEoi(vector), _)) => Ok(End::Eoi(vector)),
                Ok((VcpuExit::InternalError, _)) => Err("internal error".to_string()),
                Ok((exit, _)) => Err(format!("exit {exit:?}").to_lowercase()),
                Err(e) if e.errno() == libc::EINTR => Err(format!("nothing within {LIMIT:?}")),
                Err(e) => Err(e.to_string()),
            };
            drop(done);
            self.hardware.set_immediate_exit(false);
            end
        })
    }
}

/// How a tiny guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Halt,
    Out(u16),
    /// An interrupt could be injected.
    InterruptWindow,
    /// At a breakpoint, or after a single step.
    Debug,
    /// A level-triggered interrupt of this vector is finished.
    Eoi(u8),
}
