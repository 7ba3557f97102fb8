//! The directed system-level tests, one line each; see `trimaran_testsuites::system`.

use libtest_mimic::{Arguments, Trial};
use trimaran_testsuites::system::cases::SUBJECTS;

fn main() {
    let trial = |subject: &str, (name, case): &(&str, fn())| {
        let case = *case;
        Trial::test(format!("{subject}::{name}"), move || {
            case();
            Ok(())
        })
    };
    let trials =
        SUBJECTS.iter().flat_map(|(subject, list)| list.iter().map(move |entry| trial(subject, entry)));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
