//! Where the bytes of serial ports, debug console and monitor go: the terminal, files, sockets.

use crate::cli::Endpoint;
use crate::session::Session;
use crate::terminal_mode;
use anyhow::Context;
use std::fs::File;
use std::io::{self, Read, Write, stdin, stdout};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use trimaran_machine::Sink;

/// Ctrl-A begins a command of the frontend's.
pub const ESCAPE: u8 = 1;

/// Somebody who is connected.
pub enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Connection {
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Connection::Unix(stream) => Connection::Unix(stream.try_clone()?),
            Connection::Tcp(stream) => Connection::Tcp(stream.try_clone()?),
        })
    }
}

impl Read for Connection {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Unix(stream) => stream.read(buf),
            Connection::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Unix(stream) => stream.write(bytes),
            Connection::Tcp(stream) => stream.write(bytes),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that waits for connections.
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at a path. A socket file that nobody listens at any more is replaced.
    pub fn unix(path: &Path) -> anyhow::Result<Self> {
        let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err() {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path);
        Ok(Listener::Unix(listener.with_context(|| format!("cannot listen at {}", path.display()))?))
    }

    fn tcp(address: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address);
        Ok(Listener::Tcp(listener.with_context(|| format!("cannot listen at {address}"))?))
    }

    pub fn accept(&self) -> io::Result<Connection> {
        Ok(match self {
            Listener::Unix(listener) => Connection::Unix(listener.accept()?.0),
            Listener::Tcp(listener) => Connection::Tcp(listener.accept()?.0),
        })
    }
}

type Current = Arc<Mutex<Option<Connection>>>;

/// Writes to whoever is connected; without anybody, the bytes are lost as on a line without a plug.
struct ToConnection(Current);

impl Write for ToConnection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = &mut *current
            && connection.write_all(bytes).is_err()
        {
            *current = None;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where a port's input comes from.
pub enum Input {
    Nothing,
    Stdin,
    Socket(Listener, Current),
}

/// Opens both directions of a port.
pub fn open(endpoint: &Endpoint) -> anyhow::Result<(Option<Sink>, Input)> {
    Ok(match endpoint {
        Endpoint::None => (None, Input::Nothing),
        Endpoint::Stdio => (Some(Box::new(stdout())), Input::Stdin),
        Endpoint::File(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            (Some(Box::new(file)), Input::Nothing)
        }
        Endpoint::Unix(path) => socket(Listener::unix(path)?),
        Endpoint::Tcp(address) => socket(Listener::tcp(address)?),
    })
}

fn socket(listener: Listener) -> (Option<Sink>, Input) {
    let current = Current::default();
    (Some(Box::new(ToConnection(current.clone()))), Input::Socket(listener, current))
}

/// Starts the thread that brings input to serial port `port` (COM1 is 0).
pub fn start(port: u8, input: Input, session: &Arc<Session>) -> io::Result<()> {
    let session = Arc::downgrade(session);
    let thread = thread::Builder::new().name(format!("com{}", port + 1));
    match input {
        Input::Nothing => return Ok(()),
        Input::Stdin => {
            terminal_mode::raw()?;
            thread.spawn(move || from_stdin(port, &session))?;
        }
        Input::Socket(listener, current) => {
            thread.spawn(move || from_socket(port, &listener, &current, &session))?;
        }
    }
    Ok(())
}

fn from_stdin(port: u8, session: &Weak<Session>) {
    let mut commands = Commands::default();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stdin().read(&mut buffer) {
        let Some(session) = session.upgrade() else { return };
        let (bytes, command) = commands.filter(&buffer[..length]);
        session.machine.serial_input(port, &bytes);
        match command {
            Some(Command::Quit) => session.quit(),
            Some(Command::NextEngine) => eprint!("{}", session.next_engine()),
            None => {}
        }
    }
}

fn from_socket(port: u8, listener: &Listener, current: &Current, session: &Weak<Session>) {
    let mut buffer = [0; 4096];
    while let Ok(mut connection) = listener.accept() {
        *current.lock().unwrap_or_else(PoisonError::into_inner) = connection.try_clone().ok();
        while let Ok(length @ 1..) = connection.read(&mut buffer) {
            let Some(session) = session.upgrade() else { return };
            session.machine.serial_input(port, &buffer[..length]);
        }
        *current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What a user can ask on a serial port's terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Quit,
    NextEngine,
}

/// Finds the commands among what is typed: Ctrl-A x, Ctrl-A e, Ctrl-A Ctrl-A.
#[derive(Default)]
pub struct Commands {
    begun: bool,
}

impl Commands {
    /// The bytes for the guest, and the last command among them; nothing counts behind [`Command::Quit`].
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, Option<Command>) {
        let mut bytes = Vec::with_capacity(typed.len());
        let mut command = None;
        for &byte in typed {
            match (std::mem::take(&mut self.begun), byte) {
                (false, ESCAPE) => self.begun = true,
                (true, b'x' | b'X') => return (bytes, Some(Command::Quit)),
                (true, b'e' | b'E') => command = Some(Command::NextEngine),
                _ => bytes.push(byte),
            }
        }
        (bytes, command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_begins_commands() {
        let mut commands = Commands::default();
        assert_eq!(commands.filter(b"ab\x01"), (b"ab".to_vec(), None));
        assert_eq!(commands.filter(b"\x01c"), (b"\x01c".to_vec(), None));
        assert_eq!(commands.filter(b"\x01ef"), (b"f".to_vec(), Some(Command::NextEngine)));
        assert_eq!(commands.filter(b"d\x01xe"), (b"d".to_vec(), Some(Command::Quit)));
    }
}
