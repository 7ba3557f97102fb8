//! The chips of the board, each behind a lock of its own.

use crate::memory::VideoMemory;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trimaran_devices::chip::{Chip, Nanos};
use trimaran_devices::debug_port::{DebugConsole, DebugExit};
use trimaran_devices::dma8237::Dma8237;
use trimaran_devices::floppy::Floppy;
use trimaran_devices::fw_cfg::FwCfg;
use trimaran_devices::hpet::Hpet;
use trimaran_devices::i440fx::I440Fx;
use trimaran_devices::i8042::I8042;
use trimaran_devices::ide::Ide;
use trimaran_devices::ioapic::Ioapic;
use trimaran_devices::lapic::Lapic;
use trimaran_devices::parallel::Parallel;
use trimaran_devices::pic::Pic;
use trimaran_devices::piix3::Piix3;
use trimaran_devices::piix4_pm::Piix4Pm;
use trimaran_devices::pit::Pit;
use trimaran_devices::rtc::Rtc;
use trimaran_devices::testdev::TestDevice;
use trimaran_devices::uart::Uart;
use trimaran_devices::vga::Vga;

/// Locks, whatever another thread did while it held the lock.
pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which chip of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChipId {
    HostBridge,
    IsaBridge,
    Ide,
    PowerManagement,
    Vga,
    Pic,
    Pit,
    Rtc,
    Keyboard,
    Dma,
    Com(u8),
    Parallel,
    Floppy,
    Ioapic,
    Hpet,
    FwCfg,
    DebugConsole,
    FirmwareConsole,
    DebugExit,
    TestDevice,
    Lapic(usize),
}

impl fmt::Display for ChipId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = match self {
            ChipId::HostBridge => "i440fx",
            ChipId::IsaBridge => "piix3",
            ChipId::Ide => "ide",
            ChipId::PowerManagement => "pm",
            ChipId::Vga => "vga",
            ChipId::Pic => "pic",
            ChipId::Pit => "pit",
            ChipId::Rtc => "rtc",
            ChipId::Keyboard => "i8042",
            ChipId::Dma => "dma",
            ChipId::Com(n) => return write!(f, "com{}", n + 1),
            ChipId::Parallel => "parallel",
            ChipId::Floppy => "floppy",
            ChipId::Ioapic => "ioapic",
            ChipId::Hpet => "hpet",
            ChipId::FwCfg => "fw_cfg",
            ChipId::DebugConsole => "debugcon",
            ChipId::FirmwareConsole => "firmwarecon",
            ChipId::DebugExit => "debugexit",
            ChipId::TestDevice => "testdev",
            ChipId::Lapic(n) => return write!(f, "lapic{n}"),
        };
        f.write_str(name)
    }
}

/// A chip with its lock. `deadline` mirrors [`Chip::next_event`]; it changes under the lock.
pub struct Slot<T> {
    pub id: ChipId,
    chip: Mutex<T>,
    deadline: AtomicU64,
}

/// No event is due, ever.
pub const NEVER: Nanos = Nanos::MAX;

impl<T: Chip> Slot<T> {
    fn new(id: ChipId, chip: T) -> Self {
        Slot { id, chip: Mutex::new(chip), deadline: AtomicU64::new(NEVER) }
    }

    /// The chip itself, without a context: for set-up and for looking at it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        locked(&self.chip)
    }

    /// Notes when the locked chip wants its next event; returns it.
    pub fn note_deadline(&self, chip: &T) -> Nanos {
        let deadline = chip.next_event().unwrap_or(NEVER);
        self.deadline.store(deadline, SeqCst);
        deadline
    }
}

/// A slot of any chip.
pub trait AnySlot: Send + Sync {
    fn id(&self) -> ChipId;
    fn deadline(&self) -> Nanos;
    /// Calls `f` with the chip locked, then notes its deadline. `f` gets a chip without context.
    fn with(&self, f: &mut dyn FnMut(&mut dyn Chip)) -> Nanos;
}

impl<T: Chip> AnySlot for Slot<T> {
    fn id(&self) -> ChipId {
        self.id
    }
    fn deadline(&self) -> Nanos {
        self.deadline.load(SeqCst)
    }
    fn with(&self, f: &mut dyn FnMut(&mut dyn Chip)) -> Nanos {
        let mut chip = self.lock();
        f(&mut *chip);
        self.note_deadline(&chip)
    }
}

/// What the board is fitted with.
pub struct Fitting {
    pub cpus: usize,
    /// The time of day at power-on, in seconds since 1970.
    pub epoch: i64,
    pub fw_cfg: FwCfg,
    pub ide: Ide,
    pub floppy: Floppy,
    pub video: VideoMemory,
    pub vga_rom: Vec<u8>,
}

/// All chips.
pub struct Chips {
    pub host_bridge: Slot<I440Fx>,
    pub isa_bridge: Slot<Piix3>,
    pub ide: Slot<Ide>,
    pub pm: Slot<Piix4Pm>,
    pub vga: Slot<Vga>,
    pub pic: Slot<Pic>,
    pub pit: Slot<Pit>,
    pub rtc: Slot<Rtc>,
    pub keyboard: Slot<I8042>,
    pub dma: Slot<Dma8237>,
    pub com: [Slot<Uart>; 4],
    pub parallel: Slot<Parallel>,
    pub floppy: Slot<Floppy>,
    pub ioapic: Slot<Ioapic>,
    pub hpet: Slot<Hpet>,
    pub fw_cfg: Slot<FwCfg>,
    pub debug_console: Slot<DebugConsole>,
    pub firmware_console: Slot<DebugConsole>,
    pub debug_exit: Slot<DebugExit>,
    pub test_device: Slot<TestDevice>,
    pub lapics: Box<[Slot<Lapic>]>,
}

