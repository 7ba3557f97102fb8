//! The architectural state of one processor: plain data, nothing else.
//!
//! Every engine writes all of it back before it returns, so a state can be compared, saved, or handed to
//! another engine. TLBs, decoded blocks and lazy flags are caches that live beside it (`vcpu.rs`).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use serde_big_array::BigArray;

/// Numbers of the general registers in the encoding of instructions.
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    /// Not a register of the manual: the instruction pointer stands in the same array, so that a
    /// RIP-relative address is an address with a base like any other.
    pub const RIP: usize = 16;
    /// Always zero: "no base", "no index".
    pub const ZERO: usize = 17;
    /// Length of the array.
    pub const COUNT: usize = 18;
}

/// Numbers of the segment registers in the encoding of instructions.
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
    /// Not a register: base 0, no limit. Stands for segments that are known to be flat.
    pub const FLAT: usize = 6;
    /// The same for accesses whose faults are #SS.
    pub const FLAT_STACK: usize = 7;
    pub const COUNT: usize = 8;
}

bitflags! {
    /// RFLAGS (SDM Vol. 1, "EFLAGS Register").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct RFlags: u64 {
        const CF = 1 << 0;
        const ONE = 1 << 1;
        const PF = 1 << 2;
        const AF = 1 << 4;
        const ZF = 1 << 6;
        const SF = 1 << 7;
        const TF = 1 << 8;
        const IF = 1 << 9;
        const DF = 1 << 10;
        const OF = 1 << 11;
        const IOPL = 3 << 12;
        const NT = 1 << 14;
        const RF = 1 << 16;
        const VM = 1 << 17;
        const AC = 1 << 18;
        const VIF = 1 << 19;
        const VIP = 1 << 20;
        const ID = 1 << 21;
        /// The six flags that arithmetic sets.
        const STATUS = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11;
        const _ = !0;
    }
}

/// CR0 (SDM Vol. 3, "Control Registers").
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 (SDM Vol. 3, "Control Registers").
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    /// 5-level paging in long mode: linear addresses have 57 bits.
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
}

/// IA32_EFER.
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// A segment register with its hidden part.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub selector: u16,
    /// Bits 40..55 of the descriptor, moved to bit 0: type (0-3), S (4), DPL (5-6), P (7), limit 16-19
    /// (8-11, kept 0 here), AVL (12), L (13), D/B (14), G (15).
    pub attributes: u16,
    /// In bytes, granularity applied; the last valid offset.
    pub limit: u32,
    pub base: u64,
}

/// Bits of [`Segment::attributes`].
pub mod attr {
    /// Code: readable; data: writable.
    pub const RW: u16 = 1 << 1;
    /// Accessed.
    pub const A: u16 = 1 << 0;
    /// Code: conforming; data: expand-down.
    pub const EC: u16 = 1 << 2;
    pub const CODE: u16 = 1 << 3;
    /// Code or data (1) or system (0).
    pub const S: u16 = 1 << 4;
    pub const P: u16 = 1 << 7;
    pub const L: u16 = 1 << 13;
    pub const DB: u16 = 1 << 14;
    pub const G: u16 = 1 << 15;
    /// Ours: loaded with a null selector (or reset), not usable.
    pub const UNUSABLE: u16 = 1 << 8;
}

impl Segment {
    /// What real mode and virtual-8086 mode load.
    pub const fn real(selector: u16, attributes: u16) -> Self {
        Segment { selector, attributes, limit: 0xFFFF, base: (selector as u64) << 4 }
    }
    /// A null selector.
    pub const fn null(selector: u16) -> Self {
        Segment { selector, attributes: attr::UNUSABLE, limit: 0, base: 0 }
    }
    pub const fn typ(&self) -> u16 {
        self.attributes & 0xF
    }
    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }
    pub const fn rpl(&self) -> u8 {
        (self.selector & 3) as u8
    }
    pub const fn has(&self, bits: u16) -> bool {
        self.attributes & bits == bits
    }
    pub const fn usable(&self) -> bool {
        self.attributes & attr::UNUSABLE == 0
    }
    /// D (code) or B (stack): 32-bit.
    pub const fn big(&self) -> bool {
        self.attributes & attr::DB != 0
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    pub base: u64,
    pub limit: u16,
}

