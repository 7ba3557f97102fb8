//! Hostile guests: random bytes as code in every mode, and a guest that writes random values to every port, to device
//! memory and into DMA registers. None may panic, hang or break the host. `TRIMARAN_SEED` moves the seeds,
//! `TRIMARAN_LONG=1` runs ten times as many.

use iced_x86::code_asm::*;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_cpu::state::{CpuState, RFlags, attr, cr0, efer, seg};
use trimaran_devices::block::MemoryMedium;
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::{IdeDrive, Machine, MachineConfig};
use trimaran_testsuites::flat::Flat;

fn rounds(sample: u64) -> std::ops::Range<u64> {
    let seed = std::env::var("TRIMARAN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1u64);
    let factor = if std::env::var_os("TRIMARAN_LONG").is_some() { 10 } else { 1 };
    let start = seed.wrapping_mul(1_000_000);
    start..start + sample * factor
}

/// Real, 16- and 32-bit protected, and 64-bit mode with an identity mapping; registers and memory are random.
fn random_state(rng: &mut SmallRng, machine: &Flat) -> CpuState {
    let mut s = CpuState::reset(0, true);
    for register in &mut s.gpr[..16] {
        *register = match rng.random_range(0..3) {
            0 => rng.random_range(0..0x10_0000),
            1 => rng.random::<u32>().into(),
            _ => rng.random(),
        };
    }
    s.gpr[16] = rng.random_range(0..0xF000);
    s.rflags = RFlags::from_bits_retain(rng.random::<u64>() & 0x25_5CD5) | RFlags::ONE;
    let kind = rng.random_range(0..4);
    let flat = attr::P | attr::S | attr::RW | attr::A;
    for n in 0..6 {
        s.seg[n].base = 0;
        if kind > 0 {
            s.seg[n].limit = if rng.random_ratio(1, 4) { rng.random_range(0..0x10_0000) } else { !0 };
            s.seg[n].attributes = flat | if kind == 1 { 0 } else { attr::DB | attr::G };
        }
    }
    if kind > 0 {
        s.seg[seg::CS].attributes = flat | attr::CODE | if kind == 2 { attr::DB | attr::G } else { 0 };
        s.cr0 |= cr0::PE;
        (s.gdtr.base, s.idtr.base) = (rng.random_range(0..0x10_0000), rng.random_range(0..0x10_0000));
    }
    if kind == 3 {
        s.seg[seg::CS].attributes |= attr::L;
        // One PML4E, one PDPTE of a gigabyte.
        machine.ram.write(0x10_0000, &0x10_1003u64.to_le_bytes());
        machine.ram.write(0x10_1000, &0x83u64.to_le_bytes());
        s.cr3 = 0x10_0000;
        s.cr4 = 0x6A0;
        s.cr0 |= cr0::PG;
        s.msr.efer = efer::LME | efer::LMA;
    }
    s
}

#[test]
fn random_bytes_as_code() {
    for seed in rounds(3_000) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut machine = Flat::new(2 << 20);
        let mut bytes = vec![0; 1 << 20];
        rng.fill_bytes(&mut bytes);
        machine.ram.write(0, &bytes);
        machine.vcpu.state = random_state(&mut rng, &machine);
        machine.vcpu.state_loaded();
        machine.vcpu.run(3_000);
    }
}

/// A multiboot image that feeds every port and the device windows with random values for ever.
fn port_hammer(seed: u32) -> Vec<u8> {
    const LOAD: u32 = 0x10_0000;
    const WINDOWS: [u32; 8] = [
        0x000A_0000,
        0xFEC0_0000,
        0xFEE0_0000,
        0xFED0_0000,
        0xFEBF_0000,
        0xFD00_0000,
        0xFFFC_0000,
        0x000C_0000,
    ];
    let mut assembler = CodeAssembler::new(32).expect("32-bit code");
    let a = &mut assembler;
    let mut again = a.create_label();
    let mut skip = a.create_label();
    let mut body = || -> Result<(), IcedError> {
        a.mov(ebx, seed | 1)?;
        a.set_label(&mut again)?;
        // xorshift32.
        for (left, count) in [(true, 13), (false, 17), (true, 5)] {
            a.mov(eax, ebx)?;
            if left {
                a.shl(eax, count)?;
            } else {
                a.shr(eax, count)?;
            }
            a.xor(ebx, eax)?;
        }
        a.mov(edx, ebx)?;
        a.shr(edx, 16)?;
        a.mov(eax, ebx)?;
        // Half of the port accesses go below 0x1000, where the chips are.
        a.test(ebx, 1)?;
        a.je(skip)?;
        a.and(edx, 0xFFF)?;
        a.set_label(&mut skip)?;
        a.out(dx, al)?;
        a.in_(al, dx)?;
        a.out(dx, ax)?;
        a.mov(eax, ebx)?;
        a.out(dx, eax)?;
        a.in_(eax, dx)?;
        for window in WINDOWS {
            a.mov(esi, ebx)?;
            a.rol(esi, (window >> 16) % 31)?;
            a.and(esi, 0xFFF)?;
            a.mov(dword_ptr(esi + window as i32), ebx)?;
            a.mov(eax, dword_ptr(esi + window as i32))?;
            a.mov(byte_ptr(esi + window as i32), bl)?;
        }
        a.jmp(again)
    };
    body().expect("code");
    let code = assembler.assemble(u64::from(LOAD) + 32).expect("code");
    // Multiboot header with addresses (flag 16): a flat image.
    let flags = 1u32 << 16;
    let magic = 0x1BAD_B002u32;
    let end = LOAD + 32 + code.len() as u32;
    let mut image = Vec::new();
    for word in [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags), LOAD, LOAD, end, end, LOAD + 32]
    {
        image.extend(word.to_le_bytes());
    }
    image.extend(code);
    image
}

/// Accesses to ports and devices for each seed, at least.
const ACCESSES: u64 = 1_000_000;

#[test]
fn random_values_in_every_port_and_register() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, SeqCst);
        hook(info);
    }));
    for seed in rounds(12) {
        // A guest that powers itself off, resets or stops goes on in a fresh machine, with other values.
        let (mut accesses, mut machines) = (0, 0);
        while accesses < ACCESSES {
            let machine = hammered_machine((seed as u32).wrapping_mul(1000).wrapping_add(machines) * 2 + 1);
            machine.run_until(4_000_000);
            machine.pause();
            accesses += machine.stats().counters.iter().map(|c| c.port_io + c.mmio).sum::<u64>();
            machines += 1;
            assert!(machines < 1000, "seed {seed}: {accesses} accesses in {machines} machines");
        }
    }
    assert_eq!(PANICS.load(SeqCst), 0, "a guest made the host panic; see above");
}

/// A deterministic machine with all drives and [`port_hammer`].
fn hammered_machine(seed: u32) -> Machine {
    let direct = DirectBoot { kernel: port_hammer(seed), ..DirectBoot::default() };
    let disk = || Box::new(MemoryMedium::new(vec![0; 1 << 20]));
    let config = MachineConfig {
        memory: 16 << 20,
        direct: Some(direct),
        deterministic: true,
        ide: [Some(IdeDrive::Disk(disk())), None, Some(IdeDrive::CdRom(Some(disk()))), None],
        floppies: [Some(Some(disk())), None],
        no_reboot: true,
        ..MachineConfig::default()
    };
    let factory: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    Machine::new(config, &factory).expect("machine")
}
