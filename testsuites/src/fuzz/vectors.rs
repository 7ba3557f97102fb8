//! Any bytes as a file of vectors (MOO): refused, or read, written and read again the same, and its first tests run.

use super::Target;
use crate::moo::{self, COUNT, Exception, File, State, Test};
use crate::vectors::Suite;
use rand::Rng;
use rand::rngs::SmallRng;

pub const TARGET: Target = Target { name: "vectors", run, longest: 3000, dress };

/// Tests of a file that are run.
const RUN: usize = 3;

fn run(data: &[u8]) {
    let Ok(file) = moo::parse(data) else { return };
    // The writer has no chunks that the family lacks.
    let Ok(mut file) = moo::parse(&moo::write(&file)) else { panic!("what was written is not read") };
    assert_eq!(moo::parse(&moo::write(&file)).ok().as_ref(), Some(&file));
    file.tests.truncate(RUN);
    // Another's processor is refused.
    let _ = Suite::default().run("interp", "00", &file);
}

/// A file of random tests, some of its bytes changed.
fn dress(data: &mut Vec<u8>, rng: &mut SmallRng) {
    if rng.random_ratio(1, 8) {
        return;
    }
    let cpu = ["8088", "8086", "C286", "386E", "V30"][rng.random_range(0..5)];
    let tests = (0..rng.random_range(0..5)).map(|n| test(n, rng)).collect();
    *data = moo::write(&File { cpu: cpu.into(), masks: [None; COUNT], tests });
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..data.len());
        data[at] = rng.random();
    }
}

fn test(index: u32, rng: &mut SmallRng) -> Test {
    let mut state = |every: bool| State {
        registers: std::array::from_fn(|_| {
            (every || rng.random_ratio(1, 4)).then(|| rng.random::<u32>() & 0xFFFF)
        }),
        masks: std::array::from_fn(|_| rng.random_ratio(1, 8).then(|| rng.random())),
        ram: (0..rng.random_range(0..12)).map(|_| (rng.random_range(0..0x11_0000), rng.random())).collect(),
    };
    let (mut initial, last) = (state(true), state(false));
    let at = initial.registers[moo::register::CS].unwrap_or(0) * 16
        + initial.registers[moo::register::EIP].unwrap_or(0);
    let bytes: Vec<u8> = (0..rng.random_range(0..9)).map(|_| rng.random()).collect();
    initial.ram.extend(bytes.iter().chain(&[0xF4]).zip(at..).map(|(&byte, at)| (at, byte)));
    let exception =
        rng.random_ratio(1, 4).then(|| Exception { vector: rng.random(), flags_at: rng.random() });
    Test { index, name: "random".into(), bytes, initial, last, exception, hash: "00".repeat(20) }
}
