//! The host's KVM: what opens it, what it offers.

use super::vm::msr_filter;
use crate::Unavailable;
use kvm_bindings::{KVM_CAP_SREGS2, KVM_CAP_VCPU_ATTRIBUTES, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, VmFd};
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
}

/// An error of an operation that must work.
pub fn refused(operation: &'static str) -> impl Fn(Error) -> Unavailable {
    move |error| Unavailable::Refused { operation, error: error.to_string() }
}

impl Host {
    pub fn open() -> Result<Host, Unavailable> {
        let kvm = kvm_ioctls::Kvm::new().map_err(|e| match e.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Unavailable::NoDevice,
            libc::EACCES | libc::EPERM => Unavailable::NoPermission,
            libc::EBUSY => Unavailable::Busy,
            _ => refused("to open /dev/kvm")(e),
        })?;
        let version = kvm.get_api_version();
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
        if let Some((_, what)) = needed.into_iter().find(|&(cap, _)| kvm.check_extension_raw(cap) <= 0) {
            return Err(Unavailable::TooOld(what));
        }
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("to list CPUID"))?;
        let mut host = Host {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: 0,
            tsc_scaling: kvm.check_extension(Cap::TscControl),
            smm: kvm.check_extension(Cap::X86Smm),
            max_slots: kvm.get_nr_memslots(),
            kvm,
        };
        let vcpu = host.create_vm()?.create_vcpu(0).map_err(refused("a virtual processor"))?;
        host.tsc_khz = vcpu.get_tsc_khz().map_err(refused("to tell the TSC's frequency"))?;
        Ok(host)
    }

    /// A virtual machine without memory. MSRs that KVM does not hold for us end in exits.
    pub fn create_vm(&self) -> Result<VmFd, Unavailable> {
        let vm = self.kvm.create_vm().map_err(|e| match e.errno() {
            libc::EBUSY => Unavailable::Busy,
            _ => refused("a virtual machine")(e),
        })?;
        // Where Intel's processors without "unrestricted guest" keep what real mode needs.
        const TSS_ADDRESS: usize = 0xFFFB_D000;
        vm.set_tss_address(TSS_ADDRESS).map_err(refused("a TSS address"))?;
        msr_filter(&vm).map_err(refused("an MSR filter"))?;
        Ok(vm)
    }

    /// EAX, EBX, ECX, EDX of a leaf; zeros if KVM does not list it.
    pub fn cpuid(&self, leaf: u32, sub: u32) -> [u32; 4] {
        let entry = self.cpuid.iter().find(|entry| entry.function == leaf && entry.index == sub);
        entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    }
}
