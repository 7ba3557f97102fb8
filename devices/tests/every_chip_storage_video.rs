//! Every storage, video and bridge chip: saved states come back equal, and no access, time or damaged state
//! makes one panic. Seeds are fixed; a failure prints its own.

use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use std::sync::{Arc, Mutex};
use trimaran_devices::block::MemoryMedium;
use trimaran_devices::chip::{Chip, Cx, Dma, Effect, Nanos, PCI_CONFIG, SharedBytes};
use trimaran_devices::floppy::{self, DmaDirection, Floppy};
use trimaran_devices::i440fx::I440Fx;
use trimaran_devices::ide::{self, Drive, Ide};
use trimaran_devices::piix3::{self, Piix3};
use trimaran_devices::vga::{self, Frame, Vga, font};

const RAM: usize = 0x1_0000;

/// Guest RAM or video RAM in a vector.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn new(size: usize) -> Self {
        Memory(Mutex::new(vec![0; size]))
    }
}

impl Dma for Memory {
    fn read(&self, address: u64, buf: &mut [u8]) {
        let ram = self.0.lock().unwrap();
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = ram.get(address as usize + i).copied().unwrap_or(0xFF);
        }
    }
    fn write(&self, address: u64, buf: &[u8]) {
        let mut ram = self.0.lock().unwrap();
        for (i, &byte) in buf.iter().enumerate() {
            if let Some(to) = ram.get_mut(address as usize + i) {
                *to = byte;
            }
        }
    }
}

impl SharedBytes for Memory {
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
    fn read(&self, offset: usize, buf: &mut [u8]) {
        let memory = self.0.lock().unwrap();
        match offset.checked_add(buf.len()).and_then(|end| memory.get(offset..end)) {
            Some(from) => buf.copy_from_slice(from),
            None => buf.fill(0),
        }
    }
    fn write(&self, offset: usize, buf: &[u8]) {
        let mut memory = self.0.lock().unwrap();
        if let Some(to) = offset.checked_add(buf.len()).and_then(|end| memory.get_mut(offset..end)) {
            to.copy_from_slice(buf);
        }
    }
}

fn disk(kilobytes: usize) -> Box<MemoryMedium> {
    Box::new(MemoryMedium::new((0..kilobytes * 1024).map(|i| (i / 512) as u8).collect()))
}

/// A chip, its register windows with their sizes, and what else can happen to it.
trait Subject: Chip {
    fn windows(&self) -> Vec<(u8, u64)>;
    /// Something outside the register windows: a medium changes, a frame is drawn, DMA runs.
    fn happen(&mut self, _cx: &mut Cx, _random: &mut SmallRng) {}
    /// A write that means more than a random one.
    fn likely(&self, _random: &mut SmallRng) -> Option<(u8, u64, u8, u64)> {
        None
    }
}

impl Subject for I440Fx {
    fn windows(&self) -> Vec<(u8, u64)> {
        vec![(PCI_CONFIG, 256)]
    }
    fn happen(&mut self, _cx: &mut Cx, random: &mut SmallRng) {
        self.pam(random.next_u64() >> random.random_range(0..64));
        self.smram();
    }
}

impl Subject for Piix3 {
    fn windows(&self) -> Vec<(u8, u64)> {
        vec![(PCI_CONFIG, 256), (piix3::RESET_CONTROL, 1)]
    }
}

