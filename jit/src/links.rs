//! The ways from one region straight into another, and when they must be cut.
//!
//! A *local* link leads to the same page as the region it leaves: it is right wherever that page is mapped. A *far* link
//! and an entry of the jump table depend on the mapping and go when it changes: those to global pages survive a load of CR3. All
//! links into a region are cut when it is dropped.

use crate::abi::{JUMP_ENTRIES, JumpEntry, Slot, jump_index};
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::atomic::Ordering;
use trimaran_cpu::blocks::BlockKey;
use trimaran_cpu::translate::MappingChange;

/// A slot by the region it belongs to and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotName {
    pub owner: u32,
    pub number: u32,
}

impl SlotName {
    /// The name of a slot that code has returned the address of.
    pub fn of(slot: &Slot) -> Self {
        SlotName { owner: slot.owner, number: slot.number }
    }
}

const GRAIN: u64 = MappingChange::GRAIN;
const EMPTY: JumpEntry = JumpEntry { tag: !0, code: 0 };

/// The targets of indirect branches for code of one key.
struct JumpTable {
    entries: Box<[JumpEntry]>,
    /// In the upper 16 bits of the salt; never 0 and never all ones, so that an empty entry matches no address.
    epoch: u16,
    /// Entries for pages that are not global, as far as this list goes.
    local: Vec<u16>,
    /// Stretches of addresses that entries lead to.
    pages: FxHashSet<u64>,
}

impl JumpTable {
    /// With more local entries than this all are dropped at once.
    const MOST_LOCAL: usize = 512;

    fn new() -> Self {
        let entries = vec![EMPTY; JUMP_ENTRIES].into();
        JumpTable { entries, epoch: 1, local: Vec::new(), pages: FxHashSet::default() }
    }

    fn salt(&self) -> u64 {
        u64::from(self.epoch) << 48
    }

    fn set(&mut self, address: u64, code: u64, global: bool) -> u16 {
        let at = jump_index(address);
        self.entries[at] = JumpEntry { tag: address ^ self.salt(), code };
        self.pages.insert(address & !(GRAIN - 1));
        if self.pages.len() > JUMP_ENTRIES {
            // Most of these entries were replaced long ago.
            let salt = self.salt();
            self.pages = self.entries.iter().map(|e| (e.tag ^ salt) & !(GRAIN - 1)).collect();
        }
        if !global && self.local.len() <= Self::MOST_LOCAL {
            self.local.push(at as u16);
        }
        at as u16
    }

    fn drop_page(&mut self, page: u64) {
        if self.pages.remove(&page) {
            let salt = self.salt();
            for entry in &mut self.entries {
                if (entry.tag ^ salt) & !(GRAIN - 1) == page {
                    *entry = EMPTY;
                }
            }
        }
    }

    fn drop_local(&mut self) {
        if self.local.len() > Self::MOST_LOCAL {
            return self.drop_all();
        }
        // An entry that was replaced by a global one since goes too: it will be found again.
        for at in self.local.drain(..) {
            self.entries[usize::from(at)] = EMPTY;
        }
    }

    fn drop_all(&mut self) {
        self.local.clear();
        self.pages.clear();
        self.epoch += 1;
        if self.epoch == !0 {
            self.epoch = 1;
            self.entries.fill(EMPTY);
        }
    }
}

/// The links that depend on the mapping.
pub struct Links {
    /// Far links and the addresses they were made for: to pages that are not global, and to such that are.
    local: FxHashMap<SlotName, u64>,
    global: FxHashMap<SlotName, u64>,
    tables: FxHashMap<BlockKey, JumpTable>,
}

impl Links {
    pub fn new() -> Self {
        Links { local: FxHashMap::default(), global: FxHashMap::default(), tables: FxHashMap::default() }
    }

    /// Address and salt of the jump table for code of a key.
    pub fn table(&mut self, key: BlockKey) -> (usize, u64) {
        let table = self.tables.entry(key).or_insert_with(JumpTable::new);
        (table.entries.as_ptr() as usize, table.salt())
    }

    /// Lets indirect branches find the code of an address. Returns where it stands in the table.
    pub fn set_jump(&mut self, key: BlockKey, address: u64, code: u64, global: bool) -> u16 {
        self.tables.entry(key).or_insert_with(JumpTable::new).set(address, code, global)
    }

    /// Drops an entry if it still leads to this code.
    pub fn clear_jump(&mut self, key: BlockKey, at: u16, code: u64) {
        let Some(table) = self.tables.get_mut(&key) else { return };
        let entry = &mut table.entries[usize::from(at) % JUMP_ENTRIES];
        if entry.code == code {
            *entry = EMPTY;
        }
    }

    /// Notes a link that depends on where `address` is mapped.
    pub fn note_far(&mut self, slot: SlotName, address: u64, global: bool) {
        let list = if global { &mut self.global } else { &mut self.local };
        list.insert(slot, address);
    }

    /// Forgets what a change of the mapping makes doubtful. `cut` is called with each slot to be cut and the address
    /// that it was linked for.
    pub fn mapping_changed(&mut self, change: &MappingChange, mut cut: impl FnMut(SlotName, u64)) {
        let mut cut_all =
            |list: &mut FxHashMap<SlotName, u64>| list.drain().for_each(|(slot, address)| cut(slot, address));
        match change {
            MappingChange::None => {}
            MappingChange::Pages(pages) => {
                self.tables.values_mut().for_each(|t| pages.iter().for_each(|&page| t.drop_page(page)));
                for list in [&mut self.local, &mut self.global] {
                    let stale = |_: &SlotName, address: &mut u64| pages.contains(&(*address & !(GRAIN - 1)));
                    list.extract_if(stale).for_each(|(slot, address)| cut(slot, address));
                }
            }
            MappingChange::NotGlobal => {
                self.tables.values_mut().for_each(JumpTable::drop_local);
                cut_all(&mut self.local);
            }
            MappingChange::All => {
                self.tables.values_mut().for_each(JumpTable::drop_all);
                cut_all(&mut self.local);
                cut_all(&mut self.global);
            }
        }
    }
}

/// Whether a slot still leads to an address.
pub fn leads_to(slot: &Slot, address: u64) -> bool {
    slot.address.load(Ordering::Relaxed) == address
}
