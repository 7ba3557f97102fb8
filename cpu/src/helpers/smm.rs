//! System management mode: entry and RSM (SDM Vol. 3, "System Management Mode"; the state map of a 64-bit
//! processor as AMD64 documents it, which SeaBIOS and OVMF know by revision 0x20064, and the 32-bit one,
//! revision 0x20000, on models without long mode).
//!
//! Both maps are data: one list of fields that entry writes and RSM reads.

use crate::Vcpu;
use crate::fault::Exit;
use crate::insn::Insn;
use crate::model::ext1;
use crate::state::{Activity, CpuState, RFlags, Segment, attr, cr0, efer, gpr, seg};

/// Offset of the save state from SMBASE + 8000h.
const AREA: u64 = 0x8000;

/// Reads or writes one field of the map.
trait Map {
    fn field(&mut self, offset: u64, size: u8, value: &mut u64);
}

struct Save<'a>(&'a mut Vcpu, u64);
struct Restore<'a>(&'a mut Vcpu, u64);

impl Map for Save<'_> {
    fn field(&mut self, offset: u64, size: u8, value: &mut u64) {
        for n in 0..u64::from(size) {
            self.0.physical_write(self.1 + offset + n, 1, *value >> (n * 8) & 0xFF);
        }
    }
}

impl Map for Restore<'_> {
    fn field(&mut self, offset: u64, size: u8, value: &mut u64) {
        *value =
            (0..u64::from(size)).rev().fold(0, |v, n| v << 8 | self.0.physical_read(self.1 + offset + n, 1));
    }
}

/// Selector, attributes, limit, base: the 64-bit map's 16-byte segment.
fn segment64(m: &mut impl Map, at: u64, s: &mut Segment) {
    let (mut selector, mut attributes) = (u64::from(s.selector), u64::from(s.attributes));
    let (mut limit, mut base) = (u64::from(s.limit), s.base);
    m.field(at, 2, &mut selector);
    m.field(at + 2, 2, &mut attributes);
    m.field(at + 4, 4, &mut limit);
    m.field(at + 8, 8, &mut base);
    *s = Segment { selector: selector as u16, attributes: attributes as u16, limit: limit as u32, base };
}

fn map64(m: &mut impl Map, s: &mut CpuState) {
    for n in 0..6 {
        segment64(m, 0x7E00 + n as u64 * 16, &mut s.seg[n]);
    }
    let mut gdt = (u64::from(s.gdtr.limit), s.gdtr.base);
    m.field(0x7E64, 2, &mut gdt.0);
    m.field(0x7E68, 8, &mut gdt.1);
    (s.gdtr.limit, s.gdtr.base) = (gdt.0 as u16, gdt.1);
    segment64(m, 0x7E70, &mut s.ldtr);
    let mut idt = (u64::from(s.idtr.limit), s.idtr.base);
    m.field(0x7E84, 2, &mut idt.0);
    m.field(0x7E88, 8, &mut idt.1);
    (s.idtr.limit, s.idtr.base) = (idt.0 as u16, idt.1);
    segment64(m, 0x7E90, &mut s.tr);
    let mut halted = u64::from(s.activity == Activity::Halted);
    m.field(0x7EC9, 1, &mut halted);
    s.activity = if halted & 1 != 0 { Activity::Halted } else { Activity::Running };
    m.field(0x7ED0, 8, &mut s.msr.efer);
    let mut cpl = u64::from(s.cpl);
    m.field(0x7EBE, 1, &mut cpl);
    s.cpl = cpl as u8 & 3;
    let mut revision = 0x20064;
    m.field(0x7EFC, 4, &mut revision);
    m.field(0x7F00, 4, &mut s.msr.smbase);
    m.field(0x7F48, 8, &mut s.cr4);
    m.field(0x7F50, 8, &mut s.cr3);
    m.field(0x7F58, 8, &mut s.cr0);
    m.field(0x7F60, 8, &mut s.dr[7]);
    m.field(0x7F68, 8, &mut s.dr[6]);
    let mut flags = s.rflags.bits();
    m.field(0x7F70, 8, &mut flags);
    s.rflags = RFlags::from_bits_retain(flags);
    m.field(0x7F78, 8, &mut s.gpr[gpr::RIP]);
    for n in 0..16 {
        m.field(0x7FF8 - n as u64 * 8, 8, &mut s.gpr[n]);
    }
}

fn segment32(m: &mut impl Map, selector_at: u64, at: u64, s: &mut Segment) {
    let (mut selector, mut attributes) = (u64::from(s.selector), u64::from(s.attributes) << 8);
    let (mut limit, mut base) = (u64::from(s.limit), s.base);
    m.field(selector_at, 4, &mut selector);
    m.field(at, 4, &mut attributes);
    m.field(at + 4, 4, &mut limit);
    m.field(at + 8, 4, &mut base);
    let attributes = (attributes >> 8) as u16;
    *s = Segment { selector: selector as u16, attributes, limit: limit as u32, base };
}

