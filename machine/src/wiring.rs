//! The wires between the chips: what each output pin, message and request leads to.

use crate::board::{Board, Posted};
use crate::chips::{ChipId, locked};
use crate::consoles::Console;
use crate::control::Request;
use crate::layout::irq;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::*;
use trimaran_cpu::shared::attention;
use trimaran_devices::chip::{ApicMessage, Chip, Delivery, Effect, Shorthand};
use trimaran_devices::floppy::DmaDirection;
use trimaran_devices::{hpet, i8042, ide, lapic, pit, rtc};

/// Levels of the lines that several chips drive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wires {
    /// Who drives each ISA IRQ high: a bit a source.
    irqs: [u32; 16],
    /// Inputs of the IOAPIC that the HPET drives directly.
    hpet: u32,
    /// Inputs of the IOAPIC that the test device drives directly.
    test: u32,
    /// Outputs of the 8254 and the RTC, of which the HPET's legacy routing takes the place.
    timer: bool,
    rtc: bool,
}

/// Sources of an ISA IRQ.
mod source {
    pub const OWN: u32 = 1 << 0;
    /// COM3 and COM4 share their lines with COM1 and COM2.
    pub const SECOND: u32 = 1 << 1;
    pub const PIRQ: u32 = 1 << 2;
    pub const HPET: u32 = 1 << 3;
    pub const TEST: u32 = 1 << 4;
}

const IRQ_FERR: u8 = 13;

impl Board {
    /// Applies one effect. Called with the wires locked; chips are called one at a time.
    pub(crate) fn apply(&self, wires: &mut Wires, posted: Posted) {
        let (from, effect) = match posted {
            Posted::Effect(from, effect) => (from, effect),
            Posted::LegacyRoute => {
                self.timer_lines(wires);
                return;
            }
        };
        match effect {
            Effect::Line { pin, level } => self.line(wires, from, pin, level),
            Effect::Output { byte } => {
                let console = match from {
                    ChipId::Com(n) => Console::Serial(n),
                    ChipId::Parallel => Console::Parallel,
                    ChipId::FirmwareConsole => Console::Firmware,
                    _ => Console::Debug,
                };
                self.consoles.output(console, byte);
                if console == Console::Serial(0) && self.triggers.serial(byte) {
                    self.ask(Request::Switch);
                }
            }
            Effect::Apic(message) => self.apic_message(from, &message),
            Effect::EndOfInterrupt { vector } => {
                self.touch(&self.chips.ioapic, |ioapic, cx| ioapic.end_of_interrupt(cx, vector));
            }
            Effect::Reset => self.ask(Request::Reset),
            // Without firmware nobody could take over after INIT.
            Effect::InitCpu if !self.has_firmware() => self.ask(Request::Reset),
            Effect::InitCpu => self.init_cpus(),
            Effect::PowerOff => self.ask(Request::PowerOff),
            Effect::A20 { enabled } => {
                if self.fence.a20.swap(enabled, AcqRel) != enabled {
                    self.fence.vcpus.iter().for_each(|vcpu| vcpu.raise(attention::REMAP));
                }
            }
            // To the bootstrap processor alone: SeaBIOS moves only its SMBASE, as on other virtual PCs.
            Effect::Smi => self.attend(0, attention::SMI),
            Effect::Exit { status } => self.ask(Request::Exit(status)),
            Effect::Remap => self.remap(),
            Effect::DmaRequest { channel, level } => self.dma_request(channel, level),
        }
    }

    /// The schematic: where each output pin leads.
    fn line(&self, wires: &mut Wires, from: ChipId, pin: u8, level: bool) {
        use source::*;
        match (from, pin) {
            (ChipId::Pit, pit::OUT0) => {
                wires.timer = level;
                self.timer_lines(wires);
            }
            (ChipId::Rtc, rtc::IRQ) => {
                wires.rtc = level;
                self.timer_lines(wires);
            }
            (ChipId::Keyboard, i8042::IRQ1) => self.irq(wires, irq::KEYBOARD, OWN, level),
            (ChipId::Keyboard, i8042::IRQ12) => self.irq(wires, irq::MOUSE, OWN, level),
            (ChipId::Com(0), _) => self.irq(wires, irq::COM1, OWN, level),
            (ChipId::Com(1), _) => self.irq(wires, irq::COM2, OWN, level),
            (ChipId::Com(2), _) => self.irq(wires, irq::COM1, SECOND, level),
            (ChipId::Com(_), _) => self.irq(wires, irq::COM2, SECOND, level),
            (ChipId::Parallel, _) => self.irq(wires, irq::LPT1, OWN, level),
            (ChipId::Floppy, _) => self.irq(wires, irq::FLOPPY, OWN, level),
            (ChipId::Ide, ide::IRQ_0) => self.irq(wires, 14, OWN, level),
            (ChipId::Ide, ide::IRQ_1) => self.irq(wires, 15, OWN, level),
            (ChipId::IsaBridge, 0..16) => self.irq(wires, pin, PIRQ, level),
            (ChipId::PowerManagement, _) => self.irq(wires, irq::SCI, OWN, level),
            (ChipId::Hpet, hpet::LEGACY0) => self.irq(wires, irq::TIMER, HPET, level),
            (ChipId::Hpet, hpet::LEGACY1) => self.irq(wires, irq::RTC, HPET, level),
            (ChipId::Hpet, 0..24) => {
                wires.hpet = wires.hpet & !(1 << pin) | u32::from(level) << pin;
                self.ioapic_input(wires, pin);
            }
            (ChipId::TestDevice, 0..16) => self.irq(wires, pin, TEST, level),
            (ChipId::TestDevice, _) => {
                wires.test = wires.test & !(1 << (pin & 31)) | u32::from(level) << (pin & 31);
                self.ioapic_input(wires, pin);
            }
            (ChipId::Pic, _) => {
                let bootstrap = &self.chips.lapics[0];
                self.touch(bootstrap, |chip, cx| chip.input(cx, lapic::LINT0, level));
            }
            (ChipId::Lapic(n), _) => self.lapic_output(n, pin, level),
            _ => {}
        }
    }

