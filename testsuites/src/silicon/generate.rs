//! Random cases by seed.
//!
//! Consecutive seeds are a *family*: the same code, drawn once and translated once, with other values in registers and
//! memory each time. The family's number picks the form of its first instruction, so that N families give each of the
//! F forms N / F turns, however rare its encodings are; what follows it is any form. One family of 64 is one of the few
//! instructions that load or store images, alone. Operands are random, then steered
//! so that memory operands mostly meet the data area and its edges.

use super::case::{Case, at};
use super::forms::{Forms, Template, disputed, excluded};
use super::steer::{Aims, aim_branches, steer};
use super::values;
use iced_x86::{Code, Decoder, DecoderOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// Seeds that share their code.
pub const FAMILY: u64 = 32;

/// Families with this remainder, divided by 64, have instructions with images of the x87 unit.
const IMAGES: u64 = 40;

/// Draws cases by seed.
pub struct Generator {
    forms: Forms,
    read_only: Vec<u8>,
    family: Option<Family>,
}

/// What the cases of a family have in common.
struct Family {
    number: u64,
    case: Case,
    aims: Aims,
}

impl Generator {
    /// `only`: prefix of iced's names of the forms to draw from, in lower case.
    pub fn new(only: Option<&str>) -> Self {
        let mut rng = SmallRng::seed_from_u64(8);
        let read_only = (0..at::DATA_BYTES - at::WRITABLE_BYTES).map(|_| rng.random()).collect();
        Generator { forms: Forms::new(only), read_only, family: None }
    }

    /// The forms that are drawn.
    pub fn codes(&self) -> impl Iterator<Item = Code> {
        self.forms.drawn.iter().chain(&self.forms.images).map(|f| f.0)
    }

    /// Forms that are never drawn, and why.
    pub fn left_out(&self) -> &BTreeMap<String, &'static str> {
        &self.forms.left_out
    }

    /// The case of a seed.
    pub fn case(&mut self, seed: u64) -> Case {
        let number = seed / FAMILY;
        let family = match self.family.take() {
            Some(family) if family.number == number => family,
            _ => self.family(number),
        };
        let mut case = family.case.clone();
        case.seed = seed;
        // Not the family's numbers once more.
        family.aims.vary(&mut SmallRng::seed_from_u64(!seed), &mut case);
        self.family = Some(family);
        case
    }

    /// Draws the values of a seed for code that wants nothing of them.
    pub fn values(&self, seed: u64, case: &mut Case) {
        case.seed = seed;
        Aims::default().vary(&mut SmallRng::seed_from_u64(!seed), case);
    }

    fn family(&self, number: u64) -> Family {
        let mut rng = SmallRng::seed_from_u64(number);
        let mut memory = vec![0; at::WRITABLE_BYTES];
        rng.fill(&mut memory[..]);
        memory.extend(&self.read_only);
        let gpr = std::array::from_fn(|_| values::integer(&mut rng));
        let floating = values::floating(&mut rng);
        let mut case = Case { seed: number * FAMILY, code: Vec::new(), gpr, rflags: 0x202, floating, memory };
        let Forms { drawn, images, .. } = &self.forms;
        let alone = drawn.is_empty() || number % 64 == IMAGES && !images.is_empty();
        let (forms, turn) = if alone { (images, number / 64) } else { (drawn, number) };
        let count = [1, 1, 1, 2, 3, 4, 6, 8][rng.random_range(0..8)];
        let count = if alone { 1 } else { count };
        let mut aims = Aims::default();
        let mut ip = at::CODE;
        for n in 0..count {
            let first = (n == 0).then(|| (turn % forms.len().max(1) as u64) as usize);
            let bytes = instruction(forms, &mut rng, first, ip, &mut case, &mut aims);
            let x = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE).decode();
            ip += bytes.len() as u64;
            case.code.push(bytes);
            if x.rflags_undefined() != 0 && n + 1 < count {
                // CMP RSP, imm32: what follows may not see undefined flags.
                let mut cmp = vec![0x48, 0x81, 0xFC];
                cmp.extend((at::DATA as u32 + rng.random_range(0..0x3000)).to_le_bytes());
                ip += cmp.len() as u64;
                case.code.push(cmp);
            }
        }
        aim_branches(number, &mut case);
        Family { number, case, aims }
    }
}

/// An instruction of a form, or of any.
fn instruction(
    forms: &[(Code, Vec<Template>)],
    rng: &mut SmallRng,
    form: Option<usize>,
    ip: u64,
    case: &mut Case,
    aims: &mut Aims,
) -> Vec<u8> {
    let any = |rng: &mut SmallRng| rng.random_range(0..forms.len().max(1));
    // A form whose templates rarely fit gets many tries; then others stand in for it.
    for turn in 0..2000 {
        let form = form.filter(|_| turn < 100).unwrap_or_else(|| any(rng));
        let Some((code, templates)) = forms.get(form) else { break };
        for _ in 0..30 {
            let mut bytes = templates[rng.random_range(0..templates.len())].clone();
            let modrm = bytes.len() - 1;
            match rng.random_range(0..4) {
                0 => {}
                1 => bytes[modrm] = rng.random(),
                2 => bytes[modrm] = bytes[modrm] & 0x38 | rng.random::<u8>() & 0xC7,
                _ => bytes[modrm] = bytes[modrm] & 0x38 | rng.random::<u8>() & 7 | 0xC0,
            }
            while bytes.len() < 18 {
                bytes.push(if rng.random_ratio(1, 3) { rng.random_range(0..9) } else { rng.random() });
            }
            let mut decoder = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE);
            let x = decoder.decode();
            if x.code() != *code || excluded(&x).is_some() || disputed(&x, &bytes).is_some() {
                continue;
            }
            let offsets = decoder.get_constant_offsets(&x);
            bytes.truncate(x.len());
            let before = aims.clone();
            steer(rng, &x, &offsets, &mut bytes, case, aims);
            let y = Decoder::with_ip(64, &bytes, ip, DecoderOptions::NONE).decode();
            if y.code() == *code {
                return bytes;
            }
            *aims = before;
        }
    }
    vec![0x90]
}
