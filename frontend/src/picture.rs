//! A guest's picture at another size, with its aspect ratio kept.

use trimaran_devices::vga::Frame;

/// Where the picture stands in a window: left, top, width, height.
pub fn place(frame: &Frame, width: usize, height: usize) -> (usize, usize, usize, usize) {
    let (across, down) = (frame.width.max(1), frame.height.max(1));
    // As wide as possible, unless that is too high.
    let (w, h) = if width * down <= height * across {
        (width, width * down / across)
    } else {
        (height * across / down, height)
    };
    ((width - w) / 2, (height - h) / 2, w, h)
}

/// Draws the picture into a window's pixels, black around it.
pub fn draw(frame: &Frame, target: &mut [u32], width: usize, height: usize) {
    let (left, top, w, h) = place(frame, width, height);
    if frame.width == 0 || frame.height == 0 || w == 0 || h == 0 {
        target.fill(0);
        return;
    }
    if (w, h) != (width, height) {
        target.fill(0);
    }
    if w < frame.width {
        shrink(frame, target, (left, top, w, h), width);
        return;
    }
    let columns: Vec<usize> = (0..w).map(|x| x * frame.width / w).collect();
    let mut last = None;
    for y in 0..h {
        let from = y * frame.height / h;
        let start = (top + y) * width + left;
        if last == Some(from) {
            // The line above once more.
            target.copy_within(start - width..start - width + w, start);
            continue;
        }
        last = Some(from);
        let line = &frame.pixels[from * frame.width..(from + 1) * frame.width];
        let row = &mut target[start..start + w];
        if w == frame.width {
            row.copy_from_slice(line);
        } else {
            row.iter_mut().zip(&columns).for_each(|(pixel, &column)| *pixel = line[column]);
        }
    }
}

/// Each pixel is the mean of those that it stands for, so that text stays readable.
fn shrink(frame: &Frame, target: &mut [u32], (left, top, w, h): (usize, usize, usize, usize), width: usize) {
    let span = |n: usize, to: usize, from: usize| {
        let first = n * from / to;
        first..((n + 1) * from).div_ceil(to).clamp(first + 1, from)
    };
    let columns: Vec<_> = (0..w).map(|x| span(x, w, frame.width)).collect();
    for y in 0..h {
        let rows = span(y, h, frame.height);
        let start = (top + y) * width + left;
        for (pixel, columns) in target[start..start + w].iter_mut().zip(&columns) {
            let (mut red, mut green, mut blue) = (0, 0, 0);
            for row in rows.clone() {
                for source in &frame.pixels[row * frame.width..][columns.clone()] {
                    red += source >> 16 & 0xFF;
                    green += source >> 8 & 0xFF;
                    blue += source & 0xFF;
                }
            }
            let count = (rows.len() * columns.len()) as u32;
            *pixel = [red, green, blue].into_iter().fold(0, |rgb, sum| (rgb << 8) | (sum / count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(width: usize, height: usize) -> Frame {
        Frame { width, height, pixels: (0..(width * height) as u32).collect() }
    }

    #[test]
    fn the_aspect_ratio_is_kept() {
        assert_eq!(place(&frame(800, 600), 1600, 1200), (0, 0, 1600, 1200));
        assert_eq!(place(&frame(800, 600), 1000, 600), (100, 0, 800, 600));
        assert_eq!(place(&frame(800, 600), 400, 600), (0, 150, 400, 300));
    }

    #[test]
    fn any_size_can_be_drawn() {
        for (w, h) in [(1, 1), (3, 2), (2, 2), (7, 5), (64, 1)] {
            let mut target = vec![9; w * h];
            for picture in [frame(2, 2), frame(0, 0), frame(4, 3), frame(9, 2)] {
                draw(&picture, &mut target, w, h);
            }
        }
        let mut target = vec![9; 16];
        draw(&frame(2, 2), &mut target, 4, 4);
        assert_eq!(target, [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]);
        let mut target = [9];
        let grey = Frame { width: 2, height: 2, pixels: vec![0xFF_0000, 0xFF, 0xFF00, 0] };
        draw(&grey, &mut target, 1, 1);
        assert_eq!(target, [0x3F_3F3F]);
    }
}
