//! Power management function of the PIIX4, 8086:7113 (Intel 82371AB datasheet, "Power Management"), with the
//! general-purpose event block of PC virtual machines.

use serde::{Deserialize, Serialize};

use crate::chip::{Chip, Cx, Effect, Nanos, PCI_CONFIG, StateError, decode, encode, open_bus};
use crate::pci::{PciConfig, reg};
use crate::ports::{read_each, ticks_at, time_of_tick, write_each};

/// Window of the 64 power management ports at [`Piix4Pm::pm_base`].
pub const PM: u8 = 0;
/// Window of the 16 SMBus host ports at [`Piix4Pm::smbus_base`].
pub const SMBUS: u8 = 1;
/// Window of the APM control and status ports 0xB2 and 0xB3.
pub const APM: u8 = 2;
/// Window of the GPE0 block: 4 ports at [`GPE0_BASE`], two of status and two of enable bits.
pub const GPE0: u8 = 3;

/// Where the GPE0 block stands.
pub const GPE0_BASE: u16 = 0xAFE0;

/// Output pin (level): SCI, to IRQ9.
pub const SCI: u8 = 0;

/// PMCNTRL.SLP_TYP of S5 in the DSDT; [`SLP_TYP_S5_ALTERNATIVE`] powers off too.
pub const SLP_TYP_S5: u8 = 0;
pub const SLP_TYP_S5_ALTERNATIVE: u8 = 5;
/// What the FADT tells the guest to write to SMI_CMD (port 0xB2) to turn ACPI mode on and off. It works with
/// and without an SMM handler.
pub const ACPI_ENABLE: u8 = 0xF1;
pub const ACPI_DISABLE: u8 = 0xF0;

/// PM timer.
pub const TIMER_HERTZ: u64 = 3_579_545;
const TIMER_MASK: u64 = 0x00FF_FFFF;
/// TMR_STS is set when this bit changes.
const TIMER_TOP: u32 = 23;

/// PMSTS and PMEN bits.
pub mod pmsts {
    pub const TMR: u16 = 1 << 0;
    pub const BM: u16 = 1 << 4;
    pub const GBL: u16 = 1 << 5;
    pub const PWRBTN: u16 = 1 << 8;
    pub const RTC: u16 = 1 << 10;
    pub const RSM: u16 = 1 << 15;
    pub const ALL: u16 = TMR | BM | GBL | PWRBTN | RTC | RSM;
    pub const ENABLES: u16 = TMR | GBL | PWRBTN | RTC;
}

/// PMCNTRL bits.
const SCI_EN: u16 = 1;
const SLP_EN: u16 = 1 << 13;
const PMCNTRL_WRITABLE: u16 = 0x1C07;

/// Configuration space.
const PMBASE: usize = 0x40;
const DEVACTB: usize = 0x58;
/// DEVACTB: a write to port 0xB2 makes an SMI.
const APMC_EN: u32 = 1 << 25;
const PMREGMISC: usize = 0x80;
const SMBBA: usize = 0x90;
const SMBHSTCFG: usize = 0xD2;

/// SMBus host: status DEV_ERR, control START.
const DEV_ERR: u8 = 0x04;
const SMBUS_STATUS: u8 = 0x1E;
const START: u8 = 0x40;

const VERSION: u16 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    pci: PciConfig,
    pmsts: u16,
    pmen: u16,
    pmcntrl: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// Ports 0x10 to 0x3F of the block, which only remember what is written.
    other: [u8; 32],
    other_high: [u8; 16],
    smbus: [u8; 16],
    apm_control: u8,
    apm_status: u8,
    /// Timer ticks up to which TMR_STS is known.
    seen: u64,
    sci: bool,
}

/// The power management function (device 1, function 3 on a PIIX4 board).
pub struct Piix4Pm {
    state: State,
}

fn config() -> PciConfig {
    let mut pci = PciConfig::new(0x8086, 0x7113, 0x068000, 3);
    pci.init(reg::STATUS, &0x0280u16.to_le_bytes());
    pci.interrupt_pin(1);
    pci.init(PMBASE, &[1]).allow(PMBASE, &[0xC0, 0xFF]);
    // Device activity and resource registers.
    pci.allow(0x44, &[0xFF; 0x3C]);
    pci.allow(PMREGMISC, &[1]);
    pci.init(SMBBA, &[1]).allow(SMBBA, &[0xF0, 0xFF]);
    pci.allow(SMBHSTCFG, &[0x0F, 0xFF, 0xFF, 0xFF]);
    pci
}

