//! From bytes to [`Insn`]: iced-x86 decodes, this file picks the handler and copies the operands.
//!
//! Kernels come as tables of handlers, one for each operand form and width ([`Forms`]); helpers as one function.

use crate::Vcpu;
use crate::blocks::BlockKey;
use crate::fault::Exit;
use crate::features::Features;
use crate::helpers::*;
use crate::insn::{Handler, Insn, prefix};
use crate::interp::form;
use crate::kernels::{self, Kernel, shift_rotate};
use crate::state::{gpr, seg};
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic as M, OpKind, Register};

/// Handlers of a kernel by form (see [`form`]) and width (1, 2, 4, 8).
pub type Forms = [[Handler; 4]; 7];

/// Runs a kernel again until its locked write finds the place unchanged.
#[inline(always)]
pub(crate) fn locked(
    v: &mut Vcpu,
    i: &Insn,
    f: impl Fn(&mut Vcpu, &Insn) -> Result<bool, Exit>,
) -> Result<(), Exit> {
    let lazy = v.lazy;
    let (a, r1) = (v.state.gpr[gpr::RAX], v.state.gpr[usize::from(i.r1 & 15)]);
    while f(v, i)? {
        v.lazy = lazy;
        v.state.gpr[usize::from(i.r1 & 15)] = r1;
        v.state.gpr[gpr::RAX] = a;
    }
    Ok(())
}

macro_rules! forms {
    ($kernel:path) => {{
        use $crate::Vcpu;
        use $crate::decode::{Forms, locked};
        use $crate::fault::Exit;
        use $crate::insn::Insn;
        use $crate::interp::{Interp, form};
        fn plain<const S: u8, const F: u8>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
            $kernel(&mut Interp::<S, F>::new(v), i)
        }
        fn locked_form<const S: u8, const F: u8>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
            locked(v, i, |v, i| {
                let mut e = Interp::<S, F>::new(v);
                $kernel(&mut e, i)?;
                Ok(e.lost())
            })
        }
        static FORMS: Forms = [
            widths!(plain, form::REG_REG),
            widths!(plain, form::REG_IMM),
            widths!(plain, form::REG_MEM),
            widths!(plain, form::MEM_REG),
            widths!(plain, form::MEM_IMM),
            widths!(locked_form, form::LOCKED_REG),
            widths!(locked_form, form::LOCKED_IMM),
        ];
        &FORMS
    }};
}
macro_rules! widths {
    ($f:ident, $form:expr) => {
        [$f::<1, { $form }>, $f::<2, { $form }>, $f::<4, { $form }>, $f::<8, { $form }>]
    };
}
pub(crate) use {forms, widths};

/// What runs an instruction.
enum Run {
    Kernel(Kernel),
    Helper(Handler),
}
use Run::{Helper as H, Kernel as K};

/// Decodes one iced instruction for the modes in `key`. Whatever the model lacks becomes #UD, or what it was before.
pub fn lower(x: &Instruction, key: BlockKey, features: &Features) -> Insn {
    let mut older = *x;
    older.set_code(features.older_meaning(x.code()));
    let x = &older;
    let mut i = operands(x, key);
    if x.is_invalid() && x.len() >= 15 {
        i.run = misc::too_long;
        return i;
    }
    if x.is_invalid() || !features.allows(x) {
        i.run = misc::undefined;
        // Translators go by the code.
        i.code = Code::INVALID;
        return i;
    }
    if x.encoding() == EncodingKind::VEX {
        let vector = !matches!(x.cpuid_features(), [CpuidFeature::BMI1 | CpuidFeature::BMI2]);
        if !key.protected() {
            i.run = misc::undefined;
            i.code = Code::INVALID;
            return i;
        }
        if vector && !key.avx() {
            i.run = misc::avx_unavailable;
            return i;
        }
    }
    let lock = x.has_lock_prefix();
    if lock && !lockable(x) {
        i.run = misc::undefined;
        return i;
    }
    // XCHG with memory locks by itself.
    let lock = lock || x.mnemonic() == M::Xchg && i.memory();
    match select(x, &mut i) {
        H(f) => i.run = f,
        K(kernel) => {
            i.kernel = kernel;
            i.form = operand_form(x, &i, lock);
            if let Some(forms) = kernels::forms(kernel) {
                i.run = forms[usize::from(i.form)][i.w.trailing_zeros().min(3) as usize];
            }
        }
    }
    i
}

