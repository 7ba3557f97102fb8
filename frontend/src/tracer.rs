//! `trace on`: an engine that interprets one instruction at a time and writes down what each does.

use crate::disassembly::{Disassembler, LONGEST, bitness};
use anyhow::{Context, bail, ensure};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trimaran_cpu::bus::{Bus, GeneralProtection, MemoryRange, Page};
use trimaran_cpu::engine::{Around, Engine, EngineFactory, Stop};
use trimaran_cpu::ram::{PAGE, Ram};
use trimaran_cpu::state::CpuState;
use trimaran_cpu::trace::{MemoryAccess, StepLog};
use trimaran_cpu::{Vcpu, VcpuConfig};

/// What the engine is called.
pub const NAME: &str = "trace";
/// Where a trace goes that no file is named for.
const FILE: &str = "trimaran.trace";
/// A trace grows by about 100 MB a second; it ends at this size.
const MOST: u64 = 4 << 30;

/// What is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    insn: bool,
    mem: bool,
    io: bool,
    /// Linear addresses of instructions.
    rip: RangeInclusive<u64>,
    cpu: Option<usize>,
}

impl Filter {
    /// Reads `[insn,mem,io] [rip=FROM-TO] [cpu=N] [FILE]`.
    pub fn parse(text: &str) -> anyhow::Result<(Self, PathBuf)> {
        let mut filter = Filter { insn: false, mem: false, io: false, rip: 0..=u64::MAX, cpu: None };
        let mut file = None;
        for word in text.split_whitespace() {
            if let Some(range) = word.strip_prefix("rip=") {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                let number = |text| crate::cli::parse_address(text).map_err(anyhow::Error::msg);
                filter.rip = number(from)?..=number(to)?;
                ensure!(!filter.rip.is_empty(), "{word}: the first address is above the last");
            } else if let Some(number) = word.strip_prefix("cpu=") {
                filter.cpu = Some(number.parse().with_context(|| format!("`{number}` is no processor"))?);
            } else if word.split(',').all(|kind| matches!(kind, "insn" | "mem" | "io")) {
                filter.insn |= word.contains("insn");
                filter.mem |= word.contains("mem");
                filter.io |= word.contains("io");
            } else if file.is_none() {
                file = Some(PathBuf::from(word));
            } else {
                bail!("`{word}` is no filter: there are insn, mem, io, rip=FROM-TO, cpu=N, and one file");
            }
        }
        if !(filter.insn || filter.mem || filter.io) {
            (filter.insn, filter.mem, filter.io) = (true, true, true);
        }
        Ok((filter, file.unwrap_or_else(|| FILE.into())))
    }
}

/// The words of `--trace-steps`, if they make sense.
pub fn check(words: &str) -> Result<String, String> {
    Filter::parse(words).map(|_| words.to_owned()).map_err(|error| format!("{error:#}"))
}

/// The file that a trace is written to.
pub struct Sink {
    path: PathBuf,
    state: Mutex<Writing>,
}

struct Writing {
    file: BufWriter<File>,
    bytes: u64,
    failure: Option<io::Error>,
}

impl Sink {
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let writing = Writing { file: BufWriter::with_capacity(1 << 20, file), bytes: 0, failure: None };
        Ok(Sink { path: path.into(), state: Mutex::new(writing) })
    }

    fn lock(&self) -> MutexGuard<'_, Writing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Text that does not fit any more is left out.
    fn write(&self, text: &str) {
        let mut state = self.lock();
        if state.failure.is_some() || state.bytes >= MOST {
            return;
        }
        state.bytes += text.len() as u64;
        if let Err(error) = state.file.write_all(text.as_bytes()) {
            state.failure = Some(error);
        }
    }

    /// Writes what is left; says what has become of the file.
    pub fn finish(&self) -> anyhow::Result<String> {
        let mut state = self.lock();
        let flushed = state.file.flush();
        let result = state.failure.take().map_or(flushed, Err);
        result.with_context(|| format!("{} is not whole", self.path.display()))?;
        let full = if state.bytes >= MOST { ", which is the most: the rest is left out" } else { "" };
        Ok(format!("{} has {} bytes{full}\n", self.path.display(), state.bytes))
    }
}

/// Makes engines that trace.
pub struct Tracing {
    filter: Filter,
    pub sink: Arc<Sink>,
}

impl Tracing {
    /// An engine that writes what the words say (see [`Filter::parse`]), and the file's name.
    pub fn create(words: &str) -> anyhow::Result<(Self, PathBuf)> {
        let (filter, path) = Filter::parse(words)?;
        Ok((Tracing { filter, sink: Arc::new(Sink::create(&path)?) }, path))
    }
}

