//! The command line.

use crate::switch_at::SwitchOption;
use crate::trace::Channel;
use clap::{Parser, ValueEnum};
use iced_x86::Mnemonic;
use std::ffi::OsString;
use std::path::PathBuf;
use trimaran_cpu::model::Model;
use trimaran_machine::firmware::BootDevice;
use trimaran_machine::port_log::Format;

const EXAMPLES: &str = "\
Examples:
  trimaran                                     the built-in guest, in a window
  trimaran run --cdrom debian.iso --memory 1G  boot a CD through SeaBIOS
  trimaran run --disk disk.img --cpus 2        boot a raw disk image
  trimaran run --kernel bzImage --initrd initrd.gz --append console=ttyS0 \\
               --display none --serial stdio   boot Linux without firmware
  trimaran run --smoke                         run the built-in guest as a self-test
  trimaran engines                             what can run guests here, and how fast
  trimaran lockstep --smoke                    compare two engines on it (`trimaran lockstep --help`)

In the window: click to give the mouse to the guest, Ctrl+Alt+G to take it back; Ctrl+Alt+E: the next engine.
On stdio and with --display terminal: Ctrl-A x quits, Ctrl-A e: the next engine, Ctrl-A Ctrl-A sends Ctrl-A.

Exit status:
  0  the guest powered off      4  --timeout ran out
  2  wrong usage                6  triple fault, with --no-reboot
  8  any other error           10  lockstep found a difference
                               12  all processors halted, with --exit-on-halt
                               odd: the guest wrote to the --debug-exit port: (value << 1) | 1";

