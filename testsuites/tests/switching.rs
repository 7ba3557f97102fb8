//! Engines that change under a running guest. `TRIMARAN_LONG=1` changes them more often, and adds Linux for a minute.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use libtest_mimic::{Arguments, Failed, Trial};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trimaran_accel::{Irqchip, Kvm};
use trimaran_cpu::VcpuConfig;
use trimaran_cpu::engine::{Around, Engine, EngineFactory, Interpreter, Stop, Takeover};
use trimaran_cpu::model::Model;
use trimaran_cpu::shared::attention;
use trimaran_cpu::state::{CpuState, RFlags, gpr, seg};
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::{MachineConfig, MachineError, Outcome, SwitchAt, SwitchReport, Trigger};
use trimaran_machine::{builtin, firmware};
use trimaran_testsuites::apic_guest;
use trimaran_testsuites::cpio::Archive;
use trimaran_testsuites::engine;
use trimaran_testsuites::flat;
use trimaran_testsuites::guest::{self, Guest};
use trimaran_testsuites::modes_guest;

type Check = fn() -> Result<(), String>;

const SAMPLES: &[(&str, Check)] = &[
    ("the guest of all modes, changed at random counts", all_modes),
    ("the built-in guest, changed at random counts", built_in),
    ("SeaBIOS on two processors, changed at random counts", seabios),
    ("every single step on a new engine: shadows, NMI, HLT, MWAIT, REP", every_step),
    ("triggers fire once, where they should", triggers),
    ("an engine that refuses leaves the old one at work", refusal),
    ("a trap that is due when a slice ends comes first", trap_at_the_end_of_a_slice),
    ("512 MB change their engine", time_of_a_switch),
    ("a machine that starts under KVM goes on without, and back where it can", kvm),
    ("the same with the local APIC in the kernel", kvm_split),
    ("Linux works while its engine changes every 50 ms", linux),
];

