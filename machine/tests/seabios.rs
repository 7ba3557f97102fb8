//! SeaBIOS on the interpreter, where it is installed: it finds the board's devices, and deterministic machines are
//! deterministic, saved and restored or not.

use std::sync::Arc;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_devices::block::MemoryMedium;
use trimaran_machine::{IdeDrive, Machine, MachineConfig, Outcome, firmware};

const SECOND: u64 = 1_000_000_000;

fn factory() -> Arc<dyn EngineFactory> {
    Arc::new(Interpreter)
}

/// A deterministic machine with SeaBIOS; None where that is not installed.
fn machine(change: impl FnOnce(&mut MachineConfig)) -> Option<Machine> {
    let Some((bios, vga)) = firmware::find_seabios() else {
        eprintln!("skipped: SeaBIOS is not installed");
        return None;
    };
    let mut config = MachineConfig {
        memory: 32 << 20,
        deterministic: true,
        firmware: std::fs::read(bios).ok(),
        vga_bios: std::fs::read(vga).ok(),
        boot_menu: false,
        ..MachineConfig::default()
    };
    change(&mut config);
    Some(Machine::new(config, &factory()).unwrap())
}

/// A boot sector that writes `code` over and over to port 0xF4.
fn disk(code: u8) -> Option<IdeDrive> {
    let mut bytes = vec![0; 1 << 20];
    bytes[..7].copy_from_slice(&[0xB0, code, 0xE6, 0xF4, 0xEB, 0xFA, 0x90]);
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    Some(IdeDrive::Disk(Box::new(MemoryMedium::new(bytes))))
}

#[test]
fn says_that_there_is_no_bootable_device() {
    let Some(machine) = machine(|_| {}) else { return };
    assert_eq!(machine.run_until(20 * SECOND), None);
    let screen = machine.screen_text();
    assert!(screen.contains("SeaBIOS") && screen.contains("No bootable device"), "{screen}");
}

#[test]
fn boots_from_a_disk() {
    let boot = machine(|config| {
        config.ide[0] = disk(21);
        config.debug_exit = Some(0xF4);
        config.cpus = 2;
    });
    let Some(machine) = boot else { return };
    assert_eq!(machine.run_until(20 * SECOND), Some(Outcome::DebugExit(43)));
    assert!(machine.screen_text().contains("Booting from Hard Disk"));
}

#[test]
fn host_time_runs_the_same_boot() {
    let boot = machine(|config| {
        config.ide[0] = disk(3);
        config.debug_exit = Some(0xF4);
        config.deterministic = false;
        config.cpus = 3;
    });
    let Some(mut machine) = boot else { return };
    machine.start();
    assert_eq!(machine.wait_for(std::time::Duration::from_secs(60)), Some(Outcome::DebugExit(7)));
}

#[test]
fn saved_and_restored_machines_end_alike() {
    const END: u64 = 4 * SECOND;
    for cpus in [1, 2] {
        let boot = || machine(|config| config.cpus = cpus);
        let Some(whole) = boot() else { return };
        whole.run_until(END);
        let expected = whole.state_hash();
        // Counts without a pattern; the last is while the machine idles.
        for at in [1, 12_345, 1_234_567, 3_333_333, 5_777_777, 1_900_000_007] {
            let first = boot().unwrap();
            first.run_until(at);
            let saved = first.save_state().unwrap();
            let second = boot().unwrap();
            second.restore_state(&saved).unwrap();
            assert_eq!(second.state_hash(), first.state_hash(), "{cpus} CPUs, right after {at}");
            second.run_until(END);
            assert_eq!(second.state_hash(), expected, "{cpus} CPUs, restored at {at}");
            first.run_until(END);
            assert_eq!(first.state_hash(), expected, "{cpus} CPUs, interrupted at {at}");
        }
    }
}

#[test]
fn damaged_states_are_refused_whole() {
    let Some(machine) = machine(|_| {}) else { return };
    machine.run_until(3_000_000);
    let saved = machine.save_state().unwrap();
    let before = machine.state_hash();
    for at in (0..saved.len()).step_by(saved.len() / 23 + 1) {
        let mut bad = saved.clone();
        bad[at] ^= 0x10;
        assert!(machine.restore_state(&bad).is_err(), "byte {at}");
        assert!(machine.restore_state(&saved[..at]).is_err(), "cut at {at}");
    }
    assert_eq!(machine.state_hash(), before);
}