impl EngineFactory for Tracing {
    fn name(&self) -> &'static str {
        NAME
    }
    fn create(&self, config: VcpuConfig) -> Box<dyn Engine> {
        if self.filter.cpu.is_some_and(|cpu| cpu != config.id) {
            return Box::new(Vcpu::new(config));
        }
        let bus = Arc::new(Watched { bus: config.bus.clone(), seen: Mutex::default() });
        let ram = config.ram.clone();
        let mut vcpu = Box::new(Vcpu::new(VcpuConfig { bus: bus.clone(), ..config }));
        vcpu.log_steps(true);
        let (filter, sink) = (self.filter.clone(), self.sink.clone());
        Box::new(Tracer { vcpu, bus, ram, filter, sink })
    }
}

/// An interpreter with its trace.
struct Tracer {
    vcpu: Box<Vcpu>,
    bus: Arc<Watched>,
    ram: Arc<Ram>,
    filter: Filter,
    sink: Arc<Sink>,
}

/// The registers whose changes are shown.
const REGISTERS: [&str; 43] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rflags", "es", "cs", "ss", "ds", "fs", "gs", "cr0", "cr2", "cr3", "cr4", "xmm0", "xmm1", "xmm2",
    "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
    "xmm15",
];

/// The values of [`REGISTERS`].
fn registers(state: &CpuState) -> [u128; REGISTERS.len()] {
    let mut list = [0; REGISTERS.len()];
    let segments = state.seg[..6].iter().map(|s| u64::from(s.selector));
    let control = [state.cr0, state.cr2, state.cr3, state.cr4];
    let plain = state.gpr[..16].iter().copied().chain([state.rflags.bits()]).chain(segments).chain(control);
    let vectors = state.zmm[..16].iter().map(|z| u128::from(z[1]) << 64 | u128::from(z[0]));
    let values = plain.map(u128::from).chain(vectors);
    list.iter_mut().zip(values).for_each(|(place, value)| *place = value);
    list
}

impl Tracer {
    /// Bytes of RAM from a linear address on, as many as there are; their number.
    fn read(&mut self, linear: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let at = linear.wrapping_add(done as u64);
            let Some(physical) = self.vcpu.probe(at) else { break };
            let Page::Ram { offset, .. } = self.bus.bus.page(physical, self.vcpu.state.smm) else { break };
            let part = ((PAGE - physical % PAGE) as usize).min(buf.len() - done);
            if !self.ram.read(offset + physical % PAGE, &mut buf[done..done + part]) {
                break;
            }
            done += part;
        }
        done
    }

    fn code(&mut self, address: u64) -> Vec<u8> {
        let mut bytes = [0; LONGEST];
        let there = self.read(address, &mut bytes);
        bytes[..there].to_vec()
    }

    /// Runs one instruction, or delivers what comes before it, and writes that down.
    fn step(&mut self, disassembler: &mut Disassembler) -> Stop {
        let state = self.vcpu.state_whole();
        let (retired, expected, bits) = (state.retired, state.code_address(), bitness(state));
        let before = registers(state);
        let code = self.code(expected);
        let stop = self.vcpu.run(1);
        let log = self.vcpu.take_step_log().unwrap_or_default();
        let seen = std::mem::take(&mut *self.bus.lock());
        let Some(address) = log.instruction.or((!log.vectors.is_empty()).then_some(expected)) else {
            return stop;
        };
        if !self.filter.rip.contains(&address) {
            return stop;
        }
        // An interrupt came first if another instruction ran than stood there.
        let interrupted = log.instruction != Some(expected);
        let mut text = String::new();
        let cpu = self.vcpu.id;
        if self.filter.insn && interrupted {
            vectors(&mut text, cpu, &log);
        }
        if self.filter.insn && log.instruction.is_some() {
            let (code, bits) =
                if interrupted { (self.code(address), bitness(&self.vcpu.state)) } else { (code, bits) };
            let line = disassembler.line(bits, &code, address).0;
            let _ = write!(text, "{cpu} {retired:>12} {address:016x} {line:<55}");
            let after = registers(self.vcpu.state_whole());
            for ((name, new), old) in REGISTERS.iter().zip(after).zip(before) {
                if new != old {
                    let _ = write!(text, " {name}={new:x}");
                }
            }
            text.push('\n');
        }
        if self.filter.mem {
            log.accesses.iter().for_each(|access| self.memory(&mut text, access));
        }
        if self.filter.io {
            seen.iter().for_each(|access| _ = writeln!(text, "{cpu} {:>12} {access}", "io"));
        }
        if self.filter.insn && !interrupted {
            vectors(&mut text, cpu, &log);
        }
        self.sink.write(&text);
        stop
    }

    fn memory(&mut self, text: &mut String, access: &MemoryAccess) {
        let MemoryAccess { address, size, write, value } = *access;
        let mut bytes = [0; 16];
        let len = (size as usize).min(bytes.len());
        let there = value.is_some() || self.read(address, &mut bytes[..len]) == len;
        let value = there.then(|| value.map_or(u128::from_le_bytes(bytes), u128::from));
        let digits =
            value.map_or("?".to_owned(), |value| format!("{value:0width$x}", width = size as usize * 2));
        let kind = if write { "write" } else { "read" };
        let _ = writeln!(text, "{} {:>12} {kind} {size} at {address:016x} = {digits}", self.vcpu.id, "mem");
    }
}

