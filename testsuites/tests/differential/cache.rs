//! More code than the buffer for translations holds.

use super::bench::*;
use iced_x86::code_asm::*;
use std::sync::Arc;
use trimaran_cpu::engine::{EngineFactory, Stop};
use trimaran_cpu::state::gpr;
use trimaran_jit::{Jit, JitOptions, Tier};
use trimaran_testsuites::differential::kernel::at;
use trimaran_testsuites::flat::Machine;

/// Functions of many blocks on six pages, all of which fill 64 KiB of host code many times over.
const FUNCTIONS: u64 = 380;

fn program(m: &Machine, rounds: u32) {
    for n in 0..FUNCTIONS {
        write(m, at::CODE + 0x100 + n * 64, &|a| {
            let (mut one, mut two) = (a.create_label(), a.create_label());
            a.add(rdx, n as i32)?;
            a.test(cl, 1 << (n % 4))?;
            a.je(one)?;
            a.add(qword_ptr(rdi), rdx)?;
            a.set_label(&mut one)?;
            a.test(dl, 4)?;
            a.jne(two)?;
            a.xor(rbx, qword_ptr(rdi))?;
            a.set_label(&mut two)?;
            a.lea(rax, qword_ptr(rax + rbx * 2 + 3))?;
            a.ret()
        });
    }
    write(m, at::CODE, &|a| {
        let (mut head, mut next) = (a.create_label(), a.create_label());
        a.mov(ecx, rounds)?;
        a.mov(rdi, at::DATA)?;
        a.set_label(&mut head)?;
        a.mov(esi, (at::CODE + 0x100) as u32)?;
        a.set_label(&mut next)?;
        a.call(rsi)?;
        a.add(esi, 64)?;
        a.cmp(esi, (at::CODE + 0x100 + FUNCTIONS * 64) as u32)?;
        a.jne(next)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
}

fn evictions(tier: Tier, rounds: u32) {
    let mut reference = machine(&*engines()[0].1, 1);
    program(&reference, rounds);
    assert_eq!(reference.engine.run(10_000_000), Stop::Halted);
    let want = reference.engine.state().clone();
    assert_eq!(want.gpr[gpr::RDX], u64::from(rounds) * (0..FUNCTIONS).sum::<u64>());
    for no_links in [false, true] {
        let foreground = tier != Tier::All;
        let options = JitOptions {
            tier,
            warm: 1,
            hot: 3,
            code_cache: 1 << 16,
            no_links,
            foreground,
            ..Default::default()
        };
        let factory: Arc<dyn EngineFactory> = Arc::new(Jit { options });
        let mut m = machine(&*factory, 1);
        program(&m, rounds);
        assert_eq!(m.engine.run(10_000_000), Stop::Halted, "{tier}");
        assert!(*m.engine.state() == want, "{tier}");
        let report = m.engine.describe_translator();
        let evicted = report.split("evicted ").nth(1).and_then(|r| r.split(';').next()?.parse::<u64>().ok());
        assert!(evicted.is_some_and(|n| n > 100), "{tier}: {report}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn emitted_code_is_dropped() {
    evictions(Tier::Emit, 40);
}

#[test]
fn compiled_code_is_dropped() {
    evictions(Tier::Cranelift, 2);
}

#[test]
fn code_of_both_tiers_is_dropped() {
    evictions(Tier::All, 40);
}
