//! `--switch-at TRIGGER:ENGINE`.

use crate::cli::EngineName;
use clap::ValueEnum;
use trimaran_machine::Trigger;

/// When which engine takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchOption {
    pub trigger: Trigger,
    pub engine: EngineName,
}

const USAGE: &str = "give rip=ADDRESS, port=PORT, insns=COUNT or serial=TEXT, then a colon and an engine, such as \
                     insns=1000000:interp";

/// Reads what stands behind `--switch-at`.
pub fn parse(text: &str) -> Result<SwitchOption, String> {
    // The text of `serial` may have colons of its own.
    let (condition, engine) = text.rsplit_once(':').ok_or(USAGE)?;
    let engine = EngineName::from_str(engine, true).map_err(|_| {
        let names = crate::engine_list::EngineList::names();
        format!("there is no engine `{engine}`; the names are {}", names.join(", "))
    })?;
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
        assert_eq!(parse("insns=1:interp").map(|option| option.engine), Ok(EngineName::Interp));
        for wrong in
            ["", "insns=1", "insns=x:jit", "port=0x10000:jit", "rip=zz:jit", "serial=:jit", "time=1:jit"]
        {
            assert!(ok(wrong).is_err(), "{wrong}");
        }
        assert!(parse("insns=1:warp").is_err_and(|error| error.contains("interp")));
    }
}
