//! Real-address mode, compatibility mode, descriptor-table instructions, and what single instructions check.

use crate::system::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trimaran_cpu::state::{RFlags, Segment, attr, cr0, cr4, seg};

pub const CASES: super::List = &[
    ("real_mode_events", real_mode_events),
    ("real_to_protected_and_back", real_to_protected_and_back),
    ("compatibility_mode", compatibility_mode),
    ("call_gate_64", call_gate_64),
    ("system_segment_loads", system_segment_loads),
    ("instruction_checks", instruction_checks),
    ("protected_mode_virtual_interrupts", protected_mode_virtual_interrupts),
    ("stack_width", stack_width),
    ("task_switch_trap", task_switch_trap),
];

/// Real-address mode at 0:[`CODE`] with an IVT of HLTs.
pub(in crate::system) fn real() -> Bench {
    let mut b = Bench::protected();
    for vector in 0..256 {
        b.flat.ram.write(vector * 4, &((STUBS + vector) as u32).to_le_bytes());
    }
    let s = &mut b.flat.vcpu.state;
    s.cr0 &= !cr0::PE;
    s.idtr.base = 0;
    s.idtr.limit = 0x3FF;
    let data = attr::P | attr::S | attr::RW | attr::A;
    for n in 0..6 {
        s.seg[n] = Segment::real(0, data);
    }
    s.seg[seg::CS].attributes |= attr::CODE;
    b
}

/// The words that a real-mode event pushed: IP, CS, FLAGS; and the vector.
fn real_frame(b: &Bench, outcome: Outcome) -> (u64, u64, u64, u64) {
    // The bench reads frames of 32 bits; the address of the HLT is all that it says here.
    assert!(matches!(outcome, Outcome::Raised(_)), "{outcome:x?}");
    let s = &b.flat.vcpu.state;
    let top = s.gpr[4];
    (s.gpr[16] - STUBS - 1, b.get(top, 2), b.get(top + 2, 2), b.get(top + 4, 2))
}

/// "Real-Address Mode": three words, no error code; limits of 64 KiB.
fn real_mode_events() {
    let mut b = real();
    b.assemble(16, CODE, |a| a.int(0x21));
    b.flat.vcpu.state.rflags = RFlags::from_bits_retain(0x202);
    let outcome = b.run();
    assert_eq!(real_frame(&b, outcome), (0x21, CODE + 2, 0, 0x202));
    assert!(!b.flat.vcpu.rflags().contains(RFlags::IF));
    // A word at FFFFh: #GP, or #SS off BP.
    for (stack, vector) in [(false, 13), (true, 12)] {
        let mut b = real();
        b.assemble(16, CODE, |a| {
            a.mov(bx, 0xFFFF)?;
            a.mov(bp, 0xFFFF)?;
            if stack { a.mov(ax, word_ptr(bp)) } else { a.mov(ax, word_ptr(bx)) }
        });
        let outcome = b.run();
        assert_eq!(real_frame(&b, outcome), (vector, CODE + 6, 0, 2));
    }
    // Past the IVT's limit: #DF, then shutdown if that is past it too.
    let mut b = real();
    b.flat.vcpu.state.idtr.limit = 0x83;
    b.assemble(16, CODE, |a| a.int(0x21));
    let outcome = b.run();
    assert_eq!(real_frame(&b, outcome).0, 13);
    // Protected-mode instructions: #UD.
    for bytes in [&[0x0F, 0x00, 0xC8][..], &[0x0F, 0x02, 0xC0], &[0x63, 0xC0], &[0x0F, 0x00, 0xD8]] {
        let mut b = real();
        b.flat.ram.write(CODE, bytes);
        let outcome = b.run();
        assert_eq!(real_frame(&b, outcome).0, 6, "{bytes:x?}");
    }
}

