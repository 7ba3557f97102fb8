//! One of KVM's vCPUs: the page that it shares with the kernel, the kick out of guest code, and the calls that
//! kvm-ioctls does not have. All of this crate's unsafe code but the memory slots' is here.
#![allow(unsafe_code)]

use kvm_bindings::{
    KVM_EXIT_INTR, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_MP_STATE_HALTED,
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Msrs, kvm_device_attr, kvm_guest_debug, kvm_interrupt,
    kvm_msr_entry, kvm_run, kvm_signal_mask, kvm_sregs2, kvm_xsave,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use trimaran_cpu::shared::Kick;
use trimaran_cpu::state::Activity;
use vmm_sys_util::errno::{self, Error};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);
ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

const IA32_TSC: u32 = 0x10;

/// See the head of this file.
pub struct Hardware {
    pub fd: VcpuFd,
    /// The page shared with the kernel, part of `fd`.
    page: *mut kvm_run,
    kick: Arc<KickOut>,
}

// SAFETY: the page belongs to `fd` and goes where it goes; all accesses through it are volatile or atomic.
unsafe impl Send for Hardware {}

fn done(result: i32) -> errno::Result<()> {
    if result < 0 { Err(Error::last()) } else { Ok(()) }
}

impl Hardware {
    pub fn new(mut fd: VcpuFd) -> Self {
        static HANDLER: Once = Once::new();
        extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        HANDLER.call_once(|| {
            // The signal is only there to end KVM_RUN.
            if let Err(e) = register_signal_handler(SIGRTMIN(), nothing) {
                tracing::error!("no handler for the signal that interrupts KVM: {e}");
            }
        });
        let page = &raw mut *fd.get_kvm_run();
        let kick = KickOut { page: Mutex::new(Some(page)), thread: AtomicI32::new(0) };
        Hardware { fd, page, kick: Arc::new(kick) }
    }

