//! Model-specific registers: what can be written, what reads back, and what is #GP(0) (SDM Vol. 4; Vol. 3, sections as
//! named).

use crate::system::*;
use iced_x86::code_asm::*;
use trimaran_cpu::state::gpr;

pub const CASES: super::List = &[
    ("values_that_are_written", values_that_are_written),
    ("machine_check_banks", machine_check_banks),
    ("only_at_cpl_0", only_at_cpl_0),
];

/// What WRMSR does: an exception, or the value that RDMSR gives then.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Gives(u64),
    Faults,
}
use Does::*;

const NOT_CANONICAL: u64 = 0xAAAA_AAAA_AAAA_AAAA;
const ADDRESS: u64 = 0x0000_1234_5678_9ABC;
/// Physical addresses have 40 bits.
const ABOVE: u64 = 1 << 40;

fn write(msr: u32, value: u64) -> Does {
    let mut b = Bench::long();
    b.code(|a| {
        a.mov(ecx, msr)?;
        a.mov(rax, value)?;
        a.mov(rdx, value >> 32)?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.hlt()
    });
    match b.run() {
        Outcome::Halted(_) => {
            let g = b.flat.vcpu.state.gpr;
            Gives(g[gpr::RDX] << 32 | g[gpr::RAX])
        }
        other => {
            assert_eq!(other.fault(), (13, 0), "{msr:#x} = {value:#x}");
            Faults
        }
    }
}

fn values_that_are_written() {
    let rows = [
        ("SYSENTER_CS", 0x174, 0x1234, Gives(0x1234)),
        ("SYSENTER_ESP", 0x175, ADDRESS, Gives(ADDRESS)),
        ("SYSENTER_ESP", 0x175, NOT_CANONICAL, Faults),
        ("SYSENTER_EIP", 0x176, ADDRESS, Gives(ADDRESS)),
        ("SYSENTER_EIP", 0x176, NOT_CANONICAL, Faults),
        ("MISC_ENABLE", 0x1A0, 0x4_00C5_0809, Gives(0x4_00C5_0809)),
        // "Page Attribute Table": types 0, 1, 4 to 7.
        ("PAT", 0x277, 0x0707_0707, Gives(0x0707_0707)),
        ("PAT", 0x277, 0x0007_0406_0007_0405, Gives(0x0007_0406_0007_0405)),
        ("PAT", 0x277, 2, Faults),
        ("PAT", 0x277, 0x0300_0000_0000_0000, Faults),
        ("PAT", 0x277, 0x0800, Faults),
        // "Memory Type Range Registers".
        ("MTRR_PHYSBASE0", 0x200, 0x8000_0006, Gives(0x8000_0006)),
        ("MTRR_PHYSBASE0", 0x200, 0x8000_0002, Faults),
        ("MTRR_PHYSBASE0", 0x200, 0x8000_0106, Faults),
        ("MTRR_PHYSBASE0", 0x200, ABOVE | 6, Faults),
        ("MTRR_PHYSMASK0", 0x201, 0xFF_C000_0800, Gives(0xFF_C000_0800)),
        ("MTRR_PHYSMASK0", 0x201, 0xFF_C000_0801, Faults),
        ("MTRR_PHYSMASK0", 0x201, ABOVE | 0x800, Faults),
        ("MTRR_PHYSMASK7", 0x20F, 0, Gives(0)),
        ("MTRR_FIX64K", 0x250, 0x0605_0401_0006_0504, Gives(0x0605_0401_0006_0504)),
        ("MTRR_FIX64K", 0x250, 7, Faults),
        ("MTRR_FIX4K_F8000", 0x26F, 0x0600, Gives(0x0600)),
        ("MTRR_DEF_TYPE", 0x2FF, 0xC06, Gives(0xC06)),
        ("MTRR_DEF_TYPE", 0x2FF, 0xC07, Faults),
        ("MTRR_DEF_TYPE", 0x2FF, 0x1006, Faults),
        ("MTRRCAP", 0xFE, 0, Faults),
        // EFER: SCE; LMA cannot be written, LME not changed under paging.
        ("EFER", 0xC000_0080, 0xD01, Gives(0xD01)),
        ("EFER", 0xC000_0080, 0x500, Gives(0x500)),
        ("EFER", 0xC000_0080, 0x100, Gives(0x500)),
        ("EFER", 0xC000_0080, 0x400, Faults),
        ("EFER", 0xC000_0080, 0x502, Faults),
        ("EFER", 0xC000_0080, 0x1500, Faults),
        ("STAR", 0xC000_0081, NOT_CANONICAL, Gives(NOT_CANONICAL)),
        ("LSTAR", 0xC000_0082, ADDRESS, Gives(ADDRESS)),
        ("LSTAR", 0xC000_0082, NOT_CANONICAL, Faults),
        ("CSTAR", 0xC000_0083, ADDRESS, Gives(ADDRESS)),
        ("CSTAR", 0xC000_0083, NOT_CANONICAL, Faults),
        ("SFMASK", 0xC000_0084, 0xFFFF_FFFF, Gives(0xFFFF_FFFF)),
        ("FS_BASE", 0xC000_0100, ADDRESS, Gives(ADDRESS)),
        ("FS_BASE", 0xC000_0100, NOT_CANONICAL, Faults),
        ("GS_BASE", 0xC000_0101, ADDRESS, Gives(ADDRESS)),
        ("GS_BASE", 0xC000_0101, NOT_CANONICAL, Faults),
        ("KERNEL_GS_BASE", 0xC000_0102, ADDRESS, Gives(ADDRESS)),
        ("KERNEL_GS_BASE", 0xC000_0102, NOT_CANONICAL, Faults),
        ("TSC_AUX", 0xC000_0103, 0xFFFF_FFFF, Gives(0xFFFF_FFFF)),
        ("TSC_AUX", 0xC000_0103, 1 << 32, Faults),
        ("TSC_ADJUST", 0x3B, 100_000_000_000, Gives(100_000_000_000)),
        // The address of the local APIC's page has 40 bits, too.
        ("APIC_BASE", 0x1B, ABOVE | 0xFEE0_0900, Faults),
        // Those that no processor has.
        ("0x12345", 0x1_2345, 0, Faults),
        ("0xC0000200", 0xC000_0200, 0, Faults),
    ];
    for (name, msr, value, expected) in rows {
        assert_eq!(write(msr, value), expected, "{name} = {value:#x}");
    }
}

