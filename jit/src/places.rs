//! Translations by the place of their first instruction in guest RAM, found without leaving translated code.
//!
//! A link or an entry of the jump table stands for a linear address in one space (see `links.rs`). Where code comes to an
//! address for which it has neither, as every program does that has just started, [`find`] looks into the TLB for the
//! page that is mapped there now, and into this table for the code; only if that fails the engine is asked. What it finds it
//! links at once, and notes for the engine, which must know of all links.
#![allow(unsafe_code)]

use crate::abi::{JumpEntry, jump_index};
use crate::links::SlotName;
use crate::slots::Slot;
use trimaran_cpu::Vcpu;
use trimaran_cpu::blocks::BlockKey;
use trimaran_cpu::ram::PAGE;
use trimaran_cpu::state::gpr;

const PLACES: usize = 1 << 18;
/// More than so many links are not made between two visits of the engine.
const MOST_FOUND: usize = 1 << 12;

/// Regions whose direct branches lead no farther than this need no look at where canonical addresses end, but within it.
pub const NEAR: u64 = 64 << 20;

/// Whether RIP is so near to where canonical addresses end that a direct branch could miss its #GP: by `reach` or less.
pub fn near_the_hole(v: &Vcpu, reach: u64) -> bool {
    let (rip, reach) = (v.state.gpr[gpr::RIP], reach.max(NEAR));
    v.key().code64() && ((1 << 47) - reach..0xFFFF_8000_0000_0000 + reach).contains(&rip)
}

#[derive(Clone, Copy)]
struct Place {
    tag: u64,
    code: u64,
    id: u32,
}

const NOWHERE: Place = Place { tag: !0, code: 0, id: 0 };

/// A link that was made.
pub struct Found {
    /// The region that it leads to.
    pub id: u32,
    pub address: u64,
    /// None: an entry of the jump table.
    pub slot: Option<SlotName>,
}

/// See the head of this file.
pub struct Places {
    table: Box<[Place]>,
    pub found: Vec<Found>,
}

fn tag(page: u32, offset: u64, key: BlockKey) -> u64 {
    u64::from(page) * PAGE | offset % PAGE | u64::from(key.bits()) << 48
}

fn index(tag: u64) -> usize {
    (tag.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize % PLACES
}

impl Places {
    pub fn new() -> Self {
        Places { table: vec![NOWHERE; PLACES].into(), found: Vec::new() }
    }
    /// Lets code find a region. It must lie on one page, and lead no farther than [`NEAR`].
    pub fn put(&mut self, page: u32, offset: u64, key: BlockKey, code: u64, id: u32) {
        let tag = tag(page, offset, key);
        self.table[index(tag)] = Place { tag, code, id };
    }
    /// Forgets a region.
    pub fn remove(&mut self, page: u32, offset: u64, key: BlockKey, code: u64) {
        let place = &mut self.table[index(tag(page, offset, key))];
        if place.code == code {
            *place = NOWHERE;
        }
    }
}

/// The code for RIP, or 0. `slot`: where it is wanted from; null: from the jump table.
///
/// # Safety
/// Only translated code may call it, with the vCPU it was entered with, whose `translated` points to the engine's [`Places`]
/// and jump table, and a slot of a live region.
pub unsafe extern "C" fn find(v: *mut Vcpu, slot: *const Slot) -> u64 {
    // SAFETY: by the caller; the engine holds no other reference while code runs.
    let v = unsafe { &mut *v };
    let Some(places) = std::ptr::NonNull::new(v.translated.places as *mut Places) else { return 0 };
    let address = v.state.gpr[gpr::RIP];
    if near_the_hole(v, NEAR) {
        return 0;
    }
    let Some(page) = v.code_page(address) else { return 0 };
    // SAFETY: by the caller.
    let places = unsafe { &mut *places.as_ptr() };
    let tag = tag(page, address, v.key());
    let place = places.table[index(tag)];
    if place.tag != tag || places.found.len() >= MOST_FOUND {
        return 0;
    }
    let salt = v.translated.salt;
    // SAFETY: by the caller.
    let slot = match unsafe { slot.as_ref() } {
        // Local links are checked by the engine, once and for all.
        Some(slot) if !slot.far => return 0,
        // Code that is linked otherwise must not be changed while it may run.
        Some(slot) if !slot.leads_nowhere() && !slot.leads_to(place.code) => return 0,
        Some(slot) => {
            if v.key().user() {
                let known = slot.leads_to(place.code);
                slot.link_too(address ^ salt, place.code);
                if known {
                    // For another address or space.
                    v.translated.found += 1;
                    return place.code;
                }
            } else {
                slot.link(address, place.code);
            }
            Some(SlotName::of(slot))
        }
        None => {
            let entry = JumpEntry { tag: address ^ salt, code: place.code };
            let at = jump_index(entry.tag);
            // SAFETY: the table has as many entries.
            unsafe { (v.translated.jump_table as *mut JumpEntry).add(at).write(entry) };
            None
        }
    };
    places.found.push(Found { id: place.id, address, slot });
    v.translated.found += 1;
    place.code
}
