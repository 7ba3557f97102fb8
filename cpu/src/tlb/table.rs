//! The entries of one privilege class.

use super::{ENTRIES, Entry, Note, no_tag, slot};
use std::ops::Range;

/// Entries that others took the slot of, kept.
const VICTIMS: usize = 8;
/// With more entries than this that are not global, all are looked at to drop them.
const MOST_LOCAL: usize = 1024;

/// See the head of this file. What was evicted last is kept: pages that share a slot and are used in turns are found here
/// again; with 16 MiB between two streams, each access would walk the page tables.
pub struct Table {
    pub entries: Box<[Entry; ENTRIES]>,
    pub notes: Box<[Note; ENTRIES]>,
    /// With the slot that each was in.
    victims: [(usize, Entry, Note); VICTIMS],
    next_victim: usize,
    /// Slots that were filled with an entry that is not global, as far as this list goes.
    local: Vec<u16>,
    /// Whether there may be entries at all, and global ones.
    used: bool,
    global: bool,
}

/// Made on the heap: a thread's stack is no place for 128 KiB.
fn boxed<T>(item: impl Fn(usize) -> T) -> Box<[T; ENTRIES]> {
    let items: Box<[T]> = (0..ENTRIES).map(item).collect();
    items.try_into().unwrap_or_else(|_| unreachable!("as many as were made"))
}

impl Table {
    pub fn new() -> Self {
        Table {
            entries: boxed(Entry::invalid),
            notes: boxed(|_| Note::default()),
            victims: [(0, Entry::invalid(0), Note::default()); VICTIMS],
            next_victim: 0,
            local: Vec::new(),
            used: false,
            global: false,
        }
    }

    pub fn fill(&mut self, slot: usize, entry: Entry, note: Note) {
        self.used = true;
        self.global |= note.global;
        if !note.global && self.local.len() <= MOST_LOCAL {
            self.local.push(slot as u16);
        }
        // Of the same page only what was walked last counts: it may allow less.
        for victim in self.victims.iter_mut().filter(|v| v.0 == slot && v.2.linear == note.linear) {
            victim.1 = Entry::invalid(slot);
        }
        if self.notes[slot].linear != note.linear {
            self.victims[self.next_victim] = (slot, self.entries[slot], self.notes[slot]);
            self.next_victim = (self.next_victim + 1) % VICTIMS;
        }
        (self.entries[slot], self.notes[slot]) = (entry, note);
    }

    /// Brings back what was evicted from a slot, if it allows what is wanted.
    pub fn recall(&mut self, slot: usize, allows: impl Fn(&Entry) -> bool) -> bool {
        // Of an invalid entry the tag matches addresses of another slot only.
        let Some(victim) = self.victims.iter_mut().find(|(s, e, _)| *s == slot && allows(e)) else {
            return false;
        };
        std::mem::swap(&mut victim.1, &mut self.entries[slot]);
        std::mem::swap(&mut victim.2, &mut self.notes[slot]);
        true
    }

    pub fn forget_victims(&mut self) {
        if self.used {
            self.victims = [(0, Entry::invalid(0), Note::default()); VICTIMS];
        }
    }

    /// Drops everything.
    pub fn flush(&mut self) {
        self.flush_local();
        if std::mem::take(&mut self.global) {
            self.entries.iter_mut().enumerate().for_each(|(i, entry)| *entry = Entry::invalid(i));
        }
        self.used = false;
    }

    /// Drops what is not global.
    pub fn flush_local(&mut self) {
        self.forget_victims();
        let drop = |entries: &mut [Entry; ENTRIES], i: usize, note: &Note| {
            if !note.global {
                entries[i] = Entry::invalid(i);
            }
        };
        if self.local.len() > MOST_LOCAL {
            self.local.clear();
            self.notes.iter().enumerate().for_each(|(i, note)| drop(&mut self.entries, i, note));
        } else {
            for i in self.local.drain(..) {
                drop(&mut self.entries, i.into(), &self.notes[usize::from(i)]);
            }
        }
    }

    /// Drops the entries of a page; `large`: it may be a large one.
    pub fn flush_page(&mut self, address: u64, large: bool) {
        self.forget_victims();
        let index = slot(address);
        self.entries[index] = Entry::invalid(index);
        if large {
            self.drop_large(address, |_| true);
        }
    }

    /// As [`Table::flush_page`], but only what is global.
    pub fn flush_global_page(&mut self, address: u64, large: bool) {
        self.forget_victims();
        let index = slot(address);
        if self.notes[index].global {
            self.entries[index] = Entry::invalid(index);
        }
        if large {
            self.drop_large(address, |note| note.global);
        }
    }

    fn drop_large(&mut self, address: u64, which: impl Fn(&Note) -> bool) {
        for (i, note) in self.notes.iter().enumerate() {
            if note.shift > 12 && (note.linear ^ address) >> note.shift == 0 && which(note) {
                self.entries[i] = Entry::invalid(i);
            }
        }
    }

    /// Drops all write tags.
    pub fn drop_writes(&mut self) {
        if self.used {
            self.drop_writes_of(0..ENTRIES, |_| true);
        }
    }

    /// Drops the write tags of some slots, for some RAM pages.
    pub fn drop_writes_of(&mut self, slots: Range<usize>, which: impl Fn(u32) -> bool) {
        self.forget_victims();
        for i in slots {
            if which(self.notes[i].ram_page) {
                self.entries[i].write = no_tag(i);
            }
        }
    }

    /// Valid entries.
    pub fn valid(&self) -> impl Iterator<Item = (&Entry, Note)> {
        let valid = |i: usize, e: &Entry| e.read != no_tag(i) || e.execute != no_tag(i);
        let entries = self.entries.iter().zip(self.notes.iter().copied()).enumerate();
        entries.filter(move |(i, e)| valid(*i, e.0)).map(|x| x.1)
    }
}
