//! Any bytes as one instruction in each mode: if it retires without a branch, RIP has moved by the length that iced gives.
//! What is no instruction raises an exception.

use super::Target;
use crate::flat::Flat;
use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl};
use std::cell::RefCell;
use trimaran_cpu::state::{Activity, CpuState, attr, cr0, efer, gpr, seg};

pub const TARGET: Target = Target { name: "decoder", run, longest: 17, dress: |_, _| () };

const CODE: u64 = 0x1000;
const STACK: u64 = 0x8000;
const TABLES: u64 = 0x1_0000;

thread_local! {
    static MACHINE: RefCell<Flat> = RefCell::new(Flat::new(1 << 20));
}

fn run(data: &[u8]) {
    let Some((&mode, bytes)) = data.split_first() else { return };
    let bits = [16, 32, 64][usize::from(mode % 3)];
    let x = Decoder::with_ip(bits, bytes, CODE, DecoderOptions::NONE);
    let mut decoder = x;
    let x = decoder.decode();
    let no_instruction = decoder.last_error() == DecoderError::InvalidInstruction;
    if decoder.last_error() == DecoderError::NoMoreBytes {
        // What follows it in memory is not in the input.
        return;
    }
    MACHINE.with_borrow_mut(|machine| {
        machine.ram.write(CODE, bytes);
        machine.vcpu.state = state(bits, machine);
        machine.vcpu.state_loaded();
        let before = (machine.vcpu.counters.exceptions, machine.vcpu.counters.interrupts);
        machine.vcpu.run(1);
        let counters = machine.vcpu.counters;
        let quiet = before == (counters.exceptions, counters.interrupts);
        assert!(!(quiet && no_instruction), "{bits} bits: {bytes:02x?} is no instruction, but retires");
        let rip = machine.vcpu.state_whole().gpr[gpr::RIP];
        let repeats = x.has_rep_prefix() || x.has_repne_prefix();
        if quiet && x.flow_control() == FlowControl::Next && !(repeats && rip == CODE) {
            let len = rip.wrapping_sub(CODE);
            assert_eq!(len, x.len() as u64, "{bits} bits: the length of {bytes:02x?}");
        }
    });
}

/// At [`CODE`] in a mode, without tables for exceptions: the first ends in a shutdown, which is one exception, too.
fn state(bits: u32, machine: &Flat) -> CpuState {
    let mut s = CpuState::reset(0, true);
    (s.gpr[gpr::RIP], s.gpr[gpr::RSP]) = (CODE, STACK);
    s.activity = Activity::Running;
    s.seg[seg::CS].selector = 0;
    s.seg[seg::CS].base = 0;
    if bits == 16 {
        return s;
    }
    s.cr0 |= cr0::PE;
    s.idtr.limit = 0;
    let flat = attr::P | attr::S | attr::RW | attr::A | attr::G;
    for n in 0..6 {
        s.seg[n].limit = !0;
        s.seg[n].attributes = flat | attr::DB;
    }
    s.seg[seg::CS].attributes = flat | attr::CODE | if bits == 64 { attr::L } else { attr::DB };
    if bits == 64 {
        machine.ram.write(TABLES, &(TABLES + 0x1003).to_le_bytes());
        machine.ram.write(TABLES + 0x1000, &0x83u64.to_le_bytes());
        (s.cr3, s.cr4) = (TABLES, 0x6A0);
        s.cr0 |= cr0::PG;
        s.msr.efer = efer::LME | efer::LMA;
    }
    s
}
