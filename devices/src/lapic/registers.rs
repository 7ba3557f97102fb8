//! The register file (SDM Vol. 3, "Local APIC Register Address Map"). Registers are numbered by their offset
//! divided by 16, which is their x2APIC MSR less 0x800.

use super::delivery::mode;
use super::{ILLEGAL_REGISTER, LEVEL, Lapic, Lvt, MASKED, REMOTE_IRR, SEND_ILLEGAL_VECTOR, SVR_ENABLE};
use crate::chip::{ApicMessage, Cx, Delivery, Effect, Nanos, Shorthand};

pub(super) mod reg {
    pub const ID: u8 = 0x02;
    pub const VERSION: u8 = 0x03;
    pub const TPR: u8 = 0x08;
    pub const APR: u8 = 0x09;
    pub const PPR: u8 = 0x0A;
    pub const EOI: u8 = 0x0B;
    pub const RRD: u8 = 0x0C;
    pub const LDR: u8 = 0x0D;
    pub const DFR: u8 = 0x0E;
    pub const SVR: u8 = 0x0F;
    pub const ISR: u8 = 0x10;
    pub const TMR: u8 = 0x18;
    pub const IRR: u8 = 0x20;
    pub const IRR_LAST: u8 = 0x27;
    pub const ESR: u8 = 0x28;
    pub const ICR_LOW: u8 = 0x30;
    pub const ICR_HIGH: u8 = 0x31;
    pub const LVT_TIMER: u8 = 0x32;
    pub const LVT_ERROR: u8 = 0x37;
    pub const INITIAL_COUNT: u8 = 0x38;
    pub const CURRENT_COUNT: u8 = 0x39;
    pub const DIVIDE: u8 = 0x3E;
    pub const SELF_IPI: u8 = 0x3F;
}

/// Version 0x14, entries 0 to 5 in the local vector table.
const VERSION: u32 = 0x0005_0014;

/// Bits of each LVT entry that software writes.
pub(super) const LVT_WRITABLE: [u32; 6] = [0x7_00FF, 0x1_07FF, 0x1_07FF, 0x1_A7FF, 0x1_A7FF, 0x1_00FF];
/// ICR bits that software writes, without the destination.
pub(super) const ICR_WRITABLE: u32 = 0x000C_CFFF;
pub(super) const SVR_WRITABLE: u32 = 0x1FF;

impl Lapic {
    pub(super) fn read_register(&mut self, cx: &mut Cx, register: u8) -> u32 {
        let s = &self.state;
        let word = usize::from(register & 7);
        match register {
            reg::ID if self.x2apic() => self.id,
            reg::ID => u32::from(s.xapic_id) << 24,
            reg::VERSION => VERSION,
            reg::TPR => u32::from(s.tpr),
            reg::APR => u32::from(self.priority()),
            reg::PPR => u32::from(self.ppr()),
            reg::EOI | reg::RRD => 0,
            reg::LDR => self.logical_id(),
            reg::DFR => s.dfr,
            reg::SVR => s.svr,
            reg::ISR..reg::TMR => s.isr.0[word],
            reg::TMR..reg::IRR => s.tmr.0[word],
            reg::IRR..=reg::IRR_LAST => s.irr.0[word],
            reg::ESR => s.esr,
            reg::ICR_LOW => s.icr as u32,
            reg::ICR_HIGH => (s.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => s.lvt[usize::from(register - reg::LVT_TIMER).min(5)],
            reg::INITIAL_COUNT => s.initial_count,
            reg::CURRENT_COUNT => self.current_count(cx.now),
            reg::DIVIDE => s.divide,
            _ => {
                self.error(ILLEGAL_REGISTER);
                self.update(cx);
                0
            }
        }
    }

    pub(super) fn write_register(&mut self, cx: &mut Cx, register: u8, value: u32) {
        match register {
            reg::ID => self.state.xapic_id = (value >> 24) as u8,
            reg::TPR => self.state.tpr = value as u8,
            reg::EOI => self.end_of_interrupt(cx),
            reg::LDR => self.state.ldr = (value >> 24) as u8,
            reg::DFR => self.state.dfr = value | 0x0FFF_FFFF,
            reg::SVR => self.write_svr(value),
            reg::ESR => self.state.esr = std::mem::take(&mut self.state.esr_pending),
            reg::ICR_LOW => {
                let high = self.state.icr & 0xFFFF_FFFF_0000_0000;
                self.write_icr(cx, high | u64::from(value & ICR_WRITABLE));
            }
            reg::ICR_HIGH => {
                let high = u64::from(value & 0xFF00_0000) << 32;
                self.state.icr = self.state.icr & 0xFFFF_FFFF | high;
            }
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                self.write_lvt(cx.now, usize::from(register - reg::LVT_TIMER).min(5), value);
            }
            reg::INITIAL_COUNT => self.set_initial_count(cx.now, value),
            reg::DIVIDE => self.set_divide(cx.now, value),
            reg::VERSION | reg::APR | reg::PPR | reg::RRD | reg::ISR..=reg::IRR_LAST | reg::CURRENT_COUNT => {
            }
            _ => self.error(ILLEGAL_REGISTER),
        }
    }

