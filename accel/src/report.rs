//! What a host's KVM can do, as found by running code, and whether it is worth taking by itself.

use std::fmt;

/// Slowest ring 0 at which `--engine auto` takes KVM, in million instructions a second: the translator does more.
const LEAST_MIPS: f64 = 50.0;

/// What is tried in tiny virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    RealMode,
    ProtectedMode,
    /// Protected mode with 32-bit paging.
    Paging32,
    LongMode,
    /// x87 and SSE at CPL 0.
    FloatingPoint0,
    /// x87 and SSE at CPL 3 of 64-bit mode.
    FloatingPoint3,
    /// INT n and the way back by IRET, in protected mode.
    SoftwareInterrupt,
    /// SYSCALL from CPL 3 and SYSRET.
    Syscall,
    /// An interrupt that waits is let in where interrupts are enabled for two instructions only.
    InterruptWindow,
    /// CPUID as the guest's model has it.
    Cpuid,
    /// A time-stamp counter that is the guest's own.
    TimeStamp,
    /// An interrupt's way from virtual-8086 mode to CPL 0, with VM in the pushed EFLAGS.
    Virtual8086,
    /// Which pages the guest wrote.
    DirtyLog,
    /// One instruction at a time, at CPL 0 and at CPL 3.
    SingleStep0,
    SingleStep3,
    /// Stops before the instruction at an address, at CPL 0 and at CPL 3.
    Breakpoint0,
    Breakpoint3,
    /// A local APIC in the kernel, with 8259As and I/O APIC outside.
    SplitIrqchip,
}

impl Trial {
    pub const ALL: [Trial; 18] = [
        Trial::RealMode,
        Trial::ProtectedMode,
        Trial::Paging32,
        Trial::LongMode,
        Trial::FloatingPoint0,
        Trial::FloatingPoint3,
        Trial::SoftwareInterrupt,
        Trial::Syscall,
        Trial::InterruptWindow,
        Trial::Cpuid,
        Trial::TimeStamp,
        Trial::Virtual8086,
        Trial::DirtyLog,
        Trial::SingleStep0,
        Trial::SingleStep3,
        Trial::Breakpoint0,
        Trial::Breakpoint3,
        Trial::SplitIrqchip,
    ];

    /// Whether guests need it. The rest saves work, or serves people who look at a guest.
    pub fn essential(self) -> bool {
        !matches!(
            self,
            Trial::DirtyLog
                | Trial::SingleStep0
                | Trial::SingleStep3
                | Trial::Breakpoint0
                | Trial::Breakpoint3
                | Trial::SplitIrqchip
        )
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Trial::RealMode => "real mode",
            Trial::ProtectedMode => "protected mode",
            Trial::Paging32 => "32-bit paging",
            Trial::LongMode => "long mode",
            Trial::FloatingPoint0 => "x87 and SSE at CPL 0",
            Trial::FloatingPoint3 => "x87 and SSE at CPL 3",
            Trial::SoftwareInterrupt => "INT n in protected mode",
            Trial::Syscall => "SYSCALL from CPL 3",
            Trial::InterruptWindow => "short interrupt windows",
            Trial::Cpuid => "a CPUID that can be set",
            Trial::TimeStamp => "a time-stamp counter of its own",
            Trial::Virtual8086 => "interrupts from virtual-8086 mode",
            Trial::DirtyLog => "a log of written pages",
            Trial::SingleStep0 => "single steps at CPL 0",
            Trial::SingleStep3 => "single steps at CPL 3",
            Trial::Breakpoint0 => "breakpoints at CPL 0",
            Trial::Breakpoint3 => "breakpoints at CPL 3",
            Trial::SplitIrqchip => "a local APIC in the kernel",
        })
    }
}

/// A trial that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub trial: Trial,
    /// What happened instead.
    pub reason: String,
}

/// How KVM runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The processor's virtualisation runs all code.
    Hardware,
    /// Software stands in for it: some code is emulated, slowly.
    Software,
}

/// See the head of this file.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub missing: Vec<Missing>,
    /// System management mode. Without it the interpreter runs what is in SMM, as it does anyway.
    pub smm: bool,
    /// Million instructions a second of a short loop at CPL 0 and at CPL 3 of long mode; 0 if that does not run, or was not
    /// measured because something that guests need is missing.
    pub ring0_mips: f64,
    pub ring3_mips: f64,
}

impl Report {
    pub fn works(&self, trial: Trial) -> bool {
        self.missing.iter().all(|missing| missing.trial != trial)
    }

    /// Trials that failed of what guests need.
    pub(crate) fn essential(&self) -> impl Iterator<Item = &Missing> {
        self.missing.iter().filter(|missing| missing.trial.essential())
    }

    pub fn kind(&self) -> Kind {
        if self.essential().next().is_none() && self.ring0_mips > LEAST_MIPS {
            Kind::Hardware
        } else {
            Kind::Software
        }
    }

    /// Whether KVM is the best engine here; the reason if not.
    pub fn worth_taking(&self) -> Result<(), String> {
        let names: Vec<String> = self.essential().map(|missing| missing.trial.to_string()).collect();
        if !names.is_empty() {
            return Err(format!("the host's KVM lacks {}", names.join(", ")));
        }
        if self.ring0_mips <= LEAST_MIPS {
            return Err(format!(
                "the host's KVM is software: {:.1} million instructions a second at CPL 0",
                self.ring0_mips
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        Report { missing: Vec::new(), smm: false, ring0_mips: 2000.0, ring3_mips: 2000.0 }
    }

    #[test]
    fn fast_and_whole_is_taken() {
        assert_eq!(good().worth_taking(), Ok(()));
        assert_eq!(good().kind(), Kind::Hardware);
    }

    #[test]
    fn slow_or_incomplete_is_not() {
        let unwatched = vec![Missing { trial: Trial::SingleStep3, reason: "SHUTDOWN".into() }];
        assert_eq!(Report { missing: unwatched, ..good() }.worth_taking(), Ok(()), "guests do not need it");
        let slow = Report { ring0_mips: 1.2, ..good() };
        assert_eq!(slow.kind(), Kind::Software);
        assert!(slow.worth_taking().is_err_and(|why| why.contains("1.2 million")));
        let missing = vec![Missing { trial: Trial::Paging32, reason: "SHUTDOWN".into() }];
        let incomplete = Report { missing, ..good() };
        assert_eq!(incomplete.kind(), Kind::Software);
        assert!(!incomplete.works(Trial::Paging32) && incomplete.works(Trial::RealMode));
        assert!(incomplete.worth_taking().is_err_and(|why| why.contains("32-bit paging")));
    }
}
