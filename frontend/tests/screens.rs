//! The built-in guest on a window and on a terminal.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_trimaran");
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends a program of ours, whatever happens to the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Ended {
    fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "the program does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Colours on the screen of an X server, from the XWD file that it keeps (X11's XWDFile.h).
fn colours(file: &Path) -> HashSet<u32> {
    const HEADER_SIZE: usize = 0;
    const COLOUR_COUNT: usize = 19;
    const COLOUR: usize = 12;
    let bytes = std::fs::read(file).unwrap_or_default();
    let word = |n: usize| {
        let four = bytes.get(n * 4..n * 4 + 4).and_then(|four| four.try_into().ok());
        four.map_or(0, u32::from_be_bytes) as usize
    };
    let pixels = bytes.get(word(HEADER_SIZE) + word(COLOUR_COUNT) * COLOUR..).unwrap_or_default();
    pixels.chunks_exact(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], 0])).collect()
}

#[test]
fn a_window_shows_the_picture() {
    let folder = TempDir::new().unwrap();
    let server = Command::new("Xvfb")
        .args(["-displayfd", "1", "-screen", "0", "1280x1024x24", "-nolisten", "tcp", "-fbdir"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(server) = server else {
        println!("skipped: Xvfb of Debian package xvfb is missing");
        return;
    };
    let mut server = Ended(server);
    let mut display = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut display).unwrap();

    let socket = folder.path().join("monitor");
    let program = Command::new(PROGRAM)
        .args(["run", "--monitor"])
        .arg(format!("unix:{}", socket.display()))
        .env("DISPLAY", format!(":{}", display.trim()))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut program = Ended(program.unwrap());
    let begun = Instant::now();
    loop {
        if program.0.try_wait().unwrap().is_some() {
            let mut words = String::new();
            std::io::Read::read_to_string(&mut program.0.stderr.take().unwrap(), &mut words).unwrap();
            if words.contains("libraries are missing") {
                println!("skipped: {words}");
                return;
            }
            panic!("the program ended: {words}");
        }
        let seen = colours(&folder.path().join("Xvfb_screen0")).len();
        if seen > 30 {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "no picture: {seen} colours");
        std::thread::sleep(Duration::from_millis(200));
    }
    // Escape powers the guest off, and the window closes.
    let mut monitor = std::os::unix::net::UnixStream::connect(socket).unwrap();
    monitor.write_all(b"sendkey esc\n").unwrap();
    assert_eq!(program.wait().code(), Some(0));
}

#[test]
fn a_terminal_shows_the_text() {
    // `script` makes a terminal, and has the status of its child.
    let command = format!("stty rows 30 columns 100; exec '{PROGRAM}' run");
    let script = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm-256color")
        .env_remove("DISPLAY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(script) = script else {
        println!("skipped: `script` of Debian package bsdutils is missing");
        return;
    };
    let mut script = Ended(script);
    let mut input = script.0.stdin.take().unwrap();
    let output = script.0.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = std::io::Read::read_to_end(&mut BufReader::new(output), &mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    std::thread::sleep(Duration::from_millis(1500));
    // Ctrl-A x.
    input.write_all(b"\x01x").unwrap();
    let status = script.wait();
    let text = reader.join().unwrap();
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(text.contains("DISPLAY is not set"), "{text}");
    let shown = picture_of(&text);
    assert!(shown.contains("long mode: 64-bit code"), "{shown}");
}

/// What a terminal shows after this: text, and cursor positions. (A line may be drawn in several parts.)
fn picture_of(output: &str) -> String {
    let mut cells = vec![vec![' '; 100]; 30];
    let (mut row, mut column) = (0, 0);
    let mut rest = output.chars();
    while let Some(c) = rest.next() {
        if c == '\x1b' {
            let mut sequence = String::new();
            for c in rest.by_ref().skip(1) {
                sequence.push(c);
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
            if let Some(place) = sequence.strip_suffix('H') {
                let mut numbers = place.split(';').map(|n| n.parse::<usize>().unwrap_or(1));
                let mut next = || numbers.next().unwrap_or(1).saturating_sub(1);
                (row, column) = (next(), next());
            }
        } else if let Some(cell) = cells.get_mut(row).and_then(|line: &mut Vec<char>| line.get_mut(column)) {
            *cell = c;
            column += 1;
        }
    }
    cells.into_iter().map(|line| line.into_iter().collect::<String>() + "\n").collect()
}
