//! What test kernels have in common: a start in protected mode, text on COM1, an IDT, and an end by isa-debug-exit.
//! Each check has a number; one that fails ends the kernel with it, after `FAIL`.

use crate::elf::{BASE, ENTRY, assemble, elf32, segment};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub const GDT: u32 = BASE + 0x3000;
pub const GDT_POINTER: u32 = BASE + 0x3100;
pub const IDT_POINTER: u32 = BASE + 0x3110;
const STRINGS: u32 = BASE + 0x3200;
/// Handlers of interrupts.
pub const HANDLERS: u32 = BASE + 0x3400;
/// Not in the file: 256 gates, a kernel's own variables, the stack's top.
const IDT: u32 = BASE + 0x4000;
pub const VARIABLES: u32 = BASE + 0x5000;
pub const STACK: u32 = BASE + 0xA000;

pub const APIC: u32 = 0xFEE0_0000;
const IOAPIC: u32 = 0xFEC0_0000;
/// How often a variable is looked at before the kernel gives up.
const TURNS: i32 = 50_000_000;
const FAIL: &str = "FAIL\n";

pub type Step = Result<(), IcedError>;

/// The code of a kernel while it is written. EBP is the number of the last check.
pub struct Program<'a> {
    pub a: &'a mut CodeAssembler,
    pub puts: CodeLabel,
    pub putc: CodeLabel,
    fail: CodeLabel,
    step: u32,
    /// Where each text stands.
    texts: Vec<(&'static str, u32)>,
}

