//! Vectors by hand for the families of which no file is at hand, written and read as files.

use super::*;
use crate::conform::{Answer, SUITES, Setup, UnitReport, answers};
use crate::moo::{Exception, Registers, State};

/// A test of code at 1000:0100 that HLT follows, with what it begins and ends with.
fn test(index: u32, bytes: &[u8], initial: &[(usize, u32)], last: &[(usize, u32)]) -> Test {
    let mut registers: Registers = [Some(0); moo::COUNT];
    let usual =
        [(CS, 0x1000), (SS, 0x2000), (DS, 0x3000), (ES, 0x4000), (ESP, 0x100), (EIP, 0x100), (EFLAGS, 2)];
    usual.iter().chain(initial).for_each(|&(n, value)| registers[n] = Some(value));
    let mut after: Registers = [None; moo::COUNT];
    last.iter().for_each(|&(n, value)| after[n] = Some(value));
    let at = (registers[CS].unwrap_or(0) << 4) + registers[EIP].unwrap_or(0);
    let code = bytes.iter().chain(&[0xF4]).enumerate().map(|(n, &byte)| (at + n as u32, byte));
    Test {
        index,
        name: format!("{bytes:02x?}"),
        bytes: bytes.into(),
        initial: State { registers, ram: code.collect(), ..State::default() },
        last: State { registers: after, ..State::default() },
        exception: None,
        hash: format!("{index:040x}"),
    }
}

fn ram(mut test: Test, before: &[(u32, u8)], after: &[(u32, u8)]) -> Test {
    test.initial.ram.extend(before);
    test.last.ram.extend(after);
    test
}

/// What `trimaran conform --vectors` says of a file in a folder of its own.
fn conform(cpu: &str, name: &str, tests: Vec<Test>, beside: &[(&str, &str)]) -> UnitReport {
    let folder = std::env::temp_dir().join(format!("trimaran-vectors-{}-{cpu}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let file = File { cpu: cpu.into(), masks: [None; moo::COUNT], tests };
    std::fs::write(folder.join(format!("{name}.MOO")), moo::write(&file)).expect("a file");
    beside.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).expect("a file"));
    let suite = SUITES.iter().find(|suite| suite.name == "vectors").expect("the suite");
    let setup = Setup { vectors: Some(folder.clone()), ..Setup::default() };
    let units = (suite.units)(&setup, "interp").expect("units");
    let answers = answers(suite, "interp", &setup, &units);
    let _ = std::fs::remove_dir_all(&folder);
    let mut report = UnitReport::default();
    for answer in answers.expect("answers") {
        match answer {
            Answer::Done(done) => report.add(done),
            Answer::Panicked(words) => panic!("{words}"),
        }
    }
    report
}

fn passes(cpu: &str, name: &str, tests: Vec<Test>) {
    let count = tests.len() as u64;
    let report = conform(cpu, name, tests, &[]);
    let failed: Vec<_> = report.failed.iter().map(|f| &f.text).collect();
    assert!(
        failed.is_empty() && report.passed == count,
        "{} passed, {:?}: {failed:#?}",
        report.passed,
        report.skipped
    );
}

#[test]
fn the_8088_without_hlt() {
    let add = test(
        0,
        &[0x01, 0xD8],
        &[(EAX, 0xFFFF), (EBX, 1), (EFLAGS, 0xF002)],
        &[(EAX, 0), (EIP, 0x102), (EFLAGS, 0xF057)],
    );
    // REP MOVSB, three times; what is behind it is not run.
    let copy =
        test(1, &[0xF3, 0xA4], &[(ECX, 3), (EFLAGS, 0xF002)], &[(ECX, 0), (ESI, 3), (EDI, 3), (EIP, 0x102)]);
    let copy = ram(
        copy,
        &[(0x3_0000, 1), (0x3_0001, 2), (0x3_0002, 3)],
        &[(0x4_0000, 1), (0x4_0001, 2), (0x4_0002, 3)],
    );
    // PUSHF: the upper four bits are ones on the 8088.
    let pushed = test(2, &[0x9C], &[(EFLAGS, 0xF003)], &[(ESP, 0xFE), (EIP, 0x101)]);
    let pushed = ram(pushed, &[], &[(0x2_00FE, 3), (0x2_00FF, 0xF0)]);
    // Beyond 1 MiB the addresses begin anew.
    let wrapped = test(3, &[0xA0, 0x10, 0], &[(DS, 0xFFFF), (EFLAGS, 0xF002)], &[(EAX, 0x5A), (EIP, 0x103)]);
    let wrapped = ram(wrapped, &[(0, 0x5A)], &[]);
    let input = test(4, &[0xE4, 0x10], &[(EFLAGS, 0xF002)], &[(EAX, 0xFF), (EIP, 0x102)]);
    // INT 21h through the table at 0.
    let service = test(
        5,
        &[0xCD, 0x21],
        &[(EFLAGS, 0xF202)],
        &[(CS, 0x5000), (EIP, 0x10), (ESP, 0xFA), (EFLAGS, 0xF002)],
    );
    let service = ram(
        service,
        &[(0x84, 0x10), (0x85, 0), (0x86, 0), (0x87, 0x50)],
        &[(0x2_00FE, 2), (0x2_00FF, 0xF2), (0x2_00FC, 0), (0x2_00FD, 0x10), (0x2_00FA, 2), (0x2_00FB, 1)],
    );
    passes("8088", "00", vec![add, copy, pushed, wrapped, input, service]);
}

