//! Commands of a CD-ROM drive: ATAPI's own (ATA/ATAPI-6, "PACKET Command feature set") and the packet
//! commands (MMC-3, SPC-2).

use super::ata::{bytes, text, transfer_modes};
use super::drive::{Action, BUFFER, COMMAND_DELAY, Device, Drive, Phase, Sense, error, status};
use crate::block::Medium;
use crate::chip::Nanos;

pub const SECTOR: usize = 2048;

/// ATA commands of a packet device.
const DEVICE_RESET: u8 = 0x08;
const PACKET: u8 = 0xA0;
const IDENTIFY_PACKET_DEVICE: u8 = 0xA1;
const FLUSH_CACHE: u8 = 0xE7;
const SET_FEATURES: u8 = 0xEF;
/// Interrupt reason (the sector count register): command or data, direction.
const COD: u16 = 1;
const IO: u16 = 2;

/// Sense data.
const NO_MEDIUM: Sense = Sense { key: 2, asc: 0x3A, ascq: 0 };
const UNRECOVERED_READ: Sense = Sense { key: 3, asc: 0x11, ascq: 0 };
const INVALID_COMMAND: Sense = Sense { key: 5, asc: 0x20, ascq: 0 };
const LBA_OUT_OF_RANGE: Sense = Sense { key: 5, asc: 0x21, ascq: 0 };
const INVALID_FIELD: Sense = Sense { key: 5, asc: 0x24, ascq: 0 };
const REMOVAL_PREVENTED: Sense = Sense { key: 5, asc: 0x53, ascq: 2 };
const MEDIUM_CHANGED: Sense = Sense { key: 6, asc: 0x28, ascq: 0 };

/// GET EVENT STATUS NOTIFICATION, media class.
const EVENT_NEW_MEDIA: u8 = 2;
const EVENT_MEDIA_REMOVAL: u8 = 3;
/// A disc with more sectors is a DVD.
const CD_SECTORS: u32 = 450_000;

/// What a packet command answers.
enum Reply {
    Done,
    /// Bytes, cut to the allocation length.
    Data(Vec<u8>, usize),
    /// Sectors from the disc.
    Sectors(u32, u32),
}

fn be16(p: &[u8; 12], at: usize) -> u32 {
    u32::from(p[at]) << 8 | u32::from(p[at + 1])
}

fn be32(p: &[u8; 12], at: usize) -> u32 {
    be16(p, at) << 16 | be16(p, at + 2)
}

