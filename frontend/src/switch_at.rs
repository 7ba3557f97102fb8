//! `--switch-at TRIGGER:ENGINE`.

use crate::cli::{EngineName, Options};
use crate::engine_list::{EngineList, engine};
use crate::tracer::Tracing;
use crate::{Failure, tracer};
use clap::ValueEnum;
use std::sync::Arc;
use trimaran_cpu::engine::EngineFactory;
use trimaran_machine::{MachineConfig, SwitchAt, SwitchReport, Trigger};

/// When which engine takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchOption {
    pub trigger: Trigger,
    /// None: the interpreter that traces.
    pub engine: Option<EngineName>,
}

const USAGE: &str = "give rip=ADDRESS, port=PORT, insns=COUNT or serial=TEXT, then a colon and an engine, such as \
                     insns=1000000:interp";

/// Reads what stands behind `--switch-at`.
pub fn parse(text: &str) -> Result<SwitchOption, String> {
    // The text of `serial` may have colons of its own.
    let (condition, engine) = text.rsplit_once(':').ok_or(USAGE)?;
    let engine = match EngineName::from_str(engine, true) {
        Ok(name) => Some(name),
        Err(_) if engine == tracer::NAME => None,
        Err(_) => {
            let names = EngineList::names().join(", ");
            return Err(format!(
                "there is no engine `{engine}`; the names are {names}, and {}",
                tracer::NAME
            ));
        }
    };
    let (kind, value) = condition.split_once('=').ok_or(USAGE)?;
    let trigger = match kind {
        "rip" => Trigger::Rip(crate::cli::parse_address(value)?),
        "port" => Trigger::Port(crate::cli::parse_port(value)?),
        "insns" => {
            Trigger::Insns(value.parse().map_err(|_| format!("`{value}` is no count of instructions"))?)
        }
        "serial" if value.is_empty() => return Err("serial= needs the text that shall appear".into()),
        "serial" => Trigger::Serial(value.into()),
        _ => return Err(format!("`{kind}` is no trigger; {USAGE}")),
    };
    Ok(SwitchOption { trigger, engine })
}

/// Arms what the options say; each switch, or why there was none, is a line on stderr.
pub fn arm(options: &Options, config: &mut MachineConfig) -> Result<(), Failure> {
    let mut tracing: Option<Arc<dyn EngineFactory>> = None;
    for SwitchOption { trigger, engine: name } in &options.switch_at {
        let engine = match (name, &tracing) {
            (Some(name), _) => engine(options, *name)?,
            (None, Some(tracing)) => tracing.clone(),
            // All go on with one file.
            (None, None) => {
                let new: Arc<dyn EngineFactory> = Arc::new(Tracing::create(&options.trace_steps)?.0);
                tracing.insert(new).clone()
            }
        };
        config.switches.push(SwitchAt { trigger: trigger.clone(), engine });
    }
    config.on_switch = Some(Box::new(|trigger, result| match result {
        Ok(SwitchReport { from, to, stood }) => {
            let milliseconds = stood.as_secs_f64() * 1e3;
            eprintln!("trimaran: {trigger}: {from} -> {to}, the guest stood for {milliseconds:.2} ms");
        }
        Err(error) => eprintln!("trimaran: {trigger}: {error}; the engine stays"),
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers() {
        let ok = |text: &str| parse(text).map(|option| option.trigger);
        assert_eq!(ok("rip=0xffffffff81000000:interp"), Ok(Trigger::Rip(0xFFFF_FFFF_8100_0000)));
        assert_eq!(ok("port=0x80:jit"), Ok(Trigger::Port(0x80)));
        assert_eq!(ok("insns=5000:interp"), Ok(Trigger::Insns(5000)));
        assert_eq!(ok("serial=login: :jit"), Ok(Trigger::Serial("login: ".into())));
        assert_eq!(parse("insns=1:interp").map(|option| option.engine), Ok(Some(EngineName::Interp)));
        assert_eq!(parse("insns=1:trace").map(|option| option.engine), Ok(None));
        for wrong in
            ["", "insns=1", "insns=x:jit", "port=0x10000:jit", "rip=zz:jit", "serial=:jit", "time=1:jit"]
        {
            assert!(ok(wrong).is_err(), "{wrong}");
        }
        assert!(parse("insns=1:warp").is_err_and(|error| error.contains("interp")));
    }
}
