//! One virtual processor: the architectural state and the caches beside it.

use crate::blocks::{self, BlockCache, BlockKey};
use crate::bus::Bus;
use crate::fault::{Exit, Fault, vector};
use crate::flags::LazyFlags;
use crate::mmu::PhysicalCache;
use crate::model::Model;
use crate::ram::Ram;
use crate::shared::{CodeFence, VcpuShared};
use crate::state::{CpuState, RFlags, cr0, cr4, gpr, seg};
use crate::tlb::{Class, SupervisorCode, Tlb};
use crate::trace::StepLog;
use crate::translate::{MappingChange, Translated};
use std::ops::AddAssign;
use std::sync::Arc;

/// What a machine gives a new vCPU.
#[derive(Clone)]
pub struct VcpuConfig {
    pub id: usize,
    pub model: Arc<Model>,
    pub ram: Arc<Ram>,
    pub bus: Arc<dyn Bus>,
    pub fence: Arc<CodeFence>,
}

/// Counters that `--stats` shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub blocks_decoded: u64,
    pub insns_decoded: u64,
    pub blocks_entered: u64,
    pub jump_cache_misses: u64,
    pub tlb_misses: u64,
    pub tlb_flushes: u64,
    pub mmio: u64,
    pub port_io: u64,
    pub interrupts: u64,
    pub exceptions: u64,
    pub code_invalidations: u64,
    pub unimplemented: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.blocks_decoded += other.blocks_decoded;
        self.insns_decoded += other.insns_decoded;
        self.blocks_entered += other.blocks_entered;
        self.jump_cache_misses += other.jump_cache_misses;
        self.tlb_misses += other.tlb_misses;
        self.tlb_flushes += other.tlb_flushes;
        self.mmio += other.mmio;
        self.port_io += other.port_io;
        self.interrupts += other.interrupts;
        self.exceptions += other.exceptions;
        self.code_invalidations += other.code_invalidations;
        self.unimplemented += other.unimplemented;
    }
}

/// See the head of this file. Handlers work on it directly. The order of the first fields is for translated code: see
/// [`crate::translate::offset`].
#[repr(C)]
pub struct Vcpu {
    pub state: CpuState,
    /// The status flags, until somebody wants them in `state.rflags`.
    pub lazy: LazyFlags,
    /// Instructions that `run` may still execute. The running block is charged in advance.
    pub budget: i64,
    pub translated: Translated,
    /// Set on slow paths: leave the running block after this instruction.
    pub stop_block: bool,
    /// Class of data accesses (see [`Vcpu::update_class`]).
    pub class: Class,
    pub tlb: Tlb,
    /// The exception behind [`Exit::Fault`].
    pub fault: Fault,
    /// Of the current mode: look-ups by RIP that were noted under another number are void ([`Tlb::space`]).
    pub(crate) code_space: u32,
    /// Where supervisor code may have changed its place, for a translator.
    pub mapping_change: MappingChange,
    /// Decoded instructions were overwritten, for a translator.
    pub code_changed: bool,
    /// Mask of physical addresses: A20.
    pub a20_mask: u64,
    /// The class under [`Class::Slow`].
    pub(crate) plain_class: Class,
    pub(crate) physical: PhysicalCache,
    /// See [`Vcpu::in_ram_only`].
    pub(crate) ram_only: bool,
    pub(crate) blocks: BlockCache,
    /// The running block and its first RIP, for counting what of it has retired.
    pub(crate) block: u32,
    pub(crate) block_rip: u64,
    /// REP iterations of this block that string helpers ran beyond one each.
    pub(crate) extra: u64,
    /// RIP behind the last STI, if its block went on: should it end there after all, an interrupt shadow begins.
    pub(crate) open_shadow: u64,
    /// The key of the current mode.
    pub(crate) key: BlockKey,
    /// Instructions must run one at a time: TF, RF, an interrupt shadow, code breakpoints.
    pub(crate) careful: bool,
    /// `careful`, or there are stop points: cheap to look at.
    pub(crate) watchful: bool,
    /// See [`crate::engine::Engine::stop_at`].
    pub stop_points: Box<[u64]>,
    /// For a tracer.
    pub(crate) step_log: Option<Box<StepLog>>,
    pub id: usize,
    pub model: Arc<Model>,
    pub ram: Arc<Ram>,
    pub bus: Arc<dyn Bus>,
    pub shared: Arc<VcpuShared>,
    pub fence: Arc<CodeFence>,
    pub counters: Counters,
}

