//! CPU models as data, and how the command line names one: `max,-avx2,+rdpid`.

pub use crate::features::{FEATURES, Feature, Features, Word, ebx7, ecx1, ecx7, edx1, edx7, ext1, feature};
use std::borrow::Cow;
use std::fmt::Write;

/// A processor as guests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// With the features that were added or taken away; saved states know the model by it.
    pub name: Cow<'static, str>,
    pub vendor: [u8; 12],
    /// Leaf 1 EAX.
    pub signature: u32,
    pub brand: &'static str,
    /// The last basic leaf of CPUID, and the last extended one (0: there are none).
    pub last_leaf: u32,
    pub last_extended_leaf: u32,
    pub features: Features,
    /// Ticks of the time-stamp counter in a millisecond. Fixed when the machine starts.
    pub tsc_khz: u32,
}

/// Why a description is no model. The text lists what there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error("there is no model `{name}`; the models are: {known}", known = model_names())]
    Unknown { name: String },
    #[error("there is no feature `{name}`; the features are: {known}", known = feature_names())]
    UnknownFeature { name: String },
    #[error("`{0}`: write +FEATURE or -FEATURE behind the model")]
    NoSign(String),
    #[error("`{feature}` needs `{needs}`, which is not there: also give +{needs} or -{feature}")]
    Dependency { feature: &'static str, needs: &'static str },
}

fn model_names() -> String {
    Model::all().iter().map(|m| &*m.name).collect::<Vec<_>>().join(", ")
}

fn feature_names() -> String {
    FEATURES.iter().map(|f| f.name).collect::<Vec<_>>().join(" ")
}

const NONE: Features = Features {
    leaf1_ecx: 0,
    leaf1_edx: 0,
    leaf7_ebx: 0,
    leaf7_ecx: 0,
    leaf7_edx: 0,
    ext1_ecx: 0,
    ext1_edx: 0,
    xsave_eax: 0,
};

/// The vendor whose processors have SYSCALL outside of 64-bit mode.
const AMD: &[u8; 12] = b"AuthenticAMD";

/// 100 MHz for what was sold with as much; PIT and TSC then count as old programs expect.
const OLD_TSC_KHZ: u32 = 100_000;
const TSC_KHZ: u32 = 1_000_000;

/// A 486DX4 (SL enhanced; the first with CPUID that Intel sold in numbers): leaf 1 of the dump of 0480h says FPU, VME.
const I486: Model = Model {
    name: Cow::Borrowed("486"),
    vendor: *b"GenuineIntel",
    signature: 0x0480,
    brand: "",
    last_leaf: 1,
    last_extended_leaf: 0,
    features: Features { leaf1_edx: edx1::FPU | edx1::VME, ..NONE },
    tsc_khz: OLD_TSC_KHZ,
};

/// A Pentium P54C (the second, with a local APIC): EDX of the dump of 052Ch is 3BFh.
const PENTIUM: Model = Model {
    name: Cow::Borrowed("pentium"),
    signature: 0x052C,
    features: Features {
        leaf1_edx: I486.features.leaf1_edx
            | edx1::DE
            | edx1::PSE
            | edx1::TSC
            | edx1::MSR
            | edx1::MCE
            | edx1::CX8
            | edx1::APIC,
        ..NONE
    },
    ..I486
};

/// A Pentium Pro: EDX of the dump of 0619h is FBFFh.
const P6: Model = Model {
    name: Cow::Borrowed("p6"),
    signature: 0x0619,
    last_leaf: 2,
    features: Features {
        leaf1_edx: PENTIUM.features.leaf1_edx
            | edx1::PAE
            | edx1::SEP
            | edx1::MTRR
            | edx1::PGE
            | edx1::MCA
            | edx1::CMOV,
        ..NONE
    },
    ..PENTIUM
};

