//! CPUID (SDM Vol. 2, "CPUID").

use crate::Vcpu;
use crate::fault::Exit;
use crate::features::xsave_eax;
use crate::insn::{Insn, W};
use crate::mmu::MAXPHYADDR;
use crate::model::{ecx1, ecx7, edx1};
use crate::simd::{extended_component, xsave_area_size};
use crate::state::{cr4, gpr};

/// Bits of leaf 1 that follow the machine, not the model.
const OSXSAVE: u32 = 1 << 27;
/// Leaf 7 ECX: CR4.PKE.
const OSPKE: u32 = 1 << 4;
const HTT: u32 = 1 << 28;

/// The crystal that drives the APIC timer.
const CRYSTAL_KHZ: u32 = 1_000_000;

/// The TSC's frequency as a fraction of the crystal's. Linux multiplies the crystal's kilohertz by the numerator in 32
/// bits, so that must stay small; a frequency that needs a large one is told to the megahertz.
fn tsc_ratio(khz: u32) -> (u32, u32) {
    let (mut a, mut b) = (khz, CRYSTAL_KHZ);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    let whole = (khz / a.max(1), CRYSTAL_KHZ / a.max(1));
    if whole.0 <= u32::MAX / CRYSTAL_KHZ { whole } else { (khz / 1000, CRYSTAL_KHZ / 1000) }
}

/// CPUID.
pub fn cpuid(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    let (leaf, sub) = (v.state.gpr[gpr::RAX] as u32, v.state.gpr[gpr::RCX] as u32);
    let [a, b, c, d] = v.cpuid(leaf, sub);
    v.put_reg(W::D, gpr::RAX as u8, u64::from(a));
    v.put_reg(W::D, gpr::RBX as u8, u64::from(b));
    v.put_reg(W::D, gpr::RCX as u8, u64::from(c));
    v.put_reg(W::D, gpr::RDX as u8, u64::from(d));
    Ok(())
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks(4).map(|c| {
        let mut word = [0; 4];
        word[..c.len()].copy_from_slice(c);
        u32::from_le_bytes(word)
    })
}

impl Vcpu {
    /// XCR0 bits that exist: x87, SSE, AVX, PKRU.
    pub(crate) fn xcr0_bits(&self) -> u64 {
        let f = &self.model.features;
        let avx = if f.leaf1_ecx & ecx1::AVX != 0 { 1 << 2 } else { 0 };
        let pkru = if f.leaf7_ecx & ecx7::PKU != 0 { 1 << 9 } else { 0 };
        3 | avx | pkru
    }

