//! What a model lacks is not there: instructions are #UD or what their bytes meant before, CR4's bits and MSRs are #GP.

use crate::system::{Bench, CODE};
use trimaran_cpu::state::{cr4, gpr};

pub const CASES: super::List = &[
    ("instructions_follow_the_model", instructions_follow_the_model),
    ("cr4_and_msrs_follow_the_model", cr4_and_msrs_follow_the_model),
    ("cpuid_ends_where_the_model_does", cpuid_ends_where_the_model_does),
];

/// Runs one instruction on a model; the vector of its exception.
fn run(model: &str, bytes: &[u8], prepare: impl Fn(&mut Bench)) -> (Option<u8>, Bench) {
    let mut b = Bench::of(model);
    b.flat.ram.write(CODE, bytes);
    b.flat.ram.write(CODE + bytes.len() as u64, &[0xF4]);
    prepare(&mut b);
    let outcome = b.run();
    let vector = match outcome {
        crate::system::Outcome::Halted(_) => None,
        other => Some(other.fault().0),
    };
    (vector, b)
}

fn instructions_follow_the_model() {
    const CPUID: &[u8] = &[0x0F, 0xA2];
    const RDTSC: &[u8] = &[0x0F, 0x31];
    const CMOVE: &[u8] = &[0x0F, 0x44, 0xC0];
    const NOP_WIDE: &[u8] = &[0x0F, 0x1F, 0xC0];
    const MOVAPS: &[u8] = &[0x0F, 0x28, 0xC1];
    const PSHUFB: &[u8] = &[0x66, 0x0F, 0x38, 0x00, 0xC1];
    const POPCNT: &[u8] = &[0xF3, 0x0F, 0xB8, 0xC0];
    const RDPID: &[u8] = &[0xF3, 0x0F, 0xC7, 0xF8];
    for (model, present, absent) in [
        ("486", &[CPUID][..], &[RDTSC, CMOVE, NOP_WIDE, MOVAPS, POPCNT][..]),
        ("pentium", &[CPUID, RDTSC], &[CMOVE, NOP_WIDE, MOVAPS]),
        ("p6", &[CPUID, RDTSC, CMOVE, NOP_WIDE], &[MOVAPS, PSHUFB]),
        ("core2", &[CMOVE, MOVAPS, PSHUFB], &[POPCNT, RDPID]),
        ("x86-64-v2", &[PSHUFB, POPCNT], &[RDPID]),
        ("x86-64-v2,-popcnt", &[PSHUFB], &[POPCNT]),
        ("max", &[POPCNT, RDPID], &[]),
    ] {
        let sse = |b: &mut Bench| b.flat.vcpu.state.cr4 |= cr4::OSFXSR;
        for bytes in present {
            assert_eq!(run(model, bytes, sse).0, None, "{model}: {bytes:02x?}");
        }
        for bytes in absent {
            assert_eq!(run(model, bytes, sse).0, Some(6), "{model}: {bytes:02x?}");
        }
    }
}

fn cr4_and_msrs_follow_the_model() {
    // MOV CR4, EAX.
    let set_cr4 = |model: &str, bits: u64| {
        run(model, &[0x0F, 0x22, 0xE0], |b| b.flat.vcpu.state.gpr[gpr::RAX] = bits).0
    };
    assert_eq!(set_cr4("486", cr4::VME), None);
    assert_eq!(set_cr4("486", cr4::PSE), Some(13));
    assert_eq!(set_cr4("pentium", cr4::PSE), None);
    assert_eq!(set_cr4("pentium", cr4::PAE), Some(13));
    assert_eq!(set_cr4("p6", cr4::PAE | cr4::PCE), None);
    assert_eq!(set_cr4("p6", cr4::OSFXSR), Some(13));
    assert_eq!(set_cr4("core2", cr4::OSXSAVE), Some(13));
    let read = |model: &str, msr: u64| run(model, &[0x0F, 0x32], |b| b.flat.vcpu.state.gpr[gpr::RCX] = msr).0;
    for (model, msr, vector) in [
        ("486", 0x10, Some(6)),
        ("pentium", 0x10, None),
        ("pentium", 0xFE, Some(13)),
        ("p6", 0xFE, None),
        ("p6", 0x174, None),
        ("p6", 0x277, Some(13)),
        ("p6", 0xC000_0080, Some(13)),
        ("core2", 0xC000_0080, None),
        ("core2", 0xC000_0103, Some(13)),
    ] {
        assert_eq!(read(model, msr), vector, "{model} {msr:#x}");
    }
}

fn cpuid_ends_where_the_model_does() {
    let ask = |model: &str, leaf: u64| {
        let (fault, b) = run(model, &[0x0F, 0xA2], |b| b.flat.vcpu.state.gpr[gpr::RAX] = leaf);
        assert_eq!(fault, None);
        b.flat.vcpu.state.gpr
    };
    assert_eq!(ask("486", 0)[gpr::RAX], 1);
    assert_eq!(ask("486", 1)[gpr::RAX], 0x480);
    assert_eq!(ask("pentium", 0x8000_0000)[gpr::RAX], 0x52C);
    assert_eq!(ask("p6", 2)[gpr::RDX], 0x0604_0A42);
    assert_eq!(ask("core2", 0x8000_0000)[gpr::RAX], 0x8000_0008);
    assert_eq!(ask("x86-64-v2", 0x4000_0000)[gpr::RAX], 0x4000_0000);
}
