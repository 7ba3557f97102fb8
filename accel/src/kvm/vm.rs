//! A virtual machine: its memory slots, its MSR filter, and the offset that makes all its TSCs one clock.
#![allow(unsafe_code)]

use super::apic::LevelVectors;
use super::host::{Host, refused};
use crate::Unavailable;
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trimaran_cpu::bus::{Bus, MemoryRange};
use trimaran_cpu::ram::{PAGE, Ram};
use vmm_sys_util::errno;

const IA32_TSC: u32 = 0x10;
const IA32_TSC_DEADLINE: u32 = 0x6E0;
const ONE_MIB: u64 = 1 << 20;
/// An address beyond what guests' page tables can hold.
const SPARE: u64 = 1 << 45;

/// The lock's content even if a thread panicked with it.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See the head of this file.
pub struct Vm {
    pub host: Arc<Host>,
    pub fd: VmFd,
    pub ram: Arc<Ram>,
    bus: Arc<dyn Bus>,
    /// KVM keeps a log of written pages. It costs the host's large pages, and is kept where the interpreter has many turns.
    pub log_dirty: bool,
    /// The kernel has the local APIC; see `apic.rs`.
    pub split: bool,
    pub level: Mutex<LevelVectors>,
    slots: Mutex<Vec<Option<MemoryRange>>>,
    /// vCPUs that were made; KVM makes each only once.
    pub made: Mutex<Vec<usize>>,
    /// What KVM adds to the host's TSC to give the machine's clock, and how far that clock was behind the host's time.
    pub clock: Mutex<Option<(u64, i64)>>,
}

/// The MSRs that KVM keeps, with the processor's own: all others are exits, and [`trimaran_cpu::Vcpu`] answers.
pub const KEPT: [u32; 10] = [
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0xC000_0081, // IA32_STAR
    0xC000_0082, // IA32_LSTAR
    0xC000_0083, // IA32_CSTAR
    0xC000_0084, // IA32_FMASK
    0xC000_0102, // IA32_KERNEL_GS_BASE
    0xC000_0103, // IA32_TSC_AUX
    0xC000_0080, // IA32_EFER, among the system registers
];

/// `split`: the local APIC is the kernel's, its deadline too.
pub fn msr_filter(vm: &VmFd, split: bool) -> errno::Result<()> {
    let reasons = KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN;
    let args = [u64::from(reasons), 0, 0, 0];
    vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, args, ..Default::default() })?;
    let both = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let range =
        |flags, base, bitmap: &'static [u8; 1], msr_count| MsrFilterRange { flags, base, msr_count, bitmap };
    let mut ranges = vec![
        range(both, 0x174, &[0b111], 3),
        range(both, 0xC000_0080, &[0b1_1111], 5),
        // FS.base, GS.base and the two above.
        range(both, 0xC000_0100, &[0b1111], 4),
        // Writes of the TSC move our offset.
        range(MsrFilterRangeFlags::READ, IA32_TSC, &[1], 1),
    ];
    if split {
        ranges.push(range(both, IA32_TSC_DEADLINE, &[1], 1));
    }
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
}

impl Vm {
    pub fn new(
        host: Arc<Host>,
        ram: Arc<Ram>,
        bus: Arc<dyn Bus>,
        log_dirty: bool,
        split: bool,
    ) -> Result<Arc<Vm>, Unavailable> {
        let fd = host.create_vm(split)?;
        let (slots, made, clock, level) = Default::default();
        let vm = Vm { host, fd, ram, bus, log_dirty, split, level, slots, made, clock };
        vm.map_memory()?;
        Ok(Arc::new(vm))
    }

    /// Brings the memory slots up to the machine's map.
    pub fn map_memory(&self) -> Result<(), Unavailable> {
        let wanted = pieces(&self.bus.memory_ranges());
        let mut slots = locked(&self.slots);
        for (number, slot) in slots.iter_mut().enumerate() {
            if let Some(range) = slot.take_if(|range| !wanted.contains(range)) {
                self.set_slot(number, &range, 0)?;
            }
        }
        for range in wanted {
            if slots.contains(&Some(range)) {
                continue;
            }
            let number = slots.iter().position(Option::is_none).unwrap_or(slots.len());
            if number == self.spare_slot() {
                return Err(Unavailable::Refused {
                    operation: "another memory slot",
                    error: format!("it has {number}"),
                });
            }
            self.set_slot(number, &range, range.len)?;
            if number == slots.len() {
                slots.push(None);
            }
            slots[number] = Some(range);
        }
        Ok(())
    }

