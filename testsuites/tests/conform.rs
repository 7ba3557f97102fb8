//! The suites of `trimaran conform`, a few cases each. In a process of its own: one of them has signal handlers.

use trimaran_testsuites::conform::*;

/// A few cases of each suite on each engine that it judges.
#[test]
fn suites_pass() {
    let setup = Setup { seed: 1, cases: Some(20), ..Setup::default() };
    for suite in SUITES {
        for engine in ENGINES.iter().filter(|engine| (suite.judges)(engine)) {
            let units = match by_default(engine).and_then(|()| (suite.units)(&setup, engine)) {
                Ok(units) => units,
                Err(why) => {
                    println!("skipped: {} on {engine}: {why}", suite.name);
                    continue;
                }
            };
            let few = &units[..units.len().min(2)];
            let mut all = UnitReport::default();
            for answer in answers(suite, engine, &setup, few).expect("the suite runs") {
                match answer {
                    Answer::Done(report) => all.add(report),
                    Answer::Panicked(words) => panic!("{} on {engine}: {words}", suite.name),
                }
            }
            let met = all.passed + all.skipped.values().sum::<u64>();
            assert!(met > 0 && all.failed.is_empty(), "{} on {engine}: {all:#?}", suite.name);
        }
    }
}
