//! 57-bit linear addresses: SDM Vol. 3, "4-Level Paging and 5-Level Paging", "Control Registers"; the white paper "5-Level
//! Paging and 5-Level EPT", "Changes to Canonicality".

use crate::system::*;
use iced_x86::code_asm::*;
use trimaran_cpu::state::{cr4, efer, gpr};

pub const CASES: super::List = &[
    ("la57_is_enumerated", la57_is_enumerated),
    ("la57_is_chosen_outside_long_mode", la57_is_chosen_outside_long_mode),
    ("la57_canonical_addresses", la57_canonical_addresses),
    ("la57_far_up", la57_far_up),
    ("la57_first_level", la57_first_level),
    ("la57_bases", la57_bases),
    ("la57_targets", la57_targets),
];

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
/// What the second entry of the PML5 maps, and what the first of its upper half does.
const UP: u64 = 1 << 48;
const TOP: u64 = 0xFF00_0000_0000_0000;

/// 5-level paging, the first 2 MiB also at [`UP`] and at [`TOP`].
fn bench() -> Bench {
    let b = Bench::paged(Paging::Level5);
    b.put(PML5 + 8, TABLES | 7);
    b.put(PML5 + 256 * 8, TABLES | 7);
    b
}

fn la57_is_enumerated() {
    for (model, bit, bits) in [("max", 1 << 16, 57), ("x86-64-v3", 0, 48)] {
        let mut b = Bench::of(model);
        b.code(|a| {
            a.mov(eax, 7)?;
            a.xor(ecx, ecx)?;
            a.cpuid()?;
            a.mov(esi, ecx)?;
            a.mov(eax, 0x8000_0008u32)?;
            a.cpuid()?;
            a.hlt()
        });
        b.run().halted();
        let g = &b.flat.vcpu.state.gpr;
        assert_eq!((g[gpr::RSI] & 1 << 16, g[gpr::RAX] >> 8 & 0xFF), (bit, bits), "{model}");
    }
}

fn la57_is_chosen_outside_long_mode() {
    let toggle = |a: &mut CodeAssembler| {
        a.mov(rax, cr4)?;
        a.btc(rax, 12u32)?;
        a.mov(cr4, rax)?;
        a.hlt()
    };
    for paging in Paging::LONG {
        let mut b = Bench::paged(paging);
        b.code(toggle);
        assert_eq!(b.run().fault(), (13, 0), "{paging:?}");
    }
    for (model, allowed) in [("max", true), ("x86-64-v3", false)] {
        let mut b = Bench::of(model);
        b.code(|a| {
            a.mov(eax, cr4)?;
            a.bts(eax, 12u32)?;
            a.mov(cr4, eax)?;
            a.hlt()
        });
        match (b.run(), allowed) {
            (got, true) => got.halted(),
            (got, false) => assert_eq!(got.fault(), (13, 0)),
        }
    }
    // A program's own way: CR4, CR3, EFER, CR0, and a far jump to code that reads far up.
    let mut b = bench();
    b.long = false;
    let s = &mut b.flat.vcpu.state;
    (s.cr0, s.cr3, s.cr4, s.msr.efer) = (s.cr0 & !(1 << 31), 0, 0, 0);
    b.ring(0);
    b.describe(sel::SPARE, descriptor(0, 0xF_FFFF, 0xC09B));
    b.flat.vcpu.state.seg[1].attributes = 0xC09B;
    b.code(|a| {
        a.mov(eax, (cr4::PAE | cr4::LA57) as u32)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PML5 as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xC000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, efer::LME as u32)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.bts(eax, 31u32)?;
        a.mov(cr0, eax)?;
        // JMP FAR CODE0:CODE + 100h.
        a.db(&[0xEA])?;
        a.dd(&[CODE as u32 + 0x100])?;
        a.dw(&[sel::CODE0])
    });
    b.assemble(64, CODE + 0x100, |a| {
        a.mov(rbx, UP + PAGE)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.hlt()
    });
    b.put(PAGE, 0x57);
    b.run().halted();
    assert_eq!(b.flat.vcpu.state.gpr[gpr::RAX], 0x57);
}

