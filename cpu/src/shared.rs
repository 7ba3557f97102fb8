//! What other threads may touch of a vCPU: its attention word, and the code-mark handshake.
//!
//! An engine looks at the attention word at every block entry. Whoever raises a bit also wakes the vCPU's
//! thread if it sleeps (the machine does that). An engine that hands the vCPU to the host's processor cannot look:
//! it says that it is *away*, and raising a bit kicks it back.
//!
//! Code marks under SMP: before a vCPU trusts bytes that it decoded from a page without a mark, every other
//! vCPU must have dropped its write entries for that page. [`CodeFence`] does it: the decoder raises
//! [`attention::DROP_WRITES`] at all others and waits until each has answered or is parked (not executing
//! guest code; it drops its write entries before it goes on).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};

/// Bits of the attention word.
pub mod attention {
    /// Level of the interrupt request to the core (local APIC or 8259A).
    pub const INTR: u32 = 1 << 0;
    pub const NMI: u32 = 1 << 1;
    pub const SMI: u32 = 1 << 2;
    pub const INIT: u32 = 1 << 3;
    pub const SIPI: u32 = 1 << 4;
    /// Leave `run` at the next boundary.
    pub const STOP: u32 = 1 << 5;
    /// Drop the write entries of the TLB (code marks).
    pub const DROP_WRITES: u32 = 1 << 6;
    /// The memory map or A20 changed: drop all translations.
    pub const REMAP: u32 = 1 << 7;
    /// The next event of a deterministic machine moved: leave `run`.
    pub const DEADLINE: u32 = 1 << 8;
    /// Decoded instructions were overwritten: translations of stale pages must go.
    pub const CODE: u32 = 1 << 9;
}

/// The part of a vCPU that other threads see.
#[derive(Default)]
pub struct VcpuShared {
    pub attention: AtomicU32,
    /// Vector of the last start-up IPI.
    pub sipi_vector: AtomicU8,
    /// NMIs that have come since the vCPU last looked.
    nmis: AtomicU8,
    /// Instructions retired, published before every call into the bus and on leaving `run`.
    pub retired: AtomicU64,
    /// Not executing guest code.
    pub parked: AtomicBool,
    fence_answered: AtomicU64,
    away: AtomicBool,
    kick: Mutex<Option<Arc<dyn Kick>>>,
}

/// Brings a vCPU back that runs where it cannot look at its attention word.
pub trait Kick: Send + Sync {
    /// Must have the vCPU's thread look at the word soon, even if it is only about to go away.
    fn kick(&self);
}

impl VcpuShared {
    pub fn raise(&self, bits: u32) {
        if bits & attention::NMI != 0 {
            let _ = self.nmis.fetch_update(SeqCst, SeqCst, |n| n.checked_add(1));
        }
        self.attention.fetch_or(bits, SeqCst);
        // One kick brings it back: more would only keep it from getting anywhere.
        if self.away.load(SeqCst)
            && self.away.swap(false, SeqCst)
            && let Some(kick) = &*self.kick.lock().unwrap_or_else(PoisonError::into_inner)
        {
            kick.kick();
        }
    }
    /// How to reach the vCPU while it is away.
    pub fn set_kick(&self, kick: Arc<dyn Kick>) {
        *self.kick.lock().unwrap_or_else(PoisonError::into_inner) = Some(kick);
    }
    /// The vCPU's thread goes where it cannot look at the word, or is back. It must look between the two.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, SeqCst);
    }
    pub fn clear(&self, bits: u32) {
        self.attention.fetch_and(!bits, SeqCst);
        if bits & attention::NMI != 0 {
            self.nmis.store(0, SeqCst);
        }
    }
    /// Clears [`attention::NMI`]; how many have come.
    pub fn take_nmis(&self) -> u8 {
        self.attention.fetch_and(!attention::NMI, SeqCst);
        self.nmis.swap(0, SeqCst)
    }
    pub fn pending(&self) -> u32 {
        self.attention.load(Relaxed)
    }
}

/// All vCPUs of a machine, and the state of the code-mark handshake.
pub struct CodeFence {
    pub vcpus: Box<[Arc<VcpuShared>]>,
    requested: AtomicU64,
    /// Address line 20 of the processors passes.
    pub a20: AtomicBool,
}

impl CodeFence {
    pub fn new(vcpus: usize) -> Arc<Self> {
        let shared = || {
            let shared = VcpuShared::default();
            shared.parked.store(true, Relaxed);
            Arc::new(shared)
        };
        Arc::new(CodeFence {
            vcpus: (0..vcpus).map(|_| shared()).collect(),
            requested: AtomicU64::new(0),
            a20: AtomicBool::new(true),
        })
    }

    /// Tells every vCPU that decoded instructions were overwritten.
    pub fn code_changed(&self) {
        for vcpu in &self.vcpus {
            vcpu.raise(attention::CODE);
        }
    }

    /// Vcpu `me` answers a request: its caller has dropped the write entries.
    pub fn answer(&self, me: usize) {
        self.vcpus[me].clear(attention::DROP_WRITES);
        self.vcpus[me].fence_answered.store(self.requested.load(Acquire), Release);
    }

    /// Waits until every other vCPU has dropped its write entries. `answer_mine` is called while waiting, so
    /// that two vCPUs that ask at once do not wait for each other.
    pub fn drop_writes_elsewhere(&self, me: usize, mut answer_mine: impl FnMut()) {
        if self.vcpus.len() == 1 {
            return;
        }
        let ticket = self.requested.fetch_add(1, AcqRel) + 1;
        for (i, other) in self.vcpus.iter().enumerate() {
            if i == me {
                continue;
            }
            other.raise(attention::DROP_WRITES);
            while other.fence_answered.load(Acquire) < ticket && !other.parked.load(SeqCst) {
                if self.vcpus[me].pending() & attention::DROP_WRITES != 0 {
                    answer_mine();
                    self.answer(me);
                }
                std::thread::yield_now();
            }
        }
    }
}
