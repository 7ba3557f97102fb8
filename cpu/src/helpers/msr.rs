//! Model-specific registers and the time-stamp counter.

use crate::Vcpu;
use crate::fault::Exit;
use crate::features::xsave_eax;
use crate::insn::{Insn, W};
use crate::mmu::MAXPHYADDR;
use crate::model::{Features, ebx7, ecx7, edx1, edx7, ext1};
use crate::state::{cr0, cr4, efer, gpr, seg};

/// MSR numbers (SDM Vol. 4).
mod index {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1B;
    pub const FEATURE_CONTROL: u32 = 0x3A;
    pub const TSC_ADJUST: u32 = 0x3B;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8B;
    pub const MTRRCAP: u32 = 0xFE;
    pub const ARCH_CAPABILITIES: u32 = 0x10A;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17A;
    pub const MCG_CTL: u32 = 0x17B;
    pub const MISC_ENABLE: u32 = 0x1A0;
    pub const DEBUGCTL: u32 = 0x1D9;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2FF;
    pub const EFER: u32 = 0xC000_0080;
    pub const STAR: u32 = 0xC000_0081;
    pub const LSTAR: u32 = 0xC000_0082;
    pub const CSTAR: u32 = 0xC000_0083;
    pub const SFMASK: u32 = 0xC000_0084;
    pub const FS_BASE: u32 = 0xC000_0100;
    pub const GS_BASE: u32 = 0xC000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xC000_0102;
    pub const XSS: u32 = 0xDA0;
    pub const TSC_AUX: u32 = 0xC000_0103;
    pub const SMBASE: u32 = 0x9E;
}

/// Banks that IA32_MCG_CAP tells of, and MCG_CTL_P.
const MCG_CAP: u64 = 10 | 1 << 8;

/// Eight variable ranges, fixed ranges, write combining.
const MTRRCAP: u64 = 8 | 1 << 8 | 1 << 10;

/// Not vulnerable: RDCL_NO, IBRS_ALL, SKIP_L1DFL, MDS_NO, PSCHANGE_MC_NO, TAA_NO, and the stale-data ones.
const ARCH_CAPABILITIES: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 14 | 1 << 15;

/// Whether a model has an MSR of those that came with a feature.
fn exists(f: &Features, msr: u32) -> bool {
    use index::*;
    let d = |bit: u32| f.leaf1_edx & bit != 0;
    match msr {
        TSC => d(edx1::TSC),
        TSC_ADJUST => f.leaf7_ebx & ebx7::TSC_ADJUST != 0,
        ARCH_CAPABILITIES => f.leaf7_edx & edx7::ARCH_CAPABILITIES != 0,
        SYSENTER_CS | SYSENTER_ESP | SYSENTER_EIP => d(edx1::SEP),
        MCG_CAP | MCG_STATUS | MCG_CTL | 0x400..=0x427 => d(edx1::MCA),
        PAT => d(edx1::PAT),
        MTRRCAP | MTRR_DEF_TYPE | 0x200..=0x20F => d(edx1::MTRR),
        EFER => f.ext1_edx & (ext1::SYSCALL | ext1::NX | ext1::LM) != 0,
        STAR => f.ext1_edx & ext1::SYSCALL != 0,
        LSTAR | CSTAR | SFMASK | FS_BASE | GS_BASE | KERNEL_GS_BASE => f.ext1_edx & ext1::LM != 0,
        XSS => f.xsave_eax & xsave_eax::XSAVES != 0,
        TSC_AUX => f.ext1_edx & ext1::RDTSCP != 0 || f.leaf7_ecx & ecx7::RDPID != 0,
        _ => fixed_mtrr(msr).is_none() || d(edx1::MTRR),
    }
}

/// Position of a fixed-range MTRR, or None.
fn fixed_mtrr(msr: u32) -> Option<usize> {
    match msr {
        index::MTRR_FIX64K => Some(0),
        0x258 | 0x259 => Some((msr - 0x258) as usize + 1),
        0x268..=0x26F => Some((msr - 0x268) as usize + 3),
        _ => None,
    }
}

/// Memory types that exist: UC, WC, WT, WP, WB, and UC- in the PAT.
fn memory_type(kind: u64, pat: bool) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6) || pat && kind == 7
}

/// IA32_MTRR_PHYSBASEn and PHYSMASKn (SDM Vol. 3, "Variable Range MTRRs").
fn mtrr_variable_ok(msr: u32, value: u64) -> bool {
    let reserved = !((1 << MAXPHYADDR) - 1) | if msr & 1 == 0 { 0xF00 } else { 0x7FF };
    value & reserved == 0 && (msr & 1 != 0 || memory_type(value & 0xFF, false))
}

