//! The main program in long mode.

use super::fractal::{COARSEST, SMOKE_FRAMES};
use super::input::{POINTER_CHANGED, TYPED_CHANGED};
use super::modes::MARKS;
use super::places::*;
use super::{Asm, Guest};
use iced_x86::code_asm::*;

/// Each feature line of the text screen has at most this many characters.
const TEXT_WIDTH: u32 = 74;
/// The text screen stays for this long before the picture.
const PAUSE: u32 = TICKS_PER_SECOND * 2;
/// The figures are shown this often.
const FIGURES_EVERY: u32 = TICKS_PER_SECOND / 2;
/// Frames that take less get more detail, those that take longer get less.
const QUICK_FRAME: u32 = TICKS_PER_SECOND / 30;
const SLOW_FRAME: u32 = TICKS_PER_SECOND / 5;

impl Guest {
    pub(super) fn main(&mut self) -> Asm {
        let mut missing = self.a.create_label();
        self.a.mov(ebp, VARIABLES)?;
        self.a.mov(esp, STACK_TOP)?;
        self.a.mov(dword_ptr(rbp + (var::MARKS + 8)), MARKS[2])?;
        self.a.mov(dword_ptr(rbp + var::ROW), 5)?;
        self.line("  long mode: 64-bit code, 4 GiB mapped one to one by pages of 2 MiB")?;
        self.print_processor()?;
        self.start_input()?;
        self.find_display(missing)?;
        if !self.options.smoke {
            self.pause()?;
        }
        self.set_mode()?;
        self.draw_frame_of_screen()?;
        self.prepare_fractal()?;
        if self.options.smoke {
            self.smoke()?;
        } else {
            self.animate()?;
        }

        self.a.set_label(&mut missing)?;
        self.line("")?;
        self.line("  no display 1234:1111 on PCI bus 0: nothing to draw on")?;
        self.a.jmp(self.routines.power_off)
    }

    /// A label and a string made at run time.
    fn labelled(&mut self, label: &str, value: i32) -> Asm {
        self.string(label)?;
        let a = &mut self.a;
        a.lea(rdi, qword_ptr(rbp + var::LINE))?;
        a.call(self.routines.append)?;
        a.lea(rsi, qword_ptr(rbp + value))?;
        a.call(self.routines.append)?;
        a.mov(byte_ptr(rdi), 0)?;
        a.lea(rsi, qword_ptr(rbp + var::LINE))
    }

    fn print_processor(&mut self) -> Asm {
        self.ask_cpuid()?;
        self.line("")?;
        for (label, value) in [("  vendor:   ", var::VENDOR), ("  name:     ", var::BRAND)] {
            self.labelled(label, value)?;
            self.a.call(self.routines.print_line)?;
        }
        self.line("  features:")?;
        let a = &mut self.a;
        let mut next = a.create_label();
        a.mov(ecx, TEXT_WIDTH)?;
        a.call(self.routines.features)?;
        a.mov(r13d, eax)?;
        a.lea(r12, qword_ptr(rbp + var::FEATURES))?;
        a.set_label(&mut next)?;
        let indent = self.data.text("    ");
        let a = &mut self.a;
        a.mov(esi, indent)?;
        a.lea(rdi, qword_ptr(rbp + var::LINE))?;
        a.call(self.routines.append)?;
        a.mov(rsi, r12)?;
        a.call(self.routines.append)?;
        a.mov(byte_ptr(rdi), 0)?;
        a.lea(rsi, qword_ptr(rbp + var::LINE))?;
        a.call(self.routines.print_line)?;
        a.add(r12, FEATURE_LINE)?;
        a.dec(r13d)?;
        a.jnz(next)?;
        self.line("")
    }

    fn pause(&mut self) -> Asm {
        self.line("  The picture follows.")?;
        let a = &mut self.a;
        let mut wait = a.create_label();
        a.call(self.routines.poll)?;
        a.mov(qword_ptr(rbp + var::TICKS), 0)?;
        a.set_label(&mut wait)?;
        a.call(self.routines.poll)?;
        a.pause()?;
        a.cmp(dword_ptr(rbp + var::TICKS), PAUSE)?;
        a.jb(wait)
    }

