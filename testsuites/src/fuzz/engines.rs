//! Any bytes as a program of 64-bit code, on the interpreter and the translator, slice by slice: the same states and memory.

use super::{Target, take};
use crate::differential::compare;
use crate::differential::kernel::at;
use crate::engine;
use crate::flat::Machine;
use crate::workbench::{WORLD, machine};
use trimaran_cpu::engine::{EngineFactory, Interpreter, Stop};

pub const TARGET: Target = Target { name: "engines", run, longest: 400, dress: |_, _| () };

/// Slices of a program at most, and instructions of one.
const SLICES: usize = 40;
const LONGEST: u64 = 300;

fn run(mut data: &[u8]) {
    let header: [u8; 16] = take(&mut data);
    let translator = if cfg!(target_arch = "x86_64") { "jit-emit" } else { "jit-cranelift" };
    let Ok(factory) = engine::eager(translator, 1 + u32::from(header[0] & 3)) else { return };
    let (mut want, mut got) = (start(&Interpreter, header, data), start(&*factory, header, data));
    for n in 0..SLICES {
        let budget = 1 + u64::from(header[n % 16]) * LONGEST / 256;
        let (a, b) = (want.engine.run(budget), got.engine.run(budget));
        let mut lines = compare::states(want.engine.state(), got.engine.state());
        let ended = a != Stop::Budget || n + 1 == SLICES;
        if ended {
            lines.extend(compare::memories(&WORLD.page_tables(), &want, &got));
        }
        assert!(a == b && lines.is_empty(), "slice {n}: {a:?}, {b:?}\n{}", lines.join("\n"));
        if ended {
            break;
        }
    }
}

fn start(factory: &dyn EngineFactory, header: [u8; 16], code: &[u8]) -> Machine {
    let mut m = machine(factory, 1);
    m.ram.write(at::CODE, code);
    let state = m.engine.state();
    for (n, register) in state.gpr[..16].iter_mut().enumerate().filter(|(n, _)| *n != 4) {
        *register = at::DATA + u64::from(header[n]) * 0x40;
    }
    m.engine.state_changed();
    m
}
