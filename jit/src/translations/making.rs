//! When a block becomes a region, by which back end, and where its code goes.
#![allow(unsafe_code)]

use super::{ASKED, Live, MOST_STACKS, Page, REFUSED, Translations};
use crate::abi::{Code, Job, Knobs, Sharing, Untranslatable};
use crate::background::{Background, Request};
use crate::engine::Tier;
use crate::listing;
use crate::region::{Limits, Region};
use crate::slots::Slot;
use rustc_hash::FxHashSet;
use std::sync::Arc;
use std::time::Instant;
use trimaran_cpu::Vcpu;
use trimaran_cpu::blocks::NONE;
use trimaran_cpu::state::gpr;

impl Translations {
    /// The translation of a block, made if it is time.
    pub(super) fn translation(&mut self, v: &mut Vcpu, index: u32) -> Option<u32> {
        let block = v.block_mut(index)?;
        let known = block.translation;
        if matches!(known, REFUSED | ASKED) {
            return None;
        }
        if let Some(Some(live)) = self.live.get(known as usize) {
            let region = &live.region;
            let (page, generation) = (block.page, block.generation);
            let same = region.page == page && region.generation == generation;
            if same && (region.page2 == NONE || region.generation2 == block.generation2) {
                return Some(known);
            }
            self.drop_written(v, known);
        }
        let block = v.block_mut(index)?;
        block.heat = block.heat.saturating_add(1);
        if block.heat < self.options.warm {
            self.stats.cold += 1;
            return None;
        }
        let made = self.stats.emitter.regions + self.stats.cranelift.regions;
        if self.options.first_regions.is_some_and(|most| made >= most) {
            return None;
        }
        self.translate(v, index)
    }

    /// Makes the first translation of a block.
    pub(super) fn translate(&mut self, v: &mut Vcpu, index: u32) -> Option<u32> {
        let emit = cfg!(target_arch = "x86_64") && matches!(self.options.tier, Tier::Emit | Tier::All);
        let limits = Limits { only: self.options.only, ..if emit { Limits::TREE } else { Limits::LOOPS } };
        let rip = v.state.gpr[gpr::RIP];
        let clears = v.blocks_cleared();
        let formed = Region::form(v, index, rip, limits);
        if v.blocks_cleared() != clears {
            return None;
        }
        let Some(region) = formed else {
            v.block_mut(index)?.translation = REFUSED;
            return None;
        };
        let region = Arc::new(region);
        if !emit && self.background.is_some() {
            let asked = self.ask_background(v, region, index);
            let block = v.block_mut(index)?;
            if asked {
                block.translation = ASKED;
            } else {
                block.heat = 0;
            }
            return None;
        }
        let id = self.new_id();
        let slots = self.new_slots(&region, id);
        let mut counter = Box::new(self.options.hot.max(1));
        let count = (emit && self.options.tier == Tier::All).then_some(&raw mut *counter as usize);
        let started = Instant::now();
        let runtime = self.memory.as_ref()?.runtime;
        let place = (region.page, region.offset, region.key);
        let sharing = self.sharing.get(&place).copied().unwrap_or_default();
        let stacks = self.x87_troubles.get(&place).copied().unwrap_or_default();
        let job = Job {
            region: &region,
            slots: slots.as_ptr() as usize,
            runtime: &runtime,
            owner: id,
            sharing: if self.options.no_shared_checks { Sharing::None } else { sharing },
            x87: !trimaran_cpu::uses_soft() && stacks < MOST_STACKS,
            counter: count,
            knobs: self.knobs(rip),
        };
        let code = self.compile(emit, &job);
        let time = started.elapsed();
        let made = if emit { &mut self.stats.emitter } else { &mut self.stats.cranelift };
        match code {
            Ok(code) => {
                made.add(region.insns(), code.bytes.len(), time);
                self.install(v, id, (index, rip), region, slots, (counter, count.is_some()), code)
            }
            Err(why) => {
                made.refused += 1;
                tracing::debug!("{why}");
                self.free.push(id);
                v.block_mut(index)?.translation = REFUSED;
                None
            }
        }
    }

    pub(super) fn knobs(&self, rip: u64) -> Knobs {
        let explain = self.options.dump_region == Some(rip);
        Knobs { no_shared_checks: self.options.no_shared_checks, explain }
    }

    pub(super) fn compile(&mut self, emit: bool, job: &Job) -> Result<Code, Untranslatable> {
        #[cfg(target_arch = "x86_64")]
        if emit {
            return crate::emitter::compile(job);
        }
        let _ = emit;
        self.cranelift.compile(job)
    }

    pub(super) fn new_slots(&self, region: &Region, owner: u32) -> Arc<[Slot]> {
        let stub = self.memory.as_ref().map_or(0, |m| m.runtime.unlinked as u64);
        region.new_slots(stub, owner).into()
    }

