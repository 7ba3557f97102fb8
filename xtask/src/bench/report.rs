//! The table, as markdown.

use super::column::{Column, Outcome, Results};
use super::features::Difference;
use super::programs::{BOOT, Group, Row};
use super::{Options, qemu};
use std::path::Path;
use std::process::Command;

/// What a reader needs to know to repeat the measurement.
pub struct Head {
    lines: Vec<String>,
}

impl Head {
    pub fn new(root: &Path, options: &Options, qemu: &qemu::Qemu) -> Self {
        let git = |arguments: &[&str]| output(Command::new("git").args(arguments).current_dir(root));
        let dirty =
            if git(&["status", "--porcelain"]).is_empty() { "" } else { ", with uncommitted changes" };
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or("?");
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let binary =
            options.binary.as_ref().map(|f| format!(" of {}, which may be another commit's", f.display()));
        let binary = binary.unwrap_or_default();
        let with: String = options.with.iter().map(|option| format!(" {option}")).collect();
        let lines = vec![
            format!(
                "- {}, commit {}{dirty}",
                date("+%Y-%m-%d %H:%M"),
                git(&["rev-parse", "--short", "HEAD"])
            ),
            format!("- host: {}, {cores} processors, load {load} at the end", host_cpu()),
            format!("- engine: {}{with}{binary}", options.engine),
            format!("- QEMU {}, `-accel tcg -cpu {}`", qemu.version, qemu::SAME_CPU),
            format!(
                "- {}, {} run{} a column{}",
                if options.quick { "a fifth of the work (--quick)" } else { "full work" },
                options.runs,
                if options.runs == 1 { "" } else { "s, in turns, best time of each row" },
                if options.only.is_empty() {
                    String::new()
                } else {
                    format!(", only {}", options.only.join(", "))
                },
            ),
        ];
        Head { lines }
    }
}

/// The date, in a format of the program `date`.
pub fn date(format: &str) -> String {
    output(Command::new("date").arg(format))
}

fn output(command: &mut Command) -> String {
    command.output().map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default()
}

/// The host's processor.
pub fn host_cpu() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| "unknown".into(), |(_, name)| name.to_owned())
}

struct Line<'a> {
    name: &'a str,
    group: Group,
    /// By column.
    outcomes: Vec<Option<&'a Outcome>>,
    failed: Option<String>,
}

impl Line<'_> {
    fn seconds(&self, column: usize) -> Option<f64> {
        match self.outcomes.get(column)? {
            Some(Outcome::Done { seconds, .. }) if self.failed.is_none() => Some(*seconds),
            _ => None,
        }
    }

    fn cpu(&self, column: usize) -> Option<f64> {
        match self.outcomes.get(column)? {
            Some(Outcome::Done { cpu, .. }) if self.failed.is_none() => *cpu,
            _ => None,
        }
    }

    /// TCG/ours in time, TCG/ours in processor time, ours/native, each where both columns have a time.
    fn ratios(&self, native: Option<usize>) -> [Option<f64>; 3] {
        let ratio = |a: Option<f64>, b: Option<f64>| a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b);
        [
            ratio(self.seconds(1), self.seconds(0)),
            ratio(self.cpu(1), self.cpu(0)),
            ratio(self.seconds(0), native.and_then(|n| self.seconds(n))),
        ]
    }
}

/// Columns: ours first, TCG second.
pub fn markdown(head: &Head, columns: &[Column], results: &[Results], rows: &[&Row]) -> String {
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let lines: Vec<Line> = std::iter::once((BOOT, Group::Boot))
        .chain(rows.iter().map(|row| (row.name, row.group)))
        .map(|(name, group)| {
            let outcomes: Vec<_> = results.iter().map(|r| r.rows.get(name)).collect();
            let failed = failure(&names, &outcomes);
            Line { name, group, outcomes, failed }
        })
        .collect();
    let native = columns.iter().position(|c| c.name == "native");
    let mut text = String::from("# Real programs in a Debian guest\n\n");
    for line in &head.lines {
        text += &format!("{line}\n");
    }
    text += &format!("- guest kernel: {}\n", results[0].kernel);
    text += &processor(&results[0], &results[1]);
    text += &match native {
        Some(_) => "- native: the same files by chroot, with all that the host's processor has\n".to_owned(),
        None => "- native column skipped: it needs root\n".to_owned(),
    };
    text +=
        "\nSeconds; ratios TCG/ours: more is better for us. `by CPU` compares processor time.\n\n| program |";
    for column in columns {
        text += &format!(" {} |", column.name);
    }
    text += " TCG/ours | by CPU | ours/native |\n|---|";
    text += &"---:|".repeat(columns.len() + 3);
    text.push('\n');
    for line in &lines {
        text += &format!("| {} |", line.name);
        for column in 0..columns.len() {
            let cell = match line.outcomes[column] {
                Some(Outcome::Done { seconds, .. }) => format!("{seconds:.2}"),
                Some(Outcome::Failed(_)) => "failed".into(),
                None => "-".into(),
            };
            text += &format!(" {cell} |");
        }
        let [wall, cpu, native] = line.ratios(native);
        let failed = if line.failed.is_some() { "failed" } else { "-" };
        text +=
            &format!(" {} | {} | {} |\n", ratio(wall, 2, failed), ratio(cpu, 2, "-"), ratio(native, 1, "-"));
    }
    text += &means(&lines, columns.len(), native);
    text += &failures(&lines);
    text
}

