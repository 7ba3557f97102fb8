//! Two machines side by side: what differs between them.

use crate::flat::Machine;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};
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

/// Where page tables lie, and the accessed bits in eight bytes of them.
pub struct PageTables {
    pub range: Range<u64>,
    pub accessed: u64,
}

impl PageTables {
    /// `entry_size`: bytes of an entry, 4 or 8.
    pub fn new(range: Range<u64>, entry_size: u64) -> Self {
        PageTables { range, accessed: if entry_size == 8 { 0x20 } else { 0x20_0000_0020 } }
    }
}

/// What differs in RAM, in the first few places, and in what went to the bus.
///
/// Accessed bits of page tables are left out: an engine that looks ahead in the code may set them early, as processors do.
pub fn memories(tables: &PageTables, want: &Machine, got: &Machine) -> Vec<String> {
    let counts = |&(at, a, b): &(u64, u64, u64)| {
        (a ^ b) & !if tables.range.contains(&at) { tables.accessed } else { 0 } != 0
    };
    let places = want.ram.differences(&got.ram).filter(counts).take(8);
    let mut out: Vec<String> = places
        .map(|(at, a, b)| format!("RAM {at:#x}: interpreter {a:#018x}, translator {b:#018x}"))
        .collect();
    let (a, b) = (log(&want.bus.written), log(&got.bus.written));
    if *a != *b {
        let n = a.iter().zip(&*b).take_while(|(a, b)| a == b).count();
        out.push(format!("bus write {n}: interpreter {:x?}, translator {:x?}", a.get(n), b.get(n)));
    }
    out
}

fn log<T>(log: &Mutex<T>) -> MutexGuard<'_, T> {
    log.lock().expect("a log")
}

/// What differs in the counts of instructions at accesses to devices.
pub fn access_times(want: &Machine, got: &Machine) -> Option<String> {
    let (a, b) = (log(&want.bus.times), log(&got.bus.times));
    let text = || {
        let n = a.iter().zip(&*b).take_while(|(a, b)| a == b).count();
        format!("count at bus access {n}: interpreter {:?}, translator {:?}", a.get(n), b.get(n))
    };
    (*a != *b).then(text)
}
