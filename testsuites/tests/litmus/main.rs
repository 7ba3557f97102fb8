//! Litmus guests: two to four processors that really run at once, on every software engine. What the manual forbids
//! (SDM Vol. 3, Memory Ordering) must never be seen.
//!
//! `TRIMARAN_LONG` runs each fifty times as often.

// A program of one instruction reads as the longer ones do.
#![allow(clippy::redundant_closure_for_method_calls)]

mod code;
mod guest;
mod locks;
mod ordering;
mod translation;