impl Vcpu {
    pub fn new(config: VcpuConfig) -> Self {
        let VcpuConfig { id, model, ram, bus, fence } = config;
        ram.watch(&fence);
        let mut state = CpuState::reset(model.signature, id == 0);
        state.xcr0 = 1;
        let mut vcpu = Vcpu {
            state,
            lazy: LazyFlags::default(),
            budget: 0,
            stop_block: false,
            class: Class::Supervisor,
            tlb: Tlb::default(),
            fault: Fault { vector: 0, error: None, address: 0, dr6: 0 },
            code_space: 0,
            mapping_change: MappingChange::All,
            code_changed: true,
            translated: Translated::default(),
            a20_mask: !0,
            plain_class: Class::Supervisor,
            physical: PhysicalCache::default(),
            ram_only: false,
            blocks: BlockCache::default(),
            block: blocks::NONE,
            block_rip: 0,
            extra: 0,
            open_shadow: !0,
            key: BlockKey::default(),
            careful: false,
            watchful: false,
            stop_points: Box::default(),
            step_log: None,
            id,
            model,
            ram,
            bus,
            shared: fence.vcpus[id].clone(),
            fence,
            counters: Counters::default(),
        };
        vcpu.state_loaded();
        vcpu
    }

    /// Call after `state` was replaced: every cache starts again.
    pub fn state_loaded(&mut self) {
        self.state.gpr[gpr::ZERO] = 0;
        self.state.seg[seg::FLAT] = CpuState::reset(0, true).seg[seg::FLAT];
        self.state.seg[seg::FLAT_STACK] = self.state.seg[seg::FLAT];
        self.load_lazy_flags();
        self.flush_tlb();
        self.physical.flush();
        self.update_class();
    }

    /// Writes the lazy flags back, so that `state` is whole.
    pub fn state_whole(&mut self) -> &mut CpuState {
        self.state.rflags = self.rflags();
        &mut self.state
    }

    /// RFLAGS with the status flags as they are now.
    pub fn rflags(&self) -> RFlags {
        self.state.rflags & !RFlags::STATUS | RFlags::from_bits_retain(self.lazy.bits())
    }

    /// Replaces RFLAGS whole.
    pub fn set_rflags(&mut self, flags: RFlags) {
        self.state.rflags = flags & !RFlags::from_bits_retain(0xFFFF_FFFF_FFC0_802A) | RFlags::ONE;
        self.load_lazy_flags();
        self.update_class();
    }

    /// Replaces the status flags of `mask` (CF, PF, AF, ZF, SF, OF).
    pub fn set_status(&mut self, mask: RFlags, values: RFlags) {
        let new = self.rflags() & !mask | values & mask;
        self.lazy = LazyFlags::from_bits(new.bits());
    }

    fn load_lazy_flags(&mut self) {
        self.lazy = LazyFlags::from_bits(self.state.rflags.bits());
    }

    /// Derives the class of data accesses from CPL, SMAP, AC, alignment checks and breakpoints.
    pub fn update_class(&mut self) {
        let s = &self.state;
        let ac = s.rflags.contains(RFlags::AC);
        self.plain_class = match s.cpl {
            3 => Class::User,
            _ if s.cr4 & cr4::SMAP != 0 && ac => Class::SupervisorAc,
            _ => Class::Supervisor,
        };
        let aligned = ac && s.cpl == 3 && s.cr0 & cr0::AM != 0;
        let watched = self.data_breakpoints_armed();
        let slow = aligned || watched || self.step_log.is_some();
        self.class = if slow { Class::Slow } else { self.plain_class };
    }

