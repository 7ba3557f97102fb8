//! A bench for system-level tests: descriptor tables, page tables and stacks at fixed places in the RAM of a
//! [`Flat`] machine, and an IDT whose 256 handlers are one HLT each, so that a test can see which event came and
//! what it pushed.

pub mod cases;
pub mod injection;
pub mod lacks;

use crate::engine;
use crate::flat::Flat;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use trimaran_cpu::engine::Stop;
use trimaran_cpu::state::{Segment, TableRegister, attr, cr0, cr4, efer, gpr, seg};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const TSS2: u64 = 0x3400;
/// The HLTs, one byte a vector.
pub const STUBS: u64 = 0x4000;
/// Top of the stack that TSS.ESP0 / RSP0 names.
pub const STACK0: u64 = 0x6000;
/// Top of the stack that a test starts with.
pub const STACK: u64 = 0x7000;
pub const CODE: u64 = 0x8000;
pub const TABLES: u64 = 0x2_0000;
/// Of 5-level paging: its first entry leads to [`TABLES`].
pub const PML5: u64 = 0x1_F000;
/// A page for tests to play with.
pub const PAGE: u64 = 0x4_0000;

/// Selectors of the GDT. `SPARE` and what follows is for tests.
pub mod sel {
    pub const CODE0: u16 = 0x08;
    pub const DATA0: u16 = 0x10;
    pub const CODE3: u16 = 0x1B;
    pub const DATA3: u16 = 0x23;
    pub const TSS: u16 = 0x28;
    /// TSS takes two entries in long mode.
    pub const TSS2: u16 = 0x38;
    pub const SPARE: u16 = 0x48;
    pub const SPARE2: u16 = 0x50;
}

/// Kinds of paging (SDM Vol. 3, "Paging Modes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    Bits32,
    Pae,
    Level4,
    Level5,
}

impl Paging {
    /// Of 64-bit mode.
    pub const LONG: [Paging; 2] = [Paging::Level4, Paging::Level5];
    pub const WIDE: [Paging; 3] = [Paging::Pae, Paging::Level4, Paging::Level5];
    pub const ALL: [Paging; 4] = [Paging::Bits32, Paging::Pae, Paging::Level4, Paging::Level5];
}

/// What an event pushed; `sp` and `ss` only where the frame has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised {
    pub vector: u8,
    pub error: u64,
    pub ip: u64,
    pub cs: u64,
    pub flags: u64,
    pub sp: u64,
    pub ss: u64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// At a HLT of the test's own; the address after it.
    Halted(u64),
    Raised(Raised),
    Stopped(Stop),
}

impl Outcome {
    /// (vector, error code), or a panic.
    pub fn fault(self) -> (u8, u64) {
        match self {
            Outcome::Raised(r) => (r.vector, r.error),
            other => panic!("no exception but {other:x?}"),
        }
    }
    pub fn raised(self) -> Raised {
        match self {
            Outcome::Raised(r) => r,
            other => panic!("no exception but {other:x?}"),
        }
    }
    pub fn halted(self) {
        assert!(matches!(self, Outcome::Halted(_)), "no HLT but {self:x?}");
    }
}

/// A segment descriptor of 8 bytes; `limit` in pages if `attributes` has G.
pub fn descriptor(base: u32, limit: u32, attributes: u16) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | u64::from(attributes & 0xF0FF) << 40
        | (limit >> 16 & 15) << 48
        | (base >> 24) << 56
}

/// A gate of 8 bytes: `kind` as in the descriptor's type field, `count` for call gates.
pub fn gate(selector: u16, offset: u32, kind: u16, dpl: u16, count: u16) -> u64 {
    let offset = u64::from(offset);
    offset & 0xFFFF
        | u64::from(selector) << 16
        | u64::from(count) << 32
        | u64::from(0x80 | dpl << 5 | kind) << 40
        | (offset >> 16) << 48
}

/// See the head of this file. `TRIMARAN_ENGINE` says which engine runs the programs.
pub struct Bench {
    pub flat: Flat,
    pub long: bool,
    paging: Option<Paging>,
}

const CODE_BITS: u16 = attr::P | attr::S | attr::CODE | attr::RW | attr::A;
const DATA_BITS: u16 = attr::P | attr::S | attr::RW | attr::A;

impl Bench {
    /// 32-bit protected mode at CPL 0, flat segments, no paging.
    pub fn protected() -> Self {
        Self::of("max")
    }

    /// The same on a model (as `--cpu` names them).
    pub fn of(model: &str) -> Self {
        Self::new(model, false)
    }

    /// 64-bit mode at CPL 0 with the first 2 MiB mapped to themselves in pages of 4 KiB for the supervisor.
    pub fn long() -> Self {
        Self::long_on("max")
    }

