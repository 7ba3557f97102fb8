//! SingleStepTests: single instructions recorded from hardware. From 8088 and 8086, 80286 and
//! 80386EX, in real mode.
//!
//! Registers and memory are compared, but for what the recorded processor leaves undefined (masks in the files and
//! beside them) and what later processors changed ([`changes`]): our oldest is the 486.

mod changes;
mod masks;

use crate::flat::Flat;
use crate::moo::register::*;
use crate::moo::{self, File, Test};
use changes::{Change, PREFIXES, opcode, raised};
use std::collections::BTreeMap;
use std::path::Path;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::{CpuState, RFlags, seg};

#[cfg(test)]
mod tests;

/// Which processor a file was recorded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// And 8086.
    I8088,
    I286,
    I386,
}

impl Family {
    /// By the name in the file's head.
    pub fn of(cpu: &str) -> Result<Self, String> {
        match cpu {
            "8088" | "8086" => Ok(Family::I8088),
            "C286" | "286" => Ok(Family::I286),
            cpu if cpu.starts_with("386") => Ok(Family::I386),
            other => {
                Err(format!("no model answers for vectors of a {other}: 8088, 8086, 286 and 386 are judged"))
            }
        }
    }

    /// Bits of EFLAGS that are there and keep what is loaded. The 8088's upper four are ones, the 286's in real mode zeros
    /// (SDM Vol. 3, "Real-Address Mode"), later ones hold IOPL and NT.
    fn flags(self) -> u32 {
        if self == Family::I386 { 0x7FFF } else { 0x0FFF }
    }

    /// Bits of a register that are compared.
    fn width(self, register: usize) -> u32 {
        match register {
            EFLAGS => self.flags(),
            // What differs is what the processor is, not what it does.
            CR0 => 0xF,
            DR6 => 0xE00F,
            DR7 => 0xFFFF_03FF,
            CS..=SS => 0xFFFF,
            _ if self == Family::I386 => !0,
            _ => 0xFFFF,
        }
    }

    /// With its address lines.
    fn machine(self) -> Flat {
        match self {
            Family::I8088 => Flat::with_address_lines("486", 1 << 20, 20),
            Family::I286 | Family::I386 => Flat::of("486", 17 << 20),
        }
    }
}

/// What came of one file.
#[derive(Debug, Default)]
pub struct Report {
    pub passed: usize,
    pub revoked: usize,
    /// Tests of what later processors do otherwise on purpose: how many by reason.
    pub excused: BTreeMap<&'static str, usize>,
    pub failed: Vec<Failure>,
}

/// A test that failed.
#[derive(Debug)]
pub struct Failure {
    /// Its number in the file.
    pub index: u32,
    /// The instruction.
    pub name: String,
    /// What differs.
    pub why: String,
}

/// A folder of vectors; by default one with nothing beside them.
#[derive(Default)]
pub struct Suite {
    notes: masks::Notes,
}

impl Suite {
    /// Reads what stands beside the vectors. A file of it that is there and cannot be read is an error.
    pub fn open(folder: &Path) -> Result<Self, String> {
        Ok(Suite { notes: masks::Notes::read(folder)? })
    }

    /// Runs a file, called `name` without its endings (`"00"`, `"F7.6"`), on the engine of a name.
    pub fn run(&self, engine: &str, name: &str, file: &File) -> Result<Report, String> {
        let family = Family::of(&file.cpu)?;
        let mut bench = Bench { machine: family.machine(), family, file, flags: self.notes.flags(name) };
        bench.machine.run_on(engine)?;
        let mut report = Report::default();
        for test in &file.tests {
            if self.notes.revoked(&test.hash) {
                report.revoked += 1;
                continue;
            }
            let change = Change::of(family, name, test);
            let result = match change {
                Some(change) if change.registers.is_empty() => Ok(Some(change.reason)),
                _ => bench.run(test, change.map_or(&[], |c| c.registers)),
            };
            match result {
                Ok(None) => report.passed += 1,
                Ok(Some(reason)) => *report.excused.entry(reason).or_default() += 1,
                Err(why) => report.failed.push(Failure { index: test.index, name: test.name.clone(), why }),
            }
        }
        Ok(report)
    }
}

