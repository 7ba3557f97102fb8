//! SDM Vol. 3, "Privilege Levels", "Call Gates", "Interrupt and Exception Handling", "Virtual-8086 Mode".

use crate::system::*;
use iced_x86::code_asm::*;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::{RFlags, cr4, seg};

pub const CASES: super::List = &[
    ("call_gate", call_gate),
    ("call_gate_checks", call_gate_checks),
    ("interrupt_and_return", interrupt_and_return),
    ("software_interrupt_privilege", software_interrupt_privilege),
    ("iret_checks", iret_checks),
    ("segments_that_iret_takes_away", segments_that_iret_takes_away),
    ("privileged_instructions", privileged_instructions),
    ("io_permission_bitmap", io_permission_bitmap),
    ("virtual_8086", virtual_8086),
    ("virtual_mode_extensions", virtual_mode_extensions),
    ("double_and_triple_fault", double_and_triple_fault),
    ("long_mode_frames", long_mode_frames),
    ("fault_priority", fault_priority),
];

/// "Call gates": more privilege, parameters copied to the new stack, and RETF n back.
fn call_gate() {
    let mut b = Bench::protected();
    b.describe(sel::SPARE, gate(sel::CODE0, 0x9000, 12, 3, 2));
    b.code(|a| {
        a.push(0x1111_1111i32)?;
        a.push(0x2222_2222i32)?;
        // CALL FAR SPARE|3:0
        a.db(&[0x9A, 0, 0, 0, 0, (sel::SPARE | 3) as u8, 0])?;
        a.mov(edx, esp)?;
        a.int3()
    });
    b.assemble(32, 0x9000, |a| {
        a.mov(eax, dword_ptr(esp + 8))?;
        a.mov(ebx, dword_ptr(esp + 12))?;
        a.mov(ecx, cs)?;
        a.mov(esi, esp)?;
        a.retf_1(8)
    });
    b.ring(3);
    let r = b.run().raised();
    let g = b.flat.vcpu.state.gpr;
    assert_eq!((r.vector, r.cs), (3, u64::from(sel::CODE3)));
    assert_eq!((g[0], g[3]), (0x2222_2222, 0x1111_1111));
    assert_eq!(g[1], u64::from(sel::CODE0));
    assert_eq!(g[6], STACK0 - 24, "SS, ESP, two parameters, CS, EIP");
    assert_eq!(g[2], STACK, "RETF 8 releases the parameters on both stacks");
}

/// A gate whose DPL is below CPL or RPL, is absent, or leads nowhere.
fn call_gate_checks() {
    let spare = u64::from(sel::SPARE);
    for (name, descriptor, expected) in [
        ("DPL", gate(sel::CODE0, 0x9000, 12, 0, 0), (13, spare)),
        ("absent", gate(sel::CODE0, 0x9000, 12, 3, 0) & !(0x80 << 40), (11, spare)),
        ("null target", gate(0, 0x9000, 12, 3, 0), (13, 0)),
        ("data target", gate(sel::DATA0, 0x9000, 12, 3, 0), (13, u64::from(sel::DATA0))),
    ] {
        let mut b = Bench::protected();
        b.describe(sel::SPARE, descriptor);
        b.flat.ram.write(CODE, &[0x9A, 0, 0, 0, 0, (sel::SPARE | 3) as u8, 0]);
        b.ring(3);
        let r = b.run().raised();
        assert_eq!((r.vector, r.error, r.ip), (expected.0, expected.1, CODE), "{name}");
    }
}

