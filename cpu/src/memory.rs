//! Memory operands: from segment and offset to bytes.
//!
//! The fast path is one TLB compare and one host access. Everything else (misses, page crossings, MMIO, pages
//! with code marks, breakpoints, alignment checks) is in the cold functions. A store that may fault never does
//! so half-way: both pages are translated before a byte is written.
#![allow(unsafe_code)]

use crate::fault::{Exit, vector};
use crate::insn::{Insn, prefix};
use crate::mmu::Access;
use crate::ram::{self, PAGE};
use crate::state::{RFlags, Segment, attr, cr0, extended, gpr, seg};
use crate::tlb::{Class, hits};
use crate::{Vcpu, bus::Page};

/// A place in memory that was read and checked for write: writing it cannot fault any more.
#[derive(Clone, Copy)]
pub struct Place {
    /// Host address, or null: then the physical addresses of the first byte and of the second page.
    host: *mut u8,
    first: u64,
    second: u64,
}

impl Vcpu {
    /// Effective address of the memory operand: an offset in its segment.
    #[inline(always)]
    pub fn effective_address(&self, i: &Insn) -> u64 {
        let g = &self.state.gpr;
        let base = g[usize::from(i.base) % gpr::COUNT];
        let index = g[usize::from(i.index) % gpr::COUNT];
        base.wrapping_add(index << i.scale).wrapping_add(i.disp) & i.address_mask()
    }

    /// Linear address of the memory operand of `size` bytes, segment checks done.
    #[inline(always)]
    pub fn operand_address(&mut self, i: &Insn, size: u32, write: bool) -> Result<u64, Exit> {
        let offset = self.effective_address(i);
        self.linear(i, i.seg, offset, size, write)
    }

    /// Linear address of `offset` in segment `segment`, under the rules of instruction `i`.
    #[inline(always)]
    pub fn linear(
        &mut self,
        i: &Insn,
        segment: u8,
        offset: u64,
        size: u32,
        write: bool,
    ) -> Result<u64, Exit> {
        if i.prefix & prefix::CHECKED != 0 {
            return self.checked_linear(segment, offset, size, write);
        }
        Ok(offset.wrapping_add(self.state.seg[usize::from(segment) & 7].base))
    }

    /// Segment type and limit checks outside 64-bit mode (SDM Vol. 3, "Limit Checking", "Type Checking").
    pub fn checked_linear(&mut self, segment: u8, offset: u64, size: u32, write: bool) -> Result<u64, Exit> {
        let s = self.state.seg[usize::from(segment) & 7];
        if self.state.code64() {
            return Ok(offset.wrapping_add(s.base));
        }
        if let Some(address) = self.segment_linear(&s, offset, size, write) {
            return Ok(address);
        }
        let stack = usize::from(segment) == seg::SS;
        Err(self.raise_code(if stack { vector::SS } else { vector::GP }, 0))
    }

    /// The checks of [`Vcpu::checked_linear`] outside 64-bit mode for a segment that may not be loaded yet.
    pub fn segment_linear(&self, s: &Segment, offset: u64, size: u32, write: bool) -> Option<u64> {
        let real = self.state.real_or_v86();
        let code = s.attributes & attr::CODE != 0;
        let typed =
            real || s.usable() && if write { !code && s.has(attr::RW) } else { !code || s.has(attr::RW) };
        let last = offset.wrapping_add(u64::from(size) - 1);
        let expand_down = !real && !code && s.has(attr::EC);
        let within = if expand_down {
            let top = if s.big() { 0xFFFF_FFFF } else { 0xFFFF };
            offset > u64::from(s.limit) && last <= top
        } else {
            last <= u64::from(s.limit)
        };
        (typed && within).then(|| s.base.wrapping_add(offset) & 0xFFFF_FFFF)
    }

    /// Loads `S` bytes (1, 2, 4, 8) at a linear address. `segment` decides between #GP and #SS.
    #[inline(always)]
    pub fn load<const S: u8>(&mut self, segment: u8, address: u64) -> Result<u64, Exit> {
        let entry = self.tlb.entry(self.class, address);
        if hits(entry.read, address, u64::from(S)) {
            // SAFETY: a read tag stands only on entries whose addend leads to a page of guest RAM, and the
            // access stays on it.
            return Ok(unsafe { ram::load::<S>(entry.addend.wrapping_add(address) as *const u8) });
        }
        self.load_slow(segment, address, u32::from(S))
    }

