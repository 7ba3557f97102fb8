//! ACPI tables whose addresses are not known yet, and the commands by which firmware links them.
//!
//! The command file `etc/table-loader` is a list of 128-byte entries that SeaBIOS and OVMF carry out: allocate a
//! file, add a file's address to a pointer, store a checksum. A direct boot does the same here.

pub(super) const LOADER_FILE: &str = "etc/table-loader";
pub(super) const RSDP_FILE: &str = "etc/acpi/rsdp";
pub(super) const TABLES_FILE: &str = "etc/acpi/tables";

/// Size of a command, and of a file name in it.
const COMMAND_SIZE: usize = 128;
const NAME_SIZE: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Zones of ALLOCATE: anywhere below 4 GiB, or the F segment.
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;
/// FACS asks for 64 bytes.
pub(super) const TABLES_ALIGN: u32 = 64;
const RSDP_ALIGN: u32 = 16;

/// The file in which a pointer or checksum stands. Pointers always lead into the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    Rsdp,
    Tables,
}

impl File {
    fn name(self) -> &'static str {
        match self {
            Self::Rsdp => RSDP_FILE,
            Self::Tables => TABLES_FILE,
        }
    }
}

/// What must be done once addresses are known, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fixup {
    /// `size` bytes that hold an offset into the tables.
    Pointer {
        file: File,
        offset: usize,
        size: u8,
    },
    Checksum {
        file: File,
        offset: usize,
        start: usize,
        length: usize,
    },
}

/// RSDP and tables with offsets for pointers and 0 for checksums.
#[derive(Clone, Debug, Default)]
pub(super) struct TableSet {
    pub rsdp: Vec<u8>,
    pub tables: Vec<u8>,
    fixups: Vec<Fixup>,
}

impl TableSet {
    fn file(&mut self, file: File) -> &mut Vec<u8> {
        match file {
            File::Rsdp => &mut self.rsdp,
            File::Tables => &mut self.tables,
        }
    }

    /// Makes the `size` bytes at `offset` point to `target`, an offset into the tables.
    pub fn pointer(&mut self, file: File, offset: usize, size: u8, target: usize) {
        let length = usize::from(size);
        self.file(file)[offset..offset + length].copy_from_slice(&(target as u64).to_le_bytes()[..length]);
        self.fixups.push(Fixup::Pointer { file, offset, size });
    }

    pub fn checksum(&mut self, file: File, offset: usize, start: usize, length: usize) {
        self.fixups.push(Fixup::Checksum { file, offset, start, length });
    }

    /// Both blobs, linked for the tables at `base`.
    pub fn at(mut self, base: u64) -> (Vec<u8>, Vec<u8>) {
        for fixup in std::mem::take(&mut self.fixups) {
            match fixup {
                Fixup::Pointer { file, offset, size } => {
                    let field = &mut self.file(file)[offset..offset + usize::from(size)];
                    let mut value = [0; 8];
                    value[..field.len()].copy_from_slice(field);
                    let value = u64::from_le_bytes(value).wrapping_add(base).to_le_bytes();
                    field.copy_from_slice(&value[..field.len()]);
                }
                Fixup::Checksum { file, offset, start, length } => {
                    let bytes = self.file(file);
                    bytes[offset] = super::checksum(&bytes[start..start + length]);
                }
            }
        }
        (self.rsdp, self.tables)
    }

    /// The contents of `etc/table-loader`.
    pub fn commands(&self) -> Vec<u8> {
        let mut commands = [
            command(ALLOCATE, &[&name(RSDP_FILE), &RSDP_ALIGN.to_le_bytes(), &[ZONE_FSEG]]),
            command(ALLOCATE, &[&name(TABLES_FILE), &TABLES_ALIGN.to_le_bytes(), &[ZONE_HIGH]]),
        ]
        .concat();
        for fixup in &self.fixups {
            commands.extend(match *fixup {
                Fixup::Pointer { file, offset, size } => {
                    let offset = (offset as u32).to_le_bytes();
                    command(ADD_POINTER, &[&name(file.name()), &name(TABLES_FILE), &offset, &[size]])
                }
                Fixup::Checksum { file, offset, start, length } => {
                    let [offset, start, length] = [offset, start, length].map(|n| (n as u32).to_le_bytes());
                    command(ADD_CHECKSUM, &[&name(file.name()), &offset, &start, &length])
                }
            });
        }
        commands
    }
}

fn name(text: &str) -> [u8; NAME_SIZE] {
    let mut bytes = [0; NAME_SIZE];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

fn command(number: u32, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [&number.to_le_bytes(), fields.concat().as_slice()].concat();
    bytes.resize(COMMAND_SIZE, 0);
    bytes
}
