//! `cargo x`: the one door to Trimaran's checks.

mod bench;
mod guests;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Parser)]
#[command(name = "cargo x", about = "Trimaran's checks", version)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Formatting and clippy, warnings denied
    Check,
    /// All tests; guests come from Debian packages
    Test {
        /// Run the long proofs whole: installers, soaks, millions of cases
        #[arg(long)]
        long: bool,
        /// Seed of the random testers
        #[arg(long)]
        seed: Option<u64>,
        /// About how many minutes each random tester may take with --long
        #[arg(long, default_value_t = 5)]
        minutes: u64,
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Measure
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Take the translator's region snapshots (jit/tests/regions) as they are now
    Bless,
    /// Fetch the guests that tests boot (Debian packages) into .cache/guests
    Guests,
}

#[derive(Subcommand)]
enum Bench {
    /// Real programs in a Debian guest: Trimaran, QEMU's TCG, and natively, in one table
    Guests(bench::Options),
    /// Code that rewrites itself, changes of CR3, two processors, host memory: Trimaran and QEMU's TCG
    Stress(bench::StressOptions),
    /// Single parts of processor and translator: decoding, translating, the TLB, transitions
    Parts {
        /// Only measurements whose name contains this
        only: Option<String>,
    },
    /// The same small programs natively, on the interpreter, the translator and KVM
    Engines,
}

fn main() -> Result<()> {
    let root = root()?;
    match Args::parse().task {
        Task::Check => {
            cargo(&root, &["fmt", "--all", "--check"], &[])?;
            cargo(&root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])
        }
        Task::Bench { what: Bench::Guests(options) } => bench::guests(&root, &options),
        Task::Bench { what: Bench::Stress(options) } => bench::stress(&root, &options),
        Task::Bench { what: Bench::Engines } => {
            cargo(&root, &["bench", "-p", "trimaran-accel", "--bench", "engines"], &[])
        }
        Task::Bench { what: Bench::Parts { only } } => bench::parts(&root, only.as_deref()),
        Task::Bless => cargo(
            &root,
            &["test", "-p", "trimaran-jit", "--test", "regions"],
            &[("TRIMARAN_BLESS".into(), "1".into())],
        ),
        Task::Guests => guests::fetch(&root).map(|missing| {
            for package in missing {
                println!("skipped: Debian package {package} could not be fetched");
            }
        }),
        Task::Test { long, seed, minutes, filter } => test(&root, long, seed, minutes, filter.as_deref()),
    }
}

fn test(root: &Path, long: bool, seed: Option<u64>, minutes: u64, filter: Option<&str>) -> Result<()> {
    for package in guests::fetch(root)? {
        println!("skipped: guests of Debian package {package}, which could not be fetched");
    }
    let mut env = vec![("TRIMARAN_GUESTS".to_owned(), guests::folder(root).display().to_string())];
    if let Some(seed) = seed {
        env.push(("TRIMARAN_SEED".into(), seed.to_string()));
    }
    if long {
        env.push(("TRIMARAN_LONG".into(), "1".into()));
        // About 100,000 sequences a second and core.
        env.push(("TRIMARAN_CASES".into(), (minutes * 1_000_000).to_string()));
        env.push(("TRIMARAN_FUZZ_ACCESSES".into(), (minutes * 4_000_000).to_string()));
    }
    if !long {
        let mut arguments = vec!["test", "--workspace", "--no-fail-fast"];
        arguments.extend(filter.iter().flat_map(|f| ["--", f]));
        cargo(root, &arguments, &env)?;
        if filter.is_none() {
            for (engine, step) in OTHER_ENGINES {
                run_step(root, engine, step, &env)?;
            }
        }
        return Ok(());
    }
    long_steps(root, &env, seed)
}

/// The long run, step by step. Steps that passed for this commit and seed are noted in `.cache/long` and not run
/// again, so that an interrupted run goes on where it was.
fn long_steps(root: &Path, env: &[(String, String)], seed: Option<u64>) -> Result<()> {
    let head = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root).output();
    let head = head.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    let folder = root.join(".cache/long");
    std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let done = folder.join(format!("{head}-{}", seed.unwrap_or(0)));
    let mut passed = std::fs::read_to_string(&done).unwrap_or_default();
    for (engine, step) in LONG_STEPS.iter().chain(OTHER_ENGINES) {
        let name = format!("{engine}: {step}");
        if passed.lines().any(|line| line == name) {
            println!("passed before: {name} (delete {} to run it again)", done.display());
            continue;
        }
        run_step(root, engine, step, env)?;
        passed += &format!("{name}\n");
        std::fs::write(&done, &passed).with_context(|| format!("{}: cannot be written", done.display()))?;
    }
    Ok(())
}

