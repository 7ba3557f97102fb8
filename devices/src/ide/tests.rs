use super::*;
use crate::block::MemoryMedium;
use crate::chip::Effect;
use crate::testing::Bench;

const IRQ: [Effect; 1] = [Effect::Line { pin: 0, level: true }];

fn setup() -> (Bench, Ide) {
    let mut ide = Ide::new();
    let disk: Vec<u8> = (0..64 * 1024 * 16).map(|i: u32| (i / 512 + i) as u8).collect();
    ide.attach(0, 0, Drive::Disk(Box::new(MemoryMedium::new(disk))));
    ide.attach(0, 1, Drive::CdRom(Some(Box::new(MemoryMedium::new(vec![0x5A; 2048 * 32])))));
    let mut bench = Bench::new(0x4_0000);
    ide.write(&mut bench.cx(), PCI_CONFIG, 4, 2, 5);
    bench.take();
    (bench, ide)
}

fn outb(bench: &mut Bench, ide: &mut Ide, offset: u64, value: u8) {
    ide.write(&mut bench.cx(), COMMAND_BLOCK_0, offset, 1, value.into());
}

fn inb(bench: &mut Bench, ide: &mut Ide, offset: u64) -> u8 {
    ide.read(&mut bench.cx(), COMMAND_BLOCK_0, offset, 1) as u8
}

fn command(bench: &mut Bench, ide: &mut Ide, lba: u32, count: u8, code: u8) {
    for (offset, value) in [(6, 0xE0 | (lba >> 24) as u8), (2, count), (3, lba as u8)] {
        outb(bench, ide, offset, value);
    }
    outb(bench, ide, 4, (lba >> 8) as u8);
    outb(bench, ide, 5, (lba >> 16) as u8);
    outb(bench, ide, 7, code);
}

fn data(bench: &mut Bench, ide: &mut Ide, bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..bytes / 2 {
        out.extend((ide.read(&mut bench.cx(), COMMAND_BLOCK_0, 0, 2) as u16).to_le_bytes());
    }
    out
}

fn packet(bench: &mut Bench, ide: &mut Ide, dma: bool, limit: u16, p: [u8; 12]) {
    outb(bench, ide, 6, 0xB0);
    outb(bench, ide, 1, dma.into());
    outb(bench, ide, 4, limit as u8);
    outb(bench, ide, 5, (limit >> 8) as u8);
    outb(bench, ide, 7, 0xA0);
    assert_eq!(inb(bench, ide, 7) & 0x88, 0x08);
    for pair in p.chunks(2) {
        let word = u16::from_le_bytes([pair[0], pair[1]]);
        ide.write(&mut bench.cx(), COMMAND_BLOCK_0, 0, 2, word.into());
    }
}

#[test]
fn pio_read_and_write() {
    let (mut bench, mut ide) = setup();
    command(&mut bench, &mut ide, 5, 2, 0x20);
    assert_eq!(inb(&mut bench, &mut ide, 7), 0xC0);
    for sector in 5..7u32 {
        bench.settle(&mut ide);
        assert_eq!(bench.take(), IRQ);
        assert_eq!(inb(&mut bench, &mut ide, 7), 0x58);
        let got = data(&mut bench, &mut ide, 512);
        assert!(got.iter().enumerate().all(|(i, &b)| b == (sector + i as u32) as u8));
        bench.take();
    }
    assert_eq!(inb(&mut bench, &mut ide, 7), 0x50);

    command(&mut bench, &mut ide, 9, 1, 0x30);
    assert_eq!(inb(&mut bench, &mut ide, 7), 0x58);
    for i in 0..128u64 {
        ide.write(&mut bench.cx(), COMMAND_BLOCK_0, 0, 4, 0x0101_0101 * i);
    }
    bench.settle(&mut ide);
    assert_eq!(bench.take(), IRQ);
    assert_eq!(inb(&mut bench, &mut ide, 7), 0x50);
    command(&mut bench, &mut ide, 9, 1, 0x20);
    bench.settle(&mut ide);
    assert_eq!(data(&mut bench, &mut ide, 512)[4..8], [1; 4]);
}

#[test]
fn identify_and_errors() {
    let (mut bench, mut ide) = setup();
    command(&mut bench, &mut ide, 0, 0, 0xEC);
    bench.settle(&mut ide);
    let id = data(&mut bench, &mut ide, 512);
    assert_eq!(u32::from_le_bytes([id[120], id[121], id[122], id[123]]), 2048);
    assert_eq!(&id[54..62], b"RTMIRANA");
    command(&mut bench, &mut ide, 2047, 2, 0x20);
    assert_eq!(inb(&mut bench, &mut ide, 7), 0x51);
    assert_eq!(inb(&mut bench, &mut ide, 1), error_idnf());
    command(&mut bench, &mut ide, 0, 0, 0xB0);
    assert_eq!(inb(&mut bench, &mut ide, 1), 4);
}

fn error_idnf() -> u8 {
    drive::error::IDNF
}

