//! System-level behaviour, one function a subject, named after the sections of the SDM that it checks.

// A program of one instruction reads as the longer ones do.
#![allow(clippy::redundant_closure_for_method_calls)]

mod code_fetch;
mod debug_events;
mod models;
mod modes;
mod paging;
mod privilege;
mod regressions;
mod segmentation;
mod system_calls;
mod tasks;