impl Piix4Pm {
    pub fn new() -> Self {
        let state = State {
            pci: config(),
            pmsts: 0,
            pmen: 0,
            pmcntrl: 0,
            gpe_status: 0,
            gpe_enable: 0,
            other: [0; 32],
            other_high: [0; 16],
            smbus: [0; 16],
            apm_control: 0,
            apm_status: 0,
            seen: 0,
            sci: false,
        };
        Piix4Pm { state }
    }

    /// First port of the [`PM`] window, while it is decoded.
    pub fn pm_base(&self) -> Option<u16> {
        let base = self.state.pci.word(PMBASE) & 0xFFC0;
        (self.state.pci.byte(PMREGMISC) & 1 != 0 && base != 0).then_some(base)
    }

    /// First port of the [`SMBUS`] window, while it is decoded.
    pub fn smbus_base(&self) -> Option<u16> {
        let base = self.state.pci.word(SMBBA) & 0xFFF0;
        (self.state.pci.byte(SMBHSTCFG) & 1 != 0 && base != 0).then_some(base)
    }

    /// Sets up what firmware would, for a direct boot: PMBASE, its enable, and ACPI mode.
    pub fn set_up(&mut self, cx: &mut Cx, pm_base: u16) {
        self.state.pci.set(PMBASE, &(pm_base & 0xFFC0 | 1).to_le_bytes());
        self.state.pci.set(PMREGMISC, &[1]);
        self.state.pci.set(reg::INTERRUPT_LINE, &[9]);
        self.state.pmcntrl |= SCI_EN;
        cx.push(Effect::Remap);
        self.update(cx);
    }

    /// The power button was pressed.
    pub fn press_power_button(&mut self, cx: &mut Cx) {
        self.state.pmsts |= pmsts::PWRBTN;
        self.update(cx);
    }

    /// The RTC's alarm rang.
    pub fn rtc_alarm(&mut self, cx: &mut Cx) {
        self.state.pmsts |= pmsts::RTC;
        self.update(cx);
    }

    /// A general-purpose event, 0 to 15: hot plug and the like.
    pub fn raise_gpe(&mut self, cx: &mut Cx, event: u8) {
        self.state.gpe_status |= 1 << (event & 15);
        self.update(cx);
    }

    /// The PM timer as the guest reads it.
    pub fn timer(&self, now: Nanos) -> u32 {
        (ticks_at(now, TIMER_HERTZ) & TIMER_MASK) as u32
    }

    /// Brings TMR_STS and SCI up to date.
    fn update(&mut self, cx: &mut Cx) {
        let ticks = ticks_at(cx.now, TIMER_HERTZ);
        if ticks >> TIMER_TOP > self.state.seen >> TIMER_TOP {
            self.state.pmsts |= pmsts::TMR;
        }
        self.state.seen = ticks;
        let fixed = self.state.pmsts & self.state.pmen & pmsts::ENABLES != 0;
        let general = self.state.gpe_status & self.state.gpe_enable != 0;
        let sci = self.state.pmcntrl & SCI_EN != 0 && (fixed || general);
        if sci != self.state.sci {
            self.state.sci = sci;
            cx.line(SCI, sci);
        }
    }

    fn read_pm(&self, now: Nanos, offset: u64) -> u8 {
        let s = &self.state;
        let byte = |word: u16| word.to_le_bytes()[(offset & 1) as usize];
        match offset {
            0x00..=0x01 => byte(s.pmsts),
            0x02..=0x03 => byte(s.pmen),
            0x04..=0x05 => byte(s.pmcntrl),
            0x08..=0x0B => self.timer(now).to_le_bytes()[(offset & 3) as usize],
            // GPSTS and GPEN of the chip itself: no such events.
            0x10..=0x2F => s.other[(offset & 0x1F) as usize],
            0x30..=0x3F => s.other_high[(offset & 0xF) as usize],
            0x06..=0x0F => 0,
            _ => 0xFF,
        }
    }

    fn write_pm(&mut self, cx: &mut Cx, offset: u64, value: u8) {
        let shift = (offset & 1) * 8;
        let (bits, mask) = (u16::from(value) << shift, 0xFF << shift);
        let s = &mut self.state;
        match offset {
            0x00..=0x01 => s.pmsts &= !(bits & pmsts::ALL),
            0x02..=0x03 => s.pmen = (s.pmen & !mask | bits) & pmsts::ENABLES,
            0x04..=0x05 => {
                s.pmcntrl = (s.pmcntrl & !mask | bits) & PMCNTRL_WRITABLE;
                if bits & SLP_EN != 0 {
                    let kind = (s.pmcntrl >> 10 & 7) as u8;
                    if matches!(kind, SLP_TYP_S5 | SLP_TYP_S5_ALTERNATIVE) {
                        cx.push(Effect::PowerOff);
                    }
                }
            }
            0x10..=0x2F => s.other[(offset & 0x1F) as usize] = value,
            // 0x30 to 0x33 are general-purpose inputs.
            0x34..=0x3F => s.other_high[(offset & 0xF) as usize] = value,
            _ => {}
        }
    }

