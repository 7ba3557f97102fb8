//! `x` and `xp`: memory as numbers, characters or instructions.

use crate::disassembly::{Disassembler, LONGEST, bitness};
use crate::session::Session;
use anyhow::{Context, bail, ensure};
use std::fmt::Write;
use trimaran_cpu::state::{CpuState, gpr, seg};

const MAX_COUNT: usize = 4096;
const MAX_STRING: u64 = 256;
const REGISTERS: [&str; 17] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rip",
];

/// What stands behind the slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    count: usize,
    letter: char,
    /// Bytes of an item.
    unit: usize,
}

impl Format {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut format = Format { count: 1, letter: 'x', unit: 4 };
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits > 0 {
            format.count = text[..digits].parse().unwrap_or(usize::MAX);
        }
        ensure!((1..=MAX_COUNT).contains(&format.count), "1 to {MAX_COUNT} items can be shown");
        for letter in text[digits..].chars() {
            match letter {
                'x' | 'd' | 'u' | 'o' | 'c' | 'i' | 's' => format.letter = letter,
                'b' => format.unit = 1,
                'h' => format.unit = 2,
                'w' => format.unit = 4,
                'g' => format.unit = 8,
                _ => bail!("`{letter}` is no format; there are x d u o c i s, and units b h w g"),
            }
        }
        if format.letter == 'c' {
            format.unit = 1;
        }
        Ok(format)
    }

    fn item(&self, bytes: &[u8]) -> String {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let value = u64::from_le_bytes(wide);
        let unused = 64 - 8 * bytes.len() as u32;
        match self.letter {
            'd' => format!("{:>11}", (value << unused) as i64 >> unused),
            'u' => format!("{value:>11}"),
            'o' => format!("{value:#o}"),
            'c' => format!("'{}'", char::from(bytes[0]).escape_default()),
            _ => format!("0x{value:0width$x}", width = bytes.len() * 2),
        }
    }
}

/// Memory of a vCPU or of the board.
struct View<'a> {
    session: &'a Session,
    cpu: usize,
    linear: bool,
}

impl View<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Option<()> {
        if self.linear {
            self.session.machine.read_virtual(self.cpu, address, buf)
        } else {
            self.session.machine.read_physical(address, buf);
            Some(())
        }
    }
}

/// `/NFU ADDRESS`, each part of which may be missing but the address.
pub fn memory(session: &Session, arguments: &str, linear: bool) -> anyhow::Result<String> {
    let state = session.machine.cpu_state(0).context("there is no processor")?;
    let (format, address) = match arguments.strip_prefix('/') {
        Some(rest) => rest.split_once(char::is_whitespace).context("give an address after the format")?,
        None => ("", arguments),
    };
    let format = Format::parse(format)?;
    let address = evaluate(address.trim(), &state)?;
    let view = View { session, cpu: 0, linear };
    match format.letter {
        'i' => instructions(&view, &state, address, format.count),
        's' => strings(&view, address, format.count),
        _ => numbers(&view, &format, address),
    }
}

/// The line of the instruction that a processor runs next.
pub fn next_instruction(session: &Session, cpu: usize) -> anyhow::Result<String> {
    let state = session.machine.cpu_state(cpu).context("there is no such processor")?;
    instructions(&View { session, cpu, linear: true }, &state, evaluate("$pc", &state)?, 1)
}

/// A sum of numbers and registers such as `$rip+0x10`.
fn evaluate(text: &str, state: &CpuState) -> anyhow::Result<u64> {
    ensure!(!text.is_empty(), "give an address: a number such as 0x7c00, or a register such as $rip");
    let (mut sum, mut begin) = (0u64, 0);
    let ends = text.char_indices().skip(1).filter(|(_, c)| matches!(c, '+' | '-')).map(|(at, _)| at);
    for end in ends.chain([text.len()]) {
        let term = &text[begin..end];
        let negative = term.starts_with('-');
        let value = term_value(term.trim_start_matches(['+', '-']).trim(), state)?;
        sum = if negative { sum.wrapping_sub(value) } else { sum.wrapping_add(value) };
        begin = end;
    }
    Ok(sum)
}

