//! The firmware configuration device of PC virtual machines, with DMA (documented interface: "QEMU Firmware
//! Configuration (fw_cfg) Device").

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chip::{Chip, Cx, StateError, decode, encode, open_bus};
use crate::ports::{read_each, write_each};

/// Window of ports 0x510 to 0x51B: selector (16 bits) at 0, data at 1, DMA address (big-endian) at 4.
pub const PORTS: u8 = 0;

/// Item numbers.
pub mod item {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NB_CPUS: u16 = 0x05;
    pub const KERNEL_ADDRESS: u16 = 0x07;
    pub const KERNEL_SIZE: u16 = 0x08;
    pub const INITRD_ADDRESS: u16 = 0x0A;
    pub const INITRD_SIZE: u16 = 0x0B;
    pub const BOOT_MENU: u16 = 0x0E;
    pub const MAX_CPUS: u16 = 0x0F;
    pub const KERNEL_DATA: u16 = 0x11;
    pub const INITRD_DATA: u16 = 0x12;
    pub const COMMAND_LINE_ADDRESS: u16 = 0x13;
    pub const COMMAND_LINE_SIZE: u16 = 0x14;
    pub const COMMAND_LINE_DATA: u16 = 0x15;
    pub const SETUP_ADDRESS: u16 = 0x16;
    pub const SETUP_SIZE: u16 = 0x17;
    pub const SETUP_DATA: u16 = 0x18;
    pub const FILE_DIRECTORY: u16 = 0x19;
    pub const FIRST_FILE: u16 = 0x20;
}

/// Longest file name; the directory has room for a zero after it.
pub const NAME_LENGTH: usize = 55;
const MAX_FILES: usize = 0x1000;

/// DMA control bits; the item to select stands in bits 31-16.
mod control {
    pub const ERROR: u32 = 0x01;
    pub const READ: u32 = 0x02;
    pub const SKIP: u32 = 0x04;
    pub const SELECT: u32 = 0x08;
    pub const WRITE: u32 = 0x10;
}

const VERSION: u16 = 1;
/// ID: traditional interface and DMA.
const FEATURES: u32 = 3;
/// What the DMA address register reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Zeros that one DMA read may append behind the end of an item.
const ZERO_FILL: u32 = 0x10000;

struct File {
    name: String,
    data: Vec<u8>,
    writable: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    selected: u16,
    /// Next byte of the selected item.
    position: u32,
    /// DMA address register as written so far, big-endian.
    dma_address: [u8; 8],
}

/// Everything of a saved state: contents of writable files stand in the order of the directory.
#[derive(Serialize, Deserialize)]
struct Saved {
    state: State,
    writable: Vec<Vec<u8>>,
}

/// A name that is empty, too long, not ASCII or used already, or one file too many.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fw_cfg does not take a file named {0:?}")]
pub struct BadName(pub String);

/// The configuration items that firmware and guests read.
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    /// Sorted by name; the first has item number [`item::FIRST_FILE`].
    files: Vec<File>,
    directory: Vec<u8>,
    state: State,
}

impl FwCfg {
    /// With signature, ID and an empty directory.
    pub fn new() -> Self {
        let mut items = BTreeMap::new();
        items.insert(item::SIGNATURE, b"QEMU".to_vec());
        items.insert(item::ID, FEATURES.to_le_bytes().to_vec());
        let mut chip = FwCfg { items, files: Vec::new(), directory: Vec::new(), state: State::default() };
        chip.build_directory();
        chip
    }

    /// Sets a numbered item. Numbers of the directory and of files are left to [`FwCfg::add_file`].
    pub fn add(&mut self, key: u16, data: Vec<u8>) {
        self.items.insert(key, data);
    }

    /// Adds a file, or replaces the contents of the one of that name. Done before the guest runs: numbers of
    /// files change, since the directory is sorted.
    pub fn add_file(&mut self, name: &str, data: Vec<u8>) -> Result<(), BadName> {
        self.insert(name, data, false)
    }

    /// Adds a file that the guest may write by DMA, within its length.
    pub fn add_writable_file(&mut self, name: &str, data: Vec<u8>) -> Result<(), BadName> {
        self.insert(name, data, true)
    }