/// "Interrupt gates": ring 3 to 0 and back with IRET.
fn interrupt_and_return() {
    for long in [false, true] {
        let mut b = if long { Bench::long() } else { Bench::protected() };
        if long {
            b.map_user();
            b.map(0x9000, 3);
        }
        b.interrupt_gate(0x30, 0x9000, 3);
        b.code(|a| {
            a.int(0x30)?;
            a.mov(edx, esp)?;
            a.int3()
        });
        b.assemble(if long { 64 } else { 32 }, 0x9000, |a| {
            a.mov(ecx, cs)?;
            a.mov(esi, esp)?;
            if long { a.iretq() } else { a.iretd() }
        });
        b.ring(3);
        let flags = RFlags::ONE | RFlags::IF | RFlags::CF | RFlags::DF;
        b.flat.vcpu.state.rflags = flags;
        let r = b.run().raised();
        let g = b.flat.vcpu.state.gpr;
        assert_eq!(
            (r.vector, r.cs, r.sp, r.ss),
            (3, u64::from(sel::CODE3), STACK, u64::from(sel::DATA3)),
            "{long}"
        );
        assert_eq!(r.flags, flags.bits());
        assert_eq!(g[1], u64::from(sel::CODE0));
        assert_eq!(g[6], STACK0 - if long { 40 } else { 20 });
        assert!(!b.flat.vcpu.rflags().contains(RFlags::IF), "an interrupt gate clears IF");
    }
}

/// INT n through a gate of less DPL: #GP(vector * 8 + 2).
fn software_interrupt_privilege() {
    for long in [false, true] {
        let mut b = if long { Bench::long() } else { Bench::protected() };
        if long {
            b.map_user();
        }
        b.code(|a| a.int(0x30));
        b.ring(3);
        assert_eq!(b.run().fault(), (13, 0x30 * 8 + 2));
    }
    // Past the IDT's limit.
    let mut b = Bench::protected();
    b.flat.vcpu.state.idtr.limit = 0x17F;
    b.code(|a| a.int(0x30));
    assert_eq!(b.run().fault(), (13, 0x30 * 8 + 2));
}

/// IRET to a null CS, an absent one, SS of another level.
fn iret_checks() {
    for (name, code, stack, expected) in [
        ("null CS", 0u16, sel::DATA3, (13, 0)),
        ("data as CS", sel::DATA0, sel::DATA3, (13, sel::DATA0)),
        ("inner CS from outer RPL", sel::CODE0 | 3, sel::DATA3, (13, sel::CODE0)),
        ("null SS", sel::CODE3, 0, (13, 0)),
        ("SS of level 0", sel::CODE3, sel::DATA0, (13, sel::DATA0)),
    ] {
        let mut b = Bench::protected();
        b.code(|a| {
            a.push(i32::from(stack))?;
            a.push(STACK as i32)?;
            a.push(2)?;
            a.push(i32::from(code))?;
            a.push(CODE as i32)?;
            a.iretd()
        });
        let (vector, error) = b.run().fault();
        assert_eq!((vector, error), (expected.0, u64::from(expected.1)), "{name}");
    }
}

/// "IOPL-sensitive instructions", and those that only CPL 0 may execute.
fn privileged_instructions() {
    let programs: [(&str, &[u8], bool); 14] = [
        ("CLI", &[0xFA], true),
        ("STI", &[0xFB], true),
        ("IN", &[0xEC], true),
        ("OUT", &[0xEE], true),
        ("HLT", &[0xF4], false),
        ("LGDT", &[0x0F, 0x01, 0x10], false),
        ("LIDT", &[0x0F, 0x01, 0x18], false),
        ("LMSW", &[0x0F, 0x01, 0xF0], false),
        ("CLTS", &[0x0F, 0x06], false),
        ("INVLPG", &[0x0F, 0x01, 0x38], false),
        ("MOV CR0", &[0x0F, 0x20, 0xC0], false),
        ("MOV DR0", &[0x0F, 0x21, 0xC0], false),
        ("WRMSR", &[0x0F, 0x30], false),
        ("WBINVD", &[0x0F, 0x09], false),
    ];
    for (name, bytes, iopl_allows) in programs {
        for iopl in [0, 3u64] {
            let mut b = Bench::protected();
            b.flat.ram.write(CODE, bytes);
            b.flat.ram.write(CODE + bytes.len() as u64, &[0xCC]);
            b.ring(3);
            b.flat.vcpu.state.rflags = RFlags::from_bits_retain(2 | iopl << 12);
            b.flat.vcpu.state.gpr[0] = PAGE;
            let expected = if iopl == 3 && iopl_allows { (3, 0) } else { (13, 0) };
            assert_eq!(b.run().fault(), expected, "{name} IOPL {iopl}");
        }
    }
    // POPF at CPL 3 changes neither IOPL nor IF.
    let mut b = Bench::protected();
    b.code(|a| {
        a.push(0x3202)?;
        a.popfd()?;
        a.int3()
    });
    b.ring(3);
    assert_eq!(b.run().raised().flags, 2);
}

