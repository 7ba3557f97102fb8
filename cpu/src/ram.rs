//! Guest RAM as the processors see it: one host mapping that holds every RAM block of the board (main
//! memory, video memory, ROM images), addressed by offset.
//!
//! Goal: vCPU threads, device DMA and the display touch the same bytes without a data race in Rust's sense.
//! So no reference to guest RAM is ever made: every access is a raw atomic of the access's width, or of
//! single bytes where it is not aligned.
//!
//! Each page has a *code mark*: set when some vCPU has decoded instructions from it, with a bitmap of the
//! 64-byte granules they came from. Whoever writes to a marked page through [`Ram`] calls
//! [`Ram::wrote`], which bumps the page's *generation* if a marked granule is hit; decoded blocks remember the
//! generation they were made at. The vCPUs' fast stores (see `tlb.rs`) skip this: their TLB has no write entry
//! for a marked page.
#![allow(unsafe_code)]

use crate::shared::CodeFence;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Arc, OnceLock};

pub const PAGE: u64 = 4096;

struct PageInfo {
    generation: AtomicU32,
    granules: AtomicU64,
}

/// See the head of this file. `owner` keeps the mapping alive.
pub struct Ram {
    base: *mut u8,
    len: u64,
    pages: Box<[PageInfo]>,
    /// Who wants to know of overwritten instructions.
    fence: OnceLock<Arc<CodeFence>>,
    _owner: Box<dyn Send + Sync>,
}

