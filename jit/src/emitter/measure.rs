//! Measurements, run by hand: `cargo test -p trimaran-jit --release measure -- --ignored --nocapture`.

use super::tests::{Bench, CODE, DATA, Machine, program, show};
use super::{compile, miss};
use crate::abi::Job;
use crate::region::{Limits, Region};
use crate::slots::Slot;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use trimaran_cpu::state::gpr;

/// How long translation takes, and how much comes of it: over plain code, and over random code.
#[test]
#[ignore = "a measurement"]
fn translation_time() {
    // A hash loop, a function's head and tail, accesses to a structure.
    let plain: &[u8] = &[
        0x55, 0x48, 0x89, 0xE5, 0x41, 0x54, 0x53, 0x48, 0x83, 0xEC, 0x20, 0x48, 0x8B, 0x47, 0x08, 0x48, 0x8B,
        0x57, 0x10, 0x48, 0x89, 0x45, 0xE0, 0x48, 0x01, 0xD0, 0x48, 0x39, 0xC8, 0x72, 0x20, 0x0F, 0xB6, 0x06,
        0x48, 0x8D, 0x4C, 0x88, 0x04, 0x31, 0xC2, 0x69, 0xD2, 0x93, 0x01, 0x00, 0x01, 0x48, 0xFF, 0xC6, 0x48,
        0x85, 0xD2, 0x74, 0x10, 0xC7, 0x47, 0x18, 0x05, 0x00, 0x00, 0x00, 0x48, 0x83, 0xC4, 0x20, 0x5B, 0x41,
        0x5C, 0x5D, 0xC3,
    ];
    let mut rng = SmallRng::seed_from_u64(5);
    let random: Vec<Vec<u8>> = (0..200).map(|_| program(&mut rng, true, false)).collect();
    let bench = Bench::new();
    let vectors: Vec<Vec<u8>> = (0..200).map(|_| program(&mut rng, true, true)).collect();
    for (name, programs) in [("plain", vec![plain.to_vec()]), ("random", random), ("vectors", vectors)] {
        let mut m = Machine::new(true);
        let mut regions = Vec::new();
        for (n, code) in programs.iter().enumerate() {
            let rip = CODE + n as u64 % 32 * 0x100;
            m.ram.write(rip, code);
            m.vcpu.state.gpr[gpr::RIP] = rip;
            m.vcpu.mode_may_have_changed();
            let first = m.vcpu.block_at(rip).unwrap();
            let limits = Limits { decode: true, ..Limits::TREE };
            regions.extend(Region::form(&mut m.vcpu, first, rip, limits));
        }
        let insns: usize = regions.iter().map(Region::insns).sum();
        let (mut best, mut bytes) = (f64::MAX, 0);
        for _ in 0..2000 / regions.len().min(100) {
            let start = std::time::Instant::now();
            bytes = 0;
            for region in &regions {
                let job = Job { counter: Some(0x2000_0000), ..Job::new(region, 0x1000_0000, &bench.runtime) };
                bytes += compile(&job).unwrap().bytes.len();
            }
            best = best.min(start.elapsed().as_nanos() as f64 / insns as f64);
        }
        let each = bytes as f64 / insns as f64;
        eprintln!("{name}: {insns} instructions, {best:.0} ns and {each:.1} bytes each");
        if let (true, Ok(_)) = (name == "plain", std::env::var("TRIMARAN_EMITTER_SHOW")) {
            let job = Job::new(&regions[0], 0x1000_0000, &bench.runtime);
            show(&compile(&job).unwrap().bytes, 64, 0);
        }
    }
}

