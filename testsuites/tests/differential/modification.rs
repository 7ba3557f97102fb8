//! Code that is written while it runs.

use super::bench::*;
use iced_x86::code_asm::*;
use std::time::Duration;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::gpr;
use trimaran_testsuites::differential::kernel::at;

/// A store into the running block, one instruction ahead, in a hot loop: each iteration runs what it has just written.
#[test]
fn the_same_block_ahead() {
    let mut m = everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        let mut target = a.create_label();
        a.mov(ecx, 300)?;
        a.set_label(&mut head)?;
        a.lea(rdi, qword_ptr(target))?;
        a.mov(word_ptr(rdi + 2), cx)?;
        a.set_label(&mut target)?;
        // 81 C2, then the immediate.
        a.add(edx, 0x1234_0000)?;
        a.and(edx, 0xFF_FFFF)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    let wanted = (1..=300u32).rev().fold(0u32, |v, n| v.wrapping_add(0x1234_0000 + n) & 0xFF_FFFF);
    assert_eq!(register(&mut m, gpr::RDX), u64::from(wanted));
}

/// A store into another block of the loop, into a function on another page, and through the alias of that page.
#[test]
fn another_block_and_another_page() {
    let function = at::CODE + 0x1100;
    for (place, plus) in [(function, 0), (at::CODE + 0x200, 0), (function, WORLD.alias)] {
        let prepare = |m: &trimaran_testsuites::flat::Machine| {
            write(m, place, &|a| {
                a.mov(eax, 0x11)?;
                a.ret()
            });
        };
        let mut m = everywhere(100_000, &prepare, &|a| {
            let mut head = a.create_label();
            a.mov(ecx, 400)?;
            a.mov(rdi, place + plus + 1)?;
            a.set_label(&mut head)?;
            a.call(place)?;
            a.add(rdx, rax)?;
            a.test(ecx, 7)?;
            let mut over = a.create_label();
            a.jne(over)?;
            a.mov(dword_ptr(rdi), ecx)?;
            a.set_label(&mut over)?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.hlt()
        });
        let (mut value, mut sum) = (0x11, 0);
        for n in (1..=400).rev() {
            sum += value;
            if n & 7 == 0 {
                value = n;
            }
        }
        assert_eq!(register(&mut m, gpr::RDX), sum, "{place:#x} + {plus:#x}");
    }
}

/// Stores beside code, on its page, change nothing and do not stop it being right.
#[test]
fn data_on_a_code_page() {
    let mut m = everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut head)?;
        a.add(dword_ptr(at::CODE + 0x800), ecx)?;
        a.mov(eax, dword_ptr(at::CODE + 0x800))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    assert_eq!(register(&mut m, gpr::RAX), 1000 * 1001 / 2);
}

/// Spins in a loop that calls a function until that returns 2.
fn spinner(m: &trimaran_testsuites::flat::Machine, function: u64) {
    write(m, function, &|a| {
        a.mov(eax, 1)?;
        a.ret()
    });
    write(m, at::CODE, &|a| {
        let mut head = a.create_label();
        a.set_label(&mut head)?;
        a.inc(rcx)?;
        a.mov(qword_ptr(at::DATA), rcx)?;
        a.call(function)?;
        a.cmp(eax, 2)?;
        a.jne(head)?;
        a.hlt()
    });
}

/// Another processor patches the function that a loop calls.
#[test]
fn another_processor_writes_code() {
    for (name, factory) in engines() {
        // The immediate stands at a multiple of 4, so that it changes at once.
        for function in [at::CODE + 0x103, at::CODE + 0x1103] {
            let mut m = machine(&*factory, 2);
            spinner(&m, function);
            let writer = at::CODE + 0x2000;
            write(&m, writer, &|a| {
                let mut wait = a.create_label();
                a.set_label(&mut wait)?;
                a.cmp(qword_ptr(at::DATA), 10_000)?;
                a.jb(wait)?;
                a.mov(dword_ptr(function + 1), 2)?;
                a.hlt()
            });
            enter(&mut *m.others[0], writer, at::STACK - 0x1000);
            let s = until_halted(&mut m, name, |_| {});
            assert_eq!(s.gpr[gpr::RAX], 2, "{name}");
            assert!(s.gpr[gpr::RCX] > 100, "{name}: the loop was not hot");
        }
    }
}

/// A device's DMA patches it.
#[test]
fn dma_writes_code() {
    for (name, factory) in engines() {
        let function = at::CODE + 0x1103;
        let mut m = machine(&*factory, 1);
        spinner(&m, function);
        let s = until_halted(&mut m, name, |shared| {
            std::thread::sleep(Duration::from_millis(30));
            assert!(shared.ram.write(function + 1, &2u32.to_le_bytes()));
        });
        assert_eq!(s.gpr[gpr::RAX], 2, "{name}");
        assert!(s.gpr[gpr::RCX] > 100, "{name}: the loop was not hot");
    }
}

/// The instruction that runs is overwritten by itself: a REP STOSB over its own page goes on to its end.
#[test]
fn a_string_over_the_code_behind() {
    let mut m = everywhere(37, &|_| {}, &|a| {
        let (mut head, mut data) = (a.create_label(), a.create_label());
        a.mov(edx, 20)?;
        a.set_label(&mut head)?;
        a.lea(rdi, qword_ptr(data))?;
        a.mov(ecx, 64)?;
        a.mov(eax, 0x90)?;
        a.rep().stosb()?;
        // It becomes NOPs in the first round.
        a.set_label(&mut data)?;
        for _ in 0..32 {
            a.inc(ebx)?;
        }
        a.add(esi, 1)?;
        a.dec(edx)?;
        a.jne(head)?;
        a.hlt()
    });
    assert_eq!((register(&mut m, gpr::RBX), register(&mut m, gpr::RSI)), (0, 20));
}

/// Data in the middle of a loop, whose code never changes: it is not translated at each of the 2000 stores.
#[test]
fn data_beside_code() {
    const LOOP: u64 = at::CODE + 0x40;
    let factory = trimaran_jit::Jit::default();
    let mut m = machine(&factory, 1);
    write(&m, at::CODE, &|a| {
        a.mov(ecx, 2000)?;
        // Behind the jump over it.
        a.mov(rdi, LOOP + 2)?;
        a.jmp(LOOP)
    });
    write(&m, LOOP, &|a| {
        let mut over = a.create_label();
        a.jmp(over)?;
        a.dd(&[0])?;
        a.set_label(&mut over)?;
        a.inc(dword_ptr(rdi))?;
        a.dec(ecx)?;
        a.jne(LOOP)?;
        a.hlt()
    });
    assert_eq!(m.engine.run(100_000), Stop::Halted);
    assert_eq!(quad(&m, LOOP + 2) as u32, 2000);
    let report = m.engine.describe_translator();
    let regions =
        report.lines().find_map(|l| l.split_once(" regions,")?.0.split(' ').next_back()?.parse().ok());
    assert!(regions.is_some_and(|n: u64| n < 1000), "{report}");
}