impl Subject for Ide {
    fn windows(&self) -> Vec<(u8, u64)> {
        vec![
            (ide::COMMAND_BLOCK_0, 8),
            (ide::CONTROL_BLOCK_0, 1),
            (ide::COMMAND_BLOCK_1, 8),
            (ide::CONTROL_BLOCK_1, 1),
            (ide::BUS_MASTER, 16),
            (PCI_CONFIG, 256),
        ]
    }
    fn happen(&mut self, cx: &mut Cx, random: &mut SmallRng) {
        match random.random_range(0..20) {
            0 => {
                let disc = random.random_bool(0.7).then(|| disk(64) as _);
                self.change_medium(random.random_range(0..3), random.random_range(0..3), disc);
            }
            1 => self.write(cx, PCI_CONFIG, 4, 1, 7),
            // Drains or fills the data port.
            2..=6 => {
                for _ in 0..600 {
                    self.read(cx, ide::COMMAND_BLOCK_0, 0, 4);
                }
            }
            7..=9 => {
                for _ in 0..600 {
                    self.write(cx, ide::COMMAND_BLOCK_0, 0, 4, random.next_u64());
                }
            }
            _ => {
                // A whole packet to the CD-ROM drive.
                const CODES: &[u8] =
                    b"\x00\x03\x12\x1A\x1B\x1E\x25\x28\x2B\x42\x43\x46\x4A\x51\x52\x5A\xA8\xBD\xBE";
                self.write(cx, ide::COMMAND_BLOCK_0, 6, 1, 0xB0);
                self.write(cx, ide::COMMAND_BLOCK_0, 1, 1, random.random_range(0..2));
                self.write(cx, ide::COMMAND_BLOCK_0, 7, 1, 0xA0);
                let mut packet: [u8; 12] = random.random();
                packet[0] = CODES[random.random_range(0..CODES.len())];
                if random.random_bool(0.7) {
                    packet[1..8].fill(0);
                    packet[9..].fill(0x10);
                }
                for pair in packet.chunks(2) {
                    let word = u16::from_le_bytes([pair[0], pair[1]]);
                    self.write(cx, ide::COMMAND_BLOCK_0, 0, 2, word.into());
                }
            }
        }
    }
    fn likely(&self, random: &mut SmallRng) -> Option<(u8, u64, u8, u64)> {
        const COMMANDS: &[u8] =
            b"\x08\x20\x24\x25\x27\x29\x30\x34\x35\x39\x40\x90\x91\xA0\xA1\xC4\xC5\xC6\xC8\xCA\xE7\xEC\xEF\xF8";
        Some(match random.random_range(0..8) {
            0..=2 => (ide::COMMAND_BLOCK_0, 7, 1, COMMANDS[random.random_range(0..COMMANDS.len())].into()),
            3 => (ide::BUS_MASTER, 0, 1, random.random_range(0..16)),
            4 => (ide::BUS_MASTER, 4, 4, random.random_range(0..RAM as u64)),
            5 => (ide::COMMAND_BLOCK_0, 6, 1, u64::from(random.random::<u8>()) & 0x50 | 0xA0),
            6 => (ide::COMMAND_BLOCK_0, random.random_range(2..6), 1, random.random_range(0..4)),
            _ => (ide::CONTROL_BLOCK_0, 0, 1, random.random_range(0..4) * 2),
        })
    }
}

impl Subject for Floppy {
    fn windows(&self) -> Vec<(u8, u64)> {
        vec![(floppy::PORTS, 6), (floppy::DIR_CCR, 1)]
    }
    fn happen(&mut self, cx: &mut Cx, random: &mut SmallRng) {
        if random.random_ratio(1, 20) {
            let sizes = [160, 360, 720, 100, 1440];
            let diskette = random.random_bool(0.8).then(|| disk(sizes[random.random_range(0..5)]) as _);
            self.insert(random.random_range(0..3), diskette);
        }
        let wanted = random.random_range(0..600);
        match self.dma_request() {
            Some((DmaDirection::ToMemory, _)) => {
                let moved = self.dma_out().len().min(wanted);
                self.dma_done(cx, moved, random.random_bool(0.3));
            }
            Some((DmaDirection::FromMemory, _)) => {
                self.dma_in(&vec![0x55; wanted]);
                self.dma_done(cx, wanted, random.random_bool(0.3));
            }
            None => self.dma_done(cx, wanted, true),
        }
    }
    fn likely(&self, random: &mut SmallRng) -> Option<(u8, u64, u8, u64)> {
        const BYTES: &[u8] = b"\x03\x04\x05\x06\x07\x08\x0A\x0C\x0D\x0F\x10\x13\xE6\xC5\x00\x01\x02\x12";
        Some(match random.random_range(0..16) {
            0 => (floppy::PORTS, 2, 1, [0x1C, 0x0C, 0x1D, 0x18][random.random_range(0..4)]),
            1 => (floppy::DIR_CCR, 0, 1, random.random_range(0..4)),
            _ => (floppy::PORTS, 5, 1, BYTES[random.random_range(0..BYTES.len())].into()),
        })
    }
}

impl Subject for Vga {
    fn windows(&self) -> Vec<(u8, u64)> {
        vec![
            (vga::PORTS, 48),
            (vga::LEGACY_MEMORY, 0x2_0000),
            (vga::DISPI_PORTS, 3),
            (vga::MMIO, 0x1000),
            (vga::VRAM, vga::VRAM_SIZE.into()),
            (vga::ROM, vga::ROM_SIZE.into()),
            (PCI_CONFIG, 256),
        ]
    }
    fn happen(&mut self, cx: &mut Cx, random: &mut SmallRng) {
        if random.random_ratio(1, 30) {
            self.set_text_mode3(&font::font_8x16());
        }
        if random.random_ratio(1, 8) {
            self.text_screen();
            let mut frame = Frame::default();
            self.render(cx.now, &mut frame);
            assert_eq!(frame.pixels.len(), frame.width * frame.height);
        }
    }
    fn likely(&self, random: &mut SmallRng) -> Option<(u8, u64, u8, u64)> {
        Some(match random.random_range(0..6) {
            0 | 1 => {
                let port = [0x14, 0x1E, 0x24, 0x04][random.random_range(0..4)];
                (vga::PORTS, port, 2, random.next_u64() & 0xFF1F)
            }
            2 => (vga::PORTS, 0x10, 1, random.next_u64() & 0xFF),
            3 => (vga::DISPI_PORTS, 0, 2, random.random_range(0..12)),
            4 => (
                vga::DISPI_PORTS,
                1,
                2,
                [4, 8, 16, 24, 32, 1, 0x41, 640, 480, 2560][random.random_range(0..10)],
            ),
            _ => (vga::PORTS, 0x2A, 1, 0),
        })
    }
}

