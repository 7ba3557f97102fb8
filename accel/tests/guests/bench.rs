//! The machine that the guests run in: RAM, a ROM, scripted ports, device memory, an interrupt line.

use iced_x86::code_asm::CodeAssembler;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use trimaran_accel::{Kvm, Trial};
use trimaran_cpu::VcpuConfig;
use trimaran_cpu::bus::{Bus, GeneralProtection, MemoryRange, Page};
use trimaran_cpu::engine::{Engine, EngineFactory, Interpreter, Stop};
use trimaran_cpu::model::Model;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::{CodeFence, attention};
use trimaran_cpu::state::{CpuState, Segment, TableRegister, attr, cr0, cr4, efer, gpr, seg};

/// RAM from 0; the ROM's bytes follow in [`Ram`].
pub const RAM: u64 = 0x20_0000;
pub const ROM: u64 = 0xF_0000;
pub const ROM_BYTES: u64 = 0x1_0000;
/// Device memory: reads give the address, writes are logged.
pub const MMIO: u64 = 0xE_0000;
pub const CODE: u64 = 0x1000;
pub const STACK: u64 = 0x8000;
pub const GDT: u64 = 0x9000;
pub const TABLES: u64 = 0x1_0000;
/// A write here ends the run that makes it.
pub const STOP_PORT: u16 = 0x90;
/// A write here moves the ROM's place to RAM and back.
pub const MAP_PORT: u16 = 0x92;

pub const LIMIT: Duration = Duration::from_secs(20);

/// The host's KVM, or None after having said why not.
pub fn kvm() -> Option<Arc<Kvm>> {
    static KVM: OnceLock<Option<Arc<Kvm>>> = OnceLock::new();
    let kvm = KVM.get_or_init(|| match Kvm::open() {
        Ok(kvm) => Some(Arc::new(kvm)),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    });
    kvm.clone()
}

/// As [`kvm`], if the trials work there.
pub fn kvm_with(trials: &[Trial]) -> Option<Arc<Kvm>> {
    let kvm = kvm()?;
    if let Some(missing) = kvm.report().missing.iter().find(|missing| trials.contains(&missing.trial)) {
        println!("skipped: the host's KVM cannot run {}: {}", missing.trial, missing.reason);
        return None;
    }
    Some(kvm)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Out(u16, u8, u32),
    In(u16, u8),
    Read(u64, u8),
    Write(u64, u8, u64),
}

pub struct BenchBus {
    pub log: Mutex<Vec<Access>>,
    pub vectors: Mutex<VecDeque<u8>>,
    pub priority: AtomicU64,
    apic_base: AtomicU64,
    ram_there: AtomicBool,
    begun: Instant,
    khz: u32,
    fence: Arc<CodeFence>,
}

impl BenchBus {
    fn note(&self, access: Access) {
        self.log.lock().unwrap().push(access);
    }

    /// Requests an interrupt.
    pub fn request(&self, cpu: usize, vector: u8) {
        self.vectors.lock().unwrap().push_back(vector);
        self.fence.vcpus[cpu].raise(attention::INTR);
    }
}

