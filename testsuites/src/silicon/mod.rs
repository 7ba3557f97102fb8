//! The interpreter against the host's own processor: random user-mode instructions run on both sides from the same
//! state; registers, flags, x87, SSE, memory and exceptions must agree.
//!
//! A case is a seed. A failing one is shrunk and printed with the command that runs only it. Environment:
//! `TRIMARAN_CASES` (how many), `TRIMARAN_SEED` (of the first), `TRIMARAN_ONLY` (prefix of iced's name of an
//! instruction form, lower case: only those).

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
use iced_x86::Instruction;
use native::Native;
use std::collections::BTreeMap;

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
        Ok(Bench { rig: Rig::new(engine)?, generator: Generator::new() })
    }

    /// Runs the case of a seed; its instructions, and where it differs.
    pub fn run(&mut self, seed: u64) -> (Vec<Instruction>, Result<(), String>) {
        let case = self.generator.case(seed, None);
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
    pub forms: usize,
    pub failed: u64,
    /// Count and one shrunk case for each last instruction that failed.
    pub failures: BTreeMap<String, (u64, String)>,
}

/// Runs `cases` cases from `seed` on. An error says why this host cannot.
pub fn run(seed: u64, cases: u64, only: Option<&str>) -> Result<Report, String> {
    let mut rig = Rig::new("interp")?;
    let generator = Generator::new();
    let mut report = Report { cases, forms: generator.form_count(), failed: 0, failures: BTreeMap::new() };
    for seed in seed..seed + cases {
        let case = generator.case(seed, only);
        if rig.differences(&case).is_empty() {
            continue;
        }
        report.failed += 1;
        let small = shrink::shrink(&mut rig, &case);
        let name = small.instructions().last().map_or(String::new(), |x| format!("{:?}", x.mnemonic()));
        let entry = report.failures.entry(name).or_insert_with(|| (0, shrink::describe(&mut rig, &small)));
        entry.0 += 1;
        if report.failures.len() >= 200 {
            break;
        }
    }
    Ok(report)
}
