//! The frame of an instruction: check, read, compute, commit. The macros make the handlers of an operation.
//!
//! An operation on 128 bits serves two encodings. The legacy frame has operand 0 as destination and first source, and
//! leaves what is above 128 bits; the VEX frame runs it on each 128-bit lane, with a first source of its own, and
//! clears what is above the destination. For VEX forms the decoder puts the first source into `r2`, the one that
//! may be memory into `r1`, the vector length into `w` and the size of the memory operand into `imm2` ([`vex_operands`]).

use super::lanes::low;
use crate::Vcpu;
use crate::decode::NO_MEMORY;
use crate::fault::Exit;
use crate::insn::{Handler, Insn, prefix};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// The handlers of an instruction by encoding.
#[derive(Clone, Copy)]
pub struct Forms {
    /// Without VEX prefix: MMX or XMM.
    pub legacy: Handler,
    pub vex: Option<Handler>,
}

impl From<Handler> for Forms {
    fn from(legacy: Handler) -> Self {
        Forms { legacy, vex: None }
    }
}

/// Arranges the operands of a VEX instruction as the head of this file says.
pub fn vex_operands(x: &Instruction, i: &mut Insn) {
    i.prefix |= prefix::VEX;
    i.imm2 = if i.mem_op == NO_MEMORY { 0 } else { x.memory_size().size() as u8 };
    if x.mnemonic() == Mnemonic::Vmaskmovdqu {
        return;
    }
    let count = x.op_count().min(4);
    let register_or_memory = |n: u32| matches!(x.op_kind(n), OpKind::Register | OpKind::Memory);
    let places = (0..count).filter(|&n| register_or_memory(n)).count();
    if places >= 3 {
        let number =
            |n: u32| if x.op_kind(n) == OpKind::Register { x.op_register(n).number() as u8 } else { 0 };
        (i.r1, i.r2) = (number(2), number(1));
    } else {
        i.r2 = i.r1;
    }
    if places == 4 {
        // The mask of VBLENDV.
        i.imm = x.op_register(3).number() as u64;
    }
    let long = (0..count).any(|n| x.op_kind(n) == OpKind::Register && x.op_register(n).is_ymm());
    i.w = if long || i.imm2 == 32 { 32 } else { 16 };
}

impl Vcpu {
    /// Checks what legacy SSE asks for; blocks know whether VEX forms may run.
    #[inline(always)]
    pub(super) fn check_vector(&mut self, i: &Insn) -> Result<(), Exit> {
        if i.has(prefix::VEX) { Ok(()) } else { self.check_sse() }
    }

    /// The first source of an instruction that has both encodings and 128 bits.
    #[inline(always)]
    pub(super) fn first_source(&self, i: &Insn) -> u128 {
        self.xmm(if i.has(prefix::VEX) { i.r2 } else { i.r0 })
    }

    /// Writes the destination of such an instruction.
    #[inline(always)]
    pub(super) fn set_destination(&mut self, i: &Insn, value: u128) {
        if i.has(prefix::VEX) { self.set_ymm(i.r0, [value, 0]) } else { self.set_xmm(i.r0, value) }
    }

    /// All of a vector register, as two lanes.
    #[inline(always)]
    pub(super) fn ymm(&self, n: u8) -> [u128; 2] {
        let r = &self.state.zmm[usize::from(n & 31)];
        [u128::from(r[1]) << 64 | u128::from(r[0]), u128::from(r[3]) << 64 | u128::from(r[2])]
    }

    #[inline(always)]
    pub(super) fn set_ymm(&mut self, n: u8, [low, high]: [u128; 2]) {
        let r = &mut self.state.zmm[usize::from(n & 31)];
        *r = [low as u64, (low >> 64) as u64, high as u64, (high >> 64) as u64, 0, 0, 0, 0];
    }

    /// Writes a result of the vector length: above 128 bits a short one clears.
    #[inline(always)]
    pub(super) fn set_vex(&mut self, i: &Insn, [low, high]: [u128; 2]) {
        self.set_ymm(i.r0, [low, if i.w == 32 { high } else { 0 }]);
    }

