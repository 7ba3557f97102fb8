//! Page-table walks that fail, at each level of each paging mode: an entry that is not present, or has a reserved bit
//! set. Error code and CR2 must tell so, nothing else may have changed, and with the entry repaired the instruction
//! does what it does without a fault.

use super::*;

/// Where the data is: on paths of the tables that nothing else is on.
const fn far(paging: Paging) -> u64 {
    match paging {
        Paging::Bits32 => 5 << 22,
        Paging::Pae => 1 << 30,
        Paging::Level4 => 1 << 39,
        Paging::Level5 => 1 << 48,
    }
}

/// Physical: tables of that path, and two pages of data at its end.
const PATH: u64 = 0x20_0000;
const FRAMES: u64 = 0x21_0000;
/// Code that comes back from the data.
const BACK: u64 = CODE + 0x80;

/// What the first access is that the walk is for.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Write,
    Fetch,
}

/// An instruction that accesses the data: (E)BX and (E)DI lead to its first byte.
struct Access {
    name: &'static str,
    code: &'static [u8],
    first: Kind,
    /// Where (E)SI leads, in bytes from there; if given, that is what is accessed first.
    source: Option<u64>,
}

const fn access(name: &'static str, code: &'static [u8], first: Kind) -> Access {
    Access { name, code, first, source: None }
}

const fn string(name: &'static str, code: &'static [u8], source: u64) -> Access {
    Access { name, code, first: Kind::Read, source: Some(source) }
}

const ACCESSES: &[Access] = &[
    access("MOV", &[0x8B, 0x03], Kind::Read),
    access("MOV to memory", &[0x89, 0x03], Kind::Write),
    access("ADD to memory", &[0x01, 0x03], Kind::Write),
    access("LOCK XADD", &[0xF0, 0x0F, 0xC1, 0x03], Kind::Write),
    access("CMPXCHG8B", &[0x0F, 0xC7, 0x0B], Kind::Write),
    access("MOVUPS", &[0x0F, 0x10, 0x03], Kind::Read),
    access("FXSAVE", &[0x0F, 0xAE, 0x03], Kind::Write),
    access("PUSH m", &[0xFF, 0x33], Kind::Read),
    access("CALL m", &[0xFF, 0x13], Kind::Read),
    access("REP STOSD", &[0xF3, 0xAB], Kind::Write),
    string("REP MOVSD", &[0xF3, 0xA5], 0x40),
    string("LODSD over two pages", &[0xAD], 0xFFE),
    access("JMP there", &[0xFF, 0xE3], Kind::Fetch),
];

/// How an entry is broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    NotPresent,
    /// This bit is reserved.
    Reserved(u32),
}

/// An entry on the path.
struct Level {
    name: &'static str,
    at: u64,
    bytes: usize,
    /// The first PDPTE of PAE paging: the processor keeps it in a register.
    in_register: bool,
    ways: &'static [Broken],
}

/// A machine in a paging mode at a privilege level, with a path to the data.
struct World {
    b: Bench,
    paging: Paging,
    /// From the root on.
    levels: Vec<Level>,
}

impl World {
    fn new(engine: &str, paging: Paging, cpl: u8) -> Result<Self, String> {
        let mut b = Bench::paged(paging);
        b.flat.run_on(engine)?;
        b.flat.vcpu.state.cr4 |= cr4::OSFXSR;
        b.ring(cpl);
        if cpl == 3 {
            b.map_user();
        }
        let mut world = World { b, paging, levels: Vec::new() };
        world.make_path(if cpl == 3 { 7 } else { 3 });
        Ok(world)
    }

    /// `bits`: the low ones of entries.
    fn make_path(&mut self, bits: u64) {
        use Broken::{NotPresent, Reserved};
        let paging = self.paging;
        let entries: &[(u32, &str)] = match paging {
            Paging::Bits32 => &[(22, "PDE"), (12, "PTE")],
            Paging::Pae => &[(30, "PDPTE"), (21, "PDE"), (12, "PTE")],
            Paging::Level4 => &[(39, "PML4E"), (30, "PDPTE"), (21, "PDE"), (12, "PTE")],
            Paging::Level5 => &[(48, "PML5E"), (39, "PML4E"), (30, "PDPTE"), (21, "PDE"), (12, "PTE")],
        };
        let (bytes, index) = if paging == Paging::Bits32 { (4, 1023) } else { (8, 511) };
        let mut table = self.b.flat.vcpu.state.cr3;
        for (n, &(shift, name)) in entries.iter().enumerate() {
            let at = table + (far(paging) >> shift & index) * bytes as u64;
            let next = if shift == 12 { FRAMES } else { PATH + n as u64 * 0x1000 };
            let in_register = paging == Paging::Pae && n == 0;
            let ways: &[Broken] = match name {
                _ if in_register || bytes == 4 => &[NotPresent],
                // PS where there are no pages of that size.
                "PML5E" | "PML4E" => &[NotPresent, Reserved(51), Reserved(7)],
                _ => &[NotPresent, Reserved(51)],
            };
            let level = Level { name, at, bytes, in_register, ways };
            // PDPTEs of PAE paging have no R/W and U/S.
            self.set(&level, next | if in_register { 1 } else { bits });
            if shift == 12 {
                let second = Level { at: at + bytes as u64, ..level };
                self.set(&second, FRAMES + 0x1000 | bits);
            }
            self.levels.push(level);
            table = next;
        }
    }

