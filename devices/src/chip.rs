//! What every chip of the board has in common.
//!
//! A chip is pure: register accesses, input pins and the passing of virtual time go in, [`Effect`]s come
//! out. It knows no bus, holds no lock, starts no thread and never reads a host clock. The board applies the
//! effects after the chip's lock is released, so no chip ever runs inside another.

use serde::{Serialize, de::DeserializeOwned};

/// Virtual time in nanoseconds since the machine was powered on.
pub type Nanos = u64;

/// Guest RAM as a bus master sees it: RAM only, never MMIO.
pub trait Dma {
    /// Copies guest-physical memory into `buf`. Bytes where no RAM answers read as 0xFF.
    fn read(&self, address: u64, buf: &mut [u8]);
    /// Copies `buf` into guest-physical memory. Bytes where no RAM answers (or where it is ROM) are dropped.
    fn write(&self, address: u64, buf: &[u8]);
}

/// Memory that a chip shares with the processors: the VGA's video RAM. Accesses out of range are the
/// caller's error: reads give zeros, writes are dropped.
pub trait SharedBytes: Send + Sync {
    /// Size in bytes.
    fn len(&self) -> usize;
    fn read(&self, offset: usize, buf: &mut [u8]);
    fn write(&self, offset: usize, buf: &[u8]);
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether any byte of `range` was written since the last call for it (the mark is cleared). Memory that
    /// keeps no dirty log always says yes.
    fn take_dirty(&self, _range: std::ops::Range<usize>) -> bool {
        true
    }
}

/// A message on the APIC bus (SDM Vol. 3, "Issuing Interprocessor Interrupts"; 82093AA, redirection table).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// Destination field: an APIC ID (physical) or a message destination address (logical).
    pub destination: u32,
    pub logical: bool,
    pub delivery: Delivery,
    pub vector: u8,
    /// Level-triggered (true) or edge-triggered.
    pub level_triggered: bool,
    /// Assert (true) or de-assert (INIT level de-assert only).
    pub assert: bool,
    pub shorthand: Shorthand,
}

/// Destination shorthand of an ICR write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    None,
    ToSelf,
    AllIncludingSelf,
    AllExcludingSelf,
}

/// Delivery mode of an APIC message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Fixed,
    LowestPriority,
    Smi,
    Nmi,
    Init,
    StartUp,
    ExtInt,
}

/// What a chip does to the world outside itself. Applied by the board, in order, once the chip is unlocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Output pin `pin` of this chip (constants stand in the chip's file) went to `level`. Repeating the
    /// level a pin already has is harmless.
    Line { pin: u8, level: bool },
    /// One byte leaves the chip: UART transmit, printer data, debug console.
    Output { byte: u8 },
    /// An interrupt message: from an IOAPIC, an HPET in FSB mode, a local APIC's ICR.
    Apic(ApicMessage),
    /// A local APIC finished a level-triggered interrupt with this vector; IOAPICs want to know.
    EndOfInterrupt { vector: u8 },
    /// The guest asked for a full platform reset.
    Reset,
    /// The guest asked for INIT of the processors only (keyboard controller, port 92h).
    InitCpu,
    /// ACPI S5: power off.
    PowerOff,
    /// Address line 20 of the processors: enabled (true) or forced to 0.
    A20 { enabled: bool },
    /// A software SMI was requested (APM control port 0xB2).
    Smi,
    /// isa-debug-exit: leave the program with this status.
    Exit { status: i32 },
    /// The memory or port map may have changed (PCI BAR or command register, PAM, SMRAM, PMBASE …); the
    /// board reads the new one from the chips.
    Remap,
    /// An 8237 cycle on this channel was requested (true) or withdrawn by the device.
    DmaRequest { channel: u8, level: bool },
}

