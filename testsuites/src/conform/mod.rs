//! What `trimaran conform` runs: suites of cases, each of which judges engines.
//!
//! The caller runs units of a suite in child processes ([`work`] is the child), so that a case that crashes or hangs is
//! a failed case and no more.

mod differential;
mod faults;
mod guests;
mod injection;
mod silicon;
mod system;
mod vectors;

use crate::engine;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use trimaran_accel::Kind;

/// The engines that are judged, by the names of [`crate::engine::named`]; KVM on hosts where it can be at all.
#[cfg(target_arch = "x86_64")]
pub const ENGINES: &[&str] = &["interp", "jit-emit", "jit-cranelift", "kvm"];
#[cfg(not(target_arch = "x86_64"))]
pub const ENGINES: &[&str] = &["interp", "jit-cranelift"];

/// Whether an engine is judged where nobody names it: the mistakes of a KVM made of software are not this program's.
pub fn by_default(engine: &str) -> Result<(), String> {
    if engine != "kvm" || engine::kvm()?.report().kind() == Kind::Hardware {
        return Ok(());
    }
    Err("the host's KVM is made of software: --engine kvm judges it".into())
}

/// What the user asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Setup {
    /// The first of the seeds of suites whose cases are random.
    pub seed: u64,
    /// How many cases of these; each suite has a number of its own otherwise.
    pub cases: Option<u64>,
    /// A folder of hardware-made vectors.
    pub vectors: Option<PathBuf>,
    /// One case: what stands behind the suite's name in its ID.
    pub case: Option<String>,
}

impl Setup {
    /// Units of random cases: `SEED+COUNT`, or the one seed that was asked for.
    fn seeds(&self, cases: u64, block: u64) -> Result<Vec<String>, String> {
        if let Some(case) = &self.case {
            case.parse::<u64>().map_err(|_| format!("`{case}` is no seed"))?;
            return Ok(vec![format!("{case}+1")]);
        }
        let cases = self.cases.unwrap_or(cases);
        let starts = (0..cases).step_by(block.max(1) as usize);
        Ok(starts
            .map(|start| format!("{}+{}", self.seed.wrapping_add(start), block.min(cases - start)))
            .collect())
    }
}

/// The first seed of a unit of [`Setup::seeds`], and how many.
fn seeds_of(unit: &str) -> (u64, u64) {
    let (start, count) = unit.split_once('+').unwrap_or((unit, "1"));
    (start.parse().unwrap_or(0), count.parse().unwrap_or(0))
}

/// A case that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failed {
    /// Behind the suite's name.
    pub case: String,
    /// Bytes, disassembly, input, what was expected and what came.
    pub text: String,
}

/// What came of a unit.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct UnitReport {
    pub passed: u64,
    /// Why, and how many.
    pub skipped: BTreeMap<String, u64>,
    pub failed: Vec<Failed>,
    /// In how many cases instruction forms stood, by iced's names; 0 where none did that could be drawn.
    pub forms: BTreeMap<String, u64>,
    /// Forms that are never drawn, and why.
    pub left_out: BTreeMap<String, String>,
}

impl UnitReport {
    fn note(&mut self, case: &impl ToString, result: Result<(), String>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(text) => self.failed.push(Failed { case: case.to_string(), text }),
        }
    }

    /// Notes instructions that `cases` cases have.
    fn forms<'a>(&mut self, instructions: impl IntoIterator<Item = &'a iced_x86::Instruction>, cases: u64) {
        for x in instructions {
            *self.forms.entry(format!("{:?}", x.code())).or_default() += cases;
        }
    }

    pub fn add(&mut self, other: UnitReport) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        other.skipped.into_iter().for_each(|(why, n)| *self.skipped.entry(why).or_default() += n);
        other.forms.into_iter().for_each(|(form, n)| *self.forms.entry(form).or_default() += n);
        self.left_out.extend(other.left_out);
    }

    /// The form that stood in the fewest cases, and in how many.
    pub fn rarest(&self) -> Option<(&str, u64)> {
        self.forms.iter().map(|(form, &n)| (form.as_str(), n)).min_by_key(|&(_, n)| n)
    }
}

/// Runs units one after another; what it has made ready stays from one to the next.
type Runner = Box<dyn FnMut(&str) -> UnitReport>;

