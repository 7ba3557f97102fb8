//! The guest's time-stamp counter: the machine's clock and the vCPU's offset, as an offset to the host's TSC.
//!
//! All vCPUs share the first part, so that their counters agree to the tick. It is found anew when the machine's clock
//! has stood still for a while.
//!
//! Where KVM ignores offsets, the guest sees the host's TSC, and IA32_TSC's offset in the state follows it.

use super::hardware::Hardware;
use super::vm::{Vm, locked};
use std::sync::OnceLock;
use std::time::Instant;
use vmm_sys_util::errno::Error;

/// The host's time in ticks of a clock of `khz`.
fn host_ticks(khz: u32) -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let time = ORIGIN.get_or_init(Instant::now).elapsed().as_nanos();
    (time * u128::from(khz) / 1_000_000) as u64
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

    /// The vCPU was given another state.
    pub fn forget(&mut self) {
        self.applied = None;
    }
}
