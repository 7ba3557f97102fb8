//! Checks, exceptions, save areas: what the oracle cannot run natively. And a measurement.

use super::{BUFFER, step, vcpu};
use crate::Vcpu;
use crate::blocks::BlockKey;
use crate::decode;
use crate::fault::vector;
use crate::simd::checks::mxcsr;
use crate::state::{cr0, cr4, gpr};
use iced_x86::{Decoder, DecoderOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const FXSAVE64_RSI: [u8; 4] = [0x48, 0x0F, 0xAE, 0x06];
const FXRSTOR64_RSI: [u8; 4] = [0x48, 0x0F, 0xAE, 0x0E];
const XSAVE64_RSI: [u8; 4] = [0x48, 0x0F, 0xAE, 0x26];
const XSAVEOPT64_RSI: [u8; 4] = [0x48, 0x0F, 0xAE, 0x36];
const XRSTOR64_RSI: [u8; 4] = [0x48, 0x0F, 0xAE, 0x2E];
const ADDPS_XMM0_XMM1: [u8; 3] = [0x0F, 0x58, 0xC1];
const DIVSD_XMM0_XMM1: [u8; 4] = [0xF2, 0x0F, 0x5E, 0xC1];
const MOVAPS_XMM0_RSI: [u8; 3] = [0x0F, 0x28, 0x06];
const PADDB_MM0_MM1: [u8; 3] = [0x0F, 0xFC, 0xC1];
const EMMS: [u8; 2] = [0x0F, 0x77];

/// A vCPU whose vector and x87 state is random, with RSI at the buffer and EDX:EAX all ones.
fn scrambled(rng: &mut SmallRng) -> Vcpu {
    let mut v = vcpu();
    let s = &mut v.state;
    for r in &mut s.zmm[..16] {
        for q in &mut r[..4] {
            *q = rng.random();
        }
    }
    for r in &mut s.x87.registers {
        (r.significand, r.sign_exponent) = (rng.random(), rng.random());
    }
    (s.x87.status, s.x87.control, s.x87.valid) = (rng.random::<u16>() & 0x7F7F, 0x37F, rng.random());
    s.x87.instruction_pointer = rng.random();
    s.mxcsr = rng.random::<u32>() & 0xFFFF;
    (s.gpr[gpr::RSI], s.gpr[gpr::RAX], s.gpr[gpr::RDX]) = (BUFFER, !0, !0);
    v
}

#[test]
fn save_areas_keep_the_state() {
    let mut rng = SmallRng::seed_from_u64(3);
    for (save, restore, wide) in [
        (FXSAVE64_RSI, FXRSTOR64_RSI, false),
        (XSAVE64_RSI, XRSTOR64_RSI, true),
        (XSAVEOPT64_RSI, XRSTOR64_RSI, true),
    ] {
        let mut v = scrambled(&mut rng);
        let before = v.state.clone();
        assert_eq!(step(&mut v, &save), Ok(()));
        let other = scrambled(&mut rng);
        (v.state.zmm, v.state.x87, v.state.mxcsr) = (other.state.zmm, other.state.x87, 0x1F80);
        if !wide {
            for n in 0..16 {
                (v.state.zmm[n][2], v.state.zmm[n][3]) = (before.zmm[n][2], before.zmm[n][3]);
            }
        }
        assert_eq!(step(&mut v, &restore), Ok(()));
        assert!(v.state == before);
    }
}

#[test]
fn xrstor_initializes_and_checks_the_header() {
    let mut v = scrambled(&mut SmallRng::seed_from_u64(4));
    v.state.mxcsr = 0x1F80;
    assert_eq!(step(&mut v, &XSAVE64_RSI), Ok(()));
    let header = |v: &Vcpu, at: u64, value: u64| v.ram.write(BUFFER + 512 + at, &value.to_le_bytes());
    header(&v, 0, 1);
    assert_eq!(step(&mut v, &XRSTOR64_RSI), Ok(()));
    assert!(v.state.zmm.iter().all(|r| *r == [0; 8]));
    header(&v, 0, 0);
    assert_eq!(step(&mut v, &XRSTOR64_RSI), Ok(()));
    assert_eq!((v.state.x87.control, v.state.x87.valid), (0x37F, 0));
    // Nothing is in use now, and XSAVE says so.
    assert_eq!(step(&mut v, &XSAVE64_RSI), Ok(()));
    let mut bits = [0xFF; 8];
    v.ram.read(BUFFER + 512, &mut bits);
    assert_eq!(bits, [0; 8]);
    for (at, value) in [(0, 8), (8, 1), (16, 1)] {
        header(&v, at, value);
        assert_eq!(step(&mut v, &XRSTOR64_RSI), Err(vector::GP));
        header(&v, at, 0);
    }
    v.ram.write(BUFFER + 24, &0x1_0000u32.to_le_bytes());
    assert_eq!(step(&mut v, &XRSTOR64_RSI), Err(vector::GP));
    assert_eq!(step(&mut v, &FXRSTOR64_RSI), Err(vector::GP));
    v.state.gpr[gpr::RSI] += 8;
    assert_eq!(step(&mut v, &FXSAVE64_RSI), Err(vector::GP));
    v.state.cr4 &= !cr4::OSXSAVE;
    assert_eq!(step(&mut v, &XSAVE64_RSI), Err(vector::UD));
}

#[test]
fn checks_come_first() {
    let mut v = vcpu();
    v.state.gpr[gpr::RSI] = BUFFER + 4;
    assert_eq!(step(&mut v, &MOVAPS_XMM0_RSI), Err(vector::GP));
    v.state.cr0 |= cr0::TS;
    assert_eq!(step(&mut v, &MOVAPS_XMM0_RSI), Err(vector::NM));
    assert_eq!(step(&mut v, &PADDB_MM0_MM1), Err(vector::NM));
    v.state.cr4 &= !cr4::OSFXSR;
    assert_eq!(step(&mut v, &MOVAPS_XMM0_RSI), Err(vector::UD));
    v.state.cr0 ^= cr0::TS | cr0::EM;
    assert_eq!(step(&mut v, &PADDB_MM0_MM1), Err(vector::UD));
    v.state.cr0 &= !cr0::EM;
    v.state.x87.status = 0x3880;
    assert_eq!(step(&mut v, &PADDB_MM0_MM1), Err(vector::MF));
    (v.state.x87.status, v.state.x87.valid) = (0x3900, 1);
    assert_eq!(step(&mut v, &PADDB_MM0_MM1), Ok(()));
    assert_eq!((v.state.x87.status, v.state.x87.valid), (0x100, 0xFF));
    assert_eq!(step(&mut v, &EMMS), Ok(()));
    assert_eq!(v.state.x87.valid, 0);
}

#[test]
fn unmasked_exceptions_leave_the_destination() {
    let mut v = vcpu();
    let (one, three) = (1f64.to_bits(), 3f64.to_bits());
    let mut run = |mxcsr: u32, bytes: &[u8], a: u128, b: u128| {
        v.set_xmm(0, a);
        v.set_xmm(1, b);
        v.state.mxcsr = mxcsr;
        let result = step(&mut v, bytes);
        (result, v.state.mxcsr, v.xmm(0) == a)
    };
    let masks = mxcsr::MASKS;
    let unmasked = |flag: u32| masks & !(flag << mxcsr::MASK_SHIFT);
    let m = unmasked(mxcsr::PE);
    assert_eq!(run(m, &DIVSD_XMM0_XMM1, one.into(), three.into()), (Err(vector::XM), m | mxcsr::PE, true));
    let m = unmasked(mxcsr::ZE);
    assert_eq!(run(m, &DIVSD_XMM0_XMM1, one.into(), 0), (Err(vector::XM), m | mxcsr::ZE, true));
    // Lane 0 is invalid, lane 1 inexact: an unmasked invalid operation hides the latter, a masked one does not.
    let (a, b) = (0x4B80_0000_7F80_0000, 0x3F00_0001_FF80_0000);
    let m = unmasked(mxcsr::IE);
    assert_eq!(run(m, &ADDPS_XMM0_XMM1, a, b), (Err(vector::XM), m | mxcsr::IE, true));
    let m = unmasked(mxcsr::PE);
    assert_eq!(run(m, &ADDPS_XMM0_XMM1, a, b), (Err(vector::XM), m | mxcsr::IE | mxcsr::PE, true));
    // An exact tiny result: an underflow only where that is unmasked.
    let (tiny, two) = (2 << 52 | 1 << 51, 8f64.to_bits());
    let m = unmasked(mxcsr::UE);
    assert_eq!(run(m, &DIVSD_XMM0_XMM1, tiny, two.into()), (Err(vector::XM), m | mxcsr::UE, true));
    assert_eq!(run(masks, &DIVSD_XMM0_XMM1, tiny, two.into()), (Ok(()), masks, false));
}

/// The precision flag beside an unmasked overflow or underflow, as an AMD EPYC has it: that of a result whose
/// exponent has no bounds.
#[test]
fn precision_beside_unmasked_exceptions() {
    use mxcsr::{OE, PE, UE};
    const MULSS_XMM0_XMM1: [u8; 4] = [0xF3, 0x0F, 0x59, 0xC1];
    const CVTSD2SS_XMM0_XMM1: [u8; 4] = [0xF2, 0x0F, 0x5A, 0xC1];
    let float = |exponent: u128, fraction: u128| exponent << 23 | fraction;
    let double = |exponent: u128, fraction: u128| (exponent + 896) << 52 | fraction;
    for rounding in 0..4 {
        for (bytes, a, b, expected) in [
            (MULSS_XMM0_XMM1, float(254, 1), float(254, 1), OE | PE),
            (MULSS_XMM0_XMM1, float(254, 0), float(128, 0), OE),
            (MULSS_XMM0_XMM1, float(1, 0), float(126, 0), UE),
            (MULSS_XMM0_XMM1, float(1, 1), float(126, 0), UE),
            (MULSS_XMM0_XMM1, float(1, 1), float(107, 1), UE | PE),
            (CVTSD2SS_XMM0_XMM1, 0, double(255, 0), OE),
            (CVTSD2SS_XMM0_XMM1, 0, double(255, 1), OE | PE),
            (CVTSD2SS_XMM0_XMM1, 0, double(0, 1 << 29), UE),
            (CVTSD2SS_XMM0_XMM1, 0, double(0, 1), UE | PE),
        ] {
            let mut v = vcpu();
            v.set_xmm(0, a);
            v.set_xmm(1, b);
            let mask = !((expected & !PE) << mxcsr::MASK_SHIFT);
            v.state.mxcsr = mxcsr::MASKS & mask | rounding << mxcsr::RC_SHIFT;
            assert_eq!(step(&mut v, &bytes), Err(vector::XM));
            assert_eq!(v.state.mxcsr & mxcsr::FLAGS, expected, "{bytes:x?} {a:x} {b:x} rounding {rounding}");
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let mut v = vcpu();
    v.state.gpr[gpr::RSI] = BUFFER;
    let cases: [(&str, &[u8]); 7] = [
        ("pxor", &[0x66, 0x0F, 0xEF, 0xC1]),
        ("paddb", &[0x66, 0x0F, 0xFC, 0xC1]),
        ("pcmpeqb", &[0x66, 0x0F, 0x74, 0xC1]),
        ("pmovmskb", &[0x66, 0x0F, 0xD7, 0xC1]),
        ("movdqu load", &[0xF3, 0x0F, 0x6F, 0x06]),
        ("addsd", &[0xF2, 0x0F, 0x58, 0xC1]),
        ("pshufb", &[0x66, 0x0F, 0x38, 0x00, 0xC1]),
    ];
    for (name, bytes) in cases {
        let x = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        let i = decode::lower(&x, BlockKey::of(&v.state), &v.model.clone().features);
        let start = std::time::Instant::now();
        for _ in 0..10_000_000 {
            let _ = (std::hint::black_box(&i).run)(&mut v, &i);
        }
        println!("{name}: {:.2} ns", start.elapsed().as_secs_f64() * 100.0);
    }
}

/// Of a dot product's steps, which both lanes take together, none follows an unmasked exception (an AMD EPYC's
/// silicon; found by the oracle).
#[test]
fn lanes_of_a_dot_product_take_each_step_together() {
    const VDPPS_YMM3_YMM0_YMM1_F1: [u8; 6] = [0xC4, 0xE3, 0x7D, 0x40, 0xD9, 0xF1];
    let power = |exponent: i32| u64::from(2f32.powi(exponent).to_bits());
    let raised = |unmasked: u32| {
        let mut v = vcpu();
        // The first lane's product is denormal, which its sum finds; the second lane's overflows.
        (v.state.zmm[0][0], v.state.zmm[1][0]) = (power(-100), power(-40));
        (v.state.zmm[0][2], v.state.zmm[1][2]) = (power(100), power(100));
        v.state.mxcsr = 0x1F80 & !unmasked;
        let _ = step(&mut v, &VDPPS_YMM3_YMM0_YMM1_F1);
        v.state.mxcsr & (mxcsr::DE | mxcsr::OE)
    };
    assert_eq!(raised(0), mxcsr::DE | mxcsr::OE);
    assert_eq!(raised(mxcsr::OE << mxcsr::MASK_SHIFT), mxcsr::OE);
}
