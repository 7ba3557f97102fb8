//! MXCSR, FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR (SDM Vol. 1, "Managing State Using the XSAVE Feature Set").

use super::checks::mxcsr;
use super::operands::handler;
use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::{Handler, Insn};
use crate::state::{CpuState, F80, X87, cr0, cr4, gpr};
use iced_x86::{Instruction, Mnemonic as M};

/// The table of this file.
pub fn handler(x: &Instruction) -> Option<Handler> {
    Some(match x.mnemonic() {
        M::Ldmxcsr => handler!(ldmxcsr),
        M::Stmxcsr => handler!(stmxcsr),
        M::Fxsave => handler!(|v, i| fxsave(v, i, false)),
        M::Fxsave64 => handler!(|v, i| fxsave(v, i, true)),
        M::Fxrstor => handler!(|v, i| fxrstor(v, i, false)),
        M::Fxrstor64 => handler!(|v, i| fxrstor(v, i, true)),
        M::Xsave => handler!(|v, i| xsave(v, i, false, false)),
        M::Xsave64 => handler!(|v, i| xsave(v, i, true, false)),
        M::Xsaveopt => handler!(|v, i| xsave(v, i, false, true)),
        M::Xsaveopt64 => handler!(|v, i| xsave(v, i, true, true)),
        M::Xrstor => handler!(|v, i| xrstor(v, i, false)),
        M::Xrstor64 => handler!(|v, i| xrstor(v, i, true)),
        _ => return None,
    })
}

/// State components: bits of XCR0.
const COMPONENT_X87: u64 = 1;
const COMPONENT_SSE: u64 = 2;
const COMPONENT_AVX: u64 = 4;

/// Offsets in the save area.
const MXCSR: usize = 24;
const REGISTERS: usize = 32;
const XMM: usize = 160;
const HEADER: usize = 512;
const YMM_HIGH: usize = 576;
const END: usize = YMM_HIGH + 256;

/// LDMXCSR. A reserved bit is #GP(0).
fn ldmxcsr(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    let value = v.load_operand::<4>(i)? as u32;
    check_mxcsr(v, value)?;
    v.set_mxcsr(value);
    Ok(())
}

/// STMXCSR.
fn stmxcsr(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_sse()?;
    let value = v.state.mxcsr;
    v.store_operand::<4>(i, u128::from(value))
}

fn check_mxcsr(v: &mut Vcpu, value: u32) -> Result<(), Exit> {
    if value & !mxcsr::WRITABLE != 0 { Err(v.protection()) } else { Ok(()) }
}

/// The linear address of an area of `size` bytes: #GP(0) unless aligned.
fn area(v: &mut Vcpu, i: &Insn, size: usize, alignment: u64, write: bool) -> Result<u64, Exit> {
    let address = v.operand_address(i, size as u32, write)?;
    if address & (alignment - 1) != 0 {
        return Err(v.protection());
    }
    Ok(address)
}

/// XMM registers that the mode can name: 8, or 16 in 64-bit mode.
fn vector_count(s: &CpuState) -> usize {
    if s.code64() { 16 } else { 8 }
}

