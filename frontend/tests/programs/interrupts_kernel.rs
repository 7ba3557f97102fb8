//! A kernel about interrupts, as the local APIC, the IOAPIC and the processor deliver them: at once, in their order, once
//! each (SDM Vol. 3, "Advanced Programmable Interrupt Controller", "Interrupt and Exception Handling").

use crate::elf::assemble;
use crate::program::{APIC, HANDLERS, Program, Step, VARIABLES, kernel};
use iced_x86::code_asm::*;

/// Variables: how often each vector came, where it returned to, and as the how-manieth of all.
const COUNT: u32 = VARIABLES;
const RETURNS: u32 = VARIABLES + 0x400;
const ORDER: u32 = VARIABLES + 0x800;
const ALL: u32 = VARIABLES + 0xC00;
/// Not 0: the APIC's registers are MSRs.
const X2APIC: u32 = VARIABLES + 0xC04;
const SCRATCH: u32 = VARIABLES + 0xC08;

const NMI: u32 = 2;
const GP: u32 = 13;
/// Vectors of interrupts that the kernel sends or raises.
const VECTORS: [u32; 14] =
    [0x3E, 0x51, 0x52, 0x61, 0x62, 0x66, 0x77, 0x78, LEVEL, 0xEE, 0xEF, 0xF1, 0xF2, 0xF3];
/// The one whose handler lowers line 14.
const LEVEL: u32 = 0x99;

/// Each handler has this much room.
const HANDLER_SIZE: u32 = 0x80;
const NMI_HANDLER: u32 = HANDLERS;
const GP_HANDLER: u32 = HANDLERS + HANDLER_SIZE;
const FIRST_HANDLER: u32 = HANDLERS + 2 * HANDLER_SIZE;

const SELF: u32 = 0x4_4000;
const BASE_MSR: u32 = 0x1B;
/// IA32_APIC_BASE: the bootstrap processor's at its usual place, and its mode bits.
const HOME: u32 = 0xFEE0_0100;
const ENABLED: u32 = 1 << 11;
const EXTENDED: u32 = 1 << 10;
const ELSEWHERE: u32 = 0xFED4_0000;

fn count(vector: u32) -> u32 {
    COUNT + vector * 4
}

fn self_ipi(p: &mut Program, vector: u32) -> Step {
    p.a.mov(dword_ptr(APIC + 0x300), SELF | vector)
}

/// The second interrupt came right after the first.
fn expect_order(p: &mut Program, first: u32, second: u32) -> Step {
    p.a.mov(eax, dword_ptr(ORDER + first * 4))?;
    p.a.inc(eax)?;
    p.a.cmp(dword_ptr(ORDER + second * 4), eax)?;
    p.expect_equal()
}

/// An edge is there when the OUT has ended; of two, the higher vector goes first, and both return to the same place.
fn ioapic(p: &mut Program) -> Step {
    p.route(14, 0x77)?;
    p.a.sti()?;
    p.pulse(14)?;
    p.a.nop()?;
    p.expect(count(0x77), 1)?;
    p.route(14, 0x78)?;
    p.route(15, 0x66)?;
    p.a.cli()?;
    p.pulse(15)?;
    p.pulse(14)?;
    p.a.sti()?;
    p.a.nop()?;
    p.a.cli()?;
    p.expect(count(0x78), 1)?;
    p.expect(count(0x66), 1)?;
    expect_order(p, 0x78, 0x66)?;
    p.a.mov(eax, dword_ptr(RETURNS + 0x78 * 4))?;
    p.a.cmp(dword_ptr(RETURNS + 0x66 * 4), eax)?;
    p.expect_equal()
}

/// A level is served right behind the OUT that raises it; a masked one when the mask goes.
fn levels(p: &mut Program) -> Step {
    const LEVEL_TRIGGERED: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;
    p.route(14, LEVEL | LEVEL_TRIGGERED)?;
    p.a.sti()?;
    p.a.mov(edx, 0x200E)?;
    p.a.mov(eax, 1)?;
    p.a.out(dx, al)?;
    p.a.out(dx, al)?;
    p.a.nop()?;
    p.expect(count(LEVEL), 2)?;
    p.route(14, LEVEL | LEVEL_TRIGGERED | MASKED)?;
    p.a.out(dx, al)?;
    p.a.nop()?;
    p.expect(count(LEVEL), 2)?;
    p.route(14, LEVEL | LEVEL_TRIGGERED)?;
    p.a.nop()?;
    p.expect(count(LEVEL), 3)?;
    p.a.cli()
}

