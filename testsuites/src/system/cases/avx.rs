//! AVX as a system sees it (SDM Vol. 2, "Instruction Exception Specification"; Vol. 1, "Managing State Using the XSAVE
//! Feature Set").

use crate::system::{Bench, CODE, PAGE};
use trimaran_cpu::state::{cr0, cr4, gpr};

pub const CASES: super::List = &[
    ("avx_availability", avx_availability),
    ("vex_prefix_rules", vex_prefix_rules),
    ("vex_alignment", vex_alignment),
    ("upper_halves", upper_halves),
    ("xcr0_rules", xcr0_rules),
    ("xsave_of_avx_state", xsave_of_avx_state),
    ("xsavec_layout", xsavec_layout),
    ("xsave_of_pkru", xsave_of_pkru),
    ("supervisor_saving", supervisor_saving),
    ("masked_lanes_do_not_fault", masked_lanes_do_not_fault),
    ("gather_goes_on_after_a_fault", gather_goes_on_after_a_fault),
];

/// VADDPS YMM1, YMM1, YMM0; ANDN EAX, EBX, ECX.
const VADDPS: &[u8] = &[0xC5, 0xF4, 0x58, 0xC8];
const ANDN: &[u8] = &[0xC4, 0xE2, 0x60, 0xF2, 0xC1];

/// Lets AVX be used: 64-bit mode, CR4.OSXSAVE, XCR0 = `xcr0`.
fn long(xcr0: u64) -> Bench {
    let mut b = Bench::long();
    b.flat.vcpu.state.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    b.flat.vcpu.state.xcr0 = xcr0;
    b.changed();
    b
}

/// Runs instructions and a HLT; the vector and error code of an exception.
fn run(b: &mut Bench, code: &[u8]) -> Option<(u8, u64)> {
    b.flat.ram.write(CODE, code);
    b.flat.ram.write(CODE + code.len() as u64, &[0xF4]);
    b.start();
    match b.run() {
        crate::system::Outcome::Halted(_) => None,
        other => Some(other.fault()),
    }
}

fn avx_availability() {
    assert_eq!(run(&mut long(7), VADDPS), None);
    assert_eq!(run(&mut long(3), VADDPS), Some((6, 0)));
    let mut b = long(7);
    b.flat.vcpu.state.cr4 &= !cr4::OSXSAVE;
    assert_eq!(run(&mut b, VADDPS), Some((6, 0)));
    assert_eq!(run(&mut b, ANDN), None, "general registers need no OSXSAVE");
    // Neither CR0.EM nor CR4.OSFXSR counts; CR0.TS does.
    let mut b = long(7);
    b.flat.vcpu.state.cr0 |= cr0::EM;
    b.flat.vcpu.state.cr4 &= !cr4::OSFXSR;
    assert_eq!(run(&mut b, VADDPS), None);
    b.flat.vcpu.state.cr0 |= cr0::TS;
    assert_eq!(run(&mut b, VADDPS), Some((7, 0)));
    assert_eq!(run(&mut b, ANDN), None);
    // Enabled by the program itself: XSETBV(0, 7), then at once.
    let mut b = long(1);
    b.flat.vcpu.state.gpr[gpr::RAX] = 7;
    (b.flat.vcpu.state.gpr[gpr::RCX], b.flat.vcpu.state.gpr[gpr::RDX]) = (0, 0);
    assert_eq!(run(&mut b, &[&[0x0F, 0x01, 0xD1], VADDPS].concat()), None);
    // A model without.
    let mut b = Bench::of("x86-64-v2");
    assert_eq!(run(&mut b, ANDN), Some((6, 0)));
}

