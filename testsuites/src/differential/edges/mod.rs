//! Random programs where addresses end: real mode, virtual-8086 mode, 16-bit and 32-bit segments with bases and limits,
//! and instruction pointers that wrap: at 64 KiB, 2 GiB, 4 GiB, 2^64, and beside addresses that are not canonical.
//!
//! Every handler is one HLT. What a kernel would do the tester does on both machines ([`Edges::resume`]), after it has
//! compared them: it steps over the instruction, or now and then goes on with the next piece.

mod build;
mod place;

use super::compare::PageTables;
use super::kernel::{CALL, END, INTERRUPT};
use super::values;
use crate::flat::Machine;
use build::Builder;
use iced_x86::{Decoder, DecoderOptions};
use place::{Place, at};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use trimaran_cpu::state::{Activity, CpuState, RFlags, Shadow, attr, gpr, seg};

/// See the head of this file.
pub struct Edges {
    place: Place,
    images: Vec<(u64, Vec<u8>)>,
    gpr: [u64; 16],
    vectors: [u128; 16],
    rflags: u64,
    /// Instruction pointers at which pieces start.
    pieces: Vec<u64>,
}

/// Makes the program of a seed.
pub fn program(seed: u64) -> Edges {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0xED6E5);
    let mut place = Place::draw(&mut rng);
    let (code, pieces) = Builder::new(&mut rng, &place).build();
    let pieces = pieces.into_iter().map(|ip| ip & place.mask).collect();
    let mut data: Vec<u8> = Vec::new();
    while (data.len() as u64) < at::DATA_BYTES {
        data.extend(values::vector(&mut rng).to_le_bytes());
    }
    let mut images = vec![(at::DATA, data)];
    images.extend(place.images(&code));
    let wide = |v: u64| if place.bits == 64 { v } else { v & 0xFFFF_FFFF };
    let count = if place.bits == 64 { 16 } else { 8 };
    let gpr = std::array::from_fn(|n| if n < count { wide(values::integer(&mut rng)) } else { 0 });
    let vectors = std::array::from_fn(|n| if n < count { values::vector(&mut rng) } else { 0 });
    // Status flags, DF, IF; what a program in virtual-8086 mode may do.
    let privilege = if rng.random() { 0x3000 } else { 0 };
    let rflags = rng.random::<u64>() & 0xED5 & !0x100 | privilege;
    Edges { place, images, gpr, vectors, rflags, pieces }
}

/// Exceptions until a program goes on with its next piece.
const EACH: u64 = 8;

/// What an exception pushed.
struct Frame {
    ip: u64,
    cs: u16,
    flags: u64,
    /// Stack pointer and selector that were pushed, or the pointer behind the frame.
    sp: u64,
    ss: Option<u16>,
    /// ES, DS, FS, GS of virtual-8086 mode.
    data: Option<[u16; 4]>,
}

impl Edges {
    /// Reads what the exception of a vector has pushed; None: it cannot be read.
    fn frame(&self, m: &mut Machine, vector: u8) -> Option<Frame> {
        let size = match self.place.kernel {
            16 => 2,
            32 if self.place.narrow_gates => 2,
            32 => 4,
            _ => 8u64,
        };
        let s = m.engine.state();
        let (base, mut at) = (s.seg[seg::SS].base, s.gpr[gpr::RSP]);
        let mask = match s.seg[seg::SS].attributes & attr::DB {
            _ if self.place.kernel == 64 => !0,
            0 => 0xFFFF,
            _ => 0xFFFF_FFFF,
        };
        let mut pop = || {
            let mut bytes = [0; 8];
            for byte in &mut bytes[..size as usize] {
                let linear = base.wrapping_add(at & mask);
                let linear = if mask == !0 { linear } else { linear & 0xFFFF_FFFF };
                let mut read = [0];
                m.ram.read(m.engine.probe(linear)?, &mut read);
                *byte = read[0];
                at = at & !mask | at.wrapping_add(1) & mask;
            }
            Some(u64::from_le_bytes(bytes))
        };
        if self.place.kernel != 16 && matches!(vector, 8 | 10..=14 | 17) {
            pop()?;
        }
        let (ip, cs, flags) = (pop()?, pop()? as u16, pop()?);
        let mut frame = Frame { ip, cs, flags, sp: 0, ss: None, data: None };
        let virtual8086 = self.place.virtual8086;
        if self.place.kernel == 64 || self.place.kernel == 32 && (cs & 3 != 0 || virtual8086) {
            let sp = pop()?;
            frame.ss = Some(pop()? as u16);
            if virtual8086 {
                frame.data = Some([pop()? as u16, pop()? as u16, pop()? as u16, pop()? as u16]);
            }
            at = sp;
        }
        frame.sp = at;
        Some(frame)
    }