impl Vcpu {
    /// IA32_TSC.
    pub(crate) fn time_stamp(&mut self) -> u64 {
        self.publish_retired();
        self.bus.clock(self.id).wrapping_add(self.state.msr.tsc_offset)
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.state.msr.tsc_offset = offset;
        self.bus.tsc_offset_changed(self.id, offset);
    }

    /// RDMSR; None: #GP(0).
    pub fn read_msr(&mut self, msr: u32) -> Option<u64> {
        use index::*;
        if let Some(answer) = self.bus.read_apic_msr(self.id, msr) {
            return answer.ok();
        }
        if !exists(&self.model.features, msr) {
            return None;
        }
        if msr == TSC {
            return Some(self.time_stamp());
        }
        let s = &self.state;
        let m = &s.msr;
        Some(match msr {
            // IA32_XSS: there is no supervisor state to save.
            0 | 1 | PLATFORM_ID | BIOS_UPDT_TRIG | XSS => 0,
            FEATURE_CONTROL => 1,
            TSC_ADJUST => m.tsc_adjust,
            SPEC_CTRL => m.spec_ctrl,
            BIOS_SIGN_ID => m.bios_sign_id,
            SMBASE if s.smm => m.smbase,
            MTRRCAP => self::MTRRCAP,
            ARCH_CAPABILITIES => self::ARCH_CAPABILITIES,
            SYSENTER_CS => m.sysenter_cs,
            SYSENTER_ESP => m.sysenter_esp,
            SYSENTER_EIP => m.sysenter_eip,
            MCG_CAP => self::MCG_CAP,
            MCG_STATUS => m.mcg_status,
            MCG_CTL => m.mcg_ctl,
            MISC_ENABLE => m.misc_enable,
            DEBUGCTL => m.debug_ctl,
            PAT => m.pat,
            MTRR_DEF_TYPE => m.mtrr_def_type,
            0x200..=0x20F => m.mtrr_variable[(msr - 0x200) as usize],
            0x400..=0x427 => {
                let bank = ((msr - 0x400) / 4) as usize;
                [m.mc_ctl[bank], m.mc_status[bank], m.mc_addr[bank], m.mc_misc[bank]][(msr & 3) as usize]
            }
            EFER => m.efer,
            STAR => m.star,
            LSTAR => m.lstar,
            CSTAR => m.cstar,
            SFMASK => m.sfmask,
            FS_BASE => s.seg[seg::FS].base,
            GS_BASE => s.seg[seg::GS].base,
            KERNEL_GS_BASE => m.kernel_gs_base,
            TSC_AUX => m.tsc_aux,
            _ => return fixed_mtrr(msr).map(|n| m.mtrr_fixed[n]),
        })
    }

