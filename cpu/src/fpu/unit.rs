//! The register stack, exceptions, and how every instruction of the unit begins and ends.

use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::Insn;
use crate::state::{F80, X87, cr0, seg};

/// Bits of the status word. The masks of IE to PE stand at the same places of the control word.
pub mod status {
    pub const IE: u16 = 1 << 0;
    pub const DE: u16 = 1 << 1;
    pub const ZE: u16 = 1 << 2;
    pub const OE: u16 = 1 << 3;
    pub const UE: u16 = 1 << 4;
    pub const PE: u16 = 1 << 5;
    pub const EXCEPTIONS: u16 = 0x3F;
    /// Stack fault.
    pub const SF: u16 = 1 << 6;
    /// Error summary: an unmasked exception waits.
    pub const ES: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const C3: u16 = 1 << 14;
    pub const CONDITIONS: u16 = C0 | C1 | C2 | C3;
    pub const B: u16 = 1 << 15;
    /// Exceptions that are found before there is a result: unmasked, they leave the operands as they are.
    pub const EARLY: u16 = IE | DE | ZE;
}
use status::*;

/// Rounding control.
pub const RC: u16 = 3 << 10;
/// Precision control.
pub const PC: u16 = 3 << 8;
/// The control word after FNINIT.
pub const INITIAL_CONTROL: u16 = 0x37F;

/// The QNaN that masked invalid operations deliver.
pub const INDEFINITE: F80 = F80 { significand: 0xC000_0000_0000_0000, sign_exponent: 0xFFFF };
pub const ONE: F80 = F80 { significand: 1 << 63, sign_exponent: 0x3FFF };

impl F80 {
    pub fn negative(self) -> bool {
        self.sign_exponent >> 15 != 0
    }
    /// Biased.
    pub fn exponent(self) -> u16 {
        self.sign_exponent & 0x7FFF
    }
    pub fn with_sign(self, negative: bool) -> F80 {
        F80 { sign_exponent: self.exponent() | u16::from(negative) << 15, ..self }
    }
    pub fn is_zero(self) -> bool {
        self.exponent() == 0 && self.significand == 0
    }
    pub fn is_infinite(self) -> bool {
        self.exponent() == 0x7FFF && self.significand == 1 << 63
    }
    /// Quiet or signaling.
    pub fn is_nan(self) -> bool {
        self.exponent() == 0x7FFF && self.significand > 1 << 63
    }
    pub fn is_signaling(self) -> bool {
        self.is_nan() && self.significand & 1 << 62 == 0
    }
    /// Pseudo-denormals included.
    pub fn is_denormal(self) -> bool {
        self.exponent() == 0 && self.significand != 0
    }
    /// Unnormals, pseudo-infinities, pseudo-NaNs: the 387 dropped them.
    pub fn is_unsupported(self) -> bool {
        self.exponent() != 0 && self.significand >> 63 == 0
    }
}

