//! SDM Vol. 3, "Protection": limits, types, loading of segment registers.

use crate::system::*;
use iced_x86::code_asm::*;
use trimaran_cpu::state::{Segment, attr, seg};

pub const CASES: super::List = &[
    ("limits_and_types", limits_and_types),
    ("loading", loading),
    ("stack_faults", stack_faults),
    ("conforming_code", conforming_code),
    ("selector_queries", selector_queries),
    ("arpl_writes_what_it_changes", arpl_writes_what_it_changes),
    ("enter_checks_the_frames_end", enter_checks_the_frames_end),
];

const DATA: u16 = attr::P | attr::S | attr::RW | attr::A | attr::DB;

/// Loads DS with a descriptor and accesses `size` bytes at `offset`.
fn access(descriptor: u64, offset: u32, size: u32, write: bool) -> Outcome {
    let mut b = Bench::protected();
    b.describe(sel::SPARE, descriptor);
    b.code(|a| {
        a.mov(eax, u32::from(sel::SPARE))?;
        a.mov(ds, eax)?;
        match (size, write) {
            (1, false) => a.mov(cl, byte_ptr(offset))?,
            (1, true) => a.mov(byte_ptr(offset), cl)?,
            (_, false) => a.mov(ecx, dword_ptr(offset))?,
            (_, true) => a.mov(dword_ptr(offset), ecx)?,
        }
        a.hlt()
    });
    b.run()
}

/// "Limit Checking" and "Type Checking".
fn limits_and_types() {
    let data = |limit, bits| descriptor(PAGE as u32, limit, DATA | bits);
    access(data(0xFFF, 0), 0xFFC, 4, true).halted();
    assert_eq!(access(data(0xFFF, 0), 0xFFD, 4, true).fault(), (13, 0));
    assert_eq!(access(data(0xFFF, 0), 0x1000, 1, false).fault(), (13, 0));
    // Granularity: the low 12 bits are not checked.
    access(data(0, attr::G), 0xFFF, 1, false).halted();
    assert_eq!(access(data(0, attr::G), 0x1000, 1, false).fault(), (13, 0));
    // Expand-down: above the limit, up to FFFF or FFFF_FFFF by B.
    assert_eq!(access(data(0xFFF, attr::EC), 0xFFF, 1, false).fault(), (13, 0));
    access(data(0xFFF, attr::EC), 0x1000, 4, true).halted();
    let small = descriptor(PAGE as u32, 0xFFF, (DATA | attr::EC) & !attr::DB);
    access(small, 0xFFFC, 4, false).halted();
    assert_eq!(access(small, 0xFFFD, 4, false).fault(), (13, 0));
    // Read-only data; readable code; execute-only code cannot be loaded.
    let read_only = descriptor(0, 0xF_FFFF, DATA & !attr::RW | attr::G);
    access(read_only, PAGE as u32, 4, false).halted();
    assert_eq!(access(read_only, PAGE as u32, 4, true).fault(), (13, 0));
    let code = descriptor(0, 0xF_FFFF, DATA | attr::CODE | attr::G);
    access(code, PAGE as u32, 4, false).halted();
    assert_eq!(access(code, PAGE as u32, 4, true).fault(), (13, 0));
    let execute_only = descriptor(0, 0xF_FFFF, (DATA | attr::CODE | attr::G) & !attr::RW);
    assert_eq!(access(execute_only, PAGE as u32, 4, false).fault(), (13, u64::from(sel::SPARE)));
    // A system descriptor.
    assert_eq!(access(descriptor(0, 0xFF, attr::P | 9), 0, 1, false).fault(), (13, u64::from(sel::SPARE)));
    // Not present.
    let absent = descriptor(0, 0xF_FFFF, (DATA | attr::G) & !attr::P);
    assert_eq!(access(absent, PAGE as u32, 4, false).fault(), (11, u64::from(sel::SPARE)));
}