/// A block address as TOC and subchannel data give it: LBA, or minute-second-frame.
fn address(lba: u32, msf: bool) -> [u8; 4] {
    if !msf {
        return lba.to_be_bytes();
    }
    let frames = lba.saturating_add(150);
    [0, (frames / (75 * 60)).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

impl Device {
    pub fn atapi_command(&mut self, now: Nanos, code: u8) {
        match code {
            DEVICE_RESET => {
                self.reset(false);
                self.finish_reset_at(now.saturating_add(COMMAND_DELAY));
            }
            PACKET => {
                let limit = (self.state.lba_high << 8) | self.state.lba_mid & 0xFF;
                self.state.limit = if matches!(limit, 0 | 0xFFFF) { 0xFFFE } else { limit };
                self.state.packet_dma = self.state.features & 1 != 0;
                self.state.count = COD;
                self.state.buffer.resize(12, 0);
                self.request(Phase::Packet, 12, false);
            }
            IDENTIFY_PACKET_DEVICE => {
                self.state.buffer = self.identify_packet();
                self.later(now, COMMAND_DELAY, Action::ReadBlock);
            }
            SET_FEATURES => {
                let (feature, mode) = (self.state.features as u8, self.state.count as u8);
                if feature == 3 && matches!(mode, 0x20..=0x22 | 0x40..=0x45) {
                    self.state.transfer_mode = mode;
                }
                self.later(now, COMMAND_DELAY, Action::Finish);
            }
            // Power management and flush: nothing to do.
            FLUSH_CACHE | 0xE0..=0xE3 | 0xE6 => self.later(now, COMMAND_DELAY, Action::Finish),
            0xE5 => {
                self.state.count = 0xFF;
                self.later(now, COMMAND_DELAY, Action::Finish);
            }
            _ => {
                // IDENTIFY DEVICE, READ SECTORS and the rest are aborted with the signature.
                self.signature();
                self.fail(error::ABRT);
            }
        }
    }

    pub fn change_medium(&mut self, medium: Option<Box<dyn Medium>>) -> bool {
        let Drive::CdRom(slot) = &mut self.drive else { return false };
        let loaded = medium.is_some();
        *slot = medium;
        self.state.tray_open = false;
        self.state.unit_attention = Some(MEDIUM_CHANGED);
        self.state.media_event = if loaded { EVENT_NEW_MEDIA } else { EVENT_MEDIA_REMOVAL };
        true
    }

    /// The disc's sectors, where there is one and the tray is closed.
    fn disc(&self) -> Result<u32, Sense> {
        match &self.drive {
            Drive::CdRom(Some(disc)) if !self.state.tray_open => {
                Ok((disc.len() / SECTOR as u64).min(1 << 24) as u32)
            }
            _ => Err(NO_MEDIUM),
        }
    }

    /// The packet is complete in the buffer.
    pub fn packet(&mut self, now: Nanos, dma_active: bool) {
        let mut packet = [0; 12];
        for (to, &from) in packet.iter_mut().zip(&self.state.buffer) {
            *to = from;
        }
        self.state.buffer.clear();
        (self.state.position, self.state.end, self.state.left) = (0, 0, 0);
        match self.execute(&packet) {
            Ok(reply) => {
                if packet[0] != REQUEST_SENSE {
                    self.state.sense = Sense::default();
                }
                match reply {
                    Reply::Done => return self.packet_end(),
                    Reply::Data(mut data, allocated) => {
                        data.truncate(allocated.min(BUFFER));
                        self.state.buffer = data;
                    }
                    Reply::Sectors(lba, count) => (self.state.lba, self.state.left) = (lba.into(), count),
                }
                if self.state.buffer.is_empty() && self.state.left == 0 {
                    return self.packet_end();
                }
                self.state.writing = false;
                if self.state.packet_dma {
                    self.request_dma();
                    if dma_active {
                        self.start_dma(now);
                    }
                } else {
                    self.state.packet_data = true;
                    self.packet_data();
                }
            }
            Err(sense) => self.check_condition(sense),
        }
    }

    fn check_condition(&mut self, sense: Sense) {
        self.state.sense = sense;
        self.fail(sense.key << 4 | error::ABRT);
        self.state.status = status::DRDY | status::ERR;
        self.state.count = IO | COD;
    }

    pub fn medium_error(&mut self) {
        self.check_condition(UNRECOVERED_READ);
    }

    /// A packet command ends well.
    pub fn packet_end(&mut self) {
        self.complete();
        self.state.status = status::DRDY;
        self.state.count = IO | COD;
    }

    /// The next piece of a PIO packet command: at most the host's byte count limit.
    pub fn packet_data(&mut self) {
        if self.state.position as usize >= self.state.buffer.len() {
            if self.state.left == 0 {
                return self.packet_end();
            }
            if self.refill().is_err() {
                return self.medium_error();
            }
        }
        let limit = usize::from(self.state.limit).max(2);
        let rest = self.state.buffer.len() - (self.state.position as usize).min(self.state.buffer.len());
        // An odd limit only counts for the last piece.
        let piece = if rest > limit { limit & !1 } else { rest };
        (self.state.lba_mid, self.state.lba_high) = (piece as u16 & 0xFF, piece as u16 >> 8);
        self.state.count = IO;
        self.request(Phase::DataIn, self.state.position as usize + piece, true);
    }

    fn execute(&mut self, p: &[u8; 12]) -> Result<Reply, Sense> {
        let quiet = matches!(p[0], INQUIRY | REQUEST_SENSE | GET_CONFIGURATION | GET_EVENT_STATUS);
        if !quiet && let Some(attention) = self.state.unit_attention.take() {
            return Err(attention);
        }
        match p[0] {
            TEST_UNIT_READY => self.disc().map(|_| Reply::Done),
            REQUEST_SENSE => {
                let sense = self.state.unit_attention.take().unwrap_or(self.state.sense);
                self.state.sense = Sense::default();
                let mut data = vec![0; 18];
                (data[0], data[2], data[7], data[12], data[13]) =
                    (0x70, sense.key, 10, sense.asc, sense.ascq);
                Ok(Reply::Data(data, p[4].into()))
            }
            INQUIRY => {
                if p[1] & 3 != 0 {
                    return Err(INVALID_FIELD);
                }
                // CD-ROM, removable, ATAPI response format.
                let mut data = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
                data.extend(b"TRIMARANCD-ROM          1.0 ");
                Ok(Reply::Data(data, be16(p, 3) as usize))
            }
            START_STOP_UNIT => self.start_stop(p[4]),
            PREVENT_ALLOW => {
                self.state.locked = p[4] & 1 != 0;
                Ok(Reply::Done)
            }
            READ_10 => self.read(be32(p, 2), be16(p, 7)),
            READ_12 => self.read(be32(p, 2), be32(p, 6)),
            READ_CD => match p[9] & 0xF8 {
                0x00 => self.disc().map(|_| Reply::Done),
                // User data only, of whatever sector type that has 2,048 bytes of them.
                0x10 => self.read(be32(p, 2), be32(p, 5) & 0x00FF_FFFF),
                _ => Err(INVALID_FIELD),
            },
            SEEK_10 => match self.disc()? {
                sectors if be32(p, 2) < sectors => Ok(Reply::Done),
                _ => Err(LBA_OUT_OF_RANGE),
            },
            READ_CAPACITY => {
                let last = self.disc()?.saturating_sub(1);
                let size = SECTOR as u32;
                Ok(Reply::Data([last.to_be_bytes(), size.to_be_bytes()].concat(), 8))
            }
            READ_SUBCHANNEL => {
                self.disc()?;
                let mut data = vec![0, 0x15, 0, 0];
                if p[2] & 0x40 != 0 {
                    if p[3] != 1 {
                        return Err(INVALID_FIELD);
                    }
                    data.extend([1, 0x14, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
                    data[3] = 12;
                }
                Ok(Reply::Data(data, be16(p, 7) as usize))
            }
            READ_TOC => self.read_toc(p),
            GET_CONFIGURATION => Ok(self.get_configuration(p)),
            GET_EVENT_STATUS => {
                if p[1] & 1 == 0 {
                    return Err(INVALID_FIELD); // asynchronous operation
                }
                let mut data = vec![0, 2, 0x80, 0x10];
                if p[4] & 0x10 != 0 {
                    let present = matches!(self.drive, Drive::CdRom(Some(_))) && !self.state.tray_open;
                    let status = u8::from(present) << 1 | u8::from(self.state.tray_open);
                    data = vec![0, 6, 0x04, 0x10, std::mem::take(&mut self.state.media_event), status, 0, 0];
                }
                Ok(Reply::Data(data, be16(p, 7) as usize))
            }
            READ_DISC_INFORMATION => {
                self.disc()?;
                let mut data = vec![0; 34];
                // Finalised disc; one session of one track.
                (data[1], data[2], data[3], data[4], data[5], data[6]) = (32, 0x0E, 1, 1, 1, 1);
                (data[7], data[8]) = (0x20, 0x00);
                data[16..24].fill(0xFF);
                Ok(Reply::Data(data, be16(p, 7) as usize))
            }
            READ_TRACK_INFORMATION => {
                let sectors = self.disc()?;
                let mut data = vec![0; 36];
                (data[1], data[2], data[3], data[5], data[6]) = (34, 1, 1, 4, 1);
                data[24..28].copy_from_slice(&sectors.to_be_bytes());
                Ok(Reply::Data(data, be16(p, 7) as usize))
            }
            MODE_SENSE_6 => self.mode_sense(p[2], p[4].into(), false),
            MODE_SENSE_10 => self.mode_sense(p[2], be16(p, 7) as usize, true),
            MECHANISM_STATUS => {
                let door = u8::from(self.state.tray_open) << 4;
                Ok(Reply::Data(vec![0, door, 0, 0, 0, 1, 0, 0], be16(p, 8) as usize))
            }
            SET_CD_SPEED | SYNCHRONIZE_CACHE => Ok(Reply::Done),
            _ => Err(INVALID_COMMAND),
        }
    }

    fn read(&mut self, lba: u32, count: u32) -> Result<Reply, Sense> {
        let sectors = self.disc()?;
        if lba.checked_add(count).is_none_or(|end| end > sectors) {
            return Err(LBA_OUT_OF_RANGE);
        }
        Ok(Reply::Sectors(lba, count))
    }

    fn start_stop(&mut self, operation: u8) -> Result<Reply, Sense> {
        match operation & 3 {
            2 if self.state.locked => return Err(REMOVAL_PREVENTED),
            2 if !self.state.tray_open => {
                self.state.tray_open = true;
                self.state.media_event = EVENT_MEDIA_REMOVAL;
            }
            3 if self.state.tray_open => {
                self.state.tray_open = false;
                if self.disc().is_ok() {
                    self.state.unit_attention = Some(MEDIUM_CHANGED);
                    self.state.media_event = EVENT_NEW_MEDIA;
                }
            }
            _ => {}
        }
        Ok(Reply::Done)
    }

    fn read_toc(&mut self, p: &[u8; 12]) -> Result<Reply, Sense> {
        let end = self.disc()?;
        let msf = p[1] & 2 != 0;
        let format = if p[2] & 0x0F != 0 { p[2] & 0x0F } else { p[9] >> 6 };
        let mut data = vec![0, 0, 1, 1];
        match format {
            0 => {
                if p[6] > 1 && p[6] != 0xAA {
                    return Err(INVALID_FIELD);
                }
                if p[6] <= 1 {
                    data.extend([0, 0x14, 1, 0]);
                    data.extend(address(0, msf));
                }
                data.extend([0, 0x14, 0xAA, 0]);
                data.extend(address(end, msf));
            }
            1 => {
                data.extend([0, 0x14, 1, 0]);
                data.extend(address(0, msf));
            }
            2 => {
                // First track, last track, lead-out, track 1: session, control, TNO, point, MSF, PMSF.
                let point = |point, at: [u8; 3]| [1, 0x14, 0, point, 0, 0, 0, 0, at[0], at[1], at[2]];
                let [_, m, s, f] = address(end, true);
                for (number, at) in [(0xA0, [1, 0, 0]), (0xA1, [1, 0, 0]), (0xA2, [m, s, f]), (1, [0, 2, 0])]
                {
                    data.extend(point(number, at));
                }
            }
            _ => return Err(INVALID_FIELD),
        }
        data[1] = (data.len() - 2) as u8;
        Ok(Reply::Data(data, be16(p, 7) as usize))
    }

    fn get_configuration(&self, p: &[u8; 12]) -> Reply {
        const CD_ROM: [u8; 2] = [0, 0x08];
        const DVD_ROM: [u8; 2] = [0, 0x10];
        let profile = match self.disc() {
            Ok(sectors) if sectors > CD_SECTORS => DVD_ROM,
            Ok(_) => CD_ROM,
            Err(_) => [0, 0],
        };
        // Feature code, version and flags (bit 0: current), data.
        let current = |of: [u8; 2]| u8::from(profile == of);
        let features: [(u16, u8, Vec<u8>); 6] = [
            (0x0000, 0x03, vec![0, 0x10, current(DVD_ROM), 0, 0, 0x08, current(CD_ROM), 0]),
            (0x0001, 0x03, vec![0, 0, 0, 2]),
            (0x0003, 0x03, vec![0x29, 0, 0, 0]),
            (0x0010, current(CD_ROM) | current(DVD_ROM), vec![0, 0, 8, 0, 0, 1, 0, 0]),
            (0x001E, 0x08 | current(CD_ROM), vec![0, 0, 0, 0]),
            (0x001F, current(DVD_ROM), vec![]),
        ];
        let start = be16(p, 2);
        let mut data = vec![0, 0, 0, 0, 0, 0, profile[0], profile[1]];
        for (code, flags, body) in features {
            let wanted = match p[1] & 3 {
                0 => u32::from(code) >= start,
                1 => u32::from(code) >= start && flags & 1 != 0,
                _ => u32::from(code) == start,
            };
            if wanted {
                data.extend(code.to_be_bytes());
                data.extend([flags, body.len() as u8]);
                data.extend(body);
            }
        }
        data[3] = (data.len() - 4) as u8;
        Reply::Data(data, be16(p, 7) as usize)
    }

    fn mode_sense(&mut self, control: u8, allocated: usize, ten: bool) -> Result<Reply, Sense> {
        const RECOVERY: &[u8] = &[0x01, 6, 0, 5, 0, 0, 0, 0];
        const AUDIO: &[u8] = &[0x0E, 14, 4, 0, 0, 0, 0, 75, 1, 0xFF, 2, 0xFF, 0, 0, 0, 0];
        const TIMEOUT: &[u8] = &[0x1D, 10, 0, 0, 0, 0, 0, 60, 0, 60, 0, 0];
        // Capabilities: reads CD-R, CD-RW, DVD; tray loader, lock, eject; 16 speeds (2,816 KB/s).
        let lock = 0x29 | u8::from(self.state.locked) << 1;
        let capabilities = [0x2A, 18, 0x0B, 0, 0x70, 0x60, lock, 0, 11, 0, 0, 2, 2, 0, 11, 0, 0, 0, 0, 0];
        let pages: Vec<&[u8]> = match control & 0x3F {
            0x01 => vec![RECOVERY],
            0x0E => vec![AUDIO],
            0x1D => vec![TIMEOUT],
            0x2A => vec![&capabilities],
            0x3F => vec![RECOVERY, AUDIO, TIMEOUT, &capabilities],
            _ => return Err(INVALID_FIELD),
        };
        if control >> 6 == 3 {
            return Err(Sense { key: 5, asc: 0x39, ascq: 0 }); // saved values are not supported
        }
        let body = pages.concat();
        let medium = if self.disc().is_ok() { 0x01 } else { 0x70 };
        let mut data = if ten {
            vec![0, (body.len() + 6) as u8, medium, 0, 0, 0, 0, 0]
        } else {
            vec![(body.len() + 3) as u8, medium, 0, 0]
        };
        data.extend(body);
        Ok(Reply::Data(data, allocated))
    }

    fn identify_packet(&self) -> Vec<u8> {
        let mut w = [0u16; 256];
        w[0] = 0x85C0; // ATAPI, CD-ROM, removable, DRQ within 50 us, 12-byte packets
        text(&mut w[10..20], &format!("TRIMARAN-{:05}", self.number + 1));
        text(&mut w[23..27], "1.0");
        text(&mut w[27..47], "TRIMARAN CD-ROM");
        w[49] = 0x0B00;
        w[53] = 7;
        transfer_modes(&mut w, self.state.transfer_mode);
        w[80] = 0x007E;
        w[82] = 0x4210; // NOP, DEVICE RESET, PACKET
        w[83] = 0x4000;
        w[84] = 0x4000;
        w[85] = 0x4210;
        w[87] = 0x4000;
        w[93] = 0x6001;
        bytes(&w)
    }
}

/// Packet command codes.
const TEST_UNIT_READY: u8 = 0x00;
const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const MODE_SENSE_6: u8 = 0x1A;
const START_STOP_UNIT: u8 = 0x1B;
const PREVENT_ALLOW: u8 = 0x1E;
const READ_CAPACITY: u8 = 0x25;
const READ_10: u8 = 0x28;
const SEEK_10: u8 = 0x2B;
const SYNCHRONIZE_CACHE: u8 = 0x35;
const READ_SUBCHANNEL: u8 = 0x42;
const READ_TOC: u8 = 0x43;
const GET_CONFIGURATION: u8 = 0x46;
const GET_EVENT_STATUS: u8 = 0x4A;
const READ_DISC_INFORMATION: u8 = 0x51;
const READ_TRACK_INFORMATION: u8 = 0x52;
const MODE_SENSE_10: u8 = 0x5A;
const READ_12: u8 = 0xA8;
const SET_CD_SPEED: u8 = 0xBB;
const MECHANISM_STATUS: u8 = 0xBD;
const READ_CD: u8 = 0xBE;
