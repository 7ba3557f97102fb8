//! SDM Vol. 3, "Debug", and the windows in which interrupts and NMIs wait.

use crate::system::*;
use iced_x86::code_asm::*;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::shared::attention;
use trimaran_cpu::state::RFlags;

pub const CASES: super::List = &[
    ("trap_flag", trap_flag),
    ("instruction_breakpoint", instruction_breakpoint),
    ("data_breakpoint", data_breakpoint),
    ("breakpoints_that_mov_ss_holds_back", breakpoints_that_mov_ss_holds_back),
    ("single_steps_of_special_instructions", single_steps_of_special_instructions),
    ("nmis_are_latched", nmis_are_latched),
    ("debug_registers", debug_registers),
    ("interrupt_shadow", interrupt_shadow),
    ("nmi_blocking", nmi_blocking),
];

fn single_step(b: &mut Bench) {
    b.flat.vcpu.state.rflags |= RFlags::TF;
}

/// "Single-Step Exception": after each instruction, DR6.BS; TF is clear in the handler and set in the image.
fn trap_flag() {
    for long in [false, true] {
        let mut b = if long { Bench::long() } else { Bench::protected() };
        b.code(|a| {
            a.inc(eax)?;
            a.hlt()
        });
        single_step(&mut b);
        let r = b.run().raised();
        let after_inc = if long { CODE + 2 } else { CODE + 1 };
        assert_eq!((r.vector, r.ip, r.flags & 0x100), (1, after_inc, 0x100));
        assert_eq!(b.flat.vcpu.state.dr[6] & 0x400F, 0x4000);
        assert!(!b.flat.vcpu.rflags().contains(RFlags::TF));
    }
    // Each iteration of a REP is an instruction.
    let mut b = Bench::protected();
    b.code(|a| {
        a.rep().stosb()?;
        a.hlt()
    });
    single_step(&mut b);
    (b.flat.vcpu.state.gpr[1], b.flat.vcpu.state.gpr[7]) = (3, PAGE);
    let r = b.run().raised();
    assert_eq!((r.vector, r.ip, b.flat.vcpu.state.gpr[1]), (1, CODE, 2));
    // POPF that sets TF: the trap comes after the next instruction.
    let mut b = Bench::protected();
    b.code(|a| {
        a.push(0x102)?;
        a.popfd()?;
        a.nop()?;
        a.hlt()
    });
    let r = b.run().raised();
    assert_eq!((r.vector, r.ip), (1, CODE + 7));
    // INT n clears TF before the handler's first instruction; the trap is lost.
    let mut b = Bench::protected();
    b.code(|a| a.int(0x30));
    single_step(&mut b);
    assert_eq!(b.run().raised().vector, 0x30);
    // MOV SS holds the trap back by one instruction.
    let mut b = Bench::protected();
    b.code(|a| {
        a.mov(ss, ebx)?;
        a.nop()?;
        a.hlt()
    });
    b.flat.vcpu.state.gpr[3] = u64::from(sel::DATA0);
    single_step(&mut b);
    let r = b.run().raised();
    assert_eq!((r.vector, r.ip), (1, CODE + 3));
    // A fault goes without a trap: its image has TF, DR6.BS stays.
    let mut b = Bench::protected();
    b.code(|a| a.ud2());
    single_step(&mut b);
    let r = b.run().raised();
    assert_eq!(
        (r.vector, r.flags & 0x1_0100, b.flat.vcpu.state.dr[6] & 0x4000),
        (6, 0x1_0100, 0),
        "RF in the image"
    );
}

