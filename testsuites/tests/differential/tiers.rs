//! From one tier to the next.

use super::bench::*;
use iced_x86::code_asm::*;
use std::time::Duration;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::gpr;
use trimaran_testsuites::differential::kernel::at;

/// Two pieces of the same shape on one page lead to each other by indirect jumps. Each must become hot as itself,
/// although the engine enters only one of them and the other is reached from that.
#[test]
fn a_linked_region_becomes_hot() {
    const TIMES: i32 = 180_000;
    let (first, second) = (at::CODE + 0x100, at::CODE + 0x800);
    let prepare = |m: &trimaran_testsuites::flat::Machine| {
        let end = at::CODE + 0x3000;
        m.ram.write(end, &[0xF4]);
        write(m, first, &|a| {
            a.inc(rcx)?;
            a.cmp(ecx, TIMES)?;
            a.je(end)?;
            a.add(rdx, 1)?;
            a.jmp(r8)
        });
        write(m, second, &|a| {
            a.inc(rbx)?;
            a.cmp(ebx, TIMES)?;
            a.je(end)?;
            a.add(rdi, 5)?;
            a.jmp(r9)
        });
    };
    for (name, factory) in engines() {
        let mut m = machine(&*factory, 1);
        prepare(&m);
        write(&m, at::CODE, &|a| {
            a.mov(r8, second)?;
            a.mov(r9, first)?;
            a.jmp(first)
        });
        while m.engine.run(20_000) == Stop::Budget {
            // The second tier works meanwhile.
            std::thread::sleep(Duration::from_millis(2));
        }
        let n = TIMES as u64 - 1;
        assert_eq!((register(&mut m, gpr::RDX), register(&mut m, gpr::RDI)), (n, n * 5), "{name}");
    }
}

/// A block that is warm is asked for once, however often it runs while the background compiles it.
#[test]
fn the_background_is_asked_once() {
    let options = trimaran_testsuites::engine::options("jit-cranelift").expect("a tier");
    let factory =
        trimaran_jit::Jit { options: trimaran_jit::JitOptions { warm: 2, foreground: false, ..options } };
    let mut m = machine(&factory, 1);
    write(&m, at::CODE, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 400_000)?;
        a.set_label(&mut head)?;
        a.add(rax, rcx)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    while m.engine.run(2_000) == Stop::Budget {
        std::thread::sleep(Duration::from_micros(200));
    }
    let report = m.engine.describe_translator();
    let made = report
        .lines()
        .find_map(|l| l.trim().strip_prefix("cranelift: ")?.split(' ').next()?.parse::<u64>().ok());
    assert!(made.is_some_and(|n| (1..=4).contains(&n)), "{report}");
}

/// Only the instructions asked for run in translated code, whatever stands between them.
#[test]
fn regions_end_before_other_instructions() {
    use iced_x86::Mnemonic::{Add, Dec, Jne, Mov};
    let cases: [(Option<&'static [iced_x86::Mnemonic]>, std::ops::Range<u64>); 4] =
        [(None, 390..410), (Some(&[Add, Dec, Jne]), 290..310), (Some(&[Add]), 90..110), (Some(&[Mov]), 0..1)];
    for (only, hundredths) in cases {
        let options = trimaran_jit::JitOptions { warm: 2, foreground: true, only, ..Default::default() };
        let mut m = machine(&trimaran_jit::Jit { options }, 1);
        write(&m, at::CODE, &|a| {
            let mut head = a.create_label();
            a.xor(ecx, ecx)?;
            a.or(ecx, 10_000)?;
            a.set_label(&mut head)?;
            a.add(rax, rcx)?;
            a.xor(rbx, rax)?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.hlt()
        });
        assert_eq!(m.engine.run(1 << 20), Stop::Halted);
        let each = trimaran_testsuites::differential::translated(&*m.engine) / 100;
        assert!(hundredths.contains(&each), "{only:?}: {each} hundredths of a round are translated");
    }
}
