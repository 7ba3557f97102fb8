//! The local APIC, xAPIC and x2APIC (Intel SDM Vol. 3, "Advanced Programmable Interrupt Controller").

mod delivery;
mod lent;
mod msr;
mod registers;
#[cfg(test)]
mod tests;
mod timer;

use serde::{Deserialize, Serialize};

use crate::chip::{Chip, Cx, Nanos, StateError, decode, encode, open_bus};
pub use lent::Registers;
pub use msr::{GeneralProtection, IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST, X2APIC_LAST};
pub use timer::tsc_ticks;

/// Window of the xAPIC registers: 4 KiB at the address in IA32_APIC_BASE.
pub const XAPIC: u8 = 0;
/// Window of the x2APIC MSRs: the offset is the MSR's number less 0x800. Accesses that should raise #GP read
/// as open bus and write nothing; [`Lapic::read_msr`] and [`Lapic::write_msr`] tell them apart.
pub const X2APIC: u8 = 1;

/// Input pin: LINT0, where a PC has the 8259A's INT.
pub const LINT0: u8 = 0;
/// Input pin: LINT1, where a PC has NMI.
pub const LINT1: u8 = 1;

/// Output pin (level): an interrupt can be delivered: a vector above PPR, or ExtINT.
pub const INTR: u8 = 0;
/// Output pin (pulse): NMI.
pub const NMI: u8 = 1;
/// Output pin (pulse): SMI.
pub const SMI: u8 = 2;
/// Output pin (pulse): INIT.
pub const INIT: u8 = 3;
/// Output pin (pulse): a start-up IPI came; [`Lapic::take_sipi_vector`] has its vector.
pub const SIPI: u8 = 4;

/// Frequency of the timer's bus clock.
pub const BUS_HERTZ: u64 = 1_000_000_000;

const VERSION: u16 = 1;

/// IA32_APIC_BASE bits.
const BSP: u64 = 1 << 8;
const EXTD: u64 = 1 << 10;
const EN: u64 = 1 << 11;
const DEFAULT_BASE: u64 = 0xFEE0_0000;

/// Spurious interrupt vector register: software enable.
const SVR_ENABLE: u32 = 1 << 8;
/// Local vector table bits.
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const REMOTE_IRR: u32 = 1 << 14;

/// Error status register bits.
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;

/// Entries of the local vector table that raise interrupts here, by their place in it (0x320 to 0x370).
/// LINT1 follows LINT0; thermal sensor and performance counters never interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lvt {
    Timer = 0,
    Lint0 = 3,
    Error = 5,
}

/// 256 bits, one per vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Vectors([u32; 8]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }
    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }
    fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }
    fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
        Some((index as u32 * 32 + 31 - word.leading_zeros()) as u8)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    base: u64,
    /// xAPIC ID register, bits 31-24. The x2APIC ID is that of construction.
    xapic_id: u8,
    tpr: u8,
    ldr: u8,
    /// Destination format: true for the flat model.
    dfr: u32,
    svr: u32,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    esr: u32,
    /// Errors since the last write of the ESR.
    esr_pending: u32,
    icr: u64,
    lvt: [u32; 6],
    initial_count: u32,
    divide: u32,
    timer_start: Nanos,
    timer_next: Option<Nanos>,
    tsc_deadline: u64,
    tsc_offset: u64,
    lint: [bool; 2],
    /// An ExtINT message came and the 8259A has not been asked yet.
    extint: bool,
    sipi_vector: Option<u8>,
    intr: bool,
}

impl State {
    fn new(id: u32, bootstrap: bool) -> Self {
        State {
            base: DEFAULT_BASE | EN | if bootstrap { BSP } else { 0 },
            xapic_id: id as u8,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xFF,
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt: [MASKED; 6],
            initial_count: 0,
            divide: 0,
            timer_start: 0,
            timer_next: None,
            tsc_deadline: 0,
            tsc_offset: 0,
            lint: [false; 2],
            extint: false,
            sipi_vector: None,
            intr: false,
        }
    }
}

/// The local APIC of one processor.
pub struct Lapic {
    id: u32,
    tsc_khz: u32,
    /// The processor's model has none.
    absent: bool,
    /// Its registers are elsewhere: those in `state` are old.
    lent: Option<lent::Lent>,
    state: State,
}

impl Lapic {
    /// `id` is the initial APIC ID; `bootstrap` sets the BSP flag. The TSC counts nanoseconds.
    pub fn new(id: u32, bootstrap: bool) -> Self {
        Lapic { id, tsc_khz: 1_000_000, absent: false, lent: None, state: State::new(id, bootstrap) }
    }

    /// The processor's TSC has `khz` ticks a millisecond (not 0). Call before the timer is used.
    pub fn set_tsc_frequency(&mut self, khz: u32) {
        self.tsc_khz = khz.max(1);
    }

    /// The processor's model has no local APIC: its pins are INTR and NMI for ever.
    pub fn set_absent(&mut self) {
        self.absent = true;
    }

    /// IA32_APIC_BASE.EN, on a processor that has it.
    pub fn enabled(&self) -> bool {
        !self.absent && self.state.base & EN != 0
    }

