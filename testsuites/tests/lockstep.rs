//! Two engines in lock-step: a wrong one is found at its first wrong instruction, right ones are the same throughout.

use std::sync::Arc;
use std::time::Duration;
use trimaran_accel::Kvm;
use trimaran_cpu::VcpuConfig;
use trimaran_cpu::engine::{Around, Engine, EngineFactory, Interpreter, Stop};
use trimaran_cpu::model::Model;
use trimaran_cpu::state::{CpuState, RFlags, gpr};
use trimaran_machine::access_lockstep::{self, AccessLockstep};
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::lockstep::{Difference, Limits, Lockstep, Verdict};
use trimaran_machine::{Machine, MachineConfig, Outcome, builtin, firmware};
use trimaran_testsuites::{engine, modes_guest};

/// An engine with one mistake: after so many instructions it does something to the state or to memory.
#[derive(Clone)]
struct Wrong {
    engine: Arc<dyn EngineFactory>,
    at: u64,
    mistake: fn(&mut CpuState, &VcpuConfig),
}

struct WrongEngine {
    engine: Box<dyn Engine>,
    config: VcpuConfig,
    wrong: Wrong,
}

impl EngineFactory for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }
    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        Box::new(WrongEngine { engine: self.engine.create(config.clone()), config, wrong: self.clone() })
    }
}

impl Around for WrongEngine {
    fn inner(&self) -> &dyn Engine {
        &*self.engine
    }
    fn inner_mut(&mut self) -> &mut dyn Engine {
        &mut *self.engine
    }
    fn run_around(&mut self, budget: u64) -> Stop {
        let before = self.engine.state().retired;
        if before >= self.wrong.at {
            return self.engine.run(budget);
        }
        let stop = self.engine.run(budget.min(self.wrong.at - before));
        if self.engine.state().retired == self.wrong.at {
            (self.wrong.mistake)(self.engine.state(), &self.config);
            self.engine.state_changed();
        }
        stop
    }
    fn name_around(&self) -> &'static str {
        "wrong"
    }
}

fn compare(config: impl Fn() -> MachineConfig, b: Arc<dyn EngineFactory>, limits: Limits) -> Verdict {
    let engines: [Arc<dyn EngineFactory>; 2] = [Arc::new(Interpreter), b];
    let machines = engines.each_ref().map(|engine| Machine::new(config(), engine).unwrap());
    Lockstep::new(machines, engines, Vec::new()).unwrap().run(&limits, |_| ()).unwrap()
}

fn limits(every: u64, instructions: u64) -> Limits {
    Limits { every, instructions, time: Duration::from_secs(600) }
}

fn found(at: u64, every: u64, mistake: fn(&mut CpuState, &VcpuConfig)) -> Difference {
    let engine = engine::eager("jit", 2).unwrap();
    let wrong = Arc::new(Wrong { engine, at, mistake });
    match compare(|| modes_guest::config(200).unwrap(), wrong, limits(every, u64::MAX)) {
        Verdict::Different(difference) => *difference,
        other => panic!("a mistake at {at} is not found: {other:?}"),
    }
}

#[test]
fn a_wrong_instruction_is_found() {
    let difference = found(1_234_567, 50_000, |state, _| state.rflags.toggle(RFlags::ID));
    // The last instruction that was right has count 1,234,566; the one after it is the first that is not.
    assert_eq!(difference.before.retired, 1_234_566);
    let [a, mut b] = difference.after;
    assert_ne!(a, b);
    b.rflags.toggle(RFlags::ID);
    assert_eq!(a, b);
    assert!(!difference.code.is_empty() && difference.memory.is_none() && difference.chips.is_empty());
}

/// A flag that the next instruction overwrites: only a comparison after each instruction sees that.
#[test]
fn a_wrong_flag_that_nobody_uses_is_found() {
    let difference = found(1_500, 1, |state, _| state.rflags.toggle(RFlags::CF));
    assert_eq!(difference.before.retired, 1_499);
}

/// Nobody looks at this byte: only the comparison of all memory sees it, much later.
#[test]
fn a_wrong_store_is_found() {
    let difference = found(2_000_001, 300_000, |_, config| _ = config.ram.write(0x50_0003, &[0xAB]));
    assert_eq!(difference.before.retired, 2_000_000);
    assert_eq!(difference.memory, Some((0x50_0003, [0, 0xAB])));
    assert_eq!(difference.after[0], difference.after[1]);
}

#[test]
fn a_wrong_access_to_a_device_is_found() {
    let difference = found(700_000, 100_000, |_, config| config.bus.port_write(0, 0x3FF, 1, 0x5A));
    assert_eq!(difference.before.retired, 699_999);
    assert_eq!(difference.chips, ["com1"]);
}

