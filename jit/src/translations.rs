//! All translations of one vCPU: made when blocks turn warm, entered, linked, dropped.
//!
//! They belong to the vCPU's own thread, and are only touched while none of their code runs: so nothing here needs a
//! lock, and code can be dropped at once. What other threads do (writing to code, changing the memory map) arrives by the
//! attention word.
#![allow(unsafe_code)]

use crate::abi::{self, Code, Job, Knobs, Runtime, Sharing, Untranslatable};
use crate::background::{Background, Request};
use crate::buffer::CodeBuffer;
use crate::cranelift::Cranelift;
use crate::engine::{JitOptions, Tier};
use crate::links::{Links, MOST_JUMPS, SlotName, leads_to};
use crate::listing;
use crate::perf_map::PerfMap;
use crate::places::{NEAR, Places, near_the_hole};
use crate::region::{Limits, Region};
use crate::runtime::{self, Trouble, collect_float_flags};
use crate::slots::Slot;
use crate::stats::Stats;
use crate::stubs;
use rustc_hash::{FxHashMap, FxHashSet};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use trimaran_cpu::Vcpu;
use trimaran_cpu::blocks::{BlockKey, NONE};
use trimaran_cpu::insn::Insn;
use trimaran_cpu::state::gpr;
use trimaran_cpu::tlb::Class;
use trimaran_cpu::translate::{MappingChange, Translator};

/// A block that no back end can translate, in [`trimaran_cpu::blocks::Block::translation`].
const REFUSED: u32 = NONE - 1;
/// A block whose first translation is being made in the background. Smaller numbers are regions.
pub const ASKED: u32 = NONE - 2;

/// A region whose windows fail so often is made again.
const MOST_TROUBLES: u32 = 4;
/// So many places are remembered for that.
const MOST_PLACES: usize = 1 << 16;

/// A translated region.
struct Live {
    region: Arc<Region>,
    /// The interpreter's block it begins with.
    block: u32,
    /// The budget that it takes to run anything of it.
    charge: i64,
    /// [`Region::reach`].
    reach: u64,
    /// Offset of its code in the buffer, and the address that is entered.
    at: usize,
    entry: usize,
    slots: Arc<[Slot]>,
    /// Slots that were linked to it at some time.
    incoming: FxHashSet<SlotName>,
    /// Where it was put into its key's jump table; with more than [`MOST_JUMPS`] not all of them.
    jumps: Vec<u16>,
    counter: Box<u32>,
    /// Whether its code counts.
    counted: bool,
    /// How often a window of it failed.
    troubles: u32,
    _keep: Box<dyn Any + Send>,
}

/// A page with translations.
struct Page {
    generation: u32,
    regions: Vec<u32>,
}

/// Everything that exists only if the host gave memory for code.
struct Memory {
    /// Holds the stubs, which are never dropped.
    _stubs: CodeBuffer,
    runtime: Runtime,
    code: CodeBuffer,
}

/// See the head of this file.
pub struct Translations {
    options: JitOptions,
    memory: Option<Memory>,
    cranelift: Cranelift,
    background: Option<Background>,
    live: Vec<Option<Live>>,
    free: Vec<u32>,
    pages: FxHashMap<u32, Page>,
    /// Regions by offset of their code.
    by_offset: BTreeMap<usize, u32>,
    links: Links,
    places: Box<Places>,
    /// Places whose regions had trouble with full sharing.
    sharing: FxHashMap<(u32, u64, BlockKey), Sharing>,
    /// Places whose regions had trouble with the x87 unit.
    no_x87: FxHashSet<(u32, u64, BlockKey)>,
    /// The slot through which code has just left.
    left_by: Option<SlotName>,
    stats: Stats,
    perf_map: Option<PerfMap>,
    /// Code was written, or links over other links, since the host was told last.
    written: bool,
}

