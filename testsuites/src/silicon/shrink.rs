//! Makes a failing case small, and prints it.

use super::Rig;
use super::case::Case;
use iced_x86::{Formatter, IntelFormatter};
use std::fmt::Write;

/// Removes instructions and simplifies registers as long as the sides still differ.
pub fn shrink(rig: &mut Rig, case: &Case) -> Case {
    let mut best = case.clone();
    let mut keep = |best: &mut Case, change: &dyn Fn(&mut Case)| {
        let mut smaller = best.clone();
        change(&mut smaller);
        if !smaller.code.is_empty() && !rig.differences(&smaller).is_empty() {
            *best = smaller;
        }
    };
    for n in (0..best.code.len()).rev() {
        keep(&mut best, &|c| {
            c.code.remove(n);
        });
    }
    for n in (0..16).filter(|&n| n != 4) {
        keep(&mut best, &|c| c.gpr[n] = 0);
        keep(&mut best, &|c| c.floating.xmm[n] = 0);
        keep(&mut best, &|c| c.floating.ymm_high[n] = 0);
    }
    for n in 0..8 {
        keep(&mut best, &|c| c.floating.st[n] = 0);
    }
    keep(&mut best, &|c| c.floating.control = 0x37F);
    keep(&mut best, &|c| c.floating.status &= 0x3800);
    keep(&mut best, &|c| c.floating.tags = 0xFF);
    keep(&mut best, &|c| c.floating.mxcsr = 0x1F80);
    keep(&mut best, &|c| c.rflags &= 0x602);
    keep(&mut best, &|c| c.rflags &= 0x202);
    best
}

/// A case as text, with what differs and the command that runs it.
pub fn describe(rig: &mut Rig, case: &Case) -> String {
    let mut out = text(case);
    for line in rig.differences(case) {
        let _ = writeln!(out, "  {line}");
    }
    let _ = write!(
        out,
        "  whole case: TRIMARAN_CASES=1 TRIMARAN_SEED={} cargo test -p trimaran-testsuites --test silicon",
        case.seed
    );
    out
}

/// Bytes, disassembly and input.
pub fn text(case: &Case) -> String {
    let mut out = String::new();
    let mut formatter = IntelFormatter::new();
    for (x, bytes) in case.instructions().iter().zip(&case.code) {
        let mut text = String::new();
        formatter.format(x, &mut text);
        let hex: Vec<_> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(out, "    {:30} {text}   ({:?})", hex.join(" "), x.code());
    }
    const NAMES: [&str; 16] = [
        "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13",
        "R14", "R15",
    ];
    for (name, value) in NAMES.iter().zip(case.gpr).filter(|(_, v)| *v != 0) {
        let _ = write!(out, "    {name}={value:#x}");
    }
    let f = &case.floating;
    let _ = write!(
        out,
        "\n    RFLAGS={:#x} FCW={:#x} FSW={:#x} FTW={:#x} MXCSR={:#x}\n",
        case.rflags, f.control, f.status, f.tags, f.mxcsr
    );
    for n in (0..8).filter(|&n| f.st[n] != 0) {
        let _ = writeln!(out, "    ST({n})={:020x}", f.st[n]);
    }
    for n in (0..16).filter(|&n| f.xmm[n] | f.ymm_high[n] != 0) {
        let _ = writeln!(out, "    YMM{n}={:032x}_{:032x}", f.ymm_high[n], f.xmm[n]);
    }
    out
}
