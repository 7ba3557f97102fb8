//! Trace channels: what `--trace` can print, in one place.

use crate::Failure;
use crate::cli::Options;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A channel: its name, the `tracing` targets that it shows, and what one reads there.
#[derive(Debug)]
pub struct Channel {
    pub name: &'static str,
    targets: &'static [&'static str],
    meaning: &'static str,
}

pub const CHANNELS: &[Channel] = &[
    Channel {
        name: "cpu",
        targets: &["cpu", "trimaran_cpu"],
        meaning: "exceptions, interrupts, what the processor lacks",
    },
    Channel { name: "msr", targets: &["msr"], meaning: "model-specific registers that are not known" },
    Channel {
        name: "ide",
        targets: &["ide", "trimaran_devices::ide"],
        meaning: "commands of disks and CD-ROM drives",
    },
    Channel {
        name: "floppy",
        targets: &["floppy", "trimaran_devices::floppy"],
        meaning: "commands of the floppy controller",
    },
    Channel {
        name: "boot",
        targets: &["trimaran_machine::boot", "trimaran_machine::direct"],
        meaning: "direct boot: what is loaded where",
    },
    Channel {
        name: "firmware",
        targets: &["trimaran_machine::firmware"],
        meaning: "firmware and what it reads",
    },
    Channel {
        name: "machine",
        targets: &["trimaran_machine"],
        meaning: "resets, power, threads, the board as a whole",
    },
    Channel { name: "devices", targets: &["ide", "floppy", "trimaran_devices"], meaning: "all chips" },
    Channel { name: "all", targets: &["cpu", "msr", "ide", "floppy", "trimaran"], meaning: "everything" },
];

/// Targets whose warnings are always printed: our own.
const WARNINGS: [&str; 5] = ["trimaran", "cpu", "msr", "ide", "floppy"];

/// A channel by its name.
pub fn parse(name: &str) -> Result<&'static Channel, String> {
    CHANNELS.iter().find(|channel| channel.name == name).ok_or_else(|| {
        let list = CHANNELS.iter().map(|c| format!("\n  {:<9} {}", c.name, c.meaning));
        format!("the channels are:{}", list.collect::<String>())
    })
}

/// Has warnings and the chosen channels printed on stderr.
pub fn start(options: &Options) -> Result<(), Failure> {
    let filter = WARNINGS.iter().fold(Targets::new().with_default(LevelFilter::ERROR), |filter, target| {
        filter.with_target(*target, LevelFilter::WARN)
    });
    let chosen = options.trace.iter().flat_map(|channel| channel.targets);
    let filter = chosen.fold(filter, |filter, target| filter.with_target(*target, LevelFilter::TRACE));
    let print = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time();
    tracing_subscriber::registry().with(print).with(filter).try_init()?;
    Ok(())
}
