//! `cargo x`: the one door to Trimaran's checks.

mod bench;
mod guests;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::Command;

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
    /// Fetch the guests that tests boot (Debian packages) into .cache/guests
    Guests,
}

#[derive(Subcommand)]
enum Bench {
    /// Real programs in a Debian guest: Trimaran, QEMU's TCG, and natively, in one table
    Guests(bench::Options),
}

fn main() -> Result<()> {
    let root = root()?;
    match Args::parse().task {
        Task::Check => {
            cargo(&root, &["fmt", "--all", "--check"], &[])?;
            cargo(&root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])
        }
        Task::Bench { what: Bench::Guests(options) } => bench::guests(&root, &options),
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
        return cargo(root, &arguments, &env);
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
    for step in LONG_STEPS {
        if passed.lines().any(|line| line == *step) {
            println!("passed before: cargo test {step} (delete {} to run it again)", done.display());
            continue;
        }
        let arguments: Vec<&str> = ["test"].into_iter().chain(step.split(' ')).collect();
        cargo(root, &arguments, env)?;
        passed += &format!("{step}\n");
        std::fs::write(&done, &passed).with_context(|| format!("{}: cannot be written", done.display()))?;
    }
    Ok(())
}

/// Quick ones first.
const LONG_STEPS: &[&str] = &[
    "-p trimaran-devices",
    "-p trimaran-cpu",
    "-p trimaran-machine",
    "-p trimaran",
    "-p trimaran-testsuites --test system",
    "-p trimaran-testsuites --test sst286",
    "-p trimaran-testsuites --test hostile",
    "-p trimaran-testsuites --test guests",
    "-p trimaran-testsuites --test silicon",
];

fn cargo(root: &Path, arguments: &[&str], env: &[(String, String)]) -> Result<()> {
    println!("$ cargo {}", arguments.join(" "));
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .envs(env.iter().cloned())
        .current_dir(root)
        .status()
        .context("cargo cannot be started")?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}

fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask has no parent folder")?.to_owned())
}