fn vex_prefix_rules() {
    for prefix in [0x66, 0xF2, 0xF3, 0x48, 0xF0] {
        let code = [&[prefix], VADDPS].concat();
        assert_eq!(run(&mut long(7), &code), Some((6, 0)), "{prefix:#x}");
    }
    // VEX.vvvv must be 1111b where it names nothing: VMOVAPS YMM1, YMM0; VEX.L must be 0: VMOVD.
    assert_eq!(run(&mut long(7), &[0xC5, 0xFC, 0x28, 0xC8]), None);
    assert_eq!(run(&mut long(7), &[0xC5, 0xF4, 0x28, 0xC8]), Some((6, 0)));
    assert_eq!(run(&mut long(7), &[0xC5, 0xFD, 0x6E, 0xC8]), Some((6, 0)));
    // Real and virtual-8086 mode have no VEX prefix; these bytes are LES and LDS with a register.
    let mut b = Bench::protected();
    b.flat.vcpu.state.cr0 &= !cr0::PE;
    b.flat.vcpu.state.idtr.base = 0;
    b.changed();
    b.flat.ram.write(6 * 4, &[0, 0x60, 0, 0]);
    b.flat.ram.write(0x6000, &[0xF4]);
    for n in 0..6 {
        b.flat.vcpu.state.seg[n] = trimaran_cpu::state::Segment::real(0, b.flat.vcpu.state.seg[n].attributes);
    }
    b.flat.ram.write(CODE, &[0xC4, 0xE2, 0x60, 0xF2, 0xC1, 0xF4]);
    b.start();
    let _ = b.run();
    assert_eq!(b.flat.vcpu.state.gpr[gpr::RIP], 0x6001, "not the handler of #UD");
}

fn vex_alignment() {
    // VMOVAPS YMM0, [RAX]; VMOVUPS YMM0, [RAX]; VADDPS YMM1, YMM1, [RAX]; VMOVNTDQ [RAX], YMM0.
    for (code, expected) in [
        (&[0xC5, 0xFC, 0x28, 0x00][..], Some((13, 0))),
        (&[0xC5, 0xFC, 0x10, 0x00], None),
        (&[0xC5, 0xF4, 0x58, 0x08], None),
        (&[0xC5, 0xFD, 0xE7, 0x00], Some((13, 0))),
    ] {
        let mut b = long(7);
        b.flat.vcpu.state.gpr[gpr::RAX] = PAGE + 16;
        assert_eq!(run(&mut b, code), expected, "{code:02x?}");
        b.flat.vcpu.state.gpr[gpr::RAX] = PAGE + 32;
        assert_eq!(run(&mut b, code), None, "{code:02x?}");
    }
}

fn upper_halves() {
    let mut b = long(7);
    let fill = |b: &mut Bench| b.flat.vcpu.state.zmm[1] = [1, 2, 3, 4, 0, 0, 0, 0];
    // ADDPS XMM1, XMM0 keeps them, VADDPS XMM1, XMM1, XMM0 clears them, VZEROUPPER too.
    for (code, above) in [
        (&[0x0F, 0x58, 0xC8][..], [3, 4]),
        (&[0xC5, 0xF0, 0x58, 0xC8], [0, 0]),
        (&[0xC5, 0xF8, 0x77], [0, 0]),
    ] {
        fill(&mut b);
        assert_eq!(run(&mut b, code), None);
        assert_eq!(b.flat.vcpu.state.zmm[1][2..4], above, "{code:02x?}");
    }
}

fn xcr0_rules() {
    let set = |value: u64| {
        let mut b = long(1);
        let g = &mut b.flat.vcpu.state.gpr;
        (g[gpr::RAX], g[gpr::RCX], g[gpr::RDX]) = (value, 0, 0);
        run(&mut b, &[0x0F, 0x01, 0xD1])
    };
    for good in [1, 3, 7, 0x201, 0x207] {
        assert_eq!(set(good), None, "{good}");
    }
    for bad in [0, 2, 5, 6, 9, 0xE7, 0x200, 0x205] {
        assert_eq!(set(bad), Some((13, 0)), "{bad:#x}");
    }
    // CPUID leaf 0D: sizes for XCR0 and at most; where AVX state and PKRU are.
    let ask = |xcr0: u64, sub: u64| {
        let mut b = long(xcr0);
        let g = &mut b.flat.vcpu.state.gpr;
        (g[gpr::RAX], g[gpr::RCX]) = (0xD, sub);
        assert_eq!(run(&mut b, &[0x0F, 0xA2]), None);
        let g = &b.flat.vcpu.state.gpr;
        [g[gpr::RAX], g[gpr::RBX], g[gpr::RCX]]
    };
    assert_eq!(ask(3, 0), [0x207, 576, 2696]);
    assert_eq!(ask(0x203, 0), [0x207, 2696, 2696]);
    assert_eq!(ask(3, 1)[..2], [15, 576]);
    assert_eq!(ask(0x203, 1)[1], 584, "a compacted area");
    assert_eq!(ask(0x207, 1)[1], 840);
    assert_eq!(ask(3, 2), [256, 576, 0]);
    assert_eq!(ask(3, 9), [8, 2688, 0]);
    assert_eq!(ask(3, 8), [0; 3]);
    // XGETBV(1): what is in use of XCR0.
    let mut b = long(7);
    b.flat.vcpu.state.zmm[3][2] = 1;
    b.flat.vcpu.state.gpr[gpr::RCX] = 1;
    assert_eq!(run(&mut b, &[0x0F, 0x01, 0xD0]), None);
    assert_eq!(b.flat.vcpu.state.gpr[gpr::RAX] & 6, 4);
}