/// "Loading Segment Registers": what MOV SS refuses; null selectors; the accessed bit.
fn loading() {
    let load = |which: AsmRegisterSegment, selector: u16, descriptor: u64| {
        let mut b = Bench::protected();
        b.describe(sel::SPARE, descriptor);
        b.code(|a| {
            a.mov(eax, u32::from(selector))?;
            a.mov(which, eax)?;
            a.hlt()
        });
        (b.run(), b)
    };
    let good = descriptor(0, 0xF_FFFF, (DATA | attr::G) & !attr::A);
    let (outcome, b) = load(ss, sel::SPARE, good);
    outcome.halted();
    assert_eq!(b.get(GDT + u64::from(sel::SPARE) + 5, 1) & 1, 1, "accessed");
    assert_eq!(load(ss, 0, 0).0.fault(), (13, 0), "null SS");
    assert_eq!(load(ss, sel::SPARE | 1, good).0.fault(), (13, u64::from(sel::SPARE)), "RPL");
    assert_eq!(load(ss, sel::DATA3, good).0.fault(), (13, u64::from(sel::DATA3 & !3)), "DPL");
    let read_only = descriptor(0, 0xF_FFFF, (DATA | attr::G) & !attr::RW);
    assert_eq!(load(ss, sel::SPARE, read_only).0.fault(), (13, u64::from(sel::SPARE)), "not writable");
    let absent = descriptor(0, 0xF_FFFF, (DATA | attr::G) & !attr::P);
    assert_eq!(load(ss, sel::SPARE, absent).0.fault(), (12, u64::from(sel::SPARE)), "#SS where absent");
    assert_eq!(load(ds, 0x100, 0).0.fault(), (13, 0x100), "past the GDT's limit");
    assert_eq!(load(ds, sel::SPARE | 4, good).0.fault(), (13, u64::from(sel::SPARE | 4)), "no LDT");
    // A null DS loads, and faults when used.
    let mut b = Bench::protected();
    let at = b.code(|a| {
        a.xor(eax, eax)?;
        a.mov(ds, eax)
    });
    b.assemble(32, at, |a| {
        a.mov(eax, dword_ptr(PAGE))?;
        a.hlt()
    });
    let r = b.run().raised();
    assert_eq!((r.vector, r.error, r.ip), (13, 0, at));
    // MOV CS is #UD.
    let mut b = Bench::protected();
    b.flat.ram.write(CODE, &[0x8E, 0xC8]);
    assert_eq!(b.run().fault(), (6, 0));
}

/// "Stack faults": PUSH, POP and EBP-based operands against SS are #SS(0).
fn stack_faults() {
    type Emit = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    let cases: [Emit; 4] = [
        |a| a.push(eax),
        |a| {
            a.mov(esp, 0x1FFEu32)?;
            a.pop(eax)
        },
        |a| {
            a.mov(ebp, 0x1FFFu32)?;
            a.mov(eax, dword_ptr(ebp))
        },
        |a| a.call(CODE),
    ];
    for f in cases {
        let mut b = Bench::protected();
        let attributes = attr::P | attr::S | attr::RW | attr::A | attr::DB;
        b.code(|a| {
            a.mov(esp, 0x1000_0002u32)?;
            f(a)?;
            a.hlt()
        });
        // Its handler needs a stack that works: a task gate is too much here, so look at the vCPU's fault.
        b.flat.vcpu.state.seg[seg::SS] = Segment { selector: sel::DATA0, attributes, limit: 0x1FFF, base: 0 };
        let stub = STUBS + 12;
        b.flat.vcpu.state.cr2 = 0;
        b.describe(sel::SPARE, gate(0, 0, 0, 0, 0));
        b.put(IDT + 12 * 8, gate(sel::TSS2, 0, 5, 0, 0));
        b.put(TSS2 + 0x20, stub);
        b.put(TSS2 + 0x38, STACK0);
        b.put(TSS2 + 0x4C, u64::from(sel::CODE0));
        b.put(TSS2 + 0x50, u64::from(sel::DATA0));
        let r = b.run().raised();
        assert_eq!(r.vector, 12);
        assert_eq!(b.get(STACK0 - 4, 4), 0, "error code");
    }
}

