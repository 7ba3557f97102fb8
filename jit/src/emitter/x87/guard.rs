//! What stands before a run of x87 instructions: see the head of `mod.rs`.

use super::forms::{Action, Form};
use super::{NOWHERE, X87};
use crate::emitter::encode::{Alu, RAX, cc, field};
use crate::emitter::registers::{Emitter, Facts};
use trimaran_cpu::insn::{Insn, W};
use trimaran_cpu::translate::{offset, x87_used};

/// How far ahead instructions are looked at.
const AHEAD: usize = 100;
/// TOP in the status word.
const TOP: i32 = 7 << 11;

/// What a run of instructions wants of physical registers.
#[derive(Default)]
struct Wants {
    valid: u8,
    empty: u8,
    /// ST(0) to this, exclusively, are to be cached.
    depth: u8,
}

impl Wants {
    /// Adds an instruction's, given the state that the earlier ones lead to; false: it can never be met.
    fn add(&mut self, x: &mut X87, first_top: u8, form: &Form, i: &Insn) -> bool {
        for n in 0..form.needs(i) {
            let p = x.physical(n);
            if x.known >> p & 1 == 0 {
                self.valid |= 1 << p;
                self.depth = self.depth.max((p.wrapping_sub(first_top) & 7) + 1);
                x.tag(n, true);
            } else if x.valid >> p & 1 == 0 {
                return false;
            }
        }
        if form.push {
            let p = x.physical(7);
            if x.known >> p & 1 == 0 {
                self.empty |= 1 << p;
            } else if x.valid >> p & 1 != 0 {
                return false;
            }
            x.top = p;
            x.tag(0, true);
        }
        for _ in 0..form.pops {
            x.tag(0, false);
            x.top = x.physical(1);
        }
        true
    }
}

impl Emitter<'_> {
    /// What the running instruction and those ahead of it in its segment want.
    fn wants(&self) -> Wants {
        let mut wants = Wants::default();
        let mut x = X87::new(self.state.x87.top);
        let (mut block, mut number) = (self.block, self.number);
        for _ in 0..AHEAD {
            let i = &self.job.region.blocks[block].insns[number];
            let Facts { helper, x87, .. } = self.facts[self.first_of_block[block] + number];
            if let Some(form) = x87 {
                let moves = matches!(form.action, Action::Free | Action::Rotate(_));
                if moves || !wants.add(&mut x, self.state.x87.top, form, i) {
                    break;
                }
            } else if helper {
                break;
            }
            number += 1;
            if number == self.job.region.blocks[block].insns.len() {
                block += 1;
                if block >= self.segments.len() || self.segments[block] {
                    break;
                }
                number = 0;
            }
        }
        // What lies between.
        let top = self.state.x87.top;
        wants.valid |= (0..wants.depth).fold(0, |set, n| set | 1 << ((top + n) & 7));
        wants
    }

    /// Makes sure of all that the running instruction relies on.
    pub fn x87_ready(&mut self, form: &Form, i: &Insn) {
        let x = &self.state.x87;
        if !x.guarded || form.needs(i) > x.cached || form.push && !x.is_empty(7) {
            self.guard();
        }
    }

    /// A guard before a loop: what is cached at its head stays on the host's stack from iteration to iteration.
    pub fn keep_x87(&mut self) {
        self.guard();
        if let Some(snapshot) = self.snapshots.last_mut() {
            (snapshot.kept, snapshot.rest) = (true, 0);
        }
        // The loop may change them.
        self.state.x87.homes = [NOWHERE; 8];
    }

    /// Before a way back to the head of a loop. False: the unit is not as it was there, and memory knows all.
    pub fn x87_back_to(&mut self, head: &X87) -> bool {
        let same = self.state.x87.continues(head);
        if same && head.guarded {
            self.write_x87_pointer();
        } else {
            self.write_x87();
        }
        same
    }

    fn guard(&mut self) {
        self.write_x87();
        let wants = self.wants();
        let k = self.snapshot(0, false);
        self.snapshots[k as usize].guard = true;
        let (cold, back, fail) = (self.labels.make(), self.labels.make(), self.labels.make());
        let used = field(offset::X87_USED);
        if wants.depth == 0 {
            self.asm.alu_mem_imm(Alu::Cmp, W::B, used, 0);
            self.asm.jcc(cc::E, cold);
        } else {
            // Loading clears C1: it must not be the host's.
            self.asm.load(W::B, RAX, used);
            self.asm.alu_imm(Alu::And, W::D, RAX, (x87_used::ARMED | x87_used::C1).into());
            self.asm.alu_imm(Alu::Cmp, W::D, RAX, x87_used::ARMED.into());
            self.asm.jcc(cc::NE, cold);
        }
        self.asm.bind(back);
        let x = self.state.x87;
        // Not both at once: they are stored one by one, and the host forwards no two stores to one load.
        self.asm.load(W::W, RAX, field(offset::X87_STATUS));
        self.asm.alu_imm(Alu::And, W::D, RAX, TOP);
        self.asm.alu_imm(Alu::Cmp, W::D, RAX, i32::from(x.top) << 11);
        self.asm.jcc(cc::NE, fail);
        let tags = wants.valid | wants.empty;
        if tags != 0 {
            self.asm.load(W::B, RAX, field(offset::X87_VALID));
            self.asm.alu_imm(Alu::And, W::D, RAX, tags.into());
            self.asm.alu_imm(Alu::Cmp, W::D, RAX, wants.valid.into());
            self.asm.jcc(cc::NE, fail);
        }
        let cold_part = &mut self.cold;
        cold_part.bind(cold);
        cold_part.call(self.common.arm);
        cold_part.alu_mem_imm(Alu::Cmp, W::B, used, 0);
        cold_part.jcc(cc::NE, back);
        cold_part.bind(fail);
        cold_part.mov_imm(RAX, k.into());
        cold_part.call(self.common.miss);

        // All is written back: what was known of tags is what memory says.
        let mut x = X87 { guarded: true, known: x.known | tags, valid: x.valid & !tags | wants.valid, ..x };
        (x.memory_valid, x.cached, x.has_c1) = (x.valid, wants.depth, false);
        for n in (0..wants.depth).rev() {
            let p = x.physical(n);
            self.asm.load_extended(field(offset::x87_register(p.into())));
            x.homes[usize::from(n)] = p;
        }
        self.state.x87 = x;
    }
}
