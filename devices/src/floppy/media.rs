//! Diskette formats, and a drive with what is in it.

use crate::block::Medium;
use std::io;

pub const SECTOR: usize = 512;

/// Cylinders, heads, sectors a track, and the data rate's code in CCR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub cylinders: u8,
    pub heads: u8,
    pub sectors: u8,
    pub rate: u8,
}

/// CCR's data rates: 500, 300, 250 and 1000 kbit/s.
const RATE_500: u8 = 0;
const RATE_300: u8 = 1;
const RATE_250: u8 = 2;
const RATE_1000: u8 = 3;

/// Formats by size: 160K to 2.88M.
#[rustfmt::skip]
const FORMATS: [Geometry; 10] = [
    Geometry { cylinders: 40, heads: 1, sectors: 8,  rate: RATE_250 },
    Geometry { cylinders: 40, heads: 1, sectors: 9,  rate: RATE_250 },
    Geometry { cylinders: 40, heads: 2, sectors: 8,  rate: RATE_250 },
    Geometry { cylinders: 40, heads: 2, sectors: 9,  rate: RATE_250 },
    Geometry { cylinders: 80, heads: 2, sectors: 9,  rate: RATE_250 },
    Geometry { cylinders: 80, heads: 2, sectors: 15, rate: RATE_500 },
    Geometry { cylinders: 80, heads: 2, sectors: 18, rate: RATE_500 },
    Geometry { cylinders: 80, heads: 2, sectors: 21, rate: RATE_500 },
    Geometry { cylinders: 82, heads: 2, sectors: 21, rate: RATE_500 },
    Geometry { cylinders: 80, heads: 2, sectors: 36, rate: RATE_1000 },
];

impl Geometry {
    fn bytes(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors) * SECTOR as u64
    }

    /// The format of an image; one of no standard size is a 1.44M or a 2.88M diskette that is not full.
    pub fn of(len: u64) -> Geometry {
        let [.., high, _, _, extra] = FORMATS;
        let odd = if len <= high.bytes() { high } else { extra };
        FORMATS.into_iter().find(|format| format.bytes() == len).unwrap_or(odd)
    }

    /// Whether the controller's data rate reads this diskette (300 and 250 kbit/s differ by the drive).
    pub fn reads_at(self, rate: u8) -> bool {
        self.rate == rate & 3 || self.rate == RATE_250 && rate & 3 == RATE_300
    }
}

#[derive(Default)]
pub struct Drive {
    pub medium: Option<Box<dyn Medium>>,
}

impl Drive {
    pub fn geometry(&self) -> Option<Geometry> {
        self.medium.as_ref().map(|medium| Geometry::of(medium.len()))
    }

    pub fn read_only(&self) -> bool {
        self.medium.as_ref().is_some_and(|medium| medium.read_only())
    }

    /// Reads a sector; the part past the image's end is zeros.
    pub fn read(&mut self, position: u64, buf: &mut [u8]) -> io::Result<()> {
        let medium = self.medium.as_mut().ok_or(io::ErrorKind::NotFound)?;
        buf.fill(0);
        let there = medium.len().saturating_sub(position).min(buf.len() as u64) as usize;
        medium.read_at(position, &mut buf[..there])
    }

    pub fn write(&mut self, position: u64, buf: &[u8]) -> io::Result<()> {
        self.medium.as_mut().ok_or(io::ErrorKind::NotFound)?.write_at(position, buf)
    }
}