/// Into protected mode and back: limits and bases stay until the segment is loaded ("unreal mode").
fn real_to_protected_and_back() {
    let mut b = real();
    b.put(0x4_1234, 0x77);
    let end = b.assemble(16, CODE, |a| {
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.mov(bx, i32::from(sel::DATA0))?;
        a.mov(ds, bx)?;
        a.and(al, 0xFE)?;
        a.mov(cr0, eax)?;
        a.mov(ecx, 0x4_1234u32)?;
        a.mov(dl, byte_ptr(ecx))?;
        a.xor(bx, bx)?;
        a.mov(ds, bx)?;
        a.mov(dh, byte_ptr(ecx))?;
        a.hlt()
    });
    assert_eq!(b.run(), Outcome::Halted(end));
    assert_eq!(b.flat.vcpu.state.gpr[2] & 0xFF, 0x77);
}

/// "Compatibility Mode": IRETQ into 32-bit code under long mode; a far return to 64-bit code.
fn compatibility_mode() {
    let mut b = Bench::long();
    b.map_user();
    let bits = attr::P | attr::S | attr::CODE | attr::RW | attr::DB | attr::G | 3 << 5;
    b.describe(sel::SPARE, descriptor(0, 0xF_FFFF, bits));
    b.code(|a| {
        a.mov(rax, -1i64)?;
        a.push(i32::from(sel::DATA3))?;
        a.push(STACK as i32 - 64)?;
        a.push(2)?;
        a.push(i32::from(sel::SPARE | 3))?;
        a.push(CODE as i32 + 0x100)?;
        a.iretq()
    });
    // 32-bit: INC EAX is one byte (40h), which would be a REX prefix.
    b.flat.ram.write(CODE + 0x100, &[0x40, 0xCC]);
    let r = b.run().raised();
    assert_eq!((r.vector, r.ip, r.cs, r.sp), (3, CODE + 0x102, u64::from(sel::SPARE | 3), STACK - 64));
    assert_eq!(b.flat.vcpu.state.gpr[0], 0, "EAX wraps, its upper half is cleared");
}

/// "Call gates" of 64-bit mode: 16 bytes, no parameters, SS null inside.
fn call_gate_64() {
    let mut b = Bench::long();
    b.map_user();
    b.map(0x9000, 3);
    b.describe(sel::SPARE, gate(sel::CODE0, 0x9000, 12, 3, 0));
    b.describe(sel::SPARE2, 0);
    b.put(PAGE, u64::from(sel::SPARE | 3) << 32);
    b.map(PAGE, 7);
    let back = b.code(|a| a.call(fword_ptr(PAGE)));
    b.assemble(64, back, |a| a.int3());
    b.assemble(64, 0x9000, |a| {
        a.mov(ecx, ss)?;
        a.mov(rsi, rsp)?;
        a.db(&[0x48, 0xCB])
    });
    b.ring(3);
    let r = b.run().raised();
    let g = b.flat.vcpu.state.gpr;
    assert_eq!(
        (r.vector, r.ip, r.cs, r.sp, r.ss),
        (3, back + 1, u64::from(sel::CODE3), STACK, u64::from(sel::DATA3))
    );
    assert_eq!((g[1], g[6]), (0, STACK0 - 32));
}

/// LLDT, LTR: types, presence, the busy bit.
fn system_segment_loads() {
    let load = |descriptor: u64, tr: bool| {
        let mut b = Bench::protected();
        b.describe(sel::SPARE, descriptor);
        b.code(|a| {
            a.mov(eax, u32::from(sel::SPARE))?;
            if tr {
                a.ltr(ax)?;
            } else {
                a.lldt(ax)?;
            }
            a.hlt()
        });
        (b.run(), b)
    };
    let spare = u64::from(sel::SPARE);
    load(descriptor(PAGE as u32, 0xFF, attr::P | 2), false).0.halted();
    let (outcome, b) = load(descriptor(PAGE as u32, 0xFF, attr::P | 9), true);
    outcome.halted();
    assert_eq!(b.get(GDT + spare + 5, 1) & 15, 11, "busy");
    assert_eq!(load(descriptor(0, 0xFF, attr::P | 11), true).0.fault(), (13, spare));
    assert_eq!(load(descriptor(0, 0xFF, 9), true).0.fault(), (11, spare));
    assert_eq!(load(descriptor(0, 0xFF, 2), false).0.fault(), (11, spare));
    assert_eq!(load(descriptor(0, 0xFF, attr::P | 9), false).0.fault(), (13, spare));
    // LLDT with a null selector; then any use of it is #GP.
    let mut b = Bench::protected();
    b.code(|a| {
        a.xor(eax, eax)?;
        a.lldt(ax)?;
        a.mov(al, 4)?;
        a.mov(ds, eax)
    });
    assert_eq!(b.run().fault(), (13, 4));
}

