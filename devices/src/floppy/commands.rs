//! The command, execution and result phases (82077AA datasheet, "Command set").

use super::media::{Geometry, SECTOR};
use super::{Action, BUFFER, COMMAND_DELAY, Floppy, Phase, SECTOR_DELAY, STEP_DELAY};
use crate::chip::Cx;

/// Command codes, without MT, MFM and SK (bits 7 to 5).
mod code {
    pub const READ_TRACK: u8 = 0x02;
    pub const SPECIFY: u8 = 0x03;
    pub const SENSE_DRIVE_STATUS: u8 = 0x04;
    pub const WRITE_DATA: u8 = 0x05;
    pub const READ_DATA: u8 = 0x06;
    pub const RECALIBRATE: u8 = 0x07;
    pub const SENSE_INTERRUPT: u8 = 0x08;
    pub const WRITE_DELETED_DATA: u8 = 0x09;
    pub const READ_ID: u8 = 0x0A;
    pub const READ_DELETED_DATA: u8 = 0x0C;
    pub const FORMAT_TRACK: u8 = 0x0D;
    pub const DUMPREG: u8 = 0x0E;
    pub const SEEK: u8 = 0x0F;
    pub const VERSION: u8 = 0x10;
    pub const PERPENDICULAR_MODE: u8 = 0x12;
    pub const CONFIGURE: u8 = 0x13;
    pub const LOCK: u8 = 0x14;
}

/// Command byte: multi-track.
const MT: u8 = 0x80;
/// CONFIGURE: implied seek.
const EIS: u8 = 0x40;
/// The size code of 512-byte sectors.
const N_512: u8 = 2;

/// ST0: interrupt code, seek end, equipment check.
const ABNORMAL: u8 = 0x40;
const INVALID: u8 = 0x80;
const POLLING: u8 = 0xC0;
const SE: u8 = 0x20;
const EC: u8 = 0x10;
/// ST1: end of cylinder, data error, no data, not writable, missing address mark.
const EN: u8 = 0x80;
const DE: u8 = 0x20;
const ND: u8 = 0x04;
const NW: u8 = 0x02;
const MA: u8 = 0x01;
/// ST2: wrong cylinder, control mark.
const WC: u8 = 0x10;
const CM: u8 = 0x40;

/// ST1 and ST2 of a failed transfer.
type Failure = (u8, u8);

/// Bytes of a command, its code included.
fn length(command: u8) -> usize {
    use code::*;
    match command & 0x1F {
        READ_TRACK | WRITE_DATA | READ_DATA | WRITE_DELETED_DATA | READ_DELETED_DATA => 9,
        FORMAT_TRACK => 6,
        CONFIGURE => 4,
        SPECIFY | SEEK => 3,
        SENSE_DRIVE_STATUS | RECALIBRATE | READ_ID | PERPENDICULAR_MODE => 2,
        _ => 1,
    }
}

impl Floppy {
    fn parameter(&self, index: usize) -> u8 {
        self.state.command.get(index).copied().unwrap_or(0)
    }

    /// The drive that the command's second byte names.
    fn unit(&self) -> u8 {
        self.parameter(1) & 3
    }

    fn code(&self) -> u8 {
        self.parameter(0) & 0x1F
    }

    pub(super) fn command_byte(&mut self, cx: &mut Cx, value: u8) {
        self.state.command.push(value);
        if self.state.command.len() >= length(self.parameter(0)) {
            self.execute(cx);
        }
    }

    fn execute(&mut self, cx: &mut Cx) {
        use code::*;
        let (first, second) = (self.parameter(1), self.parameter(2));
        match self.code() {
            SPECIFY => {
                self.state.specify = [first, second];
                self.done();
            }
            CONFIGURE => {
                (self.state.configure, self.state.precompensation) = (second, self.parameter(3));
                self.done();
            }
            PERPENDICULAR_MODE => {
                self.state.perpendicular = first;
                self.done();
            }
            SENSE_DRIVE_STATUS => {
                let st3 = self.st3();
                self.answer(&[st3]);
            }
            SENSE_INTERRUPT => self.sense_interrupt(),
            RECALIBRATE => self.seek(cx, 0),
            SEEK => self.seek(cx, second),
            VERSION => self.answer(&[0x90]),
            LOCK => {
                self.state.locked = self.parameter(0) & 0x80 != 0;
                let lock = u8::from(self.state.locked) << 4;
                self.answer(&[lock]);
            }
            DUMPREG => {
                let s = &self.state;
                let [a, b, c, d] = s.track;
                let lock = u8::from(s.locked) << 7 | s.perpendicular & 0x7F;
                let [rates, loads] = s.specify;
                let answer = [a, b, c, d, rates, loads, s.sector, lock, s.configure, s.precompensation];
                self.answer(&answer);
            }
            READ_ID => self.start(cx, Action::ReadId),
            READ_DATA | READ_DELETED_DATA | READ_TRACK | WRITE_DATA | WRITE_DELETED_DATA => {
                let from = if self.code() == READ_TRACK { 1 } else { self.parameter(4) };
                (self.state.cylinder, self.state.head, self.state.sector) = (second, self.parameter(3), from);
                if self.state.configure & EIS != 0 {
                    self.step_to(self.unit(), second);
                }
                self.start(cx, Action::Sector);
            }
            FORMAT_TRACK => {
                let track = self.state.track[usize::from(self.unit())];
                (self.state.cylinder, self.state.head) = (track, first >> 2 & 1);
                self.state.sector = 1;
                self.start(cx, Action::Sector);
            }
            _ => self.answer(&[INVALID]),
        }
    }

