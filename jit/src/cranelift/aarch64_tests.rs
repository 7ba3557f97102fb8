//! Cranelift's code for AArch64 hosts: run under QEMU's user emulation, in a small C program with one region at a
//! time (`aarch64_harness.c`), against the interpreter; and its memory order, read from the code.
//!
//! `cargo test -p trimaran-jit --features arm64 aarch64`. Wants Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and
//! qemu-user-static.

use super::random_code::{program, vector_program};
use super::stubs::{refill_for, settle_for};
use super::tests::{CODE, DATA, RAM, config, set_up};
use super::{Cranelift, Effort};
use crate::abi::{DONE, INTERPRET, Job, LOOKUP, Runtime, STOP};
use crate::region::{Limits, Region};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use trimaran_cpu::Vcpu;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::state::{gpr, seg};
use trimaran_cpu::tlb::{ENTRIES, Entry, slot};
use trimaran_cpu::translate::{offset, pending};

/// Where things are in the harness.
mod at {
    pub const STUBS: usize = 0x200_0000;
    pub const STUBS_MADE: usize = 0x1000_0000;
    pub const VCPU: usize = 0x2000_0000;
    pub const TLB: usize = 0x2100_0000;
    pub const SLOTS: usize = 0x2200_0000;
    /// The attention word, and a jump table that holds nothing.
    pub const ZEROS: usize = 0x2300_0000;
    pub const CODE: usize = 0x3000_0000;
    pub const RAM: usize = 0x4000_0000;
}

fn runtime() -> Runtime {
    let stub = |n: usize| at::STUBS + n * 64;
    Runtime {
        trampoline: 0,
        unlinked: stub(0),
        run_helper: stub(1),
        run_helpers: stub(1),
        run_last: stub(2),
        refill: stub(3),
        settle_flags: stub(4),
        refill_preserving: at::STUBS_MADE,
        settle_preserving: at::STUBS_MADE + 0x1000,
        miss: 0,
        settle_keeping: 0,
        arm_keeping: 0,
        serialize: 0,
    }
}

fn header() -> String {
    let mut text = String::new();
    let mut define = |name: &str, value: usize| {
        let _ = writeln!(text, "#define {name} {value}");
    };
    for (name, value) in [
        ("AT_VCPU", at::VCPU),
        ("AT_TLB", at::TLB),
        ("AT_SLOTS", at::SLOTS),
        ("AT_ZEROS", at::ZEROS),
        ("AT_CODE", at::CODE),
        ("AT_RAM", at::RAM),
        ("AT_STUBS_MADE", at::STUBS_MADE),
        ("BUDGET", offset::BUDGET),
        ("RIP", offset::gpr(gpr::RIP)),
        ("LAZY_CF", offset::LAZY_CF),
        ("LAZY_OF", offset::LAZY_OF),
        ("LAZY_AF", offset::LAZY_AF),
        ("LAZY_ZERO", offset::LAZY_ZERO),
        ("LAZY_SIGN_PARITY", offset::LAZY_SIGN_PARITY),
        ("PENDING_KIND", offset::PENDING_KIND),
        ("PENDING_W", offset::PENDING_W),
        ("PENDING_BIT", offset::PENDING_BIT),
        ("PENDING_A", offset::PENDING_A),
        ("PENDING_B", offset::PENDING_B),
        ("PENDING_R", offset::PENDING_R),
    ] {
        define(name, value);
    }
    for (name, kind) in [
        ("NONE", pending::NONE),
        ("ADD", pending::ADD),
        ("ADC", pending::ADC),
        ("SUB", pending::SUB),
        ("SBB", pending::SBB),
        ("LOGIC", pending::LOGIC),
        ("INC", pending::INC),
        ("DEC", pending::DEC),
        ("NEG", pending::NEG),
        ("SHL", pending::SHL),
        ("SHR", pending::SHR),
        ("MUL", pending::MUL),
        ("SCAN", pending::SCAN),
        ("COUNT", pending::COUNT),
    ] {
        define(&format!("PENDING_{name}"), kind.into());
    }
    text
}

