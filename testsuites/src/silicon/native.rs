//! A case on the host's own processor.
//!
//! Goal: run arbitrary user-mode instructions with every register loaded, and come back whatever they do.
//!
//! How: pages at fixed low addresses (see [`at`]) hold data, code, and a hand-assembled trampoline that saves what
//! Rust owns, loads the case's registers and jumps to the code. A case ends with a jump to `EXIT`, which stores all
//! registers, or with a signal: the handler (on a stack of its own) copies the registers out of the signal frame and
//! sends the thread to `RESTORE`. Position-independent executables keep Rust's own memory far above 4 GiB, and the
//! generator gives no case an address of it; FS-relative operands are never made.
//!
//! `unsafe`: the mapping, the signal handler, and the call into the trampoline. One instance at a time, on one
//! thread: handlers and context are the process's.
#![allow(unsafe_code)]

use super::case::{AREA, Case, Floating, Outcome, Raised, at};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

/// Shared with the trampoline, at [`CONTEXT`].
#[repr(C, align(64))]
struct Context {
    fx_in: [u8; AREA],
    fx_out: [u8; AREA],
    fx_host: [u8; AREA],
    gpr_in: [u64; 16],
    gpr_out: [u64; 16],
    rflags_in: u64,
    rflags_out: u64,
    rip_out: u64,
    host_rsp: u64,
    trap: u64,
    error: u64,
    cr2: u64,
}

use at::CONTEXT;
/// Number of the case that runs, counted from 1; 0: none.
static RUNNING: AtomicU64 = AtomicU64::new(0);
/// The thread that runs cases.
static THREAD: AtomicI32 = AtomicI32::new(0);
/// SIGVTALRM, after each second of the process's own time, finds cases that do not end.
const SIGNALS: [i32; 6] =
    [libc::SIGVTALRM, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGBUS];
/// Seconds that a case may take.
const LIMIT: u32 = 4;
const NO_TRAP: u64 = !0;

/// See the head of this file.
pub struct Native {
    /// How many cases have run.
    cases: u64,
    /// Not `Send`: the alternate stack is the thread's.
    _thread: std::marker::PhantomData<*mut u8>,
}

fn map(address: u64, bytes: usize, protection: i32) -> Result<(), String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a fresh mapping; NOREPLACE keeps it off any other.
    let p = unsafe { libc::mmap(address as *mut libc::c_void, bytes, protection, flags, -1, 0) };
    if p as u64 == address { Ok(()) } else { Err(format!("no mapping at {address:#x}")) }
}

