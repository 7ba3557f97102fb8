//! The translator against the interpreter: random programs run on both with the same budgets; at every stop the whole
//! state must agree, now and then and at the end RAM and what went to the bus too.
//!
//! A case is a seed. A failing one is traced to the first stop that differs, and to the region that does it; what
//! is printed ends with the command that runs only it. Environment: `TRIMARAN_CASES` (how many), `TRIMARAN_SEED` (of
//! the first), `TRIMARAN_ONLY` (prefix of iced's name of an instruction form, lower case: random instructions are
//! only those), `TRIMARAN_ENGINE` (one of [`TIERS`], for only that).

mod assembler;
mod builder;
pub mod compare;
mod edges;
mod forms;
pub mod generate;
pub mod kept;
pub mod kernel;
mod operands;
pub mod shrink;
mod values;
mod x87;

use crate::engine;
use crate::flat::Machine;
use compare::PageTables;
use iced_x86::Mnemonic;
use kernel::{INTERRUPT, at};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use trimaran_cpu::engine::{Engine, EngineFactory, Interpreter, Stop};
use trimaran_cpu::state::CpuState;
use trimaran_jit::{Jit, JitOptions, Tier};

/// The engines that are compared with the interpreter, by the names of [`engine::named`].
pub const TIERS: [&str; 3] = ["jit-emit", "jit-cranelift", "jit-all"];

/// How long a program runs at most.
const LIMIT: u64 = 20_000;

/// The test of [`Case::x87`].
const X87: &str = "differential x87";

/// The test of [`Case::edges`].
const EDGES: &str = "differential edges";

/// The test of [`Case::bytes`].
const BYTES: &str = "fuzz bytes";

/// Regions of these end in the middle of blocks.
const FEW: &[Mnemonic] = &[
    Mnemonic::Mov,
    Mnemonic::Add,
    Mnemonic::Cmp,
    Mnemonic::Jne,
    Mnemonic::Je,
    Mnemonic::Dec,
    Mnemonic::Push,
];

/// What a case runs.
pub trait Program {
    /// What RAM holds at the start, and how many bytes of it there are.
    fn images(&self) -> &[(u64, Vec<u8>)];
    fn ram_bytes(&self) -> u64;
    /// Sets the registers.
    fn enter(&self, s: &mut CpuState);
    /// Code size.
    fn bits(&self) -> u32;
    /// The mode, for people.
    fn describe(&self) -> String;
    fn page_tables(&self) -> PageTables;
    /// How many exceptions of each vector there were, or 1 for each that there was.
    fn exceptions(&self, m: &mut Machine) -> BTreeMap<u8, u64>;
    /// After a HLT: has a program go on whose exceptions have no handlers but this; false: it has ended.
    fn resume(&self, _: &mut Machine) -> bool {
        false
    }
}

/// A program with the budgets that it is run with.
pub struct Case {
    pub seed: u64,
    /// Which test runs it, as cargo names it.
    test: &'static str,
    pub program: Box<dyn Program>,
    /// Budget, and whether a device interrupts before it is spent.
    pub slices: Vec<(u64, bool)>,
}

impl Case {
    /// Instructions that make sense; see [`run`] for `only`.
    pub fn new(seed: u64, only: Option<&str>) -> Self {
        Self::of(seed, "differential random", generate::program(seed, only, false))
    }

    /// The same, half of it runs of x87 instructions.
    pub fn x87(seed: u64) -> Self {
        Self::of(seed, X87, generate::program(seed, None, true))
    }

    /// Random bytes as code.
    pub fn bytes(seed: u64) -> Self {
        Self::of(seed, BYTES, generate::bytes(seed))
    }

    /// 16-bit code, segments that are not flat, instruction pointers that wrap.
    pub fn edges(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(!seed);
        // Each exception ends a slice.
        let longest = [7, 40, 300][rng.random_range(0..3)];
        let mut slice = || (rng.random_range(1..=longest), rng.random_ratio(1, 24));
        let slices = (0..150).map(|_| slice()).collect();
        Case { seed, test: EDGES, program: Box::new(edges::program(seed)), slices }
    }

