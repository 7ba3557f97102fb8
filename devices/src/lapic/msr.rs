//! Access through MSRs: IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC registers (SDM Vol. 3, "Extended
//! XAPIC (x2APIC)").

use super::registers::{ICR_WRITABLE, LVT_WRITABLE, SVR_WRITABLE, reg};
use super::{BSP, EN, EXTD, Lapic, REMOTE_IRR};
use crate::chip::{Cx, Effect};

pub const IA32_APIC_BASE: u32 = 0x1B;
pub const IA32_TSC_DEADLINE: u32 = 0x6E0;
/// The x2APIC's MSRs.
pub const X2APIC_FIRST: u32 = 0x800;
pub const X2APIC_LAST: u32 = 0x8FF;

/// Reserved bits of IA32_APIC_BASE, with 52-bit physical addresses.
pub(super) const BASE_RESERVED: u64 = 0xFFF0_0000_0000_02FF;

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;

type Msr<T> = Result<T, GeneralProtection>;

fn check(allowed: bool) -> Msr<()> {
    if allowed { Ok(()) } else { Err(GeneralProtection) }
}

impl Lapic {
    /// RDMSR of one of the APIC's MSRs.
    pub fn read_msr(&mut self, cx: &mut Cx, index: u32) -> Msr<u64> {
        self.sync(cx);
        self.update(cx);
        match index {
            IA32_APIC_BASE => Ok(self.state.base),
            IA32_TSC_DEADLINE => Ok(self.state.tsc_deadline),
            X2APIC_FIRST..=X2APIC_LAST if self.x2apic() && !self.is_lent() => {
                self.read_x2apic(cx, (index & 0xFF) as u8)
            }
            _ => Err(GeneralProtection),
        }
    }

    /// WRMSR of one of the APIC's MSRs.
    pub fn write_msr(&mut self, cx: &mut Cx, index: u32, value: u64) -> Msr<()> {
        self.sync(cx);
        match index {
            IA32_APIC_BASE => self.write_base(cx, value)?,
            IA32_TSC_DEADLINE => self.set_tsc_deadline(cx, value),
            X2APIC_FIRST..=X2APIC_LAST if self.x2apic() && !self.is_lent() => {
                self.write_x2apic(cx, (index & 0xFF) as u8, value)?;
            }
            _ => return Err(GeneralProtection),
        }
        self.update(cx);
        Ok(())
    }

    /// IA32_APIC_BASE: disabled, xAPIC and x2APIC with the transitions that the manual's figure allows.
    fn write_base(&mut self, cx: &mut Cx, value: u64) -> Msr<()> {
        let (old, new) = (self.state.base & (EN | EXTD), value & (EN | EXTD));
        let x2apic = EN | EXTD;
        let illegal = new == EXTD || (old, new) == (0, x2apic) || (old, new) == (x2apic, EN);
        check(!illegal && value & BASE_RESERVED == 0)?;
        let bsp = self.state.base & BSP;
        if old != 0 && new == 0 {
            // Once enabled again it is as after power-on.
            self.state.xapic_id = self.id as u8;
            self.init();
        }
        let base = value & !BSP | bsp;
        if base != self.state.base {
            self.state.base = base;
            cx.push(Effect::Remap);
        }
        Ok(())
    }

    fn read_x2apic(&mut self, cx: &mut Cx, register: u8) -> Msr<u64> {
        let readable = match register {
            reg::ICR_LOW => return Ok(self.state.icr),
            reg::APR | reg::EOI | reg::RRD | reg::DFR | reg::ICR_HIGH | reg::SELF_IPI => false,
            reg::ID | reg::VERSION | reg::ESR | reg::DIVIDE => true,
            reg::TPR..=reg::IRR_LAST => true,
            reg::LVT_TIMER..=reg::CURRENT_COUNT => true,
            _ => false,
        };
        check(readable)?;
        Ok(u64::from(self.read_register(cx, register)))
    }

    fn write_x2apic(&mut self, cx: &mut Cx, register: u8, value: u64) -> Msr<()> {
        // Bits that may be set.
        let writable = match register {
            reg::TPR => 0xFF,
            reg::EOI | reg::ESR => 0,
            reg::SVR => u64::from(SVR_WRITABLE),
            reg::ICR_LOW => 0xFFFF_FFFF_0000_0000 | u64::from(ICR_WRITABLE),
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                let index = usize::from(register - reg::LVT_TIMER).min(5);
                // Delivery status and remote IRR are read-only and may be written back.
                u64::from(LVT_WRITABLE[index] | 1 << 12 | REMOTE_IRR)
            }
            reg::INITIAL_COUNT => 0xFFFF_FFFF,
            reg::DIVIDE => 0xB,
            reg::SELF_IPI => 0xFF,
            _ => return Err(GeneralProtection),
        };
        // Linux writes the ICR's delivery status back.
        let writable = writable | if register == reg::ICR_LOW { 1 << 12 } else { 0 };
        check(value & !writable == 0)?;
        match register {
            reg::ICR_LOW => self.write_icr(cx, value & !(1 << 12)),
            reg::SELF_IPI if value < 16 => self.error(super::SEND_ILLEGAL_VECTOR),
            reg::SELF_IPI => self.raise(value as u8, false),
            _ => self.write_register(cx, register, value as u32),
        }
        Ok(())
    }
}
