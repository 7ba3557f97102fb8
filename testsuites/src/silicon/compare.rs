//! What must agree, and what need not.

use super::case::{Case, Outcome, at};
use iced_x86::{Instruction, Mnemonic, OpKind};
use trimaran_cpu::state::gpr;

/// RFLAGS that the manual leaves open after the last instruction of a case.
fn undefined_flags(case: &Case, x: &Instruction) -> u64 {
    use Mnemonic as M;
    use iced_x86::RflagsBits as R;
    let undefined = x.rflags_undefined();
    let mut mask = [(R::OF, 11), (R::SF, 7), (R::ZF, 6), (R::AF, 4), (R::CF, 0), (R::PF, 2)]
        .iter()
        .filter(|f| undefined & f.0 != 0)
        .fold(0, |mask, f| mask | 1u64 << f.1);
    // Shifts: nothing changes with a count of 0, and OF is defined for a count of 1.
    if let M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd =
        x.mnemonic()
    {
        let last = x.op_count() - 1;
        let count = match x.op_kind(last) {
            OpKind::Immediate8 => Some(u64::from(x.immediate8())),
            _ if case.code.len() == 1 => Some(case.gpr[gpr::RCX]),
            _ => None,
        };
        let size =
            if x.op0_kind() == OpKind::Register { x.op0_register().size() } else { x.memory_size().size() };
        if let Some(count) = count {
            match count & if size == 8 { 63 } else { 31 } {
                0 => mask = 0,
                1 => mask &= !(1 << 11),
                n if n > size as u64 * 8 => mask |= 0x8D5,
                n if n == size as u64 * 8 => mask |= 1,
                _ => {}
            }
        }
    }
    mask
}

/// Where two outcomes differ, one line each; empty if they agree. `want` is the host's.
pub fn differences(case: &Case, want: &Outcome, got: &Outcome) -> Vec<String> {
    let mut out = Vec::new();
    let instructions = case.instructions();
    if want.raised.map(known_error) != got.raised.map(known_error) {
        out.push(format!("exception: want {:x?}, got {:x?}", want.raised, got.raised));
    }
    if want.rip != got.rip {
        out.push(format!("RIP: want {:#x}, got {:#x}", want.rip, got.rip));
    }
    for n in 0..16 {
        if want.gpr[n] != got.gpr[n] {
            out.push(format!("GPR {n}: want {:#x}, got {:#x}", want.gpr[n], got.gpr[n]));
        }
    }
    // RF is set in the image that a fault pushes.
    let mut open = 1 << 16;
    if want.raised.is_none()
        && let Some(last) = instructions.last()
    {
        open |= undefined_flags(case, last);
    }
    if (want.rflags ^ got.rflags) & !open != 0 {
        out.push(format!("RFLAGS: want {:#x}, got {:#x} (ignored {open:#x})", want.rflags, got.rflags));
    }
    let (w, g) = (&want.floating, &got.floating);
    for (name, w, g) in [
        ("FCW", w.control, g.control),
        ("FSW", w.status, g.status),
        ("FTW", w.tags.into(), g.tags.into()),
        ("MXCSR", w.mxcsr as u16, g.mxcsr as u16),
    ] {
        if w != g {
            out.push(format!("{name}: want {w:#x}, got {g:#x}"));
        }
    }
    for n in 0..8 {
        if w.st[n] != g.st[n] {
            out.push(format!("ST({n}): want {:020x}, got {:020x}", w.st[n], g.st[n]));
        }
    }
    for n in 0..16 {
        if w.xmm[n] != g.xmm[n] {
            out.push(format!("XMM{n}: want {:032x}, got {:032x}", w.xmm[n], g.xmm[n]));
        }
    }
    if want.memory != got.memory {
        for (n, (w, g)) in
            want.memory.iter().zip(&got.memory).enumerate().filter(|(_, (w, g))| w != g).take(20)
        {
            out.push(format!("[{:#x}]: want {w:02x}, got {g:02x}", at::DATA + n as u64));
        }
    }
    out
}

/// The kernel hides from programs which of its own pages exist: P of a #PF in the upper half.
fn known_error(mut raised: super::case::Raised) -> super::case::Raised {
    if raised.vector == 14 && raised.address >> 63 != 0 {
        raised.error |= 1;
    }
    raised
}
