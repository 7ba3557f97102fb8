//! Random programs.

use trimaran_cpu::engine::{Engine, EngineFactory, Interpreter, Stop};
use trimaran_cpu::state::{CpuState, RFlags};
use trimaran_cpu::{Counters, VcpuConfig};
use trimaran_testsuites::differential::generate::FIRST_WIDE;
use trimaran_testsuites::differential::{Case, TIERS, kept, lockstep, run, run_parallel, survey};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn random(tier: &str) {
    let only = std::env::var("TRIMARAN_ONLY").ok();
    programs(tier, 60, kept::SEEDS, |seed| Case::new(seed, only.as_deref()));
}

/// Runs `many` programs, but those kept first.
fn programs(tier: &str, many: u64, kept: &[u64], case: impl Fn(u64) -> Case + Sync) {
    if std::env::var("TRIMARAN_ENGINE").is_ok_and(|wanted| wanted != tier && TIERS.contains(&wanted.as_str()))
    {
        println!("skipped: TRIMARAN_ENGINE asks for another tier than {tier}");
        return;
    }
    let first = number("TRIMARAN_SEED").unwrap_or(FIRST_WIDE);
    // Cranelift takes its time: half a second a program and more.
    let wanted = number("TRIMARAN_CASES").unwrap_or(many);
    let cases = if tier == "jit-cranelift" { (wanted / 100).max(2) } else { wanted };
    let kept = kept.iter().copied().filter(|_| number("TRIMARAN_SEED").is_none());
    let seeds: Vec<u64> = kept.chain(first..first + cases).collect();
    // With few each tier has a thread already.
    let threads = if cases < 1_000 { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let report = run_parallel(tier, &seeds, &case, threads);
    let (programs, translated) = (report.cases, report.translated);
    println!(
        "{tier}: {programs} programs from seed {first} on, {translated} instructions in translated code"
    );
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n\n"));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn random_programs_emitted() {
    random("jit-emit");
}

/// Half of their instructions are the x87 unit's.
#[test]
#[cfg(target_arch = "x86_64")]
fn x87_programs_emitted() {
    programs("jit-emit", 60, kept::X87, Case::x87);
}

/// 16-bit code, segments, pointers that wrap.
#[test]
#[cfg(target_arch = "x86_64")]
fn edges_emitted() {
    programs("jit-emit", 60, kept::EDGES, Case::edges);
}

#[test]
fn edges_by_cranelift() {
    programs("jit-cranelift", 400, kept::EDGES, Case::edges);
}

#[test]
fn random_programs_by_cranelift() {
    random("jit-cranelift");
}

#[test]
fn random_programs_on_all_tiers() {
    random("jit-all");
}

/// The programs of the tests above do run in translated code.
#[test]
fn programs_are_translated() {
    for tier in TIERS {
        let report = run(tier, 1..4, None);
        assert!(report.translated > 5_000, "{tier}: {} instructions in translated code", report.translated);
    }
}

/// The programs meet what they are meant to meet.
#[test]
fn the_programs_are_worth_running() {
    let s = survey((1..151).chain(FIRST_WIDE..FIRST_WIDE + 150).map(|seed| Case::new(seed, None)));
    println!("{s:?}");
    assert!(s.ended > 80 && s.shut_down < 15, "{s:?}");
    assert!(s.retired > 300 * 1000, "{s:?}");
    for vector in [0, 3, 6, 13, 14, 80] {
        assert!(s.vectors.get(&vector).is_some_and(|&n| n >= 5), "vector {vector}: {s:?}");
    }
    assert!(s.code_invalidations > 300 && s.flushes > 300 && s.mmio > 300 && s.interrupts > 30, "{s:?}");
}

#[test]
fn the_edges_are_worth_running() {
    let s = survey((1..301).map(Case::edges));
    println!("{s:?}");
    assert!(s.ended > 150 && s.shut_down < 40 && s.retired > 500 * 300, "{s:?}");
    for vector in [0, 6, 12, 13, 14] {
        assert!(s.vectors.get(&vector).is_some_and(|&n| n >= 20), "vector {vector}: {s:?}");
    }
    assert!(s.code_invalidations > 50 && s.interrupts > 300, "{s:?}");
    let report = run_parallel("jit-emit", &[1, 2, 3, 4, 5, 6, 7, 8], &Case::edges, 1);
    assert!(cfg!(not(target_arch = "x86_64")) || report.translated > 500, "{} translated", report.translated);
}

/// An interpreter that once gets one bit wrong.
struct Wrong(Box<dyn Engine>, fn(&mut CpuState));

impl Engine for Wrong {
    fn run(&mut self, budget: u64) -> Stop {
        let before = self.state().retired;
        let stop = self.0.run(budget);
        let after = self.state().retired;
        if (before..after).contains(&500) {
            (self.1)(self.0.state());
            self.0.state_changed();
        }
        stop
    }
    fn state(&mut self) -> &mut CpuState {
        self.0.state()
    }
    fn state_changed(&mut self) {
        self.0.state_changed();
    }
    fn probe(&mut self, linear: u64) -> Option<u64> {
        self.0.probe(linear)
    }
    fn counters(&self) -> Counters {
        self.0.counters()
    }
    fn name(&self) -> &'static str {
        "wrong"
    }
    fn describe_tlb(&self) -> String {
        self.0.describe_tlb()
    }
}

struct WrongFactory(fn(&mut CpuState));

impl EngineFactory for WrongFactory {
    fn name(&self) -> &'static str {
        "wrong"
    }
    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        Box::new(Wrong(Interpreter.create(config), self.0))
    }
}

/// The comparison sees one wrong bit wherever it is.
#[test]
fn a_wrong_engine_is_found() {
    let case = (1..).map(|seed| Case::new(seed, None)).find(|c| c.slices.len() > 40).expect("a sliced case");
    let mistakes: [fn(&mut CpuState); 6] = [
        |s| s.gpr[15] ^= 1 << 40,
        |s| s.rflags.toggle(RFlags::AF),
        |s| s.zmm[7][1] ^= 1,
        |s| s.x87.registers[5].sign_exponent ^= 1,
        |s| s.retired += 1,
        |s| s.mxcsr ^= 1,
    ];
    assert!(lockstep(&case, &case.slices, &Interpreter, 1).0.is_none());
    for (n, mistake) in mistakes.into_iter().enumerate() {
        let found = lockstep(&case, &case.slices, &WrongFactory(mistake), 1).0;
        assert!(found.is_some_and(|f| f.lines.len() == 1), "mistake {n}");
    }
}
