//! `trimaran conform`: the suites that are built in, on the engines, with a report.

mod children;
mod report;

use crate::{Failure, status};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use report::{Cell, Report};
use std::ffi::OsString;
use std::io::{stdin, stdout};
use std::path::PathBuf;
use std::time::Duration;
use trimaran_testsuites::conform::{self, ENGINES, SUITES, Setup, Suite};
use trimaran_testsuites::engine;

/// Run the built-in conformance suites and say what passed
#[derive(Clone, Debug, Parser)]
#[command(name = "trimaran conform", version, override_usage = "trimaran conform [OPTIONS]")]
struct Options {
    /// Only this engine: interp, jit-emit, jit-cranelift, jit-all, jit, or kvm; may be given several times
    #[arg(long, value_name = "ENGINE", value_parser = parse_engine)]
    engine: Vec<String>,
    /// Only this suite; may be given several times
    #[arg(long, value_name = "SUITE", value_parser = parse_suite)]
    suite: Vec<String>,
    /// Only this case, as a report names it: SUITE/CASE
    #[arg(long, value_name = "ID", conflicts_with = "suite")]
    case: Option<String>,
    /// The first seed of the suites whose cases are random
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// How many cases of each suite whose cases are random [default: each suite's own number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    cases: Option<u64>,
    /// A folder of vectors of SingleStepTests: 8088, 8086, 80286 or 80386
    #[arg(long, value_name = "DIR")]
    vectors: Option<PathBuf>,
    /// Write a report: .html (one page), .md or .json; may be given several times
    #[arg(long, value_name = "FILE", value_parser = report::parse_path)]
    report: Vec<PathBuf>,
    /// Say what there is, and run nothing
    #[arg(long)]
    list: bool,
    /// Seconds in which a group of cases must be done
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// How many processes work at once [default: one for each of the host's processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: Option<u64>,
    /// The child: runs units of this suite that come on stdin
    #[arg(long, hide = true, value_parser = parse_suite)]
    worker: Option<String>,
    /// What the child must know, as JSON
    #[arg(long, hide = true, default_value = "{}")]
    setup: String,
}

fn parse_suite(name: &str) -> Result<String, String> {
    let names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
    if names.contains(&name) { Ok(name.into()) } else { Err(format!("the suites are {}", names.join(", "))) }
}

fn parse_engine(name: &str) -> Result<String, String> {
    let name = if name == "jit" { *ENGINES.get(1).unwrap_or(&"jit") } else { name };
    if name == "kvm" {
        // Whether there is one, its cells say.
        return Ok(name.into());
    }
    let no = |_| format!("the engines are {}, jit-all", ENGINES.join(", "));
    engine::named(name).map_err(no).map(|_| name.to_owned())
}

/// Reads the command line behind `conform`.
pub fn main(arguments: Vec<OsString>) -> Result<i32, Failure> {
    let options = Options::parse_from(arguments);
    match &options.worker {
        Some(suite) => work(&options, suite),
        None if options.list => {
            print!("{}", list());
            Ok(status::POWERED_OFF)
        }
        None => run(&options),
    }
}

fn suite(name: &str) -> Result<&'static Suite, Failure> {
    SUITES
        .iter()
        .find(|suite| suite.name == name)
        .ok_or_else(|| Failure::Usage(format!("there is no suite `{name}`")))
}

fn work(options: &Options, name: &str) -> Result<i32, Failure> {
    conform::remember_panics();
    let setup: Setup = serde_json::from_str(&options.setup)?;
    let engine = options.engine.first().map_or("interp", String::as_str);
    conform::work(suite(name)?, engine, &setup, stdin().lock(), stdout().lock())
        .map_err(anyhow::Error::msg)?;
    Ok(status::POWERED_OFF)
}

fn list() -> String {
    let mut text = String::new();
    for suite in SUITES {
        let engines: Vec<&str> = ENGINES.iter().copied().filter(|engine| (suite.judges)(engine)).collect();
        let mut about = suite.description.to_owned();
        match (suite.units)(&Setup { seed: 1, ..Setup::default() }, engines.first().unwrap_or(&"interp")) {
            Ok(units) => about += &format!("; {} groups of cases", units.len()),
            Err(why) => about += &format!("; would be skipped: {why}"),
        }
        text += &format!("{:14}{about} ({})\n", suite.name, engines.join(", "));
    }
    text
}

