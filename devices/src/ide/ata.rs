//! Commands of a disk (ATA/ATAPI-6, "Command descriptions").

use super::drive::{Action, BUFFER, COMMAND_DELAY, Device, Drive, Phase, SECTOR, error, status};
use crate::chip::Nanos;
use std::io;

/// Command codes.
mod command {
    pub const READ_SECTORS: u8 = 0x20;
    pub const READ_SECTORS_NO_RETRY: u8 = 0x21;
    pub const READ_SECTORS_EXT: u8 = 0x24;
    pub const READ_DMA_EXT: u8 = 0x25;
    pub const READ_NATIVE_MAX_EXT: u8 = 0x27;
    pub const READ_MULTIPLE_EXT: u8 = 0x29;
    pub const WRITE_SECTORS: u8 = 0x30;
    pub const WRITE_SECTORS_NO_RETRY: u8 = 0x31;
    pub const WRITE_SECTORS_EXT: u8 = 0x34;
    pub const WRITE_DMA_EXT: u8 = 0x35;
    pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub const WRITE_VERIFY: u8 = 0x3C;
    pub const WRITE_DMA_FUA_EXT: u8 = 0x3D;
    pub const READ_VERIFY: u8 = 0x40;
    pub const READ_VERIFY_NO_RETRY: u8 = 0x41;
    pub const READ_VERIFY_EXT: u8 = 0x42;
    pub const INITIALIZE_DEVICE_PARAMETERS: u8 = 0x91;
    pub const READ_MULTIPLE: u8 = 0xC4;
    pub const WRITE_MULTIPLE: u8 = 0xC5;
    pub const SET_MULTIPLE_MODE: u8 = 0xC6;
    pub const READ_DMA: u8 = 0xC8;
    pub const READ_DMA_NO_RETRY: u8 = 0xC9;
    pub const WRITE_DMA: u8 = 0xCA;
    pub const WRITE_DMA_NO_RETRY: u8 = 0xCB;
    pub const WRITE_MULTIPLE_FUA_EXT: u8 = 0xCE;
    pub const CHECK_POWER_MODE: u8 = 0xE5;
    pub const OLD_CHECK_POWER_MODE: u8 = 0x98;
    pub const FLUSH_CACHE: u8 = 0xE7;
    pub const FLUSH_CACHE_EXT: u8 = 0xEA;
    pub const IDENTIFY_DEVICE: u8 = 0xEC;
    pub const SET_FEATURES: u8 = 0xEF;
    pub const READ_NATIVE_MAX: u8 = 0xF8;
}

/// Device register: LBA addressing.
const LBA: u8 = 0x40;
/// SET MULTIPLE MODE's largest block.
const MAX_MULTIPLE: u8 = 16;
const LBA28_SECTORS: u64 = 0x0FFF_FFFF;

