//! Loads and stores of two to four processors.

use super::guest::*;
use iced_x86::code_asm::*;
use trimaran_testsuites::flat::Machine;

/// In how many iterations the registers 0, 1, ... had these values.
fn outcomes(m: &Machine, wanted: &[u32]) -> usize {
    let columns: Vec<Vec<u32>> = (0..wanted.len() as u64).map(|n| seen(m, n)).collect();
    (0..ITERATIONS as usize).filter(|&i| columns.iter().zip(wanted).all(|(c, w)| c[i] == *w)).count()
}

fn set(a: &mut CodeAssembler, cell: u64) -> Result {
    a.mov(dword_ptr(rbx + cell as i32), 1)
}
fn get(a: &mut CodeAssembler, cell: u64, register: u64) -> Result {
    a.mov(eax, dword_ptr(rbx + cell as i32))?;
    note(a, register)
}

fn forbidden(what: &str, programs: &[Program], outcome: &[u32]) {
    everywhere(what, programs, &|_| (), &mut |engine, m| {
        assert_eq!(outcomes(m, outcome), 0, "{what} on {engine}: outcome {outcome:?}");
    });
}

/// MP: stores are seen in their order, by loads in theirs.
#[test]
fn message_passing() {
    for (place, at) in [("aligned", 0), ("not aligned", 5), ("over two lines", 62)] {
        forbidden(
            &format!("message passing, {place}"),
            &[&|a| iterations(a, 0, 2, &|a| set(a, X + at).and_then(|()| set(a, Y))), &|a| {
                iterations(a, 1, 2, &|a| get(a, Y, 0).and_then(|()| get(a, X + at, 1)))
            }],
            &[1, 0],
        );
    }
}

/// LB: a load is not done after a younger store.
#[test]
fn load_buffering() {
    forbidden(
        "load buffering",
        &[&|a| iterations(a, 0, 2, &|a| get(a, X, 0).and_then(|()| set(a, Y))), &|a| {
            iterations(a, 1, 2, &|a| get(a, Y, 1).and_then(|()| set(a, X)))
        }],
        &[1, 1],
    );
}

/// SB: a load may pass an older store; that is counted. Not with a fence or a locked instruction between them.
#[test]
fn store_buffering() {
    let mut counts = Vec::new();
    everywhere(
        "store buffering",
        &[&|a| iterations(a, 0, 2, &|a| set(a, X).and_then(|()| get(a, Y, 0))), &|a| {
            iterations(a, 1, 2, &|a| set(a, Y).and_then(|()| get(a, X, 1)))
        }],
        &|_| (),
        &mut |engine, m| counts.push(format!("{engine} {}", outcomes(m, &[0, 0]))),
    );
    println!("store buffering, of {ITERATIONS} both loads first (allowed): {}", counts.join(", "));
    let fenced: [(&str, Program); 3] = [
        ("MFENCE", &|a| a.mfence()),
        ("a locked ADD", &|a| a.lock().add(dword_ptr(rsp - 64), 0)),
        ("XCHG", &|a| a.xchg(dword_ptr(rsp - 64), edx)),
    ];
    for (with, fence) in fenced {
        forbidden(
            &format!("store buffering with {with}"),
            &[
                &|a| iterations(a, 0, 2, &|a| set(a, X).and_then(|()| fence(a)).and_then(|()| get(a, Y, 0))),
                &|a| iterations(a, 1, 2, &|a| set(a, Y).and_then(|()| fence(a)).and_then(|()| get(a, X, 1))),
            ],
            &[0, 0],
        );
    }
}

/// IRIW: two processors see two others' stores in one order.
#[test]
fn independent_reads_of_independent_writes() {
    forbidden(
        "IRIW",
        &[
            &|a| iterations(a, 0, 4, &|a| set(a, X)),
            &|a| iterations(a, 1, 4, &|a| get(a, X, 0).and_then(|()| get(a, Y, 1))),
            &|a| iterations(a, 2, 4, &|a| set(a, Y)),
            &|a| iterations(a, 3, 4, &|a| get(a, Y, 2).and_then(|()| get(a, X, 3))),
        ],
        &[1, 0, 1, 0],
    );
}

/// One location never goes back in time, and an access inside a line is whole.
#[test]
fn one_location() {
    const TIMES: u32 = 20_000;
    // Over two words, inside one line.
    const CELL: u64 = X + 13;
    const BROKEN: u64 = FLAGS;
    let writer: Program = &|a| {
        let mut head = a.create_label();
        a.mov(ecx, 1)?;
        a.set_label(&mut head)?;
        // The same number in both halves.
        a.mov(rax, rcx)?;
        a.shl(rax, 32)?;
        a.or(rax, rcx)?;
        a.mov(qword_ptr(CELL as i32), rax)?;
        a.inc(ecx)?;
        a.cmp(ecx, TIMES)?;
        a.jbe(head)?;
        a.hlt()
    };
    let reader: Program = &|a| {
        let (mut head, mut broken, mut good) = (a.create_label(), a.create_label(), a.create_label());
        a.xor(ebx, ebx)?;
        a.set_label(&mut head)?;
        a.mov(rax, qword_ptr(CELL as i32))?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.cmp(eax, edx)?;
        a.jne(broken)?;
        a.cmp(eax, ebx)?;
        a.jae(good)?;
        a.set_label(&mut broken)?;
        a.inc(dword_ptr(BROKEN as i32))?;
        a.set_label(&mut good)?;
        a.mov(ebx, eax)?;
        a.cmp(eax, TIMES)?;
        a.jne(head)?;
        a.hlt()
    };
    everywhere("one location", &[writer, reader], &|_| (), &mut |engine, m| {
        assert_eq!(word(m, BROKEN), 0, "{engine}: torn or old values");
        assert_eq!(word(m, CELL), TIMES, "{engine}");
    });
}
