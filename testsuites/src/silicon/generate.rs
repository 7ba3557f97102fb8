//! Random cases. Templates (prefixes, opcode, ModRM) are found by decoding random bytes once and sorting them by
//! iced's `Code`, so that every instruction form is drawn as often as any other; operands are random again in each
//! case, then steered so that memory operands mostly meet the data area and its edges.

use super::case::{Case, at};
use super::values;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use trimaran_cpu::model::Features;

/// Everything before the operand bytes, ModRM last.
#[derive(Clone)]
struct Template(Vec<u8>);

/// Draws cases by seed.
pub struct Generator {
    forms: Vec<(Code, Vec<Template>)>,
    /// Forms that are never drawn, and why.
    pub left_out: BTreeMap<String, &'static str>,
    read_only: Vec<u8>,
}

/// Why an instruction cannot be compared: it needs a kernel, or its result is the host's own business. None: it can.
fn excluded(x: &Instruction) -> Option<&'static str> {
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
        M::Fnstenv
        | M::Fnsave
        | M::Fldenv
        | M::Frstor
        | M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64 => {
            Some("an image with last-instruction pointers, which AMD and Intel keep differently")
        }
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
        if x.memory_index().is_vector_register() {
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
fn disputed(x: &Instruction, bytes: &[u8]) -> Option<&'static str> {
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

impl Generator {
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
                templates.push(Template(head));
            }
        }
        let mut forms: Vec<_> = found.into_iter().collect();
        forms.sort_by_key(|f| f.0 as usize);
        let read_only = (0..at::DATA_BYTES - at::WRITABLE_BYTES).map(|_| rng.random()).collect();
        left_out.retain(|code, _| forms.binary_search_by_key(&(*code as usize), |f| f.0 as usize).is_err());
        let left_out = left_out.into_iter().map(|(code, why)| (format!("{code:?}"), why)).collect();
        let wanted = |code: Code| only.is_none_or(|o| format!("{code:?}").to_lowercase().starts_with(o));
        forms.retain(|f| wanted(f.0));
        Generator { forms, left_out, read_only }
    }

    /// The forms that are drawn.
    pub fn codes(&self) -> impl Iterator<Item = Code> {
        self.forms.iter().map(|f| f.0)
    }

    /// The case of a seed.
    pub fn case(&self, seed: u64) -> Case {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut memory = vec![0; at::WRITABLE_BYTES];
        rng.fill(&mut memory[..]);
        memory.extend(&self.read_only);
        let mut gpr = std::array::from_fn(|_| values::integer(&mut rng));
        gpr[4] = at::DATA + 0x1000 + rng.random_range(0..64u64) * 8;
        let df = if rng.random_ratio(1, 8) { 0x400 } else { 0 };
        let rflags = rng.random::<u64>() & 0x8D5 | 0x202 | df;
        let floating = values::floating(&mut rng);
        let mut case = Case { seed, code: Vec::new(), gpr, rflags, floating, memory };
        let count = [1, 1, 1, 2, 3, 4, 6, 8][rng.random_range(0..8)];
        let mut claimed = 1 << 4;
        let mut ip = at::CODE;
        for n in 0..count {
            let bytes = self.instruction(&mut rng, ip, &mut case, &mut claimed);
            let x = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE).decode();
            ip += bytes.len() as u64;
            case.code.push(bytes);
            if x.rflags_undefined() != 0 && n + 1 < count {
                // CMP RSP, imm32: what follows may not see undefined flags.
                let mut cmp = vec![0x48, 0x81, 0xFC];
                cmp.extend((at::DATA as u32 + rng.random_range(0..0x3000)).to_le_bytes());
                ip += cmp.len() as u64;
                case.code.push(cmp);
            }
        }
        aim_branches(&mut case);
        case
    }

    fn instruction(&self, rng: &mut SmallRng, ip: u64, case: &mut Case, claimed: &mut u32) -> Vec<u8> {
        for _ in 0..2000 {
            let Some((code, templates)) = self.forms.get(rng.random_range(0..self.forms.len().max(1))) else {
                break;
            };
            for _ in 0..30 {
                let mut bytes = templates[rng.random_range(0..templates.len())].0.clone();
                let modrm = bytes.len() - 1;
                match rng.random_range(0..4) {
                    0 => {}
                    1 => bytes[modrm] = rng.random(),
                    2 => bytes[modrm] = bytes[modrm] & 0x38 | rng.random::<u8>() & 0xC7,
                    _ => bytes[modrm] = bytes[modrm] & 0x38 | rng.random::<u8>() & 7 | 0xC0,
                }
                while bytes.len() < 18 {
                    bytes.push(if rng.random_ratio(1, 3) { rng.random_range(0..9) } else { rng.random() });
                }
                let mut decoder = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE);
                let x = decoder.decode();
                if x.code() != *code
                    || excluded(&x).is_some()
                    || x.is_invalid()
                    || disputed(&x, &bytes).is_some()
                {
                    continue;
                }
                let offsets = decoder.get_constant_offsets(&x);
                bytes.truncate(x.len());
                steer(rng, &x, &offsets, &mut bytes, case, claimed);
                let y = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE).decode();
                if y.code() == *code {
                    return bytes;
                }
            }
        }
        vec![0x90]
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

