//! Reading: every length is checked against what is left.

use super::{COUNT, Exception, File, MooError, ORDER_OF_16_BITS, Registers, State, Test};
use std::io::Read;
use std::path::Path;

/// Longest file that is unpacked, in bytes. The longest of the families, with cycles, have some 100 MB.
pub const LONGEST: u64 = 1 << 29;

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
    /// `REGS` or `RMSK`.
    fn registers_16(&mut self) -> Result<Registers, MooError> {
        let mask = self.u16()?;
        let mut out = [None; COUNT];
        for (n, &place) in ORDER_OF_16_BITS.iter().enumerate() {
            if mask >> n & 1 != 0 {
                out[place] = Some(u32::from(self.u16()?));
            }
        }
        Ok(out)
    }
    /// `RG32` or `RM32`.
    fn registers_32(&mut self) -> Result<Registers, MooError> {
        let mask = self.u32()?;
        let mut out = [None; COUNT];
        for (n, value) in out.iter_mut().enumerate() {
            if mask >> n & 1 != 0 {
                *value = Some(self.u32()?);
            }
        }
        Ok(out)
    }
    /// A counted string of bytes.
    fn counted(&mut self) -> Result<&'a [u8], MooError> {
        let n = self.u32()? as usize;
        self.take(n)
    }
}

/// Reads a file, gzipped or plain.
pub fn read(path: &Path) -> Result<File, MooError> {
    let raw = std::fs::read(path)?;
    if raw.starts_with(&[0x1F, 0x8B]) {
        let mut data = Vec::new();
        let length = flate2::read::GzDecoder::new(&raw[..]).take(LONGEST + 1).read_to_end(&mut data)?;
        return if length as u64 > LONGEST { Err(MooError::TooLong(LONGEST)) } else { parse(&data) };
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
            b"MOO " => {
                // Version, reserved, number of tests.
                body.take(8)?;
                file.cpu = String::from_utf8_lossy(body.take(4)?).trim_end().into();
            }
            b"RMSK" => file.masks = body.registers_16()?,
            b"RM32" => file.masks = body.registers_32()?,
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
            b"NAME" => test.name = String::from_utf8_lossy(body.counted()?).into(),
            b"BYTS" => test.bytes = body.counted()?.to_vec(),
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
            b"REGS" => state.registers = body.registers_16()?,
            b"RG32" => state.registers = body.registers_32()?,
            b"RMSK" => state.masks = body.registers_16()?,
            b"RM32" => state.masks = body.registers_32()?,
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
