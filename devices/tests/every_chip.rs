//! What holds for every chip: a saved state comes back equal, nothing that a guest does panics, and hostile
//! state is refused without a trace.
//!
//! A new chip needs one line in [`every_chip`].

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use trimaran_devices::block::MemoryMedium;
use trimaran_devices::chip::{
    ApicMessage, Chip, Cx, Delivery, Dma, Effect, Nanos, PCI_CONFIG, SharedBytes, Shorthand,
};
use trimaran_devices::debug_port::{DebugConsole, DebugExit};
use trimaran_devices::dma8237::Dma8237;
use trimaran_devices::floppy::Floppy;
use trimaran_devices::fw_cfg::FwCfg;
use trimaran_devices::hpet::Hpet;
use trimaran_devices::i440fx::I440Fx;
use trimaran_devices::i8042::{I8042, Key};
use trimaran_devices::ide::{Drive, Ide};
use trimaran_devices::ioapic::Ioapic;
use trimaran_devices::lapic::{IA32_APIC_BASE, IA32_TSC_DEADLINE, Lapic};
use trimaran_devices::parallel::Parallel;
use trimaran_devices::pic::Pic;
use trimaran_devices::piix3::Piix3;
use trimaran_devices::piix4_pm::Piix4Pm;
use trimaran_devices::pit::Pit;
use trimaran_devices::rtc::Rtc;
use trimaran_devices::testdev::TestDevice;
use trimaran_devices::uart::Uart;
use trimaran_devices::vga::Vga;

/// A chip, and what the board does to it beyond the trait.
struct Entry {
    chip: Box<dyn Chip>,
    build: fn() -> Box<dyn Chip>,
}

fn firmware_configuration() -> FwCfg {
    let mut chip = FwCfg::new();
    for (name, length) in [("etc/table-loader", 300), ("bootorder", 20)] {
        chip.add_file(name, vec![0x5A; length]).expect("a legal name");
    }
    chip.add_writable_file("etc/vmgenid", vec![0; 16]).expect("a legal name");
    chip
}

/// Video RAM.
struct VideoRam(Mutex<Vec<u8>>);

impl SharedBytes for VideoRam {
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
    fn read(&self, offset: usize, buf: &mut [u8]) {
        let bytes = self.0.lock().unwrap();
        match offset.checked_add(buf.len()).and_then(|end| bytes.get(offset..end)) {
            Some(from) => buf.copy_from_slice(from),
            None => buf.fill(0),
        }
    }
    fn write(&self, offset: usize, buf: &[u8]) {
        let mut bytes = self.0.lock().unwrap();
        if let Some(to) = offset.checked_add(buf.len()).and_then(|end| bytes.get_mut(offset..end)) {
            to.copy_from_slice(buf);
        }
    }
}

fn medium() -> Box<MemoryMedium> {
    Box::new(MemoryMedium::new(vec![0xA5; 360 * 1024]))
}

fn disks() -> Ide {
    let mut ide = Ide::new();
    ide.attach(0, 0, Drive::Disk(medium()));
    ide.attach(1, 0, Drive::CdRom(Some(medium())));
    ide
}

fn diskettes() -> Floppy {
    let mut floppy = Floppy::new();
    floppy.insert(0, Some(medium()));
    floppy
}

/// One of each chip.
fn every_chip() -> Vec<Entry> {
    let builders: &[fn() -> Box<dyn Chip>] = &[
        || Box::new(Pic::new()),
        || Box::new(Pit::new()),
        || Box::new(Rtc::new(1_700_000_000)),
        || Box::new(I8042::new()),
        || Box::new(Dma8237::new()),
        || Box::new(Uart::new()),
        || Box::new(Parallel::new()),
        || Box::new(Lapic::new(1, true)),
        || Box::new(Ioapic::new(0)),
        || Box::new(Hpet::new()),
        || Box::new(Piix4Pm::new()),
        || Box::new(firmware_configuration()),
        || Box::new(I440Fx::new()),
        || Box::new(Piix3::new()),
        || Box::new(disks()),
        || Box::new(diskettes()),
        || Box::new(Vga::new(Arc::new(VideoRam(Mutex::new(vec![0; 0x8_0000]))))),
        || Box::new(DebugConsole::new()),
        || Box::new(DebugExit::new()),
        || Box::new(TestDevice::new()),
    ];
    builders.iter().map(|&build| Entry { chip: build(), build }).collect()
}

/// A little RAM; what lies above it wraps into it, so that descriptors are found.
struct Ram(RefCell<Vec<u8>>);

