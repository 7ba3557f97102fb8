//! Stops at addresses, single steps, and what the interpreter keeps of its code while KVM runs.

use crate::bench::*;
use iced_x86::code_asm::*;
use trimaran_accel::Trial;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::{CpuState, RFlags, gpr};

/// At each CPL, with as many points as the host's processor has and more, whatever the host's KVM can do.
#[test]
fn it_stops_at_addresses() {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    for (cpl, points) in [(0, 1), (0, 5), (3, 1), (3, 5)] {
        let mut b = Bench::new(&kvm, 1);
        b.place(64, CODE, |a| {
            (0..10).try_for_each(|_| a.inc(rax))?;
            a.out(i32::from(STOP_PORT), al)
        });
        let state = b.prepared(Mode::Long, cpl);
        b.set_state(state);
        let others = [0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000];
        let addresses = [&[CODE + 15][..], &others[..points - 1]].concat();
        b.engines[0].stop_at(&addresses).unwrap();
        let case = format!("CPL {cpl}, {points} points");
        assert_eq!(b.run(), Stop::Point, "{case}");
        assert_eq!((b.state().gpr[gpr::RAX], b.state().rip()), (5, CODE + 15), "{case}");
        b.engines[0].stop_at(&[]).unwrap();
        assert_eq!((b.run(), b.state().gpr[gpr::RAX]), (Stop::Asked, 10), "{case}");
    }
}

/// Each step does what the interpreter's does; KVM makes those at CPL 0 where it can.
#[test]
fn single_steps() {
    let Some(kvm) = kvm_with(&[Trial::LongMode]) else { return };
    const STEPS: usize = 200;
    for cpl in [0, 3] {
        let run = |mut b: Bench| -> (Vec<CpuState>, Vec<Access>, String) {
            b.place(64, CODE, |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                a.add(rax, rbx)?;
                a.mov(qword_ptr(0x5000), rax)?;
                a.out(0x30, al)?;
                a.in_(ax, 0x31)?;
                a.pushfq()?;
                a.pop(rcx)?;
                a.mov(edx, ss)?;
                a.mov(ss, edx)?;
                a.lea(rbx, qword_ptr(rbx + rcx * 2 + 1))?;
                a.mov(ecx, 3)?;
                a.lea(rdi, qword_ptr(0x5100))?;
                a.rep().stosb()?;
                a.bsr(rsi, rcx)?;
                a.xor(byte_ptr(0x5000), al)?;
                a.jmp(again)
            });
            let state = b.prepared(Mode::Long, cpl);
            b.set_state(state);
            let step = |_| {
                assert_eq!(b.engines[0].run(1), Stop::Budget);
                let mut state = b.state();
                // KVM does not count, and its clock is another.
                (state.retired, state.msr.tsc_offset) = (0, 0);
                state.rflags.remove(RFlags::RF);
                state
            };
            let states = (0..STEPS).map(step).collect();
            (states, b.log(), b.engines[0].describe_translator())
        };
        let (ours, our_log, _) = run(Bench::interpreted(&kvm));
        let (theirs, their_log, told) = run(Bench::new(&kvm, 1));
        let place = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        if let Some(n) = place {
            panic!("CPL {cpl}, step {n}: {:x?}\n{:x?}", ours[n], theirs[n]);
        }
        assert_eq!(our_log, their_log);
        println!("CPL {cpl}: {told}");
        let works = kvm.report().works(if cpl == 0 { Trial::SingleStep0 } else { Trial::SingleStep3 });
        assert_eq!(told.contains(" 0 single steps"), !works, "{told}");
    }
}

/// What KVM runs between two turns of the interpreter costs that its code only where it was written.
#[test]
fn code_is_kept_where_kvm_wrote_elsewhere() {
    let Some(kvm) = kvm_with(&[Trial::RealMode, Trial::DirtyLog]) else { return };
    let mut b = Bench::new(&kvm, 1);
    const WRITES_DATA: u64 = 0x2000;
    const WRITES_CODE: u64 = 0x3000;
    b.place(16, CODE, |a| {
        a.mov(bx, 7)?;
        a.hlt()
    });
    for (at, target) in [(WRITES_DATA, 0x5001), (WRITES_CODE, CODE + 1)] {
        b.place(16, at, |a| {
            a.mov(byte_ptr(target), 9)?;
            a.hlt()
        });
    }
    b.start(Mode::Real);
    let start = b.state();
    // The interpreter runs small budgets, KVM large ones.
    let decoded = |b: &mut Bench, at: u64, budget: u64| {
        let before = b.engines[0].counters().blocks_decoded;
        let mut state = start.clone();
        state.gpr[gpr::RIP] = at;
        b.set_state(state);
        assert_eq!(b.engines[0].run(budget), Stop::Halted);
        (b.state().gpr[gpr::RBX], b.engines[0].counters().blocks_decoded - before)
    };
    assert_eq!(decoded(&mut b, CODE, 100), (7, 1));
    assert_eq!(decoded(&mut b, WRITES_DATA, u64::MAX).1, 0, "KVM runs it");
    assert_eq!(decoded(&mut b, CODE, 100), (7, 0));
    assert_eq!(decoded(&mut b, WRITES_CODE, u64::MAX).1, 0, "KVM runs it");
    assert_eq!(decoded(&mut b, CODE, 100), (9, 1));
}
