//! The picture: Julia sets of z² + c while c walks around a circle. Two points at a time in packed doubles.

use super::modes::MARKS;
use super::places::*;
use super::{Asm, Guest};
use iced_x86::code_asm::*;

/// Steps after which a point counts as inside.
const STEPS: u32 = 64;
/// What the smoke test draws: frames, and the detail as [`var::SHIFT`] has it.
pub const SMOKE_FRAMES: u32 = 8;
pub const COARSEST: u32 = 2;
/// The plane's width; its height follows from the picture's.
const PLANE: f64 = 3.2;
/// Where c begins, and what it is multiplied by from frame to frame (an angle of 2π/512).
const RADIUS: f64 = 0.7885;
const START: f64 = 2.945;
const TURN: f64 = std::f64::consts::TAU / 512.0;

/// 64-bit FNV-1a, by dwords.
const FNV_OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x100_0000_01B3;

fn start() -> [f64; 2] {
    [RADIUS * START.cos(), RADIUS * START.sin()]
}

/// Distance of two points that are computed.
fn pitch(shift: u32) -> f64 {
    PLANE / f64::from(PICTURE.0) * f64::from(1 << shift)
}

/// The plane's upper left corner.
fn corner() -> (f64, f64) {
    (-PLANE / 2.0, -PLANE / 2.0 * f64::from(PICTURE.1) / f64::from(PICTURE.0))
}

/// Colours by the number of steps, from night to gold; the last one is inside.
fn palette() -> Vec<u32> {
    /// Where a colour stands between no step and all.
    const STOPS: [(f64, [f64; 3]); 6] = [
        (0.0, [8.0, 16.0, 40.0]),
        (0.25, [16.0, 56.0, 120.0]),
        (0.45, [32.0, 148.0, 200.0]),
        (0.62, [214.0, 244.0, 255.0]),
        (0.8, [255.0, 190.0, 70.0]),
        (1.0, [150.0, 40.0, 20.0]),
    ];
    let colour = |t: f64| {
        let upper = STOPS.iter().position(|stop| stop.0 >= t).unwrap_or(STOPS.len() - 1).max(1);
        let ((from, low), (to, high)) = (STOPS[upper - 1], STOPS[upper]);
        let part = (t - from) / (to - from);
        (0..3).fold(0, |rgb, n| rgb << 8 | (low[n] + (high[n] - low[n]) * part) as u32)
    };
    let outside = (0..STEPS).map(|n| colour((f64::from(n) / f64::from(STEPS)).sqrt()));
    outside.chain([0x05_0810]).collect()
}

impl Guest {
    /// Sets c, the detail and the checksum. In line.
    pub(super) fn prepare_fractal(&mut self) -> Asm {
        let start = self.data.doubles(&start());
        let a = &mut self.a;
        a.mov(eax, start)?;
        a.movapd(xmm0, xmmword_ptr(rax))?;
        a.movupd(xmmword_ptr(rbp + var::C), xmm0)?;
        a.mov(dword_ptr(rbp + var::SHIFT), COARSEST)?;
        a.mov(rax, FNV_OFFSET)?;
        a.mov(qword_ptr(rbp + var::CHECKSUM), rax)?;
        a.lea(rsi, qword_ptr(rbp + var::MARKS))?;
        a.mov(ecx, MARKS.len() as u32)?;
        self.hash_dwords(1)
    }

    /// Hashes rcx dwords from rsi on, every `stride`th. In line.
    fn hash_dwords(&mut self, stride: u32) -> Asm {
        let a = &mut self.a;
        let mut next = a.create_label();
        a.mov(rbx, qword_ptr(rbp + var::CHECKSUM))?;
        a.mov(rdx, FNV_PRIME)?;
        a.set_label(&mut next)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.xor(rbx, rax)?;
        a.imul_2(rbx, rdx)?;
        a.add(rsi, (stride * 4) as i32)?;
        a.dec(ecx)?;
        a.jnz(next)?;
        a.mov(qword_ptr(rbp + var::CHECKSUM), rbx)
    }

    /// Hashes the picture as the framebuffer shows it. In line.
    pub(super) fn hash_picture(&mut self) -> Asm {
        let block = 1 << COARSEST;
        let mut line = self.a.create_label();
        let a = &mut self.a;
        a.mov(r9d, PICTURE_AT.1)?;
        a.set_label(&mut line)?;
        a.mov(r8d, PICTURE_AT.0)?;
        super::screen::pixel_address(a)?;
        a.mov(rsi, rdi)?;
        a.mov(ecx, PICTURE.0 / block)?;
        self.hash_dwords(block)?;
        let a = &mut self.a;
        a.add(r9d, block)?;
        a.cmp(r9d, PICTURE_AT.1 + PICTURE.1)?;
        a.jb(line)
    }