    /// Maps `len` bytes of a range, which are all or none.
    fn set_slot(&self, number: usize, range: &MemoryRange, len: u64) -> Result<(), Unavailable> {
        let inside = range.offset.checked_add(range.len).is_some_and(|end| end <= self.ram.len());
        let Some(host) = self.ram.page_pointer(range.offset).filter(|_| inside) else {
            return Err(Unavailable::Refused { operation: "a memory slot", error: "past the RAM".into() });
        };
        let region = kvm_userspace_memory_region {
            slot: number as u32,
            flags: match (range.writable, self.log_dirty) {
                (false, _) => KVM_MEM_READONLY,
                (true, log) => KVM_MEM_LOG_DIRTY_PAGES * u32::from(log),
            },
            guest_phys_addr: range.start,
            memory_size: len,
            userspace_addr: host as u64,
        };
        // SAFETY: the bytes are inside `self.ram`, which lives as long as this virtual machine, and to which no
        // references are ever made.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(refused("a memory slot"))
    }

    /// Tells of each page, as its number in [`Ram`], that guests have written under KVM since the last call.
    pub fn take_dirty(&self, mut dirty: impl FnMut(u64)) -> errno::Result<()> {
        let slots = locked(&self.slots);
        for (number, slot) in slots.iter().enumerate() {
            let Some(range) = slot.filter(|range| range.writable) else { continue };
            let bitmap = self.fd.get_dirty_log(number as u32, range.len as usize)?;
            let first = range.offset / PAGE;
            for (word, mut bits) in (0..).zip(bitmap) {
                while bits != 0 {
                    dirty(first + word * 64 + u64::from(bits.trailing_zeros()));
                    bits &= bits - 1;
                }
            }
        }
        Ok(())
    }

    /// Has KVM forget what it made of the guest's page tables: it sees neither that the interpreter writes them nor that the
    /// guest invalidates a translation there. A slot that goes takes all of it along (KVM API, KVM_X86_QUIRK_SLOT_ZAP_ALL).
    pub fn forget_translations(&self) -> Result<(), Unavailable> {
        let spare = MemoryRange { start: SPARE, len: PAGE, offset: 0, writable: false };
        let _slots = locked(&self.slots);
        self.set_slot(self.spare_slot(), &spare, PAGE)?;
        self.set_slot(self.spare_slot(), &spare, 0)
    }

    /// The last one, which is no machine's.
    fn spare_slot(&self) -> usize {
        self.host.max_slots.saturating_sub(1)
    }

    pub fn memory_slots(&self) -> usize {
        locked(&self.slots).iter().flatten().count()
    }
}

/// Whole pages of RAM and ROM, cut at 1 MiB: the map changes below, and what lies above shall stay.
fn pieces(ranges: &[MemoryRange]) -> Vec<MemoryRange> {
    let whole =
        |range: &MemoryRange| range.len != 0 && (range.start | range.len | range.offset).is_multiple_of(PAGE);
    let mut out = Vec::new();
    for range in ranges.iter().filter(|range| whole(range)) {
        let below = ONE_MIB.saturating_sub(range.start).min(range.len);
        let (low, high) = (below, range.len - below);
        let parts = [
            MemoryRange { len: low, ..*range },
            MemoryRange { start: range.start + low, len: high, offset: range.offset + low, ..*range },
        ];
        out.extend(parts.into_iter().filter(|part| part.len != 0));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_one_mebibyte() {
        let range = MemoryRange { start: 0xC_0000, len: 0x20_0000, offset: 0x1000, writable: true };
        let low = MemoryRange { len: 0x4_0000, ..range };
        let high = MemoryRange { start: ONE_MIB, len: 0x1C_0000, offset: 0x4_1000, ..range };
        assert_eq!(pieces(&[range]), [low, high]);
        assert_eq!(pieces(&[high]), [high]);
        assert_eq!(pieces(&[MemoryRange { start: 0x800, ..range }]), []);
    }
}