/// Seconds between two of the watchman's looks; 0: none.
fn watch(seconds: i64) {
    let every = libc::timeval { tv_sec: seconds, tv_usec: 0 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: a valid timer, whose signal has a handler.
    unsafe { libc::setitimer(libc::ITIMER_VIRTUAL, &timer, std::ptr::null_mut()) };
}

impl Drop for Native {
    fn drop(&mut self) {
        watch(0);
        let all =
            [(at::DATA, at::DATA_BYTES), (at::CODE, 0x1000), (CONTEXT, 0x1000), (at::TRAMPOLINE, 0x1000)];
        for (address, bytes) in all {
            // SAFETY: our own mapping; nothing of it is looked at outside of `run`.
            unsafe { libc::munmap(address as *mut libc::c_void, bytes) };
        }
    }
}

impl Native {
    /// Maps the pages and installs the handlers. An error says why this host cannot.
    pub fn new() -> Result<Self, String> {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        map(at::DATA, at::DATA_BYTES, rw)?;
        map(at::CODE, 0x1000, rw | libc::PROT_EXEC)?;
        map(CONTEXT, 0x1000, rw)?;
        map(at::TRAMPOLINE, 0x1000, rw | libc::PROT_EXEC)?;
        write(at::TRAMPOLINE, &enter());
        write(at::EXIT, &exit());
        write(at::RESTORE, &restore());
        // A case's wild store faults there, as it does on our side, where the page is the kernel's exit.
        // SAFETY: our own mapping, which is only run from now on.
        unsafe {
            libc::mprotect(at::TRAMPOLINE as *mut libc::c_void, 0x1000, libc::PROT_READ | libc::PROT_EXEC)
        };
        let stack = Box::leak(vec![0u8; 1 << 17].into_boxed_slice());
        let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
        // SAFETY: the stack is leaked, the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            libc::sigaltstack(&alternate, std::ptr::null_mut());
            for signal in SIGNALS {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
        // SAFETY: it has no conditions.
        THREAD.store(unsafe { libc::gettid() }, Relaxed);
        watch(1);
        Ok(Native { cases: 0, _thread: std::marker::PhantomData })
    }

    pub fn run(&mut self, case: &Case) -> Outcome {
        let read_only = at::DATA + at::WRITABLE_BYTES as u64;
        let read_only_bytes = at::DATA_BYTES - at::WRITABLE_BYTES;
        let protect = |protection| {
            // SAFETY: our own mapping.
            unsafe { libc::mprotect(read_only as *mut libc::c_void, read_only_bytes, protection) };
        };
        write(at::DATA, &case.memory[..at::WRITABLE_BYTES]);
        if read(read_only, read_only_bytes) != &case.memory[at::WRITABLE_BYTES..] {
            protect(libc::PROT_READ | libc::PROT_WRITE);
            write(read_only, &case.memory[at::WRITABLE_BYTES..]);
            protect(libc::PROT_READ);
        }
        // Cases of a family have the same code; writing it would cost the host's decoded copies.
        let image = case.image(at::CODE);
        if read(at::CODE, image.len()) != image {
            write(at::CODE, &image);
        }
        self.cases += 1;
        let context = CONTEXT as *mut Context;
        // SAFETY: the context page is ours and nobody else looks at it now; the trampoline is the function that
        // `enter` describes.
        unsafe {
            (*context).fx_in = case.floating.to_area();
            (*context).gpr_in = case.gpr;
            (*context).rflags_in = case.rflags;
            (*context).trap = NO_TRAP;
            RUNNING.store(self.cases, Relaxed);
            let f: extern "C" fn() = std::mem::transmute(at::TRAMPOLINE as *const u8);
            f();
            RUNNING.store(0, Relaxed);
            let c = &*context;
            let vector = c.trap as u8;
            let raised = (c.trap != NO_TRAP).then_some(Raised {
                vector,
                error: if matches!(vector, 8 | 10..=14 | 17) { c.error } else { 0 },
                address: if vector == 14 { c.cr2 } else { 0 },
            });
            Outcome {
                gpr: c.gpr_out,
                rflags: c.rflags_out,
                rip: if raised.is_some() { c.rip_out } else { at::EXIT },
                raised,
                floating: Floating::from_area(&c.fx_out),
                memory: read(at::DATA, at::DATA_BYTES).to_vec(),
            }
        }
    }
}

fn write(address: u64, bytes: &[u8]) {
    // SAFETY: callers name pages of `Native::new` and stay inside.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
}

fn read<'a>(address: u64, len: usize) -> &'a [u8] {
    // SAFETY: as above; the slice is dropped before a case runs again.
    unsafe { std::slice::from_raw_parts(address as *const u8, len) }
}

/// The watchman's look: whether the case that runs has run for too long.
fn overdue() -> bool {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    static LOOKS: AtomicU32 = AtomicU32::new(0);
    let case = RUNNING.load(Relaxed);
    // SAFETY: both calls are async-signal-safe.
    unsafe {
        if case != 0 && libc::gettid() != THREAD.load(Relaxed) {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), THREAD.load(Relaxed), libc::SIGVTALRM);
            return false;
        }
    }
    if case == 0 || SEEN.swap(case, Relaxed) != case {
        LOOKS.store(0, Relaxed);
        return false;
    }
    LOOKS.fetch_add(1, Relaxed) + 1 >= LIMIT
}

