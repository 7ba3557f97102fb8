//! Stretches of memory that translated code looks up for several accesses at once (the emitter's windows).

use super::bench::*;
use iced_x86::code_asm::*;
use trimaran_cpu::state::gpr;
use trimaran_testsuites::differential::kernel::{READ_ONLY, at};
use trimaran_testsuites::flat::Machine;

const ROUNDS: i32 = 200;

/// A loop names more registers than the host has, and data by its distance from RIP: the register that RIP was in is
/// needed for another.
#[test]
fn data_beside_rip_in_a_crowded_loop() {
    everywhere(100_000, &|_| {}, &|a| {
        let (mut head, mut first, mut second) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut head)?;
        a.lea(r15, qword_ptr(second))?;
        a.add(rax, qword_ptr(first))?;
        a.add(rax, r15)?;
        for (n, register) in
            [rbx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14].into_iter().enumerate()
        {
            a.add(register, n as i32 + 1)?;
            a.add(rax, register)?;
        }
        a.xor(rax, qword_ptr(second))?;
        a.xor(rbx, qword_ptr(first))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()?;
        a.set_label(&mut first)?;
        a.dq(&[0x0123_4567_89AB_CDEF])?;
        a.set_label(&mut second)?;
        a.dq(&[0x0FED_CBA9_8765_4321])
    });
}

