//! A writer for ACPI Machine Language (ACPI specification, "ACPI Machine Language Specification").
//!
//! Each function returns the bytes of one term; terms nest by being passed as `&[u8]` to the next.

/// A term, or several.
pub(super) type Aml = Vec<u8>;

const ZERO_OP: u8 = 0x00;
const ONE_OP: u8 = 0x01;
const NAME_OP: u8 = 0x08;
const BYTE_PREFIX: u8 = 0x0A;
const WORD_PREFIX: u8 = 0x0B;
const DWORD_PREFIX: u8 = 0x0C;
const SCOPE_OP: u8 = 0x10;
const BUFFER_OP: u8 = 0x11;
const PACKAGE_OP: u8 = 0x12;
const METHOD_OP: u8 = 0x14;
const DUAL_NAME_PREFIX: u8 = 0x2E;
const MULTI_NAME_PREFIX: u8 = 0x2F;
const EXT: u8 = 0x5B;
const OP_REGION_OP: u8 = 0x80;
const FIELD_OP: u8 = 0x81;
const DEVICE_OP: u8 = 0x82;
const PROCESSOR_OP: u8 = 0x83;
const LOCAL0_OP: u8 = 0x60;
const ARG0_OP: u8 = 0x68;
const STORE_OP: u8 = 0x70;
const AND_OP: u8 = 0x7B;
const OR_OP: u8 = 0x7D;
const CREATE_DWORD_FIELD_OP: u8 = 0x8A;
const IF_OP: u8 = 0xA0;
const RETURN_OP: u8 = 0xA4;

/// PkgLength: the length counts itself.
fn package_length(body: usize) -> Aml {
    if body + 1 < 0x40 {
        return vec![(body + 1) as u8];
    }
    let extra = if body + 2 < 1 << 12 {
        1
    } else if body + 3 < 1 << 20 {
        2
    } else {
        3
    };
    let total = body + 1 + extra;
    let mut bytes = vec![(extra << 6 | total & 0xF) as u8];
    bytes.extend(&(total >> 4).to_le_bytes()[..extra]);
    bytes
}

fn block(op: &[u8], body: &[u8]) -> Aml {
    [op, &package_length(body.len()), body].concat()
}

/// A NameString: segments of up to four characters between dots, after an optional `\`.
pub(super) fn path(text: &str) -> Aml {
    let (root, rest) = match text.strip_prefix('\\') {
        Some(rest) => (b"\\".as_slice(), rest),
        None => (b"".as_slice(), text),
    };
    let mut bytes = root.to_vec();
    let segments: Vec<&str> = rest.split('.').collect();
    match segments.len() {
        1 => {}
        2 => bytes.push(DUAL_NAME_PREFIX),
        count => bytes.extend([MULTI_NAME_PREFIX, count as u8]),
    }
    for segment in segments {
        let mut name = [b'_'; 4];
        for (to, from) in name.iter_mut().zip(segment.bytes()) {
            *to = from;
        }
        bytes.extend(name);
    }
    bytes
}

pub(super) fn integer(value: u32) -> Aml {
    match value {
        0 => vec![ZERO_OP],
        1 => vec![ONE_OP],
        2..=0xFF => vec![BYTE_PREFIX, value as u8],
        0x100..=0xFFFF => [&[WORD_PREFIX], &(value as u16).to_le_bytes()[..]].concat(),
        _ => [&[DWORD_PREFIX], &value.to_le_bytes()[..]].concat(),
    }
}

/// EISAID("PNPxxxx"): a compressed EISA type identifier.
pub(super) fn eisa_id(id: &[u8; 7]) -> Aml {
    let letter = |i: usize| u32::from(id[i] & 0x1F);
    let digit = |i: usize| char::from(id[i]).to_digit(16).unwrap_or(0);
    let maker = letter(0) << 10 | letter(1) << 5 | letter(2);
    let product = digit(3) << 12 | digit(4) << 8 | digit(5) << 4 | digit(6);
    integer((maker << 16 | product).swap_bytes())
}

pub(super) fn name(at: &str, value: &[u8]) -> Aml {
    [&[NAME_OP], &path(at)[..], value].concat()
}

pub(super) fn scope(at: &str, terms: &[Aml]) -> Aml {
    block(&[SCOPE_OP], &[path(at), terms.concat()].concat())
}

pub(super) fn device(at: &str, terms: &[Aml]) -> Aml {
    block(&[EXT, DEVICE_OP], &[path(at), terms.concat()].concat())
}

/// A processor object without a register block.
pub(super) fn processor(at: &str, id: u8) -> Aml {
    block(&[EXT, PROCESSOR_OP], &[path(at), vec![id, 0, 0, 0, 0, 0]].concat())
}

/// A method that is not serialized.
pub(super) fn method(at: &str, args: u8, terms: &[Aml]) -> Aml {
    block(&[METHOD_OP], &[path(at), vec![args], terms.concat()].concat())
}

pub(super) fn package(elements: &[Aml]) -> Aml {
    block(&[PACKAGE_OP], &[vec![elements.len() as u8], elements.concat()].concat())
}

/// An operation region in PCI configuration space.
pub(super) fn pci_config_region(at: &str, offset: u8, length: u8) -> Aml {
    const PCI_CONFIG: u8 = 2;
    [&[EXT, OP_REGION_OP], &path(at)[..], &[PCI_CONFIG], &integer(offset.into()), &integer(length.into())]
        .concat()
}