    /// Nothing answers on the SMBus: every cycle ends with DEV_ERR.
    fn write_smbus(&mut self, offset: u64, value: u8) {
        let Some(register) = usize::try_from(offset).ok().and_then(|o| self.state.smbus.get_mut(o)) else {
            return;
        };
        match offset {
            0 => *register &= !(value & SMBUS_STATUS),
            1 => {}
            2 => {
                *register = value & !START;
                if value & START != 0 {
                    self.state.smbus[0] |= DEV_ERR;
                }
            }
            _ => *register = value,
        }
    }

    fn write_apm(&mut self, cx: &mut Cx, offset: u64, value: u8) {
        match offset {
            0 => {
                self.state.apm_control = value;
                match value {
                    ACPI_ENABLE => self.state.pmcntrl |= SCI_EN,
                    ACPI_DISABLE => self.state.pmcntrl &= !SCI_EN,
                    _ => {}
                }
                if self.state.pci.dword(DEVACTB) & APMC_EN != 0 {
                    cx.push(Effect::Smi);
                }
            }
            1 => self.state.apm_status = value,
            _ => {}
        }
    }

    fn write_gpe(&mut self, offset: u64, value: u8) {
        let shift = (offset & 1) * 8;
        let (bits, mask) = (u16::from(value) << shift, 0xFFu16 << shift);
        match offset {
            0 | 1 => self.state.gpe_status &= !bits,
            2 | 3 => self.state.gpe_enable = self.state.gpe_enable & !mask | bits,
            _ => {}
        }
    }
}

