//! What is run: one instruction each, then an endless jump; far transfers come to another.

use super::*;

pub struct Scene {
    pub name: &'static str,
    pub bits: u32,
    pub cpl: u8,
    pub code: &'static [u8],
    /// Registers and memory. EBX, RBX is four bytes before the border of the two pages of operands.
    pub set: fn(&mut Bench),
}

/// Selectors on the GDT's second page; none of them is marked accessed.
const DATA0: u16 = 0x100;
const DATA3: u16 = 0x10B;
pub const CODE0: u16 = 0x110;
const CODE3: u16 = 0x11B;
const LDT: u16 = 0x120;
pub const TASK: u16 = 0x130;
const GATE: u16 = 0x143;
/// The first entries of the LDT.
const LOCAL_DATA: u16 = 0x0C;
const LOCAL_CODE: u16 = 0x14;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;

/// Fills both tables, and the gates that scenes go through.
pub fn descriptors(b: &Bench) {
    let present = attr::P | attr::S | attr::RW | attr::G;
    let size = if b.long { attr::L } else { attr::DB };
    let code = |dpl: u16| descriptor(0, 0xF_FFFF, present | attr::CODE | size | dpl << 5);
    let data = |dpl: u16| descriptor(0, 0xF_FFFF, present | attr::DB | dpl << 5);
    let put = |selector: u16, value: u64| b.put(GDT_BASE + u64::from(selector & !7), value);
    put(DATA0, data(0));
    put(DATA3, data(3));
    put(CODE0, code(0));
    put(CODE3, code(3));
    put(LDT, descriptor(LDT_PAGE as u32, 0xFFF, attr::P | 2));
    put(TASK, descriptor(TASK_PAGE as u32, 0x67, attr::P | 9));
    // Two parameters, which 64-bit gates have not.
    let (kind, count) = (12, if b.long { 0 } else { 2 });
    put(GATE, gate(CODE0, TARGET as u32, kind, 3, count));
    b.put(LDT_PAGE + 8, data(0));
    b.put(LDT_PAGE + 16, code(0));
    // Vectors 0 to 13 go to code on the second page, too, and programs may call them.
    for vector in 0..14 {
        let low = gate(CODE0, (STUBS + vector) as u32, 14, 3, 0);
        b.put(IDT_BORDER - (14 - vector) * if b.long { 16 } else { 8 }, low);
    }
}

fn set(b: &mut Bench, register: usize, value: u64) {
    b.flat.vcpu.state.gpr[register] = value;
}

/// AX names a descriptor.
fn names<const SELECTOR: u16>(b: &mut Bench) {
    set(b, RAX, SELECTOR.into());
}

/// A word at [RBX + 3], across the border, names a descriptor.
fn word<const SELECTOR: u16>(b: &mut Bench) {
    set(b, RBX, DATA_BORDER - 1);
    b.flat.ram.write(DATA_BORDER - 1, &SELECTOR.to_le_bytes());
}

/// A far pointer at [RBX]: the offset, on the first page, and the selector on the second.
fn pointer<const SELECTOR: u16>(b: &mut Bench) {
    b.put(DATA_BORDER - 4, TARGET | u64::from(SELECTOR) << 32);
}

/// What RETF and IRET find: across the border of a page of the stack and what is below it.
fn returns<const CODE: u16, const DATA: u16, const FLAGS: bool>(b: &mut Bench) {
    let size = if b.long { 8 } else { 4 };
    let at = STACK - 5 * size;
    let mut values = vec![TARGET, u64::from(CODE)];
    values.extend(FLAGS.then_some(0x46));
    values.extend([STACK - 0x800, u64::from(DATA)]);
    for (n, value) in values.iter().enumerate() {
        b.flat.ram.write(at + n as u64 * size, &value.to_le_bytes()[..size as usize]);
    }
    set(b, RSP, at);
}

fn nothing(_: &mut Bench) {}

/// A save area that lies on both pages.
fn area(b: &mut Bench) {
    set(b, RBX, DATA_BORDER - 0x100);
    set(b, RAX, 7);
    set(b, RDX, 0);
    let s = &mut b.flat.vcpu.state;
    (s.zmm[3], s.mxcsr) = ([1, 2, 3, 4, 0, 0, 0, 0], 0x1FA0);
    s.x87.registers[2].significand = 0x8000_0000_0000_0001;
}

/// The same with an image in it.
fn image(b: &mut Bench) {
    area(b);
    let at = DATA_BORDER - 0x100;
    b.put(at, 0x37F);
    b.put(at + 24, 0x1F80);
    b.put(at + 512, 3);
    b.put(at + 160, 77);
}

