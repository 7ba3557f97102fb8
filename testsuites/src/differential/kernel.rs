//! What surrounds a random program: descriptor tables, page tables, and a kernel whose exception handler logs the
//! whole state of the program, then maps the page, steps over the instruction, or goes on at the checkpoint.

use super::compare::PageTables;
use crate::system::{descriptor, gate, sel};
use iced_x86::code_asm::*;
use trimaran_cpu::state::{CpuState, RFlags, Segment, TableRegister, attr, cr0, cr4, efer, gpr, seg};

/// Physical addresses; linear ones below [`at::WINDOW`] are the same, and again from the alias on.
pub mod at {
    pub const GDT: u64 = 0x1000;
    pub const IDT: u64 = 0x2000;
    pub const TSS: u64 = 0x3000;
    pub const HANDLERS: u64 = 0x4000;
    pub const COMMON: u64 = 0x4800;
    pub const CALLS: u64 = 0x5000;
    pub const STACK0: u64 = 0x7000;
    pub const ROOT: u64 = 0x8000;
    pub const LOW: u64 = 0xB000;
    pub const ALIASES: u64 = 0xC000;
    pub const CONTROL: u64 = 0xF000;
    pub const CODE: u64 = 0x1_0000;
    /// Two pages of functions that differ in immediates only; the alias of the first shows either.
    pub const TWINS: u64 = 0x1_6000;
    pub const CODE_END: u64 = 0x1_8000;
    pub const DATA: u64 = 0x2_0000;
    pub const DATA_END: u64 = 0x2_8000;
    pub const STACK: u64 = 0x2_A000;
    pub const LOG: u64 = 0x2_C000;
    pub const LOG_END: u64 = 0x3_0000;
    pub const LENGTHS: u64 = 0x3_0000;
    pub const RAM: u64 = 0x3_8000;
    pub const MMIO: u64 = 0x4_0000;
    pub const WINDOW: u64 = 0x4_0000;

    /// Cells of the control page.
    pub const LOG_AT: u64 = CONTROL;
    pub const CHECKPOINT: u64 = CONTROL + 8;
    pub const FAULTS: u64 = CONTROL + 16;
    pub const MXCSR: u64 = CONTROL + 24;
    pub const OTHER_MXCSR: u64 = CONTROL + 32;
    /// Loop counters from here, branch tables from `TABLES`.
    pub const COUNTERS: u64 = CONTROL + 0x40;
    pub const TABLES: u64 = CONTROL + 0x800;
}

/// Pages of the data area with rights of their own.
pub const READ_ONLY: u64 = at::DATA + 0x5000;
pub const ABSENT: u64 = at::DATA + 0x6000;
pub const SUPERVISOR: u64 = at::DATA + 0x4000;

/// The vectors: end of the program, and calls of the kernel from here on.
pub const END: u8 = 0x7F;
pub const CALL: u8 = 0x40;
pub const CALLS: u8 = 8;
/// A device's.
pub const INTERRUPT: u8 = 0x50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Long,
    /// 32-bit code in long mode.
    Compatibility,
    /// 32-bit protected mode with 32-bit paging.
    Paged,
    /// 32-bit protected mode without paging: there is no alias.
    Flat,
}

/// How a program's world is set up.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub mode: Mode,
    pub cpl: u8,
    /// Where the window is mapped a second time.
    pub alias: u64,
    pub write_protect: bool,
    pub global: bool,
    /// AVX is enabled, and the program has VEX-encoded instructions.
    pub avx: bool,
    pub fs: u64,
    pub gs: u64,
    /// Accessed and dirty bits of entry n: bits n and n + 64 of this.
    pub touched: u128,
}

