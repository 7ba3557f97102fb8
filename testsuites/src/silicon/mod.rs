//! An engine against the host's own processor: random user-mode instructions run on both sides from the same
//! state; registers, flags, x87, SSE, memory and exceptions must agree.
//!
//! A case is a seed. A failing one is shrunk and printed with the command that runs only it. Environment:
//! `TRIMARAN_CASES` (how many), `TRIMARAN_SEED` (of the first), `TRIMARAN_ONLY` (prefix of iced's name of an
//! instruction form, lower case: only those), `TRIMARAN_ENGINE` (only that one).

pub mod case;
mod compare;
pub mod generate;
pub mod guest;
mod native;
pub mod shrink;
mod values;

use case::Case;
use generate::Generator;
use guest::Guest;
use iced_x86::{Code, Instruction};
use native::Native;
use std::collections::{BTreeMap, HashMap};

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

/// Cases one by one.
pub struct Bench {
    rig: Rig,
    generator: Generator,
}

impl Bench {
    /// See [`Rig::new`].
    pub fn new(engine: &str) -> Result<Self, String> {
        Ok(Bench { rig: Rig::new(engine)?, generator: Generator::new(None) })
    }

    /// Runs the case of a seed; its instructions, and where it differs.
    pub fn run(&mut self, seed: u64) -> (Vec<Instruction>, Result<(), String>) {
        let case = self.generator.case(seed);
        if self.rig.differences(&case).is_empty() {
            return (case.instructions(), Ok(()));
        }
        let small = shrink::shrink(&mut self.rig, &case);
        (case.instructions(), Err(shrink::describe(&mut self.rig, &small)))
    }
}

/// What a run found.
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
    let mut rig = Rig::new(engine)?;
    let generator = Generator::new(only);
    let (mut failed, mut failures) = (0, BTreeMap::new());
    let mut counts: HashMap<Code, u64> = generator.codes().map(|code| (code, 0)).collect();
    let mut ran = 0;
    for seed in seed..seed + cases {
        let case = generator.case(seed);
        ran += 1;
        case.instructions().iter().for_each(|x| *counts.entry(x.code()).or_default() += 1);
        if rig.differences(&case).is_empty() {
            continue;
        }
        failed += 1;
        let small = shrink::shrink(&mut rig, &case);
        let name = small.instructions().last().map_or(String::new(), |x| format!("{:?}", x.mnemonic()));
        let entry = failures.entry(name).or_insert_with(|| (0, shrink::describe(&mut rig, &small)));
        entry.0 += 1;
        if failures.len() >= 200 {
            break;
        }
    }
    let forms = counts.into_iter().map(|(code, n)| (format!("{code:?}"), n)).collect();
    let translated = rig.guest.flat.translated();
    Ok(Report { cases: ran, translated, forms, left_out: generator.left_out, failed, failures })
}

impl Report {
    /// Coverage as text: how many forms, the one met least, and what is left out for which reason.
    pub fn coverage(&self) -> String {
        let least = self
            .forms
            .iter()
            .min_by_key(|f| f.1)
            .map_or(String::new(), |(name, n)| format!("the rarest, {name}, {n} times"));
        let mut out = format!(
            "{} cases over {} instruction forms, {} differ, {} instructions in translated code; {least}",
            self.cases,
            self.forms.len(),
            self.failed,
            self.translated
        );
        let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        self.left_out.iter().for_each(|(form, why)| reasons.entry(why).or_default().push(form));
        for (why, forms) in reasons {
            out += &format!("\n  left out, {}: {why}: {}", forms.len(), forms.join(" "));
        }
        out
    }
}
