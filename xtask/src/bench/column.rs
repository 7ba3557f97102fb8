//! One column: a program that runs the script and prints marker lines, timed on this side as they arrive.

use super::programs::{BOOT, Row};
use super::{Job, qemu::Qemu};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

// Trimaran tells the kernel that page table isolation is not needed; TCG cannot, so it is off in both.
const APPEND: &str = "console=ttyS0 quiet panic=-1 nopti";
const MEMORY: &str = "1G";
/// A guest that prints nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(400);

pub struct Column {
    pub name: String,
    program: OsString,
    arguments: Vec<OsString>,
    environment: Option<(&'static str, OsString)>,
    /// Whether the time of the column's own threads says anything: natively the work is in child processes.
    guest: bool,
}

/// What one row did in one run.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Done {
        seconds: f64,
        /// Processor time of all the emulator's threads.
        cpu: Option<f64>,
        sum: String,
    },
    Failed(String),
}

/// What one column did.
#[derive(Default)]
pub struct Results {
    pub rows: BTreeMap<String, Outcome>,
    pub flags: String,
    pub vendor: String,
    pub kernel: String,
}

impl Results {
    /// The best of two runs; a failure stays one.
    pub fn merge(&mut self, other: Results) {
        for (name, new) in other.rows {
            let better = match (self.rows.get(&name), &new) {
                (None, _) | (Some(Outcome::Done { .. }), Outcome::Failed(_)) => true,
                (Some(Outcome::Failed(_)), _) => false,
                (Some(Outcome::Done { sum, .. }), Outcome::Done { sum: other, .. }) if sum != other => {
                    let why = "another checksum in another run".into();
                    self.rows.insert(name, Outcome::Failed(why));
                    continue;
                }
                (Some(Outcome::Done { seconds: old, .. }), Outcome::Done { seconds: new, .. }) => new < old,
            };
            if better {
                self.rows.insert(name, new);
            }
        }
        (self.flags, self.vendor, self.kernel) = (other.flags, other.vendor, other.kernel);
    }
}

impl Column {
    pub fn trimaran(engine: &str, more: &[String], program: &Path, job: &Job) -> Self {
        let options =
            ["run", "--engine", engine, "--memory", MEMORY, "--display", "none", "--serial", "stdio"];
        let mut arguments: Vec<OsString> = options.map(OsString::from).to_vec();
        arguments.push("--no-reboot".into());
        for (option, value) in [("--kernel", &job.kernel), ("--initrd", &job.initrd)] {
            arguments.extend([option.into(), value.into()]);
        }
        arguments.extend(["--append", APPEND, "--timeout", "3600"].map(OsString::from));
        arguments.extend(more.iter().map(OsString::from));
        Column {
            name: format!("Trimaran {engine}"),
            program: program.into(),
            arguments,
            environment: None,
            guest: true,
        }
    }

    pub fn qemu(name: &str, qemu: &Qemu, cpu: &str, job: &Job) -> Self {
        let mut arguments = qemu.arguments.clone();
        // The same board parts on both sides; no disk, no network, no screen.
        let options = ["-accel", "tcg", "-cpu", cpu, "-m", MEMORY, "-no-reboot", "-nodefaults"];
        arguments.extend(options.map(OsString::from));
        arguments.extend(["-display", "none", "-serial", "stdio", "-append", APPEND].map(OsString::from));
        for (option, value) in [("-kernel", &job.kernel), ("-initrd", &job.initrd)] {
            arguments.extend([option.into(), value.into()]);
        }
        let environment = qemu.modules.as_ref().map(|folder| ("QEMU_MODULE_DIR", folder.into()));
        Column {
            name: name.into(),
            program: qemu.program.clone().into(),
            arguments,
            environment,
            guest: true,
        }
    }