/// "I/O Permission Bit Map".
fn io_permission_bitmap() {
    for (port, size, expected) in
        [(0x10u16, 1u8, 3), (0x11, 1, 13), (0x10, 2, 13), (0x12, 4, 3), (0x800, 1, 13)]
    {
        let mut b = Bench::protected();
        b.put(TSS + 0x64, 0x68 << 16);
        // Port 11h is denied; the bitmap ends with the TSS at FFh.
        b.flat.ram.write(TSS + 0x68 + 2, &[2]);
        b.code(|a| {
            a.mov(dx, i32::from(port))?;
            match size {
                1 => a.in_(al, dx)?,
                2 => a.in_(ax, dx)?,
                _ => a.in_(eax, dx)?,
            }
            a.int3()
        });
        b.ring(3);
        assert_eq!(b.run().fault().0, expected, "port {port:#x} size {size}");
    }
}

/// "Entering and Leaving Virtual-8086 Mode": by IRETD, out by an interrupt with nine words pushed.
fn virtual_8086() {
    let enter = |flags: u32, program: &[u8]| {
        let mut b = Bench::protected();
        b.code(|a| {
            for value in [0x10, 0x20, 0x30, 0x40, 0x700, 0x1000, flags as i32, 0x900, 0x8] {
                a.push(value)?;
            }
            a.iretd()
        });
        // CS:IP = 900h:8h.
        b.flat.ram.write(0x9008, program);
        b
    };
    // INT3 is not IOPL-sensitive.
    let mut b = enter(0x2_0002, &[0xCC]);
    let r = b.run().raised();
    assert_eq!((r.vector, r.ip, r.cs, r.sp, r.ss), (3, 9, 0x900, 0x1000, 0x700));
    assert_eq!(r.flags & 0x2_0000, 0x2_0000);
    // ES, DS, FS, GS above the frame, in the order ES lowest; null in the handler.
    let top = b.flat.vcpu.state.gpr[4];
    let words: Vec<u64> = (0..9).map(|n| b.get(top + n * 4, 4)).collect();
    assert_eq!(words[5..], [0x40, 0x30, 0x20, 0x10]);
    assert_eq!(b.flat.vcpu.state.seg[seg::DS].selector, 0);
    assert!(!b.flat.vcpu.state.v86());
    // IOPL-sensitive: CLI, STI, PUSHF, POPF, INT n, IRET.
    for (iopl, vector) in [(0u32, 13), (3, 3)] {
        for program in [&[0xFA, 0xCC][..], &[0xFB, 0xCC], &[0x9C, 0xCC], &[0x9C, 0x9D, 0xCC]] {
            let mut b = enter(0x2_0002 | iopl << 12, program);
            assert_eq!(b.run().fault().0, vector, "{program:x?} IOPL {iopl}");
        }
    }
    let mut b = enter(0x2_0002, &[0xCD, 0x30]);
    assert_eq!(b.run().fault(), (13, 0), "INT n with IOPL 0");
    // Protected-mode instructions do not exist.
    let mut b = enter(0x2_0002, &[0x0F, 0x00, 0xC0]);
    assert_eq!(b.run().fault(), (6, 0), "SLDT");
    // Segment limit.
    let mut b = enter(0x2_0002, &[0x66, 0x8B, 0x1E, 0xFE, 0xFF]);
    assert_eq!(b.run().fault(), (13, 0), "a doubleword at FFFEh");
}

