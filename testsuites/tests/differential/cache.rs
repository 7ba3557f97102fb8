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

fn program(m: &Machine) {
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
        a.mov(ecx, 40)?;
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

#[test]
fn translations_are_dropped_for_others() {
    let mut reference = machine(&*engines()[0].1, 1);
    program(&reference);
    assert_eq!(reference.engine.run(10_000_000), Stop::Halted);
    let want = reference.engine.state().clone();
    let sum = 40 * (0..FUNCTIONS).sum::<u64>();
    assert_eq!(want.gpr[gpr::RDX], sum);
    for tier in [Tier::Emit, Tier::Cranelift, Tier::All] {
        for no_links in [false, true] {
            let options = JitOptions {
                tier,
                warm: 1,
                hot: 3,
                code_cache: 1 << 16,
                no_links,
                foreground: tier != Tier::All,
                ..JitOptions::default()
            };
            let factory: Arc<dyn EngineFactory> = Arc::new(Jit { options });
            let mut m = machine(&*factory, 1);
            program(&m);
            assert_eq!(m.engine.run(10_000_000), Stop::Halted, "{tier}");
            assert!(*m.engine.state() == want, "{tier}");
            println!("{}", m.engine.describe_translator());
        }
    }
}
