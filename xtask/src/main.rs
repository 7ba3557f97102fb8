//! `cargo x`: the one door to Trimaran's checks.

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
    /// Fetch the guests that tests boot (Debian packages) into .cache/guests
    Guests,
}

fn main() -> Result<()> {
    let root = root()?;
    match Args::parse().task {
        Task::Check => {
            cargo(&root, &["fmt", "--all", "--check"], &[])?;
            cargo(&root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])
        }
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
    let mut arguments = vec!["test", "--workspace", "--no-fail-fast"];
    arguments.extend(filter.iter().flat_map(|f| ["--", f]));
    cargo(root, &arguments, &env)
}

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
