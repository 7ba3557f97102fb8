//! Instructions in real-address mode (SDM Vol. 3, "8086 Emulation"; Vol. 2): registers before and after.

use super::modes::real;
use crate::system::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trimaran_cpu::state::RFlags;

pub const CASES: super::List =
    &[("results", results), ("iret_flags", iret_flags), ("far_pointers", far_pointers)];

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;
/// Register numbers with values.
type Registers = &'static [(usize, u64)];

const EAX: usize = 0;
const ECX: usize = 1;
const EDX: usize = 2;
const EBX: usize = 3;
const ESP: usize = 4;
const EBP: usize = 5;
const ESI: usize = 6;
const EDI: usize = 7;

/// Runs code that ends in HLT.
fn run(name: &str, code: Code, before: Registers) -> Bench {
    let mut b = real();
    let end = b.assemble(16, CODE, code);
    b.flat.ram.write(end, &[0xF4]);
    b.flat.vcpu.state.gpr[..8].fill(0);
    b.flat.vcpu.state.gpr[ESP] = STACK;
    before.iter().for_each(|&(register, value)| b.flat.vcpu.state.gpr[register] = value);
    let outcome = b.run();
    assert!(matches!(outcome, Outcome::Halted(_)), "{name}: {outcome:x?}");
    b
}

