//! A kernel that starts as suites of 64-bit unit tests do: its environment is a module, memory is what multiboot and fw_cfg
//! say, ACPI's tables are found below 1 MiB, and one broadcast starts all processors at address 0, from where they come
//! to protected mode, a stack and an IDT of their own and take interrupts from the first.

use crate::elf::assemble;
use crate::program::{APIC, GDT_POINTER, HANDLERS, IDT_POINTER, Program, Step, VARIABLES, kernel};
use iced_x86::code_asm::*;

/// The module.
pub const ENVIRONMENT: &[u8; 16] = b"NR=7\0MEMSIZE=16\0";

const HANDLER: u32 = HANDLERS;
const TRAMPOLINE: u32 = HANDLERS + 0x40;
const PROCESSOR: u32 = HANDLERS + 0x80;
const ONLINE: u32 = VARIABLES;
const INTERRUPTS: u32 = VARIABLES + 4;
/// Where the next processor's stack begins.
const STACKS: u32 = VARIABLES + 8;
const STACK_SIZE: i32 = 0x200;
const VECTOR: u32 = 0x20;
const MIB: u32 = 1 << 20;

/// Multiboot's information, at EBX: modules_count, mods_addr; the module's bytes.
fn read_environment(p: &mut Program) -> Step {
    p.a.cmp(dword_ptr(ebx + 20), 1)?;
    p.expect_equal()?;
    p.a.mov(ecx, dword_ptr(ebx + 24))?;
    p.a.mov(esi, dword_ptr(ecx))?;
    p.a.mov(eax, dword_ptr(ecx + 4))?;
    p.a.sub(eax, esi)?;
    p.a.cmp(eax, ENVIRONMENT.len() as i32)?;
    p.expect_equal()?;
    p.a.call(p.puts)?;
    p.print("\n")
}

/// A number of fw_cfg of two or four bytes, in EAX.
fn read_fw_cfg(p: &mut Program, item: u32, bytes: u32) -> Step {
    p.a.mov(edx, 0x510)?;
    p.a.mov(eax, item)?;
    p.a.out(dx, ax)?;
    p.a.inc(edx)?;
    p.a.xor(ecx, ecx)?;
    for n in 0..bytes {
        p.a.xor(eax, eax)?;
        p.a.in_(al, dx)?;
        p.a.shl(eax, n * 8)?;
        p.a.or(ecx, eax)?;
    }
    p.a.mov(eax, ecx)
}

/// mem_upper is what fw_cfg tells (item 3) less the tables' part of the last MiB; the map has a range from 1 MiB.
fn look_at_memory(p: &mut Program) -> Step {
    read_fw_cfg(p, 3, 4)?;
    p.a.shr(eax, 10)?;
    p.a.sub(eax, 1024)?;
    p.a.sub(eax, dword_ptr(ebx + 8))?;
    p.a.shr(eax, 10)?;
    p.expect_equal()?;
    let (mut next, mut found) = (p.a.create_label(), p.a.create_label());
    p.a.mov(esi, dword_ptr(ebx + 48))?;
    p.a.mov(edi, esi)?;
    p.a.add(edi, dword_ptr(ebx + 44))?;
    p.a.set_label(&mut next)?;
    p.a.cmp(dword_ptr(esi + 4), MIB as i32)?;
    p.a.je(found)?;
    p.a.add(esi, dword_ptr(esi))?;
    p.a.add(esi, 4)?;
    p.a.cmp(esi, edi)?;
    p.a.jb(next)?;
    p.a.set_label(&mut found)?;
    p.a.cmp(dword_ptr(esi + 20), 1)?;
    p.expect_equal()?;
    p.print("memory\n")
}

/// The table of this signature that the RSDT at EDI lists, in EAX; 0 if there is none.
fn find_table(p: &mut Program, signature: &[u8; 4]) -> Step {
    let (mut next, mut done) = (p.a.create_label(), p.a.create_label());
    p.a.mov(ecx, dword_ptr(edi + 4))?;
    p.a.lea(esi, dword_ptr(edi + 36))?;
    p.a.add(ecx, edi)?;
    p.a.set_label(&mut next)?;
    p.a.mov(eax, dword_ptr(esi))?;
    p.a.cmp(dword_ptr(eax), i32::from_le_bytes(*signature))?;
    p.a.je(done)?;
    p.a.add(esi, 4)?;
    p.a.cmp(esi, ecx)?;
    p.a.jb(next)?;
    p.a.xor(eax, eax)?;
    p.a.set_label(&mut done)?;
    p.a.nop()
}

