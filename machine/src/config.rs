//! What a machine is made of, and what can be wrong with that.

use crate::boot::{BootError, DirectBoot};
use crate::consoles::{Console, Sink};
use crate::firmware::BootDevice;
use crate::media::MediaError;
use crate::port_log::Format;
use crate::switch::OnSwitch;
use crate::tables::TableError;
use crate::triggers::SwitchAt;
use std::sync::Arc;
use trimaran_cpu::model::Model;
use trimaran_devices::block::Medium;
use trimaran_devices::chip::StateError;

/// A drive on the IDE controller.
pub enum IdeDrive {
    Disk(Box<dyn Medium>),
    /// With or without a disc.
    CdRom(Option<Box<dyn Medium>>),
}

/// What [`crate::Machine::new`] builds from. [`MachineConfig::default`] is a PC with 128 MB, one processor and no
/// drives.
pub struct MachineConfig {
    /// Bytes of RAM, whole megabytes.
    pub memory: u64,
    pub cpus: usize,
    pub model: Arc<Model>,
    /// ROM images; without firmware there must be a direct boot.
    pub firmware: Option<Vec<u8>>,
    pub vga_bios: Option<Vec<u8>>,
    pub direct: Option<DirectBoot>,
    /// Primary master and slave, secondary master and slave.
    pub ide: [Option<IdeDrive>; 4],
    /// Drives A and B: without drive, or with one that holds a diskette or nothing.
    pub floppies: [Option<Option<Box<dyn Medium>>>; 2],
    pub boot_order: Vec<BootDevice>,
    pub boot_menu: bool,
    pub deterministic: bool,
    /// Seconds since 1970 that the real-time clock shows at power-on.
    pub epoch: i64,
    /// End instead of starting again when the guest resets.
    pub no_reboot: bool,
    /// End when all processors have halted with interrupts disabled.
    pub exit_on_halt: bool,
    /// First port of isa-debug-exit.
    pub debug_exit: Option<u16>,
    /// The board has [`trimaran_devices::testdev`]'s device.
    pub test_device: bool,
    /// I/O ports whose writes are written down, see [`crate::port_log`]; [`Console::Port`] is the number in this list.
    pub port_logs: Vec<(u16, Format)>,
    pub sinks: Vec<(Console, Sink)>,
    /// Changes of the engine that the guest sets off.
    pub switches: Vec<SwitchAt>,
    pub on_switch: Option<OnSwitch>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig {
            memory: 128 << 20,
            cpus: 1,
            model: Arc::new(Model::default()),
            firmware: None,
            vga_bios: None,
            direct: None,
            ide: [None, None, None, None],
            floppies: [None, None],
            boot_order: vec![BootDevice::Disk, BootDevice::CdRom, BootDevice::Floppy],
            boot_menu: true,
            deterministic: false,
            // 1 January 2024, for machines that must not depend on the host's date.
            epoch: 1_704_067_200,
            no_reboot: false,
            exit_on_halt: false,
            debug_exit: None,
            test_device: false,
            port_logs: Vec::new(),
            sinks: Vec::new(),
            switches: Vec::new(),
            on_switch: None,
        }
    }
}

/// Why a machine cannot be built, or an operation on it failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("{bytes} bytes of memory: a machine needs 1 MB at least, in whole megabytes")]
    MemorySize { bytes: u64 },
    #[error("the host has no {megabytes} MB for guest memory: {error}; ask for less")]
    HostMemory { megabytes: u64, error: String },
    #[error("{cpus} processors: 1 to {max} are possible")]
    Cpus { cpus: usize, max: u8 },
    #[error("the firmware image has {bytes} bytes: 1 to {max} are possible")]
    Firmware { bytes: usize, max: usize },
    #[error(
        "there is nothing to start: no firmware image was given and no kernel; install the package seabios, or name a \
         firmware file or a kernel"
    )]
    NothingToStart,
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Tables(#[from] TableError),
    #[error(transparent)]
    Media(#[from] MediaError),
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    #[error("the saved state is not of this machine: {0}")]
    Mismatch(String),
    #[error("the saved state is damaged: {0}")]
    Damaged(String),
    #[error("the saved state is damaged: {0}")]
    Chip(#[from] StateError),
    #[error("the engine {engine} cannot run this machine: {reason}")]
    Engine { engine: &'static str, reason: String },
    #[error("a deterministic machine cannot be stepped: its time is its count of instructions")]
    NoSteps,
    #[error("there is no {0}")]
    NoSuchDevice(String),
}
