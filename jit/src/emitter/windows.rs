//! Windows: stretches of guest memory around a base register whose host address is known.
//!
//! Most accesses off one base register (the stack's above all) meet one page. The first of several looks up the whole
//! stretch that they will touch, and a host register keeps where it lies: the others need no look-up and cannot
//! fault. What the code ahead touches is read off its instructions ([`Emitter::plan`]); a base register that constants are
//! added to is followed.
//!
//! A window fails where its stretch crosses a page, or where it was looked up for writing on behalf of stores ahead and
//! the page is not writable now. The instruction is interpreted then; a region in which this happens often is translated
//! again with less [`Sharing`].
//!
//! A loop keeps windows around registers that it does not change: they are looked up once, before its head.
//!
//! Invariant: a window's stretch is mapped, on one page, with the rights it was looked up with. It ends with a helper, which
//! may change the mapping, and with a write to its registers that is not the addition of a constant; nothing else
//! within a region takes rights away.

use super::access::ALIGNED;
use super::encode::{Mem, NONE, RAX, RCX, Reg, at, cc};
use super::registers::{Emitter, Facts, Place};
use crate::abi::Sharing;
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::interp::form;
use trimaran_cpu::kernels::Kernel;
use trimaran_cpu::state::{gpr, seg};

/// A stretch has at most so many bytes: longer ones cross pages more often.
const SPAN: i64 = 256;
/// How far ahead accesses are looked for.
const AHEAD: usize = 40;

/// A linear address but for a constant.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Base {
    base: u8,
    index: u8,
    scale: u8,
}

impl Base {
    fn bits(self) -> u32 {
        let bit = |g: u8| if g < 16 { 1 << g } else { 0 };
        bit(self.base) | bit(self.index)
    }
    /// Whether the index register is among these.
    fn names_index(self, set: u32) -> bool {
        self.index < 16 && set >> self.index & 1 != 0
    }
}

/// An access relative to its base's value before the instruction.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    base: Base,
    disp: i64,
    size: i64,
    write: bool,
}

/// See the head of this file.
#[derive(Clone, Copy)]
pub struct Window {
    base: Base,
    /// What was added to the base since.
    moved: i64,
    /// Offsets from the base's value when the window was opened: `from` up to, but not with `to`.
    from: i64,
    to: i64,
    write: bool,
    /// The host address of `from`.
    pub host: Reg,
    /// Accesses that are still expected, or [`KEPT`].
    left: u32,
}

/// [`Window::left`] of a loop's windows: nothing but a helper closes them.
const KEPT: u32 = u32::MAX;
/// A loop keeps at most so many.
const MOST_KEPT: usize = 2;

impl Window {
    pub fn kept(&self) -> bool {
        self.left == KEPT
    }
}

/// A window worth opening.
pub struct Plan {
    base: Base,
    from: i64,
    to: i64,
    /// Stores are to come; the tag for writing is asked for.
    write: bool,
    /// Accesses besides the first.
    pub count: u32,
    /// Where the first access lies.
    first: i64,
}

impl Plan {
    /// What to add to the first access's address for the window's.
    pub fn back(&self) -> i32 {
        (self.from - self.first) as i32
    }
    pub fn span(&self) -> i32 {
        (self.to - self.from) as i32
    }
    pub fn write(&self) -> bool {
        self.write
    }
}

/// Widens the plan around an access's base, or begins one.
fn join(plans: &mut Vec<Plan>, r: Reach) {
    let (from, to) = (r.disp, r.disp + r.size);
    for p in plans.iter_mut().filter(|p| p.base == r.base) {
        let (low, high) = (p.from.min(from), p.to.max(to));
        if high - low <= SPAN {
            (p.from, p.to, p.write, p.count) = (low, high, p.write | r.write, p.count + 1);
            return;
        }
    }
    plans.push(Plan { base: r.base, from, to, write: r.write, count: 1, first: from });
}

