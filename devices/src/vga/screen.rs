//! The picture as a window keeps it. Most of what is looked at is as it was: in linear modes only rows are drawn anew whose
//! memory has changed.

use super::Vga;
use super::linear::Linear;
use super::render::Frame;
use crate::chip::Nanos;

/// See the head of this file.
#[derive(Default)]
pub struct Screen {
    frame: Frame,
    /// Other modes are drawn whole, and compared.
    next: Frame,
    /// The linear mode of `frame`, and the bytes that its rows were made from.
    linear: Option<Linear>,
    memory: Vec<u8>,
}

impl Screen {
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Takes what the VGA shows at `now`; whether that is another picture.
    pub fn look(&mut self, vga: &Vga, now: Nanos) -> bool {
        if vga.dispi.enabled() {
            return self.look_linear(vga);
        }
        self.linear = None;
        vga.render(now, &mut self.next);
        let changed = self.frame != self.next;
        std::mem::swap(&mut self.frame, &mut self.next);
        changed
    }

    fn look_linear(&mut self, vga: &Vga) -> bool {
        let linear = vga.linear();
        let (width, height) = linear.size();
        let bytes = linear.row_bytes();
        let anew = self.linear.as_ref() != Some(&linear);
        if anew {
            self.frame.resize(width, height);
            self.memory.clear();
            self.memory.resize(bytes * height, 0);
        }
        let mut line = vec![0; bytes];
        let mut changed = anew;
        let rows = self.frame.pixels.chunks_exact_mut(width.max(1));
        for (y, (row, old)) in rows.zip(self.memory.chunks_exact_mut(bytes.max(1))).enumerate() {
            linear.fetch(&*vga.vram, y, &mut line);
            if anew || line != *old {
                old.copy_from_slice(&line);
                linear.draw(&line, row);
                changed = true;
            }
        }
        self.linear = Some(linear);
        changed
    }
}
