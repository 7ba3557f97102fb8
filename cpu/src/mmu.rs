//! Paging: 32-bit with PSE, PAE, 4-level and 5-level (SDM Vol. 3, "Paging").
//!
//! [`Vcpu::translate`] checks one access, sets accessed and dirty bits, and fills the TLB with every right
//! that the page gives to the access's privilege class.

use crate::Vcpu;
use crate::bus::Page;
use crate::fault::{Exit, Fault, vector};
use crate::ram::PAGE;
use crate::state::{cr0, cr4, efer};
use crate::tlb::{Class, Entry, Note, no_tag, slot};

/// Physical address width.
pub const MAXPHYADDR: u32 = 40;
const ADDRESS: u64 = ((1 << MAXPHYADDR) - 1) & !0xFFF;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Execute,
}

/// Paging-structure entry bits.
mod pte {
    pub const P: u64 = 1 << 0;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const XD: u64 = 1 << 63;
}

/// Page-fault error code bits.
mod code {
    pub const P: u16 = 1;
    pub const W: u16 = 2;
    pub const U: u16 = 4;
    pub const RSVD: u16 = 8;
    pub const I: u16 = 16;
    pub const PK: u16 = 32;
}

/// A direct-mapped cache of [`crate::bus::Bus::page`].
pub(crate) struct PhysicalCache {
    entries: Box<[(u64, Page); 256]>,
}

impl Default for PhysicalCache {
    fn default() -> Self {
        PhysicalCache { entries: Box::new([(!0, Page::Mmio); 256]) }
    }
}

impl PhysicalCache {
    pub fn flush(&mut self) {
        *self = PhysicalCache::default();
    }
}

/// What a walk found.
struct Walk {
    /// Physical address of the 4-KiB page.
    page: u64,
    user: bool,
    writable: bool,
    executable: bool,
    global: bool,
    /// Protection key, of 4-level and 5-level paging.
    key: u8,
    /// Binary logarithm of the page's size.
    shift: u8,
    /// Bits of the leaf entry: a fault sets neither.
    accessed: bool,
    dirty: bool,
    /// Physical address and size of the leaf entry, for setting A and D.
    leaf: u64,
    wide: bool,
}

impl Vcpu {
    /// What answers at a physical address.
    pub fn physical_page(&mut self, address: u64) -> Page {
        let page = address & !(PAGE - 1);
        let entry = &mut self.physical.entries[(page >> 12) as usize & 255];
        if entry.0 != page {
            *entry = (page, self.bus.page(page, self.state.smm));
        }
        entry.1
    }

    /// The memory map changed: forget what it was.
    pub fn remap(&mut self) {
        let a20 = self.fence.a20.load(std::sync::atomic::Ordering::Acquire);
        self.a20_mask = if a20 { !0 } else { !(1 << 20) };
        self.physical.flush();
        self.flush_tlb();
    }

    /// Translates one access to a physical address, or raises #PF.
    pub fn translate(&mut self, address: u64, access: Access, class: Class) -> Result<u64, Exit> {
        self.counters.tlb_misses += 1;
        let walk = if self.state.cr0 & cr0::PG == 0 {
            let page = address & 0xFFFF_FFFF & !(PAGE - 1);
            Walk {
                page,
                user: true,
                writable: true,
                executable: true,
                global: false,
                key: 0,
                shift: 12,
                accessed: true,
                dirty: true,
                leaf: 0,
                wide: false,
            }
        } else {
            match self.walk(address, true) {
                Ok(walk) => walk,
                Err(bits) => return Err(self.page_fault(address, access, class, bits)),
            }
        };
        let paging = self.state.cr0 & cr0::PG != 0;
        let may = |access| !paging || self.allowed(&walk, access, class);
        if !may(access) {
            let key = if self.key_denies(&walk, access, class) { code::PK } else { 0 };
            return Err(self.page_fault(address, access, class, code::P | key));
        }
        let rights = [may(Access::Read), may(Access::Write), may(Access::Execute)];
        let mut dirty = walk.dirty;
        let mut missing = if walk.accessed { 0 } else { pte::A };
        if access == Access::Write && !dirty {
            missing |= pte::D;
            dirty = true;
        }
        if missing != 0 {
            self.set_bits(walk.leaf, walk.wide, missing);
        }
        let page = walk.page & self.a20_mask;
        self.fill(address, page, (access, class), rights, dirty, &walk);
        Ok(page | address & (PAGE - 1))
    }

    /// Translates for somebody who is not the guest, or before the count of instructions is settled. Entries of paging
    /// structures that do not stand in RAM are taken as absent: a device would see reads that the guest does not make, or
    /// at a wrong time.
    pub(crate) fn in_ram_only<T>(&mut self, translate: impl FnOnce(&mut Self) -> T) -> T {
        self.ram_only = true;
        let result = translate(self);
        self.ram_only = false;
        result
    }

