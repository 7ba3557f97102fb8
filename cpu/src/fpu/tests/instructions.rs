//! Instructions through a small machine: stack, tags, exceptions, environments.
#![allow(clippy::redundant_closure_for_method_calls)]

use crate::bare::Bare;
use crate::blocks::BlockKey;
use crate::decode;
use crate::fault::vector;
use crate::fpu::unit::status::*;
use crate::fpu::unit::{INDEFINITE, ONE};
use crate::model::Model;
use crate::ram::Ram;
use crate::shared::CodeFence;
use crate::state::{F80, RFlags, attr, cr0, gpr, seg};
use crate::{Vcpu, VcpuConfig};
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

const DATA: u64 = 0x2000;

struct Machine {
    v: Vcpu,
    bus: Arc<Bare>,
    bits: u32,
}

impl Machine {
    /// After FNINIT, with NE: real-address mode (16) or flat protected mode (32).
    fn new(bits: u32) -> Machine {
        let bus = Arc::new(Bare::new(1 << 16));
        let mut v = Vcpu::new(VcpuConfig {
            id: 0,
            model: Arc::new(Model::default()),
            ram: Arc::new(Ram::anonymous(1 << 16)),
            bus: bus.clone(),
            fence: CodeFence::new(1),
        });
        v.state.cr0 = cr0::ET | cr0::NE;
        v.state.gpr[gpr::RIP] = 0x1000;
        if bits == 32 {
            v.state.cr0 |= cr0::PE;
            let code = &mut v.state.seg[seg::CS];
            (code.selector, code.base, code.limit) = (0x08, 0, !0);
            code.attributes |= attr::DB | attr::G;
            (v.state.seg[seg::DS].selector, v.state.seg[seg::DS].limit) = (0x10, !0);
        }
        v.state_loaded();
        let mut m = Machine { v, bus, bits };
        m.ok(|a| a.fninit());
        m
    }

    /// Assembles one instruction and runs it. Err: the vector of its exception.
    fn step(&mut self, f: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Result<(), u8> {
        let mut a = CodeAssembler::new(self.bits).unwrap();
        f(&mut a).unwrap();
        let bytes = a.assemble(0x1000).unwrap();
        self.bytes(&bytes)
    }
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), u8> {
        let mut decoder = Decoder::new(self.bits, bytes, DecoderOptions::NONE);
        while decoder.can_decode() {
            let x = decoder.decode();
            let i = decode::lower(&x, BlockKey::of(&self.v.state), &self.v.model.clone().features);
            let rip = self.v.state.gpr[gpr::RIP];
            self.v.state.gpr[gpr::RIP] = rip + x.len() as u64;
            if (i.run)(&mut self.v, &i).is_err() {
                self.v.state.gpr[gpr::RIP] = rip;
                return Err(self.v.fault.vector);
            }
        }
        Ok(())
    }
    #[track_caller]
    fn ok(&mut self, f: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
        assert_eq!(self.step(f), Ok(()));
    }
    fn control(&mut self, control: u16) {
        self.poke(DATA + 0x800, &control.to_le_bytes());
        self.ok(|a| a.fldcw(word_ptr(DATA + 0x800)));
    }
    fn poke(&self, address: u64, bytes: &[u8]) {
        assert!(self.v.ram.write(address, bytes));
    }
    fn peek<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.v.ram.read(address, &mut bytes));
        bytes
    }
    fn flags(&self) -> u16 {
        self.v.state.x87.status & !(7 << 11)
    }
    fn st(&self, n: u8) -> F80 {
        self.v.state.x87.st(n)
    }
    /// FLD of a double.
    fn push(&mut self, value: f64) {
        self.poke(DATA + 0x900, &value.to_le_bytes());
        self.ok(|a| a.fld(qword_ptr(DATA + 0x900)));
    }
    /// FSTP of a double.
    fn pop(&mut self) -> f64 {
        self.ok(|a| a.fstp(qword_ptr(DATA + 0x900)));
        f64::from_le_bytes(self.peek(DATA + 0x900))
    }
}

#[test]
fn operand_order() {
    let mut m = Machine::new(32);
    type Op = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;
    // ST(1) = 10, ST(0) = 4; what is on top after the operation.
    let cases: [(Op, f64); 10] = [
        (|a| a.fsub_2(st0, st1), -6.0),
        (|a| a.fsubr_2(st0, st1), 6.0),
        (|a| a.fsubp(st1, st0), 6.0),
        (|a| a.fsubrp(st1, st0), -6.0),
        (|a| a.fdiv_2(st0, st1), 0.4),
        (|a| a.fdivr_2(st0, st1), 2.5),
        (|a| a.fdivp(st1, st0), 2.5),
        (|a| a.fdivrp(st1, st0), 0.4),
        (|a| a.faddp(st1, st0), 14.0),
        (|a| a.fscale(), 4096.0),
    ];
    for (n, (op, expected)) in cases.into_iter().enumerate() {
        m.ok(|a| a.fninit());
        m.push(10.0);
        m.push(4.0);
        m.ok(op);
        assert_eq!(m.pop(), expected, "case {n}");
    }
}

