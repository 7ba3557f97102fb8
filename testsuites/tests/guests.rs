//! Real guests from Debian packages. `cargo x test` fetches them; without them each test says
//! which package is missing and counts as skipped. `TRIMARAN_LONG=1` adds the long ones.

use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use trimaran_devices::vga::Frame;
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::media::RawImage;
use trimaran_machine::{IdeDrive, MachineConfig, Outcome, firmware};
use trimaran_testsuites::cpio::Archive;
use trimaran_testsuites::engine;
use trimaran_testsuites::guest::{self, Guest};

type Check = fn() -> Result<(), String>;

const SAMPLES: &[(&str, Check)] = &[
    ("memtest86+ x64, direct", || memtest("boot/memtest86+x64.bin")),
    ("memtest86+ ia32, direct", || memtest("boot/memtest86+ia32.bin")),
    ("memtest86+ x64 from an ISO image, through SeaBIOS and GRUB", memtest_iso),
    ("GRUB rescue CD", grub_cd),
    ("GRUB rescue floppy", grub_floppy),
    ("Linux amd64: serial shell, power off", linux_amd64),
    ("Linux amd64: OpenSSL on the newest processor gives what it gives here", openssl),
    ("Linux amd64, 2 processors: a disk partitioned, formatted and written", linux_disk),
    ("Linux amd64: power button", linux_power_button),
    ("Linux i386: text installer", installer_i386),
    ("deterministic boots end alike on interpreter and translator", engines_end_alike),
];

const LONG: &[(&str, Check)] = &[
    ("memtest86+ x64 for a minute and a half", memtest_long),
    ("Debian's graphical installer: first page, keyboard and mouse", installer_gtk),
];

fn main() {
    let long = std::env::var_os("TRIMARAN_LONG").is_some();
    let all = SAMPLES.iter().chain(if long { LONG } else { &[] });
    let trials = all.map(|&(name, check)| Trial::test(name, move || run(name, check))).collect();
    let mut arguments = Arguments::from_args();
    // A machine keeps a core busy, and the times above are for one that has it.
    arguments.test_threads.get_or_insert(2);
    libtest_mimic::run(&arguments, trials).exit();
}

fn run(name: &str, check: Check) -> Result<(), Failed> {
    match check() {
        Err(why) if why.starts_with("skipped: ") => {
            println!("{name}: {why}");
            Ok(())
        }
        Err(why) => Err(why.into()),
        Ok(()) => Ok(()),
    }
}

fn direct(kernel: Vec<u8>, append: &str, initrd: Option<Vec<u8>>) -> MachineConfig {
    let direct = DirectBoot { kernel, initrd, append: append.into(), ..DirectBoot::default() };
    MachineConfig { memory: 256 << 20, direct: Some(direct), ..MachineConfig::default() }
}

fn seabios() -> Result<MachineConfig, String> {
    let image = |name: &str| guest::bytes("seabios", &format!("usr/share/seabios/{name}"));
    Ok(MachineConfig {
        firmware: Some(image("bios-256k.bin")?),
        vga_bios: Some(image("vgabios-stdvga.bin")?),
        boot_order: vec![firmware::BootDevice::CdRom, firmware::BootDevice::Floppy],
        ..MachineConfig::default()
    })
}

/// Its tests run and find no error.
fn memtest(path: &str) -> Result<(), String> {
    let kernel = guest::bytes("memtest86+", path)?;
    let guest = Guest::start(MachineConfig { memory: 16 << 20, ..direct(kernel, "", None) })?;
    guest.screen_shows("Memtest86+", 200)?;
    // The status line names the running test.
    guest.screen_until("third test", 120, |s| s.contains("#3") || s.contains("#4"))?;
    no_memtest_error(&guest)
}

fn no_memtest_error(guest: &Guest) -> Result<(), String> {
    let screen = guest.screen();
    let clean = screen.lines().any(|l| l.contains("Errors: 0"));
    if clean { Ok(()) } else { Err(format!("memtest86+ does not say \"Errors: 0\":\n{screen}")) }
}

fn memtest_long() -> Result<(), String> {
    let kernel = guest::bytes("memtest86+", "boot/memtest86+x64.bin")?;
    let guest = Guest::start(direct(kernel, "", None))?;
    guest.screen_shows("Memtest86+", 200)?;
    std::thread::sleep(std::time::Duration::from_secs(90));
    no_memtest_error(&guest)
}

