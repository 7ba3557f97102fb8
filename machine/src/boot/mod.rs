//! Direct boot: a kernel is put into RAM and started as its boot protocol wants it, without firmware.
//!
//! [`load`] finds out which protocol the image speaks and calls [`linux`], [`multiboot`] or [`pvh`]. Each writes
//! the image, its modules and its information structure through [`GuestMemory`] and returns the registers to
//! start with. The board adds what guests look for besides: the tables of [`crate::tables`] and VGA mode 3.
//! Low memory is used as `layout.rs` says: `BOOT_GDT` up to `BOOT_END`.

mod bytes;
mod elf;
mod linux;
mod multiboot;
mod pvh;
mod registers;
#[cfg(test)]
mod tests;

pub use crate::layout::MemoryLayout;
use bytes::Image;
pub use registers::{BootRegisters, Long64, Protected32, Segment};

use crate::layout::{BOOT_AREA_SIZE, BOOT_END, BOOT_INFO, BOOT_STRINGS, EBDA, ONE_MIB, VIDEO_RAM};

/// What can be wrong with a kernel, its modules or the machine that should run them.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("guest memory has no RAM for {length:#x} bytes at {gpa:#x}; give the machine more memory")]
    NoRam { gpa: u64, length: u64 },
    #[error("the machine has {ram:#x} bytes of RAM; direct boot needs at least {need:#x}")]
    RamTooSmall { ram: u64, need: u64 },
    #[error(
        "not a kernel that can be started directly: {saw}; give a Linux bzImage, a multiboot kernel or a PVH ELF, \
         or boot it from a disk through firmware"
    )]
    NotAKernel { saw: String },
    #[error(
        "the kernel image ends at byte {length:#x}, but its {what} reaches to {need:#x}; the file is truncated"
    )]
    Truncated { what: &'static str, need: u64, length: u64 },
    #[error(
        "the kernel speaks Linux boot protocol {}.{:02}; 2.02 or later is needed (Linux 2.4.0-test3 and newer)",
        version >> 8, version & 0xFF
    )]
    TooOld { version: u16 },
    #[error("the kernel is a zImage, made to run below 1 MiB; build it as a bzImage")]
    ZImage,
    #[error("the kernel's {field} is {value:#x}, which {why}")]
    BadField { field: &'static str, value: u64, why: &'static str },
    #[error("the kernel needs RAM from {start:#x} to {end:#x}, free is {floor:#x} to {limit:#x}{hint}")]
    KernelTooBig { start: u64, end: u64, floor: u64, limit: u64, hint: &'static str },
    #[error(
        "{what} of {size:#x} bytes does not fit between the kernel's end {floor:#x} and {limit:#x}; give the \
         machine more memory or make it smaller"
    )]
    ModuleTooBig { what: &'static str, size: u64, floor: u64, limit: u64 },
    #[error("the kernel command line has {length} bytes, the kernel takes {limit} at most; shorten it")]
    CmdlineTooLong { length: usize, limit: usize },
    #[error("a command line holds a NUL byte at offset {at}; remove it")]
    CmdlineNul { at: usize },
    #[error(
        "command lines and module lists need {need:#x} bytes of low memory, {limit:#x} are there; shorten them"
    )]
    InfoTooBig { need: u64, limit: u64 },
    #[error("a Linux bzImage takes one initrd and no modules, {count} were given; join them into one initrd")]
    ModulesUnsupported { count: usize },
}

/// The machine's RAM by guest physical address, as [`MemoryLayout`] spreads it.
pub trait GuestMemory {
    /// Bytes of RAM, below the PCI hole and from 4 GiB on together.
    fn size(&self) -> u64;
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), BootError>;
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), BootError>;
}

