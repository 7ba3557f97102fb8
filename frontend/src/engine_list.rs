//! The engines that a running machine can change to.

use crate::cli::{EngineName, Options};
use crate::{Failure, engines};
use anyhow::{anyhow, bail};
use clap::ValueEnum;
use std::sync::{Arc, Mutex, PoisonError};
use trimaran_cpu::engine::EngineFactory;

/// The engine of a name, as the options describe it.
pub fn engine(options: &Options, name: EngineName) -> Result<Arc<dyn EngineFactory>, Failure> {
    Ok(engines::choose(&Options { engine: name, ..options.clone() })?.factory)
}

/// Engines by name, with the options that the program was started with.
pub struct EngineList {
    options: Options,
    /// What has been made: finding out what KVM can do takes a while.
    made: Mutex<Vec<(EngineName, Arc<dyn EngineFactory>)>>,
}

impl EngineList {
    pub fn new(options: &Options) -> Self {
        EngineList { options: options.clone(), made: Mutex::default() }
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
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, factory)) = made.iter().find(|(known, _)| *known == name) {
            return Ok(factory.clone());
        }
        let factory = engine(&self.options, name).map_err(|failure| match failure {
            Failure::Usage(message) => anyhow!(message),
            Failure::Other(error) => error,
        })?;
        made.push((name, factory.clone()));
        Ok(factory)
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn engines_come_in_turn() {
        let list = EngineList::new(&Options::parse_from(["trimaran"]));
        let after = |name: &str| list.after(name);
        assert_eq!(after("jit")[0], "interp");
        assert!(
            after("interp").contains(&"jit".to_owned()) && !after("interp").contains(&"interp".to_owned())
        );
        assert!(after("trace").contains(&"jit".to_owned()) && !after("trace").contains(&"auto".to_owned()));
        assert!(list.named("warp").is_err_and(|error| error.to_string().contains("interp")));
        let interp = || list.named("INTERP").expect("an engine");
        assert_eq!(interp().name(), "interp");
        assert!(Arc::ptr_eq(&interp(), &interp()), "it is made once");
    }
}
