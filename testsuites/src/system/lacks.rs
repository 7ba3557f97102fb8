//! What the KVM of some hosts, most of all one made of software, does otherwise than the manuals say. Each lack has a program
//! that shows it on the KVM at hand, by another end than on the interpreter, and knows the instructions that meet it. A case that
//! fails there is skipped if its programs meet a lack that shows.

// A program of one instruction reads as the longer ones do.
#![allow(clippy::redundant_closure_for_method_calls)]

use super::{Bench, CODE, IDT, Outcome, PAGE, STACK0, STUBS, TSS2, gate, sel};
use crate::engine;
use crate::flat::Flat;
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, IcedError, Instruction, Mnemonic, Register};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use trimaran_accel::Trial;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::{CpuState, RFlags, cr0, cr4, efer, gpr, seg};

/// An instruction as the interpreter ran it, or the delivery of an event before it.
struct Step<'a> {
    before: &'a CpuState,
    after: &'a CpuState,
    instruction: Instruction,
    /// Of exceptions and interrupts, in their order.
    vectors: &'a [u8],
    /// What is on top of the stack behind it.
    pushed: u64,
}

impl Step<'_> {
    fn is(&self, mnemonics: &[Mnemonic]) -> bool {
        mnemonics.contains(&self.instruction.mnemonic())
    }
    fn raises(&self, vector: u8) -> bool {
        self.vectors.contains(&vector)
    }
    /// A program of protected or long mode runs it.
    fn of_program(&self) -> bool {
        self.before.cpl == 3 && !self.before.v86()
    }
    /// Breakpoints that are on in DR7, for instructions or for data.
    fn breakpoint(&self, data: bool) -> bool {
        let on = self.before.dr[7];
        (0..4).any(|n| on >> (n * 2) & 3 != 0 && (on >> (16 + n * 4) & 3 != 0) == data)
    }
    /// CPUID has a bit for it, those of virtualization left out.
    fn extends(&self) -> bool {
        use iced_x86::CpuidFeature::*;
        let of_old = |&feature: &_| {
            matches!(
                feature,
                INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | SYSCALL | SEP | VMX | SVM
            )
        };
        !self.instruction.is_invalid() && !self.instruction.cpuid_features().iter().all(of_old)
    }
    /// Its memory operand begins below 2^47 and, by the longest that there are, ends above.
    fn crosses_edge(&self) -> bool {
        let base = self.before.gpr.get(self.instruction.memory_base().full_register().number());
        let address = base.unwrap_or(&0).wrapping_add(self.instruction.memory_displacement64());
        const EDGE: u64 = 1 << 47;
        self.before.code64() && (EDGE - 63..EDGE).contains(&address)
    }
}

/// See the head of this file.
struct Lack {
    name: &'static str,
    meets: fn(&Step) -> bool,
    shows: Shows,
}

enum Shows {
    /// A program that ends otherwise.
    Program(fn() -> Bench),
    /// A trial that failed when KVM was opened.
    Trial(Trial),
}
use Shows::Program;

