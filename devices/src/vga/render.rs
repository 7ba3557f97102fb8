//! What the monitor shows: video memory through the CRT controller, the attribute controller and the DAC.
//!
//! A frame has the raster's size: a line for each scan line, a column for each dot, so the 320x200 modes come
//! out as 640x400.

use super::Vga;
use super::linear::Linear;
use crate::chip::Nanos;

/// A picture, 0x00RRGGBB a pixel, rows without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<u32>,
}

impl Frame {
    pub(super) fn resize(&mut self, width: usize, height: usize) {
        (self.width, self.height) = (width, height);
        self.pixels.clear();
        self.pixels.resize(width * height, 0);
    }
}

/// The characters on the screen in a text mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextScreen {
    pub columns: usize,
    pub rows: usize,
    /// Code and attribute, row by row.
    pub cells: Vec<(u8, u8)>,
    /// Column and row, where the cursor is on.
    pub cursor: Option<(usize, usize)>,
}

/// Plane addresses wrap at 64 KB.
const PLANE_MASK: usize = 0xFFFF;

/// Bits of a plane byte as eight pixel values of that plane's weight, leftmost first.
pub(super) fn planar(planes: [u8; 4]) -> [u8; 8] {
    std::array::from_fn(|i| {
        let bit = |p: usize| (planes[p] >> (7 - i) & 1) << p;
        bit(0) | bit(1) | bit(2) | bit(3)
    })
}

impl Vga {
    /// Draws the screen as it is at `now` (for what blinks).
    pub fn render(&self, now: Nanos, frame: &mut Frame) {
        if self.dispi.enabled() { self.render_dispi(frame) } else { self.render_vga(now, frame) }
    }

    /// The screen's text, in a text mode.
    pub fn text_screen(&self) -> Option<TextScreen> {
        let r = &self.registers;
        if self.dispi.enabled() || r.graphics_mode() {
            return None;
        }
        let columns = r.characters();
        let scans = (usize::from(r.crtc[9] & 0x1F) + 1) << (r.crtc[9] >> 7);
        let rows = (r.lines() / scans).max(1);
        let mut cells = Vec::with_capacity(columns * rows);
        let mut line = Vec::new();
        let mut cursor = None;
        for row in 0..rows {
            let base = r.start_address() + row * r.offset();
            self.fetch(base, columns, &mut line);
            cells.extend(line.iter().map(|planes| (planes[0], planes[1])));
            let column = r.cursor_address().wrapping_sub(base) & PLANE_MASK;
            if column < columns && r.crtc[0x0A] & 0x20 == 0 {
                cursor = cursor.or(Some((column, row)));
            }
        }
        Some(TextScreen { columns, rows, cells, cursor })
    }

