//! Tests of the local APIC.

use super::*;
use crate::bench::Bench;
use crate::chip::{ApicMessage, Delivery, Effect, Shorthand};

fn enabled() -> Bench<Lapic> {
    let mut bench = Bench::new(Lapic::new(1, true));
    bench.write(XAPIC, 0xF0, 4, 0x1FF);
    bench
}

fn message(delivery: Delivery, vector: u8) -> ApicMessage {
    ApicMessage {
        destination: 1,
        logical: false,
        delivery,
        vector,
        level_triggered: false,
        assert: true,
        shorthand: Shorthand::None,
    }
}

fn accept(bench: &mut Bench<Lapic>, message: ApicMessage) {
    bench.with(|chip, cx| chip.accept(cx, &message));
}

fn write_msr(bench: &mut Bench<Lapic>, index: u32, value: u64) -> Result<(), GeneralProtection> {
    bench.with(|chip, cx| chip.write_msr(cx, index, value))
}

#[test]
fn priorities_and_end_of_interrupt() {
    let mut bench = enabled();
    accept(&mut bench, message(Delivery::Fixed, 0x31));
    accept(&mut bench, ApicMessage { level_triggered: true, ..message(Delivery::Fixed, 0x52) });
    assert!(bench.level(INTR));
    assert_eq!(bench.with(Lapic::acknowledge), Some(0x52));
    assert!(!bench.level(INTR), "0x31 is below");
    bench.write(XAPIC, 0xB0, 4, 0);
    assert!(bench.effects.contains(&Effect::EndOfInterrupt { vector: 0x52 }));
    assert!(bench.level(INTR));
    bench.write(XAPIC, 0x80, 4, 0x30);
    assert!(!bench.level(INTR), "the task priority holds it back");
    bench.with(|chip, cx| chip.set_cr8(cx, 2));
    assert_eq!(bench.with(Lapic::acknowledge), Some(0x31));
    assert_eq!(bench.read(XAPIC, 0xA0, 4), 0x30);
}

#[test]
fn periodic_timer_catches_up_at_once() {
    let mut bench = enabled();
    bench.write(XAPIC, 0x3E0, 4, 0xB);
    bench.write(XAPIC, 0x320, 4, 0x2_0040);
    bench.write(XAPIC, 0x380, 4, 1_000_000);
    bench.now = 400_000;
    assert_eq!(bench.read(XAPIC, 0x390, 4), 600_000);
    bench.now = 3_600_000_000_001;
    bench.with(Chip::event);
    assert!(bench.level(INTR));
    assert_eq!(bench.chip.next_event(), Some(3_600_001_000_000));
    bench.write(XAPIC, 0x320, 4, 0x3_0040);
    assert_eq!(bench.chip.next_event(), None);
}

#[test]
fn one_shot_and_divider() {
    let mut bench = enabled();
    bench.write(XAPIC, 0x3E0, 4, 0);
    bench.write(XAPIC, 0x320, 4, 0x40);
    bench.write(XAPIC, 0x380, 4, 500);
    assert_eq!(bench.chip.next_event(), Some(1000));
    bench.run_until(2000);
    assert_eq!(bench.with(Lapic::acknowledge), Some(0x40));
    assert_eq!((bench.chip.next_event(), bench.read(XAPIC, 0x390, 4)), (None, 0));
}

#[test]
fn tsc_deadline() {
    let mut bench = enabled();
    bench.write(XAPIC, 0x320, 4, 0x4_0041);
    bench.with(|chip, cx| chip.set_tsc_offset(cx, 5_000));
    assert_eq!(write_msr(&mut bench, IA32_TSC_DEADLINE, 7_000), Ok(()));
    assert_eq!(bench.chip.next_event(), Some(2_000));
    bench.run_until(2_000);
    assert!(bench.level(INTR));
    assert_eq!(bench.with(|chip, cx| chip.read_msr(cx, IA32_TSC_DEADLINE)), Ok(0));
    assert_eq!(bench.with(Lapic::acknowledge), Some(0x41));
    bench.write(XAPIC, 0xB0, 4, 0);
    let _ = write_msr(&mut bench, IA32_TSC_DEADLINE, 1);
    assert!(bench.level(INTR), "a deadline in the past fires at once");

    let mut fast = enabled();
    fast.chip.set_tsc_frequency(2_500_000);
    fast.write(XAPIC, 0x320, 4, 0x4_0041);
    let _ = write_msr(&mut fast, IA32_TSC_DEADLINE, 5_001);
    assert_eq!(fast.chip.next_event(), Some(2_001), "never before the TSC is there");
}

