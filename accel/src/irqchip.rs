//! Who plays the local APIC of a machine under KVM.

/// See the head of this file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// The machine's own chip.
    #[default]
    User,
    /// The kernel, or KVM is refused.
    Split,
}
