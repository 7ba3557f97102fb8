//! The VGA's register files (IBM VGA technical reference): general, sequencer, CRT controller, graphics
//! controller, attribute controller, DAC.

use crate::chip::Nanos;
use serde::{Deserialize, Serialize};
use serde_big_array::BigArray;

/// Ports, as offsets from 0x3B0.
mod port {
    pub const CRTC_INDEX_MONO: u64 = 0x04;
    pub const CRTC_DATA_MONO: u64 = 0x05;
    pub const INPUT_STATUS_1_MONO: u64 = 0x0A;
    pub const ATTRIBUTE: u64 = 0x10;
    pub const ATTRIBUTE_READ: u64 = 0x11;
    pub const MISC_WRITE_STATUS_0: u64 = 0x12;
    pub const VIDEO_ENABLE: u64 = 0x13;
    pub const SEQUENCER_INDEX: u64 = 0x14;
    pub const SEQUENCER_DATA: u64 = 0x15;
    pub const PEL_MASK: u64 = 0x16;
    pub const DAC_READ_INDEX: u64 = 0x17;
    pub const DAC_WRITE_INDEX: u64 = 0x18;
    pub const DAC_DATA: u64 = 0x19;
    pub const FEATURE_READ: u64 = 0x1A;
    pub const MISC_READ: u64 = 0x1C;
    pub const GRAPHICS_INDEX: u64 = 0x1E;
    pub const GRAPHICS_DATA: u64 = 0x1F;
    pub const CRTC_INDEX_COLOUR: u64 = 0x24;
    pub const CRTC_DATA_COLOUR: u64 = 0x25;
    pub const INPUT_STATUS_1_COLOUR: u64 = 0x2A;
}

/// Miscellaneous Output: I/O address select, RAM enable.
pub const IOS: u8 = 0x01;
pub const ERAM: u8 = 0x02;

