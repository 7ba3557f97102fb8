//! Random instructions against the host's processor; see `trimaran_testsuites::silicon`.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn agrees_with_the_host() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let cases = number("TRIMARAN_CASES").unwrap_or(800_000);
    let only = std::env::var("TRIMARAN_ONLY").ok();
    match trimaran_testsuites::silicon::run(number("TRIMARAN_SEED").unwrap_or(1), cases, only.as_deref()) {
        Err(why) => println!("skipped: {why}"),
        Ok(report) => {
            println!("{} cases over {} instruction forms", report.cases, report.forms);
            let text: Vec<_> =
                report.failures.iter().map(|(name, (n, text))| format!("== {name} x{n}\n{text}\n")).collect();
            assert!(text.is_empty(), "{} cases differ\n{}", report.failed, text.join("\n"));
        }
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[test]
fn agrees_with_the_host() {
    println!("skipped: the host is not x86-64 Linux");
}
