//! Exceptions, interrupts, devices and budgets in the middle of hot loops.

use super::bench::*;
use iced_x86::code_asm::*;
use std::time::Duration;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::shared::attention;
use trimaran_cpu::state::gpr;
use trimaran_testsuites::differential::compare;
use trimaran_testsuites::differential::kernel::{ABSENT, INTERRUPT, READ_ONLY, at};
use trimaran_testsuites::flat::Machine;

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const IF: u64 = 0x200;

/// The kernel goes on at a HLT when it knows no better; pages that are absent stay so.
fn end_at_fault(m: &Machine) {
    m.ram.write(at::CHECKPOINT, &(at::CODE + 0x800).to_le_bytes());
    m.ram.write(at::CODE + 0x800, &[0xF4]);
    m.ram.write(at::FAULTS, &3u32.to_le_bytes());
}

/// A load, a store and a read-modify-write that fault after 200 iterations: RIP, CR2, error code, RFLAGS (although the
/// next instruction would have replaced them) and registers are those of the instruction.
#[test]
fn faults_in_a_hot_loop() {
    type Access = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let accesses: [(Access, u64, u64); 6] = [
        (|a| a.mov(rax, qword_ptr(rdi)), 0, ABSENT),
        (|a| a.mov(dword_ptr(rdi), eax), 2, ABSENT),
        (|a| a.add(byte_ptr(rdi), al), 2, ABSENT),
        (|a| a.lock().xadd(qword_ptr(rdi), rax), 2, ABSENT),
        (|a| a.movups(xmmword_ptr(rdi), xmm0), 2, ABSENT),
        (|a| a.mov(word_ptr(rdi), ax), 3, READ_ONLY),
    ];
    for (n, (access, error, page)) in accesses.into_iter().enumerate() {
        let prepare = |m: &Machine| {
            end_at_fault(m);
            if page == ABSENT {
                // The page before it may be written here.
                let entry = WORLD.entry(READ_ONLY, false);
                m.ram.write(entry, &(quad(m, entry) | 2).to_le_bytes());
            }
        };
        let m = everywhere(100_000, &prepare, &|a| {
            let mut head = a.create_label();
            a.mov(rdi, page - 200 * 16)?;
            a.set_label(&mut head)?;
            a.add(rcx, 1)?;
            // 5 - 6: CF, PF, AF, SF.
            a.mov(ebx, 5)?;
            a.cmp(ebx, 6)?;
            access(a)?;
            a.add(rdi, 16)?;
            a.jmp(head)
        });
        let log = logged(&m);
        // REX or not: the start of the access is what follows 7 + 4 + 5 + 3 bytes of code.
        let rip = quad_rip(&m);
        let flags = log[0].flags & 0x8D5;
        assert_eq!(log.len(), 1, "access {n}: {log:x?}");
        assert_eq!((log[0].vector, log[0].error, log[0].cr2), (14, error, page), "access {n}");
        assert_eq!((log[0].rcx, log[0].rip), (201, rip), "access {n}");
        assert_eq!(flags, CF | PF | AF | SF, "access {n}");
    }
}

/// Where the access of [`faults_in_a_hot_loop`] starts: behind CMP EBX, 6.
fn quad_rip(m: &Machine) -> u64 {
    let mut bytes = [0; 64];
    m.ram.read(at::CODE, &mut bytes);
    let at = bytes.windows(3).position(|w| w == [0x83, 0xFB, 6]).expect("the comparison");
    at::CODE + at as u64 + 3
}

/// A division that overflows once the loop is hot.
#[test]
fn a_divide_error_in_a_hot_loop() {
    let m = everywhere(100_000, &end_at_fault, &|a| {
        let mut head = a.create_label();
        a.mov(ebx, 300)?;
        a.set_label(&mut head)?;
        a.inc(rcx)?;
        a.mov(eax, 1000)?;
        a.mov(edx, 0)?;
        a.dec(ebx)?;
        a.div(ebx)?;
        a.jmp(head)
    });
    let log = logged(&m);
    assert_eq!((log.len(), log[0].vector, log[0].rcx, log[0].flags & 0x8D5), (1, 0, 300, PF | ZF));
}