/// Fields of one byte each, accessed as bytes.
pub(super) fn byte_fields(region: &str, names: &[&str]) -> Aml {
    const BYTE_ACC: u8 = 1;
    let mut body = path(region);
    body.push(BYTE_ACC);
    for field in names {
        body.extend(path(field));
        body.push(8);
    }
    block(&[EXT, FIELD_OP], &body)
}

pub(super) fn arg(number: u8) -> Aml {
    vec![ARG0_OP + number]
}

pub(super) fn local(number: u8) -> Aml {
    vec![LOCAL0_OP + number]
}

pub(super) fn store(value: &[u8], target: &[u8]) -> Aml {
    [&[STORE_OP], value, target].concat()
}

pub(super) fn and(left: &[u8], right: &[u8], target: &[u8]) -> Aml {
    [&[AND_OP], left, right, target].concat()
}

pub(super) fn or(left: &[u8], right: &[u8], target: &[u8]) -> Aml {
    [&[OR_OP], left, right, target].concat()
}

/// No target: the result is only the term's value.
pub(super) const NOWHERE: &[u8] = &[ZERO_OP];

pub(super) fn create_dword_field(buffer: &[u8], index: u32, field: &str) -> Aml {
    [&[CREATE_DWORD_FIELD_OP], buffer, &integer(index), &path(field)].concat()
}

pub(super) fn if_(predicate: &[u8], terms: &[Aml]) -> Aml {
    block(&[IF_OP], &[predicate, &terms.concat()].concat())
}

pub(super) fn return_(value: &[u8]) -> Aml {
    [&[RETURN_OP], value].concat()
}

/// A resource template: descriptors and their end tag (ACPI specification, "Resource Data Types for ACPI").
pub(super) fn resources(descriptors: &[Aml]) -> Aml {
    let bytes = [descriptors.concat(), vec![0x79, 0]].concat();
    block(&[BUFFER_OP], &[integer(bytes.len() as u32), bytes].concat())
}

/// I/O Port Descriptor, 16-bit decode.
pub(super) fn io(base: u16, length: u8) -> Aml {
    let [low, high] = base.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, length]
}

/// IRQ Descriptor: edge, active high, not shared.
pub(super) fn irq(line: u8) -> Aml {
    let [low, high] = (1_u16 << (line & 15)).to_le_bytes();
    vec![0x22, low, high]
}

/// DMA Descriptor: compatibility mode, 8-bit.
pub(super) fn dma(channel: u8) -> Aml {
    vec![0x2A, 1 << (channel & 7), 0]
}

/// 32-bit Fixed Memory Range Descriptor.
pub(super) fn memory32_fixed(base: u32, length: u32, writable: bool) -> Aml {
    [&[0x86, 9, 0, writable.into()], &base.to_le_bytes()[..], &length.to_le_bytes()].concat()
}

/// Extended Interrupt Descriptor: level, active high, shared, consumer.
pub(super) fn interrupts(lines: &[u8]) -> Aml {
    let length = (2 + 4 * lines.len() as u16).to_le_bytes();
    let mut bytes = vec![0x89, length[0], length[1], 0b1001, lines.len() as u8];
    bytes.extend(lines.iter().flat_map(|&line| u32::from(line).to_le_bytes()));
    bytes
}

/// What an address space descriptor of a bridge hands on.
pub(super) enum Window {
    BusNumbers,
    Io,
    /// Memory that may be cached, or not.
    Memory {
        cacheable: bool,
    },
}

/// Word or DWord Address Space Descriptor of a producer, fixed at both ends.
pub(super) fn window(window: &Window, first: u32, last: u32) -> Aml {
    const MIN_AND_MAX_FIXED: u8 = 0b1100;
    let (kind, flags, wide) = match window {
        Window::Memory { cacheable } => (0, 1 | u8::from(*cacheable) << 1, true),
        Window::Io => (1, 3, false),
        Window::BusNumbers => (2, 0, false),
    };
    // Granularity, minimum, maximum, translation, length.
    let fields = [0, first, last, 0, last.wrapping_sub(first).wrapping_add(1)];
    let width = if wide { 4 } else { 2 };
    let values: Aml = fields.iter().flat_map(|field| field.to_le_bytes().into_iter().take(width)).collect();
    let tag = if wide { 0x87 } else { 0x88 };
    let length = (3 + values.len() as u16).to_le_bytes();
    [&[tag, length[0], length[1], kind, MIN_AND_MAX_FIXED, flags], &values[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_lengths_count_themselves() {
        assert_eq!(package_length(0x3E), [0x3F]);
        assert_eq!(package_length(0x3F), [0x41, 0x04]);
        assert_eq!(package_length(0xFFD), [0x4F, 0xFF]);
        assert_eq!(package_length(0xFFE), [0x81, 0x00, 0x01]);
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(eisa_id(b"PNP0A03"), [0x0C, 0x41, 0xD0, 0x0A, 0x03]);
        assert_eq!(path("\\_S5"), b"\\_S5_");
        assert_eq!(path("\\_SB.PCI0.ISA"), b"\\\x2F\x03_SB_PCI0ISA_");
        assert_eq!(integer(0x1234), [0x0B, 0x34, 0x12]);
    }
}
