//! Small 64-bit programs on a [`Machine`], for tests and measurements: on one engine, or on every one, each of which
//! must end in the state that the interpreter ends in.

use crate::differential::TIERS;
use crate::differential::compare;
use crate::differential::kernel::{Mode, World, at};
use crate::engine::{eager, named};
use crate::flat::{FlatBus, Machine};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trimaran_cpu::engine::{Engine, EngineFactory, Stop};
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::{CodeFence, attention};
use trimaran_cpu::state::{Activity, CpuState, gpr};

pub const WORLD: World = World {
    mode: Mode::Long,
    cpl: 0,
    alias: 0x7FFF_0040_0000,
    write_protect: true,
    global: false,
    avx: false,
    fs: 0,
    gs: 0,
    touched: 0,
};

/// The interpreter, then the translators, which translate what runs for the second time.
pub fn engines() -> Vec<(&'static str, Arc<dyn EngineFactory>)> {
    let translator = |name| (name, eager(name, 2).expect("a tier"));
    let mut all = vec![("interp", named("interp").expect("the interpreter"))];
    all.extend(TIERS.into_iter().map(translator));
    all
}

pub type Program<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Assembles for 64-bit mode at an address and writes it there; returns the end.
pub fn write(m: &Machine, address: u64, f: Program) -> u64 {
    let mut a = CodeAssembler::new(64).expect("an assembler");
    f(&mut a).expect("an instruction");
    let bytes = a.assemble(address).expect("assembles");
    assert!(m.ram.write(address, &bytes));
    address + bytes.len() as u64
}

/// A machine of `count` processors in 64-bit mode; all start at [`at::CODE`] with zeroed registers.
pub fn machine(factory: &dyn EngineFactory, count: usize) -> Machine {
    let mut m = Machine::with_processors(factory, at::RAM, at::MMIO..at::MMIO + 0x2000, count);
    for (address, bytes) in WORLD.images(&[]) {
        assert!(m.ram.write(address, &bytes));
    }
    enter(&mut *m.engine, at::CODE, at::STACK);
    for other in &mut m.others {
        enter(&mut **other, at::CODE, at::STACK - 0x1000);
    }
    m
}

/// Sets a processor to the start of a program.
pub fn enter(engine: &mut dyn Engine, rip: u64, stack: u64) {
    let s = engine.state();
    WORLD.enter(s);
    s.gpr[..16].fill(0);
    s.gpr[gpr::RIP] = rip;
    s.gpr[gpr::RSP] = stack;
    s.activity = Activity::Running;
    engine.state_changed();
}

/// Runs a program at [`at::CODE`] to its HLT on every engine, `slice` instructions at a time, and asserts that all
/// agree at every stop. Returns the interpreter's machine.
pub fn everywhere(slice: u64, prepare: &dyn Fn(&Machine), program: Program) -> Machine {
    let mut reference = None;
    for (name, factory) in engines() {
        let mut m = machine(&*factory, 1);
        prepare(&m);
        write(&m, at::CODE, program);
        let mut states = Vec::new();
        let end = (0..2_000_000 / slice + 1).find(|_| {
            let stop = m.engine.run(slice);
            states.push((stop, m.engine.state().clone()));
            stop != Stop::Budget
        });
        assert!(end.is_some(), "{name}: no HLT; RIP {:#x}", m.engine.state().rip());
        let Some((want, wanted)) = &reference else {
            reference = Some((m, states));
            continue;
        };
        for (n, (a, b)) in wanted.iter().zip(&states).enumerate() {
            let differences = compare::states(&a.1, &b.1);
            assert!(
                a.0 == b.0 && differences.is_empty(),
                "{name}, stop {n}: {:?} {differences:#?}",
                (a.0, b.0)
            );
        }
        assert_eq!(wanted.len(), states.len(), "{name}");
        let mut differences = compare::memories(&WORLD.page_tables(), want, &m);
        differences.extend(compare::access_times(want, &m));
        assert!(differences.is_empty(), "{name}: {differences:#?}");
    }
    reference.expect("the interpreter ran").0
}

/// A register of the machine that [`everywhere`] returned.
pub fn register(m: &mut Machine, n: usize) -> u64 {
    m.engine.state().gpr[n]
}

/// Runs until the processor halts; a panic after 20 seconds. Safe for loops that never end: it asks them to stop.
pub fn until_halted(m: &mut Machine, what: &str, meanwhile: impl FnOnce(&Shared) + Send) -> CpuState {
    let shared = Shared { ram: m.ram.clone(), bus: m.bus.clone(), fence: m.fence.clone() };
    let engine = &mut m.engine;
    let others = &mut m.others;
    let (stop, rip) = std::thread::scope(|scope| {
        let processors: Vec<_> = others.iter_mut().map(|o| scope.spawn(move || o.run(u64::MAX))).collect();
        let first = scope.spawn(move || {
            let stop = engine.run(u64::MAX);
            (stop, engine.state().rip())
        });
        meanwhile(&shared);
        let end = Instant::now() + Duration::from_secs(20);
        let running = || !first.is_finished() || processors.iter().any(|p| !p.is_finished());
        while running() {
            if Instant::now() > end {
                shared.fence.vcpus.iter().for_each(|v| v.raise(attention::STOP));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        first.join().expect("the first processor's thread")
    });
    assert_eq!(stop, Stop::Halted, "{what}: stopped at {rip:#x}");
    m.engine.state().clone()
}

/// What a test's thread may touch while processors run.
pub struct Shared {
    pub ram: Arc<Ram>,
    pub bus: Arc<FlatBus>,
    pub fence: Arc<CodeFence>,
}

/// A quadword of RAM.
pub fn quad(m: &Machine, address: u64) -> u64 {
    let mut bytes = [0; 8];
    assert!(m.ram.read(address, &mut bytes));
    u64::from_le_bytes(bytes)
}

/// What the kernel logged of one exception or interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged {
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub flags: u64,
    pub cr2: u64,
    pub rcx: u64,
}

/// The log, in order.
pub fn logged(m: &Machine) -> Vec<Logged> {
    let end = quad(m, at::LOG_AT);
    let entry = |at: u64| {
        let word = |n: u64| quad(m, at + n * 8);
        // R15 first, RAX last; then vector, error code and the processor's frame.
        let (rcx, cr2) = (word(13), word(22));
        Logged { vector: word(15), error: word(16), rip: word(17), flags: word(19), cr2, rcx }
    };
    (at::LOG..end).step_by(23 * 8).map(entry).collect()
}