/// A Core 2 (Conroe): the dump of 06F6h (ECX E3BDh, EDX BFEBFBFFh) less what only says how it saves power, debugs
/// and virtualizes (DS, ACPI, SS, HTT, TM, PBE, DTES64, DS-CPL, VMX, EST, TM2, xTPR, PDCM).
const CORE2: Model = Model {
    name: Cow::Borrowed("core2"),
    signature: 0x06F6,
    brand: "Trimaran core2 processor",
    last_leaf: 0xA,
    last_extended_leaf: 0x8000_0008,
    features: Features {
        leaf1_ecx: ecx1::SSE3 | ecx1::MONITOR | ecx1::SSSE3 | ecx1::CMPXCHG16B,
        leaf1_edx: P6.features.leaf1_edx
            | edx1::PAT
            | edx1::PSE36
            | edx1::CLFSH
            | edx1::MMX
            | edx1::FXSR
            | edx1::SSE
            | edx1::SSE2,
        ext1_ecx: ext1::LAHF,
        ext1_edx: ext1::SYSCALL | ext1::NX | ext1::LM,
        ..NONE
    },
    tsc_khz: TSC_KHZ,
    ..P6
};

/// An AMD Opteron (K8, the first with x86-64, as virtual machines know it: "Opteron_G1"): SYSCALL in 32-bit modes too.
const OPTERON: Model = Model {
    name: Cow::Borrowed("opteron"),
    vendor: *AMD,
    signature: 0x0F61,
    brand: "Trimaran opteron processor",
    last_leaf: 1,
    features: Features {
        leaf1_ecx: ecx1::SSE3,
        leaf1_edx: CORE2.features.leaf1_edx,
        ext1_edx: ext1::SYSCALL | ext1::NX | ext1::LM,
        ..NONE
    },
    ..CORE2
};

/// Family 6, model 44 (Westmere), stepping 2: the first with all of the psABI's x86-64-v2 and AES. Beyond its dump: what
/// systems since have come to like (x2APIC timers, FSGSBASE, SMEP, SMAP, RDRAND, XSAVE) and that we have.
const X86_64_V2: Model = Model {
    name: Cow::Borrowed("x86-64-v2"),
    signature: 0x0002_06C2,
    brand: "Trimaran x86-64-v2 processor",
    last_leaf: 0x16,
    features: Features {
        leaf1_ecx: CORE2.features.leaf1_ecx
            | ecx1::PCLMULQDQ
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
        leaf7_ebx: ebx7::FSGSBASE
            | ebx7::TSC_ADJUST
            | ebx7::SMEP
            | ebx7::ERMS
            | ebx7::INVPCID
            | ebx7::RDSEED
            | ebx7::SMAP,
        leaf7_ecx: ecx7::UMIP,
        leaf7_edx: edx7::FSRM | edx7::ARCH_CAPABILITIES,
        ext1_ecx: CORE2.features.ext1_ecx | ext1::PREFETCHW,
        ext1_edx: CORE2.features.ext1_edx | ext1::PAGE1GB | ext1::RDTSCP,
        xsave_eax: 1,
        ..CORE2.features
    },
    ..CORE2
};

/// Family 6, model 60 (Haswell), stepping 3: the first with all of the psABI's x86-64-v3; on top of the model before.
const X86_64_V3: Model = Model {
    name: Cow::Borrowed("x86-64-v3"),
    signature: 0x0003_06C3,
    brand: "Trimaran x86-64-v3 processor",
    features: Features {
        leaf1_ecx: X86_64_V2.features.leaf1_ecx | ecx1::AVX | ecx1::FMA | ecx1::F16C,
        leaf7_ebx: X86_64_V2.features.leaf7_ebx | ebx7::BMI1 | ebx7::AVX2 | ebx7::BMI2,
        ext1_ecx: X86_64_V2.features.ext1_ecx | ext1::LZCNT,
        ..X86_64_V2.features
    },
    ..X86_64_V2
};