impl Device {
    pub fn ata_command(&mut self, now: Nanos, code: u8) {
        use command::*;
        let finish = Action::Finish;
        let multiple = self.state.multiple;
        match code {
            READ_SECTORS | READ_SECTORS_NO_RETRY => self.pio(now, false, false, 1),
            READ_SECTORS_EXT => self.pio(now, false, true, 1),
            READ_MULTIPLE => self.pio(now, false, false, multiple),
            READ_MULTIPLE_EXT => self.pio(now, false, true, multiple),
            WRITE_SECTORS | WRITE_SECTORS_NO_RETRY | WRITE_VERIFY => self.pio(now, true, false, 1),
            WRITE_SECTORS_EXT => self.pio(now, true, true, 1),
            WRITE_MULTIPLE => self.pio(now, true, false, multiple),
            WRITE_MULTIPLE_EXT | WRITE_MULTIPLE_FUA_EXT => self.pio(now, true, true, multiple),
            READ_DMA | READ_DMA_NO_RETRY => self.dma(false, false),
            READ_DMA_EXT => self.dma(false, true),
            WRITE_DMA | WRITE_DMA_NO_RETRY => self.dma(true, false),
            WRITE_DMA_EXT | WRITE_DMA_FUA_EXT => self.dma(true, true),
            READ_VERIFY | READ_VERIFY_NO_RETRY | READ_VERIFY_EXT => {
                if self.address(code == READ_VERIFY_EXT) {
                    self.state.left = 0;
                    self.later(now, COMMAND_DELAY, finish);
                }
            }
            // RECALIBRATE and SEEK, in all their old codes.
            0x10..=0x1F | 0x70..=0x7F => self.later(now, COMMAND_DELAY, finish),
            INITIALIZE_DEVICE_PARAMETERS => {
                let sectors = self.state.count as u8;
                if sectors == 0 {
                    return self.fail(error::ABRT);
                }
                (self.state.heads, self.state.sectors) = ((self.state.device & 0x0F) + 1, sectors);
                self.later(now, COMMAND_DELAY, finish);
            }
            SET_MULTIPLE_MODE => {
                let count = self.state.count as u8;
                if count > MAX_MULTIPLE || count != 0 && !count.is_power_of_two() {
                    return self.fail(error::ABRT);
                }
                self.state.multiple = count;
                self.later(now, COMMAND_DELAY, finish);
            }
            CHECK_POWER_MODE | OLD_CHECK_POWER_MODE => {
                self.state.count = 0xFF; // active or idle
                self.later(now, COMMAND_DELAY, finish);
            }
            // STANDBY, IDLE, SLEEP, immediate and timed, old codes and new: the disk never spins down.
            0xE0..=0xE3 | 0xE6 | 0x94..=0x97 | 0x99 => self.later(now, COMMAND_DELAY, finish),
            FLUSH_CACHE | FLUSH_CACHE_EXT => match self.disk().map(|disk| disk.flush()) {
                Some(Ok(())) => self.later(now, COMMAND_DELAY, finish),
                _ => self.fault(),
            },
            IDENTIFY_DEVICE => {
                self.state.buffer = self.identify();
                self.state.left = 0;
                self.later(now, COMMAND_DELAY, Action::ReadBlock);
            }
            SET_FEATURES => self.set_features(now),
            READ_NATIVE_MAX | READ_NATIVE_MAX_EXT => {
                let extended = code == READ_NATIVE_MAX_EXT;
                let last = self.disk_sectors().saturating_sub(1);
                let last = if extended { last } else { last.min(LBA28_SECTORS - 1) };
                self.set_lba(last, extended);
                self.later(now, COMMAND_DELAY, finish);
            }
            _ => self.fail(error::ABRT),
        }
    }

    fn disk(&mut self) -> Option<&mut Box<dyn crate::block::Medium>> {
        match &mut self.drive {
            Drive::Disk(disk) => Some(disk),
            Drive::CdRom(_) => None,
        }
    }

    fn disk_sectors(&self) -> u64 {
        match &self.drive {
            Drive::Disk(disk) => (disk.len() / SECTOR as u64).min(1 << 48),
            Drive::CdRom(_) => 0,
        }
    }

    /// Cylinders, heads, sectors a track that IDENTIFY reports as the default translation.
    fn geometry(&self) -> (u16, u8, u8) {
        let cylinders = (self.disk_sectors() / (16 * 63)).clamp(1, 16383);
        (cylinders as u16, 16, 63)
    }

    fn set_lba(&mut self, lba: u64, extended: bool) {
        let byte = |n: u32| (lba >> n) as u8;
        let state = &mut self.state;
        let high = |n| if extended { u16::from(byte(n)) << 8 } else { 0 };
        state.lba_low = u16::from(byte(0)) | high(24);
        state.lba_mid = u16::from(byte(8)) | high(32);
        state.lba_high = u16::from(byte(16)) | high(40);
        if !extended {
            state.device = state.device & 0xF0 | byte(24) & 0x0F;
        }
    }

    /// Takes the transfer's first sector and count from the task file; fails the command and returns false
    /// where they lie outside of the disk.
    fn address(&mut self, extended: bool) -> bool {
        let state = &self.state;
        let low = |register: u16| u64::from(register as u8);
        let high = |register: u16| u64::from(register >> 8);
        let lba24 = low(state.lba_low) | low(state.lba_mid) << 8 | low(state.lba_high) << 16;
        let (lba, count) = if extended {
            let top = high(state.lba_low) << 24 | high(state.lba_mid) << 32 | high(state.lba_high) << 40;
            let count = u32::from(state.count);
            (Some(lba24 | top), if count == 0 { 0x1_0000 } else { count })
        } else {
            let count = u32::from(state.count as u8);
            let head = u64::from(state.device & 0x0F);
            let lba = if state.device & LBA != 0 {
                Some(lba24 | head << 24)
            } else {
                let (heads, sectors) = (u64::from(state.heads), u64::from(state.sectors));
                let cylinder = lba24 >> 8;
                // CHS sectors count from 1.
                low(state.lba_low)
                    .checked_sub(1)
                    .filter(|&sector| sector < sectors && head < heads)
                    .map(|sector| (cylinder * heads + head) * sectors + sector)
            };
            (lba, if count == 0 { 256 } else { count })
        };
        match lba.filter(|lba| lba + u64::from(count) <= self.disk_sectors()) {
            Some(lba) => {
                (self.state.lba, self.state.left) = (lba, count);
                true
            }
            None => {
                self.fail(error::IDNF);
                false
            }
        }
    }