impl Dma for Ram {
    fn read(&self, address: u64, buf: &mut [u8]) {
        let ram = self.0.borrow();
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = ram[(address.wrapping_add(i as u64) % ram.len() as u64) as usize];
        }
    }
    fn write(&self, address: u64, buf: &[u8]) {
        let mut ram = self.0.borrow_mut();
        let len = ram.len() as u64;
        for (i, &byte) in buf.iter().enumerate() {
            ram[(address.wrapping_add(i as u64) % len) as usize] = byte;
        }
    }
}

/// A hostile guest with a clock.
struct Guest {
    rng: SmallRng,
    ram: Ram,
    now: Nanos,
    effects: Vec<Effect>,
}

/// Effects of one call that a chip must never exceed: what a guest can start in one access is bounded.
const EFFECTS_PER_CALL: usize = 64;

impl Guest {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let ram = (0..0x1000).map(|_| rng.random()).collect();
        Guest { rng, ram: Ram(RefCell::new(ram)), now: 0, effects: Vec::new() }
    }

    fn value(&mut self) -> u64 {
        match self.rng.random_range(0..4) {
            0 => self.rng.random(),
            1 => self.rng.random_range(0..0x100),
            2 => 1 << self.rng.random_range(0..64),
            _ => self.rng.random_range(0..0x2_0000),
        }
    }

    fn offset(&mut self) -> u64 {
        match self.rng.random_range(0..16) {
            0 => self.rng.random(),
            1..4 => self.rng.random_range(0..0x1000),
            4..7 => self.rng.random_range(0..0x400),
            7 => self.rng.random_range(0..0x40) * 0x10,
            _ => self.rng.random_range(0..16),
        }
    }

    fn pass_time(&mut self) {
        let step = match self.rng.random_range(0..64) {
            0 => self.rng.random_range(0..36_000_000_000_000),
            1..8 => self.rng.random_range(0..2_000_000_000),
            8..40 => self.rng.random_range(0..200_000),
            _ => self.rng.random_range(0..100),
        };
        self.now = self.now.saturating_add(step);
    }

    /// One thing that can happen to a chip.
    fn step(&mut self, chip: &mut dyn Chip) {
        let window = if self.rng.random_ratio(1, 8) { PCI_CONFIG } else { self.rng.random_range(0..5) };
        let (offset, value) = (self.offset(), self.value());
        let size = [1, 1, 2, 4, 4, 8][self.rng.random_range(0..6)];
        let kind = self.rng.random_range(0..100);
        if kind >= 85 {
            self.pass_time();
        }
        let (pin, level) = (self.rng.random_range(0..26), self.rng.random());
        self.effects.clear();
        let mut cx = Cx { now: self.now, ram: &self.ram, effects: &mut self.effects };
        match kind {
            0..30 => drop(chip.read(&mut cx, window, offset, size)),
            30..75 => chip.write(&mut cx, window, offset, size, value),
            75..85 => chip.input(&mut cx, pin, level),
            85..99 => {
                if let Some(at) = chip.next_event().filter(|&at| at <= cx.now) {
                    chip.event(&mut cx);
                    assert!(chip.next_event() != Some(at), "{}: the event did not move on", chip.name());
                }
            }
            _ if self.rng.random_ratio(1, 50) => chip.reset(&mut cx),
            _ => assert!(!chip.info().is_empty()),
        }
        assert!(self.effects.len() <= EFFECTS_PER_CALL, "{}: {} effects", chip.name(), self.effects.len());
    }
}

