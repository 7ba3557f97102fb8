//! See `testsuites/src/fuzz/media.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trimaran_testsuites::fuzz::run("media", data));