    /// Trimaran with a kernel that ends by port 0xF4.
    pub fn kernel_here(engine: &str, program: &Path, kernel: &Path) -> Self {
        let options =
            ["run", "--engine", engine, "--display", "none", "--serial", "stdio", "--debug-exit", "0xf4"];
        let mut arguments: Vec<OsString> = options.map(OsString::from).to_vec();
        arguments.extend(["--timeout".into(), "600".into(), "--kernel".into(), kernel.into()]);
        let name = format!("Trimaran {engine}");
        Column { name, program: program.into(), arguments, environment: None, guest: true }
    }

    /// QEMU with the same.
    pub fn kernel_qemu(qemu: &Qemu, kernel: &Path) -> Self {
        let mut arguments = qemu.arguments.clone();
        let options = ["-accel", "tcg", "-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio"];
        arguments.extend(options.map(OsString::from));
        arguments.extend(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel"].map(OsString::from));
        arguments.push(kernel.into());
        let environment = qemu.modules.as_ref().map(|folder| ("QEMU_MODULE_DIR", folder.into()));
        Column {
            name: "TCG".into(),
            program: qemu.program.clone().into(),
            arguments,
            environment,
            guest: true,
        }
    }

    /// QEMU with more processors.
    pub fn processors(mut self, count: &str) -> Self {
        self.arguments.extend(["-smp".into(), count.into()]);
        self
    }

    /// The same tree by chroot; an error where that is not possible.
    pub fn native(job: &Job) -> Result<Self> {
        let devices = [("null", "3"), ("zero", "5"), ("urandom", "9"), ("random", "8")];
        for (name, minor) in devices {
            let mut make = Command::new("mknod");
            make.arg(job.tree.join("dev").join(name)).args(["c", "1", minor]).stderr(Stdio::null());
            if !make.status().is_ok_and(|status| status.success()) {
                bail!("device files cannot be made in {}; it needs root", job.tree.display());
            }
        }
        let tried = Command::new("chroot").arg(&job.tree).arg("/usr/bin/true").status().context("chroot")?;
        if !tried.success() {
            bail!("chroot {} failed; it needs root", job.tree.display());
        }
        let arguments = vec![job.tree.clone().into(), "/usr/bin/sh".into(), "/bench.sh".into()];
        Ok(Column {
            name: "native".into(),
            program: "chroot".into(),
            arguments,
            environment: None,
            guest: false,
        })
    }

    pub fn measure(&self, rows: &[&Row]) -> Result<Results> {
        let start = Instant::now();
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .envs(self.environment.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        let results = self.listen(&mut child, start, rows);
        // It may have ended by itself.
        let _ = child.kill();
        child.wait()?;
        results
    }

    fn listen(&self, child: &mut Child, start: Instant, rows: &[&Row]) -> Result<Results> {
        let output = child.stdout.take().context("no output")?;
        let mut errors = child.stderr.take().context("no error output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        });
        let errors = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What could be read is what there is to show.
            let _ = std::io::Read::read_to_end(&mut errors, &mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let mut log = Log::new(start);
        let ended = loop {
            match lines.recv_timeout(SILENCE) {
                Ok((at, line)) => {
                    let cpu = if self.guest { cpu_seconds(child.id()) } else { None };
                    log.line(at, cpu, &line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    break format!("nothing printed for {} s", SILENCE.as_secs());
                }
                Err(RecvTimeoutError::Disconnected) => break "it ended".to_owned(),
            }
        };
        // Without this a program that hangs would keep its error output open.
        let _ = child.kill();
        let errors = errors.join().unwrap_or_default();
        let mut results = log.results;
        let names = rows.iter().map(|row| row.name).chain(self.guest.then_some(BOOT));
        for name in names {
            results.rows.entry(name.to_owned()).or_insert_with(|| {
                let error = errors.lines().find(|line| line.contains("error")).or(errors.lines().last());
                let last = error.or(log.tail.last().map(String::as_str)).unwrap_or("no output");
                Outcome::Failed(format!("not finished: {ended} ({last})"))
            });
        }
        Ok(results)
    }
}

/// Marker lines so far.
struct Log {
    results: Results,
    start: Instant,
    cpu: f64,
    tail: Vec<String>,
}

impl Log {
    fn new(start: Instant) -> Self {
        Log { results: Results::default(), start, cpu: 0.0, tail: Vec::new() }
    }

    fn line(&mut self, at: Instant, cpu: Option<f64>, line: &str) {
        let Some(marker) = line.find("@@ ").map(|at| &line[at + 3..]) else {
            self.tail.push(line.to_owned());
            return;
        };
        if let Some(flags) = marker.strip_prefix("cpu flags") {
            self.results.flags = flags.trim().to_owned();
        } else if let Some(vendor) = marker.strip_prefix("cpu vendor") {
            self.results.vendor = vendor.trim().to_owned();
        } else if let Some(kernel) = marker.strip_prefix("kernel ") {
            self.results.kernel = kernel.to_owned();
        } else if marker.ends_with(" begin") {
            (self.start, self.cpu) = (at, cpu.unwrap_or(0.0));
        } else if let Some((name, status)) = marker.split_once(" end status=") {
            let seconds = at.duration_since(self.start).as_secs_f64();
            let name = if name == "boot" { BOOT } else { name };
            println!("  {name}: {seconds:.2} s{}", if status == "0" { "" } else { ", failed" });
            let outcome = match status {
                "0" => Outcome::Done { seconds, cpu: cpu.map(|cpu| cpu - self.cpu), sum: String::new() },
                _ => Outcome::Failed(format!("status {status}")),
            };
            self.results.rows.insert(name.to_owned(), outcome);
        } else if let Some((name, text)) = marker.split_once(" sum ") {
            if let Some(Outcome::Done { sum, .. }) = self.results.rows.get_mut(name) {
                text.clone_into(sum);
            }
        } else if let Some((name, text)) = marker.split_once(" err ")
            && let Some(Outcome::Failed(why)) = self.results.rows.get_mut(name)
        {
            *why += &format!("; {text}");
        }
    }
}

/// Processor time of all threads of a process, or None where Linux does not tell.
fn cpu_seconds(process: u32) -> Option<f64> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{process}/task")).ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_become_rows() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut log = Log::new(start);
        log.line(at(2), Some(1.5), "[    1.0] noise @@ boot end status=0");
        log.line(at(3), Some(2.0), "@@ gzip -d begin");
        log.line(at(7), Some(4.0), "@@ gzip -d end status=0");
        log.line(at(7), None, "@@ gzip -d sum 1 2");
        log.line(at(8), None, "@@ bc begin");
        log.line(at(9), None, "@@ bc end status=127");
        log.line(at(9), None, "@@ bc err not found");
        let done = |seconds, cpu, sum: &str| Outcome::Done { seconds, cpu: Some(cpu), sum: sum.into() };
        assert_eq!(log.results.rows[BOOT], done(2.0, 1.5, ""));
        assert_eq!(log.results.rows["gzip -d"], done(4.0, 2.0, "1 2"));
        assert_eq!(log.results.rows["bc"], Outcome::Failed("status 127; not found".into()));
    }

    #[test]
    fn the_best_run_counts_and_a_failure_stays() {
        let results = |outcome| Results { rows: [("a".to_owned(), outcome)].into(), ..Results::default() };
        let done = |seconds, sum: &str| Outcome::Done { seconds, cpu: None, sum: sum.into() };
        let mut all = results(done(2.0, "x"));
        all.merge(results(done(1.0, "x")));
        all.merge(results(done(3.0, "x")));
        assert_eq!(all.rows["a"], done(1.0, "x"));
        all.merge(results(done(0.5, "y")));
        all.merge(results(done(0.5, "x")));
        assert!(matches!(all.rows["a"], Outcome::Failed(_)));
    }
}
