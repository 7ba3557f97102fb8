//! SDM Vol. 3, "Fast System Calls in 64-Bit Mode", "SYSENTER and SYSEXIT"; SDM Vol. 2 for the checks of single
//! instructions.

use crate::system::*;
use iced_x86::code_asm::*;
use trimaran_cpu::state::{RFlags, attr, cr0, cr4, efer, seg};

pub const CASES: super::List = &[
    ("syscall_and_sysret", syscall_and_sysret),
    ("system_calls_in_32_bit_modes", system_calls_in_32_bit_modes),
    ("single_steps_over_system_calls", single_steps_over_system_calls),
    ("sysenter_and_sysexit", sysenter_and_sysexit),
    ("coprocessor_availability", coprocessor_availability),
    ("restored_status", restored_status),
    ("save_area_checks", save_area_checks),
    ("alignment_check", alignment_check),
    ("long_mode_instructions", long_mode_instructions),
];

/// SYSCALL and SYSRET: selectors from STAR, RFLAGS through R11 and FMASK.
fn syscall_and_sysret() {
    let mut b = Bench::long();
    b.map_user();
    b.map(0x9000, 3);
    let s = &mut b.flat.vcpu.state;
    s.msr.efer |= efer::SCE;
    // SYSRET: CS = base + 16, SS = base + 8, where CODE3 is at 18h and DATA3 at 20h: any base will do here.
    s.msr.star = u64::from(sel::CODE0) << 32 | 0x58 << 48;
    s.msr.lstar = 0x9000;
    s.msr.sfmask = 0x201;
    let after = b.code(|a| a.syscall());
    b.assemble(64, after, |a| a.int3());
    b.assemble(64, 0x9000, |a| {
        a.pushfq()?;
        a.pop(rbx)?;
        a.mov(edx, cs)?;
        a.mov(esi, ss)?;
        a.sysretq()
    });
    // The handler's pushes go to the program's stack: mapped.
    b.ring(3);
    b.flat.vcpu.state.rflags = RFlags::from_bits_retain(0x203);
    let r = b.run().raised();
    let g = b.flat.vcpu.state.gpr;
    assert_eq!((r.vector, r.ip, r.cs, r.ss, r.flags), (3, after + 1, 0x58 + 16 | 3, 0x58 + 8 | 3, 0x203));
    assert_eq!((g[1], g[11], g[3]), (after, 0x203, 2));
    assert_eq!((g[2], g[6]), (u64::from(sel::CODE0), u64::from(sel::CODE0) + 8));
    // Without SCE, and SYSRET at CPL 3.
    let mut b = Bench::long();
    b.code(|a| a.syscall());
    assert_eq!(b.run().fault(), (6, 0));
    let mut b = Bench::long();
    b.flat.vcpu.state.msr.efer |= efer::SCE;
    b.map_user();
    b.code(|a| a.sysretq());
    b.ring(3);
    assert_eq!(b.run().fault(), (13, 0));
    // SYSRET to an address that is not canonical: #GP(0) at CPL 0.
    let mut b = Bench::long();
    b.flat.vcpu.state.msr.efer |= efer::SCE;
    b.flat.vcpu.state.gpr[1] = 1 << 47;
    b.code(|a| a.sysretq());
    let r = b.run().raised();
    assert_eq!((r.vector, r.error, r.cs), (13, 0, u64::from(sel::CODE0)));
}