/// How fast a loop of ten million rounds runs, against the interpreter. RCX counts down, RSI and RDI point to data.
fn loop_time(name: &str, insns: u32, code: &[u8]) {
    const ROUNDS: u64 = 10_000_000;
    let mut bench = Bench::new();
    let (mut a, mut b) = (Machine::new(true), Machine::new(true));
    for m in [&mut a, &mut b] {
        m.ram.write(CODE, code);
        let s = &mut m.vcpu.state;
        s.gpr[gpr::RDX] = 0;
        (s.gpr[gpr::RIP], s.gpr[gpr::RDI], s.gpr[gpr::RSI]) = (CODE, DATA + 0x2000, DATA);
        s.gpr[gpr::RCX] = ROUNDS;
        m.vcpu.state_loaded();
        m.vcpu.mode_may_have_changed();
        m.vcpu.prepare_translated();
    }
    let v = &mut a.vcpu;
    let first = v.block_at(CODE).unwrap();
    let region = Region::form(v, first, CODE, Limits { blocks: 1, decode: true, ..Limits::TREE }).unwrap();
    v.shared.clear(!0);
    v.stop_block = false;
    let slot = Slot::new(bench.runtime.unlinked as u64, 0, 0, false);
    let job = Job::new(&region, &raw const slot as usize, &bench.runtime);
    let made = compile(&job).unwrap();
    if std::env::var("TRIMARAN_EMITTER_SHOW").is_ok() {
        show(&made.bytes, 64, 0);
    }
    let at = bench.buffer.put(&made.bytes);
    let executed = ROUNDS * u64::from(insns);
    let start = std::time::Instant::now();
    miss::enter(&bench.runtime, v, executed as i64, bench.buffer.address(at));
    let emitted = start.elapsed();
    let start = std::time::Instant::now();
    b.vcpu.run(executed);
    let interpreted = start.elapsed();
    assert_eq!(a.vcpu.state.gpr, b.vcpu.state.gpr);
    assert_eq!(a.vcpu.state.zmm, b.vcpu.state.zmm);
    let each = |d: std::time::Duration| d.as_secs_f64() * 1e9 / executed as f64;
    eprintln!("{name}: {:.2} ns an instruction, interpreter {:.2}", each(emitted), each(interpreted));
}

#[test]
#[ignore = "a measurement"]
fn run_time() {
    // movzx eax, [rsi]; xor edx, eax; imul edx, edx, 16777619; mov [rdi + 8], edx; add [rdi + 16], eax; inc rsi;
    // and rsi, -0x1001; dec ecx; jnz
    let hash: &[u8] = &[
        0x0F, 0xB6, 0x06, 0x31, 0xC2, 0x69, 0xD2, 0x93, 0x01, 0x00, 0x01, 0x89, 0x57, 0x08, 0x01, 0x47, 0x10,
        0x48, 0xFF, 0xC6, 0x48, 0x81, 0xE6, 0xFF, 0xEF, 0xFF, 0xFF, 0xFF, 0xC9, 0x75, 0xE1, 0xF4,
    ];
    // movsd xmm0, [rsi + rdx*8]; mulsd xmm0, [rdi + rdx*8]; addsd xmm1, xmm0; inc edx; and edx, 255; dec ecx; jnz
    let dot: &[u8] = &[
        0xF2, 0x0F, 0x10, 0x04, 0xD6, 0xF2, 0x0F, 0x59, 0x04, 0xD7, 0xF2, 0x0F, 0x58, 0xC8, 0xFF, 0xC2, 0x81,
        0xE2, 0xFF, 0x00, 0x00, 0x00, 0xFF, 0xC9, 0x75, 0xE6, 0xF4,
    ];
    // movaps xmm0, [rsi]; movaps xmm1, [rsi + 16]; paddd xmm2, xmm0; pxor xmm3, xmm1; movaps [rdi], xmm2;
    // movaps [rdi + 16], xmm3; dec ecx; jnz
    let integer: &[u8] = &[
        0x0F, 0x28, 0x06, 0x0F, 0x28, 0x4E, 0x10, 0x66, 0x0F, 0xFE, 0xD0, 0x66, 0x0F, 0xEF, 0xD9, 0x0F, 0x29,
        0x17, 0x0F, 0x29, 0x5F, 0x10, 0xFF, 0xC9, 0x75, 0xE6, 0xF4,
    ];
    // cvtsi2sd xmm0, ecx; ucomisd xmm0, xmm1; seta al; cvttsd2si edx, xmm0; dec ecx; jnz
    let mixed: &[u8] = &[
        0xF2, 0x0F, 0x2A, 0xC1, 0x66, 0x0F, 0x2E, 0xC1, 0x0F, 0x97, 0xC0, 0xF2, 0x0F, 0x2C, 0xD0, 0xFF, 0xC9,
        0x75, 0xED, 0xF4,
    ];
    for (name, insns, code) in
        [("hash", 9, hash), ("dot product", 7, dot), ("vectors", 8, integer), ("comparison", 6, mixed)]
    {
        loop_time(name, insns, code);
    }
}
