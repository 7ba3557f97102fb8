//! Guests to measure: endless loops of a few instructions, each of which is about one thing.

pub mod kernels;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trimaran_cpu::engine::EngineFactory;
use trimaran_cpu::tlb::slot;
use trimaran_testsuites::differential::kernel::at;
use trimaran_testsuites::flat::Machine;
use trimaran_testsuites::workbench::{machine, write};

/// An endless loop.
pub struct Guest {
    pub name: &'static str,
    /// Instructions of one round.
    pub insns: u64,
    /// How often a round does what is measured.
    pub units: u64,
    prepare: fn(&Machine),
}

const SECOND: u64 = at::CODE + 0x1000;
/// The window, the lowest of these, is mapped again from others on.
const LARGE: u64 = 2 << 20;

pub const HASH: Guest = Guest { name: "hash loop, instruction", insns: 6, units: 6, prepare: hash };
pub const HIT: Guest = Guest { name: "TLB hit", insns: 17, units: 16, prepare: |m| loads(m, 1) };
/// By turns, so that each finds what the other evicted.
pub const EVICTED: Guest =
    Guest { name: "TLB, two pages of one entry", insns: 17, units: 16, prepare: |m| loads(m, 2) };
pub const MISS: Guest = Guest { name: "TLB miss", insns: 17, units: 16, prepare: |m| loads(m, 16) };
pub const LOCAL: Guest = Guest { name: "link in a page", insns: 10, units: 2, prepare: alternate };
pub const FAR: Guest = Guest { name: "link to another page", insns: 4, units: 2, prepare: two_pages };
pub const TABLE: Guest = Guest { name: "indirect jump", insns: 3, units: 1, prepare: jump_table };
pub const RET: Guest = Guest { name: "CALL and RET", insns: 3, units: 1, prepare: call };
pub const MODIFY: Guest = Guest { name: "store to own code", insns: 4, units: 1, prepare: modify };

impl Guest {
    /// A machine that has run it for a while.
    pub fn start(&self, factory: &dyn EngineFactory) -> Machine {
        let mut m = machine(factory, 1);
        (self.prepare)(&m);
        m.engine.run(20_000);
        m
    }
}

fn hash(m: &Machine) {
    write(m, at::CODE, &|a| {
        let mut top = a.create_label();
        a.mov(rsi, at::DATA)?;
        a.set_label(&mut top)?;
        a.movzx(edx, byte_ptr(rsi + rbx))?;
        a.imul_3(rax, rax, 31)?;
        a.add(rax, rdx)?;
        a.inc(ebx)?;
        a.and(ebx, 255)?;
        a.jmp(top)
    });
}

/// Pages with the same entry of the TLB, each in another copy of the window.
fn rivals() -> impl Iterator<Item = u64> {
    let pages = 0..2 * LARGE * 512 / 4096;
    let of_window = |address: &u64| (0x1000..at::RAM).contains(&(address % LARGE));
    pages.map(|page| page * 4096).filter(of_window).filter(|&address| slot(address) == slot(SECOND))
}

/// Sixteen loads, by turns from so many pages; with an index, so that none shares a look-up.
fn loads(m: &Machine, pages: usize) {
    let pages: Vec<u64> = rivals().take(pages).collect();
    // The second gibibyte has the directory of the first.
    assert!(m.ram.write(at::ROOT + 0x1008, &((at::ROOT + 0x2000) | 3).to_le_bytes()));
    for page in &pages {
        let entry = at::ROOT + 0x2000 + page / LARGE % 512 * 8;
        assert!(m.ram.write(entry, &(at::LOW | 3).to_le_bytes()));
    }
    write(m, at::CODE, &|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        for n in 0..16 {
            a.mov(rax, qword_ptr(rbx * 8 + pages[n % pages.len()]))?;
        }
        a.jmp(top)
    });
}

/// A branch that goes either way by turns: two traces on one page that lead to each other.
fn alternate(m: &Machine) {
    write(m, at::CODE, &|a| {
        let (mut top, mut odd) = (a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.inc(eax)?;
        a.test(al, 1)?;
        a.jne(odd)?;
        a.inc(rbx)?;
        a.jmp(top)?;
        a.set_label(&mut odd)?;
        a.inc(rcx)?;
        a.jmp(top)
    });
}

fn two_pages(m: &Machine) {
    for (here, there) in [(at::CODE, SECOND), (SECOND, at::CODE)] {
        write(m, here, &|a| {
            a.inc(rax)?;
            a.jmp(there)
        });
    }
}

fn jump_table(m: &Machine) {
    let target = |n: u64| at::CODE + 0x100 + n * 0x40;
    write(m, at::CODE, &|a| {
        a.mov(r8, at::TABLES)?;
        a.jmp(target(0))
    });
    for n in 0..4 {
        assert!(m.ram.write(at::TABLES + n * 8, &target(n).to_le_bytes()));
        write(m, target(n), &|a| {
            a.inc(ebx)?;
            a.and(ebx, 3)?;
            a.jmp(qword_ptr(r8 + rbx * 8))
        });
    }
}

fn call(m: &Machine) {
    write(m, at::CODE, &|a| {
        a.call(SECOND)?;
        a.jmp(at::CODE)
    });
    write(m, SECOND, &|a: &mut CodeAssembler| -> Result<(), IcedError> { a.ret() });
}

/// Each round writes the immediate that it loads next.
fn modify(m: &Machine) {
    const LOOP: u64 = at::CODE + 0x40;
    write(m, at::CODE, &|a| {
        // Behind two instructions of two bytes each, and the opcode.
        a.mov(rdi, LOOP + 5)?;
        a.jmp(LOOP)
    });
    write(m, LOOP, &|a| {
        a.inc(eax)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.mov(edx, 0)?;
        a.jmp(LOOP)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_cpu::engine::Interpreter;
    use trimaran_cpu::state::gpr;

    /// The loops loop, and take as many instructions as they say.
    #[test]
    fn there_are_rivals() {
        assert!(rivals().take(16).count() == 16 && rivals().all(|address| address < 1 << 31));
    }

    #[test]
    fn rounds_have_their_length() {
        for guest in [&HASH, &HIT, &EVICTED, &MISS, &LOCAL, &FAR, &TABLE, &RET, &MODIFY] {
            let mut m = guest.start(&Interpreter);
            for _ in 0..3 {
                let before = m.engine.state().gpr[gpr::RIP];
                m.engine.run(guest.insns * 100);
                assert_eq!(m.engine.state().gpr[gpr::RIP], before, "{}", guest.name);
            }
            let missed = m.engine.counters().tlb_misses;
            let of_few = guest.name != EVICTED.name;
            assert!(
                !of_few || (missed > 10_000) == (guest.name == MISS.name),
                "{}: {missed} TLB misses",
                guest.name
            );
        }
    }

    /// What is stored is what runs next.
    #[test]
    fn own_code_is_changed() {
        let mut m = MODIFY.start(&Interpreter);
        let s = m.engine.state();
        assert!(s.gpr[gpr::RDX] > 4000 && s.gpr[gpr::RAX] - s.gpr[gpr::RDX] <= 1);
    }
}