    pub(super) fn install(
        &mut self,
        v: &mut Vcpu,
        id: u32,
        (block, rip): (u32, u64),
        region: Arc<Region>,
        slots: Arc<[Slot]>,
        (counter, counted): (Box<u32>, bool),
        code: Code,
    ) -> Option<u32> {
        let Some(room) = self.memory.as_mut()?.code.reserve(code.bytes.len()) else {
            v.block_mut(block)?.translation = REFUSED;
            self.free.push(id);
            return None;
        };
        let stale: Vec<u32> = self.by_offset.range(room).map(|(_, &id)| id).collect();
        for old in stale {
            self.stats.evicted += 1;
            self.drop_region(v, old);
        }
        let memory = self.memory.as_mut()?;
        let at = memory.code.put(&code.bytes);
        let entry = memory.code.address(at);
        for &(slot, jump) in &code.jumps {
            let (write, after) = (memory.code.writable(at + jump), entry + jump + 4);
            // SAFETY: the emitter says where in its code; slots and code are dropped together.
            unsafe { slots[slot].place(write, after) };
        }
        self.written = true;
        self.add_to_page(v, id, region.page, region.generation);
        if region.page2 != NONE {
            self.add_to_page(v, id, region.page2, region.generation2);
        }
        self.by_offset.insert(at, id);
        if self.options.dump_region == Some(rip) {
            eprint!("{}", listing::whole(&region, &v.ram, rip, &code, entry as u64));
        }
        if let Some(map) = &mut self.perf_map {
            map.add(entry, code.bytes.len(), rip, counted);
        }
        v.block_mut(block)?.translation = id;
        let (incoming, jumps) = (FxHashSet::default(), Vec::new());
        let charge = region.charges().first().copied().unwrap_or(1).into();
        let reach = region.reach();
        self.live[id as usize] = Some(Live {
            region,
            charge,
            reach,
            block,
            at,
            entry,
            slots,
            incoming,
            jumps,
            counter,
            counted,
            troubles: 0,
            _keep: code.keep,
        });
        self.note_place(id);
        Some(id)
    }

    pub(super) fn add_to_page(&mut self, v: &mut Vcpu, id: u32, page: u32, generation: u32) {
        if self.pages.get(&page).is_some_and(|p| p.generation != generation) {
            // Written since, and the attention bit that says so is still to come.
            self.drop_page(v, page);
        }
        self.pages.entry(page).or_insert(Page { generation, regions: Vec::new() }).regions.push(id);
    }

    /// False: the background has enough to do, or does not exist.
    pub(super) fn ask_background(&mut self, v: &Vcpu, region: Arc<Region>, block: u32) -> bool {
        if !self.background.as_ref().is_some_and(Background::has_room) {
            return false;
        }
        let Some(runtime) = self.memory.as_ref().map(|m| m.runtime) else { return false };
        let id = self.new_id();
        let slots = self.new_slots(&region, id);
        let clears = v.blocks_cleared();
        let rip = v.state.gpr[gpr::RIP];
        let request = Request { region, block, clears, id, slots, runtime, rip, knobs: self.knobs(rip) };
        let asked = self.background.as_mut().is_some_and(|b| b.ask(request));
        if !asked {
            self.free.push(id);
        }
        asked
    }

    /// Puts in what the background has made meanwhile.
    pub(super) fn take_finished(&mut self, v: &mut Vcpu) {
        while let Some(done) = self.background.as_mut().and_then(Background::finished) {
            let Request { region, block, clears, id, slots, rip, .. } = done.request;
            if v.blocks_cleared() == clears
                && let Some(b) = v.block_mut(block)
                && b.translation == ASKED
            {
                b.translation = if done.code.is_ok() { NONE } else { REFUSED };
            }
            let fresh = |b: &trimaran_cpu::blocks::Block| {
                b.page == region.page && b.generation == region.generation && b.key == region.key
            };
            let wanted = v.blocks_cleared() == clears
                && v.block(block).is_some_and(fresh)
                && v.ram.generation(region.page) == region.generation;
            match done.code {
                Ok(code) if wanted => {
                    self.stats.cranelift.add(region.insns(), code.bytes.len(), done.time);
                    let old = v.block(block).map_or(NONE, |b| b.translation);
                    self.drop_region(v, old);
                    self.install(v, id, (block, rip), region, slots, (Box::new(0), false), code);
                }
                Ok(_) => self.free.push(id),
                Err(why) => {
                    self.stats.cranelift.refused += 1;
                    tracing::debug!("{why}");
                    self.free.push(id);
                }
            }
        }
    }

    /// The translation at RIP was entered often: asks for a better one.
    pub(super) fn promote(&mut self, v: &mut Vcpu) {
        self.stats.hot += 1;
        let (rip, clears) = (v.state.gpr[gpr::RIP], v.blocks_cleared());
        // Links may have led far from the region that was entered.
        let Some(block) = v.next_block() else { return };
        let id = v.block(block).map_or(NONE, |b| b.translation);
        let Some(Some(live)) = self.live.get_mut(id as usize) else { return };
        let room = self.background.as_ref().is_some_and(Background::has_room);
        let again = if room { u32::MAX } else { self.options.hot };
        // SAFETY: no code runs; the counter is read afresh at the next entry.
        unsafe { (&raw mut *live.counter).write_volatile(again) };
        if !room {
            return;
        }
        let region = Region::form(v, block, rip, Limits { only: self.options.only, ..Limits::LOOPS });
        if let Some(region) = region
            && v.blocks_cleared() == clears
            && !region.has_helpers()
        {
            self.ask_background(v, Arc::new(region), block);
        }
    }
}