/// See the head of this file.
pub struct Suite {
    pub name: &'static str,
    pub description: &'static str,
    /// Whether it judges an engine.
    pub judges: fn(engine: &str) -> bool,
    /// Names of its units for an engine, each of a few seconds at most. An error says why there are none here.
    pub units: fn(&Setup, engine: &str) -> Result<Vec<String>, String>,
    runner: fn(&Setup, engine: &str) -> Result<Runner, String>,
}

pub const SUITES: &[Suite] = &[
    system::SUITE,
    guests::SUITE,
    silicon::SUITE,
    vectors::SUITE,
    differential::SUITE,
    faults::SUITE,
    injection::SUITE,
];

/// What the child says of a unit, one line of JSON each.
#[derive(Serialize, Deserialize)]
pub enum Answer {
    Done(UnitReport),
    /// It panicked: with which words.
    Panicked(String),
}

/// The words of the last panic, with the place in our source, once [`remember_panics`] was called.
static WORDS: Mutex<Option<String>> = Mutex::new(None);

/// Panics are not printed but told by [`Answer::Panicked`]. For the child, whose threads are all ours.
pub fn remember_panics() {
    std::panic::set_hook(Box::new(|info| {
        *WORDS.lock().unwrap_or_else(PoisonError::into_inner) = Some(info.to_string());
    }));
}

fn words(payload: &(dyn Any + Send)) -> String {
    let remembered = WORDS.lock().unwrap_or_else(PoisonError::into_inner).take();
    let own = || {
        payload.downcast_ref::<String>().cloned().or_else(|| Some((*payload.downcast_ref::<&str>()?).into()))
    };
    remembered.or_else(own).unwrap_or_else(|| "a panic without words".into())
}

/// The child: reads units from `input`, a line each, and answers each with a line on `output`.
pub fn work(
    suite: &Suite,
    engine: &str,
    setup: &Setup,
    input: impl BufRead,
    mut output: impl Write,
) -> Result<(), String> {
    let mut runner = None;
    for line in input.lines() {
        let unit = line.map_err(|e| e.to_string())?;
        if runner.is_none() {
            runner = Some((suite.runner)(setup, engine)?);
        }
        let answer = match &mut runner {
            Some(run) => match catch_unwind(AssertUnwindSafe(|| run(&unit))) {
                Ok(report) => Answer::Done(report),
                Err(payload) => Answer::Panicked(words(&*payload)),
            },
            None => return Ok(()),
        };
        if matches!(answer, Answer::Panicked(_)) {
            // Whatever it had made ready may be half done.
            runner = None;
        }
        let text = serde_json::to_string(&answer).map_err(|e| e.to_string())?;
        writeln!(output, "{text}").and_then(|()| output.flush()).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// What a child would answer, without one. An error says why the suite cannot run here.
pub fn answers(suite: &Suite, engine: &str, setup: &Setup, units: &[String]) -> Result<Vec<Answer>, String> {
    let mut output = Vec::new();
    work(suite, engine, setup, units.join("\n").as_bytes(), &mut output)?;
    let lines = output.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(|e| e.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_cut_into_units() {
        let setup = Setup { seed: 10, cases: Some(5), ..Setup::default() };
        assert_eq!(setup.seeds(99, 2), Ok(vec!["10+2".into(), "12+2".into(), "14+1".into()]));
        assert_eq!(seeds_of("12+2"), (12, 2));
        let one = Setup { case: Some("77".into()), ..setup };
        assert_eq!(one.seeds(99, 2), Ok(vec!["77+1".into()]));
        assert!(Setup { case: Some("x".into()), ..one }.seeds(9, 9).is_err());
    }

    #[test]
    fn a_panic_is_an_answer() {
        const BAD: Suite = Suite {
            name: "bad",
            description: "",
            judges: |_| true,
            units: |_, _| Ok(Vec::new()),
            runner: |_, _| {
                Ok(Box::new(|unit| if unit == "2" { panic!("unit two") } else { UnitReport::default() }))
            },
        };
        let units = ["1", "2", "3"].map(str::to_owned);
        let answers = answers(&BAD, "interp", &Setup::default(), &units).expect("answers");
        assert!(matches!(answers[0], Answer::Done(_)) && matches!(answers[2], Answer::Done(_)));
        assert!(matches!(&answers[1], Answer::Panicked(words) if words.contains("unit two")));
    }
}
