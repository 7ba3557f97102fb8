//! A kernel that does what unit-test kernels rely on: it prints on COM1, reads its command line and fw_cfg, starts the
//! other processors, turns its APIC off and on, takes an interrupt that the test device raises, and leaves by
//! isa-debug-exit. A step that fails leaves with its number, after `FAIL`.

use crate::elf::{BASE, ENTRY, assemble, elf32, segment};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const GDT: u32 = BASE + 0x3000;
const GDT_POINTER: u32 = BASE + 0x3100;
const IDT_POINTER: u32 = BASE + 0x3110;
const STRINGS: u32 = BASE + 0x3200;
const TRAMPOLINE: u32 = BASE + 0x3400;
const HANDLER: u32 = BASE + 0x3500;
/// Not in the file: 256 gates, counters, the stack's top.
const IDT: u32 = BASE + 0x4000;
const INTERRUPTS: u32 = BASE + 0x5000;
const STACK: u32 = BASE + 0x8000;
/// Below 1 MiB: where the other processors begin, and where they count themselves.
const START_PAGE: u32 = 0x8;
const ONLINE: u32 = 0x9000;

const APIC: u32 = 0xFEE0_0000;
const IOAPIC: u32 = 0xFEC0_0000;
const TEST_MEMORY: u32 = 0xFF00_0000;
const VECTOR: u32 = 0x40;
/// The line that the test device raises: pin 14 of the IOAPIC.
const LINE: u32 = 14;
const TURNS: i32 = 50_000_000;
/// The step that the interrupt is waited for in.
pub const NO_INTERRUPT: i32 = 4;

/// Strings at fixed places.
const TEXTS: [&str; 6] = ["args: ", "cpus ", "online ", "interrupt\n", "done\n", "FAIL\n"];

fn text(index: usize) -> u32 {
    STRINGS + TEXTS[..index].iter().map(|text| text.len() as u32 + 1).sum::<u32>()
}

/// The program.
struct Program<'a> {
    a: &'a mut CodeAssembler,
    puts: CodeLabel,
    putc: CodeLabel,
    fail: CodeLabel,
    step: u32,
}

type Step = Result<(), IcedError>;