    /// Where a linear address leads, without rights, side effects or faults: for the debugger.
    pub fn probe(&mut self, address: u64) -> Option<u64> {
        if self.state.cr0 & cr0::PG == 0 {
            return Some(address & 0xFFFF_FFFF & self.a20_mask);
        }
        let walk = self.in_ram_only(|v| v.walk(address, false)).ok()?;
        Some(walk.page & self.a20_mask | address & (PAGE - 1))
    }

    fn allowed(&self, walk: &Walk, access: Access, class: Class) -> bool {
        let s = &self.state;
        if self.key_denies(walk, access, class) {
            return false;
        }
        if class == Class::User {
            return walk.user
                && match access {
                    Access::Read => true,
                    Access::Write => walk.writable,
                    Access::Execute => walk.executable,
                };
        }
        let smap = walk.user && s.cr4 & cr4::SMAP != 0 && class != Class::SupervisorAc;
        match access {
            Access::Read => !smap,
            Access::Write => !smap && (walk.writable || s.cr0 & cr0::WP == 0),
            Access::Execute => walk.executable && !(walk.user && s.cr4 & cr4::SMEP != 0),
        }
    }

    /// Whether the page's protection key forbids a data access (SDM Vol. 3, "Protection Keys").
    fn key_denies(&self, walk: &Walk, access: Access, class: Class) -> bool {
        let s = &self.state;
        if s.cr4 & cr4::PKE == 0 || !s.long_mode() || !walk.user || access == Access::Execute {
            return false;
        }
        let rights = s.pkru >> (walk.key * 2);
        let (access_disable, write_disable) = (rights & 1 != 0, rights & 2 != 0);
        let heeds = class == Class::User || s.cr0 & cr0::WP != 0;
        access_disable || write_disable && access == Access::Write && heeds
    }

    fn fill(
        &mut self,
        address: u64,
        page: u64,
        (access, class): (Access, Class),
        rights: [bool; 3],
        dirty: bool,
        walk: &Walk,
    ) {
        let Page::Ram { offset, writable } = self.physical_page(page) else { return };
        let Some(host) = self.ram.page_pointer(offset) else { return };
        let ram_page = (offset / PAGE) as u32;
        let code = self.ram.has_code(ram_page);
        let index = slot(address);
        let linear = address & !(PAGE - 1);
        let tag = |on: bool| if on { linear } else { no_tag(index) };
        let write = rights[1] && dirty && writable && !code;
        if write {
            self.tlb.note_writer(ram_page, index);
        }
        let global = walk.global && self.state.cr4 & cr4::PGE != 0;
        let entry = Entry {
            read: tag(rights[0]),
            write: tag(write),
            execute: tag(rights[2]),
            addend: (host as u64).wrapping_sub(linear),
        };
        let note = Note { ram_page, global, shift: walk.shift, linear };
        self.tlb.fill(class, address, entry, note, access == Access::Execute);
    }

    #[cold]
    fn page_fault(&mut self, address: u64, access: Access, class: Class, bits: u16) -> Exit {
        let mut error = bits;
        if access == Access::Write {
            error |= code::W;
        }
        if class == Class::User {
            error |= code::U;
        }
        let nx = self.state.cr4 & cr4::PAE != 0 && self.state.msr.efer & efer::NXE != 0;
        if access == Access::Execute && (nx || self.state.cr4 & cr4::SMEP != 0) {
            error |= code::I;
        }
        self.fault = Fault { vector: vector::PF, error: Some(error), address, dr6: 0 };
        Exit::Fault
    }

