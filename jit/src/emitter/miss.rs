//! What happens when an access misses the TLB, and the two thunks that emitted code calls with its registers full.
//!
//! A miss comes here with all registers saved. Either the TLB is filled and the access is tried again, or the
//! guest's state is rebuilt from the access's snapshot and the code leaves with [`abi::INTERPRET`].
#![allow(unsafe_code)]

use super::snapshot::Keep;
use super::x87;
use crate::abi;
use crate::runtime::{self, Trouble};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use trimaran_cpu::Vcpu;
use trimaran_cpu::ram::PAGE;
use trimaran_cpu::translate::offset;

type Assembler = dynasmrt::VecAssembler<dynasmrt::x64::X64Relocation>;

/// Field of [`trimaran_cpu::translate::Translated::scratch`] with the number of the snapshot.
pub const NUMBER: usize = offset::SCRATCH + 8;
/// And with the address of the [`Keep`].
pub const KEEP: usize = offset::SCRATCH + 16;

/// How far into a thunk the entries lie that keep XMM or YMM registers too.
pub const WITH_XMM: usize = 256;
pub const WITH_YMM: usize = 768;

/// An access missed. `registers`: the host's by number; RCX is the linear address. `vectors`: null, or XMM0 to XMM15 (YMM0 to
/// YMM15 if the region caches those). 1: try again; 0: leave.
///
/// # Safety
/// Only the thunk below may call it, from code whose `Keep` stands in the scratch fields.
unsafe extern "C" fn miss(v: *mut Vcpu, registers: *const [u64; 16], vectors: *const [[u64; 4]; 16]) -> u64 {
    // SAFETY: the engine holds no other reference while code runs, and the registers are on the thunk's stack.
    let (v, registers, vectors) = unsafe { (&mut *v, &*registers, vectors.as_ref()) };
    let [_, k, keep, _] = v.translated.scratch;
    // SAFETY: the region keeps it as long as its code may run.
    let keep = unsafe { &*(keep as *const Keep) };
    let s = &keep.snapshots[k as usize];
    let (size, address) = (s.size, registers[1]);
    if let Some(write) = s.window {
        let fits = address % PAGE + u64::from(size) <= PAGE;
        if fits && s.kept {
            if write && v.refilled(address).0 {
                v.translated.scratch[3] = runtime::trouble(keep.owner, Trouble::Write);
            }
        } else if fits && v.refill(address, size, s.write) {
            if !write || v.refilled(address).1 {
                return 1;
            }
            v.translated.scratch[3] = runtime::trouble(keep.owner, Trouble::Write);
        } else if !fits {
            v.translated.scratch[3] = runtime::trouble(keep.owner, Trouble::Crossing);
        }
    } else if s.guard {
        v.translated.scratch[3] = runtime::trouble(keep.owner, Trouble::X87);
    } else if size != 0
        && (!s.aligned || address & u64::from(s.size - 1) == 0)
        && v.refill(address, size, s.write)
    {
        return 1;
    }
    keep.rebuild(v, k as usize, registers, vectors);
    0
}

/// What an entry keeps of the vector registers.
#[derive(Clone, Copy, PartialEq)]
enum Kept {
    Nothing,
    Xmm,
    Ymm,
}

/// Saves the vector registers in 512 bytes of the stack, 32 for each.
fn push_vectors(a: &mut Assembler, kept: Kept) {
    dynasm!(a ; .arch x64 ; sub rsp, 512);
    for n in 0..16u8 {
        match kept {
            Kept::Ymm => dynasm!(a ; .arch x64 ; vmovups [rsp + i32::from(n) * 32], Ry(n)),
            _ => dynasm!(a ; .arch x64 ; movaps [rsp + i32::from(n) * 32], Rx(n)),
        }
    }
}