/// What an instruction adds to a register that it writes; None: something else.
fn added(i: &Insn, register: usize, code64: bool) -> Option<i64> {
    use Kernel::{Add, Call, Dec, Inc, Lea, Pop, Push, Sub};
    let whole = if code64 { W::Q } else { W::D };
    let width = i64::from(i.w);
    let stack = register == gpr::RSP && i.stack_width() == whole;
    let itself = i.form < form::MEM_REG && usize::from(i.r0) == register && i.width() == whole;
    match i.kernel {
        Push | Call if stack => Some(-width),
        Pop if stack && !(i.form < form::MEM_REG && usize::from(i.r0) == gpr::RSP) => Some(width),
        Add if itself && i.form == form::REG_IMM => Some(i.imm as i32 as i64),
        Sub if itself && i.form == form::REG_IMM => Some(-(i.imm as i32 as i64)),
        Inc if itself => Some(1),
        Dec if itself => Some(-1),
        Lea if itself && usize::from(i.base) == register && usize::from(i.index) == gpr::ZERO => {
            (i.asize == whole.bytes()).then_some(i.disp as i32 as i64)
        }
        _ => None,
    }
}

impl Emitter<'_> {
    /// The memory operand as an access that may share; `disp` of RIP is from the region's entry.
    pub fn reach(&self, i: &Insn, delta: i64, size: u8, write: bool) -> Option<Reach> {
        let whole = if self.code64 { 8 } else { 4 };
        let no_base = usize::from(i.base) == gpr::ZERO;
        if usize::from(i.seg) < seg::FLAT || i.asize != whole || no_base {
            return None;
        }
        let mut disp =
            if whole == 8 { i64::from(i32::try_from(i.disp as i64).ok()?) } else { i.disp as i32 as i64 };
        if usize::from(i.base) == gpr::RIP {
            // Near its limits the sum is no displacement any more.
            disp = i64::from(i32::try_from(disp + delta + i64::from(i.len)).ok()?);
        }
        let scale = if usize::from(i.index) == gpr::ZERO { 0 } else { i.scale };
        Some(Reach { base: Base { base: i.base, index: i.index, scale }, disp, size: size.into(), write })
    }

    /// An access to the stack, or to where a register points.
    pub fn stack_reach(&self, i: &Insn, register: usize, disp: i64, write: bool) -> Option<Reach> {
        let base = Base { base: register as u8, index: gpr::ZERO as u8, scale: 0 };
        let whole = i.stack_width() == if self.code64 { W::Q } else { W::D };
        whole.then_some(Reach { base, disp, size: i.w.into(), write })
    }

    /// What an instruction ahead accesses, roughly.
    fn reaches(&self, i: &Insn, facts: &Facts, delta: i64) -> [Option<Reach>; 2] {
        use Kernel::{Call, CallIndirect, Cmp, Lea, Leave, Nop, Pop, Push, Ret, Test};
        let width = i64::from(i.w);
        let stack = match i.kernel {
            Push | Call | CallIndirect => self.stack_reach(i, gpr::RSP, -width, true),
            Pop | Ret => self.stack_reach(i, gpr::RSP, 0, false),
            Leave => self.stack_reach(i, gpr::RBP, 0, false),
            _ => None,
        };
        if !i.memory() || matches!(i.kernel, Lea | Nop) || i.form >= form::LOCKED_REG {
            return [stack, None];
        }
        let operand = match (facts.shape, facts.x87) {
            (Some(shape), _) => self.reach(i, delta, shape.size, i.mem_op == 0),
            (_, Some(form)) => self.reach(i, delta, form.size, form.store),
            _ => {
                let kernel = matches!(i.kernel, Cmp | Test | Kernel::Bt | Push | CallIndirect);
                let reads = kernel || facts.division;
                self.reach(i, delta, i.w.min(8), i.mem_op == 0 && !reads)
            }
        };
        [stack, operand]
    }

    /// The window that an access lies in.
    pub fn covered(&mut self, r: Reach) -> Option<Mem> {
        if self.written & r.base.bits() != 0 {
            return None;
        }
        let mut found = None;
        for (n, w) in self.state.windows.iter().enumerate() {
            let Some(w) = w.filter(|w| w.base == r.base && (w.write || !r.write)) else { continue };
            let offset = r.disp + w.moved;
            if w.from <= offset && offset + r.size <= w.to {
                found = Some((n, at(w.host, (offset - w.from) as i32)));
            }
        }
        let (n, m) = found?;
        if let Some(w) = &mut self.state.windows[n] {
            if !w.kept() {
                w.left = w.left.saturating_sub(1);
            }
            self.busy |= 1 << w.host;
        }
        Some(m)
    }

    /// What the code ahead would access in a window around an access of the running instruction.
    pub fn plan(&self, r: Reach) -> Option<Plan> {
        if self.job.sharing == Sharing::None || self.frugal || self.written & r.base.bits() != 0 {
            return None;
        }
        let optimistic = self.job.sharing == Sharing::Full;
        let mut plan =
            Plan { base: r.base, from: r.disp, to: r.disp + r.size, write: r.write, count: 0, first: r.disp };
        let code64 = self.code64;
        let mut moved = 0i64;
        let (mut block, mut number, mut delta) = (self.block, self.number, self.delta);
        for ahead in 0..AHEAD {
            let i = &self.job.region.blocks[block].insns[number];
            let facts = self.facts[self.first_of_block[block] + number];
            let Facts { written, helper, .. } = facts;
            if ahead != 0 {
                if helper {
                    break;
                }
                for other in self.reaches(i, &facts, delta).into_iter().flatten() {
                    let offset = other.disp + moved;
                    let (from, to) = (plan.from.min(offset), plan.to.max(offset + other.size));
                    let allowed = r.write || !other.write || optimistic;
                    if other.base == r.base && to - from <= SPAN && allowed {
                        (plan.from, plan.to, plan.count) = (from, to, plan.count + 1);
                        plan.write |= other.write;
                    }
                }
            }
            if written & r.base.bits() != 0 {
                match added(i, usize::from(r.base.base), code64) {
                    Some(n) if !r.base.names_index(written) => moved += n,
                    _ => break,
                }
            }
            number += 1;
            delta += i64::from(i.len);
            if number == self.job.region.blocks[block].insns.len() {
                // On to the block that this one falls into, within the segment.
                block += 1;
                if block >= self.segments.len() || self.segments[block] {
                    break;
                }
                (number, delta) = (0, self.job.region.blocks[block].delta);
            }
        }
        (plan.count != 0).then_some(plan)
    }

    /// Keeps what was looked up; the first access's operand.
    pub fn open_window(&mut self, plan: &Plan, host: Reg) -> Mem {
        let window = Window {
            base: plan.base,
            moved: 0,
            from: plan.from,
            to: plan.to,
            write: plan.write,
            host,
            left: plan.count,
        };
        // One for reading gives way to one for writing.
        let windows = &self.state.windows;
        let same = windows.iter().position(|w| w.is_some_and(|w| w.base == plan.base && !w.kept()));
        let free = windows.iter().position(Option::is_none);
        let oldest = windows
            .iter()
            .enumerate()
            .filter(|w| w.1.is_none_or(|w| !w.kept()))
            .min_by_key(|w| w.1.map_or(0, |w| w.left))
            .map_or(0, |w| w.0);
        let n = free.or(same).unwrap_or(oldest);
        self.close_window(n);
        self.state.windows[n] = Some(window);
        self.state.window_registers |= 1 << host;
        at(host, (plan.first - plan.from) as i32)
    }

    /// Windows for a loop of these blocks, which writes the registers of `written`.
    fn invariant(&self, cycle: &[bool], written: u32) -> Vec<Plan> {
        let mut plans: Vec<Plan> = Vec::new();
        if self.job.sharing == Sharing::None || self.frugal {
            return plans;
        }
        let blocks = &self.job.region.blocks;
        for (n, block) in blocks.iter().enumerate().filter(|&(n, _)| cycle[n]) {
            let mut delta = block.delta;
            for (number, i) in block.insns.iter().enumerate() {
                let facts = &self.facts[self.first_of_block[n] + number];
                for r in self.reaches(i, facts, delta).into_iter().flatten() {
                    if r.base.bits() & written == 0 && (self.job.sharing == Sharing::Full || !r.write) {
                        join(&mut plans, r);
                    }
                }
                delta += i64::from(i.len);
            }
        }
        plans.sort_by_key(|p| std::cmp::Reverse(p.count));
        plans.truncate(MOST_KEPT);
        plans
    }

    /// Opens the windows of a loop, before its head. A failed look-up interprets the first instruction.
    pub fn open_kept(&mut self, cycle: &[bool], written: u32) {
        for plan in self.invariant(cycle, written) {
            if self.free_registers() < 4 {
                break;
            }
            let busy = self.busy;
            let host = self.alloc();
            let part = |e: &mut Self, g: u8| {
                if usize::from(g) == gpr::ZERO {
                    return NONE;
                }
                let v = e.guest(g.into());
                e.force(v, W::Q).0
            };
            let (base, index) = (part(self, plan.base.base), part(self, plan.base.index));
            let scale = if index == NONE { 0 } else { plan.base.scale };
            let w = if self.code64 { W::Q } else { W::D };
            self.asm.lea(w, RCX, Mem { base, index, scale, disp: plan.from as i32 });
            let k = self.window_snapshot(&plan, plan.write);
            let snapshot = &mut self.snapshots[k as usize];
            (snapshot.kept, snapshot.rest) = (true, 0);
            let miss = self.labels.make();
            let entry = self.look_up(plan.span(), plan.write, host, miss);
            self.cold.bind(miss);
            self.cold.mov_imm(RAX, k.into());
            self.cold.call(self.common.miss);
            self.asm.load(W::Q, host, entry(super::access::ADDEND));
            self.asm.alu(super::encode::Alu::Add, W::Q, host, RCX);
            self.open_window(&Plan { count: KEPT, ..plan }, host);
            self.busy = busy;
        }
        // The way back does not restore it.
        self.state.place(gpr::RIP, Place::Memory, false);
    }

    pub fn close_window(&mut self, n: usize) {
        if let Some(w) = self.state.windows[n].take() {
            self.state.window_registers &= !(1 << w.host);
        }
    }

    /// Follows what the instruction did to the registers of windows.
    pub fn follow(&mut self, i: &Insn) {
        let written = std::mem::take(&mut self.written);
        for n in 0..self.state.windows.len() {
            let Some(w) = &mut self.state.windows[n] else { continue };
            let base = w.base;
            if written & base.bits() != 0 {
                match added(i, usize::from(base.base), self.code64) {
                    Some(d) if !base.names_index(written) => w.moved += d,
                    // No loop's: what it keeps it does not write, but what leaves it may.
                    _ => w.left = 0,
                }
            }
            if self.state.windows[n].is_some_and(|w| w.left == 0) {
                self.close_window(n);
            }
        }
    }

    /// Leaves to the interpreter where an operand of a window is not aligned. RCX: its address, the host's or the guest's.
    pub fn check_alignment(&mut self, size: u8) {
        let k = self.snapshot(size, false);
        let miss = self.labels.make();
        self.asm.test_imm(W::B, RCX, ((size & !ALIGNED) - 1).into());
        self.asm.jcc(cc::NE, miss);
        self.cold.bind(miss);
        self.cold.mov_imm(RAX, k.into());
        self.cold.call(self.common.miss);
    }
}
