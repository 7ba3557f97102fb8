//! System instructions: control and debug registers, caches, halting (SDM Vol. 1, "System Instructions").

use crate::Vcpu;
use crate::fault::{Exit, Fault, vector};
use crate::features::xsave_eax;
use crate::insn::{Insn, W};
use crate::mmu::{Access, MAXPHYADDR};
use crate::simd::in_use;
use crate::state::{Activity, attr, cr0, cr4, efer, gpr, seg};

impl Vcpu {
    /// MOV to CR0 with all its consequences (SDM Vol. 3, "Control Registers").
    pub(crate) fn write_cr0(&mut self, value: u64) -> Result<(), Exit> {
        let known =
            cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
        let bad = value >> 32 != 0
            || value & cr0::PG != 0 && value & cr0::PE == 0
            || value & cr0::NW != 0 && value & cr0::CD == 0;
        if bad {
            return Err(self.protection());
        }
        let old = self.state.cr0;
        let new = value & known | cr0::ET;
        let starts = new & cr0::PG != 0 && old & cr0::PG == 0;
        let ends = new & cr0::PG == 0 && old & cr0::PG != 0;
        if starts && self.state.msr.efer & efer::LME != 0 {
            if self.state.cr4 & cr4::PAE == 0 || self.state.seg[seg::CS].has(attr::L) {
                return Err(self.protection());
            }
        } else if starts && self.state.cr4 & cr4::PAE != 0 && !self.load_pdptes() {
            return Err(self.protection());
        }
        if ends && (self.state.code64() || self.state.cr4 & cr4::PCIDE != 0) {
            return Err(self.protection());
        }
        if starts && self.state.msr.efer & efer::LME != 0 {
            self.state.msr.efer |= efer::LMA;
        }
        if ends {
            self.state.msr.efer &= !efer::LMA;
        }
        self.state.cr0 = new;
        // Without paging, before and after, translations stay as they are: real-mode calls of boot loaders switch PE
        // back and forth.
        if (old | new) & cr0::PG != 0 && (old ^ new) & (cr0::PG | cr0::WP) != 0 {
            self.flush_tlb();
        }
        self.update_class();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<(), Exit> {
        let long = self.state.long_mode();
        let pcid = self.state.cr4 & cr4::PCIDE != 0;
        // Bit 63 with PCIDE: keep the translations of this PCID.
        let keep = long && pcid && value >> 63 != 0;
        let value = if keep { value & !(1 << 63) } else { value };
        if long && value >> MAXPHYADDR != 0 {
            return Err(self.protection());
        }
        let old = self.state.cr3;
        self.state.cr3 = if long { value } else { value & 0xFFFF_FFFF };
        let pae = self.state.cr4 & cr4::PAE != 0 && self.state.cr0 & cr0::PG != 0 && !long;
        if pae && !self.load_pdptes() {
            self.state.cr3 = old;
            return Err(self.protection());
        }
        self.load_tlb_context(if pcid { (value & 0xFFF) as u16 } else { 0 }, keep);
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Exit> {
        let s = &self.state;
        let old = s.cr4;
        let long = s.long_mode();
        let pcid_on = value & cr4::PCIDE != 0 && old & cr4::PCIDE == 0;
        let bad = value & !self.cr4_allowed() != 0
            || long && (value & cr4::PAE == 0 || (value ^ old) & cr4::LA57 != 0)
            || pcid_on && (!long || s.cr3 & 0xFFF != 0);
        if bad {
            return Err(self.protection());
        }
        let changed = old ^ value;
        let paging = cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP;
        if changed & paging != 0 && value & cr4::PAE != 0 && s.cr0 & cr0::PG != 0 && !long {
            self.state.cr4 = value;
            if !self.load_pdptes() {
                self.state.cr4 = old;
                return Err(self.protection());
            }
        }
        self.state.cr4 = value;
        if changed & (paging | cr4::SMAP | cr4::PKE | cr4::PCIDE) != 0 {
            self.flush_tlb();
        }
        self.update_class();
        Ok(())
    }

    /// CR4 bits of this model.
    fn cr4_allowed(&self) -> u64 {
        use crate::model::{ebx7, ecx1, ecx7, edx1};
        let f = &self.model.features;
        // CR4.PCE came with the P6, as CMOV did.
        [
            (f.leaf1_edx & edx1::VME, cr4::VME | cr4::PVI),
            (f.leaf1_edx & edx1::TSC, cr4::TSD),
            (f.leaf1_edx & edx1::DE, cr4::DE),
            (f.leaf1_edx & edx1::PSE, cr4::PSE),
            (f.leaf1_edx & edx1::PAE, cr4::PAE),
            (f.leaf1_edx & edx1::MCE, cr4::MCE),
            (f.leaf1_edx & edx1::PGE, cr4::PGE),
            (f.leaf1_edx & edx1::CMOV, cr4::PCE),
            (f.leaf1_edx & edx1::FXSR, cr4::OSFXSR),
            (f.leaf1_edx & edx1::SSE, cr4::OSXMMEXCPT),
            (f.leaf7_ebx & ebx7::SMEP, cr4::SMEP),
            (f.leaf7_ebx & ebx7::SMAP, cr4::SMAP),
            (f.leaf7_ebx & ebx7::FSGSBASE, cr4::FSGSBASE),
            (f.leaf7_ecx & ecx7::UMIP, cr4::UMIP),
            (f.leaf7_ecx & ecx7::PKU, cr4::PKE),
            (f.leaf7_ecx & ecx7::LA57, cr4::LA57),
            (f.leaf1_ecx & ecx1::PCID, cr4::PCIDE),
            (f.leaf1_ecx & ecx1::XSAVE, cr4::OSXSAVE),
        ]
        .iter()
        .filter(|(feature, _)| *feature != 0)
        .fold(0, |bits, (_, bit)| bits | bit)
    }

    /// #DB if DR7.GD guards the debug registers; DR4 and DR5 are DR6 and DR7 unless CR4.DE.
    fn debug_register(&mut self, n: u8) -> Result<usize, Exit> {
        if self.state.dr[7] & 1 << 13 != 0 {
            self.fault = Fault { vector: vector::DB, error: None, address: 0, dr6: 1 << 13 };
            return Err(Exit::Fault);
        }
        if matches!(n, 4 | 5) {
            if self.state.cr4 & cr4::DE != 0 {
                return Err(self.undefined());
            }
            return Ok(usize::from(n) + 2);
        }
        Ok(usize::from(n) & 7)
    }
}

/// MOV CRn, r.
pub fn mov_to_control(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    let value = v.get_reg(if v.state.code64() { W::Q } else { W::D }, i.r1);
    match i.r0 {
        0 => v.write_cr0(value)?,
        2 => v.state.cr2 = value,
        3 => v.write_cr3(value)?,
        4 => v.write_cr4(value)?,
        8 if v.state.code64() => {
            if value > 15 {
                return Err(v.protection());
            }
            v.before_device_access();
            v.bus.set_task_priority(v.id, value as u8);
            v.after_device_access();
        }
        _ => return Err(v.undefined()),
    }
    Err(Exit::Leave)
}

/// MOV r, CRn.
pub fn mov_from_control(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    v.before_device_access();
    let value = match i.r1 {
        0 => v.state.cr0,
        2 => v.state.cr2,
        3 => v.state.cr3,
        4 => v.state.cr4,
        8 if v.state.code64() => u64::from(v.bus.task_priority(v.id)),
        _ => return Err(v.undefined()),
    };
    v.put_reg(if v.state.code64() { W::Q } else { W::D }, i.r0, value);
    Ok(())
}

/// MOV DRn, r.
pub fn mov_to_debug(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    let n = v.debug_register(i.r0)?;
    let code64 = v.state.code64();
    let value = v.get_reg(if code64 { W::Q } else { W::D }, i.r1);
    if n >= 6 && value >> 32 != 0 {
        return Err(v.protection());
    }
    v.state.dr[n] = match n {
        6 => value & 0xE00F | 0xFFFF_0FF0,
        7 => value & !0xD000 | 0x400,
        _ => value,
    };
    v.update_class();
    Err(Exit::Leave)
}

/// MOV r, DRn.
pub fn mov_from_debug(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    let n = v.debug_register(i.r1)?;
    let value = v.state.dr[n];
    v.put_reg(if v.state.code64() { W::Q } else { W::D }, i.r0, value);
    Ok(())
}

/// LMSW: can set PE but not clear it.
pub fn lmsw(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    let value = if i.memory() {
        let address = v.operand_address(i, 2, false)?;
        v.load::<2>(i.seg, address)?
    } else {
        v.get_reg(W::W, i.r0)
    };
    let old = v.state.cr0;
    v.write_cr0(old & !0xE | value & 0xF | old & cr0::PE)?;
    Err(Exit::Leave)
}

/// SMSW: memory gets 16 bits.
pub fn smsw(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    super::segment::umip(v)?;
    let value = v.state.cr0;
    if i.memory() {
        let address = v.operand_address(i, 2, true)?;
        return v.store::<2>(i.seg, address, value);
    }
    v.put_reg(i.width(), i.r0, value);
    Ok(())
}

/// CLTS.
pub fn clts(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    v.state.cr0 &= !cr0::TS;
    Err(Exit::Leave)
}

/// INVLPG.
pub fn invlpg(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    let offset = v.effective_address(i);
    let base = v.state.seg[usize::from(i.seg) & 7].base;
    v.flush_tlb_page(base.wrapping_add(offset), None);
    Err(Exit::Leave)
}

/// INVPCID.
pub fn invpcid(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    let kind = v.get_reg(if v.state.code64() { W::Q } else { W::D }, i.r0);
    let address = v.operand_address(i, 16, false)?;
    let descriptor = v.load_128(i.seg, address)?;
    let linear = (descriptor >> 64) as u64;
    let pcid = (descriptor & 0xFFF) as u16;
    let pcid_used = descriptor as u64 & 0xFFF != 0 && v.state.cr4 & cr4::PCIDE == 0;
    let bad = kind > 3
        || descriptor as u64 >> 12 != 0
        || kind == 0 && !v.canonical_base(linear)
        || kind <= 1 && pcid_used;
    if bad {
        return Err(v.protection());
    }
    match kind {
        0 => v.flush_tlb_page(linear, Some(pcid)),
        1 => v.flush_tlb_context(pcid),
        2 => v.flush_tlb(),
        _ => v.flush_tlb_not_global(),
    }
    Err(Exit::Leave)
}

/// INVD, WBINVD: there is no cache to write back.
pub fn cache_control(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require_cpl0()
}

/// CLFLUSH, CLFLUSHOPT, CLWB: a read as far as faults go.
pub fn clflush(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let address = v.operand_address(i, 1, false)?;
    v.load::<1>(i.seg, address).map(|_| ())
}

/// HLT.
pub fn hlt(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    v.state.activity = Activity::Halted;
    Err(Exit::Leave)
}

/// MONITOR: arms the line of the address.
pub fn monitor(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    // #UD, not #GP, outside CPL 0.
    v.require(v.state.cpl == 0)?;
    if v.state.gpr[gpr::RCX] & 0xFFFF_FFFF != 0 {
        return Err(v.protection());
    }
    let offset = v.state.gpr[gpr::RAX] & i.address_mask();
    let address = v.linear(i, i.seg, offset, 1, false)?;
    v.load::<1>(i.seg, address)?;
    v.state.monitor = Some(v.translate(address, Access::Read, v.class_of_cpl())? & !63);
    Ok(())
}

/// MWAIT: waits as HLT does, if MONITOR has armed a line. Other processors' stores to the line are not watched: the
/// machine ends the wait after a short time, as an implementation may, and the guest looks at its memory.
pub fn mwait(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    // #UD, not #GP, outside CPL 0.
    v.require(v.state.cpl == 0)?;
    if v.state.gpr[gpr::RCX] & 0xFFFF_FFFE != 0 {
        return Err(v.protection());
    }
    if v.state.monitor.take().is_some() {
        v.state.activity = Activity::MonitorWait;
    }
    Err(Exit::Leave)
}

impl Vcpu {
    fn class_of_cpl(&self) -> crate::tlb::Class {
        if self.state.cpl == 3 { crate::tlb::Class::User } else { crate::tlb::Class::Supervisor }
    }
}

/// XGETBV: XCR0, or (ECX = 1) what of it is not in its initial state.
pub fn xgetbv(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require(v.state.cr4 & cr4::OSXSAVE != 0)?;
    let x = match v.state.gpr[gpr::RCX] & 0xFFFF_FFFF {
        0 => v.state.xcr0,
        1 if v.model.features.xsave_eax & xsave_eax::XGETBV1 != 0 => v.state.xcr0 & in_use(&v.state),
        _ => return Err(v.protection()),
    };
    v.put_reg(W::D, gpr::RAX as u8, x);
    v.put_reg(W::D, gpr::RDX as u8, x >> 32);
    Ok(())
}

/// XSETBV.
pub fn xsetbv(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require(v.state.cr4 & cr4::OSXSAVE != 0)?;
    v.require_cpl0()?;
    let g = &v.state.gpr;
    let value = g[gpr::RDX] << 32 | g[gpr::RAX] & 0xFFFF_FFFF;
    // x87 is always there, AVX needs SSE.
    let bad = value & 1 == 0 || value & 6 == 4 || value & !v.xcr0_bits() != 0;
    if g[gpr::RCX] & 0xFFFF_FFFF != 0 || bad {
        return Err(v.protection());
    }
    v.state.xcr0 = value;
    Err(Exit::Leave)
}

/// RDPKRU.
pub fn rdpkru(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require(v.state.cr4 & cr4::PKE != 0)?;
    if v.state.gpr[gpr::RCX] as u32 != 0 {
        return Err(v.protection());
    }
    let rights = u64::from(v.state.pkru);
    v.put_reg(W::D, gpr::RAX as u8, rights);
    v.put_reg(W::D, gpr::RDX as u8, 0);
    Ok(())
}

/// WRPKRU.
pub fn wrpkru(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require(v.state.cr4 & cr4::PKE != 0)?;
    let g = &v.state.gpr;
    if g[gpr::RCX] as u32 != 0 || g[gpr::RDX] as u32 != 0 {
        return Err(v.protection());
    }
    v.set_pkru(g[gpr::RAX] as u32)
}

impl Vcpu {
    /// Loads PKRU at the end of an instruction. The TLB's entries hold what the old rights allowed.
    pub(crate) fn set_pkru(&mut self, rights: u32) -> Result<(), Exit> {
        if std::mem::replace(&mut self.state.pkru, rights) == rights {
            return Ok(());
        }
        self.flush_tlb();
        Err(Exit::Leave)
    }
}

/// RDRAND, RDSEED. Flags: CF = 1, the others 0.
pub fn random(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    use crate::state::RFlags;
    let value = v.bus.random();
    v.put_reg(i.width(), i.r0, value);
    v.set_status(RFlags::STATUS, RFlags::CF);
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
pub fn segment_base(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    use iced_x86::Mnemonic as M;
    v.require(v.state.code64() && v.state.cr4 & cr4::FSGSBASE != 0)?;
    let m = i.code.mnemonic();
    let n = if matches!(m, M::Rdfsbase | M::Wrfsbase) { seg::FS } else { seg::GS };
    if matches!(m, M::Rdfsbase | M::Rdgsbase) {
        let base = v.state.seg[n].base;
        v.put_reg(i.width(), i.r0, base);
        return Ok(());
    }
    let base = v.get_reg(i.width(), i.r0);
    if !v.canonical_base(base) {
        return Err(v.protection());
    }
    v.state.seg[n].base = base;
    Ok(())
}

/// SWAPGS.
pub fn swapgs(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require(v.state.code64())?;
    v.require_cpl0()?;
    let gs = &mut v.state.seg[seg::GS];
    std::mem::swap(&mut gs.base, &mut v.state.msr.kernel_gs_base);
    Ok(())
}
