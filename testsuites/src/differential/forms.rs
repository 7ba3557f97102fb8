//! All instruction forms that the model has, found by decoding random bytes; their operands are replaced when a
//! program is made.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind,
    Register,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use trimaran_cpu::model::Features;

/// The forms of one code size.
pub struct Forms {
    /// By [`group`].
    pub groups: [Vec<Instruction>; group::COUNT],
}

/// Kinds of forms, drawn with different weights.
pub mod group {
    /// What every program is full of.
    pub const COMMON: usize = 0;
    /// The others that work on general registers and memory.
    pub const GENERAL: usize = 1;
    /// SSE and MMX.
    pub const SSE: usize = 2;
    pub const X87: usize = 3;
    /// VEX-encoded: on general registers, and on vectors.
    pub const BMI: usize = 4;
    pub const AVX: usize = 5;
    pub const COUNT: usize = 6;
}

/// What has kernels ([`trimaran_cpu::kernels::Kernel`]).
fn kernel(m: Mnemonic) -> bool {
    use Mnemonic as M;
    let name = format!("{m:?}");
    name.starts_with("Cmov")
        || name.starts_with("Set")
        || matches!(
            m,
            M::Mov
                | M::Add
                | M::Adc
                | M::Sub
                | M::Sbb
                | M::Cmp
                | M::Inc
                | M::Dec
                | M::Neg
                | M::Not
                | M::And
                | M::Or
                | M::Xor
                | M::Test
                | M::Xadd
                | M::Cmpxchg
                | M::Xchg
                | M::Imul
                | M::Mul
                | M::Bt
                | M::Bts
                | M::Btr
                | M::Btc
                | M::Bsf
                | M::Bsr
                | M::Popcnt
                | M::Movzx
                | M::Movsx
                | M::Movsxd
                | M::Lea
                | M::Bswap
                | M::Movbe
                | M::Cbw
                | M::Cwde
                | M::Cdqe
                | M::Cwd
                | M::Cdq
                | M::Cqo
                | M::Shl
                | M::Sal
                | M::Shr
                | M::Sar
                | M::Rol
                | M::Ror
        )
}

/// Instructions that may stand anywhere in a program: no branches, stacks and strings (the generator makes those
/// itself), nothing that the machine around the processor decides.
fn usable(x: &Instruction) -> bool {
    use Mnemonic as M;
    let special = (0..x.op_count()).any(|n| {
        let r = if x.op_kind(n) == OpKind::Register { x.op_register(n) } else { Register::None };
        r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr()
    });
    let name = format!("{:?}", x.mnemonic());
    let excluded = matches!(
        x.mnemonic(),
        M::In
            | M::Out
            | M::Rdpmc
            | M::Monitor
            | M::Mwait
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Les
            | M::Lds
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Sti
            | M::Cli
            | M::Ldmxcsr
            | M::Fldcw
            | M::Fldenv
            | M::Frstor
            | M::Fxrstor
            | M::Fxrstor64
    );
    // Gathers reach wherever their indices say; they have tests of their own.
    let wild = x.memory_index().is_vector_register();
    x.flow_control() == FlowControl::Next
        && !wild
        && !x.is_stack_instruction()
        && !x.is_string_instruction()
        && !x.is_privileged()
        && !special
        && !excluded
        && !name.starts_with("Xsave")
        && !name.starts_with("Xrstor")
        && (0..x.op_count()).all(|n| {
            matches!(
                x.op_kind(n),
                OpKind::Register
                    | OpKind::Memory
                    | OpKind::Immediate8
                    | OpKind::Immediate8_2nd
                    | OpKind::Immediate16
                    | OpKind::Immediate32
                    | OpKind::Immediate64
                    | OpKind::Immediate8to16
                    | OpKind::Immediate8to32
                    | OpKind::Immediate8to64
                    | OpKind::Immediate32to64
            )
        })
}

