//! What a processor may have or lack: the table of features, and which instructions need which.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic};

/// The CPUID feature bits of a model, as the registers hold them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// A register of CPUID that features stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Leaf1Ecx,
    Leaf1Edx,
    Leaf7Ebx,
    Leaf7Ecx,
    Leaf7Edx,
    Ext1Ecx,
    Ext1Edx,
    XsaveEax,
}

/// A feature: its name on the command line, its bit, and the features that it builds on.
#[derive(Debug)]
pub struct Feature {
    pub name: &'static str,
    pub word: Word,
    pub bit: u32,
    pub needs: &'static [&'static str],
}

/// Names the bits of each word, and lists them all. Names are those of Linux' /proc/cpuinfo where it has one.
macro_rules! features {
    ($($(#[$doc:meta])* $module:ident $word:ident {
        $($constant:ident = $bit:literal $name:literal $([$($needs:literal)*])?;)*
    })*) => {
        $($(#[$doc])* pub mod $module {
            $(pub const $constant: u32 = 1 << $bit;)*
        })*
        /// All features that we have.
        pub const FEATURES: &[Feature] = &[$($(Feature {
            name: $name,
            word: Word::$word,
            bit: $module::$constant,
            needs: &[$($($needs),*)?],
        },)*)*];
    };
}

features! {
    /// Bits of leaf 1 EDX.
    edx1 Leaf1Edx {
        FPU = 0 "fpu";
        VME = 1 "vme";
        DE = 2 "de";
        PSE = 3 "pse";
        TSC = 4 "tsc";
        MSR = 5 "msr";
        PAE = 6 "pae";
        MCE = 7 "mce";
        CX8 = 8 "cx8";
        APIC = 9 "apic" ["msr"];
        SEP = 11 "sep" ["msr"];
        MTRR = 12 "mtrr" ["msr"];
        PGE = 13 "pge";
        MCA = 14 "mca" ["mce" "msr"];
        CMOV = 15 "cmov";
        PAT = 16 "pat" ["mtrr"];
        PSE36 = 17 "pse36" ["pse"];
        CLFSH = 19 "clflush";
        MMX = 23 "mmx" ["fpu"];
        FXSR = 24 "fxsr" ["fpu"];
        SSE = 25 "sse" ["fxsr"];
        SSE2 = 26 "sse2" ["sse" "clflush"];
    }
    /// Bits of leaf 1 ECX.
    ecx1 Leaf1Ecx {
        SSE3 = 0 "sse3" ["sse2"];
        PCLMULQDQ = 1 "pclmulqdq" ["sse2"];
        MONITOR = 3 "monitor";
        SSSE3 = 9 "ssse3" ["sse3"];
        CMPXCHG16B = 13 "cx16" ["lm"];
        PCID = 17 "pcid" ["lm"];
        SSE4_1 = 19 "sse4_1" ["ssse3"];
        SSE4_2 = 20 "sse4_2" ["sse4_1"];
        X2APIC = 21 "x2apic" ["apic"];
        FMA = 12 "fma" ["avx"];
        MOVBE = 22 "movbe";
        POPCNT = 23 "popcnt";
        TSC_DEADLINE = 24 "tsc_deadline_timer" ["apic" "tsc"];
        AES = 25 "aes" ["sse2"];
        XSAVE = 26 "xsave" ["fxsr"];
        AVX = 28 "avx" ["xsave" "sse4_2"];
        F16C = 29 "f16c" ["avx"];
        RDRAND = 30 "rdrand";
        HYPERVISOR = 31 "hypervisor";
    }
    /// Bits of leaf 7.0 EBX.
    ebx7 Leaf7Ebx {
        FSGSBASE = 0 "fsgsbase" ["lm"];
        TSC_ADJUST = 1 "tsc_adjust" ["tsc" "msr"];
        BMI1 = 3 "bmi1";
        AVX2 = 5 "avx2" ["avx"];
        SMEP = 7 "smep";
        BMI2 = 8 "bmi2" ["bmi1"];
        ERMS = 9 "erms";
        INVPCID = 10 "invpcid" ["pcid"];
        RDSEED = 18 "rdseed";
        ADX = 19 "adx";
        SMAP = 20 "smap";
        CLFLUSHOPT = 23 "clflushopt" ["clflush"];
        CLWB = 24 "clwb" ["clflush"];
        SHA = 29 "sha_ni" ["sse2"];
    }
    /// Bits of leaf 7.0 ECX.
    ecx7 Leaf7Ecx {
        UMIP = 2 "umip";
        PKU = 3 "pku" ["lm"];
        VAES = 9 "vaes" ["avx" "aes"];
        VPCLMULQDQ = 10 "vpclmulqdq" ["avx" "pclmulqdq"];
        LA57 = 16 "la57" ["lm"];
        RDPID = 22 "rdpid" ["msr"];
    }
    /// Bits of leaf 7.0 EDX.
    edx7 Leaf7Edx {
        FSRM = 4 "fsrm" ["erms"];
        ARCH_CAPABILITIES = 29 "arch_capabilities" ["msr"];
    }
    /// Bits of leaf 8000_0001 EDX.
    ext1_edx Ext1Edx {
        SYSCALL = 11 "syscall" ["msr"];
        NX = 20 "nx" ["msr" "pae"];
        PAGE1GB = 26 "pdpe1gb" ["lm"];
        RDTSCP = 27 "rdtscp" ["tsc" "msr"];
        LM = 29 "lm" ["pae" "syscall" "sse2"];
    }
    /// Bits of leaf 8000_0001 ECX.
    ext1_ecx Ext1Ecx {
        LAHF = 0 "lahf_lm" ["lm"];
        LZCNT = 5 "abm" ["popcnt"];
        PREFETCHW = 8 "3dnowprefetch";
    }
    /// Bits of leaf 0D.1 EAX.
    xsave_eax XsaveEax {
        XSAVEOPT = 0 "xsaveopt" ["xsave"];
        XSAVEC = 1 "xsavec" ["xsave"];
        XGETBV1 = 2 "xgetbv1" ["xsave"];
        XSAVES = 3 "xsaves" ["xsavec"];
    }
}

