//! A running machine and what the frontend knows about it: which drive is which, and who wants it to end.

use anyhow::{Context, bail};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use trimaran_machine::Machine;
use trimaran_machine::media::RawImage;

pub struct Session {
    pub machine: Machine,
    /// What runs, for titles.
    pub guest: String,
    /// IDE places (0 to 3) of the CD-ROM drives.
    pub cdroms: Vec<u8>,
    quit: AtomicBool,
}

impl Session {
    pub fn new(machine: Machine, guest: String, cdroms: Vec<u8>) -> Self {
        Session { machine, guest, cdroms, quit: AtomicBool::new(false) }
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
