//! A region for people: guest instructions and host instructions.

use crate::abi::Code;
use crate::region::{End, Region, Target};
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use std::collections::BTreeMap;
use std::fmt::Write;
use trimaran_cpu::ram::{PAGE, Ram};

/// Everything there is to see of a region: both sides; and if the back end explained itself, its intermediate code and its
/// host code once more, instruction by instruction of the guest's.
pub fn whole(region: &Region, ram: &Ram, rip: u64, code: &Code, address: u64) -> String {
    let mut out = format!("region {rip:#x}\n{}", guest(region, ram, rip));
    let Some(explanation) = &code.explanation else {
        let _ = writeln!(out, "host code, {} bytes:\n{}", code.bytes.len(), host(&code.bytes, address));
        return out;
    };
    let names = names(region, ram, rip);
    let name = |delta: &Option<i64>| delta.and_then(|d| names.get(&d)).map_or("; the region's own", |n| n);
    out += "CLIF:\n";
    let mut last = None;
    for (origin, line) in &explanation.intermediate {
        if last != Some(origin) && origin.is_some() {
            let _ = writeln!(out, "{}", name(origin));
        }
        last = Some(origin);
        let _ = writeln!(out, "    {line}");
    }
    let _ = writeln!(out, "host code, {} bytes:", code.bytes.len());
    let ends = explanation.origins.iter().skip(1).map(|o| o.0).chain([code.bytes.len()]);
    for ((start, origin), end) in explanation.origins.iter().zip(ends) {
        if let Some(bytes) = code.bytes.get(*start..end).filter(|b| !b.is_empty()) {
            let _ = writeln!(out, "{}\n{}", name(origin), host(bytes, address + *start as u64).trim_end());
        }
    }
    out
}

/// The guest's instructions as comments, by their distance from the entry.
fn names(region: &Region, ram: &Ram, rip: u64) -> BTreeMap<i64, String> {
    let text = guest(region, ram, rip);
    let line = |line: &str| {
        let address = u64::from_str_radix(line.split_whitespace().next()?, 16).ok()?;
        Some((address.wrapping_sub(rip) as i64, format!("; {}", line.trim())))
    };
    text.lines().filter(|l| l.starts_with(' ')).filter_map(line).collect()
}

/// The guest's side. `rip`: where the region is entered.
fn guest(region: &Region, ram: &Ram, rip: u64) -> String {
    let mut out = String::new();
    for (n, block) in region.blocks.iter().enumerate() {
        let _ = writeln!(out, "block {n}, {}:", ends(block.end));
        let start = rip.wrapping_add(block.delta as u64);
        let len: usize = block.insns.iter().map(|i| usize::from(i.len)).sum();
        let place = u64::from(region.page) * PAGE + region.offset.wrapping_add(block.delta as u64);
        let mut bytes = vec![0; len];
        // What crosses into another page is not shown whole.
        if !ram.read(place, &mut bytes) {
            continue;
        }
        disassemble(&mut out, u32::from(region.key.code_size()) * 8, start, &bytes);
    }
    out
}

fn ends(end: End) -> String {
    let target = |t: Target| match t {
        Target::Block(n) => format!("block {n}"),
        Target::Exit { slot, far, .. } => format!("{} slot {slot}", if far { "far" } else { "local" }),
    };
    match end {
        End::Goto(t) => format!("then {}", target(t)),
        End::Branch { taken, not_taken } => format!("taken: {}, else {}", target(taken), target(not_taken)),
        End::Indirect => "then where RIP says".into(),
        End::Dispatcher => "then the engine".into(),
    }
}

/// The host's side, on hosts whose code iced can read.
fn host(code: &[u8], address: u64) -> String {
    let mut out = String::new();
    if cfg!(target_arch = "x86_64") {
        disassemble(&mut out, 64, address, code);
    } else {
        for chunk in code.chunks(16) {
            let _ = writeln!(out, "  {chunk:02x?}");
        }
    }
    out
}

fn disassemble(out: &mut String, bitness: u32, rip: u64, bytes: &[u8]) {
    let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    let mut x = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut x);
        let mut text = String::new();
        formatter.format(&x, &mut text);
        let _ = writeln!(out, "  {:x}  {text}", x.ip());
    }
}