    /// The four planes' bytes at `count` addresses from `address`.
    fn fetch(&self, address: usize, count: usize, out: &mut Vec<[u8; 4]>) {
        let mut bytes = [0; 4096];
        out.clear();
        let mut at = address & PLANE_MASK;
        let mut left = count;
        while left > 0 {
            let n = left.min(1024).min(PLANE_MASK + 1 - at);
            let part = &mut bytes[..n * 4];
            self.vram.read(at * 4, part);
            out.extend(part.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]));
            left -= n;
            at = (at + n) & PLANE_MASK;
        }
    }

    /// DAC entry as a pixel.
    fn colour(&self, index: u8) -> u32 {
        let at = usize::from(index & self.registers.pel_mask) * 3;
        let wide = self.dispi.dac_8bit();
        let component = |i: usize| {
            let value = self.registers.palette.get(at + i).copied().unwrap_or(0);
            u32::from(if wide { value } else { value << 2 | value >> 4 & 3 })
        };
        component(0) << 16 | component(1) << 8 | component(2)
    }

    /// Colours of the 16 attribute values, or of 256 pixel values.
    fn lookup(&self, pixels_256: bool) -> [u32; 256] {
        let attribute = &self.registers.attribute;
        let (mode, enable, select) = (attribute[0x10], attribute[0x12], attribute[0x14]);
        std::array::from_fn(|value| {
            let value = value as u8;
            if pixels_256 {
                return self.colour(value);
            }
            let mut index = attribute[usize::from(value & enable & 0x0F)];
            if mode & 0x80 != 0 {
                // P54S: palette bits 5:4 come from Color Select.
                index = index & 0x0F | (select & 3) << 4;
            }
            self.colour(index | (select & 0x0C) << 4)
        })
    }

    fn render_vga(&self, now: Nanos, frame: &mut Frame) {
        let r = &self.registers;
        let graphics = r.graphics_mode();
        let pixels_256 = graphics && r.graphics[5] & 0x40 != 0;
        let dots = if graphics || r.sequencer[1] & 1 != 0 { 8 } else { 9 };
        let slow = if r.sequencer[1] & 8 != 0 { 2 } else { 1 };
        let (characters, height) = (r.characters(), r.lines());
        let width = characters * dots * slow;
        frame.resize(width, height);
        let screen_off = r.sequencer[1] & 0x20 != 0 || r.attribute_index & 0x20 == 0;
        if screen_off || width == 0 {
            return;
        }
        let lookup = self.lookup(pixels_256);
        let repeat = if pixels_256 { slow * 2 } else { slow };
        let panning = |value: u8| match (pixels_256, dots) {
            (true, _) => usize::from(value & 7) / 2,
            (_, 9) if value & 8 != 0 => 0,
            (_, 9) => usize::from(value & 7) + 1,
            _ => usize::from(value & 7),
        };
        let mut pan = panning(r.attribute[0x13]);
        let text = Text::new(self, now);
        let (mut cells, mut pixels) = (Vec::new(), Vec::new());
        let mut fetched = None;
        let (max_scan, double) = (r.crtc[9] & 0x1F, r.crtc[9] & 0x80 != 0);
        let mut base = r.start_address() + usize::from(r.crtc[8] >> 5 & 3);
        let mut scan = r.crtc[8] & 0x1F;
        let mut second = false;
        for (y, row) in frame.pixels.chunks_exact_mut(width).enumerate() {
            let address = if graphics { self.row_address(base, scan) } else { base };
            if fetched != Some(address) {
                self.fetch(address, characters + 1, &mut cells);
                fetched = Some(address);
            }
            pixels.clear();
            if graphics {
                self.graphics_line(&cells, pixels_256, &mut pixels);
            } else {
                text.line(&cells, address, scan, dots, &mut pixels);
            }
            let visible = pixels.iter().skip(pan);
            if repeat == 1 {
                for (to, &value) in row.iter_mut().zip(visible) {
                    *to = lookup[usize::from(value)];
                }
            } else {
                for (to, &value) in row.chunks_mut(repeat).zip(visible) {
                    to.fill(lookup[usize::from(value)]);
                }
            }
            if y == r.line_compare() {
                (base, scan, second) = (0, 0, false);
                if r.attribute[0x10] & 0x20 != 0 {
                    pan = 0;
                }
            } else if double && !second {
                second = true;
            } else {
                second = false;
                if scan == max_scan {
                    scan = 0;
                    base += r.offset();
                } else {
                    scan = (scan + 1) & 0x1F;
                }
            }
        }
    }

    /// CRTC mode control: address bits 13 and 14 may come from the row scan counter (CGA, Hercules). In word
    /// mode they stand one place lower before the shift.
    fn row_address(&self, base: usize, scan: u8) -> usize {
        let control = self.registers.crtc[0x17];
        let word = usize::from(control & 0x40 == 0);
        let mut address = base;
        for bit in 0..2usize {
            if control >> bit & 1 == 0 {
                let at = 13 + bit - word;
                address = address & !(1 << at) | usize::from(scan >> bit & 1) << at;
            }
        }
        address
    }

    fn graphics_line(&self, cells: &[[u8; 4]], pixels_256: bool, out: &mut Vec<u8>) {
        if pixels_256 {
            out.extend(cells.iter().flatten());
        } else if self.registers.graphics[5] & 0x20 != 0 {
            // Interleaved shift: two bits a pixel from planes 0 and 1, two more from planes 2 and 3.
            for [a, b, c, d] in cells {
                let pair =
                    |low: u8, high: u8| [6, 4, 2, 0].map(|shift| low >> shift & 3 | (high >> shift & 3) << 2);
                out.extend(pair(*a, *c));
                out.extend(pair(*b, *d));
            }
        } else {
            for &planes in cells {
                out.extend(planar(planes));
            }
        }
    }

    fn render_dispi(&self, frame: &mut Frame) {
        let linear = self.linear();
        let (width, height) = linear.size();
        frame.resize(width, height);
        let mut line = vec![0; linear.row_bytes()];
        for (y, row) in frame.pixels.chunks_exact_mut(width.max(1)).enumerate() {
            linear.fetch(&*self.vram, y, &mut line);
            linear.draw(&line, row);
        }
    }

    /// The linear mode that is on.
    pub(super) fn linear(&self) -> Linear {
        Linear { dispi: self.dispi.clone(), lookup: self.lookup(self.dispi.bpp == 8) }
    }
}