/// A file that is handed to a multiboot or PVH kernel.
#[derive(Clone, Debug, Default)]
pub struct Module {
    pub data: Vec<u8>,
    pub cmdline: String,
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct DirectBoot {
    pub kernel: Vec<u8>,
    /// What a multiboot kernel finds before its arguments, as loaders give it; nothing if empty.
    pub kernel_name: String,
    /// Linux: the initial RAM disk. Multiboot and PVH: the first module.
    pub initrd: Option<Vec<u8>>,
    /// Multiboot and PVH only.
    pub modules: Vec<Module>,
    /// The kernel's command line.
    pub append: String,
    /// The guest that comes with the program; everything else is left aside then.
    pub builtin: Option<crate::builtin::Image>,
}

impl DirectBoot {
    /// Starts the guest that comes with the program.
    pub fn builtin(image: crate::builtin::Image) -> Self {
        DirectBoot { builtin: Some(image), ..DirectBoot::default() }
    }

    /// All modules as multiboot and PVH count them: data and command line.
    fn all_modules(&self) -> Vec<(&[u8], &str)> {
        let first = self.initrd.iter().map(|data| (data.as_slice(), ""));
        first.chain(self.modules.iter().map(|m| (m.data.as_slice(), m.cmdline.as_str()))).collect()
    }
}

/// The boot protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    BzImage,
    Multiboot,
    Pvh,
}

/// The smallest RAM for which direct boot's own structures leave room.
pub const MIN_RAM: u64 = 2 * ONE_MIB;

/// Which protocol an image speaks. Multiboot goes before PVH where an ELF file offers both.
pub fn detect(kernel: &[u8]) -> Result<Kind, BootError> {
    let image = Image(kernel);
    if linux::is_linux(image) {
        return Ok(Kind::BzImage);
    }
    if multiboot::Header::find(image).is_some() {
        return Ok(Kind::Multiboot);
    }
    if elf::is_elf(image) {
        if pvh::entry_note(&elf::Elf::parse(image)?)?.is_some() {
            return Ok(Kind::Pvh);
        }
        let saw =
            "an ELF file with neither a multiboot header nor a PVH entry note (for Linux: CONFIG_PVH)".into();
        return Err(BootError::NotAKernel { saw });
    }
    Err(BootError::NotAKernel { saw: describe(kernel) })
}

/// Words for an image that no protocol knows.
fn describe(kernel: &[u8]) -> String {
    let saw = match kernel {
        [] => "the file is empty",
        [b'M', b'Z', ..] => "a DOS or EFI program",
        [0x1F, 0x8B, ..] => "a gzip file (unpack it first)",
        [0xFD, b'7', b'z', b'X', b'Z', ..] => "an xz file (unpack it first)",
        [0x28, 0xB5, 0x2F, 0xFD, ..] => "a zstd file (unpack it first)",
        _ if kernel.get(0x8001..0x8006) == Some(b"CD001") => "a CD-ROM image",
        _ if kernel.get(510..512) == Some(&[0x55, 0xAA]) => "a boot sector or disk image",
        _ => {
            let head = &kernel[..kernel.len().min(8)];
            return format!("{} bytes that begin with {head:02X?}", kernel.len());
        }
    };
    saw.into()
}

/// Puts the kernel into RAM. `rsdp` is where the board placed the ACPI root pointer, 0 for none.
pub fn load(
    boot: &DirectBoot,
    memory: &dyn GuestMemory,
    layout: &MemoryLayout,
    rsdp: u64,
) -> Result<BootRegisters, BootError> {
    let ram = layout.ram_bytes.min(memory.size());
    if ram < MIN_RAM {
        return Err(BootError::RamTooSmall { ram, need: MIN_RAM });
    }
    if let Some(image) = &boot.builtin {
        return load_builtin(image, memory, ram);
    }
    let kind = detect(&boot.kernel)?;
    tracing::debug!(?kind, bytes = boot.kernel.len(), "direct boot");
    write_bios_data(memory)?;
    let image = Image(&boot.kernel);
    match kind {
        Kind::BzImage => linux::load(boot, image, memory, layout, rsdp),
        Kind::Multiboot => multiboot::load(boot, image, memory, layout),
        Kind::Pvh => pvh::load(boot, image, memory, layout, rsdp),
    }
}