/// An environment or x87 image that lies on both pages.
fn x87(b: &mut Bench) {
    set(b, RBX, DATA_BORDER - 20);
    b.put(DATA_BORDER - 20, 0x37F);
    b.flat.vcpu.state.x87.control = 0x37F;
}

fn strings(b: &mut Bench) {
    set(b, RSI, DATA_BORDER - 2);
    set(b, RDI, DATA_BORDER - 2);
    set(b, RDX, 0x10);
    set(b, RCX, 1);
}

/// A task of 32 bits.
pub fn task(b: &mut Bench) {
    let flat = u64::from(sel::DATA0);
    let code = u64::from(sel::CODE0);
    for (offset, value) in [
        (0x1C, TABLES),
        (0x20, TARGET),
        (0x24, 2),
        (0x38, STACK),
        (0x48, flat),
        (0x4C, code),
        (0x50, flat),
        (0x54, flat),
    ] {
        b.flat.ram.write(TASK_PAGE + offset, &(value as u32).to_le_bytes());
    }
    pointer::<TASK>(b);
}

const fn long(name: &'static str, cpl: u8, code: &'static [u8], set: fn(&mut Bench)) -> Scene {
    Scene { name, bits: 64, cpl, code, set }
}

const fn protected(name: &'static str, cpl: u8, code: &'static [u8], set: fn(&mut Bench)) -> Scene {
    Scene { name, bits: 32, cpl, code, set }
}

/// 16-bit code in virtual-8086 mode with IOPL 3: its data segments reach the border of the operands from 1 MiB on.
const fn virtual8086(name: &'static str, code: &'static [u8], set: fn(&mut Bench)) -> Scene {
    Scene { name, bits: 16, cpl: 3, code, set }
}

/// Enters virtual-8086 mode before what a scene sets.
pub fn enter_virtual8086(b: &mut Bench) {
    let s = &mut b.flat.vcpu.state;
    s.rflags |= RFlags::VM | RFlags::IOPL;
    s.cpl = 3;
    for n in [seg::ES, seg::CS, seg::SS, seg::DS, seg::FS, seg::GS] {
        let selector = if matches!(n, seg::CS | seg::SS) { 0 } else { HIGH };
        s.seg[n] = Segment::real(selector, 0xF3);
    }
    for register in [RBX, RSI, RDI] {
        set(b, register, DATA_BORDER - 2 - (u64::from(HIGH) << 4));
    }
    set(b, RDX, 0x10);
    set(b, RCX, 1);
    b.flat.ram.write(LOW_TARGET.into(), &[0xEB, 0xFE]);
}

/// Segment of the operands of virtual-8086 mode.
const HIGH: u16 = 0xFFFF;
/// Code that its far transfers come to, in segment 0.
const LOW_TARGET: u16 = 0x8200;

/// What RETF and IRET find in virtual-8086 mode; POP takes the first.
fn words(b: &mut Bench) {
    for (n, value) in [LOW_TARGET, 0, 0x3046].into_iter().enumerate() {
        b.flat.ram.write(STACK - 6 + n as u64 * 2, &value.to_le_bytes());
    }
    set(b, RSP, STACK - 6);
}

