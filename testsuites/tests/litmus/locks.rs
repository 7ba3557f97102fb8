//! Locked instructions of several processors on one place.

use super::guest::*;
use iced_x86::code_asm::*;

const TIMES: u32 = 10_000;

fn times(a: &mut CodeAssembler, body: Program) -> Result {
    let mut head = a.create_label();
    a.mov(ecx, TIMES)?;
    a.set_label(&mut head)?;
    body(a)?;
    a.dec(ecx)?;
    a.jne(head)?;
    a.hlt()
}

/// Every one of the additions counts, aligned, over two lines, over two pages.
#[test]
fn additions() {
    for (place, cell) in [("aligned", X), ("over two lines", X + 62), ("over two pages", X + 0xFFE)] {
        let cell = cell as i32;
        let by: [(&str, Program); 3] = [
            ("ADD", &move |a| a.lock().add(dword_ptr(cell), 1)),
            ("XADD", &move |a| a.mov(edx, 1).and_then(|()| a.lock().xadd(dword_ptr(cell), edx))),
            ("CMPXCHG", &move |a| {
                let mut again = a.create_label();
                a.mov(eax, dword_ptr(cell))?;
                a.set_label(&mut again)?;
                a.lea(edx, dword_ptr(rax + 1))?;
                a.lock().cmpxchg(dword_ptr(cell), edx)?;
                a.jne(again)
            }),
        ];
        for (instruction, add) in by {
            let what = format!("locked {instruction} {place}");
            let one: Program = &|a| times(a, add);
            everywhere(&what, &[one, one], &|_| (), &mut |engine, m| {
                assert_eq!(word(m, cell as u64), 2 * TIMES, "{what} on {engine}");
            });
        }
    }
}

/// A split lock, and an aligned one on a part of the same place: exact where the host's instruction does both.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_split_lock_and_an_aligned_one() {
    const CELL: u64 = X + 62;
    let split: Program = &|a| times(a, &|a| a.lock().add(dword_ptr(CELL as i32), 1));
    let aligned: Program = &|a| times(a, &|a| a.lock().add(word_ptr(CELL as i32 + 2), 1));
    everywhere("split and aligned", &[split, aligned], &|_| (), &mut |engine, m| {
        assert_eq!(word(m, CELL), TIMES << 16 | TIMES, "{engine}");
    });
}

/// A lock taken by XCHG keeps two processors apart.
#[test]
fn a_spin_lock() {
    const LOCK: i32 = X as i32;
    const COUNT: i32 = Y as i32;
    let one: Program = &|a| {
        times(a, &|a| {
            let (mut again, mut got) = (a.create_label(), a.create_label());
            // An instruction takes one label only.
            a.nop()?;
            a.set_label(&mut again)?;
            a.mov(eax, 1)?;
            a.xchg(dword_ptr(LOCK), eax)?;
            a.test(eax, eax)?;
            a.je(got)?;
            a.pause()?;
            a.jmp(again)?;
            a.set_label(&mut got)?;
            a.inc(dword_ptr(COUNT))?;
            a.mov(dword_ptr(LOCK), 0)
        })
    };
    everywhere("a spin lock", &[one, one], &|_| (), &mut |engine, m| {
        assert_eq!(word(m, COUNT as u64), 2 * TIMES, "{engine}");
    });
}
