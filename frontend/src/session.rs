//! A running machine and what the frontend knows about it: which drive is which, which engines there are, and who
//! wants it to end.

use crate::engine_list::EngineList;
use crate::tracer::{self, Sink, Tracing};
use anyhow::{Context, bail, ensure};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use trimaran_cpu::engine::EngineFactory;
use trimaran_machine::Machine;
use trimaran_machine::media::RawImage;

pub struct Session {
    pub machine: Machine,
    /// What runs, for titles.
    pub guest: String,
    /// IDE places (0 to 3) of the CD-ROM drives.
    pub cdroms: Vec<u8>,
    engines: EngineList,
    trace: Mutex<Option<Trace>>,
    quit: AtomicBool,
}

/// A trace that is being written, and what ran before.
struct Trace {
    sink: Arc<Sink>,
    before: Arc<dyn EngineFactory>,
}

impl Session {
    pub fn new(machine: Machine, guest: String, cdroms: Vec<u8>, engines: EngineList) -> Self {
        let (trace, quit) = (Mutex::default(), AtomicBool::new(false));
        Session { machine, guest, cdroms, engines, trace, quit }
    }

    /// Lets the engine of this name run the guest from here on.
    pub fn change_engine(&self, name: &str) -> anyhow::Result<String> {
        let factory = self.engines.named(name)?;
        let now = self.machine.engine_name();
        ensure!(factory.name() != now, "the engine is {now} already");
        let report = self.machine.switch_engine(&factory).with_context(|| format!("{now} goes on"))?;
        let milliseconds = report.stood.as_secs_f64() * 1e3;
        Ok(format!("{} -> {}: the guest stood for {milliseconds:.2} ms\n", report.from, report.to))
    }

    /// Lets the next engine that can run the guest; what there is to say.
    pub fn next_engine(&self) -> String {
        let mut said = String::new();
        for name in self.engines.after(self.machine.engine_name()) {
            match self.change_engine(&name) {
                Ok(report) => return said + "trimaran: " + &report,
                Err(error) => said += &format!("trimaran: {error:#}\n"),
            }
        }
        said
    }

    /// Has every instruction written down, as a filter says.
    pub fn trace_on(&self, words: &str) -> anyhow::Result<String> {
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(trace.is_none(), "a trace is being written already; `trace off` ends it");
        let (tracing, path) = Tracing::create(words)?;
        let (sink, before) = (tracing.sink.clone(), self.machine.engine());
        let tracing: Arc<dyn EngineFactory> = Arc::new(tracing);
        self.machine.switch_engine(&tracing)?;
        let name = before.name();
        *trace = Some(Trace { sink, before });
        Ok(format!("tracing to {}; `trace off` goes back to {name}\n", path.display()))
    }

    /// Goes back to the engine before [`Session::trace_on`].
    pub fn trace_off(&self) -> anyhow::Result<String> {
        let mut trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Trace { sink, before }) = trace.take() else {
            ensure!(
                self.machine.engine_name() != tracer::NAME,
                "--switch-at began this trace: `engine NAME` ends it"
            );
            bail!("no trace is being written");
        };
        // Somebody may have changed the engine meanwhile.
        if self.machine.engine_name() == tracer::NAME {
            self.machine.switch_engine(&before).or_else(|error| {
                eprintln!("trimaran: {error}; the interpreter goes on");
                self.machine.switch_engine(&self.engines.named("interp")?).map_err(anyhow::Error::from)
            })?;
        }
        sink.finish()
    }

    /// The user wants the program to end.
    pub fn quit(&self) {
        self.quit.store(true, SeqCst);
        self.machine.quit();
    }

    pub fn quitting(&self) -> bool {
        self.quit.load(SeqCst)
    }

    /// Puts an image into `cdrom`, `cdrom1` …, `floppy` or `floppy1`, or takes out what is there.
    pub fn change(&self, drive: &str, image: Option<&Path>) -> anyhow::Result<()> {
        let name = drive.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: usize = match &drive[name.len()..] {
            "" => 0,
            digits => digits.parse().context("that number is too large")?,
        };
        match name {
            "cdrom" => {
                let Some(&place) = self.cdroms.get(number) else {
                    bail!("there is no {drive}; the machine has {} CD-ROM drives", self.cdroms.len());
                };
                let medium = image.map(|path| RawImage::open(path, true)).transpose()?;
                self.machine.change_disc(place, medium.map(|image| Box::new(image) as _))?;
            }
            "floppy" => {
                let number = u8::try_from(number).unwrap_or(u8::MAX);
                let medium = image.map(open_floppy).transpose()?;
                self.machine.change_floppy(number, medium.map(|image| Box::new(image) as _))?;
            }
            _ => bail!("`{drive}` is no drive with a medium to change; the names are cdrom and floppy"),
        }
        Ok(())
    }
}

/// Opens a diskette for writing if its file allows that.
pub fn open_floppy(path: &Path) -> anyhow::Result<RawImage> {
    let read_only = std::fs::metadata(path).is_ok_and(|file| file.permissions().readonly());
    Ok(RawImage::open(path, read_only)?)
}
