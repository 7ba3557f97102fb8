//! SSE4.2 string and text comparison (SDM Vol. 2, "Comparison Operations" of the introduction to chapter 4).

use super::lanes::{get, put};
use super::operands::{Forms, shared};
use crate::Vcpu;
use crate::fault::Exit;
use crate::flags::LazyFlags;
use crate::insn::{Insn, W, prefix};
use crate::state::{RFlags, gpr};
use iced_x86::Mnemonic as M;

/// The table of this file.
pub fn handler(m: M) -> Option<Forms> {
    Some(match m {
        M::Pcmpistri => shared!(|v, i| compare(v, i, implicit_lengths, index)),
        M::Pcmpistrm => shared!(|v, i| compare(v, i, implicit_lengths, mask)),
        M::Pcmpestri => shared!(|v, i| compare(v, i, |v, _, _, f| explicit_lengths(v, f, W::D), index)),
        M::Pcmpestrm => shared!(|v, i| compare(v, i, |v, _, _, f| explicit_lengths(v, f, W::D), mask)),
        M::Pcmpestri64 => shared!(|v, i| compare(v, i, |v, _, _, f| explicit_lengths(v, f, W::Q), index)),
        M::Pcmpestrm64 => shared!(|v, i| compare(v, i, |v, _, _, f| explicit_lengths(v, f, W::Q), mask)),
        _ => return None,
    })
}

/// Replaces all six status flags.
pub fn set_flags(v: &mut Vcpu, flags: RFlags) {
    v.lazy = LazyFlags::from_bits(flags.bits());
}

/// The immediate, decoded.
#[derive(Clone, Copy)]
struct Format {
    /// Elements a register holds: 16 bytes or 8 words.
    count: u32,
    bits: u32,
    signed: bool,
    aggregation: u8,
    polarity: u8,
    /// Bit 6: the most significant index, or a mask of elements instead of bits.
    wide: bool,
}

impl Format {
    fn of(imm: u8) -> Self {
        let words = imm & 1 != 0;
        Format {
            count: if words { 8 } else { 16 },
            bits: if words { 16 } else { 8 },
            signed: imm & 2 != 0,
            aggregation: imm >> 2 & 3,
            polarity: imm >> 4 & 3,
            wide: imm & 0x40 != 0,
        }
    }
    fn all(self) -> u32 {
        (1 << self.count) - 1
    }
    fn element(self, x: u128, n: u32) -> i32 {
        let value = get(x, n, self.bits) as i32;
        let unused = 32 - self.bits;
        if self.signed { value << unused >> unused } else { value }
    }
}

/// The lengths of both strings, at most the number of elements.
type Lengths = fn(&Vcpu, u128, u128, Format) -> (u32, u32);

/// Where the result goes.
type Finish = fn(&mut Vcpu, &Insn, u32, Format);

/// PCMPISTRx: a zero element ends a string.
fn implicit_lengths(_: &Vcpu, a: u128, b: u128, f: Format) -> (u32, u32) {
    let length = |x| (0..f.count).find(|&n| get(x, n, f.bits) == 0).unwrap_or(f.count);
    (length(a), length(b))
}

/// PCMPESTRx: absolute values of rAX and rDX.
fn explicit_lengths(v: &Vcpu, f: Format, w: W) -> (u32, u32) {
    let length = |r: usize| {
        let signed = w.sext(v.state.gpr[r]) as i64;
        signed.unsigned_abs().min(u64::from(f.count)) as u32
    };
    (length(gpr::RAX), length(gpr::RDX))
}

/// PCMPISTRI and kin: compares, aggregates, and hands the result to `finish`.
///
/// Flags: CF: any bit of the result; ZF: the second string is short; SF: the first is; OF: bit 0; AF = PF = 0.
fn compare(v: &mut Vcpu, i: &Insn, lengths: Lengths, finish: Finish) -> Result<(), Exit> {
    v.check_vector(i)?;
    let b = if i.memory() {
        let address = v.operand_address(i, 16, false)?;
        v.load_128(i.seg, address)?
    } else {
        v.xmm(i.r1)
    };
    let (a, f) = (v.xmm(i.r0), Format::of(i.imm as u8));
    let (length_a, length_b) = lengths(v, a, b, f);
    let plain = aggregate(a, b, length_a, length_b, f);
    let valid_b = (1u32 << length_b) - 1;
    let result = match f.polarity {
        1 => !plain & f.all(),
        3 => plain ^ valid_b,
        _ => plain,
    };
    finish(v, i, result, f);
    let mut flags = RFlags::empty();
    flags.set(RFlags::CF, result != 0);
    flags.set(RFlags::ZF, length_b < f.count);
    flags.set(RFlags::SF, length_a < f.count);
    flags.set(RFlags::OF, result & 1 != 0);
    set_flags(v, flags);
    Ok(())
}

/// One bit for each element of `b` (for the search of a substring: for each place where it may begin).
fn aggregate(a: u128, b: u128, length_a: u32, length_b: u32, f: Format) -> u32 {
    let (e_a, e_b) = (|n| f.element(a, n), |n| f.element(b, n));
    let bit = |j: u32| match f.aggregation {
        // Equal any: is b[j] one of a's characters?
        0 => j < length_b && (0..length_a).any(|k| e_a(k) == e_b(j)),
        // Ranges: is b[j] in one of a's pairs of bounds?
        1 => {
            let within = |k: u32| e_a(k * 2) <= e_b(j) && e_b(j) <= e_a(k * 2 + 1);
            j < length_b && (0..length_a / 2).any(within)
        }
        // Equal each: beyond both ends counts as equal.
        2 => match (j < length_a, j < length_b) {
            (true, true) => e_a(j) == e_b(j),
            (in_a, in_b) => in_a == in_b,
        },
        // Equal ordered: does a begin at j, as far as the register reaches?
        _ => (0..length_a.min(f.count - j)).all(|k| j + k < length_b && e_a(k) == e_b(j + k)),
    };
    (0..f.count).fold(0, |r, j| r | u32::from(bit(j)) << j)
}

/// ECX: the lowest or highest index, the number of elements if there is none.
fn index(v: &mut Vcpu, _: &Insn, result: u32, f: Format) {
    let index = match (result, f.wide) {
        (0, _) => f.count,
        (_, false) => result.trailing_zeros(),
        (_, true) => 31 - result.leading_zeros(),
    };
    v.put_reg(W::D, gpr::RCX as u8, u64::from(index));
}

/// XMM0: the bits, or elements of all ones.
fn mask(v: &mut Vcpu, i: &Insn, result: u32, f: Format) {
    let value = if f.wide {
        let ones = |n: u32| if result >> n & 1 != 0 { u64::MAX } else { 0 };
        (0..f.count).fold(0, |r, n| put(r, n, f.bits, ones(n)))
    } else {
        u128::from(result)
    };
    if i.has(prefix::VEX) { v.set_ymm(0, [value, 0]) } else { v.set_xmm(0, value) }
}