/// The rescue CD with memtest86+ added to it (by xorriso), started from GRUB's command line.
fn memtest_iso() -> Result<(), String> {
    let rescue = guest::file("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso")?;
    let memtest = guest::file("memtest86+", "boot/memtest86+x64.bin")?;
    let folder = Scratch::new("iso")?;
    let (tree, iso) = (folder.0.join("tree"), folder.0.join("memtest.iso"));
    xorriso(&[
        "-osirrox".as_ref(),
        "on".as_ref(),
        "-indev".as_ref(),
        rescue.as_os_str(),
        "-extract".as_ref(),
        "/".as_ref(),
        tree.as_os_str(),
    ])?;
    let writable =
        std::process::Command::new("chmod").args(["-R".as_ref(), "u+w".as_ref(), tree.as_os_str()]).status();
    writable.map_err(|e| format!("chmod: {e}"))?;
    std::fs::copy(&memtest, tree.join("memtest.bin")).map_err(|e| e.to_string())?;
    let mut arguments: Vec<&OsStr> = "-as mkisofs -quiet -R -b boot/grub/i386-pc/eltorito.img -no-emul-boot -boot-load-size 4 -boot-info-table -o"
        .split(' ')
        .map(OsStr::new)
        .collect();
    arguments.extend([iso.as_os_str(), tree.as_os_str()]);
    xorriso(&arguments)?;
    let mut config = seabios()?;
    config.ide[2] = Some(IdeDrive::CdRom(Some(Box::new(open(&iso)?))));
    let guest = Guest::start(config)?;
    guest.screen_shows("Change the colors", 300)?;
    guest.machine.type_text("c");
    guest.screen_shows("grub>", 200)?;
    guest.type_line("grub> ", "linux16 /memtest.bin")?;
    guest.type_line("grub> ", "boot")?;
    guest.screen_shows("Memtest86+", 200)?;
    guest.screen_until("third test", 300, |s| s.contains("#3") || s.contains("#4"))?;
    no_memtest_error(&guest)
}

fn xorriso(arguments: &[&OsStr]) -> Result<(), String> {
    match std::process::Command::new("xorriso").args(arguments).output() {
        Err(_) => Err("skipped: xorriso (Debian package xorriso) is not installed".into()),
        Ok(out) if !out.status.success() => Err(String::from_utf8_lossy(&out.stderr).into()),
        Ok(_) => Ok(()),
    }
}

