//! What must agree, and what need not.

use super::case::{Case, Outcome, Raised, at};
use super::forms::{Image, image};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use std::ops::Range;
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

/// What the manual leaves open, or where AMD's silicon differs from Intel's manual, beyond RFLAGS. We keep to
/// Intel's text. A case with such an instruction is not compared in that part.
#[derive(Default)]
struct Open {
    /// Bits of the x87 status word.
    status: u16,
    /// Bits of RFLAGS.
    rflags: u64,
    /// TOP and tags too.
    stack: bool,
    /// Which of several addresses faults, or whether one does.
    fault: bool,
}

fn open_results(case: &Case, want: &Outcome) -> Open {
    use Mnemonic as M;
    let mut open = Open::default();
    // What these clear or mask is no longer seen.
    let forgets = |x: &Instruction| matches!(x.mnemonic(), M::Fnclex | M::Fninit | M::Fnsave | M::Fnstenv);
    let forgotten = if case.instructions().iter().any(forgets) { 3 & !case.floating.control } else { 0 };
    let unmasked = (want.floating.status & !want.floating.control | forgotten) & 3 != 0;
    for x in case.instructions() {
        match x.mnemonic() {
            // C1: "0 if stack underflow", "0" or open; AMD keeps it, we clear it, as other instructions do.
            M::Fcmovb
            | M::Fcmovbe
            | M::Fcmove
            | M::Fcmovnb
            | M::Fcmovnbe
            | M::Fcmovne
            | M::Fcmovnu
            | M::Fcmovu
            | M::Fcomi
            | M::Fcomip
            | M::Fucomi
            | M::Fucomip
            | M::Ffree
            | M::Ffreep => {
                open.status |= 0x200;
                // As for C0, C2, C3 of FCOM below.
                open.rflags |= if unmasked { 0x8D5 } else { 0 };
            }
            // C0, C2, C3 with an unmasked #IA or #D: the manual's pseudocode keeps them, AMD does not.
            M::Fcom
            | M::Fcomp
            | M::Fcompp
            | M::Ficom
            | M::Ficomp
            | M::Fucom
            | M::Fucomp
            | M::Fucompp
            | M::Ftst
                if unmasked =>
            {
                open.status |= 0x4500;
            }
            // C2 with an unmasked #IA: AMD clears it.
            M::Fprem | M::Fprem1 | M::Fsin | M::Fcos | M::Fsincos | M::Fptan if unmasked => {
                open.status |= 0x400;
            }
            // MXCSR bit 17 (MM) exists on AMD only.
            M::Ldmxcsr | M::Vldmxcsr => open.fault = true,
            // AMD asks for no alignment.
            M::Sha1msg1
            | M::Sha1msg2
            | M::Sha1nexte
            | M::Sha1rnds4
            | M::Sha256msg1
            | M::Sha256msg2
            | M::Sha256rnds2 => open.fault = true,
            // A push that faults beside a target that is not canonical.
            M::Call => open.fault = true,
            // With an unmasked exception: AMD has entered MMX state by then; with us a fault leaves no trace.
            M::Cvtpi2ps | M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi => {
                open.stack |= want.raised.is_some_and(|r| r.vector == 19);
            }
            // An all-zero mask: whether the address is checked is open. Two faulting operands: which is first.
            M::Maskmovdqu | M::Vmaskmovdqu | M::Maskmovq | M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => {
                open.fault = true;
            }
            _ => {}
        }
    }
    open
}

