//! Random user-mode instructions against the host's processor, by seed.

use super::{Runner, Setup, Suite};

pub const SUITE: Suite = Suite {
    name: "silicon",
    description: "random user-mode instructions, one to eight of them, compared with the host's own processor",
    judges: |engine| engine != "kvm",
    units,
    runner,
};

/// Cases if the user gives no number; Cranelift's compilations take longer.
fn usual(engine: &str) -> u64 {
    match engine {
        "interp" | "jit-emit" => 512_000,
        _ => 64_000,
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn units(setup: &Setup, engine: &str) -> Result<Vec<String>, String> {
    setup.seeds(usual(engine), usual(engine) / 200)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn runner(setup: &Setup, engine: &str) -> Result<Runner, String> {
    use super::UnitReport;
    use crate::silicon::{Bench, families};
    let mut bench = Bench::new(engine, None)?;
    // The first unit's report tells of forms that are not met, too.
    let mut nothing_met = UnitReport::default();
    if setup.case.is_none() {
        nothing_met.forms = bench.forms().map(|form| (form, 0)).collect();
        nothing_met.left_out = bench.left_out().collect();
    }
    Ok(Box::new(move |unit| {
        let mut report = std::mem::take(&mut nothing_met);
        let (first, count) = super::seeds_of(unit);
        for seeds in families(first, count) {
            let cases = seeds.end - seeds.start;
            let (instructions, failures) = bench.run(seeds);
            report.passed += cases - failures.len() as u64;
            report.forms(&instructions, cases);
            failures.into_iter().for_each(|failure| report.note(&failure.seed, Err(failure.text)));
        }
        report
    }))
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn units(_: &Setup, engine: &str) -> Result<Vec<String>, String> {
    Err(format!("{} cases are not run: the host is not x86-64 Linux", usual(engine)))
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn runner(setup: &Setup, engine: &str) -> Result<Runner, String> {
    units(setup, engine).and(Err("not on this host".into()))
}
