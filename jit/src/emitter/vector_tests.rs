//! Vector instructions against the interpreter, and their encodings against the decoder.

use super::encode::{Asm, Rm, at};
use super::shapes::{self, Field};
use super::tests::{Bench, CODE, DATA, Machine, random_code, runs, seed};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use rand::Rng;
use rand::rngs::SmallRng;
use trimaran_cpu::model::Features;
use trimaran_cpu::state::gpr;

/// Bytes of a random instruction of SSE and its like.
pub(super) fn instruction(rng: &mut SmallRng, long: bool) -> Vec<u8> {
    const TABLE: [(u8, u8); 9] = [
        (0x10, 0x17),
        (0x28, 0x2F),
        (0x50, 0x5F),
        (0x60, 0x7F),
        (0xC2, 0xC6),
        (0xD0, 0xFE),
        (0x2A, 0x2F),
        (0x10, 0x12),
        (0x58, 0x5F),
    ];
    let avx = std::is_x86_feature_detected!("avx2");
    loop {
        let mut b = Vec::new();
        let vex = avx && rng.random_ratio(1, 2);
        match rng.random_range(0..8) {
            0..=2 => b.push(0x66),
            3 | 4 => b.push(0xF3),
            5 => b.push(0xF2),
            _ => {}
        }
        let checksum = rng.random_ratio(1, 30);
        if checksum {
            b.push(0xF2);
        }
        if long && rng.random_ratio(2, 5) {
            b.push(0x40 | rng.random_range(0..16u8));
        }
        // LDMXCSR and STMXCSR: the helpers that touch the flags gathered.
        let control = !checksum && rng.random_ratio(1, 15);
        if control {
            b.clear();
        }
        if vex {
            b.clear();
            vex_head(rng, long, &mut b);
        } else {
            b.push(0x0F);
        }
        match rng.random_range(0..6) {
            _ if vex => {}
            _ if control => b.push(0xAE),
            _ if checksum => b.extend_from_slice(&[0x38, rng.random_range(0xF0..0xF2)]),
            0 => b.extend_from_slice(&[0x38, rng.random_range(0..0x42)]),
            1 if rng.random_ratio(1, 8) => b.extend_from_slice(&[0x3A, 0xCC]),
            1 => b.extend_from_slice(&[0x3A, rng.random_range(0x08..0x64)]),
            2 if rng.random_ratio(1, 4) => b.extend_from_slice(&[0x38, rng.random_range(0xC8..0xCE)]),
            2 if rng.random_ratio(1, 4) => b.extend_from_slice(&[0x38, rng.random_range(0xDB..0xE0)]),
            _ => {
                let (first, last) = TABLE[rng.random_range(0..TABLE.len())];
                b.push(rng.random_range(first..=last));
            }
        }
        let mut modrm = rng.random::<u8>();
        if rng.random_ratio(1, 2) {
            modrm |= 0xC0;
        }
        if control && !vex {
            modrm = modrm & 0x47 | 0x10 | rng.random_range(0..2) << 3;
        }
        b.push(modrm);
        let mut tail: [u8; 12] = rng.random();
        if rng.random_ratio(3, 4) {
            let at = usize::from(rng.random_ratio(1, 2));
            let v: u32 = match rng.random_range(0..3) {
                0 => rng.random_range(0..0x10) * 32,
                1 => rng.random_range(DATA / 32..(DATA + 0x8000) / 32) as u32 * 32,
                _ => rng.random_range(0..0x40),
            };
            tail[at..at + 4].copy_from_slice(&v.to_le_bytes());
        }
        b.extend_from_slice(&tail);
        b.truncate(15);
        let mut d = Decoder::with_ip(if long { 64 } else { 32 }, &b, CODE, DecoderOptions::NONE);
        let x: Instruction = d.decode();
        let vector = (0..x.op_count())
            .any(|n| x.op_kind(n) == OpKind::Register && x.op_register(n).is_vector_register());
        // Approximations, and what touches memory element by element in another order.
        let odd = matches!(x.mnemonic(), Mnemonic::Vldmxcsr) || x.memory_index().is_vector_register();
        if odd || vex && !Features::all().allows(&x) {
            continue;
        }
        let bits = matches!(
            x.mnemonic(),
            Mnemonic::Adcx
                | Mnemonic::Adox
                | Mnemonic::Andn
                | Mnemonic::Blsi
                | Mnemonic::Blsmsk
                | Mnemonic::Blsr
                | Mnemonic::Bzhi
                | Mnemonic::Lzcnt
                | Mnemonic::Tzcnt
                | Mnemonic::Vzeroupper
                | Mnemonic::Vzeroall
                | Mnemonic::Mulx
                | Mnemonic::Rorx
                | Mnemonic::Sarx
                | Mnemonic::Shlx
                | Mnemonic::Shrx
        );
        let other = bits || control && !vex || matches!(x.mnemonic(), Mnemonic::Movnti | Mnemonic::Crc32);
        if x.is_invalid() || !vector && !other {
            continue;
        }
        b.truncate(x.len());
        return b;
    }
}

