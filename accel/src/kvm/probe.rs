//! What the host's KVM can do, found by running code: a table of features says little of a KVM made of software.

use super::host::Host;
use super::tiny::{CODE, CODE0, End, IDT, Mode, Tiny};
use crate::Unavailable;
use crate::report::{Missing, Report, Trial};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::time::Instant;
use trimaran_cpu::state::gpr;

/// Left in RAX by each trial that works.
const MAGIC: u64 = 0x51AB;
/// Port of a trial at CPL 3, where HLT faults.
const DONE: u16 = 0x80;
/// Where handlers stand.
const HANDLER: u64 = 0x3000;
/// Times that the loops for speed run at first.
const FIRST_ROUNDS: u32 = 10_000;
/// A measurement takes this long at least, in seconds.
const LEAST_TIME: f64 = 0.02;

/// Tries everything.
pub fn probe(host: &Arc<Host>) -> Result<Report, Unavailable> {
    let mut missing = Vec::new();
    for trial in Trial::ALL {
        if let Err(reason) = attempt(host, trial)? {
            missing.push(Missing { trial, reason });
        }
    }
    let (ring0_mips, ring3_mips) = (speed(host, 0)?, speed(host, 3)?);
    Ok(Report { missing, smm: host.smm, ring0_mips, ring3_mips })
}

/// Runs a trial in a machine of its own.
fn attempt(host: &Arc<Host>, trial: Trial) -> Result<Result<(), String>, Unavailable> {
    let mut tiny = Tiny::new(host)?;
    let (mode, cpl) = match trial {
        Trial::RealMode | Trial::TimeStamp => (Mode::Real, 0),
        Trial::ProtectedMode | Trial::SoftwareInterrupt => (Mode::Protected, 0),
        Trial::Paging32 => (Mode::Paged, 0),
        Trial::LongMode | Trial::FloatingPoint0 => (Mode::Long, 0),
        Trial::FloatingPoint3 | Trial::Syscall => (Mode::Long, 3),
    };
    let mut state = tiny.prepare(mode, cpl);
    if trial == Trial::SoftwareInterrupt {
        interrupt_gate(&tiny, 0x40);
    }
    if trial == Trial::Syscall {
        (state.msr.star, state.msr.lstar) = (u64::from(CODE0) << 32 | 0x1B << 48, HANDLER);
    }
    if trial == Trial::TimeStamp {
        return Ok(time_stamp(&tiny));
    }
    let mut run = |tiny: &mut Tiny| -> Result<(), String> {
        let program = code(trial, tiny).map_err(|e| e.to_string())?;
        let end = tiny.run(&program, &mut state)?;
        let expected = if cpl == 3 { End::Out(DONE) } else { End::Halt };
        if end != expected || state.gpr[gpr::RAX] & 0xFFFF != MAGIC {
            return Err(format!(
                "it ended with {end:?} at {:#x}, RAX {:#x}",
                state.rip(),
                state.gpr[gpr::RAX]
            ));
        }
        Ok(())
    };
    Ok(run(&mut tiny))
}

/// Whether an offset shows in the guest's TSC.
fn time_stamp(tiny: &Tiny) -> Result<(), String> {
    let read = || tiny.hardware.time_stamp().map_err(|e| e.to_string());
    let before = read()?;
    let added = tiny.hardware.tsc_offset().map_err(|e| e.to_string())?;
    const STEP: u64 = 1 << 50;
    tiny.hardware.set_tsc_offset(added.wrapping_add(STEP)).map_err(|e| e.to_string())?;
    match read()?.wrapping_sub(before) {
        STEP.. => Ok(()),
        _ => Err("it ignores offsets".into()),
    }
}

/// A 32-bit interrupt gate to [`HANDLER`].
fn interrupt_gate(tiny: &Tiny, vector: u64) {
    let gate = HANDLER | u64::from(CODE0) << 16 | 0x8E00 << 32;
    tiny.ram.write(IDT + vector * 8, &gate.to_le_bytes());
}

