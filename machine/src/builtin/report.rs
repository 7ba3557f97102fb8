//! What the processor says about itself, and numbers as text.

use super::data::{CPUID_WORDS, feature_table};
use super::places::{FEATURE_LINE, TEXT_MEMORY, VARIABLES, var};
use super::{Asm, Guest, modes};
use iced_x86::code_asm::*;

impl Guest {
    /// The routines of this file.
    pub(super) fn report(&mut self) -> Asm {
        self.print_line()?;
        self.append()?;
        self.decimal()?;
        self.features()
    }

    /// Asks CPUID for everything that is shown. In line, at the start of the main program.
    pub(super) fn ask_cpuid(&mut self) -> Asm {
        let a = &mut self.a;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.mov(dword_ptr(rbp + var::VENDOR), ebx)?;
        a.mov(dword_ptr(rbp + (var::VENDOR + 4)), edx)?;
        a.mov(dword_ptr(rbp + (var::VENDOR + 8)), ecx)?;
        for (n, leaf) in (0x8000_0002u32..=0x8000_0004).enumerate() {
            a.mov(eax, leaf)?;
            a.cpuid()?;
            for (m, register) in [eax, ebx, ecx, edx].into_iter().enumerate() {
                a.mov(dword_ptr(rbp + (var::BRAND + (n * 16 + m * 4) as i32)), register)?;
            }
        }
        for (n, (leaf, subleaf, register)) in CPUID_WORDS.into_iter().enumerate() {
            a.mov(eax, leaf)?;
            a.mov(ecx, subleaf)?;
            a.cpuid()?;
            let register = [eax, ebx, ecx, edx][usize::from(register)];
            a.mov(dword_ptr(rbp + (var::CPUID + n as i32 * 4)), register)?;
        }
        Ok(())
    }

    fn print_line(&mut self) -> Asm {
        let a = &mut self.a;
        a.set_label(&mut self.routines.print_line)?;
        a.mov(eax, dword_ptr(rbp + var::ROW))?;
        a.inc(dword_ptr(rbp + var::ROW))?;
        a.imul_3(eax, eax, 160)?;
        a.lea(edi, dword_ptr(rax + TEXT_MEMORY))?;
        modes::print(a, true)?;
        a.ret()?;
        a.set_label(&mut self.routines.serial)?;
        a.zero_bytes()?;
        modes::print(a, false)?;
        a.ret()
    }

    fn append(&mut self) -> Asm {
        let a = &mut self.a;
        let mut end = a.create_label();
        a.set_label(&mut self.routines.append)?;
        a.lodsb()?;
        a.test(al, al)?;
        a.jz(end)?;
        a.stosb()?;
        a.jmp(self.routines.append)?;
        a.set_label(&mut end)?;
        a.ret()
    }

    fn decimal(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut digit, mut out) = (a.create_label(), a.create_label());
        a.set_label(&mut self.routines.decimal)?;
        a.xor(ecx, ecx)?;
        a.mov(ebx, 10)?;
        a.set_label(&mut digit)?;
        a.xor(edx, edx)?;
        a.div(rbx)?;
        a.push(rdx)?;
        a.inc(ecx)?;
        a.test(rax, rax)?;
        a.jnz(digit)?;
        a.set_label(&mut out)?;
        a.pop(rax)?;
        a.add(al, u32::from(b'0'))?;
        a.stosb()?;
        a.dec(ecx)?;
        a.jnz(out)?;
        a.ret()
    }

    /// r8 walks the table, rdi writes, r9 is where the line begins, r10 the number of lines.
    fn features(&mut self) -> Asm {
        let table = self.data.put(16, &feature_table());
        let a = &mut self.a;
        let lines = VARIABLES + var::FEATURES as u32;
        let [mut next, mut skip, mut same_line, mut copy, mut copied, mut end] =
            std::array::from_fn(|_| a.create_label());
        a.set_label(&mut self.routines.features)?;
        a.mov(r8d, table)?;
        a.mov(edi, lines)?;
        a.mov(r9d, edi)?;
        a.mov(r10d, 1)?;
        a.set_label(&mut next)?;
        a.movzx(eax, byte_ptr(r8))?;
        a.cmp(al, 0xFF)?;
        a.je(end)?;
        a.movzx(edx, byte_ptr(r8 + 1))?;
        a.mov(eax, dword_ptr(rbp + rax * 4 + var::CPUID))?;
        a.bt(eax, edx)?;
        a.jnc(skip)?;
        // Would name and blank pass the line's end?
        a.mov(rax, rdi)?;
        a.sub(rax, r9)?;
        a.lea(rsi, qword_ptr(r8 + 2))?;
        a.set_label(&mut copy)?;
        a.cmp(byte_ptr(rsi), 0)?;
        a.je(copied)?;
        a.inc(rsi)?;
        a.inc(eax)?;
        a.jmp(copy)?;
        a.set_label(&mut copied)?;
        a.cmp(eax, ecx)?;
        a.jbe(same_line)?;
        a.mov(byte_ptr(rdi), 0)?;
        a.add(r9, FEATURE_LINE)?;
        a.mov(rdi, r9)?;
        a.inc(r10d)?;
        a.set_label(&mut same_line)?;
        a.lea(rsi, qword_ptr(r8 + 2))?;
        a.call(self.routines.append)?;
        a.mov(al, u32::from(b' '))?;
        a.stosb()?;
        a.set_label(&mut skip)?;
        a.add(r8, 16)?;
        a.jmp(next)?;
        a.set_label(&mut end)?;
        a.mov(byte_ptr(rdi), 0)?;
        a.mov(eax, r10d)?;
        a.ret()
    }
}
