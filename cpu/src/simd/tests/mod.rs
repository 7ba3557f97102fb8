//! A vCPU to run single instructions on, and operands that meet the edges.

mod exceptions;
mod silicon;
mod software;

use super::checks::mxcsr;
use crate::bare::Bare;
use crate::blocks::BlockKey;
use crate::decode;
use crate::model::Model;
use crate::ram::Ram;
use crate::shared::CodeFence;
use crate::state::{attr, cr0, cr4, efer, seg};
use crate::{Vcpu, VcpuConfig};
use iced_x86::{Decoder, DecoderOptions};
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::Arc;

pub const BUFFER: u64 = 0x2000;

/// A vCPU in 64-bit mode without paging.
pub fn vcpu() -> Vcpu {
    let mut v = Vcpu::new(VcpuConfig {
        id: 0,
        model: Arc::new(Model::parse("max").unwrap()),
        ram: Arc::new(Ram::anonymous(1 << 16)),
        bus: Arc::new(Bare::new(1 << 16)),
        fence: CodeFence::new(1),
    });
    let s = &mut v.state;
    s.cr0 = cr0::PE | cr0::ET | cr0::NE;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    s.xcr0 = 7;
    s.msr.efer = efer::LME | efer::LMA;
    s.seg[seg::CS].attributes |= attr::L;
    v.state_loaded();
    v
}

/// Runs one instruction, given as bytes; Err: the vector of the exception.
pub fn step(v: &mut Vcpu, bytes: &[u8]) -> Result<(), u8> {
    let x = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let i = decode::lower(&x, BlockKey::of(&v.state), &v.model.clone().features);
    (i.run)(v, &i).map_err(|_| v.fault.vector)
}

/// Operands that meet the edges: numbers around every limit, NaNs, small integers, text.
pub fn operand(rng: &mut SmallRng) -> u128 {
    const DOUBLES: [u64; 18] = [
        0,
        1,
        0xF_FFFF_FFFF_FFFF,
        0x10_0000_0000_0000,
        0x7FEF_FFFF_FFFF_FFFF,
        0x7FF0_0000_0000_0000,
        0x7FF0_0000_0000_0001,
        0x7FF8_0000_0000_0123,
        0x3FF0_0000_0000_0000,
        0x3FE0_0000_0000_0000,
        0x3FF8_0000_0000_0000,
        0x41DF_FFFF_FFE0_0000,
        0x41E0_0000_0000_0000,
        0x43E0_0000_0000_0000,
        0x36A0_0000_0000_0000,
        0x380F_FFFF_FFFF_FFFF,
        0x3810_0000_0000_0000,
        0x47EF_FFFF_F000_0000,
    ];
    const SINGLES: [u32; 14] = [
        0,
        1,
        0x7F_FFFF,
        0x80_0000,
        0x7F7F_FFFF,
        0x7F80_0000,
        0x7F80_0001,
        0x7FC0_0123,
        0x3F80_0000,
        0x3F00_0000,
        0x3FC0_0000,
        0x4EFF_FFFF,
        0x4F00_0000,
        0x5F00_0000,
    ];
    let sign64 = |rng: &mut SmallRng| u64::from(rng.random::<bool>()) << 63;
    let quad = |rng: &mut SmallRng| match rng.random_range(0..7) {
        0 | 1 => DOUBLES[rng.random_range(0..DOUBLES.len())] ^ sign64(rng),
        2 => {
            // Near one, near the least, or any exponent.
            let exponent = [1021, 1023, 1, 2044, rng.random_range(0..2047), rng.random_range(1000..1100)];
            exponent[rng.random_range(0..6)] << 52 | rng.random::<u64>() >> 12 | sign64(rng)
        }
        3 => (rng.random_range(-70_000i64..70_000) as f64 / 4.0).to_bits(),
        4 => rng.random::<u64>() & rng.random::<u64>() & rng.random::<u64>(),
        _ => rng.random(),
    };
    let double = |rng: &mut SmallRng| match rng.random_range(0..6) {
        0 | 1 => SINGLES[rng.random_range(0..SINGLES.len())] ^ u32::from(rng.random::<bool>()) << 31,
        2 => {
            let exponent = [125, 127, 1, 253, rng.random_range(0..255), rng.random_range(100..160)];
            exponent[rng.random_range(0..6)] << 23
                | rng.random::<u32>() >> 9
                | u32::from(rng.random::<bool>()) << 31
        }
        3 => (rng.random_range(-70_000i32..70_000) as f32 / 4.0).to_bits(),
        _ => rng.random(),
    };
    match rng.random_range(0..6) {
        0 | 1 => u128::from(quad(rng)) << 64 | u128::from(quad(rng)),
        2 | 3 => (0..4).fold(0, |r, _| r << 32 | u128::from(double(rng))),
        4 => {
            (0..16).fold(0, |r, _| r << 8 | u128::from(b"\0\x01aabbcz\x7F\x80\xFF"[rng.random_range(0..11)]))
        }
        _ => rng.random(),
    }
}

pub fn random_mxcsr(rng: &mut SmallRng) -> u32 {
    mxcsr::MASKS
        | match rng.random_range(0..3) {
            0 => 0,
            1 => rng.random::<u32>() & mxcsr::RC,
            _ => rng.random::<u32>() & (mxcsr::RC | mxcsr::DAZ | mxcsr::FTZ | mxcsr::FLAGS),
        }
}
