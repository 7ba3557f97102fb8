//! The smallest machine a processor runs in: RAM from address 0, no devices, ports that can be scripted.

use crate::engine;
use crate::system::lacks;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use trimaran_cpu::bus::{Bus, GeneralProtection, MemoryRange, Page};
use trimaran_cpu::engine::{Engine, EngineFactory, Stop};
use trimaran_cpu::model::Model;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::{CodeFence, attention};
use trimaran_cpu::{Vcpu, VcpuConfig};

/// See the head of this file. Port writes are logged; reads of any port give all ones.
pub struct FlatBus {
    ram_bytes: u64,
    /// Bits of a physical address that are looked at.
    lines: u64,
    /// (port, size, value) of every OUT.
    pub written: Mutex<Vec<(u16, u8, u32)>>,
    /// Vector that the next INTA gives.
    pub interrupt: AtomicU32,
    fence: Arc<CodeFence>,
    /// What each processor had retired at each of its accesses to devices and the clock.
    pub times: Mutex<Vec<u64>>,
    /// Range of physical addresses that is MMIO: reads give the address, writes are logged as port 0xFFFF.
    pub mmio: Range<u64>,
}

impl FlatBus {
    /// Requests an interrupt with `vector`.
    pub fn raise(&self, vector: u8) {
        self.interrupt.store(u32::from(vector), SeqCst);
        self.fence.vcpus[0].raise(attention::INTR);
    }

    /// Notes and returns what a processor says that it has retired.
    fn time(&self, cpu: usize) -> u64 {
        let now = self.fence.vcpus[cpu].retired.load(SeqCst);
        if let Ok(mut times) = self.times.lock() {
            times.push(now);
        }
        now
    }
}

impl Bus for FlatBus {
    fn page(&self, address: u64, _smm: bool) -> Page {
        let address = address & self.lines;
        if address < self.ram_bytes && !self.mmio.contains(&address) {
            Page::Ram { offset: address & !0xFFF, writable: true }
        } else {
            Page::Mmio
        }
    }
    fn memory_ranges(&self) -> Vec<MemoryRange> {
        let range = |start, end: u64| MemoryRange { start, len: end - start, offset: start, writable: true };
        let (below, above) = (self.mmio.start.min(self.ram_bytes), self.mmio.end.min(self.ram_bytes));
        match self.mmio.is_empty() {
            true => vec![range(0, self.ram_bytes)],
            false => vec![range(0, below), range(above, self.ram_bytes)],
        }
    }
    fn mmio_read(&self, cpu: usize, address: u64, size: u8) -> u64 {
        self.time(cpu);
        let value = if self.mmio.contains(&address) { address } else { u64::MAX };
        if size >= 8 { value } else { value & ((1 << (size * 8)) - 1) }
    }
    fn mmio_write(&self, cpu: usize, _address: u64, size: u8, value: u64) {
        self.time(cpu);
        if let Ok(mut log) = self.written.lock() {
            log.push((0xFFFF, size, value as u32));
        }
    }
    fn port_read(&self, cpu: usize, _port: u16, size: u8) -> u32 {
        self.time(cpu);
        if size >= 4 { u32::MAX } else { (1 << (size * 8)) - 1 }
    }
    fn port_write(&self, cpu: usize, port: u16, size: u8, value: u32) {
        self.time(cpu);
        if let Ok(mut log) = self.written.lock() {
            log.push((port, size, value));
        }
    }
    fn acknowledge_interrupt(&self, cpu: usize) -> Option<u8> {
        self.fence.vcpus[cpu].clear(attention::INTR);
        Some(self.interrupt.load(SeqCst) as u8)
    }
    fn clock(&self, cpu: usize) -> u64 {
        // One count an instruction, so that the time read is right only if the count is.
        self.time(cpu)
    }
    fn read_apic_msr(&self, _cpu: usize, _index: u32) -> Option<Result<u64, GeneralProtection>> {
        None
    }
    fn write_apic_msr(&self, _cpu: usize, _index: u32, _value: u64) -> Option<Result<(), GeneralProtection>> {
        None
    }
    fn task_priority(&self, _cpu: usize) -> u8 {
        0
    }
    fn set_task_priority(&self, _cpu: usize, _class: u8) {}
    fn random(&self) -> u64 {
        4
    }
    fn x87_error(&self, _cpu: usize) {}
}

/// The bus, RAM and what `count` processors need to run on them.
fn board(
    model: &str,
    ram_bytes: u64,
    lines: u64,
    mmio: Range<u64>,
    count: usize,
) -> (Arc<FlatBus>, Arc<Ram>, Vec<VcpuConfig>) {
    let ram = Arc::new(Ram::anonymous(ram_bytes));
    let fence = CodeFence::new(count);
    let bus = Arc::new(FlatBus {
        ram_bytes,
        lines,
        written: Mutex::default(),
        interrupt: AtomicU32::new(0),
        fence: fence.clone(),
        times: Mutex::default(),
        mmio,
    });
    let model = Model::parse(model).unwrap_or_else(|why| panic!("{why}"));
    let model = Arc::new(engine::model(&engine::name_from_environment(), model));
    let config = |id| VcpuConfig {
        id,
        model: model.clone(),
        ram: ram.clone(),
        bus: bus.clone(),
        fence: fence.clone(),
    };
    let configs = (0..count).map(config).collect();
    (bus, ram, configs)
}