/// "Instruction-Breakpoint Exception Condition": a fault before the instruction; RF suppresses it once.
fn instruction_breakpoint() {
    let mut b = Bench::protected();
    let end = b.code(|a| {
        a.inc(eax)?;
        a.inc(eax)?;
        a.hlt()
    });
    b.flat.vcpu.state.dr[0] = CODE + 1;
    b.flat.vcpu.state.dr[7] = 0x402;
    let r = b.run().raised();
    assert_eq!((r.vector, r.ip, r.flags & 0x1_0000), (1, CODE + 1, 0x1_0000));
    assert_eq!((b.flat.vcpu.state.dr[6] & 0x400F, b.flat.vcpu.state.gpr[0]), (1, 1));
    // Back with IRET: RF in the image lets the instruction run.
    b.flat.ram.write(STUBS + 2, &[0xCF]);
    b.flat.vcpu.state.activity = trimaran_cpu::state::Activity::Running;
    assert_eq!(b.run(), Outcome::Halted(end));
    assert_eq!(b.flat.vcpu.state.gpr[0], 2);
    assert!(!b.flat.vcpu.rflags().contains(RFlags::RF));
}

/// "Data-Breakpoint Exception Condition": a trap after the access.
fn data_breakpoint() {
    // Kind (1: write, 3: both), length code, address of the access, write, hit.
    for (kind, len, address, write, hit) in [
        (1u64, 3u64, PAGE, true, true),
        (1, 3, PAGE, false, false),
        (3, 3, PAGE, false, true),
        (3, 3, PAGE + 3, false, true),
        (3, 3, PAGE + 4, false, false),
        (3, 0, PAGE - 3, false, true),
        (3, 0, PAGE - 4, false, false),
    ] {
        let mut b = Bench::protected();
        let start =
            b.code(|a| if write { a.mov(dword_ptr(address), eax) } else { a.mov(ecx, dword_ptr(address)) });
        let end = b.assemble(32, start, |a| {
            a.nop()?;
            a.hlt()
        });
        b.flat.vcpu.state.dr[1] = PAGE;
        b.flat.vcpu.state.dr[7] = 0x408 | kind << 20 | len << 22;
        let got = b.run();
        if hit {
            let r = got.raised();
            assert_eq!((r.vector, r.ip), (1, start), "{kind} {len} {address:x} {write}");
            assert_eq!(b.flat.vcpu.state.dr[6] & 0x400F, 2);
        } else {
            assert_eq!(got, Outcome::Halted(end), "{kind} {len} {address:x} {write}");
        }
    }
}

/// MOV SS with a data breakpoint on its operand: #DB comes after the next instruction, together with ICEBP's own, and
/// besides that of a software interrupt.
fn breakpoints_that_mov_ss_holds_back() {
    // The code after MOV SS, how often the handler of #DB counts; DR6 tells of DR1.
    for (code, count) in [
        (&[0x2E, 0x2E, 0xF1, 0xF4][..], 1),
        (&[0xCD, 1, 0xF4], 2),
        (&[0x2E, 0x2E, 0xCC, 0xF4], 1),
        (&[0x90, 0xF4], 1),
    ] {
        let mut b = Bench::protected();
        b.interrupt_gate(1, 0x9000, 3);
        b.interrupt_gate(3, 0x9100, 3);
        b.assemble(32, 0x9000, |a| {
            a.inc(ebx)?;
            a.mov(ecx, dr6)?;
            a.iretd()
        });
        b.assemble(32, 0x9100, |a| a.iretd());
        b.put(PAGE, u64::from(sel::DATA0));
        let end = b.code(|a| a.mov(ss, word_ptr(PAGE)));
        b.flat.ram.write(end, code);
        b.flat.vcpu.state.dr[1] = PAGE;
        b.flat.vcpu.state.dr[7] = 0x408 | 3 << 20 | 1 << 22;
        assert_eq!(b.run(), Outcome::Halted(end + code.len() as u64), "{code:x?}");
        let g = b.flat.vcpu.state.gpr;
        assert_eq!((g[3], g[1] & 0x400F), (count, 2), "{code:x?}");
    }
}

