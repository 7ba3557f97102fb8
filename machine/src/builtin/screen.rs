//! The display: PCI function 1234:1111, its linear mode, text and rectangles.

use super::places::*;
use super::{Asm, Guest};
use iced_x86::code_asm::*;

impl Guest {
    /// The routines of this file.
    pub(super) fn screen(&mut self) -> Asm {
        self.draw_text()?;
        self.fill()?;
        self.present()
    }

    /// Finds the display on PCI bus 0 and its framebuffer; goes to `missing` if there is none. In line.
    pub(super) fn find_display(&mut self, missing: CodeLabel) -> Asm {
        const ID: u32 = 0x1111_1234;
        let a = &mut self.a;
        let (mut next, mut found) = (a.create_label(), a.create_label());
        // ebx: enable bit and device number of the configuration address.
        a.mov(ebx, 0x8000_0000u32)?;
        a.set_label(&mut next)?;
        config(a, 0)?;
        a.cmp(eax, ID)?;
        a.je(found)?;
        a.add(ebx, 1 << 11)?;
        a.cmp(ebx, 0x8001_0000u32)?;
        a.jb(next)?;
        a.jmp(missing)?;
        a.set_label(&mut found)?;
        // Command: memory and I/O.
        config(a, 4)?;
        a.or(eax, 3)?;
        a.out(dx, eax)?;
        config(a, 0x10)?;
        a.and(eax, -16)?;
        a.jz(missing)?;
        a.mov(qword_ptr(rbp + var::LFB), rax)
    }

    /// Sets 1024x768x32. In line.
    pub(super) fn set_mode(&mut self) -> Asm {
        let a = &mut self.a;
        for (index, value) in [(4, 0), (1, WIDTH), (2, HEIGHT), (3, 32), (4, 0x41)] {
            a.mov(edx, DISPI_INDEX)?;
            a.mov(eax, index)?;
            a.out(dx, ax)?;
            a.mov(edx, DISPI_DATA)?;
            a.mov(eax, value)?;
            a.out(dx, ax)?;
        }
        Ok(())
    }

    /// Draws a string of the program's own. In line.
    pub(super) fn put_text(&mut self, at: (u32, u32), text: &str, foreground: u32) -> Asm {
        self.string(text)?;
        self.place(at, foreground, colour::GROUND)?;
        self.a.call(self.routines.draw_text)
    }

    /// Sets the place and colours for `draw_text`.
    pub(super) fn place(&mut self, at: (u32, u32), foreground: u32, background: u32) -> Asm {
        let a = &mut self.a;
        a.mov(r8d, at.0)?;
        a.mov(r9d, at.1)?;
        a.mov(r10d, foreground)?;
        a.mov(r11d, background)
    }

    /// Fills a rectangle that is known beforehand. In line.
    pub(super) fn rectangle(&mut self, at: (u32, u32), size: (u32, u32), colour: u32) -> Asm {
        let a = &mut self.a;
        a.mov(r8d, at.0)?;
        a.mov(r9d, at.1)?;
        a.mov(r12d, size.0)?;
        a.mov(r13d, size.1)?;
        a.mov(eax, colour)?;
        a.call(self.routines.fill)
    }

    fn draw_text(&mut self) -> Asm {
        let a = &mut self.a;
        let [mut line, mut pixel, mut end] = std::array::from_fn(|_| a.create_label());
        a.set_label(&mut self.routines.draw_text)?;
        a.movzx(eax, byte_ptr(rsi))?;
        a.inc(rsi)?;
        a.test(al, al)?;
        a.jz(end)?;
        a.shl(eax, 4)?;
        a.lea(rbx, qword_ptr(rax + FONT as u32))?;
        pixel_address(a)?;
        a.mov(ecx, 16)?;
        a.set_label(&mut line)?;
        a.mov(dl, byte_ptr(rbx))?;
        a.inc(rbx)?;
        a.mov(r12d, 8)?;
        a.set_label(&mut pixel)?;
        a.mov(eax, r11d)?;
        a.shl(dl, 1)?;
        a.cmovc(eax, r10d)?;
        a.stosd()?;
        a.dec(r12d)?;
        a.jnz(pixel)?;
        a.add(rdi, (PITCH - 32) as i32)?;
        a.dec(ecx)?;
        a.jnz(line)?;
        a.add(r8d, 8)?;
        a.jmp(self.routines.draw_text)?;
        a.set_label(&mut end)?;
        a.ret()
    }

