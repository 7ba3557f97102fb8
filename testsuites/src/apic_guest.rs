//! A small guest that counts what its local APIC delivers: one-shot timers, deadlines, level-triggered interrupts of the
//! I/O APIC that ask again, each of which ends HLT exactly once. It ends through port 0xF4 with 0 (status 1) if each came
//! once; one that is lost leaves it in HLT. Flat protected mode without paging, which a KVM made of software can run.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trimaran_machine::MachineConfig;
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::builtin::Image;

/// Where the guest ends.
const EXIT: u16 = 0xF4;
const IDT: u32 = 0x5000;
const GDT: u32 = 0x7000;
const REAL: u64 = 0x8000;
const PROTECTED: u64 = 0x9000;
const END: u64 = 0xA000;
/// How many interrupts came, how many periodic ones, and how often the line's handler leaves it high.
const COUNT: u32 = 0x4000;
const TICKS: u32 = 0x4004;
const LEFT: u32 = 0x4008;

const LOCAL_APIC: u32 = 0xFEE0_0000;
const IO_APIC: u32 = 0xFEC0_0000;
/// The test device's port of the I/O APIC's pin 11.
const PIN: u32 = 11;
const LINE: u32 = 0x2000 + PIN;
const ONCE: u32 = 0x40;
const PERIODIC: u32 = 0x61;
const LEVEL: u32 = 0x52;
const IA32_TSC_DEADLINE: u32 = 0x6E0;

/// What the guest ends with if more came than had been asked for, by what it waited for last.
const ONE_SHOT: u32 = 1;
const DEADLINE: u32 = 2;
const LEVELS: u32 = 3;

type Asm = Result<(), IcedError>;

/// A machine that runs the guest, so many rounds of about a millisecond.
pub fn config(rounds: u32) -> Result<MachineConfig, String> {
    let image = image(rounds).map_err(|e| e.to_string())?;
    Ok(MachineConfig {
        memory: 16 << 20,
        direct: Some(DirectBoot::builtin(image)),
        debug_exit: Some(EXIT),
        test_device: true,
        ..MachineConfig::default()
    })
}

fn image(rounds: u32) -> Result<Image, IcedError> {
    let mut bytes = vec![0; (END - u64::from(IDT)) as usize];
    let mut put = |at: u64, code: &[u8]| {
        let at = (at - u64::from(IDT)) as usize;
        bytes[at..at + code.len()].copy_from_slice(code);
    };
    let mut real = CodeAssembler::new(16)?;
    enter(&mut real)?;
    put(REAL, &real.assemble(REAL)?);
    let (code, handlers) = protected(rounds)?;
    put(PROTECTED, &code);
    for (vector, handler) in [ONCE, PERIODIC, LEVEL].into_iter().zip(handlers) {
        let gate = handler & 0xFFFF | 8 << 16 | 0x8E00 << 32 | (handler >> 16) << 48;
        put(u64::from(IDT + vector * 8), &gate.to_le_bytes());
    }
    for (n, descriptor) in (0..).zip([0u64, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF]) {
        put(u64::from(GDT) + n * 8, &descriptor.to_le_bytes());
    }
    for (at, limit, base) in [(0x40, 23, GDT), (0x48, 0x7FF, IDT)] {
        put(u64::from(GDT) + at, &[&u16::to_le_bytes(limit)[..], &base.to_le_bytes()].concat());
    }
    Ok(Image { bytes, load_at: u64::from(IDT), cs: 0, ip: REAL as u16 })
}

fn enter(a: &mut CodeAssembler) -> Asm {
    a.cli()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.lgdt(fword_ptr(GDT + 0x40))?;
    a.lidt(fword_ptr(GDT + 0x48))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    // JMP 8:PROTECTED, 32 bits wide.
    a.db(&[0x66, 0xEA])?;
    a.db(&(PROTECTED as u32).to_le_bytes())?;
    a.db(&[8, 0])
}

