//! The fuzz targets with random bytes, some seconds each; `TRIMARAN_FUZZ_SECONDS` or, with `TRIMARAN_LONG`, a minute.
//! Environment: `TRIMARAN_SEED` (of the first input), `TRIMARAN_ONLY` (a target), `TRIMARAN_ONE` with `TRIMARAN_CASES` (so many
//! inputs from this one on, whatever time they take).

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trimaran_testsuites::fuzz::{TARGETS, Target};

/// Longest time of one input.
const LIMIT: Duration = Duration::from_secs(60);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What each worker does: how to do it again, and since when.
type Doing = Arc<Mutex<Vec<Option<(String, Instant)>>>>;

fn main() {
    let only = std::env::var("TRIMARAN_ONLY").ok();
    let wanted = |target: &&Target| only.as_deref().is_none_or(|only| only == target.name);
    let targets: Vec<&Target> = TARGETS.iter().filter(wanted).collect();
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get).min(targets.len());
    let doing = Doing::new(Mutex::new(vec![None; workers]));
    end_at_panics(doing.clone());
    watch(doing.clone());
    let next = &AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let (doing, targets) = (doing.clone(), &targets);
            scope.spawn(move || {
                while let Some(target) = targets.get(next.fetch_add(1, SeqCst)) {
                    run(target, &|what| {
                        if let Ok(mut doing) = doing.lock() {
                            doing[worker] = what.map(|what| (what, Instant::now()));
                        }
                    });
                }
            });
        }
    });
}

fn run(target: &Target, does: &dyn Fn(Option<String>)) {
    let seconds = if std::env::var_os("TRIMARAN_LONG").is_some() { 60 } else { 3 };
    let limit = Duration::from_secs(number("TRIMARAN_FUZZ_SECONDS").unwrap_or(seconds));
    let one = number("TRIMARAN_ONE");
    let cases = one.and(number("TRIMARAN_CASES"));
    let first = one.unwrap_or(number("TRIMARAN_SEED").unwrap_or(1).wrapping_mul(1_000_003));
    let (begun, mut count) = (Instant::now(), 0);
    while cases.map_or(begun.elapsed() < limit, |cases| count < cases) {
        let seed = first.wrapping_add(count);
        does(Some(format!(
            "TRIMARAN_ONLY={} TRIMARAN_ONE={seed} TRIMARAN_CASES=1 cargo test -p trimaran-testsuites --test fuzz_targets",
            target.name
        )));
        (target.run)(&target.input(seed));
        count += 1;
    }
    does(None);
    println!("{}: {count} inputs in {:.1} s", target.name, begun.elapsed().as_secs_f64());
    assert!(count > 0, "{} has not run", target.name);
}

/// A panic on whatever thread ends the run: a machine whose thread is gone would be waited for in vain.
fn end_at_panics(doing: Doing) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        let doing = doing.lock();
        let again: Vec<_> = doing.iter().flat_map(|d| d.iter().flatten()).map(|(a, _)| a.as_str()).collect();
        fail(&format!("{info}\nagain, if it was one of these:\n{}", again.join("\n")), 101)
    }));
}

/// Ends the process if one input takes too long.
fn watch(doing: Doing) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let Ok(doing) = doing.lock() else { return };
            if let Some((again, _)) = doing.iter().flatten().find(|(_, since)| since.elapsed() > LIMIT) {
                fail(&format!("still running after {LIMIT:?}; again: {again}"), 102);
            }
        }
    });
}

/// Ends the process; `cargo x test` repeats what stands between these lines.
fn fail(text: &str, code: i32) -> ! {
    println!("failures:\n{text}\ntest result: FAILED");
    std::process::exit(code)
}
