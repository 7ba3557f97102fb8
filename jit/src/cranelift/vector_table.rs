//! Which vector instructions this back end translates, and what they are in CLIF.
//!
//! What an integer instruction does with its lanes is a function of two vectors and the immediate. A new instruction is
//! a row. MMX, VEX forms, and what is not listed are helpers.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{ConstantData, Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use cranelift_frontend::FunctionBuilder;
use iced_x86::{Code, EncodingKind, Mnemonic as M, OpCodeOperandKind as Kind};
use std::sync::LazyLock;
use trimaran_cpu::blocks::BlockKey;
use trimaran_cpu::insn::{Insn, W, prefix};
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::state::seg;
use types::{F32, F32X4, F64, F64X2, I8X16, I16X8, I32X4, I64X2};

/// Operand 0, operand 1 and the immediate to the new operand 0, in lanes of one type.
pub type Lanes = fn(&mut FunctionBuilder, Value, Value, u8) -> Value;

/// What an instruction is.
#[derive(Clone, Copy)]
pub enum Operation {
    Lanes(Type, Lanes),
    /// The same between registers; from memory it fills with zeroes what it does not load.
    Move(Lanes),
    /// Bits 127..64 to memory; the same from there.
    MoveHigh(Lanes),
    FromGeneral(W),
    ToGeneral(W),
    /// The lanes' signs, as bits of a general register.
    Signs(Type),
    Insert(Type),
    Extract(Type),
    /// PTEST.
    Test,
    /// Arithmetic on one lane (scalar types) or all.
    Float(Type, Float),
    /// COMISS and kin.
    Compare(Type),
    FromInteger(Type, W),
    Truncate(Type, W),
    /// CVTSS2SD, CVTSD2SS: to the type.
    Precision(Type),
    /// CVTDQ2PS, CVTDQ2PD: to the type.
    FromLanes(Type),
    /// CVTPS2PD.
    PromoteLanes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Float {
    Add,
    Sub,
    Mul,
    Div,
    Sqrt,
    Min,
    Max,
    Compare,
}

#[derive(Clone, Copy)]
pub struct Vector {
    pub operation: Operation,
    /// Of the memory operand, in bytes.
    pub size: u8,
    /// A memory operand that is not aligned is #GP(0).
    pub aligned: bool,
}

/// By `Code`.
static TABLE: LazyLock<Vec<Option<Vector>>> = LazyLock::new(|| Code::values().map(vector).collect());

/// How an instruction is translated; None: it is not, as a vector instruction.
pub fn native(i: &Insn, key: BlockKey) -> Option<&'static Vector> {
    let flat = !i.memory() || !i.has(prefix::CHECKED) && usize::from(i.seg) >= seg::FS;
    if i.kernel != Kernel::Helper || !key.sse() || i.has(prefix::LOCK) || !flat {
        return None;
    }
    let vector = TABLE.get(i.code as usize)?.as_ref()?;
    (!vector.operation.depends_on_mxcsr() || key.default_mxcsr()).then_some(vector)
}

impl Operation {
    fn depends_on_mxcsr(&self) -> bool {
        use Operation::*;
        matches!(
            self,
            Float(..)
                | Compare(_)
                | FromInteger(..)
                | Truncate(..)
                | Precision(_)
                | FromLanes(_)
                | PromoteLanes
        )
    }
    /// May run as a helper or leave even without a memory operand.
    pub fn is_guarded(&self) -> bool {
        self.depends_on_mxcsr()
    }
}

