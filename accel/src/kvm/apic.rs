//! The local APIC in the kernel ("split irqchip"): 8259As and I/O APIC stay the machine's, and so do all chips while the
//! interpreter has a turn or the machine stands. For machines with one processor: an interrupt that another sends from
//! inside the kernel between two exchanges of registers would be lost.

use super::engine::KvmVcpu;
use super::exits::Exit;
use super::vm::{Vm, locked};
use crate::Unavailable;
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MP_STATE_RUNNABLE, KvmIrqRouting, Msrs, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msr_entry,
};
use kvm_ioctls::VmFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trimaran_cpu::bus::{ApicRegisters, ApicSink};
use trimaran_cpu::state::Activity;
use vmm_sys_util::errno::{self, Error};

const IA32_TSC_DEADLINE: u32 = 0x6E0;
/// Kicks that can be under way, and more.
const MANY: u32 = 100;
/// How late a host's timers may be, with another hypervisor under it.
const LATE: Duration = Duration::from_micros(100);
/// Legal vectors begin here. Each has a pin of its own at the I/O APIC that KVM thinks of.
const FIRST_VECTOR: u8 = 16;
const PINS: u64 = 256 - FIRST_VECTOR as u64;
/// Bit of a message's data.
const LEVEL: u32 = 1 << 15;

/// Registers by their offset divided by 16.
const ISR: usize = 0x10;
const TMR: usize = 0x18;
const IRR: usize = 0x20;
const LVT_TIMER: usize = 0x32;
const LVT_LINT0: usize = 0x35;
const INITIAL_COUNT: usize = 0x38;
const CURRENT_COUNT: usize = 0x39;
const DIVIDE: usize = 0x3E;
const MASKED: u32 = 1 << 16;
const DELIVERY: u32 = 7 << 8;
const EXTINT: u32 = 7 << 8;

/// Has the local APICs of a virtual machine without vCPUs be the kernel's.
pub fn split(vm: &VmFd) -> errno::Result<()> {
    vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [PINS, 0, 0, 0], ..Default::default() })
}

/// Which vectors end in an exit when they are finished.
#[derive(Default)]
pub struct LevelVectors(Vec<u8>);

impl Vm {
    /// Sends a message to the kernel's APICs.
    pub fn signal(&self, address: u32, data: u32) -> Result<(), Unavailable> {
        let refused = |operation| move |e: Error| Unavailable::Refused { operation, error: e.to_string() };
        if data & LEVEL != 0 {
            self.watch(&[data as u8]).map_err(refused("an interrupt's route"))?;
        }
        let msi = kvm_msi { address_lo: address, data, ..Default::default() };
        self.fd.signal_msi(msi).map_err(refused("an interrupt message"))?;
        Ok(())
    }

    /// The ends of level-triggered interrupts of these vectors are exits from now on.
    fn watch(&self, vectors: &[u8]) -> errno::Result<()> {
        let mut level = locked(&self.level);
        let before = level.0.len();
        for &vector in vectors {
            if vector >= FIRST_VECTOR && !level.0.contains(&vector) {
                level.0.push(vector);
            }
        }
        if level.0.len() == before {
            return Ok(());
        }
        let route = |&vector: &u8| {
            let mut entry = kvm_irq_routing_entry {
                gsi: u32::from(vector - FIRST_VECTOR),
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            // A broadcast: whoever gets the interrupt.
            entry.u.msi.address_lo = 0xFEEF_F000;
            entry.u.msi.data = u32::from(vector) | LEVEL;
            entry
        };
        let routes: Vec<kvm_irq_routing_entry> = level.0.iter().map(route).collect();
        let routing = KvmIrqRouting::from_entries(&routes).map_err(|_| Error::new(libc::EINVAL))?;
        self.fd.set_gsi_routing(&routing)
    }
}

/// The kernel takes messages for a vCPU.
struct Messages(Arc<Vm>);

impl ApicSink for Messages {
    fn message(&self, address: u32, data: u32) {
        if let Err(e) = self.0.signal(address, data) {
            tracing::error!(target: "kvm", "an interrupt is lost: {e}");
        }
    }
}

/// The vCPU's side.
pub struct Apic {
    sink: Arc<dyn ApicSink>,
    /// The kernel has the registers.
    lent: bool,
    /// How often it got them.
    pub times: u64,
}

impl Apic {
    /// None where the chip does it all.
    pub fn new(vm: &Arc<Vm>) -> Option<Self> {
        vm.split.then(|| Apic { sink: Arc::new(Messages(vm.clone())), lent: false, times: 0 })
    }
}

fn failed(what: &'static str) -> impl Fn(Error) -> String {
    move |error| format!("KVM refuses {what}: {error}")
}

impl KvmVcpu {
    pub(super) fn apic_is_lent(&self) -> bool {
        self.apic.as_ref().is_some_and(|apic| apic.lent)
    }