/// A VEX prefix and an opcode.
fn vex_head(rng: &mut SmallRng, long: bool, b: &mut Vec<u8>) {
    let map = [1, 1, 1, 2, 2, 3][rng.random_range(0..6)];
    let registers = if long { rng.random::<u8>() & 0xE0 } else { 0xE0 };
    let mut last: u8 = rng.random();
    if rng.random() {
        last |= 0x78;
    }
    if !long {
        last |= 0x40;
    }
    b.extend_from_slice(&[0xC4, registers | map, last]);
    b.push(match map {
        // VZEROUPPER, VZEROALL.
        1 if rng.random_ratio(1, 30) => 0x77,
        1 => [
            rng.random_range(0x10..0x18),
            rng.random_range(0x28..0x30),
            rng.random_range(0x50..0x80),
            rng.random_range(0xC2..0xFF),
        ][rng.random_range(0..4)],
        2 if rng.random_ratio(1, 6) => rng.random_range(0xF2..0xF8),
        2 => rng.random(),
        _ if rng.random_ratio(1, 8) => 0xF0,
        _ => rng.random_range(0..0x64),
    });
}

/// A value that floating-point instructions find interesting.
pub(super) fn value(rng: &mut SmallRng) -> [u64; 2] {
    let double = |rng: &mut SmallRng| match rng.random_range(0..8) {
        0 => rng.random(),
        1 => (rng.random_range(-300..300i32) as f64).to_bits(),
        2 => rng.random::<f64>().to_bits(),
        3 => [0, 1 << 63, f64::INFINITY.to_bits(), f64::NAN.to_bits(), 0x7FF0_0000_0000_0001, 1]
            [rng.random_range(0..6)],
        4 => {
            let one = (rng.random_range(-300..300i32) as f32).to_bits();
            let two = [0, 1 << 31, 0x7F80_0000, 0x7FC0_0000, 0x7F80_0001, 1][rng.random_range(0..6)];
            u64::from(one) << 32 | two
        }
        5 => u64::from((rng.random::<f32>() * 1000.0).to_bits()) << 32 | u64::from(1.5f32.to_bits()),
        6 => rng.random_range(0..0x100),
        _ => rng.random::<u64>() & 0x00FF_0000_FFFF_00FF,
    };
    [double(rng), double(rng)]
}

#[test]
fn random_vectors_in_64_bit_mode() {
    random_code(true, true, seed() + 2000, runs());
}

#[test]
fn random_vectors_in_32_bit_mode() {
    random_code(false, true, seed() + 3000, runs());
}

/// A block that ends because it is full goes on by the jump table.
#[test]
fn a_full_block_of_vectors() {
    let (mut a, mut b) = (Machine::new(true), Machine::new(true));
    let mut bench = Bench::new();
    for m in [&mut a, &mut b] {
        // paddd xmm0, xmm1
        m.ram.write(CODE, &[0x66, 0x0F, 0xFE, 0xC1].repeat(100));
        (m.vcpu.state.zmm[0][0], m.vcpu.state.zmm[1][0]) = (7, 1);
        m.vcpu.state.gpr[gpr::RIP] = CODE;
        m.vcpu.state_loaded();
    }
    assert!(!bench.compare(&mut a, &mut b, 200, true, None));
    assert_eq!((a.vcpu.state.retired, a.vcpu.state.zmm[0][0]), (64, 71));
    assert_eq!(bench.left[0], 1, "by the jump table");
}

/// Every shape is encoded as the instruction it came from.
#[test]
fn shapes_encode_what_they_name() {
    let mut seen = 0;
    for code in Code::values() {
        let Some(s) = shapes::of(code) else { continue };
        // In place of others: `shapes.rs`.
        let name = format!("{code:?}");
        let name = name.strip_prefix("VEX_V").unwrap_or(&name).to_lowercase();
        if name.starts_with("movnt") && !name.starts_with("movntdqa")
            || name.starts_with("crc32")
            || name.starts_with("zero")
        {
            continue;
        }
        seen += 1;
        let field = |f: Field, n: u8| match f {
            Field::Extension(n) => n,
            _ => n,
        };
        let mut forms = Vec::new();
        if s.size != 0 {
            forms.push(Rm::Mem(at(9, 0x40)));
        }
        if s.rm != Field::Memory {
            forms.push(Rm::Reg(11));
        }
        for rm in forms {
            let mut a = Asm::default();
            let vvvv = match s.vvvv {
                Some(_) => 5,
                None => 0,
            };
            a.vector(s, field(s.reg, 13), vvvv, rm);
            if s.immediate {
                a.bytes.push(0x5A);
            }
            let mut d = Decoder::new(64, &a.bytes, 0);
            let x = d.decode();
            assert_eq!((x.code(), x.len()), (code, a.bytes.len()), "{:x?}", a.bytes);
            for n in 0..x.op_count() {
                match x.op_kind(n) {
                    OpKind::Memory => {
                        assert_eq!((x.memory_base(), x.memory_displacement64()), (Register::R9, 0x40));
                        assert_eq!(x.memory_size().size(), usize::from(s.size), "{code:?}");
                    }
                    OpKind::Register => {
                        let places =
                            (0..x.op_count()).filter(|&n| x.op_kind(n) != OpKind::Immediate8).count();
                        let role = if s.vex && places >= 3 && matches!(n, 1 | 2) { 3 - n } else { n };
                        let is = |f: Field| matches!(f, Field::Vector(k) | Field::General(k) if u32::from(k) == role);
                        let want = match () {
                            () if is(s.reg) => 13,
                            () if s.vvvv.is_some_and(is) => 5,
                            () if s.mask && n == 3 => 5,
                            () => 11,
                        };
                        assert_eq!(x.op_register(n).number(), want, "{code:?}");
                    }
                    _ => assert_eq!(x.immediate8(), 0x5A),
                }
            }
        }
    }
    let least = if std::is_x86_feature_detected!("avx2") { 750 } else { 250 };
    assert!(seen > least, "{seen} shapes");
}
