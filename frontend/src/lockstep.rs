//! `trimaran lockstep`: two engines run the same guest and are compared.

use crate::cli::{Display, EngineName, LockstepOptions, Options};
use crate::disassembly::{Disassembler, bitness};
use crate::engine_list::engine;
use crate::run::configure;
use crate::{Failure, state_diff, status};
use std::time::Duration;
use trimaran_machine::Machine;
use trimaran_machine::lockstep::{Difference, Limits, Lockstep, Verdict};

pub fn run(options: &LockstepOptions) -> Result<i32, Failure> {
    check(&options.machine)?;
    let engines = [engine(&options.machine, options.a)?, engine(&options.machine, options.b)?];
    let names = engines.each_ref().map(|engine| engine.name());
    let mut media = Vec::new();
    let same_time = Options { deterministic: true, ..options.machine.clone() };
    let mut machine = |n: usize| -> Result<Machine, Failure> {
        // The guest must not see which engine it runs on.
        let (config, _, _) = configure(&same_time, "lockstep", Some(&mut media))?;
        Ok(Machine::new(config, &engines[n])?)
    };
    let machines = [machine(0)?, machine(1)?];
    let limits = Limits {
        every: options.every,
        instructions: options.insns.unwrap_or(u64::MAX),
        time: options.seconds.map_or(Duration::MAX, Duration::from_secs_f64),
    };
    println!("{} and {}, compared every {} instructions", names[0], names[1], limits.every);
    let mut lockstep = Lockstep::new(machines, engines.clone(), media)?;
    let said = |count: u64| println!("the same after {count} instructions, memory and devices too");
    match lockstep.run(&limits, said)? {
        Verdict::Same { instructions, outcome } => {
            let end = outcome.map_or(String::new(), |outcome| format!("; the guest ended: {outcome:?}"));
            println!("no difference in {instructions} instructions{end}");
            Ok(status::POWERED_OFF)
        }
        Verdict::Different(difference) => {
            print!("{}", describe(&difference, names));
            Ok(status::DIFFERENT)
        }
        Verdict::Lost { time } => {
            println!(
                "the engines differ at {time} ns, but not when they run there again: one of them does not do the \
                 same each time"
            );
            Ok(status::DIFFERENT)
        }
    }
}

/// Options that would do nothing here.
fn check(options: &Options) -> Result<(), Failure> {
    let useless = [
        ("--engine", options.engine != EngineName::Auto),
        ("--display", options.display.is_some_and(|display| display != Display::None)),
        ("--serial", !options.serial.is_empty()),
        ("--debugcon", options.debugcon.is_some()),
        ("--monitor", options.monitor.is_some()),
        ("--switch-at", !options.switch_at.is_empty()),
        ("--timeout", options.timeout.is_some()),
        ("--screendump", options.screendump.is_some()),
        ("--stats", options.stats),
    ];
    match useless.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((name, _)) => {
            let hint = match *name {
                "--engine" => "give --a and --b",
                "--timeout" => "give --seconds",
                _ => "two machines run, and show nothing",
            };
            Err(Failure::Usage(format!("{name} means nothing to lockstep: {hint}")))
        }
    }
}

fn describe(d: &Difference, names: [&str; 2]) -> String {
    let address = d.before.code_address();
    let line = Disassembler::new().line(bitness(&d.before), &d.code, address).0;
    let mut text = format!(
        "the engines differ at {} ns, after {} instructions of processor {}:\n{address:016x}: {line}\n",
        d.time, d.before.retired, d.cpu
    );
    let rows = state_diff::differences(&d.before, &d.after[0], &d.after[1]);
    if !rows.is_empty() {
        text += &format!("{:<28} {:<24} {:<24} {}\n", "", "before", names[0], names[1]);
    }
    for (name, [before, a, b]) in rows {
        text += &format!("{name:<28} {before:<24} {a:<24} {b}\n");
    }
    if let Some((at, [a, b])) = d.memory {
        text += &format!("memory at {at:#x} of RAM: {a:02x} with {}, {b:02x} with {}\n", names[0], names[1]);
    }
    if !d.chips.is_empty() {
        text += &format!("chips in different states: {}\n", d.chips.join(", "));
    }
    if d.outcomes[0] != d.outcomes[1] {
        text += &format!("{}: {:?}; {}: {:?}\n", names[0], d.outcomes[0], names[1], d.outcomes[1]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_cpu::state::{CpuState, RFlags, attr, gpr, seg};

    #[test]
    fn a_difference_is_told_with_its_instruction() {
        let mut before = CpuState::reset(0, true);
        before.seg[seg::CS].base = 0;
        before.seg[seg::CS].attributes |= attr::DB;
        (before.cr0, before.retired) = (1, 41);
        before.gpr[gpr::RIP] = 0x8000;
        let mut after = [before.clone(), before.clone()];
        for state in &mut after {
            state.gpr[gpr::RIP] = 0x8002;
        }
        after[1].rflags |= RFlags::CF;
        let difference = Difference {
            time: 55,
            cpu: 1,
            before,
            after,
            code: vec![0x01, 0xC8, 0x90, 0x90],
            memory: Some((0x1234, [5, 6])),
            chips: vec!["com1".into()],
            outcomes: [None, None],
        };
        let text = describe(&difference, ["interp", "wrong"]);
        for words in [
            "at 55 ns, after 41 instructions of processor 1",
            "0000000000008000: 01c8                   add eax, ecx",
            "memory at 0x1234 of RAM: 05 with interp, 06 with wrong",
            "chips in different states: com1",
        ] {
            assert!(text.contains(words), "no `{words}` in:\n{text}");
        }
        let flags = text.lines().find(|line| line.starts_with("rflags"));
        let flags: Vec<&str> = flags.unwrap_or_default().split_whitespace().collect();
        assert_eq!(flags, ["rflags", "2", "2", "3"], "{text}");
        assert!(!text.contains("rip "), "{text}");
    }
}
