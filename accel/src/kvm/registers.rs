//! The processor's state in KVM's form and back.
//!
//! What KVM gives back as it was set keeps our own representation; only what the guest changed is translated. So a
//! state that goes through KVM untouched comes back equal, also in what KVM has no place for.

use super::floating;
use super::hardware::Hardware;
use super::vm::KEPT;
use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, Msrs,
    kvm_debugregs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs2, kvm_vcpu_events, kvm_xcr,
    kvm_xcrs,
};
use trimaran_cpu::state::{CpuState, RFlags, Segment, Shadow, TableRegister, attr, cr0, cr4, gpr, seg};
use vmm_sys_util::errno::Error;

/// IA32_EFER is among the system registers.
const MSRS: usize = KEPT.len() - 1;

/// Interrupt shadows in KVM's numbers.
const SHADOW_MOV_SS: u8 = 1;
const SHADOW_STI: u8 = 2;

/// An event whose delivery KVM has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    Interrupt(u8),
    Exception(u8, Option<u16>),
}

/// What [`fetch`] leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// An event whose delivery must be finished.
    pub begun: Option<Begun>,
    /// The PDPTEs must be read from memory: AMD's processors do so themselves whenever they need one.
    pub pdptes: bool,
}

fn failed(what: &'static str) -> impl Fn(Error) -> String {
    move |error| format!("KVM refuses {what} of this state: {error}")
}

/// The general registers in KVM's order.
fn general(regs: &mut kvm_regs) -> [(&mut u64, usize); 17] {
    let r = regs;
    [
        (&mut r.rax, gpr::RAX),
        (&mut r.rcx, gpr::RCX),
        (&mut r.rdx, gpr::RDX),
        (&mut r.rbx, gpr::RBX),
        (&mut r.rsp, gpr::RSP),
        (&mut r.rbp, gpr::RBP),
        (&mut r.rsi, gpr::RSI),
        (&mut r.rdi, gpr::RDI),
        (&mut r.r8, 8),
        (&mut r.r9, 9),
        (&mut r.r10, 10),
        (&mut r.r11, 11),
        (&mut r.r12, 12),
        (&mut r.r13, 13),
        (&mut r.r14, 14),
        (&mut r.r15, 15),
        (&mut r.rip, gpr::RIP),
    ]
}

/// The segment registers in KVM's structure, LDTR and TR behind them.
fn segments(sregs: &mut kvm_sregs2) -> [&mut kvm_segment; 8] {
    let s = sregs;
    [&mut s.es, &mut s.cs, &mut s.ss, &mut s.ds, &mut s.fs, &mut s.gs, &mut s.ldt, &mut s.tr]
}

fn segment_of(state: &mut CpuState, n: usize) -> &mut Segment {
    match n {
        6 => &mut state.ldtr,
        7 => &mut state.tr,
        n => &mut state.seg[n],
    }
}

fn segment(s: &Segment) -> kvm_segment {
    let bit = |mask: u16| u8::from(s.attributes & mask != 0);
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.typ() as u8,
        present: bit(attr::P),
        dpl: s.dpl(),
        db: bit(attr::DB),
        s: bit(attr::S),
        l: bit(attr::L),
        g: bit(attr::G),
        avl: bit(1 << 12),
        unusable: u8::from(!s.usable()),
        padding: 0,
    }
}

fn from_segment(k: &kvm_segment) -> Segment {
    let bit = |set: u8, mask: u16| if set != 0 { mask } else { 0 };
    let attributes = if k.unusable != 0 {
        attr::UNUSABLE
    } else {
        u16::from(k.type_ & 15)
            | u16::from(k.dpl & 3) << 5
            | bit(k.present, attr::P)
            | bit(k.db, attr::DB)
            | bit(k.s, attr::S)
            | bit(k.l, attr::L)
            | bit(k.g, attr::G)
            | bit(k.avl, 1 << 12)
    };
    // What a null selector leaves of the limit cannot be seen.
    let limit = if k.unusable != 0 { 0 } else { k.limit };
    Segment { selector: k.selector, attributes, limit, base: k.base }
}

