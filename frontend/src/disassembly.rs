//! Instructions as text, in Intel's syntax.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use trimaran_cpu::state::{CpuState, attr, seg};

/// Longest instruction.
pub const LONGEST: usize = 15;

/// Size in bits of the code that a processor is in.
pub fn bitness(state: &CpuState) -> u32 {
    match () {
        () if state.code64() => 64,
        () if state.seg[seg::CS].has(attr::DB) && !state.real_or_v86() => 32,
        () => 16,
    }
}

/// Writes instructions with one formatter.
pub struct Disassembler(IntelFormatter);

impl Disassembler {
    pub fn new() -> Self {
        let mut formatter = IntelFormatter::new();
        formatter.options_mut().set_space_after_operand_separator(true);
        formatter.options_mut().set_hex_prefix("0x");
        formatter.options_mut().set_hex_suffix("");
        Disassembler(formatter)
    }

    /// Its bytes, in hexadecimal, and the instruction at `address`; and its length, at least 1.
    pub fn line(&mut self, bitness: u32, bytes: &[u8], address: u64) -> (String, usize) {
        let mut decoder = Decoder::with_ip(bitness, bytes, address, DecoderOptions::NONE);
        let instruction: Instruction = decoder.decode();
        let length = instruction.len().max(1);
        let mut words = String::new();
        self.0.format(&instruction, &mut words);
        let code: String = bytes.iter().take(length).map(|byte| format!("{byte:02x}")).collect();
        (format!("{code:<22} {words}"), length)
    }
}
