//! A handler that faults at once retires no instruction; a deterministic machine's time, which counts them, goes on.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_machine::{Machine, MachineConfig};

/// Firmware whose #UD handler begins with UD2.
fn firmware() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.ud2()?;
    a.mov(ax, 0xF000)?;
    // A stack in ROM does not grow into the vectors.
    a.mov(ss, ax)?;
    a.mov(word_ptr(6 * 4), 0)?;
    a.mov(word_ptr(6 * 4 + 2), ax)?;
    a.ud2()?;
    let code = a.assemble(0)?;
    let mut image = vec![0xF4; 0x1_0000];
    image[..code.len()].copy_from_slice(&code);
    // At the reset vector, JMP FAR F000:0002.
    image[0xFFF0..][..5].copy_from_slice(&[0xEA, 2, 0, 0, 0xF0]);
    Ok(image)
}

#[test]
fn time_passes_without_retired_instructions() {
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let config = MachineConfig {
            memory: 2 << 20,
            deterministic: true,
            firmware: Some(firmware().expect("code")),
            ..MachineConfig::default()
        };
        let factory: Arc<dyn EngineFactory> = Arc::new(Interpreter);
        let machine = Machine::new(config, &factory).expect("a machine");
        let outcome = machine.run_until(1_000_000);
        done.send((outcome, machine.stats())).expect("someone waits");
    });
    let (outcome, stats) = ended.recv_timeout(Duration::from_secs(60)).expect("time stands still");
    assert_eq!(outcome, None, "it still runs");
    assert!(stats.instructions < 10, "{} instructions", stats.instructions);
    assert!(stats.counters[0].exceptions > 100_000, "{} exceptions", stats.counters[0].exceptions);
}
