//! Boots a machine on the interpreter, its consoles on the terminal:
//! `boot [seconds] [-cdrom FILE] [-hda FILE] [-fda FILE] [-kernel FILE] [-initrd FILE] [-append TEXT] [-smp N] [-m MB] [-det] [-info TOPIC] [-trace START END]`.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use trimaran_cpu::engine::{EngineFactory, Interpreter};
use trimaran_machine::boot::DirectBoot;
use trimaran_machine::media::RawImage;
use trimaran_machine::{Console, IdeDrive, Machine, MachineConfig, firmware};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = MachineConfig { debug_exit: Some(0xF4), ..MachineConfig::default() };
    let mut seconds = 30;
    let mut trace = None;
    let mut topics = vec!["registers".to_string(), "stats".to_string()];
    let mut direct = DirectBoot {
        kernel: Vec::new(),
        initrd: None,
        modules: Vec::new(),
        append: String::new(),
        ..Default::default()
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or("an argument is missing");
        match arg.as_str() {
            "-cdrom" => {
                let image = RawImage::open(Path::new(&value()?), true)?;
                config.ide[2] = Some(IdeDrive::CdRom(Some(Box::new(image))));
            }
            "-hda" => {
                config.ide[0] = Some(IdeDrive::Disk(Box::new(RawImage::open(Path::new(&value()?), false)?)));
            }
            "-fda" => config.floppies[0] = Some(Some(Box::new(RawImage::open(Path::new(&value()?), true)?))),
            "-kernel" => direct.kernel = std::fs::read(value()?)?,
            "-initrd" => direct.initrd = Some(std::fs::read(value()?)?),
            "-append" => direct.append = value()?,
            "-smp" => config.cpus = value()?.parse()?,
            "-m" => config.memory = value()?.parse::<u64>()? << 20,
            "-info" => topics.push(value()?),
            "-trace" => {
                config.deterministic = true;
                trace = Some((value()?.parse::<u64>()?, value()?.parse::<u64>()?));
            }
            "-det" => config.deterministic = true,
            _ => seconds = arg.parse()?,
        }
    }
    for console in [Console::Serial(0), Console::Debug, Console::Firmware] {
        config.sinks.push((console, Box::new(std::io::stdout())));
    }
    if direct.kernel.is_empty() {
        let (bios, vga) = firmware::find_seabios().ok_or("SeaBIOS is not installed")?;
        config.firmware = Some(std::fs::read(bios)?);
        config.vga_bios = Some(std::fs::read(vga)?);
    } else {
        config.direct = Some(direct);
    }
    let factory: Arc<dyn EngineFactory> = Arc::new(Interpreter);
    let mut machine = Machine::new(config, &factory)?;
    if let Some((start, end)) = trace {
        for time in start..end {
            machine.run_until(time);
            let Some(s) = machine.cpu_state(0) else { break };
            println!("{time} {:x} {:x?} {:x}", s.rip(), &s.gpr[..16], s.rflags.bits());
        }
        return Ok(());
    }
    machine.start();
    let outcome = machine.wait_for(Duration::from_secs(seconds));
    machine.pause();
    std::io::stdout().flush()?;
    println!("\n{outcome:?}\n{}", machine.screen_text());
    for topic in topics {
        println!("{}", machine.info(&topic)?);
    }
    Ok(())
}
