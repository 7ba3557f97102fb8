//! What answers at which physical address, for processors outside and inside SMM, and for bus masters.
//!
//! The map is painted anew from the chips' registers whenever one of them says that it changed; look-ups take
//! the list of ranges as it is then.

use crate::chips::ChipId;
use crate::layout::{CHIP_WINDOW, HIGH_RAM, HPET, IOAPIC, ONE_MIB, TEST_MEMORY, VIDEO_RAM};
use crate::memory::{Blocks, VIDEO_MEMORY};
use std::sync::{Arc, PoisonError, RwLock};
use trimaran_cpu::bus::{MemoryRange, Page};
use trimaran_cpu::ram::{PAGE, Ram};
use trimaran_devices::chip::Dma;
use trimaran_devices::i440fx::{Pam, Smram};
use trimaran_devices::pci::{BarKind, Region};
use trimaran_devices::{hpet, ioapic, vga};

const FOUR_GIB: u64 = 1 << 32;
/// The last bytes of the firmware's ROM stand below 1 MiB, too.
const ISA_ROM: u64 = 0xE_0000;
const LEGACY_VIDEO: u64 = 0x2_0000;

/// What answers in a range. `delta` gives the offset in RAM when added to the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Nothing,
    Ram {
        delta: u64,
        writable: bool,
    },
    /// Reads come from one place, writes go to another: PAM with WE but without RE.
    Split {
        read: Option<u64>,
        write: u64,
    },
    Chip {
        id: ChipId,
        window: u8,
        base: u64,
    },
    /// The local APIC of the processor that asks.
    LocalApic {
        base: u64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    /// First address behind the range.
    end: u64,
    target: Target,
}

/// Ranges in ascending order, without overlaps; gaps are [`Target::Nothing`].
#[derive(Clone, Debug, Default)]
struct Ranges(Vec<Range>);

impl Ranges {
    /// Lays a range over what is there.
    fn paint(&mut self, start: u64, len: u64, target: Target) {
        let end = start.saturating_add(len);
        if start >= end {
            return;
        }
        let mut out = Vec::with_capacity(self.0.len() + 2);
        for &range in &self.0 {
            if range.start < start {
                out.push(Range { end: range.end.min(start), ..range });
            }
            if range.end > end {
                out.push(Range { start: range.start.max(end), ..range });
            }
        }
        out.push(Range { start, end, target });
        out.sort_by_key(|range| range.start);
        self.0 = out;
    }

    fn find(&self, address: u64) -> Option<&Range> {
        let index = self.0.partition_point(|range| range.end <= address);
        self.0.get(index).filter(|range| range.start <= address)
    }
}

/// The registers that the map depends on.
#[derive(Clone, Debug)]
pub struct Decoding {
    pub pam: Vec<(u64, u64, Pam)>,
    pub smram: Smram,
    pub lapic: Option<u64>,
    /// Memory BARs of PCI functions.
    pub bars: Vec<(ChipId, Region)>,
    pub hpet: bool,
}

#[derive(Default)]
struct Maps {
    normal: Ranges,
    smm: Ranges,
}

/// See the head of this file.
pub struct MemoryMap {
    ram: Arc<Ram>,
    blocks: Blocks,
    maps: RwLock<Maps>,
}

impl MemoryMap {
    pub fn new(ram: Arc<Ram>, blocks: Blocks) -> Self {
        MemoryMap { ram, blocks, maps: RwLock::default() }
    }

    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Paints both maps.
    pub fn rebuild(&self, decoding: &Decoding) {
        let normal = self.build(decoding, false);
        let smm = self.build(decoding, true);
        *self.maps.write().unwrap_or_else(PoisonError::into_inner) = Maps { normal, smm };
    }