// SAFETY: all accesses through `base` are atomics within `len`; the mapping lives as long as `_owner`.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Wraps a mapping of `len` bytes at `base` that `owner` keeps alive.
    ///
    /// # Safety
    /// `base..base + len` must be readable and writable, page-aligned, for as long as `owner` lives, and
    /// nobody may hold references into it.
    pub unsafe fn new(base: *mut u8, len: u64, owner: Box<dyn Send + Sync>) -> Self {
        assert!(len.is_multiple_of(PAGE) && (base as usize).is_multiple_of(PAGE as usize));
        let page = || PageInfo { generation: AtomicU32::new(1), granules: AtomicU64::new(0) };
        let pages = (0..len / PAGE).map(|_| page()).collect();
        Ram { base, len, pages, fence: OnceLock::new(), _owner: owner }
    }

    /// Zeroed memory of our own, for tests.
    pub fn anonymous(len: u64) -> Self {
        let len = len.next_multiple_of(PAGE);
        let layout = std::alloc::Layout::from_size_align(len as usize, PAGE as usize).expect("RAM size");
        struct Owner(usize, std::alloc::Layout);
        impl Drop for Owner {
            fn drop(&mut self) {
                // SAFETY: allocated below with this layout.
                unsafe { std::alloc::dealloc(self.0 as *mut u8, self.1) }
            }
        }
        // SAFETY: the layout is not empty for any RAM size in use; the owner frees it.
        unsafe {
            let base = std::alloc::alloc_zeroed(layout);
            assert!(!base.is_null(), "out of memory for {len} bytes of guest RAM");
            Ram::new(base, len, Box::new(Owner(base as usize, layout)))
        }
    }

    pub fn len(&self) -> u64 {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Host address of a page, for TLB entries. None past the end.
    pub fn page_pointer(&self, offset: u64) -> Option<*mut u8> {
        // SAFETY: the offset is inside the mapping.
        (offset < self.len).then(|| unsafe { self.base.add((offset & !(PAGE - 1)) as usize) })
    }

    fn contains(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// Reads bytes, aligned words of up to 8 of them at once; false (and `buf` untouched) if any lies past the end.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        if !self.contains(offset, buf.len() as u64) {
            return false;
        }
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            // SAFETY: in bounds by the check above.
            let p = unsafe { self.base.add(at as usize) };
            let step = step_at(at, rest.len());
            let (now, later) = rest.split_at_mut(step);
            // SAFETY: in bounds and aligned.
            unsafe {
                match now {
                    [a] => *a = load1(p) as u8,
                    [_, _] => now.copy_from_slice(&(load2(p) as u16).to_le_bytes()),
                    [_, _, _, _] => now.copy_from_slice(&(load4(p) as u32).to_le_bytes()),
                    _ => {
                        for (n, word) in now.as_chunks_mut().0.iter_mut().enumerate() {
                            *word = load8(p.add(n * 8)).to_le_bytes();
                        }
                    }
                }
            }
            (rest, at) = (later, at + step as u64);
        }
        true
    }

    /// Writes bytes; false (and nothing written) if any lies past the end. Code marks are honoured.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        if !self.contains(offset, bytes.len() as u64) {
            return false;
        }
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            // SAFETY: in bounds by the check above.
            let p = unsafe { self.base.add(at as usize) };
            let step = step_at(at, rest.len());
            let (now, later) = rest.split_at(step);
            // SAFETY: in bounds and aligned.
            unsafe {
                match *now {
                    [a] => store1(p, u64::from(a)),
                    [a, b] => store2(p, u64::from(u16::from_le_bytes([a, b]))),
                    [a, b, c, d] => store4(p, u64::from(u32::from_le_bytes([a, b, c, d]))),
                    _ => {
                        for (n, word) in now.as_chunks().0.iter().enumerate() {
                            store8(p.add(n * 8), u64::from_le_bytes(*word));
                        }
                    }
                }
            }
            (rest, at) = (later, at + step as u64);
        }
        self.wrote(offset, bytes.len() as u64);
        true
    }

    /// Aligned words of 8 bytes that another RAM of the same size has otherwise: offset, ours, theirs.
    pub fn differences<'a>(&'a self, other: &'a Ram) -> impl Iterator<Item = (u64, u64, u64)> {
        let words = (0..self.len.min(other.len)).step_by(8);
        words.filter_map(|offset| {
            // SAFETY: aligned, and inside of both.
            let (a, b) =
                unsafe { (load8(self.base.add(offset as usize)), load8(other.base.add(offset as usize))) };
            (a != b).then_some((offset, a, b))
        })
    }

    /// The generation of the page at `offset`.
    pub fn generation(&self, page: u32) -> u32 {
        self.pages.get(page as usize).map_or(0, |p| p.generation.load(Acquire))
    }

    /// Whether instructions were decoded from this page.
    pub fn has_code(&self, page: u32) -> bool {
        self.pages.get(page as usize).is_some_and(|p| p.granules.load(Acquire) != 0)
    }

    /// Marks `len` bytes at `offset` (within one page) as decoded. True if the page had no mark before: the
    /// other vCPUs must then drop their write entries for it.
    pub fn mark_code(&self, offset: u64, len: u64) -> bool {
        let Some(page) = self.pages.get((offset / PAGE) as usize) else { return false };
        page.granules.fetch_or(granule_mask(offset % PAGE, len), AcqRel) == 0
    }

    /// Bytes were written: bumps the generation of each page where decoded bytes were hit. Returns whether
    /// any was.
    pub fn wrote(&self, offset: u64, len: u64) -> bool {
        let end = offset.saturating_add(len).min(self.len);
        let mut at = offset;
        let mut hit = false;
        while at < end {
            let next = ((at / PAGE + 1) * PAGE).min(end);
            let page = &self.pages[(at / PAGE) as usize];
            let granules = page.granules.load(Acquire);
            if granules != 0 && granules & granule_mask(at % PAGE, next - at) != 0 {
                page.granules.store(0, Release);
                page.generation.fetch_add(1, AcqRel);
                hit = true;
            }
            at = next;
        }
        if hit && let Some(fence) = self.fence.get() {
            fence.code_changed();
        }
        hit
    }

    /// Forgets all code marks: nobody keeps decoded instructions any more, because all engines are new.
    pub fn forget_code(&self) {
        self.pages.iter().for_each(|page| page.granules.store(0, Release));
    }

    /// The vCPUs of `fence` hear of overwritten instructions from now on.
    pub(crate) fn watch(&self, fence: &Arc<CodeFence>) {
        // All vCPUs of a machine bring the same.
        let _ = self.fence.set(fence.clone());
    }
}

/// Bytes of one step of a copy at an address, with so many bytes to go: the largest aligned word, or all whole words of 8.
fn step_at(address: u64, len: usize) -> usize {
    match [8, 4, 2].into_iter().find(|&n| address.is_multiple_of(n as u64) && len >= n) {
        Some(8) => len & !7,
        Some(n) => n,
        None => 1,
    }
}

/// Bits of the 64-byte granules that `len` bytes at `start` (within a page) touch.
fn granule_mask(start: u64, len: u64) -> u64 {
    let first = start / 64;
    let last = (start + len.max(1) - 1).min(PAGE - 1) / 64;
    (!0 >> (63 - last)) & (!0 << first)
}

