//! VGA mode 3 as a VGA BIOS sets it, for boots without firmware.

use super::Vga;
use super::font::FONT_SIZE;

/// 80x25 text, 720x400, 70 Hz.
const SEQUENCER: [u8; 5] = [0x03, 0x00, 0x03, 0x00, 0x02];
const CRTC: [u8; 25] = [
    0x5F, 0x4F, 0x50, 0x82, 0x55, 0x81, 0xBF, 0x1F, 0x00, 0x4F, 0x0D, 0x0E, 0x00, 0x00, 0x00, 0x00, 0x9C,
    0x8E, 0x8F, 0x28, 0x1F, 0x96, 0xB9, 0xA3, 0xFF,
];
const GRAPHICS: [u8; 9] = [0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x0E, 0x00, 0xFF];
const ATTRIBUTE: [u8; 21] = [
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x14, 0x07, 0x38, 0x39, 0x3A, 0x3B, 0x3C, 0x3D, 0x3E, 0x3F, 0x0C,
    0x00, 0x0F, 0x08, 0x00,
];
/// Colour addresses, RAM enabled, 28 MHz, 400 lines.
const MISC: u8 = 0x67;

impl Vga {
    /// Programs text mode 3 with `font` (256 glyphs of 16 rows), clears the screen, loads the default
    /// colours.
    pub fn set_text_mode3(&mut self, font: &[u8; FONT_SIZE]) {
        self.dispi = super::dispi::Dispi::new();
        let r = &mut self.registers;
        *r = super::registers::Registers::new();
        r.misc = MISC;
        r.sequencer[..5].copy_from_slice(&SEQUENCER);
        r.crtc[..25].copy_from_slice(&CRTC);
        r.graphics = GRAPHICS;
        r.attribute = ATTRIBUTE;
        r.attribute_index = 0x20;
        r.palette = ega_palette();
        // Planes 0 and 1: characters and attributes; plane 2: the font, 32 bytes a glyph.
        for cell in 0..0x4000usize {
            self.vram.write(cell * 4, &[b' ', 0x07]);
        }
        for (glyph, rows) in font.chunks_exact(16).enumerate() {
            for row in 0..32 {
                let byte = rows.get(row).copied().unwrap_or(0);
                self.vram.write((glyph * 32 + row) * 4 + 2, &[byte]);
            }
        }
    }
}

/// The 64 colours of rgbRGB attribute values, four times over.
fn ega_palette() -> [u8; 768] {
    std::array::from_fn(|i| {
        let (colour, component) = (i / 3 % 64, i % 3);
        let strong = colour >> (2 - component) & 1;
        let weak = colour >> (5 - component) & 1;
        (strong * 0x2A + weak * 0x15) as u8
    })
}