/// Where an instruction's operands are.
fn operand_form(x: &Instruction, i: &Insn, lock: bool) -> u8 {
    if i.kernel == Kernel::Push && is_immediate(x.op0_kind()) {
        return form::REG_IMM;
    }
    let immediate = matches!(x.op1_kind(), k if is_immediate(k)) && x.op_count() == 2;
    match (i.mem_op, immediate) {
        (0, true) if lock => form::LOCKED_IMM,
        (0, false) if lock => form::LOCKED_REG,
        (0, true) => form::MEM_IMM,
        (0, false) => form::MEM_REG,
        (1, _) => form::REG_MEM,
        (_, true) => form::REG_IMM,
        _ => form::REG_REG,
    }
}

fn is_immediate(kind: OpKind) -> bool {
    (OpKind::Immediate8..=OpKind::Immediate32to64).contains(&kind)
}

/// Instructions that LOCK may precede, with a memory operand 0 (SDM Vol. 2, "LOCK").
fn lockable(x: &Instruction) -> bool {
    use M::*;
    x.op0_kind() == OpKind::Memory
        && matches!(
            x.mnemonic(),
            Add | Adc
                | And
                | Btc
                | Btr
                | Bts
                | Cmpxchg
                | Cmpxchg8b
                | Cmpxchg16b
                | Dec
                | Inc
                | Neg
                | Not
                | Or
                | Sbb
                | Sub
                | Xor
                | Xadd
                | Xchg
        )
}

/// Our number of a register operand.
fn number(r: Register) -> u8 {
    if (Register::AH..=Register::BH).contains(&r) {
        return 16 | (r as u8 - Register::AH as u8);
    }
    if r.is_gpr8() {
        // iced counts SPL on after BH.
        return r.full_register().number() as u8;
    }
    if r.is_segment_register() {
        return match r {
            Register::ES => seg::ES,
            Register::CS => seg::CS,
            Register::SS => seg::SS,
            Register::DS => seg::DS,
            Register::FS => seg::FS,
            _ => seg::GS,
        } as u8;
    }
    r.number() as u8
}

/// Copies operands; `run` is filled in later.
fn operands(x: &Instruction, key: BlockKey) -> Insn {
    let mut i = Insn {
        run: misc::undefined,
        disp: 0,
        imm: 0,
        imm2: 0,
        code: x.code(),
        len: x.len() as u8,
        w: 0,
        asize: key.code_size(),
        base: gpr::ZERO as u8,
        index: gpr::ZERO as u8,
        scale: 0,
        seg: seg::DS as u8,
        r0: 0,
        r1: 0,
        r2: 0,
        mem_op: NO_MEMORY,
        prefix: 0,
        kernel: Kernel::Helper,
        form: form::REG_REG,
    };
    let flag = |on: bool, bit: u16| if on { bit } else { 0 };
    i.prefix = flag(x.has_lock_prefix(), prefix::LOCK)
        | flag(x.has_rep_prefix(), prefix::REP)
        | flag(x.has_repne_prefix(), prefix::REPNE)
        | flag(key.code64(), prefix::CODE64)
        | flag(!key.stack32(), prefix::STACK16)
        | flag(!key.code64() && !key.flat_stack(), prefix::CHECKED_STACK);
    for n in 0..x.op_count().min(4) {
        let kind = x.op_kind(n);
        match kind {
            OpKind::Register => {
                let r = x.op_register(n);
                let slot = match n {
                    0 => &mut i.r0,
                    1 => &mut i.r1,
                    _ => &mut i.r2,
                };
                *slot = number(r);
                if i.w == 0 && n < 2 {
                    i.w = r.size() as u8;
                }
            }
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                i.imm = x.near_branch_target().wrapping_sub(x.next_ip());
                i.w = match kind {
                    OpKind::NearBranch16 => 2,
                    OpKind::NearBranch32 => 4,
                    _ => 8,
                };
            }
            OpKind::FarBranch16 => {
                i.imm = u64::from(x.far_branch_selector()) << 32 | u64::from(x.far_branch16());
                i.w = 2;
            }
            OpKind::FarBranch32 => {
                i.imm = u64::from(x.far_branch_selector()) << 32 | u64::from(x.far_branch32());
                i.w = 4;
            }
            OpKind::Immediate8_2nd => i.imm2 = x.immediate8_2nd(),
            k if is_immediate(k) => i.imm = x.immediate(n),
            _ => memory_operand(x, n, kind, key, &mut i),
        }
    }
    i
}

