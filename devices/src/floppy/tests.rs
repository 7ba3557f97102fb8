use super::*;
use crate::block::MemoryMedium;
use crate::testing::Bench;

fn setup() -> (Bench, Floppy) {
    let mut floppy = Floppy::new();
    let image: Vec<u8> = (0..1440 * 1024).map(|i: u32| (i / 512) as u8).collect();
    floppy.insert(0, Some(Box::new(MemoryMedium::new(image))));
    let mut bench = Bench::new(0);
    floppy.write(&mut bench.cx(), PORTS, 2, 1, 0x1C);
    bench.settle(&mut floppy);
    assert_eq!(bench.take(), [Effect::Line { pin: IRQ, level: true }]);
    for unit in 0..4 {
        send(&mut bench, &mut floppy, &[8]);
        assert_eq!(results(&mut bench, &mut floppy), [0xC0 | unit, 0]);
    }
    floppy.write(&mut bench.cx(), DIR_CCR, 0, 1, 0);
    bench.take();
    (bench, floppy)
}

fn send(bench: &mut Bench, floppy: &mut Floppy, bytes: &[u8]) {
    for &byte in bytes {
        assert_eq!(floppy.read(&mut bench.cx(), PORTS, 4, 1) & 0xC0, 0x80);
        floppy.write(&mut bench.cx(), PORTS, 5, 1, byte.into());
    }
}

fn results(bench: &mut Bench, floppy: &mut Floppy) -> Vec<u8> {
    let mut out = Vec::new();
    while floppy.read(&mut bench.cx(), PORTS, 4, 1) & 0xD0 == 0xD0 {
        out.push(floppy.read(&mut bench.cx(), PORTS, 5, 1) as u8);
    }
    out
}

#[test]
fn seek_and_disk_change() {
    let (mut bench, mut floppy) = setup();
    assert_eq!(floppy.read(&mut bench.cx(), DIR_CCR, 0, 1), 0x80);
    send(&mut bench, &mut floppy, &[0x0F, 0, 5]);
    assert_eq!(floppy.read(&mut bench.cx(), PORTS, 4, 1), 1);
    bench.settle(&mut floppy);
    send(&mut bench, &mut floppy, &[8]);
    assert_eq!(results(&mut bench, &mut floppy), [0x20, 5]);
    assert_eq!(floppy.read(&mut bench.cx(), DIR_CCR, 0, 1), 0);
    send(&mut bench, &mut floppy, &[8]);
    assert_eq!(results(&mut bench, &mut floppy), [0x80]);
    floppy.insert(0, None);
    assert_eq!(floppy.read(&mut bench.cx(), DIR_CCR, 0, 1), 0x80);
}

#[test]
fn dma_read_over_both_heads() {
    let (mut bench, mut floppy) = setup();
    send(&mut bench, &mut floppy, &[3, 0xAF, 2]);
    send(&mut bench, &mut floppy, &[0xE6, 0, 0, 0, 18, 2, 18, 0x1B, 0xFF]);
    let mut got = Vec::new();
    for last in [false, true] {
        bench.settle(&mut floppy);
        assert_eq!(bench.take(), [Effect::DmaRequest { channel: 2, level: true }]);
        assert_eq!(floppy.dma_request(), Some((DmaDirection::ToMemory, 512)));
        got.extend_from_slice(floppy.dma_out());
        floppy.dma_done(&mut bench.cx(), 512, last);
        assert!(bench.take().contains(&Effect::DmaRequest { channel: 2, level: false }));
    }
    assert_eq!((got[0], got[1023]), (17, 18));
    assert_eq!(results(&mut bench, &mut floppy), [4, 0, 0, 0, 1, 2, 2]);
    assert_eq!(bench.take(), [Effect::Line { pin: IRQ, level: false }]);
}

#[test]
fn dma_write_and_pio_read() {
    let (mut bench, mut floppy) = setup();
    send(&mut bench, &mut floppy, &[0x45, 4, 0, 1, 3, 2, 18, 0x1B, 0xFF]);
    bench.settle(&mut floppy);
    assert_eq!(floppy.dma_request(), Some((DmaDirection::FromMemory, 512)));
    floppy.dma_in(&[0xA5; 512]);
    floppy.dma_done(&mut bench.cx(), 512, true);
    assert_eq!(results(&mut bench, &mut floppy), [4, 0, 0, 0, 1, 4, 2]);
    // Without DMA, up to EOT.
    send(&mut bench, &mut floppy, &[3, 0xAF, 3]);
    send(&mut bench, &mut floppy, &[0x46, 4, 0, 1, 3, 2, 3, 0x1B, 0xFF]);
    bench.settle(&mut floppy);
    for _ in 0..512 {
        assert_eq!(floppy.read(&mut bench.cx(), PORTS, 4, 1), 0xF0);
        assert_eq!(floppy.read(&mut bench.cx(), PORTS, 5, 1), 0xA5);
    }
    assert_eq!(results(&mut bench, &mut floppy), [0x44, 0x80, 0, 1, 1, 1, 2]);
}

#[test]
fn format_and_failures() {
    let (mut bench, mut floppy) = setup();
    send(&mut bench, &mut floppy, &[0x4D, 0, 2, 18, 0x1B, 0xF6]);
    bench.settle(&mut floppy);
    let headers: Vec<u8> = (1..=18).flat_map(|r| [0, 0, r, 2]).collect();
    floppy.dma_in(&headers);
    floppy.dma_done(&mut bench.cx(), 72, true);
    assert_eq!(results(&mut bench, &mut floppy)[..3], [0, 0, 0]);
    let mut sector = [0; 512];
    floppy.drives[0].read(17 * 512, &mut sector).unwrap();
    assert_eq!(sector, [0xF6; 512]);
    // Wrong cylinder; wrong data rate; no such sector.
    for (rate, cylinder, sector, status) in [(0, 1, 1, [4, 0x10]), (2, 0, 1, [1, 0]), (0, 0, 19, [4, 0])] {
        floppy.write(&mut bench.cx(), DIR_CCR, 0, 1, rate);
        send(&mut bench, &mut floppy, &[0x46, 0, cylinder, 0, sector, 2, 18, 0x1B, 0xFF]);
        bench.settle(&mut floppy);
        assert_eq!(results(&mut bench, &mut floppy)[1..3], status);
    }
    send(&mut bench, &mut floppy, &[0x1F]);
    assert_eq!(results(&mut bench, &mut floppy), [0x80]);
}

#[test]
fn geometry_by_size() {
    let of = |kb: u64| media::Geometry::of(kb * 1024);
    assert_eq!([160, 320, 1200, 2880].map(|kb| of(kb).sectors), [8, 8, 15, 36]);
    assert_eq!((of(100).sectors, of(2000).sectors), (18, 36));
}