/// The code, and the handlers of [`ONCE`], [`PERIODIC`] and [`LEVEL`].
fn protected(rounds: u32) -> Result<(Vec<u8>, [u64; 3]), IcedError> {
    let a = &mut CodeAssembler::new(32)?;
    let mut labels = [a.create_label(), a.create_label(), a.create_label()];
    let (mut round, mut wait, mut wrong) = (a.create_label(), a.create_label(), a.create_label());
    set_up(a)?;
    a.mov(ebx, rounds)?;
    // EBP: how many must have come.
    a.xor(ebp, ebp)?;
    a.set_label(&mut round)?;
    one_shot(a, wait)?;
    deadline(a, wait)?;
    level(a, wait)?;
    periodic(a)?;
    a.dec(ebx)?;
    a.jnz(round)?;
    one_shot(a, wait)?;
    a.xor(eax, eax)?;
    a.out(i32::from(EXIT), al)?;

    // Returns when EBP interrupts have come, with interrupts disabled; more are wrong.
    let mut enough = a.create_label();
    a.set_label(&mut wait)?;
    a.cli()?;
    a.cmp(dword_ptr(COUNT), ebp)?;
    a.jae(enough)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(wait)?;
    a.set_label(&mut enough)?;
    a.jne(wrong)?;
    a.ret()?;
    a.set_label(&mut wrong)?;
    a.mov(eax, esi)?;
    a.out(i32::from(EXIT), al)?;

    let end = |a: &mut CodeAssembler| {
        a.mov(dword_ptr(LOCAL_APIC + 0xB0), 0)?;
        a.iretd()
    };
    a.set_label(&mut labels[0])?;
    a.inc(dword_ptr(COUNT))?;
    end(a)?;
    a.set_label(&mut labels[1])?;
    a.inc(dword_ptr(TICKS))?;
    end(a)?;
    let mut high = a.create_label();
    a.set_label(&mut labels[2])?;
    a.inc(dword_ptr(COUNT))?;
    a.dec(dword_ptr(LEFT))?;
    a.jnz(high)?;
    drive(a, 0)?;
    a.set_label(&mut high)?;
    end(a)?;
    let done =
        a.assemble_options(PROTECTED, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let [once, periodic, level] = &labels;
    let handlers = [done.label_ip(once)?, done.label_ip(periodic)?, done.label_ip(level)?];
    Ok((done.inner.code_buffer, handlers))
}

/// Segments, masked 8259As, the local APIC, one entry of the I/O APIC.
fn set_up(a: &mut CodeAssembler) -> Asm {
    a.mov(eax, 0x10)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    a.mov(esp, 0x4F00)?;
    a.mov(al, 0xFF)?;
    a.out(0x21, al)?;
    a.out(0xA1, al)?;
    for at in [COUNT, TICKS, LEFT] {
        a.mov(dword_ptr(at), 0)?;
    }
    apic(a, 0xF0, 0x1FF)?;
    apic(a, 0x3E0, 0xB)?;
    for (register, value) in [(PIN * 2 + 0x11, 0), (PIN * 2 + 0x10, 1 << 15 | LEVEL)] {
        a.mov(dword_ptr(IO_APIC), register)?;
        a.mov(dword_ptr(IO_APIC + 0x10), value)?;
    }
    Ok(())
}

fn apic(a: &mut CodeAssembler, register: u32, value: u32) -> Asm {
    a.mov(dword_ptr(LOCAL_APIC + register), value)
}

fn one_shot(a: &mut CodeAssembler, wait: CodeLabel) -> Asm {
    a.mov(esi, ONE_SHOT)?;
    apic(a, 0x320, ONCE)?;
    apic(a, 0x380, 150_000)?;
    a.inc(ebp)?;
    a.call(wait)
}

fn deadline(a: &mut CodeAssembler, wait: CodeLabel) -> Asm {
    a.mov(esi, DEADLINE)?;
    apic(a, 0x320, 2 << 17 | ONCE)?;
    a.rdtsc()?;
    a.add(eax, 500_000)?;
    a.adc(edx, 0)?;
    a.mov(ecx, IA32_TSC_DEADLINE)?;
    a.wrmsr()?;
    a.inc(ebp)?;
    a.call(wait)
}

/// The line stays high over two interrupts.
fn level(a: &mut CodeAssembler, wait: CodeLabel) -> Asm {
    a.mov(esi, LEVELS)?;
    a.mov(dword_ptr(LEFT), 2)?;
    drive(a, 1)?;
    a.add(ebp, 2)?;
    a.call(wait)
}

fn drive(a: &mut CodeAssembler, level: u32) -> Asm {
    a.push(eax)?;
    a.push(edx)?;
    a.mov(edx, LINE)?;
    a.mov(eax, level)?;
    a.out(dx, al)?;
    a.pop(edx)?;
    a.pop(eax)
}

/// Three ticks; how many more come before the timer is masked, nobody knows.
fn periodic(a: &mut CodeAssembler) -> Asm {
    let mut again = a.create_label();
    a.mov(dword_ptr(TICKS), 0)?;
    apic(a, 0x320, 1 << 17 | PERIODIC)?;
    apic(a, 0x380, 100_000)?;
    a.set_label(&mut again)?;
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    a.cmp(dword_ptr(TICKS), 3)?;
    a.jb(again)?;
    apic(a, 0x320, 1 << 16 | PERIODIC)?;
    // Or it would go on, and end in the next mode.
    apic(a, 0x380, 0)
}
