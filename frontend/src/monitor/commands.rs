//! The monitor's commands.

use super::examine;
use crate::engine_list::EngineList;
use crate::screenshot;
use crate::session::Session;
use anyhow::{Context, bail, ensure};
use std::path::Path;
use trimaran_cpu::engine::Stop;
use trimaran_machine::monitor::TOPICS;

/// Steps that one command makes at most: the machine stands while it does.
const MOST_STEPS: usize = 1_000_000;

/// A command: its names, its arguments, what it does, and the function that does it.
struct Command {
    names: &'static [&'static str],
    arguments: &'static str,
    help: &'static str,
    run: fn(&Session, &str) -> anyhow::Result<String>,
}

#[rustfmt::skip]
const COMMANDS: &[Command] = &[
    Command { names: &["help", "?"], arguments: "", help: "list the commands", run: help },
    Command { names: &["info"], arguments: "TOPIC", help: "show registers, cpus, mem, tlb, pic, irq, mtree, stats, chips or a chip", run: info },
    Command { names: &["x"], arguments: "/NFU ADDRESS", help: "show memory at a virtual address: N items in format x d u o c i s, units b h w g", run: |s, a| examine::memory(s, a, true) },
    Command { names: &["xp"], arguments: "/NFU ADDRESS", help: "the same at a physical address", run: |s, a| examine::memory(s, a, false) },
    Command { names: &["stop"], arguments: "", help: "stop the machine", run: |s, _| { s.machine.pause(); Ok(String::new()) } },
    Command { names: &["cont", "c"], arguments: "", help: "let it go on", run: |s, _| { s.machine.resume(); Ok(String::new()) } },
    Command { names: &["step"], arguments: "[N] [cpu=N]", help: "let a processor of a stopped machine run N instructions; shows the next one", run: step },
    Command { names: &["system_reset"], arguments: "", help: "press the reset button", run: |s, _| { s.machine.reset()?; Ok(String::new()) } },
    Command { names: &["system_powerdown"], arguments: "", help: "press the power button", run: |s, _| { s.machine.power_button(); Ok(String::new()) } },
    Command { names: &["sendkey"], arguments: "KEYS", help: "press keys together, such as ctrl-alt-delete", run: sendkey },
    Command { names: &["type"], arguments: "TEXT", help: "type text; \\n is Enter, \\t is Tab", run: type_text },
    Command { names: &["mouse_move"], arguments: "DX DY [DZ]", help: "move the mouse and its wheel", run: mouse_move },
    Command { names: &["mouse_button"], arguments: "STATE", help: "mouse buttons that are down: 1 left, 2 right, 4 middle, added", run: mouse_button },
    Command { names: &["engine"], arguments: "[NAME]", help: "let another engine run the guest; without a name: which one does", run: engine },
    Command { names: &["trace"], arguments: "on [insn,mem,io] [rip=FROM-TO] [cpu=N] [FILE] | off", help: "write down what each instruction does", run: trace },
    Command { names: &["screendump"], arguments: "FILE.png", help: "save the screen", run: screendump },
    Command { names: &["change"], arguments: "DRIVE FILE", help: "put another image into cdrom or floppy (cdrom1, floppy1: the second)", run: change },
    Command { names: &["eject"], arguments: "DRIVE", help: "take the medium out", run: |s, a| { s.change(a, None)?; Ok(String::new()) } },
    Command { names: &["quit", "q"], arguments: "", help: "end the program", run: |s, _| { s.quit(); Ok(String::new()) } },
];

/// Obeys one line; the answer ends with a line's end or is empty.
pub fn execute(session: &Session, line: &str) -> anyhow::Result<String> {
    if line.is_empty() {
        return Ok(String::new());
    }
    // `x/10i` needs no blank before the slash.
    let end = line.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(line.len());
    let (name, arguments) = line.split_at(end);
    let command = COMMANDS.iter().find(|command| command.names.contains(&name));
    let command = command.with_context(|| format!("unknown command `{name}`; `help` lists them"))?;
    (command.run)(session, arguments.trim())
}

