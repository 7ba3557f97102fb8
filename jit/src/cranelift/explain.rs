//! From which guest instruction CLIF and host code come, for people (`--dump-region`).

use cranelift_codegen::ir::{Function, SourceLoc};
use cranelift_codegen::{Final, MachBufferFinalized};

/// A location stands for a distance from the region's entry; regions are smaller than this either way.
const MIDDLE: i64 = 1 << 20;

pub fn location(delta: i64) -> SourceLoc {
    SourceLoc::new((delta + MIDDLE) as u32)
}

fn delta(location: SourceLoc) -> Option<i64> {
    (!location.is_default()).then(|| i64::from(location.bits()) - MIDDLE)
}

/// The function's text; blocks' heads have no origin.
pub fn lines(function: &Function) -> Vec<(Option<i64>, String)> {
    let mut out = Vec::new();
    for block in function.layout.blocks() {
        let parameters: Vec<String> =
            function.dfg.block_params(block).iter().map(ToString::to_string).collect();
        let cold = if function.layout.is_cold(block) { " cold" } else { "" };
        out.push((None, format!("{block}({}){cold}:", parameters.join(", "))));
        for inst in function.layout.block_insts(block) {
            out.push((delta(function.srcloc(inst)), function.dfg.display_inst(inst).to_string()));
        }
    }
    out
}

/// Where in the code the guest instruction changes.
pub fn origins(buffer: &MachBufferFinalized<Final>) -> Vec<(usize, Option<i64>)> {
    let mut out = vec![(0, None)];
    for part in buffer.get_srclocs_sorted() {
        // What lies between two parts belongs to nobody.
        for (at, origin) in [(part.start, delta(part.loc)), (part.end, None)] {
            out.retain(|&(start, _)| start != at as usize);
            out.push((at as usize, origin));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::{CODE, RAM, config, set_up};
    use super::super::{Cranelift, Effort};
    use crate::abi::{Job, Knobs, Runtime};
    use crate::listing;
    use crate::region::{Limits, Region};
    use std::sync::Arc;
    use trimaran_cpu::Vcpu;
    use trimaran_cpu::ram::Ram;

    /// Each instruction stands over its CLIF, and again over its host code.
    #[test]
    fn a_listing_names_every_instruction_twice() {
        // add rax, [rsi]; dec ecx; jne to the start; hlt
        let code = [0x48, 0x03, 0x06, 0xFF, 0xC9, 0x75, 0xF9, 0xF4];
        let ram = Arc::new(Ram::anonymous(RAM));
        let mut v = Vcpu::new(config(&ram));
        set_up(&mut v, &ram, true, &code, 1);
        v.run(0);
        let first = v.block_at(CODE).expect("a block");
        let limits = Limits { blocks: 2, insns: 8, decode: true, ..Limits::LOOPS };
        let region = Region::form(&mut v, first, CODE, limits).expect("a region");
        let runtime = Runtime { refill_preserving: 1, settle_preserving: 1, ..Runtime::default() };
        let knobs = Knobs { explain: true, ..Knobs::default() };
        let job = Job { knobs, ..Job::new(&region, 0x1000, &runtime) };
        let made = Cranelift::with_effort(Effort::Quick).compile(&job).expect("code");
        let text = listing::whole(&region, &ram, CODE, &made, 0x7000_0000);
        let (clif, host) =
            text.split_once("CLIF:\n").and_then(|(_, t)| t.split_once("host code")).expect("two parts");
        for name in ["add rax,[rsi]", "dec ecx", "jne"] {
            assert!(clif.contains(&format!("  {name}")), "{name} over CLIF\n{text}");
            assert!(host.contains(&format!("  {name}")), "{name} over host code\n{text}");
        }
        assert!(clif.contains("iadd") && clif.contains("brif"), "{text}");
    }
}