/// "Single-Step Exception Condition": ICEBP under TF comes alone, without DR6.BS; HLT is stepped over; STI does not hold
/// the trap back.
fn single_steps_of_special_instructions() {
    let step = |code: &[u8], steps: &[(u64, u64)]| {
        let mut b = Bench::protected();
        // Notes EIP and DR6 of each #DB from PAGE on.
        b.interrupt_gate(1, 0x9000, 0);
        b.assemble(32, 0x9000, |a| {
            a.mov(ecx, dword_ptr(esp))?;
            a.mov(dword_ptr(ebp), ecx)?;
            a.mov(ecx, dr6)?;
            a.mov(dword_ptr(ebp + 4), ecx)?;
            a.add(ebp, 8)?;
            a.xor(ecx, ecx)?;
            a.mov(dr6, ecx)?;
            a.iretd()
        });
        b.flat.ram.write(CODE, code);
        b.flat.vcpu.state.gpr[5] = PAGE;
        single_step(&mut b);
        let mut seen = Vec::new();
        while !matches!(b.run(), Outcome::Raised(Raised { vector: 0x30, .. })) {}
        for at in (PAGE..b.flat.vcpu.state.gpr[5]).step_by(8) {
            seen.push((b.get(at, 4) - CODE, b.get(at + 4, 4) & 0xE00F));
        }
        assert_eq!(seen, steps, "{code:x?}");
    };
    const BS: u64 = 0x4000;
    // NOP; ICEBP; NOP; INT 30h, whose handler halts.
    step(&[0x90, 0xF1, 0x90, 0xCD, 0x30], &[(1, BS), (2, 0), (3, BS)]);
    // STI; NOP; INT 30h.
    step(&[0xFB, 0x90, 0xCD, 0x30], &[(1, BS), (2, BS)]);
    // MOV SS, SS is followed by no trap.
    step(&[0x8C, 0xD0, 0x8E, 0xD0, 0x90, 0xCD, 0x30], &[(2, BS), (5, BS)]);
    // CPUID; IN AL, DX; HLT; NOP.
    step(&[0x0F, 0xA2, 0xEC, 0xF4, 0x90, 0xCD, 0x30], &[(2, BS), (3, BS), (4, BS), (5, BS)]);
}

/// "General-Detect Exception Condition": DR7.GD; and CR4.DE over DR4 and DR5.
fn debug_registers() {
    let mut b = Bench::protected();
    b.code(|a| a.mov(eax, dr0));
    b.flat.vcpu.state.dr[7] = 0x2400;
    let r = b.run().raised();
    assert_eq!((r.vector, r.ip, b.flat.vcpu.state.dr[6] & 0x2000), (1, CODE, 0x2000));
    for (de, expected) in [(false, None), (true, Some((6, 0)))] {
        let mut b = Bench::protected();
        b.flat.ram.write(CODE, &[0x0F, 0x21, 0xE0, 0xF4]);
        b.flat.vcpu.state.cr4 |= if de { 8 } else { 0 };
        match expected {
            None => {
                b.run().halted();
                assert_eq!(b.flat.vcpu.state.gpr[0], 0xFFFF_0FF0, "DR4 is DR6");
            }
            Some(fault) => assert_eq!(b.run().fault(), fault),
        }
    }
}