impl X87 {
    pub fn top(&self) -> u8 {
        (self.status >> 11 & 7) as u8
    }
    pub fn set_top(&mut self, top: u8) {
        self.status = self.status & !(7 << 11) | u16::from(top & 7) << 11;
    }
    /// Physical number of ST(`n`).
    fn physical(&self, n: u8) -> u8 {
        (self.top() + n) & 7
    }
    pub fn st(&self, n: u8) -> F80 {
        self.registers[usize::from(self.physical(n))]
    }
    pub fn empty(&self, n: u8) -> bool {
        self.valid & 1 << self.physical(n) == 0
    }
    pub fn set_st(&mut self, n: u8, value: F80) {
        let n = self.physical(n);
        self.registers[usize::from(n)] = value;
        self.valid |= 1 << n;
    }
    pub fn free(&mut self, n: u8) {
        self.valid &= !(1 << self.physical(n));
    }
    pub fn push(&mut self, value: F80) {
        self.set_top(self.top().wrapping_sub(1));
        self.set_st(0, value);
    }
    pub fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top() + 1);
    }
    pub fn pop_times(&mut self, n: u8) {
        for _ in 0..n {
            self.pop();
        }
    }

    /// Derives ES and B from exceptions and masks.
    pub fn summarize(&mut self) {
        self.status &= !(ES | B);
        if self.status & !self.control & EXCEPTIONS != 0 {
            self.status |= ES | B;
        }
    }
    /// Records exceptions of `i` and replaces the condition codes of `conditions`. True: no unmasked exception
    /// prevents the result.
    pub fn report(&mut self, i: &Insn, flags: u16, conditions: u16) -> bool {
        let proceed = flags & !self.control & EARLY == 0;
        let conditions = if proceed { conditions } else { C1 };
        let flags = if proceed || flags & SF != 0 { flags } else { flags & !C1 };
        self.status = self.status & !conditions | flags & (conditions | EXCEPTIONS | SF);
        self.summarize();
        if flags & !self.control & EXCEPTIONS != 0 {
            self.opcode = i.imm as u16 & 0x7FF;
        }
        proceed
    }
    /// An operand is missing. True: masked, go on with [`INDEFINITE`].
    pub fn underflow(&mut self, i: &Insn) -> bool {
        self.report(i, IE | SF, C1)
    }
    /// No room for a push. True: masked.
    pub fn overflow(&mut self, i: &Insn) -> bool {
        self.report(i, IE | SF | C1, C1)
    }
    /// Whether a push has room; if not, does what a stack overflow asks for.
    pub fn room(&mut self, i: &Insn) -> bool {
        if self.empty(7) {
            return true;
        }
        if self.overflow(i) {
            self.push(INDEFINITE);
        }
        false
    }

    /// Loads the control word: bit 6 reads 1, the other reserved bits 0.
    pub fn set_control(&mut self, control: u16) {
        self.control = control & 0x1F3F | 0x40;
        self.summarize();
    }

    /// FNINIT.
    pub fn initialize(&mut self) {
        self.control = INITIAL_CONTROL;
        self.status = 0;
        self.valid = 0;
        self.opcode = 0;
        self.instruction_selector = 0;
        self.data_selector = 0;
        self.instruction_pointer = 0;
        self.data_pointer = 0;
    }
}

impl Vcpu {
    /// #NM if the unit is emulated or belongs to another task.
    pub(super) fn x87_available(&mut self) -> Result<(), Exit> {
        if self.state.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(self.raise(vector::NM));
        }
        Ok(())
    }

    /// How waiting instructions begin: availability, then exceptions of earlier instructions. With CR0.NE = 0
    /// the external interrupt is raised and the instruction goes on, as if IGNNE# were active.
    #[inline(always)]
    pub(super) fn x87_enter(&mut self) -> Result<(), Exit> {
        if self.state.cr0 & (cr0::EM | cr0::TS) != 0 || self.state.x87.status & ES != 0 {
            return self.x87_enter_slow();
        }
        Ok(())
    }

    #[cold]
    fn x87_enter_slow(&mut self) -> Result<(), Exit> {
        self.x87_available()?;
        self.x87_pending()
    }

    /// #MF or FERR# if an unmasked exception waits.
    pub(super) fn x87_pending(&mut self) -> Result<(), Exit> {
        if self.state.x87.status & ES == 0 {
            return Ok(());
        }
        if self.state.cr0 & cr0::NE != 0 {
            return Err(self.raise(vector::MF));
        }
        self.publish_retired();
        self.bus.x87_error(self.id);
        self.stop_block = true;
        Ok(())
    }

    /// Records the pointers of a non-control instruction, which cannot fault any more.
    #[inline(always)]
    pub(super) fn x87_note(&mut self, i: &Insn) {
        let s = &mut self.state;
        s.x87.instruction_pointer = s.gpr[crate::state::gpr::RIP].wrapping_sub(u64::from(i.len));
        s.x87.instruction_selector = s.seg[seg::CS].selector;
        if i.memory() {
            self.state.x87.data_pointer = self.effective_address(i);
            self.state.x87.data_selector = self.state.seg[usize::from(i.r2) & 7].selector;
        }
    }

    /// Reads an operand of up to 8 bytes.
    pub(super) fn x87_load(&mut self, i: &Insn, bytes: u8) -> Result<u64, Exit> {
        let address = self.operand_address(i, u32::from(bytes), false)?;
        self.load_sized(i.seg, address, bytes)
    }

    /// Writes an operand of up to 8 bytes.
    pub(super) fn x87_store(&mut self, i: &Insn, bytes: u8, value: u64) -> Result<(), Exit> {
        let address = self.operand_address(i, u32::from(bytes), true)?;
        self.store_sized(i.seg, address, bytes, value)
    }
}
