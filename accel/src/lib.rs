//! The KVM engine: the host's own processor runs the guest, and Trimaran's chips stay around it.
//!
//! What the host's processor or its KVM cannot do, and what is rare (SMM, INIT, a masked address line 20), the
//! interpreter does: each engine keeps a [`trimaran_cpu::Vcpu`], whose state is the engine's state while KVM does not
//! hold it.
//!
//! A host that offers a KVM may offer little: [`Report`] is what was found by running code in tiny virtual machines.

mod irqchip;
mod report;
mod speed;
mod tiny;
mod unavailable;

pub use irqchip::Irqchip;
pub use report::{Kind, Missing, Report, Trial};
pub use speed::{DATA_BYTES, Program, mips};
pub use unavailable::Unavailable;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod kvm;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use kvm::Kvm;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod elsewhere;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub use elsewhere::Kvm;