/// "Virtual Mode Extensions": VIF and VIP, the interrupt redirection bitmap.
fn virtual_mode_extensions() {
    let enter = |flags: u32, program: &[u8]| {
        let mut b = Bench::protected();
        b.flat.vcpu.state.cr4 |= cr4::VME;
        // The redirection bitmap stands 32 bytes below the I/O bitmap: vector 31h goes to the monitor.
        b.put(TSS + 0x64, 0x88 << 16);
        b.flat.ram.write(TSS + 0x68 + 0x30 / 8, &[2]);
        b.code(|a| {
            for value in [0, 0, 0, 0, 0x700, 0x1000, flags as i32, 0x900, 0x8] {
                a.push(value)?;
            }
            a.iretd()
        });
        b.flat.ram.write(0x9008, program);
        // The 8086 program's own vector 30h: 0A00h:0.
        b.flat.ram.write(0x30 * 4, &[0, 0, 0, 0x0A]);
        b.flat.ram.write(0xA000, &[0xCC]);
        b
    };
    // STI and CLI change VIF.
    let r = enter(0x2_0202, &[0xFB, 0xCC]).run().raised();
    assert_eq!((r.vector, r.flags & 0x8_0200), (3, 0x8_0200));
    let r = enter(0xA_0202, &[0xFA, 0xCC]).run().raised();
    assert_eq!((r.vector, r.flags & 0x8_0200), (3, 0x200));
    // STI with VIP pending: #GP(0).
    assert_eq!(enter(0x12_0202, &[0xFB, 0xCC]).run().fault(), (13, 0));
    // PUSHF shows VIF as IF, IOPL 3.
    let mut b = enter(0xA_0002, &[0x9C, 0x58, 0xCC]);
    assert_eq!(b.run().fault().0, 3);
    assert_eq!(b.flat.vcpu.state.gpr[0] & 0x3200, 0x3200);
    // INT 30h is redirected to the program, INT 31h is #GP with IOPL 0.
    let mut b = enter(0xA_0202, &[0xCD, 0x30]);
    let r = b.run().raised();
    assert_eq!((r.vector, r.cs, r.ip, r.sp), (3, 0xA00, 1, 0xFFA));
    assert_eq!(r.flags & 0x8_0000, 0, "VIF is cleared");
    assert_eq!(b.get(0x7000 + 0xFFA, 2), 0xA);
    assert_eq!(b.get(0x7000 + 0xFFE, 2) & 0x3200, 0x3200, "the pushed image has VIF in IF, IOPL 3");
    assert_eq!(enter(0xA_0202, &[0xCD, 0x31]).run().fault(), (13, 0));
}

/// "Double Fault", "triple fault": contributory exceptions and page faults.
fn double_and_triple_fault() {
    // #GP whose gate is absent: #NP is contributory: #DF(0).
    let mut b = Bench::protected();
    b.put(IDT + 13 * 8, 0);
    b.code(|a| a.mov(cr0, eax));
    b.flat.vcpu.state.gpr[0] = 0x8000_0000;
    assert_eq!(b.run().fault(), (8, 0));
    // #UD is benign: #NP follows as itself, with EXT because an exception was on its way.
    let mut b = Bench::protected();
    b.put(IDT + 6 * 8, gate(sel::CODE0, 0, 14, 0, 0) & !(0x80 << 40));
    b.code(|a| a.ud2());
    assert_eq!(b.run().fault(), (11, 6 * 8 + 3));
    // No #DF gate: shutdown.
    let mut b = Bench::protected();
    b.put(IDT + 13 * 8, 0);
    b.put(IDT + 8 * 8, 0);
    b.code(|a| a.mov(cr0, eax));
    b.flat.vcpu.state.gpr[0] = 0x8000_0000;
    assert_eq!(b.run(), Outcome::Stopped(Stop::Shutdown));
    // #PF while delivering #PF: #DF.
    let mut b = Bench::long();
    b.map_user();
    b.ring(3);
    b.map(STACK0 - 0x1000, 0);
    b.code(|a| {
        a.mov(eax, dword_ptr(PAGE))?;
        a.hlt()
    });
    // #DF runs on IST1.
    b.put(TSS + 0x24, STACK0 + 0x800);
    b.map(STACK0, 3);
    let low = b.get(IDT + 8 * 16, 8);
    b.put(IDT + 8 * 16, low | 1 << 32);
    assert_eq!(b.run().fault(), (8, 0));
}

