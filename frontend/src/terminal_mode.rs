//! Raw mode of the terminal on stdin: keys reach the guest one by one. Restored at the end, whichever way it comes.

use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};
use std::io::{IsTerminal, stdin};
use std::sync::{Mutex, PoisonError};

static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Turns raw mode on where stdin is a terminal. Output is still translated, so that our own lines begin at the left.
pub fn raw() -> std::io::Result<()> {
    if !stdin().is_terminal() {
        return Ok(());
    }
    let before = tcgetattr(stdin())?;
    let mut raw = before.clone();
    raw.make_raw();
    raw.output_modes |= OutputModes::OPOST;
    tcsetattr(stdin(), OptionalActions::Now, &raw)?;
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(before);
    // The words of a panic would be hard to read.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
    Ok(())
}

pub fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &before);
    }
}