/// Fills the vector registers.
fn vectors(b: &mut Bench) -> [[u64; 8]; 16] {
    for (n, r) in b.flat.vcpu.state.zmm[..16].iter_mut().enumerate() {
        *r = std::array::from_fn(|q| if q < 4 { (n * 4 + q) as u64 + 1 } else { 0 });
    }
    let mut all = [[0; 8]; 16];
    all.copy_from_slice(&b.flat.vcpu.state.zmm[..16]);
    all
}

/// Runs an instruction on the area at [PAGE] with EDX:EAX = 7.
fn with_area(b: &mut Bench, code: &[u8]) -> Option<(u8, u64)> {
    let g = &mut b.flat.vcpu.state.gpr;
    (g[gpr::RDI], g[gpr::RAX], g[gpr::RDX]) = (PAGE, 7, 0);
    run(b, code)
}

const XSAVE64: &[u8] = &[0x48, 0x0F, 0xAE, 0x27];
const XRSTOR64: &[u8] = &[0x48, 0x0F, 0xAE, 0x2F];
const XSAVEC64: &[u8] = &[0x48, 0x0F, 0xC7, 0x27];
const XSAVES64: &[u8] = &[0x48, 0x0F, 0xC7, 0x2F];
const XRSTORS64: &[u8] = &[0x48, 0x0F, 0xC7, 0x1F];

fn xsave_of_avx_state() {
    let mut b = long(7);
    let saved = vectors(&mut b);
    assert_eq!(with_area(&mut b, XSAVE64), None);
    assert_eq!(b.get(PAGE + 512, 8) & 6, 6);
    assert_eq!([b.get(PAGE + 160 + 16, 8), b.get(PAGE + 576 + 16, 8)], [saved[1][0], saved[1][2]]);
    b.flat.vcpu.state.zmm = [[0; 8]; 32];
    assert_eq!(with_area(&mut b, XRSTOR64), None);
    assert_eq!(b.flat.vcpu.state.zmm[..16], saved);
    // Only AVX from the area: the rest stays.
    b.flat.vcpu.state.zmm = [[9; 8]; 32];
    b.put(PAGE + 512, 4);
    b.flat.vcpu.state.gpr[gpr::RAX] = 4;
    assert_eq!(run(&mut b, XRSTOR64), None);
    assert_eq!(b.flat.vcpu.state.zmm[1][..4], [9, 9, saved[1][2], saved[1][3]]);
}

