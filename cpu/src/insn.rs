//! A decoded instruction as the engines run it: 48 bytes, no pointer into the decoder's tables.

use crate::Vcpu;
use crate::fault::Exit;
use crate::kernels::Kernel;
use iced_x86::Code;

/// A handler: one instruction's meaning, specialised by `decode.rs` for its operand forms.
pub type Handler = fn(&mut Vcpu, &Insn) -> Result<(), Exit>;

/// Width of an operand: 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum W {
    B = 1,
    W = 2,
    D = 4,
    Q = 8,
}

impl W {
    pub const fn bytes(self) -> u8 {
        self as u8
    }
    pub const fn bits(self) -> u32 {
        self as u32 * 8
    }
    /// All ones of this width.
    pub const fn mask(self) -> u64 {
        !0 >> (64 - self.bits())
    }
    pub const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }
    /// Sign-extends from this width to 64 bits.
    pub const fn sext(self, v: u64) -> u64 {
        let unused = 64 - self.bits();
        (((v << unused) as i64) >> unused) as u64
    }
    pub const fn from_bytes(bytes: u8) -> W {
        match bytes {
            1 => W::B,
            2 => W::W,
            4 => W::D,
            _ => W::Q,
        }
    }
}

/// Prefix bits in [`Insn::prefix`].
pub mod prefix {
    pub const LOCK: u16 = 1;
    /// REP / REPE.
    pub const REP: u16 = 2;
    pub const REPNE: u16 = 4;
    /// The memory operand's segment must be checked (real and protected mode with segments that are not
    /// known to be flat).
    pub const CHECKED: u16 = 8;
    /// 64-bit mode.
    pub const CODE64: u16 = 16;
    /// The stack pointer is SP, not ESP.
    pub const STACK16: u16 = 32;
    /// There is a memory operand.
    pub const MEMORY: u16 = 64;
    /// The memory operand was given a segment by prefix.
    pub const OVERRIDE: u16 = 128;
    /// A VEX prefix.
    pub const VEX: u16 = 512;
    /// Accesses to the stack must be checked against SS.
    pub const CHECKED_STACK: u16 = 256;
}

/// See the head of this file. What an operand's number means follows from `code`: general registers 0 to 15,
/// byte registers AH, CH, DH, BH 16 to 19 + 4 (`16 | number`), segment, control, vector registers by number.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Insn {
    pub run: Handler,
    /// Displacement of the memory operand, sign-extended; relative to the next RIP with base RIP.
    pub disp: u64,
    /// Immediate, sign-extended to 64 bits; for near branches the distance from the next RIP; for far
    /// pointers selector << 32 | offset.
    pub imm: u64,
    /// Second immediate (ENTER's level, EXTRQ …).
    pub imm2: u8,
    pub code: Code,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// Operand size in bytes; 16 and up for vectors.
    pub w: u8,
    /// Address size in bytes: 2, 4 or 8.
    pub asize: u8,
    pub base: u8,
    pub index: u8,
    /// Shift count for the index: 0 to 3.
    pub scale: u8,
    /// Segment of the memory operand ([`crate::state::seg`]).
    pub seg: u8,
    /// Register numbers of operands 0 to 2, where those are registers.
    pub r0: u8,
    pub r1: u8,
    pub r2: u8,
    /// Which operand is in memory; 0xFF: none.
    pub mem_op: u8,
    pub prefix: u16,
    /// What a translator runs, and the operand form ([`crate::interp::form`]).
    pub kernel: Kernel,
    pub form: u8,
}

impl Insn {
    pub fn width(&self) -> W {
        W::from_bytes(self.w)
    }
    pub fn has(&self, bits: u16) -> bool {
        self.prefix & bits != 0
    }
    /// Whether an operand is in memory.
    pub fn memory(&self) -> bool {
        self.has(prefix::MEMORY)
    }
    /// Width of the stack pointer.
    pub fn stack_width(&self) -> W {
        match self.prefix & (prefix::CODE64 | prefix::STACK16) {
            0 => W::D,
            prefix::STACK16 => W::W,
            _ => W::Q,
        }
    }
    /// Mask of the address size.
    #[inline(always)]
    pub fn address_mask(&self) -> u64 {
        match self.asize {
            2 => 0xFFFF,
            4 => 0xFFFF_FFFF,
            _ => !0,
        }
    }
}

impl std::fmt::Debug for Insn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} w{} len{}", self.code, self.w, self.len)
    }
}