/// What to run, and on which engine (`TRIMARAN_ENGINE`). Quick ones first.
const LONG_STEPS: &[(&str, &str)] = &[
    ("jit", "-p trimaran-devices"),
    ("jit", "-p trimaran-cpu"),
    ("jit", "-p trimaran-jit --features arm64"),
    ("jit", "-p trimaran-machine"),
    ("jit", "-p trimaran"),
    ("jit", "-p trimaran-testsuites --test system"),
    ("jit", "-p trimaran-testsuites --test sst286"),
    ("jit", "-p trimaran-testsuites --test hostile"),
    ("jit", "-p trimaran-testsuites --test switching --test lockstep"),
    ("jit", "-p trimaran-testsuites --test guests"),
    ("jit", "-p trimaran-testsuites --test differential"),
    ("jit", "-p trimaran-testsuites --test litmus"),
    ("jit", "-p trimaran-testsuites --test fuzz"),
    ("jit", "-p trimaran-testsuites --test fuzz_targets"),
    ("jit", "-p trimaran-testsuites --test faults"),
    // Its coverage is worth reading.
    ("jit", "-p trimaran-testsuites --test silicon -- --nocapture"),
];

/// Tests that run again on another engine than the usual one.
const OTHER_ENGINES: &[(&str, &str)] = &[
    ("interp", "-p trimaran-testsuites --test system"),
    ("jit-cranelift", "-p trimaran-testsuites --test system"),
    ("interp", "-p trimaran-testsuites --test guests -- serial"),
];

fn run_step(root: &Path, engine: &str, step: &str, env: &[(String, String)]) -> Result<()> {
    let mut env = env.to_vec();
    env.push(("TRIMARAN_ENGINE".into(), engine.into()));
    // A case there is a program of thousands of instructions, on all tiers; or there are so many for each of 600 forms.
    let dearer = [("differential", 100), ("fuzz", 2000), ("trimaran-cpu", 50)]
        .into_iter()
        .find(|(test, _)| step.contains(test));
    if let Some((_, times)) = dearer
        && let Some((_, value)) = env.iter_mut().find(|(name, _)| name == "TRIMARAN_CASES")
    {
        *value = (value.parse::<u64>().unwrap_or_default() / times).to_string();
    }
    println!("engine {engine}:");
    let arguments: Vec<&str> = ["test"].into_iter().chain(step.split(' ')).collect();
    cargo(root, &arguments, &env)
}

/// Runs cargo. What tests print of their failures is said again at the end, where a long log is looked at first.
fn cargo(root: &Path, arguments: &[&str], env: &[(String, String)]) -> Result<()> {
    println!("$ cargo {}", arguments.join(" "));
    let mut child = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .envs(env.iter().cloned())
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo cannot be started")?;
    let failures = child.stdout.take().map(|out| tell(BufReader::new(out))).unwrap_or_default();
    if !child.wait().context("cargo cannot be waited for")?.success() {
        bail!("cargo {} failed\n{}", arguments.join(" "), failures.join("\n"));
    }
    Ok(())
}

/// Lines of failures that are kept.
const MOST_FAILURES: usize = 400;

/// Prints what comes; from "failures:" to "test result:" it is also returned.
fn tell(out: impl BufRead) -> Vec<String> {
    let (mut kept, mut within) = (Vec::new(), false);
    for line in out.split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        println!("{line}");
        within = (within || line == "failures:") && !line.starts_with("test result:");
        if within && kept.len() < MOST_FAILURES {
            kept.push(line);
        }
    }
    kept
}

/// Where cargo builds.
fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |t| root.join(t))
}

fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask has no parent folder")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::tell;

    #[test]
    fn failures_are_kept() {
        let log = "test a ... ok\n\nfailures:\n---- b ----\nwhy\n\ntest result: FAILED. 1\ntest c ... ok\n";
        assert_eq!(tell(log.as_bytes()), ["failures:", "---- b ----", "why", ""]);
    }
}
