//! What an emulator takes of the host's memory beside the guest's RAM, from Linux's `smaps`.

use anyhow::{Context, Result, bail};
use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const GUEST: u64 = 512 << 20;

/// Resident memory in bytes.
pub struct Resident {
    /// Of the guest's RAM: what it has touched.
    pub guest: u64,
    pub rest: u64,
}

impl fmt::Display for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (guest, rest) = (self.guest >> 20, self.rest >> 20);
        write!(f, "{rest} MB of host memory beside {guest} MB of guest RAM that it has touched")
    }
}

/// Boots Linux to a sleeping first process, waits a little, and looks.
pub fn idle(engine: &str, trimaran: &Path, kernel: &Path, initrd: &Path) -> Result<Resident> {
    let mut child = Command::new(trimaran)
        .args(["run", "--engine", engine, "--memory", "512M", "--display", "none", "--serial", "stdio"])
        .args(["--append", "console=ttyS0 quiet panic=-1", "--timeout", "300", "--kernel"])
        .arg(kernel)
        .arg("--initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be started", trimaran.display()))?;
    let output = child.stdout.take().context("no output")?;
    let started = Instant::now();
    let up = BufReader::new(output)
        .split(b'\n')
        .map_while(Result::ok)
        .any(|line| line.windows(8).any(|part| part == b"@@ idle "));
    std::thread::sleep(Duration::from_secs(5));
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", child.id()));
    // It may have ended by itself.
    let _ = child.kill();
    child.wait()?;
    if !up {
        bail!("the idle guest did not come up in {:?}", started.elapsed());
    }
    Ok(resident(&smaps.context("no smaps: this needs Linux")?))
}

/// The guest's RAM is the mapping that is large enough, and no memory for code.
fn resident(smaps: &str) -> Resident {
    let mut sum = Resident { guest: 0, rest: 0 };
    let (mut code, mut size) = (false, 0);
    for line in smaps.lines() {
        let bytes = |text: &str| text.split_whitespace().next()?.parse::<u64>().ok().map(|k| k << 10);
        if let Some(kilobytes) = line.strip_prefix("Size:") {
            size = bytes(kilobytes).unwrap_or(0);
        } else if let Some(kilobytes) = line.strip_prefix("Rss:") {
            let is_guest = size >= GUEST && !code;
            *(if is_guest { &mut sum.guest } else { &mut sum.rest }) += bytes(kilobytes).unwrap_or(0);
        } else if line.contains('-') && line.split(' ').next().is_some_and(|range| !range.ends_with(':')) {
            code = line.contains("trimaran code");
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_ram_is_told_from_the_rest() {
        let smaps = "7f00-7f10 rw-p 0 00:00 0\nSize: 524288 kB\nRss: 1024 kB\nPss: 9 kB\n\
                     7f20-7f30 r-xs 0 00:01 5 /memfd:trimaran code (deleted)\nSize: 600000 kB\nRss: 2048 kB\n\
                     7f40-7f50 rw-p 0 00:00 0 [heap]\nSize: 100 kB\nRss: 50 kB\n";
        let sum = resident(smaps);
        assert_eq!((sum.guest, sum.rest), (1 << 20, (2048 + 50) << 10));
    }
}
