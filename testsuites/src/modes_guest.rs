//! A small guest that does the same work in real mode, in protected mode with paging and in long mode: strings, flags,
//! divisions, x87, SSE, code that it writes itself, interrupt shadows, timer interrupts, HLT. It prints a checksum of
//! the work on COM1 and ends through port 0xF4. What the timers do is not in the checksum, but in memory.

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction};
use trimaran_machine::MachineConfig;
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::builtin::Image;

/// Where the guest ends.
pub const EXIT: u16 = 0xF4;
/// How many interrupts came: a dword.
pub const TICKS: u64 = 0x0F00;

const STACK: u32 = 0x1F00;
const SOURCE: u32 = 0x2000;
const TARGET: u32 = 0x3000;
/// Code that the guest writes.
const WRITTEN: u32 = 0x4000;
const IDT32: u32 = 0x5000;
const IDT64: u32 = 0x6000;
const GDT: u32 = 0x7000;
const REAL: u64 = 0x8000;
const PROTECTED: u64 = 0x9000;
/// Where long mode begins.
pub const LONG: u64 = 0xA000;
const END: u64 = 0xB000;
const DIRECTORY: u32 = 0x2_0000;
const PML4: u32 = 0x2_1000;
const LOCAL_APIC: u32 = 0xFEE0_0000;

const CODE32: u16 = 0x08;
const DATA: u16 = 0x10;
const CODE64: u16 = 0x18;
const DESCRIPTORS: [u64; 4] = [0, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00AF_9B00_0000_FFFF];
/// Vectors of the 8254 outside real mode, and of the local APIC's timer.
const TIMER: u8 = 0x20;
const APIC_TIMER: u8 = 0x40;
/// The 8259A's IR7, from IR0: what it says where a request is gone when the processor asks for its vector.
const SPURIOUS: u8 = 7;
const COM1: u32 = 0x3F8;

type Asm = Result<(), IcedError>;

/// A machine that runs the guest, so many rounds in each mode (about 8,000 instructions each).
pub fn config(rounds: u32) -> Result<MachineConfig, String> {
    let image = image(rounds).map_err(|e| e.to_string())?;
    Ok(MachineConfig {
        memory: 16 << 20,
        direct: Some(DirectBoot::builtin(image)),
        deterministic: true,
        debug_exit: Some(EXIT),
        ..MachineConfig::default()
    })
}

fn image(rounds: u32) -> Result<Image, IcedError> {
    let mut bytes = vec![0; (END - u64::from(IDT32)) as usize];
    let mut put = |at: u64, code: &[u8], room: u64| {
        assert!(code.len() as u64 <= room, "the code at {at:#x} is too long: {}", code.len());
        let at = (at - u64::from(IDT32)) as usize;
        bytes[at..at + code.len()].copy_from_slice(code);
    };
    // Twice: the first time tells where the handlers are.
    let (_, handlers) = Mode { bits: 16, rounds, handlers: Handlers::default() }.assemble(REAL)?;
    let (real, _) = Mode { bits: 16, rounds, handlers }.assemble(REAL)?;
    let (protected, handlers) = Mode { bits: 32, rounds, handlers }.assemble(PROTECTED)?;
    for (vector, handler) in [(TIMER, handlers.timer), (TIMER + SPURIOUS, handlers.spurious)] {
        put(u64::from(IDT32) + u64::from(vector) * 8, &gate(CODE32, handler)[..8], 8);
    }
    put(PROTECTED, &protected, LONG - PROTECTED);
    let (long, handlers) = Mode { bits: 64, rounds, handlers }.assemble(LONG)?;
    for (vector, handler) in
        [(TIMER, handlers.timer), (TIMER + SPURIOUS, handlers.spurious), (APIC_TIMER, handlers.apic_timer)]
    {
        put(u64::from(IDT64) + u64::from(vector) * 16, &gate(CODE64, handler), 16);
    }
    put(LONG, &long, END - LONG);
    put(REAL, &real, PROTECTED - REAL);
    let descriptors: Vec<u8> = DESCRIPTORS.iter().flat_map(|d| d.to_le_bytes()).collect();
    put(u64::from(GDT), &descriptors, 64);
    for (at, limit, base) in [(0x40, 31, GDT), (0x48, 0x7FF, IDT32), (0x50, 0xFFF, IDT64)] {
        let register = [&u16::to_le_bytes(limit)[..], &u64::from(base).to_le_bytes()].concat();
        put(u64::from(GDT) + at, &register[..8], 8);
    }
    Ok(Image { bytes, load_at: u64::from(IDT32), cs: 0, ip: REAL as u16 })
}