impl Model {
    /// All models, the default first. `max` has every feature that we implement.
    pub fn all() -> &'static [Model] {
        static ALL: std::sync::LazyLock<[Model; 8]> = std::sync::LazyLock::new(|| {
            let max = Model {
                name: Cow::Borrowed("max"),
                brand: "Trimaran max processor",
                features: Features::all(),
                ..X86_64_V3
            };
            [X86_64_V2, I486, PENTIUM, P6, CORE2, OPTERON, X86_64_V3, max]
        });
        &*ALL
    }

    /// Whether it follows the APM where that and the SDM differ.
    pub fn amd(&self) -> bool {
        self.vendor == *AMD
    }

    /// The model of a name, or None.
    pub fn by_name(name: &str) -> Option<&'static Model> {
        Self::all().iter().find(|m| m.name == name)
    }

    /// Bits of a linear address in long mode, at most.
    pub fn linear_bits(&self) -> u32 {
        if self.features.leaf7_ecx & ecx7::LA57 != 0 { 57 } else { 48 }
    }

    /// A model's name and behind it features to add or take away: `max,-avx2,+rdpid`.
    pub fn parse(text: &str) -> Result<Model, ModelError> {
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        let base = Self::by_name(name).ok_or_else(|| ModelError::Unknown { name: name.into() })?;
        let mut model = base.clone();
        for word in words {
            let (on, name) = match (word.strip_prefix('+'), word.strip_prefix('-')) {
                (Some(name), _) => (true, name),
                (_, Some(name)) => (false, name),
                _ => return Err(ModelError::NoSign(word.into())),
            };
            let f = feature(name).ok_or_else(|| ModelError::UnknownFeature { name: name.into() })?;
            let bits = model.features.word_mut(f.word);
            *bits = *bits & !f.bit | if on { f.bit } else { 0 };
        }
        if let Some((feature, needs)) = model.features.broken() {
            return Err(ModelError::Dependency { feature: feature.name, needs });
        }
        // One name for one model, however it was written.
        for f in FEATURES.iter().filter(|f| base.features.has(f) != model.features.has(f)) {
            let sign = if model.features.has(f) { '+' } else { '-' };
            let _ = write!(model.name.to_mut(), ",{sign}{}", f.name);
        }
        Ok(model)
    }

    /// The models and features, for people.
    pub fn help() -> String {
        let mut out = String::from("Models (the first is the default):\n");
        for m in Self::all() {
            let names: Vec<&str> = FEATURES.iter().filter(|f| m.features.has(f)).map(|f| f.name).collect();
            let _ = writeln!(out, "\n  {}\n{}", m.name, wrapped(&names, "      "));
        }
        let names: Vec<&str> = FEATURES.iter().map(|f| f.name).collect();
        let _ = writeln!(out, "\nFeatures (--cpu MODEL,+FEATURE,-FEATURE):\n\n{}", wrapped(&names, "  "));
        out
    }
}

/// Words in lines of at most 100 columns.
fn wrapped(words: &[&str], indent: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < 100 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("{indent}{word}")),
        }
    }
    lines.join("\n")
}

impl Default for Model {
    fn default() -> Self {
        X86_64_V2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_is_whole() {
        for m in Model::all() {
            assert_eq!(m.features.broken().map(|(f, needs)| (f.name, needs)), None, "{}", m.name);
            assert_eq!(Model::parse(&m.name).as_ref(), Ok(m));
        }
        for f in FEATURES {
            assert!(f.needs.iter().all(|need| feature(need).is_some()), "{}", f.name);
        }
    }

    #[test]
    fn features_come_and_go() {
        let m = Model::parse("max,-avx2,-rdpid,+rdpid").unwrap();
        assert_eq!(m.name, "max,-avx2");
        assert_eq!(m.features.leaf7_ebx & ebx7::AVX2, 0);
        assert_eq!(Model::parse("max,+sse2").unwrap(), Model::parse("max").unwrap());
        assert_eq!(Model::parse("pentium,+cmov").unwrap().name, "pentium,+cmov");
    }

    #[test]
    fn errors_say_what_there_is() {
        let error = |text| Model::parse(text).unwrap_err().to_string();
        assert!(error("z80").contains("x86-64-v2"));
        assert!(error("max,+warp").contains("sse4_1"));
        assert!(error("max,sse2").contains("+FEATURE"));
        assert_eq!(
            error("max,-sse4_1"),
            "`sse4_2` needs `sse4_1`, which is not there: also give +sse4_1 or -sse4_2"
        );
    }

    #[test]
    fn the_oldest_are_as_their_silicon_was() {
        let edx = |name| Model::by_name(name).unwrap().features.leaf1_edx;
        assert_eq!([edx("486"), edx("pentium"), edx("p6")], [0x3, 0x3BF, 0xFBFF]);
    }
}
