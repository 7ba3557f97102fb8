//! From options to a running machine, and to the exit status.

use crate::cli::{Display, Endpoint, Options};
use crate::engine_list::EngineList;
use crate::session::{Session, open_floppy};
use crate::{Failure, engines, monitor, screenshot, serial, stats, status, switch_at, terminal, window};
use anyhow::Context;
use std::io::{IsTerminal, Write, stdin, stdout};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use trimaran_cpu::model::ext1;
use trimaran_devices::block::Medium;
use trimaran_machine::boot::{DirectBoot, Module};
use trimaran_machine::firmware::{self, BootDevice};
use trimaran_machine::media::{Changes, RawImage, Scratch};
use trimaran_machine::port_log::{MAX_PORTS, PortCount};
use trimaran_machine::{Console, IdeDrive, Machine, MachineConfig, Outcome, builtin};

/// Drives A and B, and four places on the IDE channels.
const FLOPPIES: usize = 2;
const IDE_PLACES: usize = 4;
const SERIAL_PORTS: usize = 4;
/// Where test kernels that know the test device look for isa-debug-exit.
const TESTDEV_EXIT: u16 = 0xF4;

pub fn run(options: &Options) -> Result<i32, Failure> {
    let display = choose_display(options)?;
    check_stdio(options, display)?;
    let engines::Choice { factory, model } = engines::choose(options)?;
    let (mut config, guest, cdroms) = configure(options, factory.name(), None)?;
    config.model = Arc::new(model);
    switch_at::arm(options, &mut config)?;
    let inputs = open_ports(options, display, &mut config)?;
    let monitor = options.monitor.as_ref().map(monitor::open).transpose()?;

    let mut machine = Machine::new(config, &factory)?;
    machine.start();
    let begun = Instant::now();
    let session = Arc::new(Session::new(machine, guest, cdroms, EngineList::new(options)));
    for (port, input) in (0u8..).zip(inputs) {
        serial::start(port, input, &session)?;
    }
    if let Some(monitor) = monitor {
        monitor::start(monitor, &session)?;
    }
    let deadline = options.timeout.map(|seconds| begun + Duration::from_secs_f64(seconds));
    match display {
        Display::Window => window::run(&session, deadline)?,
        Display::Terminal => terminal::run(&session, deadline)?,
        Display::None => wait(&session, deadline),
    }
    finish(options, session, deadline)
}

/// The machine that the options describe, the name of what it runs, and the places of its CD-ROM drives. With
/// `scratch`, nothing is written to images: what would be is added there.
pub fn configure(
    options: &Options,
    engine: &str,
    scratch: Option<&mut Vec<Changes>>,
) -> Result<(MachineConfig, String, Vec<u8>), Failure> {
    check_memory(options.memory)?;
    let mut config = MachineConfig {
        memory: options.memory,
        cpus: options.cpus,
        model: Arc::new(options.cpu.clone()),
        deterministic: options.deterministic,
        no_reboot: options.no_reboot,
        exit_on_halt: options.exit_on_halt,
        debug_exit: options.debug_exit.or(options.testdev.then_some(TESTDEV_EXIT)),
        test_device: options.testdev,
        ..MachineConfig::default()
    };
    if !options.deterministic {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        config.epoch = i64::try_from(now.as_secs()).unwrap_or(config.epoch);
    }
    let cdroms = attach_drives(options, &mut config, scratch)?;
    let guest = choose_guest(options, &mut config, engine)?;
    Ok((config, guest, cdroms))
}

