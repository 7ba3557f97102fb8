//! Linear addresses that change their meaning under running code.

use super::bench::*;
use iced_x86::code_asm::*;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::gpr;
use trimaran_testsuites::differential::kernel::{ABSENT, READ_ONLY, at};
use trimaran_testsuites::flat::Machine;

/// Two functions at the same offset of the twin pages.
fn twins(m: &Machine) {
    for (page, value) in [(at::TWINS, 1), (at::TWINS + 0x1000, 100)] {
        write(m, page + 0x40, &|a| {
            a.add(rdx, value)?;
            a.ret()
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flush {
    Invlpg,
    Cr3,
}

/// The page that a hot loop calls is another in each iteration.
#[test]
fn the_page_of_a_function() {
    for flush in [Flush::Invlpg, Flush::Cr3] {
        for indirect in [false, true] {
            let slot = WORLD.alias + at::TWINS;
            let mut m = everywhere(100_000, &twins, &|a| {
                let mut head = a.create_label();
                a.mov(ecx, 500)?;
                a.mov(rdi, slot + 0x40)?;
                // A direct call must come from the alias too.
                a.lea(rax, qword_ptr(head))?;
                a.mov(rbx, WORLD.alias)?;
                a.add(rax, rbx)?;
                a.jmp(rax)?;
                a.set_label(&mut head)?;
                if indirect {
                    a.call(rdi)?;
                } else {
                    a.call(at::TWINS + 0x40)?;
                }
                a.xor(dword_ptr(WORLD.entry(at::TWINS, true)), 0x1000)?;
                match flush {
                    Flush::Invlpg => a.invlpg(byte_ptr(rdi))?,
                    Flush::Cr3 => {
                        a.mov(rax, cr3)?;
                        a.mov(cr3, rax)?;
                    }
                }
                a.dec(ecx)?;
                a.jne(head)?;
                a.hlt()
            });
            assert_eq!(register(&mut m, gpr::RDX), 250 * 101, "{flush:?} indirect {indirect}");
        }
    }
}

/// The page that the loop itself runs on is replaced by one that differs behind the INVLPG.
#[test]
fn the_page_that_runs() {
    let slot = WORLD.alias + at::TWINS;
    let prepare = |m: &Machine| {
        for (page, value) in [(at::TWINS, 1), (at::TWINS + 0x1000, 1000)] {
            write(m, page, &|a| {
                let mut head = a.create_label();
                a.set_label(&mut head)?;
                a.xor(dword_ptr(WORLD.entry(at::TWINS, true)), 0x1000)?;
                a.invlpg(byte_ptr(rdi))?;
                a.add(rdx, value)?;
                a.dec(ecx)?;
                a.jne(head)?;
                a.hlt()
            });
        }
    };
    let mut m = everywhere(100_000, &prepare, &|a| {
        a.mov(ecx, 400)?;
        a.mov(rdi, slot)?;
        a.jmp(rdi)
    });
    assert_eq!(register(&mut m, gpr::RDX), 200 * 1001);
}

/// The same physical page runs at two linear addresses: RIP is each time the one it was reached by.
#[test]
fn one_page_at_two_addresses() {
    let function = at::CODE + 0x1080;
    let prepare = |m: &Machine| {
        write(m, function, &|a| {
            let (mut here, mut skip) = (a.create_label(), a.create_label());
            a.set_label(&mut here)?;
            a.lea(rax, qword_ptr(here))?;
            a.add(rdx, rax)?;
            a.test(cl, 1)?;
            a.jne(skip)?;
            a.inc(rsi)?;
            a.set_label(&mut skip)?;
            a.ret()
        });
    };
    let mut m = everywhere(100_000, &prepare, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 300)?;
        a.mov(rdi, function + WORLD.alias)?;
        a.set_label(&mut head)?;
        a.call(function)?;
        a.call(rdi)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    let here = function;
    let wanted = (here * 300).wrapping_add((here + WORLD.alias).wrapping_mul(300));
    assert_eq!((register(&mut m, gpr::RDX), register(&mut m, gpr::RSI)), (wanted, 300));
}

/// A page whose neighbour is another one at each of its addresses: the same jump leads to different code.
#[test]
fn a_jump_off_a_page_with_two_neighbours() {
    // The alias of the page after shows the second twin.
    let (page, after) = (at::TWINS - 0x1000, at::TWINS);
    let prepare = |m: &Machine| {
        twins(m);
        write(m, page + 0x10, &|a| a.jmp(after + 0x40));
        let other = quad(m, WORLD.entry(after, true)) ^ 0x1000;
        m.ram.write(WORLD.entry(after, true), &other.to_le_bytes());
    };
    let mut m = everywhere(100_000, &prepare, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 300)?;
        a.mov(rdi, page + 0x10 + WORLD.alias)?;
        a.set_label(&mut head)?;
        a.call(page + 0x10)?;
        a.call(rdi)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    assert_eq!(register(&mut m, gpr::RDX), 300 * 101);
}

/// An instruction whose bytes lie on two pages, the second of which is written, and remapped.
#[test]
fn an_instruction_on_two_pages() {
    // MOV EAX, imm32 whose immediate begins on the next page.
    let start = at::TWINS - 1;
    let prepare = |m: &Machine| {
        for (page, value) in [(at::TWINS, 1u32), (at::TWINS + 0x1000, 100)] {
            let mut bytes = value.to_le_bytes().to_vec();
            bytes.push(0xC3);
            m.ram.write(page, &bytes);
        }
        m.ram.write(start, &[0xB8]);
    };
    let mut m = everywhere(100_000, &prepare, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 300)?;
        a.mov(rdi, start + WORLD.alias)?;
        a.set_label(&mut head)?;
        a.call(start)?;
        a.add(rdx, rax)?;
        a.call(rdi)?;
        a.add(rbx, rax)?;
        a.mov(byte_ptr(at::TWINS), cl)?;
        a.xor(dword_ptr(WORLD.entry(at::TWINS, true)), 0x1000)?;
        a.invlpg(byte_ptr(rdi + 1))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    let before = |n: u64| if n == 300 { 1 } else { (n + 1) & 0xFF };
    let low: u64 = (1..=300).rev().map(before).sum();
    let high: u64 = (1..=300u64).rev().map(|n| if n % 2 == 0 { before(n) } else { 100 }).sum();
    assert_eq!((register(&mut m, gpr::RDX), register(&mut m, gpr::RBX)), (low, high));
}

/// Loads and stores over a page boundary in a hot loop, with pages that are no neighbours in RAM.
#[test]
fn an_access_on_two_pages() {
    let prepare = |m: &Machine| {
        // The alias of the second data page shows the fourth.
        let other = quad(m, WORLD.entry(at::DATA + 0x3000, true));
        m.ram.write(WORLD.entry(at::DATA + 0x1000, true), &other.to_le_bytes());
    };
    let mut m = everywhere(100_000, &prepare, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 300)?;
        a.mov(rdi, WORLD.alias + at::DATA + 0x1000 - 3)?;
        a.set_label(&mut head)?;
        a.add(qword_ptr(rdi), rcx)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.add(rdx, rax)?;
        a.movdqu(xmm0, xmmword_ptr(rdi))?;
        a.paddq(xmm1, xmm0)?;
        a.movdqu(xmmword_ptr(rdi + 2), xmm1)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    assert_ne!(quad(&m, at::DATA + 0x3000), 0);
    assert_eq!(quad(&m, at::DATA + 0x1000), 0);
    assert_ne!(register(&mut m, gpr::RDX), 0);
}

/// A store over the boundary to a page that is not there leaves nothing behind, and CR2 is the second page.
#[test]
fn a_store_that_faults_on_its_second_page() {
    let m = everywhere(100_000, &|m| skip_to(m, at::CODE + 0x100), &|a| {
        let mut head = a.create_label();
        a.mov(rdi, ABSENT - 0x104)?;
        a.mov(rax, -1i64 as u64)?;
        a.set_label(&mut head)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.add(rdi, 8)?;
        a.inc(rcx)?;
        a.jmp(head)
    });
    let log = logged(&m);
    assert_eq!((log.len(), log[0].vector, log[0].error, log[0].cr2, log[0].rcx), (1, 14, 2, ABSENT, 32));
    assert_eq!(quad(&m, ABSENT - 8), 0xFFFF_FFFF);
}

/// What the kernel cannot step over goes on at a HLT.
fn skip_to(m: &Machine, place: u64) {
    m.ram.write(at::CHECKPOINT, &place.to_le_bytes());
    m.ram.write(place, &[0xF4]);
    // Every fourth fault is stepped over instead of repaired: the next is one.
    m.ram.write(at::FAULTS, &3u32.to_le_bytes());
    let entry = WORLD.entry(READ_ONLY, false);
    m.ram.write(entry, &(quad(m, entry) | 2).to_le_bytes());
}

/// What lies behind a branch that is not taken may reach into a device: translating the branch must not fetch it.
#[test]
fn a_look_ahead_leaves_devices_alone() {
    const LOOP: u64 = at::DATA + 0x1FFB;
    for (name, factory) in engines() {
        let mut m = machine(&*factory, 1);
        assert!(m.ram.write(WORLD.entry(at::DATA + 0x2000, false), &(at::MMIO | 3).to_le_bytes()));
        // dec ecx; jne to the start; half an instruction
        assert!(m.ram.write(LOOP, &[0xFF, 0xC9, 0x75, 0xFC, 0x00]));
        enter(&mut *m.engine, LOOP, at::STACK);
        assert_eq!(m.engine.run(10_000), Stop::Budget, "{name}");
        let accesses = m.bus.times.lock().map_or(0, |times| times.len());
        assert_eq!(accesses, 0, "{name}: accesses to the device");
    }
}