    /// Everything on the screen that stays.
    fn draw_frame_of_screen(&mut self) -> Asm {
        self.rectangle((0, 0), (WIDTH, HEIGHT), colour::GROUND)?;
        let (x, y) = PICTURE_AT;
        self.rectangle((x - 2, y - 2), (PICTURE.0 + 4, PICTURE.1 + 4), colour::FIELD)?;
        self.put_text(TITLE, "Trimaran", colour::BRIGHT)?;
        self.put_text((TITLE.0 + 9 * 8, TITLE.1), "built-in guest: a Julia set in SSE2", colour::TEXT)?;
        self.put_text(MODES, "real mode \u{1a} protected mode \u{1a} long mode", colour::QUIET)?;
        let engine = format!("Started on {}", self.options.engine.chars().take(16).collect::<String>());
        self.put_text(FIGURES, &engine, colour::ACCENT)?;
        self.put_text((TYPED.0, TYPED.1), "Keyboard", colour::ACCENT)?;
        self.rectangle((TYPED.0 + 80, TYPED.1 - 4), (TYPED_CHARACTERS * 8 + 8, 24), colour::FIELD)?;
        self.put_text(MOUSE, "Mouse", colour::ACCENT)?;
        self.put_text(HINT, "Type, move the mouse, or press Esc to power off.", colour::QUIET)?;

        let (x, y) = PANEL;
        self.put_text((x, y), "Processor", colour::ACCENT)?;
        self.labelled("", var::VENDOR)?;
        self.place((x, y + 20), colour::TEXT, colour::GROUND)?;
        self.a.call(self.routines.draw_text)?;
        self.draw_brand((x, y + 36))?;

        self.put_text((x, y + 84), "Features", colour::ACCENT)?;
        let mut next = self.a.create_label();
        self.a.mov(ecx, PANEL_CHARACTERS)?;
        self.a.call(self.routines.features)?;
        self.a.mov(r13d, eax)?;
        self.a.lea(r14, qword_ptr(rbp + var::FEATURES))?;
        self.a.mov(r15d, y + 104)?;
        self.a.set_label(&mut next)?;
        self.place((x, 0), colour::TEXT, colour::GROUND)?;
        let a = &mut self.a;
        a.mov(r9d, r15d)?;
        a.mov(rsi, r14)?;
        a.call(self.routines.draw_text)?;
        a.add(r14, FEATURE_LINE)?;
        a.add(r15d, 18)?;
        a.dec(r13d)?;
        a.jnz(next)
    }

    /// The processor's name, in two lines if it is longer than the column is wide.
    fn draw_brand(&mut self, (x, y): (u32, u32)) -> Asm {
        let end = var::BRAND + PANEL_CHARACTERS as i32;
        let a = &mut self.a;
        let [mut back, mut fits] = std::array::from_fn(|_| a.create_label());
        // r14: the second line.
        a.lea(r14, qword_ptr(rbp + end))?;
        a.cmp(byte_ptr(r14), 0)?;
        a.je(fits)?;
        a.set_label(&mut back)?;
        a.dec(r14)?;
        a.cmp(byte_ptr(r14), u32::from(b' '))?;
        a.je(fits)?;
        a.lea(rax, qword_ptr(rbp + var::BRAND))?;
        a.cmp(r14, rax)?;
        a.ja(back)?;
        a.lea(r14, qword_ptr(rbp + end))?;
        a.set_label(&mut fits)?;
        a.mov(byte_ptr(r14), 0)?;
        a.lea(rsi, qword_ptr(rbp + var::BRAND))?;
        self.place((x, y), colour::TEXT, colour::GROUND)?;
        self.a.call(self.routines.draw_text)?;
        self.a.lea(rsi, qword_ptr(r14 + 1))?;
        self.place((x, y + 16), colour::TEXT, colour::GROUND)?;
        self.a.call(self.routines.draw_text)
    }

