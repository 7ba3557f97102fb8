//! The fixed pieces of code: the way in, and what unlinked slots lead to.
//!
//! On x86-64 hosts they are assembled here; elsewhere Cranelift makes them (`cranelift/stubs.rs`).

use crate::abi::Runtime;
use crate::buffer::CodeBuffer;
use crate::runtime;
use std::sync::OnceLock;

/// Puts the stubs into the buffer's memory; returns all addresses that code wants.
pub fn install(buffer: &mut CodeBuffer) -> Option<Runtime> {
    let mut put = |code: &[u8]| {
        // What could not be assembled is empty, and must not be entered.
        (!code.is_empty()).then_some(())?;
        buffer.reserve(code.len())?;
        let at = buffer.put(code);
        Some(buffer.address(at))
    };
    #[cfg(target_arch = "x86_64")]
    let (trampoline, unlinked, serialize) =
        (put(&x86_64::trampoline())?, put(&x86_64::unlinked())?, put(&x86_64::serialize())?);
    #[cfg(not(target_arch = "x86_64"))]
    let (trampoline, unlinked, serialize) =
        (put(&crate::cranelift::stubs::trampoline()?)?, put(&crate::cranelift::stubs::unlinked()?)?, 0);
    #[cfg(target_arch = "x86_64")]
    let [miss, settle_keeping, arm_keeping] = {
        use crate::emitter::miss::{arm_thunk, miss_thunk, settle_thunk};
        [put(&miss_thunk())?, put(&settle_thunk())?, put(&arm_thunk())?]
    };
    #[cfg(not(target_arch = "x86_64"))]
    let [miss, settle_keeping, arm_keeping] = [0; 3];
    let [refill_preserving, settle_preserving] = preserving().each_ref().map(|c| put(c.as_ref()?));
    Some(Runtime {
        trampoline,
        unlinked,
        serialize,
        run_helper: runtime::run_helper as *const () as usize,
        run_helpers: runtime::run_helpers as *const () as usize,
        run_last: runtime::run_last as *const () as usize,
        refill: runtime::refill as *const () as usize,
        settle_flags: runtime::settle_flags as *const () as usize,
        refill_preserving: refill_preserving.unwrap_or(0),
        settle_preserving: settle_preserving.unwrap_or(0),
        miss,
        settle_keeping,
        arm_keeping,
    })
}

/// Cranelift's, made once: they lie anywhere.
fn preserving() -> &'static [Option<Vec<u8>>; 2] {
    use crate::cranelift::stubs::{refill_preserving, settle_preserving};
    static CODE: OnceLock<[Option<Vec<u8>>; 2]> = OnceLock::new();
    CODE.get_or_init(|| [refill_preserving(), settle_preserving()])
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use crate::slots::Slot;
    use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
    use trimaran_cpu::state::gpr;
    use trimaran_cpu::translate::offset;

    type Assembler = dynasmrt::VecAssembler<dynasmrt::x64::X64Relocation>;

    /// `extern "C" fn(vcpu: rdi, budget: rsi, code: rdx) -> rax`: keeps what the System V convention wants kept, for
    /// emitted code keeps nothing. The host's MXCSR starts without flags (see `abi.rs`, Floating point).
    pub fn trampoline() -> Vec<u8> {
        let mut a = Assembler::new(0);
        dynasm!(a
            ; .arch x64
            ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15
            ; push DWORD 0x1F80
            ; ldmxcsr [rsp]
            ; call rdx
            ; add rsp, 8
            ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx
            ; ret
        );
        a.finalize().unwrap_or_default()
    }

    /// `extern "C" fn()`: an IRET to the next instruction, which is one of the few serializing ones that a host under a hypervisor
    /// does not leave to it.
    pub fn serialize() -> Vec<u8> {
        let mut a = Assembler::new(0);
        dynasm!(a
            ; .arch x64
            ; mov rcx, rsp
            ; mov eax, ss
            ; push rax ; push rcx
            ; pushfq
            ; mov eax, cs
            ; push rax
            ; lea rax, [>next]
            ; push rax
            ; iretq
            ; next:
            ; ret
        );
        a.finalize().unwrap_or_default()
    }

    /// A slot that leads nowhere, or an entry of the jump table that is wanting (RDX: 0): if nothing is found, the engine gets
    /// the budget and the slot, or [`crate::abi::LOOKUP`].
    pub fn unlinked() -> Vec<u8> {
        let mut a = Assembler::new(0);
        dynasm!(a
            ; .arch x64
            // Another page, and the second of the tags?
            ; test rdx, rdx
            ; jz >look
            ; cmp BYTE [rdx + Slot::FAR as i32], 0
            ; je >look
            ; mov rax, [rdi + offset::gpr(gpr::RIP) as i32]
            ; xor rax, [rdi + offset::SALT as i32]
            ; cmp rax, [rdx + Slot::TAGS as i32 + 8]
            ; jne >look
            ; jmp QWORD [rdx + Slot::CODE as i32]
            ; look:
            ; push rdi ; push rsi ; push rdx
            ; mov rsi, rdx
            ; mov rax, QWORD crate::places::find as *const () as i64
            ; call rax
            ; pop rdx ; pop rsi ; pop rdi
            ; test rax, rax
            ; jz >leave
            ; jmp rax
            ; leave:
            ; mov [rdi + offset::BUDGET as i32], rsi
            ; mov rax, rdx
            ; ret
        );
        a.finalize().unwrap_or_default()
    }
}