/// Fresh chips, all alike.
fn subjects() -> Vec<Box<dyn Subject>> {
    let mut ide = Ide::new();
    ide.attach(0, 0, Drive::Disk(disk(1024)));
    ide.attach(0, 1, Drive::CdRom(Some(disk(256))));
    ide.attach(1, 1, Drive::Disk(Box::new(MemoryMedium { bytes: vec![0; 4096], read_only: true })));
    let mut floppy = Floppy::new();
    floppy.insert(0, Some(disk(720)));
    let vga = Vga::new(Arc::new(Memory::new(0x20_0000)));
    vec![Box::new(I440Fx::new()), Box::new(Piix3::new()), Box::new(ide), Box::new(floppy), Box::new(vga)]
}

fn step(chip: &mut dyn Subject, ram: &Memory, now: &mut Nanos, random: &mut SmallRng) {
    let mut effects: Vec<Effect> = Vec::new();
    let mut cx = Cx { now: *now, ram, effects: &mut effects };
    let windows = chip.windows();
    let (window, len) = windows[random.random_range(0..windows.len())];
    let offset = if random.random_ratio(1, 50) { random.next_u64() } else { random.random_range(0..len) };
    let size = [1, 2, 4, 8][random.random_range(0..4)];
    match random.random_range(0..100) {
        0..30 => {
            chip.read(&mut cx, window, offset, size);
        }
        30..50 => chip.write(&mut cx, window, offset, size, random.next_u64()),
        50..80 => {
            if let Some((window, offset, size, value)) = chip.likely(random) {
                chip.write(&mut cx, window, offset, size, value);
            }
        }
        80..82 => chip.input(&mut cx, random.random(), random.random()),
        82..90 => chip.happen(&mut cx, random),
        90..99 => {
            if let Some(next) = chip.next_event() {
                *now = (*now).max(next);
                cx.now = *now;
                chip.event(&mut cx);
                let again = chip.next_event();
                assert!(
                    again.is_none_or(|again| again > next || again > *now),
                    "{}: no progress",
                    chip.name()
                );
            }
        }
        _ => match random.random_range(0..20) {
            0 => chip.reset(&mut cx),
            1 => *now = now.saturating_add(random.next_u64() >> random.random_range(1..40)),
            _ => *now = now.saturating_add(random.random_range(0..1_000_000)),
        },
    }
    assert!(effects.len() < 2000);
}

#[test]
fn random_activity_saves_and_restores() {
    for seed in 0..12 {
        let count = subjects().len();
        for index in 0..count {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut chip = subjects().swap_remove(index);
            let ram = Memory::new(RAM);
            random.fill_bytes(&mut ram.0.lock().unwrap());
            let mut now = 0;
            for _ in 0..6000 {
                step(&mut *chip, &ram, &mut now, &mut random);
            }
            let saved = chip.save();
            let mut other = subjects().swap_remove(index);
            other.restore(&saved).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(other.save(), saved, "{} seed {seed}", chip.name());
            assert_eq!(other.next_event(), chip.next_event());
            assert!(!other.info().is_empty());
        }
    }
}

#[test]
fn garbled_states_never_panic() {
    let count = subjects().len();
    for index in 0..count {
        for seed in 0..400 {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut chip = subjects().swap_remove(index);
            let ram = Memory::new(RAM);
            let mut now = 0;
            for _ in 0..random.random_range(0..200) {
                step(&mut *chip, &ram, &mut now, &mut random);
            }
            let mut state = chip.save();
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(2..state.len());
                state[at] = random.random();
            }
            if random.random_ratio(1, 4) {
                state.truncate(random.random_range(0..state.len()));
            }
            let before = chip.save();
            if chip.restore(&state).is_err() {
                assert_eq!(chip.save(), before, "{}: changed by a state that it refused", chip.name());
            }
            for _ in 0..300 {
                step(&mut *chip, &ram, &mut now, &mut random);
            }
        }
    }
}