    /// A fixed number of frames, the checksum, the end.
    fn smoke(&mut self) -> Asm {
        let mut frame = self.a.create_label();
        self.a.set_label(&mut frame)?;
        self.a.call(self.routines.frame)?;
        self.a.call(self.routines.hide_pointer)?;
        self.a.mov(dword_ptr(rbp + var::MOUSE_Y), HEIGHT - POINTER_SIZE)?;
        self.a.call(self.routines.present)?;
        self.hash_picture()?;
        let a = &mut self.a;
        a.inc(dword_ptr(rbp + var::ALL_FRAMES))?;
        a.cmp(dword_ptr(rbp + var::ALL_FRAMES), SMOKE_FRAMES)?;
        a.jb(frame)?;

        // The checksum in 16 hexadecimal digits.
        self.string("trimaran smoke ")?;
        let digits = self.data.text("0123456789abcdef");
        let a = &mut self.a;
        let mut digit = a.create_label();
        a.lea(rdi, qword_ptr(rbp + var::LINE))?;
        a.call(self.routines.append)?;
        a.mov(rbx, qword_ptr(rbp + var::CHECKSUM))?;
        a.mov(ecx, 16)?;
        a.set_label(&mut digit)?;
        a.rol(rbx, 4)?;
        a.mov(eax, ebx)?;
        a.and(eax, 15)?;
        a.mov(al, byte_ptr(rax + digits))?;
        a.stosb()?;
        a.dec(ecx)?;
        a.jnz(digit)?;
        a.mov(byte_ptr(rdi), 0)?;
        a.lea(rsi, qword_ptr(rbp + var::LINE))?;
        a.call(self.routines.serial)?;
        a.jmp(self.routines.power_off)
    }

    /// Frames without end.
    fn animate(&mut self) -> Asm {
        let [mut frame, mut not_quick, mut same, mut no_figures] =
            std::array::from_fn(|_| self.a.create_label());
        self.a.set_label(&mut frame)?;
        let a = &mut self.a;
        a.push(qword_ptr(rbp + var::TICKS))?;
        a.call(self.routines.frame)?;
        a.call(self.routines.present)?;
        a.call(self.routines.poll)?;
        a.inc(qword_ptr(rbp + var::FRAMES))?;
        // Detail that the engine can afford.
        a.pop(rax)?;
        a.neg(rax)?;
        a.add(rax, qword_ptr(rbp + var::TICKS))?;
        a.mov(ecx, dword_ptr(rbp + var::SHIFT))?;
        a.cmp(rax, QUICK_FRAME as i32)?;
        a.ja(not_quick)?;
        a.test(ecx, ecx)?;
        a.jz(same)?;
        a.dec(dword_ptr(rbp + var::SHIFT))?;
        a.jmp(same)?;
        a.set_label(&mut not_quick)?;
        a.cmp(rax, SLOW_FRAME as i32)?;
        a.jbe(same)?;
        a.cmp(ecx, COARSEST)?;
        a.jae(same)?;
        a.inc(dword_ptr(rbp + var::SHIFT))?;
        a.set_label(&mut same)?;
        self.show_input()?;
        let a = &mut self.a;
        a.mov(r15, qword_ptr(rbp + var::TICKS))?;
        a.sub(r15, qword_ptr(rbp + var::SHOWN_AT))?;
        a.cmp(r15, FIGURES_EVERY as i32)?;
        a.jb(no_figures)?;
        self.show_figures()?;
        self.a.set_label(&mut no_figures)?;
        self.a.jmp(frame)
    }

    /// Draws the string at rsi over what stood there, without losing the pointer. In line.
    fn redraw(&mut self, at: (u32, u32), foreground: u32, background: u32) -> Asm {
        self.a.push(rsi)?;
        self.a.call(self.routines.hide_pointer)?;
        self.a.pop(rsi)?;
        self.place(at, foreground, background)?;
        self.a.call(self.routines.draw_text)?;
        self.a.call(self.routines.show_pointer)
    }