/// "Interrupt Stack Table", and the alignment of the frame in long mode.
fn long_mode_frames() {
    let mut b = Bench::long();
    b.put(TSS + 0x24, 0x6FFB);
    let low = b.get(IDT + 6 * 16, 8);
    b.put(IDT + 6 * 16, low | 1 << 32);
    b.code(|a| a.ud2());
    assert_eq!(b.run().fault(), (6, 0));
    assert_eq!(b.flat.vcpu.state.gpr[4], 0x6FF0 - 40);
    let mut b = Bench::long();
    b.flat.vcpu.state.gpr[4] = 0x6FFF;
    b.code(|a| a.ud2());
    let r = b.run().raised();
    assert_eq!((r.vector, r.sp, r.ss), (6, 0x6FFF, u64::from(sel::DATA0)));
    assert_eq!(b.flat.vcpu.state.gpr[4], 0x6FF0 - 40);
}

/// Priority: a fetch that faults goes before #UD, #GP of a privileged instruction before its operand's #PF,
/// #DE after the operand's #PF.
fn fault_priority() {
    let mut b = Bench::long();
    b.map_user();
    b.flat.ram.write(CODE, &[0x0F, 0x01, 0x14, 0x25]);
    b.flat.ram.write(CODE + 4, &(PAGE as u32).to_le_bytes());
    b.ring(3);
    assert_eq!(b.run().fault(), (13, 0), "LGDT at CPL 3 with an operand that is not there");
    let mut b = Bench::long();
    b.map(PAGE, 0);
    b.code(|a| a.div(dword_ptr(PAGE)));
    assert_eq!(b.run().fault(), (14, 0));
    let mut b = Bench::long();
    b.map(PAGE, 0);
    b.code(|a| a.lock().mov(dword_ptr(PAGE), eax));
    assert_eq!(b.run().fault(), (6, 0), "LOCK MOV before its operand");
}

/// "IRET": data segments of more privilege become null on the way out; in 64-bit mode the bases of FS and GS stay.
fn segments_that_iret_takes_away() {
    let mut b = Bench::long();
    b.map_user();
    b.map(PAGE, 7);
    b.put(PAGE, 0xCAFE_F00D);
    let target = CODE + 0x100;
    b.code(|a| {
        a.push(i32::from(sel::DATA3))?;
        a.push(STACK as i32)?;
        a.push(2)?;
        a.push(i32::from(sel::CODE3))?;
        a.push(target as i32)?;
        a.iretq()
    });
    b.assemble(64, target, |a| {
        a.mov(eax, dword_ptr(0x1000).gs())?;
        a.mov(ebx, gs)?;
        a.mov(ecx, ds)?;
        a.int3()
    });
    b.flat.vcpu.state.seg[seg::GS].base = PAGE - 0x1000;
    assert_eq!(b.run().raised().vector, 3);
    let g = b.flat.vcpu.state.gpr;
    assert_eq!((g[0], g[3], g[1]), (0xCAFE_F00D, 0, 0));
}
