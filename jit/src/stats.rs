//! What the translator counts, and how `--stats` shows it.

use crate::engine::Tier;
use std::fmt::Write;
use std::time::Duration;
use trimaran_cpu::translate::Translated;

/// What one back end has made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Made {
    pub regions: u64,
    pub insns: u64,
    pub bytes: u64,
    pub time: Duration,
    pub refused: u64,
}

impl Made {
    pub fn add(&mut self, insns: usize, bytes: usize, time: Duration) {
        self.regions += 1;
        self.insns += insns as u64;
        self.bytes += bytes as u64;
        self.time += time;
    }
}

#[derive(Clone, Debug, Default)]
pub struct Stats {
    pub emitter: Made,
    pub cranelift: Made,
    /// Entries from the engine, and instructions that ran inside.
    pub entries: u64,
    pub insns: u64,
    /// Why code came back: lookup, unlinked slot, stop, interpret, done, hot.
    pub lookups: u64,
    pub unlinked: u64,
    pub stops: u64,
    pub interpreted: u64,
    pub helpers: u64,
    pub hot: u64,
    pub links: u64,
    pub far_links: u64,
    pub cut: u64,
    /// Windows of the emitter that failed.
    pub troubles: u64,
    pub invalidated: u64,
    pub evicted: u64,
    pub mapping_changes: u64,
    /// Blocks that ran in the interpreter because they were cold.
    pub cold: u64,
}

impl Stats {
    /// Text for people.
    pub fn report(&self, tier: Tier, live: usize, translated: &Translated, retired: u64) -> String {
        let mut out = String::new();
        let share = |n: u64| n as f64 * 100.0 / retired.max(1) as f64;
        let _ = writeln!(out, "translator, tier {tier}: {live} regions live");
        let _ =
            writeln!(out, "  {} instructions in translated code ({:.2} %)", self.insns, share(self.insns));
        for (name, made) in [("emitter", &self.emitter), ("cranelift", &self.cranelift)] {
            if made.regions + made.refused > 0 {
                let each = made.time.as_secs_f64() * 1e6 / made.insns.max(1) as f64;
                let _ = writeln!(
                    out,
                    "  {name}: {} regions, {} instructions, {} KiB of code, {:.0} ms ({each:.2} us an instruction), {} refused",
                    made.regions,
                    made.insns,
                    made.bytes >> 10,
                    made.time.as_secs_f64() * 1e3,
                    made.refused
                );
            }
        }
        let _ = writeln!(
            out,
            "  entries {}: looked up {}, unlinked {}, stopped {}, interpreted {}, helper left {}, hot {}; cold blocks {}",
            self.entries,
            self.lookups,
            self.unlinked,
            self.stops,
            self.interpreted,
            self.helpers,
            self.hot,
            self.cold
        );
        let _ = writeln!(
            out,
            "  links {} (far {}, {} made by code), cut {}; invalidated {}, evicted {}; mapping changes {}; windows failed {}",
            self.links,
            self.far_links,
            translated.found,
            self.cut,
            self.invalidated,
            self.evicted,
            self.mapping_changes,
            self.troubles
        );
        let mut helpers: Vec<(u64, usize)> =
            translated.helper_calls.iter().copied().enumerate().map(|(n, c)| (c, n)).collect();
        helpers.retain(|h| h.0 > 0);
        helpers.sort_unstable_by(|a, b| b.cmp(a));
        let total: u64 = helpers.iter().map(|h| h.0).sum();
        let _ = writeln!(out, "  helper calls {total} ({:.2} % of instructions)", share(total));
        for (count, code) in helpers.iter().take(24) {
            if let Ok(code) = iced_x86::Code::try_from(*code) {
                let _ = writeln!(out, "    {count:>12}  {code:?}");
            }
        }
        out
    }
}