/// A PC emulator: boots unmodified operating systems on an emulated x86 PC.
#[derive(Parser, Clone, Debug)]
#[command(name = "trimaran", version, override_usage = "trimaran [run] [OPTIONS]\n       trimaran engines\n       trimaran lockstep [OPTIONS]\n       trimaran conform [OPTIONS]", after_help = EXAMPLES)]
#[command(max_term_width = 100)]
pub struct Options {
    /// What runs the guest's instructions
    #[arg(long, value_enum, default_value = "auto", help_heading = "Machine")]
    pub engine: EngineName,
    /// Who plays the processor's local APIC under KVM
    #[arg(long, value_enum, value_name = "WHO", default_value = "user", help_heading = "Machine")]
    pub kvm_irqchip: IrqchipName,
    /// Which of the translator's back ends are used
    #[arg(long, value_enum, value_name = "TIER", help_heading = "Translator")]
    pub tier: Option<TierName>,
    /// Most host memory for translated code, for each processor; at most 1G
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_code_cache, help_heading = "Translator")]
    pub code_cache: u64,
    /// Name translated code in /tmp/perf-PID.map, for Linux' perf
    #[arg(long, help_heading = "Translator")]
    pub perf_map: bool,
    /// Print the region that is entered at this address: guest and host instructions
    #[arg(long, value_name = "RIP", value_parser = parse_address, help_heading = "Translator")]
    pub dump_region: Option<u64>,
    /// Translate only the first N regions: finds the one that goes wrong
    #[arg(long, value_name = "N", help_heading = "Translator")]
    pub first_regions: Option<u64>,
    /// Never link regions: finds a link that goes wrong
    #[arg(long, help_heading = "Translator")]
    pub no_links: bool,
    /// Translate only these instructions, by mnemonic; regions end before all others: finds the one that goes wrong
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = parse_mnemonic, help_heading = "Translator")]
    pub only_instructions: Vec<Mnemonic>,
    /// Every access looks into the TLB by itself: finds a shared look-up that goes wrong
    #[arg(long, help_heading = "Translator")]
    pub no_shared_checks: bool,
    /// Guest memory; K, M or G may follow the number (M if none does)
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory, help_heading = "Machine")]
    pub memory: u64,
    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Machine")]
    pub cpus: usize,
    /// Processor model, and features to add or take away: max,-aes,+rdpid; `--cpu help` lists them
    #[arg(long, value_name = "MODEL[,±FEATURE]", default_value = "x86-64-v2", value_parser = parse_model, help_heading = "Machine")]
    pub cpu: Model,
    /// Who computes for x87: software differs in the last place of transcendental functions, and is the same on any host
    #[arg(long, value_enum, default_value = "host", help_heading = "Machine")]
    pub fp: FloatingPoint,
    /// Same input, same run: virtual time, one instruction a nanosecond
    #[arg(long, help_heading = "Machine")]
    pub deterministic: bool,

    /// Linux bzImage, multiboot or PVH kernel to start without firmware
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for the kernel; the first module of a multiboot kernel
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = "Boot")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        default_value = "",
        hide_default_value = true,
        help_heading = "Boot"
    )]
    pub append: String,
    /// Further module of a multiboot or PVH kernel; its command line follows a comma
    #[arg(long = "module", value_name = "FILE[,TEXT]", requires = "kernel", help_heading = "Boot")]
    pub modules: Vec<String>,
    /// Firmware image instead of the installed SeaBIOS
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    pub firmware: Option<PathBuf>,
    /// What firmware boots from, in this order: c disk, d CD-ROM, a floppy
    #[arg(long, value_name = "c|d|a", value_parser = parse_boot, help_heading = "Boot")]
    pub boot: Option<BootOrder>,
    /// Run the built-in guest as a self-test: it prints a checksum and powers off
    #[arg(long, conflicts_with_all = ["kernel", "firmware"], help_heading = "Boot")]
    pub smoke: bool,

    /// Raw image of a hard disk (repeatable)
    #[arg(long = "disk", value_name = "FILE", help_heading = "Drives")]
    pub disks: Vec<PathBuf>,
    /// ISO image of a CD or DVD (repeatable)
    #[arg(long = "cdrom", value_name = "FILE", help_heading = "Drives")]
    pub cdroms: Vec<PathBuf>,
    /// Raw image of a diskette (repeatable)
    #[arg(long = "floppy", value_name = "FILE", help_heading = "Drives")]
    pub floppies: Vec<PathBuf>,

    /// Where the screen is shown: a window, as text in this terminal, nowhere [default: window, or terminal where there is no display]
    #[arg(long, value_enum, help_heading = "Screen and ports")]
    pub display: Option<Display>,
    /// COM1, and with more of this option COM2 to COM4: stdio, none, file:PATH, unix:PATH or tcp:HOST:PORT (the last
    /// two listen) [default: stdio with --display none, otherwise none]
    #[arg(long = "serial", value_name = "WHERE", value_parser = parse_endpoint, help_heading = "Screen and ports")]
    pub serial: Vec<Endpoint>,
    /// Debug console, ports 0xE9 and 0x402: stdio or file:PATH
    #[arg(long, value_name = "WHERE", value_parser = parse_debugcon, help_heading = "Screen and ports")]
    pub debugcon: Option<Endpoint>,
    /// Port at which a guest ends the program with a status of its own, such as 0xf4
    #[arg(long, value_name = "PORT", value_parser = parse_port, help_heading = "Screen and ports")]
    pub debug_exit: Option<u16>,
    /// What QEMU's pc-testdev offers test kernels: echo ports 0xE0 and 0xE8, page flush 0xE4, interrupt lines from 0x2000,
    /// memory at 0xFF000000; and --debug-exit 0xf4 if none is given
    #[arg(long, help_heading = "Screen and ports")]
    pub testdev: bool,
    /// Write down what the guest writes to an I/O port, such as POST codes: a line a write, in hexadecimal; with
    /// text: before WHERE the bytes as they are; WHERE is a file or stdio (up to 16 times)
    #[arg(long = "port-log", value_name = "PORT=WHERE", value_parser = parse_port_log, help_heading = "Screen and ports")]
    pub port_logs: Vec<PortLog>,
    /// Monitor that inspects and controls the machine: stdio or unix:PATH
    #[arg(long, value_name = "WHERE", value_parser = parse_monitor, help_heading = "Screen and ports")]
    pub monitor: Option<Endpoint>,

    /// End instead of starting again when the guest resets
    #[arg(long, help_heading = "Run")]
    pub no_reboot: bool,
    /// End with status 12 when all processors have halted with interrupts disabled, as test ROMs do at their end
    #[arg(long, help_heading = "Run")]
    pub exit_on_halt: bool,
    /// End after this time, with status 4
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, help_heading = "Run")]
    pub timeout: Option<f64>,
    /// Change the engine when something happens: rip=ADDRESS (of an instruction), port=PORT (is accessed), insns=COUNT (on
    /// the first processor) or serial=TEXT (on COM1), then a colon and the engine, or `trace`: the interpreter, which writes
    /// down what it does; each fires once (repeatable)
    #[arg(long, value_name = "TRIGGER:ENGINE", value_parser = crate::switch_at::parse, help_heading = "Run")]
    pub switch_at: Vec<SwitchOption>,
    /// What `--switch-at ...:trace` writes down, and where: [insn,mem,io] [rip=FROM-TO] [cpu=N] [FILE]
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true, value_parser = crate::tracer::check, help_heading = "Run")]
    pub trace_steps: String,
    /// Print instructions, seconds, MIPS and hit rates at the end
    #[arg(long, help_heading = "Run")]
    pub stats: bool,
    /// Write the screen to a PNG file at the end
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub screendump: Option<PathBuf>,
    /// Print what happens in parts of the machine; `help` lists them
    #[arg(long, value_name = "CHANNEL,...", value_delimiter = ',', value_parser = crate::trace::parse, help_heading = "Run")]
    pub trace: Vec<&'static Channel>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// The fastest that works here
    Auto,
    /// Translates guest code to host code
    Jit,
    /// Interprets every instruction
    Interp,
    /// The host's processor runs the guest (Linux, x86-64; `trimaran engines` tells more)
    Kvm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IrqchipName {
    /// Trimaran's own chip
    User,
    /// The kernel, for machines with one processor (see docs/switching.md)
    Split,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TierName {
    /// None: interprets
    Interp,
    /// The single-pass emitter (x86-64 hosts)
    Emit,
    /// Cranelift for all warm code
    Cranelift,
    /// The emitter, then Cranelift for hot code
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatingPoint {
    /// The host's own unit (x86-64 hosts; software elsewhere)
    Host,
    /// Portable software
    Soft,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Display {
    Window,
    Terminal,
    None,
}

/// A port whose writes are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortLog {
    pub port: u16,
    pub format: Format,
    /// Stdio or a file.
    pub to: Endpoint,
}

/// Where bytes go to and come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Stdio,
    None,
    File(PathBuf),
    Unix(PathBuf),
    Tcp(String),
}

/// Run a guest on two engines, compare all of the machines, and find the first instruction that differs.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "trimaran lockstep",
    override_usage = "trimaran lockstep [--a ENGINE] [--b ENGINE] [OPTIONS]"
)]
#[command(max_term_width = 100)]
pub struct LockstepOptions {
    /// The first engine
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "interp", help_heading = "Lockstep")]
    pub a: EngineName,
    /// The second engine
    #[arg(long, value_enum, value_name = "ENGINE", default_value = "jit", help_heading = "Lockstep")]
    pub b: EngineName,
    /// Instructions from one comparison of the processors to the next [default: 1000000; KVM: each device access]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Lockstep")]
    pub every: Option<u64>,
    /// End after so many instructions
    #[arg(long, value_name = "N", help_heading = "Lockstep")]
    pub insns: Option<u64>,
    /// End after this time
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, help_heading = "Lockstep")]
    pub seconds: Option<f64>,
    #[command(flatten)]
    pub machine: Options,
}

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Task {
    Run(Options),
    Lockstep(LockstepOptions),
}

