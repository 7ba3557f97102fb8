//! The translator against the interpreter; see `trimaran_testsuites::differential`.

// A program of one instruction reads as the longer ones do.
#![allow(clippy::redundant_closure_for_method_calls)]

mod cache;
mod division;
mod events;
mod mapping;
mod modification;
mod random;
mod tiers;
mod windows;
mod x87;

use trimaran_testsuites::workbench as bench;
