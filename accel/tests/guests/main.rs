//! Small guests under the host's KVM. Where there is none, or it lacks something, a test says so and is over.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod bench;
mod debugging;
mod lockstep;

use bench::*;
use iced_x86::code_asm::*;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};
use trimaran_accel::Trial;
use trimaran_cpu::engine::{EngineFactory, Stop, Takeover};
use trimaran_cpu::model::Model;
use trimaran_cpu::shared::attention;
use trimaran_cpu::state::{Activity, CpuState, RFlags, gpr, seg};

#[test]
fn report() {
    let Some(kvm) = kvm() else { return };
    let report = kvm.report();
    println!("{:?}: {report:?}", report.kind());
    // A second's measurement that would change nothing is not made.
    assert_eq!(report.ring0_mips == 0.0, report.worth_taking().is_err_and(|why| why.contains("lacks")));
    let measured =
        trimaran_accel::Kvm::open().and_then(trimaran_accel::Kvm::measured).expect("KVM once more");
    assert!(measured.report().ring0_mips > 0.0 || !report.works(Trial::LongMode));
    println!("reduced: {}", kvm.reduce(&Model::default()).name);
    assert!(report.works(Trial::RealMode), "not even that");
}

#[test]
fn real_mode_with_ports() {
    let Some(kvm) = kvm_with(&[Trial::RealMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(16, CODE, |a| {
        a.in_(al, 0x10)?;
        a.out(0x11, al)?;
        a.mov(dx, 0x1234)?;
        a.in_(eax, dx)?;
        a.out(dx, ax)?;
        a.mov(si, 0x4000)?;
        a.mov(cx, 3)?;
        a.rep().outsb()?;
        a.hlt()
    });
    b.ram.write(0x4000, b"abc");
    b.start(Mode::Real);
    assert_eq!(b.run(), Stop::Halted);
    use Access::*;
    let mut expected = vec![In(0x10, 1), Out(0x11, 1, 0x10), In(0x1234, 4), Out(0x1234, 2, 0x4634)];
    expected.extend(b"abc".map(|byte| Out(0x1234, 1, u32::from(byte))));
    assert_eq!(b.log(), expected);
    let state = b.state();
    assert_eq!(state.activity, Activity::Halted);
    assert_eq!((state.gpr[gpr::RAX], state.gpr[gpr::RCX]), (0x1234 * 0x101, 0));
}

#[test]
fn device_memory_and_rom() {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(64, CODE, |a| {
        a.mov(rax, qword_ptr(MMIO as i32 + 8))?;
        a.mov(word_ptr(MMIO as i32 + 16), ax)?;
        a.movzx(ebx, byte_ptr(MMIO as i32 + 0x21))?;
        a.mov(rcx, qword_ptr(ROM as i32))?;
        a.mov(dword_ptr(ROM as i32), ecx)?;
        a.mov(rdx, qword_ptr(ROM as i32 + 8))?;
        a.hlt()
    });
    b.start(Mode::Long);
    assert_eq!(b.run(), Stop::Halted);
    let state = b.state();
    assert_eq!((state.gpr[gpr::RAX], state.gpr[gpr::RBX]), (MMIO + 8, 0x21));
    assert_eq!(state.gpr[gpr::RCX], u64::from_le_bytes(*b"This is "));
    assert_eq!(state.gpr[gpr::RDX], u64::from_le_bytes(*b"the ROM."));
    use Access::*;
    let (value, rom) = (MMIO + 8 & 0xFFFF, u64::from(u32::from_le_bytes(*b"This")));
    let expected = [Read(MMIO + 8, 8), Write(MMIO + 16, 2, value), Read(MMIO + 0x21, 1), Write(ROM, 4, rom)];
    assert_eq!(b.log(), expected);
}

#[test]
fn the_map_changes_under_the_guest() {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(64, CODE, |a| {
        for (value, register) in [(1, rbx), (0, rcx), (1, rdx)] {
            a.mov(eax, value)?;
            a.out(MAP_PORT as i32, al)?;
            a.mov(register, qword_ptr(ROM as i32))?;
            a.mov(qword_ptr(ROM as i32), 5)?;
        }
        a.hlt()
    });
    b.put(ROM, 0x4D41_5220_7361_7720);
    b.start(Mode::Long);
    assert_eq!(b.run(), Stop::Halted);
    let state = b.state();
    assert_eq!(state.gpr[gpr::RBX], 0x4D41_5220_7361_7720);
    assert_eq!(state.gpr[gpr::RCX], u64::from_le_bytes(*b"This is "));
    assert_eq!((state.gpr[gpr::RDX], b.get(ROM), b.get(RAM)), (5, 5, u64::from_le_bytes(*b"This is ")));
    assert!(b.log().contains(&Access::Write(ROM, 8, 5)));
}

/// KVM has used a page table; the guest changes it in a turn of the interpreter, which KVM does not see.
#[test]
fn translations_that_the_interpreter_changes_are_forgotten() {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    const TABLE: u64 = TABLES + 0x4000;
    const MAPPED: u64 = 0x20_0000;
    const CHANGES: u64 = CODE + 0x100;
    b.place(64, CODE, |a| {
        a.mov(rbx, qword_ptr(MAPPED))?;
        a.out(STOP_PORT as i32, al)
    });
    b.place(64, CHANGES, |a| {
        a.mov(qword_ptr(TABLE), 0x6007)?;
        a.invlpg(byte_ptr(MAPPED))?;
        a.hlt()
    });
    b.put(0x5000, 5);
    b.put(0x6000, 6);
    let [supervisor, user] = [0, 3].map(|cpl| b.prepared(Mode::Long, cpl));
    b.put(TABLES + 0x2008, TABLE | 7);
    b.put(TABLE, 0x5007);
    let read = |b: &mut Bench| {
        b.set_state(user.clone());
        assert_eq!(b.run(), Stop::Asked);
        b.state().gpr[gpr::RBX]
    };
    assert_eq!(read(&mut b), 5);
    let mut changes = supervisor;
    changes.gpr[gpr::RIP] = CHANGES;
    b.set_state(changes);
    // The interpreter runs small budgets.
    assert_eq!(b.engines[0].run(100), Stop::Halted);
    assert_eq!(read(&mut b), 6);
}

#[test]
fn protected_mode_runs() {
    let Some(kvm) = kvm_with(&[Trial::ProtectedMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(32, CODE, |a| {
        a.mov(ecx, 10)?;
        a.mov(ebx, 0)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.add(ebx, ecx)?;
        a.push(ebx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.mov(ax, fs)?;
        a.hlt()
    });
    b.start(Mode::Protected);
    assert_eq!(b.run(), Stop::Halted);
    let state = b.state();
    assert_eq!((state.gpr[gpr::RBX], state.gpr[gpr::RSP]), (55, STACK - 40));
    assert!(!state.long_mode() && state.protected() && state.seg[seg::CS].big());
}

#[test]
fn user_code_of_long_mode_runs() {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(64, CODE, |a| {
        a.mov(rax, 0x1234_5678_9ABC_DEF0u64)?;
        a.bswap(rax)?;
        a.out(STOP_PORT as i32, al)?;
        a.jmp(CODE)
    });
    let state = b.prepared(Mode::Long, 3);
    b.set_state(state);
    assert_eq!(b.run(), Stop::Asked);
    let state = b.state();
    assert_eq!((state.cpl, state.gpr[gpr::RAX]), (3, 0xF0DE_BC9A_7856_3412));
    assert_eq!(state.seg[seg::CS].selector, 0x23);
}

/// Real mode: each interrupt counts in memory, the program waits with HLT.
fn counting_handler(b: &Bench, vector: u64) {
    b.put(vector * 4, 0x2000);
    b.place(16, 0x2000, |a| {
        a.inc(word_ptr(0x5000))?;
        a.iret()
    });
}

#[test]
fn interrupts_wake_a_halted_processor() {
    let Some(kvm) = kvm_with(&[Trial::RealMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    // Firmware's vectors are exceptions elsewhere.
    let vectors = [0x08, 0x0E, 0x21, 0x70, 0xFF];
    vectors.iter().for_each(|&vector| counting_handler(&b, u64::from(vector)));
    b.place(16, CODE, |a| {
        a.sti()?;
        a.hlt()?;
        a.jmp(CODE)
    });
    b.start(Mode::Real);
    for (n, vector) in (1..).zip(vectors.into_iter().cycle().take(20)) {
        assert_eq!(b.run(), Stop::Halted);
        assert!(b.state().rflags.contains(RFlags::IF));
        b.bus.request(0, vector);
        assert_eq!(b.run(), Stop::Halted, "after the handler it halts again");
        assert_eq!(b.get(0x5000) & 0xFFFF, n, "vector {vector:#x}");
    }
}

#[test]
fn interrupts_reach_a_busy_processor_when_it_lets_them() {
    let Some(kvm) = kvm_with(&[Trial::RealMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    counting_handler(&b, 0x21);
    b.place(16, CODE, |a| {
        let (mut again, mut masked) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.cli()?;
        a.mov(cx, 200)?;
        a.set_label(&mut masked)?;
        a.dec(cx)?;
        a.jnz(masked)?;
        a.sti()?;
        a.nop()?;
        a.cmp(word_ptr(0x5000), 50)?;
        a.jb(again)?;
        a.cli()?;
        a.hlt()
    });
    b.start(Mode::Real);
    let bus = b.bus.clone();
    let feeder = std::thread::spawn(move || {
        for _ in 0..50 {
            bus.request(0, 0x21);
            std::thread::sleep(Duration::from_micros(300));
        }
    });
    assert_eq!(b.run(), Stop::Halted);
    feeder.join().unwrap();
    assert_eq!(b.get(0x5000) & 0xFFFF, 50);
}

/// An interrupt that KVM has taken is not lost when the machine stands before the guest has seen it.
#[test]
fn an_interrupt_under_way_survives_a_stop() {
    let Some(kvm) = kvm_with(&[Trial::RealMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    counting_handler(&b, 0x21);
    b.place(16, CODE, |a| {
        a.sti()?;
        a.jmp(CODE + 1)
    });
    b.start(Mode::Real);
    const INTERRUPTS: u64 = 200;
    let (bus, fence) = (b.bus.clone(), b.fence.clone());
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut requested = 0;
            while !over.load(SeqCst) {
                if requested < INTERRUPTS && bus.vectors.lock().unwrap().is_empty() {
                    bus.request(0, 0x21);
                    requested += 1;
                }
                std::thread::sleep(Duration::from_micros(requested % 7 * 20));
                fence.vcpus[0].raise(attention::STOP);
            }
        });
        while b.get(0x5000) & 0xFFFF < INTERRUPTS && begun.elapsed() < LIMIT {
            assert_eq!(b.run(), Stop::Asked);
            // All of the state, there and back.
            let state = b.state();
            b.set_state(state);
        }
        over.store(true, SeqCst);
    });
    assert_eq!(b.get(0x5000) & 0xFFFF, INTERRUPTS);
}

#[test]
fn a_kick_ends_an_endless_loop_at_once() {
    let Some(kvm) = kvm_with(&[Trial::RealMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(16, CODE, |a| a.jmp(CODE));
    b.start(Mode::Real);
    let mut longest = Duration::ZERO;
    for n in 0..30 {
        let fence = b.fence.clone();
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(n % 5));
            let begun = Instant::now();
            fence.vcpus[0].raise(attention::STOP);
            begun
        });
        assert_eq!(b.run(), Stop::Asked);
        let ended = Instant::now();
        longest = longest.max(ended.saturating_duration_since(kicker.join().unwrap()));
    }
    println!("longest way out: {longest:?}");
    assert!(longest < Duration::from_millis(500));
    assert_eq!(b.state().rip(), CODE);
}

#[test]
fn two_processors() {
    let Some(kvm) = kvm_with(&[Trial::RealMode]) else { return };
    let mut b = Bench::new(&kvm, 2);
    const ROUNDS: u32 = 2000;
    let work = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.set_label(&mut again)?;
        a.lock().inc(dword_ptr(0x5000))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    };
    b.place(16, CODE, work);
    b.place(16, 0x3000, |a| {
        // CS is 300h: no absolute jumps here.
        work(a)
    });
    b.start(Mode::Real);
    let shared = b.fence.vcpus[1].clone();
    shared.sipi_vector.store(3, SeqCst);
    shared.raise(attention::INIT | attention::SIPI);
    let watchdog = Watchdog::new(&b.fence);
    std::thread::scope(|scope| {
        for engine in &mut b.engines {
            scope.spawn(|| assert_eq!(engine.run(u64::MAX), Stop::Halted));
        }
    });
    assert!(!watchdog.barked());
    assert_eq!(b.get(0x5000) as u32, 2 * ROUNDS);
    assert_eq!(b.engines[1].state().seg[seg::CS].selector, 0x300);
}

#[test]
fn nmi_and_smi() {
    let Some(kvm) = kvm_with(&[Trial::RealMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    counting_handler(&b, 2);
    // The SMI handler, with 16-bit code.
    b.place(16, 0x3_8000, |a| {
        a.add(byte_ptr(0x5010), 1)?;
        a.rsm()
    });
    b.place(16, CODE, |a| a.jmp(CODE));
    b.start(Mode::Real);
    b.fence.vcpus[0].raise(attention::NMI | attention::SMI | attention::STOP);
    assert_eq!(b.run(), Stop::Asked);
    let fence = b.fence.clone();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        fence.vcpus[0].raise(attention::STOP);
    });
    assert_eq!(b.run(), Stop::Asked);
    stopper.join().unwrap();
    assert_eq!((b.get(0x5000) & 0xFFFF, b.get(0x5010) & 0xFF), (1, 1));
    let state = b.state();
    assert!(!state.smm && !state.nmi_blocked && state.rip() == CODE);
}

#[test]
fn msrs_are_the_machines() {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(64, CODE, |a| {
        a.mov(ecx, 0x808)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        a.mov(ecx, 0xC000_0082u32)?;
        a.mov(eax, 0x1234)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ecx, 0x277)?;
        a.mov(eax, 0x0406)?;
        a.wrmsr()?;
        a.mov(ecx, 0x1B)?;
        a.mov(eax, 0xFEE0_0100u32)?;
        a.wrmsr()?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.mov(edi, edx)?;
        a.hlt()
    });
    b.start(Mode::Long);
    b.engines[0].state().gpr[gpr::RSI] = 1;
    assert_eq!(b.run(), Stop::Halted);
    let state = b.state();
    assert_eq!((state.msr.lstar, state.msr.pat), (0x1234, 0x0406));
    assert_eq!(state.gpr[gpr::RDI] >> 9 & 1, 0, "CPUID hides an APIC that is off");
}

#[test]
fn the_time_stamp_counter_is_the_machines_clock() {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(64, CODE, |a| {
        a.mov(ecx, 0x10)?;
        a.rdmsr()?;
        a.mov(rsi, rax)?;
        a.mov(rdi, rdx)?;
        a.mov(eax, 0)?;
        a.mov(edx, 0x100)?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.hlt()
    });
    b.start(Mode::Long);
    use trimaran_cpu::bus::Bus;
    let before = b.bus.clock(0);
    assert_eq!(b.run(), Stop::Halted);
    let after = b.bus.clock(0);
    let state = b.state();
    let pair = |high: usize, low: usize| state.gpr[high] << 32 | state.gpr[low] & 0xFFFF_FFFF;
    let first = pair(gpr::RDI, gpr::RSI);
    println!("clock {before} to {after}, the guest read {first}");
    // Clocks are read one after the other: 10 ms.
    let slack = 10 * u64::from(kvm.reduce(&Model::default()).tsc_khz);
    if !kvm.report().works(Trial::TimeStamp) {
        // The guest sees the host's counter, and the state says so.
        println!("skipped in part: the host's KVM lacks {}", Trial::TimeStamp);
        let now = after.wrapping_add(state.msr.tsc_offset);
        assert!(first <= now && now - first < after - before + slack, "{first} and {now}");
        return;
    }
    assert!(first + slack >= before && first <= after + slack);
    let second = pair(gpr::RDX, gpr::RAX);
    assert!((1 << 40..(1 << 40) + (after - before) + slack).contains(&second), "{second:x}");
    assert_eq!(second >> 40, state.msr.tsc_offset.wrapping_add(after) >> 40);
}

#[test]
fn cpuid_is_the_models() {
    let Some(kvm) = kvm_with(&[Trial::LongMode, Trial::Cpuid]) else { return };
    let mut b = Bench::new(&kvm, 1);
    const LEAVES: [(u32, u32); 9] = [
        (0, 0),
        (1, 0),
        (4, 1),
        (7, 0),
        (0xD, 0),
        (0x15, 0),
        (0x4000_0000, 0),
        (0x8000_0001, 0),
        (0x8000_0008, 0),
    ];
    b.place(64, CODE, |a| {
        a.mov(edi, 0x4000)?;
        for (leaf, sub) in LEAVES {
            a.mov(eax, leaf)?;
            a.mov(ecx, sub)?;
            a.cpuid()?;
            for (n, register) in [eax, ebx, ecx, edx].into_iter().enumerate() {
                a.mov(dword_ptr(rdi + n * 4), register)?;
            }
            a.add(edi, 16)?;
        }
        a.hlt()
    });
    b.start(Mode::Long);
    assert_eq!(b.run(), Stop::Halted);
    let mut interpreted = Bench::interpreted(&kvm);
    let mut code = [0; 512];
    b.ram.read(CODE, &mut code);
    interpreted.ram.write(CODE, &code);
    interpreted.start(Mode::Long);
    assert_eq!(interpreted.run(), Stop::Halted);
    for (n, leaf) in (0..).zip(LEAVES) {
        let words = |bench: &Bench| [bench.get(0x4000 + n * 16), bench.get(0x4008 + n * 16)];
        assert_eq!(words(&b), words(&interpreted), "{leaf:x?}: {:x?} {:x?}", words(&b), words(&interpreted));
    }
}

/// Paging of 32-bit code turned on and off by the guest, an exception handler, INT n, SSE: some KVMs know none of it, and
/// nothing of that shows.
#[test]
fn modes_that_kvm_may_lack_run_anyway() {
    let Some(kvm) = kvm_with(&[Trial::ProtectedMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    const TABLE: u32 = TABLES as u32 + 0x1000;
    b.ram.write(TABLES, &(TABLE | 7).to_le_bytes());
    // All pages as they are but 0x5000, which is 0x6000.
    for page in 0..1024u32 {
        let frame = if page == 5 { 6 } else { page };
        b.ram.write(u64::from(TABLE + page * 4), &(frame << 12 | 7).to_le_bytes());
    }
    const IDT: u64 = 0xA000;
    b.put(IDT + 0x40 * 8, 0x3000 | 8 << 16 | 0x8E00 << 32);
    b.place(32, 0x3000, |a| {
        a.add(ebx, 1)?;
        a.iretd()
    });
    b.place(32, CODE, |a| {
        a.mov(eax, TABLES as u32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        a.mov(dword_ptr(0x5000), 7)?;
        a.int(0x40)?;
        a.movd(xmm0, dword_ptr(0x5000))?;
        a.paddd(xmm0, xmm0)?;
        a.movd(ecx, xmm0)?;
        a.mov(eax, cr0)?;
        a.and(eax, 0x7FFF_FFFF)?;
        a.mov(cr0, eax)?;
        a.mov(edx, dword_ptr(0x6000))?;
        a.int(0x40)?;
        a.hlt()
    });
    let mut state = b.prepared(Mode::Protected, 0);
    state.idtr = trimaran_cpu::state::TableRegister { base: IDT, limit: 0x3FF };
    b.set_state(state);
    assert_eq!(b.run(), Stop::Halted);
    let state = b.state();
    assert_eq!((state.gpr[gpr::RBX], state.gpr[gpr::RCX], state.gpr[gpr::RDX]), (2, 14, 7));
    assert_eq!(state.cr0 >> 31, 0);
    println!("{}", b.engines[0].describe_translator());
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(64, CODE, CodeAssembler::ud2);
    b.start(Mode::Long);
    assert_eq!(b.run(), Stop::Shutdown);
    assert_eq!(b.state().activity, Activity::Shutdown);
}

/// Line 20 of the address does not pass: the interpreter runs what KVM cannot.
#[test]
fn a20() {
    let Some(kvm) = kvm_with(&[Trial::RealMode]) else { return };
    let mut b = Bench::new(&kvm, 1);
    b.place(16, CODE, |a| {
        a.mov(ax, 0xFFFFu32 as i32)?;
        a.mov(es, ax)?;
        a.mov(bl, byte_ptr(0x5010).es())?;
        a.hlt()
    });
    b.put(0x5000, 0x11);
    b.put(0x10_5000, 0x22);
    for (passes, expected) in [(true, 0x22), (false, 0x11), (true, 0x22)] {
        b.start(Mode::Real);
        b.fence.a20.store(passes, SeqCst);
        b.fence.vcpus[0].raise(attention::REMAP);
        assert_eq!(b.run(), Stop::Halted);
        assert_eq!(b.state().gpr[gpr::RBX], expected);
    }
}

/// Where guests see the host's TSC, other engines have to count on from there, or the machine cannot come back.
#[test]
fn a_machine_that_left_before_kvm_ran_it_comes_back() {
    use trimaran_cpu::bus::Bus;
    let Some(kvm) = kvm() else { return };
    if kvm.report().works(Trial::TimeStamp) {
        return println!("skipped: the host's KVM has {}", Trial::TimeStamp);
    }
    let mut b = Bench::new(&kvm, 1);
    let state = CpuState { retired: 1, ..b.state() };
    let back = kvm.accepts(&Takeover {
        model: &kvm.reduce(&Model::default()),
        deterministic: false,
        states: &[&state],
        time_stamps: &[b.bus.clock(0).wrapping_add(state.msr.tsc_offset)],
        counts: false,
        points: false,
    });
    assert_eq!(back, Ok(()));
}

#[test]
fn takeovers_are_refused_with_a_reason() {
    let Some(kvm) = kvm() else { return };
    let mut state = CpuState::reset(0, true);
    let whole = Model::default();
    let reduced = kvm.reduce(&whole);
    let ask = |model: &Model, state: &CpuState, deterministic| {
        let states = [state];
        let time_stamps = &[0];
        kvm.accepts(&Takeover {
            model,
            deterministic,
            states: &states,
            time_stamps,
            counts: false,
            points: false,
        })
    };
    assert_eq!(ask(&reduced, &state, false), Ok(()));
    assert!(ask(&reduced, &state, true).is_err_and(|why| why.contains("count")));
    let mut more = reduced.clone();
    more.tsc_khz += 1_000;
    more.features.leaf7_ecx |= 1 << 22;
    if let Err(why) = ask(&more, &state, false) {
        println!("{why}");
        assert!(why.contains("kHz") || why.contains("rdpid"));
    }
    if !kvm.report().works(Trial::TimeStamp) {
        // Not a new machine: its TSC shows something.
        let run = CpuState { retired: 1, ..state.clone() };
        assert!(ask(&reduced, &run, false).is_err_and(|why| why.contains("would jump forward")));
    }
    state.xcr0 = 0xE7;
    assert!(ask(&reduced, &state, false).is_err_and(|why| why.contains("XCR0")));
}
