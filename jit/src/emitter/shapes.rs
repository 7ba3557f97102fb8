//! Which vector instructions run as themselves on the host, and how they are encoded.
//!
//! A guest's SSE or AVX instruction is executed by the same instruction of the host on the same registers. All that
//! its encoding needs is in iced's tables; what is taken from there once, for each [`Code`], is a [`Shape`].

use iced_x86::{Code, CpuidFeature, EncodingKind, MandatoryPrefix, Mnemonic as M};
use iced_x86::{OpCodeOperandKind as Kind, OpCodeTableKind};
use std::sync::LazyLock;
use trimaran_cpu::blocks::BlockKey;
use trimaran_cpu::insn::{Insn, prefix};
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::translate::legacy_mnemonic;

/// What a field of ModRM, or VEX.vvvv, stands for: 0 is the destination ([`Insn::r0`]), 1 the source that may be memory
/// (`r1`), 2 the first source of a VEX form (`r2`).
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Field {
    /// For `rm`: or memory.
    Vector(u8),
    General(u8),
    Memory,
    Extension(u8),
}

/// What an instruction does besides computing its operand 0.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Effect {
    None,
    /// Sets ZF, PF, CF, clears the other flags; writes nothing else.
    Compare,
    /// PCMPISTRI, PCMPISTRM: all flags, and ECX or XMM0.
    Index,
    Mask,
    /// MOVNTI: a plain store.
    Store,
    /// STMXCSR: stores, not a vector.
    Status,
    /// CRC32: operand 0, a general register, is also a source.
    Checksum,
    /// VZEROUPPER, VZEROALL: all vector registers.
    ClearUpper,
    ClearAll,
}

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Encoded with a VEX prefix, and whether of 256 bits.
    pub vex: bool,
    pub long: bool,
    /// VEX.vvvv.
    pub vvvv: Option<Field>,
    /// The immediate names a register that is a source, in its upper half.
    pub mask: bool,
    /// The mandatory prefix, or 0.
    pub prefix: u8,
    /// The second byte of a three-byte opcode, or 0.
    pub map: u8,
    pub opcode: u8,
    pub wide: bool,
    pub immediate: bool,
    pub reg: Field,
    pub rm: Field,
    /// Of the memory operand.
    pub size: u8,
    pub aligned: bool,
    /// Depends on MXCSR.
    pub float: bool,
    /// Operand 0 is read, from a register or from memory as operand 1.
    reads: [bool; 2],
    /// Of two equal registers the result is a constant.
    pub idiom: bool,
    /// XMM0 is a source.
    pub by_xmm0: bool,
    pub effect: Effect,
}

impl Shape {
    /// Whether operand 0, a vector register, is a source.
    pub fn reads_destination(&self, i: &Insn) -> bool {
        self.reads[usize::from(i.memory())]
    }

    /// The vector registers that an instruction names, as bits: those it reads, and those it writes. `ymm`: they count
    /// whole, so that a legacy instruction keeps part of what it writes.
    pub fn vectors(&self, i: &Insn, ymm: bool) -> (u16, u16) {
        let (mut read, mut written) = (u16::from(self.by_xmm0), u16::from(self.effect == Effect::Mask));
        let constant = self.idiom && !i.memory() && i.r0 == i.r1;
        if self.mask {
            read |= 1 << (i.imm & 15);
        }
        for field in [Some(self.reg), self.vvvv, (!i.memory()).then_some(self.rm)].into_iter().flatten() {
            match field {
                Field::Vector(2) => read |= 1 << (i.r2 & 15),
                Field::Vector(0) => {
                    let bit = 1 << (i.r0 & 15);
                    if self.reads_destination(i) && !constant {
                        read |= bit;
                    }
                    if self.effect == Effect::None {
                        written |= bit;
                    }
                }
                Field::Vector(_) if !constant => read |= 1 << (i.r1 & 15),
                _ => {}
            }
        }
        if ymm && !self.vex {
            read |= written;
        }
        (read, written)
    }

    /// The general register that is a source, and the one that is written.
    pub fn generals(&self, i: &Insn) -> (Option<u8>, Option<u8>) {
        let (mut read, mut written) = (None, None);
        for field in [Some(self.reg), (!i.memory()).then_some(self.rm)].into_iter().flatten() {
            match field {
                Field::General(0) => written = Some(i.r0 & 15),
                Field::General(_) => read = Some(i.r1 & 15),
                _ => {}
            }
        }
        if self.effect == Effect::Index {
            written = Some(1);
        }
        (read, written)
    }
}

/// By `Code`.
static SHAPES: LazyLock<Vec<Option<Shape>>> = LazyLock::new(|| Code::values().map(shape).collect());

#[cfg(test)]
pub fn of(code: Code) -> Option<&'static Shape> {
    SHAPES[code as usize].as_ref()
}