    /// [`Bench::long`] on another model.
    pub fn long_on(model: &str) -> Self {
        let mut b = Self::new(model, true);
        b.page(Paging::Level4);
        b
    }

    /// 32-bit protected mode with paging, mapped as [`Bench::long`].
    pub fn paged(paging: Paging) -> Self {
        let mut b = Self::new("max", Paging::LONG.contains(&paging));
        b.page(paging);
        b
    }

    fn new(model: &str, long: bool) -> Self {
        let mut flat = Flat::of(model, 0x100_0000);
        flat.run_on(&engine::of_programs()).unwrap_or_else(|why| panic!("{why}"));
        let mut b = Bench { flat, long, paging: None };
        let code = if long { CODE_BITS | attr::L | attr::G } else { CODE_BITS | attr::DB | attr::G };
        let data = DATA_BITS | attr::DB | attr::G;
        b.describe(sel::CODE0, descriptor(0, 0xF_FFFF, code));
        b.describe(sel::DATA0, descriptor(0, 0xF_FFFF, data));
        b.describe(sel::CODE3, descriptor(0, 0xF_FFFF, code | 3 << 5));
        b.describe(sel::DATA3, descriptor(0, 0xF_FFFF, data | 3 << 5));
        b.describe(sel::TSS, descriptor(TSS as u32, 0xFF, attr::P | 11));
        b.describe(sel::TSS2, descriptor(TSS2 as u32, 0x67, attr::P | 9));
        for vector in 0..=255 {
            b.interrupt_gate(vector, STUBS + u64::from(vector), if matches!(vector, 3 | 4) { 3 } else { 0 });
        }
        b.flat.ram.write(STUBS, &[0xF4; 256]);
        // ESP0 and SS0, or RSP0; no I/O permission bitmap.
        b.put(TSS + 4, STACK0);
        if !long {
            b.put(TSS + 8, u64::from(sel::DATA0));
        }
        b.put(TSS + 0x64, 0xFFFF << 16);
        let s = &mut b.flat.vcpu.state;
        s.cr0 = cr0::PE | cr0::ET | cr0::NE;
        s.gdtr = TableRegister { base: GDT, limit: 0xFF };
        s.idtr = TableRegister { base: IDT, limit: 0xFFF };
        s.tr = Segment { selector: sel::TSS, attributes: attr::P | 11, limit: 0xFF, base: TSS };
        b.ring(0);
        b.start();
        b
    }

    /// Starts the next run at [`CODE`] with an empty stack.
    pub fn start(&mut self) {
        let s = &mut self.flat.vcpu.state;
        s.gpr[gpr::RIP] = CODE;
        s.gpr[gpr::RSP] = STACK;
        s.activity = trimaran_cpu::state::Activity::Running;
        self.changed();
    }