impl Program<'_> {
    /// The condition of the CMP or TEST before must be "equal".
    pub fn expect_equal(&mut self) -> Step {
        self.step += 1;
        let step = self.step;
        self.a.mov(ebp, step)?;
        self.a.jne(self.fail)
    }

    /// The dword at `address` must be `value`.
    pub fn expect(&mut self, address: u32, value: u32) -> Step {
        self.a.cmp(dword_ptr(address), value as i32)?;
        self.expect_equal()
    }

    /// One of the texts that the kernel was built with.
    pub fn print(&mut self, text: &str) -> Step {
        let at = self.texts.iter().find(|(known, _)| *known == text).map(|(_, at)| *at);
        self.a.mov(esi, at.expect("a text of this kernel"))?;
        self.a.call(self.puts)
    }

    /// A line with the digit in EBX.
    pub fn print_digit(&mut self) -> Step {
        self.a.lea(eax, ptr(ebx + 0x30))?;
        self.a.call(self.putc)?;
        self.a.mov(eax, u32::from('\n'))?;
        self.a.call(self.putc)
    }

    /// Waits until the dword at `address` is that in EBX.
    pub fn wait_for(&mut self, address: u32) -> Step {
        let (mut again, mut done) = (self.a.create_label(), self.a.create_label());
        self.a.mov(ecx, TURNS)?;
        self.a.set_label(&mut again)?;
        self.a.pause()?;
        self.a.cmp(dword_ptr(address), ebx)?;
        self.a.je(done)?;
        self.a.dec(ecx)?;
        self.a.jne(again)?;
        self.a.test(esp, esp)?;
        self.a.set_label(&mut done)?;
        self.expect_equal()
    }

    /// An interrupt gate.
    pub fn set_gate(&mut self, vector: u32, handler: u32) -> Step {
        self.a.mov(dword_ptr(IDT + vector * 8), 8 << 16 | handler & 0xFFFF)?;
        self.a.mov(dword_ptr(IDT + vector * 8 + 4), handler & 0xFFFF_0000 | 0x8E00)
    }

    /// An edge-triggered input of the IOAPIC leads to the first processor.
    pub fn route(&mut self, line: u32, vector: u32) -> Step {
        for (register, value) in [(0x11 + 2 * line, 0), (0x10 + 2 * line, vector)] {
            self.a.mov(dword_ptr(IOAPIC), register)?;
            self.a.mov(dword_ptr(IOAPIC + 0x10), value)?;
        }
        Ok(())
    }

    /// The test device drives a line high and low again.
    pub fn pulse(&mut self, line: u32) -> Step {
        self.a.mov(edx, 0x2000 + line)?;
        for level in [1, 0] {
            self.a.mov(eax, level)?;
            self.a.out(dx, al)?;
        }
        Ok(())
    }

    pub fn write_msr(&mut self, msr: u32, high: u32, low: u32) -> Step {
        self.a.mov(ecx, msr)?;
        self.a.mov(edx, high)?;
        self.a.mov(eax, low)?;
        self.a.wrmsr()
    }

    fn begin(&mut self) -> Step {
        self.a.mov(esp, STACK)?;
        self.a.cmp(eax, 0x2BAD_B002u32)?;
        self.expect_equal()?;
        self.a.lgdt(fword_ptr(GDT_POINTER))?;
        self.a.lidt(fword_ptr(IDT_POINTER))?;
        self.load_segments()?;
        // Firmware may have left the 8259As with the timer unmasked.
        self.a.mov(eax, 0xFF)?;
        self.a.out(0x21, al)?;
        self.a.out(0xA1, al)
    }

    /// CS from the GDT by a far return to the instruction after the CALL; then the others.
    fn load_segments(&mut self) -> Step {
        let (mut far, mut data) = (self.a.create_label(), self.a.create_label());
        self.a.push(8)?;
        self.a.call(far)?;
        self.a.jmp(data)?;
        self.a.set_label(&mut far)?;
        self.a.retf()?;
        self.a.set_label(&mut data)?;
        self.a.mov(eax, 0x10)?;
        [ds, es, ss].into_iter().try_for_each(|segment| self.a.mov(segment, eax))
    }

    /// Status 0, or the number of the check that failed; where nothing ends the program, it stands.
    fn end(&mut self) -> Step {
        self.a.xor(ebp, ebp)?;
        let mut exit = self.a.create_label();
        self.a.set_label(&mut exit)?;
        self.a.mov(eax, ebp)?;
        self.a.out(0xF4, eax)?;
        self.a.cli()?;
        self.a.hlt()?;
        let mut fail = self.fail;
        self.a.set_label(&mut fail)?;
        self.print(FAIL)?;
        self.a.jmp(exit)
    }

    /// `putc`: AL to COM1, through EDX. `puts`: the string at ESI, through EAX.
    fn subroutines(&mut self) -> Step {
        let (mut putc, mut puts) = (self.putc, self.puts);
        let (mut wait, mut end) = (self.a.create_label(), self.a.create_label());
        self.a.set_label(&mut putc)?;
        self.a.mov(ah, al)?;
        self.a.mov(edx, 0x3FD)?;
        self.a.set_label(&mut wait)?;
        self.a.in_(al, dx)?;
        self.a.test(al, 0x20)?;
        self.a.je(wait)?;
        self.a.mov(edx, 0x3F8)?;
        self.a.mov(al, ah)?;
        self.a.out(dx, al)?;
        self.a.ret()?;
        self.a.set_label(&mut puts)?;
        self.a.lodsb()?;
        self.a.test(al, al)?;
        self.a.je(end)?;
        self.a.call(putc)?;
        self.a.jmp(puts)?;
        self.a.set_label(&mut end)?;
        self.a.ret()
    }
}

/// The ELF file: texts that the body prints, the body, and what else stands where in memory.
pub fn kernel(
    texts: &[&'static str],
    body: impl FnOnce(&mut Program) -> Step,
    others: &[(u32, Vec<u8>)],
) -> Vec<u8> {
    let mut image = segment();
    let mut places = Vec::new();
    let mut at = STRINGS;
    for &text in texts.iter().chain([&FAIL]) {
        image.put(at, text.as_bytes());
        places.push((text, at));
        at += text.len() as u32 + 1;
    }
    let code = assemble(32, ENTRY, |a| {
        let (puts, putc, fail) = (a.create_label(), a.create_label(), a.create_label());
        let mut program = Program { a, puts, putc, fail, step: 0, texts: places };
        program.begin()?;
        body(&mut program)?;
        program.end()?;
        program.subroutines()
    });
    assert!(code.len() < (GDT - ENTRY) as usize, "{:#x} bytes of code", code.len());
    image.put(ENTRY, &code);
    let gdt = [0, 0x00CF_9B00_0000_FFFFu64, 0x00CF_9300_0000_FFFF];
    image.put(GDT, &gdt.map(u64::to_le_bytes).concat());
    let pointer = |limit: u16, base: u32| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    image.put(GDT_POINTER, &pointer(23, GDT));
    image.put(IDT_POINTER, &pointer(0x7FF, IDT));
    others.iter().for_each(|(at, bytes)| image.put(*at, bytes));
    elf32(&image)
}
