//! Lending: somebody else (a host's kernel) plays this local APIC for a while, with its registers.
//!
//! Meanwhile the chip keeps IA32_APIC_BASE and LINT0's level, and INTR is that level. Messages that the borrower does
//! not take, and INIT, wait until the registers are back.

use super::registers::{SVR_WRITABLE, reg};
use super::timer::PERIODIC;
use super::{Lapic, Vectors};
use crate::chip::Cx;

/// What is lent: the registers by their offset divided by 16, and IA32_TSC_DEADLINE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The ID is in bits 31-24 in each mode.
    pub page: [u32; 64],
    pub tsc_deadline: u64,
}

/// What a chip remembers of the time before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lent {
    /// The initial count of a timer that had stopped.
    stopped_count: u32,
    /// INIT came.
    pub init: bool,
}

impl Lapic {
    /// Lends the registers. None while something is under way that a borrower cannot know of.
    pub fn lend(&mut self, cx: &mut Cx) -> Option<Registers> {
        self.sync(cx);
        if self.absent || self.state.extint || self.lent.is_some() {
            return None;
        }
        let mut page = [0; 64];
        for register in (0..64).filter(|&register| stored(register)) {
            page[usize::from(register)] = self.read_register(cx, register);
        }
        page[usize::from(reg::ID)] = self.id() << 24;
        let stopped = self.state.timer_next.is_none() && !self.deadline_mode();
        let stopped_count = if stopped { self.state.initial_count } else { 0 };
        if stopped {
            // A count of 0 that is still to be served looks the same.
            page[usize::from(reg::INITIAL_COUNT)] = 0;
        }
        self.lent = Some(Lent { stopped_count, init: false });
        self.update(cx);
        Some(Registers { page, tsc_deadline: self.state.tsc_deadline })
    }

    /// The registers come back as the borrower left them.
    pub fn give_back(&mut self, cx: &mut Cx, registers: &Registers) {
        let Some(lent) = self.lent.take() else { return };
        let get = |register: u8| registers.page[usize::from(register)];
        let vectors = |first: u8| {
            let mut words = std::array::from_fn(|n| get(first + n as u8));
            words[0] &= 0xFFFF_0000;
            Vectors(words)
        };
        let xapic = self.xapic_base().is_some();
        let s = &mut self.state;
        (s.isr, s.tmr, s.irr) = (vectors(reg::ISR), vectors(reg::TMR), vectors(reg::IRR));
        s.tpr = get(reg::TPR) as u8;
        s.svr = get(reg::SVR) & SVR_WRITABLE;
        s.esr = get(reg::ESR);
        s.icr = u64::from(get(reg::ICR_LOW) & !(1 << 12)) | u64::from(get(reg::ICR_HIGH)) << 32;
        if xapic {
            s.xapic_id = (get(reg::ID) >> 24) as u8;
            s.ldr = (get(reg::LDR) >> 24) as u8;
            s.dfr = get(reg::DFR) | 0x0FFF_FFFF;
        }
        for (n, lvt) in (reg::LVT_TIMER..).zip(&mut s.lvt) {
            *lvt = get(n);
        }
        s.divide = get(reg::DIVIDE) & 0xB;
        self.continue_timer(cx, registers, lent.stopped_count);
        if lent.init {
            self.init();
        }
        self.sync(cx);
        self.update(cx);
    }

    fn continue_timer(&mut self, cx: &Cx, registers: &Registers, stopped_count: u32) {
        let get = |register: u8| registers.page[usize::from(register)];
        self.state.timer_next = None;
        self.state.tsc_deadline = 0;
        self.state.initial_count = get(reg::INITIAL_COUNT);
        let count = get(reg::CURRENT_COUNT).min(self.state.initial_count);
        if self.deadline_mode() {
            self.state.tsc_deadline = registers.tsc_deadline;
            self.arm_deadline(cx.now);
        } else if self.timer_mode() == PERIODIC && self.state.initial_count != 0 {
            // A borrower that has noticed a period's end shows the next one's count: 0 is an end that it has not.
            self.continue_count(cx.now, count.max(1));
        } else if count != 0 {
            self.continue_count(cx.now, count);
        } else if self.state.initial_count == 0 {
            self.state.initial_count = stopped_count;
        }
    }

    pub fn is_lent(&self) -> bool {
        self.lent.is_some()
    }
}

/// Registers that hold something, and can be read without effect.
fn stored(register: u8) -> bool {
    matches!(
        register,
        reg::VERSION
            | reg::TPR
            | reg::LDR
            | reg::DFR
            | reg::SVR
            | reg::ISR..=reg::ESR
            | reg::ICR_LOW..=reg::CURRENT_COUNT
            | reg::DIVIDE
    )
}

#[cfg(test)]
mod tests {
    use super::super::{INIT, INTR, LINT0, XAPIC};
    use super::*;
    use crate::bench::Bench;
    use crate::chip::{ApicMessage, Chip, Delivery, Effect, Shorthand};