/// IPIs to itself: at once, held back by TPR and CR8, behind an INT that stands in STI's shadow.
fn self_ipis(p: &mut Program) -> Step {
    p.a.sti()?;
    self_ipi(p, 0xF1)?;
    p.a.nop()?;
    p.expect(count(0xF1), 1)?;
    p.a.mov(dword_ptr(APIC + 0x80), 0xF0)?;
    self_ipi(p, 0x3E)?;
    p.a.nop()?;
    p.expect(count(0x3E), 0)?;
    p.a.mov(dword_ptr(APIC + 0x80), 0x30)?;
    p.a.nop()?;
    p.expect(count(0x3E), 0)?;
    p.a.mov(dword_ptr(APIC + 0x80), 0x20)?;
    p.a.nop()?;
    p.expect(count(0x3E), 1)?;
    p.a.mov(dword_ptr(APIC + 0x80), 0)?;
    p.a.cli()?;
    self_ipi(p, 0x51)?;
    p.a.sti()?;
    p.a.int(0x52)?;
    p.a.nop()?;
    p.a.cli()?;
    expect_order(p, 0x52, 0x51)?;
    self_ipi(p, 0x61)?;
    self_ipi(p, 0x62)?;
    p.a.sti()?;
    p.a.nop()?;
    p.a.cli()?;
    expect_order(p, 0x62, 0x61)
}

/// The handler sends another NMI: it comes after IRET, and once, though it is sent ten times.
fn nmis(p: &mut Program) -> Step {
    p.a.mov(dword_ptr(APIC + 0x310), 0)?;
    p.a.mov(dword_ptr(APIC + 0x300), 0x4400)?;
    p.a.nop()?;
    p.expect(count(NMI), 2)
}

/// A deadline that has passed interrupts at once and is 0 then; one-shot counts to zero and interrupts once.
fn timer(p: &mut Program) -> Step {
    p.a.sti()?;
    p.a.mov(dword_ptr(APIC + 0x320), 0x4_00EF)?;
    p.a.rdtsc()?;
    p.a.mov(ecx, 0x6E0)?;
    p.a.wrmsr()?;
    p.a.nop()?;
    p.expect(count(0xEF), 1)?;
    p.a.mov(ecx, 0x6E0)?;
    p.a.rdmsr()?;
    p.a.or(eax, edx)?;
    p.expect_equal()?;
    p.a.mov(dword_ptr(APIC + 0x320), 0xEE)?;
    p.a.mov(dword_ptr(APIC + 0x3E0), 0xB)?;
    p.a.mov(dword_ptr(APIC + 0x380), 0x1_0000)?;
    p.a.mov(ebx, 1)?;
    p.wait_for(count(0xEE))?;
    p.expect(APIC + 0x390, 0)?;
    p.a.mov(dword_ptr(APIC + 0x320), 0x1_0000)?;
    p.a.cli()
}

/// Writes IA32_APIC_BASE; `faults`: it is #GP.
fn set_base(p: &mut Program, faults: bool, high: u32, low: u32) -> Step {
    p.a.mov(dword_ptr(count(GP)), 0)?;
    p.write_msr(BASE_MSR, high, low)?;
    p.expect(count(GP), faults.into())
}

/// "Local x2APIC State Transitions", "x2APIC State Transitions": what the figure has no arrow for is #GP.
fn transitions(p: &mut Program) -> Step {
    let rows = [
        (true, EXTENDED),
        (false, ENABLED | EXTENDED),
        (true, EXTENDED),
        (true, ENABLED),
        (false, 0),
        (true, EXTENDED),
        (true, ENABLED | EXTENDED),
        (false, ENABLED),
        (true, EXTENDED),
    ];
    rows.into_iter().try_for_each(|(faults, mode)| set_base(p, faults, 0, HOME | mode))
}