    fn of(seed: u64, test: &'static str, program: generate::Program) -> Self {
        let program = Box::new(program);
        let mut rng = SmallRng::seed_from_u64(!seed);
        let (limit, longest) = match rng.random_range(0..4) {
            0 => (LIMIT, LIMIT),
            1 => (2_000, 9),
            2 => (LIMIT, 300),
            _ => (LIMIT, 3_000),
        };
        let interrupts = rng.random_ratio(1, 3);
        let mut slices = Vec::new();
        let mut sum = 0;
        while sum < limit {
            let n = if longest == LIMIT { LIMIT } else { rng.random_range(1..=longest) };
            slices.push((n, interrupts && rng.random_ratio(1, 8)));
            sum += n;
        }
        Case { seed, test, program, slices }
    }

    /// The options of a translator for this case: everything is translated soon.
    pub fn options(&self, tier: &str) -> JitOptions {
        let mut rng = SmallRng::seed_from_u64(self.seed ^ 0x5EED);
        let mut options = engine::options(tier).unwrap_or_default();
        options.warm = rng.random_range(1..4);
        options.hot = rng.random_range(2..30);
        options.code_cache = if rng.random_ratio(1, 6) { 1 << 16 } else { 1 << 20 };
        options.no_links = rng.random_ratio(1, 10);
        // With both tiers the second works in the background, or not at all.
        options.foreground = options.tier != Tier::All;
        options.no_shared_checks = rng.random_ratio(1, 12);
        options.only = rng.random_ratio(1, 12).then_some(FEW);
        options
    }

    /// A machine with the program in it.
    pub fn machine(&self, factory: &dyn EngineFactory) -> Machine {
        let mut m = Machine::new(factory, self.program.ram_bytes(), at::MMIO..at::MMIO + 0x2000);
        for (address, bytes) in self.program.images() {
            assert!(m.ram.write(*address, bytes));
        }
        self.program.enter(m.engine.state());
        m.engine.state_changed();
        m
    }
}

/// Where two machines came apart.
#[derive(Debug)]
pub struct Difference {
    /// The slice after which they differ.
    pub slice: usize,
    pub lines: Vec<String>,
}

/// One slice.
pub fn step(m: &mut Machine, (budget, interrupt): (u64, bool)) -> Stop {
    if interrupt {
        m.bus.raise(INTERRUPT);
    }
    m.engine.run(budget)
}

/// Runs a case on two machines. RAM is compared after every `often` slices and at the end.
pub fn lockstep(
    case: &Case,
    slices: &[(u64, bool)],
    engine: &dyn EngineFactory,
    often: usize,
) -> (Option<Difference>, u64) {
    let mut want = case.machine(&Interpreter);
    let mut got = case.machine(engine);
    let mut found = None;
    for (n, &slice) in slices.iter().enumerate() {
        let (a, b) = (step(&mut want, slice), step(&mut got, slice));
        let mut lines = compare::states(want.engine.state(), got.engine.state());
        if a != b {
            lines.push(format!("run: interpreter {a:?}, translator {b:?}"));
        }
        let agree = a == b && lines.is_empty();
        let resumes = agree && a == Stop::Halted && {
            let (a, b) = (case.program.resume(&mut want), case.program.resume(&mut got));
            a && b
        };
        let ended = a != Stop::Budget && !resumes || n + 1 == slices.len();
        if ended || n % often == often - 1 || !lines.is_empty() {
            lines.extend(compare::memories(&case.program.page_tables(), &want, &got));
            // Random bytes run in devices too, and how often an engine fetches an instruction from there is its own affair.
            let wild = matches!(case.test, BYTES | EDGES);
            lines.extend(compare::access_times(&want, &got).filter(|_| !wild));
        }
        if !lines.is_empty() {
            found = Some(Difference { slice: n, lines });
        }
        if ended || found.is_some() {
            break;
        }
    }
    (found, translated(&*got.engine))
}

