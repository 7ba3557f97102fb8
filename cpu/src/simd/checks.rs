//! Whether an instruction of this unit may run, and the vector registers (SDM Vol. 3, "System Programming for
//! Instruction Set Extensions", "MMX Technology System Programming").

use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::state::{cr0, cr4};

/// MXCSR (SDM Vol. 1, "MXCSR Control and Status Register").
pub mod mxcsr {
    pub const IE: u32 = 1 << 0;
    pub const DE: u32 = 1 << 1;
    pub const ZE: u32 = 1 << 2;
    pub const OE: u32 = 1 << 3;
    pub const UE: u32 = 1 << 4;
    pub const PE: u32 = 1 << 5;
    /// The six sticky flags.
    pub const FLAGS: u32 = 0x3F;
    pub const DAZ: u32 = 1 << 6;
    /// The six masks: a flag's bit, this many places up.
    pub const MASK_SHIFT: u32 = 7;
    pub const MASKS: u32 = FLAGS << MASK_SHIFT;
    pub const OM: u32 = OE << MASK_SHIFT;
    pub const UM: u32 = UE << MASK_SHIFT;
    /// Rounding control: nearest, down, up, toward zero.
    pub const RC_SHIFT: u32 = 13;
    pub const RC: u32 = 3 << RC_SHIFT;
    pub const FTZ: u32 = 1 << 15;
    /// Bits that software may set (the MXCSR_MASK of FXSAVE).
    pub const WRITABLE: u32 = 0xFFFF;
}

/// The x87 status word: error summary and top of stack.
const ES: u16 = 1 << 7;
const TOP: u16 = 7 << 11;

impl Vcpu {
    /// SSE instructions: #UD without CR4.OSFXSR or with CR0.EM, #NM with CR0.TS.
    #[inline(always)]
    pub(super) fn check_sse(&mut self) -> Result<(), Exit> {
        if self.state.cr0 & (cr0::EM | cr0::TS) == 0 && self.state.cr4 & cr4::OSFXSR != 0 {
            return Ok(());
        }
        Err(self.sse_unavailable())
    }

    #[cold]
    fn sse_unavailable(&mut self) -> Exit {
        let undefined = self.state.cr0 & cr0::EM != 0 || self.state.cr4 & cr4::OSFXSR == 0;
        self.raise(if undefined { vector::UD } else { vector::NM })
    }

    /// MMX instructions: #UD with CR0.EM, #NM with CR0.TS, #MF when an x87 error waits.
    #[inline(always)]
    pub(super) fn check_mmx(&mut self) -> Result<(), Exit> {
        if self.state.cr0 & (cr0::EM | cr0::TS) == 0 && self.state.x87.status & ES == 0 {
            return Ok(());
        }
        Err(self.mmx_unavailable())
    }

    #[cold]
    fn mmx_unavailable(&mut self) -> Exit {
        let s = &self.state;
        let vector = match () {
            () if s.cr0 & cr0::EM != 0 => vector::UD,
            () if s.cr0 & cr0::TS != 0 => vector::NM,
            () => vector::MF,
        };
        self.raise(vector)
    }

    /// Every MMX instruction but EMMS leaves TOP 0 and all tags valid.
    #[inline(always)]
    pub(super) fn enter_mmx(&mut self) {
        self.state.x87.status &= !TOP;
        self.state.x87.valid = 0xFF;
    }

    #[inline(always)]
    pub(super) fn mm(&self, n: u8) -> u64 {
        self.state.x87.registers[usize::from(n & 7)].significand
    }

    /// Writes an MMX register, and enters the MMX state.
    #[inline(always)]
    pub(super) fn set_mm(&mut self, n: u8, value: u64) {
        self.enter_mmx();
        let r = &mut self.state.x87.registers[usize::from(n & 7)];
        (r.significand, r.sign_exponent) = (value, 0xFFFF);
    }

    #[inline(always)]
    pub(super) fn xmm(&self, n: u8) -> u128 {
        let r = &self.state.zmm[usize::from(n & 31)];
        u128::from(r[1]) << 64 | u128::from(r[0])
    }

    /// Writes the low 128 bits; those above stay, as legacy SSE has it.
    #[inline(always)]
    pub(super) fn set_xmm(&mut self, n: u8, value: u128) {
        let r = &mut self.state.zmm[usize::from(n & 31)];
        (r[0], r[1]) = (value as u64, (value >> 64) as u64);
    }

    /// Loads MXCSR. Blocks depend on its controls.
    pub(super) fn set_mxcsr(&mut self, value: u32) {
        self.stop_block |= (self.state.mxcsr ^ value) & !mxcsr::FLAGS != 0;
        self.state.mxcsr = value;
    }

    /// Makes new floating-point flags sticky; an unmasked one is #XM, or #UD without CR4.OSXMMEXCPT.
    #[inline(always)]
    pub(super) fn float_flags(&mut self, new: u32) -> Result<(), Exit> {
        if new & !(self.state.mxcsr >> mxcsr::MASK_SHIFT) & mxcsr::FLAGS != 0 {
            return Err(self.float_exception(new));
        }
        self.state.mxcsr |= new;
        Ok(())
    }

    #[cold]
    fn float_exception(&mut self, new: u32) -> Exit {
        const BEFORE: u32 = mxcsr::IE | mxcsr::DE | mxcsr::ZE;
        let unmasked = new & !(self.state.mxcsr >> mxcsr::MASK_SHIFT);
        // An exception found before computing hides those of the result.
        self.state.mxcsr |= if unmasked & BEFORE != 0 { new & BEFORE } else { new };
        let reported = self.state.cr4 & cr4::OSXMMEXCPT != 0;
        self.raise(if reported { vector::XM } else { vector::UD })
    }
}
