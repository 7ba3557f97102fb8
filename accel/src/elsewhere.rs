//! Hosts without KVM.

use crate::{Irqchip, Report, Unavailable};
use trimaran_cpu::VcpuConfig;
use trimaran_cpu::engine::{Engine, EngineFactory};
use trimaran_cpu::model::Model;

/// Nothing that could be made.
pub enum Kvm {}

impl Kvm {
    pub fn open() -> Result<Kvm, Unavailable> {
        Err(Unavailable::Host)
    }
    pub fn measured(self) -> Result<Kvm, Unavailable> {
        match self {}
    }
    pub fn with_irqchip(self, _: Irqchip) -> Result<Kvm, Unavailable> {
        match self {}
    }
    pub fn report(&self) -> &Report {
        match *self {}
    }
    pub fn reduce(&self, _: &Model) -> Model {
        match *self {}
    }
}

impl EngineFactory for Kvm {
    fn name(&self) -> &'static str {
        match *self {}
    }
    fn create(&self, _: VcpuConfig) -> Box<dyn Engine> {
        match *self {}
    }
}
