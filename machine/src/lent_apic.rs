//! The local APIC of a machine with one processor, while an engine plays it.

use crate::board::Board;
use crate::chips::locked;
use std::sync::Arc;
use trimaran_cpu::bus::{ApicRegisters, ApicSink};
use trimaran_cpu::shared::attention;
use trimaran_devices::chip::{ApicMessage, Delivery};
use trimaran_devices::lapic::{Lapic, Registers};

impl Board {
    pub(crate) fn lend_local_apic(&self, sink: &Arc<dyn ApicSink>) -> Option<ApicRegisters> {
        let [slot] = &*self.chips.lapics else { return None };
        let mut lent = locked(&self.apic_sink);
        let (registers, posted) = self.touch(slot, Lapic::lend);
        if registers.is_some() {
            *lent = Some(sink.clone());
        }
        drop(lent);
        if posted {
            self.settle();
        }
        registers.map(|Registers { page, tsc_deadline }| ApicRegisters { page, tsc_deadline })
    }

    pub(crate) fn take_local_apic_back(&self, registers: &mut dyn FnMut() -> Option<ApicRegisters>) -> bool {
        let [slot] = &*self.chips.lapics else { return true };
        let mut lent = locked(&self.apic_sink);
        let Some(ApicRegisters { page, tsc_deadline }) = registers() else { return false };
        *lent = None;
        self.touch(slot, |lapic, cx| lapic.give_back(cx, &Registers { page, tsc_deadline }));
        drop(lent);
        self.settle();
        true
    }

    /// Whether whoever plays the local APIC got the message.
    pub(crate) fn apic_is_lent(&self, message: &ApicMessage) -> bool {
        let lent = locked(&self.apic_sink);
        let Some(sink) = &*lent else { return false };
        let delivery = match message.delivery {
            Delivery::Fixed => 0,
            Delivery::LowestPriority => 1,
            // The chip has it, and the engine leaves the APIC to the chip.
            Delivery::ExtInt => {
                self.attend(0, attention::STOP);
                return false;
            }
            _ => return false,
        };
        let address = 0xFEE0_0000 | (message.destination & 0xFF) << 12 | u32::from(message.logical) << 2;
        let level = u32::from(message.level_triggered) << 15 | u32::from(message.assert) << 14;
        sink.message(address, u32::from(message.vector) | delivery << 8 | level);
        true
    }
}