/// [`Insn::mem_op`] without a memory operand.
pub const NO_MEMORY: u8 = 0xFF;

fn memory_operand(x: &Instruction, n: u32, kind: OpKind, key: BlockKey, i: &mut Insn) {
    use OpKind::{
        Memory, MemoryESDI, MemoryESEDI, MemoryESRDI, MemorySegDI, MemorySegEDI, MemorySegESI, MemorySegRDI,
        MemorySegRSI, MemorySegSI,
    };
    if i.mem_op == NO_MEMORY {
        i.mem_op = n as u8;
    }
    i.prefix |= prefix::MEMORY;
    let size = x.memory_size().size() as u8;
    if n == 0 || i.w == 0 || x.is_string_instruction() {
        i.w = size;
    }
    i.asize = match kind {
        MemorySegSI | MemorySegDI | MemoryESDI => 2,
        MemorySegESI | MemorySegEDI | MemoryESEDI => 4,
        MemorySegRSI | MemorySegRDI | MemoryESRDI => 8,
        _ => address_size(x, key),
    };
    let mut segment = number(x.memory_segment());
    if key.code64() && usize::from(segment) < seg::FS {
        // 64-bit mode ignores such prefixes: what remains of segments is #SS instead of #GP off RSP and RBP.
        let stack = matches!(x.memory_base(), Register::RSP | Register::RBP | Register::ESP | Register::EBP);
        segment = if stack { seg::SS } else { seg::DS } as u8;
    }
    if kind == Memory {
        let base = x.memory_base();
        i.disp = x.memory_displacement64();
        match base {
            Register::None => {}
            Register::RIP | Register::EIP => {
                // Relative again, so that a block runs wherever it is mapped.
                i.disp = i.disp.wrapping_sub(x.next_ip());
                i.base = gpr::RIP as u8;
            }
            _ => i.base = number(base),
        }
        if x.memory_index() != Register::None {
            i.index = number(x.memory_index());
        }
        i.scale = x.memory_index_scale().trailing_zeros() as u8;
    }
    if x.segment_prefix() != Register::None {
        i.prefix |= prefix::OVERRIDE;
    }
    (i.seg, i.prefix) = key.segment_for(segment, i.prefix);
}

fn address_size(x: &Instruction, key: BlockKey) -> u8 {
    let of = |r: Register| (r != Register::None).then(|| r.size() as u8);
    let base = if x.memory_base() == Register::EIP { Some(4) } else { of(x.memory_base()) };
    let from_displacement = match x.memory_displ_size() {
        8 => Some(8),
        2 if !key.code64() => Some(2),
        4 if !key.code64() => Some(4),
        _ => None,
    };
    base.or_else(|| of(x.memory_index())).or(from_displacement).unwrap_or(key.code_size())
}

/// Condition number of Jcc, SETcc, CMOVcc, from the order of the manual's table.
fn condition(x: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match x.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        _ => 15,
    }
}

/// The operand size of instructions whose operands do not show it.
fn implied_width(code: Code) -> u8 {
    use Code::*;
    match code {
        Retnw | Retnw_imm16 | Retfw | Retfw_imm16 | Iretw | Pushfw | Popfw | Pushaw | Popaw
        | Enterw_imm16_imm8 | Leavew | Cbw | Cwd | Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS
        | Pushw_GS | Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS | Pushw_imm8 | Push_imm16 | Sysretd
        | Sysexitd => 2,
        Retnd | Retnd_imm16 | Retfd | Retfd_imm16 | Iretd | Pushfd | Popfd | Pushad | Popad
        | Enterd_imm16_imm8 | Leaved | Cwde | Cdq | Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS
        | Pushd_GS | Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS | Pushd_imm8 | Pushd_imm32 => 4,
        Retnq | Retnq_imm16 | Retfq | Retfq_imm16 | Iretq | Pushfq | Popfq | Enterq_imm16_imm8 | Leaveq
        | Cdqe | Cqo | Pushq_FS | Pushq_GS | Popq_FS | Popq_GS | Pushq_imm8 | Pushq_imm32 | Sysretq
        | Sysexitq => 8,
        _ => 0,
    }
}

