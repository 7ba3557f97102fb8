//! The monitor: commands that QEMU's and Bochs' users know, on stdio or a Unix socket.

mod commands;
mod examine;

use crate::cli::Endpoint;
use crate::serial::{Connection, Listener};
use crate::session::Session;
use anyhow::bail;
use std::io::{self, BufRead, BufReader, Write, stdin, stdout};
use std::sync::{Arc, Weak};
use std::thread;

const PROMPT: &str = "(trimaran) ";

/// Where the monitor's user is.
pub enum Door {
    Stdio,
    Socket(Listener),
}

pub fn open(endpoint: &Endpoint) -> anyhow::Result<Door> {
    Ok(match endpoint {
        Endpoint::Stdio => Door::Stdio,
        Endpoint::Unix(path) => Door::Socket(Listener::unix(path)?),
        _ => bail!("the monitor can be at stdio or unix:PATH"),
    })
}

/// Starts the thread that obeys.
pub fn start(door: Door, session: &Arc<Session>) -> io::Result<()> {
    let session = Arc::downgrade(session);
    let thread = thread::Builder::new().name("monitor".into());
    thread.spawn(move || match door {
        Door::Stdio => _ = converse(stdin().lock(), stdout(), &session),
        Door::Socket(listener) => {
            while let Ok(connection) = listener.accept() {
                let Ok(reader) = connection.try_clone() else { continue };
                // Whoever hangs up ends the conversation, not the monitor.
                let _: io::Result<()> = converse(BufReader::<Connection>::new(reader), connection, &session);
                if session.upgrade().is_none_or(|session| session.quitting()) {
                    return;
                }
            }
        }
    })?;
    Ok(())
}

fn converse(input: impl BufRead, mut output: impl Write, session: &Weak<Session>) -> io::Result<()> {
    writeln!(output, "Trimaran {}; `help` lists the commands", env!("CARGO_PKG_VERSION"))?;
    write!(output, "{PROMPT}")?;
    output.flush()?;
    for line in input.lines() {
        let line = line?;
        let Some(session) = session.upgrade() else { return Ok(()) };
        let answer = commands::execute(&session, line.trim());
        let text = answer.unwrap_or_else(|error| format!("{error:#}\n"));
        write!(output, "{text}")?;
        if session.quitting() {
            return output.flush();
        }
        write!(output, "{PROMPT}")?;
        output.flush()?;
    }
    Ok(())
}
