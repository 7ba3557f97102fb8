//! Every kernel, in every width and operand form that random encodings reach, on the interpreter and on the checking
//! back end: the same result, and no rule broken.

use super::Checking;
use crate::Vcpu;
use crate::blocks::BlockKey;
use crate::decode::{self, Forms, pick};
use crate::fault::Exit;
use crate::insn::{Handler, Insn};
use crate::interp::form;
use crate::kernels::*;
use crate::simd::tests::{BUFFER, vcpu};
use crate::state::{RFlags, attr, seg};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic as M, OpKind};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

macro_rules! widths {
    ($f:ident, $form:expr) => {
        [$f::<1, { $form }>, $f::<2, { $form }>, $f::<4, { $form }>, $f::<8, { $form }>]
    };
}
macro_rules! forms {
    ($kernel:path) => {{
        fn run<const S: u8, const F: u8>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
            let mut e = Checking::<S, F>::new(v);
            $kernel(&mut e, i)?;
            assert!(!e.lost());
            Ok(())
        }
        static FORMS: Forms = [
            widths!(run, form::REG_REG),
            widths!(run, form::REG_IMM),
            widths!(run, form::REG_MEM),
            widths!(run, form::MEM_REG),
            widths!(run, form::MEM_IMM),
            widths!(run, form::LOCKED_REG),
            widths!(run, form::LOCKED_IMM),
        ];
        (stringify!($kernel), &FORMS)
    }};
}

