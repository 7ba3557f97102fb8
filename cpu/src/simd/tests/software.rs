//! The portable floating-point unit against the host's.

use super::{operand, random_mxcsr};
use crate::simd::checks::mxcsr;
use crate::simd::{host_sse, soft_sse};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

type Binary = fn(u128, u128, u32) -> (u128, u32);

/// The portable unit gives what the host's does.
#[test]
fn software_agrees_with_host() {
    let mut rng = SmallRng::seed_from_u64(2);
    let mut failures = Vec::new();
    macro_rules! same {
        ($($name:ident)*) => {$(
            let (host, soft): (Binary, Binary) = (host_sse::$name, soft_sse::$name);
            for _ in 0..20_000 {
                let (a, b, mut m) = (operand(&mut rng), operand(&mut rng), random_mxcsr(&mut rng));
                if rng.random_range(0..4) == 0 {
                    m &= !mxcsr::UM;
                }
                let (want, got) = (host(a, b, m), soft(a, b, m));
                // With an unmasked underflow the flags count, not the result.
                let hidden = m & mxcsr::UM == 0 && want.1 & mxcsr::UE != 0;
                if want.1 != got.1 || want.0 != got.0 && !hidden {
                    failures.push(format!("{} {a:x} {b:x} mxcsr {m:x}: want {want:x?} got {got:x?}", stringify!($name)));
                    break;
                }
            }
        )*};
    }
    same! {
        addps addss addpd addsd subps subss subpd subsd mulps mulss mulpd mulsd divps divss divpd divsd
        sqrtps sqrtss sqrtpd sqrtsd minps minss minpd minsd maxps maxss maxpd maxsd
        haddps haddpd hsubps hsubpd addsubps addsubpd
        cvtps2pd cvtpd2ps cvtss2sd cvtsd2ss cvtdq2ps cvtdq2pd cvtps2dq cvttps2dq cvtpd2dq cvttpd2dq
    }
    macro_rules! call_with {
        ($unit:ident $name:ident, $a:ident, $b:ident, $p:ident, $q:ident, $m:ident, "predicate") => {
            $unit::$name($p, $a, $b, $m)
        };
        ($unit:ident $name:ident, $a:ident, $b:ident, $p:ident, $q:ident, $m:ident, "ordered") => {
            $unit::$name($a, $b, $m)
        };
        ($unit:ident $name:ident, $a:ident, $b:ident, $p:ident, $q:ident, $m:ident, "from") => {
            $unit::$name($a, $q, $m)
        };
        ($unit:ident $name:ident, $a:ident, $b:ident, $p:ident, $q:ident, $m:ident, "to") => {
            $unit::$name($b, $m)
        };
    }
    macro_rules! all {
        ($kind:tt: $($name:ident)*) => {$(
            for _ in 0..20_000 {
                let (a, b, m) = (operand(&mut rng), operand(&mut rng), random_mxcsr(&mut rng));
                let (p, q) = (rng.random::<u8>() & 7, b as u64);
                let _ = (a, p, q);
                let host = call_with!(host_sse $name, a, b, p, q, m, $kind);
                let soft = call_with!(soft_sse $name, a, b, p, q, m, $kind);
                if host != soft {
                    failures.push(format!("{} {p} {a:x} {b:x} mxcsr {m:x}: {host:x?} {soft:x?}", stringify!($name)));
                    break;
                }
            }
        )*};
    }
    all!("predicate": cmpps cmpss cmppd cmpsd);
    all!("ordered": comiss comisd ucomiss ucomisd);
    all!("from": cvtsi2ss_d cvtsi2ss_q cvtsi2sd_d cvtsi2sd_q);
    all!("to": cvtss2si_d cvtss2si_q cvtsd2si_d cvtsd2si_q cvttss2si_d cvttss2si_q cvttsd2si_d cvttsd2si_q);
    macro_rules! fused {
        ($($name:ident)*) => {$(
            for _ in 0..40_000 {
                let (a, b, mut c) = (operand(&mut rng), operand(&mut rng), operand(&mut rng));
                let mut m = random_mxcsr(&mut rng);
                if rng.random_range(0..4) == 0 {
                    m &= !mxcsr::UM;
                }
                // Products that the addend nearly cancels.
                if rng.random() {
                    let product = host_sse::$name(a, b, 0, 0x1F80).0;
                    c = product ^ 0x8000_0000_0000_0000_8000_0000_8000_0000 ^ rng.random_range(0..4u128);
                }
                let (want, got) = (host_sse::$name(a, b, c, m), soft_sse::$name(a, b, c, m));
                let hidden = m & mxcsr::UM == 0 && want.1 & mxcsr::UE != 0;
                if want.1 != got.1 || want.0 != got.0 && !hidden {
                    failures.push(format!("{} {a:x} {b:x} {c:x} mxcsr {m:x}: {want:x?} {got:x?}", stringify!($name)));
                    break;
                }
            }
        )*};
    }
    if std::is_x86_feature_detected!("fma") {
        fused! {
            fmaddps fmaddpd fmsubps fmsubpd fnmaddps fnmaddpd fnmsubps fnmsubpd
            fmaddsubps fmaddsubpd fmsubaddps fmsubaddpd
        }
    } else {
        println!("skipped: the host has no FMA");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
