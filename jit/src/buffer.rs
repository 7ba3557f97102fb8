//! Host memory for code: one file in memory, mapped twice, writable here and executable there.
//!
//! It is filled from the start to the end and over again. Before space is used again, whatever lies there must have
//! been dropped: [`CodeBuffer::reserve`] says what.
#![allow(unsafe_code)]

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::ops::Range;
use std::ptr;

const ALIGN: usize = 32;

pub struct CodeBuffer {
    write: *mut u8,
    execute: *mut u8,
    len: usize,
    /// Where the next code goes.
    next: usize,
    /// Everything from `next` to here is free.
    free: usize,
}

// SAFETY: the mappings belong to this value alone.
unsafe impl Send for CodeBuffer {}

impl CodeBuffer {
    /// Jumps reach from any place to any other.
    pub const MOST: usize = crate::MOST_CODE;

    /// `len` bytes, at least 64 KiB and at most [`Self::MOST`].
    pub fn new(len: usize) -> io::Result<Self> {
        let len = len.clamp(1 << 16, Self::MOST).next_multiple_of(1 << 16);
        let file = memfd_create("trimaran code", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len as u64)?;
        // SAFETY: new mappings of a file of our own, placed by the kernel.
        let (write, execute) = unsafe {
            let map = |prot| mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0);
            (map(ProtFlags::READ | ProtFlags::WRITE)?, map(ProtFlags::READ | ProtFlags::EXEC)?)
        };
        Ok(CodeBuffer { write: write.cast(), execute: execute.cast(), len, next: 0, free: len })
    }

    /// The address that code at an offset runs at.
    pub fn address(&self, offset: usize) -> usize {
        self.execute as usize + offset
    }

    /// Makes room for `len` bytes. What lies in the range returned (offsets) must be dropped before [`Self::put`].
    /// None: more than the buffer holds.
    pub fn reserve(&mut self, len: usize) -> Option<Range<usize>> {
        let len = len.next_multiple_of(ALIGN);
        // A sixteenth is dropped at a time, so that this is rare.
        let chunk = (self.len / 16).max(len);
        if len > self.len / 2 {
            return None;
        }
        if self.next + len <= self.free {
            return Some(self.next..self.next);
        }
        if self.next + len > self.len {
            self.next = 0;
        }
        self.free = (self.next + chunk).min(self.len);
        Some(self.next..self.free)
    }

    /// And where it is written.
    pub fn writable(&self, offset: usize) -> usize {
        self.write as usize + offset
    }

    /// Copies code into the room made; returns its offset.
    pub fn put(&mut self, code: &[u8]) -> usize {
        let at = self.next;
        assert!(at + code.len() <= self.free, "code beyond the room reserved");
        // SAFETY: inside the mapping by the assertion, and nothing that still runs lies there.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.next = (at + code.len()).next_multiple_of(ALIGN).min(self.len);
        at
    }
}

impl Drop for CodeBuffer {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; no code of it runs any more.
        unsafe {
            let _ = munmap(self.write.cast(), self.len);
            let _ = munmap(self.execute.cast(), self.len);
        }
    }
}
