//! CPU models: what CPUID tells and which instructions exist.

use iced_x86::{CpuidFeature, Instruction};

/// The CPUID feature bits of a model, as the registers hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Leaf 1 ECX and EDX.
    pub leaf1_ecx: u32,
    pub leaf1_edx: u32,
    /// Leaf 7.0 EBX, ECX, EDX.
    pub leaf7_ebx: u32,
    pub leaf7_ecx: u32,
    pub leaf7_edx: u32,
    /// Leaf 8000_0001 ECX and EDX.
    pub ext1_ecx: u32,
    pub ext1_edx: u32,
    /// Leaf 0D.1 EAX.
    pub xsave_eax: u32,
}

/// A processor as guests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub name: &'static str,
    pub vendor: [u8; 12],
    /// Leaf 1 EAX.
    pub signature: u32,
    pub brand: &'static str,
    pub features: Features,
    /// Ticks of the time-stamp counter in a millisecond. Fixed when the machine starts.
    pub tsc_khz: u32,
}

/// Bits of leaf 1 ECX.
pub mod ecx1 {
    pub const SSE3: u32 = 1 << 0;
    pub const PCLMULQDQ: u32 = 1 << 1;
    pub const MONITOR: u32 = 1 << 3;
    pub const SSSE3: u32 = 1 << 9;
    pub const CMPXCHG16B: u32 = 1 << 13;
    pub const PCID: u32 = 1 << 17;
    pub const SSE4_1: u32 = 1 << 19;
    pub const SSE4_2: u32 = 1 << 20;
    pub const X2APIC: u32 = 1 << 21;
    pub const MOVBE: u32 = 1 << 22;
    pub const POPCNT: u32 = 1 << 23;
    pub const TSC_DEADLINE: u32 = 1 << 24;
    pub const AES: u32 = 1 << 25;
    pub const XSAVE: u32 = 1 << 26;
    pub const OSXSAVE: u32 = 1 << 27;
    pub const RDRAND: u32 = 1 << 30;
    pub const HYPERVISOR: u32 = 1 << 31;
}

/// Bits of leaf 1 EDX.
pub mod edx1 {
    pub const FPU: u32 = 1 << 0;
    pub const VME: u32 = 1 << 1;
    pub const DE: u32 = 1 << 2;
    pub const PSE: u32 = 1 << 3;
    pub const TSC: u32 = 1 << 4;
    pub const MSR: u32 = 1 << 5;
    pub const PAE: u32 = 1 << 6;
    pub const MCE: u32 = 1 << 7;
    pub const CX8: u32 = 1 << 8;
    pub const APIC: u32 = 1 << 9;
    pub const SEP: u32 = 1 << 11;
    pub const MTRR: u32 = 1 << 12;
    pub const PGE: u32 = 1 << 13;
    pub const MCA: u32 = 1 << 14;
    pub const CMOV: u32 = 1 << 15;
    pub const PAT: u32 = 1 << 16;
    pub const PSE36: u32 = 1 << 17;
    pub const CLFSH: u32 = 1 << 19;
    pub const MMX: u32 = 1 << 23;
    pub const FXSR: u32 = 1 << 24;
    pub const SSE: u32 = 1 << 25;
    pub const SSE2: u32 = 1 << 26;
    pub const HTT: u32 = 1 << 28;
}

/// Bits of leaf 7.0 EBX.
pub mod ebx7 {
    pub const FSGSBASE: u32 = 1 << 0;
    pub const TSC_ADJUST: u32 = 1 << 1;
    pub const SMEP: u32 = 1 << 7;
    pub const ERMS: u32 = 1 << 9;
    pub const INVPCID: u32 = 1 << 10;
    pub const RDSEED: u32 = 1 << 18;
    pub const SMAP: u32 = 1 << 20;
}

/// Bits of leaf 7.0 ECX and EDX.
pub mod ecx7 {
    pub const UMIP: u32 = 1 << 2;
    pub const RDPID: u32 = 1 << 22;
}
pub mod edx7 {
    pub const FSRM: u32 = 1 << 4;
    pub const ARCH_CAPABILITIES: u32 = 1 << 29;
}

/// Bits of leaf 8000_0001.
pub mod ext1 {
    pub const LAHF: u32 = 1 << 0;
    pub const PREFETCHW: u32 = 1 << 8;
    pub const SYSCALL: u32 = 1 << 11;
    pub const NX: u32 = 1 << 20;
    pub const PAGE1GB: u32 = 1 << 26;
    pub const RDTSCP: u32 = 1 << 27;
    pub const LM: u32 = 1 << 29;
}

impl Features {
    /// Whether an instruction exists on this model.
    pub fn allows(&self, x: &Instruction) -> bool {
        use iced_x86::Mnemonic as M;
        // Later instructions that were given bytes with an older meaning (BSF, BSR, WBINVD, NOP): where they do
        // not exist, the older meaning does.
        let older = matches!(
            x.mnemonic(),
            M::Tzcnt
                | M::Lzcnt
                | M::Wbnoinvd
                | M::Rdsspd
                | M::Rdsspq
                | M::Prefetch
                | M::Prefetchw
                | M::Prefetchwt1
                | M::Cldemote
        );
        older || x.cpuid_features().iter().all(|&feature| self.has(feature))
    }