/// A 32- or 64-bit interrupt gate.
fn gate(code: u16, offset: u64) -> [u8; 16] {
    let low = offset & 0xFFFF | u64::from(code) << 16 | 0x8E00 << 32 | (offset >> 16 & 0xFFFF) << 48;
    let mut gate = [0; 16];
    gate[..8].copy_from_slice(&low.to_le_bytes());
    gate[8..12].copy_from_slice(&((offset >> 32) as u32).to_le_bytes());
    gate
}

/// Addresses of a mode's handlers.
#[derive(Clone, Copy, Default)]
struct Handlers {
    timer: u64,
    apic_timer: u64,
    spurious: u64,
}

/// The guest's code for one mode.
struct Mode {
    bits: u32,
    rounds: u32,
    /// Real mode's.
    handlers: Handlers,
}

impl Mode {
    /// The code, and where its handlers are.
    fn assemble(&self, at: u64) -> Result<(Vec<u8>, Handlers), IcedError> {
        let a = &mut CodeAssembler::new(self.bits)?;
        let (mut timer, mut apic_timer, mut spurious) =
            (a.create_label(), a.create_label(), a.create_label());
        match self.bits {
            16 => enter_real(a, self.handlers)?,
            32 => enter_protected(a)?,
            _ => enter_long(a)?,
        }
        self.work(a)?;
        match self.bits {
            16 => leave_real(a)?,
            32 => leave_protected(a)?,
            _ => report(a)?,
        }
        a.set_label(&mut timer)?;
        self.handler(a, |a| {
            a.mov(al, 0x20)?;
            a.out(0x20, al)
        })?;
        a.set_label(&mut apic_timer)?;
        self.handler(a, |a| {
            a.mov(eax, LOCAL_APIC + 0xB0)?;
            a.mov(dword_ptr(eax), 0)
        })?;
        // Nothing is in service.
        a.set_label(&mut spurious)?;
        self.interrupt_return(a)?;
        let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let done = a.assemble_options(at, options)?;
        let handlers = Handlers {
            timer: done.label_ip(&timer)?,
            apic_timer: done.label_ip(&apic_timer)?,
            spurious: done.label_ip(&spurious)?,
        };
        Ok((done.inner.code_buffer, handlers))
    }

    /// Counts an interrupt; `end` says to whom it is ended, with EAX at its service.
    fn handler(&self, a: &mut CodeAssembler, end: fn(&mut CodeAssembler) -> Asm) -> Asm {
        if self.bits == 64 {
            a.push(rax)?;
        } else {
            a.push(eax)?;
        }
        a.mov(eax, TICKS as u32)?;
        a.inc(dword_ptr(eax))?;
        end(a)?;
        if self.bits == 64 {
            a.pop(rax)?;
        } else {
            a.pop(eax)?;
        }
        self.interrupt_return(a)
    }

    fn interrupt_return(&self, a: &mut CodeAssembler) -> Asm {
        match self.bits {
            64 => a.iretq(),
            32 => a.iretd(),
            _ => a.iret(),
        }
    }