impl Forms {
    pub fn of(bits: u32) -> &'static Forms {
        static FORMS: [OnceLock<Forms>; 3] = [const { OnceLock::new() }; 3];
        FORMS[bits as usize / 32].get_or_init(|| Forms::find(bits))
    }

    fn find(bits: u32) -> Self {
        let mut groups: [Vec<Instruction>; group::COUNT] = Default::default();
        for x in decoded(bits, 700_000, random_bytes) {
            let group = match x.mnemonic() {
                m if kernel(m) && !names(&x, |r| !r.is_gpr()) => group::COMMON,
                m if format!("{m:?}").starts_with('F') && m != Mnemonic::Femms => group::X87,
                _ if names(&x, |r| r.is_vector_register() || r.is_mm()) => group::SSE,
                _ => group::GENERAL,
            };
            groups[group].push(x);
        }
        for x in decoded(bits, 250_000, vex_bytes) {
            let group = if names(&x, Register::is_gpr) && !names(&x, Register::is_vector_register) {
                group::BMI
            } else {
                group::AVX
            };
            groups[group].push(x);
        }
        Forms { groups }
    }
}

/// Whether one of the register operands is such.
fn names(x: &Instruction, f: impl Fn(Register) -> bool) -> bool {
    (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Register && f(x.op_register(n)))
}

/// The usable forms among so many random instructions, each with a register and with memory: an instruction has at most one
/// operand in memory.
fn decoded(
    bits: u32,
    count: u32,
    random: fn(&mut SmallRng, u32) -> [u8; 20],
) -> impl Iterator<Item = Instruction> {
    let mut rng = SmallRng::seed_from_u64(11);
    let features = Features::all();
    let mut found: BTreeMap<(usize, bool, bool), Instruction> = BTreeMap::new();
    for _ in 0..count {
        let bytes = random(&mut rng, bits);
        let x = Decoder::with_ip(bits, &bytes, 0, DecoderOptions::NONE).decode();
        if x.is_invalid() || !features.allows(&x) || !usable(&x) {
            continue;
        }
        let memory = (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory);
        found.entry((x.code() as usize, memory, x.has_lock_prefix())).or_insert(x);
    }
    found.into_values()
}

/// A VEX prefix, an opcode, and what follows.
fn vex_bytes(rng: &mut SmallRng, bits: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    rng.fill(&mut bytes[..]);
    // VEX.vvvv names nothing in a good part of all instructions.
    let last = bytes[2] | if rng.random() { 0x78 } else { 0 };
    // Without REX-like bits in 32-bit mode, where C4 and C5 are LES and LDS otherwise.
    let high = if bits == 64 { 0 } else { 0xC0 };
    if rng.random_ratio(1, 4) {
        bytes[..2].copy_from_slice(&[0xC5, last | high]);
    } else {
        let map = bytes[1] & 0xE0 | high | rng.random_range(1..4);
        bytes[..3].copy_from_slice(&[0xC4, map, last]);
    }
    bytes
}

fn random_bytes(rng: &mut SmallRng, bits: u32) -> [u8; 20] {
    let mut head = Vec::new();
    for (byte, odds) in [(0xF0, 12), (0x66, 3)] {
        if rng.random_ratio(1, odds) {
            head.push(byte);
        }
    }
    match rng.random_range(0..8) {
        0 | 1 => head.push(0xF2),
        2 | 3 => head.push(0xF3),
        _ => {}
    }
    if bits == 64 && rng.random_ratio(1, 2) {
        head.push(0x40 | rng.random::<u8>() & 15);
    }
    match rng.random_range(0..8) {
        0..3 => {}
        3..6 => head.push(0x0F),
        6 => head.extend([0x0F, 0x38]),
        _ => head.extend([0x0F, 0x3A]),
    }
    let mut bytes = [0; 20];
    rng.fill(&mut bytes[..]);
    bytes[..head.len()].copy_from_slice(&head);
    bytes
}

/// Whether an instruction writes any of the registers whose numbers are set in `reserved`.
pub fn writes(x: &InstructionInfo, reserved: u32) -> bool {
    x.used_registers().iter().any(|used| {
        let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
        let full = used.register().full_register();
        written && full.is_gpr() && reserved >> full.number() & 1 != 0
    })
}

