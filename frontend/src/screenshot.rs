//! The screen as a PNG file.

use anyhow::Context;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use trimaran_devices::vga::Frame;
use trimaran_machine::Machine;

/// Writes what the guest shows now.
pub fn save(machine: &Machine, path: &Path) -> anyhow::Result<()> {
    let mut frame = Frame::default();
    machine.render(&mut frame);
    anyhow::ensure!(frame.width > 0 && frame.height > 0, "the guest shows no picture now");
    write(&frame, path).with_context(|| format!("cannot write {}", path.display()))
}

fn write(frame: &Frame, path: &Path) -> anyhow::Result<()> {
    let mut encoder =
        png::Encoder::new(BufWriter::new(File::create(path)?), frame.width as u32, frame.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let bytes: Vec<u8> =
        frame.pixels.iter().flat_map(|p| [(p >> 16) as u8, (p >> 8) as u8, *p as u8]).collect();
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&bytes)?;
    writer.finish()?;
    Ok(())
}