fn main() {
    let trials = SAMPLES.iter().map(|&(name, check)| Trial::test(name, move || run(name, check))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn run(name: &str, check: Check) -> Result<(), Failed> {
    match check() {
        Err(why) if why.starts_with("skipped: ") => {
            println!("{name}: {why}");
            Ok(())
        }
        Err(why) => Err(why.into()),
        Ok(()) => Ok(()),
    }
}

fn long() -> bool {
    std::env::var_os("TRIMARAN_LONG").is_some()
}

fn seed() -> u64 {
    std::env::var("TRIMARAN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// How a deterministic run ended.
#[derive(Debug, PartialEq, Eq)]
struct End {
    outcome: Option<Outcome>,
    /// Virtual time.
    time: u64,
    instructions: u64,
    serial: String,
    state: [u8; 32],
}

/// Nanoseconds after which a guest has gone wrong.
const TOO_LATE: u64 = 60_000_000_000;

/// Runs a deterministic machine to its end; at each of these times the next engine of the list takes over.
fn run_switched(
    config: MachineConfig,
    engines: &[Arc<dyn EngineFactory>],
    times: &[u64],
    end: u64,
) -> Result<End, String> {
    let guest = Guest::create(config, &engines[0])?;
    for (n, &time) in times.iter().enumerate() {
        guest.machine.run_until(time);
        let next = &engines[(n + 1) % engines.len()];
        guest.machine.switch_engine(next).map_err(|e| e.to_string())?;
    }
    guest.machine.run_until(end);
    let (time, instructions) = (guest.machine.now(), guest.machine.stats().instructions);
    let state = guest.machine.state_hash();
    let outcome = guest.machine.outcome();
    Ok(End { outcome, time, instructions, serial: guest.into_serial(), state })
}

/// Nanoseconds, and so instructions of a processor that runs.
const STEP: u64 = 5_000;

/// When processors run: the beginnings of steps within which instructions were retired.
fn busy_times(config: MachineConfig, end: u64) -> Result<Vec<u64>, String> {
    let guest = Guest::create(config, &engine::named("interp")?)?;
    let (mut busy, mut step, mut before) = (Vec::new(), STEP, 0);
    while guest.machine.outcome().is_none() && guest.machine.now() + step < end {
        let time = guest.machine.now();
        guest.machine.run_until(time + step);
        let now = guest.machine.stats().instructions;
        // Idle time is crossed in longer steps.
        if now == before {
            step = (step * 2).min(200 * STEP);
        } else {
            busy.push(time);
            step = STEP;
        }
        before = now;
    }
    if busy.is_empty() { Err("no processor runs".into()) } else { Ok(busy) }
}

/// The same end whether engines change or not.
fn switched_at_random(
    what: &str,
    config: impl Fn() -> Result<MachineConfig, String>,
    switches: usize,
    end: u64,
) -> Result<End, String> {
    let interp: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    let expected = run_switched(config()?, std::slice::from_ref(&interp), &[], end)?;
    // Each translates at once, so that a few thousand instructions meet translated code.
    let engines =
        [interp, engine::eager("jit", 2)?, Arc::new(Interpreter), engine::eager("jit-cranelift", 200)?];
    let random = &mut StdRng::seed_from_u64(seed());
    let busy = busy_times(config()?, expected.time)?;
    let some = |_| busy[random.random_range(0..busy.len())] + random.random_range(0..STEP);
    let mut times: Vec<u64> = (0..switches).map(some).collect();
    times.sort_unstable();
    let found = run_switched(config()?, &engines, &times, end)?;
    if found != expected {
        return Err(format!("{what}, seed {}: expected {expected:x?}, found {found:x?}", seed()));
    }
    println!("{what}: {switches} switches within {} instructions, the same end", found.instructions);
    Ok(found)
}

fn all_modes() -> Result<(), String> {
    let (rounds, switches) = if long() { (1000, 10_000) } else { (300, 400) };
    let end = switched_at_random("all modes", || modes_guest::config(rounds), switches, TOO_LATE)?;
    if end.outcome != Some(Outcome::DebugExit(1)) || end.serial.len() != 8 {
        return Err(format!("{end:x?}"));
    }
    Ok(())
}

fn built_in() -> Result<(), String> {
    let config = || {
        let options = builtin::Options { engine: String::new(), smoke: true };
        let image = builtin::image(&options).map_err(|e| e.to_string())?;
        let direct = Some(DirectBoot::builtin(image));
        Ok(MachineConfig { memory: 16 << 20, direct, deterministic: true, ..MachineConfig::default() })
    };
    let end = switched_at_random("the built-in guest", config, if long() { 10_000 } else { 200 }, TOO_LATE)?;
    let checksum = format!("trimaran smoke {:016x}", builtin::expected_checksum());
    if end.outcome != Some(Outcome::PoweredOff) || !end.serial.contains(&checksum) {
        return Err(format!("no {checksum} in {end:x?}"));
    }
    Ok(())
}

/// System management mode, INIT and start-up IPIs, a processor that waits for them, code in ROM, PAM.
fn seabios() -> Result<(), String> {
    let (bios, vga) = firmware::find_seabios().ok_or("skipped: Debian package seabios is not installed")?;
    let config = || {
        let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
        Ok(MachineConfig {
            memory: 32 << 20,
            cpus: 2,
            deterministic: true,
            firmware: Some(read(&bios)?),
            vga_bios: Some(read(&vga)?),
            ..MachineConfig::default()
        })
    };
    let end = switched_at_random("SeaBIOS", config, if long() { 5_000 } else { 150 }, 1_000_000_000)?;
    if end.outcome.is_none() { Ok(()) } else { Err(format!("{end:?}")) }
}

/// One processor goes on with its engine, the other has a new one at every step: their states are always the same.
fn every_step() -> Result<(), String> {
    let mut a = CodeAssembler::new(16).map_err(|e| e.to_string())?;
    let mut again = a.create_label();
    let mut write = || -> Result<Vec<u8>, IcedError> {
        a.set_label(&mut again)?;
        a.mov(di, 0x2000)?;
        a.mov(cx, 20)?;
        a.rep().stosb()?;
        a.sti()?;
        a.mov(ax, ss)?;
        a.mov(ss, ax)?;
        a.inc(si)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 0x3000)?;
        a.monitor()?;
        a.xor(eax, eax)?;
        a.mwait()?;
        a.cli()?;
        a.inc(si)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)?;
        a.assemble(0x8000)
    };
    let code = write().map_err(|e| e.to_string())?;
    let engines = [engine::named("interp")?, engine::named("jit")?];
    let mut machines: Vec<flat::Machine> =
        (0..2).map(|_| flat::Machine::new(&Interpreter, 1 << 20, 0..0)).collect();
    for machine in &mut machines {
        machine.ram.write(0x8000, &code);
        // NMI: inc bp; iret. Vector 30h: inc bx; iret.
        machine.ram.write(2 * 4, &[0x00, 0x81, 0, 0]);
        machine.ram.write(0x8100, &[0x45, 0xCF]);
        machine.ram.write(0x30 * 4, &[0x10, 0x81, 0, 0]);
        machine.ram.write(0x8110, &[0x43, 0xCF]);
        let state = machine.engine.state();
        (state.seg[seg::CS].base, state.seg[seg::CS].selector) = (0, 0);
        (state.gpr[gpr::RIP], state.gpr[gpr::RSP]) = (0x8000, 0x7000);
        machine.engine.state_changed();
    }
    for n in 0..6000usize {
        for machine in &machines {
            // Two NMIs in a row: the second waits for the IRET of the first.
            if n % 41 < 2 {
                machine.fence.vcpus[0].raise(attention::NMI);
            }
            if n % 59 == 0 {
                machine.bus.raise(0x30);
            }
        }
        let stops = [0, 1].map(|m: usize| machines[m].engine.run(1));
        machines[1].renew(&*engines[n % 2]);
        let states = [0, 1].map(|m: usize| machines[m].engine.state().clone());
        if states[0] != states[1] || stops[0] != stops[1] {
            return Err(format!("step {n}: {stops:?}, {states:x?}"));
        }
    }
    let state = machines[0].engine.state();
    let [nmis, interrupts, rounds] =
        [gpr::RBP, gpr::RBX, gpr::RSI].map(|register| state.gpr[register] & 0xFFFF);
    if nmis < 100 || interrupts < 50 || rounds < 50 {
        return Err(format!("{nmis} NMIs, {interrupts} interrupts and {rounds} rounds only"));
    }
    println!(
        "{nmis} NMIs, {interrupts} interrupts, {rounds} half rounds, a new engine for each of 6000 steps"
    );
    Ok(())
}

/// An interpreter that notes the state that it takes over.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Vec<CpuState>>>);

struct Witnessing(Box<dyn Engine>, Witness);

impl EngineFactory for Witness {
    fn name(&self) -> &'static str {
        "witness"
    }
    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        Box::new(Witnessing(Interpreter.create(config), self.clone()))
    }
}

