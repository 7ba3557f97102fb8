//! Fault injection, by seed: see [`crate::faults`].

use super::{Runner, Setup, Suite};

pub const SUITE: Suite = Suite {
    name: "faults",
    description: "single instructions whose pages, of data and of the instruction itself, are absent at first, one by one and \
                  all: a fault leaves no trace, and the retry does what the instruction does",
    judges: |engine| engine != "kvm",
    units: |setup, engine| {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err("its cases are drawn on x86-64 Linux hosts only".into());
        }
        let (cases, block) = match engine {
            "interp" => (40_000, 1_000),
            "jit-emit" => (8_000, 200),
            _ => (800, 20),
        };
        setup.seeds(cases, block)
    },
    runner,
};

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn runner(_: &Setup, engine: &str) -> Result<Runner, String> {
    let mut bench = crate::faults::Bench::new(engine)?;
    Ok(Box::new(move |unit| {
        let mut report = super::UnitReport::default();
        let (first, count) = super::seeds_of(unit);
        for seed in first..first.saturating_add(count) {
            let (instruction, result) = bench.run(seed);
            report.forms([&instruction], 1);
            match result {
                Ok(0) => *report.skipped.entry("one byte that accesses no memory".into()).or_default() += 1,
                result => report.note(&seed, result.map(|_| ())),
            }
        }
        report
    }))
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn runner(_: &Setup, _: &str) -> Result<Runner, String> {
    Err("not on this host".into())
}
