//! Which chip answers at which I/O port.

use crate::chips::ChipId;
use crate::layout::*;
use std::sync::{PoisonError, RwLock};
use trimaran_devices::pci::{BarKind, Region};
use trimaran_devices::{
    debug_port, dma8237, floppy, fw_cfg, i8042, ide, parallel, pic, piix3, piix4_pm, pit, rtc, testdev, uart,
    vga,
};

/// Debug consoles: Bochs's port, and the firmware's.
pub const BOCHS_DEBUG: u16 = 0xE9;
pub const FIRMWARE_DEBUG: u16 = 0x402;
/// COM1 to COM4.
pub const COM: [u16; 4] = [COM1, COM2, 0x3E8, 0x2E8];

/// A range of ports that one window answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
    pub id: ChipId,
    pub window: u8,
}

/// The fixed ranges: first port, number of ports.
const FIXED: &[(u16, u16, ChipId, u8)] = &[
    (0x00, 0x10, ChipId::Dma, dma8237::DMA1),
    (0x20, 2, ChipId::Pic, pic::MASTER),
    (0x40, 4, ChipId::Pit, pit::COUNTERS),
    (0x60, 1, ChipId::Keyboard, i8042::DATA),
    (0x61, 1, ChipId::Pit, pit::PORT_61),
    (0x64, 1, ChipId::Keyboard, i8042::COMMAND),
    (0x70, 2, ChipId::Rtc, rtc::PORTS),
    (0x80, 0x10, ChipId::Dma, dma8237::PAGES),
    (0x92, 1, ChipId::Keyboard, i8042::PORT_92),
    (0xA0, 2, ChipId::Pic, pic::SLAVE),
    (0xB2, 2, ChipId::PowerManagement, piix4_pm::APM),
    (0xC0, 0x20, ChipId::Dma, dma8237::DMA2),
    (BOCHS_DEBUG, 1, ChipId::DebugConsole, debug_port::PORT),
    (0x170, 8, ChipId::Ide, ide::COMMAND_BLOCK_1),
    (0x1CE, 3, ChipId::Vga, vga::DISPI_PORTS),
    (0x1F0, 8, ChipId::Ide, ide::COMMAND_BLOCK_0),
    (COM[3], 8, ChipId::Com(3), uart::REGISTERS),
    (COM[1], 8, ChipId::Com(1), uart::REGISTERS),
    (0x376, 1, ChipId::Ide, ide::CONTROL_BLOCK_1),
    (LPT1, 3, ChipId::Parallel, parallel::REGISTERS),
    (0x3B0, 0x30, ChipId::Vga, vga::PORTS),
    (COM[2], 8, ChipId::Com(2), uart::REGISTERS),
    (0x3F0, 6, ChipId::Floppy, floppy::PORTS),
    (0x3F6, 1, ChipId::Ide, ide::CONTROL_BLOCK_0),
    (FLOPPY_RATE, 1, ChipId::Floppy, floppy::DIR_CCR),
    (COM[0], 8, ChipId::Com(0), uart::REGISTERS),
    (FIRMWARE_DEBUG, 1, ChipId::FirmwareConsole, debug_port::PORT),
    (PIC_ELCR, 2, ChipId::Pic, pic::ELCR),
    (FW_CFG_SELECTOR, 12, ChipId::FwCfg, fw_cfg::PORTS),
    (RESET_CONTROL, 1, ChipId::IsaBridge, piix3::RESET_CONTROL),
    (GPE0, 4, ChipId::PowerManagement, piix4_pm::GPE0),
];

/// Ports of the test device; they hide fixed ranges.
const TEST_DEVICE: [(u16, u16, u8); 4] = [
    (TEST_ECHO, 4, testdev::ECHO),
    (TEST_FLUSH, 4, testdev::FLUSH),
    (TEST_ECHO_BYTES, 4, testdev::ECHO),
    (TEST_LINES, testdev::LINE_COUNT as u16, testdev::LINES),
];

/// Ports that are there if a machine's owner wants them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Diagnostics {
    /// First port of isa-debug-exit.
    pub debug_exit: Option<u16>,
    pub test_device: bool,
}