    /// Stores `S` bytes (1, 2, 4, 8) at a linear address.
    #[inline(always)]
    pub fn store<const S: u8>(&mut self, segment: u8, address: u64, value: u64) -> Result<(), Exit> {
        let entry = self.tlb.entry(self.class, address);
        if hits(entry.write, address, u64::from(S)) {
            // SAFETY: as in `load`, with the write tag.
            unsafe { ram::store::<S>(entry.addend.wrapping_add(address) as *mut u8, value) };
            return Ok(());
        }
        let place = self.place_slow(segment, address, u32::from(S))?;
        self.put::<S>(place, value);
        Ok(())
    }

    /// Loads `S` bytes and checks the place for a write.
    #[inline(always)]
    pub fn load_for_write<const S: u8>(&mut self, segment: u8, address: u64) -> Result<(u64, Place), Exit> {
        let entry = self.tlb.entry(self.class, address);
        if hits(entry.write, address, u64::from(S)) && hits(entry.read, address, u64::from(S)) {
            let host = entry.addend.wrapping_add(address) as *mut u8;
            // SAFETY: as in `load`.
            return Ok((unsafe { ram::load::<S>(host) }, Place { host, first: 0, second: 0 }));
        }
        let place = self.place_slow(segment, address, u32::from(S))?;
        Ok((self.get(&place, u32::from(S)), place))
    }

    /// Writes a place that [`Vcpu::load_for_write`] opened.
    #[inline(always)]
    pub fn put<const S: u8>(&mut self, place: Place, value: u64) {
        if place.host.is_null() {
            return self.put_slow(&place, u32::from(S), value);
        }
        // SAFETY: the place was opened for `S` bytes by this instruction.
        unsafe { ram::store::<S>(place.host, value) }
    }

    /// Writes a place if it still holds `old`, atomically where it is RAM. False: try the instruction again.
    #[inline(always)]
    pub fn put_locked<const S: u8>(&mut self, place: Place, old: u64, new: u64) -> bool {
        if !place.host.is_null() {
            // SAFETY: the place was opened for `S` bytes by this instruction.
            return unsafe { ram::compare_exchange::<S>(place.host, old, new) };
        }
        if place.second == 0
            && let Page::Ram { offset, writable: true } = self.physical_page(place.first)
        {
            let at = offset + place.first % PAGE;
            if let Some(page) = self.ram.page_pointer(at) {
                // SAFETY: the access lies inside one page of guest RAM.
                let ok = unsafe { ram::compare_exchange::<S>(page.add((at % PAGE) as usize), old, new) };
                if ok && self.ram.wrote(at, u64::from(S)) {
                    self.code_written();
                }
                return ok;
            }
        }
        self.put_locked_slow(&place, u32::from(S), old, new)
    }

    /// Over two pages, or to a device. Atomic against others of its kind.
    #[cold]
    fn put_locked_slow(&mut self, place: &Place, size: u32, old: u64, new: u64) -> bool {
        let _guard = ram::split_lock_guard();
        let mut is_ram = |at| matches!(self.physical_page(at), Page::Ram { writable: true, .. });
        if is_ram(place.first) && is_ram(place.second) && self.get(place, size) != old {
            return false;
        }
        self.put_slow(place, size, new);
        true
    }

    /// Load by run-time size, of any alignment: 1 to 8 bytes.
    pub fn load_sized(&mut self, segment: u8, address: u64, size: u8) -> Result<u64, Exit> {
        match size {
            1 => self.load::<1>(segment, address),
            2 => self.load::<2>(segment, address),
            4 => self.load::<4>(segment, address),
            8 => self.load::<8>(segment, address),
            _ => self.load_slow(segment, address, u32::from(size)),
        }
    }

    pub fn store_sized(&mut self, segment: u8, address: u64, size: u8, value: u64) -> Result<(), Exit> {
        match size {
            1 => self.store::<1>(segment, address, value),
            2 => self.store::<2>(segment, address, value),
            4 => self.store::<4>(segment, address, value),
            _ => self.store::<8>(segment, address, value),
        }
    }