    fn pio(&mut self, now: Nanos, write: bool, extended: bool, block: u8) {
        if block == 0 {
            // READ or WRITE MULTIPLE without SET MULTIPLE MODE.
            return self.fail(error::ABRT);
        }
        if !self.address(extended) {
            return;
        }
        self.state.block = block.min(MAX_MULTIPLE);
        self.state.writing = write;
        if write {
            // The first block of a write is asked for without an interrupt.
            self.request_write(false);
        } else {
            self.later(now, COMMAND_DELAY, Action::ReadBlock);
        }
    }

    fn dma(&mut self, write: bool, extended: bool) {
        if self.address(extended) {
            self.state.writing = write;
            self.request_dma();
        }
    }

    fn request_write(&mut self, interrupt: bool) {
        let sectors = self.state.left.min(u32::from(self.state.block)) as usize;
        self.state.buffer.clear();
        self.state.buffer.resize(sectors * SECTOR, 0);
        self.state.position = 0;
        self.request(Phase::DataOut, sectors * SECTOR, interrupt);
    }

    pub fn read_block(&mut self) {
        if self.state.left > 0 {
            let sectors = self.state.left.min(u32::from(self.state.block));
            if let Err(error) = self.read_sectors(sectors) {
                return self.fail(error);
            }
        }
        self.request(Phase::DataIn, self.state.buffer.len(), true);
    }

    pub fn write_block(&mut self) {
        match self.drain() {
            Err(error) => self.fail(error),
            Ok(()) if self.state.left > 0 => self.request_write(true),
            Ok(()) => self.complete(),
        }
    }

    /// The next buffer of a DMA read.
    pub fn refill(&mut self) -> Result<(), u8> {
        let sector = if self.is_atapi() { super::atapi::SECTOR } else { SECTOR };
        self.read_sectors(self.state.left.min((BUFFER / sector) as u32))
    }

    /// Room for the next buffer of a DMA write.
    pub fn prepare_write(&mut self) -> Result<(), u8> {
        let sectors = self.state.left.min((BUFFER / SECTOR) as u32) as usize;
        self.state.buffer.clear();
        self.state.buffer.resize(sectors * SECTOR, 0);
        self.state.position = 0;
        Ok(())
    }

