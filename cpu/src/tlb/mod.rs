//! The software TLB: from linear pages to host addresses, with a tag each for read, write and execute.
//!
//! A tag is the linear page address, or a value that no address selecting this entry can match. One compare,
//! `(tag ^ address) <= 4096 - size`, tells hit, permission and page crossing at once. Tables stand for
//! the privilege classes; what a class may not do has no tag. A page with a code mark (see `ram.rs`) has no
//! write tag.
//!
//! Contexts. With PCIDs the entries that are not global belong to an address space, so user accesses have tables for each of
//! the last few PCIDs; `MOV CR3` exchanges them. *Spaces* number what code may be found at which address: short cuts
//! from addresses to code (links, jump tables) carry the number of the space they were made in, and those of an old
//! number match nothing. User code has a space for each context; the supervisor's code has one, as its pages are global
//! where there are many contexts.

mod filter;
mod table;

use filter::Filter;
use table::Table;

/// Entries per class; a power of two. They reach 16 MiB: with 1,024 of them, zstd -9, whose tables are larger, took twice
/// as long (16.5 million misses instead of 0.8).
pub const ENTRIES: usize = 4096;

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
    /// An entry for slot `index` that matches nothing.
    const fn invalid(index: usize) -> Self {
        let tag = no_tag(index);
        Entry { read: tag, write: tag, execute: tag, addend: 0 }
    }
}

/// The tag that matches nothing in slot `index`: the first or second page, whose slot is another one.
pub const fn no_tag(index: usize) -> u64 {
    (!index as u64 & 1) << 12
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

/// Contexts that are kept, beside the current one.
const PARKED: usize = 7;

/// Which code may be where.
#[derive(Default)]
struct Space {
    /// See [`Tlb::space`].
    number: u16,
    /// Pages that have execute tags, and maybe others.
    code: Filter,
}

/// What is kept of a PCID that is not the current one.
struct Context {
    pcid: u16,
    user: Table,
    supervisor_ac: Table,
    space: Space,
    /// Its write tags must be dropped before it is used.
    writes_doubtful: bool,
}

pub struct Tlb {
    /// By class. User and SupervisorAc: the current context's.
    classes: [Table; 4],
    pcid: u16,
    user: Space,
    supervisor: Space,
    /// Supervisor code was fetched from pages that are not global.
    local_code: bool,
    /// The least recently used first.
    parked: Vec<Context>,
    last_number: u16,
    era: u32,
    /// Pages larger than 4 KiB.
    large: Filter,
    writers: Box<[Writer]>,
}

/// What INVLPG may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SupervisorCode {
    Same,
    /// What lies within some 4 MiB.
    Near,
    /// More than that.
    Any,
}

impl Default for Tlb {
    fn default() -> Self {
        let mut tlb = Tlb {
            classes: std::array::from_fn(|_| Table::new()),
            pcid: 0,
            user: Space::default(),
            supervisor: Space::default(),
            local_code: false,
            parked: Vec::new(),
            last_number: 0,
            era: 0,
            large: Filter::default(),
            writers: vec![Writer::default(); WRITERS].into(),
        };
        tlb.renew_spaces();
        tlb
    }
}

/// Whether an access of `size` bytes at `address` stays on the page of `tag`.
#[inline(always)]
pub fn hits(tag: u64, address: u64, size: u64) -> bool {
    tag ^ address <= 4096 - size
}

/// The slot of an address. Folding in higher bits keeps apart what lies a multiple of 16 MiB apart, as the kernel's areas
/// do. Only the low 32 bits count, which saves translated code two prefixes for each access.
#[inline(always)]
pub fn slot(address: u64) -> usize {
    (address >> 12 ^ address >> 20) as usize & (ENTRIES - 1)
}

impl Tlb {
    /// Numbers of spaces are below this, and above 0.
    pub const NUMBERS: u16 = 1 << 15;