    /// The memory operand of a VEX form, zero-extended. No alignment is asked for.
    pub(super) fn vex_memory(&mut self, i: &Insn) -> Result<[u128; 2], Exit> {
        let size = i.imm2;
        let address = self.operand_address(i, u32::from(size), false)?;
        match size {
            16 => Ok([self.load_128(i.seg, address)?, 0]),
            32 => {
                let low = self.load_128(i.seg, address)?;
                Ok([low, self.load_128(i.seg, address.wrapping_add(16))?])
            }
            _ => Ok([u128::from(self.load_sized(i.seg, address, size)?), 0]),
        }
    }

    /// The source of a VEX form that may be memory.
    #[inline(always)]
    pub(super) fn vex_source(&mut self, i: &Insn) -> Result<[u128; 2], Exit> {
        if i.memory() { self.vex_memory(i) } else { Ok(self.ymm(i.r1)) }
    }

    /// The linear address of a 16-byte operand that must be aligned: #GP(0).
    #[inline(always)]
    pub(super) fn aligned_operand(&mut self, i: &Insn, write: bool) -> Result<u64, Exit> {
        let address = self.operand_address(i, 16, write)?;
        if address & 15 != 0 {
            return Err(self.protection());
        }
        Ok(address)
    }

    /// Loads the memory operand of `N` bytes, zero-extended; 16 bytes must be aligned.
    #[inline(always)]
    pub(super) fn load_operand<const N: u32>(&mut self, i: &Insn) -> Result<u128, Exit> {
        if N == 16 {
            let address = self.aligned_operand(i, false)?;
            return self.load_128(i.seg, address);
        }
        let address = self.operand_address(i, N, false)?;
        let value = match N {
            1 => self.load::<1>(i.seg, address),
            2 => self.load::<2>(i.seg, address),
            4 => self.load::<4>(i.seg, address),
            _ => self.load::<8>(i.seg, address),
        };
        value.map(u128::from)
    }

    /// Stores the memory operand of `N` bytes; 16 bytes must be aligned.
    #[inline(always)]
    pub(super) fn store_operand<const N: u32>(&mut self, i: &Insn, value: u128) -> Result<(), Exit> {
        if N == 16 {
            let address = self.aligned_operand(i, true)?;
            return self.store_128(i.seg, address, value);
        }
        let address = self.operand_address(i, N, true)?;
        match N {
            1 => self.store::<1>(i.seg, address, value as u64),
            2 => self.store::<2>(i.seg, address, value as u64),
            4 => self.store::<4>(i.seg, address, value as u64),
            _ => self.store::<8>(i.seg, address, value as u64),
        }
    }

    /// Operand 1: all of an XMM register, or `N` bytes of memory.
    #[inline(always)]
    pub(super) fn xmm_source<const N: u32>(&mut self, i: &Insn) -> Result<u128, Exit> {
        if i.memory() { self.load_operand::<N>(i) } else { Ok(self.xmm(i.r1)) }
    }

    /// Operand 1: an MMX register, or `N` bytes of memory.
    #[inline(always)]
    pub(super) fn mm_source<const N: u32>(&mut self, i: &Insn) -> Result<u128, Exit> {
        if i.memory() { self.load_operand::<N>(i) } else { Ok(u128::from(self.mm(i.r1))) }
    }
}

/// XMM destination and first source, XMM or `N` bytes of memory.
#[inline(always)]
pub fn binary_128<const N: u32>(v: &mut Vcpu, i: &Insn, f: impl Fn(u128, u128) -> u128) -> Result<(), Exit> {
    v.check_sse()?;
    let b = v.xmm_source::<N>(i)?;
    let r = f(v.xmm(i.r0), b);
    v.set_xmm(i.r0, r);
    Ok(())
}