/// "Machine-Check Architecture": ten banks. Control is all or nothing, status can only be cleared.
fn machine_check_banks() {
    for bank in 0..10 {
        let at = 0x400 + bank * 4;
        for (register, value, expected) in [
            (0, 0, Gives(0)),
            (0, u64::MAX, Gives(u64::MAX)),
            (0, NOT_CANONICAL, Faults),
            (1, 0, Gives(0)),
            (1, 1, Faults),
            (2, u64::MAX, Gives(u64::MAX)),
            (2, NOT_CANONICAL, Gives(NOT_CANONICAL)),
            (3, u64::MAX, Gives(u64::MAX)),
            (3, NOT_CANONICAL, Gives(NOT_CANONICAL)),
        ] {
            assert_eq!(write(at + register, value), expected, "bank {bank}, {register} = {value:#x}");
        }
    }
    for msr in 0x428..0x480 {
        assert_eq!(write(msr, 0), Faults, "{msr:#x}");
    }
    assert_eq!(write(0x17A, 0), Gives(0), "MCG_STATUS");
    assert_eq!(write(0x179, 0), Faults, "MCG_CAP is read-only");
}

/// "RDMSR", "WRMSR": privileged.
fn only_at_cpl_0() {
    for code in [[0x0F, 0x30], [0x0F, 0x32]] {
        let mut b = Bench::long();
        b.map_user();
        b.flat.ram.write(CODE, &code);
        b.flat.vcpu.state.gpr[gpr::RCX] = 0x10;
        b.ring(3);
        assert_eq!(b.run().fault(), (13, 0));
    }
}
