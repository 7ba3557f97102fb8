//! SDM Vol. 3, "Determination of Access Rights", "Page-Fault Exceptions", "Accessed and Dirty Flags": every combination
//! of the bits of a page-directory entry and a page-table entry, against the rules as the manual states them.

use crate::system::*;
use iced_x86::code_asm::*;
use trimaran_cpu::state::{cr0, efer, gpr};

pub const CASES: super::List = &[
    ("every_combination", || every_combination(Paging::Level4)),
    ("every_combination_with_5_levels", || every_combination(Paging::Level5)),
];

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const XD: u64 = 1 << 63;
const RIGHTS: [u64; 4] = [P, W, U, XD];

/// The page at this linear address has a page table of its own.
const LINEAR: u64 = 0x20_0000;
const DIRECTORY_ENTRY: u64 = TABLES + 0x2000 + 8;
const TABLE: u64 = TABLES + 0x8000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read,
    Write,
    Fetch,
}
use Kind::*;

#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    user: bool,
    wp: bool,
    nxe: bool,
    pde: u64,
    pte: u64,
}

impl Case {
    /// The error code of the page fault, if there is one.
    fn fault(&self) -> Option<u64> {
        let Case { kind, user, wp, nxe, pde, pte } = *self;
        let attempt =
            u64::from(kind == Write) << 1 | u64::from(user) << 2 | u64::from(kind == Fetch && nxe) << 4;
        for entry in [pde, pte] {
            if entry & P == 0 {
                return Some(attempt);
            }
            if entry & XD != 0 && !nxe {
                return Some(attempt | 1 | 1 << 3);
            }
        }
        let both = pde & pte;
        let forbidden = user && both & U == 0
            || kind == Write && both & W == 0 && (user || wp)
            || kind == Fetch && (pde | pte) & XD != 0;
        forbidden.then_some(attempt | 1)
    }
}

/// The bits of `list` that `number` chooses.
fn choose(list: &[u64], number: u64) -> u64 {
    (0..).zip(list).filter(|(n, _)| number >> n & 1 != 0).map(|(_, bit)| bit).sum()
}

fn bench(paging: Paging) -> Bench {
    let mut b = Bench::paged(paging);
    b.map_user();
    b.assemble(64, CODE, |a| {
        a.mov(eax, dword_ptr(LINEAR))?;
        a.hlt()
    });
    b.assemble(64, CODE + 0x40, |a| {
        a.mov(dword_ptr(LINEAR), eax)?;
        a.hlt()
    });
    b.assemble(64, CODE + 0x80, |a| a.jmp(LINEAR));
    b
}

fn check(b: &mut Bench, case: Case) {
    b.put(DIRECTORY_ENTRY, TABLE | case.pde);
    b.put(TABLE, PAGE | case.pte);
    b.flat.ram.write(PAGE, &[0xF4]);
    b.start();
    b.ring(if case.user { 3 } else { 0 });
    let s = &mut b.flat.vcpu.state;
    s.gpr[gpr::RIP] = CODE + case.kind as u64 * 0x40;
    s.gpr[gpr::RAX] = 0xF4;
    s.cr0 = s.cr0 & !cr0::WP | if case.wp { cr0::WP } else { 0 };
    s.msr.efer = s.msr.efer & !efer::NXE | if case.nxe { efer::NXE } else { 0 };
    b.flat.vcpu.flush_tlb();
    let outcome = b.run();
    let (pde, pte) = (b.get(DIRECTORY_ENTRY, 8) & !TABLE, b.get(TABLE, 8) & !PAGE);
    match case.fault() {
        Some(error) => {
            assert_eq!(outcome.fault(), (14, error), "{case:x?}");
            assert_eq!((pde & !A, pte), (case.pde & !A, case.pte), "{case:x?}");
        }
        None => {
            // HLT is privileged: what a program may do ends in #GP.
            let done =
                if case.user { outcome.fault() == (13, 0) } else { matches!(outcome, Outcome::Halted(_)) };
            assert!(done, "{case:x?}: {outcome:x?}");
            let dirty = if case.kind == Write { D } else { 0 };
            assert_eq!((pde, pte), (case.pde | A, case.pte | A | dirty), "{case:x?}");
        }
    }
}

fn every_combination(paging: Paging) {
    let mut b = bench(paging);
    for number in 0..1u64 << 12 {
        let bit = |n: u64| number >> n & 1 != 0;
        for kind in [Read, Write, Fetch] {
            let marks = if bit(11) { A | D } else { 0 };
            check(
                &mut b,
                Case {
                    kind,
                    user: bit(8),
                    wp: bit(9),
                    nxe: bit(10),
                    pde: choose(&RIGHTS, number & 15) | marks & A,
                    pte: choose(&RIGHTS, number >> 4 & 15) | marks,
                },
            );
        }
    }
}