const LACKS: &[Lack] = &[
    Lack {
        name: "software interrupts of programs outside 64-bit mode",
        meets: |s| {
            s.of_program() && !s.before.code64() && s.is(&[Mnemonic::Int, Mnemonic::Int3, Mnemonic::Into])
        },
        shows: Program(|| user(Bench::protected(), |a| a.int3())),
    },
    Lack {
        name: "INT n of programs",
        meets: |s| s.of_program() && s.is(&[Mnemonic::Int]),
        shows: Program(|| {
            let b = Bench::long();
            b.interrupt_gate(0x30, STUBS + 0x30, 3);
            user(b, |a| a.int(0x30))
        }),
    },
    Lack {
        name: "call gates of programs",
        meets: |s| s.of_program() && (s.instruction.is_call_far() || s.instruction.is_call_far_indirect()),
        shows: Program(|| {
            let b = Bench::protected();
            b.describe(sel::SPARE, gate(sel::CODE0, (STUBS + 0x30) as u32, 12, 3, 0));
            user(b, |a| a.db(&[0x9A, 0, 0, 0, 0, sel::SPARE as u8 | 3, 0]))
        }),
    },
    Lack {
        name: "virtual interrupts of protected mode",
        meets: |s| s.of_program() && s.before.cr4 & cr4::PVI != 0 && s.is(&[Mnemonic::Cli, Mnemonic::Sti]),
        shows: Program(|| {
            let mut b = user(Bench::protected(), |a| {
                a.sti()?;
                a.ud2()
            });
            b.flat.vcpu.state.cr4 |= cr4::PVI;
            b
        }),
    },
    Lack {
        name: "SYSCALL",
        meets: |s| s.of_program() && s.is(&[Mnemonic::Syscall]),
        shows: Program(|| {
            let mut b = Bench::long();
            b.map(0x9000, 3);
            b.flat.ram.write(0x9000, &[0xF4]);
            let s = &mut b.flat.vcpu.state;
            s.msr.efer |= efer::SCE;
            (s.msr.star, s.msr.lstar) = (u64::from(sel::CODE0) << 32, 0x9000);
            user(b, |a| a.syscall())
        }),
    },
    Lack {
        name: "SYSRET to compatibility mode",
        meets: |s| s.is(&[Mnemonic::Sysret]),
        shows: Program(|| {
            let mut b = Bench::long();
            b.map_user();
            b.map(0x9000, 7);
            b.flat.ram.write(0x9000, &[0x0F, 0x0B]);
            let s = &mut b.flat.vcpu.state;
            s.msr.efer |= efer::SCE;
            (s.msr.star, s.gpr[gpr::RCX]) = (u64::from(sel::SPARE) << 48, 0x9000);
            program(b, |a| a.sysret())
        }),
    },
    Lack {
        name: "#SS off RBP with a DS prefix in 64-bit mode",
        meets: |s| s.before.code64() && s.instruction.has_segment_prefix() && s.raises(12),
        shows: Program(|| {
            program(Bench::long(), |a| {
                a.mov(rbp, 1u64 << 47)?;
                // MOV EAX, DS:[RBP]
                a.db(&[0x3E, 0x8B, 0x45, 0x00])
            })
        }),
    },
    Lack {
        name: "#GP for accesses across the edge of canonical addresses",
        meets: |s| s.crosses_edge() && s.raises(13),
        shows: Program(|| {
            program(Bench::long(), |a| {
                a.mov(rax, 0x7FFF_FFFF_FFFEu64)?;
                a.mov(ecx, dword_ptr(rax))
            })
        }),
    },
    Lack {
        name: "alignment checks",
        meets: |s| s.raises(17),
        shows: Program(|| {
            let mut b = user(Bench::protected(), |a| {
                a.mov(eax, dword_ptr(PAGE + 2))?;
                a.ud2()
            });
            b.flat.vcpu.state.cr0 |= cr0::AM;
            b.flat.vcpu.state.rflags |= RFlags::AC;
            b
        }),
    },
    Lack {
        name: "data breakpoints",
        meets: |s| s.breakpoint(true),
        shows: Program(|| {
            let mut b = program(Bench::protected(), |a| {
                a.mov(dword_ptr(PAGE), eax)?;
                a.nop()
            });
            (b.flat.vcpu.state.dr[1], b.flat.vcpu.state.dr[7]) = (PAGE, 0x408 | 0xD << 20);
            b
        }),
    },
    Lack {
        name: "RF where instruction breakpoints stop",
        meets: |s| s.breakpoint(false) && s.raises(1),
        shows: Program(|| {
            let mut b = program(Bench::protected(), |a| a.nop());
            (b.flat.vcpu.state.dr[0], b.flat.vcpu.state.dr[7]) = (CODE, 0x402);
            b
        }),
    },
    Lack {
        name: "single steps within repeated strings",
        meets: |s| {
            let repeats = s.instruction.has_rep_prefix() || s.instruction.has_repne_prefix();
            s.before.rflags.contains(RFlags::TF) && repeats && s.raises(1)
        },
        shows: Program(|| {
            let mut b = program(Bench::protected(), |a| a.rep().stosb());
            let s = &mut b.flat.vcpu.state;
            (s.gpr[gpr::RCX], s.gpr[gpr::RDI]) = (3, PAGE);
            s.rflags |= RFlags::TF;
            b
        }),
    },
    Lack {
        name: "task gates",
        meets: |s| !s.vectors.is_empty() && s.before.tr.selector != s.after.tr.selector,
        shows: Program(|| {
            let b = Bench::protected();
            b.put(IDT + 6 * 8, gate(sel::TSS2, 0, 5, 0, 0));
            for (at, value) in
                [(0x20, STUBS + 6), (0x38, STACK0), (0x4C, sel::CODE0.into()), (0x50, sel::DATA0.into())]
            {
                b.put(TSS2 + at, value);
            }
            program(b, |a| a.ud2())
        }),
    },
    Lack {
        name: "EXT in error codes",
        meets: |s| s.pushed & 1 != 0 && (STUBS + 10..=STUBS + 13).contains(&s.after.rip()),
        shows: Program(|| {
            let b = Bench::protected();
            b.put(IDT + 6 * 8, gate(sel::CODE0, 0, 14, 0, 0) & !(0x80 << 40));
            program(b, |a| a.ud2())
        }),
    },
    Lack {
        name: "#UD for instructions that CPUID does not show",
        meets: |s| s.raises(6) && s.extends(),
        shows: Program(|| {
            let mut b = Bench::of(WITHOUT_CLFLUSH);
            b.flat.vcpu.state.gpr[gpr::RBX] = PAGE;
            program(b, |a| a.clflush(byte_ptr(ebx)))
        }),
    },
    Lack {
        name: "#UD for VMCALL and VMMCALL",
        meets: |s| s.is(&[Mnemonic::Vmcall, Mnemonic::Vmmcall]),
        shows: Program(|| program(Bench::long(), |a| a.vmcall())),
    },
    Lack {
        name: "the limit of real mode's vectors",
        meets: |s| !s.before.protected() && s.before.idtr.limit < 0x3FF && !s.vectors.is_empty(),
        shows: Program(|| {
            let mut b = super::cases::modes::real();
            b.flat.vcpu.state.idtr.limit = 0x83;
            b.assemble(16, CODE, |a| a.int(0x21));
            b
        }),
    },
    Lack {
        name: "#GP for bits 63:32 of CR0",
        meets: |s| s.before.code64() && s.instruction.op0_register() == Register::CR0 && s.raises(13),
        shows: Program(|| {
            program(Bench::long(), |a| {
                a.mov(rax, 0x1_8000_0011u64)?;
                a.mov(cr0, rax)
            })
        }),
    },
    Lack {
        name: "short interrupt windows",
        meets: |s| s.vectors.iter().any(|&vector| vector >= 32) && !s.is(&[Mnemonic::Int]),
        shows: Shows::Trial(Trial::InterruptWindow),
    },
];