    /// All rounds. EBP: the checksum.
    fn work(&self, a: &mut CodeAssembler) -> Asm {
        let mut round = a.create_label();
        let mut no_halt = a.create_label();
        a.mov(ebx, self.rounds)?;
        a.set_label(&mut round)?;
        a.sti()?;
        strings(a)?;
        loops(a)?;
        arithmetic(a)?;
        self.written_code(a)?;
        floating_point(a)?;
        if self.bits != 16 {
            vectors(a)?;
        }
        // The shadow of MOV SS, with interrupts enabled.
        a.mov(eax, ss)?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.test(bl, 31)?;
        a.jnz(no_halt)?;
        // The shadow of STI, then a timer's interrupt ends HLT.
        a.cli()?;
        a.nop()?;
        a.sti()?;
        a.hlt()?;
        a.set_label(&mut no_halt)?;
        a.dec(ebx)?;
        a.jnz(round)?;
        a.cli()
    }

    /// Writes a function and calls it.
    fn written_code(&self, a: &mut CodeAssembler) -> Asm {
        a.mov(edi, WRITTEN)?;
        if self.bits == 16 {
            a.mov(al, 0x66)?;
            a.stosb()?;
        }
        // mov eax, EBP's value; ret
        a.mov(al, 0xB8)?;
        a.stosb()?;
        a.mov(eax, ebp)?;
        a.stosd()?;
        a.mov(al, 0xC3)?;
        a.stosb()?;
        a.mov(ecx, WRITTEN)?;
        match self.bits {
            16 => a.call(cx)?,
            32 => a.call(ecx)?,
            _ => a.call(rcx)?,
        }
        a.not(eax)?;
        mix(a)
    }
}

/// Folds EAX into the checksum.
fn mix(a: &mut CodeAssembler) -> Asm {
    a.rol(ebp, 5)?;
    a.xor(ebp, eax)?;
    a.add(ebp, 0x9E37_79B9u32 as i32)
}

/// Folds the flags of the last instruction, all of which must be defined.
fn mix_flags(a: &mut CodeAssembler) -> Asm {
    a.seto(al)?;
    a.lahf()?;
    a.movzx(eax, ax)?;
    mix(a)
}

fn strings(a: &mut CodeAssembler) -> Asm {
    let addresses = |a: &mut CodeAssembler, from: u32, to: u32, count: u32| {
        a.mov(esi, from)?;
        a.mov(edi, to)?;
        a.mov(ecx, count)
    };
    a.mov(eax, ebp)?;
    addresses(a, 0, SOURCE, 512)?;
    a.rep().stosd()?;
    // A length that differs from round to round.
    addresses(a, SOURCE, TARGET, 1500)?;
    a.movzx(eax, bl)?;
    a.add(ecx, eax)?;
    a.rep().movsb()?;
    addresses(a, TARGET, TARGET + 2, 300)?;
    a.rep().movsw()?;
    a.std()?;
    addresses(a, TARGET + 900, TARGET + 903, 700)?;
    a.rep().movsb()?;
    a.cld()?;
    a.mov(eax, ebx)?;
    a.mov(dword_ptr(TARGET + 800), eax)?;
    addresses(a, SOURCE, TARGET, 1400)?;
    a.repe().cmpsb()?;
    mix_flags(a)?;
    a.mov(eax, ecx)?;
    mix(a)?;
    addresses(a, 0, TARGET, 1200)?;
    a.mov(al, bl)?;
    a.repne().scasb()?;
    a.mov(eax, ecx)?;
    mix(a)
}

/// Loads, stores and flags over what the strings left.
fn loops(a: &mut CodeAssembler) -> Asm {
    let (mut next, mut sum) = (a.create_label(), a.create_label());
    a.mov(esi, SOURCE)?;
    a.mov(ecx, 256)?;
    a.set_label(&mut next)?;
    a.mov(eax, dword_ptr(esi))?;
    a.add(eax, ecx)?;
    a.rol(eax, cl)?;
    a.xor(word_ptr(esi + 2), ax)?;
    a.adc(dword_ptr(esi), eax)?;
    a.add(esi, 4)?;
    a.dec(ecx)?;
    a.jnz(next)?;
    a.mov(esi, TARGET)?;
    a.mov(ecx, 200)?;
    a.xor(edx, edx)?;
    a.set_label(&mut sum)?;
    a.lodsd()?;
    a.add(edx, eax)?;
    a.adc(edx, dword_ptr(esi))?;
    a.rcl(edx, 1)?;
    a.sbb(edx, 7)?;
    a.loop_(sum)?;
    mix_flags(a)?;
    a.mov(eax, edx)?;
    mix(a)
}