fn vectors(text: &mut String, cpu: usize, log: &StepLog) {
    for vector in &log.vectors {
        let _ = writeln!(text, "{cpu} {:>12} vector {vector:02x}", "event");
    }
}

impl Around for Tracer {
    fn inner(&self) -> &dyn Engine {
        &*self.vcpu
    }
    fn inner_mut(&mut self) -> &mut dyn Engine {
        &mut *self.vcpu
    }
    fn run_around(&mut self, budget: u64) -> Stop {
        let mut disassembler = Disassembler::new();
        for _ in 0..budget {
            let stop = self.step(&mut disassembler);
            if stop != Stop::Budget {
                return stop;
            }
        }
        Stop::Budget
    }
    fn name_around(&self) -> &'static str {
        NAME
    }
}

/// The machine's bus; accesses to devices are noted.
struct Watched {
    bus: Arc<dyn Bus>,
    seen: Mutex<Vec<String>>,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bus for Watched {
    fn mmio_read(&self, cpu: usize, address: u64, size: u8) -> u64 {
        let value = self.bus.mmio_read(cpu, address, size);
        self.lock().push(format!("read {size} at {address:09x} = {value:x}"));
        value
    }
    fn mmio_write(&self, cpu: usize, address: u64, size: u8, value: u64) {
        self.lock().push(format!("write {size} at {address:09x} = {value:x}"));
        self.bus.mmio_write(cpu, address, size, value);
    }
    fn port_read(&self, cpu: usize, port: u16, size: u8) -> u32 {
        let value = self.bus.port_read(cpu, port, size);
        self.lock().push(format!("in {size} from port {port:04x} = {value:x}"));
        value
    }
    fn port_write(&self, cpu: usize, port: u16, size: u8, value: u32) {
        self.lock().push(format!("out {size} to port {port:04x} = {value:x}"));
        self.bus.port_write(cpu, port, size, value);
    }
    fn page(&self, address: u64, smm: bool) -> Page {
        self.bus.page(address, smm)
    }
    fn memory_ranges(&self) -> Vec<MemoryRange> {
        self.bus.memory_ranges()
    }
    fn acknowledge_interrupt(&self, cpu: usize) -> Option<u8> {
        self.bus.acknowledge_interrupt(cpu)
    }
    fn clock(&self, cpu: usize) -> u64 {
        self.bus.clock(cpu)
    }
    fn read_apic_msr(&self, cpu: usize, index: u32) -> Option<Result<u64, GeneralProtection>> {
        self.bus.read_apic_msr(cpu, index)
    }
    fn write_apic_msr(&self, cpu: usize, index: u32, value: u64) -> Option<Result<(), GeneralProtection>> {
        self.bus.write_apic_msr(cpu, index, value)
    }
    fn task_priority(&self, cpu: usize) -> u8 {
        self.bus.task_priority(cpu)
    }
    fn set_task_priority(&self, cpu: usize, class: u8) {
        self.bus.set_task_priority(cpu, class);
    }
    fn random(&self) -> u64 {
        self.bus.random()
    }
    fn x87_error(&self, cpu: usize) {
        self.bus.x87_error(cpu);
    }
    fn apic_id(&self, cpu: usize) -> u32 {
        self.bus.apic_id(cpu)
    }
    fn cpu_count(&self) -> usize {
        self.bus.cpu_count()
    }
    fn tsc_offset_changed(&self, cpu: usize, offset: u64) {
        self.bus.tsc_offset_changed(cpu, offset);
    }
    fn smm_changed(&self, cpu: usize, smm: bool) {
        self.bus.smm_changed(cpu, smm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let (all, file) = Filter::parse("").unwrap();
        assert!(all.insn && all.mem && all.io && file == Path::new(FILE));
        let (filter, file) = Filter::parse("mem,io rip=8000-0x9fff cpu=1 out.txt").unwrap();
        let expected = Filter { insn: false, mem: true, io: true, rip: 0x8000..=0x9FFF, cpu: Some(1) };
        assert_eq!((filter, file), (expected, "out.txt".into()));
        for wrong in ["rip=9000-8000", "rip=x", "cpu=one", "a.txt b.txt"] {
            assert!(Filter::parse(wrong).is_err(), "{wrong}");
        }
    }
}