fn assemble(
    bits: u32,
    at: u64,
    f: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(bits)?;
    f(&mut a)?;
    a.assemble(at)
}

/// The program of a trial; handlers are put in their place.
fn code(trial: Trial, tiny: &Tiny) -> Result<Vec<u8>, IcedError> {
    let magic = MAGIC as u32;
    match trial {
        Trial::TimeStamp => Ok(Vec::new()),
        Trial::RealMode => assemble(16, CODE, |a| {
            // Segments and the stack, as firmware uses them.
            a.xor(ax, ax)?;
            a.mov(ds, ax)?;
            a.push(0x51ABu32 as i32)?;
            a.pop(ax)?;
            a.hlt()
        }),
        Trial::ProtectedMode | Trial::Paging32 => assemble(32, CODE, |a| {
            a.mov(dword_ptr(0x6000), magic)?;
            a.mov(eax, dword_ptr(0x6000))?;
            a.hlt()
        }),
        Trial::LongMode => assemble(64, CODE, |a| {
            a.mov(rcx, u64::from(magic) << 32)?;
            a.push(rcx)?;
            a.pop(rax)?;
            a.shr(rax, 32)?;
            a.hlt()
        }),
        Trial::FloatingPoint0 => assemble(64, CODE, |a| {
            floating_point(a)?;
            a.hlt()
        }),
        Trial::FloatingPoint3 => assemble(64, CODE, |a| {
            floating_point(a)?;
            a.out(i32::from(DONE), al)
        }),
        Trial::SoftwareInterrupt => {
            let handler = assemble(32, HANDLER, |a| {
                a.mov(ecx, magic)?;
                a.iretd()
            })?;
            tiny.ram.write(HANDLER, &handler);
            assemble(32, CODE, |a| {
                a.int(0x40)?;
                a.mov(eax, ecx)?;
                a.hlt()
            })
        }
        Trial::Syscall => {
            let handler = assemble(64, HANDLER, |a| {
                a.mov(edx, magic)?;
                a.sysretq()
            })?;
            tiny.ram.write(HANDLER, &handler);
            assemble(64, CODE, |a| {
                a.syscall()?;
                a.mov(eax, edx)?;
                a.out(i32::from(DONE), al)
            })
        }
    }
}

/// MAGIC by way of an x87 and an SSE register.
fn floating_point(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(0x6000), MAGIC as u32)?;
    a.fninit()?;
    a.fild(dword_ptr(0x6000))?;
    a.fistp(dword_ptr(0x6008))?;
    a.cvtsi2sd(xmm1, dword_ptr(0x6008))?;
    a.addsd(xmm1, xmm1)?;
    a.cvttsd2si(eax, xmm1)?;
    a.shr(eax, 1)
}

/// Million instructions a second of a loop of two; 0 if it does not run.
fn speed(host: &Arc<Host>, cpl: u8) -> Result<f64, Unavailable> {
    let mut tiny = Tiny::new(host)?;
    let mut rounds = FIRST_ROUNDS;
    let program = assemble(64, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.sub(ecx, 1)?;
        a.jnz(again)?;
        a.mov(eax, MAGIC as u32)?;
        if cpl == 3 { a.out(i32::from(DONE), al) } else { a.hlt() }
    });
    let Ok(program) = program else { return Ok(0.0) };
    loop {
        let mut state = tiny.prepare(Mode::Long, cpl);
        state.gpr[gpr::RCX] = u64::from(rounds);
        let begun = Instant::now();
        let end = tiny.run(&program, &mut state);
        let seconds = begun.elapsed().as_secs_f64();
        if end.is_err() || state.gpr[gpr::RAX] != MAGIC {
            return Ok(0.0);
        }
        if seconds >= LEAST_TIME || rounds >= 1 << 28 {
            return Ok(f64::from(rounds) * 2.0 / seconds / 1e6);
        }
        rounds *= 8;
    }
}
