//! Host instructions as bytes.
//!
//! Our own encoder and not dynasmrt's for three reasons: operand width, scale and displacement are known only when a
//! region is translated, so that each line of dynasm! would stand here four or sixteen times; displacements
//! take one byte where one is enough; and an instruction costs 1 ns instead of 2.5. The fixed thunks (`miss.rs`)
//! are dynasm!.

use super::shapes::Shape;
use crate::slots::{NO_TAG, SlotJump};
use trimaran_cpu::insn::W;

/// Number of a host register, as encoded.
pub type Reg = u8;
pub const RAX: Reg = 0;
pub const RCX: Reg = 1;
pub const RDX: Reg = 2;
pub const RSI: Reg = 6;
pub const RDI: Reg = 7;
/// No register.
pub const NONE: Reg = 0xFF;

/// Host conditions beyond the guest's own, by their encoding.
pub mod cc {
    pub const O: u8 = 0;
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
    pub const P: u8 = 10;
}

/// x87 instructions without operands.
pub mod fpu {
    pub const FNSTSW_AX: u16 = 0xDFE0;
    /// FSTP ST(0).
    pub const DROP: u16 = 0xDDD8;
    /// FXCH ST(0), which only clears C1; others by adding their number.
    pub const FXCH: u16 = 0xD9C8;
    /// FLD ST(0); others by adding their number.
    pub const FLD: u16 = 0xD9C0;
}

/// The group that shares one encoding: the number is its opcode's bits 3 to 5.
#[derive(Clone, Copy)]
pub enum Alu {
    Add = 0,
    Or = 1,
    Adc = 2,
    Sbb = 3,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// Shifts by their opcode extension.
#[derive(Clone, Copy)]
pub enum Sh {
    Rol = 0,
    Ror = 1,
    Shl = 4,
    Shr = 5,
    Sar = 7,
}

/// A memory operand.
#[derive(Clone, Copy)]
pub struct Mem {
    pub base: Reg,
    pub index: Reg,
    /// Shift count.
    pub scale: u8,
    pub disp: i32,
}

/// `[base + disp]`
pub fn at(base: Reg, disp: i32) -> Mem {
    Mem { base, index: NONE, scale: 0, disp }
}

/// A field of the vCPU.
pub fn field(offset: usize) -> Mem {
    at(RDI, offset as i32)
}

/// A register or memory.
#[derive(Clone, Copy)]
pub enum Rm {
    Reg(Reg),
    Mem(Mem),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label(u32);

/// Code in the making. Jumps reach labels of this piece and of one that is appended to it.
#[derive(Default)]
pub struct Asm {
    pub bytes: Vec<u8>,
    fixups: Vec<(u32, Label)>,
    /// Slots, and where the distances of their jumps stand.
    jumps: Vec<(usize, u32)>,
    bound: Vec<(Label, u32)>,
    /// Whether flags were changed since somebody cleared this.
    pub clobbered: bool,
}

/// Hands out labels.
#[derive(Default)]
pub struct Labels(u32);

impl Labels {
    pub fn make(&mut self) -> Label {
        self.0 += 1;
        Label(self.0 - 1)
    }
}

impl Asm {
    /// Room for the code of so many guest instructions.
    pub fn for_insns(n: usize) -> Self {
        Asm {
            bytes: Vec::with_capacity(n * 64 + 256),
            fixups: Vec::with_capacity(n * 3),
            jumps: Vec::new(),
            bound: Vec::with_capacity(n * 3),
            clobbered: true,
        }
    }

    fn i32(&mut self, v: i32) {
        self.bytes.extend_from_slice(&v.to_le_bytes());
    }

    /// Prefixes and opcode. `bytes`: the registers that are used as byte registers.
    #[inline]
    fn head(&mut self, w: W, opcode: u32, reg: Reg, index: Reg, base: Reg, bytes: [Reg; 2]) {
        // At most five bytes, pushed as one.
        let (mut packed, mut n) = (0u64, 0);
        let mut put = |byte: u8| {
            packed |= u64::from(byte) << (n * 8);
            n += 1;
        };
        if w == W::W {
            put(0x66);
        }
        if opcode > 0xFFFF {
            put((opcode >> 16) as u8);
        }
        let high = |r: Reg| if r == NONE { 0 } else { r >> 3 & 1 };
        let rex = u8::from(w == W::Q) << 3 | high(reg) << 2 | high(index) << 1 | high(base);
        if rex != 0 || bytes.iter().any(|r| (4..8).contains(r)) {
            put(0x40 | rex);
        }
        if opcode & 0xFF00 != 0 {
            put((opcode >> 8) as u8);
        }
        put(opcode as u8);
        self.bytes.extend_from_slice(&packed.to_le_bytes()[..n]);
    }