    fn start(&mut self, cx: &mut Cx, action: Action) {
        self.state.phase = Phase::Execution;
        self.state.pending = Some((cx.now.saturating_add(COMMAND_DELAY), action));
    }

    /// A command without a result phase ends.
    fn done(&mut self) {
        self.state.phase = Phase::Command;
        self.state.command.clear();
    }

    fn answer(&mut self, bytes: &[u8]) {
        self.state.command.clear();
        self.state.buffer.clear();
        self.state.position = 0;
        self.state.result = bytes.to_vec();
        self.state.phase = Phase::Result;
    }

    fn st3(&self) -> u8 {
        let unit = self.unit();
        let drive = self.drives.get(usize::from(unit));
        let track_0 = self.state.track[usize::from(unit)] == 0;
        let protected = drive.is_some_and(super::media::Drive::read_only);
        self.parameter(1) & 7 | 0x28 | u8::from(track_0) << 4 | u8::from(protected) << 6
    }

    fn sense_interrupt(&mut self) {
        self.state.int = false;
        if self.state.reset_sense > 0 {
            let unit = 4 - self.state.reset_sense.min(4);
            self.state.reset_sense -= 1;
            let track = self.state.track[usize::from(unit & 3)];
            return self.answer(&[POLLING | unit, track]);
        }
        let ended = (0..4).find_map(|unit| Some((unit, self.state.seek_sense[unit].take()?)));
        match ended {
            Some((unit, st0)) => self.answer(&[st0, self.state.track[unit]]),
            None => self.answer(&[INVALID]),
        }
    }

    fn seek(&mut self, cx: &mut Cx, cylinder: u8) {
        let drive = self.unit();
        let steps = u64::from(self.state.track[usize::from(drive)].abs_diff(cylinder));
        let at = cx.now.saturating_add(COMMAND_DELAY + steps * STEP_DELAY);
        self.state.pending = Some((at, Action::SeekDone { drive, cylinder }));
        self.done();
    }

