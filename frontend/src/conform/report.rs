//! What `trimaran conform` says: as text, Markdown, JSON, and a page that one would publish.

use anyhow::{Context, bail};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use trimaran_testsuites::conform::{Setup, Suite, UnitReport};

/// Failed cases of one cell that are printed; the files have all.
const SHOWN: usize = 5;

/// What came of a suite on an engine.
#[derive(Clone, Debug, Serialize)]
pub enum Cell {
    Ran(UnitReport),
    /// Why not.
    Skipped(String),
}

#[derive(Serialize)]
struct Row {
    suite: &'static str,
    description: &'static str,
    /// By engine.
    cells: BTreeMap<String, Cell>,
}

/// See the head of this file.
#[derive(Serialize)]
pub struct Report {
    version: &'static str,
    host: String,
    /// When it was begun, in UTC.
    date: String,
    setup: Setup,
    engines: Vec<String>,
    rows: Vec<Row>,
}

/// A file's name that tells in which form the report is.
pub fn parse_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|end| end.to_str()) {
        Some("html" | "md" | "json") => Ok(path),
        _ => Err("a report's name ends with .html, .md or .json".into()),
    }
}

/// One line about a cell.
pub fn line(suite: &str, engine: &str, cell: &Cell) -> String {
    format!("{suite:14}{engine:16}{}", words(cell))
}

fn words(cell: &Cell) -> String {
    let report = match cell {
        Cell::Skipped(why) => return format!("skipped: {why}"),
        Cell::Ran(report) => report,
    };
    let mut text = format!("{} passed", report.passed);
    if !report.failed.is_empty() {
        let _ = write!(text, ", {} FAILED", report.failed.len());
    }
    for (why, count) in &report.skipped {
        let _ = write!(text, ", {count} skipped ({why})");
    }
    if let Some(forms) = forms(report) {
        let _ = write!(text, "; {forms}");
    }
    text
}

/// How many instruction forms there were, and in how few cases the rarest stood.
fn forms(report: &UnitReport) -> Option<String> {
    let (rarest, cases) = report.rarest()?;
    Some(format!(
        "{} instruction forms, each in {cases} cases or more ({rarest} the rarest)",
        report.forms.len()
    ))
}

/// As few words as fit a table.
fn short(cell: &Cell) -> String {
    match cell {
        Cell::Skipped(_) => "skipped".into(),
        Cell::Ran(report) => {
            let skipped: u64 = report.skipped.values().sum();
            format!("{} / {} / {skipped}", report.passed, report.failed.len())
        }
    }
}

fn failures(cell: &Cell) -> &[trimaran_testsuites::conform::Failed] {
    match cell {
        Cell::Ran(report) => &report.failed,
        Cell::Skipped(_) => &[],
    }
}

/// The host's processor and system.
fn host() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processor = model.map_or(std::env::consts::ARCH, |(_, name)| name);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{processor}, {} {}", std::env::consts::OS, kernel.trim())
}

/// Year, month, day, hours and minutes of a time since 1970 (Howard Hinnant's "days from civil", backwards).
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let minutes = seconds / 60 % 1_440;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

