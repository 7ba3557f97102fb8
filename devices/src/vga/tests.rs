use super::*;
use crate::testing::{Bench, Ram};
use std::sync::Mutex;

fn setup() -> (Bench, Vga) {
    let vram = Arc::new(Ram(Mutex::new(vec![0; 0x100_0000])));
    (Bench::new(0), Vga::new(vram))
}

fn port(bench: &mut Bench, vga: &mut Vga, port: u64, size: u8, value: u64) {
    vga.write(&mut bench.cx(), PORTS, port - 0x3B0, size, value);
}

fn dispi(bench: &mut Bench, vga: &mut Vga, register: u64, value: u64) {
    vga.write(&mut bench.cx(), DISPI_PORTS, 0, 2, register);
    vga.write(&mut bench.cx(), DISPI_PORTS, 1, 2, value);
}

fn poke(bench: &mut Bench, vga: &mut Vga, address: u64, size: u8, value: u64) {
    vga.write(&mut bench.cx(), LEGACY_MEMORY, address - 0xA0000, size, value);
}

fn peek(bench: &mut Bench, vga: &mut Vga, address: u64) -> u8 {
    vga.read(&mut bench.cx(), LEGACY_MEMORY, address - 0xA0000, 1) as u8
}

/// Registers (sequencer, graphics, CRTC, attribute mode) of a mode on top of mode 3.
fn graphics(bench: &mut Bench, vga: &mut Vga, set: &[(u64, u8, u8)]) {
    vga.set_text_mode3(&font::font_8x16());
    vga.vram.write(0, &[0; 0x4_0000]);
    port(bench, vga, 0x3D4, 2, 0x0011); // unprotect
    for &(base, index, value) in set {
        port(bench, vga, base, 2, u64::from(value) << 8 | u64::from(index));
    }
}

#[test]
fn text_mode() {
    let (mut bench, mut vga) = setup();
    vga.set_text_mode3(&font::font_8x16());
    poke(&mut bench, &mut vga, 0xB8000, 4, 0x4FDB_1F41);
    port(&mut bench, &mut vga, 0x3D4, 2, 0x010F);
    assert_eq!(peek(&mut bench, &mut vga, 0xB8001), 0x1F);
    let screen = vga.text_screen().unwrap();
    assert_eq!((screen.columns, screen.rows, screen.cursor), (80, 25, Some((1, 0))));
    assert_eq!(screen.cells[..3], [(0x41, 0x1F), (0xDB, 0x4F), (0x20, 0x07)]);
    let mut frame = Frame::default();
    vga.render(0, &mut frame);
    assert_eq!((frame.width, frame.height), (720, 400));
    assert_eq!(frame.pixels[0], 0x0000_00AA);
    // Line graphics: the ninth dot of a full block.
    assert_eq!(frame.pixels[9..18], [0x00FF_FFFF; 9]);
}

#[test]
fn write_modes() {
    let (mut bench, mut vga) = setup();
    // Mode 12h.
    let mode = [(0x3C4, 2, 0x0F), (0x3C4, 4, 0x06), (0x3CE, 5, 0x00), (0x3CE, 6, 0x05), (0x3D4, 0x17, 0xE3)];
    graphics(&mut bench, &mut vga, &mode);
    let address = 0xA0000;
    // Mode 0 with set/reset: colour 5 through bit mask 0xF0.
    for value in [0x0500, 0x0F01, 0xF008] {
        port(&mut bench, &mut vga, 0x3CE, 2, value);
    }
    peek(&mut bench, &mut vga, address);
    poke(&mut bench, &mut vga, address, 1, 0);
    let mut planes = [0; 4];
    vga.vram.read(0, &mut planes);
    assert_eq!(planes, [0xF0, 0, 0xF0, 0]);
    // Mode 2: colour 2 where the bit mask is, XOR.
    for value in [0x0205, 0x1803, 0x0001, 0x8108] {
        port(&mut bench, &mut vga, 0x3CE, 2, value);
    }
    peek(&mut bench, &mut vga, address);
    poke(&mut bench, &mut vga, address, 1, 2);
    vga.vram.read(0, &mut planes);
    assert_eq!(planes, [0xF0, 0x81, 0xF0, 0]);
    // Mode 3: data is ANDed with the bit mask; set/reset 5.
    for value in [0x0305, 0x0003, 0xFF08] {
        port(&mut bench, &mut vga, 0x3CE, 2, value);
    }
    peek(&mut bench, &mut vga, address);
    poke(&mut bench, &mut vga, address, 1, 0x0F);
    vga.vram.read(0, &mut planes);
    assert_eq!(planes, [0xFF, 0x80, 0xFF, 0]);
    // Mode 1 copies latches; read mode 1 compares.
    port(&mut bench, &mut vga, 0x3CE, 2, 0x0105);
    peek(&mut bench, &mut vga, address);
    poke(&mut bench, &mut vga, address + 1, 1, 0);
    for value in [0x0805, 0x0502, 0x0F07] {
        port(&mut bench, &mut vga, 0x3CE, 2, value);
    }
    assert_eq!(peek(&mut bench, &mut vga, address + 1), 0x7F);
}