/// Bits of leaf 8000_0001, ECX and EDX.
pub mod ext1 {
    pub use super::ext1_ecx::*;
    pub use super::ext1_edx::*;
}

/// The feature of a name.
pub fn feature(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|f| f.name == name)
}

impl Features {
    /// All that we have but the HYPERVISOR bit.
    pub fn all() -> Self {
        let mut all = Features::default();
        for f in FEATURES {
            *all.word_mut(f.word) |= f.bit;
        }
        all
    }

    pub fn word(&self, word: Word) -> u32 {
        *self.clone().word_mut(word)
    }

    pub fn word_mut(&mut self, word: Word) -> &mut u32 {
        match word {
            Word::Leaf1Ecx => &mut self.leaf1_ecx,
            Word::Leaf1Edx => &mut self.leaf1_edx,
            Word::Leaf7Ebx => &mut self.leaf7_ebx,
            Word::Leaf7Ecx => &mut self.leaf7_ecx,
            Word::Leaf7Edx => &mut self.leaf7_edx,
            Word::Ext1Ecx => &mut self.ext1_ecx,
            Word::Ext1Edx => &mut self.ext1_edx,
            Word::XsaveEax => &mut self.xsave_eax,
        }
    }

    pub fn has(&self, f: &Feature) -> bool {
        self.word(f.word) & f.bit != 0
    }

    /// A feature that is there, and one that it needs and that is not.
    pub fn broken(&self) -> Option<(&'static Feature, &'static str)> {
        FEATURES.iter().filter(|f| self.has(f)).find_map(|f| {
            let lacks = |name: &&&str| feature(name).is_none_or(|need| !self.has(need));
            f.needs.iter().find(lacks).map(|&name| (f, name))
        })
    }

    /// The P6 and what came after it. It had no bit of its own for what it brought beside CMOV: RDPMC, the NOPs of two
    /// bytes, UD2.
    fn p6(&self) -> bool {
        self.leaf1_edx & edx1::CMOV != 0
    }

    /// Whether an instruction exists on this model.
    pub fn allows(&self, x: &Instruction) -> bool {
        use Mnemonic as M;
        match x.mnemonic() {
            // A later instruction with the bytes of WBINVD behind a prefix.
            M::Wbnoinvd => true,
            // Decided by `older_meaning`.
            M::Tzcnt | M::Lzcnt => true,
            // Hints that are NOPs where they are unknown.
            M::Rdsspd | M::Rdsspq | M::Cldemote => self.p6(),
            M::Prefetch | M::Prefetchw | M::Prefetchwt1 => self.provides(CpuidFeature::PREFETCHW),
            _ => x.cpuid_features().iter().all(|&feature| self.provides(feature)),
        }
    }

    /// The instruction that these bytes are on this model: a later one's prefix means nothing to older processors.
    pub fn older_meaning(&self, code: Code) -> Code {
        use Code::*;
        match code {
            Tzcnt_r16_rm16 | Tzcnt_r32_rm32 | Tzcnt_r64_rm64 if self.leaf7_ebx & ebx7::BMI1 != 0 => code,
            Lzcnt_r16_rm16 | Lzcnt_r32_rm32 | Lzcnt_r64_rm64 if self.ext1_ecx & ext1::LZCNT != 0 => code,
            Tzcnt_r16_rm16 => Bsf_r16_rm16,
            Tzcnt_r32_rm32 => Bsf_r32_rm32,
            Tzcnt_r64_rm64 => Bsf_r64_rm64,
            Lzcnt_r16_rm16 => Bsr_r16_rm16,
            Lzcnt_r32_rm32 => Bsr_r32_rm32,
            Lzcnt_r64_rm64 => Bsr_r64_rm64,
            _ => code,
        }
    }