    #[inline(always)]
    pub fn entry(&self, class: Class, address: u64) -> &Entry {
        &self.classes[class as usize].entries[slot(address)]
    }
    /// The note to [`Tlb::entry`].
    #[inline(always)]
    pub fn note(&self, class: Class, address: u64) -> Note {
        self.classes[class as usize].notes[slot(address)]
    }
    /// The space of code that is fetched by a class: a number that stays as long as its addresses mean the same, and is
    /// not used again in this [`Tlb::era`].
    pub fn space(&self, class: Class) -> u16 {
        if class == Class::User { self.user.number } else { self.supervisor.number }
    }
    /// How often numbers of spaces began anew.
    pub fn era(&self) -> u32 {
        self.era
    }
    /// Fills the entry of an address. `fetched`: for an instruction fetch; only then it has a tag for execution, unless it
    /// had one already.
    pub fn fill(&mut self, class: Class, address: u64, mut entry: Entry, note: Note, fetched: bool) {
        let index = slot(address);
        let table = &mut self.classes[class as usize];
        if fetched {
            let space = if class == Class::User { &mut self.user } else { &mut self.supervisor };
            space.code.insert(address, note.shift);
            self.local_code |= class != Class::User && !note.global;
        } else if !hits(table.entries[index].execute, address, 1) {
            entry.execute = no_tag(index);
        }
        if note.shift > 12 {
            self.large.insert(address, note.shift);
        }
        table.fill(index, entry, note);
    }
    /// Brings back what was evicted, if it allows an access. What may make an entry wrong drops all that were evicted.
    pub fn recall(&mut self, class: Class, address: u64, size: u64, write: bool) -> bool {
        self.classes[class as usize]
            .recall(slot(address), |e| hits(if write { e.write } else { e.read }, address, size))
    }
    /// Where translated code finds the entries of a class.
    pub fn table(&self, class: Class) -> *const Entry {
        self.classes[class as usize].entries.as_ptr()
    }

    /// Gives all spaces new numbers: no short cut to code is right any more.
    pub fn renew_spaces(&mut self) {
        self.parked.clear();
        self.user.number = self.new_number();
        self.supervisor.number = self.new_number();
    }
    fn new_number(&mut self) -> u16 {
        self.last_number += 1;
        if self.last_number == Self::NUMBERS {
            // Nothing of the old numbers may live on, whoever bears one.
            self.parked.clear();
            self.era = self.era.wrapping_add(1);
            (self.user.number, self.supervisor.number) = (1, 2);
            self.last_number = 3;
        }
        self.last_number
    }

