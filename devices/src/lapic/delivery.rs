//! Accepting, prioritising and finishing interrupts (SDM Vol. 3, "Handling Interrupts", "Task and Processor
//! Priorities", "Determining IPI Destination").

use super::{
    INIT, INTR, LEVEL, Lapic, Lvt, MASKED, NMI, RECEIVE_ILLEGAL_VECTOR, REMOTE_IRR, SIPI, SMI, SVR_ENABLE,
};
use crate::chip::{ApicMessage, Cx, Delivery, Effect};

/// Vectors below are reserved for exceptions.
const FIRST_LEGAL_VECTOR: u8 = 16;

impl Lapic {
    /// Takes a message that [`Lapic::matches`] (or a shorthand) sends here.
    pub fn accept(&mut self, cx: &mut Cx, message: &ApicMessage) {
        if !self.enabled() {
            return;
        }
        self.sync(cx);
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                self.raise(message.vector, message.level_triggered);
            }
            Delivery::Smi => pulse(cx, SMI),
            Delivery::Nmi => pulse(cx, NMI),
            // The level de-assert only sets arbitration IDs, which no longer exist.
            Delivery::Init if message.level_triggered && !message.assert => {}
            Delivery::Init => {
                self.init();
                pulse(cx, INIT);
            }
            Delivery::StartUp => {
                self.state.sipi_vector = Some(message.vector);
                pulse(cx, SIPI);
            }
            Delivery::ExtInt => self.state.extint = true,
        }
        self.update(cx);
    }

    /// Whether a message without shorthand is for this APIC. 0xFF is a broadcast in x2APIC mode too: IOAPICs
    /// and MSIs have no wider destination.
    pub fn matches(&self, destination: u32, logical: bool) -> bool {
        if !self.enabled() {
            return false;
        }
        if self.x2apic() {
            let id = self.logical_id();
            return match destination {
                0xFFFF_FFFF => true,
                _ if logical => id >> 16 == destination >> 16 && id & destination & 0xFFFF != 0,
                _ => destination == self.id || destination == 0xFF,
            };
        }
        let destination = destination as u8;
        if !logical {
            return destination == 0xFF || destination == self.state.xapic_id;
        }
        let ldr = self.state.ldr;
        if self.state.dfr >> 28 == 0xF {
            return destination & ldr != 0;
        }
        let cluster = destination >> 4 == 0xF || destination >> 4 == ldr >> 4;
        cluster && destination & ldr & 0xF != 0
    }

    /// The logical ID: of the LDR, or derived from the x2APIC ID.
    pub(super) fn logical_id(&self) -> u32 {
        if self.x2apic() {
            (self.id >> 4) << 16 | 1 << (self.id & 15)
        } else {
            u32::from(self.state.ldr) << 24
        }
    }

    /// Lowest-priority arbitration picks the APIC with the least of these.
    pub fn priority(&self) -> u8 {
        let arbitration = |bits: &super::Vectors| bits.highest().unwrap_or(0) & 0xF0;
        let busiest = arbitration(&self.state.irr).max(arbitration(&self.state.isr));
        if self.state.tpr & 0xF0 >= busiest { self.state.tpr } else { busiest }
    }

    /// Whether lowest-priority messages may come here: the software enable is on.
    pub fn software_enabled(&self) -> bool {
        self.enabled() && self.state.svr & SVR_ENABLE != 0
    }

    /// Puts a vector into the IRR.
    pub(super) fn raise(&mut self, vector: u8, level: bool) {
        if vector < FIRST_LEGAL_VECTOR {
            self.error(RECEIVE_ILLEGAL_VECTOR);
        } else if self.software_enabled() {
            self.state.irr.set(vector);
            if level {
                self.state.tmr.set(vector);
            } else {
                self.state.tmr.clear(vector);
            }
        }
    }

    /// Notes an error and raises the error interrupt.
    pub(super) fn error(&mut self, bits: u32) {
        let new = bits & !self.state.esr_pending;
        self.state.esr_pending |= bits;
        let lvt = self.lvt(Lvt::Error);
        // A vector that is illegal itself cannot be raised.
        if new != 0 && lvt & MASKED == 0 && lvt as u8 >= FIRST_LEGAL_VECTOR {
            self.raise(lvt as u8, false);
        }
    }

    pub(super) fn ppr(&self) -> u8 {
        let in_service = self.state.isr.highest().unwrap_or(0);
        let tpr = self.state.tpr;
        if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xF0 }
    }

    /// The vector that would be delivered now.
    fn deliverable(&self) -> Option<u8> {
        if !self.software_enabled() || self.is_lent() {
            return None;
        }
        self.state.irr.highest().filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// ExtINT waits: the board asks the 8259A for the vector, before [`Lapic::acknowledge`].
    pub fn extint_pending(&self) -> bool {
        if !self.enabled() || self.is_lent() {
            return self.state.lint[0];
        }
        let lvt = self.lvt(Lvt::Lint0);
        self.state.extint || self.state.lint[0] && lvt & MASKED == 0 && mode(lvt) == 7
    }

    /// The 8259A was asked: an ExtINT message is served.
    pub fn extint_acknowledged(&mut self, cx: &mut Cx) {
        self.state.extint = false;
        self.update(cx);
    }

    /// INTA: the highest vector moves from IRR to ISR. None where nothing is deliverable any more.
    pub fn acknowledge(&mut self, cx: &mut Cx) -> Option<u8> {
        self.sync(cx);
        let vector = self.deliverable();
        if let Some(vector) = vector {
            self.state.irr.clear(vector);
            self.state.isr.set(vector);
        }
        self.update(cx);
        vector
    }

    pub(super) fn end_of_interrupt(&mut self, cx: &mut Cx) {
        let Some(vector) = self.state.isr.highest() else { return };
        self.state.isr.clear(vector);
        if !self.state.tmr.contains(vector) {
            return;
        }
        cx.push(Effect::EndOfInterrupt { vector });
        for pin in [0, 1] {
            let lvt = &mut self.state.lvt[Lvt::Lint0 as usize + pin];
            if *lvt as u8 == vector && *lvt & REMOTE_IRR != 0 {
                *lvt &= !REMOTE_IRR;
            }
            self.level_lint(pin);
        }
    }

    /// LINT0 or LINT1 changed.
    pub(super) fn lint(&mut self, cx: &mut Cx, pin: u8, level: bool) {
        let pin = usize::from(pin);
        let Some(line) = self.state.lint.get_mut(pin) else { return };
        let rising = level && !std::mem::replace(line, level);
        *line = level;
        if !self.enabled() {
            // Without an APIC the pins are INTR and NMI.
            if pin == 1 && rising {
                pulse(cx, NMI);
            }
            return;
        }
        let lvt = self.state.lvt[Lvt::Lint0 as usize + pin];
        if lvt & MASKED != 0 || self.is_lent() {
            return;
        }
        match mode(lvt) {
            0 if lvt & LEVEL != 0 => self.level_lint(pin),
            0 if rising => self.raise(lvt as u8, false),
            2 if rising => pulse(cx, SMI),
            4 if rising => pulse(cx, NMI),
            5 if rising => {
                self.init();
                pulse(cx, INIT);
            }
            _ => {}
        }
    }

    /// Raises a level-triggered fixed LINT pin that is high and not being served.
    pub(super) fn level_lint(&mut self, pin: usize) {
        let index = Lvt::Lint0 as usize + (pin & 1);
        let lvt = self.state.lvt[index];
        let wanted = mode(lvt) == 0 && lvt & LEVEL != 0 && lvt & (MASKED | REMOTE_IRR) == 0;
        if wanted && self.state.lint[pin & 1] && self.software_enabled() {
            self.state.lvt[index] |= REMOTE_IRR;
            self.raise(lvt as u8, true);
        }
    }

    /// Raises a local interrupt of the timer's kind.
    pub(super) fn local_interrupt(&mut self, entry: Lvt) {
        let lvt = self.lvt(entry);
        if lvt & MASKED == 0 {
            self.raise(lvt as u8, false);
        }
    }

    /// Drives INTR.
    pub(super) fn update(&mut self, cx: &mut Cx) {
        let intr = self.extint_pending() || self.deliverable().is_some();
        if intr != self.state.intr {
            self.state.intr = intr;
            cx.line(INTR, intr);
        }
    }

    pub(super) fn lvt(&self, entry: Lvt) -> u32 {
        self.state.lvt[entry as usize]
    }
}

/// Delivery mode of an LVT entry or an ICR.
pub(super) fn mode(register: u32) -> u32 {
    register >> 8 & 7
}

fn pulse(cx: &mut Cx, pin: u8) {
    cx.line(pin, true);
    cx.line(pin, false);
}
