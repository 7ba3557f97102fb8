//! An engine against the host's own processor: random user-mode instructions run on both sides from the same
//! state; registers, flags, x87, SSE, memory and exceptions must agree.
//!
//! A case is a seed; [`generate::FAMILY`] of them share their code. A failing one is shrunk and printed with the command that runs only it. Environment:
//! `TRIMARAN_CASES` (how many), `TRIMARAN_SEED` (of the first), `TRIMARAN_ONLY` (prefix of iced's name of an
//! instruction form, lower case: only those), `TRIMARAN_ENGINE` (only that one).

pub mod case;
mod compare;
mod forms;
pub mod generate;
pub mod guest;
mod kept;
mod native;
pub mod shrink;
mod steer;
mod values;

use case::{Case, at};
use generate::{FAMILY, Generator};
use guest::Guest;
use iced_x86::{Code, Instruction};
use native::Native;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Both sides.
pub struct Rig {
    native: Native,
    guest: Guest,
    engine: String,
}

impl Rig {
    /// With our side on the engine of a name. An error says why this host cannot.
    pub fn new(engine: &str) -> Result<Self, String> {
        Ok(Rig { native: Native::new()?, guest: Guest::on(engine)?, engine: engine.into() })
    }

    /// Runs a case on both sides and lists the differences.
    fn differences(&mut self, case: &Case) -> Vec<String> {
        let want = self.native.run(case);
        match self.guest.run(case) {
            Ok(got) => compare::differences(case, &want, &got),
            Err(why) => {
                self.guest = Guest::on(&self.engine).unwrap_or_default();
                vec![why]
            }
        }
    }
}

/// Cases by seed.
pub struct Bench {
    rig: Rig,
    generator: Generator,
}

/// A case that differs.
pub struct Failure {
    pub seed: u64,
    /// Of the last instruction of the shrunk case.
    pub mnemonic: String,
    /// The shrunk case and where it differs.
    pub text: String,
}

impl Bench {
    /// See [`Rig::new`]; `only` as in [`Generator::new`].
    pub fn new(engine: &str, only: Option<&str>) -> Result<Self, String> {
        Ok(Bench { rig: Rig::new(engine)?, generator: Generator::new(only) })
    }

    /// Names of the forms that are drawn.
    pub fn forms(&self) -> impl Iterator<Item = String> {
        self.generator.codes().map(|code| format!("{code:?}"))
    }

    /// Names of those that are never drawn, and why.
    pub fn left_out(&self) -> impl Iterator<Item = (String, String)> {
        self.generator.left_out().iter().map(|(form, why)| (form.clone(), (*why).to_owned()))
    }

    /// Runs the cases that once found something. An error names the first that differs.
    fn run_kept(&mut self) -> Result<(), String> {
        for seed in kept::SEEDS {
            let case = self.generator.case(seed);
            if !self.rig.differences(&case).is_empty() {
                return Err(shrink::describe(&mut self.rig, &case));
            }
        }
        let mut case = self.generator.case(0);
        for kept in kept::kept() {
            case.code = kept.code;
            for seed in 0..FAMILY {
                self.generator.values(seed, &mut case);
                if !self.rig.differences(&case).is_empty() {
                    return Err(format!("{}\n{}", kept.why, shrink::describe(&mut self.rig, &case)));
                }
            }
        }
        Ok(())
    }

    /// Runs the cases of seeds that are of one family (see [`families`]). Their instructions, and those that differ.
    pub fn run(&mut self, seeds: Range<u64>) -> (Vec<Instruction>, Vec<Failure>) {
        let instructions = self.generator.case(seeds.start).instructions();
        let mut failures = Vec::new();
        for seed in seeds {
            let case = self.generator.case(seed);
            if self.rig.differences(&case).is_empty() {
                continue;
            }
            let small = shrink::shrink(&mut self.rig, &case);
            let last = small.instructions().pop();
            let mnemonic = last.map_or(String::new(), |x| format!("{:?}", x.mnemonic()));
            failures.push(Failure { seed, mnemonic, text: shrink::describe(&mut self.rig, &small) });
        }
        (instructions, failures)
    }
}

/// `count` seeds from `first` on, family by family.
pub fn families(first: u64, count: u64) -> impl Iterator<Item = Range<u64>> {
    let end = first.saturating_add(count);
    let start = move |n: u64| (first - first % FAMILY).saturating_add(n * FAMILY).clamp(first, end);
    (0..).map(move |n| start(n)..start(n + 1)).take_while(|seeds| !seeds.is_empty())
}

/// What a run found.
#[derive(Default)]
pub struct Report {
    pub cases: u64,
    /// Instructions that ran in translated code.
    pub translated: u64,
    /// In how many cases each form stood, by iced's names, those never met among them.
    pub forms: BTreeMap<String, u64>,
    /// Forms that are never drawn, and why.
    pub left_out: BTreeMap<String, &'static str>,
    pub failed: u64,
    /// Count and one shrunk case for each last instruction that failed.
    pub failures: BTreeMap<String, (u64, String)>,
}

/// Runs `cases` cases from `seed` on, with our side on the engine of a name. An error says why this host cannot.
pub fn run(engine: &str, seed: u64, cases: u64, only: Option<&str>) -> Result<Report, String> {
    let mut bench = Bench::new(engine, only)?;
    let mut counts: HashMap<Code, u64> = bench.generator.codes().map(|code| (code, 0)).collect();
    let mut report = Report::default();
    if let Err(text) = bench.run_kept() {
        report.failed += 1;
        report.failures.insert("kept".into(), (1, text));
    }
    for seeds in families(seed, cases) {
        let cases = seeds.end - seeds.start;
        report.cases += cases;
        let (instructions, failures) = bench.run(seeds);
        instructions.iter().for_each(|x| *counts.entry(x.code()).or_default() += cases);
        for failure in failures {
            report.failed += 1;
            report.failures.entry(failure.mnemonic).or_insert((0, failure.text)).0 += 1;
        }
        if report.failures.len() >= 200 {
            break;
        }
    }
    report.forms = counts.into_iter().map(|(code, n)| (format!("{code:?}"), n)).collect();
    report.translated = bench.rig.guest.flat.translated();
    report.left_out.clone_from(bench.generator.left_out());
    Ok(report)
}

impl Report {
    /// Coverage as text: how many forms, those met least, and what is left out for which reason.
    pub fn coverage(&self) -> String {
        let mut rarest: Vec<_> = self.forms.iter().map(|(name, n)| (n, name)).collect();
        rarest.sort();
        let rarest: Vec<_> = rarest.iter().take(3).map(|(n, name)| format!("{name} {n}")).collect();
        let mut out = format!(
            "{} cases over {} instruction forms, {} differ, {} instructions in translated code; the rarest forms: {}",
            self.cases,
            self.forms.len(),
            self.failed,
            self.translated,
            rarest.join(", ")
        );
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        self.left_out.iter().for_each(|(form, why)| reasons.entry(why).or_default().push(form));
        for (why, forms) in reasons {
            out += &format!("\n  left out, {}: {why}: {}", forms.len(), forms.join(" "));
        }
        out
    }
}