/// The RSDP on a paragraph from E0000h on, RSDT, MADT; FADT and the FACS that it names.
fn find_tables(p: &mut Program) -> Step {
    let (mut next, mut found) = (p.a.create_label(), p.a.create_label());
    p.a.mov(edi, 0xE_0000)?;
    p.a.set_label(&mut next)?;
    p.a.cmp(dword_ptr(edi), i32::from_le_bytes(*b"RSD "))?;
    p.a.je(found)?;
    p.a.add(edi, 16)?;
    p.a.cmp(edi, MIB as i32)?;
    p.a.jb(next)?;
    p.a.set_label(&mut found)?;
    p.a.cmp(dword_ptr(edi + 4), i32::from_le_bytes(*b"PTR "))?;
    p.expect_equal()?;
    p.a.mov(edi, dword_ptr(edi + 16))?;
    p.a.cmp(dword_ptr(edi), i32::from_le_bytes(*b"RSDT"))?;
    p.expect_equal()?;
    find_table(p, b"APIC")?;
    p.a.cmp(dword_ptr(eax + 36), APIC as i32)?;
    p.expect_equal()?;
    find_table(p, b"FACP")?;
    p.a.mov(eax, dword_ptr(eax + 36))?;
    p.a.cmp(dword_ptr(eax), i32::from_le_bytes(*b"FACS"))?;
    p.expect_equal()?;
    p.print("tables\n")
}

/// All but this one, by one INIT and one start-up IPI to page 0; each counts itself when it is ready.
fn start_processors(p: &mut Program) -> Step {
    p.set_gate(VECTOR, HANDLER)?;
    p.a.mov(dword_ptr(INTERRUPTS), 0)?;
    p.a.mov(dword_ptr(STACKS), (VARIABLES + 0x1000) as i32)?;
    p.a.mov(esi, TRAMPOLINE)?;
    p.a.xor(edi, edi)?;
    p.a.mov(ecx, 0x40)?;
    p.a.rep().movsb()?;
    p.a.mov(dword_ptr(ONLINE), 1)?;
    p.a.mov(dword_ptr(APIC + 0xF0), 0x1FF)?;
    p.a.mov(dword_ptr(APIC + 0x300), 0xC_4500)?;
    p.a.mov(dword_ptr(APIC + 0x300), 0xC_4600)?;
    read_fw_cfg(p, 5, 2)?;
    p.a.mov(ebx, eax)?;
    p.wait_for(ONLINE)?;
    p.print("processors ")?;
    p.print_digit()
}

/// An interrupt to each of the others, by its APIC ID.
fn interrupt_processors(p: &mut Program) -> Step {
    let (mut next, mut all) = (p.a.create_label(), p.a.create_label());
    p.a.mov(esi, 1)?;
    p.a.set_label(&mut next)?;
    p.a.cmp(esi, ebx)?;
    p.a.je(all)?;
    p.a.mov(eax, esi)?;
    p.a.shl(eax, 24)?;
    p.a.mov(dword_ptr(APIC + 0x310), eax)?;
    p.a.mov(dword_ptr(APIC + 0x300), (0x4000 | VECTOR) as i32)?;
    p.a.inc(esi)?;
    p.a.jmp(next)?;
    p.a.set_label(&mut all)?;
    p.a.dec(ebx)?;
    p.wait_for(INTERRUPTS)?;
    p.print("done\n")
}

/// At address 0, in real mode: the first processor's GDT, and a far jump.
fn trampoline() -> Vec<u8> {
    assemble(16, 0, |a| {
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        // LGDT with 32-bit operands, of the six bytes at 30h; JMP FAR 8:PROCESSOR.
        a.db(&[0x66, 0x0F, 0x01, 0x16, 0x30, 0x00])?;
        a.db(&[0x66, 0xEA])?;
        a.dd(&[PROCESSOR])?;
        a.dw(&[8])
    })
}

/// The ELF file.
pub fn build() -> Vec<u8> {
    let handler = assemble(32, HANDLER, |a| {
        a.lock().inc(dword_ptr(INTERRUPTS))?;
        a.mov(dword_ptr(APIC + 0xB0), 0)?;
        a.iretd()
    });
    let processor = assemble(32, PROCESSOR, |a| {
        a.mov(eax, 0x10)?;
        [ds, es, ss].into_iter().try_for_each(|segment| a.mov(segment, eax))?;
        a.mov(esp, -STACK_SIZE)?;
        a.lock().xadd(dword_ptr(STACKS), esp)?;
        a.lidt(fword_ptr(IDT_POINTER))?;
        a.mov(dword_ptr(APIC + 0xF0), 0x1FF)?;
        a.lock().inc(dword_ptr(ONLINE))?;
        let mut halt = a.create_label();
        a.sti()?;
        a.set_label(&mut halt)?;
        a.hlt()?;
        a.jmp(halt)
    });
    let body = |p: &mut Program| {
        // The trampoline's own copy of what LGDT loads.
        for n in [0, 4] {
            p.a.mov(eax, dword_ptr(GDT_POINTER + n))?;
            p.a.mov(dword_ptr(TRAMPOLINE + 0x30 + n), eax)?;
        }
        read_environment(p)?;
        look_at_memory(p)?;
        find_tables(p)?;
        start_processors(p)?;
        interrupt_processors(p)
    };
    let texts = ["\n", "memory\n", "tables\n", "processors ", "done\n"];
    kernel(&texts, body, &[(HANDLER, handler), (TRAMPOLINE, trampoline()), (PROCESSOR, processor)])
}
