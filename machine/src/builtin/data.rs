//! Constant data of the guest.

use super::places::{DATA, FONT};

/// Data that is placed while the code that uses it is written.
pub struct Data {
    pub bytes: Vec<u8>,
}

impl Data {
    pub fn new() -> Self {
        Data { bytes: Vec::new() }
    }

    /// Places bytes and returns their address.
    pub fn put(&mut self, align: usize, bytes: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let at = DATA + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        assert!(DATA + self.bytes.len() as u64 <= FONT, "the built-in guest's data reaches its font");
        at as u32
    }

    /// A string with a zero at its end.
    pub fn text(&mut self, text: &str) -> u32 {
        let bytes: Vec<u8> = text.bytes().chain([0]).collect();
        self.put(1, &bytes)
    }

    /// Packed doubles.
    pub fn doubles(&mut self, values: &[f64]) -> u32 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(16, &bytes)
    }

    pub fn dwords(&mut self, values: &[u32]) -> u32 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.put(16, &bytes)
    }
}

/// Where a feature's bit stands: leaf, sub-leaf, register (EAX is 0, EBX 1, ECX 2, EDX 3).
pub const CPUID_WORDS: [(u32, u32, u8); 8] = [
    (1, 0, 2),
    (1, 0, 3),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    (0xD, 1, 0),
];

/// Features that are named: index into [`CPUID_WORDS`], bit, name of at most 13 characters.
#[rustfmt::skip]
pub const FEATURES: &[(u8, u8, &str)] = &[
    (1, 0, "fpu"), (1, 1, "vme"), (1, 2, "de"), (1, 3, "pse"), (1, 4, "tsc"), (1, 5, "msr"), (1, 6, "pae"),
    (1, 7, "mce"), (1, 8, "cx8"), (1, 9, "apic"), (1, 11, "sep"), (1, 12, "mtrr"), (1, 13, "pge"), (1, 14, "mca"),
    (1, 15, "cmov"), (1, 16, "pat"), (1, 17, "pse36"), (1, 19, "clflush"), (1, 23, "mmx"), (1, 24, "fxsr"),
    (1, 25, "sse"), (1, 26, "sse2"), (1, 28, "ht"), (0, 0, "sse3"), (0, 1, "pclmulqdq"), (0, 3, "monitor"),
    (0, 9, "ssse3"), (0, 12, "fma"), (0, 13, "cx16"), (0, 17, "pcid"), (0, 19, "sse4.1"), (0, 20, "sse4.2"),
    (0, 21, "x2apic"), (0, 22, "movbe"), (0, 23, "popcnt"), (0, 24, "tsc-deadline"), (0, 25, "aes"),
    (0, 26, "xsave"), (0, 28, "avx"), (0, 29, "f16c"), (0, 30, "rdrand"), (0, 31, "hypervisor"), (7, 0, "xsaveopt"),
    (2, 0, "fsgsbase"), (2, 3, "bmi1"), (2, 5, "avx2"), (2, 7, "smep"), (2, 8, "bmi2"), (2, 9, "erms"),
    (2, 10, "invpcid"), (2, 16, "avx512f"), (2, 18, "rdseed"), (2, 19, "adx"), (2, 20, "smap"), (2, 29, "sha"),
    (3, 2, "umip"), (3, 22, "rdpid"), (4, 4, "fsrm"), (6, 11, "syscall"), (6, 20, "nx"), (6, 26, "1gb-pages"),
    (6, 27, "rdtscp"), (6, 29, "x86-64"), (5, 0, "lahf"), (5, 5, "lzcnt"), (5, 8, "prefetchw"),
];

/// The features' table as the guest reads it: 16 bytes each, a word index of 0xFF at the end.
pub fn feature_table() -> Vec<u8> {
    let mut table = Vec::new();
    for &(word, bit, name) in FEATURES {
        let mut entry = [0; 16];
        (entry[0], entry[1]) = (word, bit);
        entry[2..2 + name.len()].copy_from_slice(name.as_bytes());
        table.extend(entry);
    }
    table.extend([0xFF; 16]);
    table
}

/// Characters of scan code set 1, without and with Shift (US layout), 128 bytes each.
pub fn key_table() -> Vec<u8> {
    let plain = b"\0\x1b1234567890-=\x08\tqwertyuiop[]\n\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
    let shifted = b"\0\x1b!@#$%^&*()_+\x08\tQWERTYUIOP{}\n\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";
    let mut table = vec![0; 256];
    table[..plain.len()].copy_from_slice(plain);
    table[128..128 + shifted.len()].copy_from_slice(shifted);
    table
}

/// The pointer: 16 lines of 16 pixels, outline and filling, the leftmost pixel in bit 15.
pub fn pointer_bitmaps() -> Vec<u8> {
    const ARROW: [&str; 16] = [
        "#",
        "##",
        "#.#",
        "#..#",
        "#...#",
        "#....#",
        "#.....#",
        "#......#",
        "#.......#",
        "#........#",
        "#.....#####",
        "#..#..#",
        "#.# #..#",
        "##  #..#",
        "#    #..#",
        "     ###",
    ];
    let lines = |mark: char| {
        ARROW.iter().flat_map(move |line| {
            let bit = |(n, c): (usize, char)| if c == mark { 0x8000u16 >> n } else { 0 };
            line.chars().enumerate().map(bit).sum::<u16>().to_le_bytes()
        })
    };
    lines('#').chain(lines('.')).collect()
}