/// What halts differently is found too, and time that nobody runs in is no obstacle.
#[test]
fn a_wrong_register_long_before_the_end() {
    let difference = found(4_000, 1_000_000, |state, _| state.gpr[gpr::RBX] += 1);
    assert_eq!(difference.before.retired, 3_999);
}

#[test]
fn right_engines_are_the_same() {
    let long = std::env::var_os("TRIMARAN_LONG").is_some();
    let jit = || engine::named("jit").unwrap();
    let same = |what: &str, verdict: Verdict| match verdict {
        Verdict::Same { instructions, outcome } => {
            println!("{what}: the same in {instructions} instructions, {outcome:?}");
        }
        other => panic!("{what}: {other:?}"),
    };
    let image = builtin::image(&builtin::Options { engine: String::new(), smoke: true }).unwrap();
    let built_in = || MachineConfig {
        memory: 16 << 20,
        deterministic: true,
        direct: Some(DirectBoot::builtin(image.clone())),
        ..MachineConfig::default()
    };
    same("built-in guest", compare(built_in, jit(), limits(100_000, u64::MAX)));
    same("all modes", compare(|| modes_guest::config(200).unwrap(), jit(), limits(20_000, u64::MAX)));
    let Some((bios, vga)) = firmware::find_seabios() else {
        println!("skipped: Debian package seabios is not installed");
        return;
    };
    let seabios = || MachineConfig {
        memory: 32 << 20,
        cpus: 2,
        deterministic: true,
        firmware: std::fs::read(&bios).ok(),
        vga_bios: std::fs::read(&vga).ok(),
        ..MachineConfig::default()
    };
    same("SeaBIOS", compare(seabios, jit(), limits(200_000, if long { 10_000_000 } else { 2_700_000 })));
}

fn at_accesses(
    config: impl Fn() -> MachineConfig,
    leader: Arc<dyn EngineFactory>,
    follower: Arc<dyn EngineFactory>,
) -> access_lockstep::Verdict {
    let mut lockstep = AccessLockstep::new([config(), config()], [leader, follower]).unwrap();
    lockstep.run(Duration::from_secs(120), |_| ()).unwrap()
}

fn short(mark: &access_lockstep::Mark) -> String {
    let state = &mark.state;
    format!("{} {:?} {:x?} {:?} {:x?}", mark.accesses, mark.stop, state.gpr, state.rflags, state.x87)
}

fn same_to_the_end(verdict: &access_lockstep::Verdict) -> u64 {
    match verdict {
        access_lockstep::Verdict::Same { accesses, outcome: Some(Outcome::DebugExit(1)) } => *accesses,
        access_lockstep::Verdict::Different(difference) => panic!(
            "different after {} accesses and {:x?}, {:x?}: {:?}",
            difference.accesses,
            difference.before.gpr,
            difference.code,
            difference.after.as_ref().map(|marks| marks.each_ref().map(short))
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn right_engines_are_the_same_at_accesses() {
    let (interp, jit) = (engine::named("interp").unwrap(), engine::named("jit").unwrap());
    let verdict = at_accesses(|| modes_guest::config(50).unwrap(), jit, interp);
    assert!(same_to_the_end(&verdict) > 20);
}

#[test]
fn a_wrong_register_is_found_at_the_next_access() {
    let engine = engine::named("interp").unwrap();
    let mistake: fn(&mut CpuState, &VcpuConfig) = |state, _| state.gpr[gpr::RBP] ^= 1;
    let wrong = Arc::new(Wrong { engine: engine.clone(), at: 5_000, mistake });
    match at_accesses(|| modes_guest::config(50).unwrap(), wrong, engine) {
        access_lockstep::Verdict::Different(difference) => {
            let [leader, follower] = difference.after.expect("the processors differ");
            assert_ne!(leader.state.gpr[gpr::RBP], follower.state.gpr[gpr::RBP]);
            assert_eq!((leader.accesses, leader.stop), (follower.accesses, follower.stop));
            assert!(!difference.code.is_empty());
        }
        other => panic!("a wrong register is not found: {other:?}"),
    }
}

/// Whatever the host's KVM runs itself, with the interpreter in its wake.
#[test]
fn kvm_and_the_interpreter_are_the_same_at_accesses() {
    let kvm = match Kvm::open() {
        Ok(kvm) => kvm,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let model = Arc::new(kvm.reduce(&Model::default()));
    let config = || MachineConfig { model: model.clone(), ..modes_guest::config(3).unwrap() };
    let verdict = at_accesses(config, Arc::new(kvm), Arc::new(Interpreter));
    println!("the same at {} accesses", same_to_the_end(&verdict));
}