    /// Reads the transfer's next `sectors` (at most a buffer full) into the buffer.
    pub fn read_sectors(&mut self, sectors: u32) -> Result<(), u8> {
        let size = if self.is_atapi() { super::atapi::SECTOR } else { SECTOR };
        let bytes = (sectors as usize * size).min(BUFFER);
        let mut buffer = std::mem::take(&mut self.state.buffer);
        buffer.clear();
        buffer.resize(bytes, 0);
        let medium = match &mut self.drive {
            Drive::Disk(disk) => Some(disk),
            Drive::CdRom(disc) => disc.as_mut(),
        };
        let read = match medium {
            Some(medium) => medium.read_at(self.state.lba.saturating_mul(size as u64), &mut buffer),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        self.state.buffer = buffer;
        self.state.position = 0;
        if let Err(cause) = read {
            tracing::warn!(target: "ide", lba = self.state.lba, %cause, "read failed");
            self.set_lba(self.state.lba, self.state.lba > LBA28_SECTORS);
            return Err(error::UNC);
        }
        self.state.lba += u64::from(sectors);
        self.state.left = self.state.left.saturating_sub(sectors);
        Ok(())
    }

    /// Writes the buffer to the disk.
    pub fn drain(&mut self) -> Result<(), u8> {
        let buffer = std::mem::take(&mut self.state.buffer);
        let position = self.state.lba.saturating_mul(SECTOR as u64);
        let written = match self.disk() {
            Some(disk) if disk.read_only() => Err(io::ErrorKind::PermissionDenied.into()),
            Some(disk) => disk.write_at(position, &buffer),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let sectors = (buffer.len() / SECTOR) as u32;
        self.state.buffer = buffer;
        self.state.buffer.clear();
        (self.state.position, self.state.end) = (0, 0);
        if let Err(cause) = written {
            tracing::warn!(target: "ide", lba = self.state.lba, %cause, "write failed");
            self.set_lba(self.state.lba, self.state.lba > LBA28_SECTORS);
            return Err(error::ABRT);
        }
        self.state.lba += u64::from(sectors);
        self.state.left = self.state.left.saturating_sub(sectors.max(1));
        Ok(())
    }

    /// Device fault: a flush failed.
    fn fault(&mut self) {
        self.fail(error::ABRT);
        self.state.status |= status::DF;
    }

    fn set_features(&mut self, now: Nanos) {
        let count = self.state.count as u8;
        match self.state.features as u8 {
            0x02 => self.state.write_cache = true,
            0x82 => self.state.write_cache = false,
            // Transfer mode: PIO default and flow control, multiword DMA 0 to 2, Ultra DMA 0 to 5.
            0x03 if matches!(count, 0x00 | 0x01 | 0x08..=0x0C | 0x20..=0x22 | 0x40..=0x45) => {
                if count >= 0x20 {
                    self.state.transfer_mode = count;
                }
            }
            // Look-ahead, power-on defaults, APM: nothing to do.
            0x55 | 0xAA | 0x66 | 0xCC | 0x05 | 0x85 => {}
            _ => return self.fail(error::ABRT),
        }
        self.later(now, COMMAND_DELAY, Action::Finish);
    }

    /// IDENTIFY DEVICE data.
    fn identify(&self) -> Vec<u8> {
        let sectors = self.disk_sectors();
        let (cylinders, heads, spt) = self.geometry();
        let mut w = [0u16; 256];
        w[0] = 0x0040; // fixed drive
        w[1] = cylinders;
        w[3] = heads.into();
        w[6] = spt.into();
        text(&mut w[10..20], &format!("TRIMARAN-{:05}", self.number + 1));
        text(&mut w[23..27], "1.0");
        text(&mut w[27..47], "TRIMARAN HARDDISK");
        w[47] = 0x8000 | u16::from(MAX_MULTIPLE);
        w[49] = 0x0B00; // IORDY, LBA, DMA
        w[50] = 0x4000;
        (w[51], w[52]) = (0x0200, 0x0200);
        w[53] = 7;
        let per_cylinder = u64::from(self.state.heads) * u64::from(self.state.sectors);
        let current = (sectors / per_cylinder.max(1)).min(65535);
        (w[54], w[55], w[56]) = (current as u16, self.state.heads.into(), self.state.sectors.into());
        let capacity = current * per_cylinder;
        (w[57], w[58]) = (capacity as u16, (capacity >> 16) as u16);
        w[59] = if self.state.multiple == 0 { 0 } else { 0x0100 | u16::from(self.state.multiple) };
        let lba28 = sectors.min(LBA28_SECTORS);
        (w[60], w[61]) = (lba28 as u16, (lba28 >> 16) as u16);
        transfer_modes(&mut w, self.state.transfer_mode);
        w[80] = 0x007E; // ATA-1 to ATA/ATAPI-6
        w[82] = 0x4020; // NOP, write cache
        w[83] = 0x7400; // FLUSH CACHE (EXT), 48-bit addresses
        w[84] = 0x4000;
        w[85] = 0x4000 | u16::from(self.state.write_cache) << 5;
        w[86] = 0x3400;
        w[87] = 0x4000;
        w[93] = 0x6001; // 80-conductor cable
        for i in 0..4 {
            w[100 + i] = (sectors >> (16 * i)) as u16;
        }
        bytes(&w)
    }
}

/// Words 63 to 68 and 88: multiword DMA 0 to 2, Ultra DMA 0 to 5, PIO 3 and 4, and the mode chosen.
pub fn transfer_modes(w: &mut [u16; 256], mode: u8) {
    let chosen = 0x0100 << (mode & 7);
    w[63] = 0x0007 | if mode & 0xF8 == 0x20 { chosen } else { 0 };
    w[64] = 3;
    w[65..69].fill(120);
    w[88] = 0x003F | if mode & 0xF8 == 0x40 { chosen } else { 0 };
}

/// An ATA string: the first character of each pair in the high byte, padded with spaces.
pub fn text(words: &mut [u16], text: &str) {
    let mut chars = text.bytes().chain(std::iter::repeat(b' '));
    for word in words {
        let high = chars.next().unwrap_or(b' ');
        *word = u16::from(high) << 8 | u16::from(chars.next().unwrap_or(b' '));
    }
}

pub fn bytes(words: &[u16; 256]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