/// What the host's processor wants of a segment register besides what [`Segment`] says.
fn host_segment(state: &CpuState, n: usize, s: &Segment) -> kvm_segment {
    let mut k = segment(s);
    if n == seg::SS {
        // The host's processor has no CPL but this.
        k.dpl = state.cpl;
    }
    if n < 6 && k.unusable == 0 && k.s != 0 {
        // Loaded descriptors are marked as accessed.
        k.type_ |= 1;
    }
    k
}

fn table(t: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] }
}

/// PAE paging outside long mode, with its four PDPTEs.
fn has_pdptes(state: &CpuState) -> bool {
    state.cr0 & cr0::PG != 0 && state.cr4 & cr4::PAE != 0 && !state.long_mode()
}

/// Whether a state has only what KVM has a place for; if not, what.
pub fn representable(state: &CpuState) -> Result<(), String> {
    if state.xcr0 & !7 != 0 {
        return Err(format!("XCR0 = {:#x} enables more than x87, SSE and AVX", state.xcr0));
    }
    if state.cr4 & cr4::PKE != 0 || state.pkru != 0 {
        return Err("protection keys are in use".into());
    }
    let wide = state.zmm.iter().enumerate().any(|(n, z)| n >= 16 && *z != [0; 8] || z[2..] != [0; 6]);
    if wide || state.k != [0; 8] {
        return Err("vector registers wider than SSE's are in use".into());
    }
    Ok(())
}

/// Gives KVM the whole state but time, task priority and `activity`.
pub fn load(hardware: &Hardware, state: &CpuState, apic_base: u64, task_priority: u8) -> Result<(), String> {
    representable(state)?;
    let mut sregs = kvm_sregs2 {
        gdt: table(&state.gdtr),
        idt: table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: u64::from(task_priority),
        efer: state.msr.efer,
        apic_base,
        ..kvm_sregs2::default()
    };
    if has_pdptes(state) {
        sregs.flags = u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
        sregs.pdptrs = state.pdpte;
    }
    let mut copy = state.clone();
    for (n, k) in segments(&mut sregs).into_iter().enumerate() {
        *k = host_segment(state, n, segment_of(&mut copy, n));
    }
    hardware.set_sregs(&sregs).map_err(failed("the system registers"))?;

    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, reserved: 0, value: state.xcr0 };
    hardware.fd.set_xcrs(&xcrs).map_err(failed("XCR0"))?;
    hardware.set_xsave(&floating::image(state)).map_err(failed("x87 and SSE"))?;

    let mut regs = kvm_regs { rflags: state.rflags.bits(), ..kvm_regs::default() };
    for (value, n) in general(&mut regs) {
        *value = state.gpr[n];
    }
    hardware.fd.set_regs(&regs).map_err(failed("the general registers"))?;

    let values = msr_values(state);
    let entries: [kvm_msr_entry; MSRS] =
        std::array::from_fn(|n| kvm_msr_entry { index: KEPT[n], reserved: 0, data: values[n] });
    let msrs = Msrs::from_entries(&entries).map_err(|e| format!("{e:?}"))?;
    let set = hardware.fd.set_msrs(&msrs).map_err(failed("the MSRs"))?;
    if set != MSRS {
        return Err(format!("KVM refuses MSR {:#x} = {:#x}", KEPT[set], values[set]));
    }

    let [db @ .., _, _, _, _] = state.dr;
    let debug = kvm_debugregs { db, dr6: state.dr[6], dr7: state.dr[7], ..kvm_debugregs::default() };
    hardware.fd.set_debug_regs(&debug).map_err(failed("the debug registers"))?;

    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..kvm_vcpu_events::default()
    };
    events.nmi.pending = state.nmis_pending.min(1);
    events.nmi.masked = u8::from(state.nmi_blocked);
    events.interrupt.shadow = match state.shadow {
        Shadow::None => 0,
        Shadow::Sti => SHADOW_STI,
        Shadow::MovSs => SHADOW_MOV_SS,
    };
    hardware.fd.set_vcpu_events(&events).map_err(failed("the pending events"))
}

