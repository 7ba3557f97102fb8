//! The software TLB: from linear pages to host addresses, with a tag each for read, write and execute.
//!
//! A tag is the linear page address, or a value that no address selecting this entry can match. One compare,
//! `(tag ^ address) <= 4096 - size`, tells hit, permission and page crossing at once. Tables stand for
//! the privilege classes; what a class may not do has no tag. A page with a code mark (see `ram.rs`) has no
//! write tag.

/// Entries per class; a power of two.
pub const ENTRIES: usize = 1024;

/// Privilege class of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// CPL 0 to 2, or an implicit supervisor access. Under SMAP: with AC = 0.
    Supervisor = 0,
    User = 1,
    /// Supervisor under SMAP with AC = 1.
    SupervisorAc = 2,
    /// A table that is never filled: every access takes the slow path, which looks at alignment checks and
    /// breakpoints.
    Slow = 3,
}

/// One entry: 32 bytes, so that translated code finds it by a shift.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub read: u64,
    pub write: u64,
    pub execute: u64,
    /// Host address of the page less the linear address: add the linear address to reach the byte.
    pub addend: u64,
}

/// What belongs to an entry, but not on the fast path.
#[derive(Clone, Copy, Debug, Default)]
pub struct Note {
    /// Page number in [`crate::ram::Ram`].
    pub ram_page: u32,
    /// From a page-table entry with G set.
    pub global: bool,
    /// Binary logarithm of the size of the guest's page: 12, 21, 22 or 30.
    pub shift: u8,
    pub linear: u64,
}

impl Entry {
    /// An entry for slot `index` that matches nothing: its tag is a page of another slot.
    const fn invalid(index: usize) -> Self {
        let tag = ((index ^ 1) as u64) << 12;
        Entry { read: tag, write: tag, execute: tag, addend: 0 }
    }
}

/// The tags that match nothing in slot `index`.
pub const fn no_tag(index: usize) -> u64 {
    ((index ^ 1) as u64) << 12
}

/// Which slot holds write tags for the RAM pages of one hash class, so that dropping them need not search.
#[derive(Clone, Copy, Default)]
struct Writer {
    page: u32,
    slot: u16,
    used: bool,
    /// Several slots or pages: search.
    many: bool,
}

const WRITERS: usize = 4096;

/// Entries per class that others took the slot of.
const VICTIMS: usize = 8;

/// What was evicted last. Pages that share a slot and are used in turns are found here again: with 4 MiB between two streams,
/// each access would walk the page tables.
struct Victims {
    /// With the slot that each was in.
    entries: [(usize, Entry, Note); VICTIMS],
    next: usize,
}

impl Default for Victims {
    fn default() -> Self {
        Victims { entries: [(0, Entry::invalid(0), Note::default()); VICTIMS], next: 0 }
    }
}

pub struct Tlb {
    classes: [Box<[Entry; ENTRIES]>; 4],
    notes: [Box<[Note; ENTRIES]>; 4],
    victims: [Victims; 4],
    /// Whether a class may hold entries: empty ones need no flush.
    used: [bool; 4],
    /// Whether there may be entries of pages larger than 4 KiB.
    large: bool,
    writers: Box<[Writer]>,
}

impl Default for Tlb {
    fn default() -> Self {
        let table = || Box::new(std::array::from_fn(Entry::invalid));
        let notes = || Box::new([Note::default(); ENTRIES]);
        Tlb {
            classes: [table(), table(), table(), table()],
            notes: [notes(), notes(), notes(), notes()],
            victims: Default::default(),
            used: [false; 4],
            large: false,
            writers: vec![Writer::default(); WRITERS].into(),
        }
    }
}

/// Whether an access of `size` bytes at `address` stays on the page of `tag`.
#[inline(always)]
pub fn hits(tag: u64, address: u64, size: u64) -> bool {
    tag ^ address <= 4096 - size
}

/// The slot of an address. Folding in higher bits keeps apart what lies a multiple of 4 MiB apart: the kernel's areas do
/// (12 million misses in a boot of Linux without it, 5 million with it).
#[inline(always)]
pub fn slot(address: u64) -> usize {
    (address >> 12 ^ address >> 22) as usize & (ENTRIES - 1)
}