/// Copies the interrupted registers and continues at `RESTORE`.
extern "C" fn handler(signal: i32, _: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    if signal == libc::SIGVTALRM && !overdue() {
        return;
    }
    if RUNNING.load(Relaxed) == 0 {
        // Not a case's: let it happen again with the default action.
        // SAFETY: async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // Order of `gregs`: R8..R15, RDI, RSI, RBP, RBX, RDX, RAX, RCX, RSP, RIP, EFL, CSGSFS, ERR, TRAPNO, OLDMASK, CR2.
    const PLACE: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
    // SAFETY: the kernel passes a valid frame; the context page is ours.
    unsafe {
        let machine = &mut (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext;
        let c = &mut *(CONTEXT as *mut Context);
        for (out, place) in c.gpr_out.iter_mut().zip(PLACE) {
            *out = machine.gregs[place] as u64;
        }
        c.rip_out = machine.gregs[16] as u64;
        c.rflags_out = machine.gregs[17] as u64;
        c.error = machine.gregs[19] as u64;
        c.trap = if signal == libc::SIGVTALRM { 0xFF } else { machine.gregs[20] as u64 };
        c.cr2 = machine.gregs[22] as u64;
        let bytes = if avx() { AREA } else { 512 };
        std::ptr::copy_nonoverlapping(machine.fpregs.cast::<u8>(), c.fx_out.as_mut_ptr(), bytes);
        machine.gregs[16] = at::RESTORE as i64;
        // No DF, AC or TF in Rust.
        machine.gregs[17] &= !0x4_0500;
    }
}

/// Opcode bytes with the absolute operand [address]: ModRM with `reg`, SIB "no base, no index", disp32.
fn absolute(out: &mut Vec<u8>, opcode: &[u8], reg: u8, address: u64) {
    out.extend(opcode);
    out.extend([reg << 3 | 4, 0x25]);
    out.extend((address as u32).to_le_bytes());
}

fn field(offset: usize) -> u64 {
    CONTEXT + offset as u64
}

/// MOV between a register and memory (opcode 8B: load, 89: store).
fn mov(out: &mut Vec<u8>, opcode: u8, register: u8, address: u64) {
    absolute(out, &[0x48 | (register >> 3) << 2, opcode], register & 7, address);
}

/// Whether the host has AVX; the areas are XSAVE's then, otherwise FXSAVE's.
fn avx() -> bool {
    std::is_x86_feature_detected!("avx")
}

/// Saves or loads x87 and vectors. With AVX it needs EAX and EDX: MOV EAX, 7; XOR EDX, EDX.
fn exchange(out: &mut Vec<u8>, load: bool, offset: usize) {
    if avx() {
        out.extend([0xB8, 7, 0, 0, 0, 0x31, 0xD2]);
    }
    // FXSAVE64, FXRSTOR64, XSAVE64, XRSTOR64.
    absolute(out, &[0x48, 0x0F, 0xAE], u8::from(load) | u8::from(avx()) << 2, field(offset));
}

fn enter() -> Vec<u8> {
    // PUSH RBX, RBP, R12 to R15; PUSHFQ.
    let mut out = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x9C];
    exchange(&mut out, false, std::mem::offset_of!(Context, fx_host));
    mov(&mut out, 0x89, 4, field(std::mem::offset_of!(Context, host_rsp)));
    exchange(&mut out, true, std::mem::offset_of!(Context, fx_in));
    // PUSH rflags_in; POPFQ.
    absolute(&mut out, &[0xFF], 6, field(std::mem::offset_of!(Context, rflags_in)));
    out.push(0x9D);
    for n in 0..16u8 {
        mov(&mut out, 0x8B, n, field(std::mem::offset_of!(Context, gpr_in) + usize::from(n) * 8));
    }
    let next = at::TRAMPOLINE + out.len() as u64 + 5;
    out.push(0xE9);
    out.extend((at::CODE.wrapping_sub(next) as u32).to_le_bytes());
    out
}

fn exit() -> Vec<u8> {
    let mut out = Vec::new();
    let gpr_out = |n: u8| field(std::mem::offset_of!(Context, gpr_out) + usize::from(n) * 8);
    mov(&mut out, 0x89, 4, gpr_out(4));
    mov(&mut out, 0x8B, 4, field(std::mem::offset_of!(Context, host_rsp)));
    // PUSHFQ; POP rflags_out.
    out.push(0x9C);
    absolute(&mut out, &[0x8F], 0, field(std::mem::offset_of!(Context, rflags_out)));
    for n in (0..16u8).filter(|&n| n != 4) {
        mov(&mut out, 0x89, n, gpr_out(n));
    }
    exchange(&mut out, false, std::mem::offset_of!(Context, fx_out));
    out.extend(restore());
    out
}

fn restore() -> Vec<u8> {
    let mut out = Vec::new();
    mov(&mut out, 0x8B, 4, field(std::mem::offset_of!(Context, host_rsp)));
    exchange(&mut out, true, std::mem::offset_of!(Context, fx_host));
    // POPFQ; POP R15 to R12, RBP, RBX; RET.
    out.extend([0x9D, 0x41, 0x5F, 0x41, 0x5E, 0x41, 0x5D, 0x41, 0x5C, 0x5D, 0x5B, 0xC3]);
    out
}