#[test]
fn memory_operands_and_integers() {
    let mut m = Machine::new(32);
    m.poke(DATA, &(-7i16).to_le_bytes());
    m.poke(DATA + 8, &2.5f32.to_le_bytes());
    m.ok(|a| a.fild(word_ptr(DATA)));
    m.ok(|a| a.fmul(dword_ptr(DATA + 8)));
    m.ok(|a| a.fist(dword_ptr(DATA + 16)));
    assert_eq!(i32::from_le_bytes(m.peek(DATA + 16)), -18);
    assert_eq!(m.flags(), PE | C1);
    m.ok(|a| a.fisttp(qword_ptr(DATA + 16)));
    assert_eq!(i64::from_le_bytes(m.peek(DATA + 16)), -17);
    assert_eq!(m.flags(), PE);
    assert_eq!(m.v.state.x87.valid, 0);
}

#[test]
fn stack_underflow() {
    let mut m = Machine::new(32);
    m.ok(|a| a.fadd_2(st0, st1));
    assert_eq!((m.flags(), m.st(0)), (IE | SF, INDEFINITE));
    m.ok(|a| a.fninit());
    m.control(0x37E);
    m.ok(|a| a.fsqrt());
    assert_eq!((m.flags(), m.v.state.x87.valid), (IE | SF | ES | B, 0));
    assert_eq!(m.step(|a| a.fld1()), Err(vector::MF));
    m.ok(|a| a.fnclex());
    m.ok(|a| a.fld1());
    assert_eq!(m.st(0), ONE);
}

#[test]
fn stack_overflow() {
    let mut m = Machine::new(32);
    for _ in 0..8 {
        m.ok(|a| a.fld1());
    }
    assert_eq!(m.flags(), 0);
    let top = m.v.state.x87.top();
    m.ok(|a| a.fldz());
    assert_eq!((m.flags(), m.st(0), m.v.state.x87.top()), (IE | SF | C1, INDEFINITE, (top + 7) & 7));
    m.ok(|a| a.fnclex());
    m.control(0x37E);
    m.ok(|a| a.fldz());
    assert_eq!((m.flags(), m.v.state.x87.top()), (IE | SF | C1 | ES | B, (top + 7) & 7));
}

#[test]
fn exceptions_wait() {
    let mut m = Machine::new(32);
    m.control(0x37B);
    m.push(0.0);
    m.push(1.0);
    m.ok(|a| a.fdiv_2(st0, st1));
    assert_eq!((m.flags(), m.st(0)), (ZE | ES | B, ONE));
    assert_eq!(m.v.state.x87.instruction_pointer, m.v.state.rip() - 2);
    assert_eq!(m.step(|a| a.wait()), Err(vector::MF));
    m.ok(|a| a.fnstsw(ax));
    assert_eq!(m.v.state.gpr[gpr::RAX] as u16, m.v.state.x87.status);
    // Not NE: the interrupt is raised, the instruction runs.
    m.v.state.cr0 &= !cr0::NE;
    m.ok(|a| a.fchs());
    assert_eq!((m.bus.x87_errors.load(SeqCst), m.st(0)), (1, ONE.with_sign(true)));
    m.ok(|a| a.fnclex());
    m.ok(|a| a.wait());
    assert_eq!(m.bus.x87_errors.load(SeqCst), 1);
}

#[test]
fn device_not_available() {
    let mut m = Machine::new(32);
    m.v.state.cr0 |= cr0::TS;
    assert_eq!(m.step(|a| a.fld1()), Err(vector::NM));
    assert_eq!(m.step(|a| a.fninit()), Err(vector::NM));
    m.ok(|a| a.wait());
    m.v.state.cr0 |= cr0::MP;
    assert_eq!(m.step(|a| a.wait()), Err(vector::NM));
}

#[test]
fn unmasked_overflow() {
    let mut m = Machine::new(32);
    m.control(0x377);
    m.push(2.0);
    m.v.state.x87.set_st(0, F80 { sign_exponent: 0x7FFE, ..ONE });
    m.ok(|a| a.fadd_2(st0, st0));
    // The exponent less 24576.
    assert_eq!((m.flags(), m.st(0).sign_exponent), (OE | ES | B, 0x7FFF - 24576));
    m.ok(|a| a.fnclex());
    m.v.state.x87.set_st(0, F80 { sign_exponent: 0x7FFE, ..ONE });
    m.poke(DATA, &[0xAA; 8]);
    m.ok(|a| a.fstp(qword_ptr(DATA)));
    assert_eq!((m.peek(DATA), m.v.state.x87.empty(0)), ([0xAA; 8], false));
    assert!(m.flags() & OE != 0);
}