    fn fill(&mut self) -> Asm {
        let a = &mut self.a;
        let mut line = a.create_label();
        a.set_label(&mut self.routines.fill)?;
        pixel_address(a)?;
        a.set_label(&mut line)?;
        a.mov(rbx, rdi)?;
        a.mov(ecx, r12d)?;
        a.rep().stosd()?;
        a.lea(rdi, qword_ptr(rbx + PITCH))?;
        a.dec(r13d)?;
        a.jnz(line)?;
        a.ret()
    }

    /// The pointer must not flicker: where it stands on the picture it is painted into the back buffer first; only
    /// on the picture's edge it is taken away for as long as the picture is copied.
    fn present(&mut self) -> Asm {
        const BACK_PITCH: u32 = PICTURE.0 * 4;
        let a = &mut self.a;
        let [mut edge, mut apart, mut copy, mut line] = std::array::from_fn(|_| a.create_label());
        a.set_label(&mut self.routines.present)?;
        a.call(self.routines.hide_pointer)?;
        a.call(self.routines.show_pointer)?;
        // r14, r15: the pointer's column and line on the picture.
        a.mov(r14d, dword_ptr(rbp + var::MOUSE_X))?;
        a.sub(r14d, PICTURE_AT.0 as i32)?;
        a.mov(r15d, dword_ptr(rbp + var::MOUSE_Y))?;
        a.sub(r15d, PICTURE_AT.1 as i32)?;
        for (place, size) in [(r14d, PICTURE.0), (r15d, PICTURE.1)] {
            a.cmp(place, size as i32)?;
            a.jge(apart)?;
            a.cmp(place, -(POINTER_SIZE as i32))?;
            a.jle(apart)?;
        }
        for (place, size) in [(r14d, PICTURE.0), (r15d, PICTURE.1)] {
            a.cmp(place, size - POINTER_SIZE)?;
            a.ja(edge)?;
        }
        a.imul_3(edi, r15d, BACK_PITCH as i32)?;
        a.lea(rdi, qword_ptr(rdi + r14 * 4 + BACK_BUFFER))?;
        a.push(rdi)?;
        a.mov(r11d, BACK_PITCH - POINTER_SIZE * 4)?;
        a.call(self.routines.paint_pointer)?;
        a.call(copy)?;
        a.pop(rdi)?;
        a.mov(r11d, BACK_PITCH - POINTER_SIZE * 4)?;
        a.jmp(self.routines.wipe_pointer)?;

        a.set_label(&mut edge)?;
        a.call(self.routines.hide_pointer)?;
        a.call(copy)?;
        a.jmp(self.routines.show_pointer)?;

        a.set_label(&mut apart)?;
        a.zero_bytes()?;
        a.set_label(&mut copy)?;
        a.mov(r8d, PICTURE_AT.0)?;
        a.mov(r9d, PICTURE_AT.1)?;
        pixel_address(a)?;
        a.mov(esi, BACK_BUFFER)?;
        a.mov(r13d, PICTURE.1)?;
        a.set_label(&mut line)?;
        a.mov(ecx, PICTURE.0 / 2)?;
        a.rep().movsq()?;
        a.add(rdi, (PITCH - BACK_PITCH) as i32)?;
        a.dec(r13d)?;
        a.jnz(line)?;
        a.ret()
    }
}

/// rdi: the pixel at column r8 and line r9; rcx is lost.
pub(super) fn pixel_address(a: &mut CodeAssembler) -> Asm {
    a.mov(ecx, r9d)?;
    a.shl(rcx, 10)?;
    a.add(rcx, r8)?;
    a.mov(rdi, qword_ptr(rbp + var::LFB))?;
    a.lea(rdi, qword_ptr(rdi + rcx * 4))
}

/// eax: a register of PCI configuration space; dx is left at the data port.
fn config(a: &mut CodeAssembler, register: u32) -> Asm {
    const ADDRESS: u32 = crate::layout::PCI_CONFIG_ADDRESS as u32;
    a.lea(eax, dword_ptr(rbx + register))?;
    a.mov(edx, ADDRESS)?;
    a.out(dx, eax)?;
    a.mov(edx, ADDRESS + 4)?;
    a.in_(eax, dx)
}
