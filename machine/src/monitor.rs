//! What the monitor shows of a machine.

use crate::config::MachineError;
use crate::machine::Machine;
use crate::memory::PAGE;
use std::fmt::Write;
use trimaran_cpu::state::{CpuState, Segment, gpr, seg};
use trimaran_devices::chip::Dma;

/// Topics of [`Machine::info`] besides the names of chips.
pub const TOPICS: [&str; 8] = ["registers", "cpus", "mem", "tlb", "irq", "mtree", "stats", "chips"];

impl Machine {
    /// Text about a topic: one of [`TOPICS`], or a chip by its name.
    pub fn info(&self, topic: &str) -> Result<String, MachineError> {
        let board = &self.core.board;
        let each = |f: &dyn Fn(usize, &mut dyn trimaran_cpu::engine::Engine) -> String| -> String {
            self.core.quiesce(|engines| {
                engines.iter_mut().enumerate().map(|(n, engine)| f(n, &mut ***engine)).collect()
            })
        };
        Ok(match topic {
            "registers" => each(&|n, engine| format!("CPU {n}\n{}", registers(engine.state()))),
            "cpus" => each(&|n, engine| {
                let name = engine.name();
                let state = engine.state();
                format!("CPU {n}: {name}, {:?}, rip {:016x}\n", state.activity, state.rip())
            }),
            "mem" => each(&|n, engine| format!("CPU {n}\n{}", mappings(engine))),
            "tlb" => each(&|n, engine| format!("CPU {n}\n{}", engine.describe_tlb())),
            "irq" => ["pic", "ioapic"].into_iter().filter_map(|name| self.chip_info(name)).collect(),
            "mtree" => format!("memory\n{}ports\n{}", board.memory.describe(), board.ports.describe()),
            "stats" => {
                let stats = self.stats();
                let mips = stats.instructions as f64 / stats.seconds.max(1e-9) / 1e6;
                let mut text = format!(
                    "{}: {} instructions, {:.1} s, {mips:.1} million a second\n",
                    stats.engine, stats.instructions, stats.seconds
                );
                for (n, counters) in stats.counters.iter().enumerate() {
                    let _ = writeln!(text, "CPU {n}: {counters:?}");
                }
                text
            }
            "chips" => self.chip_names().iter().map(|name| format!("{name}\n")).collect(),
            name => self
                .chip_info(name)
                .ok_or_else(|| MachineError::NoSuchDevice(format!("topic or device `{name}`")))?,
        })
    }

    /// The names of all chips, for [`Machine::info`].
    pub fn chip_names(&self) -> Vec<String> {
        self.core.board.chips.all().map(|slot| slot.id().to_string()).collect()
    }

    fn chip_info(&self, name: &str) -> Option<String> {
        let slot = self.core.board.chips.all().find(|slot| slot.id().to_string() == name)?;
        let mut text = String::new();
        // An engine may have the registers of a local APIC while it runs.
        self.core.quiesce(|_| slot.with(&mut |chip| text = chip.info()));
        Some(text)
    }

    /// Reads guest-physical memory; what is not RAM or ROM reads as 0xFF.
    pub fn read_physical(&self, address: u64, buf: &mut [u8]) {
        self.core.board.memory.read(address, buf);
    }

    /// Reads memory at linear addresses of a vCPU. None where one is not mapped.
    pub fn read_virtual(&self, vcpu: usize, address: u64, buf: &mut [u8]) -> Option<()> {
        self.core.quiesce(|engines| {
            let engine = engines.get_mut(vcpu)?;
            let mut done = 0;
            while done < buf.len() {
                let at = address.wrapping_add(done as u64);
                let step = ((PAGE - at % PAGE) as usize).min(buf.len() - done);
                let physical = engine.probe(at)?;
                self.core.board.memory.read(physical, &mut buf[done..done + step]);
                done += step;
            }
            Some(())
        })
    }

    /// A vCPU's architectural state.
    pub fn cpu_state(&self, vcpu: usize) -> Option<CpuState> {
        self.core.quiesce(|engines| engines.get_mut(vcpu).map(|engine| engine.state().clone()))
    }
}

fn registers(s: &CpuState) -> String {
    const NAMES: [&str; 17] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
        "r14", "r15", "rip",
    ];
    let mut text = String::new();
    for (n, name) in NAMES.iter().enumerate() {
        let end = if n % 4 == 3 || n == gpr::RIP { '\n' } else { ' ' };
        let _ = write!(text, "{name:>3} {:016x}{end}", s.gpr[n]);
    }
    let _ = writeln!(text, "flags {:?} ({:08x}), CPL {}, {:?}", s.rflags, s.rflags.bits(), s.cpl, s.activity);
    let mut segment = |name: &str, s: &Segment| {
        let _ = writeln!(
            text,
            "{name:<4} {:04x} base {:016x} limit {:08x} attributes {:04x}",
            s.selector, s.base, s.limit, s.attributes
        );
    };
    let names = [
        (seg::ES, "es"),
        (seg::CS, "cs"),
        (seg::SS, "ss"),
        (seg::DS, "ds"),
        (seg::FS, "fs"),
        (seg::GS, "gs"),
    ];
    names.iter().for_each(|&(index, name)| segment(name, &s.seg[index]));
    segment("ldtr", &s.ldtr);
    segment("tr", &s.tr);
    let _ = writeln!(
        text,
        "gdtr {:016x} {:04x} idtr {:016x} {:04x}",
        s.gdtr.base, s.gdtr.limit, s.idtr.base, s.idtr.limit
    );
    let _ = writeln!(
        text,
        "cr0 {:08x} cr2 {:016x} cr3 {:016x} cr4 {:08x} efer {:04x}\ndr6 {:08x} dr7 {:08x} mxcsr {:08x} retired {}",
        s.cr0, s.cr2, s.cr3, s.cr4, s.msr.efer, s.dr[6], s.dr[7], s.mxcsr, s.retired
    );
    text
}

/// What the lowest 4 GiB of linear addresses lead to, in runs.
fn mappings(engine: &mut dyn trimaran_cpu::engine::Engine) -> String {
    let mut text = String::new();
    let mut run: Option<(u64, u64, u64)> = None;
    for linear in (0..1u64 << 32).step_by(PAGE as usize) {
        let physical = engine.probe(linear);
        match (&mut run, physical) {
            (Some((_, end, to)), Some(at)) if *to == at => (*end, *to) = (linear + PAGE, at + PAGE),
            (_, physical) => {
                if let Some((start, end, to)) = run.take() {
                    let _ = writeln!(text, "{start:09x}-{end:09x} -> {:010x}", to - (end - start));
                }
                run = physical.map(|at| (linear, linear + PAGE, at + PAGE));
            }
        }
    }
    if let Some((start, end, to)) = run {
        let _ = writeln!(text, "{start:09x}-{end:09x} -> {:010x}", to - (end - start));
    }
    text
}