fn vector(code: Code) -> Option<Vector> {
    let op = code.op_code();
    if op.encoding() != EncodingKind::Legacy || !op.is_instruction() {
        return None;
    }
    let kinds = op.op_kinds();
    if kinds.iter().any(|k| format!("{k:?}").starts_with("mm")) {
        return None;
    }
    let has = |k: Kind| kinds.contains(&k);
    if !kinds.iter().any(|k| format!("{k:?}").starts_with("xmm")) {
        return None;
    }
    let m = code.mnemonic();
    let general = if has(Kind::r64_reg) || has(Kind::r64_or_mem) { W::Q } else { W::D };
    let by_immediate = kinds.last() == Some(&Kind::imm8);
    let operation = moves(m, code, general)
        .or_else(|| integers(m))
        .or_else(|| shifts(m, by_immediate))
        .or_else(|| permutations(m))
        .or_else(|| floats(m, general))?;
    let size = op.memory_size().size() as u8;
    let unaligned = matches!(m, M::Movups | M::Movupd | M::Movdqu | M::Lddqu);
    Some(Vector { operation, size, aligned: size == 16 && !unaligned })
}

fn moves(m: M, code: Code, general: W) -> Option<Operation> {
    use Operation::*;
    Some(match m {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => {
            Move(|_, _, y, _| y)
        }
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => Move(|_, _, y, _| y),
        M::Movss => Move(|b, x, y, _| pick(b, x, y, &[4, 1, 2, 3])),
        M::Movsd => Move(|b, x, y, _| pick(b, x, y, &[2, 1])),
        M::Movd | M::Movq => match code {
            Code::Movd_xmm_rm32 | Code::Movq_xmm_rm64 => FromGeneral(general),
            Code::Movd_rm32_xmm | Code::Movq_rm64_xmm => ToGeneral(general),
            Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm => Move(|b, _, y, _| {
                let low = constant(b, I8X16, &[0xFF; 8]);
                b.ins().band(y, low)
            }),
            _ => return None,
        },
        M::Movlps | M::Movlpd => Lanes(I8X16, |b, x, y, _| pick(b, x, y, &[2, 1])),
        M::Movhps | M::Movhpd | M::Movlhps => MoveHigh(|b, x, y, _| pick(b, x, y, &[0, 2])),
        M::Movhlps => Lanes(I8X16, |b, x, y, _| pick(b, x, y, &[3, 1])),
        M::Movddup => Lanes(I8X16, |b, x, y, _| pick(b, x, y, &[2, 2])),
        M::Movsldup => Lanes(I8X16, |b, x, y, _| pick(b, x, y, &[4, 4, 6, 6])),
        M::Movshdup => Lanes(I8X16, |b, x, y, _| pick(b, x, y, &[5, 5, 7, 7])),
        M::Pmovmskb => Signs(I8X16),
        M::Movmskps => Signs(I32X4),
        M::Movmskpd => Signs(I64X2),
        M::Pinsrb => Insert(I8X16),
        M::Pinsrw => Insert(I16X8),
        M::Pinsrd => Insert(I32X4),
        M::Pinsrq => Insert(I64X2),
        M::Pextrb => Extract(I8X16),
        M::Pextrw => Extract(I16X8),
        M::Pextrd | M::Extractps => Extract(I32X4),
        M::Pextrq => Extract(I64X2),
        M::Ptest => Test,
        _ => return None,
    })
}

