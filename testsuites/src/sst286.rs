//! SingleStepTests of the 80286 in real mode: 162,500 instructions recorded from a Harris 80C286.
//!
//! Each test is one instruction followed by HLT. Registers and memory are compared, but for what the 286 leaves
//! undefined (the suite's own `metadata.json`) and what later processors changed ([`CHANGED`]).

use crate::flat::Flat;
use crate::moo::{self, File, Test};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::{CpuState, RFlags, seg};

/// Positions in [`moo::REGISTERS`].
const IP: usize = 12;
const FLAGS: usize = 13;

/// Real mode on a 286 keeps these at 0; on later processors IOPL and NT can be set (SDM Vol. 3, "Real-Address
/// Mode"; the suite's README: mask the top four bits).
const FLAGS_OF_286: u32 = 0x0FFF;

/// What later processors do differently: opcode file, bits of FLAGS to leave out, reason. A mask of 0xFFFF leaves
/// the whole test out of the comparison.
pub const CHANGED: &[Change] = &[];

/// One deliberate exception.
pub struct Change {
    pub opcode: &'static str,
    /// Applies to these tests of the file.
    pub applies: fn(&Test) -> bool,
    /// Bits of FLAGS left out.
    pub flags: u32,
    /// The test is not compared at all.
    pub skip: bool,
    pub reason: &'static str,
}

/// What came of one file.
#[derive(Debug, Default)]
pub struct Report {
    pub passed: usize,
    pub revoked: usize,
    pub excused: usize,
    /// Name and difference of each failed test.
    pub failed: Vec<(String, String)>,
}

/// Defined bits of FLAGS by opcode file name, and revoked hashes.
pub struct Suite {
    masks: BTreeMap<String, u32>,
    revoked: HashSet<String>,
}

impl Suite {
    /// Reads `metadata.json` and the revocation list of a suite folder.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
        };
        let json: serde_json::Value =
            serde_json::from_str(&read("metadata.json")?).map_err(|e| format!("metadata.json: {e}"))?;
        let mut masks = BTreeMap::new();
        let mut note = |name: String, v: &serde_json::Value| {
            if let Some(mask) = v["flags-mask"].as_u64() {
                masks.insert(name, mask as u32);
            }
        };
        for (opcode, v) in json["opcodes"].as_object().ok_or("metadata.json: no opcodes")? {
            note(opcode.clone(), v);
            for (reg, v) in v["reg"].as_object().into_iter().flatten() {
                note(format!("{opcode}.{reg}"), v);
            }
        }
        let revoked = read("revocation_list.txt")?
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
            .map(str::to_owned)
            .collect();
        Ok(Suite { masks, revoked })
    }

    /// Runs the file of one opcode (`"00"`, `"F7.6"`).
    pub fn run(&self, opcode: &str, file: &File) -> Report {
        let mut machine = Flat::new(17 << 20);
        let mut report = Report::default();
        let defined = self.masks.get(opcode).copied().unwrap_or(0xFFFF);
        for test in &file.tests {
            if self.revoked.contains(&test.hash) {
                report.revoked += 1;
                continue;
            }
            let change = CHANGED.iter().find(|c| c.opcode == opcode && (c.applies)(test));
            if change.is_some_and(|c| c.skip) {
                report.excused += 1;
                continue;
            }
            let mask = FLAGS_OF_286 & defined & !change.map_or(0, |c| c.flags);
            match run_test(&mut machine, test, mask) {
                Ok(()) => report.passed += 1,
                Err(why) => report.failed.push((format!("{} #{}", test.name, test.index), why)),
            }
        }
        report
    }
}

/// Runs one test; the error says what differs.
fn run_test(m: &mut Flat, test: &Test, flags_mask: u32) -> Result<(), String> {
    let mut s = CpuState::reset(0, true);
    let initial = |n: usize| u64::from(test.initial.registers[n].unwrap_or(0));
    // ax bx cx dx .. sp bp si di in the encoding's order.
    for (n, from) in [0, 2, 3, 1, 8, 9, 10, 11].into_iter().enumerate() {
        s.gpr[n] = initial(from);
    }
    for (n, from) in [(seg::CS, 4), (seg::SS, 5), (seg::DS, 6), (seg::ES, 7)] {
        s.seg[n].selector = initial(from) as u16;
        s.seg[n].base = initial(from) << 4;
    }
    s.gpr[16] = initial(IP);
    s.rflags = RFlags::from_bits_retain(initial(FLAGS) & u64::from(FLAGS_OF_286)) | RFlags::ONE;
    for &(address, byte) in &test.initial.ram {
        m.ram.write(u64::from(address), &[byte]);
    }
    m.vcpu.state = s;
    m.vcpu.state_loaded();
    let stop = m.vcpu.run(200_000);
    let result = compare(m, test, flags_mask, stop);
    for &(address, _) in test.initial.ram.iter().chain(&test.last.ram) {
        m.ram.write(u64::from(address), &[0]);
    }
    result
}

fn compare(m: &mut Flat, test: &Test, flags_mask: u32, stop: Stop) -> Result<(), String> {
    let mut wrong = Vec::new();
    if stop != Stop::Halted {
        wrong.push(format!("did not reach HLT: {stop:?}"));
    }
    let s = m.vcpu.state_whole().clone();
    let gpr = |n: usize| s.gpr[n] as u32 & 0xFFFF;
    let selector = |n: usize| u32::from(s.seg[n].selector);
    let got = [
        gpr(0),
        gpr(3),
        gpr(1),
        gpr(2),
        selector(seg::CS),
        selector(seg::SS),
        selector(seg::DS),
        selector(seg::ES),
        gpr(4),
        gpr(5),
        gpr(6),
        gpr(7),
        gpr(16),
        s.rflags.bits() as u32,
    ];
    for n in 0..14 {
        let Some(want) = test.last.registers[n].or(test.initial.registers[n]) else { continue };
        let mask = if n == FLAGS { flags_mask } else { 0xFFFF };
        if (got[n] ^ want) & mask != 0 {
            wrong.push(format!("{} = {:04x}, wanted {want:04x}", moo::REGISTERS[n], got[n]));
        }
    }
    for &(address, want) in &test.last.ram {
        let mut byte = [0];
        m.ram.read(u64::from(address), &mut byte);
        let mask = match test.exception {
            // The pushed flags have the same undefined bits.
            Some(e) if address == e.flags_at => flags_mask as u8,
            Some(e) if address == e.flags_at + 1 => (flags_mask >> 8) as u8,
            _ => 0xFF,
        };
        if (byte[0] ^ want) & mask != 0 {
            wrong.push(format!("[{address:06x}] = {:02x}, wanted {want:02x}", byte[0]));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}
