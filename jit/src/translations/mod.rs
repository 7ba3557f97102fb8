//! All translations of one vCPU: made when blocks turn warm, entered, linked, dropped.
//!
//! They belong to the vCPU's own thread, and are only touched while none of their code runs: so nothing here needs a
//! lock, and code can be dropped at once. What other threads do (writing to code, changing the memory map) arrives by the
//! attention word.
#![allow(unsafe_code)]

mod dropping;
mod linking;
mod making;

use crate::abi::{self, Runtime, Sharing};
use crate::background::Background;
use crate::buffer::CodeBuffer;
use crate::cranelift::Cranelift;
use crate::engine::{JitOptions, Tier};
use crate::links::{Links, SlotName};
use crate::perf_map::PerfMap;
use crate::places::{Places, near_the_hole};
use crate::region::Region;
use crate::runtime::{self, Trouble, collect_float_flags};
use crate::slots::Slot;
use crate::stats::Stats;
use crate::stubs;
use rustc_hash::{FxHashMap, FxHashSet};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use trimaran_cpu::Vcpu;
use trimaran_cpu::blocks::{BlockKey, NONE};
use trimaran_cpu::insn::Insn;
use trimaran_cpu::translate::{MappingChange, Translator};

/// A block that no back end can translate, in [`trimaran_cpu::blocks::Block::translation`].
const REFUSED: u32 = NONE - 1;
/// A block whose first translation is being made in the background. Smaller numbers are regions.
pub const ASKED: u32 = NONE - 2;

/// A region whose windows fail so often is made again.
const MOST_TROUBLES: u32 = 4;
/// So many times for the x87 stack as it is then; afterwards with helpers.
const MOST_STACKS: u32 = 2;
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
    /// Places whose regions had trouble with the x87 unit, and how many had.
    x87_troubles: FxHashMap<(u32, u64, BlockKey), u32>,
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
            x87_troubles: FxHashMap::default(),
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

    fn new_id(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.live.push(None);
            self.live.len() as u32 - 1
        })
    }

    fn slot(&self, name: SlotName) -> Option<&Slot> {
        slot_of(&self.live, name)
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
    /// for the x87 stack as it is then.
    fn note_trouble(&mut self, v: &mut Vcpu, id: u32, trouble: Trouble) {
        self.stats.troubles += 1;
        let Some(Some(live)) = self.live.get_mut(id as usize) else { return };
        live.troubles += 1;
        if live.troubles < MOST_TROUBLES {
            return;
        }
        let place = (live.region.page, live.region.offset, live.region.key);
        if self.sharing.len() + self.x87_troubles.len() >= MOST_PLACES {
            self.sharing.clear();
            self.x87_troubles.clear();
        }
        match trouble {
            Trouble::Write => _ = self.sharing.insert(place, Sharing::Careful),
            Trouble::Crossing => _ = self.sharing.insert(place, Sharing::None),
            Trouble::X87 => *self.x87_troubles.entry(place).or_default() += 1,
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
