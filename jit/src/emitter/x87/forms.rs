//! Which x87 instructions run as themselves on the host, how they are encoded, and what they do to the stack.
//!
//! All that an encoding needs is in iced's tables; what is taken from there once, for each [`Code`], is a [`Form`].

use iced_x86::{Code, Mnemonic as M, OpCodeOperandKind};
use std::sync::LazyLock;
use trimaran_cpu::blocks::BlockKey;
use trimaran_cpu::insn::{Insn, prefix};
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::ops::Cond;

/// The register that an instruction changes besides a push, by its place before.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Changes {
    Nothing,
    Top,
    /// ST(1).
    Second,
    /// The first operand, a register.
    Operand,
    /// ST(0) and the second operand change places.
    Exchange,
}

/// What an instruction does; conditions are bits of the status word.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Action {
    /// The host's instruction does it all, and sets C1.
    Same,
    /// The same, and ZF, PF, CF.
    CompareToFlags,
    /// FCMOVcc.
    Move(Cond),
    /// FNSTSW.
    StoreStatus,
    StoreControl,
    LoadControl,
    /// FINCSTP, FDECSTP: what is added to TOP.
    Rotate(u8),
    /// FFREE.
    Free,
    /// FNOP.
    Nothing,
    /// WAIT.
    Wait,
}

#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub action: Action,
    /// The first byte of the opcode.
    pub escape: u8,
    /// Without memory operand: the second byte, but for the register's number. Else its place in the group.
    pub second: u8,
    /// The second byte has a register's number.
    pub indexed: bool,
    /// Bytes of the memory operand, or 0.
    pub size: u8,
    /// The memory operand is written.
    pub store: bool,
    /// ST(0) to this, exclusively, are sources whatever the operands.
    pub sources: u8,
    pub changes: Changes,
    pub push: bool,
    pub pops: u8,
}

impl Form {
    /// The register operand other than ST(0).
    pub fn operand(&self, i: &Insn) -> u8 {
        if self.indexed { (i.r0 | i.r1) & 7 } else { 0 }
    }
    /// ST(0) to this, exclusively, must not be empty.
    pub fn needs(&self, i: &Insn) -> u8 {
        let operand = if self.indexed && self.action != Action::Free { self.operand(i) + 1 } else { 0 };
        operand.max(self.sources)
    }
    /// Whether FIP names it afterwards.
    pub fn noted(&self) -> bool {
        use Action::*;
        !matches!(self.action, StoreStatus | StoreControl | LoadControl | Wait)
    }
}

/// By `Code`.
static FORMS: LazyLock<Vec<Option<Form>>> = LazyLock::new(|| Code::values().map(form).collect());

/// How an instruction runs on the host; None: not by these means.
pub fn native(i: &Insn, key: BlockKey) -> Option<&'static Form> {
    // The key's bit says that CR0.EM = CR0.TS = 0.
    let checked = i.memory() && i.has(prefix::CHECKED);
    if i.kernel != Kernel::Helper || !key.sse() || checked || i.has(prefix::LOCK) {
        return None;
    }
    let form = FORMS.get(i.code as usize)?.as_ref()?;
    // FLD ST(7) always finds the stack full, or its operand missing. A result that is popped at once is rare.
    let full = form.push && form.operand(i) == 7;
    let lost = form.changes == Changes::Operand && form.pops != 0 && form.operand(i) == 0;
    (!full && (!lost || i.code.mnemonic() == M::Fstp)).then_some(form)
}

/// Where TOP most likely is after a helper.
pub fn helper_moves_top(i: &Insn, top: u8) -> u8 {
    let moved = match i.code.mnemonic() {
        M::Fsincos | M::Fptan | M::Fxtract | M::Fbld => 7,
        M::Fld | M::Fild | M::Fld1 | M::Fldz | M::Fldpi | M::Fldl2e | M::Fldl2t | M::Fldlg2 | M::Fldln2 => 7,
        M::Fbstp | M::Ffreep | M::Fpatan | M::Fyl2x | M::Fyl2xp1 => 1,
        M::Fninit | M::Finit | M::Fnsave | M::Fsave | M::Emms => return 0,
        _ => 0,
    };
    (top + moved) & 7
}