/// SDM Vol. 3, "APIC Timer": a change between one-shot and periodic leaves the count alone.
#[test]
fn the_timer_changes_its_mode() {
    let mut bench = enabled();
    let (one_shot, periodic) = (0x1_0040, 0x3_0040);
    let count = |bench: &mut Bench<Lapic>| bench.read(XAPIC, 0x390, 4);
    bench.write(XAPIC, 0x3E0, 4, 0xB);
    bench.write(XAPIC, 0x320, 4, one_shot);
    bench.write(XAPIC, 0x380, 4, 1_000_000);
    bench.now = 600_000;
    bench.write(XAPIC, 0x320, 4, periodic);
    assert_eq!(count(&mut bench), 400_000);
    bench.now = 1_300_000;
    assert_eq!(count(&mut bench), 700_000, "from the initial count again");
    bench.now = 2_900_000;
    bench.write(XAPIC, 0x320, 4, one_shot);
    assert_eq!(count(&mut bench), 100_000);
    bench.now = 3_500_000;
    assert_eq!(count(&mut bench), 0);
    bench.write(XAPIC, 0x320, 4, periodic);
    assert_eq!(count(&mut bench), 0, "what has come to zero stays there");
    assert_eq!(bench.read(XAPIC, 0x380, 4), 1_000_000);
}

#[test]
fn x2apic_transitions_and_faults() {
    let mut bench = enabled();
    let base = DEFAULT_BASE | BSP;
    assert_eq!(write_msr(&mut bench, 0x80F, 0x1FF), Err(GeneralProtection));
    assert_eq!(write_msr(&mut bench, IA32_APIC_BASE, base | EXTD), Err(GeneralProtection));
    assert_eq!(write_msr(&mut bench, IA32_APIC_BASE, base | EN | EXTD), Ok(()));
    assert!(bench.chip.x2apic() && bench.chip.xapic_base().is_none());
    assert_eq!(write_msr(&mut bench, IA32_APIC_BASE, base | EN), Err(GeneralProtection));
    assert_eq!(bench.with(|chip, cx| chip.read_msr(cx, 0x802)), Ok(1));
    assert_eq!(bench.with(|chip, cx| chip.read_msr(cx, 0x80D)), Ok(2));
    assert_eq!(bench.with(|chip, cx| chip.read_msr(cx, 0x80E)), Err(GeneralProtection));
    assert_eq!(write_msr(&mut bench, 0x80B, 1), Err(GeneralProtection));
    assert_eq!(write_msr(&mut bench, 0x83F, 0x77), Ok(()));
    assert_eq!(bench.with(Lapic::acknowledge), Some(0x77));
    assert_eq!(write_msr(&mut bench, 0x830, 0x0000_0123_0000_0044), Ok(()));
    let sent = ApicMessage { destination: 0x123, ..message(Delivery::Fixed, 0x44) };
    assert!(bench.effects.contains(&Effect::Apic(ApicMessage { assert: false, ..sent })));
    assert_eq!(write_msr(&mut bench, IA32_APIC_BASE, base), Ok(()));
    assert!(!bench.chip.enabled());
    assert_eq!(write_msr(&mut bench, IA32_APIC_BASE, base | EN), Ok(()));
    assert_eq!(bench.read(XAPIC, 0xF0, 4), 0xFF, "registers start again");
    assert_eq!(bench.read(XAPIC, 0x20, 4), 1 << 24);
}

#[test]
fn a_processor_without_apic_has_an_interrupt_pin() {
    let mut bench = Bench::new(Lapic::new(0, true));
    bench.input(LINT0, true);
    assert!(!bench.chip.extint_pending(), "LINT0 is masked after power-on");
    bench.chip.set_absent();
    assert!(bench.chip.extint_pending() && bench.chip.xapic_base().is_none());
    bench.input(LINT0, false);
    assert!(!bench.chip.extint_pending());
}

