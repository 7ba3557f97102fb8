//! What processors after the one that vectors were recorded from do differently, one by one, with the reason.

use super::Family;
use crate::moo::Test;
use crate::moo::register::{CS, EAX, EBP, EBX, ECX, EDI, ESI};
use iced_x86::{Decoder, DecoderOptions};

/// One deliberate exception.
pub struct Change {
    /// The file that it is about, or [`ANY`].
    pub opcode: &'static str,
    /// Applies to these tests of the file.
    pub applies: fn(&Test) -> bool,
    /// Registers (positions in [`crate::moo::REGISTERS`]) that are not compared; none listed: nothing is.
    pub registers: &'static [usize],
    pub reason: &'static str,
}

/// [`Change::opcode`] of a change that concerns every file.
const ANY: &str = "*";
/// [`Change::registers`]: the test is not compared at all.
const EVERYTHING: &[usize] = &[];

impl Change {
    /// That which applies to a test of a file.
    pub fn of(family: Family, opcode: &str, test: &Test) -> Option<&'static Change> {
        let changes = match family {
            Family::I8088 => SINCE_8088,
            Family::I286 => SINCE_286,
            // Its real mode is the 486's, but for what is undefined.
            Family::I386 => &[],
        };
        changes.iter().find(|c| (c.opcode == opcode || c.opcode == ANY) && (c.applies)(test))
    }
}

/// Since the 286.
const SINCE_286: &[Change] = &[
    Change {
        opcode: ANY,
        applies: lock_refused,
        registers: EVERYTHING,
        reason: "LOCK before anything but the read-modify-write instructions is #UD since the 386; the 286 ignores it",
    },
    Change {
        opcode: ANY,
        applies: |t| t.bytes.len() > 10 && raised(t, 13),
        registers: EVERYTHING,
        reason: "instructions of more than 10 bytes: #GP on the 286, allowed up to 15 since the 386",
    },
    Change {
        opcode: "8C",
        applies: |t| names_fs_or_gs(t) && raised(t, 6),
        registers: EVERYTHING,
        reason: "FS and GS exist since the 386",
    },
    Change {
        opcode: "8E",
        applies: |t| names_fs_or_gs(t) && raised(t, 6),
        registers: EVERYTHING,
        reason: "FS and GS exist since the 386",
    },
    Change {
        opcode: ANY,
        applies: |t| is_string(t) && raised(t, 13),
        registers: &[ECX, ESI, EDI],
        reason: "a string instruction that faults leaves the 286's index and count registers moved; later ones restart",
    },
    Change {
        opcode: ANY,
        applies: pointer_wraps,
        registers: EVERYTHING,
        reason: "a far pointer across offset FFFFh: two words that wrap on the 286, one operand beyond the limit (#GP) since the 386",
    },
    Change {
        opcode: "8F",
        applies: |t| raised(t, 13),
        registers: EVERYTHING,
        reason: "POP to memory that faults leaves the 286's SP moved (and the frame elsewhere); later ones restart",
    },
];