/// APM Vol. 2, "SYSCALL and SYSRET": from compatibility mode to CSTAR, and in legacy mode to STAR's EIP; #UD on Intel.
fn system_calls_in_32_bit_modes() {
    const COMPATIBLE: u16 = sel::SPARE;
    for (model, exists) in [("opteron", true), ("max", false)] {
        let mut b = Bench::long_on(model);
        b.map_user();
        b.map(0x9000, 3);
        b.describe(COMPATIBLE, descriptor(0, 0xF_FFFF, 0xFB | attr::DB | attr::G));
        let s = &mut b.flat.vcpu.state;
        s.msr.efer |= efer::SCE;
        s.msr.star = u64::from(sel::CODE0) << 32 | u64::from(COMPATIBLE) << 48;
        (s.msr.cstar, s.msr.sfmask) = (0x9000, 0x200);
        b.assemble(32, CODE, |a| {
            a.syscall()?;
            a.int3()
        });
        b.assemble(64, 0x9000, |a| {
            a.mov(rbx, rcx)?;
            a.mov(esi, cs)?;
            a.sysret()
        });
        b.ring(3);
        let code = &mut b.flat.vcpu.state.seg[seg::CS];
        (code.selector, code.attributes) = (COMPATIBLE | 3, code.attributes & !attr::L | attr::DB);
        let r = b.run().raised();
        let g = b.flat.vcpu.state.gpr;
        if exists {
            assert_eq!((r.vector, r.ip, r.cs), (3, CODE + 3, u64::from(COMPATIBLE | 3)));
            assert_eq!((g[3], g[6]), (CODE + 2, u64::from(sel::CODE0)));
        } else {
            assert_eq!((r.vector, r.ip), (6, CODE));
        }
        let mut b = Bench::of(model);
        let s = &mut b.flat.vcpu.state;
        s.msr.efer |= efer::SCE;
        s.msr.star = 0x9000 | u64::from(sel::CODE0) << 32;
        s.rflags = RFlags::from_bits_retain(0x202);
        b.code(|a| a.syscall());
        b.assemble(32, 0x9000, |a| {
            a.pushfd()?;
            a.pop(ebx)?;
            a.hlt()
        });
        b.ring(3);
        let outcome = b.run();
        let g = b.flat.vcpu.state.gpr;
        if exists {
            assert_eq!((outcome, g[1], g[3]), (Outcome::Halted(0x9003), CODE + 2, 2));
        } else {
            assert_eq!(outcome.fault(), (6, 0));
        }
    }
}

/// "SYSCALL": no trap where FMASK clears TF. "SYSRET": a TF that it restores traps before the next instruction.
fn single_steps_over_system_calls() {
    for (mask, expected) in [(0x100, CODE + 2), (0, 0x9000)] {
        let mut b = Bench::long();
        b.map_user();
        b.map(0x9000, 3);
        let s = &mut b.flat.vcpu.state;
        s.msr.efer |= efer::SCE;
        s.msr.star = u64::from(sel::CODE0) << 32 | 0x58 << 48;
        (s.msr.lstar, s.msr.sfmask) = (0x9000, mask);
        b.code(|a| {
            a.syscall()?;
            a.nop()?;
            a.nop()
        });
        b.assemble(64, 0x9000, |a| {
            a.nop()?;
            a.sysretq()
        });
        b.ring(3);
        b.flat.vcpu.state.rflags = RFlags::from_bits_retain(0x102);
        let r = b.run().raised();
        assert_eq!((r.vector, r.ip), (1, expected), "FMASK {mask:x}");
    }
}

/// SYSENTER and SYSEXIT from 32-bit mode.
fn sysenter_and_sysexit() {
    let mut b = Bench::protected();
    let s = &mut b.flat.vcpu.state;
    (s.msr.sysenter_cs, s.msr.sysenter_esp, s.msr.sysenter_eip) = (0x08, STACK0, 0x9000);
    b.code(|a| a.sysenter());
    b.assemble(32, 0x9000, |a| {
        a.mov(eax, cs)?;
        a.mov(ebx, ss)?;
        a.mov(esi, esp)?;
        a.mov(ecx, 0x6800u32)?;
        a.mov(edx, (CODE + 0x10) as u32)?;
        a.sysexit()
    });
    b.assemble(32, CODE + 0x10, |a| a.int3());
    b.ring(3);
    b.flat.vcpu.state.rflags = RFlags::from_bits_retain(0x202);
    let r = b.run().raised();
    let g = b.flat.vcpu.state.gpr;
    assert_eq!((g[0], g[3], g[6]), (0x08, 0x10, STACK0));
    assert_eq!((r.vector, r.ip, r.cs, r.sp, r.ss), (3, CODE + 0x11, 0x1B, 0x6800, 0x23));
    assert_eq!(r.flags & 0x200, 0, "IF was cleared and SYSEXIT leaves it");
    // SYSENTER_CS null, SYSEXIT at CPL 3.
    let mut b = Bench::protected();
    b.code(|a| a.sysenter());
    assert_eq!(b.run().fault(), (13, 0));
    let mut b = Bench::protected();
    b.flat.vcpu.state.msr.sysenter_cs = 8;
    b.code(|a| a.sysexit());
    b.ring(3);
    assert_eq!(b.run().fault(), (13, 0));
}

