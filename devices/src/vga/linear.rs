//! Linear modes (DISPI): bytes of video memory as rows of pixels.

use super::dispi::Dispi;
use super::render::planar;
use crate::chip::SharedBytes;

/// A linear mode, and the colours of pixel values.
#[derive(Clone, PartialEq)]
pub struct Linear {
    pub dispi: Dispi,
    pub lookup: [u32; 256],
}

fn five(value: u32) -> u32 {
    value << 3 | value >> 2
}

fn six(value: u32) -> u32 {
    value << 2 | value >> 4
}

impl Linear {
    /// Width and height.
    pub fn size(&self) -> (usize, usize) {
        (usize::from(self.dispi.xres), usize::from(self.dispi.yres))
    }

    /// Bytes of video memory that a row is made from.
    pub fn row_bytes(&self) -> usize {
        let width = usize::from(self.dispi.xres);
        match self.dispi.bpp {
            4 => width.div_ceil(8) * 4 + 4,
            bpp => width * usize::from(bpp).div_ceil(8),
        }
    }

    /// Reads a row's bytes; 0 beyond the end of video memory.
    pub fn fetch(&self, vram: &dyn SharedBytes, y: usize, line: &mut [u8]) {
        let scale = if self.dispi.bpp == 4 { 4 } else { 1 };
        let from = (self.dispi.start() + y * self.dispi.stride()) * scale;
        let there = line.len().min(vram.len().saturating_sub(from));
        let (line, beyond) = line.split_at_mut(there);
        vram.read(from, line);
        beyond.fill(0);
    }

    /// A row's pixels.
    pub fn draw(&self, line: &[u8], row: &mut [u32]) {
        match self.dispi.bpp {
            4 => {
                let pan = usize::from(self.dispi.x_offset & 7);
                let planes = line.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
                let pixels = planes.flat_map(planar).skip(pan);
                for (to, value) in row.iter_mut().zip(pixels) {
                    *to = self.lookup[usize::from(value)];
                }
            }
            8 => {
                for (to, &value) in row.iter_mut().zip(line) {
                    *to = self.lookup[usize::from(value)];
                }
            }
            15 | 16 => {
                for (to, pair) in row.iter_mut().zip(line.chunks_exact(2)) {
                    let value = u32::from(u16::from_le_bytes([pair[0], pair[1]]));
                    let (red, green) = match self.dispi.bpp {
                        16 => (five(value >> 11), six(value >> 5 & 0x3F)),
                        _ => (five(value >> 10 & 0x1F), five(value >> 5 & 0x1F)),
                    };
                    *to = red << 16 | green << 8 | five(value & 0x1F);
                }
            }
            bpp => {
                let unit = if bpp == 24 { 3 } else { 4 };
                for (to, p) in row.iter_mut().zip(line.chunks_exact(unit)) {
                    *to = u32::from_le_bytes([p[0], p[1], p[2], 0]);
                }
            }
        }
    }
}
