//! Events whose delivery faults: an external interrupt or a page fault comes, and each set of the pages that its
//! delivery, the page fault's and the double fault's need is absent (SDM Vol. 3, "Interrupt 8—Double Fault Exception
//! (#DF)"). The handler that is reached must see the state before the event; where there is none the processor shuts
//! down. With all pages back the event is delivered as ever.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    /// An external interrupt, of a vector whose gate is not on the page of that of page faults.
    Interrupt,
    PageFault,
    DoubleFault,
}

impl Event {
    fn vector(self) -> u8 {
        match self {
            Event::Interrupt => 5,
            Event::PageFault => 14,
            Event::DoubleFault => 8,
        }
    }
}

/// The page of the TSS with the interrupt stack table, and all but the first registers of a task.
const TSS_END: u64 = TSS_PAGE + 0x1000;
const HANDLER_PAGE: u64 = HANDLER_STACK - 0x1000;
/// Of the handler of double faults: an IST entry in long mode, otherwise that of a task.
const DOUBLE_STACK: u64 = 0x1C_3000;
const DOUBLE_PAGE: u64 = DOUBLE_STACK - 0x1000;

/// MOV AX/EAX, [BX]/[EDI]: of the first page of operands.
const fn mode(name: &'static str, bits: u32, cpl: u8) -> Scene {
    Scene { name, bits, cpl, code: &[0x8B, 0x07], set: |b| set_up(b) }
}

const MODES: &[Scene] = &[
    mode("64 bits, CPL 3", 64, 3),
    mode("64 bits, CPL 0", 64, 0),
    mode("32 bits, CPL 3", 32, 3),
    mode("32 bits, CPL 0", 32, 0),
    mode("virtual-8086 mode", 16, 3),
];

fn set_up(b: &mut Bench) {
    let s = &mut b.flat.vcpu.state;
    s.rflags |= RFlags::IF;
    s.gpr[gpr::RDI] = s.gpr[gpr::RBX];
    if b.long {
        b.put(TSS_BASE + 44, DOUBLE_STACK);
        return;
    }
    scenes::task(b);
    let task = |offset, value: u64| b.flat.ram.write(TASK_PAGE + offset, &(value as u32).to_le_bytes());
    task(0x20, STUBS + u64::from(Event::DoubleFault.vector()));
    task(0x38, DOUBLE_STACK);
}

/// What the first event's handler needs is on other pages than what those of the events behind it need: its code
/// segment is on the GDT's second page, theirs on the first; in long mode they have stacks of the IST.
fn gates(b: &Bench, first: Event) {
    for (event, ist) in [(Event::Interrupt, 0), (Event::PageFault, 1), (Event::DoubleFault, 2)] {
        let vector = u64::from(event.vector());
        let (code, ist) = if event == first { (scenes::CODE0, 0) } else { (sel::CODE0, ist) };
        let at = b.flat.vcpu.state.idtr.base + vector * if b.long { 16 } else { 8 };
        let low = match event {
            Event::DoubleFault if !b.long => gate(scenes::TASK, 0, 5, 0, 0),
            _ => gate(code, (STUBS + vector) as u32, 14, 0, 0) | if b.long { ist << 32 } else { 0 },
        };
        b.put(at, low);
    }
    // So that no descriptor changes.
    let at = GDT_BASE + u64::from(scenes::CODE0);
    b.put(at, b.get(at, 8) | u64::from(attr::A) << 40);
}

/// The pages that the delivery of an event needs.
fn needs(scene: &Scene, event: Event, first: bool) -> Vec<u64> {
    let long = scene.bits == 64;
    let gates = if event == Event::PageFault { IDT_BORDER } else { IDT_PAGE };
    let mut pages = vec![gates];
    pages.extend(first.then_some(GDT_PAGE));
    pages.extend_from_slice(match event {
        Event::DoubleFault if long => &[TSS_END, DOUBLE_PAGE],
        // The registers of the task that is left are saved behind its stack pointers.
        Event::DoubleFault => &[GDT_PAGE, TASK_PAGE, TSS_END, DOUBLE_PAGE],
        Event::PageFault if long && !first => &[TSS_END, HANDLER_PAGE],
        _ if scene.cpl == 3 => &[TSS_PAGE, STACK0_PAGE],
        _ => &[STACK_PAGE],
    });
    pages
}

/// What comes of an event when pages are absent.
struct Expected {
    /// The event whose handler is reached; None: shutdown.
    event: Option<Event>,
    /// Pages of which the last one missed is one.
    missed: Vec<u64>,
}

fn expected(scene: &Scene, first: Event, absent: &[u64]) -> Expected {
    let mut event = first;
    let mut missed = if first == Event::PageFault { vec![DATA_PAGE] } else { Vec::new() };
    loop {
        let mut lacks = needs(scene, event, event == first);
        lacks.retain(|page| absent.contains(page));
        if lacks.is_empty() {
            return Expected { event: Some(event), missed };
        }
        missed = lacks;
        event = match event {
            Event::Interrupt => Event::PageFault,
            Event::PageFault => Event::DoubleFault,
            Event::DoubleFault => return Expected { event: None, missed },
        };
    }
}

/// Has the first event come, and runs on.
fn happen(b: &mut Bench, first: Event) -> Stop {
    b.changed();
    if first == Event::Interrupt {
        b.flat.bus.raise(first.vector());
    }
    b.flat.run(64)
}

fn take_away(b: &mut Bench, pages: &[u64]) {
    for &page in pages {
        let at = b.leaf(page);
        b.put(at, b.get(at, 8) & !1);
    }
    b.changed();
}

