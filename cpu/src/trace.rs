//! What a tracer learns of a vCPU's steps. While a [`StepLog`] is there, instructions run one at a time and memory
//! accesses take the slow path; without one nothing is slower.

use crate::Vcpu;

/// An access to memory by an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAccess {
    /// Linear address of the first byte.
    pub address: u64,
    /// Bytes.
    pub size: u32,
    /// A read-modify-write is a write.
    pub write: bool,
    /// What a read of up to 8 bytes gave.
    pub value: Option<u64>,
}

/// What has happened since the log was emptied.
#[derive(Clone, Debug, Default)]
pub struct StepLog {
    /// Linear address of the instruction that began.
    pub instruction: Option<u64>,
    pub accesses: Vec<MemoryAccess>,
    /// Vectors of interrupts and exceptions that were delivered.
    pub vectors: Vec<u8>,
}

impl Vcpu {
    /// Begins or ends the log of steps.
    pub fn log_steps(&mut self, on: bool) {
        self.step_log = on.then(Box::default);
        self.update_class();
    }

    /// What has happened since the last call; None: there is no log.
    pub fn take_step_log(&mut self) -> Option<StepLog> {
        self.step_log.as_deref_mut().map(std::mem::take)
    }

    pub(crate) fn log_instruction(&mut self, rip: u64) {
        let address = self.code_address(rip);
        if let Some(log) = &mut self.step_log {
            log.instruction = Some(address);
        }
    }

    pub(crate) fn log_access(&mut self, address: u64, size: u32, write: bool) {
        if let Some(log) = &mut self.step_log {
            log.accesses.push(MemoryAccess { address, size, write, value: None });
        }
    }

    /// The last access logged is a read that gave `value`.
    pub(crate) fn log_value(&mut self, value: u64) {
        if let Some(log) = &mut self.step_log
            && let Some(access) = log.accesses.last_mut()
        {
            access.value = Some(value);
        }
    }

    pub(crate) fn log_vector(&mut self, vector: u8) {
        if let Some(log) = &mut self.step_log {
            log.vectors.push(vector);
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::simd::tests::vcpu;
    use crate::state::gpr;

    #[test]
    fn a_step_is_logged() {
        let mut v = vcpu();
        // add [rdi], eax; mov ebx, [rdi]; ud2
        v.ram.write(0x1000, &[0x01, 0x07, 0x8B, 0x1F, 0x0F, 0x0B]);
        let registers = &mut v.state.gpr;
        (registers[gpr::RIP], registers[gpr::RDI], registers[gpr::RAX]) = (0x1000, 0x2000, 5);
        v.log_steps(true);
        v.run(1);
        let log = v.take_step_log().unwrap();
        assert_eq!(log.instruction, Some(0x1000));
        let access = |write, value| MemoryAccess { address: 0x2000, size: 4, write, value };
        assert_eq!(log.accesses, [access(true, None)]);
        v.run(1);
        let read = v.take_step_log().unwrap();
        assert_eq!((read.accesses, read.vectors), (vec![access(false, Some(5))], vec![]));
        v.run(1);
        assert_eq!(v.take_step_log().unwrap().vectors[0], 6);
        v.log_steps(false);
        v.run(1);
        assert!(v.take_step_log().is_none());
    }
}