/// "Conforming code segments": a far jump keeps CPL; a non-conforming one of DPL 0 is refused.
fn conforming_code() {
    for (conforming, dpl, expected) in
        [(true, 0, None), (false, 0, Some((13, u64::from(sel::SPARE)))), (true, 3, None), (false, 3, None)]
    {
        let mut b = Bench::protected();
        let bits = attr::P | attr::S | attr::CODE | attr::RW | attr::DB | attr::G | dpl << 5;
        b.describe(sel::SPARE, descriptor(0, 0xF_FFFF, bits | if conforming { attr::EC } else { 0 }));
        // JMP FAR SPARE|3:CODE+0x100; there INT3 from CPL 3.
        b.flat.ram.write(CODE, &[0xEA, 0, 0x81, 0, 0, (sel::SPARE | 3) as u8, 0]);
        b.flat.ram.write(CODE + 0x100, &[0xCC]);
        b.ring(3);
        let r = b.run().raised();
        match expected {
            Some(fault) => assert_eq!((r.vector, r.error), fault),
            None => assert_eq!((r.vector, r.cs & 3), (3, 3), "conforming {conforming} DPL {dpl}"),
        }
    }
}

/// LAR, LSL, VERR, VERW: ZF says whether the selector may be used.
fn selector_queries() {
    let mut b = Bench::protected();
    let read_only = descriptor(0, 0x1234, (DATA & !attr::RW) | 3 << 5);
    b.describe(sel::SPARE, read_only);
    b.code(|a| {
        a.mov(ecx, u32::from(sel::SPARE))?;
        a.lar(eax, ecx)?;
        a.lsl(ebx, ecx)?;
        a.verr(cx)?;
        a.sete(dl)?;
        a.verw(cx)?;
        a.sete(dh)?;
        a.mov(ecx, 0xF8u32)?;
        a.lsl(esi, ecx)?;
        a.setne(cl)?;
        a.hlt()
    });
    b.run().halted();
    let g = b.flat.vcpu.state.gpr;
    assert_eq!(g[0] & 0xFF00, 0xF100);
    assert_eq!(g[3], 0x1234);
    assert_eq!(g[2] & 0xFFFF, 1, "VERR yes, VERW no");
    assert_eq!(g[1] & 0xFF, 1, "an empty descriptor has no limit");
}

/// "ARPL": memory is written only if the RPL is raised, so a segment that cannot be written is no fault otherwise.
fn arpl_writes_what_it_changes() {
    for (rpl, raised) in [(2u64, None), (3, Some((13, 0)))] {
        let mut b = Bench::protected();
        b.describe(sel::SPARE, descriptor(0, 0xF_FFFF, attr::P | attr::S | attr::G | attr::DB));
        b.put(PAGE, 0xFFF2);
        b.code(|a| {
            a.mov(eax, u32::from(sel::SPARE))?;
            a.mov(ds, eax)?;
            a.arpl(word_ptr(PAGE), bx)?;
            a.hlt()
        });
        b.flat.vcpu.state.gpr[3] = rpl;
        match raised {
            None => b.run().halted(),
            Some(fault) => assert_eq!(b.run().fault(), fault),
        }
        assert_eq!(b.get(PAGE, 2), 0xFFF2);
    }
}

/// "ENTER": a page fault if a write at the final stack pointer would be one; nothing has changed then.
fn enter_checks_the_frames_end() {
    for (size, expected) in [(0, None), (1, Some((14, 7)))] {
        let mut b = Bench::paged(Paging::Bits32);
        b.map_user();
        b.map(PAGE, 3);
        b.map(PAGE + 0x1000, 7);
        b.code(|a| {
            a.enter(size, 0)?;
            a.int3()
        });
        b.ring(3);
        b.flat.vcpu.state.gpr[4] = PAGE + 0x1004;
        let r = b.run().raised();
        match expected {
            None => assert_eq!((r.vector, r.sp), (3, PAGE + 0x1000)),
            Some(fault) => {
                assert_eq!((r.vector, r.error, r.ip, r.sp), (fault.0, fault.1, CODE, PAGE + 0x1004));
            }
        }
    }
}
