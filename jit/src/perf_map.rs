//! Names for translated code in Linux' `perf`: it looks into `/tmp/perf-PID.map`.

use std::fs::File;
use std::io::Write;

pub struct PerfMap(File);

impl PerfMap {
    pub fn open() -> Option<Self> {
        let path = format!("/tmp/perf-{}.map", std::process::id());
        match File::options().create(true).append(true).open(&path) {
            Ok(file) => Some(PerfMap(file)),
            Err(error) => {
                tracing::warn!("{path} cannot be written ({error}): perf will not name guest code");
                None
            }
        }
    }

    /// Names `len` bytes of code at `address` after the guest's `rip`.
    pub fn add(&mut self, address: usize, len: usize, rip: u64, emitted: bool) {
        let tier = if emitted { "warm" } else { "hot" };
        let _ = writeln!(self.0, "{address:x} {len:x} guest {rip:#x} {tier}");
    }
}
