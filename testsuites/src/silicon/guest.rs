//! The same case on a vCPU: 64-bit mode at CPL 3, a kernel of 256 HLTs in the upper half that takes every exception.

use super::case::{Case, Floating, Outcome, Raised, at};
use crate::flat::Flat;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::{
    Activity, F80, RFlags, Segment, Shadow, TableRegister, attr, cr0, cr4, efer, gpr, seg,
};

const KERNEL: u64 = 0xFFFF_FFFF_8000_0000;
/// Physical addresses. The kernel's pages are mapped at [`KERNEL`] plus these.
const PML4: u64 = 0x1000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xA000;
const STUBS: u64 = 0xB000;
const STACK_TOP: u64 = 0xD000;
const DATA: u64 = 0x10_0000;
const CODE: u64 = 0x11_0000;
const EXIT_PAGE: u64 = 0x12_0000;

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const XD: u64 = 1 << 63;

/// See the head of this file.
pub struct Guest {
    pub flat: Flat,
    /// Where a case's code begins.
    pub start: u64,
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// On the interpreter.
    pub fn new() -> Self {
        let mut guest = Guest { flat: Flat::new(0x20_0000), start: at::CODE };
        guest.tables();
        guest.registers();
        guest
    }

    /// On the engine of a name.
    pub fn on(engine: &str) -> Result<Self, String> {
        let mut guest = Self::new();
        guest.flat.run_on(engine)?;
        Ok(guest)
    }

    /// Whether the `n`th page of the data area is there.
    pub fn set_present(&mut self, n: u64, present: bool) {
        let bits = if n < 2 { US | XD | RW } else { US | XD };
        let place = 0x4000 + ((at::DATA >> 12 & 511) + n) * 8;
        self.put(place, (DATA + n * 0x1000) | bits | u64::from(present));
        self.flat.vcpu.flush_tlb();
    }

    /// Whether a second page of code is there: usually not, as on the native side.
    pub fn set_code_present(&mut self, present: bool) {
        let place = 0x5000 + ((at::CODE >> 12 & 511) + 1) * 8;
        self.put(place, (CODE + 0x1000) | US | RW | u64::from(present));
        self.flat.vcpu.flush_tlb();
    }

    fn put(&self, address: u64, value: u64) {
        self.flat.ram.write(address, &value.to_le_bytes());
    }

    fn tables(&self) {
        let entry = |table: u64, index: u64, value: u64| self.put(table + index * 8, value);
        // The user half: 2 GiB from 0, one page table for each part of 2 MiB that is in use.
        entry(PML4, 0, 0x2000 | P | RW | US);
        entry(0x2000, 0, 0x3000 | P | RW | US);
        entry(0x2000, 1, 0x1_0000 | P | RW | US);
        let mut table = 0x4000;
        for (linear, physical, pages, bits) in
            [(at::DATA, DATA, 2, RW | XD), (at::CODE, CODE, 1, RW), (at::TRAMPOLINE, EXIT_PAGE, 1, 0)]
        {
            let directory = if linear >> 30 == 0 { 0x3000 } else { 0x1_0000 };
            entry(directory, linear >> 21 & 511, table | P | RW | US);
            for n in 0..pages {
                entry(table, (linear >> 12 & 511) + n, (physical + n * 0x1000) | P | US | bits);
            }
            table += 0x1000;
        }
        // The third data page may only be read.
        entry(0x4000, 2, (DATA + 0x2000) | P | US | XD);
        // The kernel.
        entry(PML4, 511, 0x7000 | P | RW);
        entry(0x7000, 510, 0xE000 | P | RW);
        entry(0xE000, 0, 0xF000 | P | RW);
        for n in 0..16 {
            entry(0xF000, n, n * 0x1000 | P | RW);
        }
        entry(GDT, 2, 0x00AF_9B00_0000_FFFF);
        for vector in 0..256u64 {
            let stub = KERNEL + STUBS + vector;
            let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let low = stub & 0xFFFF | 0x10 << 16 | (0x8E00 | dpl << 13) << 32 | (stub >> 16 & 0xFFFF) << 48;
            entry(IDT, vector * 2, low);
            entry(IDT, vector * 2 + 1, stub >> 32);
        }
        self.flat.ram.write(STUBS, &[0xF4; 256]);
        self.put(TSS + 4, KERNEL + STACK_TOP);
        self.flat.ram.write(EXIT_PAGE + (at::EXIT - at::TRAMPOLINE), &[0x0F, 0x0B]);
    }

