//! What firmware leaves behind, for guests that start without it.

use crate::board::Board;
use crate::boot::{self, BootRegisters, DirectBoot, Segment as BootSegment};
use crate::chips::ChipId;
use crate::config::MachineError;
use crate::layout::{PIC_ELCR, PIRQ_IRQS, PIRQRC, PM_BASE, RAM_HOLE};
use crate::memory::MainMemory;
use crate::tables::{self, Hardware};
use crate::vcpus::Engines;
use trimaran_cpu::state::{CpuState, Msrs, RFlags, Segment, TableRegister, gpr, seg};
use trimaran_devices::chip::PCI_CONFIG;
use trimaran_devices::pci::{command, reg};
use trimaran_devices::vga::font::font_8x16;
use trimaran_devices::{i440fx, lapic};

/// Where PCI functions decode: video memory, VGA registers, the IDE bus master's ports.
const VIDEO_BAR: u64 = 0xFD00_0000;
const VGA_REGISTERS_BAR: u64 = 0xFEBF_0000;
const BUS_MASTER_BAR: u64 = 0xC000;
/// IDETIM: decode enable.
const IDETIM: u64 = 0x40;
const IDE_ENABLE: u64 = 0x8000;

/// Loads the kernel and brings board and bootstrap processor to where its boot protocol wants them.
pub fn set_up(
    board: &Board,
    boot: &DirectBoot,
    hardware: &Hardware,
    engines: &mut Engines,
) -> Result<(), MachineError> {
    set_up_chips(board);
    let memory = MainMemory { ram: board.memory.ram(), blocks: *board.memory.blocks() };
    let tables = tables::place(hardware)?;
    for (at, blob) in &tables.blobs {
        boot::GuestMemory::write(&memory, *at, blob)?;
    }
    let registers = boot::load(boot, &memory, &hardware.memory, tables.rsdp_at)?;
    for engine in engines.iter_mut() {
        set_up_mtrrs(&mut engine.state().msr);
        engine.state_changed();
    }
    if let Some(bootstrap) = engines.first_mut() {
        set_registers(bootstrap.state(), &registers);
        bootstrap.state_changed();
    }
    Ok(())
}

fn set_up_chips(board: &Board) {
    let config =
        |id, offset: usize, size, value| board.chip_write(id, PCI_CONFIG, offset as u64, size, value);
    // 0xC0000 to 0xFFFFF is RAM.
    config(ChipId::HostBridge, i440fx::PAM0, 1, 0x30);
    (1..7).for_each(|n| config(ChipId::HostBridge, i440fx::PAM0 + n, 1, 0x33));
    // PCI interrupts, level-triggered.
    for (n, irq) in PIRQ_IRQS.into_iter().enumerate() {
        config(ChipId::IsaBridge, usize::from(PIRQRC) + n, 1, u64::from(irq));
    }
    let levels = PIRQ_IRQS.iter().fold(0u32, |levels, irq| levels | 1 << irq);
    board.write_port(PIC_ELCR, 2, levels);

    let io = u64::from(command::IO);
    config(ChipId::Ide, reg::BAR0 + 16, 4, BUS_MASTER_BAR);
    config(ChipId::Ide, IDETIM as usize, 4, IDE_ENABLE << 16 | IDE_ENABLE);
    config(ChipId::Ide, reg::COMMAND, 2, io | u64::from(command::BUS_MASTER));
    config(ChipId::Vga, reg::BAR0, 4, VIDEO_BAR);
    config(ChipId::Vga, reg::BAR0 + 8, 4, VGA_REGISTERS_BAR);
    config(ChipId::Vga, reg::COMMAND, 2, io | u64::from(command::MEMORY));
    board.call(&board.chips.pm, |pm, cx| pm.set_up(cx, PM_BASE));
    board.chips.vga.lock().set_text_mode3(&font_8x16());

    // 8259As: vectors 08h and 70h, all masked. 8254: 18.2 Hz.
    for (port, values) in
        [(0x20u16, [0x11u32, 0x08, 0x04, 0x01, 0xFF]), (0xA0, [0x11, 0x70, 0x02, 0x01, 0xFF])]
    {
        for (n, value) in values.into_iter().enumerate() {
            board.write_port(port + u16::from(n > 0), 1, value);
        }
    }
    [(0x43, 0x36), (0x40, 0), (0x40, 0)].iter().for_each(|&(port, value)| board.write_port(port, 1, value));

    // Virtual wire: LINT0 is the 8259As' interrupt, LINT1 is NMI.
    for (register, value) in [(0xF0, 0x1FF), (0x350, 0x700), (0x360, 0x400)] {
        board.chip_write(ChipId::Lapic(0), lapic::XAPIC, register, 4, value);
    }
}