/// How the lanes of a VEX form's second source correspond to those of the result.
pub mod shape {
    /// Lane by lane.
    pub const EVEN: u8 = 0;
    /// A result lane is made of half as many bits of the source.
    pub const WIDER_2: u8 = 8;
    /// Of a quarter.
    pub const WIDER_4: u8 = 4;
    /// Of an eighth.
    pub const WIDER_8: u8 = 2;
    /// Both lanes see the same: shift counts.
    pub const SAME: u8 = 255;
    /// A source lane makes half a result lane.
    pub const NARROWER: u8 = 64;
}

/// The VEX frame: `f` takes the lane's number, the first source's lane and the second's. See [`shape`].
#[inline(always)]
pub fn vex_lanes<const SHAPE: u8>(
    v: &mut Vcpu,
    i: &Insn,
    mut f: impl FnMut(u32, u128, u128) -> u128,
) -> Result<[u128; 2], Exit> {
    let b = v.vex_source(i)?;
    let a = v.ymm(i.r2);
    let second = match SHAPE {
        shape::SAME => b[0],
        shape::WIDER_2 | shape::WIDER_4 | shape::WIDER_8 => b[0] >> (u32::from(SHAPE) * 8),
        _ => b[1],
    };
    let first = f(0, a[0], b[0]);
    if i.w == 16 {
        return Ok([first, 0]);
    }
    let second = f(1, a[1], second);
    Ok(if SHAPE == shape::NARROWER { [low(first) | second << 64, 0] } else { [first, second] })
}

/// An operation without exceptions in the VEX frame.
#[inline(always)]
pub fn vex<const SHAPE: u8>(v: &mut Vcpu, i: &Insn, f: impl Fn(u32, u128, u128) -> u128) -> Result<(), Exit> {
    let r = vex_lanes::<SHAPE>(v, i, f)?;
    v.set_ymm(i.r0, r);
    Ok(())
}

/// A floating-point operation in the VEX frame: exceptions of all lanes are one.
#[inline(always)]
pub fn vex_float<const SHAPE: u8>(
    v: &mut Vcpu,
    i: &Insn,
    f: impl Fn(u128, u128, u32) -> (u128, u32),
) -> Result<(), Exit> {
    let (mxcsr, mut flags) = (v.state.mxcsr, 0);
    let r = vex_lanes::<SHAPE>(v, i, |_, a, b| {
        let (r, new) = f(a, b, mxcsr);
        flags |= new;
        r
    })?;
    v.float_flags(flags)?;
    v.set_ymm(i.r0, r);
    Ok(())
}

/// The immediate as lane `n` sees it: some instructions have `BITS` bits for each lane.
#[inline(always)]
pub fn lane_immediate<const BITS: u32>(i: &Insn, n: u32) -> u8 {
    (i.imm as u8) >> (n * BITS)
}

/// MMX destination and first source, MMX or `N` bytes of memory. `f` works on the low halves.
#[inline(always)]
pub fn binary_64<const N: u32>(v: &mut Vcpu, i: &Insn, f: impl Fn(u128, u128) -> u128) -> Result<(), Exit> {
    v.check_mmx()?;
    let b = v.mm_source::<N>(i)?;
    let r = f(u128::from(v.mm(i.r0)), low(b));
    v.set_mm(i.r0, r as u64);
    Ok(())
}

/// What a function of the floating-point unit is: operands and MXCSR to result and new flags.
pub type Operation = fn(u128, u128, u32) -> (u128, u32);

/// A floating-point operation: XMM destination and first source, XMM or `N` bytes of memory.
#[inline(always)]
pub fn binary_float<const N: u32>(
    v: &mut Vcpu,
    i: &Insn,
    f: impl Fn(u128, u128, u32) -> (u128, u32),
) -> Result<(), Exit> {
    v.check_sse()?;
    let b = v.xmm_source::<N>(i)?;
    let (r, flags) = f(v.xmm(i.r0), b, v.state.mxcsr);
    v.float_flags(flags)?;
    v.set_xmm(i.r0, r);
    Ok(())
}

/// A handler of a function `|v, i|`.
macro_rules! handler {
    ($f:expr) => {{
        fn run(v: &mut $crate::Vcpu, i: &$crate::insn::Insn) -> Result<(), $crate::fault::Exit> {
            $f(v, i)
        }
        run as $crate::insn::Handler
    }};
}