    /// Flat segments of a privilege level.
    pub fn ring(&mut self, cpl: u8) {
        let (code, data) = if cpl == 0 { (sel::CODE0, sel::DATA0) } else { (sel::CODE3, sel::DATA3) };
        let dpl = u16::from(cpl) << 5;
        let size = if self.long { attr::L } else { attr::DB };
        let s = &mut self.flat.vcpu.state;
        let of = |selector, attributes| Segment { selector, attributes, limit: !0, base: 0 };
        s.seg[seg::CS] = of(code, CODE_BITS | attr::G | size | dpl);
        for n in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            s.seg[n] = of(data, DATA_BITS | attr::DB | attr::G | dpl);
        }
        s.cpl = cpl;
        self.changed();
    }

    /// The state was changed from outside.
    pub fn changed(&mut self) {
        self.flat.vcpu.state_loaded();
    }

    pub fn put(&self, address: u64, value: u64) {
        self.flat.ram.write(address, &value.to_le_bytes());
    }

    pub fn get(&self, address: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        self.flat.ram.read(address, &mut bytes[..size]);
        u64::from_le_bytes(bytes)
    }

    /// Writes a descriptor of the GDT.
    pub fn describe(&self, selector: u16, descriptor: u64) {
        self.put(GDT + u64::from(selector & !7), descriptor);
    }

    /// An interrupt gate into CODE0.
    pub fn interrupt_gate(&self, vector: u8, offset: u64, dpl: u16) {
        let low = gate(sel::CODE0, offset as u32, 14, dpl, 0);
        if self.long {
            self.put(IDT + u64::from(vector) * 16, low);
            self.put(IDT + u64::from(vector) * 16 + 8, offset >> 32);
        } else {
            self.put(IDT + u64::from(vector) * 8, low);
        }
    }

    fn page(&mut self, paging: Paging) {
        self.paging = Some(paging);
        let wide = paging != Paging::Bits32;
        let levels: &[u64] = match paging {
            Paging::Bits32 => &[TABLES],
            Paging::Pae => &[TABLES, TABLES + 0x1000],
            Paging::Level4 => &[TABLES, TABLES + 0x1000, TABLES + 0x2000],
            Paging::Level5 => &[PML5, TABLES, TABLES + 0x1000, TABLES + 0x2000],
        };
        for (n, &table) in levels.iter().enumerate() {
            // PDPTEs of PAE paging have no R/W and U/S.
            let bits = if paging == Paging::Pae && n == 0 { 1 } else { 7 };
            self.put(table, (table + 0x1000) | bits);
        }
        for n in 0..512u64 {
            let value = (n << 12) | 3;
            if wide {
                self.put(self.leaf(n << 12), value);
            } else {
                self.flat.ram.write(self.leaf(n << 12), &(value as u32).to_le_bytes());
            }
        }
        let s = &mut self.flat.vcpu.state;
        s.cr3 = levels[0];
        s.cr0 |= cr0::PG;
        match paging {
            Paging::Bits32 => {}
            Paging::Pae => {
                s.cr4 |= cr4::PAE;
                s.pdpte = [(TABLES + 0x1000) | 1, 0, 0, 0];
            }
            Paging::Level4 | Paging::Level5 => {
                s.cr4 |= cr4::PAE | if paging == Paging::Level5 { cr4::LA57 } else { 0 };
                s.msr.efer |= efer::LME | efer::LMA;
            }
        }
        self.changed();
    }

    /// Address of the page-table entry of a linear address below 2 MiB.
    pub fn leaf(&self, linear: u64) -> u64 {
        let n = linear >> 12;
        match self.paging {
            Some(Paging::Bits32) | None => TABLES + 0x1000 + n * 4,
            Some(Paging::Pae) => TABLES + 0x2000 + n * 8,
            Some(Paging::Level4 | Paging::Level5) => TABLES + 0x3000 + n * 8,
        }
    }

    /// Maps a page to itself with these bits.
    pub fn map(&mut self, linear: u64, bits: u64) {
        let value = linear & !0xFFF | bits;
        if self.paging == Some(Paging::Bits32) {
            self.flat.ram.write(self.leaf(linear), &(value as u32).to_le_bytes());
        } else {
            self.put(self.leaf(linear), value);
        }
        self.flat.vcpu.flush_tlb();
    }

    /// Makes code and stack pages accessible to programs.
    pub fn map_user(&mut self) {
        for page in [STACK - 0x1000, CODE, CODE + 0x1000] {
            self.map(page, 7);
        }
    }

    /// Assembles at an address, for 16, 32 or 64 bits.
    pub fn assemble(
        &mut self,
        bits: u32,
        at: u64,
        f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> u64 {
        let mut a = CodeAssembler::new(bits).expect("an assembler");
        f(&mut a).expect("an instruction");
        let bytes = a.assemble(at).expect("assembles");
        self.flat.ram.write(at, &bytes);
        at + bytes.len() as u64
    }

    /// Assembles at [`CODE`] for the bench's mode; returns the end.
    pub fn code(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        self.assemble(if self.long { 64 } else { 32 }, CODE, f)
    }

    /// Runs to a HLT.
    pub fn run(&mut self) -> Outcome {
        self.changed();
        self.resume()
    }

    /// Goes on.
    pub fn resume(&mut self) -> Outcome {
        let stop = self.flat.run(10_000);
        if stop != Stop::Halted { Outcome::Stopped(stop) } else { self.outcome() }
    }

    /// What a HLT that was reached means, with what its event pushed.
    pub fn outcome(&self) -> Outcome {
        let s = &self.flat.vcpu.state;
        let rip = s.gpr[gpr::RIP];
        let cs = s.seg[seg::CS].base;
        if cs != 0 || rip <= STUBS || rip > STUBS + 256 {
            return Outcome::Halted(rip);
        }
        let vector = (rip - STUBS - 1) as u8;
        let size = if self.long { 8 } else { 4 };
        let mut at = s.gpr[gpr::RSP];
        let mut pop = || {
            let value = self.get(at, size);
            at += size as u64;
            value
        };
        let error = if matches!(vector, 8 | 10..=14 | 17) { pop() } else { 0 };
        let (ip, cs, flags) = (pop(), pop(), pop());
        let outer = self.long || cs & 3 != 0 || flags & 1 << 17 != 0;
        let (sp, ss) = if outer { (pop(), pop()) } else { (0, 0) };
        Outcome::Raised(Raised { vector, error, ip, cs, flags, sp, ss })
    }
}