    #[inline]
    fn rr(&mut self, w: W, opcode: u32, reg: Reg, rm: Reg) {
        let bytes = if w == W::B { [reg, rm] } else { [NONE; 2] };
        self.head(w, opcode, reg, NONE, rm, bytes);
        self.bytes.push(0xC0 | (reg & 7) << 3 | rm & 7);
    }

    /// As `rr`, where `reg` is an opcode extension.
    #[inline]
    fn ext(&mut self, w: W, opcode: u32, n: u8, rm: Reg) {
        let bytes = if w == W::B { [rm, NONE] } else { [NONE; 2] };
        self.head(w, opcode, n, NONE, rm, bytes);
        self.bytes.push(0xC0 | n << 3 | rm & 7);
    }

    #[inline]
    fn rm(&mut self, w: W, opcode: u32, reg: Reg, byte: Reg, m: Mem) {
        self.head(w, opcode, reg, m.index, m.base, [byte, NONE]);
        self.modrm(reg, m);
    }

    #[inline]
    fn modrm(&mut self, reg: Reg, m: Mem) {
        let reg = (reg & 7) << 3;
        if m.base == NONE {
            // No base: a SIB byte with base 101 and no mode.
            let index = if m.index == NONE { 4 } else { m.index & 7 };
            self.bytes.extend_from_slice(&[reg | 4, m.scale << 6 | index << 3 | 5]);
            return self.i32(m.disp);
        }
        let mode = match m.disp {
            0 if m.base & 7 != 5 => 0,
            -128..=127 => 0x40,
            _ => 0x80,
        };
        if m.index != NONE {
            let sib = m.scale << 6 | (m.index & 7) << 3 | m.base & 7;
            self.bytes.extend_from_slice(&[mode | reg | 4, sib]);
        } else if m.base & 7 == 4 {
            self.bytes.extend_from_slice(&[mode | reg | 4, 0x24]);
        } else {
            self.bytes.push(mode | reg | m.base & 7);
        }
        match mode {
            0x40 => self.bytes.push(m.disp as u8),
            0x80 => self.i32(m.disp),
            _ => {}
        }
    }

    /// The opcode of an operation that has its byte form one below.
    fn sized(w: W, opcode: u32) -> u32 {
        if w == W::B { opcode & !1 } else { opcode | 1 }
    }
    fn byte_reg(w: W, r: Reg) -> Reg {
        if w == W::B { r } else { NONE }
    }