fn integers(m: M) -> Option<Operation> {
    use Operation::Lanes;
    let by_type = |name: M, table: &[(M, Type)]| table.iter().find(|row| row.0 == name).map(|row| row.1);
    let groups: [(&[(M, Type)], self::Lanes); 14] = [
        (&[(M::Paddb, I8X16), (M::Paddw, I16X8), (M::Paddd, I32X4), (M::Paddq, I64X2)], |b, x, y, _| {
            b.ins().iadd(x, y)
        }),
        (&[(M::Psubb, I8X16), (M::Psubw, I16X8), (M::Psubd, I32X4), (M::Psubq, I64X2)], |b, x, y, _| {
            b.ins().isub(x, y)
        }),
        (&[(M::Paddsb, I8X16), (M::Paddsw, I16X8)], |b, x, y, _| b.ins().sadd_sat(x, y)),
        (&[(M::Paddusb, I8X16), (M::Paddusw, I16X8)], |b, x, y, _| b.ins().uadd_sat(x, y)),
        (&[(M::Psubsb, I8X16), (M::Psubsw, I16X8)], |b, x, y, _| b.ins().ssub_sat(x, y)),
        (&[(M::Psubusb, I8X16), (M::Psubusw, I16X8)], |b, x, y, _| b.ins().usub_sat(x, y)),
        (&[(M::Pavgb, I8X16), (M::Pavgw, I16X8)], |b, x, y, _| b.ins().avg_round(x, y)),
        (&[(M::Pmullw, I16X8), (M::Pmulld, I32X4)], |b, x, y, _| b.ins().imul(x, y)),
        (
            &[(M::Pcmpeqb, I8X16), (M::Pcmpeqw, I16X8), (M::Pcmpeqd, I32X4), (M::Pcmpeqq, I64X2)],
            |b, x, y, _| b.ins().icmp(IntCC::Equal, x, y),
        ),
        (
            &[(M::Pcmpgtb, I8X16), (M::Pcmpgtw, I16X8), (M::Pcmpgtd, I32X4), (M::Pcmpgtq, I64X2)],
            |b, x, y, _| b.ins().icmp(IntCC::SignedGreaterThan, x, y),
        ),
        (&[(M::Pminub, I8X16), (M::Pminuw, I16X8), (M::Pminud, I32X4)], |b, x, y, _| b.ins().umin(x, y)),
        (&[(M::Pmaxub, I8X16), (M::Pmaxuw, I16X8), (M::Pmaxud, I32X4)], |b, x, y, _| b.ins().umax(x, y)),
        (&[(M::Pminsb, I8X16), (M::Pminsw, I16X8), (M::Pminsd, I32X4)], |b, x, y, _| b.ins().smin(x, y)),
        (&[(M::Pmaxsb, I8X16), (M::Pmaxsw, I16X8), (M::Pmaxsd, I32X4)], |b, x, y, _| b.ins().smax(x, y)),
    ];
    if let Some((ty, f)) = groups.iter().find_map(|(table, f)| Some((by_type(m, table)?, *f))) {
        return Some(Lanes(ty, f));
    }
    Some(match m {
        M::Pand | M::Andps | M::Andpd => Lanes(I8X16, |b, x, y, _| b.ins().band(x, y)),
        M::Pandn | M::Andnps | M::Andnpd => Lanes(I8X16, |b, x, y, _| b.ins().band_not(y, x)),
        M::Por | M::Orps | M::Orpd => Lanes(I8X16, |b, x, y, _| b.ins().bor(x, y)),
        M::Pxor | M::Xorps | M::Xorpd => Lanes(I8X16, |b, x, y, _| b.ins().bxor(x, y)),
        M::Pabsb => Lanes(I8X16, |b, _, y, _| b.ins().iabs(y)),
        M::Pabsw => Lanes(I16X8, |b, _, y, _| b.ins().iabs(y)),
        M::Pabsd => Lanes(I32X4, |b, _, y, _| b.ins().iabs(y)),
        M::Pmuludq => Lanes(I8X16, |b, x, y, _| {
            let [x, y] = [x, y].map(|v| {
                let even = pick(b, v, v, &[0, 2, 0, 2]);
                let even = cast(b, I32X4, even);
                b.ins().uwiden_low(even)
            });
            b.ins().imul(x, y)
        }),
        M::Pmuldq => Lanes(I8X16, |b, x, y, _| {
            let [x, y] = [x, y].map(|v| {
                let even = pick(b, v, v, &[0, 2, 0, 2]);
                let even = cast(b, I32X4, even);
                b.ins().swiden_low(even)
            });
            b.ins().imul(x, y)
        }),
        M::Pmulhw => Lanes(I16X8, |b, x, y, _| {
            high_products(b, x, y, [|b, v| b.ins().swiden_low(v), |b, v| b.ins().swiden_high(v)])
        }),
        M::Pmulhuw => Lanes(I16X8, |b, x, y, _| {
            high_products(b, x, y, [|b, v| b.ins().uwiden_low(v), |b, v| b.ins().uwiden_high(v)])
        }),
        M::Pmaddwd => Lanes(I16X8, |b, x, y, _| {
            let [low, high] =
                products(b, x, y, [|b, v| b.ins().swiden_low(v), |b, v| b.ins().swiden_high(v)]);
            b.ins().iadd_pairwise(low, high)
        }),
        M::Psadbw => Lanes(I8X16, sums_of_differences),
        _ => return None,
    })
}