impl Chip for Piix4Pm {
    fn name(&self) -> &'static str {
        "piix4-pm"
    }

    fn reset(&mut self, cx: &mut Cx) {
        let seen = ticks_at(cx.now, TIMER_HERTZ);
        self.state = State { seen, ..Piix4Pm::new().state };
        cx.line(SCI, false);
        cx.push(Effect::Remap);
    }

    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64 {
        self.update(cx);
        let now = cx.now;
        let s = &self.state;
        match window {
            PM => read_each(offset, size, |o| self.read_pm(now, o)),
            SMBUS => read_each(offset, size, |o| {
                usize::try_from(o).ok().and_then(|o| s.smbus.get(o)).copied().unwrap_or(0xFF)
            }),
            APM => read_each(offset, size, |o| match o {
                0 => s.apm_control,
                1 => s.apm_status,
                _ => 0xFF,
            }),
            GPE0 => read_each(offset, size, |o| match o {
                0 | 1 => s.gpe_status.to_le_bytes()[(o & 1) as usize],
                2 | 3 => s.gpe_enable.to_le_bytes()[(o & 1) as usize],
                _ => 0xFF,
            }),
            PCI_CONFIG => s.pci.read(offset, size),
            _ => open_bus(size),
        }
    }

    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64) {
        self.update(cx);
        match window {
            PM => write_each(offset, size, value, |o, byte| self.write_pm(cx, o, byte)),
            SMBUS => write_each(offset, size, value, |o, byte| self.write_smbus(o, byte)),
            APM => write_each(offset, size, value, |o, byte| self.write_apm(cx, o, byte)),
            GPE0 => write_each(offset, size, value, |o, byte| self.write_gpe(o, byte)),
            PCI_CONFIG => {
                let before = (self.pm_base(), self.smbus_base());
                let remap = self.state.pci.write(offset, size, value);
                if remap || before != (self.pm_base(), self.smbus_base()) {
                    cx.push(Effect::Remap);
                }
            }
            _ => {}
        }
        self.update(cx);
    }

    /// Only an enabled timer overflow needs an event.
    fn next_event(&self) -> Option<Nanos> {
        let s = &self.state;
        let waiting = s.pmen & pmsts::TMR != 0 && s.pmsts & pmsts::TMR == 0;
        let change = ((s.seen >> TIMER_TOP) + 1) << TIMER_TOP;
        waiting.then(|| time_of_tick(change, TIMER_HERTZ))
    }

    fn event(&mut self, cx: &mut Cx) {
        self.update(cx);
    }

    fn pci(&self) -> Option<&PciConfig> {
        Some(&self.state.pci)
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.state)
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let damaged = |reason: &str| StateError::Damaged { chip: "piix4-pm", reason: reason.into() };
        let mut state: State = decode(self.name(), VERSION, bytes)?;
        let registers = state.pmsts & !pmsts::ALL == 0
            && state.pmen & !pmsts::ENABLES == 0
            && state.pmcntrl & !PMCNTRL_WRITABLE == 0
            && state.seen <= ticks_at(Nanos::MAX, TIMER_HERTZ);
        if !registers {
            return Err(damaged("register out of range"));
        }
        let mut pci = self.state.pci.clone();
        pci.restore(&state.pci).map_err(damaged)?;
        state.pci = pci;
        self.state = state;
        Ok(())
    }

    fn info(&self) -> String {
        let s = &self.state;
        format!(
            "pm_base={:x?} smbus_base={:x?} pmsts={:04x} pmen={:04x} pmcntrl={:04x} gpe0={:04x}/{:04x}\n",
            self.pm_base(),
            self.smbus_base(),
            s.pmsts,
            s.pmen,
            s.pmcntrl,
            s.gpe_status,
            s.gpe_enable
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    fn ready() -> Bench<Piix4Pm> {
        let mut bench = Bench::new(Piix4Pm::new());
        bench.write(PCI_CONFIG, 0x40, 4, 0x601);
        bench.write(PCI_CONFIG, 0x80, 1, 1);
        bench.write(APM, 0, 1, u64::from(ACPI_ENABLE));
        bench.effects.clear();
        bench
    }

    #[test]
    fn bases_follow_the_configuration() {
        let mut bench = Bench::new(Piix4Pm::new());
        assert_eq!(bench.chip.pm_base(), None);
        bench.write(PCI_CONFIG, 0x40, 4, 0x601);
        assert!(bench.effects.is_empty());
        bench.write(PCI_CONFIG, 0x80, 1, 1);
        assert_eq!(bench.effects, [Effect::Remap]);
        assert_eq!(bench.chip.pm_base(), Some(0x600));
        assert_eq!(bench.read(PCI_CONFIG, 0x40, 4), 0x601);
        bench.write(PCI_CONFIG, 0x90, 4, 0x701);
        bench.write(PCI_CONFIG, 0xD2, 1, 9);
        assert_eq!(bench.chip.smbus_base(), Some(0x700));
    }

    #[test]
    fn power_button_and_power_off() {
        let mut bench = ready();
        bench.write(PM, 2, 2, 0x100);
        bench.with(Piix4Pm::press_power_button);
        assert!(bench.level(SCI));
        assert_eq!(bench.read(PM, 0, 2) & 0x100, 0x100);
        bench.write(PM, 0, 2, 0x100);
        assert!(!bench.level(SCI));
        bench.write(PM, 4, 2, 0x2001);
        assert!(bench.effects.contains(&Effect::PowerOff));
    }

    #[test]
    fn timer_and_its_overflow() {
        let mut bench = ready();
        bench.now = 1_000_000_000;
        assert_eq!(bench.read(PM, 8, 4), TIMER_HERTZ);
        bench.write(PM, 2, 2, 1);
        bench.run_until(3_000_000_000);
        assert!(bench.level(SCI));
        assert_eq!(bench.read(PM, 0, 2) & 1, 1);
        assert_eq!(bench.chip.next_event(), None);
    }

    #[test]
    fn general_purpose_events_and_smi() {
        let mut bench = ready();
        bench.write(GPE0, 2, 2, 0x0200);
        bench.with(|chip, cx| chip.raise_gpe(cx, 9));
        assert!(bench.level(SCI));
        bench.write(GPE0, 0, 2, 0xFFFF);
        assert!(!bench.level(SCI));
        bench.write(PCI_CONFIG, 0x5B, 1, 2);
        bench.write(APM, 0, 1, 0x42);
        assert!(bench.effects.contains(&Effect::Smi));
        assert_eq!(bench.read(APM, 0, 2), 0x42);
    }

    #[test]
    fn smbus_has_no_devices() {
        let mut bench = ready();
        bench.write(SMBUS, 4, 1, 0xA1);
        bench.write(SMBUS, 2, 1, 0x48);
        assert_eq!(bench.read(SMBUS, 0, 1), 4);
        bench.write(SMBUS, 0, 1, 4);
        assert_eq!(bench.read(SMBUS, 0, 1), 0);
    }
}
