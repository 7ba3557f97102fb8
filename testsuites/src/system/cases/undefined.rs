//! SDM Vol. 3, "Interrupt 6—Invalid Opcode Exception (#UD)": encodings that are no instruction, or none in this mode, at
//! this privilege, on this model; and some that look so and are.

use super::modes::real;
use crate::system::*;

pub const CASES: super::List = &[
    ("encodings", encodings),
    ("modes", modes),
    ("what_models_lack", what_models_lack),
    ("cache_lines", cache_lines),
    ("virtualization", virtualization),
];

/// The exception that the bytes give, followed by HLT, or None.
fn run(mut b: Bench, bytes: &[u8]) -> Option<(u8, u64)> {
    b.flat.ram.write(CODE, bytes);
    b.flat.ram.write(CODE + bytes.len() as u64, &[0xF4]);
    b.flat.vcpu.state.gpr[0] = PAGE;
    b.flat.vcpu.state.gpr[3] = PAGE;
    match b.run() {
        Outcome::Halted(_) => None,
        other => Some(other.fault()),
    }
}

const UD: Option<(u8, u64)> = Some((6, 0));

fn encodings() {
    // Name, bytes, what happens in 32-bit and in 64-bit mode.
    for (name, bytes, protected, long) in [
        ("LEA of a register", &[0x8D, 0xC0][..], UD, UD),
        ("MOVBE of a register", &[0x0F, 0x38, 0xF0, 0xC0], UD, UD),
        ("LES of a register", &[0xC4, 0xC0, 0x90], UD, UD),
        ("LFS of a register", &[0x0F, 0xB4, 0xC0], UD, UD),
        ("CMPXCHG8B of a register", &[0x0F, 0xC7, 0xC8], UD, UD),
        ("CLWB's slot with a register", &[0x66, 0x0F, 0xAE, 0xF0], UD, UD),
        ("PCOMMIT", &[0x66, 0x0F, 0xAE, 0xF8], UD, UD),
        ("FXSAVE's slot with a register", &[0x0F, 0xAE, 0xC0], UD, UD),
        ("INVLPG of a register", &[0x0F, 0x01, 0xFF], UD, UD),
        ("LGDT of a register", &[0x0F, 0x01, 0xD7], UD, UD),
        ("UD2", &[0x0F, 0x0B], UD, UD),
        ("UD1", &[0x0F, 0xB9, 0xC0], UD, UD),
        ("UD0", &[0x0F, 0xFF, 0xC0], UD, UD),
        ("MOV CS", &[0x8E, 0xC8], UD, UD),
        ("MOV of a seventh segment", &[0x8E, 0xF0], UD, UD),
        ("MOV CR1", &[0x0F, 0x20, 0xC8], UD, UD),
        ("MOV CR5", &[0x0F, 0x20, 0xE8], UD, UD),
        ("BTx's group, 0", &[0x0F, 0xBA, 0xC0, 1], UD, UD),
        ("group FE, 2", &[0xFE, 0xD0], UD, UD),
        ("group FF, 7", &[0xFF, 0xF8], UD, UD),
        ("JMP FAR to a register", &[0xFF, 0xE8], UD, UD),
        ("POP's group, 1", &[0x8F, 0xC8], UD, UD),
        ("group C6, 1", &[0xC6, 0xC8, 0], UD, UD),
        ("group 9, 5", &[0x0F, 0xC7, 0xE8], UD, UD),
        ("3DNow!", &[0x0F, 0x0F, 0xC0, 0xB4], UD, UD),
        ("SALC", &[0xD6], None, UD),
        ("AAM", &[0xD4, 10], None, UD),
        ("DAA", &[0x27], None, UD),
        ("PUSHAD", &[0x60], None, UD),
        ("PUSH DS", &[0x1E], None, UD),
        ("the copy of group 1", &[0x82, 0xC0, 1], None, UD),
        ("BOUND, or EVEX cut short", &[0x62, 0x00], Some((5, 0)), UD),
        ("SYSCALL without SCE", &[0x0F, 0x05], UD, UD),
        ("SWAPGS", &[0x0F, 0x01, 0xF8], UD, None),
        ("XSAVE without OSXSAVE", &[0x0F, 0xAE, 0x20], UD, UD),
        ("XGETBV without OSXSAVE", &[0x0F, 0x01, 0xD0], UD, UD),
        ("XBEGIN", &[0xC7, 0xF8, 0, 0, 0, 0], UD, UD),
        ("XTEST", &[0x0F, 0x01, 0xD6], UD, UD),
        ("RDPRU", &[0x0F, 0x01, 0xFD], UD, UD),
        ("MONITORX", &[0x0F, 0x01, 0xFA], UD, UD),
        ("ENDBR64", &[0xF3, 0x0F, 0x1E, 0xFA], None, None),
        ("RDSSPD", &[0xF3, 0x0F, 0x1E, 0xC8], None, None),
        ("WRSSD", &[0x0F, 0x38, 0xF6, 0x00], UD, UD),
        ("a long NOP", &[0x66, 0x0F, 0x1F, 0x44, 0, 0], None, None),
        ("REP NOP", &[0xF3, 0x90], None, None),
    ] {
        assert_eq!(run(Bench::protected(), bytes), protected, "{name} in 32-bit mode");
        let mut b = Bench::long();
        b.map(PAGE, 3);
        assert_eq!(run(b, bytes), long, "{name} in 64-bit mode");
    }
}

