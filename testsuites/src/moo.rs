//! The MOO container of the SingleStepTests: processor tests recorded from hardware.
//!
//! Little-endian chunks `{id: 4 characters, length: u32, payload}`, usually gzipped. Chunks that we do not know are
//! skipped by their length; every length is checked against what is left.

use std::io::Read;
use std::path::Path;

/// Registers of a 16-bit processor in the order of a `REGS` mask.
pub const REGISTERS: [&str; 14] =
    ["ax", "bx", "cx", "dx", "cs", "ss", "ds", "es", "sp", "bp", "si", "di", "ip", "flags"];

/// Processor state before or after: values are present where given.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub registers: [Option<u32>; 14],
    pub ram: Vec<(u32, u8)>,
}

/// An exception that the recorded instruction raised.
#[derive(Clone, Copy, Debug)]
pub struct Exception {
    pub vector: u8,
    /// Physical address of the pushed flags.
    pub flags_at: u32,
}

#[derive(Clone, Debug, Default)]
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

#[derive(Clone, Debug, Default)]
pub struct File {
    /// Bits of each register that are defined, where the file says so.
    pub masks: [Option<u32>; 14],
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
}

/// A cursor over checked bytes.
struct Bytes<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], MooError> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.data.len());
        let end = end.ok_or(MooError::Truncated(self.at))?;
        let out = &self.data[self.at..end];
        self.at = end;
        Ok(out)
    }
    fn u8(&mut self) -> Result<u8, MooError> {
        Ok(self.take(1)?[0])
    }
    fn u16(&mut self) -> Result<u16, MooError> {
        let b = self.take(2)?;
        Ok(u16::from_le_bytes([b[0], b[1]]))
    }
    fn u32(&mut self) -> Result<u32, MooError> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
    fn chunk(&mut self) -> Result<Option<(&'a [u8], Bytes<'a>)>, MooError> {
        if self.at == self.data.len() {
            return Ok(None);
        }
        let id = self.take(4)?;
        let len = self.u32()? as usize;
        Ok(Some((id, Bytes { data: self.take(len)?, at: 0 })))
    }
    fn registers(&mut self) -> Result<[Option<u32>; 14], MooError> {
        let mask = self.u16()?;
        let mut out = [None; 14];
        for (n, value) in out.iter_mut().enumerate() {
            if mask >> n & 1 != 0 {
                *value = Some(u32::from(self.u16()?));
            }
        }
        Ok(out)
    }
}

/// Reads a file, gzipped or plain.
pub fn read(path: &Path) -> Result<File, MooError> {
    let raw = std::fs::read(path)?;
    if raw.starts_with(&[0x1F, 0x8B]) {
        let mut data = Vec::new();
        flate2::read::GzDecoder::new(&raw[..]).read_to_end(&mut data)?;
        return parse(&data);
    }
    parse(&raw)
}

/// Parses an unpacked file.
pub fn parse(data: &[u8]) -> Result<File, MooError> {
    let mut all = Bytes { data, at: 0 };
    let mut file = File::default();
    let mut first = true;
    while let Some((id, mut body)) = all.chunk()? {
        if first && id != b"MOO " {
            return Err(MooError::Magic(String::from_utf8_lossy(id).into()));
        }
        first = false;
        match id {
            b"RMSK" => file.masks = body.registers()?,
            b"TEST" => file.tests.push(test(&mut body)?),
            _ => {}
        }
    }
    Ok(file)
}

fn test(body: &mut Bytes) -> Result<Test, MooError> {
    let mut test = Test { index: body.u32()?, ..Test::default() };
    while let Some((id, mut body)) = body.chunk()? {
        match id {
            b"NAME" => {
                let n = body.u32()? as usize;
                test.name = String::from_utf8_lossy(body.take(n)?).into();
            }
            b"BYTS" => {
                let n = body.u32()? as usize;
                test.bytes = body.take(n)?.to_vec();
            }
            b"INIT" => test.initial = state(&mut body)?,
            b"FINA" => test.last = state(&mut body)?,
            b"EXCP" => test.exception = Some(Exception { vector: body.u8()?, flags_at: body.u32()? }),
            b"HASH" => test.hash = body.data.iter().map(|b| format!("{b:02x}")).collect(),
            _ => {}
        }
    }
    Ok(test)
}

fn state(body: &mut Bytes) -> Result<State, MooError> {
    let mut state = State::default();
    while let Some((id, mut body)) = body.chunk()? {
        match id {
            b"REGS" => state.registers = body.registers()?,
            b"RAM " => {
                let n = body.u32()?;
                for _ in 0..n {
                    state.ram.push((body.u32()?, body.u8()?));
                }
            }
            _ => {}
        }
    }
    Ok(state)
}
