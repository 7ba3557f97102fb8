//! Fault injection: an instruction's pages are taken away, one by one and all together. Each page fault must leave the
//! state as it was before the instruction, and once the pages are back the instruction must do what it does without a
//! fault.
//!
//! The same for the second of two pages that an instruction itself lies on.
//!
//! The instructions are those of [`crate::silicon`]: every user-mode form, with operands in and across three pages of
//! data. What faults in several places, a string instruction or a push from memory, meets one after the other.

use crate::silicon::case::{Case, Outcome, Raised, at};
use crate::silicon::generate::Generator;
use crate::silicon::guest::Guest;
use crate::silicon::shrink;
use iced_x86::{FlowControl, Instruction, Mnemonic};

const PAGES: u64 = (at::DATA_BYTES / 0x1000) as u64;
const PAGE_FAULT: u8 = 14;
/// RFLAGS.RF, which the image that a fault pushes has.
const RF: u64 = 1 << 16;

/// Cases of one engine.
pub struct Bench {
    guest: Guest,
    generator: Generator,
    engine: String,
}

impl Bench {
    /// On the engine of a name (see [`crate::engine::named`]).
    pub fn new(engine: &str) -> Result<Self, String> {
        Ok(Bench { guest: Guest::on(engine)?, generator: Generator::new(None), engine: engine.into() })
    }

    /// Runs the case of a seed: its instruction, and how many faults were injected or what is wrong.
    pub fn run(&mut self, seed: u64) -> (Instruction, Result<u32, String>) {
        let mut case = self.generator.case(seed);
        case.code.truncate(1);
        let result = self.fetch(&case, seed).and_then(|fetched| Ok(fetched + self.inject(&case)?));
        (0..PAGES).for_each(|page| self.guest.set_present(page, true));
        if result.is_err() {
            self.guest = Guest::on(&self.engine).unwrap_or_default();
        }
        (case.instructions()[0], result.map_err(|why| format!("{}  {why}", shrink::text(&case))))
    }

    /// The instruction crosses into a page that is absent: after it has run there, so that what an engine kept of it must go.
    fn fetch(&mut self, case: &Case, seed: u64) -> Result<u32, String> {
        let length = case.code[0].len() as u64;
        if length < 2 {
            return Ok(0);
        }
        let border = at::CODE + 0x1000;
        self.guest.start = border - 1 - seed % (length - 1);
        let start = self.guest.start;
        let mut run = |present| {
            self.guest.set_code_present(present);
            self.guest.run(case)
        };
        let (want, got, again) = (run(true), run(false), run(true));
        self.guest.start = at::CODE;
        self.guest.set_code_present(false);
        let (want, got, again) = (want?, got?, again?);
        // An instruction fetch by user code.
        let raised = Some(Raised { vector: PAGE_FAULT, error: 0x14, address: border });
        let unchanged = Outcome {
            gpr: case.gpr,
            rflags: case.rflags,
            rip: start,
            raised,
            floating: case.floating.clone(),
            memory: case.memory.clone(),
        };
        if let Some(what) = difference(&unchanged, &got) {
            return Err(format!("fetched at {start:#x} over an absent page: {what}"));
        }
        match difference(&want, &again) {
            None => Ok(1),
            Some(what) => Err(format!("fetched at {start:#x} after the page came back, {what}")),
        }
    }

    fn inject(&mut self, case: &Case) -> Result<u32, String> {
        let want = self.guest.run(case)?;
        let mut faults = 0;
        for absent in (0..PAGES).map(|page| 1 << page).chain([(1 << PAGES) - 1]) {
            faults += self.until_done(case, absent, &want)?;
        }
        Ok(faults)
    }

    /// Runs a case with pages absent (a bit each), each of which comes back when it is missed. Returns how many were.
    fn until_done(&mut self, case: &Case, mut absent: u64, want: &Outcome) -> Result<u32, String> {
        let mut now = case.clone();
        let mut faults = 0;
        loop {
            (0..PAGES).for_each(|page| self.guest.set_present(page, absent >> page & 1 == 0));
            let got = self.guest.run(&now)?;
            let missed = got.raised.filter(|r| r.vector == PAGE_FAULT && r.error & 1 == 0);
            let page = missed.map(|r| r.address.wrapping_sub(at::DATA) / 0x1000);
            let Some(page) = page.filter(|&page| page < PAGES && absent >> page & 1 != 0) else {
                return match difference(want, &got) {
                    None => Ok(faults),
                    Some(what) => Err(format!("after {faults} faults and the retry, {what}")),
                };
            };
            let x = now.instructions()[0];
            if got.rip != at::CODE && x.flow_control() != FlowControl::Next {
                // Where a branch went to there is something, or nothing; it has been run.
                return Ok(faults);
            }
            if let Some(what) = trace(&now, &got) {
                return Err(format!(
                    "the fault at {:#x} leaves a trace: {what}",
                    got.raised.map_or(0, |r| r.address)
                ));
            }
            absent &= !(1 << page);
            faults += 1;
            // As IRET goes back to it.
            (now.gpr, now.rflags, now.floating, now.memory) =
                (got.gpr, got.rflags & !RF, got.floating, got.memory);
        }
    }
}

/// What a fault has changed. A string instruction with a repeat prefix has done whole iterations.
fn trace(before: &Case, got: &Outcome) -> Option<String> {
    let x = before.instructions()[0];
    if got.rip != at::CODE {
        return Some(format!("RIP is {:#x}", got.rip));
    }
    if x.is_string_instruction() && (x.has_rep_prefix() || x.has_repne_prefix()) {
        return None;
    }
    // What ENTER pushed before its new frame faulted stays in memory, as hardware has it (the silicon suite compares that).
    let enter = x.mnemonic() == Mnemonic::Enter;
    let unchanged = Outcome {
        gpr: before.gpr,
        rflags: before.rflags,
        rip: at::CODE,
        raised: got.raised,
        floating: before.floating.clone(),
        memory: if enter { got.memory.clone() } else { before.memory.clone() },
    };
    difference(&unchanged, got)
}

/// The first part in which two outcomes differ.
fn difference(want: &Outcome, got: &Outcome) -> Option<String> {
    let says = |what: &str, want: String, got: String| Some(format!("{what}: expected {want}, got {got}"));
    if want.raised != got.raised {
        return says("exception", format!("{:x?}", want.raised), format!("{:x?}", got.raised));
    }
    if want.rip != got.rip {
        return says("RIP", format!("{:#x}", want.rip), format!("{:#x}", got.rip));
    }
    if let Some(n) = (0..16).find(|&n| want.gpr[n] != got.gpr[n]) {
        return says(&format!("GPR {n}"), format!("{:#x}", want.gpr[n]), format!("{:#x}", got.gpr[n]));
    }
    if (want.rflags ^ got.rflags) & !RF != 0 {
        return says("RFLAGS", format!("{:#x}", want.rflags), format!("{:#x}", got.rflags));
    }
    if want.floating != got.floating {
        return says("x87, MXCSR or XMM", format!("{:x?}", want.floating), format!("{:x?}", got.floating));
    }
    let n = (0..want.memory.len()).find(|&n| want.memory[n] != got.memory[n])?;
    says(
        &format!("[{:#x}]", at::DATA + n as u64),
        format!("{:02x}", want.memory[n]),
        format!("{:02x}", got.memory[n]),
    )
}