    /// Before guest code runs: the kernel has the local APIC. False: for now it cannot.
    pub(super) fn lend_apic(&mut self) -> Result<bool, String> {
        let Some(apic) = self.apic.as_mut().filter(|apic| !apic.lent) else { return Ok(true) };
        let (mut failure, mut external) = (None, false);
        let (vm, fd) = (&self.vm, &self.hardware.fd);
        let lent = self.vcpu.bus.lend_apic(&apic.sink, &mut |registers| {
            external = registers.page[LVT_LINT0] & (MASKED | DELIVERY) == EXTINT;
            let taken = vm.watch(&open(registers)).and_then(|()| set_registers(fd, registers));
            failure = taken.err();
            failure.is_none()
        });
        if let Some(e) = failure {
            return Err(failed("the local APIC's registers")(e));
        }
        if !lent {
            return Ok(false);
        }
        (apic.lent, apic.times) = (true, apic.times + 1);
        if self.fetched && self.vcpu.state.activity == Activity::Running {
            let running = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
            self.hardware.fd.set_mp_state(running).map_err(failed("to let the processor run"))?;
        }
        // Otherwise KVM would take the vector, and keep it.
        self.ready &= external;
        Ok(true)
    }

    /// The chip has the local APIC again, with all that has come.
    pub(super) fn give_back_apic(&mut self) -> Result<(), String> {
        if !self.apic_is_lent() {
            return Ok(());
        }
        self.finish_access()?;
        // An interrupt's delivery may begin.
        self.fetched = false;
        // It may only wake a vCPU that has halted.
        self.take_in()?;
        let mut before = self.apic_registers()?;
        let mut since = Instant::now();
        loop {
            if ended(&before) {
                std::thread::sleep(LATE);
            }
            self.take_in()?;
            let (mut failure, mut now) = (None, None);
            let fd = &self.hardware.fd;
            let back = self.vcpu.bus.give_back_apic(&mut || match get_registers(fd) {
                Ok(registers) => {
                    now = Some(registers);
                    still(&before, &registers, since.elapsed()).then_some(registers)
                }
                Err(e) => {
                    failure = Some(e);
                    None
                }
            });
            if let Some(e) = failure {
                return Err(failed("to tell the local APIC's registers")(e));
            }
            if back {
                break;
            }
            before = now.unwrap_or(before);
            since = Instant::now();
        }
        self.ready = self.hardware.ready_for_interrupt();
        if let Some(apic) = &mut self.apic {
            apic.lent = false;
        }
        Ok(())
    }

    fn apic_registers(&self) -> Result<ApicRegisters, String> {
        get_registers(&self.hardware.fd).map_err(failed("to tell the local APIC's registers"))
    }