/// Disabled, the page is empty and CPUID says so; enabled again, it stands where the base says.
fn disabled_and_moved(p: &mut Program) -> Step {
    let cpuid_apic = |p: &mut Program, expected: u32| {
        p.a.mov(eax, 1)?;
        p.a.cpuid()?;
        p.a.and(edx, 1 << 9)?;
        p.a.cmp(edx, expected)?;
        p.expect_equal()
    };
    p.a.mov(eax, dword_ptr(APIC + 0x30))?;
    p.a.mov(dword_ptr(SCRATCH), eax)?;
    set_base(p, false, 0, HOME)?;
    cpuid_apic(p, 0)?;
    p.expect(APIC + 0x30, u32::MAX)?;
    set_base(p, false, 0, ELSEWHERE | 0x100 | ENABLED)?;
    p.a.mov(eax, dword_ptr(SCRATCH))?;
    p.a.cmp(dword_ptr(ELSEWHERE + 0x30), eax)?;
    p.expect_equal()?;
    cpuid_apic(p, 1 << 9)?;
    // Reserved: bits above the physical address, and low ones.
    set_base(p, true, 1 << 8, HOME | ENABLED)?;
    set_base(p, true, 0, HOME | ENABLED | 1)?;
    set_base(p, false, 0, HOME)?;
    set_base(p, false, 0, HOME | ENABLED)?;
    p.a.mov(dword_ptr(APIC + 0xF0), 0x1FF)
}

/// "Extended XAPIC": the ID cannot be written; SELF IPI, and a message to everybody.
fn x2apic(p: &mut Program) -> Step {
    set_base(p, false, 0, HOME | ENABLED | EXTENDED)?;
    p.a.mov(dword_ptr(X2APIC), 1)?;
    p.write_msr(0x80F, 0, 0x1FF)?;
    p.write_msr(0x802, 0, 1)?;
    p.expect(count(GP), 1)?;
    p.expect(APIC + 0x30, u32::MAX)?;
    p.a.sti()?;
    p.write_msr(0x83F, 0, 0xF2)?;
    p.a.nop()?;
    p.expect(count(0xF2), 1)?;
    p.write_msr(0x830, u32::MAX, 0x40F3)?;
    p.a.nop()?;
    p.expect(count(0xF3), 1)?;
    p.a.cli()
}

/// Counts a vector; EOI.
fn handler(a: &mut CodeAssembler, vector: u32) -> Step {
    a.pushad()?;
    a.inc(dword_ptr(count(vector)))?;
    a.mov(eax, dword_ptr(esp + 32))?;
    a.mov(dword_ptr(RETURNS + vector * 4), eax)?;
    a.inc(dword_ptr(ALL))?;
    a.mov(eax, dword_ptr(ALL))?;
    a.mov(dword_ptr(ORDER + vector * 4), eax)?;
    if vector == LEVEL {
        a.mov(edx, 0x200E)?;
        a.xor(eax, eax)?;
        a.out(dx, al)?;
    }
    let (mut msrs, mut done) = (a.create_label(), a.create_label());
    a.cmp(dword_ptr(X2APIC), 0)?;
    a.jne(msrs)?;
    a.mov(dword_ptr(APIC + 0xB0), 0)?;
    a.jmp(done)?;
    a.set_label(&mut msrs)?;
    a.mov(ecx, 0x80B)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.set_label(&mut done)?;
    a.popad()?;
    a.iretd()
}

/// The ELF file.
pub fn build() -> Vec<u8> {
    let mut handlers = vec![
        (
            NMI_HANDLER,
            assemble(32, NMI_HANDLER, |a| {
                let mut done = a.create_label();
                a.inc(dword_ptr(count(NMI)))?;
                a.cmp(dword_ptr(count(NMI)), 1)?;
                a.jne(done)?;
                for _ in 0..10 {
                    a.mov(dword_ptr(APIC + 0x300), 0x4400)?;
                }
                a.set_label(&mut done)?;
                a.iretd()
            }),
        ),
        // Past WRMSR.
        (
            GP_HANDLER,
            assemble(32, GP_HANDLER, |a| {
                a.inc(dword_ptr(count(GP)))?;
                a.add(dword_ptr(esp + 4), 2)?;
                a.add(esp, 4)?;
                a.iretd()
            }),
        ),
    ];
    for (n, vector) in (0..).zip(VECTORS) {
        let at = FIRST_HANDLER + n * HANDLER_SIZE;
        handlers.push((at, assemble(32, at, |a| handler(a, vector))));
    }
    let body = |p: &mut Program| {
        p.set_gate(NMI, NMI_HANDLER)?;
        p.set_gate(GP, GP_HANDLER)?;
        for (n, vector) in (0..).zip(VECTORS) {
            p.set_gate(vector, FIRST_HANDLER + n * HANDLER_SIZE)?;
        }
        p.a.mov(dword_ptr(APIC + 0xF0), 0x1FF)?;
        ioapic(p)?;
        levels(p)?;
        self_ipis(p)?;
        nmis(p)?;
        timer(p)?;
        transitions(p)?;
        disabled_and_moved(p)?;
        x2apic(p)?;
        p.print("done\n")
    };
    kernel(&["done\n"], body, &handlers)
}
