//! What the host's KVM can do, found by running code: a table of features says little of a KVM made of software.

use super::host::Host;
use super::tiny::{End, Tiny};
use crate::Unavailable;
use crate::report::{Missing, Report, Trial};
use crate::speed;
use crate::tiny::{CODE, CODE0, DONE, IDT, Mode, Tables, assemble};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::time::Instant;
use trimaran_cpu::ram::{PAGE, Ram};
use trimaran_cpu::state::{CpuState, RFlags, gpr};

/// Left in RAX by each trial that works.
const MAGIC: u64 = 0x51AB;
/// Where handlers stand.
const HANDLER: u64 = 0x3000;
const GENERAL_PROTECTION: u64 = 13;
/// Of the trial of the local APIC.
const APIC_VECTOR: u64 = 0x40;
/// How many windows its trial opens.
const WINDOWS: u32 = 100;
/// What the trial of the log writes.
const WRITTEN: u64 = 0x6000;
/// Bytes of MOV EAX, imm32.
const MOV_EAX: u64 = 5;

/// Tries everything. How fast it is counts only where nothing is missing: on a slow KVM measuring takes a second.
pub fn probe(host: &Arc<Host>) -> Result<Report, Unavailable> {
    let mut missing = Vec::new();
    for trial in Trial::ALL {
        if let Err(reason) = attempt(host, trial)? {
            missing.push(Missing { trial, reason });
        }
    }
    let report = Report { missing, smm: host.smm, ring0_mips: 0.0, ring3_mips: 0.0 };
    if report.essential().next().is_some() { Ok(report) } else { measure(host, &report) }
}

/// The report with speeds.
pub fn measure(host: &Arc<Host>, report: &Report) -> Result<Report, Unavailable> {
    Ok(Report { ring0_mips: mips(host, 0)?, ring3_mips: mips(host, 3)?, ..report.clone() })
}

/// Runs a trial in a machine of its own.
fn attempt(host: &Arc<Host>, trial: Trial) -> Result<Result<(), String>, Unavailable> {
    if trial == Trial::SplitIrqchip {
        return Ok(split(host));
    }
    let mut tiny = Tiny::new(host)?;
    if trial == Trial::TimeStamp {
        return Ok(time_stamp(&tiny));
    }
    let run = |tiny: &mut Tiny| -> Result<(), String> {
        tiny.hardware.request_interrupt_window(trial == Trial::InterruptWindow);
        match trial {
            Trial::SingleStep0 | Trial::SingleStep3 => tiny.hardware.single_steps(true),
            Trial::Breakpoint0 | Trial::Breakpoint3 => tiny.hardware.breakpoints(&[CODE + MOV_EAX]),
            _ => Ok(()),
        }
        .map_err(|e| e.to_string())?;
        let (mut state, program) = prepare(trial, &tiny.ram).map_err(|e| e.to_string())?;
        let end = tiny.run(&program, &mut state)?;
        let expected = match trial {
            Trial::InterruptWindow => End::InterruptWindow,
            Trial::SingleStep0 | Trial::SingleStep3 | Trial::Breakpoint0 | Trial::Breakpoint3 => End::Debug,
            _ if ends_at_cpl_3(trial) => End::Out(DONE),
            _ => End::Halt,
        };
        if end != expected || state.gpr[gpr::RAX] & 0xFFFF != MAGIC {
            return Err(format!(
                "it ended with {end:?} at {:#x}, RAX {:#x}",
                state.rip(),
                state.gpr[gpr::RAX]
            ));
        }
        let (shown, features) = (state.gpr[gpr::RSI] as u32, tiny.model.features.leaf1_ecx);
        if trial == Trial::Cpuid && shown != features {
            return Err(format!("leaf 1 has ECX {shown:08x}, not {features:08x}"));
        }
        match trial {
            Trial::DirtyLog => return dirty_log(tiny, &mut state),
            Trial::InterruptWindow => return first_windows(tiny, &mut state),
            _ => {}
        }
        Ok(())
    };
    Ok(run(&mut tiny))
}

fn ends_at_cpl_3(trial: Trial) -> bool {
    matches!(trial, Trial::FloatingPoint3 | Trial::Syscall | Trial::SingleStep3 | Trial::Breakpoint3)
}

