//! `trimaran lockstep`: two engines run the same guest and are compared.

use crate::cli::{Display, EngineName, IrqchipName, LockstepOptions, Options};
use crate::disassembly::{Disassembler, bitness};
use crate::engines::{self, Choice};
use crate::run::configure;
use crate::{Failure, state_diff, status};
use std::sync::Arc;
use std::time::Duration;
use trimaran_cpu::state::CpuState;
use trimaran_machine::access_lockstep::{self, AccessLockstep, Mark, comparable};
use trimaran_machine::lockstep::{Difference, Limits, Lockstep, Verdict};
use trimaran_machine::media::Changes;
use trimaran_machine::{Machine, MachineConfig};

/// Instructions between two comparisons, unless `--every` says otherwise.
const EVERY: u64 = 1_000_000;

pub fn run(options: &LockstepOptions) -> Result<i32, Failure> {
    check(&options.machine)?;
    let choices = [choose(options, options.a)?, choose(options, options.b)?];
    if choices.iter().any(|choice| choice.factory.name() == "kvm") {
        return at_accesses(options, choices);
    }
    let engines = choices.map(|choice| choice.factory);
    let names = engines.each_ref().map(|engine| engine.name());
    let mut media = Vec::new();
    let mut machine = |n: usize| -> Result<Machine, Failure> {
        Ok(Machine::new(config(options, &mut media)?, &engines[n])?)
    };
    let machines = [machine(0)?, machine(1)?];
    let limits = Limits {
        every: options.every.unwrap_or(EVERY),
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

fn choose(options: &LockstepOptions, name: EngineName) -> Result<Choice, Failure> {
    // What the guest does with a local APIC in the kernel could not be compared.
    engines::choose(&Options { engine: name, kvm_irqchip: IrqchipName::User, ..options.machine.clone() })
}

/// One of the two machines. The guest must not see which engine it runs on.
fn config(options: &LockstepOptions, media: &mut Vec<Changes>) -> Result<MachineConfig, Failure> {
    let same_time = Options { deterministic: true, ..options.machine.clone() };
    Ok(configure(&same_time, "lockstep", Some(media))?.0)
}

/// KVM does not count instructions: the machines are compared wherever the guest accesses a device.
fn at_accesses(options: &LockstepOptions, choices: [Choice; 2]) -> Result<i32, Failure> {
    if options.every.is_some() || options.insns.is_some() {
        let message = "KVM does not count instructions, so --every and --insns mean nothing with it: machines are compared at \
                       each device access, for --seconds";
        return Err(Failure::Usage(message.into()));
    }
    // KVM leads: it may make several accesses before it stops, which the other can follow.
    let [a, b] = choices;
    let (leader, follower) = if a.factory.name() == "kvm" { (a, b) } else { (b, a) };
    let model = Arc::new(leader.model);
    let config = || -> Result<MachineConfig, Failure> {
        Ok(MachineConfig { model: model.clone(), ..config(options, &mut Vec::new())? })
    };
    let names = [leader.factory.name(), follower.factory.name()];
    println!("{} and {}, compared at each device access", names[0], names[1]);
    let mut lockstep = AccessLockstep::new([config()?, config()?], [leader.factory, follower.factory])?;
    let time = options.seconds.map_or(Duration::MAX, Duration::from_secs_f64);
    match lockstep.run(time, |count| println!("the same after {count} accesses"))? {
        access_lockstep::Verdict::Same { accesses, outcome } => {
            let end = outcome.map_or(String::new(), |outcome| format!("; the guest ended: {outcome:?}"));
            println!("no difference in {accesses} accesses, memory at the end included{end}");
            Ok(status::POWERED_OFF)
        }
        access_lockstep::Verdict::Different(difference) => {
            print!("{}", describe_access(&difference, names));
            Ok(status::DIFFERENT)
        }
        access_lockstep::Verdict::Stuck { accesses } => Err(anyhow::anyhow!(
            "after {accesses} equal accesses the guest makes no more: it waits for time to pass, which here passes at \
             accesses and in HLT only"
        )
        .into()),
        access_lockstep::Verdict::Failed(reason) => Err(anyhow::anyhow!(reason).into()),
    }
}

/// Options that would do nothing here.
fn check(options: &Options) -> Result<(), Failure> {
    let useless = [
        ("--engine", options.engine != EngineName::Auto),
        ("--kvm-irqchip", options.kvm_irqchip != IrqchipName::User),
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
    text += &table([&d.before, &d.after[0], &d.after[1]], names);
    text += &memory_line(d.memory, names);
    if !d.chips.is_empty() {
        text += &format!("chips in different states: {}\n", d.chips.join(", "));
    }
    if d.outcomes[0] != d.outcomes[1] {
        text += &format!("{}: {:?}; {}: {:?}\n", names[0], d.outcomes[0], names[1], d.outcomes[1]);
    }
    text
}

fn table([before, a, b]: [&CpuState; 3], names: [&str; 2]) -> String {
    let rows = state_diff::differences(before, a, b);
    let mut text = String::new();
    if !rows.is_empty() {
        text += &format!("{:<28} {:<24} {:<24} {}\n", "", "before", names[0], names[1]);
    }
    for (name, [before, a, b]) in rows {
        text += &format!("{name:<28} {before:<24} {a:<24} {b}\n");
    }
    text
}

fn memory_line(memory: Option<(u64, [u8; 2])>, names: [&str; 2]) -> String {
    memory.map_or(String::new(), |(at, [a, b])| {
        format!("memory at {at:#x} of RAM: {a:02x} with {}, {b:02x} with {}\n", names[0], names[1])
    })
}

fn describe_access(d: &access_lockstep::Difference, names: [&str; 2]) -> String {
    let Some([a, b]) = &d.after else {
        return format!(
            "memory differs after {} accesses, the processor does not:\n{}",
            d.accesses,
            memory_line(d.memory, names)
        );
    };
    let address = d.before.code_address();
    let line = Disassembler::new().line(bitness(&d.before), &d.code, address).0;
    let mut text = format!(
        "the engines differ after {} equal accesses, between here and the next one:\n{address:016x}: {line}\n",
        d.accesses
    );
    if (a.accesses, a.stop) != (b.accesses, b.stop) {
        let end = |mark: &Mark| format!("{} accesses ({:?})", mark.accesses, mark.stop);
        text += &format!("{}: {}; {}: {}\n", names[0], end(a), names[1], end(b));
    }
    text + &table([&comparable(&d.before), &comparable(&a.state), &comparable(&b.state)], names)
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