impl Bus for BenchBus {
    fn page(&self, address: u64, _: bool) -> Page {
        let ranges = self.memory_ranges();
        let range = ranges.iter().find(|r| (r.start..r.start + r.len).contains(&address));
        range.map_or(Page::Mmio, |r| Page::Ram { offset: address - r.start + r.offset, writable: r.writable })
    }
    fn memory_ranges(&self) -> Vec<MemoryRange> {
        let range = |start, len, offset, writable| MemoryRange { start, len, offset, writable };
        let rom = match self.ram_there.load(SeqCst) {
            true => range(ROM, ROM_BYTES, ROM, true),
            false => range(ROM, ROM_BYTES, RAM, false),
        };
        let above = ROM + ROM_BYTES;
        vec![range(0, MMIO, 0, true), rom, range(above, RAM - above, above, true)]
    }
    fn mmio_read(&self, _: usize, address: u64, size: u8) -> u64 {
        self.note(Access::Read(address, size));
        if size == 8 { address } else { address & ((1 << (size * 8)) - 1) }
    }
    fn mmio_write(&self, _: usize, address: u64, size: u8, value: u64) {
        self.note(Access::Write(address, size, value));
    }
    fn port_read(&self, _: usize, port: u16, size: u8) -> u32 {
        self.note(Access::In(port, size));
        u32::from(port) * 0x0101
    }
    fn port_write(&self, cpu: usize, port: u16, size: u8, value: u32) {
        self.note(Access::Out(port, size, value));
        match port {
            STOP_PORT => self.fence.vcpus[cpu].raise(attention::STOP),
            MAP_PORT => {
                self.ram_there.store(value & 1 != 0, SeqCst);
                self.fence.vcpus.iter().for_each(|vcpu| vcpu.raise(attention::REMAP));
            }
            _ => {}
        }
    }
    fn acknowledge_interrupt(&self, cpu: usize) -> Option<u8> {
        let mut vectors = self.vectors.lock().unwrap();
        let vector = vectors.pop_front();
        if vectors.is_empty() {
            self.fence.vcpus[cpu].clear(attention::INTR);
        }
        vector
    }
    fn clock(&self, _: usize) -> u64 {
        (self.begun.elapsed().as_nanos() * u128::from(self.khz) / 1_000_000) as u64
    }
    fn read_apic_msr(&self, _: usize, index: u32) -> Option<Result<u64, GeneralProtection>> {
        match index {
            0x1B => Some(Ok(self.apic_base.load(SeqCst))),
            0x808 => Some(Ok(0x77)),
            0x800..=0x8FF => Some(Err(GeneralProtection)),
            _ => None,
        }
    }
    fn write_apic_msr(&self, _: usize, index: u32, value: u64) -> Option<Result<(), GeneralProtection>> {
        if index == 0x1B {
            self.apic_base.store(value, SeqCst);
            return Some(Ok(()));
        }
        (0x800..=0x8FF).contains(&index).then_some(Err(GeneralProtection))
    }
    fn task_priority(&self, _: usize) -> u8 {
        self.priority.load(SeqCst) as u8
    }
    fn set_task_priority(&self, _: usize, class: u8) {
        self.priority.store(u64::from(class), SeqCst);
    }
    fn random(&self) -> u64 {
        4
    }
    fn x87_error(&self, _: usize) {}
    fn cpu_count(&self) -> usize {
        self.fence.vcpus.len()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    Protected,
    Long,
}

/// A machine and its engines.
pub struct Bench {
    pub ram: Arc<Ram>,
    pub bus: Arc<BenchBus>,
    pub fence: Arc<CodeFence>,
    pub engines: Vec<Box<dyn Engine>>,
}

impl Bench {
    pub fn new(kvm: &Arc<Kvm>, cpus: usize) -> Self {
        Self::with(&**kvm, &kvm.reduce(&Model::default()), cpus)
    }

    /// The same machine on the interpreter.
    pub fn interpreted(kvm: &Arc<Kvm>) -> Self {
        Self::with(&Interpreter, &kvm.reduce(&Model::default()), 1)
    }

    fn with(factory: &dyn EngineFactory, model: &Model, cpus: usize) -> Self {
        let ram = Arc::new(Ram::anonymous(RAM + ROM_BYTES));
        let fence = CodeFence::new(cpus);
        let bus = Arc::new(BenchBus {
            log: Mutex::default(),
            vectors: Mutex::default(),
            priority: AtomicU64::new(0),
            apic_base: AtomicU64::new(0xFEE0_0900),
            ram_there: AtomicBool::new(false),
            begun: Instant::now(),
            khz: model.tsc_khz,
            fence: fence.clone(),
        });
        let model = Arc::new(model.clone());
        let config = |id| VcpuConfig {
            id,
            model: model.clone(),
            ram: ram.clone(),
            bus: bus.clone(),
            fence: fence.clone(),
        };
        let engines = (0..cpus).map(|id| factory.create(config(id))).collect();
        let bench = Bench { ram, bus, fence, engines };
        bench.ram.write(RAM, b"This is the ROM.");
        bench
    }

    pub fn put(&self, at: u64, value: u64) {
        self.ram.write(at, &value.to_le_bytes());
    }

