//! Aims instructions at something interesting: addresses in registers and displacements, values in memory, counts.

use super::case::{Case, at};
use super::forms::{Image, image};
use super::values;
use iced_x86::{
    ConstantOffsets, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use rand::Rng;
use rand::rngs::SmallRng;

/// What the code of a family wants of its registers and memory.
#[derive(Clone)]
pub struct Aims {
    /// Registers that hold addresses or counts, a bit each: they are not drawn anew for each case.
    claimed: u32,
    /// Values below which RCX is drawn.
    count: Option<u64>,
    /// The instructions that get values of their own, and where in the data area their memory operand is.
    shapes: Vec<(Mnemonic, Option<usize>)>,
}

impl Default for Aims {
    fn default() -> Self {
        Aims { claimed: 1 << 4, count: None, shapes: Vec::new() }
    }
}

impl Aims {
    fn free(&self, register: usize) -> bool {
        self.claimed >> register & 1 == 0
    }

    /// Has RCX drawn below a value. False: it holds something else.
    fn draw_count(&mut self, below: u64) -> bool {
        let free = self.free(1);
        if free {
            self.claimed |= 2;
            self.count = Some(below);
        }
        free
    }

    /// Draws the values of a case.
    pub fn vary(&self, rng: &mut SmallRng, case: &mut Case) {
        for n in 0..16 {
            if self.free(n) {
                case.gpr[n] = values::integer(rng);
            } else if rng.random_ratio(1, 3) {
                // Another place near by, often unaligned.
                case.gpr[n] = case.gpr[n].wrapping_add_signed(rng.random_range(-40..=40));
            }
        }
        case.gpr[4] = at::DATA + 0x1000 + rng.random_range(0..64u64) * 8;
        if let Some(count) = self.count {
            case.gpr[1] = rng.random_range(0..count);
        }
        let df = if rng.random_ratio(1, 8) { 0x400 } else { 0 };
        case.rflags = rng.random::<u64>() & 0x8D5 | 0x202 | df;
        case.floating = values::floating(rng);
        self.shapes.iter().for_each(|&(mnemonic, place)| self.shape(rng, mnemonic, place, case));
    }

    /// Values that an instruction's outcome turns on.
    fn shape(&self, rng: &mut SmallRng, mnemonic: Mnemonic, place: Option<usize>, case: &mut Case) {
        use Mnemonic as M;
        if image(mnemonic) == Some(Image::Load) {
            return load_image(rng, mnemonic, place, case);
        }
        if let Some(at) = place.filter(|at| at + 16 <= at::WRITABLE_BYTES) {
            if rng.random_bool(0.6) {
                case.memory[at..at + 16].copy_from_slice(&values::vector(rng).to_le_bytes());
            }
            if let M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b = mnemonic
                && rng.random()
                && self.claimed & 5 == 0
            {
                case.memory[at..at + 16].fill(0);
                (case.gpr[0], case.gpr[2]) = (0, 0);
            }
        }
        if let M::Div | M::Idiv = mnemonic
            && rng.random_bool(0.8)
            && self.free(2)
        {
            case.gpr[2] = match rng.random_range(0..8) {
                0 | 1 => !0,
                2..5 => 0,
                _ => rng.random_range(0..40),
            };
        }
    }
}

/// Most images are such as were stored once, but for a byte now and then.
fn load_image(rng: &mut SmallRng, mnemonic: Mnemonic, place: Option<usize>, case: &mut Case) {
    let area = values::floating(rng).to_area();
    let bytes = match mnemonic {
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => &area[..512],
        _ => &area[..28],
    };
    if let Some(at) = place.filter(|at| at + bytes.len() <= at::WRITABLE_BYTES)
        && rng.random_ratio(7, 8)
    {
        case.memory[at..at + bytes.len()].copy_from_slice(bytes);
        if rng.random_ratio(1, 4) {
            case.memory[at + rng.random_range(0..bytes.len())] = rng.random();
        }
    }
}

/// An address in or at the edge of the data area.
fn target(rng: &mut SmallRng, size: u64) -> u64 {
    let align = if rng.random_ratio(2, 3) { size.next_power_of_two().clamp(1, 32) } else { 1 };
    let address = match rng.random_range(0..40) {
        0..26 => at::DATA + rng.random_range(0x40..0x1F00),
        26..32 => at::DATA + 0x1000 - rng.random_range(0..=size),
        32..36 => at::DATA + 0x2000 - rng.random_range(0..=size),
        36 => at::DATA + 0x2000 + rng.random_range(0..0x800),
        37..39 => at::DATA + 0x3000 - rng.random_range(0..=size),
        _ => at::DATA - rng.random_range(0..=size),
    };
    address & !(align - 1)
}

/// Sets registers and displacement so that an instruction meets something interesting, and notes what for.
pub fn steer(
    rng: &mut SmallRng,
    x: &Instruction,
    offsets: &ConstantOffsets,
    bytes: &mut [u8],
    case: &mut Case,
    aims: &mut Aims,
) {
    use Mnemonic as M;
    let mut place = None;
    for n in 0..x.op_count() {
        let size = x.memory_size().size().max(1) as u64;
        match x.op_kind(n) {
            OpKind::Memory => place = memory_operand(rng, x, offsets, bytes, case, aims, size),
            OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemorySegSI => {
                claim(rng, 6, size, case, aims);
            }
            OpKind::MemorySegRDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegDI
            | OpKind::MemoryESRDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESDI => claim(rng, 7, size, case, aims),
            _ => {}
        }
    }
    if (x.has_rep_prefix() || x.has_repne_prefix()) && x.is_string_instruction() {
        aims.draw_count(24);
    }
    // With a count over the width the result is open.
    if let M::Shld | M::Shrd = x.mnemonic()
        && x.op1_register().size() == 2
    {
        if x.op2_kind() == OpKind::Immediate8 {
            bytes[offsets.immediate_offset()] = rng.random_range(0..=16);
        } else if x.ip() != at::CODE || !aims.draw_count(17) {
            bytes.fill(0x90);
        }
    }
    let place = place.map(|address| (address - at::DATA) as usize);
    if place.is_some() || matches!(x.mnemonic(), M::Div | M::Idiv) {
        aims.shapes.push((x.mnemonic(), place));
    }
    // A bit offset reaches far beyond the operand.
    let offset = x.op1_register();
    if let M::Bt | M::Bts | M::Btr | M::Btc = x.mnemonic()
        && x.op0_kind() == OpKind::Memory
        && x.op1_kind() == OpKind::Register
        && aims.free(offset.number())
    {
        aims.claimed |= 1 << offset.number();
        case.gpr[offset.number()] = rng.random_range(-0x2000..0x2000i64) as u64;
    }
}

fn claim(rng: &mut SmallRng, register: usize, size: u64, case: &mut Case, aims: &mut Aims) {
    if aims.free(register) {
        aims.claimed |= 1 << register;
        case.gpr[register] = target(rng, size);
    }
}

/// Aims an ordinary memory operand; returns where at, if inside the data area.
fn memory_operand(
    rng: &mut SmallRng,
    x: &Instruction,
    offsets: &ConstantOffsets,
    bytes: &mut [u8],
    case: &mut Case,
    aims: &mut Aims,
    size: u64,
) -> Option<u64> {
    if rng.random_ratio(1, 60) {
        // Leave it wild, perhaps not canonical.
        return None;
    }
    let wanted = target(rng, size);
    let (base, index) = (x.memory_base(), x.memory_index());
    let scale = u64::from(x.memory_index_scale());
    let displacement = x.memory_displacement64();
    let inside = |a: u64| (a >= at::DATA && a < at::DATA + at::WRITABLE_BYTES as u64).then_some(a);
    if matches!(base, Register::RIP | Register::EIP) || base == Register::None && index == Register::None {
        if offsets.displacement_size() == 4 {
            let from = if base == Register::None { 0 } else { x.next_ip() };
            let patch = (wanted.wrapping_sub(from) as u32).to_le_bytes();
            bytes[offsets.displacement_offset()..][..4].copy_from_slice(&patch);
            return inside(wanted);
        }
        if offsets.displacement_size() == 8 {
            bytes[offsets.displacement_offset()..][..8].copy_from_slice(&wanted.to_le_bytes());
            return inside(wanted);
        }
        return None;
    }
    let number = |r: Register| r.is_gpr().then(|| r.number());
    let garbage = if base.size() == 4 || index.size() == 4 { rng.random::<u64>() << 32 } else { 0 };
    let free = |aims: &Aims, r: Option<usize>| r.filter(|&r| aims.free(r));
    if let Some(b) = free(aims, number(base)) {
        let mut rest = wanted.wrapping_sub(displacement);
        if let Some(n) = number(index) {
            if n == b {
                rest /= 1 + scale;
            } else {
                if aims.free(n) {
                    case.gpr[n] = values::integer(rng);
                    aims.claimed |= 1 << n;
                }
                rest = rest.wrapping_sub(case.gpr[n].wrapping_mul(scale));
            }
        }
        case.gpr[b] = if garbage != 0 { rest & 0xFFFF_FFFF | garbage } else { rest };
        aims.claimed |= 1 << b;
        return inside(wanted);
    }
    if let Some(n) = free(aims, number(index)) {
        let from = number(base).map_or(0, |b| case.gpr[b]);
        case.gpr[n] = wanted.wrapping_sub(displacement).wrapping_sub(from) / scale | garbage;
        aims.claimed |= 1 << n;
    }
    None
}

/// Near branches go to the next instruction or over it, as the family's number says: forward only, so that every case ends.
pub fn aim_branches(family: u64, case: &mut Case) {
    let lengths: Vec<usize> = case.code.iter().map(Vec::len).collect();
    let instructions = case.instructions();
    for (n, x) in instructions.iter().enumerate() {
        let conditional = matches!(x.flow_control(), FlowControl::ConditionalBranch);
        let direct = matches!(x.flow_control(), FlowControl::UnconditionalBranch | FlowControl::Call);
        if !(conditional || direct) || !matches!(x.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) {
            continue;
        }
        let mut decoder = Decoder::with_ip(64, &case.code[n], x.ip(), DecoderOptions::NONE);
        let again = decoder.decode();
        let offsets = decoder.get_constant_offsets(&again);
        let over = lengths.get(n + 1).copied().filter(|_| family & 1 << (n & 31) != 0).unwrap_or(0);
        let (at, size) = (offsets.immediate_offset(), offsets.immediate_size());
        case.code[n][at..at + size].fill(0);
        case.code[n][at] = over as u8;
    }
}
