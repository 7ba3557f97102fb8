//! What is dropped: regions of pages that were written, and those whose code another takes the place of.

use super::{Page, Translations};
use crate::region::Region;
use std::sync::atomic::Ordering;
use trimaran_cpu::Vcpu;
use trimaran_cpu::blocks::NONE;

impl Translations {
    pub(super) fn drop_page(&mut self, v: &mut Vcpu, page: u32) {
        let Some(page) = self.pages.remove(&page) else { return };
        for id in page.regions {
            self.stats.invalidated += 1;
            self.drop_written(v, id);
        }
    }

    /// Drops a region whose page was written. It must become warm anew: code beside data that is written all the time is
    /// faster interpreted than translated each time.
    pub(super) fn drop_written(&mut self, v: &mut Vcpu, id: u32) {
        if let Some(Some(live)) = self.live.get(id as usize)
            && let Some(block) = v.block_mut(live.block)
            && block.translation == id
        {
            block.heat = 0;
        }
        self.drop_region(v, id);
    }

    pub(super) fn drop_region(&mut self, v: &mut Vcpu, id: u32) {
        let Some(old) = self.live.get_mut(id as usize).and_then(Option::take) else { return };
        let stub = self.memory.as_ref().map_or(0, |m| m.runtime.unlinked as u64);
        for name in old.incoming {
            if let Some(slot) = self.slot(name)
                && slot.code.load(Ordering::Relaxed) == old.entry as u64
            {
                slot.unlink(stub);
                self.stats.cut += 1;
                self.written = true;
            }
        }
        let Region { page, offset, key, .. } = *old.region;
        self.places.remove(page, offset, key, old.entry as u64);
        self.links.clear_jumps(key, &old.jumps, old.entry as u64);
        for page in [old.region.page, old.region.page2] {
            if let Some(page) = self.pages.get_mut(&page) {
                page.regions.retain(|&r| r != id);
            }
        }
        self.by_offset.remove(&old.at);
        if let Some(block) = v.block_mut(old.block)
            && block.translation == id
        {
            block.translation = NONE;
        }
        if self.left_by.is_some_and(|name| name.owner == id) {
            self.left_by = None;
        }
        self.free.push(id);
    }

    /// Drops what was made of pages that have been written since.
    pub(super) fn drop_stale(&mut self, v: &mut Vcpu) {
        let stale = |(&page, p): (&u32, &Page)| v.ram.generation(page) != p.generation;
        let pages: Vec<u32> = self.pages.iter().filter(|&p| stale(p)).map(|p| *p.0).collect();
        for page in pages {
            self.drop_page(v, page);
        }
    }
}
