//! Who plays the local APIC of a machine under KVM.

/// See the head of this file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// The kernel where that works and pays: one processor, a KVM made of hardware.
    #[default]
    Auto,
    /// The kernel, or KVM is refused.
    Split,
    /// The machine's own chip.
    User,
}
