//! Any bytes as a kernel, an initial RAM disk, a firmware image or a video ROM: refused with a reason, or run for a while.

use super::Target;
use rand::Rng;
use rand::rngs::SmallRng;
use std::sync::Arc;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_machine::boot::{DirectBoot, Module};
use trimaran_machine::{Machine, MachineConfig};

pub const TARGET: Target = Target { name: "images", run, longest: 8192, dress };

/// Virtual time that an image is run for, in nanoseconds.
const TIME: u64 = 100_000;

fn run(data: &[u8]) {
    let Some((&kind, image)) = data.split_first() else { return };
    let (image, text) =
        (image.to_vec(), String::from_utf8_lossy(&image[..image.len().min(300)]).into_owned());
    let mut config =
        MachineConfig { memory: 2 << 20, deterministic: true, no_reboot: true, ..MachineConfig::default() };
    match kind % 4 {
        0 => config.firmware = Some(image),
        1 => (config.firmware, config.vga_bios) = (Some(vec![0xF4; 1 << 16]), Some(image)),
        2 => config.direct = Some(DirectBoot { kernel: image, append: text, ..DirectBoot::default() }),
        _ => {
            let modules = vec![Module { data: image.clone(), cmdline: text }];
            let initrd = Some(image.clone());
            config.direct = Some(DirectBoot { kernel: image, initrd, modules, ..DirectBoot::default() });
        }
    }
    let factory: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    if let Ok(machine) = Machine::new(config, &factory) {
        machine.run_until(TIME);
    }
}

/// Headers that loaders look for, with small numbers in most of their fields.
fn dress(data: &mut Vec<u8>, rng: &mut SmallRng) {
    data.resize(data.len().max(0x400), 0);
    if rng.random_ratio(1, 3) {
        return;
    }
    data[0] = 2 + rng.random_range(0..2);
    let image = &mut data[1..];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let word = |rng: &mut SmallRng| match rng.random_range(0..4) {
        0 => rng.random::<u32>(),
        1 => rng.random_range(0..0x40),
        2 => 0x10_0000 + rng.random_range(0..0x2000),
        _ => rng.random_range(0..0x2000),
    };
    match rng.random_range(0..4) {
        0 => {
            // ELF, 32 or 64 bits; a note for PVH may be among its segments.
            put(0, b"\x7FELF");
            put(4, &[1 + rng.random_range(0..2), 1, 1]);
            put(16, &[2, 0, [3, 62][rng.random_range(0..2)], 0]);
            (24..0x100).step_by(4).for_each(|at| put(at, &word(rng).to_le_bytes()));
            put([0x2C, 0x38][rng.random_range(0..2)], &[rng.random_range(0..8), 0]);
        }
        1 => {
            let (at, flags) =
                (rng.random_range(0..16) * 4, u32::from(rng.random::<bool>()) << 16 | rng.random_range(0..8));
            let magic = 0x1BAD_B002u32;
            put(at, &magic.to_le_bytes());
            put(at + 4, &flags.to_le_bytes());
            put(at + 8, &0u32.wrapping_sub(magic).wrapping_sub(flags).to_le_bytes());
            (at + 12..at + 48).step_by(4).for_each(|at| put(at, &word(rng).to_le_bytes()));
        }
        _ => {
            // Linux's header.
            (0x1F0..0x270).step_by(4).for_each(|at| put(at, &word(rng).to_le_bytes()));
            put(0x1F1, &[rng.random_range(0..6)]);
            put(0x1FE, &[0x55, 0xAA]);
            put(0x202, b"HdrS");
            put(0x206, &[rng.random_range(0..16), 2]);
        }
    }
}
