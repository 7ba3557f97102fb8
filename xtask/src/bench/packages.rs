//! The Debian packages that the guest's programs come from: fetched and unpacked, never installed.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGES: &[&str] = &[
    "dash",
    "coreutils",
    "openssl",
    "gzip",
    "xz-utils",
    "zstd",
    "7zip",
    "lua5.4",
    "python3-minimal",
    "sqlite3",
    "mawk",
    "gawk",
    "cpp",
    "bc",
    "stress-ng",
];

/// The folder with all packages and what they depend on, unpacked over each other.
pub fn unpacked(folder: &Path) -> Result<PathBuf> {
    let packages = folder.join("packages");
    let done = folder.join("packages.done");
    // The list is in the stamp, so that a longer list is fetched anew.
    if std::fs::read_to_string(&done).is_ok_and(|list| list == PACKAGES.join(" ")) {
        return Ok(packages);
    }
    fetch(PACKAGES, folder, &packages)?;
    std::fs::write(&done, PACKAGES.join(" "))
        .with_context(|| format!("{}: cannot be written", done.display()))?;
    Ok(packages)
}

/// Fetches packages and everything they depend on, and unpacks them into `to`.
pub fn fetch(packages: &[&str], folder: &Path, to: &Path) -> Result<()> {
    println!("fetching Debian packages {} and what they depend on", packages.join(", "));
    let debs = folder.join("debs");
    for path in [&debs, to] {
        if path.exists() {
            std::fs::remove_dir_all(path)
                .with_context(|| format!("{}: cannot be emptied", path.display()))?;
        }
        std::fs::create_dir_all(path).with_context(|| format!("{}: cannot be made", path.display()))?;
    }
    let out = Command::new("apt-get").arg("download").args(closure(packages)?).current_dir(&debs).output();
    let out = out.context("apt-get cannot be started; the guests' programs come from Debian packages")?;
    if !out.status.success() {
        bail!("apt-get download: {}(`apt-get update` may help)", String::from_utf8_lossy(&out.stderr));
    }
    for deb in std::fs::read_dir(&debs)? {
        let deb = deb?.path();
        let status =
            Command::new("dpkg").arg("-x").arg(&deb).arg(to).status().context("dpkg cannot be started")?;
        if !status.success() {
            bail!("{}: dpkg -x failed", deb.display());
        }
    }
    std::fs::remove_dir_all(&debs).with_context(|| format!("{}: cannot be removed", debs.display()))
}

fn closure(packages: &[&str]) -> Result<BTreeSet<String>> {
    let without = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"];
    let out = Command::new("apt-cache")
        .args(["depends", "--recurse"])
        .args(without.map(|kind| format!("--no-{kind}")))
        .args(packages)
        .output()
        .context("apt-cache cannot be started")?;
    if !out.status.success() {
        bail!("apt-cache depends: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    // Packages stand at the start of a line; what they depend on is indented, virtual packages are in <>. Foreign
    // architectures have a colon.
    let text = String::from_utf8_lossy(&out.stdout);
    let names =
        text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_alphanumeric()) && !l.contains(':'));
    Ok(names.map(str::to_owned).collect())
}