    fn provides(&self, feature: CpuidFeature) -> bool {
        use CpuidFeature as C;
        let (c, d, b7) = (self.leaf1_ecx, self.leaf1_edx, self.leaf7_ebx);
        let on = |word: u32, bit: u32| word & bit != 0;
        match feature {
            C::INTEL8086
            | C::INTEL186
            | C::INTEL286
            | C::INTEL386
            | C::INTEL486
            | C::CPUID
            | C::PAUSE
            | C::SMM => true,
            C::FPU | C::FPU287 | C::FPU387 => on(d, edx1::FPU),
            C::MULTIBYTENOP | C::CLDEMOTE | C::CET_IBT | C::RDPMC => self.p6(),
            C::TSC => on(d, edx1::TSC),
            C::MSR => on(d, edx1::MSR),
            C::CX8 => on(d, edx1::CX8),
            C::CMOV => on(d, edx1::CMOV),
            C::SEP => on(d, edx1::SEP),
            C::CLFSH => on(d, edx1::CLFSH),
            C::MMX => on(d, edx1::MMX),
            C::FXSR => on(d, edx1::FXSR),
            C::SSE => on(d, edx1::SSE),
            C::SSE2 => on(d, edx1::SSE2),
            C::X64 => on(self.ext1_edx, ext1::LM),
            C::SYSCALL => on(self.ext1_edx, ext1::SYSCALL),
            C::RDTSCP => on(self.ext1_edx, ext1::RDTSCP),
            C::PREFETCHW => on(self.ext1_ecx, ext1::PREFETCHW) || on(self.ext1_edx, ext1::LM),
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
            C::XSAVEOPT => on(self.xsave_eax, xsave_eax::XSAVEOPT),
            C::XSAVEC => on(self.xsave_eax, xsave_eax::XSAVEC),
            C::XSAVES => on(self.xsave_eax, xsave_eax::XSAVES),
            C::AVX => on(c, ecx1::AVX),
            C::FMA => on(c, ecx1::FMA),
            C::F16C => on(c, ecx1::F16C),
            C::AVX2 => on(b7, ebx7::AVX2),
            C::BMI1 => on(b7, ebx7::BMI1),
            C::BMI2 => on(b7, ebx7::BMI2),
            C::ADX => on(b7, ebx7::ADX),
            C::SHA => on(b7, ebx7::SHA),
            C::VAES => on(self.leaf7_ecx, ecx7::VAES),
            C::VPCLMULQDQ => on(self.leaf7_ecx, ecx7::VPCLMULQDQ),
            C::FSGSBASE => on(b7, ebx7::FSGSBASE),
            C::INVPCID => on(b7, ebx7::INVPCID),
            C::RDSEED => on(b7, ebx7::RDSEED),
            C::SMAP => on(b7, ebx7::SMAP),
            C::CLFLUSHOPT => on(b7, ebx7::CLFLUSHOPT),
            C::CLWB => on(b7, ebx7::CLWB),
            C::PKU => on(self.leaf7_ecx, ecx7::PKU),
            C::RDPID => on(self.leaf7_ecx, ecx7::RDPID),
            _ => false,
        }
    }
}

/// Whether this host has what an instruction needs beyond x86-64-v2: for tests against the host's silicon.
#[cfg(target_arch = "x86_64")]
pub fn host_has(x: &Instruction) -> bool {
    use CpuidFeature as C;
    x.cpuid_features().iter().all(|f| match f {
        C::AVX => std::is_x86_feature_detected!("avx"),
        C::AVX2 => std::is_x86_feature_detected!("avx2"),
        C::FMA => std::is_x86_feature_detected!("fma"),
        C::F16C => std::is_x86_feature_detected!("f16c"),
        C::BMI1 => std::is_x86_feature_detected!("bmi1"),
        C::BMI2 => std::is_x86_feature_detected!("bmi2"),
        C::LZCNT => std::is_x86_feature_detected!("lzcnt"),
        C::ADX => std::is_x86_feature_detected!("adx"),
        C::SHA => std::is_x86_feature_detected!("sha"),
        C::VAES => std::is_x86_feature_detected!("vaes"),
        C::VPCLMULQDQ => std::is_x86_feature_detected!("vpclmulqdq"),
        _ => true,
    })
}
