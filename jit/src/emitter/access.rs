//! Memory operands: linear addresses, the look-up in the TLB, and what stands behind a failed one.
//!
//! The address stands in RCX, the entry's in RAX; both are free again once the access is done. A miss jumps
//! to a stub in the cold part which names the snapshot and comes back to the look-up.
//!
//! Accesses off one base register mostly meet one page, so they share a look-up: two registers keep the page's tag and
//! addend ([`Page`]), an access compares with that tag, and where it is another page the cold part looks that up and
//! keeps it instead. A tag is only kept after an address has matched it: the tag of an empty entry could match an address
//! that selects another entry. What is kept dies with a helper, which may change the mapping; nothing else within a region
//! takes rights away.

use super::control::is_helper;
use super::encode::{Alu, Asm, Label, Mem, NONE, RAX, RCX, Reg, Sh, at, cc, field};
use super::registers::{Emitter, Page};
use super::value::Val;
use std::sync::LazyLock;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::state::{gpr, seg};
use trimaran_cpu::tlb::{ENTRIES, Entry};
use trimaran_cpu::translate::offset;

/// Set in the size of an access whose address must be a multiple of 16.
pub const ALIGNED: u8 = 0x80;

const TAG_READ: i32 = std::mem::offset_of!(Entry, read) as i32;
const TAG_WRITE: i32 = std::mem::offset_of!(Entry, write) as i32;
const ADDEND: i32 = std::mem::offset_of!(Entry, addend) as i32;
/// An entry has 1 << 5 bytes.
const ENTRY_SHIFT: u32 = size_of::<Entry>().trailing_zeros();

/// [`Page::name`] of accesses off RSP and RBP: mostly one page.
const STACK: u8 = gpr::RSP as u8;

fn name_of(base: u8) -> u8 {
    if usize::from(base) == gpr::RBP { STACK } else { base }
}

fn is_stack(kernel: Kernel) -> bool {
    use Kernel::{Call, CallIndirect, Leave, Pop, Push, Ret};
    matches!(kernel, Push | Pop | Call | CallIndirect | Leave | Ret)
}

/// Which accesses share a look-up.
#[derive(Clone, Copy)]
struct Sharing {
    name: u8,
}

/// RAX becomes the address of the TLB entry that RCX selects.
fn find_entry(a: &mut Asm) {
    // Always the same bytes.
    static FIND: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut a = Asm::default();
        a.mov(W::D, RAX, RCX);
        a.shift_imm(Sh::Shr, W::D, RAX, 10);
        a.alu(Alu::Xor, W::D, RAX, RCX);
        a.shift_imm(Sh::Shr, W::D, RAX, (12 - ENTRY_SHIFT) as u8);
        a.alu_imm(Alu::And, W::D, RAX, ((ENTRIES - 1) << ENTRY_SHIFT) as i32);
        a.alu_load(Alu::Add, W::Q, RAX, field(offset::TLB));
        a.bytes
    });
    a.bytes.extend_from_slice(&FIND);
    a.clobbered = true;
}

