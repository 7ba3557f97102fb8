//! `cargo x bench`: single parts, and real programs in a Debian guest under Trimaran and under QEMU's TCG, and natively.

mod column;
mod data;
mod features;
mod memory;
mod packages;
mod parts;
mod programs;
mod qemu;
mod report;
mod stress;
mod tree;

use anyhow::{Context, Result, bail};
use clap::Args;
use column::{Column, Results};
pub use parts::parts;
use std::path::{Path, PathBuf};
pub use stress::{Options as StressOptions, stress};

#[derive(Args)]
pub struct Options {
    /// Trimaran's engine
    #[arg(long, default_value = "jit")]
    engine: String,
    /// More options for Trimaran, such as --with=--cpu=486
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    with: Vec<String>,
    /// Only rows whose name contains one of these
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// A fifth of the work
    #[arg(long)]
    quick: bool,
    /// One more column: QEMU with all that its TCG has (-cpu max)
    #[arg(long)]
    max_column: bool,
    /// Every column so many times, in turns; the best time of a row counts
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// This program instead of a fresh release build
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// What every column runs.
pub struct Job {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// The same programs and script for chroot.
    pub tree: PathBuf,
    /// Rows that the script runs, in its order.
    pub rows: Vec<&'static programs::Row>,
}

pub fn guests(root: &Path, options: &Options) -> Result<()> {
    let folder = root.join(".cache/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let job = prepare(root, &folder, rows(&options.only)?, options.quick)?;
    let trimaran = match &options.binary {
        Some(file) => file.clone(),
        None => build(root)?,
    };
    let mut columns = vec![Column::trimaran(&options.engine, &options.with, &trimaran, &job)];
    let qemu = qemu::find(&folder)?;
    columns.push(Column::qemu("TCG", &qemu, qemu::SAME_CPU, &job));
    if options.max_column {
        columns.push(Column::qemu("TCG max", &qemu, "max", &job));
    }
    match Column::native(&job) {
        Ok(native) => columns.push(native),
        Err(why) => println!("native column skipped: {why:#}"),
    }
    let mut results: Vec<Results> = columns.iter().map(|_| Results::default()).collect();
    for run in 1..=options.runs {
        for (column, results) in columns.iter().zip(&mut results) {
            println!("{}, run {run} of {}", column.name, options.runs);
            results.merge(column.measure(&job.rows)?);
        }
    }
    let text = report::markdown(&report::Head::new(root, options, &qemu), &columns, &results, &job.rows);
    let file = folder.join(format!("{}.md", report::date("+%Y-%m-%d-%H%M%S")));
    std::fs::write(&file, &text).with_context(|| format!("{}: cannot be written", file.display()))?;
    println!("\n{text}\nwritten to {}", file.display());
    Ok(())
}

/// The rows whose name contains one of these.
fn rows(only: &[String]) -> Result<Vec<&'static programs::Row>> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|part| name.contains(part.as_str()));
    let rows: Vec<_> = programs::ROWS.iter().filter(|row| wanted(row.name)).collect();
    if rows.is_empty() && !wanted(programs::BOOT) {
        let names: Vec<_> = programs::ROWS.iter().map(|row| row.name).collect();
        bail!("--only {}: no such row; there are {}", only.join(","), names.join(", "));
    }
    Ok(rows)
}

/// What every column runs, made ready in `folder`.
fn prepare(root: &Path, folder: &Path, rows: Vec<&'static programs::Row>, quick: bool) -> Result<Job> {
    let guests = crate::guests::folder(root);
    let kernel = guests.join("vmlinuz");
    let busybox = guests.join("bin/busybox");
    if !kernel.exists() || !busybox.exists() {
        crate::guests::fetch(root)?;
    }
    for (file, package) in [(&kernel, "linux-image-amd64"), (&busybox, "busybox-static")] {
        if !file.exists() {
            bail!("{}: missing, and Debian package {package} could not be fetched", file.display());
        }
    }
    let packages = packages::unpacked(folder)?;
    let tree = tree::build(folder, &packages, &busybox)?;
    tree::script(&tree, &rows, quick)?;
    let initrd = tree::archive(folder, &tree, &busybox)?;
    Ok(Job { kernel, initrd, tree, rows })
}

fn build(root: &Path) -> Result<PathBuf> {
    crate::cargo(root, &["build", "--release", "--package", "trimaran"], &[])?;
    Ok(crate::target(root).join("release/trimaran"))
}
