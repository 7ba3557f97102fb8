//! Units of a suite, run in child processes: one that crashes or hangs is a failed case.

use anyhow::Context;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use trimaran_testsuites::conform::{Answer, Failed, Setup, Suite, UnitReport};

/// Units of one suite on one engine.
pub struct Job<'a> {
    pub suite: &'static Suite,
    pub engine: &'a str,
    pub setup: &'a Setup,
    /// Longest time of a unit.
    pub limit: Duration,
}

/// Runs all units in so many processes; `done` hears of each.
pub fn run(
    job: &Job,
    units: Vec<String>,
    jobs: usize,
    done: &(dyn Fn() + Sync),
) -> anyhow::Result<UnitReport> {
    let program = std::env::current_exe().context("where this program is")?;
    let setup = serde_json::to_string(job.setup)?;
    let command = || {
        let mut command = Command::new(&program);
        command.args(["conform", "--worker", job.suite.name, "--engine", job.engine, "--setup", &setup]);
        command.env("TRIMARAN_ENGINE", job.engine);
        command
    };
    share_out(&command, job.limit, units, jobs, done)
}

/// Runs all units in so many processes, which `command` makes.
fn share_out(
    command: &(dyn Fn() -> Command + Sync),
    limit: Duration,
    units: Vec<String>,
    jobs: usize,
    done: &(dyn Fn() + Sync),
) -> anyhow::Result<UnitReport> {
    let jobs = jobs.clamp(1, units.len().max(1));
    let queue = Mutex::new(VecDeque::from(units));
    let sum = Mutex::new(UnitReport::default());
    let serve = || -> anyhow::Result<()> {
        let mut worker = None;
        loop {
            let Some(unit) = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else {
                return Ok(());
            };
            let mut child = match worker.take() {
                Some(child) => child,
                None => Worker::start(command())?,
            };
            let report = match child.ask(&unit, limit) {
                Ok(Answer::Done(report)) => {
                    worker = Some(child);
                    report
                }
                Ok(Answer::Panicked(words)) => {
                    worker = Some(child);
                    one_by_one(&queue, &unit).unwrap_or_else(|| failed(&unit, &words))
                }
                Err(why) => one_by_one(&queue, &unit).unwrap_or_else(|| failed(&unit, &why)),
            };
            sum.lock().unwrap_or_else(PoisonError::into_inner).add(report);
            done();
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(serve)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
        })
    })?;
    Ok(sum.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// A unit of several seeds that did not end: each of them is a unit of its own now. None: it is only one.
fn one_by_one(queue: &Mutex<VecDeque<String>>, unit: &str) -> Option<UnitReport> {
    let (start, count) = unit.split_once('+')?;
    let (start, count) = (start.parse::<u64>().ok()?, count.parse::<u64>().ok().filter(|&count| count > 1)?);
    let singles = (0..count).map(|n| format!("{}+1", start.wrapping_add(n)));
    queue.lock().unwrap_or_else(PoisonError::into_inner).extend(singles);
    Some(UnitReport::default())
}

fn failed(unit: &str, why: &str) -> UnitReport {
    let case = unit.strip_suffix("+1").unwrap_or(unit).to_owned();
    UnitReport { failed: vec![Failed { case, text: format!("  {why}") }], ..UnitReport::default() }
}

/// A child and the threads that read what it says.
struct Worker {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    complaints: Arc<Mutex<Vec<u8>>>,
    /// Closed when there will be no more complaints.
    all_heard: Receiver<()>,
}

impl Worker {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start a child")?;
        let (input, output) =
            (child.stdin.take().context("its stdin")?, child.stdout.take().context("its stdout")?);
        let mut errors = child.stderr.take().context("its stderr")?;
        let (to, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| to.send(line))
        });
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let heard = complaints.clone();
        let (hearing, all_heard) = channel();
        std::thread::spawn(move || {
            let _hearing = hearing;
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = errors.read(&mut part) {
                let mut all = heard.lock().unwrap_or_else(PoisonError::into_inner);
                all.extend_from_slice(&part[..n]);
                // The end is what matters.
                let surplus = all.len().saturating_sub(4096);
                all.drain(..surplus);
            }
        });
        Ok(Worker { child, input, lines, complaints, all_heard })
    }

    fn ask(&mut self, unit: &str, limit: Duration) -> Result<Answer, String> {
        let sent = writeln!(self.input, "{unit}").and_then(|()| self.input.flush());
        let answer =
            sent.map_err(|_| RecvTimeoutError::Disconnected).and_then(|()| self.lines.recv_timeout(limit));
        match answer {
            Ok(line) => serde_json::from_str(&line).map_err(|e| format!("not an answer ({e}): {line}")),
            Err(RecvTimeoutError::Timeout) => Err(format!("it does not end within {} s", limit.as_secs())),
            Err(RecvTimeoutError::Disconnected) => {
                let end = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                // Unless something that it started holds the pipe.
                let _ = self.all_heard.recv_timeout(Duration::from_secs(5));
                let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
                Err(format!("it ended the process: {end}\n  {}", String::from_utf8_lossy(&complaints).trim()))
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may hang, or be gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_fails_is_cut_into_cases() {
        let queue = Mutex::new(VecDeque::new());
        assert!(one_by_one(&queue, "10+3").is_some());
        assert_eq!(queue.lock().expect("a queue").make_contiguous(), ["10+1", "11+1", "12+1"]);
        assert!(one_by_one(&queue, "10+1").is_none() && one_by_one(&queue, "paging::pae").is_none());
        assert_eq!(failed("10+1", "it hangs").failed[0].case, "10");
    }

    /// A child that does as its units say.
    #[cfg(unix)]
    #[test]
    fn what_crashes_or_hangs_has_failed() {
        const CHILD: &str = r#"while read unit; do case $unit in
            crash|7+1) echo "out of cheese" >&2; kill -SEGV $$;;
            7+2) kill -SEGV $$;;
            hang) exec sleep 100;;
            nonsense) echo nonsense;;
            *) echo '{"Done":{"passed":1,"skipped":{},"failed":[],"forms":{},"left_out":{}}}';;
        esac; done"#;
        let command = || {
            let mut command = Command::new("sh");
            command.args(["-c", CHILD]);
            command
        };
        let units = ["good", "crash", "good", "hang", "nonsense", "7+2", "good"].map(String::from).to_vec();
        for jobs in [1, 3] {
            let report =
                share_out(&command, Duration::from_secs(1), units.clone(), jobs, &|| ()).expect("children");
            let found = |case: &str| report.failed.iter().find(|failed| failed.case == case);
            let text = |case: &str| found(case).map_or("", |failed| failed.text.as_str());
            // Seed 8 is good by itself.
            assert_eq!((report.passed, report.failed.len()), (4, 4), "{report:#?}");
            assert!(
                text("crash").contains("signal: 11") && text("crash").contains("out of cheese"),
                "{report:#?}"
            );
            assert!(text("7").contains("signal: 11") && text("hang").contains("within 1 s"), "{report:#?}");
            assert!(text("nonsense").contains("not an answer"), "{report:#?}");
        }
    }
}