fn la57_canonical_addresses() {
    let read = |paging, address: u64, stack: bool| {
        let mut b = Bench::paged(paging);
        b.code(|a| {
            a.mov(rbp, address)?;
            a.mov(rbx, rbp)?;
            if stack {
                a.mov(eax, dword_ptr(rbp))?;
            } else {
                a.mov(eax, dword_ptr(rbx))?;
            }
            a.hlt()
        });
        b.run().fault()
    };
    use Paging::{Level4, Level5};
    for (paging, address, in_data, on_stack) in [
        (Level4, 1 << 47, (13, 0), (12, 0)),
        (Level5, 1 << 47, (14, 0), (14, 0)),
        (Level5, (1 << 56) - 4, (14, 0), (14, 0)),
        (Level5, 1 << 56, (13, 0), (12, 0)),
        (Level5, (1 << 56) - 2, (13, 0), (12, 0)),
        (Level5, TOP - 1, (13, 0), (12, 0)),
        (Level5, TOP, (14, 0), (14, 0)),
        (Level4, TOP, (13, 0), (12, 0)),
    ] {
        assert_eq!(read(paging, address, false), in_data, "{paging:?} {address:#x}");
        assert_eq!(read(paging, address, true), on_stack, "{paging:?} {address:#x} on the stack");
    }
}

/// Data, code that loops, calls and jumps there, and INVLPG, at addresses of more than 48 bits.
fn la57_far_up() {
    for base in [UP, TOP] {
        let mut b = bench();
        b.put(PAGE, 5);
        b.put(PAGE + 0x1000, 7);
        let leaf = b.leaf(PAGE);
        b.code(|a| {
            a.mov(rbx, base)?;
            a.lea(rsp, qword_ptr(rbx + STACK as i32))?;
            a.lea(rdx, qword_ptr(rbx + CODE as i32 + 0x100))?;
            a.call(rdx)?;
            a.mov(rcx, (PAGE + 0x1000) | P | W)?;
            a.mov(qword_ptr(leaf), rcx)?;
            a.invlpg(byte_ptr(rbx + PAGE as i32))?;
            a.mov(esi, dword_ptr(rbx + PAGE as i32))?;
            a.hlt()
        });
        b.assemble(64, CODE + 0x100, |a| {
            let mut again = a.create_label();
            a.xor(eax, eax)?;
            a.mov(ecx, 1000)?;
            a.set_label(&mut again)?;
            a.add(eax, dword_ptr(rbx + PAGE as i32))?;
            a.dec(ecx)?;
            a.jnz(again)?;
            // LEA RDI, [RIP].
            a.db(&[0x48, 0x8D, 0x3D, 0, 0, 0, 0])?;
            a.ret()
        });
        b.run().halted();
        let g = &b.flat.vcpu.state.gpr;
        assert_eq!((g[gpr::RAX], g[gpr::RSI]), (5000, 7), "{base:#x}");
        assert_eq!(g[gpr::RDI] & !0xFFF, base + CODE, "{base:#x}: RIP is there");
    }
}

/// The PML5E's own bits.
fn la57_first_level() {
    const XD: u64 = 1 << 63;
    for (entry, cpl, write, expected) in [
        (P | W | U, 0, false, None),
        (0, 0, false, Some(0)),
        (P | W | U | 1 << 7, 0, false, Some(9)),
        (P | W | U | 1 << 51, 0, false, Some(9)),
        (P | W | U | XD, 0, false, Some(9)),
        (P | U, 3, true, Some(7)),
        (P | W, 3, false, Some(5)),
        (P | W | U, 3, true, None),
    ] {
        let mut b = bench();
        b.map_user();
        b.map(PAGE, 7);
        b.put(PML5 + 8, TABLES | entry);
        b.code(|a| {
            a.mov(rbx, UP + PAGE)?;
            if write {
                a.mov(dword_ptr(rbx), eax)?;
            } else {
                a.mov(eax, dword_ptr(rbx))?;
            }
            a.hlt()
        });
        b.ring(cpl);
        match expected {
            Some(error) => assert_eq!(b.run().fault(), (14, error), "{entry:#x} CPL {cpl}"),
            None => {
                let got = b.run();
                assert!(cpl == 3 && got.fault() == (13, 0) || matches!(got, Outcome::Halted(_)), "{got:x?}");
                assert_eq!(b.get(PML5 + 8, 8) & A, A);
            }
        }
    }
}