    fn set(&mut self, level: &Level, value: u64) {
        self.b.flat.ram.write(level.at, &value.to_le_bytes()[..level.bytes]);
        if level.in_register {
            self.b.flat.vcpu.state.pdpte[1] = value;
        }
        self.b.changed();
    }

    /// The two pages of data.
    fn frames(&self) -> Vec<u8> {
        let mut bytes = vec![0; 0x2000];
        self.b.flat.ram.read(FRAMES, &mut bytes);
        bytes
    }

    /// Before an access.
    fn prepare(&mut self, access: &Access) {
        let place = far(self.paging);
        let ram = &self.b.flat.ram;
        let data: Vec<u8> = (0..0x2000u32).map(|n| n as u8 ^ 0x5A).collect();
        ram.write(FRAMES, &data);
        // What JMP comes to, or what CALL m finds.
        let first = if access.first == Kind::Fetch { 0xFEEB } else { BACK };
        ram.write(FRAMES, &first.to_le_bytes());
        ram.write(CODE, access.code);
        for end in [CODE + access.code.len() as u64, BACK] {
            ram.write(end, &[0xEB, 0xFE]);
        }
        self.b.start();
        let s = &mut self.b.flat.vcpu.state;
        s.gpr[..8].copy_from_slice(&[0x55, 3, 0, place, STACK, 0, place + access.source.unwrap_or(0), place]);
        s.cr2 = 0;
        self.b.changed();
    }

    /// What an access does, with an entry of the path broken, and repaired then.
    fn run(&mut self, access: &Access, level: &Level, broken: Broken) -> Result<(), String> {
        self.prepare(access);
        let start = self.b.flat.vcpu.state.clone();
        go(&mut self.b)?;
        let (want, wanted) = (self.b.flat.vcpu.state.clone(), self.frames());

        self.prepare(access);
        let before = self.frames();
        let good = self.b.get(level.at, level.bytes);
        self.set(
            level,
            match broken {
                Broken::NotPresent => good & !1,
                Broken::Reserved(bit) => good | 1 << bit,
            },
        );
        go(&mut self.b)?;
        self.check_fault(access, broken, &start)?;
        if self.frames() != before {
            return Err("the fault leaves a trace in memory".into());
        }

        self.b.flat.vcpu.state = start;
        self.set(level, good);
        go(&mut self.b)?;
        let mut end = self.b.flat.vcpu.state.clone();
        (end.retired, end.cr2) = (want.retired, want.cr2);
        let lines = compare::states(&want, &end);
        if !lines.is_empty() || self.frames() != wanted {
            return Err(format!("the retry: {lines:?}, data equal: {}", self.frames() == wanted));
        }
        Ok(())
    }

    /// SDM Vol. 3, "Page-Fault Exceptions": vector, error code, CR2, and registers as before. JMP itself was done.
    fn check_fault(&self, access: &Access, broken: Broken, start: &CpuState) -> Result<(), String> {
        let s = &self.b.flat.vcpu.state;
        let Outcome::Raised(raised) = self.b.outcome() else {
            return Err(format!("no fault but {:x?}", self.b.outcome()));
        };
        let reserved = if broken == Broken::NotPresent { 0 } else { 9 };
        let written = if access.first == Kind::Write { 2 } else { 0 };
        let user = if start.cpl == 3 { 4 } else { 0 };
        let place = far(self.paging);
        let ip = if access.first == Kind::Fetch { place } else { CODE };
        let want = (14, reserved | written | user, ip, place + access.source.unwrap_or(0));
        let got = (raised.vector, raised.error, raised.ip, s.cr2);
        if got != want {
            return Err(format!("(vector, error, IP, CR2) {got:x?}, expected {want:x?}"));
        }
        let others = |s: &CpuState| (0..16).filter(|&n| n != gpr::RSP).map(|n| s.gpr[n]).collect::<Vec<_>>();
        if others(start) != others(s) {
            return Err("the fault leaves a trace in registers".into());
        }
        Ok(())
    }
}

/// See [`Run`].
pub fn run(engine: &str) -> Result<usize, String> {
    let mut walks = 0;
    for (paging, cpl) in Paging::ALL.into_iter().flat_map(|paging| [(paging, 0), (paging, 3)]) {
        let mut world = World::new(engine, paging, cpl)?;
        for level in std::mem::take(&mut world.levels) {
            for &broken in level.ways {
                for access in ACCESSES {
                    world.run(access, &level, broken).map_err(|why| {
                        let (access, level) = (access.name, level.name);
                        format!("{engine}, {paging:?}, {access} at CPL {cpl}, {level} {broken:?}: {why}")
                    })?;
                    walks += 1;
                }
            }
        }
    }
    Ok(walks)
}