/// Picks the handler, and adjusts operand fields to what it expects.
fn select(x: &Instruction, i: &mut Insn) -> Run {
    let implied = implied_width(x.code());
    if implied != 0 {
        i.w = implied;
    }
    if let Some(run) = integer(x, i) {
        return run;
    }
    if let Some(kernel) = bit_manipulation::kernel(x, i) {
        return K(kernel);
    }
    if let Some(f) = system_handler(x, i).or_else(|| bit_manipulation::handler(x, i)) {
        return H(f);
    }
    if let Some(f) = crate::fpu::handler(x, i).or_else(|| crate::simd::handler(x, i)) {
        return H(f);
    }
    H(misc::unimplemented)
}

/// General-purpose instructions that a program at any privilege level uses.
fn integer(x: &Instruction, i: &mut Insn) -> Option<Run> {
    use M::*;
    Some(match x.mnemonic() {
        Mov if is_special_register(x) => return None,
        Mov => K(Kernel::Mov),
        Add => K(Kernel::Add),
        Adc => K(Kernel::Adc),
        Sub => K(Kernel::Sub),
        Sbb => K(Kernel::Sbb),
        Cmp => K(Kernel::Cmp),
        Inc => K(Kernel::Inc),
        Dec => K(Kernel::Dec),
        Neg => K(Kernel::Neg),
        Not => K(Kernel::Not),
        And => K(Kernel::And),
        Or => K(Kernel::Or),
        Xor => K(Kernel::Xor),
        Test => K(Kernel::Test),
        Xadd => K(Kernel::Xadd),
        Cmpxchg => K(Kernel::Cmpxchg),
        Xchg => {
            if i.mem_op == 1 {
                // The same exchange with the operands the other way round.
                i.mem_op = 0;
                i.r1 = i.r0;
            }
            K(Kernel::Xchg)
        }
        Imul => match x.op_count() {
            1 => K(Kernel::ImulWide),
            2 => K(Kernel::Imul),
            _ => K(Kernel::ImulImmediate),
        },
        Mul => K(Kernel::Mul),
        Div => H(mul_div::div),
        Idiv => H(mul_div::idiv),
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => return Some(shift(x, i)),
        Shld => H(shift_double::shld),
        Shrd => H(shift_double::shrd),
        Bt | Bts | Btr | Btc => {
            if i.memory() && x.op1_kind() == OpKind::Register {
                H(bit_string::bit_in_memory)
            } else {
                match x.mnemonic() {
                    Bt => K(Kernel::Bt),
                    Bts => K(Kernel::Bts),
                    Btr => K(Kernel::Btr),
                    _ => K(Kernel::Btc),
                }
            }
        }
        Bsf => K(Kernel::Bsf),
        Bsr => K(Kernel::Bsr),
        Popcnt => K(Kernel::Popcnt),
        Movzx => {
            i.imm2 = source_size(x);
            i.w = x.op0_register().size() as u8;
            K(Kernel::Movzx)
        }
        Movsx | Movsxd => {
            i.imm2 = source_size(x);
            i.w = x.op0_register().size() as u8;
            K(Kernel::Movsx)
        }
        Lea => {
            i.w = x.op0_register().size() as u8;
            K(Kernel::Lea)
        }
        Bswap => K(Kernel::Bswap),
        Movbe => K(Kernel::Movbe),
        Push if !is_special_register(x) => {
            i.r1 = i.r0;
            // The one operand is the source.
            if i.memory() {
                i.mem_op = 1;
            }
            K(Kernel::Push)
        }
        Pop if is_special_register(x) => return None,
        Pop if i.memory() => H(stack::pop_memory),
        Pop => K(Kernel::Pop),
        Cbw | Cwde | Cdqe => K(Kernel::Convert),
        Cwd | Cdq | Cqo => K(Kernel::ConvertWide),
        Nop | Pause | Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchw | Prefetch | Endbr32
        | Endbr64 | Rdsspd | Rdsspq | Prefetchwt1 | Cldemote | Reservednop | Lfence | Mfence | Sfence => {
            i.mem_op = NO_MEMORY;
            i.w = 4;
            if matches!(x.mnemonic(), Mfence | Lfence | Sfence) { H(misc::fence) } else { K(Kernel::Nop) }
        }
        Jmp if matches!(x.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) => {
            K(Kernel::Jmp)
        }
        Call if matches!(
            x.op0_kind(),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        ) =>
        {
            K(Kernel::Call)
        }
        Jmp | Call if is_far(x) => return None,
        Jmp | Call => {
            if i.memory() {
                i.mem_op = 1;
            }
            i.r1 = i.r0;
            if x.mnemonic() == Jmp { K(Kernel::JmpIndirect) } else { K(Kernel::CallIndirect) }
        }
        Jcxz | Jecxz | Jrcxz | Loop => {
            i.asize = counter_size(x.code());
            if x.mnemonic() == Loop { K(Kernel::Loop) } else { K(Kernel::Jrcxz) }
        }
        Loope | Loopne => {
            i.asize = counter_size(x.code());
            H(stack::loop_conditional)
        }
        Ret => K(Kernel::Ret),
        Leave => K(Kernel::Leave),
        _ if x.is_jcc_short_or_near() => {
            i.imm2 = condition(x);
            K(Kernel::Jcc)
        }
        _ if (Code::Seto_rm8..=Code::Setg_rm8).contains(&x.code()) => {
            i.imm2 = condition(x);
            K(Kernel::Setcc)
        }
        _ if (Code::Cmovo_r16_rm16..=Code::Cmovg_r64_rm64).contains(&x.code()) => {
            i.imm2 = condition(x);
            i.w = x.op0_register().size() as u8;
            K(Kernel::Cmovcc)
        }
        _ => return None,
    })
}