    /// WRMSR; false: #GP(0).
    pub fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        use index::*;
        if msr == APIC_BASE && value >> MAXPHYADDR != 0 {
            return false;
        }
        if let Some(answer) = self.bus.write_apic_msr(self.id, msr, value) {
            return answer.is_ok();
        }
        if !exists(&self.model.features, msr) {
            return false;
        }
        match msr {
            TSC => {
                let delta = value.wrapping_sub(self.time_stamp());
                self.state.msr.tsc_adjust = self.state.msr.tsc_adjust.wrapping_add(delta);
                self.set_tsc_offset(self.state.msr.tsc_offset.wrapping_add(delta));
                return true;
            }
            TSC_ADJUST => {
                let delta = value.wrapping_sub(self.state.msr.tsc_adjust);
                self.state.msr.tsc_adjust = value;
                self.set_tsc_offset(self.state.msr.tsc_offset.wrapping_add(delta));
                return true;
            }
            EFER => return self.write_efer(value),
            _ => {}
        }
        let canonical = self.canonical_base(value);
        let s = &mut self.state;
        let m = &mut s.msr;
        match msr {
            0 | 1 | BIOS_UPDT_TRIG => {}
            XSS => return value == 0,
            SPEC_CTRL if value & !7 == 0 => m.spec_ctrl = value,
            BIOS_SIGN_ID => m.bios_sign_id = value,
            SYSENTER_CS => m.sysenter_cs = value & 0xFFFF_FFFF,
            SYSENTER_ESP if canonical => m.sysenter_esp = value,
            SYSENTER_EIP if canonical => m.sysenter_eip = value,
            MCG_STATUS => m.mcg_status = value,
            MCG_CTL => m.mcg_ctl = value,
            MISC_ENABLE => m.misc_enable = value,
            DEBUGCTL if value & !0xDFC3 == 0 => m.debug_ctl = value,
            PAT if (0..8).all(|n| memory_type(value >> (n * 8) & 0xFF, true)) => m.pat = value,
            MTRR_DEF_TYPE if memory_type(value & 0xFF, false) && value & !0xCFF == 0 => {
                m.mtrr_def_type = value;
            }
            0x200..=0x20F if mtrr_variable_ok(msr, value) => m.mtrr_variable[(msr - 0x200) as usize] = value,
            0x400..=0x427 => {
                let bank = ((msr - 0x400) / 4) as usize;
                match msr & 3 {
                    // All errors of a bank, or none.
                    0 if value == 0 || value == !0 => m.mc_ctl[bank] = value,
                    1 if value == 0 => m.mc_status[bank] = value,
                    2 => m.mc_addr[bank] = value,
                    3 => m.mc_misc[bank] = value,
                    _ => return false,
                }
            }
            STAR => m.star = value,
            LSTAR if canonical => m.lstar = value,
            CSTAR if canonical => m.cstar = value,
            SFMASK => m.sfmask = value & 0xFFFF_FFFF,
            FS_BASE if canonical => s.seg[seg::FS].base = value,
            GS_BASE if canonical => s.seg[seg::GS].base = value,
            KERNEL_GS_BASE if canonical => m.kernel_gs_base = value,
            TSC_AUX if value >> 32 == 0 => m.tsc_aux = value,
            _ => match fixed_mtrr(msr) {
                Some(n) if (0..8).all(|b| memory_type(value >> (b * 8) & 0xFF, false)) => {
                    m.mtrr_fixed[n] = value;
                }
                _ => return false,
            },
        }
        true
    }

    fn write_efer(&mut self, value: u64) -> bool {
        let e = self.model.features.ext1_edx;
        let mut allowed = efer::LMA;
        for (bit, flag) in [(ext1::SYSCALL, efer::SCE), (ext1::LM, efer::LME), (ext1::NX, efer::NXE)] {
            if e & bit != 0 {
                allowed |= flag;
            }
        }
        let old = self.state.msr.efer;
        let paging = self.state.cr0 & cr0::PG != 0;
        if value & !allowed != 0 || paging && (old ^ value) & efer::LME != 0 {
            return false;
        }
        self.state.msr.efer = value & !efer::LMA | old & efer::LMA;
        if (old ^ value) & efer::NXE != 0 {
            self.flush_tlb();
        }
        true
    }
}

/// RDMSR.
pub fn rdmsr(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    let msr = v.state.gpr[gpr::RCX] as u32;
    let Some(value) = v.read_msr(msr) else {
        tracing::debug!(target: "msr", "RDMSR {msr:#x}: #GP");
        return Err(v.protection());
    };
    put_pair(v, value);
    Ok(())
}

/// WRMSR.
pub fn wrmsr(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    v.require_cpl0()?;
    let g = &v.state.gpr;
    let msr = g[gpr::RCX] as u32;
    let value = g[gpr::RDX] << 32 | g[gpr::RAX] & 0xFFFF_FFFF;
    v.before_device_access();
    if !v.write_msr(msr, value) {
        tracing::debug!(target: "msr", "WRMSR {msr:#x} = {value:#x}: #GP");
        return Err(v.protection());
    }
    v.after_device_access();
    Err(Exit::Leave)
}

fn put_pair(v: &mut Vcpu, value: u64) {
    v.put_reg(W::D, gpr::RAX as u8, value);
    v.put_reg(W::D, gpr::RDX as u8, value >> 32);
}

/// RDTSC / RDTSCP.
pub fn rdtsc(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    if v.state.cr4 & cr4::TSD != 0 && v.state.cpl > 0 {
        return Err(v.protection());
    }
    let now = v.time_stamp();
    put_pair(v, now);
    if i.code.mnemonic() == iced_x86::Mnemonic::Rdtscp {
        let aux = v.state.msr.tsc_aux;
        v.put_reg(W::D, gpr::RCX as u8, aux);
    }
    Ok(())
}

/// RDPID: IA32_TSC_AUX into a general register.
pub fn rdpid(v: &mut Vcpu, i: &Insn) -> Result<(), Exit> {
    let aux = v.state.msr.tsc_aux;
    v.put_reg(W::Q, i.r0, aux);
    Ok(())
}

/// RDPMC: no counters exist.
pub fn rdpmc(v: &mut Vcpu, _: &Insn) -> Result<(), Exit> {
    Err(v.protection())
}