/// The tables, the first state and the program of a trial.
fn prepare(trial: Trial, ram: &Ram) -> Result<(CpuState, Vec<u8>), IcedError> {
    let mode = match trial {
        Trial::RealMode | Trial::InterruptWindow | Trial::TimeStamp => Mode::Real,
        Trial::ProtectedMode | Trial::SoftwareInterrupt => Mode::Protected,
        Trial::Paging32 => Mode::Paged,
        Trial::Virtual8086 => Mode::Virtual8086,
        _ => Mode::Long,
    };
    let mut state = Tables(ram).prepare(mode, if ends_at_cpl_3(trial) { 3 } else { 0 });
    match trial {
        Trial::SoftwareInterrupt => interrupt_gate(ram, 0x40),
        Trial::Virtual8086 => interrupt_gate(ram, GENERAL_PROTECTION),
        Trial::SplitIrqchip => interrupt_gate(ram, APIC_VECTOR * 2),
        Trial::Syscall => (state.msr.star, state.msr.lstar) = (u64::from(CODE0) << 32 | 0x1B << 48, HANDLER),
        _ => {}
    }
    Ok((state, code(trial, ram)?))
}

/// The program has written one page: whether the log tells of it, once, and of the next run anew.
fn dirty_log(tiny: &mut Tiny, state: &mut CpuState) -> Result<(), String> {
    let dirty = |tiny: &Tiny| {
        let mut pages = Vec::new();
        tiny.vm.take_dirty(|page| pages.push(page)).map_err(|e| e.to_string())?;
        Ok::<_, String>(pages.contains(&(WRITTEN / PAGE)))
    };
    let first = [dirty(tiny)?, dirty(tiny)?];
    state.gpr[gpr::RIP] = CODE;
    tiny.resume(state)?;
    let again = dirty(tiny)?;
    match (first, again) {
        ([true, false], true) => Ok(()),
        told => Err(format!("it tells of a written page as {told:?}")),
    }
}

