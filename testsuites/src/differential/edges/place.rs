//! Where a program stands: mode, segments, and what linear addresses lead to.

use super::super::kernel::{CALL, END};
use crate::system::{descriptor, gate, sel};
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use trimaran_cpu::state::{
    Activity, CpuState, RFlags, Segment, TableRegister, attr, cr0, cr4, efer, gpr, seg,
};

/// Physical addresses.
pub mod at {
    pub const GDT: u64 = 0x1000;
    pub const IDT: u64 = 0x2000;
    pub const TSS: u64 = 0x3000;
    /// Handlers: one HLT a vector.
    pub const STUBS: u64 = 0x4000;
    pub const STACK0: u64 = 0x7000;
    pub const CODE: u64 = 0x1_0000;
    pub const DATA: u64 = 0x2_0000;
    pub const DATA_BYTES: u64 = 0x1_0000;
    pub const TABLES: u64 = 0x3_0000;
    pub const RAM: u64 = 0x4_0000;
}

/// Selectors of the program's segments start here.
const FIRST: u16 = 0x40;

/// A segment that programs may load.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub segment: Segment,
    /// The offset in it that leads to the data.
    pub data: u64,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Place {
    /// Code sizes of the kernel (16: real mode) and of the program.
    pub kernel: u32,
    pub bits: u32,
    pub virtual8086: bool,
    pub paging: bool,
    pub cpl: u8,
    /// The kernel's gates have 16 bits.
    pub narrow_gates: bool,
    pub write_protect: bool,
    pub avx: bool,
    /// Bits of the instruction pointer that count when code is laid out.
    pub mask: u64,
    /// Of the first byte of code.
    pub start: u64,
    pub code: Segment,
    pub windows: Vec<Window>,
    /// Which windows segment registers have at the start, by number; CS's is not used.
    pub initial: [usize; 6],
    pub stack: u64,
    /// Linear address of the data, and rights of its pages.
    data: u64,
    rights: [u64; 16],
    /// Pages of code: linear to physical, and the tables' root.
    pages: BTreeMap<u64, u64>,
}

const BITS: u16 = attr::P | attr::S | attr::RW | attr::A;

/// Code that is this long has the border inside, anywhere.
const BEFORE: std::ops::Range<u64> = 2..0x500;

impl Place {
    pub fn draw(rng: &mut SmallRng) -> Self {
        // What translators leave to the interpreter, 16-bit code and code segments that are not flat, in a third.
        let (kernel, bits, virtual8086) = match rng.random_range(0..16) {
            0 => (16, 16, false),
            1 => (32, 16, true),
            2 => (32, 16, false),
            3 => (64, 16, false),
            4..8 => (32, 32, false),
            8..11 => (64, 32, false),
            _ => (64, 64, false),
        };
        let cpl = if virtual8086 || kernel != 16 && rng.random() { 3 } else { 0 };
        let mut place = Place {
            kernel,
            bits,
            virtual8086,
            paging: kernel == 64 || kernel == 32 && rng.random_ratio(3, 4),
            cpl,
            narrow_gates: kernel == 32 && !virtual8086 && rng.random_ratio(1, 4),
            write_protect: rng.random(),
            avx: !virtual8086 && kernel != 16 && rng.random_ratio(1, 3),
            mask: if bits == 16 {
                0xFFFF
            } else if bits == 32 {
                0xFFFF_FFFF
            } else {
                !0
            },
            start: 0,
            code: Segment::null(0),
            windows: Vec::new(),
            initial: [0; 6],
            stack: 0x2000,
            data: at::DATA,
            rights: [3; 16],
            pages: BTreeMap::new(),
        };
        if place.paging {
            let user = if cpl == 3 { 4 } else { 0 };
            place.rights = std::array::from_fn(|_| user | [1, 2, 3][rng.random_range(0..24usize).min(2)]);
            if !place.real() && bits < 64 {
                place.data = [at::DATA, 0x7FFF_8000, 0xFFFE_0000][rng.random_range(0..3)];
            }
        }
        match bits {
            64 => place.long(rng),
            _ if place.real() => place.real_segments(rng),
            _ => place.protected(rng),
        }
        place.initial = std::array::from_fn(|_| rng.random_range(0..place.windows.len()));
        // A stack that a kernel of the same level can use.
        place.initial[seg::SS] = 0;
        place.stack = place.windows[0].data + rng.random_range(0x1000..0x3000) / 16 * 16;
        place
    }

    /// Whether segments are as in real mode.
    pub fn real(&self) -> bool {
        self.kernel == 16 || self.virtual8086
    }