/// An x87 register: 80-bit extended precision.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct F80 {
    /// Significand with its explicit integer bit.
    pub significand: u64,
    /// Sign (bit 15) and biased exponent.
    pub sign_exponent: u16,
}

/// The x87 unit (SDM Vol. 1, "x87 FPU Execution Environment").
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct X87 {
    /// R0..R7 by physical number; ST(i) is `registers[(TOP + i) & 7]`. MMX registers are the significands.
    pub registers: [F80; 8],
    pub control: u16,
    /// TOP included.
    pub status: u16,
    /// One bit a physical register: 1 = not empty (the form of FXSAVE).
    pub valid: u8,
    /// Last opcode (11 bits), instruction and data pointers.
    pub opcode: u16,
    pub instruction_selector: u16,
    pub data_selector: u16,
    pub instruction_pointer: u64,
    pub data_pointer: u64,
}

/// Whether the processor executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Activity {
    Running,
    Halted,
    /// In MWAIT: as halted, and the machine ends it after a short time.
    MonitorWait,
    WaitForSipi,
    /// A triple fault.
    Shutdown,
}

/// Event that an instruction boundary must not lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Shadow {
    None,
    /// After STI.
    Sti,
    /// After MOV SS / POP SS: debug traps wait too.
    MovSs,
}

/// Model-specific registers with plain storage. Those of the APIC belong to it.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Msrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// IA32_TSC less the machine's clock.
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub debug_ctl: u64,
    pub mtrr_def_type: u64,
    /// 64K, 16K x2, 4K x8.
    pub mtrr_fixed: [u64; 11],
    /// Base and mask of 8 ranges.
    pub mtrr_variable: [u64; 16],
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    pub mc_ctl: [u64; 10],
    pub mc_status: [u64; 10],
    pub mc_addr: [u64; 10],
    pub mc_misc: [u64; 10],
    pub smbase: u64,
    pub spec_ctrl: u64,
    pub bios_sign_id: u64,
}

/// See the head of this file.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuState {
    /// The general registers, then RIP and a constant zero (see [`gpr`]).
    pub gpr: [u64; gpr::COUNT],
    pub rflags: RFlags,
    /// ES, CS, SS, DS, FS, GS, then [`seg::FLAT`] and [`seg::FLAT_STACK`].
    pub seg: [Segment; seg::COUNT],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    /// Current privilege level. Kept apart from CS.RPL and SS.DPL, which must agree outside transitions.
    pub cpl: u8,
    pub activity: Activity,
    pub shadow: Shadow,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// NMIs that wait: one is latched, one more while none is being handled.
    pub nmis_pending: u8,
    /// In system management mode.
    pub smm: bool,
    pub smi_pending: bool,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    /// Access-disable and write-disable bits of the 16 protection keys.
    pub pkru: u32,
    /// The four PDPTEs that PAE paging loaded with CR3.
    pub pdpte: [u64; 4],
    /// DR0..DR3, unused, unused, DR6, DR7.
    pub dr: [u64; 8],
    /// Debug exceptions that wait for the instruction boundary, as DR6 bits (data breakpoints, single step).
    pub pending_debug: u64,
    pub msr: Msrs,
    /// MONITOR's address (physical, of the line), if armed.
    pub monitor: Option<u64>,
    pub x87: X87,
    pub mxcsr: u32,
    /// Vector registers, 512 bits each, little-endian quadwords.
    #[serde(with = "BigArray")]
    pub zmm: [[u64; 8]; 32],
    pub k: [u64; 8],
    /// Instructions retired (a REP iteration counts one, a fault none).
    pub retired: u64,
}