/// Addresses that are not canonical, from a hot loop: #GP, or #SS with the stack's registers.
#[test]
fn an_address_that_is_not_canonical() {
    for stack in [false, true] {
        let m = everywhere(100_000, &end_at_fault, &|a| {
            let mut head = a.create_label();
            a.mov(rdi, at::DATA)?;
            a.mov(rbp, rdi)?;
            a.mov(rsi, 0x8000_0000_0000u64)?;
            a.set_label(&mut head)?;
            a.inc(rcx)?;
            if stack {
                a.mov(rax, qword_ptr(rbp))?;
            } else {
                a.mov(rax, qword_ptr(rdi))?;
            }
            a.cmp(rcx, 200)?;
            a.cmove(rdi, rsi)?;
            a.cmove(rbp, rsi)?;
            a.jmp(head)
        });
        let log = logged(&m);
        assert_eq!((log.len(), log[0].vector, log[0].rcx), (1, if stack { 12 } else { 13 }, 201));
    }
}

/// A device's registers read and written by a hot loop: each access reaches it once, in order.
#[test]
fn a_device_in_a_hot_loop() {
    let mut m = everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 300)?;
        a.mov(rdi, at::MMIO)?;
        a.set_label(&mut head)?;
        a.add(rdx, qword_ptr(rdi + rcx * 4))?;
        a.mov(dword_ptr(rdi), ecx)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    let sum: u64 = (1..=300).map(|n| at::MMIO + n * 4).sum();
    assert_eq!(register(&mut m, gpr::RDX), sum);
    let written = m.bus.written.lock().expect("the log").clone();
    assert_eq!(written, (1..=300).rev().map(|n| (0xFFFF, 4, n)).collect::<Vec<_>>());
}

/// A loop that moves from RAM to a device and back without its code changing.
#[test]
fn one_instruction_on_ram_and_device() {
    let mut m = everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 400)?;
        a.mov(rdi, at::DATA)?;
        a.mov(rsi, at::MMIO)?;
        a.set_label(&mut head)?;
        a.add(dword_ptr(rdi), ecx)?;
        a.movzx(eax, word_ptr(rdi + 2))?;
        a.add(rdx, rax)?;
        a.test(cl, 15)?;
        let mut same = a.create_label();
        a.jne(same)?;
        a.xchg(rdi, rsi)?;
        a.set_label(&mut same)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    assert_ne!(register(&mut m, gpr::RDX), 0);
}

/// Code in device memory is fetched from it as often as the interpreter does that.
#[test]
fn code_in_device_memory() {
    // Each byte there is its address: C3 is RET.
    let m = everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 100)?;
        a.set_label(&mut head)?;
        a.call(at::MMIO + 0xC3)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    assert!(m.bus.times.lock().expect("the log").len() >= 100);
}

/// An interrupt gets into a loop that never leaves translated code, when interrupts are on.
#[test]
fn an_interrupt_gets_in() {
    for (name, factory) in engines() {
        let mut m = machine(&*factory, 1);
        write(&m, at::CODE, &|a| {
            let mut head = a.create_label();
            a.sti()?;
            a.set_label(&mut head)?;
            a.inc(rcx)?;
            a.cmp(qword_ptr(at::LOG_AT), at::LOG as i32)?;
            a.je(head)?;
            a.cli()?;
            a.hlt()
        });
        let s = until_halted(&mut m, name, |shared| {
            std::thread::sleep(Duration::from_millis(20));
            shared.bus.raise(INTERRUPT);
        });
        let log = logged(&m);
        assert_eq!((log.len(), log[0].vector), (1, u64::from(INTERRUPT)), "{name}");
        assert!(log[0].rcx.abs_diff(s.gpr[gpr::RCX]) <= 1, "{name}: {:?} and {}", log[0], s.gpr[gpr::RCX]);
        assert!(log[0].flags & IF != 0, "{name}");
    }
}