/// A folder of one test, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self, String> {
        let folder = std::env::temp_dir().join(format!("trimaran-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(Scratch(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed stays in the temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn grub_cd() -> Result<(), String> {
    let iso = guest::file("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso")?;
    let mut config = seabios()?;
    config.ide[2] = Some(IdeDrive::CdRom(Some(Box::new(open(&iso)?))));
    grub(config, "(cd)")
}

fn grub_floppy() -> Result<(), String> {
    let image = guest::file("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-floppy.img")?;
    let mut config = seabios()?;
    config.floppies[0] = Some(Some(Box::new(open(&image)?)));
    grub(config, "(fd0)")
}

fn open(path: &Path) -> Result<RawImage, String> {
    RawImage::open(path, true).map_err(|e| e.to_string())
}

/// The menu comes up; at its command line `ls`, `lsmmap` and `videoinfo` answer.
fn grub(config: MachineConfig, drive: &str) -> Result<(), String> {
    let guest = Guest::start(config)?;
    guest.screen_shows("GNU GRUB", 120)?;
    guest.screen_shows("Change the colors", 200)?;
    guest.machine.type_text("c");
    guest.screen_shows("grub>", 200)?;
    let line = |text: &str| guest.type_line("grub> ", text);
    line("ls")?;
    guest.screen_shows(drive, 200)?;
    line("lsmmap")?;
    guest.screen_shows("available RAM", 200)?;
    line("insmod all_video")?;
    line("videoinfo")?;
    guest.screen_until("a list of video modes", 200, |s| s.contains(" x "))?;
    // Graphics mode: a test picture until a key is pressed.
    line("videotest 640x480x32")?;
    for _ in 0..300 {
        if guest.machine.text_screen().is_none() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Err(format!("videotest did not switch to a graphics mode:\n{}", guest.screen()))
}

/// A RAM disk with busybox whose `/init` is a shell on COM1.
fn busybox() -> Result<Vec<u8>, String> {
    let busybox = guest::bytes("busybox-static", "bin/busybox")?;
    let mut archive = Archive::default();
    for directory in ["bin", "proc", "sys", "dev", "mnt"] {
        archive.directory(directory);
    }
    let init = b"#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmount -t proc proc /proc\nmount -t sysfs sys /sys\n\
        mount -t devtmpfs dev /dev\necho guest is up\nexec setsid cttyhack sh\n";
    archive.program("bin/busybox", &busybox).program("init", init);
    archive.finish().map_err(|e| e.to_string())
}

/// Digests and ciphers of a file; glibc and OpenSSL choose AVX2, ADX, SHA and VAES by CPUID.
const OPENSSL: &str = "for a in sha1 sha256 sha512 md5 sha3-256 blake2b512; do $ssl dgst -$a $file; done; \
    k=00112233445566778899aabbccddeeff; \
    for a in aes-256-cbc aes-256-ctr chacha20 camellia-256-cbc; do \
    $ssl enc -$a -K $k$k -iv $k -in $file | $ssl dgst -sha256; done; \
    $ssl enc -aes-128-ctr -K $k -iv $k -in $file | $ssl dgst -sha256; \
    $ssl prime -hex 7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF";

/// The same commands with the same programs on the host and in a guest of model `max`.
fn openssl() -> Result<(), String> {
    const LIBRARIES: [(&str, &str); 3] = [
        ("libc6", "lib/x86_64-linux-gnu/libc.so.6"),
        ("libssl3", "usr/lib/x86_64-linux-gnu/libcrypto.so.3"),
        ("libssl3", "usr/lib/x86_64-linux-gnu/libssl.so.3"),
    ];
    const LOADER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
    let program = guest::file("openssl", "usr/bin/openssl")?;
    let loader = guest::file("libc6", LOADER)?;
    let mut archive = Archive::default();
    for directory in ["bin", "proc", "sys", "dev", "lib", "lib64"] {
        archive.directory(directory);
    }
    let mut folders = Vec::new();
    for (package, path) in LIBRARIES {
        let file = guest::file(package, path)?;
        let name = path.rsplit('/').next().unwrap_or(path);
        archive.program(&format!("lib/{name}"), &std::fs::read(&file).map_err(|e| e.to_string())?);
        folders.push(file.parent().map(|p| p.display().to_string()).unwrap_or_default());
    }
    archive.program("lib64/ld-linux-x86-64.so.2", &std::fs::read(&loader).map_err(|e| e.to_string())?);
    archive.program("bin/openssl", &guest::bytes("openssl", "usr/bin/openssl")?);
    let busybox = guest::file("busybox-static", "bin/busybox")?;
    archive.program("bin/busybox", &guest::bytes("busybox-static", "bin/busybox")?);
    let commands = format!("ssl=/bin/openssl; file=/bin/busybox; {OPENSSL}");
    let init = format!(
        "#!/bin/busybox sh\nexport LD_LIBRARY_PATH=/lib OPENSSL_CONF=/dev/null\n/bin/busybox mount -t proc proc /proc\n\
         /bin/busybox mount -t devtmpfs dev /dev\n/bin/busybox grep -m1 -o avx2 /proc/cpuinfo\n\
         echo 'b'egin of it; {commands}; echo 'e'nd of it\n/bin/busybox poweroff -f\n"
    );
    archive.program("init", init.as_bytes());
    let initrd = archive.finish().map_err(|e| e.to_string())?;
    let kernel = guest::bytes("linux-image-amd64", "vmlinuz")?;
    let model = trimaran_cpu::model::Model::parse("max").map_err(|e| e.to_string())?;
    let config = direct(kernel, "console=ttyS0 quiet", Some(initrd));
    let mut guest = Guest::start(MachineConfig { model: std::sync::Arc::new(model), ..config })?;
    guest.expect("avx2", 300)?;
    guest.expect("begin of it", 60)?;
    let got = guest.until("end of it", 300)?;
    let loader = format!("{} --library-path {}", loader.display(), folders.join(":"));
    let here = format!("ssl='{loader} {}'; file={}; {OPENSSL}", program.display(), busybox.display());
    let out = std::process::Command::new("sh").args(["-c", &here]).env("OPENSSL_CONF", "/dev/null").output();
    let want = String::from_utf8_lossy(&out.map_err(|e| format!("sh: {e}"))?.stdout).into_owned();
    // Names of files differ.
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .filter_map(|l| l.trim().rsplit([' ', '(']).next().map(str::to_owned))
            .filter(|l| l.len() > 2)
            .collect()
    };
    let (got, want) = (values(&got), values(&want));
    if got == want && want.len() >= 12 { Ok(()) } else { Err(format!("here {want:#?}\nguest {got:#?}")) }
}

fn linux(memory: u64, cpus: usize) -> Result<MachineConfig, String> {
    let kernel = guest::bytes("linux-image-amd64", "vmlinuz")?;
    let config = direct(kernel, "console=tty0 console=ttyS0 quiet", Some(busybox()?));
    Ok(MachineConfig { memory: memory << 20, cpus, ..config })
}

/// A shell on COM1 and on the screen; commands run; `poweroff` ends the machine.
fn linux_amd64() -> Result<(), String> {
    let mut guest = Guest::start(linux(256, 1)?)?;
    guest.expect("guest is up", 500)?;
    guest.line("echo $((6 * 7)) and $(uname -m); sha256sum /bin/busybox | cut -c1-8");
    guest.expect("42 and x86_64", 120)?;
    guest.line("setsid sh -c 'exec sh </dev/tty1 >/dev/tty1 2>&1' &");
    std::thread::sleep(std::time::Duration::from_secs(2));
    guest.machine.type_text("echo on the screen $((1000 - 1))\n");
    guest.screen_shows("on the screen 999", 120)?;
    guest.line("poweroff -f");
    match guest.ends(200)? {
        Outcome::PoweredOff => Ok(()),
        other => Err(format!("ended with {other:?} instead of power off")),
    }
}

/// Deterministic boots: the same serial bytes, counts and whole state, RAM included, on every software engine.
fn engines_end_alike() -> Result<(), String> {
    type Config = fn() -> Result<MachineConfig, String>;
    let seabios: Config = || {
        let (bios, vga) =
            firmware::find_seabios().ok_or("skipped: Debian package seabios is not installed")?;
        let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
        let (bios, vga) = (read(&bios)?, read(&vga)?);
        let memory = 64 << 20;
        Ok(MachineConfig {
            memory,
            cpus: 2,
            firmware: Some(bios),
            vga_bios: Some(vga),
            ..MachineConfig::default()
        })
    };
    let kernel: Config = || linux(256, 2);
    // Nanoseconds, which are instructions. Linux unpacks itself for the first six thousand million.
    let linux_end = if std::env::var_os("TRIMARAN_LONG").is_some() { 9_000_000_000 } else { 900_000_000 };
    for (what, config, end) in [("SeaBIOS", seabios, 3_000_000_000), ("Linux", kernel, linux_end)] {
        let run = |name: &str| {
            let config = MachineConfig { deterministic: true, ..config()? };
            let guest = Guest::create(config, &engine::named(name)?)?;
            guest.machine.run_until(end);
            let stats = guest.machine.stats();
            Ok::<_, String>((
                guest.machine.state_hash(),
                stats.instructions,
                guest.serial(),
                stats.translator,
            ))
        };
        let (hash, count, serial, _) = run("interp")?;
        let (hash2, count2, serial2, translator) = run("jit")?;
        if (count, &serial) != (count2, &serial2) || hash != hash2 {
            return Err(format!(
                "{what}: {count} and {count2} instructions, {hash:x?} and {hash2:x?};\n{serial}\n{serial2}"
            ));
        }
        let inside = translator.concat();
        println!("{what}: {count} instructions, the same state;\n{inside}");
    }
    Ok(())
}

/// The power button reaches the guest as an ACPI event: busybox's acpid powers the machine off.
fn linux_power_button() -> Result<(), String> {
    let mut config = linux(256, 1)?;
    if let Some(direct) = &mut config.direct {
        direct.initrd = Some(with_modules(&["button", "evdev"])?);
    }
    let mut guest = Guest::start(config)?;
    guest.expect("guest is up", 500)?;
    guest.line("mkdir -p /etc/acpi/PWRF; cd /etc/acpi/PWRF; echo '#!/bin/sh' > 00000080; chmod +x 00000080");
    guest.line("echo \"echo the but''ton; poweroff -f\" >> 00000080; acpid -l /dev/console");
    // It goes to the background first, and opens the devices there.
    guest.line("until ls -l /proc/$(pidof acpid)/fd | grep -q event; do sleep 0.2; done; echo rea'd'y");
    guest.expect("ready", 120)?;
    guest.machine.power_button();
    guest.expect("the button", 120)?;
    match guest.ends(200)? {
        Outcome::PoweredOff => Ok(()),
        other => Err(format!("ended with {other:?} instead of power off")),
    }
}

/// Both processors come up and work at once; a disk is partitioned, formatted and written by DMA, and read back by
/// the host; a CD is read; again by PIO.
fn linux_disk() -> Result<(), String> {
    let folder = Scratch::new("disk")?;
    let path = folder.0.join("disk.img");
    let file = std::fs::File::create(&path).and_then(|f| f.set_len(32 << 20));
    file.map_err(|e| format!("{}: {e}", path.display()))?;
    with_drives(&path)?;
    let bytes = std::fs::read(&path).map_err(|e| e.to_string())?;
    let has = |text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
    if bytes[510..512] != [0x55, 0xAA] {
        return Err("the guest's partition table did not reach the image".into());
    }
    if !has(b"written by the guest, by DMA") || !has(b"written by the guest, by PIO") {
        return Err("the guest's files did not reach the image".into());
    }
    Ok(())
}

fn with_drives(path: &Path) -> Result<(), String> {
    for (mode, append) in [("DMA", ""), ("PIO", " libata.dma=0")] {
        let mut config = linux(256, 2)?;
        if let Some(direct) = &mut config.direct {
            direct.append.push_str(append);
            // Debian's kernel has its disk drivers as modules.
            direct.initrd = Some(with_modules(DISK_MODULES)?);
        }
        let image = RawImage::open(path, false).map_err(|e| e.to_string())?;
        config.ide[0] = Some(IdeDrive::Disk(Box::new(image)));
        let iso = guest::file("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso")?;
        config.ide[2] = Some(IdeDrive::CdRom(Some(Box::new(open(&iso)?))));
        let mut guest = Guest::start(config)?;
        guest.expect("guest is up", 500)?;
        // Quotes keep the echo of a typed line from looking like its answer.
        guest.line("echo cpus=$(nproc); ls -l /dev/sda && echo there is a d'i'sk");
        guest.expect("cpus=2", 120)?;
        guest.expect("there is a disk", 120)?;
        if mode == "DMA" {
            guest.line("printf 'n\\np\\n1\\n\\n\\nw\\n' | fdisk /dev/sda >/dev/null; mke2fs /dev/sda1 && echo ma'd'e");
            guest.expect("made", 200)?;
        }
        guest.line(&format!(
            "mount -t ext2 /dev/sda1 /mnt && echo written by the guest, by {mode} > /mnt/{mode} && umount /mnt && echo d'o'ne {mode}"
        ));
        guest.expect(&format!("done {mode}"), 200)?;
        guest.line("mount -t iso9660 -o ro /dev/sr0 /mnt && ls /mnt/boot/grub/i386-pc | grep -c mod; umount /mnt; echo c'd'");
        guest.expect("cd\r\n", 120)?;
        let modules = guest.serial().lines().rev().find_map(|l| l.trim().parse::<u32>().ok()).unwrap_or(0);
        if modules < 100 {
            return Err(format!(
                "the guest found {modules} GRUB modules on the CD by {mode}:\n{}",
                guest.serial()
            ));
        }
        guest.line("for n in 1 2; do (i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo worker $n) & done; wait; echo both e'n'ded");
        guest.expect("both ended", 120)?;
        guest.line("poweroff -f");
        guest.ends(200)?;
    }
    Ok(())
}

/// For an IDE disk and ext2. The checksums that sd_mod asks the crypto layer for come first.
const DISK_MODULES: &[&str] = &[
    "crct10dif_generic",
    "crc64_rocksoft_generic",
    "crc32c_generic",
    "ata_piix",
    "sd_mod",
    "ext4",
    "sr_mod",
    "isofs",
];

/// The RAM disk with modules that are loaded before the shell starts.
fn with_modules(modules: &[&str]) -> Result<Vec<u8>, String> {
    let busybox = guest::bytes("busybox-static", "bin/busybox")?;
    let root = guest::folder().ok_or("skipped: no guests; run `cargo x guests`")?.join("lib/modules");
    let mut files = BTreeMap::new();
    find_modules(&root, &mut files);
    let mut order = Vec::new();
    for module in modules {
        add_module(module, &files, &mut order)?;
    }
    let mut archive = Archive::default();
    for directory in ["bin", "proc", "sys", "dev", "mnt", "lib"] {
        archive.directory(directory);
    }
    let mut load = String::new();
    for (name, bytes) in &order {
        archive.program(&format!("lib/{name}.ko"), bytes);
        load += &format!("insmod /lib/{name}.ko\n");
    }
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmount -t proc proc /proc\nmount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n{load}sleep 2\necho guest is up\nexec setsid cttyhack sh\n"
    );
    archive.program("bin/busybox", &busybox).program("init", init.as_bytes());
    archive.finish().map_err(|e| e.to_string())
}