#[test]
fn what_later_processors_changed_is_counted_by_reason() {
    let one = |n, bytes: &[u8], initial: &[(usize, u32)]| test(n, bytes, initial, &[(EAX, 0xDEAD)]);
    let tests = vec![
        one(0, &[0x54], &[]),
        one(1, &[0x0F], &[]),
        one(2, &[0xD3, 0xE0], &[(ECX, 33)]),
        one(3, &[0x68, 1, 2], &[]),
        one(4, &[0xD0, 0xF0], &[]),
        // A word at offset FFFFh, in DS and in SS; and PUSH with SP = 1.
        one(5, &[0xA1, 0xFF, 0xFF], &[]),
        one(6, &[0x8B, 0x46, 0], &[(EBP, 0xFFFF)]),
        one(10, &[0x50], &[(ESP, 1)]),
        // LEA with a register.
        one(7, &[0x8D, 0xC0], &[]),
        // These count: a wrong result is a failure.
        one(8, &[0xD3, 0xE0], &[(ECX, 31)]),
        one(9, &[0x50], &[]),
    ];
    let report = conform("8088", "XX", tests, &[("revocation_list.txt", &format!("# void\n{:040x}\n", 9))]);
    assert_eq!(report.failed.len(), 1, "{:?}", report.failed.iter().map(|f| &f.text).collect::<Vec<_>>());
    assert_eq!(report.failed[0].case, "XX/8");
    let words = [
        "PUSH SP",
        "POP CS",
        "modulo 32",
        "another's",
        "SETMO",
        "(#GP)",
        "(#SS)",
        "(#UD)",
        "shut down",
        "revoked",
    ];
    for word in words {
        let found: Vec<_> = report.skipped.iter().filter(|(why, _)| why.contains(word)).collect();
        assert!(found.len() == 1 && *found[0].1 == 1, "{word}: {:?}", report.skipped);
    }
}

#[test]
fn the_386_with_32_bits() {
    let add = test(
        0,
        &[0x66, 0x01, 0xD8],
        &[(EAX, !0), (EBX, 1)],
        &[(EAX, 0), (EIP, 0x104), (EFLAGS, 0xFFFF_0057)],
    );
    // SS:FFFFh is beyond the limit: #GP through the table at 0. Flags, CS and IP are pushed.
    let fault = test(1, &[0x67, 0x8B, 0x00], &[(EAX, 0xFFFF)], &[(CS, 0x5000), (EIP, 1), (ESP, 0xFA)]);
    let mut fault = ram(
        fault,
        &[(0x34, 0), (0x35, 0), (0x36, 0), (0x37, 0x50), (0x5_0000, 0xF4)],
        // Undefined flags of the pushed ones may be anything.
        &[(0x2_00FE, 0x12), (0x2_00FF, 0), (0x2_00FC, 0), (0x2_00FD, 0x10), (0x2_00FA, 0), (0x2_00FB, 1)],
    );
    fault.exception = Some(Exception { vector: 13, flags_at: 0x2_00FE });
    fault.last.masks[EFLAGS] = Some(0xFFEF);
    // FS exists, and 16-bit code changes half of a register.
    let segment = test(
        2,
        &[0x64, 0xA0, 0, 0],
        &[(FS, 0x6000), (EAX, 0x1234_5678)],
        &[(EAX, 0x1234_5699), (EIP, 0x105)],
    );
    let segment = ram(segment, &[(0x6_0000, 0x99)], &[]);
    let report =
        conform("386E", "6601", vec![add, fault, segment], &[("80386.csv", "op,ex,f_umask\n01,,10\n")]);
    let failed: Vec<_> = report.failed.iter().map(|f| &f.text).collect();
    assert!(failed.is_empty() && report.passed == 3, "{failed:#?}");
}

#[test]
fn wrong_results_and_unknown_processors_are_failures() {
    let wrong = |n| test(n, &[0x01, 0xD8], &[(EAX, 1), (EBX, 1)], &[(EAX, 3), (EIP, 0x103)]);
    for cpu in ["8088", "C286", "386E", "V20"] {
        let report = conform(cpu, "01", vec![wrong(0), wrong(1)], &[]);
        let expected = if cpu == "V20" { 1 } else { 2 };
        assert!(report.passed == 0 && report.failed.len() == expected, "{cpu}: {}", report.failed.len());
    }
}
