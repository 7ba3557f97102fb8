//! The ways from one region straight into another, and when they must be cut.
//!
//! A *local* link leads to the same page as the region it leaves: it is right wherever that page is mapped. A *far* link
//! and an entry of the jump table depend on the mapping. In the supervisor's code they go when it changes: those to global
//! pages survive a load of CR3. In user code they carry the salt of the space they were made in, and match nothing in
//! another one. All links into a region are cut when it is dropped.

use crate::abi::{JUMP_ENTRIES, JumpEntry, jump_index, user_salt};
use crate::slots::Slot;
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::atomic::Ordering;
use trimaran_cpu::blocks::BlockKey;
use trimaran_cpu::translate::MappingChange;

/// A slot by the region it belongs to and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotName {
    pub owner: u32,
    pub number: u16,
}

impl SlotName {
    /// The name of a slot that code has returned the address of.
    pub fn of(slot: &Slot) -> Self {
        SlotName { owner: slot.owner, number: slot.number }
    }
}

const GRAIN: u64 = MappingChange::GRAIN;
const EMPTY: JumpEntry = JumpEntry { tag: !0, code: 0 };

/// With more places in a jump table than this a region is searched for there.
pub const MOST_JUMPS: usize = 64;

/// The targets of indirect branches for supervisor code of one key.
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

/// The links of user code.
#[derive(Default)]
struct UserLinks {
    tables: FxHashMap<BlockKey, Box<[JumpEntry]>>,
    /// Slots with a salt in their tags.
    salted: FxHashSet<SlotName>,
    /// Slots whose tags code does not look at, but that depend on the mapping.
    unchecked: FxHashSet<SlotName>,
    era: u32,
    space: u16,
}

impl UserLinks {
    fn table(&mut self, key: BlockKey) -> &mut Box<[JumpEntry]> {
        self.tables.entry(key).or_insert_with(|| vec![EMPTY; JUMP_ENTRIES].into())
    }
}

/// The links that depend on the mapping.
pub struct Links {
    user: UserLinks,
    /// Far links and the addresses they were made for: to pages that are not global, and to such that are.
    local: FxHashMap<SlotName, u64>,
    global: FxHashMap<SlotName, u64>,
    tables: FxHashMap<BlockKey, JumpTable>,
}

impl Links {
    pub fn new() -> Self {
        Links {
            user: UserLinks::default(),
            local: FxHashMap::default(),
            global: FxHashMap::default(),
            tables: FxHashMap::default(),
        }
    }

    /// Address and salt of the jump table for code of a key.
    pub fn table(&mut self, key: BlockKey) -> (usize, u64) {
        if key.user() {
            return (self.user.table(key).as_ptr() as usize, user_salt(self.user.space));
        }
        let table = self.tables.entry(key).or_insert_with(JumpTable::new);
        (table.entries.as_ptr() as usize, table.salt())
    }

    /// Lets indirect branches find the code of an address. Returns where it stands in the table.
    pub fn set_jump(&mut self, key: BlockKey, address: u64, code: u64, global: bool) -> u16 {
        if key.user() {
            let tag = address ^ user_salt(self.user.space);
            self.user.table(key)[jump_index(tag)] = JumpEntry { tag, code };
            return jump_index(tag) as u16;
        }
        self.tables.entry(key).or_insert_with(JumpTable::new).set(address, code, global)
    }

    /// Drops the entries that still lead to this code.
    pub fn clear_jumps(&mut self, key: BlockKey, places: &[u16], code: u64) {
        let table = if key.user() {
            self.user.tables.get_mut(&key)
        } else {
            self.tables.get_mut(&key).map(|t| &mut t.entries)
        };
        let Some(table) = table else { return };
        let clear = |entry: &mut JumpEntry| {
            if entry.code == code {
                *entry = EMPTY;
            }
        };
        if places.len() > MOST_JUMPS {
            table.iter_mut().for_each(clear);
        } else {
            places.iter().for_each(|&at| clear(&mut table[usize::from(at) % JUMP_ENTRIES]));
        }
    }

    /// Notes a link of user code that carries the salt of its space.
    pub fn note_user(&mut self, slot: SlotName) {
        self.user.salted.insert(slot);
    }

    /// Notes a link of user code that is right in the current space only, and that nothing checks.
    pub fn note_unchecked(&mut self, slot: SlotName) {
        self.user.unchecked.insert(slot);
    }

    /// The space of user code as it is now. `cut` is called with each slot to be cut.
    pub fn user_space(&mut self, era: u32, space: u16, mut cut: impl FnMut(SlotName)) {
        let user = &mut self.user;
        if (era, space) == (user.era, user.space) {
            return;
        }
        user.unchecked.drain().for_each(&mut cut);
        if era != user.era {
            user.tables.values_mut().for_each(|t| t.fill(EMPTY));
            user.salted.drain().for_each(cut);
        }
        (user.era, user.space) = (era, space);
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

/// Whether a slot of supervisor code still leads to an address.
pub fn leads_to(slot: &Slot, address: u64) -> bool {
    slot.tags[0].load(Ordering::Relaxed) == address
}

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_cpu::state::CpuState;
    use trimaran_cpu::tlb::Tlb;

    /// Numbers of spaces are used again in the next era: what bears an old one must be gone by then.
    #[test]
    fn links_of_user_code_do_not_outlive_their_era() {
        let mut state = CpuState::reset(0, true);
        state.cpl = 3;
        let key = BlockKey::of(&state);
        let mut links = Links::new();
        let (salted, unchecked) = (SlotName { owner: 1, number: 2 }, SlotName { owner: 3, number: 4 });
        let mut cut = Vec::new();
        links.user_space(0, 7, |name| cut.push(name));
        let at = links.set_jump(key, 0x1234, 99, false);
        links.note_user(salted);
        links.note_unchecked(unchecked);
        links.user_space(0, 7, |name| cut.push(name));
        assert_eq!(cut, []);
        links.user_space(0, 8, |name| cut.push(name));
        assert_eq!(cut, [unchecked]);
        assert_eq!(links.user.table(key)[usize::from(at)].code, 99, "kept for when space 7 comes again");
        links.user_space(1, 7, |name| cut.push(name));
        assert_eq!(cut, [unchecked, salted]);
        assert_eq!(links.user.table(key)[usize::from(at)].tag, EMPTY.tag);
    }

    #[test]
    fn tags_of_spaces_are_apart() {
        let addresses = [0, 0x1000, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, !0];
        let mut tags = FxHashSet::default();
        for space in (1..Tlb::NUMBERS).step_by(97).chain([Tlb::NUMBERS - 1]) {
            for address in addresses {
                assert!(tags.insert(address ^ user_salt(space)));
                assert_ne!(address ^ user_salt(space), EMPTY.tag);
            }
        }
    }
}