/// Exceptions of single instructions.
fn instruction_checks() {
    type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    // Name, 64-bit mode, CPL, CR4 bits, program, expected.
    type Row = (&'static str, bool, u8, u64, Emit, (u8, u64));
    let rows: &[Row] = &[
        ("DIV by 0", false, 0, 0, |a| a.div(ecx), (0, 0)),
        (
            "IDIV overflow",
            false,
            0,
            0,
            |a| {
                a.mov(eax, 0x8000_0000u32)?;
                a.cdq()?;
                a.mov(ecx, -1)?;
                a.idiv(ecx)
            },
            (0, 0),
        ),
        (
            "INTO",
            false,
            3,
            0,
            |a| {
                a.mov(al, 0x7F)?;
                a.inc(al)?;
                a.into()
            },
            (4, 0),
        ),
        (
            "BOUND",
            false,
            3,
            0,
            |a| {
                a.mov(eax, -1)?;
                a.bound(eax, dword_bcst_free())
            },
            (5, 0),
        ),
        ("RDTSC with TSD", false, 3, cr4::TSD, |a| a.rdtsc(), (13, 0)),
        ("RDPMC without PCE", false, 3, 0, |a| a.rdpmc(), (13, 0)),
        ("SGDT with UMIP", false, 3, cr4::UMIP, |a| a.sgdt(fword_ptr(PAGE)), (13, 0)),
        ("STR with UMIP", false, 3, cr4::UMIP, |a| a.str(ax), (13, 0)),
        (
            "RDMSR of nothing",
            false,
            0,
            0,
            |a| {
                a.mov(ecx, 0x1234_5678u32)?;
                a.rdmsr()
            },
            (13, 0),
        ),
        (
            "WRMSR of an address that is not canonical",
            true,
            0,
            0,
            |a| {
                a.mov(ecx, 0xC000_0100u32)?;
                a.mov(edx, 0x0100_0000)?;
                a.xor(eax, eax)?;
                a.wrmsr()
            },
            (13, 0),
        ),
        ("SWAPGS at CPL 3", true, 3, 0, |a| a.swapgs(), (13, 0)),
        ("RDFSBASE without FSGSBASE", true, 0, 0, |a| a.rdfsbase(rax), (6, 0)),
        (
            "WRFSBASE not canonical",
            true,
            3,
            cr4::FSGSBASE,
            |a| {
                a.mov(rax, 1u64 << 56)?;
                a.wrfsbase(rax)
            },
            (13, 0),
        ),
        ("MOV CR1", true, 0, 0, |a| a.db(&[0x0F, 0x20, 0xC8]), (6, 0)),
        (
            "MOV CR8, 16",
            true,
            0,
            0,
            |a| {
                a.mov(eax, 16)?;
                a.mov(cr8, rax)
            },
            (13, 0),
        ),
        (
            "MOV DR7 with upper bits",
            true,
            0,
            0,
            |a| {
                a.mov(rax, 1u64 << 32)?;
                a.mov(dr7, rax)
            },
            (13, 0),
        ),
        ("MONITOR at CPL 3", true, 3, 0, |a| a.monitor(), (6, 0)),
        (
            "INVPCID of a reserved type",
            true,
            0,
            0,
            |a| {
                a.mov(eax, 4)?;
                a.invpcid(rax, xmmword_ptr(PAGE))
            },
            (13, 0),
        ),
        ("STAC at CPL 3", true, 3, cr4::SMAP, |a| a.stac(), (6, 0)),
        ("CMPXCHG8B of a register", false, 0, 0, |a| a.db(&[0x0F, 0xC7, 0xC8]), (6, 0)),
        ("LEA of a register", false, 0, 0, |a| a.db(&[0x8D, 0xC0]), (6, 0)),
        (
            "an indirect jump not canonical",
            true,
            0,
            0,
            |a| {
                a.mov(rax, 1u64 << 47)?;
                a.jmp(rax)
            },
            (13, 0),
        ),
        ("AAM 0", false, 3, 0, |a| a.db(&[0xD4, 0]), (0, 0)),
    ];
    for &(name, long, cpl, bits, program, expected) in rows {
        let mut b = if long { Bench::long() } else { Bench::protected() };
        if long {
            b.map_user();
            b.map(PAGE, if cpl == 3 { 7 } else { 3 });
            if cpl == 0 {
                b.map(CODE, 3);
                b.map(STACK - 0x1000, 3);
            }
        }
        b.code(|a| {
            program(a)?;
            a.hlt()
        });
        b.ring(cpl);
        b.flat.vcpu.state.cr4 |= bits;
        assert_eq!(b.run().fault(), expected, "{name}");
    }
    // INVLPG takes any address.
    let mut b = Bench::long();
    b.code(|a| {
        a.mov(rax, 1u64 << 47)?;
        a.invlpg(byte_ptr(rax))?;
        a.hlt()
    });
    b.run().halted();
}

/// The operand of BOUND above: two words of 0 at [`PAGE`].
fn dword_bcst_free() -> AsmMemoryOperand {
    qword_ptr(PAGE)
}

/// "Protected-Mode Virtual Interrupts": CLI and STI at CPL 3 change VIF.
fn protected_mode_virtual_interrupts() {
    for (vip, sti, expected) in [(false, true, (3, 1 << 19)), (false, false, (3, 0)), (true, true, (13, 0))] {
        let mut b = Bench::protected();
        b.code(|a| {
            if sti {
                a.sti()?;
            } else {
                a.cli()?;
            }
            a.int3()
        });
        b.ring(3);
        b.flat.vcpu.state.cr4 |= cr4::PVI;
        let flags = RFlags::ONE | RFlags::IF | if vip { RFlags::VIP } else { RFlags::empty() };
        b.flat.vcpu.state.rflags = flags | if sti { RFlags::empty() } else { RFlags::VIF };
        let r = b.run().raised();
        assert_eq!((r.vector, r.flags & 1 << 19), expected);
        assert_eq!(r.flags & 0x200, 0x200, "IF stays");
    }
}

/// The stack width: a 16-bit stack wraps at 64 KiB and leaves the upper half of ESP.
fn stack_width() {
    let mut b = Bench::protected();
    b.flat.vcpu.state.seg[seg::SS].attributes &= !attr::DB;
    b.code(|a| {
        a.mov(esp, 0x1234_0002u32)?;
        a.push(0x5566_7788u32 as i32)?;
        a.hlt()
    });
    b.run().halted();
    assert_eq!(b.flat.vcpu.state.gpr[4], 0x1234_FFFE);
    assert_eq!(b.get(0xFFFE, 4), 0x5566_7788);
}

/// T bit of a TSS: #DB with BT after the switch.
fn task_switch_trap() {
    let mut b = Bench::protected();
    for (offset, value) in [(0x20, 0x9000u32), (0x24, 2), (0x38, STACK0 as u32), (0x64, 1)] {
        b.flat.ram.write(TSS2 + offset, &value.to_le_bytes());
    }
    for (offset, selector) in [(0x48, sel::DATA0), (0x4C, sel::CODE0), (0x50, sel::DATA0), (0x54, sel::DATA0)]
    {
        b.flat.ram.write(TSS2 + offset, &u32::from(selector).to_le_bytes());
    }
    b.flat.ram.write(0x9000, &[0xF4]);
    b.flat.ram.write(CODE, &[0xEA, 0, 0, 0, 0, sel::TSS2 as u8, 0]);
    let r = b.run().raised();
    assert_eq!((r.vector, r.ip), (1, 0x9000));
    assert_eq!(b.flat.vcpu.state.dr[6] & 0x8000, 0x8000);
}