impl Diagnostics {
    fn ranges(&self) -> Vec<PortRange> {
        let range = |first: u16, count: u16, id, window| PortRange {
            first,
            last: first.saturating_add(count - 1),
            id,
            window,
        };
        let exit = self.debug_exit.map(|port| range(port, 4, ChipId::DebugExit, debug_port::PORT));
        let test = TEST_DEVICE.iter().filter(|_| self.test_device);
        exit.into_iter()
            .chain(test.map(|&(first, count, window)| range(first, count, ChipId::TestDevice, window)))
            .collect()
    }
}

struct Table {
    /// Index into `ranges` plus 1; 0: nothing.
    index: Box<[u8]>,
    ranges: Vec<PortRange>,
}

/// See the head of this file.
pub struct PortMap {
    table: RwLock<Table>,
    diagnostics: Diagnostics,
}

impl PortMap {
    pub fn new(diagnostics: Diagnostics) -> Self {
        let table = Table { index: vec![0; 0x1_0000].into(), ranges: Vec::new() };
        let map = PortMap { table: RwLock::new(table), diagnostics };
        map.rebuild(None, None, &[]);
        map
    }

    /// Lays the ports of PCI functions over the fixed ones.
    pub fn rebuild(&self, pm_base: Option<u16>, smbus_base: Option<u16>, bars: &[(ChipId, Region)]) {
        // What stands first wins.
        let mut ranges = self.diagnostics.ranges();
        let mut add = |first: u16, count: u16, id, window| {
            let last = first.saturating_add(count - 1);
            ranges.push(PortRange { first, last, id, window });
        };
        FIXED.iter().for_each(|&(first, count, id, window)| add(first, count, id, window));
        if let Some(base) = pm_base {
            add(base, 64, ChipId::PowerManagement, piix4_pm::PM);
        }
        if let Some(base) = smbus_base {
            add(base, 16, ChipId::PowerManagement, piix4_pm::SMBUS);
        }
        for (id, region) in bars.iter().filter(|(_, region)| region.kind == BarKind::Io) {
            if let (Ok(first), Ok(count)) = (u16::try_from(region.base), u16::try_from(region.size)) {
                add(first, count.max(1), *id, region.window);
            }
        }
        ranges.truncate(usize::from(u8::MAX));
        let mut index = vec![0; 0x1_0000];
        for (n, range) in ranges.iter().enumerate() {
            for slot in &mut index[usize::from(range.first)..=usize::from(range.last)] {
                if *slot == 0 {
                    *slot = n as u8 + 1;
                }
            }
        }
        let table = Table { index: index.into(), ranges };
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// Who answers at `port`.
    pub fn find(&self, port: u16) -> Option<PortRange> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let index = usize::from(table.index[usize::from(port)]);
        index.checked_sub(1).and_then(|i| table.ranges.get(i)).copied()
    }

    /// Text for the monitor.
    pub fn describe(&self) -> String {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let mut ranges = table.ranges.clone();
        ranges.sort_by_key(|range| range.first);
        let line = |r: &PortRange| format!("{:04x}-{:04x} {}, window {}\n", r.first, r.last, r.id, r.window);
        ranges.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixed_range_is_found() {
        let map = PortMap::new(Diagnostics::default());
        for &(first, count, id, window) in FIXED {
            let found = map.find(first + count - 1);
            assert_eq!(found, Some(PortRange { first, last: first + count - 1, id, window }));
        }
        assert_eq!(map.find(0x501), None);
        let map = PortMap::new(Diagnostics { debug_exit: Some(0x501), test_device: true });
        let ids = [0x501, TEST_ECHO + 3, BOCHS_DEBUG, TEST_LINES + 23, TEST_LINES + 24, 0xDF]
            .map(|port| map.find(port).map(|r| r.id));
        let test = Some(ChipId::TestDevice);
        assert_eq!(ids, [Some(ChipId::DebugExit), test, test, test, None, Some(ChipId::Dma)]);
    }
}