/// The character generator and what the text modes need for a frame.
struct Text {
    /// Fonts for attribute bit 3 clear and set: 256 glyphs of 32 rows.
    fonts: [Vec<u8>; 2],
    line_graphics: bool,
    blink: bool,
    /// Whether blinking characters are in their dark half.
    dark: bool,
    underline: u8,
    /// Address and rows of a cursor that shows now.
    cursor: Option<(usize, u8, u8)>,
}

impl Text {
    fn new(vga: &Vga, now: Nanos) -> Self {
        let r = &vga.registers;
        if r.graphics_mode() {
            let fonts = [Vec::new(), Vec::new()];
            return Text {
                fonts,
                line_graphics: false,
                blink: false,
                dark: false,
                underline: 0,
                cursor: None,
            };
        }
        // Character Map Select: map 0 to 3 at multiples of 16 KB, 4 to 7 at 8 KB past them.
        let select = r.sequencer[3];
        let b = select & 3 | select >> 2 & 4;
        let a = select >> 2 & 3 | select >> 3 & 4;
        let font = |map: u8| {
            let base = usize::from(map & 3) << 14 | usize::from(map & 4) << 11;
            let mut planes = Vec::new();
            vga.fetch(base, 256 * 32, &mut planes);
            planes.iter().map(|planes| planes[2]).collect()
        };
        let frames = now / r.timing().0;
        let (start, end) = (r.crtc[0x0A], r.crtc[0x0B]);
        let shows = start & 0x20 == 0 && (frames / 8).is_multiple_of(2);
        let skew = usize::from(end >> 5 & 3);
        Text {
            fonts: [font(b), font(a)],
            line_graphics: r.attribute[0x10] & 4 != 0,
            blink: r.attribute[0x10] & 8 != 0,
            dark: frames / 16 % 2 == 1,
            underline: r.crtc[0x14] & 0x1F,
            cursor: shows.then_some((r.cursor_address() + skew, start & 0x1F, end & 0x1F)),
        }
    }

    fn line(&self, cells: &[[u8; 4]], address: usize, scan: u8, dots: usize, out: &mut Vec<u8>) {
        for (column, &[code, attribute, ..]) in cells.iter().enumerate() {
            let font = &self.fonts[usize::from(attribute >> 3 & 1)];
            let glyph = font.get(usize::from(code) * 32 + usize::from(scan)).copied().unwrap_or(0);
            let mut bits = u16::from(glyph) << 1;
            if self.line_graphics && matches!(code, 0xC0..=0xDF) {
                bits |= bits >> 1 & 1;
            }
            if self.blink && attribute & 0x80 != 0 && self.dark {
                bits = 0;
            }
            if scan == self.underline && attribute & 0x77 == 0x01 {
                bits = 0x1FF;
            }
            let here = (address + column) & PLANE_MASK;
            if let Some((at, first, last)) = self.cursor
                && at & PLANE_MASK == here
                && (first..=last).contains(&scan)
            {
                bits = 0x1FF;
            }
            let foreground = attribute & 0x0F;
            let background = attribute >> 4 & if self.blink { 7 } else { 15 };
            for dot in 0..dots {
                out.push(if bits >> (8 - dot) & 1 != 0 { foreground } else { background });
            }
        }
    }
}
