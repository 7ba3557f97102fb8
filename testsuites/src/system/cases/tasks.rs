//! SDM Vol. 3, "Task Management", "System Management Mode".

use crate::system::*;
use iced_x86::code_asm::*;
use trimaran_cpu::shared::attention;
use trimaran_cpu::state::{RFlags, attr};

pub const CASES: super::List = &[
    ("jump", jump),
    ("call_and_return", call_and_return),
    ("task_gate", task_gate),
    ("checks", checks),
    ("conforming_code", conforming_code),
    ("into_virtual_8086_mode_and_back", into_virtual_8086_mode_and_back),
    ("faults_of_the_new_task", faults_of_the_new_task),
    ("tasks_of_16_bits", tasks_of_16_bits),
    ("external_events", external_events),
    ("smi_and_rsm", smi_and_rsm),
];

const SECOND: u64 = 0x9000;

/// A second task that runs `program` at [`SECOND`].
fn bench(program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Bench {
    let mut b = Bench::protected();
    for (offset, value) in [
        (0x20, SECOND),
        (0x24, 2),
        (0x28, 0x1111_1111),
        (0x38, STACK0),
        (0x48, u64::from(sel::DATA0)),
        (0x4C, u64::from(sel::CODE0)),
        (0x50, u64::from(sel::DATA0)),
        (0x54, u64::from(sel::DATA0)),
        (0x58, 0),
        (0x5C, 0),
        (0x60, 0),
        (0x64, 0),
    ] {
        b.flat.ram.write(TSS2 + offset, &(value as u32).to_le_bytes());
    }
    b.assemble(32, SECOND, program);
    b
}

fn busy(b: &Bench, selector: u16) -> bool {
    b.get(GDT + u64::from(selector) + 5, 1) & 2 != 0
}

/// JMP to a TSS: old task free, new one busy, no link.
fn jump() {
    let mut b = bench(|a| a.hlt());
    b.code(|a| {
        a.mov(eax, 5)?;
        a.db(&[0xEA, 0, 0, 0, 0, sel::TSS2 as u8, 0])
    });
    assert_eq!(b.run(), Outcome::Halted(SECOND + 1));
    let s = &b.flat.vcpu.state;
    assert_eq!((s.gpr[0], s.gpr[4], s.tr.selector), (0x1111_1111, STACK0, sel::TSS2));
    assert!(s.cr0 & 8 != 0, "TS");
    assert!(!s.rflags.contains(RFlags::NT));
    assert!(!busy(&b, sel::TSS) && busy(&b, sel::TSS2));
    assert_eq!((b.get(TSS + 0x28, 4), b.get(TSS + 0x20, 4)), (5, CODE + 12), "saved EAX and EIP");
}

/// CALL to a TSS and IRET back: NT, the link, both busy in between.
fn call_and_return() {
    let mut b = bench(|a| {
        a.pushfd()?;
        a.pop(eax)?;
        a.mov(dword_ptr(PAGE), eax)?;
        a.iretd()?;
        a.hlt()
    });
    let end = b.code(|a| {
        a.mov(ebx, 7)?;
        a.db(&[0x9A, 0, 0, 0, 0, sel::TSS2 as u8, 0])?;
        a.hlt()
    });
    assert_eq!(b.run(), Outcome::Halted(end));
    assert_eq!(b.get(PAGE, 4) & 0x4000, 0x4000, "NT in the called task");
    assert_eq!(b.get(TSS2, 2), u64::from(sel::TSS), "link");
    let s = &b.flat.vcpu.state;
    assert_eq!((s.tr.selector, s.gpr[3]), (sel::TSS, 7));
    assert!(!s.rflags.contains(RFlags::NT));
    assert!(busy(&b, sel::TSS) && !busy(&b, sel::TSS2));
    assert_eq!(b.get(TSS2 + 0x24, 4) & 0x4000, 0, "NT is cleared in the image that IRET leaves");
}

/// A task gate in the IDT; an exception's error code goes to the new task's stack.
fn task_gate() {
    let mut b = bench(|a| {
        a.pop(ecx)?;
        a.hlt()
    });
    b.put(IDT + 13 * 8, gate(sel::TSS2, 0, 5, 0, 0));
    b.code(|a| {
        a.mov(eax, 0x80u32)?;
        a.mov(ds, eax)
    });
    b.describe(0x80, descriptor(0, 0xFF, attr::P | 9));
    assert_eq!(b.run(), Outcome::Halted(SECOND + 2));
    assert_eq!(b.flat.vcpu.state.gpr[1], 0x80);
    assert_eq!(b.get(TSS2, 2), u64::from(sel::TSS));
}

/// A busy TSS is #GP, an absent one #NP, a short one #TS.
fn checks() {
    for (name, attributes, limit, expected) in
        [("busy", attr::P | 11, 0x67, 13), ("absent", 9, 0x67, 11), ("short", attr::P | 9, 0x66, 10)]
    {
        let mut b = bench(|a| a.hlt());
        b.describe(sel::TSS2, descriptor(TSS2 as u32, limit, attributes));
        b.flat.ram.write(CODE, &[0xEA, 0, 0, 0, 0, sel::TSS2 as u8, 0]);
        assert_eq!(b.run().fault(), (expected, u64::from(sel::TSS2)), "{name}");
    }
}

/// A new task's CPL is CS.RPL: conforming code of DPL 0 may run at 3.
fn conforming_code() {
    let mut b = bench(|a| {
        a.mov(eax, cs)?;
        a.int3()
    });
    b.describe(
        sel::SPARE,
        descriptor(0, 0xF_FFFF, attr::P | attr::S | attr::CODE | attr::EC | attr::DB | attr::G),
    );
    for (offset, selector) in
        [(0x4C, sel::SPARE | 3), (0x48, sel::DATA3), (0x50, sel::DATA3), (0x54, sel::DATA3)]
    {
        b.flat.ram.write(TSS2 + offset, &u32::from(selector).to_le_bytes());
    }
    b.put(TSS2 + 4, STACK0);
    b.put(TSS2 + 8, u64::from(sel::DATA0));
    b.flat.ram.write(CODE, &[0x9A, 0xF4, 0xF4, 0xF4, 0xF4, sel::TSS2 as u8, 0]);
    let r = b.run().raised();
    assert_eq!((r.vector, r.cs, r.ss), (3, u64::from(sel::SPARE | 3), u64::from(sel::DATA3)));
}

/// IRET with NT set returns to the task that the link names, here one in virtual-8086 mode; its #UD comes back by a task
/// gate.
fn into_virtual_8086_mode_and_back() {
    let mut b = bench(|a| a.ud2());
    for (offset, value) in [
        (0x20, SECOND & 0xF),
        (0x24, 0x2_0002),
        (0x4C, SECOND >> 4),
        (0x48, 0x2345),
        (0x54, 0x1234),
        (0x50, 0),
    ] {
        b.flat.ram.write(TSS2 + offset, &(value as u32).to_le_bytes());
    }
    b.describe(sel::TSS2, descriptor(TSS2 as u32, 0x67, attr::P | 11));
    b.put(IDT + 6 * 8, gate(sel::TSS, 0, 5, 0, 0));
    b.flat.ram.write(TSS, &u32::from(sel::TSS2).to_le_bytes());
    let end = b.code(|a| {
        a.pushfd()?;
        a.or(word_ptr(esp), 0x4000)?;
        a.popfd()?;
        a.iretd()?;
        a.hlt()
    });
    assert_eq!(b.run(), Outcome::Halted(end));
    assert_eq!(b.flat.vcpu.state.tr.selector, sel::TSS);
    assert_eq!(b.get(TSS2 + 0x24, 4) & 0x2_0000, 0x2_0000, "VM in the image");
    assert_eq!((b.get(TSS2 + 0x48, 2), b.get(TSS2 + 0x54, 2)), (0x2345, 0x1234), "ES and DS");
    assert!(busy(&b, sel::TSS2) && busy(&b, sel::TSS), "the gate nests");
}

/// "Exception or Interrupt ... Task Switch": a segment that cannot be loaded is a fault of the new task, at its first
/// instruction.
fn faults_of_the_new_task() {
    let spare = u64::from(sel::SPARE);
    for (name, offset, attributes, expected) in [
        ("DS absent", 0x54, attr::S | attr::RW, (11, spare)),
        ("DS of a system type", 0x54, attr::P | 9, (10, spare)),
        ("SS absent", 0x50, attr::S | attr::RW, (12, spare)),
        ("SS not writable", 0x50, attr::P | attr::S, (10, spare)),
        ("CS is data", 0x4C, attr::P | attr::S | attr::RW, (10, spare)),
        ("CS absent", 0x4C, attr::S | attr::CODE, (11, spare)),
        ("LDT is data", 0x60, attr::P | attr::S | attr::RW, (10, spare)),
    ] {
        // A task of its own handles the fault: the new one may have no stack.
        let mut b = bench(|a| a.hlt());
        b.flat.ram.write(TSS2 + offset, &u32::from(sel::SPARE).to_le_bytes());
        b.describe(sel::SPARE, descriptor(0, 0xFFFF, attributes));
        const TSS3: u64 = 0x3800;
        b.describe(sel::SPARE2, descriptor(TSS3 as u32, 0x67, attr::P | 9));
        let mut image = [0; 0x68];
        b.flat.ram.read(TSS2, &mut image);
        b.flat.ram.write(TSS3, &image);
        for (at, value) in [
            (0x4C, u64::from(sel::CODE0)),
            (0x50, u64::from(sel::DATA0)),
            (0x54, u64::from(sel::DATA0)),
            (0x60, 0),
            (0x20, 0xA000),
        ] {
            b.flat.ram.write(TSS3 + at, &(value as u32).to_le_bytes());
        }
        b.assemble(32, 0xA000, |a| {
            a.pop(ecx)?;
            a.hlt()
        });
        b.put(IDT + expected.0 * 8, gate(sel::SPARE2, 0, 5, 0, 0));
        b.flat.ram.write(CODE, &[0xEA, 0, 0, 0, 0, sel::TSS2 as u8, 0]);
        assert_eq!(b.run(), Outcome::Halted(0xA002), "{name}");
        assert_eq!(b.flat.vcpu.state.gpr[1], expected.1, "{name}");
        assert_eq!(b.get(TSS3, 2), u64::from(sel::TSS2), "{name}: the fault is the new task's");
        assert_eq!(b.get(TSS2 + 0x20, 4), SECOND, "{name}: at its first instruction");
    }
}

/// "16-Bit Task-State Segment": a switch there and back saves and loads words.
fn tasks_of_16_bits() {
    let mut b = Bench::protected();
    b.describe(sel::TSS2, descriptor(TSS2 as u32, 0x2B, attr::P | 1));
    for (offset, value) in [
        (0x0E, SECOND),
        (0x10, 2),
        (0x12, 0x1111),
        (0x1A, STACK0),
        (0x22, u64::from(sel::DATA0)),
        (0x24, u64::from(sel::CODE0)),
        (0x26, u64::from(sel::DATA0)),
        (0x28, u64::from(sel::DATA0)),
        (0x2A, 0),
    ] {
        b.flat.ram.write(TSS2 + offset, &(value as u16).to_le_bytes());
    }
    b.assemble(32, SECOND, |a| {
        a.mov(dword_ptr(PAGE), eax)?;
        a.mov(eax, 0x5555_6666)?;
        a.iretd()
    });
    let end = b.code(|a| {
        a.mov(eax, 7)?;
        a.db(&[0x9A, 0, 0, 0, 0, sel::TSS2 as u8, 0])?;
        a.hlt()
    });
    assert_eq!(b.run(), Outcome::Halted(end));
    assert_eq!(
        (b.get(PAGE, 2), b.get(TSS2 + 0x12, 2), b.get(TSS2, 2)),
        (0x1111, 0x6666, u64::from(sel::TSS))
    );
    assert_eq!(b.flat.vcpu.state.gpr[0], 7);
    assert_eq!(b.get(TSS2 + 0x14, 2), 0, "CX, behind the word of AX");
}

/// Interrupts and NMIs by task gates; EXT in the error code where their delivery fails.
fn external_events() {
    for nmi in [false, true] {
        let vector = if nmi { 2 } else { 0x40 };
        let mut b = bench(|a| {
            a.inc(dword_ptr(PAGE))?;
            a.iretd()
        });
        b.put(IDT + vector * 8, gate(sel::TSS2, 0, 5, 0, 0));
        let end = b.code(|a| {
            a.sti()?;
            a.nop()?;
            a.nop()?;
            a.hlt()
        });
        let raise = |b: &mut Bench| {
            if nmi {
                b.flat.vcpu.fence.vcpus[0].raise(attention::NMI);
            } else {
                b.flat.bus.raise(0x40);
            }
        };
        raise(&mut b);
        assert_eq!(b.run(), Outcome::Halted(end));
        assert_eq!(b.get(PAGE, 4), 1);
        // A gate that is not there.
        b.put(IDT + vector * 8, gate(sel::TSS2, 0, 5, 0, 0) & !(0x80 << 40));
        b.start();
        raise(&mut b);
        assert_eq!(b.run().fault(), (11, vector * 8 + 3), "IDT and EXT");
    }
}

/// "SMI and RSM": what the program sees is as if nothing had happened.
fn smi_and_rsm() {
    for long in [false, true] {
        let mut b = if long { Bench::long() } else { Bench::protected() };
        // The handler at SMBASE + 8000h, 16 bits: leaves a mark and returns.
        b.assemble(16, 0x3_8000, |a| {
            a.mov(ax, 0x4242)?;
            a.mov(word_ptr(0), ax)?;
            a.rsm()
        });
        b.code(|a| {
            a.nop()?;
            a.hlt()
        });
        let s = &mut b.flat.vcpu.state;
        for n in [0, 1, 2, 3, 5, 6, 7, 8, 15] {
            s.gpr[n] = 0x1234_0000 + n as u64;
        }
        s.rflags = RFlags::from_bits_retain(0x2 | 0x8D5 | 0x3000);
        b.changed();
        let mut before = b.flat.vcpu.state_whole().clone();
        b.flat.vcpu.fence.vcpus[0].raise(attention::SMI);
        b.put(0, 0);
        assert_eq!(b.resume(), Outcome::Halted(CODE + 2), "long {long}");
        assert_eq!(b.get(0, 2), 0x4242);
        let mut after = b.flat.vcpu.state_whole().clone();
        assert!(!after.smm);
        // What the program itself did.
        (before.gpr[16], before.retired, before.activity) = (0, 0, after.activity);
        (after.gpr[16], after.retired) = (0, 0);
        assert_eq!(before.gpr, after.gpr);
        assert_eq!(before.rflags, after.rflags);
        for n in 0..6 {
            assert_eq!(before.seg[n], after.seg[n], "segment {n}");
        }
        assert_eq!((before.cr0, before.cr3, before.cr4), (after.cr0, after.cr3, after.cr4));
        assert_eq!((before.msr.efer, before.tr, before.ldtr), (after.msr.efer, after.tr, after.ldtr));
        assert_eq!((before.gdtr, before.idtr, before.cpl), (after.gdtr, after.idtr, after.cpl));
    }
    // RSM outside SMM: #UD.
    let mut b = Bench::protected();
    b.code(|a| a.rsm());
    assert_eq!(b.run().fault(), (6, 0));
}
