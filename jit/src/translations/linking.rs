//! Links between regions, as the engine makes, books and cuts them (`links.rs`, `places.rs`).

use super::{Translations, slot_of};
use crate::abi;
use crate::links::{MOST_JUMPS, SlotName, leads_to};
use crate::places::NEAR;
use crate::region::Region;
use trimaran_cpu::Vcpu;
use trimaran_cpu::blocks::NONE;
use trimaran_cpu::state::gpr;
use trimaran_cpu::tlb::Class;
use trimaran_cpu::translate::MappingChange;

impl Translations {
    /// Lets code find a region by its place.
    pub(super) fn note_place(&mut self, id: u32) {
        let Some(Some(live)) = self.live.get(id as usize) else { return };
        let Region { page, page2, offset, key, .. } = *live.region;
        if page2 == NONE && live.reach <= NEAR && !self.options.no_links {
            self.places.put(page, offset, key, live.entry as u64, id);
        }
    }

    /// Lets indirect branches of translated code find a translation at the current RIP.
    pub(super) fn remember_jump(&mut self, v: &Vcpu, id: u32) {
        self.book_jump(v, id, v.state.gpr[gpr::RIP]);
        self.note_place(id);
    }

    pub(super) fn book_jump(&mut self, v: &Vcpu, id: u32, address: u64) {
        let Some(Some(live)) = self.live.get_mut(id as usize) else { return };
        let global = live.region.page2 == NONE && v.code_is_global(address);
        let at = self.links.set_jump(live.region.key, address, live.entry as u64, global);
        if live.jumps.len() <= MOST_JUMPS && !live.jumps.contains(&at) {
            live.jumps.push(at);
        }
    }

    /// Takes note of the links that code has made by [`crate::places::find`].
    pub(super) fn book_found(&mut self, v: &Vcpu) {
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

    /// Links the slot that code left by to what is about to run.
    pub(super) fn link(&mut self, v: &Vcpu, id: u32) {
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
    pub(super) fn book_link(&mut self, v: &Vcpu, name: SlotName, id: u32, address: u64) {
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

    pub(super) fn mapping_changed(&mut self, change: &MappingChange) {
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
    pub(super) fn user_space_changed(&mut self, v: &Vcpu) {
        let stub = self.memory.as_ref().map_or(0, |m| m.runtime.unlinked as u64);
        let (live, cut, written) = (&self.live, &mut self.stats.cut, &mut self.written);
        self.links.user_space(v.tlb.era(), v.tlb.space(Class::User), |name| {
            if let Some(slot) = slot_of(live, name) {
                slot.unlink(stub);
                (*cut, *written) = (*cut + 1, true);
            }
        });
    }
}