impl World {
    pub fn bits(&self) -> u32 {
        if self.mode == Mode::Long { 64 } else { 32 }
    }
    /// The kernel's code size.
    pub fn kernel_bits(&self) -> u32 {
        if matches!(self.mode, Mode::Long | Mode::Compatibility) { 64 } else { 32 }
    }
    pub fn word(&self) -> u64 {
        u64::from(self.bits() / 8)
    }
    pub fn entry_size(&self) -> u64 {
        if self.mode == Mode::Paged { 4 } else { 8 }
    }
    pub fn page_tables(&self) -> PageTables {
        PageTables::new(at::ROOT..at::CONTROL, self.entry_size())
    }
    /// Address of the page-table entry of a linear address in the window or its alias.
    pub fn entry(&self, physical: u64, alias: bool) -> u64 {
        (if alias { at::ALIASES } else { at::LOW }) + (physical >> 12) * self.entry_size()
    }

    fn rights(&self, page: u64) -> u64 {
        let user = if self.cpl == 3 { 4 } else { 0 };
        match page {
            at::CODE..at::CODE_END => 3 | user | if self.global { 0x100 } else { 0 },
            READ_ONLY => 1 | user,
            ABSENT => 2 | user,
            SUPERVISOR => 3,
            at::DATA..at::STACK | at::CONTROL | at::MMIO.. => 3 | user,
            _ => 3,
        }
    }

    /// The images of everything but the program.
    pub fn images(&self, calls: &[Vec<u8>]) -> Vec<(u64, Vec<u8>)> {
        let mut out = self.tables();
        let bits = self.kernel_bits();
        let mut stub = |at: u64, f: &dyn Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>| {
            let mut a = CodeAssembler::new(bits).expect("an assembler");
            f(&mut a).expect("an instruction");
            out.push((at, a.assemble(at).expect("assembles")));
        };
        let vectors = (0..32).chain([INTERRUPT]);
        for vector in vectors {
            stub(handler(vector), &|a| {
                if !matches!(vector, 8 | 10..=14 | 17) {
                    a.push(0)?;
                }
                a.push(i32::from(vector))?;
                a.jmp(at::COMMON)
            });
        }
        stub(handler(END), &|a| {
            a.hlt()?;
            a.jmp(handler(END))
        });
        stub(at::COMMON, &|a| if bits == 64 { self.common64(a) } else { self.common32(a) });
        for (n, code) in calls.iter().enumerate() {
            out.push((at::CALLS + n as u64 * 64, code.clone()));
        }
        out
    }