/// The program's window has come: it must be the first that could, each time. Some KVMs meet one by luck.
fn first_windows(tiny: &mut Tiny, state: &mut CpuState) -> Result<(), String> {
    for _ in 0..3 {
        let late = u64::from(WINDOWS).wrapping_sub(state.gpr[gpr::RCX] & 0xFFFF);
        if late != 0 {
            return Err(format!("{late} go by before it notices one"));
        }
        state.gpr[gpr::RIP] = CODE;
        state.rflags.remove(RFlags::IF);
        match tiny.resume(state)? {
            End::InterruptWindow => {}
            end => return Err(format!("it ended with {end:?}, and not each time")),
        }
    }
    Ok(())
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

/// The kernel's local APIC ends HLT with its timer, takes a level-triggered message, and tells when that is finished.
fn split(host: &Arc<Host>) -> Result<(), String> {
    let mut tiny = Tiny::with(host, true).map_err(|e| e.to_string())?;
    let (mut state, program) = prepare(Trial::SplitIrqchip, &tiny.ram).map_err(|e| e.to_string())?;
    let first = tiny.run(&program, &mut state)?;
    const MESSAGE: u32 = 0xC000 | APIC_VECTOR as u32;
    tiny.vm.signal(0xFEE0_0000, MESSAGE).map_err(|e| e.to_string())?;
    // The order of the next two is KVM's.
    let next = [tiny.until_exit()?, tiny.until_exit()?];
    let expected = [End::Out(DONE), End::Eoi(APIC_VECTOR as u8)];
    match first == End::Out(DONE) && expected.iter().all(|end| next.contains(end)) {
        true => Ok(()),
        false => Err(format!("it ended with {first:?} and {next:?}")),
    }
}

/// An interrupt gate to [`HANDLER`]; of 64-bit code's double entries the first half of `vector / 2`.
fn interrupt_gate(ram: &Ram, vector: u64) {
    let gate = HANDLER | u64::from(CODE0) << 16 | 0x8E00 << 32;
    ram.write(IDT + vector * 8, &gate.to_le_bytes());
}

/// The program of a trial; handlers are put in their place.
fn code(trial: Trial, ram: &Ram) -> Result<Vec<u8>, IcedError> {
    let magic = MAGIC as u32;
    match trial {
        Trial::TimeStamp => Ok(Vec::new()),
        Trial::SplitIrqchip => {
            let write = |a: &mut CodeAssembler, msr: u32, value: u32| {
                a.mov(ecx, msr)?;
                a.mov(eax, value)?;
                a.xor(edx, edx)?;
                a.wrmsr()
            };
            let handler = assemble(64, HANDLER, |a| {
                write(a, 0x80B, 0)?;
                a.iretq()
            })?;
            ram.write(HANDLER, &handler);
            assemble(64, CODE, |a| {
                // Software enable, a one-shot timer, its divider and its count: 0.1 ms.
                for (msr, value) in
                    [(0x80F, 0x1FF), (0x832, APIC_VECTOR as u32), (0x83E, 0xB), (0x838, 100_000)]
                {
                    write(a, msr, value)?;
                }
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.sti()?;
                a.hlt()?;
                a.cli()?;
                a.mov(eax, magic)?;
                a.out(i32::from(DONE), al)?;
                a.jmp(again)
            })
        }
        Trial::InterruptWindow => assemble(16, CODE, |a| {
            // As firmware waits: interrupts may come behind the NOP, and no more behind the CLI.
            let mut again = a.create_label();
            a.mov(ax, 0x51ABu32 as i32)?;
            a.mov(cx, WINDOWS)?;
            a.set_label(&mut again)?;
            a.sti()?;
            a.nop()?;
            a.pause()?;
            a.cli()?;
            a.loop_(again)?;
            a.hlt()
        }),
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
        Trial::DirtyLog => assemble(64, CODE, |a| {
            a.mov(eax, magic)?;
            a.mov(dword_ptr(WRITTEN), eax)?;
            a.hlt()
        }),
        Trial::SingleStep0 | Trial::SingleStep3 | Trial::Breakpoint0 | Trial::Breakpoint3 => {
            assemble(64, CODE, |a| {
                a.mov(eax, magic)?;
                a.nop()?;
                a.out(i32::from(DONE), al)
            })
        }
        Trial::Virtual8086 => {
            let handler = assemble(32, HANDLER, |a| {
                // MAGIC if EFLAGS, above the error code, EIP and CS, has VM.
                a.mov(eax, dword_ptr(esp + 12))?;
                a.shr(eax, 17)?;
                a.and(eax, 1)?;
                a.imul_3(eax, eax, magic as i32)?;
                a.hlt()
            })?;
            ram.write(HANDLER, &handler);
            assemble(16, CODE, CodeAssembler::hlt)
        }
        Trial::LongMode => assemble(64, CODE, |a| {
            a.mov(rcx, u64::from(magic) << 32)?;
            a.push(rcx)?;
            a.pop(rax)?;
            a.shr(rax, 32)?;
            a.hlt()
        }),
        Trial::Cpuid => assemble(64, CODE, |a| {
            a.mov(eax, 1)?;
            a.cpuid()?;
            a.mov(esi, ecx)?;
            a.mov(eax, magic)?;
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
            ram.write(HANDLER, &handler);
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
            ram.write(HANDLER, &handler);
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

/// Million instructions a second at a privilege level of long mode; 0 if that does not run.
fn mips(host: &Arc<Host>, cpl: u8) -> Result<f64, Unavailable> {
    let mut tiny = Tiny::new(host)?;
    Ok(speed::measure(|rounds| {
        let mut state = tiny.prepare(Mode::Long, cpl);
        let program = speed::program(&mut state, rounds)?;
        let begun = Instant::now();
        let end = tiny.run(&program, &mut state);
        let time = begun.elapsed();
        (end.is_ok() && state.gpr[gpr::RCX] == 0).then_some(time)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::{BYTES, OnlyRam};
    use trimaran_cpu::engine::Stop;
    use trimaran_cpu::model::Model;
    use trimaran_cpu::shared::CodeFence;
    use trimaran_cpu::{Vcpu, VcpuConfig};

    /// KVM made of software looks now and then, and meets a window by luck.
    #[test]
    fn luck_makes_no_interrupt_window() {
        let host = match Host::open() {
            Ok(host) => Arc::new(host),
            Err(reason) => return println!("skipped: {reason}"),
        };
        let works = || attempt(&host, Trial::InterruptWindow).expect("a machine").is_ok();
        let first = works();
        assert!((0..50).all(|_| works() == first));
    }

    /// What a trial finds is the fault of KVM: its program is right on the interpreter.
    #[test]
    fn programs_do_what_trials_expect() {
        let others = [Trial::TimeStamp, Trial::SplitIrqchip];
        for trial in Trial::ALL.into_iter().filter(|trial| !others.contains(trial)) {
            let ram = Arc::new(Ram::anonymous(BYTES));
            let fence = CodeFence::new(1);
            let bus = Arc::new(OnlyRam(fence.clone()));
            let model = Arc::new(Model::default());
            let mut vcpu = Vcpu::new(VcpuConfig { id: 0, model, ram: ram.clone(), bus, fence });
            let (state, program) = prepare(trial, &ram).expect("a program");
            ram.write(CODE, &program);
            vcpu.state = state;
            vcpu.state_loaded();
            // A port ends the others.
            let stop = vcpu.run(10_000);
            assert!(matches!(stop, Stop::Halted | Stop::Asked), "{trial:?}: {stop:?}");
            assert_eq!(vcpu.state_whole().gpr[gpr::RAX] & 0xFFFF, MAGIC, "{trial:?}");
        }
    }
}