/// With interrupts off it waits, and comes behind the instruction after STI.
#[test]
fn an_interrupt_waits() {
    for (name, factory) in engines() {
        let mut m = machine(&*factory, 1);
        let mut after = 0;
        write(&m, at::CODE, &|a| {
            let mut head = a.create_label();
            a.mov(ecx, 100_000)?;
            a.set_label(&mut head)?;
            a.add(rdx, rcx)?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.sti()?;
            a.inc(ecx)?;
            a.inc(ecx)?;
            a.cli()?;
            a.hlt()
        });
        let mut bytes = [0; 64];
        m.ram.read(at::CODE, &mut bytes);
        if let Some(n) = bytes.iter().position(|&b| b == 0xFB) {
            after = at::CODE + n as u64 + 3;
        }
        assert_eq!(m.engine.run(5_000), Stop::Budget);
        m.bus.raise(INTERRUPT);
        assert_eq!(m.engine.run(1_000_000), Stop::Halted, "{name}");
        let log = logged(&m);
        assert_eq!((log.len(), log[0].rip, log[0].rcx), (1, after, 1), "{name}");
    }
}

/// A loop that never ends leaves when it is asked to.
#[test]
fn a_loop_stops_when_asked() {
    for (name, factory) in engines() {
        for jump_to_itself in [false, true] {
            let mut m = machine(&*factory, 1);
            write(&m, at::CODE, &|a| {
                let mut head = a.create_label();
                a.set_label(&mut head)?;
                if !jump_to_itself {
                    a.inc(rcx)?;
                }
                a.jmp(head)
            });
            let (fence, engine) = (m.fence.clone(), &mut m.engine);
            let stop = std::thread::scope(|scope| {
                let running = scope.spawn(move || engine.run(u64::MAX));
                std::thread::sleep(Duration::from_millis(20));
                fence.vcpus[0].raise(attention::STOP);
                running.join().expect("the processor's thread")
            });
            assert_eq!(stop, Stop::Asked, "{name}");
        }
    }
}

/// A loop with branches, calls and memory, for budgets.
fn busy(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let (mut head, mut even, mut function) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(ecx, 3000)?;
    a.mov(rdi, at::DATA)?;
    a.jmp(head)?;
    a.set_label(&mut function)?;
    a.add(rdx, qword_ptr(rdi))?;
    a.sbb(rbx, 3)?;
    a.ret()?;
    a.set_label(&mut head)?;
    a.test(cl, 1)?;
    a.je(even)?;
    a.imul_3(eax, ecx, 77)?;
    a.push(rax)?;
    a.shl(eax, cl)?;
    a.pop(qword_ptr(rdi + 8))?;
    a.set_label(&mut even)?;
    a.add(qword_ptr(rdi), rcx)?;
    a.call(function)?;
    a.dec(ecx)?;
    a.jne(head)?;
    a.hlt()
}

/// A budget that ends at every place of a hot loop: the count is exact, and so is everything else.
#[test]
fn a_budget_ends_anywhere() {
    for (name, factory) in engines().into_iter().skip(1) {
        let mut pair = [machine(&*engines()[0].1, 1), machine(&*factory, 1)];
        for m in &pair {
            write(m, at::CODE, &busy);
        }
        for n in (1..60).chain([1000]).chain((1..60).rev()) {
            let before = pair[1].engine.state().retired;
            let stops = pair.each_mut().map(|m| m.engine.run(n));
            assert_eq!(stops, [Stop::Budget; 2], "{name}, budget {n}");
            let [want, got] = &mut pair;
            let differences = compare::states(want.engine.state(), got.engine.state());
            assert!(differences.is_empty(), "{name}, budget {n}: {differences:#?}");
            assert_eq!(got.engine.state().retired - before, n, "{name}");
        }
    }
}

/// Budgets that end between the iterations of repeated string instructions.
#[test]
fn a_budget_ends_inside_a_string_instruction() {
    for slice in [1, 3, 7, 50, 211] {
        let mut m = everywhere(slice, &|_| {}, &|a| {
            let mut head = a.create_label();
            a.mov(ebx, 12)?;
            a.set_label(&mut head)?;
            a.mov(ecx, 100)?;
            a.mov(rsi, at::DATA)?;
            a.mov(rdi, at::DATA + 0x1000 - 30)?;
            a.rep().movsb()?;
            a.mov(ecx, 40)?;
            a.mov(rdi, at::DATA)?;
            a.lea(eax, dword_ptr(rbx + 7))?;
            a.rep().stosd()?;
            a.mov(ecx, 60)?;
            a.mov(rdi, at::DATA)?;
            a.repe().scasb()?;
            a.add(rdx, rcx)?;
            a.dec(ebx)?;
            a.jne(head)?;
            a.hlt()
        });
        assert_eq!(register(&mut m, gpr::RDX), 12 * 58);
    }
}