/// An address in or at the edge of the data area.
fn target(rng: &mut SmallRng, size: u64) -> u64 {
    let align = if rng.random_ratio(2, 3) { size.next_power_of_two().clamp(1, 32) } else { 1 };
    let address = match rng.random_range(0..40) {
        0..26 => at::DATA + rng.random_range(0x40..0x1F00),
        26..32 => at::DATA + 0x1000 - rng.random_range(0..=size),
        32..36 => at::DATA + 0x2000 - rng.random_range(0..=size),
        36 => at::DATA + 0x2000 + rng.random_range(0..0x800),
        37..39 => at::DATA + 0x3000 - rng.random_range(0..=size),
        _ => at::DATA - rng.random_range(0..=size),
    };
    address & !(align - 1)
}

/// Sets registers, displacement and memory so that the instruction meets something interesting.
fn steer(
    rng: &mut SmallRng,
    x: &Instruction,
    offsets: &iced_x86::ConstantOffsets,
    bytes: &mut [u8],
    case: &mut Case,
    claimed: &mut u32,
) {
    use Mnemonic as M;
    let mut place = None;
    for n in 0..x.op_count() {
        let size = x.memory_size().size().max(1) as u64;
        match x.op_kind(n) {
            OpKind::Memory => place = memory_operand(rng, x, offsets, bytes, case, claimed, size),
            OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemorySegSI => {
                claim(rng, 6, size, case, claimed);
            }
            OpKind::MemorySegRDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegDI
            | OpKind::MemoryESRDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESDI => claim(rng, 7, size, case, claimed),
            _ => {}
        }
    }
    if (x.has_rep_prefix() || x.has_repne_prefix()) && x.is_string_instruction() && *claimed & 2 == 0 {
        *claimed |= 2;
        case.gpr[1] = rng.random_range(0..24);
    }
    if let Some(address) = place {
        let offset = (address - at::DATA) as usize;
        let wide = values::vector(rng).to_le_bytes();
        if rng.random_bool(0.6) && offset + 16 <= at::WRITABLE_BYTES {
            case.memory[offset..offset + 16].copy_from_slice(&wide);
        }
        if let M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b = x.mnemonic()
            && rng.random()
            && offset + 16 <= at::WRITABLE_BYTES
            && *claimed & 5 == 0
        {
            case.memory[offset..offset + 16].fill(0);
            (case.gpr[0], case.gpr[2]) = (0, 0);
        }
    }
    if let M::Div | M::Idiv = x.mnemonic()
        && rng.random_bool(0.8)
        && *claimed & 4 == 0
    {
        case.gpr[2] = if rng.random() { 0 } else { rng.random_range(0..40) };
        if rng.random_ratio(1, 4) {
            case.gpr[2] = !0;
        }
    }
    // With a count over the width the result is open.
    if let M::Shld | M::Shrd = x.mnemonic()
        && x.op1_register().size() == 2
    {
        if x.op2_kind() == OpKind::Immediate8 {
            bytes[offsets.immediate_offset()] = rng.random_range(0..=16);
        } else if x.ip() == at::CODE && *claimed & 2 == 0 {
            *claimed |= 2;
            case.gpr[1] = rng.random_range(0..=16);
        } else {
            bytes.fill(0x90);
        }
    }
    // A bit offset reaches far beyond the operand.
    if let M::Bt | M::Bts | M::Btr | M::Btc = x.mnemonic()
        && x.op0_kind() == OpKind::Memory
        && x.op1_kind() == OpKind::Register
        && *claimed >> x.op1_register().number() & 1 == 0
    {
        *claimed |= 1 << x.op1_register().number();
        case.gpr[x.op1_register().number()] = rng.random_range(-0x2000..0x2000i64) as u64;
    }
}

