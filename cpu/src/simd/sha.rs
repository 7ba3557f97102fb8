//! SHA-1 and SHA-256 (SDM Vol. 2, "SHA1RNDS4" and kin; FIPS 180-4).

use super::lanes::get;
use super::operands::{Forms, handler, xmm};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::Insn;
use iced_x86::Mnemonic as M;

/// The table of this file.
pub fn handler(m: M) -> Option<Forms> {
    Some(match m {
        M::Sha1rnds4 => xmm!(imm 16, sha1_rounds),
        M::Sha1nexte => xmm!(|a: u128, b: u128| {
            let [w0, w1, w2, w3] = words(b);
            join([w0, w1, w2, w3.wrapping_add(words(a)[3].rotate_left(30))])
        }),
        M::Sha1msg1 => xmm!(|a, b| {
            let ([a0, a1, a2, a3], [_, _, b2, b3]) = (words(a), words(b));
            join([a0 ^ b2, a1 ^ b3, a2 ^ a0, a3 ^ a1])
        }),
        M::Sha1msg2 => xmm!(sha1_message_2),
        M::Sha256msg1 => xmm!(|a, b| {
            let ([a0, a1, a2, a3], b0) = (words(a), words(b)[0]);
            let next = |w: u32, after: u32| {
                w.wrapping_add(after.rotate_right(7) ^ after.rotate_right(18) ^ after >> 3)
            };
            join([next(a0, a1), next(a1, a2), next(a2, a3), next(a3, b0)])
        }),
        M::Sha256msg2 => xmm!(sha256_message_2),
        M::Sha256rnds2 => handler!(sha256_rounds).into(),
        _ => return None,
    })
}

fn words(x: u128) -> [u32; 4] {
    std::array::from_fn(|n| get(x, n as u32, 32) as u32)
}

fn join(w: [u32; 4]) -> u128 {
    w.iter().rev().fold(0, |r, &w| r << 32 | u128::from(w))
}

/// SHA1RNDS4: four rounds; `a` has A to D from the top, `b` the message words with E added to the first.
fn sha1_rounds(abcd: u128, message: u128, imm: u8) -> u128 {
    const K: [u32; 4] = [0x5A82_7999, 0x6ED9_EBA1, 0x8F1B_BCDC, 0xCA62_C1D6];
    let [mut d, mut c, mut b, mut a] = words(abcd);
    let mut e = 0u32;
    for w in words(message).into_iter().rev() {
        let f = match imm & 3 {
            0 => b & c ^ !b & d,
            2 => b & c ^ b & d ^ c & d,
            _ => b ^ c ^ d,
        };
        let t = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(w);
        (e, d, c, b, a) = (d, c, b.rotate_left(30), a, t.wrapping_add(K[usize::from(imm & 3)]));
    }
    join([d, c, b, a])
}

/// SHA1MSG2: the last step of four message words; the fourth needs the first.
fn sha1_message_2(a: u128, b: u128) -> u128 {
    let ([a0, a1, a2, a3], [b0, b1, b2, _]) = (words(a), words(b));
    let w16 = (a3 ^ b2).rotate_left(1);
    let w17 = (a2 ^ b1).rotate_left(1);
    let w18 = (a1 ^ b0).rotate_left(1);
    let w19 = (a0 ^ w16).rotate_left(1);
    join([w19, w18, w17, w16])
}

/// SHA256MSG2: likewise; the third needs the first, the fourth the second.
fn sha256_message_2(a: u128, b: u128) -> u128 {
    let sigma = |w: u32| w.rotate_right(17) ^ w.rotate_right(19) ^ w >> 10;
    let ([a0, a1, a2, a3], [_, _, b2, b3]) = (words(a), words(b));
    let w16 = a0.wrapping_add(sigma(b2));
    let w17 = a1.wrapping_add(sigma(b3));
    join([w16, w17, a2.wrapping_add(sigma(w16)), a3.wrapping_add(sigma(w17))])
}

/// SHA256RNDS2: two rounds; operand 0 has C, D, G, H from the top, operand 1 A, B, E, F; XMM0 the message words with
/// their constants added.
fn sha256_rounds(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let message = words(v.xmm(0));
    super::operands::binary_128::<16>(v, i, |cdgh, abef| {
        let ([mut h, mut g, mut d, mut c], [mut f, mut e, mut b, mut a]) = (words(cdgh), words(abef));
        for &w in &message[..2] {
            let choice = e & f ^ !e & g;
            let sum = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let t = choice.wrapping_add(sum).wrapping_add(w).wrapping_add(h);
            let majority = a & b ^ a & c ^ b & c;
            let sum = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let next = t.wrapping_add(majority).wrapping_add(sum);
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t), c, b, a, next);
        }
        join([f, e, b, a])
    })
}
