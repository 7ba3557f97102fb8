//! x87, SSE and AVX as an XSAVE area (SDM Vol. 1, "Layout of the XSAVE Area"; the 64-bit form of FXSAVE).

use kvm_bindings::kvm_xsave;
use trimaran_cpu::state::{CpuState, F80};

/// Offsets in the area.
const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const ST0: usize = 32;
const XMM0: usize = 160;
const XSTATE_BV: usize = 512;
/// The upper halves of YMM0 to YMM15.
const YMM: usize = 576;
/// Components: x87 and SSE, which are always there, and AVX.
const AVX: u64 = 4;
const X87_AND_SSE: u64 = 3;

/// Of a dword-wise area, the byte-wise view.
struct Area([u8; 4096]);

impl Area {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
    fn quad(&self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|n| self.0[at + n]))
    }
}

/// The area that holds a state.
pub fn image(state: &CpuState) -> kvm_xsave {
    let mut area = Area([0; 4096]);
    let x87 = &state.x87;
    area.put(FCW, &x87.control.to_le_bytes());
    area.put(FSW, &x87.status.to_le_bytes());
    area.put(FTW, &[x87.valid]);
    area.put(FOP, &x87.opcode.to_le_bytes());
    area.put(FIP, &x87.instruction_pointer.to_le_bytes());
    area.put(FDP, &x87.data_pointer.to_le_bytes());
    area.put(MXCSR, &state.mxcsr.to_le_bytes());
    for n in 0..8 {
        let register = &x87.registers[physical(x87.status, n)];
        area.put(ST0 + n * 16, &register.significand.to_le_bytes());
        area.put(ST0 + n * 16 + 8, &register.sign_exponent.to_le_bytes());
    }
    for (n, zmm) in state.zmm[..16].iter().enumerate() {
        area.put(XMM0 + n * 16, &zmm[0].to_le_bytes());
        area.put(XMM0 + n * 16 + 8, &zmm[1].to_le_bytes());
        area.put(YMM + n * 16, &zmm[2].to_le_bytes());
        area.put(YMM + n * 16 + 8, &zmm[3].to_le_bytes());
    }
    // A KVM without AVX takes no such component.
    area.put(XSTATE_BV, &(X87_AND_SSE | state.xcr0 & AVX).to_le_bytes());
    let mut xsave = kvm_xsave::default();
    for (dword, bytes) in xsave.region.iter_mut().zip(area.0.as_chunks::<4>().0) {
        *dword = u32::from_le_bytes(*bytes);
    }
    xsave
}

/// Number of the register that is ST(n).
fn physical(status: u16, n: usize) -> usize {
    (usize::from(status >> 11 & 7) + n) & 7
}

/// Takes x87, SSE and AVX from an area. The selectors of the last instruction and operand are not in it: they stay where
/// the pointers are as they were.
pub fn take(xsave: &kvm_xsave, state: &mut CpuState) {
    let mut area = Area([0; 4096]);
    for (bytes, dword) in area.0.as_chunks_mut::<4>().0.iter_mut().zip(&xsave.region) {
        *bytes = dword.to_le_bytes();
    }
    let x87 = &mut state.x87;
    x87.control = area.word(FCW);
    x87.status = area.word(FSW);
    x87.valid = area.0[FTW];
    x87.opcode = area.word(FOP);
    let (instruction, data) = (area.quad(FIP), area.quad(FDP));
    if instruction != x87.instruction_pointer {
        (x87.instruction_pointer, x87.instruction_selector) = (instruction, 0);
    }
    if data != x87.data_pointer {
        (x87.data_pointer, x87.data_selector) = (data, 0);
    }
    for n in 0..8 {
        x87.registers[physical(x87.status, n)] =
            F80 { significand: area.quad(ST0 + n * 16), sign_exponent: area.word(ST0 + n * 16 + 8) };
    }
    state.mxcsr = u32::from(area.word(MXCSR + 2)) << 16 | u32::from(area.word(MXCSR));
    for (n, zmm) in state.zmm[..16].iter_mut().enumerate() {
        (zmm[0], zmm[1]) = (area.quad(XMM0 + n * 16), area.quad(XMM0 + n * 16 + 8));
        (zmm[2], zmm[3]) = (area.quad(YMM + n * 16), area.quad(YMM + n * 16 + 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn an_area_holds_all_of_a_state() {
        let mut rng = rand::rngs::SmallRng::seed_from_u64(1);
        for _ in 0..200 {
            let mut before = CpuState::reset(0, true);
            let x87 = &mut before.x87;
            x87.registers =
                std::array::from_fn(|_| F80 { significand: rng.random(), sign_exponent: rng.random() });
            (x87.control, x87.status, x87.valid) = (rng.random(), rng.random(), rng.random());
            (x87.opcode, x87.instruction_pointer, x87.data_pointer) =
                (rng.random(), rng.random(), rng.random());
            before.mxcsr = rng.random();
            before.zmm[..16].iter_mut().for_each(|zmm| zmm[..4].fill_with(|| rng.random()));
            let mut after = CpuState::reset(0, true);
            take(&image(&before), &mut after);
            assert_eq!(after, before);
        }
    }

    #[test]
    fn selectors_stay_with_their_pointers() {
        let mut state = CpuState::reset(0, true);
        (state.x87.instruction_pointer, state.x87.instruction_selector) = (0x1234, 8);
        let same = image(&state);
        take(&same, &mut state);
        assert_eq!(state.x87.instruction_selector, 8);
        let mut other = state.clone();
        other.x87.instruction_pointer = 0x1240;
        take(&image(&other), &mut state);
        assert_eq!((state.x87.instruction_pointer, state.x87.instruction_selector), (0x1240, 0));
    }
}
