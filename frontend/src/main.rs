//! Trimaran: a PC in a program. See `trimaran --help`.

mod cli;
mod conform;
mod disassembly;
mod engine_list;
mod engines;
mod keys;
mod lockstep;
mod monitor;
mod picture;
mod run;
mod screenshot;
mod serial;
mod session;
mod state_diff;
mod stats;
mod switch_at;
mod terminal;
mod terminal_mode;
mod trace;
mod tracer;
mod window;

use cli::Task;
use std::ffi::OsString;
use std::process::exit;

/// Exit statuses. Odd ones belong to isa-debug-exit: `(value << 1) | 1`.
pub mod status {
    pub const POWERED_OFF: i32 = 0;
    pub const USAGE: i32 = 2;
    pub const TIMEOUT: i32 = 4;
    pub const TRIPLE_FAULT: i32 = 6;
    pub const ERROR: i32 = 8;
    /// `lockstep` found engines that do not do the same, or a case of `conform` failed.
    pub const DIFFERENT: i32 = 10;
    /// All processors have halted, and `--exit-on-halt` was given.
    pub const HALTED: i32 = 12;
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

/// `--cpu help`, whatever else stands there.
fn asks_for_models() -> bool {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    words.windows(2).any(|pair| pair == ["--cpu", "help"]) || words.iter().any(|word| word == "--cpu=help")
}

fn main() {
    if std::env::args_os().skip(1).eq(["engines"]) {
        print!("{}", engines::table());
        return;
    }
    if asks_for_models() {
        print!("{}", trimaran_cpu::model::Model::help());
        return;
    }
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let result = if arguments.get(1).is_some_and(|word| word == "conform") {
        arguments.remove(1);
        conform::main(arguments)
    } else {
        let task = Task::from_command_line();
        trace::start(task.options()).and_then(|()| match &task {
            Task::Run(options) => run::run(options),
            Task::Lockstep(options) => lockstep::run(options),
        })
    };
    let code = match result {
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
