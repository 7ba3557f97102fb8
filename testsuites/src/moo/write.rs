//! Writing, for tests of the reader and for vectors of one's own: 32-bit register chunks for the 386 family, 16-bit
//! ones for the others.

use super::{File, ORDER_OF_16_BITS, Registers, State, Test};

/// The file, not gzipped. Without bus cycles and queues.
pub fn write(file: &File) -> Vec<u8> {
    let wide = file.cpu.starts_with("386");
    let mut head = vec![1, 1, 0, 0];
    head.extend((file.tests.len() as u32).to_le_bytes());
    head.extend(format!("{:4.4}", file.cpu).bytes());
    let mut out = chunk(b"MOO ", &head);
    out.extend(masks(&file.masks, wide));
    file.tests.iter().for_each(|t| out.extend(chunk(b"TEST", &test(t, wide))));
    out
}

fn chunk(id: &[u8; 4], body: &[u8]) -> Vec<u8> {
    [id, &(body.len() as u32).to_le_bytes()[..], body].concat()
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

fn test(test: &Test, wide: bool) -> Vec<u8> {
    let mut out = test.index.to_le_bytes().to_vec();
    out.extend(chunk(b"NAME", &counted(test.name.as_bytes())));
    out.extend(chunk(b"BYTS", &counted(&test.bytes)));
    out.extend(chunk(b"INIT", &state(&test.initial, wide)));
    out.extend(chunk(b"FINA", &state(&test.last, wide)));
    if let Some(e) = test.exception {
        out.extend(chunk(b"EXCP", &[&[e.vector], &e.flags_at.to_le_bytes()[..]].concat()));
    }
    let digit = |c: u8| char::from(c).to_digit(16).unwrap_or(0) as u8;
    let hash: Vec<u8> =
        test.hash.as_bytes().as_chunks().0.iter().map(|&[a, b]| digit(a) << 4 | digit(b)).collect();
    out.extend(chunk(b"HASH", &hash));
    out
}

fn state(state: &State, wide: bool) -> Vec<u8> {
    let id = if wide { b"RG32" } else { b"REGS" };
    let mut out = chunk(id, &registers(&state.registers, wide));
    out.extend(masks(&state.masks, wide));
    let mut ram = (state.ram.len() as u32).to_le_bytes().to_vec();
    for (address, byte) in &state.ram {
        ram.extend(address.to_le_bytes());
        ram.push(*byte);
    }
    out.extend(chunk(b"RAM ", &ram));
    out
}

/// A chunk of masks; nothing without any.
fn masks(masks: &Registers, wide: bool) -> Vec<u8> {
    if masks.iter().all(Option::is_none) {
        return Vec::new();
    }
    chunk(if wide { b"RM32" } else { b"RMSK" }, &registers(masks, wide))
}

/// Which are there, a bit each, then their values.
fn registers(registers: &Registers, wide: bool) -> Vec<u8> {
    let places: Vec<usize> = if wide { (0..super::COUNT).collect() } else { ORDER_OF_16_BITS.into() };
    let width = if wide { 4 } else { 2 };
    let (mut mask, mut values) = (0u32, Vec::new());
    for (n, place) in places.into_iter().enumerate() {
        if let Some(value) = registers[place] {
            mask |= 1 << n;
            values.extend(&value.to_le_bytes()[..width]);
        }
    }
    [&mask.to_le_bytes()[..width], &values].concat()
}
