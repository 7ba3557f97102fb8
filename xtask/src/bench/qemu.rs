//! QEMU, which the table compares with: installed, or unpacked from Debian's packages.

use super::packages;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The model that shows a guest what ours (x86-64-v2 with AES and some more) shows; `features` checks it.
pub const SAME_CPU: &str = "Westmere,+erms,+rdrand,+movbe,+xsave,+xsaveopt,+smep,+smap,+umip,+rdtscp,+pdpe1gb,\
                            +fsgsbase,+monitor";

pub struct Qemu {
    pub program: PathBuf,
    /// What must stand before all other arguments.
    pub arguments: Vec<OsString>,
    /// Where it has its modules, if not where it was built for.
    pub modules: Option<PathBuf>,
    pub version: String,
}

pub fn find(folder: &Path) -> Result<Qemu> {
    if let Ok(qemu) = installed() {
        return Ok(qemu);
    }
    println!("qemu-system-x86_64 is not installed; trying apt-get install");
    let install = ["install", "-y", "--no-install-recommends", "qemu-system-x86"];
    let tried = Command::new("apt-get").args(install).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if tried.is_ok_and(|status| status.success()) {
        return installed();
    }
    unpacked(folder).context("QEMU is missing: `apt-get install qemu-system-x86`, as root, would help")
}

fn installed() -> Result<Qemu> {
    let program = PathBuf::from("qemu-system-x86_64");
    let version = version(&program, &[])?;
    Ok(Qemu { program, arguments: Vec::new(), modules: None, version })
}

/// Without root: the packages unpacked, started by their own loader.
fn unpacked(folder: &Path) -> Result<Qemu> {
    let to = folder.join("qemu");
    let program = to.join("usr/bin/qemu-system-x86_64");
    if !program.exists() {
        packages::fetch(&["qemu-system-x86", "seabios"], folder, &to)?;
    }
    let libraries =
        ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio"];
    let libraries: Vec<_> = libraries.iter().map(|l| to.join(l).display().to_string()).collect();
    let loader = to.join(libraries_loader(&to));
    let mut arguments: Vec<OsString> =
        vec!["--library-path".into(), libraries.join(":").into(), program.into()];
    let version = version(&loader, &arguments)?;
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        arguments.extend(["-L".into(), to.join(data).into()]);
    }
    let modules = Some(to.join("usr/lib/x86_64-linux-gnu/qemu"));
    Ok(Qemu { program: loader, arguments, modules, version })
}

fn libraries_loader(to: &Path) -> &'static str {
    let merged = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
    if to.join(merged).exists() { merged } else { "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" }
}

fn version(program: &Path, arguments: &[OsString]) -> Result<String> {
    let out = Command::new(program).args(arguments).arg("--version").output();
    let out = out.with_context(|| format!("{} cannot be started", program.display()))?;
    if !out.status.success() {
        bail!("{} --version: {}", program.display(), String::from_utf8_lossy(&out.stderr).trim());
    }
    let text = String::from_utf8_lossy(&out.stdout);
    Ok(text.lines().next().unwrap_or_default().trim_start_matches("QEMU emulator version ").to_owned())
}
