//! Exceptions, and how an instruction leaves its handler when it does not simply end.

/// Exception vectors (SDM Vol. 3, "Interrupt and Exception Handling").
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// An exception that an instruction raised. Kept in the vCPU; [`Exit::Fault`] says that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: Option<u16>,
    /// For #PF: the linear address.
    pub address: u64,
    /// For #DB: the DR6 bits.
    pub dr6: u64,
}

/// Why a handler did not run to its end as usual. One byte, so that a `Result` stays in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// An exception, described in `Vcpu::fault`. The instruction left no trace.
    Fault,
    /// The instruction retired; something that blocks depend on (mode, mapping, interrupts) changed.
    Leave,
    /// One iteration of a REP instruction retired; RIP points at it again.
    Again,
}