    // ---- moves: no flags
    /// Copies at 32 or 64 bits; at 8 and 16 the rest of `d` stays.
    pub fn mov(&mut self, w: W, d: Reg, s: Reg) {
        self.rr(w, Self::sized(w, 0x89), s, d);
    }
    pub fn mov_imm(&mut self, d: Reg, v: u64) {
        if v <= 0xFFFF_FFFF {
            self.head(W::D, 0xB8 | u32::from(d & 7), NONE, NONE, d, [NONE; 2]);
            self.i32(v as u32 as i32);
        } else if v as i64 == i64::from(v as i32) {
            self.ext(W::Q, 0xC7, 0, d);
            self.i32(v as i32);
        } else {
            self.head(W::Q, 0xB8 | u32::from(d & 7), NONE, NONE, d, [NONE; 2]);
            self.bytes.extend_from_slice(&v.to_le_bytes());
        }
    }
    /// Loads, zero-extended.
    pub fn load(&mut self, w: W, d: Reg, m: Mem) {
        match w {
            W::B => self.rm(W::D, 0x0FB6, d, NONE, m),
            W::W => self.rm(W::D, 0x0FB7, d, NONE, m),
            _ => self.rm(w, 0x8B, d, NONE, m),
        }
    }
    pub fn store(&mut self, w: W, m: Mem, s: Reg) {
        self.rm(w, Self::sized(w, 0x89), s, Self::byte_reg(w, s), m);
    }
    pub fn store_imm(&mut self, w: W, m: Mem, v: i32) {
        self.rm(w, Self::sized(w, 0xC7), 0, NONE, m);
        self.imm(w, v);
    }
    fn imm(&mut self, w: W, v: i32) {
        match w {
            W::B => self.bytes.push(v as u8),
            W::W => self.bytes.extend_from_slice(&(v as i16).to_le_bytes()),
            _ => self.i32(v),
        }
    }
    pub fn lea(&mut self, w: W, d: Reg, m: Mem) {
        self.rm(w, 0x8D, d, NONE, m);
    }
    /// Zero-extends to 64 bits.
    pub fn movzx(&mut self, from: W, d: Reg, s: Reg) {
        match from {
            W::B => {
                self.head(W::D, 0x0FB6, d, NONE, s, [s, NONE]);
                self.bytes.push(0xC0 | (d & 7) << 3 | s & 7);
            }
            W::W => self.rr(W::D, 0x0FB7, d, s),
            _ => self.mov(from, d, s),
        }
    }
    /// Sign-extends to 32 or 64 bits.
    pub fn movsx(&mut self, from: W, to: W, d: Reg, s: Reg) {
        match from {
            W::B => {
                self.head(to, 0x0FBE, d, NONE, s, [s, NONE]);
                self.bytes.push(0xC0 | (d & 7) << 3 | s & 7);
            }
            W::W => self.rr(to, 0x0FBF, d, s),
            _ if to == W::Q && from == W::D => self.rr(W::Q, 0x63, d, s),
            _ => self.mov(to, d, s),
        }
    }
    pub fn setcc(&mut self, cc: u8, d: Reg) {
        self.ext(W::B, 0x0F90 | u32::from(cc), 0, d);
    }
    pub fn setcc_mem(&mut self, cc: u8, m: Mem) {
        self.rm(W::B, 0x0F90 | u32::from(cc), 0, NONE, m);
    }
    pub fn cmov(&mut self, cc: u8, w: W, d: Reg, s: Reg) {
        self.rr(w, 0x0F40 | u32::from(cc), d, s);
    }
    pub fn bswap(&mut self, w: W, d: Reg) {
        self.head(w, 0x0FC8 | u32::from(d & 7), NONE, NONE, d, [NONE; 2]);
    }