#[test]
fn conditional_move_and_compare() {
    let mut m = Machine::new(32);
    m.push(2.0);
    m.push(1.0);
    m.ok(|a| a.fcomi(st0, st1));
    assert_eq!(m.v.rflags() & RFlags::STATUS, RFlags::CF);
    m.ok(|a| a.fcmove(st0, st1));
    assert_eq!(m.st(0), ONE);
    m.ok(|a| a.fcmovb(st0, st1));
    assert_eq!(m.st(0), m.st(1));
    m.ok(|a| a.fcompp());
    assert_eq!((m.flags(), m.v.state.x87.valid), (C3, 0));
    m.ok(|a| a.fucomip(st0, st1));
    assert_eq!(m.v.rflags() & RFlags::STATUS, RFlags::CF | RFlags::PF | RFlags::ZF);
    assert_eq!(m.flags() & (IE | SF), IE | SF);
}

#[test]
fn packed_decimal() {
    let mut m = Machine::new(32);
    m.push(-1_234_567.5);
    m.ok(|a| a.fbstp(tbyte_ptr(DATA)));
    assert_eq!(m.peek(DATA), [0x68, 0x45, 0x23, 1, 0, 0, 0, 0, 0, 0x80]);
    assert_eq!(m.flags(), PE | C1);
    m.ok(|a| a.fbld(tbyte_ptr(DATA)));
    assert_eq!(m.pop(), -1_234_568.0);
    m.push(1e18);
    m.ok(|a| a.fbstp(tbyte_ptr(DATA)));
    assert_eq!(m.peek(DATA), [0, 0, 0, 0, 0, 0, 0, 0xC0, 0xFF, 0xFF]);
    assert!(m.flags() & IE != 0);
}

#[test]
fn classes() {
    let mut m = Machine::new(32);
    let cases = [
        (F80::default(), C3),
        (ONE.with_sign(true), C2 | C1),
        (INDEFINITE, C0 | C1),
        (F80 { sign_exponent: 0x7FFF, ..ONE }, C2 | C0),
        (F80 { significand: 1, sign_exponent: 0 }, C2 | C3),
        (F80 { significand: 1, sign_exponent: 5 }, 0),
    ];
    m.ok(|a| a.fxam());
    assert_eq!(m.flags(), C3 | C0);
    for (value, expected) in cases {
        m.v.state.x87.set_st(0, value);
        m.ok(|a| a.fxam());
        assert_eq!(m.flags(), expected, "{value:x?}");
    }
}

#[test]
fn tags() {
    let mut m = Machine::new(32);
    m.ok(|a| a.fld1());
    m.ok(|a| a.fldz());
    m.v.state.x87.push(INDEFINITE);
    assert_eq!(m.v.state.x87.full_tags(), 0b00_01_10_11_11_11_11_11);
    m.ok(|a| a.ffree(st1));
    assert_eq!(m.v.state.x87.full_tags(), 0b00_11_10_11_11_11_11_11);
    m.ok(|a| a.fincstp());
    m.ok(|a| a.fdecstp());
    m.ok(|a| a.fdecstp());
    assert_eq!((m.v.state.x87.top(), m.v.state.x87.valid), (4, 0xA0));
}

#[test]
fn environment_protected_32() {
    let mut m = Machine::new(32);
    m.push(1.0);
    let ip = (m.v.state.rip() - 6) as u32;
    m.control(0x340);
    // FNSTENV [DATA], which the assembler knows by size only.
    assert_eq!(m.bytes(&[0xD9, 0x35, 0, 0x20, 0, 0]), Ok(()));
    let image: [u8; 28] = m.peek(DATA);
    let fields: [u32; 7] =
        std::array::from_fn(|n| u32::from_le_bytes(image[n * 4..][..4].try_into().unwrap()));
    let dp = (DATA + 0x900) as u32;
    assert_eq!(fields, [0xFFFF_0340, 0xFFFF_3800, 0xFFFF_3FFF, ip, 0x08, dp, 0xFFFF_0010]);
    assert_eq!(m.v.state.x87.control, 0x37F);
    let before = m.v.state.x87.clone();
    m.ok(|a| a.fninit());
    assert_eq!(m.bytes(&[0xD9, 0x25, 0, 0x20, 0, 0]), Ok(()));
    let mut expected = before;
    expected.control = 0x340;
    assert_eq!(m.v.state.x87, expected);
}

