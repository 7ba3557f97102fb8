//! MWAIT (SDM Vol. 2) on a whole machine: it really waits, and interrupts end it, masked ones too if ECX asks for it.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::{Machine, MachineConfig, Outcome};

const LOAD: u32 = 0x10_0000;
const GDT: u32 = LOAD + 0x20;
const HANDLER: u32 = LOAD + 0x40;
const ENTRY: u32 = LOAD + 0x80;
const MAIN: u32 = LOAD + 0x100;
const MILLISECOND: u64 = 1_000_000;
const ROUNDS: u32 = 50;
/// Where the guest counts its timer interrupts, its IDT, and the PIT's vector.
const COUNT: u32 = 0x9000;
const IDT: u32 = 0x8000;
const VECTOR: u32 = 0x20;

/// A multiboot kernel that goes through MWAIT 50 times, then ends. With `timer`, the PIT interrupts at 10 kHz, and
/// `masked` says that IF stays 0.
fn kernel(timer: bool, masked: bool) -> Vec<u8> {
    let mut image = vec![0; (MAIN - LOAD) as usize];
    let mut put = |at: u32, bytes: &[u8]| image[(at - LOAD) as usize..][..bytes.len()].copy_from_slice(bytes);
    let (magic, flags) = (0x1BAD_B002u32, 1u32 << 16);
    let header = [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags), LOAD, LOAD, 0, 0, ENTRY];
    put(LOAD, &header.map(u32::to_le_bytes).concat());
    put(GDT, &[0u64, 0x00CF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF].map(u64::to_le_bytes).concat());
    put(HANDLER, &assemble(HANDLER, handler));
    put(ENTRY, &assemble(ENTRY, entry));
    image.extend(assemble(MAIN, |a| main(a, timer, masked)));
    image
}

fn assemble(at: u32, code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).expect("32-bit code");
    code(&mut a).expect("code");
    a.assemble(u64::from(at)).expect("code")
}

fn handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(dword_ptr(COUNT))?;
    a.push(eax)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.pop(eax)?;
    a.iretd()
}

/// A multiboot kernel starts without a GDT that it may use.
fn entry(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(esp, 0x7000)?;
    a.push(GDT as i32)?;
    a.push(23 << 16)?;
    a.lgdt(fword_ptr(esp + 2))?;
    a.push(8)?;
    a.push(MAIN as i32)?;
    a.retf()
}

fn main(a: &mut CodeAssembler, timer: bool, masked: bool) -> Result<(), IcedError> {
    let mut again = a.create_label();
    if timer {
        a.mov(dword_ptr(IDT + VECTOR * 8), 8 << 16 | HANDLER & 0xFFFF)?;
        a.mov(dword_ptr(IDT + VECTOR * 8 + 4), 0x8E00 | HANDLER & 0xFFFF_0000)?;
        a.push(IDT as i32)?;
        a.push(0x7FF << 16)?;
        a.lidt(fword_ptr(esp + 2))?;
        // PIC: vectors, cascade, 8086 mode, IRQ 0 alone. PIT: mode 2, 119 ticks.
        let pic = [(0x20, 0x11), (0x21, VECTOR as i32), (0x21, 4), (0x21, 1), (0x21, 0xFE)];
        for (port, value) in pic.into_iter().chain([(0x43, 0x34), (0x40, 119), (0x40, 0)]) {
            a.mov(al, value)?;
            a.out(port, al)?;
        }
        if !masked {
            a.sti()?;
        }
    }
    a.mov(ebx, ROUNDS)?;
    a.set_label(&mut again)?;
    a.mov(eax, COUNT + 0x100)?;
    a.xor(ecx, ecx)?;
    a.xor(edx, edx)?;
    a.monitor()?;
    a.xor(eax, eax)?;
    a.mov(ecx, i32::from(masked))?;
    a.mwait()?;
    a.dec(ebx)?;
    a.jne(again)?;
    a.mov(al, 5)?;
    a.out(0xF4, al)?;
    a.hlt()
}

fn machine(timer: bool, masked: bool, deterministic: bool) -> Machine {
    let config = MachineConfig {
        memory: 16 << 20,
        direct: Some(DirectBoot { kernel: kernel(timer, masked), ..DirectBoot::default() }),
        deterministic,
        debug_exit: Some(0xF4),
        cpus: 2,
        ..MachineConfig::default()
    };
    let factory: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    Machine::new(config, &factory).expect("machine")
}

fn interrupts(machine: &Machine) -> u32 {
    let mut count = [0; 4];
    machine.read_physical(u64::from(COUNT), &mut count);
    u32::from_le_bytes(count)
}

const END: Option<Outcome> = Some(Outcome::DebugExit(11));

#[test]
fn alone_it_lasts_a_millisecond() {
    let m = machine(false, false, true);
    assert_eq!(m.run_until(48 * MILLISECOND), None);
    assert_eq!(m.run_until(52 * MILLISECOND), END);
    let mut m = machine(false, false, false);
    let begun = Instant::now();
    m.start();
    assert_eq!(m.wait_for(Duration::from_secs(60)), END);
    assert!(begun.elapsed() >= Duration::from_millis(49), "{:?}", begun.elapsed());
}

#[test]
fn an_interrupt_ends_it() {
    let m = machine(true, false, true);
    assert_eq!(m.run_until(4 * MILLISECOND), None);
    assert_eq!(m.run_until(6 * MILLISECOND), END);
    // A few end by the clock of the first ones.
    assert!((40..=ROUNDS).contains(&interrupts(&m)), "{}", interrupts(&m));
    let mut m = machine(true, false, false);
    m.start();
    assert_eq!(m.wait_for(Duration::from_secs(60)), END);
    assert!(interrupts(&m) > 0);
}

#[test]
fn a_masked_interrupt_ends_it() {
    let m = machine(true, true, true);
    assert_eq!(m.run_until(MILLISECOND), END);
    assert_eq!(interrupts(&m), 0);
}

/// A state saved while a processor waits goes on as if nothing had been.
#[test]
fn saved_while_it_waits() {
    let first = machine(false, false, true);
    assert_eq!(first.run_until(10 * MILLISECOND + MILLISECOND / 2), None);
    let state = first.save_state().expect("state");
    let second = machine(false, false, true);
    second.restore_state(&state).expect("restored");
    for m in [&first, &second] {
        assert_eq!(m.run_until(30 * MILLISECOND), None);
    }
    assert_eq!(first.state_hash(), second.state_hash());
}