    /// What was typed, and where the mouse is.
    fn show_input(&mut self) -> Asm {
        let (mut not_typed, mut not_moved) = (self.a.create_label(), self.a.create_label());
        self.a.test(dword_ptr(rbp + var::CHANGED), TYPED_CHANGED)?;
        self.a.jz(not_typed)?;
        self.labelled("", var::TYPED_TEXT)?;
        // The cursor, and a blank over a character that was erased.
        self.a.mov(word_ptr(rdi), u32::from(u16::from_le_bytes(*b"_ ")))?;
        self.a.mov(byte_ptr(rdi + 2), 0)?;
        self.redraw((TYPED.0 + 88, TYPED.1), colour::BRIGHT, colour::FIELD)?;
        // After Enter the line is empty: the rest of the field is, too.
        self.a.mov(r8d, dword_ptr(rbp + var::TYPED))?;
        self.a.test(r8d, r8d)?;
        self.a.jnz(not_typed)?;
        self.a.call(self.routines.hide_pointer)?;
        let field = ((TYPED_CHARACTERS - 1) * 8, 16);
        self.rectangle((TYPED.0 + 96, TYPED.1), field, colour::FIELD)?;
        self.a.call(self.routines.show_pointer)?;
        self.a.set_label(&mut not_typed)?;

        self.a.test(dword_ptr(rbp + var::CHANGED), POINTER_CHANGED)?;
        self.a.jz(not_moved)?;
        let parts = [("column ", var::MOUSE_X), (", line ", var::MOUSE_Y), (", buttons ", var::BUTTONS)];
        self.number_line(&parts, "      ")?;
        self.redraw((MOUSE.0 + 88, MOUSE.1), colour::TEXT, colour::GROUND)?;
        self.a.set_label(&mut not_moved)?;
        self.a.mov(dword_ptr(rbp + var::CHANGED), 0)
    }

    /// Makes a line of labels and 32-bit variables; rsi points to it.
    fn number_line(&mut self, parts: &[(&str, i32)], end: &str) -> Asm {
        self.a.lea(rdi, qword_ptr(rbp + var::LINE))?;
        for (label, variable) in parts {
            self.string(label)?;
            self.a.call(self.routines.append)?;
            self.a.mov(eax, dword_ptr(rbp + *variable))?;
            self.a.call(self.routines.decimal)?;
        }
        self.string(end)?;
        self.a.call(self.routines.append)?;
        self.a.mov(byte_ptr(rdi), 0)?;
        self.a.lea(rsi, qword_ptr(rbp + var::LINE))
    }

    /// Frame rate, instructions a second while drawing, detail. r15: ticks since they were shown.
    fn show_figures(&mut self) -> Asm {
        let a = &mut self.a;
        a.lea(rdi, qword_ptr(rbp + var::LINE))?;
        // Tenths of frames a second.
        a.imul_3(rax, qword_ptr(rbp + var::FRAMES), (TICKS_PER_SECOND * 10) as i32)?;
        a.xor(edx, edx)?;
        a.div(r15)?;
        a.mov(ebx, 10)?;
        a.xor(edx, edx)?;
        a.div(rbx)?;
        a.push(rdx)?;
        a.call(self.routines.decimal)?;
        a.mov(al, u32::from(b'.'))?;
        a.stosb()?;
        a.pop(rax)?;
        a.call(self.routines.decimal)?;
        self.string(" frames/s    ")?;
        let a = &mut self.a;
        a.call(self.routines.append)?;
        a.imul_3(rax, qword_ptr(rbp + var::WORK), TICKS_PER_SECOND as i32)?;
        a.mov(rbx, qword_ptr(rbp + var::DRAWING))?;
        a.or(rbx, 1)?;
        a.xor(edx, edx)?;
        a.div(rbx)?;
        a.mov(ebx, 1_000_000)?;
        a.xor(edx, edx)?;
        a.div(rbx)?;
        a.call(self.routines.decimal)?;
        self.string(" MIPS    ")?;
        self.a.call(self.routines.append)?;
        for (label, pixels) in [("", PICTURE.0), (" x ", PICTURE.1)] {
            self.string(label)?;
            let a = &mut self.a;
            a.call(self.routines.append)?;
            a.mov(ecx, dword_ptr(rbp + var::SHIFT))?;
            a.mov(eax, pixels)?;
            a.shr(eax, cl)?;
            a.call(self.routines.decimal)?;
        }
        self.string(" points            ")?;
        let a = &mut self.a;
        a.call(self.routines.append)?;
        a.mov(byte_ptr(rdi), 0)?;
        a.lea(rsi, qword_ptr(rbp + var::LINE))?;
        self.redraw((FIGURES.0 + 200, FIGURES.1), colour::TEXT, colour::GROUND)?;
        let a = &mut self.a;
        a.mov(rax, qword_ptr(rbp + var::TICKS))?;
        a.mov(qword_ptr(rbp + var::SHOWN_AT), rax)?;
        for counter in [var::FRAMES, var::WORK, var::DRAWING] {
            a.mov(qword_ptr(rbp + counter), 0)?;
        }
        Ok(())
    }
}