impl Program<'_> {
    /// The condition of the CMP or TEST before must be "equal".
    fn expect_equal(&mut self) -> Step {
        self.step += 1;
        let step = self.step;
        self.a.mov(ebp, step)?;
        self.a.jne(self.fail)
    }

    fn print(&mut self, index: usize) -> Step {
        self.a.mov(esi, text(index))?;
        self.a.call(self.puts)
    }

    /// A line with the digit in EBX.
    fn print_digit(&mut self) -> Step {
        for value in [None, Some('\n')] {
            match value {
                None => self.a.lea(eax, ptr(ebx + 0x30))?,
                Some(value) => self.a.mov(eax, u32::from(value))?,
            }
            self.a.call(self.putc)?;
        }
        Ok(())
    }

    /// Waits until the dword at `address` is that in EBX.
    fn wait_for(&mut self, address: u32) -> Step {
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
        self.a.out(0xA1, al)?;
        self.print(0)?;
        self.a.mov(esi, dword_ptr(ebx + 16))?;
        self.a.call(self.puts)?;
        self.a.mov(eax, u32::from('\n'))?;
        self.a.call(self.putc)
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

    /// The number of processors: fw_cfg item 5, two bytes. Stays in EBX.
    fn read_fw_cfg(&mut self) -> Step {
        self.a.mov(edx, 0x510)?;
        self.a.mov(eax, 5)?;
        self.a.out(dx, ax)?;
        self.a.inc(edx)?;
        self.a.xor(ebx, ebx)?;
        self.a.in_(al, dx)?;
        self.a.mov(bl, al)?;
        self.a.in_(al, dx)?;
        self.a.mov(bh, al)?;
        self.print(1)?;
        self.print_digit()
    }

    /// INIT and start-up IPI to all others; they count themselves.
    fn start_processors(&mut self) -> Step {
        self.a.mov(esi, TRAMPOLINE)?;
        self.a.mov(edi, START_PAGE << 12)?;
        self.a.mov(ecx, 0x100 / 4)?;
        self.a.rep().movsd()?;
        self.a.mov(dword_ptr(ONLINE), 1)?;
        self.a.mov(dword_ptr(APIC + 0xF0), 0x1FF)?;
        self.a.mov(dword_ptr(APIC + 0x300), 0xC_4500)?;
        self.a.mov(dword_ptr(APIC + 0x300), 0xC_4600 | START_PAGE)?;
        self.wait_for(ONLINE)?;
        self.print(2)?;
        self.print_digit()
    }

    /// IA32_APIC_BASE.EN off and on: the registers are as after power-on (SDM Vol. 3, "Local APIC State After It Has
    /// Been Software Disabled" and "Enabling or Disabling the Local APIC").
    fn disable_and_enable_apic(&mut self) -> Step {
        for enable in [false, true] {
            self.a.mov(ecx, 0x1B)?;
            self.a.rdmsr()?;
            if enable {
                self.a.bts(eax, 11u32)?;
            } else {
                self.a.btr(eax, 11u32)?;
            }
            self.a.wrmsr()?;
        }
        self.a.cmp(dword_ptr(APIC + 0xF0), 0xFF)?;
        self.expect_equal()?;
        self.a.mov(dword_ptr(APIC + 0xF0), 0x1FF)
    }

    fn take_interrupt(&mut self) -> Step {
        self.a.mov(edi, IDT + VECTOR * 8)?;
        self.a.mov(dword_ptr(edi), 8 << 16 | HANDLER & 0xFFFF)?;
        self.a.mov(dword_ptr(edi + 4), HANDLER & 0xFFFF_0000 | 0x8E00)?;
        for (register, value) in [(0x10 + 2 * LINE, VECTOR), (0x11 + 2 * LINE, 0)] {
            self.a.mov(dword_ptr(IOAPIC), register)?;
            self.a.mov(dword_ptr(IOAPIC + 0x10), value)?;
        }
        self.a.mov(dword_ptr(INTERRUPTS), 0)?;
        self.a.sti()?;
        self.a.mov(edx, 0x2000 + LINE)?;
        for level in [1, 0] {
            self.a.mov(eax, level)?;
            self.a.out(dx, al)?;
        }
        self.a.mov(ebx, 1)?;
        self.wait_for(INTERRUPTS)?;
        self.a.cli()?;
        self.print(3)
    }

    /// The echo ports, and memory that can be read, written and executed.
    fn use_test_device(&mut self) -> Step {
        self.a.mov(eax, 0x1234_5678)?;
        self.a.out(0xE0, eax)?;
        self.a.xor(eax, eax)?;
        self.a.in_(ax, 0xE2)?;
        self.a.cmp(eax, 0x1234)?;
        self.expect_equal()?;
        // MOV EAX, 600Dh; RET.
        self.a.mov(dword_ptr(TEST_MEMORY), 0x0060_0DB8)?;
        self.a.mov(dword_ptr(TEST_MEMORY + 4), 0xC300)?;
        self.a.mov(ecx, TEST_MEMORY)?;
        self.a.call(ecx)?;
        self.a.cmp(eax, 0x600D)?;
        self.expect_equal()
    }

    /// Ends with the status in EBP; where nothing ends the program, it stands.
    fn end(&mut self) -> Step {
        self.print(4)?;
        self.a.xor(ebp, ebp)?;
        let mut exit = self.a.create_label();
        self.a.set_label(&mut exit)?;
        self.a.mov(eax, ebp)?;
        self.a.out(0xF4, eax)?;
        self.a.cli()?;
        self.a.hlt()?;
        let mut fail = self.fail;
        self.a.set_label(&mut fail)?;
        self.print(5)?;
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

/// The ELF file.
pub fn build() -> Vec<u8> {
    let mut image = segment();
    let code = assemble(32, ENTRY, |a| {
        let (puts, putc, fail) = (a.create_label(), a.create_label(), a.create_label());
        let mut program = Program { a, puts, putc, fail, step: 0 };
        program.begin()?;
        program.read_fw_cfg()?;
        program.start_processors()?;
        program.disable_and_enable_apic()?;
        program.take_interrupt()?;
        program.use_test_device()?;
        program.end()?;
        program.subroutines()
    });
    image.put(ENTRY, &code);
    let gdt = [0, 0x00CF_9B00_0000_FFFFu64, 0x00CF_9300_0000_FFFF];
    image.put(GDT, &gdt.map(u64::to_le_bytes).concat());
    let pointer = |limit: u16, base: u32| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    image.put(GDT_POINTER, &pointer(23, GDT));
    image.put(IDT_POINTER, &pointer(0x7FF, IDT));
    TEXTS.iter().enumerate().for_each(|(n, bytes)| image.put(text(n), bytes.as_bytes()));
    let trampoline = assemble(16, 0, |a| {
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.lock().inc(dword_ptr(ONLINE))?;
        let mut halt = a.create_label();
        a.set_label(&mut halt)?;
        a.hlt()?;
        a.jmp(halt)
    });
    image.put(TRAMPOLINE, &trampoline);
    let handler = assemble(32, HANDLER, |a| {
        a.inc(dword_ptr(INTERRUPTS))?;
        a.mov(dword_ptr(APIC + 0xB0), 0)?;
        a.iretd()
    });
    image.put(HANDLER, &handler);
    elf32(&image)
}
