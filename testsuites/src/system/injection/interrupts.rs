//! External interrupts between every two steps of instructions that are repeated, and of a few others: the handler sees
//! the state of that boundary, and the end is as without it (SDM Vol. 2, "REP/REPE/REPZ/REPNE/REPNZ").

use super::*;
use trimaran_cpu::state::Activity;

/// (name, code). (E)CX is 9, (E)SI and (E)DI lead to [`PAGE`].
const CODES: &[(&str, &[u8])] = &[
    ("REP MOVSB", &[0xF3, 0xA4]),
    ("REP STOSD", &[0xF3, 0xAB]),
    ("REPE CMPSB", &[0xF3, 0xA6]),
    ("REPNE SCASB", &[0xF2, 0xAE]),
    ("REP LODSW", &[0xF3, 0x66, 0xAD]),
    ("REP OUTSB", &[0xF3, 0x6E]),
    ("PUSH, PUSHF, ADD, POPF, POP", &[0x50, 0x9C, 0x01, 0xDA, 0x9D, 0x58]),
];
/// More than any of them takes.
const STEPS: u64 = 12;
const VECTOR: u8 = 0x50;
/// HLT, then IRET.
const HANDLER: u64 = STUBS + 0x200;

fn world(engine: &str, paging: Paging, code: &[u8]) -> Result<Bench, String> {
    let mut b = Bench::paged(paging);
    b.flat.run_on(engine)?;
    b.flat.ram.write(HANDLER, if b.long { &[0xF4, 0x48, 0xCF] } else { &[0xF4, 0xCF] });
    b.interrupt_gate(VECTOR, HANDLER, 0);
    b.flat.ram.write(CODE, code);
    b.flat.ram.write(CODE + code.len() as u64, &[0xEB, 0xFE]);
    let s = &mut b.flat.vcpu.state;
    s.rflags |= RFlags::IF;
    (s.gpr[1], s.gpr[3], s.gpr[6], s.gpr[7]) = (9, PAGE, PAGE + 0x100, PAGE + 0x200);
    b.changed();
    Ok(b)
}

/// An interrupt after so many steps, whose handler returns: the end must be as without it.
fn interrupted(b: &mut Bench, start: &CpuState, after: u64, want: &CpuState) -> Result<(), String> {
    b.flat.vcpu.state = start.clone();
    b.changed();
    if after > 0 && b.flat.run(after) != Stop::Budget {
        return Err("it stopped".into());
    }
    let before = b.flat.vcpu.state.clone();
    b.flat.bus.raise(VECTOR);
    if b.flat.run(200) != Stop::Halted {
        return Err("no interrupt".into());
    }
    let s = &mut b.flat.vcpu.state;
    for n in [gpr::RCX, gpr::RSI, gpr::RDI] {
        if s.gpr[n] != before.gpr[n] {
            return Err(format!("register {n} was {:#x}, the handler sees {:#x}", before.gpr[n], s.gpr[n]));
        }
    }
    s.activity = Activity::Running;
    b.changed();
    go(b)?;
    let mut end = b.flat.vcpu.state.clone();
    end.retired = want.retired;
    let lines = compare::states(want, &end);
    if lines.is_empty() { Ok(()) } else { Err(lines.join("; ")) }
}

/// See [`Run`].
pub fn run(engine: &str) -> Result<usize, String> {
    let mut count = 0;
    for paging in Paging::ALL {
        for (name, code) in CODES {
            let mut b = world(engine, paging, code)?;
            let start = b.flat.vcpu.state.clone();
            go(&mut b)?;
            let want = b.flat.vcpu.state.clone();
            for after in 0..STEPS {
                interrupted(&mut b, &start, after, &want)
                    .map_err(|why| format!("{engine}, {paging:?}, {name}, after {after} steps: {why}"))?;
                count += 1;
            }
        }
    }
    Ok(count)
}
