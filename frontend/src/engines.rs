//! The engines that there are, which one the options mean, and `trimaran engines`.

use crate::Failure;
use crate::cli::{EngineName, FloatingPoint, IrqchipName, Options, TierName};
use std::fmt::Write;
use std::sync::Arc;
use trimaran_accel::{Irqchip, Kind, Kvm, Report, Unavailable, mips};
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_cpu::model::Model;
use trimaran_jit::{Jit, Tier};

/// An engine, and the model that guests have on it from the start.
pub struct Choice {
    pub factory: Arc<dyn EngineFactory>,
    pub model: Model,
}

/// The engine that the options mean. Where `auto` could have taken another, it says in a line why it did not.
pub fn choose(options: &Options) -> Result<Choice, Failure> {
    let soft = options.fp == FloatingPoint::Soft;
    trimaran_cpu::use_soft(soft);
    let software = |factory| Ok(Choice { factory, model: options.cpu.clone() });
    match options.engine {
        EngineName::Interp => software(Arc::new(Interpreter)),
        EngineName::Jit => software(Arc::new(jit(options))),
        EngineName::Kvm if soft => {
            Err(anyhow::anyhow!("--engine kvm: x87 is the host's there; --fp soft is for jit and interp")
                .into())
        }
        EngineName::Kvm => match Kvm::open().and_then(|kvm| kvm.with_irqchip(irqchip(options))) {
            Ok(kvm) => Ok(under(kvm, options)),
            Err(reason) => Err(anyhow::anyhow!("--engine kvm: {reason}").into()),
        },
        // These are the translator's alone.
        EngineName::Auto if options.deterministic || options.tier.is_some() || soft => {
            software(Arc::new(jit(options)))
        }
        EngineName::Auto => match take(Kvm::open().and_then(|kvm| kvm.with_irqchip(irqchip(options)))) {
            Ok(kvm) => Ok(under(kvm, options)),
            Err(reason) => {
                eprintln!("trimaran: the translator runs the guest: {reason}");
                software(Arc::new(jit(options)))
            }
        },
    }
}

/// Who plays the local APIC under KVM. The kernel's does not tell that all processors have halted for good.
fn irqchip(options: &Options) -> Irqchip {
    match options.kvm_irqchip {
        IrqchipName::Split if !options.exit_on_halt => Irqchip::Split,
        _ => Irqchip::User,
    }
}

fn under(kvm: Kvm, options: &Options) -> Choice {
    let model = kvm.reduce(&options.cpu);
    Choice { factory: Arc::new(kvm), model }
}

/// KVM, if it is the best engine here; otherwise why not.
fn take(kvm: Result<Kvm, Unavailable>) -> Result<Kvm, String> {
    let kvm = kvm.map_err(|reason| reason.to_string())?;
    kvm.report().worth_taking()?;
    Ok(kvm)
}

/// The translator as the options want it.
fn jit(options: &Options) -> Jit {
    let mut jit = Jit::default();
    jit.options.code_cache = usize::try_from(options.code_cache).unwrap_or(usize::MAX);
    jit.options.dump_region = options.dump_region;
    jit.options.perf_map = options.perf_map;
    jit.options.first_regions = options.first_regions;
    jit.options.no_links = options.no_links;
    jit.options.no_shared_checks = options.no_shared_checks;
    if !options.only_instructions.is_empty() {
        // For as long as the program runs.
        jit.options.only = Some(options.only_instructions.clone().leak());
    }
    jit.options.tier = match options.tier {
        None => jit.options.tier,
        Some(TierName::Interp) => Tier::Interp,
        Some(TierName::Emit) => Tier::Emit,
        Some(TierName::Cranelift) => Tier::Cranelift,
        Some(TierName::All) => Tier::All,
    };
    jit
}

/// What `trimaran engines` prints.
pub fn table() -> String {
    let mut text = format!("{:8}{:24}{:>10}{:>10}\n", "engine", "kind", "CPL 0", "CPL 3");
    for factory in [&Interpreter as &dyn EngineFactory, &Jit::default()] {
        text += &row(factory.name(), "software", [mips(factory, 0), mips(factory, 3)]);
    }
    let kvm = Kvm::open().and_then(Kvm::measured);
    match &kvm {
        Ok(kvm) => text += &kvm_rows(kvm.report()),
        Err(reason) => _ = writeln!(text, "{:8}{reason}", "kvm"),
    }
    text += "\nSpeeds are million instructions a second of a short loop in 64-bit mode.\n";
    let choice = match take(kvm) {
        Ok(_) => "--engine auto takes kvm.\n".into(),
        Err(reason) => format!("--engine auto takes jit: {reason}.\n"),
    };
    text + &choice
}

fn row(name: &str, kind: &str, speeds: [f64; 2]) -> String {
    let speed = |mips: f64| if mips == 0.0 { "-".into() } else { format!("{mips:.1}") };
    format!("{name:8}{kind:24}{:>10}{:>10}\n", speed(speeds[0]), speed(speeds[1]))
}

fn kvm_rows(report: &Report) -> String {
    let kind = match report.kind() {
        Kind::Hardware => "hardware",
        Kind::Software => "software KVM",
    };
    let mut text = row("kvm", kind, [report.ring0_mips, report.ring3_mips]);
    for missing in &report.missing {
        let _ = writeln!(text, "{:8}lacks {}: {}", "", missing.trial, missing.reason);
    }
    if !report.missing.is_empty() {
        let _ = writeln!(text, "{:8}Modes and instructions that it lacks, the interpreter runs.", "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_accel::{Missing, Trial};

    #[test]
    fn kvm_is_described_with_what_it_lacks() {
        let missing = vec![Missing { trial: Trial::Paging32, reason: "exit shutdown".into() }];
        let report = Report { missing, smm: false, ring0_mips: 1.25, ring3_mips: 0.0 };
        let text = kvm_rows(&report);
        assert!(
            text.contains("software KVM") && text.contains("lacks 32-bit paging: exit shutdown"),
            "{text}"
        );
        assert!(text.contains("1.2") && text.contains('-'), "{text}");
    }
}