fn arithmetic(a: &mut CodeAssembler) -> Asm {
    a.mov(eax, ebp)?;
    a.xor(edx, edx)?;
    a.mov(ecx, 1_000_003)?;
    a.div(ecx)?;
    a.imul_3(eax, eax, 12_345)?;
    a.lea(eax, dword_ptr(eax + edx * 4))?;
    mix(a)?;
    a.mov(eax, ebp)?;
    a.mov(edx, ebx)?;
    a.shld(eax, edx, 11)?;
    a.bts(eax, 3)?;
    a.bswap(eax)?;
    a.cmp(eax, ebx)?;
    a.cmovb(eax, ebp)?;
    a.mov(esi, SOURCE)?;
    a.lock().xadd(dword_ptr(esi + 8), eax)?;
    mix_flags(a)?;
    a.mov(eax, dword_ptr(esi + 8))?;
    a.lock().cmpxchg(dword_ptr(esi + 8), ebx)?;
    mix_flags(a)?;
    a.or(ebp, 1)?;
    a.bsf(eax, ebp)?;
    a.bsr(ecx, ebp)?;
    a.add(eax, ecx)?;
    mix(a)
}

fn floating_point(a: &mut CodeAssembler) -> Asm {
    a.mov(esi, SOURCE)?;
    a.mov(dword_ptr(esi), ebx)?;
    a.fninit()?;
    a.fild(dword_ptr(esi))?;
    a.fldpi()?;
    a.fmul_2(st0, st1)?;
    a.fsqrt()?;
    a.fadd_2(st0, st1)?;
    a.fistp(dword_ptr(esi))?;
    a.mov(eax, dword_ptr(esi))?;
    mix(a)
}

fn vectors(a: &mut CodeAssembler) -> Asm {
    a.mov(esi, SOURCE)?;
    a.movdqu(xmm0, xmmword_ptr(esi + 1))?;
    a.movdqu(xmm1, xmmword_ptr(esi + 32))?;
    a.paddd(xmm0, xmm1)?;
    a.pmuludq(xmm1, xmm0)?;
    a.pshufd(xmm2, xmm1, 0x1B)?;
    a.pxor(xmm0, xmm2)?;
    a.cvtdq2ps(xmm3, xmm0)?;
    a.mulps(xmm3, xmm3)?;
    a.sqrtps(xmm3, xmm3)?;
    a.cvttps2dq(xmm3, xmm3)?;
    a.pxor(xmm0, xmm3)?;
    a.movdqu(xmmword_ptr(esi + 64), xmm0)?;
    a.movd(eax, xmm0)?;
    mix(a)
}

/// Stacks, the 8254 at 10 kHz on IRQ 0, which is vector 8 as a BIOS leaves it.
fn enter_real(a: &mut CodeAssembler, handlers: Handlers) -> Asm {
    a.cli()?;
    a.cld()?;
    a.xor(eax, eax)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    a.mov(esp, STACK)?;
    a.mov(dword_ptr(8 * 4), handlers.timer as u32)?;
    a.mov(dword_ptr(u32::from(8 + SPURIOUS) * 4), handlers.spurious as u32)?;
    for (port, value) in [(0x43, 0x34), (0x40, 119), (0x40, 0), (0x21, 0xFE)] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    a.xor(ebp, ebp)
}

fn leave_real(a: &mut CodeAssembler) -> Asm {
    a.lgdt(ptr(GDT + 0x40))?;
    a.lidt(ptr(GDT + 0x48))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, CODE32, PROTECTED as u32)?)
}