/// A processor on a [`FlatBus`].
pub struct Flat {
    pub vcpu: Vcpu,
    pub bus: Arc<FlatBus>,
    pub ram: Arc<Ram>,
    config: VcpuConfig,
    /// What runs programs instead of `vcpu`.
    other: Option<Box<dyn Engine>>,
}

impl Flat {
    /// A processor that has everything, with `ram_bytes` of RAM.
    pub fn new(ram_bytes: u64) -> Self {
        Self::of("max", ram_bytes)
    }

    /// A processor of a model (as `--cpu` names them).
    pub fn of(model: &str, ram_bytes: u64) -> Self {
        Self::on_lines(model, ram_bytes, !0)
    }

    /// A processor with so many address lines: addresses wrap.
    pub fn with_address_lines(model: &str, ram_bytes: u64, lines: u32) -> Self {
        Self::on_lines(model, ram_bytes, (1 << lines) - 1)
    }

    fn on_lines(model: &str, ram_bytes: u64, lines: u64) -> Self {
        let (bus, ram, mut configs) = board(model, ram_bytes, lines, 0..0, 1);
        let config = configs.remove(0);
        Flat { vcpu: Vcpu::new(config.clone()), bus, ram, config, other: None }
    }

    /// Has programs run on the engine of a name (see [`crate::engine::named`]); the state stays that of `vcpu`.
    pub fn run_on(&mut self, name: &str) -> Result<(), String> {
        // These programs are short: a translator must not wait until they are warm.
        let factory = engine::eager(name, 1)?;
        self.other = (name != "interp").then(|| factory.create(self.config.clone()));
        Ok(())
    }

    /// Instructions that ran in translated code.
    pub fn translated(&self) -> u64 {
        self.other.as_deref().map_or(0, crate::differential::translated)
    }

    /// Runs up to `budget` instructions.
    pub fn run(&mut self, budget: u64) -> Stop {
        let Some(other) = &mut self.other else { return lacks::run(self, budget) };
        other.state().clone_from(self.vcpu.state_whole());
        other.state_changed();
        let stop = within(&self.bus.fence, || other.run(budget));
        self.vcpu.state.clone_from(other.state());
        self.vcpu.state_loaded();
        if let (Stop::Failed, Some(reason)) = (stop, other.failure()) {
            panic!("{REFUSED}{reason}");
        }
        stop
    }
}

/// Begins the words of the panic where an engine cannot go on.
pub const REFUSED: &str = "the engine refuses: ";

/// Calls `f`, and has the processor leave `run` after a while: KVM heeds no budget.
fn within(fence: &CodeFence, f: impl FnOnce() -> Stop) -> Stop {
    const LIMIT: Duration = Duration::from_secs(2);
    if engine::of_programs() != "kvm" {
        return f();
    }
    let (done, waits) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waits.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                fence.vcpus[0].raise(attention::STOP);
            }
        });
        let stop = f();
        drop(done);
        stop
    })
}

/// Processors of any engine on a [`FlatBus`].
pub struct Machine {
    pub engine: Box<dyn Engine>,
    /// The second and further processors; on them start-up has not happened.
    pub others: Vec<Box<dyn Engine>>,
    pub bus: Arc<FlatBus>,
    pub ram: Arc<Ram>,
    pub fence: Arc<CodeFence>,
    config: VcpuConfig,
}

impl Machine {
    /// One processor.
    pub fn new(factory: &dyn EngineFactory, ram_bytes: u64, mmio: Range<u64>) -> Self {
        Self::with_processors(factory, ram_bytes, mmio, 1)
    }

    pub fn with_processors(
        factory: &dyn EngineFactory,
        ram_bytes: u64,
        mmio: Range<u64>,
        count: usize,
    ) -> Self {
        let (bus, ram, configs) = board("max", ram_bytes, !0, mmio, count);
        let fence = bus.fence.clone();
        let config = configs[0].clone();
        let mut engines = configs.into_iter().map(|c| factory.create(c));
        let engine = engines.next().expect("at least one processor");
        Machine { engine, others: engines.collect(), bus, ram, fence, config }
    }

    /// A new engine takes over the first processor.
    pub fn renew(&mut self, factory: &dyn EngineFactory) {
        let mut engine = factory.create(self.config.clone());
        engine.state().clone_from(self.engine.state());
        engine.state_changed();
        self.engine = engine;
    }
}