    /// The length of the instruction at an address, from 1 on.
    fn length(&self, m: &mut Machine, base: u64, ip: u64) -> u64 {
        let mut bytes = Vec::new();
        for n in 0..15 {
            let linear = base.wrapping_add(ip.wrapping_add(n) & self.place.mask);
            let linear = if self.place.bits == 64 { linear } else { linear & 0xFFFF_FFFF };
            let Some(place) = m.engine.probe(linear) else { break };
            let mut byte = [0];
            m.ram.read(place, &mut byte);
            bytes.push(byte[0]);
        }
        let x = Decoder::with_ip(self.place.bits, &bytes, ip, DecoderOptions::NONE).decode();
        if x.is_invalid() { 1 } else { x.len() as u64 }
    }

    /// IRET, past the instruction if it faulted. False: there is nothing to go back to.
    fn go_back(&self, m: &mut Machine, vector: u8) -> bool {
        let Some(frame) = self.frame(m, vector) else { return false };
        let Some(code) = self.place.segment(frame.cs) else { return false };
        let stack = frame.ss.map(|ss| self.place.segment(ss));
        if stack == Some(None) {
            return false;
        }
        let trap = matches!(vector, 1 | 3 | 4 | INTERRUPT | CALL..0x48);
        let skip = if trap { 0 } else { self.length(m, code.base, frame.ip) };
        let s = m.engine.state();
        s.gpr[gpr::RIP] = frame.ip.wrapping_add(skip) & self.place.mask;
        s.gpr[gpr::RSP] = frame.sp;
        s.seg[seg::CS] = code;
        if let Some(Some(stack)) = stack {
            s.seg[seg::SS] = stack;
        }
        if let Some(data) = frame.data {
            for (n, selector) in [seg::ES, seg::DS, seg::FS, seg::GS].into_iter().zip(data) {
                s.seg[n] = self.place.segment(selector).unwrap_or(s.seg[n]);
            }
        }
        s.cpl = self.place.cpl;
        // Without TF after its trap, and without NT and RF.
        let off = 0x1_4000 | if vector == 1 { 0x100 } else { 0 };
        s.rflags = RFlags::from_bits_retain(frame.flags & !off | 2);
        true
    }
}

impl super::Program for Edges {
    fn images(&self) -> &[(u64, Vec<u8>)] {
        &self.images
    }
    fn ram_bytes(&self) -> u64 {
        at::RAM
    }
    fn bits(&self) -> u32 {
        self.place.bits
    }
    fn describe(&self) -> String {
        let p = &self.place;
        let mode = match p.kernel {
            16 => "real mode",
            32 if p.virtual8086 => "virtual-8086 mode",
            32 => "protected mode",
            _ => "long mode",
        };
        let paging = if p.paging { ", paging" } else { "" };
        format!("{}-bit code in {mode}{paging}, CPL {}, {:x?}, start {:#x}", p.bits, p.cpl, p.code, p.start)
    }
    fn page_tables(&self) -> PageTables {
        let range = if self.place.paging { at::TABLES..at::RAM } else { 0..0 };
        PageTables::new(range, if self.place.kernel == 64 { 8 } else { 4 })
    }
    fn exceptions(&self, m: &mut Machine) -> BTreeMap<u8, u64> {
        let seen = m.engine.state().dr[1];
        (0..64).filter(|&vector| seen >> vector & 1 != 0).map(|vector| (vector, 1)).collect()
    }
    fn enter(&self, s: &mut CpuState) {
        s.gpr[..16].copy_from_slice(&self.gpr);
        self.place.enter(s);
        s.gpr[gpr::RIP] = self.pieces[0];
        s.rflags |= RFlags::from_bits_retain(self.rflags);
        (s.x87.valid, s.x87.control) = (0, 0x37F);
        for (zmm, v) in s.zmm.iter_mut().zip(self.vectors) {
            (zmm[0], zmm[1]) = (v as u64, (v >> 64) as u64);
        }
    }
    fn resume(&self, m: &mut Machine) -> bool {
        let s = m.engine.state();
        let vector = s.gpr[gpr::RIP].wrapping_sub(at::STUBS + 1);
        if vector > 255 || vector == u64::from(END) || s.seg[seg::CS].base != 0 {
            return false;
        }
        // Programs do not touch debug registers: these count, and tell what there was.
        s.dr[0] += 1;
        s.dr[1] |= 1u64.checked_shl(vector as u32).unwrap_or(0);
        let faults = s.dr[0];
        if faults.is_multiple_of(EACH) || !self.go_back(m, vector as u8) {
            let Some(&start) = self.pieces.get((faults / EACH) as usize) else { return false };
            let s = m.engine.state();
            s.rflags = RFlags::from_bits_retain(self.rflags) | RFlags::ONE;
            self.place.again(s);
            s.gpr[gpr::RIP] = start;
        }
        let s = m.engine.state();
        (s.activity, s.shadow) = (Activity::Running, Shadow::None);
        m.engine.state_changed();
        true
    }
}