/// The values of [`KEPT`].
fn msr_values(state: &CpuState) -> [u64; MSRS] {
    let m = &state.msr;
    [
        m.sysenter_cs,
        m.sysenter_esp,
        m.sysenter_eip,
        m.star,
        m.lstar,
        m.cstar,
        m.sfmask,
        m.kernel_gs_base,
        m.tsc_aux,
    ]
}

/// Brings `state` up to what KVM has.
pub fn fetch(hardware: &Hardware, state: &mut CpuState) -> Result<Rest, String> {
    let mut regs = hardware.fd.get_regs().map_err(failed("to tell registers"))?;
    for (value, n) in general(&mut regs) {
        state.gpr[n] = *value;
    }
    let mut sregs = hardware.sregs().map_err(failed("to tell system registers"))?;
    let before = state.clone();
    for (n, k) in segments(&mut sregs).into_iter().enumerate() {
        let ours = segment_of(state, n);
        if host_segment(&before, n, ours) != *k {
            *ours = from_segment(k);
        }
    }
    state.gdtr = TableRegister { base: sregs.gdt.base, limit: sregs.gdt.limit };
    state.idtr = TableRegister { base: sregs.idt.base, limit: sregs.idt.limit };
    (state.cr0, state.cr2, state.cr3, state.cr4) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4);
    state.msr.efer = sregs.efer;
    state.rflags = RFlags::from_bits_retain(regs.rflags);
    state.cpl = match state.protected() {
        false => 0,
        true if state.v86() => 3,
        true => sregs.ss.dpl,
    };
    let known = sregs.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    if has_pdptes(state) && known {
        state.pdpte = sregs.pdptrs;
    }

    state.xcr0 = hardware.fd.get_xcrs().map_err(failed("to tell XCR0"))?.xcrs[0].value;
    floating::take(&hardware.fd.get_xsave().map_err(failed("to tell x87 and SSE"))?, state);

    let entries = KEPT[..MSRS].iter().map(|&index| kvm_msr_entry { index, ..Default::default() });
    let mut msrs = Msrs::from_entries(&entries.collect::<Vec<_>>()).map_err(|e| format!("{e:?}"))?;
    let got = hardware.fd.get_msrs(&mut msrs).map_err(failed("to tell MSRs"))?;
    if got != MSRS {
        return Err(format!("KVM does not tell MSR {:#x}", KEPT[got]));
    }
    let values: Vec<u64> = msrs.as_slice().iter().map(|entry| entry.data).collect();
    let m = &mut state.msr;
    let places = [
        &mut m.sysenter_cs,
        &mut m.sysenter_esp,
        &mut m.sysenter_eip,
        &mut m.star,
        &mut m.lstar,
        &mut m.cstar,
        &mut m.sfmask,
        &mut m.kernel_gs_base,
        &mut m.tsc_aux,
    ];
    places.into_iter().zip(values).for_each(|(place, value)| *place = value);

    let debug = hardware.fd.get_debug_regs().map_err(failed("to tell debug registers"))?;
    state.dr[..4].copy_from_slice(&debug.db);
    (state.dr[6], state.dr[7]) = (debug.dr6, debug.dr7);
    let events = hardware.fd.get_vcpu_events().map_err(failed("to tell pending events"))?;
    Ok(Rest { begun: take_events(&events, state), pdptes: has_pdptes(state) && !known })
}

