//! One processor changes a page-table entry while another uses the page.

use super::guest::*;
use iced_x86::code_asm::*;

const TIMES: u32 = 2000;
/// The page that moves between two frames.
const PAGE: u64 = 0x18_8000;
const FRAMES: [u64; 2] = [0x18_0000, 0x18_1000];
const POISON: u32 = 0xDEAD;

const REQUEST: i32 = FLAGS as i32;
const DONE: i32 = FLAGS as i32 + 64;
/// Stale reads, and stores that arrived in a frame that was given up.
const STALE_READS: i32 = FLAGS as i32 + 128;
const STALE_WRITES: i32 = FLAGS as i32 + 192;

/// Moves the page, asks the other to execute INVLPG, waits for the answer; from then on the old frame is its own.
fn mover(a: &mut CodeAssembler) -> Result {
    let (mut head, mut wait, mut look, mut same) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.mov(ecx, 1)?;
    a.mov(r8, FRAMES[0])?;
    a.mov(r9, FRAMES[1])?;
    a.set_label(&mut head)?;
    a.lea(rax, qword_ptr(r9 + 3))?;
    a.mov(qword_ptr(page_entry(PAGE) as i32), rax)?;
    a.mov(dword_ptr(REQUEST), ecx)?;
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(DONE), ecx)?;
    a.jne(wait)?;
    a.mov(dword_ptr(r8), POISON as i32)?;
    a.mov(eax, dword_ptr(r8 + 8))?;
    a.mov(edx, 30)?;
    a.set_label(&mut look)?;
    a.dec(edx)?;
    a.jne(look)?;
    a.cmp(eax, dword_ptr(r8 + 8))?;
    a.je(same)?;
    a.inc(dword_ptr(STALE_WRITES))?;
    a.set_label(&mut same)?;
    a.mov(dword_ptr(r8), 0)?;
    a.xchg(r8, r9)?;
    a.inc(ecx)?;
    a.cmp(ecx, TIMES)?;
    a.jbe(head)?;
    a.hlt()
}

fn user(a: &mut CodeAssembler) -> Result {
    let (mut head, mut same, mut good) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rdi, PAGE)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut head)?;
    a.mov(eax, dword_ptr(REQUEST))?;
    a.cmp(eax, ecx)?;
    a.je(same)?;
    a.invlpg(byte_ptr(rdi))?;
    a.mov(ecx, eax)?;
    a.mov(dword_ptr(DONE), ecx)?;
    a.set_label(&mut same)?;
    a.inc(dword_ptr(rdi + 8))?;
    a.cmp(dword_ptr(rdi), POISON as i32)?;
    a.jne(good)?;
    a.inc(dword_ptr(STALE_READS))?;
    a.set_label(&mut good)?;
    a.cmp(ecx, TIMES)?;
    a.jne(head)?;
    a.hlt()
}

#[test]
fn a_page_that_moves() {
    let prepare = |m: &trimaran_testsuites::flat::Machine| {
        assert!(m.ram.write(page_entry(PAGE), &(FRAMES[0] | 3).to_le_bytes()));
    };
    everywhere("a page that moves", &[&mover, &user], &prepare, &mut |engine, m| {
        let stale = (word(m, STALE_READS as u64), word(m, STALE_WRITES as u64));
        assert_eq!(stale, (0, 0), "{engine}: stale reads and writes");
        let used = FRAMES.map(|frame| word(m, frame + 8));
        assert!(used.iter().all(|&n| n > 50), "{engine}: both frames are used, {used:?}");
    });
}
