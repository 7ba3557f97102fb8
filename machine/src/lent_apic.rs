//! The local APIC of a machine with one processor, while an engine plays it.

use crate::board::Board;
use crate::chips::locked;
use std::sync::Arc;
use trimaran_cpu::bus::{ApicRegisters, ApicSink};
use trimaran_cpu::shared::attention;
use trimaran_devices::chip::{ApicMessage, Delivery};
use trimaran_devices::lapic::{Lapic, Registers};

impl Board {
    pub(crate) fn lend_local_apic(
        &self,
        sink: &Arc<dyn ApicSink>,
        take: &mut dyn FnMut(&ApicRegisters) -> bool,
    ) -> bool {
        let [slot] = &*self.chips.lapics else { return false };
        // Messages wait: one that came before the registers would be overwritten by them.
        let mut lent = locked(&self.apic_sink);
        let (registers, _) = self.touch(slot, Lapic::lend);
        let taken = registers.is_some_and(|registers| {
            let Registers { page, tsc_deadline } = registers;
            let taken = take(&ApicRegisters { page, tsc_deadline });
            if !taken {
                self.touch(slot, |lapic, cx| lapic.give_back(cx, &registers));
            }
            taken
        });
        if taken {
            *lent = Some(sink.clone());
        }
        drop(lent);
        self.settle();
        taken
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

#[cfg(test)]
mod tests {
    use crate::boot::DirectBoot;
    use crate::chips::locked;
    use crate::{Machine, MachineConfig, builtin};
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;
    use trimaran_cpu::bus::{ApicSink, Bus};
    use trimaran_cpu::engine::{EngineFactory, Interpreter};
    use trimaran_devices::chip::{ApicMessage, Delivery, Shorthand};

    /// Whether the registers had been taken when a message came.
    #[derive(Default)]
    struct Sink {
        taken: AtomicBool,
        came: Mutex<Vec<bool>>,
    }

    impl ApicSink for Sink {
        fn message(&self, _: u32, _: u32) {
            locked(&self.came).push(self.taken.load(SeqCst));
        }
    }

    /// The kernel's registers are overwritten: what it had got before would be lost.
    #[test]
    fn a_message_waits_until_the_registers_are_there() {
        let interpreter: Arc<dyn EngineFactory> = Arc::new(Interpreter);
        let image = builtin::image(&builtin::Options::default()).expect("a guest");
        let direct = Some(DirectBoot::builtin(image));
        let config = MachineConfig { memory: 16 << 20, direct, ..MachineConfig::default() };
        let machine = Machine::new(config, &interpreter).expect("a machine");
        let board = &*machine.core.board;
        let message = ApicMessage {
            destination: 0,
            logical: false,
            delivery: Delivery::Fixed,
            vector: 0x50,
            level_triggered: false,
            assert: true,
            shorthand: Shorthand::None,
        };
        let sink = Arc::new(Sink::default());
        let erased: Arc<dyn ApicSink> = sink.clone();
        std::thread::scope(|scope| {
            let (mut registers, mut sender) = (None, None);
            let lent = board.lend_apic(&erased, &mut |lent| {
                registers = Some(*lent);
                sender = Some(scope.spawn(|| board.apic_is_lent(&message)));
                // Time enough for it to come too early.
                std::thread::sleep(Duration::from_millis(50));
                sink.taken.store(true, SeqCst);
                true
            });
            assert!(lent && sender.expect("a thread").join().is_ok_and(|sent| sent));
            // Refused registers stay the machine's.
            assert!(board.give_back_apic(&mut || registers));
            assert!(!board.lend_apic(&erased, &mut |_| false));
            assert!(!board.chips.lapics[0].lock().is_lent());
        });
        assert_eq!(*locked(&sink.came), [true]);
    }
}
