//! Random programs with a kernel, page tables and interrupts, the translator against the interpreter, by seed.

use super::{Runner, Setup, Suite, UnitReport, seeds_of};
use crate::differential;

pub const SUITE: Suite = Suite {
    name: "differential",
    description: "random programs with faults, interrupts, page tables and own code, compared with the interpreter",
    judges: |engine| !matches!(engine, "interp" | "kvm"),
    units: |setup, engine| match engine {
        "jit-emit" => setup.seeds(1_000, 10),
        _ => setup.seeds(40, 2),
    },
    runner,
};

fn runner(_: &Setup, engine: &str) -> Result<Runner, String> {
    let engine = engine.to_owned();
    Ok(Box::new(move |unit| {
        let mut report = UnitReport::default();
        let (first, count) = seeds_of(unit);
        for seed in first..first.saturating_add(count) {
            let found = differential::run(&engine, std::iter::once(seed), None);
            report
                .note(&seed, if found.failures.is_empty() { Ok(()) } else { Err(found.failures.join("\n")) });
        }
        report
    }))
}