    /// Loads a block of up to a page (x87, vectors, save areas); nothing is partly read on a fault.
    pub fn load_bytes(&mut self, segment: u8, address: u64, buf: &mut [u8]) -> Result<(), Exit> {
        let mut chunks = buf.chunks_exact_mut(8);
        let mut at = address;
        for chunk in &mut chunks {
            chunk.copy_from_slice(&self.load::<8>(segment, at)?.to_le_bytes());
            at = at.wrapping_add(8);
        }
        for byte in chunks.into_remainder() {
            *byte = self.load::<1>(segment, at)? as u8;
            at = at.wrapping_add(1);
        }
        Ok(())
    }

    /// Checks a block of up to a page for write. A fault names the first byte that it meets.
    pub fn check_store(&mut self, segment: u8, address: u64, len: u64) -> Result<(), Exit> {
        let last = address.wrapping_add(len).wrapping_sub(1);
        self.load_for_write::<1>(segment, address)?;
        let second = if (address ^ last) & !(PAGE - 1) != 0 { last & !(PAGE - 1) } else { last };
        self.load_for_write::<1>(segment, second)?;
        Ok(())
    }

    /// Stores a block of up to a page: every page is checked before the first byte is written.
    pub fn store_bytes(&mut self, segment: u8, address: u64, bytes: &[u8]) -> Result<(), Exit> {
        self.check_store(segment, address, bytes.len() as u64)?;
        let mut chunks = bytes.chunks_exact(8);
        let mut at = address;
        for chunk in &mut chunks {
            self.store::<8>(segment, at, u64::from_le_bytes(chunk.try_into().unwrap_or_default()))?;
            at = at.wrapping_add(8);
        }
        for &byte in chunks.remainder() {
            self.store::<1>(segment, at, u64::from(byte))?;
            at = at.wrapping_add(1);
        }
        Ok(())
    }