    /// The calling thread is the one that runs the vCPU from now on. Returns what ends its runs from another thread.
    pub fn on_this_thread(&self) -> Arc<KickOut> {
        // SAFETY: without arguments and always successful.
        self.kick.thread.store(unsafe { libc::gettid() }, Release);
        self.kick.clone()
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the byte lives as long as `self.fd`; kernel and kicks change it at any time, so it is an atomic.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.page).immediate_exit) }
    }

    /// The next run ends before the first instruction, after what the last exit left to do.
    pub fn set_immediate_exit(&self, on: bool) {
        self.immediate_exit().store(u8::from(on), SeqCst);
    }

    /// Have the run end as soon as an interrupt can be injected.
    pub fn request_interrupt_window(&self, on: bool) {
        // SAFETY: a field of the shared page that the kernel reads during a run only.
        unsafe { (&raw mut (*self.page).request_interrupt_window).write_volatile(u8::from(on)) }
    }

    pub fn ready_for_interrupt(&self) -> bool {
        // SAFETY: a field of the shared page that the kernel writes during a run only.
        unsafe { (&raw const (*self.page).ready_for_interrupt_injection).read_volatile() != 0 }
    }

    /// RFLAGS.IF as the last run left it.
    pub fn interrupts_enabled(&self) -> bool {
        // SAFETY: as above.
        unsafe { (&raw const (*self.page).if_flag).read_volatile() != 0 }
    }

    pub fn task_priority(&self) -> u8 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.page).cr8).read_volatile() as u8 & 15 }
    }

    pub fn set_task_priority(&self, class: u8) {
        // SAFETY: a field of the shared page that the kernel reads and writes during a run only.
        unsafe { (&raw mut (*self.page).cr8).write_volatile(u64::from(class)) }
    }

    /// Runs guest code until an exit; with it, the bytes of one access of a port exit.
    pub fn run(&mut self) -> errno::Result<(VcpuExit<'_>, usize)> {
        let page = self.page.cast_const();
        let exit = self.fd.run()?;
        // SAFETY: a number in the shared page, whatever the exit is.
        let size = unsafe { (&raw const (*page).__bindgen_anon_1.io.size).read_volatile() };
        Ok((exit, usize::from(size)))
    }

    /// Suberror of the last internal error: 1 is an instruction that cannot be emulated.
    pub fn internal_error(&self) -> u32 {
        // SAFETY: a number in the shared page, whatever the last exit was.
        unsafe { (&raw const (*self.page).__bindgen_anon_1.internal.suberror).read_volatile() }
    }

    /// Whether the last run ended with a signal, or for [`Hardware::set_immediate_exit`].
    pub fn was_interrupted(&self) -> bool {
        // SAFETY: a number in the shared page.
        unsafe { (&raw const (*self.page).exit_reason).read_volatile() == KVM_EXIT_INTR }
    }

    /// Whether [`Hardware::set_immediate_exit`] is on; it is off then.
    pub fn takes_immediate_exit(&self) -> bool {
        self.immediate_exit().swap(0, SeqCst) != 0
    }

    /// A signal waits, as long as the result lives, that ends runs before their first instruction, but after KVM has looked
    /// at what waits for the vCPU. Immediate exits end before that.
    pub fn hold_signal(&self) -> errno::Result<HeldSignal> {
        // SAFETY: the sets are this call's own; the thread's mask is put back by the drop.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, SIGRTMIN());
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) {
                0 => {}
                error => return Err(Error::new(error)),
            }
            let held = HeldSignal { vcpu: self.fd.as_raw_fd(), set, before };
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), SIGRTMIN());
            // Of the kernel's sets, 8 bytes long: all other signals wait.
            let inside = SignalMask { len: 8, set: !(1u64 << (SIGRTMIN() - 1)) };
            done(libc::ioctl(held.vcpu, KVM_SET_SIGNAL_MASK() as _, &raw const inside))?;
            Ok(held)
        }
    }

    /// Whether the vCPU runs or has halted.
    pub fn activity(&self) -> Result<Activity, String> {
        match self.fd.get_mp_state().map_err(|e| format!("KVM does not tell whether it runs: {e}"))?.mp_state
        {
            KVM_MP_STATE_HALTED => Ok(Activity::Halted),
            _ => Ok(Activity::Running),
        }
    }

    /// Queues an external interrupt. Only when [`Hardware::ready_for_interrupt`].
    pub fn interrupt(&self, vector: u8) -> errno::Result<()> {
        let request = kvm_interrupt { irq: u32::from(vector) };
        // SAFETY: the kernel reads the structure of this call.
        done(unsafe { ioctl_with_ref(&self.fd, KVM_INTERRUPT(), &request) })
    }

    /// Has runs end after one instruction, or not. Takes the breakpoints away.
    pub fn single_steps(&self, on: bool) -> errno::Result<()> {
        let control = if on { KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP } else { 0 };
        self.fd.set_guest_debug(&kvm_guest_debug { control, ..Default::default() })
    }

    /// Has runs end before the instructions at up to four linear addresses.
    pub fn breakpoints(&self, addresses: &[u64]) -> errno::Result<()> {
        let mut debug = kvm_guest_debug::default();
        if !addresses.is_empty() {
            debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[..addresses.len()].copy_from_slice(addresses);
            // One enable bit each; kind "execution" and length 1 are zeros.
            debug.arch.debugreg[7] = (0..addresses.len()).fold(0x400, |dr7, n| dr7 | 2 << (n * 2));
        }
        self.fd.set_guest_debug(&debug)
    }

    pub fn sregs(&self) -> errno::Result<kvm_sregs2> {
        let mut sregs = kvm_sregs2::default();
        // SAFETY: the kernel fills the structure of this call.
        done(unsafe { ioctl_with_mut_ref(&self.fd, KVM_GET_SREGS2(), &mut sregs) })?;
        Ok(sregs)
    }

    pub fn set_sregs(&self, sregs: &kvm_sregs2) -> errno::Result<()> {
        // SAFETY: the kernel reads the structure of this call.
        done(unsafe { ioctl_with_ref(&self.fd, KVM_SET_SREGS2(), sregs) })
    }

    pub fn set_xsave(&self, xsave: &kvm_xsave) -> errno::Result<()> {
        // SAFETY: no feature with an area beyond 4096 bytes was asked for, so the structure is all that is read.
        unsafe { self.fd.set_xsave(xsave) }
    }

    /// IA32_TSC.
    pub fn time_stamp(&self) -> errno::Result<u64> {
        time_stamp(&self.fd)
    }

    /// What KVM adds to the host's (scaled) TSC.
    pub fn tsc_offset(&self) -> errno::Result<u64> {
        let mut offset = 0u64;
        let attribute = tsc_offset_at(&raw mut offset);
        // SAFETY: the kernel writes 8 bytes at the attribute's address, which is `offset`.
        done(unsafe { ioctl_with_ref(&self.fd, KVM_GET_DEVICE_ATTR(), &attribute) })?;
        Ok(offset)
    }

    pub fn set_tsc_offset(&self, mut offset: u64) -> errno::Result<()> {
        let attribute = tsc_offset_at(&raw mut offset);
        // SAFETY: the kernel reads 8 bytes at the attribute's address, which is `offset`.
        done(unsafe { ioctl_with_ref(&self.fd, KVM_SET_DEVICE_ATTR(), &attribute) })
    }
}