impl Task {
    /// Reads the command line; ends the program where it is wrong. `run` may stand first and changes nothing.
    pub fn from_command_line() -> Self {
        let mut arguments: Vec<OsString> = std::env::args_os().collect();
        match arguments.get(1).and_then(|word| word.to_str()) {
            Some("lockstep") => {
                arguments.remove(1);
                Task::Lockstep(LockstepOptions::parse_from(arguments))
            }
            first => {
                if first == Some("run") {
                    arguments.remove(1);
                }
                Task::Run(Options::parse_from(arguments))
            }
        }
    }

    /// The machine's options.
    pub fn options(&self) -> &Options {
        match self {
            Task::Run(options) => options,
            Task::Lockstep(lockstep) => &lockstep.machine,
        }
    }
}

pub fn parse_address(text: &str) -> Result<u64, String> {
    let digits = text.trim().trim_start_matches("0x");
    u64::from_str_radix(digits, 16).map_err(|_| "give a linear address in hexadecimal".to_string())
}

fn parse_mnemonic(text: &str) -> Result<Mnemonic, String> {
    let named = |m: &Mnemonic| format!("{m:?}").eq_ignore_ascii_case(text);
    Mnemonic::values()
        .find(named)
        .ok_or_else(|| "there is no such instruction; write ADD,MOV or the like".into())
}

