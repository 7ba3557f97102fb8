//! `--engine kvm` and `trimaran engines` as users meet them. Without a KVM the reason is what is tested.

use std::process::{Command, Output, Stdio};

const ERROR: i32 = 8;

fn trimaran(arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trimaran"));
    command.args(arguments).stdin(Stdio::null()).env_remove("DISPLAY");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    assert!(!text.contains("panicked"), "{text}");
    (status.code().unwrap_or(-1), text)
}

/// Runs a multiboot kernel, which is 32-bit code, under an engine. It ends by port 0xF4.
fn run_kernel(code: &[u8], arguments: &[&str]) -> (i32, String) {
    with_kernel(code, &[&["run", "--display", "none", "--timeout", "60"], arguments].concat())
}

fn with_kernel(code: &[u8], arguments: &[&str]) -> (i32, String) {
    const MAGIC: u32 = 0x1BAD_B002;
    const ADDRESSES_GIVEN: u32 = 0x1_0000;
    const AT: u32 = 0x10_0000;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(ADDRESSES_GIVEN);
    let header = [MAGIC, ADDRESSES_GIVEN, checksum, AT, AT, 0, 0, AT + 32];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend_from_slice(code);
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("kernel");
    std::fs::write(&path, image).unwrap();
    trimaran(&[arguments, &["--debug-exit", "0xf4", "--kernel", path.to_str().unwrap()]].concat())
}

/// Whether there is a KVM; if not, the line that says why is there.
fn kvm_is_there(status: i32, text: &str) -> bool {
    if status == ERROR && text.contains("--engine kvm: ") {
        println!("skipped: {text}");
        assert!(text.contains("kvm") && text.lines().count() == 1, "{text}");
        return false;
    }
    true
}

#[test]
fn engines_are_listed_with_their_speed() {
    let (status, text) = trimaran(&["engines"]);
    assert_eq!(status, 0, "{text}");
    println!("{text}");
    for word in ["interp", "jit", "kvm", "--engine auto takes"] {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
}

#[test]
fn a_kernel_runs_under_kvm() {
    // mov ecx, 1000; loop $; mov al, 5; out 0xF4, al; jmp $
    let code = [0xB9, 0xE8, 3, 0, 0, 0xE2, 0xFE, 0xB0, 5, 0xE6, 0xF4, 0xEB, 0xFE];
    let (status, text) = run_kernel(&code, &["--engine", "kvm", "--stats"]);
    if kvm_is_there(status, &text) {
        assert_eq!(status, 11, "{text}");
        assert!(text.contains("kvm, 1 vCPU"), "{text}");
    }
}

/// SSE at CPL 0, which some KVMs cannot run, and a change of the engine at the end.
#[test]
fn what_kvm_lacks_runs_anyway() {
    let code = [
        0x0F, 0x20, 0xE0, 0x0D, 0, 6, 0, 0, 0x0F, 0x22, 0xE0, // CR4.OSFXSR, OSXMMEXCPT
        0xB8, 7, 0, 0, 0, 0x66, 0x0F, 0x6E, 0xC0, 0x66, 0x0F, 0xFE, 0xC0, 0x66, 0x0F, 0x7E,
        0xC0, // 7 + 7
        0xE6, 0xF4, 0xEB, 0xFE,
    ];
    let (status, text) = run_kernel(&code, &["--engine", "kvm"]);
    if kvm_is_there(status, &text) {
        assert_eq!(status, 29, "{text}");
    }
}

#[test]
fn lockstep_with_kvm_is_at_accesses() {
    let (status, text) = trimaran(&["lockstep", "--b", "kvm", "--every", "5"]);
    if !kvm_is_there(status, &text) {
        return;
    }
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("does not count instructions"), "{text}");
    // mov ecx, 100; in al, 0x40; add ebx, eax; out 0x80, al; loop back; mov al, 5; out 0xF4, al; jmp $
    let code =
        [0xB9, 100, 0, 0, 0, 0xE4, 0x40, 1, 0xC3, 0xE6, 0x80, 0xE2, 0xF8, 0xB0, 5, 0xE6, 0xF4, 0xEB, 0xFE];
    let (status, text) = with_kernel(&code, &["lockstep", "--b", "kvm"]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("kvm and interp") && text.contains("no difference in 201 accesses"), "{text}");
    // A guest that only time could help, which does not pass.
    let code = [0xE4, 0x40, 0xEB, 0xFE];
    let (status, text) = with_kernel(&code, &["lockstep", "--b", "kvm"]);
    assert_eq!(status, ERROR, "{text}");
    assert!(text.contains("after 1 equal accesses the guest makes no more"), "{text}");
}

#[test]
fn kvm_is_refused_where_it_cannot_be_right() {
    let (status, text) = run_kernel(&[0xF4], &["--engine", "kvm", "--deterministic"]);
    if kvm_is_there(status, &text) {
        assert_eq!(status, ERROR, "{text}");
        assert!(text.contains("count instructions"), "{text}");
    }
}
