//! A whole machine under test: its serial port and screen are read, keys and lines are typed.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use trimaran_cpu::engine::EngineFactory;
use trimaran_machine::{Console, Machine, MachineConfig, Outcome};

/// Where `cargo x guests` unpacked Debian's packages, or None. `TRIMARAN_GUESTS` names another folder.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("TRIMARAN_GUESTS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.cache/guests"), PathBuf::from);
    folder.is_dir().then_some(folder)
}

/// A file of a guest package; the error names the package.
pub fn file(package: &str, path: &str) -> Result<PathBuf, String> {
    let missing = || format!("skipped: {path} of Debian package {package} is missing; run `cargo x guests`");
    let file = folder().ok_or_else(missing)?.join(path);
    if file.exists() { Ok(file) } else { Err(missing()) }
}

pub fn bytes(package: &str, path: &str) -> Result<Vec<u8>, String> {
    let file = file(package, path)?;
    std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))
}

/// Collects a console's bytes.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl Collector {
    fn text(&self) -> String {
        let bytes = self.0.lock().map(|b| b.clone()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for Collector {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Ok(mut all) = self.0.lock() {
            all.extend(bytes);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A running machine.
pub struct Guest {
    pub machine: Machine,
    serial: Collector,
    /// Serial bytes that `expect` has passed.
    seen: usize,
}

impl Guest {
    /// Starts a machine, COM1 collected.
    pub fn start(config: MachineConfig) -> Result<Self, String> {
        let mut guest = Self::create(config, &crate::engine::from_environment()?)?;
        guest.machine.start();
        Ok(guest)
    }

    /// The same, not started yet.
    pub fn create(mut config: MachineConfig, factory: &Arc<dyn EngineFactory>) -> Result<Self, String> {
        let serial = Collector::default();
        config.sinks.push((Console::Serial(0), Box::new(serial.clone())));
        let machine = Machine::new(config, factory).map_err(|e| e.to_string())?;
        Ok(Guest { machine, serial, seen: 0 })
    }

    /// Everything that came over COM1.
    pub fn serial(&self) -> String {
        self.serial.text()
    }

    /// Ends the machine, and has everything that it sent: its consoles' thread may be far behind on a busy host.
    pub fn into_serial(self) -> String {
        drop(self.machine);
        self.serial.text()
    }

    /// Waits for a text on COM1, after what earlier calls found.
    pub fn expect(&mut self, text: &str, seconds: u64) -> Result<(), String> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let all = self.serial();
            let start = all.floor_char_boundary(self.seen.min(all.len()));
            if let Some(at) = all[start..].find(text) {
                self.seen = start + at + text.len();
                return Ok(());
            }
            if Instant::now() > end || self.machine.outcome().is_some() {
                let tail = &all[all.floor_char_boundary(all.len().saturating_sub(2000))..];
                return Err(format!(
                    "no {text:?} on COM1 within {seconds} s; its end:\n{tail}\n{}",
                    self.screen()
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// As `expect`; what stands between the last text that was found and this one.
    pub fn until(&mut self, text: &str, seconds: u64) -> Result<String, String> {
        let start = self.seen;
        self.expect(text, seconds)?;
        let all = self.serial();
        Ok(all.get(start..self.seen - text.len()).unwrap_or_default().to_owned())
    }

    /// The text screen.
    pub fn screen(&self) -> String {
        self.machine.screen_text()
    }

    /// Waits until the text screen satisfies `f`.
    pub fn screen_until(&self, what: &str, seconds: u64, f: impl Fn(&str) -> bool) -> Result<String, String> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let screen = self.screen();
            if f(&screen) {
                return Ok(screen);
            }
            if Instant::now() > end || self.machine.outcome().is_some() {
                return Err(format!(
                    "no {what} on the screen within {seconds} s:\n{screen}\n{}",
                    self.serial()
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn screen_shows(&self, text: &str, seconds: u64) -> Result<String, String> {
        self.screen_until(text, seconds, |screen| screen.contains(text))
    }

    /// Types a line on the keyboard of a guest that echoes it after `prompt`, a few keys at a time: a BIOS holds 15.
    pub fn type_line(&self, prompt: &str, line: &str) -> Result<(), String> {
        let characters: Vec<char> = line.chars().collect();
        for (n, part) in characters.chunks(8).enumerate() {
            self.machine.type_text(&part.iter().collect::<String>());
            let so_far: String = characters[..(n * 8 + part.len())].iter().collect();
            self.screen_shows(&format!("{prompt}{}", so_far.trim_end()), 200)?;
        }
        self.machine.type_text("\n");
        Ok(())
    }

    /// Types a line on COM1.
    pub fn line(&mut self, text: &str) {
        self.seen = self.serial().len();
        self.machine.serial_input(0, format!("{text}\n").as_bytes());
    }

    /// Waits for the end.
    pub fn ends(&self, seconds: u64) -> Result<Outcome, String> {
        let outcome = self.machine.wait_for(Duration::from_secs(seconds));
        outcome
            .ok_or_else(|| format!("still running after {seconds} s:\n{}\n{}", self.screen(), self.serial()))
    }
}
