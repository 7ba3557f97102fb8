//! The tiny machine that trials and measurements run in: half a mebibyte with tables for every mode, no devices.
#![cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), allow(dead_code))]

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use std::sync::Arc;
use trimaran_cpu::bus::{Bus, GeneralProtection, MemoryRange, Page};
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::{CodeFence, attention};
use trimaran_cpu::state::{CpuState, RFlags, Segment, TableRegister, attr, cr0, cr4, efer, gpr, seg};

pub const BYTES: u64 = 0x8_0000;
pub const CODE: u64 = 0x1000;
/// Port that ends a program at CPL 3, where HLT faults.
pub const DONE: u16 = 0x80;
const STACK: u64 = 0x8000;
const GDT: u64 = 0x9000;
pub const IDT: u64 = 0xA000;
const TSS: u64 = 0xB000;
/// Page tables of the kind that the mode needs.
const TABLES: u64 = 0x1_0000;
/// Selectors.
pub const CODE0: u16 = 0x08;
const DATA0: u16 = 0x10;
/// SYSRET wants data and 64-bit code in this order.
const DATA3: u16 = 0x23;
const CODE3: u16 = 0x2B;
const TASK: u16 = 0x30;

/// RAM; and a write of any port stops the processor.
pub struct OnlyRam(pub Arc<CodeFence>);

impl Bus for OnlyRam {
    fn page(&self, address: u64, _: bool) -> Page {
        if address < BYTES { Page::Ram { offset: address & !0xFFF, writable: true } } else { Page::Mmio }
    }
    fn memory_ranges(&self) -> Vec<MemoryRange> {
        vec![MemoryRange { start: 0, len: BYTES, offset: 0, writable: true }]
    }
    fn mmio_read(&self, _: usize, _: u64, _: u8) -> u64 {
        0
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn port_read(&self, _: usize, _: u16, _: u8) -> u32 {
        0
    }
    fn port_write(&self, cpu: usize, _: u16, _: u8, _: u32) {
        self.0.vcpus[cpu].raise(attention::STOP);
    }
    fn acknowledge_interrupt(&self, _: usize) -> Option<u8> {
        None
    }
    fn clock(&self, _: usize) -> u64 {
        0
    }
    fn read_apic_msr(&self, _: usize, _: u32) -> Option<Result<u64, GeneralProtection>> {
        None
    }
    fn write_apic_msr(&self, _: usize, _: u32, _: u64) -> Option<Result<(), GeneralProtection>> {
        None
    }
    fn task_priority(&self, _: usize) -> u8 {
        0
    }
    fn set_task_priority(&self, _: usize, _: u8) {}
    fn random(&self) -> u64 {
        0
    }
    fn x87_error(&self, _: usize) {}
}

/// The mode that a trial starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    Protected,
    /// Protected, with 32-bit paging.
    Paged,
    /// Without paging, at CPL 3.
    Virtual8086,
    Long,
}

/// The tables' writer.
pub struct Tables<'a>(pub &'a Ram);

impl Tables<'_> {
    fn put(&self, at: u64, value: u64) {
        self.0.write(at, &value.to_le_bytes());
    }

    /// Writes the tables of a mode, and makes the state that starts at [`CODE`]. IOPL is 3.
    pub fn prepare(&self, mode: Mode, cpl: u8) -> CpuState {
        let mut state = CpuState::reset(0, true);
        (state.gpr[gpr::RIP], state.gpr[gpr::RSP]) = (CODE, STACK);
        state.rflags |= RFlags::IOPL;
        state.seg[seg::CS] = Segment { base: 0, selector: 0, ..state.seg[seg::CS] };
        if mode == Mode::Real {
            return state;
        }
        let long = mode == Mode::Long;
        self.write_gdt(long);
        // RSP0, or ESP0 and SS0.
        self.put(TSS + 4, if long { STACK } else { STACK | u64::from(DATA0) << 32 });
        state.gdtr = TableRegister { base: GDT, limit: 0x3F };
        state.idtr = TableRegister { base: IDT, limit: 0xFFF };
        state.tr = Segment { selector: TASK, attributes: attr::P | 11, limit: 0x67, base: TSS };
        flatten(&mut state, long, cpl);
        state.cr0 = cr0::PE | cr0::ET | cr0::NE;
        state.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
        match mode {
            Mode::Paged => {
                // One page table for the first 4 MiB.
                self.put(TABLES, (TABLES + 0x1000) | 7);
                for page in 0..1024u32 {
                    let entry = (page << 12 | 7).to_le_bytes();
                    self.0.write(TABLES + 0x1000 + u64::from(page) * 4, &entry);
                }
            }
            Mode::Long => {
                self.put(TABLES, (TABLES + 0x1000) | 7);
                self.put(TABLES + 0x1000, (TABLES + 0x2000) | 7);
                // A large page for the first 2 MiB.
                self.put(TABLES + 0x2000, 0x87);
                state.cr4 |= cr4::PAE;
                state.msr.efer = efer::LME | efer::LMA | efer::SCE;
            }
            Mode::Virtual8086 => {
                state.rflags |= RFlags::VM;
                let attributes = attr::P | attr::S | attr::RW | attr::A | 3 << 5;
                state.seg[..6].fill(Segment { selector: 0, attributes, limit: 0xFFFF, base: 0 });
                state.cpl = 3;
                return state;
            }
            _ => return state,
        }
        state.cr0 |= cr0::PG | cr0::WP;
        state.cr3 = TABLES;
        state
    }

    fn write_gdt(&self, long: bool) {
        let size = if long { attr::L } else { attr::DB };
        let flat = |kind: u16| 0xFFFF | u64::from(kind) << 40 | 0xF << 48;
        let code = attr::P | attr::S | attr::CODE | attr::RW | attr::A | attr::G | size;
        let data = attr::P | attr::S | attr::RW | attr::A | attr::G | attr::DB;
        let task = 0x67 | TSS << 16 | u64::from(attr::P | 11) << 40;
        let entries = [0, flat(code), flat(data), 0, flat(data | 3 << 5), flat(code | 3 << 5), task, 0];
        for (n, entry) in (0..).zip(entries) {
            self.put(GDT + n * 8, entry);
        }
    }
}

/// Flat segments of a privilege level.
fn flatten(state: &mut CpuState, long: bool, cpl: u8) {
    let (code, data) = if cpl == 0 { (CODE0, DATA0) } else { (CODE3, DATA3) };
    let common = attr::P | attr::S | attr::RW | attr::A | attr::G | u16::from(cpl) << 5;
    let size = if long { attr::L } else { attr::DB };
    let segment = |selector, attributes| Segment { selector, attributes, limit: !0, base: 0 };
    state.seg[seg::CS] = segment(code, common | attr::CODE | size);
    for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[n] = segment(data, common | attr::DB);
    }
    state.cpl = cpl;
}

/// Assembles a program to an address.
pub fn assemble(
    bits: u32,
    at: u64,
    f: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(bits)?;
    f(&mut a)?;
    a.assemble(at)
}