fn claim(rng: &mut SmallRng, register: usize, size: u64, case: &mut Case, claimed: &mut u32) {
    if *claimed >> register & 1 == 0 {
        *claimed |= 1 << register;
        case.gpr[register] = target(rng, size);
    }
}

/// Aims an ordinary memory operand; returns where at, if inside the data area.
fn memory_operand(
    rng: &mut SmallRng,
    x: &Instruction,
    offsets: &iced_x86::ConstantOffsets,
    bytes: &mut [u8],
    case: &mut Case,
    claimed: &mut u32,
    size: u64,
) -> Option<u64> {
    if rng.random_ratio(1, 60) {
        // Leave it wild, perhaps not canonical.
        return None;
    }
    let wanted = target(rng, size);
    let (base, index) = (x.memory_base(), x.memory_index());
    let scale = u64::from(x.memory_index_scale());
    let displacement = x.memory_displacement64();
    let number = |r: Register| (r.is_gpr()).then(|| r.number());
    let inside = |a: u64| (a >= at::DATA && a < at::DATA + at::WRITABLE_BYTES as u64).then_some(a);
    if matches!(base, Register::RIP | Register::EIP) || base == Register::None && index == Register::None {
        if offsets.displacement_size() == 4 {
            let from = if base == Register::None { 0 } else { x.next_ip() };
            let patch = (wanted.wrapping_sub(from) as u32).to_le_bytes();
            bytes[offsets.displacement_offset()..][..4].copy_from_slice(&patch);
            return inside(wanted);
        }
        if offsets.displacement_size() == 8 {
            bytes[offsets.displacement_offset()..][..8].copy_from_slice(&wanted.to_le_bytes());
            return inside(wanted);
        }
        return None;
    }
    let garbage = if base.size() == 4 || index.size() == 4 { rng.random::<u64>() << 32 } else { 0 };
    let free = |claimed: u32, r: Option<usize>| r.filter(|&r| claimed >> r & 1 == 0);
    if let Some(b) = free(*claimed, number(base)) {
        let mut rest = wanted.wrapping_sub(displacement);
        if let Some(n) = number(index) {
            if n == b {
                rest /= 1 + scale;
            } else {
                if let Some(n) = free(*claimed, Some(n)) {
                    case.gpr[n] = values::integer(rng);
                    *claimed |= 1 << n;
                }
                rest = rest.wrapping_sub(case.gpr[n].wrapping_mul(scale));
            }
        }
        case.gpr[b] = if garbage != 0 { rest & 0xFFFF_FFFF | garbage } else { rest };
        *claimed |= 1 << b;
        return inside(wanted);
    }
    if let Some(n) = free(*claimed, number(index)) {
        let from = number(base).map_or(0, |b| case.gpr[b]);
        case.gpr[n] = wanted.wrapping_sub(displacement).wrapping_sub(from) / scale | garbage;
        *claimed |= 1 << n;
    }
    None
}

/// Near branches go to the next instruction or over it: forward only, so that every case ends.
fn aim_branches(case: &mut Case) {
    let lengths: Vec<usize> = case.code.iter().map(Vec::len).collect();
    let instructions = case.instructions();
    for (n, x) in instructions.iter().enumerate() {
        let conditional = matches!(x.flow_control(), FlowControl::ConditionalBranch);
        let direct = matches!(x.flow_control(), FlowControl::UnconditionalBranch | FlowControl::Call);
        if !(conditional || direct) || !matches!(x.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) {
            continue;
        }
        let mut decoder = Decoder::with_ip(64, &case.code[n], x.ip(), DecoderOptions::NONE);
        let again = decoder.decode();
        let offsets = decoder.get_constant_offsets(&again);
        let over = lengths.get(n + 1).copied().filter(|_| case.seed & 1 << (n & 31) != 0).unwrap_or(0);
        let (at, size) = (offsets.immediate_offset(), offsets.immediate_size());
        case.code[n][at..at + size].fill(0);
        case.code[n][at] = over as u8;
    }
}
