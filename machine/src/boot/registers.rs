//! The processor state in which a kernel starts, as plain data for the board to program.

use serde::{Deserialize, Serialize};

use super::{BootError, GuestMemory};
use crate::layout::BOOT_GDT;

/// A segment register: selector and the descriptor behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    /// In bytes, granularity applied.
    pub limit: u32,
    /// Byte 5 of the descriptor: P, DPL, S, type.
    pub access: u8,
    /// High nibble of byte 6 of the descriptor: G, D/B, L, AVL.
    pub flags: u8,
}

impl Segment {
    const fn flat(selector: u16, access: u8, flags: u8) -> Self {
        Self { selector, base: 0, limit: 0xFFFF_FFFF, access, flags }
    }

    /// __BOOT_CS of the Linux boot protocol: 32-bit code.
    pub const CODE32: Self = Self::flat(0x10, 0x9B, 0b1100);
    /// __BOOT_CS for the 64-bit entry.
    pub const CODE64: Self = Self::flat(0x10, 0x9B, 0b1010);
    /// __BOOT_DS.
    pub const DATA: Self = Self::flat(0x18, 0x93, 0b1100);
    /// A busy 32-bit TSS at 0, which PVH asks for.
    pub const TSS: Self = Self { selector: 0x20, base: 0, limit: 0x67, access: 0x8B, flags: 0 };

    /// The eight bytes of the descriptor (SDM Vol. 3A, "Segment Descriptors").
    pub const fn descriptor(&self) -> u64 {
        let limit = if self.flags & 0b1000 != 0 { self.limit >> 12 } else { self.limit } as u64;
        limit & 0xFFFF
            | (self.base & 0xFF_FFFF) << 16
            | (self.access as u64) << 40
            | (limit >> 16 & 0xF) << 48
            | (self.flags as u64 & 0xF) << 52
            | (self.base >> 24 & 0xFF) << 56
    }
}

/// Protected mode without paging. EFLAGS is 2, CR4 is 0, IDTR is that of real mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protected32 {
    pub eip: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
    pub ebp: u32,
    pub esp: u32,
    pub cr0: u32,
    pub gdt_base: u64,
    pub gdt_limit: u16,
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub ds: Segment,
    pub tr: Segment,
}

/// 64-bit mode with identity page tables for the first 4 GiB. RFLAGS is 2, IDTR is that of real mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Long64 {
    pub rip: u64,
    pub rsi: u64,
    pub rsp: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub gdt_base: u64,
    pub gdt_limit: u16,
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub ds: Segment,
    pub tr: Segment,
}

/// How the bootstrap processor starts. Registers that are not named hold 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootRegisters {
    RealMode { cs: u16, cs_base: u64, ip: u16 },
    Protected32(Protected32),
    Long64(Long64),
}

impl BootRegisters {
    /// After RESET#: 16 bytes below 4 GiB, where firmware begins (SDM Vol. 3A, "First Instruction Executed").
    pub const RESET: Self = Self::RealMode { cs: 0xF000, cs_base: 0xFFFF_0000, ip: 0xFFF0 };
}

/// CR0: PE and ET.
const CR0_PROTECTED: u32 = 0x11;
/// CR0: PG, NE, ET and PE.
const CR0_LONG: u64 = 0x8000_0031;
const CR4_PAE: u64 = 0x20;
/// EFER: LME and LMA.
const EFER_LONG: u64 = 0x500;

/// Size of the boot GDT less one.
const GDT_LIMIT: u16 = 5 * 8 - 1;

fn write_gdt(memory: &dyn GuestMemory, code: Segment) -> Result<(), BootError> {
    let gdt = [0, 0, code.descriptor(), Segment::DATA.descriptor(), Segment::TSS.descriptor()];
    memory.write(BOOT_GDT, &gdt.map(u64::to_le_bytes).concat())
}

impl Protected32 {
    /// Flat segments, all general registers 0; writes the GDT.
    pub(super) fn at(memory: &dyn GuestMemory, eip: u32) -> Result<Self, BootError> {
        write_gdt(memory, Segment::CODE32)?;
        Ok(Self {
            eip,
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: 0,
            esi: 0,
            edi: 0,
            ebp: 0,
            esp: crate::layout::BOOT_STACK_TOP as u32,
            cr0: CR0_PROTECTED,
            gdt_base: BOOT_GDT,
            gdt_limit: GDT_LIMIT,
            cs: Segment::CODE32,
            ds: Segment::DATA,
            tr: Segment::TSS,
        })
    }
}

impl Long64 {
    /// Writes the GDT and the page tables: 4 GiB, identity-mapped by 2-MiB pages.
    pub(super) fn at(memory: &dyn GuestMemory, rip: u64, rsi: u64) -> Result<Self, BootError> {
        const PRESENT_WRITE: u64 = 3;
        const PAGE_SIZE: u64 = 0x80;
        let pml4 = crate::layout::BOOT_PAGE_TABLES;
        let pdpt = pml4 + 0x1000;
        let directories = pdpt + 0x1000;
        let table =
            |entries: &mut dyn Iterator<Item = u64>| entries.flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        memory.write(pml4, &[0; 0x2000])?;
        memory.write(pml4, &(pdpt | PRESENT_WRITE).to_le_bytes())?;
        memory.write(pdpt, &table(&mut (0..4).map(|i| (directories + i * 0x1000) | PRESENT_WRITE)))?;
        memory
            .write(directories, &table(&mut (0..4 * 512).map(|i| (i << 21) | PAGE_SIZE | PRESENT_WRITE)))?;
        write_gdt(memory, Segment::CODE64)?;
        Ok(Self {
            rip,
            rsi,
            rsp: crate::layout::BOOT_STACK_TOP,
            cr0: CR0_LONG,
            cr3: pml4,
            cr4: CR4_PAE,
            efer: EFER_LONG,
            gdt_base: BOOT_GDT,
            gdt_limit: GDT_LIMIT,
            cs: Segment::CODE64,
            ds: Segment::DATA,
            tr: Segment::TSS,
        })
    }
}