#[test]
fn dma_scatters_and_gathers() {
    let (mut bench, mut ide) = setup();
    // Two regions: 0x100 bytes at 0x1000, 0x1300 at 0x2000, end of table.
    let table: [u32; 4] = [0x1000, 0x100, 0x2000, 0x8000_1300];
    let bytes: Vec<u8> = table.iter().flat_map(|d| d.to_le_bytes()).collect();
    bench.ram.0.lock().unwrap()[0x800..0x810].copy_from_slice(&bytes);
    ide.write(&mut bench.cx(), BUS_MASTER, 4, 4, 0x800);
    command(&mut bench, &mut ide, 0, 10, 0xC8);
    ide.write(&mut bench.cx(), BUS_MASTER, 0, 1, 9);
    assert_eq!(ide.read(&mut bench.cx(), BUS_MASTER, 2, 1), 1);
    bench.settle(&mut ide);
    assert_eq!(bench.take(), IRQ);
    assert_eq!(ide.read(&mut bench.cx(), BUS_MASTER, 2, 1), 4);
    assert_eq!(inb(&mut bench, &mut ide, 7), 0x50);
    {
        let ram = bench.ram.0.lock().unwrap();
        assert_eq!((ram[0x10FF], ram[0x2000], ram[0x32FF]), (0xFF, 0x00, 9u8.wrapping_add(0xFF)));
    }
    // The other way, with an odd region.
    ide.write(&mut bench.cx(), BUS_MASTER, 0, 1, 0);
    ide.write(&mut bench.cx(), BUS_MASTER, 2, 1, 6);
    bench.ram.0.lock().unwrap()[0x800] = 1;
    command(&mut bench, &mut ide, 0, 10, 0xCA);
    ide.write(&mut bench.cx(), BUS_MASTER, 0, 1, 1);
    bench.settle(&mut ide);
    assert_eq!(ide.read(&mut bench.cx(), BUS_MASTER, 2, 1), 2);
}

#[test]
fn soft_reset_signatures() {
    let (mut bench, mut ide) = setup();
    for value in [0x04, 0x00] {
        ide.write(&mut bench.cx(), CONTROL_BLOCK_0, 0, 1, value);
    }
    assert_eq!(inb(&mut bench, &mut ide, 7), 0x80);
    bench.settle(&mut ide);
    assert_eq!([4, 5].map(|r| inb(&mut bench, &mut ide, r)), [0, 0]);
    outb(&mut bench, &mut ide, 6, 0x10);
    assert_eq!([2, 3, 4, 5, 7].map(|r| inb(&mut bench, &mut ide, r)), [1, 1, 0x14, 0xEB, 0]);
}

#[test]
fn packets() {
    let (mut bench, mut ide) = setup();
    // READ(10) of two sectors in pieces of 2,048 bytes at most.
    packet(&mut bench, &mut ide, false, 2048, [0x28, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0]);
    for _ in 0..2 {
        bench.settle(&mut ide);
        assert_eq!(inb(&mut bench, &mut ide, 7) & 0x88, 0x08);
        assert_eq!([2, 4, 5].map(|r| inb(&mut bench, &mut ide, r)), [2, 0, 8]);
        assert_eq!(data(&mut bench, &mut ide, 2048), [0x5A; 2048]);
    }
    bench.settle(&mut ide);
    assert_eq!(inb(&mut bench, &mut ide, 7), 0x40);
    assert_eq!(inb(&mut bench, &mut ide, 2), 3);
    // Out of range, sense.
    packet(&mut bench, &mut ide, false, 2048, [0x28, 0, 0, 0, 0, 31, 0, 0, 2, 0, 0, 0]);
    bench.settle(&mut ide);
    assert_eq!((inb(&mut bench, &mut ide, 7), inb(&mut bench, &mut ide, 1)), (0x41, 0x54));
    packet(&mut bench, &mut ide, false, 2048, [3, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0]);
    bench.settle(&mut ide);
    let sense = data(&mut bench, &mut ide, 18);
    assert_eq!((sense[2], sense[12]), (5, 0x21));
    bench.settle(&mut ide);
    // The disc is taken out.
    assert!(ide.change_medium(0, 1, None));
    for asc in [0x28, 0x3A] {
        packet(&mut bench, &mut ide, false, 0, [0; 12]);
        bench.settle(&mut ide);
        assert_eq!(inb(&mut bench, &mut ide, 7), 0x41);
        packet(&mut bench, &mut ide, false, 2048, [3, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0]);
        bench.settle(&mut ide);
        assert_eq!(data(&mut bench, &mut ide, 18)[12], asc);
        bench.settle(&mut ide);
    }
}

#[test]
fn packet_by_dma() {
    let (mut bench, mut ide) = setup();
    let table: Vec<u8> = [0x1_0000u32, 0x8000_0000].iter().flat_map(|d| d.to_le_bytes()).collect();
    bench.ram.0.lock().unwrap()[0x800..0x808].copy_from_slice(&table);
    ide.write(&mut bench.cx(), BUS_MASTER, 4, 4, 0x800);
    packet(&mut bench, &mut ide, true, 0, [0x28, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0]);
    ide.write(&mut bench.cx(), BUS_MASTER, 0, 1, 9);
    bench.settle(&mut ide);
    assert_eq!(ide.read(&mut bench.cx(), BUS_MASTER, 2, 1), 4);
    assert!(bench.ram.0.lock().unwrap()[0x1_0000..0x2_0000].iter().all(|&b| b == 0x5A));
}

#[test]
fn save_in_the_middle_of_a_sector() {
    let (mut bench, mut ide) = setup();
    command(&mut bench, &mut ide, 1, 1, 0x20);
    bench.settle(&mut ide);
    data(&mut bench, &mut ide, 100);
    let saved = ide.save();
    let (_, mut other) = setup();
    other.restore(&saved).unwrap();
    assert_eq!(other.save(), saved);
    assert_eq!(data(&mut bench, &mut ide, 412), data(&mut bench, &mut other, 412));
    assert!(Ide::new().restore(&saved).is_err());
}