    // ---- arithmetic: flags
    pub fn alu(&mut self, op: Alu, w: W, d: Reg, s: Reg) {
        self.clobbered = true;
        self.rr(w, Self::sized(w, (op as u32) << 3 | 1), s, d);
    }
    pub fn alu_imm(&mut self, op: Alu, w: W, d: Reg, v: i32) {
        self.clobbered = true;
        if w != W::B && i32::from(v as i8) == v {
            self.ext(w, 0x83, op as u8, d);
            self.bytes.push(v as u8);
        } else {
            self.ext(w, Self::sized(w, 0x81), op as u8, d);
            self.imm(w, v);
        }
    }
    pub fn alu_load(&mut self, op: Alu, w: W, d: Reg, m: Mem) {
        self.clobbered = true;
        self.rm(w, Self::sized(w, (op as u32) << 3 | 3), d, Self::byte_reg(w, d), m);
    }
    pub fn alu_mem_imm(&mut self, op: Alu, w: W, m: Mem, v: i32) {
        self.clobbered = true;
        if w != W::B && i32::from(v as i8) == v {
            self.rm(w, 0x83, op as u8, NONE, m);
            self.bytes.push(v as u8);
        } else {
            self.rm(w, Self::sized(w, 0x81), op as u8, NONE, m);
            self.imm(w, v);
        }
    }
    pub fn test(&mut self, w: W, a: Reg, b: Reg) {
        self.clobbered = true;
        self.rr(w, Self::sized(w, 0x85), b, a);
    }
    pub fn test_imm(&mut self, w: W, a: Reg, v: i32) {
        self.clobbered = true;
        self.ext(w, Self::sized(w, 0xF7), 0, a);
        self.imm(w, v);
    }
    /// `test r32, [m]`
    pub fn test_mem(&mut self, a: Reg, m: Mem) {
        self.clobbered = true;
        self.rm(W::D, 0x85, a, NONE, m);
    }
    pub fn bit_test(&mut self, a: Reg, n: u8) {
        self.clobbered = true;
        self.ext(W::Q, 0x0FBA, 4, a);
        self.bytes.push(n);
    }
    /// CF = bit `n` of `a`.
    pub fn bit_test_by(&mut self, a: Reg, n: Reg) {
        self.clobbered = true;
        self.rr(W::D, 0x0FA3, n, a);
    }
    pub fn shift_imm(&mut self, op: Sh, w: W, d: Reg, n: u8) {
        self.clobbered = true;
        self.ext(w, Self::sized(w, 0xC1), op as u8, d);
        self.bytes.push(n);
    }
    pub fn shift_cl(&mut self, op: Sh, w: W, d: Reg) {
        self.clobbered = true;
        self.ext(w, Self::sized(w, 0xD3), op as u8, d);
    }
    pub fn not(&mut self, w: W, d: Reg) {
        self.ext(w, Self::sized(w, 0xF7), 2, d);
    }
    pub fn neg(&mut self, w: W, d: Reg) {
        self.clobbered = true;
        self.ext(w, Self::sized(w, 0xF7), 3, d);
    }
    /// RDX:RAX = RAX * s.
    pub fn mul(&mut self, signed: bool, s: Reg) {
        self.clobbered = true;
        self.ext(W::Q, 0xF7, 4 + u8::from(signed), s);
    }
    /// RAX, RDX = RDX:RAX / s, the remainder.
    pub fn div(&mut self, signed: bool, w: W, s: Reg) {
        self.clobbered = true;
        self.ext(w, 0xF7, 6 + u8::from(signed), s);
    }
    /// d *= s, 16 bits and up.
    pub fn imul(&mut self, w: W, d: Reg, s: Reg) {
        self.clobbered = true;
        self.rr(w, 0x0FAF, d, s);
    }
    /// d = s * v, 16 bits and up.
    pub fn imul_imm(&mut self, w: W, d: Reg, s: Reg, v: i32) {
        self.clobbered = true;
        if i32::from(v as i8) == v {
            self.rr(w, 0x6B, d, s);
            self.bytes.push(v as u8);
        } else {
            self.rr(w, 0x69, d, s);
            self.imm(w, v);
        }
    }
    /// 32 or 64 bits.
    pub fn popcnt(&mut self, w: W, d: Reg, s: Reg) {
        self.clobbered = true;
        self.rr(w, 0xF3_0FB8, d, s);
    }
    pub fn bsf(&mut self, w: W, d: Reg, s: Reg) {
        self.clobbered = true;
        self.rr(w, 0x0FBC, d, s);
    }
    pub fn bsr(&mut self, w: W, d: Reg, s: Reg) {
        self.clobbered = true;
        self.rr(w, 0x0FBD, d, s);
    }
    pub fn cmc(&mut self) {
        self.clobbered = true;
        self.bytes.push(0xF5);
    }

    /// LOCK CMPXCHG [m], s.
    pub fn lock_cmpxchg(&mut self, w: W, m: Mem, s: Reg) {
        self.clobbered = true;
        self.bytes.push(0xF0);
        self.rm(w, Self::sized(w, 0x0FB1), s, Self::byte_reg(w, s), m);
    }