fn ratio(value: Option<f64>, digits: usize, none: &str) -> String {
    value.map_or_else(|| none.to_owned(), |value| format!("{value:.digits$}"))
}

/// Why a row does not count, if so.
fn failure(columns: &[&str], outcomes: &[Option<&Outcome>]) -> Option<String> {
    let mut first: Option<(&str, &str)> = None;
    for (&column, outcome) in columns.iter().zip(outcomes) {
        match (outcome, first) {
            (Some(Outcome::Failed(why)), _) => return Some(format!("{}: {why}", column)),
            (Some(Outcome::Done { sum, .. }), None) => first = Some((column, sum)),
            (Some(Outcome::Done { sum, .. }), Some((name, other))) if sum != other => {
                return Some(format!("output differs: {name} {other}, {} {sum}", column));
            }
            _ => {}
        }
    }
    None
}

fn processor(ours: &Results, tcg: &Results) -> String {
    if ours.flags.is_empty() || tcg.flags.is_empty() {
        return "- processor as the guests see it: not known, one of them did not start\n".into();
    }
    let difference = Difference::new(&ours.flags, &tcg.flags);
    let list = |flags: &[String]| if flags.is_empty() { "none".into() } else { flags.join(" ") };
    let mut text = format!(
        "- processor as the guests see it ({} / {}): flags only under Trimaran: {}; only under TCG: {}\n",
        ours.vendor,
        tcg.vendor,
        list(&difference.first),
        list(&difference.second)
    );
    let unfair = difference.unfair();
    if !unfair.is_empty() {
        text += &format!("- **not the same code everywhere**: programs choose by {}\n", unfair.join(" "));
    }
    text
}

fn means(lines: &[Line], columns: usize, native: Option<usize>) -> String {
    let groups = Group::ALL.into_iter().filter(|&group| group != Group::Boot).map(Some);
    let mut text = String::new();
    for group in groups.chain([None]) {
        let members: Vec<_> = lines.iter().filter(|l| group.is_none_or(|group| l.group == group)).collect();
        if members.is_empty() {
            continue;
        }
        let mean = |which: usize| {
            let all: Vec<f64> = members.iter().filter_map(|l| l.ratios(native)[which]).collect();
            let logs: f64 = all.iter().map(|r| r.ln()).sum();
            (!all.is_empty()).then(|| (logs / all.len() as f64).exp())
        };
        let name = group.map_or("all rows", Group::name);
        text += &format!(
            "| **{name}**, geometric mean |{} **{}** | {} | {} |\n",
            " |".repeat(columns),
            ratio(mean(0), 2, "-"),
            ratio(mean(1), 2, "-"),
            ratio(mean(2), 1, "-")
        );
    }
    text
}

fn failures(lines: &[Line]) -> String {
    let failed: Vec<_> = lines.iter().filter_map(|l| Some((l.name, l.failed.as_ref()?))).collect();
    if failed.is_empty() {
        return "\nAll programs ended with status 0 and printed the same in all columns.\n".into();
    }
    let mut text = format!("\n{} of {} rows failed and are in no mean:\n\n", failed.len(), lines.len());
    // One cause, such as a guest that stopped, is told once.
    let mut causes: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, why) in failed {
        match causes.iter_mut().find(|(other, _)| other == why) {
            Some((_, names)) => names.push(name),
            None => causes.push((why, vec![name])),
        }
    }
    for (why, names) in causes {
        text += &format!("- {}: {why}\n", names.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fails_by_status_or_by_another_checksum() {
        let done = |sum: &str| Outcome::Done { seconds: 1.0, cpu: None, sum: sum.into() };
        let (a, b, failed) = (done("1 2"), done("3 4"), Outcome::Failed("status 1".into()));
        let names = ["ours", "TCG", "native"];
        assert_eq!(failure(&names, &[Some(&a), None, Some(&a)]), None);
        assert_eq!(failure(&names, &[Some(&a), Some(&failed), Some(&a)]).as_deref(), Some("TCG: status 1"));
        let differs = failure(&names, &[Some(&a), Some(&a), Some(&b)]);
        assert_eq!(differs.as_deref(), Some("output differs: ours 1 2, native 3 4"));
    }

    #[test]
    fn ratios_are_of_rows_that_all_columns_finished() {
        let done = |seconds| Outcome::Done { seconds, cpu: Some(seconds / 2.0), sum: String::new() };
        let (ours, tcg, native) = (done(2.0), done(6.0), done(0.5));
        let outcomes = vec![Some(&ours), Some(&tcg), Some(&native)];
        let mut line = Line { name: "x", group: Group::Float, outcomes, failed: None };
        assert_eq!(line.ratios(Some(2)), [Some(3.0), Some(3.0), Some(4.0)]);
        line.failed = Some("status 1".into());
        assert_eq!(line.ratios(Some(2)), [None; 3]);
    }
}