    /// The routine of this file. xmm2, xmm3: c. xmm4: 4.0. xmm9: real parts of the two points, xmm10: imaginary
    /// part, xmm11: how far the next two are. r14: computed points of a line that are left / 2. r15: lines left.
    pub(super) fn fractal(&mut self) -> Asm {
        let four = self.data.doubles(&[4.0, 4.0]);
        // By detail: first two real parts, twice the pitch for both, the pitch, nothing.
        let rows: Vec<f64> = (0..=COARSEST)
            .flat_map(|shift| {
                let (p, x) = (pitch(shift), corner().0);
                [x, x + p, p + p, p + p, p, 0.0]
            })
            .collect();
        let rows = self.data.doubles(&rows);
        let top = self.data.doubles(&[corner().1]);
        let turn = self.data.doubles(&[TURN.cos(), TURN.sin()]);
        let palette = self.data.dwords(&palette());
        let a = &mut self.a;
        let [mut line, mut pair, mut step, mut out, mut repeat, mut done] =
            std::array::from_fn(|_| a.create_label());

        a.set_label(&mut self.routines.frame)?;
        a.mov(eax, top)?;
        a.mov(rax, qword_ptr(rax))?;
        a.mov(qword_ptr(rbp + var::Y), rax)?;
        a.mov(ecx, dword_ptr(rbp + var::SHIFT))?;
        a.mov(r15d, PICTURE.1)?;
        a.shr(r15d, cl)?;
        a.mov(edi, BACK_BUFFER)?;

        a.set_label(&mut line)?;
        a.push(rdi)?;
        a.call(self.routines.poll)?;
        a.pop(rdi)?;
        a.push(qword_ptr(rbp + var::TICKS))?;
        a.mov(ecx, dword_ptr(rbp + var::SHIFT))?;
        a.mov(r14d, PICTURE.0 / 2)?;
        a.shr(r14d, cl)?;
        a.imul_3(eax, ecx, 48)?;
        a.lea(r8d, dword_ptr(rax + rows))?;
        a.movapd(xmm9, xmmword_ptr(r8))?;
        a.movapd(xmm11, xmmword_ptr(r8 + 16))?;
        a.movsd_2(xmm10, qword_ptr(rbp + var::Y))?;
        a.movapd(xmm0, xmm10)?;
        a.addsd(xmm0, qword_ptr(r8 + 32))?;
        a.movsd_2(qword_ptr(rbp + var::Y), xmm0)?;
        a.unpcklpd(xmm10, xmm10)?;
        a.movsd_2(xmm2, qword_ptr(rbp + var::C))?;
        a.unpcklpd(xmm2, xmm2)?;
        a.movsd_2(xmm3, qword_ptr(rbp + (var::C + 8)))?;
        a.unpcklpd(xmm3, xmm3)?;
        a.mov(eax, four)?;
        a.movapd(xmm4, xmmword_ptr(rax))?;
        a.mov(rsi, rdi)?;
        // r12 counts steps, r13 pairs.
        a.xor(r12d, r12d)?;
        a.mov(r13d, r14d)?;

        let pair_begins = a.instructions().len();
        a.set_label(&mut pair)?;
        a.movapd(xmm0, xmm9)?;
        a.movapd(xmm1, xmm10)?;
        a.addpd(xmm9, xmm11)?;
        a.pxor(xmm5, xmm5)?;
        a.mov(edx, STEPS)?;
        let step_begins = a.instructions().len();
        a.set_label(&mut step)?;
        a.movapd(xmm6, xmm0)?;
        a.movapd(xmm7, xmm1)?;
        a.mulpd(xmm6, xmm6)?;
        a.mulpd(xmm7, xmm7)?;
        a.movapd(xmm8, xmm6)?;
        a.addpd(xmm8, xmm7)?;
        a.cmppd(xmm8, xmm4, 1)?;
        a.movmskpd(eax, xmm8)?;
        a.test(eax, eax)?;
        a.jz(out)?;
        a.psubq(xmm5, xmm8)?;
        a.mulpd(xmm1, xmm0)?;
        a.addpd(xmm1, xmm1)?;
        a.addpd(xmm1, xmm3)?;
        a.subpd(xmm6, xmm7)?;
        a.addpd(xmm6, xmm2)?;
        a.movapd(xmm0, xmm6)?;
        a.dec(edx)?;
        a.jnz(step)?;
        let step_length = a.instructions().len() - step_begins;
        a.set_label(&mut out)?;
        a.mov(eax, STEPS)?;
        a.sub(eax, edx)?;
        a.add(r12, rax)?;
        // Each point's colour fills 1 << cl pixels.
        for second in [false, true] {
            let mut pixel = a.create_label();
            if second {
                a.psrldq(xmm5, 8)?;
            }
            a.movd(eax, xmm5)?;
            a.mov(eax, dword_ptr(rax * 4 + palette))?;
            a.mov(r9d, 1)?;
            a.shl(r9d, cl)?;
            a.set_label(&mut pixel)?;
            a.mov(dword_ptr(rdi), eax)?;
            a.add(rdi, 4)?;
            a.dec(r9d)?;
            a.jnz(pixel)?;
        }
        a.dec(r14d)?;
        a.jnz(pair)?;
        let pair_length = a.instructions().len() - pair_begins - step_length;

        // Instructions of this line: those of the steps and of the pairs (their pixels counted once).
        a.imul_3(r12, r12, step_length as i32)?;
        a.imul_3(r13, r13, pair_length as i32)?;
        a.add(r12, r13)?;
        a.add(qword_ptr(rbp + var::WORK), r12)?;
        // The same line again, as often as a point is high.
        a.mov(r9d, 1)?;
        a.shl(r9d, cl)?;
        a.set_label(&mut repeat)?;
        a.dec(r9d)?;
        a.jz(done)?;
        a.mov(ecx, PICTURE.0 / 2)?;
        a.rep().movsq()?;
        a.jmp(repeat)?;
        a.set_label(&mut done)?;
        a.push(rdi)?;
        a.call(self.routines.poll)?;
        a.pop(rdi)?;
        a.pop(rax)?;
        a.neg(rax)?;
        a.add(rax, qword_ptr(rbp + var::TICKS))?;
        a.add(qword_ptr(rbp + var::DRAWING), rax)?;
        a.dec(r15d)?;
        a.jnz(line)?;

        // c goes on: a complex product.
        a.mov(eax, turn)?;
        for (register, at) in
            [(xmm0, rbp + var::C), (xmm1, rbp + (var::C + 8)), (xmm2, rax + 0), (xmm3, rax + 8)]
        {
            a.movsd_2(register, qword_ptr(at))?;
        }
        a.movapd(xmm4, xmm0)?;
        a.mulsd(xmm4, xmm2)?;
        a.movapd(xmm5, xmm1)?;
        a.mulsd(xmm5, xmm3)?;
        a.subsd(xmm4, xmm5)?;
        a.mulsd(xmm0, xmm3)?;
        a.mulsd(xmm1, xmm2)?;
        a.addsd(xmm0, xmm1)?;
        a.movsd_2(qword_ptr(rbp + var::C), xmm4)?;
        a.movsd_2(qword_ptr(rbp + (var::C + 8)), xmm0)?;
        a.ret()
    }
}