/// Module names (underscores for hyphens) and their files.
fn find_modules(folder: &Path, files: &mut BTreeMap<String, PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_modules(&path, files);
        } else if path.extension().is_some_and(|e| e == "ko") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().replace('-', "_");
            files.insert(name, path);
        }
    }
}

/// Adds a module after those that its `depends=` line names. What is no file is built into the kernel.
fn add_module(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), String> {
    let Some(path) = files.get(name).filter(|_| order.iter().all(|(n, _)| n != name)) else { return Ok(()) };
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let key = b"depends=";
    let at = bytes.windows(key.len()).position(|w| w == key).map_or(bytes.len(), |at| at + key.len());
    let line: Vec<u8> = bytes[at..].iter().copied().take_while(|&b| b != 0).collect();
    for needed in String::from_utf8_lossy(&line).split(',').filter(|n| !n.is_empty()) {
        add_module(&needed.replace('-', "_"), files, order)?;
    }
    order.push((name.to_owned(), bytes));
    Ok(())
}

/// The first dialog comes up and a key moves the selection.
fn installer_i386() -> Result<(), String> {
    let at = "usr/lib/debian-installer/images/12/i386/text/debian-installer/i386";
    let package = "debian-installer-12-netboot-i386";
    let kernel = guest::bytes(package, &format!("{at}/linux"))?;
    let initrd = guest::bytes(package, &format!("{at}/initrd.gz"))?;
    let guest = Guest::start(MachineConfig {
        memory: 512 << 20,
        ..direct(
            kernel,
            "vga=normal fb=false nomodeset modprobe.blacklist=bochs priority=low quiet",
            Some(initrd),
        )
    })?;
    let first = guest.screen_shows("Choose language", 700)?;
    let cells = || guest.machine.text_screen().map(|s| s.cells);
    let before = cells();
    guest.machine.send_keys("down").map_err(|e| e.to_string())?;
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(200));
        if cells() != before {
            return Ok(());
        }
    }
    Err(format!("the down key moved nothing:\n{first}"))
}

