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

/// What later processors do differently, one by one, with the reason.
pub const CHANGED: &[Change] = &[
    Change {
        opcode: ANY,
        applies: lock_refused,
        registers: EVERYTHING,
        reason: "LOCK before anything but the read-modify-write instructions is #UD since the 386; the 286 ignores it",
    },
    Change {
        opcode: ANY,
        applies: |t| t.bytes.len() > 10 && raised(t, 13),
        registers: EVERYTHING,
        reason: "instructions of more than 10 bytes: #GP on the 286, allowed up to 15 since the 386",
    },
    Change {
        opcode: "8C",
        applies: |t| names_fs_or_gs(t) && raised(t, 6),
        registers: EVERYTHING,
        reason: "FS and GS exist since the 386",
    },
    Change {
        opcode: "8E",
        applies: |t| names_fs_or_gs(t) && raised(t, 6),
        registers: EVERYTHING,
        reason: "FS and GS exist since the 386",
    },
    Change {
        opcode: ANY,
        applies: |t| is_string(t) && raised(t, 13),
        registers: &[CX, SI, DI],
        reason: "a string instruction that faults leaves the 286's index and count registers moved; later ones restart",
    },
    Change {
        opcode: ANY,
        applies: pointer_wraps,
        registers: EVERYTHING,
        reason: "a far pointer across offset FFFFh: two words that wrap on the 286, one operand beyond the limit (#GP) since the 386",
    },
    Change {
        opcode: "8F",
        applies: |t| raised(t, 13),
        registers: EVERYTHING,
        reason: "POP to memory that faults leaves the 286's SP moved (and the frame elsewhere); later ones restart",
    },
];

/// A far pointer whose two words the 286 checks one by one, so that it may lie across offset FFFFh.
fn pointer_wraps(test: &Test) -> bool {
    use iced_x86::Register as R;
    let far = match opcode(test) {
        (0xC4 | 0xC5, _) => true,
        (0xFF, modrm) => matches!(modrm >> 3 & 7, 3 | 5),
        _ => false,
    };
    if !far || test.exception.is_some() {
        return false;
    }
    let x = iced_x86::Decoder::new(16, &test.bytes, iced_x86::DecoderOptions::NONE).decode();
    let register = |r: R| {
        let at = match r {
            R::BX => 1,
            R::BP => 9,
            R::SI => SI,
            R::DI => DI,
            _ => return 0,
        };
        test.initial.registers[at].unwrap_or(0)
    };
    let offset = register(x.memory_base())
        .wrapping_add(register(x.memory_index()))
        .wrapping_add(x.memory_displacement64() as u32);
    x.op_count() > 0 && offset & 0xFFFF > 0xFFFC
}

const CX: usize = 2;
const SP: usize = 8;
const SI: usize = 10;
const DI: usize = 11;
/// [`Change::registers`]: the test is not compared at all.
const EVERYTHING: &[usize] = &[];

fn raised(test: &Test, vector: u8) -> bool {
    test.exception.is_some_and(|e| e.vector == vector)
}

/// The opcode byte: the first that is no prefix, and the one after it.
fn opcode(test: &Test) -> (u8, u8) {
    let mut bytes = test.bytes.iter().skip_while(|b| PREFIXES.contains(b));
    (bytes.next().copied().unwrap_or(0), bytes.next().copied().unwrap_or(0))
}

const PREFIXES: &[u8] = &[0x26, 0x2E, 0x36, 0x3E, 0xF0, 0xF2, 0xF3];

fn is_string(test: &Test) -> bool {
    matches!(opcode(test).0, 0x6C..=0x6F | 0xA4..=0xA7 | 0xAA..=0xAF)
}

fn names_fs_or_gs(test: &Test) -> bool {
    opcode(test).1 >> 3 & 7 > 3
}

/// [`Change::opcode`] of a change that concerns every file.
const ANY: &str = "*";

/// Bytes that later processors refuse because of LOCK alone.
fn lock_refused(test: &Test) -> bool {
    if !test.bytes.iter().take_while(|b| PREFIXES.contains(b)).any(|&b| b == 0xF0) {
        return false;
    }
    let x = iced_x86::Decoder::new(16, &test.bytes, iced_x86::DecoderOptions::NONE).decode();
    let memory = x.op0_kind() == iced_x86::OpKind::Memory;
    x.is_invalid() || !memory
}

/// One deliberate exception.
pub struct Change {
    pub opcode: &'static str,
    /// Applies to these tests of the file.
    pub applies: fn(&Test) -> bool,
    /// Registers (positions in [`moo::REGISTERS`]) that are not compared; none listed: nothing is.
    pub registers: &'static [usize],
    pub reason: &'static str,
}

/// What came of one file.
#[derive(Debug, Default)]
pub struct Report {
    pub passed: usize,
    pub revoked: usize,
    pub excused: usize,
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

    /// Runs the file of one opcode (`"00"`, `"F7.6"`) on the engine of a name.
    pub fn run(&self, engine: &str, opcode: &str, file: &File) -> Result<Report, String> {
        let mut machine = Flat::new(17 << 20);
        machine.run_on(engine)?;
        let mut report = Report::default();
        let defined = self.masks.get(opcode).copied().unwrap_or(0xFFFF);
        for test in &file.tests {
            if self.revoked.contains(&test.hash) {
                report.revoked += 1;
                continue;
            }
            let change =
                CHANGED.iter().find(|c| (c.opcode == opcode || c.opcode == ANY) && (c.applies)(test));
            if change.is_some_and(|c| c.registers.is_empty()) {
                report.excused += 1;
                continue;
            }
            let mask = FLAGS_OF_286 & defined;
            match run_test(&mut machine, test, mask, change.map_or(&[], |c| c.registers)) {
                Ok(()) => report.passed += 1,
                Err(why) => report.failed.push(Failure { index: test.index, name: test.name.clone(), why }),
            }
        }
        Ok(report)
    }
}

/// Runs one test; the error says what differs.
fn run_test(m: &mut Flat, test: &Test, flags_mask: u32, ignore: &[usize]) -> Result<(), String> {
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
    if raised(test, 13) {
        // A word at offset FFFFh of SS: vector 13 on the 286, 12 on later processors. Same handler, so that all
        // that follows is still compared.
        let mut entry = [0; 4];
        m.ram.read(13 * 4, &mut entry);
        m.ram.write(12 * 4, &entry);
    }
    m.vcpu.state = s;
    m.vcpu.state_loaded();
    let stop = m.run(70_000);
    let result = compare(m, test, flags_mask, ignore, stop);
    m.ram.write(12 * 4, &[0; 4]);
    for &(address, _) in test.initial.ram.iter().chain(&test.last.ram) {
        m.ram.write(u64::from(address), &[0]);
    }
    result
}

/// Where the flags were pushed: the record names the bus cycle, which is even.
fn flags_at(test: &Test, e: moo::Exception) -> u32 {
    e.flags_at | test.initial.registers[SP].unwrap_or(0) & 1
}

fn compare(m: &mut Flat, test: &Test, flags_mask: u32, ignore: &[usize], stop: Stop) -> Result<(), String> {
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
    for n in (0..14).filter(|n| !ignore.contains(n)) {
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
            Some(e) if address == flags_at(test, e) => flags_mask as u8,
            Some(e) if address == flags_at(test, e) + 1 => (flags_mask >> 8) as u8,
            _ => 0xFF,
        };
        if (byte[0] ^ want) & mask != 0 {
            wrong.push(format!("[{address:06x}] = {:02x}, wanted {want:02x}", byte[0]));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}
