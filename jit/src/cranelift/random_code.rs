//! Random programs for the tests: branches and loops over general instructions, with SSE's among them or not.

use super::tests::{CODE, DATA, DEVICE, HOLE};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use trimaran_cpu::state::gpr;

/// Registers that hold addresses, and the one that holds a small number.
pub const BASES: [usize; 3] = [gpr::RBP, gpr::RSI, gpr::RDI];
pub const INDEX: usize = gpr::RBX;

/// Bytes of instructions.
struct Maker<'r> {
    rng: &'r mut SmallRng,
    long: bool,
    /// Half of the instructions are SSE's.
    vectors: bool,
    /// Memory operands are.
    aligned: bool,
    out: Vec<u8>,
}

impl Maker<'_> {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.random_range(0..of.len())]
    }
    /// A register that may change.
    fn changing(&mut self) -> u8 {
        let low: [u8; 3] = [0, 1, 2];
        if self.long && self.rng.random() { self.rng.random_range(8..16) } else { self.pick(&low) }
    }
    fn any(&mut self) -> u8 {
        self.rng.random_range(0..if self.long { 16 } else { 8 })
    }
    /// Prefixes, opcode, ModRM. `rm_changes`: the r/m operand is written.
    fn modrm(&mut self, opcode: &[u8], reg: u8, rm_changes: bool, memory: bool, immediate: usize) {
        let mut prefixes = Vec::new();
        if self.rng.random_ratio(1, 5) {
            prefixes.push(0x66);
        }
        // A mandatory prefix stands before REX.
        let opcode = if matches!(opcode[0], 0x66 | 0xF2 | 0xF3) {
            prefixes = vec![opcode[0]];
            &opcode[1..]
        } else {
            opcode
        };
        let memory = memory && self.rng.random_ratio(1, 2);
        let mut rex = if self.long && self.rng.random_ratio(2, 5) { 0x48 } else { 0 };
        let mut tail = Vec::new();
        let rm = if memory {
            // On an instruction that must not have it, it is #UD.
            if rm_changes && self.rng.random_ratio(1, 20) {
                prefixes.insert(0, 0xF0);
            }
            let base = self.pick(&BASES) as u8;
            if self.long && self.rng.random_ratio(1, 12) {
                prefixes.insert(0, 0x64);
            }
            if self.rng.random_ratio(1, 12) {
                prefixes.insert(0, 0x67);
                if !self.long {
                    // 16-bit addresses lead to the tables below the data: only from [DI].
                    prefixes.remove(0);
                }
            }
            let far = match self.rng.random_range(0..150) {
                0 => HOLE as i32 - DATA as i32,
                1 => DEVICE as i32 - DATA as i32,
                2 => 0xFFC,
                _ => self.rng.random_range(-0x200..0x200),
            };
            let far = if self.aligned { far & !15 } else { far };
            let sib = !self.aligned && self.rng.random_ratio(1, 3);
            let relative = !self.aligned && self.long && !sib && self.rng.random_ratio(1, 8);
            if relative {
                tail.extend((DATA as i32 - CODE as i32 + 0x200).to_le_bytes());
                (reg & 7) << 3 | 5
            } else {
                if sib {
                    tail.push(self.rng.random_range(0..4) << 6 | (INDEX as u8) << 3 | base);
                }
                tail.extend(far.to_le_bytes());
                0x80 | (reg & 7) << 3 | if sib { 4 } else { base }
            }
        } else {
            let rm = if rm_changes { self.changing() } else { self.any() };
            rex |= if rm > 7 { 0x41 } else { 0 };
            0xC0 | (reg & 7) << 3 | rm & 7
        };
        rex |= if reg > 7 { 0x44 } else { 0 };
        self.out.extend(&prefixes);
        if rex != 0 {
            self.out.push(rex);
        }
        self.out.extend(opcode);
        self.out.push(rm);
        self.out.extend(tail);
        let wide = if rex & 8 == 0 && prefixes.contains(&0x66) { 2 } else { 4 };
        let size = if immediate == 4 { wide } else { immediate };
        for _ in 0..size {
            let v = self.rng.random();
            self.out.push(v);
        }
    }

    /// An instruction of SSE to SSE4.2; a general register that it may write is one that may change.
    fn vector(&mut self) {
        let prefix = self.pick(&[0u8, 0x66, 0x66, 0xF2, 0xF3]);
        let (map, code) = match self.rng.random_range(0..10) {
            0 => (0x38, self.rng.random_range(0..0x0C)),
            1 => (0x38, self.rng.random_range(0x1C..0x42)),
            2 => (0x3A, self.pick(&[0x0C, 0x0D, 0x0E, 0x0F, 0x14, 0x15, 0x16, 0x17, 0x20, 0x21, 0x22])),
            3 => (0, self.rng.random_range(0x10..0x18)),
            4 => (0, self.rng.random_range(0x28..0x30)),
            5 => (0, self.rng.random_range(0x51..0x60)),
            6 => (0, self.rng.random_range(0x60..0x80)),
            7 => (0, self.pick(&[0xC2, 0xC4, 0xC5, 0xC6, 0x50, 0xD6, 0xE6, 0xE7])),
            _ => (0, self.rng.random_range(0xD1..0xFF)),
        };
        let opcode: Vec<u8> = [prefix, 0x0F, map, code].into_iter().filter(|&b| b != 0).collect();
        let immediate =
            usize::from(map == 0x3A || matches!(code, 0x70..=0x73 | 0xC2 | 0xC4..=0xC6) && map == 0);
        let (reg, start) = (self.changing(), self.out.len());
        // Most are, for the others end the program.
        self.aligned = self.rng.random_ratio(15, 16);
        self.modrm(&opcode, reg, false, true, immediate);
        self.aligned = false;
        let bits = if self.long { 64 } else { 32 };
        let x = iced_x86::Decoder::new(bits, &self.out[start..], 0).decode();
        let vector = |n| x.op_kind(n) == iced_x86::OpKind::Register && x.op_register(n).is_xmm();
        let general = x.op_count() > 0
            && x.op0_kind() == iced_x86::OpKind::Register
            && x.op0_register().is_gpr()
            && !matches!(x.op0_register().full_register().number(), 0..=2 | 8..);
        if x.is_invalid() || x.len() != self.out.len() - start || !(0..x.op_count()).any(vector) || general {
            self.out.truncate(start);
        }
    }

    fn instruction(&mut self) {
        if self.vectors && self.rng.random() {
            return self.vector();
        }
        let (reg, changing, kind) = (self.any(), self.changing(), self.rng.random_range(0..34));
        match kind {
            0..=5 => {
                // The eight of 00 to 3B; byte forms may write high registers 4 to 7 of 0 to 3.
                let op = self.rng.random_range(0..8) * 8;
                let direction = self.pick(&[1u8, 3, 1, 3, 2]);
                match direction {
                    1 => self.modrm(&[op | 1], reg, true, true, 0),
                    3 => self.modrm(&[op | 3], changing, false, true, 0),
                    _ => self.modrm(&[op | 2], changing & !4, false, true, 0),
                }
            }
            6 => {
                let op = self.rng.random_range(0..8);
                self.modrm(&[0x81], op, true, true, 4);
            }
            7..=8 => {
                let op = self.rng.random_range(0..8);
                self.modrm(&[0x83], op, true, true, 1);
            }
            9 => {
                let op = self.rng.random_range(0..8);
                self.modrm(&[0x80], op, true, true, 1);
            }
            10 => self.modrm(&[0x85], reg, false, true, 0),
            11..=12 => self.modrm(&[0x8B], changing, false, true, 0),
            13..=14 => self.modrm(&[0x89], reg, true, true, 0),
            15 => self.modrm(&[0x88], reg & !4, true, true, 0),
            16 => {
                // LEA has a memory operand only.
                let out = self.out.len();
                self.modrm(&[0x8B], changing, false, true, 0);
                if let Some(at) = (out..self.out.len()).find(|&k| self.out[k] == 0x8B)
                    && self.out[at + 1] < 0xC0
                {
                    self.out[at] = 0x8D;
                }
            }
            17 => self.modrm(&[0xC7], 0, true, true, 4),
            18..=19 => {
                let op = self.pick(&[0, 1, 2, 3, 4, 5, 7]);
                let (code, imm) =
                    self.pick(&[(0xC1, 1), (0xD1, 0), (0xD3, 0), (0xC0, 1), (0xD2, 0), (0xD3, 0)]);
                self.modrm(&[code], op, true, true, imm);
            }
            20 => {
                let op = self.pick(&[0, 2, 3, 4, 5]);
                let code = self.pick(&[0xF7, 0xF7, 0xF6]);
                let imm = if op == 0 { if code == 0xF7 { 4 } else { 1 } } else { 0 };
                self.modrm(&[code], op, true, true, imm);
            }
            21..=22 => {
                let code = self.pick(&[0xFF, 0xFF, 0xFE]);
                let op = self.rng.random_range(0..2);
                self.modrm(&[code], op, true, true, 0);
            }
            23 => self.modrm(&[0x0F, 0xAF], changing, false, true, 0),
            24 => {
                let (code, imm) = self.pick(&[(0x69, 4), (0x6B, 1)]);
                self.modrm(&[code], changing, false, true, imm);
            }
            25 => {
                let code = self.pick(&[0xB6, 0xB7, 0xBE, 0xBF]);
                self.modrm(&[0x0F, code], changing, false, true, 0);
            }
            26 => {
                let code = 0x90 | self.rng.random_range(0..16);
                self.modrm(&[0x0F, code], 0, true, true, 0);
            }
            27 => {
                let code = 0x40 | self.rng.random_range(0..16);
                self.modrm(&[0x0F, code], changing, false, true, 0);
            }
            28 => {
                let code = self.pick(&[0xA3, 0xAB, 0xB3, 0xBB]);
                self.modrm(&[0x0F, code], reg, true, false, 0);
            }
            29 => {
                let op = self.rng.random_range(4..8);
                self.modrm(&[0x0F, 0xBA], op, true, true, 1);
            }
            30 => {
                let code: &[u8] = self.pick(&[&[0x0F, 0xBC][..], &[0x0F, 0xBD], &[0xF3, 0x0F, 0xB8]]);
                self.modrm(code, changing, false, true, 0);
            }
            31 => {
                let code = self.pick(&[0xC1, 0xB1, 0xB0, 0xC0]);
                let reg = if code == 0xC1 { changing } else { changing & !4 };
                self.modrm(&[0x0F, code], reg, true, true, 0);
            }
            32 => {
                let one: &[u8] = match self.rng.random_range(0..9) {
                    0 => &[0x98],
                    1 => &[0x99],
                    2 => &[0x66, 0x98],
                    3 => &[0x50, 0x51, 0x5A],
                    4 => &[0x0F, 0xC8],
                    5 => &[0xF5],
                    6 => &[0x9C, 0x58],
                    7 => &[0x9E],
                    _ => &[0xF9],
                };
                self.out.extend(one);
            }
            _ => {
                let code = self.pick(&[0xF0, 0xF1]);
                let out = self.out.len();
                let reg = if code == 0xF0 { changing } else { reg };
                self.modrm(&[0x0F, 0x38, code], reg, false, true, 0);
                // Only with memory.
                let at = (out..self.out.len()).find(|&k| self.out[k..].starts_with(&[0x0F, 0x38]));
                if at.is_some_and(|k| self.out[k + 3] >= 0xC0) {
                    self.out.truncate(out);
                }
            }
        }
    }

    /// Blocks with branches anywhere among them; the code fits a page.
    fn program(&mut self) {
        let blocks = self.rng.random_range(2..9);
        let mut starts = Vec::new();
        let mut branches = Vec::new();
        for _ in 0..blocks {
            starts.push(self.out.len());
            for _ in 0..self.rng.random_range(1..9) {
                self.instruction();
            }
            let cc = self.rng.random_range(0..16);
            let end: &[u8] = match self.rng.random_range(0..10) {
                0 => &[0xE9],
                // CALL, and what takes its way back off the stack.
                1 => &[0xE8],
                2 => &[],
                // LOOP over a jump.
                3 => &[0xE2, 0x02, 0xEB, 0x05, 0xE9],
                _ => &[0x0F, 0x80 | cc],
            };
            self.out.extend(end);
            if !end.is_empty() {
                branches.push(self.out.len());
                self.out.extend([0; 4]);
            }
            if self.rng.random_ratio(1, 12) {
                // PUSH of an address, RET to it: the start of the code.
                self.out.push(0x68);
                self.out.extend((CODE as u32).to_le_bytes());
                self.out.push(0xC3);
            }
        }
        self.out.push(0xF4);
        for at in branches {
            let target = self.pick(&starts);
            self.out[at..at + 4].copy_from_slice(&(target as i32 - at as i32 - 4).to_le_bytes());
        }
    }
}

pub fn program(seed: u64, long: bool) -> Vec<u8> {
    random_code(seed, long, false)
}

/// With vector instructions.
pub fn vector_program(seed: u64, long: bool) -> Vec<u8> {
    random_code(seed, long, true)
}

fn random_code(seed: u64, long: bool, vectors: bool) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut maker = Maker { rng: &mut rng, long, vectors, aligned: false, out: Vec::new() };
    maker.program();
    maker.out
}