/// What a chip may touch during one call.
pub struct Cx<'a> {
    /// Virtual time of this call.
    pub now: Nanos,
    /// Guest RAM, for bus masters.
    pub ram: &'a dyn Dma,
    /// Effects so far; the board applies them after the call.
    pub effects: &'a mut Vec<Effect>,
}

impl Cx<'_> {
    /// Drives an output pin.
    pub fn line(&mut self, pin: u8, level: bool) {
        self.effects.push(Effect::Line { pin, level });
    }
    /// Adds an effect.
    pub fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}

/// A saved state that a chip refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    #[error("{chip}: state version {found}, this program reads {wanted}")]
    Version { chip: &'static str, found: u16, wanted: u16 },
    #[error("{chip}: damaged state ({reason})")]
    Damaged { chip: &'static str, reason: String },
}

/// Encodes a chip's state: its version, then the fields.
pub fn encode<T: Serialize>(version: u16, state: &T) -> Vec<u8> {
    let mut out = version.to_le_bytes().to_vec();
    // A `Vec` writer and plain data cannot fail.
    out.extend(postcard::to_stdvec(state).unwrap_or_default());
    out
}

/// Decodes what [`encode`] wrote. The caller checks the ranges of what comes back.
pub fn decode<T: DeserializeOwned>(chip: &'static str, wanted: u16, bytes: &[u8]) -> Result<T, StateError> {
    let damaged = |reason: String| StateError::Damaged { chip, reason };
    let (head, body) = bytes.split_at_checked(2).ok_or_else(|| damaged("shorter than its header".into()))?;
    let found = u16::from_le_bytes([head[0], head[1]]);
    if found != wanted {
        return Err(StateError::Version { chip, found, wanted });
    }
    let (state, rest) = postcard::take_from_bytes(body).map_err(|e| damaged(e.to_string()))?;
    if rest.is_empty() { Ok(state) } else { Err(damaged(format!("{} bytes too long", rest.len()))) }
}

/// A chip on the board.
///
/// `window` tells which of the chip's register windows an access hits (constants in the chip's file);
/// `offset` counts bytes from the start of that window, `size` is 1, 2, 4 or 8 bytes. Any combination may
/// come from a hostile guest: unknown ones read as all ones of that size and ignore writes.
pub trait Chip: Send {
    /// Short name, as in `info <device>`: lower case, no spaces.
    fn name(&self) -> &'static str;
    /// RESET#: back to the power-on state. Media, connections and wall-clock settings stay.
    fn reset(&mut self, cx: &mut Cx);
    fn read(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8) -> u64;
    fn write(&mut self, cx: &mut Cx, window: u8, offset: u64, size: u8, value: u64);
    /// An input pin changed.
    fn input(&mut self, _cx: &mut Cx, _pin: u8, _level: bool) {}
    /// The virtual time at which [`Chip::event`] wants to be called, asked after every call. Derived from
    /// state, so that a restored chip needs nothing else.
    fn next_event(&self) -> Option<Nanos> {
        None
    }
    /// `cx.now` has reached [`Chip::next_event`] (it may be later). Must move `next_event` on.
    fn event(&mut self, _cx: &mut Cx) {}
    /// The PCI configuration header, where the chip is a PCI function. Its bytes are reached through
    /// [`PCI_CONFIG`].
    fn pci(&self) -> Option<&crate::pci::PciConfig> {
        None
    }
    /// Everything that a snapshot must hold, by [`encode`].
    fn save(&self) -> Vec<u8>;
    /// Takes a state from [`Chip::save`]; on an error the chip is as before. No effects: the board restores
    /// line levels from its own state.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), StateError>;
    /// A few lines of text for the monitor's `info <device>`.
    fn info(&self) -> String;
}

/// The window of a PCI function's 256-byte configuration space, on every chip that has one.
pub const PCI_CONFIG: u8 = 0xFF;

/// All ones of `size` bytes: what an undriven bus reads as.
pub const fn open_bus(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size as u32 * 8)) - 1 }
}
