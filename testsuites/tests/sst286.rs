//! The whole 80286 suite, where `../shared/suites/sst286` exists (or `TRIMARAN_SST286` names its folder).

use std::path::PathBuf;
use trimaran_testsuites::{moo, vectors::Suite};

#[test]
fn single_step_tests_80286() {
    let folder = std::env::var_os("TRIMARAN_SST286").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/suites/sst286"),
        PathBuf::from,
    );
    if !folder.join("metadata.json").exists() {
        println!("skipped: SingleStepTests 80286 not found at {} (set TRIMARAN_SST286)", folder.display());
        return;
    }
    let suite = Suite::open(&folder).expect("suite folder");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("suite folder")
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.to_string_lossy().ends_with(".MOO.gz"))
        .collect();
    files.sort();
    let only = std::env::var("TRIMARAN_SST286_ONLY").ok();
    let (mut passed, mut failed) = (0, 0);
    for path in files {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let opcode = name.trim_end_matches(".MOO.gz");
        if only.as_deref().is_some_and(|o| o != opcode) {
            continue;
        }
        let file = moo::read(&path).expect("MOO file");
        let report = suite.run("interp", opcode, &file).expect("the interpreter");
        passed += report.passed;
        failed += report.failed.len();
        if !report.failed.is_empty() {
            println!("{opcode}: {} of {} failed", report.failed.len(), file.tests.len());
            for failure in report.failed.iter().take(if only.is_some() { 40 } else { 2 }) {
                println!("    {} #{}: {}", failure.name, failure.index, failure.why);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    assert_eq!(
        failed,
        0,
        "{failed} of {} tests failed; TRIMARAN_SST286_ONLY=<opcode> shows more",
        passed + failed
    );
}