/// The kernel of an instruction, as `decode.rs` picks it.
fn kernel(x: &Instruction) -> Option<(&'static str, &'static Forms)> {
    let special = (0..x.op_count()).any(|n| {
        let r = x.op_register(n);
        x.op_kind(n) == OpKind::Register && (r.is_segment_register() || r.is_cr() || r.is_dr())
    });
    let near = matches!(x.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    let bit_string = x.op0_kind() == OpKind::Memory && x.op1_kind() == OpKind::Register;
    let far = x.is_jmp_far() || x.is_jmp_far_indirect() || x.is_call_far() || x.is_call_far_indirect();
    let code = x.code();
    Some(match x.mnemonic() {
        _ if special || far => return None,
        M::Mov => forms!(data_transfer::mov),
        M::Add => forms!(binary_arithmetic::add),
        M::Adc => forms!(binary_arithmetic::adc),
        M::Sub => forms!(binary_arithmetic::sub),
        M::Sbb => forms!(binary_arithmetic::sbb),
        M::Cmp => forms!(binary_arithmetic::cmp),
        M::Inc => forms!(binary_arithmetic::inc),
        M::Dec => forms!(binary_arithmetic::dec),
        M::Neg => forms!(binary_arithmetic::neg),
        M::Not => forms!(logical::not),
        M::And => forms!(logical::and),
        M::Or => forms!(logical::or),
        M::Xor => forms!(logical::xor),
        M::Test => forms!(logical::test),
        M::Xadd => forms!(binary_arithmetic::xadd),
        M::Cmpxchg => forms!(binary_arithmetic::cmpxchg),
        M::Xchg => forms!(data_transfer::xchg),
        M::Imul if x.op_count() == 1 => forms!(binary_arithmetic::imul_wide),
        M::Imul if x.op_count() == 2 => forms!(binary_arithmetic::imul),
        M::Imul => forms!(binary_arithmetic::imul_immediate),
        M::Mul => forms!(binary_arithmetic::mul),
        M::Shl | M::Sal => forms!(shift_rotate::shl),
        M::Shr => forms!(shift_rotate::shr),
        M::Sar => forms!(shift_rotate::sar),
        M::Rol => forms!(shift_rotate::rol),
        M::Ror => forms!(shift_rotate::ror),
        M::Bt | M::Bts | M::Btr | M::Btc if bit_string => return None,
        M::Bt => forms!(bit_byte::bt),
        M::Bts => forms!(bit_byte::bts),
        M::Btr => forms!(bit_byte::btr),
        M::Btc => forms!(bit_byte::btc),
        M::Bsf => forms!(bit_byte::bsf),
        M::Bsr => forms!(bit_byte::bsr),
        M::Popcnt => forms!(bit_byte::popcnt),
        M::Movzx => forms!(data_transfer::movzx),
        M::Movsx | M::Movsxd => forms!(data_transfer::movsx),
        M::Lea => forms!(data_transfer::lea),
        M::Bswap => forms!(data_transfer::bswap),
        M::Movbe => forms!(data_transfer::movbe),
        M::Push => forms!(data_transfer::push),
        M::Pop if x.op0_kind() == OpKind::Register => forms!(data_transfer::pop),
        M::Cbw | M::Cwde | M::Cdqe => forms!(data_transfer::convert),
        M::Cwd | M::Cdq | M::Cqo => forms!(data_transfer::convert_wide),
        M::Nop => forms!(data_transfer::nop),
        M::Jmp if near => forms!(control_transfer::jmp),
        M::Jmp => forms!(control_transfer::jmp_indirect),
        M::Call if near => forms!(control_transfer::call),
        M::Call => forms!(control_transfer::call_indirect),
        M::Jcxz | M::Jecxz | M::Jrcxz => forms!(control_transfer::jrcxz),
        M::Loop => forms!(control_transfer::r#loop),
        _ if x.is_jcc_short_or_near() => forms!(control_transfer::jcc),
        _ if (Code::Seto_rm8..=Code::Setg_rm8).contains(&code) => forms!(bit_byte::setcc),
        _ if (Code::Cmovo_r16_rm16..=Code::Cmovg_r64_rm64).contains(&code) => forms!(data_transfer::cmovcc),
        _ => return None,
    })
}

/// The checking handler for what `lower` made.
fn checked(x: &Instruction, i: &Insn, forms: &'static Forms) -> Handler {
    if x.mnemonic() == M::Push && !i.memory() {
        let f = if x.op0_kind() == OpKind::Register { form::REG_REG } else { form::REG_IMM };
        return forms[usize::from(f)][i.w.trailing_zeros().min(3) as usize];
    }
    pick(forms, x, i, x.has_lock_prefix() || x.mnemonic() == M::Xchg && i.memory())
}

/// What of RAM instructions may touch.
const START: u64 = BUFFER - 0x1000;
const LEN: usize = 0x3000;

/// Registers, flags and RAM that both sides start from.
fn prepare(v: &mut Vcpu, gpr: &[u64; 16], flags: u64, ram: &[u8]) {
    v.state.gpr[..16].copy_from_slice(gpr);
    v.state.gpr[crate::state::gpr::RIP] = 0x100;
    v.set_rflags(RFlags::from_bits_retain(flags));
    v.ram.write(START, ram);
}

#[test]
fn every_kernel_keeps_the_rules() {
    let mut rng = SmallRng::seed_from_u64(3);
    let mut v = vcpu();
    let model = v.model.clone();
    let features = &model.features;
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let (mut ram, mut after, mut again) = (vec![0; LEN], vec![0; LEN], vec![0; LEN]);
    for round in 0..400_000u32 {
        let long = round % 3 != 0;
        let big = round % 3 == 1;
        let mut bytes: [u8; 16] = rng.random();
        if rng.random_ratio(1, 4) {
            bytes[0] = [0xF0, 0x66, 0x67][rng.random_range(0..3)];
        }
        if rng.random_ratio(1, 3) {
            bytes[1] = 0x0F;
        }
        let bits = if long { 64 } else { 32 };
        let x = Decoder::with_ip(bits, &bytes, 0x100, DecoderOptions::NONE).decode();
        if x.is_invalid() || !features.allows(&x) {
            continue;
        }
        let Some((name, forms)) = kernel(&x) else { continue };
        let cs = &mut v.state.seg[seg::CS];
        cs.attributes &= !(attr::L | attr::DB);
        cs.attributes |= if long { attr::L } else { attr::DB };
        if !long {
            v.state.seg[seg::SS].attributes |= attr::DB;
        }
        let i = decode::lower(&x, BlockKey::of(&v.state), features);
        if i.run as usize == crate::helpers::misc::undefined as *const () as usize {
            continue;
        }
        let mut gpr: [u64; 16] = std::array::from_fn(|_| rng.random::<u64>() >> rng.random_range(0..64));
        for n in [4, usize::from(i.base), usize::from(i.index)] {
            if n < 16 {
                gpr[n] = BUFFER + rng.random_range(0..0x800);
            }
        }
        if has_plain_base(&i) {
            gpr[usize::from(i.base)] = gpr[usize::from(i.base)].wrapping_sub(i.disp).wrapping_sub(
                if i.index < 16 && i.index != i.base { gpr[usize::from(i.index)] << i.scale } else { 0 },
            );
        }
        if big {
            rng.fill(&mut ram[..]);
        }
        let flags = rng.random::<u64>() & 0x8D5;
        prepare(&mut v, &gpr, flags, &ram);
        let address = v.effective_address(&i);
        if i.memory() && !(START..START + LEN as u64 - 8).contains(&address) {
            continue;
        }
        let plain = (i.run)(&mut v, &i);
        let (state, lazy) = (v.state.clone(), v.rflags());
        v.ram.read(START, &mut after);
        prepare(&mut v, &gpr, flags, &ram);
        let result = checked(&x, &i, forms)(&mut v, &i);
        assert_eq!(plain, result, "{x:?}");
        assert_eq!(state, v.state, "{x:?}");
        assert_eq!(lazy, v.rflags(), "{x:?}");
        v.ram.read(START, &mut again);
        assert!(after == again, "{x:?}: memory");
        let lock = if x.has_lock_prefix() { " LOCK" } else { "" };
        let operands = if i.memory() { "memory" } else { "register" };
        *seen.entry(format!("{name} w{} {operands}{lock}", i.w)).or_default() += 1;
    }
    println!("{} combinations: {seen:#?}", seen.len());
    assert!(seen.len() > 200, "only {} combinations", seen.len());
}

/// Whether a base register other than the stack pointer can be aimed.
fn has_plain_base(i: &Insn) -> bool {
    i.memory() && i.base < 16 && i.base != 4
}
