//! What the processor needs from the rest of the machine.

use std::sync::Arc;

/// What answers at a physical page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// RAM or ROM: byte offset of the page in [`crate::ram::Ram`]. Writes to ROM go to
    /// [`Bus::mmio_write`], which may drop them.
    Ram { offset: u64, writable: bool },
    /// Device registers, or nothing at all.
    Mmio,
}

/// Physical addresses, in whole pages, at which a processor outside SMM finds RAM or ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    pub start: u64,
    pub len: u64,
    /// Offset of the first byte in [`crate::ram::Ram`].
    pub offset: u64,
    /// Writes go to RAM, not to [`Bus::mmio_write`].
    pub writable: bool,
}

/// A machine-specific register access that the machine refuses: #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

/// The registers of a local APIC that an engine plays itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicRegisters {
    /// By their offset divided by 16 (SDM Vol. 3, "Local APIC Register Address Map"); the ID is in bits 31-24 in each mode.
    pub page: [u32; 64],
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
}

/// Where interrupt messages go while an engine plays a local APIC.
pub trait ApicSink: Send + Sync {
    /// A message signalled interrupt, fixed or lowest priority (SDM Vol. 3, "Message Signalled Interrupts"): the address's
    /// low half, and the data. Called with locks of the machine held: must not call the bus.
    fn message(&self, address: u32, data: u32);
}

/// The machine around the processors. `cpu` is the index of the calling vCPU. Called on slow paths only; the
/// callee may raise attention bits of any vCPU (see [`crate::shared`]) but never calls back into a vCPU.
pub trait Bus: Send + Sync {
    /// What answers at the page of `address` (A20 already applied). `smm`: seen by a processor in SMM.
    fn page(&self, address: u64, smm: bool) -> Page;
    /// All that [`Bus::page`] calls RAM outside SMM, in ascending order without overlaps, for engines that give the
    /// host's processor a map. [`crate::shared::attention::REMAP`] tells of changes.
    fn memory_ranges(&self) -> Vec<MemoryRange> {
        Vec::new()
    }
    fn mmio_read(&self, cpu: usize, address: u64, size: u8) -> u64;
    fn mmio_write(&self, cpu: usize, address: u64, size: u8, value: u64);
    fn port_read(&self, cpu: usize, port: u16, size: u8) -> u32;
    fn port_write(&self, cpu: usize, port: u16, size: u8, value: u32);
    /// INTA: the vector to deliver, or None if the interrupt went away.
    fn acknowledge_interrupt(&self, cpu: usize) -> Option<u8>;
    /// The time-stamp clock of the machine in ticks, before IA32_TSC's offset. In deterministic machines it
    /// counts from what the vCPU last published in [`crate::shared::VcpuShared::retired`].
    fn clock(&self, cpu: usize) -> u64;
    /// The local APIC's MSRs (IA32_APIC_BASE, x2APIC, IA32_TSC_DEADLINE). None: not one of those.
    fn read_apic_msr(&self, cpu: usize, index: u32) -> Option<Result<u64, GeneralProtection>>;
    fn write_apic_msr(&self, cpu: usize, index: u32, value: u64) -> Option<Result<(), GeneralProtection>>;
    /// CR8: the task priority class, 0 to 15.
    fn task_priority(&self, cpu: usize) -> u8;
    fn set_task_priority(&self, cpu: usize, class: u8);
    /// RDRAND, RDSEED.
    fn random(&self) -> u64;
    /// FERR#: an x87 error with CR0.NE = 0 (IRQ 13).
    fn x87_error(&self, cpu: usize);
    /// The processor's initial APIC ID and the number of processors, for CPUID.
    fn apic_id(&self, cpu: usize) -> u32 {
        cpu as u32
    }
    fn cpu_count(&self) -> usize {
        1
    }
    /// IA32_TSC_DEADLINE compares with IA32_TSC: the machine must know the vCPU's offset.
    fn tsc_offset_changed(&self, _cpu: usize, _offset: u64) {}
    /// Lends the local APIC of a machine with one processor: calls `take` with its registers, and messages go to `sink` when
    /// that has returned true. The processor's interrupt request is that of the 8259As then. False: the machine keeps it,
    /// at least for now.
    fn lend_apic(&self, _sink: &Arc<dyn ApicSink>, _take: &mut dyn FnMut(&ApicRegisters) -> bool) -> bool {
        false
    }
    /// The local APIC comes back. `registers` is called once no more messages come; if it has none yet, the APIC is lent
    /// still, and the result is false.
    fn give_back_apic(&self, _registers: &mut dyn FnMut() -> Option<ApicRegisters>) -> bool {
        true
    }
    /// A local APIC that an engine plays has finished a level-triggered interrupt.
    fn end_of_interrupt(&self, _vector: u8) {}
    /// IGNNE#, SMIACT# and the like are not modelled; SMM entry and exit change what addresses mean.
    fn smm_changed(&self, _cpu: usize, _smm: bool) {}
}
