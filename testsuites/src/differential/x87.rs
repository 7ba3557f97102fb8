//! Runs of x87 instructions as programs have them: registers are pushed before they are used, mostly, under all control
//! words; what waits, overflows, or is looked at in between comes now and then.

use super::builder::Builder;
use super::forms::jcc;
use super::kernel::at;
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use rand::Rng;

const LOADS: &[(Code, u64)] = &[
    (Code::Fld_m32fp, 4),
    (Code::Fld_m64fp, 8),
    (Code::Fld_m80fp, 10),
    (Code::Fild_m16int, 2),
    (Code::Fild_m32int, 4),
    (Code::Fild_m64int, 8),
];
const STORES: &[(Code, u64)] =
    &[(Code::Fst_m32fp, 4), (Code::Fst_m64fp, 8), (Code::Fist_m16int, 2), (Code::Fist_m32int, 4)];
const POPPING_STORES: &[(Code, u64)] = &[
    (Code::Fstp_m32fp, 4),
    (Code::Fstp_m64fp, 8),
    (Code::Fstp_m80fp, 10),
    (Code::Fistp_m16int, 2),
    (Code::Fistp_m32int, 4),
    (Code::Fistp_m64int, 8),
    (Code::Fisttp_m16int, 2),
    (Code::Fisttp_m32int, 4),
    (Code::Fisttp_m64int, 8),
];
const WITH_MEMORY: &[(Code, u64)] = &[
    (Code::Fadd_m32fp, 4),
    (Code::Fadd_m64fp, 8),
    (Code::Fmul_m32fp, 4),
    (Code::Fmul_m64fp, 8),
    (Code::Fsub_m64fp, 8),
    (Code::Fsubr_m32fp, 4),
    (Code::Fdiv_m32fp, 4),
    (Code::Fdivr_m64fp, 8),
    (Code::Fcom_m32fp, 4),
    (Code::Fcom_m64fp, 8),
    (Code::Fiadd_m16int, 2),
    (Code::Fimul_m32int, 4),
    (Code::Fidivr_m32int, 4),
    (Code::Fisub_m16int, 2),
    (Code::Ficom_m16int, 2),
];
const CONSTANTS: &[Code] =
    &[Code::Fld1, Code::Fldz, Code::Fldpi, Code::Fldl2t, Code::Fldl2e, Code::Fldlg2, Code::Fldln2];
const OF_TOP: &[Code] = &[
    Code::Fchs,
    Code::Fabs,
    Code::Fsqrt,
    Code::Frndint,
    Code::F2xm1,
    Code::Ftst,
    Code::Fxam,
    Code::Fsin,
    Code::Fnop,
    Code::Wait,
];
const TO_TOP: &[Code] = &[
    Code::Fadd_st0_sti,
    Code::Fmul_st0_sti,
    Code::Fsub_st0_sti,
    Code::Fsubr_st0_sti,
    Code::Fdiv_st0_sti,
    Code::Fdivr_st0_sti,
    Code::Fxch_st0_sti,
    Code::Fcom_st0_sti,
    Code::Fucom_st0_sti,
    Code::Fcomi_st0_sti,
    Code::Fucomi_st0_sti,
    Code::Fcmovb_st0_sti,
    Code::Fcmovne_st0_sti,
    Code::Fcmovbe_st0_sti,
    Code::Fcmovnu_st0_sti,
];
const TO_REGISTER: &[Code] = &[
    Code::Fadd_sti_st0,
    Code::Fmul_sti_st0,
    Code::Fsub_sti_st0,
    Code::Fsubr_sti_st0,
    Code::Fdiv_sti_st0,
    Code::Fdivr_sti_st0,
];
const POPPING: &[Code] = &[
    Code::Faddp_sti_st0,
    Code::Fmulp_sti_st0,
    Code::Fsubp_sti_st0,
    Code::Fsubrp_sti_st0,
    Code::Fdivp_sti_st0,
    Code::Fdivrp_sti_st0,
];
const POPPING_COMPARISONS: &[Code] =
    &[Code::Fcomp_st0_sti, Code::Fucomp_st0_sti, Code::Fcomip_st0_sti, Code::Fucomip_st0_sti];

fn st(n: u32) -> Register {
    Register::try_from(Register::ST0 as usize + n as usize).expect("a register of the stack")
}