    /// Loads 16 bytes.
    #[inline(always)]
    pub fn load_128(&mut self, segment: u8, address: u64) -> Result<u128, Exit> {
        let entry = self.tlb.entry(self.class, address);
        if hits(entry.read, address, 16) {
            let host = entry.addend.wrapping_add(address) as *const u8;
            // SAFETY: as in `load`.
            let (low, high) = unsafe { (ram::load::<8>(host), ram::load::<8>(host.add(8))) };
            return Ok(u128::from(high) << 64 | u128::from(low));
        }
        let mut bytes = [0; 16];
        self.load_bytes(segment, address, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Loads 10 bytes.
    #[inline(always)]
    pub fn load_80(&mut self, segment: u8, address: u64) -> Result<u128, Exit> {
        let entry = self.tlb.entry(self.class, address);
        if hits(entry.read, address, 10) {
            let host = entry.addend.wrapping_add(address) as *const u8;
            // SAFETY: as in `load`.
            let (low, high) = unsafe { (ram::load::<8>(host), ram::load::<2>(host.add(8))) };
            return Ok(u128::from(high) << 64 | u128::from(low));
        }
        let mut bytes = [0; 16];
        self.load_bytes(segment, address, &mut bytes[..10])?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Stores 10 bytes.
    #[inline(always)]
    pub fn store_80(&mut self, segment: u8, address: u64, value: u128) -> Result<(), Exit> {
        let entry = self.tlb.entry(self.class, address);
        if hits(entry.write, address, 10) {
            let host = entry.addend.wrapping_add(address) as *mut u8;
            // SAFETY: as in `store`.
            unsafe {
                ram::store::<8>(host, value as u64);
                ram::store::<2>(host.add(8), (value >> 64) as u64);
            }
            return Ok(());
        }
        self.store_bytes(segment, address, &value.to_le_bytes()[..10])
    }

    /// Stores 16 bytes.
    #[inline(always)]
    pub fn store_128(&mut self, segment: u8, address: u64, value: u128) -> Result<(), Exit> {
        let entry = self.tlb.entry(self.class, address);
        if hits(entry.write, address, 16) {
            let host = entry.addend.wrapping_add(address) as *mut u8;
            // SAFETY: as in `store`.
            unsafe {
                ram::store::<8>(host, value as u64);
                ram::store::<8>(host.add(8), (value >> 64) as u64);
            }
            return Ok(());
        }
        self.store_bytes(segment, address, &value.to_le_bytes())
    }

    /// How many elements of `size` bytes, up to `most`, from `address` to the end of its page, if the TLB allows the
    /// access; and the host address of the first.
    fn elements_on_page(&self, address: u64, size: u8, most: u64, write: bool) -> (u64, *mut u8) {
        let entry = self.tlb.entry(self.class, address);
        let tag = if write { entry.write } else { entry.read };
        if !hits(tag, address, u64::from(size)) {
            return (0, std::ptr::null_mut());
        }
        let n = ((PAGE - address % PAGE) / u64::from(size)).min(most);
        (n, entry.addend.wrapping_add(address) as *mut u8)
    }

    /// Copies elements upwards, one after the other, as far as both pages are at hand. Returns how many.
    pub fn copy_elements(&mut self, from: u64, to: u64, size: u8, most: u64) -> u64 {
        let (n, source) = self.elements_on_page(from, size, most, false);
        let (n, target) = self.elements_on_page(to, size, n, true);
        let bytes = n as usize * usize::from(size);
        // Elements that overlap what was written just before keep their size.
        let apart = (target as usize).wrapping_sub(source as usize) >= 8;
        let step = if apart { 8 } else { usize::from(size) };
        let mut at = 0;
        // SAFETY: both runs of bytes lie on a page of guest RAM each, by the TLB's tags.
        unsafe {
            while at + step <= bytes {
                match step {
                    8 => ram::store::<8>(target.add(at), ram::load::<8>(source.add(at))),
                    4 => ram::store::<4>(target.add(at), ram::load::<4>(source.add(at))),
                    2 => ram::store::<2>(target.add(at), ram::load::<2>(source.add(at))),
                    _ => ram::store::<1>(target.add(at), ram::load::<1>(source.add(at))),
                }
                at += step;
            }
            while at < bytes {
                ram::store::<1>(target.add(at), ram::load::<1>(source.add(at)));
                at += 1;
            }
        }
        n
    }

    /// Fills elements upwards as far as their page is at hand. Returns how many.
    pub fn fill_elements(&mut self, to: u64, size: u8, value: u64, most: u64) -> u64 {
        let (n, target) = self.elements_on_page(to, size, most, true);
        let bytes = n as usize * usize::from(size);
        let wide = match size {
            1 => (value & 0xFF) * 0x0101_0101_0101_0101,
            2 => (value & 0xFFFF) * 0x0001_0001_0001_0001,
            4 => (value & 0xFFFF_FFFF) * 0x0000_0001_0000_0001,
            _ => value,
        };
        let mut at = 0;
        // SAFETY: the bytes lie on a page of guest RAM, by the TLB's tag.
        unsafe {
            while at + 8 <= bytes {
                ram::store::<8>(target.add(at), wide);
                at += 8;
            }
            while at < bytes {
                ram::store::<1>(target.add(at), wide >> (at % 8 * 8));
                at += 1;
            }
        }
        n
    }

    /// Host address of a 16-byte aligned place in RAM, checked for write (CMPXCHG16B). None: not RAM.
    pub fn host_for_write_16(&mut self, segment: u8, address: u64) -> Result<Option<HostPlace>, Exit> {
        let place = self.place_slow(segment, address, 16)?;
        if !place.host.is_null() {
            return Ok(Some(HostPlace(place.host)));
        }
        let Page::Ram { offset, writable: true } = self.physical_page(place.first) else { return Ok(None) };
        let at = offset + place.first % PAGE;
        if self.ram.wrote(at, 16) {
            self.code_written();
        }
        // SAFETY: the page pointer is inside guest RAM and the offset inside the page.
        Ok(self.ram.page_pointer(at).map(|page| HostPlace(unsafe { page.add((at % PAGE) as usize) })))
    }

    /// A read by the processor itself: descriptor tables, TSS (an implicit supervisor access).
    pub fn load_system(&mut self, address: u64, size: u8) -> Result<u64, Exit> {
        self.as_supervisor(|v| v.load_sized(seg::FLAT as u8, address, size))
    }

    /// A write by the processor itself.
    pub fn store_system(&mut self, address: u64, size: u8, value: u64) -> Result<(), Exit> {
        self.as_supervisor(|v| v.store_sized(seg::FLAT as u8, address, size, value))
    }

    /// Runs `f` with the rights of an implicit supervisor access.
    pub fn as_supervisor<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let (class, plain) = (self.class, self.plain_class);
        self.class = Class::Supervisor;
        self.plain_class = Class::Supervisor;
        let result = f(self);
        (self.class, self.plain_class) = (class, plain);
        result
    }

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, segment: u8, address: u64, size: u32) -> Result<u64, Exit> {
        self.check_access(segment, address, size, false)?;
        let first = self.translate(address, Access::Read, self.plain_class)?;
        let mut place = Place { host: std::ptr::null_mut(), first, second: 0 };
        if crosses(address, size) {
            let next = self.wrap_linear(address.wrapping_add(u64::from(size) - 1)) & !(PAGE - 1);
            place.second = self.translate(next, Access::Read, self.plain_class)?;
        }
        let value = self.get(&place, size);
        if self.class == Class::Slow {
            self.log_value(value);
        }
        Ok(value)
    }

    /// Translates a place for write; fast places get their host address.
    #[cold]
    #[inline(never)]
    fn place_slow(&mut self, segment: u8, address: u64, size: u32) -> Result<Place, Exit> {
        self.check_access(segment, address, size, true)?;
        let first = self.translate(address, Access::Write, self.plain_class)?;
        let mut place = Place { host: std::ptr::null_mut(), first, second: 0 };
        if crosses(address, size) {
            let next = self.wrap_linear(address.wrapping_add(u64::from(size) - 1)) & !(PAGE - 1);
            place.second = self.translate(next, Access::Write, self.plain_class)?;
        } else {
            let entry = self.tlb.entry(self.class, address);
            if hits(entry.write, address, u64::from(size)) {
                place.host = entry.addend.wrapping_add(address) as *mut u8;
            }
        }
        Ok(place)
    }

    /// Whether a base register may hold an address: as wide as the model's can be, whatever CR4.LA57 says ("5-Level Paging
    /// and 5-Level EPT", "Canonicality Checking on Loads of Registers").
    pub(crate) fn canonical_base(&self, address: u64) -> bool {
        extended(address, self.model.linear_bits())
    }

    /// Canonical form, alignment check, data breakpoints: what fast accesses need not look at.
    fn check_access(&mut self, segment: u8, address: u64, size: u32, write: bool) -> Result<(), Exit> {
        if self.state.long_mode() {
            let last = address.wrapping_add(u64::from(size) - 1);
            if !self.state.canonical(address) || !self.state.canonical(last) {
                let stack = matches!(usize::from(segment), seg::SS | seg::FLAT_STACK);
                return Err(self.raise_code(if stack { vector::SS } else { vector::GP }, 0));
            }
        }
        if self.class == Class::Slow {
            let s = &self.state;
            let aligned = s.cr0 & cr0::AM != 0 && s.rflags.contains(RFlags::AC) && s.cpl == 3;
            if aligned && size <= 8 && address & u64::from(size.next_power_of_two() - 1) != 0 {
                return Err(self.raise_code(vector::AC, 0));
            }
            self.note_data_breakpoints(address, size, write);
            self.log_access(address, size, write);
        }
        Ok(())
    }

    /// Outside 64-bit mode linear addresses wrap at 4 GiB.
    fn wrap_linear(&self, address: u64) -> u64 {
        if self.state.long_mode() { address } else { address & 0xFFFF_FFFF }
    }

    /// Reads a translated place.
    fn get(&mut self, place: &Place, size: u32) -> u64 {
        let head = (PAGE - place.first % PAGE).min(u64::from(size)) as u32;
        if head == size {
            return self.physical_read(place.first, size as u8);
        }
        let low = self.physical_bytes(place.first, head);
        low | self.physical_bytes(place.second, size - head) << (head * 8)
    }

    #[cold]
    #[inline(never)]
    fn put_slow(&mut self, place: &Place, size: u32, value: u64) {
        let head = (PAGE - place.first % PAGE).min(u64::from(size)) as u32;
        if head == size {
            return self.physical_write(place.first, size as u8, value);
        }
        for k in 0..size {
            let at = if k < head { place.first + u64::from(k) } else { place.second + u64::from(k - head) };
            self.physical_write(at, 1, value >> (k * 8) & 0xFF);
        }
    }

    fn physical_bytes(&mut self, address: u64, count: u32) -> u64 {
        (0..count).rev().fold(0, |v, k| v << 8 | self.physical_read(address + u64::from(k), 1))
    }

    /// Reads physical memory or a device; `size` bytes within one page.
    pub fn physical_read(&mut self, address: u64, size: u8) -> u64 {
        match self.physical_page(address) {
            page if self.ram_only && !matches!(page, Page::Ram { writable: true, .. }) => 0,
            Page::Ram { offset, .. } => {
                let at = offset + address % PAGE;
                let Some(page) = self.ram.page_pointer(at) else { return 0 };
                // SAFETY: inside one page of guest RAM.
                let p = unsafe { page.add((at % PAGE) as usize) };
                // SAFETY: so many bytes lie on the page.
                unsafe {
                    match size {
                        1 => ram::load::<1>(p),
                        2 => ram::load::<2>(p),
                        4 => ram::load::<4>(p),
                        8 => ram::load::<8>(p),
                        _ => (0..size.min(8)).rev().fold(0, |v, k| v << 8 | ram::load::<1>(p.add(k.into()))),
                    }
                }
            }
            Page::Mmio => {
                self.before_device_access();
                self.counters.mmio += 1;
                let value = self.bus.mmio_read(self.id, address, size);
                self.after_device_access();
                value
            }
        }
    }

    /// Writes physical memory or a device; `size` bytes within one page.
    pub fn physical_write(&mut self, address: u64, size: u8, value: u64) {
        match self.physical_page(address) {
            Page::Ram { offset, writable: true } => {
                let at = offset + address % PAGE;
                if let Some(page) = self.ram.page_pointer(at) {
                    // SAFETY: inside one page of guest RAM.
                    unsafe {
                        let p = page.add((at % PAGE) as usize);
                        match size {
                            1 => ram::store::<1>(p, value),
                            2 => ram::store::<2>(p, value),
                            4 => ram::store::<4>(p, value),
                            _ => ram::store::<8>(p, value),
                        }
                    }
                    if self.ram.wrote(at, u64::from(size)) {
                        self.code_written();
                    }
                }
            }
            _ => {
                self.before_device_access();
                self.counters.mmio += 1;
                self.bus.mmio_write(self.id, address, size, value);
                self.after_device_access();
            }
        }
    }

    /// Compare and swap in physical RAM (4 or 8 aligned bytes); what is not RAM is written plainly.
    pub(crate) fn physical_compare_exchange(&mut self, address: u64, size: u8, old: u64, new: u64) -> bool {
        let place = Place { host: std::ptr::null_mut(), first: address, second: 0 };
        if size == 8 { self.put_locked::<8>(place, old, new) } else { self.put_locked::<4>(place, old, new) }
    }

    /// A store hit decoded instructions: the running block may be one of them.
    pub(crate) fn code_written(&mut self) {
        self.counters.code_invalidations += 1;
        self.stop_block = true;
    }

    /// The bus wants the exact count of instructions.
    pub(crate) fn before_device_access(&mut self) {
        self.publish_retired();
    }

    /// A device access may have asked for attention: look at it before the next instruction.
    pub(crate) fn after_device_access(&mut self) {
        if self.shared.pending() != 0 {
            self.stop_block = true;
        }
    }
}

fn crosses(address: u64, size: u32) -> bool {
    address % PAGE + u64::from(size) > PAGE
}

/// [`ram::compare_exchange_16`] on a place from [`Vcpu::host_for_write_16`]; returns what was there.
pub(crate) fn compare_exchange_16(host: HostPlace, old: u128, new: u128) -> u128 {
    // SAFETY: the place was checked for 16 aligned bytes of guest RAM.
    match unsafe { ram::compare_exchange_16(host.0, old, new) } {
        Ok(()) => old,
        Err(now) => now,
    }
}

/// A checked host address of 16 aligned bytes of guest RAM.
#[derive(Clone, Copy)]
pub struct HostPlace(*mut u8);
