//! What an engine needs that has the host's processor run the guest, and keeps a [`Vcpu`] for the state and for what
//! that processor cannot do.

use crate::Vcpu;
use crate::fault::{Fault, vector};
use crate::state::Activity;

impl Vcpu {
    /// Call after memory was written behind the code marks: nothing decoded before is trusted.
    pub fn forget_code(&mut self) {
        self.blocks.clear();
        self.state_loaded();
    }

    /// Delivers an external interrupt that was acknowledged, at an instruction boundary.
    pub fn finish_interrupt(&mut self, vector: u8) {
        self.state_loaded();
        self.state.activity = Activity::Running;
        self.deliver_interrupt(vector);
        self.state_whole();
    }

    /// Delivers an exception of the instruction at RIP. CR2 and DR6 tell of it already.
    pub fn finish_exception(&mut self, vector: u8, error: Option<u16>) {
        self.state_loaded();
        let dr6 = if vector == vector::DB { self.state.dr[6] & 0xF } else { 0 };
        self.fault = Fault { vector, error, address: self.state.cr2, dr6 };
        if vector == vector::DB {
            self.deliver_trap();
        } else {
            self.deliver_fault();
        }
        self.state_whole();
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use crate::fault::vector;
    use crate::simd::tests::vcpu;
    use crate::state::{RFlags, gpr};

    /// In real mode: handlers at vector * 16, and what the stack got.
    #[test]
    fn events_are_finished_as_the_processor_would() {
        let mut v = vcpu();
        v.state = crate::state::CpuState::reset(0, true);
        v.state_loaded();
        v.state.rflags |= RFlags::IF;
        (v.state.gpr[gpr::RIP], v.state.gpr[gpr::RSP]) = (0x123, 0x800);
        v.state.seg[crate::state::seg::CS].base = 0;
        v.state.seg[crate::state::seg::CS].selector = 0;
        v.ram.write(0x21 * 4, &0x210u32.to_le_bytes());
        v.ram.write(u64::from(vector::DE) * 4, &0x300u32.to_le_bytes());
        v.finish_interrupt(0x21);
        assert_eq!((v.state.gpr[gpr::RIP], v.state.gpr[gpr::RSP]), (0x210, 0x7FA));
        let mut frame = [0; 6];
        v.ram.read(0x7FA, &mut frame);
        assert_eq!(frame, [0x23, 0x01, 0, 0, 0x02, 0x02]);
        assert!(!v.state.rflags.contains(RFlags::IF));
        v.finish_exception(vector::DE, None);
        assert_eq!((v.state.gpr[gpr::RIP], v.state.gpr[gpr::RSP]), (0x300, 0x7F4));
    }
}
