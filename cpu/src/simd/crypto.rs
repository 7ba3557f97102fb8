//! AES, PCLMULQDQ, CRC32.

use super::lanes::get;
use super::operands::{Forms, handler, xmm};
use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::{Insn, W};
use iced_x86::{Code, Instruction, Mnemonic as M};

/// The table of this file. CRC32 finds the size of its source in `imm2`.
pub fn handler(m: M, x: &Instruction, i: &mut Insn) -> Option<Forms> {
    Some(match m {
        M::Aesenc => xmm!(|a, key| mix_columns(sub_bytes(shift_rows(a, 5), &SBOX), MIX) ^ key),
        M::Aesenclast => xmm!(|a, key| sub_bytes(shift_rows(a, 5), &SBOX) ^ key),
        M::Aesdec => xmm!(|a, key| mix_columns(sub_bytes(shift_rows(a, 13), &INVERSE_SBOX), UNMIX) ^ key),
        M::Aesdeclast => xmm!(|a, key| sub_bytes(shift_rows(a, 13), &INVERSE_SBOX) ^ key),
        M::Aesimc => xmm!(|_, b| mix_columns(b, UNMIX)),
        M::Aeskeygenassist => xmm!(imm 16, key_generation_assist),
        M::Pclmulqdq => xmm!(imm 16, |a, b, imm: u8| {
            carryless_product(get(a, u32::from(imm & 1), 64), get(b, u32::from(imm >> 4 & 1), 64))
        }),
        M::Crc32 => {
            i.imm2 = match x.code() {
                Code::Crc32_r32_rm8 | Code::Crc32_r64_rm8 => 1,
                Code::Crc32_r32_rm16 => 2,
                Code::Crc32_r32_rm32 => 4,
                _ => 8,
            };
            handler!(crc32).into()
        }
        _ => return None,
    })
}

/// Product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn gf_mul(mut a: u8, mut b: u8) -> u8 {
    let mut r = 0;
    while b != 0 {
        if b & 1 != 0 {
            r ^= a;
        }
        a = a << 1 ^ if a & 0x80 != 0 { 0x1B } else { 0 };
        b >>= 1;
    }
    r
}

/// FIPS 197, SubBytes: the inverse (the 254th power), then an affine map.
const SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut inverse, mut k) = (1, 0);
        while k < 254 {
            inverse = gf_mul(inverse, n as u8);
            k += 1;
        }
        let x: u8 = inverse;
        table[n] = x ^ x.rotate_left(1) ^ x.rotate_left(2) ^ x.rotate_left(3) ^ x.rotate_left(4) ^ 0x63;
        n += 1;
    }
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        table[SBOX[n] as usize] = n as u8;
        n += 1;
    }
    table
};

/// First rows of the matrices of MixColumns and InvMixColumns.
const MIX: [u8; 4] = [2, 3, 1, 1];
const UNMIX: [u8; 4] = [14, 11, 13, 9];

/// Products with the numbers of a row, for every byte.
const fn products(row: [u8; 4]) -> [[u8; 256]; 4] {
    let mut table = [[0; 256]; 4];
    let mut k = 0;
    while k < 4 {
        let mut n = 0;
        while n < 256 {
            table[k][n] = gf_mul(n as u8, row[k]);
            n += 1;
        }
        k += 1;
    }
    table
}
static MIX_PRODUCTS: [[u8; 256]; 4] = products(MIX);
static UNMIX_PRODUCTS: [[u8; 256]; 4] = products(UNMIX);

/// ShiftRows with byte step 5, InvShiftRows with byte step 13: byte n comes from n * step.
fn shift_rows(x: u128, step: usize) -> u128 {
    let bytes = x.to_le_bytes();
    u128::from_le_bytes(std::array::from_fn(|n| bytes[n * step % 16]))
}

fn sub_bytes(x: u128, table: &[u8; 256]) -> u128 {
    u128::from_le_bytes(x.to_le_bytes().map(|b| table[usize::from(b)]))
}

fn mix_columns(x: u128, row: [u8; 4]) -> u128 {
    let (bytes, table) = (x.to_le_bytes(), if row[0] == 2 { &MIX_PRODUCTS } else { &UNMIX_PRODUCTS });
    u128::from_le_bytes(std::array::from_fn(|n| {
        let (column, r) = (n & !3, n & 3);
        (0..4).fold(0, |sum, k| sum ^ table[(k + 4 - r) % 4][usize::from(bytes[column + k])])
    }))
}

/// AESKEYGENASSIST: SubWord of doublewords 1 and 3, and rotated with the round constant.
fn key_generation_assist(_: u128, b: u128, imm: u8) -> u128 {
    let s = sub_bytes(b, &SBOX);
    let word = |n| get(s, n, 32) as u32;
    let rotated = |n| word(n).rotate_right(8) ^ u32::from(imm);
    [word(1), rotated(1), word(3), rotated(3)].iter().rev().fold(0, |r, &w| r << 32 | u128::from(w))
}

/// PCLMULQDQ: the product without carries.
fn carryless_product(a: u64, b: u64) -> u128 {
    (0..64).filter(|n| b >> n & 1 != 0).fold(0, |r, n| r ^ u128::from(a) << n)
}

/// CRC-32C of each byte, bits reflected.
static CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let (mut r, mut k) = (n as u32, 0);
        while k < 8 {
            r = r >> 1 ^ if r & 1 != 0 { 0x82F6_3B78 } else { 0 };
            k += 1;
        }
        table[n] = r;
        n += 1;
    }
    table
};

/// CRC32: accumulates the source's bytes into the destination (CRC-32C).
fn crc32(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let w = W::from_bytes(i.imm2);
    let source = if i.memory() {
        let address = v.operand_address(i, u32::from(i.imm2), false)?;
        v.load_sized(i.seg, address, i.imm2)?
    } else {
        v.get_reg(w, i.r1)
    };
    let start = v.get_reg(W::D, i.r0) as u32;
    let r = source.to_le_bytes()[..usize::from(w.bytes())]
        .iter()
        .fold(start, |r, &byte| r >> 8 ^ CRC[usize::from(r as u8 ^ byte)]);
    v.put_reg(W::D, i.r0, u64::from(r));
    Ok(())
}