impl Tlb {
    #[inline(always)]
    pub fn entry(&self, class: Class, address: u64) -> &Entry {
        &self.classes[class as usize][slot(address)]
    }
    /// The note to [`Tlb::entry`].
    #[inline(always)]
    pub fn note(&self, class: Class, address: u64) -> Note {
        self.notes[class as usize][slot(address)]
    }
    /// Fills the entry of an address.
    pub fn fill(&mut self, class: Class, address: u64, entry: Entry, note: Note) {
        self.used[class as usize] = true;
        self.large |= note.shift > 12;
        let (class, slot) = (class as usize, slot(address));
        let victims = &mut self.victims[class];
        victims.entries[victims.next] = (slot, self.classes[class][slot], self.notes[class][slot]);
        victims.next = (victims.next + 1) % VICTIMS;
        (self.classes[class][slot], self.notes[class][slot]) = (entry, note);
    }
    /// Brings back what was evicted, if it allows an access. What may make an entry wrong drops all that were evicted.
    pub fn recall(&mut self, class: Class, address: u64, size: u64, write: bool) -> bool {
        let (class, slot) = (class as usize, slot(address));
        let allows = |e: &Entry| hits(if write { e.write } else { e.read }, address, size);
        // Of an invalid entry the tag matches addresses of another slot only.
        let mut victims = self.victims[class].entries.iter_mut();
        let Some(victim) = victims.find(|(s, e, _)| *s == slot && allows(e)) else { return false };
        std::mem::swap(&mut victim.1, &mut self.classes[class][slot]);
        std::mem::swap(&mut victim.2, &mut self.notes[class][slot]);
        true
    }
    fn forget_victims(&mut self) {
        self.victims = Default::default();
    }
    /// Where translated code finds the entries of a class.
    pub fn table(&self, class: Class) -> *const Entry {
        self.classes[class as usize].as_ptr()
    }
    /// Drops everything, or everything but global pages.
    pub fn flush(&mut self, keep_global: bool) {
        self.forget_victims();
        self.large &= keep_global;
        for class in 0..self.classes.len() {
            if !self.used[class] {
                continue;
            }
            self.used[class] = keep_global;
            for (i, entry) in self.classes[class].iter_mut().enumerate() {
                if !(keep_global && self.notes[class][i].global) {
                    *entry = Entry::invalid(i);
                }
            }
        }
    }
    /// Drops the entries of the page that an address lies in (INVLPG), all parts of it if it is a large one.
    pub fn flush_page(&mut self, address: u64) {
        self.forget_victims();
        let index = slot(address);
        for table in &mut self.classes {
            table[index] = Entry::invalid(index);
        }
        if !self.large {
            return;
        }
        for (table, notes) in self.classes.iter_mut().zip(&self.notes) {
            for (i, note) in notes.iter().enumerate() {
                if note.shift > 12 && (note.linear ^ address) >> note.shift == 0 {
                    table[i] = Entry::invalid(i);
                }
            }
        }
    }
    /// Notes that slot `index` is about to get a write tag for `ram_page`.
    pub fn note_writer(&mut self, ram_page: u32, index: usize) {
        let w = &mut self.writers[ram_page as usize & (WRITERS - 1)];
        if w.used && (w.page != ram_page || usize::from(w.slot) != index) {
            w.many = true;
        }
        (w.page, w.slot, w.used) = (ram_page, index as u16, true);
    }
    /// Drops all write tags: the next write takes the slow path.
    pub fn drop_writes(&mut self) {
        self.forget_victims();
        self.writers.fill(Writer::default());
        for table in &mut self.classes {
            for (i, entry) in table.iter_mut().enumerate() {
                entry.write = no_tag(i);
            }
        }
    }
    /// Drops the write tags of one RAM page.
    pub fn drop_page_writes(&mut self, ram_page: u32) {
        self.forget_victims();
        let w = std::mem::take(&mut self.writers[ram_page as usize & (WRITERS - 1)]);
        if !w.used {
            return;
        }
        let slots = if w.many { 0..ENTRIES } else { usize::from(w.slot)..usize::from(w.slot) + 1 };
        for (table, notes) in self.classes.iter_mut().zip(&self.notes) {
            for i in slots.clone() {
                // With several pages in this hash class all of them are dropped: the note of them is gone.
                if notes[i].ram_page as usize & (WRITERS - 1) == ram_page as usize & (WRITERS - 1) {
                    table[i].write = no_tag(i);
                }
            }
        }
    }
    /// Valid entries of a class, for the monitor.
    pub fn valid(&self, class: Class) -> impl Iterator<Item = (&Entry, Note)> {
        let table = self.classes[class as usize].iter().zip(self.notes[class as usize].iter().copied());
        let valid = |i: usize, e: &Entry| e.read != no_tag(i) || e.execute != no_tag(i);
        table.enumerate().filter(move |(i, e)| valid(*i, e.0)).map(|x| x.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(page: u64) -> Entry {
        Entry { read: page << 12, write: page << 12, execute: no_tag(slot(page << 12)), addend: page }
    }

    #[test]
    fn evicted_pages_come_back_until_something_is_dropped() {
        let mut tlb = Tlb::default();
        // The same slot.
        let pages = [5, 4 + ENTRIES as u64, 7 + 2 * ENTRIES as u64];
        assert!(!tlb.recall(Class::User, 0, 1, false), "nothing was evicted");
        for page in pages {
            tlb.fill(Class::User, page << 12, entry(page), Note::default());
        }
        for page in [pages[0], pages[1], pages[2], pages[0]] {
            assert!(tlb.recall(Class::User, page << 12, 8, true));
            assert_eq!(tlb.entry(Class::User, page << 12).addend, page);
        }
        assert!(!tlb.recall(Class::Supervisor, pages[1] << 12, 8, false), "another class's");
        assert!(!tlb.recall(Class::User, (pages[1] << 12) + 0xFFC, 8, false), "it crosses the page");
        // What stands in the slot of an invalid entry is not found either.
        assert!(!tlb.recall(Class::User, 4 << 12, 1, false));
        for drop in [|t: &mut Tlb| t.flush(true), |t: &mut Tlb| t.flush_page(9 << 12), Tlb::drop_writes] {
            tlb.fill(Class::User, pages[0] << 12, entry(pages[0]), Note::default());
            tlb.fill(Class::User, pages[1] << 12, entry(pages[1]), Note::default());
            drop(&mut tlb);
            assert!(!tlb.recall(Class::User, pages[0] << 12, 1, false));
        }
    }
}
