//! The frame of an instruction: check, read, compute, commit. The macros make a handler of an operation.

use super::lanes::low;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::Insn;

impl Vcpu {
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

/// XMM form of an operation `|a, b|`, or `|a, b, imm8|` after `imm`; memory operands of `N` bytes.
macro_rules! xmm {
    (imm $n:literal, $f:expr) => {
        $crate::simd::operands::handler!(|v, i: &$crate::insn::Insn| {
            $crate::simd::operands::binary_128::<$n>(v, i, |a, b| $f(a, b, i.imm as u8))
        })
    };
    ($n:literal, $f:expr) => {
        $crate::simd::operands::handler!(|v, i| $crate::simd::operands::binary_128::<$n>(v, i, $f))
    };
    ($f:expr) => {
        $crate::simd::operands::xmm!(16, $f)
    };
}

/// MMX form, likewise.
macro_rules! mmx {
    (imm $n:literal, $f:expr) => {
        $crate::simd::operands::handler!(|v, i: &$crate::insn::Insn| {
            $crate::simd::operands::binary_64::<$n>(v, i, |a, b| $f(a, b, i.imm as u8))
        })
    };
    ($n:literal, $f:expr) => {
        $crate::simd::operands::handler!(|v, i| $crate::simd::operands::binary_64::<$n>(v, i, $f))
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
    ($n:literal, $f:expr) => {
        $crate::simd::operands::handler!(|v, i| $crate::simd::operands::binary_float::<$n>(v, i, $f))
    };
}

pub(super) use {both, float, handler, mmx, sized, xmm};