    fn build(&self, decoding: &Decoding, in_smm: bool) -> Ranges {
        let blocks = &self.blocks;
        let main = |delta| Target::Ram { delta, writable: true };
        let mut map = Ranges::default();
        let low = blocks.layout.low_end();
        map.paint(0, low, main(0));
        map.paint(HIGH_RAM, blocks.layout.high_bytes(), main(low.wrapping_sub(HIGH_RAM)));

        let Smram { open, closed, enabled } = decoding.smram;
        if !(open || in_smm && enabled && !closed) {
            let target = Target::Chip { id: ChipId::Vga, window: vga::LEGACY_MEMORY, base: VIDEO_RAM };
            map.paint(VIDEO_RAM, LEGACY_VIDEO, target);
        }
        for &(base, size, pam) in &decoding.pam {
            map.paint(base, size, self.pam_target(base, pam));
        }
        for &(id, region) in &decoding.bars {
            let BarKind::Memory { .. } = region.kind else { continue };
            let whole = region.size == VIDEO_MEMORY;
            let target = if id == ChipId::Vga && region.window == vga::VRAM && whole {
                main(blocks.video.wrapping_sub(region.base))
            } else {
                Target::Chip { id, window: region.window, base: region.base }
            };
            // What the chip set decodes itself, RAM among it, is not forwarded to PCI.
            if region.base >= low.max(ONE_MIB) && region.base + region.size <= FOUR_GIB {
                map.paint(region.base, region.size, target);
            }
        }
        let rom = Target::Ram { delta: self.rom(FOUR_GIB), writable: false };
        map.paint(FOUR_GIB - blocks.rom_len, blocks.rom_len, rom);
        map.paint(TEST_MEMORY, blocks.test_len, main(blocks.test().wrapping_sub(TEST_MEMORY)));
        let mut chip = |id, window, base: u32| {
            let base = u64::from(base);
            map.paint(base, u64::from(CHIP_WINDOW), Target::Chip { id, window, base });
        };
        chip(ChipId::Ioapic, ioapic::REGISTERS, IOAPIC);
        if decoding.hpet {
            chip(ChipId::Hpet, hpet::REGISTERS, HPET);
        }
        if let Some(base) = decoding.lapic {
            map.paint(base, u64::from(CHIP_WINDOW), Target::LocalApic { base });
        }
        map
    }

    /// Delta of the ROM whose last byte stands below `end`.
    fn rom(&self, end: u64) -> u64 {
        (self.blocks.rom + self.blocks.rom_len).wrapping_sub(end)
    }

    fn pam_target(&self, base: u64, pam: Pam) -> Target {
        let rom = (base >= ISA_ROM && self.blocks.rom_len >= ONE_MIB - base).then(|| self.rom(ONE_MIB));
        match (pam.read_ram, pam.write_ram) {
            (true, writable) => Target::Ram { delta: 0, writable },
            (false, true) => Target::Split { read: rom, write: 0 },
            (false, false) => rom.map_or(Target::Nothing, |delta| Target::Ram { delta, writable: false }),
        }
    }

    /// What answers at `address`.
    pub fn target(&self, address: u64, smm: bool) -> Target {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let ranges = if smm { &maps.smm } else { &maps.normal };
        ranges.find(address).map_or(Target::Nothing, |range| range.target)
    }

    /// The page of `address` as the processors' TLBs want it.
    pub fn page(&self, address: u64, smm: bool) -> Page {
        match self.target(address, smm) {
            Target::Ram { delta, writable } => {
                Page::Ram { offset: (address & !(PAGE - 1)).wrapping_add(delta), writable }
            }
            _ => Page::Mmio,
        }
    }

    /// All RAM and ROM outside SMM.
    pub fn ram_ranges(&self) -> Vec<MemoryRange> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let mut out: Vec<MemoryRange> = Vec::new();
        for range in &maps.normal.0 {
            let Target::Ram { delta, writable } = range.target else { continue };
            let (start, len, offset) =
                (range.start, range.end - range.start, range.start.wrapping_add(delta));
            match out.last_mut() {
                Some(last)
                    if last.start + last.len == start
                        && last.offset + last.len == offset
                        && last.writable == writable =>
                {
                    last.len += len;
                }
                _ => out.push(MemoryRange { start, len, offset, writable }),
            }
        }
        out
    }

    /// Text for the monitor.
    pub fn describe(&self) -> String {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let lines = maps.normal.0.iter().map(|range| {
            let what = match range.target {
                Target::Nothing => "nothing".into(),
                Target::Ram { delta, writable } => {
                    let kind = if writable { "RAM" } else { "ROM" };
                    format!("{kind}, offset {:#x}", range.start.wrapping_add(delta))
                }
                Target::Split { .. } => "writes to RAM only".into(),
                Target::Chip { id, window, .. } => format!("{id}, window {window}"),
                Target::LocalApic { .. } => "local APIC".into(),
            };
            format!("{:012x}-{:012x} {what}\n", range.start, range.end - 1)
        });
        lines.collect()
    }
}

/// The part of a transfer that lies in one page.
fn pieces(address: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address.checked_add(done as u64).filter(|_| done < len)?;
        let step = ((PAGE - at % PAGE) as usize).min(len - done);
        let piece = done..done + step;
        done += step;
        Some((at, piece))
    })
}