    /// Clearing the software enable masks the whole local vector table.
    fn write_svr(&mut self, value: u32) {
        self.state.svr = value & SVR_WRITABLE;
        if value & SVR_ENABLE == 0 {
            self.state.lvt.iter_mut().for_each(|lvt| *lvt |= MASKED);
        }
    }

    fn write_lvt(&mut self, now: Nanos, index: usize, value: u32) {
        let (old_mode, count) = (self.timer_mode(), self.current_count(now));
        let old = self.state.lvt[index];
        let mut new = value & LVT_WRITABLE[index] | old & REMOTE_IRR;
        if self.state.svr & SVR_ENABLE == 0 {
            new |= MASKED;
        }
        if mode(new) != 0 || new & LEVEL == 0 {
            new &= !REMOTE_IRR;
        }
        self.state.lvt[index] = new;
        if index == Lvt::Timer as usize {
            self.timer_mode_changed(now, old_mode, count);
        } else if let Some(pin @ 0..2) = index.checked_sub(Lvt::Lint0 as usize) {
            self.level_lint(pin);
        }
    }

    /// Sends the interrupt that the ICR describes.
    pub(super) fn write_icr(&mut self, cx: &mut Cx, icr: u64) {
        self.state.icr = icr;
        let low = icr as u32;
        let vector = low as u8;
        let delivery = match mode(low) {
            0 => Delivery::Fixed,
            1 => Delivery::LowestPriority,
            2 => Delivery::Smi,
            4 => Delivery::Nmi,
            5 => Delivery::Init,
            6 => Delivery::StartUp,
            _ => return,
        };
        if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) && vector < 16 {
            return self.error(SEND_ILLEGAL_VECTOR);
        }
        let shorthand = match low >> 18 & 3 {
            0 => Shorthand::None,
            1 => Shorthand::ToSelf,
            2 => Shorthand::AllIncludingSelf,
            _ => Shorthand::AllExcludingSelf,
        };
        if shorthand == Shorthand::ToSelf {
            // Only fixed delivery is legal here, and it needs no bus.
            if delivery == Delivery::Fixed {
                self.raise(vector, false);
            }
            return;
        }
        // IPIs are edge-triggered, but for the INIT level de-assert.
        let level_triggered = delivery == Delivery::Init && low & LEVEL != 0;
        let high = (icr >> 32) as u32;
        cx.push(Effect::Apic(ApicMessage {
            destination: if self.x2apic() { high } else { high >> 24 },
            logical: low & 1 << 11 != 0,
            delivery,
            vector,
            level_triggered,
            assert: low & 1 << 14 != 0,
            shorthand,
        }));
    }
}