    // ---- vectors: flags where `Shape::effect` says so
    /// Up to an immediate.
    pub fn vector(&mut self, s: &Shape, reg: Reg, vvvv: Reg, rm: Rm) {
        let (index, base) = match rm {
            Rm::Reg(r) => (NONE, r),
            Rm::Mem(m) => (m.index, m.base),
        };
        let high = |r: Reg| if r == NONE { 0 } else { r >> 3 & 1 };
        let rex = u8::from(s.wide) << 3 | high(reg) << 2 | high(index) << 1 | high(base);
        if s.vex {
            self.vex(s, rex, vvvv);
        } else {
            if s.prefix != 0 {
                self.bytes.push(s.prefix);
            }
            if rex != 0 {
                self.bytes.push(0x40 | rex);
            }
            self.bytes.push(0x0F);
            if s.map != 0 {
                self.bytes.push(s.map);
            }
        }
        self.bytes.push(s.opcode);
        match rm {
            Rm::Reg(r) => self.bytes.push(0xC0 | (reg & 7) << 3 | r & 7),
            Rm::Mem(m) => self.modrm(reg, m),
        }
    }
    /// A three-byte VEX prefix; R, X, B and vvvv are inverted in it.
    fn vex(&mut self, s: &Shape, rex: u8, vvvv: Reg) {
        let map = match s.map {
            0x38 => 2,
            0x3A => 3,
            _ => 1,
        };
        let pp = match s.prefix {
            0x66 => 1,
            0xF3 => 2,
            0xF2 => 3,
            _ => 0,
        };
        self.bytes.extend_from_slice(&[
            0xC4,
            (!rex & 7) << 5 | map,
            u8::from(s.wide) << 7 | (!vvvv & 15) << 3 | u8::from(s.long) << 2 | pp,
        ]);
    }
    pub fn stmxcsr(&mut self, m: Mem) {
        self.rm(W::D, 0x0FAE, 3, NONE, m);
    }
    pub fn crc32(&mut self, w: W, d: Reg, rm: Rm) {
        if w == W::W {
            self.bytes.push(0x66);
        }
        let (index, base, byte) = match rm {
            Rm::Reg(r) => (NONE, r, w == W::B && (4..8).contains(&r)),
            Rm::Mem(m) => (m.index, m.base, false),
        };
        let high = |r: Reg| if r == NONE { 0 } else { r >> 3 & 1 };
        let rex = u8::from(w == W::Q) << 3 | high(d) << 2 | high(index) << 1 | high(base);
        self.bytes.push(0xF2);
        if rex != 0 || byte {
            self.bytes.push(0x40 | rex);
        }
        self.bytes.extend_from_slice(&[0x0F, 0x38, if w == W::B { 0xF0 } else { 0xF1 }]);
        match rm {
            Rm::Reg(r) => self.bytes.push(0xC0 | (d & 7) << 3 | r & 7),
            Rm::Mem(m) => self.modrm(d, m),
        }
    }
    /// MOVUPS, or with `ymm` VMOVUPS of 256 bits.
    /// VZEROUPPER, or VZEROALL.
    pub fn clear_vectors(&mut self, all: bool) {
        self.bytes.extend_from_slice(&[0xC5, if all { 0xFC } else { 0xF8 }, 0x77]);
    }
    /// PXOR of a register with itself: YMM's upper half stays.
    pub fn clear_vector(&mut self, r: Reg) {
        let (high, low) = (r >> 3 & 1, r & 7);
        self.bytes.extend_from_slice(&[0x66, 0x40 | high * 5, 0x0F, 0xEF, 0xC0 | low << 3 | low]);
    }
    pub fn load_vector(&mut self, ymm: bool, d: Reg, m: Mem) {
        self.move_vector(ymm, 0x10, d, m);
    }
    pub fn store_vector(&mut self, ymm: bool, m: Mem, s: Reg) {
        self.move_vector(ymm, 0x11, s, m);
    }
    fn move_vector(&mut self, ymm: bool, opcode: u8, r: Reg, m: Mem) {
        if !ymm {
            return self.rm(W::D, 0x0F00 | u32::from(opcode), r, NONE, m);
        }
        let high = |r: Reg| if r == NONE { 0 } else { r >> 3 & 1 };
        let rex = high(r) << 2 | high(m.index) << 1 | high(m.base);
        self.bytes.extend_from_slice(&[0xC4, (!rex & 7) << 5 | 1, 0x7C, opcode]);
        self.modrm(r, m);
    }
    // ---- x87: no flags but those of FCOMI
    pub fn x87(&mut self, opcode: u16) {
        self.bytes.extend_from_slice(&opcode.to_be_bytes());
    }
    /// With a memory operand: the first byte of the opcode, and its extension.
    pub fn x87_memory(&mut self, escape: u8, extension: u8, m: Mem) {
        self.rm(W::D, escape.into(), extension, NONE, m);
    }
    /// FLD m80.
    pub fn load_extended(&mut self, m: Mem) {
        self.x87_memory(0xDB, 5, m);
    }
    /// FSTP m80.
    pub fn store_extended(&mut self, m: Mem) {
        self.x87_memory(0xDB, 7, m);
    }
    pub fn fldcw(&mut self, m: Mem) {
        self.x87_memory(0xD9, 5, m);
    }

