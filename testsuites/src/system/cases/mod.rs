//! System-level behaviour, one function a subject, named after the sections of the SDM that it checks. A case that is
//! not in its file's list is dead code, which the compiler tells.

// A program of one instruction reads as the longer ones do.
#![allow(clippy::redundant_closure_for_method_calls)]

mod access;
mod address_spaces;
mod avx;
mod code_fetch;
mod debug_events;
mod la57;
mod models;
pub(super) mod modes;
mod msrs;
mod paging;
mod privilege;
mod real_mode;
mod regressions;
mod segmentation;
mod system_calls;
mod tasks;
mod undefined;

/// Names and functions, which panic where something is wrong.
pub type List = &'static [(&'static str, fn())];

/// All cases by subject.
pub const SUBJECTS: &[(&str, List)] = &[
    ("access", access::CASES),
    ("address_spaces", address_spaces::CASES),
    ("avx", avx::CASES),
    ("code_fetch", code_fetch::CASES),
    ("debug_events", debug_events::CASES),
    ("la57", la57::CASES),
    ("models", models::CASES),
    ("modes", modes::CASES),
    ("msrs", msrs::CASES),
    ("paging", paging::CASES),
    ("privilege", privilege::CASES),
    ("real_mode", real_mode::CASES),
    ("regressions", regressions::CASES),
    ("segmentation", segmentation::CASES),
    ("system_calls", system_calls::CASES),
    ("tasks", tasks::CASES),
    ("undefined", undefined::CASES),
];