/// A signal mask as [`KVM_SET_SIGNAL_MASK`] reads it.
#[repr(C, packed)]
struct SignalMask {
    len: u32,
    set: u64,
}

/// See [`Hardware::hold_signal`].
pub struct HeldSignal {
    vcpu: RawFd,
    set: libc::sigset_t,
    before: libc::sigset_t,
}

impl Drop for HeldSignal {
    fn drop(&mut self) {
        // SAFETY: no mask of KVM's own, as before; signals that wait are taken away; the thread's mask is as it was.
        unsafe {
            libc::ioctl(self.vcpu, KVM_SET_SIGNAL_MASK() as _, std::ptr::null::<SignalMask>());
            let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            while libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const now) > 0 {}
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut());
        }
    }
}

/// A vCPU's IA32_TSC.
pub fn time_stamp(vcpu: &VcpuFd) -> errno::Result<u64> {
    let entry = kvm_msr_entry { index: IA32_TSC, ..Default::default() };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::EINVAL))?;
    match vcpu.get_msrs(&mut msrs)? {
        1 => Ok(msrs.as_slice()[0].data),
        _ => Err(Error::new(libc::ENOTSUP)),
    }
}

fn tsc_offset_at(address: *mut u64) -> kvm_device_attr {
    let attr = u64::from(KVM_VCPU_TSC_OFFSET);
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr, addr: address as u64 }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        *self.kick.page() = None;
    }
}

/// See [`Hardware::on_this_thread`].
pub struct KickOut {
    /// None once the vCPU is gone.
    page: Mutex<Option<*mut kvm_run>>,
    /// The thread that runs it.
    thread: AtomicI32,
}

// SAFETY: the one access through the page is atomic, under a lock that the page's owner takes before it goes.
unsafe impl Send for KickOut {}
// SAFETY: as above.
unsafe impl Sync for KickOut {}

impl KickOut {
    fn page(&self) -> MutexGuard<'_, Option<*mut kvm_run>> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kick for KickOut {
    fn kick(&self) {
        let page = self.page();
        let Some(page) = *page else { return };
        // SAFETY: the page is there while the lock is held.
        unsafe { AtomicU8::from_ptr(&raw mut (*page).immediate_exit) }.store(1, SeqCst);
        // SAFETY: a signal with a handler that does nothing; a thread that is gone gives an error.
        unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread.load(Acquire), SIGRTMIN());
        }
    }
}