impl Report {
    pub fn new(engines: &[String], setup: &Setup) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Report {
            version: env!("CARGO_PKG_VERSION"),
            host: host(),
            date: date(now.as_secs()),
            setup: setup.clone(),
            engines: engines.to_vec(),
            rows: Vec::new(),
        }
    }

    pub fn add(&mut self, suite: &Suite, engine: &str, cell: Cell) {
        if self.rows.last().is_none_or(|row| row.suite != suite.name) {
            let (suite, description) = (suite.name, suite.description);
            self.rows.push(Row { suite, description, cells: BTreeMap::new() });
        }
        if let Some(row) = self.rows.last_mut() {
            row.cells.insert(engine.into(), cell);
        }
    }

    fn cells(&self) -> impl Iterator<Item = (&Row, &str, &Cell)> + Clone {
        self.rows
            .iter()
            .flat_map(|row| row.cells.iter().map(move |(engine, cell)| (row, engine.as_str(), cell)))
    }

    pub fn failed(&self) -> usize {
        self.cells().map(|(_, _, cell)| failures(cell).len()).sum()
    }

    /// Why nothing was run at all, if so.
    pub fn nothing_ran(&self) -> Option<String> {
        let mut cells = self.cells().map(|(_, _, cell)| cell);
        if cells.clone().any(|cell| matches!(cell, Cell::Ran(_))) {
            return None;
        }
        Some(cells.next().map_or("nothing was to be run".into(), words))
    }

    /// The command that runs one case again.
    fn command(&self, suite: &str, engine: &str, case: &str) -> String {
        let vectors = match &self.setup.vectors {
            Some(folder) if suite == "vectors" => format!(" --vectors {}", folder.display()),
            _ => String::new(),
        };
        format!("trimaran conform --engine {engine} --case {suite}/{case}{vectors}")
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{:14}", "");
        self.engines.iter().for_each(|engine| _ = write!(text, "{engine:>26}"));
        text += "   passed / failed / skipped\n";
        for row in &self.rows {
            let _ = write!(text, "{:14}", row.suite);
            for engine in &self.engines {
                let _ = write!(text, "{:>26}", row.cells.get(engine).map_or(String::new(), short));
            }
            text.push('\n');
        }
        for (row, engine, cell) in self.cells() {
            let failed = failures(cell);
            for case in failed.iter().take(SHOWN) {
                let command = self.command(row.suite, engine, &case.case);
                let _ = write!(
                    text,
                    "\n{}/{} on {engine}:\n{}\n  again: {command}\n",
                    row.suite, case.case, case.text
                );
            }
            if failed.len() > SHOWN {
                let _ = writeln!(text, "\nand {} more of {} on {engine}", failed.len() - SHOWN, row.suite);
            }
        }
        text
    }

    /// How often each instruction form was met, on all engines together.
    fn coverage(&self) -> BTreeMap<&str, u64> {
        let mut sums = BTreeMap::new();
        for (_, _, cell) in self.cells() {
            if let Cell::Ran(report) = cell {
                report
                    .forms
                    .iter()
                    .for_each(|(form, count)| *sums.entry(form.as_str()).or_default() += count);
            }
        }
        sums
    }

    /// Why instruction forms are never drawn, and which.
    fn left_out(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut reasons: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (_, _, cell) in self.cells() {
            if let Cell::Ran(report) = cell {
                for (form, why) in &report.left_out {
                    reasons.entry(why).or_default().insert(form);
                }
            }
        }
        reasons
    }

    fn markdown(&self) -> String {
        let mut text = format!("# Trimaran {}: conformance\n\n{}, {}. ", self.version, self.host, self.date);
        let _ = writeln!(text, "First seed {}. Passed / failed / skipped.\n", self.setup.seed);
        let _ = writeln!(text, "| suite | {} | what it is |", self.engines.join(" | "));
        let _ = writeln!(text, "|---|{}---|", "---|".repeat(self.engines.len()));
        for row in &self.rows {
            let cells = self.engines.iter().map(|engine| row.cells.get(engine).map_or(String::new(), short));
            let cells: Vec<String> = cells.collect();
            let _ = writeln!(text, "| {} | {} | {} |", row.suite, cells.join(" | "), row.description);
        }
        text += "\n";
        for (row, engine, cell) in self.cells() {
            let _ = writeln!(text, "- {} on {engine}: {}", row.suite, words(cell));
        }
        let met = self.coverage().values().filter(|&&count| count > 0).count();
        let _ = writeln!(text, "\n{met} instruction forms were met.\n");
        for (why, forms) in self.left_out() {
            let names: Vec<_> = forms.into_iter().collect();
            let _ = writeln!(text, "- never drawn ({}), {why}: {}", names.len(), names.join(" "));
        }
        for (row, engine, cell) in self.cells() {
            for case in failures(cell) {
                let command = self.command(row.suite, engine, &case.case);
                let _ = write!(
                    text,
                    "\n## {}/{} on {engine}\n\n```\n{}\n{command}\n```\n",
                    row.suite, case.case, case.text
                );
            }
        }
        text
    }

    /// One page without anything from elsewhere.
    fn html(&self) -> String {
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<title>Trimaran {0}: conformance</title>\n<style>{STYLE}\
             </style>\n</head>\n<body>\n<h1>Trimaran {0}: conformance</h1>\n<p>{1}<br>{2}, first seed {3}</p>\n",
            escape(self.version),
            escape(&self.host),
            escape(&self.date),
            self.setup.seed
        );
        let failed = self.failed();
        let passed: u64 = self
            .cells()
            .filter_map(|(_, _, cell)| matches!(cell, Cell::Ran(_)).then_some(cell))
            .map(passed)
            .sum();
        let _ = writeln!(
            page,
            "<p class=\"{}\">{passed} cases passed, {failed} failed.</p>",
            if failed == 0 { "good" } else { "bad" }
        );
        self.html_table(&mut page);
        self.html_failures(&mut page);
        self.html_coverage(&mut page);
        page += "</body>\n</html>\n";
        page
    }

    fn html_table(&self, page: &mut String) {
        *page += "<table>\n<tr><th>suite</th>";
        self.engines.iter().for_each(|engine| _ = write!(page, "<th>{}</th>", escape(engine)));
        *page += "</tr>\n";
        for row in &self.rows {
            let _ = write!(
                page,
                "<tr><td><b>{}</b><br><small>{}</small></td>",
                row.suite,
                escape(row.description)
            );
            for engine in &self.engines {
                match row.cells.get(engine) {
                    None => *page += "<td></td>",
                    Some(Cell::Skipped(why)) => {
                        let _ =
                            write!(page, "<td class=\"none\">not run<br><small>{}</small></td>", escape(why));
                    }
                    Some(Cell::Ran(report)) => {
                        let failed = report.failed.len();
                        let class = if failed == 0 { "good" } else { "bad" };
                        let _ = write!(page, "<td class=\"{class}\">{} passed", report.passed);
                        if failed != 0 {
                            let _ = write!(page, "<br>{failed} failed");
                        }
                        for (why, count) in &report.skipped {
                            let _ = write!(page, "<br><small>{count} skipped: {}</small>", escape(why));
                        }
                        if let Some(forms) = forms(report) {
                            let _ = write!(page, "<br><small>{}</small>", escape(&forms));
                        }
                        *page += "</td>";
                    }
                }
            }
            *page += "</tr>\n";
        }
        *page += "</table>\n";
    }

    fn html_failures(&self, page: &mut String) {
        if self.failed() != 0 {
            *page += "<h2>Failed cases</h2>\n";
        }
        for (row, engine, cell) in self.cells() {
            for case in failures(cell) {
                let command = escape(&self.command(row.suite, engine, &case.case));
                let (id, text) = (escape(&case.case), escape(&case.text));
                let _ = writeln!(
                    page,
                    "<details><summary>{}/{id} on {engine}</summary><pre>{text}\n\n{command}</pre></details>",
                    row.suite
                );
            }
        }
    }

    fn html_coverage(&self, page: &mut String) {
        let coverage = self.coverage();
        if coverage.is_empty() {
            return;
        }
        let _ = writeln!(
            page,
            "<h2>Coverage</h2>\n<p>{} instruction forms, by their names in iced-x86, and in how many cases each stood.</p>\n\
             <ul class=\"forms\">",
            coverage.len()
        );
        for (form, count) in coverage {
            let _ = writeln!(page, "<li>{} <i>{count}</i></li>", escape(form));
        }
        *page += "</ul>\n";
        for (why, forms) in self.left_out() {
            let names: Vec<_> = forms.iter().map(|form| escape(form)).collect();
            let _ = writeln!(
                page,
                "<details><summary>never drawn ({}): {}</summary><p>{}</p></details>",
                names.len(),
                escape(why),
                names.join(" ")
            );
        }
    }

    /// Writes a file in the form that its name tells.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = match path.extension().and_then(|end| end.to_str()) {
            Some("html") => self.html(),
            Some("md") => self.markdown(),
            Some("json") => serde_json::to_string_pretty(self)? + "\n",
            _ => bail!("{}: no report has this form", path.display()),
        };
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn passed(cell: &Cell) -> u64 {
    match cell {
        Cell::Ran(report) => report.passed,
        Cell::Skipped(_) => 0,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 70em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em }
table { border-collapse: collapse; width: 100% } th, td { border: 1px solid #ccc; padding: .5em .7em; text-align: left; vertical-align: top }
th { background: #f3f3f3 } small { color: #555 } td.good { background: #e9f6ec } td.bad { background: #fbe9e7 } td.none { background: #f7f7f7 }
p.good { color: #1b7a34; font-weight: 600 } p.bad { color: #b3261e; font-weight: 600 }
details { margin: .3em 0 } summary { cursor: pointer } pre { background: #f6f6f6; padding: .7em; overflow-x: auto; font-size: .85em }
ul.forms { columns: 16em; list-style: none; padding: 0; font: .8em/1.5 monospace } ul.forms i { color: #777; font-style: normal }
";

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_testsuites::conform::{Failed, SUITES};

    fn report() -> Report {
        let mut report =
            Report::new(&["interp".into(), "jit-emit".into()], &Setup { seed: 7, ..Setup::default() });
        let failed =
            vec![Failed { case: "12".into(), text: "    00 c0    add al, al\n  RAX: <want> 1".into() }];
        let forms = BTreeMap::from([("Add_rm8_r8".to_owned(), 3), ("Sub_rm8_r8".to_owned(), 0)]);
        let skipped = BTreeMap::from([("not here".to_owned(), 2)]);
        let left_out = BTreeMap::from([("Rdpmc".to_owned(), "its kernel decides".to_owned())]);
        let ran = UnitReport { passed: 9, failed, forms, skipped, left_out };
        report.add(&SUITES[0], "interp", Cell::Ran(ran));
        report.add(&SUITES[0], "jit-emit", Cell::Skipped("no <such> thing".into()));
        report
    }

    #[test]
    fn a_failure_is_in_every_form() {
        let report = report();
        assert_eq!(report.failed(), 1);
        let again = format!("trimaran conform --engine interp --case {}/12", SUITES[0].name);
        let json = serde_json::to_string(&report).expect("JSON");
        for text in [report.text(), report.markdown(), report.html()] {
            assert!(text.contains(&again) && text.contains("add al, al"), "{text}");
            assert!(text.contains("interp") && text.contains("jit-emit"), "{text}");
        }
        assert!(json.contains("add al, al") && json.contains("no <such> thing"), "{json}");
    }

    #[test]
    fn forms_are_counted() {
        let report = report();
        let line = line("silicon", "interp", &report.rows[0].cells["interp"]);
        assert!(
            line.ends_with("2 instruction forms, each in 0 cases or more (Sub_rm8_r8 the rarest)"),
            "{line}"
        );
        let markdown = report.markdown();
        assert!(markdown.contains("\n1 instruction forms were met."), "{markdown}");
        for text in [markdown, report.html()] {
            assert!(text.contains("its kernel decides") && text.contains("Rdpmc"), "{text}");
            assert!(text.contains("each in 0 cases or more (Sub_rm8_r8 the rarest)"), "{text}");
        }
    }

    #[test]
    fn the_page_stands_alone() {
        let page = report().html();
        assert!(page.contains("no &lt;such&gt; thing") && page.contains("&lt;want&gt;"), "{page}");
        assert!(page.contains("Add_rm8_r8 <i>3</i>") && page.contains("2 skipped: not here"), "{page}");
        assert!(!page.contains("http") && !page.contains("<script"), "{page}");
        for tag in ["table", "tr", "td", "details", "ul", "p"] {
            let count = |text: &str| page.matches(text).count();
            let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
            assert_eq!(opened, count(&format!("</{tag}>")), "{tag}");
        }
    }

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(date(1_795_388_640), "2026-11-22 23:04 UTC");
    }

    #[test]
    fn names_tell_the_form() {
        assert!(parse_path("a/b.html").is_ok() && parse_path("x.md").is_ok() && parse_path("x.json").is_ok());
        assert!(parse_path("x.txt").is_err() && parse_path("html").is_err());
    }
}
