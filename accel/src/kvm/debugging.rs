//! Looking at a guest under KVM: stops at addresses, and single steps. What the host's KVM lacks of them, and
//! instructions that would show the guest that it is stepped, the interpreter does.

use super::engine::KvmVcpu;
use super::exits::Exit;
use crate::report::Trial;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};
use trimaran_cpu::bus::Page;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::{RFlags, Shadow, attr, seg};

/// Breakpoints of the host's processor.
const BREAKPOINTS: usize = 4;
/// Longest instruction.
const LONGEST: u64 = 15;

/// Who stops at the engine's stop points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPoints {
    None,
    Kvm,
    /// It runs everything while there are any.
    Interpreter,
}

impl KvmVcpu {
    /// See [`trimaran_cpu::engine::Engine::stop_at`].
    pub(super) fn set_stop_points(&mut self, addresses: &[u64]) -> Result<(), String> {
        let works = self.report.works(Trial::Breakpoint0) && self.report.works(Trial::Breakpoint3);
        let who = match addresses.len() {
            0 => StopPoints::None,
            1..=BREAKPOINTS if works => StopPoints::Kvm,
            _ => StopPoints::Interpreter,
        };
        if who == StopPoints::Kvm || self.stop_points == StopPoints::Kvm {
            let inside = if who == StopPoints::Kvm { addresses } else { &[] };
            self.hardware.breakpoints(inside).map_err(|e| format!("KVM refuses breakpoints: {e}"))?;
        }
        self.stop_points = who;
        self.vcpu.stop_points = addresses.into();
        Ok(())
    }

    /// Runs `budget` instructions, one at a time.
    pub(super) fn steps(&mut self, budget: u64) -> Result<Stop, String> {
        let mut left = budget;
        while left > 0 {
            if let Some(stop) = self.boundary()? {
                return Ok(stop);
            }
            self.fetch()?;
            let exit = if self.can_step() { self.step()? } else { Exit::NotEmulated };
            let stop = match exit {
                // Called back before it ran anything.
                Exit::Served => continue,
                Exit::StopPoint => None,
                Exit::Failed(reason) => return Err(reason),
                // Whatever it is, the interpreter knows.
                _ => self.interpret(1)?,
            };
            if let Some(stop) = stop {
                return Ok(stop);
            }
            left -= 1;
        }
        Ok(Stop::Budget)
    }

    /// KVM runs an instruction; [`Exit::StopPoint`] if it has.
    fn step(&mut self) -> Result<Exit, String> {
        if !self.loaded {
            self.load()?;
        }
        self.set_time()?;
        let refused = |e| format!("KVM refuses single steps: {e}");
        self.hardware.single_steps(true).map_err(refused)?;
        let exit = self.enter()?;
        // An access ends the run in the midst of its instruction.
        let accessed = self.unfinished;
        self.finish_access()?;
        self.hardware.single_steps(false).map_err(refused)?;
        if exit == Exit::Reload {
            self.take_back()?;
        }
        let done = accessed || exit == Exit::StopPoint;
        self.steps += u64::from(done);
        Ok(if done { Exit::StopPoint } else { exit })
    }

    /// Whether KVM can run the next instruction as a single step, and nobody will notice. The state is ours.
    fn can_step(&mut self) -> bool {
        let s = &self.vcpu.state;
        let works = self.report.works(if s.cpl == 3 { Trial::SingleStep3 } else { Trial::SingleStep0 });
        let plain = !s.rflags.intersects(RFlags::TF | RFlags::RF) && s.shadow == Shadow::None;
        let quiet = self.vcpu.shared.pending() == 0 && self.stop_points == StopPoints::None;
        works
            && plain
            && quiet
            && !self.vm.split
            && !self.unfit()
            && self.next().is_some_and(|next| unseen(&next))
    }

    /// The instruction at RIP.
    fn next(&mut self) -> Option<Instruction> {
        let state = &self.vcpu.state;
        let bits = match () {
            () if state.code64() => 64,
            () if state.seg[seg::CS].has(attr::DB) && !state.real_or_v86() => 32,
            () => 16,
        };
        let linear = self.vcpu.code_address(self.vcpu.state.rip());
        self.vcpu.flush_tlb();
        let bytes: Vec<u8> = (0..LONGEST).map_while(|n| self.byte_at(linear.wrapping_add(n))).collect();
        let instruction = Decoder::new(bits, &bytes, DecoderOptions::NONE).decode();
        (!instruction.is_invalid()).then_some(instruction)
    }

    /// The byte of RAM at a linear address.
    pub(super) fn byte_at(&mut self, linear: u64) -> Option<u8> {
        let physical = self.vcpu.probe(linear)?;
        let Page::Ram { offset, .. } = self.vcpu.bus.page(physical & !0xFFF, self.vcpu.state.smm) else {
            return None;
        };
        let mut byte = [0];
        self.vcpu.ram.read(offset + physical % 0x1000, &mut byte).then_some(byte[0])
    }
}

/// Whether an instruction neither sees nor loads the flag that KVM steps by, nor puts off its trap. What enters a handler
/// would save the flag; MOV SS puts the trap off.
fn unseen(instruction: &Instruction) -> bool {
    use FlowControl::{Exception, Interrupt, XbeginXabortXend};
    let enters = matches!(instruction.flow_control(), Interrupt | Exception | XbeginXabortXend);
    let far = instruction.is_call_far()
        || instruction.is_call_far_indirect()
        || instruction.is_jmp_far()
        || instruction.is_jmp_far_indirect();
    use Mnemonic::*;
    let special = matches!(
        instruction.mnemonic(),
        Pushf
            | Pushfd
            | Pushfq
            | Popf
            | Popfd
            | Popfq
            | Iret
            | Iretd
            | Iretq
            | Retf
            | Syscall
            | Sysret
            | Sysretq
            | Sysenter
            | Sysexit
            | Sysexitq
            | Rsm
            | Hlt
            | Sti
            | Lss
    );
    // KVM may step over all of a repeated string instruction at once.
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    !enters && !far && !repeats && !special && instruction.op0_register() != Register::SS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_notice_is_not_stepped() {
        let seen = |bytes: &[u8]| !unseen(&Decoder::new(64, bytes, DecoderOptions::NONE).decode());
        let all: [&[u8]; 9] = [
            &[0x9C],
            &[0x9D],
            &[0xCC],
            &[0xCD, 0x80],
            &[0x48, 0xCF],
            &[0x0F, 0x05],
            &[0x8E, 0xD0],
            &[0xF4],
            &[0xFF, 0x28],
        ];
        all.iter().for_each(|bytes| assert!(seen(bytes), "{bytes:02x?}"));
        let plain: [&[u8]; 5] = [&[0x90], &[0x8E, 0xD8], &[0xE7, 0x80], &[0xC3], &[0xFF, 0x20]];
        plain.iter().for_each(|bytes| assert!(!seen(bytes), "{bytes:02x?}"));
    }
}
