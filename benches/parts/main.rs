//! `cargo x bench parts`: what single parts of the processor and the translator cost. Criterion's times are of one
//! unit each: one instruction, one load, one transition.

mod compile;

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::{Duration, Instant};
use trimaran_benches::{EVICTED, FAR, Guest, HASH, HIT, LOCAL, MISS, MODIFY, RET, TABLE};
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_jit::{Jit, JitOptions, Tier};

/// The translator with one back end.
fn translator(tier: Tier, no_links: bool) -> Jit {
    Jit {
        options: JitOptions {
            tier,
            no_links,
            foreground: true,
            code_cache: 1 << 22,
            ..JitOptions::default()
        },
    }
}

/// Measures a guest on an engine, by unit.
fn measure(c: &mut Criterion, group: &str, engine: &str, factory: &dyn EngineFactory, guest: &Guest) {
    let mut machine = guest.start(factory);
    c.benchmark_group(group).bench_function(engine, |b| {
        b.iter_custom(|units| {
            let rounds = units.div_ceil(guest.units);
            let start = Instant::now();
            machine.engine.run(rounds * guest.insns);
            per_unit(start.elapsed(), units, rounds * guest.units)
        });
    });
}

/// The time of `wanted` units, when `done` took so long.
fn per_unit(time: Duration, wanted: u64, done: u64) -> Duration {
    time.mul_f64(wanted as f64 / done as f64)
}

fn everywhere(c: &mut Criterion, guest: &Guest) {
    measure(c, guest.name, "interpreter", &Interpreter, guest);
    if cfg!(target_arch = "x86_64") {
        measure(c, guest.name, "emitter", &translator(Tier::Emit, false), guest);
    }
    measure(c, guest.name, "Cranelift", &translator(Tier::Cranelift, false), guest);
}

fn loops(c: &mut Criterion) {
    for guest in [&HASH, &HIT, &EVICTED, &MISS, &TABLE, &RET, &MODIFY] {
        everywhere(c, guest);
    }
}

fn transitions(c: &mut Criterion) {
    // Cranelift makes one region of it.
    if cfg!(target_arch = "x86_64") {
        measure(c, LOCAL.name, "emitter", &translator(Tier::Emit, false), &LOCAL);
    }
    everywhere(c, &FAR);
    let through = "through the dispatcher";
    if cfg!(target_arch = "x86_64") {
        measure(c, through, "emitter", &translator(Tier::Emit, true), &FAR);
    }
    measure(c, through, "Cranelift", &translator(Tier::Cranelift, true), &FAR);
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
}

criterion_group! { name = parts; config = settings(); targets = compile::compile, loops, transitions }
criterion_main!(parts);
