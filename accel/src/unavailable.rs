//! Why there is no KVM.

/// One line for people each; most say what helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("not on this host: it needs Linux on an x86-64 processor")]
    Host,
    #[error(
        "there is no /dev/kvm: the processor or the firmware's settings lack virtualisation, or the module kvm is not loaded"
    )]
    NoDevice,
    #[error(
        "no permission for /dev/kvm: become a member of the group kvm (usermod -a -G kvm USER) and log in again"
    )]
    NoPermission,
    #[error("the processor's virtualisation is in use by another program")]
    Busy,
    #[error("KVM speaks version {0} of its interface, not 12")]
    Version(i32),
    #[error("KVM is too old: it lacks {0}, which Linux 5.16 has")]
    TooOld(&'static str),
    /// An operation and what the system said of it.
    #[error("KVM refuses {operation}: {error}")]
    Refused { operation: &'static str, error: String },
}