    /// Walks the tables of the current mode. `Err` holds P and RSVD of the error code. `mark`: set the accessed bits of
    /// entries that lead to other tables.
    fn walk(&mut self, address: u64, mark: bool) -> Result<Walk, u16> {
        if self.state.cr4 & cr4::PAE == 0 {
            return self.walk_32(address, mark);
        }
        let nxe = self.state.msr.efer & efer::NXE != 0;
        let long = self.state.long_mode();
        // Bits that must be 0 in every entry.
        let reserved = !((1u64 << MAXPHYADDR) - 1) & !(0x7FF << 52) & !pte::XD
            | if nxe { 0 } else { pte::XD }
            | if long { 0 } else { 0x7FF << 52 };
        let (mut table, top) = if long {
            (self.state.cr3 & ADDRESS, if self.state.la57() { 4 } else { 3 })
        } else {
            let pdpte = self.state.pdpte[(address >> 30 & 3) as usize];
            if pdpte & pte::P == 0 {
                return Err(0);
            }
            (pdpte & ADDRESS, 1)
        };
        let mut walk = Walk {
            page: 0,
            user: true,
            writable: true,
            executable: true,
            global: false,
            key: 0,
            shift: 12,
            accessed: false,
            dirty: false,
            leaf: 0,
            wide: true,
        };
        for level in (0..=top).rev() {
            let shift = 12 + 9 * level;
            let at = (table + (address >> shift & 511) * 8) & self.a20_mask;
            let entry = self.physical_read(at, 8);
            if entry & pte::P == 0 {
                return Err(0);
            }
            let large = level > 0 && entry & pte::PS != 0;
            // PS is reserved in a PML4E and a PML5E; gigabyte pages are offered.
            let bad_ps = large && level >= 3;
            let low = if large { ((1u64 << shift) - 1) & !0x1FFF } else { 0 };
            if entry & (reserved | low) != 0 || bad_ps {
                return Err(code::P | code::RSVD);
            }
            walk.user &= entry & pte::US != 0;
            walk.writable &= entry & pte::RW != 0;
            walk.executable &= entry & pte::XD == 0;
            if large || level == 0 {
                let mask = (1u64 << shift) - 1;
                walk.page = (entry & ADDRESS & !mask | address & mask) & !(PAGE - 1);
                walk.global = entry & pte::G != 0;
                walk.key = if long { (entry >> 59 & 15) as u8 } else { 0 };
                walk.shift = shift as u8;
                walk.accessed = entry & pte::A != 0;
                walk.dirty = entry & pte::D != 0;
                walk.leaf = at;
                return Ok(walk);
            }
            if mark && entry & pte::A == 0 {
                self.set_bits(at, true, pte::A);
            }
            table = entry & ADDRESS;
        }
        Err(0)
    }

    fn walk_32(&mut self, address: u64, mark: bool) -> Result<Walk, u16> {
        let at = ((self.state.cr3 & 0xFFFF_F000) + (address >> 22 & 1023) * 4) & self.a20_mask;
        let pde = self.physical_read(at, 4);
        if pde & pte::P == 0 {
            return Err(0);
        }
        let large = pde & pte::PS != 0 && self.state.cr4 & cr4::PSE != 0;
        if large && pde & 1 << 21 != 0 {
            return Err(code::P | code::RSVD);
        }
        let (leaf, entry) = if large {
            (at, pde)
        } else {
            let pte_at = ((pde & 0xFFFF_F000) + (address >> 12 & 1023) * 4) & self.a20_mask;
            let entry = self.physical_read(pte_at, 4);
            if entry & pte::P == 0 {
                if mark && pde & pte::A == 0 {
                    self.set_bits(at, false, pte::A);
                }
                return Err(0);
            }
            (pte_at, entry)
        };
        if mark && !large && pde & pte::A == 0 {
            self.set_bits(at, false, pte::A);
        }
        let page = if large {
            // PSE-36: bits 13..20 are address bits 32..39.
            (entry & 0xFFC0_0000) | (entry >> 13 & 0xFF) << 32 | address & 0x3F_F000
        } else {
            entry & 0xFFFF_F000
        };
        let both = pde & entry;
        Ok(Walk {
            page,
            user: both & pte::US != 0,
            writable: both & pte::RW != 0,
            executable: true,
            global: entry & pte::G != 0,
            key: 0,
            shift: if large { 22 } else { 12 },
            accessed: entry & pte::A != 0,
            dirty: entry & pte::D != 0,
            leaf,
            wide: false,
        })
    }

    /// Sets bits of a paging-structure entry, atomically against other processors.
    fn set_bits(&mut self, at: u64, wide: bool, bits: u64) {
        let size = if wide { 8 } else { 4 };
        for _ in 0..1000 {
            let old = self.physical_read(at, size);
            if old & bits == bits || self.physical_compare_exchange(at, size, old, old | bits) {
                return;
            }
        }
    }

    /// Loads the PDPTEs (MOV to CR3, CR0 or CR4 in PAE mode). False: a reserved bit is set (#GP).
    pub fn load_pdptes(&mut self) -> bool {
        let table = self.state.cr3 & 0xFFFF_FFE0;
        let mut new = [0; 4];
        for (i, entry) in new.iter_mut().enumerate() {
            *entry = self.physical_read((table + i as u64 * 8) & self.a20_mask, 8);
            let reserved = !((1u64 << MAXPHYADDR) - 1) | 0x1E6;
            if *entry & pte::P != 0 && *entry & reserved != 0 {
                return false;
            }
        }
        self.state.pdpte = new;
        true
    }
}
