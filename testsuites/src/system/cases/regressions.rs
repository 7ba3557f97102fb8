//! What the comparison with silicon found, as cases of their own, for hosts that cannot compare.

use crate::system::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub const CASES: super::List = &[
    ("x87_status", x87_status),
    ("x87_stores_check_their_place", x87_stores_check_their_place),
    ("cr2_of_a_store_that_crosses", cr2_of_a_store_that_crosses),
    ("ignored_segment_prefix", ignored_segment_prefix),
    ("last_x87_opcode", last_x87_opcode),
];

/// x87 state before (control, status, tags); a program; the status word after.
type Row = (&'static str, u16, u16, u8, fn(&mut CodeAssembler) -> Result<(), IcedError>, u16);

/// Stack faults and denormals (SDM Vol. 1, "x87 FPU Floating-Point Exception Conditions").
fn x87_status() {
    let rows: &[Row] = &[
        (
            "FLD of an empty register onto a full stack: underflow",
            0x37F,
            0x2800,
            0xB8,
            |a| a.fld(st5),
            0x2041,
        ),
        ("FCOS of an empty register clears C2", 0x37F, 0x4D00, 0xFD, |a| a.fcos(), 0x4941),
        ("FPTAN with no room clears C2", 0x37F, 0x5500, 0xFF, |a| a.fptan(), 0x4B41),
        ("FPREM of an empty register clears C2", 0x37F, 0x3D00, 0x84, |a| a.fprem(), 0x3941),
        ("FSTPNCE of an empty register faults not", 0x37F, 0, 0xF6, |a| a.db(&[0xD9, 0xDD]), 0x0800),
        ("FLD of a denormal with DM = 0 pushes", 0x37D, 0x2800, 0, |a| a.fld(dword_ptr(PAGE)), 0xA082),
        (
            "a denormal over 0 is #Z, not #D",
            0x37F,
            0,
            0,
            |a| {
                a.fldz()?;
                a.fdivr(dword_ptr(PAGE))
            },
            0x3804,
        ),
    ];
    for &(name, control, status, tags, program, expected) in rows {
        let mut b = Bench::long();
        b.put(PAGE, 1);
        b.code(|a| {
            program(a)?;
            a.hlt()
        });
        let x = &mut b.flat.vcpu.state.x87;
        (x.control, x.status, x.valid) = (control, status, tags);
        b.run().halted();
        assert_eq!(b.flat.vcpu.state.x87.status, expected, "{name}");
    }
}

/// A store that an unmasked #IA suppresses must still find its place.
fn x87_stores_check_their_place() {
    type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let programs: [Emit; 4] = [
        |a| a.fst(dword_ptr(PAGE)),
        |a| a.fistp(word_ptr(PAGE)),
        |a| a.fstp(tbyte_ptr(PAGE)),
        |a| a.fbstp(tbyte_ptr(PAGE)),
    ];
    for program in programs {
        let mut b = Bench::long();
        b.map(PAGE, 0);
        b.code(program);
        b.flat.vcpu.state.x87.control = 0x37E;
        b.flat.vcpu.state.x87.valid = 0;
        assert_eq!(b.run().fault(), (14, 2));
        assert_eq!(b.flat.vcpu.state.x87.status & 0x3F, 0);
    }
}

/// CR2 of a store across pages is the first byte of the page that faults.
fn cr2_of_a_store_that_crosses() {
    let mut b = Bench::long();
    b.map(PAGE + 0x1000, 0);
    b.code(|a| a.fstp(tbyte_ptr(PAGE + 0xFFD)));
    assert_eq!(b.run().fault(), (14, 2));
    assert_eq!(b.flat.vcpu.state.cr2, PAGE + 0x1000);
}

/// In 64-bit mode a DS prefix does not turn #SS off RSP into #GP.
fn ignored_segment_prefix() {
    let mut b = Bench::long();
    b.code(|a| {
        a.mov(rbp, 1u64 << 47)?;
        // MOV EAX, DS:[RBP]
        a.db(&[0x3E, 0x8B, 0x45, 0x00])
    });
    assert_eq!(b.run().fault(), (12, 0));
}

/// FOP is that of the last instruction with an unmasked exception (SDM Vol. 1, "Fopcode Compatibility Sub-mode").
fn last_x87_opcode() {
    let mut b = Bench::protected();
    b.put(PAGE, 0x37B);
    b.code(|a| {
        a.fninit()?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        a.fnstenv(ptr(PAGE + 0x100))?;
        a.fninit()?;
        a.fldcw(word_ptr(PAGE))?;
        a.fldz()?;
        a.fld1()?;
        a.fdiv_2(st0, st1)?;
        a.fnclex()?;
        a.fabs()?;
        a.fnstenv(ptr(PAGE + 0x200))?;
        a.hlt()
    });
    b.run().halted();
    // The word after the instruction pointer: CS, then FOP.
    assert_eq!((b.get(PAGE + 0x112, 2), b.get(PAGE + 0x212, 2)), (0, 0x0F1));
}