fn accesses() -> u64 {
    std::env::var("TRIMARAN_FUZZ_ACCESSES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000)
}

#[test]
fn a_guest_cannot_make_a_chip_panic() {
    for (seed, mut entry) in (1..).zip(every_chip()) {
        let mut guest = Guest::new(seed);
        for _ in 0..accesses() {
            guest.step(entry.chip.as_mut());
        }
    }
}

#[test]
fn saved_state_comes_back_equal() {
    for (seed, mut entry) in (100..).zip(every_chip()) {
        let mut guest = Guest::new(seed);
        for _ in 0..200 {
            for _ in 0..50 {
                guest.step(entry.chip.as_mut());
            }
            let saved = entry.chip.save();
            let mut fresh = (entry.build)();
            assert_eq!(fresh.restore(&saved), Ok(()), "{}", entry.chip.name());
            assert_eq!(fresh.save(), saved, "{}", entry.chip.name());
            assert_eq!(fresh.next_event(), entry.chip.next_event(), "{}", entry.chip.name());
        }
    }
}

#[test]
fn damaged_state_is_refused_or_harmless() {
    for (seed, mut entry) in (200..).zip(every_chip()) {
        let mut guest = Guest::new(seed);
        for round in 0..2000 {
            guest.step(entry.chip.as_mut());
            let before = entry.chip.save();
            let mut damaged = before.clone();
            if round % 4 == 0 {
                damaged.truncate(guest.rng.random_range(0..damaged.len()));
            } else {
                for _ in 0..guest.rng.random_range(1..8) {
                    let at = guest.rng.random_range(0..damaged.len());
                    damaged[at] = guest.rng.random();
                }
            }
            if entry.chip.restore(&damaged).is_err() {
                assert_eq!(entry.chip.save(), before, "{}", entry.chip.name());
                continue;
            }
            for _ in 0..20 {
                guest.step(entry.chip.as_mut());
            }
            entry.chip = (entry.build)();
        }
    }
}

#[test]
fn keys_and_mouse_are_bounded() {
    let mut guest = Guest::new(300);
    let mut chip = I8042::new();
    for _ in 0..accesses() / 4 {
        guest.step(&mut chip);
        let key = Key::ALL[guest.rng.random_range(0..Key::ALL.len())];
        let (dx, dy, wheel) = (guest.rng.random(), guest.rng.random(), guest.rng.random());
        let buttons = guest.rng.random();
        let mut cx = Cx { now: guest.now, ram: &guest.ram, effects: &mut guest.effects };
        match guest.rng.random_range(0..4) {
            0 => chip.press(&mut cx, key),
            1 => chip.release(&mut cx, key),
            2 => chip.mouse_move(&mut cx, dx, dy, wheel),
            _ => chip.mouse_buttons(&mut cx, buttons),
        }
    }
    let saved = chip.save();
    assert!(saved.len() < 1024);
    assert_eq!(I8042::new().restore(&saved), Ok(()));
}

#[test]
fn interrupt_controllers_take_any_message() {
    let mut guest = Guest::new(301);
    let (mut lapic, mut pic, mut ioapic) = (Lapic::new(3, false), Pic::new(), Ioapic::new(0));
    for _ in 0..accesses() / 4 {
        guest.step(&mut lapic);
        guest.step(&mut pic);
        guest.step(&mut ioapic);
        let (vector, index, value, flag) =
            (guest.rng.random(), guest.rng.random_range(0x7F0..0x910), guest.value(), guest.rng.random());
        let index = [index, IA32_APIC_BASE, IA32_TSC_DEADLINE][guest.rng.random_range(0..3)];
        let deliveries = [Delivery::Fixed, Delivery::LowestPriority, Delivery::Init, Delivery::ExtInt];
        let message = ApicMessage {
            destination: value as u32,
            logical: flag,
            delivery: deliveries[guest.rng.random_range(0..4)],
            vector,
            level_triggered: flag,
            assert: true,
            shorthand: Shorthand::None,
        };
        let mut cx = Cx { now: guest.now, ram: &guest.ram, effects: &mut guest.effects };
        lapic.accept(&mut cx, &message);
        lapic.matches(value as u32, flag);
        let _ = lapic.write_msr(&mut cx, index, value | 0xFEE0_0000);
        let _ = lapic.read_msr(&mut cx, index);
        lapic.set_tsc_offset(&mut cx, value);
        lapic.acknowledge(&mut cx);
        pic.acknowledge(&mut cx);
        ioapic.end_of_interrupt(&mut cx, vector);
    }
}

#[test]
fn dma_of_any_channel_and_mode() {
    let mut guest = Guest::new(302);
    let mut chip = Dma8237::new();
    for _ in 0..accesses() / 4 {
        guest.step(&mut chip);
        let mut data = vec![0; guest.rng.random_range(0..600)];
        let (channel, direction) = (guest.rng.random_range(0..10), guest.rng.random());
        let mut cx = Cx { now: guest.now, ram: &guest.ram, effects: &mut guest.effects };
        let (moved, _) = chip.transfer(&mut cx, channel, direction, &mut data);
        assert!(moved <= data.len());
    }
}

#[test]
fn serial_input_overruns_quietly() {
    let mut guest = Guest::new(303);
    let mut chip = Uart::new();
    for _ in 0..accesses() / 4 {
        guest.step(&mut chip);
        let byte = guest.rng.random();
        let mut cx = Cx { now: guest.now, ram: &guest.ram, effects: &mut guest.effects };
        chip.receive(&mut cx, byte);
        assert!(chip.room() <= 16);
    }
    assert!(chip.save().len() < 200);
}