fn parse_code_cache(text: &str) -> Result<u64, String> {
    match parse_memory(text)? {
        bytes if bytes > trimaran_jit::MOST_CODE as u64 => Err("translated code has 1G at most".into()),
        bytes => Ok(bytes),
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let upper = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
    let (number, unit) = match upper.char_indices().next_back() {
        Some((at, 'K')) => (&upper[..at], 1 << 10),
        Some((at, 'M')) => (&upper[..at], 1 << 20),
        Some((at, 'G')) => (&upper[..at], 1 << 30),
        Some((at, 'T')) => (&upper[..at], 1 << 40),
        _ => (upper, 1 << 20),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "give a whole number with K, M or G behind it, such as 512M".to_string())?;
    let bytes = number.checked_mul(unit).ok_or("that is more than 64 bits can count")?;
    match bytes {
        0 => Err("a machine needs memory; try 512M".into()),
        bytes if bytes < 1 << 20 => Err("a PC needs 1M at least".into()),
        bytes if !bytes.is_multiple_of(1 << 20) => Err("give whole megabytes".into()),
        bytes => Ok(bytes),
    }
}

fn parse_model(text: &str) -> Result<Model, String> {
    Model::parse(text).map_err(|why| why.to_string())
}

/// Letters of `--boot`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootOrder(pub Vec<BootDevice>);

fn parse_boot(text: &str) -> Result<BootOrder, String> {
    let device = |letter| match letter {
        'a' => Ok(BootDevice::Floppy),
        'c' => Ok(BootDevice::Disk),
        'd' => Ok(BootDevice::CdRom),
        _ => Err(format!("`{letter}` is no device; the letters are c (disk), d (CD-ROM) and a (floppy)")),
    };
    let order: Vec<BootDevice> = text.chars().map(device).collect::<Result<_, _>>()?;
    let twice = order.iter().enumerate().any(|(n, device)| order[..n].contains(device));
    match order.len() {
        0 => Err("name at least one device: c, d or a".into()),
        _ if twice => Err("a device stands there twice".into()),
        _ => Ok(BootOrder(order)),
    }
}

fn endpoint(text: &str) -> Option<Endpoint> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    Some(match (kind, rest) {
        ("stdio", "") => Endpoint::Stdio,
        ("none", "") => Endpoint::None,
        ("file", path) if !path.is_empty() => Endpoint::File(path.into()),
        ("unix", path) if !path.is_empty() => Endpoint::Unix(path.into()),
        ("tcp", address) => {
            let (host, port) = address.rsplit_once(':')?;
            port.parse::<u16>().ok()?;
            Endpoint::Tcp(format!("{}:{port}", if host.is_empty() { "127.0.0.1" } else { host }))
        }
        _ => return None,
    })
}