fn load_segments(a: &mut CodeAssembler) -> Asm {
    a.mov(eax, u32::from(DATA))?;
    [ds, es, ss, fs, gs].into_iter().try_for_each(|segment| a.mov(segment, eax))
}

/// Paging by pages of 4 MiB; the 8259A's vectors move out of the exceptions' way.
fn enter_protected(a: &mut CodeAssembler) -> Asm {
    load_segments(a)?;
    a.mov(esp, STACK)?;
    let mut entry = a.create_label();
    a.mov(edi, DIRECTORY)?;
    a.mov(eax, 0x83)?;
    a.mov(ecx, 1024)?;
    a.set_label(&mut entry)?;
    a.stosd()?;
    a.add(eax, 4 << 20)?;
    a.loop_(entry)?;
    a.mov(eax, DIRECTORY)?;
    a.mov(cr3, eax)?;
    // PSE, OSFXSR, OSXMMEXCPT.
    a.mov(eax, 0x610)?;
    a.mov(cr4, eax)?;
    // PG, NE, MP, PE.
    a.mov(eax, 0x8000_0033u32)?;
    a.mov(cr0, eax)?;
    for (port, value) in [(0x20, 0x11), (0x21, u32::from(TIMER)), (0x21, 4), (0x21, 1), (0x21, 0xFE)] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    Ok(())
}

fn leave_protected(a: &mut CodeAssembler) -> Asm {
    // PML4, PDPT, four directories of 2 MiB pages.
    let mut entry = a.create_label();
    a.mov(dword_ptr(PML4), PML4 + 0x1003)?;
    for n in 0..4 {
        a.mov(dword_ptr(PML4 + 0x1000 + n * 8), PML4 + 0x2003 + n * 0x1000)?;
    }
    a.mov(edi, PML4 + 0x2000)?;
    a.mov(eax, 0x83)?;
    a.mov(ecx, 4 * 512)?;
    a.set_label(&mut entry)?;
    a.mov(dword_ptr(edi), eax)?;
    a.add(edi, 8)?;
    a.add(eax, 2 << 20)?;
    a.loop_(entry)?;
    a.mov(eax, 0x33)?;
    a.mov(cr0, eax)?;
    // PAE as well.
    a.mov(eax, 0x630)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PML4)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, 0xC000_0080u32)?;
    a.mov(eax, 0x100)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.mov(eax, 0x8000_0033u32)?;
    a.mov(cr0, eax)?;
    a.lidt(ptr(GDT + 0x50))?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, CODE64, LONG as u32)?)
}

/// The local APIC's timer runs beside the 8254.
fn enter_long(a: &mut CodeAssembler) -> Asm {
    load_segments(a)?;
    a.mov(esp, STACK)?;
    a.mov(esi, LOCAL_APIC)?;
    // Divide by 1, periodic, every 70,000 counts.
    for (register, value) in [(0x3E0, 0xB), (0x320, 0x2_0000 | u32::from(APIC_TIMER)), (0x380, 70_000)] {
        a.mov(dword_ptr(esi + register), value as i32)?;
    }
    Ok(())
}

/// Prints EBP and ends.
fn report(a: &mut CodeAssembler) -> Asm {
    let (mut digit, mut decimal) = (a.create_label(), a.create_label());
    a.mov(ecx, 8)?;
    a.set_label(&mut digit)?;
    a.rol(ebp, 4)?;
    a.mov(eax, ebp)?;
    a.and(eax, 15)?;
    a.add(al, u32::from(b'0'))?;
    a.cmp(al, u32::from(b'9'))?;
    a.jbe(decimal)?;
    a.add(al, u32::from(b'a' - b'9' - 1))?;
    a.set_label(&mut decimal)?;
    a.mov(edx, COM1)?;
    a.out(dx, al)?;
    a.loop_(digit)?;
    a.xor(eax, eax)?;
    a.out(u32::from(EXIT), al)?;
    a.hlt()
}