    /// The head arrives; step pulses with a diskette inside clear the disk change line.
    fn step_to(&mut self, unit: u8, cylinder: u8) {
        self.state.track[usize::from(unit & 3)] = cylinder;
        let index = usize::from(unit);
        if let (Some(drive), Some(changed)) = (self.drives.get(index), self.state.disk_changed.get_mut(index))
        {
            *changed &= drive.medium.is_none();
        }
    }

    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::ResetDone => {
                self.state.reset_sense = 4;
                self.state.int = true;
            }
            Action::SeekDone { drive, cylinder } => {
                // Drives 2 and 3 do not exist: TRK0 never comes.
                let missing = usize::from(drive) >= self.drives.len();
                let fault = if missing { ABNORMAL | EC } else { 0 };
                self.step_to(drive, cylinder);
                self.state.seek_sense[usize::from(drive & 3)] = Some(SE | fault | drive & 3);
                self.state.int = true;
            }
            Action::Sector => {
                if let Err(failure) = self.sector() {
                    self.finish(failure);
                }
            }
            Action::ReadId => {
                let track = self.state.track[usize::from(self.unit())];
                (self.state.cylinder, self.state.head) = (track, self.parameter(1) >> 2 & 1);
                self.state.sector = 1;
                let found = self.geometry(self.state.head);
                self.finish(found.err().unwrap_or((0, 0)));
            }
        }
    }

    /// The format under the selected head, where it can be read at all.
    fn geometry(&self, head: u8) -> Result<Geometry, Failure> {
        let drive = self.drives.get(usize::from(self.unit()));
        let geometry = drive.and_then(super::media::Drive::geometry).ok_or((MA, 0))?;
        let track = self.state.track[usize::from(self.unit())];
        let there = head < geometry.heads && track < geometry.cylinders;
        if there && geometry.reads_at(self.state.ccr) { Ok(geometry) } else { Err((MA, 0)) }
    }

    /// Byte position in the image of the sector in C, H, R.
    fn find(&self) -> Result<u64, Failure> {
        let s = &self.state;
        let geometry = self.geometry(s.head)?;
        if s.cylinder != s.track[usize::from(self.unit())] {
            return Err((ND, WC));
        }
        if s.sector == 0 || s.sector > geometry.sectors || self.parameter(5) != N_512 {
            return Err((ND, 0));
        }
        let (heads, sectors) = (u64::from(geometry.heads), u64::from(geometry.sectors));
        let track = u64::from(s.cylinder) * heads + u64::from(s.head);
        Ok((track * sectors + u64::from(s.sector) - 1) * SECTOR as u64)
    }

    fn writes(&self) -> bool {
        matches!(self.code(), code::WRITE_DATA | code::WRITE_DELETED_DATA | code::FORMAT_TRACK)
    }

    /// Opens the data transfer of one sector (or of a track's headers).
    fn sector(&mut self) -> Result<(), Failure> {
        let format = self.code() == code::FORMAT_TRACK;
        let (position, len) = if format {
            self.geometry(self.state.head)?;
            (0, (usize::from(self.parameter(3)) * 4).min(BUFFER))
        } else {
            (self.find()?, SECTOR)
        };
        let writes = self.writes();
        let unit = usize::from(self.unit());
        let drive = self.drives.get_mut(unit).ok_or((MA, 0))?;
        if writes && drive.read_only() {
            return Err((NW, 0));
        }
        let mut buffer = std::mem::take(&mut self.state.buffer);
        buffer.clear();
        buffer.resize(len, 0);
        let read = if writes { Ok(()) } else { drive.read(position, &mut buffer) };
        self.state.buffer = buffer;
        self.state.position = 0;
        if let Err(cause) = read {
            tracing::warn!(target: "floppy", position, %cause, "read failed");
            return Err((DE, 0));
        }
        if len == 0 {
            return Err((EN, 0));
        }
        self.state.phase = if writes { Phase::FromHost } else { Phase::ToHost };
        // Without DMA, INT asks for the bytes.
        self.state.int |= !self.dma_mode();
        Ok(())
    }

    /// `bytes` of the buffer went over the bus.
    pub(super) fn moved(&mut self, cx: &mut Cx, bytes: usize, terminal_count: bool) {
        if !matches!(self.state.phase, Phase::ToHost | Phase::FromHost) {
            return;
        }
        let len = self.state.buffer.len();
        let position = usize::from(self.state.position).saturating_add(bytes).min(len);
        self.state.position = position as u16;
        if position < len && !terminal_count {
            return;
        }
        if self.state.phase == Phase::FromHost
            && let Err(failure) = self.store()
        {
            return self.finish(failure);
        }
        if self.code() == code::FORMAT_TRACK {
            return self.finish((0, 0));
        }
        let last = self.advance();
        if terminal_count {
            self.finish((0, 0));
        } else if last {
            self.finish((EN, 0));
        } else {
            self.state.phase = Phase::Execution;
            self.state.pending = Some((cx.now.saturating_add(SECTOR_DELAY), Action::Sector));
        }
    }

    /// Moves C, H, R on; true where the command's last sector (EOT) was behind.
    fn advance(&mut self) -> bool {
        let multi_track = self.parameter(0) & MT != 0 && self.code() != code::READ_TRACK;
        let end = self.parameter(6);
        let s = &mut self.state;
        if s.sector != end {
            s.sector = s.sector.wrapping_add(1);
            return false;
        }
        s.sector = 1;
        if multi_track && s.head & 1 == 0 {
            s.head |= 1;
            return false;
        }
        if multi_track {
            s.head &= !1;
        }
        s.cylinder = s.cylinder.wrapping_add(1);
        true
    }

    /// Writes the buffer: a sector, or a track of filler bytes.
    fn store(&mut self) -> Result<(), Failure> {
        let unit = usize::from(self.unit());
        let failed = |cause: std::io::Error| {
            tracing::warn!(target: "floppy", %cause, "write failed");
            (DE, 0)
        };
        if self.code() != code::FORMAT_TRACK {
            let position = self.find()?;
            let drive = self.drives.get_mut(unit).ok_or((MA, 0))?;
            return drive.write(position, &self.state.buffer).map_err(failed);
        }
        let filler = [self.parameter(5); SECTOR];
        let geometry = self.geometry(self.state.head)?;
        let track = u64::from(self.state.cylinder) * u64::from(geometry.heads) + u64::from(self.state.head);
        for header in self.state.buffer.chunks_exact(4) {
            // C, H, R, N of each sector; only the medium's own layout can be made.
            let sector = header[2];
            if sector == 0 || sector > geometry.sectors || header[3] != N_512 {
                return Err((ND, 0));
            }
            let number = track * u64::from(geometry.sectors) + u64::from(sector) - 1;
            let drive = self.drives.get_mut(unit).ok_or((MA, 0))?;
            drive.write(number * SECTOR as u64, &filler).map_err(failed)?;
        }
        Ok(())
    }

    /// The result phase of a transfer, READ ID or FORMAT TRACK.
    fn finish(&mut self, (st1, mut st2): Failure) {
        let abnormal = if st1 | st2 != 0 { ABNORMAL } else { 0 };
        if self.code() == code::READ_DELETED_DATA && st1 & !EN == 0 {
            st2 |= CM; // the sectors have ordinary data marks
        }
        let s = &self.state;
        let head = s.head & 1;
        let st0 = abnormal | head << 2 | self.unit();
        let answer = [st0, st1, st2, s.cylinder, s.head, s.sector, N_512];
        self.answer(&answer);
        self.state.int = true;
    }
}
