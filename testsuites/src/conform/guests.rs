//! Whole guests that need nothing installed, each a unit: the machine is judged with the engine.

use super::{Runner, Setup, Suite, UnitReport};
use crate::guest::Guest;
use crate::{apic_guest, engine, modes_guest};
use std::sync::Arc;
use std::time::Duration;
use trimaran_cpu::engine::Interpreter;
use trimaran_cpu::model::Model;
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::{MachineConfig, Outcome, builtin};

pub const SUITE: Suite = Suite {
    name: "guests",
    description: "the built-in guest, one that works in all modes, one that counts the local APIC's interrupts",
    judges: |_| true,
    units,
    runner,
};

/// A guest: how it ends, and what it sends to COM1 then.
type Check = fn(&str) -> Result<(), String>;
const GUESTS: [(&str, Check); 3] = [("built-in", built_in), ("all-modes", all_modes), ("apic", apic)];
/// When a guest has gone wrong.
const LIMIT: Duration = Duration::from_secs(100);

fn units(setup: &Setup, engine: &str) -> Result<Vec<String>, String> {
    engine::named(engine)?;
    let names = GUESTS.iter().map(|(name, _)| (*name).to_owned());
    let units: Vec<String> =
        names.filter(|name| setup.case.as_ref().is_none_or(|case| case == name)).collect();
    if units.is_empty() { Err(format!("there is no case {:?}", setup.case)) } else { Ok(units) }
}

fn runner(_: &Setup, engine: &str) -> Result<Runner, String> {
    let engine = engine.to_owned();
    Ok(Box::new(move |unit| {
        let mut report = UnitReport::default();
        let check = GUESTS.iter().find(|(name, _)| *name == unit);
        let result = check.map_or_else(|| Err("there is no such guest".into()), |(_, check)| check(&engine));
        report.note(&unit, result);
        report
    }))
}

/// Runs a guest to its end, in host time.
fn run(config: MachineConfig, engine: &str) -> Result<(Outcome, String), String> {
    let model = Arc::new(engine::model(engine, Model::default()));
    let config = MachineConfig { model, deterministic: false, ..config };
    let mut guest = Guest::create(config, &engine::named(engine)?)?;
    guest.machine.start();
    let outcome = guest.machine.wait_for(LIMIT).ok_or_else(|| format!("no end within {LIMIT:?}"))?;
    match guest.machine.engine_failure() {
        Some(failure) => Err(failure),
        None => Ok((outcome, guest.into_serial())),
    }
}

fn built_in(engine: &str) -> Result<(), String> {
    let image = builtin::image(&builtin::Options { engine: String::new(), smoke: true });
    let direct = Some(DirectBoot::builtin(image.map_err(|e| e.to_string())?));
    let (outcome, said) =
        run(MachineConfig { memory: 16 << 20, direct, ..MachineConfig::default() }, engine)?;
    let checksum = format!("trimaran smoke {:016x}", builtin::expected_checksum());
    match outcome == Outcome::PoweredOff && said.contains(&checksum) {
        true => Ok(()),
        false => Err(format!("{outcome:?}, no {checksum} in {said:?}")),
    }
}

/// The interpreter says which checksum is right.
fn all_modes(engine: &str) -> Result<(), String> {
    let interpreted = Guest::create(modes_guest::config(100)?, &(Arc::new(Interpreter) as _))?;
    interpreted.machine.run_until(60_000_000_000);
    let expected = (Outcome::DebugExit(1), interpreted.into_serial());
    match run(modes_guest::config(100)?, engine)? {
        found if found == expected => Ok(()),
        found => Err(format!("{found:?} instead of {expected:?}")),
    }
}

fn apic(engine: &str) -> Result<(), String> {
    match run(apic_guest::config(100)?, engine)?.0 {
        Outcome::DebugExit(1) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
