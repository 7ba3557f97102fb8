//! Synthetic kernels of each kind load right; damaged ones give errors, never panics.

use std::sync::Mutex;

use super::*;
use crate::layout::{ACPI_TABLES_SIZE, BOOT_GDT, BOOT_INFO, BOOT_PAGE_TABLES, RSDP_AT, RangeType};

const RAM: u64 = 32 << 20;
const LAYOUT: MemoryLayout = MemoryLayout { ram_bytes: RAM };

struct Ram(Mutex<Vec<u8>>);

impl Ram {
    /// Filled with AAh, so that what must be cleared shows.
    fn new() -> Self {
        Self(Mutex::new(vec![0xAA; RAM as usize]))
    }

    fn dword(&self, gpa: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(gpa, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn qword(&self, gpa: u64) -> u64 {
        u64::from(self.dword(gpa)) | u64::from(self.dword(gpa + 4)) << 32
    }

    fn bytes(&self, gpa: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read(gpa, &mut bytes).unwrap();
        bytes
    }
}

impl GuestMemory for Ram {
    fn size(&self) -> u64 {
        RAM
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
        let length = bytes.len() as u64;
        let no_ram = || BootError::NoRam { gpa, length };
        let end = gpa.checked_add(length).filter(|&end| end <= RAM).ok_or_else(no_ram)?;
        self.0.lock().unwrap()[gpa as usize..end as usize].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), BootError> {
        buf.copy_from_slice(&self.0.lock().unwrap()[gpa as usize..gpa as usize + buf.len()]);
        Ok(())
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put32(image: &mut [u8], at: usize, value: u32) {
    put(image, at, &value.to_le_bytes());
}

/// Protocol 2.15, one setup sector, 4 KiB of code, relocatable to 16 MiB.
fn bzimage(xloadflags: u16) -> Vec<u8> {
    let mut image = vec![0; 1024 + 4096];
    put(&mut image, 0x1F1, &[1]);
    put32(&mut image, 0x1F4, 4096 / 16);
    put(&mut image, 0x1FE, &[0x55, 0xAA, 0xEB, 0x6A]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020F_u16.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put32(&mut image, 0x214, 0x10_0000);
    put32(&mut image, 0x22C, 0x7FFF_FFFF);
    put(&mut image, 0x234, &[1]);
    put(&mut image, 0x236, &xloadflags.to_le_bytes());
    put32(&mut image, 0x238, 2047);
    put32(&mut image, 0x258, 16 << 20);
    put32(&mut image, 0x260, 4 << 20);
    image[1024..].fill(0x90);
    image
}

const ELF_TEXT: u32 = 0x20_0000;

/// ELF32 at 2 MiB, linked 3 GiB higher, with 1 KiB of bss, and a multiboot header or a PVH note.
fn elf(multiboot: bool, pvh: bool) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    put(&mut image, 0, b"\x7FELF\x01\x01\x01");
    put(&mut image, 16, &[2, 0, 3, 0]);
    put32(&mut image, 24, 0xC000_0000 + ELF_TEXT + 0x10);
    put32(&mut image, 28, 52);
    put(&mut image, 42, &[32, 0, 2, 0]);
    let load = [1, 0x200, 0xC000_0000 + ELF_TEXT, ELF_TEXT, 0x200, 0x600, 7, 0x1000];
    let note = [4, 0x100, 0, 0, 20, 20, 4, 4];
    for (i, field) in load.into_iter().chain(note).enumerate() {
        put32(&mut image, 52 + i * 4, field);
    }
    image[0x200..].fill(0x90);
    if multiboot {
        put32(&mut image, 0x180, 0x1BAD_B002);
        put32(&mut image, 0x184, 3);
        put32(&mut image, 0x188, 0_u32.wrapping_sub(0x1BAD_B002 + 3));
    }
    if pvh {
        for (i, field) in [4, 4, 18].into_iter().enumerate() {
            put32(&mut image, 0x100 + i * 4, field);
        }
        put(&mut image, 0x10C, b"Xen\0");
        put32(&mut image, 0x110, ELF_TEXT + 0x20);
    }
    image
}

/// A flat multiboot image: header at 0, loaded at 1 MiB, entry at +40h, 100h of bss.
fn flat() -> Vec<u8> {
    let mut image = vec![0x90; 0x100];
    let base = ONE_MIB as u32;
    let flags = 1 << 16 | 1 << 2;
    let checksum = 0_u32.wrapping_sub(0x1BAD_B002 + flags);
    let header = [0x1BAD_B002, flags, checksum, base, base, 0, base + 0x200, base + 0x40];
    for (i, field) in header.into_iter().enumerate() {
        put32(&mut image, i * 4, field);
    }
    image
}

fn boot(kernel: Vec<u8>) -> DirectBoot {
    DirectBoot {
        kernel_name: String::new(),
        kernel,
        initrd: Some(vec![0x77; 5000]),
        modules: Vec::new(),
        append: "console=ttyS0".into(),
        builtin: None,
    }
}

fn start(kernel: Vec<u8>) -> (Ram, BootRegisters) {
    let ram = Ram::new();
    let registers = load(&boot(kernel), &ram, &LAYOUT, RSDP_AT).unwrap();
    (ram, registers)
}

fn protected(registers: BootRegisters) -> Protected32 {
    match registers {
        BootRegisters::Protected32(registers) => registers,
        other => panic!("{other:?}"),
    }
}

#[test]
fn linux_64_bit_entry() {
    let (ram, registers) = start(bzimage(1));
    let BootRegisters::Long64(registers) = registers else { panic!("{registers:?}") };
    assert_eq!((registers.rip, registers.rsi), ((16 << 20) + 0x200, BOOT_INFO));
    assert_eq!(ram.bytes(16 << 20, 4096), vec![0x90; 4096]);
    // Identity page tables, at both ends.
    let directory = BOOT_PAGE_TABLES + 0x2000;
    assert_eq!(ram.qword(registers.cr3), BOOT_PAGE_TABLES + 0x1003);
    assert_eq!(ram.qword(BOOT_PAGE_TABLES + 0x1000 + 24), directory + 0x3003);
    assert_eq!((ram.qword(directory), ram.qword(directory + 2047 * 8)), (0x83, 0xFFE0_0083));
    assert_eq!(ram.qword(BOOT_GDT + 0x10), 0x00AF_9B00_0000_FFFF);
    assert_eq!(ram.qword(BOOT_GDT + 0x18), 0x00CF_9300_0000_FFFF);
}

#[test]
fn linux_32_bit_entry_and_zero_page() {
    let (ram, registers) = start(bzimage(0));
    let registers = protected(registers);
    assert_eq!((registers.eip, registers.esi, registers.ebx), (16 << 20, BOOT_INFO as u32, 0));
    assert_eq!(ram.bytes(BOOT_INFO + 0x202, 4), b"HdrS");
    assert_eq!(ram.bytes(BOOT_INFO + 6, 2), [3, 80]);
    assert_eq!(ram.qword(BOOT_INFO + 0x70), RSDP_AT);
    assert_eq!(ram.bytes(BOOT_INFO + 0x210, 2), [0xFF, 0x81]);
    let initrd = ram.dword(BOOT_INFO + 0x218);
    assert_eq!((initrd % 4096, ram.dword(BOOT_INFO + 0x21C)), (0, 5000));
    assert!(u64::from(initrd) + 5000 <= RAM - ACPI_TABLES_SIZE);
    assert_eq!(ram.bytes(initrd.into(), 5000), vec![0x77; 5000]);
    assert_eq!(ram.bytes(ram.dword(BOOT_INFO + 0x228).into(), 14), b"console=ttyS0\0");
    let count = ram.bytes(BOOT_INFO + 0x1E8, 1)[0];
    assert_eq!(usize::from(count), LAYOUT.e820().len());
    assert_eq!((ram.qword(BOOT_INFO + 0x2D0), ram.qword(BOOT_INFO + 0x2D8)), (0, 0x9_FC00));
    assert_eq!(ram.dword(BOOT_INFO + 0x2D0 + 4 * 20 + 16), RangeType::AcpiReclaim as u32);
    assert_eq!(ram.dword(0x40E) as u16, 0x9FC0);
}

#[test]
fn multiboot_elf() {
    // Both offers: multiboot goes first.
    let (ram, registers) = start(elf(true, true));
    let registers = protected(registers);
    assert_eq!((registers.eip, registers.eax), (ELF_TEXT + 0x10, 0x2BAD_B002));
    assert_eq!(ram.bytes(ELF_TEXT.into(), 0x600), [vec![0x90; 0x200], vec![0; 0x400]].concat());
    let info = u64::from(registers.ebx);
    assert_eq!(ram.bytes(ram.dword(info + 16).into(), 14), b"console=ttyS0\0");
    assert_eq!(ram.dword(info + 20), 1);
    let module = u64::from(ram.dword(info + 24));
    let (begin, end) = (ram.dword(module), ram.dword(module + 4));
    assert_eq!((begin, end), (ELF_TEXT + 0x1000, ELF_TEXT + 0x1000 + 5000));
    assert_eq!(ram.bytes(begin.into(), 5000), vec![0x77; 5000]);
    assert_eq!(ram.dword(info + 44) as usize, LAYOUT.e820().len() * 24);
    assert_eq!(ram.dword(ram.dword(info + 48).into()), 20);
    assert_eq!(ram.bytes(ram.dword(info + 64).into(), 9), b"Trimaran\0");
}

/// A kernel linked where boot loaders put their own things: what it is told stands elsewhere.
#[test]
fn multiboot_below_1_mib() {
    let mut kernel = elf(true, false);
    for (at, value) in
        [(52 + 4 * 2, 0xC000_8000), (52 + 4 * 3, 0x8000), (52 + 4 * 5, 0xA000), (24, 0xC000_8010)]
    {
        put32(&mut kernel, at, value);
    }
    let (ram, registers) = start(kernel.clone());
    let registers = protected(registers);
    assert_eq!((registers.eip, registers.ebx), (0x8010, 0x8_0000));
    assert_eq!(ram.bytes(0x8000, 0x200), vec![0x90; 0x200]);
    assert_eq!(ram.bytes(ram.dword(0x8_0010).into(), 14), b"console=ttyS0\0");
    put32(&mut kernel, 52 + 4 * 3, 0x1000);
    assert!(matches!(
        load(&boot(kernel), &Ram::new(), &LAYOUT, RSDP_AT),
        Err(BootError::KernelTooBig { .. })
    ));
}

#[test]
fn multiboot_flat() {
    let (ram, registers) = start(flat());
    assert_eq!(protected(registers).eip, ONE_MIB as u32 + 0x40);
    assert_eq!(ram.bytes(ONE_MIB + 0x40, 0x1C0), [vec![0x90; 0xC0], vec![0; 0x100]].concat());
}

#[test]
fn pvh_elf() {
    let (ram, registers) = start(elf(false, true));
    let registers = protected(registers);
    assert_eq!(registers.eip, ELF_TEXT + 0x20);
    let info = u64::from(registers.ebx);
    assert_eq!((ram.dword(info), ram.dword(info + 4), ram.dword(info + 12)), (0x336E_C578, 1, 1));
    let module = ram.qword(info + 16);
    assert_eq!((ram.bytes(ram.qword(module), 5000), ram.qword(module + 8)), (vec![0x77; 5000], 5000));
    assert_eq!(ram.bytes(ram.qword(info + 24), 14), b"console=ttyS0\0");
    assert_eq!(ram.qword(info + 32), RSDP_AT);
    assert_eq!(ram.dword(info + 48) as usize, LAYOUT.e820().len());
    assert_eq!(ram.qword(ram.qword(info + 40) + 8), 0x9_FC00);
}

/// The error's text for a changed boot.
fn refusal(kernel: Vec<u8>, change: impl FnOnce(&mut DirectBoot)) -> String {
    let mut boot = boot(kernel);
    change(&mut boot);
    load(&boot, &Ram::new(), &LAYOUT, 0).unwrap_err().to_string()
}

#[test]
fn refusals_say_what_is_wrong() {
    let changed = |at: usize, bytes: &[u8]| {
        let mut image = bzimage(1);
        put(&mut image, at, bytes);
        image
    };
    let none = |_: &mut DirectBoot| {};
    let cases = [
        (refusal(Vec::new(), none), "the file is empty"),
        (refusal(b"\x1F\x8B\x08".to_vec(), none), "unpack it first"),
        (refusal(elf(false, false), none), "neither a multiboot header nor a PVH entry note"),
        (refusal(bzimage(1)[..2000].to_vec(), none), "truncated"),
        (refusal(changed(0x206, &[1, 2]), none), "protocol 2.01"),
        (refusal(changed(0x211, &[0]), none), "zImage"),
        (refusal(changed(0x260, &(64_u32 << 20).to_le_bytes()), none), "give the machine more memory"),
        (refusal(changed(0x258, &[0; 8]), none), "link it at 1 MiB"),
        (refusal(bzimage(1), |boot| boot.initrd = Some(vec![0; 16 << 20])), "the initrd of 0x1000000 bytes"),
        (refusal(bzimage(1), |boot| boot.append = "x".repeat(2048)), "takes 2047 at most"),
        (refusal(bzimage(1), |boot| boot.append = "a\0b".into()), "NUL byte at offset 1"),
        (refusal(bzimage(1), |boot| boot.modules = vec![Module::default()]), "no modules, 1 were given"),
        (refusal(elf(true, false), |boot| boot.initrd = Some(vec![0; 30 << 20])), "a module of"),
        (refusal(elf(false, true), |boot| boot.initrd = Some(vec![0; 30 << 20])), "a module of"),
        (refusal(flat(), |boot| boot.append = "x".repeat(0x1_0000)), "low memory"),
    ];
    for (text, part) in cases {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    let small = MemoryLayout { ram_bytes: 1 << 20 };
    let error = load(&boot(bzimage(1)), &Ram::new(), &small, 0).unwrap_err().to_string();
    assert!(error.contains("at least 0x200000"), "{error}");
}

#[test]
fn damaged_kernels_never_panic() {
    let kernels = [bzimage(0), bzimage(1), elf(true, false), elf(false, true), flat()];
    let ram = Ram::new();
    let try_load = |kernel: Vec<u8>| drop(load(&boot(kernel), &ram, &LAYOUT, 0));
    // xorshift64, so that a failure repeats.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for kernel in &kernels {
        for length in (0..kernel.len()).step_by(64) {
            try_load(kernel[..length].to_vec());
        }
        for _ in 0..2000 {
            let mut damaged = kernel.clone();
            for _ in 0..=random() % 4 {
                let at = random() as usize % damaged.len().min(0x280);
                damaged[at] = if random() % 3 == 0 { 0xFF } else { random() as u8 };
            }
            try_load(damaged);
        }
    }
    for length in 0..200 {
        try_load((0..length * 7).map(|_| random() as u8).collect());
    }
}