impl Chips {
    pub fn new(fitting: Fitting) -> Self {
        let mut vga = Vga::new(Arc::new(fitting.video));
        vga.set_rom(fitting.vga_rom);
        let lapic = |n: usize| Slot::new(ChipId::Lapic(n), Lapic::new(n as u32, n == 0));
        Chips {
            host_bridge: Slot::new(ChipId::HostBridge, I440Fx::new()),
            isa_bridge: Slot::new(ChipId::IsaBridge, Piix3::new()),
            ide: Slot::new(ChipId::Ide, fitting.ide),
            pm: Slot::new(ChipId::PowerManagement, Piix4Pm::new()),
            vga: Slot::new(ChipId::Vga, vga),
            pic: Slot::new(ChipId::Pic, Pic::new()),
            pit: Slot::new(ChipId::Pit, Pit::new()),
            rtc: Slot::new(ChipId::Rtc, Rtc::new(fitting.epoch)),
            keyboard: Slot::new(ChipId::Keyboard, I8042::new()),
            dma: Slot::new(ChipId::Dma, Dma8237::new()),
            com: std::array::from_fn(|n| Slot::new(ChipId::Com(n as u8), Uart::new())),
            parallel: Slot::new(ChipId::Parallel, Parallel::new()),
            floppy: Slot::new(ChipId::Floppy, fitting.floppy),
            ioapic: Slot::new(ChipId::Ioapic, Ioapic::new(crate::layout::IOAPIC_ID)),
            hpet: Slot::new(ChipId::Hpet, Hpet::new()),
            fw_cfg: Slot::new(ChipId::FwCfg, fitting.fw_cfg),
            debug_console: Slot::new(ChipId::DebugConsole, DebugConsole::new()),
            firmware_console: Slot::new(ChipId::FirmwareConsole, DebugConsole::new()),
            debug_exit: Slot::new(ChipId::DebugExit, DebugExit::new()),
            test_device: Slot::new(ChipId::TestDevice, TestDevice::new()),
            lapics: (0..fitting.cpus).map(lapic).collect(),
        }
    }

    /// Every chip, always in the same order.
    pub fn all(&self) -> impl Iterator<Item = &dyn AnySlot> {
        let single: [&dyn AnySlot; 19] = [
            &self.host_bridge,
            &self.isa_bridge,
            &self.ide,
            &self.pm,
            &self.vga,
            &self.pic,
            &self.pit,
            &self.rtc,
            &self.keyboard,
            &self.dma,
            &self.parallel,
            &self.floppy,
            &self.ioapic,
            &self.hpet,
            &self.fw_cfg,
            &self.debug_console,
            &self.firmware_console,
            &self.debug_exit,
            &self.test_device,
        ];
        let many = self.com.iter().map(|slot| slot as &dyn AnySlot);
        single.into_iter().chain(many).chain(self.lapics.iter().map(|slot| slot as &dyn AnySlot))
    }

    /// A chip by its place; local APICs that do not exist are the first.
    pub fn get(&self, id: ChipId) -> &dyn AnySlot {
        match id {
            ChipId::HostBridge => &self.host_bridge,
            ChipId::IsaBridge => &self.isa_bridge,
            ChipId::Ide => &self.ide,
            ChipId::PowerManagement => &self.pm,
            ChipId::Vga => &self.vga,
            ChipId::Pic => &self.pic,
            ChipId::Pit => &self.pit,
            ChipId::Rtc => &self.rtc,
            ChipId::Keyboard => &self.keyboard,
            ChipId::Dma => &self.dma,
            ChipId::Com(n) => &self.com[usize::from(n & 3)],
            ChipId::Parallel => &self.parallel,
            ChipId::Floppy => &self.floppy,
            ChipId::Ioapic => &self.ioapic,
            ChipId::Hpet => &self.hpet,
            ChipId::FwCfg => &self.fw_cfg,
            ChipId::DebugConsole => &self.debug_console,
            ChipId::FirmwareConsole => &self.firmware_console,
            ChipId::DebugExit => &self.debug_exit,
            ChipId::TestDevice => &self.test_device,
            ChipId::Lapic(n) => &self.lapics[n.min(self.lapics.len() - 1)],
        }
    }

    /// PCI function `device`.`function` of bus 0.
    pub fn pci_function(&self, device: u8, function: u8) -> Option<ChipId> {
        PCI_FUNCTIONS.iter().find(|f| (f.0, f.1) == (device, function)).map(|f| f.2)
    }

    /// When the next event of any chip is due.
    pub fn earliest(&self) -> Nanos {
        self.all().map(AnySlot::deadline).min().unwrap_or(NEVER)
    }
}

/// Device and function numbers on bus 0.
pub const PCI_FUNCTIONS: [(u8, u8, ChipId); 5] = [
    (0, 0, ChipId::HostBridge),
    (1, 0, ChipId::IsaBridge),
    (1, 1, ChipId::Ide),
    (1, 3, ChipId::PowerManagement),
    (2, 0, ChipId::Vga),
];
