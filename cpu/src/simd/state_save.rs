//! MXCSR, FXSAVE, FXRSTOR, XSAVE, XRSTOR and their variants (SDM Vol. 1, "Managing State Using the XSAVE Feature Set").

use super::checks::mxcsr;
use super::operands::{Forms, handler, shared};
use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::features::xsave_eax;
use crate::insn::Insn;
use crate::state::{CpuState, F80, X87, cr0, cr4, gpr};
use iced_x86::Mnemonic as M;

/// The table of this file.
pub fn handler(m: M) -> Option<Forms> {
    Some(match m {
        M::Ldmxcsr => shared!(ldmxcsr),
        M::Stmxcsr => shared!(stmxcsr),
        M::Fxsave => handler!(|v, i| fxsave(v, i, false)).into(),
        M::Fxsave64 => handler!(|v, i| fxsave(v, i, true)).into(),
        M::Fxrstor => handler!(|v, i| fxrstor(v, i, false)).into(),
        M::Fxrstor64 => handler!(|v, i| fxrstor(v, i, true)).into(),
        M::Xsave => handler!(|v, i| xsave(v, i, false, Save::All)).into(),
        M::Xsave64 => handler!(|v, i| xsave(v, i, true, Save::All)).into(),
        M::Xsaveopt => handler!(|v, i| xsave(v, i, false, Save::Optimized)).into(),
        M::Xsaveopt64 => handler!(|v, i| xsave(v, i, true, Save::Optimized)).into(),
        M::Xsavec => handler!(|v, i| xsave(v, i, false, Save::Compacted)).into(),
        M::Xsavec64 => handler!(|v, i| xsave(v, i, true, Save::Compacted)).into(),
        M::Xsaves => handler!(|v, i| xsaves(v, i, false)).into(),
        M::Xsaves64 => handler!(|v, i| xsaves(v, i, true)).into(),
        M::Xrstor => handler!(|v, i| xrstor(v, i, false, false)).into(),
        M::Xrstor64 => handler!(|v, i| xrstor(v, i, true, false)).into(),
        M::Xrstors => handler!(|v, i| xrstor(v, i, false, true)).into(),
        M::Xrstors64 => handler!(|v, i| xrstor(v, i, true, true)).into(),
        _ => return None,
    })
}

/// State components: bits of XCR0.
const COMPONENT_X87: u64 = 1;
const COMPONENT_SSE: u64 = 2;
const COMPONENT_AVX: u64 = 4;
const COMPONENT_PKRU: u64 = 1 << 9;

/// Offsets in the save area.
const MXCSR: usize = 24;
const REGISTERS: usize = 32;
const XMM: usize = 160;
const HEADER: usize = 512;
const YMM_HIGH: usize = 576;
const END: usize = YMM_HIGH + 256;
/// PKRU in the standard form, where Intel's processors have it: behind AVX-512's room, whether they have that or not.
const PKRU: usize = 2688;
const PKRU_BYTES: usize = 8;

const INITIAL_MXCSR: u32 = 0x1F80;

/// LDMXCSR. A reserved bit is #GP(0).
fn ldmxcsr(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let value = v.load_operand::<4>(i)? as u32;
    check_mxcsr(v, value)?;
    v.set_mxcsr(value);
    Ok(())
}

/// STMXCSR.
fn stmxcsr(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.check_vector(i)?;
    let value = v.state.mxcsr;
    v.store_operand::<4>(i, u128::from(value))
}

fn check_mxcsr(v: &mut Vcpu, value: u32) -> Result<(), Exit> {
    if value & !mxcsr::WRITABLE != 0 { Err(v.protection()) } else { Ok(()) }
}