/// A machine, and what all tests of a file have in common.
struct Bench<'a> {
    machine: Flat,
    family: Family,
    file: &'a File,
    /// Defined bits of FLAGS.
    flags: u32,
}

/// Exceptions that the 8088 has not: their handlers, one paragraph apart, stand where nothing else is.
const UNKNOWN_TO_8088: [(u8, &str); 3] = [
    (6, "an opcode or form that the 8088 has and later processors refuse (#UD)"),
    (
        12,
        "a stack access across offset FFFFh: it wraps on the 8088, and is beyond the limit since the 286 (#SS)",
    ),
    (13, "an access across offset FFFFh: it wraps on the 8088, and is beyond the limit since the 286 (#GP)"),
];
const SENTINEL: u16 = 0xFFFD;

impl Bench<'_> {
    /// Runs one test. Some: why it does not count. The error says what differs.
    fn run(&mut self, test: &Test, ignore: &[usize]) -> Result<Option<&'static str>, String> {
        self.load(test);
        let stop = self.go(test);
        let result = match self.unknown(stop) {
            Some(why) => Ok(Some(why)),
            None => self.compare(test, ignore, stop).map(|()| None),
        };
        for vector in [6, 12, 13] {
            self.machine.ram.write(vector * 4, &[0; 4]);
        }
        for &(address, _) in test.initial.ram.iter().chain(&test.last.ram) {
            self.machine.ram.write(u64::from(address), &[0]);
        }
        result
    }

    fn load(&mut self, test: &Test) {
        let m = &mut self.machine;
        let mut s = CpuState::reset(0, true);
        let initial = |n: usize| u64::from(test.initial.registers[n].unwrap_or(0));
        for (n, from) in [EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI].into_iter().enumerate() {
            s.gpr[n] = initial(from);
        }
        for (n, from) in
            [(seg::CS, CS), (seg::SS, SS), (seg::DS, DS), (seg::ES, ES), (seg::FS, FS), (seg::GS, GS)]
        {
            s.seg[n].selector = initial(from) as u16;
            s.seg[n].base = (initial(from) & 0xFFFF) << 4;
        }
        s.gpr[16] = initial(EIP);
        s.rflags =
            RFlags::from_bits_retain(initial(EFLAGS) & 0x7FD5 & u64::from(self.family.flags())) | RFlags::ONE;
        s.dr[7] = initial(DR7) & 0xFFFF_03FF | 0x400;
        if self.family == Family::I8088 {
            for (vector, _) in UNKNOWN_TO_8088 {
                let handler = [[vector, 0], SENTINEL.to_le_bytes()].concat();
                m.ram.write(u64::from(vector) * 4, &handler);
            }
        }
        for &(address, byte) in &test.initial.ram {
            m.ram.write(u64::from(address), &[byte]);
        }
        if self.family == Family::I286 && raised(test, 13) {
            // A word at offset FFFFh of SS: vector 13 on the 286, 12 on later processors. Same handler, so that all
            // that follows is still compared.
            let mut entry = [0; 4];
            m.ram.read(13 * 4, &mut entry);
            m.ram.write(12 * 4, &entry);
        }
        m.vcpu.state = s;
        m.vcpu.state_loaded();
    }

    /// To the HLT after the instruction; the 8088's vectors have none, and end with the instruction.
    fn go(&mut self, test: &Test) -> Stop {
        if self.family != Family::I8088 {
            return self.machine.run(70_000);
        }
        let start = self.machine.vcpu.state.gpr[16];
        let repeats = test.bytes.iter().take_while(|b| PREFIXES.contains(b)).any(|b| b & 0xFE == 0xF2);
        for _ in 0..70_000 {
            let stop = self.machine.run(1);
            if stop != Stop::Budget || !repeats || self.machine.vcpu.state.gpr[16] != start {
                return if stop == Stop::Budget { Stop::Halted } else { stop };
            }
        }
        Stop::Budget
    }

    /// Whether an exception was raised that the recorded processor has not.
    fn unknown(&mut self, stop: Stop) -> Option<&'static str> {
        let s = &self.machine.vcpu.state;
        if self.family != Family::I8088 {
            return None;
        }
        if stop == Stop::Shutdown {
            return Some(
                "SP = 1: the stack wraps on the 8088; since the 286 it is shut down, for the exception needs it too",
            );
        }
        let there = s.seg[seg::CS].selector == SENTINEL;
        let found = UNKNOWN_TO_8088.iter().find(|(vector, _)| s.gpr[16] == u64::from(*vector));
        found.filter(|_| there).map(|(_, why)| *why)
    }

    /// Where flags with undefined bits were pushed.
    fn flags_at(&self, test: &Test) -> Option<u32> {
        let initial = |n: usize| test.initial.registers[n].unwrap_or(0);
        match self.family {
            // PUSHF and software interrupts; the record does not say it.
            Family::I8088 => matches!(opcode(test).0, 0x9C | 0xCC..=0xCE)
                .then(|| (initial(SS) << 4).wrapping_add(initial(ESP).wrapping_sub(2) & 0xFFFF) & 0xF_FFFF),
            // The record names the bus cycle, which is even.
            Family::I286 => test.exception.map(|e| e.flags_at | initial(ESP) & 1),
            Family::I386 => test.exception.map(|e| e.flags_at),
        }
    }

    fn compare(&mut self, test: &Test, ignore: &[usize], stop: Stop) -> Result<(), String> {
        let mut wrong = Vec::new();
        if stop != Stop::Halted {
            wrong.push(format!("did not reach its end: {stop:?}"));
        }
        let flags = self.family.flags() & self.flags;
        let flags_at = self.flags_at(test);
        let got = registers(self.machine.vcpu.state_whole());
        for n in (0..moo::COUNT).filter(|n| !ignore.contains(n)) {
            let Some(want) = test.last.registers[n].or(test.initial.registers[n]) else { continue };
            let masks = [self.file.masks[n], test.last.masks[n]].into_iter().flatten();
            let defined = masks.fold(self.family.width(n), |mask, m| mask & m);
            let defined = if n == EFLAGS { defined & flags } else { defined };
            if (got[n] ^ want) & defined != 0 {
                wrong.push(format!("{} = {:04x}, wanted {want:04x}", moo::REGISTERS[n], got[n]));
            }
        }
        for &(address, want) in &test.last.ram {
            let mut byte = [0];
            self.machine.ram.read(u64::from(address), &mut byte);
            let mask = match flags_at {
                // The pushed flags have the same undefined bits.
                Some(at) if address == at => flags as u8,
                Some(at) if address == at.wrapping_add(1) => (flags >> 8) as u8,
                _ => 0xFF,
            };
            if (byte[0] ^ want) & mask != 0 {
                wrong.push(format!("[{address:06x}] = {:02x}, wanted {want:02x}", byte[0]));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }
}

/// In the order of [`moo::REGISTERS`].
fn registers(s: &CpuState) -> [u32; moo::COUNT] {
    let gpr = |n: usize| s.gpr[n] as u32;
    let selector = |n: usize| u32::from(s.seg[n].selector);
    [
        s.cr0 as u32,
        s.cr3 as u32,
        gpr(0),
        gpr(3),
        gpr(1),
        gpr(2),
        gpr(6),
        gpr(7),
        gpr(5),
        gpr(4),
        selector(seg::CS),
        selector(seg::DS),
        selector(seg::ES),
        selector(seg::FS),
        selector(seg::GS),
        selector(seg::SS),
        gpr(16),
        s.rflags.bits() as u32,
        s.dr[6] as u32,
        s.dr[7] as u32,
    ]
}