    fn registers(&mut self) {
        let s = &mut self.flat.vcpu.state;
        s.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
        s.cr3 = PML4;
        s.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::FSGSBASE | cr4::OSXSAVE;
        s.xcr0 = if std::is_x86_feature_detected!("avx") { 7 } else { 3 };
        s.msr.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
        s.gdtr = TableRegister { base: KERNEL + GDT, limit: 0x1F };
        s.idtr = TableRegister { base: KERNEL + IDT, limit: 0xFFF };
        s.tr = Segment { selector: 0x18, attributes: attr::P | 11, limit: 0x67, base: KERNEL + TSS };
        for n in [seg::ES, seg::DS, seg::FS, seg::GS] {
            s.seg[n] = Segment::null(0);
        }
        self.user();
        self.flat.vcpu.state_loaded();
    }

    fn user(&mut self) {
        let s = &mut self.flat.vcpu.state;
        let base = attr::P | attr::S | attr::RW | attr::A | 3 << 5;
        let code = base | attr::CODE | attr::L | attr::G;
        let data = base | attr::DB | attr::G;
        s.seg[seg::CS] = Segment { selector: 0x33, attributes: code, limit: !0, base: 0 };
        s.seg[seg::SS] = Segment { selector: 0x2B, attributes: data, limit: !0, base: 0 };
        s.cpl = 3;
        s.activity = Activity::Running;
        s.shadow = Shadow::None;
        s.pending_debug = 0;
    }

    pub fn run(&mut self, case: &Case) -> Result<Outcome, String> {
        self.flat.ram.write(DATA, &case.memory);
        let (place, image) = (CODE + (self.start - at::CODE), case.image(self.start));
        let mut there = vec![0; image.len()];
        self.flat.ram.read(place, &mut there);
        if there != image {
            self.flat.ram.write(place, &image);
        }
        self.user();
        let v = &mut self.flat.vcpu;
        v.state.gpr[..16].copy_from_slice(&case.gpr);
        v.state.gpr[gpr::RIP] = self.start;
        v.set_rflags(RFlags::from_bits_retain(case.rflags));
        v.state.cr2 = 0;
        let f = &case.floating;
        let x87 = &mut v.state.x87;
        (x87.control, x87.status, x87.valid) = (f.control, f.status, f.tags);
        let top = usize::from(f.status >> 11 & 7);
        for n in 0..8 {
            let r = f.st[n];
            x87.registers[(top + n) & 7] = F80 { significand: r as u64, sign_exponent: (r >> 64) as u16 };
        }
        v.state.mxcsr = f.mxcsr;
        for n in 0..16 {
            (v.state.zmm[n][0], v.state.zmm[n][1]) = (f.xmm[n] as u64, (f.xmm[n] >> 64) as u64);
            (v.state.zmm[n][2], v.state.zmm[n][3]) = (f.ymm_high[n] as u64, (f.ymm_high[n] >> 64) as u64);
        }
        v.stop_block = true;
        let stop = self.flat.run(200_000);
        if stop != Stop::Halted {
            return Err(format!("the guest stopped: {stop:?} at {:#x}", self.flat.vcpu.state.gpr[gpr::RIP]));
        }
        self.outcome(case)
    }

    fn outcome(&mut self, case: &Case) -> Result<Outcome, String> {
        let s = &self.flat.vcpu.state;
        let vector = s.gpr[gpr::RIP].wrapping_sub(KERNEL + STUBS + 1);
        if vector > 255 {
            return Err(format!("the guest's RIP is {:#x}", s.gpr[gpr::RIP]));
        }
        let vector = vector as u8;
        let mut frame = [0; 48];
        self.flat.ram.read(STACK_TOP - 48, &mut frame);
        let word = |n: usize| {
            let mut b = [0; 8];
            b.copy_from_slice(&frame[n * 8..n * 8 + 8]);
            u64::from_le_bytes(b)
        };
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&s.gpr[..16]);
        gpr[gpr::RSP] = word(4);
        let rip = word(1);
        let ended = vector == 6 && rip == at::EXIT;
        let raised = (!ended).then(|| Raised {
            vector,
            error: if matches!(vector, 8 | 10..=14 | 17) { word(0) } else { 0 },
            address: if vector == 14 { s.cr2 } else { 0 },
        });
        let top = usize::from(s.x87.status >> 11 & 7);
        let st = |n: usize| {
            let r = s.x87.registers[(top + n) & 7];
            u128::from(r.sign_exponent) << 64 | u128::from(r.significand)
        };
        let mut memory = vec![0; case.memory.len()];
        self.flat.ram.read(DATA, &mut memory);
        Ok(Outcome {
            gpr,
            rflags: word(3),
            rip,
            raised,
            floating: Floating {
                control: s.x87.control,
                status: s.x87.status,
                tags: s.x87.valid,
                st: std::array::from_fn(st),
                mxcsr: s.mxcsr,
                xmm: std::array::from_fn(|n| u128::from(s.zmm[n][0]) | u128::from(s.zmm[n][1]) << 64),
                ymm_high: std::array::from_fn(|n| u128::from(s.zmm[n][2]) | u128::from(s.zmm[n][3]) << 64),
            },
            memory,
        })
    }
}