/// Instructions of protected mode in real-address mode.
fn modes() {
    for (name, bytes) in [
        ("SLDT", &[0x0F, 0x00, 0xC0][..]),
        ("STR", &[0x0F, 0x00, 0xC8]),
        ("LLDT", &[0x0F, 0x00, 0xD0]),
        ("LTR", &[0x0F, 0x00, 0xD8]),
        ("VERR", &[0x0F, 0x00, 0xE0]),
        ("VERW", &[0x0F, 0x00, 0xE8]),
        ("LAR", &[0x0F, 0x02, 0xC0]),
        ("LSL", &[0x0F, 0x03, 0xC0]),
        ("ARPL", &[0x63, 0xC0]),
        ("RDFSBASE", &[0xF3, 0x0F, 0xAE, 0xC0]),
    ] {
        let mut b = real();
        b.flat.ram.write(CODE, bytes);
        let outcome = b.run();
        assert!(matches!(outcome, Outcome::Raised(_)), "{name}: {outcome:x?}");
        assert_eq!(b.flat.vcpu.state.rip() - STUBS - 1, 6, "{name}");
    }
}

fn what_models_lack() {
    for (model, name, bytes, expected) in [
        ("x86-64-v2", "CLFLUSH", &[0x0F, 0xAE, 0x3B][..], None),
        (
            "x86-64-v2,-clflush,-sse2,-sse3,-ssse3,-sse4_1,-sse4_2,-aes,-pclmulqdq,-lm,-cx16,-pcid,-invpcid,-fsgsbase,-pdpe1gb,-lahf_lm",
            "CLFLUSH",
            &[0x0F, 0xAE, 0x3B],
            UD,
        ),
        ("x86-64-v2", "CLFLUSHOPT", &[0x66, 0x0F, 0xAE, 0x3B], UD),
        ("max", "CLFLUSHOPT", &[0x66, 0x0F, 0xAE, 0x3B], None),
        ("x86-64-v3", "CLWB", &[0x66, 0x0F, 0xAE, 0x33], UD),
        ("max", "CLWB", &[0x66, 0x0F, 0xAE, 0x33], None),
        ("x86-64-v2,-invpcid", "INVPCID", &[0x66, 0x0F, 0x38, 0x82, 0x18], UD),
        ("x86-64-v2", "RDPKRU", &[0x0F, 0x01, 0xEE], UD),
        ("x86-64-v2,-smap", "STAC", &[0x0F, 0x01, 0xCB], UD),
        ("x86-64-v2,-rdtscp", "RDTSCP", &[0x0F, 0x01, 0xF9], UD),
        ("pentium", "SFENCE", &[0x0F, 0xAE, 0xF8], UD),
        ("core2", "SFENCE", &[0x0F, 0xAE, 0xF8], None),
    ] {
        assert_eq!(run(Bench::of(model), bytes), expected, "{name} on {model}");
    }
}

/// CLFLUSH, CLFLUSHOPT, CLWB [RBX]: checked as reads.
fn cache_lines() {
    for bytes in [&[0x0F, 0xAE, 0x3B][..], &[0x66, 0x0F, 0xAE, 0x3B], &[0x66, 0x0F, 0xAE, 0x33]] {
        for (bits, expected) in [(0, Some((14, 4))), (1, Some((14, 5))), (5, Some((13, 0)))] {
            let mut b = Bench::long();
            b.map_user();
            b.map(PAGE, bits);
            b.ring(3);
            // HLT is privileged: what a program may do ends in #GP.
            assert_eq!(run(b, bytes), expected, "{bytes:02x?} {bits}");
        }
    }
}

/// No VMX, no SVM, no SGX: their instructions are #UD at every privilege.
fn virtualization() {
    for (name, bytes) in [
        ("VMCALL", &[0x0F, 0x01, 0xC1][..]),
        ("VMLAUNCH", &[0x0F, 0x01, 0xC2]),
        ("VMRESUME", &[0x0F, 0x01, 0xC3]),
        ("VMXOFF", &[0x0F, 0x01, 0xC4]),
        ("VMFUNC", &[0x0F, 0x01, 0xD4]),
        ("VMREAD", &[0x0F, 0x78, 0xC0]),
        ("VMXON", &[0xF3, 0x0F, 0xC7, 0x30]),
        ("VMRUN", &[0x0F, 0x01, 0xD8]),
        ("VMMCALL", &[0x0F, 0x01, 0xD9]),
        ("STGI", &[0x0F, 0x01, 0xDC]),
        ("INVLPGA", &[0x0F, 0x01, 0xDF]),
        ("SKINIT", &[0x0F, 0x01, 0xDE]),
        ("ENCLS", &[0x0F, 0x01, 0xCF]),
        ("GETSEC", &[0x0F, 0x37]),
    ] {
        for cpl in [0, 3] {
            let mut b = Bench::long();
            b.map_user();
            b.ring(cpl);
            assert_eq!(run(b, bytes), UD, "{name} at CPL {cpl}");
        }
    }
}
