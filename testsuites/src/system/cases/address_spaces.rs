//! SDM Vol. 3, "Process-Context Identifiers (PCIDs)", "Operations that Invalidate TLBs and Paging-Structure Caches".

use crate::system::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trimaran_cpu::state::{RFlags, cr4};

/// Present, writable, user.
const PWU: u64 = 7;
const GLOBAL: u64 = 1 << 8;
/// The second address space's tables, and how its pages differ: where `PAGE` leads.
const OTHER: u64 = TABLES + 0x4000;
const KEEP: u64 = 1 << 63;
/// An INVPCID descriptor.
const DESCRIPTOR: u64 = PAGE + 0x4000;

pub const CASES: super::List = &[
    ("spaces_take_turns", spaces_take_turns),
    ("what_must_drop_translations_drops_them", what_must_drop_translations_drops_them),
    ("many_spaces", many_spaces),
];

type Code<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Long mode with PCID 1 in the bench's tables, and PCID 2 in tables where the two pages from `PAGE` on are exchanged.
fn two_spaces() -> Bench {
    let mut b = Bench::long();
    b.map_user();
    for page in [PAGE, PAGE + 0x1000, DESCRIPTOR] {
        b.map(page, PWU);
    }
    for level in 0..3 {
        b.put(OTHER + level * 0x1000, (OTHER + (level + 1) * 0x1000) | PWU);
    }
    for n in 0..512 {
        b.put(OTHER + 0x3000 + n * 8, b.get(TABLES + 0x3000 + n * 8, 8));
    }
    let other_leaf = |page: u64| OTHER + 0x3000 + (page >> 12) * 8;
    b.put(other_leaf(PAGE), (PAGE + 0x1000) | PWU);
    b.put(other_leaf(PAGE + 0x1000), PAGE | PWU);
    let s = &mut b.flat.vcpu.state;
    s.cr4 |= cr4::PCIDE | cr4::PGE;
    s.cr3 = TABLES | 1;
    b.changed();
    b
}

/// User code that both spaces run finds its functions and its data in its own, however often they take turns.
fn spaces_take_turns() {
    let mut b = two_spaces();
    // To the other space: PCIDs 1 and 2.
    b.interrupt_gate(0x40, CODE + 0x800, 3);
    b.assemble(64, CODE + 0x800, |a| {
        a.push(rax)?;
        a.mov(rax, cr3)?;
        a.xor(rax, (TABLES ^ OTHER ^ 3) as i32)?;
        a.bts(rax, 63u32)?;
        a.mov(cr3, rax)?;
        a.pop(rax)?;
        a.iretq()
    });
    for (page, value) in [(PAGE, 1), (PAGE + 0x1000, 1000)] {
        b.assemble(64, page, |a| {
            a.add(rdx, value)?;
            a.inc(dword_ptr(PAGE + 0x800))?;
            a.ret()
        });
    }
    b.ring(3);
    b.code(|a| {
        let (mut head, mut stay) = (a.create_label(), a.create_label());
        a.xor(edx, edx)?;
        a.mov(ecx, 300)?;
        a.mov(edi, PAGE as i32)?;
        a.set_label(&mut head)?;
        a.call(PAGE)?;
        a.call(rdi)?;
        // Twice in one, once in the other.
        a.lea(eax, dword_ptr(rcx))?;
        a.mov(esi, 0x5555_5556)?;
        a.imul_2(rsi, rax)?;
        a.shr(rsi, 32)?;
        a.lea(esi, dword_ptr(rsi + rsi * 2))?;
        a.cmp(esi, eax)?;
        a.je(stay)?;
        a.int(0x40)?;
        a.set_label(&mut stay)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.ud2()
    });
    assert_eq!(b.run().raised().vector, 6, "#UD at the end");
    let counts = [b.get(PAGE + 0x800, 4), b.get(PAGE + 0x1800, 4)];
    assert_eq!(counts[0] + counts[1], 600);
    assert!(counts[0] > 100 && counts[1] > 100);
    assert_eq!(b.flat.vcpu.state.gpr[2], counts[0] + 1000 * counts[1]);
}

/// Reads `PAGE` in space 1, remaps it to the next page, does `f`, reads again: which page was read. These are accesses
/// of a class whose translations are kept for several PCIDs.
fn read_after(bits: u64, f: Code) -> u64 {
    let mut b = two_spaces();
    b.map(PAGE, PWU | bits);
    b.put(OTHER + 0x3000 + (PAGE >> 12) * 8, (PAGE + 0x1000) | PWU | bits);
    b.put(PAGE, 1);
    b.put(PAGE + 0x1000, 2);
    let leaf = b.leaf(PAGE);
    b.flat.vcpu.state.cr4 |= cr4::SMAP;
    b.flat.vcpu.state.rflags |= RFlags::AC;
    // Supervisor code must not lie in user pages only because data does.
    b.map(CODE, 3);
    b.code(|a| {
        a.mov(eax, dword_ptr(PAGE))?;
        a.mov(rcx, (PAGE + 0x1000) | PWU | bits)?;
        a.mov(qword_ptr(leaf), rcx)?;
        f(a)?;
        a.mov(ebx, dword_ptr(PAGE))?;
        a.hlt()
    });
    b.run().halted();
    assert_eq!(b.flat.vcpu.state.gpr[0], 1);
    b.flat.vcpu.state.gpr[3]
}