    /// KVM takes in what waits for the vCPU: an expired timer goes to the IRR, an external interrupt to the events whose
    /// delivery has begun. No instruction runs.
    fn take_in(&mut self) -> Result<(), String> {
        let _signal = self.hardware.hold_signal().map_err(failed("to hold a signal"))?;
        self.hardware.request_interrupt_window(false);
        for _ in 0..MANY {
            self.hardware.set_immediate_exit(false);
            match self.serve_run()? {
                // The end of a level-triggered interrupt may still be told, and a kick that was under way keeps KVM from
                // looking: once more.
                Exit::Served if !self.hardware.was_interrupted() || self.hardware.takes_immediate_exit() => {}
                Exit::Served => return Ok(()),
                other => return Err(format!("KVM ran guest code although a signal waits ({other:?})")),
            }
        }
        Err("KVM does not heed a signal".into())
    }
}

/// Vectors that are in service or requested, and level-triggered.
fn open(registers: &ApicRegisters) -> Vec<u8> {
    let word = |first: usize, n: u8| registers.page[first + usize::from(n / 32)] >> (n % 32) & 1 != 0;
    let open = |&v: &u8| word(TMR, v) && (word(ISR, v) || word(IRR, v));
    (FIRST_VECTOR..=255).filter(open).collect()
}

/// A one-shot timer has come to its end; whether the kernel has noticed, the registers do not say.
fn ended(registers: &ApicRegisters) -> bool {
    let page = &registers.page;
    let (lvt, initial, count) = (page[LVT_TIMER], page[INITIAL_COUNT], page[CURRENT_COUNT]);
    lvt & MASKED == 0 && lvt >> 17 & 3 == 0 && initial != 0 && count == 0
}

/// Whether a timer cannot have expired between two looks, the first of which was `time` ago, unless the first shows it.
fn still(before: &ApicRegisters, now: &ApicRegisters, time: Duration) -> bool {
    const PERIODIC: u32 = 1;
    let (lvt, initial) = (now.page[LVT_TIMER], now.page[INITIAL_COUNT]);
    let counts = [before, now].map(|registers| registers.page[CURRENT_COUNT]);
    match lvt >> 17 & 3 {
        _ if lvt & MASKED != 0 || initial == 0 => true,
        0 => counts[0] == 0 || counts[1] != 0,
        PERIODIC => {
            let code = now.page[DIVIDE] & 3 | now.page[DIVIDE] >> 1 & 4;
            let period = Duration::from_nanos(u64::from(initial) << ((code + 1) & 7));
            // Shorter ones are lost in each other.
            counts[1] <= counts[0] && time < period || period < Duration::from_micros(200)
        }
        // A deadline that is not served is there.
        _ => true,
    }
}

fn get_registers(fd: &kvm_ioctls::VcpuFd) -> errno::Result<ApicRegisters> {
    let lapic = fd.get_lapic()?;
    let page = std::array::from_fn(|n| {
        let byte = |i: usize| u32::from(lapic.regs[n * 16 + i] as u8) << (i * 8);
        byte(0) | byte(1) | byte(2) | byte(3)
    });
    let entry = kvm_msr_entry { index: IA32_TSC_DEADLINE, ..Default::default() };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::EINVAL))?;
    fd.get_msrs(&mut msrs)?;
    Ok(ApicRegisters { page, tsc_deadline: msrs.as_slice()[0].data })
}

fn set_registers(fd: &kvm_ioctls::VcpuFd, registers: &ApicRegisters) -> errno::Result<()> {
    let mut lapic = kvm_lapic_state::default();
    for (n, value) in registers.page.iter().enumerate() {
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            lapic.regs[n * 16 + i] = byte as _;
        }
    }
    // Twice: the first time the timer's mode may change, which clears the count.
    fd.set_lapic(&lapic)?;
    fd.set_lapic(&lapic)?;
    let entry =
        kvm_msr_entry { index: IA32_TSC_DEADLINE, data: registers.tsc_deadline, ..Default::default() };
    let msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::EINVAL))?;
    fd.set_msrs(&msrs)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_may_have_expired_is_looked_at_again() {
        let at = |lvt, count| {
            let mut page = [0; 64];
            (page[LVT_TIMER], page[INITIAL_COUNT], page[CURRENT_COUNT], page[DIVIDE]) =
                (lvt, 5_000_000, count, 0xB);
            ApicRegisters { page, tsc_deadline: 0 }
        };
        let quiet = |lvt, before, now, us| still(&at(lvt, before), &at(lvt, now), Duration::from_micros(us));
        assert!(quiet(0x40, 500, 400, 1) && quiet(0x40, 0, 0, 1));
        assert!(!quiet(0x40, 500, 0, 1));
        assert!(quiet(0x2_0040, 500, 400, 1));
        assert!(!quiet(0x2_0040, 500, 900, 1) && !quiet(0x2_0040, 500, 400, 5_001));
        assert!(quiet(0x3_0040, 500, 900, 1), "masked");
        assert!(quiet(0x4_0040, 0, 0, 1), "a deadline");
        assert!(
            ended(&at(0x40, 0))
                && !ended(&at(0x40, 1))
                && !ended(&at(0x4_0040, 0))
                && !ended(&at(0x1_0040, 0))
        );
    }
}
