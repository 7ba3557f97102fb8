//! Instructions as helpers: plain Rust over `Vcpu`, called the same way by every engine. One file a subject, far
//! transfers and event delivery one file each, written along the manual's order of checks.

pub mod bit_manipulation;
pub mod bit_string;
pub mod call_far;
pub mod cpuid;
pub mod decimal;
pub mod flag_control;
pub mod interrupt;
pub mod io;
pub mod iret;
pub mod misc;
pub mod msr;
pub mod mul_div;
pub mod ret_far;
pub mod segment;
pub mod shift_double;
pub mod smm;
pub mod stack;
pub mod string;
pub mod syscall;
pub mod system;
pub mod tasking;

use crate::insn::{Handler, Insn};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

/// The helper of an instruction, where one here has it.
pub fn system_handler(x: &Instruction, i: &mut Insn) -> Option<Handler> {
    use M::*;
    Some(match x.mnemonic() {
        Mov => mov_special(x)?,
        Push => stack::push_segment,
        Pop => segment::pop_segment,
        Pusha | Pushad => stack::pusha,
        Popa | Popad => stack::popa,
        Pushf | Pushfd | Pushfq => stack::pushf,
        Popf | Popfd | Popfq => stack::popf,
        Enter => stack::enter,
        Stc => flag_control::stc,
        Clc => flag_control::clc,
        Cmc => flag_control::cmc,
        Cld => flag_control::cld,
        Std => flag_control::std,
        Cli => flag_control::cli,
        Sti => flag_control::sti,
        Lahf => flag_control::lahf,
        Sahf => flag_control::sahf,
        Stac => flag_control::stac,
        Clac => flag_control::clac,
        Daa => decimal::daa,
        Das => decimal::das,
        Aaa => decimal::aaa,
        Aas => decimal::aas,
        Aam => decimal::aam,
        Aad => decimal::aad,
        Bound => misc::bound,
        Xlatb => misc::xlat,
        Salc => misc::salc,
        Cmpxchg8b => misc::cmpxchg8b,
        Cmpxchg16b => misc::cmpxchg16b,
        Movsb | Movsw | Movsq => string::movs,
        Movsd if x.is_string_instruction() => string::movs,
        Stosb | Stosw | Stosd | Stosq => string::stos,
        Lodsb | Lodsw | Lodsd | Lodsq => string::lods,
        Cmpsb | Cmpsw | Cmpsq => string::cmps,
        Cmpsd if x.is_string_instruction() => string::cmps,
        Scasb | Scasw | Scasd | Scasq => string::scas,
        Insb | Insw | Insd => string::ins,
        Outsb | Outsw | Outsd => string::outs,
        In => io::r#in,
        Out => io::out,
        Int => interrupt::int,
        Int3 => interrupt::int3,
        Into => interrupt::into,
        Int1 => interrupt::int1,
        Ud0 | Ud1 | Ud2 => misc::undefined,
        Jmp => call_far::jmp_far,
        Call => call_far::call_far,
        Retf => ret_far::ret_far,
        Iret | Iretd | Iretq => iret::iret,
        Lds | Les | Lss | Lfs | Lgs => {
            i.w = x.op0_register().size() as u8;
            segment::load_far_pointer
        }
        Lgdt | Lidt => segment::load_table,
        Sgdt | Sidt => segment::store_table,
        Lldt => segment::lldt,
        Ltr => segment::ltr,
        Sldt | Str => segment::store_system_selector,
        Lar => segment::lar,
        Lsl => segment::lsl,
        Verr | Verw => segment::verify,
        Arpl => segment::arpl,
        Lmsw => system::lmsw,
        Smsw => system::smsw,
        Clts => system::clts,
        Invlpg => system::invlpg,
        Invpcid => system::invpcid,
        Invd | Wbinvd | Wbnoinvd => system::cache_control,
        Clflush | Clflushopt | Clwb => system::clflush,
        Hlt => system::hlt,
        Monitor => system::monitor,
        Mwait => system::mwait,
        Xgetbv => system::xgetbv,
        Xsetbv => system::xsetbv,
        Rdpkru => system::rdpkru,
        Wrpkru => system::wrpkru,
        Rdrand | Rdseed => system::random,
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => system::segment_base,
        Swapgs => system::swapgs,
        Rdmsr => msr::rdmsr,
        Wrmsr => msr::wrmsr,
        Rdtsc | Rdtscp => msr::rdtsc,
        Rdpid => msr::rdpid,
        Rdpmc => msr::rdpmc,
        Cpuid => cpuid::cpuid,
        Syscall => syscall::syscall,
        Sysret | Sysretq => syscall::sysret,
        Sysenter => syscall::sysenter,
        Sysexit | Sysexitq => syscall::sysexit,
        Rsm => smm::rsm,
        _ => return None,
    })
}

/// MOV with a segment, control or debug register.
fn mov_special(x: &Instruction) -> Option<Handler> {
    let register = |n: u32| match x.op_kind(n) {
        OpKind::Register => x.op_register(n),
        _ => Register::None,
    };
    let (to, from) = (register(0), register(1));
    Some(if to.is_segment_register() {
        segment::mov_to_segment
    } else if from.is_segment_register() {
        segment::mov_from_segment
    } else if to.is_cr() {
        system::mov_to_control
    } else if from.is_cr() {
        system::mov_from_control
    } else if to.is_dr() {
        system::mov_to_debug
    } else if from.is_dr() {
        system::mov_from_debug
    } else {
        return None;
    })
}
