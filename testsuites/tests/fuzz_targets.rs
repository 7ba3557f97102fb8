//! The fuzz targets with random bytes, some seconds each; a minute each with `TRIMARAN_LONG`. Environment:
//! `TRIMARAN_SEED` (of the first input), `TRIMARAN_ONLY` (a target), `TRIMARAN_CASES` (so many inputs, whatever time they take).

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trimaran_testsuites::fuzz::TARGETS;

/// Longest time of one input.
const LIMIT: Duration = Duration::from_secs(60);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn main() {
    let again = Arc::new(Mutex::new(String::new()));
    let at_fault = again.clone();
    let usual = std::panic::take_hook();
    // A panic on whatever thread ends the run: a machine whose thread is gone would be waited for in vain.
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        if let Ok(again) = at_fault.lock() {
            eprintln!("again: {again}");
        }
        std::process::exit(101);
    }));
    let inputs = Arc::new(AtomicU64::new(0));
    watch(inputs.clone(), again.clone());
    let seconds = if std::env::var_os("TRIMARAN_LONG").is_some() { 60 } else { 3 };
    let first = number("TRIMARAN_SEED").unwrap_or(1).wrapping_mul(1_000_003);
    let (cases, only) = (
        number("TRIMARAN_CASES").filter(|_| number("TRIMARAN_ONE").is_some()),
        std::env::var("TRIMARAN_ONLY").ok(),
    );
    for target in TARGETS.iter().filter(|target| only.as_deref().is_none_or(|only| only == target.name)) {
        let begun = Instant::now();
        let mut count = 0;
        while cases.map_or(begun.elapsed() < Duration::from_secs(seconds), |cases| count < cases) {
            let seed = number("TRIMARAN_ONE").unwrap_or(first).wrapping_add(count);
            if let Ok(mut again) = again.lock() {
                *again = format!(
                    "TRIMARAN_ONLY={} TRIMARAN_ONE={seed} TRIMARAN_CASES=1 cargo test -p trimaran-testsuites --test fuzz_targets",
                    target.name
                );
            }
            (target.run)(&target.input(seed));
            count += 1;
            inputs.fetch_add(1, SeqCst);
        }
        println!("{}: {count} inputs in {:.1} s", target.name, begun.elapsed().as_secs_f64());
        assert!(count > 0, "{} has not run", target.name);
    }
}

/// Ends the process if one input takes too long.
fn watch(inputs: Arc<AtomicU64>, again: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let (mut seen, mut since) = (u64::MAX, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let now = inputs.load(SeqCst);
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > LIMIT {
                eprintln!(
                    "still running after {LIMIT:?}; again: {}",
                    again.lock().map_or(String::new(), |a| a.clone())
                );
                std::process::exit(102);
            }
        }
    });
}