fn results() {
    let rows: &[(&str, Code, Registers, Registers)] = &[
        (
            "SALC, CF = 0",
            |a| {
                a.clc()?;
                a.salc()
            },
            &[(EAX, 0x1234_5678)],
            &[(EAX, 0x1234_5600)],
        ),
        (
            "SALC, CF = 1",
            |a| {
                a.stc()?;
                a.salc()
            },
            &[(EAX, 0x1234_5678)],
            &[(EAX, 0x1234_56FF)],
        ),
        ("AAM", |a| a.aam(10), &[(EAX, 0x7654_3210)], &[(EAX, 0x7654_0106)]),
        ("AAD", |a| a.aad(10), &[(EAX, 0x1234_5678)], &[(EAX, 0x1234_00D4)]),
        ("CBW", |a| a.cbw(), &[(EAX, 0xFE)], &[(EAX, 0xFFFE)]),
        ("CWDE", |a| a.cwde(), &[(EAX, 0xFFFE)], &[(EAX, 0xFFFF_FFFE)]),
        ("CWD", |a| a.cwd(), &[(EAX, 0x8000)], &[(EAX, 0x8000), (EDX, 0xFFFF)]),
        ("CDQ", |a| a.cdq(), &[(EAX, 0x8000_0000)], &[(EDX, 0xFFFF_FFFF)]),
        ("BSWAP", |a| a.bswap(ecx), &[(ECX, 0x1234_5678)], &[(ECX, 0x7856_3412)]),
        ("MOVSX AH", |a| a.movsx(ebx, ah), &[(EAX, 0x9C00)], &[(EBX, 0xFFFF_FF9C)]),
        ("XADD with itself", |a| a.xadd(eax, eax), &[(EAX, 0x1234_5678)], &[(EAX, 0x2468_ACF0)]),
        ("IMUL r8", |a| a.imul(cl), &[(EAX, 0x1234_0002), (ECX, 0xFC)], &[(EAX, 0x1234_FFF8)]),
        ("DIV r8", |a| a.div(cl), &[(EAX, 257), (ECX, 2)], &[(EAX, 0x180)]),
        ("IDIV r8 to -128", |a| a.idiv(cl), &[(EAX, 256), (ECX, 0xFE)], &[(EAX, 0x80)]),
        ("SHLD", |a| a.shld(eax, edx, 8), &[(EAX, 0xBE), (EDX, 0xEF00_0000)], &[(EAX, 0xBEEF)]),
        (
            "SAHF",
            |a| {
                a.sahf()?;
                a.lahf()
            },
            &[(EAX, 0xFD00)],
            &[(EAX, 0xD700)],
        ),
        (
            "JCXZ looks at CX",
            |a| {
                let mut over = a.create_label();
                a.jcxz(over)?;
                a.mov(eax, 1)?;
                a.set_label(&mut over)?;
                a.nop()
            },
            &[(ECX, 0x1_0000)],
            &[(EAX, 0), (ECX, 0x1_0000)],
        ),
        (
            "JECXZ at ECX",
            |a| {
                let mut over = a.create_label();
                a.jecxz(over)?;
                a.mov(eax, 1)?;
                a.set_label(&mut over)?;
                a.nop()
            },
            &[(ECX, 0x1_0000)],
            &[(EAX, 1)],
        ),
        (
            "LOOPE",
            |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.dec(eax)?;
                a.loope(again)
            },
            &[(EAX, 1), (ECX, 10)],
            &[(EAX, 0xFFFF_FFFF), (ECX, 8)],
        ),
        (
            "LOOPNE",
            |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.dec(eax)?;
                a.loopne(again)
            },
            &[(EAX, 5), (ECX, 10)],
            &[(EAX, 0), (ECX, 5)],
        ),
        // The stack is SP's, whatever stands above it in ESP.
        (
            "PUSH and POP with a large ESP",
            |a| {
                a.push(ax)?;
                a.xor(esp, 0x1234_0000)?;
                a.pop(bx)
            },
            &[(EAX, 0x9977), (ESP, 0x1234_7000)],
            &[(EBX, 0x9977), (ESP, 0x7000)],
        ),
        (
            "PUSHAD and POPAD",
            |a| {
                a.pushad()?;
                a.xor(eax, eax)?;
                a.xor(edi, edi)?;
                a.popad()
            },
            &[(EAX, 1), (EDI, 7), (EBP, 5)],
            &[(EAX, 1), (EDI, 7), (EBP, 5), (ESP, STACK)],
        ),
        (
            "PUSHA keeps the old SP",
            |a| {
                a.pusha()?;
                a.pop(ax)?;
                a.pop(ax)?;
                a.pop(ax)?;
                a.pop(bx)
            },
            &[(EBP, 5), (ESI, 6), (EDI, 7)],
            &[(EAX, 5), (EBX, STACK)],
        ),
        // EBP addresses SS, EBP * 2 addresses DS.
        (
            "SS by EBP",
            |a| {
                a.mov(dword_ptr(0x6010), 0x1111)?;
                a.mov(dword_ptr(0x6000), 0x2222)?;
                a.mov(dx, 1)?;
                a.mov(ss, dx)?;
                a.mov(eax, dword_ptr(ebp))?;
                a.mov(ebx, dword_ptr(ecx * 2 + 0))
            },
            &[(EBP, 0x6000), (ECX, 0x3000)],
            &[(EAX, 0x1111), (EBX, 0x2222)],
        ),
        (
            "ENTER and LEAVE",
            |a| {
                a.enter(0x20, 1)?;
                a.mov(ax, sp)?;
                a.leave()?;
                a.mov(bx, bp)
            },
            &[(EBP, 0x1234)],
            &[(EAX, STACK - 2 - 2 - 0x20), (EBX, 0x1234), (ESP, STACK)],
        ),
        (
            "XLAT",
            |a| {
                a.mov(byte_ptr(bx + 0x12), 0x77)?;
                a.xlatb()
            },
            &[(EAX, 0x89AB_CD12), (EBX, 0x6000)],
            &[(EAX, 0x89AB_CD77)],
        ),
        (
            "FNINIT",
            |a| {
                a.fninit()?;
                a.fnstsw(ax)?;
                a.fnstcw(word_ptr(0x6000))?;
                a.mov(bx, word_ptr(0x6000))
            },
            &[(EAX, 0xFFFF)],
            &[(EAX, 0), (EBX, 0x37F)],
        ),
        (
            "SMSW of 32 bits",
            |a| {
                a.mov(ebx, cr0)?;
                a.smsw(eax)?;
                a.sub(eax, ebx)
            },
            &[(EAX, 5)],
            &[(EAX, 0)],
        ),
        // The mod field of MOV DR says nothing: MOV EAX, DR0.
        (
            "MOV DR with a mod of 0",
            |a| {
                a.mov(dr0, ebx)?;
                a.db(&[0x0F, 0x21, 0x00])
            },
            &[(EAX, 0xDEAD), (EBX, 0xACED)],
            &[(EAX, 0xACED)],
        ),
        (
            "DAS",
            |a| {
                a.mov(ah, 2)?;
                a.add(al, 0)?;
                a.sub(al, 0x47)?;
                a.das()
            },
            &[(EAX, 0x35)],
            &[(EAX, 0x288)],
        ),
    ];
    for &(name, code, before, after) in rows {
        let b = run(name, code, before);
        for &(register, value) in after {
            assert_eq!(b.flat.vcpu.state.gpr[register], value, "{name}: register {register}");
        }
    }
}