    /// IRQ 0 and IRQ 8: the HPET's legacy routing disconnects the 8254 and the RTC.
    fn timer_lines(&self, wires: &mut Wires) {
        let connected = !self.legacy_route.load(Acquire);
        let (timer, rtc) = (wires.timer && connected, wires.rtc && connected);
        self.irq(wires, irq::TIMER, source::OWN, timer);
        self.irq(wires, irq::RTC, source::OWN, rtc);
    }

    /// A source drives an ISA IRQ: to the 8259As and to the IOAPIC.
    fn irq(&self, wires: &mut Wires, irq: u8, source: u32, level: bool) {
        let line = &mut wires.irqs[usize::from(irq & 15)];
        let before = *line != 0;
        *line = *line & !source | if level { source } else { 0 };
        let now = *line != 0;
        if before == now {
            return;
        }
        if irq != irq::CASCADE {
            self.touch(&self.chips.pic, |pic, cx| pic.input(cx, irq, now));
        }
        let pin = if irq == irq::TIMER { irq::TIMER_GSI } else { irq };
        self.ioapic_input(wires, pin);
    }

    fn ioapic_input(&self, wires: &Wires, pin: u8) {
        let irq = match pin {
            irq::TIMER_GSI => Some(irq::TIMER),
            irq::TIMER => None,
            _ => Some(pin),
        };
        let from_isa = irq.and_then(|irq| wires.irqs.get(usize::from(irq))).is_some_and(|&line| line != 0);
        let level = from_isa || (wires.hpet | wires.test) >> pin & 1 != 0;
        self.touch(&self.chips.ioapic, |ioapic, cx| ioapic.input(cx, pin, level));
    }

    fn lapic_output(&self, n: usize, pin: u8, level: bool) {
        match pin {
            lapic::INTR if level => self.attend(n, attention::INTR),
            lapic::INTR => {
                if let Some(vcpu) = self.fence.vcpus.get(n) {
                    vcpu.clear(attention::INTR);
                }
            }
            lapic::NMI if level => self.attend(n, attention::NMI),
            lapic::SMI if level => self.attend(n, attention::SMI),
            lapic::INIT if level => self.attend(n, attention::INIT),
            lapic::SIPI if level => {
                let vector = self.chips.lapics[n].lock().take_sipi_vector();
                if let (Some(vector), Some(vcpu)) = (vector, self.fence.vcpus.get(n)) {
                    vcpu.sipi_vector.store(vector, SeqCst);
                    self.attend(n, attention::SIPI);
                }
            }
            _ => {}
        }
    }

    /// The APIC bus: every local APIC that a message names accepts it.
    fn apic_message(&self, from: ChipId, message: &ApicMessage) {
        if self.apic_is_lent(message) {
            return;
        }
        let sender = if let ChipId::Lapic(n) = from { Some(n) } else { None };
        let addressed = |n: usize| match message.shorthand {
            Shorthand::None => self.chips.lapics[n].lock().matches(message.destination, message.logical),
            Shorthand::ToSelf => sender == Some(n),
            Shorthand::AllIncludingSelf => true,
            Shorthand::AllExcludingSelf => sender != Some(n),
        };
        let mut targets: Vec<usize> = (0..self.chips.lapics.len()).filter(|&n| addressed(n)).collect();
        if message.delivery == Delivery::LowestPriority {
            let priority = |n: &usize| {
                let lapic = self.chips.lapics[*n].lock();
                (!lapic.software_enabled(), lapic.priority())
            };
            targets = targets.into_iter().min_by_key(priority).into_iter().collect();
        }
        for n in targets {
            self.touch(&self.chips.lapics[n], |lapic, cx| lapic.accept(cx, message));
        }
    }

    /// The floppy controller asks for DMA cycles: bytes move as far as both sides go.
    fn dma_request(&self, channel: u8, level: bool) {
        self.touch(&self.chips.dma, |dma, cx| dma.input(cx, channel, level));
        if level && channel == crate::layout::FLOPPY_DMA {
            self.floppy_dma();
        }
    }

    /// Called when the request rises, and when the 8237's programming may have changed under it.
    pub(crate) fn floppy_dma(&self) {
        let request = {
            let floppy = self.chips.floppy.lock();
            floppy.dma_request().map(|(direction, len)| match direction {
                DmaDirection::ToMemory => (direction, floppy.dma_out().to_vec()),
                DmaDirection::FromMemory => (direction, vec![0; len]),
            })
        };
        let Some((direction, mut data)) = request else { return };
        let channel = crate::layout::FLOPPY_DMA;
        let to_memory = matches!(direction, DmaDirection::ToMemory);
        let ((moved, terminal), _) =
            self.touch(&self.chips.dma, |dma, cx| dma.transfer(cx, channel, to_memory, &mut data));
        if moved == 0 && !terminal {
            return;
        }
        self.touch(&self.chips.floppy, |floppy, cx| {
            if !to_memory {
                floppy.dma_in(&data[..moved.min(data.len())]);
            }
            floppy.dma_done(cx, moved, terminal);
        });
    }

    /// FERR# of a processor (IRQ 13), until port 0xF0 is written.
    pub(crate) fn ferr(&self, level: bool) {
        self.irq(&mut locked(&self.wires), IRQ_FERR, source::OWN, level);
        self.settle();
    }
}