    /// AH = SF, ZF, AF, PF, CF at bits 7, 6, 4, 2, 0.
    pub fn lahf(&mut self) {
        self.bytes.push(0x9F);
    }
    /// And back.
    pub fn sahf(&mut self) {
        self.clobbered = true;
        self.bytes.push(0x9E);
    }

    // ---- control
    pub fn jcc(&mut self, cc: u8, to: Label) {
        self.bytes.extend_from_slice(&[0x0F, 0x80 | cc]);
        self.distance(to);
    }
    pub fn jmp(&mut self, to: Label) {
        self.bytes.push(0xE9);
        self.distance(to);
    }
    pub fn call(&mut self, to: Label) {
        self.clobbered = true;
        self.bytes.push(0xE8);
        self.distance(to);
    }
    fn distance(&mut self, to: Label) {
        self.fixups.push((self.bytes.len() as u32, to));
        self.i32(0);
    }
    /// The way out through a slot: a jump to be written there, until then to what follows (`slots.rs`). `far`: only if
    /// RAX is the tag; spoils RCX.
    pub fn slot_jump(&mut self, slot: usize, far: bool) {
        if far {
            self.head(W::Q, 0xB8 | u32::from(RCX), NONE, NONE, RCX, [NONE; 2]);
            self.bytes.extend_from_slice(&NO_TAG.to_le_bytes());
            self.alu(Alu::Cmp, W::Q, RAX, RCX);
            // Over the jump.
            self.bytes.extend_from_slice(&[0x70 | cc::NE, 5]);
        }
        self.bytes.push(0xE9);
        self.jumps.push((slot, self.bytes.len() as u32));
        self.i32(0);
    }
    pub fn jmp_mem(&mut self, m: Mem) {
        self.rm(W::D, 0xFF, 4, NONE, m);
    }
    /// To an address out of the region; spoils RAX.
    pub fn jmp_far(&mut self, address: u64) {
        self.mov_imm(RAX, address);
        self.ext(W::D, 0xFF, 4, RAX);
    }
    pub fn call_reg(&mut self, r: Reg) {
        self.clobbered = true;
        self.ext(W::D, 0xFF, 2, r);
    }
    pub fn push(&mut self, r: Reg) {
        self.head(W::D, 0x50 | u32::from(r & 7), NONE, NONE, r, [NONE; 2]);
    }
    pub fn pop(&mut self, r: Reg) {
        self.head(W::D, 0x58 | u32::from(r & 7), NONE, NONE, r, [NONE; 2]);
    }
    pub fn ret(&mut self) {
        self.bytes.push(0xC3);
    }
    pub fn bind(&mut self, label: Label) {
        self.clobbered = true;
        self.bound.push((label, self.bytes.len() as u32));
    }

    /// Whether something goes there.
    pub fn uses(&self, label: Label) -> bool {
        self.fixups.iter().any(|f| f.1 == label)
    }

    /// Appends `cold` and resolves all jumps but those of slots, which it returns with the code. None: a label was never bound.
    pub fn finish(mut self, cold: &Asm, labels: &Labels) -> Option<(Vec<u8>, Vec<SlotJump>)> {
        let base = self.bytes.len() as u32;
        let mut places = vec![u32::MAX; labels.0 as usize];
        for &(label, place) in &self.bound {
            places[label.0 as usize] = place;
        }
        for &(label, place) in &cold.bound {
            places[label.0 as usize] = base + place;
        }
        self.bytes.extend_from_slice(&cold.bytes);
        let moved = cold.fixups.iter().map(|&(from, to)| (from + base, to));
        for (from, to) in self.fixups.iter().copied().chain(moved) {
            let place = places[to.0 as usize];
            if place == u32::MAX {
                return None;
            }
            let distance = place.wrapping_sub(from + 4);
            let from = from as usize;
            self.bytes[from..from + 4].copy_from_slice(&distance.to_le_bytes());
        }
        let jumps = self.jumps.iter().map(|j| (j.0, j.1 as usize));
        let moved = cold.jumps.iter().map(|j| (j.0, (j.1 + base) as usize));
        let jumps = jumps.chain(moved).collect();
        Some((self.bytes, jumps))
    }
}