/// IRET and IRETD: flags that do not exist stay as they are, RF lasts one instruction.
fn iret_flags() {
    for (wide, image, expected) in [
        (false, 0x8028u64, 0x2),
        (false, 0xFFFF, 0x7FD7),
        (true, 0xFFC1_8028, 0x2),
        (true, 0xFFFD_FFFF, 0x24_7FD7),
    ] {
        let mut b = real();
        b.assemble(16, CODE, |a| if wide { a.iretd() } else { a.iret() });
        let frame: &[u8] = if wide {
            &[(CODE + 0x100).to_le_bytes(), [0; 8]].concat()[..]
        } else {
            &(CODE + 0x100).to_le_bytes()[..4]
        };
        let (low, size) = if wide { (&frame[..4], 4) } else { (&frame[..2], 2) };
        let image = image & if image & 0x100 != 0 && !wide { !0x100 } else { !0 };
        let flags = (image & !0x100).to_le_bytes();
        b.flat.ram.write(STACK - 3 * size, low);
        b.flat.ram.write(STACK - 2 * size, &[0; 4][..size as usize]);
        b.flat.ram.write(STACK - size, &flags[..size as usize]);
        b.flat.ram.write(CODE + 0x100, &[0x90, 0xF4]);
        b.flat.vcpu.state.gpr[ESP] = STACK - 3 * size;
        let outcome = b.run();
        assert!(matches!(outcome, Outcome::Halted(_)), "{outcome:x?}");
        let got = b.flat.vcpu.rflags();
        assert_eq!(got, RFlags::from_bits_retain(expected & !0x100), "wide {wide}, {image:x}");
    }
}

/// LDS and its like load 16 or 32 bits of offset and a segment whose base is 16 times the selector.
fn far_pointers() {
    let rows: &[(&str, Code)] = &[
        ("LES", |a| {
            a.les(eax, fword_ptr(0x6000))?;
            a.mov(ecx, dword_ptr(eax + 0).es())
        }),
        ("LDS", |a| {
            a.lds(eax, fword_ptr(0x6000))?;
            a.mov(ecx, dword_ptr(eax + 0))
        }),
        ("LFS", |a| {
            a.lfs(eax, fword_ptr(0x6000))?;
            a.mov(ecx, dword_ptr(eax + 0).fs())
        }),
        ("LGS", |a| {
            a.lgs(eax, fword_ptr(0x6000))?;
            a.mov(ecx, dword_ptr(eax + 0).gs())
        }),
        ("LSS", |a| {
            a.lss(eax, fword_ptr(0x6000))?;
            a.mov(ecx, dword_ptr(eax + 0).ss())
        }),
    ];
    for &(name, code) in rows {
        let mut b = real();
        let end = b.assemble(16, CODE, code);
        b.flat.ram.write(end, &[0xF4]);
        b.put(0x6000, 0x0234 | 0x0700 << 32);
        b.put(0x7234, 0xCAFE_F00D);
        let outcome = b.run();
        assert!(matches!(outcome, Outcome::Halted(_)), "{name}: {outcome:x?}");
        assert_eq!((b.flat.vcpu.state.gpr[EAX], b.flat.vcpu.state.gpr[ECX]), (0x234, 0xCAFE_F00D), "{name}");
    }
}