impl Emitter<'_> {
    /// The memory operand's offset as a host operand; constants are folded into the displacement. May use RAX.
    fn offset_operand(&mut self, i: &Insn) -> Mem {
        let mut disp = i.disp;
        let mut part = |e: &mut Self, register: u8, scale: u8| {
            if usize::from(register) == gpr::ZERO {
                return NONE;
            }
            if usize::from(register) == gpr::RIP {
                disp = disp.wrapping_add((e.delta + i64::from(i.len)) as u64);
            }
            match e.guest(usize::from(register)) {
                Val::Const(v) => {
                    disp = disp.wrapping_add(v << scale);
                    NONE
                }
                v => e.force(v, W::Q).0,
            }
        };
        let base = part(self, i.base, 0);
        let index = part(self, i.index, i.scale);
        if i.asize < 8 {
            // The address is cut to 32 bits.
            disp = disp as u32 as i32 as u64;
        }
        let disp = match i32::try_from(disp as i64) {
            Ok(disp) => disp,
            Err(_) => {
                self.asm.mov_imm(RAX, disp);
                if base == NONE {
                    return Mem { base: RAX, index, scale: i.scale, disp: 0 };
                }
                self.asm.lea(W::Q, RAX, Mem { base: RAX, index: base, scale: 0, disp: 0 });
                return Mem { base: RAX, index, scale: i.scale, disp: 0 };
            }
        };
        Mem { base, index, scale: if index == NONE { 0 } else { i.scale }, disp }
    }

    /// The memory operand's offset in `d`, cut to the address size.
    fn offset_into(&mut self, i: &Insn, d: Reg) {
        let m = self.offset_operand(i);
        let w = if i.asize == 8 { W::Q } else { W::D };
        if m.base == NONE && m.index == NONE {
            self.asm.mov_imm(d, if w == W::Q { m.disp as i64 as u64 } else { u64::from(m.disp as u32) });
        } else if m.index == NONE && m.disp == 0 {
            self.asm.mov(w, d, m.base);
        } else {
            self.asm.lea(w, d, m);
        }
        if i.asize == 2 {
            self.asm.movzx(W::W, d, d);
        }
    }

    /// As LEA gives it.
    pub fn offset_value(&mut self, i: &Insn) -> Val {
        let d = self.alloc();
        self.offset_into(i, d);
        Val::Host(d, i.asize)
    }

    /// The linear address of the memory operand in RCX.
    fn operand_address(&mut self, i: &Insn) {
        // Base and index are not needed any more then.
        let busy = self.busy;
        self.offset_into(i, RCX);
        self.busy = busy;
        if usize::from(i.seg) < seg::FLAT {
            self.asm.alu_load(Alu::Add, W::Q, RCX, field(offset::segment_base(i.seg.into())));
            if !self.code64 {
                self.fail("a segment that is not flat");
            }
        }
    }

    /// Whether an access off this base shares its look-up with others, and under which name.
    fn sharing(&self, i: &Insn) -> Option<Sharing> {
        if usize::from(i.index) != gpr::ZERO || usize::from(i.seg) < seg::FLAT || i.base >= 16 {
            return None;
        }
        let name = name_of(i.base);
        let known = self.state.pages.iter().any(|p| p.is_some_and(|p| p.name == name));
        (known || self.another_access(name)).then_some(Sharing { name })
    }

    /// Whether one of the next instructions of the block accesses memory off the same base.
    fn another_access(&self, name: u8) -> bool {
        let insns = &self.job.region.blocks[self.block].insns;
        insns.iter().skip(self.number + 1).take(6).any(|i| {
            let off =
                i.memory() && i.base < 16 && usize::from(i.index) == gpr::ZERO && name_of(i.base) == name;
            off && i.kernel != Kernel::Lea && !is_helper(i, self.frugal, self.job.region.key)
                || name == STACK && is_stack(i.kernel)
        })
    }

    /// Looks RCX up for an access; the operand to access it by, before anything else is allocated. `spare` is a
    /// register to spoil.
    fn look_up(&mut self, size: u8, write: bool, spare: Reg, sharing: Option<Sharing>) -> Mem {
        let k = self.snapshot(size, write);
        let (again, miss) = (self.labels.make(), self.labels.make());
        let limit = 4096 - i32::from(size & !ALIGNED);
        if size & ALIGNED != 0 {
            // The miss finds that this is why.
            self.asm.test_imm(W::B, RCX, 15);
            self.asm.jcc(cc::NE, miss);
        }
        let offer = sharing.and_then(|s| self.shared_page(s, write));
        let Some((page, known)) = offer else {
            self.asm.bind(again);
            find_entry(&mut self.asm);
            self.asm.load(W::Q, spare, at(RAX, if write { TAG_WRITE } else { TAG_READ }));
            self.asm.alu(Alu::Xor, W::Q, spare, RCX);
            self.asm.alu_imm(Alu::Cmp, W::Q, spare, limit);
            self.asm.jcc(cc::A, miss);
            self.miss_stub(miss, again, k);
            self.asm.alu_load(Alu::Add, W::Q, RCX, at(RAX, ADDEND));
            return at(RCX, 0);
        };
        let tag_at = at(RAX, if write { TAG_WRITE } else { TAG_READ });
        let fill = |a: &mut Asm| {
            a.bind(again);
            find_entry(a);
            a.load(W::Q, page.tag, tag_at);
            a.load(W::Q, page.addend, at(RAX, ADDEND));
            a.mov(W::Q, RAX, page.tag);
            a.alu(Alu::Xor, W::Q, RAX, RCX);
            a.alu_imm(Alu::Cmp, W::Q, RAX, limit);
            a.jcc(cc::A, miss);
        };
        if known {
            // The page of the access before, nearly always.
            let (other, back) = (self.labels.make(), self.labels.make());
            self.asm.mov(W::Q, RAX, RCX);
            self.asm.alu(Alu::Xor, W::Q, RAX, page.tag);
            self.asm.alu_imm(Alu::Cmp, W::Q, RAX, limit);
            self.asm.jcc(cc::A, other);
            self.asm.bind(back);
            self.cold.bind(other);
            if page.write == write {
                fill(&mut self.cold);
            } else {
                // What is kept is good for writing, and this page may not be: it is not kept.
                let a = &mut self.cold;
                a.bind(again);
                find_entry(a);
                a.load(W::Q, spare, tag_at);
                a.alu(Alu::Xor, W::Q, spare, RCX);
                a.alu_imm(Alu::Cmp, W::Q, spare, limit);
                a.jcc(cc::A, miss);
                a.alu_load(Alu::Add, W::Q, RCX, at(RAX, ADDEND));
                a.alu(Alu::Sub, W::Q, RCX, page.addend);
            }
            self.cold.jmp(back);
        } else {
            fill(&mut self.asm);
        }
        self.miss_stub(miss, again, k);
        Mem { base: RCX, index: page.addend, scale: 0, disp: 0 }
    }

    fn miss_stub(&mut self, miss: Label, again: Label, k: u32) {
        self.cold.bind(miss);
        self.cold.mov_imm(RAX, k.into());
        self.cold.call(self.common.miss);
        self.cold.jmp(again);
    }

    /// The page to share, and whether it is filled; None: no registers for it.
    fn shared_page(&mut self, s: Sharing, write: bool) -> Option<(Page, bool)> {
        if self.job.knobs.no_shared_checks {
            return None;
        }
        let slot = usize::from(s.name != STACK);
        if let Some(page) = self.state.pages[slot]
            && page.name == s.name
        {
            let known = page.write || !write;
            let page = Page { write: page.write || write, ..page };
            self.state.pages[slot] = Some(page);
            return Some((page, known));
        }
        self.drop_page(slot);
        if self.frugal || self.free_registers() < 4 {
            return None;
        }
        let page = Page { name: s.name, write, tag: self.alloc(), addend: self.alloc() };
        self.state.pages[slot] = Some(page);
        self.state.page_registers |= page.registers();
        self.busy &= !page.registers();
        Some((page, false))
    }

    fn load_rcx(&mut self, w: W, sharing: Option<Sharing>) -> Val {
        let d = self.alloc();
        let m = self.look_up(w.bytes(), false, d, sharing);
        self.asm.load(w, d, m);
        Val::Host(d, w.bytes())
    }

    pub fn load_operand(&mut self, i: &Insn, w: W) -> Val {
        self.operand_address(i);
        let sharing = self.sharing(i);
        self.load_rcx(w, sharing)
    }

    /// The memory operand of a vector instruction, to be used before anything else is allocated.
    pub fn vector_operand(&mut self, i: &Insn, size: u8, write: bool, aligned: bool) -> Mem {
        let spare = self.alloc();
        self.operand_address(i);
        let sharing = self.sharing(i);
        self.look_up(size | if aligned { ALIGNED } else { 0 }, write, spare, sharing)
    }

    /// The operand, and the register with its host address, checked for write.
    pub fn open_operand(&mut self, i: &Insn, w: W) -> (Val, Reg) {
        let (d, host) = (self.alloc(), self.alloc());
        self.operand_address(i);
        let sharing = self.sharing(i);
        let m = self.look_up(w.bytes(), true, host, sharing);
        self.asm.lea(W::Q, host, m);
        self.asm.load(w, d, at(host, 0));
        (Val::Host(d, w.bytes()), host)
    }

    /// As `open_operand` under LOCK: from the label on code may run again, until nobody wrote in between.
    pub fn open_locked(&mut self, i: &Insn, w: W) -> (Reg, Reg, Label) {
        let (old, host) = (self.alloc(), self.alloc());
        self.operand_address(i);
        let m = self.look_up(w.bytes(), true, host, None);
        self.asm.lea(W::Q, host, m);
        // What runs again must not give up registers.
        self.make_room();
        self.repeated = true;
        let again = self.labels.make();
        self.asm.bind(again);
        self.asm.load(w, old, at(host, 0));
        (old, host, again)
    }

    pub fn commit_locked(&mut self, w: W, old: Reg, host: Reg, again: Label, v: Val) {
        let (new, _) = self.force(v, w);
        self.asm.mov(W::Q, RAX, old);
        self.asm.lock_cmpxchg(w, at(host, 0), new);
        self.asm.jcc(cc::NE, again);
        self.repeated = false;
    }

    /// A value ready to be stored: nothing is computed after the address is known.
    fn ready(&mut self, w: W, v: Val) -> Val {
        match self.exprs.resolve(v) {
            Val::Const(c) if super::value::immediate(w, c).is_some() => Val::Const(c),
            v => {
                let (h, zx) = self.force(v, w);
                Val::Host(h, zx)
            }
        }
    }

    pub fn store_at(&mut self, w: W, m: Mem, v: Val) {
        match self.ready(w, v) {
            Val::Const(c) => self.asm.store_imm(w, m, super::value::immediate(w, c).unwrap_or(0)),
            v => {
                let (h, _) = self.force(v, w);
                self.asm.store(w, m, h);
            }
        }
    }

    fn store_rcx(&mut self, w: W, v: Val, sharing: Option<Sharing>) {
        let spare = self.alloc();
        let m = self.look_up(w.bytes(), true, spare, sharing);
        self.store_at(w, m, v);
    }

    pub fn store_operand(&mut self, i: &Insn, w: W, v: Val) {
        let v = self.ready(w, v);
        self.operand_address(i);
        let sharing = self.sharing(i);
        self.store_rcx(w, v, sharing);
    }

    /// A value plus a constant, without flags.
    pub fn add_constant(&mut self, w: W, v: Val, n: i32) -> Val {
        match self.exprs.resolve(v) {
            Val::Const(c) => Val::Const(c.wrapping_add(n as i64 as u64) & w.mask()),
            v => {
                let (h, _) = self.force(v, w);
                let d = self.alloc();
                self.asm.lea(w, d, at(h, n));
                Val::Host(d, w.bytes())
            }
        }
    }

    /// A stack address (32 or 64 bits) in RCX.
    fn stack_address(&mut self, i: &Insn, offset: Val) {
        match self.exprs.resolve(offset) {
            Val::Const(c) => self.asm.mov_imm(RCX, c),
            v => {
                let (h, _) = self.force(v, i.stack_width());
                self.asm.mov(i.stack_width(), RCX, h);
            }
        }
    }

    pub fn load_stack(&mut self, i: &Insn, w: W, offset: Val) -> Val {
        self.stack_address(i, offset);
        self.load_rcx(w, Some(Sharing { name: STACK }))
    }

    pub fn store_stack(&mut self, i: &Insn, w: W, offset: Val, v: Val) {
        let v = self.ready(w, v);
        self.stack_address(i, offset);
        self.store_rcx(w, v, Some(Sharing { name: STACK }));
    }

    /// Leaves to the interpreter where a computed target is not canonical.
    pub fn check_canonical(&mut self, target: Val) {
        let (h, _) = self.force(target, W::Q);
        let k = self.snapshot(0, false);
        let fault = self.labels.make();
        self.asm.mov(W::Q, RAX, h);
        self.asm.shift_imm(Sh::Sar, W::Q, RAX, 47);
        self.asm.alu_imm(Alu::Add, W::D, RAX, 1);
        self.asm.alu_imm(Alu::Cmp, W::D, RAX, 1);
        self.asm.jcc(cc::A, fault);
        self.cold.bind(fault);
        self.cold.mov_imm(RAX, k.into());
        self.cold.call(self.common.miss);
    }
}
