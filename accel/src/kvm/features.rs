//! CPUID: what a guest sees, what the host's KVM offers of it, and what is left of a model under KVM.

use super::host::Host;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use trimaran_cpu::Vcpu;
use trimaran_cpu::mmu::MAXPHYADDR;
use trimaran_cpu::model::{Features, Model, ebx7, ecx1, ecx7, edx1, edx7, ext1};
use vmm_sys_util::fam;

/// A word of [`Features`]: how to reach it, where CPUID has it (leaf, sub-leaf, register), the bits that need nothing
/// of the host because MSR exits or the interpreter serve them, and the names of the others.
struct Word {
    of: fn(&mut Features) -> &mut u32,
    place: (u32, u32, usize),
    own: u32,
    names: &'static [(u32, &'static str)],
}

const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

const WORDS: [Word; 8] = [
    Word {
        of: |f| &mut f.leaf1_ecx,
        place: (1, 0, ECX),
        own: ecx1::X2APIC | ecx1::TSC_DEADLINE | ecx1::HYPERVISOR,
        names: &[
            (ecx1::SSE3, "SSE3"),
            (ecx1::PCLMULQDQ, "PCLMULQDQ"),
            (ecx1::SSSE3, "SSSE3"),
            (ecx1::CMPXCHG16B, "CMPXCHG16B"),
            (ecx1::PCID, "PCID"),
            (ecx1::SSE4_1, "SSE4.1"),
            (ecx1::SSE4_2, "SSE4.2"),
            (ecx1::MOVBE, "MOVBE"),
            (ecx1::POPCNT, "POPCNT"),
            (ecx1::AES, "AES"),
            (ecx1::XSAVE, "XSAVE"),
            (ecx1::RDRAND, "RDRAND"),
        ],
    },
    Word {
        of: |f| &mut f.leaf1_edx,
        place: (1, 0, EDX),
        own: edx1::APIC | edx1::MTRR | edx1::MCE | edx1::MCA | edx1::PAT | edx1::MSR,
        names: &[
            (edx1::FPU, "x87"),
            (edx1::VME, "VME"),
            (edx1::DE, "DE"),
            (edx1::PSE, "PSE"),
            (edx1::TSC, "TSC"),
            (edx1::PAE, "PAE"),
            (edx1::CX8, "CMPXCHG8B"),
            (edx1::SEP, "SYSENTER"),
            (edx1::PGE, "PGE"),
            (edx1::CMOV, "CMOV"),
            (edx1::PSE36, "PSE-36"),
            (edx1::CLFSH, "CLFLUSH"),
            (edx1::MMX, "MMX"),
            (edx1::FXSR, "FXSAVE"),
            (edx1::SSE, "SSE"),
            (edx1::SSE2, "SSE2"),
        ],
    },
    Word {
        of: |f| &mut f.leaf7_ebx,
        place: (7, 0, EBX),
        // Fast strings are a promise about speed.
        own: ebx7::TSC_ADJUST | ebx7::ERMS,
        names: &[
            (ebx7::FSGSBASE, "FSGSBASE"),
            (ebx7::SMEP, "SMEP"),
            (ebx7::INVPCID, "INVPCID"),
            (ebx7::RDSEED, "RDSEED"),
            (ebx7::SMAP, "SMAP"),
        ],
    },
    Word {
        of: |f| &mut f.leaf7_ecx,
        place: (7, 0, ECX),
        own: 0,
        names: &[(ecx7::UMIP, "UMIP"), (ecx7::RDPID, "RDPID")],
    },
    Word {
        of: |f| &mut f.leaf7_edx,
        place: (7, 0, EDX),
        own: edx7::FSRM | edx7::ARCH_CAPABILITIES,
        names: &[],
    },
    Word {
        of: |f| &mut f.ext1_ecx,
        place: (0x8000_0001, 0, ECX),
        own: 0,
        names: &[(ext1::LAHF, "LAHF in long mode"), (ext1::PREFETCHW, "PREFETCHW")],
    },
    Word {
        of: |f| &mut f.ext1_edx,
        place: (0x8000_0001, 0, EDX),
        own: 0,
        names: &[
            (ext1::SYSCALL, "SYSCALL"),
            (ext1::NX, "NX"),
            (ext1::PAGE1GB, "pages of 1 GB"),
            (ext1::RDTSCP, "RDTSCP"),
            (ext1::LM, "long mode"),
        ],
    },
    Word { of: |f| &mut f.xsave_eax, place: (0xD, 1, 0), own: 0, names: &[(1, "XSAVEOPT")] },
];