impl Around for Witnessing {
    fn inner(&self) -> &dyn Engine {
        &*self.0
    }
    fn inner_mut(&mut self) -> &mut dyn Engine {
        &mut *self.0
    }
    fn run_around(&mut self, budget: u64) -> Stop {
        self.0.run(budget)
    }
    fn changed_around(&mut self) {
        self.0.state_changed();
        if let Ok(mut states) = self.1.0.lock() {
            states.push(self.0.state().clone());
        }
    }
    fn name_around(&self) -> &'static str {
        "witness"
    }
}

/// What a machine told of its switches.
type Told = Arc<Mutex<Vec<(Trigger, Result<SwitchReport, String>)>>>;

fn with_triggers(
    mut config: MachineConfig,
    list: Vec<(Trigger, Arc<dyn EngineFactory>)>,
) -> (MachineConfig, Told) {
    let told = Told::default();
    let teller = told.clone();
    config.switches = list.into_iter().map(|(trigger, engine)| SwitchAt { trigger, engine }).collect();
    config.on_switch = Some(Box::new(move |trigger, result: &Result<SwitchReport, MachineError>| {
        let result = result.as_ref().copied().map_err(ToString::to_string);
        if let Ok(mut told) = teller.lock() {
            told.push((trigger.clone(), result));
        }
    }));
    (config, told)
}