fn form(code: Code) -> Option<Form> {
    use Action::*;
    let op = code.op_code();
    if !op.is_instruction() {
        return None;
    }
    let size = op.memory_size().size() as u8;
    let memory = size != 0;
    let (escape, second) = match op.op_code() {
        short @ 0xD8..=0xDF if memory => (short as u8, op.group_index() as u8),
        long @ 0xD800..=0xDFFF => ((long >> 8) as u8, long as u8),
        _ if code == Code::Wait => (0, 0),
        _ => return None,
    };
    let indexed = op.op_kinds().contains(&OpCodeOperandKind::sti_opcode);
    let changes_top = if memory { Changes::Top } else { Changes::Operand };
    let (mut action, mut changes, mut push, mut pops, mut sources) = (Same, Changes::Nothing, false, 0, 1);
    match code.mnemonic() {
        M::Fadd | M::Fsub | M::Fsubr | M::Fmul | M::Fdiv | M::Fdivr => changes = changes_top,
        M::Fiadd | M::Fisub | M::Fisubr | M::Fimul | M::Fidiv | M::Fidivr => changes = Changes::Top,
        M::Faddp | M::Fsubp | M::Fsubrp | M::Fmulp | M::Fdivp | M::Fdivrp => {
            (changes, pops) = (Changes::Operand, 1);
        }
        M::Fld | M::Fild | M::Fld1 | M::Fldz | M::Fldpi | M::Fldl2e | M::Fldl2t | M::Fldlg2 | M::Fldln2 => {
            (push, sources) = (true, 0);
        }
        M::Fst if memory => {}
        M::Fstp if memory => pops = 1,
        M::Fst => changes = Changes::Operand,
        M::Fstp => (changes, pops) = (Changes::Operand, 1),
        M::Fist => {}
        M::Fistp => pops = 1,
        M::Fisttp if std::is_x86_feature_detected!("sse3") => pops = 1,
        M::Fchs | M::Fabs | M::Fsqrt | M::Frndint | M::F2xm1 => changes = Changes::Top,
        M::Fscale => (changes, sources) = (Changes::Top, 2),
        M::Fpatan | M::Fyl2x | M::Fyl2xp1 => (changes, sources, pops) = (Changes::Second, 2, 1),
        M::Fxch => changes = Changes::Exchange,
        M::Fcom | M::Fucom | M::Ficom | M::Ftst | M::Fxam => {}
        M::Fcomp | M::Fucomp | M::Ficomp => pops = 1,
        M::Fcompp | M::Fucompp => (sources, pops) = (2, 2),
        M::Fcomi | M::Fucomi => action = CompareToFlags,
        M::Fcomip | M::Fucomip => (action, pops) = (CompareToFlags, 1),
        M::Fcmovb => (action, changes) = (Move(Cond::B), Changes::Top),
        M::Fcmovnb => (action, changes) = (Move(Cond::Ae), Changes::Top),
        M::Fcmove => (action, changes) = (Move(Cond::E), Changes::Top),
        M::Fcmovne => (action, changes) = (Move(Cond::Ne), Changes::Top),
        M::Fcmovbe => (action, changes) = (Move(Cond::Be), Changes::Top),
        M::Fcmovnbe => (action, changes) = (Move(Cond::A), Changes::Top),
        M::Fcmovu => (action, changes) = (Move(Cond::P), Changes::Top),
        M::Fcmovnu => (action, changes) = (Move(Cond::Np), Changes::Top),
        M::Fnstsw => (action, sources) = (StoreStatus, 0),
        M::Fnstcw => (action, sources) = (StoreControl, 0),
        M::Fldcw => (action, sources) = (LoadControl, 0),
        M::Fincstp => (action, sources) = (Rotate(1), 0),
        M::Fdecstp => (action, sources) = (Rotate(7), 0),
        M::Ffree => (action, sources) = (Free, 0),
        M::Fnop => (action, sources) = (Nothing, 0),
        M::Wait => (action, sources) = (Wait, 0),
        _ => return None,
    }
    let store = matches!(code.mnemonic(), M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp)
        || matches!(action, StoreStatus | StoreControl);
    let store = store && memory;
    Some(Form { action, escape, second, indexed, size, store, sources, changes, push, pops })
}
