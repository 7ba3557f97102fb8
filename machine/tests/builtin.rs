//! The built-in guest on a whole machine.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::builtin::{self, Options};
use trimaran_machine::{Console, Machine, MachineConfig, Outcome};

/// Collects what a console prints.
#[derive(Clone, Default)]
struct Collect(Arc<Mutex<Vec<u8>>>);

impl Write for Collect {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn run(smoke: bool, deterministic: bool, seconds: u64) -> (Option<Outcome>, String, Machine) {
    let options = Options { engine: "interp".into(), smoke };
    let serial = Collect::default();
    let config = MachineConfig {
        memory: 16 << 20,
        direct: Some(DirectBoot::builtin(builtin::image(&options).unwrap())),
        deterministic,
        sinks: vec![(Console::Serial(0), Box::new(serial.clone()))],
        ..MachineConfig::default()
    };
    let factory: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    let mut machine = Machine::new(config, &factory).unwrap();
    machine.start();
    let outcome = machine.wait_for(Duration::from_secs(seconds));
    machine.pause();
    std::thread::sleep(Duration::from_millis(200));
    let text = String::from_utf8_lossy(&serial.0.lock().unwrap()).into_owned();
    (outcome, text, machine)
}

#[test]
fn smoke_prints_the_expected_checksum_and_powers_off() {
    for deterministic in [false, true] {
        let (outcome, text, machine) = run(true, deterministic, 120);
        let registers = machine.info("registers").unwrap();
        assert_eq!(outcome, Some(Outcome::PoweredOff), "{text}\n{registers}");
        let checksum = format!("trimaran smoke {:016x}", builtin::expected_checksum());
        for line in ["real mode", "protected mode", "long mode", "sse2", checksum.as_str()] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}

#[test]
fn the_picture_is_drawn() {
    let (outcome, text, machine) = run(false, false, 6);
    assert_eq!(outcome, None, "{text}\n{}", machine.info("registers").unwrap());
    let mut frame = trimaran_devices::vga::Frame::default();
    machine.render(&mut frame);
    assert_eq!((frame.width, frame.height), (1024, 768));
    let colours: std::collections::HashSet<u32> = frame.pixels.iter().copied().collect();
    assert!(colours.len() > 20, "{} colours", colours.len());
}