impl CpuState {
    /// The state after RESET# (SDM Vol. 3, "Processor State After Reset"). `signature` goes to EDX.
    pub fn reset(signature: u32, bootstrap: bool) -> Self {
        let data = attr::P | attr::S | attr::RW | attr::A;
        let segment = Segment { selector: 0, attributes: data, limit: 0xFFFF, base: 0 };
        let mut seg = [segment; seg::COUNT];
        seg[seg::CS] =
            Segment { selector: 0xF000, attributes: data | attr::CODE, limit: 0xFFFF, base: 0xFFFF_0000 };
        seg[seg::FLAT] = Segment { selector: 0, attributes: data | attr::DB | attr::G, limit: !0, base: 0 };
        seg[seg::FLAT_STACK] = seg[seg::FLAT];
        let mut gpr = [0; gpr::COUNT];
        gpr[gpr::RDX] = u64::from(signature);
        gpr[gpr::RIP] = 0xFFF0;
        let table = TableRegister { base: 0, limit: 0xFFFF };
        CpuState {
            gpr,
            rflags: RFlags::ONE,
            seg,
            ldtr: Segment { selector: 0, attributes: attr::P | 2, limit: 0xFFFF, base: 0 },
            tr: Segment { selector: 0, attributes: attr::P | 11, limit: 0xFFFF, base: 0 },
            gdtr: table,
            idtr: table,
            cpl: 0,
            activity: if bootstrap { Activity::Running } else { Activity::WaitForSipi },
            shadow: Shadow::None,
            nmi_blocked: false,
            nmis_pending: 0,
            smm: false,
            smi_pending: false,
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            pkru: 0,
            pdpte: [0; 4],
            dr: [0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400],
            pending_debug: 0,
            msr: Msrs {
                efer: 0,
                star: 0,
                lstar: 0,
                cstar: 0,
                sfmask: 0,
                kernel_gs_base: 0,
                sysenter_cs: 0,
                sysenter_esp: 0,
                sysenter_eip: 0,
                pat: 0x0007_0406_0007_0406,
                tsc_aux: 0,
                tsc_offset: 0,
                tsc_adjust: 0,
                misc_enable: 1,
                debug_ctl: 0,
                mtrr_def_type: 0,
                mtrr_fixed: [0; 11],
                mtrr_variable: [0; 16],
                mcg_status: 0,
                mcg_ctl: 0,
                mc_ctl: [0; 10],
                mc_status: [0; 10],
                mc_addr: [0; 10],
                mc_misc: [0; 10],
                smbase: 0x3_0000,
                spec_ctrl: 0,
                bios_sign_id: 0,
            },
            monitor: None,
            x87: X87 {
                registers: [F80::default(); 8],
                control: 0x40,
                status: 0,
                valid: 0xFF,
                opcode: 0,
                instruction_selector: 0,
                data_selector: 0,
                instruction_pointer: 0,
                data_pointer: 0,
            },
            mxcsr: 0x1F80,
            zmm: [[0; 8]; 32],
            k: [0; 8],
            retired: 0,
        }
    }

    pub fn rip(&self) -> u64 {
        self.gpr[gpr::RIP]
    }
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }
    pub fn v86(&self) -> bool {
        self.rflags.contains(RFlags::VM)
    }
    /// Real-address or virtual-8086 mode: segments are selectors times 16.
    pub fn real_or_v86(&self) -> bool {
        !self.protected() || self.v86()
    }
    /// IA32_EFER.LMA.
    pub fn long_mode(&self) -> bool {
        self.msr.efer & efer::LMA != 0
    }
    /// The system has said that it saves AVX state: CR4.OSXSAVE, and SSE and AVX in XCR0.
    pub fn avx_enabled(&self) -> bool {
        self.cr4 & cr4::OSXSAVE != 0 && self.xcr0 & 6 == 6
    }
    /// 64-bit mode proper (not compatibility mode).
    pub fn code64(&self) -> bool {
        self.long_mode() && self.seg[seg::CS].has(attr::L)
    }
    /// Whether long mode's addresses have 57 bits, of 5-level paging, not 48.
    pub fn la57(&self) -> bool {
        self.cr4 & cr4::LA57 != 0
    }
    /// Whether the bits above a linear address's are all like its highest, in the current kind of paging.
    #[inline(always)]
    pub fn canonical(&self, address: u64) -> bool {
        extended(address, 48) || self.la57() && extended(address, 57)
    }
    /// Linear address of the next instruction.
    pub fn code_address(&self) -> u64 {
        let rip = self.gpr[gpr::RIP];
        if self.code64() { rip } else { self.seg[seg::CS].base.wrapping_add(rip) & 0xFFFF_FFFF }
    }
    pub fn iopl(&self) -> u8 {
        (self.rflags.bits() >> 12 & 3) as u8
    }
}
/// Whether an address is what sign extension makes of its low `bits`.
#[inline(always)]
pub(crate) fn extended(address: u64, bits: u32) -> bool {
    let unused = 64 - bits;
    ((address as i64) << unused >> unused) as u64 == address
}