type Widen = fn(&mut FunctionBuilder, Value) -> Value;

/// The products of the low words, and of the high ones.
fn products(b: &mut FunctionBuilder, x: Value, y: Value, widen: [Widen; 2]) -> [Value; 2] {
    widen.map(|half| {
        let (x, y) = (half(b, x), half(b, y));
        b.ins().imul(x, y)
    })
}

/// Their upper halves.
fn high_products(b: &mut FunctionBuilder, x: Value, y: Value, widen: [Widen; 2]) -> Value {
    let [low, high] = products(b, x, y, widen).map(|v| cast(b, I8X16, v));
    pick(b, low, high, &[1, 3, 5, 7, 9, 11, 13, 15])
}

/// PSADBW: absolute differences of eight bytes, added.
fn sums_of_differences(b: &mut FunctionBuilder, x: Value, y: Value, _: u8) -> Value {
    let (above, below) = (b.ins().usub_sat(x, y), b.ins().usub_sat(y, x));
    let mut sum = b.ins().bor(above, below);
    // Neighbours are added, in lanes twice as wide each time.
    for (ty, bits) in [(I16X8, 8), (I32X4, 16), (I64X2, 32)] {
        let pairs = cast(b, ty, sum);
        let even = ones(b, ty, bits);
        let (low, n) = (b.ins().band(pairs, even), b.ins().iconst(types::I32, i64::from(bits)));
        let high = b.ins().ushr(pairs, n);
        sum = b.ins().iadd(low, high);
    }
    sum
}

/// The low `bits` bits of each lane set.
fn ones(b: &mut FunctionBuilder, ty: Type, bits: u32) -> Value {
    let lane = (1u64 << bits) - 1;
    let bytes = lane.to_le_bytes();
    let all: Vec<u8> = bytes[..ty.lane_bits() as usize / 8].repeat(ty.lane_count() as usize);
    constant(b, ty, &all)
}

fn shifts(m: M, by_immediate: bool) -> Option<Operation> {
    use Operation::Lanes;
    let lanes = match m {
        M::Psllw | M::Psrlw | M::Psraw => I16X8,
        M::Pslld | M::Psrld | M::Psrad => I32X4,
        _ => I64X2,
    };
    Some(match m {
        M::Psllw | M::Pslld | M::Psllq if by_immediate => {
            Lanes(lanes, |b, x, _, n| shift_by(b, x, n, |b, x, n| b.ins().ishl(x, n)))
        }
        M::Psrlw | M::Psrld | M::Psrlq if by_immediate => {
            Lanes(lanes, |b, x, _, n| shift_by(b, x, n, |b, x, n| b.ins().ushr(x, n)))
        }
        M::Psraw | M::Psrad if by_immediate => Lanes(lanes, |b, x, _, n| {
            let most = lane_bits(b, x) - 1;
            shift_by(b, x, n.min(most as u8), |b, x, n| b.ins().sshr(x, n))
        }),
        M::Psllw | M::Pslld | M::Psllq => {
            Lanes(lanes, |b, x, y, _| shift_by_lane(b, x, y, |b, x, n| b.ins().ishl(x, n)))
        }
        M::Psrlw | M::Psrld | M::Psrlq => {
            Lanes(lanes, |b, x, y, _| shift_by_lane(b, x, y, |b, x, n| b.ins().ushr(x, n)))
        }
        M::Psraw | M::Psrad => Lanes(lanes, |b, x, y, _| {
            let (n, most) = (count(b, y), i64::from(lane_bits(b, x)) - 1);
            let most = b.ins().iconst(types::I64, most);
            let n = b.ins().umin(n, most);
            let n = b.ins().ireduce(types::I32, n);
            b.ins().sshr(x, n)
        }),
        M::Pslldq => Lanes(I8X16, |b, x, _, n| window(b, None, Some(x), 16 - usize::from(n.min(16)))),
        M::Psrldq => Lanes(I8X16, |b, x, _, n| window(b, Some(x), None, n.min(16).into())),
        _ => return None,
    })
}