impl Translations {
    pub fn new(options: JitOptions) -> Self {
        let memory = match Self::memory(options) {
            Ok(memory) => Some(memory),
            Err(error) => {
                tracing::warn!("no memory for translated code ({error}): everything is interpreted");
                None
            }
        };
        let background = matches!(options.tier, Tier::All | Tier::Cranelift) && !options.foreground;
        Translations {
            options,
            memory: memory.filter(|_| options.tier != Tier::Interp),
            cranelift: Cranelift::new(),
            background: background.then(Background::new),
            live: Vec::new(),
            free: Vec::new(),
            pages: FxHashMap::default(),
            by_offset: BTreeMap::new(),
            links: Links::new(),
            places: Box::new(Places::new()),
            sharing: FxHashMap::default(),
            no_x87: FxHashSet::default(),
            left_by: None,
            stats: Stats::default(),
            perf_map: options.perf_map.then(PerfMap::open).flatten(),
            written: false,
        }
    }

    fn memory(options: JitOptions) -> std::io::Result<Memory> {
        let mut stubs = CodeBuffer::new(1 << 16)?;
        let code = CodeBuffer::new(options.code_cache)?;
        let runtime =
            stubs::install(&mut stubs).ok_or_else(|| std::io::Error::other("the stubs do not fit"))?;
        Ok(Memory { _stubs: stubs, runtime, code })
    }

    pub fn report(&self, v: &Vcpu) -> String {
        let live = self.live.iter().flatten().count();
        self.stats.report(self.options.tier, live, &v.translated, v.state.retired)
    }

