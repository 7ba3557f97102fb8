//! The APIC timer (SDM Vol. 3, "APIC Timer"): one-shot, periodic, TSC-deadline.

use super::{Lapic, Lvt};
use crate::chip::{Cx, Nanos};

/// Timer modes in the LVT, bits 18-17.
const ONE_SHOT: u32 = 0;
pub(super) const PERIODIC: u32 = 1;
const TSC_DEADLINE: u32 = 2;

/// Least time between two periodic interrupts: faster ones would be lost in each other anyway.
const LEAST_PERIOD: Nanos = 1_000;

/// Ticks of a TSC of `khz` in a time.
pub fn tsc_ticks(time: Nanos, khz: u32) -> u64 {
    (u128::from(time) * u128::from(khz) / 1_000_000) as u64
}

impl Lapic {
    pub(super) fn timer_mode(&self) -> u32 {
        self.lvt(Lvt::Timer) >> 17 & 3
    }

    pub(super) fn deadline_mode(&self) -> bool {
        self.timer_mode() == TSC_DEADLINE
    }

    /// Bus clocks per count: 2, 4, …, 128, and 1 for 0b1011.
    fn divider(&self) -> u64 {
        let code = self.state.divide & 3 | self.state.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    /// From the initial count to zero.
    fn timer_period(&self) -> Nanos {
        u64::from(self.state.initial_count) * self.divider()
    }

    /// The processor's TSC.
    fn tsc(&self, now: Nanos) -> u64 {
        tsc_ticks(now, self.tsc_khz).wrapping_add(self.state.tsc_offset)
    }

    /// What is added to the ticks of virtual time to give the TSC (IA32_TSC and IA32_TSC_ADJUST writes).
    pub fn set_tsc_offset(&mut self, cx: &mut Cx, offset: u64) {
        self.sync(cx);
        self.state.tsc_offset = offset;
        if self.deadline_mode() {
            self.arm_deadline(cx.now);
        }
        self.sync(cx);
        self.update(cx);
    }

    /// IA32_TSC_DEADLINE: 0 when disarmed.
    pub fn tsc_deadline(&self) -> u64 {
        self.state.tsc_deadline
    }

    /// Arms the timer for a TSC value; 0 disarms it. Without effect outside TSC-deadline mode.
    pub fn set_tsc_deadline(&mut self, cx: &mut Cx, deadline: u64) {
        self.sync(cx);
        if self.deadline_mode() {
            self.state.tsc_deadline = deadline;
            self.arm_deadline(cx.now);
        }
        self.sync(cx);
        self.update(cx);
    }

    pub(super) fn arm_deadline(&mut self, now: Nanos) {
        let deadline = self.state.tsc_deadline;
        let ticks = u128::from(deadline.saturating_sub(self.tsc(now)));
        let wait = (ticks * 1_000_000).div_ceil(u128::from(self.tsc_khz)).try_into().unwrap_or(Nanos::MAX);
        self.state.timer_next = (deadline != 0).then(|| now.saturating_add(wait));
    }

    /// A write of the initial count register.
    pub(super) fn set_initial_count(&mut self, now: Nanos, count: u32) {
        if self.deadline_mode() {
            return;
        }
        self.state.initial_count = count;
        self.state.timer_start = now;
        self.arm(now);
    }

    /// A write of the divide configuration register: the count goes on from the start.
    pub(super) fn set_divide(&mut self, now: Nanos, value: u32) {
        let running = self.state.timer_next.is_some() && !self.deadline_mode();
        let count = self.current_count(now);
        self.state.divide = value & 0xB;
        if running {
            self.continue_count(now, count);
        }
    }

    /// A write of the timer's LVT entry that may change its mode. The count, `count` before, goes on from where it is;
    /// one that has come to zero stays there.
    pub(super) fn timer_mode_changed(&mut self, now: Nanos, old: u32, count: u32) {
        let new = self.timer_mode();
        if old == new {
            return;
        }
        if old == TSC_DEADLINE || new == TSC_DEADLINE {
            self.state.timer_next = None;
            self.state.tsc_deadline = 0;
            self.state.initial_count = 0;
        } else if self.state.timer_next.is_some() {
            self.continue_count(now, count);
        }
    }

    /// Moves the timer's start so that its count is `count` now.
    pub(super) fn continue_count(&mut self, now: Nanos, count: u32) {
        let done = u64::from(self.state.initial_count.saturating_sub(count));
        self.state.timer_start = now.saturating_sub(done * self.divider());
        self.arm(now);
    }

    fn arm(&mut self, now: Nanos) {
        let period = self.timer_period();
        self.state.timer_next = match self.timer_mode() {
            _ if period == 0 => None,
            PERIODIC => {
                let elapsed = now.saturating_sub(self.state.timer_start);
                let period = period.max(LEAST_PERIOD);
                let end = (elapsed / period + 1).saturating_mul(period);
                Some(self.state.timer_start.saturating_add(end))
            }
            _ => Some(self.state.timer_start.saturating_add(period)),
        };
    }

    pub(super) fn current_count(&self, now: Nanos) -> u32 {
        let initial = u64::from(self.state.initial_count);
        if self.deadline_mode() || initial == 0 || self.state.timer_next.is_none() {
            return 0;
        }
        let elapsed = now.saturating_sub(self.state.timer_start) / self.divider();
        let left = match self.timer_mode() {
            PERIODIC => initial - elapsed % initial,
            ONE_SHOT => initial.saturating_sub(elapsed),
            _ => 0,
        };
        left as u32
    }

    /// Lets the timer come to `cx.now`; interrupts missed on the way are one.
    pub(super) fn sync(&mut self, cx: &mut Cx) {
        if self.is_lent() || self.state.timer_next.is_none_or(|next| next > cx.now) {
            return;
        }
        self.state.timer_next = None;
        if self.deadline_mode() {
            self.state.tsc_deadline = 0;
        } else if self.timer_mode() == PERIODIC && cx.now != Nanos::MAX {
            self.arm(cx.now);
        }
        self.local_interrupt(Lvt::Timer);
    }
}
