//! Two states of a processor side by side.

use trimaran_cpu::state::{CpuState, Segment, TableRegister, gpr};

const GENERAL: [&str; 17] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rip",
];
const SEGMENTS: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "flat", "flat stack"];

/// What differs between `a` and `b`: name, value before, and in both.
pub fn differences(before: &CpuState, a: &CpuState, b: &CpuState) -> Vec<(String, [String; 3])> {
    let (before, a, b) = (fields(before), fields(a), fields(b));
    let rows = before.into_iter().zip(a).zip(b);
    let rows = rows.map(|(((name, before), (_, a)), (_, b))| (name, [before, a, b]));
    rows.filter(|(_, [_, a, b])| a != b).collect()
}

/// All of a state by name, values as text.
fn fields(s: &CpuState) -> Vec<(String, String)> {
    let mut list = Vec::with_capacity(200);
    let mut add = |name: &str, value: String| list.push((name.to_owned(), value));
    GENERAL.iter().zip(s.gpr).for_each(|(name, value)| add(name, format!("{value:016x}")));
    add("zero", format!("{:x}", s.gpr[gpr::ZERO]));
    add("rflags", format!("{:x}", s.rflags.bits()));
    SEGMENTS.iter().zip(&s.seg).for_each(|(name, s)| add(name, segment(s)));
    add("ldtr", segment(&s.ldtr));
    add("tr", segment(&s.tr));
    add("gdtr", table(s.gdtr));
    add("idtr", table(s.idtr));
    add("cpl", s.cpl.to_string());
    add("activity", format!("{:?}", s.activity));
    add("shadow", format!("{:?}", s.shadow));
    add("nmi blocked, pending", format!("{}, {}", s.nmi_blocked, s.nmis_pending));
    add("smm, smi pending", format!("{}, {}", s.smm, s.smi_pending));
    for (name, value) in [
        ("cr0", s.cr0),
        ("cr2", s.cr2),
        ("cr3", s.cr3),
        ("cr4", s.cr4),
        ("xcr0", s.xcr0),
        ("pkru", s.pkru.into()),
    ] {
        add(name, format!("{value:x}"));
    }
    add("pdpte", format!("{:x?}", s.pdpte));
    add("dr", format!("{:x?}", s.dr));
    add("debug traps that wait", format!("{:x}", s.pending_debug));
    add("monitor", format!("{:x?}", s.monitor));
    // `Msrs { efer: 0, star: 0, ...`: a name each.
    let msrs = format!("{:x?}", s.msr);
    let open = msrs.find('{').map_or(0, |at| at + 1);
    let mut name = String::new();
    for part in msrs[open..].split(", ") {
        if let Some((field, _)) = part.split_once(": ") {
            name = field.trim().to_owned();
        }
        add(&format!("msr {name}"), part.to_owned());
    }
    let x = &s.x87;
    for (n, r) in x.registers.iter().enumerate() {
        add(&format!("x87 r{n}"), format!("{:04x} {:016x}", r.sign_exponent, r.significand));
    }
    add("x87 control, status, valid", format!("{:04x} {:04x} {:02x}", x.control, x.status, x.valid));
    let (selectors, pointers) =
        ((x.instruction_selector, x.data_selector), (x.instruction_pointer, x.data_pointer));
    add("x87 last opcode, pointers", format!("{:03x} {selectors:x?} {pointers:x?}", x.opcode));
    add("mxcsr", format!("{:x}", s.mxcsr));
    for (n, value) in s.zmm.iter().enumerate() {
        let words: String = value.iter().rev().map(|word| format!("{word:016x}")).collect();
        let short = words.trim_start_matches('0');
        add(&format!("zmm{n}"), if short.is_empty() { "0".into() } else { short.into() });
    }
    s.k.iter().enumerate().for_each(|(n, value)| add(&format!("k{n}"), format!("{value:x}")));
    add("retired", s.retired.to_string());
    list
}

fn segment(s: &Segment) -> String {
    format!("{:04x} base {:x} limit {:x} attributes {:04x}", s.selector, s.base, s.limit, s.attributes)
}

fn table(t: TableRegister) -> String {
    format!("{:x} limit {:x}", t.base, t.limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_cpu::state::{Activity, RFlags};

    #[test]
    fn every_difference_is_named() {
        let before = CpuState::reset(0, true);
        type Change = fn(&mut CpuState);
        let changes: [(&str, Change); 12] = [
            ("r9", |s| s.gpr[9] = 1),
            ("rflags", |s| s.rflags |= RFlags::CF),
            ("ds", |s| s.seg[3].limit = 5),
            ("gdtr", |s| s.gdtr.limit = 5),
            ("activity", |s| s.activity = Activity::Halted),
            ("dr", |s| s.dr[3] = 9),
            ("msr lstar", |s| s.msr.lstar = 9),
            ("msr mtrr_fixed", |s| s.msr.mtrr_fixed[10] = 9),
            ("x87 r3", |s| s.x87.registers[3].significand = 1),
            ("zmm31", |s| s.zmm[31][7] = 1),
            ("k7", |s| s.k[7] = 1),
            ("retired", |s| s.retired = 1),
        ];
        for (name, change) in changes {
            let mut other = before.clone();
            change(&mut other);
            let found = differences(&before, &before, &other);
            assert_eq!(found.iter().map(|row| row.0.as_str()).collect::<Vec<_>>(), [name]);
        }
    }
}
