//! `trimaran conform` as users meet it.

use std::process::{Command, Stdio};

fn conform(arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trimaran"));
    let output = command.arg("conform").args(arguments).stdin(Stdio::null()).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn one_case_is_run_on_one_engine() {
    let folder = tempfile::TempDir::new().unwrap();
    let page = folder.path().join("report.html");
    let case = ["--case", "system/tasks::jump", "--engine", "interp", "--report", page.to_str().unwrap()];
    let (status, text) = conform(&case);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("1 passed"), "{text}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("1 cases passed, 0 failed"), "{page}");
}

#[test]
fn random_cases_are_run_in_children() {
    let (status, text) =
        conform(&["--suite", "faults", "--cases", "40", "--engine", "interp", "--jobs", "2"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains(" passed") || text.contains("skipped:"), "{text}");
}

#[test]
fn what_does_not_exist_is_wrong_usage() {
    for wrong in
        [["--case", "system/no::such"], ["--suite", "none"], ["--engine", "warp"], ["--report", "x.txt"]]
    {
        let (status, text) = conform(&wrong);
        assert_eq!(status, 2, "{wrong:?}: {text}");
    }
    let (status, text) = conform(&["--list"]);
    assert!(status == 0 && text.contains("vectors") && text.contains("faults"), "{text}");
}