/// #NM, #UD of x87 and SSE by CR0 and CR4; #MF.
fn coprocessor_availability() {
    for (cr0_bits, cr4_bits, bytes, expected) in [
        (cr0::EM, 0, &[0xD9, 0xEE][..], Some(7)),
        (cr0::TS, 0, &[0xD9, 0xEE], Some(7)),
        (cr0::TS, 0, &[0x9B], None),
        (cr0::TS | cr0::MP, 0, &[0x9B], Some(7)),
        (cr0::EM, cr4::OSFXSR, &[0x0F, 0x57, 0xC0], Some(6)),
        (cr0::TS, cr4::OSFXSR, &[0x0F, 0x57, 0xC0], Some(7)),
        (0, 0, &[0x0F, 0x57, 0xC0], Some(6)),
        (0, cr4::OSFXSR, &[0x0F, 0x57, 0xC0], None),
        (cr0::EM, 0, &[0x0F, 0xEF, 0xC0], Some(6)),
        (cr0::TS, 0, &[0x0F, 0xEF, 0xC0], Some(7)),
        // XGETBV without OSXSAVE.
        (0, 0, &[0x0F, 0x01, 0xD0], Some(6)),
    ] {
        let mut b = Bench::protected();
        b.flat.vcpu.state.cr0 |= cr0_bits;
        b.flat.vcpu.state.cr4 |= cr4_bits;
        b.flat.ram.write(CODE, bytes);
        b.flat.ram.write(CODE + bytes.len() as u64, &[0xF4]);
        let got = b.run();
        match expected {
            Some(vector) => assert_eq!(got.fault(), (vector, 0), "{bytes:x?}"),
            None => got.halted(),
        }
    }
    let mut b = Bench::protected();
    b.code(|a| {
        a.fldz()?;
        a.fld1()?;
        a.fdivrp(st1, st0)?;
        a.fldz()?;
        a.hlt()
    });
    b.flat.vcpu.state.x87.control = 0x37B;
    b.flat.vcpu.state.x87.valid = 0;
    let r = b.run();
    assert_eq!(r.fault(), (16, 0));
}

/// FXRSTOR: ES and B follow from exceptions and masks, whatever the image says (as silicon does it).
fn restored_status() {
    for (control, status, want) in [(0x37F, 0xFFFF, 0x7F7F), (0x37E, 1, 0x8081), (0x37E, 0x8082, 2)] {
        let mut b = Bench::long();
        b.flat.vcpu.state.cr4 |= cr4::OSFXSR;
        b.put(PAGE, control | status << 16);
        b.code(|a| {
            a.fxrstor(ptr(PAGE))?;
            a.hlt()
        });
        b.run().halted();
        assert_eq!(b.flat.vcpu.state.x87.status, want, "{control:x}, {status:x}");
    }
}

