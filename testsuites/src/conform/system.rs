//! The directed tests of [`crate::system::cases`], each a unit. They say what is wrong by a panic.

use super::{Runner, Setup, Suite, UnitReport};
use crate::system::cases::SUBJECTS;

pub const SUITE: Suite = Suite {
    name: "system",
    description: "directed tests by the sections of the SDM: paging, protection, tasks, interrupts, SMM, own code",
    judges: |_| true,
    units,
    runner,
};

fn units(setup: &Setup, _: &str) -> Result<Vec<String>, String> {
    let all = SUBJECTS
        .iter()
        .flat_map(|(subject, list)| list.iter().map(move |(name, _)| format!("{subject}::{name}")));
    let units: Vec<String> = all.filter(|name| setup.case.as_ref().is_none_or(|case| case == name)).collect();
    if units.is_empty() { Err(format!("there is no case {:?}", setup.case)) } else { Ok(units) }
}

fn runner(_: &Setup, _: &str) -> Result<Runner, String> {
    Ok(Box::new(|unit| {
        let mut report = UnitReport::default();
        let (subject, name) = unit.split_once("::").unwrap_or_default();
        let list = SUBJECTS.iter().find(|(known, _)| *known == subject).map_or(&[][..], |(_, list)| list);
        let case = list.iter().find(|(known, _)| *known == name);
        let run = case.map(|(_, run)| run()).ok_or_else(|| "there is no such case".to_owned());
        report.note(&unit, run);
        report
    }))
}
