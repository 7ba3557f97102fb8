//! Fetching and changing code (SDM Vol. 3, "Self-Modifying Code"), LOCK, lengths, restartable strings.

use crate::system::*;
use iced_x86::code_asm::*;
use std::sync::atomic::Ordering::SeqCst;
use trimaran_cpu::shared::attention;
use trimaran_cpu::state::gpr;

pub const CASES: super::List = &[
    ("self_modifying_next_instruction", self_modifying_next_instruction),
    ("self_modifying_loop", self_modifying_loop),
    ("code_written_after_it_ran", code_written_after_it_ran),
    ("code_written_through_an_alias", code_written_through_an_alias),
    ("fetch_across_pages", fetch_across_pages),
    ("length_limit", length_limit),
    ("no_instruction_of_15_bytes", no_instruction_of_15_bytes),
    ("fetch_from_a_device_into_an_absent_page", fetch_from_a_device_into_an_absent_page),
    ("illegal_lock", illegal_lock),
    ("restartable_strings", restartable_strings),
    ("eip_wraps", eip_wraps),
    ("a20", a20),
];

/// An instruction that changes the very next one, in the same block.
fn self_modifying_next_instruction() {
    let mut b = Bench::protected();
    // MOV BYTE [target], 48h (DEC EAX); then INC EAX at target.
    let at = b.code(|a| a.mov(byte_ptr(CODE + 7), 0x48));
    assert_eq!(at, CODE + 7);
    b.assemble(32, at, |a| {
        a.inc(eax)?;
        a.hlt()
    });
    b.flat.vcpu.state.gpr[0] = 10;
    b.run().halted();
    assert_eq!(b.flat.vcpu.state.gpr[0], 9);
}

/// A loop that changes its own immediate in each round.
fn self_modifying_loop() {
    let mut b = Bench::protected();
    b.code(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 5)?;
        a.set_label(&mut again)?;
        // ADD EAX, imm32 with its immediate at CODE + 6.
        a.db(&[0x05, 1, 0, 0, 0])?;
        a.inc(dword_ptr(CODE + 6))?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()
    });
    b.run().halted();
    assert_eq!(b.flat.vcpu.state.gpr[0], 1 + 2 + 3 + 4 + 5);
}

/// Code that ran is changed by a store, by a string store, and by a device; on the same page and across two.
fn code_written_after_it_ran() {
    for across in [false, true] {
        for how in 0..3 {
            let mut b = Bench::protected();
            // MOV EAX, imm32; RET, whose immediate may lie across a page.
            let function = if across { 0x9FFD } else { 0x9100 };
            b.flat.ram.write(function, &[0xB8, 1, 0, 0, 0, 0xC3]);
            let immediate = function + 3;
            b.code(|a| {
                a.call(function)?;
                a.mov(ebx, eax)?;
                match how {
                    0 => a.mov(byte_ptr(immediate), 7)?,
                    1 => {
                        a.mov(edi, immediate as u32)?;
                        a.mov(al, 7)?;
                        a.mov(ecx, 1)?;
                        a.rep().stosb()?;
                    }
                    _ => a.hlt()?,
                }
                a.call(function)?;
                a.hlt()
            });
            b.run().halted();
            if how == 2 {
                b.flat.ram.write(immediate, &[7]);
                b.flat.vcpu.state.activity = trimaran_cpu::state::Activity::Running;
                b.resume().halted();
            }
            let g = b.flat.vcpu.state.gpr;
            assert_eq!((g[3], g[0]), (1, 0x7_0001), "across {across} how {how}");
        }
    }
}

/// The same code at a second linear address sees the change too.
fn code_written_through_an_alias() {
    let mut b = Bench::long();
    b.flat.ram.write(PAGE, &[0xB8, 1, 0, 0, 0, 0xC3]);
    let leaf = b.leaf(PAGE + 0x1000);
    b.put(leaf, PAGE | 3);
    b.code(|a| {
        a.call(PAGE)?;
        a.mov(ebx, eax)?;
        a.mov(byte_ptr(PAGE + 0x1001), 2)?;
        a.call(PAGE)?;
        a.hlt()
    });
    b.run().halted();
    assert_eq!((b.flat.vcpu.state.gpr[3], b.flat.vcpu.state.gpr[0]), (1, 2));
}