    fn tables(&self) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        let mut put = |at: u64, value: u64| out.push((at, value.to_le_bytes().to_vec()));
        let code = attr::P | attr::S | attr::CODE | attr::RW | attr::A | attr::G;
        let data = attr::P | attr::S | attr::RW | attr::A | attr::DB | attr::G;
        let narrow = code | attr::DB;
        let code = code | if self.kernel_bits() == 64 { attr::L } else { attr::DB };
        put(at::GDT + u64::from(sel::SPARE & !7), descriptor(0, 0xF_FFFF, narrow));
        put(at::GDT + u64::from(sel::SPARE2 & !7), descriptor(0, 0xF_FFFF, narrow | 3 << 5));
        for (selector, attributes) in
            [(sel::CODE0, code), (sel::DATA0, data), (sel::CODE3, code | 3 << 5), (sel::DATA3, data | 3 << 5)]
        {
            put(at::GDT + u64::from(selector & !7), descriptor(0, 0xF_FFFF, attributes));
        }
        for vector in 0..=255u8 {
            let offset = match vector {
                CALL..0x48 => at::CALLS + u64::from(vector - CALL) * 64,
                0..32 | INTERRUPT | END => handler(vector),
                _ => continue,
            };
            let dpl = if matches!(vector, 3 | 4 | CALL..0x48 | END) { 3 } else { 0 };
            let low = gate(sel::CODE0, offset as u32, 14, dpl, 0);
            put(at::IDT + u64::from(vector) * if self.kernel_bits() == 64 { 16 } else { 8 }, low);
        }
        put(at::TSS + 4, at::STACK0);
        if self.kernel_bits() == 32 {
            put(at::TSS + 8, u64::from(sel::DATA0));
        }
        put(at::TSS + 0x64, 0xFFFF << 16);
        put(at::LOG_AT, at::LOG);
        put(at::MXCSR, 0x1F80);
        let size = self.entry_size() as usize;
        for alias in [false, true] {
            let mut table = Vec::new();
            for n in 0..512u64 {
                let page = n << 12;
                let inside =
                    (0x1000..at::RAM).contains(&page) || (at::MMIO..at::MMIO + 0x2000).contains(&page);
                let touched = if self.touched >> (n % 64) & 1 != 0 { 0x20 } else { 0 }
                    | if self.touched >> (64 + n % 64) & 1 != 0 { 0x60 } else { 0 };
                let global = if alias { 0x100 } else { 0 };
                let entry = if inside { page | self.rights(page) & !global | touched } else { 0 };
                table.extend(&entry.to_le_bytes()[..size]);
            }
            out.push((if alias { at::ALIASES } else { at::LOW }, table));
        }
        let mut link = |at: u64, to: u64| out.push((at, (to | 7).to_le_bytes()[..size].to_vec()));
        match self.mode {
            Mode::Paged => {
                link(at::ROOT, at::LOW);
                link(at::ROOT + 4, at::ALIASES);
            }
            _ => {
                // From the root down: the tables of the alias come after those of the window, unless they are shared.
                link(at::ROOT, at::ROOT + 0x1000);
                link(at::ROOT + 0x1000, at::ROOT + 0x2000);
                link(at::ROOT + 0x2000, at::LOW);
                let index = |shift: u32| (self.alias >> shift & 511) * 8;
                if index(39) == 0 {
                    link(at::ROOT + 0x2000 + index(21), at::ALIASES);
                } else {
                    link(at::ROOT + index(39), at::ROOT + 0x5000);
                    link(at::ROOT + 0x5000 + index(30), at::ROOT + 0x6000);
                    link(at::ROOT + 0x6000 + index(21), at::ALIASES);
                }
            }
        }
        out
    }

    /// Offsets from the stack pointer, once the registers are pushed: vector, error code, and what the processor pushed.
    fn common64(&self, a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
        let saved = [rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
        let (mut keep, mut skip, mut checkpoint, mut done, mut wrapped) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label(), a.create_label());
        for r in saved {
            a.push(r)?;
        }
        a.mov(rdi, qword_ptr(at::LOG_AT))?;
        a.mov(rsi, rsp)?;
        a.mov(ecx, 22)?;
        a.cld()?;
        a.rep().movsq()?;
        a.mov(rax, cr2)?;
        a.stosq()?;
        a.cmp(rdi, (at::LOG_END - 192) as i32)?;
        a.jb(wrapped)?;
        a.mov(edi, at::LOG as u32)?;
        a.set_label(&mut wrapped)?;
        a.mov(qword_ptr(at::LOG_AT), rdi)?;
        a.mov(ecx, dword_ptr(rsp + 120))?;
        for trap in [1, 3, 4, u32::from(INTERRUPT)] {
            a.cmp(ecx, trap)?;
            a.je(done)?;
        }
        a.cmp(ecx, 14)?;
        a.jne(skip)?;
        a.test(byte_ptr(rsp + 128), 1)?;
        a.jne(skip)?;
        a.inc(dword_ptr(at::FAULTS))?;
        a.test(byte_ptr(at::FAULTS), 3)?;
        a.je(skip)?;
        // The page of the window or of its alias.
        a.mov(rdx, rax)?;
        a.shr(edx, 12)?;
        a.and(edx, 0x3F)?;
        a.mov(rcx, rax)?;
        a.and(rcx, -(at::WINDOW as i32))?;
        a.lea(rsi, qword_ptr(rdx * 8 + at::LOW as i32))?;
        a.test(rcx, rcx)?;
        a.je(keep)?;
        a.mov(rdi, self.alias)?;
        a.cmp(rcx, rdi)?;
        a.jne(skip)?;
        a.lea(rsi, qword_ptr(rdx * 8 + at::ALIASES as i32))?;
        a.set_label(&mut keep)?;
        a.cmp(edx, (at::CODE >> 12) as i32)?;
        a.jb(skip)?;
        a.lock().or(qword_ptr(rsi), 1)?;
        a.invlpg(byte_ptr(rax))?;
        a.jmp(done)?;
        a.set_label(&mut skip)?;
        a.mov(rcx, qword_ptr(rsp + 136))?;
        a.mov(edx, ecx)?;
        a.and(edx, at::WINDOW as u32 - 1)?;
        a.sub(rcx, rdx)?;
        let mut known = a.create_label();
        a.test(rcx, rcx)?;
        a.je(known)?;
        a.mov(rdi, self.alias)?;
        a.cmp(rcx, rdi)?;
        a.jne(checkpoint)?;
        a.set_label(&mut known)?;
        a.sub(edx, at::CODE as i32)?;
        a.cmp(edx, (at::CODE_END - at::CODE) as i32)?;
        a.jae(checkpoint)?;
        a.movzx(eax, byte_ptr(rdx + at::LENGTHS as i32))?;
        a.test(eax, eax)?;
        a.je(checkpoint)?;
        a.add(qword_ptr(rsp + 136), rax)?;
        a.jmp(done)?;
        a.set_label(&mut checkpoint)?;
        a.mov(rax, qword_ptr(at::CHECKPOINT))?;
        a.mov(qword_ptr(rsp + 136), rax)?;
        a.mov(qword_ptr(rsp + 160), at::STACK as i32)?;
        a.set_label(&mut done)?;
        for r in saved.into_iter().rev() {
            a.pop(r)?;
        }
        a.add(rsp, 16)?;
        a.iretq()
    }

    fn common32(&self, a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
        let (mut skip, mut checkpoint, mut done, mut wrapped, mut keep, mut known) = (
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
        );
        let word = |address: u64| dword_ptr(address as i32);
        a.pushad()?;
        a.mov(edi, word(at::LOG_AT))?;
        a.mov(esi, esp)?;
        a.mov(ecx, 15)?;
        a.cld()?;
        a.rep().movsd()?;
        a.mov(eax, cr2)?;
        a.stosd()?;
        a.cmp(edi, (at::LOG_END - 192) as i32)?;
        a.jb(wrapped)?;
        a.mov(edi, at::LOG as u32)?;
        a.set_label(&mut wrapped)?;
        a.mov(word(at::LOG_AT), edi)?;
        a.mov(ecx, dword_ptr(esp + 32))?;
        for trap in [1, 3, 4, u32::from(INTERRUPT)] {
            a.cmp(ecx, trap)?;
            a.je(done)?;
        }
        a.cmp(ecx, 14)?;
        a.jne(skip)?;
        a.test(byte_ptr(esp + 36), 1)?;
        a.jne(skip)?;
        a.inc(word(at::FAULTS))?;
        a.test(byte_ptr(at::FAULTS as i32), 3)?;
        a.je(skip)?;
        a.mov(edx, eax)?;
        a.shr(edx, 12)?;
        a.and(edx, 0x3F)?;
        a.mov(ecx, eax)?;
        a.and(ecx, -(at::WINDOW as i32))?;
        a.lea(esi, dword_ptr(edx * 4 + at::LOW as i32))?;
        a.test(ecx, ecx)?;
        a.je(keep)?;
        a.cmp(ecx, self.alias as i32)?;
        a.jne(skip)?;
        a.lea(esi, dword_ptr(edx * 4 + at::ALIASES as i32))?;
        a.set_label(&mut keep)?;
        a.cmp(edx, (at::CODE >> 12) as i32)?;
        a.jb(skip)?;
        a.lock().or(dword_ptr(esi), 1)?;
        a.invlpg(byte_ptr(eax))?;
        a.jmp(done)?;
        a.set_label(&mut skip)?;
        a.mov(ecx, dword_ptr(esp + 40))?;
        a.mov(edx, ecx)?;
        a.and(edx, at::WINDOW as u32 - 1)?;
        a.sub(ecx, edx)?;
        a.je(known)?;
        a.cmp(ecx, self.alias as i32)?;
        a.jne(checkpoint)?;
        a.set_label(&mut known)?;
        a.sub(edx, at::CODE as i32)?;
        a.cmp(edx, (at::CODE_END - at::CODE) as i32)?;
        a.jae(checkpoint)?;
        a.movzx(eax, byte_ptr(edx + at::LENGTHS as i32))?;
        a.test(eax, eax)?;
        a.je(checkpoint)?;
        a.add(dword_ptr(esp + 40), eax)?;
        a.jmp(done)?;
        a.set_label(&mut checkpoint)?;
        a.mov(eax, word(at::CHECKPOINT))?;
        if self.cpl == 3 {
            a.mov(dword_ptr(esp + 40), eax)?;
            a.mov(dword_ptr(esp + 52), at::STACK as i32)?;
        } else {
            // The frame has no ESP: it moves to where the program's stack is to be.
            a.mov(ecx, dword_ptr(esp + 44))?;
            a.mov(edx, dword_ptr(esp + 48))?;
            a.mov(esp, at::STACK as i32)?;
            a.push(edx)?;
            a.push(ecx)?;
            a.push(eax)?;
            a.iretd()?;
        }
        a.set_label(&mut done)?;
        a.popad()?;
        a.add(esp, 8)?;
        a.iretd()
    }

    /// Registers of the system, and segments.
    pub fn enter(&self, s: &mut CpuState) {
        s.cr0 =
            cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::AM | if self.write_protect { cr0::WP } else { 0 };
        s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | if self.global { cr4::PGE } else { 0 };
        s.xcr0 = if self.avx { 7 } else { 1 };
        if self.mode != Mode::Flat {
            s.cr0 |= cr0::PG;
            s.cr3 = at::ROOT;
        }
        if self.kernel_bits() == 64 {
            s.cr4 |= cr4::PAE | cr4::FSGSBASE;
            s.msr.efer |= efer::LME | efer::LMA;
        }
        s.gdtr = TableRegister { base: at::GDT, limit: 0xFF };
        s.idtr = TableRegister { base: at::IDT, limit: 0xFFF };
        s.tr = Segment { selector: sel::TSS, attributes: attr::P | 11, limit: 0xFF, base: at::TSS };
        let (code, data) = if self.cpl == 0 { (sel::CODE0, sel::DATA0) } else { (sel::CODE3, sel::DATA3) };
        let code = match (self.mode, self.cpl) {
            (Mode::Compatibility, 0) => sel::SPARE,
            (Mode::Compatibility, _) => sel::SPARE2 | 3,
            _ => code,
        };
        let base = attr::P | attr::S | attr::RW | attr::A | attr::G | u16::from(self.cpl) << 5;
        let size = if self.bits() == 64 { attr::L } else { attr::DB };
        let of = |selector, attributes, base| Segment { selector, attributes, limit: !0, base };
        s.seg[seg::CS] = of(code, base | attr::CODE | size, 0);
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            s.seg[n] = of(data, base | attr::DB, 0);
        }
        s.seg[seg::FS].base = self.fs;
        s.seg[seg::GS].base = self.gs;
        s.cpl = self.cpl;
        s.gpr[gpr::RSP] = at::STACK;
        s.rflags = RFlags::ONE;
    }
}

fn handler(vector: u8) -> u64 {
    match vector {
        INTERRUPT => at::HANDLERS + 33 * 16,
        END => at::HANDLERS + 34 * 16,
        _ => at::HANDLERS + u64::from(vector) * 16,
    }
}
