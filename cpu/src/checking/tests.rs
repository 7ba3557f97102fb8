//! Every kernel, in every width and operand form that random encodings reach, on the interpreter and on the checking
//! back end: the same result, and no rule broken.

use super::Checking;
use crate::Vcpu;
use crate::blocks::BlockKey;
use crate::decode;
use crate::fault::Exit;
use crate::insn::Insn;
use crate::interp::form;
use crate::kernels::*;
use crate::simd::tests::{BUFFER, vcpu};
use crate::state::{RFlags, attr, seg};
use iced_x86::{Decoder, DecoderOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// Runs a kernel on the checking back end in the width and form of `i`.
fn checked(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    fn run<const S: u8, const F: u8>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
        let mut e = Checking::<S, F>::new(v);
        assert!(perform(i.kernel, &mut e, i)?, "a helper");
        assert!(!e.lost());
        Ok(())
    }
    fn sized<const F: u8>(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
        match i.w {
            1 => run::<1, F>(v, i),
            2 => run::<2, F>(v, i),
            4 => run::<4, F>(v, i),
            _ => run::<8, F>(v, i),
        }
    }
    match i.form {
        form::REG_REG => sized::<{ form::REG_REG }>(v, i),
        form::REG_IMM => sized::<{ form::REG_IMM }>(v, i),
        form::REG_MEM => sized::<{ form::REG_MEM }>(v, i),
        form::MEM_REG => sized::<{ form::MEM_REG }>(v, i),
        form::MEM_IMM => sized::<{ form::MEM_IMM }>(v, i),
        form::LOCKED_REG => sized::<{ form::LOCKED_REG }>(v, i),
        _ => sized::<{ form::LOCKED_IMM }>(v, i),
    }
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
        let cs = &mut v.state.seg[seg::CS];
        cs.attributes &= !(attr::L | attr::DB);
        cs.attributes |= if long { attr::L } else { attr::DB };
        if !long {
            v.state.seg[seg::SS].attributes |= attr::DB;
        }
        let i = decode::lower(&x, BlockKey::of(&v.state), features);
        if i.kernel == Kernel::Helper {
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
        let result = checked(&mut v, &i);
        assert_eq!(plain, result, "{x:?}");
        assert_eq!(state, v.state, "{x:?}");
        assert_eq!(lazy, v.rflags(), "{x:?}");
        v.ram.read(START, &mut again);
        assert!(after == again, "{x:?}: memory");
        let lock = if x.has_lock_prefix() { " LOCK" } else { "" };
        let operands = if i.memory() { "memory" } else { "register" };
        *seen.entry(format!("{:?} w{} {operands}{lock}", i.kernel, i.w)).or_default() += 1;
    }
    println!("{} combinations: {seen:#?}", seen.len());
    assert!(seen.len() > 200, "only {} combinations", seen.len());
}

/// Whether a base register other than the stack pointer can be aimed.
fn has_plain_base(i: &Insn) -> bool {
    i.memory() && i.base < 16 && i.base != 4
}