    fn has(&self, feature: CpuidFeature) -> bool {
        use CpuidFeature as C;
        let (c, d, b7, e) = (self.leaf1_ecx, self.leaf1_edx, self.leaf7_ebx, self.ext1_ecx);
        let on = |word: u32, bit: u32| word & bit != 0;
        match feature {
            C::INTEL8086
            | C::INTEL186
            | C::INTEL286
            | C::INTEL386
            | C::INTEL486
            | C::FPU
            | C::FPU287
            | C::FPU387
            | C::CPUID
            | C::MULTIBYTENOP
            | C::PAUSE
            | C::CLDEMOTE
            | C::SMM
            | C::CET_IBT => true,
            C::RDPMC | C::TSC => on(d, edx1::TSC),
            C::MSR => on(d, edx1::MSR),
            C::CX8 => on(d, edx1::CX8),
            C::CMOV => on(d, edx1::CMOV),
            C::SEP => on(d, edx1::SEP),
            C::CLFSH => on(d, edx1::CLFSH),
            C::MMX => on(d, edx1::MMX),
            C::FXSR => on(d, edx1::FXSR),
            C::SSE => on(d, edx1::SSE),
            C::SSE2 => on(d, edx1::SSE2),
            C::X64 | C::INTEL8086_ONLY | C::SYSCALL => {
                feature != C::INTEL8086_ONLY && on(self.ext1_edx, ext1::LM | ext1::SYSCALL)
            }
            C::RDTSCP => on(self.ext1_edx, ext1::RDTSCP),
            C::PREFETCHW => on(e, ext1::PREFETCHW) || on(self.ext1_edx, ext1::LM),
            C::SSE3 => on(c, ecx1::SSE3),
            C::PCLMULQDQ => on(c, ecx1::PCLMULQDQ),
            C::MONITOR => on(c, ecx1::MONITOR),
            C::SSSE3 => on(c, ecx1::SSSE3),
            C::CMPXCHG16B => on(c, ecx1::CMPXCHG16B),
            C::SSE4_1 => on(c, ecx1::SSE4_1),
            C::SSE4_2 => on(c, ecx1::SSE4_2),
            C::MOVBE => on(c, ecx1::MOVBE),
            C::POPCNT => on(c, ecx1::POPCNT),
            C::AES => on(c, ecx1::AES),
            C::XSAVE => on(c, ecx1::XSAVE),
            C::RDRAND => on(c, ecx1::RDRAND),
            C::XSAVEOPT => on(self.xsave_eax, 1),
            C::FSGSBASE => on(b7, ebx7::FSGSBASE),
            C::INVPCID => on(b7, ebx7::INVPCID),
            C::RDSEED => on(b7, ebx7::RDSEED),
            C::SMAP => on(b7, ebx7::SMAP),
            C::RDPID => on(self.leaf7_ecx, ecx7::RDPID),
            _ => false,
        }
    }
}

const X86_64_V2: Model = Model {
    name: "x86-64-v2",
    vendor: *b"GenuineIntel",
    // Family 6, model 44 (Westmere), stepping 2: the first with all of x86-64-v2 and AES.
    signature: 0x0002_06C2,
    brand: "Trimaran x86-64-v2 processor",
    features: Features {
        leaf1_ecx: ecx1::SSE3
            | ecx1::PCLMULQDQ
            | ecx1::MONITOR
            | ecx1::SSSE3
            | ecx1::CMPXCHG16B
            | ecx1::PCID
            | ecx1::SSE4_1
            | ecx1::SSE4_2
            | ecx1::X2APIC
            | ecx1::MOVBE
            | ecx1::POPCNT
            | ecx1::TSC_DEADLINE
            | ecx1::AES
            | ecx1::XSAVE
            | ecx1::RDRAND
            | ecx1::HYPERVISOR,
        leaf1_edx: edx1::FPU
            | edx1::VME
            | edx1::DE
            | edx1::PSE
            | edx1::TSC
            | edx1::MSR
            | edx1::PAE
            | edx1::MCE
            | edx1::CX8
            | edx1::APIC
            | edx1::SEP
            | edx1::MTRR
            | edx1::PGE
            | edx1::MCA
            | edx1::CMOV
            | edx1::PAT
            | edx1::PSE36
            | edx1::CLFSH
            | edx1::MMX
            | edx1::FXSR
            | edx1::SSE
            | edx1::SSE2,
        leaf7_ebx: ebx7::FSGSBASE
            | ebx7::TSC_ADJUST
            | ebx7::SMEP
            | ebx7::ERMS
            | ebx7::INVPCID
            | ebx7::RDSEED
            | ebx7::SMAP,
        leaf7_ecx: ecx7::UMIP,
        leaf7_edx: edx7::FSRM | edx7::ARCH_CAPABILITIES,
        ext1_ecx: ext1::LAHF | ext1::PREFETCHW,
        ext1_edx: ext1::SYSCALL | ext1::NX | ext1::PAGE1GB | ext1::RDTSCP | ext1::LM,
        xsave_eax: 1,
    },
    tsc_khz: 1_000_000,
};

impl Model {
    /// All models, the default first.
    pub fn all() -> &'static [Model] {
        static ALL: [Model; 1] = [X86_64_V2];
        &ALL
    }

    /// The model of a name, or None.
    pub fn by_name(name: &str) -> Option<&'static Model> {
        Self::all().iter().find(|m| m.name == name)
    }
}

impl Default for Model {
    fn default() -> Self {
        X86_64_V2
    }
}