    fn real_segments(&mut self, rng: &mut SmallRng) {
        let dpl = u16::from(self.cpl) << 5;
        let mut windows: Vec<u16> = (0..6).map(|_| rng.random_range(0x1800..0x3000)).collect();
        windows[0] = 0x2000;
        let all = windows.iter();
        self.windows = all.map(|&s| Window { segment: Segment::real(s, BITS | dpl), data: 0 }).collect();
        self.code = Segment::real(rng.random_range(0x1000..0x1800), BITS | dpl);
        // Sometimes far from where the pointer wraps.
        let start = 0x1_0000 - rng.random_range(BEFORE);
        self.start = if rng.random_ratio(1, 4) { start & 0x7FFF } else { start };
    }

    fn long(&mut self, rng: &mut SmallRng) {
        let (border, low): (u64, bool) = match rng.random_range(0..6) {
            0 => (0x8000_0000, true),
            1 => (0x1_0000_0000, true),
            2 => (0x8000_0000_0000, true),
            3 => (0xFFFF_8000_0000_0000, false),
            4 => (0, true),
            _ => (0xFFFF_FFFF_8000_0000, true),
        };
        let before = rng.random_range(BEFORE);
        self.start = if low { border.wrapping_sub(before) } else { border + (before & 0xFF) };
        let dpl = u16::from(self.cpl) << 5;
        self.code = Segment {
            selector: FIRST | u16::from(self.cpl),
            attributes: BITS | attr::CODE | attr::L | attr::G | dpl,
            limit: !0,
            base: 0,
        };
        let segment = Segment {
            selector: (FIRST + 16) | u16::from(self.cpl),
            attributes: BITS | attr::DB | attr::G | dpl,
            limit: !0,
            base: 0,
        };
        self.windows = vec![Window { segment, data: at::DATA }];
    }

    fn protected(&mut self, rng: &mut SmallRng) {
        let size = if self.bits == 32 { attr::DB } else { 0 };
        let dpl = u16::from(self.cpl) << 5;
        let border = match rng.random_range(0..4) {
            _ if self.bits == 16 => 0x1_0000,
            0 => 0x1_8000,
            1 => 0x8000_0000,
            _ => 0x1_0000_0000u64,
        };
        self.start = border - rng.random_range(BEFORE);
        let flat = self.bits == 32 && self.paging && rng.random_ratio(3, 4);
        // Where the first byte is: with paging wherever, perhaps with a linear address that wraps.
        let linear = match rng.random_range(0..4) {
            _ if flat => self.start,
            0 if self.paging => 0xFFFF_FE00,
            1 if self.paging => 0x7FFF_FF00,
            _ => at::CODE + rng.random_range(0..0x1000),
        };
        let base = linear.wrapping_sub(self.start) & 0xFFFF_FFFF;
        let cut = (self.start + rng.random_range(1..0x700)) & self.mask;
        let limit = match rng.random_range(0..4) {
            _ if flat => !0,
            // With 16-bit code the pointer may go on behind 64 KiB.
            0 if self.bits == 16 => !0,
            1 if cut > self.start => cut as u32,
            _ => self.mask as u32,
        };
        let selector = FIRST | u16::from(self.cpl);
        let attributes = BITS | attr::CODE | size | dpl;
        self.code = granular(Segment { selector, attributes, limit, base });
        for n in 0..6 {
            let window = self.window(rng, n);
            self.windows.push(window);
        }
    }

    /// The `n`th data segment; the first is a plain one.
    fn window(&self, rng: &mut SmallRng, n: u16) -> Window {
        // Flat, or with the data at an offset that may make linear addresses wrap.
        let flat = self.bits == 32 && rng.random_ratio(1, 3);
        let offset = match rng.random_range(0..4) {
            _ if flat => self.data,
            _ if n == 0 || self.bits == 16 => 0,
            0 => 0xFFFF_E000,
            1 => u64::from(rng.random::<u32>()),
            _ => 0,
        };
        let within = rng.random_range(0..0x8000) & if rng.random_ratio(3, 4) { !15 } else { !0 };
        let base = (self.data + within).wrapping_sub(offset) & 0xFFFF_FFFF;
        let base = if flat { 0 } else { base };
        let mut attributes = BITS | u16::from(self.cpl) << 5;
        if flat || rng.random() {
            attributes |= attr::DB;
        }
        let mut limit = match rng.random_range(0..5) {
            _ if offset != 0 => !0,
            0 => 0xFFFF,
            1 => rng.random_range(0..0x6000),
            2 => 0x3FFF,
            3 => 0xFFF,
            _ => !0,
        };
        if flat {
            limit = !0;
        } else if n == 0 {
            limit = 0xFFFF;
        } else if rng.random_ratio(1, 5) {
            // Expand-down: valid is what lies above.
            attributes |= attr::EC;
            limit = rng.random_range(0..0x3000);
        } else if rng.random_ratio(1, 8) {
            attributes &= !attr::RW;
        }
        let selector = (FIRST + 16 + n * 8) | u16::from(self.cpl);
        Window { segment: granular(Segment { selector, attributes, limit, base }), data: offset }
    }