fn xsavec_layout() {
    let mut b = long(7);
    let saved = vectors(&mut b);
    b.put(PAGE + 512, !0);
    assert_eq!(with_area(&mut b, XSAVEC64), None);
    assert_eq!([b.get(PAGE + 512, 8) & 6, b.get(PAGE + 520, 8)], [6, 1 << 63 | 7]);
    assert_eq!(b.get(PAGE + 576, 8), saved[0][2]);
    b.flat.vcpu.state.zmm = [[0; 8]; 32];
    assert_eq!(with_area(&mut b, XRSTOR64), None);
    assert_eq!(b.flat.vcpu.state.zmm[..16], saved);
    // What is in its initial state is not in XSTATE_BV, and comes back as that.
    b.flat.vcpu.state.zmm = [[0; 8]; 32];
    b.flat.vcpu.state.mxcsr = 0x1F80;
    assert_eq!(with_area(&mut b, XSAVEC64), None);
    assert_eq!(b.get(PAGE + 512, 8) & 6, 0);
    vectors(&mut b);
    b.flat.vcpu.state.mxcsr = 0x3F80;
    assert_eq!(with_area(&mut b, XRSTOR64), None);
    assert_eq!((b.flat.vcpu.state.zmm[5], b.flat.vcpu.state.mxcsr), ([0; 8], 0x1F80));
    // A component that the area has no room for; reserved bytes.
    b.put(PAGE + 520, 1 << 63 | 3);
    b.put(PAGE + 512, 4);
    assert_eq!(with_area(&mut b, XRSTOR64), Some((13, 0)));
    b.put(PAGE + 512, 0);
    assert_eq!(with_area(&mut b, XRSTOR64), None);
    b.put(PAGE + 560, 1);
    assert_eq!(with_area(&mut b, XRSTOR64), Some((13, 0)));
}

/// SDM Vol. 1, "PKRU State": component 9. It is saved whether CR4.PKE is set or not.
fn xsave_of_pkru() {
    const RIGHTS: u32 = 0x5555_5554;
    let all = |b: &mut Bench, code: &[u8]| {
        let g = &mut b.flat.vcpu.state.gpr;
        (g[gpr::RDI], g[gpr::RAX], g[gpr::RDX]) = (PAGE, !0, !0);
        run(b, code)
    };
    for (xcr0, save, place) in
        [(0x207, XSAVE64, 2688), (0x207, XSAVEC64, 832), (0x203, XSAVEC64, 576), (0x203, XSAVE64, 2688)]
    {
        let mut b = long(xcr0);
        b.flat.vcpu.state.pkru = RIGHTS;
        b.put(PAGE + place, !0);
        assert_eq!(all(&mut b, save), None);
        assert_eq!((b.get(PAGE + 512, 8) >> 9 & 1, b.get(PAGE + place, 8)), (1, u64::from(RIGHTS)));
        b.flat.vcpu.state.pkru = 7;
        assert_eq!(all(&mut b, XRSTOR64), None);
        assert_eq!(b.flat.vcpu.state.pkru, RIGHTS, "{place}");
        // Not among what is asked for: it stays.
        b.flat.vcpu.state.pkru = 7;
        assert_eq!(with_area(&mut b, XRSTOR64), None);
        assert_eq!(b.flat.vcpu.state.pkru, 7);
        // The initial state is 0, and not "in use".
        b.put(PAGE + 512, 0);
        assert_eq!(all(&mut b, XRSTOR64), None);
        assert_eq!(b.flat.vcpu.state.pkru, 0);
        assert_eq!(all(&mut b, save), None);
        assert_eq!(b.get(PAGE + 512, 8) >> 9 & 1, 0);
    }
    // Without bit 9 of XCR0 the component does not exist.
    let mut b = long(7);
    b.flat.vcpu.state.pkru = RIGHTS;
    assert_eq!(all(&mut b, XSAVE64), None);
    assert_eq!(b.get(PAGE + 512, 8) >> 9, 0);
    b.put(PAGE + 512, 1 << 9);
    assert_eq!(all(&mut b, XRSTOR64), Some((13, 0)));
    // New rights hold for the next instruction: XRSTOR64 [RDI]; MOV EAX, [RDI].
    let mut b = long(0x207);
    b.flat.vcpu.state.cr4 |= cr4::PKE;
    b.map_user();
    b.map(PAGE, 7 | 1 << 59);
    b.flat.ram.write(PAGE, &[0; 0xB00]);
    b.put(PAGE + 512, 1 << 9);
    b.put(PAGE + 2688, 1 << 2);
    b.put(PAGE + 24, 0x1F80);
    b.ring(3);
    assert_eq!(all(&mut b, &[XRSTOR64, &[0x8B, 0x07]].concat()), Some((14, 0x25)));
    assert_eq!(b.flat.vcpu.state.pkru, 1 << 2);
}