fn shift(x: &Instruction, i: &mut Insn) -> Run {
    use M::*;
    let in_cl = x.op1_kind() == OpKind::Register;
    i.r1 = if in_cl { shift_rotate::COUNT_IN_CL } else { 0 };
    match x.mnemonic() {
        Shl | Sal => K(Kernel::Shl),
        Shr => K(Kernel::Shr),
        Sar => K(Kernel::Sar),
        Rol => K(Kernel::Rol),
        Ror => K(Kernel::Ror),
        Rcl => H(shift_double::rcl),
        _ => H(shift_double::rcr),
    }
}

/// MOV, PUSH, POP with a segment, control or debug register.
fn is_special_register(x: &Instruction) -> bool {
    (0..x.op_count()).any(|n| {
        x.op_kind(n) == OpKind::Register && {
            let r = x.op_register(n);
            r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr()
        }
    })
}

fn is_far(x: &Instruction) -> bool {
    x.is_jmp_far() || x.is_jmp_far_indirect() || x.is_call_far() || x.is_call_far_indirect()
}

fn source_size(x: &Instruction) -> u8 {
    match x.op1_kind() {
        OpKind::Register => x.op1_register().size() as u8,
        _ => x.memory_size().size() as u8,
    }
}

/// Width of the count register of LOOP and JrCXZ: the address size.
fn counter_size(code: Code) -> u8 {
    use Code::*;
    match code {
        Jcxz_rel8_16 | Jcxz_rel8_32 | Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX
        | Loope_rel8_32_CX | Loopne_rel8_16_CX | Loopne_rel8_32_CX => 2,
        Jrcxz_rel8_16 | Jrcxz_rel8_64 | Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX
        | Loope_rel8_64_RCX | Loopne_rel8_16_RCX | Loopne_rel8_64_RCX => 8,
        _ => 4,
    }
}

/// Whether an instruction ends a block: control transfers, and whatever surely changes the mode or the mapping. (What does
/// so now and then asks to leave the block when it does.)
pub fn ends_block(x: &Instruction) -> bool {
    use M::*;
    use iced_x86::FlowControl as F;
    x.flow_control() != F::Next
        || matches!(
            x.mnemonic(),
            Hlt | Mwait
                | Wrmsr
                | Lmsw
                | Clts
                | Invlpg
                | Invpcid
                | Invd
                | Wbinvd
                | Lgdt
                | Lidt
                | Lldt
                | Ltr
                | In
                | Out
                | Insb
                | Insw
                | Insd
                | Outsb
                | Outsw
                | Outsd
                | Xsetbv
                | Rsm
                | Lds
                | Les
                | Lss
                | Lfs
                | Lgs
        )
        || matches!(x.mnemonic(), Mov | Pop) && x.op0_kind() == OpKind::Register && {
            let r = x.op0_register();
            r.is_segment_register() || r.is_cr() || r.is_dr()
        }
}
