//! Fault injection for what processors access by themselves: descriptors, gates, task state, stacks of events and far
//! transfers, the I/O permission map, save areas.
//!
//! The tables lie across page borders, so that what a scene needs is on other pages than what the handler of its page
//! fault needs. Each of these pages is made absent or read-only, alone and with all others. A fault must leave
//! registers and memory as they were; once all pages are back the instruction must do what it does without a fault
//! (SDM Vol. 3, "Program or Task Restart"). The other [`KINDS`] of faults have files of their own.

mod deliveries;
mod interrupts;
mod scenes;
mod walks;

use super::*;
use crate::differential::compare;
use scenes::Scene;
use trimaran_cpu::state::{CpuState, RFlags};

/// Selectors from 100h on, what scenes load, are on its second page.
const GDT_BASE: u64 = 0x10_0F00;
const GDT_PAGE: u64 = 0x10_1000;
/// The gates of vectors below 14 are on the first page.
const IDT_BORDER: u64 = 0x10_3000;
const IDT_PAGE: u64 = 0x10_2000;
/// Stack pointers of privilege levels are on the first page, those of the interrupt stack table on the second.
const TSS_BASE: u64 = 0x10_4FE0;
const TSS_PAGE: u64 = 0x10_4000;
const IO_PAGE: u64 = 0x10_6000;
const LDT_PAGE: u64 = 0x10_8000;
/// Operands lie across the border of two pages.
const DATA_PAGE: u64 = 0x10_A000;
const DATA_BORDER: u64 = 0x10_B000;
/// A task to switch to.
const TASK_PAGE: u64 = 0x10_E000;
/// Code that scenes come to.
const TARGET: u64 = 0x11_0000;
/// In long mode the handler of page faults has this stack (its IST entry).
const HANDLER_STACK: u64 = 0x1C_1000;
const STACK_PAGE: u64 = STACK - 0x1000;
const STACK0_PAGE: u64 = STACK0 - 0x1000;
const PAGES: [u64; 10] = [
    GDT_PAGE,
    IDT_PAGE,
    TSS_PAGE,
    IO_PAGE,
    LDT_PAGE,
    DATA_PAGE,
    DATA_BORDER,
    TASK_PAGE,
    STACK_PAGE,
    STACK0_PAGE,
];
/// What is compared of RAM: tables, code and stacks of the bench, and the pages above.
const RANGES: [std::ops::Range<u64>; 2] = [0..0x9000, 0x10_0000..0x11_1000];

/// What is taken from a page.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Taken {
    Present,
    Writable,
}

/// What a scene came to.
struct End {
    state: CpuState,
    /// [`RANGES`], one after another.
    ram: Vec<u8>,
    /// Accesses to devices.
    device: usize,
}

/// A machine before a scene, so that one serves all of its runs.
struct Start {
    state: CpuState,
    ram: Vec<(u64, Vec<u8>)>,
}

impl Start {
    fn of(b: &mut Bench) -> Self {
        let read = |range: &std::ops::Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            b.flat.ram.read(range.start, &mut bytes);
            (range.start, bytes)
        };
        let tables = TABLES..TABLES + 0x5000;
        Start {
            ram: RANGES.iter().chain([&tables]).map(read).collect(),
            state: b.flat.vcpu.state_whole().clone(),
        }
    }

    fn again(&self, b: &mut Bench) {
        self.ram.iter().for_each(|(at, bytes)| assert!(b.flat.ram.write(*at, bytes)));
        b.flat.vcpu.state = self.state.clone();
        if let Ok(mut times) = b.flat.bus.times.lock() {
            times.clear();
        }
        b.changed();
    }
}

/// Runs all of a kind on the engine of a name: how many faults or events there were. An error says what is wrong.
pub type Run = fn(engine: &str) -> Result<usize, String>;

pub const KINDS: &[(&str, Run)] = &[
    ("tables", run),
    ("walks", walks::run),
    ("interrupts", interrupts::run),
    ("deliveries", deliveries::run),
];

/// Runs all scenes; see [`Run`].
fn run(engine: &str) -> Result<usize, String> {
    let mut faults = 0;
    for scene in scenes::SCENES {
        let mut b = world(engine, scene)?;
        let start = Start::of(&mut b);
        let want = finish(&mut b, scene)?;
        let mut injected = 0;
        let pages = PAGES.iter().filter(|page| scene.injectable(**page));
        let each = pages.clone().map(|&page| vec![page]).chain([pages.copied().collect()]);
        for absent in each {
            for taken in [Taken::Present, Taken::Writable] {
                start.again(&mut b);
                injected += inject(&mut b, scene, &absent, taken, &want).map_err(|why| {
                    format!("{engine}, {}, {absent:x?} without {taken:?}: {why}", scene.name)
                })?;
            }
        }
        if injected == 0 {
            return Err(format!("{engine}, {}: no page was missed", scene.name));
        }
        faults += injected;
    }
    Ok(faults)
}