macro_rules! accessors {
    ($load:ident, $store:ident, $cas:ident, $atomic:ty, $int:ty) => {
        /// # Safety
        /// `p` must be aligned to the access and inside guest RAM.
        #[inline(always)]
        pub unsafe fn $load(p: *const u8) -> u64 {
            // SAFETY: by the caller.
            u64::from(<$int>::from_le(unsafe { (*p.cast::<$atomic>()).load(Relaxed) }))
        }
        /// # Safety
        /// `p` must be aligned to the access and inside guest RAM.
        #[inline(always)]
        pub unsafe fn $store(p: *mut u8, value: u64) {
            // SAFETY: by the caller.
            unsafe { (*p.cast::<$atomic>()).store((value as $int).to_le(), Relaxed) }
        }
        /// Compare and swap; returns whether `new` was stored.
        ///
        /// # Safety
        /// `p` must be aligned to the access and inside guest RAM.
        #[inline(always)]
        pub unsafe fn $cas(p: *mut u8, old: u64, new: u64) -> bool {
            // SAFETY: by the caller.
            let cell = unsafe { &*p.cast::<$atomic>() };
            cell.compare_exchange((old as $int).to_le(), (new as $int).to_le(), SeqCst, SeqCst).is_ok()
        }
    };
}
accessors!(load1, store1, cas1, AtomicU8, u8);
accessors!(load2, store2, cas2, AtomicU16, u16);
accessors!(load4, store4, cas4, AtomicU32, u32);
accessors!(load8, store8, cas8, AtomicU64, u64);

/// Loads `W` bytes at any alignment. On x86-64 hosts an unaligned access is one host access, as on the guest's
/// processor; elsewhere it is done by bytes.
///
/// # Safety
/// `p..p + W` must be inside guest RAM.
#[inline(always)]
pub unsafe fn load<const W: u8>(p: *const u8) -> u64 {
    // SAFETY: by the caller; alignment is checked where the host needs it.
    unsafe {
        if W == 1 {
            return load1(p);
        }
        if cfg!(target_arch = "x86_64") {
            // A volatile read is one plain host instruction: the host's own memory order.
            return match W {
                2 => u64::from(p.cast::<u16>().read_unaligned_volatile()),
                4 => u64::from(p.cast::<u32>().read_unaligned_volatile()),
                _ => p.cast::<u64>().read_unaligned_volatile(),
            };
        }
        if (p as usize).is_multiple_of(W as usize) {
            return match W {
                2 => load2(p),
                4 => load4(p),
                _ => load8(p),
            };
        }
        (0..W as usize).rev().fold(0, |v, i| v << 8 | load1(p.add(i)))
    }
}

/// Stores `W` bytes at any alignment; see [`load`].
///
/// # Safety
/// `p..p + W` must be inside guest RAM.
#[inline(always)]
pub unsafe fn store<const W: u8>(p: *mut u8, value: u64) {
    // SAFETY: by the caller; alignment is checked where the host needs it.
    unsafe {
        if W == 1 {
            return store1(p, value);
        }
        if cfg!(target_arch = "x86_64") {
            return match W {
                2 => p.cast::<u16>().write_unaligned_volatile(value as u16),
                4 => p.cast::<u32>().write_unaligned_volatile(value as u32),
                _ => p.cast::<u64>().write_unaligned_volatile(value),
            };
        }
        if (p as usize).is_multiple_of(W as usize) {
            return match W {
                2 => store2(p, value),
                4 => store4(p, value),
                _ => store8(p, value),
            };
        }
        for i in 0..W as usize {
            store1(p.add(i), value >> (i * 8));
        }
    }
}

/// One host instruction for an access of any alignment: `read_volatile` of a packed wrapper.
trait UnalignedVolatile<T> {
    unsafe fn read_unaligned_volatile(self) -> T;
}
trait UnalignedVolatileMut<T> {
    unsafe fn write_unaligned_volatile(self, value: T);
}
#[repr(C, packed)]
struct Packed<T>(T);
impl<T: Copy> UnalignedVolatile<T> for *const T {
    #[inline(always)]
    unsafe fn read_unaligned_volatile(self) -> T {
        // SAFETY: a packed type has alignment 1; bounds by the caller.
        unsafe { self.cast::<Packed<T>>().read_volatile().0 }
    }
}
impl<T: Copy> UnalignedVolatileMut<T> for *mut T {
    #[inline(always)]
    unsafe fn write_unaligned_volatile(self, value: T) {
        // SAFETY: a packed type has alignment 1; bounds by the caller.
        unsafe { self.cast::<Packed<T>>().write_volatile(Packed(value)) }
    }
}

/// Compare and swap of `W` bytes at any alignment (a "split lock" where it is not aligned). On x86-64 hosts that is the
/// host's own, which translated code uses too; elsewhere it goes byte by byte under a process-wide lock: atomic against
/// other split locks only.
///
/// # Safety
/// `p..p + W` must be inside guest RAM.
#[inline(always)]
pub unsafe fn compare_exchange<const W: u8>(p: *mut u8, old: u64, new: u64) -> bool {
    // SAFETY: by the caller.
    unsafe {
        if !(p as usize).is_multiple_of(W as usize) {
            return split_lock(p, W as usize, old, new);
        }
        match W {
            1 => cas1(p, old, new),
            2 => cas2(p, old, new),
            4 => cas4(p, old, new),
            _ => cas8(p, old, new),
        }
    }
}

