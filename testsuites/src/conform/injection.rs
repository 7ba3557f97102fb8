//! Fault injection for what processors access by themselves: see [`crate::system::injection`].

use super::{Runner, Setup, Suite, UnitReport};
use crate::system::injection::KINDS;

pub const SUITE: Suite = Suite {
    name: "injection",
    description: "descriptors, gates, task state, stacks and page tables that are absent, read-only or broken at first, \
                  alone and together; interrupts between any two steps; events whose delivery faults, down to shutdown",
    judges: |engine| engine != "kvm",
    units: |setup, _| {
        let wanted = |name: &&str| setup.case.as_ref().is_none_or(|case| case == name);
        let units: Vec<_> = KINDS.iter().map(|(name, _)| *name).filter(wanted).map(str::to_owned).collect();
        if units.is_empty() { Err(format!("there is no case {:?}", setup.case)) } else { Ok(units) }
    },
    runner,
};

/// A unit is a kind; each of its faults counts as a case.
fn runner(_: &Setup, engine: &str) -> Result<Runner, String> {
    let engine = engine.to_owned();
    Ok(Box::new(move |unit| {
        let mut report = UnitReport::default();
        let run = KINDS.iter().find(|(name, _)| *name == unit).map(|(_, run)| run);
        match run.ok_or_else(|| "there is no such case".to_owned()).and_then(|run| run(&engine)) {
            Ok(count) => report.passed += count as u64,
            Err(why) => report.note(&unit, Err(why)),
        }
        report
    }))
}