#[test]
fn mode_13h_and_mode_x() {
    let (mut bench, mut vga) = setup();
    let mode = [(0x3C4, 1, 0x01), (0x3C4, 2, 0x0F), (0x3C4, 4, 0x0E), (0x3CE, 5, 0x40), (0x3CE, 6, 0x05)];
    graphics(&mut bench, &mut vga, &mode);
    for value in [0x4109, 0x2813, 0x4014, 0xA317, 0x200A] {
        port(&mut bench, &mut vga, 0x3D4, 2, value);
    }
    poke(&mut bench, &mut vga, 0xA0000 + 320, 4, 0x0403_0201);
    let mut frame = Frame::default();
    vga.render(0, &mut frame);
    assert_eq!((frame.width, frame.height), (640, 400));
    for y in [2, 3] {
        let row = &frame.pixels[y * 640..];
        assert_eq!(row[..6], [0xAA, 0xAA, 0xAA00, 0xAA00, 0xAAAA, 0xAAAA]);
    }
    // Unchained, one plane.
    port(&mut bench, &mut vga, 0x3C4, 2, 0x0604);
    port(&mut bench, &mut vga, 0x3C4, 2, 0x0402);
    poke(&mut bench, &mut vga, 0xA0000, 1, 1);
    vga.render(0, &mut frame);
    assert_eq!(frame.pixels[3..7], [0, 0xAA, 0xAA, 0]);
}

#[test]
fn cga_modes_interleave_lines() {
    let (mut bench, mut vga) = setup();
    let mode = [(0x3C4, 1, 0x09), (0x3C4, 2, 0x03), (0x3C4, 4, 0x02), (0x3CE, 5, 0x30), (0x3CE, 6, 0x0F)];
    graphics(&mut bench, &mut vga, &mode);
    for value in [0x2701, 0xC109, 0x1413, 0xA217, 0x200A] {
        port(&mut bench, &mut vga, 0x3D4, 2, value);
    }
    port(&mut bench, &mut vga, 0x3D4, 2, 0x4109);
    // Line 0: pixels 1, 2, 3, 0, then 1 1 1 1; line 1 in the other bank: 2 2 2 2.
    poke(&mut bench, &mut vga, 0xB8000, 2, 0x556C);
    poke(&mut bench, &mut vga, 0xBA000, 1, 0xAA);
    let mut frame = Frame::default();
    vga.render(0, &mut frame);
    assert_eq!((frame.width, frame.height), (640, 400));
    assert_eq!(frame.pixels[..10], [0xAA, 0xAA, 0xAA00, 0xAA00, 0xAAAA, 0xAAAA, 0, 0, 0xAA, 0xAA]);
    assert_eq!(frame.pixels[640..648], [0xAA00; 8]);
}

#[test]
fn line_compare_splits() {
    let (mut bench, mut vga) = setup();
    vga.set_text_mode3(&font::font_8x16());
    poke(&mut bench, &mut vga, 0xB8000, 2, 0x1F20);
    for value in [0x0011, 0x4F09, 0x200A, 0x0F18, 0x0F07, 0x040C] {
        // Start at 0x400; split after line 15.
        port(&mut bench, &mut vga, 0x3D4, 2, value);
    }
    port(&mut bench, &mut vga, 0x3D4, 2, 0x0F09);
    let mut frame = Frame::default();
    vga.render(0, &mut frame);
    assert_eq!((frame.pixels[15 * 720], frame.pixels[16 * 720]), (0, 0xAA));
}