fn supervisor_saving() {
    let mut b = long(7);
    let saved = vectors(&mut b);
    b.flat.ram.write(PAGE, &[0; 1024]);
    // XRSTORS takes compacted areas only.
    assert_eq!(with_area(&mut b, XRSTORS64), Some((13, 0)));
    assert_eq!(with_area(&mut b, XSAVES64), None);
    b.flat.vcpu.state.zmm = [[0; 8]; 32];
    assert_eq!(with_area(&mut b, XRSTORS64), None);
    assert_eq!(b.flat.vcpu.state.zmm[..16], saved);
    // IA32_XSS exists and takes nothing but 0.
    for (value, expected) in [(0, None), (1 << 8, Some((13, 0)))] {
        let g = &mut b.flat.vcpu.state.gpr;
        (g[gpr::RCX], g[gpr::RAX], g[gpr::RDX]) = (0xDA0, value, 0);
        assert_eq!(run(&mut b, &[0x0F, 0x30]), expected);
    }
    b.map_user();
    for code in [XSAVES64, XRSTORS64] {
        b.ring(3);
        assert_eq!(with_area(&mut b, code), Some((13, 0)));
    }
}

fn masked_lanes_do_not_fault() {
    // The upper half of the operand lies on a page that is not there.
    let mut b = long(7);
    b.map(PAGE + 0x1000, 0);
    b.put(PAGE + 0xFF0, 0x1111_1111_2222_2222);
    let negative = 1 << 63 | 1 << 31;
    let at = PAGE + 0xFF0;
    // VPMASKMOVD YMM0, YMM2, [RAX]; VPMASKMOVD [RAX], YMM2, YMM0.
    for (code, error) in [(&[0xC4, 0xE2, 0x6D, 0x8C, 0x00][..], 0), (&[0xC4, 0xE2, 0x6D, 0x8E, 0x00], 2)] {
        b.flat.vcpu.state.gpr[gpr::RAX] = at;
        b.flat.vcpu.state.zmm[2] = [negative, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(run(&mut b, code), None);
        assert_eq!(b.flat.vcpu.state.zmm[0][..4], [0x1111_1111_2222_2222, 0, 0, 0]);
        b.flat.vcpu.state.zmm[2] = [0, 0, 1 << 31, 0, 0, 0, 0, 0];
        assert_eq!(run(&mut b, code), Some((14, error)));
        assert_eq!(b.flat.vcpu.state.cr2, PAGE + 0x1000);
        b.flat.vcpu.state.zmm[2] = [0; 8];
        assert_eq!(run(&mut b, code), None, "nothing is touched");
        b.flat.vcpu.state.zmm[0] = [0x1111_1111_2222_2222, 0, 0, 0, 0, 0, 0, 0];
    }
}

fn gather_goes_on_after_a_fault() {
    // VPGATHERQQ YMM0, [RAX + YMM1 * 8], YMM2: the third element is missing at first.
    const GATHER: &[u8] = &[0xC4, 0xE2, 0xED, 0x91, 0x04, 0xC8];
    let mut b = long(7);
    b.put(PAGE, 10);
    b.put(PAGE + 8, 11);
    b.put(PAGE + 0x1000, 12);
    b.map(PAGE + 0x1000, 0);
    let s = &mut b.flat.vcpu.state;
    s.gpr[gpr::RAX] = PAGE;
    s.zmm[0] = [1, 2, 3, 4, 0, 0, 0, 0];
    s.zmm[1] = [0, 1, 0x200, 0, 0, 0, 0, 0];
    s.zmm[2] = [!0, 1 << 63, !0, 0, 0, 0, 0, 0];
    assert_eq!(run(&mut b, GATHER), Some((14, 0)));
    let s = &b.flat.vcpu.state;
    assert_eq!((s.zmm[0][..4].to_vec(), s.cr2), (vec![10, 11, 3, 4], PAGE + 0x1000));
    assert_eq!(s.zmm[2][..4], [0, 0, !0, 0]);
    b.map(PAGE + 0x1000, 3);
    assert_eq!(run(&mut b, GATHER), None);
    let s = &b.flat.vcpu.state;
    assert_eq!((s.zmm[0][..4].to_vec(), s.zmm[2]), (vec![10, 11, 12, 4], [0; 8]));
    // Destination, index and mask must differ.
    assert_eq!(run(&mut b, &[0xC4, 0xE2, 0xFD, 0x91, 0x04, 0xC8]), Some((6, 0)));
}
