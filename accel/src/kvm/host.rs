//! The host's KVM: what opens it, what it offers.

use super::apic;
use super::hardware::time_stamp;
use super::vm::msr_filter;
use crate::Unavailable;
use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_SREGS2, KVM_CAP_VCPU_ATTRIBUTES, KVM_MAX_CPUID_ENTRIES,
    kvm_cpuid_entry2, kvm_enable_cap,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use std::os::raw::c_ulong;
use vmm_sys_util::errno::Error;

/// See the head of this file.
pub struct Host {
    kvm: kvm_ioctls::Kvm,
    /// What KVM_GET_SUPPORTED_CPUID lists.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    pub tsc_khz: u32,
    /// A guest's TSC can have a frequency of its own.
    pub tsc_scaling: bool,
    pub smm: bool,
    pub max_slots: usize,
    /// A vCPU that never runs: what its TSC shows is what guests see where KVM ignores offsets.
    idle: VcpuFd,
}

/// An error of an operation that must work.
pub fn refused(operation: &'static str) -> impl Fn(Error) -> Unavailable {
    move |error| Unavailable::Refused { operation, error: error.to_string() }
}

impl Host {
    pub fn open() -> Result<Host, Unavailable> {
        let kvm = kvm_ioctls::Kvm::new().map_err(not_opened)?;
        check(kvm.get_api_version(), |cap| kvm.check_extension_raw(cap))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("to list CPUID"))?;
        let idle = create_vm(&kvm, false)?.create_vcpu(0).map_err(refused("a virtual processor"))?;
        Ok(Host {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: idle.get_tsc_khz().map_err(refused("to tell the TSC's frequency"))?,
            tsc_scaling: kvm.check_extension(Cap::TscControl),
            smm: kvm.check_extension(Cap::X86Smm),
            max_slots: kvm.get_nr_memslots(),
            idle,
            kvm,
        })
    }

    /// `split`: with local APICs in the kernel.
    pub fn create_vm(&self, split: bool) -> Result<VmFd, Unavailable> {
        create_vm(&self.kvm, split)
    }

    /// The TSC that guests see where KVM ignores offsets.
    pub fn time_stamp(&self) -> Result<u64, Unavailable> {
        time_stamp(&self.idle).map_err(refused("to tell the TSC"))
    }

    /// EAX, EBX, ECX, EDX of a leaf; zeros if KVM does not list it.
    pub fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
        let entry = self.cpuid.iter().find(|entry| entry.function == leaf && entry.index == sub);
        entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    }
}

/// A virtual machine without memory. MSRs that KVM does not hold for us end in exits.
fn create_vm(kvm: &kvm_ioctls::Kvm, split: bool) -> Result<VmFd, Unavailable> {
    let vm = kvm.create_vm().map_err(|e| match e.errno() {
        libc::EBUSY => Unavailable::Busy,
        _ => refused("a virtual machine")(e),
    })?;
    // Where Intel's processors without "unrestricted guest" keep what real mode needs.
    const TSS_ADDRESS: usize = 0xFFFB_D000;
    vm.set_tss_address(TSS_ADDRESS).map_err(refused("a TSS address"))?;
    if split {
        apic::split(&vm).map_err(refused("a local APIC in the kernel"))?;
    }
    msr_filter(&vm, split).map_err(refused("an MSR filter"))?;
    // Otherwise what KVM cannot emulate is #UD to programs, at CPL 1 to 3.
    let exits =
        kvm_enable_cap { cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE, args: [1, 0, 0, 0], ..Default::default() };
    if vm.check_extension_raw(exits.cap.into()) > 0 {
        vm.enable_cap(&exits).map_err(refused("exits where it cannot emulate"))?;
    }
    Ok(vm)
}

/// Why /dev/kvm did not open.
fn not_opened(error: Error) -> Unavailable {
    match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Unavailable::NoDevice,
        libc::EACCES | libc::EPERM => Unavailable::NoPermission,
        libc::EBUSY => Unavailable::Busy,
        _ => refused("to open /dev/kvm")(error),
    }
}

/// Whether a KVM of this API version, with these capabilities, will do.
fn check(version: i32, capability: impl Fn(c_ulong) -> i32) -> Result<(), Unavailable> {
    if version != 12 {
        return Err(Unavailable::Version(version));
    }
    let needed = [
        (Cap::UserMemory as c_ulong, "memory slots"),
        (Cap::ReadonlyMem as c_ulong, "read-only memory slots"),
        (Cap::ImmediateExit as c_ulong, "immediate exits"),
        (Cap::Xsave as c_ulong, "XSAVE"),
        (Cap::Xcrs as c_ulong, "XCR0"),
        (Cap::Debugregs as c_ulong, "debug registers"),
        (Cap::VcpuEvents as c_ulong, "pending events"),
        (Cap::X86UserSpaceMsr as c_ulong, "MSR exits"),
        (Cap::X86MsrFilter as c_ulong, "MSR filters"),
        (c_ulong::from(KVM_CAP_SREGS2), "PDPTEs"),
        (c_ulong::from(KVM_CAP_VCPU_ATTRIBUTES), "TSC offsets"),
    ];
    let missing = needed.into_iter().find(|&(cap, _)| capability(cap) <= 0);
    missing.map_or(Ok(()), |(_, what)| Err(Unavailable::TooOld(what)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_opening_are_told_apart() {
        let says = |errno: i32| not_opened(Error::new(errno)).to_string();
        let all = [libc::ENOENT, libc::EACCES, libc::EBUSY, libc::EMFILE].map(says);
        for (n, text) in all.iter().enumerate() {
            assert!(!text.is_empty() && !all[..n].contains(text), "{all:?}");
        }
        assert!(matches!(not_opened(Error::new(libc::EBUSY)), Unavailable::Busy));
    }

    #[test]
    fn an_old_kvm_is_told_what_it_lacks() {
        assert!(check(12, |_| 1).is_ok());
        assert!(matches!(check(11, |_| 1), Err(Unavailable::Version(11))));
        let lacks = |missing: c_ulong| check(12, |cap| i32::from(cap != missing));
        assert!(matches!(lacks(Cap::X86MsrFilter as c_ulong), Err(Unavailable::TooOld("MSR filters"))));
        assert!(matches!(lacks(c_ulong::from(KVM_CAP_SREGS2)), Err(Unavailable::TooOld("PDPTEs"))));
    }
}