/// How an instruction runs on the host; None: not by this file's means.
pub fn native(i: &Insn, key: BlockKey) -> Option<&'static Shape> {
    if i.kernel != Kernel::Helper || !key.sse() || i.memory() && i.has(prefix::CHECKED) {
        return None;
    }
    let shape = SHAPES.get(i.code as usize)?.as_ref()?;
    // #UD, and what else the decoder made of it.
    let undefined = i.has(prefix::LOCK) || shape.vex && !key.avx();
    (!undefined && (!shape.float || key.default_mxcsr())).then_some(shape)
}

fn host_has(feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::SSE | CpuidFeature::SSE2 => true,
        CpuidFeature::SSE3 => std::is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => std::is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => std::is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => std::is_x86_feature_detected!("sse4.2"),
        CpuidFeature::AES => std::is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => std::is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::SHA => std::is_x86_feature_detected!("sha"),
        CpuidFeature::AVX => std::is_x86_feature_detected!("avx"),
        CpuidFeature::AVX2 => std::is_x86_feature_detected!("avx2"),
        CpuidFeature::FMA => std::is_x86_feature_detected!("fma"),
        CpuidFeature::F16C => std::is_x86_feature_detected!("f16c"),
        CpuidFeature::VAES => std::is_x86_feature_detected!("vaes"),
        CpuidFeature::VPCLMULQDQ => std::is_x86_feature_detected!("vpclmulqdq"),
        _ => false,
    }
}

fn shape(code: Code) -> Option<Shape> {
    let op = code.op_code();
    let vex = op.encoding() == EncodingKind::VEX;
    if !(vex || op.encoding() == EncodingKind::Legacy) || !op.is_instruction() {
        return None;
    }
    // What the mask leaves out is not accessed: a look-up of the whole would set A and D bits.
    if matches!(code.mnemonic(), M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq) {
        return None;
    }
    // The lists below have the names without V.
    let fused = vex && format!("{code:?}").starts_with("VEX_Vf");
    let m = if vex { legacy_mnemonic(code.mnemonic()) } else { code.mnemonic() };
    if !code.cpuid_features().iter().all(|&f| host_has(f)) {
        return None;
    }
    let map = match op.table() {
        OpCodeTableKind::T0F => 0,
        OpCodeTableKind::T0F38 => 0x38,
        OpCodeTableKind::T0F3A => 0x3A,
        _ => return None,
    };
    let prefix = match op.mandatory_prefix() {
        MandatoryPrefix::P66 => 0x66,
        MandatoryPrefix::PF3 => 0xF3,
        MandatoryPrefix::PF2 => 0xF2,
        _ => 0,
    };
    let (mut reg, mut rm, mut immediate, mut vectors) = (None, None, false, false);
    let (mut vvvv, mut mask, mut long) = (None, false, op.memory_size().size() == 32);
    let places = op.op_kinds().iter().filter(|&&k| k != Kind::imm8).count();
    for (n, &kind) in op.op_kinds().iter().enumerate() {
        let n = match n {
            1 | 2 if vex && places >= 3 => 3 - n as u8,
            _ => n as u8,
        };
        let name = format!("{kind:?}");
        vectors |= name.starts_with("xmm") || name.starts_with("ymm");
        long |= name.starts_with("ymm");
        match kind {
            Kind::xmm_vvvv | Kind::ymm_vvvv => vvvv = Some(Field::Vector(n)),
            Kind::xmm_is4 | Kind::ymm_is4 => (immediate, mask) = (true, true),
            Kind::ymm_reg => reg = Some(Field::Vector(n)),
            Kind::ymm_rm | Kind::ymm_or_mem => rm = Some(Field::Vector(n)),
            Kind::xmm_reg => reg = Some(Field::Vector(n)),
            Kind::r32_reg | Kind::r64_reg => reg = Some(Field::General(n)),
            Kind::xmm_rm | Kind::xmm_or_mem => rm = Some(Field::Vector(n)),
            Kind::r32_rm | Kind::r64_rm | Kind::r32_or_mem | Kind::r64_or_mem => rm = Some(Field::General(n)),
            Kind::r8_or_mem | Kind::r16_or_mem => rm = Some(Field::General(n)),
            Kind::mem => rm = Some(Field::Memory),
            Kind::imm8 => immediate = true,
            _ => return None,
        }
    }
    if op.group_index() >= 0 {
        reg = Some(Field::Extension(op.group_index() as u8));
    }
    let effect = match m {
        M::Comiss | M::Comisd | M::Ucomiss | M::Ucomisd | M::Ptest | M::Vtestps | M::Vtestpd => {
            Effect::Compare
        }
        M::Pcmpistri => Effect::Index,
        M::Pcmpistrm => Effect::Mask,
        M::Movnti => Effect::Store,
        M::Stmxcsr => Effect::Status,
        M::Crc32 => Effect::Checksum,
        M::Vzeroupper => Effect::ClearUpper,
        M::Vzeroall => Effect::ClearAll,
        // Lengths in fixed registers.
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpestri64 | M::Pcmpestrm64 => return None,
        _ => Effect::None,
    };
    if let Effect::ClearUpper | Effect::ClearAll = effect {
        (reg, rm, vectors) = (Some(Field::Extension(0)), Some(Field::Extension(0)), true);
    }
    if !vectors && !matches!(effect, Effect::Store | Effect::Status | Effect::Checksum) {
        return None;
    }
    let size = op.memory_size().size() as u8;
    let unaligned = matches!(m, M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Pcmpistri | M::Pcmpistrm);
    // The guest's fences are not the host's, so what they order must not be weaker than other stores: MOVAPS.
    let plain = matches!(m, M::Movntps | M::Movntpd | M::Movntdq);
    let reads = if vex { fused || effect != Effect::None } else { !overwrites(m) };
    let moves = matches!(m, M::Movaps | M::Movapd | M::Movdqa | M::Movntdqa) || plain;
    let half = matches!(m, M::Vcvtph2ps | M::Vcvtps2ph);
    Some(Shape {
        prefix: if plain { 0 } else { prefix },
        map,
        opcode: if plain { 0x29 } else { op.op_code() as u8 },
        wide: if vex { op.w() == 1 } else { op.operand_size() == 64 },
        vex,
        long,
        vvvv,
        mask,
        immediate,
        reg: reg?,
        rm: rm?,
        size,
        aligned: if vex { moves } else { size == 16 && !unaligned },
        float: is_float(m) || fused || half,
        reads: [reads, reads && !matches!(m, M::Movss | M::Movsd)],
        idiom: !vex && is_idiom(m),
        by_xmm0: !vex && matches!(m, M::Pblendvb | M::Blendvps | M::Blendvpd | M::Sha256rnds2),
        effect,
    })
}

