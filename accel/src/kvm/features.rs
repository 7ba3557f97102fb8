//! CPUID: what a guest sees, what the host's KVM offers of it, and what is left of a model under KVM.

use super::host::Host;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use trimaran_cpu::Vcpu;
use trimaran_cpu::mmu::MAXPHYADDR;
use trimaran_cpu::model::{FEATURES, Features, Model, Word, ebx7, ecx1, ecx7, edx1, edx7, ext1};
use vmm_sys_util::fam;

/// A word of [`Features`], where CPUID has it (leaf, sub-leaf, register), and the bits that need nothing of the host
/// because MSR exits or the interpreter serve them.
struct Place {
    word: Word,
    place: (u32, u32, usize),
    own: u32,
}

const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

const WORDS: [Place; 8] = [
    Place {
        word: Word::Leaf1Ecx,
        place: (1, 0, ECX),
        own: ecx1::X2APIC | ecx1::TSC_DEADLINE | ecx1::HYPERVISOR,
    },
    Place {
        word: Word::Leaf1Edx,
        place: (1, 0, EDX),
        own: edx1::APIC | edx1::MTRR | edx1::MCE | edx1::MCA | edx1::PAT | edx1::MSR,
    },
    Place {
        word: Word::Leaf7Ebx,
        place: (7, 0, EBX),
        // Fast strings are a promise about speed.
        own: ebx7::TSC_ADJUST | ebx7::ERMS,
    },
    Place { word: Word::Leaf7Ecx, place: (7, 0, ECX), own: 0 },
    Place { word: Word::Leaf7Edx, place: (7, 0, EDX), own: edx7::FSRM | edx7::ARCH_CAPABILITIES },
    Place { word: Word::Ext1Ecx, place: (0x8000_0001, 0, ECX), own: 0 },
    Place { word: Word::Ext1Edx, place: (0x8000_0001, 0, EDX), own: 0 },
    Place { word: Word::XsaveEax, place: (0xD, 1, 0), own: 0 },
];

impl Place {
    /// Bits that guests can have under this host's KVM.
    fn offered(&self, host: &Host) -> u32 {
        let (leaf, sub, register) = self.place;
        // PKRU is not among what is exchanged with KVM.
        let without = if self.word == Word::Leaf7Ecx { ecx7::PKU } else { 0 };
        host.cpuid(leaf, sub)[register] & !without | self.own
    }
}

/// `model` as far as the host's KVM can be it. MONITOR goes, too: KVM's MWAIT does not wait.
pub fn reduce(model: &Model, host: &Host) -> Model {
    let mut reduced = model.clone();
    for word in &WORDS {
        *reduced.features.word_mut(word.word) &= word.offered(host);
    }
    reduced.features.leaf1_ecx &= !ecx1::MONITOR;
    // What builds on something that is gone goes with it.
    while let Some((feature, _)) = reduced.features.broken() {
        *reduced.features.word_mut(feature.word) &= !feature.bit;
    }
    if !host.tsc_scaling {
        reduced.tsc_khz = host.tsc_khz;
    }
    if reduced != *model {
        // Saved states name their model: one that is less must not pass for the whole.
        let lost = lost(&model.features, &reduced.features).join(", ");
        let name = format!("{} less {lost}; TSC of {} kHz", model.name, reduced.tsc_khz);
        reduced.name = name.into();
    }
    reduced
}

/// Names of the features of `whole` that `part` does not have.
fn lost(whole: &Features, part: &Features) -> Vec<&'static str> {
    FEATURES.iter().filter(|f| whole.has(f) && !part.has(f)).map(|f| f.name).collect()
}

/// What a guest that has seen `model` would miss under the host's KVM, for people.
pub fn missing(model: &Model, host: &Host) -> Vec<String> {
    let mut offered = model.features.clone();
    for word in &WORDS {
        *offered.word_mut(word.word) &= word.offered(host);
    }
    let mut missing: Vec<String> = lost(&model.features, &offered).into_iter().map(String::from).collect();
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
            0xD => 10,
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