/// Puts the built-in guest where its code expects to be; it starts in real mode.
fn load_builtin(
    image: &crate::builtin::Image,
    memory: &dyn GuestMemory,
    ram: u64,
) -> Result<BootRegisters, BootError> {
    if ram < crate::builtin::MIN_RAM {
        return Err(BootError::RamTooSmall { ram, need: crate::builtin::MIN_RAM });
    }
    write_bios_data(memory)?;
    memory.write(image.load_at, &image.bytes)?;
    Ok(BootRegisters::RealMode { cs: image.cs, cs_base: u64::from(image.cs) << 4, ip: image.ip })
}

/// The BIOS data area as POST leaves it: serial and parallel ports, EBDA segment, memory size, video mode 3.
fn write_bios_data(memory: &dyn GuestMemory) -> Result<(), BootError> {
    use crate::layout::{COM1, LPT1};
    let mut area = [0; 0x100];
    let mut word = |offset: usize, value: u16| area[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    word(0x00, COM1);
    word(0x08, LPT1);
    word(0x0E, (EBDA >> 4) as u16);
    // Equipment: one parallel port, one serial port, 80x25 colour, PS/2 mouse, FPU.
    word(0x10, 0x4226);
    word(0x13, (EBDA >> 10) as u16);
    word(0x1A, 0x1E);
    word(0x1C, 0x1E);
    word(0x49, 3);
    word(0x4A, 80);
    word(0x4C, 80 * 25 * 2);
    word(0x60, 0x0D0E);
    word(0x63, 0x3D4);
    word(0x80, 0x1E);
    word(0x82, 0x3E);
    word(0x84, 24);
    word(0x85, 16);
    memory.write(0x400, &area)?;
    memory.write(EBDA, &[((VIDEO_RAM - EBDA) >> 10) as u8])
}

/// Refuses a kernel part that lies where there is no RAM or, below 1 MiB, lower than `low`.
fn check_range(layout: &MemoryLayout, start: u64, size: u64, low: u64) -> Result<u64, BootError> {
    let end = start.checked_add(size);
    let (floor, limit) = if start < ONE_MIB { (low, EBDA) } else { (ONE_MIB, layout.acpi_base()) };
    match end {
        Some(end) if start >= floor && end <= limit => Ok(end),
        _ => {
            let hint = if start < ONE_MIB {
                "; link it at 1 MiB or above"
            } else {
                "; give the machine more memory"
            };
            Err(BootError::KernelTooBig { start, end: end.unwrap_or(u64::MAX), floor, limit, hint })
        }
    }
}

/// A C string, checked.
fn c_string(text: &str) -> Result<Vec<u8>, BootError> {
    if let Some(at) = text.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineNul { at });
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    Ok(bytes)
}

/// Lays strings and lists one after another into the low memory set aside for them.
struct InfoArea<'a> {
    memory: &'a dyn GuestMemory,
    /// For the information structure itself; strings and lists begin at `BOOT_STRINGS` of this area.
    base: u64,
    next: u64,
}

impl<'a> InfoArea<'a> {
    fn new(memory: &'a dyn GuestMemory) -> Self {
        Self::at(memory, BOOT_INFO)
    }

    fn at(memory: &'a dyn GuestMemory, base: u64) -> Self {
        Self { memory, base, next: base + (BOOT_STRINGS - BOOT_INFO) }
    }

    /// Writes `bytes` at the next multiple of 8 and returns where they are.
    fn put(&mut self, bytes: &[u8]) -> Result<u64, BootError> {
        let at = self.next;
        let end = at.saturating_add(bytes.len() as u64);
        let strings = self.base + (BOOT_STRINGS - BOOT_INFO);
        if end > self.base + BOOT_AREA_SIZE {
            return Err(BootError::InfoTooBig { need: end - strings, limit: BOOT_END - BOOT_STRINGS });
        }
        self.memory.write(at, bytes)?;
        self.next = end.next_multiple_of(8);
        Ok(at)
    }

    fn put_string(&mut self, text: &str) -> Result<u64, BootError> {
        self.put(&c_string(text)?)
    }
}