    /// A file's contents.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|file| file.name == name).map(|file| &file.data[..])
    }

    /// Replaces the contents of an existing file, of the same length or another, while the guest runs.
    pub fn update_file(&mut self, name: &str, data: Vec<u8>) -> Result<(), BadName> {
        let found = self.files.iter_mut().find(|file| file.name == name);
        found.ok_or_else(|| BadName(name.into()))?.data = data;
        self.build_directory();
        Ok(())
    }

    fn insert(&mut self, name: &str, data: Vec<u8>, writable: bool) -> Result<(), BadName> {
        let legal = (1..=NAME_LENGTH).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
        if !legal || data.len() > u32::MAX as usize {
            return Err(BadName(name.into()));
        }
        let file = File { name: name.into(), data, writable };
        match self.files.binary_search_by(|other| other.name.as_str().cmp(name)) {
            Ok(at) => self.files[at] = file,
            Err(_) if self.files.len() >= MAX_FILES => return Err(BadName(name.into())),
            Err(at) => self.files.insert(at, file),
        }
        self.build_directory();
        Ok(())
    }

    /// Count, then size, number and name of each file, numbers big-endian.
    fn build_directory(&mut self) {
        let mut bytes = (self.files.len() as u32).to_be_bytes().to_vec();
        for (index, file) in self.files.iter().enumerate() {
            let mut name = [0; NAME_LENGTH + 1];
            name[..file.name.len()].copy_from_slice(file.name.as_bytes());
            bytes.extend((file.data.len() as u32).to_be_bytes());
            bytes.extend((item::FIRST_FILE + index as u16).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(name);
        }
        self.directory = bytes;
    }

    fn file_index(key: u16) -> Option<usize> {
        key.checked_sub(item::FIRST_FILE).map(usize::from)
    }

    /// The selected item; unknown ones are empty. Bit 14 asked for writing once and is ignored.
    fn contents(&self) -> &[u8] {
        let key = self.state.selected & !0x4000;
        if key == item::FILE_DIRECTORY {
            return &self.directory;
        }
        let file = Self::file_index(key).and_then(|index| self.files.get(index));
        file.map(|file| &file.data[..]).or(self.items.get(&key).map(|data| &data[..])).unwrap_or(&[])
    }

    /// What is left of the selected item, at most `length` bytes.
    fn rest(&self, length: u32) -> &[u8] {
        let contents = self.contents();
        let start = (self.state.position as usize).min(contents.len());
        let end = start.saturating_add(length as usize).min(contents.len());
        &contents[start..end]
    }

    fn advance(&mut self, length: u32) {
        let end = self.contents().len() as u32;
        self.state.position = self.state.position.saturating_add(length).min(end);
    }

    fn select(&mut self, key: u16) {
        self.state.selected = key;
        self.state.position = 0;
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.rest(1).first().copied().unwrap_or(0);
        self.advance(1);
        byte
    }

    /// A command block in guest RAM: control, length (32 bits each) and address (64), all big-endian.
    fn dma(&mut self, cx: &mut Cx) {
        let block = u64::from_be_bytes(std::mem::take(&mut self.state.dma_address));
        let (mut word, mut long) = ([0; 4], [0; 8]);
        cx.ram.read(block, &mut word);
        let command = u32::from_be_bytes(word);
        cx.ram.read(block.wrapping_add(4), &mut word);
        let length = u32::from_be_bytes(word);
        cx.ram.read(block.wrapping_add(8), &mut long);
        let address = u64::from_be_bytes(long);
        if command & control::SELECT != 0 {
            self.select((command >> 16) as u16);
        }
        let done = if command & control::READ != 0 {
            self.dma_read(cx, address, length);
            true
        } else if command & control::WRITE != 0 {
            self.dma_write(cx, address, length)
        } else {
            if command & control::SKIP != 0 {
                self.advance(length);
            }
            true
        };
        let result = if done { 0 } else { control::ERROR };
        cx.ram.write(block, &result.to_be_bytes());
    }

    fn dma_read(&mut self, cx: &mut Cx, address: u64, length: u32) {
        let data = self.rest(length);
        cx.ram.write(address, data);
        let done = data.len() as u32;
        let zeros = (length - done).min(ZERO_FILL);
        if zeros != 0 {
            cx.ram.write(address.wrapping_add(u64::from(done)), &vec![0; zeros as usize]);
        }
        self.advance(length);
    }

    /// Only writable files take data, and only within their length.
    fn dma_write(&mut self, cx: &mut Cx, address: u64, length: u32) -> bool {
        let start = self.state.position as usize;
        let file =
            Self::file_index(self.state.selected & !0x4000).and_then(|index| self.files.get_mut(index));
        let Some(file) = file.filter(|file| file.writable) else { return false };
        let part = start.checked_add(length as usize).and_then(|end| file.data.get_mut(start..end));
        let Some(part) = part else { return false };
        cx.ram.read(address, part);
        self.advance(length);
        true
    }
}