fn take_events(events: &kvm_vcpu_events, state: &mut CpuState) -> Option<Begun> {
    state.shadow = match events.interrupt.shadow {
        shadow if shadow & SHADOW_MOV_SS != 0 => Shadow::MovSs,
        shadow if shadow & SHADOW_STI != 0 => Shadow::Sti,
        _ => Shadow::None,
    };
    // An NMI whose delivery has begun is delivered anew: nothing of it can be seen yet.
    state.nmis_pending = u8::from(events.nmi.pending != 0 || events.nmi.injected != 0);
    state.nmi_blocked = events.nmi.masked != 0 && events.nmi.injected == 0;
    let exception = &events.exception;
    // So are INT3 and INTO: RIP stands before them.
    if exception.injected != 0 && !matches!(exception.nr, 3 | 4) {
        let code = (exception.has_error_code != 0).then_some(exception.error_code as u16);
        return Some(Begun::Exception(exception.nr, code));
    }
    let interrupt = &events.interrupt;
    (interrupt.injected != 0 && interrupt.soft == 0).then_some(Begun::Interrupt(interrupt.nr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::host::Host;
    use crate::kvm::tiny::Tiny;
    use crate::tiny::Mode;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use std::sync::Arc;
    use trimaran_cpu::state::F80;

    /// A valid state of a mode with all that KVM keeps at random.
    fn random(tiny: &Tiny, rng: &mut SmallRng) -> CpuState {
        let mode = [Mode::Real, Mode::Protected, Mode::Long][rng.random_range(0..3)];
        let mut s = tiny.prepare(mode, if mode == Mode::Long { rng.random_range(0..2) * 3 } else { 0 });
        s.gpr[..16].iter_mut().for_each(|value| *value = rng.random());
        if mode != Mode::Long {
            s.gpr[8..16].fill(0);
            s.gpr[..8].iter_mut().for_each(|value| *value &= 0xFFFF_FFFF);
        }
        let status = rng.random::<u64>() & RFlags::STATUS.bits();
        s.rflags |= RFlags::from_bits_retain(status | rng.random::<u64>() & (1 << 9 | 1 << 10 | 1 << 21));
        s.cr2 = rng.random();
        s.dr[..4].iter_mut().for_each(|value| *value = rng.random::<u64>() >> 20);
        s.dr[6] = 0xFFFF_0FF0 | rng.random_range(0..16);
        s.msr.sysenter_eip = rng.random::<u64>() >> 20;
        s.msr.lstar = rng.random::<u64>() >> 20;
        s.msr.star = rng.random();
        s.msr.sfmask = u64::from(rng.random::<u32>());
        s.msr.kernel_gs_base = rng.random::<u64>() >> 20;
        s.shadow = [Shadow::None, Shadow::Sti, Shadow::MovSs][rng.random_range(0..3)];
        s.nmi_blocked = rng.random();
        s.gdtr = TableRegister { base: rng.random::<u64>() >> 33, limit: rng.random() };
        s.x87.registers =
            std::array::from_fn(|_| F80 { significand: rng.random(), sign_exponent: rng.random() });
        (s.x87.control, s.x87.status) = (0x37F & !rng.random_range(0..0x40), rng.random::<u16>() & 0x7F00);
        s.x87.valid = rng.random();
        s.mxcsr = 0x1F80 & !(rng.random_range(0..0x40) << 7) | rng.random_range(0..4) << 13;
        s.zmm[..16].iter_mut().for_each(|zmm| (zmm[0], zmm[1]) = (rng.random(), rng.random()));
        s.msr.mtrr_def_type = 0xC06;
        s
    }

    #[test]
    fn states_go_through_kvm_unchanged() {
        let host = match Host::open() {
            Ok(host) => Arc::new(host),
            Err(reason) => return println!("skipped: {reason}"),
        };
        let tiny = Tiny::new(&host).expect("a tiny machine");
        let mut rng = SmallRng::seed_from_u64(7);
        for n in 0..100 {
            let before = random(&tiny, &mut rng);
            load(&tiny.hardware, &before, 0xFEE0_0900, 0).expect("a valid state");
            // From its own copy, and from scratch but for what KVM has no place for.
            let mut same = before.clone();
            let nothing = Rest { begun: None, pdptes: false };
            assert_eq!(fetch(&tiny.hardware, &mut same), Ok(nothing), "state {n}");
            assert_eq!(same, before, "state {n}");
            let msr = trimaran_cpu::state::Msrs { mtrr_def_type: 0xC06, ..CpuState::reset(0, true).msr };
            let mut fresh = CpuState { msr, ..CpuState::reset(0, true) };
            fetch(&tiny.hardware, &mut fresh).expect("the same again");
            assert_eq!(fresh, before, "state {n} from scratch");
        }
    }

    #[test]
    fn what_kvm_has_no_place_for_is_named() {
        let mut state = CpuState::reset(0, true);
        assert_eq!(representable(&state), Ok(()));
        state.zmm[3][2] = 1;
        assert!(representable(&state).is_err_and(|why| why.contains("wider")));
    }
}