fn map32(m: &mut impl Map, s: &mut CpuState) {
    m.field(0x7FFC, 4, &mut s.cr0);
    m.field(0x7FF8, 4, &mut s.cr3);
    let mut flags = s.rflags.bits();
    m.field(0x7FF4, 4, &mut flags);
    s.rflags = RFlags::from_bits_retain(flags);
    m.field(0x7FF0, 4, &mut s.gpr[gpr::RIP]);
    for n in 0..8 {
        m.field(0x7FD0 + n as u64 * 4, 4, &mut s.gpr[n]);
    }
    m.field(0x7FCC, 4, &mut s.dr[6]);
    m.field(0x7FC8, 4, &mut s.dr[7]);
    segment32(m, 0x7FC4, 0x7F5C, &mut s.tr);
    segment32(m, 0x7FC0, 0x7F78, &mut s.ldtr);
    let mut gdt = (u64::from(s.gdtr.limit), s.gdtr.base);
    m.field(0x7F74, 4, &mut gdt.1);
    m.field(0x7F70, 4, &mut gdt.0);
    (s.gdtr.limit, s.gdtr.base) = (gdt.0 as u16, gdt.1);
    let mut idt = (u64::from(s.idtr.limit), s.idtr.base);
    m.field(0x7F58, 4, &mut idt.1);
    m.field(0x7F54, 4, &mut idt.0);
    (s.idtr.limit, s.idtr.base) = (idt.0 as u16, idt.1);
    for n in 0..6u64 {
        let at = if n < 3 { 0x7F84 + n * 12 } else { 0x7F2C + (n - 3) * 12 };
        segment32(m, 0x7FA8 + n * 4, at, &mut s.seg[n as usize]);
    }
    m.field(0x7F14, 4, &mut s.cr4);
    let mut halted = u64::from(s.activity == Activity::Halted);
    m.field(0x7F02, 1, &mut halted);
    s.activity = if halted & 1 != 0 { Activity::Halted } else { Activity::Running };
    let mut revision = 0x20000;
    m.field(0x7EFC, 4, &mut revision);
    m.field(0x7EF8, 4, &mut s.msr.smbase);
    s.cpl = s.seg[seg::SS].dpl();
}

impl Vcpu {
    /// SMI#: saves the state at SMBASE and starts the handler at SMBASE + 8000h.
    pub(crate) fn enter_smm(&mut self) {
        self.state.rflags = self.rflags();
        self.state.smm = true;
        self.bus.smm_changed(self.id, true);
        self.remap();
        let base = self.state.msr.smbase;
        let mut s = self.state.clone();
        let long = self.model.features.ext1_edx & ext1::LM != 0;
        let mut map = Save(self, base + AREA);
        if long {
            map64(&mut map, &mut s);
        } else {
            map32(&mut map, &mut s);
        }
        let s = &mut self.state;
        s.cr0 &= !(cr0::PE | cr0::EM | cr0::TS | cr0::PG);
        s.cr4 = 0;
        s.msr.efer = 0;
        s.dr[7] = 0x400;
        s.rflags = RFlags::ONE;
        s.cpl = 0;
        s.nmi_blocked = true;
        s.gpr[gpr::RIP] = 0x8000;
        let data =
            Segment { selector: 0, attributes: attr::P | attr::S | attr::RW | attr::A, limit: !0, base: 0 };
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            s.seg[n] = data;
        }
        s.seg[seg::CS] = Segment { selector: (base >> 4) as u16, base, ..data };
        self.state_loaded();
        self.stop_block = true;
    }
}

/// RSM: back to what the SMI interrupted.
pub fn rsm(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require(v.state.smm)?;
    let base = v.state.msr.smbase;
    let mut s = v.state.clone();
    let long = v.model.features.ext1_edx & ext1::LM != 0;
    let mut map = Restore(v, base + AREA);
    if long {
        map64(&mut map, &mut s);
    } else {
        map32(&mut map, &mut s);
    }
    // What no processor could have saved shuts it down.
    let bad = s.cr0 & cr0::PG != 0 && s.cr0 & cr0::PE == 0 || s.cr0 >> 32 != 0;
    if bad {
        v.state.activity = Activity::Shutdown;
        return Err(Exit::Leave);
    }
    s.rflags |= RFlags::ONE;
    s.cr0 |= cr0::ET;
    s.msr.efer &= efer::SCE | efer::LME | efer::LMA | efer::NXE;
    s.smm = false;
    s.nmi_blocked = false;
    let pdpte = v.state.pdpte;
    v.state = s;
    v.state.pdpte = pdpte;
    v.bus.smm_changed(v.id, false);
    v.remap();
    if v.state.cr4 & crate::state::cr4::PAE != 0 && v.state.cr0 & cr0::PG != 0 && !v.state.long_mode() {
        v.load_pdptes();
    }
    v.state_loaded();
    Err(Exit::Leave)
}