fn pop_vectors(a: &mut Assembler, kept: Kept) {
    for n in 0..16u8 {
        match kept {
            Kept::Ymm => dynasm!(a ; .arch x64 ; vmovups Ry(n), [rsp + i32::from(n) * 32]),
            _ => dynasm!(a ; .arch x64 ; movaps Rx(n), [rsp + i32::from(n) * 32]),
        }
    }
    dynasm!(a ; .arch x64 ; add rsp, 512);
}

/// The three entries of a thunk.
fn entries(part: fn(&mut Assembler, Kept)) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kept, at) in [(Kept::Nothing, 0), (Kept::Xmm, WITH_XMM), (Kept::Ymm, WITH_YMM)] {
        debug_assert!(bytes.len() <= at);
        bytes.resize(at, 0xCC);
        let mut a = Assembler::new(0);
        part(&mut a, kept);
        bytes.extend(a.finalize().unwrap_or_default());
    }
    bytes
}

/// Called by a region's common stub, with all registers full.
pub fn miss_thunk() -> Vec<u8> {
    entries(|a, kept| {
        dynasm!(a
            ; .arch x64
            ; push r15 ; push r14 ; push r13 ; push r12 ; push r11 ; push r10 ; push r9 ; push r8
            ; push rdi ; push rsi ; push rbp ; push rsp ; push rbx ; push rdx ; push rcx ; push rax
            ; mov rsi, rsp
            ; xor edx, edx
        );
        if kept != Kept::Nothing {
            push_vectors(a, kept);
            dynasm!(a ; .arch x64 ; mov rdx, rsp);
        }
        dynasm!(a
            ; .arch x64
            ; mov rax, QWORD miss as *const () as i64
            ; call rax
        );
        if kept != Kept::Nothing {
            pop_vectors(a, kept);
        }
        dynasm!(a
            ; .arch x64
            ; test eax, eax
            ; jz >leave
            ; pop rax ; pop rcx ; pop rdx ; pop rbx ; pop rbp ; pop rbp ; pop rsi ; pop rdi
            ; pop r8 ; pop r9 ; pop r10 ; pop r11 ; pop r12 ; pop r13 ; pop r14 ; pop r15
            ; ret
            // Over the registers and the return address into the region.
            ; leave:
            ; add rsp, 17 * 8
            ; mov eax, abi::INTERPRET as i32
            ; ret
        );
    })
}

/// [`runtime::settle_flags`] for code whose registers are full.
pub fn settle_thunk() -> Vec<u8> {
    entries(|a, kept| keeping(a, kept, runtime::settle_flags as *const () as i64))
}

/// The same for [`x87::host::arm`].
pub fn arm_thunk() -> Vec<u8> {
    entries(|a, kept| keeping(a, kept, x87::host::arm as *const () as i64))
}

/// Calls a function with all registers saved.
fn keeping(a: &mut Assembler, kept: Kept, function: i64) {
    dynasm!(a
        ; .arch x64
        ; push rax ; push rcx ; push rdx ; push rsi ; push rdi ; push r8 ; push r9 ; push r10 ; push r11
        ; sub rsp, 8
    );
    if kept != Kept::Nothing {
        push_vectors(a, kept);
    }
    dynasm!(a
        ; .arch x64
        ; mov rax, QWORD function
        ; call rax
    );
    if kept != Kept::Nothing {
        pop_vectors(a, kept);
    }
    dynasm!(a
        ; .arch x64
        ; add rsp, 8
        ; pop r11 ; pop r10 ; pop r9 ; pop r8 ; pop rdi ; pop rsi ; pop rdx ; pop rcx ; pop rax
        ; ret
    );
}

/// Enters code as the engine does.
#[cfg(test)]
pub fn enter(runtime: &abi::Runtime, v: &mut Vcpu, budget: i64, code: usize) -> u64 {
    type Trampoline = extern "C" fn(*mut Vcpu, i64, usize) -> u64;
    // SAFETY: the trampoline's address and signature are `stubs.rs`'s.
    let trampoline = unsafe { std::mem::transmute::<usize, Trampoline>(runtime.trampoline) };
    trampoline(v, budget, code)
}