    /// The translation of a block, made if it is time.
    fn translation(&mut self, v: &mut Vcpu, index: u32) -> Option<u32> {
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
    fn translate(&mut self, v: &mut Vcpu, index: u32) -> Option<u32> {
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
        let job = Job {
            region: &region,
            slots: slots.as_ptr() as usize,
            runtime: &runtime,
            owner: id,
            sharing: if self.options.no_shared_checks { Sharing::None } else { sharing },
            x87: !trimaran_cpu::uses_soft() && !self.no_x87.contains(&place),
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

    fn knobs(&self, rip: u64) -> Knobs {
        let explain = self.options.dump_region == Some(rip);
        Knobs { no_shared_checks: self.options.no_shared_checks, explain }
    }

    fn compile(&mut self, emit: bool, job: &Job) -> Result<Code, Untranslatable> {
        #[cfg(target_arch = "x86_64")]
        if emit {
            return crate::emitter::compile(job);
        }
        let _ = emit;
        self.cranelift.compile(job)
    }

    fn new_id(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.live.push(None);
            self.live.len() as u32 - 1
        })
    }

    fn new_slots(&self, region: &Region, owner: u32) -> Arc<[Slot]> {
        let stub = self.memory.as_ref().map_or(0, |m| m.runtime.unlinked as u64);
        region.new_slots(stub, owner).into()
    }

    fn install(
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

    /// Lets code find a region by its place.
    fn note_place(&mut self, id: u32) {
        let Some(Some(live)) = self.live.get(id as usize) else { return };
        let Region { page, page2, offset, key, .. } = *live.region;
        if page2 == NONE && live.reach <= NEAR && !self.options.no_links {
            self.places.put(page, offset, key, live.entry as u64, id);
        }
    }

    /// Takes note of the links that code has made by [`crate::places::find`].
    fn book_found(&mut self, v: &Vcpu) {
        let mut found = std::mem::take(&mut self.places.found);
        for found in found.drain(..) {
            match found.slot {
                Some(name) => self.book_link(v, name, found.id, found.address),
                None => self.book_jump(v, found.id, found.address),
            }
        }
        // Its memory is used again.
        self.places.found = found;
    }

    fn add_to_page(&mut self, v: &mut Vcpu, id: u32, page: u32, generation: u32) {
        if self.pages.get(&page).is_some_and(|p| p.generation != generation) {
            // Written since, and the attention bit that says so is still to come.
            self.drop_page(v, page);
        }
        self.pages.entry(page).or_insert(Page { generation, regions: Vec::new() }).regions.push(id);
    }

    fn drop_page(&mut self, v: &mut Vcpu, page: u32) {
        let Some(page) = self.pages.remove(&page) else { return };
        for id in page.regions {
            self.stats.invalidated += 1;
            self.drop_written(v, id);
        }
    }

    /// Drops a region whose page was written. It must become warm anew: code beside data that is written all the time is
    /// faster interpreted than translated each time.
    fn drop_written(&mut self, v: &mut Vcpu, id: u32) {
        if let Some(Some(live)) = self.live.get(id as usize)
            && let Some(block) = v.block_mut(live.block)
            && block.translation == id
        {
            block.heat = 0;
        }
        self.drop_region(v, id);
    }

    fn drop_region(&mut self, v: &mut Vcpu, id: u32) {
        let Some(old) = self.live.get_mut(id as usize).and_then(Option::take) else { return };
        let stub = self.memory.as_ref().map_or(0, |m| m.runtime.unlinked as u64);
        for name in old.incoming {
            if let Some(slot) = self.slot(name)
                && slot.code.load(Ordering::Relaxed) == old.entry as u64
            {
                slot.unlink(stub);
                self.stats.cut += 1;
                self.written = true;
            }
        }
        let Region { page, offset, key, .. } = *old.region;
        self.places.remove(page, offset, key, old.entry as u64);
        self.links.clear_jumps(key, &old.jumps, old.entry as u64);
        for page in [old.region.page, old.region.page2] {
            if let Some(page) = self.pages.get_mut(&page) {
                page.regions.retain(|&r| r != id);
            }
        }
        self.by_offset.remove(&old.at);
        if let Some(block) = v.block_mut(old.block)
            && block.translation == id
        {
            block.translation = NONE;
        }
        if self.left_by.is_some_and(|name| name.owner == id) {
            self.left_by = None;
        }
        self.free.push(id);
    }

    fn slot(&self, name: SlotName) -> Option<&Slot> {
        slot_of(&self.live, name)
    }

    /// Links the slot that code left by to what is about to run.
    fn link(&mut self, v: &Vcpu, id: u32) {
        let Some(name) = self.left_by.take() else { return };
        if self.options.no_links {
            return;
        }
        let address = v.state.gpr[gpr::RIP];
        let Some(Some(from)) = self.live.get(name.owner as usize) else { return };
        let (Some(Some(target)), Some(slot)) = (self.live.get(id as usize), self.slot(name)) else { return };
        // The page may be mapped where its branches lead out of canonical addresses, or it is just being mapped otherwise.
        let lasting = target.reach <= NEAR && from.region.page == target.region.page;
        if !slot.far && !lasting {
            return;
        }
        let entry = target.entry as u64;
        let over = !slot.leads_nowhere();
        if target.region.key.user() {
            slot.link_too(address ^ abi::user_salt(v.tlb.space(Class::User)), entry);
        } else {
            slot.link(address, entry);
        }
        self.written |= over;
        self.book_link(v, name, id, address);
        self.note_place(id);
    }

    /// A slot was linked to a region.
    fn book_link(&mut self, v: &Vcpu, name: SlotName, id: u32, address: u64) {
        let Some(slot) = self.slot(name) else { return };
        let far = slot.far;
        let Some(Some(target)) = self.live.get_mut(id as usize) else { return };
        target.incoming.insert(name);
        let (crosses, user) = (target.region.page2 != NONE, target.region.key.user());
        self.stats.links += 1;
        self.stats.far_links += u64::from(far);
        match (user, far) {
            (true, true) => self.links.note_user(name),
            // To the same page, and on to another.
            (true, false) if crosses => self.links.note_unchecked(name),
            (false, _) if far || crosses => {
                self.links.note_far(name, address, !crosses && v.code_is_global(address));
            }
            _ => {}
        }
    }

    /// Drops what was made of pages that have been written since.
    fn drop_stale(&mut self, v: &mut Vcpu) {
        let stale = |(&page, p): (&u32, &Page)| v.ram.generation(page) != p.generation;
        let pages: Vec<u32> = self.pages.iter().filter(|&p| stale(p)).map(|p| *p.0).collect();
        for page in pages {
            self.drop_page(v, page);
        }
    }

    fn mapping_changed(&mut self, change: &MappingChange) {
        self.stats.mapping_changes += 1;
        let stub = self.memory.as_ref().map_or(0, |m| m.runtime.unlinked as u64);
        self.written = true;
        let (live, cut) = (&self.live, &mut self.stats.cut);
        self.links.mapping_changed(change, |name, address| {
            if let Some(slot) = slot_of(live, name).filter(|s| leads_to(s, address)) {
                slot.unlink(stub);
                *cut += 1;
            }
        });
    }

    /// Another space of user code may have come, or its numbers begun anew.
    fn user_space_changed(&mut self, v: &Vcpu) {
        let stub = self.memory.as_ref().map_or(0, |m| m.runtime.unlinked as u64);
        let (live, cut, written) = (&self.live, &mut self.stats.cut, &mut self.written);
        self.links.user_space(v.tlb.era(), v.tlb.space(Class::User), |name| {
            if let Some(slot) = slot_of(live, name) {
                slot.unlink(stub);
                (*cut, *written) = (*cut + 1, true);
            }
        });
    }

    /// False: the background has enough to do, or does not exist.
    fn ask_background(&mut self, v: &Vcpu, region: Arc<Region>, block: u32) -> bool {
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
    fn take_finished(&mut self, v: &mut Vcpu) {
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
    fn promote(&mut self, v: &mut Vcpu) {
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

    /// Enters a translation. True: something else may be looked up and entered at once.
    fn enter(&mut self, v: &mut Vcpu, id: u32) -> bool {
        let Some(Some(live)) = self.live.get(id as usize) else { return false };
        // SAFETY: no code runs; only code writes the counter besides.
        if live.counted && unsafe { (&raw const *live.counter).read_volatile() } == 0 {
            // It ran out at a back edge.
            self.promote(v);
        }
        let Some(Some(live)) = self.live.get(id as usize) else { return false };
        let Some(memory) = &self.memory else { return false };
        let entry = live.entry;
        v.prepare_translated();
        (v.translated.jump_table, v.translated.salt) = self.links.table(live.region.key);
        v.translated.places = &raw mut *self.places as usize;
        if std::mem::take(&mut self.written) && memory.runtime.serialize != 0 {
            // SAFETY: the stub's address and signature are `stubs.rs`'s.
            unsafe { std::mem::transmute::<usize, extern "C" fn()>(memory.runtime.serialize)() };
        }
        let retired = v.state.retired;
        let budget = v.budget;
        self.stats.entries += 1;
        // SAFETY: the trampoline and the region's code keep to `abi.rs`; both lie in memory that lives as long as `self`, and
        // the vCPU is lent to them alone.
        let word = unsafe {
            let enter: extern "C" fn(*mut Vcpu, i64, usize) -> u64 =
                std::mem::transmute::<usize, _>(memory.runtime.trampoline);
            enter(v, budget, entry)
        };
        collect_float_flags(v);
        self.book_found(v);
        if word != abi::DONE {
            v.sync_retired(v.budget);
        }
        self.stats.insns += v.state.retired.wrapping_sub(retired);
        match word {
            abi::LOOKUP => {
                self.stats.lookups += 1;
                true
            }
            abi::STOP => {
                self.stats.stops += 1;
                false
            }
            abi::INTERPRET => {
                self.stats.interpreted += 1;
                v.settle_flags();
                // SAFETY: an instruction of a region that is alive.
                let insn = unsafe { &*(v.translated.scratch[0] as *const Insn) };
                // Before a loop's head nothing has been charged.
                let go_on = v.budget > 0 && v.run_handler(insn);
                if let Some((id, trouble)) = runtime::troubled(std::mem::take(&mut v.translated.scratch[3])) {
                    self.note_trouble(v, id, trouble);
                }
                go_on
            }
            abi::DONE => {
                self.stats.helpers += 1;
                true
            }
            abi::HOT => {
                self.promote(v);
                true
            }
            slot => {
                self.stats.unlinked += 1;
                // SAFETY: the stub returns the address of a slot of a region that is alive.
                self.left_by = Some(SlotName::of(unsafe { &*(slot as *const Slot) }));
                true
            }
        }
    }

    /// A window of a region failed, or a guard: if that happens often, the region is made again with less sharing, or
    /// with helpers.
    fn note_trouble(&mut self, v: &mut Vcpu, id: u32, trouble: Trouble) {
        self.stats.troubles += 1;
        let Some(Some(live)) = self.live.get_mut(id as usize) else { return };
        live.troubles += 1;
        if live.troubles < MOST_TROUBLES {
            return;
        }
        let place = (live.region.page, live.region.offset, live.region.key);
        if self.sharing.len() + self.no_x87.len() >= MOST_PLACES {
            self.sharing.clear();
            self.no_x87.clear();
        }
        match trouble {
            Trouble::Write => _ = self.sharing.insert(place, Sharing::Careful),
            Trouble::Crossing => _ = self.sharing.insert(place, Sharing::None),
            Trouble::X87 => _ = self.no_x87.insert(place),
        }
        self.drop_region(v, id);
    }

    /// The first instruction of a block if [`JitOptions::only`] is without it: run alone, so that what follows it in its
    /// block may still be translated.
    fn not_wanted(&self, v: &Vcpu, index: u32) -> Option<Insn> {
        let first = *v.block(index)?.insns.first()?;
        let unwanted = self.options.only.is_some_and(|only| !only.contains(&first.code.mnemonic()));
        // Nothing follows it: see the handler of STI.
        unwanted.then(|| if first.code == iced_x86::Code::Sti { Insn { imm: 0, ..first } } else { first })
    }

    /// Lets indirect branches of translated code find a translation at the current RIP.
    fn remember_jump(&mut self, v: &Vcpu, id: u32) {
        self.book_jump(v, id, v.state.gpr[gpr::RIP]);
        self.note_place(id);
    }

    fn book_jump(&mut self, v: &Vcpu, id: u32, address: u64) {
        let Some(Some(live)) = self.live.get_mut(id as usize) else { return };
        let global = live.region.page2 == NONE && v.code_is_global(address);
        let at = self.links.set_jump(live.region.key, address, live.entry as u64, global);
        if live.jumps.len() <= MOST_JUMPS && !live.jumps.contains(&at) {
            live.jumps.push(at);
        }
    }
}

fn slot_of(live: &[Option<Live>], name: SlotName) -> Option<&Slot> {
    live.get(name.owner as usize)?.as_ref()?.slots.get(usize::from(name.number))
}

impl Translator for Translations {
    fn boundary(&mut self, v: &mut Vcpu) {
        if v.mapping_change != MappingChange::None {
            let change = std::mem::take(&mut v.mapping_change);
            self.mapping_changed(&change);
        }
        self.user_space_changed(v);
        if std::mem::take(&mut v.code_changed) {
            self.drop_stale(v);
        }
        self.take_finished(v);
    }

    fn run(&mut self, v: &mut Vcpu, index: u32) -> bool {
        if self.memory.is_none() || near_the_hole(v, 0) {
            return false;
        }
        let mut index = index;
        let mut ran = false;
        let mut indirect = false;
        self.left_by = None;
        loop {
            let go_on = if let Some(insn) = self.not_wanted(v, index) {
                v.settle_flags();
                (self.left_by, indirect) = (None, false);
                v.run_handler(&insn)
            } else {
                let id = self.translation(v, index);
                // Less would not get it past its first charge.
                let may = |l: &Live| l.charge <= v.budget && !near_the_hole(v, l.reach);
                let may = |id: u32| self.live[id as usize].as_ref().is_some_and(may);
                let Some(id) = id.filter(|&id| may(id)) else { break };
                self.link(v, id);
                if indirect {
                    self.remember_jump(v, id);
                }
                let before = self.stats.lookups;
                let go_on = self.enter(v, id);
                indirect = self.stats.lookups != before;
                go_on
            };
            ran = true;
            if !go_on || v.wants_boundary() || v.budget <= 0 || near_the_hole(v, 0) {
                break;
            }
            match v.next_block() {
                Some(next) => index = next,
                None => break,
            }
        }
        if ran {
            v.settle_flags();
        }
        ran
    }
}