/// Where two outcomes differ, one line each; empty if they agree. `want` is the host's.
pub fn differences(case: &Case, want: &Outcome, got: &Outcome) -> Vec<String> {
    let mut out = Vec::new();
    if want == got {
        return out;
    }
    let instructions = case.instructions();
    // A wild address that met the native side's own page.
    if got.raised.is_some_and(|r| r.vector == 14 && r.address & !0xFFF == at::CONTEXT) {
        return out;
    }
    let open_parts = open_results(case, want);
    let page_fault = |o: &Outcome| o.raised.is_some_and(|r| (12..=14).contains(&r.vector));
    if open_parts.fault && (page_fault(want) || page_fault(got)) {
        return out;
    }
    // Open parts must not be looked at by what follows.
    let looked_at = |x: &Instruction| matches!(x.mnemonic(), Mnemonic::Fnstsw) && open_parts.status != 0;
    if instructions.iter().any(looked_at) || open_parts.rflags != 0 && instructions.len() > 1 {
        return out;
    }
    let status = |s: u16| s & !open_parts.status & if open_parts.stack { !0x3800 } else { !0 };
    let known = |raised| known_error(raised, case);
    if want.raised.map(known) != got.raised.map(known) {
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
    let mut open = 1 << 16 | open_parts.rflags;
    if want.raised.is_none()
        && let Some(last) = instructions.last()
    {
        open |= undefined_flags(case, last);
    }
    if (want.rflags ^ got.rflags) & !open != 0 {
        out.push(format!("RFLAGS: want {:#x}, got {:#x} (ignored {open:#x})", want.rflags, got.rflags));
    }
    let (w, g) = (&want.floating, &got.floating);
    // PE beside an unmasked #U or #O: of the result with its exponent adjusted, which we do not make.
    let unmasked = w.mxcsr & !(w.mxcsr >> 7) & 0x18 != 0 && want.raised.is_some_and(|r| r.vector == 19);
    // DPPS, DPPD: what an earlier step raised beside a later step's unmasked exception.
    let dot_product = |x: &Instruction| {
        matches!(x.mnemonic(), Mnemonic::Dpps | Mnemonic::Dppd | Mnemonic::Vdpps | Mnemonic::Vdppd)
    };
    let faulted = want.raised.is_some_and(|r| r.vector == 19);
    let inexact = match (faulted && instructions.iter().any(dot_product), unmasked) {
        (true, _) => 0x38,
        (_, true) => 0x20,
        _ => 0,
    };
    for (name, w, g) in [
        ("FCW", w.control, g.control),
        ("FSW", status(w.status), status(g.status)),
        ("FTW", w.tags.into(), if open_parts.stack { w.tags } else { g.tags }.into()),
        ("MXCSR", w.mxcsr as u16 | inexact, g.mxcsr as u16 | inexact),
    ] {
        if w != g {
            out.push(format!("{name}: want {w:#x}, got {g:#x}"));
        }
    }
    for n in 0..8 {
        if w.st[n] != g.st[n] && !open_parts.stack {
            out.push(format!("ST({n}): want {:020x}, got {:020x}", w.st[n], g.st[n]));
        }
    }
    for n in 0..16 {
        if w.xmm[n] != g.xmm[n] {
            out.push(format!("XMM{n}: want {:032x}, got {:032x}", w.xmm[n], g.xmm[n]));
        }
        if w.ymm_high[n] != g.ymm_high[n] {
            out.push(format!("YMM{n} high: want {:032x}, got {:032x}", w.ymm_high[n], g.ymm_high[n]));
        }
    }
    if want.memory != got.memory {
        let pointers = pointers(case);
        let differ = want.memory.iter().zip(&got.memory).enumerate();
        let differ = differ.filter(|(n, (w, g))| w != g && !pointers.iter().any(|p| p.contains(n)));
        for (n, (w, g)) in differ.take(20) {
            out.push(format!("[{:#x}]: want {w:02x}, got {g:02x}", at::DATA + n as u64));
        }
    }
    out
}

/// Where in the data area an image of the x87 unit has what AMD and Intel keep differently: the last instruction's pointers
/// and opcode, and which bits MXCSR has. Such an instruction stands alone.
fn pointers(case: &Case) -> Vec<Range<usize>> {
    let Some(x) = case.instructions().into_iter().find(|x| image(x.mnemonic()) == Some(Image::Store)) else {
        return Vec::new();
    };
    let address = x.virtual_address(0, 0, |register, _, _| {
        let r = register.full_register();
        Some(if r.is_gpr() { case.gpr[r.number()] } else { 0 })
    });
    let within = match (x.mnemonic(), x.code()) {
        (Mnemonic::Fxsave | Mnemonic::Fxsave64, _) => [6..24, 28..32],
        (_, Code::Fnstenv_m14byte | Code::Fnsave_m94byte) => [6..14, 0..0],
        _ => [12..28, 0..0],
    };
    let at = address.unwrap_or_default().wrapping_sub(at::DATA);
    let place = |r: &Range<u64>| (at.wrapping_add(r.start) as usize)..(at.wrapping_add(r.end) as usize);
    within.iter().map(place).collect()
}

/// The kernel hides from programs which of its own pages exist: P of a #PF in the upper half, and on the guard page below.
/// Which byte of an image on two pages is accessed first, is open.
fn known_error(mut raised: Raised, case: &Case) -> Raised {
    if raised.vector == 14 && case.instructions().iter().any(|x| image(x.mnemonic()).is_some()) {
        (raised.error, raised.address) = (0, 0);
    }
    if raised.vector == 14 && raised.address >= 0x7FFF_FFFF_F000 {
        raised.error |= 1;
    }
    raised
}
