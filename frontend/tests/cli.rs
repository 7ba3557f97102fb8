//! The program as users start it: exit statuses, messages, the monitor.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const USAGE: i32 = 2;
const TIMEOUT: i32 = 4;
const TRIPLE_FAULT: i32 = 6;
const ERROR: i32 = 8;

fn trimaran(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trimaran"));
    command.args(arguments).stdin(Stdio::null()).env_remove("DISPLAY");
    command
}

fn run(arguments: &[&str]) -> (i32, String) {
    let Output { status, stdout, stderr } = trimaran(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code().unwrap_or(-1), text)
}

/// Runs the program; expects a status and a message that has these words.
fn expect(arguments: &[&str], status: i32, words: &[&str]) {
    let (code, text) = run(arguments);
    assert_eq!(code, status, "{arguments:?}:\n{text}");
    for word in words {
        assert!(text.contains(word), "{arguments:?}: no `{word}` in:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

/// A file in a folder of its own.
fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A multiboot kernel that runs this code in protected mode.
fn kernel(code: &[u8]) -> Vec<u8> {
    const MAGIC: u32 = 0x1BAD_B002;
    const ADDRESSES_GIVEN: u32 = 0x1_0000;
    const AT: u32 = 0x10_0000;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(ADDRESSES_GIVEN);
    let header = [MAGIC, ADDRESSES_GIVEN, checksum, AT, AT, 0, 0, AT + 32];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend_from_slice(code);
    image
}

#[test]
fn unknown_words_are_usage_errors() {
    for (option, word, hint) in [
        ("--engine", "magic", "interp"),
        ("--cpu", "z80", "x86-64-v2"),
        ("--cpu", "max,+warp", "sse4_1"),
        ("--cpu", "max,-sse4_1", "sse4_2"),
        ("--display", "hologram", "window"),
        ("--serial", "pty", "file:PATH"),
        ("--serial", "tcp:nowhere", "tcp:HOST:PORT"),
        ("--debugcon", "unix:x", "stdio"),
        ("--monitor", "file:x", "unix:PATH"),
        ("--boot", "n", "floppy"),
        ("--trace", "cpu,gpu", "msr"),
        ("--debug-exit", "0x10000", "port"),
        ("--port-log", "0x80", "PORT=FILE"),
        ("--port-log", "post=x", "port"),
        ("--timeout", "-1", "seconds"),
        ("--code-cache", "2G", "1G at most"),
        ("--timeout", "soon", "seconds"),
        ("--cpus", "two", "invalid"),
        ("--switch-at", "insns=1000", "colon"),
        ("--trace-steps", "rip=5-4", "above the last"),
        ("--switch-at", "insns=many:jit", "count"),
        ("--switch-at", "insns=1:warp", "interp"),
        ("--switch-at", "time=3:jit", "no trigger"),
        ("--switch-at", "port=0x12345:jit", "port"),
        ("--switch-at", "rip=start:jit", "hexadecimal"),
        ("--switch-at", "serial=:interp", "text"),
    ] {
        // Joined, so that values may begin with a dash.
        expect(&["run", &format!("{option}={word}")], USAGE, &[option, hint]);
    }
    expect(&["run", "--no-such-option"], USAGE, &["--no-such-option"]);
    expect(&["run", "--display", "none", "--cpu", "486"], ERROR, &["64-bit mode", "kernel"]);
    expect(&["run", "--initrd", "x"], USAGE, &["--kernel"]);
    expect(&["run", "--serial", "stdio", "--monitor", "stdio", "--display", "none"], USAGE, &["stdio"]);
}

#[test]
fn memory_and_processors_have_limits() {
    for size in ["0", "0M", "512K", "lots", "1.5G"] {
        expect(&["run", "--memory", size], USAGE, &["--memory", size]);
    }
    expect(&["run", "--display", "none", "--memory", "400G"], ERROR, &["409600 MB", "the host has"]);
    expect(&["run", "--display", "none", "--memory", "1M"], ERROR, &["RAM"]);
    expect(&["run", "--display", "none", "--cpus", "0"], ERROR, &["processors"]);
    expect(&["run", "--display", "none", "--cpus", "1000"], ERROR, &["processors"]);
}

#[test]
fn kernels_that_are_none() {
    let folder = TempDir::new().unwrap();
    let mut bzimage = vec![0; 2048];
    bzimage[0x1F1] = 4;
    bzimage[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    bzimage[0x206..0x208].copy_from_slice(&[0x0F, 0x02]);
    bzimage[0x211] = 1;
    for (name, bytes, words) in [
        ("empty", &b""[..], "is empty"),
        ("text", &b"This is not a kernel, but a letter to a friend."[..], "not a kernel"),
        ("zip", &[0x1F, 0x8B, 8, 0, 0, 0, 0, 0][..], "gzip"),
        ("elf", &b"\x7FELF\x02\x01\x01"[..], ""),
        ("bzimage", &bzimage[..1024], "truncated"),
    ] {
        let path = file(&folder, name, bytes);
        expect(&["run", "--display", "none", "--kernel", path.to_str().unwrap()], ERROR, &[words]);
    }
    expect(
        &["run", "--display", "none", "--kernel", "/no/such/file"],
        ERROR,
        &["/no/such/file", "No such file"],
    );
    let good = file(&folder, "good", &kernel(&[0xF4]));
    let good = good.to_str().unwrap();
    expect(
        &["run", "--display", "none", "--kernel", good, "--initrd", "/no/such/file"],
        ERROR,
        &["/no/such/file"],
    );
}

#[test]
fn images_and_firmware_that_cannot_be_used() {
    let folder = TempDir::new().unwrap();
    let none = |arguments: &[&str], words: &[&str]| {
        expect(&[&["run", "--display", "none"], arguments].concat(), ERROR, words);
    };
    none(&["--disk", "/no/such/disk"], &["/no/such/disk"]);
    none(&["--firmware", "/no/such/bios"], &["/no/such/bios"]);
    let empty = file(&folder, "empty", b"");
    none(&["--cdrom", empty.to_str().unwrap()], &["is empty"]);
    none(&["--firmware", empty.to_str().unwrap()], &["is empty"]);

    let disk = file(&folder, "disk", &[0; 4096]);
    let lock = File::open(&disk).unwrap();
    lock.lock().unwrap();
    none(&["--disk", disk.to_str().unwrap()], &["in use"]);
}

#[test]
fn without_a_display() {
    expect(&["run", "--display", "window"], ERROR, &["DISPLAY"]);
    expect(&["run", "--display", "terminal"], ERROR, &["terminal"]);
    // By itself the program says so and goes on.
    expect(&["--timeout", "1"], TIMEOUT, &["DISPLAY is not set", "long mode", "ran out"]);
}

#[test]
fn help_shows_options_and_statuses() {
    for arguments in [&["--help"][..], &["run", "--help"], &["-h"]] {
        expect(arguments, 0, &["--kernel", "--debug-exit", "Exit status", "Examples"]);
    }
}

#[test]
fn smoke_ends_with_its_checksum() {
    let folder = TempDir::new().unwrap();
    let serial = folder.path().join("serial");
    let to_file = format!("file:{}", serial.display());
    let checksum = format!("trimaran smoke {:016x}", trimaran_machine::builtin::expected_checksum());
    expect(&["run", "--smoke", "--stats"], 0, &[&checksum, "instructions", "MIPS", "TLB"]);
    expect(&["run", "--smoke", "--fp", "soft"], 0, &[&checksum]);
    expect(&["run", "--smoke", "--fp", "soft", "--engine", "kvm"], ERROR, &["x87 is the host's there"]);
    expect(&["run", "--smoke", "--fp", "hard"], USAGE, &["[possible values: host, soft]"]);
    expect(&["run", "--smoke", "--deterministic", "--serial", &to_file], 0, &[]);
    assert!(std::fs::read_to_string(serial).unwrap().contains(&checksum));
}

#[test]
fn engines_change_under_the_guest() {
    let checksum = format!("trimaran smoke {:016x}", trimaran_machine::builtin::expected_checksum());
    let switches = ["--switch-at", "insns=123456:interp", "--switch-at", "serial=smoke:jit"];
    for time in [&["--deterministic"][..], &[]] {
        let arguments = [&["run", "--smoke", "--stats"], &switches[..], time].concat();
        expect(
            &arguments,
            0,
            &[&checksum, "insns=123456: jit -> interp, the guest stood for", "serial=smoke: interp -> jit"],
        );
    }
    // A port that nobody touches, an address where nobody comes.
    expect(
        &["run", "--smoke", "--switch-at", "port=0x9999:interp", "--switch-at", "rip=1:interp"],
        0,
        &[&checksum],
    );
}

/// A stretch of a run, between two addresses.
#[test]
fn a_trace_from_here_to_there() {
    let folder = TempDir::new().unwrap();
    // mov ecx, 1000h; loop $; nop; mov ecx, 3; loop $; out F4h, al; hlt
    let code = [0xB9, 0, 0x10, 0, 0, 0xE2, 0xFE, 0x90, 0xB9, 3, 0, 0, 0, 0xE2, 0xFE, 0xE6, 0xF4, 0xF4];
    let guest = file(&folder, "guest", &kernel(&code));
    let trace = folder.path().join("trace");
    let words = format!("insn {}", trace.display());
    let arguments = [
        &["run", "--display=none", "--debug-exit=0xf4", "--kernel", guest.to_str().unwrap()][..],
        &["--switch-at=rip=100027:trace", "--switch-at=rip=10002f:jit", "--trace-steps", &words],
    ];
    let seen = ["rip=0x100027: jit -> trace", "rip=0x10002f: trace -> jit"];
    // AL is the low byte of multiboot's magic number, 2.
    expect(&arguments.concat(), 5, &seen);
    let lines = std::fs::read_to_string(trace).unwrap();
    let words: Vec<&str> = lines.lines().filter_map(|line| line.split_whitespace().nth(4)).collect();
    assert_eq!(words, ["nop", "mov", "loop", "loop", "loop"], "{lines}");
}

#[test]
fn lockstep_compares_two_engines() {
    let same = ["lockstep", "--smoke", "--every", "100000"];
    expect(&same, 0, &["interp and jit, compared every 100000", "no difference in 44", "PoweredOff"]);
    expect(
        &["lockstep", "--insns", "300000", "--every", "100000"],
        0,
        &["no difference in 300000 instructions"],
    );
    expect(&["lockstep", "--help"], 0, &["--every", "--insns", "--kernel", "first instruction that differs"]);
    for (option, word) in [
        ("--every=0", "--every"),
        ("--a=warp", "interp"),
        ("--engine=jit", "--a and --b"),
        ("--timeout=5", "--seconds"),
        ("--serial=stdio", "show nothing"),
        ("--switch-at=insns=5:jit", "lockstep"),
    ] {
        expect(&["lockstep", "--smoke", option], USAGE, &[word]);
    }
}

#[test]
fn engines_and_traces_in_the_monitor() {
    let folder = TempDir::new().unwrap();
    // mov ecx, 1234h; again: inc eax; out 80h, al; mov [200000h], ecx; jmp again
    let code = [0xB9, 0x34, 0x12, 0, 0, 0x40, 0xE6, 0x80, 0x89, 0x0D, 0x00, 0x00, 0x20, 0x00, 0xEB, 0xF5];
    let guest = file(&folder, "guest", &kernel(&code));
    let [all, few] = ["all", "few"].map(|name| folder.path().join(name));
    let mut child =
        trimaran(&["run", "--display=none", "--monitor=stdio", "--kernel", guest.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    let mut input = child.stdin.take().unwrap();
    let (on, filtered) =
        (format!("trace on {}", all.display()), format!("trace on io rip=100020-100030 {}", few.display()));
    for line in [
        "engine",
        "engine interp",
        "engine interp",
        "engine warp",
        &on,
        &on,
        "engine",
        "trace off",
        "trace off",
        "trace",
        &filtered,
        "trace off",
        "trace on rip=2-1",
        "engine",
        "engine jit",
        "quit",
    ] {
        writeln!(input, "{line}").unwrap();
        std::thread::sleep(Duration::from_millis(150));
        // On a busy machine the guest takes its time to fill a trace.
        let trace = [&on, &filtered].into_iter().zip([&all, &few]).find(|(on, _)| on.as_str() == line);
        let full = |trace: &Path| trace.metadata().is_ok_and(|m| m.len() > 1 << 16);
        let patience = Instant::now() + Duration::from_secs(60);
        while trace.is_some_and(|(_, trace)| !full(trace)) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for words in [
        "jit; the names are",
        "jit -> interp: the guest stood for",
        "the engine is interp already",
        "there is no engine `warp`",
        "goes back to interp",
        "is being written already",
        "trace; the names are",
        "no trace is being written",
        "say `trace on`",
        "the first address is above the last",
        "interp; the names are",
        "interp -> jit",
    ] {
        assert!(text.contains(words), "no `{words}` in:\n{text}");
    }
    let all = std::fs::read_to_string(all).unwrap();
    for words in ["inc eax", "rax=", "out 1 to port 0080 = ", "write 4 at 0000000000200000 = 00001234"] {
        assert!(all.contains(words), "no `{words}` in:\n{}", &all[..all.len().min(2000)]);
    }
    let few = std::fs::read_to_string(few).unwrap();
    assert!(
        few.lines().count() > 100 && few.lines().all(|line| line.contains("out 1 to port 0080")),
        "{few:.2000}"
    );
}

#[test]
fn statuses_of_guests() {
    let folder = TempDir::new().unwrap();
    let guest = |name: &str, code: &[u8]| file(&folder, name, &kernel(code)).to_str().unwrap().to_string();
    // mov al, 5; out 0xF4, al
    let exits = guest("exits", &[0xB0, 5, 0xE6, 0xF4, 0xF4]);
    expect(&["run", "--display", "none", "--kernel", &exits, "--debug-exit", "0xf4"], 11, &[]);
    // ud2, without an IDT
    let faults = guest("faults", &[0x0F, 0x0B]);
    expect(
        &["run", "--display", "none", "--kernel", &faults, "--no-reboot"],
        TRIPLE_FAULT,
        &["triple fault"],
    );
    // jmp $
    let hangs = guest("hangs", &[0xEB, 0xFE]);
    expect(&["run", "--display", "none", "--kernel", &hangs, "--timeout", "0.5"], TIMEOUT, &["ran out"]);
}

fn is_png(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x89PNG\r\n\x1A\n"))
}

#[test]
fn monitor_on_stdio() {
    let folder = TempDir::new().unwrap();
    let picture = folder.path().join("screen.png");
    let mut child = trimaran(&["run", "--display", "none", "--monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let script = format!(
        "help\ninfo registers\ninfo cpus\ninfo pic\ninfo nonsense\nstop\nx/4i $pc\nxp/2xb 0x8000\ncont\n\
         sendkey ctrl-alt-delete\nsendkey nokey\ntype hello\nmouse_move 3 4 -1\nchange cdrom /x\nfrobnicate\n\
         screendump {}\nquit\n",
        picture.display()
    );
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for word in [
        "system_powerdown",
        "rax",
        "jit",
        "unknown command `frobnicate`",
        "nonsense",
        "nokey",
        "0xfa 0xfc",
        "CD-ROM",
    ] {
        assert!(text.contains(word), "no `{word}` in:\n{text}");
    }
    assert!(is_png(&picture));
}

/// A guest that counts in EAX, on each engine: the next instruction is shown, and the registers are exact.
#[test]
fn single_steps_in_the_monitor() {
    let folder = TempDir::new().unwrap();
    // xor eax, eax; inc eax; jmp (inc eax)
    let guest = file(&folder, "counts", &kernel(&[0x31, 0xC0, 0x40, 0xEB, 0xFD]));
    let engines = ["interp", "jit", "kvm"].map(|name| (name, trimaran_accel::Kvm::open().err()));
    for (engine, no_kvm) in engines {
        if let Some(reason) = no_kvm.filter(|_| engine == "kvm") {
            println!("skipped under KVM: {reason}");
            continue;
        }
        let arguments = ["run", "--display", "none", "--engine", engine, "--monitor", "stdio"];
        let kernel = ["--kernel", guest.to_str().unwrap()];
        let mut child = trimaran(&[&arguments[..], &kernel].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(700));
        let script =
            "step\nstop\nstep 3 cpu=1\nstep\nstep 2\ninfo registers\nstep 200\ninfo registers\ncont\nquit\n";
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{engine}: {text}");
        assert!(text.contains("`stop` it first") && text.contains("processor 1"), "{engine}: {text}");
        let shown =
            text.lines().filter(|line| line.ends_with("inc eax") || line.contains("jmp short")).count();
        assert_eq!(shown, 3, "{engine}: {text}");
        let counts = text.lines().filter_map(|line| line.split_once("rax ")).map(|(_, rest)| &rest[..16]);
        let counts: Vec<u64> = counts.map(|digits| u64::from_str_radix(digits, 16).unwrap()).collect();
        assert_eq!(counts[1] - counts[0], 100, "{engine}: {text}");
    }
}

/// The program listens; the guest sends back one more than what it gets.
#[test]
fn serial_on_tcp() {
    use std::net::{TcpListener, TcpStream};
    let folder = TempDir::new().unwrap();
    // mov dx, 3FDh; wait: in al, dx; test al, 1; jz wait; mov dl, F8h; in al, dx; inc al; out dx, al;
    // cmp al, 'e'; jne (mov dx); mov ecx, 100000h; loop $; out F4h, al; hlt
    let echo = [
        0x66, 0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x01, 0x74, 0xFB, 0xB2, 0xF8, 0xEC, 0xFE, 0xC0, 0xEE, 0x3C, b'e',
        0x75, 0xED, 0xB9, 0x00, 0x00, 0x10, 0x00, 0xE2, 0xFE, 0xE6, 0xF4, 0xF4,
    ];
    let guest = file(&folder, "echo", &kernel(&echo));
    // A port that is free now.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("tcp:127.0.0.1:{port}");
    let guest = ["--kernel", guest.to_str().unwrap(), "--debug-exit", "0xf4", "--timeout", "60"];
    let mut child = trimaran(&[&["run", "--display", "none", "--serial", &address], &guest[..]].concat())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let mut connection = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(connection) => break connection,
            Err(e) => assert!(begun.elapsed() < Duration::from_secs(20), "{e}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for sent in [b'H', b'A', 0xFF, b'd'] {
        connection.write_all(&[sent]).unwrap();
        let mut answer = [0];
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], sent.wrapping_add(1));
    }
    assert_eq!(child.wait().unwrap().code(), Some(i32::from(b'e') << 1 | 1));

    // A second program cannot have the same port.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:127.0.0.1:{}", taken.local_addr().unwrap().port());
    expect(&["run", "--display", "none", "--serial", &address], ERROR, &["cannot listen"]);
}

#[test]
fn monitor_on_a_socket_and_serial_on_another() {
    use std::os::unix::net::UnixStream;
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (monitor, serial, picture) = (at("monitor"), at("serial"), at("screen.png"));
    let listen = |path: &Path| format!("unix:{}", path.display());
    let mut child =
        trimaran(&["run", "--display=none", "--monitor", &listen(&monitor), "--serial", &listen(&serial)])
            .spawn()
            .unwrap();
    let begun = Instant::now();
    let mut connection = loop {
        match UnixStream::connect(&monitor) {
            Ok(connection) => break connection,
            Err(e) => assert!(begun.elapsed() < Duration::from_secs(20), "{e}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    UnixStream::connect(&serial).unwrap();
    // The guest draws after its text, which stays for two seconds.
    std::thread::sleep(Duration::from_secs(4));
    write!(connection, "screendump {}\nsendkey esc\n", picture.display()).unwrap();
    // Escape powers the built-in guest off.
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut text = String::new();
    let _ = connection.read_to_string(&mut text);
    assert!(is_png(&picture), "{text}");
}