    /// An offset in a window for an access: mostly to the data, often where the segment, or an address size, ends.
    pub fn offset(&self, rng: &mut SmallRng, window: usize) -> u64 {
        let w = &self.windows[window];
        let limit = u64::from(w.segment.limit);
        let small = rng.random_range(0..18u64);
        let value = match rng.random_range(0..40) {
            0 | 1 => limit.wrapping_sub(small),
            2 => w.data.wrapping_sub(small),
            3 => 0xFFFFu64.wrapping_sub(small),
            4 => 0xFFFF_FFFFu64.wrapping_sub(small),
            5 | 6 if self.bits == 64 => self.start.wrapping_add(small * 8),
            7 if self.bits == 64 => 0x8000_0000_0000u64.wrapping_sub(small),
            8 if self.bits == 64 => small.wrapping_sub(16),
            9 => w.data + 0x1000 * rng.random_range(1..4) - small / 2,
            _ if w.segment.attributes & attr::EC != 0 => limit + 1 + rng.random_range(0..0x2000),
            _ => w.data + rng.random_range(0..0x3000) % limit.saturating_sub(16).max(1),
        };
        // What SSE wants of its operands.
        let value = if rng.random_ratio(3, 4) { value & !15 } else { value };
        if self.bits == 64 { value } else { value & 0xFFFF_FFFF }
    }

    /// Images of tables, handlers and code.
    pub fn images(&mut self, code: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut out = vec![(at::STUBS, vec![0xF4; 256])];
        if self.kernel == 16 {
            let vectors = (0..256u64).flat_map(|v| ((at::STUBS + v) as u32).to_le_bytes()).collect();
            out.push((0, vectors));
        } else {
            out.extend(self.descriptors());
        }
        self.lay_out(code, &mut out);
        if self.paging {
            self.page_tables(&mut out);
        }
        out
    }

