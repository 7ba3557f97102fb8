//! Two machines side by side: what differs between them.

use super::kernel::{World, at};
use crate::flat::Machine;
use trimaran_cpu::state::{CpuState, gpr};

const NAMES: [&str; gpr::COUNT] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15", "RIP", "zero",
];

/// What differs in the state, as lines `field: reference, other`.
pub fn states(want: &CpuState, got: &CpuState) -> Vec<String> {
    let mut out = Vec::new();
    if want == got {
        return out;
    }
    let mut differ = |name: &str, a: String, b: String| {
        if a != b {
            out.push(format!("{name}: interpreter {a}, translator {b}"));
        }
    };
    for (n, name) in NAMES.iter().enumerate() {
        differ(name, format!("{:#x}", want.gpr[n]), format!("{:#x}", got.gpr[n]));
    }
    differ("RFLAGS", format!("{:?}", want.rflags), format!("{:?}", got.rflags));
    differ("retired", want.retired.to_string(), got.retired.to_string());
    differ("CR2", format!("{:#x}", want.cr2), format!("{:#x}", got.cr2));
    differ("activity", format!("{:?}", want.activity), format!("{:?}", got.activity));
    differ("MXCSR", format!("{:#x}", want.mxcsr), format!("{:#x}", got.mxcsr));
    differ("x87", format!("{:x?}", want.x87), format!("{:x?}", got.x87));
    for n in 0..32 {
        let text = |s: &CpuState| format!("{:016x?}", s.zmm[n]);
        differ(&format!("ZMM{n}"), text(want), text(got));
    }
    // Whatever is left.
    if out.is_empty() {
        let (a, b) = (format!("{want:#x?}"), format!("{got:#x?}"));
        let lines = a.lines().zip(b.lines()).filter(|(a, b)| a != b);
        out.extend(lines.map(|(a, b)| format!("interpreter {a}, translator {b}")));
    }
    out
}

/// What differs in RAM, in the first few places, and in what went to the bus.
///
/// Accessed bits of page tables are left out: an engine that looks ahead in the code may set them early, as processors do.
pub fn memories(world: &World, want: &Machine, got: &Machine) -> Vec<String> {
    let mut out = Vec::new();
    let read = |m: &Machine| {
        let mut bytes = vec![0; m.ram.len() as usize];
        assert!(m.ram.read(0, &mut bytes));
        for address in (at::ROOT..at::CONTROL).step_by(world.entry_size() as usize) {
            bytes[address as usize] &= !0x20;
        }
        bytes
    };
    let (a, b) = (read(want), read(got));
    if a != b {
        let places = a.iter().zip(&b).enumerate().filter(|(_, (a, b))| a != b);
        for (address, (a, b)) in places.take(8) {
            out.push(format!("RAM {address:#x}: interpreter {a:#x}, translator {b:#x}"));
        }
    }
    let log = |m: &Machine| m.bus.written.lock().map(|l| l.clone()).unwrap_or_default();
    let (a, b) = (log(want), log(got));
    if a != b {
        let n = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        out.push(format!("bus write {n}: interpreter {:x?}, translator {:x?}", a.get(n), b.get(n)));
    }
    out
}

/// What differs in the counts of instructions at accesses to devices.
pub fn access_times(want: &Machine, got: &Machine) -> Option<String> {
    let times = |m: &Machine| m.bus.times.lock().map(|l| l.clone()).unwrap_or_default();
    let (a, b) = (times(want), times(got));
    let n = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let text = || format!("count at bus access {n}: interpreter {:?}, translator {:?}", a.get(n), b.get(n));
    (a != b).then(text)
}