/// Whether nothing of the destination's old value remains, in all forms.
fn overwrites(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Movaps
            | Movapd
            | Movdqa
            | Movups
            | Movupd
            | Movdqu
            | Lddqu
            | Movntdqa
            | Movd
            | Movq
            | Movddup
            | Movsldup
            | Movshdup
            | Pshufd
            | Pshuflw
            | Pshufhw
            | Pabsb
            | Pabsw
            | Pabsd
            | Phminposuw
            | Pmovzxbw
            | Pmovzxbd
            | Pmovzxbq
            | Pmovzxwd
            | Pmovzxwq
            | Pmovzxdq
            | Pmovsxbw
            | Pmovsxbd
            | Pmovsxbq
            | Pmovsxwd
            | Pmovsxwq
            | Pmovsxdq
            | Aesimc
            | Aeskeygenassist
            | Sqrtps
            | Sqrtpd
            | Rcpps
            | Rsqrtps
            | Roundps
            | Roundpd
            | Cvtps2pd
            | Cvtpd2ps
            | Cvtdq2ps
            | Cvtdq2pd
            | Cvtps2dq
            | Cvttps2dq
            | Cvtpd2dq
            | Cvttpd2dq
    )
}

fn is_idiom(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Pxor | Xorps
            | Xorpd
            | Psubb
            | Psubw
            | Psubd
            | Psubq
            | Pcmpeqb
            | Pcmpeqw
            | Pcmpeqd
            | Pcmpeqq
            | Pcmpgtb
            | Pcmpgtw
            | Pcmpgtd
            | Pcmpgtq
    )
}

/// Instructions that MXCSR has a say in.
fn is_float(m: M) -> bool {
    use M::*;
    matches!(
        m,
        Addps
            | Addss
            | Addpd
            | Addsd
            | Subps
            | Subss
            | Subpd
            | Subsd
            | Mulps
            | Mulss
            | Mulpd
            | Mulsd
            | Divps
            | Divss
            | Divpd
            | Divsd
            | Sqrtps
            | Sqrtss
            | Sqrtpd
            | Sqrtsd
            | Minps
            | Minss
            | Minpd
            | Minsd
            | Maxps
            | Maxss
            | Maxpd
            | Maxsd
            | Rcpps
            | Rcpss
            | Rsqrtps
            | Rsqrtss
            | Haddps
            | Haddpd
            | Hsubps
            | Hsubpd
            | Addsubps
            | Addsubpd
            | Roundps
            | Roundss
            | Roundpd
            | Roundsd
            | Dpps
            | Dppd
            | Cmpps
            | Cmpss
            | Cmppd
            | Cmpsd
            | Comiss
            | Comisd
            | Ucomiss
            | Ucomisd
            | Cvtps2pd
            | Cvtpd2ps
            | Cvtss2sd
            | Cvtsd2ss
            | Cvtdq2ps
            | Cvtdq2pd
            | Cvtps2dq
            | Cvttps2dq
            | Cvtpd2dq
            | Cvttpd2dq
            | Cvtsi2ss
            | Cvtsi2sd
            | Cvtss2si
            | Cvtsd2si
            | Cvttss2si
            | Cvttsd2si
    )
}
