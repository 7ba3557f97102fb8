//! Random bytes as code, on the translator and on the interpreter, under limits of time and memory: no panic, no hang, no
//! difference.
//!
//! Environment as for the differential tester: `TRIMARAN_CASES`, `TRIMARAN_SEED`, `TRIMARAN_ENGINE`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use trimaran_testsuites::differential::{Case, TIERS, kept, run_cases};

/// Processor time for one case: about a thousand times what it takes. Cranelift needs 10 ms a region, and code that changes
/// itself all the time is thousands of them: seed 14 takes three minutes.
fn limit(tier: &str) -> Duration {
    Duration::from_secs(if tier == "jit-cranelift" { 1_800 } else { 60 })
}
/// Resident memory of the whole test.
const MEMORY: u64 = 2 << 30;

/// Ends the process if a case takes too long, or the process too much memory.
struct Watchdog {
    thread: PathBuf,
    seed: AtomicU64,
    /// The thread's processor time when the case began, in nanoseconds.
    since: AtomicU64,
}

impl Watchdog {
    /// For cases that the calling thread runs. A machine that is busy with other things slows them down without fault of
    /// theirs, so it is their own time that counts.
    fn start(limit: Duration) -> Arc<Self> {
        let thread = Path::new("/proc").join(std::fs::read_link("/proc/thread-self").unwrap_or_default());
        let dog = Arc::new(Watchdog { thread, seed: AtomicU64::new(0), since: AtomicU64::new(0) });
        let watched = Arc::downgrade(&dog);
        std::thread::spawn(move || {
            while let Some(dog) = watched.upgrade() {
                let seed = dog.seed.load(Relaxed);
                if dog.time().saturating_sub(dog.since.load(Relaxed)) > limit.as_nanos() as u64 {
                    give_up(&format!("seed {seed}: still running after {limit:?} of processor time"));
                }
                if resident().is_some_and(|bytes| bytes > MEMORY) {
                    give_up(&format!("seed {seed}: more than {MEMORY} bytes of memory"));
                }
                drop(dog);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        dog
    }

    /// The thread's processor time in nanoseconds; 0 where the host does not tell.
    fn time(&self) -> u64 {
        let text = std::fs::read_to_string(self.thread.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    fn case(&self, seed: u64) -> Case {
        self.seed.store(seed, Relaxed);
        self.since.store(self.time(), Relaxed);
        Case::bytes(seed)
    }
}

/// Past the test harness, which keeps what tests print until they have ended.
fn give_up(why: &str) -> ! {
    let _ = writeln!(std::io::stderr(), "{why}");
    std::process::abort();
}

/// Resident memory of this process; None where the host does not tell.
fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn fuzz(tier: &str) {
    if std::env::var("TRIMARAN_ENGINE").is_ok_and(|wanted| wanted != tier && TIERS.contains(&wanted.as_str()))
    {
        println!("skipped: TRIMARAN_ENGINE asks for another tier than {tier}");
        return;
    }
    let first = number("TRIMARAN_SEED").unwrap_or(1);
    let wanted = number("TRIMARAN_CASES").unwrap_or(100);
    // Cranelift takes its time.
    let cases = if tier == "jit-cranelift" { (wanted / 30).max(1) } else { wanted };
    let dog = Watchdog::start(limit(tier));
    let kept = kept::BYTES.iter().copied().filter(|_| number("TRIMARAN_SEED").is_none());
    let report = run_cases(tier, kept.chain(first..first + cases).map(|seed| dog.case(seed)));
    println!("{tier}: {} cases, {} instructions in translated code", report.cases, report.translated);
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n\n"));
    assert!(
        cases < 5 || report.translated > cases * 50,
        "{} instructions in translated code",
        report.translated
    );
}

#[test]
#[cfg(target_arch = "x86_64")]
fn bytes_emitted() {
    fuzz("jit-emit");
}

#[test]
fn bytes_by_cranelift() {
    fuzz("jit-cranelift");
}

#[test]
fn bytes_on_all_tiers() {
    fuzz("jit-all");
}