fn term_value(term: &str, state: &CpuState) -> anyhow::Result<u64> {
    if let Some(name) = term.strip_prefix('$') {
        // `pc` and `sp` mean where they point to: with the segment's base.
        let base = |segment: usize| if state.code64() { 0 } else { state.seg[segment].base };
        return match name {
            "pc" | "rip" | "eip" => Ok(state.rip().wrapping_add(base(seg::CS))),
            "sp" => Ok(state.gpr[gpr::RSP].wrapping_add(base(seg::SS))),
            "cr3" => Ok(state.cr3),
            _ => {
                let found = REGISTERS.iter().position(|register| *register == name);
                Ok(state.gpr[found.with_context(|| format!("there is no register ${name}"))?])
            }
        };
    }
    let number = match term.strip_prefix("0x").or(term.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => term.parse(),
    };
    number.with_context(|| {
        format!("`{term}` is no address; hexadecimal numbers begin with 0x, registers with $")
    })
}

fn numbers(view: &View, format: &Format, address: u64) -> anyhow::Result<String> {
    let per_line = match format.unit {
        _ if format.letter == 'c' => 8,
        1 => 8,
        2 => 8,
        4 => 4,
        _ => 2,
    };
    let mut text = String::new();
    for n in 0..format.count {
        let at = address.wrapping_add((n * format.unit) as u64);
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..format.unit];
        if n % per_line == 0 {
            let _ = write!(text, "{}{at:016x}:", if n == 0 { "" } else { "\n" });
        }
        if view.read(at, bytes).is_none() {
            let _ = write!(text, " not mapped");
            break;
        }
        let _ = write!(text, " {}", format.item(bytes));
    }
    text.push('\n');
    Ok(text)
}

fn strings(view: &View, mut address: u64, count: usize) -> anyhow::Result<String> {
    let mut text = String::new();
    for _ in 0..count {
        let _ = write!(text, "{address:016x}: \"");
        for n in 0..MAX_STRING {
            let mut byte = [0];
            if view.read(address, &mut byte).is_none() {
                text.push_str("\" not mapped\n");
                return Ok(text);
            }
            address = address.wrapping_add(1);
            if byte[0] == 0 || n + 1 == MAX_STRING {
                break;
            }
            let _ = write!(text, "{}", char::from(byte[0]).escape_default());
        }
        text.push_str("\"\n");
    }
    Ok(text)
}

fn instructions(view: &View, state: &CpuState, mut address: u64, count: usize) -> anyhow::Result<String> {
    let bitness = bitness(state);
    let mut text = String::new();
    let mut disassembler = Disassembler::new();
    for _ in 0..count {
        // The last bytes before a hole are enough where they make an instruction.
        let mut bytes = [0; LONGEST];
        let there = (1..=LONGEST).rev().find(|&n| view.read(address, &mut bytes[..n]).is_some());
        let Some(there) = there else {
            let _ = writeln!(text, "{address:016x}: not mapped");
            break;
        };
        let (line, length) = disassembler.line(bitness, &bytes[..there], address);
        let _ = writeln!(text, "{address:016x}: {line}");
        address = address.wrapping_add(length as u64);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert_eq!(Format::parse("10i").unwrap(), Format { count: 10, letter: 'i', unit: 4 });
        assert_eq!(Format::parse("4xg").unwrap(), Format { count: 4, letter: 'x', unit: 8 });
        assert_eq!(Format::parse("").unwrap(), Format { count: 1, letter: 'x', unit: 4 });
        assert!(Format::parse("0x").is_err() && Format::parse("3q").is_err());
        let format = Format::parse("dh").unwrap();
        assert_eq!(format.item(&[0xFF, 0xFF]).trim(), "-1");
        assert_eq!(Format::parse("xh").unwrap().item(&[0x34, 0x12]), "0x1234");
        assert_eq!(Format::parse("c").unwrap().item(b"\n"), "'\\n'");
    }

    #[test]
    fn addresses() {
        let mut state = CpuState::reset(0, true);
        state.gpr[gpr::RAX] = 0x100;
        assert_eq!(evaluate("0x7c00", &state).unwrap(), 0x7C00);
        assert_eq!(evaluate("$rax+0x10-1", &state).unwrap(), 0x10F);
        assert_eq!(evaluate("$pc", &state).unwrap(), 0xFFFF_FFF0);
        assert!(
            evaluate("", &state).is_err()
                && evaluate("$foo", &state).is_err()
                && evaluate("1+", &state).is_err()
        );
    }
}