/// Instructions that an engine ran in translated code.
pub fn translated(engine: &dyn Engine) -> u64 {
    let text = engine.describe_translator();
    let line = text.lines().find(|l| l.contains("instructions in translated code"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// What a run found.
#[derive(Default)]
pub struct Report {
    pub cases: u64,
    /// Instructions that ran in translated code.
    pub translated: u64,
    pub failures: Vec<String>,
}

impl Report {
    fn plus(mut self, other: Report) -> Report {
        self.cases += other.cases;
        self.translated += other.translated;
        self.failures.extend(other.failures);
        self
    }
}

/// Runs the cases of these seeds on a tier. `only`: prefix of iced's name of the instruction forms to draw from, in lower
/// case.
pub fn run(tier: &str, seeds: impl Iterator<Item = u64>, only: Option<&str>) -> Report {
    run_cases(tier, seeds.map(|seed| Case::new(seed, only)))
}

/// Runs the cases of these seeds on so many host threads; every 5,000 programs a line says how far it is.
pub fn run_parallel(
    tier: &str,
    seeds: &[u64],
    case: &(dyn Fn(u64) -> Case + Sync),
    threads: usize,
) -> Report {
    let part = |n: usize| seeds.iter().skip(n).step_by(threads).map(|&seed| case(seed));
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads).map(|n| scope.spawn(move || run_cases(tier, part(n)))).collect();
        parts.into_iter().map(|p| p.join().expect("a tester's thread")).fold(Report::default(), Report::plus)
    })
}

/// Runs cases on a tier, until five have failed.
pub fn run_cases(tier: &str, cases: impl Iterator<Item = Case>) -> Report {
    let mut report = Report::default();
    for case in cases {
        let options = case.options(tier);
        let (found, translated) = lockstep(&case, &case.slices, &Jit { options }, 16);
        report.cases += 1;
        if report.cases % 5_000 == 0 {
            let failed = report.failures.len();
            println!("{tier}: {} programs, to seed {}: {failed} differences", report.cases, case.seed);
        }
        report.translated += translated;
        if let Some(difference) = found {
            report.failures.push(shrink::describe(&case, tier, options, &difference));
            if report.failures.len() >= 5 {
                break;
            }
        }
    }
    report
}

/// What the programs of some seeds do, on the interpreter: so that a test can tell that they are worth running.
#[derive(Debug, Default)]
pub struct Survey {
    pub retired: u64,
    /// Programs that came to their end, that ran out of budget, that shut the processor down.
    pub ended: u64,
    pub stopped: u64,
    pub shut_down: u64,
    /// Logged exceptions by vector.
    pub vectors: BTreeMap<u8, u64>,
    pub interrupts: u64,
    pub code_invalidations: u64,
    pub flushes: u64,
    pub mmio: u64,
}

/// See [`Survey`].
pub fn survey(cases: impl Iterator<Item = Case>) -> Survey {
    let mut s = Survey::default();
    for case in cases {
        let mut m = case.machine(&Interpreter);
        let mut stop = Stop::Budget;
        for &slice in &case.slices {
            stop = step(&mut m, slice);
            if stop != Stop::Budget && !(stop == Stop::Halted && case.program.resume(&mut m)) {
                break;
            }
        }
        match stop {
            Stop::Halted => s.ended += 1,
            Stop::Shutdown => s.shut_down += 1,
            _ => s.stopped += 1,
        }
        let counters = m.engine.counters();
        s.retired += m.engine.state().retired;
        s.interrupts += counters.interrupts;
        s.code_invalidations += counters.code_invalidations;
        s.flushes += counters.tlb_flushes;
        s.mmio += counters.mmio;
        for (vector, n) in case.program.exceptions(&mut m) {
            *s.vectors.entry(vector).or_default() += n;
        }
    }
    s
}
