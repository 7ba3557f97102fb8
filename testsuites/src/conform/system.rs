//! The directed tests of [`crate::system::cases`], each a unit. They say what is wrong by a panic.

use super::{Runner, Setup, Suite, UnitReport, words};
use crate::engine;
use crate::flat::REFUSED;
use crate::system::cases::SUBJECTS;
use crate::system::lacks;
use std::panic::catch_unwind;

/// The engine that can be less of a processor than the others.
const HOSTED: &str = "kvm";

pub const SUITE: Suite = Suite {
    name: "system",
    description: "directed tests by the sections of the SDM: paging, protection, tasks, interrupts, SMM, own code",
    judges: |_| true,
    units,
    runner,
};

fn units(setup: &Setup, engine: &str) -> Result<Vec<String>, String> {
    if engine == HOSTED {
        engine::kvm()?;
    }
    let all = SUBJECTS
        .iter()
        .flat_map(|(subject, list)| list.iter().map(move |(name, _)| format!("{subject}::{name}")));
    let units: Vec<String> = all.filter(|name| setup.case.as_ref().is_none_or(|case| case == name)).collect();
    if units.is_empty() { Err(format!("there is no case {:?}", setup.case)) } else { Ok(units) }
}

fn runner(_: &Setup, engine: &str) -> Result<Runner, String> {
    let hosted = engine == HOSTED;
    Ok(Box::new(move |unit| {
        let mut report = UnitReport::default();
        let (subject, name) = unit.split_once("::").unwrap_or_default();
        let list = SUBJECTS.iter().find(|(known, _)| *known == subject).map_or(&[][..], |(_, list)| list);
        match list.iter().find(|(known, _)| *known == name) {
            None => report.note(&unit, Err("there is no such case".to_owned())),
            Some((_, run)) if hosted => on_less(&mut report, unit, *run),
            Some((_, run)) => {
                run();
                report.note(&unit, Ok(()));
            }
        }
        report
    }))
}

/// A case on an engine that can be less of a processor. Where the interpreter, as that processor, cannot do it either, or the
/// case fails where its programs meet what that processor is shown to lack, the case is not for it.
fn on_less(report: &mut UnitReport, unit: &str, run: fn()) {
    if catch_unwind(|| engine::stand_in(run)).is_err() {
        report.skipped.insert("the host's KVM lacks features that the case is about".into(), 1);
        return;
    }
    let Err(payload) = catch_unwind(run) else { return report.note(&unit, Ok(())) };
    let words = words(&*payload);
    match words.split_once(REFUSED) {
        Some((_, why)) => _ = report.skipped.insert(why.to_owned(), 1),
        None => match lacks::of(run) {
            none if none.is_empty() => report.note(&unit, Err(words)),
            some => _ = report.skipped.insert(format!("the host's KVM lacks {}", some.join("; ")), 1),
        },
    }
}
