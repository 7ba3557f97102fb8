//! A whole machine as a frontend drives it.

use crate::board::{Board, BoardConfig};
use crate::chips::Fitting;
use crate::config::{IdeDrive, MachineConfig, MachineError};
use crate::consoles::Consoles;
use crate::control::Outcome;
use crate::firmware::{self, Setup};
use crate::memory::{self, Blocks, VideoMemory};
use crate::port_log::PortCount;
use crate::ports::Diagnostics;
use crate::supervisor::Core;
use crate::tables::{Hardware, MAX_CPUS};
use crate::vcpus::{self, Vcpus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use trimaran_cpu::Counters;
use trimaran_cpu::engine::{EngineFactory, Stop};
use trimaran_cpu::features::edx1;
use trimaran_cpu::shared::attention;
use trimaran_devices::block::Medium;
use trimaran_devices::floppy::Floppy;
use trimaran_devices::fw_cfg::FwCfg;
use trimaran_devices::ide::{Drive, Ide};
use trimaran_devices::piix4_pm::Piix4Pm;
use trimaran_devices::ps2::key::Key;
use trimaran_devices::vga::{Frame, Screen, TextScreen};

/// Largest guest memory: 39 bits of physical address, less the hole.
const MAX_MEMORY: u64 = 500 << 30;

/// What [`Machine::stats`] tells.
#[derive(Clone, Debug)]
pub struct Stats {
    pub engine: &'static str,
    pub instructions: u64,
    /// Host time since [`Machine::start`].
    pub seconds: f64,
    /// Virtual time.
    pub nanoseconds: u64,
    /// One a vCPU.
    pub counters: Vec<Counters>,
    /// Text about translated code, one a vCPU; empty on engines without.
    pub translator: Vec<String>,
}

/// See the head of this file. Dropping it ends all its threads.
pub struct Machine {
    pub(crate) core: Arc<Core>,
    threads: Vec<JoinHandle<()>>,
    paused: AtomicBool,
    begun: Instant,
}

fn check(config: &MachineConfig) -> Result<(), MachineError> {
    let (bytes, cpus) = (config.memory, config.cpus);
    if bytes == 0 || !bytes.is_multiple_of(1 << 20) || bytes > MAX_MEMORY {
        return Err(if bytes > MAX_MEMORY {
            let error = "guests can address 500 GB at most".into();
            MachineError::HostMemory { megabytes: bytes >> 20, error }
        } else {
            MachineError::MemorySize { bytes }
        });
    }
    if cpus == 0 || cpus > usize::from(MAX_CPUS) {
        return Err(MachineError::Cpus { cpus, max: MAX_CPUS });
    }
    match &config.firmware {
        Some(image) if image.is_empty() || image.len() > firmware::MAX_ROM => {
            Err(MachineError::Firmware { bytes: image.len(), max: firmware::MAX_ROM })
        }
        None if config.direct.is_none() => Err(MachineError::NothingToStart),
        _ => Ok(()),
    }
}

impl Machine {
    /// Builds a machine that stands at its first instruction.
    pub fn new(config: MachineConfig, factory: &Arc<dyn EngineFactory>) -> Result<Machine, MachineError> {
        check(&config)?;
        let firmware = config.firmware.unwrap_or_default();
        let blocks = Blocks::new(config.memory, firmware.len(), config.test_device);
        let ram = memory::map(&blocks)
            .map_err(|error| MachineError::HostMemory { megabytes: config.memory >> 20, error })?;
        let hardware = Hardware {
            cpus: config.cpus as u8,
            memory: blocks.layout,
            floppy: config.floppies.iter().any(Option::is_some),
            com2: true,
            parallel_port: true,
            hpet: true,
            cpu_signature: config.model.signature,
            cpu_features: config.model.features.leaf1_edx,
            uuid: [0; 16],
        };
        let mut fw_cfg = FwCfg::new();
        firmware::fill_fw_cfg(&mut fw_cfg, &hardware, config.boot_menu);

        let disks = std::array::from_fn(|n| matches!(config.ide[n], Some(IdeDrive::Disk(_))));
        let mut ide = Ide::new();
        for (n, drive) in (0u8..).zip(config.ide) {
            match drive {
                Some(IdeDrive::Disk(medium)) => ide.attach(n / 2, n % 2, Drive::Disk(medium)),
                Some(IdeDrive::CdRom(medium)) => ide.attach(n / 2, n % 2, Drive::CdRom(medium)),
                None => {}
            }
        }
        const EMPTY_DRIVE: u64 = 1_474_560;
        let floppies = [0, 1].map(|n: usize| {
            let drive = config.floppies[n].as_ref();
            drive.map(|medium| medium.as_ref().map_or(EMPTY_DRIVE, |medium| medium.len()))
        });
        let mut floppy = Floppy::new();
        for (n, medium) in (0u8..).zip(config.floppies) {
            if let Some(Some(medium)) = medium {
                floppy.insert(n, Some(medium));
            }
        }

        let video = VideoMemory { ram: ram.clone(), offset: blocks.video };
        let vga_rom = config.vga_bios.unwrap_or_default();
        let fitting = Fitting { cpus: config.cpus, epoch: config.epoch, fw_cfg, ide, floppy, video, vga_rom };
        let board_config = BoardConfig {
            cpus: config.cpus,
            deterministic: config.deterministic,
            tsc_khz: config.model.tsc_khz,
            has_apic: config.model.features.leaf1_edx & edx1::APIC != 0,
            diagnostics: Diagnostics { debug_exit: config.debug_exit, test_device: config.test_device },
            port_logs: config.port_logs,
            firmware,
            consoles: Consoles::new(config.sinks)?,
            switches: config.switches,
        };
        let board = Board::new(board_config, fitting, ram, blocks);
        let boot_order = &config.boot_order;
        let setup = Setup { memory: blocks.layout, cpus: hardware.cpus, floppies, disks, boot_order };
        firmware::fill_cmos(&mut board.chips.rtc.lock(), &setup);

        let vcpus = Arc::new(Vcpus::new(&board, factory, &config.model, config.exit_on_halt));
        let core = Arc::new(Core {
            board,
            vcpus,
            model: config.model,
            hardware,
            direct: config.direct,
            no_reboot: config.no_reboot,
            on_switch: config.on_switch,
            gate: std::sync::Mutex::default(),
        });
        let mut machine =
            Machine { core, threads: Vec::new(), paused: AtomicBool::new(true), begun: Instant::now() };
        machine.power_on()?;
        Ok(machine)
    }

    fn power_on(&mut self) -> Result<(), MachineError> {
        let core = &self.core;
        // Stands until `start`.
        core.pause();
        core.begin(&mut core.vcpus.engines())?;
        core.reset(&mut core.vcpus.engines())?;
        self.threads = core.vcpus.spawn(&core.board)?;
        let supervisor = core.clone();
        let thread = Builder::new().name("io".into());
        self.threads.push(thread.spawn(move || supervisor.supervise())?);
        Ok(())
    }

    /// Lets the machine run.
    pub fn start(&mut self) {
        self.begun = Instant::now();
        self.resume();
    }

    /// Stops vCPUs and clock. Does nothing if they stand already.
    pub fn pause(&self) {
        if !self.paused.swap(true, AcqRel) {
            self.core.pause();
        }
    }

    pub fn resume(&self) {
        if self.paused.swap(false, AcqRel) {
            self.core.resume();
        }
    }

    pub fn paused(&self) -> bool {
        self.paused.load(Acquire)
    }

    /// Waits for the end.
    pub fn wait(&self) -> Outcome {
        self.core.board.control.wait_outcome(None).unwrap_or(Outcome::Quit)
    }

    /// Waits for the end, at most for `time`.
    pub fn wait_for(&self, time: Duration) -> Option<Outcome> {
        self.core.board.control.wait_outcome(Some(time))
    }

    /// How the machine ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.core.board.control.outcome()
    }

    /// Has [`Machine::wait`] return [`Outcome::Quit`].
    pub fn quit(&self) {
        self.core.board.control.quit();
        self.core.board.timers.wake();
    }

    /// Lets a deterministic machine run until its clock shows `time`; it stands then. Returns how it ended
    /// before, if it did.
    pub fn run_until(&self, time: u64) -> Option<Outcome> {
        let core = &self.core;
        if core.board.control.deterministic_vcpu().is_some() && self.outcome().is_none() {
            core.vcpus.stop_at.store(time, Release);
            self.resume();
            core.board.control.wait_held();
            self.paused.store(true, Release);
        }
        self.outcome()
    }

    /// Lets one vCPU run up to `count` instructions while all else stands, time too. An error: there is no such vCPU, or
    /// the machine's time is its count of instructions.
    pub fn step(&self, vcpu: usize, count: u64) -> Result<Stop, MachineError> {
        let board = &self.core.board;
        if board.control.deterministic_vcpu().is_some() {
            return Err(MachineError::NoSteps);
        }
        self.core.quiesce(|engines| {
            let none = || MachineError::NoSuchDevice(format!("processor {vcpu}"));
            let engine = engines.get_mut(vcpu).ok_or_else(none)?;
            // It stands: nobody need ask it to.
            board.fence.vcpus[vcpu].clear(attention::STOP);
            let stop = engine.run(count);
            vcpus::note_stop(board, stop, engine.state());
            Ok(stop)
        })
    }

    /// Virtual time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.core.board.clock.now()
    }

    /// The reset button.
    pub fn reset(&self) -> Result<(), MachineError> {
        self.core.quiesce(|engines| self.core.reset(engines))
    }

    /// The power button: ACPI guests shut down.
    pub fn power_button(&self) {
        self.core.outside(|board| board.call(&board.chips.pm, Piix4Pm::press_power_button));
    }

    /// A key goes down or up.
    pub fn key(&self, key: Key, down: bool) {
        self.core.outside(|board| board.strokes(&[(key, down)]));
    }

    /// Presses keys named as in `ctrl-alt-delete`, and releases them in the opposite order.
    pub fn send_keys(&self, chord: &str) -> Result<(), MachineError> {
        let unknown = |name: &str| MachineError::NoSuchDevice(format!("key `{name}`"));
        let keys = chord.split('-').map(|name| Key::from_name(name).ok_or_else(|| unknown(name)));
        let keys = keys.collect::<Result<Vec<Key>, _>>()?;
        let down = keys.iter().map(|&key| (key, true));
        let strokes: Vec<_> = down.chain(keys.iter().rev().map(|&key| (key, false))).collect();
        self.core.outside(|board| board.strokes(&strokes));
        Ok(())
    }

    /// Types ASCII text on a US keyboard; other characters are left out.
    pub fn type_text(&self, text: &str) {
        let strokes: Vec<_> = text.chars().filter_map(Key::sequence).flatten().collect();
        self.core.outside(|board| board.strokes(&strokes));
    }

    /// Moves the mouse right, down, and its wheel towards the user.
    pub fn mouse_move(&self, dx: i32, dy: i32, wheel: i32) {
        self.core.outside(|board| {
            board.call(&board.chips.keyboard, |keyboard, cx| keyboard.mouse_move(cx, dx, dy, wheel));
        });
    }

    /// The mouse buttons that are down now: [`trimaran_devices::ps2::mouse::button`].
    pub fn mouse_buttons(&self, buttons: u8) {
        self.core.outside(|board| {
            board.call(&board.chips.keyboard, |keyboard, cx| keyboard.mouse_buttons(cx, buttons));
        });
    }

    /// Bytes arrive at COM1 (0) to COM4 (3).
    pub fn serial_input(&self, port: u8, bytes: &[u8]) {
        self.core.outside(|board| board.serial_input(port, bytes));
    }

    /// Draws the screen.
    pub fn render(&self, frame: &mut Frame) {
        let board = &self.core.board;
        board.chips.vga.lock().render(board.clock.now(), frame);
    }

    /// Brings a window's picture up to the screen; whether it has changed.
    pub fn look(&self, screen: &mut Screen) -> bool {
        let board = &self.core.board;
        screen.look(&board.chips.vga.lock(), board.clock.now())
    }

    /// The screen's characters, in a text mode.
    pub fn text_screen(&self) -> Option<TextScreen> {
        self.core.board.chips.vga.lock().text_screen()
    }

    /// The screen as lines of ASCII, for tests and logs; empty in graphics modes.
    pub fn screen_text(&self) -> String {
        let Some(screen) = self.text_screen() else { return String::new() };
        let printable = |code: u8| if (0x20..0x7F).contains(&code) { char::from(code) } else { ' ' };
        let rows = screen.cells.chunks(screen.columns.max(1));
        let lines = rows.map(|row| row.iter().map(|cell| printable(cell.0)).collect::<String>());
        lines.map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// Changes the disc in a CD-ROM drive: 0 and 1 on the primary channel, 2 and 3 on the secondary.
    pub fn change_disc(&self, drive: u8, medium: Option<Box<dyn Medium>>) -> Result<(), MachineError> {
        let changed =
            self.core.outside(|board| board.chips.ide.lock().change_medium(drive / 2, drive % 2, medium));
        if changed { Ok(()) } else { Err(MachineError::NoSuchDevice(format!("CD-ROM drive {drive}"))) }
    }

    /// Changes the diskette in drive A (0) or B (1).
    pub fn change_floppy(&self, drive: u8, medium: Option<Box<dyn Medium>>) -> Result<(), MachineError> {
        if drive > 1 {
            return Err(MachineError::NoSuchDevice(format!("floppy drive {drive}")));
        }
        self.core.outside(|board| {
            board.call(&board.chips.floppy, |floppy, _| floppy.insert(drive, medium));
        });
        Ok(())
    }

    /// Why the engine could not go on, after [`Outcome::EngineFailed`].
    pub fn engine_failure(&self) -> Option<String> {
        self.core.quiesce(|engines| engines.iter().find_map(|engine| engine.failure()))
    }

    /// Counts so far; the vCPUs stand for a moment.
    pub fn stats(&self) -> Stats {
        self.core.quiesce(|engines| Stats {
            engine: self.engine_name(),
            instructions: engines.iter_mut().map(|engine| engine.state().retired).sum(),
            seconds: self.begun.elapsed().as_secs_f64(),
            nanoseconds: self.now(),
            counters: self.core.vcpus.counters(engines),
            translator: engines.iter().map(|engine| engine.describe_translator()).collect(),
        })
    }

    /// What logged ports have got, in the order of the configuration.
    pub fn port_counts(&self) -> Vec<PortCount> {
        self.core.board.port_logs.counts()
    }

    /// The tone of the speaker, in hertz.
    pub fn speaker(&self) -> Option<f64> {
        self.core.board.chips.pit.lock().speaker_frequency()
    }

    /// Lights of the keyboard: bit 0 Scroll Lock, 1 Num Lock, 2 Caps Lock.
    pub fn leds(&self) -> u8 {
        self.core.board.chips.keyboard.lock().leds()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.quit();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.core.board.consoles.finish();
    }
}
