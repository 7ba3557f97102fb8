//! The instruction forms that cases are drawn from. Templates (prefixes, opcode, ModRM) are found by decoding random
//! bytes once and sorting them by iced's `Code`.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use trimaran_cpu::model::Features;

/// Everything before the operand bytes, ModRM last.
pub type Template = Vec<u8>;

/// See the head of this file.
pub struct Forms {
    pub drawn: Vec<(Code, Vec<Template>)>,
    /// Those that load or store images of the x87 unit; they stand alone.
    pub images: Vec<(Code, Vec<Template>)>,
    /// Forms that are never drawn, and why.
    pub left_out: BTreeMap<String, &'static str>,
}

impl Forms {
    /// `only`: prefix of iced's names of the forms to draw from, in lower case.
    pub fn new(only: Option<&str>) -> Self {
        let mut rng = SmallRng::seed_from_u64(7);
        let features = Features::all();
        let mut found: HashMap<Code, Vec<Template>> = HashMap::new();
        let mut left_out: HashMap<Code, &str> = HashMap::new();
        for _ in 0..1_500_000 {
            let (head, bytes) = random_bytes(&mut rng);
            let x = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            if x.is_invalid() || !features.allows(&x) || x.len() < head.len() - 1 {
                continue;
            }
            if let Some(why) = excluded(&x).or_else(|| disputed(&x, &bytes)) {
                left_out.insert(x.code(), why);
                continue;
            }
            let templates = found.entry(x.code()).or_default();
            if templates.len() < 12 {
                templates.push(head);
            }
        }
        left_out.retain(|code, _| !found.contains_key(code));
        let missed = Code::values().filter(|code| exists(*code, &features) && !found.contains_key(code));
        for code in missed {
            let mut x = Instruction::default();
            x.set_code(code);
            let other = "aliases, AMD's 16-bit branches, WAIT with its instruction: iced decodes their bytes as other forms";
            left_out.entry(code).or_insert_with(|| excluded(&x).unwrap_or(other));
        }
        let left_out = left_out.into_iter().map(|(code, why)| (format!("{code:?}"), why)).collect();
        let mut drawn: Vec<_> = found.into_iter().collect();
        drawn.sort_by_key(|f| f.0 as usize);
        drawn.retain(|f| only.is_none_or(|o| format!("{:?}", f.0).to_lowercase().starts_with(o)));
        let (images, drawn) = drawn.into_iter().partition(|f| image(f.0.mnemonic()).is_some());
        Forms { drawn, images, left_out }
    }
}

/// Whether 64-bit mode has a form.
fn exists(code: Code, features: &Features) -> bool {
    let mut x = Instruction::default();
    x.set_code(code);
    code.op_code().is_instruction() && code.op_code().mode64() && features.allows(&x)
}

/// What an image of the x87 unit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    Load,
    Store,
}

/// Whether an instruction loads or stores an image of the x87 unit, last-instruction pointers among it.
pub fn image(mnemonic: Mnemonic) -> Option<Image> {
    use Mnemonic as M;
    match mnemonic {
        M::Fldenv | M::Frstor | M::Fxrstor | M::Fxrstor64 => Some(Image::Load),
        M::Fnstenv | M::Fnsave | M::Fxsave | M::Fxsave64 => Some(Image::Store),
        _ => None,
    }
}

/// Why an instruction cannot be compared: it needs a kernel, or its result is the host's own business. None: it can.
pub fn excluded(x: &Instruction) -> Option<&'static str> {
    use Mnemonic as M;
    let register = |n: u32| if x.op_kind(n) == OpKind::Register { x.op_register(n) } else { Register::None };
    let special = (0..x.op_count()).any(|n| {
        let r = register(n);
        r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr()
    });
    let far = x.is_jmp_far() || x.is_jmp_far_indirect() || x.is_call_far() || x.is_call_far_indirect();
    let by_name = match x.mnemonic() {
        M::In
        | M::Out
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Outsb
        | M::Outsw
        | M::Outsd
        | M::Rdtsc
        | M::Rdtscp
        | M::Rdpmc
        | M::Cpuid
        | M::Rdrand
        | M::Rdseed
        | M::Rdpid
        | M::Syscall
        | M::Sysenter
        | M::Int
        | M::Int1
        | M::Iret
        | M::Iretd
        | M::Iretq
        | M::Retf
        | M::Xgetbv
        | M::Monitor
        | M::Mwait => Some("the machine around the processor, or its kernel, decides"),
        M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str
        | M::Smsw
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Lss
        | M::Lfs
        | M::Lgs
        | M::Rdfsbase
        | M::Rdgsbase
        | M::Wrfsbase
        | M::Wrgsbase => Some("the host's descriptor tables, segment bases and UMIP setting"),
        M::Popf | M::Popfq => Some("may set TF or AC"),
        M::Xsave
        | M::Xsave64
        | M::Xsavec
        | M::Xsavec64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsaves
        | M::Xsaves64
        | M::Xrstor
        | M::Xrstor64
        | M::Xrstors
        | M::Xrstors64 => Some("an image of the components that the host's kernel has enabled"),
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss | M::Vrcpps | M::Vrcpss | M::Vrsqrtps | M::Vrsqrtss => {
            Some("an approximation: each maker has its own tables")
        }
        M::Rdpkru | M::Wrpkru => Some("needs CR4.PKE"),
        M::Sysret | M::Sysretq | M::Sysexit | M::Sysexitq => Some("AMD takes them to a 16-bit target"),
        _ => None,
    };
    by_name.or_else(|| {
        if x.is_vsib() {
            Some("a gather reaches wherever its indices say; cpu/src/simd/tests has them")
        } else if !trimaran_cpu::features::host_has(x) {
            Some("the host has not the feature")
        } else if special || far || x.is_privileged() {
            Some("segment, control and debug registers, far transfers, privileged instructions: the system suite's")
        } else if x.memory_segment() == Register::FS || x.segment_prefix() == Register::FS {
            Some("FS is the host's")
        } else {
            None
        }
    })
}

