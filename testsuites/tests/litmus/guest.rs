//! Processors side by side, and the parts that their programs are made of.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use trimaran_cpu::engine::EngineFactory;
use trimaran_testsuites::differential::kernel::at;
use trimaran_testsuites::flat::Machine;
use trimaran_testsuites::workbench::{WORLD, engines, enter, until_halted, write};

const RAM: u64 = 0x20_0000;
/// Cells of 64 bytes, one an iteration, and what was read in it: four bytes an iteration and register.
pub const X: u64 = 0x8_0000;
pub const Y: u64 = 0xC_0000;
pub const SEEN: u64 = 0x10_0000;
const SEEN_SIZE: u64 = 0x8000;
pub const ITERATIONS: u32 = 4096;
/// A line for each processor's progress, and for flags and counts.
const PROGRESS: u64 = at::DATA;
pub const FLAGS: u64 = at::DATA + 0x400;

pub type Result = std::result::Result<(), IcedError>;
pub type Program<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result;

/// A machine with one processor for each program.
fn machine(factory: &dyn EngineFactory, programs: &[Program]) -> Machine {
    let mut m = Machine::with_processors(factory, RAM, 0..0, programs.len());
    for (address, bytes) in WORLD.images(&[]) {
        assert!(m.ram.write(address, &bytes));
    }
    for page in (at::MMIO..RAM).step_by(4096) {
        assert!(m.ram.write(page_entry(page), &(page | 3).to_le_bytes()));
    }
    for (n, program) in programs.iter().enumerate() {
        let (code, stack) = (at::CODE + n as u64 * 0x1000, at::STACK - n as u64 * 0x400);
        write(&m, code, program);
        let engine = if n == 0 { &mut m.engine } else { &mut m.others[n - 1] };
        enter(&mut **engine, code, stack);
    }
    m
}

/// Where the page-table entry of a linear page lies.
pub fn page_entry(page: u64) -> u64 {
    at::LOW + page / 4096 * 8
}

/// Runs programs side by side on each engine, some times; `check` looks at what they left.
pub fn everywhere(
    what: &str,
    programs: &[Program],
    prepare: &dyn Fn(&Machine),
    check: &mut dyn FnMut(&str, &Machine),
) {
    let times = if std::env::var_os("TRIMARAN_LONG").is_some() { 50 } else { 1 };
    for (name, factory) in engines() {
        for _ in 0..times {
            let m = run(&factory, programs, prepare, &format!("{what} on {name}"));
            check(name, &m);
        }
    }
}

fn run(
    factory: &Arc<dyn EngineFactory>,
    programs: &[Program],
    prepare: &dyn Fn(&Machine),
    what: &str,
) -> Machine {
    let mut m = machine(&**factory, programs);
    prepare(&m);
    until_halted(&mut m, what, |_| ());
    m
}

/// A loop over the iterations for processor `me` of `count`: ECX is the iteration, RBX the offset of its cells. Each
/// waits a little for its neighbour, so that they meet; nothing depends on it. `body` may use all but RCX, RBX, R12, R13.
pub fn iterations(a: &mut CodeAssembler, me: u64, count: u64, body: Program) -> Result {
    const PATIENCE: u32 = 2000;
    let (mut head, mut wait, mut go, mut rest) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.mov(r12, PROGRESS + me * 64)?;
    a.mov(r13, PROGRESS + (me + 1) % count * 64)?;
    a.xor(ecx, ecx)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut head)?;
    a.mov(dword_ptr(r12), ecx)?;
    a.mov(edx, PATIENCE)?;
    a.set_label(&mut wait)?;
    a.cmp(dword_ptr(r13), ecx)?;
    a.jae(go)?;
    a.pause()?;
    a.dec(edx)?;
    a.jne(wait)?;
    a.set_label(&mut go)?;
    // Another distance between them each time.
    a.imul_3(edx, ecx, 7 + 6 * me as i32)?;
    a.and(edx, 127)?;
    a.inc(edx)?;
    a.set_label(&mut rest)?;
    a.dec(edx)?;
    a.jne(rest)?;
    body(a)?;
    a.add(ebx, 64)?;
    a.inc(ecx)?;
    a.cmp(ecx, ITERATIONS)?;
    a.jne(head)?;
    // The neighbour shall not wait any more.
    a.mov(dword_ptr(r12), -1)?;
    a.hlt()
}

/// Notes EAX as what was read for register `n` in this iteration.
pub fn note(a: &mut CodeAssembler, n: u64) -> Result {
    a.mov(dword_ptr(rcx * 4 + (SEEN + n * SEEN_SIZE) as i32), eax)
}

/// What was noted for a register, by iteration.
pub fn seen(m: &Machine, n: u64) -> Vec<u32> {
    let mut bytes = vec![0; ITERATIONS as usize * 4];
    assert!(m.ram.read(SEEN + n * SEEN_SIZE, &mut bytes));
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// A doubleword of RAM.
pub fn word(m: &Machine, address: u64) -> u32 {
    let mut bytes = [0; 4];
    assert!(m.ram.read(address, &mut bytes));
    u32::from_le_bytes(bytes)
}
