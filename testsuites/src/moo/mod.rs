//! The MOO container of the SingleStepTests: processor tests recorded from hardware (the 8088's, 80286's and 80386's
//! families; format 1.1, <https://github.com/dbalsom/moo>).
//!
//! Little-endian chunks `{id: 4 characters, length: u32, payload}`, usually gzipped. The bus cycles (`CYCL`), the
//! prefetch queue (`QUEU`) and what we do not know are skipped by their length.

mod read;
mod write;

pub use read::{parse, read};
pub use write::write;

/// The 32-bit registers in the order of an `RG32` mask. Those of 16-bit processors stand in their lower halves.
pub const REGISTERS: [&str; COUNT] = [
    "cr0", "cr3", "eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp", "cs", "ds", "es", "fs", "gs", "ss",
    "eip", "eflags", "dr6", "dr7",
];
pub const COUNT: usize = 20;

/// Positions in [`REGISTERS`].
pub mod register {
    pub const CR0: usize = 0;
    pub const EAX: usize = 2;
    pub const EBX: usize = 3;
    pub const ECX: usize = 4;
    pub const EDX: usize = 5;
    pub const ESI: usize = 6;
    pub const EDI: usize = 7;
    pub const EBP: usize = 8;
    pub const ESP: usize = 9;
    pub const CS: usize = 10;
    pub const DS: usize = 11;
    pub const ES: usize = 12;
    pub const FS: usize = 13;
    pub const GS: usize = 14;
    pub const SS: usize = 15;
    pub const EIP: usize = 16;
    pub const EFLAGS: usize = 17;
    pub const DR6: usize = 18;
    pub const DR7: usize = 19;
}

use register::{CS, DS, EAX, EBP, EBX, ECX, EDI, EDX, EFLAGS, EIP, ES, ESI, ESP, SS};

/// The order of a `REGS` mask: ax bx cx dx cs ss ds es sp bp si di ip flags.
const ORDER_OF_16_BITS: [usize; 14] = [EAX, EBX, ECX, EDX, CS, SS, DS, ES, ESP, EBP, ESI, EDI, EIP, EFLAGS];

/// Values by position in [`REGISTERS`], where given.
pub type Registers = [Option<u32>; COUNT];

/// Processor state before or after; the state after has only what changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub registers: Registers,
    /// Bits that are defined, for this test alone.
    pub masks: Registers,
    pub ram: Vec<(u32, u8)>,
}

/// An exception that the recorded instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    /// Physical address of the pushed flags.
    pub flags_at: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Test {
    pub index: u32,
    pub name: String,
    pub bytes: Vec<u8>,
    pub initial: State,
    pub last: State,
    pub exception: Option<Exception>,
    /// SHA-1 of the test, by which revocation lists name it.
    pub hash: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Which processor: `8088`, `C286`, `386E` …; without the spaces that fill it.
    pub cpu: String,
    /// Bits of each register that are defined, where the file says so.
    pub masks: Registers,
    pub tests: Vec<Test>,
}

#[derive(Debug, thiserror::Error)]
pub enum MooError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("not a MOO file: it ends inside a chunk or field at byte {0}")]
    Truncated(usize),
    #[error("not a MOO file: it starts with {0:?} instead of \"MOO \"")]
    Magic(String),
    #[error("unpacked it has more than {0} bytes")]
    TooLong(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(cpu: &str, wide: bool) -> File {
        let width = if wide { u32::MAX } else { 0xFFFF };
        let mut registers = [None; COUNT];
        for n in if wide { 0..COUNT } else { 2..13 } {
            registers[n] = Some(0x1234_5678u32.rotate_left(n as u32) & width);
        }
        for n in [SS, EIP, EFLAGS] {
            registers[n] = Some(n as u32);
        }
        let mut last = [None; COUNT];
        last[EAX] = Some(width);
        let mut masks = [None; COUNT];
        masks[EFLAGS] = Some(0xF7EF);
        let test = Test {
            index: 7,
            name: "add ax,bx".into(),
            bytes: vec![1, 0xD8],
            initial: State { registers, ram: vec![(0xFFFFF, 1), (0, 2)], ..State::default() },
            last: State { registers: last, masks, ram: vec![(3, 4)] },
            exception: wide.then_some(Exception { vector: 13, flags_at: 0x1234 }),
            hash: "00ff".repeat(10),
        };
        File { cpu: cpu.into(), masks, tests: vec![test.clone(), Test { index: 8, ..test }] }
    }

    #[test]
    fn what_is_written_is_read() {
        for (cpu, wide) in [("8088", false), ("C286", false), ("386E", true)] {
            let file = sample(cpu, wide);
            assert_eq!(parse(&write(&file)).expect(cpu), file, "{cpu}");
        }
    }

    /// Every cut and every changed byte: an error or some file, never a panic, nor memory beyond the file's own size.
    #[test]
    fn damaged_files_are_refused_or_read() {
        let good = write(&sample("386E", true));
        for n in 0..good.len() {
            // The end of a chunk is a good end.
            let _ = parse(&good[..n]);
            for value in [0, 0x7F, 0xFF] {
                let mut bad = good.clone();
                bad[n] = value;
                if let Ok(file) = parse(&bad) {
                    let bytes = |s: &State| s.ram.capacity() * 8;
                    let held: usize = file.tests.iter().map(|t| bytes(&t.initial) + bytes(&t.last)).sum();
                    assert!(held <= 4 * good.len(), "{held} bytes of RAM entries from {}", good.len());
                }
            }
        }
        assert!(matches!(parse(b"RIFF\0\0\0\0"), Err(MooError::Magic(_))));
        assert!(matches!(parse(&good[..good.len() - 1]), Err(MooError::Truncated(_))));
    }

    /// A small gzip file that would unpack to more than any family's.
    #[test]
    fn what_unpacks_to_too_much_is_refused() {
        use std::io::Write;
        let folder = std::env::temp_dir().join(format!("trimaran-moo-{}", std::process::id()));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        for _ in 0..(read::LONGEST >> 20) + 1 {
            packed.write_all(&[0; 1 << 20]).expect("packs");
        }
        std::fs::write(&folder, packed.finish().expect("packs")).expect("a temporary file");
        let result = read(&folder);
        let _ = std::fs::remove_file(&folder);
        assert!(matches!(result, Err(MooError::TooLong(_))), "{:?}", result.map(|f| f.tests.len()));
    }
}