    pub fn get(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Assembles a program to an address.
    pub fn place(
        &self,
        bits: u32,
        at: u64,
        f: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) {
        let mut a = CodeAssembler::new(bits).unwrap();
        f(&mut a).unwrap();
        self.ram.write(at, &a.assemble(at).unwrap());
    }

    /// The first processor will start at [`CODE`] in a mode, at CPL 0 with IOPL 3.
    pub fn start(&mut self, mode: Mode) {
        let state = self.prepared(mode, 0);
        self.set_state(state);
    }

    pub fn set_state(&mut self, state: CpuState) {
        *self.engines[0].state() = state;
        self.engines[0].state_changed();
    }

    /// Writes tables for a mode.
    pub fn prepared(&self, mode: Mode, cpl: u8) -> CpuState {
        let mut s = CpuState::reset(0, true);
        (s.gpr[gpr::RIP], s.gpr[gpr::RSP]) = (CODE, STACK);
        s.rflags |= trimaran_cpu::state::RFlags::IOPL;
        s.seg[seg::CS] = Segment { base: 0, selector: 0, ..s.seg[seg::CS] };
        if mode == Mode::Real {
            return s;
        }
        let long = mode == Mode::Long;
        let size = if long { attr::L } else { attr::DB };
        let dpl = u16::from(cpl) << 5;
        let code = attr::P | attr::S | attr::CODE | attr::RW | attr::A | attr::G | size;
        let data = attr::P | attr::S | attr::RW | attr::A | attr::G | attr::DB;
        let flat = |kind: u16| 0xFFFF | u64::from(kind) << 40 | 0xF << 48;
        let entries = [0, flat(code), flat(data), flat(data | 0x60), flat(code | 0x60)];
        (0..).zip(entries).for_each(|(n, entry)| self.put(GDT + n * 8, entry));
        s.gdtr = TableRegister { base: GDT, limit: 0x3F };
        s.tr = Segment { selector: 0x28, attributes: attr::P | 11, limit: 0x67, base: 0xB000 };
        let (cs, ds) = if cpl == 0 { (8, 0x10) } else { (0x23, 0x1B) };
        let segment = |selector, attributes| Segment { selector, attributes, limit: !0, base: 0 };
        s.seg[seg::CS] = segment(cs, code | dpl);
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            s.seg[n] = segment(ds, data | dpl);
        }
        s.cpl = cpl;
        s.cr0 = cr0::PE | cr0::ET | cr0::NE;
        s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
        if long {
            // The first 2 MiB to themselves, for everybody.
            self.put(TABLES, (TABLES + 0x1000) | 7);
            self.put(TABLES + 0x1000, (TABLES + 0x2000) | 7);
            self.put(TABLES + 0x2000, 0x87);
            s.cr4 |= cr4::PAE;
            s.msr.efer = efer::LME | efer::LMA | efer::SCE;
            s.cr0 |= cr0::PG | cr0::WP;
            s.cr3 = TABLES;
        }
        s
    }

    /// Runs the first processor until it stops for another reason than being asked by nobody.
    pub fn run(&mut self) -> Stop {
        let watchdog = Watchdog::new(&self.fence);
        let stop = self.engines[0].run(u64::MAX);
        assert!(!watchdog.barked(), "the guest ran for {LIMIT:?}: {:x?}", self.engines[0].state());
        stop
    }

    pub fn state(&mut self) -> CpuState {
        self.engines[0].state().clone()
    }

    pub fn log(&self) -> Vec<Access> {
        self.bus.log.lock().unwrap().clone()
    }
}

/// Stops all processors after [`LIMIT`]: no guest hangs the tests.
pub struct Watchdog {
    barked: Arc<AtomicBool>,
    _done: std::sync::mpsc::Sender<()>,
}

impl Watchdog {
    pub fn new(fence: &Arc<CodeFence>) -> Self {
        let (done, waits) = std::sync::mpsc::channel::<()>();
        let barked = Arc::new(AtomicBool::new(false));
        let (fence, flag) = (fence.clone(), barked.clone());
        std::thread::spawn(move || {
            if waits.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                flag.store(true, SeqCst);
                fence.vcpus.iter().for_each(|vcpu| vcpu.raise(attention::STOP));
            }
        });
        Watchdog { barked, _done: done }
    }
    pub fn barked(&self) -> bool {
        self.barked.load(SeqCst)
    }
}