/// Writable bits of the sequencer, graphics and attribute registers.
const SEQUENCER_MASK: [u8; 8] = [0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0, 0, 0];
const GRAPHICS_MASK: [u8; 9] = [0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registers {
    pub misc: u8,
    pub feature: u8,
    pub video_enable: u8,
    pub sequencer_index: u8,
    pub sequencer: [u8; 8],
    pub crtc_index: u8,
    pub crtc: [u8; 32],
    pub graphics_index: u8,
    pub graphics: [u8; 9],
    /// Index with PAS in bit 5; the flip-flop: the next write goes to the data register.
    pub attribute_index: u8,
    pub attribute_data_next: bool,
    pub attribute: [u8; 21],
    pub pel_mask: u8,
    pub dac_read_index: u8,
    pub dac_write_index: u8,
    /// Which of red, green, blue comes next.
    pub dac_component: u8,
    pub dac_reading: bool,
    #[serde(with = "BigArray")]
    pub palette: [u8; 768],
    /// The four latches.
    pub latch: [u8; 4],
}

impl Registers {
    pub fn new() -> Self {
        Registers {
            misc: 0,
            feature: 0,
            video_enable: 1,
            sequencer_index: 0,
            sequencer: [0; 8],
            crtc_index: 0,
            crtc: [0; 32],
            graphics_index: 0,
            graphics: [0; 9],
            attribute_index: 0,
            attribute_data_next: false,
            attribute: [0; 21],
            pel_mask: 0xFF,
            dac_read_index: 0,
            dac_write_index: 0,
            dac_component: 0,
            dac_reading: false,
            palette: [0; 768],
            latch: [0; 4],
        }
    }

    pub fn check(&self) -> Result<(), &'static str> {
        let ok = self.dac_component < 3 && self.crtc_index < 32 && self.attribute_index < 0x40;
        if ok { Ok(()) } else { Err("register index out of range") }
    }

    /// Folds the mono and colour addresses to the colour ones; none where the other set is selected.
    fn select(&self, offset: u64) -> Option<u64> {
        let colour = self.misc & IOS != 0;
        match offset {
            port::CRTC_INDEX_MONO | port::CRTC_DATA_MONO | port::INPUT_STATUS_1_MONO => {
                (!colour).then_some(offset + 0x20)
            }
            port::CRTC_INDEX_COLOUR | port::CRTC_DATA_COLOUR | port::INPUT_STATUS_1_COLOUR => {
                colour.then_some(offset)
            }
            _ => Some(offset),
        }
    }

    pub fn read(&mut self, now: Nanos, offset: u64) -> u8 {
        let Some(offset) = self.select(offset) else { return 0xFF };
        match offset {
            port::ATTRIBUTE => self.attribute_index,
            port::ATTRIBUTE_READ => {
                self.attribute.get(usize::from(self.attribute_index & 0x1F)).copied().unwrap_or(0)
            }
            // Switch sense: a colour display.
            port::MISC_WRITE_STATUS_0 => 0x10,
            port::VIDEO_ENABLE => self.video_enable,
            port::SEQUENCER_INDEX => self.sequencer_index,
            port::SEQUENCER_DATA => self.sequencer[usize::from(self.sequencer_index & 7)],
            port::PEL_MASK => self.pel_mask,
            port::DAC_READ_INDEX => {
                if self.dac_reading {
                    3
                } else {
                    0
                }
            }
            port::DAC_WRITE_INDEX => self.dac_write_index,
            port::DAC_DATA => {
                let at = usize::from(self.dac_read_index) * 3 + usize::from(self.dac_component);
                self.dac_component += 1;
                if self.dac_component >= 3 {
                    self.dac_component = 0;
                    self.dac_read_index = self.dac_read_index.wrapping_add(1);
                }
                self.palette.get(at).copied().unwrap_or(0)
            }
            port::FEATURE_READ => self.feature,
            port::MISC_READ => self.misc,
            port::GRAPHICS_INDEX => self.graphics_index,
            port::GRAPHICS_DATA => self.graphics.get(usize::from(self.graphics_index)).copied().unwrap_or(0),
            port::CRTC_INDEX_COLOUR => self.crtc_index,
            port::CRTC_DATA_COLOUR => self.crtc[usize::from(self.crtc_index & 0x1F)],
            port::INPUT_STATUS_1_COLOUR => {
                self.attribute_data_next = false;
                self.input_status_1(now)
            }
            _ => 0xFF,
        }
    }

    pub fn write(&mut self, offset: u64, value: u8, dac_8bit: bool) {
        let Some(offset) = self.select(offset) else { return };
        match offset {
            port::ATTRIBUTE => {
                if self.attribute_data_next {
                    let at = usize::from(self.attribute_index & 0x1F);
                    let mask = [0x3F, 0xEF, 0xFF, 0x3F, 0x0F, 0x0F][at.saturating_sub(15).min(5)];
                    if let Some(register) = self.attribute.get_mut(at) {
                        *register = value & mask;
                    }
                } else {
                    self.attribute_index = value & 0x3F;
                }
                self.attribute_data_next = !self.attribute_data_next;
            }
            port::MISC_WRITE_STATUS_0 => self.misc = value,
            port::VIDEO_ENABLE => self.video_enable = value & 1,
            port::SEQUENCER_INDEX => self.sequencer_index = value & 7,
            port::SEQUENCER_DATA => {
                let at = usize::from(self.sequencer_index & 7);
                self.sequencer[at] = value & SEQUENCER_MASK[at];
            }
            port::PEL_MASK => self.pel_mask = value,
            port::DAC_READ_INDEX => {
                (self.dac_read_index, self.dac_component, self.dac_reading) = (value, 0, true);
            }
            port::DAC_WRITE_INDEX => {
                (self.dac_write_index, self.dac_component, self.dac_reading) = (value, 0, false);
            }
            port::DAC_DATA => {
                let at = usize::from(self.dac_write_index) * 3 + usize::from(self.dac_component);
                if let Some(entry) = self.palette.get_mut(at) {
                    *entry = if dac_8bit { value } else { value & 0x3F };
                }
                self.dac_component += 1;
                if self.dac_component >= 3 {
                    self.dac_component = 0;
                    self.dac_write_index = self.dac_write_index.wrapping_add(1);
                }
            }
            port::GRAPHICS_INDEX => self.graphics_index = value & 0x0F,
            port::GRAPHICS_DATA => {
                let at = usize::from(self.graphics_index);
                if let (Some(register), Some(mask)) = (self.graphics.get_mut(at), GRAPHICS_MASK.get(at)) {
                    *register = value & mask;
                }
            }
            port::CRTC_INDEX_COLOUR => self.crtc_index = value & 0x1F,
            port::CRTC_DATA_COLOUR => self.write_crtc(value),
            port::INPUT_STATUS_1_COLOUR => self.feature = value,
            _ => {}
        }
    }

    fn write_crtc(&mut self, value: u8) {
        let at = usize::from(self.crtc_index & 0x1F);
        let protected = self.crtc[0x11] & 0x80 != 0;
        match at {
            // Protect: only the line compare bit of Overflow still moves.
            7 if protected => self.crtc[7] = self.crtc[7] & !0x10 | value & 0x10,
            0..=6 if protected => {}
            _ => self.crtc[at] = value,
        }
    }

    /// Lines shown: Vertical Display Enable End with its bits in Overflow.
    pub fn lines(&self) -> usize {
        let overflow = usize::from(self.crtc[7]);
        (usize::from(self.crtc[0x12]) | (overflow & 0x02) << 7 | (overflow & 0x40) << 3) + 1
    }

    /// Characters shown on a line.
    pub fn characters(&self) -> usize {
        usize::from(self.crtc[1]) + 1
    }

    /// The scan line after which the split screen begins.
    pub fn line_compare(&self) -> usize {
        let overflow = usize::from(self.crtc[7]) & 0x10;
        usize::from(self.crtc[0x18]) | overflow << 4 | (usize::from(self.crtc[9]) & 0x40) << 3
    }

    pub fn start_address(&self) -> usize {
        usize::from(self.crtc[0x0C]) << 8 | usize::from(self.crtc[0x0D])
    }

    pub fn cursor_address(&self) -> usize {
        usize::from(self.crtc[0x0E]) << 8 | usize::from(self.crtc[0x0F])
    }

    /// Addresses from one row to the next.
    pub fn offset(&self) -> usize {
        usize::from(self.crtc[0x13]) * 2
    }

    pub fn graphics_mode(&self) -> bool {
        self.graphics[6] & 1 != 0
    }

    /// Frame time in ns, total lines, first blank line: 480-line modes at 60 Hz, others at 70 Hz.
    pub fn timing(&self) -> (Nanos, u64, u64) {
        if self.misc & 0xC0 == 0xC0 { (16_683_000, 525, 480) } else { (14_268_000, 449, 400) }
    }

    /// Input Status 1 from the time: bit 0 display disabled, bit 3 vertical retrace.
    fn input_status_1(&self, now: Nanos) -> u8 {
        let (frame, total, visible) = self.timing();
        let in_frame = now % frame * total;
        let line = in_frame / frame;
        // The last fifth of a line is its horizontal blank.
        let horizontal_blank = in_frame % frame >= frame / 5 * 4;
        let vertical_blank = line >= visible;
        let retrace = (visible + 10..visible + 18).contains(&line);
        u8::from(horizontal_blank || vertical_blank) | u8::from(retrace) << 3
    }
}
