//! A region for people: guest instructions and host instructions.

use crate::region::{End, Region, Target};
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use std::fmt::Write;
use trimaran_cpu::ram::{PAGE, Ram};

/// The guest's side. `rip`: where the region is entered.
pub fn guest(region: &Region, ram: &Ram, rip: u64) -> String {
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
pub fn host(code: &[u8], address: u64) -> String {
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