/// Since the 8088, which knows no invalid instruction and no limit.
const SINCE_8088: &[Change] = &[
    whole(|t| opcode(t).0 == 0x0F, "0F is POP CS on the 8088, and begins opcodes of two bytes since the 286"),
    whole(
        |t| matches!(opcode(t).0, 0x60..=0x6F | 0xC0 | 0xC1 | 0xC8 | 0xC9 | 0xF1),
        "the 8088 takes the opcode for another's; it has a meaning of its own since the 186 or 386",
    ),
    whole(
        |t| matches!(opcode(t).0, 0xD8..=0xDF),
        "coprocessor escapes: without one the 8088 reads the operand and goes on; the 486 has the unit",
    ),
    whole(
        |t| matches!(opcode(t), (0x8C | 0x8E, modrm) if modrm >> 3 & 7 > 3 || modrm >> 3 & 3 == 1 && opcode(t).0 == 0x8E),
        "segment registers beyond DS, and MOV to CS: the 8088 looks at two bits and loads CS; #UD, FS and GS since",
    ),
    whole(
        |t| matches!(opcode(t), (0x8F | 0xC6 | 0xC7, modrm) if modrm >> 3 & 7 != 0),
        "POP and MOV with another register field than 0: #UD since the 186",
    ),
    whole(
        |t| match opcode(t) {
            (0xFE, modrm) => modrm >> 3 & 7 > 1,
            // Far transfers by register have no meaning since either.
            (0xFF, modrm) => modrm >> 3 & 7 == 7 || modrm >= 0xC0 && matches!(modrm >> 3 & 7, 3 | 5),
            _ => false,
        },
        "FE and FF with register fields that have no meaning: #UD since the 186",
    ),
    whole(
        |t| matches!(opcode(t), (0xD0..=0xD3, modrm) if modrm >> 3 & 7 == 6),
        "SETMO and SETMOC of the 8088 are shifts since the 186",
    ),
    whole(
        |t| matches!(opcode(t).0, 0xD2 | 0xD3) && initial(t, ECX) & 0xFF > 31,
        "shift counts are taken modulo 32 since the 186",
    ),
    whole(
        |t| opcode(t).0 == 0x54 || opcode(t) == (0xFF, 0xF4),
        "PUSH SP pushes what SP is afterwards; since the 286 what it was",
    ),
    whole(
        |t| {
            matches!(opcode(t).0, 0xF6 | 0xF7)
                && t.bytes.iter().take_while(|b| PREFIXES.contains(b)).any(|b| b & 0xFE == 0xF2)
        },
        "REP before a multiplication or division turns the sign of the 8088's result",
    ),
    whole(
        |t| divides(t) && t.last.registers[CS].is_some(),
        "a divide error: the 8088's return address is the next instruction's, and -128 and -32768 are too much for it",
    ),
    whole(
        // AL + 6 or AL - 6 carries into AH.
        |t| match opcode(t).0 {
            0x37 => initial(t, EAX) & 0xFF > 0xF9,
            0x3F => initial(t, EAX) & 0xFF < 6,
            _ => false,
        },
        "AAA and AAS adjust AL and AH apart on the 8088, as one register since the 286",
    ),
];

const fn whole(applies: fn(&Test) -> bool, reason: &'static str) -> Change {
    Change { opcode: ANY, applies, registers: EVERYTHING, reason }
}

fn initial(test: &Test, register: usize) -> u32 {
    test.initial.registers[register].unwrap_or(0)
}

/// DIV, IDIV and AAM.
fn divides(test: &Test) -> bool {
    matches!(opcode(test), (0xF6 | 0xF7, modrm) if modrm >> 3 & 7 > 5) || opcode(test).0 == 0xD4
}

/// A far pointer whose two words the 286 checks one by one, so that it may lie across offset FFFFh.
fn pointer_wraps(test: &Test) -> bool {
    use iced_x86::Register as R;
    let far = match opcode(test) {
        (0xC4 | 0xC5, _) => true,
        (0xFF, modrm) => matches!(modrm >> 3 & 7, 3 | 5),
        _ => false,
    };
    if !far || test.exception.is_some() {
        return false;
    }
    let x = Decoder::new(16, &test.bytes, DecoderOptions::NONE).decode();
    let register = |r: R| {
        let at = match r {
            R::BX => EBX,
            R::BP => EBP,
            R::SI => ESI,
            R::DI => EDI,
            _ => return 0,
        };
        initial(test, at)
    };
    let offset = register(x.memory_base())
        .wrapping_add(register(x.memory_index()))
        .wrapping_add(x.memory_displacement64() as u32);
    x.op_count() > 0 && offset & 0xFFFF > 0xFFFC
}

pub fn raised(test: &Test, vector: u8) -> bool {
    test.exception.is_some_and(|e| e.vector == vector)
}

/// The opcode byte: the first that is no prefix, and the one after it.
pub fn opcode(test: &Test) -> (u8, u8) {
    let mut bytes = test.bytes.iter().skip_while(|b| PREFIXES.contains(b));
    (bytes.next().copied().unwrap_or(0), bytes.next().copied().unwrap_or(0))
}

/// Segment overrides, LOCK, REPNE and REP.
pub const PREFIXES: &[u8] = &[0x26, 0x2E, 0x36, 0x3E, 0xF0, 0xF2, 0xF3];

fn is_string(test: &Test) -> bool {
    matches!(opcode(test).0, 0x6C..=0x6F | 0xA4..=0xA7 | 0xAA..=0xAF)
}

fn names_fs_or_gs(test: &Test) -> bool {
    opcode(test).1 >> 3 & 7 > 3
}

/// Bytes that later processors refuse because of LOCK alone.
fn lock_refused(test: &Test) -> bool {
    if !test.bytes.iter().take_while(|b| PREFIXES.contains(b)).any(|&b| b == 0xF0) {
        return false;
    }
    let x = Decoder::new(16, &test.bytes, DecoderOptions::NONE).decode();
    let memory = x.op0_kind() == iced_x86::OpKind::Memory;
    x.is_invalid() || !memory
}