    const TIMER: usize = reg::LVT_TIMER as usize;

    /// Software-enabled, with a timer of this LVT entry and count.
    fn bench(lvt: u64, count: u64) -> Bench<Lapic> {
        let mut bench = Bench::new(Lapic::new(0, true));
        for (register, value) in
            [(0xF0, 0x1FF), (0x3E0, 0xB), (0x350, 0x700), (0x80, 0x20), (0x320, lvt), (0x380, count)]
        {
            bench.write(XAPIC, register, 4, value);
        }
        bench
    }

    fn lend(bench: &mut Bench<Lapic>) -> Registers {
        bench.with(Lapic::lend).expect("registers")
    }

    /// Whatever the timer does: nothing of the state is lost, and time goes on for it.
    #[test]
    fn unchanged_registers_are_the_same_state() {
        for (lvt, count, later) in
            [(0x40, 1000, 400), (0x2_0040, 1000, 2300), (0x40, 1000, 5000), (0x1_0040, 0, 7)]
        {
            let mut bench = bench(lvt, count);
            bench.run_until(later);
            let before = bench.chip.save();
            let registers = lend(&mut bench);
            assert_eq!(bench.chip.next_event(), None, "the borrower's timer runs");
            bench.with(|chip, cx| chip.give_back(cx, &registers));
            let (count, next) = (bench.read(XAPIC, 0x390, 4), bench.chip.next_event());
            let mut other = Bench::new(Lapic::new(0, true));
            other.chip.restore(&before).expect("its own state");
            other.now = bench.now;
            assert_eq!((count, next), (other.read(XAPIC, 0x390, 4), other.chip.next_event()), "{lvt:x}");
            assert_eq!(bench.read(XAPIC, 0x380, 4), other.read(XAPIC, 0x380, 4), "{lvt:x}");
            assert_eq!(bench.read(XAPIC, 0x80, 4), 0x20);
        }
    }

    #[test]
    fn what_the_borrower_did_is_there() {
        let mut bench = bench(0x40, 1000);
        let mut registers = lend(&mut bench);
        registers.page[TIMER] = 0x2_0055;
        registers.page[usize::from(reg::CURRENT_COUNT)] = 300;
        registers.page[usize::from(reg::IRR) + 2] = 1 << 5;
        bench.now = 10_000;
        bench.with(|chip, cx| chip.give_back(cx, &registers));
        assert!(bench.level(INTR));
        assert_eq!(bench.with(Lapic::acknowledge), Some(0x45));
        assert_eq!(bench.chip.next_event(), Some(10_300));
        bench.run_until(10_300);
        assert_eq!(bench.with(Lapic::acknowledge), Some(0x55));
    }

    #[test]
    fn the_end_of_a_period_that_nobody_noticed_comes_at_once() {
        let mut bench = bench(0x2_0040, 1000);
        let mut registers = lend(&mut bench);
        registers.page[usize::from(reg::CURRENT_COUNT)] = 0;
        bench.now = 10_000;
        bench.with(|chip, cx| chip.give_back(cx, &registers));
        assert_eq!(bench.chip.next_event(), Some(10_001));
        bench.run_until(10_001);
        assert_eq!(bench.with(Lapic::acknowledge), Some(0x40));
        assert_eq!(bench.chip.next_event(), Some(11_001));
    }

    #[test]
    fn a_deadline_that_passed_fires_once() {
        let mut bench = bench(0x4_0040, 0);
        bench.with(|chip, cx| chip.set_tsc_deadline(cx, 5_000));
        let registers = lend(&mut bench);
        assert_eq!(registers.tsc_deadline, 5_000);
        bench.now = 6_000;
        bench.with(|chip, cx| chip.give_back(cx, &registers));
        assert_eq!(bench.with(Lapic::acknowledge), Some(0x40));
        let registers = lend(&mut bench);
        assert_eq!(registers.tsc_deadline, 0);
    }

    #[test]
    fn the_8259a_is_heard_and_init_waits() {
        let mut bench = bench(0x40, 1000);
        bench.write(XAPIC, 0x350, 4, 0x1_0000);
        let registers = lend(&mut bench);
        bench.input(LINT0, true);
        assert!(bench.level(INTR), "whether LINT0 is masked, the borrower knows");
        assert!(bench.chip.extint_pending());
        let init = ApicMessage {
            destination: 0,
            logical: false,
            delivery: Delivery::Init,
            vector: 0,
            level_triggered: false,
            assert: true,
            shorthand: Shorthand::None,
        };
        bench.effects.clear();
        bench.with(|chip, cx| chip.accept(cx, &init));
        assert!(bench.effects.contains(&Effect::Line { pin: INIT, level: true }));
        bench.with(|chip, cx| chip.give_back(cx, &registers));
        assert_eq!(bench.read(XAPIC, 0xF0, 4), 0xFF, "as INIT leaves it");
        assert!(!bench.level(INTR), "LINT0 is masked");
    }
}