type Shift = fn(&mut FunctionBuilder, Value, Value) -> Value;

fn lane_bits(b: &FunctionBuilder, x: Value) -> u32 {
    b.func.dfg.value_type(x).lane_bits()
}

/// Zero when the count reaches the lane's width.
fn shift_by(b: &mut FunctionBuilder, x: Value, n: u8, shift: Shift) -> Value {
    if u32::from(n) >= lane_bits(b, x) {
        let ty = b.func.dfg.value_type(x);
        return constant(b, ty, &[]);
    }
    let n = b.ins().iconst(types::I32, i64::from(n));
    shift(b, x, n)
}

/// The low quadword.
fn count(b: &mut FunctionBuilder, y: Value) -> Value {
    let quads = cast(b, I64X2, y);
    b.ins().extractlane(quads, 0)
}

fn shift_by_lane(b: &mut FunctionBuilder, x: Value, y: Value, shift: Shift) -> Value {
    let ty = b.func.dfg.value_type(x);
    let (n, bits) = (count(b, y), i64::from(ty.lane_bits()));
    // CLIF takes counts modulo the width.
    let over = b.ins().icmp_imm_u(IntCC::UnsignedGreaterThanOrEqual, n, bits);
    let n = b.ins().ireduce(types::I32, n);
    let (shifted, zero) = (shift(b, x, n), constant(b, ty, &[]));
    b.ins().select(over, zero, shifted)
}