/// Waits for the end without showing anything.
fn wait(session: &Session, deadline: Option<Instant>) {
    match deadline {
        None => _ = session.machine.wait(),
        Some(deadline) => {
            _ = session.machine.wait_for(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

/// The last words, and the status.
fn finish(options: &Options, session: Arc<Session>, deadline: Option<Instant>) -> Result<i32, Failure> {
    let outcome = session.machine.outcome();
    session.machine.pause();
    if let Some(path) = &options.screendump {
        screenshot::save(&session.machine, path)?;
    }
    let stats = options.stats.then(|| stats::describe(&session.machine.stats()));
    let failure = session.machine.engine_failure();
    let ports = session.machine.port_counts();
    // Ends the machine's threads; the consoles write what is under way.
    drop(session);
    stdout().flush()?;
    crate::terminal_mode::restore();
    for PortCount { port, writes, last } in ports {
        let last = if writes == 0 { String::new() } else { format!(", the last {last:#x}") };
        eprintln!("trimaran: port {port:#x}: {writes} writes{last}");
    }
    if let Some(stats) = stats {
        eprint!("{stats}");
    }
    Ok(match outcome {
        Some(Outcome::DebugExit(code)) => code,
        Some(Outcome::TripleFault) => {
            eprintln!("trimaran: the guest met a triple fault");
            status::TRIPLE_FAULT
        }
        Some(Outcome::Halted) => {
            eprintln!("trimaran: all processors have halted with interrupts disabled");
            status::HALTED
        }
        Some(Outcome::EngineFailed) => {
            eprintln!("trimaran: {}", failure.unwrap_or_else(|| "the engine cannot go on".into()));
            status::ERROR
        }
        Some(_) => status::POWERED_OFF,
        None if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
            eprintln!("trimaran: the time given by --timeout ran out");
            status::TIMEOUT
        }
        None => status::POWERED_OFF,
    })
}

/// The display that was asked for, or the best that there is.
fn choose_display(options: &Options) -> Result<Display, Failure> {
    if let Some(display) = options.display {
        if display == Display::Window {
            window::available().map_err(|reason| anyhow::anyhow!("no window can be opened: {reason}"))?;
        }
        if display == Display::Terminal && !stdout().is_terminal() {
            return Err(anyhow::anyhow!("--display terminal needs a terminal on stdout").into());
        }
        return Ok(display);
    }
    if options.smoke {
        return Ok(Display::None);
    }
    let Err(reason) = window::available() else { return Ok(Display::Window) };
    let stdio_is_free = !uses_stdio(options) && stdin().is_terminal() && stdout().is_terminal();
    if stdio_is_free {
        eprintln!(
            "trimaran: no window can be opened ({reason}): the screen is shown as text, Ctrl-A x quits"
        );
        Ok(Display::Terminal)
    } else {
        eprintln!("trimaran: no window can be opened ({reason}): going on without a screen");
        Ok(Display::None)
    }
}

/// A guest may not have more memory than the host: it would be killed in the middle of its work.
fn check_memory(bytes: u64) -> Result<(), Failure> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let Some(kilobytes) = total.and_then(|total| total.parse::<u64>().ok()) else { return Ok(()) };
    if bytes >> 10 > kilobytes {
        let (wanted, there) = (bytes >> 20, kilobytes >> 10);
        return Err(
            anyhow::anyhow!("the host has {there} MB of memory, --memory asks for {wanted} MB").into()
        );
    }
    Ok(())
}

fn uses_stdio(options: &Options) -> bool {
    let consoles = options.serial.iter().chain(&options.debugcon).chain(&options.monitor);
    consoles.chain(options.port_logs.iter().map(|log| &log.to)).any(|endpoint| *endpoint == Endpoint::Stdio)
}

/// Stdin has one reader, and a text screen fills the terminal.
fn check_stdio(options: &Options, display: Display) -> Result<(), Failure> {
    let readers = options.serial.iter().chain(&options.monitor).filter(|e| **e == Endpoint::Stdio).count();
    if readers > 1 {
        return Err(Failure::Usage("only one serial port or the monitor can have stdio".into()));
    }
    if options.serial.len() > SERIAL_PORTS {
        return Err(Failure::Usage(format!("a PC has {SERIAL_PORTS} serial ports")));
    }
    if display == Display::Terminal && uses_stdio(options) {
        return Err(Failure::Usage(
            "--display terminal needs stdio for itself: send the rest elsewhere".into(),
        ));
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(!bytes.is_empty(), "{} is empty", path.display());
    Ok(bytes)
}

/// Disks come first on the IDE channels; CD-ROM drives take the places from the secondary master on, as on most PCs.
fn attach_drives(
    options: &Options,
    config: &mut MachineConfig,
    mut scratch: Option<&mut Vec<Changes>>,
) -> Result<Vec<u8>, Failure> {
    let mut disk =
        |path: &Path, open: fn(&Path) -> anyhow::Result<RawImage>| -> anyhow::Result<Box<dyn Medium>> {
            let Some(list) = scratch.as_deref_mut() else { return Ok(Box::new(open(path)?)) };
            let medium = Scratch::new(Box::new(RawImage::open(path, true)?));
            list.push(medium.changes());
            Ok(Box::new(medium))
        };
    let (disks, cdroms) = (options.disks.len(), options.cdroms.len());
    if disks + cdroms > IDE_PLACES {
        return Err(Failure::Usage(format!(
            "{disks} disks and {cdroms} CD-ROM drives: {IDE_PLACES} fit together"
        )));
    }
    if options.floppies.len() > FLOPPIES {
        return Err(Failure::Usage(format!("a PC has {FLOPPIES} floppy drives")));
    }
    let mut free: Vec<usize> = vec![2, 3, 1, 0];
    for (place, path) in options.disks.iter().enumerate() {
        config.ide[place] = Some(IdeDrive::Disk(disk(path, |path| Ok(RawImage::open(path, false)?))?));
        free.retain(|&n| n != place);
    }
    let mut places = Vec::new();
    for (path, place) in options.cdroms.iter().zip(free) {
        config.ide[place] = Some(IdeDrive::CdRom(Some(Box::new(RawImage::open(path, true)?))));
        places.push(place as u8);
    }
    for (drive, path) in config.floppies.iter_mut().zip(&options.floppies) {
        *drive = Some(Some(disk(path, open_floppy)?));
    }
    Ok(places)
}

/// What the machine starts: a kernel, firmware if there is something to boot with it, or the built-in guest.
fn choose_guest(options: &Options, config: &mut MachineConfig, engine: &str) -> Result<String, Failure> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(kernel) = &options.kernel {
        if options.firmware.is_some() {
            return Err(Failure::Usage("--kernel starts without firmware: leave out --firmware".into()));
        }
        let modules = options.modules.iter().map(|module| {
            let (path, cmdline) = module.split_once(',').unwrap_or((module, ""));
            Ok(Module { data: read(Path::new(path))?, cmdline: cmdline.into() })
        });
        config.direct = Some(DirectBoot {
            kernel: read(kernel)?,
            kernel_name: kernel.to_string_lossy().into_owned(),
            initrd: options.initrd.as_deref().map(read).transpose()?,
            modules: modules.collect::<anyhow::Result<_>>()?,
            append: options.append.clone(),
            ..DirectBoot::default()
        });
        return Ok(name(kernel));
    }
    let media = || options.cdroms.iter().chain(&options.disks).chain(&options.floppies);
    if options.smoke || options.firmware.is_none() && media().next().is_none() {
        if options.cpu.features.ext1_edx & ext1::LM == 0 {
            let why = "the built-in guest needs 64-bit mode, which this --cpu has not: give a kernel, a disk, a CD or a floppy";
            return Err(anyhow::anyhow!(why).into());
        }
        let guest = builtin::Options { engine: engine.into(), smoke: options.smoke };
        config.direct = Some(DirectBoot::builtin(builtin::image(&guest)?));
        return Ok("built-in guest".into());
    }
    let installed = firmware::find_seabios();
    config.firmware = Some(match (&options.firmware, &installed) {
        (Some(path), _) => read(path)?,
        (None, Some((bios, _))) => read(bios)?,
        (None, None) => {
            let message = "booting from a drive needs firmware, and SeaBIOS is not installed: install the package \
                           `seabios`, or give --firmware FILE or --kernel FILE";
            return Err(anyhow::anyhow!(message).into());
        }
    });
    config.vga_bios = installed.map(|(_, vga)| read(&vga)).transpose()?;
    config.boot_order = boot_order(options);
    let first = |device: &BootDevice| match device {
        BootDevice::Disk => options.disks.first(),
        BootDevice::CdRom => options.cdroms.first(),
        BootDevice::Floppy => options.floppies.first(),
    };
    let started = config.boot_order.iter().find_map(first).or(options.firmware.as_ref());
    Ok(started.map(|path| name(path)).unwrap_or_default())
}

/// The order that was given, then what is left: disk, CD-ROM, floppy.
fn boot_order(options: &Options) -> Vec<BootDevice> {
    let mut order = options.boot.clone().map(|order| order.0).unwrap_or_default();
    for device in [BootDevice::Disk, BootDevice::CdRom, BootDevice::Floppy] {
        if !order.contains(&device) {
            order.push(device);
        }
    }
    order
}

/// Serial ports and debug consoles. The inputs are in the order of the serial ports.
fn open_ports(
    options: &Options,
    display: Display,
    config: &mut MachineConfig,
) -> Result<Vec<serial::Input>, Failure> {
    let mut endpoints = options.serial.clone();
    let monitor_has_stdio = options.monitor == Some(Endpoint::Stdio);
    if endpoints.is_empty() && display == Display::None && !monitor_has_stdio {
        endpoints.push(Endpoint::Stdio);
    }
    let mut inputs = Vec::new();
    for (port, endpoint) in (0u8..).zip(&endpoints) {
        let (sink, input) = serial::open(endpoint)?;
        config.sinks.extend(sink.map(|sink| (Console::Serial(port), sink)));
        inputs.push(input);
    }
    match &options.debugcon {
        Some(Endpoint::File(path)) => {
            let failed = || format!("cannot write {}", path.display());
            let file = std::fs::File::create(path).with_context(failed)?;
            config.sinks.push((Console::Firmware, Box::new(file.try_clone()?)));
            config.sinks.push((Console::Debug, Box::new(file)));
        }
        Some(_) => {
            config.sinks.push((Console::Debug, Box::new(stdout())));
            config.sinks.push((Console::Firmware, Box::new(stdout())));
        }
        None => {}
    }
    open_port_logs(options, config)?;
    Ok(inputs)
}

fn open_port_logs(options: &Options, config: &mut MachineConfig) -> Result<(), Failure> {
    if options.port_logs.len() > MAX_PORTS {
        return Err(Failure::Usage(format!("{MAX_PORTS} ports can be logged")));
    }
    for (number, log) in (0u8..).zip(&options.port_logs) {
        config.port_logs.push((log.port, log.format));
        let (sink, _) = serial::open(&log.to)?;
        config.sinks.extend(sink.map(|sink| (Console::Port(number), sink)));
    }
    Ok(())
}