impl Builder<'_> {
    fn one(&mut self, codes: &[Code]) -> Code {
        codes[self.rng.random_range(0..codes.len())]
    }

    fn with_operand(&mut self, forms: &[(Code, u64)], write: bool) {
        let (code, size) = forms[self.rng.random_range(0..forms.len())];
        let address = self.o.target(self.rng, size, write);
        let m = self.o.memory(self.rng, &mut self.a, address);
        self.a.put(Instruction::with1(code, m));
    }

    fn plain(&mut self, code: Code) {
        self.a.put(Ok(Instruction::with(code)));
    }

    /// FLDCW: any rounding and precision; exceptions mostly masked.
    fn control_word(&mut self) {
        let masks = match self.rng.random_range(0..8) {
            0 => self.rng.random_range(0..0x40u32),
            1 => 0x3F ^ 1 << self.rng.random_range(0..6),
            _ => 0x3F,
        };
        let word = masks | self.rng.random_range(0..16u32) << 8;
        let size = if self.a.bits == 64 { 8 } else { 4 };
        let cell = at::COUNTERS as i64 + 0xC0 * 8;
        let m = MemoryOperand::new(Register::None, Register::None, 1, cell, size, false, Register::None);
        self.a.put(Instruction::with2(Code::Mov_rm16_imm16, m, word));
        self.a.put(Instruction::with1(Code::Fldcw_m2byte, m));
    }

    /// What looks at the whole unit, or changes it.
    fn unit(&mut self) {
        match self.rng.random_range(0..14) {
            0 => self.plain(Code::Fnclex),
            1 => self.with_operand(&[(Code::Fnstenv_m28byte, 28)], true),
            2 => self.with_operand(&[(Code::Fxsave_m512byte, 16)], true),
            3 => self.plain(Code::Fincstp),
            4 => self.plain(Code::Fdecstp),
            5 => {
                let n = self.rng.random_range(0..8);
                self.a.put(Instruction::with1(Code::Ffree_sti, st(n)));
            }
            6 | 7 => self.control_word(),
            8 => self.with_operand(&[(Code::Fnstcw_m2byte, 2)], true),
            9 => self.with_operand(&[(Code::Fnstsw_m2byte, 2)], true),
            10 => self.with_operand(&[(Code::Fldcw_m2byte, 2)], false),
            11 => self.with_operand(&[(Code::Fnsave_m108byte, 108)], true),
            12 => self.with_operand(&[(Code::Frstor_m108byte, 108), (Code::Fldenv_m28byte, 28)], false),
            _ => self.plain(Code::Emms),
        }
    }

    /// A run of x87 instructions that mostly leaves the stack as it was.
    pub fn x87(&mut self) {
        if self.rng.random_ratio(1, 6) {
            self.plain(Code::Fninit);
            self.control_word();
        }
        // As far as is known here.
        let mut depth = 0u32;
        for _ in 0..self.rng.random_range(1..25) {
            let blind = self.rng.random_ratio(1, 60);
            let n = if blind { self.rng.random_range(0..8) } else { self.rng.random_range(0..depth.max(1)) };
            match self.rng.random_range(0..34) {
                0..6 if depth < 6 || blind => {
                    self.with_operand(LOADS, false);
                    depth += 1;
                }
                6 if depth < 6 || blind => {
                    let code = self.one(CONSTANTS);
                    self.plain(code);
                    depth += 1;
                }
                _ if depth == 0 && !blind => {}
                7 if depth < 6 || blind => {
                    self.a.put(Instruction::with1(Code::Fld_sti, st(n)));
                    depth += 1;
                }
                8 | 9 => self.with_operand(STORES, true),
                10..13 => {
                    self.with_operand(POPPING_STORES, true);
                    depth = depth.saturating_sub(1);
                }
                13..17 => self.with_operand(WITH_MEMORY, false),
                17..20 => {
                    let code = self.one(OF_TOP);
                    self.plain(code);
                }
                20..24 => {
                    let code = self.one(TO_TOP);
                    self.a.put(Instruction::with2(code, st(0), st(n)));
                }
                24 | 25 => {
                    let code = self.one(TO_REGISTER);
                    self.a.put(Instruction::with2(code, st(n), st(0)));
                }
                26 | 27 if depth > 1 => {
                    let code = self.one(POPPING);
                    self.a.put(Instruction::with2(code, st(n), st(0)));
                    depth -= 1;
                }
                28 => {
                    let code = self.one(POPPING_COMPARISONS);
                    self.a.put(Instruction::with2(code, st(0), st(n)));
                    depth = depth.saturating_sub(1);
                }
                29 => {
                    let code = self.one(&[Code::Fst_sti, Code::Fstp_sti]);
                    self.a.put(Instruction::with1(code, st(n)));
                    depth -= u32::from(code == Code::Fstp_sti && depth > 0);
                }
                30 if depth > 1 => {
                    let code =
                        self.one(&[Code::Fscale, Code::Fpatan, Code::Fyl2x, Code::Fprem, Code::Fcompp]);
                    self.plain(code);
                    depth -= match code {
                        Code::Fpatan | Code::Fyl2x => 1,
                        Code::Fcompp => 2,
                        _ => 0,
                    };
                }
                31 => {
                    self.a.put(Instruction::with1(Code::Fnstsw_AX, Register::AX));
                    self.o.forget();
                }
                32 => {
                    // Over one instruction of the unit, so that what is known of the stack holds on both ways.
                    let (end, number) = (self.a.label(), self.rng.random_range(0..16));
                    let cc = jcc(number, self.a.bits);
                    self.a.branch(cc, end);
                    self.with_operand(WITH_MEMORY, false);
                    self.a.bind(end);
                    self.o.forget();
                }
                33 if self.rng.random_ratio(1, 4) => self.unit(),
                _ => {}
            }
        }
        for _ in 0..depth {
            if self.rng.random_ratio(29, 30) {
                self.with_operand(POPPING_STORES, true);
            }
        }
    }
}