/// The linear address of an area of `size` bytes: #GP(0) unless aligned, but that it is not canonical (#SS) comes first, as
/// on silicon.
fn area(v: &mut Vcpu, i: &Insn, size: usize, alignment: u64, write: bool) -> Result<u64, Exit> {
    let address = v.operand_address(i, size as u32, write)?;
    if v.state.long_mode() && !v.state.canonical(address) {
        v.load::<1>(i.seg, address)?;
    }
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
    // Which of the image's exceptions wait, its control word says.
    x.summarize();
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
    // As silicon does, also of what stays.
    v.check_store(i.seg, address, HEADER as u64)?;
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
pub fn in_use(s: &CpuState) -> u64 {
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
    if s.pkru != 0 {
        set |= COMPONENT_PKRU;
    }
    set
}

/// #UD without CR4.OSXSAVE; the components that EDX:EAX and XCR0 both ask for (IA32_XSS has none).
fn requested(v: &mut Vcpu) -> Result<u64, Exit> {
    v.require(v.state.cr4 & cr4::OSXSAVE != 0)?;
    check_available(v, cr0::TS)?;
    let mask = v.state.gpr[gpr::RDX] << 32 | v.state.gpr[gpr::RAX] & 0xFFFF_FFFF;
    Ok(mask & v.state.xcr0)
}

/// Size and offset of a component behind the header, in the standard form (CPUID leaf 0DH).
pub fn extended_component(number: u32) -> Option<(usize, usize)> {
    match number {
        2 => Some((END - YMM_HIGH, YMM_HIGH)),
        9 => Some((PKRU_BYTES, PKRU)),
        _ => None,
    }
}

/// Where PKRU is in an area with room for `components`.
fn pkru_offset(components: u64, compacted: bool) -> usize {
    match (compacted, components & COMPONENT_AVX != 0) {
        (false, _) => PKRU,
        (true, true) => END,
        (true, false) => YMM_HIGH,
    }
}

/// Bytes of the area that components need.
pub fn area_size(components: u64, compacted: bool) -> usize {
    match (components & COMPONENT_PKRU != 0, components & COMPONENT_AVX != 0) {
        (true, _) => pkru_offset(components, compacted) + PKRU_BYTES,
        (false, true) => END,
        (false, false) => YMM_HIGH,
    }
}

/// The layouts and habits of the save instructions.
#[derive(Clone, Copy, PartialEq)]
enum Save {
    /// XSAVE: all that is asked for.
    All,
    /// XSAVEOPT: not what is in its initial state.
    Optimized,
    /// XSAVEC, XSAVES: the same, and the header says what the area has room for.
    Compacted,
}

/// Bit 63 of XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;

/// XSAVE and its kin.
fn xsave(v: &mut Vcpu, i: &Insn, wide: bool, kind: Save) -> Result<(), Exit> {
    let requested = requested(v)?;
    let size = area_size(requested, kind == Save::Compacted);
    let address = area(v, i, size, 64, true)?;
    let mut in_use = in_use(&v.state);
    if kind == Save::Compacted && v.state.mxcsr != INITIAL_MXCSR {
        in_use |= COMPONENT_SSE;
    }
    let saved = if kind == Save::All { requested } else { requested & in_use };
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
    let mxcsr = match kind {
        Save::Compacted => saved & COMPONENT_SSE,
        _ => requested & (COMPONENT_SSE | COMPONENT_AVX),
    };
    let parts = [
        (saved & COMPONENT_X87 != 0, 0, MXCSR),
        (mxcsr != 0, MXCSR, 8),
        (saved & COMPONENT_X87 != 0, REGISTERS, 128),
        (saved & COMPONENT_SSE != 0, XMM, vectors),
        (saved & COMPONENT_AVX != 0, YMM_HIGH, vectors),
    ];
    if saved & COMPONENT_PKRU != 0 {
        let at = address.wrapping_add(pkru_offset(requested, kind == Save::Compacted) as u64);
        v.store::<8>(i.seg, at, u64::from(v.state.pkru))?;
    }
    for (_, at, size) in parts.into_iter().filter(|part| part.0) {
        v.store_bytes(i.seg, address.wrapping_add(at as u64), &image[at..at + size])?;
    }
    if kind == Save::Compacted {
        v.store::<8>(i.seg, header.wrapping_add(8), COMPACTED | requested)?;
        return v.store::<8>(i.seg, header, requested & in_use);
    }
    v.store::<8>(i.seg, header, old & !requested | requested & in_use)
}

/// XSAVES: XSAVEC for the system.
fn xsaves(v: &mut Vcpu, i: &Insn, wide: bool) -> Result<(), Exit> {
    v.require(v.state.cr4 & cr4::OSXSAVE != 0)?;
    v.require_cpl0()?;
    xsave(v, i, wide, Save::Compacted)
}

/// Whether XRSTOR takes the header of an area (SDM Vol. 1, "Standard Form of XRSTOR", "Compacted Form of XRSTOR").
fn header_is_valid(v: &Vcpu, image: &[u8], system: bool) -> bool {
    let (present, layout) = (quad(image, HEADER), quad(image, HEADER + 8));
    let zero = |from: usize, to: usize| image[HEADER + from..HEADER + to].iter().all(|&b| b == 0);
    if layout & COMPACTED == 0 {
        return !system && layout == 0 && zero(16, 24) && present & !v.state.xcr0 == 0;
    }
    let room = layout & !COMPACTED;
    let known = system || v.model.features.xsave_eax & xsave_eax::XSAVEC != 0;
    known && room & !v.state.xcr0 == 0 && present & !room == 0 && zero(16, 64)
}

/// XRSTOR, and XRSTORS (`system`), which takes compacted areas only. #GP(0): a component that XCR0 or the area lacks,
/// anything else in the header, MXCSR's reserved bits.
fn xrstor(v: &mut Vcpu, i: &Insn, wide: bool, system: bool) -> Result<(), Exit> {
    let requested = requested(v)?;
    if system {
        v.require_cpl0()?;
    }
    let address = area(v, i, YMM_HIGH, 64, false)?;
    let mut image = [0; END];
    v.load_bytes(i.seg, address, &mut image[..YMM_HIGH])?;
    if !header_is_valid(v, &image, system) {
        return Err(v.protection());
    }
    let (present, layout) = (quad(&image, HEADER), quad(&image, HEADER + 8));
    let compacted = layout & COMPACTED != 0;
    if requested & present & COMPONENT_AVX != 0 {
        let upper = address.wrapping_add(YMM_HIGH as u64);
        v.load_bytes(i.seg, upper, &mut image[YMM_HIGH..])?;
    }
    let pkru = if requested & present & COMPONENT_PKRU != 0 {
        let at = pkru_offset(layout, compacted);
        v.load::<4>(i.seg, address.wrapping_add(at as u64))? as u32
    } else if requested & COMPONENT_PKRU != 0 {
        0
    } else {
        v.state.pkru
    };
    // A compacted area has MXCSR with SSE, the other kind whenever vectors are asked for.
    let value = match requested & (COMPONENT_SSE | COMPONENT_AVX) {
        0 => v.state.mxcsr,
        _ if !compacted => double(&image, MXCSR),
        set if set & COMPONENT_SSE == 0 => v.state.mxcsr,
        _ if present & COMPONENT_SSE != 0 => double(&image, MXCSR),
        _ => INITIAL_MXCSR,
    };
    check_mxcsr(v, value)?;
    v.set_mxcsr(value);
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
    v.set_pkru(pkru)
}