/// SDM Vol. 3, "x2APIC Register Address Space": which MSRs can be read and written; bits 63:32 are reserved but in the ICR.
#[test]
fn x2apic_registers() {
    let read_only = |n: u32| matches!(n, 0x02 | 0x03 | 0x0A | 0x0D | 0x10..=0x27 | 0x39);
    let write_only = |n: u32| matches!(n, 0x0B | 0x3F);
    let both = |n: u32| matches!(n, 0x08 | 0x0F | 0x28 | 0x30 | 0x32..=0x38 | 0x3E);
    for extended in [true, false] {
        for n in 0..0x100 {
            let mut bench = enabled();
            if extended {
                assert_eq!(write_msr(&mut bench, IA32_APIC_BASE, DEFAULT_BASE | BSP | EN | EXTD), Ok(()));
            }
            let msr = X2APIC_FIRST + n;
            let read = bench.with(|chip, cx| chip.read_msr(cx, msr));
            assert_eq!(read.is_ok(), extended && (read_only(n) || both(n)), "read {msr:#x}");
            // SELF IPI of vector 0 is an error, but no fault.
            let written = write_msr(&mut bench, msr, 0);
            assert_eq!(written.is_ok(), extended && (write_only(n) || both(n)), "write {msr:#x}");
            if n != 0x30 || !extended {
                assert_eq!(write_msr(&mut bench, msr, u64::MAX), Err(GeneralProtection), "{msr:#x}");
            }
            if both(n) && extended {
                let value = bench.with(|chip, cx| chip.read_msr(cx, msr)).unwrap_or(!0);
                assert_eq!(write_msr(&mut bench, msr, value), Ok(()), "{msr:#x} takes what it gave");
            }
        }
        let mut bench = enabled();
        let _ = write_msr(&mut bench, IA32_APIC_BASE, DEFAULT_BASE | BSP | EN | EXTD);
        for value in [0x100, 0xFF00, 0xFF00_0000] {
            assert_eq!(write_msr(&mut bench, 0x83F, value), Err(GeneralProtection), "SELF IPI {value:#x}");
        }
    }
}

#[test]
fn destinations() {
    let mut bench = enabled();
    bench.write(XAPIC, 0xD0, 4, 0x0200_0000);
    assert!(bench.chip.matches(1, false) && bench.chip.matches(0xFF, false) && !bench.chip.matches(2, false));
    assert!(bench.chip.matches(3, true) && !bench.chip.matches(5, true));
    bench.write(XAPIC, 0xE0, 4, 0x0FFF_FFFF);
    bench.write(XAPIC, 0xD0, 4, 0x1200_0000);
    assert!(bench.chip.matches(0x12, true) && bench.chip.matches(0xF2, true));
    assert!(!bench.chip.matches(0x22, true) && !bench.chip.matches(0x11, true));
}

#[test]
fn local_pins() {
    let mut bench = enabled();
    bench.input(LINT0, true);
    assert!(!bench.level(INTR), "masked after reset");
    bench.write(XAPIC, 0x350, 4, 0x700);
    assert!(bench.level(INTR) && bench.chip.extint_pending());
    bench.input(LINT0, false);
    assert!(!bench.level(INTR));
    bench.write(XAPIC, 0x360, 4, 0x400);
    bench.effects.clear();
    bench.input(LINT1, true);
    assert_eq!(
        bench.effects,
        [Effect::Line { pin: NMI, level: true }, Effect::Line { pin: NMI, level: false }]
    );
    let _ = write_msr(&mut bench, IA32_APIC_BASE, DEFAULT_BASE);
    bench.input(LINT0, true);
    assert!(bench.level(INTR), "a disabled APIC passes INTR");
}

#[test]
fn init_and_start_up() {
    let mut bench = enabled();
    bench.write(XAPIC, 0x20, 4, 0x0700_0000);
    accept(&mut bench, message(Delivery::Init, 0));
    accept(&mut bench, message(Delivery::StartUp, 0x9A));
    assert_eq!(bench.read(XAPIC, 0xF0, 4), 0xFF);
    assert_eq!(bench.read(XAPIC, 0x20, 4), 0x0700_0000, "INIT keeps the ID");
    assert_eq!(bench.chip.take_sipi_vector(), Some(0x9A));
    assert!(bench.effects.contains(&Effect::Line { pin: SIPI, level: true }));
    bench.with(Chip::reset);
    assert_eq!(bench.read(XAPIC, 0x20, 4), 0x0100_0000);
}

#[test]
fn errors() {
    let mut bench = enabled();
    bench.write(XAPIC, 0x370, 4, 0xFE);
    bench.write(XAPIC, 0x300, 4, 0x0005);
    bench.write(XAPIC, 0x280, 4, 0);
    assert_eq!(bench.read(XAPIC, 0x280, 4), u64::from(SEND_ILLEGAL_VECTOR));
    assert_eq!(bench.with(Lapic::acknowledge), Some(0xFE));
    bench.write(XAPIC, 0xF0, 4, 0xFF);
    assert_eq!(bench.read(XAPIC, 0x370, 4), 0x1_00FE, "software disable masks the table");
}