impl Chip for FwCfg {
    fn name(&self) -> &'static str {
        "fw_cfg"
    }

    fn reset(&mut self, _cx: &mut Cx) {
        self.state = State::default();
    }

    fn read(&mut self, _cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        match (window, offset) {
            (PORTS, 1) => read_each(0, size, |_| self.read_data()),
            (PORTS, 4..12) => read_each(offset, size, |o| {
                o.checked_sub(4).and_then(|o| DMA_SIGNATURE.get(o as usize)).copied().unwrap_or(0xFF)
            }),
            _ => open_bus(size),
        }
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        match (window, offset) {
            (PORTS, 0) if size >= 2 => self.select(value as u16),
            (PORTS, 4..12) => {
                let mut start = false;
                write_each(offset - 4, size, value, |o, byte| {
                    if let Some(cell) = self.state.dma_address.get_mut(o as usize) {
                        *cell = byte;
                        start |= o == 7;
                    }
                });
                if start {
                    self.dma(cx);
                }
            }
            _ => {}
        }
    }

    fn save(&self) -> Vec<u8> {
        let writable = self.files.iter().filter(|file| file.writable).map(|file| file.data.clone()).collect();
        encode(VERSION, &Saved { state: self.state.clone(), writable })
    }

    /// The items themselves come from the configuration, which must be the same.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let saved: Saved = decode(self.name(), VERSION, bytes)?;
        let mut writable: Vec<&mut File> = self.files.iter_mut().filter(|file| file.writable).collect();
        let same = writable.len() == saved.writable.len()
            && writable.iter().zip(&saved.writable).all(|(file, data)| file.data.len() == data.len());
        if !same {
            return Err(StateError::Damaged { chip: "fw_cfg", reason: "writable files differ".into() });
        }
        for (file, data) in writable.iter_mut().zip(saved.writable) {
            file.data = data;
        }
        self.state = saved.state;
        Ok(())
    }

    fn info(&self) -> String {
        let mut text = format!("selected={:04x} position={:x}\n", self.state.selected, self.state.position);
        for (index, file) in self.files.iter().enumerate() {
            let key = item::FIRST_FILE + index as u16;
            text += &format!("{key:04x} {:8} bytes {}\n", file.data.len(), file.name);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn ready() -> Bench<FwCfg> {
        let mut chip = FwCfg::new();
        chip.add_file("etc/zeta", vec![9]).unwrap();
        chip.add_file("etc/acpi/tables", vec![1, 2, 3]).unwrap();
        chip.add_writable_file("etc/write", vec![0; 4]).unwrap();
        Bench::new(chip)
    }

    fn item(bench: &mut Bench<FwCfg>, key: u64, length: usize) -> Vec<u8> {
        bench.write(PORTS, 0, 2, key);
        (0..length).map(|_| bench.read(PORTS, 1, 1) as u8).collect()
    }

    fn dma(bench: &mut Bench<FwCfg>, command: u32, length: u32, address: u64) -> u32 {
        let block = [&command.to_be_bytes()[..], &length.to_be_bytes(), &address.to_be_bytes()].concat();
        bench.ram.0.lock().unwrap()[0x1000..0x1010].copy_from_slice(&block);
        bench.write(PORTS, 4, 4, 0);
        bench.write(PORTS, 8, 4, u64::from(0x1000u32.swap_bytes()));
        u32::from_be_bytes(bench.ram.0.lock().unwrap()[0x1000..0x1004].try_into().unwrap())
    }

    #[test]
    fn signature_id_and_directory() {
        let mut bench = ready();
        assert_eq!(item(&mut bench, 0, 5), b"QEMU\0");
        assert_eq!(item(&mut bench, 1, 4), [3, 0, 0, 0]);
        assert_eq!(bench.read(PORTS, 4, 8), u64::from_le_bytes(*b"QEMU CFG"));
        let directory = item(&mut bench, 0x19, 4 + 64);
        assert_eq!(directory[..12], [0, 0, 0, 3, 0, 0, 0, 3, 0, 0x20, 0, 0]);
        assert_eq!(&directory[12..28], b"etc/acpi/tables\0");
        assert_eq!(item(&mut bench, 0x22, 2), [9, 0]);
    }

    #[test]
    fn names_are_checked() {
        let mut chip = FwCfg::new();
        assert!(chip.add_file(&"x".repeat(56), vec![]).is_err());
        assert!(chip.add_file(&"x".repeat(55), vec![]).is_ok());
        assert!(chip.add_file("", vec![]).is_err());
    }

    #[test]
    fn dma_is_bounded_by_the_item() {
        let mut bench = ready();
        bench.ram.0.lock().unwrap()[0x2000..0x2008].fill(0xEE);
        let read = 0x20 << 16 | control::SELECT | control::READ;
        assert_eq!(dma(&mut bench, read, 5, 0x2000), 0);
        assert_eq!(bench.ram.0.lock().unwrap()[0x2000..0x2006], [1, 2, 3, 0, 0, 0xEE]);
        assert_eq!(dma(&mut bench, read, u32::MAX, 0x2000), 0);
        assert_eq!(dma(&mut bench, control::SKIP, u32::MAX, 0), 0);
    }

    #[test]
    fn only_writable_files_take_data() {
        let mut bench = ready();
        bench.ram.0.lock().unwrap()[0x2000..0x2004].copy_from_slice(&[4, 3, 2, 1]);
        let write = |key: u32| key << 16 | control::SELECT | control::WRITE;
        assert_eq!(dma(&mut bench, write(0x20), 1, 0x2000), control::ERROR);
        assert_eq!(dma(&mut bench, write(0x21), 5, 0x2000), control::ERROR);
        assert_eq!(dma(&mut bench, write(0x21), 4, 0x2000), 0);
        assert_eq!(bench.chip.file("etc/write"), Some(&[4, 3, 2, 1][..]));
    }
}
