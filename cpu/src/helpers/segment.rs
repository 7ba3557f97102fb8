//! Descriptors and segment registers (SDM Vol. 3, "Protected-Mode Memory Management").

use super::stack::Stack;
use crate::Vcpu;
use crate::fault::{Exit, vector};
use crate::insn::{Insn, W};
use crate::state::{Segment, Shadow, TableRegister, attr, cr4, seg};
use iced_x86::Code;

/// System descriptor types.
pub mod kind {
    pub const TSS16: u16 = 1;
    pub const LDT: u16 = 2;
    pub const TSS16_BUSY: u16 = 3;
    pub const CALL16: u16 = 4;
    pub const TASK_GATE: u16 = 5;
    pub const TSS32: u16 = 9;
    pub const TSS32_BUSY: u16 = 11;
    pub const CALL32: u16 = 12;
}

/// An 8-byte descriptor and where it was read.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub raw: u64,
    pub address: u64,
}

impl Descriptor {
    pub fn attributes(&self) -> u16 {
        (self.raw >> 40) as u16 & 0xF0FF
    }
    pub fn has(&self, bits: u16) -> bool {
        self.attributes() & bits == bits
    }
    pub fn typ(&self) -> u16 {
        self.attributes() & 0xF
    }
    pub fn dpl(&self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }
    /// Code or data, not system.
    pub fn is_segment(&self) -> bool {
        self.has(attr::S)
    }
    pub fn is_code(&self) -> bool {
        self.has(attr::S | attr::CODE)
    }
    pub fn conforming(&self) -> bool {
        self.has(attr::S | attr::CODE | attr::EC)
    }
    pub fn is_writable_data(&self) -> bool {
        self.is_segment() && !self.has(attr::CODE) && self.has(attr::RW)
    }
    pub fn is_readable(&self) -> bool {
        self.is_segment() && (!self.has(attr::CODE) || self.has(attr::RW))
    }
    pub fn base(&self) -> u64 {
        (self.raw >> 16 & 0xFF_FFFF) | (self.raw >> 56) << 24
    }
    pub fn limit(&self) -> u32 {
        let raw = (self.raw & 0xFFFF) as u32 | (self.raw >> 32 & 0xF_0000) as u32;
        if self.has(attr::G) { raw << 12 | 0xFFF } else { raw }
    }
    /// The segment register contents that this descriptor gives.
    pub fn segment(&self, selector: u16) -> Segment {
        Segment { selector, attributes: self.attributes(), limit: self.limit(), base: self.base() }
    }
    /// Gates: target selector and offset (32-bit form).
    pub fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }
    pub fn gate_offset(&self) -> u64 {
        self.raw & 0xFFFF | self.raw >> 48 << 16
    }
}

/// Error code of a selector.
pub fn error_of(selector: u16) -> u16 {
    selector & 0xFFFC
}

impl Vcpu {
    /// Reads a descriptor; `raise` is the vector if the selector is outside its table.
    pub fn descriptor(&mut self, selector: u16, raise: u8) -> Result<Descriptor, Exit> {
        self.descriptor_of_size(selector, 8, raise)
    }

    fn descriptor_of_size(&mut self, selector: u16, size: u32, raise: u8) -> Result<Descriptor, Exit> {
        let (base, limit) = if selector & 4 != 0 {
            let ldt = self.state.ldtr;
            if !ldt.usable() {
                return Err(self.raise_code(raise, error_of(selector)));
            }
            (ldt.base, ldt.limit)
        } else {
            (self.state.gdtr.base, u32::from(self.state.gdtr.limit))
        };
        let offset = u32::from(selector & 0xFFF8);
        if offset + size - 1 > limit {
            return Err(self.raise_code(raise, error_of(selector)));
        }
        let address = base.wrapping_add(u64::from(offset));
        let raw = self.load_system(address, 8)?;
        Ok(Descriptor { raw, address })
    }

    /// Base of a system descriptor: 64-bit in long mode. Also checks the upper half's type.
    pub fn system_base(&mut self, d: &Descriptor, selector: u16, raise: u8) -> Result<u64, Exit> {
        if !self.state.long_mode() {
            return Ok(d.base());
        }
        let d16 = self.descriptor_of_size(selector, 16, raise)?;
        let high = self.load_system(d16.address.wrapping_add(8), 8)?;
        let base = d.base() | high << 32;
        if high >> 40 & 0x1F != 0 || !self.canonical_base(base) {
            return Err(self.raise_code(raise, error_of(selector)));
        }
        Ok(base)
    }

    /// Sets the accessed bit in memory.
    pub fn mark_accessed(&mut self, d: &Descriptor) -> Result<(), Exit> {
        if d.has(attr::A) {
            return Ok(());
        }
        self.store_system(d.address.wrapping_add(5), 1, d.raw >> 40 & 0xFF | 1)
    }