impl Dma for MemoryMap {
    fn read(&self, address: u64, buf: &mut [u8]) {
        buf.fill(0xFF);
        for (at, piece) in pieces(address, buf.len()) {
            if let Target::Ram { delta, .. } = self.target(at, false) {
                self.ram.read(at.wrapping_add(delta), &mut buf[piece]);
            }
        }
    }

    fn write(&self, address: u64, buf: &[u8]) {
        for (at, piece) in pieces(address, buf.len()) {
            match self.target(at, false) {
                Target::Ram { delta, writable: true } | Target::Split { write: delta, .. } => {
                    self.ram.write(at.wrapping_add(delta), &buf[piece]);
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_devices::i440fx::I440Fx;

    fn map(pam: Pam, smram: Smram) -> MemoryMap {
        let blocks = Blocks::new(16 << 20, 0x4_0000, true);
        let map = MemoryMap::new(Arc::new(Ram::anonymous(blocks.total())), blocks);
        let pam = I440Fx::pam_areas().map(|(base, size)| (base, size, pam)).collect();
        map.rebuild(&Decoding { pam, smram, lapic: Some(0xFEE0_0000), bars: Vec::new(), hpet: true });
        map
    }

    const CLOSED: Smram = Smram { open: false, closed: false, enabled: true };

    #[test]
    fn rom_stands_at_both_places() {
        let map = map(Pam { read_ram: false, write_ram: false }, CLOSED);
        let rom = map.blocks.rom;
        assert_eq!(map.page(0xFFFF_F000, false), Page::Ram { offset: rom + 0x3_F000, writable: false });
        assert_eq!(map.page(0xF_F000, false), Page::Ram { offset: rom + 0x3_F000, writable: false });
        assert_eq!(map.page(0xE_0000, false), Page::Ram { offset: rom + 0x2_0000, writable: false });
        assert_eq!(map.page(0xC_0000, false), Page::Mmio);
        assert_eq!(map.page(0x9_F000, false), Page::Ram { offset: 0x9_F000, writable: true });
        assert_eq!(map.page(16 << 20, false), Page::Mmio);
    }

    #[test]
    fn pam_and_smram() {
        let shadow = map(Pam { read_ram: false, write_ram: true }, CLOSED);
        assert_eq!(shadow.page(0xF_0000, false), Page::Mmio);
        shadow.write(0xF_0000, &[1, 2]);
        let mut now = [0; 2];
        shadow.ram.read(0xF_0000, &mut now);
        assert_eq!(now, [1, 2]);
        assert_eq!(shadow.page(0xA_0000, false), Page::Mmio);
        assert_eq!(shadow.page(0xA_0000, true), Page::Ram { offset: 0xA_0000, writable: true });
        let read_only = map(Pam { read_ram: true, write_ram: false }, CLOSED);
        assert_eq!(read_only.page(0xC_0000, false), Page::Ram { offset: 0xC_0000, writable: false });
        read_only.write(0xC_0000, &[7]);
        read_only.ram.read(0xC_0000, &mut now);
        assert_eq!(now[0], 0);
    }

    #[test]
    fn ranges_of_ram_are_joined_and_agree_with_pages() {
        let map = map(Pam { read_ram: true, write_ram: true }, CLOSED);
        let ranges = map.ram_ranges();
        let begins = ranges.iter().map(|r| (r.start, r.len, r.writable)).collect::<Vec<_>>();
        assert_eq!(
            begins,
            [
                (0, 0xA_0000, true),
                (0xC_0000, 0xF4_0000, true),
                (TEST_MEMORY, 0x1_0000, true),
                (0xFFFC_0000, 0x4_0000, false)
            ]
        );
        for page in (0..FOUR_GIB).step_by(0x1000) {
            let range = ranges.iter().find(|r| (r.start..r.start + r.len).contains(&page));
            let expected = range.map_or(Page::Mmio, |r| Page::Ram {
                offset: page - r.start + r.offset,
                writable: r.writable,
            });
            assert_eq!(map.page(page, false), expected, "{page:#x}");
        }
    }

    #[test]
    fn dma_never_leaves_ram() {
        let map = map(Pam { read_ram: true, write_ram: true }, CLOSED);
        let mut buf = [0; 8192];
        map.read((16 << 20) - 4096, &mut buf);
        assert!(buf[..4096].iter().all(|&b| b == 0) && buf[4096..].iter().all(|&b| b == 0xFF));
        map.read(u64::MAX - 3, &mut buf);
        map.write(u64::MAX - 3, &buf);
    }
}