/// What is to be run, from the options.
struct Plan {
    suites: Vec<&'static Suite>,
    engines: Vec<String>,
    setup: Setup,
}

fn plan(options: &Options) -> Result<Plan, Failure> {
    let Options { seed, cases, vectors, .. } = options.clone();
    let mut setup = Setup { seed, cases, vectors, case: None };
    let mut names = options.suite.clone();
    if let Some(id) = &options.case {
        let Some((name, case)) = id.split_once('/') else {
            return Err(Failure::Usage(format!("`{id}` is no case: reports name them SUITE/CASE")));
        };
        setup.case = Some(case.into());
        names = vec![name.into()];
    }
    let suites = match names.is_empty() {
        true => SUITES.iter().collect(),
        false => names.iter().map(|name| suite(name)).collect::<Result<_, _>>()?,
    };
    let all = || ENGINES.iter().map(|&name| name.to_owned()).collect();
    let engines = if options.engine.is_empty() { all() } else { options.engine.clone() };
    Ok(Plan { suites, engines, setup })
}

fn run(options: &Options) -> Result<i32, Failure> {
    let Plan { suites, engines, setup } = plan(options)?;
    let jobs =
        options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64));
    let mut report = Report::new(&engines, &setup);
    for suite in suites {
        for engine in &engines {
            let cell = if (suite.judges)(engine) {
                let named = !options.engine.is_empty();
                let judged = if named { Ok(()) } else { conform::by_default(engine) };
                match judged.and_then(|()| (suite.units)(&setup, engine)) {
                    Ok(units) => {
                        let bar = bar(suite, engine, units.len());
                        let job = children::Job {
                            suite,
                            engine,
                            setup: &setup,
                            limit: Duration::from_secs(options.timeout),
                        };
                        let result = children::run(&job, units, jobs as usize, &|| bar.inc(1))?;
                        bar.finish_and_clear();
                        Cell::Ran(result)
                    }
                    Err(why) => Cell::Skipped(why),
                }
            } else if engine == "kvm" {
                Cell::Skipped("it is for engines that count, or whose processor is the whole model".into())
            } else {
                Cell::Skipped("it is what the others are compared with".into())
            };
            println!("{}", report::line(suite.name, engine, &cell));
            report.add(suite, engine, cell);
        }
    }
    if options.case.is_some()
        && let Some(why) = report.nothing_ran()
    {
        return Err(Failure::Usage(why));
    }
    print!("\n{}", report.text());
    for path in &options.report {
        report.write(path)?;
    }
    Ok(if report.failed() == 0 { status::POWERED_OFF } else { status::DIFFERENT })
}

fn bar(suite: &Suite, engine: &str, units: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:28} {bar:40} {pos}/{len} {eta}");
    let bar = ProgressBar::new(units as u64).with_prefix(format!("{} on {engine}", suite.name));
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn planned(arguments: &[&str]) -> Result<Plan, Failure> {
        plan(&Options::parse_from([&["trimaran conform"], arguments].concat()))
    }

    #[test]
    fn options_make_sense() {
        Options::command().debug_assert();
        let all = planned(&[]).expect("a plan");
        assert_eq!((all.suites.len(), all.engines.len()), (SUITES.len(), ENGINES.len()));
        let one = planned(&["--case", "silicon/77", "--engine", "interp"]).expect("a plan");
        assert_eq!((one.suites[0].name, one.setup.case.as_deref()), ("silicon", Some("77")));
        assert_eq!(one.engines, ["interp"]);
        assert!(planned(&["--case", "77"]).is_err() && planned(&["--case", "no/77"]).is_err());
        assert!(parse_engine("warp").is_err() && parse_suite("none").is_err());
        assert_eq!(parse_engine("jit"), Ok(ENGINES[1].into()));
        assert!(SUITES.iter().all(|suite| list().contains(suite.name)));
    }
}
