//! Random user-mode instructions against the host's processor, by seed.

use super::{Runner, Setup, Suite};

pub const SUITE: Suite = Suite {
    name: "silicon",
    description: "random user-mode instructions, one to eight of them, compared with the host's own processor",
    judges: |_| true,
    units,
    runner,
};

/// Cases if the user gives no number: engines that translate each case first take longer.
fn usual(engine: &str) -> u64 {
    match engine {
        "interp" => 200_000,
        "jit-emit" => 20_000,
        _ => 2_000,
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn units(setup: &Setup, engine: &str) -> Result<Vec<String>, String> {
    setup.seeds(usual(engine), usual(engine) / 200)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn runner(_: &Setup, engine: &str) -> Result<Runner, String> {
    use crate::silicon::Bench;
    let mut bench = Bench::new(engine)?;
    Ok(Box::new(move |unit| {
        let mut report = super::UnitReport::default();
        for seed in super::seeds_of(unit) {
            let (instructions, result) = bench.run(seed);
            report.forms(&instructions);
            report.note(&seed, result);
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
