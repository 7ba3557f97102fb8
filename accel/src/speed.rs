//! How fast engines are: the time of a short loop at CPL 0 and CPL 3 of long mode.

use crate::tiny::{BYTES, CODE, DONE, Mode, OnlyRam, Tables, assemble};
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trimaran_cpu::VcpuConfig;
use trimaran_cpu::engine::{Engine, EngineFactory};
use trimaran_cpu::model::Model;
use trimaran_cpu::ram::Ram;
use trimaran_cpu::shared::CodeFence;
use trimaran_cpu::state::{CpuState, gpr};

/// Times that the loop runs at first, and at most.
const FIRST_ROUNDS: u32 = 10_000;
const MOST_ROUNDS: u32 = 1 << 28;
/// A measurement takes this long at least.
const LEAST_TIME: Duration = Duration::from_millis(20);
/// Instructions of one round.
const ROUND: f64 = 2.0;

/// Million instructions a second of a software engine; 0 if the loop does not run.
pub fn mips(factory: &dyn EngineFactory, cpl: u8) -> f64 {
    let (ram, fence) = (Arc::new(Ram::anonymous(BYTES)), CodeFence::new(1));
    let (model, bus) = (Arc::new(Model::default()), Arc::new(OnlyRam(fence.clone())));
    let mut engine = factory.create(VcpuConfig { id: 0, model, ram: ram.clone(), bus, fence });
    measure(|rounds| {
        let mut state = Tables(&ram).prepare(Mode::Long, cpl);
        ram.write(CODE, &program(&mut state, rounds)?);
        *engine.state() = state;
        engine.state_changed();
        let begun = Instant::now();
        engine.run(u64::MAX);
        let time = begun.elapsed();
        (engine.state().gpr[gpr::RCX] == 0).then_some(time)
    })
}

/// Where [`Program`]s have their data: 256 KiB that the host could map anywhere.
const DATA: u64 = 0x2_0000;
pub const DATA_BYTES: u64 = 0x4_0000;
/// Where a program stands.
const BODY: u64 = CODE + 0x100;

/// A program that engines can be compared with: a function of 64-bit code that stands anywhere, and gets the address of its
/// data in RDI and a number of rounds in RSI.
pub struct Program<'a> {
    engine: Box<dyn Engine>,
    ram: Arc<Ram>,
    body: &'a [u8],
    cpl: u8,
}

impl<'a> Program<'a> {
    /// `model` is what the engine can run; `body` ends with RET.
    pub fn new(factory: &dyn EngineFactory, model: &Model, cpl: u8, body: &'a [u8]) -> Self {
        let (ram, fence) = (Arc::new(Ram::anonymous(BYTES)), CodeFence::new(1));
        let (model, bus) = (Arc::new(model.clone()), Arc::new(OnlyRam(fence.clone())));
        let engine = factory.create(VcpuConfig { id: 0, model, ram: ram.clone(), bus, fence });
        Program { engine, ram, body, cpl }
    }

    /// Runs it. The time, and what it left in RAX; None if it did not come to its end.
    pub fn run(&mut self, rounds: u64) -> Option<(Duration, u64)> {
        const END: u64 = 0x5_EED0;
        let mut state = Tables(&self.ram).prepare(Mode::Long, self.cpl);
        let around = assemble(64, CODE, |a| {
            a.call(BODY)?;
            a.mov(rdx, END)?;
            if self.cpl == 3 { a.out(i32::from(DONE), al) } else { a.hlt() }
        });
        self.ram.write(CODE, &around.ok()?);
        self.ram.write(BODY, self.body);
        (state.gpr[gpr::RDI], state.gpr[gpr::RSI]) = (DATA, rounds);
        *self.engine.state() = state;
        self.engine.state_changed();
        let begun = Instant::now();
        self.engine.run(u64::MAX);
        let time = begun.elapsed();
        let state = self.engine.state();
        (state.gpr[gpr::RDX] == END).then_some((time, state.gpr[gpr::RAX]))
    }
}

/// The loop, for a state of [`Tables::prepare`]; RCX is 0 at its end.
pub fn program(state: &mut CpuState, rounds: u32) -> Option<Vec<u8>> {
    state.gpr[gpr::RCX] = u64::from(rounds);
    let program = assemble(64, CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.sub(ecx, 1)?;
        a.jnz(again)?;
        if state.cpl == 3 { a.out(i32::from(DONE), al) } else { a.hlt() }
    });
    program.ok()
}

/// `run` takes the time of a number of rounds, or finds that they do not run.
pub fn measure(mut run: impl FnMut(u32) -> Option<Duration>) -> f64 {
    let mut rounds = FIRST_ROUNDS;
    loop {
        // The best of three: others use the host, too.
        let times: Option<Vec<Duration>> = (0..3).map(|_| run(rounds)).collect();
        let Some(time) = times.and_then(|times| times.into_iter().min()) else { return 0.0 };
        if time >= LEAST_TIME || rounds >= MOST_ROUNDS {
            return f64::from(rounds) * ROUND / time.as_secs_f64() / 1e6;
        }
        rounds *= 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trimaran_cpu::engine::Interpreter;

    #[test]
    fn the_interpreter_has_a_speed() {
        assert!(mips(&Interpreter, 0) > 1.0 && mips(&Interpreter, 3) > 1.0);
    }
}