/// An instruction whose second page is absent: CR2 is that page, RIP the instruction.
fn fetch_across_pages() {
    let mut b = Bench::long();
    b.map(PAGE + 0x1000, 0);
    b.flat.ram.write(PAGE + 0xFFD, &[0xB8, 1, 2, 3, 4]);
    b.code(|a| a.jmp(PAGE + 0xFFD));
    let r = b.run().raised();
    assert_eq!((r.vector, r.error, r.ip), (14, 0, PAGE + 0xFFD));
    assert_eq!(b.flat.vcpu.state.cr2, PAGE + 0x1000);
    // One that ends with its page does not look further.
    let mut b = Bench::long();
    b.map(PAGE + 0x1000, 0);
    b.flat.ram.write(PAGE + 0xFFF, &[0xF4]);
    b.code(|a| a.jmp(PAGE + 0xFFF));
    b.run().halted();
}

/// 15 bytes run, 16 are #GP(0).
fn length_limit() {
    for (prefixes, expected) in [(14, None), (15, Some((13, 0)))] {
        let mut b = Bench::protected();
        let mut bytes = vec![0x2E; prefixes];
        bytes.extend([0x90, 0xF4]);
        b.flat.ram.write(CODE, &bytes);
        match expected {
            None => b.run().halted(),
            Some(fault) => assert_eq!(b.run().fault(), fault),
        }
    }
}

/// Bytes that are no instruction and end with the 15th are #UD, as silicon has it; one more is #GP(0).
fn no_instruction_of_15_bytes() {
    for (prefixes, bytes, expected) in [
        (13, &[0x0F, 0x04, 0x90][..], (6, 0)),
        (14, &[0x0F, 0x04, 0x90], (13, 0)),
        (14, &[0x06, 0x90, 0x90], (6, 0)),
        (15, &[0x06, 0x90, 0x90], (13, 0)),
        (13, &[0xFF, 0xFF, 0x90], (6, 0)),
        (14, &[0xFF, 0xFF, 0x90], (13, 0)),
        (14, &[0xFF, 0xC0, 0x90], (13, 0)),
    ] {
        for prefix in [0x2E, 0x66] {
            let mut b = Bench::long();
            let mut code = vec![prefix; prefixes];
            code.extend(bytes);
            b.flat.ram.write(CODE, &code);
            assert_eq!(b.run().fault(), expected, "{prefixes} times {prefix:x}, {bytes:x?}");
        }
    }
}

/// Code in device memory, which reads FFh here, that runs into an absent page.
fn fetch_from_a_device_into_an_absent_page() {
    let mut b = Bench::long();
    b.map(PAGE + 0x1000, 0);
    let leaf = b.leaf(PAGE);
    b.put(leaf, 0x8000_0000 | 3);
    b.code(|a| a.jmp(PAGE + 0xFFF));
    let r = b.run().raised();
    assert_eq!((r.vector, r.error, r.ip), (14, 0, PAGE + 0xFFF));
    assert_eq!(b.flat.vcpu.state.cr2, PAGE + 0x1000);
}

/// LOCK where the manual does not allow it: #UD.
fn illegal_lock() {
    for bytes in [
        &[0xF0, 0x89, 0x00][..],
        &[0xF0, 0x01, 0xC0],
        &[0xF0, 0x03, 0x00],
        &[0xF0, 0x39, 0x00],
        &[0xF0, 0x90],
        &[0xF0, 0x0F, 0xA3, 0x00],
        &[0xF0, 0xA4],
        &[0xF0, 0xE9, 0, 0, 0, 0],
    ] {
        let mut b = Bench::protected();
        b.flat.ram.write(CODE, bytes);
        b.flat.vcpu.state.gpr[0] = PAGE;
        assert_eq!(b.run().fault(), (6, 0), "{bytes:x?}");
    }
}

