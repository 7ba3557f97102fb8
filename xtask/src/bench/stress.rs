//! `cargo x bench stress`: what programs in a guest do not show. Kernels that rewrite their own code or change CR3 all the time
//! (`benches/src/kernels.rs`), two processors against one, and what an idle machine takes of the host's memory.

use super::column::{Column, Outcome, Results};
use super::programs::{Group, Row};
use super::{memory, qemu, report};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args)]
pub struct Options {
    /// Trimaran's engine
    #[arg(long, default_value = "jit")]
    engine: String,
    /// Every measurement so many times; the best counts
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// This program instead of a fresh release build
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Two processes at once, each as long as a row of the big table.
const PARALLEL: &[Row] = &[
    Row::parallel("two Lua", Group::Integer, "lua5.4 /data/integers.lua 20"),
    Row::parallel(
        "two openssl",
        Group::Crypto,
        "i=0; while [ $i -lt 8 ]; do openssl dgst -sha512 /data/text; i=$((i+1)); done",
    ),
    Row::parallel("two xz", Group::Integer, "head -c 400k /data/text | xz -6 -T1 | cksum"),
];

pub fn stress(root: &Path, options: &Options) -> Result<()> {
    let folder = root.join(".cache/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let job = super::prepare(root, &folder, PARALLEL.iter().collect(), false)?;
    let trimaran = match &options.binary {
        Some(file) => file.clone(),
        None => super::build(root)?,
    };
    let qemu = qemu::find(&folder)?;
    let best = |column: &Column, rows: &[&Row]| -> Result<Results> {
        let mut results = Results::default();
        for _ in 0..options.runs {
            results.merge(column.measure(rows)?);
        }
        Ok(results)
    };
    let mut text = format!("{}, QEMU {}\n\n", report::host_cpu(), qemu.version);
    text += "| kernel | rounds | Trimaran, s | TCG, s | TCG/ours | rounds a second |\n|---|---:|---:|---:|---:|---:|\n";
    for (name, rounds) in kernels(root, &folder)? {
        let file = folder.join("kernels").join(&name);
        let ours = seconds(&best(&Column::kernel_here(&options.engine, &trimaran, &file), &[])?, &name)?;
        let tcg = seconds(&best(&Column::kernel_qemu(&qemu, &file), &[])?, &name)?;
        let each = rounds as f64 / ours;
        text += &format!("| {name} | {rounds} | {ours:.2} | {tcg:.2} | {:.2} | {each:.0} |\n", tcg / ours);
    }
    text +=
        "\n| two processes at once | Trimaran, 1 processor, s | 2, s | gain | TCG, 1, s | 2, s | gain |\n";
    text += "|---|---:|---:|---:|---:|---:|---:|\n";
    let mut columns = Vec::new();
    for cpus in ["1", "2"] {
        let with = [format!("--cpus={cpus}")];
        columns.push(best(&Column::trimaran(&options.engine, &with, &trimaran, &job), &job.rows)?);
    }
    for cpus in ["1", "2"] {
        let column = Column::qemu("TCG", &qemu, qemu::SAME_CPU, &job).processors(cpus);
        columns.push(best(&column, &job.rows)?);
    }
    for row in &job.rows {
        let times: Vec<f64> = columns.iter().map(|c| seconds(c, row.name)).collect::<Result<_>>()?;
        let (ours, tcg) = (times[0] / times[1], times[2] / times[3]);
        text += &format!(
            "| {} | {:.2} | {:.2} | {ours:.2} | {:.2} | {:.2} | {tcg:.2} |\n",
            row.name, times[0], times[1], times[2], times[3]
        );
    }
    let idle = memory::idle(&options.engine, &trimaran, &job.kernel, &small_initrd(root, &folder)?)?;
    text += &format!("\nAn idle Linux with 512 MB: {idle}\n");
    println!("\n{text}");
    Ok(())
}

/// The time of a row, in seconds.
fn seconds(results: &Results, name: &str) -> Result<f64> {
    match results.rows.get(name) {
        Some(Outcome::Done { seconds, .. }) => Ok(*seconds),
        Some(Outcome::Failed(why)) => bail!("{name}: {why}"),
        None => bail!("{name}: it printed no marker"),
    }
}

/// Writes the kernels; names and rounds.
fn kernels(root: &Path, folder: &Path) -> Result<Vec<(String, u64)>> {
    let to = folder.join("kernels");
    std::fs::create_dir_all(&to).with_context(|| format!("{}: cannot be made", to.display()))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["run", "--quiet", "--package", "trimaran-benches", "--bin", "kernels", "--"])
        .arg(&to)
        .current_dir(root)
        .output()
        .context("cargo cannot be started")?;
    if !out.status.success() {
        bail!("the kernels were not written: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    let text = String::from_utf8_lossy(&out.stdout);
    let line = |l: &str| l.split_once(' ').and_then(|(name, n)| Some((name.to_owned(), n.parse().ok()?)));
    Ok(text.lines().filter_map(line).collect())
}

/// Busybox alone, which says that it is there and then sleeps.
fn small_initrd(root: &Path, folder: &Path) -> Result<PathBuf> {
    const INIT: &str = "#!/bin/busybox sh\necho '@@ idle begin'\nexec /bin/busybox sleep 1000\n";
    let tree = folder.join("idle");
    let busybox = crate::guests::folder(root).join("bin/busybox");
    std::fs::create_dir_all(tree.join("bin")).with_context(|| format!("{}", tree.display()))?;
    super::tree::copy(&busybox, &tree.join("bin/busybox"))?;
    super::tree::executable(&tree.join("init"), INIT)?;
    let to = folder.join("idle-initrd");
    std::fs::create_dir_all(&to).with_context(|| format!("{}", to.display()))?;
    super::tree::archive(&to, &tree, &busybox)
}