fn load_cr3(a: &mut CodeAssembler, value: u64) -> Result<(), IcedError> {
    a.mov(rdx, value)?;
    a.mov(cr3, rdx)
}

fn invpcid(a: &mut CodeAssembler, kind: i32, pcid: u64) -> Result<(), IcedError> {
    a.mov(rdx, pcid)?;
    a.mov(qword_ptr(DESCRIPTOR), rdx)?;
    a.mov(rdx, PAGE)?;
    a.mov(qword_ptr(DESCRIPTOR + 8), rdx)?;
    a.mov(edx, kind)?;
    a.invpcid(rdx, xmmword_ptr(DESCRIPTOR))
}

fn what_must_drop_translations_drops_them() {
    let away_and_back = |a: &mut CodeAssembler, there: Code, keep: u64| {
        load_cr3(a, OTHER | 2 | KEEP)?;
        there(a)?;
        load_cr3(a, TABLES | 1 | keep)
    };
    let nothing: Code = &|_| Ok(());
    let cases: &[(&str, u64, Code)] = &[
        ("MOV to CR3", 0, &|a| load_cr3(a, TABLES | 1)),
        ("there and back", 0, &|a| away_and_back(a, nothing, 0)),
        ("INVLPG", 0, &|a| a.invlpg(byte_ptr(PAGE))),
        ("INVLPG, global", GLOBAL, &|a| a.invlpg(byte_ptr(PAGE))),
        ("INVLPG of a global page in the other space", GLOBAL, &|a| {
            away_and_back(a, &|a| a.invlpg(byte_ptr(PAGE)), KEEP)
        }),
        ("INVPCID of an address", 0, &|a| invpcid(a, 0, 1)),
        ("INVPCID of a PCID", 0, &|a| invpcid(a, 1, 1)),
        ("INVPCID of all", 0, &|a| invpcid(a, 2, 0)),
        ("INVPCID of all, global", GLOBAL, &|a| invpcid(a, 2, 0)),
        ("INVPCID of all but global", 0, &|a| invpcid(a, 3, 0)),
        ("INVPCID of an address from the other space", 0, &|a| away_and_back(a, &|a| invpcid(a, 0, 1), KEEP)),
        ("INVPCID of a PCID from the other space", 0, &|a| away_and_back(a, &|a| invpcid(a, 1, 1), KEEP)),
        ("INVPCID of all but global from the other space", 0, &|a| {
            away_and_back(a, &|a| invpcid(a, 3, 0), KEEP)
        }),
        ("a flush while the other space is loaded", 0, &|a| {
            away_and_back(a, &|a| load_cr3(a, TABLES | 1), KEEP)
        }),
        ("CR4.PGE", GLOBAL, &|a| {
            a.mov(rdx, cr4)?;
            a.btr(edx, 7u32)?;
            a.mov(cr4, rdx)
        }),
    ];
    for (name, bits, f) in cases {
        assert_eq!(read_after(*bits, f), 2, "{name}");
    }
}

/// More PCIDs than are kept: nothing of one shows in another.
fn many_spaces() {
    let mut b = two_spaces();
    b.put(PAGE, 1);
    b.put(PAGE + 0x1000, 100);
    b.flat.vcpu.state.cr4 |= cr4::SMAP;
    b.flat.vcpu.state.rflags |= RFlags::AC;
    b.map(CODE, 3);
    b.put(OTHER + 0x3000 + (CODE >> 12) * 8, CODE | 3);
    b.code(|a| {
        let mut head = a.create_label();
        a.xor(ebx, ebx)?;
        a.mov(ecx, 200)?;
        a.set_label(&mut head)?;
        // PCIDs 0 to 15: the odd ones are in the other tables.
        a.mov(eax, ecx)?;
        a.and(eax, 15)?;
        a.mov(edx, eax)?;
        a.and(edx, 1)?;
        a.imul_3(edx, edx, (OTHER ^ TABLES) as i32)?;
        a.xor(eax, edx)?;
        a.xor(eax, TABLES as i32)?;
        a.bts(rax, 63u32)?;
        a.mov(cr3, rax)?;
        a.add(ebx, dword_ptr(PAGE))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    b.run().halted();
    assert_eq!(b.flat.vcpu.state.gpr[3], 100 * 101);
}
