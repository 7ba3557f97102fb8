//! A saved state with bytes changed and its checksum made right again: refused with a reason, or a machine that runs.

use super::{Target, take};
use sha2::{Digest, Sha256};
use std::sync::{Arc, OnceLock};
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_machine::Machine;

pub const TARGET: Target = Target { name: "snapshots", run, longest: 60, dress: |_, _| () };

/// Magic, version, checksum of what follows.
const HEADER: usize = 8 + 4 + 32;
/// Virtual time that the state is saved at, and that a restored machine runs for, in nanoseconds.
const TIME: u64 = 200_000;

fn machine() -> Option<Machine> {
    let config = crate::modes_guest::config(5).ok()?;
    let factory: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    Machine::new(trimaran_machine::MachineConfig { memory: 2 << 20, ..config }, &factory).ok()
}

fn saved() -> Option<&'static [u8]> {
    static SAVED: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let save = || {
        let machine = machine()?;
        machine.run_until(TIME);
        machine.save_state().ok()
    };
    SAVED.get_or_init(save).as_deref()
}

/// The input is a list of changes: place, value.
fn run(mut data: &[u8]) {
    let (Some(saved), Some(machine)) = (saved(), machine()) else { return };
    let mut state = saved.to_vec();
    let length = state.len() - HEADER;
    while !data.is_empty() {
        let [a, b, c, value] = take(&mut data);
        let place = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        state[HEADER + place % length] = value;
    }
    let sum = Sha256::digest(&state[HEADER..]);
    state[12..HEADER].copy_from_slice(&sum);
    let before = machine.state_hash();
    match machine.restore_state(&state) {
        Ok(()) => _ = machine.run_until(machine.now().saturating_add(TIME)),
        Err(_) => assert!(machine.state_hash() == before, "a state that is refused has changed the machine"),
    }
}