/// Base registers hold what the processor can have, in either mode; what is wider than that is #GP(0).
fn la57_bases() {
    for (model, widest) in [("max", 1u64 << 55), ("max,-la57", 1 << 46)] {
        for (value, good) in
            [(widest, true), (widest << 1, false), (!(widest << 1) + 1, true), (!(widest << 2) + 1, false)]
        {
            let what = format!("{model} {value:#x}");
            let on = |code: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
                let mut b = Bench::long_on(model);
                b.flat.vcpu.state.cr4 |= cr4::FSGSBASE | cr4::PCIDE;
                b.describe(sel::TSS2, descriptor(value as u32, 0x67, 0x89));
                b.put(GDT + u64::from(sel::TSS2) + 8, value >> 32);
                b.put(PAGE, 0x0FFF);
                b.put(PAGE + 2, value);
                b.put(PAGE + 16, 0);
                b.put(PAGE + 24, value);
                b.code(|a| {
                    a.mov(rax, value)?;
                    a.mov(rdx, rax)?;
                    a.shr(rdx, 32)?;
                    code(a)?;
                    a.hlt()
                });
                b.run()
            };
            let check = |name: &str, got: Outcome| match good {
                true => assert!(matches!(got, Outcome::Halted(_)), "{what}: {name}: {got:x?}"),
                false => assert_eq!(got.fault(), (13, 0), "{what}: {name}"),
            };
            for msr in [0x175, 0x176, 0xC000_0082u32, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102] {
                let wrmsr = |a: &mut CodeAssembler| {
                    a.mov(ecx, msr)?;
                    a.wrmsr()
                };
                check(&format!("MSR {msr:#x}"), on(&wrmsr));
            }
            check("WRGSBASE", on(&|a| a.wrgsbase(rax)));
            check("LIDT", on(&|a| a.lidt(ptr(PAGE))));
            let invpcid = |a: &mut CodeAssembler| {
                a.xor(ecx, ecx)?;
                a.invpcid(rcx, xmmword_ptr(PAGE + 16))
            };
            check("INVPCID", on(&invpcid));
            let task = on(&|a| {
                a.mov(eax, u32::from(sel::TSS2))?;
                a.ltr(ax)
            });
            match good {
                true => assert!(matches!(task, Outcome::Halted(_)), "{what}: LTR: {task:x?}"),
                false => assert_eq!(task.fault(), (13, u64::from(sel::TSS2)), "{what}: LTR"),
            }
        }
    }
    // A wide base is no use to 4-level paging.
    let mut b = Bench::long();
    b.flat.vcpu.state.seg[4].base = UP;
    b.code(|a| a.mov(eax, dword_ptr(PAGE).fs()));
    assert_eq!(b.run().fault(), (13, 0));
}

/// RIP is checked by the current mode: jumps fault where they stand, or at their target's page.
fn la57_targets() {
    for paging in Paging::LONG {
        let expected = if paging == Paging::Level5 { (14, 0x10) } else { (13, 0) };
        let far = if paging == Paging::Level5 { UP } else { CODE + 10 };
        let on = |code: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
            let mut b = Bench::paged(paging);
            let s = &mut b.flat.vcpu.state;
            s.msr.efer |= efer::SCE | efer::NXE;
            (s.msr.star, s.msr.lstar) = (u64::from(sel::CODE0) << 32 | 0x58 << 48, UP);
            b.code(|a| {
                a.mov(rcx, UP)?;
                code(a)
            });
            b.run().raised()
        };
        let jump = on(&|a| a.jmp(rcx));
        assert_eq!((jump.vector, jump.error, jump.ip), (expected.0, expected.1, far), "{paging:?} JMP");
        let call = on(&|a| a.call(rcx));
        assert_eq!((call.vector, call.error, call.ip), (expected.0, expected.1, far), "{paging:?} CALL");
        let ret = on(&|a| {
            a.push(rcx)?;
            a.ret()
        });
        assert_eq!((ret.vector, ret.error), expected, "{paging:?} RET");
        // SYSRET to CPL 3: the fetch is a program's.
        let sysret = on(&|a| a.sysretq());
        let user = if paging == Paging::Level5 { (14, 0x14) } else { (13, 0) };
        assert_eq!((sysret.vector, sysret.error), user, "{paging:?} SYSRET");
        // SYSCALL goes where LSTAR says; the fetch is what faults.
        let syscall = on(&|a| a.syscall());
        assert_eq!(
            (syscall.vector, syscall.error, syscall.ip),
            (expected.0, expected.1, UP),
            "{paging:?} SYSCALL"
        );
    }
}