impl Scene {
    /// Whether the handler of page faults does not need a page itself.
    fn injectable(&self, page: u64) -> bool {
        let own_stack = if self.cpl == 0 { STACK_PAGE } else { STACK0_PAGE };
        self.bits == 64 || page != own_stack && (page != TSS_PAGE || self.cpl == 0)
    }
}

/// A machine before the first instruction of a scene.
fn world(engine: &str, scene: &Scene) -> Result<Bench, String> {
    let mut b = if scene.bits == 64 { Bench::long() } else { Bench::paged(Paging::Bits32) };
    b.flat.run_on(engine)?;
    let copy = |b: &Bench, from: u64, to: u64, bytes: u64| {
        (0..bytes).step_by(8).for_each(|n| b.put(to + n, b.get(from + n, 8)));
    };
    copy(&b, GDT, GDT_BASE, 0x100);
    let gate = if b.long { 16 } else { 8 };
    let idt = IDT_BORDER - 14 * gate;
    copy(&b, IDT, idt, 256 * gate);
    copy(&b, TSS, TSS_BASE, 0x68);
    if b.long {
        b.put(TSS_BASE + 36, HANDLER_STACK);
        b.put(IDT_BORDER, b.get(IDT_BORDER, 8) | 1 << 32);
    }
    // Ports of the map may be used.
    b.put(TSS_BASE + 0x64, (IO_PAGE - TSS_BASE) << 16);
    b.flat.ram.write(TARGET, &[0xEB, 0xFE]);
    b.flat.ram.write(CODE, scene.code);
    b.flat.ram.write(CODE + scene.code.len() as u64, &[0xEB, 0xFE]);
    let s = &mut b.flat.vcpu.state;
    s.gdtr = TableRegister { base: GDT_BASE, limit: 0x2FF };
    s.idtr = TableRegister { base: idt, limit: (256 * gate - 1) as u16 };
    (s.tr.base, s.tr.limit) = (TSS_BASE, 0x20FF);
    s.ldtr = Segment { selector: 0x120, attributes: attr::P | 2, limit: 0xFFF, base: LDT_PAGE };
    s.cr0 |= cr0::WP;
    s.cr4 |= cr4::OSFXSR | cr4::OSXSAVE;
    s.xcr0 = 7;
    s.gpr[gpr::RBX] = DATA_BORDER - 4;
    b.ring(scene.cpl);
    for page in PAGES.iter().chain(&[TARGET, CODE]).filter(|page| user(scene, **page)) {
        b.map(*page, 7);
    }
    scenes::descriptors(&b);
    if scene.bits == 16 {
        scenes::enter_virtual8086(&mut b);
    }
    (scene.set)(&mut b);
    b.changed();
    Ok(b)
}

/// Whether programs may access a page.
fn user(scene: &Scene, page: u64) -> bool {
    scene.bits != 64 || [DATA_PAGE, DATA_BORDER, STACK_PAGE, TARGET, CODE].contains(&page)
}

/// Runs to a HLT or into an endless jump.
fn go(b: &mut Bench) -> Result<(), String> {
    match b.flat.run(64) {
        Stop::Halted | Stop::Budget => Ok(()),
        other => Err(format!("{other:?} at {:#x}", b.flat.vcpu.state.rip())),
    }
}

fn finish(b: &mut Bench, scene: &Scene) -> Result<End, String> {
    go(b)?;
    if b.flat.vcpu.state.rip() == STUBS + 15 {
        return Err(format!("{}: an unwanted page fault at {:#x}", scene.name, b.flat.vcpu.state.cr2));
    }
    Ok(end(b, scene))
}

/// The state, and RAM but for what handlers of page faults left on their stack.
fn end(b: &mut Bench, scene: &Scene) -> End {
    let mut ram = Vec::new();
    for range in RANGES {
        let from = ram.len();
        ram.resize(from + (range.end - range.start) as usize, 0);
        b.flat.ram.read(range.start, &mut ram[from..]);
    }
    if scene.bits != 64 {
        ram[STACK0_PAGE as usize..STACK as usize].fill(0);
    }
    let mut state = b.flat.vcpu.state_whole().clone();
    (state.retired, state.cr2) = (0, 0);
    state.rflags.remove(RFlags::RF);
    let device = b.flat.bus.times.lock().map_or(0, |times| times.len());
    End { state, ram, device }
}

