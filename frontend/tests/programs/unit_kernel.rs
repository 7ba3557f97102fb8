//! A kernel that does what unit-test kernels rely on: it prints on COM1, reads its command line and fw_cfg, starts the
//! other processors, turns its APIC off and on, takes an interrupt that the test device raises, and leaves by
//! isa-debug-exit.

use crate::elf::assemble;
use crate::program::{APIC, HANDLERS, Program, Step, VARIABLES, kernel};
use iced_x86::code_asm::*;

/// The check that the interrupt has come.
pub const NO_INTERRUPT: i32 = 4;

const HANDLER: u32 = HANDLERS;
const TRAMPOLINE: u32 = HANDLERS + 0x100;
const INTERRUPTS: u32 = VARIABLES;
/// Below 1 MiB: where the other processors begin, and where they count themselves.
const START_PAGE: u32 = 0x8;
const ONLINE: u32 = 0x9000;
const TEST_MEMORY: u32 = 0xFF00_0000;
const VECTOR: u32 = 0x40;
/// The line that the test device raises: pin 14 of the IOAPIC.
const LINE: u32 = 14;

/// The command line that multiboot's information names.
fn print_arguments(p: &mut Program) -> Step {
    p.print("args: ")?;
    p.a.mov(esi, dword_ptr(ebx + 16))?;
    p.a.call(p.puts)?;
    p.a.mov(eax, u32::from('\n'))?;
    p.a.call(p.putc)
}

/// The number of processors: fw_cfg item 5, two bytes. Stays in EBX.
fn read_fw_cfg(p: &mut Program) -> Step {
    p.a.mov(edx, 0x510)?;
    p.a.mov(eax, 5)?;
    p.a.out(dx, ax)?;
    p.a.inc(edx)?;
    p.a.xor(ebx, ebx)?;
    p.a.in_(al, dx)?;
    p.a.mov(bl, al)?;
    p.a.in_(al, dx)?;
    p.a.mov(bh, al)?;
    p.print("cpus ")?;
    p.print_digit()
}

/// INIT and start-up IPI to all others; they count themselves.
fn start_processors(p: &mut Program) -> Step {
    p.a.mov(esi, TRAMPOLINE)?;
    p.a.mov(edi, START_PAGE << 12)?;
    p.a.mov(ecx, 0x100 / 4)?;
    p.a.rep().movsd()?;
    p.a.mov(dword_ptr(ONLINE), 1)?;
    p.a.mov(dword_ptr(APIC + 0xF0), 0x1FF)?;
    p.a.mov(dword_ptr(APIC + 0x300), 0xC_4500)?;
    p.a.mov(dword_ptr(APIC + 0x300), 0xC_4600 | START_PAGE)?;
    p.wait_for(ONLINE)?;
    p.print("online ")?;
    p.print_digit()
}

/// IA32_APIC_BASE.EN off and on: the registers are as after power-on (SDM Vol. 3, "Enabling or Disabling the Local
/// APIC").
fn disable_and_enable_apic(p: &mut Program) -> Step {
    for enable in [false, true] {
        p.a.mov(ecx, 0x1B)?;
        p.a.rdmsr()?;
        if enable {
            p.a.bts(eax, 11u32)?;
        } else {
            p.a.btr(eax, 11u32)?;
        }
        p.a.wrmsr()?;
    }
    p.expect(APIC + 0xF0, 0xFF)?;
    p.a.mov(dword_ptr(APIC + 0xF0), 0x1FF)
}

fn take_interrupt(p: &mut Program) -> Step {
    p.set_gate(VECTOR, HANDLER)?;
    p.route(LINE, VECTOR)?;
    p.a.mov(dword_ptr(INTERRUPTS), 0)?;
    p.a.sti()?;
    p.pulse(LINE)?;
    p.a.mov(ebx, 1)?;
    p.wait_for(INTERRUPTS)?;
    p.a.cli()?;
    p.print("interrupt\n")
}

/// The echo ports, and memory that can be read, written and executed.
fn use_test_device(p: &mut Program) -> Step {
    p.a.mov(eax, 0x1234_5678)?;
    p.a.out(0xE0, eax)?;
    p.a.xor(eax, eax)?;
    p.a.in_(ax, 0xE2)?;
    p.a.cmp(eax, 0x1234)?;
    p.expect_equal()?;
    // MOV EAX, 600Dh; RET.
    p.a.mov(dword_ptr(TEST_MEMORY), 0x0060_0DB8)?;
    p.a.mov(dword_ptr(TEST_MEMORY + 4), 0xC300)?;
    p.a.mov(ecx, TEST_MEMORY)?;
    p.a.call(ecx)?;
    p.a.cmp(eax, 0x600D)?;
    p.expect_equal()
}

/// The ELF file.
pub fn build() -> Vec<u8> {
    let trampoline = assemble(16, 0, |a| {
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.lock().inc(dword_ptr(ONLINE))?;
        let mut halt = a.create_label();
        a.set_label(&mut halt)?;
        a.hlt()?;
        a.jmp(halt)
    });
    let handler = assemble(32, HANDLER, |a| {
        a.inc(dword_ptr(INTERRUPTS))?;
        a.mov(dword_ptr(APIC + 0xB0), 0)?;
        a.iretd()
    });
    let body = |p: &mut Program| {
        print_arguments(p)?;
        read_fw_cfg(p)?;
        start_processors(p)?;
        disable_and_enable_apic(p)?;
        take_interrupt(p)?;
        use_test_device(p)?;
        p.print("done\n")
    };
    let texts = ["args: ", "cpus ", "online ", "interrupt\n", "done\n"];
    kernel(&texts, body, &[(TRAMPOLINE, trampoline), (HANDLER, handler)])
}
