//! See `testsuites/src/fuzz/vectors.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trimaran_testsuites::fuzz::run("vectors", data));