    fn descriptors(&self) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        let mut put = |at: u64, value: u64| out.push((at, value.to_le_bytes().to_vec()));
        let size = if self.kernel == 64 { attr::L } else { attr::DB };
        put(at::GDT + u64::from(sel::CODE0), descriptor(0, 0xF_FFFF, BITS | attr::CODE | attr::G | size));
        put(at::GDT + u64::from(sel::DATA0), descriptor(0, 0xF_FFFF, BITS | attr::G | attr::DB));
        for s in self.windows.iter().map(|w| &w.segment).chain([&self.code]) {
            let limit = if s.attributes & attr::G != 0 { s.limit >> 12 } else { s.limit };
            put(at::GDT + u64::from(s.selector & !7), descriptor(s.base as u32, limit, s.attributes));
        }
        for vector in 0..=255u8 {
            let dpl = if matches!(vector, 3 | 4 | CALL..0x48 | END) { 3 } else { 0 };
            let kind = if self.narrow_gates { 6 } else { 14 };
            let low = gate(sel::CODE0, (at::STUBS + u64::from(vector)) as u32, kind, dpl, 0);
            // In long mode all have a stack of their own: the first of the interrupt stack table.
            let stack = if self.kernel == 64 { 1 << 32 } else { 0 };
            put(at::IDT + u64::from(vector) * if self.kernel == 64 { 16 } else { 8 }, low | stack);
        }
        put(at::TSS + 4, at::STACK0);
        if self.kernel == 32 {
            put(at::TSS + 8, u64::from(sel::DATA0));
        }
        put(at::TSS + 36, at::STACK0);
        put(at::TSS + 0x64, 0xFFFF << 16);
        out
    }

    /// Code from its start on, behind the border too. 16-bit code in a segment of 4 GiB stands there twice.
    fn lay_out(&mut self, code: &[u8], out: &mut Vec<(u64, Vec<u8>)>) {
        let linear_mask = if self.bits == 64 { !0 } else { 0xFFFF_FFFF };
        let wide = self.bits == 16 && self.code.limit == !0;
        for mask in [self.mask, if wide { 0xFFFF_FFFF } else { self.mask }] {
            for (n, &byte) in code.iter().enumerate() {
                let offset = self.start.wrapping_add(n as u64) & mask;
                let linear = self.code.base.wrapping_add(offset) & linear_mask;
                // Nothing is in the hole of addresses that are not canonical.
                if (0x8000_0000_0000..0xFFFF_8000_0000_0000).contains(&linear) {
                    continue;
                }
                let page = linear & !0xFFF;
                let next = at::CODE + self.pages.len() as u64 * 0x1000;
                let physical = if self.paging { *self.pages.entry(page).or_insert(next) } else { page };
                out.push((physical + (linear & 0xFFF), vec![byte]));
            }
        }
    }

    fn page_tables(&self, out: &mut Vec<(u64, Vec<u8>)>) {
        let mut tables =
            Tables { wide: self.kernel == 64, next: at::TABLES + 0x1000, entries: BTreeMap::new() };
        for page in (at::GDT..at::STACK0).step_by(0x1000) {
            tables.map(page, page | 3);
        }
        let user = if self.cpl == 3 { 4 } else { 0 };
        if self.virtual8086 {
            for page in (at::CODE..at::DATA).chain(at::DATA + at::DATA_BYTES..at::RAM).step_by(0x1000) {
                tables.map(page, page | 3 | user);
            }
        }
        for (n, rights) in self.rights.iter().enumerate() {
            let page = n as u64 * 0x1000;
            tables.map(self.data + page, (at::DATA + page) | rights);
        }
        for (&linear, &physical) in &self.pages {
            tables.map(linear, physical | 3 | user);
        }
        let size = if tables.wide { 8 } else { 4 };
        out.extend(tables.entries.iter().map(|(&at, value)| (at, value.to_le_bytes()[..size].to_vec())));
    }

    /// Sets the registers of the system, and segments.
    pub fn enter(&self, s: &mut CpuState) {
        s.cr0 = cr0::ET | cr0::NE | cr0::MP | cr0::AM;
        s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        s.xcr0 = if self.avx { 7 } else { 1 };
        s.idtr = TableRegister { base: 0, limit: 0x3FF };
        if self.kernel != 16 {
            s.cr0 |= cr0::PE;
            s.gdtr = TableRegister { base: at::GDT, limit: 0xFF };
            s.idtr = TableRegister { base: at::IDT, limit: 0xFFF };
            s.tr = Segment { selector: sel::TSS, attributes: attr::P | 11, limit: 0xFF, base: at::TSS };
        }
        if self.paging {
            s.cr0 |= cr0::PG | if self.write_protect { cr0::WP } else { 0 };
            s.cr3 = at::TABLES;
        }
        if self.kernel == 64 {
            s.cr4 |= cr4::PAE | cr4::FSGSBASE;
            s.msr.efer |= efer::LME | efer::LMA;
        }
        s.rflags = RFlags::ONE;
        self.again(s);
    }

    /// Segments and stack as at the start.
    pub fn again(&self, s: &mut CpuState) {
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            s.seg[n] = self.windows[self.initial[n]].segment;
        }
        s.seg[seg::CS] = self.code;
        s.cpl = self.cpl;
        s.gpr[gpr::RSP] = self.stack;
        if self.virtual8086 {
            s.rflags |= RFlags::VM;
        }
        s.activity = Activity::Running;
    }

    /// The segment that a selector names.
    pub fn segment(&self, selector: u16) -> Option<Segment> {
        if self.real() {
            return Some(Segment::real(selector, BITS | u16::from(self.cpl) << 5));
        }
        let all = self.windows.iter().map(|w| w.segment).chain([self.code]);
        all.into_iter().find(|s| s.selector == selector)
    }
}

/// A segment whose limit a descriptor can have.
fn granular(mut s: Segment) -> Segment {
    if s.limit > 0xF_FFFF {
        (s.limit, s.attributes) = (s.limit | 0xFFF, s.attributes | attr::G);
    }
    s
}

/// Page tables in the making: of 4 levels, or of 2 with entries of 4 bytes.
struct Tables {
    wide: bool,
    next: u64,
    entries: BTreeMap<u64, u64>,
}

impl Tables {
    fn map(&mut self, linear: u64, leaf: u64) {
        let levels: &[u64] = if self.wide { &[39, 30, 21, 12] } else { &[22, 12] };
        let (size, index) = if self.wide { (8, 511) } else { (4, 1023) };
        let mut table = at::TABLES;
        for &shift in levels {
            let entry = table + (linear >> shift & index) * size;
            if shift == 12 {
                self.entries.insert(entry, leaf);
                return;
            }
            let next = self.next;
            let value = *self.entries.entry(entry).or_insert(next | 7);
            if value == next | 7 {
                self.next += 0x1000;
                assert!(self.next <= at::RAM, "too many page tables");
            }
            table = value & !0xFFF;
        }
    }
}
