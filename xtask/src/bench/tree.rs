//! The guest's files: programs, the libraries they need, data, and the script; as a folder and as an initrd.

use super::{data, programs::Row};
use anyhow::{Context, Result, bail};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Programs by name; cc1 is looked for apart.
const PROGRAMS: &[&str] = &[
    "dash",
    "cat",
    "true",
    "dd",
    "rm",
    "head",
    "tail",
    "cksum",
    "sort",
    "gzip",
    "openssl",
    "xz",
    "zstd",
    "7zz",
    "lua5.4",
    "python3",
    "sqlite3",
    "mawk",
    "gawk",
    "bc",
    "stress-ng",
];

const LIBRARIES: &[&str] = &["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Runs in the guest as the first process. Only dash runs the script: busybox's own shell would take its own sort, gzip and so on.
const INIT: &str = "#!/bin/busybox sh
echo '@@ boot end status=0'
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox sed -n 's/^flags[^:]*:/@@ cpu flags/p; s/^vendor_id[^:]*:/@@ cpu vendor/p' /proc/cpuinfo
echo \"@@ kernel $(/bin/busybox uname -r)\"
/usr/bin/sh /bench.sh
echo '@@ all end'
/bin/busybox poweroff -f
";

/// Builds the folder anew.
pub fn build(folder: &Path, packages: &Path, busybox: &Path) -> Result<PathBuf> {
    let tree = folder.join("tree");
    if tree.exists() {
        std::fs::remove_dir_all(&tree).with_context(|| format!("{}: cannot be emptied", tree.display()))?;
    }
    for path in
        ["usr/bin", "usr/lib/x86_64-linux-gnu", "usr/lib64", "dev", "proc", "sys", "tmp", "etc", "data"]
    {
        let path = tree.join(path);
        std::fs::create_dir_all(&path).with_context(|| format!("{}: cannot be made", path.display()))?;
    }
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), tree.join(name))?;
    }
    symlink("dash", tree.join("usr/bin/sh"))?;
    copy(busybox, &tree.join("usr/bin/busybox"))?;
    copy(&library(packages, LOADER)?, &tree.join("usr/lib64").join(LOADER))?;
    for name in PROGRAMS {
        let found =
            ["bin", "usr/bin"].iter().map(|bin| packages.join(bin).join(name)).find(|file| file.exists());
        let file = found.with_context(|| format!("{name} is in none of the Debian packages"))?;
        program(packages, &tree, &file, name)?;
    }
    program(packages, &tree, &compiler(packages)?, "cc1")?;
    python(packages, &tree)?;
    for (name, bytes) in data::files() {
        std::fs::write(tree.join("data").join(name), bytes).with_context(|| format!("data/{name}"))?;
    }
    executable(&tree.join("init"), INIT)?;
    Ok(tree)
}

fn program(packages: &Path, tree: &Path, file: &Path, name: &str) -> Result<()> {
    copy(file, &tree.join("usr/bin").join(name))?;
    // The loader itself says what a program needs; it can do so for programs that are not installed.
    let path: Vec<_> = LIBRARIES.iter().map(|l| packages.join(l).display().to_string()).collect();
    let out = Command::new(library(packages, LOADER)?)
        .args(["--library-path", &path.join(":"), "--list"])
        .arg(file)
        .output()
        .with_context(|| format!("{LOADER} of the Debian packages cannot be started"))?;
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Some((needed, from)) = line.trim().split_once(" => ") else { continue };
        if from.starts_with("not found") {
            bail!("{name} needs {needed}, which is in none of the Debian packages");
        }
        let to = tree.join("usr/lib/x86_64-linux-gnu").join(needed);
        if !needed.starts_with('/') && !to.exists() {
            copy(&library(packages, needed)?, &to)?;
        }
    }
    Ok(())
}

fn library(packages: &Path, name: &str) -> Result<PathBuf> {
    let mut files = LIBRARIES.iter().map(|l| packages.join(l).join(name));
    files.find(|file| file.exists()).with_context(|| format!("{name} is in none of the Debian packages"))
}

/// The C compiler proper has its version in its path.
fn compiler(packages: &Path) -> Result<PathBuf> {
    for gcc in ["usr/lib/gcc/x86_64-linux-gnu", "usr/libexec/gcc/x86_64-linux-gnu"] {
        for version in std::fs::read_dir(packages.join(gcc)).into_iter().flatten() {
            let file = version?.path().join("cc1");
            if file.exists() {
                return Ok(file);
            }
        }
    }
    bail!("cc1 is in none of the Debian packages")
}

fn python(packages: &Path, tree: &Path) -> Result<()> {
    let library = packages.join("usr/lib");
    for entry in std::fs::read_dir(&library).with_context(|| library.display().to_string())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("python3.") {
            let status = Command::new("cp").arg("-r").arg(entry.path()).arg(tree.join("usr/lib")).status();
            if !status.context("cp cannot be started")?.success() {
                bail!("{}: cannot be copied", entry.path().display());
            }
        }
    }
    Ok(())
}

pub fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display())).map(|_| ())
}

/// Writes a script that can be started.
pub fn executable(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("{}: cannot be written", file.display()))?;
    Ok(std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))?)
}

/// Writes the script that every column runs.
pub fn script(tree: &Path, rows: &[&Row], quick: bool) -> Result<()> {
    let mut text = String::from("export PATH=/usr/bin LC_ALL=C HOME=/tmp\ncd /tmp\n");
    // stress-ng prints times and process numbers: only that it succeeded can be compared.
    text += "drop() { busybox grep -o 'successful run completed'; }\n";
    for row in rows {
        let (name, setup, run) = (row.name, row.setup(), row.run(quick));
        text += &format!(
            "( set -e; {setup}\n) >/dev/null 2>/tmp/err\n\
             echo '@@ {name} begin'\n\
             ( set -e; {run}\n) >/tmp/out 2>>/tmp/err\n\
             echo \"@@ {name} end status=$?\"\n\
             echo \"@@ {name} sum $(cksum </tmp/out)\"\n\
             head -c 400 /tmp/err | while read line; do echo \"@@ {name} err $line\"; done\n\
             rm -rf /tmp/*\n"
        );
    }
    executable(&tree.join("bench.sh"), &text)
}

/// The folder as an initrd: not compressed, so that booting stays booting.
pub fn archive(folder: &Path, tree: &Path, busybox: &Path) -> Result<PathBuf> {
    let initrd = folder.join("initrd.cpio");
    let out =
        std::fs::File::create(&initrd).with_context(|| format!("{}: cannot be made", initrd.display()))?;
    let mut find = Command::new(busybox)
        .args(["find", "."])
        .current_dir(tree)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{}: cannot be started", busybox.display()))?;
    let names = find.stdout.take().context("find has no output")?;
    let mut cpio = Command::new(busybox);
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(tree).stdin(names).stdout(out);
    let status = cpio.stderr(Stdio::null()).status().context("busybox cpio cannot be started")?;
    if !find.wait()?.success() || !status.success() {
        bail!("{}: busybox cpio failed", initrd.display());
    }
    Ok(initrd)
}
