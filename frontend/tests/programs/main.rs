//! The ways in for programs that test a processor: kernels that leave by isa-debug-exit, and ROMs that write POST
//! codes.

mod elf;
mod interrupts_kernel;
mod nmi_kernel;
mod program;
mod rom;
mod startup_kernel;
mod unit_kernel;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// `--exit-on-halt` has ended the program.
const HALTED: i32 = 12;
/// What is run on every engine.
const ENGINES: [&[&str]; 3] =
    [&["--engine", "interp"], &["--engine", "jit"], &["--engine", "jit", "--deterministic"]];

/// As [`ENGINES`], with KVM where there is one: what it lacks, the interpreter runs.
fn engines_and_kvm() -> Vec<&'static [&'static str]> {
    let mut engines = ENGINES.to_vec();
    match trimaran_accel::Kvm::open() {
        Ok(_) => engines.push(&["--engine", "kvm"]),
        Err(reason) => println!("skipped under KVM: {reason}"),
    }
    engines
}

/// Runs the program; returns its status, what came on stdout, and on stderr.
fn trimaran(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trimaran"));
    command.args(["run", "--display", "none", "--timeout", "60"]).args(arguments);
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).env_remove("DISPLAY").output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap_or(-1), text(&stdout), text(&stderr))
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn a_kernel_leaves_with_success() {
    let folder = TempDir::new().unwrap();
    let kernel = write(&folder, "unit.flat", &unit_kernel::build());
    for engine in engines_and_kvm() {
        for cpus in ["1", "2", "4", "8"] {
            let arguments = ["--testdev", "--kernel", &kernel, "--cpus", cpus, "--append", "first second=2"];
            let (status, stdout, stderr) = trimaran(&[&arguments[..], engine].concat());
            assert_eq!(status, 1, "{engine:?}, {cpus} processors: {stdout}{stderr}");
            let expected =
                format!("args: {kernel} first second=2\ncpus {cpus}\nonline {cpus}\ninterrupt\ndone\n");
            assert_eq!(stdout, expected);
        }
    }
}

/// The environment, memory, ACPI's tables, the other processors by one broadcast to address 0.
#[test]
fn a_kernel_starts_as_suites_do() {
    let folder = TempDir::new().unwrap();
    let kernel = write(&folder, "startup.flat", &startup_kernel::build());
    let module = write(&folder, "environment", startup_kernel::ENVIRONMENT);
    for engine in engines_and_kvm() {
        for (cpus, memory) in [("1", "128M"), ("2", "512M"), ("4", "2G")] {
            let machine = [
                "--no-reboot",
                "--testdev",
                "--kernel",
                &kernel,
                "--initrd",
                &module,
                "--cpus",
                cpus,
                "--memory",
                memory,
            ];
            let (status, stdout, stderr) = trimaran(&[&machine[..], engine].concat());
            let expected = format!("NR=7\nmemory\ntables\nprocessors {cpus}\ndone\n");
            assert_eq!((status, stdout), (1, expected), "{engine:?}, {cpus} processors: {stderr}");
        }
    }
}

#[test]
fn a_kernel_takes_interrupts() {
    let folder = TempDir::new().unwrap();
    let kernel = write(&folder, "interrupts.flat", &interrupts_kernel::build());
    for engine in engines_and_kvm() {
        let (status, stdout, stderr) = trimaran(&[&["--testdev", "--kernel", &kernel][..], engine].concat());
        assert_eq!((status, stdout.as_str()), (1, "done\n"), "{engine:?}: {stderr}");
    }
}

#[test]
fn nmis_of_two_processors_meet() {
    let folder = TempDir::new().unwrap();
    let kernel = write(&folder, "nmi.flat", &nmi_kernel::build());
    for engine in engines_and_kvm() {
        let arguments = ["--testdev", "--cpus", "2", "--kernel", &kernel];
        let (status, stdout, stderr) = trimaran(&[&arguments[..], engine].concat());
        assert_eq!((status, stdout.as_str()), (1, "done\n"), "{engine:?}: {stderr}");
    }
}

/// Without the test device its step fails: line 14 stays low.
#[test]
fn a_kernel_leaves_with_failure() {
    let folder = TempDir::new().unwrap();
    let kernel = write(&folder, "unit.flat", &unit_kernel::build());
    let arguments = ["--debug-exit", "0xf4", "--deterministic", "--kernel", &kernel];
    let (status, stdout, stderr) = trimaran(&arguments);
    assert_eq!(status, unit_kernel::NO_INTERRUPT << 1 | 1, "{stdout}{stderr}");
    assert!(stdout.ends_with("online 1\nFAIL\n"), "{stdout}");
}

#[test]
fn a_rom_writes_post_codes() {
    let folder = TempDir::new().unwrap();
    let [codes, text] = ["codes", "text"].map(|name| folder.path().join(name));
    let logs = [
        format!("--port-log={:#x}={}", rom::POST, codes.display()),
        format!("--port-log={:#x}=text:{}", rom::TEXT_PORT, text.display()),
    ];
    for size in [0x1_0000, 0x2_0000] {
        let firmware = write(&folder, "rom.bin", &rom::build(size));
        for engine in engines_and_kvm() {
            let arguments = [
                "--firmware",
                &firmware,
                "--memory",
                "1M",
                "--exit-on-halt",
                "--no-reboot",
                &logs[0],
                &logs[1],
            ];
            let (status, stdout, stderr) = trimaran(&[&arguments[..], engine].concat());
            let read = |path: &Path| std::fs::read_to_string(path).unwrap();
            assert_eq!(read(&codes), rom::POST_CODES, "{engine:?}, {size:#x} bytes: {stdout}{stderr}");
            assert_eq!((status, read(&text).as_str()), (HALTED, "real\n"), "{stdout}{stderr}");
            assert!(stderr.contains("port 0x190: 7 writes, the last 0xff"), "{stderr}");
        }
    }
}