/// Takes pages away, gives each back when it is missed, and compares. Returns how many were missed.
fn inject(b: &mut Bench, scene: &Scene, pages: &[u64], taken: Taken, want: &End) -> Result<usize, String> {
    let mut before = end(b, scene);
    let start = b.flat.vcpu.state.clone();
    forget_pushes(&mut before, &start);
    let mut absent = pages.to_vec();
    let bits = |page: u64| if user(scene, page) { 7 } else { 3 };
    let bit = if taken == Taken::Present { 1 } else { 2 };
    absent.iter().for_each(|&page| b.map(page, bits(page) & !bit));
    let mut faults = 0;
    loop {
        go(b)?;
        if b.flat.vcpu.state.rip() != STUBS + 15 {
            return differences(want, &end(b, scene))
                .map_or(Ok(faults), |what| Err(format!("after {faults} faults and the retry: {what}")));
        }
        let at = b.flat.vcpu.state.cr2;
        let page = absent.iter().position(|&page| page == at & !0xFFF);
        let Some(page) = page else { return Err(format!("a page fault at {at:#x}, which is there")) };
        let mut got = undelivered(b, scene, &start, &before, taken)?;
        forget_pushes(&mut got, &start);
        if let Some(what) = differences(&before, &got) {
            return Err(format!("the fault at {at:#x} leaves a trace: {what}"));
        }
        let page = absent.swap_remove(page);
        b.map(page, bits(page));
        faults += 1;
        b.flat.vcpu.state = start.clone();
        b.changed();
    }
}

/// What was pushed before a later access faulted may stay below the stack pointers, where nobody looks.
fn forget_pushes(end: &mut End, start: &CpuState) {
    for top in [start.gpr[gpr::RSP], STACK0] {
        end.ram[top as usize - 64..top as usize].fill(0);
    }
}

/// The state at an event, most often a page fault, as it would be after IRET of its handler, without what delivery has
/// changed.
fn undelivered(
    b: &mut Bench,
    scene: &Scene,
    start: &CpuState,
    before: &End,
    taken: Taken,
) -> Result<End, String> {
    let Outcome::Raised(frame) = b.outcome() else { return Err("no frame".into()) };
    let present = taken == Taken::Writable;
    if frame.error & !4 != if present { 3 } else { frame.error & 2 } {
        return Err(format!("error code {:#x} of a page without {taken:?}", frame.error));
    }
    let mut got = end(b, scene);
    let s = &mut got.state;
    s.gpr[gpr::RIP] = frame.ip;
    let outer = b.long || frame.cs & 3 != 0 || frame.flags & RFlags::VM.bits() != 0;
    // Of the same level: behind the error code, which interrupts have not, EIP, CS and EFLAGS.
    let bytes = if frame.vector == 14 { 16 } else { 12 };
    s.gpr[gpr::RSP] = if outer { frame.sp } else { s.gpr[gpr::RSP] + bytes };
    s.rflags = RFlags::from_bits_retain(frame.flags) & !RFlags::RF;
    if frame.cs != u64::from(start.seg[seg::CS].selector)
        || outer && frame.ss != u64::from(start.seg[seg::SS].selector)
    {
        return Err(format!("CS {:#x}, SS {:#x} were pushed", frame.cs, frame.ss));
    }
    if frame.flags & RFlags::VM.bits() != 0 {
        // Data segments are pushed behind ESP and SS, and null then.
        let at = b.flat.vcpu.state.gpr[gpr::RSP] + bytes + 8;
        for (n, register) in (0..).zip([seg::ES, seg::DS, seg::FS, seg::GS]) {
            let (pushed, now) = (b.get(at + n * 4, 2), s.seg[register]);
            if pushed != u64::from(start.seg[register].selector) || now != Segment::null(0) {
                return Err(format!("data segment {register}: {pushed:#x} was pushed, it is {now:x?}"));
            }
            s.seg[register] = start.seg[register];
        }
    }
    (s.seg[seg::CS], s.seg[seg::SS], s.cpl) = (start.seg[seg::CS], start.seg[seg::SS], start.cpl);
    (s.activity, s.shadow) = (before.state.activity, before.state.shadow);
    Ok(got)
}

fn differences(want: &End, got: &End) -> Option<String> {
    let lines = compare::states(&want.state, &got.state);
    if !lines.is_empty() {
        return Some(lines.join("; ").replace("interpreter", "expected").replace("translator", "got"));
    }
    if want.device != got.device {
        return Some(format!("{} accesses to devices, {} expected", got.device, want.device));
    }
    let at = (want.ram != got.ram).then(|| (0..want.ram.len()).find(|&n| want.ram[n] != got.ram[n]))??;
    let address = RANGES.into_iter().flatten().nth(at).unwrap_or_default();
    Some(format!("[{address:#x}]: expected {:02x}, got {:02x}", want.ram[at], got.ram[at]))
}

#[cfg(test)]
mod tests {
    /// The check itself: a scene that is not undone is found.
    #[test]
    fn a_trace_is_found() {
        let scene = &super::scenes::SCENES[0];
        let mut b = super::world("interp", scene).expect("a world");
        let before = super::end(&mut b, scene);
        b.flat.vcpu.state.gpr[3] ^= 1;
        let after = super::end(&mut b, scene);
        assert!(super::differences(&before, &after).is_some_and(|what| what.contains("RBX")));
        b.flat.vcpu.state.gpr[3] ^= 1;
        b.flat.ram.write(super::GDT_PAGE + 5, &[1]);
        let after = super::end(&mut b, scene);
        assert!(super::differences(&before, &after).is_some_and(|what| what.contains("[0x101005]")));
    }
}
