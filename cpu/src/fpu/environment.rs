//! FLDENV, FNSTENV, FRSTOR, FNSAVE: the environment in memory (SDM Vol. 1, "Saving the x87 FPU's State with
//! FSTENV/FNSTENV and FSAVE/FNSAVE"), 16 or 32 bits wide, with selectors (protected mode) or with linear
//! pointers (real-address and virtual-8086 mode).

use super::unit::status::EXCEPTIONS;
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::Insn;
use crate::state::{F80, X87};

/// The longest image: a 32-bit environment and eight registers.
const LONGEST: usize = 28 + 80;

/// Bytes of the environment. The operand is that, or that and 80 bytes of registers.
fn environment_size(i: &Insn) -> usize {
    if matches!(i.w, 14 | 94) { 14 } else { 28 }
}

impl X87 {
    /// The tag word with two bits for each physical register: valid, zero, special, empty.
    pub fn full_tags(&self) -> u16 {
        (0..8).fold(0, |word, n| {
            let r = self.registers[n];
            let tag = if self.valid & 1 << n == 0 {
                3
            } else if r.is_zero() {
                1
            } else if matches!(r.exponent(), 0 | 0x7FFF) || r.is_unsupported() {
                2
            } else {
                0
            };
            word | tag << (n * 2)
        })
    }

    /// Only "empty" counts: the processor derives the rest.
    fn set_full_tags(&mut self, word: u16) {
        self.valid = (0..8).filter(|n| word >> (n * 2) & 3 != 3).fold(0, |valid, n| valid | 1 << n);
    }

    /// The seven fields of the image.
    fn environment(&self, real: bool, wide: bool) -> [u32; 7] {
        let (ip, dp) = (self.instruction_pointer as u32, self.data_pointer as u32);
        let opcode = u32::from(self.opcode & 0x7FF);
        let pointers = if real {
            let ip = (u32::from(self.instruction_selector) << 4).wrapping_add(ip);
            let dp = (u32::from(self.data_selector) << 4).wrapping_add(dp);
            let high = |p: u32| if wide { p >> 16 << 12 } else { p >> 16 << 12 & 0xF000 };
            [ip & 0xFFFF, high(ip) | opcode, dp & 0xFFFF, high(dp)]
        } else {
            let (cs, ds) = (u32::from(self.instruction_selector), u32::from(self.data_selector));
            if wide { [ip, cs | opcode << 16, dp, 0xFFFF_0000 | ds] } else { [ip, cs, dp, ds] }
        };
        let [a, b, c, d] = pointers;
        let word = |w: u16| 0xFFFF_0000 | u32::from(w);
        [word(self.control), word(self.status), word(self.full_tags()), a, b, c, d]
    }

    fn set_environment(&mut self, f: [u32; 7], real: bool, wide: bool) {
        self.set_full_tags(f[2] as u16);
        self.status = f[1] as u16;
        self.set_control(f[0] as u16);
        if real {
            let linear = |low: u32, high: u32| {
                let mask = if wide { 0xFFFF_0000 } else { 0xF_0000 };
                u64::from(low & 0xFFFF | high << 4 & mask)
            };
            self.instruction_pointer = linear(f[3], f[4]);
            self.data_pointer = linear(f[5], f[6]);
            (self.instruction_selector, self.data_selector) = (0, 0);
            self.opcode = f[4] as u16 & 0x7FF;
        } else {
            self.instruction_pointer = u64::from(f[3]);
            self.data_pointer = u64::from(f[5]);
            self.instruction_selector = f[4] as u16;
            self.data_selector = f[6] as u16;
            self.opcode = if wide { (f[4] >> 16) as u16 & 0x7FF } else { 0 };
        }
    }
}

/// Stores the environment, with `registers` those after it.
fn store(v: &mut Vcpu, i: &Insn, registers: bool) -> Result<(), Exit> {
    let size = environment_size(i);
    let wide = size == 28;
    let total = if registers { size + 80 } else { size };
    let address = v.operand_address(i, total as u32, true)?;
    let x = &v.state.x87;
    let mut image = [0; LONGEST];
    for (n, field) in x.environment(v.state.real_or_v86(), wide).into_iter().enumerate() {
        let bytes = field.to_le_bytes();
        let width = size / 7;
        image[n * width..][..width].copy_from_slice(&bytes[..width]);
    }
    for n in 0..8 {
        let at = size + usize::from(n) * 10;
        let r = x.st(n);
        image[at..at + 8].copy_from_slice(&r.significand.to_le_bytes());
        image[at + 8..at + 10].copy_from_slice(&r.sign_exponent.to_le_bytes());
        if !registers {
            break;
        }
    }
    v.store_bytes(i.seg, address, &image[..total])
}

/// Loads the environment, with `registers` those after it.
fn load(v: &mut Vcpu, i: &Insn, registers: bool) -> Result<(), Exit> {
    let size = environment_size(i);
    let total = if registers { size + 80 } else { size };
    let address = v.operand_address(i, total as u32, false)?;
    let mut image = [0; LONGEST];
    v.load_bytes(i.seg, address, &mut image[..total])?;
    let width = size / 7;
    let fields = std::array::from_fn(|n| {
        image[n * width..][..width].iter().rev().fold(0, |value, &b| value << 8 | u32::from(b))
    });
    let real = v.state.real_or_v86();
    let x = &mut v.state.x87;
    x.set_environment(fields, real, size == 28);
    if registers {
        for (n, bytes) in image[size..size + 80].chunks_exact(10).enumerate() {
            let bits = bytes.iter().rev().fold(0, |value: u128, &b| value << 8 | u128::from(b));
            let r = (usize::from(x.top()) + n) & 7;
            x.registers[r] = F80 { significand: bits as u64, sign_exponent: (bits >> 64) as u16 };
        }
    }
    Ok(())
}

/// FNSTENV: stores the environment, then masks all exceptions.
pub fn fnstenv(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_available()?;
    store(v, i, false)?;
    v.state.x87.control |= EXCEPTIONS;
    v.state.x87.summarize();
    Ok(())
}

/// FLDENV: loads the environment. Unmasked exceptions in it wait for the next instruction.
pub fn fldenv(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    load(v, i, false)
}

/// FNSAVE: stores environment and registers, then initializes.
pub fn fnsave(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_available()?;
    store(v, i, true)?;
    v.state.x87.initialize();
    Ok(())
}

/// FRSTOR: loads environment and registers.
pub fn frstor(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.x87_enter()?;
    load(v, i, true)
}
