//! Any bytes as accesses to ports and device memory of a whole machine, with the same bytes where its bus masters look for
//! their tables: no panic, whatever chips are told.

use super::{Target, take};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::Arc;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_devices::block::MemoryMedium;
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::{IdeDrive, Machine, MachineConfig};

pub const TARGET: Target =
    Target { name: "devices", run, longest: 1500, dress: |data, rng| dress(data, rng) };

const LOAD: u32 = 0x10_0000;
/// Bytes of an access: what it is, where, and with which value.
const RECORD: usize = 8;
/// Virtual time of a case, in nanoseconds.
const TIME: u64 = 3_000_000;
const WINDOWS: [u32; 8] =
    [0x000A_0000, 0x000C_0000, 0xFEC0_0000, 0xFEE0_0000, 0xFED0_0000, 0xFEBF_0000, 0xFD00_0000, 0xFFFC_0000];
/// Where chips have their ports, so that few accesses go to nothing.
const PORTS: [u16; 24] = [
    0x00, 0x08, 0x20, 0x40, 0x60, 0x64, 0x70, 0x80, 0x92, 0xA0, 0xC0, 0x170, 0x1CE, 0x1F0, 0x2F8, 0x378,
    0x3B0, 0x3C0, 0x3F0, 0x3F8, 0x510, 0x600, 0xCF8, 0xC000,
];

fn run(data: &[u8]) {
    let Ok(kernel) = kernel(data) else { return };
    let disk = |bytes: usize| Box::new(MemoryMedium::new(vec![0x5A; bytes]));
    let config = MachineConfig {
        memory: 2 << 20,
        direct: Some(DirectBoot { kernel, ..DirectBoot::default() }),
        deterministic: true,
        // Of lengths that are no whole sectors, too.
        ide: [
            Some(IdeDrive::Disk(disk((1 << 16) + data.len()))),
            None,
            Some(IdeDrive::CdRom(Some(disk(data.len() * 100)))),
            None,
        ],
        floppies: [Some(Some(disk(1_474_560))), Some(None)],
        no_reboot: true,
        ..MachineConfig::default()
    };
    let factory: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    let Ok(machine) = Machine::new(config, &factory) else { return };
    machine.run_until(TIME);
    // Saving meets whatever state the chips are in.
    let state = machine.save_state().expect("a state");
    machine.restore_state(&state).expect("its own state");
}

/// Half of all ports are a chip's.
fn dress(data: &mut [u8], rng: &mut rand::rngs::SmallRng) {
    use rand::Rng;
    for record in data.chunks_exact_mut(RECORD) {
        if rng.random() {
            continue;
        }
        let port = PORTS[rng.random_range(0..PORTS.len())] + rng.random_range(0..8);
        record[2..4].copy_from_slice(&port.to_le_bytes());
    }
}

/// A multiboot image that makes the accesses, then halts.
fn kernel(mut data: &[u8]) -> Result<Vec<u8>, IcedError> {
    let tables = data;
    let a = &mut CodeAssembler::new(32)?;
    while data.len() >= RECORD {
        let [kind, offset, low, high, value @ ..] = take::<RECORD>(&mut data);
        a.mov(edx, u32::from(u16::from_le_bytes([low, high])))?;
        a.mov(eax, u32::from_le_bytes(value))?;
        let place = WINDOWS[usize::from(kind >> 4 & 7)] + u32::from(offset) * 4 + u32::from(low & 3);
        match kind & 15 {
            0..=2 => a.out(dx, al)?,
            3 => a.out(dx, ax)?,
            4 | 5 => a.out(dx, eax)?,
            6 | 7 => a.in_(al, dx)?,
            8 => a.in_(ax, dx)?,
            9 => a.in_(eax, dx)?,
            10 | 11 => a.mov(dword_ptr(place), eax)?,
            12 => a.mov(byte_ptr(place), al)?,
            13 => a.mov(eax, dword_ptr(place))?,
            14 => {
                // Repeated: what fills FIFOs.
                a.mov(ecx, u32::from(offset))?;
                a.mov(esi, LOAD)?;
                a.rep().outsw()?;
            }
            _ => {
                // A while, so that things fall due.
                let mut again = a.create_label();
                a.mov(ecx, u32::from(offset) * 8 + 1)?;
                a.set_label(&mut again)?;
                a.loop_(again)?;
            }
        }
    }
    a.hlt()?;
    let code = a.assemble(u64::from(LOAD) + 32)?;
    // Multiboot header with addresses (flag 16): a flat image.
    let (magic, flags) = (0x1BAD_B002u32, 1u32 << 16);
    let end = LOAD + 32 + (code.len() + tables.len()) as u32;
    let header =
        [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags), LOAD, LOAD, end, end, LOAD + 32];
    let mut image: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    image.extend(code);
    image.extend(tables);
    Ok(image)
}