#[test]
fn linear_modes() {
    let (mut bench, mut vga) = setup();
    for (bpp, bytes, expected) in
        [(32, 0x0012_3456u64, 0x0012_3456), (16, 0xF81F, 0x00FF_00FF), (15, 0x7C00, 0x00FF_0000)]
    {
        dispi(&mut bench, &mut vga, 4, 0);
        for (register, value) in [(1, 1024), (2, 768), (3, bpp), (4, 0x41)] {
            dispi(&mut bench, &mut vga, register, value);
        }
        dispi(&mut bench, &mut vga, 9, 1);
        dispi(&mut bench, &mut vga, 8, 2);
        let unit = bpp.div_ceil(8);
        vga.write(&mut bench.cx(), VRAM, (1024 + 2) * unit, unit as u8, bytes);
        let mut frame = Frame::default();
        vga.render(0, &mut frame);
        assert_eq!((frame.width, frame.height, frame.pixels[0], frame.pixels[1]), (1024, 768, expected, 0));
    }
    assert_eq!(vga.read(&mut bench.cx(), MMIO, 0x500, 2), 0xB0C5);
    assert_eq!(vga.read(&mut bench.cx(), MMIO, 0x514, 2), 256);
    // The bank window.
    dispi(&mut bench, &mut vga, 5, 3);
    poke(&mut bench, &mut vga, 0xA0010, 4, 0xDEAD_BEEF);
    assert_eq!(vga.read(&mut bench.cx(), VRAM, 0x3_0010, 4), 0xDEAD_BEEF);
    // Too large for 16 MB at any depth but this one.
    dispi(&mut bench, &mut vga, 4, 0);
    for (register, value) in [(1, 2560), (2, 1600), (3, 32), (4, 1)] {
        dispi(&mut bench, &mut vga, register, value);
    }
    assert!(vga.linear_mode().is_some());
}

/// A window's picture is what drawing anew gives, and it knows when nothing has changed.
#[test]
fn a_screen_follows_its_vga() {
    let (mut bench, mut vga) = setup();
    let mut screen = Screen::default();
    let mut check = |vga: &Vga, changed: bool, what: &str| {
        let mut frame = Frame::default();
        vga.render(0, &mut frame);
        assert_eq!(screen.look(vga, 0), changed, "{what}");
        assert!(*screen.frame() == frame, "{what}");
        assert!(!screen.look(vga, 0), "{what}, once more");
    };
    vga.set_text_mode3(&font::font_8x16());
    check(&vga, true, "text");
    for bpp in [4, 8, 15, 16, 24, 32] {
        dispi(&mut bench, &mut vga, 4, 0);
        for (register, value) in [(1, 640), (2, 480), (3, bpp), (4, 0x41)] {
            dispi(&mut bench, &mut vga, register, value);
        }
        check(&vga, true, &format!("{bpp} bits"));
        vga.vram.write(0x1_2345, &[0xA5; 7]);
        check(&vga, true, &format!("{bpp} bits, written"));
        vga.vram.write(0x80_0000, &[0xA5; 7]);
        check(&vga, false, &format!("{bpp} bits, written elsewhere"));
        vga.vram.write(0x1_2345, &[0xA5; 7]);
        check(&vga, false, &format!("{bpp} bits, the same once more"));
    }
    dispi(&mut bench, &mut vga, 9, 1);
    check(&vga, true, "a line further down");
    dispi(&mut bench, &mut vga, 4, 0);
    for (register, value) in [(3, 8), (4, 0x41)] {
        dispi(&mut bench, &mut vga, register, value);
    }
    check(&vga, true, "8 bits again");
    port(&mut bench, &mut vga, 0x3C8, 1, 0);
    port(&mut bench, &mut vga, 0x3C9, 1, 0x15);
    check(&vga, true, "another colour");
    dispi(&mut bench, &mut vga, 4, 0);
    check(&vga, true, "text again");
}

#[test]
fn four_bit_linear_mode_is_planar() {
    let (mut bench, mut vga) = setup();
    vga.set_text_mode3(&font::font_8x16());
    for (register, value) in [(1, 800), (2, 600), (3, 4), (4, 1)] {
        dispi(&mut bench, &mut vga, register, value);
    }
    for (base, value) in [(0x3C4, 0x0604), (0x3C4, 0x0402), (0x3CE, 0x0005), (0x3CE, 0x0506)] {
        port(&mut bench, &mut vga, base, 2, value);
    }
    poke(&mut bench, &mut vga, 0xA0000, 1, 0x80);
    let mut frame = Frame::default();
    vga.render(0, &mut frame);
    assert_eq!((frame.width, frame.pixels[0], frame.pixels[1]), (800, 0x00AA_0000, 0));
}

#[test]
fn retrace_follows_time() {
    let (mut bench, mut vga) = setup();
    vga.set_text_mode3(&font::font_8x16());
    let mut seen = [false; 4];
    for step in 0..2000 {
        bench.now = step * 10_000;
        let status = vga.read(&mut bench.cx(), PORTS, 0x2A, 1);
        seen[usize::from(status & 1 != 0)] = true;
        seen[2 + usize::from(status & 8 != 0)] = true;
    }
    assert_eq!(seen, [true; 4]);
}