    /// Drops everything; `pcid` is the current one now.
    pub fn flush(&mut self, pcid: u16) {
        self.pcid = pcid;
        self.classes.iter_mut().for_each(table::Table::flush);
        for filter in [&mut self.large, &mut self.user.code, &mut self.supervisor.code] {
            filter.clear();
        }
        self.local_code = false;
        self.renew_spaces();
    }
    /// Drops what is not global, of all contexts. True: so may code of the supervisor have been.
    pub fn flush_not_global(&mut self) -> bool {
        self.parked.clear();
        self.load_context(self.pcid, false)
    }
    /// MOV to CR3 with this PCID (0 without PCIDs). `keep`: what is known of it stays. True: supervisor code may have been
    /// mapped otherwise.
    pub fn load_context(&mut self, pcid: u16, keep: bool) -> bool {
        self.classes[Class::Supervisor as usize].flush_local();
        let known = pcid == self.pcid || self.exchange(pcid);
        if !(keep && known) {
            self.classes[Class::User as usize].flush();
            self.classes[Class::SupervisorAc as usize].flush_local();
            self.user.code.clear();
            self.user.number = self.new_number();
        }
        let local_code = std::mem::take(&mut self.local_code);
        if local_code {
            self.supervisor.number = self.new_number();
        }
        local_code
    }
    /// Makes another context the current one. False: nothing was known of it, and it is to be flushed.
    fn exchange(&mut self, pcid: u16) -> bool {
        let known = self.parked.iter().position(|c| c.pcid == pcid);
        let mut context = match known {
            Some(at) => self.parked.remove(at),
            None if self.parked.len() < PARKED => Context {
                pcid,
                user: Table::new(),
                supervisor_ac: Table::new(),
                space: Space::default(),
                writes_doubtful: false,
            },
            None => self.parked.remove(0),
        };
        std::mem::swap(&mut self.classes[Class::User as usize], &mut context.user);
        std::mem::swap(&mut self.classes[Class::SupervisorAc as usize], &mut context.supervisor_ac);
        std::mem::swap(&mut self.user, &mut context.space);
        if std::mem::take(&mut context.writes_doubtful) {
            self.classes[Class::User as usize].drop_writes();
            self.classes[Class::SupervisorAc as usize].drop_writes();
        }
        context.pcid = std::mem::replace(&mut self.pcid, pcid);
        self.parked.push(context);
        known.is_some()
    }
    /// INVPCID for all of one PCID.
    pub fn flush_context(&mut self, pcid: u16) -> bool {
        if pcid == self.pcid {
            return self.load_context(pcid, false);
        }
        self.parked.retain(|c| c.pcid != pcid);
        false
    }
    /// INVPCID for an address.
    pub fn flush_context_page(&mut self, pcid: u16, address: u64) -> SupervisorCode {
        if pcid == self.pcid {
            return self.flush_page(address);
        }
        self.parked.retain(|c| c.pcid != pcid);
        SupervisorCode::Same
    }
    /// Drops the entries of the page that an address lies in (INVLPG), all parts of it if it is a large one.
    pub fn flush_page(&mut self, address: u64) -> SupervisorCode {
        let large = self.large.may_hold(address);
        self.classes.iter_mut().for_each(|t| t.flush_page(address, large));
        // What is global may be in all of them.
        self.parked.retain(|c| !c.space.code.may_hold(address));
        for context in &mut self.parked {
            context.user.flush_global_page(address, large);
            context.supervisor_ac.flush_global_page(address, large);
        }
        if self.user.code.may_hold(address) {
            self.user.number = self.new_number();
        }
        if !self.supervisor.code.may_hold(address) {
            return SupervisorCode::Same;
        }
        self.supervisor.number = self.new_number();
        if self.supervisor.code.giant() { SupervisorCode::Any } else { SupervisorCode::Near }
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
        self.writers.fill(Writer::default());
        self.classes.iter_mut().for_each(table::Table::drop_writes);
        self.parked.iter_mut().for_each(|c| c.writes_doubtful = true);
    }
    /// Drops the write tags of one RAM page.
    pub fn drop_page_writes(&mut self, ram_page: u32) {
        let w = std::mem::take(&mut self.writers[ram_page as usize & (WRITERS - 1)]);
        self.classes.iter_mut().for_each(table::Table::forget_victims);
        if !w.used {
            return;
        }
        self.parked.iter_mut().for_each(|c| c.writes_doubtful = true);
        let slots = if w.many { 0..ENTRIES } else { usize::from(w.slot)..usize::from(w.slot) + 1 };
        // With several pages in this hash class all of them are dropped: the note of them is gone.
        let same = |page: u32| page as usize & (WRITERS - 1) == ram_page as usize & (WRITERS - 1);
        self.classes.iter_mut().for_each(|t| t.drop_writes_of(slots.clone(), same));
    }
    /// Valid entries of a class, for the monitor.
    pub fn valid(&self, class: Class) -> impl Iterator<Item = (&Entry, Note)> {
        self.classes[class as usize].valid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(page: u64) -> Entry {
        Entry { read: page << 12, write: page << 12, execute: no_tag(slot(page << 12)), addend: page }
    }

    fn note(page: u64) -> Note {
        Note { linear: page << 12, ..Note::default() }
    }

    #[test]
    fn no_address_of_a_slot_has_its_tag_for_nothing() {
        for index in 0..ENTRIES {
            let tag = no_tag(index);
            assert!(tag.is_multiple_of(4096) && slot(tag) != index, "{index}");
        }
    }

    #[test]
    fn what_a_later_walk_forbade_does_not_come_back() {
        let mut tlb = Tlb::default();
        let page = 9 << 12;
        let may_write = entry(9);
        let mut fill = |page: u64, entry| tlb.fill(Class::User, page, entry, note(page >> 12), false);
        let other = (10..).map(|n| n << 12).find(|&p| slot(p) == slot(page)).expect("a page of the slot");
        fill(page, may_write);
        fill(other, entry(other >> 12));
        fill(page, may_write);
        fill(page, Entry { write: no_tag(slot(page)), ..may_write });
        assert!(!tlb.recall(Class::User, page, 8, true), "it may only be read now");
        assert!(tlb.recall(Class::User, other, 8, true));
        assert!(tlb.recall(Class::User, page, 8, false));
    }

    #[test]
    fn evicted_pages_come_back_until_something_is_dropped() {
        let mut tlb = Tlb::default();
        let mut of_slot_5 = (0..).filter(|page| slot(page << 12) == 5);
        let pages: [u64; 3] = std::array::from_fn(|_| of_slot_5.next().unwrap());
        assert!(!tlb.recall(Class::User, 0, 1, false), "nothing was evicted");
        for page in pages {
            tlb.fill(Class::User, page << 12, entry(page), note(page), false);
        }
        for page in [pages[0], pages[1], pages[2], pages[0]] {
            assert!(tlb.recall(Class::User, page << 12, 8, true));
            assert_eq!(tlb.entry(Class::User, page << 12).addend, page);
        }
        assert!(!tlb.recall(Class::Supervisor, pages[1] << 12, 8, false), "another class's");
        assert!(!tlb.recall(Class::User, (pages[1] << 12) + 0xFFC, 8, false), "it crosses the page");
        // What stands in the slot of an invalid entry is not found either.
        assert!(!tlb.recall(Class::User, no_tag(5), 1, false));
        let invlpg = |t: &mut Tlb| {
            t.flush_page(9 << 12);
        };
        for drop in [|t: &mut Tlb| t.flush(0), invlpg, Tlb::drop_writes] {
            tlb.fill(Class::User, pages[0] << 12, entry(pages[0]), note(pages[0]), false);
            tlb.fill(Class::User, pages[1] << 12, entry(pages[1]), note(pages[1]), false);
            drop(&mut tlb);
            assert!(!tlb.recall(Class::User, pages[0] << 12, 1, false));
        }
    }
}