    /// Whether DR7 enables any breakpoint on data.
    pub fn data_breakpoints_armed(&self) -> bool {
        let dr7 = self.state.dr[7];
        (0..4).any(|n| dr7 >> (n * 2) & 3 != 0 && dr7 >> (16 + n * 4) & 3 != 0)
    }

    /// Raises an exception without an error code.
    #[cold]
    pub fn raise(&mut self, vector: u8) -> Exit {
        self.fault = Fault { vector, error: None, address: 0, dr6: 0 };
        Exit::Fault
    }

    /// Raises an exception with an error code.
    #[cold]
    pub fn raise_code(&mut self, vector: u8, error: u16) -> Exit {
        self.fault = Fault { vector, error: Some(error), address: 0, dr6: 0 };
        Exit::Fault
    }

    /// #UD.
    #[cold]
    pub fn undefined(&mut self) -> Exit {
        self.raise(vector::UD)
    }

    /// #GP(0).
    #[cold]
    pub fn protection(&mut self) -> Exit {
        self.raise_code(vector::GP, 0)
    }

    /// Fails with #UD unless `condition`.
    pub fn require(&mut self, condition: bool) -> Result<(), Exit> {
        if condition { Ok(()) } else { Err(self.undefined()) }
    }

    /// Fails with #GP(0) at any CPL but 0.
    pub fn require_cpl0(&mut self) -> Result<(), Exit> {
        if self.state.cpl == 0 { Ok(()) } else { Err(self.protection()) }
    }

    /// Publishes the count of retired instructions, as the bus wants it before every call. RIP points past
    /// the running instruction.
    pub fn publish_retired(&self) {
        let count = self.state.retired.wrapping_add(self.retired_in_block());
        self.shared.retired.store(count, std::sync::atomic::Ordering::Release);
    }

    /// The linear address of the current instruction, given the length of it: RIP has moved on already.
    pub fn insn_rip(&self, len: u8) -> u64 {
        self.state.gpr[gpr::RIP].wrapping_sub(u64::from(len))
    }

    /// Drops all translations.
    pub fn flush_tlb(&mut self) {
        let pcid = if self.state.cr4 & cr4::PCIDE != 0 { self.state.cr3 & 0xFFF } else { 0 };
        self.tlb.flush(pcid as u16);
        self.mapping_change = MappingChange::All;
        self.counters.tlb_flushes += 1;
        self.stop_block = true;
    }

    /// MOV to CR3: translations that are not global are `pcid`'s from now on; `keep` those that it has.
    pub fn load_tlb_context(&mut self, pcid: u16, keep: bool) {
        let supervisor_code = self.tlb.load_context(pcid, keep);
        self.not_global_flushed(supervisor_code);
    }

    /// Drops all translations that are not global.
    pub fn flush_tlb_not_global(&mut self) {
        let supervisor_code = self.tlb.flush_not_global();
        self.not_global_flushed(supervisor_code);
    }

    /// Drops what is not global of a PCID.
    pub fn flush_tlb_context(&mut self, pcid: u16) {
        let supervisor_code = self.tlb.flush_context(pcid);
        self.not_global_flushed(supervisor_code);
    }

    fn not_global_flushed(&mut self, supervisor_code: bool) {
        if supervisor_code {
            self.mapping_change.not_global();
        }
        self.counters.tlb_flushes += 1;
        self.stop_block = true;
    }

    /// INVLPG; `pcid`: of that one, not of the current one (INVPCID).
    pub fn flush_tlb_page(&mut self, address: u64, pcid: Option<u16>) {
        let changed = match pcid {
            Some(pcid) => self.tlb.flush_context_page(pcid, address),
            None => self.tlb.flush_page(address),
        };
        match changed {
            SupervisorCode::Same => {}
            SupervisorCode::Near => self.mapping_change.page(address & !(MappingChange::GRAIN - 1)),
            SupervisorCode::Any => self.mapping_change = MappingChange::All,
        }
        self.stop_block = true;
    }
}
