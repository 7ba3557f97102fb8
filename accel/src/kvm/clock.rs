//! The guest's time-stamp counter: the machine's clock and the vCPU's offset, as an offset to the host's TSC.
//!
//! All vCPUs share the first part, so that their counters agree to the tick. It is found anew when the machine's clock
//! has stood still for a while.
//!
//! Where KVM ignores offsets, the guest sees the host's TSC, and IA32_TSC's offset in the state follows it.

use super::hardware::Hardware;
use super::vm::{Vm, locked};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use vmm_sys_util::errno::Error;

/// The host's time in ticks of a clock of `khz`.
fn host_ticks(khz: u32) -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let time = ORIGIN.get_or_init(Instant::now).elapsed().as_nanos();
    (time * u128::from(khz) / 1_000_000) as u64
}

/// How far a guest's TSC may jump forward where KVM cannot set it, and how long a switch may wait for the host's to
/// come up with it, in milliseconds.
const JUMP: u64 = 1_000;
const WAIT: u64 = 50;

/// Whether a guest whose TSC shows `guest` can go on with the host's, which `now` tells, of `khz`. A little that it
/// is ahead is waited for, as time stands for the guest: no TSC goes back.
pub fn meet(guest: u64, khz: u32, now: impl Fn() -> Result<u64, String>) -> Result<(), String> {
    let khz = u64::from(khz.max(1));
    let ahead = guest.wrapping_sub(now()?) as i64;
    let milliseconds = ahead.unsigned_abs() / khz;
    if milliseconds > if ahead > 0 { WAIT } else { JUMP } {
        let direction = if ahead > 0 { "back" } else { "forward" };
        return Err(format!(
            "the host's KVM cannot set the time-stamp counter: the guest's would jump {direction} by {milliseconds} ms"
        ));
    }
    if ahead > 0 {
        std::thread::sleep(Duration::from_millis(milliseconds + 1));
    }
    match guest.wrapping_sub(now()?) as i64 {
        1.. => Err("the host's time-stamp counter does not go on".into()),
        _ => Ok(()),
    }
}

/// See the head of this file.
pub struct Tsc {
    /// In ticks a millisecond.
    khz: u32,
    /// KVM heeds offsets.
    settable: bool,
    /// The vCPU's offset that was applied, and how far the machine's clock was behind the host's time then.
    applied: Option<(u64, i64)>,
}

impl Tsc {
    pub fn new(khz: u32, settable: bool) -> Self {
        Tsc { khz, settable, applied: None }
    }

    /// Before the guest runs: has its TSC show `clock() + offset`. Returns another offset if that is how it is.
    pub fn follow(
        &mut self,
        hardware: &Hardware,
        vm: &Vm,
        clock: impl Fn() -> u64,
        offset: u64,
    ) -> Result<u64, String> {
        let behind = host_ticks(self.khz).wrapping_sub(clock()) as i64;
        // A millisecond: less is the time between two looks at clocks.
        let same = |before: i64| behind.wrapping_sub(before).unsigned_abs() < u64::from(self.khz);
        if self.applied.is_some_and(|(applied, before)| applied == offset && same(before)) {
            return Ok(offset);
        }
        let failed = |e: Error| format!("KVM refuses to set the TSC: {e}");
        // Both at the same time, as nearly as may be.
        let ahead = || hardware.time_stamp().map(|tsc| tsc.wrapping_sub(clock())).map_err(failed);
        if !self.settable {
            let offset = ahead()?;
            self.applied = Some((offset, behind));
            return Ok(offset);
        }
        let mut shared = locked(&vm.clock);
        let base = match *shared {
            Some((base, before)) if same(before) => base,
            _ => hardware.tsc_offset().map_err(failed)?.wrapping_sub(ahead()?),
        };
        *shared = Some((base, behind));
        hardware.set_tsc_offset(base.wrapping_add(offset)).map_err(failed)?;
        self.applied = Some((offset, behind));
        Ok(offset)
    }

    /// The vCPU's offset is one that [`Tsc::follow`] has found.
    pub fn is_applied(&self) -> bool {
        self.applied.is_some()
    }

    /// The vCPU was given another state.
    pub fn forget(&mut self) {
        self.applied = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest so many ticks of a 1 kHz clock ahead of the host's.
    fn ahead(ticks: i64) -> Result<(), String> {
        let begun = Instant::now();
        meet(10_000u64.wrapping_add_signed(ticks), 1, || Ok(10_000 + begun.elapsed().as_millis() as u64))
    }

    #[test]
    fn a_tsc_that_cannot_be_set_must_be_met() {
        assert_eq!(ahead(0), Ok(()));
        assert_eq!(ahead(-900), Ok(()));
        assert_eq!(ahead(20), Ok(()));
        assert!(ahead(-5_000).is_err_and(|why| why.contains("forward by 5000 ms")));
        assert!(ahead(500).is_err_and(|why| why.contains("back by 500 ms")));
        assert!(meet(10, 1, || Ok(9)).is_err_and(|why| why.contains("does not go on")));
    }
}