    /// EAX, EBX, ECX, EDX of a leaf.
    pub fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
        let m = &self.model;
        let f = &m.features;
        // Above the last leaf Intel's processors answer with the last basic one.
        let leaf = match leaf {
            0x4000_0000 if f.leaf1_ecx & ecx1::HYPERVISOR != 0 => leaf,
            _ if leaf <= m.last_leaf => leaf,
            0x8000_0000.. if leaf <= m.last_extended_leaf => leaf,
            _ => m.last_leaf,
        };
        let id = self.bus.apic_id(self.id);
        let cpus = self.bus.cpu_count() as u32;
        match leaf {
            0 => {
                let mut w = words(&m.vendor);
                let mut next = || w.next().unwrap_or(0);
                let (b, d, c) = (next(), next(), next());
                [m.last_leaf, b, c, d]
            }
            1 => {
                let osxsave = if self.state.cr4 & cr4::OSXSAVE != 0 { OSXSAVE } else { 0 };
                let htt = if cpus > 1 && m.last_leaf >= 4 { HTT } else { 0 };
                let has = |bit: u32, field: u32| if f.leaf1_edx & bit != 0 { field } else { 0 };
                let ebx = has(edx1::APIC, id << 24 | cpus.min(255) << 16) | has(edx1::CLFSH, 8 << 8);
                let apic = match self.bus.read_apic_msr(self.id, 0x1B) {
                    Some(Ok(base)) if base & 1 << 11 != 0 => !0,
                    _ => !edx1::APIC,
                };
                [m.signature, ebx, f.leaf1_ecx | osxsave, (f.leaf1_edx | htt) & apic]
            }
            // The P6's own descriptors: 8 KiB L1, 256 KiB L2. Later: "see leaf 4": 64-byte lines, 32 KiB L1, 4 MiB L3.
            2 if m.last_leaf < 4 => [0x0302_0101, 0, 0, 0x0604_0A42],
            2 => [0x00FF_FF01, 0, 0, 0],
            4 => cache(sub, cpus),
            5 => [64, 64, 3, 0],
            6 => [1 << 2, 0, 0, 0],
            7 if sub == 0 => {
                let ospke = if self.state.cr4 & cr4::PKE != 0 { OSPKE } else { 0 };
                [0, f.leaf7_ebx, f.leaf7_ecx | ospke, f.leaf7_edx]
            }
            0xB => match sub {
                0 => [0, 1, 1 << 8, id],
                1 => [32 - (cpus - 1).leading_zeros().min(31), cpus, 2 << 8 | 1, id],
                _ => [0, 0, sub & 0xFF, id],
            },
            0xD if f.leaf1_ecx & ecx1::XSAVE != 0 => match sub {
                0 => {
                    let size = |bits| xsave_area_size(bits, false) as u32;
                    [self.xcr0_bits() as u32, size(self.state.xcr0), size(self.xcr0_bits()), 0]
                }
                // IA32_XSS has no bits: a compacted area holds the components of XCR0.
                1 if f.xsave_eax & xsave_eax::XSAVEC == 0 => [f.xsave_eax, 0, 0, 0],
                1 => [f.xsave_eax, xsave_area_size(self.state.xcr0, true) as u32, 0, 0],
                // The upper halves of the YMM registers; PKRU.
                2..64 if self.xcr0_bits() >> sub & 1 != 0 => {
                    let (size, offset) = extended_component(sub).unwrap_or_default();
                    [size as u32, offset as u32, 0, 0]
                }
                _ => [0; 4],
            },
            // The crystal of 1 GHz drives the APIC timer; the TSC is this part of it.
            0x15 => {
                let (numerator, denominator) = tsc_ratio(m.tsc_khz);
                [denominator, numerator, CRYSTAL_KHZ * 1000, 0]
            }
            0x16 => [m.tsc_khz / 1000, m.tsc_khz / 1000, 1000, 0],
            0x4000_0000 => {
                let mut w = words(b"TrimaranTrim");
                let mut next = || w.next().unwrap_or(0);
                [0x4000_0000, next(), next(), next()]
            }
            0x8000_0000 => [m.last_extended_leaf, 0, 0, 0],
            0x8000_0001 => {
                // Intel's SYSCALL exists in 64-bit mode only.
                let syscall = if self.state.code64() || m.amd() { !0 } else { !crate::model::ext1::SYSCALL };
                [0, 0, f.ext1_ecx, f.ext1_edx & syscall]
            }
            0x8000_0002..=0x8000_0004 => {
                let mut text = [0; 48];
                let n = m.brand.len().min(47);
                text[..n].copy_from_slice(&m.brand.as_bytes()[..n]);
                let at = (leaf - 0x8000_0002) as usize * 16;
                let w: Vec<u32> = words(&text[at..at + 16]).collect();
                [w[0], w[1], w[2], w[3]]
            }
            0x8000_0006 => [0, 0, 512 << 16 | 6 << 12 | 64, 0],
            // Invariant TSC.
            0x8000_0007 => [0, 0, 0, 1 << 8],
            0x8000_0008 => [MAXPHYADDR | m.linear_bits() << 8, 0, 0, 0],
            _ => [0; 4],
        }
    }
}

/// Leaf 4: deterministic cache parameters.
fn cache(sub: u32, cpus: u32) -> [u32; 4] {
    // Type, level, ways, sets.
    let (kind, level, ways, sets, shared) = match sub {
        0 => (1, 1, 8, 64, 1),
        1 => (2, 1, 8, 64, 1),
        2 => (3, 2, 8, 1024, 1),
        3 => (3, 3, 16, 4096, cpus),
        _ => return [0; 4],
    };
    let cores = cpus.next_power_of_two().min(64) - 1;
    [
        kind | level << 5 | 1 << 8 | (shared.next_power_of_two() - 1) << 14 | cores << 26,
        (ways - 1) << 22 | 63,
        sets - 1,
        0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_can_compute_the_frequency_in_32_bits() {
        for (khz, ratio) in
            [(1_000_000, (1, 1)), (2_400_000, (12, 5)), (2_095_078, (2095, 1000)), (0, (0, 1))]
        {
            let (numerator, denominator) = tsc_ratio(khz);
            assert_eq!((numerator, denominator), ratio);
            assert!(CRYSTAL_KHZ.checked_mul(numerator).is_some());
        }
    }
}