/// Encodings that the host, an AMD or an Intel processor, may take differently from the manual of the other.
pub fn disputed(x: &Instruction, bytes: &[u8]) -> Option<&'static str> {
    use Mnemonic as M;
    let prefixes = &bytes[..bytes
        .iter()
        .position(|b| {
            !matches!(
                b,
                0x66 | 0x67 | 0xF0 | 0xF2 | 0xF3 | 0x26 | 0x2E | 0x36 | 0x3E | 0x64 | 0x65 | 0x40..=0x4F
            )
        })
        .unwrap_or(0)];
    let has = |b: u8| prefixes.contains(&b);
    let rex = prefixes.last().copied().unwrap_or(0);
    let branch =
        !matches!(x.flow_control(), FlowControl::Next | FlowControl::Exception | FlowControl::Interrupt);
    match x.mnemonic() {
        _ if branch && has(0x66) => {
            Some("near branch with 66: AMD cuts RIP to 16 bits, Intel ignores the prefix")
        }
        M::Loope | M::Loopne if has(0xF2) || has(0xF3) => {
            Some("LOOPcc with REP: on AMD the prefix picks the condition")
        }
        M::Pause if rex & 0xF1 == 0x41 => Some("F3 REX.B 90: iced and Intel PAUSE, AMD XCHG R8, RAX"),
        M::Reservednop if x.op0_kind() == OpKind::Register => {
            Some("0F 0D with a register: #UD on AMD, NOP on Intel")
        }
        M::Cvtpi2ps if x.op1_kind() == OpKind::Memory => Some("enters MMX state on Intel, not on AMD"),
        M::Movsxd if x.op0_register().size() == 2 => Some("AMD reads 32 bits"),
        _ => None,
    }
}

/// Random prefixes, opcode and what follows; the first part ends with the ModRM byte.
fn random_bytes(rng: &mut SmallRng) -> (Vec<u8>, Vec<u8>) {
    let mut head = Vec::new();
    if rng.random_ratio(2, 5) {
        return vex_bytes(rng);
    }
    if rng.random_ratio(1, 24) {
        head.push(0xF0);
    }
    for (byte, odds) in [(0x66, 3), (0x67, 16), (0x65, 40), (0x3E, 60)] {
        if rng.random_ratio(1, odds) {
            head.push(byte);
        }
    }
    match rng.random_range(0..8) {
        0 | 1 => head.push(0xF2),
        2 | 3 => head.push(0xF3),
        _ => {}
    }
    if rng.random_ratio(1, 2) {
        head.push(0x40 | rng.random::<u8>() & 15);
    }
    match rng.random_range(0..8) {
        0..3 => {}
        3..6 => head.push(0x0F),
        6 => head.extend([0x0F, 0x38]),
        _ => head.extend([0x0F, 0x3A]),
    }
    head.push(rng.random());
    head.push(rng.random());
    let mut bytes = head.clone();
    while bytes.len() < 18 {
        bytes.push(rng.random());
    }
    (head, bytes)
}

/// The same with a VEX prefix.
fn vex_bytes(rng: &mut SmallRng) -> (Vec<u8>, Vec<u8>) {
    let mut head = Vec::new();
    if rng.random_ratio(1, 20) {
        head.push(0x67);
    }
    // VEX.vvvv names nothing in a good part of all instructions.
    let last = if rng.random() { rng.random() } else { rng.random::<u8>() | 0x78 };
    if rng.random_ratio(1, 4) {
        head.extend([0xC5, last]);
    } else {
        head.extend([0xC4, rng.random::<u8>() & 0xE0 | rng.random_range(1..4), last]);
    }
    head.extend([rng.random::<u8>(), rng.random::<u8>()]);
    let mut bytes = head.clone();
    while bytes.len() < 18 {
        bytes.push(rng.random());
    }
    (head, bytes)
}