/// STI holds interrupts back by one instruction; so does MOV SS.
fn interrupt_shadow() {
    let mut b = Bench::protected();
    b.code(|a| {
        a.sti()?;
        a.inc(eax)?;
        a.inc(eax)?;
        a.hlt()
    });
    b.flat.bus.raise(0x40);
    let r = b.run().raised();
    assert_eq!((r.vector, r.ip), (0x40, CODE + 2));
    // STI with IF set already: no shadow.
    let mut b = Bench::protected();
    b.code(|a| {
        a.mov(ss, ebx)?;
        a.inc(eax)?;
        a.inc(eax)?;
        a.hlt()
    });
    b.flat.vcpu.state.gpr[3] = u64::from(sel::DATA0);
    b.flat.vcpu.state.rflags |= RFlags::IF;
    b.flat.vcpu.state.shadow = trimaran_cpu::state::Shadow::MovSs;
    b.flat.bus.raise(0x40);
    let r = b.run().raised();
    // The second of two loads in a row has no shadow of its own: at once, or after the next instruction.
    assert!(r.vector == 0x40 && (r.ip == CODE + 2 || r.ip == CODE + 3));
    // An interrupt ends HLT.
    let mut b = Bench::protected();
    let end = b.code(|a| {
        a.sti()?;
        a.hlt()
    });
    assert_eq!(b.run(), Outcome::Halted(end));
    b.flat.bus.raise(0x41);
    let r = b.resume().raised();
    assert_eq!((r.vector, r.ip), (0x41, end));
    // Also one that comes where a run of the engine ends behind STI.
    for before in 0..4 {
        let mut b = Bench::protected();
        let end = b.code(|a| {
            for _ in 0..3 {
                a.nop()?;
            }
            a.sti()?;
            a.hlt()
        });
        b.changed();
        assert_eq!(b.flat.run(before + 1), Stop::Budget);
        b.flat.bus.raise(0x41);
        let r = b.resume().raised();
        assert_eq!((r.vector, r.ip), (0x41, end), "after {before} instructions");
    }
}

/// "Handling Multiple NMIs": one is latched while another is handled, however many come; two that come together before
/// either is handled are two.
fn nmis_are_latched() {
    for (before, inside, handled) in [(1, 0, 1), (2, 0, 2), (3, 0, 2), (1, 1, 2), (1, 10, 2), (2, 10, 2)] {
        let mut b = Bench::protected();
        b.interrupt_gate(2, 0x9000, 0);
        b.assemble(32, 0x9000, |a| {
            a.inc(ebx)?;
            a.hlt()?;
            a.iretd()
        });
        let end = b.code(|a| {
            a.nop()?;
            a.hlt()
        });
        let nmi = |b: &Bench, count| {
            (0..count).for_each(|_| b.flat.vcpu.fence.vcpus[0].raise(attention::NMI));
        };
        nmi(&b, before);
        assert_eq!(b.run(), Outcome::Halted(0x9002));
        nmi(&b, inside);
        for _ in 0..4 {
            b.flat.vcpu.state.activity = trimaran_cpu::state::Activity::Running;
            if b.run() == Outcome::Halted(end) {
                break;
            }
        }
        assert_eq!(b.flat.vcpu.state.gpr[3], handled, "{before} before, {inside} inside");
    }
}

/// "Nonmaskable Interrupts": blocked from delivery to IRET.
fn nmi_blocking() {
    let mut b = Bench::protected();
    b.interrupt_gate(2, 0x9000, 0);
    b.assemble(32, 0x9000, |a| {
        a.inc(ebx)?;
        a.cmp(ebx, 1)?;
        let mut second = a.create_label();
        a.jne(second)?;
        a.hlt()?;
        a.set_label(&mut second)?;
        a.iretd()
    });
    let end = b.code(|a| {
        a.nop()?;
        a.hlt()
    });
    b.flat.vcpu.fence.vcpus[0].raise(attention::NMI);
    assert_eq!(b.run(), Outcome::Halted(0x9007));
    // In the handler: another one waits, and HLT goes on halting.
    b.flat.vcpu.fence.vcpus[0].raise(attention::NMI);
    assert_eq!(b.resume(), Outcome::Halted(0x9007));
    assert_eq!(b.flat.vcpu.state.gpr[3], 1);
    // IRET by the program: the second is delivered at once, and returns to the program.
    b.flat.vcpu.state.activity = trimaran_cpu::state::Activity::Running;
    let got = b.run();
    assert_eq!(got, Outcome::Halted(end));
    assert_eq!(b.flat.vcpu.state.gpr[3], 2);
    assert!(!b.flat.vcpu.state.nmi_blocked);
}