fn field<const N: usize>(image: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| image.get(at + n).copied().unwrap_or_default())
}
fn word(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(image, at))
}
fn double(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(image, at))
}
fn quad(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(image, at))
}
fn set(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes x87 state: bytes 0 to 23 and 32 to 159. `wide`: 64-bit pointers, no selectors.
fn put_x87(image: &mut [u8], x: &X87, wide: bool) {
    set(image, 0, &x.control.to_le_bytes());
    set(image, 2, &x.status.to_le_bytes());
    set(image, 4, &[x.valid, 0]);
    set(image, 6, &x.opcode.to_le_bytes());
    set(image, 8, &x.instruction_pointer.to_le_bytes());
    set(image, 16, &x.data_pointer.to_le_bytes());
    if !wide {
        set(image, 12, &u32::from(x.instruction_selector).to_le_bytes());
        set(image, 20, &u32::from(x.data_selector).to_le_bytes());
    }
    for n in 0..8 {
        let r = &x.registers[(usize::from(x.status >> 11) + n) & 7];
        let at = REGISTERS + n * 16;
        set(image, at, &r.significand.to_le_bytes());
        set(image, at + 8, &u64::from(r.sign_exponent).to_le_bytes());
    }
}

fn get_x87(image: &[u8], x: &mut X87, wide: bool) {
    x.control = word(image, 0) & 0x1F7F | 0x40;
    x.status = word(image, 2);
    x.valid = image[4];
    x.opcode = word(image, 6) & 0x7FF;
    if wide {
        (x.instruction_pointer, x.data_pointer) = (quad(image, 8), quad(image, 16));
        (x.instruction_selector, x.data_selector) = (0, 0);
    } else {
        (x.instruction_pointer, x.data_pointer) = (double(image, 8).into(), double(image, 16).into());
        (x.instruction_selector, x.data_selector) = (word(image, 12), word(image, 20));
    }
    for n in 0..8 {
        let at = REGISTERS + n * 16;
        x.registers[(usize::from(x.status >> 11) + n) & 7] =
            F80 { significand: quad(image, at), sign_exponent: word(image, at + 8) };
    }
}

/// Quadwords `q` and `q + 1` of the vector registers, 16 bytes each.
fn put_vectors(image: &mut [u8], at: usize, s: &CpuState, q: usize) {
    for (n, r) in s.zmm.iter().take(vector_count(s)).enumerate() {
        set(image, at + n * 16, &r[q].to_le_bytes());
        set(image, at + n * 16 + 8, &r[q + 1].to_le_bytes());
    }
}

/// The same back; without an image they become zero.
fn get_vectors(image: Option<&[u8]>, at: usize, s: &mut CpuState, q: usize) {
    let count = vector_count(s);
    for (n, r) in s.zmm.iter_mut().take(count).enumerate() {
        let value = |k: usize| image.map_or(0, |image| quad(image, at + n * 16 + k * 8));
        (r[q], r[q + 1]) = (value(0), value(1));
    }
}

fn put_mxcsr(image: &mut [u8], s: &CpuState) {
    set(image, MXCSR, &s.mxcsr.to_le_bytes());
    set(image, MXCSR + 4, &mxcsr::WRITABLE.to_le_bytes());
}

/// #NM with CR0.TS (and CR0.EM where the instruction looks at it).
fn check_available(v: &mut Vcpu, bits: u64) -> Result<(), Exit> {
    if v.state.cr0 & bits != 0 { Err(v.raise(vector::NM)) } else { Ok(()) }
}

/// FXSAVE, FXSAVE64: x87, MMX, XMM and MXCSR state. Bytes 464 to 511 are software's and stay.
fn fxsave(v: &mut Vcpu, i: &Insn, wide: bool) -> Result<(), Exit> {
    check_available(v, cr0::EM | cr0::TS)?;
    let address = area(v, i, HEADER, 16, true)?;
    let mut image = [0; 464];
    let size = XMM + vector_count(&v.state) * 16;
    put_x87(&mut image, &v.state.x87, wide);
    put_mxcsr(&mut image, &v.state);
    put_vectors(&mut image, XMM, &v.state, 0);
    v.store_bytes(i.seg, address, &image[..size])
}

/// FXRSTOR, FXRSTOR64. Reserved bits of MXCSR are #GP(0).
fn fxrstor(v: &mut Vcpu, i: &Insn, wide: bool) -> Result<(), Exit> {
    check_available(v, cr0::EM | cr0::TS)?;
    let address = area(v, i, HEADER, 16, false)?;
    let mut image = [0; HEADER];
    v.load_bytes(i.seg, address, &mut image)?;
    let value = double(&image, MXCSR);
    check_mxcsr(v, value)?;
    get_x87(&image, &mut v.state.x87, wide);
    v.set_mxcsr(value);
    get_vectors(Some(&image), XMM, &mut v.state, 0);
    Ok(())
}

fn initial_x87() -> X87 {
    X87 {
        registers: [F80::default(); 8],
        control: 0x37F,
        status: 0,
        valid: 0,
        opcode: 0,
        instruction_selector: 0,
        data_selector: 0,
        instruction_pointer: 0,
        data_pointer: 0,
    }
}

/// XINUSE: components that differ from their initial state.
fn in_use(s: &CpuState) -> u64 {
    let vectors = &s.zmm[..vector_count(s)];
    let mut set = 0;
    if s.x87 != initial_x87() {
        set |= COMPONENT_X87;
    }
    if vectors.iter().any(|r| r[..2] != [0; 2]) {
        set |= COMPONENT_SSE;
    }
    if vectors.iter().any(|r| r[2..4] != [0; 2]) {
        set |= COMPONENT_AVX;
    }
    set
}

/// #UD without CR4.OSXSAVE; the components that EDX:EAX and XCR0 both ask for.
fn requested(v: &mut Vcpu) -> Result<u64, Exit> {
    v.require(v.state.cr4 & cr4::OSXSAVE != 0)?;
    check_available(v, cr0::TS)?;
    let mask = v.state.gpr[gpr::RDX] << 32 | v.state.gpr[gpr::RAX] & 0xFFFF_FFFF;
    Ok(mask & v.state.xcr0)
}

/// Bytes of the area that the enabled components need.
fn area_size(v: &Vcpu) -> usize {
    if v.state.xcr0 & COMPONENT_AVX != 0 { END } else { YMM_HIGH }
}

/// XSAVE, XSAVE64; XSAVEOPT leaves out components in their initial state.
fn xsave(v: &mut Vcpu, i: &Insn, wide: bool, optimized: bool) -> Result<(), Exit> {
    let requested = requested(v)?;
    let size = area_size(v);
    let address = area(v, i, size, 64, true)?;
    let in_use = in_use(&v.state);
    let saved = if optimized { requested & in_use } else { requested };
    let mut image = [0; END];
    put_x87(&mut image, &v.state.x87, wide);
    put_mxcsr(&mut image, &v.state);
    put_vectors(&mut image, XMM, &v.state, 0);
    put_vectors(&mut image, YMM_HIGH, &v.state, 2);
    let vectors = vector_count(&v.state) * 16;
    let header = address.wrapping_add(HEADER as u64);
    let (old, _) = v.load_for_write::<8>(i.seg, header)?;
    v.load_for_write::<1>(i.seg, address)?;
    v.load_for_write::<1>(i.seg, address.wrapping_add(size as u64 - 1))?;
    let parts = [
        (saved & COMPONENT_X87 != 0, 0, MXCSR),
        (requested & (COMPONENT_SSE | COMPONENT_AVX) != 0, MXCSR, 8),
        (saved & COMPONENT_X87 != 0, REGISTERS, 128),
        (saved & COMPONENT_SSE != 0, XMM, vectors),
        (saved & COMPONENT_AVX != 0, YMM_HIGH, vectors),
    ];
    for (_, at, size) in parts.into_iter().filter(|part| part.0) {
        v.store_bytes(i.seg, address.wrapping_add(at as u64), &image[at..at + size])?;
    }
    v.store::<8>(i.seg, header, old & !requested | requested & in_use)
}

/// XRSTOR, XRSTOR64. #GP(0): a component that XCR0 lacks, anything else in the header, MXCSR's reserved bits.
fn xrstor(v: &mut Vcpu, i: &Insn, wide: bool) -> Result<(), Exit> {
    let requested = requested(v)?;
    let size = area_size(v);
    let address = area(v, i, size, 64, false)?;
    let mut image = [0; END];
    v.load_bytes(i.seg, address, &mut image[..size])?;
    let present = quad(&image, HEADER);
    let rest_is_zero = image[HEADER + 8..HEADER + 24].iter().all(|&b| b == 0);
    if present & !v.state.xcr0 != 0 || !rest_is_zero {
        return Err(v.protection());
    }
    if requested & (COMPONENT_SSE | COMPONENT_AVX) != 0 {
        let value = double(&image, MXCSR);
        check_mxcsr(v, value)?;
        v.set_mxcsr(value);
    }
    if requested & present & COMPONENT_X87 != 0 {
        get_x87(&image, &mut v.state.x87, wide);
    } else if requested & COMPONENT_X87 != 0 {
        v.state.x87 = initial_x87();
    }
    for (component, at, q) in [(COMPONENT_SSE, XMM, 0), (COMPONENT_AVX, YMM_HIGH, 2)] {
        if requested & component != 0 {
            get_vectors((present & component != 0).then_some(&image[..]), at, &mut v.state, q);
        }
    }
    Ok(())
}