#[test]
fn environment_real() {
    let mut m = Machine::new(16);
    m.push(1.0);
    // CS is F000, the operand 0000:2900.
    let ip = 0xF_0000 + m.v.state.rip() - 4;
    // FNSTENV [2000], 16-bit.
    assert_eq!(m.bytes(&[0xD9, 0x36, 0, 0x20]), Ok(()));
    let image: [u8; 14] = m.peek(DATA);
    let fields: [u16; 7] = std::array::from_fn(|n| u16::from_le_bytes([image[n * 2], image[n * 2 + 1]]));
    assert_eq!(fields, [0x37F, 0x3800, 0x3FFF, ip as u16, 0xF000, 0x2900, 0]);
    // 32-bit.
    assert_eq!(m.bytes(&[0x66, 0xD9, 0x36, 0, 0x20]), Ok(()));
    let image: [u8; 28] = m.peek(DATA);
    let fields: [u32; 7] =
        std::array::from_fn(|n| u32::from_le_bytes(image[n * 4..][..4].try_into().unwrap()));
    assert_eq!(fields[3..], [ip as u32 & 0xFFFF, 0xF000, 0x2900, 0]);
    m.ok(|a| a.fninit());
    assert_eq!(m.bytes(&[0x66, 0xD9, 0x26, 0, 0x20]), Ok(()));
    assert_eq!((m.v.state.x87.instruction_pointer, m.v.state.x87.valid), (ip, 0x80));
}

#[test]
fn save_and_restore() {
    for (bits, save, restore) in [
        (32, &[0xDD, 0x35, 0, 0x20, 0, 0][..], &[0xDD, 0x25, 0, 0x20, 0, 0][..]),
        (32, &[0x66, 0xDD, 0x35, 0, 0x20, 0, 0], &[0x66, 0xDD, 0x25, 0, 0x20, 0, 0]),
        (16, &[0xDD, 0x36, 0, 0x20], &[0xDD, 0x26, 0, 0x20]),
        (16, &[0x66, 0xDD, 0x36, 0, 0x20], &[0x66, 0xDD, 0x26, 0, 0x20]),
    ] {
        let mut m = Machine::new(bits);
        for n in 0..5 {
            m.push(f64::from(n) * 1.25);
        }
        let before = m.v.state.x87.clone();
        assert_eq!(m.bytes(save), Ok(()));
        assert_eq!((m.v.state.x87.valid, m.v.state.x87.control), (0, 0x37F));
        m.v.state.x87.registers = [INDEFINITE; 8];
        assert_eq!(m.bytes(restore), Ok(()));
        let after = &m.v.state.x87;
        assert_eq!(
            (after.registers, after.valid, after.status),
            (before.registers, before.valid, before.status)
        );
    }
}

#[test]
fn signaling_and_denormal_operands() {
    let mut m = Machine::new(32);
    m.poke(DATA, &0x7FA0_0000u32.to_le_bytes());
    m.poke(DATA + 4, &1u32.to_le_bytes());
    m.ok(|a| a.fld(dword_ptr(DATA)));
    assert_eq!((m.flags(), m.st(0).significand), (IE, 0xE000_0000_0000_0000));
    m.ok(|a| a.fninit());
    m.ok(|a| a.fld1());
    m.ok(|a| a.fadd(dword_ptr(DATA + 4)));
    assert_eq!(m.flags(), DE | PE);
    m.ok(|a| a.fninit());
    m.control(0x37D);
    m.ok(|a| a.fld(dword_ptr(DATA + 4)));
    // FLD pushes all the same (so does silicon).
    assert_eq!((m.flags(), m.v.state.x87.valid), (DE | ES | B, 0x80));
}

#[test]
fn partial_tangent_pushes_one() {
    let mut m = Machine::new(32);
    m.push(0.5);
    m.ok(|a| a.fptan());
    assert_eq!(m.pop(), 1.0);
    assert!((m.pop() - 0.5f64.tan()).abs() < 1e-15);
    m.push(1e300);
    m.ok(|a| a.fsin());
    assert_eq!((m.flags() & C2, m.pop()), (C2, 1e300));
}

#[test]
fn constants_follow_rounding_control() {
    let mut m = Machine::new(32);
    for (control, pi, log2_10) in [
        (0x37F, 0xC90F_DAA2_2168_C235u64, 0xD49A_784B_CD1B_8AFEu64),
        (0x77F, 0xC90F_DAA2_2168_C234, 0xD49A_784B_CD1B_8AFE),
        (0xB7F, 0xC90F_DAA2_2168_C235, 0xD49A_784B_CD1B_8AFF),
        (0xF7F, 0xC90F_DAA2_2168_C234, 0xD49A_784B_CD1B_8AFE),
    ] {
        m.ok(|a| a.fninit());
        m.control(control);
        m.ok(|a| a.fldpi());
        m.ok(|a| a.fldl2t());
        assert_eq!((m.st(1).significand, m.st(0).significand), (pi, log2_10));
    }
}