/// Another register of the same kind.
pub fn like(rng: &mut SmallRng, r: Register, bits: u32) -> Register {
    let n = if bits == 64 { 16 } else { 8 };
    let pick = |rng: &mut SmallRng, first: Register, n: u32| {
        Register::try_from(first as usize + rng.random_range(0..n) as usize).unwrap_or(r)
    };
    if r.is_gpr8() {
        // AL to BH, then SPL to R15L.
        pick(rng, Register::AL, if bits == 64 { 20 } else { 8 })
    } else if r.is_gpr16() {
        pick(rng, Register::AX, n)
    } else if r.is_gpr32() {
        pick(rng, Register::EAX, n)
    } else if r.is_gpr64() {
        pick(rng, Register::RAX, n)
    } else if r.is_xmm() {
        pick(rng, Register::XMM0, n.min(6))
    } else if r.is_ymm() {
        pick(rng, Register::YMM0, n.min(6))
    } else if r.is_mm() {
        pick(rng, Register::MM0, 8)
    } else if r.is_st() {
        pick(rng, Register::ST0, 8)
    } else {
        r
    }
}

/// A general register of so many bytes by number.
pub fn register(number: usize, bytes: usize) -> Register {
    let first = match bytes {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    // Without AH to BH: SPL follows BH.
    let skip = if bytes == 1 && number >= 4 { 4 } else { 0 };
    Register::try_from(first as usize + number + skip).expect("a register")
}

/// Jcc rel32 of a condition number.
pub fn jcc(number: usize, bits: u32) -> Code {
    const WIDE: [Code; 16] = [
        Code::Jo_rel32_64,
        Code::Jno_rel32_64,
        Code::Jb_rel32_64,
        Code::Jae_rel32_64,
        Code::Je_rel32_64,
        Code::Jne_rel32_64,
        Code::Jbe_rel32_64,
        Code::Ja_rel32_64,
        Code::Js_rel32_64,
        Code::Jns_rel32_64,
        Code::Jp_rel32_64,
        Code::Jnp_rel32_64,
        Code::Jl_rel32_64,
        Code::Jge_rel32_64,
        Code::Jle_rel32_64,
        Code::Jg_rel32_64,
    ];
    const NARROW: [Code; 16] = [
        Code::Jo_rel32_32,
        Code::Jno_rel32_32,
        Code::Jb_rel32_32,
        Code::Jae_rel32_32,
        Code::Je_rel32_32,
        Code::Jne_rel32_32,
        Code::Jbe_rel32_32,
        Code::Ja_rel32_32,
        Code::Js_rel32_32,
        Code::Jns_rel32_32,
        Code::Jp_rel32_32,
        Code::Jnp_rel32_32,
        Code::Jl_rel32_32,
        Code::Jge_rel32_32,
        Code::Jle_rel32_32,
        Code::Jg_rel32_32,
    ];
    if bits == 64 { WIDE[number & 15] } else { NARROW[number & 15] }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every group has the forms that it is for.
    #[test]
    fn groups_are_full() {
        for (bits, least) in [
            (64, [300, 80, 500, 100, 40, 700]),
            (32, [150, 40, 400, 100, 15, 500]),
            (16, [150, 40, 400, 100, 15, 500]),
        ] {
            let sizes = Forms::of(bits).groups.each_ref().map(Vec::len);
            println!("{bits} bits: {sizes:?}");
            assert!(sizes.iter().zip(least).all(|(&n, least)| n >= least), "{bits} bits: {sizes:?}");
        }
    }

    /// Prefixes of names: what the model has that is VEX-encoded.
    #[test]
    fn extensions_are_there() {
        let forms = Forms::of(64).groups[group::BMI..].concat();
        let missing = |name: &&&str| !forms.iter().any(|x| format!("{:?}", x.code()).contains(**name));
        let wanted =
            ["Vaddps_ymm", "Vpaddd_ymm", "Vfmadd231pd_ymm", "Vcvtph2ps", "Vaesenc_ymm", "Vzeroupper"];
        let general = ["Andn_r64", "Mulx_r64", "Pdep_r32", "Rorx_r64", "Shlx_r64", "Bzhi_r64", "Bextr_r32"];
        let missing: Vec<_> = wanted.iter().chain(&general).filter(missing).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