/// A budget ends to the instruction behind a repeated string instruction too.
#[test]
fn a_string_instruction_spends_its_budget() {
    for (name, factory) in engines() {
        let mut m = machine(&*factory, 1);
        write(&m, at::CODE, &|a| {
            let mut head = a.create_label();
            a.set_label(&mut head)?;
            a.mov(ecx, 20)?;
            a.mov(rdi, at::DATA)?;
            a.rep().stosb()?;
            for _ in 0..10 {
                a.inc(ebx)?;
            }
            a.jmp(head)
        });
        for n in 1..200 {
            let before = m.engine.state().retired;
            assert_eq!(m.engine.run(n), Stop::Budget);
            assert_eq!(m.engine.state().retired - before, n, "{name}");
        }
    }
}

/// The #GP of an indirect jump whose target is not canonical stands at the jump, not at the target.
#[test]
fn a_jump_to_no_address() {
    const LOOP: u64 = at::CODE + 0x20;
    const AFTER: u64 = at::CODE + 0x100;
    const NOWHERE: u64 = 0x2A02_82A9_4987_F0DF;
    let jumps: [Program; 2] = [&|a| a.jmp(rax), &|a| a.jmp(qword_ptr(rdi))];
    for jump in jumps {
        let prepare = |m: &Machine| {
            assert!(m.ram.write(at::DATA, &NOWHERE.to_le_bytes()));
            assert!(m.ram.write(at::CHECKPOINT, &AFTER.to_le_bytes()));
            write(m, LOOP, &|a| {
                a.mov(rdi, at::DATA)?;
                a.mov(rax, qword_ptr(rdi))?;
                jump(a)
            });
            write(m, AFTER, &|a| {
                a.dec(ecx)?;
                a.jne(LOOP)?;
                a.hlt()
            });
        };
        let m = everywhere(7, &prepare, &|a| {
            a.mov(ecx, 12)?;
            a.jmp(LOOP)
        });
        let faults = logged(&m);
        assert_eq!(faults.len(), 12);
        assert!(faults.iter().all(|f| f.vector == 13 && (LOOP..LOOP + 0x20).contains(&f.rip)), "{faults:x?}");
    }
}

/// The #GP of a direct jump out of canonical addresses stands at the jump, where code is as near to their end as that.
#[test]
fn a_direct_jump_out_of_canonical_addresses() {
    const TOP: u64 = (1 << 47) - 0x1000;
    const TABLES: u64 = at::RAM - 0x3000;
    let prepare = |m: &Machine| {
        end_at_fault(m);
        let entry =
            |table: u64, n: u64, to: u64| assert!(m.ram.write(table + n * 8, &(to | 3).to_le_bytes()));
        entry(at::ROOT, 255, TABLES);
        entry(TABLES, 511, TABLES + 0x1000);
        entry(TABLES + 0x1000, 511, TABLES + 0x2000);
        entry(TABLES + 0x2000, 511, at::TWINS);
        // test ecx, ecx; jne +5; jmp +70000000h; ret
        let code = [0x85, 0xC9, 0x75, 0x05, 0xE9, 0, 0, 0, 0x70, 0xC3];
        assert!(m.ram.write(at::TWINS + 0x100, &code));
    };
    let m = everywhere(100_000, &prepare, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 300)?;
        a.mov(rdi, TOP + 0x100)?;
        a.set_label(&mut head)?;
        a.call(rdi)?;
        a.dec(ecx)?;
        a.jmp(head)
    });
    let log = logged(&m);
    assert_eq!((log.len(), log[0].vector, log[0].rip), (1, 13, TOP + 0x104), "{log:x?}");
}