/// A function that serves both encodings.
macro_rules! shared {
    ($f:expr) => {{
        let run = $crate::simd::operands::handler!($f);
        $crate::simd::operands::Forms { legacy: run, vex: Some(run) }
    }};
}

/// A function for each encoding.
macro_rules! forms {
    ($legacy:expr, $vex:expr) => {
        $crate::simd::operands::Forms {
            legacy: $crate::simd::operands::handler!($legacy),
            vex: Some($crate::simd::operands::handler!($vex)),
        }
    };
}

/// XMM forms of an operation `|a, b|`, or `|a, b, imm8|` after `imm`; memory operands of the legacy form have `N` bytes.
/// `lanes BITS`: the second lane's immediate is that far up. `SHAPE`: see `shape`.
macro_rules! xmm {
    (imm $n:literal, lanes $bits:literal, $f:expr) => {
        $crate::simd::operands::forms!(
            |v, i: &$crate::insn::Insn| {
                $crate::simd::operands::binary_128::<$n>(v, i, |a, b| $f(a, b, i.imm as u8))
            },
            |v, i: &$crate::insn::Insn| {
                $crate::simd::operands::vex::<{ $crate::simd::operands::shape::EVEN }>(v, i, |n, a, b| {
                    $f(a, b, $crate::simd::operands::lane_immediate::<$bits>(i, n))
                })
            }
        )
    };
    (imm $n:literal, $f:expr) => {
        $crate::simd::operands::xmm!(imm $n, lanes 0, $f)
    };
    ($n:literal, $shape:expr, $f:expr) => {
        $crate::simd::operands::forms!(
            |v, i| $crate::simd::operands::binary_128::<$n>(v, i, $f),
            |v, i| $crate::simd::operands::vex::<{ $shape }>(v, i, |_, a, b| $f(a, b))
        )
    };
    ($n:literal, $f:expr) => {
        $crate::simd::operands::xmm!($n, $crate::simd::operands::shape::EVEN, $f)
    };
    ($f:expr) => {
        $crate::simd::operands::xmm!(16, $f)
    };
}

/// MMX form, likewise.
macro_rules! mmx {
    (imm $n:literal, $f:expr) => {
        $crate::simd::operands::Forms::from($crate::simd::operands::handler!(|v, i: &$crate::insn::Insn| {
            $crate::simd::operands::binary_64::<$n>(v, i, |a, b| $f(a, b, i.imm as u8))
        }))
    };
    ($n:literal, $f:expr) => {
        $crate::simd::operands::Forms::from($crate::simd::operands::handler!(|v, i| {
            $crate::simd::operands::binary_64::<$n>(v, i, $f)
        }))
    };
    ($f:expr) => {
        $crate::simd::operands::mmx!(8, $f)
    };
}

/// Both forms of an operation that stays within lanes of up to 64 bits.
macro_rules! both {
    ($x:expr, $f:expr) => {
        if $crate::simd::is_mmx($x) {
            $crate::simd::operands::mmx!($f)
        } else {
            $crate::simd::operands::xmm!($f)
        }
    };
}

/// Both forms of an operation `|a, b, size in bytes|`.
macro_rules! sized {
    ($x:expr, $f:expr) => {
        if $crate::simd::is_mmx($x) {
            $crate::simd::operands::mmx!(|a, b| $f(a, b, 8))
        } else {
            $crate::simd::operands::xmm!(|a, b| $f(a, b, 16))
        }
    };
}

/// A floating-point operation with `N` bytes of memory as second operand.
macro_rules! float {
    ($n:literal, $shape:expr, $f:expr) => {
        $crate::simd::operands::forms!(|v, i| $crate::simd::operands::binary_float::<$n>(v, i, $f), |v, i| {
            $crate::simd::operands::vex_float::<{ $shape }>(v, i, $f)
        })
    };
    ($n:literal, $f:expr) => {
        $crate::simd::operands::float!($n, $crate::simd::operands::shape::EVEN, $f)
    };
}

pub(super) use {both, float, forms, handler, mmx, shared, sized, xmm};