impl Word {
    /// Bits that guests can have under this host's KVM.
    fn offered(&self, host: &Host) -> u32 {
        let (leaf, sub, register) = self.place;
        host.cpuid(leaf, sub)[register] | self.own
    }
}

/// `model` as far as the host's KVM can be it. MONITOR goes, too: KVM's MWAIT does not wait.
pub fn reduce(model: &Model, host: &Host) -> Model {
    let mut reduced = model.clone();
    for word in &WORDS {
        *(word.of)(&mut reduced.features) &= word.offered(host);
    }
    reduced.features.leaf1_ecx &= !ecx1::MONITOR;
    if reduced.features.leaf1_ecx & ecx1::XSAVE == 0 {
        reduced.features.xsave_eax = 0;
    }
    if !host.tsc_scaling {
        reduced.tsc_khz = host.tsc_khz;
    }
    if reduced != *model {
        // Saved states name their model: one that is less must not pass for the whole.
        let lost = lost(&mut model.features.clone(), &reduced.features).join(", ");
        let name = format!("{} less {lost}; TSC of {} kHz", model.name, reduced.tsc_khz);
        reduced.name = name.leak();
    }
    reduced
}

/// Names of the features of `whole` that `part` does not have.
fn lost(whole: &mut Features, part: &Features) -> Vec<&'static str> {
    let mut part = part.clone();
    let mut lost = Vec::new();
    for word in &WORDS {
        let bits = *(word.of)(whole) & !*(word.of)(&mut part);
        lost.extend(word.names.iter().filter(|&&(bit, _)| bits & bit != 0).map(|&(_, name)| name));
    }
    lost
}

/// What a guest that has seen `model` would miss under the host's KVM, for people.
pub fn missing(model: &Model, host: &Host) -> Vec<String> {
    let mut offered = model.features.clone();
    for word in &WORDS {
        *(word.of)(&mut offered) &= word.offered(host);
    }
    let mut missing: Vec<String> =
        lost(&mut model.features.clone(), &offered).into_iter().map(String::from).collect();
    if !host.tsc_scaling && model.tsc_khz != host.tsc_khz {
        missing.push(format!(
            "TSC scaling (the guest's TSC has {} kHz, the host's {} kHz)",
            model.tsc_khz, host.tsc_khz
        ));
    }
    let bits = host.cpuid(0x8000_0008, 0)[0] & 0xFF;
    if bits < MAXPHYADDR {
        missing.push(format!("physical addresses of {MAXPHYADDR} bits (it has {bits})"));
    }
    missing
}

/// All of CPUID as `vcpu` answers it. KVM itself keeps up the bits that follow CR4 and IA32_APIC_BASE.
pub fn table(vcpu: &Vcpu) -> Result<CpuId, fam::Error> {
    let basic = (0..=0x16).flat_map(|leaf| {
        let subs = match leaf {
            4 => 5,
            0xB => 3,
            0xD => 2,
            _ => 1,
        };
        (0..subs).map(move |sub| (leaf, sub))
    });
    let others = std::iter::once(0x4000_0000).chain(0x8000_0000..=0x8000_0008).map(|leaf| (leaf, 0));
    let entry = |(leaf, sub)| {
        let [eax, ebx, ecx, mut edx] = vcpu.cpuid(leaf, sub);
        match leaf {
            // The interpreter shows it in 64-bit mode only, as Intel's processors do.
            0x8000_0001 => edx |= vcpu.model.features.ext1_edx & ext1::SYSCALL,
            1 => edx |= vcpu.model.features.leaf1_edx & edx1::APIC,
            _ => {}
        }
        let flags = if matches!(leaf, 4 | 7 | 0xB | 0xD) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
        kvm_cpuid_entry2 { function: leaf, index: sub, flags, eax, ebx, ecx, edx, padding: [0; 3] }
    };
    let entries: Vec<kvm_cpuid_entry2> = basic.chain(others).map(entry).collect();
    CpuId::from_entries(&entries)
}