fn triggers() -> Result<(), String> {
    let interp: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    let jit = engine::eager("jit", 2)?;
    for deterministic in [true, false] {
        let config = || modes_guest::config(40).map(|config| MachineConfig { deterministic, ..config });
        let (count, rip, port, serial) =
            (Witness::default(), Witness::default(), Witness::default(), Witness::default());
        // Not in the order in which they come.
        let list: Vec<(Trigger, Arc<dyn EngineFactory>)> = vec![
            (Trigger::Serial(String::new()), Arc::new(serial.clone())),
            (Trigger::Rip(modes_guest::LONG), Arc::new(rip.clone())),
            (Trigger::Rip(0x1234), interp.clone()),
            (Trigger::Insns(123_457), Arc::new(count.clone())),
            (Trigger::Insns(123_458), jit.clone()),
            (Trigger::Port(0x20), Arc::new(port.clone())),
        ];
        let expected = run_switched(
            MachineConfig { deterministic: true, ..config()? },
            std::slice::from_ref(&interp),
            &[],
            TOO_LATE,
        )?;
        let mut list = list;
        list[0].0 = Trigger::Serial(expected.serial[3..6].to_owned());
        let (config, told) = with_triggers(config()?, list);
        let mut guest = Guest::create(config, &jit)?;
        if deterministic {
            guest.machine.run_until(TOO_LATE);
            if guest.machine.state_hash() != expected.state {
                return Err("another state at the end".into());
            }
        } else {
            guest.machine.start();
            guest.ends(120)?;
        }
        let found = guest.into_serial();
        if found != expected.serial {
            return Err(format!("{found:?} instead of {:?}", expected.serial));
        }
        let first = |witness: &Witness| {
            let states = witness.0.lock().map_err(|e| e.to_string())?;
            states.first().cloned().ok_or("a trigger did not fire".to_string())
        };
        let found = (first(&count)?.retired, first(&rip)?.code_address());
        if found != (123_457, modes_guest::LONG) {
            return Err(format!("stopped at {found:x?}"));
        }
        // The instruction behind OUT 20h, AL; the handlers end with POP and IRET.
        first(&port)?;
        first(&serial)?;
        let told = told.lock().map_err(|e| e.to_string())?;
        if told.len() != 5 || told.iter().any(|(_, result)| result.is_err()) {
            return Err(format!("told: {told:?}"));
        }
    }
    Ok(())
}

/// Takes no machine.
struct Shy;

impl EngineFactory for Shy {
    fn name(&self) -> &'static str {
        "shy"
    }
    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        Interpreter.create(config)
    }
    fn accepts(&self, machine: &Takeover) -> Result<(), String> {
        Err(format!("too many states: {}", machine.states.len()))
    }
}

