//! Hosts without KVM.

use crate::{Report, Unavailable};
use trimaran_cpu::engine::{Engine, EngineFactory};
use trimaran_cpu::model::Model;
use trimaran_cpu::{Vcpu, VcpuConfig};

/// Nothing that could be made.
pub enum Kvm {}

impl Kvm {
    pub fn open() -> Result<Kvm, Unavailable> {
        Err(Unavailable::Host)
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
    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        Box::new(Vcpu::new(config))
    }
}