    /// Puts a segment register and everything that follows from it.
    pub fn set_segment(&mut self, n: usize, segment: Segment) {
        if n == seg::CS && segment.limit != self.state.seg[n].limit {
            // Short cuts to blocks were checked against the old limit.
            self.tlb.renew_spaces();
        }
        self.state.seg[n] = segment;
        self.stop_block = true;
    }

    /// Loads a data or stack segment register with all checks (SDM Vol. 2, "MOV").
    pub fn load_segment(&mut self, n: usize, selector: u16) -> Result<(), Exit> {
        if self.state.real_or_v86() {
            let mut s = self.state.seg[n];
            s.selector = selector;
            s.base = u64::from(selector) << 4;
            if self.state.v86() {
                s = v86_segment(selector);
            }
            self.set_segment(n, s);
            return Ok(());
        }
        let segment = self.checked_segment(n, selector, self.state.cpl)?;
        self.set_segment(n, segment);
        Ok(())
    }

    /// What loading `selector` into register `n` at `cpl` gives, or the fault.
    pub fn checked_segment(&mut self, n: usize, selector: u16, cpl: u8) -> Result<Segment, Exit> {
        let rpl = (selector & 3) as u8;
        if selector & 0xFFFC == 0 {
            if n == seg::SS && (!self.state.code64() || cpl == 3 || rpl != cpl) {
                return Err(self.protection());
            }
            let mut null = Segment::null(selector);
            if n == seg::SS {
                null.attributes |= u16::from(cpl) << 5;
            }
            return Ok(null);
        }
        if n == seg::SS {
            return self.stack_segment(selector, cpl, vector::GP);
        }
        let error = error_of(selector);
        let d = self.descriptor(selector, vector::GP)?;
        let privileged = !d.conforming() && (rpl > d.dpl() || cpl > d.dpl());
        if !d.is_readable() || privileged {
            return Err(self.raise_code(vector::GP, error));
        }
        if !d.has(attr::P) {
            return Err(self.raise_code(vector::NP, error));
        }
        self.mark_accessed(&d)?;
        let mut segment = d.segment(selector);
        segment.attributes |= attr::A;
        Ok(segment)
    }

    /// SS for privilege level `cpl` from a selector that is not null. What is wrong with the descriptor raises
    /// `vector`, an absent segment #SS.
    pub fn stack_segment(&mut self, selector: u16, cpl: u8, vector: u8) -> Result<Segment, Exit> {
        let error = error_of(selector);
        let d = self.descriptor(selector, vector)?;
        if (selector & 3) as u8 != cpl || d.dpl() != cpl || !d.is_writable_data() {
            return Err(self.raise_code(vector, error));
        }
        if !d.has(attr::P) {
            return Err(self.raise_code(vector::SS, error));
        }
        self.mark_accessed(&d)?;
        let mut segment = d.segment(selector);
        segment.attributes |= attr::A;
        Ok(segment)
    }

    /// On a transition to an outer level, data segments that it may not use become null.
    pub fn drop_privileged_segments(&mut self) {
        for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = self.state.seg[n];
            let conforming = s.has(attr::S | attr::CODE | attr::EC);
            if s.usable() && s.dpl() < self.state.cpl && !conforming {
                let base = if self.state.long_mode() { s.base } else { 0 };
                self.set_segment(n, Segment { base, ..Segment::null(0) });
            }
        }
    }
}

/// A segment of virtual-8086 mode: 64 KiB, writable, DPL 3.
pub fn v86_segment(selector: u16) -> Segment {
    Segment::real(selector, attr::P | 3 << 5 | attr::S | attr::RW | attr::A)
}

/// MOV Sreg, r/m16. A load of SS holds interrupts off for one instruction.
pub fn mov_to_segment(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let n = usize::from(i.r0) & 7;
    if n == seg::CS || n > seg::GS {
        return Err(v.undefined());
    }
    let selector = if i.memory() {
        let address = v.operand_address(i, 2, false)?;
        v.load::<2>(i.seg, address)?
    } else {
        v.get_reg(W::W, i.r1)
    };
    v.load_segment(n, selector as u16)?;
    leave_segment(v, n)
}

fn leave_segment(v: &mut Vcpu, n: usize) -> Result<(), Exit> {
    if n == seg::SS {
        v.state.shadow = Shadow::MovSs;
    }
    Err(Exit::Leave)
}

/// MOV r/m, Sreg: memory gets 16 bits, a register its whole width.
pub fn mov_from_segment(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let selector = u64::from(v.state.seg[usize::from(i.r1) & 7].selector);
    if i.memory() {
        let address = v.operand_address(i, 2, true)?;
        return v.store::<2>(i.seg, address, selector);
    }
    v.put_reg(i.width(), i.r0, selector);
    Ok(())
}