fn parse_endpoint(text: &str) -> Result<Endpoint, String> {
    endpoint(text).ok_or_else(|| "give stdio, none, file:PATH, unix:PATH or tcp:HOST:PORT".into())
}

fn parse_debugcon(text: &str) -> Result<Endpoint, String> {
    let fits = |e: &Endpoint| matches!(e, Endpoint::Stdio | Endpoint::File(_));
    endpoint(text).filter(fits).ok_or_else(|| "give stdio or file:PATH".into())
}

fn parse_monitor(text: &str) -> Result<Endpoint, String> {
    let fits = |e: &Endpoint| matches!(e, Endpoint::Stdio | Endpoint::Unix(_));
    endpoint(text).filter(fits).ok_or_else(|| "give stdio or unix:PATH".into())
}

pub fn parse_port(text: &str) -> Result<u16, String> {
    let port = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    port.map_err(|_| "give a port from 0 to 0xffff, such as 0xf4".into())
}

fn parse_port_log(text: &str) -> Result<PortLog, String> {
    let (port, place) =
        text.split_once('=').filter(|(_, place)| !place.is_empty()).ok_or("give PORT=FILE or PORT=stdio")?;
    let (format, place) = match place.strip_prefix("text:") {
        Some(place) => (Format::Text, place),
        None => (Format::Hex, place),
    };
    let to = if place == "stdio" { Endpoint::Stdio } else { Endpoint::File(place.into()) };
    Ok(PortLog { port: parse_port(port)?, format, to })
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    const LONGEST: f64 = 1e9;
    let seconds: Option<f64> = text.parse().ok();
    seconds.filter(|s| *s > 0.0 && *s <= LONGEST).ok_or_else(|| "give a number of seconds above 0".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
        LockstepOptions::command().debug_assert();
    }

    #[test]
    fn memory_sizes() {
        assert_eq!(parse_memory("512M"), Ok(512 << 20));
        assert_eq!(parse_memory("2g"), Ok(2 << 30));
        assert_eq!(parse_memory("64"), Ok(64 << 20));
        assert_eq!(parse_memory("2048K"), Ok(2 << 20));
        for wrong in ["", "0", "0M", "1K", "1025K", "-1", "99999999999T", "much", "1.5G"] {
            assert!(parse_memory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mnemonics() {
        assert_eq!(parse_mnemonic("Add"), Ok(Mnemonic::Add));
        assert!(parse_mnemonic("").is_err() && parse_mnemonic("addd").is_err());
    }

    #[test]
    fn endpoints() {
        assert_eq!(parse_endpoint("tcp::5555"), Ok(Endpoint::Tcp("127.0.0.1:5555".into())));
        assert_eq!(parse_endpoint("file:a:b"), Ok(Endpoint::File("a:b".into())));
        for wrong in ["", "file:", "tcp:host", "tcp:host:99999", "pty", "stdio:x"] {
            assert!(parse_endpoint(wrong).is_err(), "{wrong}");
        }
        assert!(parse_debugcon("unix:a").is_err() && parse_monitor("file:a").is_err());
        assert_eq!(parse_boot("dc"), Ok(BootOrder(vec![BootDevice::CdRom, BootDevice::Disk])));
        assert!(parse_boot("cc").is_err() && parse_boot("x").is_err() && parse_boot("").is_err());
        let log = PortLog { port: 0x80, format: Format::Hex, to: Endpoint::File("post.txt".into()) };
        assert_eq!(parse_port_log("0x80=post.txt"), Ok(log));
        let text = PortLog { port: 0x3BC, format: Format::Text, to: Endpoint::Stdio };
        assert_eq!(parse_port_log("0x3bc=text:stdio"), Ok(text));
        assert!(["0x80", "0x80=", "=x", "65536=x"].iter().all(|text| parse_port_log(text).is_err()));
        assert_eq!((parse_port("0xf4"), parse_port("244")), (Ok(0xF4), Ok(0xF4)));
    }
}