const WITHOUT_CLFLUSH: &str = "x86-64-v2,-clflush,-sse2,-sse3,-ssse3,-sse4_1,-sse4_2,-aes,-pclmulqdq,-lm,-cx16,-pcid,-invpcid,-fsgsbase,-pdpe1gb,-lahf_lm";

/// A bench whose program is this and a HLT.
fn program(mut b: Bench, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Bench {
    b.code(|a| {
        f(a)?;
        a.hlt()
    });
    b
}

/// The same at CPL 3.
fn user(mut b: Bench, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Bench {
    if b.long {
        b.map_user();
    }
    b.ring(3);
    program(b, f)
}

/// What is compared of a program's end.
fn end(program: fn() -> Bench) -> (Outcome, [u64; 16], u64) {
    let mut b = program();
    let outcome = b.run();
    let s = &b.flat.vcpu.state;
    (outcome, std::array::from_fn(|n| s.gpr[n]), s.dr[6] & 0xE00F)
}

impl Lack {
    /// Whether the engine that programs run on has it; KVM is asked once.
    fn shows(&self) -> bool {
        match self.shows {
            Shows::Trial(trial) => engine::kvm().is_ok_and(|kvm| !kvm.report().works(trial)),
            Program(program) => {
                let whole = engine::stand_in(|| end(program));
                catch_unwind(AssertUnwindSafe(|| end(program))).is_ok_and(|end| end != whole)
            }
        }
    }
}

thread_local! {
    /// Bits of the lacks that programs have met since [`of`] began to look.
    static MET: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Names of the lacks that show, and that programs of `case` meet on the interpreter.
pub fn of(case: fn()) -> Vec<&'static str> {
    static SHOWN: [OnceLock<bool>; LACKS.len()] = [const { OnceLock::new() }; LACKS.len()];
    let met = met(case);
    let shows = |&n: &usize| met >> n & 1 != 0 && *SHOWN[n].get_or_init(|| LACKS[n].shows());
    (0..LACKS.len()).filter(shows).map(|n| LACKS[n].name).collect()
}

/// Bits of the lacks that programs meet.
fn met(programs: impl FnOnce()) -> u32 {
    MET.set(Some(0));
    // Who asks knows already whether it fails.
    let _ = catch_unwind(AssertUnwindSafe(|| engine::stand_in(programs)));
    MET.take().unwrap_or(0)
}

/// Runs up to `budget` instructions on the interpreter, one at a time where somebody looks.
pub(crate) fn run(flat: &mut Flat, budget: u64) -> Stop {
    let Some(mut met) = MET.get() else { return flat.vcpu.run(budget) };
    flat.vcpu.log_steps(true);
    let mut stop = Stop::Budget;
    for _ in 0..budget {
        let before = flat.vcpu.state_whole().clone();
        let instruction = next(flat, &before);
        stop = flat.vcpu.run(1);
        let vectors = flat.vcpu.take_step_log().map(|log| log.vectors).unwrap_or_default();
        let after = flat.vcpu.state_whole().clone();
        let pushed = flat.vcpu.probe(after.seg[seg::SS].base.wrapping_add(after.gpr[gpr::RSP]));
        let mut top = [0; 8];
        pushed.into_iter().for_each(|at| _ = flat.ram.read(at, &mut top));
        let pushed = u64::from_le_bytes(top);
        let step = Step { before: &before, after: &after, instruction, vectors: &vectors, pushed };
        met |= (0..).zip(LACKS).filter(|(_, lack)| (lack.meets)(&step)).fold(0, |bits, (n, _)| bits | 1 << n);
        if stop != Stop::Budget {
            break;
        }
    }
    flat.vcpu.log_steps(false);
    MET.set(Some(met));
    stop
}

/// The instruction at RIP; an invalid one where there is none.
fn next(flat: &mut Flat, state: &CpuState) -> Instruction {
    let bits = match state.code64() {
        true => 64,
        false if state.seg[seg::CS].big() => 32,
        false => 16,
    };
    let linear = flat.vcpu.code_address(state.rip());
    let mut bytes = Vec::new();
    for at in linear..linear.saturating_add(15) {
        let Some(place) = flat.vcpu.probe(at) else { break };
        let mut byte = [0];
        flat.ram.read(place, &mut byte);
        bytes.extend(byte);
    }
    Decoder::with_ip(bits, &bytes, state.rip(), DecoderOptions::NONE).decode()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise a case that fails for it would not be known to.
    #[test]
    fn each_program_meets_its_lack() {
        for (n, lack) in LACKS.iter().enumerate() {
            let Program(program) = lack.shows else { continue };
            let met = met(|| _ = end(program));
            assert!(met >> n & 1 != 0, "{}", lack.name);
        }
    }

    #[test]
    fn whoever_lacks_nothing_fails() {
        assert_eq!(
            of(|| assert_eq!(program(Bench::protected(), |a| a.nop()).run().fault(), (13, 0))),
            [""; 0]
        );
        assert_eq!(met(|| program(Bench::protected(), |a| a.nop()).run().halted()), 0);
    }
}
