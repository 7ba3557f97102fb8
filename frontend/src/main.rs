//! Trimaran: a PC in a program. See `trimaran --help`.

mod cli;
mod keys;
mod monitor;
mod picture;
mod run;
mod screenshot;
mod serial;
mod session;
mod stats;
mod terminal;
mod terminal_mode;
mod trace;
mod window;

use cli::Options;
use std::process::exit;

/// Exit statuses. Odd ones belong to isa-debug-exit: `(value << 1) | 1`.
pub mod status {
    pub const POWERED_OFF: i32 = 0;
    pub const USAGE: i32 = 2;
    pub const TIMEOUT: i32 = 4;
    pub const TRIPLE_FAULT: i32 = 6;
    pub const ERROR: i32 = 8;
}

/// Why the program ends without having run a guest to its end.
#[derive(Debug)]
pub enum Failure {
    /// The options make no sense.
    Usage(String),
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Other(error.into())
    }
}

fn main() {
    let options = Options::from_command_line();
    let code = match trace::start(&options).and_then(|()| run::run(&options)) {
        Ok(code) => code,
        Err(Failure::Usage(message)) => {
            eprintln!("trimaran: {message}\nTry `trimaran --help`.");
            status::USAGE
        }
        Err(Failure::Other(error)) => {
            eprintln!("trimaran: {error:#}");
            status::ERROR
        }
    };
    terminal_mode::restore();
    exit(code);
}
