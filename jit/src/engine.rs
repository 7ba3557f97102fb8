//! The engine: an interpreter whose loop runs translated code where there is some.

use crate::translations::Translations;
use iced_x86::Mnemonic;
use std::fmt;
use trimaran_cpu::engine::{Engine, EngineFactory, Stop};
use trimaran_cpu::state::CpuState;
use trimaran_cpu::{Counters, Vcpu, VcpuConfig};

/// Which back ends are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// None: everything is interpreted.
    Interp,
    /// The single-pass emitter (x86-64 hosts).
    Emit,
    /// Cranelift for all that is warm.
    Cranelift,
    /// The emitter for warm code, Cranelift in the background for hot code.
    All,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tier::Interp => "interp",
            Tier::Emit => "emit",
            Tier::Cranelift => "cranelift",
            Tier::All => "all",
        })
    }
}

/// How the translator works.
#[derive(Clone, Copy, Debug)]
pub struct JitOptions {
    pub tier: Tier,
    /// Bytes of host code kept, for each vCPU.
    pub code_cache: usize,
    /// A block that has run so often is translated.
    pub warm: u32,
    /// A translation that was entered so often is made again, better.
    pub hot: u32,
    /// Only the first so many regions are translated: for bisecting.
    pub first_regions: Option<u64>,
    /// Regions are never linked: for bisecting.
    pub no_links: bool,
    /// Only these instructions are translated, and regions end before others: for bisecting.
    pub only: Option<&'static [Mnemonic]>,
    /// Every access looks into the TLB by itself: for bisecting.
    pub no_shared_checks: bool,
    /// A region that is entered here is printed.
    pub dump_region: Option<u64>,
    /// Translated code is named for `perf`.
    pub perf_map: bool,
    /// Cranelift compiles while the guest waits, for tests.
    pub foreground: bool,
}

impl Default for JitOptions {
    fn default() -> Self {
        JitOptions {
            tier: if cfg!(target_arch = "x86_64") { Tier::Emit } else { Tier::Cranelift },
            code_cache: 256 << 20,
            warm: 16,
            hot: 200_000,
            first_regions: None,
            no_links: false,
            only: None,
            no_shared_checks: false,
            dump_region: None,
            perf_map: false,
            foreground: false,
        }
    }
}

/// Makes translating engines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jit {
    pub options: JitOptions,
}

impl EngineFactory for Jit {
    fn name(&self) -> &'static str {
        "jit"
    }
    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        Box::new(JitEngine::new(config, self.options))
    }
}

/// One vCPU with its translations.
struct JitEngine {
    vcpu: Box<Vcpu>,
    translations: Translations,
}

impl JitEngine {
    fn new(config: VcpuConfig, options: JitOptions) -> Self {
        JitEngine { vcpu: Box::new(Vcpu::new(config)), translations: Translations::new(options) }
    }
}

impl Engine for JitEngine {
    fn run(&mut self, budget: u64) -> Stop {
        self.vcpu.run_with(budget, &mut self.translations)
    }
    fn state(&mut self) -> &mut CpuState {
        self.vcpu.state_whole()
    }
    fn state_changed(&mut self) {
        self.vcpu.state_loaded();
    }
    fn probe(&mut self, linear: u64) -> Option<u64> {
        self.vcpu.probe(linear)
    }
    fn counters(&self) -> Counters {
        self.vcpu.counters
    }
    fn name(&self) -> &'static str {
        "jit"
    }
    fn stop_at(&mut self, addresses: &[u64]) -> Result<(), String> {
        self.vcpu.stop_at(addresses)
    }
    fn describe_tlb(&self) -> String {
        self.vcpu.describe_tlb()
    }
    fn describe_translator(&self) -> String {
        self.translations.report(&self.vcpu)
    }
}