/// Data so far ahead of RIP that its distance from the loop's start is no displacement; what a distance cut to 32 bits
/// would reach is mapped too, and is something else.
#[test]
fn data_as_far_from_rip_as_can_be() {
    const FAR: u64 = 1 << 31;
    let far = |m: &Machine| {
        let link = |at: u64, entry: u64| assert!(m.ram.write(at, &entry.to_le_bytes()));
        let [near, root, directory, table] = [3, 4, 5, 6].map(|n| at::DATA + n * 0x1000);
        // Everything again at FAR, by one large page.
        link(at::ROOT + 0x1000 + 2 * 8, near | 3);
        link(near, 0x83);
        // And at -FAR the data page in place of the code.
        link(at::ROOT + 511 * 8, root | 3);
        link(root + 510 * 8, directory | 3);
        link(directory, table | 3);
        link(table + (at::CODE >> 12) * 8, at::DATA | 3);
        assert!(m.ram.write(at::DATA, &[0xEE; 0x100]));
    };
    let (first, second) = (0x0123_4567_89ABu64, 0x1032_5476_98BAu64);
    let mut m = everywhere(100_000, &far, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.mov(rbx, at::CODE.wrapping_sub(FAR))?;
        a.set_label(&mut head)?;
        // Instructions of 10 bytes that end in the data.
        a.mov(rdx, first)?;
        a.mov(rsi, second)?;
        // ADD RAX, [RIP + distance]: what stands 2 bytes behind the head, then 12.
        for (next, place) in [(27, 2), (34, 12)] {
            let distance = (FAR + place - next) as u32;
            a.db(&[&[0x48, 0x03, 0x05], &distance.to_le_bytes()[..]].concat())?;
        }
        // A loop's window opens only if its page is in the TLB already: here is the wrong one.
        a.add(rbp, qword_ptr(rbx))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    assert_eq!(register(&mut m, gpr::RAX), (first + second) * ROUNDS as u64);
}

/// The loop's frame lies on two pages: each access is on one of them, the stretch of all is not.
#[test]
fn a_frame_on_two_pages() {
    for offset in (0..0x30).step_by(4) {
        let mut m = everywhere(100_000, &|_| {}, &|a| {
            let mut head = a.create_label();
            a.mov(ecx, ROUNDS)?;
            a.mov(rsp, at::STACK - 0x1000 - 0x20 + offset)?;
            a.set_label(&mut head)?;
            a.add(dword_ptr(rsp + 0x04), 1)?;
            a.mov(rax, qword_ptr(rsp + 0x18))?;
            a.add(rax, 3)?;
            a.mov(qword_ptr(rsp + 0x18), rax)?;
            a.push(rax)?;
            a.pop(rdx)?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.mov(ebx, dword_ptr(rsp + 0x04))?;
            a.hlt()
        });
        assert_eq!(register(&mut m, gpr::RBX), ROUNDS as u64, "offset {offset}");
        assert_eq!(register(&mut m, gpr::RDX), 3 * ROUNDS as u64, "offset {offset}");
    }
}

/// A page that may not be written is read, beside a store that is never reached.
#[test]
fn a_store_that_is_never_reached() {
    everywhere(100_000, &|_| {}, &|a| {
        let (mut head, mut over) = (a.create_label(), a.create_label());
        a.mov(ecx, ROUNDS)?;
        a.mov(rdi, READ_ONLY)?;
        a.set_label(&mut head)?;
        a.add(rax, qword_ptr(rdi + 8))?;
        a.test(ecx, ecx)?;
        a.js(over)?;
        a.add(rax, qword_ptr(rdi + 16))?;
        a.cmp(ecx, 100_000)?;
        a.jb(over)?;
        a.mov(qword_ptr(rdi + 8), rax)?;
        a.set_label(&mut over)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
}

/// Constants are added to a base register in every way there is, between accesses off it.
#[test]
fn a_base_that_moves() {
    let mut m = everywhere(100_000, &|_| {}, &|a| {
        let mut head = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut head)?;
        a.mov(rdi, at::DATA + 0x100)?;
        a.mov(qword_ptr(rdi), rcx)?;
        a.add(rdi, 8)?;
        a.mov(qword_ptr(rdi), 2)?;
        a.lea(rdi, qword_ptr(rdi + 8))?;
        a.mov(qword_ptr(rdi), 3)?;
        a.sub(rdi, -8)?;
        a.mov(qword_ptr(rdi), 4)?;
        a.inc(rdi)?;
        a.dec(rdi)?;
        a.add(rax, qword_ptr(rdi - 24))?;
        a.add(rax, qword_ptr(rdi - 16))?;
        a.add(rax, qword_ptr(rdi - 8))?;
        a.add(rax, qword_ptr(rdi))?;
        a.push(rax)?;
        a.push(rdi)?;
        a.pop(rdi)?;
        a.add(edi, 0)?;
        a.add(rax, qword_ptr(rdi))?;
        a.pop(rsi)?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
    let sum: u64 = (1..=ROUNDS as u64).map(|n| n + 13).sum();
    assert_eq!(register(&mut m, gpr::RAX), sum);
}

/// On one of two ways through a loop a helper runs, and what was looked up before it is gone.
#[test]
fn a_helper_on_one_way_through_a_loop() {
    everywhere(100_000, &|_| {}, &|a| {
        let (mut head, mut over) = (a.create_label(), a.create_label());
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut head)?;
        a.add(qword_ptr(rsp - 8), rcx)?;
        a.add(qword_ptr(rsp - 16), 5)?;
        a.test(ecx, 4)?;
        a.je(over)?;
        a.mov(rdx, cr3)?;
        a.mov(cr3, rdx)?;
        a.add(rax, qword_ptr(rsp - 8))?;
        a.set_label(&mut over)?;
        a.add(rax, qword_ptr(rsp - 16))?;
        a.dec(ecx)?;
        a.jne(head)?;
        a.hlt()
    });
}

/// The interpreter's count of instructions is kept although a loop's first look-up fails with hardly any budget left.
#[test]
fn a_loop_that_begins_with_little_budget() {
    for slice in [1, 2, 3, 5, 7, 11] {
        everywhere(slice, &|_| {}, &|a| {
            let (mut outer, mut head) = (a.create_label(), a.create_label());
            a.mov(ebx, 20)?;
            a.set_label(&mut outer)?;
            a.mov(ecx, 5)?;
            a.mov(rax, cr3)?;
            a.mov(cr3, rax)?;
            a.set_label(&mut head)?;
            a.add(qword_ptr(rsp - 8), rcx)?;
            a.mov(rdx, qword_ptr(rsp - 8))?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.dec(ebx)?;
            a.jne(outer)?;
            a.hlt()
        });
    }
}