/// RAM is write-back, the holes are uncacheable.
fn set_up_mtrrs(msr: &mut Msrs) {
    const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
    const WRITE_PROTECTED: u64 = 0x0505_0505_0505_0505;
    /// Enabled, fixed ranges too; write-back elsewhere.
    const DEFAULT: u64 = 0xC06;
    const VALID: u64 = 0x800;
    let physical = (1u64 << trimaran_cpu::mmu::MAXPHYADDR) - 1;
    msr.mtrr_def_type = DEFAULT;
    msr.mtrr_fixed = [WRITE_PROTECTED; 11];
    msr.mtrr_fixed[..2].fill(WRITE_BACK);
    msr.mtrr_fixed[2] = 0;
    msr.mtrr_variable[0] = RAM_HOLE;
    msr.mtrr_variable[1] = physical & !((1 << 30) - 1) | VALID;
}

fn segment(from: &BootSegment) -> Segment {
    let attributes = u16::from(from.access) | u16::from(from.flags & 0xF) << 12;
    Segment { selector: from.selector, attributes, limit: from.limit, base: from.base }
}

fn set_segments(state: &mut CpuState, code: &BootSegment, data: &BootSegment, task: &BootSegment) {
    for index in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        state.seg[index] = segment(data);
    }
    state.seg[seg::CS] = segment(code);
    state.tr = segment(task);
    // As firmware leaves it: kernels that go back to real mode count on that.
    state.idtr = TableRegister { base: 0, limit: 0x3FF };
    state.rflags = RFlags::ONE;
    state.cpl = 0;
}

fn set_registers(state: &mut CpuState, registers: &BootRegisters) {
    match registers {
        BootRegisters::RealMode { cs, cs_base, ip } => {
            let code = &mut state.seg[seg::CS];
            (code.selector, code.base) = (*cs, *cs_base);
            state.gpr[gpr::RIP] = u64::from(*ip);
        }
        BootRegisters::Protected32(r) => {
            set_segments(state, &r.cs, &r.ds, &r.tr);
            let values = [r.eax, r.ecx, r.edx, r.ebx, r.esp, r.ebp, r.esi, r.edi];
            for (register, value) in state.gpr.iter_mut().zip(values) {
                *register = u64::from(value);
            }
            state.gpr[gpr::RIP] = u64::from(r.eip);
            state.cr0 = u64::from(r.cr0);
            state.gdtr = TableRegister { base: r.gdt_base, limit: r.gdt_limit };
        }
        BootRegisters::Long64(r) => {
            set_segments(state, &r.cs, &r.ds, &r.tr);
            state.gpr[..8].fill(0);
            state.gpr[gpr::RSI] = r.rsi;
            state.gpr[gpr::RSP] = r.rsp;
            state.gpr[gpr::RIP] = r.rip;
            (state.cr0, state.cr3, state.cr4, state.msr.efer) = (r.cr0, r.cr3, r.cr4, r.efer);
            state.gdtr = TableRegister { base: r.gdt_base, limit: r.gdt_limit };
        }
    }
}