/// The first page of the graphical installer; a key moves the selection, the mouse its pointer.
fn installer_gtk() -> Result<(), String> {
    let at = "usr/lib/debian-installer/images/12/amd64/gtk/debian-installer/amd64";
    let package = "debian-installer-12-netboot-amd64";
    let kernel = guest::bytes(package, &format!("{at}/linux"))?;
    let initrd = guest::bytes(package, &format!("{at}/initrd.gz"))?;
    let config = direct(kernel, "vga=788 quiet", Some(initrd));
    let guest = Guest::start(MachineConfig { memory: 1 << 30, ..config })?;
    let frame = || {
        let mut frame = Frame::default();
        guest.machine.render(&mut frame);
        frame
    };
    // The banner's teal, and the light background of the page below it.
    let page = |f: &Frame| {
        let count = |test: fn(u32) -> bool| {
            f.pixels.iter().filter(|&&p| test(p)).count() * 100 / f.pixels.len().max(1)
        };
        f.height >= 600
            && count(|p| p >> 16 < 0x30 && p & 0xFF > 0x30) > 3
            && count(|p| p >> 16 & 0xFF > 0xE0) > 50
    };
    wait("the installer's first page", 1200, || page(&frame()))?;
    std::thread::sleep(std::time::Duration::from_secs(10));
    let before = frame();
    guest.machine.send_keys("down").map_err(|e| e.to_string())?;
    wait("a moved selection", 60, || differing(&before, &frame()) > 5_000)?;
    let before = frame();
    guest.machine.mouse_move(60, 60, 0);
    wait("a moved pointer", 60, || differing(&before, &frame()) > 50)
}

fn differing(a: &Frame, b: &Frame) -> usize {
    a.pixels.iter().zip(&b.pixels).filter(|(a, b)| a != b).count()
}

fn wait(what: &str, seconds: u64, mut f: impl FnMut() -> bool) -> Result<(), String> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !f() {
        if std::time::Instant::now() > end {
            return Err(format!("no {what} within {seconds} s"));
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    Ok(())
}
