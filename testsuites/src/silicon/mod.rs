//! The interpreter against the host's own processor: random user-mode instructions run on both sides from the same
//! state; registers, flags, x87, SSE, memory and exceptions must agree.
//!
//! A case is a seed. A failing one is shrunk and printed with the command that runs only it. Environment:
//! `TRIMARAN_CASES` (how many), `TRIMARAN_SEED` (of the first), `TRIMARAN_ONLY` (prefix of iced's name of an
//! instruction form, lower case: only those).

pub mod case;
mod compare;
mod generate;
mod guest;
mod native;
mod shrink;
mod values;

use case::Case;
use generate::Generator;
use guest::Guest;
use native::Native;
use std::collections::BTreeMap;

/// Whether the host has what an instruction needs beyond x86-64-v2.
fn on_this_host(x: &iced_x86::Instruction) -> bool {
    use iced_x86::CpuidFeature as C;
    x.cpuid_features().iter().all(|f| match f {
        C::AVX => std::is_x86_feature_detected!("avx"),
        C::AVX2 => std::is_x86_feature_detected!("avx2"),
        C::FMA => std::is_x86_feature_detected!("fma"),
        C::F16C => std::is_x86_feature_detected!("f16c"),
        C::BMI1 => std::is_x86_feature_detected!("bmi1"),
        C::BMI2 => std::is_x86_feature_detected!("bmi2"),
        C::LZCNT => std::is_x86_feature_detected!("lzcnt"),
        C::ADX => std::is_x86_feature_detected!("adx"),
        C::SHA => std::is_x86_feature_detected!("sha"),
        C::VAES => std::is_x86_feature_detected!("vaes"),
        C::VPCLMULQDQ => std::is_x86_feature_detected!("vpclmulqdq"),
        _ => true,
    })
}

/// Both sides.
pub struct Rig {
    native: Native,
    guest: Guest,
}

impl Rig {
    /// Runs a case on both sides and lists the differences.
    fn differences(&mut self, case: &Case) -> Vec<String> {
        let want = self.native.run(case);
        match self.guest.run(case) {
            Ok(got) => compare::differences(case, &want, &got),
            Err(why) => {
                self.guest = Guest::new();
                vec![why]
            }
        }
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
    let mut rig = Rig { native: Native::new()?, guest: Guest::new() };
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