/// A program whose first region is run.
struct Case {
    name: String,
    code: Vec<u8>,
    long: bool,
    seed: u64,
    budget: i64,
}

impl Case {
    fn processor(&self) -> (Vcpu, Arc<Ram>) {
        let ram = Arc::new(Ram::anonymous(RAM));
        let mut v = Vcpu::new(config(&ram));
        set_up(&mut v, &ram, self.long, &self.code, self.seed);
        v.run(0);
        (v, ram)
    }

    fn region(&self, v: &mut Vcpu) -> Region {
        let first = v.block_at(CODE).expect("a block");
        Region::form(v, first, CODE, Limits { decode: true, ..Limits::LOOPS }).expect("a region")
    }

    fn compile(&self, compiler: &mut Cranelift, region: &Region) -> Vec<u8> {
        let runtime = runtime();
        let job = Job::new(region, at::SLOTS, &runtime);
        compiler.compile(&job).unwrap_or_else(|e| panic!("{}: {e}", self.name)).bytes
    }

    /// The job as the harness reads it.
    fn send(&self, compiler: &mut Cranelift, jobs: &mut Vec<u8>) {
        let (mut v, ram) = self.processor();
        let region = self.region(&mut v);
        put(jobs, &self.budget.to_le_bytes());
        put(jobs, &self.compile(compiler, &region));
        let tlb = full_tlb(&mut v, &ram);
        put(jobs, &image(&v));
        put(jobs, &tlb);
        let slot = |_| [runtime().unlinked as u64, !0, 0];
        put(jobs, &(0..region.slots).flat_map(slot).flat_map(u64::to_le_bytes).collect::<Vec<_>>());
        let mut bytes = vec![0; RAM as usize];
        assert!(ram.read(0, &mut bytes));
        put(jobs, &bytes);
    }

    /// Runs the interpreter as far as the code came, and compares. Returns how far that is.
    fn check(&self, word: u64, vcpu: &[u8], ram: &[u8]) -> u64 {
        let slots = at::SLOTS as u64..at::ZEROS as u64;
        assert!(
            matches!(word, LOOKUP | STOP | INTERPRET | DONE) || slots.contains(&word),
            "{}: it returned {word:#x}",
            self.name
        );
        let quad = |at: usize| u64::from_le_bytes(vcpu[at..at + 8].try_into().expect("eight bytes"));
        let (mut v, want) = self.processor();
        let done = u64::try_from(self.budget - quad(offset::BUDGET) as i64).expect("no more than the budget");
        if done > 0 {
            v.run(done);
        }
        let s = v.state_whole();
        assert_eq!(s.retired, done, "{}: the interpreter stopped early", self.name);
        for n in 0..=gpr::RIP {
            let got = quad(offset::gpr(n));
            assert!(s.gpr[n] == got, "{}: register {n}: {:#x}, not {got:#x}", self.name, s.gpr[n]);
        }
        for n in 0..16 {
            let got = [quad(offset::xmm(n)), quad(offset::xmm(n) + 8)];
            assert!(s.zmm[n][..2] == got, "{}: vector {n}: {:x?}, not {got:x?}", self.name, &s.zmm[n][..2]);
        }
        assert_eq!(s.mxcsr, quad(offset::MXCSR) as u32, "{}: MXCSR", self.name);
        let parity = vcpu[offset::LAZY_SIGN_PARITY].count_ones().is_multiple_of(2);
        let flags = u64::from(vcpu[offset::LAZY_CF])
            | u64::from(parity) << 2
            | u64::from(vcpu[offset::LAZY_AF]) << 4
            | u64::from(quad(offset::LAZY_ZERO) == 0) << 6
            | quad(offset::LAZY_SIGN_PARITY) >> 63 << 7
            | u64::from(vcpu[offset::LAZY_OF]) << 11;
        assert_eq!(s.rflags.bits() & 0x8D5, flags, "{}: flags", self.name);
        // Not the page tables, whose accessed bits the filled TLB has set.
        let mut bytes = vec![0; RAM as usize];
        assert!(want.read(0, &mut bytes));
        assert!(bytes[0x5000..] == ram[0x5000..], "{}: memory differs", self.name);
        done
    }
}

fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u64).to_le_bytes());
    to.extend(bytes);
}

/// Everything that may be accessed, as the harness has it.
fn full_tlb(v: &mut Vcpu, ram: &Ram) -> Vec<u8> {
    let here = ram.page_pointer(0).expect("RAM") as u64;
    let mut bytes = vec![0; ENTRIES * size_of::<Entry>()];
    for page in (0..RAM).step_by(4096) {
        v.refill(page, 8, false);
        v.refill(page, 8, true);
    }
    for n in 0..ENTRIES as u64 {
        let e = v.tlb.entry(v.class, n << 12);
        let addend = e.addend.wrapping_sub(here).wrapping_add(at::RAM as u64);
        let entry = [e.read, e.write, e.execute, addend].map(u64::to_le_bytes);
        let at = slot(n << 12) * size_of::<Entry>();
        bytes[at..at + size_of::<Entry>()].copy_from_slice(entry.as_flattened());
    }
    bytes
}

/// The fields of a vCPU that code touches, where they are on this host.
fn image(v: &Vcpu) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<Vcpu>()];
    let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    for n in 0..gpr::COUNT {
        set(offset::gpr(n), &v.state.gpr[n].to_le_bytes());
    }
    for n in 0..16 {
        let [low, high] = [v.state.zmm[n][0], v.state.zmm[n][1]].map(u64::to_le_bytes);
        set(offset::xmm(n), &low);
        set(offset::xmm(n) + 8, &high);
    }
    set(offset::MXCSR, &v.state.mxcsr.to_le_bytes());
    for n in [seg::FS, seg::GS] {
        set(offset::segment_base(n), &v.state.seg[n].base.to_le_bytes());
    }
    let flag = |on: bool| [u8::from(on)];
    set(offset::LAZY_CF, &flag(v.lazy.cf));
    set(offset::LAZY_OF, &flag(v.lazy.of));
    set(offset::LAZY_AF, &flag(v.lazy.af));
    set(offset::LAZY_ZERO, &v.lazy.zero.to_le_bytes());
    set(offset::LAZY_SIGN_PARITY, &v.lazy.sign_parity.to_le_bytes());
    set(offset::TLB, &at::TLB.to_le_bytes());
    set(offset::ATTENTION, &at::ZEROS.to_le_bytes());
    set(offset::ATTENTION_MASK, &u32::MAX.to_le_bytes());
    set(offset::JUMP_TABLE, &at::ZEROS.to_le_bytes());
    set(offset::SALT, &u64::MAX.to_le_bytes());
    bytes
}

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Programs about one thing each; the loops run while RCX counts down.
#[rustfmt::skip]
const DIRECTED: &[(&str, Body)] = &[
    ("every condition", |a| {
        a.xor(rdx, rdx)?;
        for (n, set) in [CodeAssembler::setb::<AsmRegister8>, CodeAssembler::setbe, CodeAssembler::setl, CodeAssembler::setle,
            CodeAssembler::seto, CodeAssembler::setp, CodeAssembler::sets, CodeAssembler::sete].into_iter().enumerate() {
            a.cmp(rax, r8)?; set(a, bl)?; a.shl(rdx, 1)?; a.or(dl, bl)?;
            a.add(r9d, n as i32 + 0x4000_0000)?; set(a, bl)?; a.shl(rdx, 1)?; a.or(dl, bl)?;
        }
        a.hlt()
    }),
    ("carry chains", |a| { a.add(rax, r8)?; a.adc(rdx, r9)?; a.sbb(r10d, r11d)?; a.inc(r12)?; a.adc(r13w, 5)?; a.neg(r14b)?; a.sbb(r15, r15)?; a.hlt() }),
    ("shifts and rotates", |a| {
        a.mov(ecx, 37)?; a.shl(rax, cl)?; a.sar(edx, cl)?; a.shr(r8w, cl)?; a.rol(r9, cl)?; a.ror(r10d, cl)?;
        a.mov(cl, 0)?; a.shl(rax, cl)?; a.rol(rdx, cl)?; a.sar(r11b, 3)?; a.rol(r12w, 5)?; a.hlt()
    }),
    ("products and bits", |a| {
        a.imul_2(rax, r8)?; a.imul_3(edx, r9d, -77)?; a.mul(r10)?; a.bsf(r11, rax)?; a.bsr(r12d, r9d)?; a.popcnt(r13, r8)?;
        a.bt(r8, 7)?; a.setb(r14b)?; a.bswap(r15)?; a.movsx(rax, r9b)?; a.movzx(edx, r10w)?; a.cdqe()?; a.hlt()
    }),
    ("high bytes", |a| { a.mov(ah, 5)?; a.add(dh, al)?; a.xor(al, dh)?; a.movzx(edx, ah)?; a.hlt() }),
    ("memory of every width", |a| {
        a.mov(rax, qword_ptr(rsi))?; a.mov(dword_ptr(rsi + 8), eax)?; a.mov(word_ptr(rsi + 16), ax)?; a.mov(byte_ptr(rsi + 24), al)?;
        a.add(qword_ptr(rdi), rax)?; a.xor(edx, dword_ptr(rdi + 4))?; a.sub(word_ptr(rdi + 8), dx)?; a.inc(byte_ptr(rdi + 11))?; a.hlt()
    }),
    ("unaligned memory", |a| {
        a.or(rsi, 7)?; a.or(rdi, 1)?;
        a.mov(rax, qword_ptr(rsi + 2))?; a.mov(qword_ptr(rdi + 2), rax)?; a.add(dword_ptr(rsi + 30), eax)?; a.mov(word_ptr(rdi + 62), dx)?;
        a.movzx(edx, word_ptr(rsi + 56))?; a.hlt()
    }),
    ("an access across pages", |a| { a.mov(rsi, DATA + 0xFFD)?; a.mov(rax, r8)?; a.mov(edx, dword_ptr(rsi))?; a.hlt() }),
    ("a store to code", |a| { a.mov(rsi, CODE)?; a.inc(rax)?; a.mov(byte_ptr(rsi), 0x90)?; a.hlt() }),
    ("stack", |a| { a.push(rax)?; a.push(r8)?; a.pop(rdx)?; a.pop(r9)?; a.lea(rsp, qword_ptr(rsp - 32))?; a.push(qword_ptr(rsi))?; a.hlt() }),
    ("call and return", |a| {
        let (mut f, mut on) = (a.create_label(), a.create_label());
        a.call(f)?; a.jmp(on)?; a.set_label(&mut f)?; a.add(rax, 3)?; a.ret()?; a.set_label(&mut on)?; a.hlt()
    }),
    ("locked", |a| {
        a.and(rsi, -8)?; a.lock().add(dword_ptr(rsi), eax)?; a.lock().xadd(qword_ptr(rsi + 8), rdx)?; a.xchg(qword_ptr(rsi + 16), r8)?;
        a.lock().cmpxchg(dword_ptr(rsi), r9d)?; a.sete(dl)?; a.mov(rax, qword_ptr(rsi + 8))?; a.lock().cmpxchg(qword_ptr(rsi + 8), r10)?;
        a.lock().dec(byte_ptr(rsi + 1))?; a.hlt()
    }),
    ("a loop over memory", |a| {
        let mut head = a.create_label();
        a.mov(ecx, 200)?; a.set_label(&mut head)?;
        a.movzx(edx, byte_ptr(rsi))?; a.imul_3(rax, rax, 31)?; a.add(rax, rdx)?; a.mov(dword_ptr(rdi + rcx * 4), eax)?;
        a.inc(rsi)?; a.dec(ecx)?; a.jne(head)?; a.hlt()
    }),
    ("two loops and a choice", |a| {
        let (mut outer, mut inner, mut odd, mut next) = (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 20)?; a.set_label(&mut outer)?; a.mov(ebx, 7)?; a.set_label(&mut inner)?;
        a.test(ebx, 1)?; a.jne(odd)?; a.add(rax, rcx)?; a.jmp(next)?; a.set_label(&mut odd)?; a.xor(rax, qword_ptr(rsi + rbx * 8))?;
        a.set_label(&mut next)?; a.dec(ebx)?; a.jne(inner)?; a.cmovs(rdx, rax)?; a.dec(ecx)?; a.jne(outer)?; a.hlt()
    }),
];

