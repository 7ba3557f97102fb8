//! Vectors recorded from hardware: SingleStepTests of the 8088, 80286 and 80386, a unit a file.

use super::{Runner, Setup, Suite, UnitReport};
use crate::{moo, vectors};
use std::path::{Path, PathBuf};

pub const SUITE: Suite = Suite {
    name: "vectors",
    description: "SingleStepTests: single instructions in real mode, recorded from an 8088, 80286 or 80386",
    judges: |engine| engine != "kvm",
    units,
    runner,
};

/// Where the vectors are; without a folder, that of this project's own checks.
fn folder(setup: &Setup) -> Result<PathBuf, String> {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/suites/sst286");
    let folder = setup.vectors.clone().unwrap_or_else(own);
    let there = names(&folder).is_ok_and(|names| !names.is_empty());
    if there { Ok(folder) } else { Err(format!("no vectors at {}: give --vectors DIR", folder.display())) }
}

/// Files of a folder, by their whole names.
fn names(folder: &Path) -> Result<Vec<String>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let vectors = |name: &String| name.strip_suffix(".gz").unwrap_or(name).ends_with(".MOO");
    let mut names: Vec<String> = names.filter(vectors).collect();
    names.sort();
    Ok(names)
}

/// The name of a file of vectors without its endings.
fn stem(name: &str) -> &str {
    let name = name.strip_suffix(".gz").unwrap_or(name);
    name.strip_suffix(".MOO").unwrap_or(name)
}

/// The file, and the number of the test in it if one is meant.
fn parts(case: &str) -> (&str, Option<u32>) {
    case.split_once('/').map_or((case, None), |(file, number)| (file, number.parse().ok()))
}

fn units(setup: &Setup, _: &str) -> Result<Vec<String>, String> {
    let mut units = names(&folder(setup)?)?;
    if let Some(case) = &setup.case {
        units.retain(|unit| stem(unit) == parts(case).0);
    }
    Ok(units)
}

fn runner(setup: &Setup, engine: &str) -> Result<Runner, String> {
    let folder = folder(setup)?;
    let suite = vectors::Suite::open(&folder)?;
    let engine = engine.to_owned();
    let only = setup.case.as_ref().and_then(|case| parts(case).1);
    Ok(Box::new(move |unit| {
        let mut report = UnitReport::default();
        let (file, unit) = (folder.join(unit), stem(unit));
        let mut file = match moo::read(&file) {
            Ok(file) => file,
            Err(error) => {
                report.note(&unit, Err(error.to_string()));
                return report;
            }
        };
        file.tests.retain(|test| only.is_none_or(|only| test.index == only));
        let found = match suite.run(&engine, unit, &file) {
            Ok(found) => found,
            Err(why) => {
                report.note(&unit, Err(why));
                return report;
            }
        };
        for test in &file.tests {
            report.forms([&iced_x86::Decoder::new(16, &test.bytes, 0).decode()], 1);
        }
        report.passed = found.passed as u64;
        let skipped = found.excused.into_iter().chain([("revoked by the suite's authors", found.revoked)]);
        for (why, count) in skipped.filter(|skipped| skipped.1 != 0) {
            report.skipped.insert(why.into(), count as u64);
        }
        for failure in found.failed {
            let text = match file.tests.iter().find(|test| test.index == failure.index) {
                Some(test) => describe(test, &failure.why),
                None => failure.why,
            };
            report.note(&format!("{unit}/{}", failure.index), Err(text));
        }
        report
    }))
}

/// Bytes, disassembly, input and what differs.
fn describe(test: &moo::Test, why: &str) -> String {
    let bytes: Vec<String> = test.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let values = moo::REGISTERS.iter().zip(test.initial.registers);
    let registers = values.filter_map(|(name, value)| Some(format!("{name}={:x}", value?)));
    let memory = test.initial.ram.iter().map(|(at, byte)| format!("[{at:06x}]={byte:02x}"));
    let input: Vec<String> = registers.chain(memory).collect();
    format!("    {:30} {}\n    {}\n  {why}", bytes.join(" "), test.name, input.join(" "))
}