fn refusal() -> Result<(), String> {
    let shy: Arc<dyn EngineFactory> = Arc::new(Shy);
    let config = || modes_guest::config(20);
    match Guest::create(config()?, &shy) {
        Err(why) if why.contains("too many states: 1") => {}
        Err(why) => return Err(why),
        Ok(_) => return Err("a machine was made with an engine that refuses it".into()),
    }
    let jit = engine::named("jit")?;
    let expected = run_switched(config()?, std::slice::from_ref(&jit), &[], TOO_LATE)?;
    let (config, told) = with_triggers(config()?, vec![(Trigger::Insns(50_000), shy.clone())]);
    let guest = Guest::create(config, &jit)?;
    guest.machine.run_until(100_000);
    let refused = guest.machine.switch_engine(&shy).map_err(|e| e.to_string());
    guest.machine.run_until(TOO_LATE);
    if guest.machine.engine_name() != "jit" || guest.machine.state_hash() != expected.state {
        return Err(format!("{} ended otherwise", guest.machine.engine_name()));
    }
    let told = told.lock().map_err(|e| e.to_string())?;
    match (&refused, told.first()) {
        (Err(one), Some((_, Err(two)))) if one == two && one.contains("shy") => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Single steps, each in a slice of its own: the trap comes before the next instruction, on the same engine and on a
/// new one each time.
fn trap_at_the_end_of_a_slice() -> Result<(), String> {
    for renewed in [false, true] {
        let mut machine = flat::Machine::new(&Interpreter, 1 << 20, 0..0);
        // Vector 1: inc dx; iret.
        machine.ram.write(4, &[0x00, 0x81, 0, 0]);
        machine.ram.write(0x8100, &[0x42, 0xCF]);
        // inc cx, many times.
        machine.ram.write(0x8000, &[0x41; 0x100]);
        let state = machine.engine.state();
        state.rflags |= RFlags::TF;
        (state.seg[seg::CS].base, state.seg[seg::CS].selector) = (0, 0);
        (state.gpr[gpr::RIP], state.gpr[gpr::RSP], state.gpr[gpr::RDX]) = (0x8000, 0x7000, 0);
        machine.engine.state_changed();
        for _ in 0..100 {
            machine.engine.run(1);
            if renewed {
                machine.renew(&Interpreter);
            }
        }
        let state = machine.engine.state();
        let (traps, steps) = (state.gpr[gpr::RDX], state.gpr[gpr::RCX]);
        // A delivery uses a slice, too: four for each step.
        if (traps, steps) != (25, 25) {
            return Err(format!("{traps} traps for {steps} instructions, renewed: {renewed}"));
        }
    }
    Ok(())
}

fn time_of_a_switch() -> Result<(), String> {
    let config = MachineConfig { memory: 512 << 20, deterministic: false, ..modes_guest::config(1_000_000)? };
    let (interp, jit) = (engine::named("interp")?, engine::named("jit")?);
    let mut guest = Guest::create(config, &interp)?;
    guest.machine.start();
    let mut times = Vec::new();
    for n in 0..40 {
        std::thread::sleep(Duration::from_millis(20));
        let before = guest.machine.now();
        let next = if n % 2 == 0 { &jit } else { &interp };
        let report = guest.machine.switch_engine(next).map_err(|e| e.to_string())?;
        let passed = guest.machine.now() - before;
        times.push((report.stood, Duration::from_nanos(passed)));
    }
    let clock = times.iter().map(|time| time.1).max().unwrap_or_default();
    let mut stood: Vec<Duration> = times.into_iter().map(|time| time.0).collect();
    stood.sort_unstable();
    let (median, most) = (stood[stood.len() / 2], stood[stood.len() - 1]);
    println!(
        "512 MB: the guest stands for {median:?} (median of 40), {most:?} at most; its clock went on by {clock:?} at most"
    );
    // How soon threads stop and start again is the host's affair: only a long run, on an idle one, judges it.
    if long() && median > Duration::from_millis(10) {
        return Err(format!("a switch takes {median:?}"));
    }
    Ok(())
}

/// From KVM to the interpreter and back at port exits, then to and fro at random times.
fn kvm() -> Result<(), String> {
    let kvm = Kvm::open().map_err(|reason| format!("skipped: {reason}"))?;
    let model = Arc::new(kvm.reduce(&Model::default()));
    let kvm: Arc<dyn EngineFactory> = Arc::new(kvm);
    let (interp, jit) = (engine::named("interp")?, engine::named("jit")?);
    let config = || modes_guest::config(300);
    // One that leaves before KVM has run it comes back.
    let early = MachineConfig { deterministic: false, model: model.clone(), ..config()? };
    let mut early = Guest::create(early, &kvm)?.machine;
    early.switch_engine(&interp).map_err(|e| e.to_string())?;
    early.start();
    std::thread::sleep(Duration::from_millis(20));
    early.switch_engine(&kvm).map_err(|e| format!("a machine that left at once: {e}"))?;
    drop(early);
    let expected = run_switched(config()?, std::slice::from_ref(&interp), &[], TOO_LATE)?;
    // The first three are written in real mode, the fourth in protected mode.
    let ports = [(0x43, &interp), (0x40, &kvm), (0x21, &interp), (0x20, &kvm)];
    let list = ports.map(|(port, engine)| (Trigger::Port(port), engine.clone())).to_vec();
    let (config, told) = with_triggers(MachineConfig { deterministic: false, model, ..config()? }, list);
    let mut guest = Guest::create(config, &kvm)?;
    guest.machine.start();
    let begun = Instant::now();
    // A fast host may be at the guest's end before the first of these.
    let mut switches = Vec::new();
    let mut engines = [&interp, &kvm, &jit, &kvm].into_iter().cycle();
    while guest.machine.outcome().is_none() {
        if begun.elapsed() > Duration::from_secs(300) {
            return Err(format!("does not end on {}", guest.machine.engine_name()));
        }
        std::thread::sleep(Duration::from_millis(3));
        if told.lock().is_ok_and(|told| told.len() == ports.len())
            && let Some(next) = engines.next()
        {
            switches.push(guest.machine.switch_engine(next).map_err(|e| e.to_string()));
        }
    }
    let (outcome, failure) = (guest.machine.outcome(), guest.machine.engine_failure());
    let found = guest.into_serial();
    if outcome != Some(Outcome::DebugExit(1)) || found != expected.serial {
        return Err(format!("{outcome:?} ({failure:?}), {found:?} instead of {:?}", expected.serial));
    }
    let told = told.lock().map_err(|e| e.to_string())?;
    if told.len() != ports.len() {
        return Err(format!("triggers did not fire: {told:?}"));
    }
    let at_ports = told.iter().map(|(_, result)| result.clone());
    let all: Vec<Result<SwitchReport, String>> = at_ports.chain(switches).collect();
    let taken = all.iter().flatten().filter(|report| report.to == "kvm").count();
    println!("{} switches, {taken} of them to KVM; at ports: {told:?}", all.len());
    for why in all.into_iter().filter_map(Result::err) {
        // Where KVM has the host's counter only, and others had the host's processors for a second.
        if !why.contains(HOST_WAS_BUSY) {
            return Err(format!("KVM does not take back the machine that started under it: {why}"));
        }
        println!("skipped in part: {why}");
    }
    Ok(())
}

/// The local APIC goes to the kernel and back with each turn of the interpreter, and with each change of engines: no timer,
/// no level-triggered interrupt is lost, and none comes twice.
fn kvm_split() -> Result<(), String> {
    let kvm = Kvm::open().and_then(|kvm| kvm.with_irqchip(Irqchip::Split));
    let kvm = kvm.map_err(|reason| format!("skipped: {reason}"))?;
    let model = Arc::new(kvm.reduce(&Model::default()));
    let kvm: Arc<dyn EngineFactory> = Arc::new(kvm);
    let two = MachineConfig { cpus: 2, deterministic: false, model: model.clone(), ..apic_guest::config(1)? };
    match Guest::create(two, &kvm) {
        Err(why) if why.contains("could be lost") => {}
        other => return Err(format!("with two processors: {:?}", other.map(|_| ()))),
    }
    let others = [engine::named("interp")?, kvm.clone(), engine::named("jit")?, kvm.clone()];
    let rounds = if long() { 3_000 } else { 100 };
    let modes = || modes_guest::config(300);
    let expected = run_switched(modes()?, &others[..1], &[], TOO_LATE)?.serial;
    let all = [
        ("APIC", apic_guest::config(rounds)?, &others[..0], ""),
        ("APIC, changed", apic_guest::config(rounds)?, &others, ""),
        ("all modes, changed", modes()?, &others, &*expected),
    ];
    for (name, config, engines, expected) in all {
        let config = MachineConfig { deterministic: false, model: model.clone(), ..config };
        let found = counted(name, Guest::create(config, &kvm)?, engines)?;
        if found != expected {
            return Err(format!("{name}: {found:?} instead of {expected:?}"));
        }
    }
    Ok(())
}

/// A guest that starts under KVM with the kernel's local APIC runs to its end; other engines take turns. What it said.
fn counted(name: &str, mut guest: Guest, engines: &[Arc<dyn EngineFactory>]) -> Result<String, String> {
    guest.machine.start();
    let (begun, mut switches, mut told) = (Instant::now(), 0, String::new());
    let mut engines = engines.iter().cycle();
    while guest.machine.outcome().is_none() {
        if begun.elapsed() > Duration::from_secs(300) {
            let apic = guest.machine.info("lapic0").map_err(|e| e.to_string())?;
            return Err(format!("{name}: does not end on {}: {apic}", guest.machine.engine_name()));
        }
        std::thread::sleep(Duration::from_millis(3));
        let text = guest.machine.stats().translator.concat();
        if text.contains("in the kernel") && !text.contains(" 0 times in the kernel") {
            told = text;
        }
        if told.is_empty() {
            // Before KVM has run, the guest's time is not yet the host's, where that is all there is.
            continue;
        }
        match engines.next().map(|next| guest.machine.switch_engine(next)) {
            Some(Err(why)) if why.to_string().contains(HOST_WAS_BUSY) => println!("skipped in part: {why}"),
            Some(Err(why)) => return Err(format!("{name}: {why}")),
            Some(Ok(_)) => switches += 1,
            None => {}
        }
    }
    let (outcome, failure) = (guest.machine.outcome(), guest.machine.engine_failure());
    if outcome != Some(Outcome::DebugExit(1)) {
        return Err(format!("{name}: {outcome:?} ({failure:?})"));
    }
    if told.is_empty() {
        return Err(format!("{name}: the local APIC never was in the kernel"));
    }
    println!("{name}: {switches} switches; {}", told.trim());
    Ok(guest.into_serial())
}

/// Why KVM may refuse a machine that started under it.
const HOST_WAS_BUSY: &str = "cannot set the time-stamp counter";

/// How long the threads that a switch concerns have run, and waited for one of the host's processors, in all.
fn scheduling() -> [Duration; 2] {
    let mut sum = [Duration::ZERO; 2];
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let own = std::fs::read_link("/proc/thread-self").ok();
    for thread in threads.map(|thread| thread.path()) {
        let name = std::fs::read_to_string(thread.join("comm")).unwrap_or_default();
        let mine = own.as_ref().and_then(|own| own.file_name()) == thread.file_name();
        if !mine && !name.starts_with("vcpu") {
            continue;
        }
        let text = std::fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
        let numbers = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
        sum.iter_mut().zip(numbers).for_each(|(sum, time)| *sum += Duration::from_nanos(time));
    }
    sum
}

/// What the guest's shell does over and over: compression, checksums, sorting, arithmetic, many processes, a pause.
const WORK: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
echo guest is up
n=0
while true; do
  n=$((n+1))
  a=$(seq 1 20000 | gzip -c | gunzip -c | md5sum | cut -c1-32)
  b=$(seq 1 3000 | sort -r | awk '{s+=$1*NR} END {print s}')
  c=$(i=0; while [ $i -lt 40 ]; do i=$((i+1)); (exit 3) || true; done; echo $i)
  sleep 0.1
  read up idle </proc/uptime
  echo "round $n: $a $b $c at $up s"
done
"#;
/// The same three results on the host.
const RESULTS: &str = "e071f707df7bbeee2a6a1eb48011ddd0 7026951121 40";
/// What Linux says when time has gone wrong, or worse.
const COMPLAINTS: [&str; 6] = ["nstable", "stall", "BUG", "Oops", "anic", "soft lockup"];

/// Two processors under load; interpreter and translator take turns. The guest's results are right, and its clock
/// goes as the machine's.
fn linux() -> Result<(), String> {
    let kernel = guest::bytes("linux-image-amd64", "vmlinuz")?;
    let mut archive = Archive::default();
    for directory in ["bin", "proc", "dev"] {
        archive.directory(directory);
    }
    archive.program("bin/busybox", &guest::bytes("busybox-static", "bin/busybox")?);
    archive.program("init", WORK.as_bytes());
    let initrd = Some(archive.finish().map_err(|e| e.to_string())?);
    // Linux panics if ten ticks of the PIT pass while a busy host lets its processor stand.
    let append = "console=ttyS0 loglevel=5 no_timer_check".into();
    let direct = Some(DirectBoot { kernel, initrd, append, ..DirectBoot::default() });
    let config = MachineConfig { memory: 512 << 20, cpus: 2, direct, ..MachineConfig::default() };
    let (interp, jit) = (engine::named("interp")?, engine::named("jit")?);
    let mut guest = Guest::create(config, &jit)?;
    guest.machine.start();
    guest.expect("round 1:", 300)?;
    let begun = Instant::now();
    let seconds = if long() { 60 } else { 8 };
    let (mut switches, mut seen, mut first, mut last) = (0, 1, None, None);
    let (mut most, mut before) = ((Duration::ZERO, Duration::ZERO, Duration::ZERO), guest.machine.now());
    while begun.elapsed() < Duration::from_secs(seconds) || seen < 4 {
        std::thread::sleep(Duration::from_millis(50));
        let next = if switches % 2 == 0 { &interp } else { &jit };
        let scheduled = scheduling();
        let stood = guest.machine.switch_engine(next).map_err(|e| e.to_string())?.stood;
        if stood > most.0 {
            let [ran, waited] = scheduling();
            most = (stood, ran.saturating_sub(scheduled[0]), waited.saturating_sub(scheduled[1]));
        }
        switches += 1;
        let (serial, now) = (guest.serial(), guest.machine.now());
        if let Some(complaint) = COMPLAINTS.iter().find(|complaint| serial.contains(**complaint)) {
            return Err(format!("Linux complains ({complaint}):\n{serial}"));
        }
        let rounds: Vec<&str> =
            serial.lines().filter(|line| line.starts_with("round ") && line.ends_with(" s")).collect();
        if rounds.len() > seen {
            seen = rounds.len();
            let uptime = rounds[seen - 1]
                .split(" at ")
                .nth(1)
                .and_then(|text| text.trim_end_matches(" s").parse().ok());
            let uptime: f64 = uptime.ok_or_else(|| format!("no time in {:?}", rounds[seen - 1]))?;
            // The line came between the last look and this one.
            first.get_or_insert((uptime, before..now));
            last = Some((uptime, before..now));
        }
        before = now;
        if let Some(wrong) = rounds.iter().find(|line| !line.contains(RESULTS)) {
            return Err(format!("{wrong} instead of {RESULTS}"));
        }
        if begun.elapsed() > Duration::from_secs(seconds + 240) {
            return Err(format!("only {seen} rounds:\n{serial}"));
        }
    }
    let (Some(first), Some(last)) = (first, last) else { return Err("no round was seen".into()) };
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
    let guest_time = last.0 - first.0;
    let (least, greatest) = (seconds(first.1.end, last.1.start), seconds(first.1.start, last.1.end));
    println!(
        "{switches} switches, {} rounds; {guest_time:.2} s in the guest, {least:.2} to {greatest:.2} s on the machine's \
         clock; a switch took {:?} at most, in which the threads concerned ran for {:?} and waited for a core for {:?}",
        seen - 1,
        most.0,
        most.1,
        most.2
    );
    // Between reading the time and writing the line the guest's processors may wait for the host's.
    let slack = 1.0 + greatest * 0.02;
    if !(least - slack..=greatest + slack).contains(&guest_time) {
        return Err(format!(
            "{guest_time:.2} s in the guest are {least:.2} to {greatest:.2} s of the machine"
        ));
    }
    Ok(())
}
