//! Keyboard and mouse, asked without interrupts; the pointer; the clock.

use super::data::{key_table, pointer_bitmaps};
use super::places::*;
use super::{Asm, Guest};
use crate::layout::{KEYBOARD_COMMAND, KEYBOARD_DATA, PM_TMR, PM1A_CNT};
use iced_x86::code_asm::*;

/// Status register of the 8042.
const OUTPUT_FULL: u32 = 0x01;
const INPUT_FULL: u32 = 0x02;
const FROM_MOUSE: u32 = 0x20;
/// Bits of [`var::CHANGED`].
pub const TYPED_CHANGED: u32 = 1;
pub const POINTER_CHANGED: u32 = 2;
const ESCAPE: u32 = 0x1B;
const BACKSPACE: u32 = 0x08;

impl Guest {
    /// The routines of this file.
    pub(super) fn input(&mut self) -> Asm {
        self.poll()?;
        self.show_pointer()?;
        self.power_off()
    }

    /// Turns keyboard and mouse on: scan code set 1 by translation, no interrupts. In line.
    pub(super) fn start_input(&mut self) -> Asm {
        const TRANSLATE_AND_SYSTEM: u32 = 0x44;
        let (command, data) = (u32::from(KEYBOARD_COMMAND), u32::from(KEYBOARD_DATA));
        let writes = [
            (command, 0xAE),
            (command, 0xA8),
            (command, 0x60),
            (data, TRANSLATE_AND_SYSTEM),
            (data, 0xF4),
            (command, 0xD4),
            (data, 0xF4),
        ];
        let a = &mut self.a;
        a.mov(dword_ptr(rbp + var::MOUSE_X), WIDTH / 2)?;
        a.mov(dword_ptr(rbp + var::MOUSE_Y), HEIGHT / 2)?;
        a.mov(dword_ptr(rbp + var::POINTER), -1)?;
        for (port, value) in writes {
            let mut wait = a.create_label();
            a.set_label(&mut wait)?;
            a.in_(al, command)?;
            a.test(al, INPUT_FULL)?;
            a.jnz(wait)?;
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        Ok(())
    }

    /// Keeps r12 to r15.
    fn poll(&mut self) -> Asm {
        let keys = self.data.put(16, &key_table());
        let a = &mut self.a;
        let [mut next, mut mouse, mut end, mut shift, mut typed, mut erase, mut enter] =
            std::array::from_fn(|_| a.create_label());
        a.set_label(&mut self.routines.poll)?;
        // The power management timer has 24 bits at least.
        a.mov(edx, u32::from(PM_TMR))?;
        a.in_(eax, dx)?;
        a.mov(ecx, eax)?;
        a.sub(ecx, dword_ptr(rbp + var::LAST_TICK))?;
        a.and(ecx, 0xFF_FFFF)?;
        a.mov(dword_ptr(rbp + var::LAST_TICK), eax)?;
        a.add(qword_ptr(rbp + var::TICKS), rcx)?;

        a.set_label(&mut next)?;
        a.in_(al, u32::from(KEYBOARD_COMMAND))?;
        a.test(al, OUTPUT_FULL)?;
        a.jz(end)?;
        a.mov(dl, al)?;
        a.in_(al, u32::from(KEYBOARD_DATA))?;
        a.movzx(eax, al)?;
        a.test(dl, FROM_MOUSE)?;
        a.jnz(mouse)?;

        // A key: Shift goes down and up; others count when they go down.
        a.mov(ecx, eax)?;
        a.and(ecx, 0x7F)?;
        a.cmp(ecx, 0x2A)?;
        a.je(shift)?;
        a.cmp(ecx, 0x36)?;
        a.je(shift)?;
        a.test(al, 0x80)?;
        a.jnz(next)?;
        a.add(eax, dword_ptr(rbp + var::SHIFT_KEYS))?;
        a.movzx(eax, byte_ptr(rax + keys))?;
        a.cmp(al, ESCAPE)?;
        a.je(self.routines.power_off)?;
        a.mov(ecx, dword_ptr(rbp + var::TYPED))?;
        a.cmp(al, BACKSPACE)?;
        a.je(erase)?;
        a.cmp(al, u32::from(b'\n'))?;
        a.je(enter)?;
        a.cmp(al, u32::from(b' '))?;
        a.jb(next)?;
        a.cmp(ecx, TYPED_CHARACTERS - 1)?;
        a.jae(next)?;
        a.mov(byte_ptr(rbp + rcx + var::TYPED_TEXT), al)?;
        a.inc(ecx)?;
        a.set_label(&mut typed)?;
        a.mov(dword_ptr(rbp + var::TYPED), ecx)?;
        a.mov(byte_ptr(rbp + rcx + var::TYPED_TEXT), 0)?;
        a.or(dword_ptr(rbp + var::CHANGED), TYPED_CHANGED)?;
        a.jmp(next)?;
        a.set_label(&mut erase)?;
        a.test(ecx, ecx)?;
        a.jz(next)?;
        a.dec(ecx)?;
        a.jmp(typed)?;
        a.set_label(&mut enter)?;
        a.xor(ecx, ecx)?;
        a.jmp(typed)?;
        a.set_label(&mut shift)?;
        // 128 while Shift is down: the second half of the table.
        a.not(eax)?;
        a.and(eax, 0x80)?;
        a.mov(dword_ptr(rbp + var::SHIFT_KEYS), eax)?;
        a.jmp(next)?;

        a.set_label(&mut mouse)?;
        self.mouse_byte(next)?;
        self.a.set_label(&mut end)?;
        self.a.ret()
    }

    /// al: a byte from the mouse.
    fn mouse_byte(&mut self, next: CodeLabel) -> Asm {
        let a = &mut self.a;
        let mut keep = a.create_label();
        a.mov(ecx, dword_ptr(rbp + var::PACKET_LENGTH))?;
        a.test(ecx, ecx)?;
        a.jnz(keep)?;
        // A packet begins with bit 3 set and no overflow; anything else is an answer.
        a.mov(edx, eax)?;
        a.and(edx, 0xC8)?;
        a.cmp(edx, 0x08)?;
        a.jne(next)?;
        a.set_label(&mut keep)?;
        a.mov(byte_ptr(rbp + rcx + var::PACKET), al)?;
        a.inc(ecx)?;
        a.mov(dword_ptr(rbp + var::PACKET_LENGTH), ecx)?;
        a.cmp(ecx, 3)?;
        a.jb(next)?;
        a.mov(dword_ptr(rbp + var::PACKET_LENGTH), 0)?;
        a.movzx(edx, byte_ptr(rbp + var::PACKET))?;
        a.and(edx, 7)?;
        a.mov(dword_ptr(rbp + var::BUTTONS), edx)?;
        // The mouse counts upwards, the screen downwards.
        for (sign, byte, position, limit) in [(0x10, 1, var::MOUSE_X, WIDTH), (0x20, 2, var::MOUSE_Y, HEIGHT)]
        {
            let [mut positive, mut not_left, mut inside] = std::array::from_fn(|_| a.create_label());
            a.movzx(eax, byte_ptr(rbp + (var::PACKET + byte)))?;
            a.test(byte_ptr(rbp + var::PACKET), sign)?;
            a.jz(positive)?;
            a.sub(eax, 0x100)?;
            a.set_label(&mut positive)?;
            if byte == 2 {
                a.neg(eax)?;
            }
            a.add(eax, dword_ptr(rbp + position))?;
            a.jns(not_left)?;
            a.xor(eax, eax)?;
            a.set_label(&mut not_left)?;
            a.cmp(eax, limit - POINTER_SIZE)?;
            a.jbe(inside)?;
            a.mov(eax, limit - POINTER_SIZE)?;
            a.set_label(&mut inside)?;
            a.mov(dword_ptr(rbp + position), eax)?;
        }
        a.or(dword_ptr(rbp + var::CHANGED), POINTER_CHANGED)?;
        a.jmp(next)
    }

    fn show_pointer(&mut self) -> Asm {
        let bitmaps = self.data.put(16, &pointer_bitmaps());
        let outline_to_filling = POINTER_SIZE * 2;
        let a = &mut self.a;
        let [mut line, mut pixel, mut no_outline, mut no_filling] = std::array::from_fn(|_| a.create_label());
        a.set_label(&mut self.routines.show_pointer)?;
        a.mov(r8d, dword_ptr(rbp + var::MOUSE_X))?;
        a.mov(r9d, dword_ptr(rbp + var::MOUSE_Y))?;
        super::screen::pixel_address(a)?;
        a.mov(qword_ptr(rbp + var::POINTER), rdi)?;
        a.mov(r11d, PITCH - POINTER_SIZE * 4)?;
        a.set_label(&mut self.routines.paint_pointer)?;
        a.lea(rsi, qword_ptr(rbp + var::BELOW_POINTER))?;
        a.mov(ebx, bitmaps)?;
        a.mov(r8d, POINTER_SIZE)?;
        a.set_label(&mut line)?;
        a.movzx(edx, word_ptr(rbx))?;
        a.movzx(r9d, word_ptr(rbx + outline_to_filling))?;
        a.add(rbx, 2)?;
        a.mov(ecx, POINTER_SIZE)?;
        a.set_label(&mut pixel)?;
        a.mov(eax, dword_ptr(rdi))?;
        a.mov(dword_ptr(rsi), eax)?;
        a.add(rsi, 4)?;
        a.add(dx, dx)?;
        a.jnc(no_outline)?;
        a.mov(dword_ptr(rdi), 0)?;
        a.set_label(&mut no_outline)?;
        a.add(r9w, r9w)?;
        a.jnc(no_filling)?;
        a.mov(dword_ptr(rdi), colour::BRIGHT)?;
        a.set_label(&mut no_filling)?;
        a.add(rdi, 4)?;
        a.dec(ecx)?;
        a.jnz(pixel)?;
        a.add(rdi, r11)?;
        a.dec(r8d)?;
        a.jnz(line)?;
        a.ret()?;

        let (mut line, mut hidden) = (a.create_label(), a.create_label());
        a.set_label(&mut self.routines.hide_pointer)?;
        a.mov(rdi, qword_ptr(rbp + var::POINTER))?;
        a.cmp(edi, -1)?;
        a.je(hidden)?;
        a.mov(dword_ptr(rbp + var::POINTER), -1)?;
        a.mov(r11d, PITCH - POINTER_SIZE * 4)?;
        a.set_label(&mut self.routines.wipe_pointer)?;
        a.lea(rsi, qword_ptr(rbp + var::BELOW_POINTER))?;
        a.mov(r8d, POINTER_SIZE)?;
        a.set_label(&mut line)?;
        a.mov(ecx, POINTER_SIZE)?;
        a.rep().movsd()?;
        a.add(rdi, r11)?;
        a.dec(r8d)?;
        a.jnz(line)?;
        a.set_label(&mut hidden)?;
        a.ret()
    }

    /// ACPI's S5: SLP_EN with SLP_TYP 0.
    fn power_off(&mut self) -> Asm {
        let a = &mut self.a;
        let mut halt = a.create_label();
        a.set_label(&mut self.routines.power_off)?;
        a.mov(edx, u32::from(PM1A_CNT))?;
        a.mov(eax, 1 << 13)?;
        a.out(dx, ax)?;
        a.set_label(&mut halt)?;
        a.cli()?;
        a.hlt()?;
        a.jmp(halt)
    }
}
