//! Random instructions on each engine against the host's processor; see `trimaran_testsuites::silicon`.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod linux {
    use std::sync::Mutex;
    use trimaran_testsuites::silicon;

    /// The native side has fixed addresses and signal handlers: one at a time in a process.
    static NATIVE: Mutex<()> = Mutex::new(());

    /// Cases with which each form is the first instruction of a family or two.
    const EVERY_FORM: u64 = 100_000;

    /// `usual`: cases in the ordinary run; in the long one each engine has its share of what is asked for, one in `dearer`.
    fn agrees_with_the_host(engine: &str, usual: u64, dearer: u64) {
        let only_engine = std::env::var("TRIMARAN_ENGINE").ok();
        if only_engine.is_some_and(|wanted| wanted.starts_with("jit-") && wanted != engine) {
            println!("skipped: TRIMARAN_ENGINE asks for another engine than {engine}");
            return;
        }
        let _alone = NATIVE.lock();
        let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
        let cases = number("TRIMARAN_CASES").map_or(usual, |cases| (cases / dearer).max(1));
        let seed = number("TRIMARAN_SEED").unwrap_or(1);
        let only = std::env::var("TRIMARAN_ONLY").ok();
        match silicon::run(engine, seed, cases, only.as_deref()) {
            Err(why) => println!("skipped: {why}"),
            Ok(report) => {
                println!("{engine}, from seed {seed} on: {}", report.coverage());
                let text: Vec<_> = report
                    .failures
                    .iter()
                    .map(|(name, (n, text))| format!("== {name} x{n}\n{text}\n"))
                    .collect();
                assert!(text.is_empty(), "{engine}: {} cases differ\n{}", report.failed, text.join("\n"));
                let translates = engine != "interp" && cases > 1_000;
                assert!(!translates || report.translated > cases, "{engine}: most was interpreted");
                let drawn = report.forms.values().all(|&n| n > 0);
                assert!(drawn || cases < EVERY_FORM || only.is_some(), "a form was never met");
            }
        }
    }

    #[test]
    fn the_interpreter_agrees_with_the_host() {
        agrees_with_the_host("interp", 400_000, 1);
    }

    /// Transcendental functions and remainders of x87 over all exponents and control words: bit for bit what the host gives,
    /// whose FPU they run on.
    #[test]
    fn x87_functions_are_the_hosts() {
        let _alone = NATIVE.lock();
        for name in
            ["fsin", "fcos", "fsincos", "fptan", "fpatan", "f2xm1", "fyl2x", "fyl2xp1", "fprem", "fprem1"]
        {
            match silicon::run("interp", 1, 100_000, Some(name)) {
                Err(why) => return println!("skipped: {why}"),
                Ok(report) => {
                    println!("{name}: {} cases", report.cases);
                    assert_eq!(report.failed, 0, "{name}: {:#?}", report.failures);
                }
            }
        }
    }

    #[test]
    fn emitted_code_agrees_with_the_host() {
        agrees_with_the_host("jit-emit", 200_000, 1);
    }

    #[test]
    fn code_by_cranelift_agrees_with_the_host() {
        agrees_with_the_host("jit-cranelift", 20_000, 8);
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[test]
fn agrees_with_the_host() {
    println!("skipped: the host is not x86-64 Linux");
}