fn permutations(m: M) -> Option<Operation> {
    use Operation::Lanes;
    Some(match m {
        M::Punpcklbw => Lanes(I8X16, |b, x, y, _| interleave(b, x, y, 16, 0)),
        M::Punpcklwd => Lanes(I8X16, |b, x, y, _| interleave(b, x, y, 8, 0)),
        M::Punpckldq | M::Unpcklps => Lanes(I8X16, |b, x, y, _| interleave(b, x, y, 4, 0)),
        M::Punpcklqdq | M::Unpcklpd => Lanes(I8X16, |b, x, y, _| interleave(b, x, y, 2, 0)),
        M::Punpckhbw => Lanes(I8X16, |b, x, y, _| interleave(b, x, y, 16, 8)),
        M::Punpckhwd => Lanes(I8X16, |b, x, y, _| interleave(b, x, y, 8, 4)),
        M::Punpckhdq | M::Unpckhps => Lanes(I8X16, |b, x, y, _| interleave(b, x, y, 4, 2)),
        M::Punpckhqdq | M::Unpckhpd => Lanes(I8X16, |b, x, y, _| interleave(b, x, y, 2, 1)),
        M::Packsswb => Lanes(I16X8, |b, x, y, _| b.ins().snarrow(x, y)),
        M::Packuswb => Lanes(I16X8, |b, x, y, _| b.ins().unarrow(x, y)),
        M::Packssdw => Lanes(I32X4, |b, x, y, _| b.ins().snarrow(x, y)),
        M::Packusdw => Lanes(I32X4, |b, x, y, _| b.ins().unarrow(x, y)),
        M::Pshufd => Lanes(I8X16, |b, _, y, n| {
            let [i, j, k, l] = fields(n);
            pick(b, y, y, &[i, j, k, l])
        }),
        M::Pshuflw => Lanes(I8X16, |b, _, y, n| {
            let [i, j, k, l] = fields(n);
            pick(b, y, y, &[i, j, k, l, 4, 5, 6, 7])
        }),
        M::Pshufhw => Lanes(I8X16, |b, _, y, n| {
            let [i, j, k, l] = fields(n);
            pick(b, y, y, &[0, 1, 2, 3, 4 + i, 4 + j, 4 + k, 4 + l])
        }),
        M::Shufps => Lanes(I8X16, |b, x, y, n| {
            let [i, j, k, l] = fields(n);
            pick(b, x, y, &[i, j, 4 + k, 4 + l])
        }),
        M::Shufpd => Lanes(I8X16, |b, x, y, n| pick(b, x, y, &[n & 1, 2 + (n >> 1 & 1)])),
        M::Pshufb => Lanes(I8X16, |b, x, y, _| {
            // Indices from 16 up give zero: bit 7 is kept, bits 6 to 4 are not.
            let meant = constant(b, I8X16, &[0x8F; 16]);
            let index = b.ins().band(y, meant);
            b.ins().swizzle(x, index)
        }),
        M::Palignr => Lanes(I8X16, |b, x, y, n| match usize::from(n) {
            n if n <= 16 => window(b, Some(y), Some(x), n),
            n => window(b, Some(x), None, n.min(32) - 16),
        }),
        M::Pblendw => Lanes(I8X16, |b, x, y, n| blend(b, x, y, 8, n)),
        M::Blendps => Lanes(I8X16, |b, x, y, n| blend(b, x, y, 4, n)),
        M::Blendpd => Lanes(I8X16, |b, x, y, n| blend(b, x, y, 2, n)),
        M::Insertps => Lanes(I8X16, |b, x, y, n| {
            let [from, to] = [n >> 6, n >> 4 & 3];
            let lanes = [0, 1, 2, 3].map(|lane| if lane == to { 4 + from } else { lane });
            let (moved, zero) = (pick(b, x, y, &lanes), constant(b, I8X16, &[]));
            blend(b, moved, zero, 4, n)
        }),
        M::Pmovzxbw => Lanes(I8X16, |b, _, y, _| b.ins().uwiden_low(y)),
        M::Pmovzxwd => Lanes(I16X8, |b, _, y, _| b.ins().uwiden_low(y)),
        M::Pmovzxdq => Lanes(I32X4, |b, _, y, _| b.ins().uwiden_low(y)),
        M::Pmovsxbw => Lanes(I8X16, |b, _, y, _| b.ins().swiden_low(y)),
        M::Pmovsxwd => Lanes(I16X8, |b, _, y, _| b.ins().swiden_low(y)),
        M::Pmovsxdq => Lanes(I32X4, |b, _, y, _| b.ins().swiden_low(y)),
        _ => return None,
    })
}

/// Two bits each.
fn fields(imm: u8) -> [u8; 4] {
    [0, 2, 4, 6].map(|at| imm >> at & 3)
}

/// Lanes of `x` and `y` by turns, `count` in all, from lane `first` on.
fn interleave(b: &mut FunctionBuilder, x: Value, y: Value, count: u8, first: u8) -> Value {
    let lanes: Vec<u8> = (0..count).map(|n| first + n / 2 + n % 2 * count).collect();
    pick(b, x, y, &lanes)
}

fn blend(b: &mut FunctionBuilder, x: Value, y: Value, count: u8, imm: u8) -> Value {
    let lanes: Vec<u8> = (0..count).map(|n| n + (imm >> n & 1) * count).collect();
    pick(b, x, y, &lanes)
}

