//! The ways from one region straight into another, and when they must be cut.
//!
//! A *local* link leads to the same page as the region it leaves: it is right wherever that page is mapped. A *far* link
//! and an entry of the jump table depend on the mapping; far links are cut when it changes, jump tables get another
//! salt. All links into a region are cut when it is dropped.

use crate::abi::{JUMP_ENTRIES, JumpEntry, Slot, jump_index};
use rustc_hash::FxHashMap;
use std::sync::atomic::Ordering;
use trimaran_cpu::blocks::BlockKey;
use trimaran_cpu::ram::PAGE;
use trimaran_cpu::translate::MappingChange;

/// A slot by the region it belongs to and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// A far link that was made since the mapping last changed.
struct Far {
    slot: SlotName,
    address: u64,
    global: bool,
}

/// The links that depend on the mapping.
pub struct Links {
    far: Vec<Far>,
    tables: FxHashMap<BlockKey, Box<[JumpEntry]>>,
    /// In the upper 16 bits of a salt; never 0 and never all ones, so that an empty entry matches no address.
    epoch: u16,
}

const EMPTY: JumpEntry = JumpEntry { tag: !0, code: 0 };

impl Links {
    pub fn new() -> Self {
        Links { far: Vec::new(), tables: FxHashMap::default(), epoch: 1 }
    }

    pub fn salt(&self) -> u64 {
        u64::from(self.epoch) << 48
    }

    /// The jump table for code of a key.
    pub fn table(&mut self, key: BlockKey) -> &mut [JumpEntry] {
        self.tables.entry(key).or_insert_with(|| vec![EMPTY; JUMP_ENTRIES].into())
    }

    /// Lets indirect branches find the code of an address. Returns where it stands in the table.
    pub fn set_jump(&mut self, key: BlockKey, address: u64, code: u64) -> u16 {
        let tag = address ^ self.salt();
        let at = jump_index(address);
        self.table(key)[at] = JumpEntry { tag, code };
        at as u16
    }

    /// Drops an entry if it still leads to this code.
    pub fn clear_jump(&mut self, key: BlockKey, at: u16, code: u64) {
        let entry = &mut self.table(key)[usize::from(at) % JUMP_ENTRIES];
        if entry.code == code {
            *entry = EMPTY;
        }
    }

    /// Notes a link that depends on where `address` is mapped.
    pub fn note_far(&mut self, slot: SlotName, address: u64, global: bool) {
        self.far.push(Far { slot, address, global });
    }

    /// Forgets what a change of the mapping makes doubtful. `cut` is called with each slot to be cut and the address
    /// that it was linked for.
    pub fn mapping_changed(&mut self, change: &MappingChange, mut cut: impl FnMut(SlotName, u64)) {
        let stale = |far: &Far| match change {
            MappingChange::None => false,
            MappingChange::Pages(pages) => pages.contains(&(far.address & !(PAGE - 1))),
            MappingChange::NotGlobal => !far.global,
            MappingChange::All => true,
        };
        self.far.retain(|far| {
            let stale = stale(far);
            if stale {
                cut(far.slot, far.address);
            }
            !stale
        });
        if *change != MappingChange::None {
            self.new_epoch();
        }
    }

    fn new_epoch(&mut self) {
        self.epoch += 1;
        if self.epoch == !0 {
            self.epoch = 1;
            for table in self.tables.values_mut() {
                table.fill(EMPTY);
            }
        }
    }
}

/// Whether a slot still leads to an address.
pub fn leads_to(slot: &Slot, address: u64) -> bool {
    slot.address.load(Ordering::Relaxed) == address
}
