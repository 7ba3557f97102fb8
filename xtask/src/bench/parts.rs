//! `cargo x bench parts`: Criterion's measurements of single parts (`benches/`), as one table.

use super::report;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Runs them, and prints the table. `only`: part of the names to run.
pub fn parts(root: &Path, only: Option<&str>) -> Result<()> {
    let mut arguments = vec!["bench", "--package", "trimaran-benches", "--bench", "parts", "--"];
    arguments.extend(only);
    let target = crate::target(root);
    let results = target.join("criterion");
    // What other names left there must not be shown as new.
    if results.exists() {
        std::fs::remove_dir_all(&results)
            .with_context(|| format!("{}: cannot be emptied", results.display()))?;
    }
    crate::cargo(root, &arguments, &[("CARGO_TARGET_DIR".into(), target.display().to_string())])?;
    println!("\n{}, times of one unit in nanoseconds\n\n{}", report::host_cpu(), table(&read(&results)?));
    Ok(())
}

/// Mean times in nanoseconds by group and function.
type Times = BTreeMap<String, BTreeMap<String, f64>>;

fn read(results: &Path) -> Result<Times> {
    let mut times = Times::new();
    for file in files_named(results, "benchmark.json")? {
        // Criterion's folders have other names than what they hold.
        let text = std::fs::read_to_string(&file)?;
        let (group, function) = (string(&text, "group_id"), string(&text, "function_id"));
        let estimates = std::fs::read_to_string(file.with_file_name("estimates.json"))?;
        let mean = estimates.split_once("\"mean\"").map(|(_, rest)| rest);
        let mean = mean.and_then(|rest| rest.split_once("\"point_estimate\":")).map(|(_, rest)| rest);
        let mean = mean.and_then(|rest| rest.split([',', '}']).next()?.trim().parse().ok());
        if let (Some(group), Some(function), Some(mean)) = (group, function, mean) {
            times.entry(group).or_default().insert(function, mean);
        }
    }
    Ok(times)
}

/// The value of a text field.
fn string(json: &str, field: &str) -> Option<String> {
    let (_, rest) = json.split_once(&format!("\"{field}\":\""))?;
    Some(rest.split('"').next()?.to_owned())
}

/// The newest results of each measurement are in folders named `new`.
fn files_named(folder: &Path, name: &str) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}: no results", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_named(&path, name)?);
        } else if path.ends_with(Path::new("new").join(name)) {
            found.push(path);
        }
    }
    Ok(found)
}

fn table(times: &Times) -> String {
    const ENGINES: [&str; 3] = ["interpreter", "emitter", "Cranelift"];
    let mut text = format!("| | {} |\n|---|---:|---:|---:|\n", ENGINES.join(" | "));
    for (group, row) in times {
        let cell = |name: &&str| row.get(*name).map_or("".into(), |ns| format!("{ns:.2}"));
        text += &format!("| {group} | {} |\n", ENGINES.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_become_a_table() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("trimaran-parts-{}", std::process::id()));
        let new = folder.join("a/b/new");
        std::fs::create_dir_all(&new)?;
        std::fs::write(
            new.join("benchmark.json"),
            r#"{"group_id":"TLB hit","function_id":"emitter","x":1}"#,
        )?;
        let mean =
            r#"{"mean":{"confidence_interval":{"lower_bound":1.0},"point_estimate":1.256},"median":{}}"#;
        std::fs::write(new.join("estimates.json"), mean)?;
        let text = read(&folder).map(|times| table(&times));
        std::fs::remove_dir_all(&folder)?;
        assert!(text?.ends_with("| TLB hit |  | 1.26 |  |\n"));
        Ok(())
    }
}