fn help(_: &Session, _: &str) -> anyhow::Result<String> {
    let line = |command: &Command| {
        let usage = format!("{} {}", command.names.join("|"), command.arguments);
        format!("{usage:<26} {}\n", command.help)
    };
    Ok(COMMANDS.iter().map(line).collect())
}

fn info(session: &Session, topic: &str) -> anyhow::Result<String> {
    ensure!(!topic.is_empty(), "info about what? {}, or a chip that `info chips` lists", TOPICS.join(", "));
    if topic == "stats" {
        return Ok(crate::stats::describe(&session.machine.stats()));
    }
    session.machine.info(topic).with_context(|| format!("the topics are {}, and chips", TOPICS.join(", ")))
}

fn step(session: &Session, arguments: &str) -> anyhow::Result<String> {
    ensure!(session.machine.paused(), "the machine runs; `stop` it first");
    let (mut count, mut cpu) = (1, 0);
    for argument in arguments.split_whitespace() {
        let (name, number) = argument.split_once('=').unwrap_or(("count", argument));
        let number: usize = number.parse().with_context(|| format!("`{number}` is no number"))?;
        match name {
            "count" => count = number,
            "cpu" => cpu = number,
            _ => bail!("say how many instructions, and cpu=N if it is not the first processor"),
        }
    }
    ensure!((1..=MOST_STEPS).contains(&count), "1 to {MOST_STEPS} steps can be made at once");
    let stop = session.machine.step(cpu, count as u64)?;
    let next = examine::next_instruction(session, cpu)?;
    Ok(match stop {
        Stop::Budget => next,
        stop => format!("it stopped early: {stop:?}\n{next}"),
    })
}

fn engine(session: &Session, name: &str) -> anyhow::Result<String> {
    if name.is_empty() {
        let names = EngineList::names().join(", ");
        return Ok(format!("{}; the names are {names}\n", session.machine.engine_name()));
    }
    session.change_engine(name)
}

fn trace(session: &Session, arguments: &str) -> anyhow::Result<String> {
    match arguments.split_once(char::is_whitespace).unwrap_or((arguments, "")) {
        ("on", filter) => session.trace_on(filter),
        ("off", "") => session.trace_off(),
        _ => bail!("say `trace on`, with a filter and a file if you like, or `trace off`"),
    }
}

fn sendkey(session: &Session, keys: &str) -> anyhow::Result<String> {
    // QEMU takes a hold time after the keys.
    let chord = keys.split_whitespace().next().context("name the keys, such as ctrl-alt-delete")?;
    session.machine.send_keys(chord)?;
    Ok(String::new())
}

fn type_text(session: &Session, text: &str) -> anyhow::Result<String> {
    session.machine.type_text(&text.replace("\\n", "\n").replace("\\t", "\t"));
    Ok(String::new())
}

fn numbers(text: &str) -> anyhow::Result<Vec<i32>> {
    text.split_whitespace().map(|n| n.parse().with_context(|| format!("`{n}` is no number"))).collect()
}

fn mouse_move(session: &Session, arguments: &str) -> anyhow::Result<String> {
    match numbers(arguments)?[..] {
        [dx, dy] => session.machine.mouse_move(dx, dy, 0),
        [dx, dy, dz] => session.machine.mouse_move(dx, dy, dz),
        _ => bail!("give how far to the right and down, and the wheel if it turns"),
    }
    Ok(String::new())
}

fn mouse_button(session: &Session, arguments: &str) -> anyhow::Result<String> {
    match numbers(arguments)?[..] {
        [state @ 0..=31] => session.machine.mouse_buttons(state as u8),
        _ => bail!("give the sum of the buttons that are down: 1 left, 2 right, 4 middle, 0 none"),
    }
    Ok(String::new())
}

fn screendump(session: &Session, file: &str) -> anyhow::Result<String> {
    ensure!(!file.is_empty(), "give the file's name");
    screenshot::save(&session.machine, Path::new(file))?;
    Ok(String::new())
}

fn change(session: &Session, arguments: &str) -> anyhow::Result<String> {
    let (drive, file) = arguments.split_once(char::is_whitespace).context("give a drive and an image")?;
    session.change(drive, Some(Path::new(file.trim())))?;
    Ok(String::new())
}
