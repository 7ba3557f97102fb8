//! A small assembler over iced's encoder: the lengths of what it has put are kept, so that the guest's exception
//! handler can step over an instruction, and places inside instructions can be named, so that programs can patch them.

use iced_x86::{Code, ConstantOffsets, Encoder, Instruction};

/// A place that may not be known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

#[derive(Clone, Copy)]
enum Kind {
    /// A branch displacement of so many bytes.
    Relative(usize),
    /// An address of 4 or 8 bytes, moved by a constant.
    Absolute(usize, u64),
}

struct Fixup {
    at: usize,
    /// What a displacement counts from.
    from: u64,
    kind: Kind,
    label: Label,
}

/// See the head of this file.
pub struct Assembler {
    pub bits: u32,
    pub base: u64,
    encoder: Encoder,
    pub bytes: Vec<u8>,
    /// The length of the instruction that starts at each byte; 0: none does.
    pub lengths: Vec<u8>,
    labels: Vec<Option<u64>>,
    fixups: Vec<Fixup>,
}

impl Assembler {
    pub fn new(bits: u32, base: u64) -> Self {
        let (bytes, lengths, labels, fixups) = Default::default();
        Assembler { bits, base, encoder: Encoder::new(bits), bytes, lengths, labels, fixups }
    }

    pub fn here(&self) -> u64 {
        self.base.wrapping_add(self.bytes.len() as u64)
    }

    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.here());
    }

    pub fn bound(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// Where a label is.
    pub fn address(&self, label: Label) -> u64 {
        self.labels[label.0].expect("a label that was bound")
    }

    /// The encoding of an instruction that stands here.
    fn encode<T>(&mut self, x: &Instruction, then: impl FnOnce(&mut Self, &[u8]) -> T) -> Option<T> {
        let here = self.here();
        let ok = self.encoder.encode(x, here).is_ok();
        let mut bytes = self.encoder.take_buffer();
        let done = ok.then(|| then(self, &bytes));
        bytes.clear();
        self.encoder.set_buffer(bytes);
        done
    }

    /// Whether an instruction has an encoding.
    pub fn encodes(&mut self, x: &Instruction) -> bool {
        self.encode(x, |_, _| ()).is_some()
    }

    fn append(&mut self, x: &Instruction) -> Option<ConstantOffsets> {
        self.encode(x, Self::raw).map(|()| self.encoder.get_constant_offsets())
    }

    /// Puts an instruction that may have no encoding; says whether it had one.
    pub fn try_put(&mut self, x: &Instruction) -> bool {
        self.append(x).is_some()
    }

    pub fn put(&mut self, x: Result<Instruction, iced_x86::IcedError>) {
        let x = x.expect("operands that fit");
        assert!(self.try_put(&x), "no encoding of {x} for {} bits", self.bits);
    }

    /// Bytes as one instruction.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.lengths.push(bytes.len() as u8);
        self.lengths.resize(self.bytes.len(), 0);
    }

    /// A direct branch.
    pub fn branch(&mut self, code: Code, to: Label) {
        let x = Instruction::with_branch(code, self.here().wrapping_add(2)).expect("a branch");
        let start = self.bytes.len();
        let offsets = self.append(&x).expect("a branch has an encoding");
        let size = offsets.immediate_size();
        let at = start + offsets.immediate_offset();
        self.fixups.push(Fixup { at, from: self.here(), kind: Kind::Relative(size), label: to });
    }

    /// An instruction whose displacement (absolute, 4 bytes) is a label's address plus a constant.
    pub fn with_address(&mut self, x: Result<Instruction, iced_x86::IcedError>, to: Label, plus: u64) {
        let start = self.bytes.len();
        let offsets = self.append(&x.expect("operands that fit")).expect("an encoding");
        assert_eq!(offsets.displacement_size(), 4);
        let at = start + offsets.displacement_offset();
        self.fixups.push(Fixup { at, from: 0, kind: Kind::Absolute(4, plus), label: to });
    }

    /// An instruction whose immediate is a label's address plus a constant.
    pub fn with_immediate(&mut self, x: Result<Instruction, iced_x86::IcedError>, to: Label, plus: u64) {
        let start = self.bytes.len();
        let offsets = self.append(&x.expect("operands that fit")).expect("an encoding");
        let at = start + offsets.immediate_offset();
        let kind = Kind::Absolute(offsets.immediate_size(), plus);
        self.fixups.push(Fixup { at, from: 0, kind, label: to });
    }

    /// Fills in what was not known.
    pub fn finish(&mut self) {
        for fixup in std::mem::take(&mut self.fixups) {
            let target = self.address(fixup.label);
            let (size, value) = match fixup.kind {
                Kind::Relative(size) => (size, target.wrapping_sub(fixup.from)),
                Kind::Absolute(size, plus) => (size, target.wrapping_add(plus)),
            };
            if let Kind::Relative(1) = fixup.kind {
                assert!(i8::try_from(value as i64).is_ok(), "a short branch too far");
            }
            self.bytes[fixup.at..fixup.at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
}