pub const SCENES: &[Scene] = &[
    long("MOV DS, AX", 0, &[0x8E, 0xD8], names::<DATA0>),
    long("MOV SS, AX", 0, &[0x8E, 0xD0], names::<DATA0>),
    long("MOV DS, AX of the LDT", 0, &[0x8E, 0xD8], names::<LOCAL_DATA>),
    long("MOV DS, m16", 0, &[0x8E, 0x1B], word::<DATA0>),
    long("MOV m16, DS", 0, &[0x8C, 0x1B], word::<0>),
    long("POP FS", 3, &[0x0F, 0xA1], |b| {
        b.put(STACK - 8, DATA3.into());
        set(b, RSP, STACK - 8);
    }),
    long("PUSH FS", 3, &[0x0F, 0xA0], nothing),
    long("LSS", 0, &[0x0F, 0xB2, 0x23], pointer::<DATA0>),
    long("LFS", 3, &[0x0F, 0xB4, 0x03], pointer::<DATA3>),
    long("LGS", 0, &[0x0F, 0xB5, 0x03], pointer::<LOCAL_DATA>),
    long("LAR", 3, &[0x0F, 0x02, 0xC8], names::<DATA3>),
    long("LSL m16", 0, &[0x0F, 0x03, 0x0B], word::<DATA0>),
    long("VERR", 3, &[0x0F, 0x00, 0xE0], names::<DATA3>),
    long("VERW m16", 0, &[0x0F, 0x00, 0x2B], word::<DATA0>),
    long("LLDT", 0, &[0x0F, 0x00, 0xD0], names::<LDT>),
    long("LLDT m16", 0, &[0x0F, 0x00, 0x13], word::<LDT>),
    long("LTR", 0, &[0x0F, 0x00, 0xD8], names::<TASK>),
    long("STR m16", 0, &[0x0F, 0x00, 0x0B], word::<0>),
    long("SLDT m16", 3, &[0x0F, 0x00, 0x03], word::<0>),
    long("LGDT", 0, &[0x0F, 0x01, 0x13], |b| {
        b.put(DATA_BORDER - 4, 0x2FF | GDT_BASE << 16);
    }),
    long("LIDT", 0, &[0x0F, 0x01, 0x1B], |b| {
        let base = b.flat.vcpu.state.idtr.base;
        b.put(DATA_BORDER - 4, 0xFFF | base << 16);
    }),
    long("SGDT", 3, &[0x0F, 0x01, 0x03], nothing),
    long("SIDT", 0, &[0x0F, 0x01, 0x0B], nothing),
    long("SMSW m16", 3, &[0x0F, 0x01, 0x23], word::<0>),
    long("LMSW m16", 0, &[0x0F, 0x01, 0x33], word::<0x3B>),
    long("INVPCID", 0, &[0x66, 0x0F, 0x38, 0x82, 0x03], |b| set(b, RAX, 2)),
    long("CALL FAR", 0, &[0xFF, 0x1B], pointer::<CODE0>),
    long("CALL FAR by the LDT", 0, &[0xFF, 0x1B], pointer::<LOCAL_CODE>),
    long("JMP FAR", 0, &[0xFF, 0x2B], pointer::<CODE0>),
    long("JMP FAR at CPL 3", 3, &[0xFF, 0x2B], pointer::<CODE3>),
    long("CALL FAR through a gate", 3, &[0xFF, 0x1B], pointer::<GATE>),
    long("CALL FAR through a gate of the same level", 0, &[0xFF, 0x1B], pointer::<0x140>),
    long("RETF", 0, &[0x48, 0xCB], returns::<CODE0, DATA0, false>),
    long("RETF to CPL 3", 0, &[0x48, 0xCB], returns::<CODE3, DATA3, false>),
    long("IRETQ", 0, &[0x48, 0xCF], returns::<CODE0, DATA0, true>),
    long("IRETQ to CPL 3", 0, &[0x48, 0xCF], returns::<CODE3, DATA3, true>),
    long("INT", 3, &[0xCD, 0x05], nothing),
    long("INT at CPL 0", 0, &[0xCD, 0x05], nothing),
    long("INT3", 3, &[0xCC], nothing),
    long("INT1", 0, &[0xF1], nothing),
    long("#UD", 3, &[0x0F, 0x0B], nothing),
    long("#DE", 0, &[0xF7, 0xF1], |b| set(b, RCX, 0)),
    long("#GP", 3, &[0xF4], nothing),
    long("#NP of a segment", 0, &[0x8E, 0xD8], |b| {
        names::<DATA0>(b);
        b.flat.ram.write(GDT_BASE + 0x105, &[0x12]);
    }),
    long("IN", 3, &[0xEC], |b| set(b, RDX, 0x10)),
    long("OUT", 3, &[0xEF], |b| set(b, RDX, 0x10)),
    long("INSD", 3, &[0x6D], strings),
    long("OUTSD", 3, &[0x6F], strings),
    long("REP INSW", 0, &[0xF3, 0x66, 0x6D], |b| {
        strings(b);
        set(b, RDI, DATA_BORDER - 1);
    }),
    long("PUSHFQ", 3, &[0x9C], nothing),
    long("POPFQ", 3, &[0x9D], |b| {
        b.put(STACK - 8, 0x8D7);
        set(b, RSP, STACK - 8);
    }),
    long("FXSAVE", 3, &[0x0F, 0xAE, 0x03], area),
    long("FXRSTOR", 3, &[0x0F, 0xAE, 0x0B], image),
    long("XSAVE", 0, &[0x0F, 0xAE, 0x23], area),
    long("XSAVEOPT", 0, &[0x0F, 0xAE, 0x33], area),
    long("XSAVEC", 3, &[0x0F, 0xC7, 0x23], area),
    long("XSAVES", 0, &[0x0F, 0xC7, 0x2B], area),
    long("XRSTOR", 3, &[0x0F, 0xAE, 0x2B], image),
    long("FNSAVE", 3, &[0xDD, 0x33], x87),
    long("FRSTOR", 3, &[0xDD, 0x23], x87),
    long("FNSTENV", 3, &[0xD9, 0x33], x87),
    long("FLDENV", 3, &[0xD9, 0x23], x87),
    protected("LES", 3, &[0xC4, 0x03], pointer::<DATA3>),
    protected("LDS", 0, &[0xC5, 0x03], pointer::<DATA0>),
    protected("LSS", 0, &[0x0F, 0xB2, 0x23], pointer::<LOCAL_DATA>),
    protected("PUSHAD", 3, &[0x60], nothing),
    protected("POPAD", 3, &[0x61], |b| set(b, RSP, STACK - 32)),
    protected("BOUND", 3, &[0x62, 0x03], |b| b.put(DATA_BORDER - 4, 0x7FFF_FFFF << 32)),
    protected("BOUND out of range", 0, &[0x62, 0x03], |b| set(b, RAX, 5)),
    protected("ARPL m16", 3, &[0x63, 0x03], |b| {
        word::<0x100>(b);
        set(b, RAX, 3);
    }),
    protected("ENTER", 3, &[0xC8, 8, 0, 2], |b| set(b, 5, STACK - 16)),
    protected("CALL FAR, immediate", 0, &[0x9A, 0, 0, 0x11, 0, 0x10, 1], nothing),
    protected("JMP FAR", 3, &[0xFF, 0x2B], pointer::<CODE3>),
    protected("CALL FAR through a gate with parameters", 3, &[0xFF, 0x1B], |b| {
        pointer::<GATE>(b);
        b.put(STACK - 8, 0x2222_2222_1111_1111);
        set(b, RSP, STACK - 8);
    }),
    protected("RETF to CPL 3", 0, &[0xCA, 0, 0], returns::<CODE3, DATA3, false>),
    protected("IRETD to CPL 3", 0, &[0xCF], returns::<CODE3, DATA3, true>),
    protected("IRETD", 0, &[0xCF], returns::<CODE0, DATA0, true>),
    protected("INT", 0, &[0xCD, 0x05], nothing),
    protected("INT from CPL 3", 3, &[0xCD, 0x05], nothing),
    protected("#GP", 0, &[0x8E, 0xD8], names::<0x2F0>),
    protected("JMP to a task", 0, &[0xFF, 0x2B], task),
    protected("CALL to a task", 0, &[0xFF, 0x1B], task),
    protected("IRETD to a task", 0, &[0xCF], |b| {
        task(b);
        b.flat.ram.write(GDT_BASE + u64::from(TASK) + 5, &[0x8B]);
        b.flat.ram.write(TSS_BASE, &TASK.to_le_bytes());
        b.flat.vcpu.state.rflags.insert(RFlags::NT);
    }),
    protected("INT through a task gate", 0, &[0xCD, 0x05], |b| {
        task(b);
        b.put(IDT_BORDER - 9 * 8, gate(TASK, 0, 5, 3, 0));
    }),
    protected("POP DS", 3, &[0x1F], |b| {
        b.put(STACK - 4, DATA3.into());
        set(b, RSP, STACK - 4);
    }),
    protected("CMPXCHG8B", 3, &[0x0F, 0xC7, 0x0B], nothing),
    virtual8086("MOV m16 in V86", &[0x89, 0x47, 1], nothing),
    virtual8086("PUSH m16 in V86", &[0xFF, 0x77, 1], nothing),
    virtual8086("POP m16 in V86", &[0x8F, 0x47, 1], words),
    virtual8086("MOVSD in V86", &[0x66, 0xA5], nothing),
    virtual8086("REP CMPSW in V86", &[0xF3, 0xA7], nothing),
    virtual8086("LES in V86", &[0xC4, 0x07], nothing),
    virtual8086("BOUND in V86", &[0x62, 0x07], |b| b.put(DATA_BORDER - 2, 0x7FFF_0000)),
    virtual8086("PUSHA in V86", &[0x60], nothing),
    virtual8086("ENTER in V86", &[0xC8, 8, 0, 2], |b| set(b, 5, STACK - 8)),
    virtual8086("CALL FAR m in V86", &[0xFF, 0x1F], |b| {
        b.put(DATA_BORDER - 2, LOW_TARGET.into());
    }),
    virtual8086("RETF in V86", &[0xCB], words),
    virtual8086("IRET in V86", &[0xCF], words),
    virtual8086("INT in V86", &[0xCD, 0x05], nothing),
    virtual8086("INT3 in V86", &[0xCC], nothing),
    virtual8086("#UD in V86", &[0x0F, 0x0B], nothing),
    virtual8086("#GP in V86", &[0xF4], nothing),
    virtual8086("IN in V86", &[0xEC], nothing),
    virtual8086("OUTSW in V86", &[0x6F], nothing),
    virtual8086("REP INSW in V86", &[0xF3, 0x6D], nothing),
];
