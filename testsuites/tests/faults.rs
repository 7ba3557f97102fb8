//! Fault injection on every engine; see `trimaran_testsuites::faults`. Environment: `TRIMARAN_CASES`, `TRIMARAN_SEED`.

use trimaran_testsuites::system::injection::KINDS;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn absent_pages_leave_no_trace() {
    use trimaran_testsuites::faults::Bench;
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let first = number("TRIMARAN_SEED").unwrap_or(1);
    for (engine, usual, dearer) in
        [("interp", 4_000, 100), ("jit-emit", 2_000, 200), ("jit-cranelift", 100, 4_000)]
    {
        let cases = number("TRIMARAN_CASES").map_or(usual, |cases| (cases / dearer).max(1));
        let mut bench = Bench::new(engine).expect("an engine");
        let mut faults = 0;
        for seed in first..first + cases {
            match bench.run(seed).1 {
                Ok(n) => faults += u64::from(n),
                Err(why) => panic!("{engine}, TRIMARAN_CASES={dearer} TRIMARAN_SEED={seed}:\n{why}"),
            }
        }
        println!("{engine}: {cases} cases from seed {first} on, {faults} faults");
        // Nearly every instruction is longer than a byte, and so can lie on two pages.
        assert!(faults > cases * 9 / 10, "{engine}: {faults} faults in {cases} cases");
    }
}

/// Descriptors, stacks, page tables, deliveries of events; see `trimaran_testsuites::system::injection`.
#[test]
fn the_processors_own_accesses_leave_no_trace() {
    for engine in ["interp", "jit-emit", "jit-cranelift"] {
        for (kind, run) in KINDS {
            let count = run(engine).unwrap_or_else(|why| panic!("{kind}: {why}"));
            println!("{engine}: {kind}: {count}");
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[test]
fn absent_pages_leave_no_trace() {
    println!("skipped: the cases are drawn on x86-64 Linux hosts only");
}
