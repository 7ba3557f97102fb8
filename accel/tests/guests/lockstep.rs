//! The same programs on the interpreter and under KVM: equal states wherever they write a port.

use crate::bench::*;
use iced_x86::code_asm::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use trimaran_accel::{Kind, Trial};
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::{CpuState, RFlags};

const REGISTERS: [AsmRegister64; 8] = [rax, rcx, rdx, rbx, rsi, rdi, r8, r13];
const BLOCKS: usize = 12;

/// Whole-register arithmetic with defined flags, memory at RBP, ports.
fn instruction(a: &mut CodeAssembler, rng: &mut SmallRng) -> Result<(), iced_x86::IcedError> {
    let (x, y) = (REGISTERS[rng.random_range(0..8)], REGISTERS[rng.random_range(0..8)]);
    let place = qword_ptr(rbp + rng.random_range(0..32) * 8);
    match rng.random_range(0..16) {
        0 => a.add(x, y),
        1 => a.sbb(x, place),
        2 => a.adc(place, x),
        3 => a.mov(x, rng.random::<u64>()),
        4 => a.mov(place, x),
        5 => a.cmp(x, y),
        6 => a.setb(byte_ptr(rbp + 8)),
        7 => a.lea(x, qword_ptr(y + 0x1234)),
        8 => a.push(x),
        9 => a.pop(x),
        10 => a.xchg(place, x),
        11 => a.bswap(x),
        12 => a.cmovs(x, y),
        13 => a.neg(x),
        14 => a.movzx(x, byte_ptr(rbp + 3)),
        _ => a.rol(x, 1),
    }
}

fn program(seed: u64) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut a = CodeAssembler::new(64).unwrap();
    for _ in 0..BLOCKS {
        for _ in 0..20 {
            instruction(&mut a, &mut rng).unwrap();
        }
        a.out(i32::from(STOP_PORT), al).unwrap();
    }
    a.hlt().unwrap();
    a.assemble(CODE).unwrap()
}

/// The states at all stops.
fn states(bench: &mut Bench, program: &[u8], cpl: u8, software: bool) -> Vec<CpuState> {
    bench.ram.write(CODE, program);
    let mut state = bench.prepared(Mode::Long, cpl);
    (state.gpr[5], state.gpr[4]) = (0x4000, 0x6800);
    bench.set_state(state);
    let mut states = Vec::new();
    for _ in 0..BLOCKS {
        assert_eq!(bench.run(), Stop::Asked);
        let mut state = bench.state();
        // KVM does not count, and some KVMs have a time of their own.
        (state.retired, state.msr.tsc_offset) = (0, 0);
        if software && cpl == 3 {
            // A software KVM's user code has the host's IOPL.
            state.rflags.remove(RFlags::IOPL);
        }
        states.push(state);
    }
    states
}

fn compare(cpl: u8, seeds: u64) {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    let software = kvm.report().kind() == Kind::Software;
    for seed in 0..seeds {
        let program = program(seed);
        let (mut one, mut two) = (Bench::interpreted(&kvm), Bench::new(&kvm, 1));
        let (one_states, two_states) =
            (states(&mut one, &program, cpl, software), states(&mut two, &program, cpl, software));
        for (n, (interpreted, hosted)) in one_states.iter().zip(&two_states).enumerate() {
            assert_eq!(hosted, interpreted, "seed {seed}, CPL {cpl}, stop {n}");
        }
        assert_eq!(one.log(), two.log());
        for at in (0x4000..0x7000).step_by(8) {
            assert_eq!(two.get(at), one.get(at), "seed {seed}, memory at {at:#x}");
        }
    }
}

#[test]
fn at_cpl_0() {
    compare(0, 8);
}

#[test]
fn at_cpl_3() {
    compare(3, 8);
}