/// REP MOVS that faults in the middle: counters say how far it got, and it goes on after the repair.
fn restartable_strings() {
    for down in [false, true] {
        let mut b = Bench::long();
        let target = PAGE + 0x1000;
        let hole = if down { target } else { target + 0x1000 };
        b.map(hole, 0);
        for n in 0..0x2000 / 8 {
            b.put(0x5_0000 + n * 8, n * 0x0101_0101);
        }
        let end = b.code(|a| {
            if down {
                a.std()?;
            }
            a.rep().movsq()?;
            a.hlt()
        });
        let g = &mut b.flat.vcpu.state.gpr;
        let start = if down { 0x1FF8 } else { 0 };
        (g[gpr::RCX], g[gpr::RSI], g[gpr::RDI]) = (0x400, 0x5_0000 + start, target + start);
        let r = b.run().raised();
        let g = b.flat.vcpu.state.gpr;
        assert_eq!((r.vector, r.error, r.ip), (14, 2, CODE + u64::from(down)));
        assert_eq!(g[gpr::RCX], 0x200);
        assert_eq!(b.flat.vcpu.state.cr2, if down { hole + 0xFF8 } else { hole });
        assert_eq!(g[gpr::RDI], b.flat.vcpu.state.cr2);
        // The handler repairs and returns.
        b.map(hole, 3);
        b.flat.ram.write(STUBS + 15, &[0x48, 0x83, 0xC4, 8, 0x48, 0xCF]);
        b.flat.vcpu.state.activity = trimaran_cpu::state::Activity::Running;
        assert_eq!(b.run(), Outcome::Halted(end));
        for n in 0..0x2000 / 8 {
            assert_eq!(b.get(target + n * 8, 8), n * 0x0101_0101);
        }
    }
}

/// EIP has 32 bits (SDM Vol. 1, "Instruction Pointer"): 0 comes behind the last byte of 4 GiB, for the next instruction and
/// for what an interrupt pushes, in compatibility mode too.
fn eip_wraps() {
    const HIGH: [u64; 2] = [PAGE + 0x1_0000, PAGE + 0x1_1000];
    for paging in [Paging::Bits32, Paging::Level4] {
        let mut b = Bench::paged(paging);
        if b.long {
            b.put(TABLES + 0x1000 + 3 * 8, HIGH[0] | 7);
            b.put(HIGH[0] + 511 * 8, HIGH[1] | 7);
            b.put(HIGH[1] + 511 * 8, PAGE | 7);
            b.flat.vcpu.state.seg[seg::CS].attributes ^= attr::L | attr::DB;
        } else {
            b.flat.ram.write(TABLES + 1023 * 4, &((HIGH[1] | 7) as u32).to_le_bytes());
            b.flat.ram.write(HIGH[1] + 1023 * 4, &((PAGE | 7) as u32).to_le_bytes());
        }
        // INC EAX twice, once more at 0.
        b.flat.ram.write(PAGE + 0xFFE, &[0x40, 0x40]);
        b.flat.ram.write(0, &[0x40, 0xF4]);
        let start = b.flat.vcpu.state.clone();
        for slice in [1, 2, 100] {
            b.flat.vcpu.state = start.clone();
            b.flat.vcpu.state.gpr[gpr::RIP] = 0xFFFF_FFFE;
            b.changed();
            for _ in 0..4 {
                b.flat.run(slice);
                assert!(b.flat.vcpu.state.rip() >> 32 == 0, "{paging:?}, {slice}");
            }
            assert_eq!(
                (b.outcome(), b.flat.vcpu.state.gpr[0]),
                (Outcome::Halted(2), 3),
                "{paging:?}, {slice}"
            );
        }
        b.flat.vcpu.state = start;
        b.flat.vcpu.state.gpr[gpr::RIP] = 0xFFFF_FFFE;
        b.flat.ram.write(PAGE + 0xFFE, &[0xCD, 0x40]);
        let raised = b.run().raised();
        assert_eq!((raised.vector, raised.ip), (0x40, 0), "{paging:?}");
    }
}

/// A20: with the gate closed, 1 MiB wraps to 0, for data and page tables alike.
fn a20() {
    let mut b = Bench::protected();
    b.put(0x500, 0xAAAA);
    b.put(0x10_0500, 0xBBBB);
    b.code(|a| {
        a.mov(eax, dword_ptr(0x10_0500u32))?;
        a.hlt()?;
        a.mov(ebx, dword_ptr(0x10_0500u32))?;
        a.hlt()
    });
    b.run().halted();
    b.flat.vcpu.fence.a20.store(false, SeqCst);
    b.flat.vcpu.fence.vcpus[0].raise(attention::REMAP);
    b.flat.vcpu.state.activity = trimaran_cpu::state::Activity::Running;
    b.resume().halted();
    let g = b.flat.vcpu.state.gpr;
    assert_eq!((g[0], g[3]), (0xBBBB, 0xAAAA));
}