/// POP Sreg.
pub fn pop_segment(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let n = usize::from(i.r0) & 7;
    let mut stack = Stack::current(v);
    let selector = stack.pop(v, i.w)?;
    v.load_segment(n, selector as u16)?;
    stack.commit(v);
    leave_segment(v, n)
}

/// LDS, LES, LSS, LFS, LGS: a far pointer from memory.
pub fn load_far_pointer(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    use iced_x86::Mnemonic as M;
    let n = match i.code.mnemonic() {
        M::Lds => seg::DS,
        M::Les => seg::ES,
        M::Lss => seg::SS,
        M::Lfs => seg::FS,
        _ => seg::GS,
    };
    let w = i.width();
    let size = u32::from(i.w);
    let address = v.operand_address(i, size + 2, false)?;
    let offset = v.load_sized(i.seg, address, i.w)?;
    let selector = v.load::<2>(i.seg, address.wrapping_add(u64::from(size)))?;
    v.load_segment(n, selector as u16)?;
    v.put_reg(w, i.r0, offset);
    Err(Exit::Leave)
}

/// UMIP: SGDT, SIDT, SLDT, SMSW, STR raise #GP(0) outside CPL 0.
pub fn umip(v: &mut Vcpu) -> Result<(), Exit> {
    if v.state.cr4 & cr4::UMIP != 0 && v.state.cpl > 0 { Err(v.protection()) } else { Ok(()) }
}

/// SGDT / SIDT.
pub fn store_table(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    umip(v)?;
    let t = if i.code.mnemonic() == iced_x86::Mnemonic::Sgdt { v.state.gdtr } else { v.state.idtr };
    let size = if v.state.code64() { 8u8 } else { 4 };
    let address = v.operand_address(i, u32::from(size) + 2, true)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&t.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&t.base.to_le_bytes());
    v.store_bytes(i.seg, address, &bytes[..usize::from(size) + 2])
}

/// LGDT / LIDT. With 16-bit operands the base has 24 bits.
pub fn load_table(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    let size = if v.state.code64() { 8u8 } else { 4 };
    let address = v.operand_address(i, u32::from(size) + 2, false)?;
    let limit = v.load::<2>(i.seg, address)? as u16;
    let mut base = v.load_sized(i.seg, address.wrapping_add(2), size)?;
    if matches!(i.code, Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        base &= 0xFF_FFFF;
    }
    if size == 8 && !v.canonical_base(base) {
        return Err(v.protection());
    }
    let table = TableRegister { base, limit };
    if i.code.mnemonic() == iced_x86::Mnemonic::Lgdt {
        v.state.gdtr = table;
    } else {
        v.state.idtr = table;
    }
    Err(Exit::Leave)
}

/// SLDT / STR.
pub fn store_system_selector(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    if v.state.real_or_v86() {
        return Err(v.undefined());
    }
    umip(v)?;
    let ldt = i.code.mnemonic() == iced_x86::Mnemonic::Sldt;
    let selector = u64::from(if ldt { v.state.ldtr.selector } else { v.state.tr.selector });
    if i.memory() {
        let address = v.operand_address(i, 2, true)?;
        return v.store::<2>(i.seg, address, selector);
    }
    v.put_reg(i.width(), i.r0, selector);
    Ok(())
}

fn selector_operand(v: &mut Vcpu, i: &Insn) -> Result<u16, Exit> {
    if i.memory() {
        let address = v.operand_address(i, 2, false)?;
        return Ok(v.load::<2>(i.seg, address)? as u16);
    }
    // LAR and LSL have the selector as operand 1, the others as operand 0.
    let second = matches!(i.code.mnemonic(), iced_x86::Mnemonic::Lar | iced_x86::Mnemonic::Lsl);
    Ok(v.get_reg(W::W, if second { i.r1 } else { i.r0 }) as u16)
}

/// LLDT.
pub fn lldt(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    if v.state.real_or_v86() {
        return Err(v.undefined());
    }
    v.require_cpl0()?;
    let selector = selector_operand(v, i)?;
    v.state.ldtr = v.checked_ldt(selector, vector::GP)?;
    Err(Exit::Leave)
}

impl Vcpu {
    /// What loading LDTR gives; `raise` is #GP, or #TS in a task switch.
    pub fn checked_ldt(&mut self, selector: u16, raise: u8) -> Result<Segment, Exit> {
        if selector & 0xFFFC == 0 {
            return Ok(Segment::null(selector));
        }
        if selector & 4 != 0 {
            return Err(self.raise_code(raise, error_of(selector)));
        }
        let d = self.descriptor(selector, raise)?;
        if d.is_segment() || d.typ() != kind::LDT {
            return Err(self.raise_code(raise, error_of(selector)));
        }
        if !d.has(attr::P) {
            let vector = if raise == vector::TS { vector::TS } else { vector::NP };
            return Err(self.raise_code(vector, error_of(selector)));
        }
        let base = self.system_base(&d, selector, raise)?;
        Ok(Segment { base, ..d.segment(selector) })
    }
}

