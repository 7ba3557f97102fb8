//! What one case starts from and what it leads to, the same for both sides.

use iced_x86::{Decoder, DecoderOptions, Instruction};

/// Linear addresses, equal on both sides. Everything around them is unmapped.
pub mod at {
    /// Two writable pages, then one that may only be read.
    pub const DATA: u64 = 0x1000_0000;
    pub const WRITABLE_BYTES: usize = 0x2000;
    pub const DATA_BYTES: usize = 0x3000;
    /// One page of code; the end of a case jumps to [`EXIT`].
    pub const CODE: u64 = 0x1100_0000;
    /// Far from what bit offsets and wild displacements reach from the data area.
    pub const TRAMPOLINE: u64 = 0x6B5A_0000;
    /// Mapped on the native side only.
    pub const CONTEXT: u64 = 0x5A6B_0000;
    pub const EXIT: u64 = TRAMPOLINE + 0x400;
    pub const RESTORE: u64 = TRAMPOLINE + 0x600;
}

/// x87, MXCSR, XMM and what YMM has above as XSAVE has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Floating {
    pub control: u16,
    pub status: u16,
    /// Abridged tag word: 1 = not empty.
    pub tags: u8,
    /// ST(0) to ST(7), 80 bits each.
    pub st: [u128; 8],
    pub mxcsr: u32,
    pub xmm: [u128; 16],
    /// Bits 255 to 128; zero where the host has no AVX.
    pub ymm_high: [u128; 16],
}

/// Bytes of an XSAVE area with AVX state, in the standard form.
pub const AREA: usize = 576 + 256;

impl Floating {
    pub fn from_area(image: &[u8; AREA]) -> Self {
        let u16_at = |n: usize| u16::from_le_bytes([image[n], image[n + 1]]);
        let u128_at = |n: usize| {
            let mut b = [0; 16];
            b.copy_from_slice(&image[n..n + 16]);
            u128::from_le_bytes(b)
        };
        Floating {
            control: u16_at(0),
            status: u16_at(2),
            tags: image[4],
            st: std::array::from_fn(|n| u128_at(32 + n * 16) & ((1 << 80) - 1)),
            mxcsr: u32::from(u16_at(24)) | u32::from(u16_at(26)) << 16,
            xmm: std::array::from_fn(|n| u128_at(160 + n * 16)),
            // XSTATE_BV says whether they are there.
            ymm_high: std::array::from_fn(|n| if image[512] & 4 != 0 { u128_at(576 + n * 16) } else { 0 }),
        }
    }

    pub fn to_area(&self) -> [u8; AREA] {
        let mut image = [0; AREA];
        image[512] = 7;
        image[0..2].copy_from_slice(&self.control.to_le_bytes());
        image[2..4].copy_from_slice(&self.status.to_le_bytes());
        image[4] = self.tags;
        image[24..28].copy_from_slice(&self.mxcsr.to_le_bytes());
        for n in 0..8 {
            image[32 + n * 16..][..16].copy_from_slice(&self.st[n].to_le_bytes());
        }
        for n in 0..16 {
            image[160 + n * 16..][..16].copy_from_slice(&self.xmm[n].to_le_bytes());
            image[576 + n * 16..][..16].copy_from_slice(&self.ymm_high[n].to_le_bytes());
        }
        image
    }
}

/// Start of a case.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    /// One entry an instruction.
    pub code: Vec<Vec<u8>>,
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub floating: Floating,
    pub memory: Vec<u8>,
}

impl Case {
    /// The code as it stands in memory at an address, with the jump to [`at::EXIT`].
    pub fn image(&self, address: u64) -> Vec<u8> {
        let mut bytes = self.code.concat();
        let next = address + bytes.len() as u64 + 5;
        bytes.push(0xE9);
        bytes.extend((at::EXIT.wrapping_sub(next) as u32).to_le_bytes());
        bytes
    }

    pub fn instructions(&self) -> Vec<Instruction> {
        let mut ip = at::CODE;
        let decode = |bytes: &Vec<u8>| {
            let x = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE).decode();
            ip += bytes.len() as u64;
            x
        };
        self.code.iter().map(decode).collect()
    }
}

/// An exception as a program sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    pub vector: u8,
    /// 0 where the vector has none.
    pub error: u64,
    /// CR2 with #PF, else 0.
    pub address: u64,
}

/// End of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub rip: u64,
    pub raised: Option<Raised>,
    pub floating: Floating,
    pub memory: Vec<u8>,
}
