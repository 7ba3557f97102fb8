//! Traces a difference to its cause, and prints it.

use super::{Case, Difference, lockstep, step};
use crate::flat::Machine;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use std::fmt::Write;
use trimaran_cpu::engine::{Interpreter, Stop};
use trimaran_cpu::state::{attr, gpr, seg};
use trimaran_jit::{Jit, JitOptions, Tier};

/// The slices up to the first that ends in a difference, its budget as small as it can be.
fn shortest(case: &Case, options: JitOptions, first: &Difference) -> (Vec<(u64, bool)>, Difference) {
    let mut slices = case.slices[..=first.slice].to_vec();
    // RAM may have differed for a while.
    let mut best = match lockstep(case, &slices, &Jit { options }, 1).0 {
        Some(found) => found,
        None => return (slices, Difference { slice: first.slice, lines: first.lines.clone() }),
    };
    slices.truncate(best.slice + 1);
    let last = slices.len() - 1;
    let (mut good, mut bad) = (0, slices[last].0);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        slices[last].0 = middle;
        match lockstep(case, &slices, &Jit { options }, 1).0 {
            Some(found) if found.slice == last => (bad, best) = (middle, found),
            _ => good = middle,
        }
    }
    slices[last].0 = bad;
    (slices, best)
}

/// The number of the region without which there is no difference.
fn culprit(case: &Case, options: JitOptions, slices: &[(u64, bool)]) -> Option<u64> {
    let differs = |most| {
        let options = JitOptions { first_regions: Some(most), ..options };
        lockstep(case, slices, &Jit { options }, 1).0.is_some()
    };
    if options.tier == Tier::All || !differs(1 << 20) || differs(0) {
        return None;
    }
    let (mut good, mut bad) = (0, 1 << 20);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if differs(middle) { bad = middle } else { good = middle }
    }
    Some(bad)
}

/// A difference as text, with the command that shows it again.
pub fn describe(case: &Case, tier: &str, options: JitOptions, first: &Difference) -> String {
    let (slices, found) = shortest(case, options, first);
    let region = culprit(case, options, &slices);
    let total: u64 = slices.iter().map(|s| s.0).sum();
    let mut out = format!(
        "seed {} on {tier}: {}, warm {}, after slice {} of {}, {total} instructions in all\n",
        case.seed,
        case.program.describe(),
        options.warm,
        slices.len() - 1,
        case.slices.len(),
    );
    if let Some(region) = region {
        let _ = writeln!(out, "  the region made as number {region} does it");
    }
    for line in found.lines.iter().take(12) {
        let _ = writeln!(out, "  {line}");
    }
    let _ = writeln!(out, "  what the interpreter ran last:");
    for line in trace(case, &slices, 24) {
        let _ = writeln!(out, "    {line}");
    }
    let _ = write!(
        out,
        "  again: TRIMARAN_ENGINE={tier} TRIMARAN_CASES=1 TRIMARAN_SEED={} cargo test -p trimaran-testsuites --test \
         {}",
        case.seed, case.test
    );
    out
}

/// Up to 15 bytes at RIP.
fn code_bytes(m: &mut Machine) -> Vec<u8> {
    let s = m.engine.state();
    let (rip, base) = (s.gpr[gpr::RIP], s.seg[seg::CS].base);
    let long = s.seg[seg::CS].attributes & attr::L != 0;
    let mut bytes = Vec::new();
    while bytes.len() < 15 {
        let linear = base.wrapping_add(rip).wrapping_add(bytes.len() as u64);
        let Some(place) = m.engine.probe(if long { linear } else { linear & 0xFFFF_FFFF }) else { break };
        let mut byte = [0];
        m.ram.read(place, &mut byte);
        bytes.push(byte[0]);
    }
    bytes
}

/// The last instructions that the interpreter runs.
fn trace(case: &Case, slices: &[(u64, bool)], most: u64) -> Vec<String> {
    let mut m = case.machine(&Interpreter);
    let Some((&(last, interrupt), before)) = slices.split_last() else { return Vec::new() };
    for &slice in before {
        if step(&mut m, slice) == Stop::Halted {
            case.program.resume(&mut m);
        }
    }
    let mut interrupt = interrupt;
    if last > most {
        step(&mut m, (last - most, interrupt));
        interrupt = false;
    }
    let mut out = Vec::new();
    for _ in 0..last.min(most) {
        let rip = m.engine.state().gpr[gpr::RIP];
        let bytes = code_bytes(&mut m);
        let x = Decoder::with_ip(case.program.bits(), &bytes, rip, DecoderOptions::NONE).decode();
        let mut text = String::new();
        IntelFormatter::new().format(&x, &mut text);
        let hex: Vec<_> = bytes[..x.len().min(bytes.len())].iter().map(|b| format!("{b:02x}")).collect();
        out.push(format!("{rip:#x}: {:32} {text}", hex.join(" ")));
        let stop = step(&mut m, (1, std::mem::take(&mut interrupt)));
        if stop != Stop::Budget && !(stop == Stop::Halted && case.program.resume(&mut m)) {
            break;
        }
    }
    out
}
