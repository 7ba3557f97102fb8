//! The engines that a running machine can change to.

use crate::Failure;
use crate::cli::{EngineName, Options, TierName};
use anyhow::{anyhow, bail};
use clap::ValueEnum;
use std::sync::Arc;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_jit::{Jit, Tier};

/// The engine of a name, as the options describe it.
pub fn engine(options: &Options, name: EngineName) -> Result<Arc<dyn EngineFactory>, Failure> {
    if name == EngineName::Interp {
        return Ok(Arc::new(Interpreter));
    }
    let mut jit = Jit::default();
    jit.options.code_cache = usize::try_from(options.code_cache).unwrap_or(usize::MAX);
    jit.options.dump_region = options.dump_region;
    jit.options.perf_map = options.perf_map;
    jit.options.first_regions = options.first_regions;
    jit.options.no_links = options.no_links;
    jit.options.no_shared_checks = options.no_shared_checks;
    if !options.only_instructions.is_empty() {
        // For as long as the program runs.
        jit.options.only = Some(options.only_instructions.clone().leak());
    }
    jit.options.tier = match options.tier {
        None => jit.options.tier,
        Some(TierName::Interp) => Tier::Interp,
        Some(TierName::Emit) => Tier::Emit,
        Some(TierName::Cranelift) => Tier::Cranelift,
        Some(TierName::All) => Tier::All,
    };
    Ok(Arc::new(jit))
}

/// Engines by name, with the options that the program was started with.
pub struct EngineList(Options);

impl EngineList {
    pub fn new(options: &Options) -> Self {
        EngineList(options.clone())
    }

    /// The names that a user can give.
    pub fn names() -> Vec<String> {
        let values = EngineName::value_variants().iter().filter_map(EngineName::to_possible_value);
        values.map(|value| value.get_name().to_owned()).collect()
    }

    /// The engine of a name.
    pub fn named(&self, name: &str) -> anyhow::Result<Arc<dyn EngineFactory>> {
        let Ok(name) = EngineName::from_str(name, true) else {
            bail!("there is no engine `{name}`; the names are {}", Self::names().join(", "));
        };
        engine(&self.0, name).map_err(|failure| match failure {
            Failure::Usage(message) => anyhow!(message),
            Failure::Other(error) => error,
        })
    }

    /// The others in turn, the one after `current` first.
    pub fn after(&self, current: &str) -> Vec<String> {
        let mut names = Self::names();
        names.retain(|name| name != "auto");
        let place = names.iter().position(|name| name == current).map_or(0, |place| place + 1);
        let count = names.len();
        names.rotate_left(place % count.max(1));
        names.retain(|name| name != current);
        names
    }
}