fn assemble(body: Body) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("an assembler");
    body(&mut a).and_then(|()| a.assemble(CODE)).expect("it assembles")
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (n, &(name, body)) in DIRECTED.iter().enumerate() {
        for (k, budget) in [5000, 61].into_iter().enumerate() {
            let seed = (n * 2 + k) as u64;
            all.push(Case { name: name.into(), code: assemble(body), long: true, seed, budget });
        }
    }
    let first = std::env::var("TRIMARAN_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    for seed in first..first + 120 {
        for long in [true, false] {
            let budget = [3000, 40][seed as usize % 2];
            let both = [("seed", program(seed, long)), ("vectors, seed", vector_program(seed, long))];
            for (kind, code) in both {
                all.push(Case { name: format!("{kind} {seed}, long {long}"), code, long, seed, budget });
            }
        }
    }
    all
}

/// What is missing of the tools; None: nothing.
fn missing() -> Option<&'static str> {
    let there = |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    ["aarch64-linux-gnu-gcc", "qemu-aarch64-static"].into_iter().find(|tool| !there(tool))
}

fn build(folder: &Path) -> PathBuf {
    let program = folder.join("harness");
    std::fs::write(folder.join("layout.h"), header()).expect("a header");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cranelift/aarch64_harness.c");
    let out = Command::new("aarch64-linux-gnu-gcc")
        .args(["-static", "-O1", "-Wall", "-Werror", "-I"])
        .arg(folder)
        .arg(format!("-Wl,--section-start=.stubs={:#x}", at::STUBS))
        .arg("-o")
        .arg(&program)
        .arg(source)
        .output()
        .expect("the compiler starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    program
}

#[test]
fn aarch64_code_does_what_the_interpreter_does() {
    if let Some(tool) = missing() {
        // Not by println!, which a test that passes keeps to itself.
        let _ = writeln!(std::io::stderr(), "skipped: AArch64 code is not run, {tool} is missing");
        return;
    }
    let folder = std::env::temp_dir().join(format!("trimaran-aarch64-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let harness = build(&folder);
    let mut ran = 0;
    for effort in [Effort::Quick, Effort::Speed] {
        let mut compiler = Cranelift::for_arch("aarch64", effort);
        let isa = compiler.isa.clone().expect("a back end");
        let (mut jobs, cases) = (Vec::new(), cases());
        put(&mut jobs, &refill_for(&*isa, runtime().refill).expect("a stub"));
        put(&mut jobs, &settle_for(&*isa, runtime().settle_flags).expect("a stub"));
        put(&mut jobs, &(cases.len() as u64).to_le_bytes());
        cases.iter().for_each(|case| case.send(&mut compiler, &mut jobs));
        let (input, output) = (folder.join("jobs"), folder.join("results"));
        std::fs::write(&input, jobs).expect("a file");
        let out = Command::new("qemu-aarch64-static")
            .arg(&harness)
            .args([&input, &output])
            .output()
            .expect("QEMU starts");
        assert!(out.status.success(), "{effort:?}, {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
        let results = std::fs::read(&output).expect("results");
        let (vcpu, ram) = (size_of::<Vcpu>(), RAM as usize);
        assert_eq!(results.len(), cases.len() * (8 + vcpu + ram), "one result a job");
        for (case, result) in cases.iter().zip(results.chunks_exact(8 + vcpu + ram)) {
            let word = u64::from_le_bytes(result[..8].try_into().expect("a word"));
            ran += case.check(word, &result[8..8 + vcpu], &result[8 + vcpu..]);
        }
    }
    std::fs::remove_dir_all(&folder).expect("the folder goes");
    assert!(ran > 20_000, "only {ran} instructions ran");
    println!("{ran} instructions in AArch64 code");
}

/// How many words of the code are of a kind.
fn count(code: &[u8], mask: u32, bits: u32) -> usize {
    let words = code.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
    words.filter(|w| w & mask == bits).count()
}

/// Aligned loads are LDAR, aligned stores STLR; the others have a DMB behind the load, before the store.
#[test]
fn aarch64_accesses_are_ordered() {
    // (program, size bits, loads, stores)
    let programs: [(Body, u32, usize, usize); 5] = [
        (
            |a| {
                a.mov(rax, qword_ptr(rsi))?;
                a.hlt()
            },
            3,
            1,
            0,
        ),
        (
            |a| {
                a.mov(dword_ptr(rdi), eax)?;
                a.hlt()
            },
            2,
            0,
            1,
        ),
        (
            |a| {
                a.add(word_ptr(rdi), ax)?;
                a.hlt()
            },
            1,
            1,
            1,
        ),
        (
            |a| {
                a.mov(al, byte_ptr(rsi))?;
                a.mov(byte_ptr(rdi), al)?;
                a.hlt()
            },
            0,
            1,
            1,
        ),
        (
            |a| {
                a.push(rax)?;
                a.pop(rdx)?;
                a.hlt()
            },
            3,
            1,
            1,
        ),
    ];
    for effort in [Effort::Quick, Effort::Speed] {
        let mut compiler = Cranelift::for_arch("aarch64", effort);
        for (n, &(body, size, loads, stores)) in programs.iter().enumerate() {
            let code = assemble(body);
            let case = Case { name: format!("program {n}"), code, long: true, seed: 0, budget: 0 };
            let (mut v, _ram) = case.processor();
            let region = case.region(&mut v);
            let code = case.compile(&mut compiler, &region);
            let (ldar, stlr) = (0x08DF_FC00 | size << 30, 0x089F_FC00 | size << 30);
            assert_eq!(count(&code, 0xFFFF_FC00, ldar), loads, "{effort:?}, program {n}: LDAR");
            assert_eq!(count(&code, 0xFFFF_FC00, stlr), stores, "{effort:?}, program {n}: STLR");
            // A byte is always aligned.
            let fences = if size == 0 { 0 } else { loads + stores };
            assert_eq!(count(&code, !0, 0xD503_3BBF), fences, "{effort:?}, program {n}: DMB ISH");
        }
    }
}

/// Accesses of 16 bytes have a DMB behind the load, before the store.
#[test]
fn aarch64_vector_accesses_are_fenced() {
    let code = assemble(|a| {
        a.movups(xmm0, xmmword_ptr(rsi))?;
        a.movups(xmmword_ptr(rdi), xmm0)?;
        a.hlt()
    });
    for effort in [Effort::Quick, Effort::Speed] {
        let case = Case { name: "MOVUPS".into(), code: code.clone(), long: true, seed: 0, budget: 0 };
        let (mut v, _ram) = case.processor();
        let region = case.region(&mut v);
        let code = case.compile(&mut Cranelift::for_arch("aarch64", effort), &region);
        let words = code.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
        let words: Vec<u32> = words.collect();
        // LDR and STR of a Q register, whatever the address: those of the vCPU's registers have no fence.
        let fenced = |kind: u32, load: bool| {
            let pairs = words.windows(2).map(|w| if load { (w[0], w[1]) } else { (w[1], w[0]) });
            pairs.filter(|&(access, fence)| access & 0xFEC0_0000 == kind && fence == 0xD503_3BBF).count()
        };
        assert_eq!(fenced(0x3CC0_0000, true), 1, "{effort:?}: the load");
        assert_eq!(fenced(0x3C80_0000, false), 1, "{effort:?}: the store");
        assert_eq!(count(&code, !0, 0xD503_3BBF), 2, "{effort:?}: DMB ISH");
    }
}