/// The checksum that the smoke test prints on a processor without faults.
pub fn expected_checksum() -> u64 {
    let mut hash = FNV_OFFSET;
    let mut mix = |value: u32| hash = (hash ^ u64::from(value)).wrapping_mul(FNV_PRIME);
    MARKS.into_iter().for_each(&mut mix);
    let palette = palette();
    let [mut cr, mut ci] = start();
    let (tr, ti) = (TURN.cos(), TURN.sin());
    let p = pitch(COARSEST);
    for _ in 0..SMOKE_FRAMES {
        let mut y = corner().1;
        for _ in 0..PICTURE.1 >> COARSEST {
            let mut x = [corner().0, corner().0 + p];
            for _ in 0..PICTURE.0 >> (COARSEST + 1) {
                x.iter().for_each(|&x| mix(palette[steps(x, y, cr, ci)]));
                x = x.map(|x| x + (p + p));
            }
            y += p;
        }
        (cr, ci) = (cr * tr - ci * ti, cr * ti + ci * tr);
    }
    hash
}

/// Steps until a point leaves the circle of radius 2, in the guest's order of operations.
fn steps(mut zr: f64, mut zi: f64, cr: f64, ci: f64) -> usize {
    let mut n = 0;
    while n < STEPS as usize {
        let (rr, ii) = (zr * zr, zi * zi);
        if rr + ii >= 4.0 {
            break;
        }
        n += 1;
        let product = zi * zr;
        (zr, zi) = (rr - ii + cr, product + product + ci);
    }
    n
}