    /// x2APIC mode.
    pub fn x2apic(&self) -> bool {
        self.enabled() && self.state.base & EXTD != 0
    }

    /// Address of the xAPIC window, where one is decoded.
    pub fn xapic_base(&self) -> Option<u64> {
        (self.enabled() && !self.x2apic()).then_some(self.state.base & 0x000F_FFFF_FFFF_F000)
    }

    /// The APIC ID that messages name.
    pub fn id(&self) -> u32 {
        if self.x2apic() { self.id } else { u32::from(self.state.xapic_id) }
    }

    /// The vector of the start-up IPI that came last.
    pub fn take_sipi_vector(&mut self) -> Option<u8> {
        self.state.sipi_vector.take()
    }

    /// CR8: bits 7-4 of the TPR.
    pub fn cr8(&self) -> u8 {
        self.state.tpr >> 4
    }

    pub fn set_cr8(&mut self, cx: &mut Cx, value: u8) {
        self.state.tpr = value << 4;
        self.update(cx);
    }

    /// Task priority register.
    pub fn tpr(&self) -> u8 {
        self.state.tpr
    }

    pub fn set_tpr(&mut self, cx: &mut Cx, value: u8) {
        self.state.tpr = value;
        self.update(cx);
    }

    /// What INIT does: everything but the APIC ID and IA32_APIC_BASE is as after power-on.
    fn init(&mut self) {
        if let Some(lent) = &mut self.lent {
            lent.init = true;
            return;
        }
        let old = &self.state;
        self.state = State {
            base: old.base,
            xapic_id: old.xapic_id,
            tsc_offset: old.tsc_offset,
            lint: old.lint,
            intr: old.intr,
            ..State::new(self.id, false)
        };
    }
}

impl Chip for Lapic {
    fn name(&self) -> &'static str {
        "lapic"
    }

    fn reset(&mut self, cx: &mut Cx) {
        let (lint, tsc_offset) = (self.state.lint, self.state.tsc_offset);
        self.state = State { lint, tsc_offset, ..State::new(self.id, self.state.base & BSP != 0) };
        cx.line(INTR, false);
        self.update(cx);
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        match window {
            XAPIC if self.xapic_base().is_some() && offset < 0x1000 && offset & 0xF < 4 => {
                self.sync(cx);
                let value = self.read_register(cx, (offset >> 4) as u8);
                u64::from(value) >> (offset % 4 * 8) & open_bus(size)
            }
            X2APIC if offset < 0x100 => {
                self.read_msr(cx, X2APIC_FIRST + offset as u32).unwrap_or(open_bus(size)) & open_bus(size)
            }
            _ => open_bus(size),
        }
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        match window {
            // Other sizes and alignments are undefined.
            XAPIC
                if self.xapic_base().is_some()
                    && offset < 0x1000
                    && offset.is_multiple_of(16)
                    && size >= 4 =>
            {
                self.sync(cx);
                self.write_register(cx, (offset >> 4) as u8, value as u32);
                self.update(cx);
            }
            X2APIC if offset < 0x100 => {
                let _ = self.write_msr(cx, X2APIC_FIRST + offset as u32, value);
            }
            _ => {}
        }
    }

    fn input(&mut self, cx: &mut Cx, pin: u8, level: bool) {
        self.sync(cx);
        self.lint(cx, pin, level);
        self.update(cx);
    }

    fn next_event(&self) -> Option<Nanos> {
        self.state.timer_next.filter(|_| self.lvt(Lvt::Timer) & MASKED == 0 && self.lent.is_none())
    }

    fn event(&mut self, cx: &mut Cx) {
        self.sync(cx);
        self.update(cx);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let state: State = decode(self.name(), VERSION, bytes)?;
        let mode = state.base & (EN | EXTD);
        let reserved = state.irr.0[0] & 0xFFFF | state.isr.0[0] & 0xFFFF;
        if mode == EXTD || state.base & msr::BASE_RESERVED != 0 || reserved != 0 || state.divide & !0xB != 0 {
            return Err(StateError::Damaged { chip: self.name(), reason: "register out of range".into() });
        }
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        let s = &self.state;
        let vectors = |bits: &Vectors| {
            let set: Vec<String> =
                (0..=255).filter(|&v| bits.contains(v)).map(|v| format!("{v:02x}")).collect();
            set.join(" ")
        };
        format!(
            "id={} base={:x} svr={:x} tpr={:02x} ppr={:02x} ldr={:x} dfr={:x} esr={:x} icr={:x}\n\
             timer={:x} thermal={:x} pmc={:x} lint0={:x} lint1={:x} error={:x}\n\
             count={} divide={:x} next={:?}\nirr: {}\nisr: {}\n",
            self.id(),
            s.base,
            s.svr,
            s.tpr,
            self.ppr(),
            self.logical_id(),
            s.dfr,
            s.esr,
            s.icr,
            s.lvt[0],
            s.lvt[1],
            s.lvt[2],
            s.lvt[3],
            s.lvt[4],
            s.lvt[5],
            s.initial_count,
            s.divide,
            s.timer_next,
            vectors(&s.irr),
            vectors(&s.isr)
        )
    }
}