/// FXSAVE and FXRSTOR: alignment, MXCSR's reserved bits; XRSTOR's header.
fn save_area_checks() {
    let case = |f: &dyn Fn(&mut Bench), g: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
        let mut b = Bench::long();
        b.flat.vcpu.state.cr4 |= cr4::OSFXSR | cr4::OSXSAVE;
        b.flat.vcpu.state.xcr0 = 3;
        f(&mut b);
        b.code(|a| {
            a.mov(eax, 7)?;
            a.xor(edx, edx)?;
            g(a)?;
            a.hlt()
        });
        b.run()
    };
    assert_eq!(case(&|_| (), &|a| a.fxsave(ptr(PAGE + 8))).fault(), (13, 0));
    case(&|_| (), &|a| a.fxsave(ptr(PAGE + 16))).halted();
    let wild = |a: &mut CodeAssembler| {
        a.mov(rbp, 1u64 << 63 | 8)?;
        a.fxsave(ptr(rbp + 0))
    };
    assert_eq!(case(&|_| (), &wild).fault(), (12, 0), "not canonical before not aligned");
    // The bytes that FXSAVE does not write must be writable too, as on silicon.
    let absent = |b: &mut Bench| b.map(PAGE + 0x1000, 2);
    assert_eq!(case(&absent, &|a| a.fxsave(ptr(PAGE + 0x1000 - 432))).fault(), (14, 2));
    assert_eq!(case(&|b| b.put(PAGE + 24, 1 << 16), &|a| a.fxrstor(ptr(PAGE))).fault(), (13, 0));
    assert_eq!(case(&|_| (), &|a| a.xsave(ptr(PAGE + 16))).fault(), (13, 0));
    case(&|_| (), &|a| {
        a.xsave(ptr(PAGE))?;
        a.xrstor(ptr(PAGE))
    })
    .halted();
    assert_eq!(case(&|b| b.put(PAGE + 512, 4), &|a| a.xrstor(ptr(PAGE))).fault(), (13, 0), "XSTATE_BV");
    assert_eq!(case(&|b| b.put(PAGE + 520, 1), &|a| a.xrstor(ptr(PAGE))).fault(), (13, 0), "XCOMP_BV");
    assert_eq!(case(&|b| b.put(PAGE + 528, 1), &|a| a.xrstor(ptr(PAGE))).fault(), (13, 0), "reserved");
    // XSETBV: bit 0 must stay, AVX needs SSE.
    let set = |value: u32| {
        case(&|_| (), &move |a| {
            a.mov(eax, value)?;
            a.xor(ecx, ecx)?;
            a.xsetbv()
        })
    };
    assert_eq!(set(2).fault(), (13, 0));
    assert_eq!(set(5).fault(), (13, 0));
    set(3).halted();
    // CMPXCHG16B and MOVAPS: 16-byte alignment.
    assert_eq!(case(&|_| (), &|a| a.cmpxchg16b(xmmword_ptr(PAGE + 8))).fault(), (13, 0));
    assert_eq!(case(&|_| (), &|a| a.movaps(xmm0, xmmword_ptr(PAGE + 8))).fault(), (13, 0));
}

/// Alignment checks: CR0.AM, EFLAGS.AC, CPL 3.
fn alignment_check() {
    for (am, ac, cpl, expected) in [
        (true, true, 3, (17, 0)),
        (false, true, 3, (3, 0)),
        (true, false, 3, (3, 0)),
        (true, true, 0, (3, 0)),
    ] {
        let mut b = Bench::protected();
        b.code(|a| {
            a.mov(eax, dword_ptr(PAGE + 2))?;
            a.int3()
        });
        b.ring(cpl);
        b.flat.vcpu.state.cr0 |= if am { cr0::AM } else { 0 };
        b.flat.vcpu.state.rflags.set(RFlags::AC, ac);
        assert_eq!(b.run().fault(), expected);
    }
}

/// 64-bit mode: what no longer exists, and what limits no longer check.
fn long_mode_instructions() {
    for bytes in
        [&[0x06][..], &[0x27], &[0x37], &[0x60], &[0x62, 0, 0], &[0x9A, 0, 0, 0, 0, 8, 0], &[0xCE], &[0xD6]]
    {
        let mut b = Bench::long();
        b.flat.ram.write(CODE, bytes);
        assert_eq!(b.run().fault(), (6, 0), "{bytes:x?}");
    }
    let mut b = Bench::long();
    b.flat.vcpu.state.seg[seg::DS].limit = 0;
    b.code(|a| {
        a.mov(eax, dword_ptr(PAGE))?;
        a.hlt()
    });
    b.run().halted();
}