static SPLIT: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// While this lives no other processor does a locked access that no host instruction can do.
pub fn split_lock_guard() -> impl Drop {
    // The lock guards no data that a panic could leave half done.
    SPLIT.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(target_arch = "x86_64")]
#[cold]
unsafe fn split_lock(p: *mut u8, w: usize, old: u64, new: u64) -> bool {
    let ok: u8;
    macro_rules! exchange {
        ($operand:literal) => {
            // SAFETY: in bounds by the caller; the instruction takes any alignment.
            unsafe {
                std::arch::asm!(
                    concat!("lock cmpxchg [{p}], ", $operand),
                    "setz {ok}",
                    p = in(reg) p,
                    new = in(reg) new,
                    ok = out(reg_byte) ok,
                    inout("rax") old => _,
                    options(nostack)
                );
            }
        };
    }
    match w {
        2 => exchange!("{new:x}"),
        4 => exchange!("{new:e}"),
        _ => exchange!("{new:r}"),
    }
    ok != 0
}

#[cfg(not(target_arch = "x86_64"))]
#[cold]
unsafe fn split_lock(p: *mut u8, w: usize, old: u64, new: u64) -> bool {
    let _guard = split_lock_guard();
    // SAFETY: by the caller.
    unsafe {
        let now = (0..w).rev().fold(0, |v, i| v << 8 | load1(p.add(i)));
        let same = now == old;
        if same {
            (0..w).for_each(|i| store1(p.add(i), new >> (i * 8)));
        }
        same
    }
}

/// Compare and swap of 16 aligned bytes (CMPXCHG16B), as low and high quadword. On x86-64 hosts the host's
/// own; elsewhere under the split lock.
///
/// # Safety
/// `p` must be 16-byte aligned and inside guest RAM.
pub unsafe fn compare_exchange_16(p: *mut u8, old: u128, new: u128) -> Result<(), u128> {
    #[cfg(target_arch = "x86_64")]
    {
        let (mut low, mut high) = (old as u64, (old >> 64) as u64);
        let ok: u8;
        // SAFETY: aligned and in bounds by the caller; RBX is saved around its use.
        unsafe {
            std::arch::asm!(
                "xchg {new_low}, rbx",
                "lock cmpxchg16b [{p}]",
                "setz {ok}",
                "mov rbx, {new_low}",
                new_low = inout(reg) new as u64 => _,
                p = in(reg) p,
                ok = out(reg_byte) ok,
                inout("rax") low,
                inout("rdx") high,
                in("rcx") (new >> 64) as u64,
                options(nostack)
            );
        }
        if ok != 0 { Ok(()) } else { Err(u128::from(high) << 64 | u128::from(low)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _guard = split_lock_guard();
        // SAFETY: by the caller.
        unsafe {
            let now = u128::from(load8(p.add(8))) << 64 | u128::from(load8(p));
            if now != old {
                return Err(now);
            }
            store8(p, new as u64);
            store8(p.add(8), (new >> 64) as u64);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every alignment and length of a copy: the bytes are right, and none beside them changes.
    #[test]
    fn copies_at_any_alignment() {
        let pattern: Vec<u8> = (1..=64).collect();
        for start in 0..16 {
            for len in 0..40usize {
                let ram = Ram::anonymous(PAGE);
                assert!(ram.write(start, &pattern[..len]));
                let mut all = [0; 64];
                assert!(ram.read(0, &mut all));
                let mut want = [0; 64];
                want[start as usize..start as usize + len].copy_from_slice(&pattern[..len]);
                assert_eq!(all, want, "{len} bytes at {start}");
                let mut part = vec![0xFF; len];
                assert!(ram.read(start, &mut part));
                assert_eq!(part, pattern[..len], "{len} bytes from {start}");
            }
        }
    }

    /// Nothing is copied past the end.
    #[test]
    fn copies_past_the_end_fail() {
        let ram = Ram::anonymous(PAGE);
        let mut buf = [7; 9];
        assert!(!ram.read(PAGE - 8, &mut buf) && !ram.read(u64::MAX, &mut buf));
        assert_eq!(buf, [7; 9]);
        assert!(!ram.write(PAGE - 8, &buf));
        assert!(ram.differences(&Ram::anonymous(PAGE)).next().is_none());
    }

    #[test]
    fn differences_are_words() {
        let (a, b) = (Ram::anonymous(PAGE), Ram::anonymous(PAGE));
        assert!(a.write(0x10, &[1]) && b.write(PAGE - 1, &[2]));
        let found: Vec<_> = a.differences(&b).collect();
        assert_eq!(found, [(0x10, 1, 0), (PAGE - 8, 0, 2 << 56)]);
    }
}
