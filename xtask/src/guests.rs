//! Guest systems for the tests, from Debian packages: fetched with `apt-get download`, unpacked with `dpkg -x`, never
//! installed and never committed.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Package, and a file that shows that it is unpacked.
const PACKAGES: &[(&str, &str)] = &[
    ("seabios", "usr/share/seabios/bios-256k.bin"),
    ("memtest86+", "boot/memtest86+x64.bin"),
    ("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso"),
    ("busybox-static", "bin/busybox"),
    ("openssl", "usr/bin/openssl"),
    ("libssl3", "usr/lib/x86_64-linux-gnu/libcrypto.so.3"),
    ("libc6", "lib/x86_64-linux-gnu/libc.so.6"),
    (
        "debian-installer-12-netboot-i386",
        "usr/lib/debian-installer/images/12/i386/text/debian-installer/i386/linux",
    ),
    (
        "debian-installer-12-netboot-amd64",
        "usr/lib/debian-installer/images/12/amd64/gtk/debian-installer/amd64/linux",
    ),
];

/// Where guests are unpacked.
pub fn folder(root: &Path) -> PathBuf {
    root.join(".cache/guests")
}

/// Fetches what is missing; returns the packages that could not be had.
pub fn fetch(root: &Path) -> Result<Vec<String>> {
    let folder = folder(root);
    std::fs::create_dir_all(&folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    let mut missing = Vec::new();
    for (package, shows) in PACKAGES {
        if !folder.join(shows).exists() && !unpack(package, &folder) {
            missing.push((*package).to_owned());
        }
    }
    // The kernel's package has its version in its name; linux-image-amd64 depends on the current one.
    if !folder.join("vmlinuz").exists() && kernel(&folder).is_none() {
        missing.push("linux-image-amd64".into());
    }
    Ok(missing)
}

fn unpack(package: &str, folder: &Path) -> bool {
    println!("fetching Debian package {package}");
    let debs = folder.join("debs").join(package);
    if std::fs::create_dir_all(&debs).is_err() {
        return false;
    }
    let downloaded = quiet(Command::new("apt-get").args(["download", package]).current_dir(&debs));
    let Some(deb) = std::fs::read_dir(&debs).ok().and_then(|mut d| d.next()?.ok()) else { return false };
    let unpacked = downloaded && quiet(Command::new("dpkg").arg("-x").arg(deb.path()).arg(folder));
    // The archive has served; a missing one is fetched again.
    std::fs::remove_dir_all(&debs).is_ok() && unpacked
}

fn kernel(folder: &Path) -> Option<()> {
    let out = Command::new("apt-cache").args(["depends", "linux-image-amd64"]).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let package = text.lines().find_map(|l| l.trim().strip_prefix("Depends: linux-image-"))?;
    let package = format!("linux-image-{package}");
    if !unpack(&package, folder) {
        return None;
    }
    let version = package.trim_start_matches("linux-image-").to_owned();
    std::fs::copy(folder.join(format!("boot/vmlinuz-{version}")), folder.join("vmlinuz")).ok()?;
    Some(())
}

fn quiet(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}