/// LTR: the TSS becomes busy.
pub fn ltr(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    if v.state.real_or_v86() {
        return Err(v.undefined());
    }
    v.require_cpl0()?;
    let selector = selector_operand(v, i)?;
    let error = error_of(selector);
    if error == 0 || selector & 4 != 0 {
        return Err(v.raise_code(vector::GP, error));
    }
    let d = v.descriptor(selector, vector::GP)?;
    let available = d.typ() == kind::TSS32 || d.typ() == kind::TSS16 && !v.state.long_mode();
    if d.is_segment() || !available {
        return Err(v.raise_code(vector::GP, error));
    }
    if !d.has(attr::P) {
        return Err(v.raise_code(vector::NP, error));
    }
    let base = v.system_base(&d, selector, vector::GP)?;
    v.store_system(d.address.wrapping_add(5), 1, d.raw >> 40 & 0xFF | 2)?;
    let mut tr = Segment { base, ..d.segment(selector) };
    tr.attributes |= 2;
    v.state.tr = tr;
    Err(Exit::Leave)
}

/// The descriptor for LAR, LSL, VERR, VERW, if its type and privilege allow it.
fn visible(v: &mut Vcpu, selector: u16, types: u32) -> Result<Option<Descriptor>, Exit> {
    if selector & 0xFFFC == 0 {
        return Ok(None);
    }
    let d = match v.descriptor(selector, vector::GP) {
        Ok(d) => d,
        // Outside the table is an answer here; a page fault is not.
        Err(_) if v.fault.vector == vector::GP => return Ok(None),
        Err(exit) => return Err(exit),
    };
    if !d.is_segment() && types >> d.typ() & 1 == 0 {
        return Ok(None);
    }
    let rpl = (selector & 3) as u8;
    let allowed = d.conforming() || v.state.cpl <= d.dpl() && rpl <= d.dpl();
    Ok(allowed.then_some(d))
}

fn set_zf(v: &mut Vcpu, on: bool) {
    super::misc::set_zero_flag(v, on);
}

/// LAR. Flags: ZF.
pub fn lar(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    if v.state.real_or_v86() {
        return Err(v.undefined());
    }
    let selector = selector_operand(v, i)?;
    // 16-bit types do not exist in long mode.
    let types = if v.state.long_mode() { 0b0001_1010_0000_0100 } else { 0b0001_1010_0011_1110 };
    let d = visible(v, selector, types)?;
    if let Some(d) = d {
        v.put_reg(i.width(), i.r0, d.raw >> 32 & 0x00FF_FF00);
    }
    set_zf(v, d.is_some());
    Ok(())
}

/// LSL. Flags: ZF.
pub fn lsl(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    if v.state.real_or_v86() {
        return Err(v.undefined());
    }
    let selector = selector_operand(v, i)?;
    let types = if v.state.long_mode() { 0b0000_1010_0000_0100 } else { 0b0000_1010_0000_1110 };
    let d = visible(v, selector, types)?;
    if let Some(d) = d {
        v.put_reg(i.width(), i.r0, u64::from(d.limit()));
    }
    set_zf(v, d.is_some());
    Ok(())
}

/// VERR / VERW. Flags: ZF.
pub fn verify(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    if v.state.real_or_v86() {
        return Err(v.undefined());
    }
    let selector = selector_operand(v, i)?;
    let d = visible(v, selector, 0)?;
    let write = i.code.mnemonic() == iced_x86::Mnemonic::Verw;
    set_zf(v, d.is_some_and(|d| if write { d.is_writable_data() } else { d.is_readable() }));
    Ok(())
}

/// ARPL: raises operand 0's RPL to that of operand 1. Flags: ZF = it was raised.
pub fn arpl(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    if v.state.real_or_v86() {
        return Err(v.undefined());
    }
    let rpl = v.get_reg(W::W, i.r1) & 3;
    let old = if i.memory() {
        let address = v.operand_address(i, 2, false)?;
        v.load::<2>(i.seg, address)?
    } else {
        v.get_reg(W::W, i.r0)
    };
    let raise = old & 3 < rpl;
    if raise && i.memory() {
        let address = v.operand_address(i, 2, true)?;
        v.store::<2>(i.seg, address, old & !3 | rpl)?;
    } else if raise {
        v.put_reg(W::W, i.r0, old & !3 | rpl);
    }
    set_zf(v, raise);
    Ok(())
}