/// A vector of lanes of two: `lanes` has the number of each, those of `y` following those of `x`. Its length says how wide
/// they are.
pub fn pick(b: &mut FunctionBuilder, x: Value, y: Value, lanes: &[u8]) -> Value {
    let width = 16 / lanes.len() as u8;
    let bytes: Vec<u8> = lanes.iter().flat_map(|lane| (0..width).map(move |n| lane * width + n)).collect();
    let mask = b.func.dfg.immediates.push(ConstantData::from(&bytes[..]));
    b.ins().shuffle(x, y, mask)
}

/// 16 bytes from a place in the 32 of two vectors; one that is not given is zero.
fn window(b: &mut FunctionBuilder, low: Option<Value>, high: Option<Value>, first: usize) -> Value {
    let [low, high] = [low, high].map(|v| v.unwrap_or_else(|| constant(b, I8X16, &[])));
    let bytes: Vec<u8> = (0..16).map(|n| (first + n) as u8).collect();
    pick(b, low, high, &bytes)
}

/// A constant of these bytes, and zeroes after them.
pub fn constant(b: &mut FunctionBuilder, ty: Type, bytes: &[u8]) -> Value {
    let mut all = [0; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    let data = b.func.dfg.constants.insert(ConstantData::from(&all[..]));
    let v = b.ins().vconst(I8X16, data);
    cast(b, ty, v)
}

/// The same bits in other lanes: lane 0 is the lowest on every host.
pub fn cast(b: &mut FunctionBuilder, ty: Type, v: Value) -> Value {
    if b.func.dfg.value_type(v) == ty {
        return v;
    }
    b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), v)
}

fn floats(m: M, general: W) -> Option<Operation> {
    use Operation as O;
    let arithmetic = [
        (Float::Add, [M::Addss, M::Addsd, M::Addps, M::Addpd]),
        (Float::Sub, [M::Subss, M::Subsd, M::Subps, M::Subpd]),
        (Float::Mul, [M::Mulss, M::Mulsd, M::Mulps, M::Mulpd]),
        (Float::Div, [M::Divss, M::Divsd, M::Divps, M::Divpd]),
        (Float::Sqrt, [M::Sqrtss, M::Sqrtsd, M::Sqrtps, M::Sqrtpd]),
        (Float::Min, [M::Minss, M::Minsd, M::Minps, M::Minpd]),
        (Float::Max, [M::Maxss, M::Maxsd, M::Maxps, M::Maxpd]),
        (Float::Compare, [M::Cmpss, M::Cmpsd, M::Cmpps, M::Cmppd]),
    ];
    for (op, names) in arithmetic {
        if let Some(n) = names.iter().position(|&name| name == m) {
            return Some(O::Float([F32, F64, F32X4, F64X2][n], op));
        }
    }
    Some(match m {
        M::Comiss | M::Ucomiss => O::Compare(F32),
        M::Comisd | M::Ucomisd => O::Compare(F64),
        M::Cvtsi2ss => O::FromInteger(F32, general),
        M::Cvtsi2sd => O::FromInteger(F64, general),
        M::Cvttss2si => O::Truncate(F32, general),
        M::Cvttsd2si => O::Truncate(F64, general),
        M::Cvtss2sd => O::Precision(F64),
        M::Cvtsd2ss => O::Precision(F32),
        M::Cvtdq2ps => O::FromLanes(F32X4),
        M::Cvtdq2pd => O::FromLanes(F64X2),
        M::Cvtps2pd => O::PromoteLanes,
        _ => return None,
    })
}

/// A predicate of CMPPS and kin, where no operand is a NaN; None: false, true.
pub fn predicate(imm: u8) -> Result<FloatCC, bool> {
    Ok(match imm & 7 {
        0 => FloatCC::Equal,
        1 => FloatCC::LessThan,
        2 => FloatCC::LessThanOrEqual,
        3 => return Err(false),
        4 => FloatCC::NotEqual,
        5 => FloatCC::GreaterThanOrEqual,
        6 => FloatCC::GreaterThan,
        _ => return Err(true),
    })
}