/// That `absent` is as expected, once the first event came.
fn check(
    b: &mut Bench,
    scene: &Scene,
    start: &Start,
    before: &End,
    first: Event,
    absent: &[u64],
) -> Result<(), String> {
    let want = expected(scene, first, absent);
    let stop = happen(b, first);
    let Some(event) = want.event else {
        // Nobody is left to look at CR2.
        return if stop == Stop::Shutdown { Ok(()) } else { Err(format!("{stop:?} and no shutdown")) };
    };
    let cr2 = b.flat.vcpu.state.cr2;
    if !want.missed.is_empty() && !want.missed.contains(&(cr2 & !0xFFF)) {
        return Err(format!("CR2 is {cr2:#x}, expected in one of {:x?}", want.missed));
    }
    let rip = b.flat.vcpu.state.rip();
    if stop != Stop::Halted || rip != STUBS + u64::from(event.vector()) + 1 {
        return Err(format!("{stop:?} at {rip:#x}, expected at the handler of {event:?}"));
    }
    if event == Event::DoubleFault && !b.long {
        return check_task(b, &start.state);
    }
    if let (Outcome::Raised(raised), Event::PageFault) = (b.outcome(), event) {
        // Processors push as supervisors, whatever the CPL.
        let stacks = [STACK_PAGE, STACK0_PAGE];
        let error = match first {
            Event::PageFault if scene.cpl == 3 => 4,
            Event::Interrupt if stacks.contains(&(cr2 & !0xFFF)) => 2,
            _ => 0,
        };
        if raised.error != error {
            return Err(format!("error code {:#x}, expected {error:#x}", raised.error));
        }
    }
    let mut got = undelivered(b, scene, &start.state, before, Taken::Present)?;
    forget_pushes(&mut got, &start.state);
    got.state.rflags |= RFlags::IF;
    differences(before, &got).map_or(Ok(()), |what| Err(format!("{event:?} leaves a trace: {what}")))
}

/// The handler of double faults is a task: it has error code 0, and the registers of the task before are saved.
fn check_task(b: &Bench, start: &CpuState) -> Result<(), String> {
    let saved = |offset| b.get(TSS_BASE + offset, 4);
    let got = (b.get(DOUBLE_STACK - 4, 4), saved(0x20), saved(0x38), saved(0x34), b.get(TASK_PAGE, 2));
    let s = &start.gpr;
    let want = (0, s[gpr::RIP], s[gpr::RSP], s[gpr::RBX] & 0xFFFF_FFFF, u64::from(sel::TSS));
    if got != want {
        return Err(format!("(error code, EIP, ESP, EBX, link) {got:x?}, expected {want:x?}"));
    }
    Ok(())
}

/// All sets of absent pages for an event in a mode; how many. An error says what is wrong.
fn event(engine: &str, scene: &Scene, first: Event) -> Result<usize, String> {
    let mut b = world(engine, scene)?;
    gates(&b, first);
    for page in [IDT_BORDER, TSS_END, HANDLER_PAGE, DOUBLE_PAGE] {
        b.map(page, 3);
    }
    take_away(&mut b, if first == Event::PageFault { &[DATA_PAGE] } else { &[] });
    let start = Start::of(&mut b);
    let mut before = end(&mut b, scene);
    forget_pushes(&mut before, &start.state);
    happen(&mut b, first);
    let want = end(&mut b, scene);
    let mut pages = Vec::new();
    for event in [Event::Interrupt, Event::PageFault, Event::DoubleFault] {
        if event != Event::Interrupt || first == event {
            pages.extend(needs(scene, event, event == first));
        }
    }
    pages.sort_unstable();
    pages.dedup();
    for set in 0..1_u32 << pages.len() {
        let absent: Vec<u64> = (0..pages.len()).filter(|n| set >> n & 1 != 0).map(|n| pages[n]).collect();
        start.again(&mut b);
        take_away(&mut b, &absent);
        let wrong = |why| format!("{engine}, {}, {first:?}, without {absent:x?}: {why}", scene.name);
        check(&mut b, scene, &start, &before, first, &absent).map_err(wrong)?;
        start.again(&mut b);
        happen(&mut b, first);
        let got = end(&mut b, scene);
        differences(&want, &got).map_or(Ok(()), |what| Err(wrong(format!("then with all pages: {what}"))))?;
    }
    Ok(1 << pages.len())
}

/// See [`Run`].
pub fn run(engine: &str) -> Result<usize, String> {
    let mut count = 0;
    for scene in MODES {
        for first in [Event::Interrupt, Event::PageFault] {
            count += event(engine, scene, first)?;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is expected: of each kind some, by hand.
    #[test]
    fn expectations() {
        let ends = |mode: usize, first, absent: &[u64]| expected(&MODES[mode], first, absent).event;
        assert_eq!(ends(0, Event::Interrupt, &[]), Some(Event::Interrupt));
        // A page fault behind an interrupt is one of its own; behind a page fault it is a double fault.
        assert_eq!(ends(0, Event::Interrupt, &[STACK0_PAGE]), Some(Event::PageFault));
        assert_eq!(ends(0, Event::PageFault, &[STACK0_PAGE]), Some(Event::DoubleFault));
        // Without an IST both handlers have the same stack.
        assert_eq!(ends(3, Event::Interrupt, &[STACK_PAGE]), Some(Event::DoubleFault));
        assert_eq!(ends(3, Event::PageFault, &[STACK_PAGE, TASK_PAGE]), None);
        assert_eq!(ends(1, Event::PageFault, &[IDT_PAGE, IDT_BORDER]), None);
    }
}
