//! Writes the kernels of `cargo x bench stress` into a folder, and prints their names and numbers of rounds.

use std::path::PathBuf;
use std::process::ExitCode;
use trimaran_benches::kernels::KERNELS;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: kernels FOLDER");
        return ExitCode::FAILURE;
    };
    for kernel in KERNELS {
        let file = folder.join(kernel.name);
        if let Err(error) = std::fs::write(&file, kernel.image()) {
            eprintln!("{}: {error}", file.display());
            return ExitCode::FAILURE;
        }
        println!("{} {}", kernel.name, kernel.rounds);
    }
    ExitCode::SUCCESS
}
